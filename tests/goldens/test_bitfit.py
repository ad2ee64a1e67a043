"""Biases alone, against float64 numbers."""

import re

import numpy as np
import pytest
from safetensors.numpy import load_file

from mpt_jax import methods
from mpt_jax.checkpoints import huggingface
from tests import goldens
from tests.goldens import networks

_HEADS = 'token_embedder/bias', 'decoder/logits_dense/bias'


def _theirs(name):
  """Transformers' name of a bias of ours."""
  if name in _HEADS:
    return 'lm_head.bias'
  leaf = 'scale' if name.endswith('norm/bias') else 'kernel'
  weight, _ = huggingface.name_of(re.sub('bias$', leaf, name))
  return re.sub('weight$', 'bias', weight)


@pytest.mark.parametrize('golden', goldens.of('bitfit'))
def test_biases_give_the_numbers_of_float64(golden):
  loaded, io = networks.of_method(golden)
  method, stored = methods.BitFit(), load_file(golden.file)
  names = {n: _theirs(n) for n in method.shapes(loaded.config, 1)}
  assert sorted(names.values()) == sorted(stored)
  assert method.num_parameters(loaded.config, 1) == sum(
    value.size for value in stored.values()
  )
  swapped = loaded.special_ids.swap(range(loaded.config.vocab_size))

  def ours(values):
    found = {name: values[theirs] for name, theirs in names.items()}
    for name in _HEADS:
      if name in found:
        found[name] = found[name][np.array(swapped)]
    return {name: value[None] for name, value in found.items()}

  grads = ours({n: io[f'grad/{n}'] for n in stored})
  networks.check_method(loaded, io, method, ours(stored), grads)
