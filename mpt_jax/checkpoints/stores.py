"""Files in buckets, `gs://` and `s3://`, through fsspec.

A store has objects, each of them whole or not there, and nothing else: no
folder, no renaming, no lock, nothing that grows. So a folder in it is finished
by the file that is written last, and what is read as a file is copied here
first.
"""

import atexit
from collections.abc import Iterator
import contextlib
import functools
import importlib
import logging
import math
import os
import shutil
import tempfile
import time
from typing import Any

from mpt_jax.types import (
  InputError,
  is_remote,
  local_path,
)

# Scheme -> the package that reads it, and our extra that brings it.
STORES = {'gs': ('gcsfs', 'gcs'), 's3': ('s3fs', 's3')}
# Copies of more bytes are said.
_LARGE = 1 << 28

log = logging.getLogger(__name__)


def place(path: str | os.PathLike) -> str:
  """Returns a path here or in a bucket, as the user means it.

  Args:
    path: as `local_path` takes it.

  Returns:
    The path; one in a bucket without doubled or trailing separators.

  Raises:
    InputError: if it is of a store that is not known or whose package is not
      there, or leads out of its folder.
  """
  path = local_path(path)
  if not is_remote(path):
    return path
  scheme, _, rest = path.partition('://')
  if scheme not in STORES:
    raise InputError(
      f'{path} is not a local path, nor in a bucket that can be read:'
      ' expected gs:// or s3://'
    )
  package, extra = STORES[scheme]
  parts = [part for part in rest.split('/') if part]
  if not parts or {'.', '..'} & set(parts):
    raise InputError(f'{path} names no folder: write {scheme}://BUCKET/FOLDER')
  try:
    importlib.import_module(package)
  except ImportError as e:
    raise InputError(
      f"{path}: {package} is not installed: pip install 'mpt_jax[{extra}]'"
    ) from e
  return f'{scheme}://{"/".join(parts)}'


def absolute(path: str) -> str:
  """Returns a path in full: one in a bucket is so already."""
  path = place(path)
  return path if is_remote(path) else os.path.abspath(path)


@contextlib.contextmanager
def _reaching(path: str) -> Iterator[Any]:
  """Gives a path's file system; what its client raises becomes one line."""
  path = place(path)
  import fsspec

  scheme = path.partition('://')[0]
  try:
    # Others write there, too: what was listed may be old.
    yield fsspec.filesystem(scheme, use_listings_cache=False)
  except InputError:
    raise
  except FileNotFoundError as e:
    raise InputError(f'{path} is missing, or its bucket is') from e
  except Exception as e:  # Each client has its own types.
    reason = str(e).strip() or type(e).__name__
    raise InputError(f'{path} cannot be reached: {reason[:200]}') from e


def kind(path: str) -> str | None:
  """Returns what is at a path in a bucket: 'file', 'directory' or None.

  Raises:
    InputError: if the store does not say so.
  """
  with _reaching(path) as fs:
    try:
      return fs.info(place(path))['type']
    except FileNotFoundError:
      return None


def names(folder: str) -> list[str]:
  """Returns what lies in a folder, sorted; nothing if it is not there."""
  with _reaching(folder) as fs:
    try:
      found = fs.ls(place(folder), detail=False)
    except FileNotFoundError:
      return []
    own = fs._strip_protocol(place(folder))
  return sorted(
    name.rstrip('/').rpartition('/')[2]
    for name in found
    if name.rstrip('/') != own  # Some tools make an object of a folder.
  )


def read(path: str, most: int | None = None) -> bytes:
  """Returns a file's content.

  Args:
    path: the file.
    most: how many bytes of it; None is all.

  Raises:
    InputError: if it is not there, or cannot be read.
  """
  with _reaching(path) as fs:
    whole = most is None or fs.info(place(path))['size'] <= most
    return fs.cat_file(place(path), end=None if whole else most)


def write(path: str, content: bytes) -> None:
  """Writes a file that is either whole or as it was.

  Raises:
    InputError: if it cannot be written.
  """
  with _reaching(path) as fs:
    fs.pipe_file(place(path), content)


def create(path: str, content: bytes) -> bool:
  """Writes a file if nobody has, in one request; returns whether it did.

  Stores that know no condition (some that speak S3) write it anyway.
  """
  with _reaching(path) as fs:
    try:
      fs.pipe_file(place(path), content, mode='create')
    except FileExistsError:
      return False
  return True


def remove(path: str) -> None:
  """Removes a file, or a folder with all that is in it, if it is there."""
  with _reaching(path) as fs, contextlib.suppress(FileNotFoundError):
    fs.rm(place(path), recursive=True)


