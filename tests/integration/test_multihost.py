"""Several processes on this machine train as one, and stop together."""

import contextlib
import json
import os
import shutil
import signal
import socket
import time

import gin
import jax
import numpy as np
import pytest

from mpt_jax import cli
from mpt_jax.checkpoints.bundle import load_prompts
from mpt_jax.engine import multihost
from mpt_jax.types import InputError
from tests.helpers import children
from tests.helpers import multihost_worker as worker

pytestmark = pytest.mark.slow

# Sums over devices and processes are taken in another order.
CLOSE = {'rtol': 1e-5, 'atol': 1e-6}
# Process 1 kills itself when it is to save step 8.
KILLER = """
import os, signal, sys
import jax
from mpt_jax import cli
from mpt_jax.checkpoints import run
save = run.RunCheckpointer.save
def save_or_die(self, state, iterator_state):
  if int(state.step) == 8 and jax.process_index() == 1:
    os.kill(os.getpid(), signal.SIGKILL)
  save(self, state, iterator_state)
run.RunCheckpointer.save = save_or_die
cli.main('mpt_jax.train', 'train', sys.argv[1:])
"""
# A command of two processes of which one ends while the other needs it.
ENDS = """
import os, signal, sys
from jax.experimental import multihost_utils
from mpt_jax import cli
from mpt_jax.engine import multihost
from mpt_jax.types import InputError
address, index, who, how = sys.argv[1:]
def run(command, *_):
  command.processes = multihost
  multihost.initialize(address, 2, int(index), heartbeat_timeout=10)
  multihost_utils.sync_global_devices('all are there')
  if index == who and how == 'killed':
    os.kill(os.getpid(), signal.SIGKILL)
  if index == who and how == 'wrong':
    raise InputError('no disk')
  if index == who and how == 'bug':
    1 / 0
  multihost_utils.sync_global_devices('never')
cli._run = run
cli.main('', '', [])
"""


def free_port():
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


@contextlib.contextmanager
def started(commands, devices=2):
  """Runs commands at the same time; ends what is left of them."""
  flags = [
    f for f in os.environ['XLA_FLAGS'].split() if 'device_count' not in f
  ]
  flags.append(f'--xla_force_host_platform_device_count={devices}')
  env = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': ' '.join(flags),
  }
  processes = [
    children.Child(command, env, stderr_to_stdout=True) for command in commands
  ]
  try:
    yield processes
  finally:
    for process in processes:
      process.kill()
      process.wait()


def outputs(processes, timeout=300):
  """[(exit code, lines without those of the transport)]."""
  found = []
  for process in processes:
    text, _ = process.communicate(timeout=timeout)
    lines = [x for x in text.splitlines() if x and not x.startswith('[Gloo]')]
    found.append((process.returncode, lines))
  return found


def flags(count, port):
  """The process flags of each command line."""
  return [
    [
      '--multiprocess_gpu',
      f'--coordinator_address=127.0.0.1:{port}',
      f'--process_count={count}',
      f'--process_index={i}',
    ]
    for i in range(count)
  ]


# --- The engine, without the data stack. -----------------------------------


def run_workers(count, devices, folder, runs):
  address = f'127.0.0.1:{free_port()}'
  commands = [
    [
      '-m',
      'tests.helpers.multihost_worker',
      json.dumps(
        {
          'process_count': count,
          'process_index': i,
          'coordinator_address': address,
          'folder': str(folder),
          'runs': runs,
        }
      ),
    ]
    for i in range(count)
  ]
  with started(commands, devices) as processes:
    for code, lines in outputs(processes):
      assert code == 0, lines
  return [
    json.loads((folder / f'facts.{count * devices}.{i}').read_text())
    for i in range(count)
  ]


