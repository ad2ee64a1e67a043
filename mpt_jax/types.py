"""Aliases, the user error, and the shape check that the whole core shares."""

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import difflib
import importlib.abc
import importlib.util
import math
import os
import select
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  import jax

  Array = jax.Array
  Batch = Mapping[str, Array]

PyTree = Any

# What a signature says of a value beyond its type. A command checks it before
# it loads anything (`expected_by`).
Positive = int  # 1 or more.
Natural = int  # 0 or more.
Rate = float  # 0 or more, finite.
Share = float  # From 0 to below 1.
Names = tuple[str, ...]  # One name, or several.
Lengths = Mapping[str, int]  # S as `inputs`, T as `targets`.


def __getattr__(name: str) -> Any:
  """`Array` and `Batch`: JAX is loaded by those that have arrays."""
  if name not in ('Array', 'Batch'):
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  import jax

  return jax.Array if name == 'Array' else Mapping[str, jax.Array]


# What a terminal shows without drowning the rest.
_MESSAGE_CHARACTERS = 1000
# Near names are searched for in time that grows with the square of these.
_NAME_CHARACTERS = 100
_NAMES = 1000


class InputError(ValueError):
  """Something the user gave is wrong.

  The message is one line that names the value, where it came from and what
  would be right. Entry points print it to stderr and exit with code 2. What a
  file from a stranger brings into it is cut and made printable.

  Attributes:
    summary: the message without the details.
    details: what differs, one short line each; entry points print several of
      them on lines of their own.
  """

  def __init__(self, message: str, details: Sequence[str] = ()):
    self.summary = _one_line(message)
    self.details = tuple(map(_one_line, details))
    text = '; '.join(self.details)
    super().__init__(f'{self.summary}: {text}' if text else self.summary)


def _one_line(text: str) -> str:
  r"""Returns the text without line breaks and control characters.

  Examples:
    >>> _one_line('a\nb \x1b[2J')
    'a b \\x1b[2J'
  """
  if len(text) > _MESSAGE_CHARACTERS:
    half = _MESSAGE_CHARACTERS // 2
    # The end says what would be right.
    text = f'{text[:half]} … {text[-half:]}'
  if text.isprintable():
    return text
  text = ' '.join(text.split('\n'))
  return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def nearest(name: str, known: Iterable[str]) -> str:
  """Returns '; did you mean 'x' or 'y'?' for the known names next to `name`.

  Args:
    name: the unknown name.
    known: the names that exist.

  Returns:
    A clause to append to an error message, empty when nothing is near.

  Examples:
    >>> nearest('BATCHSIZE', ['BATCH_SIZE', 'MODEL_DIR'])
    "; did you mean 'BATCH_SIZE'?"
  """
  if len(name) > _NAME_CHARACTERS:
    return ''
  some = [k for k in known if len(k) <= _NAME_CHARACTERS][:_NAMES]
  close = difflib.get_close_matches(name, some, n=2, cutoff=0.6)
  if not close:
    return ''
  return '; did you mean ' + ' or '.join(repr(c) for c in close) + '?'


def check_shape(
  name: str, array: Any, expected: Sequence[int | None]
) -> tuple[int, ...]:
  """Checks an array's shape and returns it.

  Args:
    name: what the array is, for the message.
    array: anything with a `shape`.
    expected: one entry per axis; None stands for any size.

  Returns:
    The array's shape.

  Raises:
    ValueError: if the rank or a fixed size differs; both shapes are named.
  """
  shape = tuple(array.shape)
  fits = len(shape) == len(expected) and all(
    want is None or got == want
    for got, want in zip(shape, expected, strict=True)
  )
  if not fits:
    want = ', '.join('?' if e is None else str(e) for e in expected)
    raise ValueError(f'{name} has shape {shape}, expected ({want})')
  return shape


def check_least(least: int, **values: float) -> None:
  """Refuses values below a bound.

  Args:
    least: the bound.
    **values: by the names that a user knows them by.

  Raises:
    InputError: names the first that is smaller, or no number.
  """
  for name, value in values.items():
    if not value >= least:
      raise InputError(f'{name} is {value}, expected {least} or more')


# What tells a folder of the hub's data sets (`hf:DIR`) from one of TFDS data,
# wherever one text names the data.
HUB = 'hf:'

# A value that is not known before something runs.
ANYTHING: Any = object()

_WHOLE = 'a whole number'
# Annotation -> (what it says, whether a value is so).
_PLAIN: Mapping[str, tuple[str, Any]] = {
  'str': ('a text', lambda v: isinstance(v, str)),
  'bool': ('True or False', lambda v: isinstance(v, bool) or _is(v, int, 0, 1)),
  'int': (_WHOLE, lambda v: _is(v, int)),
  'float': ('a number', lambda v: _is(v, int | float)),
  'Positive': (f'{_WHOLE}, 1 or more', lambda v: _is(v, int, 1)),
  'Natural': (f'{_WHOLE}, 0 or more', lambda v: _is(v, int, 0)),
  'Rate': (
    'a number, 0 or more',
    lambda v: _is(v, int | float, 0) and math.isfinite(v),
  ),
  'Share': (
    'a number from 0 to below 1',
    lambda v: _is(v, int | float, 0) and v < 1,
  ),
  'Names': (
    'a name or a list of names',
    lambda v: isinstance(v, str) or _each(v, lambda x: isinstance(x, str)),
  ),
  'Lengths': (
    "{'inputs': …, 'targets': …} with whole numbers, 1 or more",
    lambda v: (
      isinstance(v, Mapping)
      and set(v) == {'inputs', 'targets'}
      and _each(list(v.values()), lambda x: _is(x, int, 1))
    ),
  ),
}


