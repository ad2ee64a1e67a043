"""Numbers of a study's report: means, spreads and differences over seeds."""

from collections.abc import Mapping, Sequence
import functools
import math
import statistics
from typing import Any

from mpt_jax.engine import metrics, selection

# A score behind which stands one answer to nearly everything, or none at all;
# and one that was not defined.
COLLAPSED, UNDEFINED = '†', '‡'

Stat = dict[str, Any]


def main_score(
  values: Mapping[str, float | None],
  said: Mapping[str, metrics.Metric] | None = None,
) -> tuple[str, float]:
  """A task's main score.

  Args:
    values: the task's metrics; None stands for one that is not defined, such
      as a correlation with a constant.
    said: what they mean, as `results.json` holds it.

  Returns:
    (name, value): accuracy if there is one, else the first of F1, exact
    match, Matthews, Pearson. An undefined one counts as 0; where less is
    better as the worst there is, NaN if there is no worst.

  Raises:
    InputError: if the task has no metric.
  """
  name = selection.main_metric(values, said)
  value = values[name]
  if value is None or math.isnan(value):
    facts = (said or {}).get(name) or metrics.known(name)
    value = facts.stand_in() if facts else 0.0
  return name, math.nan if value is None else float(value)


def stat(
  values: Mapping[Any, float], marks: Mapping[str, Any] | None = None
) -> Stat:
  """Mean, spread and interval over seeds; None where one seed has none.

  Args:
    values: seed -> score.
    marks: mark -> what is marked by it.
  """
  numbers = list(values.values())
  low, high = interval(numbers) or (None, None)
  return {
    'values': {str(seed): round(v, 3) for seed, v in values.items()},
    'mean': statistics.fmean(numbers),
    'std': statistics.stdev(numbers) if len(numbers) > 1 else None,
    'low': low,
    'high': high,
    'n': len(numbers),
    'marks': {mark: which for mark, which in (marks or {}).items() if which},
  }


def by_task(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Scores of several runs, one of each task or of all, of some seeds.

  Args:
    runs: with the scores, meanings and marks of their tasks.

  Returns:
    {'tasks': {task: stat}, 'mean': stat of each seed's mean, None if the
    tasks' scores have no common mean, 'better': 'more', 'less' or None}.
  """
  found: dict[str, dict[int, float]] = {}
  marks: dict[str, dict[str, list[int]]] = {}
  meanings: dict[str, metrics.Metric | None] = {}
  for run in runs:
    for task, (_, value) in run['scores'].items():
      meanings[task] = run['meanings'][task]
      if math.isnan(value):
        meanings[task] = None  # Undefined, and nothing stands for it.
        continue
      found.setdefault(task, {})[run.get('seed', 0)] = value
      for mark, tasks in run['marks'].items():
        if task in tasks:
          marked = marks.setdefault(task, {}).setdefault(mark, [])
          marked.append(run.get('seed', 0))
  together = selection.common_meaning(meanings.values())
  mean = None
  if together is not None:
    seeds = sorted({seed for scores in found.values() for seed in scores})
    means = {
      seed: statistics.fmean([scores[seed] for scores in found.values()])
      for seed in seeds
    }
    mean = stat(
      means,
      {m: [t for t in marks if m in marks[t]] for m in (COLLAPSED, UNDEFINED)},
    )
  return {
    'tasks': {t: stat(v, marks.get(t)) for t, v in found.items()},
    'mean': mean,
    'better': together.better if together else None,
  }


def pairs(
  where: str,
  results: Mapping[str, Any],
  compared: Sequence[tuple[str, str]],
) -> list[dict[str, Any]]:
  """Differences of means over tasks between arms, seed by seed.

  Args:
    where: the stage or setting.
    results: arm -> its results, from `by_task`.
    compared: pairs of arms; those that have no mean are left out.
  """
  rows = []
  for first, second in compared:
    if not all(results.get(m, {}).get('mean') for m in (first, second)):
      continue
    ours, theirs = (results[m]['mean'] for m in (first, second))
    found = difference(ours, theirs, results[first]['better'])
    if found:
      rows.append({'where': where, 'first': first, 'second': second, **found})
  return rows


def task_pairs(
  where: str,
  results: Mapping[str, Any],
  compared: Sequence[tuple[str, str]],
  meanings: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
  """The same for each task whose score's direction is known.

  Args:
    where: the stage or setting.
    results: arm -> its results, from `by_task`.
    compared: pairs of arms.
    meanings: task -> what its main score means.
  """
  rows = []
  for first, second in compared:
    ours, theirs = (
      results.get(m, {}).get('tasks', {}) for m in (first, second)
    )
    for task in theirs:
      if task not in ours or task not in meanings:
        continue
      found = difference(ours[task], theirs[task], meanings[task]['better'])
      if found:
        who = {'where': where, 'first': first, 'second': second}
        rows.append({**who, 'task': task, **found})
  return rows


def difference(ours: Stat, theirs: Stat, better: str) -> dict[str, Any] | None:
  """How far a score is ahead of another, paired by seed.

  Args:
    ours: a score.
    theirs: another.
    better: 'more' or 'less'.

  Returns:
    `values` by seed, in favour of the first, their `mean`, its standard error
    `se`, the interval `low` to `high` (None of one seed) and their number `n`;
    None if the two have no seed in common.
  """
  sign = -1 if better == metrics.LESS else 1
  values = {
    seed: round(sign * (score - theirs['values'][seed]), 3)
    for seed, score in ours['values'].items()
    if seed in theirs['values']
  }
  if not values:
    return None
  numbers = list(values.values())
  low, high = interval(numbers) or (None, None)
  return {
    'values': values,
    'mean': statistics.fmean(numbers),
    'se': standard_error(numbers),
    'low': low,
    'high': high,
    'n': len(numbers),
  }


def interval(values: Sequence[float]) -> tuple[float, float] | None:
  """95 % for the mean by Student's t; None of one value, which has none."""
  error = standard_error(values)
  if error is None:
    return None
  mean, width = statistics.fmean(values), _quantile(len(values) - 1) * error
  return mean - width, mean + width


@functools.cache
def _quantile(freedom: int) -> float:
  # Imported here: whoever only reads a report does without.
  from scipy import special

  return float(special.stdtrit(freedom, 0.975))


def told_apart(found: Mapping[str, Any]) -> int | None:
  """The sign of a difference whose interval leaves out 0; else 0.

  None of one seed, which has no interval.
  """
  if found['low'] is None:
    return None
  return (found['low'] > 0) - (found['high'] < 0)


def standard_error(values: Sequence[float]) -> float | None:
  """Of a mean over seeds; None of one seed, which has none."""
  if len(values) < 2:
    return None
  return statistics.stdev(values) / math.sqrt(len(values))


def verdict(value: float, error: float | None) -> int | None:
  """The sign of a difference; 0 within its standard error, None of a seed."""
  if error is None:
    return None
  return 0 if abs(value) <= error else int(math.copysign(1, value))
