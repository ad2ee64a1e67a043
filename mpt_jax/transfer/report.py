r"""Writes one page about what other verbs found in a folder.

  python -m mpt_jax.transfer report --gin.MODEL_DIR="'demo-transfer'"

Reads matrix/, indicators/, speedup/, project/ and retrieve/ below MODEL_DIR,
each with what the verb of its name wrote, and writes beside them transfer.md
and transfer.html, which needs no other file. What is not there is left out,
and the page says so. With the same files the page is the same.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import glob
import logging
import os
import statistics
from typing import Any

from mpt_jax.checkpoints import files
from mpt_jax.study import cells, page, stats
from mpt_jax.study.page import Heading, Picture, Strong, Table, Text
from mpt_jax.transfer import matrix_views as views
from mpt_jax.transfer import project_views, sources
from mpt_jax.types import InputError, require_local

log = logging.getLogger(__name__)

_NAMES = {'markdown': 'transfer.md', 'html': 'transfer.html'}
# The folder of what source prompts score on their own backbone.
AT_HOME = 'other_matrix'
_MOST_BYTES = 1 << 26
_VERSION = 1
_DAMAGED = (
  *(KeyError, TypeError, ValueError, AttributeError, IndexError),
  ArithmeticError,
)
_NOT = 'not reached'
# The control of a retrieval: one source for all targets.
_FIXED = 'mnli'

Found = Mapping[str, Any]


def report(model_dir: str) -> dict[str, str]:
  """Writes the page of a folder.

  Args:
    model_dir: the folder above those of the verbs.

  Returns:
    'markdown' and 'html' -> the paths of what was written.

  Raises:
    InputError: if the folder holds no result of a verb, or a damaged one.
  """
  folder = require_local(model_dir)
  paths = {}
  for kind, text in rendered(folder).items():
    paths[kind] = os.path.join(folder, _NAMES[kind])
    files.write_file(paths[kind], text.encode())
  log.info('page: %s', paths['html'])
  return paths


def rendered(folder: str) -> dict[str, str]:
  """Returns the page of a folder as 'markdown' and 'html'.

  Args:
    folder: see `report`; nothing is written.

  Raises:
    InputError: see `report`.
  """
  found = {
    part: there
    for part in _SECTIONS
    if (there := [_read(path) for path in _files(folder, part)])
  }
  if not found:
    raise InputError(
      f'{folder} has no result to report: expected one of'
      f' {", ".join(f"{part}/{part}.json" for part in _SECTIONS)}'
    )
  first = {part: there[0] for part, there in found.items()}
  home = os.path.join(folder, AT_HOME, 'matrix.json')
  if 'project' in first and os.path.lexists(home):
    first['project'] = {**first['project'], AT_HOME: _read(home)}
  blocks: list[page.Block] = [Heading('Transfer of prompts', 1)]
  blocks += _guarded(folder, list(found), _opening, first)
  for part, section in _SECTIONS.items():
    if part in found:
      given = found if part == 'retrieve' else first[part]
      blocks += _guarded(folder, [part], section, given)
      blocks += _pictures(folder, part)
  return {
    'markdown': page.markdown(blocks),
    'html': page.page(blocks, folder),
  }


def _files(folder: str, part: str) -> list[str]:
  """The file of a part; of a retrieval for several tasks one for each."""
  own = os.path.join(folder, part, f'{part}.json')
  if os.path.lexists(own):
    return [own]
  inner = os.path.join(glob.escape(folder), part, '*', f'{part}.json')
  return sorted(glob.glob(inner)) if part == 'retrieve' else []


def _read(path: str) -> dict[str, Any]:
  found = files.read_json(path, most_bytes=_MOST_BYTES)
  if found.get('version') != _VERSION:
    raise InputError(
      f'{path} has the version {found.get("version")!r}, expected {_VERSION}'
    )
  return found


def _guarded(
  folder: str,
  parts: Sequence[str],
  section: Callable[[Any], list[page.Block]],
  found: Any,
) -> list[page.Block]:
  """A section; what its file lacks ends as a line that names it."""
  try:
    blocks = section(found)
    page.markdown(blocks)  # That all of it is text.
  except _DAMAGED as e:
    named = ' or '.join(f'{part}/{part}.json' for part in parts)
    raise InputError(
      f'{named} of {folder} is damaged: {type(e).__name__} {e}; delete its'
      ' folder and let its verb write it again'
    ) from e
  return blocks


def _pictures(folder: str, part: str) -> list[page.Block]:
  names = sorted(
    name
    for name in os.listdir(os.path.join(folder, part))
    # Of all pairs of prompts there are too many for a page.
    if name.endswith('.png') and (part, name[:7]) != ('indicators', 'heatmap')
  )
  return [
    Picture(f'{part}/{name}', f'{part}: {name.removesuffix(".png")}')
    for name in names
  ]


# ---------------------------------------------------------------------------
# Numbers.


def _with_interval(
  value: float | None, interval: Sequence[Any] | None, digits: int = 1
) -> str:
  """'81.2 (76.0 to 86.1)', or without, or '-'."""
  if value is None:
    return '-'
  text = f'{value:.{digits}f}'
  if interval is None or None in interval:
    return text
  low, high = interval
  return f'{text} ({low:.{digits}f} to {high:.{digits}f})'


def _over_runs(
  values: Sequence[float | None], interval: Any = None, marks: str = ''
) -> str:
  """A score of one run with its interval, of several with their spread."""
  known = [v for v in values if v is not None]
  if not known:
    return f'-{stats.UNDEFINED}'
  if len(values) == 1:
    return _with_interval(known[0], interval) + marks
  text = cells.show(stats.stat(dict(enumerate(known)))) + marks
  if len(known) < len(values):
    text += f' ({len(known)} of {len(values)} runs{stats.UNDEFINED})'
  return text


def _marks(shown: Iterable[Found]) -> str:
  return stats.COLLAPSED if any(c.get('collapsed') for c in shown) else ''


def _legend(*tables: Table) -> list[page.Block]:
  text = ' '.join(c for t in tables for row in t.rows for c in row)
  marks = (stats.COLLAPSED, stats.UNDEFINED)
  used = {'marks': {m: True for m in marks if m in text}}
  return [Text(line) for line in cells.legend([used])]


def _rho(found: Found | None) -> str:
  """'.43 (.12 to .66)'."""
  if not found or found.get('rho') is None:
    return '-'
  return _with_interval(found['rho'], (found.get('low'), found.get('high')), 2)


def _counts(values: Iterable[int]) -> str:
  """'256', or '64 to 256'."""
  known = [v for v in values if v is not None]
  return cells.span(known) if known else 'an unknown number of'


# ---------------------------------------------------------------------------
# Sections.


def _opening(found: Mapping[str, Found]) -> list[page.Block]:
  """What the page is about, and what is not in it."""
  lines = []
  first = next(iter(found.values()))
  made_up = sorted({t for f in found.values() for t in f.get('synthetic', ())})
  if made_up:
    lines.append(
      f'SYNTHETIC DATA: those of {", ".join(made_up)} are made up. Scores'
      ' compare prompts here; they say nothing about the real tasks.'
    )
  named = found.get('matrix', first)
  lines.append(f'Backbone: {_backbone(named.get("backbone"))}.')
  if 'project' in found:
    project = found['project']
    lines.append(
      f'Moved from {_backbone(project["source_backbone"])} to'
      f' {_backbone(project["target_backbone"])}.'
    )
  if 'matrix' in found:
    matrix = found['matrix']
    runs = sorted(
      {s['run'] for s in matrix['sources'] if s['kind'] == sources.VALUE}
    )
    examples = _counts(t['examples'] for t in matrix['targets'])
    lines.append(
      f'Split {matrix["split"]}, {examples} examples a task; readout'
      f' {matrix["readout"]}; '
      + (f'runs {", ".join(runs)}.' if runs != [''] else 'one run a source.')
    )
  lines.append(
    'Behind a score stands, in brackets, the interval of 95 % that its'
    ' examples leave (bootstrap); "±" is the standard deviation over runs, n'
    ' a count.'
  )
  missing = [part for part in _SECTIONS if part not in found]
  if missing:
    lines.append(
      f'Not in this folder, and so not on this page: {", ".join(missing)}.'
    )
  return [Text(line) for line in lines]


def _backbone(known: Any) -> str:
  """A backbone's name, and the beginning of its digest."""
  if not isinstance(known, Mapping):
    return str(known or 'not known')
  digest = str(known.get('fingerprint', '')).removeprefix('sha256:')
  name = str(known.get('name', 'not known'))
  return f'{name} ({digest[:12]})' if digest else name


