"""Successive halving: of many trials, the best ones are trained for longer.

Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and
Hyperparameter Optimization", AISTATS 2016, algorithm 1. Whether a trial goes
on is decided by Optuna's pruner.
"""

from collections.abc import Sequence
import functools

from mpt_jax.types import InputError


@functools.cache
def rungs(trials: int, steps: int, factor: int) -> tuple[tuple[int, int], ...]:
  """How many trials train for how long.

  Args:
    trials: at the start.
    steps: training steps of the last rung, in which two trials are left at the
      least.
    factor: how much longer each rung trains than the one before.

  Returns:
    (trials, steps) of each rung, whatever the trials' scores are.
  """
  sizes = [trials]
  while (left := len(promoted([0.0] * sizes[-1], factor))) > 1:
    sizes.append(left)
  return tuple(
    (size, max(1, steps // factor ** (len(sizes) - 1 - i)))
    for i, size in enumerate(sizes)
  )


def promoted(gains: Sequence[float], factor: int) -> list[int]:
  """Which trials of a rung go on to the next.

  Optuna decides on a trial when it arrives, by those that came before. Here
  each is decided on as if it came last, and by its rank: how many go on
  depends neither on timing nor on ties, of which the first is the better.

  Args:
    gains: of each trial what more of is better; none is NaN.
    factor: about one in so many goes on.

  Returns:
    Their indices, in order.

  Raises:
    InputError: if Optuna is not installed.
  """
  try:
    import optuna
  except ImportError as e:
    raise InputError(
      "search = 'halving' needs Optuna, which is not installed: pip install"
      " 'mpt_jax[optuna]'"
    ) from e
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  order = sorted(range(len(gains)), key=lambda i: -gains[i])
  ranks = {trial: rank for rank, trial in enumerate(order)}
  pruner = optuna.pruners.SuccessiveHalvingPruner(1, reduction_factor=factor)
  chosen = []
  for last in range(len(gains)):
    study = optuna.create_study(pruner=pruner)  # Of ranks, less is better.
    pruned = False
    for trial in [*(i for i in ranks if i != last), last]:
      asked = study.ask()
      asked.report(ranks[trial], step=1)
      pruned = asked.should_prune()
    if not pruned:
      chosen.append(last)
  return chosen
