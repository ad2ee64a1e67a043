"""Whole runs through the command line: stages, kill and resume, bad input."""

from collections import Counter
import io
import json
import os
import pathlib
import re
import shutil
import signal
import sys

import jax
import numpy as np
import pytest
import scipy.special

from mpt_jax import cli, methods
from mpt_jax.checkpoints import load_backbone, lock
from mpt_jax.checkpoints.bundle import PromptBundle, load_prompts
from mpt_jax.pretrained import PromptedT5
from tests.helpers import children
from tests.integration.conftest import CONFIG, save_backbone

ROOT = pathlib.Path(__file__).parents[2]
P = 5
STEPS = 24
# Kills itself when asked to save step 16: that checkpoint is never written.
KILLER = """
import os, signal, sys
from mpt_jax import cli
from mpt_jax.checkpoints import run
save = run.RunCheckpointer.save
def save_or_die(self, state, iterator_state):
  if int(state.step) == 16:
    os.kill(os.getpid(), signal.SIGKILL)
  save(self, state, iterator_state)
run.RunCheckpointer.save = save_or_die
cli.main('mpt_jax.train', 'train', sys.argv[1:])
"""


def arguments(world, stage, model_dir, **macros):
  """The command line of a tiny run of a stage."""
  settings = {
    'INITIAL_CHECKPOINT_PATH': str(world / 'backbone'),
    'MODEL_DIR': str(model_dir),
    'PROMPT_LENGTH': P,
    'TASK_FEATURE_LENGTHS': {'inputs': 60, 'targets': 7},
    'BATCH_SIZE': 4,
    'TRAIN_STEPS': STEPS,
    'CHECKPOINT_PERIOD': 8,
    'LOG_PERIOD': 8,
    'EVAL_EXAMPLES': 7,
    'EVAL_STEPS': 2,
    **macros,
  }
  return [
    f'--gin_file=gin_configs/runs/{stage}.gin',
    f'--tfds_data_dir={world / "data"}',
    *(f'--gin.{name}={value!r}' for name, value in settings.items()),
  ]


@pytest.fixture(scope='module')
def bundles(world):
  """Random finished prompts: two teachers and a source bundle."""
  backbone = load_backbone(str(world / 'backbone'))
  rng = np.random.RandomState(0)
  common = {
    'backbone_name': backbone.name,
    'backbone_fingerprint': backbone.fingerprint,
  }
  for task in ('mnli', 'sst2'):
    prompt = rng.normal(size=(P, CONFIG.emb_dim)).astype(np.float32)
    PromptBundle(
      method='soft',
      stage='teacher',
      task_names=(task,),
      arrays={'prompt': prompt},
      **common,
    ).save(str(world / 'teachers' / task))
  method = methods.MultitaskPrompts(P)
  arrays = method.fresh(CONFIG, 2, jax.random.PRNGKey(3))
  PromptBundle(
    method='multitask',
    stage='source',
    task_names=('mnli', 'sst2'),
    arrays={k: np.asarray(v) for k, v in arrays.items()},
    **common,
  ).save(str(world / 'source'))
  return world


STAGES = {
  'teacher': {'MIXTURE_OR_TASK_NAME': 'sst2'},
  # Of two tasks, drawn by stochastic task sampling.
  'source': {
    'MIXTURE_OR_TASK_NAME': 'two_sources',
    'MIXTURE_OR_TASK_MODULE': 'tests.helpers.pipeline_tasks',
    'PROMPT_TASKS': ['mnli', 'sst2'],
    'TEACHER_PROMPTS': '{world}/teachers/{{task}}',
    'PADDING': 'pack',
  },
  'target': {
    'MIXTURE_OR_TASK_NAME': 'rte',
    'SOURCE_PROMPTS': '{world}/source',
    'NUM_SHOTS': 16,
  },
}


def stage_macros(world, stage):
  return {
    k: v.format(world=world) if isinstance(v, str) else v
    for k, v in STAGES[stage].items()
  }


def run_code(code, *argv):
  """Runs code in a process of its own; returns what became of it."""
  return children.run(['-c', code, *map(str, argv)])


