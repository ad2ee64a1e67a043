"""The network against T5X's, transformers' and google prompt-tuning's numbers.

Logits reach 10 here; 1e-4 is what tells a tanh gelu from an exact one.
"""

import functools
import json

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpt_jax import t5
from mpt_jax.checkpoints import tensors
from tests.goldens import networks as fixtures

T5X = ('t5x_v1_0_tiny', 't5x_v1_1_tiny')
HF = ('hf_t5_v1_0_tiny', 'hf_t5_v1_1_tiny')
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


def _close(got, want, where, tolerance=1e-4):
  np.testing.assert_allclose(
    np.asarray(got)[where], want[where], rtol=0, atol=tolerance
  )


@functools.cache
def _compiled(config, **static):
  module = t5.Transformer(config)
  return jax.jit(
    lambda params, inputs, prompts: module.apply(
      {'params': params},
      *inputs,
      **{'enable_dropout': False, **static},
      **prompts,
    )
  )


def _apply(config, params, *inputs, **kwargs):
  static = ('enable_dropout', 'method', 'return_hidden_states')
  run = _compiled(config, **{k: v for k, v in kwargs.items() if k in static})
  prompts = {k: v for k, v in kwargs.items() if k not in static}
  return run(params, inputs, prompts)


@pytest.mark.parametrize('case', ['', 'packed_', 'long_'])
@pytest.mark.parametrize('family', T5X)
def test_equals_t5x(family, case):
  data = fixtures.load(family)
  inputs, targets, segments, target_segments = (
    data.io.get(case + name)
    for name in (
      'encoder_input_tokens',
      'decoder_target_tokens',
      'encoder_segment_ids',
      'decoder_segment_ids',
    )
  )
  args = (inputs, data.io[f'{case}decoder_input_tokens'], targets)
  logits, states = _apply(
    data.config,
    data.params,
    *args,
    segments,
    target_segments,
    return_hidden_states=True,
  )
  assert logits.dtype == jnp.float32
  _close(logits, data.io[f'{case}logits'], targets > 0)
  want = data.io[f'{case}encoder_output']
  _close(states['encoder'][-1], want, inputs > 0)


def test_encode_then_decode_is_the_call():
  data = fixtures.load('t5x_v1_1_tiny')
  inputs, segments, shifted, targets, target_segments = (
    data.io[f'packed_{name}']
    for name in (
      'encoder_input_tokens',
      'encoder_segment_ids',
      'decoder_input_tokens',
      'decoder_target_tokens',
      'decoder_segment_ids',
    )
  )
  encoded = _apply(data.config, data.params, inputs, segments, method='encode')
  _close(encoded, data.io['packed_encoder_output'], inputs > 0)
  logits = _apply(
    data.config,
    data.params,
    encoded,
    inputs,
    shifted,
    targets,
    segments,
    target_segments,
    method='decode',
  )
  _close(logits, data.io['packed_logits'], targets > 0)


@pytest.mark.parametrize('family', T5X)
def test_parameter_tree_is_t5x_s(family):
  data = fixtures.load(family)
  golden = json.loads((data.folder / 'params_tree.json').read_text())
  tree = jax.eval_shape(lambda: t5.init_params(data.config, jax.random.key(0)))
  flat = traverse_util.flatten_dict(tree, sep='/')
  got = {k: (list(v.shape), v.dtype.name) for k, v in flat.items()}
  assert got == {k: (v['shape'], v['dtype']) for k, v in golden.items()}


@pytest.mark.parametrize('case', ['', 'long_'])
@pytest.mark.parametrize('family', HF)
def test_equals_transformers(family, case):
  data = fixtures.load(family)
  inputs, labels = data.io[f'{case}input_ids'], data.io[f'{case}labels']
  targets = np.maximum(labels, 0)
  logits, states = _apply(
    data.config,
    data.params,
    inputs,
    data.io[f'{case}decoder_input_ids'],
    targets,
    return_hidden_states=True,
  )
  _close(logits, data.io[f'{case}logits'], labels >= 0)
  log_probs = jax.nn.log_softmax(logits)
  picked = np.take_along_axis(np.asarray(log_probs), targets[..., None], -1)
  loss = -picked[..., 0][labels >= 0].mean()
  assert loss == pytest.approx(float(data.io[f'{case}loss']), abs=1e-5)
  want = data.io[f'{case}encoder_last_hidden_state']
  _close(states['encoder'][-1], want, inputs > 0)


