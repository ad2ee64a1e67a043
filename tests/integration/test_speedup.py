"""Transfer as a start on workers: killed, and the same command goes on."""

import json
import signal

import pytest

from tests.integration.test_runs import P, bundles, run_code

__all__ = ['bundles']
# Kills the command once two runs are finished.
KILLER = """
import os, signal, sys
from mpt_jax.study import progress
finish = progress.Progress.finish
def finish_and_die(self, step):
  finish(self, step)
  if self._done == 2:
    os.kill(os.getpid(), signal.SIGKILL)
progress.Progress.finish = finish_and_die
"""
MAIN = """
import sys
from mpt_jax.transfer import __main__ as transfer
if __name__ == '__main__':
  transfer.main(sys.argv[1:])
"""


def _arguments(world, folder):
  macros = {
    'INITIAL_CHECKPOINT_PATH': str(world / 'backbone'),
    'MODEL_DIR': str(folder),
    'SOURCES': {'rte': str(world / 'teachers/mnli')},
    'RATES': [0.1],
    'SEEDS': [0],
    'TRAIN_STEPS': 4,
    'EVAL_PERIOD': 2,
    'BATCH_SIZE': 4,
    'PROMPT_LENGTH': P,
    'NUM_SHOTS': 4,
    'EVAL_EXAMPLES': 5,
    'TASK_FEATURE_LENGTHS': {'inputs': 60, 'targets': 7},
    'WORKERS': 1,
  }
  return [
    *('speedup', f'--tfds_data_dir={world / "data"}'),
    *(f'--gin.{name}={value!r}' for name, value in macros.items()),
  ]


@pytest.mark.slow
@pytest.mark.long
def test_killed_and_resumed_equals_uninterrupted(bundles, tmp_path):
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  done = run_code(MAIN, *_arguments(bundles, whole))
  assert done.returncode == 0, done.stderr
  done = run_code(KILLER + MAIN, *_arguments(bundles, killed))
  assert done.returncode == -signal.SIGKILL, done.stderr
  assert not (killed / 'speedup.json').exists()
  finished = [path.parent for path in killed.rglob('step.json')]
  assert len(finished) == 2
  before = [(path / 'results.json').stat().st_mtime_ns for path in finished]
  done = run_code(MAIN, *_arguments(bundles, killed))
  assert done.returncode == 0, done.stderr
  assert before == [
    (path / 'results.json').stat().st_mtime_ns for path in finished
  ]
  want, got = (
    json.loads((path / 'speedup.json').read_text()) for path in (whole, killed)
  )
  assert got == want
  assert [len(c['0']['steps']) for c in got['curves']['rte'].values()] == [3, 3]
  assert got['setting'] == 'k4'
