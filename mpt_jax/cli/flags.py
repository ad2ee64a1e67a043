"""The flags of the gin-driven commands."""

import argparse
from collections.abc import Mapping, Sequence

from mpt_jax.cli import reader
from mpt_jax.types import HUB, InputError, nearest

# The entry points that several processes run as one, those that read data, and
# those that can tell beforehand what they would do.
MULTIPROCESS = ('mpt_jax.train', 'mpt_jax.eval', 'mpt_jax.infer')
READ_DATA = (
  *MULTIPROCESS,
  'mpt_jax.pipeline',
  *(f'mpt_jax.transfer.{n}' for n in ('matrix', 'speedup', 'project', 'whole')),
)
DRY = ('mpt_jax.pipeline',)
# What it writes may be uploaded.
PUSHES = ('mpt_jax.export',)
# Name -> (type, what stands for its value, help).
PROCESS_FLAGS: Mapping[str, tuple[type, str, str]] = {
  'coordinator_address': (
    *(str, 'HOST:PORT'),
    'of process 0, the port a free one',
  ),
  'process_count': (int, 'N', 'how many'),
  'process_index': (int, 'N', 'this one, from 0'),
  'initialization_timeout': (
    *(int, 'SECONDS'),
    'to wait for the others at the start (300)',
  ),
  'heartbeat_timeout': (
    *(int, 'SECONDS'),
    'within which the loss of one ends the others (30)',
  ),
}


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


def data_dir(tfds: str | None, hub: str | None) -> str | None:
  """What names the data: a folder of TFDS data, `hf:DIR`, or None.

  Args:
    tfds: what --tfds_data_dir says.
    hub: what --hf_data_dir says.

  Raises:
    InputError: if both are given.
  """
  if tfds is not None and hub is not None:
    raise InputError(
      f'--tfds_data_dir={tfds} and --hf_data_dir={hub}: give one of them'
    )
  return tfds if hub is None else f'{HUB}{hub}'


def _add_processes(parser: argparse.ArgumentParser, among: bool) -> None:
  """Adds the flags of one among several processes."""
  # Elsewhere they are known, so that it can be said that they are not for it.
  group = parser.add_argument_group(
    'several processes' if among else None,
    description='the same command in each, but for --process_index; see'
    ' docs/gpu.md and docs/tpu.md'
    if among
    else None,
  )
  group.add_argument(
    '--multiprocess_gpu',
    '--multiprocess',
    action='store_true',
    help='run as one of several processes, on GPUs, TPUs or CPUs; without the'
    ' flags below JAX finds the others (TPU pods, Slurm, Open MPI)'
    if among
    else argparse.SUPPRESS,
  )
  for name, (kind, metavar, help) in PROCESS_FLAGS.items():
    group.add_argument(
      f'--{name}',
      type=kind,
      metavar=metavar,
      help=help if among else argparse.SUPPRESS,
    )


def parser(module: str, spoken: str = '') -> argparse.ArgumentParser:
  """Returns the flags that a command takes; those of others are hidden."""
  parser = argparse.ArgumentParser(
    usage=f'python -m {spoken or module} --gin_file=FILE [--gin.NAME=VALUE …]'
    ' [flags]',
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
    '--hf_data_dir',
    metavar='FOLDER',
    help="folder of the hub's data sets, FOLDER/OWNER/NAME or the hub's own"
    ' cache or that of `datasets`, for the built-in tasks; instead of'
    ' --tfds_data_dir'
    if module in READ_DATA
    else argparse.SUPPRESS,
  )
  parser.add_argument(
    '--dry_run',
    action='store_true',
    help='tell what would be run, how long it takes and what it fills'
    if module in DRY
    else argparse.SUPPRESS,
  )
  pushes = module in PUSHES
  parser.add_argument(
    '--push_to',
    metavar='USER/NAME',
    help='tell what an upload to this model of the hub would hold'
    if pushes
    else argparse.SUPPRESS,
  )
  parser.add_argument(
    '--upload',
    action='store_true',
    help='with --push_to: upload it' if pushes else argparse.SUPPRESS,
  )
  parser.add_argument(
    '--debug', action='store_true', help='show the traceback of wrong input'
  )
  _add_processes(parser, module in MULTIPROCESS)
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
  flags, bindings = read(module, argv)
  if not flags.gin_file:
    raise InputError('no --gin_file given; see --help')
  return flags, bindings


def read(
  module: str, argv: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
  """As `parse`, but no gin file need be given."""
  flags, rest = parser(module).parse_known_args(argv)
  bindings: list[str] = []
  for argument in rest:
    if not argument.startswith('--gin.') or '=' not in argument:
      known = [
        '--gin_file',
        '--gin_search_paths',
        '--tfds_data_dir',
        '--hf_data_dir',
        '--debug',
        *(['--dry_run'] if module in DRY else []),
        *(['--push_to', '--upload'] if module in PUSHES else []),
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