@pytest.mark.slow
@pytest.mark.parametrize('stage', sorted(STAGES))
def test_killed_and_resumed_equals_uninterrupted(bundles, stage, tmp_path):
  macros = stage_macros(bundles, stage)
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  cli.main('mpt_jax.train', 'train', arguments(bundles, stage, whole, **macros))
  argv = arguments(bundles, stage, killed, **macros)
  done = run_code(KILLER, *argv)
  assert done.returncode == -signal.SIGKILL, done.stderr
  assert not (killed / 'prompts').exists()
  assert sorted(os.listdir(killed / 'checkpoints')) == ['8']
  import gin

  gin.clear_config()
  cli.main('mpt_jax.train', 'train', argv)
  want = load_prompts(str(whole / 'prompts'))
  got = load_prompts(str(killed / 'prompts'))
  assert got.step == want.step == STEPS
  # A product knows how its tasks' text is written.
  assert got.texts == want.texts
  assert set(got.texts) == set(got.task_names)
  assert all(text.inputs and text.labels for text in got.texts.values())
  start = load_prompts(str(bundles / 'source')).arrays
  for name, array in want.arrays.items():
    np.testing.assert_array_equal(got.arrays[name], array, err_msg=name)
    if stage == 'target' and name == 'shared_prompt':
      assert (array != start[name]).mean() > 0.9
  # The run's numbers are written once, not twice, for each step.
  lines = (killed / 'metrics.jsonl').read_text().splitlines()
  steps = [int(line.split('"step": ')[1].split(',')[0]) for line in lines]
  assert steps == [8, 16, 24, 24]  # The last is the final evaluation.
  if stage == 'target':
    chosen = json.loads((killed / 'few_shot.json').read_text())
    assert chosen == json.loads((whole / 'few_shot.json').read_text())
    assert (chosen['num_shots'], chosen['per_class']) == (16, True)
    targets = [e['target'] for e in chosen['examples']['rte']]
    assert Counter(targets) == {'entailment': 16, 'not_entailment': 16}
    ids = [e['idx'] for e in chosen['examples']['rte']]
    assert len(set(ids)) == 32
  if stage == 'source':
    last = json.loads(lines[-2])
    drawn = [last['train/examples/mnli'], last['train/examples/sst2']]
    assert min(drawn) > 0
    assert sum(drawn) > 4 * STEPS  # Packed rows hold more than one.
  # A third start has nothing to do and changes nothing.
  before = (killed / 'results.json').stat().st_mtime_ns
  gin.clear_config()
  cli.main('mpt_jax.train', 'train', argv)
  assert (killed / 'results.json').stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_run_goes_on_with_other_settings_for_memory(bundles, tmp_path):
  """Its last third in parts, scanned, split: the same prompts and scores."""
  import gin

  folder = tmp_path / 'run'
  macros = stage_macros(bundles, 'source')
  cli.main(
    'mpt_jax.train', 'train', arguments(bundles, 'source', folder, **macros)
  )
  want = load_prompts(str(folder / 'prompts'))
  scores = json.loads((folder / 'results.json').read_text())
  # As if it had been stopped after step 16.
  (folder / 'results.json').unlink()
  shutil.rmtree(folder / 'prompts')
  shutil.rmtree(folder / 'checkpoints' / '24')
  macros.update(
    MICROBATCHES=2, REMAT_LAYERS=True, SCAN_LAYERS=True, SHARD_BACKBONE=True
  )
  gin.clear_config()
  cli.main(
    'mpt_jax.train', 'train', arguments(bundles, 'source', folder, **macros)
  )
  got = load_prompts(str(folder / 'prompts'))
  for name, array in want.arrays.items():
    np.testing.assert_allclose(got.arrays[name], array, rtol=2e-3, atol=2e-4)
  assert json.loads((folder / 'results.json').read_text()) == scores


@pytest.mark.slow
def test_evaluation_in_bfloat16_with_a_scanned_backbone(bundles, tmp_path):
  macros = {
    'INITIAL_CHECKPOINT_PATH': str(bundles / 'backbone'),
    'PROMPTS': str(bundles / 'source'),
    'MIXTURE_OR_TASK_NAME': 'sst2',
    'TASK_FEATURE_LENGTHS': {'inputs': 60, 'targets': 7},
    'EVAL_SPLIT': 'validation',
    'EVAL_EXAMPLES': 5,
    'BATCH_SIZE': 4,
    'MODEL_DIR': str(tmp_path),
    'DTYPE': 'bfloat16',
    'SCAN_LAYERS': True,
    'SHARD_BACKBONE': True,
  }
  cli.main(
    'mpt_jax.eval',
    'evaluate',
    [
      '--gin_file=gin_configs/runs/eval.gin',
      f'--tfds_data_dir={bundles / "data"}',
      *(f'--gin.{name}={value!r}' for name, value in macros.items()),
    ],
  )
  scores = json.loads((tmp_path / 'results.json').read_text())['scores']
  assert 0 <= scores['sst2']['accuracy'] <= 100


