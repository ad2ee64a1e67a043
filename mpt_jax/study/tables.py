"""The text of a study's report, in Markdown."""

from collections.abc import Mapping, Sequence
import math
import statistics
from typing import Any

from mpt_jax.engine import metrics
from mpt_jax.engine.outcome import BACKBONE
from mpt_jax.engine.trainer import format_seconds
from mpt_jax.study import arms, bars, cells, plots, stats
from mpt_jax.study import rates as rates_lib
from mpt_jax.study import results as results_lib

# What a step takes (`results`), over what it takes with MPT.
_TAKEN = {
  'step_seconds': 'seconds a step / MPT',
  'step_bytes': 'memory / MPT',
}
# What is counted of a split (`mpt_jax.data.counts`), as the report calls it.
_COUNTED = {
  'cut_inputs': 'inputs cut',
  'cut_targets': 'targets cut',
  'unlabelled': 'no label',
  'empty_inputs': 'empty inputs',
}


def _scores_table(
  report: Mapping[str, Any],
  results: Mapping[str, Any],
  stage: Mapping[str, arms.Arm],
  first: str,
  costs: Mapping[str, Mapping[str, str]] | None = None,
) -> list[str]:
  """One row per arm of a stage, one column per task and their mean.

  Args:
    report: the report.
    results: arm -> its results.
    stage: the stage's arms.
    first: title of the first column.
    costs: arm -> more columns, by title; None has none.
  """
  shown = {stage[a].title: r for a, r in results.items() if r['tasks']}
  beside = {stage[a].title: columns for a, columns in (costs or {}).items()}
  more = list(dict.fromkeys(c for row in beside.values() for c in row))
  tasks = list(dict.fromkeys(t for r in shown.values() for t in r['tasks']))
  shown |= results_lib.baselines(report, tasks)
  titles = [cells.task_title(report, t) for t in tasks]
  header = [first, 'mean', *titles, *more]
  rows = [
    [
      name,
      cells.show(result['mean']),
      *(cells.show(result['tasks'].get(task)) for task in tasks),
      *(beside.get(name, {}).get(column, '-') for column in more),
    ]
    for name, result in shown.items()
  ]
  every = [s for r in shown.values() for s in (*r['tasks'].values(), r['mean'])]
  notes = cells.legend(every)
  if any(result['mean'] is None for result in results.values()):
    notes.append(
      'No mean over the tasks: their scores have different units or'
      ' directions, or it is not known which way is better.'
    )
  return [
    *cells.table(header, rows),
    *(line for note in notes for line in (note, '')),
  ]


def markdown(report: Mapping[str, Any]) -> str:
  """The report as Markdown.

  Args:
    report: from `results.collect`, with its plots.

  Returns:
    The text of `report.md`.
  """
  plan = report['plan']
  lines = [f'# {cells.title(report)}', '']
  if report['synthetic']:
    names = [t for t, facts in report['data'].items() if facts['synthetic']]
    lines += [
      f'The data of {", ".join(names)} are made up: short sentences about a'
      ' tiny world in the formats of the official data sets. The scores show'
      ' how the methods compare here; they say nothing about the real tasks.',
      '',
    ]
  lines += [_noise(report), '']
  lines += bars.section(report)
  lines += _teachers_section(report)
  lines += _source_section(report)
  lines += [
    '## Target stage',
    '',
    _starts(plan['methods']),
    '',
  ]
  for setting in plan['settings']:
    lines += _setting_section(report, setting)
  lines += _pairs_section(report)
  lines += _parameters_section(report)
  lines += _similarity_section(report)
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


