"""Writes what a pipeline found: `report.md`, `report.json` and plots.

Reads only files below the pipeline's folder: `pipeline.json` (what ran) and
each run's `results.json`, `metrics.jsonl`, `step.json` and prompts.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import json
import math
import os
import platform
import statistics
from typing import Any

import numpy as np

from mpt_jax.checkpoints import bundle as bundle_lib
from mpt_jax.checkpoints import files
from mpt_jax.checkpoints.backbone import find_backbone
from mpt_jax.checkpoints.run import RESULTS
from mpt_jax.engine import metrics, selection
from mpt_jax.engine.trainer import format_seconds

RECORD = 'pipeline.json'
JSON = 'report.json'
MARKDOWN = 'report.md'
SKILLS = 'skills.json'
CURVES_PLOT, TARGETS_PLOT = 'source_curves.png', 'targets_{setting}.png'
SIMILARITY_PLOT = 'prompt_similarity.png'
# A score behind which stands one answer to nearly everything, or none at all;
# and one that was not defined.
COLLAPSED, UNDEFINED = '†', '‡'
_MARKS = {
  COLLAPSED: 'collapsed: over 95 % of the answers were one, or over 50 % no'
  ' valid answer; the score says no more than how often that is right',
  UNDEFINED: 'not defined (a correlation with a constant output), counts as 0,'
  ' or as the worst there is where less is better',
}
_MAJORITY, _ZERO_SHOT = 'majority class', 'no prompt (zero-shot)'

_PACKAGES = (
  'mpt_jax',
  'jax',
  'flax',
  'optax',
  'orbax-checkpoint',
  'seqio',
  'tensorflow-datasets',
  'tensorflow',
  'numpy',
)
# How tables call variants and methods.
_TITLES = {
  'mpt': 'MPT',
  'no_distillation': 'no distillation',
  'shared_only': 'no decomposition (shared prompt only)',
  'neither': 'neither',
  'mpt_no_distillation': 'MPT, source run without distillation',
  'pt': 'vanilla prompt tuning (PT)',
  'single_source': 'single-source transfer',
}
_SOURCE_PAIRS = (
  ('mpt', 'shared_only'),
  ('no_distillation', 'neither'),
  ('mpt', 'no_distillation'),
  ('shared_only', 'neither'),
)
_TARGET_PAIRS = (
  ('mpt', 'pt'),
  ('mpt', 'single_source'),
  ('mpt', 'mpt_no_distillation'),
)

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


def versions() -> dict[str, str]:
  """The versions of Python and of the packages that matter."""
  import importlib.metadata

  found = {'python': platform.python_version()}
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def write(folder: str) -> dict[str, Any]:
  """Writes the report of a finished pipeline.

  Args:
    folder: the pipeline's MODEL_DIR.

  Returns:
    The report, as in `report.json`.

  Raises:
    InputError: if a result is missing.
  """
  report = collect(folder)
  for name, figure in _figures(report).items():
    _save(figure, os.path.join(folder, name))
    report['plots'].append(name)
  files.write_file(os.path.join(folder, JSON), files.json_bytes(report))
  text = markdown(report)
  files.write_file(os.path.join(folder, MARKDOWN), text.encode())
  return report


# ---------------------------------------------------------------------------
# Numbers.


def collect(folder: str) -> dict[str, Any]:
  """Gathers a pipeline's results.

  Args:
    folder: the pipeline's MODEL_DIR.

  Returns:
    The report without plots; all scores in percent.

  Raises:
    InputError: if a result is missing.
  """
  record = files.read_json(os.path.join(folder, RECORD))
  plan, data = record['plan'], record['data']
  runs = [_with_results(folder, s) for s in record['steps']]
  targets = {
    setting['name']: {
      method: _by_task(
        [
          r
          for r in _select(runs, 'target', method)
          if r['setting'] == setting['name']
        ]
      )
      for method in plan['methods']
    }
    for setting in plan['settings']
  }
  variants = [v for v in plan['variants'] if _select(runs, 'source', v)]
  source = {v: _by_task(_select(runs, 'source', v)) for v in variants}
  report: dict[str, Any] = {
    'synthetic': any(facts['synthetic'] for facts in data.values()),
    'command': record['command'],
    'device': record['device'],
    'versions': record['versions'],
    'backbone': record['backbone'],
    'seeds': plan['seeds'],
    'data': data,
    'metrics': _metrics(runs),
    'meanings': _meanings(runs),
    'majority': _majority(runs),
    'zero_shot': _by_task(_select(runs, 'zero_shot')),
    'plan': plan,
    'rates': record['rates'],
    'tuning': record['tuning'],
    'skills': _skills(plan['backbone']),
    'teachers': _by_task(_select(runs, 'teacher')),
    'source': source,
    'curves': {v: _curve(folder, _select(runs, 'source', v)) for v in variants},
    'curves_undefined': _undefined(folder, _select(runs, 'source')),
    'targets': targets,
    'pairs': _pairs('source', source, _SOURCE_PAIRS)
    + [
      pair
      for name, methods in targets.items()
      for pair in _pairs(name, methods, _TARGET_PAIRS)
    ],
    'parameters': _parameters(plan, folder, runs),
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
  report['bars'] = _bars(report) if plan.get('benchmark_bars') and own else []
  return report


def _with_results(folder: str, step: Mapping[str, Any]) -> dict[str, Any]:
  """A step with its seconds and, if it was tested, its test scores."""
  path = os.path.join(folder, step['name'])
  done = files.read_json(os.path.join(path, 'step.json'))
  run = {**step, 'seconds': done['seconds'], 'command': done['command']}
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
    name, value = scores[task] = main_score(values, said)
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
      COLLAPSED: list(results.get('collapsed', {})),
      UNDEFINED: undefined,
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


def _stat(
  values: Mapping[Any, float], marks: Mapping[str, Any] | None = None
) -> Stat:
  """Mean and standard deviation over seeds; None where one seed has none.

  Args:
    values: seed -> score.
    marks: mark -> what is marked by it.
  """
  numbers = list(values.values())
  return {
    'values': {str(seed): round(v, 3) for seed, v in values.items()},
    'mean': statistics.fmean(numbers),
    'std': statistics.stdev(numbers) if len(numbers) > 1 else None,
    'marks': {mark: which for mark, which in (marks or {}).items() if which},
  }


def _by_task(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Scores of several runs, one of each task or of all, of some seeds.

  Returns:
    {'tasks': {task: stat}, 'mean': stat of each seed's mean, None if the
    tasks' scores have no common mean, 'better': 'more', 'less' or None}.
  """
  by_task: dict[str, dict[int, float]] = {}
  marks: dict[str, dict[str, list[int]]] = {}
  meanings: dict[str, metrics.Metric | None] = {}
  for run in runs:
    for task, (_, value) in run['scores'].items():
      meanings[task] = run['meanings'][task]
      if math.isnan(value):
        meanings[task] = None  # Undefined, and nothing stands for it.
        continue
      by_task.setdefault(task, {})[run.get('seed', 0)] = value
      for mark, tasks in run['marks'].items():
        if task in tasks:
          marked = marks.setdefault(task, {}).setdefault(mark, [])
          marked.append(run.get('seed', 0))
  together = selection.common_meaning(meanings.values())
  mean = None
  if together is not None:
    seeds = sorted({seed for scores in by_task.values() for seed in scores})
    means = {
      seed: statistics.fmean([scores[seed] for scores in by_task.values()])
      for seed in seeds
    }
    mean = _stat(
      means,
      {m: [t for t in marks if m in marks[t]] for m in (COLLAPSED, UNDEFINED)},
    )
  return {
    'tasks': {t: _stat(v, marks.get(t)) for t, v in by_task.items()},
    'mean': mean,
    'better': together.better if together else None,
  }


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


