"""Runs from a notebook, and runs of several tasks at once.

Guards against a Python call that is another run than the command's, and
against one task whose failure costs the others.
"""

import json
import logging
import os
import subprocess
import sys

import gin
import numpy as np
import pytest

import mpt_jax
from mpt_jax import cli, methods
from mpt_jax.engine import trainer
from mpt_jax.engine.settings import Devices, Evaluation, Logging
from mpt_jax.types import InputError
from tests.integration.test_runs import ROOT, P, arguments

MACROS = {
  'MIXTURE_OR_TASK_NAME': 'two_sources',
  'MIXTURE_OR_TASK_MODULE': 'tests.helpers.pipeline_tasks',
  'EACH_TASK': True,
  'TRAIN_STEPS': 8,
  'LOG_PERIOD': 4,
  'EVAL_STEPS': 0,
  # Then both have one shape.
  'PADDING': 'max',
}


def train(world, folder, tasks, **settings):
  """The run of `MACROS` from Python."""
  return mpt_jax.train(
    backbone=str(world / 'backbone'),
    method=methods.SoftPrompts(P, init=methods.SampledVocabulary()),
    tasks=tasks,
    dataset={
      'module': 'tests.helpers.pipeline_tasks',
      'task_feature_lengths': {'inputs': 60, 'targets': 7},
      'batch_size': 4,
    },
    steps=8,
    model_dir=str(folder),
    evaluation=Evaluation(num_examples=7),
    devices=Devices(padding='max'),
    logging=Logging(log_period=4, checkpoint_period=8),
    **settings,
  )


@pytest.fixture(scope='module')
def folder(world, tmp_path_factory):
  """A teacher for each task of a mixture; the first one's loss explodes."""
  folder = tmp_path_factory.mktemp('teachers') / 'run'
  check = trainer.check_finite

  def explode(state, names):
    if names == ('mnli',):
      state = state.replace(bad_step=state.step)
    check(state, names)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(trainer, 'check_finite', explode)
    gin.clear_config()
    argv = arguments(world, 'teacher', folder, **MACROS)
    with pytest.raises(SystemExit) as e:
      cli.main('mpt_jax.train', 'train', argv)
  assert e.value.code == 2
  return folder


@pytest.mark.slow
def test_one_that_fails_does_not_stop_the_others(world, folder, capsys):
  log = (folder / 'log.txt').read_text()
  assert 'mnli failed: the loss was not finite at step 4' in log
  assert not (folder / 'mnli/prompts').exists()
  assert (folder / 'sst2/prompts').is_dir()
  # The command that works is for this task alone.
  [line] = [x for x in log.splitlines() if 'for example: ' in x]
  assert f'MODEL_DIR="\'{folder}/mnli-2\'"' in line
  assert 'MIXTURE_OR_TASK_NAME="\'mnli\'"' in line
  assert line.count('MIXTURE_OR_TASK_NAME') == 1
  assert '--gin.EACH_TASK=False' in line
  assert log.splitlines()[-1].startswith('error: 1 of 2 runs failed: mnli: ')

  # The same command goes on with what is missing.
  trainer.make_train_step.cache_clear()
  before = (folder / 'sst2/results.json').stat().st_mtime_ns
  (folder / 'mnli/run_config.json').unlink()
  argv = arguments(world, 'teacher', folder, **MACROS)
  cli.main('mpt_jax.train', 'train', argv)
  told = capsys.readouterr().err
  assert told.count('is finished; nothing to do') == 1
  assert f'{folder}/sst2 is finished' in told
  assert told.count('loading the backbone from') == 1
  last = [line.split(' ', 1)[1].split() for line in told.splitlines()[-2:]]
  assert [words[0] for words in last] == ['mnli', 'sst2']
  assert [words[1] for words in last] == ['accuracy', 'accuracy']
  assert (folder / 'sst2/results.json').stat().st_mtime_ns == before

  # The same from Python is the same runs, and they are finished.
  runs = train(world, folder, ('mnli', 'sst2'))
  assert list(runs) == ['mnli', 'sst2']
  results = json.loads((folder / 'sst2/results.json').read_text())
  assert runs['sst2'].scores == results['scores']
  assert runs['mnli'].bundle.task_names == ('mnli',)
  assert runs['mnli'].model.backbone is runs['sst2'].model.backbone


