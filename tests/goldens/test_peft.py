"""Imported PEFT adapters compute what PEFT computes, gradients included."""

import jax
import numpy as np
import pytest

import mpt_jax
from mpt_jax import models

ADAPTERS = [
  ('peft_mpt_tiny/rank1', 'peft_mpt_tiny/io_rank1.npz'),
  ('peft_mpt_tiny/rank2', 'peft_mpt_tiny/io_rank2.npz'),
  ('peft_pt_tiny/adapter', 'peft_pt_tiny/io.npz'),
]
# Ours -> PEFT's.
GRADIENTS = {
  'prompt': 'grad_prompt_embeddings',
  'shared_prompt': 'grad_prompt_embeddings',
  'task_u': 'grad_prefix_task_cols',
  'task_v': 'grad_prefix_task_rows',
}


def _batch(io, length: int) -> dict[str, np.ndarray]:
  tokens = np.where(io['attention_mask'] > 0, io['input_ids'], 0)
  size = len(tokens)
  slots = np.tile(np.arange(1, length + 1), (size, 1))
  targets = np.where(io['labels'] == -100, 0, io['labels'])
  inputs = np.concatenate([np.zeros((size, 1), int), targets[:, :-1]], axis=1)
  rows = io['task_ids'] if 'task_ids' in io else np.zeros(size, int)
  tokens = np.concatenate([np.ones_like(slots), tokens], axis=1)
  features = {
    'encoder_input_tokens': tokens,
    'encoder_prompt_slots': np.pad(
      slots, ((0, 0), (0, tokens.shape[1] - length))
    ),
    'encoder_task_ids': np.where(tokens > 0, rows[:, None], 0),
    'decoder_input_tokens': inputs,
    'decoder_target_tokens': targets,
    'decoder_loss_weights': targets > 0,
  }
  return {name: value.astype(np.int32) for name, value in features.items()}


@pytest.mark.parametrize(('adapter', 'io_file'), ADAPTERS)
def test_logits_loss_and_gradients(adapter, io_file, testdata):
  backbone = mpt_jax.load_backbone(str(testdata / 'hf_t5_v1_0_tiny'))
  bundle = mpt_jax.load_prompts(testdata / adapter)
  io = np.load(testdata / io_file)
  model = models.PromptedT5(backbone.config, bundle.make_module())
  batch = _batch(io, bundle.prompt_length)

  def logits_fn(prompts):
    return model.module.apply(
      {'params': backbone.params},
      batch['encoder_input_tokens'],
      batch['decoder_input_tokens'],
      batch['decoder_target_tokens'],
      enable_dropout=False,
      prompt_table=bundle.make_module().apply({'params': prompts}),
      encoder_prompt_slots=batch['encoder_prompt_slots'],
      encoder_task_ids=batch['encoder_task_ids'],
    )

  def loss_fn(prompts):
    params = backbone.params | {'prompts': prompts}
    return model.loss_fn(params, batch, None)[0]

  prompts = dict(bundle.arrays)
  logits = jax.jit(logits_fn)(prompts)
  valid = io['labels'] != -100
  np.testing.assert_allclose(logits[valid], io['logits'][valid], atol=1e-4)
  loss, grads = jax.jit(jax.value_and_grad(loss_fn))(prompts)
  np.testing.assert_allclose(loss, io['loss'], atol=1e-5)
  assert set(grads) == set(prompts)
  for name, grad in grads.items():
    np.testing.assert_allclose(grad, io[GRADIENTS[name]], atol=1e-5)
