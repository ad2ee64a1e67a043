"""Cross-attention in either order of its products is the same function.

Which order is taken depends on shapes alone. A wrong head or a wrong mask in
one of them would pass every test whose shapes lead to the other.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpt_jax import models, t5
from mpt_jax.t5 import layers

CONFIG = t5.T5Config(
  vocab_size=53,
  emb_dim=24,
  num_heads=3,
  num_encoder_layers=1,
  num_decoder_layers=2,
  head_dim=7,
  mlp_dim=32,
  dropout_rate=0.0,
)
B, S, T = 2, 19, 5


def forced(monkeypatch, chosen, run):
  monkeypatch.setattr(layers.CrossAttention, '_is_less_work', lambda *_: chosen)
  return run()


def batch(packed, seed=0):
  rng = np.random.default_rng(seed)
  source = rng.integers(2, 53, (B, S)).astype(np.int32)
  target = rng.integers(2, 53, (B, T)).astype(np.int32)
  segments = {}
  if packed:
    segments = {
      'encoder_segment_ids': np.repeat([[1] * 8 + [2] * 11], B, axis=0),
      'decoder_segment_ids': np.repeat([[1] * 2 + [2] * 3], B, axis=0),
    }
  else:
    source[0, 12:] = 0
  return source, target, segments


def outputs(config, packed, dropout=False):
  """Logits and the gradients of every parameter."""
  source, target, segments = batch(packed)
  module = t5.Transformer(config)
  params = module.init(
    jax.random.PRNGKey(0), source, target, target, enable_dropout=False
  )['params']

  def loss(params):
    logits = module.apply(
      {'params': params},
      source,
      target,
      target,
      **segments,
      enable_dropout=dropout,
      rngs={'dropout': jax.random.PRNGKey(3)},
    )
    return jnp.sin(logits).sum(), logits

  grads, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
  return jax.tree.leaves((logits, grads))


def close(got, wanted, bound):
  for x, y in zip(got, wanted, strict=True):
    assert np.abs(x - y).max() <= bound * max(np.abs(y).max(), 1e-3)


@pytest.mark.parametrize(
  ('packed', 'dropout'),
  [
    (False, False),
    (False, True),
    (True, False),
    (True, True),
  ],
)
@pytest.mark.slow
def test_logits_and_every_gradient(packed, dropout, monkeypatch):
  config = dataclasses.replace(CONFIG, dropout_rate=0.3 * dropout)
  got, wanted = (
    forced(monkeypatch, chosen, lambda: outputs(config, packed, dropout))
    for chosen in (True, False)
  )
  close(got, wanted, 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize('field', ['precision', 'dtype'])
def test_in_bfloat16(field, monkeypatch):
  config = dataclasses.replace(CONFIG, **{field: 'bfloat16'})
  got, wanted = (
    forced(monkeypatch, chosen, lambda: outputs(config, False)[0])
    for chosen in (True, False)
  )
  close([got.astype(np.float32)], [wanted.astype(np.float32)], 3e-2)


@pytest.mark.parametrize('num_beams', [1, 4])
def test_decoding(num_beams, monkeypatch):
  source, target, _ = batch(False)
  model = models.PromptedT5(CONFIG)
  params = model.get_initial_variables(jax.random.PRNGKey(1))['params']
  # Larger than the start values, so that the outputs depend on the inputs.
  params = jax.tree.map(lambda x: 3 * x, params)

  def decode():
    return jax.jit(
      lambda params, source: model.decode_batch(
        params,
        {'encoder_input_tokens': source, 'decoder_input_tokens': target},
        num_beams=num_beams,
      )
    )(params, source)

  (tokens, scores), (wanted, wanted_scores) = (
    forced(monkeypatch, chosen, decode) for chosen in (True, False)
  )
  np.testing.assert_array_equal(tokens, wanted)
  np.testing.assert_allclose(scores, wanted_scores, rtol=1e-4)
  assert len({tuple(row) for row in np.asarray(tokens).tolist()}) > 1


def multiplications(config, queries, keys):
  """Of one example's keys and values, in either order."""
  width, joined = config.emb_dim, config.num_heads * config.head_dim
  projected = keys * width * joined + queries * keys * joined
  by_head = config.num_heads * (
    queries * config.head_dim * width + queries * keys * width
  )
  return 2 * projected, 2 * by_head


@pytest.mark.parametrize(
  ('queries', 'keys'),
  [(1, 1), (8, 228), (8, 8), (62, 356), (1, 512), (40, 512)],
)
def test_the_order_with_less_work_is_taken(queries, keys):
  config = t5.T5Config(vocab_size=53)
  projected, by_head = multiplications(config, queries, keys)
  layer = layers.CrossAttention(config)
  assert layer._is_less_work(queries, keys) == (by_head < projected)


@pytest.mark.parametrize('chosen', [False, True])
def test_nothing_of_the_size_of_keys_is_computed(chosen, monkeypatch):
  """Few targets: no product of the encoder's output and a kernel."""
  source, target, _ = batch(False)
  module = t5.Transformer(CONFIG)
  variables = module.init(
    jax.random.PRNGKey(0), source, target, target, enable_dropout=False
  )
  encoded = jnp.ones((B, S, CONFIG.emb_dim))
  jaxpr = forced(
    monkeypatch,
    chosen,
    lambda: jax.make_jaxpr(
      lambda v, x: module.apply(
        v, x, source, target, target, enable_dropout=False, method='decode'
      )
    )(variables, encoded),
  )
  joined = CONFIG.num_heads * CONFIG.head_dim
  assert (f'f32[{B},{S},{joined}]' in str(jaxpr)) != chosen
