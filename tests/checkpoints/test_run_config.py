"""A run is its settings and its data: another one must not take its folder.

Guards against a run that goes on, or calls itself finished, with what it was
not made with; and against a folder that is blocked by a run that never was.
"""

import dataclasses
import json
import logging

import pytest

from mpt_jax import methods, t5
from mpt_jax.checkpoints import run as run_lib
from mpt_jax.engine import optimizers, starts
from mpt_jax.models import PromptedT5
from mpt_jax.types import InputError

CONFIG = t5.T5Config(vocab_size=13, emb_dim=5, num_heads=3, head_dim=2)


def record(
  *, steps=4, rate=0.3, task_rate=0.1, length=7, seed=0, dropout=0.0, digest='a'
):
  groups = optimizers.method_groups(methods.MultitaskPrompts(), rate, task_rate)
  config = CONFIG.replace(dropout_rate=dropout)
  return {
    'backbone_fingerprint': 'sha256:1',
    'model': repr(PromptedT5(config, methods.MultitaskPrompts(length), 2)),
    'optimizer': repr(optimizers.Optimizer(groups, total_steps=steps)),
    'method': repr(methods.MultitaskPrompts(length)),
    'prompt_tasks': ['a', 'b'],
    'distillation': 'None',
    'train_steps': steps,
    'seed': seed,
    run_lib.DATA: {
      'a/train': {'examples': 3, 'digest': digest},
      'a/test': {'examples': 2, 'digest': 'b'},
    },
  }


@pytest.fixture
def folder(tmp_path):
  """A folder in which a run has saved a step."""
  assert not run_lib.check_run_config(str(tmp_path), record())
  (tmp_path / 'checkpoints' / '2').mkdir(parents=True)
  assert run_lib.check_run_config(str(tmp_path), record())
  return tmp_path


@pytest.mark.parametrize(
  ('changed', 'details'),
  [
    ({'steps': 8}, ['steps: 4 there, 8 here']),
    ({'rate': 0.5}, ['learning_rate: 0.3 there, 0.5 here']),
    ({'task_rate': 0.5}, ['task_learning_rate: 0.1 there, 0.5 here']),
    ({'length': 8}, ['length: 7 there, 8 here']),
    ({'dropout': 0.1}, ['dropout_rate: 0.0 there, 0.1 here']),
    (
      {'seed': 3, 'steps': 5, 'digest': 'c'},
      ['seed: 0 there, 3 here', 'steps: 4 there, 5 here'],
    ),
    (
      {'digest': 'c'},
      ['the data of a/train differ: 3 examples, but not the same'],
    ),
  ],
)
def test_what_differs_is_named_with_both_values(folder, changed, details):
  before = (folder / run_lib.RUN_CONFIG).read_bytes()
  with pytest.raises(InputError, match='holds a run with other') as error:
    run_lib.check_run_config(str(folder), record(**changed))
  assert list(error.value.details) == details
  assert (folder / run_lib.RUN_CONFIG).read_bytes() == before


def test_names_are_those_of_the_user(folder):
  with pytest.raises(InputError) as error:
    run_lib.check_run_config(str(folder), record(steps=8), str.upper)
  assert error.value.details == ('STEPS: 4 there, 8 here',)


@pytest.mark.parametrize('leftover', [(), ('checkpoints',), ('tensorboard',)])
def test_a_run_that_saved_nothing_blocks_no_folder(tmp_path, leftover):
  run_lib.check_run_config(str(tmp_path), record())
  for name in leftover:
    (tmp_path / name).mkdir()
  assert not run_lib.check_run_config(str(tmp_path), record(steps=8))
  stored = json.loads((tmp_path / run_lib.RUN_CONFIG).read_text())
  assert stored['train_steps'] == 8


def test_an_evaluation_in_the_folder_is_no_run(tmp_path):
  (tmp_path / 'results.json').write_text('{}')
  assert not run_lib.check_run_config(str(tmp_path), record())


@pytest.mark.parametrize(
  'saved', ['results.json', 'damaged/4', 'checkpoints/4']
)
def test_a_run_that_saved_anything_keeps_its_folder(tmp_path, saved):
  run_lib.check_run_config(str(tmp_path), record())
  (tmp_path / saved).mkdir(parents=True)
  with pytest.raises(InputError, match='steps: 4 there, 8 here'):
    run_lib.check_run_config(str(tmp_path), record(steps=8))


def test_a_record_of_version_0_1_is_still_taken(folder, caplog):
  stored = record()
  del stored[run_lib.DATA]
  (folder / run_lib.RUN_CONFIG).write_text(json.dumps(stored))
  with caplog.at_level(logging.WARNING):
    assert run_lib.check_run_config(str(folder), record())
  assert 'kept no digest of its data' in caplog.text
  # From now on they are known.
  with pytest.raises(InputError, match='the data of a/train differ'):
    run_lib.check_run_config(str(folder), record(digest='c'))