def _rows(matrix: Found) -> list[views.Row]:
  """The rows by category; of several runs their mean alone."""
  members = {name for mean in matrix['means'] for name in mean['of']}
  rows = views.rows(matrix)
  return [row for row in rows if row.runs > 1 or row.name not in members]


def _matrix(matrix: Found) -> list[page.Block]:
  targets = matrix['targets']

  def table(show: Callable[[Found], str]) -> list[list[str]]:
    lines = []
    for row in _rows(matrix):
      line = [row.name, row.source['category'] if row.source['task'] else '']
      for target in targets:
        text = show(row.cells[target['task']])
        own = not row.is_control and row.source['task'] == target['task']
        line.append(Strong(text) if own else text)
      lines.append(line)
    return lines

  titles = [
    f'{t["task"]} ({t["metric"]}, n = {t["examples"]})' for t in targets
  ]
  floors = [
    'majority class',
    '',
    *(cells.plain(t['majority']) for t in targets),
  ]
  scores = Table(['prompt of', 'category', *titles], [*table(_score), floors])
  relative = Table(
    ['prompt of', 'category', *(t['task'] for t in targets)], table(_relative)
  )
  return [
    Heading('Matrix'),
    Text(
      'How to read this: a row is a prompt, a column the task that it is asked'
      " on, nothing trained. Bold is the task's own prompt. Compare a column"
      ' with its majority class and with the random prompt before believing a'
      ' score.'
    ),
    scores,
    *_legend(scores),
    Text(
      "How to read this: 100 is the score of the task's own prompt, which"
      ' others may exceed; in brackets the share of the way from a random'
      ' prompt (0) to its own (1). A ratio alone flatters: a random prompt'
      ' has one too.'
    ),
    relative,
    *_groups(matrix),
  ]


