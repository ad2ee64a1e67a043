"""The learning curves of a study's runs, read from their metrics."""

from collections.abc import Iterator, Mapping, Sequence
import math
import os
import statistics
from typing import Any

from mpt_jax.engine import metrics, selection
from mpt_jax.engine.writers import METRICS, read_metrics
from mpt_jax.study import stats

Run = Mapping[str, Any]


def mean_curve(folder: str, runs: Sequence[Run]) -> dict[str, list[float]]:
  """Mean validation score over tasks by step, for each seed.

  Args:
    folder: the study's.
    runs: runs of an arm, one of each seed, with their scores and meanings.

  Returns:
    {'steps': those that all seeds have, 'seed0': their scores, …}.
  """
  return _common(
    {
      run['seed']: {
        step: statistics.fmean(
          stats.main_score(v, _said(run, task))[1] for task, v in tasks.items()
        )
        for step, tasks in _evaluations(folder, run)
        if selection.common_meaning(run['meanings'].values())
      }
      for run in runs
    }
  )


def task_curves(
  folder: str, runs: Sequence[Run]
) -> dict[str, dict[str, list[float]]]:
  """The same of each task; a score that is not defined ends its curve.

  Args:
    folder: the study's.
    runs: runs of an arm, of some seeds and tasks.
  """
  found: dict[str, dict[int, dict[int, float]]] = {}
  for run in runs:
    for step, tasks in _evaluations(folder, run):
      for task, values in tasks.items():
        score = stats.main_score(values, _said(run, task))[1]
        if not math.isnan(score):
          points = found.setdefault(task, {}).setdefault(run['seed'], {})
          points[step] = score
  curves = {task: _common(seeds) for task, seeds in found.items()}
  return {task: curve for task, curve in curves.items() if curve['steps']}


def _common(curves: Mapping[int, Mapping[int, float]]) -> dict[str, Any]:
  """Scores of the steps that all seeds have."""
  each = [set(points) for points in curves.values()]
  steps = sorted(set.intersection(*each)) if each else []
  return {
    'steps': [float(s) for s in steps],
    **{
      f'seed{seed}': [points[s] for s in steps]
      for seed, points in curves.items()
    },
  }


def undefined(folder: str, runs: Sequence[Run]) -> int:
  """How many main scores of the curves are not defined."""
  return sum(
    math.isnan(values[selection.main_metric(values, _said(run, task))])
    for run in runs
    for _, tasks in _evaluations(folder, run)
    for task, values in tasks.items()
  )


def _evaluations(
  folder: str, run: Run
) -> Iterator[tuple[int, dict[str, dict[str, float]]]]:
  """Yields (step, {task: {metric: value}}) of a run's metrics."""
  for values in read_metrics(os.path.join(folder, run['name'], METRICS)):
    tasks: dict[str, dict[str, float]] = {}
    for key, value in values.items():
      if key.startswith('eval/'):
        _, task, name = key.split('/', 2)
        tasks.setdefault(task, {})[name] = value
    if tasks:
      yield values['step'], tasks


def _said(run: Run, task: str) -> dict[str, metrics.Metric]:
  """What a tested run's main score of a task means, by its name."""
  if run['meanings'].get(task) is None:
    return {}
  return {run['scores'][task][0]: run['meanings'][task]}
