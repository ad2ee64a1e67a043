"""The learning rates of target runs: given, or found by a search."""

from collections.abc import Mapping, Sequence
import dataclasses
import os
from typing import Any

from mpt_jax.checkpoints import files
from mpt_jax.checkpoints.run import RESULTS
from mpt_jax.engine import metrics, selection
from mpt_jax.study import arms, halving
from mpt_jax.study.plan import Plan, Setting
from mpt_jax.types import InputError

# (rate of P* or the plain prompt, rate of u and v or None).
Rates = tuple[float, float | None]
# Setting -> method -> rates.
Chosen = dict[str, dict[str, Rates]]


@dataclasses.dataclass(frozen=True)
class Trial:
  """Rates that a search tries.

  Attributes:
    rates: the rates.
    steps: training steps of its runs.
    rung: how often it was chosen to be trained for longer.
  """

  rates: Rates
  steps: int
  rung: int = 0


def grid(plan: Plan, method: str) -> list[Rates]:
  """The rates that a search tries for a method."""
  assert plan.target_stage.tuning is not None
  return [_rates(r) for r in plan.target_stage.tuning.grids[method]]


def rungs(plan: Plan, setting: Setting) -> tuple[tuple[int, int], ...]:
  """(trials of each method, steps of their runs) of a search, one by one."""
  search = plan.target_stage.tuning
  assert search is not None
  number = len(grid(plan, plan.target_stage.methods[0]))
  if search.search == 'grid':
    return ((number, setting.steps),)
  made = halving.rungs(number, setting.steps, search.reduction_factor)
  if len(made) == 1:
    raise InputError(
      f"search = 'halving' halves nothing: of {number} trials at most one goes"
      f' on with reduction_factor = {search.reduction_factor}; take larger'
      " grids, a smaller factor, or search = 'grid'"
    )
  return made


def trials(plan: Plan, setting: Setting, method: str) -> list[Trial]:
  """All trials of a search, rung by rung.

  Which ones are trained for longer is decided anew at each call, by the files
  of their finished runs; as long as these are not there, others stand for
  them, as many and as long.

  Args:
    plan: the plan, with a search.
    setting: one that is searched.
    method: the target method.
  """
  tried = grid(plan, method)
  search, made = plan.target_stage.tuning, list[Trial]()
  assert search is not None
  for rung, (size, steps) in enumerate(rungs(plan, setting)):
    if rung:
      tried = _go_on(plan, setting, method, made[-len(tried) :], size)
    made += [Trial(r, steps, rung) for r in tried]
  return made


def _go_on(
  plan: Plan, setting: Setting, method: str, rung: list[Trial], size: int
) -> list[Rates]:
  """The rates of a rung that the next one takes; the first ones, if unknown."""
  search = plan.target_stage.tuning
  assert search is not None
  names = [
    name for trial in rung for _, name in runs_of(plan, setting, method, trial)
  ]
  paths = [os.path.join(plan.model_dir, name, RESULTS) for name in names]
  if not all(map(os.path.exists, paths)):
    return [trial.rates for trial in rung[:size]]
  _, gains = _scored(plan, setting, method, rung)
  best = halving.promoted(gains, search.reduction_factor)
  return [rung[i].rates for i in best]


def root(plan: Plan, seed: int) -> str:
  """The folder of a search's runs with one of its seeds."""
  assert plan.target_stage.tuning is not None
  first, *_ = plan.target_stage.tuning.seeds
  return 'tuning' if seed == first else f'tuning/seed{seed}'


def targets_of(plan: Plan) -> list[str]:
  """The target tasks that a search trains on."""
  assert plan.target_stage.tuning is not None
  return list(plan.target_stage.tuning.targets or plan.tasks.targets)


def runs_of(
  plan: Plan,
  setting: Setting,
  method: str,
  trial: Trial,
  seeds: Sequence[int] | None = None,
) -> list[tuple[str, str]]:
  """(task, folder below the study's) of each run of a trial.

  Args:
    plan: the plan, with a search.
    setting: one that is searched.
    method: the target method.
    trial: one of its trials.
    seeds: of the runs; None is all of the search.
  """
  assert plan.target_stage.tuning is not None
  shorter = trial.steps if trial.steps != setting.steps else None
  return [
    (
      task,
      search_name(
        *(setting.name, method, trial.rates, task),
        root=root(plan, seed),
        steps=shorter,
      ),
    )
    for seed in seeds or plan.target_stage.tuning.seeds
    for task in targets_of(plan)
  ]


def search_name(
  setting: str,
  method: str,
  rates: Rates,
  task: str,
  root: str = 'tuning',
  steps: int | None = None,
) -> str:
  """The folder, below the study's, of a search's run that has a task.

  Args:
    setting: the setting.
    method: the target method.
    rates: its rates.
    task: the task.
    root: see `root`.
    steps: of a run that is shorter than the setting's.
  """
  tried = '-'.join(f'{r:g}' for r in rates if r is not None)
  if steps is not None:
    tried = f'{steps}steps/{tried}'
  folder = f'{root}/{setting}/{method}/{tried}'
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
    for method in plan.methods_of(setting):
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
  stage = plan.target_stage
  searched = stage.tuning.settings if stage.tuning else ()
  for setting in (s for s in stage.settings if s.name in searched):
    for method in plan.methods_of(setting):
      best, found = _search_of(plan, setting, method)
      chosen[setting.name][method] = best
      rows += found
  return chosen, rows