def _is(value: Any, kind: Any, low: float = -math.inf, high=math.inf) -> bool:
  number = isinstance(value, kind) and not isinstance(value, bool)
  return value is ANYTHING or (number and not (value < low or value > high))


def _each(values: Any, fits: Any) -> bool:
  return isinstance(values, list | tuple) and all(
    v is ANYTHING or fits(v) for v in values
  )


def expected_by(annotation: ast.expr, value: Any) -> str:
  """Checks a plain value against a parameter's annotation.

  Args:
    annotation: as in the source, such as `Positive | None`.
    value: made of texts, numbers, None, lists and dictionaries; what is
      `ANYTHING` fits.

  Returns:
    '' if it fits; otherwise what is expected, as words.

  Examples:
    >>> expected_by(ast.parse('Positive | None', mode='eval').body, 0)
    'a whole number, 1 or more, or None'
  """
  if value is ANYTHING:
    return ''
  if isinstance(annotation, ast.BinOp):
    left = expected_by(annotation.left, value)
    right = expected_by(annotation.right, value)
    comma = ',' if ',' in left else ''
    return left and right and f'{left}{comma} or {right}'
  name = ast.unparse(annotation)
  if name in ('Any', 'object'):
    return ''
  if name == 'None':
    return '' if value is None else 'None'
  if name in _PLAIN:
    words, fits = _PLAIN[name]
    return '' if fits(value) else words
  if not isinstance(annotation, ast.Subscript):
    return name  # A class, of which no plain value is one.
  kind, inner = ast.unparse(annotation.value), annotation.slice
  parts = list(inner.elts) if isinstance(inner, ast.Tuple) else [inner]
  if kind in ('Mapping', 'dict'):
    if not isinstance(value, Mapping):
      return 'a dictionary'
    for part, values in zip(parts, (value, value.values()), strict=True):
      for item in values:
        if words := expected_by(part, item):
          return f'a dictionary in which {item!r} is {words}'
    return ''
  if kind in ('Sequence', 'list', 'tuple'):
    if not isinstance(value, list | tuple):
      return 'a list'
    for item in value:
      if words := expected_by(parts[0], item):
        return f'a list in which {item!r} is {words}'
    return ''
  return ''


def local_path(path: str | os.PathLike) -> str:
  """Returns a path as the user means it; all paths of a run come through here.

  Args:
    path: relative to the working folder, with `~` or `~name` in front, or a
      URL (`gs://…`), which stays as it is.

  Returns:
    The path without `~`, doubled or trailing separators.

  Raises:
    InputError: if it is empty, or there is no such user.

  Examples:
    >>> local_path('./runs//x/')
    'runs/x'
  """
  text = os.fspath(path)
  if is_remote(text):
    return text
  if not text.strip():
    raise InputError(f'{text!r} is no path: give a file or folder')
  expanded = os.path.expanduser(text)
  if text.startswith('~') and expanded == text:
    raise InputError(
      f'{text}: there is no user {text.split("/")[0][1:]!r} here; write'
      f' ./{text} for a name that begins with ~'
    )
  return os.path.normpath(expanded)


def is_remote(path: str) -> bool:
  """Whether a path has a scheme ('gs://…')."""
  return '://' in path


def require_local(path: str | os.PathLike) -> str:
  """Returns `local_path(path)` of something that must lie on this machine.

  Raises:
    InputError: if it is a URL, too.
  """
  path = local_path(path)
  if is_remote(path):
    raise InputError(f'{path} is not a local path: use a local folder')
  return path


def installed(*parts: str) -> str:
  """Returns the path of something of ours.

  Our packages lie beside one another, and are not looked up by their names:
  `tasks` may be a module of the user's.

  Args:
    *parts: such as 'tasks', 'offline'; none is the folder of the packages.
  """
  folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  return os.path.join(folder, *parts)


class _OwnPackages(importlib.abc.MetaPathFinder):
  """Finds `tasks` and `gin_configs` beside this package."""

  def find_spec(self, fullname: str, path: Any = None, target: Any = None):
    file = installed(fullname, '__init__.py')
    if fullname not in ('tasks', 'gin_configs') or not os.path.isfile(file):
      return None
    return importlib.util.spec_from_file_location(
      fullname, file, submodule_search_locations=[os.path.dirname(file)]
    )


def prefer_own_packages(again: bool = False) -> None:
  """Makes `import tasks` mean ours, whatever lies in the working folder.

  Args:
    again: also where another module of that name has been imported already.
  """
  if not any(isinstance(finder, _OwnPackages) for finder in sys.meta_path):
    sys.meta_path.insert(0, _OwnPackages())
  loaded = sys.modules.get('tasks')
  if again and loaded and installed('tasks', '__init__.py') != loaded.__file__:
    for name in [n for n in sys.modules if f'{n}.'.startswith('tasks.')]:
      del sys.modules[name]


@contextlib.contextmanager
def quiet_pipe() -> Iterator[None]:
  """Ends a command in silence when the reader of its output has had enough.

  Yields:
    Nothing.

  Raises:
    SystemExit: with status 0, if standard output was closed (`… | head -1`).
  """
  try:
    try:
      yield
    finally:
      sys.stdout.flush()
  except BrokenPipeError:
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if not poll.poll(0):
      raise  # It was another pipe.
    # Python would write what is left, and complain, at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)
