"""What README, docs and gin files of version 0.1 named can still be named."""

import importlib
import pathlib

import gin
import pytest

import mpt_jax
from mpt_jax import cli, methods
from mpt_jax.engine import optimizers
from mpt_jax.types import InputError

PACKAGE = pathlib.Path(mpt_jax.__file__).parent
# Of README, docs/serving.md, docs/tasks.md and docs/vocabulary.md.
PYTHON = {
  'mpt_jax': ('PromptedT5', 'load_backbone', 'load_prompts', 'data', 't5'),
  'mpt_jax.pretrained': ('PromptedT5', 'Tokenizer'),
  'mpt_jax.data': (
    *('register_task', 'metric', 'get_vocabulary', 'TfdsSource'),
    *('set_data_dir', 'get_data_dir', 'task_texts', 'DatasetConfig'),
    *('PromptFeatureConverter', 'get_train_iterator', 'evaluate', 'predict'),
  ),
  'mpt_jax.checkpoints': ('load_backbone',),
  'mpt_jax.checkpoints.bundle': ('PromptBundle', 'load_prompts', 'merge'),
}
# Of gin files, which users copy.
GIN = {
  'mpt_jax.train': ('train', 'Evaluation', 'Distillation'),
  'mpt_jax.eval': ('evaluate',),
  'mpt_jax.infer': ('infer',),
  'mpt_jax.export': ('export',),
  'mpt_jax.convert': ('convert',),
  'mpt_jax.pipeline': ('pipeline', 'Training', 'Setting', 'Tuning'),
  'mpt_jax.optimizers': ('Group',),
  'mpt_jax.data.dataset': ('DatasetConfig',),
  'mpt_jax.t5': ('T5Config',),
  'mpt_jax.prompts': (
    *('Uniform', 'SampledVocabulary', 'FromString', 'FromFile'),
    'ClassLabels',
  ),
}


@pytest.mark.parametrize(
  'name',
  [
    f'{m}.{n}'
    for names in (PYTHON, GIN)
    for m, all in names.items()
    for n in all
  ],
)
def test_a_name_of_version_0_1(name):
  home, _, attribute = name.rpartition('.')
  assert getattr(importlib.import_module(home), attribute) is not None


OWN = """
from __gin__ import dynamic_registration
from mpt_jax import optimizers
from mpt_jax import prompts
from mpt_jax import train
include 'gin_configs/runs/teacher.gin'
"""
SET = [
  "MODEL_DIR='x'",
  "INITIAL_CHECKPOINT_PATH='y'",
  "MIXTURE_OR_TASK_NAME='z'",
]


@pytest.fixture(autouse=True)
def _no_other_configuration():
  gin.clear_config()


def _gin(tmp_path, lines):
  (tmp_path / 'own.gin').write_text(OWN + lines)
  return [str(tmp_path / 'own.gin')]


def test_a_gin_file_with_old_modules(tmp_path):
  lines = """
PROMPT_INIT = @prompts.Uniform()
prompts.Uniform.scale = 0.25
train.Optimizer.groups = [@optimizers.Group()]
optimizers.Group:
  pattern = '.*'
  learning_rate = 0.1
"""
  cli.configure(_gin(tmp_path, lines), SET)
  optimizer = gin.get_configurable(optimizers.Optimizer)()
  assert optimizer.groups == (optimizers.Group('.*', 0.1),)
  init = gin.query_parameter('%PROMPT_INIT').scoped_configurable_fn()
  assert init == methods.Uniform(0.25)


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    (
      'train.train.log_period = 5',
      r'own.gin:\d+: train.train has no parameter log_period: it is'
      ' train.Logging.log_period now',
    ),
    (
      "train.train.backbone_config = 't5_base'",
      'no parameter backbone_config: it is train.BackboneSource.config now',
    ),
    (
      "prompts.PromptConfig.method = 'soft'",
      'there is no prompts.PromptConfig any more: methods.prompt_method has',
    ),
    ('train.train.model_dirs = 5', "model_dirs; did you mean 'model_dir'"),
    ("prompts.Uniform.scale = 'a'", 'scale must be a number'),
  ],
)
def test_a_gin_file_is_told_the_new_name(tmp_path, line, message):
  with pytest.raises(InputError, match=message):
    cli.check_macros(_gin(tmp_path, line), SET)


@pytest.mark.parametrize('old', mpt_jax.MOVED)
def test_a_module_that_moved_is_the_module_that_it_became(old):
  assert not list(PACKAGE.glob(f'{old.partition(".")[2]}*')), 'it is there'
  new = importlib.import_module(mpt_jax.MOVED[old])
  spec = new.__spec__
  assert importlib.import_module(old) is new
  assert getattr(mpt_jax, old.partition('.')[2]) is new
  assert new.__spec__ is spec
  assert new.__name__ == mpt_jax.MOVED[old]