@pytest.fixture(scope='module')
def engine(tmp_path_factory):
  """Runs of 1 x 1, 1 x 4 and 2 x 2 processes x devices.

  One of the 2 x 2 runs has the model on all four devices, another resumes what
  one device saved.
  """
  folder = tmp_path_factory.mktemp('engine')
  one = jax.devices()[:1]
  params, losses = worker.train(folder / '1x1', devices=one)
  worker.train(folder / 'from_1x1', steps=worker.PERIOD, devices=one)
  single = run_workers(1, 4, folder, {'1x4': 1})
  pair = run_workers(2, 2, folder, {'2x2': 1, '2x2_model': 4, 'from_1x1': 1})
  return folder, params, losses, single, pair


def assert_params(path, expected):
  with np.load(path) as found:
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
      np.testing.assert_allclose(found[name], value, err_msg=name, **CLOSE)


def test_the_trajectory_does_not_depend_on_the_processes(engine):
  folder, params, losses, (single,), pair = engine
  assert [single['devices']] + [p['devices'] for p in pair] == [4, 4, 4]
  assert [step for step, _ in losses] == list(range(1, worker.STEPS + 1))
  np.testing.assert_allclose(single['losses']['1x4'], losses, **CLOSE)
  assert_params(folder / '1x4.0.npz', params)
  for name in ('2x2', '2x2_model'):
    for i, process in enumerate(pair):
      np.testing.assert_allclose(process['losses'][name], losses, **CLOSE)
      assert_params(folder / f'{name}.{i}.npz', params)
  # Metrics and parameters are of all processes: equal to the bit.
  assert pair[0]['losses'] == pair[1]['losses']


def test_processes_that_share_a_model_share_the_rows(engine):
  *_, pair = engine
  for i, process in enumerate(pair):
    assert process['parts'] == {
      '2x2': [i, 2],
      '2x2_model': [0, 1],
      'from_1x1': [i, 2],
    }


def test_one_device_saves_and_two_processes_resume(engine):
  folder, params, losses, _, pair = engine
  for i, process in enumerate(pair):
    resumed = process['losses']['from_1x1']
    np.testing.assert_allclose(resumed, losses[worker.PERIOD :], **CLOSE)
    assert_params(folder / f'from_1x1.{i}.npz', params)


@pytest.mark.parametrize('saved', ['1x4', '2x2', '2x2_model'])
def test_four_devices_save_and_one_resumes(engine, saved, tmp_path):
  folder, params, losses, *_ = engine
  first = str(worker.PERIOD)
  shutil.copytree(
    folder / saved / 'checkpoints' / first, tmp_path / 'checkpoints' / first
  )
  resumed, seen = worker.train(tmp_path, devices=jax.devices()[:1])
  np.testing.assert_allclose(seen, losses[worker.PERIOD :], **CLOSE)
  for name, value in params.items():
    np.testing.assert_allclose(resumed[name], value, err_msg=name, **CLOSE)


def test_processes_agree(engine):
  *_, pair = engine
  for facts in pair:
    assert facts['on_first'] == ['of', 0]
    assert 'num_partitions = 3' in facts['raised']
    assert facts['same'] == ''
    assert facts['another'] == (
      'process 1: another code version than process 0: digest is 1 here and 0'
      ' there'
    )
    assert facts['uneven'] == 'process 1: no disk'


# --- Whole commands. --------------------------------------------------------


def arguments(world, model_dir, **macros):
  settings = {
    'INITIAL_CHECKPOINT_PATH': str(world / 'backbone'),
    'MODEL_DIR': str(model_dir),
    'MIXTURE_OR_TASK_NAME': 'two_sources',
    'MIXTURE_OR_TASK_MODULE': 'tests.helpers.pipeline_tasks',
    'PROMPT_TASKS': ['mnli', 'sst2'],
    'PADDING': 'pack',
    'NUM_SHOTS': 40,
    'PROMPT_LENGTH': 5,
    'TASK_FEATURE_LENGTHS': {'inputs': 60, 'targets': 7},
    'BATCH_SIZE': 8,
    'TRAIN_STEPS': 12,
    'CHECKPOINT_PERIOD': 4,
    'LOG_PERIOD': 4,
    'EVAL_EXAMPLES': 7,
    'EVAL_STEPS': 2,
    **macros,
  }
  return [
    '--gin_file=gin_configs/runs/teacher.gin',
    f'--tfds_data_dir={world / "data"}',
    *(f'--gin.{name}={value!r}' for name, value in settings.items()),
  ]


