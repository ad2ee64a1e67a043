r"""Seconds from starting a process to its first training step, by part.

  python -m benchmarks.start
  python -m benchmarks.start --data=DIR --task=rte

Starts `python -m mpt_jax.train` on the demo backbone, with an empty cache of
compiled steps and then with the one that the first run filled, and reads from
its log when each part began. `--help` is measured beside it. Without --data
the synthetic data of the task are written first. Prints one line of JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import measure

# What the log says when a part ends and the next begins.
PARTS = (
  ('imports, TensorFlow among them, and gin', r'loading the backbone'),
  ('backbone and data', r'parameters? train|trainable|prompts/'),
  ('prompts and weights in place', r'compiling'),
  ('first step', r'step 1 / 1'),
)


def start(
  data: str, task: str, folder: str, cache: str
) -> tuple[float, dict[str, float]]:
  """Runs one step; returns its seconds and those of each part."""
  command = [
    sys.executable,
    '-m',
    'mpt_jax.train',
    '--gin_file=gin_configs/runs/teacher.gin',
    f'--tfds_data_dir={data}',
    "--gin.INITIAL_CHECKPOINT_PATH='demo'",
    f"--gin.MIXTURE_OR_TASK_NAME='{task}'",
    f"--gin.MODEL_DIR='{folder}'",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 84, 'targets': 16}",
    '--gin.PROMPT_LENGTH=20',
    '--gin.TRAIN_STEPS=1',
    '--gin.train.train.evaluation=None',
  ]
  return measure.timed(command, PARTS, {'XDG_CACHE_HOME': cache})


def seconds_of_help() -> float:
  """Median seconds of `python -m mpt_jax.train --help`."""
  taken = []
  for _ in range(5):
    begin = time.monotonic()
    subprocess.run(
      [sys.executable, '-m', 'mpt_jax.train', '--help'],
      capture_output=True,
      check=True,
    )
    taken.append(time.monotonic() - begin)
  return round(statistics.median(taken), 2)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--data', help='folder of prepared TFDS data')
  parser.add_argument('--task', default='rte')
  flags = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    data = flags.data
    if data is None:
      data = os.path.join(folder, 'data')
      subprocess.run(
        [
          sys.executable,
          '-m',
          'tasks.offline',
          f'--data_dir={data}',
          f'--tasks={flags.task}',
        ],
        check=True,
        capture_output=True,
      )
    cache = os.path.join(folder, 'cache')
    runs = {}
    for name in ('no_cache', 'cache'):
      run = os.path.join(folder, name)
      runs[f'{name}_s'], runs[name] = start(data, flags.task, run, cache)
    print(json.dumps({'help_s': seconds_of_help(), **runs}))


if __name__ == '__main__':
  main()