# Asks itself to stop while it takes its tenth step.
STOPPER = """
import os, signal, sys
from mpt_jax import cli
from mpt_jax.engine import (trainer)
put_batch, calls = trainer.put_batch, []
def put_and_stop(batch, mesh, **kwargs):
  calls.append(1)
  if len(calls) == 10:
    os.kill(os.getpid(), signal.SIGTERM)
  return put_batch(batch, mesh, **kwargs)
trainer.put_batch = put_and_stop
cli.main('mpt_jax.train', 'train', sys.argv[1:])
"""


def contents(folder):
  """Path -> bytes of each file in a folder."""
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(folder.rglob('*'))
    if path.is_file()
  }


@pytest.mark.slow
def test_asked_to_stop_and_resumed(bundles, tmp_path):
  # Step 10 is inside the window of steps 9 to 12.
  macros = stage_macros(bundles, 'source') | {'LOG_PERIOD': 4, 'EVAL_STEPS': 0}
  teachers = contents(bundles / 'teachers')
  whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
  cli.main(
    'mpt_jax.train', 'train', arguments(bundles, 'source', whole, **macros)
  )
  argv = arguments(bundles, 'source', stopped, **macros)
  done = run_code(STOPPER, *argv)
  assert done.returncode == 128 + signal.SIGTERM, done.stderr
  assert done.stderr.splitlines()[-1] == (
    'stopped at step 10 of 24; its state is saved, the same command resumes'
  )
  assert sorted(os.listdir(stopped / 'checkpoints')) == ['10', '8']
  import gin

  gin.clear_config()
  cli.main('mpt_jax.train', 'train', argv)
  want = load_prompts(str(whole / 'prompts')).arrays
  got = load_prompts(str(stopped / 'prompts')).arrays
  for name, array in want.items():
    np.testing.assert_array_equal(got[name], array, err_msg=name)
  logged = []
  for folder in (whole, stopped):
    lines = (folder / 'metrics.jsonl').read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
      for name in ('steps_per_second', 'examples_per_second', 'seconds_left'):
        row.pop(f'train/{name}', None)
    logged.append(rows)
  assert len(logged[0]) >= 6
  assert logged[0] == logged[1]
  # What several runs share is only read.
  assert contents(bundles / 'teachers') == teachers


@pytest.mark.slow
def test_the_best_prompts_are_kept(bundles, tmp_path):
  import gin

  folder = tmp_path / 'run'
  macros = stage_macros(bundles, 'source') | {
    'EVAL_PERIOD': 2,
    'EVAL_EXAMPLES': 40,
    'EVAL_STEPS': 0,
    'KEEP_BEST': True,
    'PATIENCE': 3,
    'TEST_SPLIT': 'test',
    'TRAIN_STEPS': 60,
  }
  argv = arguments(bundles, 'source', folder, **macros)
  cli.main('mpt_jax.train', 'train', argv)
  results = json.loads((folder / 'results.json').read_text())
  rows = [
    json.loads(line)
    for line in (folder / 'metrics.jsonl').read_text().splitlines()
  ]
  product = load_prompts(str(folder / 'prompts'))
  assert product.task_names == ('mnli', 'sst2')
  waited = {}
  for task in product.task_names:
    key = f'eval/{task}/accuracy'
    scores = [(r['step'], r[key]) for r in rows if key in r]
    top = max(score for _, score in scores)
    first = next(step for step, score in scores if score == top)
    assert results['best_steps'][task] == first
    assert results['scores'][task]['accuracy'] == top
    assert set(results['test_scores'][task]) == set(results['scores'][task])
    for split in ('train', 'validation', 'test'):
      assert results['examples'][split][task]['cut_inputs'] == 0
    floors = results['floors'][task]
    for name in ('majority', 'commonest', 'invalid'):
      key = f'floor/{task}/{name}'
      assert (
        floors[name] == {r['step']: r[key] for r in rows if key in r}[first]
      )
    assert floors['majority_scores'] == {
      'accuracy': pytest.approx(floors['majority'])
    }
    # The best of many evaluations has no fair interval; a test has.
    assert results['intervals'] == {}
    low, high = results['test_intervals'][task]['accuracy']
    assert low <= results['test_scores'][task]['accuracy'] <= high
    assert results['metrics'][task]['invalid']['better'] == 'less'
    kept = load_prompts(str(folder / 'best' / task))
    assert kept.step == first
    np.testing.assert_array_equal(kept.compose(task), product.compose(task))
    waited[task] = sum(step > first for step, _ in scores)
  # Both tasks have waited for three evaluations; the last one only just.
  assert min(waited.values()) == 3
  assert results['step'] == rows[-1]['step'] < 60
  # The same again has nothing to do.
  gin.clear_config()
  cli.main('mpt_jax.train', 'train', argv)


