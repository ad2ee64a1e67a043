"""SPoT's retrieval against float64 numbers of others."""

import functools

import numpy as np
import pytest

from mpt_jax.transfer import retrieval
from mpt_jax.types import InputError
from tests import goldens

GOLDENS = goldens.of('spot')
CLOSE = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-12)


@pytest.mark.parametrize('metric', ['average', 'per_token'])
@pytest.mark.parametrize('golden', GOLDENS)
def test_similarities_ranks_and_starts(golden, metric):
  io = golden.io
  keys, prompts = io['source_embeddings'], io['source_prompts']
  sims = retrieval.similarity(keys, io['target_embedding'], metric)
  CLOSE(sims, io[f'cos_{metric}'])
  np.testing.assert_array_equal(retrieval.rank(sims), io[f'rank_{metric}'])
  pairs = [retrieval.similarity(keys, key, metric) for key in keys]
  CLOSE(pairs, io[f'pairwise_{metric}'])
  cases = goldens.prefixes(f'/{metric}/index')(golden)
  assert cases
  for case in cases:
    index = io[f'{case}/{metric}/index']
    shares = retrieval.weights(sims, len(index))
    CLOSE(shares[index], io[f'{case}/{metric}/weights'])
    assert np.count_nonzero(shares) == len(index)
    got = retrieval.weighted_prompt(prompts, shares)
    CLOSE(got, io[f'{case}/{metric}/prompt'])


@pytest.mark.parametrize('golden', GOLDENS)
def test_similarities_below_zero(golden):
  io = golden.io
  sims = retrieval.similarity(
    io['source_embeddings'], io['negative/target_embedding']
  )
  CLOSE(sims, io['negative/cos_average'])
  np.testing.assert_array_equal(retrieval.rank(sims), io['negative/rank'])
  shares = retrieval.weights(sims, negative='keep')
  CLOSE(shares, io['negative/weights'])
  CLOSE(
    retrieval.weighted_prompt(io['source_prompts'], shares),
    io['negative/prompt'],
  )
  with pytest.raises(InputError, match="below 0 .*give negative = 'clip'"):
    retrieval.weights(sims)
  clipped = retrieval.weights(sims, negative='clip')
  above = np.maximum(sims, 0)
  CLOSE(clipped, above / above.sum())


@pytest.mark.parametrize('golden', GOLDENS)
def test_the_rule_of_attempt_s_code(golden):
  io = golden.io
  sims = retrieval.similarity(
    io['source_prompts'], io['target_embedding'], 'same_position'
  )
  shares = retrieval.weights(sims, negative='keep')
  CLOSE(shares, io['attempt_code/weights'])
  CLOSE(
    retrieval.weighted_prompt(io['source_prompts'], shares),
    io['attempt_code/prompt'],
  )


def test_what_cannot_be_compared_is_said():
  prompts = np.ones((2, 3, 4))
  with pytest.raises(InputError, match="'avarage'.*did you mean 'average'"):
    retrieval.similarity(prompts, prompts[0], 'avarage')
  with pytest.raises(InputError, match=r'\(3, 4\) cannot be compared with'):
    retrieval.similarity(prompts, prompts[0, :, :3])
  with pytest.raises(InputError, match="by 'same_position'"):
    retrieval.similarity(prompts, prompts[0, :2], 'same_position')
  with pytest.raises(InputError, match='no source prompts'):
    retrieval.similarity([], prompts[0])
  for k in (0, 3):
    with pytest.raises(InputError, match=f'k is {k}, and there are 2 sources'):
      retrieval.weights([0.5, 0.25], k)
  with pytest.raises(InputError, match='sum to 0, which gives no shares'):
    retrieval.weights([-0.5, -0.25], negative='clip')
  with pytest.raises(InputError, match=r'expected \[N, P, D\] and \[N\]'):
    retrieval.weighted_prompt(prompts, [1.0])
