"""The backbones of goldens in our network, and batches for it."""

import functools
import json
import pathlib
import types

from flax import traverse_util
import jax
import numpy as np

from mpt_jax import checkpoints, methods, models, t5
from mpt_jax.checkpoints.vocabulary import ORDINARY
from mpt_jax.engine import params as params_lib
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


def of_method(
  golden: goldens.Golden,
) -> tuple[checkpoints.Backbone, dict[str, np.ndarray]]:
  """The backbone of a method's golden, and its arrays in our ids."""
  io = golden.io
  width = next(
    io[name].shape[-1]
    for name in (
      'encoder_last_hidden_state',
      'adapterhub/encoder_last_hidden_state',
      'replace/encoder_last_hidden_state',
      'source_prompts',
    )
    if name in io
  )
  logits = next(name for name in io if name.endswith('logits'))
  folder = goldens.backbone_of(golden, width, io[logits].shape[-1])
  loaded = backbone(folder)
  return loaded, in_our_ids(loaded, io)


def check_method(
  loaded: checkpoints.Backbone,
  io: dict[str, np.ndarray],
  method: methods.Method,
  arrays: dict[str, np.ndarray],
  grads: dict[str, np.ndarray],
  case: str = '',
  atol: float = 1e-5,
) -> None:
  """Asserts a method's numbers on a golden's batch.

  These are its logits, loss, encoder output and gradients, and its greedy
  answers where the golden has some.

  Args:
    loaded: the backbone.
    io: the golden's arrays, in our ids.
    method: the method.
    arrays: what it has learned, by our names.
    grads: the gradients that are wanted, by our names and in our shapes; no
      others are compared.
    case: what stands before the names of expected outputs.
    atol: how far a gradient may be off, beside 1e-4 of it.
  """
  rows = io.get('task_ids', np.zeros(len(io['input_ids']), np.int32))
  model = models.PromptedT5(
    loaded.config,
    method,
    int(rows.max()) + 1,
    **loaded.special_ids.of_model(),
  )
  real, length = io['labels'] != -100, method.prompt_length
  targets = np.where(real, io['labels'], 0)
  features = batch(io['input_ids'], targets, rows, length)
  features['decoder_loss_weights'] = real.astype(np.int32)

  @jax.jit
  def run(learned):
    def loss_fn(learned):
      params = loaded.params | {method.branch: learned}
      return model.loss_fn(params, features, None)[0]

    params = loaded.params | {method.branch: learned}
    table = model.prompt_table(params)
    logits, states = model._forward(params, table, features, None, True)
    return logits, states, *jax.value_and_grad(loss_fn)(learned)

  learned = params_lib.unflatten(arrays)
  logits, states, loss, found = run(learned)
  goldens.close(logits, io[f'{case}logits'], real, atol=5e-5)
  np.testing.assert_allclose(loss, io[f'{case}loss'], rtol=0, atol=1e-5)
  if f'{case}encoder_last_hidden_state' in io:
    goldens.close(
      states['encoder'][-1][:, length:],
      io[f'{case}encoder_last_hidden_state'],
      io['input_ids'] > 0,
      atol=5e-5,
    )
  found = params_lib.flatten(found)
  for name, want in grads.items():
    np.testing.assert_allclose(
      found[name], want, rtol=1e-4, atol=atol, err_msg=name
    )
  if f'{case}generate_ids' in io:
    want = io[f'{case}generate_ids'][:, 1:]  # Without the start id.
    answers = jax.jit(
      lambda params: model.predict_batch(
        params, features, max_decode_length=want.shape[1]
      )
    )(loaded.params | {method.branch: learned})
    np.testing.assert_array_equal(answers, want)
