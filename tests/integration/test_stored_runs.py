"""A run that lives in a bucket ends as one on the disk, killed or not."""

import json
import logging
import os
import pathlib
import signal
import sys
import threading

import gin
import pytest
import safetensors.numpy

from mpt_jax import cli, export
from mpt_jax.checkpoints import files, lock, run, stores
from tests.helpers.emulators import store
from tests.integration.conftest import save_backbone
from tests.integration.test_runs import KILLER, ROOT, P, run_code

__all__ = ['store']

MODULE = 'tests.helpers.stored_tasks'


def _data(folder):
  for split, count in (('train', 40), ('validation', 9)):
    rows = [
      {'text': 'much more' if n % 2 else f'{n} less', 'label': n % 2}
      for n in range(count)
    ]
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    files.write_file(f'{folder}/data/{split}.jsonl', text.encode())


def _command(kind, folder, **macros):
  settings = {
    'INITIAL_CHECKPOINT_PATH': f'{folder}/backbone',
    'MIXTURE_OR_TASK_NAME': 'stored',
    'MIXTURE_OR_TASK_MODULE': MODULE,
    'TASK_FEATURE_LENGTHS': {'inputs': 30, 'targets': 7},
    **macros,
  }
  return [
    f'--gin_file=gin_configs/runs/{kind}.gin',
    *(f'--gin.{name}={value!r}' for name, value in settings.items()),
  ]


def _training(folder):
  return _command(
    'teacher',
    folder,
    MODEL_DIR=f'{folder}/run',
    PROMPT_LENGTH=P,
    BATCH_SIZE=4,
    TRAIN_STEPS=24,
    CHECKPOINT_PERIOD=8,
    LOG_PERIOD=8,
    EVAL_PERIOD=8,
    EVAL_STEPS=1,
    KEEP_BEST=True,
    KEY_STEP=8,
  )


def _use(folder, patch):
  """Makes the task be that of this folder, here and in other processes."""
  patch.setenv('MPT_JAX_TEST_DATA', f'{folder}/data')
  if sys.modules.pop(MODULE, None):
    import seqio

    seqio.TaskRegistry.remove('stored')
  gin.clear_config()


def _finish(folder):
  """Trains to the end, scores, exports."""
  cli.main('mpt_jax.train', 'train', _training(folder))
  gin.clear_config()
  prompts = f'{folder}/run/prompts'
  argv = _command('eval', folder, PROMPTS=prompts, MODEL_DIR=f'{folder}/test')
  argv.append("--gin.EVAL_SPLIT='validation'")
  cli.main('mpt_jax.eval', 'evaluate', argv)
  for format in ('npy', 'peft', 'bundle'):
    export.export(
      prompts=prompts,
      output=f'{folder}/{format}',
      format=format,
      backbone=f'{folder}/backbone',
    )


@pytest.fixture(scope='module')
def on_disk(tmp_path_factory):
  folder = tmp_path_factory.mktemp('disk')
  save_backbone(ROOT, folder / 'backbone')
  _data(folder)
  with pytest.MonkeyPatch.context() as patch:
    _use(folder, patch)
    _finish(folder)
  return folder


# What says where it lies, when it was, or how long it took.
TOLD = {'README.md', 'log.txt', 'config.gin', 'run_config.json', lock.LOCK}
TOLD |= {'metrics.jsonl', 'adapter_config.json'}


def _contents(folder):
  """The products of a run, by their names."""
  root = pathlib.Path(folder)
  return {
    str(path.relative_to(root)): path.read_bytes()
    for part in ('run', 'test', 'npy', 'peft', 'bundle')
    for path in sorted((root / part).rglob('*'))
    if path.is_file()
    and not {'checkpoints', 'tensorboard'} & set(path.parts)
    and path.name not in TOLD
  }


@pytest.mark.parametrize('store', ['memory'], indirect=True)
def test_a_log_does_not_wait_for_itself(store):
  folder = f'{store}://bucket/logged'
  cli._start_logging()
  cli.keep_log(folder)
  client = threading.Thread(target=logging.warning, args=['one'])
  client.name = 'fsspecIO'
  client.start()
  client.join()
  logging.warning('two')
  cli._stop_keeping_log()
  text = stores.read(f'{folder}/log.txt').decode()
  assert 'two' in text
  assert 'one' not in text


@pytest.mark.slow
@pytest.mark.parametrize('store', ['gs', 's3'], indirect=True)
def test_killed_in_a_bucket_equals_uninterrupted_on_disk(
  store, on_disk, monkeypatch, capsys
):
  folder = f'{store}://bucket/runs'
  _data(folder)
  _use(folder, monkeypatch)
  for path in (on_disk / 'backbone').iterdir():
    files.write_file(f'{folder}/backbone/{path.name}', path.read_bytes())
  done = run_code(KILLER, *_training(folder))
  assert done.returncode == -signal.SIGKILL, done.stderr
  assert run.latest_step(f'{folder}/run') == 8
  assert files.exists(f'{folder}/run/{lock.LOCK}')
  assert not files.exists(f'{folder}/run/prompts')

  _finish(folder)
  told = capsys.readouterr().err
  assert f'resumed {folder}/run at step 8' in told
  assert not files.exists(f'{folder}/run/{lock.LOCK}')
  copy = stores.bring(folder)
  want, found = _contents(on_disk), _contents(copy)
  assert {'run/prompts/prompts.safetensors', 'run/key/prompt_config.json'} <= (
    set(want)
  )
  assert list(found) == list(want)
  for name, content in want.items():
    if name.endswith('results.json'):
      # The record of a score says where its prompts lie.
      there = json.loads(content), json.loads(found[name])
      assert there[0].pop('prompts', None) is None or there[1].pop('prompts')
      assert there[0] == there[1]
    elif name == 'peft/adapter_model.safetensors':
      # Its two remarks come in any order.
      there = safetensors.numpy.load(content)
      assert {n: a.tolist() for n, a in there.items()} == {
        n: a.tolist() for n, a in safetensors.numpy.load(found[name]).items()
      }
    else:
      assert found[name] == content, name
  lines = files.open_to_read(f'{folder}/run/metrics.jsonl').read().splitlines()
  steps = [json.loads(line)['step'] for line in lines]
  assert steps == sorted(steps)
  assert set(steps) == {8, 16, 24}
  assert sorted(os.listdir(f'{copy}/run/tensorboard'))
  log = files.open_to_read(f'{folder}/run/log.txt').read().decode()
  assert log.count('--- ') == 2
  assert log.splitlines()[-1].split(' ', 1)[1].startswith('next: ')
