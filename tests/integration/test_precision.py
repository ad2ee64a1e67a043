"""The demo's source stage in bfloat16 products against float32."""

import json
import pathlib

import gin
import jax
import numpy as np
import pytest

from mpt_jax import cli
from mpt_jax.checkpoints.bundle import load_prompts

TASKS = ['mnli', 'sst2']
COMMON = {
  'INITIAL_CHECKPOINT_PATH': 'demo',
  'MIXTURE_OR_TASK_MODULE': 'tests.helpers.pipeline_tasks',
  'PROMPT_LENGTH': 8,
  'TASK_FEATURE_LENGTHS': {'inputs': 48, 'targets': 4},
  'BATCH_SIZE': 24,
  'TRAIN_STEPS': 50,
  'LOG_PERIOD': 10,
  'PADDING': 'max',
}

# Of means over ten steps, as docs/architecture.md states them.
BOUNDS = {'loss': 0.05, 'cross_entropy': 0.1, 'logits_loss': 0.3}


def train(world, stage, folder, **macros):
  gin.clear_config()
  settings = {**COMMON, **macros, 'MODEL_DIR': str(folder)}
  cli.main(
    'mpt_jax.train',
    'train',
    [
      f'--gin_file=gin_configs/runs/{stage}.gin',
      f'--tfds_data_dir={world / "data"}',
      *(f'--gin.{name}={value!r}' for name, value in settings.items()),
    ],
  )
  lines = (pathlib.Path(folder) / 'metrics.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  return [row for row in rows if 'train/loss' in row]


@pytest.mark.slow
@pytest.mark.skipif(
  jax.device_count() > 1,
  reason='products have a form of their own on one CPU device, where'
  ' test_one_device.py runs this',
)
def test_fifty_steps_of_the_source_stage(world, tmp_path):
  for task in TASKS:
    train(
      world,
      'teacher',
      tmp_path / task,
      MIXTURE_OR_TASK_NAME=task,
      EVAL_EXAMPLES=32,
    )
  runs = {
    precision: train(
      world,
      'source',
      tmp_path / precision,
      MIXTURE_OR_TASK_NAME='two_sources',
      PROMPT_TASKS=TASKS,
      TEACHER_PROMPTS=str(tmp_path / '{task}/prompts'),
      EVAL_EXAMPLES=256,
      PRECISION=precision,
    )
    for precision in ('float32', 'bfloat16')
  }
  assert len(runs['float32']) == len(runs['bfloat16']) == 5
  for want, got in zip(runs['float32'], runs['bfloat16'], strict=True):
    for term, bound in BOUNDS.items():
      key = f'train/{term}'
      assert got[key] == pytest.approx(want[key], rel=bound), want['step']
  assert runs['float32'][-1] != runs['bfloat16'][-1], 'nothing was rounded'
  scores = [
    json.loads((tmp_path / precision / 'results.json').read_text())['scores']
    for precision in runs
  ]
  for task in TASKS:
    accuracy = [score[task]['accuracy'] for score in scores]
    # Two standard errors of a difference on 256 examples are about 9 points.
    assert abs(accuracy[0] - accuracy[1]) < 9
  prompts = [
    load_prompts(str(tmp_path / precision / 'prompts')) for precision in runs
  ]
  for task in TASKS:
    a, b = (bundle.compose(task) for bundle in prompts)
    assert a.dtype == b.dtype == np.float32
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.9
