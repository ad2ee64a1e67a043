"""What PEFT puts into the network, LoRA and (IA)^3: read, run and written."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

import mpt_jax
from mpt_jax.checkpoints import huggingface
from mpt_jax.engine import params as params_lib
from tests import goldens
from tests.goldens import networks

DELTAS = [*goldens.of('lora'), *goldens.of('ia3')]
# What PEFT takes for it where nothing is said, and what the model says.
UNWRITTEN = {'megatron_core', 'peft_version', 'qalora_group_size'}
OF_THE_MODEL = {'base_model_name_or_path'}


def _grads(learner, config, io):
  """The golden's gradients, which have names and shapes of an adapter."""
  tensors = {}
  for name, grad in io.items():
    if name.startswith('grad/'):
      tensors['/'.join(huggingface.module_of(name[5:]))] = grad
  known = {'r', 'lora_alpha'} & config.keys()
  _, grads = learner.from_peft({key: config[key] for key in known}, tensors)
  return {name: grad[None] for name, grad in grads.items()}


@pytest.mark.parametrize('golden', DELTAS)
def test_logits_loss_gradients_and_answers(golden):
  backbone, io = networks.of_method(golden)
  bundle = mpt_jax.load_prompts(golden.folder)
  assert bundle.method == golden.config['peft_type'].lower()
  assert bundle.stage == 'imported'
  grads = _grads(bundle.learner, golden.config, io)
  assert set(grads) == set(bundle.arrays)
  networks.check_method(backbone, io, bundle.learner, bundle.arrays, grads)


@pytest.mark.parametrize('golden', DELTAS)
def test_merged_weights(golden, tmp_path):
  backbone, io = networks.of_method(golden)
  bundle = mpt_jax.load_prompts(golden.folder)
  bundle.to_merged(str(tmp_path / 'merged'), backbone)
  merged = networks.backbone(tmp_path / 'merged')
  # Where a run starts the method changes nothing.
  learner = bundle.learner
  fresh = learner.fresh(backbone.config, 1, jax.random.PRNGKey(0))
  networks.check_method(merged, io, learner, fresh, {})
  flat, original = map(params_lib.flatten, (merged.params, backbone.params))
  modules = {name.rpartition('/')[0] for name in bundle.arrays}
  changed = {n for n in flat if not np.array_equal(flat[n], original[n])}
  assert changed == {f'{module}/kernel' for module in modules}
  for name in io:
    if name.startswith('merged/'):
      module, _ = huggingface.module_of(name.removeprefix('merged/'))
      got = flat[f'{module}/kernel'].T
      np.testing.assert_allclose(got, io[name], rtol=0, atol=1e-6)
  arrays = {name: array[0] for name, array in bundle.arrays.items()}
  for name, kernel in learner.unmerged(flat, arrays).items():
    np.testing.assert_allclose(kernel, original[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('golden', DELTAS)
def test_written_as_peft_writes(golden, tmp_path):
  mpt_jax.load_prompts(golden.folder).to_peft(str(tmp_path))
  got = json.loads((tmp_path / 'adapter_config.json').read_text())
  want = golden.config
  assert set(got) <= set(want)
  silent = {key for key in set(want) - set(got) if want[key]}
  assert silent <= UNWRITTEN
  # A set, in any order; PEFT's may name what the backbone does not have.
  targets = got.pop('target_modules')
  assert set(targets) <= set(want['target_modules'])
  assert {key for key in got if got[key] != want[key]} <= OF_THE_MODEL
  got, want = (
    safetensors.numpy.load_file(folder / 'adapter_model.safetensors')
    for folder in (tmp_path, golden.folder)
  )
  assert set(got) == set(want)
  for key in want:
    assert got[key].dtype == want[key].dtype
    np.testing.assert_array_equal(got[key], want[key])
