"""Indicators of transfer against float64 numbers of others."""

import functools

import numpy as np
import pytest

from mpt_jax.engine.settings import Devices
from mpt_jax.transfer import indicators
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
  states = indicators.activations(
    backbone,
    prompts_of(golden),
    sentinel=int(io['sentinel']),
    devices=Devices(scan_layers=scan),
  )
  for side, got in states.items():
    goldens.close(got, io[f'{side}_pre'])
    CLOSE(indicators.raw_cosine(got), io[f'{side}_raw_cosine'], atol=1e-5)
    for i, window in enumerate(io[f'{side}_windows'].tolist()):
      CLOSE(indicators.on(got, window), io[f'{side}_on'][i])
      CLOSE(indicators.jaccard(got, window), io[f'{side}_jaccard'][i])