@pytest.mark.parametrize('family', HF)
def test_hidden_states_are_transformers(family):
  data = fixtures.load(family)
  valid = {
    'encoder': data.io['input_ids'] > 0,
    'decoder': data.io['labels'] >= 0,
  }
  _, states = _apply(
    data.config,
    data.params,
    data.io['input_ids'],
    data.io['decoder_input_ids'],
    np.maximum(data.io['labels'], 0),
    return_hidden_states=True,
  )
  for stack, where in valid.items():
    # Embeddings, two blocks, norm; transformers leaves the last block out.
    assert len(states[stack]) == 4
    for ours, theirs in ((0, 0), (1, 1), (3, 2)):
      want = data.io[f'{stack}_hidden_{theirs}']
      _close(states[stack][ours], want, where)


def _google(prompt_length):
  data = fixtures.load('google_prompt_tuning_tiny')
  folder = data.folder / 'numpy_checkpoints' / 'checkpoint_250'
  prompt = np.load(folder / 'encoder.prompt.prompt.prompt', allow_pickle=False)
  tokens = data.io['encoder_input_tokens']
  inputs = np.pad(tokens, [(0, 0), (prompt_length, 0)], constant_values=1)
  slots = np.zeros_like(inputs)
  slots[:, :prompt_length] = np.arange(1, prompt_length + 1)
  return data, prompt, inputs, slots


def test_prompt_slots_equal_google_prompt_tuning():
  data, prompt, inputs, slots = _google(7)
  targets = data.io['decoder_target_tokens']

  def loss(prompt):
    logits, states = data.module.apply(
      {'params': data.params},
      inputs,
      data.io['decoder_input_tokens'],
      targets,
      enable_dropout=False,
      prompt_table=prompt[None],
      encoder_prompt_slots=slots,
      return_hidden_states=True,
    )
    log_probs = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)
    total = -jnp.sum(jnp.where(targets > 0, picked[..., 0], 0))
    return total, (logits, states['encoder'][-1])

  grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
  (total, (logits, encoded)), gradient = grad(prompt)
  _close(logits, data.io['logits'], targets > 0)
  _close(encoded, data.io['encoder_output'], inputs > 0)
  np.testing.assert_allclose(total, data.io['loss_sum'], rtol=1e-5)
  np.testing.assert_allclose(gradient, data.io['grad_prompt'], atol=1e-4)


def test_without_a_table_there_is_no_prompt():
  data, *_ = _google(7)
  targets = data.io['decoder_target_tokens']
  logits = _apply(
    data.config,
    data.params,
    data.io['encoder_input_tokens'],
    data.io['decoder_input_tokens'],
    targets,
  )
  _close(logits, data.io['logits_no_prompt'], targets > 0)
  assert np.abs(logits - data.io['logits'])[targets > 0].max() > 0.1


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
    _apply(
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
  packed = _apply(
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
    _apply(TINY, params, *padded)[:, :3],
    _apply(TINY, params, *batch),
    atol=1e-5,
  )


@pytest.mark.slow
def test_dropout_needs_a_key_only_where_there_is_some():
  rng = np.random.default_rng(3)
  params = _params()
  batch = _random_batch(rng, 2, 5, 3)
  still = _apply(TINY, params, *batch)
  without = _apply(
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


def test_bfloat16_is_near_float32():
  data = fixtures.load('t5x_v1_1_tiny')
  targets = data.io['decoder_target_tokens']
  logits = _apply(
    data.config.replace(dtype='bfloat16'),
    data.params,
    data.io['encoder_input_tokens'],
    data.io['decoder_input_tokens'],
    targets,
  )
  assert logits.dtype == jnp.float32
  error = np.abs(logits - data.io['logits'])[targets > 0]
  assert error.mean() < 0.1


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
  logits = _apply(
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
    _apply(TINY, params, *batch, prompt_table=np.ones((3, 2, 7)))
  with pytest.raises(ValueError, match=r'\(3, 2, 8\), expected \(\?, \?, 7\)'):
    _apply(
      TINY,
      params,
      *batch,
      prompt_table=np.ones((3, 2, 8)),
      encoder_prompt_slots=np.zeros((2, 5), np.int32),
    )
