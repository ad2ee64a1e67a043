"""The zero-shot matrix as tables and pictures, of what `matrix.json` holds."""

from collections.abc import Iterable, Mapping, Sequence
import csv
import dataclasses
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from mpt_jax import analysis
from mpt_jax.transfer import categories, sources

if TYPE_CHECKING:
  from matplotlib.figure import Figure

Record = Mapping[str, Any]

_TITLES = {
  'score': ('score', 'score'),
  'relative': (
    "zero-shot transfer, relative to the target's own prompt",
    '100 * score / own score',
  ),
  'gain': (
    'zero-shot transfer, gain over a random prompt',
    '(score - random) / (own - random)',
  ),
}
_FORMATS = {'score': '.1f', 'relative': '.0f', 'gain': '.2f'}
_COLLAPSED = '†'


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of a table: a prompt, or the mean of several runs.

  Attributes:
    name: its title.
    source: the prompt, or the first of several, as in the record.
    runs: how many it is of.
    cells: target -> its cell, or its mean.
  """

  name: str
  source: Mapping[str, Any]
  runs: int
  cells: Mapping[str, Mapping[str, Any]]

  @property
  def is_control(self) -> bool:
    """Whether it is none of the sources that were learned on a task."""
    return self.source['kind'] != sources.VALUE or not self.source['task']


def mean(values: Iterable[float | None]) -> float | None:
  """Returns the mean of those that are defined; None if none is."""
  known = [value for value in values if value is not None]
  return float(np.mean(known)) if known else None


def number(value: float | None) -> float:
  """Returns a value as a float, NaN for None."""
  return float('nan') if value is None else float(value)


def rows(record: Record) -> list[Row]:
  """Returns the sources by category, then the controls.

  Behind several runs of a task stands their mean.
  """
  by_name: dict[str, dict[str, Any]] = {}
  for cell in (*record['cells'], *record['means']):
    by_name.setdefault(cell['source'], {})[cell['task']] = cell
  single = [
    Row(source['name'], source, 1, by_name[source['name']])
    for source in record['sources']
  ]
  means: dict[str, tuple[str, list[str]]] = {
    name: (m['source'], m['of']) for m in record['means'] for name in m['of']
  }
  given = {
    s['task']: s['category'] for s in (*record['sources'], *record['targets'])
  }
  tasks = [t['task'] for t in record['targets']]
  tasks += [r.source['task'] for r in single if not r.is_control]
  order = categories.ordered(list(dict.fromkeys(tasks)), given)
  learned = sorted(
    (r for r in single if not r.is_control),
    key=lambda row: order.index(row.source['task']),
  )
  controls = [row for row in single if row.is_control]
  found = []
  for row in (*learned, *controls):
    found.append(row)
    name, members = means.get(row.name, ('', []))
    if members and row.name == members[-1]:
      found.append(Row(name, row.source, len(members), by_name[name]))
  return found


def table(record: Record) -> str:
  """Returns the scores as text, with what they are compared with."""
  targets = record['targets']
  lines = [['', *(t['task'] for t in targets)]]
  for row in rows(record):
    line = [row.name]
    for target in targets:
      cell = row.cells[target['task']]
      text = text_of(cell['score'], 'score')
      own = not row.is_control and row.source['task'] == target['task']
      marks = _COLLAPSED if cell['collapsed'] else ''
      line.append(f'[{text}]{marks}' if own else f'{text}{marks}')
    lines.append(line)
  lines.append(
    ['majority class', *(text_of(t['majority'], 'score') for t in targets)]
  )
  lines.append(['metric', *(t['metric'] for t in targets)])
  lines.append(['examples', *(str(t['examples']) for t in targets)])
  return '\n'.join([as_table(lines), *_below(record)])


def as_table(lines: Sequence[Sequence[str]]) -> str:
  """Returns lines of cells as text, the first column to the left."""
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return '\n'.join(
    '  '.join(
      [line[0].ljust(widths[0])]
      + [c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)]
    ).rstrip()
    for line in lines
  )


def _below(record: Record) -> list[str]:
  """What must be read beside the scores."""
  lines = [
    f'[own prompt]  {_COLLAPSED} collapsed: the answers are one class, or most'
    ' are none'
  ]
  readouts = {t['task']: t['readout'] for t in record['targets']}
  written = [t for t, r in readouts.items() if r != record['readout']]
  if written:
    lines.append(
      f'generated, since there are no label words: {", ".join(written)}'
    )
  lines += record['undefined']
  for what in ('relative', 'gain'):
    said = []
    for group in ('same', 'other'):
      found = record['groups'].get(group, {}).get(what)
      if found is not None:
        said.append(
          f'{group} category {found["mean"]:{_FORMATS[what]}}'
          f' ({found["low"]:{_FORMATS[what]}} to'
          f' {found["high"]:{_FORMATS[what]}}, {found["pairs"]} pairs)'
        )
    if said:
      lines.append(f'{what}: {"; ".join(said)}')
  if record['synthetic']:
    lines.append('SYNTHETIC DATA: these scores say nothing about the real data')
  return lines


def text_of(value: float | None, what: str) -> str:
  """Returns a 'score', 'relative' or 'gain' as text; '-' for none."""
  return '-' if value is None else format(value, _FORMATS[what])


def long_csv(record: Record) -> bytes:
  """Returns a line for each cell and mean; what is not defined is empty."""
  header = (
    *('source', 'source_task', 'source_category', 'kind', 'run', 'runs'),
    *('target', 'target_category', 'metric', 'readout', 'examples', 'score'),
    *('std', 'low', 'high', 'majority', 'collapsed', 'relative', 'gain'),
  )
  lines: list[Sequence[Any]] = [header]
  for row in rows(record):
    source = row.source
    for target in record['targets']:
      cell = row.cells[target['task']]
      lines.append(
        (
          *(row.name, source['task'], source['category'], source['kind']),
          *(source['run'] if row.runs == 1 else '', row.runs),
          *(target['task'], target['category'], target['metric']),
          *(target['readout'], target['examples'], cell['score']),
          *(cell.get('std'), *(cell.get('interval') or (None, None))),
          *(target['majority'], int(cell['collapsed'])),
          *(cell['relative'], cell['gain']),
        )
      )
  return as_csv(lines)


def wide_csv(record: Record, what: str) -> bytes:
  """Returns a line for each source, a column for each target.

  Args:
    record: the matrix.
    what: 'score', 'relative' or 'gain'.
  """
  targets = [t['task'] for t in record['targets']]
  lines: list[Sequence[Any]] = [('source', *targets)]
  for row in rows(record):
    lines.append((row.name, *(row.cells[t][what] for t in targets)))
  return as_csv(lines)


def as_csv(lines: Iterable[Sequence[Any]]) -> bytes:
  """Returns lines of values as a file."""
  text = io.StringIO()
  csv.writer(text, lineterminator='\n').writerows(lines)
  return text.getvalue().encode()


def heatmap(record: Record, what: str = 'relative') -> 'Figure':
  """Draws sources (rows) on targets (columns), both by category.

  Lines separate categories, a thick one the controls; † marks a cell whose
  answers are one class, a frame the own prompt, grey what is not defined.

  Args:
    record: the matrix.
    what: 'score', 'relative' or 'gain'.
  """
  shown, targets = rows(record), record['targets']
  values = np.array(
    [[number(r.cells[t['task']][what]) for t in targets] for r in shown]
  )
  # One cell far out must not take the colours from all others.
  low, high = {'score': (0, 100), 'relative': (0, 110), 'gain': (-0.5, 1.1)}[
    what
  ]
  title, label = _TITLES[what]
  width = 3.2 + 0.55 * len(targets)
  figure, axes = analysis.figure(width, 1.8 + 0.32 * len(shown))
  axes.set_facecolor('0.8')
  image = axes.imshow(
    np.ma.masked_invalid(values), vmin=low, vmax=high, aspect='auto'
  )
  for i, row in enumerate(shown):
    for j, target in enumerate(targets):
      cell = row.cells[target['task']]
      mark = _COLLAPSED if cell['collapsed'] else ''
      own = not row.is_control and row.source['task'] == target['task']
      bright = values[i, j] > low + 0.6 * (high - low)
      axes.text(
        j,
        i,
        text_of(cell[what], what) + mark,
        ha='center',
        va='center',
        fontsize=7,
        fontweight='bold' if own else 'normal',
        color='black' if bright or cell[what] is None else 'white',
      )
  axes.set_xticks(
    range(len(targets)),
    [t['task'] for t in targets],
    rotation=45,
    ha='right',
    fontsize=8,
  )
  axes.set_yticks(range(len(shown)), [r.name for r in shown], fontsize=8)
  axes.set_xlabel('target')
  axes.set_ylabel('source')
  _separate(axes, shown, targets)
  figure.colorbar(image, shrink=0.8, label=label, extend='both')
  axes.set_title(title, fontsize=10)
  return figure


def _separate(
  axes: Any, shown: Sequence[Row], targets: Sequence[Mapping[str, Any]]
) -> None:
  """Lines between categories, and a thick one above the controls."""
  for i in range(1, len(shown)):
    before, row = shown[i - 1], shown[i]
    if row.is_control != before.is_control:
      axes.axhline(i - 0.5, color='white', linewidth=5)
    elif (
      not row.is_control and row.source['category'] != before.source['category']
    ):
      axes.axhline(i - 0.5, color='white', linewidth=2)
  for j in range(1, len(targets)):
    if targets[j]['category'] != targets[j - 1]['category']:
      axes.axvline(j - 0.5, color='white', linewidth=2)
