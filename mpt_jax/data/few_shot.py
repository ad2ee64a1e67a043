"""Few-shot selection: k examples of a training split, fixed by a seed."""

from collections import Counter
from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from mpt_jax.types import InputError

# With more different targets than this a task is not a classification, and
# balancing over targets would mean nothing.
MAX_LABELS = 20


@dataclasses.dataclass(frozen=True)
class Choice:
  """The examples that a few-shot run trains on.

  Attributes:
    positions: ascending positions in the train split.
    targets: their target texts.
    ids: name of an identifying feature -> their values.
  """

  positions: list[int]
  targets: list[str]
  ids: dict[str, list[Any]]

  def examples(self) -> list[dict[str, Any]]:
    """Returns one dict for each example, fit for JSON."""
    return [
      {
        'position': position,
        'target': self.targets[i],
        **{name: _plain(values[i]) for name, values in self.ids.items()},
      }
      for i, position in enumerate(self.positions)
    ]


def _plain(value: Any) -> Any:
  return value.decode() if isinstance(value, bytes) else value


def choose(
  targets: Sequence[str],
  num_shots: int,
  seed: int,
  name: str,
  *,
  per_class: bool = True,
  ids: Mapping[str, Sequence[Any]] | None = None,
) -> Choice:
  """Chooses k examples of each class, or k in all.

  With k in all, the labels take turns: one example each, then the next round,
  until k are chosen. Who gets the odd ones out is drawn. With more than 20
  different targets a task has no classes, and k examples are drawn from all
  alike. A larger k of the same seed holds the smaller choice.

  Args:
    targets: the target text of every example, in the data's order.
    num_shots: k.
    seed: fixes the choice.
    name: the task, for the message.
    per_class: k for each class rather than in all.
    ids: name of an identifying feature -> its value for every example.

  Returns:
    The choice.

  Raises:
    InputError: if k is less than 1, or more than there are (of some class).
  """
  count = Counter(targets)
  classes = per_class and len(count) <= MAX_LABELS
  label, room = min(count.items(), key=lambda item: (item[1], item[0]))
  if not classes:
    room = len(targets)
  if not 1 <= num_shots <= room:
    of_class = f' of class {label!r}' if classes else ''
    raise InputError(
      f'NUM_SHOTS={num_shots} does not fit the train split of {name!r}, '
      f'which has {room} examples{of_class}'
    )
  positions = _positions(
    targets, num_shots * len(count) if classes else num_shots, seed
  )
  return Choice(
    positions,
    [targets[p] for p in positions],
    {
      key: [values[p] for p in positions] for key, values in (ids or {}).items()
    },
  )


def _positions(targets: Sequence[str], total: int, seed: int) -> list[int]:
  """Returns `total` ascending positions, as even over labels as can be."""
  # Not of k: a larger choice of the same seed holds the smaller one.
  rng = np.random.default_rng(seed)
  order = rng.permutation(len(targets))
  labels = sorted(set(targets))
  if len(labels) > MAX_LABELS:
    return sorted(order[:total].tolist())
  turn = rng.permutation(len(labels))
  turn_of = {label: turn[i] for i, label in enumerate(labels)}
  # How many examples with the same label come before it: the round in which
  # an example's turn comes.
  seen = dict.fromkeys(labels, 0)
  ranked = []
  for position in order.tolist():
    label = targets[position]
    ranked.append((seen[label], turn_of[label], position))
    seen[label] += 1
  return sorted(position for *_, position in sorted(ranked)[:total])