def _teachers_section(report: Mapping[str, Any]) -> list[str]:
  teachers, skills = report['teachers'], report['skills']
  steps = report['plan']['teacher']['steps']
  tasks = list(teachers['tasks'])
  beside = results_lib.baselines(report, tasks)
  header = ['task', 'teacher', 'test examples', *beside]
  rows = [
    [
      cells.task_title(report, task),
      cells.show(teachers['tasks'][task]),
      str(report['data'][task]['test']),
      *(cells.show(result['tasks'].get(task)) for result in beside.values()),
    ]
    for task in tasks
  ]
  means = [cells.show(result['mean']) for result in beside.values()]
  rows.append(['mean', cells.show(teachers['mean']), '', *means])
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
  notes = [line for note in cells.legend(every) for line in (note, '')]
  return ['## Teachers', '', text, '', *cells.table(header, rows), *notes]


def _source_section(report: Mapping[str, Any]) -> list[str]:
  lines = [
    '## Source stage',
    '',
    f'{report["plan"]["source"]["steps"]} steps on all source tasks together;'
    ' scores on the test split. All variants train with the same learning'
    ' rates, which were not searched for each.',
    '',
    *_scores_table(report, report['source'], arms.SOURCES, 'variant'),
  ]
  if plots.CURVES in report['plots']:
    lines += [f'![learning curves]({plots.CURVES})', '']
    if report['curves_undefined']:
      lines += [
        f'{report["curves_undefined"]} scores in these curves were not defined'
        ' and count as 0.',
        '',
      ]
  return lines


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
    *_scores_table(report, results, arms.TARGETS, 'method', _costs(report)),
    *_behind(report, results),
  ]
  plot = plots.TARGETS.format(setting=name)
  if plot in report['plots']:
    lines += [f'![{name}]({plot})', '']
  return lines


def _starts(names: Sequence[str]) -> str:
  """What the target arms start from, and what they read."""
  shown = [arms.TARGETS[name] for name in names]
  text = (
    'MPT starts from its source run and single-source transfer from one'
    ' teacher; what those cost comes on top of the steps below.'
  )
  for arm in shown:
    if arm.start == arms.TEACHERS:
      text += f' {arm.title} has {arm.start}.'
  text += ' PT starts from nothing.'
  if not all(arm.slots for arm in shown):
    text += (
      ' Whose prompt takes no positions of the input, has inputs that are'
      ' shorter by its length: all read the same text.'
    )
  return text


def _costs(report: Mapping[str, Any]) -> dict[str, dict[str, str]]:
  """Arm -> what it trains and takes, as columns; times are MPT's."""
  ours = report['costs'].get(arms.OURS, {})
  counts = report['parameters']['methods']
  found = {}
  for method, costs in report['costs'].items():
    found[method] = {
      'trained a task': f'{counts[method]:,}' if method in counts else '-'
    }
    for name, title in _TAKEN.items():
      if any(row[name] for row in report['costs'].values()):
        mine, theirs = costs[name], ours.get(name)
        found[method][title] = (
          f'{mine / theirs:.2f}' if mine and theirs else '-'
        )
  return found


def _behind(report: Mapping[str, Any], results: Mapping[str, Any]) -> list[str]:
  """Where MPT loses, so that nobody has to look for it."""
  ours = results.get(arms.OURS)
  if not ours:
    return []
  name = arms.TARGETS[arms.OURS].title
  lines = []
  for method, result in results.items():
    if method == arms.OURS or not result['tasks']:
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
      verdict = stats.verdict(lead, stats.standard_error(leads))
      told.setdefault(verdict, []).append(f'{task} ({cells.signed(lead)})')
    words = {v: ', '.join(told.get(v, ['none'])) for v in (-1, 0, 1)}
    lines.append(
      f'- {name} against {arms.TARGETS[method].title}: '
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
      cells.signed(pair['mean']),
      '-' if pair['se'] is None else f'{pair["se"]:.1f}',
      ' '.join(cells.signed(v) for v in pair['values'].values()),
    ]
    for pair in report['pairs']
  ]
  return [
    '## Paired differences',
    '',
    'Of the mean over tasks, in points, seed by seed; more is better for the'
    ' first of the two.',
    '',
    *cells.table(['difference', 'mean', 'se', 'per seed'], rows),
  ]


