"""RoBERTa against transformers, in both conventions of prompts' positions."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpt_jax import checkpoints, methods, models
from mpt_jax.engine import batching
from mpt_jax.engine.settings import Devices
from mpt_jax.transfer import neurons
from mpt_jax.transfer.sources import SourcePrompt
from tests import goldens
from tests.goldens import close, networks

# The name of a convention in a golden, and what our config calls it.
CONVENTIONS = {'transformers': 'absolute', 'ptrans': 'none'}
GOLDENS = goldens.of('masked')
EACH = goldens.of('masked', lambda golden: list(CONVENTIONS))


@functools.cache
def _load(folder):
  """The backbone, its arrays in our ids, and the model of its mask."""
  loaded = networks.backbone(folder)
  io = networks.in_our_ids(loaded, goldens.arrays(folder / 'io.npz'))
  model = models.class_of(loaded.config)(
    loaded.config, **loaded.special_ids.of_model()
  )
  return types.SimpleNamespace(loaded=loaded, io=io, model=model)


def _case(golden, convention):
  """A model of one prompt, its parameters and a batch."""
  data = _load(golden.folder)
  io, loaded = data.io, data.loaded
  prefix = 'ptrans_' if convention == 'ptrans' else ''
  config = loaded.config.replace(
    prompt_positions=CONVENTIONS[convention], dropout_rate=0.0
  )
  prompt = jnp.asarray(io['prompt'])
  model = models.class_of(config)(
    config,
    methods.SoftPrompts(len(prompt)),
    **loaded.special_ids.of_model(),
  )
  words = np.array(loaded.special_ids.swap(io['label_ids']), np.int32)
  rows = [
    batching.Example(
      ids[mask > 0],
      words,
      0,
      np.arange(1, len(words) + 1),
      (np.arange(len(words)) == right).astype(np.int32),
    )
    for ids, mask, right in zip(
      io[f'{prefix}input_ids'],
      io[f'{prefix}attention_mask'],
      io['classes'],
      strict=True,
    )
  ]
  shape = io[f'{convention}_last_hidden'].shape[1]
  batch = batching.lay_out(
    [[row] for row in rows],
    (len(rows), shape, len(words)),
    len(prompt),
    packed=False,
  )
  params = {**loaded.params, 'prompts': {'prompt': prompt}}
  return data, model, params, batch


@pytest.mark.parametrize('golden', GOLDENS)
def test_equals_transformers(golden):
  data = _load(golden.folder)
  io, module = data.io, data.model.module
  params = {'params': data.loaded.params}
  inputs, real = io['input_ids'], io['attention_mask'] > 0
  logits = module.apply(params, inputs, enable_dropout=False)
  close(logits, io['logits'], real)
  _, states = module.apply(
    params, inputs, enable_dropout=False, method='encode'
  )
  for i, state in enumerate(states[:-1]):
    close(state, io[f'hidden_{i}'], real)


@pytest.mark.parametrize(('golden', 'convention'), EACH)
def test_prompted_equals(golden, convention):
  data, model, params, batch = _case(golden, convention)
  io, module = data.io, model.module
  table = params['prompts']['prompt'][None]
  encoded, states = module.apply(
    {'params': data.loaded.params},
    batch['encoder_input_tokens'],
    enable_dropout=False,
    mask_id=model.mask_id,
    prompt_table=table,
    encoder_prompt_slots=batch['encoder_prompt_slots'],
    method='encode',
  )
  real = batch['encoder_input_tokens'] > 0
  close(states[0], io[f'{convention}_embedded'], real)
  close(encoded, io[f'{convention}_last_hidden'], real)
  place = 0
  if convention == 'transformers':
    place = table.shape[1] + io['mask_index']
  at_mask = np.asarray(encoded)[np.arange(len(encoded)), place][:, None]
  logits = module.apply(
    {'params': data.loaded.params}, jnp.asarray(at_mask), method='fill'
  )
  close(logits[:, 0], io[f'{convention}_mask_logits'])


@pytest.mark.slow
@pytest.mark.parametrize(('golden', 'convention'), EACH)
def test_loss_gradient_and_answers_equal(golden, convention):
  data, model, params, batch = _case(golden, convention)
  io = data.io

  def loss(prompts):
    return model.loss_fn({**params, 'prompts': prompts}, batch, None)[0]

  value, gradient = jax.value_and_grad(loss)(params['prompts'])
  np.testing.assert_allclose(value, io[f'{convention}_loss'], atol=1e-5)
  want = io[f'{convention}_grad_prompt']
  np.testing.assert_allclose(
    gradient['prompt'], want, atol=1e-4 * np.abs(want).max()
  )
  log_probs = io[f'{convention}_log_probs']
  places = range(log_probs.shape[1])
  for i in places:
    weights = np.zeros_like(batch['decoder_loss_weights'])
    weights[:, i] = 1
    scored = model.score_batch(
      params, {**batch, 'decoder_loss_weights': weights}
    )
    np.testing.assert_allclose(scored, log_probs[:, i], atol=1e-5)
  words = batch['decoder_target_tokens'][0]
  ended = np.stack([words, np.full_like(words, model.eos_id)], axis=1)
  by_word = model.score_words(params, batch, jnp.asarray(ended))
  np.testing.assert_allclose(by_word, log_probs, atol=1e-5)
  answers, found = model.decode_batch(params, batch)
  np.testing.assert_array_equal(answers[:, 0], words[log_probs.argmax(-1)])
  np.testing.assert_allclose(found, log_probs.max(-1), atol=1e-5)


@pytest.mark.parametrize('golden', GOLDENS)
def test_saved_and_loaded_again(golden, tmp_path):
  loaded = _load(golden.folder).loaded
  assert loaded.special_ids.mask is not None
  loaded.save(str(tmp_path / 'again'), {})
  again = checkpoints.load_backbone(str(tmp_path / 'again'))
  assert again.fingerprint == loaded.fingerprint
  assert again.special_ids == loaded.special_ids


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize(('golden', 'convention'), EACH)
def test_neurons_and_their_overlap_equal(golden, convention, scan):
  io, loaded = golden.io, _load(golden.folder).loaded
  config = loaded.config.replace(prompt_positions=CONVENTIONS[convention])
  prompts = [
    SourcePrompt(str(i), prompt) for i, prompt in enumerate(io['on_prompts'])
  ]
  states = neurons.activations(
    dataclasses.replace(loaded, config=config),
    prompts,
    devices=Devices(scan_layers=scan),
  )
  assert list(states) == ['encoder']
  close(states['encoder'], io[f'{convention}_ffn_pre'])
  for window, want in zip(
    io['on_windows'].tolist(), io[f'{convention}_on'], strict=True
  ):
    np.testing.assert_allclose(
      neurons.on(states['encoder'], window), want, rtol=0, atol=1e-6
    )
