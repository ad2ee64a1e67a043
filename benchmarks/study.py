r"""Runs an hour of a small study, on all workers, from the command to its end.

  python -m benchmarks.study

One seed of the demo (teachers, a source run, targets, their tests) in a folder
of its own, with an empty cache of compiled steps. Prints one line of JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--gin_file', default='gin_configs/runs/demo.gin', help='of the study'
  )
  parser.add_argument('--seeds', type=int, default=1)
  flags = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    study = os.path.join(folder, 'study')
    begin = time.monotonic()
    subprocess.run(
      [
        sys.executable,
        '-m',
        'mpt_jax.pipeline',
        f'--gin_file={flags.gin_file}',
        f"--gin.MODEL_DIR='{study}'",
        f'--gin.SEEDS={list(range(flags.seeds))}',
      ],
      check=True,
      capture_output=True,
      env={**os.environ, 'XDG_CACHE_HOME': os.path.join(folder, 'cache')},
    )
    seconds = time.monotonic() - begin
    with open(os.path.join(study, 'pipeline.json'), encoding='utf-8') as f:
      runs = len(json.load(f)['steps'])
  print(
    json.dumps(
      {
        'system': 'mpt_jax',
        'study': flags.gin_file,
        'seeds': flags.seeds,
        'runs': runs,
        'seconds': round(seconds, 1),
        'runs_per_hour': round(3600 * runs / seconds, 1),
      }
    )
  )


if __name__ == '__main__':
  main()
