"""The backbones of goldens in our network, and batches for it."""

import functools
import json
import pathlib
import types

from flax import traverse_util
import jax
import numpy as np

from mpt_jax import checkpoints, t5
from mpt_jax.checkpoints.vocabulary import ORDINARY
from mpt_jax.t5 import decoding
from tests import goldens

# How the names of arrays of token ids end.
_IDS = 'input_ids', 'labels', 'generate_ids'


@functools.cache
def backbone(folder: pathlib.Path) -> checkpoints.Backbone:
  """A folder of transformers, loaded once."""
  return checkpoints.load_backbone(str(folder))


def in_our_ids(
  loaded: checkpoints.Backbone, io: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Arrays of transformers with ids and logits in our order.

  Ours pads with 0, whatever id the checkpoint has for it, also where its
  attention mask is 0. Targets of -100 stay.
  """
  special = loaded.special_ids
  out = dict(io)
  for name, array in io.items():
    if name.endswith(_IDS):
      ids = np.array(special.swap(array.ravel()), np.int32)
      out[name] = ids.reshape(array.shape)
    elif name.endswith('logits'):
      out[name] = array[..., special.swap(range(array.shape[-1]))]
  for name, array in io.items():
    if name.endswith('attention_mask'):
      ids = name.replace('attention_mask', 'input_ids')
      out[ids] = np.where(array > 0, out[ids], 0)
  return out


@functools.cache
def load(folder: pathlib.Path) -> types.SimpleNamespace:
  """Returns config, module, params, arrays and ids of a golden's folder."""
  stored = json.loads((folder / 'config.json').read_text())
  io = goldens.arrays(folder / 'io.npz')
  ids = ORDINARY
  if 'model' in stored:
    config = t5.T5Config.from_dict(stored['model'])
    flat = goldens.arrays(folder / 'params.npz')
    params = traverse_util.unflatten_dict(flat, sep='/')
  else:
    loaded = backbone(folder)
    config, params, ids = loaded.config, loaded.params, loaded.special_ids
    io = in_our_ids(loaded, io)
  return types.SimpleNamespace(
    config=config,
    module=t5.Transformer(config),
    params=params,
    io=io,
    decode=stored.get('decode', {}),
    ids=ids.of_model(),
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


def apply(config, params, *inputs, **kwargs):
  """Runs the network, compiled; dropout is off unless it is asked for."""
  static = ('enable_dropout', 'method', 'return_hidden_states')
  run = _compiled(config, **{k: v for k, v in kwargs.items() if k in static})
  prompts = {k: v for k, v in kwargs.items() if k not in static}
  return run(params, inputs, prompts)


def decode(data, tokens, length, search, **kwargs):
  """Encodes [B, S] tokens and decodes up to `length` with `search`."""

  @jax.jit
  def run(params):
    encoded = data.module.apply(
      {'params': params}, tokens, enable_dropout=False, method='encode'
    )
    cache, step = decoding.make_decode_step(
      data.module, {'params': params}, encoded, tokens, length
    )
    return search(
      step, cache, batch_size=len(tokens), max_decode_length=length, **kwargs
    )

  return run(data.params)


def batch(tokens, targets, rows, length):
  """Model features of an unpacked batch, prompt slots in front.

  Args:
    tokens: [B, S] ids, 0 is padding.
    targets: [B, T] ids, 0 is padding.
    rows: [B], the row of the prompt table of each example.
    length: P, of the prompt.
  """
  slots = np.zeros((len(tokens), length + tokens.shape[1]), np.int32)
  slots[:, :length] = np.arange(1, length + 1)
  ids = np.pad(tokens, ((0, 0), (length, 0)), constant_values=2)
  features = {
    'encoder_input_tokens': ids,
    'encoder_prompt_slots': slots,
    'encoder_task_ids': np.where(ids > 0, np.asarray(rows)[:, None], 0),
    'decoder_target_tokens': targets,
    'decoder_input_tokens': np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
    'decoder_loss_weights': targets > 0,
  }
  return {name: value.astype(np.int32) for name, value in features.items()}
