"""The plan of runs, the choice of rates, and one tiny pipeline end to end."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess

import gin
import jax
import numpy as np
import pytest

import mpt_jax
from mpt_jax import checkpoints, cli, models, pipeline, t5
from mpt_jax.engine import metrics
from mpt_jax.pipeline import (
  Plan,
  Prompts,
  Setting,
  SourceStage,
  TargetStage,
  Tasks,
  Training,
  Tuning,
)
from mpt_jax.study import (
  arms,
  examine,
  picked,
  rates,
  steps,
  worker,
  workers,
)
from mpt_jax.study import run as run_lib
from mpt_jax.types import InputError
from tests.helpers import children, every_method, fake_study, quick

ROOT = pathlib.Path(__file__).parent.parent
VOCABULARY = ROOT / 'tasks/offline/demo_backbone/spiece.model'

PLAN = Plan(
  model_dir='F',
  backbone='B',
  tasks=Tasks(
    source_mixture='two_sources',
    source_tasks=('mnli', 'sst2'),
    targets={'rte': 'mnli', 'cola': 'sst2'},
    task_feature_lengths={'inputs': 58, 'targets': 4},
  ),
  prompts=Prompts(prompt_length=10),
  source_stage=SourceStage(
    teacher=Training(7, 4, 0.3),
    source=Training(11, 6, 0.3, 0.1),
    variants=('mpt', 'shared_only', 'no_distillation'),
    ablation_seeds=(0,),
  ),
  target_stage=TargetStage(
    settings=(
      Setting('k32', 32, 5, 4, (0, 1), {'mpt': (0.1, 0.2), 'pt': 0.3}),
      Setting('k16', 16, 5, 4, (0,), tuned_as='k32'),
    ),
    methods=('mpt', 'pt'),
  ),
  seeds=(0, 1),
)


def changed(plan=PLAN, **changes):
  """A plan with other values, whatever part of it has them."""
  for part in ('tasks', 'prompts', 'source_stage', 'target_stage'):
    names = {f.name for f in dataclasses.fields(getattr(plan, part))}
    own = {n: changes.pop(n) for n in names & changes.keys()}
    changes[part] = dataclasses.replace(getattr(plan, part), **own)
  return dataclasses.replace(plan, **changes)


@pytest.fixture(autouse=True)
def _no_configuration():
  yield
  gin.clear_config()


def steps_of(plan=PLAN):
  return {s.name: s for s in steps.reported(plan, rates.given(plan))}


def test_leave_to_cut_targets_reaches_the_tests():
  plan = changed(macros={'ALLOW_CUT_TARGETS': True})
  for step in steps_of(plan).values():
    given = step.macros.get('ALLOW_CUT_TARGETS')
    assert given is (None if step.entry == 'export' else True), step.name
  # And is no part of any other plan's runs.
  for step in steps_of().values():
    assert 'ALLOW_CUT_TARGETS' not in step.macros


@pytest.mark.data
@pytest.mark.parametrize(
  ('macros', 'test', 'message'),
  [
    ({}, [{'q': 'x', 'a': 'ann'}], None),
    (
      {},
      [{'q': 'x', 'a': 'ann bob kate leo'}],
      "'own_late', split 'test': 1 of",
    ),
    ({'ALLOW_CUT_TARGETS': True}, [{'q': 'x', 'a': 'ann bob kate leo'}], None),
  ],
)
def test_texts_are_examined_before_anything_is_trained(macros, test, message):
  import seqio

  from mpt_jax import data

  rows = {split: [{'q': 'x', 'a': 'ann'}] for split in ('train', 'validation')}
  rows['test'] = test
  plan = changed(
    source_tasks=('own_late',),
    targets={'own_late': 'own_late'},
    settings=(),  # Of 32 examples, there would be too few.
    macros=macros,
  )
  data.use_vocabulary(VOCABULARY)
  data.register_task(
    'own_late',
    rows.__getitem__,
    inputs='{q}',
    targets='{a}',
    metric_fns=[lambda targets, predictions: {'n': 1.0}],
  )
  try:
    if message is None:
      examine.texts(plan)
    else:
      with pytest.raises(InputError, match=message):
        examine.texts(plan)
  finally:
    seqio.TaskRegistry.remove('own_late')
    data.use_vocabulary(None)


def test_every_run_has_its_folder():
  names = set(steps_of())
  runs = {
    'seed0/teacher/mnli',
    'seed0/teacher/sst2',
    'seed0/source/mpt',
    'seed0/source/shared_only',
    'seed0/source/no_distillation',
    'seed0/target/k32/mpt/rte',
    'seed0/target/k32/mpt/cola',
    'seed0/target/k32/pt/rte',
    'seed0/target/k32/pt/cola',
    'seed0/target/k16/mpt/rte',
    'seed0/target/k16/mpt/cola',
    'seed0/target/k16/pt/rte',
    'seed0/target/k16/pt/cola',
    'seed1/teacher/mnli',
    'seed1/teacher/sst2',
    'seed1/source/mpt',
    'seed1/target/k32/mpt/rte',
    'seed1/target/k32/mpt/cola',
    'seed1/target/k32/pt/rte',
    'seed1/target/k32/pt/cola',
  }
  exports = {
    f'export/{k}-{t}' for k in ('npy', 'bundle') for t in PLAN.tasks.targets
  }
  alone = {f'zero_shot/{t}' for t in ('mnli', 'sst2', 'rte', 'cola')}
  assert names == runs | {f'{r}/test' for r in runs} | exports | alone


def test_steps_come_after_what_they_read():
  seen = set()
  for step in steps_of().values():
    assert seen.issuperset(step.after), step.name
    # A path in a macro that lies in the folder is of a step it waits for.
    for value in step.macros.values():
      for word in [value] if isinstance(value, str) else []:
        if word.startswith('F/') and word.endswith('/prompts'):
          name = word[2:].removesuffix('/prompts').replace('{task}', 'mnli')
          assert name in step.after
    seen.add(step.name)


def test_each_kind_of_run_gets_its_own_settings():
  runs = steps_of()
  teacher = runs['seed1/teacher/sst2'].macros
  assert (teacher['RANDOM_SEED'], teacher['TRAIN_STEPS']) == (1, 7)
  source = runs['seed0/source/mpt'].macros
  assert source['TEACHER_PROMPTS'] == 'F/seed0/teacher/{task}/prompts'
  assert source['TASK_LEARNING_RATE'] == 0.1
  plain = runs['seed0/source/no_distillation']
  assert plain.macros['DISTILLATION'] is None
  assert not plain.after
  assert runs['seed0/source/shared_only'].macros['PROMPT_METHOD'] == 'soft'
  target = runs['seed1/target/k32/mpt/cola'].macros
  assert target['SOURCE_PROMPTS'] == 'F/seed1/source/mpt/prompts'
  assert target['SHARED_LEARNING_RATE'] == 0.1
  assert target['TASK_LEARNING_RATE'] == 0.2
  assert target['NUM_SHOTS'] == 32
  # k16 takes the rates of k32.
  few = runs['seed0/target/k16/pt/rte'].macros
  assert (few['NUM_SHOTS'], few['SHARED_LEARNING_RATE']) == (16, 0.3)
  assert 'SOURCE_PROMPTS' not in few


def test_arms_are_compared_that_differ_in_one_thing():
  assert arms.source_pairs() == [
    ('mpt', 'shared_only'),
    ('no_distillation', 'neither'),
    ('mpt', 'no_distillation'),
    ('shared_only', 'neither'),
  ]
  first, second, *others = arms.target_pairs()
  assert (first, second) == (('mpt', 'pt'), ('mpt', 'single_source'))
  assert others[-1] == ('mpt', 'mpt_no_distillation')
  assert len(others) == len(arms.TARGETS) - 3


def test_an_arm_is_a_row(monkeypatch):
  """A soft prompt that starts from the shared one: its run, title and pair."""
  arm = arms.Arm('mine', 'soft', ('mine.gin',), 'C4', start='shared_only')
  monkeypatch.setitem(arms.TARGETS, 'mine', arm)
  setting = Setting('full', None, 5, 4, (0,), {'mine': 0.03})
  plan = changed(methods=('mine',), settings=(setting,))
  step = steps_of(plan)['seed0/target/full/mine/cola']
  assert step.gin_files == ('mine.gin',)
  assert step.after == ('seed0/source/shared_only',)
  assert ('mpt', 'mine') in arms.target_pairs()
  with pytest.raises(
    InputError, match="needs the source variant 'shared_only'"
  ):
    changed(plan, variants=('mpt',))


EVERY = changed(
  variants=None,
  methods=tuple(arms.TARGETS),
  settings=(
    Setting(
      *('full', None, 5, 4, (0,)),
      {
        name: (0.1, 0.2) if arm.method == 'multitask' else 0.1
        for name, arm in arms.TARGETS.items()
      },
    ),
  ),
)


@pytest.mark.parametrize('name', arms.TARGETS)
def test_every_arm_trains_and_is_tested_on_the_same_text(name):
  arm, runs = arms.TARGETS[name], steps_of(EVERY)
  folder = f'seed0/target/full/{name}' + ('' if arm.together else '/cola')
  run, test = runs[folder], runs[f'{folder}/test']
  if arm.start == arms.EACH:
    run = runs[f'{folder}/from/mnli']
  assert run.macros[arm.rate] == 0.1
  assert run.macros['TRAIN_STEPS'] == (10 if arm.together else 5)
  # The study's own prompts are ten long.
  method = every_method.METHODS[arm.method]
  slots = 10 if method.prompt_length else 0
  for step in (run, test):
    assert step.macros['TASK_FEATURE_LENGTHS']['inputs'] - slots == 48
  if method.branch is None:
    product = {'INITIAL_CHECKPOINT_PATH': f'F/{folder}/backbone'}
    assert test.macros.items() >= {**product, 'PROMPTS': None}.items()
  else:
    assert test.macros['PROMPTS'] == f'F/{folder}/prompts'
    assert test.macros['INITIAL_CHECKPOINT_PATH'] == 'B'


def test_every_method_has_an_arm_that_can_be_told_from_the_others():
  made = {arm.method for arm in arms.TARGETS.values()}
  # A projector learns no target task: transfer.project says what it is worth.
  assert made == set(every_method.METHODS) - {'projector'}
  for thing in ('title', 'colour'):
    assert len({getattr(a, thing) for a in arms.TARGETS.values()}) == len(
      arms.TARGETS
    )
  with pytest.raises(InputError, match="is 'atempt'.*mean 'attempt'"):
    changed(methods=('atempt',))


def test_attempt_has_the_teachers_of_all_source_tasks():
  step = steps_of(EVERY)['seed0/target/full/attempt/rte']
  assert step.after == ('seed0/teacher/mnli', 'seed0/teacher/sst2')
  assert step.macros['SOURCE_PROMPTS'] == 'F/seed0/teacher/{task}/prompts'
  assert step.macros['SOURCE_TASK'] == ['mnli', 'sst2']


def test_the_nearest_source_is_picked_by_keys_on_the_same_data():
  few = Setting('k4', 4, 5, 4, (0,), {'spot': 0.1, 'mpt_nearest': (0.1, 0.2)})
  plan = changed(methods=('spot', 'mpt_nearest'), settings=(few,), key_step=3)
  runs = steps_of(plan)
  teachers = [f'seed0/teacher/{task}' for task in ('mnli', 'sst2')]
  assert all(runs[name].macros['KEY_STEP'] == 3 for name in teachers)
  key = runs['seed0/key/k4/rte'].macros
  assert [key[n] for n in ('NUM_SHOTS', 'TRAIN_STEPS', 'KEY_STEP')] == [4, 3, 3]
  assert key['SHARED_LEARNING_RATE'] == 0.3  # The teachers'.
  compared = {
    'START': 'nearest',
    'TARGET_KEY': 'F/seed0/key/k4/rte/key',
    'SOURCE_KEYS': 'F/seed0/teacher/{task}/key',
  }
  spot = runs['seed0/target/k4/spot/rte']
  assert spot.macros['SOURCE_PROMPTS'] == 'F/seed0/teacher/{task}/prompts'
  assert spot.macros['SOURCE_TASK'] == ['mnli', 'sst2']
  ours = runs['seed0/target/k4/mpt_nearest/rte']
  assert ours.macros['SOURCE_PROMPTS'] == 'F/seed0/source/mpt/prompts'
  for run in (spot, ours):
    assert run.macros.items() >= compared.items()
    assert {*teachers, 'seed0/key/k4/rte'} <= {*run.after}
  # No other plan has keys; and a default suits the teachers.
  assert not any('KEY_STEP' in run.macros for run in steps_of().values())
  assert changed(plan, key_step=None).key_step == 1
  with pytest.raises(InputError, match='KEY_STEP = 8 is none of the teachers'):
    changed(plan, key_step=8)


def test_of_a_run_from_each_source_the_best_by_validation_counts(tmp_path):
  setting = Setting('full', None, 5, 4, (0,), {'spot_oracle': 0.1})
  plan = changed(
    methods=('spot_oracle',), settings=(setting,), model_dir=str(tmp_path)
  )
  runs = steps_of(plan)
  name = 'seed0/target/full/spot_oracle/rte'
  tried = [runs[f'{name}/from/{task}'] for task in ('mnli', 'sst2')]
  for run, source in zip(tried, ('mnli', 'sst2'), strict=True):
    assert run.macros['SOURCE_TASK'] == source
    assert run.after == (f'seed0/teacher/{source}',)
    assert 'train.train.evaluation' not in run.macros  # On validation.
    assert f'{run.name}/test' not in runs
  best = runs[name]
  assert best.after == tuple(run.name for run in tried)
  assert best.labels['steps'] == 10
  assert runs[f'{name}/test'].macros['PROMPTS'] == f'{tmp_path}/{name}/prompts'

  def scored(**values):
    for source, value in values.items():
      path = tmp_path / name / 'from' / source
      path.mkdir(parents=True, exist_ok=True)
      scores = {} if value == 'diverged' else {'rte': {'accuracy': value}}
      (path / 'results.json').write_text(json.dumps({'scores': scores}))
    return picked.resolve(best, str(tmp_path))

  for values, want in (
    ({'mnli': 50.0, 'sst2': 60.0}, 'sst2'),
    ({'mnli': 60.0, 'sst2': 60.0}, 'mnli'),
    ({'mnli': 'diverged', 'sst2': 0.0}, 'sst2'),
    ({'mnli': None, 'sst2': 1.0}, 'sst2'),
  ):
    found = scored(**values)
    path = f'{tmp_path}/{name}/from/{want}/prompts'
    assert found.macros['PROMPTS'] == path
    results = json.loads((tmp_path / name / 'results.json').read_text())
    assert results['picked'] == want
    assert results['scores']['rte']['accuracy'] == values[want]
    values = {n: None if v == 'diverged' else v for n, v in values.items()}
    assert results['compared'] == values
  with pytest.raises(RuntimeError, match='mnli, sst2 each has diverged'):
    scored(mnli='diverged', sst2='diverged')


def test_all_targets_together_are_one_run():
  step = steps_of(EVERY)['seed0/target/full/mpt_group']
  assert step.macros['MIXTURE_OR_TASK_NAME'] == ['rte', 'cola']
  assert step.macros['PROMPT_TASKS'] == ['rte', 'cola']
  assert step.macros['SOURCE_PROMPTS'] == 'F/seed0/source/mpt/prompts'
  assert step.labels['tasks'] == ['rte', 'cola']
  assert 'task' not in step.labels
  test = steps_of(EVERY)[f'{step.name}/test']
  assert test.macros['MIXTURE_OR_TASK_NAME'] == ['rte', 'cola']
  tuned = changed(
    TUNED,
    methods=('mpt_group',),
    tuning=Tuning(9, {'mpt_group': [(1, 2)]}, ('k32',)),
  )
  [name] = [
    s.name for s in steps.search(tuned) if s.labels['stage'] == 'tuning'
  ]
  assert name == rates.search_name('k32', 'mpt_group', (1, 2), 'cola')


def stages(plan):
  return [s.name for s in steps_of(plan).values() if s.entry == 'train']


def test_only_what_a_method_reads_is_run():
  setting = Setting(
    'full', None, 5, 4, (0,), {'pt': 0.3, 'lora': 0.3, 'single_source': 0.3}
  )
  plan = changed(methods=('pt', 'lora'), settings=(setting,), variants=None)
  assert all('/target/' in name for name in stages(plan))
  plan = changed(plan, methods=('single_source',), targets={'rte': 'sst2'})
  assert stages(plan)[0] == 'seed0/teacher/sst2'
  assert not any('teacher/mnli' in n or '/source/' in n for n in stages(plan))
  with pytest.raises(InputError, match="'attempt' starts .*SOURCE_TASKS has"):
    changed(plan, methods=('attempt',), targets=['rte'], source_tasks=())


def test_a_setting_may_run_some_of_the_methods():
  k32, k16 = TUNED.target_stage.settings
  some = dataclasses.replace(k16, methods=['pt'])
  plan = changed(TUNED, settings=(k32, some))
  runs = steps_of(plan)
  found = {
    (setting, method)
    for setting in ('k32', 'k16')
    for method in ('mpt', 'pt')
    if f'seed0/target/{setting}/{method}/rte' in runs
  }
  assert found == {('k32', 'mpt'), ('k32', 'pt'), ('k16', 'pt')}
  with pytest.raises(
    InputError, match="a method of k16 is 'pr', expected one of mpt, pt"
  ):
    changed(settings=(k32, dataclasses.replace(k16, methods=['pr'])))
  fewer = dataclasses.replace(k32, methods=['pt'])
  with pytest.raises(InputError, match="tuned as k32, is 'mpt'"):
    changed(TUNED, settings=(fewer, k16))


def test_the_best_step_by_validation_may_be_kept():
  settings = [
    dataclasses.replace(s, keep_best=2) for s in EVERY.target_stage.settings
  ]
  runs = steps_of(changed(EVERY, settings=settings))
  for name, period in (('mpt/cola', 2), ('mpt_group', 4), ('lora/rte', 2)):
    macros = runs[f'seed0/target/full/{name}'].macros
    assert (macros['KEEP_BEST'], macros['EVAL_PERIOD']) == (True, period)
    assert 'train.train.evaluation' not in macros


def test_a_record_of_a_plan_has_one_level():
  record = changed(distillation=None, ablation_seeds=None).record()
  assert record['source_tasks'] == ('mnli', 'sst2')
  assert record['teacher'] == dataclasses.asdict(Training(7, 4, 0.3))
  assert (record['distillation'], record['macros']) == ({}, {})
  assert record['ablation_seeds'] == [0, 1]
  assert not {'tasks', 'prompts', 'source_stage'} & record.keys()


def test_single_source_starts_from_the_named_teacher():
  plan = changed(
    methods=('single_source',),
    settings=(Setting('full', None, 5, 4, (0,), {'single_source': 0.03}),),
  )
  step = steps_of(plan)['seed0/target/full/single_source/cola']
  assert step.after == ('seed0/teacher/sst2',)
  assert step.macros['SOURCE_PROMPTS'] == 'F/seed0/teacher/sst2/prompts'
  assert step.macros['SOURCE_TASK'] == 'sst2'


def test_a_task_may_have_lengths_of_its_own():
  plan = changed(
    EVERY,
    lengths={'cola': {'inputs': 70}, 'sst2': {'targets': 9}},
    source_mixture=None,
  )
  runs = steps_of(plan)

  def lengths(name):
    return tuple(runs[name].macros['TASK_FEATURE_LENGTHS'].values())

  folder = 'seed0/target/full'
  for name in (f'{folder}/mpt/cola', f'{folder}/mpt/cola/test'):
    assert lengths(name) == (70, 4)
  assert lengths(f'{folder}/lora/cola') == (60, 4)
  assert lengths(f'{folder}/mpt/rte') == lengths('zero_shot/rte') == (58, 4)
  # Those of all that is read.
  source = runs['seed0/source/mpt']
  assert lengths(source.name) == (58, 9)
  # Without a mixture the tasks stand by themselves.
  assert source.macros['MIXTURE_OR_TASK_NAME'] == ['mnli', 'sst2']


def test_targets_need_no_source_picked_by_hand():
  plan = changed(targets=('rte', 'cola'))
  assert plan.tasks.targets == {'rte': None, 'cola': None}
  assert 'seed1/target/k32/mpt/cola' in steps_of(plan)
  with pytest.raises(InputError, match="TARGETS has none for 'cola'"):
    changed(targets={'rte': 'mnli', 'cola': None}, methods=('single_source',))


def test_exports_take_the_first_seed_with_most_data():
  step = steps_of()['export/npy-rte']
  assert step.macros['PROMPTS'] == 'F/seed0/target/k32/mpt/rte/prompts'


TUNED = changed(
  settings=(
    Setting('k32', 32, 5, 4, (0, 1)),
    Setting('k16', 16, 5, 4, (0,), tuned_as='k32'),
  ),
  tuning=Tuning(
    9, {'mpt': [(0.1, 0.1), (0.3, 0.1)], 'pt': [0.1, 0.3]}, ('k32',)
  ),
)


def test_tuning_searches_on_a_seed_of_its_own():
  runs = {s.name: s for s in steps.search(TUNED)}
  assert set(runs) == {
    'tuning/teacher/mnli',
    'tuning/teacher/sst2',
    'tuning/source/mpt',
    *(
      f'tuning/k32/{method}/{tried}/{task}'
      for method, grid in (
        ('mpt', ('0.1-0.1', '0.3-0.1')),
        ('pt', ('0.1', '0.3')),
      )
      for tried in grid
      for task in ('rte', 'cola')
    ),
  }
  run = runs['tuning/k32/mpt/0.3-0.1/rte'].macros
  assert run['RANDOM_SEED'] == 9
  assert run['SOURCE_PROMPTS'] == 'F/tuning/source/mpt/prompts'
  # Scored on the validation split, unlike the reported runs.
  assert 'train.train.evaluation' not in run


def test_tuning_may_search_on_some_targets(tmp_path):
  search = dataclasses.replace(TUNED.target_stage.tuning, targets=['cola'])
  plan = changed(TUNED, model_dir=str(tmp_path), tuning=search)
  names = {s.name for s in steps.search(plan)}
  assert 'tuning/k32/mpt/0.3-0.1/cola' in names
  assert not [name for name in names if name.endswith('/rte')]
  runs = ('mpt/0.1-0.1', 'mpt/0.3-0.1', 'pt/0.1', 'pt/0.3')
  write_search(tmp_path, {run: (90.0 - i, i) for i, run in enumerate(runs)})
  chosen, rows = rates.tuned(plan)
  assert chosen == {'k32': {'mpt': (0.3, 0.1), 'pt': (0.3, None)}}
  assert [row['scores'] for row in rows] == [{'cola': i} for i in range(4)]
  said = rates.told(plan.record()['tuning'], rows)
  assert 'the best mean over cola wins' in said
  assert said.endswith('Steps of each method at k32: 10.')


def test_best_mean_over_targets_wins(tmp_path):
  plan = changed(TUNED, model_dir=str(tmp_path))
  scores = {
    'mpt/0.1-0.1': (60.0, 50.0),
    'mpt/0.3-0.1': (50.0, 70.0),
    'pt/0.1': (40.0, 40.0),
    # No correlation with a constant: counts as 0.
    'pt/0.3': (70.0, None),
  }
  for name, (rte, cola) in scores.items():
    for task, values in (
      ('rte', {'accuracy': rte}),
      ('cola', {'matthews_corrcoef': cola}),
    ):
      folder = tmp_path / 'tuning/k32' / name / task
      folder.mkdir(parents=True)
      (folder / 'results.json').write_text(
        json.dumps({'scores': {task: values}})
      )
  chosen, rows = rates.tuned(plan)
  assert chosen == {'k32': {'mpt': (0.3, 0.1), 'pt': (0.1, None)}}
  assert [row['mean'] for row in rows] == [55.0, 60.0, 40.0, 35.0]
  assert [row.get('chosen', False) for row in rows] == [
    False,
    True,
    True,
    False,
  ]
  # With two values each, the best one is always on an edge.
  assert rows[1]['on_edge']
  assert rows[2]['on_edge']


def write_search(folder, scores, name='accuracy', **beside):
  for run, (rte, cola) in scores.items():
    for task, value in (('rte', rte), ('cola', cola)):
      path = folder / 'tuning/k32' / run / task
      path.mkdir(parents=True)
      found = {'scores': {task: {name: value}}}
      found |= {key: {task: {name: v}} for key, v in beside.items()}
      (path / 'results.json').write_text(json.dumps(found))


@pytest.mark.parametrize(
  ('name', 'beside'),
  [
    ('error_rate', {}),
    ('perplexity', {}),
    (
      'mine',
      {
        'metrics': {
          'better': 'less',
          'range': [0, None],
          'unit': '',
          'score': True,
        }
      },
    ),
  ],
)
def test_the_search_takes_the_least_where_less_is_better(
  tmp_path, name, beside
):
  plan = changed(TUNED, model_dir=str(tmp_path))
  scores = {
    'mpt/0.1-0.1': (20.0, 40.0),
    'mpt/0.3-0.1': (30.0, 20.0),
    'pt/0.1': (40.0, 40.0),
    'pt/0.3': (1.0, None),
  }
  write_search(tmp_path, scores, name, **beside)
  chosen, rows = rates.tuned(plan)
  # An undefined one is the worst there is.
  assert chosen == {'k32': {'mpt': (0.3, 0.1), 'pt': (0.1, None)}}
  worst = 50.5 if name == 'error_rate' else None
  assert [row['mean'] for row in rows] == [30.0, 25.0, 40.0, worst]


def test_a_search_without_a_common_direction_is_refused(tmp_path):
  plan = changed(TUNED, model_dir=str(tmp_path))
  write_search(tmp_path, {'mpt/0.1-0.1': (1.0, 2.0)}, 'my_metric')
  write_search(tmp_path, {'mpt/0.3-0.1': (1.0, 2.0)}, 'my_metric')
  with pytest.raises(InputError, match="task 'rte': .* metric 'my_metric'"):
    rates.tuned(plan)
  more, less = metrics.known('accuracy'), metrics.known('wer')
  rates.check_metrics({'rte': ({'accuracy': more}, True), 'cola': ({}, False)})
  with pytest.raises(
    InputError, match='rte: more is better .%., cola: less is better .%.'
  ):
    rates.check_metrics(
      {'rte': ({'accuracy': more}, True), 'cola': ({'wer': less}, True)}
    )


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'methods': ('mtp',)}, "target method is 'mtp'.*'mpt'"),
    ({'variants': ('no_distillation',)}, "needs the source variant 'mpt'"),
    ({'targets': {'rte': 'mnlii'}}, "source of rte is 'mnlii'.*'mnli'"),
    ({'lengths': {'colla': {}}}, "task of LENGTHS is 'colla'.*'cola'"),
    ({'lengths': {'rte': {'input': 3}}}, "LENGTHS of rte is 'input'.*'inputs'"),
    ({'seeds': (0,)}, 'a seed of k32 is 1'),
    ({'groups': {'a': ['ret']}}, r"a task of GROUPS\['a'\] is 'ret'.*'rte'"),
    ({'tuning': Tuning(0, {}, ('k32',))}, 'tuning seed 0 is among'),
    ({'tuning': Tuning(9, {'mpt': [1.0]}, ('k32',))}, 'grids must have one'),
    ({'tuning': Tuning(9, {}, ('k33',))}, "tuned setting is 'k33'.*'k32'"),
    ({'tuning': Tuning((9, 1), {}, ('k32',))}, 'tuning seed 1 is among'),
    ({'tuning': Tuning((9, 9), {}, ('k32',))}, 'tuning seeds must differ'),
    (
      {'tuning': Tuning(9, {}, ('k32',), targets=['ret'])},
      "a target of Tuning is 'ret'.*'rte'",
    ),
    (
      {'tuning': Tuning(9, {}, ('k32',), 'halvin')},
      "search of Tuning is 'halvin'.*'halving'",
    ),
    (
      {'tuning': Tuning(9, {}, ('k32',), reduction_factor=1)},
      'reduction_factor of Tuning is 1',
    ),
    (
      {'tuning': Tuning(9, {'mpt': [1, 2], 'pt': [1, 1]}, ('k32',))},
      "grid of 'pt' has a pair of rates twice",
    ),
  ],
)
def test_wrong_plans_are_refused(changes, words):
  with pytest.raises(InputError, match=words):
    changed(**changes)


def test_missing_rates_are_refused():
  plan = changed(settings=(Setting('k4', 4, 5, 4, (0,)),))
  with pytest.raises(InputError, match="'k4' has no learning rates for 'mpt'"):
    rates.given(plan)


@pytest.mark.parametrize(
  'name', ['runs/demo', 'runs/baselines', 'studies/evidence']
)
def test_shipped_gin_files_make_a_plan(name, monkeypatch, tmp_path):
  made = []

  class Stop(Exception):
    pass

  def stop(plan, workers, executor):
    assert executor == 'local'
    made.append(plan)
    raise Stop

  monkeypatch.setattr(pipeline, 'run', stop)
  with pytest.raises(Stop):
    cli.call(
      'mpt_jax.pipeline',
      'pipeline',
      [f'gin_configs/{name}.gin'],
      [f'MODEL_DIR={str(tmp_path)!r}'],
    )
  (plan,) = made
  runs = steps.search(plan) + steps.reported(plan, rates.given(plan))
  assert len({s.name for s in runs}) == len(runs)
  # A name alone adds an arm; this one's source run is no part of the demo.
  for setting in plan.target_stage.settings:
    if setting.tuned_as is None:
      arms_with_rates = {*setting.rates, 'mpt_no_distillation'}
      assert arms_with_rates == set(arms.TARGETS)
  if name == 'studies/evidence':
    stage = plan.target_stage
    assert all(len(setting.seeds) >= 3 for setting in stage.settings)
    assert len({len(grid) for grid in stage.tuning.grids.values()}) == 1


@pytest.mark.data
def test_every_macro_is_one_of_the_gin_files():
  kinds = {}
  for step in [
    *steps_of().values(),
    *steps_of(EVERY).values(),
    *steps.search(TUNED),
  ]:
    kinds[step.gin_files, tuple(step.macros)] = step
  for step in kinds.values():
    gin.clear_config()
    cli.configure(step.gin_files, step.bindings)


def test_command_can_be_typed():
  step = steps_of()['seed0/target/k32/pt/rte/test']
  command = worker.command(step, 'D')
  assert command.startswith(
    'python -m mpt_jax.eval --gin_file=gin_configs/runs/eval.gin'
    ' --tfds_data_dir=D --gin.INITIAL_CHECKPOINT_PATH="\'B\'"'
  )
  out = subprocess.run(
    ['bash', '-c', command.replace('python -m', 'printf "%s\n"', 1)],
    capture_output=True,
    text=True,
    check=True,
  ).stdout.splitlines()
  assert out == [
    'mpt_jax.eval',
    '--gin_file=gin_configs/runs/eval.gin',
    '--tfds_data_dir=D',
    *(f'--gin.{binding}' for binding in step.bindings),
  ]


def test_finished_step_with_other_settings_is_refused(tmp_path):
  plan = changed(model_dir=str(tmp_path))
  step = steps_of(plan)['seed0/teacher/mnli']
  shared = {'backbone': 'sha256:1', 'tfds_data_dir': 'data'}
  assert not workers.is_done(step, plan.model_dir, shared)
  (tmp_path / step.name).mkdir(parents=True)
  (tmp_path / step.name / worker.STEP).write_text(
    json.dumps({'settings': worker.settings_of(step, plan.model_dir, shared)})
  )
  assert workers.is_done(step, plan.model_dir, shared)
  other = dataclasses.replace(step, macros={**step.macros, 'TRAIN_STEPS': 8})
  with pytest.raises(InputError, match='TRAIN_STEPS: 7 there, 8 here'):
    workers.is_done(other, plan.model_dir, shared)
  # Results of another backbone, or of other data, are no results.
  for name in shared:
    with pytest.raises(InputError, match=f'{name}: .* there, other here'):
      workers.is_done(step, plan.model_dir, {**shared, name: 'other'})


def test_moved_folder_is_still_finished(tmp_path):
  here = changed(model_dir='somewhere/F')
  there = changed(model_dir=str(tmp_path))
  for name, step in steps_of(here).items():
    other = steps_of(there)[name]
    assert worker.settings_of(step, here.model_dir, {}) == worker.settings_of(
      other, there.model_dir, {}
    )


def test_diverged_run_counts_as_zero(tmp_path):
  plan = changed(TUNED, model_dir=str(tmp_path))
  for step in steps.search(plan):
    if step.labels['stage'] == 'tuning':
      assert step.may_diverge
      scores = {step.labels['task']: {'accuracy': 50.0}}
      if 'mpt/0.1-0.1' in step.name:
        scores = {}
      (tmp_path / step.name).mkdir(parents=True)
      (tmp_path / step.name / 'results.json').write_text(
        json.dumps({'scores': scores})
      )
  chosen, rows = rates.tuned(plan)
  assert rows[0]['mean'] == 0.0
  assert chosen['k32']['mpt'] == (0.3, 0.1)
  assert not any(s.may_diverge for s in steps.reported(plan, chosen))


# ---------------------------------------------------------------------------
# Successive halving.

HALVED = changed(
  settings=(
    Setting('k32', 32, 30, 4, (0, 1)),
    Setting('k16', 16, 30, 4, (0,), tuned_as='k32'),
  ),
  tuning=Tuning(
    (9, 8),
    {
      'mpt': [(r, 0.1) for r in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)],
      'pt': [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    },
    ('k32',),
    search='halving',
  ),
)


def finish(plan, runs, scores):
  """Writes the results of searched runs; a score by a function of a step."""
  for step in runs:
    if step.labels['stage'] == 'tuning':
      path = pathlib.Path(plan.model_dir, step.name)
      path.mkdir(parents=True, exist_ok=True)
      task = step.labels['task']
      found = {task: {'accuracy': scores(step)}} if scores(step) else {}
      (path / 'results.json').write_text(json.dumps({'scores': found}))


def tried(runs, method='pt', task='rte', seed=9):
  """(steps, first rate) of a method's searched runs."""
  wanted = ('tuning', method, task, seed)
  return [
    (step.macros['TRAIN_STEPS'], step.labels['rates'][0])
    for step in runs
    if tuple(map(step.labels.get, ('stage', 'method', 'task', 'seed')))
    == wanted
  ]


