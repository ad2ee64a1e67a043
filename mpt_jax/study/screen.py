"""The short table that ends a study on the screen."""

from collections.abc import Mapping, Sequence
from typing import Any

from mpt_jax.study import arms, cells, stats
from mpt_jax.study import results as results_lib


def summary(report: Mapping[str, Any]) -> str:
  """A short table for the screen.

  Args:
    report: from `report.write`.

  Returns:
    A few lines: teachers, source variants, and methods by setting; last which
    differences are beyond noise.
  """
  lines = ['', cells.title(report), '']
  teachers = report['teachers']['mean']
  if teachers:
    lines.append(f'{"teachers":<40}{cells.show(teachers):>14}')
  source = report['source']
  for variant in report['plan']['variants']:
    if variant in source:
      name = f'source: {arms.SOURCES[variant].title}'
      mean = cells.show(source[variant]['mean'])
      lines.append(f'{name:<46.46}{mean:>8}')
  settings = [setting['name'] for setting in report['plan']['settings']]
  if settings:
    lines += ['', f'{"targets":<40}' + ''.join(f'{s:>14}' for s in settings)]
    for method in report['plan']['methods']:
      found = [report['targets'][s][method]['mean'] for s in settings]
      lines.append(
        f'{arms.TARGETS[method].title:<40.40}'
        + ''.join(f'{cells.show(mean):>14}' for mean in found)
      )
    rows = results_lib.baselines(report, list(report['plan']['targets']))
    for name, result in rows.items():
      cell = cells.show(result['mean'])
      lines.append(f'{name:<40}' + f'{cell:>14}' * len(settings))
  lines += ['', *_collapsed_lines(report), *_cut_lines(report)]
  return '\n'.join([*lines, *noise(report)])


def noise(report: Mapping[str, Any]) -> list[str]:
  """Which differences of means over the targets are beyond noise.

  Args:
    report: from `results.collect`.

  Returns:
    One line; none of a study that compares nothing.
  """
  settings = [setting['name'] for setting in report['plan']['settings']]
  compared = [p for p in report['pairs'] if p['where'] in settings]
  compared = compared or list(report['pairs'])
  sure: dict[tuple[str, str], list[str]] = {}
  unsure: dict[tuple[str, str], list[str]] = {}
  alone = []
  for pair in compared:
    sign = stats.told_apart(pair)
    first, second = pair['first'], pair['second']
    if sign is None:
      alone.append(pair['where'])
    elif sign == 0:
      unsure.setdefault((first, second), []).append(pair['where'])
    else:
      who = (first, second) if sign > 0 else (second, first)
      told = f'{pair["where"]} +{abs(pair["mean"]):.1f}'
      sure.setdefault(who, []).append(told)
  if len(report['seeds']) == 1:
    return [
      'One seed: it cannot say which differences are beyond noise; those of a'
      ' few points may be luck. Three seeds or more can (SEEDS).'
    ]
  counts = [pair['n'] for pair in compared if pair['n'] > 1]
  if not counts:
    return []
  how = f'95 %, paired, {cells.span(counts)} seeds'
  parts = [
    f'beyond noise ({how}): {_listed(sure, "over")}',
    f'not told apart: {_listed(unsure, "and")}',
  ]
  if alone:
    parts.append(f'one seed, so no claim: {", ".join(dict.fromkeys(alone))}')
  return ['; '.join(parts)]


def _listed(pairs: Mapping[tuple[str, str], Sequence[str]], word: str) -> str:
  """'mpt over pt (k32 +6.0, full +3.1), …', or 'nothing'."""
  told = [
    f'{first} {word} {second} ({", ".join(where)})'
    for (first, second), where in pairs.items()
  ]
  return ', '.join(told) or 'nothing'


def _collapsed_lines(report: Mapping[str, Any]) -> list[str]:
  """Which trained prompts say next to nothing, for the screen."""
  lines = []
  groups = {
    'teachers': report['teachers'],
    **{
      f'source: {arms.SOURCES[v].title}': r for v, r in report['source'].items()
    },
    **{
      f'{setting}: {arms.TARGETS[method].title}': result
      for setting, methods in report['targets'].items()
      for method, result in methods.items()
    },
    results_lib.ZERO_SHOT: {
      'tasks': {
        task: stat
        for task, stat in report['zero_shot']['tasks'].items()
        if task in report['plan']['targets']
      }
    },
  }
  for mark, word in (
    (stats.COLLAPSED, 'collapsed'),
    (stats.UNDEFINED, 'not defined'),
  ):
    for name, result in groups.items():
      tasks = [t for t, s in result['tasks'].items() if mark in s['marks']]
      if tasks:
        lines.append(f'{mark} {word}, {name}: {", ".join(tasks)}')
  return lines


def _cut_lines(report: Mapping[str, Any]) -> list[str]:
  """Of which tasks so much was cut that scores may show it."""
  tasks = [task for task in report['data'] if cells.is_cut(report, task)]
  return [f'{cells.CUT} data cut: {", ".join(tasks)}'] if tasks else []
