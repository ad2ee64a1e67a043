"""Which of several runs counts: the one with the best score on validation.

Nothing of the test split is looked at; what loses is never tested.
"""

from collections.abc import Mapping
import dataclasses
import os
from typing import Any

from mpt_jax.checkpoints import files
from mpt_jax.checkpoints.run import RESULTS
from mpt_jax.engine import metrics, selection
from mpt_jax.engine.trainer import NonFiniteLossError
from mpt_jax.study.steps import BEST, FROM, Step


def resolve(step: Step, folder: str) -> Step:
  """Puts the best of several runs into a step's macros.

  Its `results.json` is then that of the best run, with `picked`, its name, and
  `compared`, the main score of each: None where a run diverged, or the score
  was not defined. Of equal ones the first is taken.

  Args:
    step: the step.
    folder: the study's folder.

  Returns:
    The step as it can be called; itself, if it takes the best of nothing.

  Raises:
    NonFiniteLossError: if every run has diverged.
    InputError: if nobody knows which way of the score is better.
  """
  if not step.best_of:
    return step
  path = os.path.join(folder, step.name)
  found = {
    name: files.read_json(os.path.join(path, FROM, name, RESULTS))
    for name in step.best_of
  }
  task = step.labels['task']
  scores = {name: _main(results, task) for name, results in found.items()}
  if not any(results['scores'] for results in found.values()):
    raise NonFiniteLossError(
      f'of the runs from {", ".join(found)} each has diverged: none is best'
    )
  best = max(found, key=lambda name: scores[name][0])
  results = {
    **found[best],
    'picked': best,
    'compared': {name: value for name, (_, value) in scores.items()},
  }
  files.write_file(os.path.join(path, RESULTS), files.json_bytes(results))
  macros = {
    name: value.replace(BEST, best) if isinstance(value, str) else value
    for name, value in step.macros.items()
  }
  return dataclasses.replace(step, macros=macros)


def _main(results: Mapping[str, Any], task: str) -> tuple[float, float | None]:
  """(what more of is better, the value) of a run's main score."""
  values = results['scores'].get(task)
  if not values:
    return float('-inf'), None
  said = metrics.from_json(results.get('metrics', {}).get(task, {}))
  gain = selection.score_of(values, None, said, task)
  return gain, values[selection.main_metric(values, said)]
