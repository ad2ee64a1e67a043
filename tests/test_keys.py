"""The key that a run leaves, whatever becomes of the run in between.

Guards against a key of another step than was asked for, or one that a kill
has changed, and against a run that is another one because it keeps a key.
"""

import json
import logging
import pathlib
import shutil

import numpy as np
import pytest

import mpt_jax
from mpt_jax import methods
from mpt_jax.checkpoints import run as run_lib
from mpt_jax.checkpoints.bundle import PromptBundle, load_prompts
from mpt_jax.engine import run as run_engine
from mpt_jax.engine.optimizers import Optimizer
from mpt_jax.engine.settings import Devices, Evaluation, Logging
from mpt_jax.types import InputError
from tests.helpers import tiny

STEPS, PERIOD = 12, 4
WORDS = ('the cat', 'a fern', 'it is so', 'not the town')
SOFT = methods.SoftPrompts(3, init=methods.Uniform())


@pytest.fixture(scope='module')
def backbone():
  return tiny.served()


def train(backbone, folder, key_step, method=SOFT, names=('one',), **settings):
  rows = [{'text': word, 'answer': word[:3]} for word in WORDS]
  task = mpt_jax.Task(
    train=rows, validation=rows, inputs='{text}', targets='{answer}'
  )
  return mpt_jax.train(
    **{
      'backbone': backbone,
      'method': method,
      'tasks': dict.fromkeys(names, task),
      'dataset': {
        'task_feature_lengths': {'inputs': 16, 'targets': 6},
        'batch_size': 2,
      },
      'steps': STEPS,
      'model_dir': str(folder),
      'optimizer': Optimizer(learning_rate=0.1),
      'evaluation': None,
      'devices': Devices(padding='max'),
      'logging': Logging(PERIOD, PERIOD, tensorboard=False, key_step=key_step),
      **settings,
    }
  )


def contents(folder, *names):
  return {
    f'{name}/{path.name}': path.read_bytes()
    for name in names or ('key', 'start', 'prompts')
    for path in sorted(pathlib.Path(folder, name).iterdir())
  }


def die_at(patch, cls, name, step_of, step, after=False):
  """Kills the run in a method, at a step, before or behind its work."""
  method = getattr(cls, name)

  def call(self, *args):
    dies = step_of(*args) == step
    if dies and not after:
      raise KeyboardInterrupt
    method(self, *args)
    if dies:
      raise KeyboardInterrupt

  patch.setattr(cls, name, call)


@pytest.fixture(scope='module')
def whole(backbone, tmp_path_factory):
  """Finished runs by KEY_STEP; of step 8 there is a checkpoint, too."""
  folder = tmp_path_factory.mktemp('whole')
  for key_step in (6, 8, STEPS, None):
    train(backbone, folder / str(key_step), key_step)
  return folder


SAVE = run_lib.RunCheckpointer, 'save', lambda state, _: int(state.step)


@pytest.mark.parametrize(
  ('key_step', 'at', 'after'),
  [(6, 4, True), (6, 8, False), (6, 8, True)]
  + [(8, 8, False), (8, 8, True), (12, 12, False)],
)
def test_a_key_is_the_same_after_a_kill_at_any_step(
  backbone, whole, tmp_path, monkeypatch, key_step, at, after
):
  with monkeypatch.context() as patch:
    die_at(patch, *SAVE, at, after)
    with pytest.raises(KeyboardInterrupt):
      train(backbone, tmp_path / 'run', key_step)
  train(backbone, tmp_path / 'run', key_step)
  assert contents(tmp_path / 'run') == contents(whole / str(key_step))


@pytest.mark.parametrize('after', [False, True])
def test_a_key_is_the_same_after_a_kill_while_it_is_written(
  backbone, whole, tmp_path, monkeypatch, after
):
  with monkeypatch.context() as patch:
    at = PromptBundle, 'save', lambda path: pathlib.Path(path).name
    die_at(patch, *at, 'key', after)
    with pytest.raises(KeyboardInterrupt):
      train(backbone, tmp_path / 'run', 6)
  train(backbone, tmp_path / 'run', 6)
  assert contents(tmp_path / 'run') == contents(whole / '6')


