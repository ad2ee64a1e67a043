"""The pictures of a study's report."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpt_jax import analysis
from mpt_jax.checkpoints import files
from mpt_jax.study import arms, cells, stats
from mpt_jax.study import results as results_lib

CURVES, TARGETS = 'source_curves.png', 'targets_{setting}.png'
SIMILARITY = 'prompt_similarity.png'


def figures(report: Mapping[str, Any]) -> dict[str, Any]:
  """Draws what there is to see in a report.

  Args:
    report: from `results.collect`.

  Returns:
    File name -> figure.
  """
  figures = {}
  if any(curve['steps'] for curve in report['curves'].values()):
    figures[CURVES] = _plot_curves(report)
  for setting, results in report['targets'].items():
    if any(result['tasks'] for result in results.values()):
      name = TARGETS.format(setting=setting)
      figures[name] = _plot_targets(report, setting, results)
  if len(report['similarity']['tasks']) > 1:
    similarity = report['similarity']
    figures[SIMILARITY] = analysis.plot_matrix(
      similarity['cosine'], similarity['tasks']
    )
  return figures


def save(figure: Any, path: str) -> None:
  """Writes a figure as a PNG file."""
  files.write_file(path, analysis.png(figure))


def _plot_curves(report: Mapping[str, Any]) -> Any:
  figure, axes = analysis.figure(7, 4.2)
  last = 0.0
  for variant, curve in report['curves'].items():
    if not curve['steps']:
      continue
    values = np.array([v for k, v in curve.items() if k != 'steps'])
    arm = arms.SOURCES[variant]
    mean = values.mean(axis=0)
    axes.plot(
      curve['steps'],
      mean,
      arm.line,
      color=arm.colour,
      marker='o',
      markersize=3,
      label=arm.title,
    )
    if len(values) > 1:
      spread = values.std(axis=0, ddof=1)
      axes.fill_between(
        curve['steps'],
        mean - spread,
        mean + spread,
        color=arm.colour,
        alpha=0.1,
      )
    last = max(last, curve['steps'][-1])
  axes.axvline(last / 10, color='grey', linewidth=0.8, linestyle=':')
  axes.set_xlabel('step (dotted: a tenth of all)')
  axes.set_ylabel('mean validation score of the source tasks')
  axes.set_title(f'Source stage: {cells.title(report)}', fontsize=10)
  axes.grid(alpha=0.3)
  axes.legend(fontsize=8)
  return figure


def _plot_targets(
  report: Mapping[str, Any], setting: str, results: Mapping[str, Any]
) -> Any:
  colours = {arm.title: arm.colour for arm in arms.TARGETS.values()}
  shown = {arms.TARGETS[m].title: r for m, r in results.items() if r['tasks']}
  tasks = list(dict.fromkeys(t for r in shown.values() for t in r['tasks']))
  baselines = results_lib.baselines(report, tasks)
  majority = baselines.pop(results_lib.MAJORITY, None)
  shown |= baselines
  group = max(1.2, 0.16 * len(shown))
  figure, axes = analysis.figure(1.6 + group * (len(tasks) + 1), 4.2)
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
      color=colours.get(name, '0.75'),
    )
    for bar, (_, stat) in zip(bars, at, strict=True):
      _mark(axes, bar, stat)
  if majority is not None:
    _draw_majority(axes, [*map(majority['tasks'].get, tasks), majority['mean']])
  titles = [cells.task_title(report, t).replace(' (', '\n(', 1) for t in tasks]
  axes.set_xticks(places, [*titles, 'mean'], fontsize=8)
  axes.set_ylabel(_unit_title(report, tasks))
  axes.set_title(f'Targets, {setting}: {cells.title(report)}', fontsize=10)
  axes.grid(axis='y', alpha=0.3)
  figure.legend(fontsize=8, loc='outside lower center', ncols=3)
  return figure


def _mark(axes: Any, bar: Any, stat: stats.Stat) -> None:
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


def _draw_majority(axes: Any, stats: Sequence[stats.Stat | None]) -> None:
  """A line across each task's bars at what the commonest class scores."""
  at = [(place, s['mean']) for place, s in enumerate(stats) if s]
  axes.hlines(
    [value for _, value in at],
    [place - 0.45 for place, _ in at],
    [place + 0.45 for place, _ in at],
    color='black',
    linestyle='--',
    linewidth=1,
    label=results_lib.MAJORITY,
  )


def _unit_title(report: Mapping[str, Any], tasks: Sequence[str]) -> str:
  """'test score (%)', if all tasks have one unit."""
  facts = [report['meanings'].get(task) for task in tasks]
  units = {m['unit'] if m else '' for m in facts}
  unit = units.pop() if len(units) == 1 else ''
  marks = f'; {stats.COLLAPSED} collapsed, {stats.UNDEFINED} not defined'
  return f'test score{f" ({unit})" if unit else ""}{marks}'
