"""The flags of the gin-driven commands, and their `--help`."""

import argparse
import ast
from collections.abc import Sequence
import glob
import os
import shutil
import sys
import textwrap
from typing import NoReturn

from mpt_jax.cli import reader
from mpt_jax.types import InputError, installed, nearest, quiet_pipe

# The entry points that several processes run as one, and those that read data.
MULTIPROCESS = ('mpt_jax.train', 'mpt_jax.eval', 'mpt_jax.infer')
READ_DATA = (*MULTIPROCESS, 'mpt_jax.pipeline')
PROCESS_FLAGS = (
  'coordinator_address',
  'process_count',
  'process_index',
  'initialization_timeout',
)
HELP = {'-h', '--help'}
_GIN = (
  '--gin.NAME=VALUE sets a macro (--gin.BATCH_SIZE=32) or a parameter'
  ' (--gin.train.Logging.log_period=50); strings need quotes:'
  ' --gin.MODEL_DIR="\'runs/rte\'".'
)


def several(flags: argparse.Namespace) -> bool:
  """Whether the command line says that there are other processes."""
  given = {
    name: getattr(flags, name)
    for name in PROCESS_FLAGS
    if getattr(flags, name) is not None
  }
  if given and not flags.multiprocess_gpu:
    raise InputError(
      f'--{next(iter(given))} is given without --multiprocess_gpu; with it'
      ' several processes run as one'
    )
  return flags.multiprocess_gpu


def _parser(module: str) -> argparse.ArgumentParser:
  """The flags that a command takes; those of other commands are hidden."""
  parser = argparse.ArgumentParser(
    usage=f'python -m {module} --gin_file=FILE [--gin.NAME=VALUE …] [flags]',
    add_help=False,
    allow_abbrev=False,
  )
  parser.add_argument(
    '--gin_file',
    action='append',
    default=[],
    metavar='FILE',
    help='gin file; may be repeated, later ones win. Looked for as given, in'
    ' --gin_search_paths, then among the installed gin_configs;'
    ' gin_configs/… is the installed one, ./gin_configs/… yours',
  )
  parser.add_argument(
    '--gin_search_paths',
    default='',
    metavar='FOLDERS',
    help='where to look for gin files, comma-separated',
  )
  parser.add_argument(
    '--tfds_data_dir',
    metavar='FOLDER',
    help='folder of prepared TFDS data'
    if module in READ_DATA
    else argparse.SUPPRESS,
  )
  parser.add_argument(
    '--debug', action='store_true', help='show the traceback of wrong input'
  )
  if module not in MULTIPROCESS:
    # Known, so that it can be said that they are not for this command.
    parser.add_argument(
      '--multiprocess_gpu',
      '--multiprocess',
      action='store_true',
      help=argparse.SUPPRESS,
    )
    for name in PROCESS_FLAGS:
      parser.add_argument(f'--{name}', help=argparse.SUPPRESS)
    return parser
  processes = parser.add_argument_group(
    'several processes',
    'the same command in each, but for --process_index; see docs/gpu.md and'
    ' docs/tpu.md',
  )
  processes.add_argument(
    '--multiprocess_gpu',
    '--multiprocess',
    action='store_true',
    help='run as one of several processes, on GPUs, TPUs or CPUs; without the'
    ' next three flags JAX finds the others (TPU pods, Slurm, Open MPI)',
  )
  processes.add_argument(
    '--coordinator_address',
    metavar='HOST:PORT',
    help='of process 0, the port a free one',
  )
  processes.add_argument(
    '--process_count', type=int, metavar='N', help='how many'
  )
  processes.add_argument(
    '--process_index', type=int, metavar='N', help='this one, from 0'
  )
  processes.add_argument(
    '--initialization_timeout',
    type=int,
    metavar='SECONDS',
    help='to wait for the others at the start (300)',
  )
  return parser


