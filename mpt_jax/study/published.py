"""What others published for the same tasks and backbone, beside a study."""

from collections.abc import Mapping
import functools
import os
import statistics
from typing import Any

from mpt_jax import backbones
from mpt_jax.checkpoints import files
from mpt_jax.study import arms, cells
from mpt_jax.study.page import Block, Bullets, Heading, Strong, Table, Text

DATA = os.path.join(os.path.dirname(__file__), 'published.json')
# What follows the name of a task whose labels are digits, as the papers'.
_DIGITS = '_digits'


@functools.cache
def read() -> dict[str, Any]:
  """Returns the data: `groups` of tasks, `rows`, `sources`, `marks`."""
  return files.read_json(DATA)


def section(report: Mapping[str, Any]) -> list[Block]:
  """The published scores of a study's tasks, each row marked as published.

  Args:
    report: from `results.collect`.

  Returns:
    A table for each group of tasks of which the study has one, on real data
    and with all training examples; nothing if the backbone is another one.
  """
  data = read()
  setting = next(
    (s for s in report['plan']['settings'] if s['num_shots'] is None), None
  )
  if setting is None or not _same_backbone(report, data['backbone']):
    return []
  results = report['targets'][setting['name']]
  tables: list[Block] = []
  for group, tasks in data['groups'].items():
    own = _own_tasks(report, tasks)
    if own:
      tables += _table(report, data, group, own, results)
  if not tables:
    return []
  texts = [f'{key}: {text}' for key, text in data['sources'].items()]
  marks = [f'Mark {mark}: {text}.' for mark, text in data['marks'].items()]
  return [
    Heading('Published numbers'),
    Text(
      (
        'Rows that say ',
        Strong('published'),
        f' are not ours. They are of {data["backbone"]}, which we know by its'
        ' sizes alone, trained and tested by other code; text formats, splits,'
        ' steps and search differ. They enter no mean, difference or picture'
        ' here. "?" stands behind a cell that is uncertain.',
      )
    ),
    *tables,
    Bullets([*texts, *marks, *data['remarks']]),
  ]


def _same_backbone(report: Mapping[str, Any], name: str) -> bool:
  """Whether the sizes are those of the backbone of that name."""
  config = report['backbone'].get('config')
  return config is not None and (
    backbones.config_of(config) == backbones.get_config(name)
  )


def _own_tasks(
  report: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
  """Published task -> the study's, with real data and the same metric."""
  found: dict[str, str] = {}
  for task in report['plan']['targets']:
    name = task.removesuffix(_DIGITS)
    facts = tasks.get(name)
    if (
      facts
      and not report['data'][task]['synthetic']
      and report['metrics'].get(task) == facts['metric']
    ):
      found.setdefault(name, task)
  return found


def _table(
  report: Mapping[str, Any],
  data: Mapping[str, Any],
  group: str,
  own: Mapping[str, str],
  results: Mapping[str, Mapping[str, Any]],
) -> list[Block]:
  """Our rows, each with the published ones of its method, then the others."""
  tasks = data['groups'][group]
  rows: list[list[str]] = []
  records: list[dict[str, Any]] = []
  published = [row for row in data['rows'] if group in row['groups']]
  for arm, result in results.items():
    stats = [result['tasks'].get(own.get(task, '')) for task in tasks]
    whole = [s['mean'] for s in stats if s]
    mean = statistics.fmean(whole) if len(whole) == len(tasks) else None
    count = report['parameters']['methods'].get(arm)
    title = arms.TARGETS[arm].title
    size = '-' if count is None else f'{count:,}'
    shown = [*map(cells.show, stats)]
    rows.append([title, 'this study', cells.plain(mean), *shown, size])
    records += _records(title, 'this study', stats, tasks, mean)
    for row in [row for row in published if row['arm'] == arm]:
      _add(row, group, tasks, rows, records)
      published.remove(row)
  for row in published:
    _add(row, group, tasks, rows, records)
  name = f'published_{group.lower()}'
  header = ['method', 'whose', 'mean', *tasks, 'trained a task']
  other = [
    f'{ours} {report["data"][ours]["test"]} (theirs {tasks[task]["test"]})'
    for task, ours in own.items()
    if report['data'][ours]['test'] != tasks[task]['test']
  ]
  notes: list[Block] = []
  if other:
    notes = [Text(f'Test examples differ: {", ".join(other)}.')]
  return [
    Heading(group, 3),
    Table(header, rows, name, records),
    *notes,
  ]


def _add(
  row: Mapping[str, Any],
  group: str,
  tasks: Mapping[str, Any],
  rows: list[list[str]],
  records: list[dict[str, Any]],
) -> None:
  """Adds a published row to those of a table and of its file."""
  found = row['groups'][group]
  values = dict(zip(tasks, found['scores'], strict=True))
  values['mean'] = found['mean']

  def cell(task: str) -> str:
    return f'{values[task]:.1f}{"?" if task in found["uncertain"] else ""}'

  whose = f'published ({row["source"]}, {row["mark"]})'
  rows.append(
    [
      f'{row["title"]} (published)',
      Strong(whose),
      cell('mean'),
      *map(cell, tasks),
      row['parameters'],
    ]
  )
  records += [
    {
      'method': row['title'],
      'whose': whose,
      'task': task,
      'mean': value,
      'marks': '?' if task in found['uncertain'] else '',
    }
    for task, value in values.items()
  ]


def _records(
  title: str,
  whose: str,
  stats: list[Any],
  tasks: Mapping[str, Any],
  mean: float | None,
) -> list[dict[str, Any]]:
  who = {'method': title, 'whose': whose}
  rows = [
    {**who, 'task': task, **cells.record(stat)}
    for task, stat in zip(tasks, stats, strict=True)
    if stat
  ]
  if mean is not None:
    rows.append({**who, 'task': 'mean', 'mean': mean})
  return rows
