"""ATTEMPT's attention, prompts, logits and gradients against float64."""

import numpy as np
import pytest

from mpt_jax import methods, models
from tests import goldens
from tests.goldens import networks

TRAINED = (
  'target_prompts',
  'attn_W_down',
  'attn_W_up',
  'layer_norm.weight',
  'layer_norm.bias',
)
CASES = goldens.of('attempt', goldens.prefixes('/temperature'))


def _ours(name):
  return name.replace('.', '_')


def _method(io, case):
  sources, length, _ = io['source_prompts'].shape
  return methods.Attempt(
    length,
    len(io['attn_W_down']),
    float(io[f'{case}/temperature']),
    pad_in_max=case == 'all',
    sources=tuple((f'source_{n}', '') for n in range(sources)),
  )


def _arrays(io):
  shared = {
    _ours(name): io[name][None]
    for name in ('source_prompts', *TRAINED)
    if name != 'target_prompts'
  }
  return {'target_prompts': io['target_prompts'], **shared}


def _inputs(loaded, io, length):
  features = networks.batch(
    io['input_ids'], io['labels'] * 0, io['task_ids'], length
  )
  return models.PromptedT5(loaded.config).method_inputs(loaded.params, features)


@pytest.mark.parametrize(('golden', 'case'), CASES)
def test_every_step_of_the_attention(golden, case):
  loaded, io = networks.of_method(golden)
  method, arrays = _method(io, case), _arrays(io)
  tasks = len(io['target_prompts'])
  shapes = {name: array.shape for name, array in arrays.items()}
  assert shapes == method.shapes(loaded.config, tasks)
  own = arrays | {'target_prompts': io['target_prompts'][io['task_ids']]}
  inputs = _inputs(loaded, io, method.length)
  pooled = method.pooled(inputs)
  query = method.query(own, pooled)
  found = {
    'pooled': pooled,
    'query': query,
    'scores': method.scores(own, query),
    'attention': method.example_weights(arrays, inputs),
    'prompts': method.example_prompts(arrays, inputs),
  }
  for name, got in found.items():
    goldens.close(got, io[f'{case}/{name}'], atol=1e-5)
  # A set for each task is the same where all sets are.
  for name in TRAINED[1:]:
    arrays[_ours(name)] = np.repeat(arrays[_ours(name)], tasks, axis=0)
  goldens.close(method.example_prompts(arrays, inputs), found['prompts'], ...)


@pytest.mark.parametrize(('golden', 'case'), CASES)
def test_logits_loss_and_gradients(golden, case):
  loaded, io = networks.of_method(golden)
  method, arrays = _method(io, case), _arrays(io)
  grads = {
    _ours(name): io[f'{case}/grad/{name}'].reshape(arrays[_ours(name)].shape)
    for name in TRAINED
  }
  networks.check_method(loaded, io, method, arrays, grads, f'{case}/', 3e-6)