def test_another_split_may_be_scored_later(folder):
  more = record()
  more[run_lib.DATA] = {
    'a/train': more[run_lib.DATA]['a/train'],
    'a/validation': {'examples': 5, 'digest': 'd'},
  }
  assert run_lib.check_run_config(str(folder), more)
  stored = json.loads((folder / run_lib.RUN_CONFIG).read_text())[run_lib.DATA]
  assert sorted(stored) == ['a/test', 'a/train', 'a/validation']


def test_a_setting_that_is_no_dataclass_is_shown_as_it_is(folder):
  before = record()
  now = {**before, 'distillation': "Distillation(teacher_prompts='{task}')"}
  with pytest.raises(InputError) as error:
    run_lib.refuse_differences('run', before, now)
  assert list(error.value.details) == [
    "teacher_prompts: None there, '{task}' here"
  ]


def test_every_field_of_the_optimizer_has_a_name(folder):
  """A field that is new in `Optimizer` must not get lost on the way."""
  fields = {f.name for f in dataclasses.fields(optimizers.Optimizer)}
  groups = (optimizers.Group('prompts/prompt', 0.1),)
  shown = {
    place[1]
    for place, _ in run_lib.fields(
      'optimizer', repr(optimizers.Optimizer(groups, total_steps=3))
    )
  }
  # The rates are told of each group.
  assert fields - {'groups', 'learning_rate', 'task_learning_rate'} <= shown


@pytest.mark.parametrize('value', ['one', 'list', 'dict'])
def test_a_path_is_the_same_however_it_is_spelt(tmp_path, monkeypatch, value):
  project = tmp_path / 'home/project'
  (project / 'runs/src').mkdir(parents=True)
  (tmp_path / 'link').symlink_to(project)
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  monkeypatch.chdir(project)

  def config(path, recorded=True):
    path = {'one': path, 'list': [path], 'dict': {'a': path}}[value]
    found = {'source': f'Source(prompts={path!r}, task=None)'}
    if recorded:
      found[run_lib.PATHS] = run_lib.real_paths(path)
    return found

  spelt = [
    'runs/src',
    './runs//src/',
    '~/project/runs/src',
    str(project / 'runs/src'),
    str(tmp_path / 'link/runs/src'),
  ]
  for recorded in (True, False):  # Version 0.1 recorded no paths.
    for path in spelt:
      run_lib.refuse_differences(
        'x', config('runs/src', recorded), config(path)
      )
  with pytest.raises(InputError, match='prompts: '):
    run_lib.refuse_differences('x', config('runs/src'), config('runs/src2'))
  # From another folder, and after all of it has moved.
  before = config('runs/src')
  monkeypatch.chdir(tmp_path)
  run_lib.refuse_differences('x', before, config(str(project / 'runs/src')))
  with pytest.raises(InputError, match='prompts: '):
    run_lib.refuse_differences('x', before, config('src'))
  run_lib.refuse_differences('x', before, config('runs/src'))


def _of_0_1(prompts, config):
  """What version 0.1 recorded of a run of T5 with a prompt module."""
  return {
    'model': f'PromptedT5(config={CONFIG!r}, prompts={prompts},'
    " loss_normalizing_factor='NUM_REAL_TARGET_TOKENS', label_smoothing=0.0,"
    ' z_loss=0.0, eos_id=1)',
    'prompts': config,
  }


OLD = {
  'teacher': _of_0_1(
    'SoftPrompts(\n    # attributes\n    length = 7\n    features = 5\n'
    '    num_tasks = 1\n)',
    "PromptConfig(length=7, task_names=('a',), method='soft', rank=1,"
    ' init=SampledVocabulary(max_id=11), source_prompts=None,'
    ' source_task=None)',
  ),
  'target': _of_0_1(
    'MultitaskPrompts(\n    # attributes\n    length = 7\n    features = 5\n'
    '    num_tasks = 2\n    rank = 3\n)',
    "PromptConfig(length=7, task_names=('a', 'b'), method='multitask', rank=3,"
    " init=Uniform(scale=0.5), source_prompts='source', source_task=None)",
  ),
  'finetune': _of_0_1('None', 'None'),
}


def _now(stage, length=7):
  words = methods.SampledVocabulary(11)
  method, tasks, source = {
    'teacher': (methods.SoftPrompts(length, init=words), ['a'], None),
    'target': (methods.MultitaskPrompts(length, 3), ['a', 'b'], 'source'),
    'finetune': (methods.FullFinetuning(), ['all'], None),
  }[stage]
  return {
    'model': repr(PromptedT5(CONFIG, method, len(tasks))),
    'method': repr(method),
    'prompt_tasks': tasks,
    'start': repr(starts.Source(source)),
  }


@pytest.mark.parametrize('stage', OLD)
def test_a_run_of_version_0_1_goes_on(stage):
  run_lib.refuse_differences('x', OLD[stage], _now(stage))
  if stage == 'finetune':
    return
  with pytest.raises(InputError) as info:
    run_lib.refuse_differences('x', OLD[stage], _now(stage, length=9))
  assert info.value.details == ('length: 7 there, 9 here',)
  other = {**_now(stage), 'start': repr(starts.Source('elsewhere'))}
  with pytest.raises(InputError, match="prompts: .* there, 'elsewhere' here"):
    run_lib.refuse_differences('x', OLD[stage], other)
