"""Decoding against T5X's and transformers' tokens."""

import jax
import numpy as np
import pytest

from mpt_jax.t5 import decoding
from tests import goldens
from tests.goldens import networks


def _topk_of_one(step, cache, **kwargs):
  return decoding.temperature_sample(
    step, cache, jax.random.key(0), topk=1, **kwargs
  )


@pytest.mark.parametrize(
  'search',
  [
    decoding.greedy,
    pytest.param(_topk_of_one, id='topk_1', marks=pytest.mark.slow),
  ],
)
@pytest.mark.parametrize('golden', goldens.of('t5x'))
def test_greedy_equals_t5x(golden, search):
  data = networks.load(golden.folder)
  tokens, log_probs = networks.decode(
    data,
    data.io['encoder_input_tokens'],
    data.decode['max_decode_len'],
    search,
    eos_id=data.decode['eos_id'],
  )
  np.testing.assert_array_equal(tokens, data.io['greedy_tokens'])
  np.testing.assert_allclose(
    log_probs, data.io['greedy_log_probs'], rtol=0, atol=1e-4
  )


BEAMS = goldens.matches(r'beam(\d+)_tokens')


@pytest.mark.parametrize(('golden', 'beams'), goldens.of('t5x', BEAMS))
def test_beam_search_equals_t5x(golden, beams):
  data = networks.load(golden.folder)
  tokens, scores = networks.decode(
    data,
    data.io['encoder_input_tokens'],
    data.decode['max_decode_len'],
    decoding.beam_search,
    eos_id=data.decode['eos_id'],
    num_beams=int(beams),
    alpha=data.decode['beam']['alpha'],
  )
  np.testing.assert_array_equal(tokens, data.io[f'beam{beams}_tokens'])
  np.testing.assert_allclose(
    scores, data.io[f'beam{beams}_scores'], rtol=0, atol=1e-4
  )


@pytest.mark.parametrize('golden', goldens.of('transformers'))
def test_greedy_equals_transformers(golden):
  data = networks.load(golden.folder)
  want = data.io['generate_ids'][:, 1:]  # Without the start token.
  tokens, _ = networks.decode(
    data, data.io['input_ids'], want.shape[1], decoding.greedy, **data.ids
  )
  np.testing.assert_array_equal(tokens, want)
