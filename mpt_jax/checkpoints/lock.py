"""One run per folder: a lock that ends with the process that holds it.

A bucket has no such thing: there an object says who holds the folder. It goes
when its run ends; that of a process which was killed is taken over on the same
machine, and must be removed by hand for another one.
"""

from collections.abc import Iterator
import contextlib
import fcntl
import os
import re
import socket
import time

from mpt_jax.checkpoints import stores
from mpt_jax.types import InputError, is_remote

LOCK = '.lock'
# The objects in buckets that are this process's.
_mine: set[str] = set()


@contextlib.contextmanager
def hold(folder: str) -> Iterator[None]:
  """Holds a folder for this process; a second one is told who has it.

  The operating system releases the lock however the process ends, so a killed
  run never blocks the next one.

  Args:
    folder: made if it is not there.

  Yields:
    Nothing.

  Raises:
    InputError: if another process holds the folder, or it cannot be written.
  """
  folder = stores.place(folder)
  path = os.path.join(folder, LOCK)
  if is_remote(folder):
    _take(folder, path)
    try:
      yield
    finally:
      _mine.discard(path)
      stores.remove(path)
    return
  try:
    os.makedirs(folder, exist_ok=True)
    file = open(path, 'a+', encoding='utf-8')  # noqa: SIM115
  except OSError as e:
    raise InputError(f'{folder} cannot be written: {e.strerror}') from e
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      file.seek(0)
      holder = file.read(200).strip() or 'another process'
      raise InputError(
        f'{folder} is in use by {holder}: wait for it, or use another folder'
      ) from e
    except OSError:
      # Some network file systems have no locks; a run need not fail of it.
      yield
      return
    file.truncate(0)
    file.write(_name())
    file.flush()
    os.fsync(file.fileno())  # Workers on other machines look for it.
    yield


def _name() -> str:
  return f'process {os.getpid()} on {socket.gethostname()}\n'


def _take(folder: str, path: str) -> None:
  """Makes the object that says that a folder is ours.

  Raises:
    InputError: if another process has done so and is, or may be, alive.
  """
  # Asked first: not every store knows 'if there is none'.
  if stores.kind(path) or not stores.create(path, _name().encode()):
    holder = stores.read(path, 200).decode(errors='replace').strip()
    if path in _mine or not _is_gone(holder):
      raise InputError(
        f'{folder} is in use by {holder}: wait for it, or use another folder;'
        f' if it is no more, remove {path}'
      )
    stores.write(path, _name().encode())
  _mine.add(path)


def _is_gone(holder: str) -> bool:
  """Whether a process was one of this machine, and runs no more."""
  named = re.fullmatch(r'process (\d+) on (\S+)', holder)
  if named is None or named[2] != socket.gethostname():
    return False
  process = int(named[1])
  if process == os.getpid():
    return True  # It had our number before us.
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return True
  except OSError:
    pass  # Somebody else's.
  return False


def holder(folder: str) -> str | None:
  """Returns who holds a folder, or held it last; None if nobody ever did."""
  try:
    with open(os.path.join(folder, LOCK), encoding='utf-8') as f:
      return f.read(200)
  except FileNotFoundError:
    return None


def wait(folder: str, seconds: float) -> None:
  """Waits until nobody holds a folder.

  A lost machine's lock on a network file system ends when the server has
  given the machine up.

  Args:
    folder: need not be there.
    seconds: after which it may be held still.
  """
  end = time.monotonic() + seconds
  while os.path.exists(os.path.join(folder, LOCK)):
    try:
      with hold(folder):
        return
    except InputError:
      if time.monotonic() > end:
        return
      time.sleep(0.5)
