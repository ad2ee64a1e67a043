"""Prefixes in three places, and PEFT's in the decoder alone.

Those of three places are compared in both ways of counting positions. PEFT's
gradient is that of a table from which several layers take; of its MLP, ours
deals out other columns, so that both are compared by the chain rule.
"""

import json

import numpy as np
import pytest

from mpt_jax import methods
from mpt_jax.checkpoints.bundle import check_backbone, load_prompts
from mpt_jax.methods import prefix
from tests import goldens
from tests.goldens import networks

PLACES = {'encoder': 'encoder', 'self': 'decoder', 'cross': 'cross'}
# PEFT's names of the MLP's arrays, by ours.
MLP = {
  'embedding': 'embedding',
  'hidden_kernel': 'transform.0.weight',
  'hidden_bias': 'transform.0.bias',
  'out_kernel': 'transform.2.weight',
  'out_bias': 'transform.2.bias',
}
PARTS = {'prefix_key': 0, 'prefix_value': 1}
POSITIONS = {'adapterhub/': 'unshifted', 'shifted/': 'shifted'}


def _arrays(config, io, ending):
  """{our name: [1, L, H, K]} of arrays [layers, 2, L, H, K] by place."""
  return {
    f'{module}/{part}': io[ending.format(where)][i, j][None]
    for where, place in PLACES.items()
    for i, module in enumerate(prefix._attentions(config, place))
    for part, j in PARTS.items()
  }


@pytest.mark.parametrize(
  ('golden', 'case'), goldens.of('prefix_full', goldens.prefixes('logits'))
)
def test_three_places(golden, case):
  loaded, io = networks.of_method(golden)
  arrays = _arrays(loaded.config, io, '{}_prefix')
  length = io['cross_prefix'].shape[2]
  networks.check_method(
    loaded,
    io,
    methods.Prefix(length, positions=POSITIONS[case], shared=True),
    arrays,
    _arrays(loaded.config, io, f'{case}grad/{{}}_prefix'),
    case,
  )


def _sizes(golden):
  """L and n, of an adapter."""
  return golden.config['num_virtual_tokens'], golden.config['num_layers']


@pytest.mark.parametrize('golden', goldens.of('prefix'))
def test_pefts_form(golden, tmp_path):
  loaded, io = networks.of_method(golden)
  length, n = _sizes(golden)
  bundle = load_prompts(str(golden.folder))
  assert bundle.learner == methods.Prefix(length, ('decoder',), peft_layers=n)
  check_backbone(bundle, loaded)
  np.testing.assert_array_equal(
    bundle.arrays['prompt_embeddings'], io['prompt_embeddings'][None]
  )
  networks.check_method(
    loaded,
    io,
    bundle.learner,
    bundle.arrays,
    {'prompt_embeddings': io['grad/prompt_embeddings'][None]},
  )
  bundle.save(str(tmp_path / 'bundle'))
  load_prompts(str(tmp_path / 'bundle')).to_peft(str(tmp_path / 'peft'))
  again = json.loads((tmp_path / 'peft' / golden.file.name).read_text())
  for key, value in golden.config.items():
    assert again.get(key) in (value, None) or key == 'init_weights', key
  again = load_prompts(str(tmp_path / 'peft'))
  assert again.learner == bundle.learner
  for name, value in bundle.arrays.items():
    np.testing.assert_array_equal(again.arrays[name], value)


def _projections(golden):
  return sorted(f.name for f in golden.folder.parent.glob('projection*.npz'))


@pytest.mark.parametrize(('golden', 'file'), goldens.of('prefix', _projections))
def test_pefts_projection(golden, file):
  loaded, _ = networks.of_method(golden)
  io = goldens.arrays(golden.folder.parent / file)
  io = networks.in_our_ids(loaded, io)
  (length, n), config = _sizes(golden), loaded.config
  joined = config.num_heads * config.head_dim
  taken = [
    (4 * i + part) % (2 * n)
    for i in range(config.num_decoder_layers)
    for part in range(2)
  ]
  found = {}
  for name, theirs in MLP.items():
    for prefix_ in ('', 'grad/'):
      value = io[prefix_ + theirs]
      if name.startswith('out'):
        value = value.reshape(-1, joined, *value.shape[1:])[taken]
        value = value.reshape(-1, *value.shape[2:])
      if name.endswith('kernel'):
        value = value.T
      found[f'{prefix_}decoder/{name}'] = value[None]
  arrays = {k: v for k, v in found.items() if not k.startswith('grad/')}
  # What several layers take has the sum of their gradients there.
  grads = {name: found[f'grad/{name}'] for name in arrays if '/out' not in name}
  method = methods.Prefix(
    length, ('decoder',), hidden=len(io['transform.0.bias'])
  )
  networks.check_method(loaded, io, method, arrays, grads)
  kept, made = method.product(arrays, config)
  assert kept == methods.Prefix(length, ('decoder',))
  pefts = methods.Prefix(length, ('decoder',), peft_layers=n)
  table = {'prompt_embeddings': io['prompt_embeddings'][None]}
  want = pefts.laid_out(table, config)
  assert set(made) == set(want) == set(kept.shapes(config, 1))
  for name, value in want.items():
    np.testing.assert_allclose(made[name], value, atol=1e-5, err_msg=name)