HALF_KNOWN = """
import seqio
from mpt_jax import data
from tasks import metrics

ROWS = {
  'train': [{'text': 'the film was great', 'label': i % 2} for i in range(8)],
  'validation': [{'text': 'the food was bad'}] * 3,
}
data.register_task(
  'half_known', ROWS.__getitem__, inputs='{text}', labels=('no', 'yes'),
  splits=tuple(ROWS), metric_fns=[metrics.accuracy],
)
data.register_task(
  'half_long', ROWS.__getitem__, inputs='{text}', targets='{text}',
  splits=('train',), metric_fns=[metrics.accuracy],
)
seqio.MixtureRegistry.add('half_mix', ['half_known', 'sst2'], 1.0)
"""


@pytest.fixture
def half_known(tmp_path, monkeypatch):
  """The module of two tasks: one whose validation split has no labels."""
  import seqio

  (tmp_path / 'half_known_tasks.py').write_text(HALF_KNOWN)
  monkeypatch.syspath_prepend(tmp_path)
  yield 'half_known_tasks'
  sys.modules.pop('half_known_tasks', None)
  seqio.MixtureRegistry.remove('half_mix')
  for name in ('half_known', 'half_long'):
    seqio.TaskRegistry.remove(name)


@pytest.mark.parametrize(
  ('name', 'macros', 'message'),
  [
    ('half_known', {}, "split 'validation' of 'half_known' has no labels"),
    (
      'half_known',
      {'EVAL_SPLIT': 'train', 'TEST_SPLIT': 'validation'},
      "split 'validation' of 'half_known' has no labels",
    ),
    (
      'half_mix',
      {
        'KEEP_BEST': True,
        'EVAL_PERIOD': 8,
        'PROMPT_TASKS': ['half_known', 'sst2'],
      },
      "KEEP_BEST needs a score of every task, .* of 'half_known' has a label",
    ),
    ('half_known', {'EVAL_SPLIT': 'dev'}, "no split 'dev'"),
    (
      'sst2',
      {'PATIENCE': 2, 'EVAL_PERIOD': 8, 'BEST_METRIC': 'f1'},
      "BEST_METRIC='f1' is no metric of the task 'sst2'; it has accuracy,",
    ),
    (
      'half_long',
      {
        'EVAL_SPLIT': 'train',
        'TASK_FEATURE_LENGTHS': {'inputs': 20, 'targets': 3},
      },
      "'half_long', split 'train': 8 of 8 targets are longer than 3 tokens",
    ),
  ],
)
def test_what_could_not_be_scored_ends_a_run_before_it_trains(
  world, tmp_path, half_known, capsys, name, macros, message
):
  argv = arguments(
    world,
    'teacher',
    tmp_path / 'run',
    MIXTURE_OR_TASK_NAME=name,
    MIXTURE_OR_TASK_MODULE=half_known,
    **macros,
  )
  with pytest.raises(SystemExit) as error:
    cli.main('mpt_jax.train', 'train', argv)
  assert error.value.code == 2
  [line] = re.findall('^error: .*', capsys.readouterr().err, re.MULTILINE)
  assert re.search(message, line)
  assert not (tmp_path / 'run').exists()


