"""The zero-shot matrix: relations, groups, files.

Guards against an undefined number that passes as 0, a control that counts as a
source, a diagonal that counts as transfer, and a folder that goes on as
something else.
"""

import csv
import dataclasses
import io
import itertools
import json
import logging
import statistics

import numpy as np
import pytest

from mpt_jax.data import memory
from mpt_jax.engine.settings import Examples
from mpt_jax.transfer import matrix as matrix_lib
from mpt_jax.transfer import scoring, sources
from mpt_jax.transfer.matrix import Asking, Controls, matrix
from mpt_jax.types import InputError
from tests.helpers import scored, tiny

CATEGORIES = {'moods': 'mood', 'kinds': 'kind', 'more': 'mood', 'names': 'name'}
TASKS = scored.TASKS | {'more': scored.TASKS['moods']}
P, D = scored.P, scored.D


@pytest.fixture(autouse=True)
def _registry():
  memory.register(TASKS)
  yield
  memory.clear()


@pytest.fixture(scope='module')
def backbone():
  return tiny.served()


def _prompt(name, task='', kind='value', run='', seed=0):
  array = np.random.default_rng(seed).normal(size=(P, D))
  return sources.SourcePrompt(name, array, task, kind, run)


ROWS = [
  _prompt('moods/0', 'moods', run='0'),
  _prompt('moods/1', 'moods', run='1'),
  _prompt('more/0', 'more', run='0'),
  _prompt('more/1', 'more', run='1'),
  _prompt('kinds/0', 'kinds', run='0'),
  _prompt('names', 'names'),
  _prompt('random/0', kind='random', run='0'),
  _prompt('random/1', kind='random', run='1'),
  _prompt('zero', kind='zero'),
  _prompt('P*', kind='shared'),
  _prompt('mpt/moods', 'moods', kind='composed'),
]
TARGETS = ['moods', 'more', 'kinds', 'names']


def _collect(backbone, change=lambda cell: cell):
  """A record of made-up scores, and these as (source, target) -> score."""
  rng = np.random.default_rng(3)
  scores = {
    (row.name, task): float(
      rng.uniform(50, 70) + 20 * (row.task == task and row.kind == 'value')
    )
    for row in ROWS
    for task in TARGETS
  }
  for row in ROWS:
    if row.kind == 'random':
      scores |= {(row.name, task): 40.0 + int(row.run) for task in TARGETS}
  cells = [
    change(
      scoring.Cell(
        source=source,
        task=task,
        score=score,
        metric='accuracy',
        metrics={'accuracy': score},
        examples=64,
        floor=52.0,
        collapsed=False,
        why='',
        interval=(score - 5, score + 5),
        readout='labels',
        better='more',
        prompt='sha256:0',
        data='sha256:1',
      )
    )
    for (source, task), score in scores.items()
  ]
  record = matrix_lib.collect(
    ROWS, cells, backbone, Examples(''), Asking(), CATEGORIES
  )
  return record, scores


def test_relations_means_and_groups(backbone):
  record, scores = _collect(backbone)
  made = matrix_lib.Matrix(json.loads(json.dumps(record)))
  own = {
    'moods': (scores['moods/0', 'moods'] + scores['moods/1', 'moods']) / 2,
    'more': (scores['more/0', 'more'] + scores['more/1', 'more']) / 2,
    'kinds': scores['kinds/0', 'kinds'],
    'names': scores['names', 'names'],
  }
  by_pair: dict = {}
  for (i, row), (j, task) in itertools.product(
    enumerate(ROWS), enumerate(TARGETS)
  ):
    score = scores[row.name, task]
    relative = 100 * score / own[task]
    gain = (score - 40.5) / (own[task] - 40.5)
    assert made.scores[i, j] == pytest.approx(score)
    assert made.relative[i, j] == pytest.approx(relative)
    assert made.gain[i, j] == pytest.approx(gain)
    if row.kind == 'value' and row.task != task:
      same = {row.task, task} == {'moods', 'more'}
      group = by_pair.setdefault('same' if same else 'other', {})
      group.setdefault((row.task, task), []).append(relative)
  assert {t['task']: t['own'] for t in record['targets']} == own
  for name, pairs in by_pair.items():
    values = [statistics.fmean(runs) for runs in pairs.values()]
    found = record['groups'][name]['relative']
    assert found['mean'] == pytest.approx(statistics.fmean(values))
    assert found['pairs'] == len(values) == {'same': 2, 'other': 10}[name]
    assert found['se'] == pytest.approx(
      statistics.stdev(values) / len(values) ** 0.5
    )
    assert found['low'] <= found['mean'] <= found['high']
  assert record['groups']['same']['relative']['seeds'] == 2
  means = {(m['source'], m['task']): m for m in record['means']}
  mean = means['moods (mean of 2)', 'kinds']
  both = [scores[f'moods/{run}', 'kinds'] for run in '01']
  assert mean['score'] == pytest.approx(statistics.fmean(both))
  assert mean['std'] == pytest.approx(statistics.stdev(both))
  assert {name for name, _ in means} == {
    f'{name} (mean of 2)' for name in ('moods', 'more', 'random')
  }


