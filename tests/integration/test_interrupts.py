"""Ctrl-C and SIGTERM: what is saved, what is said, and how it goes on."""

import json
import os
import shlex
import signal

import gin
import numpy as np
import pytest

from mpt_jax import cli
from mpt_jax.checkpoints.bundle import load_prompts
from tests.integration.test_runs import (
  arguments,
  bundles,
  contents,
  run_code,
  stage_macros,
)
from tests.integration.test_survive import _metrics

__all__ = ['bundles']

# Presses Ctrl-C at a moment; the moments are counted, no time plays a part.
# A test runner may ignore the signal, and what it starts then would, too.
PRESSER = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from mpt_jax import cli
from mpt_jax.engine import job, preemption, trainer
where, limit, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
count = 0
def at(place):
  global count
  if place == where:
    count += 1
    if count == limit:
      os.kill(os.getpid(), number)
put_batch, compile_ = trainer.put_batch, trainer._compile
load = job.load_backbone
def put(batch, mesh, **kwargs):
  at('evaluation' if kwargs.get('whole') else 'step')
  return put_batch(batch, mesh, **kwargs)
def compile_now(*args):
  at('compile')
  return compile_(*args)
def load_now(*args, **kwargs):
  at('load')
  return load(*args, **kwargs)
trainer.put_batch, trainer._compile = put, compile_now
job.load_backbone = load_now
cli.main('mpt_jax.train', 'train', sys.argv[4:])
"""
# Presses Ctrl-C, and again while a step is in compiled code for ever.
TWICE = """
import ctypes, os, signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)
from mpt_jax import cli
from mpt_jax.engine import (trainer)
put_batch, calls = trainer.put_batch, []
def press():
  os.kill(os.getpid(), signal.SIGINT)
def put(batch, mesh, **kwargs):
  calls.append(1)
  if len(calls) == 12:
    press()
    # The call goes on after a signal, and no Python handler runs.
    signal.siginterrupt(signal.SIGINT, False)
    threading.Thread(target=press).start()
    ctypes.CDLL(None).read(os.pipe()[0], ctypes.create_string_buffer(1), 1)
  return put_batch(batch, mesh, **kwargs)
