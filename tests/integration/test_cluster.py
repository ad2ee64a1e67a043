"""A study's steps on Ray: a node is lost, the user interrupts, it goes on."""

import os
import pathlib

import numpy as np
import pytest

from mpt_jax.checkpoints import lock
from mpt_jax.checkpoints import run as run_lib
from mpt_jax.checkpoints.bundle import load_prompts
from mpt_jax.study import steps
from mpt_jax.study.progress import Progress
from mpt_jax.study.workers import Pool
from mpt_jax.types import InputError

ray = pytest.importorskip('ray', reason="needs the extra 'ray'")
ROOT = pathlib.Path(__file__).parents[2]
STEPS = 4000


def teachers(world, folder):
  """Two trainings with a state that is saved now and then."""
  return [
    steps.Step(
      name=f'teacher/{task}',
      entry='train',
      gin_files=('gin_configs/runs/teacher.gin',),
      macros={
        'INITIAL_CHECKPOINT_PATH': str(world / 'backbone'),
        'MODEL_DIR': str(folder / 'teacher' / task),
        'MIXTURE_OR_TASK_NAME': task,
        'TASK_FEATURE_LENGTHS': {'inputs': 24, 'targets': 3},
        'PROMPT_LENGTH': 4,
        'TRAIN_STEPS': STEPS,
        'BATCH_SIZE': 2,
        'PADDING': 'max',
        'CHECKPOINT_PERIOD': 250,
        'ALLOW_CUT_TARGETS': True,
        'train.train.evaluation': None,
      },
      likeness='teacher',
      labels={'task': task},
    )
    for task in ('mnli', 'sst2')
  ]


@pytest.fixture
def pool_in(world):
  """Opens a pool as a study does."""

  def open_pool(folder, executor):
    return Pool(
      str(folder),
      2,
      str(world / 'backbone'),
      str(world / 'data'),
      'tasks',
      executor,
    )

  return open_pool


def prompt(folder, step):
  bundle = load_prompts(str(folder / step.name / 'prompts'))
  return bundle.compose(step.labels['task'])


@pytest.fixture
def cluster(monkeypatch):
  """Two nodes of one core, and a head without any."""
  from ray.cluster_utils import Cluster

  monkeypatch.setenv('RAY_USAGE_STATS_ENABLED', '0')
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  size = {'num_cpus': 1, 'object_store_memory': 80 << 20}
  made = Cluster(
    initialize_head=True,
    head_node_args={**size, 'num_cpus': 0, 'include_dashboard': False},
  )
  made.add_node(**size)
  made.add_node(**size)
  monkeypatch.setenv('RAY_ADDRESS', made.address)
  yield made
  made.shutdown()


def when_saved(monkeypatch, folder, act):
  """Acts once, as soon as a training has saved a step that it began after."""
  before, acted = {}, []

  def look(self, running):
    del self
    for step in running:
      path = str(folder / step.name)
      saved = run_lib.latest_step(path) or 0
      if not acted and saved > before.setdefault(step.name, saved):
        acted.append(step.name)
        act(path)

  monkeypatch.setattr(Progress, 'maybe_print', look)
  monkeypatch.setattr(Progress, 'seconds_to_next', lambda self: 0.1)
  return acted