def _pairs(
  where: str,
  results: Mapping[str, Any],
  pairs: Sequence[tuple[str, str]],
) -> list[dict[str, Any]]:
  """Differences of means over tasks between methods, seed by seed."""
  rows = []
  for first, second in pairs:
    if not all(results.get(m, {}).get('mean') for m in (first, second)):
      continue
    ours, theirs = (results[m]['mean']['values'] for m in (first, second))
    # In favour of the first.
    sign = -1 if results[first]['better'] == metrics.LESS else 1
    differences = {
      seed: round(sign * (ours[seed] - theirs[seed]), 3)
      for seed in ours
      if seed in theirs
    }
    values = list(differences.values())
    rows.append(
      {
        'where': where,
        'first': first,
        'second': second,
        'values': differences,
        'mean': statistics.fmean(values),
        'se': _standard_error(values),
      }
    )
  return rows


def _standard_error(values: Sequence[float]) -> float | None:
  """Of a mean over seeds; None of one seed, which has none."""
  if len(values) < 2:
    return None
  return statistics.stdev(values) / math.sqrt(len(values))


def _verdict(value: float, error: float | None) -> int | None:
  """The sign of a difference; 0 within its standard error, None of a seed."""
  if error is None:
    return None
  return 0 if abs(value) <= error else int(math.copysign(1, value))


