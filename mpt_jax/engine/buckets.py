"""Length buckets: a batch in parts, each padded to a length of its own.

The members of a batch stay what they are. Sorted by length and cut into parts,
the batch needs little padding: each part takes the shortest of a few padded
lengths that holds it, and where lengths change much from one example to the
next a part has fewer examples. The few shapes that a step is compiled for are
chosen from a run's own data.
"""

from collections import Counter
from collections.abc import Sequence
import dataclasses
import functools
import itertools
import math
from typing import NamedTuple

import numpy as np

# The most padded lengths, and what they are multiples of.
MOST_INPUTS, INPUT_STEP = 8, 16
MOST_TARGETS, TARGET_STEP = 2, 8
MOST_SHAPES = 12
# Another length or shape must save so much of the work to be worth compiling.
_LEAST_GAIN = 0.003
# What a target position costs, in input positions. It is projected to the
# vocabulary and has two attentions.
_TARGET_COST = 2
# What a part costs beside its positions: the decoder's weights are read again.
_PART_COST = 150
# Batches that shapes are tried on.
_BATCHES_TRIED = 20


class Shape(NamedTuple):
  """A shape of parts: examples, S with prompt slots, and T."""

  rows: int
  input_length: int
  target_length: int

  @property
  def cost(self) -> int:
    """The work of such a part, in input positions."""
    positions = self.input_length + _TARGET_COST * self.target_length
    return _PART_COST + self.rows * positions


@dataclasses.dataclass(frozen=True)
class Part:
  """Some examples of a batch.

  Attributes:
    members: their places in the batch.
    input_length: S, prompt slots included, that they are padded to.
    target_length: T, likewise.
  """

  members: tuple[int, ...]
  input_length: int
  target_length: int


@dataclasses.dataclass(frozen=True)
class Buckets:
  """How batches are cut.

  Attributes:
    shapes: what parts may be. One holds the longest input and the longest
      target there are, and has the most rows; a batch is a multiple of them.
    targets_first: whether examples are put apart by their bucket of T before
      they are sorted by S.
  """

  shapes: tuple[Shape, ...]
  targets_first: bool = False

  @property
  def rows(self) -> int:
    """The most examples that a part may have."""
    return max(shape.rows for shape in self.shapes)

  @property
  def inputs(self) -> tuple[int, ...]:
    """The padded lengths S, rising."""
    return tuple(sorted({shape.input_length for shape in self.shapes}))

  @property
  def targets(self) -> tuple[int, ...]:
    """The padded lengths T, rising."""
    return tuple(sorted({shape.target_length for shape in self.shapes}))

  def cut(self, lengths: np.ndarray) -> list[Part]:
    """Cuts a batch where it makes the least work.

    Args:
      lengths: [B, 2] int, S and T of each example; B a multiple of `rows`.

    Returns:
      The parts, the largest first; every example is in one of them.

    Raises:
      ValueError: if an example is longer than the longest bucket.
    """
    longest = lengths.max(axis=0)
    if (longest > [self.inputs[-1], self.targets[-1]]).any():
      raise ValueError(
        f'an example of {longest[0]} + {longest[1]} tokens is longer than'
        f' {self.inputs[-1]} + {self.targets[-1]}'
      )
    order = self._order(lengths)
    parts = [
      Part(tuple(order[end - shape.rows : end].tolist()), *shape[1:])
      for end, shape in self._cuts(lengths[order])
    ]
    # What the first step needed in memory then does for all.
    return sorted(
      parts, key=lambda p: len(p.members) * p.input_length, reverse=True
    )

  def _cuts(self, lengths: np.ndarray) -> list[tuple[int, Shape]]:
    """The least work for examples in this order: (end, shape) of each part."""
    least = [0.0] + [math.inf] * len(lengths)
    choice: list[Shape | None] = [None] * (len(lengths) + 1)
    options = {
      rows: np.lib.stride_tricks.sliding_window_view(lengths, rows, axis=0)
      .max(axis=-1)
      .tolist()
      for rows in sorted({shape.rows for shape in self.shapes}, reverse=True)
      if rows <= len(lengths)
    }
    for end in range(1, len(lengths) + 1):
      for rows, longest in options.items():
        start = end - rows
        if start < 0 or least[start] == math.inf:
          continue
        shape = self._smallest(rows, *longest[start])
        if shape is not None and least[start] + shape.cost < least[end]:
          least[end], choice[end] = least[start] + shape.cost, shape
    cuts = []
    end = len(lengths)
    while end:
      chosen = choice[end]
      if chosen is None:
        raise ValueError(
          f'{len(lengths)} examples cannot be cut into parts of'
          f' {", ".join(map(str, options))}'
        )
      cuts.append((end, chosen))
      end -= chosen.rows
    return cuts

  def _smallest(
    self, rows: int, input_length: int, target_length: int
  ) -> Shape | None:
    """The cheapest shape of so many rows that holds such lengths."""
    for shape in _by_cost(self.shapes):
      if (
        shape.rows == rows
        and shape.input_length >= input_length
        and shape.target_length >= target_length
      ):
        return shape
    return None

  def cost(self, batches: Sequence[np.ndarray]) -> int:
    """The work that batches make, in input positions."""
    return sum(
      shape.cost * count for shape, count in self._uses(batches).items()
    )

  def fill(self, batches: Sequence[np.ndarray]) -> float:
    """Share of the input positions that hold a token or a prompt vector."""
    padded = sum(
      shape.rows * shape.input_length * count
      for shape, count in self._uses(batches).items()
    )
    return sum(int(lengths[:, 0].sum()) for lengths in batches) / padded

  def _uses(self, batches: Sequence[np.ndarray]) -> Counter[Shape]:
    """How many parts of each shape batches make."""
    return Counter(
      Shape(len(part.members), part.input_length, part.target_length)
      for lengths in batches
      for part in self.cut(lengths)
    )

  def without_the_rare(self, batches: Sequence[np.ndarray]) -> 'Buckets':
    """Leaves out shapes that batches like these hardly gain from."""
    kept, cost = self, self.cost(batches)
    # Whatever comes, these rows at these lengths hold it.
    needed = (self.rows, self.inputs[-1], self.targets[-1])
    while True:
      uses = kept._uses(batches)
      rest = sorted(
        set(kept.shapes) - {needed},
        key=lambda shape: (uses[shape] * shape.cost, shape),
      )
      if not rest:
        return kept
      fewer = dataclasses.replace(
        kept, shapes=tuple(s for s in kept.shapes if s != rest[0])
      )
      more = fewer.cost(batches)
      if len(kept.shapes) <= MOST_SHAPES and more > (1 + _LEAST_GAIN) * cost:
        return kept
      kept, cost = fewer, more

  def _order(self, lengths: np.ndarray) -> np.ndarray:
    inputs, targets = lengths.T
    if self.targets_first:
      return np.lexsort((inputs, np.searchsorted(self.targets, targets)))
    return np.lexsort((targets, inputs))


