"""Aliases, the user error, and the shape check that the whole core shares."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import difflib
import os
import select
import sys
from typing import Any

import jax

Array = jax.Array
PyTree = Any
Batch = Mapping[str, Array]


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
  """

  def __init__(self, message: str):
    super().__init__(_one_line(message))


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
