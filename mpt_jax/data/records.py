"""A user's own data: JSON Lines, TSV and CSV files, or a Python function.

Everything is read and checked before a run starts, so that a broken line is
reported with its file and number, not as a TensorFlow error in the middle of
training. The rows are kept in memory, as the tokens will be.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import functools
import logging
import os
import re
import stat
from typing import Any

import numpy as np

from mpt_jax.checkpoints.texts import LABEL, find
from mpt_jax.data import labels as labels_lib
from mpt_jax.data.libraries import seqio, tf
from mpt_jax.data.lines import SUFFIXES, Row, cell_text, read_rows
from mpt_jax.types import InputError, local_path, nearest

log = logging.getLogger(__name__)

RowsFn = Callable[[str], Iterable[Row]]

SPLITS = ('train', 'validation', 'test')
# 'train', 'train[1000:]', 'train[:1000]', 'train[10:20]'.
_SLICE = re.compile(
  r'(?P<split>[^\[\]]+)(\[(?P<start>\d{0,18}):(?P<stop>\d{0,18})\])?'
)
# The number of a row in its file, counted from 0.
INDEX = 'idx'
# The column of the rows' own names, where every row has one.
NAME = 'id'
# What programs write where a value is missing.
_NO_VALUE = frozenset(('', 'nan', 'NaN', 'None', 'null', 'NULL', '<NA>'))


@dataclasses.dataclass(frozen=True)
class Slice:
  """A part of a split with absolute bounds.

  Attributes:
    split: name of the split.
    start: first row.
    stop: the row after the last one; None is the end.
  """

  split: str
  start: int = 0
  stop: int | None = None

  @classmethod
  def parse(cls, text: str) -> 'Slice':
    """Reads 'train[1000:]'; raises InputError for anything else."""
    match = _SLICE.fullmatch(text)
    if not match:
      raise InputError(
        f"{text!r} is no split; expected 'train' or, with absolute bounds,"
        " 'train[:1000]'"
      )
    return cls(
      match['split'],
      int(match['start'] or 0),
      int(match['stop']) if match['stop'] else None,
    )


def _lookup(row: Row, column: str, where: str) -> Any:
  try:
    return find(row, column)
  except KeyError:
    known = sorted(map(str, row))
    raise InputError(
      f'{where}: no column {column!r}; there is {known}{nearest(column, known)}'
    ) from None


@functools.lru_cache(maxsize=64)
def _misspelt(column: str, names: tuple[Any, ...]) -> bool:
  """Whether one of the names is near to a column's."""
  return bool(nearest(column, map(str, names)))


@dataclasses.dataclass
class _Oddities:
  """Counts what a reader of the data may not expect; warns once a split."""

  path: str | None
  quoted: int = 0
  quoted_at: str = ''
  without: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )

  def look_at(self, text: str | list[str], column: str, where: str) -> None:
    """Takes note of a cell."""
    if not isinstance(text, str):
      return
    if text in _NO_VALUE:
      self.without[column, text] += 1
    elif len(text) > 1 and text[0] == text[-1] == '"':
      self.quoted += 1
      self.quoted_at = self.quoted_at or where

  def warn(self, split: str, count: int) -> None:
    """Says what was seen among so many rows."""
    source = self.path or f'split {split!r}'
    for (column, text), number in self.without.items():
      log.warning(
        '%s: column %r is %s in %d of %d rows; it is taken as text',
        source,
        column,
        repr(text) if text else 'empty',
        number,
        count,
      )
    if self.quoted and self.path and self.path.endswith('.tsv'):
      log.warning(
        '%s: %d cells begin and end with a quotation mark (first at %s), which'
        ' is text in a .tsv; if a program quoted them, write a .csv',
        source,
        self.quoted,
        self.quoted_at,
      )