def _score(cell: Found) -> str:
  """'81.2 (76.0 to 86.1)' of one prompt, '81.2 ± 1.3' of several runs."""
  if cell['score'] is None:
    return f'-{stats.UNDEFINED}'
  text = (
    f'{cell["score"]:.1f} ± {cell["std"]:.1f}'
    if cell.get('std') is not None
    else _with_interval(cell['score'], cell.get('interval'))
  )
  return text + _marks([cell])


def _relative(cell: Found) -> str:
  """'102 (+1.03)': relative performance, and the gain."""
  if cell['relative'] is None:
    return '-'
  gain = '' if cell['gain'] is None else f' ({cell["gain"]:+.2f})'
  return f'{cell["relative"]:.0f}{gain}'


def _indicators(found: Found) -> list[page.Block]:
  rows = [
    [
      row['name'],
      *(_rho(row['per_target']), str(row['per_target']['n'])),
      *(_rho(row['pooled']), str(row['pooled']['n'])),
    ]
    for row in found['correlations']
  ]
  said = (
    'The prompts of a run had one start.'
    if found['same_start']
    else 'The prompts had different starts, or nobody knows: *_concat compares'
    ' vectors by their place, which means nothing then.'
  )
  header = ['indicator', 'rho per target', 'n', 'rho pooled', 'n']
  return [
    Heading('What predicts transfer'),
    Text(
      'How to read this: rank correlation (Spearman) of an indicator with'
      ' relative performance, without the diagonal. Per target asks which'
      ' source helps this task, and is the mean over targets (n of them);'
      ' pooled takes all pairs (n of them) together, and also rewards knowing'
      ' which targets are easy. Brackets: 95 % over targets. An interval that'
      f' holds 0 predicts nothing. {said}'
    ),
    Table(header, rows),
  ]


def _speedup(found: Found) -> list[page.Block]:
  scores = ('step0', 'scratch_step0', 'final', 'scratch_final')
  rows = [
    [
      *(row['task'], row['source'], row['setting']),
      *(_mean(row[name]) for name in scores),
      *(_times(row[name]) for name in ('convergence', 'comparable')),
      str(row['final']['n']),
    ]
    for row in found['tasks']
  ]
  overall = [_times(found['overall'][n]) for n in ('convergence', 'comparable')]
  rows.append(['all', *[''] * 6, *overall, str(len(found['tasks']))])
  header = [
    *('target', 'start', 'setting', 'step 0', 'step 0, scratch', 'end'),
    *('end, scratch', 'convergence', 'comparable result', 'n'),
  ]
  return [
    Heading('Transfer as a start'),
    Text(
      'How to read this: a target trained from a prompt of another task and'
      ' from scratch, both with the same grid of rates. Above 1 the transferred'
      f' start is faster; "{_NOT}" is a result. Means over n seeds (of all:'
      f' over targets), 95 % by the t distribution; split {found["split"]}.'
    ),
    Table(header, rows),
    *(
      Text(f'{name}: {words}.') for name, words in found['definitions'].items()
    ),
  ]


