"""A run that is killed again and again ends as one that never was."""

import json
import os
import shutil
import signal

import gin
import numpy as np
import pytest

from mpt_jax import cli
from mpt_jax.checkpoints.bundle import load_prompts
from tests.integration.test_runs import (
  arguments,
  bundles,
  run_code,
  stage_macros,
)

__all__ = ['bundles']

KILLS = 10
# Counts what happens to files of MODEL_DIR, and the steps; at a given count the
# process is gone. Many of these moments are inside a save.
KILLER = """
import os, signal, sys
folder, limit = sys.argv[1], int(sys.argv[2])
count = 0
def happened(inside):
  global count
  count += 1
  if count == limit:
    sys.stderr.write('inside a save' if inside else 'between saves')
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)
saving = False
def hook(event, args):
  if event in ('open', 'os.mkdir', 'os.rename', 'os.remove', 'os.rmdir'):
    if isinstance(args[0], (str, bytes)) and folder in os.fsdecode(args[0]):
      happened(saving)
sys.addaudithook(hook)
from mpt_jax import cli
from mpt_jax.engine import (trainer)
from mpt_jax.checkpoints import run
put_batch, save = trainer.put_batch, run.RunCheckpointer.save
def put(*args, **kwargs):
  happened(False)
  return put_batch(*args, **kwargs)
def guarded(self, *args):
  global saving
  saving = True
  save(self, *args)
  saving = False
trainer.put_batch, run.RunCheckpointer.save = put, guarded
cli.main('mpt_jax.train', 'train', sys.argv[3:])
print(count)
"""


def _metrics(folder):
  """The numbers of a run, without those that tell the time."""
  rows = []
  for line in (folder / 'metrics.jsonl').read_text().splitlines():
    row = json.loads(line)
    rows.append(
      {
        name: value
        for name, value in row.items()
        if 'per_second' not in name and 'seconds_left' not in name
      }
    )
  return rows


def _last_checkpoint(folder):
  """Every array of the newest checkpoint, optimizer state included."""
  import orbax.checkpoint as ocp

  steps = [int(name) for name in os.listdir(folder / 'checkpoints')]
  path = folder / 'checkpoints' / str(max(steps)) / 'state'
  return ocp.StandardCheckpointer().restore(path.absolute())


@pytest.mark.slow
@pytest.mark.long
def test_killed_at_ten_moments(bundles, tmp_path):
  macros = stage_macros(bundles, 'source') | {
    'DROPOUT_RATE': 0.1,
    'EVAL_STEPS': 0,
    'EVAL_PERIOD': 12,
    'LOG_PERIOD': 4,
    'CHECKPOINT_PERIOD': 4,
    'TRAIN_STEPS': 36,
  }
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  done = run_code(
    KILLER, whole, 0, *arguments(bundles, 'source', whole, **macros)
  )
  assert done.returncode == 0, done.stderr
  total = int(done.stdout.split()[-1])
  argv = arguments(bundles, 'source', killed, **macros)
  rng = np.random.default_rng(0)
  places = []
  for _ in range(KILLS):
    # Early enough that ten of them fit in; a run that got to its end starts
    # again from nothing.
    limit = int(rng.integers(1, total // 3))
    done = run_code(KILLER, killed, limit, *argv)
    if done.returncode == 0:
      shutil.rmtree(killed)
      continue
    assert done.returncode == -signal.SIGKILL, done.stderr
    places.append('inside' if done.stderr.endswith('a save') else 'between')
  assert len(places) >= KILLS - 2
  assert places.count('inside') >= 2
  gin.clear_config()
  cli.main('mpt_jax.train', 'train', argv)
  want, got = (
    load_prompts(str(whole / 'prompts')),
    load_prompts(str(killed / 'prompts')),
  )
  for name, array in want.arrays.items():
    np.testing.assert_array_equal(got.arrays[name], array, err_msg=name)
  expected, found = _last_checkpoint(whole), _last_checkpoint(killed)
  assert set(expected) == set(found)
  for name, array in expected.items():
    np.testing.assert_array_equal(found[name], array, err_msg=name)
  assert _metrics(killed) == _metrics(whole)