@pytest.mark.slow
def test_a_run_in_python_is_that_of_the_command(
  world, folder, tmp_path, caplog, capsys
):
  caplog.set_level(logging.WARNING)
  compiled = trainer.make_train_step.cache_info().misses
  run = train(world, tmp_path / 'run', 'sst2')
  # Compiled once for tasks of one shape, whoever runs them.
  assert trainer.make_train_step.cache_info().misses <= compiled + 1
  told = capsys.readouterr().err
  assert '| 8/8 [' in told
  assert 'loss ' in told
  for name in ('prompts.safetensors', 'prompt_config.json'):
    want = (folder / 'sst2/prompts' / name).read_bytes()
    assert (tmp_path / 'run/prompts' / name).read_bytes() == want
  assert run.model_dir == str(tmp_path / 'run')
  assert repr(run).startswith(f'Run({run.model_dir!r}: sst2 accuracy ')
  columns = run.history
  assert columns['step'].tolist() == [4, 8]
  assert {len(column) for column in columns.values()} == {2}
  assert np.isfinite(columns['train/loss']).all()
  accuracy = columns['eval/sst2/accuracy']
  assert np.isnan(accuracy[0])
  assert accuracy[1] == run.scores['sst2']['accuracy']
  answers = run.model.generate(['sst2 sentence: fine'], max_decode_length=2)
  assert len(answers) == 1
  # A finished folder gives the same at once; whoever reads a log has no bar.
  caplog.set_level(logging.INFO)
  again = train(world, tmp_path / 'run', 'sst2')
  assert repr(again) == repr(run)
  assert 'is finished; nothing to do' in caplog.text
  assert '8/8' not in capsys.readouterr().err


def _python(code):
  """Runs code in a new Python, which has imported nothing."""
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done


@pytest.mark.parametrize(
  'first', ['import mpt_jax', 'from mpt_jax import cli, train']
)
def test_the_module_is_called_whatever_was_imported_before(first):
  code = (
    f'{first}\nimport inspect, sys, mpt_jax\n'
    "assert ('gin' in sys.modules) == ('mpt_jax.cli' in sys.modules)\n"
    'print(mpt_jax.train is sys.modules["mpt_jax.train"],'
    ' inspect.signature(mpt_jax.train)'
    ' == inspect.signature(mpt_jax.train.train),'
    ' "steps" in inspect.signature(mpt_jax.train).parameters)'
  )
  assert _python(code).stdout == 'True True True\n'


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'tasks': None}, "no tasks are given: tasks='rte', for example"),
    (
      {'dataset': {'batchsize': 4}},
      "'batchsize', which is no field.*did you mean 'batch_size'",
    ),
    ({'stage': 'techer'}, "did you mean 'teacher'"),
    ({'tasks': 'rtee'}, "rtee.*did you mean 'rte'"),
  ],
)
def test_mistakes_are_named_before_anything_is_written(
  tmp_path, settings, message
):
  given = {'tasks': 'rte', **settings}
  with pytest.raises(InputError, match=message):
    mpt_jax.train(
      backbone='demo',
      method=methods.SoftPrompts(P),
      model_dir=str(tmp_path / 'run'),
      **given,
    )
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_rows_train_without_seqio(tmp_path):
  """From a list of rows to an answer; that nothing is scored is said."""
  code = f"""
import sys, mpt_jax
rows = [{{'text': 'bad', 'label': 0}}, {{'text': 'good', 'label': 1}}] * 8
run = mpt_jax.train(
  backbone='demo', method=mpt_jax.methods.SoftPrompts({P}),
  tasks={{'reviews': mpt_jax.Task(
    train=rows, inputs='review: {{text}}', labels=('negative', 'positive'))}},
  dataset={{'task_feature_lengths': {{'inputs': 32, 'targets': 4}},
            'batch_size': 4}},
  steps=2, model_dir={str(tmp_path / 'run')!r})
print(run, run.model.generate([{{'text': 'good'}}], max_decode_length=2))
print({{'seqio', 'tensorflow', 'gin'}} & set(sys.modules))
"""
  done = _python(code)
  assert 'no validation rows in reviews: the run is not scored' in done.stderr
  assert 'no scores) [' in done.stdout
  assert done.stdout.endswith('set()\n')
