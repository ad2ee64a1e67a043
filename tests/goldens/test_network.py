"""The network against T5X, transformers and google prompt-tuning."""

import json
import re

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mpt_jax
from mpt_jax import losses, t5
from tests import goldens
from tests.goldens import close, networks

T5X_NAMES = (
  'encoder_input_tokens',
  'decoder_input_tokens',
  'decoder_target_tokens',
  'encoder_segment_ids',
  'decoder_segment_ids',
)


def _t5x(golden, case):
  """The golden and the arrays of a case: plain, packed or long."""
  data = networks.load(golden.folder)
  return data, [data.io.get(case + name) for name in T5X_NAMES]


def _picked(logits, targets):
  """[B, T]: log-probabilities of the targets."""
  log_probs = jax.nn.log_softmax(logits)
  return jnp.take_along_axis(log_probs, targets[..., None], -1)[..., 0]


T5X_CASES = goldens.prefixes('decoder_target_tokens')


@pytest.mark.parametrize(('golden', 'case'), goldens.of('t5x', T5X_CASES))
def test_equals_t5x(golden, case):
  data, batch = _t5x(golden, case)
  inputs, _, targets, *_ = batch
  logits, states = networks.apply(
    data.config, data.params, *batch, return_hidden_states=True
  )
  assert logits.dtype == jnp.float32
  close(logits, data.io[f'{case}logits'], targets > 0)
  close(states['encoder'][-1], data.io[f'{case}encoder_output'], inputs > 0)
  if not case:
    _check_losses(data.io, logits, targets)


def _check_losses(io, logits, targets):
  """The sums that T5X makes of these logits, per row and of all."""
  real = targets > 0
  sums = jnp.sum(_picked(logits, targets) * real, axis=1)
  np.testing.assert_allclose(sums, io['score_batch'], rtol=1e-4)
  for name in io:
    if found := re.fullmatch(r'loss_z(\d+)(?:em(\d+))?', name):
      weight = int(found[1]) / 10 ** int(found[2] or 0)
      loss, z_loss = losses.cross_entropy_per_token(
        logits, targets, z_loss=weight
      )
      total = float(((loss + z_loss) * real).sum())
      assert total == pytest.approx(float(io[name]), rel=1e-5), name


PACKED = goldens.prefixes('encoder_segment_ids')


@pytest.mark.parametrize(('golden', 'case'), goldens.of('t5x', PACKED))
def test_encode_then_decode_is_the_call(golden, case):
  data, batch = _t5x(golden, case)
  inputs, shifted, targets, segments, target_segments = batch
  encoded = networks.apply(
    data.config, data.params, inputs, segments, method='encode'
  )
  close(encoded, data.io[f'{case}encoder_output'], inputs > 0)
  logits = networks.apply(
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
  close(logits, data.io[f'{case}logits'], targets > 0)


@pytest.mark.parametrize('golden', goldens.of('t5x'))
def test_parameter_tree_is_t5x_s(golden):
  data = networks.load(golden.folder)
  want = json.loads((golden.folder / 'params_tree.json').read_text())
  tree = jax.eval_shape(lambda: t5.init_params(data.config, jax.random.key(0)))
  flat = traverse_util.flatten_dict(tree, sep='/')
  got = {k: (list(v.shape), v.dtype.name) for k, v in flat.items()}
  assert got == {k: (v['shape'], v['dtype']) for k, v in want.items()}


@pytest.mark.parametrize('golden', goldens.of('t5x'))
def test_bfloat16_is_near_float32(golden):
  data, batch = _t5x(golden, '')
  config = data.config.replace(dtype='bfloat16')
  logits = networks.apply(config, data.params, *batch)
  assert logits.dtype == jnp.float32
  real = batch[2] > 0
  want = data.io['logits'][real]
  assert np.abs(logits[real] - want).mean() < 0.1 * goldens.room(want)


HF_CASES = goldens.prefixes('labels')


@pytest.mark.parametrize(
  ('golden', 'case'), goldens.of('transformers', HF_CASES)
)
def test_equals_transformers(golden, case):
  data = networks.load(golden.folder)
  io = data.io
  labels, inputs = io[f'{case}labels'], io[f'{case}input_ids']
  targets, real = np.maximum(labels, 0), labels != -100
  logits, states = networks.apply(
    data.config,
    data.params,
    inputs,
    io[f'{case}decoder_input_ids'],
    targets,
    return_hidden_states=True,
  )
  close(logits, io[f'{case}logits'], real)
  loss = -_picked(logits, targets)[real].mean()
  assert float(loss) == pytest.approx(float(io[f'{case}loss']), abs=1e-5)
  valid = {'encoder': inputs > 0, 'decoder': real}
  want = io[f'{case}encoder_last_hidden_state']
  close(states['encoder'][-1], want, valid['encoder'])
  if case:
    return
  for stack, where in valid.items():
    # Embeddings, blocks, norm; transformers leaves the last block out.
    theirs = goldens.matches(rf'{stack}_hidden_(\d+)')(golden)
    layers = getattr(data.config, f'num_{stack}_layers')
    assert len(states[stack]) == layers + 2
    assert len(theirs) == layers + 1
    ours = [*states[stack][:layers], states[stack][-1]]
    for i, state in enumerate(ours):
      close(state, io[f'{stack}_hidden_{i}'], where)


@pytest.mark.parametrize('golden', goldens.of('google'))
def test_prompt_slots_equal_google_prompt_tuning(golden):
  data, batch = _t5x(golden, '')
  tokens, shifted, targets, *_ = batch
  file = golden.config['prompt_path'].replace('/', '.')
  [file] = golden.folder.glob(f'numpy_checkpoints/*/{file}')
  prompt = mpt_jax.load_prompts(file, task_names=['any']).compose('any')
  length = len(prompt)
  assert length == golden.config['prompt_length']
  features = networks.batch(tokens, targets, [0] * len(tokens), length)
  inputs = features['encoder_input_tokens']

  def loss(prompt):
    logits, states = data.module.apply(
      {'params': data.params},
      inputs,
      shifted,
      targets,
      enable_dropout=False,
      prompt_table=prompt[None],
      encoder_prompt_slots=features['encoder_prompt_slots'],
      return_hidden_states=True,
    )
    total = -jnp.sum(_picked(logits, targets) * (targets > 0))
    return total, (logits, states['encoder'][-1])

  grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
  (total, (logits, encoded)), gradient = grad(prompt)
  close(logits, data.io['logits'], targets > 0)
  close(encoded, data.io['encoder_output'], inputs > 0)
  np.testing.assert_allclose(total, data.io['loss_sum'], rtol=1e-5)
  close(gradient, data.io['grad_prompt'])


@pytest.mark.parametrize('golden', goldens.of('google'))
def test_without_a_table_there_is_no_prompt(golden):
  data, batch = _t5x(golden, '')
  logits = networks.apply(data.config, data.params, *batch)
  real = batch[2] > 0
  close(logits, data.io['logits_no_prompt'], real)
  assert np.abs(logits - data.io['logits'])[real].max() > 0.1
