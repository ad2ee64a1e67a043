"""Length buckets: a batch in parts, each padded to a length of its own.

The members of a batch stay what they are. Sorted by length and cut into parts
of equally many rows, the batch needs little padding: each part takes the
shortest of a few padded lengths that holds it. The few lengths, and so the
few shapes that a step is compiled for, are chosen from a run's own data.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

# The most padded lengths, and what they are multiples of.
MOST_INPUTS, INPUT_STEP = 6, 16
MOST_TARGETS, TARGET_STEP = 2, 8
# Another length must save so much of the work to be worth compiling for.
_LEAST_GAIN = 0.01
# What a target position costs, in input positions. It is projected to the
# vocabulary and has two attentions.
_TARGET_COST = 2


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
    rows: examples in a part.
    inputs: the padded lengths S, rising, prompt slots included.
    targets: the padded lengths T, rising.
    targets_first: whether examples are put apart by their bucket of T before
      they are sorted by S.
  """

  rows: int
  inputs: tuple[int, ...]
  targets: tuple[int, ...]
  targets_first: bool = False

  @property
  def num_shapes(self) -> int:
    """The most shapes that parts can have."""
    return len(self.inputs) * len(self.targets)

  def cut(self, lengths: np.ndarray) -> list[Part]:
    """Cuts a batch.

    Args:
      lengths: [B, 2] int, S and T of each example; B a multiple of `rows`.

    Returns:
      B / rows parts; every example is in one of them.

    Raises:
      ValueError: if an example is longer than the longest bucket.
    """
    order = self._order(lengths)
    parts = []
    # The longest first: what its step needed in memory then does for all.
    for members in order.reshape(-1, self.rows)[::-1]:
      longest = lengths[members].max(axis=0)
      places = [
        int(np.searchsorted(padded, length))
        for padded, length in zip(
          (self.inputs, self.targets), longest, strict=True
        )
      ]
      if places[0] == len(self.inputs) or places[1] == len(self.targets):
        raise ValueError(
          f'an example of {longest[0]} + {longest[1]} tokens is longer than'
          f' {self.inputs[-1]} + {self.targets[-1]}'
        )
      parts.append(
        Part(
          tuple(members.tolist()),
          self.inputs[places[0]],
          self.targets[places[1]],
        )
      )
    return parts

  def cost(self, batches: Sequence[np.ndarray]) -> int:
    """The work that batches make, in input positions."""
    return sum(
      self.rows * (part.input_length + _TARGET_COST * part.target_length)
      for lengths in batches
      for part in self.cut(lengths)
    )

  def fill(self, batches: Sequence[np.ndarray]) -> float:
    """Share of the input positions that hold a token or a prompt vector."""
    padded = sum(
      self.rows * part.input_length
      for lengths in batches
      for part in self.cut(lengths)
    )
    return sum(int(lengths[:, 0].sum()) for lengths in batches) / padded

  def _order(self, lengths: np.ndarray) -> np.ndarray:
    inputs, targets = lengths.T
    if self.targets_first:
      return np.lexsort((inputs, np.searchsorted(self.targets, targets)))
    return np.lexsort((targets, inputs))


def choose(
  batches: Sequence[np.ndarray], rows: int, longest: tuple[int, int]
) -> Buckets:
  """Chooses the padded lengths for batches like these.

  Args:
    batches: [B, 2] int, S and T of the examples of some batches.
    rows: examples in a part; divides B.
    longest: (S, T) of the longest input and target there can be.

  Returns:
    The buckets that make the least work.
  """
  every = np.concatenate(batches)
  targets = bounds(every[:, 1], longest[1], TARGET_STEP, MOST_TARGETS)
  found = []
  for targets_first in (False, True):
    whole = Buckets(rows, longest[:1], targets, targets_first)
    maxima = [
      lengths[list(part.members), 0].max()
      for lengths in batches
      for part in whole.cut(lengths)
    ]
    inputs = bounds(np.array(maxima), longest[0], INPUT_STEP, MOST_INPUTS)
    found.append(dataclasses.replace(whole, inputs=inputs))
  return min(found, key=lambda buckets: buckets.cost(batches))


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