def test_halving_trains_the_best_for_longer(tmp_path):
  pytest.importorskip('optuna', reason="needs the extra 'optuna'")
  plan = changed(HALVED, model_dir=str(tmp_path))
  first = steps.search(plan, 1)
  short = [(10, float(r)) for r in range(1, 7)]
  assert tried(first) == tried(first, seed=8) == short
  # What is not decided yet counts, with others in its place.
  assert tried(steps.search(plan)) == [*short, (30, 1.0), (30, 2.0)]
  # Of equal means the first is better; a run that diverged is the worst.
  scores = {5.0: 80.0, 2.0: 70.0, 4.0: 70.0, 6.0: None}

  def score(step):
    return scores.get(step.labels['rates'][0], 60.0)

  finish(plan, first[: len(first) // 2], score)
  assert tried(steps.search(plan)) == [*short, (30, 1.0), (30, 2.0)]
  finish(plan, first, score)
  second = steps.search(plan)
  assert tried(second) == [*short, (30, 2.0), (30, 5.0)]
  assert [s.name for s in steps.search(plan, 1)] == [s.name for s in first]
  # In the longer runs the other one wins on the seeds' mean.
  runs = [s for s in second if s.name not in {f.name for f in first}]
  late = {(2.0, 9): 90.0, (2.0, 8): 70.0, (5.0, 9): 60.0, (5.0, 8): 95.0}
  finish(
    plan,
    runs,
    lambda s: late.get((s.labels['rates'][0], s.labels['seed']), 50.0),
  )
  chosen, rows = rates.tuned(plan)
  assert chosen['k32']['pt'] == (2.0, None)
  rows = [row for row in rows if row['method'] == 'pt']
  assert [row['rates'][0] for row in rows] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
  assert [row['pruned'] for row in rows] == [
    *(True, False, True, True, False, True)
  ]
  # Of two tasks, with two seeds.
  assert [row['total_steps'] for row in rows] == [40, 160, 40, 40, 160, 40]
  said = rates.told(plan.record()['tuning'], rows)
  assert 'with seeds 9, 8, which are not' in said
  assert 'every method had 6 trials in' in said
  assert said.endswith('Steps of each method at k32: 480.')
  assert rows[1]['mean'] == 80.0
  assert rows[1]['scores'] == {'rte': 80.0, 'cola': 80.0}
  assert rows[1]['chosen']
  assert not rows[1]['on_edge']
  assert rows[5]['mean'] == 0.0
  # A shorter schedule is another run than the whole one, which a grid shares.
  grid = dataclasses.replace(HALVED.target_stage.tuning, search='grid')
  names = {s.name for s in steps.search(changed(plan, tuning=grid))}
  assert {s.name for s in runs} <= names
  assert not names & {s.name for s in first if s.labels['stage'] == 'tuning'}


def test_every_method_is_tuned_by_as_much(tmp_path):
  """With two rates or one, whatever the scores are, on the same seeds."""
  pytest.importorskip('optuna', reason="needs the extra 'optuna'")
  plan = changed(HALVED, model_dir=str(tmp_path))
  generator = np.random.default_rng(0)
  for rungs in (1, 2):
    runs = steps.search(plan, rungs)
    finish(plan, runs, lambda step: float(generator.integers(1, 4)))
  spent = {
    (method, task, seed): sum(n for n, _ in tried(runs, method, task, seed))
    for method in ('mpt', 'pt')
    for task in ('rte', 'cola')
    for seed in (9, 8)
  }
  assert set(spent.values()) == {6 * 10 + 2 * 30}
  assert len(spent) == 8


def test_halving_needs_something_to_halve():
  pytest.importorskip('optuna', reason="needs the extra 'optuna'")
  tuning = dataclasses.replace(
    HALVED.target_stage.tuning, grids={'mpt': [1, 2], 'pt': [1, 2]}
  )
  with pytest.raises(InputError, match='halves nothing: of 2 trials'):
    steps.search(changed(HALVED, tuning=tuning))


def test_data_inside_the_folder_move_with_it(tmp_path):
  data = tmp_path / 'F/data'
  data.mkdir(parents=True)
  assert run_lib._inside(str(data), str(tmp_path / 'F')) == 'data'
  other = str(tmp_path / 'other')
  assert run_lib._inside(other, str(tmp_path / 'F')) == os.path.realpath(other)


def test_unknown_backbone_is_refused():
  with pytest.raises(InputError, match="no backbone at 'no/such/backbone'"):
    run_lib.find_backbone('no/such/backbone')


# ---------------------------------------------------------------------------


TINY = ['mpt', 'mpt_nearest', 'mpt_group', 'pt', 'spot', 'spot_oracle']


# Ends the study by a signal once so many of its runs are finished.
STOPPER = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from mpt_jax import cli
from mpt_jax.study.progress import Progress
number, left = map(int, sys.argv[1:3])
finish = Progress.finish
def count(self, step):
  global left
  finish(self, step)
  left -= 1
  if not left:
    os.kill(os.getpid(), number)
Progress.finish = count
cli.main('mpt_jax.pipeline', 'pipeline', sys.argv[3:])
"""


def call(folder, *more, program=('-m', 'mpt_jax.pipeline')):
  """Runs the demo's pipeline on two sources and a target, in a few steps."""
  macros = {
    'MODEL_DIR': str(folder / 'run'),
    'INITIAL_CHECKPOINT_PATH': str(folder / 'backbone'),
    'MIXTURE_OR_TASK_MODULE': 'tests.helpers.pipeline_tasks',
    'SOURCE_MIXTURE': 'two_sources',
    'SOURCE_TASKS': ['mnli', 'sst2'],
    'TARGETS': {'rte': 'mnli'},
    'VARIANTS': ['mpt', 'no_distillation'],
    'METHODS': TINY,
    'SETTINGS': '[@k32/pipeline.Setting()]',
    'SEEDS': [0],
    'TEACHER_STEPS': 4,
    'SOURCE_STEPS': 10,
    'TARGET_STEPS': 3,
    'EVAL_EXAMPLES': 20,
  }
  bindings = [
    f'--gin.{k}={v if "@" in str(v) else repr(v)}' for k, v in macros.items()
  ]
  return children.run(
    [*program, '--gin_file=gin_configs/runs/demo.gin', *bindings, *more],
    env={**os.environ, 'XLA_FLAGS': quick.FLAGS},
    timeout=900,
  )


def times(folder):
  """When each file was written, but for what every start writes."""
  own = {folder / '.lock', folder / 'log.txt'}
  return {
    str(p): p.stat().st_mtime_ns
    for p in folder.rglob('*')
    if p.is_file() and p not in own
  }


@pytest.mark.slow
@pytest.mark.data
def test_tiny_pipeline_end_to_end_and_again(tmp_path):
  config = t5.T5Config(
    vocab_size=475,
    emb_dim=16,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=8,
    mlp_dim=32,
    mlp_activations=('relu',),
    logits_via_embedding=True,
  )
  variables = models.PromptedT5(config).get_initial_variables(
    jax.random.PRNGKey(0)
  )
  checkpoints.save_huggingface(
    str(tmp_path / 'backbone'),
    config,
    jax.tree.map(np.asarray, variables['params']),
    vocabulary_file=str(VOCABULARY),
  )
  done = call(tmp_path)
  assert done.returncode == 0, done.stderr
  assert 'SYNTHETIC DATA' in done.stdout
  run = tmp_path / 'run'
  report = json.loads((run / 'report.json').read_text())
  assert report['synthetic']
  assert report['data']['rte']['synthetic']
  assert set(report['source']) == {'mpt', 'no_distillation'}
  assert set(report['targets']['k32']) == {*TINY}
  assert all(found['tasks'] for found in report['targets']['k32'].values())
  nearest = run / 'seed0/target/k32/mpt_nearest/rte/nearest.json'
  assert json.loads(nearest.read_text())['picked'] in ('mnli', 'sst2')
  oracle = run / 'seed0/target/k32/spot_oracle/rte'
  picked_one = json.loads((oracle / 'results.json').read_text())['picked']
  np.testing.assert_array_equal(
    *(
      mpt_jax.load_prompts(str(oracle / folder / 'prompts')).compose('rte')
      for folder in ('.', f'from/{picked_one}')
    )
  )
  assert set(report['zero_shot']['tasks']) == {'mnli', 'sst2', 'rte'}
  assert set(report['majority']) == {'mnli', 'sst2', 'rte'}
  assert report['curves']['mpt']['steps'] == [float(s) for s in range(1, 11)]
  assert 'SYNTHETIC DATA' in (run / 'report.md').read_text().splitlines()[0]
  for plot in report['plots']:
    assert (run / plot).stat().st_size > 1000
  exported = np.load(run / 'exported/npy/rte.npy', allow_pickle=False)
  bundle = mpt_jax.load_prompts(str(run / 'exported/bundle/rte'))
  np.testing.assert_array_equal(exported, bundle.compose('rte'))
  assert (run / 'seed0/teacher/mnli/log.txt').stat().st_size > 0
  assert (run / 'seed0/target/k32/mpt/rte/config.gin').exists()

  before = times(run)
  again = call(tmp_path)
  assert again.returncode == 0, again.stderr
  assert 'nothing to do' in again.stderr
  assert times(run) == before

  # What tells of them otherwise is taken.
  title = "--gin.TITLE='Ours'"
  titled = call(tmp_path, title)
  assert titled.returncode == 0, titled.stderr
  assert 'nothing to do' in titled.stderr
  assert (run / 'report.md').read_text().startswith('# Ours on SYNTHETIC DATA')
  before = times(run)

  # One run is lost, with all that its folder held: only it is made again.
  lost = run / 'seed0/target/k32/pt/rte/test'
  for path in lost.iterdir():
    path.unlink()
  third = call(tmp_path, title)
  assert third.returncode == 0, third.stderr
  after = times(run)
  changed = {
    os.path.relpath(p, run)
    for p in before
    if after[p] != before[p] and 'compilation_cache' not in p
  }
  own = {str(p.relative_to(run)) for p in lost.iterdir()}
  # Only times are new: no table or picture.
  top = {'pipeline.json', 'report.json', 'report.md', 'report.html'}
  assert changed == own | top

  # Stopped as a teacher ends, and killed among the target runs.
  whole = run.rename(tmp_path / 'whole')
  for number, left in ((signal.SIGINT, 1), (signal.SIGKILL, 9)):
    stopped = call(
      tmp_path, title, program=('-c', STOPPER, str(int(number)), str(left))
    )
    assert stopped.returncode in (-number, 128 + number), stopped.stderr
    assert not (run / 'report.json').exists()
  last = call(tmp_path, title)
  assert last.returncode == 0, last.stderr
  assert '10 of ' in last.stderr
  assert fake_study.untimed(run) == fake_study.untimed(whole)

  wrong = call(tmp_path, '--gin.TEACHER_STEPS=5')
  assert wrong.returncode == 2
  last = wrong.stderr.strip().splitlines()[-1]
  # The macro that the user set, and then the step's.
  assert 'TEACHER_STEPS: 4 there, 5 here' in last
  assert '  TRAIN_STEPS: 4 there, 5 here\n' in wrong.stderr


def test_demo_is_a_name_and_a_folder_has_a_path(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ('demo', 'demo-small'):
    (tmp_path / name).mkdir()
    assert run_lib.find_backbone(name) == name
    assert run_lib.find_backbone(f'./{name}') == f'./{name}'
  with pytest.raises(InputError, match="there is no backbone at 'dema'"):
    run_lib.find_backbone('dema')
