"""Indicators of transfer against float64 numbers of others."""

import functools

import numpy as np
import pytest

from mpt_jax.engine.settings import Devices
from mpt_jax.transfer import correlation, indicators, neurons
from mpt_jax.transfer.sources import SourcePrompt
from tests import goldens
from tests.goldens import networks

GOLDENS = goldens.of('indicators')
CLOSE = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6)


def prompts_of(golden):
  return [
    SourcePrompt(str(i), prompt)
    for i, prompt in enumerate(golden.io['prompts'])
  ]


@functools.cache
def _backbone(golden):
  io = golden.io
  _, layers, neurons = io['encoder_pre'].shape
  folder = goldens.backbone_of(
    golden,
    io['prompts'].shape[-1],
    int(io['sentinel']) + 1,  # the highest id
    d_ff=neurons,
    num_layers=layers,
    num_decoder_layers=io['decoder_pre'].shape[1],
    is_gated_act='decoder_mid' in io,
  )
  return networks.backbone(folder)


@pytest.mark.parametrize('golden', GOLDENS)
def test_similarities_of_prompts(golden):
  got = indicators.similarities(prompts_of(golden))
  assert set(got) == set(indicators.SIMILARITIES)
  for name, value in got.items():
    assert value.dtype == np.float64
    CLOSE(value, golden.io[name], err_msg=name)


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('golden', GOLDENS)
def test_activations_and_their_overlap(golden, scan):
  io, backbone = golden.io, _backbone(golden)
  states = neurons.activations(
    backbone,
    prompts_of(golden),
    sentinel=int(io['sentinel']),
    devices=Devices(scan_layers=scan),
  )
  for side, got in states.items():
    goldens.close(got, io[f'{side}_pre'])
    CLOSE(neurons.raw_cosine(got), io[f'{side}_raw_cosine'], atol=1e-5)
    for i, window in enumerate(io[f'{side}_windows'].tolist()):
      CLOSE(neurons.on(got, window), io[f'{side}_on'][i])
      CLOSE(neurons.jaccard(got, window), io[f'{side}_jaccard'][i])


@pytest.mark.parametrize('golden', goldens.of('correlation'))
def test_correlation_with_performance(golden):
  io = golden.config
  scores = np.array(io['scores_source_by_target'])
  performance = correlation.relative_performance(scores, scores.diagonal())
  CLOSE(performance, io['relative_performance'])
  own = np.eye(len(scores), dtype=bool)
  got = correlation.correlate(io['similarity'], performance, own)
  want = io['spearman_by_target_without_itself']
  CLOSE([rho for rho, _ in got['per_target']['targets']], want)
  CLOSE(got['per_target']['rho'], np.mean(want))
  CLOSE(got['pooled']['rho'], io['spearman_pooled_without_diagonal'])
  for found in got.values():
    assert found['low'] <= found['rho'] <= found['high']
  everything = correlation.correlate(io['similarity'], performance, own & False)
  want = io['spearman_by_target_all_sources']
  CLOSE([rho for rho, _ in everything['per_target']['targets']], want)