def test_a_second_pipeline_in_one_folder(capsys, tmp_path):
  folder = str(tmp_path / 'demo')
  with lock.hold(folder), pytest.raises(SystemExit) as error:
    cli.main(
      'mpt_jax.pipeline',
      'pipeline',
      [
        '--gin_file=gin_configs/runs/demo.gin',
        f'--gin.MODEL_DIR={folder!r}',
      ],
    )
  assert error.value.code == 2
  said = capsys.readouterr().err
  assert f'{folder} is in use by process {os.getpid()} on ' in said
  assert os.listdir(folder) == ['.lock']


def test_a_folder_in_use(bundles, capsys, tmp_path):
  folder = str(tmp_path / 'run')
  with lock.hold(folder):
    error = train_fails(capsys, bundles, 'teacher', folder)
  assert f'{folder} is in use by process {os.getpid()} on ' in error
  assert not (tmp_path / 'run/run_config.json').exists()


def test_best_prompts_need_evaluations(bundles, capsys, tmp_path):
  error = train_fails(
    capsys, bundles, 'teacher', tmp_path / 'r', KEEP_BEST=True
  )
  assert 'set EVAL_PERIOD too' in error


def fails(capsys, module, function, argv):
  """Runs an entry point that must refuse; returns its one error line."""
  with pytest.raises(SystemExit) as e:
    cli.main(module, function, argv)
  assert e.value.code == 2
  lines = capsys.readouterr().err.strip().splitlines()
  errors = [line for line in lines if line.startswith('error: ')]
  assert errors == lines[-1:], lines
  assert 'Traceback' not in '\n'.join(lines)
  return errors[0]


def train_fails(capsys, world, stage, model_dir, **macros):
  argv = arguments(
    world, stage, model_dir, **{**stage_macros(world, stage), **macros}
  )
  return fails(capsys, 'mpt_jax.train', 'train', argv)


def test_unknown_task(bundles, capsys, tmp_path):
  error = train_fails(
    capsys, bundles, 'teacher', tmp_path / 'r', MIXTURE_OR_TASK_NAME='sst3'
  )
  assert "'sst3'" in error
  assert "'sst2'" in error
  assert not (tmp_path / 'r').exists()


def test_more_shots_than_examples(bundles, capsys, tmp_path):
  error = train_fails(capsys, bundles, 'target', tmp_path / 'r', NUM_SHOTS=5000)
  assert 'NUM_SHOTS=5000' in error
  assert not (tmp_path / 'r').exists()


def test_a_mixture_of_an_unknown_task(bundles, capsys, tmp_path, monkeypatch):
  (tmp_path / 'bad_mixture.py').write_text(
    "import seqio\nseqio.MixtureRegistry.add('m', [('mnli', 1), ('sst3', 1)])\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  error = train_fails(
    capsys,
    bundles,
    'teacher',
    tmp_path / 'r',
    MIXTURE_OR_TASK_MODULE='bad_mixture',
    MIXTURE_OR_TASK_NAME='m',
  )
  assert "names 'sst3'" in error
  assert "'sst2'" in error


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('{"text": "x", "label": "god"}', "3: label 'god' is outside"),
    ('{"text": "x", "lable": "bad"}', "3: no column 'label'"),
    ('{"text"', '3: no JSON'),
    (None, "split 'train' is empty"),
  ],
)
def test_a_mistake_in_own_data(
  bundles, capsys, tmp_path, monkeypatch, line, message
):
  name = f'own_{abs(hash(message))}'
  good = '{"text": "x", "label": "bad"}\n'
  path = tmp_path / 'train.jsonl'
  path.write_text('' if line is None else f'{good}{good}{line}\n')
  (tmp_path / f'{name}.py').write_text(
    'from mpt_jax import data\n'
    f'data.register_task({name!r}, {str(path)!r}, inputs="{{text}}",'
    ' labels=("bad", "good"))\n'
  )
  monkeypatch.syspath_prepend(tmp_path)
  error = train_fails(
    capsys,
    bundles,
    'teacher',
    tmp_path / 'r',
    MIXTURE_OR_TASK_MODULE=name,
    MIXTURE_OR_TASK_NAME=name,
  )
  assert message in error
  assert str(path) in error
  assert not (tmp_path / 'r').exists()


def test_missing_data(bundles, capsys, tmp_path):
  error = train_fails(
    capsys, bundles, 'teacher', tmp_path / 'r', MIXTURE_OR_TASK_NAME='cola'
  )
  assert 'glue/cola' in error
  assert str(bundles / 'data') in error
  assert not (tmp_path / 'r').exists()


