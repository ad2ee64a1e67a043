"""The page about transfer, from results that no verb has made."""

import base64
import html.parser
import json
import math
import re

import pytest

from mpt_jax import analysis
from mpt_jax.transfer import page, report
from mpt_jax.types import InputError

TASKS = {'rte': 'nli', 'cb': 'nli', 'mrpc': 'paraphrase'}
SEEDS = ('0', '1', '2')
BACKBONE = {'name': 'tiny', 'fingerprint': 'sha256:' + 'a1' * 32}


def _matrix():
  kinds = [(f'{t}/{s}', t, 'value', s) for t in TASKS for s in SEEDS]
  kinds += [('random', '', 'random', '0'), ('P*', '', 'shared', '')]
  names = [
    {
      'name': name,
      'task': task,
      'category': TASKS.get(task, ''),
      'kind': kind,
      'run': run,
      'score': None,
      'step': 7,
      'digest': 'sha256:0',
    }
    for name, task, kind, run in kinds
  ]
  cells = [
    {
      'source': source['name'],
      'task': target,
      'score': 50.0 + 10 * i + (3 * int(source['run'] or 0)),
      'metric': 'accuracy',
      'examples': 64,
      'collapsed': source['kind'] == 'random',
      'interval': [40.0, 90.5],
      'relative': 100.0 + i,
      'gain': 0.25,
    }
    for source in names
    for i, target in enumerate(TASKS)
  ]
  return {
    'version': 1,
    'backbone': BACKBONE,
    'split': 'validation',
    'readout': 'labels',
    'synthetic': ['rte', 'cb'],
    'sources': names,
    'targets': [
      {
        'task': task,
        'category': category,
        'metric': 'accuracy',
        'examples': 64,
        'majority': 52.5,
        'own': 70.0,
      }
      for task, category in TASKS.items()
    ],
    'cells': cells,
    'groups': {
      name: {'relative': {'mean': 80.0, 'low': 75.5, 'high': 84.0, 'pairs': 2}}
      for name in ('same', 'other', 'difference')
    },
  }


def _rho(value, n):
  return {'rho': value, 'low': value - 0.2, 'high': value + 0.2, 'n': n}


def _indicators():
  names = ('C_average', 'ON decoder 4-6')
  return {
    'version': 1,
    'backbone': BACKBONE,
    'names': list(TASKS),
    'same_start': False,
    'correlations': [
      {
        'name': name,
        'score': score,
        'per_target': _rho(0.43, 3),
        'pooled': _rho(-0.1, 6),
      }
      for name in names
      for score in ('relative', 'gain')
    ],
  }


def _speedup():
  return {
    'version': 1,
    'backbone': BACKBONE,
    'definitions': {'convergence': 'within half a point of the best'},
    'rows': [
      {
        'task': 'rte',
        'source': 'cb',
        'setting': 'full',
        'seed': seed,
        'step0': 60.0 + seed,
        'final': 80.0,
        'convergence_speedup': 2.0 ** (seed + 1),
        'comparable_speedup': None if seed else 4.0,
      }
      for seed in (0, 1)
    ],
  }


def _project():
  made = {'goal': 'distance', 'form': 'flat', 'trained_on': ['rte'], 'seed': 0}
  groups = {'rte': 'trained', 'cb': 'same category', 'mrpc': 'other'}
  return {
    'version': 1,
    'source_backbone': {**BACKBONE, 'name': 'small'},
    'target_backbone': BACKBONE,
    'own': {'rte': 90.0, 'cb': {'score': 88.0, 'interval': [80.0, 93.0]}},
    'random': {'rte': 50.0},
    'rows': [
      {
        'projector': projector,
        'task': task,
        'group': groups[task],
        'score': 77.0,
        'examples': 64,
        'interval': [70.0, 81.0],
      }
      for projector in (made, 'zero prompt')
      for task in TASKS
    ],
    'groups': [
      {
        'trained_on': ['rte'],
        'projector': 'rte: distance, flat',
        'group': group,
        'score': {'mean': 77.0, 'tasks': 1},
        'gain': None,
      }
      for group in groups.values()
    ],
  }


PARTS = {
  'matrix': _matrix,
  'indicators': _indicators,
  'speedup': _speedup,
  'project': _project,
}


@pytest.fixture
def folder(tmp_path):
  for name, made in PARTS.items():
    (tmp_path / name).mkdir()
    (tmp_path / name / f'{name}.json').write_text(json.dumps(made()))
  figure, axes = analysis.figure(1, 1)
  axes.plot([0, 1])
  (tmp_path / 'matrix' / 'heatmap.png').write_bytes(analysis.png(figure))
  return tmp_path


def _table(text, title):
  """The first Markdown table behind a heading, as rows of cells."""
  behind = text.split(f'## {title}\n')[1]
  rows = []
  for line in behind.splitlines():
    if line.startswith('|'):
      rows.append([cell.strip() for cell in line.strip('|').split('|')])
    elif rows:
      return rows
  return rows


