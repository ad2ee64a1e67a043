"""A run's start: T5X reads the backbone, the prompts are new, nothing else."""

import json
import shutil

import numpy as np
import pytest

pytest.importorskip('t5x', reason='T5X is not on PYTHONPATH')

from mpt_jax import checkpoints, methods, t5
from mpt_jax.checkpoints.bundle import PromptBundle
from mpt_jax.engine import optimizers, starts
from mpt_jax.engine.settings import BackboneSource
from mpt_jax.t5x import remote, runs
from mpt_jax.types import InputError
from tests.t5x.helpers import LENGTH, first_state, start_model

pytestmark = pytest.mark.t5x


def stored(testdata, name):
  config = json.loads((testdata / name / 'config.json').read_text())['model']
  return t5.T5Config.from_dict(config)


def test_wrong_sizes_and_missing_tensors_are_named(testdata, tmp_path):
  config = stored(testdata, 't5x_v1_1_tiny')
  path = testdata / 't5x_v1_1_tiny' / 'orbax' / 'checkpoint_700'
  with pytest.raises(InputError, match="lacks .* 'decoder/layers_2/"):
    first_state(start_model(path, config.replace(num_decoder_layers=3)))
  with pytest.raises(InputError, match='has no place'):
    first_state(start_model(path, config.replace(num_encoder_layers=1)))
  with pytest.raises(InputError, match='has shape'):
    first_state(start_model(path, config.replace(mlp_dim=62)))
  legacy = tmp_path / 'checkpoint_700'
  shutil.copytree(testdata / 't5x_v1_1_tiny/legacy/checkpoint_700', legacy)
  with pytest.raises(InputError, match='has shape'):
    first_state(start_model(legacy, config.replace(mlp_dim=62)))


def test_prompts_of_another_backbone_are_refused(testdata, tmp_path):
  config = stored(testdata, 't5x_v1_1_tiny')
  path = testdata / 't5x_v1_1_tiny' / 'orbax' / 'checkpoint_700'
  native = checkpoints.load_backbone(str(path))
  start = np.full((LENGTH, config.emb_dim), 0.5, np.float32)
  for fingerprint in (native.fingerprint, 'sha256:other'):
    PromptBundle(
      method='soft',
      stage='teacher',
      task_names=('rte',),
      arrays={'prompt': start},
      backbone_fingerprint=fingerprint,
    ).save(str(tmp_path / 'prompts'))
    model = start_model(path, config, prompts=str(tmp_path / 'prompts'))
    if fingerprint == native.fingerprint:
      state = first_state(model)
      np.testing.assert_array_equal(state.params['prompts']['prompt'], start)
    else:
      with pytest.raises(InputError, match='another one'):
        first_state(model)


def test_steps_count_from_the_backbone(testdata):
  path = str(testdata / 't5x_v1_1_tiny' / 'legacy' / 'checkpoint_700')
  assert remote.initial_step(path) == 700
  assert remote.initial_step(str(testdata / 't5x_v1_1_tiny' / 'legacy')) == 700
  assert remote.initial_step('gs://b/t5/checkpoint_1000000') == 1000000
  assert runs.total_steps(None, 30, path) == 730
  assert runs.total_steps(900, None, path) == 900
  assert runs.total_steps(None, 30, 'demo') == 30
  with pytest.raises(InputError, match='TRAIN_STEPS_RELATIVE = 500'):
    runs.total_steps(500, None, path)
  with pytest.raises(InputError, match='give TRAIN_STEPS_RELATIVE'):
    runs.total_steps(None, None, path)
  with pytest.raises(InputError, match='does not name a step'):
    remote.initial_step('gs://b/t5')


def train_model(**kwargs):
  arguments = {
    'stage': 'target',
    'backbone': BackboneSource('demo'),
    'method': methods.MultitaskPrompts(LENGTH),
    'prompt_tasks': ('rte',),
    'source': starts.Source('x'),
    'total_steps': 7,
    'optimizer': optimizers.Optimizer(learning_rate=0.3),
  }
  return runs.train_model(**{**arguments, **kwargs})


def test_wrong_settings_say_so(tmp_path):
  with pytest.raises(InputError, match="did you mean 'target'"):
    train_model(stage='taget')
  for source, message in (
    (BackboneSource(str(tmp_path / 'no')), 'no such folder'),
    (BackboneSource(str(tmp_path)), 'there is no backbone in'),
    (BackboneSource('gs://b/checkpoint_5'), 'gin_configs/models'),
    (BackboneSource('demo', vocabulary='no'), "'no' does not exist"),
    (BackboneSource(None), 'no INITIAL_CHECKPOINT_PATH'),
  ):
    with pytest.raises(InputError, match=message):
      train_model(backbone=source)
  with pytest.raises(InputError, match='PROMPT_TASKS'):
    runs.dataset_config(
      model=train_model(),
      mixture_or_task_name='sst2',
      task_feature_lengths={'inputs': 20, 'targets': 4},
      split='train',
      batch_size=2,
    )
  with pytest.raises(InputError, match='no T5X checkpoint'):
    runs.restore_config(str(tmp_path))


def test_model_dir_of_another_run_is_refused(tmp_path):
  model_dir = str(tmp_path / 'run')
  # Nothing was saved yet: the folder is free.
  slow = {'optimizer': optimizers.Optimizer(learning_rate=0.2)}
  runs.checkpoint_config(model=train_model(**slow), model_dir=model_dir)
  runs.checkpoint_config(model=train_model(), model_dir=model_dir)
  (tmp_path / 'run' / 'checkpoint_7').mkdir()
  runs.checkpoint_config(model=train_model(), model_dir=model_dir)
  with pytest.raises(
    InputError, match='learning_rate: .* there, 0.2 here'
  ) as e:
    runs.checkpoint_config(model=train_model(**slow), model_dir=model_dir)
  assert repr(model_dir) in str(e.value)
  foreign = tmp_path / 'foreign'
  (foreign / 'checkpoint_7').mkdir(parents=True)
  with pytest.raises(InputError, match='not one of our runs'):
    runs.checkpoint_config(model=train_model(), model_dir=str(foreign))