def move(path: str, target: str) -> None:
  """Copies a folder to another place in its bucket, then removes it."""
  path, target = place(path), place(target)
  with _reaching(path) as fs:
    own, found = fs._strip_protocol(path), fs.find(path)
    fs.copy(found, [f'{target}{name.removeprefix(own)}' for name in found])
  remove(path)


def send(local: str, path: str, last: str) -> None:
  """Copies a folder into a bucket.

  Args:
    local: the folder.
    path: where to; files of the same names are replaced.
    last: the file in it whose presence says that all is there.
  """
  path = place(path)
  found = []
  for parent, _, inside in os.walk(local):
    found += [os.path.relpath(os.path.join(parent, n), local) for n in inside]
  found = sorted(name for name in found if name != last)
  with _reaching(path) as fs:
    fs.put(
      [os.path.join(local, name) for name in found],
      [f'{path}/{name}' for name in found],
    )
    fs.put_file(os.path.join(local, last), f'{path}/{last}')


@functools.cache
def _root() -> str:
  """The folder of all copies; it ends with the process."""
  folder = tempfile.mkdtemp(prefix='mpt_jax.')
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return folder


def room() -> str:
  """Returns a new folder here, which ends with the process."""
  return tempfile.mkdtemp(dir=_root())


def copy_of(path: str) -> str:
  """Returns where the copy of a path in a bucket lies, or would lie."""
  scheme, _, rest = place(path).partition('://')
  return os.path.join(_root(), scheme, *rest.split('/'))


# What a copy was made of: each file's size and version there.
_copied: dict[str, Any] = {}


def bring(path: str) -> str:
  """Copies a file or folder here, if it is not yet as it is there.

  Args:
    path: a path here, which is returned as it is, or in a bucket.

  Returns:
    Where it lies, also if there is nothing.

  Raises:
    InputError: if it cannot be read, or has names that lead elsewhere.
  """
  if not is_remote(path):
    return path
  path, local = place(path), copy_of(path)
  with _reaching(path) as fs:
    own = fs._strip_protocol(path)
    found = {
      name.removeprefix(own).removeprefix('/'): facts
      for name, facts in fs.find(path, detail=True).items()
      if not name.endswith('/') and f'{name}/'.startswith(f'{own}/')
    }
    for name in found:
      if name and {'', '.', '..'} & set(name.split('/')):
        raise InputError(f'{path} holds {name!r}, which is no name of a file')
    version = {
      name: [facts.get(k) for k in ('size', 'etag', 'ETag', 'generation')]
      for name, facts in found.items()
    }
    if _copied.get(path) == version and os.path.exists(local):
      return local
    _clear(local)
    size = sum(facts.get('size') or 0 for facts in found.values())
    if size > _LARGE:
      log.info('copying %s here, %.1f GB …', path, size / 1e9)
    fs.get(
      [os.path.join(path, name).rstrip('/') for name in found],
      [os.path.join(local, name).rstrip('/') for name in found],
    )
  _copied[path] = version
  return local


def _clear(local: str) -> None:
  """Removes a copy."""
  if os.path.isfile(local):
    os.unlink(local)
  shutil.rmtree(local, ignore_errors=True)


@contextlib.contextmanager
def reading(path: str) -> Iterator[str]:
  """Gives a local copy to read, of which errors speak as of the original.

  Args:
    path: here, which is given as it is, or in a bucket.

  Yields:
    What `bring` returns.

  Raises:
    InputError: as `bring`, and what the reader raises.
  """
  local = bring(path)
  try:
    yield local
  except InputError as e:
    if local == path:
      raise
    text, details = (
      e.summary.replace(local, path),
      [detail.replace(local, path) for detail in e.details],
    )
    raise InputError(text, details) from e


class Growing:
  """A file that grows as long as we have it: an object that is written anew.

  It has what a stream of a log, or of records, must have.
  """

  def __init__(self, path: str, pause: float = 0.0):
    """Opens it behind what is there.

    Args:
      path: in a bucket.
      pause: what is flushed sooner after the last time, in seconds, waits for
        the next time.
    """
    self._path, self._pause = path, pause
    self._content = bytearray(read(path) if kind(path) else b'')
    # A clock may have begun with the machine.
    self._written, self._time = len(self._content), -math.inf

  def write(self, content: str | bytes) -> int:
    """Adds to it."""
    self._content += content.encode() if isinstance(content, str) else content
    return len(content)

  def flush(self, now: bool = False) -> None:
    """Writes it, unless there is nothing new."""
    waits = time.monotonic() < self._time + self._pause
    if len(self._content) > self._written and (now or not waits):
      write(self._path, bytes(self._content))
      self._written, self._time = len(self._content), time.monotonic()

  def close(self) -> None:
    """Writes what is left."""
    self.flush(now=True)
