"""The table, the picture and the lines of the verb `speedup`."""

from collections.abc import Iterator, Mapping
import csv as csv_lib
import io
import textwrap
from typing import Any

import numpy as np

from mpt_jax import analysis

# What a target starts from.
TRANSFER, SCRATCH = 'transfer', 'scratch'
ARMS = (TRANSFER, SCRATCH)
NOT_REACHED = 'not reached'
_TITLES = {TRANSFER: 'transferred start', SCRATCH: 'from scratch'}
_COLUMNS = (
  *('task', 'source', 'setting', 'seed', 'metric', 'rate', 'scratch_rate'),
  *('step0', 'final', 'best', 'convergence', 'collapsed'),
  *('scratch_step0', 'scratch_final', 'scratch_best', 'scratch_convergence'),
  *('scratch_collapsed', 'comparable', 'convergence_speedup'),
  *('comparable_speedup', 'bound', 'why'),
)
# Of those, what may be not reached. A score may be not defined.
_REACHED = (
  *('convergence', 'scratch_convergence', 'comparable'),
  *('convergence_speedup', 'comparable_speedup'),
)


def csv(written: Mapping[str, Any]) -> bytes:
  """Returns a row for each target and seed, behind what the columns mean."""
  buffer = io.StringIO()
  for name, words in written['definitions'].items():
    buffer.write(f'# {name}: {words}\n')
  table = csv_lib.writer(buffer, lineterminator='\n')
  table.writerow(_COLUMNS)
  for row in written['rows']:
    table.writerow(
      (NOT_REACHED if name in _REACHED else 'none')
      if row[name] is None
      else row[name]
      for name in _COLUMNS
    )
  return buffer.getvalue().encode()


def lines(written: Mapping[str, Any]) -> Iterator[str]:
  """The definitions, and a table with a line for each task."""
  for name, words in written['definitions'].items():
    yield f'{name}: {words}'
  rows = [
    [
      *('target', 'start', 'step 0', 'scratch', 'final', 'scratch'),
      *('convergence', 'comparable'),
    ]
  ]
  for task in written['tasks']:
    scores = ('step0', 'scratch_step0', 'final', 'scratch_final')
    rows.append(
      [task['task'], task['source'], *(_score(task[s]) for s in scores)]
      + [_times(task[n]) for n in ('convergence', 'comparable')]
    )
  overall = written['overall']
  rows.append(
    ['all', *[''] * 5, *(_times(overall[n]) for n in overall)],
  )
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  for row in rows:
    yield '  '.join(c.ljust(w) for c, w in zip(row, widths, strict=True))
  for task in written['tasks']:
    if task['on_edge']:
      arms = ' and '.join(_TITLES[arm] for arm in task['on_edge'])
      yield (
        f'{task["task"]}: the best rate of {arms} is at the edge of RATES; a'
        ' wider grid may change this'
      )


def _score(found: Mapping[str, Any]) -> str:
  return 'none' if found['mean'] is None else f'{found["mean"]:.1f}'


def _times(found: Mapping[str, Any]) -> str:
  """'2.10 [1.20, 3.70]', '2.10 (1 of 3 not reached)' or 'not reached'."""
  if found['mean'] is None:
    return NOT_REACHED
  total = found['reached'] + found['not_reached']
  text = f'{found["mean"]:.2f}'
  if found['low'] is not None:
    text += f' [{found["low"]:.2f}, {found["high"]:.2f}]'
  if found['not_reached']:
    text += f' ({found["not_reached"]} of {total} {NOT_REACHED})'
  return text


def plot(written: Mapping[str, Any]) -> Any:
  """Draws the curves of both starts, a panel for each task.

  Args:
    written: what `speedup.json` holds.
  """
  tasks = written['tasks']
  columns = min(4, len(tasks))
  rows = -(-len(tasks) // columns)
  made, axes = analysis.figure(0.6 + 3.6 * columns, 3.1 * rows, columns, rows)
  axes = np.ravel(axes)
  for task, place in zip(tasks, axes, strict=False):
    for i, arm in enumerate(ARMS):
      runs_of = written['curves'][task['task']][arm].values()
      scores = np.array([c['scores'] for c in runs_of], np.float64)
      x, mean = next(iter(runs_of))['steps'], scores.mean(0)
      place.plot(x, mean, f'C{i}', marker='.', label=_TITLES[arm])
      if len(scores) > 1:
        spread = scores.std(0, ddof=1)
        place.fill_between(
          x, mean - spread, mean + spread, color=f'C{i}', alpha=0.15
        )
    place.set_title(f'{task["task"]} from {task["source"]}', fontsize=9)
    place.set_xlabel('step', fontsize=8)
    place.set_ylabel(task['metric'], fontsize=8)
    place.grid(alpha=0.3)
  for place in axes[len(tasks) :]:
    place.set_axis_off()
  axes[0].legend(fontsize=8)
  said = (
    'step 0: the start itself; band: standard deviation over'
    f' {len(written["recipe"]["seeds"])} seeds. Converged:'
    f' {written["definitions"]["convergence"]}'
  )
  made.suptitle(textwrap.fill(said, 28 * columns + 20), fontsize=8)
  return made
