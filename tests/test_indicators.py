"""Indicators of transfer, by hand and on networks of our own."""

import dataclasses
import functools

import numpy as np
import pytest

from mpt_jax.engine.settings import Devices
from mpt_jax.transfer import indicators
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
  backbone = _backbone(num_encoder_layers=1)  # changed here
  layer = backbone.params['encoder']['layers_0']
  out = layer['attention']['out']
  out['kernel'] = np.zeros_like(out['kernel'])
  embedding = backbone.params['token_embedder']['embedding']
  prompts = _prompts(2, backbone.config.emb_dim)
  for kind, name in (('pre', 'wi_0'), ('linear', 'wi_1')):
    got = indicators.activations(backbone, prompts, sentinel=9, kind=kind)
    want = _norm(embedding[9]) @ layer['mlp'][name]['kernel']
    # Without attention the token behind the prompt does not see it.
    CLOSE(got['encoder'], np.broadcast_to(want, (2, 1, len(want))))
    CLOSE(indicators.on(got['encoder']), 1.0)
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
  CLOSE(indicators.on(states, (0, 1)), half)
  CLOSE(indicators.on(states, (1, 2)), np.diag([1, 1, 0]))
  third = [[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 0]]
  CLOSE(indicators.on(states), third)
  CLOSE(indicators.jaccard(states, (0, 1))[0, 1], 1 / 3)
  CLOSE(indicators.jaccard(states)[2], 0)
  for window in ((1, 1), (0, 3), (-1, 1)):
    with pytest.raises(InputError, match='is not within the 2 layers'):
      indicators.on(states, window)


def test_windows_of_layers():
  assert indicators.windows(8, 3) == [(0, 3), (3, 6), (6, 8), (0, 8)]
  assert indicators.windows(2, 1) == [(0, 1), (1, 2), (0, 2)]
  assert indicators.windows(2, 3) == [(0, 2)]


def test_all_prompts_in_one_run_are_each_alone():
  backbone = _backbone(num_encoder_layers=2, num_decoder_layers=2)
  prompts = _prompts(3, backbone.config.emb_dim)
  for devices in (Devices(), Devices(scan_layers=True, remat_layers=True)):
    run = functools.partial(indicators.activations, backbone, devices=devices)
    together = run(prompts)
    assert together['decoder'].shape == (3, 2, backbone.config.mlp_dim)
    for i, prompt in enumerate(prompts):
      for side, alone in run([prompt]).items():
        CLOSE(alone[0], together[side][i])


def test_the_token_behind_the_prompt(caplog):
  backbone = _backbone()
  assert indicators.sentinel_id(backbone) == backbone.config.vocab_size - 1
  assert 'has no <extra_id_0>: id 36, its highest' in caplog.text
  served = tiny.served()
  vocabulary = served.with_vocabulary().vocabulary
  [want] = vocabulary.model_ids('<extra_id_0>')
  assert indicators.sentinel_id(served) == want == vocabulary.size - 1
  assert indicators.sentinel_id(served, '</s>') == 1
  with pytest.raises(InputError, match='is no token of tiny: give one'):
    indicators.sentinel_id(served, 'several of them')
  with pytest.raises(InputError, match='expected an id below 512'):
    indicators.sentinel_id(served, 512)


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
    indicators.activations(_backbone(), prompts, kind='mid')
  with pytest.raises(InputError, match='have no gate: take'):
    indicators.activations(
      _backbone(mlp_activations=('relu',)), prompts, kind='linear'
    )
  with pytest.raises(InputError, match="'decodr'.*did you mean 'decoder'"):
    indicators.overlap(_backbone(), prompts, 'decodr')
  with pytest.raises(InputError, match='prompts are 13 wide, and tiny 14'):
    indicators.overlap(_backbone(), _prompts(2, 13))