trainer.put_batch = put
cli.main('mpt_jax.train', 'train', sys.argv[1:])
"""
NOTE = 'stopping at the next step; press Ctrl-C again to end at once'


def _press(bundles, folder, where, limit, number=signal.SIGINT, **macros):
  macros = stage_macros(bundles, 'source') | {'EVAL_STEPS': 0, **macros}
  argv = arguments(bundles, 'source', folder, **macros)
  return argv, run_code(PRESSER, where, limit, int(number), *argv)


def _checkpoints(folder):
  try:
    return sorted(int(name) for name in os.listdir(folder / 'checkpoints'))
  except OSError:
    return []


MACROS = {
  'EVAL_PERIOD': 6,
  'LOG_PERIOD': 4,
  'KEEP_BEST': True,
  'EVAL_EXAMPLES': 3,
}


@pytest.fixture(scope='module')
def whole(bundles, tmp_path_factory):
  """A run that nobody interrupted."""
  folder = tmp_path_factory.mktemp('whole') / 'run'
  macros = stage_macros(bundles, 'source') | {'EVAL_STEPS': 0, **MACROS}
  gin.clear_config()
  cli.main(
    'mpt_jax.train', 'train', arguments(bundles, 'source', folder, **macros)
  )
  gin.clear_config()
  return folder


@pytest.mark.slow
@pytest.mark.parametrize(
  ('where', 'limit', 'checkpoints', 'last'),
  [
    # In a step between two checkpoints, in the first step's compilation, in
    # the middle of an evaluation between two checkpoints and of the last one.
    (
      *('step', 11, [8, 11]),
      'stopped at step 11 of 24; its state is saved, the same command resumes'
      ' from step 11',
    ),
    pytest.param(
      *('compile', 1, [1]),
      'stopped at step 1 of 24; its state is saved, the same command resumes'
      ' from step 1',
      marks=pytest.mark.long,
    ),
    (
      *('evaluation', 1, [6]),
      'stopped in the middle of an evaluation; its state is saved, the same'
      ' command resumes from step 6',
    ),
    pytest.param(
      *('evaluation', 7, [8, 16, 24]),
      'stopped in the middle of an evaluation; its state is saved, the same'
      ' command resumes from step 24',
      marks=pytest.mark.long,
    ),
  ],
)
def test_ctrl_c_saves_and_the_run_ends_as_if_nothing_had_been(
  bundles, whole, tmp_path, where, limit, checkpoints, last
):
  stopped = tmp_path / 'stopped'
  argv, done = _press(bundles, stopped, where, limit, **MACROS)
  assert done.returncode == 130, done.stderr
  lines = done.stderr.splitlines()
  assert lines[-1] == last
  assert NOTE in lines
  assert 'Traceback' not in done.stderr
  assert _checkpoints(stopped) == checkpoints
  log = (stopped / 'log.txt').read_text().splitlines()
  assert log[0].startswith('--- 20')
  assert 'python -m mpt_jax.train --gin_file' in log[0]
  assert log[-1] == last

  cli.main('mpt_jax.train', 'train', argv)
  want, got = (
    load_prompts(str(folder / 'prompts')).arrays for folder in (whole, stopped)
  )
  for name, array in want.items():
    np.testing.assert_array_equal(got[name], array, err_msg=name)
  assert _metrics(stopped) == _metrics(whole)
  for name in ('scores', 'best_steps'):
    found = [
      json.loads((folder / 'results.json').read_text())[name]
      for folder in (whole, stopped)
    ]
    assert found[0] == found[1]
  text = (stopped / 'log.txt').read_text()
  assert text.count('\n--- 20') == 1
  assert f'product: {stopped}/prompts' in text


@pytest.mark.slow
def test_ctrl_c_while_loading_says_that_nothing_was_saved(bundles, tmp_path):
  _, done = _press(bundles, tmp_path / 'run', 'load', 1)
  assert done.returncode == 130, done.stderr
  assert done.stderr.splitlines()[-1] == (
    'interrupted; nothing was saved: the same command starts from the start'
  )
  assert 'Traceback' not in done.stderr
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
@pytest.mark.long
def test_sigterm_and_ctrl_c_differ_in_the_exit_code(bundles, tmp_path):
  _, done = _press(bundles, tmp_path / 'run', 'step', 3, signal.SIGTERM)
  assert done.returncode == 143, done.stderr
  assert done.stderr.splitlines()[-1] == (
    'stopped at step 3 of 24; its state is saved, the same command resumes'
  )
  assert 'the same command resumes from step 3' in done.stderr
  before = contents(tmp_path / 'run/checkpoints')
  # Loading again, it is interrupted at once.
  _, done = _press(bundles, tmp_path / 'run', 'load', 1)
  assert done.returncode == 130, done.stderr
  assert done.stderr.splitlines()[-1] == (
    'interrupted; the same command resumes from step 3'
  )
  assert contents(tmp_path / 'run/checkpoints') == before


@pytest.mark.slow
def test_a_second_ctrl_c_ends_a_busy_process_at_once(bundles, tmp_path):
  macros = stage_macros(bundles, 'source') | {'EVAL_STEPS': 0}
  argv = arguments(bundles, 'source', tmp_path / 'run', **macros)
  done = run_code(TWICE, *argv)
  assert done.returncode == 130, done.stderr
  lines = done.stderr.splitlines()
  assert lines[-2:] == [
    NOTE,
    'interrupted; the same command resumes from step 8',
  ]
  assert _checkpoints(tmp_path / 'run') == [8]


def _told(capsys, word):
  """The arguments of a command that a run has told, as a shell reads them."""
  lines = capsys.readouterr().err.splitlines()
  [line] = [x for x in lines if f' {word}: python -m ' in x]
  words = shlex.split(line.partition(f'{word}: ')[2])
  assert words[:2] == ['python', '-m']
  gin.clear_config()
  return words[2], words[3:]


@pytest.mark.slow
def test_the_advice_after_a_loss_that_is_not_finite(
  bundles, tmp_path, monkeypatch, capsys
):
  argv = arguments(
    bundles,
    'teacher',
    tmp_path / 'run',
    **stage_macros(bundles, 'teacher'),
    **{'SHARED_LEARNING_RATE': 1e30, 'TRAIN_STEPS': 4, 'EVAL_STEPS': 0},
  )
  with pytest.raises(SystemExit) as e:
    cli.main('mpt_jax.train', 'train', argv)
  assert e.value.code == 2
  text = capsys.readouterr().err
  assert text.splitlines()[-1].startswith('error: the loss was not finite at')
  assert 'in another MODEL_DIR' in text
  # The same again, which says the same again.
  gin.clear_config()
  with pytest.raises(SystemExit):
    cli.main('mpt_jax.train', 'train', argv)
  module, words = _told(capsys, 'for example')
  assert module == 'mpt_jax.train'
  cli.main(module, 'train', words)
  assert load_prompts(str(tmp_path / 'run-2/prompts')).task_names == ('sst2',)
  # What a finished run tells to do next works as it stands, twice.
  module, words = _told(capsys, 'next')
  assert module == 'mpt_jax.eval'
  cli.main(module, 'evaluate', [*words, '--gin.EVAL_EXAMPLES=5'])
  results = json.loads((tmp_path / 'run-2/test/results.json').read_text())
  assert results['split'] == 'test'
  log = (tmp_path / 'run-2/test/log.txt').read_text()
  assert f'in {tmp_path}/run-2/test/results.json' in log
  gin.clear_config()
  capsys.readouterr()
  [run_again] = [
    line.partition(' python -m ')[2]
    for line in (tmp_path / 'run-2/log.txt').read_text().splitlines()
    if line.startswith('--- ')
  ]
  cli.main('mpt_jax.train', 'train', shlex.split(run_again)[1:])
  told = capsys.readouterr().err
  assert 'is finished; nothing to do' in told
  assert f'product: {tmp_path}/run-2/prompts' in told
  assert 'validation: accuracy ' in told
