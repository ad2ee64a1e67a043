"""One default for gin files and Python, or a reason why there are two."""

import dataclasses
import importlib
import inspect
import pathlib

import pytest

from mpt_jax import methods
from mpt_jax.cli import reader
from mpt_jax.engine import run
from mpt_jax.types import ANYTHING

ROOT = pathlib.Path(__file__).parents[1]
RUNS = ROOT / 'gin_configs/runs'
# What tasks the shipped registry has is no business of the package.
_REGISTRY = 'tasks/ is the registry that the commands come with'
# (file, or '*' for all; macro) -> why Python's default is another one.
REASONS = {
  ('*', 'METHOD'): 'what makes the stage',
  ('*', 'WEIGHT_DECAY'): "that of the baselines' code",
  ('source', 'MIXTURE_OR_TASK_NAME'): _REGISTRY,
  ('source', 'PROMPT_TASKS'): _REGISTRY,
  ('*', 'PROMPT_TASKS'): 'those of the data, which the parameter cannot see',
  ('*', 'TRAIN_DATASET'): 'made of the macros above',
  ('*', 'PROMPT_INIT'): 'a file of gin_configs/prompts says it',
  ('source', 'DISTILLATION'): 'what makes the stage; others have none',
  ('target', 'START'): "that of its method; None is each one's own",
  ('target', 'SOURCE_PROMPTS'): 'the stage cannot start without them',
  ('attempt', 'SOURCE_PROMPTS'): 'the method has nothing to mix without them',
  ('projector', 'SOURCE_PROMPTS'): 'the method has nothing to project',
  ('projector', 'SCHEDULE'): "that of the paper's code",
  ('eval', 'PROMPTS'): 'to score a bare backbone is said, not forgotten',
  ('infer', 'PROMPTS'): 'as in eval',
  ('answer', 'PROMPTS'): 'as in eval',
  ('export', 'INITIAL_CHECKPOINT_PATH'): 'one format alone reads a backbone',
  ('transfer_retrieve', 'INITIAL_CHECKPOINT_PATH'): 'one metric alone reads it',
  ('answer', 'INPUT'): 'what makes it this file',
  ('transfer_matrix', 'EVAL_EXAMPLES'): 'of all pairs: a part of each will do',
  ('transfer_project', 'EVAL_EXAMPLES'): 'as in transfer_matrix',
  ('transfer_matrix', 'MODEL_DIR'): 'what a command writes, a notebook shows',
  ('answer', 'BATCH_SIZE'): 'smaller: lines are answered as they come',
  ('transfer_all', 'TEACHER_STEPS'): 'that of teacher.gin',
  ('transfer_all', 'SHARED_STEPS'): 'that of source.gin',
  ('transfer_all', 'BATCH_SIZE'): 'that of teacher.gin',
  ('transfer_all', 'SHARED_LEARNING_RATE'): 'that of teacher.gin',
  ('transfer_all', 'TASK_LEARNING_RATE'): 'that of source.gin',
  ('transfer_all', 'EVAL_EXAMPLES'): 'all would be K * K times the test split',
}
# Recipes: each of their numbers is there to differ.
RECIPES = {
  *('baselines', 'demo', 'demo_page', 'demo_roberta', 'demo_transfer'),
  *('pretrain_demo', 'pretrain_demo_small', 'pretrain_demo_large'),
}
FILES = sorted(
  path.stem
  for path in RUNS.glob('*.gin')
  if path.stem not in RECIPES and not path.stem.endswith('common')
)
_REQUIRED = 'required'


def _plain(value):
  """A value as gin writes it: there are no tuples in a file."""
  return list(value) if isinstance(value, tuple) else value


def _default(module, target, name):
  """What Python takes for a parameter that nobody gives."""
  bound = getattr(importlib.import_module(module), target)
  if dataclasses.is_dataclass(bound):
    field = bound.__dataclass_fields__[name]
    if field.default_factory is not dataclasses.MISSING:
      return field.default_factory()
  default = inspect.signature(bound).parameters[name].default
  return _REQUIRED if default is inspect.Parameter.empty else default


def _of_stage(text, target):
  """What a stage has where its user leaves a parameter open."""
  values = {(s.target, s.name): text.resolve(s).value for s in text.settings}
  stage = values.get(('train.train', 'stage'))
  # What is no method of prompts has a file of its name.
  name = pathlib.Path(text.files[0]).stem
  name = name if name in methods.names() else 'full'
  method = methods.get(values.get(('methods.prompt_method', 'name'), name))
  if not stage:
    return {}
  if target == 'Optimizer':
    names = 'learning_rate', 'task_learning_rate'
    return dict(zip(names, method.rates[stage], strict=True))
  found = run._dataset('x', method(), stage, 0, {})
  found = {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
  del found['mixture_or_task_name']
  return found if target == 'DatasetConfig' else {}


def _differing(name):
  """The macros of a file whose parameter has another default, with both."""
  text = reader.read([str(RUNS / f'{name}.gin')])
  missing = text.missing()
  bindings = [
    s for s in text.settings if s.target and isinstance(s.value, reader.Macro)
  ]
  assert bindings
  found = {}
  for setting in bindings:
    module, target = text.home(setting)
    default = _default(module, target, setting.name)
    default = _of_stage(text, target).get(setting.name, default)
    macro, given = setting.value.name, text.resolve(setting).value
    if text.resolve(setting).name in missing:
      given = _REQUIRED
    if given is ANYTHING or _plain(given) != _plain(default):
      found[macro] = (given, default)
  return found


@pytest.mark.parametrize('name', FILES)
def test_a_gin_file_repeats_pythons_default(name):
  for macro, (given, default) in _differing(name).items():
    assert {(name, macro), ('*', macro)} & REASONS.keys(), (
      f'{name}.gin: {macro} is {given!r}, and {default!r} in Python'
    )


def test_no_reason_is_left_over():
  needed = {(n, macro) for n in FILES for macro in _differing(n)}
  macros = {macro for _, macro in needed}
  left = {
    (name, macro)
    for name, macro in REASONS
    if macro not in macros or (name != '*' and (name, macro) not in needed)
  }
  assert not left


def test_what_is_explained_by_the_source_is_what_is_imported():
  """Help and checks read the source, which must say what Python does."""
  for module, name in (
    ('mpt_jax.train', 'train'),
    ('mpt_jax.train', 'Evaluation'),
    ('mpt_jax.data.dataset', 'DatasetConfig'),
    ('mpt_jax.pipeline', 'pipeline'),
  ):
    bound = getattr(importlib.import_module(module), name)
    told = reader.parameters(module, name)
    assert list(told) == list(inspect.signature(bound).parameters)
    for parameter, known in told.items():
      assert known.annotation is not None
      assert known.text, f'{module}.{name} says nothing of {parameter}'
