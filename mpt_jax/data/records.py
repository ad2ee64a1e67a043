"""A user's own data: files (see `lines`), a function, or rows.

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

from mpt_jax.checkpoints import stores
from mpt_jax.checkpoints.texts import LABEL, find
from mpt_jax.data import labels as labels_lib
from mpt_jax.data.lines import Row, cell_text, is_tsv, read_rows
from mpt_jax.types import InputError, nearest

log = logging.getLogger(__name__)

RowsFn = Callable[[str], Iterable[Row]]
# Split of the data -> its file, or its rows; or a function of its name.
Rows = Mapping[str, str | Sequence[Row]] | RowsFn

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
    if self.quoted and self.path and is_tsv(self.path):
      log.warning(
        '%s: %d cells begin and end with a quotation mark (first at %s), which'
        ' is text in a .tsv; if a program quoted them, write a .csv',
        source,
        self.quoted,
        self.quoted_at,
      )


@dataclasses.dataclass(frozen=True)
class Columns:
  """The columns of a split.

  Attributes:
    count: how many rows there are.
    cells: name -> the cells: texts, lists of texts where `lists` says so, or
      class ids where the column is that of the labels.
    names: the rows' own names, where every row has one.
    lists: the columns that hold lists.
  """

  count: int
  cells: Mapping[str, list[Any]]
  names: list[str] | None
  lists: frozenset[str]


class Records:
  """Rows of files, of a function, or in memory."""

  def __init__(
    self,
    rows: Rows,
    splits: Mapping[str, str],
    columns: Sequence[str],
    renamed: Mapping[str, str],
    labels: Sequence[str] | None,
  ):
    """Names the data; reads nothing.

    Args:
      rows: split of the data -> its file, or its rows; or a function from
        the name of a split to its rows.
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

  @property
  def renamed(self) -> Mapping[str, str]:
    """Name in the templates -> column, where they differ."""
    return self._renamed

  def _file(self, split: str) -> str | None:
    found = None if callable(self._rows) else self._rows[split]
    return stores.bring(found) if isinstance(found, str) else None

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

  # On the instance's life: sources live as long as the registry.
  @functools.lru_cache(maxsize=8)  # noqa: B019
  def _packed(
    self, split: str, state: tuple[int, int] | None
  ) -> tuple[int, Any]:
    """(Rows of a split of the data, what `pack` makes of them); kept."""
    del state
    columns = self._columns_of(split)
    return columns.count, self.pack(columns)

  def pack(self, columns: Columns) -> Any:
    """Returns the columns of a split in the form in which they are kept."""
    return columns

  def _columns_of(self, split: str) -> Columns:
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
        if self.holds_ids(name):
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
    return Columns(
      count,
      columns,
      names if named else None,
      frozenset(name for name, is_list in lists.items() if is_list),
    )

  def holds_ids(self, name: str) -> bool:
    """Whether a column is that of the labels, which are class ids here."""
    return name == LABEL and self._labels is not None

  def _rows_of(self, split: str) -> Iterator[tuple[str, Row]]:
    """Yields (where, row) of a split of the data."""
    path = self._file(split)
    if path is not None:
      for where, row in read_rows(path):
        if row is not None:
          yield where, row
      return
    rows: Any
    if callable(self._rows):
      name = getattr(self._rows, '__name__', repr(self._rows))
      place, rows = f'{name}({split!r})', self._rows(split)
    else:
      place, rows = split, self._rows[split]
    for number, row in enumerate(rows):
      yield f'{place} row {number}', row

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

  def part(self, split: str) -> tuple[Any, slice]:
    """Returns what `pack` made of our split's data, and which rows are it.

    Args:
      split: our name of the split, of which there must be one.

    Raises:
      InputError: names the file and line, and what is wrong there.
    """
    part = self._slices[split]
    count, packed = self._packed(part.split, self._state(part.split))
    bounds = slice(part.start, part.stop)
    return packed, slice(*bounds.indices(count))

  def num_input_examples(self, split: str) -> int:
    """Returns the number of rows of a split; reads them."""
    _, bounds = self.part(split)
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
      where = self._file(self._slices[split].split) or (
        'the function' if callable(self._rows) else 'the list'
      )
      raise InputError(f'split {split!r} is empty: {where} has no row for it')
