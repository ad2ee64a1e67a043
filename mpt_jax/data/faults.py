"""Whose fault an error in reading data is: the user's own code, or ours.

What a user's preprocessor, rows function, metric or module raises becomes one
line that names the task and the user's own line; a bug of ours keeps its
traceback.
"""

from collections.abc import Callable, Iterator
import contextlib
import functools
import inspect
import os
import re
import sysconfig
from typing import Any

from mpt_jax.types import InputError, installed

# As in a traceback, also in one that TensorFlow has put into a message.
_FRAME = re.compile(r'File "([^"\n]+)", line (\d+)')
# What TensorFlow adds to what it says.
_NOISE = re.compile(r'\[\[.*?\]\]|\{\{.*?\}\}|\[Op:.*', re.DOTALL)
_SHOWN = 300
# TensorFlow's own form of a function of `Dataset.map`.
GENERATED = '__autograph_generated'


def _is_users(file: str) -> bool:
  """Whether a source file is neither ours nor of an installed package."""
  if GENERATED in file:
    return False
  file = os.path.realpath(file)
  libraries = [sysconfig.get_path(n) for n in ('stdlib', 'purelib', 'platlib')]
  libraries += [installed('mpt_jax'), installed('tasks')]
  return os.path.isfile(file) and not any(
    file.startswith(os.path.join(os.path.realpath(folder), ''))
    for folder in libraries
  )


def users_line(error: BaseException) -> str:
  """Returns 'FILE:LINE' of the user's code that an error comes from, or ''."""
  found = ''
  trace = error.__traceback__
  while trace is not None:
    file = trace.tb_frame.f_code.co_filename
    if _is_users(file):
      found = f'{file}:{trace.tb_lineno}'
    trace = trace.tb_next
  for file, line in _FRAME.findall(str(error)):
    if _is_users(file):
      found = f'{file}:{line}'
  if isinstance(error, SyntaxError) and _is_users(error.filename or ''):
    found = f'{error.filename}:{error.lineno}'
  return found


def home(function: Callable[..., Any]) -> str:
  """'name at FILE:LINE' of a user's function, else ''."""
  while isinstance(function, functools.partial):
    function = function.func
  code = getattr(inspect.unwrap(function), '__code__', None)
  if code is None or not _is_users(code.co_filename):
    return ''
  return f'{code.co_name} at {code.co_filename}:{code.co_firstlineno}'


def said(error: BaseException) -> str:
  """Returns an error's type and what it says, in one line."""
  message = getattr(error, 'message', None) or str(error)
  # 'in user code:', frames with their source, and then the error itself.
  if message.startswith('in user code:') or 'Traceback (most' in message:
    lines = [x.strip() for x in message.splitlines() if x.strip()]
    wanted = [x for x in lines if re.match(r'[\w.]*(Error|Exception)\b', x)]
    message = (wanted or lines)[-1 if message.startswith('in user') else 0]
  message = ' '.join(_NOISE.sub('', message).split())[:_SHOWN]
  name = type(error).__name__
  return message if message.startswith(name) else f'{name}: {message}'


@contextlib.contextmanager
def naming(task: str, split: str) -> Iterator[None]:
  """Makes one line of what goes wrong in a task's own code.

  Args:
    task: name of what is read or scored.
    split: its split.

  Yields:
    Nothing.

  Raises:
    InputError: if the user's own code raised something; `--debug` shows
      where.
  """
  try:
    yield
  except InputError:
    raise
  except Exception as e:
    line = users_line(e)
    if not line:
      raise
    what = f'task {task!r}, split {split!r}'
    raise InputError(f'{what}: {line}: {said(e)}') from e
