"""What stands at the end of a study's report: sizes, costs, rates, data."""

from collections.abc import Mapping
from typing import Any

from mpt_jax.engine.outcome import BACKBONE
from mpt_jax.engine.trainer import format_seconds
from mpt_jax.study import arms, cells, plots, stats
from mpt_jax.study import rates as rates_lib
from mpt_jax.study.page import (
  Block,
  Bullets,
  Code,
  Heading,
  Listing,
  Picture,
  Table,
  Text,
)

# The parts of the page that hold times; no other one does.
TIMED = ('Cost', 'How')
# What is counted of a split (`mpt_jax.data.counts`), as the report calls it.
_COUNTED = {
  'cut_inputs': 'inputs cut',
  'cut_targets': 'targets cut',
  'unlabelled': 'no label',
  'empty_inputs': 'empty inputs',
}


def blocks(report: Mapping[str, Any]) -> list[Block]:
  """The end of the page.

  Args:
    report: from `results.collect`, with its plots.
  """
  return [
    *_parameters(report),
    *_costs(report),
    *_similarity(report),
    *_rates(report),
    *_examples(report),
    *_how(report),
  ]


def _parameters(report: Mapping[str, Any]) -> list[Block]:
  p = report['parameters']
  whole = report['backbone']['parameters']
  counts = {arms.TARGETS[m].title: n for m, n in p['methods'].items()}
  counts[f'MPT, {p["targets"]} target tasks in one group'] = p['group']
  rows = [
    [title, f'{count:,.0f}', f'{100 * count / whole:.3f} %']
    for title, count in counts.items()
  ]
  records = [
    {'method': title, 'trained': count, 'share_of_backbone': count / whole}
    for title, count in counts.items()
  ]
  trained = [
    arm.title
    for arm in map(arms.TARGETS.__getitem__, p['methods'])
    if arm.product == BACKBONE
  ]
  but = f' but by {" and ".join(trained)}' if trained else ''
  return [
    Heading('Parameters per target task'),
    Text(
      f'P = {p["prompt_length"]}, D = {p["emb_dim"]}, R = {p["rank"]}: a plain'
      ' prompt has P·D; MPT has P·D + (P + D)·R, or P·D/K + (P + D)·R where K'
      ' tasks share P*. The runs above adapt each task by itself, but for those'
      f' of all together. The backbone ({report["backbone"]["name"]}) has'
      f' {whole:,}, all frozen{but}.'
    ),
    Table(
      ['method', 'trained', 'of the backbone'], rows, 'parameters', records
    ),
  ]


def _costs(report: Mapping[str, Any]) -> list[Block]:
  """What training takes; nothing of what nobody knows."""
  ours = report['costs'].get(arms.OURS, {})
  steps = {
    s['name']: s['steps'] for s in report['plan']['settings'] if s['steps']
  }
  rows, records = [], []
  for method, costs in report['costs'].items():
    if not any(costs.values()):
      continue
    seconds, needs = costs['step_seconds'], costs['step_bytes']
    ratios = [
      f'{costs[name] / ours[name]:.2f}'
      if costs[name] and ours.get(name)
      else '-'
      for name in ('step_seconds', 'step_bytes')
    ]
    count = report['parameters']['methods'].get(method)
    rows.append(
      [
        arms.TARGETS[method].title,
        f'{costs["runs"]:,}',
        f'{costs["steps"]:,}',
        f'{costs["seconds"] / 3600:.3g}',
        '-' if not seconds else f'{1000 * seconds:.1f}',
        '-' if not needs else f'{1e-6 * needs:.1f}',
        '-' if count is None else f'{count:,}',
        *ratios,
      ]
    )
    hours = {'runs': costs['runs'], 'steps': costs['steps']}
    hours['hours'] = costs['seconds'] / 3600
    step = {'step_seconds': seconds, 'step_bytes': needs}
    records.append({'method': method, **hours, **step, 'trained': count})
  before = ', '.join(
    f'{stage} {format_seconds(report["seconds"][stage])}'
    for stage in ('teacher', 'source', 'tuning')
    if stage in report['seconds']
  )
  made: list[Block] = [Heading('Cost')]
  if rows:
    header = ['method', 'target runs', 'steps', 'hours', 'ms a step', 'MB']
    made += [
      Text(
        'Steps and hours are those of all reported target runs of a method one'
        ' after the other, with their start and evaluations; of a step, its'
        ' time in the fastest run (they shared the machine) and the memory that'
        ' the compiler plans for it: parameters, optimizer, batch and what is'
        ' held in between. Steps of a run: '
        + ', '.join(f'{name} {number:,}' for name, number in steps.items())
        + '.'
      ),
      Table(
        [*header, 'trained', 'seconds a step / MPT', 'memory / MPT'],
        rows,
        'costs',
        records,
      ),
    ]
  if before:
    made.append(Text(f'What they start from and their search: {before}.'))
  return made if len(made) > 1 else []


