"""Indicators of transfer, by hand and on networks of our own."""

import copy
import csv
import dataclasses
import functools
import json

import numpy as np
import pytest

from mpt_jax.engine.settings import Devices
from mpt_jax.transfer import (
  correlation,
  indicator_tables,
  indicators,
  neurons,
)
from mpt_jax.transfer.sources import SourcePrompt
from mpt_jax.types import InputError
from tests.helpers import tiny

CLOSE = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)


def _prompts(count, width, length=3):
  drawn = np.random.default_rng(0).normal(size=(count, length, width))
  return [SourcePrompt(f'p{i}', prompt) for i, prompt in enumerate(drawn)]


@functools.cache
def _backbone(**changes):
  """The tiny gated backbone, without a vocabulary."""
  config = dataclasses.replace(tiny.CONFIG, **changes)
  params = tiny.backbone(config=config)
  return dataclasses.replace(
    tiny.served(), config=config, params=params, vocabulary_file=None
  )


def _norm(x):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def test_a_layer_by_hand():
  """An encoder of one block whose attention gives nothing."""
  backbone = copy.deepcopy(_backbone())
  layer = backbone.params['encoder']['layers_0']
  out = layer['attention']['out']
  out['kernel'] = np.zeros_like(out['kernel'])
  embedding = backbone.params['token_embedder']['embedding']
  prompts = _prompts(2, backbone.config.emb_dim)
  for kind, name in (('pre', 'wi_0'), ('linear', 'wi_1')):
    got = neurons.activations(backbone, prompts, sentinel=9, kind=kind)
    want = _norm(embedding[9]) @ layer['mlp'][name]['kernel']
    # Without attention the token behind the prompt does not see it.
    CLOSE(got['encoder'], np.broadcast_to(want, (2, 1, len(want))))
    CLOSE(neurons.on(got['encoder']), 1.0)
  overlap = indicators.overlap(backbone, prompts, sentinel=9, kind='linear')
  active = got['decoder'][:, 0] > 0
  a, b = (set(np.flatnonzero(row)) for row in active)
  CLOSE(overlap[0, 1], len(a & b) / np.sqrt(len(a) * len(b)))


def test_overlaps_of_states():
  states = np.array(
    [
      [[1, 1, 0, -1], [5, -1, -1, -1]],
      [[2, -1, 3, -1], [-1, 5, -1, -1]],
      [[0, 0, 0, 0], [0, 0, 0, 0]],
    ]
  )
  half = [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 0]]
  CLOSE(neurons.on(states, (0, 1)), half)
  CLOSE(neurons.on(states, (1, 2)), np.diag([1, 1, 0]))
  third = [[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 0]]
  CLOSE(neurons.on(states), third)
  CLOSE(neurons.jaccard(states, (0, 1))[0, 1], 1 / 3)
  CLOSE(neurons.jaccard(states)[2], 0)
  for window in ((1, 1), (0, 3), (-1, 1)):
    with pytest.raises(InputError, match='is not within the 2 layers'):
      neurons.on(states, window)


def test_windows_of_layers():
  assert neurons.windows(8, 3) == [(0, 3), (3, 6), (6, 8), (0, 8)]
  assert neurons.windows(2, 1) == [(0, 1), (1, 2), (0, 2)]
  assert neurons.windows(2, 3) == [(0, 2)]


def test_all_prompts_in_one_run_are_each_alone():
  backbone = _backbone(num_encoder_layers=2, num_decoder_layers=2)
  prompts = _prompts(3, backbone.config.emb_dim)
  for devices in (Devices(), Devices(scan_layers=True, remat_layers=True)):
    run = functools.partial(neurons.activations, backbone, devices=devices)
    together = run(prompts)
    assert together['decoder'].shape == (3, 2, backbone.config.mlp_dim)
    for i, prompt in enumerate(prompts):
      for side, alone in run([prompt]).items():
        CLOSE(alone[0], together[side][i])