def _parameters_section(report: Mapping[str, Any]) -> list[str]:
  p = report['parameters']
  whole = report['backbone']['parameters']
  rows = [
    [arms.TARGETS[method].title, f'{count:,}', f'{100 * count / whole:.3f} %']
    for method, count in p['methods'].items()
  ]
  rows.append(
    [
      f'MPT, {p["targets"]} target tasks in one group',
      f'{p["group"]:,.0f}',
      f'{100 * p["group"] / whole:.3f} %',
    ]
  )
  trained = [
    arm.title
    for arm in map(arms.TARGETS.__getitem__, p['methods'])
    if arm.product == BACKBONE
  ]
  but = f' but by {" and ".join(trained)}' if trained else ''
  return [
    '## Parameters per target task',
    '',
    f'P = {p["prompt_length"]}, D = {p["emb_dim"]}, R = {p["rank"]}: a plain'
    ' prompt has P·D; MPT has P·D + (P + D)·R, or P·D/K + (P + D)·R where K'
    ' tasks share P\\*. The runs above adapt each task by itself. The backbone'
    f' ({report["backbone"]["name"]}) has {whole:,}, all frozen{but}.',
    '',
    *cells.table(['method', 'trained', 'of the backbone'], rows),
    *_cost_lines(report),
  ]


def _cost_lines(report: Mapping[str, Any]) -> list[str]:
  """What a step takes, in seconds and bytes; nothing if nobody knows."""
  rows = [
    [
      arms.TARGETS[method].title,
      '-' if not (s := costs['step_seconds']) else f'{1000 * s:.1f}',
      '-' if not (n := costs['step_bytes']) else f'{1e-6 * n:.1f}',
    ]
    for method, costs in report['costs'].items()
    if any(costs.values())
  ]
  if not rows:
    return []
  return [
    'What a training step takes: its time in the fastest run (they shared the'
    ' machine), and the memory that the compiler plans for it: parameters,'
    ' optimizer, batch and what is held in between.',
    '',
    *cells.table(['method', 'ms a step', 'MB'], rows),
  ]


def _similarity_section(report: Mapping[str, Any]) -> list[str]:
  if plots.SIMILARITY not in report['plots']:
    return []
  return [
    '## Prompt similarity',
    '',
    "Cosine between the composed prompts of the first seed's MPT runs"
    ' (source tasks, then target tasks).',
    '',
    f'![prompt similarity]({plots.SIMILARITY})',
    '',
  ]


def _tuning_section(report: Mapping[str, Any]) -> list[str]:
  lines = ['## Learning rates', '']
  rows = []
  for setting in report['plan']['settings']:
    rates = report['rates'].get(setting['tuned_as'] or setting['name'], {})
    methods = report['plan']['methods']
    rows.append(
      [setting['name'], *(cells.show_rates(rates[m]) for m in methods)]
    )
  lines += [
    'Of the plain prompt, or of P\\* / of u and v; of all that a method trains'
    ' elsewhere.',
    '',
    *cells.table(['setting', *report['plan']['methods']], rows),
  ]
  if not report['tuning']:
    return lines + ['They were given, not searched for in this run.', '']
  lines += [rates_lib.told(report['plan']['tuning'], report['tuning']), '']
  edges = [r for r in report['tuning'] if r.get('on_edge')]
  if edges:
    found = ', '.join(
      f'{r["method"]} at {r["setting"]} ({cells.show_rates(r["rates"])})'
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
  lines += cells.table(
    ['setting, method', 'rates', 'mean', *tasks, ''],
    [
      [
        f'{row["setting"]}, {row["method"]}',
        cells.show_rates(row['rates']),
        cells.plain(row['mean']),
        *(cells.plain(row['scores'][task]) for task in tasks),
        'chosen' if row.get('chosen') else '',
      ]
      for row in report['tuning']
    ],
  )
  return lines


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
    *cells.table(['task/split', 'examples', *_COUNTED.values()], rows),
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
    f' output) counts as 0 and is marked {stats.UNDEFINED}.',
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
