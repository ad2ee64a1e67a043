"""The learning rates of target runs: given, or found by a search."""

from collections.abc import Mapping, Sequence
import os
from typing import Any

from mpt_jax.checkpoints import files
from mpt_jax.checkpoints.run import RESULTS
from mpt_jax.engine import metrics, selection
from mpt_jax.study import arms
from mpt_jax.study.plan import Plan
from mpt_jax.types import InputError

# (rate of P* or the plain prompt, rate of u and v or None).
Rates = tuple[float, float | None]
# Setting -> method -> rates.
Chosen = dict[str, dict[str, Rates]]


def grid(plan: Plan, method: str) -> list[Rates]:
  """The rates that a search tries for a method."""
  assert plan.target_stage.tuning is not None
  return [_rates(r) for r in plan.target_stage.tuning.grids[method]]


def search_name(setting: str, method: str, rates: Rates, task: str) -> str:
  """The folder, below the study's, of a search's run that has a task."""
  tried = '-'.join(f'{r:g}' for r in rates if r is not None)
  folder = f'tuning/{setting}/{method}/{tried}'
  return folder if arms.TARGETS[method].together else f'{folder}/{task}'


def given(plan: Plan) -> Chosen:
  """The rates in the settings, or the first ones of the grids.

  Raises:
    InputError: if a setting lacks a method's rates and nothing is tuned.
  """
  stage = plan.target_stage
  chosen: Chosen = {}
  for setting in stage.settings:
    if setting.tuned_as is not None:
      continue
    chosen[setting.name] = {}
    for method in stage.methods:
      if method in setting.rates:
        chosen[setting.name][method] = _rates(setting.rates[method])
      elif stage.tuning and setting.name in stage.tuning.settings:
        chosen[setting.name][method] = grid(plan, method)[0]
      else:
        raise InputError(
          f'setting {setting.name!r} has no learning rates for {method!r}: give'
          ' them in its rates, or a grid in TUNING'
        )
  return chosen


def check_metrics(
  declared: Mapping[str, tuple[Mapping[str, metrics.Metric], bool]],
) -> None:
  """Refuses a search whose scores cannot be compared, before it runs.

  Args:
    declared: of each target what its metric functions say, and whether that
      is all they give.

  Raises:
    InputError: if the targets' main scores have no common mean.
  """
  selection.check_declared(declared, None)
  _common_metric(
    [
      {task: said[selection.main_metric(said, said)]}
      for task, (said, whole) in declared.items()
      if whole
    ]
  )


def tuned(plan: Plan) -> tuple[Chosen, list[dict]]:
  """Reads the finished search.

  Args:
    plan: the plan; its search may be None.

  Returns:
    (the best rates by the mean over the targets, the whole search as rows for
    the report).

  Raises:
    InputError: if the targets' scores have no common mean.
  """
  chosen = given(plan)
  rows: list[dict] = []
  search = plan.target_stage.tuning
  for setting in search.settings if search else ():
    for method in plan.target_stage.methods:
      tried = grid(plan, method)
      found = [_row(plan, setting, method, rates) for rates in tried]
      together = _common_metric([meanings for _, meanings in found])
      for row, _ in found:
        values = [_filled(v, together) for v in row['scores'].values()]
        known = [v for v in values if v is not None]
        row['mean'] = (
          sum(known) / len(known) if len(known) == len(values) else None
        )
        rows.append(row)
      gains = [together.gain(row['mean']) for row, _ in found]
      best = gains.index(max(gains))
      chosen[setting][method] = tried[best]
      found[best][0]['chosen'] = True
      found[best][0]['on_edge'] = _on_edge(tried[best], tried)
  return chosen, rows


def _row(
  plan: Plan, setting: str, method: str, rates: Rates
) -> tuple[dict[str, Any], dict[str, metrics.Metric]]:
  """The search's scores of one pair of rates, and what they mean, by task.

  A score is None where it is not defined or the run diverged.
  """
  scores: dict[str, float | None] = {}
  meanings = {}
  for task in plan.tasks.targets:
    name = search_name(setting, method, rates, task)
    results = files.read_json(os.path.join(plan.model_dir, name, RESULTS))
    values = results['scores'].get(task)
    scores[task] = None
    if values:
      said = metrics.from_json(results.get('metrics', {}).get(task, {}))
      main = selection.main_metric(values, said)
      meanings[task] = metrics.meaning(main, said, task)
      scores[task] = values[main]
  row = {'setting': setting, 'method': method, 'rates': list(rates)}
  return {**row, 'scores': scores}, meanings


def _common_metric(
  found: Sequence[Mapping[str, metrics.Metric]],
) -> metrics.Metric:
  """What the mean over the targets means.

  Args:
    found: what is known of each target's main score, maybe in many runs.

  Raises:
    InputError: if the targets' scores have no common mean.
  """
  kinds = {task: m for meanings in found for task, m in meanings.items()}
  if not kinds:
    return metrics.KNOWN['accuracy']  # Every run diverged.
  return selection.require_common(
    kinds,
    'TUNING compares means over the targets, whose main scores have none',
    'set TUNING = None and give each setting its rates',
  )


def _filled(value: float | None, meaning: metrics.Metric) -> float | None:
  """A score, or what stands for one that is not defined."""
  return meaning.stand_in() if value is None else value


def _rates(value: Any) -> Rates:
  """(shared rate, task rate or None) from a number or a pair."""
  if isinstance(value, (int, float)):
    return float(value), None
  shared, task = value
  return float(shared), None if task is None else float(task)


def _on_edge(best: Rates, tried: Sequence[Rates]) -> bool:
  """Whether a rate is the smallest or largest of those tried."""
  for i, value in enumerate(best):
    axis = sorted({r for rates in tried if (r := rates[i]) is not None})
    if len(axis) > 1 and value in (axis[0], axis[-1]):
      return True
  return False
