"""Strict reading and atomic writing of the small files that users share.

What is read here may come from strangers: nothing is unpickled, sizes are
checked before anything is allocated, and whatever is wrong ends as an
`InputError` that names the file.
"""

from collections.abc import Mapping
import io
import json
import math
import os
import shutil
import tempfile
from typing import IO, Any

import numpy as np
from safetensors import safe_open
import safetensors.numpy

from mpt_jax.checkpoints import stores
from mpt_jax.types import (
  InputError,
  is_remote,
  require_local,
)

# A hostile configuration must not be parsed for minutes.
MAX_JSON_BYTES = 1 << 20
# What a product says of itself to people.
README = 'README.md'


def exists(path: str) -> bool:
  """Whether something is at a path, here or in a bucket."""
  return bool(stores.kind(path)) if is_remote(path) else os.path.exists(path)


def is_folder(path: str) -> bool:
  """Whether a folder is at a path, here or in a bucket."""
  if is_remote(path):
    return stores.kind(path) == 'directory'
  return os.path.isdir(path)


def names(folder: str) -> list[str]:
  """Returns what lies in a folder, here or in a bucket.

  Raises:
    OSError: if there is no such folder here; in a bucket it is empty.
  """
  return stores.names(folder) if is_remote(folder) else os.listdir(folder)


def remove_folder(path: str) -> None:
  """Removes a folder, here or in a bucket, if it is there."""
  if is_remote(path):
    stores.remove(path)
  else:
    shutil.rmtree(path, ignore_errors=True)


def open_to_read(path: str, most: int | None = None) -> IO[bytes]:
  """Opens a file here or in a bucket.

  Args:
    path: the file.
    most: what is behind so many bytes need not be brought here.

  Raises:
    OSError: if there is no such file here.
    InputError: if there is none in a bucket.
  """
  if is_remote(path):
    return io.BytesIO(stores.read(path, most))
  return open(path, 'rb')


def open_to_append(path: str, mode: str = 'a', pause: float = 0.0) -> Any:
  """Opens a file to add to what is there.

  Args:
    path: here or in a bucket; its folder is made if it is not there.
    mode: 'a' for text, 'ab' for bytes.
    pause: see `stores.Growing`.

  Raises:
    OSError: if it cannot be written.
  """
  if is_remote(path):
    return stores.Growing(path, pause)
  os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  return open(path, mode, encoding=None if 'b' in mode else 'utf-8')


def require_file(path: str, follow_links: bool = False) -> str:
  """Returns `path` if a regular file is there.

  Args:
    path: the file.
    follow_links: accept a symbolic link to a regular file, as the caches of
      download tools hold them.

  Raises:
    InputError: if nothing is there, or anything but a regular file.
  """
  if is_remote(path):
    if stores.kind(path) == 'directory':
      raise InputError(f'{path} is not a regular file')
    return path  # That there is none, its reader says.
  if not os.path.lexists(path):
    raise InputError(f'{path} is missing')
  if os.path.islink(path) and not follow_links:
    raise InputError(
      f'{path} is a symbolic link; put the file itself into the folder'
    )
  if not os.path.isfile(path):
    raise InputError(f'{path} is not a regular file')
  return path


def _no_constant(name: str) -> None:
  raise ValueError(f'{name} is not JSON')


def _finite(text: str) -> float:
  value = float(text)
  if not math.isfinite(value):
    raise ValueError(f'{text} is out of range')
  return value


def read_json(
  path: str, follow_links: bool = False, most_bytes: int = MAX_JSON_BYTES
) -> dict[str, Any]:
  """Reads a JSON object from a file.

  Args:
    path: the file.
    follow_links: see `require_file`.
    most_bytes: what is larger is refused.

  Raises:
    InputError: if the file is missing, too large or holds anything else.
  """
  require_file(path, follow_links)
  try:
    with open_to_read(path, most_bytes + 1) as f:
      text = f.read(most_bytes + 1)
    if len(text) > most_bytes:
      raise ValueError(f'larger than {most_bytes} bytes')
    value = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
  except InputError:
    raise
  except (OSError, ValueError, RecursionError) as e:
    raise InputError(f'{path} cannot be read as JSON: {e}') from e
  if not isinstance(value, dict):
    raise InputError(f'{path} must hold a JSON object')
  return value


