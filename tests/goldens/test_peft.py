"""PEFT's adapters compute here what they compute there, and are written so."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

import mpt_jax
from mpt_jax import models
from mpt_jax.engine import trainer
from mpt_jax.pretrained import PromptedT5
from tests import goldens
from tests.goldens import close, networks

ADAPTERS = [*goldens.of('peft_multitask'), *goldens.of('peft_soft')]
# Ours -> PEFT's.
NAMES = {
  'prompt': 'prompt_embeddings',
  'shared_prompt': 'prompt_embeddings',
  'task_u': 'prefix_task_cols',
  'task_v': 'prefix_task_rows',
}


def _load(golden):
  """The backbone, the adapter as a bundle, and the arrays in our ids."""
  width = golden.io['prompt_embeddings'].shape[-1]
  vocab_size = golden.io['logits'].shape[-1]
  backbone = networks.backbone(goldens.backbone_of(golden, width, vocab_size))
  io = networks.in_our_ids(backbone, golden.io)
  io.setdefault('task_ids', np.zeros(len(io['labels']), np.int32))
  return backbone, mpt_jax.load_prompts(golden.folder), io


@pytest.mark.parametrize('golden', ADAPTERS)
def test_read_as_peft_reads(golden):
  _, bundle, io = _load(golden)
  names = [f'task{i}' for i in range(golden.config.get('num_tasks', 1))]
  named = mpt_jax.load_prompts(golden.folder, task_names=names)
  assert named.task_names == tuple(names)
  for row, name in zip(bundle.table, names, strict=True):
    np.testing.assert_array_equal(named.compose(name), row)
  method = 'multitask' if 'num_tasks' in golden.config else 'soft'
  assert (bundle.method, bundle.stage) == (method, 'imported')
  assert bundle.prompt_length == golden.config['num_virtual_tokens']
  if method == 'multitask':
    assert bundle.rank == golden.config['num_ranks']
  for ours, array in bundle.arrays.items():
    np.testing.assert_array_equal(array, io[NAMES[ours]])
  np.testing.assert_allclose(
    bundle.table[io['task_ids']], io['prompts'], atol=1e-6
  )


@pytest.mark.parametrize('golden', ADAPTERS)
def test_logits_loss_and_gradients(golden):
  backbone, bundle, io = _load(golden)
  model = models.PromptedT5(
    backbone.config, bundle.learner, len(bundle.task_names)
  )
  real = io['labels'] != -100
  targets = np.where(real, io['labels'], 0)
  batch = networks.batch(
    io['input_ids'], targets, io['task_ids'], bundle.prompt_length
  )

  @jax.jit
  def run(prompts):
    def loss_fn(prompts):
      params = backbone.params | {'prompts': prompts}
      return model.loss_fn(params, batch, None)[0]

    params = backbone.params | {'prompts': prompts}
    table = model.prompt_table(params)
    logits, _ = model._forward(params, table, batch, None)
    scores = model.score_batch(params, batch)
    return logits, scores, *jax.value_and_grad(loss_fn)(prompts)

  logits, scores, loss, grads = run(dict(bundle.arrays))
  close(logits, io['logits'], real)
  want = float(io['loss'])
  assert float(loss) == pytest.approx(want, abs=1e-5)
  assert float(-scores.sum() / real.sum()) == pytest.approx(want, abs=1e-5)
  assert set(grads) == set(bundle.arrays)
  for name, grad in grads.items():
    np.testing.assert_allclose(grad, io[f'grad_{NAMES[name]}'], atol=1e-5)


@pytest.mark.parametrize('golden', ADAPTERS)
def test_decodes_what_peft_decodes(golden):
  """As training's evaluation decodes, and as `PromptedT5` does."""
  backbone, bundle, io = _load(golden)
  want = io['generate_ids'][:, 1:]
  served = PromptedT5(backbone, bundle, _Ids(backbone.config.vocab_size))
  inputs = [row[row > 0] for row in io['input_ids']]
  batch = served._batch(inputs, io['task_ids'])
  got = served._predict(
    served.params, batch, max_decode_length=want.shape[1], num_beams=1
  )
  np.testing.assert_array_equal(got, want)
  batch = networks.batch(
    io['input_ids'], want, io['task_ids'], bundle.prompt_length
  )
  predict = trainer.make_predict_step(
    served.model, max_decode_length=want.shape[1]
  )
  np.testing.assert_array_equal(predict(served.params, batch), want)


class _Ids:
  """No vocabulary comes with an adapter, and none is needed for ids."""

  def __init__(self, size):
    self.size = size


@pytest.mark.parametrize('golden', ADAPTERS)
def test_written_as_peft_writes(golden, tmp_path):
  mpt_jax.load_prompts(golden.folder).to_peft(str(tmp_path))
  got = json.loads((tmp_path / 'adapter_config.json').read_text())
  want = golden.config
  assert set(want) - set(got) == {'peft_version'}
  differs = {k for k in got if got[k] != want[k]}
  # PEFT takes these from the model that the adapter is put on.
  assert differs <= {
    'base_model_name_or_path',
    'num_attention_heads',
    'num_layers',
  }
  got, want = (
    safetensors.numpy.load_file(folder / 'adapter_model.safetensors')
    for folder in (tmp_path, golden.folder)
  )
  assert set(got) == set(want)
  for key in want:
    np.testing.assert_array_equal(got[key], want[key])
