"""Reads a data set of the hub as TFDS would have prepared it.

Columns and labels get TFDS's names and types, and rows the order in which TFDS
stores them. So halves, held out rows and few-shot examples are the same ones,
and a digest of the examples does not tell which of the two was read.
"""

from collections.abc import Iterator, Mapping, Sequence
import functools
import glob
import hashlib
import os
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from mpt_jax.data import arrow
from mpt_jax.types import InputError, nearest
from tasks import hub

if TYPE_CHECKING:
  import pyarrow as pa

_BLOCK = 1024
# 'train-00000-of-00002.parquet'
_SHARD = re.compile(r'-\d+-of-(\d+)\.(?:parquet|arrow)$')
# (path, time and size) of each file.
Files = tuple[tuple[str, int, int], ...]


class HubSplits:
  """The splits of one data set in a folder of the hub's data sets."""

  def __init__(self, root: str, tfds_name: str):
    """Names the data; touches no disk.

    Args:
      root: what --hf_data_dir says.
      tfds_name: what TFDS calls the data set.

    Raises:
      InputError: if it is not known on the hub.
    """
    if tfds_name not in hub.DATA:
      raise InputError(
        f'{tfds_name!r} is not known on the hub: give --tfds_data_dir instead'
        f' of --hf_data_dir={root}'
      )
    self._root = root
    self._data = hub.DATA[tfds_name]
    self._tfds_name = tfds_name

  @property
  def data(self) -> hub.HubData:
    """What is known of the data set."""
    return self._data

  @property
  def folder(self) -> str:
    """The folder that holds its splits.

    Raises:
      InputError: if there is none, or more than one snapshot of it.
    """
    found = self._data.place(self._root)
    if found is not None:
      return found
    repo, config = self._data.repo, self._data.config
    raise InputError(
      f'no data for {self._tfds_name!r}: {os.path.join(self._root, repo)} has'
      f' no folder {config!r}; give the right --hf_data_dir, or fetch it'
      f' ({hub.command(self._data, self._root)})'
    )

  def _files(self, split: str) -> Files:
    """The files of a TFDS split."""
    name, folder = self._data.splits.get(split, split), self.folder
    # As owners have it, the hub's own conversion, and the library `datasets`.
    paths = [
      path
      for pattern in (
        f'{name}-*.parquet',
        f'{name}/*.parquet',
        f'{self._data.cached}-{name}.arrow',
        f'{self._data.cached}-{name}-*.arrow',
      )
      for path in sorted(glob.glob(os.path.join(glob.escape(folder), pattern)))
    ]
    if not paths:
      files = (
        n.removeprefix(f'{self._data.cached}-') for n in os.listdir(folder)
      )
      there = sorted({n.partition('-')[0].partition('.')[0] for n in files})
      raise InputError(
        f'split {split!r} of {self._tfds_name!r} is missing: {folder} has no'
        f' {name}-*.parquet; there is {there}'
      )
    wanted = {int(m[1]) for path in paths if (m := _SHARD.search(path))}
    if wanted and wanted != {len(paths)}:
      raise InputError(
        f'split {split!r} of {self._tfds_name!r} is incomplete: {folder} has'
        f' {len(paths)} of {max(wanted)} files; fetch the others'
        f' ({hub.command(self._data, self._root)})'
      )
    states = [(path, os.stat(path)) for path in paths]
    return tuple((p, s.st_mtime_ns, s.st_size) for p, s in states)

  def count(self, split: str) -> int:
    """Returns how many rows a TFDS split has.

    Raises:
      InputError: if it is missing, or its columns are not those of the hub's
        data set; one line with the file.
    """
    return _count(self._tfds_name, split, self._files(split))

  def is_synthetic(self, split: str, mark: str) -> bool:
    """Whether a split's files say that they are made up, beginning so."""
    path = self._files(split)[0][0]
    about = arrow.about(arrow.schema(path))
    return str(about.get('description', '')).startswith(mark)

  def read(self, split: str) -> 'pa.Table':
    """Returns a split: columns of TFDS's names, rows in TFDS's order.

    Raises:
      InputError: as `count`, and if a label is none of the data set's, or a
        cell is empty.
    """
    paths = [path for path, *_ in self._files(split)]
    return _read(self._data, split, paths)


@functools.lru_cache(maxsize=256)
def _count(tfds_name: str, split: str, files: Files) -> int:
  data = hub.DATA[tfds_name]
  if data.make is not None or data.only is not None:
    return _read(data, split, [path for path, *_ in files], False).num_rows
  count = 0
  for path, *_ in files:
    with arrow.opened(path) as file:
      _check_schema(data, path, arrow.columns(file))
      count += arrow.count(file)
  return count


