r"""Writes one page about what other verbs found in a folder.

  python -m mpt_jax.transfer report --gin.MODEL_DIR="'demo-transfer'"

Reads matrix/, indicators/, speedup/, project/ and retrieve/ below MODEL_DIR,
each with what the verb of its name wrote, and writes beside them transfer.md
and transfer.html, which needs no other file. What is not there is left out,
and the page says so. With the same files the page is the same.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import logging
import math
import os
import statistics
from typing import Any

from mpt_jax.checkpoints import files
from mpt_jax.study import cells, stats
from mpt_jax.transfer import page, project_views, sources
from mpt_jax.transfer.page import Heading, Picture, Strong, Table, Text
from mpt_jax.types import InputError, require_local

log = logging.getLogger(__name__)

MARKDOWN, HTML = 'transfer.md', 'transfer.html'
_MOST_BYTES = 1 << 26
_VERSION = 1
_NOT = 'not reached'

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
  found = {}
  for part in _SECTIONS:
    path = os.path.join(folder, part, f'{part}.json')
    if os.path.lexists(path):
      found[part] = _read(path)
  if not found:
    raise InputError(
      f'{folder} has no result to report: expected one of'
      f' {", ".join(f"{part}/{part}.json" for part in _SECTIONS)}'
    )
  blocks: list[page.Block] = [Heading('Transfer of prompts', 1)]
  blocks += _guarded(_opening, found, os.path.join(folder, next(iter(found))))
  for part, section in _SECTIONS.items():
    if part in found:
      path = os.path.join(folder, part, f'{part}.json')
      blocks += _guarded(section, found[part], path)
      blocks += _pictures(folder, part)
  written = {
    'markdown': (MARKDOWN, page.markdown(blocks)),
    'html': (HTML, page.page(blocks, folder)),
  }
  for name, text in written.values():
    files.write_file(os.path.join(folder, name), text.encode())
  paths = {k: os.path.join(folder, name) for k, (name, _) in written.items()}
  log.info('page: %s', paths['html'])
  return paths


def _read(path: str) -> dict[str, Any]:
  found = files.read_json(path, most_bytes=_MOST_BYTES)
  if found.get('version') != _VERSION:
    raise InputError(
      f'{path} has the version {found.get("version")!r}, expected {_VERSION}'
    )
  return found


def _guarded(
  section: Callable[[Any], list[page.Block]], found: Any, path: str
) -> list[page.Block]:
  """A section; what its file lacks ends as a line that names it."""
  try:
    return section(found)
  except (KeyError, TypeError, ValueError, AttributeError, IndexError) as e:
    raise InputError(
      f'{path} is damaged: {type(e).__name__} {e}; delete its folder and let'
      ' its verb write it again'
    ) from e


def _pictures(folder: str, part: str) -> list[page.Block]:
  names = sorted(
    name
    for name in os.listdir(os.path.join(folder, part))
    if name.endswith('.png')
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
  known = sorted({v for v in values if v is not None})
  if not known:
    return 'an unknown number of'
  return f'{known[0]}' if len(known) == 1 else f'{known[0]} to {known[-1]}'


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
    runs = sorted({str(s['run']) for s in matrix['sources'] if s['task']})
    examples = _counts(t['examples'] for t in _targets(matrix))
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


def _targets(matrix: Found) -> list[dict[str, Any]]:
  """The targets, each with how many examples its cells have."""
  counts = {cell['task']: cell['examples'] for cell in matrix['cells']}
  return [
    {**target, 'examples': counts.get(target['task'])}
    for target in matrix['targets']
  ]


def _rows(matrix: Found) -> dict[str, list[Found]]:
  """Rows by their title: the sources, with the runs of a task together."""
  alike: dict[Any, list[Found]] = {}
  for source in matrix['sources']:
    alike.setdefault((source['task'], source['kind']), []).append(source)
  rows = {}
  for (task, kind), some in alike.items():
    title = task if kind == sources.VALUE else f'{kind} {task}'.strip()
    rows[title if len(some) > 1 and title else some[0]['name']] = some
  return rows


def _matrix(matrix: Found) -> list[page.Block]:
  targets = _targets(matrix)
  by_place = {(c['source'], c['task']): c for c in matrix['cells']}
  rows = _rows(matrix)

  def table(show: Callable[[list[Found], Found], str]) -> list[list[str]]:
    lines = []
    for title, some in rows.items():
      line = [title, some[0]['category'] if some[0]['task'] else '']
      for target in targets:
        known = [by_place.get((s['name'], target['task'])) for s in some]
        there = [cell for cell in known if cell is not None]
        text = show(there, target) if there else '-'
        own = some[0]['task'] == target['task']
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


def _score(known: list[Found], target: Found) -> str:
  del target
  scores = [cell['score'] for cell in known]
  return _over_runs(scores, known[0]['interval'], _marks(known))


def _relative(known: list[Found], target: Found) -> str:
  del target
  values = [c['relative'] for c in known if c['relative'] is not None]
  gains = [c['gain'] for c in known if c['gain'] is not None]
  if not values:
    return '-'
  gain = f' ({statistics.fmean(gains):+.2f})' if gains else ''
  return f'{statistics.fmean(values):.0f}{gain}'


def _indicators(found: Found) -> list[page.Block]:
  rows = [
    [
      row['name'],
      _rho(row['per_target']),
      str(row['per_target']['n']),
      _rho(row['pooled']),
      str(row['pooled']['n']),
    ]
    for row in found['correlations']
    if row['score'] == 'relative'
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


def _by(rows: Iterable[Found], *names: str) -> dict[Any, list[Found]]:
  """Rows with equal values of these names, together."""
  found: dict[Any, list[Found]] = {}
  for row in rows:
    found.setdefault(tuple(str(row.get(n)) for n in names), []).append(row)
  return found


def _speedup(found: Found) -> list[page.Block]:
  rows = []
  for (task, source, setting), some in _by(
    found['rows'], 'task', 'source', 'setting'
  ).items():
    rows.append(
      [
        task,
        source,
        setting,
        _over_runs([r['step0'] for r in some]),
        _over_runs([r['final'] for r in some]),
        _times([r['convergence_speedup'] for r in some]),
        _times([r['comparable_speedup'] for r in some]),
        str(len(some)),
      ]
    )
  header = [
    *('target', 'start', 'setting', 'at step 0', 'at the end'),
    *('convergence', 'comparable result', 'n'),
  ]
  return [
    Heading('Transfer as a start'),
    Text(
      'How to read this: a target trained from a prompt of another task and'
      ' from scratch, both with the same grid of rates. Above 1 the transferred'
      f' start is faster; "{_NOT}" is a result. Of several runs the geometric'
      ' mean over those that reached it.'
    ),
    *(Text(f'{name}: {words}') for name, words in found['definitions'].items()),
    Table(header, rows),
  ]


def _times(values: Sequence[float | None]) -> str:
  """'2.1', '2.1 (1 of 3 not reached)' or 'not reached'."""
  known = [v for v in values if v is not None]
  if not known:
    return _NOT
  mean = math.exp(statistics.fmean(map(math.log, known)))
  left = len(values) - len(known)
  return f'{mean:.2f}' + (f' ({left} of {len(values)} {_NOT})' if left else '')


def _project(found: Found) -> list[page.Block]:
  tasks = list(dict.fromkeys(row['task'] for row in found['rows']))
  target = _backbone(found['target_backbone'])
  rows = [
    [f'its own prompt, on {target}', *_measured(found['own'], tasks)],
    ['random prompt', *_measured(found['random'], tasks)],
  ]
  for title, some in _by_projector(found['rows']).items():
    by_task = _by(some, 'task')
    line = [title]
    for task in tasks:
      known = by_task.get((task,), [])
      text = (
        _over_runs(
          [r['score'] for r in known], known[0]['interval'], _marks(known)
        )
        if known
        else '-'
      )
      trained = any(r['group'] == 'trained' for r in known)
      line.append(Strong(text) if trained else text)
    rows.append(line)
  header = ['prompt', *tasks]
  table = Table(header, rows)
  examples = _counts(row['examples'] for row in found['rows'])
  return [
    Heading('Projectors'),
    Text(
      f'How to read this: prompts of'
      f' {_backbone(found["source_backbone"])}, moved to {target}, each scored'
      f' on {examples} examples with nothing trained on the task. Bold: the'
      ' projector was trained on it. A projector transfers if what is not bold'
      ' is above the random prompt.'
    ),
    table,
    *_legend(table),
    Text(
      'The same by group: mean score over n tasks, and the share of the way'
      ' from the random to the own prompt. What trains nothing stands beside'
      ' each projector with the same tasks.'
    ),
    _by_group(found['groups']),
  ]


def _by_group(groups: Iterable[Found]) -> Table:
  """A line for each projector, and for what is free on the same tasks."""
  lines: dict[tuple[str, str], dict[str, list[str]]] = {}
  for group in groups:
    line = lines.setdefault(
      ('+'.join(group['trained_on']), group['projector']), {}
    )
    score, gain = group['score'], group['gain']
    line[group['group']] = [
      '-' if score is None else f'{score["mean"]:.1f}',
      '-' if gain is None else f'{gain["mean"]:.2f}',
      '0' if score is None else str(score['tasks']),
    ]
  names = project_views.GROUPS
  header = ['trained on', 'by', *(c for n in names for c in (n, 'gain', 'n'))]
  empty = ['-', '-', '0']
  return Table(
    header,
    [
      [*key, *(c for name in names for c in line.get(name, empty))]
      for key, line in lines.items()
    ],
  )


def _by_projector(rows: Iterable[Found]) -> dict[str, list[Found]]:
  found: dict[str, list[Found]] = {}
  for row in rows:
    made = row['projector']
    if isinstance(made, Mapping):
      trained = made['trained_on']
      on = trained if isinstance(trained, str) else ', '.join(trained)
      made = f'trained on {on}: {made["goal"]}, {made["form"]}'
    found.setdefault(str(made), []).append(row)
  return found


def _measured(known: Found, tasks: Sequence[str]) -> list[str]:
  """Scores by task, with their intervals where there are any."""
  shown = []
  for task in tasks:
    value = known.get(task)
    if isinstance(value, Mapping):
      shown.append(_with_interval(value['score'], value.get('interval')))
    else:
      shown.append(cells.plain(value))
  return shown


def _retrieve(found: Found) -> list[page.Block]:
  return []


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
_SECTIONS: Mapping[str, Callable[[Found], list[page.Block]]] = {
  'matrix': _matrix,
  'indicators': _indicators,
  'speedup': _speedup,
  'retrieve': _retrieve,
  'project': _project,
}
