"""What a synthetic data set is: name, splits, sizes, how rows are drawn."""

from collections.abc import Callable, Mapping
import dataclasses
import random
from typing import Any

Row = dict[str, Any]
# (chance, split) -> the rows of one drawing. They belong together, as the
# answers to a question do; most data sets draw a single row.
Draw = Callable[[random.Random, str], list[Row]]


@dataclasses.dataclass(frozen=True)
class Sizes:
  """How many rows the splits of a data set have.

  Attributes:
    train: the split that a task trains on.
    heldout: each split that a task tests on, or halves for that.
    other: each split that no task reads.
  """

  train: int
  heldout: int
  other: int = 0


# How many rows of `train` a large task holds out for validation. A smaller
# `train` leaves nothing beside them.
HELD_OUT = 1000
LEAST_TRAIN = HELD_OUT + 32

# The demo's source tasks hold out rows of `train`; its target tasks halve the
# official validation split into validation and test.
SOURCE = Sizes(train=7000, heldout=1000, other=100)
TARGET = Sizes(train=2000, heldout=1600, other=100)
# The others are small stand-ins: enough to run a task from its files to its
# score. They too halve or hold out, or take the official splits as they are.
SMALL_HALVED = Sizes(train=600, heldout=200, other=50)
SMALL_HELD_OUT = Sizes(train=HELD_OUT + 600, heldout=300, other=50)
SMALL_OFFICIAL = Sizes(train=600, heldout=200)


def with_idx(row: Row, split: str, number: int) -> Row:
  """Adds GLUE's and SuperGLUE's running index."""
  del split
  return {**row, 'idx': number}


def as_drawn(row: Row, split: str, number: int) -> Row:
  """Leaves a row as it is: there is no index in its schema."""
  del split, number
  return row


@dataclasses.dataclass(frozen=True)
class Dataset:
  """One synthetic data set.

  Attributes:
    name: the SeqIO task's short name.
    tfds_name: the official name and version.
    draw: draws rows, without what identifies them.
    sizes: how many rows there are.
    identify: (row, split, running number) -> the row with its identifiers.
    unique: features that no two drawings share; all but the label if empty.
    heldout: official splits that a task tests on, or halves for that.
    hidden: official splits whose labels are hidden.
    spare: official splits with labels that no task reads.
    train: the official split that a task trains on.
  """

  name: str
  tfds_name: str
  draw: Draw
  sizes: Sizes
  identify: Callable[[Row, str, int], Row] = with_idx
  unique: tuple[str, ...] = ()
  heldout: tuple[str, ...] = ('validation',)
  hidden: tuple[str, ...] = ('test',)
  spare: tuple[str, ...] = ()
  train: str = 'train'

  def split_sizes(self, train_size: int | None = None) -> Mapping[str, int]:
    """Lists the official splits.

    Args:
      train_size: rows of the split to train on; default by `sizes`.

    Returns:
      Rows by split, the one to train on last: the others then do not depend
      on its size.
    """
    if train_size is None:
      train_size = self.sizes.train
    return {
      **dict.fromkeys(self.heldout, self.sizes.heldout),
      **dict.fromkeys((*self.hidden, *self.spare), self.sizes.other),
      self.train: train_size,
    }

  def key(self, row: Row) -> str:
    """Returns what the rows of two drawings may not have in common."""
    names = self.unique or [k for k in row if k != 'label']
    return repr(sorted((k, row[k]) for k in names))


def single(make: Callable[[random.Random], Row]) -> Draw:
  """Returns a `Draw` of one row, the same way for each split."""

  def draw(rng: random.Random, split: str) -> list[Row]:
    del split
    return [make(rng)]

  return draw