def _curve(
  folder: str, runs: Sequence[Mapping[str, Any]]
) -> dict[str, list[float]]:
  """Mean validation score over tasks by step, for each seed."""
  curves: dict[str, dict[int, float]] = {}
  for run in runs:
    curves[str(run['seed'])] = {
      step: statistics.fmean(
        main_score(v, _said(run, task))[1] for task, v in tasks.items()
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
  plan: Mapping[str, Any], folder: str, runs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
  """Trained numbers per target task, by the closed formula."""
  run = next(r for r in runs if r['stage'] == 'teacher')
  prompts = bundle_lib.load_prompts(
    os.path.join(folder, run['name'], 'prompts')
  )
  length, width = prompts.prompt_length, prompts.emb_dim
  rank, tasks = plan['prompt_rank'], len(plan['targets'])
  plain = length * width
  factors = (length + width) * rank
  return {
    'prompt_length': length,
    'emb_dim': width,
    'rank': rank,
    'targets': tasks,
    'methods': {
      method: plain + factors if method.startswith('mpt') else plain
      for method in plan['methods']
    },
    'group': plain / tasks + factors,
  }


def _similarity(
  folder: str, plan: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
  """Cosine between the composed prompts of the first seed's MPT runs."""
  seed = plan['seeds'][0]
  names: list[str] = []
  rows: list[np.ndarray] = []

  def add(run: Mapping[str, Any]) -> None:
    path = os.path.join(folder, run['name'], 'prompts')
    bundle = bundle_lib.load_prompts(path)
    for task in bundle.task_names:
      names.append(task)
      rows.append(bundle.compose(task).ravel())

  for run in runs:
    if (run['stage'], run['seed'] if 'seed' in run else None) == (
      'source',
      seed,
    ) and run['method'] == 'mpt':
      add(run)
  shots = {s['name']: s['num_shots'] or math.inf for s in plan['settings']}
  if not shots:
    return {'tasks': names, 'cosine': _cosine(rows), 'setting': None}
  most = max(shots, key=lambda name: shots[name])
  for run in runs:
    if (
      run['stage'] == 'target'
      and run['seed'] == seed
      and run['method'] == 'mpt'
      and run['setting'] == most
    ):
      add(run)
  return {'tasks': names, 'cosine': _cosine(rows), 'setting': most}


def _cosine(rows: Sequence[np.ndarray]) -> list[list[float]]:
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


def _bars(report: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The benchmark's bars: what was asked, what was found, whether it is met.

  Of the yardstick in docs. A bar is met, or missed, by more than the standard
  error over seeds; else nobody can say, and `met` is None, as for a bar that
  this pipeline does not measure.
  """
  teachers = report['teachers']
  skills = report['skills']
  pairs = {(p['where'], p['first'], p['second']): p for p in report['pairs']}
  bars = []

  def add(what: str, values: Sequence[float], least: float) -> None:
    value = statistics.fmean(values) if values else None
    error = _standard_error(values)
    sign = None if value is None else _verdict(value - least, error)
    bars.append(
      {
        'bar': what,
        'least': least,
        'value': value,
        'se': error,
        'met': None if not sign else sign > 0,
      }
    )

  def mean_of(where: str, first: str, second: str) -> list[float]:
    pair = pairs.get((where, first, second))
    return list(pair['values'].values()) if pair else []

  add(
    'teachers: mean score',
    list(teachers['mean']['values'].values()) if teachers['mean'] else [],
    80.0,
  )
  gaps = [
    [value - skills[task] for value in stat['values'].values()]
    for task, stat in teachers['tasks'].items()
    if task in skills
  ]
  add(
    "teachers: worst of (teacher - backbone's own skill)",
    min(gaps, key=statistics.fmean, default=[]),
    -5.0,
  )
  add(
    'source: MPT - shared prompt only',
    mean_of('source', 'mpt', 'shared_only'),
    5.0,
  )
  add(
    'source: the same, both without distillation',
    mean_of('source', 'no_distillation', 'neither'),
    5.0,
  )
  add(
    'source: distillation - none, at a tenth of the steps (validation)',
    _early_lead(report['curves']),
    0.0,
  )
  add(
    'source: distillation - none, at the end',
    mean_of('source', 'mpt', 'no_distillation'),
    -5.0,
  )
  for setting in report['plan']['settings']:
    least = 2.0 if setting['num_shots'] == 32 else 0.0
    add(
      f'targets, {setting["name"]}: MPT - PT',
      mean_of(setting['name'], 'mpt', 'pt'),
      least,
    )
  return bars


def _early_lead(curves: Mapping[str, Mapping[str, Any]]) -> list[float]:
  """MPT minus no distillation at a tenth of the steps, seed by seed."""
  early = []
  for variant in ('mpt', 'no_distillation'):
    curve = curves.get(variant)
    if not curve or not curve['steps']:
      return []
    early.append(curve)
  steps = early[0]['steps']
  place = min(range(len(steps)), key=lambda i: abs(steps[i] - steps[-1] / 10))
  seeds = [k for k in early[0] if k != 'steps' and k in early[1]]
  if early[1]['steps'] != steps:
    return []
  return [early[0][s][place] - early[1][s][place] for s in seeds]


# ---------------------------------------------------------------------------
# Text.


def _show(stat: Stat | None) -> str:
  """'81.2 ± 1.3', or '81.2' of one seed; with its marks."""
  if stat is None:
    return '-'
  text = f'{stat["mean"]:.1f}'
  if stat['std'] is not None:
    text += f' ± {stat["std"]:.1f}'
  return text + ''.join(stat['marks'])


def _legend(shown: Iterable[Stat | None]) -> list[str]:
  """What the marks of these cells mean."""
  used = {mark for stat in shown if stat for mark in stat['marks']}
  return [f'{mark} {text}.' for mark, text in _MARKS.items() if mark in used]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  """A Markdown table, numbers to the right."""
  lines = [header, ['---', *['---:'] * (len(header) - 1)], *rows]
  return ['| ' + ' | '.join(line) + ' |' for line in lines] + ['']


def _scores_table(
  report: Mapping[str, Any], results: Mapping[str, Any], first: str
) -> list[str]:
  """One row per method, one column per task and their mean."""
  shown = {_TITLES[m]: r for m, r in results.items() if r['tasks']}
  tasks = list(dict.fromkeys(t for r in shown.values() for t in r['tasks']))
  shown |= _baselines(report, tasks)
  header = [first, 'mean', *(_task_title(report, t) for t in tasks)]
  rows = [
    [
      name,
      _show(result['mean']),
      *(_show(result['tasks'].get(task)) for task in tasks),
    ]
    for name, result in shown.items()
  ]
  cells = [s for r in shown.values() for s in (*r['tasks'].values(), r['mean'])]
  notes = _legend(cells)
  if any(result['mean'] is None for result in results.values()):
    notes.append(
      'No mean over the tasks: their scores have different units or'
      ' directions, or it is not known which way is better.'
    )
  return _table(header, rows) + [line for note in notes for line in (note, '')]


def _task_title(report: Mapping[str, Any], task: str) -> str:
  """'rte (accuracy)'; it says so where less is better."""
  name = report['metrics'][task]
  facts = report['meanings'].get(task)
  less = facts is not None and facts['better'] == metrics.LESS
  return f'{task} ({name}{", less is better" if less else ""})'


def _baselines(
  report: Mapping[str, Any], tasks: Sequence[str]
) -> dict[str, dict[str, Any]]:
  """What needs no training: name -> results like those of a method.

  A baseline that not all of the tasks have, has no mean.
  """
  majority = {t: v for t, v in report['majority'].items() if t in tasks}
  prompted = report['zero_shot']['tasks']
  rows: dict[str, dict[str, Any]] = {}
  for name, found in (
    (_MAJORITY, {t: _stat({0: v}) for t, v in majority.items()}),
    (_ZERO_SHOT, {t: s for t, s in prompted.items() if t in tasks}),
  ):
    kinds = [report['meanings'].get(t) for t in tasks]
    same = {(m['better'], m['unit']) if m else None for m in kinds}
    mean = None
    if len(found) == len(tasks) and len(same) == 1 and None not in same:
      mean = _stat(
        {0: statistics.fmean(s['mean'] for s in found.values())},
        {m: [t for t in found if m in found[t]['marks']] for m in _MARKS},
      )
    if found:
      rows[name] = {'tasks': found, 'mean': mean}
  return rows


def _signed(value: float | None) -> str:
  return 'n/a' if value is None else f'{value:+.1f}'


def title(report: Mapping[str, Any]) -> str:
  """The report's title; it says so where data are made up."""
  note = ' on SYNTHETIC DATA' if report['synthetic'] else ''
  return f'Multitask Prompt Tuning{note}'


def markdown(report: Mapping[str, Any]) -> str:
  """The report as Markdown.

  Args:
    report: from `collect`.

  Returns:
    The text of `report.md`.
  """
  plan = report['plan']
  lines = [f'# {title(report)}', '']
  if report['synthetic']:
    names = [t for t, facts in report['data'].items() if facts['synthetic']]
    lines += [
      f'The data of {", ".join(names)} are made up: short sentences about a'
      ' tiny world in the formats of the official data sets. The scores show'
      ' how the methods compare here; they say nothing about the real tasks.',
      '',
    ]
  lines += [_noise(report), '']
  lines += _bars_section(report)
  lines += _teachers_section(report)
  lines += ['## Source stage', '']
  lines += [
    f'{plan["source"]["steps"]} steps on all source tasks together; scores on'
    ' the test split. All variants train with the same learning rates, which'
    ' were not searched for each.',
    '',
  ]
  lines += _scores_table(report, report['source'], 'variant')
  if CURVES_PLOT in report['plots']:
    lines += [f'![learning curves]({CURVES_PLOT})', '']
    if report['curves_undefined']:
      lines += [
        f'{report["curves_undefined"]} scores in these curves were not defined'
        ' and count as 0.',
        '',
      ]
  lines += [
    '## Target stage',
    '',
    'MPT starts from its source run and single-source transfer from one'
    ' teacher; what those cost comes on top of the steps below. PT starts from'
    ' nothing.',
    '',
  ]
  for setting in plan['settings']:
    lines += _setting_section(report, setting)
  lines += _pairs_section(report)
  lines += _parameters_section(report)
  if SIMILARITY_PLOT in report['plots']:
    lines += [
      '## Prompt similarity',
      '',
      "Cosine between the composed prompts of the first seed's MPT runs"
      ' (source tasks, then target tasks).',
      '',
      f'![prompt similarity]({SIMILARITY_PLOT})',
      '',
    ]
  lines += _tuning_section(report)
  lines += _examples_section(report)
  lines += _how_section(report)
  return '\n'.join(lines).rstrip() + '\n'


def _noise(report: Mapping[str, Any]) -> str:
  """What the reader must know before comparing two numbers."""
  seeds = report['seeds']
  sizes = [facts['test'] for facts in report['data'].values()]
  error = 100 * math.sqrt(0.25 / min(sizes))
  text = (
    f'Scores are percentages on test splits of {min(sizes)} to {max(sizes)}'
    f' examples, which alone gives a score a standard error of up to'
    f' {error:.1f} points. Seeds vary start values, batches, few-shot examples'
    ' and teachers; not the backbone, nor the test sets.'
  )
  if len(seeds) == 1:
    moves = (
      # What docs/demo.md found.
      ' Between seeds a mean over tasks moves by about 1 to 4 points and a'
      ' single few-shot task by 10 and more, so a difference of a few points'
      ' in one run may well be luck.'
      if report['bars']
      else ' A difference of a few points in one run may well be luck.'
    )
    return (
      f'{text} **This is one seed**: no number below has an error bar, and'
      f' nothing is claimed to be ahead, behind or met.{moves}'
    )
  return (
    f'{text} "±" is the standard deviation over seeds, "se" the standard error'
    ' of paired differences; a difference within it is called level.'
  )


def _bars_section(report: Mapping[str, Any]) -> list[str]:
  if not report['bars']:
    return []
  rows = [
    [
      bar['bar'],
      f'{bar["least"]:+.1f}' if '-' in bar['bar'] else f'{bar["least"]:.1f}',
      'n/a' if bar['value'] is None else f'{bar["value"]:.1f}',
      _bar_words(bar),
    ]
    for bar in report['bars']
  ]
  return [
    '## Bars',
    '',
    'What the benchmark expects, set before this run. A bar is met or not met'
    ' by more than the standard error over seeds.',
    '',
    *_table(['bar', 'at least', 'found', ''], rows),
  ]


def _bar_words(bar: Mapping[str, Any]) -> str:
  if bar['met'] is not None:
    return 'met' if bar['met'] else '**not met**'
  if bar['value'] is None:
    return 'not measured'
  if bar['se'] is None:
    return 'one seed: no claim'
  return f'level (within its standard error, {bar["se"]:.1f})'


def _teachers_section(report: Mapping[str, Any]) -> list[str]:
  teachers, skills = report['teachers'], report['skills']
  steps = report['plan']['teacher']['steps']
  tasks = list(teachers['tasks'])
  beside = _baselines(report, tasks)
  header = ['task', 'teacher', 'test examples', *beside]
  rows = [
    [
      _task_title(report, task),
      _show(teachers['tasks'][task]),
      str(report['data'][task]['test']),
      *(_show(result['tasks'].get(task)) for result in beside.values()),
    ]
    for task in tasks
  ]
  means = [_show(result['mean']) for result in beside.values()]
  rows.append(['mean', _show(teachers['mean']), '', *means])
  text = f'Vanilla prompt tuning of each source task, {steps} steps.'
  if skills:
    text += (
      ' Beside them: what the backbone itself scores on that skill in the'
      ' words of its pretraining, without any prompt.'
    )
    known = [skills[t] for t in tasks if t in skills]
    mean = f'{statistics.fmean(known):.1f}' if len(known) == len(tasks) else '-'
    own = [f'{skills[t]:.1f}' if t in skills else '-' for t in tasks]
    for row, cell in zip(
      (header, *rows), ('backbone', *own, mean), strict=True
    ):
      row.insert(2, cell)
  every = [
    *teachers['tasks'].values(),
    *(stat for result in beside.values() for stat in result['tasks'].values()),
  ]
  notes = [line for note in _legend(every) for line in (note, '')]
  return ['## Teachers', '', text, '', *_table(header, rows), *notes]


def _setting_section(
  report: Mapping[str, Any], setting: Mapping[str, Any]
) -> list[str]:
  name = setting['name']
  results = report['targets'][name]
  if not any(result['tasks'] for result in results.values()):
    return []
  data = 'all training examples'
  if setting['num_shots'] is not None:
    data = f'{setting["num_shots"]} training examples per task'
  seeds = len(setting['seeds'])
  lines = [
    f'### {name}: {data}',
    '',
    f'{setting["steps"]} steps, batch {setting["batch_size"]},'
    f' {seeds} seed{"s" if seeds > 1 else ""}.',
    '',
    *_scores_table(report, results, 'method'),
    *_behind(report, results),
  ]
  plot = TARGETS_PLOT.format(setting=name)
  if plot in report['plots']:
    lines += [f'![{name}]({plot})', '']
  return lines


def _behind(report: Mapping[str, Any], results: Mapping[str, Any]) -> list[str]:
  """Where MPT loses, so that nobody has to look for it."""
  ours = results.get('mpt')
  if not ours:
    return []
  lines = []
  for method, result in results.items():
    if method == 'mpt' or not result['tasks']:
      continue
    told: dict[int | None, list[str]] = {}
    for task, stat in result['tasks'].items():
      facts = report['meanings'].get(task)
      if task not in ours['tasks'] or facts is None:
        continue
      sign = -1 if facts['better'] == metrics.LESS else 1
      mine, theirs = ours['tasks'][task]['values'], stat['values']
      leads = [sign * (mine[s] - theirs[s]) for s in mine if s in theirs]
      if not leads:
        continue
      lead = statistics.fmean(leads)
      verdict = _verdict(lead, _standard_error(leads))
      told.setdefault(verdict, []).append(f'{task} ({_signed(lead)})')
    words = {v: ', '.join(told.get(v, ['none'])) for v in (-1, 0, 1)}
    lines.append(
      f'- MPT against {_TITLES[method]}: '
      + (
        f'one seed, so no claim: {", ".join(told[None])}.'
        if None in told
        else f'behind on {words[-1]}. Level, within the standard error:'
        f' {words[0]}. Ahead on {words[1]}.'
      )
    )
  return [*lines, ''] if lines else []


def _pairs_section(report: Mapping[str, Any]) -> list[str]:
  rows = [
    [
      f'{pair["where"]}: {pair["first"]} - {pair["second"]}',
      _signed(pair['mean']),
      '-' if pair['se'] is None else f'{pair["se"]:.1f}',
      ' '.join(_signed(v) for v in pair['values'].values()),
    ]
    for pair in report['pairs']
  ]
  return [
    '## Paired differences',
    '',
    'Of the mean over tasks, in points, seed by seed; more is better for the'
    ' first of the two.',
    '',
    *_table(['difference', 'mean', 'se', 'per seed'], rows),
  ]


def _parameters_section(report: Mapping[str, Any]) -> list[str]:
  p = report['parameters']
  whole = report['backbone']['parameters']
  rows = [
    [_TITLES[method], f'{count:,}', f'{100 * count / whole:.3f} %']
    for method, count in p['methods'].items()
  ]
  rows.append(
    [
      f'MPT, {p["targets"]} target tasks in one group',
      f'{p["group"]:,.0f}',
      f'{100 * p["group"] / whole:.3f} %',
    ]
  )
  return [
    '## Parameters per target task',
    '',
    f'P = {p["prompt_length"]}, D = {p["emb_dim"]}, R = {p["rank"]}: a plain'
    ' prompt has P·D; MPT has P·D + (P + D)·R, or P·D/K + (P + D)·R where K'
    ' tasks share P\\*. The runs above adapt each task by itself. The backbone'
    f' ({report["backbone"]["name"]}) has {whole:,}, all frozen.',
    '',
    *_table(['method', 'trained', 'of the backbone'], rows),
  ]


def _tuning_section(report: Mapping[str, Any]) -> list[str]:
  lines = ['## Learning rates', '']
  rows = []
  for setting in report['plan']['settings']:
    rates = report['rates'].get(setting['tuned_as'] or setting['name'], {})
    methods = report['plan']['methods']
    rows.append([setting['name'], *(_show_rates(rates[m]) for m in methods)])
  lines += [
    'Of the plain prompt, or of P\\* / of u and v.',
    '',
    *_table(['setting', *report['plan']['methods']], rows),
  ]
  if not report['tuning']:
    return lines + ['They were given, not searched for in this run.', '']
  tuning = report['plan']['tuning']
  lines += [
    f'Searched with seed {tuning["seed"]}, which is not reported, on the'
    ' validation split; grids of the same size for every method; the best mean'
    ' over targets wins.',
    '',
  ]
  edges = [r for r in report['tuning'] if r.get('on_edge')]
  if edges:
    found = ', '.join(
      f'{r["method"]} at {r["setting"]} ({_show_rates(r["rates"])})'
      for r in edges
    )
    lines += [f'On an edge of its grid, perhaps undertuned: {found}.', '']
  else:
    lines += ['No best value lies on an edge of its grid.', '']
  if any(None in row['scores'].values() for row in report['tuning']):
    lines += [
      '"-" was not defined, or its run diverged: it counts as 0, or as the'
      ' worst there is where less is better.',
      '',
    ]
  tasks = list(report['plan']['targets'])
  lines += _table(
    ['setting, method', 'rates', 'mean', *tasks, ''],
    [
      [
        f'{row["setting"]}, {row["method"]}',
        _show_rates(row['rates']),
        _plain(row['mean']),
        *(_plain(row['scores'][task]) for task in tasks),
        'chosen' if row.get('chosen') else '',
      ]
      for row in report['tuning']
    ],
  )
  return lines


def _plain(value: float | None) -> str:
  return '-' if value is None else f'{value:.1f}'


def _show_rates(rates: Sequence[float | None]) -> str:
  return ' / '.join(f'{rate:g}' for rate in rates if rate is not None)


# What is counted of a split (`mpt_jax.data.counts`), as the report calls it.
_COUNTED = {
  'cut_inputs': 'inputs cut',
  'cut_targets': 'targets cut',
  'unlabelled': 'no label',
  'empty_inputs': 'empty inputs',
}


def _examples_section(report: Mapping[str, Any]) -> list[str]:
  """What of the data was not read as it stands; nothing if it was not told."""
  known = report['examples']
  if not known:
    return []
  rows = [
    [
      name,
      f'{numbers["examples"]:,}',
      *(
        f'{numbers[key]:,} ({100 * numbers[key] / numbers["examples"]:.1f} %)'
        if numbers[key]
        else '0'
        for key in _COUNTED
      ),
    ]
    for name, numbers in sorted(known.items())
    if any(numbers[key] for key in _COUNTED)
  ]
  lines = ['## What was cut', '']
  if not rows:
    return [
      *lines,
      'No input or target was longer than its length; every example had a'
      ' label and an input.',
      '',
    ]
  others = len(known) - len(rows)
  return [
    *lines,
    'Inputs and targets over their length are cut; examples without a label'
    f' are neither trained on nor scored. Nothing of the kind in {others} other'
    ' splits.',
    '',
    *_table(['task/split', 'examples', *_COUNTED.values()], rows),
  ]


def _how_section(report: Mapping[str, Any]) -> list[str]:
  plan, seconds = report['plan'], report['seconds']
  related = ', '.join(f'{t} from {s}' for t, s in plan['targets'].items())
  stages = ', '.join(
    f'{stage} {format_seconds(value)}'
    for stage, value in seconds.items()
    if stage not in ('this_call', 'all_runs')
  )
  return [
    '## How',
    '',
    f'- Command: `{report["command"]}`, on {report["device"]}.',
    f'- Time: {format_seconds(seconds["this_call"])} for the last call; all'
    f' runs together, one after the other,'
    f' {format_seconds(seconds["all_runs"])} ({stages}).',
    f'- Seeds: {", ".join(map(str, plan["seeds"]))}; ablations:'
    f' {", ".join(map(str, plan["ablation_seeds"]))}. Every target run of MPT'
    " starts from its own seed's source run.",
    f'- Single-source transfer starts from one teacher, picked by hand:'
    f' {related}.',
    '- Main score of a task: accuracy where it exists, else F1, exact match,'
    ' Matthews or Pearson correlation; an undefined correlation (constant'
    f' output) counts as 0 and is marked {UNDEFINED}.',
    '- Test examples: '
    + ', '.join(f'{t} {f["test"]}' for t, f in report['data'].items())
    + '.',
    '- Versions: '
    + ', '.join(f'{name} {v}' for name, v in report['versions'].items())
    + '.',
    '',
    "Every run's command is in its `step.json`; the first of each kind:",
    '',
    '```',
    *report['commands'].values(),
    '```',
    '',
  ]


def summary(report: Mapping[str, Any]) -> str:
  """A short table for the screen.

  Args:
    report: from `write`.

  Returns:
    A few lines: teachers, source variants, and methods by setting.
  """
  lines = ['', title(report), '']
  teachers = report['teachers']['mean']
  if teachers:
    lines.append(f'{"teachers":<40}{_show(teachers):>14}')
  source = report['source']
  lines += [
    f'{"source: " + _TITLES[v]:<46.46}{_show(source[v]["mean"]):>8}'
    for v in report['plan']['variants']
    if v in source
  ]
  settings = [setting['name'] for setting in report['plan']['settings']]
  if settings:
    lines += ['', f'{"targets":<40}' + ''.join(f'{s:>14}' for s in settings)]
    for method in report['plan']['methods']:
      cells = [_show(report['targets'][s][method]['mean']) for s in settings]
      lines.append(
        f'{_TITLES[method]:<40.40}' + ''.join(f'{c:>14}' for c in cells)
      )
    rows = _baselines(report, list(report['plan']['targets']))
    for name, result in rows.items():
      cell = _show(result['mean'])
      lines.append(f'{name:<40}' + f'{cell:>14}' * len(settings))
  lines += ['', *_collapsed_lines(report)]
  missed = [bar['bar'] for bar in report['bars'] if bar['met'] is False]
  lines += [f'bar not met: {bar}' for bar in missed]
  if len(report['seeds']) == 1:
    lines.append('One seed: differences of a few points may be luck.')
  return '\n'.join(lines)


def _collapsed_lines(report: Mapping[str, Any]) -> list[str]:
  """Which trained prompts say next to nothing, for the screen."""
  lines = []
  groups = {
    'teachers': report['teachers'],
    **{f'source: {_TITLES[v]}': r for v, r in report['source'].items()},
    **{
      f'{setting}: {_TITLES[method]}': result
      for setting, methods in report['targets'].items()
      for method, result in methods.items()
    },
    _ZERO_SHOT: {
      'tasks': {
        task: stat
        for task, stat in report['zero_shot']['tasks'].items()
        if task in report['plan']['targets']
      }
    },
  }
  for mark, word in ((COLLAPSED, 'collapsed'), (UNDEFINED, 'not defined')):
    for name, result in groups.items():
      tasks = [t for t, s in result['tasks'].items() if mark in s['marks']]
      if tasks:
        lines.append(f'{mark} {word}, {name}: {", ".join(tasks)}')
  return lines


# ---------------------------------------------------------------------------
# Pictures.


def _figures(report: Mapping[str, Any]) -> dict[str, Any]:
  """File name -> figure."""
  figures = {}
  if any(curve['steps'] for curve in report['curves'].values()):
    figures[CURVES_PLOT] = _plot_curves(report)
  for setting, results in report['targets'].items():
    if any(result['tasks'] for result in results.values()):
      name = TARGETS_PLOT.format(setting=setting)
      figures[name] = _plot_targets(report, setting, results)
  if len(report['similarity']['tasks']) > 1:
    figures[SIMILARITY_PLOT] = _plot_similarity(report)
  return figures


def _figure(width: float, height: float) -> tuple[Any, Any]:
  # Without pyplot: no global state, no display.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), layout='constrained')
  FigureCanvasAgg(figure)
  return figure, figure.add_subplot()


def _save(figure: Any, path: str) -> None:
  import io

  buffer = io.BytesIO()
  # No version and no date: the same numbers give the same file.
  figure.savefig(buffer, format='png', dpi=110, metadata={'Software': None})
  files.write_file(path, buffer.getvalue())


def _plot_curves(report: Mapping[str, Any]) -> Any:
  figure, axes = _figure(7, 4.2)
  styles = {
    'mpt': ('C0', '-'),
    'no_distillation': ('C0', '--'),
    'shared_only': ('C1', '-'),
    'neither': ('C1', '--'),
  }
  last = 0.0
  for variant, curve in report['curves'].items():
    if not curve['steps']:
      continue
    values = np.array([v for k, v in curve.items() if k != 'steps'])
    colour, line = styles[variant]
    mean = values.mean(axis=0)
    axes.plot(
      curve['steps'],
      mean,
      line,
      color=colour,
      marker='o',
      markersize=3,
      label=_TITLES[variant],
    )
    if len(values) > 1:
      spread = values.std(axis=0, ddof=1)
      axes.fill_between(
        curve['steps'], mean - spread, mean + spread, color=colour, alpha=0.1
      )
    last = max(last, curve['steps'][-1])
  axes.axvline(last / 10, color='grey', linewidth=0.8, linestyle=':')
  axes.set_xlabel('step (dotted: a tenth of all)')
  axes.set_ylabel('mean validation score of the source tasks')
  axes.set_title(f'Source stage: {title(report)}', fontsize=10)
  axes.grid(alpha=0.3)
  axes.legend(fontsize=8)
  return figure


def _plot_targets(
  report: Mapping[str, Any], setting: str, results: Mapping[str, Any]
) -> Any:
  shown = {_TITLES[m]: r for m, r in results.items() if r['tasks']}
  tasks = list(dict.fromkeys(t for r in shown.values() for t in r['tasks']))
  baselines = _baselines(report, tasks)
  majority = baselines.pop(_MAJORITY, None)
  shown |= baselines
  figure, axes = _figure(1.6 + 1.2 * (len(tasks) + 1), 4.2)
  width = 0.8 / len(shown)
  places = np.arange(len(tasks) + 1)
  for i, (name, result) in enumerate(shown.items()):
    found = [*(result['tasks'].get(t) for t in tasks), result['mean']]
    at = [(p, s) for p, s in zip(places, found, strict=True) if s]
    middle = np.array([p for p, _ in at]) + (i - (len(shown) - 1) / 2) * width
    bars = axes.bar(
      middle,
      [s['mean'] for _, s in at],
      width,
      yerr=[s['std'] or 0.0 for _, s in at]
      if any(s['std'] for _, s in at)
      else None,
      capsize=2,
      label=name,
      **({'color': '0.75'} if name == _ZERO_SHOT else {}),
    )
    for bar, (_, stat) in zip(bars, at, strict=True):
      _mark(axes, bar, stat)
  if majority is not None:
    _draw_majority(axes, [*map(majority['tasks'].get, tasks), majority['mean']])
  titles = [_task_title(report, t).replace(' (', '\n(', 1) for t in tasks]
  axes.set_xticks(places, [*titles, 'mean'], fontsize=8)
  axes.set_ylabel(_unit_title(report, tasks))
  axes.set_title(f'Targets, {setting}: {title(report)}', fontsize=10)
  axes.grid(axis='y', alpha=0.3)
  figure.legend(fontsize=8, loc='outside lower center', ncols=3)
  return figure


def _mark(axes: Any, bar: Any, stat: Stat) -> None:
  """Hatches a bar whose score says next to nothing, and marks it."""
  if not stat['marks']:
    return
  # Over the bar: the legend takes the looks of a method's first one.
  axes.bar(
    bar.get_x() + bar.get_width() / 2,
    bar.get_height(),
    bar.get_width(),
    facecolor='none',
    edgecolor='black',
    hatch='////',
    linewidth=0,
  )
  axes.annotate(
    ''.join(stat['marks']),
    (bar.get_x() + bar.get_width() / 2, max(bar.get_height(), 0.0)),
    ha='center',
    va='bottom',
    fontsize=9,
  )


def _draw_majority(axes: Any, stats: Sequence[Stat | None]) -> None:
  """A line across each task's bars at what the commonest class scores."""
  at = [(place, s['mean']) for place, s in enumerate(stats) if s]
  axes.hlines(
    [value for _, value in at],
    [place - 0.45 for place, _ in at],
    [place + 0.45 for place, _ in at],
    color='black',
    linestyle='--',
    linewidth=1,
    label=_MAJORITY,
  )


def _unit_title(report: Mapping[str, Any], tasks: Sequence[str]) -> str:
  """'test score (%)', if all tasks have one unit."""
  facts = [report['meanings'].get(task) for task in tasks]
  units = {m['unit'] if m else '' for m in facts}
  unit = units.pop() if len(units) == 1 else ''
  marks = f'; {COLLAPSED} collapsed, {UNDEFINED} not defined'
  return f'test score{f" ({unit})" if unit else ""}{marks}'


def _plot_similarity(report: Mapping[str, Any]) -> Any:
  tasks = report['similarity']['tasks']
  cosine = np.array(report['similarity']['cosine'])
  size = 2.2 + 0.5 * len(tasks)
  figure, axes = _figure(size + 0.8, size)
  image = axes.imshow(cosine, vmin=min(0.0, cosine.min()), vmax=1.0)
  axes.set_xticks(range(len(tasks)), tasks, rotation=45, ha='right')
  axes.set_yticks(range(len(tasks)), tasks)
  for row in range(len(tasks)):
    for column in range(len(tasks)):
      value = cosine[row, column]
      axes.text(
        column,
        row,
        f'{value:.2f}',
        ha='center',
        va='center',
        fontsize=7,
        color='black' if value > 0.6 else 'white',
      )
  figure.colorbar(image, shrink=0.8, label='cosine')
  axes.set_title('Composed task prompts', fontsize=10)
  return figure