def test_it_is_what_the_run_was_at_that_step(backbone, whole, tmp_path):
  # Nobody's numbers move, and the record is that of the run without.
  for file in ('prompts/prompts.safetensors', run_lib.RUN_CONFIG):
    told = {(whole / str(k) / file).read_bytes() for k in (6, 8, None)}
    assert len(told) == 1, file
  assert not (whole / 'None/key').exists()
  assert not (whole / 'None/start').exists()
  last = load_prompts(str(whole / f'{STEPS}/key'))
  product = load_prompts(str(whole / f'{STEPS}/prompts'))
  assert last.step == product.step == STEPS
  np.testing.assert_array_equal(last.table, product.table)
  start = load_prompts(str(whole / '6/start'))
  key = load_prompts(str(whole / '6/key'))
  assert (start.step, key.step) == (0, 6)
  assert start.backbone_fingerprint == backbone.fingerprint
  assert np.abs(start.table).max() <= 0.5
  assert (key.table != start.table).all()
  # Stopped where the key is due, without having asked for one.
  stopped = tmp_path / 'run'
  shutil.copytree(whole / 'None', stopped)
  (stopped / 'results.json').unlink()
  shutil.rmtree(stopped / f'checkpoints/{STEPS}')
  train(backbone, stopped, 8)
  assert contents(stopped) == contents(whole / '8')


def test_of_several_tasks_in_a_run_each_has_one(backbone, tmp_path):
  method = methods.MultitaskPrompts(3, init=methods.Uniform())
  names = ('one', 'two')
  train(backbone, tmp_path / 'run', 5, method, names, stage='source')
  key = load_prompts(str(tmp_path / 'run/key'))
  assert (key.task_names, key.step) == (names, 5)
  assert (key.table[0] != key.table[1]).any()


def test_a_run_that_ends_early_keeps_its_last_step(
  backbone, tmp_path, caplog, monkeypatch
):
  caplog.set_level(logging.WARNING)
  evaluation = Evaluation(period=2, patience=1)
  exact = {'accuracy': 50.0}

  def evaluate(self, *args):
    del self, args
    return {'one': exact}, {}

  monkeypatch.setattr(run_engine.Evaluator, '_decode', evaluate)
  settings = {'evaluation': evaluation}
  for _ in range(2):  # Once more, it is finished.
    train(backbone, tmp_path / 'run', 8, **settings)
  results = json.loads((tmp_path / 'run/results.json').read_text())
  assert load_prompts(str(tmp_path / 'run/key')).step == results['step'] == 4
  assert 'ended before KEY_STEP = 8: its key is that of step 4' in caplog.text


def test_what_cannot_be_is_refused(backbone, whole, tmp_path):
  none = tmp_path / 'none'
  with pytest.raises(InputError, match='KEY_STEP = 13 is none.*STEPS = 12'):
    train(backbone, none, STEPS + 1)
  for method in (methods.LoRA(), methods.FullFinetuning()):
    words = f"KEY_STEP = 5: .* method '{method.name}' has none: "
    with pytest.raises(InputError, match=words):
      train(backbone, none, 5, method)
  assert not none.exists()
  # A finished run, and one that is past the step.
  stopped = tmp_path / 'stopped'
  shutil.copytree(whole / '6', stopped)
  (stopped / 'results.json').unlink()
  for folder, there in (
    (whole / '6', 'that of step 6'),
    (whole / 'None', 'none'),
    (stopped, 'that of step 6'),
  ):
    words = f"{folder.name}' is past step 8 and its key is {there}"
    with pytest.raises(InputError, match=words):
      train(backbone, folder, 8)
  # What was kept stays, if a later call asks for none.
  train(backbone, whole / '6', None)
  assert load_prompts(str(whole / '6/key')).step == 6
