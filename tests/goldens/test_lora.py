"""PEFT's LoRA computes here what it computes there, and is written so."""

import json

import numpy as np
import pytest
import safetensors.numpy

import mpt_jax
from mpt_jax.checkpoints import huggingface
from mpt_jax.engine import params as params_lib
from tests import goldens
from tests.goldens import networks

LORAS = goldens.of('lora')


def ours(name):
  """Our name of one of a golden's arrays."""
  module, rest = huggingface.module_of(name)
  return f'{module}/{rest.removesuffix(".weight").lower()}'


@pytest.mark.parametrize('golden', LORAS)
def test_logits_loss_gradients_and_answers(golden):
  backbone, io = networks.of_method(golden)
  bundle = mpt_jax.load_prompts(golden.folder)
  assert (bundle.method, bundle.stage) == ('lora', 'imported')
  grads = {
    ours(name.removeprefix('grad/')): grad.T[None]
    for name, grad in io.items()
    if name.startswith('grad/')
  }
  assert set(grads) == set(bundle.arrays)
  networks.check_method(backbone, io, bundle.learner, bundle.arrays, grads)


@pytest.mark.parametrize('golden', LORAS)
def test_merged_weights(golden):
  backbone, io = networks.of_method(golden)
  bundle = mpt_jax.load_prompts(golden.folder)
  flat = params_lib.flatten(backbone.params)
  arrays = {name: array[0] for name, array in bundle.arrays.items()}
  merged = bundle.learner.merged(flat, arrays)
  assert {f'{n.rpartition("/")[0]}/kernel' for n in arrays} == set(merged)
  for name in io:
    if name.startswith('merged/'):
      module, _ = huggingface.module_of(name.removeprefix('merged/'))
      got = merged[f'{module}/kernel']
      np.testing.assert_allclose(got.T, io[name], rtol=0, atol=1e-6)
  for name, kernel in bundle.learner.unmerged(flat | merged, arrays).items():
    np.testing.assert_allclose(kernel, flat[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize('golden', LORAS)
def test_written_as_peft_writes(golden, tmp_path):
  mpt_jax.load_prompts(golden.folder).to_peft(str(tmp_path))
  got = json.loads((tmp_path / 'adapter_config.json').read_text())
  want = golden.config
  assert set(got) <= set(want)
  # What we do not write is what PEFT takes where nothing is said.
  silent = {key: want[key] for key in set(want) - set(got) if want[key]}
  assert silent.keys() <= {'megatron_core', 'peft_version', 'qalora_group_size'}
  for config in (got, want):
    config['target_modules'] = sorted(config['target_modules'])
  differs = {key for key in got if got[key] != want[key]}
  assert differs <= {'base_model_name_or_path'}
  got, want = (
    safetensors.numpy.load_file(folder / 'adapter_model.safetensors')
    for folder in (tmp_path, golden.folder)
  )
  assert set(got) == set(want)
  for key in want:
    np.testing.assert_array_equal(got[key], want[key])