def test_lengths_shorter_than_the_prompt(bundles, capsys, tmp_path):
  error = train_fails(
    capsys,
    bundles,
    'teacher',
    tmp_path / 'r',
    TASK_FEATURE_LENGTHS={'inputs': P, 'targets': 4},
  )
  assert f'PROMPT_LENGTH={P}' in error
  assert not (tmp_path / 'r').exists()


def test_batch_not_divisible_by_the_devices(bundles, capsys, tmp_path):
  error = train_fails(capsys, bundles, 'teacher', tmp_path / 'r', BATCH_SIZE=5)
  assert 'BATCH_SIZE = 5 is not divisible by the 2' in error
  assert not (tmp_path / 'r').exists()


@pytest.mark.parametrize(
  ('macros', 'message'),
  [
    ({'MICROBATCHES': 4}, 'MICROBATCHES = 4 does not divide the 2 rows'),
    ({'NUM_PARTITIONS': 3}, 'num_partitions = 3 does not divide the 2'),
    ({'DTYPE': 'bfloat'}, "dtype is 'bfloat', .*did you mean 'bfloat16'"),
  ],
)
def test_settings_for_devices_and_memory(
  bundles, capsys, tmp_path, macros, message
):
  error = train_fails(capsys, bundles, 'teacher', tmp_path / 'r', **macros)
  assert re.search(message, error)
  assert not (tmp_path / 'r').exists()


def test_a_backbone_that_trains_is_not_scanned(bundles, capsys, tmp_path):
  settings = {
    'INITIAL_CHECKPOINT_PATH': str(bundles / 'backbone'),
    'MIXTURE_OR_TASK_NAME': 'sst2',
    'MODEL_DIR': str(tmp_path / 'r'),
    'BATCH_SIZE': 4,
    'SCAN_LAYERS': True,
  }
  error = fails(
    capsys,
    'mpt_jax.train',
    'train',
    [
      '--gin_file=gin_configs/runs/finetune.gin',
      f'--tfds_data_dir={bundles / "data"}',
      *(f'--gin.{name}={value!r}' for name, value in settings.items()),
    ],
  )
  assert 'SCAN_LAYERS = True stacks the layers of a frozen backbone' in error
  assert not (tmp_path / 'r').exists()


def test_tasks_that_the_model_lacks(bundles, capsys, tmp_path):
  error = train_fails(
    capsys,
    bundles,
    'source',
    tmp_path / 'r',
    PROMPT_TASKS=['sst2'],
    TEACHER_PROMPTS=str(bundles / 'teachers/{task}'),
  )
  assert "['mnli']" in error
  assert not (tmp_path / 'r').exists()


def test_missing_teacher(bundles, capsys, tmp_path):
  error = train_fails(
    capsys,
    bundles,
    'source',
    tmp_path / 'r',
    TEACHER_PROMPTS=[str(bundles / 'teachers/mnli')],
  )
  assert "no teacher for 'sst2'" in error


def test_checkpoint_of_another_shape(bundles, capsys, tmp_path):
  error = train_fails(
    capsys, bundles, 'teacher', tmp_path / 'r', MODEL='t5_small'
  )
  assert 'vocab_size 475' in error
  assert '32128' in error
  assert not (tmp_path / 'r').exists()


def test_bundle_of_another_backbone(bundles, capsys, tmp_path):
  other = save_backbone(ROOT, tmp_path / 'other', seed=9)
  error = train_fails(
    capsys, bundles, 'target', tmp_path / 'r', INITIAL_CHECKPOINT_PATH=other
  )
  assert 'were trained on backbone' in error
  assert not (tmp_path / 'r' / 'checkpoints').exists()


@pytest.mark.slow
def test_model_dir_of_another_run(bundles, capsys, tmp_path):
  folder = tmp_path / 'run'
  argv = arguments(
    bundles, 'teacher', folder, **stage_macros(bundles, 'teacher')
  )
  cli.main('mpt_jax.train', 'train', [*argv, '--gin.TRAIN_STEPS=1'])
  import gin

  gin.clear_config()
  error = fails(
    capsys,
    'mpt_jax.train',
    'train',
    [*argv, '--gin.TRAIN_STEPS=1', '--gin.RANDOM_SEED=7'],
  )
  assert str(folder) in error
  assert error.endswith('RANDOM_SEED: 0 there, 7 here')


