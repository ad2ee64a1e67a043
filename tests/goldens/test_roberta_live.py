"""RoBERTa of the transformers that is installed, there and back."""

import jax.numpy as jnp
import numpy as np
import pytest

from mpt_jax import backbones, checkpoints
from tests.goldens import networks

pytestmark = [pytest.mark.torch, pytest.mark.slow]

torch = pytest.importorskip('torch', reason='torch is not installed')
transformers = pytest.importorskip(
  'transformers', reason='transformers is not installed'
)


def _logits(folder, ids, mask):
  """Those of transformers."""
  model = transformers.AutoModelForMaskedLM.from_pretrained(folder)
  with torch.no_grad():
    out = model.eval()(
      input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)
    )
  return out.logits.numpy()


@pytest.mark.parametrize('kind', ['Roberta', 'XLMRoberta'])
def test_there_and_back(kind, tmp_path):
  torch.manual_seed(3)
  config = getattr(transformers, f'{kind}Config')(
    vocab_size=61,
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=6,
    intermediate_size=40,
    max_position_embeddings=31,
    layer_norm_eps=1e-4,
    type_vocab_size=1,
  )
  model = getattr(transformers, f'{kind}ForMaskedLM')(config)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.3 * torch.randn_like(parameter))
  folder, again = str(tmp_path / 'theirs'), str(tmp_path / 'ours')
  model.save_pretrained(folder)
  rng = np.random.default_rng(4)
  ids = rng.integers(3, 61, (5, 17))
  ids[:, 0] = 0
  mask = (np.arange(17)[None] < rng.integers(3, 17, (5, 1))).astype(int)
  ids = np.where(mask, ids, config.pad_token_id)
  want = _logits(folder, ids, mask)
  loaded = checkpoints.load_backbone(folder)
  io = networks.in_our_ids(
    loaded, {'input_ids': ids, 'attention_mask': mask, 'logits': want}
  )
  got = (
    backbones.family(loaded.config)
    .network(loaded.config)
    .apply(
      {'params': loaded.params},
      jnp.asarray(io['input_ids']),
      enable_dropout=False,
    )
  )
  np.testing.assert_allclose(
    np.asarray(got)[mask > 0], io['logits'][mask > 0], atol=1e-4
  )
  loaded.save(again, {})
  np.testing.assert_array_equal(_logits(again, ids, mask), want)
