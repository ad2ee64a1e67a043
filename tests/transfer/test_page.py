"""The page about transfer, from results that no verb has made."""

import base64
import html.parser
import json
import re

import pytest

from mpt_jax import analysis
from mpt_jax.study import page
from mpt_jax.transfer import report
from mpt_jax.types import InputError
from tests.helpers import found as found_lib
from tests.helpers.found import PARTS, TASKS


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
  assert 'not on this page' not in text
  header, _, *rows = _table(text, 'Matrix')
  assert header[2:] == [f'{task} (accuracy, n = 64)' for task in TASKS]
  cells = {row[0]: row[1:] for row in rows}
  means = [f'{task} (mean of 3)' for task in TASKS]
  assert list(cells) == [*means, 'random', r'P\*', 'majority class']
  # Three runs: their mean and deviation; the diagonal is bold.
  assert cells[means[0]] == [
    'nli',
    '**53.0 ± 3.0**',
    '63.0 ± 3.0',
    '73.0 ± 3.0',
  ]
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
  [row, every] = _table(text, 'Transfer as a start')[2:]
  assert row[3:] == [
    *('60.0 (58.0 to 62.5)', '10.0 (8.0 to 12.5)'),
    *('80.0 (78.0 to 82.5)', '81.0 (79.0 to 83.5)'),
    *('2.00 (1.00 to 4.00)', '4.00 (2.00 to 8.00), 1 of 3 not reached', '3'),
  ]
  assert every[-2:] == ['not reached', '1']
  [row] = _table(text, 'Retrieval')[2:]
  assert row[:3] == ['rte', '2', 'cb 0.300 ± 0.012, mrpc -0.100 ± 0.012']
  # Relative performance on rte is 100 of all in this matrix.
  assert '| rte | cb 100 | mrpc 100 | - | 100 (n = 2) | cb 100 |' in text
  rows = {row[0]: row[1:] for row in _table(text, 'Projectors')[2:]}
  assert rows['own prompt, on tiny (a1a1a1a1a1a1)'] == ['90.0'] * 3
  assert rows['majority class'] == ['50.0'] * 3
  assert rows['rte: distance, flat'] == [
    '**77.0 (70.0 to 81.0)**',
    *2 * ['77.0 (70.0 to 81.0)'],
  ]
  assert '| rte | distance, flat | - | 71.5 ± 1.2 (+0.50), n = 4 | - |' in text
  assert text.count('How to read this') == 9
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
  assert not {'link', 'iframe'} & set(found.tags)
  # The table of contents, and the picture; a script has no source.
  [source] = [s for s in found.sources if not s.startswith('#')]
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
  assert text.count('<script') == 1  # Ours, that sorts tables.
  assert 'alert' not in text.partition('<script>')[2]
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
    (lambda path: path.write_text('{"version": 1}'), "KeyError 'tasks'"),
    (
      lambda path: path.write_text('{"version": 1, "tasks": 3}'),
      'speedup/speedup.json of .* is damaged: TypeError',
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
  (tmp_path / 'matrix' / 'matrix.json').write_text(
    json.dumps(found_lib.matrix())
  )
  (tmp_path / 'matrix' / 'a.png').write_bytes(b'GIF89a')
  with pytest.raises(InputError, match=r'a\.png is no PNG'):
    report.report(str(tmp_path))


def test_a_retrieval_for_each_of_several_targets_is_one_table(folder):
  (folder / 'retrieve' / 'retrieve.json').unlink()
  for target in ('rte', 'cb'):
    (folder / 'retrieve' / target).mkdir()
    path = folder / 'retrieve' / target / 'retrieve.json'
    path.write_text(json.dumps({**found_lib.retrieve(), 'target': target}))
  report.report(str(folder))
  text = (folder / 'transfer.md').read_text()
  assert [row[0] for row in _table(text, 'Retrieval')[2:]] == ['cb', 'rte']