def test_eval_infer_export(bundles, tmp_path, capsys):
  """What a run made is scored, answered with and exported by command."""
  common = {
    'INITIAL_CHECKPOINT_PATH': str(bundles / 'backbone'),
    'PROMPTS': str(bundles / 'source'),
    'MIXTURE_OR_TASK_NAME': 'sst2',
    'TASK_FEATURE_LENGTHS': {'inputs': 60, 'targets': 7},
    'EVAL_EXAMPLES': 5,
    'BATCH_SIZE': 4,
  }

  def run(module, function, file, **macros):
    import gin

    gin.clear_config()
    cli.main(
      module,
      function,
      [
        f'--gin_file=gin_configs/runs/{file}.gin',
        f'--tfds_data_dir={bundles / "data"}',
        *(f'--gin.{k}={v!r}' for k, v in macros.items()),
      ],
    )

  run(
    'mpt_jax.eval',
    'evaluate',
    'eval',
    MODEL_DIR=str(tmp_path / 'eval'),
    **common,
  )
  results = json.loads((tmp_path / 'eval/results.json').read_text())
  assert set(results['scores']) == {'sst2'}
  assert set(results['scores']['sst2']) == {'accuracy', 'invalid'}
  assert results['split'] == 'test'
  assert results['synthetic_data'] is True
  counted = results['examples']['test']['sst2']
  assert (counted['examples'], counted['cut_targets']) == (5, 0)
  assert counted['longest_target'] == 2 < counted['longest_input']
  assert results['scored'] == {'sst2': 5}
  floors = results['floors']['sst2']
  assert {'majority', 'majority_answer', 'invalid', 'commonest'} < set(floors)
  low, high = results['intervals']['sst2']['accuracy']
  assert low <= results['scores']['sst2']['accuracy'] <= high
  said = (tmp_path / 'eval/predictions.jsonl').read_text().splitlines()
  said = [json.loads(line) for line in said]
  assert set(said[0]) == {
    *('id', 'index', 'task', 'input', 'target', 'output', 'answer', 'score'),
  }
  scores = [line['score'] for line in said]
  assert np.mean(scores) == pytest.approx(results['scores']['sst2']['accuracy'])
  counts = results['confusion']['sst2']
  assert counts['labels'] == ['negative', 'positive']
  assert np.sum(counts['matrix']) == 5
  told = (tmp_path / 'eval/confusion.txt').read_text().splitlines()
  assert told[0].split() == ['sst2:', 'target', '\\', 'answer'] + [
    *('negative', 'positive', 'invalid')
  ]
  run(
    'mpt_jax.infer',
    'infer',
    'infer',
    OUTPUT=str(tmp_path / 'a.jsonl'),
    **common,
  )
  answers = [
    json.loads(line) for line in (tmp_path / 'a.jsonl').read_text().splitlines()
  ]
  assert [a['index'] for a in answers] == list(range(5))
  assert all(a['inputs'].startswith('sst2 sentence: ') for a in answers)
  # Ranking its label words gives what the model's own scores give.
  run(
    'mpt_jax.infer',
    'infer',
    'infer',
    OUTPUT=str(tmp_path / 'r.jsonl'),
    RANK_LABELS=True,
    **common,
  )
  ranked = [
    json.loads(line) for line in (tmp_path / 'r.jsonl').read_text().splitlines()
  ]
  model = PromptedT5.from_pretrained(
    str(bundles / 'backbone'), common['PROMPTS']
  )
  for answer, line in zip(answers, ranked, strict=True):
    words = ('negative', 'positive')
    scores = model.score([line['inputs']] * 2, words, task='sst2')
    shares = scipy.special.softmax(np.array(scores, np.float64))
    got = [line['probabilities'][word] for word in words]
    np.testing.assert_allclose(got, shares, atol=1e-5)
    assert line['prediction'] == words[int(np.argmax(got))]
    assert list(line) == [*answer, 'probabilities']
    for key in ('task', 'index', 'inputs', 'targets'):
      assert line[key] == answer[key]
  # Another task's prompt, as in zero-shot transfer, on a mixture too.
  run(
    'mpt_jax.eval',
    'evaluate',
    'eval',
    MODEL_DIR=str(tmp_path / 'other'),
    PROMPT_TASK='mnli',
    **common
    | {
      'MIXTURE_OR_TASK_NAME': 'two_sources',
      'MIXTURE_OR_TASK_MODULE': 'tests.helpers.pipeline_tasks',
    },
  )
  results = json.loads((tmp_path / 'other/results.json').read_text())
  assert set(results['scores']) == {'mnli', 'sst2'}
  run(
    'mpt_jax.export',
    'export',
    'export',
    PROMPTS=common['PROMPTS'],
    OUTPUT=str(tmp_path / 'npy'),
  )
  source = load_prompts(common['PROMPTS'])
  for task in ('mnli', 'sst2'):
    np.testing.assert_array_equal(
      np.load(tmp_path / f'npy/{task}.npy', allow_pickle=False),
      source.compose(task),
    )