class RecordsSource(seqio.DataSource):
  """Rows of files or of a function, as a SeqIO data source."""

  def __init__(
    self,
    rows: Mapping[str, str] | RowsFn,
    splits: Mapping[str, str],
    columns: Sequence[str],
    renamed: Mapping[str, str],
    labels: Sequence[str] | None,
  ):
    """Names the data; reads nothing.

    Args:
      rows: split of the data -> its file, or a function from the name of a
        split to its rows.
      splits: our split -> split of the data, or a slice of it.
      columns: names that every row must have (those of the templates).
      renamed: name in the templates -> column, where they differ.
      labels: words in the order of the class ids, for the column `label`.
    """
    self._rows = rows
    self._slices = {name: Slice.parse(text) for name, text in splits.items()}
    if not callable(rows):
      for name, part in self._slices.items():
        if part.split not in rows:
          raise InputError(
            f'split {name!r} is cut from {part.split!r}, for which there is'
            f' no file; there is {sorted(rows)}'
          )
    self._columns = tuple(columns)
    self._renamed = dict(renamed)
    self._labels = None if labels is None else labels_lib.Column(tuple(labels))
    super().__init__(splits=tuple(splits))

  @property
  def renamed(self) -> Mapping[str, str]:
    """Name in the templates -> column, where they differ."""
    return self._renamed

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """Rows are in memory: any host can take any of them."""
    return True

  def list_shards(self, split: str) -> Sequence[str]:
    """Returns one name: a split is one shard, and is divided by rows."""
    return [split]

  def _file(self, split: str) -> str | None:
    return None if callable(self._rows) else self._rows[split]

  def state(self, split: str) -> tuple[int, int] | None:
    """Returns what changes when the file of our split is edited."""
    return self._state(self._slices[split].split)

  def _state(self, split: str) -> tuple[int, int] | None:
    path = self._file(split)
    if path is None:
      return None
    try:
      state = os.stat(path)
    except OSError as e:
      raise InputError(
        f'{path} (split {split!r}) cannot be read: {e.strerror}'
      ) from e
    if not stat.S_ISREG(state.st_mode):
      raise InputError(f'{path} (split {split!r}) is not a regular file')
    return state.st_mtime_ns, state.st_size

  def _read(self, split: str) -> dict[str, Any]:
    """Returns the columns of a split of the data, read once per state."""
    return self._columns_of(split, self._state(split))

  # On the instance's life: sources live as long as the registry.
  @functools.lru_cache(maxsize=8)  # noqa: B019
  def _columns_of(
    self, split: str, state: tuple[int, int] | None
  ) -> dict[str, Any]:
    del state
    columns: dict[str, list[Any]] = {name: [] for name in self._columns}
    lists: dict[str, bool] = {}
    seen: dict[labels_lib.Cell, str] = {}
    odd = _Oddities(self._file(split))
    names: list[str] = []
    count = 0
    for where, row in self._rows_of(split):
      if isinstance(row.get(NAME), str | int):
        names.append(str(row[NAME]))
      for name, cells in columns.items():
        if name == LABEL and self._labels is not None:
          cells.append(self._label(row, where))
          seen.setdefault(cells[-1], where)
          continue
        column = self._renamed.get(name, name)
        value = _lookup(row, column, where)
        text = cell_text(value, f'{where}: column {column!r}')
        if lists.setdefault(name, isinstance(text, list)) != isinstance(
          text, list
        ):
          raise InputError(
            f'{where}: column {column!r} holds a list in some rows only'
          )
        odd.look_at(text, column, where)
        cells.append(text)
      count += 1
    odd.warn(split, count)
    if self._labels is not None and LABEL in columns:
      columns[LABEL] = self._labels.ids(
        columns[LABEL], seen, self._labels_elsewhere(split)
      )
    named = NAME not in columns and len(names) == count
    return {
      INDEX: np.arange(count, dtype=np.int64),
      **({NAME: tf.constant(names, tf.string, shape=[count])} if named else {}),
      **{
        name: tf.ragged.constant(cells, dtype=tf.string)
        if lists.get(name)
        else np.array(cells, np.int64)
        if name == LABEL and self._labels is not None
        else tf.constant(cells, tf.string, shape=[count])
        for name, cells in columns.items()
      },
    }

  def _rows_of(self, split: str) -> Iterator[tuple[str, Row]]:
    """Yields (where, row) of a split of the data."""
    path = self._file(split)
    if path is not None:
      for where, row in read_rows(path):
        if row is not None:
          yield where, row
      return
    assert callable(self._rows)
    name = getattr(self._rows, '__name__', repr(self._rows))
    for number, row in enumerate(self._rows(split)):
      yield f'{name}({split!r}) row {number}', row

  def _label(self, row: Row, where: str) -> labels_lib.Cell:
    """What the label's cell holds; a row without one hides its label."""
    assert self._labels is not None
    column = self._renamed.get(LABEL, LABEL)
    try:
      value = find(row, column)
    except KeyError:
      others = {self._renamed.get(name, name) for name in self._columns}
      if _misspelt(column, tuple(n for n in row if n not in others)):
        _lookup(row, column, where)  # That is no hidden label.
      return None
    return self._labels.cell(value, where)

  def _labels_elsewhere(self, split: str) -> Iterator[labels_lib.Seen]:
    """Yields the label cells of the other splits that there are."""
    for other in {part.split for part in self._slices.values()} - {split}:
      path = self._file(other)
      if path is not None and not os.path.isfile(path):
        continue
      seen: dict[labels_lib.Cell, str] = {}
      try:
        for where, row in self._rows_of(other):
          seen.setdefault(self._label(row, where), where)
      except InputError:
        raise
      except Exception:
        # A function need not know every split. When that one is read itself,
        # its own error is shown.
        continue
      yield seen

  def _part(self, split: str) -> tuple[dict[str, Any], slice]:
    part = self._slices[split]
    columns = self._read(part.split)
    bounds = slice(part.start, part.stop)
    return columns, slice(*bounds.indices(len(columns[INDEX])))

  def num_input_examples(self, split: str) -> int:
    """Returns the number of rows of a split; reads them."""
    _, bounds = self._part(split)
    return max(0, bounds.stop - bounds.start)

  def check(self, split: str) -> None:
    """Reads and checks every row of a split.

    Args:
      split: our name of the split.

    Raises:
      InputError: names the file and line, and what is wrong there.
    """
    if split not in self._slices:
      raise InputError(f'no split {split!r}; it has {sorted(self._slices)}')
    if not self.num_input_examples(split):
      where = self._file(self._slices[split].split) or 'the function'
      raise InputError(f'split {split!r} is empty: {where} has no row for it')

  def get_dataset(
    self,
    split: str,
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
  ) -> tf.data.Dataset:
    """Returns the rows of a split: one feature per column, and `idx`."""
    self.check(split)
    columns, bounds = self._part(split)
    dataset = tf.data.Dataset.from_tensor_slices(
      {
        name: cells[bounds.start : bounds.stop]
        for name, cells in columns.items()
      }
    )
    if shard_info and shard_info.num_shards > 1:
      dataset = dataset.shard(shard_info.num_shards, shard_info.index)
    if shuffle:
      size = bounds.stop - bounds.start
      dataset = dataset.shuffle(size, seed=seed)
    return dataset


