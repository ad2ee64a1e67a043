"""A prompt at each layer of the encoder, as transformers computes it."""

import pytest

from mpt_jax import methods
from tests import goldens
from tests.goldens import networks


def _arrays(io, case, start=''):
  found = {
    f'encoder/layers_{i}/prompt': prompt[None]
    for i, prompt in enumerate(io[f'{start}layer_prompts'])
  }
  if case == 'add/':
    found['encoder/prompt'] = io[f'{start}embedding_prompt'][None]
  return found


@pytest.mark.slow
@pytest.mark.parametrize(
  ('golden', 'case'), goldens.of('deep', goldens.prefixes('logits'))
)
def test_prompts_of_each_layer(golden, case):
  loaded, io = networks.of_method(golden)
  networks.check_method(
    loaded,
    io,
    methods.DeepPrompts(io['layer_prompts'].shape[1], case.strip('/')),
    _arrays(io, case),
    _arrays(io, case, f'{case}grad/'),
    case,
  )
