"""Gathers what a finished study found from the files of its runs.

Reads only below the study's folder: `pipeline.json` (what ran) and each run's
`results.json`, `metrics.jsonl`, `step.json` and prompts.
"""

from collections.abc import Iterator, Mapping, Sequence
import json
import math
import os
import statistics
from typing import Any

import numpy as np

from mpt_jax import methods, t5
from mpt_jax.checkpoints import bundle as bundle_lib
from mpt_jax.checkpoints import files
from mpt_jax.checkpoints.backbone import find_backbone
from mpt_jax.checkpoints.run import RESULTS
from mpt_jax.engine import metrics, selection
from mpt_jax.engine.outcome import BACKBONE, PROMPTS
from mpt_jax.engine.writers import METRICS, read_metrics
from mpt_jax.study import arms, bars, stats

RECORD = 'pipeline.json'
SKILLS = 'skills.json'
# What needs no training, as rows beside the methods.
MAJORITY, ZERO_SHOT = 'majority class', 'no prompt (zero-shot)'

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
    The report without plots; all scores in percent.

  Raises:
    InputError: if a result is missing.
  """
  record = files.read_json(os.path.join(folder, RECORD))
  plan, data = record['plan'], record['data']
  runs = [_with_results(folder, s) for s in record['steps']]
  targets = {s['name']: _targets(plan, runs, s) for s in plan['settings']}
  variants = [v for v in plan['variants'] if _select(runs, 'source', v)]
  source = {v: stats.by_task(_select(runs, 'source', v)) for v in variants}
  report: dict[str, Any] = {
    **{name: record[name] for name in _AS_RECORDED},
    'synthetic': any(facts['synthetic'] for facts in data.values()),
    'seeds': plan['seeds'],
    'metrics': _metrics(runs),
    'meanings': _meanings(runs),
    'majority': _majority(runs),
    'zero_shot': stats.by_task(_select(runs, 'zero_shot')),
    'skills': _skills(plan['backbone']),
    'teachers': stats.by_task(_select(runs, 'teacher')),
    'source': source,
    'curves': {v: _curve(folder, _select(runs, 'source', v)) for v in variants},
    'curves_undefined': _undefined(folder, _select(runs, 'source')),
    'targets': targets,
    'pairs': stats.pairs('source', source, arms.source_pairs())
    + [
      pair
      for name, found in targets.items()
      for pair in stats.pairs(name, found, arms.target_pairs())
    ],
    'parameters': _parameters(record, folder, runs),
    'costs': {m: _costs(folder, runs, m) for m in plan['methods']},
    'similarity': _similarity(folder, plan, runs),
    'seconds': {
      'this_call': record['seconds'],
      'all_runs': round(sum(r['seconds'] for r in runs), 1),
      **_seconds(runs),
    },
    'commands': _commands(runs),
    'examples': _examples(folder, runs),
    'plots': [],
  }
  # They were set for the embedded benchmark, and say nothing elsewhere.
  own = all(facts['synthetic'] for facts in data.values())
  asked = own and plan.get('benchmark_bars')
  report['bars'] = bars.measure(report) if asked else []
  return report


def _targets(
  plan: Mapping[str, Any],
  runs: Sequence[Mapping[str, Any]],
  setting: Mapping[str, Any],
) -> dict[str, Any]:
  """The results of each target method in a setting."""
  return {
    method: stats.by_task(
      [
        r
        for r in _select(runs, 'target', method)
        if r['setting'] == setting['name']
      ]
    )
    for method in plan['methods']
  }


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


def _curve(
  folder: str, runs: Sequence[Mapping[str, Any]]
) -> dict[str, list[float]]:
  """Mean validation score over tasks by step, for each seed."""
  curves: dict[str, dict[int, float]] = {}
  for run in runs:
    curves[str(run['seed'])] = {
      step: statistics.fmean(
        stats.main_score(v, _said(run, task))[1] for task, v in tasks.items()
      )
      for step, tasks in _evaluations(folder, run)
      if selection.common_meaning(run['meanings'].values())
    }
  steps = sorted(set.intersection(*(set(p) for p in curves.values())))
  return {
    'steps': [float(s) for s in steps],
    **{
      f'seed{seed}': [points[s] for s in steps]
      for seed, points in curves.items()
    },
  }


def _evaluations(
  folder: str, run: Mapping[str, Any]
) -> Iterator[tuple[int, dict[str, dict[str, float]]]]:
  """Yields (step, {task: {metric: value}}) of a run's metrics."""
  path = os.path.join(folder, run['name'], 'metrics.jsonl')
  with open(path, encoding='utf-8') as f:
    for line in f:
      values = json.loads(line)
      tasks: dict[str, dict[str, float]] = {}
      for key, value in values.items():
        if key.startswith('eval/'):
          _, task, name = key.split('/', 2)
          tasks.setdefault(task, {})[name] = value
      if tasks:
        yield values['step'], tasks