def _similarity(report: Mapping[str, Any]) -> list[Block]:
  if plots.SIMILARITY not in report['plots']:
    return []
  found = report['similarity']
  records = [
    {'task': task, 'with': other, 'cosine': value}
    for task, row in zip(found['tasks'], found['cosine'], strict=True)
    for other, value in zip(found['tasks'], row, strict=True)
  ]
  rows = [
    [task, *(f'{value:.2f}' for value in row)]
    for task, row in zip(found['tasks'], found['cosine'], strict=True)
  ]
  return [
    Heading('Prompt similarity'),
    Text(
      "Cosine between the composed prompts of the first seed's MPT runs"
      ' (source tasks, then target tasks).'
    ),
    Picture(plots.SIMILARITY, 'prompt similarity'),
    Table(['cosine', *found['tasks']], rows, 'similarity', records),
  ]


def _rates(report: Mapping[str, Any]) -> list[Block]:
  methods = report['plan']['methods']
  rows, records = [], []
  for setting in report['plan']['settings']:
    rates = report['rates'].get(setting['tuned_as'] or setting['name'], {})
    rows.append(
      [
        setting['name'],
        *(cells.show_rates(rates[m]) if m in rates else '-' for m in methods),
      ]
    )
    records += [
      {
        'setting': setting['name'],
        'method': method,
        **dict(zip(('rate', 'task_rate'), rates[method], strict=False)),
      }
      for method in methods
      if method in rates
    ]
  return [
    Heading('Learning rates'),
    Text(
      'Of the plain prompt, or of P* / of u and v; of all that a method trains'
      ' elsewhere.'
    ),
    Table(['setting', *methods], rows, 'rates', records),
    *_search(report),
  ]


def _search(report: Mapping[str, Any]) -> list[Block]:
  """What was tried, which of it was chosen, and where a grid may be narrow."""
  if not report['tuning']:
    return [Text('They were given, not searched for in this run.')]
  plan = report['plan']
  tasks = list(plan['tuning'].get('targets') or plan['targets'])
  made: list[Block] = [Text(rates_lib.told(plan['tuning'], report['tuning']))]
  edges = [r for r in report['tuning'] if r.get('on_edge')]
  found = ', '.join(
    f'{r["method"]} at {r["setting"]} ({cells.show_rates(r["rates"])})'
    for r in edges
  )
  made.append(
    Text(
      f'On an edge of its grid, perhaps undertuned: {found}.'
      if edges
      else 'No best value lies on an edge of its grid.'
    )
  )
  if any(
    None in row['scores'].values() and not row.get('pruned')
    for row in report['tuning']
  ):
    made.append(
      Text(
        '"-" was not defined, or its run diverged: it counts as 0, or as the'
        ' worst there is where less is better.'
      )
    )
  rows = [
    [
      f'{row["setting"]}, {row["method"]}',
      cells.show_rates(row['rates']),
      cells.plain(row['mean']),
      *(cells.plain(row['scores'].get(task)) for task in tasks),
      _fate(row),
    ]
    for row in report['tuning']
  ]
  records = [
    {
      **{'setting': row['setting'], 'method': row['method']},
      **dict(zip(('rate', 'task_rate'), row['rates'], strict=False)),
      'mean': row['mean'],
      **{task: row['scores'].get(task) for task in tasks},
      'marks': _fate(row),
    }
    for row in report['tuning']
  ]
  header = ['setting, method', 'rates', 'mean', *tasks, '']
  return [*made, Table(header, rows, 'tuning', records)]


