"""SPoT's retrieval against float64 numbers of others."""

import functools
import json

import numpy as np
import pytest

from mpt_jax.checkpoints.bundle import PromptBundle, load_prompts
from mpt_jax.transfer import library, retrieval, retrieve
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


def _library(golden, folder):
  """A library of the golden's keys and values, and the target's key."""

  def bundle(name, array, step):
    return PromptBundle(
      *('soft', 'teacher', (name,), {'prompt': array}), step=step
    )

  io = golden.io
  for i, (key, value) in enumerate(
    zip(io['source_embeddings'], io['source_prompts'], strict=True)
  ):
    bundle(f's{i}', value, 2).save(str(folder / f'runs/s{i}/prompts'))
    bundle(f's{i}', key, 1).save(str(folder / f'runs/s{i}/key'))
  library.add(library=str(folder / 'library'), prompts=str(folder / 'runs'))
  for name in ('target_embedding', 'negative/target_embedding'):
    path = str(folder / name.replace('/', '_'))
    bundle('target', io[name], 1).save(path)


@pytest.mark.parametrize('metric', ['average', 'per_token'])
@pytest.mark.parametrize('golden', GOLDENS)
def test_the_command_ranks_and_starts_by_the_formula(golden, metric, tmp_path):
  _library(golden, tmp_path)
  io = golden.io
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6)
  for case in goldens.prefixes(f'/{metric}/index')(golden):
    index = io[f'{case}/{metric}/index']
    folder = tmp_path / f'{len(index)}'
    retrieve.retrieve(
      library=str(tmp_path / 'library'),
      target_key=str(tmp_path / 'target_embedding'),
      model_dir=str(folder),
      metrics=(metric,),
      k=len(index),
      start='weighted',
      fixed='s1',
    )
    told = json.loads((folder / 'retrieve.json').read_text())
    ranked = [row['name'] for row in told['metrics'][metric]['prompts']]
    assert ranked == [f's{i}' for i in io[f'rank_{metric}']]
    assert list(told['weights']) == sorted(f's{i}' for i in index)
    shares = [told['weights'][f's{i}'] for i in index]
    close(shares, io[f'{case}/{metric}/weights'])
    made = load_prompts(str(folder / 'starts/weighted')).table[0]
    close(made, io[f'{case}/{metric}/prompt'])
    mean = load_prompts(str(folder / 'starts/average')).table[0]
    close(mean, io['source_prompts'].mean(axis=0))
    fixed = load_prompts(str(folder / 'starts/fixed')).table[0]
    close(fixed, io['source_prompts'][1])


@pytest.mark.parametrize('golden', GOLDENS)
def test_the_command_says_what_becomes_of_similarities_below_zero(
  golden, tmp_path, capsys
):
  _library(golden, tmp_path)
  settings = {
    'library': str(tmp_path / 'library'),
    'target_key': str(tmp_path / 'negative_target_embedding'),
    'metrics': 'average',
    'k': None,
    'start': 'weighted',
  }
  with pytest.raises(InputError, match="below 0 .*give negative = 'clip'"):
    retrieve.retrieve(model_dir=str(tmp_path / 'refuse'), **settings)
  assert not (tmp_path / 'refuse/starts').exists()
  folder = tmp_path / 'keep'
  retrieve.retrieve(model_dir=str(folder), negative='keep', **settings)
  made = load_prompts(str(folder / 'starts/weighted')).table[0]
  np.testing.assert_allclose(
    made, golden.io['negative/prompt'], rtol=1e-5, atol=1e-5
  )
  out = capsys.readouterr().out
  assert 'similarities below 0: s' in out
  assert 'their shares are below 0' in out
  retrieve.retrieve(
    model_dir=str(tmp_path / 'clip'), negative='clip', **settings
  )
  assert 'they count as 0' in capsys.readouterr().out


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