@pytest.mark.parametrize(
  ('change', 'relative', 'gain', 'said'),
  [
    ({'score': None}, None, None, 'no prompt of its own has a score'),
    ({'score': 0.0}, None, None, 'accuracy is 0.00, not above 0'),
    ({'score': 30.0}, 'all', None, r'own prompt \(30.00\) is not better'),
    ({'better': 'less'}, None, None, 'less accuracy is better'),
  ],
  ids=['undefined', 'zero', 'below random', 'less'],
)
def test_what_is_not_defined_is_said(
  backbone, caplog, change, relative, gain, said
):
  def changed(cell):
    own = (cell.source, cell.task) == ('names', 'names')
    if cell.task == 'names' and (own or 'better' in change):
      return dataclasses.replace(cell, **change)
    return cell

  with caplog.at_level(logging.INFO):
    record, _ = _collect(backbone, changed)
  cells = [c for c in record['cells'] if c['task'] == 'names']
  for name, wanted in (('relative', relative), ('gain', gain)):
    found = [c[name] for c in cells if c['source'] != 'names']
    assert all((value is None) == (wanted is None) for value in found)
  assert any(said.replace('\\', '') in line for line in record['undefined'])
  assert said.replace('\\', '') in caplog.text
  assert 'nan' not in json.dumps(record).lower()
  repr(matrix_lib.Matrix(record))
  rows = list(csv.DictReader(io.StringIO(_long(record))))
  assert {row['gain'] for row in rows if row['target'] == 'names'} == {''}


def _long(record):
  return matrix_lib.views.long_csv(record).decode()


def test_tables_can_be_read(backbone):
  record, scores = _collect(backbone)
  rows = list(csv.DictReader(io.StringIO(_long(record))))
  assert len(rows) == (len(ROWS) + 3) * len(TARGETS)
  single = {(r['source'], r['target']): r for r in rows if r['runs'] == '1'}
  assert {k: float(r['score']) for k, r in single.items()} == scores
  assert single['P*', 'kinds']['kind'] == 'shared'
  wide = matrix_lib.views.wide_csv(record, 'relative').decode()
  header, *lines = csv.reader(io.StringIO(wide))
  assert header == ['source', *TARGETS]
  # Runs and their mean, by category; then the controls.
  assert [line[0] for line in lines] == [
    *('moods/0', 'moods/1', 'moods (mean of 2)'),
    *('more/0', 'more/1', 'more (mean of 2)', 'kinds/0', 'names'),
    *('random/0', 'random/1', 'random (mean of 2)', 'zero', 'P*', 'mpt/moods'),
  ]
  text = repr(matrix_lib.Matrix(record))
  assert f'[{scores["names", "names"]:.1f}]' in text
  assert 'same category' in text


def test_the_whole_from_python(backbone, tmp_path, monkeypatch, caplog):
  rng = np.random.default_rng(5)
  given = [
    _prompt(task, task, seed=int(rng.integers(99)))
    for task in ('moods', 'kinds')
  ]
  settings = {
    'backbone': backbone,
    'sources': given,
    'targets': ['names', 'moods'],
    'categories': CATEGORIES,
    'examples': dataclasses.replace(scored.EXAMPLES, num_examples=9),
    'controls': Controls(2, mpt=scored.bundle()),
    'asking': Asking(batch_size=8),
  }
  made = matrix(model_dir=str(tmp_path), **settings)
  assert made.sources == [
    *('moods', 'kinds', 'random/0', 'random/1', 'zero'),
    *('P*', 'mpt/a', 'mpt/b', 'mpt/c'),
  ]
  assert made.scores.shape == (9, 2)
  assert np.isnan(made.relative[:, 0]).all()
  kinds = [source['kind'] for source in made.record['sources']]
  assert kinds == [
    *('value', 'value', 'random', 'random', 'zero', 'shared'),
    *['composed'] * 3,
  ]
  names = {path.name for path in tmp_path.iterdir()}
  assert names >= {
    *('matrix.json', 'matrix.csv', 'matrix_scores.csv', 'heatmap.png'),
    *('matrix_relative.csv', 'heatmap_gain.png', 'cells'),
  }
  assert len(list((tmp_path / 'cells').iterdir())) == 18
  before = (tmp_path / 'matrix.json').read_bytes()

  def refuses(*args):
    raise AssertionError('it is known')

  monkeypatch.setattr(scoring.Scorer, '_answer', refuses)
  # Finished, it does nothing; where the end was lost, cells are known.
  again = matrix(model_dir=str(tmp_path), **settings)
  np.testing.assert_equal(again.relative, made.relative)
  (tmp_path / 'matrix.json').unlink()
  matrix(model_dir=str(tmp_path), **settings)
  assert (tmp_path / 'matrix.json').read_bytes() == before
  other = settings | {'targets': ['moods'], 'asking': Asking('generate')}
  with pytest.raises(InputError, match='readout: labels.* targets: .* there'):
    matrix(model_dir=str(tmp_path), **other)
  foreign = dataclasses.replace(
    scored.bundle(), backbone_fingerprint='sha256:1'
  )
  narrow = sources.random_prompt((P, D - 1), name='narrow')
  for given, said in (
    (foreign, 'of a, b, c: .*sha256:1'),
    (narrow, "'narrow'"),
  ):
    with pytest.raises(InputError, match=said):
      matrix(**settings | {'sources': given})
  with pytest.raises(InputError, match='name the TARGETS'):
    matrix(
      **settings
      | {'sources': [_prompt('mine')], 'targets': None, 'controls': Controls(0)}
    )