def _fate(row: Mapping[str, Any]) -> str:
  """What became of a trial of the search."""
  if row.get('chosen'):
    return 'chosen, on an edge' if row.get('on_edge') else 'chosen'
  return 'pruned' if row.get('pruned') else ''


def _examples(report: Mapping[str, Any]) -> list[Block]:
  """What of the data was not read as it stands; nothing if it was not told."""
  known = report['examples']
  if not known:
    return []
  found = {
    name: numbers
    for name, numbers in sorted(known.items())
    if any(numbers[key] for key in _COUNTED)
  }
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
    for name, numbers in found.items()
  ]
  if not rows:
    return [
      Heading('What was cut'),
      Text(
        'No input or target was longer than its length; every example had a'
        ' label and an input.'
      ),
    ]
  others = len(known) - len(rows)
  return [
    Heading('What was cut'),
    Text(
      'Inputs and targets over their length are cut; examples without a label'
      ' are neither trained on nor scored. Nothing of the kind in'
      f' {others} other splits.'
    ),
    Table(
      ['task/split', 'examples', *_COUNTED.values()],
      rows,
      'cut',
      [
        {'split': name, **{k: n[k] for k in ('examples', *_COUNTED)}}
        for name, n in found.items()
      ],
    ),
  ]


def _how(report: Mapping[str, Any]) -> list[Block]:
  plan, seconds = report['plan'], report['seconds']
  stages = ', '.join(
    f'{stage} {format_seconds(value)}'
    for stage, value in seconds.items()
    if stage not in ('this_call', 'all_runs')
  )
  items: list[Any] = [
    ['Command: ', Code(report['command']), f', on {report["device"]}.'],
    f'Time: {format_seconds(seconds["this_call"])} for the last call; all'
    f' runs together, one after the other,'
    f' {format_seconds(seconds["all_runs"])} ({stages}).',
    f'Seeds: {", ".join(map(str, plan["seeds"]))}; ablations:'
    f' {", ".join(map(str, plan["ablation_seeds"]))}. Every target run of MPT'
    " starts from its own seed's source run.",
  ]
  related = [f'{t} from {s}' for t, s in plan['targets'].items() if s]
  if related:
    items.append(
      'Single-source transfer starts from one teacher, picked by hand:'
      f' {", ".join(related)}.'
    )
  items += [
    'Main score of a task: accuracy where it exists, else F1, exact match,'
    ' Matthews or Pearson correlation; an undefined correlation (constant'
    f' output) counts as 0 and is marked {stats.UNDEFINED}.',
    'Test examples: '
    + ', '.join(f'{t} {f["test"]}' for t, f in report['data'].items())
    + '.',
    'Versions: '
    + ', '.join(f'{name} {v}' for name, v in report['versions'].items())
    + '.',
    [
      'Every table as plain numbers: ',
      Code('tables/*.csv'),
      '; every picture as vectors: the ',
      Code('.svg'),
      ' beside it; all of it for machines: ',
      Code('report.json'),
      '.',
    ],
  ]
  return [
    Heading('How'),
    Bullets(items),
    Text(
      [
        "Every run's command is in its ",
        Code('step.json'),
        '; the first of each kind:',
      ]
    ),
    Listing(list(report['commands'].values())),
  ]