def _search_of(
  plan: Plan, setting: Setting, method: str
) -> tuple[Rates, list[dict]]:
  """The best rates of a method, and a row for each that was tried."""
  made = trials(plan, setting, method)
  rows: dict[Rates, dict] = {}
  best = made[0].rates
  for rung in range(made[-1].rung + 1):
    tried = [trial for trial in made if trial.rung == rung]
    found, gains = _scored(plan, setting, method, tried)
    best = tried[gains.index(max(gains))].rates
    # Of one that went on, its longest runs.
    rows |= {t.rates: row for t, row in zip(tried, found, strict=True)}
  for trial in made:
    row = rows[trial.rates]
    row['total_steps'] = row.get('total_steps', 0) + _cost(plan, method, trial)
    row['pruned'] = row['steps'] < setting.steps
  rows[best]['chosen'] = True
  rows[best]['on_edge'] = _on_edge(best, grid(plan, method))
  return best, list(rows.values())


def _cost(plan: Plan, method: str, trial: Trial) -> int:
  """Training steps of all runs of a trial."""
  search, tasks = plan.target_stage.tuning, plan.tasks
  assert search is not None
  runs = len(targets_of(plan))
  if arms.TARGETS[method].start == arms.EACH:
    runs = sum(
      len(set(tasks.source_tasks) - {target}) for target in targets_of(plan)
    )
  return trial.steps * len(search.seeds) * runs


def told(tuning: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
  """Says how the rates were searched, and what that took.

  Args:
    tuning: the search, as a report's plan has it.
    rows: the search, as a report has it; see `tuned`.
  """
  seeds = tuning['seed']
  seeds = [seeds] if isinstance(seeds, int) else seeds
  spent: dict[tuple[str, str], list[int]] = {}
  for row in rows:
    key = row['setting'], row['method']
    spent.setdefault(key, []).append(row.get('total_steps', 0))
  most = max(map(len, spent.values()))
  on = ', '.join(tuning.get('targets') or ()) or 'targets'
  text = (
    f'Searched with seed{"s"[: len(seeds) - 1]}'
    f' {", ".join(map(str, seeds))}, which {"are" if seeds[1:] else "is"} not'
    ' reported, on the validation split; every method had'
    f' {most} trial{"s"[: most - 1]} in each setting;'
    f' the best mean over {on} wins.'
  )
  if tuning.get('search') == 'halving':
    text += (
      ' By successive halving: all trials began with short runs, and only the'
      ' best were trained for longer; scores are those of the longest.'
    )
  for setting in dict.fromkeys(setting for setting, _ in spent):
    steps = {m: sum(n) for (s, m), n in spent.items() if s == setting}
    common = min(steps.values())
    if common:
      others = [f'{m} {n:,}' for m, n in steps.items() if n != common]
      text += f' Steps of each method at {setting}: {common:,}'
      text += f', but {", ".join(others)}.' if others else '.'
  return text


def _scored(
  plan: Plan, setting: Setting, method: str, rung: Sequence[Trial]
) -> tuple[list[dict[str, Any]], list[float]]:
  """Finished trials of one length: their rows, and what more of is better."""
  found = [_row(plan, setting, method, trial) for trial in rung]
  together = _common_metric([meanings for _, _, meanings in found])
  rows, gains = [], []
  for row, by_seed, _ in found:
    filled = {
      task: [_filled(v, together) for v in values]
      for task, values in by_seed.items()
    }
    # As it was scored, if there is but one.
    row['scores'] = {
      task: values[0]
      if len(values) == 1 or not any(v is not None for v in values)
      else _mean(filled[task])
      for task, values in by_seed.items()
    }
    row['mean'] = _mean([v for values in filled.values() for v in values])
    rows.append(row)
    gains.append(together.gain(row['mean']))
  return rows, gains


def _mean(values: Sequence[float | None]) -> float | None:
  """The mean; None if it lacks a value."""
  known = [v for v in values if v is not None]
  return sum(known) / len(known) if len(known) == len(values) else None


def _row(
  plan: Plan, setting: Setting, method: str, trial: Trial
) -> tuple[
  dict[str, Any], dict[str, list[float | None]], dict[str, metrics.Metric]
]:
  """A trial for the report, its scores and what they mean, by task.

  A score is None where it is not defined or the run diverged.
  """
  scores: dict[str, list[float | None]] = {}
  meanings = {}
  for task, name in runs_of(plan, setting, method, trial):
    results = files.read_json(os.path.join(plan.model_dir, name, RESULTS))
    values = results['scores'].get(task)
    score = None
    if values:
      said = metrics.from_json(results.get('metrics', {}).get(task, {}))
      main = selection.main_metric(values, said)
      meanings[task] = metrics.meaning(main, said, task)
      score = values[main]
    scores.setdefault(task, []).append(score)
  row = {
    'setting': setting.name,
    'method': method,
    'rates': list(trial.rates),
    'steps': trial.steps,
  }
  return row, scores, meanings


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
