"""Gathers what a finished study found from the files of its runs.

Reads only below the study's folder: `pipeline.json` (what ran) and each run's
`results.json`, `metrics.jsonl`, `step.json` and prompts.
"""

from collections.abc import Mapping, Sequence
import math
import os
import statistics
from typing import Any

from mpt_jax.checkpoints import files
from mpt_jax.checkpoints.backbone import find_backbone
from mpt_jax.checkpoints.run import RESULTS
from mpt_jax.engine import metrics
from mpt_jax.study import arms, curves, learned, stats

RECORD = 'pipeline.json'
SKILLS = 'skills.json'
# What needs no training, as rows beside the methods.
MAJORITY, ZERO_SHOT = 'majority class', 'no prompt (zero-shot)'

# What a report has of times: all of it.
TIMED = ('seconds', 'costs')
# What a report has as `pipeline.json` has it.
_AS_RECORDED = (
  *('command', 'device', 'versions', 'backbone', 'data', 'plan', 'rates'),
  'tuning',
)


def collect(folder: str) -> dict[str, Any]:
  """Gathers a study's results.

  Args:
    folder: the study's MODEL_DIR.

  Returns:
    The report without plots; all scores in percent. Times stand below
    `TIMED` alone: the rest is the same however often the study was stopped.

  Raises:
    InputError: if a result is missing.
  """
  record = files.read_json(os.path.join(folder, RECORD))
  plan, data = record['plan'], record['data']
  runs = [_with_results(folder, s) for s in record['steps']]
  targets = {s['name']: _targets(plan, runs, s) for s in plan['settings']}
  variants = [v for v in plan['variants'] if _select(runs, 'source', v)]
  sources = {v: _select(runs, 'source', v) for v in variants}
  source = {v: stats.by_task(found) for v, found in sources.items()}
  meanings = _meanings(runs)
  stages = [
    ('source', source, arms.source_pairs()),
    *((name, found, _compared(plan)) for name, found in targets.items()),
  ]
  groups = _groups(plan, runs)
  return {
    **{name: record[name] for name in _AS_RECORDED},
    'synthetic': any(facts['synthetic'] for facts in data.values()),
    'seeds': plan['seeds'],
    'metrics': _metrics(runs),
    'meanings': meanings,
    'majority': _majority(runs),
    'zero_shot': stats.by_task(_select(runs, 'zero_shot')),
    'skills': _skills(plan['backbone']),
    'teachers': stats.by_task(_select(runs, 'teacher')),
    'source': source,
    'curves': {v: curves.mean_curve(folder, r) for v, r in sources.items()},
    'task_curves': {
      v: curves.task_curves(folder, r) for v, r in sources.items()
    },
    'target_curves': _target_curves(folder, plan, runs),
    'curves_undefined': curves.undefined(folder, _select(runs, 'source')),
    'targets': targets,
    'groups': groups,
    'group_pairs': [
      {'group': group, **row}
      for name, of in groups.items()
      for group, found in of.items()
      for row in stats.pairs(name, found, _compared(plan))
    ],
    'pairs': [row for stage in stages for row in stats.pairs(*stage)],
    'task_pairs': [
      row for stage in stages for row in stats.task_pairs(*stage, meanings)
    ],
    'parameters': learned.parameters(record, folder, runs),
    'costs': {m: learned.costs(folder, runs, m) for m in plan['methods']},
    'similarity': learned.similarity(folder, plan, runs),
    'seconds': {
      'this_call': record['seconds'],
      'all_runs': round(sum(r['seconds'] for r in runs), 1),
      **_seconds(runs),
    },
    'commands': _commands(runs),
    'examples': _examples(folder, runs),
    'plots': [],
  }


def _targets(
  plan: Mapping[str, Any],
  runs: Sequence[Mapping[str, Any]],
  setting: Mapping[str, Any],
) -> dict[str, Any]:
  """The results of each target method in a setting."""
  return {
    method: stats.by_task(_of_setting(runs, method, setting))
    for method in plan['methods']
  }