def _mean(found: Found) -> str:
  return _with_interval(found['mean'], (found['low'], found['high']))


def _times(found: Found) -> str:
  """'2.10 (1.20 to 3.70)', with how often it was not reached."""
  if found['mean'] is None:
    return _NOT
  text = _with_interval(found['mean'], (found['low'], found['high']), 2)
  left = found['not_reached']
  return text + (
    f', {left} of {left + found["reached"]} {_NOT}' if left else ''
  )


def _retrieve(every: Mapping[str, Sequence[Found]]) -> list[page.Block]:
  """Rankings; with a matrix, what their first ones score on the target."""
  scored = _Foreign(every['matrix'][0]) if 'matrix' in every else None
  metrics = list(
    dict.fromkeys(m for f in every['retrieve'] for m in f['metrics'])
  )
  rows, zero_shot = [], []
  for found in every['retrieve']:
    target = found['target']
    ranked = {m: found['metrics'][m]['tasks'] for m in metrics}
    rows.append(
      [
        target,
        str(len(ranked[metrics[0]])),
        *(', '.join(map(_near, ranked[m][:3])) for m in metrics),
      ]
    )
    if scored is not None and scored.of(target):
      first = [scored.shown(target, ranked[m][0]['name']) for m in metrics]
      zero_shot.append([target, *first, *scored.controls(target)])
  blocks: list[page.Block] = [
    Heading('Retrieval'),
    Text(
      'How to read this: the sources whose keys (early prompts) are nearest to'
      " the target's, of n; the mean cosine over all pairs of runs ± its"
      ' standard deviation. Small numbers are usual: the order counts.'
    ),
    Table(['target', 'n', *(f'nearest by {m}' for m in metrics)], rows),
  ]
  if zero_shot:
    blocks += [
      Text(
        'How to read this: what the nearest source scores on the target with'
        " nothing trained, in percent of the target's own prompt (matrix). A"
        ' choice is worth something where it is above one fixed source for all'
        ' and above the mean; the oracle knows the matrix.'
      ),
      Table(
        ['target', *metrics, f'always {_FIXED}', 'mean of all', 'oracle'],
        zero_shot,
      ),
    ]
  return blocks


def _near(row: Found) -> str:
  std = '' if row['std'] is None else f' ± {row["std"]:.3f}'
  return f'{row["name"]} {row["similarity"]:.3f}{std}'


class _Foreign:
  """Relative performance of other tasks' prompts, the mean over runs."""

  def __init__(self, matrix: Found):
    task_of = {
      s['name']: s['task']
      for s in matrix['sources']
      if s['kind'] == sources.VALUE
    }
    several: dict[str, dict[str, list[float]]] = {}
    for cell in matrix['cells']:
      source = task_of.get(cell['source'])
      if source and source != cell['task'] and cell['relative'] is not None:
        row = several.setdefault(cell['task'], {})
        row.setdefault(source, []).append(cell['relative'])
    self._means = {
      target: {task: statistics.fmean(some) for task, some in row.items()}
      for target, row in several.items()
    }

  def of(self, target: str) -> Mapping[str, float]:
    """Source task -> its mean."""
    return self._means.get(target, {})

  def shown(self, target: str, source: str) -> str:
    """'mnli 92', or '-'."""
    value = self.of(target).get(source)
    return '-' if value is None else f'{source} {value:.0f}'

  def controls(self, target: str) -> list[str]:
    """One fixed source, the mean, and the best there is."""
    row = self.of(target)
    best = max(row, key=lambda task: row[task])
    return [
      self.shown(target, _FIXED),
      f'{statistics.fmean(row.values()):.0f} (n = {len(row)})',
      self.shown(target, best),
    ]


