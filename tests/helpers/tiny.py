"""A tiny backbone and random batches, without files, TensorFlow or SeqIO."""

import pathlib

import jax
import numpy as np

from mpt_jax import methods, models, roberta, t5
from mpt_jax.checkpoints import backbone as backbone_lib

P, K = 5, 3
VOCABULARY = pathlib.Path(backbone_lib.demo_folder(), 'spiece.model')

PROMPTS = (r'prompts/.*',)

CONFIG = t5.T5Config(
  vocab_size=37,
  emb_dim=14,
  num_heads=2,
  head_dim=7,
  num_encoder_layers=1,
  num_decoder_layers=1,
  mlp_dim=23,
  mlp_activations=('gelu', 'linear'),
  dropout_rate=0.0,
  logits_via_embedding=False,
)


# With the demo's vocabulary.
SERVED = t5.T5Config(
  vocab_size=512,
  dtype='float32',
  emb_dim=16,
  num_heads=2,
  num_encoder_layers=1,
  num_decoder_layers=1,
  head_dim=8,
  mlp_dim=32,
  mlp_activations=('relu',),
  logits_via_embedding=False,
)


def served_backbone():
  """Random parameters of `SERVED` whose answers depend on the text."""
  init = jax.jit(lambda key: t5.init_params(SERVED, key))
  params = jax.tree.map(np.array, init(jax.random.PRNGKey(0)))
  # Random weights hardly listen to the encoder; these do.
  cross = params['decoder']['layers_0']['encoder_decoder_attention']
  cross['out']['kernel'] *= 30
  return params


def served():
  """`served_backbone` with the demo's vocabulary, as if it was loaded."""
  params = served_backbone()
  return backbone_lib.Backbone(
    config=SERVED,
    params=params,
    fingerprint=backbone_lib.fingerprint(SERVED, params),
    name='tiny',
    path='',
    vocabulary_file=str(VOCABULARY),
    report={},
  )


def backbone(seed=0, config=CONFIG):
  """Random parameters of the tiny backbone, as host arrays."""
  key = jax.random.PRNGKey(seed)
  if isinstance(config, roberta.RobertaConfig):
    return jax.tree.map(np.asarray, roberta.init_params(config, key))
  variables = models.PromptedT5(config).get_initial_variables(key)
  return jax.tree.map(np.asarray, variables['params'])


class Batches:
  """An endless, restorable stream of random batches that mix K tasks."""

  def __init__(self, size=4, tasks=K, length=P, seed=0, config=CONFIG):
    self._args = size, tasks, length, seed, config.vocab_size
    self._taken = 0

  def __iter__(self):
    return self

  def __next__(self):
    size, tasks, length, seed, vocabulary = self._args
    rng = np.random.RandomState([seed, self._taken])
    self._taken += 1
    tokens = rng.randint(3, vocabulary, (size, length + 11))
    slots = np.zeros_like(tokens)
    slots[:, :length] = np.arange(1, length + 1)
    targets = rng.randint(3, vocabulary, (size, 3))
    rows = rng.randint(0, tasks, size)
    batch = {
      'encoder_input_tokens': tokens,
      'encoder_prompt_slots': slots,
      'encoder_task_ids': np.repeat(rows[:, None], length + 11, axis=1),
      'decoder_target_tokens': targets,
      'decoder_input_tokens': np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
      'decoder_loss_weights': np.ones_like(targets),
    }
    return {k: v.astype(np.int32) for k, v in batch.items()}

  def get_state(self):
    return {'taken': self._taken}

  def set_state(self, state):
    self._taken = state['taken']


def method(stage):
  """The method of a stage."""
  if stage == 'teacher':
    return methods.SoftPrompts(P)
  return methods.MultitaskPrompts(P)


def stage_model(stage, config=CONFIG):
  """The model and its whole parameter tree in one of the stages."""
  key = jax.random.PRNGKey(1)
  params = dict(backbone(config=config))
  if stage == 'finetune':
    return models.PromptedT5(config), params
  tasks = K if stage == 'source' else 1
  kind = models.PromptedT5
  if stage == 'source':
    kind = models.DistilledPromptedT5
    shape = (K, P, config.emb_dim)
    params['teacher_prompts'] = {
      'prompt_table': np.asarray(jax.random.normal(key, shape))
    }
  model = kind(config, method(stage), tasks)
  params['prompts'] = model.method.fresh(config, tasks, key)
  return model, params