def test_a_page_has_each_number_with_its_count_and_interval(folder):
  written = report.report(str(folder))
  text = (folder / 'transfer.md').read_text()
  assert written['markdown'] == str(folder / 'transfer.md')
  assert 'SYNTHETIC DATA: those of cb, rte' in text
  assert 'tiny (a1a1a1a1a1a1)' in text
  assert 'Split validation, 64 examples a task; readout labels' in text
  assert 'not on this page: retrieve.' in text
  header, _, *rows = _table(text, 'Matrix')
  assert header[2:] == [f'{task} (accuracy, n = 64)' for task in TASKS]
  cells = {row[0]: row[1:] for row in rows}
  assert list(cells) == [*TASKS, 'random', r'P\*', 'majority class']
  # Three runs: their mean and deviation; the diagonal is bold.
  assert cells['rte'] == ['nli', '**53.0 ± 3.0**', '63.0 ± 3.0', '73.0 ± 3.0']
  assert cells['random'][1] == '50.0 (40.0 to 90.5)†'
  assert cells[r'P\*'][3] == '70.0 (40.0 to 90.5)'
  assert cells['majority class'][1:] == ['52.5'] * 3
  assert '† collapsed' in text
  assert '100 (+0.25)' in text
  rows = _table(text, 'What predicts transfer')[2:]
  assert [row[0] for row in rows] == ['C_average', 'ON decoder 4-6']
  assert rows[1][1:] == [
    *('0.43 (0.23 to 0.63)', '3', '-0.10 (-0.30 to 0.10)', '6')
  ]
  assert 'different starts' in text
  [row] = _table(text, 'Transfer as a start')[2:]
  assert row[3:] == [
    *('60.5 ± 0.7', '80.0 ± 0.0', f'{math.sqrt(8):.2f}'),
    *('4.00 (1 of 2 not reached)', '2'),
  ]
  rows = {row[0]: row[1:] for row in _table(text, 'Projectors')[2:]}
  assert rows['its own prompt, on tiny (a1a1a1a1a1a1)'] == [
    *('90.0', '88.0 (80.0 to 93.0)', '-')
  ]
  assert rows['trained on rte: distance, flat'] == [
    '**77.0 (70.0 to 81.0)**',
    *2 * ['77.0 (70.0 to 81.0)'],
  ]
  assert text.count('How to read this') == 6
  assert '| relative | 80.0 (75.5 to 84.0) | 2 |' in text


class _Page(html.parser.HTMLParser):
  def __init__(self, text):
    super().__init__()
    self.tags, self.sources, self.rows = [], [], 0
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.rows += tag == 'tr'
    self.sources += [v for k, v in attrs if k in ('src', 'href')]


def test_the_html_needs_no_other_file(folder):
  report.report(str(folder))
  text = (folder / 'transfer.html').read_text()
  found = _Page(text)
  assert not {'script', 'link', 'iframe'} & set(found.tags)
  [source] = found.sources
  kind, content = source.split(',')
  assert kind == 'data:image/png;base64'
  picture = (folder / 'matrix' / 'heatmap.png').read_bytes()
  assert base64.b64decode(content) == picture
  lines = (folder / 'transfer.md').read_text().splitlines()
  rules = sum(line.startswith('| ---') for line in lines)
  assert found.rows == sum(line.startswith('|') for line in lines) - rules
  before = text
  report.report(str(folder))
  assert (folder / 'transfer.html').read_text() == before


def test_names_are_text_not_markup():
  nasty = '<script>alert(1)</script>|`x` [a](b)\n# no'
  blocks = [page.Heading(nasty, 1), page.Table(['a'], [[page.Strong(nasty)]])]
  text = page.page(blocks, '.')
  assert '<script' not in text
  assert '<strong>&lt;script&gt;' in text
  lines = page.markdown(blocks).splitlines()
  assert not any(line.startswith('# no') for line in lines)
  assert len(re.findall(r'(?<!\\)\|', lines[-1])) == 2
  assert '\\<script' in lines[0]


@pytest.mark.parametrize('part', PARTS)
def test_each_part_stands_alone(folder, part):
  for name in PARTS:
    if name != part:
      (folder / name / f'{name}.json').unlink()
  report.report(str(folder))
  assert 'not on this page' in (folder / 'transfer.md').read_text()


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda path: path.write_text('{'), 'speedup.json cannot be read as JSON'),
    (lambda path: path.write_text('{"version": 2}'), 'has the version 2'),
    (lambda path: path.write_text('{"version": 1}'), 'speedup.json is damaged'),
    (
      lambda path: path.write_text('{"version": 1, "rows": 3}'),
      'speedup.json is damaged: TypeError',
    ),
  ],
)
def test_a_damaged_result_is_one_line_and_changes_nothing(
  folder, change, message
):
  report.report(str(folder))
  before = (folder / 'transfer.md').read_bytes()
  change(folder / 'speedup' / 'speedup.json')
  with pytest.raises(InputError, match=message) as error:
    report.report(str(folder))
  assert '\n' not in str(error.value)
  assert (folder / 'transfer.md').read_bytes() == before


def test_an_empty_folder_has_nothing_to_report(tmp_path):
  with pytest.raises(InputError, match='no result to report'):
    report.report(str(tmp_path))
  (tmp_path / 'matrix').mkdir()
  (tmp_path / 'matrix' / 'matrix.json').write_text(json.dumps(_matrix()))
  (tmp_path / 'matrix' / 'a.png').write_bytes(b'GIF89a')
  with pytest.raises(InputError, match=r'a\.png is no PNG'):
    report.report(str(tmp_path))
