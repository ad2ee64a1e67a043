"""Scores as they are told, averaged and written."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mpt_jax.engine import metrics, selection
from mpt_jax.engine.metrics import Judgement, Metric

Scores = Mapping[str, Mapping[str, float]]


def format_scores(
  values: Mapping[str, float], judged: Judgement | None = None
) -> str:
  """Writes a task's scores for a log.

  Args:
    values: metric -> value.
    judged: what stands beside them; None is nothing.

  Returns:
    'accuracy 54.0 (95 % 45.3 to 62.6; majority 52.5; invalid 0.0 %; commonest
    answer 97 %: COLLAPSED), f1 80.1'; without `judged` 'accuracy 54.0, f1
    80.1, invalid 0.0'.
  """
  if judged is None or not values:
    return ', '.join(f'{name} {_show(v)}' for name, v in values.items())
  floors = judged.floors
  main = selection.main_metric(values, judged.metrics)
  told = []
  for name in (main, *(n for n in values if n not in (main, *floors))):
    notes = []
    facts = judged.metrics.get(name)
    if facts is not None and facts.better == metrics.LESS:
      notes.append('less is better')
    if name in judged.intervals:
      low, high = judged.intervals[name]
      notes.append(f'95 % {low:.1f} to {high:.1f}')
    if 'majority' in floors:
      floor = floors.get('majority_scores', {}).get(name)
      if floor is None and name == 'accuracy':
        floor = floors['majority']
      if floor is not None:
        notes.append(f'majority {floor:.1f}')
      elif name == main:
        notes.append(f'majority class {floors["majority"]:.1f} %')
    if name == main and floors:
      if name != metrics.INVALID:
        notes.append(f'invalid {floors[metrics.INVALID]:.1f} %')
      notes.append(f'commonest answer {floors[metrics.COMMONEST]:.0f} %')
      if judged.collapsed:
        notes[-1] += ': COLLAPSED'
    told.append(
      f'{name} {_show(values[name])}'
      + (f' ({"; ".join(notes)})' if notes else '')
    )
  return ', '.join(told)


def _show(value: float) -> str:
  return 'undefined' if np.isnan(value) else f'{value:.1f}'


def judgements(
  judged: Mapping[str, Judgement], prefix: str = ''
) -> dict[str, dict[str, Any]]:
  """What `results.json` holds beside scores.

  Args:
    judged: task -> what stands beside its scores.
    prefix: of the names, such as 'test_'.

  Returns:
    {'scored': {task: …}, 'metrics': …, 'floors': …, 'intervals': …,
    'no_interval': …, 'collapsed': …}.
  """
  return {
    f'{prefix}scored': {t: j.examples for t, j in judged.items()},
    f'{prefix}metrics': {
      t: metrics.as_json(j.metrics) for t, j in judged.items()
    },
    f'{prefix}floors': {t: dict(j.floors) for t, j in judged.items()},
    f'{prefix}intervals': {
      t: {name: list(bounds) for name, bounds in j.intervals.items()}
      for t, j in judged.items()
    },
    f'{prefix}no_interval': {
      t: dict(j.no_interval) for t, j in judged.items() if j.no_interval
    },
    f'{prefix}collapsed': {
      t: j.collapsed for t, j in judged.items() if j.collapsed
    },
  }


def mean_score(
  scores: Mapping[str, Mapping[str, float | None]],
  said: Mapping[str, Mapping[str, Metric]],
) -> str:
  """Writes the main scores of some tasks in short.

  Args:
    scores: {task: {metric: value}}.
    said: task -> what its metrics mean, as far as they say it.

  Returns:
    'accuracy 71.5', or of several tasks the mean of their main scores; each by
    itself where these have different units or directions, or unknown ones.
  """
  main = {}
  for task, values in scores.items():
    if values:
      main[task] = selection.main_metric(values, said.get(task))
  known = {
    task: (name, value)
    for task, name in main.items()
    if (value := scores[task][name]) is not None and np.isfinite(value)
  }
  if not known:
    return 'no score'
  if len(main) == 1:
    [(name, value)] = known.values()
    return f'{name} {value:.1f}'
  kinds = [
    said.get(task, {}).get(name) or metrics.known(name)
    for task, (name, _) in known.items()
  ]
  if selection.common_meaning(kinds) is None:
    told = ', '.join(f'{t} {name} {v:.1f}' for t, (name, v) in known.items())
  else:
    mean = sum(value for _, value in known.values()) / len(known)
    told = f'mean {mean:.1f} of {len(known)} tasks'
  left = len(main) - len(known)
  return f'{told} ({left} more have none)' if left else told


def flat_scores(scores: Scores) -> dict[str, float]:
  """{'eval/task/metric': value}, for metric writers."""
  return {
    f'eval/{task}/{name}': value
    for task, values in scores.items()
    for name, value in values.items()
  }


def finite_scores(scores: Scores) -> dict[str, dict[str, float | None]]:
  """JSON knows no NaN (a constant output has no correlation): None."""
  return {
    task: {
      n: None if v is None or not np.isfinite(v) else v
      for n, v in values.items()
    }
    for task, values in scores.items()
  }