def parse(
  module: str, argv: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
  """Reads a command line.

  Args:
    module: 'mpt_jax.train'.
    argv: the words behind it.

  Returns:
    (flags, the bindings 'NAME=VALUE' of --gin.NAME=VALUE).

  Raises:
    InputError: if a word is no flag, or no gin file is given.
  """
  flags, bindings = _read(module, argv)
  if not flags.gin_file:
    raise InputError('no --gin_file given; see --help')
  return flags, bindings


def _read(
  module: str, argv: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
  flags, rest = _parser(module).parse_known_args(argv)
  bindings: list[str] = []
  for argument in rest:
    if not argument.startswith('--gin.') or '=' not in argument:
      known = [
        '--gin_file',
        '--gin_search_paths',
        '--tfds_data_dir',
        '--debug',
        '--multiprocess_gpu',
        *(f'--{name}' for name in PROCESS_FLAGS),
      ]
      hint = nearest(argument.split('=')[0], known)
      if argument.startswith('--gin.'):
        hint = f'; a value follows behind =: {argument}=…'
      elif bindings and not argument.startswith('-'):
        hint = (
          f'; a value with blanks needs quotes around it, as in'
          f' {reader.quoted(f"--gin.{bindings[-1]} …")}'
        )
      raise InputError(f'unknown argument {argument!r}{hint or "; see --help"}')
    bindings.append(argument.removeprefix('--gin.'))
  return flags, bindings


def show_help(module: str, function: str, argv: Sequence[str]) -> NoReturn:
  """Prints what a command does and takes, and ends the process.

  Args:
    module: 'mpt_jax.train'; it is not imported.
    function: what gin binds in it.
    argv: the words behind it; with gin files their macros are told.
  """
  try:
    words = [word for word in argv if word not in HELP]
    flags, bindings = _read(module, words)
    if flags.gin_file:
      lines = tell_macros(flags.gin_file, bindings, flags.gin_search_paths)
    else:
      lines = [*_tell(module, function), '', _parser(module).format_help()]
  except InputError as e:
    print(f'error: {e}', file=sys.stderr)
    sys.exit(2)
  with quiet_pipe():
    print('\n'.join(lines).rstrip())
  sys.exit(0)


def _tell(module: str, function: str) -> list[str]:
  """What a command does, and its gin files with a line each."""
  names = []
  folder = installed('gin_configs', 'runs')
  for path in sorted(glob.glob(os.path.join(folder, '*.gin'))):
    # Those that others include set only a part.
    part = path.endswith('common.gin')
    if not part and reader.binds(path, module, function):
      summary = ' '.join(reader.head(path).split()).partition('. ')[0]
      names.append((os.path.relpath(path, installed()), summary.rstrip('.')))
  return [
    (ast.get_docstring(reader.source(module)) or '').strip(),
    '',
    'Gin files; --gin_file=FILE --help says what can be set in one:',
    *(_in_columns(name, text) for name, text in names),
    '',
    textwrap.fill(_GIN, 79, break_on_hyphens=False),
  ]


def tell_macros(
  gin_files: Sequence[str], bindings: Sequence[str], extra_paths: str = ''
) -> list[str]:
  """Says what gin files are for, and what can be set in them.

  Args:
    gin_files: looked for as `reader.check_macros` does.
    bindings: 'NAME=VALUE'.
    extra_paths: comma-separated folders.

  Returns:
    Lines for a terminal.

  Raises:
    InputError: if a file is missing, or sets what is used nowhere.
  """
  macros = reader.describe_macros(gin_files, bindings, extra_paths)
  paths = reader.search_paths(extra_paths)
  lines = [reader.head(reader.find(gin_files[0], paths)), '']
  required = [macro for macro in macros if not macro.value]
  for title, some in (
    ('Required macros (--gin.NAME=VALUE):', required),
    ('Macros and their values:', [m for m in macros if m.value]),
  ):
    lines += [title] if some else []
    for macro in some:
      value = f' = {macro.value}' if macro.value else ''
      said = '; '.join(filter(None, (macro.kind, macro.comment)))
      lines.append(_in_columns(f'{macro.name}{value}', said))
    lines += [''] if some else []
  return lines


_COLUMN = 34


def _in_columns(left: str, right: str) -> str:
  """Two columns, the second one wrapped; below the first if that is long."""
  width = max(min(shutil.get_terminal_size().columns, 120), 60)
  text = textwrap.wrap(
    right, width - _COLUMN, break_on_hyphens=False, break_long_words=False
  )
  left = f'  {left}'
  if len(left) < _COLUMN - 1 and text:
    left = left.ljust(_COLUMN) + text.pop(0)
  return '\n'.join([left, *(f'{"":{_COLUMN}}{line}' for line in text)])
