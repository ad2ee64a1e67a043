"""What T5X restores of its checkpoints computes what T5X computes."""

import jax
import numpy as np
import pytest

pytest.importorskip('t5x', reason='T5X is not on PYTHONPATH')

from mpt_jax import checkpoints
from mpt_jax.engine import params as params_lib
from mpt_jax.engine.settings import Decoding
from mpt_jax.models import PromptedT5
from mpt_jax.t5x.models import PromptedModel
from tests import goldens
from tests.goldens import close, networks
from tests.t5x import helpers

pytestmark = pytest.mark.t5x

LAYOUTS = goldens.of('t5x', goldens.layouts)


def _restored(golden, layout):
  """The golden, its checkpoint and what T5X makes of it."""
  data = networks.load(golden.folder)
  path = golden.folder / layout / f'checkpoint_{golden.config["step"]}'
  model = helpers.start_model(path, data.config)
  return data, path, model, helpers.first_state(model)


@pytest.mark.parametrize(('golden', 'layout'), LAYOUTS)
def test_every_layout_gives_the_same_bits(golden, layout):
  arrays = goldens.arrays(golden.folder / 'params.npz')
  _, path, model, state = _restored(golden, layout)
  assert int(state.step) == golden.config['step']
  flat = params_lib.flatten(state.params)
  assert set(flat) == {*arrays, 'prompts/prompt'}
  for key, array in arrays.items():
    np.testing.assert_array_equal(flat[key], array, err_msg=key)
  # The prompt is made of words of this very backbone.
  words = arrays['token_embedder/embedding']
  for row in np.asarray(flat['prompts/prompt']):
    assert (row == words).all(axis=1).any()
  native = checkpoints.load_backbone(str(path))
  assert model.fingerprint(state.params) == native.fingerprint
  assert model.backbone_name == native.name


def _wrapped(data, **settings):
  return PromptedModel(PromptedT5(data.config), ('rte',), **settings)


@pytest.mark.parametrize(('golden', 'layout'), LAYOUTS)
def test_what_t5x_restored_computes_what_t5x_computes(golden, layout):
  """Logits, scores, greedy and beam decodes of T5X's own network."""
  data, _, _, state = _restored(golden, layout)
  io = data.io
  params = {k: v for k, v in state.params.items() if k != 'prompts'}
  model = _wrapped(data)
  for case in goldens.prefixes('decoder_target_tokens')(golden):
    start = f'{case}encoder_', f'{case}decoder_'
    batch = {
      k.removeprefix(case): v
      for k, v in io.items()
      if k.startswith(start) and not k.endswith('output')
    }
    real = batch['decoder_target_tokens'] > 0
    logits = model._compute_logits(params, batch)
    np.testing.assert_allclose(
      logits[real], io[f'{case}logits'][real], rtol=1e-4, atol=1e-4
    )
    if not case:
      scores = model.score_batch(params, batch)
      np.testing.assert_allclose(scores, io['score_batch'], rtol=1e-4)
  batch = {
    'encoder_input_tokens': io['encoder_input_tokens'],
    'decoder_input_tokens': np.zeros_like(io['greedy_tokens']),
  }
  tokens, aux = model.predict_batch_with_aux(params, batch)
  np.testing.assert_array_equal(tokens, io['greedy_tokens'])
  np.testing.assert_allclose(aux['scores'], io['greedy_log_probs'], rtol=1e-4)
  widest = max(map(int, goldens.matches(r'beam(\d+)_tokens')(golden)))
  beams = _wrapped(data, decoding=Decoding(num_beams=widest))
  tokens, aux = beams.predict_batch_with_aux(params, batch)
  np.testing.assert_array_equal(tokens, io[f'beam{widest}_tokens'][:, -1])
  np.testing.assert_allclose(
    aux['scores'], io[f'beam{widest}_scores'][:, -1], rtol=1e-4
  )


@pytest.mark.parametrize(('golden', 'layout'), LAYOUTS)
def test_t5x_network_itself_agrees(golden, layout):
  """T5X's examples/t5 on the parameters that our start restored."""
  from t5x.examples.t5 import network

  data, _, _, state = _restored(golden, layout)
  fields = set(network.T5Config.__dataclass_fields__)
  theirs = network.Transformer(
    network.T5Config(
      **{k: v for k, v in data.config.to_dict().items() if k in fields}
    )
  )
  params = {k: v for k, v in state.params.items() if k != 'prompts'}
  names = 'encoder_input', 'decoder_input', 'decoder_target'
  tokens = [data.io[f'{name}_tokens'] for name in names]
  with jax.numpy_rank_promotion('allow'):
    want = theirs.apply({'params': params}, *tokens, enable_dropout=False)
  got = networks.apply(data.config, params, *tokens)
  close(got, want, tokens[2] > 0)