def assert_same_run(folder, other):
  got, want = (load_prompts(str(f / 'prompts')) for f in (folder, other))
  assert got.step == want.step == 12
  for name, array in want.arrays.items():
    np.testing.assert_allclose(got.arrays[name], array, err_msg=name, **CLOSE)
  for file in ('results.json', 'few_shot.json', 'run_config.json'):
    assert json.loads((folder / file).read_text()) == (
      json.loads((other / file).read_text())
    ), file
  metrics = [
    [json.loads(x) for x in (f / 'metrics.jsonl').read_text().splitlines()]
    for f in (folder, other)
  ]
  assert [m['step'] for m in metrics[0]] == [4, 8, 12, 12]
  for ours, theirs in zip(*metrics, strict=True):
    assert ours.keys() == theirs.keys()
    for name in ours:
      if 'second' not in name:
        np.testing.assert_allclose(ours[name], theirs[name], 1e-5, err_msg=name)


# What a loss says, and that hosts change no number, is above and quicker.
@pytest.mark.long
def test_lost_then_resumed_by_two_processes_and_by_one(world, tmp_path):
  """Kills a worker; the rest of the run is that of one process."""
  folder = tmp_path / 'pair'
  argv = arguments(world, folder)
  commands = [
    ['-c', KILLER, *argv, *f, '--heartbeat_timeout=15']
    for f in flags(2, free_port())
  ]
  with started(commands) as processes:
    assert processes[1].wait(300) == -signal.SIGKILL
    killed = time.monotonic()
    code, lines = outputs(processes)[0]
    assert time.monotonic() - killed < 20
  assert code == 1
  assert lines[-1].startswith('error: process 1 of 2 was lost: ')
  assert 'Traceback' not in '\n'.join(lines)
  assert os.listdir(folder / 'checkpoints') == ['4']
  assert not (folder / 'prompts').exists()
  shutil.copytree(folder, tmp_path / 'alone')

  commands = [['-m', 'mpt_jax.train', *argv, *f] for f in flags(2, free_port())]
  with started(commands) as processes:
    for i, (code, lines) in enumerate(outputs(processes)):
      text = '\n'.join(lines)
      assert code == 0, text
      # Process 0 reports; the others are silent unless something is wrong.
      assert ('resumed' in text) == (i == 0), text
      assert ('validation: ' in text) == (i == 0), text
  # Here: one process of two devices, never stopped, and resuming the rest.
  for name in ('whole', 'alone'):
    gin.clear_config()
    own = arguments(world, tmp_path / name)
    cli.main('mpt_jax.train', 'train', own)
    assert_same_run(tmp_path / name, folder)


def infer_arguments(world, output, data=True, **macros):
  settings = {
    'INITIAL_CHECKPOINT_PATH': str(world / 'backbone'),
    'PROMPTS': None,
    'MIXTURE_OR_TASK_NAME': 'sst2',
    'EVAL_EXAMPLES': 7,
    'BATCH_SIZE': 4,
    'TASK_FEATURE_LENGTHS': {'inputs': 60, 'targets': 7},
    'OUTPUT': str(output),
    **macros,
  }
  return [
    '--gin_file=gin_configs/runs/infer.gin',
    # TensorFlow takes seconds to be imported, where there are data.
    *([f'--tfds_data_dir={world / "data"}'] if data else []),
    *(f'--gin.{name}={value!r}' for name, value in settings.items()),
  ]