def _answer(bundles, capsys, stream, monkeypatch, **macros):
  """Answers lines from standard input; returns what came out."""
  import gin

  gin.clear_config()
  monkeypatch.setattr('sys.stdin', io.StringIO(stream))
  settings = {
    'INITIAL_CHECKPOINT_PATH': str(bundles / 'backbone'),
    'PROMPTS': str(bundles / 'source'),
    'OUTPUT': '-',
    'MAX_DECODE_LENGTH': 5,
    'BATCH_SIZE': 2,
    **macros,
  }
  cli.main(
    'mpt_jax.infer',
    'infer',
    [
      '--gin_file=gin_configs/runs/answer.gin',
      *(f'--gin.{k}={v!r}' for k, v in settings.items()),
    ],
  )
  return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


LINES = (
  'ann bought a kite\n\n'
  '{"inputs": "the film was great", "task": "mnli", "id": 7}\n'
  '{"inputs": "the film was great"}\n'
)


@pytest.mark.slow
def test_lines_of_text_are_answered(bundles, capsys, monkeypatch, tmp_path):
  answers = _answer(bundles, capsys, LINES, monkeypatch, PROMPT_TASK='sst2')
  # An empty line has its answer too, so that answers stay in step.
  assert [a['index'] for a in answers] == [0, 1, 2, 3]
  assert [a['task'] for a in answers] == ['sst2', 'sst2', 'mnli', 'sst2']
  assert answers[2]['id'] == 7
  model = PromptedT5.from_pretrained(
    str(bundles / 'backbone'), prompts=str(bundles / 'source')
  )
  assert answers[1]['prediction'] is None
  for a in answers[:1] + answers[2:]:
    [expected] = model.generate(
      [a['inputs']], task=a['task'], max_decode_length=5
    )
    assert a['prediction'] == expected
  (tmp_path / 'in.txt').write_text(LINES)
  out = tmp_path / 'new/out.jsonl'
  _answer(
    bundles,
    capsys,
    '',
    monkeypatch,
    PROMPT_TASK='sst2',
    INPUT=str(tmp_path / 'in.txt'),
    OUTPUT=str(out),
  )
  assert [json.loads(line) for line in out.read_text().splitlines()] == answers
  assert os.listdir(out.parent) == ['out.jsonl']


@pytest.mark.parametrize(
  ('stream', 'macros', 'message'),
  [
    ('a\n{"inputs": 3}\n', {}, "-:2: 'inputs' is 3, expected text"),
    ('{"input": "x"}\n', {}, "-:1: no 'inputs'; there is ['input']"),
    ('{x\n', {}, '-:1: no JSON'),
    ('a\n', {'PROMPT_TASK': 'sst3'}, "did you mean 'sst2'"),
    ('a\n', {'PROMPT_TASK': None}, 'task is one of mnli, sst2'),
    ('a\n', {'INPUT': '/nowhere'}, 'INPUT /nowhere cannot be read'),
    ('a\n', {'OUTPUT': '/proc/nowhere/x'}, 'cannot be written'),
    ('a\n', {'BATCH_SIZE': 0}, 'batch_size is 0'),
  ],
)
def test_lines_that_cannot_be_answered(
  bundles, capsys, monkeypatch, stream, macros, message
):
  macros = {'PROMPT_TASK': 'sst2', **macros}
  with pytest.raises(SystemExit) as e:
    _answer(bundles, capsys, stream, monkeypatch, **macros)
  assert e.value.code == 2
  assert message in capsys.readouterr().err