def test_the_token_behind_the_prompt(caplog):
  backbone = _backbone()
  assert neurons.sentinel_id(backbone) == backbone.config.vocab_size - 1
  assert 'has no <extra_id_0>: id 36, its highest' in caplog.text
  served = tiny.served()
  vocabulary = served.with_vocabulary().vocabulary
  [want] = vocabulary.model_ids('<extra_id_0>')
  assert neurons.sentinel_id(served) == want == vocabulary.size - 1
  assert neurons.sentinel_id(served, '</s>') == 1
  with pytest.raises(InputError, match='is no token of tiny: give one'):
    neurons.sentinel_id(served, 'several of them')
  with pytest.raises(InputError, match='expected an id below 512'):
    neurons.sentinel_id(served, 512)


def test_minus_start_is_what_training_added():
  first, second, third = _prompts(3, 8)
  start = np.ones((3, 8))
  moved = [
    dataclasses.replace(p, array=p.array + start, start=start)
    for p in (first, second)
  ]
  got = indicators.similarities(moved, minus_start=True)
  for name, want in indicators.similarities([first, second]).items():
    CLOSE(got[name], want, err_msg=name)
  with pytest.raises(InputError, match='nobody knows what p2 started from'):
    indicators.similarities([*moved, third], minus_start=True)


def test_what_cannot_be_run_is_said():
  prompts = _prompts(2, 14)
  with pytest.raises(InputError, match="'mid', expected .* a rounding error's"):
    neurons.activations(_backbone(), prompts, kind='mid')
  with pytest.raises(InputError, match='have no gate: take'):
    neurons.activations(
      _backbone(mlp_activations=('relu',)), prompts, kind='linear'
    )
  with pytest.raises(InputError, match="'decodr'.*did you mean 'decoder'"):
    indicators.overlap(_backbone(), prompts, 'decodr')
  with pytest.raises(InputError, match='prompts are 13 wide, and tiny 14'):
    indicators.overlap(_backbone(), _prompts(2, 13))


# -- the verb -----------------------------------------------------------------

TASKS = ('mnli', 'sst2', 'rte', 'imdb')


def _trained(same=True):
  """Prompts of four tasks in two categories, two runs each."""
  rng = np.random.default_rng(1)
  prompts = []
  for run in '01':
    start = rng.normal(size=(3, 16))
    for task in TASKS:
      begin = start if same else rng.normal(size=(3, 16))
      end = begin + rng.normal(size=(3, 16))
      made = SourcePrompt(f'{task}/{run}', end, task, run=run, start=begin)
      prompts.append(made)
  return prompts


def _matrix(folder, prompts, performance):
  """What the verb `matrix` writes; `performance` [S, T] by `TASKS`."""
  cells = [
    {'source': p.name, 'task': t, 'relative': value, 'gain': value / 2}
    for p in prompts
    for t, value in zip(TASKS, performance[TASKS.index(p.task)], strict=True)
  ]
  rows = [
    {'name': p.name, 'task': p.task, 'kind': p.kind, 'digest': p.digest}
    for p in prompts
  ]
  rows.append({'name': 'P*', 'task': '', 'kind': 'shared', 'digest': ''})
  targets = [{'task': task} for task in (*TASKS, 'squad')]
  content = {'sources': rows, 'targets': targets, 'cells': cells}
  (folder / 'matrix.json').write_text(json.dumps(content))
  return str(folder)


def _run(tmp_path, **changes):
  settings = {
    'model_dir': str(tmp_path / 'out'),
    'backbone': tiny.served(),
    'prompts': _trained(),
    **changes,
  }
  return indicators.indicators(**settings)


