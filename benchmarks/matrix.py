r"""Seconds of a 12 x 12 matrix, and of the same by single eval commands.

  python -m benchmarks.matrix
  python -m benchmarks.matrix --data=DIR --prompts=runs/teachers/{task}/prompts

Runs `python -m mpt_jax.transfer matrix` on the demo backbone and its 12
synthetic tasks, 256 examples of each, once by each readout, and in between
`python -m mpt_jax.eval` for single cells, whose median times 144 is what all of
them would take. Both have a cache of compiled steps that an unmeasured turn has
filled. Without --prompts the prompts are drawn at random, without --data the
data are written first. Prints one line of JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from mpt_jax import pretrained
from mpt_jax.checkpoints.bundle import PromptBundle

TASKS = (
  *('mnli', 'qnli', 'qqp', 'sst2', 'squad', 'record'),
  *('rte', 'cb', 'mrpc', 'boolq', 'cola', 'stsb'),
)
COMMON = (
  "--gin.INITIAL_CHECKPOINT_PATH='demo'",
  "--gin.TASK_FEATURE_LENGTHS={'inputs': 48, 'targets': 4}",
  '--gin.EVAL_EXAMPLES=256',
)
PROMPT_LENGTH = 10


def draw(folder: str) -> str:
  """Writes a random prompt for each task; returns where, with {task}."""
  backbone = pretrained.PromptedT5.from_pretrained('demo').backbone
  for i, task in enumerate(TASKS):
    shape = PROMPT_LENGTH, backbone.config.emb_dim
    prompt = np.random.default_rng(i).normal(size=shape)
    bundle = PromptBundle(
      'soft',
      'teacher',
      (task,),
      {'prompt': prompt},
      backbone_name=backbone.name,
      backbone_fingerprint=backbone.fingerprint,
    )
    bundle.save(os.path.join(folder, task))
  return os.path.join(folder, '{task}')


def seconds(words: list[str], cache: str) -> float:
  """Wall seconds of a command."""
  begin = time.monotonic()
  done = subprocess.run(
    [sys.executable, '-m', *words, *COMMON],
    capture_output=True,
    text=True,
    env={**os.environ, 'XDG_CACHE_HOME': cache},
  )
  if done.returncode:
    sys.exit(f'{words[0]} failed: {done.stderr.strip().splitlines()[-1]}')
  return round(time.monotonic() - begin, 2)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--data', help='folder of prepared TFDS data')
  parser.add_argument('--prompts', help='bundle of a task, with {task}')
  parser.add_argument('--cells', type=int, default=6, help='single commands')
  flags = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    data = flags.data or os.path.join(folder, 'data')
    cache = os.path.join(folder, 'cache')
    if flags.data is None:
      subprocess.run(
        [sys.executable, '-m', 'tasks.offline', f'--data_dir={data}'],
        check=True,
        capture_output=True,
      )
    prompts = flags.prompts or draw(os.path.join(folder, 'prompts'))

    def matrix(readout: str, name: str) -> float:
      paths = [prompts.format(task=task) for task in TASKS]
      words = ['mpt_jax.transfer', 'matrix', f'--tfds_data_dir={data}']
      words += [f'--gin.SOURCES={paths}', f"--gin.READOUT='{readout}'"]
      words += ['--gin.RANDOM_PROMPTS=0', '--gin.ZERO_PROMPT=False']
      run = os.path.join(folder, f'{readout}_{name}')
      return seconds([*words, f"--gin.MODEL_DIR='{run}'"], cache)

    def single(number: int) -> float:
      source, target = TASKS[number % 12], TASKS[(5 * number + 1) % 12]
      words = ['mpt_jax.eval', '--gin_file=gin_configs/runs/eval.gin']
      words += [f'--tfds_data_dir={data}']
      words += [f"--gin.PROMPTS='{prompts.format(task=source)}'"]
      words += [f"--gin.PROMPT_TASK='{source}'"]
      words += [f"--gin.MIXTURE_OR_TASK_NAME='{target}'"]
      run = os.path.join(folder, f'eval_{number}')
      return seconds([*words, f"--gin.MODEL_DIR='{run}'"], cache)

    single(0)
    found: dict[str, list[float]] = {'generate': [], 'labels': []}
    for readout in found:
      matrix(readout, 'cold')
    cells = []
    for number in range(flags.cells):
      cells.append(single(number))
      if number % 3 == 1:  # In between.
        for readout, taken in found.items():
          taken.append(matrix(readout, f'warm{number}'))
  all_cells = len(TASKS) ** 2 * statistics.median(cells)
  result = {'eval_s': cells, 'all_by_eval_s': round(all_cells, 1)}
  for readout, taken in found.items():
    result[f'{readout}_s'] = taken
    result[f'{readout}_times'] = round(all_cells / statistics.median(taken), 1)
  print(json.dumps(result))


if __name__ == '__main__':
  main()