def make_source(
  source: str | os.PathLike | Mapping[str, str | os.PathLike] | RowsFn,
  splits: Mapping[str, str] | Sequence[str] | None,
  columns: Sequence[str],
  renamed: Mapping[str, str],
  labels: Sequence[str] | None,
) -> RecordsSource:
  """Makes a source of files or of a function.

  Args:
    source: a path with `{split}` in it, {split: path}, one path (which is
      then the split `train`), or a function from the name of a split to its
      rows. A path ends in .jsonl, .tsv or .csv.
    splits: our split -> split of the data or a slice of it, or just names;
      None is what the source says, or train, validation and test.
    columns: names that every row must have.
    renamed: name in the templates -> column.
    labels: words in the order of the class ids.

  Returns:
    The source; nothing is read yet.

  Raises:
    InputError: for a file of another kind.
  """
  rows: Mapping[str, str] | RowsFn
  known: tuple[str, ...]
  if callable(source):
    rows, known = source, SPLITS
  elif isinstance(source, Mapping):
    rows = {name: local_path(path) for name, path in source.items()}
    known = tuple(rows)
  else:
    path = local_path(source)
    if '{split}' in path:
      named = splits.values() if isinstance(splits, Mapping) else splits
      known = tuple(
        dict.fromkeys(Slice.parse(text).split for text in named or SPLITS)
      )
      rows = {name: path.replace('{split}', name) for name in known}
    else:
      rows, known = {'train': path}, ('train',)
  for path in () if callable(rows) else rows.values():
    if not path.endswith(SUFFIXES):
      raise InputError(
        f'{path!r} is no data file: expected {", ".join(SUFFIXES)}, or a TFDS'
        " name with its version, as in 'glue/mnli:2.0.0'"
      )
  if not isinstance(splits, Mapping):
    splits = {name: name for name in (splits or known)}
  return RecordsSource(rows, splits, columns, renamed, labels)