def _read(
  data: hub.HubData, split: str, paths: Sequence[str], ordered: bool = True
) -> 'pa.Table':
  import pyarrow as pa

  parts = []
  for path in paths:
    _check_schema(data, path, arrow.schema(path))
    parts.append(_columns(data, split, path))
  table = pa.concat_tables(parts).combine_chunks()
  if ordered and data.key is not None:
    table = table.take(_order(data.key, split, table.select(data.key_columns)))
  kept = table.select(list(data.columns))
  return kept if data.make is None else data.make(kept)


def _columns(data: hub.HubData, split: str, path: str) -> 'pa.Table':
  """Reads what is needed of a file; see `HubData`."""
  import pyarrow as pa
  import pyarrow.compute as pc

  names = {name.partition('/')[0]: None for name, _ in data.columns.values()}
  names |= dict.fromkeys(data.key_columns)
  column, value, only = data.only or ('', '', '')
  filtered = bool(column) and only in (None, split)
  if filtered:
    names[column] = None
  table = arrow.read(path, list(names))
  if filtered:
    table = table.filter(pc.equal(table[column], value))
  found = {name: table[name] for name in data.key_columns}
  for ours, (theirs, kind) in data.columns.items():
    array = _at(table[theirs.partition('/')[0]].combine_chunks(), theirs)
    where = f'{path}: column {theirs!r}'
    if empty := _nulls(array):
      raise InputError(f'{where} is empty in {empty} of {len(array)} rows')
    found[ours] = _cast(array, kind, data.labels, where)
  return pa.table(found)


def _at(array: Any, path: str) -> Any:
  """What lies below a column: path is 'answers/text'."""
  import pyarrow as pa
  import pyarrow.compute as pc

  if isinstance(array, pa.ChunkedArray):
    array = pa.concat_arrays(array.chunks) if array.chunks else array
  for name in path.split('/')[1:]:
    if pa.types.is_struct(array.type):
      array = pc.struct_field(array, name)
    else:  # A list of structs, which newer files may have.
      inner = pc.struct_field(array.values, name)
      array = type(array).from_arrays(array.offsets, inner)
  return array


def _nulls(array: Any) -> int:
  import pyarrow as pa

  count = array.null_count
  while pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
    array = array.flatten()
    count += array.null_count
  return count


def _cast(array: Any, kind: str, labels: Sequence[str], where: str) -> Any:
  """Gives a column TFDS's type, and a label its id."""
  import pyarrow as pa
  import pyarrow.compute as pc

  if kind == hub.WORD:
    words = pa.array(labels, array.type)
    ids = pc.fill_null(pc.index_in(array, words), -1).cast(pa.int64())
    unknown = pc.filter(
      array, pc.and_(pc.less(ids, 0), pc.not_equal(array, ''))
    )
    if len(unknown):
      word = unknown[0].as_py()
      raise InputError(
        f'{where}: {word!r} is none of the labels {list(labels)}'
        f'{nearest(word, labels)}'
      )
    return ids
  if kind == hub.CLASS:
    bounds = pc.min_max(array).as_py()
    low, high = (0 if v is None else v for v in (bounds['min'], bounds['max']))
    if low < -1 or high >= len(labels):
      raise InputError(
        f'{where}: label {low if low < -1 else high} is outside 0 to'
        f' {len(labels) - 1} ({", ".join(labels)})'
      )
    return array.cast(pa.int64())
  return array.cast(_types()[kind])


@functools.cache
def _types() -> Mapping[str, 'pa.DataType']:
  import pyarrow as pa

  text = pa.string()
  return {
    hub.TEXT: text,
    hub.TEXTS: pa.list_(text),
    hub.LISTS: pa.list_(pa.list_(text)),
    hub.INT: pa.int32(),
    hub.INTS: pa.list_(pa.int32()),
    hub.REAL: pa.float32(),
  }


def _kind(type_: 'pa.DataType') -> str:
  """What a column of a type holds; the type's name if that is none of ours."""
  import pyarrow as pa

  is_ = pa.types
  if is_.is_list(type_) or is_.is_large_list(type_):
    below = _kind(type_.value_type)
    lists = {hub.TEXT: hub.TEXTS, hub.INT: hub.INTS, hub.TEXTS: hub.LISTS}
    return lists.get(below, str(type_))
  if is_.is_string(type_) or is_.is_large_string(type_):
    return hub.TEXT
  if is_.is_integer(type_):
    return hub.INT
  return hub.REAL if is_.is_floating(type_) else str(type_)