def grid(
  sizes: Sequence[int],
  inputs: Sequence[int],
  targets: Sequence[int],
  targets_first: bool = False,
) -> Buckets:
  """Buckets of every number of rows with every S and every T."""
  shapes = itertools.starmap(Shape, itertools.product(sizes, inputs, targets))
  return Buckets(tuple(shapes), targets_first)


@functools.lru_cache(maxsize=64)
def _by_cost(shapes: tuple[Shape, ...]) -> list[Shape]:
  return sorted(shapes, key=lambda shape: shape.cost)


def choose(
  batches: Sequence[np.ndarray], sizes: Sequence[int], longest: tuple[int, int]
) -> Buckets:
  """Chooses the shapes of parts for batches like these.

  Args:
    batches: [B, 2] int, S and T of the examples of some batches.
    sizes: how many examples a part may have; the largest divides B.
    longest: (S, T) of the longest input and target there can be.

  Returns:
    The buckets that make the least work, of at most MOST_SHAPES shapes.
  """
  every = np.concatenate(batches)
  targets = bounds(every[:, 1], longest[1], TARGET_STEP, MOST_TARGETS)
  found = []
  for targets_first in (False, True):
    whole = grid(sizes, longest[:1], targets, targets_first)
    maxima = [
      lengths[list(part.members), 0].max()
      for lengths in batches
      for part in whole.cut(lengths)
    ]
    inputs = bounds(np.array(maxima), longest[0], INPUT_STEP, MOST_INPUTS)
    found.append(grid(sizes, inputs, targets, targets_first))
  best = min(found, key=lambda buckets: buckets.cost(batches))
  return best.without_the_rare(batches[:_BATCHES_TRIED])


def bounds(
  lengths: np.ndarray, longest: int, step: int, most: int
) -> tuple[int, ...]:
  """At most `most` lengths whose padding costs least; the last is `longest`.

  Args:
    lengths: [N] int, what will be padded.
    longest: the longest there can be.
    step: all bounds but `longest` are multiples of it.
    most: the most bounds.

  Returns:
    The bounds, rising.
  """
  rounded = np.minimum(-(-lengths // step) * step, longest)
  values, counts = np.unique(np.append(rounded, longest), return_counts=True)
  counts[-1] -= 1
  before = np.concatenate([[0], np.cumsum(counts)])
  size = len(values)
  # least[i]: the cost of the first i values, the last bound being value i - 1.
  least = np.full(size + 1, np.inf)
  least[0] = 0.0
  chosen: list[int] = []
  whole = np.inf
  steps: list[np.ndarray] = []
  for _ in range(min(most, size)):
    padded = (before[None, :] - before[:, None])[:, 1:] * values[None, :]
    ends = np.arange(1, size + 1)
    allowed = np.arange(size + 1)[:, None] < ends[None, :]
    costs = np.where(allowed, least[:, None] + padded, np.inf)
    steps.append(np.argmin(costs, axis=0))
    least = np.concatenate([[np.inf], costs.min(axis=0)])
    if least[size] > (1 - _LEAST_GAIN) * whole:
      break
    whole, chosen = least[size], _path(steps)
  return tuple(int(values[i]) for i in chosen)


def _path(steps: Sequence[np.ndarray]) -> list[int]:
  """The places of the bounds that lead to the last value."""
  path, end = [], len(steps[0])
  for choice in reversed(steps):
    path.append(end - 1)
    end = int(choice[end - 1])
  return path[::-1]
