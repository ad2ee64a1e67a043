"""Our adapters in AdapterHub's `adapters`, where that is installed.

It pins another transformers than PEFT needs, so it has an environment of its
own.
"""

import numpy as np
import pytest
from safetensors.numpy import load_file

import mpt_jax
from mpt_jax import methods
from mpt_jax.checkpoints import adapterhub
from mpt_jax.checkpoints.bundle import PromptBundle
from mpt_jax.models import PromptedT5
from tests import goldens
from tests.goldens import networks

pytestmark = [pytest.mark.torch, pytest.mark.slow]

torch = pytest.importorskip('torch', reason='torch is not installed')
adapters = pytest.importorskip('adapters', reason='adapters is not installed')
transformers = pytest.importorskip('transformers', reason='a part of it')

SETTINGS = {
  'paper': {'reduction': 4, 'norms': True},
  'size': {'size': 5, 'norms': False, 'activation': 'relu'},
  'dropped': {'reduction': 3, 'first_layer': 1, 'cross': True},
}


@pytest.mark.parametrize('name', SETTINGS)
@pytest.mark.parametrize('base', goldens.of('transformers'))
def test_logits_are_the_same_there_and_back(base, name, tmp_path):
  if base.config['model_type'] == 'umt5':
    pytest.skip('`adapters` has no umT5')
  backbone = networks.backbone(base.folder)
  method, rng = methods.Adapter(**SETTINGS[name]), np.random.default_rng(0)
  shapes = method.shapes(backbone.config, 2)
  bundle = PromptBundle(
    method='adapter',
    stage='target',
    task_names=('glue.rte', 'cb'),
    arrays={n: 0.3 * rng.normal(size=shape) for n, shape in shapes.items()},
    settings=method.settings,
  )
  tokens = rng.integers(2, backbone.config.vocab_size - 1, (3, 9))
  tokens[1, 6:] = 0
  targets = rng.integers(2, backbone.config.vocab_size - 1, (3, 6))
  rows = np.zeros(3, np.int32)
  batch = networks.batch(tokens, targets, rows, 0)
  model = PromptedT5(
    backbone.config, method, 1, **backbone.special_ids.of_model()
  )
  ours = model._forward(
    backbone.params | bundle.with_tasks(['glue.rte']).params, None, batch, None
  )[0]

  def swap(ids):
    """Their ids of ours, and the other way round."""
    return np.reshape(backbone.special_ids.swap(ids.ravel()), ids.shape)

  path = str(tmp_path / 'ours')
  bundle.to_adapterhub(path, 'glue.rte')

  # The transformers that it pins does not see from the file that they are not.
  model = transformers.T5ForConditionalGeneration.from_pretrained(
    base.folder, tie_word_embeddings=backbone.config.logits_via_embedding
  )
  adapters.init(model)
  loaded = model.load_adapter(path, set_active=True, use_safetensors=True)
  assert loaded == 'glue_rte'
  norms = tmp_path / 'ours' / adapterhub.NORMS
  assert norms.exists() == method.norms
  with torch.no_grad():
    for weight, change in (load_file(norms) if method.norms else {}).items():
      model.get_parameter(weight).add_(torch.tensor(change))
    theirs = model.eval()(
      input_ids=torch.tensor(swap(tokens)),
      attention_mask=torch.tensor((tokens > 0).astype(np.int64)),
      labels=torch.tensor(swap(targets)),
    ).logits.numpy()
  goldens.close(ours, theirs[..., swap(np.arange(theirs.shape[-1]))])
  # Back from us and from there.
  saved = str(tmp_path / 'theirs')
  model.save_adapter(saved, loaded, use_safetensors=True)
  for folder, task in ((path, 'glue.rte'), (saved, loaded)):
    back = mpt_jax.load_prompts(folder)
    assert back.task_names == (task,)
    want = bundle.with_tasks(['glue.rte']).arrays
    kept = {n for n in want if folder == path or not n.endswith('scale_change')}
    assert set(back.arrays) == kept
    for array in kept:
      np.testing.assert_array_equal(back.arrays[array], want[array])