def _project(found: Found) -> list[page.Block]:
  targets = found['targets']
  own = f'own prompt, on {_backbone(found["target_backbone"])}'
  rows = [[own, *(cells.plain(target['own']) for target in targets)]]
  by_title: dict[str, list[Found]] = {}
  for row in found['rows']:
    by_title.setdefault(project_views.title(row['projector']), []).append(row)
  for title, some in by_title.items():
    line = [title]
    for target in targets:
      known = [row for row in some if row['task'] == target['task']]
      text = '-'
      if known:
        scores = [row['score'] for row in known]
        text = _over_runs(scores, known[0]['interval'], _marks(known))
      trained = any(row['group'] == project_views.TRAINED for row in known)
      line.append(Strong(text) if trained else text)
    rows.append(line)
  rows.append(
    ['majority class', *(cells.plain(t['majority']) for t in targets)]
  )
  heads = [f'{t["task"]} (n = {t["examples"]})' for t in targets]
  table = Table(['prompt, or trained on: goal, form', *heads], rows)
  return [
    Heading('Projectors'),
    Text(
      'How to read this: a prompt of'
      f' {_backbone(found["source_backbone"])} goes through a projector and is'
      ' scored on its own task, on the other backbone, with nothing trained on'
      ' it but where the number is bold. A projector transfers if what is not'
      ' bold is above the random prompt. What is "distance" had an own prompt'
      ' as its aim, what is "task" the answers; "linear" and "anchors" train'
      ' nothing.'
    ),
    table,
    *_legend(table),
    *_projected_groups(found, found.get(AT_HOME)),
  ]


def _projected_groups(project: Found, home: Found | None) -> list[page.Block]:
  """The scores by group of tasks, as the paper sums them up."""
  found, said = list(project['groups']), ''
  if home is not None:
    # In the order of the projectors, before what was moved.
    trained_on = list(dict.fromkeys(tuple(g['trained_on']) for g in found))
    found = [*project_views.at_home(home, trained_on), *found]
    found.sort(key=lambda group: trained_on.index(tuple(group['trained_on'])))
    said = (
      f' "{project_views.NOT_MOVED}" is on {_backbone(home["backbone"])}, where'
      ' the prompts are from: that of a task trained on, on its own task, on'
      ' tasks of its category and on others.'
    )
  rows: dict[tuple[str, str], dict[str, str]] = {}
  for group in found:
    score, gain, name = group['score'], group['gain'], group['projector']
    text = '-'
    if score is not None:
      error = '' if score['se'] is None else f' ± {score["se"]:.1f}'
      text = f'{score["mean"]:.1f}{error}'
      text += '' if gain is None else f' ({gain["mean"]:+.2f})'
      text += f', n = {score["tasks"]}'
    key = '+'.join(group['trained_on']), name.partition(': ')[2] or name
    rows.setdefault(key, {})[group['group']] = text
  return [
    Text(
      'How to read this: the same by group: the tasks that a projector was'
      ' trained on, others of their categories, and all others. Means over n'
      ' tasks ± the standard error over these; in brackets the share of the'
      f' way from a random prompt (0) to the own one (1).{said}'
    ),
    Table(
      ['trained on', 'by', *project_views.GROUPS],
      [
        [*key, *(texts.get(g, '-') for g in project_views.GROUPS)]
        for key, texts in rows.items()
      ],
    ),
  ]


def _groups(matrix: Found) -> list[page.Block]:
  """Transfer inside a category and out of it."""
  rows = []
  for what, digits in (('relative', 1), ('gain', 2)):
    groups = {name: known.get(what) for name, known in matrix['groups'].items()}
    if not any(groups.values()):
      continue
    line = [what]
    for name in ('same', 'other', 'difference'):
      known = groups.get(name)
      line.append(
        _with_interval(known['mean'], (known['low'], known['high']), digits)
        if known
        else '-'
      )
      if name != 'difference':
        line.append(str(known['pairs']) if known else '0')
    rows.append(line)
  if not rows:
    return []
  return [
    Text(
      'How to read this: means over pairs of two different tasks, each the'
      ' mean over its runs; n pairs, and 95 % over pairs. If prompts carry what'
      ' tasks have in common, those of the same category are ahead, in the'
      ' gain too.'
    ),
    Table(['', 'same category', 'n', 'other', 'n', 'difference'], rows),
  ]


# Folder and verb -> what is told of it, in this order.
_SECTIONS: Mapping[str, Callable[[Any], list[page.Block]]] = {
  'matrix': _matrix,
  'indicators': _indicators,
  'speedup': _speedup,
  'retrieve': _retrieve,
  'project': _project,
}
