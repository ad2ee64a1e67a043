"""AdapterHub's folders: what is kept, and what is refused and why."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mpt_jax
from mpt_jax import methods
from mpt_jax.checkpoints import adapterhub
from mpt_jax.checkpoints.bundle import PromptBundle
from mpt_jax.export import export
from mpt_jax.types import InputError
from tests.helpers import tiny

CONFIG = tiny.CONFIG.replace(num_encoder_layers=3, num_decoder_layers=2)


def _bundle(tasks=('super.rte', 'cb'), **settings):
  method = methods.Adapter(**{'size': 3} | settings)
  rng = np.random.default_rng(0)
  return PromptBundle(
    method='adapter',
    stage='target',
    task_names=tasks,
    arrays={
      name: rng.normal(size=shape)
      for name, shape in method.shapes(CONFIG, len(tasks)).items()
    },
    backbone_name='t5-base',
    settings=method.settings,
  )


@pytest.mark.parametrize(
  'settings',
  [
    {},
    {'size': None, 'reduction': 5, 'norms': False},
    {'size': 20, 'cross': True, 'activation': 'swish'},
    {'first_layer': 1},
    {'shared': True},
  ],
)
def test_a_folder_for_each_task_comes_back(settings, tmp_path, caplog):
  bundle = _bundle(**settings)
  bundle.save(str(tmp_path / 'bundle'))
  out = tmp_path / 'out'
  export(prompts=str(tmp_path / 'bundle'), output=str(out), format='adapterhub')
  warned = 'does not load T5' in caplog.text
  assert warned == bundle.learner.norms
  folders = {('super.rte',): out / 'super.rte', ('cb',): out / 'cb'}
  if settings.get('shared'):
    folders = {bundle.task_names: out}
  for tasks, folder in folders.items():
    back = mpt_jax.load_prompts(folder)
    assert (back.task_names, back.backbone_name) == (tasks, 't5-base')
    # A reduction there may be a size here.
    sizes = {'size': None, 'reduction': 1}
    got, want = (
      dataclasses.replace(b.learner, **sizes) for b in (back, bundle)
    )
    assert got == want
    want = bundle.with_tasks(tasks[:1]).arrays
    assert set(back.arrays) == set(want)
    for name, array in want.items():
      np.testing.assert_array_equal(back.arrays[name], array)


def test_norms_that_did_not_change_need_no_file(tmp_path, caplog):
  bundle = _bundle(tasks=('cb',))
  arrays = {
    name: 0 * array if name.endswith('scale_change') else array
    for name, array in bundle.arrays.items()
  }
  path = tmp_path / 'out'
  PromptBundle(
    method='adapter',
    stage='target',
    task_names=('cb',),
    arrays=arrays,
    settings=bundle.settings,
  ).to_adapterhub(str(path))
  assert sorted(p.name for p in path.iterdir()) == [
    'README.md',
    'adapter.safetensors',
    'adapter_config.json',
  ]
  assert not mpt_jax.load_prompts(path).learner.norms
  assert not caplog.text


@pytest.mark.parametrize('settings', [{'last_layer': 1}, {'first_layer': 2}])
def test_blocks_that_adapterhub_cannot_count_are_refused(settings, tmp_path):
  with pytest.raises(InputError, match='counts the blocks of both stacks'):
    _bundle(**settings).to_adapterhub(str(tmp_path / 'out'), 'cb')
  assert not (tmp_path / 'out').exists()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('hub') / 'adapter'
  _bundle(norms=False).to_adapterhub(str(path), 'cb')
  return path


def _change(path, changes):
  file = path / adapterhub.CONFIG
  stored = json.loads(file.read_text())
  for key, value in changes.items():
    where = stored if key in stored else stored['config']
    where[key] = value
  file.write_text(json.dumps(stored))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'ln_after': True}, 'ln_after is True, ours have False'),
    ({'original_ln_before': True}, 'original_ln_before is True'),
    ({'mh_adapter': False}, 'mh_adapter is False'),
    ({'scaling': 'learned'}, "scaling is 'learned'"),
    ({'architecture': 'lora'}, "architecture is 'lora'"),
    ({'new_gate': 2}, 'new_gate is 2, which is not read here'),
    ({'non_linearity': 'gelu_ne'}, "'gelu_ne', expected one of"),
    ({'non_linearity': None}, "'', expected one of"),
    ({'leave_out': [0]}, r'leave_out is \[0\], with adapters in the blocks'),
    ({'leave_out': 'all'}, "leave_out is 'all', expected numbers"),
    ({'cross_adapter': 'all'}, "cross_adapter is 'all', expected true"),
    ({'config': None}, 'config or version is missing'),
    ({'version': None}, 'config or version is missing'),
  ],
)
def test_what_ours_do_not_do_is_refused(folder, changes, message, tmp_path):
  path = shutil.copytree(folder, tmp_path / 'copy')
  _change(path, changes)
  with pytest.raises(InputError, match=message):
    mpt_jax.load_prompts(path)


def test_what_does_nothing_is_read_over(folder, tmp_path):
  path = shutil.copytree(folder, tmp_path / 'copy')
  idle = {'phm_dim': 4, 'init_weights': 'bert', 'dropout': 0.1, 'phm_rank': 1}
  _change(path, {**idle, 'reduction_factor': {'0': 4, 'default': 2}})
  assert mpt_jax.load_prompts(path).learner.size == 3


def test_other_tensors_are_refused(folder, tmp_path):
  path = shutil.copytree(folder, tmp_path / 'copy')
  file = path / adapterhub.TENSORS
  tensors = load_file(file)
  name = next(iter(tensors))
  # Of a model with AdapterHub's own heads.
  save_file({f'transformer.{n}': t for n, t in tensors.items()}, file)
  assert len(mpt_jax.load_prompts(path).arrays) == len(tensors)
  for bad in (
    name.replace('.cb.', '.rte.'),
    'encoder.block.0.layer.1.adapters.cb.gate.weight',
    'decoder.block.0.layer.3.adapters.cb.adapter_up.bias',
    'lm_head.weight',
  ):
    save_file(tensors | {bad: tensors[name]}, file)
    with pytest.raises(InputError, match='is not of one bottleneck adapter'):
      mpt_jax.load_prompts(path)


def test_neither_pickles_nor_heads_are_read(folder, tmp_path, caplog):
  path = shutil.copytree(folder, tmp_path / 'copy')
  (path / 'model_head.safetensors').write_bytes(b'x')
  mpt_jax.load_prompts(path)
  assert 'model_head.safetensors is not read: the head is' in caplog.text
  (path / adapterhub.TENSORS).rename(path / 'pytorch_adapter.bin')
  with pytest.raises(InputError, match='is a pickle and is not opened'):
    mpt_jax.load_prompts(path)