def _check_schema(data: hub.HubData, path: str, schema: 'pa.Schema') -> None:
  """Checks that a file has the hub's columns, types and label names."""
  wanted = {column: kind for column, kind in data.columns.values()}
  if data.only is not None:
    wanted[data.only[0]] = hub.TEXT
  for column, kind in wanted.items():
    found = _type_at(schema, column)
    if found is None:
      raise InputError(
        f'{path} has no column {column!r} of {data.repo} ({data.config});'
        f' it has {schema.names}'
      )
    kind = {hub.CLASS: hub.INT, hub.WORD: hub.TEXT}.get(kind, kind)
    if _kind(found) != kind:
      raise InputError(
        f'{path}: column {column!r} holds {found}, in {data.repo}'
        f' ({data.config}) it holds {kind}'
      )
  for column in data.key_columns:
    if column not in schema.names:
      raise InputError(
        f'{path} has no column {column!r} of {data.repo} ({data.config});'
        f' it has {schema.names}'
      )
  features = arrow.about(schema).get('features')
  for column, kind in data.columns.values():
    said = features.get(column) if isinstance(features, dict) else None
    names = said.get('names') if isinstance(said, dict) else None
    if kind == hub.CLASS and names and tuple(names) != data.labels:
      raise InputError(
        f'{path}: the labels of {column!r} are {list(names)}, in {data.repo}'
        f' ({data.config}) they are {list(data.labels)}'
      )


def _type_at(schema: 'pa.Schema', column: str) -> 'pa.DataType | None':
  import pyarrow as pa

  first, *rest = column.split('/')
  if schema.names.count(first) != 1:
    return None
  type_, lists = schema.field(first).type, 0
  for name in rest:
    while pa.types.is_list(type_) or pa.types.is_large_list(type_):
      type_, lists = type_.value_type, lists + 1
    if not pa.types.is_struct(type_) or type_.get_field_index(name) < 0:
      return None
    type_ = type_.field(name).type
  for _ in range(lists):
    type_ = pa.list_(type_)
  return type_


def _order(key: hub.Key, split: str, table: 'pa.Table') -> np.ndarray:
  """Returns the rows in TFDS's order, by the MD5 of split and key.

  `tensorflow_datasets/core/hashing.py` says that it stays so.
  """
  keys = table.to_pylist() if table.num_columns else [{}] * table.num_rows
  salt = hashlib.md5(split.encode(), usedforsecurity=False)
  digests = []
  for number, row in enumerate(keys):
    digest = salt.copy()
    digest.update(str(key(split, row, number)).encode())
    digests.append(digest.digest())
  return np.array(
    sorted(range(len(digests)), key=digests.__getitem__), np.int64
  )


def dataset(table: 'pa.Table') -> tf.data.Dataset:
  """Returns the rows of `HubSplits.read`, with TFDS's nested features."""
  import pyarrow as pa

  specs: dict[str, Any] = {}
  for field in table.schema:
    is_list = pa.types.is_list(field.type)
    inner = field.type.value_type if is_list else field.type
    text = pa.types.is_string(inner)
    dtype = tf.string if text else tf.as_dtype(inner.to_pandas_dtype())
    specs[field.name] = (
      tf.RaggedTensorSpec([None, None], dtype, ragged_rank=1)
      if is_list
      else tf.TensorSpec([None], dtype)
    )

  def blocks() -> Iterator[dict[str, Any]]:
    for start in range(0, table.num_rows, _BLOCK):
      block = table.slice(start, _BLOCK).combine_chunks()
      yield _nested({n: _tensor(block[n]) for n in block.column_names})

  return tf.data.Dataset.from_generator(
    blocks, output_signature=_nested(specs)
  ).unbatch()


def _tensor(column: 'pa.ChunkedArray') -> Any:
  import pyarrow as pa

  array = pa.concat_arrays(column.chunks)
  if pa.types.is_list(array.type):
    offsets = array.offsets.to_numpy().astype(np.int64)
    inner = _values(array.flatten())
    return tf.RaggedTensor.from_row_splits(inner, offsets - offsets[0])
  return _values(array)


def _values(array: 'pa.Array') -> np.ndarray:
  import pyarrow as pa

  if pa.types.is_string(array.type):
    array = array.cast(pa.binary())
  return array.to_numpy(zero_copy_only=False)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
  """{'answers/text': x} as {'answers': {'text': x}}."""
  found: dict[str, Any] = {}
  for path, value in flat.items():
    *outer, last = path.split('/')
    place = found
    for name in outer:
      place = place.setdefault(name, {})
    place[last] = value
  return found