def test_the_verb_correlates_within_runs(tmp_path, caplog):
  prompts = _trained()
  values = indicators.similarities(prompts)['C_mean']
  alike = (values[:4, :4] + values[4:, 4:]) / 2
  # Performance that goes along with similarity exactly, but on the diagonal.
  performance = 50 + 40 * alike
  np.fill_diagonal(performance, -7.0)
  matrix = _matrix(tmp_path, prompts, performance.tolist())
  written = _run(tmp_path, matrix=matrix)
  assert written == _run(tmp_path, matrix=matrix)
  assert written == json.loads((tmp_path / 'out/indicators.json').read_text())
  assert written['names'] == [
    *('mnli/0', 'mnli/1', 'rte/0', 'rte/1'),
    *('sst2/0', 'sst2/1', 'imdb/0', 'imdb/1'),
  ]
  found = {row['name']: row for row in written['correlations']}
  got = found['C_mean']
  CLOSE(got['per_target']['rho'], 1)
  for pool in (got['pooled'], got['pooled_gain']):
    CLOSE([pool[key] for key in ('rho', 'low', 'high')], 1)
  assert (got['per_target']['n'], got['pooled']['n']) == (4, 12)
  assert set(written['correlated']['targets']) == set(TASKS)
  names = written['similarities']
  assert {'C_average minus start', 'ON decoder 0-1', 'E_concat'} <= set(names)
  assert written['same_start']
  assert '*' not in caplog.text
  files = {path.name for path in (tmp_path / 'out').iterdir()}
  for kind in ('heatmap', 'scatter'):
    assert {f'{kind}_C_average.png', f'{kind}_ON_encoder_0_1.png'} <= files
  table = list(csv.DictReader((tmp_path / 'out/indicators.csv').open()))
  assert len(table) == len(names) * 8 * 7
  first = [row for row in table if row['target'] == 'mnli/0'][:7]
  assert [row['rank'] for row in first] == [str(i) for i in range(1, 8)]
  near = {row['source']: row['same_category'] for row in first}
  assert (near['rte/0'], near['mnli/1'], near['sst2/0']) == ('1', '0', '0')
  with pytest.raises(InputError, match='other settings.*WINDOW: 3 there, 2'):
    _run(tmp_path, matrix=matrix, window=2)


@pytest.fixture
def _no_pictures(monkeypatch):
  monkeypatch.setattr(indicator_tables, 'pictures', lambda *args: {})


@pytest.mark.usefixtures('_no_pictures')
def test_starts_that_differ_are_said(tmp_path, caplog):
  caplog.set_level('INFO')
  written = _run(tmp_path, prompts=_trained(same=False))
  assert (written['starts'], written['same_start']) == ('different', False)
  assert 'WARNING: the prompts began with different vectors' in caplog.text
  assert 'E_concat*' in caplog.text
  assert 'C_average*' not in caplog.text
  assert written['correlations'] == []
  unknown = [dataclasses.replace(p, start=None) for p in _trained()]
  written = _run(tmp_path, model_dir=str(tmp_path / 'b'), prompts=unknown)
  assert (written['starts'], len(written['no_start'])) == ('unknown', 8)
  assert not any(i['minus_start'] for i in written['indicators'])


@pytest.mark.usefixtures('_no_pictures')
def test_a_matrix_of_others_is_refused(tmp_path):
  prompts = _trained()
  table = np.ones((4, 4)).tolist()
  matrix = _matrix(tmp_path, prompts, table)
  with pytest.raises(InputError, match='of other prompts .* rte/1, sst2/0'):
    _run(tmp_path, matrix=matrix, prompts=_trained(same=False))
  with pytest.raises(InputError, match='share 2 source tasks'):
    _run(tmp_path, matrix=matrix, prompts=prompts[:2])
  # All performances alike: there is no correlation, which is not 0.
  [first, *_] = _run(tmp_path, matrix=matrix)['correlations']
  assert first['per_target']['rho'] is first['pooled']['rho'] is None
  assert first['per_target']['n'] == 0


def test_correlations_of_few_points():
  assert correlation.spearman([1, 2], [1, 2]) is None
  assert correlation.spearman([1, 2, 3], [5, 5, 5]) is None
  CLOSE(correlation.spearman([1, 1, 2], [3, 3, 1]), -1)
  performance = np.array(
    [[100, 1, 2], [3, 100, np.nan], [1, 4, 100], [2, 9, 8]]
  )
  got = correlation.correlate(performance, performance, np.eye(4, 3))
  assert [n for _, n in got['per_target']['targets']] == [3, 3, 2]
  assert (got['per_target']['n'], got['per_target']['low']) == (2, None)
  assert got['pooled']['n'] == 8
  relative = correlation.relative_performance([[40, 5]], [80, -1])
  np.testing.assert_array_equal(relative, [[50, np.nan]])
