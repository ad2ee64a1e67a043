"""The network: packing, padding, dropout, start values, misfit arguments."""

import functools

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpt_jax import t5
from mpt_jax.checkpoints import tensors
from tests.goldens.networks import apply

TINY = t5.T5Config(
  vocab_size=53,
  emb_dim=7,
  num_heads=3,
  num_encoder_layers=2,
  num_decoder_layers=1,
  head_dim=5,
  mlp_dim=11,
  mlp_activations=('gelu', 'linear'),
  dropout_rate=0.1,
)


@functools.cache
def _params():
  return t5.init_params(TINY, jax.random.key(1))


def _random_batch(rng, rows, inputs, targets):
  shape = {'inputs': (rows, inputs), 'targets': (rows, targets)}
  tokens = {
    k: np.asarray(rng.integers(2, TINY.vocab_size, s), np.int32)
    for k, s in shape.items()
  }
  shifted = np.pad(tokens['targets'][:, :-1], [(0, 0), (1, 0)])
  return tokens['inputs'], shifted, tokens['targets']


@pytest.mark.slow
def test_packed_prompts_equal_unpacked():
  # Two examples of unlike length and task in one row, and each alone.
  rng = np.random.default_rng(0)
  params = _params()
  table = rng.normal(size=(3, 2, TINY.emb_dim)).astype(np.float32)
  examples = []
  for task, source, target in ((2, 5, 3), (1, 4, 2)):
    inputs, shifted, targets = _random_batch(rng, 1, source, target)
    slots = np.zeros_like(inputs)
    slots[:, :2] = [1, 2]
    examples.append(
      (inputs, shifted, targets, slots, np.full_like(inputs, task))
    )
  alone = [
    apply(
      TINY,
      params,
      *example[:3],
      prompt_table=table,
      encoder_prompt_slots=example[3],
      encoder_task_ids=example[4],
    )
    for example in examples
  ]
  row = [np.concatenate(parts, axis=1) for parts in zip(*examples, strict=True)]
  inputs, shifted, targets, slots, tasks = (
    np.pad(x, [(0, 0), (0, 3)]) for x in row
  )
  packed = apply(
    TINY,
    params,
    inputs,
    shifted,
    targets,
    np.asarray([[1] * 5 + [2] * 4 + [0] * 3], np.int32),
    np.asarray([[1] * 3 + [2] * 2 + [0] * 3], np.int32),
    prompt_table=table,
    encoder_prompt_slots=slots,
    encoder_task_ids=tasks,
  )
  np.testing.assert_allclose(packed[:, :3], alone[0], atol=1e-5)
  np.testing.assert_allclose(packed[:, 3:5], alone[1], atol=1e-5)
  assert np.isfinite(packed).all()


@pytest.mark.slow
def test_padding_changes_nothing():
  rng = np.random.default_rng(2)
  params = _params()
  batch = _random_batch(rng, 2, 5, 3)
  padded = [np.pad(x, [(0, 0), (0, 6)]) for x in batch]
  np.testing.assert_allclose(
    apply(TINY, params, *padded)[:, :3],
    apply(TINY, params, *batch),
    atol=1e-5,
  )


@pytest.mark.slow
def test_dropout_needs_a_key_only_where_there_is_some():
  rng = np.random.default_rng(3)
  params = _params()
  batch = _random_batch(rng, 2, 5, 3)
  still = apply(TINY, params, *batch)
  without = apply(
    TINY.replace(dropout_rate=0.0), params, *batch, enable_dropout=True
  )
  np.testing.assert_array_equal(still, without)

  @jax.jit
  def run(key):
    return t5.Transformer(TINY).apply(
      {'params': params}, *batch, rngs={'dropout': key}
    )

  one, other = run(jax.random.key(0)), run(jax.random.key(1))
  assert np.abs(one - other).max() > 1e-3
  np.testing.assert_array_equal(one, run(jax.random.key(0)))


def test_start_values_are_t5x_s():
  config = TINY.replace(vocab_size=509, emb_dim=131, head_dim=29, mlp_dim=67)
  flat = traverse_util.flatten_dict(
    t5.init_params(config, jax.random.key(0)), sep='/'
  )
  attention = 'encoder/layers_0/attention'
  want = {
    'token_embedder/embedding': 1.0,
    f'{attention}/query/kernel': 1 / np.sqrt(131 * 29),
    f'{attention}/key/kernel': 1 / np.sqrt(131),
    f'{attention}/out/kernel': 1 / np.sqrt(3 * 29),
    'decoder/layers_0/mlp/wi_1/kernel': 1 / np.sqrt(131),
    'decoder/layers_0/mlp/wo/kernel': 1 / np.sqrt(67),
    'decoder/logits_dense/kernel': 1 / np.sqrt(131),
    'decoder/relpos_bias/rel_embedding': 1 / np.sqrt((3 + 32) / 2),
  }
  for name, std in want.items():
    assert np.std(flat[name]) == pytest.approx(std, rel=0.15), name
  assert (np.asarray(flat['decoder/decoder_norm/scale']) == 1).all()


def test_logical_axes_are_t5x_s():
  tokens = jnp.ones((1, 1), jnp.int32)
  variables = jax.eval_shape(
    lambda: t5.Transformer(TINY).init(
      jax.random.key(0), tokens, tokens, tokens, enable_dropout=False
    )
  )
  axes = traverse_util.flatten_dict(variables['params_axes'], sep='/')
  assert {f'{k.removesuffix("_axes")}' for k in axes} == set(
    tensors.expected_shapes(TINY)
  )
  decoder = {k: v.names for k, v in axes.items() if 'layers' not in k}
  assert decoder == {
    'token_embedder/embedding_axes': ('vocab', 'embed'),
    'encoder/relpos_bias/rel_embedding_axes': ('heads', 'relpos_buckets'),
    'encoder/encoder_norm/scale_axes': ('embed',),
    'decoder/relpos_bias/rel_embedding_axes': ('heads', 'relpos_buckets'),
    'decoder/decoder_norm/scale_axes': ('embed',),
    'decoder/logits_dense/kernel_axes': ('embed', 'vocab'),
  }


@pytest.mark.parametrize(('slot', 'task'), [(3, 0), (1, 3)])
def test_what_is_beyond_the_table_is_seen(slot, task):
  logits = apply(
    TINY,
    _params(),
    *_random_batch(np.random.default_rng(6), 1, 5, 3),
    prompt_table=np.ones((3, 2, 7), np.float32),
    encoder_prompt_slots=np.full((1, 5), slot, np.int32),
    encoder_task_ids=np.full((1, 5), task, np.int32),
  )
  assert np.isnan(logits).all()


def test_misfit_arguments_name_both_shapes():
  params = _params()
  batch = _random_batch(np.random.default_rng(4), 2, 5, 3)
  with pytest.raises(ValueError, match='encoder_prompt_slots'):
    apply(TINY, params, *batch, prompt_table=np.ones((3, 2, 7)))
  with pytest.raises(ValueError, match=r'\(3, 2, 8\), expected \(\?, \?, 7\)'):
    apply(
      TINY,
      params,
      *batch,
      prompt_table=np.ones((3, 2, 8)),
      encoder_prompt_slots=np.zeros((2, 5), np.int32),
    )
