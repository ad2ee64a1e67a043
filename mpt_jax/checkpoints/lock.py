"""One run per folder: a lock that ends with the process that holds it."""

from collections.abc import Iterator
import contextlib
import fcntl
import os
import socket
import time

from mpt_jax.types import (
  InputError,
  require_local,
)

LOCK = '.lock'


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
  folder = require_local(folder)
  path = os.path.join(folder, LOCK)
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
    file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
    file.flush()
    os.fsync(file.fileno())  # Workers on other machines look for it.
    yield


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
