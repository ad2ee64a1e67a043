"""The table, the pictures and the lines of the verb `indicators`."""

from collections.abc import Mapping, Sequence
import csv as csv_lib
import io
import logging
import re
from typing import Any

import numpy as np

from mpt_jax import analysis
from mpt_jax.transfer.categories import category_of
from mpt_jax.transfer.correlation import Pairs
from mpt_jax.transfer.sources import SourcePrompt

log = logging.getLogger(__name__)

# Those that are drawn: the rest goes along with one of them. Of neurons, ON of
# all layers of a side.
_DRAWN = ('E_average', 'C_concat', 'C_average', 'ON', 'C_concat minus start')
_COLUMNS = ('indicator', 'source', 'target', 'same_category', 'value', 'rank')
# Behind what compares position by position where starts differ.
MARK = '*'


def csv(
  prompts: Sequence[SourcePrompt],
  measured: Sequence[Any],
  categories: Mapping[str, str] | None = None,
) -> bytes:
  """Returns every pair of two prompts, with its rank among the target's.

  Args:
    prompts: N of them.
    measured: `indicators.Indicator`s of them.
    categories: see `categories.category_of`.
  """
  buffer = io.StringIO()
  table = csv_lib.writer(buffer, lineterminator='\n')
  table.writerow(_COLUMNS)
  alike = same_category(prompts, categories)
  for each in measured:
    for t, target in enumerate(prompts):
      others = [s for s in range(len(prompts)) if s != t]
      others.sort(key=lambda s: -each.values[s, t])
      for rank, s in enumerate(others, 1):
        value = f'{each.values[s, t]:.6g}'
        about = (prompts[s].name, target.name, int(alike[s, t]))
        table.writerow([each.name, *about, value, rank])
  return buffer.getvalue().encode()


def same_category(
  prompts: Sequence[SourcePrompt], categories: Mapping[str, str] | None = None
) -> np.ndarray:
  """Returns [N, N] bool: prompts of two tasks of one category."""
  tasks = [prompt.task for prompt in prompts]
  of = [category_of(task, categories) for task in tasks]
  return np.array(
    [
      [bool(s and t and s != t and of[i] == of[j]) for j, t in enumerate(tasks)]
      for i, s in enumerate(tasks)
    ]
  )


def groups(
  prompts: Sequence[SourcePrompt],
  values: np.ndarray,
  categories: Mapping[str, str] | None = None,
) -> dict[str, Any]:
  """Returns means over pairs of tasks: of one category, and the others.

  Args:
    prompts: N; those without a task count nowhere.
    values: [N, N].
    categories: see `categories.category_of`.
  """
  alike = same_category(prompts, categories)
  tasks = np.array([prompt.task for prompt in prompts])
  some = (tasks[:, None] != tasks) & (tasks != '') & (tasks != '')[:, None]
  return {
    name: {
      'mean': float(values[chosen].mean()) if chosen.any() else None,
      'n': int(chosen.sum()) // 2,
    }
    for name, chosen in (
      ('same_category', alike),
      ('other_category', some & ~alike),
    )
  }


def pictures(
  prompts: Sequence[SourcePrompt],
  measured: Sequence[Any],
  pairs: Pairs | None,
  categories: Mapping[str, str] | None = None,
) -> dict[str, bytes]:
  """Returns PNG files by name: heatmaps, and with a matrix scatter plots."""
  found = {}
  for each in _drawn(measured):
    slug = re.sub(r'\W+', '_', each.name)
    found[f'heatmap_{slug}.png'] = analysis.png(
      analysis.plot_matrix(
        each.values,
        [prompt.name for prompt in prompts],
        each.name,
        'similarity',
        spread=True,
      )
    )
    if pairs is not None:
      made = scatter(each.name, each.values, pairs, categories)
      found[f'scatter_{slug}.png'] = analysis.png(made)
  return found


def _drawn(measured: Sequence[Any]) -> list[Any]:
  widest = {
    side: max(
      (e.window for e in measured if e.side == side),
      key=lambda window: window[1] - window[0],
    )
    for side in {e.side for e in measured if e.side}
  }
  return [
    each
    for each in measured
    if (each.indicator if each.side else each.name) in _DRAWN
    and (each.side is None or each.window == widest[each.side])
  ]


def scatter(
  name: str,
  values: np.ndarray,
  pairs: Pairs,
  categories: Mapping[str, str] | None = None,
) -> Any:
  """Draws an indicator against relative performance, a point for each pair.

  Args:
    name: of the indicator.
    values: [N, N] of it.
    pairs: which prompts, and what they score.
    categories: see `categories.category_of`.
  """
  made, axes = analysis.figure(6.2, 4.2)
  x, y = pairs.similarity(values), pairs.performance['relative']
  of = {task: category_of(task, categories) for task in pairs.members}
  known = ~pairs.own & np.isfinite(y)
  alike = np.array([[of[s] == of[t] for t in pairs.targets] for s in of])
  colours = {c: f'C{i % 10}' for i, c in enumerate(dict.fromkeys(of.values()))}
  for category, colour in colours.items():
    column = np.array([of[t] == category for t in pairs.targets])
    chosen = known & column
    axes.scatter(x[chosen], y[chosen], s=14, color=colour, label=category)
    ringed = chosen & alike
    axes.scatter(
      x[ringed], y[ringed], s=70, facecolors='none', edgecolors=colour
    )
  axes.set_xlabel(name)
  axes.set_ylabel("relative performance (% of the target's own)")
  axes.set_title('colour: target; ring: source of its category', fontsize=9)
  axes.grid(alpha=0.3)
  made.legend(fontsize=7, loc='outside right upper')
  return made


def say(written: Mapping[str, Any]) -> None:
  """Writes what `indicators.json` holds into the log, as a table."""
  if written['starts'] != 'same':
    what = {
      'different': 'the prompts began with different vectors',
      'unknown': 'nobody knows whether the prompts began alike'
      f' ({", ".join(written["no_start"])} have no start)',
    }[written['starts']]
    log.warning(
      'WARNING: %s: E_concat and C_concat (%s) mean nothing then', what, MARK
    )
  for line in _lines(written):
    log.info('%s', line)


def _lines(written: Mapping[str, Any]) -> list[str]:
  rows = [['indicator', 'same category', 'other']]
  by_name = {row['name']: row for row in written['correlations']}
  if by_name:
    rows[0] += ['rho per target', 'rho pooled']
  for about in written['indicators']:
    name, means = about['name'], about['groups']
    marked = written['starts'] != 'same' and about['indicator'].endswith(
      '_concat'
    )
    row = [name + MARK * marked]
    row += [
      _number(means[g]['mean']) for g in ('same_category', 'other_category')
    ]
    if found := by_name.get(name):
      row += [_rho(found['per_target']), _rho(found['pooled'])]
    rows.append(row)
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    '  '.join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
    for row in rows
  ]


def _number(value: float | None) -> str:
  return '-' if value is None else f'{value:.4f}'


def _rho(found: Mapping[str, Any]) -> str:
  """'0.43 [0.21, 0.60] n 12'."""
  if found['rho'] is None:
    return f'not defined, n {found["n"]}'
  between = ''
  if found['low'] is not None:
    between = f' [{found["low"]:.2f}, {found["high"]:.2f}]'
  return f'{found["rho"]:.2f}{between} n {found["n"]}'
