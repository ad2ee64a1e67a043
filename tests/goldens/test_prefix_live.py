"""Prefixes in the real PEFT, where it is installed, and theirs here."""

import numpy as np
import pytest

from mpt_jax import methods, models
from mpt_jax.checkpoints.bundle import (
  PromptBundle,
  check_backbone,
  load_prompts,
)
from mpt_jax.engine import params as params_lib
from mpt_jax.methods import prefix
from tests import goldens
from tests.goldens import networks

pytestmark = [pytest.mark.torch, pytest.mark.slow]

torch = pytest.importorskip('torch', reason='torch is not installed')
peft = pytest.importorskip('peft', reason='peft is not installed')
transformers = pytest.importorskip(
  'transformers', reason='transformers is not installed'
)

# Source length, as long as a prefix: PEFT issue 565.
S = 7


@pytest.fixture(params=[(4, 3), (3, 3), (5, 4)], ids=str)
def base(request, tmp_path):
  """A folder with a random T5 of some encoder and decoder layers."""
  torch.manual_seed(sum(request.param))
  config = transformers.T5Config(
    vocab_size=53,
    d_model=20,
    d_kv=6,
    num_heads=5,
    d_ff=24,
    num_layers=request.param[0],
    num_decoder_layers=request.param[1],
    feed_forward_proj='gated-gelu',
    tie_word_embeddings=False,
    decoder_start_token_id=0,
    dropout_rate=0.0,
  )
  model = transformers.T5ForConditionalGeneration(config).eval()
  with torch.no_grad():
    for name, tensor in model.named_parameters():
      if '.q.' in name or 'relative' in name:
        tensor.copy_(torch.randn_like(tensor) / 3)
  folder = tmp_path / 'base'
  model.save_pretrained(folder)
  return folder


def _inputs():
  rng = np.random.default_rng(3)
  tokens, targets = (rng.integers(2, 53, (3, n)) for n in (S, 5))
  tokens[1, 4:] = 0
  return tokens, targets


def _ours(base, bundle):
  loaded = networks.backbone(base)
  check_backbone(bundle, loaded)
  tokens, targets = _inputs()
  model = models.PromptedT5(loaded.config, bundle.learner)
  params = loaded.params | {'delta': params_lib.unflatten(bundle.arrays)}
  batch = networks.batch(tokens, targets, [0] * len(tokens), 0)
  return model._forward(params, None, batch, None)[0]


def _theirs(model):
  # Not model.generate, which in transformers 5.24 drops PEFT's prefix.
  tokens, targets = map(torch.tensor, _inputs())
  mask = (tokens > 0).long()
  with torch.no_grad():
    out = model(input_ids=tokens, attention_mask=mask, labels=targets)
  return out.logits.numpy()


@pytest.mark.parametrize('projected', [False, True])
def test_theirs_is_loaded(base, projected, tmp_path):
  model = transformers.T5ForConditionalGeneration.from_pretrained(base)
  config = peft.PrefixTuningConfig(
    task_type='SEQ_2_SEQ_LM',
    num_virtual_tokens=S,
    token_dim=30,
    prefix_projection=projected,
    encoder_hidden_size=4,
  )
  model = peft.get_peft_model(model, config).eval()
  model.save_pretrained(tmp_path / 'adapter')
  bundle = load_prompts(str(tmp_path / 'adapter'))
  # Half of an even number's are never used.
  config = networks.backbone(base).config
  assert bundle.learner.peft_layers == config.num_encoder_layers
  goldens.close(_ours(base, bundle), _theirs(model), usual=5)


@pytest.mark.parametrize('alike', [False, True])
def test_ours_is_loaded_there(base, alike, tmp_path):
  """Also where each layer has its own, for which PEFT has no place."""
  config = networks.backbone(base).config
  method = methods.Prefix(S, ('decoder',))
  arrays = method.fresh(config, 1, np.array([0, 4], np.uint32))
  depth = config.num_decoder_layers
  if alike:
    modules = list(prefix._attentions(config, 'decoder'))
    for i in range(depth // 2, depth):
      for name in prefix._ARRAYS:
        twin = arrays[f'{modules[i - depth // 2]}/{name}']
        arrays[f'{modules[i]}/{name}'] = twin
  bundle = PromptBundle(
    method='prefix',
    stage='target',
    task_names=('a',),
    arrays=arrays,
    settings=method.settings,
  )
  bundle.to_peft(str(tmp_path / 'adapter'))
  model = transformers.T5ForConditionalGeneration.from_pretrained(base)
  model = peft.PeftModel.from_pretrained(model, tmp_path / 'adapter').eval()
  n = model.active_peft_config.num_layers
  assert n == depth + (depth % 2 == 0 and not alike)
  want = _ours(base, bundle)
  goldens.close(_theirs(model), want, usual=5)
  again = load_prompts(str(tmp_path / 'adapter'))
  np.testing.assert_array_equal(_ours(base, again), want)
