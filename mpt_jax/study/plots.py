"""The pictures of a study's report."""

from collections.abc import Callable, Mapping, Sequence
import functools
import math
import os
from typing import Any

import numpy as np

from mpt_jax import analysis
from mpt_jax.checkpoints import files
from mpt_jax.study import arms, cells, stats
from mpt_jax.study import results as results_lib

CURVES, TASK_CURVES = 'source_curves.png', 'source_task_curves.png'
TARGETS, RUNS = 'targets_{setting}.png', 'target_curves_{setting}.png'
SHOTS, SIMILARITY = 'score_by_examples.png', 'prompt_similarity.png'
# Bars side by side, and panels: more go below one another.
_MOST_BARS, _COLUMNS = 56, 3


def figures(report: Mapping[str, Any]) -> dict[str, Callable[[], Any]]:
  """What there is to see in a report.

  Args:
    report: from `results.collect`.

  Returns:
    File name -> what draws it, and returns a figure.
  """
  found: dict[str, Callable[[], Any]] = {}
  if any(curve['steps'] for curve in report['curves'].values()):
    found[CURVES] = functools.partial(_plot_curves, report)
  lines = [(arms.SOURCES[v], c) for v, c in report['task_curves'].items() if c]
  if lines:
    found[TASK_CURVES] = functools.partial(
      _plot_task_curves, report, lines, 'Source stage'
    )
  for setting, results in report['targets'].items():
    if any(result['tasks'] for result in results.values()):
      found[TARGETS.format(setting=setting)] = functools.partial(
        _plot_targets, report, setting, results
      )
    drawn = report['target_curves'].get(setting)
    if drawn:
      lines = [(arms.TARGETS[m], curves) for m, curves in drawn.items()]
      found[RUNS.format(setting=setting)] = functools.partial(
        _plot_task_curves, report, lines, f'Targets, {setting}'
      )
  if len(_by_shots(report)) > 1:
    found[SHOTS] = functools.partial(_plot_shots, report)
  if len(report['similarity']['tasks']) > 1:
    found[SIMILARITY] = functools.partial(
      _plot_similarity, report['similarity']
    )
  return found


def vector(name: str) -> str:
  """The name of the same picture as vectors."""
  return f'{os.path.splitext(name)[0]}.svg'


def save(draw: Callable[[], Any], path: str) -> None:
  """Writes what is drawn as a PNG file, and as an SVG file beside it."""
  figure = draw()
  files.write_file(vector(path), analysis.svg(figure))
  files.write_file(path, analysis.png(figure))


def _panels(count: int, width: float, height: float) -> tuple[Any, list[Any]]:
  """A figure of so many panels, and those."""
  columns = min(count, _COLUMNS)
  rows = math.ceil(count / columns)
  figure, axes = analysis.figure(
    width * columns, height * rows + 0.8, columns, rows
  )
  axes = [axes] if columns * rows == 1 else list(axes)
  for spare in axes[count:]:
    spare.remove()
  return figure, axes[:count]


def _finish(figure: Any, axes: Any, title: str) -> None:
  """Title and one legend for all panels."""
  figure.suptitle(title, fontsize=11)
  known: dict[str, Any] = {}
  for panel in axes:
    known |= dict(zip(*panel.get_legend_handles_labels()[::-1], strict=True))
  figure.legend(
    known.values(),
    known.keys(),
    fontsize=9,
    loc='outside lower center',
    ncols=3,
  )


def _say_cut(axes: Any) -> None:
  """Says of a value axis where it begins, if not at 0."""
  low = axes.get_ylim()[0]
  if low > 0:
    axes.text(
      *(0.02, 0.02, f'axis from {low:.0f}, not 0'),
      transform=axes.transAxes,
      fontsize=8,
      style='italic',
      color='0.35',
      bbox={'facecolor': 'white', 'alpha': 0.8, 'linewidth': 0, 'pad': 1},
    )


# ---------------------------------------------------------------------------
# Learning curves.


def _draw_curve(axes: Any, arm: arms.Arm, curve: Mapping[str, Any]) -> None:
  """Mean over seeds by step, and a standard deviation around it."""
  values = np.array([v for k, v in curve.items() if k != 'steps'])
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
      linewidth=0,
      alpha=0.12,
    )


def _plot_curves(report: Mapping[str, Any]) -> Any:
  figure, axes = analysis.figure(7, 4.2)
  last = 0.0
  for variant, curve in report['curves'].items():
    if curve['steps']:
      _draw_curve(axes, arms.SOURCES[variant], curve)
      last = max(last, curve['steps'][-1])
  axes.axvline(last / 10, color='grey', linewidth=0.8, linestyle=':')
  axes.set_xlabel('step (dotted: a tenth of all)')
  axes.set_ylabel('mean validation score of the source tasks')
  axes.set_title(f'Source stage: {cells.title(report)}', fontsize=10)
  axes.grid(alpha=0.3)
  _say_cut(axes)
  axes.legend(fontsize=8)
  return figure


