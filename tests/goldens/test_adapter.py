"""AdapterHub's adapters compute here what they compute there."""

import dataclasses
import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file

import mpt_jax
from mpt_jax.checkpoints import huggingface
from tests import goldens
from tests.goldens import networks

ADAPTERS = goldens.of('adapter')
_LEAVES = {
  'adapter_down': 'adapter_down.0.weight',
  'adapter_down_bias': 'adapter_down.0.bias',
  'adapter_up': 'adapter_up.weight',
  'adapter_up_bias': 'adapter_up.bias',
}


def _theirs(name, adapter):
  """Transformers' or AdapterHub's name of an array of ours."""
  module, leaf = name.rsplit('/', 1)
  if leaf == 'scale_change':
    return huggingface.name_of(f'{module}/scale')[0]
  found = re.fullmatch(r'(\w+)/layers_(\d+)/(\w+)', module)
  stack, block, kind = found.groups()
  layer = 0
  if kind == 'encoder_decoder_attention':
    layer = 1
  elif kind == 'mlp':
    layer = 2 if stack == 'decoder' else 1
  place = f'{stack}.block.{block}.layer.{layer}'
  return f'{place}.adapters.{adapter}.{_LEAVES[leaf]}'


@pytest.mark.slow
@pytest.mark.parametrize('norms', [False, True])
@pytest.mark.parametrize('golden', ADAPTERS)
def test_logits_loss_gradients_and_answers(golden, norms):
  """Also of T5's own norms, where these train too."""
  backbone, io = networks.of_method(golden)
  bundle, adapter = mpt_jax.load_prompts(golden.folder), golden.config['name']
  assert (bundle.method, bundle.stage) == ('adapter', 'imported')
  assert bundle.task_names == (adapter,)
  method = dataclasses.replace(bundle.learner, norms=norms)
  shapes = method.shapes(backbone.config, 1)
  arrays = {
    name: bundle.arrays.get(name, np.zeros(shape, np.float32))
    for name, shape in shapes.items()
  }
  stored = load_file(golden.folder / 'adapter.safetensors')
  theirs = {name: _theirs(name, adapter) for name in arrays}
  for name, array in bundle.arrays.items():
    np.testing.assert_array_equal(array[0].T, stored.pop(theirs[name]))
  assert not stored
  grads = {n: io[f'grad/{theirs[n]}'].T[None] for n in arrays}
  if norms:
    assert len(grads) == sum(name.startswith('grad/') for name in io)
  networks.check_method(backbone, io, method, arrays, grads)


@pytest.mark.parametrize('golden', ADAPTERS)
def test_written_as_adapterhub_writes(golden, tmp_path):
  mpt_jax.load_prompts(golden.folder).to_adapterhub(str(tmp_path))
  got = json.loads((tmp_path / 'adapter_config.json').read_text())
  want = golden.config
  assert {key for key in want if want[key] != got[key]} <= {'config', 'version'}
  got, want = got['config'], want['config']
  # What we do not write has no part in such an adapter, or only in training.
  idle = r'.*phm.*|init_weights.*|.*reduction_factor|.*_before_ln|dropout|st.*'
  for key in set(want) - set(got):
    assert re.fullmatch(f'{idle}|hypercomplex_nonlinearity', key), key
  assert got == {key: want[key] for key in got}
  got, want = (
    load_file(folder / 'adapter.safetensors')
    for folder in (tmp_path, golden.folder)
  )
  assert set(got) == set(want)
  for key in want:
    np.testing.assert_array_equal(got[key], want[key])
