"""The files of a study's report: page, CSV tables, pictures, statistics."""

import csv
import html.parser
import json
import math
import re

import numpy as np
import pytest
import scipy.stats

from mpt_jax import t5
from mpt_jax.study import (
  arms,
  page,
  plots,
  published,
  report,
  screen,
  stats,
  tables,
)
from tests.helpers import fake_study
from tests.helpers.fake_study import Fake


@pytest.fixture(autouse=True)
def _no_drawing(request, monkeypatch):
  if 'picture' not in request.node.name:
    monkeypatch.setattr(plots, 'save', fake_study.save)


@pytest.mark.parametrize('count', [2, 3, 5, 12])
def test_intervals_are_those_of_scipy(count):
  rng = np.random.default_rng(count)
  ours, theirs = rng.normal(70, 5, (2, count)).round(3)
  stat = stats.stat(dict(enumerate(ours)))
  expected = scipy.stats.t.interval(
    *(0.95, count - 1), loc=ours.mean(), scale=scipy.stats.sem(ours)
  )
  assert (stat['low'], stat['high']) == pytest.approx(expected)
  assert stat['n'] == count
  found = stats.difference(stat, stats.stat(dict(enumerate(theirs))), 'more')
  paired = scipy.stats.ttest_rel(ours, theirs)
  low, high = paired.confidence_interval(0.95)
  assert (found['low'], found['high']) == pytest.approx((low, high))
  assert bool(stats.told_apart(found)) == (paired.pvalue < 0.05)
  # Where less is better, the other is ahead by as much.
  less = stats.difference(stat, stats.stat(dict(enumerate(theirs))), 'less')
  assert less['low'] == pytest.approx(-high)


def test_differences_are_paired_by_seed_and_one_seed_has_no_interval():
  ours, theirs = stats.stat({0: 4.0, 1: 9.0}), stats.stat({1: 5.0, 2: 1.0})
  found = stats.difference(ours, theirs, 'more')
  assert found['values'] == {'1': 4.0}
  assert (found['low'], found['se'], found['n']) == (None, None, 1)
  assert stats.told_apart(found) is None
  assert stats.difference(ours, stats.stat({7: 1.0}), 'more') is None


def _three(folder, methods=('mpt', 'pt', 'lora'), **more):
  """Three seeds: MPT is ahead of PT on few examples; LoRA is all over."""
  fake = Fake(folder, seeds=(0, 1, 2), **more)
  fake.fill_sources()
  noise = (-9.0, 8.0, 1.0)

  def score(setting, method, task, seed):
    lead = {'mpt': 5.0 * (setting != 'full'), 'lora': noise[seed]}
    return 60.0 + seed + 0.1 * seed**2 + lead.get(method, 0.0)

  return fake.fill_targets(methods, score)


def test_the_line_on_noise(tmp_path):
  written = _three(tmp_path).write(methods=('mpt', 'pt', 'lora'))
  line = (
    'beyond noise (95 %, paired, 3 seeds): mpt over pt (k32 +5.0); not told'
    ' apart: mpt and lora (k32, full), mpt and pt (full)'
  )
  assert screen.noise(written) == [line]
  assert screen.summary(written).splitlines()[-1] == line
  text = (tmp_path / 'report.md').read_text()
  assert f'**{line}**\n' in text.split('## ')[0]
  assert '| k32: mpt - pt | +5.0 | 0.0 | +5.0 +5.0 +5.0 | 5.0 to 5.0 | 3 |' in (
    text
  )


def test_the_line_on_noise_of_one_seed_says_what_it_cannot(tmp_path):
  written = Fake(tmp_path, seeds=(0,)).fill().write()
  [line] = screen.noise(written)
  assert line.startswith('One seed: it cannot say which differences are')
  written['seeds'] = [0, 1]
  for pair in written['pairs']:
    if pair['where'] == 'k32':
      pair |= {'low': 1.0, 'high': 2.0, 'n': 2}
  assert screen.noise(written)[0].endswith('one seed, so no claim: full')


def test_methods_without_mpt_are_compared_with_the_first(tmp_path):
  fake = Fake(tmp_path, seeds=(0, 1))
  fake.fill_targets(('pt', 'full'), lambda *labels: 50.0 + labels[-1])
  fake.plan = {'variants': [], 'title': 'No transfer', 'prompt_length': 3}
  config = t5.T5Config(
    vocab_size=9, emb_dim=4, num_heads=1, num_encoder_layers=1,
    num_decoder_layers=1, head_dim=4, mlp_dim=4, mlp_activations=('relu',),
    logits_via_embedding=True,
  )  # fmt: skip
  backbone = {'name': 'x', 'parameters': 9, 'config': config.to_dict()}
  written = fake.write(methods=('pt', 'full'), backbone=backbone)
  assert {(p['first'], p['second']) for p in written['pairs']} == {
    ('pt', 'full')
  }
  text = (tmp_path / 'report.md').read_text()
  assert text.startswith('# No transfer on SYNTHETIC DATA\n')
  for absent in ('## Teachers', '## Source stage', '## Ablation'):
    assert absent not in text


