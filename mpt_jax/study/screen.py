"""The short table that ends a study on the screen."""

from collections.abc import Mapping
from typing import Any

from mpt_jax.study import arms, cells, stats
from mpt_jax.study import results as results_lib


def summary(report: Mapping[str, Any]) -> str:
  """A short table for the screen.

  Args:
    report: from `report.write`.

  Returns:
    A few lines: teachers, source variants, and methods by setting.
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
