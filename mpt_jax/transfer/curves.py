"""What is faster: learning curves of two starts, and ratios of their steps.

Su et al., "On Transferability of Prompt Tuning for Natural Language
Processing", NAACL 2022, have two speed-ups; when a run converges
is not said there, and is what `definitions` says here.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import statistics
from typing import Any

from mpt_jax.study import stats

_LEAST = 3  # values, of whose mean an interval says something


def definitions(tolerance: float, period: int) -> dict[str, str]:
  """Returns in words what the numbers of two runs mean.

  Args:
    tolerance: points of the score.
    period: steps between two evaluations.
  """
  return {
    'step 0': 'the score of the start itself, before training',
    'convergence': 'the first evaluation, step 0 included, within'
    f' {tolerance:g} points of the best of the run, in training steps; one'
    ' whose answers say next to nothing (collapsed) does not count',
    'convergence speed-up': 'steps to the convergence of scratch / steps to the'
    " transferred start's own",
    'comparable-result speed-up': 'steps to the convergence of scratch / steps'
    ' to the first evaluation of the transferred start that is at least the'
    ' best of scratch',
    'reached at step 0': f'counts as {period} steps, which is what evaluations'
    f' every {period} steps can tell; the speed-up of a transferred start that'
    ' was there at once is a bound from below',
    'not reached': 'there is no such evaluation: a result, which is null here'
    ' and counted, and no part of a mean',
    'mean': 'geometric, over seeds (of all tasks: over the means of tasks);'
    ' interval of 95 % by the t distribution of the logarithms, of fewer than'
    ' three none',
  }


@dataclasses.dataclass(frozen=True)
class Curve:
  """A run's evaluations.

  Attributes:
    steps: ascending, the first is 0.
    scores: at each; None is not defined.
    collapsed: at each, whether the score says next to nothing.
    less: whether less of the metric is better.
  """

  steps: Sequence[int]
  scores: Sequence[float | None]
  collapsed: Sequence[bool]
  less: bool = False

  @property
  def gains(self) -> list[float]:
    """The scores as numbers of which more is better."""
    sign = -1 if self.less else 1
    return [-math.inf if s is None else sign * s for s in self.scores]

  @property
  def best(self) -> float | None:
    """The best score."""
    gains = self.gains
    return self.scores[gains.index(max(gains))]

  def first(self, gain: float) -> int | None:
    """The first step with such a gain, if its answers have not collapsed."""
    for step, value, collapsed in zip(
      self.steps, self.gains, self.collapsed, strict=True
    ):
      if value >= gain > -math.inf and not collapsed:
        return step
    return None

  def convergence(self, tolerance: float) -> int | None:
    """The first step within some points of the best; None if there is none."""
    return self.first(max(self.gains) - tolerance)

  def as_json(self) -> dict[str, Any]:
    """Steps, scores and what is behind them, as lists."""
    return {
      'steps': list(self.steps),
      'scores': list(self.scores),
      'collapsed': list(self.collapsed),
    }


def compare(
  scratch: Curve, transfer: Curve, tolerance: float, period: int
) -> dict[str, Any]:
  """Returns how much faster a transferred start was than scratch.

  Args:
    scratch: the run with the method's own start.
    transfer: the run with the transferred one, evaluated at the same steps.
    tolerance: see `definitions`.
    period: see `definitions`.

  Returns:
    Of both `step0`, `final`, `best` and the step of `convergence` (None: not
    reached), those of scratch as `scratch_…`; `comparable`, the step at which
    the transferred start is as good as the best of scratch; the two speed-ups,
    None where one of their steps is not there; `bound`, whether a step 0 is
    behind them; `why`, in words, what is not there.

  Raises:
    ValueError: if they were evaluated at different steps.
  """
  if list(scratch.steps) != list(transfer.steps):
    raise ValueError(f'evaluated at {scratch.steps} and at {transfer.steps}')
  ours, theirs = (c.convergence(tolerance) for c in (transfer, scratch))
  comparable = transfer.first(max(scratch.gains))
  why = []
  if theirs is None:
    why.append('scratch did not converge: its best answers say next to nothing')
  if ours is None:
    why.append('the transferred start did not converge: likewise')
  if comparable is None:
    why.append('the best of scratch was not reached')

  def speedup(step: int | None) -> float | None:
    if step is None or theirs is None:
      return None
    return max(theirs, period) / max(step, period)

  return {
    **_facts(transfer, ours, ''),
    **_facts(scratch, theirs, 'scratch_'),
    'comparable': comparable,
    'convergence_speedup': speedup(ours),
    'comparable_speedup': speedup(comparable),
    'bound': 0 in (ours, theirs, comparable),
    'why': '; '.join(why),
  }


def _facts(curve: Curve, step: int | None, prefix: str) -> dict[str, Any]:
  values = {
    'step0': curve.scores[0],
    'final': curve.scores[-1],
    'best': curve.best,
    'convergence': step,
    'collapsed': bool(curve.collapsed[-1]),
  }
  return {prefix + name: value for name, value in values.items()}


def mean_ratio(ratios: Sequence[float | None]) -> dict[str, Any]:
  """Returns the geometric mean of what was reached, and how often it was.

  Args:
    ratios: above 0; None is not reached.

  Returns:
    `mean`, `low` and `high` (None where too few are there), `reached` and
    `not_reached`, how many.
  """
  logs = [math.log(ratio) for ratio in ratios if ratio is not None]
  mean = statistics.fmean(logs) if logs else None
  low, high = _interval(logs)
  return {
    **{
      name: None if value is None else math.exp(value)
      for name, value in (('mean', mean), ('low', low), ('high', high))
    },
    'reached': len(logs),
    'not_reached': len(ratios) - len(logs),
  }


def mean_score(scores: Sequence[float | None]) -> dict[str, Any]:
  """Returns the mean of scores with its interval; `n` are defined."""
  known = [score for score in scores if score is not None]
  low, high = _interval(known)
  return {
    'mean': statistics.fmean(known) if known else None,
    'low': low,
    'high': high,
    'n': len(known),
  }


def _interval(values: Sequence[float]) -> tuple[float | None, float | None]:
  """Of the mean, 95 % by the t distribution; of fewer than three none."""
  found = stats.interval(values) if len(values) >= _LEAST else None
  return found or (None, None)


def best_rate(finals: Mapping[float, Sequence[float]]) -> float:
  """Returns the rate with the best mean gain at the end; of equals the least.

  Args:
    finals: rate -> gain of each seed's last evaluation, -inf where it diverged.
  """
  return max(sorted(finals), key=lambda rate: statistics.fmean(finals[rate]))