def _groups(
  plan: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
  """Setting -> group of targets -> method -> its results on them."""
  found: dict[str, dict[str, Any]] = {}
  for group, tasks in (plan.get('groups') or {}).items():
    # The scores of other tasks are not seen.
    inside = [
      {**run, 'scores': {t: s for t, s in run['scores'].items() if t in tasks}}
      for run in _select(runs, 'target')
    ]
    for setting in plan['settings']:
      of = found.setdefault(setting['name'], {})
      of[group] = _targets(plan, inside, setting)
  return found


def _of_setting(
  runs: Sequence[Mapping[str, Any]], method: str, setting: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
  found = _select(runs, 'target', method)
  return [run for run in found if run['setting'] == setting['name']]


def _target_curves(
  folder: str, plan: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
  """Setting -> method -> its curves, of runs that were scored meanwhile."""
  found: dict[str, dict[str, Any]] = {}
  for setting in plan['settings']:
    for method in plan['methods']:
      own = _of_setting(runs, method, setting)
      if drawn := curves.task_curves(folder, own):
        found.setdefault(setting['name'], {})[method] = drawn
  return found


def _compared(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
  """What target arms are compared with: MPT, or the first if it isn't there."""
  methods = plan['methods']
  if arms.OURS in methods:
    return arms.target_pairs()
  return [(methods[0], other) for other in methods[1:]]


def _with_results(folder: str, step: Mapping[str, Any]) -> dict[str, Any]:
  """A step with its seconds and, if it was tested, its test scores."""
  path = os.path.join(folder, step['name'])
  done = files.read_json(os.path.join(path, 'step.json'))
  run = {
    **step,
    'seconds': done['seconds'],
    'command': done['command'],
    'step_bytes': done.get('step_bytes', 0),
  }
  tested = {
    **dict.fromkeys(('teacher', 'source', 'target'), 'test'),
    'zero_shot': '.',
  }
  if step['stage'] in tested:
    found = os.path.join(path, tested[step['stage']], RESULTS)
    if os.path.exists(found):
      run |= _read_scores(files.read_json(found))
  return run


def _read_scores(results: Mapping[str, Any]) -> dict[str, Any]:
  """Main scores, what they mean and what stands beside them, by task."""
  scores, meanings, floors, undefined = {}, {}, {}, []
  for task, values in results['scores'].items():
    said = metrics.from_json(results.get('metrics', {}).get(task, {}))
    name, value = scores[task] = stats.main_score(values, said)
    meanings[task] = said.get(name) or metrics.known(name)
    if values[name] is None or math.isnan(value):
      undefined.append(task)
    beside = results.get('floors', {}).get(task, {})
    floors[task] = beside.get('majority_scores', {}).get(name)
  return {
    'scores': scores,
    'meanings': meanings,
    'floors': floors,
    'marks': {
      stats.COLLAPSED: list(results.get('collapsed', {})),
      stats.UNDEFINED: undefined,
    },
  }


def _examples(
  folder: str, runs: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, int]]:
  """'task/split' -> what of it was cut, hidden or empty, at the most."""
  found: dict[str, dict[str, int]] = {}
  for run in runs:
    for place in ('.', 'test'):
      path = os.path.join(folder, run['name'], place, RESULTS)
      splits = (
        files.read_json(path).get('examples', {})
        if os.path.exists(path)
        else {}
      )
      for split, tasks in splits.items():
        for task, numbers in tasks.items():
          most = found.setdefault(f'{task}/{split}', dict(numbers))
          for name, number in numbers.items():
            most[name] = max(most.get(name, 0), number)
  return found


def _select(
  runs: Sequence[Mapping[str, Any]], stage: str, method: str | None = None
) -> list[Mapping[str, Any]]:
  """The tested runs of a stage, of one method if it is given."""
  return [
    r
    for r in runs
    if r['stage'] == stage
    and 'scores' in r
    and (method is None or r['method'] == method)
  ]


def _meanings(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Task -> what its main score means, as in `results.json`."""
  return metrics.as_json(
    {
      task: facts
      for run in runs
      for task, facts in run.get('meanings', {}).items()
      if facts is not None
    }
  )


def _majority(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Task -> what always giving its test split's commonest class scores."""
  return {
    task: value
    for run in runs
    for task, value in run.get('floors', {}).items()
    if value is not None
  }


def _metrics(runs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """Task -> the name of its main score."""
  return {
    task: name
    for run in runs
    for task, (name, _) in run.get('scores', {}).items()
  }


def _skills(backbone: str) -> dict[str, float]:
  """Task -> what the backbone itself scores on it, in its own words."""
  path = os.path.join(find_backbone(backbone, fetch=False), SKILLS)
  if not os.path.exists(path):
    return {}
  found = files.read_json(path)
  return {
    task: float(found['skills'][skill]['score'])
    for task, skill in found['tasks'].items()
    if skill in found['skills']
  }


def _seconds(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Stage -> seconds of all its runs."""
  stages = dict.fromkeys(r['stage'] for r in runs)
  return {
    stage: round(sum(r['seconds'] for r in runs if r['stage'] == stage), 1)
    for stage in stages
  }


def _commands(runs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """The first command of each kind of run."""
  commands: dict[str, str] = {}
  for run in runs:
    kind = f'{run["stage"]} {run.get("method", "")}'.strip()
    commands.setdefault(kind, run['command'])
  return commands


def baselines(
  report: Mapping[str, Any], tasks: Sequence[str]
) -> dict[str, dict[str, Any]]:
  """What needs no training: name -> results like those of a method.

  A baseline that not all of the tasks have, has no mean.
  """
  majority = {t: v for t, v in report['majority'].items() if t in tasks}
  prompted = report['zero_shot']['tasks']
  rows: dict[str, dict[str, Any]] = {}
  for name, found in (
    (MAJORITY, {t: stats.stat({0: v}) for t, v in majority.items()}),
    (ZERO_SHOT, {t: s for t, s in prompted.items() if t in tasks}),
  ):
    kinds = [report['meanings'].get(t) for t in tasks]
    same = {(m['better'], m['unit']) if m else None for m in kinds}
    mean = None
    if len(found) == len(tasks) and len(same) == 1 and None not in same:
      mean = stats.stat(
        {0: statistics.fmean(s['mean'] for s in found.values())},
        {
          m: [t for t in found if m in found[t]['marks']]
          for m in (stats.COLLAPSED, stats.UNDEFINED)
        },
      )
    if found:
      rows[name] = {'tasks': found, 'mean': mean}
  return rows