def read_tensors(
  path: str,
  shapes: Mapping[str, tuple[int, ...]] | None,
  dtypes: tuple[str, ...] = ('F32',),
  follow_links: bool = False,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Reads exactly the named tensors from a safetensors file, as float32.

  Args:
    path: the file.
    shapes: name -> shape of every tensor that must be there; None takes
      whatever is there.
    dtypes: accepted stored types, in the words of safetensors.
    follow_links: as in `require_file`.

  Returns:
    The tensors, float32, and the file's metadata.

  Raises:
    InputError: if the file is damaged, a tensor is missing or unknown, or has
      another shape or type, or a value that is not finite.
  """
  require_file(path, follow_links)
  try:
    with safe_open(path, framework='np') as f:
      metadata = dict(f.metadata() or {})
      names = set(f.keys())
      if shapes is None:
        shapes = {n: tuple(f.get_slice(n).get_shape()) for n in sorted(names)}
      for name in shapes:
        if name not in names:
          raise InputError(f'{path} lacks the tensor {name!r}')
      for name in sorted(names - set(shapes)):
        known = ', '.join(shapes)
        raise InputError(
          f'{path} has an unknown tensor {name!r}; expected {known}'
        )
      for name, shape in shapes.items():
        view = f.get_slice(name)
        if tuple(view.get_shape()) != tuple(shape):
          raise InputError(
            f'{path}: {name} has shape {tuple(view.get_shape())}, but its'
            f' configuration says {tuple(shape)}'
          )
        if view.get_dtype() not in dtypes:
          raise InputError(
            f'{path}: {name} has type {view.get_dtype()}, expected'
            f' {" or ".join(dtypes)}'
          )
      with np.errstate(invalid='ignore'):  # NaN is refused below.
        arrays = {n: f.get_tensor(n).astype(np.float32) for n in shapes}
  except InputError:
    raise
  except Exception as e:  # safetensors raises several unrelated types.
    raise InputError(f'{path} is not a readable safetensors file: {e}') from e
  for name, array in arrays.items():
    if not np.isfinite(array).all():
      raise InputError(f'{path}: {name} holds NaN or infinity')
  return arrays, metadata


def read_npy(path: str) -> np.ndarray:
  """Reads a [P, D] float array from a `.npy` file, whatever its suffix.

  Returns:
    [P, D] float32.

  Raises:
    InputError: if it is no such file, or a value is not finite.
  """
  path = require_local(path)
  require_file(path, follow_links=True)
  try:
    # Mapping the file compares the declared with the real size, and neither
    # allocates nor unpickles.
    mapped = np.lib.format.open_memmap(path, mode='r')
  except Exception as e:  # The header parser raises several unrelated types.
    raise InputError(f'{path} is not a readable .npy file: {e}') from e
  if mapped.ndim != 2 or mapped.dtype.kind != 'f':
    raise InputError(
      f'{path} holds {mapped.dtype} of shape {mapped.shape}, expected one'
      ' prompt of floats [length, width]'
    )
  # Becomes infinity or NaN, which is refused.
  with np.errstate(over='ignore', invalid='ignore'):
    array = np.array(mapped, np.float32, order='C')
  if not np.isfinite(array).all():
    raise InputError(f'{path} holds NaN or infinity')
  return array


def first_line(error: Exception) -> str:
  """Returns what a library's error says first, or else its type."""
  lines = str(error).splitlines()
  return lines[0] if lines else type(error).__name__


def json_bytes(value: Mapping[str, Any]) -> bytes:
  """Returns the value as readable JSON."""
  text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
  return (text + '\n').encode()


def tensor_bytes(
  arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> bytes:
  """Returns the arrays as the content of a safetensors file."""
  contiguous = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
  return safetensors.numpy.save(contiguous, metadata=dict(metadata))


def npy_bytes(array: np.ndarray) -> bytes:
  """Returns the array as the content of a `.npy` file."""
  buffer = io.BytesIO()
  np.save(buffer, array, allow_pickle=False)
  return buffer.getvalue()


def write_file(path: str, content: bytes) -> None:
  """Writes a file that is either whole or not there.

  Raises:
    InputError: if the place cannot be written.
  """
  if is_remote(path):
    stores.write(path, content)
    return
  path = os.path.abspath(require_local(path))
  folder, name = os.path.split(path)
  temporary = os.path.join(folder, f'.{name}.{os.getpid()}.tmp')
  try:
    os.makedirs(folder, exist_ok=True)
    try:
      with open(temporary, 'wb') as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())
      os.replace(temporary, path)
    except BaseException:
      if os.path.lexists(temporary):
        os.unlink(temporary)
      raise
  except OSError as e:
    raise InputError(f'cannot write {path}: {e.strerror or e}') from e


def write_folder(path: str, contents: Mapping[str, bytes]) -> None:
  """Writes a folder of files that is either whole or not there.

  A folder that holds the same files (or none) is replaced; one with other
  files in it is somebody's and left alone.

  Args:
    path: the folder.
    contents: file name -> bytes. In a bucket the first file goes before the
      others are replaced and comes behind them: without it there is nothing
      for those who read the folder.

  Raises:
    InputError: if the place is taken or cannot be written.
  """
  if is_remote(path):
    path = stores.place(path)
    if stores.kind(path) == 'file':
      raise InputError(f'cannot write {path}: something else has this name')
    _refuse_others(path, contents)
    first, *others = contents
    stores.remove(f'{path}/{first}')
    for file in (*others, first):
      stores.write(f'{path}/{file}', contents[file])
    return
  path = os.path.abspath(require_local(path))
  parent, name = os.path.split(path)
  if os.path.lexists(path):
    if os.path.islink(path) or not os.path.isdir(path):
      raise InputError(f'cannot write {path}: something else has this name')
    _refuse_others(path, contents)
  try:
    os.makedirs(parent, exist_ok=True)
    work = tempfile.mkdtemp(prefix=f'.{name}.', dir=parent)
    try:
      fresh = os.path.join(work, 'new')
      os.mkdir(fresh)
      for file, content in contents.items():
        write_file(os.path.join(fresh, file), content)
      if os.path.isdir(path):
        os.rename(path, os.path.join(work, 'old'))
      os.replace(fresh, path)
    except BaseException:
      old = os.path.join(work, 'old')
      if os.path.isdir(old) and not os.path.lexists(path):
        os.rename(old, path)
      raise
    finally:
      shutil.rmtree(work, ignore_errors=True)
  except OSError as e:
    raise InputError(f'cannot write {path}: {e.strerror or e}') from e


def _refuse_others(path: str, contents: Mapping[str, bytes]) -> None:
  """Refuses to replace a folder in which there is somebody's file."""
  foreign = sorted(set(names(path)) - set(contents))
  if foreign:
    raise InputError(
      f'cannot replace {path}: it also holds {foreign[0]!r}; choose a'
      ' new folder'
    )
