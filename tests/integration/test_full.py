"""Full fine-tuning through the commands: the best backbone, and what it is."""

import json
import signal

import gin
import numpy as np
import pytest

from mpt_jax import cli, methods, models
from mpt_jax.checkpoints import load_backbone
from mpt_jax.engine import starts
from mpt_jax.engine.params import flatten
from mpt_jax.types import InputError
from tests.integration.conftest import CONFIG
from tests.integration.test_runs import KILLER, arguments, contents, run_code

TASKS = 'mnli', 'sst2'


def _argv(world, model_dir, **more):
  macros = {
    'MIXTURE_OR_TASK_MODULE': 'tests.helpers.pipeline_tasks',
    'MIXTURE_OR_TASK_NAME': 'two_sources',
    'LEARNING_RATE': 0.03,
    'SCHEDULE': 'constant',
    'WARMUP_STEPS': 0,
    'TRAIN_STEPS': 80,
    'EVAL_PERIOD': 10,
    'EVAL_STEPS': 0,
    'EVAL_EXAMPLES': 40,
    'KEEP_BEST': True,
    'PATIENCE': 2,
    'TEST_SPLIT': 'test',
    **more,
  }
  argv = arguments(world, 'full', model_dir, **macros)
  return [word for word in argv if 'PROMPT_LENGTH' not in word]


def test_it_starts_from_the_backbone_alone():
  model = models.PromptedT5(CONFIG, methods.FullFinetuning())
  with pytest.raises(InputError, match="SOURCE_PROMPTS = 'x': .* backbone"):
    starts.start_values(model, None, starts.Source('x'), 'target', 0)


@pytest.mark.slow
def test_one_best_backbone_for_all_tasks_is_the_product(
  world, tmp_path, capsys
):
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  cli.main('mpt_jax.train', 'train', _argv(world, whole))
  told = capsys.readouterr().err
  assert 'the best mean main score of mnli, sst2 decides' in told
  assert "method 'full': 8,456 parameters, as its formula says" in told
  results = json.loads((whole / 'results.json').read_text())
  rows = [
    json.loads(line)
    for line in (whole / 'metrics.jsonl').read_text().splitlines()
  ]
  keys = {task: f'eval/{task}/accuracy' for task in TASKS}
  scores = {
    row['step']: {task: row[key] for task, key in keys.items()}
    for row in rows
    if keys['mnli'] in row
  }
  best = max(scores, key=lambda step: sum(scores[step].values()))
  assert results['best_steps'] == dict.fromkeys(TASKS, best)
  # Else this shows nothing.
  assert 10 < best < 64 < results['step']
  found = {task: results['scores'][task]['accuracy'] for task in TASKS}
  assert found == scores[best]

  # Killed when its best step was over, and resumed behind it.
  argv = _argv(world, killed)
  done = run_code(KILLER.replace('16', '64'), *argv)
  assert done.returncode == -signal.SIGKILL, done.stderr
  assert not (killed / 'backbone').exists()
  gin.clear_config()
  cli.main('mpt_jax.train', 'train', argv)
  assert contents(killed / 'backbone') == contents(whole / 'backbone')
  assert json.loads((killed / 'results.json').read_text()) == results
  readme = (whole / 'backbone/README.md').read_text()
  assert '`backbone` after full fine-tuning for `mnli`, `sst2`' in readme
  assert f'| best step of `mnli` | {best} |' in readme
  # No copy is left.
  for folder in (whole, killed):
    assert not (folder / 'best/backbone').exists()

  start = flatten(load_backbone(str(world / 'backbone')).params)
  product = flatten(load_backbone(str(whole / 'backbone')).params)
  for name, array in product.items():
    assert not np.array_equal(array, start[name]), name

  # It is scored, and answers, as any backbone: it is that of the best step.
  macros = {
    'INITIAL_CHECKPOINT_PATH': str(whole / 'backbone'),
    'PROMPTS': None,
    'MIXTURE_OR_TASK_NAME': list(TASKS),
    'TASK_FEATURE_LENGTHS': {'inputs': 60, 'targets': 7},
    'EVAL_SPLIT': 'validation',
    'EVAL_EXAMPLES': 40,
  }
  for command, function, more in (
    ('eval', 'evaluate', {'MODEL_DIR': str(tmp_path / 'scored')}),
    ('infer', 'infer', {'OUTPUT': str(tmp_path / 'answers.jsonl')}),
  ):
    gin.clear_config()
    cli.main(
      f'mpt_jax.{command}',
      function,
      [
        f'--gin_file=gin_configs/runs/{command}.gin',
        f'--tfds_data_dir={world / "data"}',
        *(f'--gin.{k}={v!r}' for k, v in (macros | more).items()),
      ],
    )
  scored = json.loads((tmp_path / 'scored' / 'results.json').read_text())
  assert scored['scores'] == results['scores']
  assert set(results['test_scores']) == set(TASKS)
  assert len((tmp_path / 'answers.jsonl').read_text().splitlines()) == 80
