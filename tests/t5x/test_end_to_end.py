"""teacher -> source -> target -> eval, infer: T5X's own programs, as users do.

On synthetic data with the demo backbone; a native bundle starts a T5X run and
a T5X run's bundle serves the native engine.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip('t5x', reason='T5X is not on PYTHONPATH')

from mpt_jax import checkpoints
from mpt_jax.checkpoints.bundle import load_prompts

pytestmark = [pytest.mark.t5x, pytest.mark.slow]

ROOT = pathlib.Path(__file__).parents[2]
P, STEPS = 5, 24
SOURCE = {
  'MIXTURE_OR_TASK_NAME': 'two_sources',
  'MIXTURE_OR_TASK_MODULE': 'tests.helpers.pipeline_tasks',
  'PROMPT_TASKS': ['mnli', 'sst2'],
  'PACK': True,
}
LENGTHS = {'inputs': 60, 'targets': 7}


def run(module, files, data, check=True, **macros):
  """Runs a program; returns what it printed."""
  done = subprocess.run(
    [
      *(sys.executable, '-m', *module),
      *(f'--gin_file=gin_configs/{name}.gin' for name in files),
      f'--tfds_data_dir={data}',
      *(f'--gin.{name}={value!r}' for name, value in macros.items()),
    ],
    cwd=ROOT,
    env={**os.environ, 'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  if check:
    assert done.returncode == 0, done.stderr[-3000:]
  return done


def train(stage, model_dir, data, files=(), program=('t5x.train',), **macros):
  settings = {
    'INITIAL_CHECKPOINT_PATH': 'demo',
    'MODEL_DIR': str(model_dir),
    'PROMPT_LENGTH': P,
    'TASK_FEATURE_LENGTHS': LENGTHS,
    'BATCH_SIZE': 8,
    'TRAIN_STEPS_RELATIVE': STEPS,
    'CHECKPOINT_PERIOD': STEPS // 2,
    'EVAL_PERIOD': STEPS,
    'EVAL_STEPS': 2,
    'EVAL_EXAMPLES': 9,
    'LOG_PERIOD': STEPS // 4,
    'DATA_SEED': 1,
    **macros,
  }
  done = run(program, [f't5x/{stage}', *files], data, **settings)
  return done.stderr


def losses(text):
  lines = [x for x in text.splitlines() if 'collection=train ' in x]
  found = [re.search(r'[ ,]loss=([^,]+)', line) for line in lines]
  return [float(m[1]) for m in found if m]


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  """Three stages; the folder with data, runs and what was printed."""
  from tasks.offline import writer

  folder = tmp_path_factory.mktemp('t5x')
  data = folder / 'data'
  names = ['mnli', 'sst2', 'rte']
  writer.write(str(data), names, train_size=1100, say=lambda line: None)
  printed = {}
  for task in ('mnli', 'sst2'):
    printed[task] = train(
      'teacher',
      folder / 'teacher' / task,
      data,
      files=['prompts/uniform'],
      MIXTURE_OR_TASK_NAME=task,
    )
  printed['source'] = train(
    'source',
    folder / 'source',
    data,
    files=['prompts/uniform'],
    TEACHER_PROMPTS=f'{folder}/teacher/{{task}}/prompts',
    **SOURCE,
  )
  printed['target'] = train(
    'target',
    folder / 'target',
    data,
    MIXTURE_OR_TASK_NAME='rte',
    SOURCE_PROMPTS=str(folder / 'source' / 'prompts'),
    SAVE_DATASET=True,
  )
  (folder / 'printed.json').write_text(json.dumps(printed))
  return folder


def test_losses_are_finite_and_fall(world):
  printed = json.loads((world / 'printed.json').read_text())
  for run_name, text in printed.items():
    values = losses(text)
    assert len(values) == 4
    assert np.isfinite(values).all()
    if run_name != 'target':  # It starts where the source run ended.
      assert values[-1] < values[0], run_name
    assert 'tensors restored, 0 new, 0 ignored' in text
  for term in ('cross_entropy/mnli=', 'logits_loss/sst2=', 'hidden_loss_enc'):
    assert term in printed['source']
  assert 'parameters train' in printed['target']


def test_bundles_are_written_at_each_checkpoint(world):
  backbone = checkpoints.load_backbone(
    str(ROOT / 'tasks/offline/demo_backbone')
  )
  for path, stage, tasks in (
    ('teacher/mnli', 'teacher', ('mnli',)),
    ('source', 'source', ('mnli', 'sst2')),
    ('target', 'target', ('rte',)),
  ):
    folder = world / path
    steps = sorted(int(n) for n in os.listdir(folder / 'prompt_bundles'))
    assert steps == [0, STEPS // 2, STEPS]
    bundle = load_prompts(str(folder / 'prompts'))
    assert bundle.step == STEPS
    assert bundle.stage == stage
    assert bundle.task_names == tasks
    assert bundle.backbone_fingerprint == backbone.fingerprint
    last = load_prompts(str(folder / 'prompt_bundles' / str(STEPS)))
    first = load_prompts(str(folder / 'prompt_bundles' / '0'))
    for name, array in bundle.arrays.items():
      np.testing.assert_array_equal(array, last.arrays[name])
      assert (array != first.arrays[name]).any()
    # The backbone in T5X's own checkpoint is the one that was given.
    stored = checkpoints.load_backbone(str(folder / f'checkpoint_{STEPS}'))
    np.testing.assert_array_equal(
      stored.params['token_embedder']['embedding'],
      backbone.params['token_embedder']['embedding'],
    )


def test_eval_and_infer_agree_with_the_native_engine(world):
  common = {
    'MIXTURE_OR_TASK_NAME': 'rte',
    'TASK_FEATURE_LENGTHS': LENGTHS,
    'VOCABULARY': 'demo',
  }
  run(
    ('t5x.eval',),
    ['t5x/eval'],
    world / 'data',
    CHECKPOINT_PATH=str(world / 'target'),
    EVAL_OUTPUT_DIR=str(world / 'eval'),
    **common,
  )
  run(
    ('t5x.infer',),
    ['t5x/infer'],
    world / 'data',
    CHECKPOINT_PATH=str(world / 'target' / f'checkpoint_{STEPS}'),
    INFER_OUTPUT_DIR=str(world / 'infer'),
    INFER_MODE='predict_with_aux',
    NUM_BEAMS=2,
    **common,
  )
  for program, extra in (
    ('eval', {'MODEL_DIR': str(world / 'native')}),
    ('infer', {'OUTPUT': str(world / 'native.jsonl'), 'NUM_BEAMS': 2}),
  ):
    run(
      (f'mpt_jax.{program}',),
      [f'runs/{program}'],
      world / 'data',
      INITIAL_CHECKPOINT_PATH='demo',
      PROMPTS=str(world / 'target' / 'prompts'),
      **common,
      **extra,
    )
  lines = (world / 'eval/inference_eval/rte-metrics.jsonl').read_text()
  got = json.loads(lines.splitlines()[-1])
  want = json.loads((world / 'native' / 'results.json').read_text())
  assert got['step'] == STEPS
  assert got['accuracy'] == pytest.approx(want['scores']['rte']['accuracy'])
  file = world / 'infer' / 'rte-predict_with_aux.jsonl-00000-of-00001'
  answers = [json.loads(x) for x in file.read_text().splitlines()]
  native = (world / 'native.jsonl').read_text().splitlines()
  assert len(answers) == len(native) > 50
  assert all(np.isfinite(a['aux']['scores']) for a in answers)
  assert [a['prediction'] for a in answers] == [
    json.loads(x)['prediction'] for x in native
  ]


def test_resumed_run_equals_uninterrupted_one(world, tmp_path):
  """With SAVE_DATASET the data go on where they were."""
  resumed = tmp_path / 'resumed'
  shutil.copytree(world / 'target', resumed)
  shutil.rmtree(resumed / f'checkpoint_{STEPS}')
  shutil.rmtree(resumed / 'prompts')
  shutil.rmtree(resumed / 'prompt_bundles' / str(STEPS))
  text = train(
    'target',
    resumed,
    world / 'data',
    MIXTURE_OR_TASK_NAME='rte',
    SOURCE_PROMPTS=str(world / 'source' / 'prompts'),
    SAVE_DATASET=True,
  )
  assert f'Starting main loop over steps {STEPS // 2}-{STEPS}' in text
  want = load_prompts(str(world / 'target' / 'prompts'))
  got = load_prompts(str(resumed / 'prompts'))
  for name, array in want.arrays.items():
    np.testing.assert_allclose(got.arrays[name], array, atol=1e-6)


def test_native_bundle_starts_a_t5x_run_and_wrong_input_is_one_line(
  world, tmp_path
):
  run(
    ('mpt_jax.train',),
    ['runs/target'],
    world / 'data',
    INITIAL_CHECKPOINT_PATH='demo',
    MODEL_DIR=str(tmp_path / 'native'),
    MIXTURE_OR_TASK_NAME='rte',
    SOURCE_PROMPTS=str(world / 'source' / 'prompts'),
    PROMPT_LENGTH=P,
    TASK_FEATURE_LENGTHS=LENGTHS,
    TRAIN_STEPS=3,
    BATCH_SIZE=4,
    EVAL_EXAMPLES=3,
  )
  macros = {
    'SOURCE_PROMPTS': str(tmp_path / 'native' / 'prompts'),
    'TRAIN_STEPS_RELATIVE': 4,
    'CHECKPOINT_PERIOD': 4,
    'EVAL_PERIOD': 4,
  }
  train(
    'target',
    tmp_path / 't5x',
    world / 'data',
    program=('mpt_jax.t5x', 'train'),
    MIXTURE_OR_TASK_NAME='rte',
    **macros,
  )
  start = load_prompts(str(tmp_path / 't5x' / 'prompt_bundles' / '0'))
  native = load_prompts(str(tmp_path / 'native' / 'prompts'))
  for name, array in native.arrays.items():
    np.testing.assert_array_equal(start.arrays[name], array)

  for wrong, said in (
    ({'PROMPT_TASKS': ['sst2']}, "task(s) ['rte'] of 'rte' have no prompt"),
    ({'BATCHSIZE': 3}, "did you mean 'BATCH_SIZE'"),
  ):
    done = run(
      ('mpt_jax.t5x', 'train'),
      ['t5x/target'],
      world / 'data',
      check=False,
      INITIAL_CHECKPOINT_PATH='demo',
      MODEL_DIR=str(tmp_path / 'wrong'),
      MIXTURE_OR_TASK_NAME='rte',
      PROMPT_LENGTH=P,
      TASK_FEATURE_LENGTHS=LENGTHS,
      **{**macros, **wrong},
    )
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith('error: ')
    assert said in line
    assert 'Traceback' not in done.stderr
  assert not (tmp_path / 'wrong').exists()
