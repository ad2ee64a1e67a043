"""`--help`: what a command takes, and what can be set in a gin file."""

import ast
from collections.abc import Mapping, Sequence
import dataclasses
import functools
import glob
import io
import itertools
import os
import shutil
import sys
import textwrap
import tokenize
from typing import NoReturn

from mpt_jax.cli import flags as flags_lib
from mpt_jax.cli import reader
from mpt_jax.types import InputError, expected_by, installed, quiet_pipe

HELP = {'-h', '--help'}
_GIN = (
  '--gin.NAME=VALUE sets a macro (--gin.BATCH_SIZE=32) or a parameter'
  ' (--gin.train.Logging.log_period=50); strings need quotes:'
  ' --gin.MODEL_DIR="\'runs/rte\'".'
)


def show_help(
  module: str, function: str, argv: Sequence[str], spoken: str = ''
) -> NoReturn:
  """Prints what a command does and takes, and ends the process.

  Args:
    module: 'mpt_jax.train'; it is not imported.
    function: what gin binds in it.
    argv: the words behind it; with gin files their macros are told.
    spoken: see `cli.main`.
  """
  try:
    words = [word for word in argv if word not in HELP]
    flags, bindings = flags_lib.read(module, words)
    if flags.gin_file:
      lines = tell_macros(flags.gin_file, bindings, flags.gin_search_paths)
    else:
      lines = [
        *_tell(module, function),
        '',
        flags_lib.parser(module, spoken).format_help(),
      ]
  except InputError as e:
    print(f'error: {e}', file=sys.stderr)
    sys.exit(2)
  with quiet_pipe():
    print('\n'.join(lines).rstrip())
  sys.exit(0)


def _tell(module: str, function: str) -> list[str]:
  """What a command does, and its gin files with a line each."""
  names = []
  folders = [installed('gin_configs', name) for name in ('runs', 'studies')]
  found = [sorted(glob.glob(os.path.join(f, '*.gin'))) for f in folders]
  for path in itertools.chain(*found):
    # Those that stand before or behind others set only a part.
    part = path.endswith(('common.gin', 'small.gin'))
    if not part and _binds(path, module, function):
      summary = ' '.join(_head(path).split()).partition('. ')[0]
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
  macros = describe_macros(gin_files, bindings, extra_paths)
  path = reader.find(gin_files[0], reader.search_paths(extra_paths))
  lines = [_head(path), '']
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


@dataclasses.dataclass(frozen=True)
class _Told:
  """What a user wants to know of a macro.

  Attributes:
    name: its name.
    value: as the gin file or the command line writes it; '' if it is required.
    kind: what it may be, in words; '' if that is not known.
    comment: what stands behind it in the gin file, or else what the docstring
      says of the parameter that it sets.
  """

  name: str
  value: str
  kind: str
  comment: str


def describe_macros(
  gin_files: Sequence[str], bindings: Sequence[str], extra_paths: str = ''
) -> list[_Told]:
  """Says what can be set in gin files; nothing is imported.

  Args:
    gin_files: looked for as `reader.find` does.
    bindings: 'NAME=VALUE'.
    extra_paths: comma-separated folders.

  Returns:
    The macros in the order of the files, required ones first.

  Raises:
    InputError: if a file is missing, or sets what is used nowhere.
  """
  text = reader.read(gin_files, bindings, extra_paths)
  written: dict[str, str] = {}
  comments: dict[str, str] = {}
  for setting in text.settings:
    if setting.target or setting.scope:
      continue
    path, _, line = setting.where.rpartition(':')
    value, comment = repr(setting.value), ''
    if path:
      value, comment = _statements(path).get(int(line), (value, ''))
    written[setting.name] = value
    comments[setting.name] = comment or comments.get(setting.name, '')
  required = text.missing()
  macros = []
  for name in [*required, *(n for n in written if n not in required)]:
    parameter = text.parameter_of(name)
    kind = ''
    if parameter.annotation is not None:
      # What nothing fits.
      kind = expected_by(parameter.annotation, object())
    comment = comments.get(name) or parameter.text.partition('. ')[0]
    value = '' if name in required else written[name]
    macros.append(_Told(name, value, kind, comment.rstrip('.')))
  return macros


@functools.lru_cache(maxsize=64)
def _statements(path: str) -> Mapping[int, tuple[str, str]]:
  """The lines of a gin file: number -> (value, comment behind it)."""
  with open(path, encoding='utf-8') as f:
    content = f.read()
  lines = content.splitlines()
  found: dict[int, tuple[str, str]] = {}
  start, value, comment = 0, '', ''
  for token in tokenize.generate_tokens(io.StringIO(content).readline):
    row, column = token.start
    if token.type == tokenize.COMMENT:
      comment = token.string.lstrip('# ')
      alone = not lines[row - 1][:column].strip()
      if start and not alone:
        lines[row - 1] = lines[row - 1][:column]
      elif not start and found and column and alone:
        # It goes on below.
        last = max(found)
        found[last] = (found[last][0], f'{found[last][1]} {comment}'.strip())
        comment = ''
    elif token.type == tokenize.NEWLINE:
      value = ' '.join(' '.join(lines[start - 1 : row]).split())
      found[start] = (value.partition('=')[2].strip(), comment)
      start, comment = 0, ''
    elif token.string.strip() and not start:
      start, comment = row, ''
    elif token.type == tokenize.NL:
      comment = ''  # Of an item, not of the whole.
  return found


def _head(path: str) -> str:
  """The comment at the top of a gin file."""
  with open(path, encoding='utf-8') as f:
    lines = f.read().partition('\nfrom ')[0].splitlines()
  return '\n'.join(
    line.removeprefix('#').removeprefix(' ')
    for line in lines
    if line.startswith('#')
  )


def _binds(path: str, module: str, function: str) -> bool:
  """Whether a gin file, or what it includes, sets parameters of a function."""
  text = reader.read([path])
  return any(
    text.home(s) == (module, function) for s in text.settings if s.target
  )
