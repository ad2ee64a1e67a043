"""Damaged checkpoints of a run: noticed, named, put aside, never silent."""

import os
import pathlib
import shutil

import jax
import numpy as np
import pytest

from mpt_jax import methods
from mpt_jax.checkpoints import run
from mpt_jax.engine import optimizers, partitioning, trainer
from mpt_jax.engine import params as params_lib
from mpt_jax.models import PromptedT5
from mpt_jax.types import InputError
from tests.helpers import tiny


def _state(step, seed):
  """A train state with random numbers everywhere."""
  model, params = tiny.stage_model('source')
  trained, _ = params_lib.split(params, tiny.PROMPTS)
  settings = optimizers.Optimizer(
    groups=(optimizers.Group('prompts/.*', 0.1),), total_steps=10
  )
  state = trainer.make_state(
    model, settings, trained, 0, partitioning.make_mesh()
  )
  rng = np.random.default_rng(seed)

  def draw(leaf):
    if np.issubdtype(leaf.dtype, np.floating):
      return jax.numpy.asarray(rng.normal(size=leaf.shape), leaf.dtype)
    return leaf

  state = jax.tree.map(draw, state)
  return state.replace(step=jax.numpy.int32(step))


POSITION = {'batches': 7, 'draws': 91, 'taken': {'a': 50, 'b': 41}}


def _truncate(path):
  content = path.read_bytes()
  path.write_bytes(content[: len(content) // 2])


def _zero(path):
  path.write_bytes(bytes(path.stat().st_size))


def _flip(path):
  content = bytearray(path.read_bytes())
  if content:
    content[len(content) // 2] ^= 16
  path.write_bytes(content)


DAMAGES = {
  'truncated': _truncate,
  'zeroed': _zero,
  'one bit flipped': _flip,
  'removed': pathlib.Path.unlink,
}


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A MODEL_DIR with steps 8 and 16, and their states."""
  folder = tmp_path_factory.mktemp('run')
  states = {step: _state(step, seed=step) for step in (8, 16)}
  checkpointer = run.RunCheckpointer(str(folder))
  for step, state in states.items():
    checkpointer.save(state, {**POSITION, 'batches': step})
  checkpointer.close()
  return folder, states


def _same(got, want):
  pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
  return all(np.array_equal(a, b) for a, b in pairs)


def _files(folder):
  root = folder / 'checkpoints/16'
  return sorted(p.relative_to(root) for p in root.rglob('*') if p.is_file())


@pytest.mark.slow
@pytest.mark.parametrize(
  'damage',
  [
    'one bit flipped',
    'removed',
    # Cruder than a flipped bit.
    pytest.param('truncated', marks=pytest.mark.long),
    pytest.param('zeroed', marks=pytest.mark.long),
  ],
)
def test_every_file(saved, damage, tmp_path, caplog, capsys):
  folder, states = saved
  outcomes = {}
  for file in _files(folder):
    caplog.clear()
    copy = tmp_path / 'run'
    shutil.copytree(folder, copy)
    DAMAGES[damage](copy / 'checkpoints/16' / file)
    template = _state(0, seed=1)
    checkpointer = run.RunCheckpointer(str(copy))
    state, position = checkpointer.restore_newest(template)
    step = int(state.step)
    # Whatever happened: what came back is exactly what was once saved.
    assert _same(state, states[step]), file
    assert position == {**POSITION, 'batches': step}, file
    if step == 8:
      assert 'checkpoint 16 in ' in caplog.text
      assert ' is damaged: ' in caplog.text
      # Nothing is deleted, and step 16 can be saved again.
      assert os.listdir(copy / 'damaged') == ['16']
      checkpointer.save(states[16], {**POSITION, 'batches': 16})
      again, _ = checkpointer.restore_newest(template)
      assert _same(again, states[16])
      outcomes[str(file)] = 'named; went on from step 8'
    else:
      assert 'damaged' not in caplog.text
      assert not (copy / 'damaged').exists()
      outcomes[str(file)] = 'not needed: step 16 is whole'
    checkpointer.close()
    shutil.rmtree(copy)
  with capsys.disabled():
    print(f'\n{damage}:')
    for file, outcome in outcomes.items():
      print(f'  {file}: {outcome}')
  assert len(set(outcomes.values())) > 1 or damage == 'zeroed'


@pytest.mark.slow
def test_all_checkpoints_are_damaged(saved, tmp_path):
  folder, _ = saved
  copy = tmp_path / 'run'
  shutil.copytree(folder, copy)
  for step in (8, 16):
    shutil.rmtree(copy / f'checkpoints/{step}/state')
  checkpointer = run.RunCheckpointer(str(copy))
  with pytest.raises(InputError, match='there is no other checkpoint'):
    checkpointer.restore_newest(_state(0, seed=1))
  assert sorted(os.listdir(copy / 'damaged')) == ['16', '8']
  checkpointer.close()


def test_another_run_is_no_damage(saved, tmp_path):
  folder, _ = saved
  copy = tmp_path / 'run'
  shutil.copytree(folder, copy)
  config = tiny.CONFIG
  method = methods.SoftPrompts(5)
  model = PromptedT5(config, method)
  trained = {'prompts': method.fresh(config, 1, jax.random.PRNGKey(0))}
  settings = optimizers.Optimizer(
    groups=(optimizers.Group('prompts/.*', 0.1),), total_steps=10
  )
  state = trainer.make_state(
    model, settings, trained, 0, partitioning.make_mesh()
  )
  checkpointer = run.RunCheckpointer(str(copy))
  with pytest.raises(InputError, match='does not fit this run'):
    checkpointer.restore_newest(state)
  assert not (copy / 'damaged').exists()
  checkpointer.close()


def test_a_full_disk(tmp_path, monkeypatch):
  checkpointer = run.RunCheckpointer(str(tmp_path / 'run'))
  checkpointer.save(_state(8, seed=8), POSITION)

  def full(*args, **kwargs):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(checkpointer._manager, 'save', full)
  message = 'checkpoint 16 cannot be written .*No space left.* last one is 8'
  with pytest.raises(InputError, match=message):
    checkpointer.save(_state(16, seed=16), POSITION)
  state, _ = checkpointer.restore_newest(_state(0, seed=1))
  assert int(state.step) == 8
  checkpointer.close()
