"""Bottleneck adapters against AdapterHub's."""

import re

import pytest
from safetensors.numpy import load_file

from mpt_jax import methods
from mpt_jax.checkpoints import huggingface
from tests import goldens
from tests.goldens import networks

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
  stack, block, kind = re.fullmatch(
    r'(\w+)/layers_(\d+)/(\w+)', module
  ).groups()
  layer = 0
  if kind == 'encoder_decoder_attention':
    layer = 1
  elif kind == 'mlp':
    layer = 2 if stack == 'decoder' else 1
  place = f'{stack}.block.{block}.layer.{layer}'
  return f'{place}.adapters.{adapter}.{_LEAVES[leaf]}'


@pytest.mark.parametrize('norms', [False, True])
@pytest.mark.parametrize('golden', goldens.of('adapter'))
def test_adapters_give_adapterhubs_numbers(golden, norms):
  loaded, io = networks.of_method(golden)
  config = golden.config['config']
  method = methods.Adapter(
    reduction=config['reduction_factor'],
    activation=config['non_linearity'],
    cross=config['cross_adapter'],
    norms=norms,
  )
  stored = load_file(golden.folder / 'adapter.safetensors')
  arrays, grads = {}, {}
  for name, shape in method.shapes(loaded.config, 1).items():
    theirs = _theirs(name, golden.config['name'])
    grads[name] = io[f'grad/{theirs}'].T[None]
    arrays[name] = (
      stored[theirs].T[None] if theirs in stored else 0 * grads[name]
    )
    assert arrays[name].shape == shape, name
  names = {
    name.removeprefix('grad/') for name in io if name.startswith('grad/')
  }
  used = {_theirs(name, golden.config['name']) for name in arrays}
  assert used >= set(stored)
  if norms:
    assert used == names
  networks.check_method(loaded, io, method, arrays, grads)