def test_answers_of_two_processes_are_those_of_one(world, tmp_path):
  argv = infer_arguments(world, tmp_path / 'pair.jsonl')
  commands = [['-m', 'mpt_jax.infer', *argv, *f] for f in flags(2, free_port())]
  with started(commands) as processes:
    for code, lines in outputs(processes):
      assert code == 0, lines
  cli.main(
    'mpt_jax.infer', 'infer', infer_arguments(world, tmp_path / 'one.jsonl')
  )
  answers = (tmp_path / 'pair.jsonl').read_text()
  assert len(answers.splitlines()) == 7
  assert answers == (tmp_path / 'one.jsonl').read_text()


def test_another_configuration_is_an_error_of_both(world, tmp_path):
  commands = [
    [
      '-m',
      'mpt_jax.infer',
      *infer_arguments(
        world, tmp_path / 'a.jsonl', data=False, BATCH_SIZE=4 * (i + 1)
      ),
      *f,
    ]
    for i, f in enumerate(flags(2, free_port()))
  ]
  with started(commands) as processes:
    for code, lines in outputs(processes):
      assert code == 2, lines
      assert lines[-1] == (
        'error: process 1: another configuration than process 0: BATCH_SIZE is'
        ' 8 here and 4 there'
      )
  assert not (tmp_path / 'a.jsonl').exists()


def test_an_error_of_one_process_stops_the_other(world, tmp_path):
  argv = infer_arguments(world, tmp_path / 'a.jsonl')
  commands = [['-m', 'mpt_jax.infer', *argv, *f] for f in flags(2, free_port())]
  commands[1].append(f'--tfds_data_dir={tmp_path / "elsewhere"}')
  with started(commands) as processes:
    (code, lines), (other_code, other_lines) = outputs(processes)
  assert code == other_code == 2
  error = f'--tfds_data_dir={tmp_path / "elsewhere"} does not exist'
  assert other_lines[-1].startswith(f'error: {error}')
  assert lines[-1].startswith(f'error: process 1 stopped: {error}')


@pytest.mark.parametrize(
  ('who', 'how', 'code', 'said'),
  [
    (0, 'killed', 1, 'error: process 0 of 2 was lost: '),
    (0, 'wrong', 2, 'error: process 0 stopped: no disk'),
    (0, 'bug', 1, 'error: process 0 stopped: ZeroDivisionError: division '),
    (1, 'bug', 1, 'error: process 1 stopped: ZeroDivisionError: division '),
  ],
)
def test_whoever_ends_ends_the_other(who, how, code, said):
  address = f'127.0.0.1:{free_port()}'
  commands = [['-c', ENDS, address, str(i), str(who), how] for i in range(2)]
  with started(commands) as processes:
    ends = outputs(processes, timeout=60)
  other_code, other_lines = ends[1 - who]
  assert other_code == code
  ours = [x for x in other_lines if x.startswith('error: ')]
  assert ours == other_lines[-1:]
  assert ours[0].startswith(said)
  assert 'Traceback' not in '\n'.join(other_lines)
  own_code, own_lines = ends[who]
  assert own_code == (-signal.SIGKILL if how == 'killed' else code)
  assert ('Traceback' in '\n'.join(own_lines)) == (how == 'bug')


def test_heartbeats_that_a_busy_host_would_miss():
  with pytest.raises(InputError, match='heartbeat_timeout=3 .* 5 or more'):
    multihost.initialize('127.0.0.1:1', 2, 0, heartbeat_timeout=3)


def test_a_process_that_never_comes(world, tmp_path):
  argv = infer_arguments(world, tmp_path / 'a.jsonl')
  (first, _) = flags(2, free_port())
  command = ['-m', 'mpt_jax.infer', *argv, *first, '--initialization_timeout=1']
  with started([command]) as processes:
    ((code, lines),) = outputs(processes)
  assert code == 2
  assert 'did not find each other within 1 s' in lines[-1]
  assert 'process 0 of 2' in lines[-1]