# ---------------------------------------------------------------------------
# Files.


class _Page(html.parser.HTMLParser):
  def __init__(self, text):
    super().__init__()
    self.tags, self.sources, self.ids = [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    found = dict(attrs)
    self.sources += [v for k, v in attrs if k in ('src', 'href')]
    self.ids += [found['id']] if 'id' in found else []


def test_the_page_needs_no_network_and_finds_its_parts(tmp_path):
  written = _three(tmp_path).write(methods=('mpt', 'pt', 'lora'))
  text = (tmp_path / 'report.html').read_text()
  found = _Page(text)
  links = [s[1:] for s in found.sources if s.startswith('#')]
  assert links
  assert set(links) <= set(found.ids)
  assert len(set(found.ids)) == len(found.ids)
  pictures = [s for s in found.sources if not s.startswith('#')]
  assert len(pictures) == len(written['plots'])
  assert all(s.startswith('data:image/svg+xml;base64,') for s in pictures)
  assert not re.search(r'https?://', re.sub(r'base64,[^"]*', '', text))
  assert "default-src 'none'" in text
  assert not {'link', 'iframe'} & set(found.tags)
  assert found.tags.count('thead') == found.tags.count('table') > 8
  assert 'aria-sort' in text


def test_every_table_is_a_file_of_plain_numbers(tmp_path):
  written = _three(tmp_path).write(methods=('mpt', 'pt', 'lora'))
  files = {p.stem: p for p in (tmp_path / 'tables').glob('*.csv')}
  names = [
    block.name for block in tables.blocks(written)
    if isinstance(block, page.Table) and block.name
  ]  # fmt: skip
  assert set(names) == set(files)
  assert len(names) == len(set(names))
  with open(files['targets_k32'], newline='') as f:
    rows = {(r['method'], r['task']): r for r in csv.DictReader(f)}
  row, stat = rows['MPT', 'rte'], written['targets']['k32']['mpt']['tasks']
  for name in ('mean', 'std', 'low', 'high', 'n'):
    assert float(row[name]) == stat['rte'][name]
  assert rows['MPT', 'mean']['marks'] == ''
  with open(files['differences'], newline='') as f:
    pairs = {(r['where'], r['second'], r['task']): r for r in csv.DictReader(f)}
  assert float(pairs['k32', 'pt', 'mean']['low']) == pytest.approx(5.0)
  assert float(pairs['k32', 'pt', 'cola']['mean']) == pytest.approx(5.0)


def _times(folder):
  return {p: p.stat().st_mtime_ns for p in folder.rglob('*') if p.is_file()}


def test_what_is_there_and_the_same_is_left(tmp_path):
  _three(tmp_path).write(methods=('mpt', 'pt', 'lora'))
  before = _times(tmp_path)
  texts = fake_study.untimed(tmp_path)
  report.write(str(tmp_path))
  assert _times(tmp_path) == before
  # As an older version left it: its tables and pictures are made again.
  (tmp_path / 'report.html').unlink()
  (tmp_path / 'tables' / 'summary.csv').write_text('old')
  (tmp_path / 'targets_k32.svg').unlink()
  report.write(str(tmp_path))
  assert fake_study.untimed(tmp_path) == texts
  assert (tmp_path / 'targets_k32.svg').exists()
  (tmp_path / 'report.json').write_text('{')
  report.write(str(tmp_path))
  assert fake_study.untimed(tmp_path) == texts


def test_times_stand_where_they_can_be_left_out(tmp_path):
  for name in ('one', 'two'):
    (tmp_path / name).mkdir()
    fake = _three(tmp_path / name)
    if name == 'two':
      for path in (tmp_path / name).rglob('step.json'):
        done = json.loads(path.read_text()) | {'seconds': 1234.5}
        path.write_text(json.dumps(done))
    fake.plan = {'backbone': 'x'}
    fake.write(methods=('mpt', 'pt', 'lora'), seconds=7.0 * len(name))
  one, two = (fake_study.untimed(tmp_path / n) for n in ('one', 'two'))
  assert one == two
  for folder in ('one', 'two'):
    hours = '20m' in (tmp_path / folder / 'report.md').read_text()
    assert hours == (folder == 'two')


# ---------------------------------------------------------------------------
# What is marked and drawn.


def _tell_cut(folder, **numbers):
  counted = dict.fromkeys(
    ('cut_inputs', 'cut_targets', 'unlabelled', 'empty_inputs'), 0
  )
  path = folder / 'seed0/target/k32/mpt/rte/results.json'
  rows = {'rte': {**counted, 'examples': 400, **numbers}}
  path.write_text(json.dumps({'examples': {'train': rows}}))


@pytest.mark.parametrize(
  ('numbers', 'marked'),
  [
    ({'cut_inputs': 4}, False),
    ({'cut_inputs': 5}, True),
    ({'cut_targets': 1}, True),
  ],
)
def test_cut_data_are_marked_in_table_picture_and_terminal(
  tmp_path, numbers, marked, monkeypatch
):
  monkeypatch.setattr(plots, 'save', fake_study.save)
  fake = Fake(tmp_path).fill()
  _tell_cut(tmp_path, **numbers)
  written = fake.write()
  text = (tmp_path / 'report.md').read_text()
  assert ('rte (accuracy)§ |' in text) == marked
  assert ('§ data cut: over 1 %' in text) == marked
  assert ('§ data cut: rte' in screen.summary(written)) == marked
  figure = plots._plot_targets(written, 'k32', written['targets']['k32'])
  labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
  assert ('rte\n(accuracy)§' in labels) == marked


def test_bars_in_the_picture_start_at_0_and_say_their_value(tmp_path):
  written = Fake(tmp_path).fill().write()
  figure = plots._plot_targets(written, 'k32', written['targets']['k32'])
  [axes] = figure.axes
  assert axes.get_ylim()[0] == 0
  said = [text.get_text() for text in axes.texts]
  assert '66.0' in said
  for name in written['plots']:
    assert (tmp_path / name).read_bytes().startswith(b'\x89PNG')
    drawn = (tmp_path / plots.vector(name)).read_bytes()
    assert drawn.startswith(b'<?xml')
    assert b'dc:date' not in drawn


def test_many_bars_of_a_picture_stand_in_rows():
  stat = stats.stat({0: 50.0, 1: 60.0})
  tasks = [f'a_task_with_a_long_name_{i}' for i in range(8)]
  result = {'tasks': dict.fromkeys(tasks, stat), 'mean': stat}
  found = dict.fromkeys(list(arms.TARGETS)[:12], result)
  shown = {
    'metrics': dict.fromkeys(tasks, 'accuracy'), 'meanings': {},
    'majority': {}, 'zero_shot': {'tasks': {}}, 'examples': {},
    'plan': {}, 'synthetic': False,
  }  # fmt: skip
  figure = plots._plot_targets(shown, 'k32', found)
  assert len(figure.axes) == 3
  assert figure.get_size_inches()[0] < 14
  bars = [p for axes in figure.axes for p in axes.patches]
  assert len(bars) == 12 * 9


def test_scores_by_number_of_examples_in_a_picture(tmp_path, monkeypatch):
  monkeypatch.setattr(plots, 'save', fake_study.save)
  settings = {'k16': 16, 'k4': 4, 'full': None}
  fake = Fake(tmp_path, settings=settings)
  fake.fill_sources()

  def score(setting, method, task, seed):
    return {'k4': 40.0, 'k16': 50.0, 'full': 70.0}[setting] + 2 * seed

  written = fake.fill_targets(('mpt', 'pt'), score).write()
  assert plots.SHOTS in written['plots']
  assert f'({plots.SHOTS})' in (tmp_path / 'report.md').read_text()
  figure = plots._plot_shots(written)
  axes = figure.axes[0]
  assert axes.get_xscale() == 'log'
  assert [t.get_text() for t in axes.get_xticklabels()] == ['4', '16', 'all']
  assert list(axes.lines[0].get_ydata()) == [41.0, 51.0, 71.0]
  assert any('not 0' in text.get_text() for text in axes.texts)
  # One setting with few examples is no curve.
  assert plots.SHOTS not in Fake(tmp_path / 'x').fill().write()['plots']


def test_learning_curves_of_each_task(tmp_path):
  fake = Fake(tmp_path).fill()
  run = tmp_path / 'seed0/target/k32/pt/rte/metrics.jsonl'
  lines = [{'step': s, 'eval/rte/accuracy': 50.0 + s} for s in (10, 20)]
  run.write_text('\n'.join(map(json.dumps, lines)))
  written = fake.write()
  curve = written['task_curves']['mpt']['sst2']
  assert curve == {'steps': [4.0, 40.0], 'seed0': [60, 85], 'seed1': [60, 85]}
  assert written['target_curves'] == {
    'k32': {'pt': {'rte': {'steps': [10.0, 20.0], 'seed0': [60.0, 70.0]}}}
  }
  assert {'source_task_curves.png', 'target_curves_k32.png'} <= set(
    written['plots']
  )


def test_ablation_has_the_targets_of_each_variant(tmp_path):
  methods = ('mpt', 'mpt_no_distillation', 'pt')
  _three(tmp_path, methods).write(methods=methods)
  text = (tmp_path / 'report.md').read_text().split('## Ablation')[1]
  rows = {
    line.split(' | ')[0]: line for line in text.splitlines() if '|' in line
  }
  # Its targets trail by 5 of k32 and 0 of full; the shared prompt has none.
  assert '| +5.0 (5.0 to 5.0) | ' in rows['| no distillation']
  assert rows['| no decomposition (shared prompt only)'].endswith(
    '| - | - | - | - |'
  )


def test_pruned_trials_and_edges_are_told(tmp_path):
  fake = Fake(tmp_path).fill()
  row = {'setting': 'k32', 'method': 'pt', 'scores': {}, 'mean': None}
  fake.tuning = [
    {**row, 'rates': [0.3, None], 'pruned': True},
    {**row, 'rates': [1.0, None], 'chosen': True, 'on_edge': True},
  ]
  fake.write()
  text = (tmp_path / 'report.md').read_text()
  assert 'had 2 trials in each setting' in text
  assert 'By successive halving' in text
  assert '| k32, pt | 0.3 | - | - | - | pruned |' in text
  assert '| k32, pt | 1 | - | - | - | chosen, on an edge |' in text


# ---------------------------------------------------------------------------
# Published numbers.

GROUPS = published.read()['groups']
ROWS = [
  (row, group, found)
  for row in published.read()['rows']
  for group, found in row['groups'].items()
]


@pytest.mark.parametrize(
  ('row', 'group', 'found'), ROWS, ids=[f'{r["title"]}-{g}' for r, g, _ in ROWS]
)
def test_published_rows_add_up_or_say_that_they_do_not(row, group, found):
  assert row['mark'] in ('A', 'B')
  assert row['source'] in published.read()['sources']
  assert row['arm'] is None or row['arm'] in arms.TARGETS
  assert len(found['scores']) == len(GROUPS[group])
  mean = math.fsum(found['scores']) / len(found['scores'])
  # A tenth: cells and mean are rounded to one digit.
  fits = abs(mean - found['mean']) <= 0.1
  assert fits or found['uncertain']
  assert set(found['uncertain']) <= {*GROUPS[group], 'mean'}


def _glue(folder, backbone='t5_base', **more):
  settings = {'full': None}
  targets = dict.fromkeys(('rte', 'cola'), 'mnli')
  fake = Fake(folder, settings=settings, targets=targets, **more).fill()
  config = t5.get_config(backbone).to_dict()
  known = {'name': 't5-base', 'parameters': 222_903_552, 'config': config}
  written = fake.write(backbone=known)
  return written, (folder / 'report.md').read_text()


def test_published_numbers_stand_beside_ours_and_say_so(tmp_path):
  written, text = _glue(tmp_path, synthetic=False)
  part = text.split('## Published numbers')[1].split('\n## ')[0]
  lines = [line for line in part.splitlines() if line.startswith('| ')][2:]
  ours = [line for line in lines if '| this study |' in line]
  theirs = [line for line in lines if line not in ours]
  assert len(ours) == 2
  assert all('(published) | **published (ULPT, B)** |' in x for x in theirs)
  assert len(theirs) == sum(g == 'GLUE' for _, g, _ in ROWS)
  # MPT's own follows ours; ours has two of eight tasks and so no mean.
  assert lines[0].startswith('| MPT | this study | - | - |')
  assert lines[1].startswith(
    '| MPT (published) | **published (ULPT, B)** | 85.6'
  )
  assert '93.0?' in next(x for x in theirs if x.startswith('| ATTEMPT (pub'))
  assert 'rte 400 (theirs 139)' in part
  assert '62.4' not in json.dumps(written['targets'])
  with open(tmp_path / 'tables/published_glue.csv', newline='') as f:
    whose = {row['whose'] for row in csv.DictReader(f)}
  assert whose == {'this study', 'published (ULPT, B)'}


@pytest.mark.parametrize(
  'more', [{'backbone': 't5_small', 'synthetic': False}, {'synthetic': True}]
)
def test_published_numbers_need_the_backbone_and_real_data(tmp_path, more):
  _, text = _glue(tmp_path, **more)
  assert 'ublished' not in text
