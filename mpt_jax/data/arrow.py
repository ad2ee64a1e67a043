"""Parquet and Arrow files, read by pyarrow, which TFDS brings along.

Needs no TensorFlow. pyarrow is imported when there is such a file.
"""

from collections.abc import Iterator, Sequence
import contextlib
import json
from typing import TYPE_CHECKING, Any

from mpt_jax.types import InputError

if TYPE_CHECKING:
  import pyarrow as pa

SUFFIXES = ('.parquet', '.arrow')
# How many rows are made Python objects at a time.
_BLOCK = 1024
# What `git clone` leaves in place of a large file if git-lfs is not installed.
_LFS = b'version https://git-lfs'


@contextlib.contextmanager
def opened(path: str) -> Iterator[Any]:
  """Opens a file; makes one line of what goes wrong with it in the block.

  Args:
    path: ends in .parquet, or in .arrow for Arrow's IPC file or stream, as
      `datasets` keeps them.

  Yields:
    A `pyarrow.parquet.ParquetFile`, or a reader of `pyarrow.ipc`.

  Raises:
    InputError: if it cannot be read, or pyarrow is not there.
  """
  try:
    import pyarrow as pa
    import pyarrow.parquet as pq
  except ImportError as e:
    raise InputError(
      f'{path}: Parquet and Arrow files are read with pyarrow, which is not'
      ' installed: pip install pyarrow'
    ) from e
  try:
    with open(path, 'rb') as file:
      magic = file.read(len(_LFS))
      file.seek(0)
      if magic == _LFS:
        raise InputError(
          f'{path} stands for a file that git-lfs has not fetched: git lfs pull'
        )
      if path.endswith('.parquet'):
        yield pq.ParquetFile(file)
        return
    with pa.memory_map(path) as mapped:
      is_file = magic.startswith(b'ARROW1')
      yield (pa.ipc.open_file if is_file else pa.ipc.open_stream)(mapped)
  except (OSError, pa.ArrowException) as e:
    said = getattr(e, 'strerror', None) or str(e).partition('\n')[0]
    raise InputError(f'{path} cannot be read: {said}') from e


def columns(reader: Any) -> 'pa.Schema':
  """Returns the schema of what `opened` yields."""
  return getattr(reader, 'schema_arrow', None) or reader.schema


def count(reader: Any) -> int:
  """Returns how many rows what `opened` yields has."""
  if hasattr(reader, 'iter_batches'):
    return reader.metadata.num_rows
  return sum(batch.num_rows for batch in _batches(reader))


def schema(path: str) -> 'pa.Schema':
  """Returns the columns of a file, and what its writer says of them.

  Raises:
    InputError: as `opened`.
  """
  with opened(path) as reader:
    return columns(reader)


def about(schema: 'pa.Schema') -> dict[str, Any]:
  """Returns the `info` that the library `datasets` writes into a file.

  Args:
    schema: of the file.

  Returns:
    {'features': {column: {'names': …}}, …}; empty if there is none.
  """
  try:
    found = json.loads((schema.metadata or {})[b'huggingface'])['info']
  except (KeyError, TypeError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def read(path: str, columns: Sequence[str]) -> 'pa.Table':
  """Reads some columns of a file.

  Args:
    path: see `opened`.
    columns: their names, all of which there must be.

  Raises:
    InputError: as `opened`.
  """
  with opened(path) as reader:
    if path.endswith('.parquet'):
      return reader.read(columns=list(columns))
    return reader.read_all().select(list(columns))


def rows(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields (number of the row, from 1; row).

  Args:
    path: see `opened`.

  Raises:
    InputError: as `opened`, and if two columns have one name.
  """
  with opened(path) as reader:
    names = columns(reader).names
    for name in names:
      if names.count(name) > 1:
        raise InputError(f'{path}: column {name!r} occurs twice')
    number = 0
    for batch in _batches(reader):
      for row in batch.to_pylist():
        number += 1
        yield number, row


def _batches(reader: Any) -> Iterator[Any]:
  if hasattr(reader, 'iter_batches'):
    yield from reader.iter_batches(_BLOCK)
  elif hasattr(reader, 'num_record_batches'):
    for index in range(reader.num_record_batches):
      yield reader.get_batch(index)
  else:
    yield from reader