@pytest.mark.slow
@pytest.mark.data
def test_stopped_and_with_a_lost_node_the_result_is_the_same(
  world, tmp_path, cluster, pool_in, monkeypatch, caplog
):
  caplog.set_level('INFO')
  there, here = tmp_path / 'ray', tmp_path / 'local'
  made = teachers(world, there)

  def interrupt(path):
    raise KeyboardInterrupt

  acted = when_saved(monkeypatch, there, interrupt)
  with (
    pytest.raises(KeyboardInterrupt),
    lock.hold(str(there)),
    pool_in(there, 'ray') as pool,
  ):
    pool.run(made)
  # It saved its state where it was, not at a period's end.
  assert 0 < run_lib.latest_step(str(there / acted[0])) < STEPS
  assert 'stopped at step' in (there / acted[0] / 'log.txt').read_text()

  def kill_node(path):
    """Of the worker that runs the training there."""
    process = int(lock.holder(path).split()[1])
    places = [ray.get(w._place) for w in pool._workers if w.started.done()]
    (name,) = [name for name, number in places if number == process]
    (node,) = [n for n in cluster.worker_nodes if n.node_id == name]
    cluster.remove_node(node, allow_graceful=False)

  acted = when_saved(monkeypatch, there, kill_node)
  with lock.hold(str(there)), pool_in(there, 'ray') as pool:
    assert pool.limit == 2
    pool.run(made)
  assert not ray.is_initialized()
  assert f'{acted[0]}: its worker was lost' in caplog.text
  log = (there / acted[0] / 'log.txt').read_text()
  assert log.count('resum') >= 2, log

  (twin,) = [s for s in teachers(world, here) if s.name == acted[0]]
  with pool_in(here, 'local') as pool:
    pool.run([twin])
  np.testing.assert_array_equal(prompt(there, twin), prompt(here, twin))


def test_a_node_that_sees_another_folder_is_refused(tmp_path, monkeypatch):
  from mpt_jax.study import cluster

  monkeypatch.chdir(tmp_path)
  with lock.hold('study'):
    held = lock.holder('study')
  assert str(os.getpid()) in held
  (tmp_path / 'study' / lock.LOCK).write_text('process 1 on another\n')
  with pytest.raises(InputError, match='study on node .* that all nodes see'):
    cluster._prepare(str(tmp_path), 'study', held)
  with pytest.raises(InputError, match='that all nodes see'):
    cluster._prepare(str(tmp_path), 'absent', held)
  with pytest.raises(InputError, match='gone, where .* is not on node'):
    cluster._prepare(str(tmp_path / 'gone'), 'study', held)


@pytest.mark.parametrize(
  ('cores', 'gpus', 'workers', 'share', 'limit'),
  [
    # A worker for each core, or as many as asked for, with all of them.
    ([2], [0], None, (1, 0), 2),
    ([8, 8], [0, 0], 4, (4, 0), 4),
    ([8, 8], [0, 0], 1, (8, 0), 1),
    # For each GPU, with the cores of its node; a node without one has none.
    ([64, 64, 16], [8, 8, 0], None, (8, 1), 16),
    ([64, 48], [8, 8], None, (6, 1), 16),
    ([64, 64], [8, 8], 4, (32, 4), 4),
    ([64, 64], [8, 4], 1, (32, 4), 1),
    # Fewer cores than GPUs are no reason to leave any idle.
    ([4], [8], None, (0, 1), 8),
    # Where there is nothing (yet), one waits.
    ([], [], None, (1, 0), 1),
  ],
)
def test_workers_share_what_the_nodes_have(
  cores, gpus, workers, share, limit, monkeypatch
):
  from mpt_jax.study import cluster

  nodes = [
    {'Alive': True, 'Resources': {'CPU': float(c), 'GPU': float(g)}}
    for c, g in zip(cores, gpus, strict=True)
  ]
  nodes.append({'Alive': False, 'Resources': {'CPU': 64.0, 'GPU': 8.0}})
  monkeypatch.setattr(ray, 'nodes', lambda: nodes)
  monkeypatch.setattr(ray, 'is_initialized', lambda: True)
  made = cluster.Ray('folder', workers)
  assert (made._cpus, made._gpus) == share
  assert made.limit('cpu') == limit


def test_executors_are_known_by_name(tmp_path):
  with pytest.raises(
    InputError, match="EXECUTOR is 'rai', .* local, ray; did you mean 'ray'"
  ):
    Pool(str(tmp_path), 1, 'demo', None, None, 'rai')