def _undefined(folder: str, runs: Sequence[Mapping[str, Any]]) -> int:
  """How many main scores of the curves are not defined."""
  return sum(
    math.isnan(values[selection.main_metric(values, _said(run, task))])
    for run in runs
    for _, tasks in _evaluations(folder, run)
    for task, values in tasks.items()
  )


def _said(run: Mapping[str, Any], task: str) -> dict[str, metrics.Metric]:
  """What a tested run's main score of a task means, by its name."""
  if run['meanings'].get(task) is None:
    return {}
  return {run['scores'][task][0]: run['meanings'][task]}


def _skills(backbone: str) -> dict[str, float]:
  """Task -> what the backbone itself scores on it, in its own words."""
  path = os.path.join(find_backbone(backbone), SKILLS)
  if not os.path.exists(path):
    return {}
  found = files.read_json(path)
  return {
    task: float(found['skills'][skill]['score'])
    for task, skill in found['tasks'].items()
    if skill in found['skills']
  }


def _parameters(
  record: Mapping[str, Any], folder: str, runs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
  """Trained numbers per target task, by the methods' closed formulas."""
  plan, backbone = record['plan'], record['backbone']
  rank = plan['prompt_rank']
  if any(run['stage'] == 'teacher' for run in runs):
    run = next(r for r in runs if r['stage'] == 'teacher')
    prompts = _bundle(folder, run)
    length, width = prompts.prompt_length, prompts.emb_dim
  else:
    length, width = plan['prompt_length'], backbone['config']['emb_dim']
  sizes: Any = methods.Width(width)
  if 'config' in backbone:
    sizes = t5.T5Config.from_dict(backbone['config'])
  counts = {}
  for name in plan['methods']:
    if arms.TARGETS[name].product == BACKBONE:
      counts[name] = backbone['parameters']
    # The method with the settings that it had.
    elif own := [run for run in runs if _is_target(run, name)]:
      learned = _bundle(folder, own[0])
      tasks = len(learned.task_names)
      counts[name] = learned.learner.num_parameters(sizes, tasks) // tasks
  ours = methods.prompt_method(arms.TARGETS[arms.OURS].method, length, rank)
  return {
    'prompt_length': length,
    'emb_dim': width,
    'rank': rank,
    'targets': len(plan['targets']),
    'methods': counts,
    'group': ours.num_parameters(sizes, len(plan['targets']))
    / len(plan['targets']),
  }


def _bundle(folder: str, run: Mapping[str, Any]) -> bundle_lib.PromptBundle:
  """What a run has learned, but for a backbone."""
  return bundle_lib.load_prompts(os.path.join(folder, run['name'], PROMPTS))


def _is_target(run: Mapping[str, Any], method: str) -> bool:
  return (run['stage'], run.get('method')) == ('target', method)


def _costs(
  folder: str, runs: Sequence[Mapping[str, Any]], method: str
) -> dict[str, float | None]:
  """What a training step of a target method takes; None if nobody knows.

  Seconds are those of the fastest of its runs, also of the search: they shared
  the machine with others. Bytes are the compiler's.
  """
  own = [
    run
    for run in runs
    if run['stage'] in ('target', 'candidate', 'tuning')
    and run['method'] == method
  ]
  seconds = [s for run in own if (s := _step_seconds(folder, run))]
  needs = max((run['step_bytes'] for run in own), default=0)
  return {
    'step_seconds': min(seconds, default=None),
    'step_bytes': needs or None,
  }


def _step_seconds(folder: str, run: Mapping[str, Any]) -> float | None:
  """Of a run's steps, without compilation and evaluations."""
  path = os.path.join(folder, run['name'], METRICS)
  rates = [
    line['train/steps_per_second']
    for line in read_metrics(path)
    if 'train/steps_per_second' in line
  ]
  return 1 / rates[-1] if rates and rates[-1] else None


def _similarity(
  folder: str, plan: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
  """Cosine between the composed prompts of the first seed's MPT runs.

  Of the source run, and of the target runs with the most data.
  """
  shots = {s['name']: s['num_shots'] or math.inf for s in plan['settings']}
  most = max(shots, key=lambda name: shots[name], default=None)
  ours = [
    run
    for run in runs
    if run.get('method') == arms.OURS and run['seed'] == plan['seeds'][0]
  ]
  shown = [run for run in ours if run['stage'] == 'source']
  shown += [
    run for run in ours if run['stage'] == 'target' and run['setting'] == most
  ]
  names: list[str] = []
  rows: list[np.ndarray] = []
  for run in shown:
    bundle = _bundle(folder, run)
    names += bundle.task_names
    rows += [bundle.compose(task).ravel() for task in bundle.task_names]
  return {'tasks': names, 'cosine': _cosine(rows), 'setting': most}


def _cosine(rows: Sequence[np.ndarray]) -> list[list[float]]:
  """As `analysis.similarity`, in float32: the digits of older reports."""
  if not rows:
    return []
  units = np.stack([row / max(np.linalg.norm(row), 1e-12) for row in rows])
  return np.round(units @ units.T, 4).tolist()


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