def _plot_task_curves(
  report: Mapping[str, Any],
  lines: Sequence[tuple[arms.Arm, Mapping[str, Any]]],
  title: str,
) -> Any:
  """A panel for each task, a line for each arm."""
  tasks = list(dict.fromkeys(t for _, curves in lines for t in curves))
  figure, axes = _panels(len(tasks), 4.0, 2.8)
  for panel, task in zip(axes, tasks, strict=True):
    for arm, curves in lines:
      if task in curves:
        _draw_curve(panel, arm, curves[task])
    panel.set_title(cells.task_title(report, task), fontsize=10)
    panel.set_xlabel('step', fontsize=9)
    panel.grid(alpha=0.3)
    _say_cut(panel)
  for panel in axes[::_COLUMNS]:
    panel.set_ylabel('validation score', fontsize=9)
  whole = f'{title}: {cells.title(report)}; band: ± standard deviation'
  _finish(figure, axes, whole)
  return figure


# ---------------------------------------------------------------------------
# Scores.


def _plot_targets(
  report: Mapping[str, Any], setting: str, results: Mapping[str, Any]
) -> Any:
  colours = {arm.title: arm.colour for arm in arms.TARGETS.values()}
  shown = {arms.TARGETS[m].title: r for m, r in results.items() if r['tasks']}
  tasks = list(dict.fromkeys(t for r in shown.values() for t in r['tasks']))
  baselines = results_lib.baselines(report, tasks)
  majority = baselines.pop(results_lib.MAJORITY, None)
  shown |= baselines
  groups = [*tasks, 'mean']
  most = max(1, min(len(groups), _MOST_BARS // len(shown)))
  # Of about equal length.
  rows = math.ceil(len(groups) / most)
  most = math.ceil(len(groups) / rows)
  inches = 1.6 + max(1.2, 0.2 * len(shown)) * most
  figure, axes = analysis.figure(inches, 3.2 * rows + 1.2, 1, rows)
  axes = [axes] if rows == 1 else axes
  for row, panel in enumerate(axes):
    part = groups[row * most : (row + 1) * most]
    for i, (name, result) in enumerate(shown.items()):
      colour = colours.get(name, '0.75')
      _draw_bars(panel, part, result, name, colour, (i, len(shown)))
    if majority is not None:
      _draw_majority(panel, [_stat(majority, group) for group in part])
    titles = [
      cells.task_title(report, t).replace(' (', '\n(', 1) if t in tasks else t
      for t in part
    ]
    panel.set_xticks(range(len(part)), titles, fontsize=9)
    panel.set_xlim(-0.5, most - 0.5)
    panel.set_ylabel(_unit_title(report, tasks), fontsize=9)
    panel.grid(axis='y', alpha=0.3)
    panel.set_axisbelow(True)
    low, high = panel.get_ylim()
    # Room for the numbers above the bars.
    panel.set_ylim(low if low < 0 else 0, high + 0.14 * (high - min(low, 0)))
  title = f'Targets, {setting}: {cells.title(report)}'
  _finish(figure, axes, f'{title}; whisker: ± standard deviation')
  return figure


def _stat(result: Mapping[str, Any], group: str) -> stats.Stat | None:
  return result['mean'] if group == 'mean' else result['tasks'].get(group)


def _draw_bars(
  axes: Any,
  groups: Sequence[str],
  result: Mapping[str, Any],
  name: str,
  colour: str,
  place: tuple[int, int],
) -> None:
  """A method's bars, with their values.

  Args:
    axes: where.
    groups: tasks, and 'mean'.
    result: the method's results.
    name: for the legend.
    colour: of the bars.
    place: which of how many methods it is.
  """
  width = 0.84 / place[1]
  shift = (place[0] - (place[1] - 1) / 2) * width
  at = [(p, s) for p, g in enumerate(groups) if (s := _stat(result, g))]
  bars = axes.bar(
    [p + shift for p, _ in at],
    [s['mean'] for _, s in at],
    width,
    yerr=[s['std'] or 0.0 for _, s in at]
    if any(s['std'] for _, s in at)
    else None,
    error_kw={'elinewidth': 0.8, 'ecolor': '0.25'},
    capsize=1.5,
    label=name,
    color=colour,
  )
  for bar, (_, stat) in zip(bars, at, strict=True):
    if stat['marks']:
      _hatch(axes, bar)
    top = max(stat['mean'], 0.0) + (stat['std'] or 0.0)
    axes.annotate(
      f'{stat["mean"]:.1f}{"".join(stat["marks"])}',
      (bar.get_x() + bar.get_width() / 2, top),
      (0, 2),
      textcoords='offset points',
      ha='center',
      va='bottom',
      rotation=90 if place[1] > 3 else 0,
      fontsize=7,
    )


def _hatch(axes: Any, bar: Any) -> None:
  """Hatches a bar whose score says next to nothing."""
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


def _draw_majority(axes: Any, stats: Sequence[stats.Stat | None]) -> None:
  """A line across each task's bars at what the commonest class scores."""
  at = [(place, s['mean']) for place, s in enumerate(stats) if s]
  axes.hlines(
    [value for _, value in at],
    [place - 0.46 for place, _ in at],
    [place + 0.46 for place, _ in at],
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
  marks = f'\n{stats.COLLAPSED} collapsed, {stats.UNDEFINED} not defined'
  if any(cells.is_cut(report, task) for task in tasks):
    marks += f', {cells.CUT} data cut'
  return f'test score{f" ({unit})" if unit else ""}{marks}'


# ---------------------------------------------------------------------------
# Scores by number of examples.


def _by_shots(report: Mapping[str, Any]) -> dict[int, str]:
  """Number of examples -> its setting, of those with results."""
  return {
    s['num_shots']: s['name']
    for s in sorted(
      (s for s in report['plan']['settings'] if s['num_shots'] is not None),
      key=lambda s: s['num_shots'],
    )
    if any(r['tasks'] for r in report['targets'][s['name']].values())
  }


def _plot_shots(report: Mapping[str, Any]) -> Any:
  """Score over the number of examples: the mean, and each task."""
  shots = {float(k): name for k, name in _by_shots(report).items()}
  ticks = [f'{k:.0f}' for k in shots]
  whole = next(
    (s['name'] for s in report['plan']['settings'] if s['num_shots'] is None),
    None,
  )
  if whole is not None:
    shots[4 * max(shots)] = whole
    ticks.append('all')
  methods = report['plan']['methods']
  tables = [report['targets'][name] for name in shots.values()]
  tasks = list(
    dict.fromkeys(
      t for table in tables for r in table.values() for t in r['tasks']
    )
  )
  groups = ['mean', *tasks]
  majority = results_lib.baselines(report, tasks).get(results_lib.MAJORITY)
  figure, axes = _panels(len(groups), 4.0, 3.0)
  for panel, group in zip(axes, groups, strict=True):
    panel.set_xscale('log')
    seen: list[stats.Stat] = []
    for i, method in enumerate(methods):
      points = [
        # Side by side, so that no whisker hides another.
        (k * 1.05 ** (i - (len(methods) - 1) / 2), stat)
        for k, table in zip(shots, tables, strict=True)
        if (stat := _stat(table[method], group))
      ]
      _draw_points(panel, points, arms.TARGETS[method])
      seen += [stat for _, stat in points]
    floor = _stat(majority, group) if majority else None
    if floor:
      at = {'color': 'black', 'linestyle': '--', 'linewidth': 1}
      panel.axhline(floor['mean'], label=results_lib.MAJORITY, **at)
      seen.append(floor)
    _scale(panel, seen)
    title = group if group == 'mean' else cells.task_title(report, group)
    panel.set_title(title, fontsize=10)
    panel.minorticks_off()
    panel.set_xticks(list(shots), ticks)
    panel.set_xlabel('training examples (log)', fontsize=9)
    panel.grid(alpha=0.3)
    _say_cut(panel)
  for panel in axes[::_COLUMNS]:
    panel.set_ylabel(_unit_title(report, tasks), fontsize=9)
  _finish(
    figure,
    axes,
    f'{cells.title(report)}; whisker: interval of 95 %, may leave the axis',
  )
  return figure


def _draw_points(
  axes: Any, points: Sequence[tuple[float, stats.Stat]], arm: arms.Arm
) -> None:
  """A method's line; hollow where a score says next to nothing."""
  if not points:
    return
  x, y = [k for k, _ in points], [s['mean'] for _, s in points]
  looks = {'color': arm.colour, 'marker': 'o', 'markersize': 4}
  axes.plot(x, y, arm.line, label=arm.title, **looks)
  known = [(k, s) for k, s in points if s['low'] is not None]
  axes.vlines(
    [k for k, _ in known],
    [s['low'] for _, s in known],
    [s['high'] for _, s in known],
    color=arm.colour,
    linewidth=0.9,
    alpha=0.6,
  )
  for k, stat in points:
    if stat['marks']:
      axes.plot(k, stat['mean'], 'o', color=arm.colour, mfc='white', ms=5)
      axes.annotate(''.join(stat['marks']), (k, stat['mean']), fontsize=9)


def _scale(axes: Any, seen: Sequence[stats.Stat]) -> None:
  """Sets the value axis by the spreads: an interval of two seeds is endless."""
  if not seen:
    return
  low = min(s['mean'] - (s['std'] or 0.0) for s in seen)
  high = max(s['mean'] + (s['std'] or 0.0) for s in seen)
  room = 0.1 * (high - low) or 1.0
  axes.set_ylim(low - room, high + room)


def _plot_similarity(found: Mapping[str, Any]) -> Any:
  """Cosines of prompts, the source tasks' apart from the targets'."""
  figure = analysis.plot_matrix(found['cosine'], found['tasks'])
  place = found['sources'] - 0.5
  if 0 < found['sources'] < len(found['tasks']):
    figure.axes[0].axhline(place, color='white', linewidth=3)
    figure.axes[0].axvline(place, color='white', linewidth=3)
  return figure
