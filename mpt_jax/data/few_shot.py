"""Few-shot selection: k examples of a training split, fixed by a seed."""

from collections.abc import Sequence

import numpy as np

from mpt_jax.types import InputError

# With more different targets than this a task is not a classification, and
# balancing over targets would mean nothing.
MAX_LABELS = 20


def choose(
  targets: Sequence[str], num_shots: int, seed: int, name: str
) -> list[int]:
  """Chooses k examples, as evenly over the labels as there are examples.

  The labels take turns: one example each, then the next round, until k are
  chosen. Who gets the odd ones out is drawn. With more than 20 different
  targets the k examples are drawn from all alike.

  Args:
    targets: the target text of every example, in the data's order.
    num_shots: k, over all labels together.
    seed: fixes the choice.
    name: the task, for the message.

  Returns:
    k ascending positions in `targets`.

  Raises:
    InputError: if k is not in 1..len(targets).
  """
  if not 1 <= num_shots <= len(targets):
    raise InputError(
      f'NUM_SHOTS={num_shots} does not fit the train split of {name!r}, '
      f'which has {len(targets)} examples'
    )
  # Not of k: a larger choice of the same seed holds the smaller one.
  rng = np.random.default_rng(seed)
  order = rng.permutation(len(targets))
  labels = sorted(set(targets))
  if len(labels) > MAX_LABELS:
    return sorted(order[:num_shots].tolist())
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
  return sorted(position for *_, position in sorted(ranked)[:num_shots])
