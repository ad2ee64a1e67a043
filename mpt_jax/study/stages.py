"""The scores of a study's stages, as parts of its report."""

from collections.abc import Iterable, Mapping, Sequence
import statistics
from typing import Any

from mpt_jax.study import arms, cells, differences, plots
from mpt_jax.study import results as results_lib
from mpt_jax.study.page import Block, Heading, Picture, Table, Text

_NO_MEAN = (
  'No mean over the tasks: their scores have different units or directions, or'
  ' it is not known which way is better.'
)


def rows_of(report: Mapping[str, Any], setting: str) -> dict[str, Any]:
  """A setting's results by arm, then what needs no training by its name."""
  results = report['targets'][setting]
  shown = {arm: r for arm, r in results.items() if r['tasks']}
  tasks = list(dict.fromkeys(t for r in shown.values() for t in r['tasks']))
  return {**shown, **results_lib.baselines(report, tasks)}


def names_of(
  report: Mapping[str, Any], tables: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
  """Row -> its title; arms in the plan's order, then what needs no training."""
  rows = list(dict.fromkeys(row for table in tables.values() for row in table))
  order = [m for m in report['plan']['methods'] if m in rows]
  order += [row for row in rows if row not in order]
  return {
    row: arms.TARGETS[row].title if row in arms.TARGETS else row
    for row in order
  }


def _scores(
  report: Mapping[str, Any],
  shown: Mapping[str, Mapping[str, Any]],
  first: str,
  name: str,
) -> list[Block]:
  """Scores by task and their mean, a row each, and then their intervals.

  Args:
    report: the report.
    shown: title of a row -> its results.
    first: title of the first column.
    name: of the CSV file.
  """
  tasks = list(dict.fromkeys(t for r in shown.values() for t in r['tasks']))
  titles = [cells.task_title(report, t) for t in tasks]
  header = [first, 'mean', *titles]
  found = {
    row: [result['mean'], *map(result['tasks'].get, tasks)]
    for row, result in shown.items()
  }
  records = [
    {first: row, 'task': task, **cells.record(stat)}
    for row, values in found.items()
    for task, stat in zip(['mean', *tasks], values, strict=True)
    if stat
  ]
  made: list[Block] = [
    Table(
      header,
      [[row, *map(cells.show, values)] for row, values in found.items()],
      name,
      records,
    )
  ]
  bounds = [
    [row, *map(cells.bounds, values)]
    for row, values in found.items()
    if any(stat and stat['low'] is not None for stat in values)
  ]
  if bounds:
    made += [Text('Their intervals of 95 % over seeds:'), Table(header, bounds)]
  notes = cells.legend((s for v in found.values() for s in v), titles)
  return [*made, *map(Text, [*notes, *no_mean(shown)])]


def no_mean(shown: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """Why a method has no mean; a baseline that lacks a task has none either."""
  untrained = (results_lib.MAJORITY, results_lib.ZERO_SHOT)
  trained = [r for row, r in shown.items() if row not in untrained]
  return [_NO_MEAN] if any(r['mean'] is None for r in trained) else []


def teachers(report: Mapping[str, Any]) -> list[Block]:
  """The source tasks' own prompts, beside what needs no training."""
  teachers, skills = report['teachers'], report['skills']
  tasks = list(teachers['tasks'])
  if not tasks:
    return []
  beside = results_lib.baselines(report, tasks)
  header = ['task', 'teacher', 'test examples', *beside]
  titles = [cells.task_title(report, task) for task in tasks]
  rows = [
    [
      title,
      cells.show(teachers['tasks'][task]),
      str(report['data'][task]['test']),
      *(cells.show(result['tasks'].get(task)) for result in beside.values()),
    ]
    for task, title in zip(tasks, titles, strict=True)
  ]
  means = [cells.show(result['mean']) for result in beside.values()]
  rows.append(['mean', cells.show(teachers['mean']), '', *means])
  steps = report['plan']['teacher']['steps']
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
  records = [
    {'row': row, 'task': task, **cells.record(stat)}
    for row, result in {'teacher': teachers, **beside}.items()
    for task, stat in {**result['tasks'], 'mean': result['mean']}.items()
    if stat
  ]
  return [
    Heading('Teachers'),
    Text(text),
    Table(header, rows, 'teachers', records),
    *map(Text, cells.legend(every, titles)),
  ]


def source(report: Mapping[str, Any]) -> list[Block]:
  """The source variants: scores, intervals, learning curves."""
  shown = {
    arms.SOURCES[variant].title: result
    for variant, result in report['source'].items()
    if result['tasks']
  }
  if not shown:
    return []
  tasks = list(dict.fromkeys(t for r in shown.values() for t in r['tasks']))
  shown |= results_lib.baselines(report, tasks)
  made: list[Block] = [
    Heading('Source stage'),
    Text(
      f'{report["plan"]["source"]["steps"]} steps on all source tasks together;'
      ' scores on the test split. All variants train with the same learning'
      ' rates, which were not searched for each.'
    ),
    *_scores(report, shown, 'variant', 'source'),
    *_pictures(report, [plots.CURVES, plots.TASK_CURVES], 'learning curves'),
  ]
  if report['curves_undefined'] and plots.CURVES in report['plots']:
    made.append(
      Text(
        f'{report["curves_undefined"]} scores in these curves were not defined'
        ' and count as 0.'
      )
    )
  return made


def _pictures(
  report: Mapping[str, Any], names: Iterable[str], title: str
) -> list[Block]:
  """Those of the pictures that the report has."""
  return [Picture(n, title) for n in names if n in report['plots']]


def targets(report: Mapping[str, Any]) -> list[Block]:
  """The target methods in each setting: scores, intervals, pictures."""
  made = []
  for setting in report['plan']['settings']:
    name = setting['name']
    shown = rows_of(report, name)
    if not shown:
      continue
    data = 'all training examples'
    if setting['num_shots'] is not None:
      data = f'{setting["num_shots"]} training examples per task'
    seeds = len(setting['seeds'])
    titles = names_of(report, {name: shown})
    drawn = [p.format(setting=name) for p in (plots.TARGETS, plots.RUNS)]
    made += [
      Heading(f'{name}: {data}', 3),
      Text(
        f'{setting["steps"]} steps, batch {setting["batch_size"]},'
        f' {seeds} seed{"s" if seeds > 1 else ""}.'
      ),
      *_scores(
        report,
        {title: shown[row] for row, title in titles.items()},
        'method',
        f'targets_{name}',
      ),
      *differences.behind(report, name),
      *_pictures(report, drawn, name),
    ]
  if not made:
    return []
  starts = Text(_starts(report['plan']['methods']))
  return [Heading('Target stage'), starts, *made]


def _starts(names: Sequence[str]) -> str:
  """What the target arms start from, and what they read."""
  shown = [arms.TARGETS[name] for name in names]
  starts: dict[str, list[str]] = {}
  for arm in shown:
    start = arm.start
    if start in arms.SOURCES:
      start = "their seed's source run"
    elif start in (None, arms.OWN):
      start = 'nothing learned before'
    starts.setdefault(str(start), []).append(arm.title)
  text = (
    'What they start from: '
    + '; '.join(f'{start}: {", ".join(who)}' for start, who in starts.items())
    + '. What that costs comes on top of the steps below.'
  )
  if not all(arm.slots for arm in shown):
    text += (
      ' Whose prompt takes no positions of the input, has inputs that are'
      ' shorter by its length: all read the same text.'
    )
  return text


def few_shot(report: Mapping[str, Any]) -> list[Block]:
  """The picture of scores by number of examples, if there is one."""
  drawn = _pictures(report, [plots.SHOTS], 'score by number of examples')
  if not drawn:
    return []
  return [
    Heading('Score by number of examples'),
    Text(
      'Means over seeds with their intervals of 95 %; the numbers stand in the'
      ' tables above.'
    ),
    *drawn,
  ]
