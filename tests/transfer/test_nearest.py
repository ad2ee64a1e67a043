"""START = 'nearest': a run starts from what retrieval says, and says so.

Guards against a start that is another task's than the nearest, one that is not
recorded, and a comparison of what cannot be compared.
"""

import json
import logging
import pathlib

import numpy as np
import pytest

import mpt_jax
from mpt_jax import methods
from mpt_jax.checkpoints.bundle import PromptBundle, load_prompts
from mpt_jax.engine.settings import Devices, Logging
from mpt_jax.engine.starts import Source
from mpt_jax.transfer import library, neurons, ranking, retrieval, sources
from mpt_jax.types import InputError
from tests.helpers import tiny

P, D = 3, tiny.SERVED.emb_dim
TASKS = ('mnli', 'qqp', 'sst2', 'one')


def prompt(*seed):
  return np.random.default_rng(seed).normal(size=(P, D)).astype(np.float32)


@pytest.fixture(scope='module')
def backbone():
  return tiny.served()


def bundle(backbone, task, array, step):
  return PromptBundle(
    *('soft', 'teacher', (task,), {'prompt': array}),
    backbone_name=backbone.name,
    backbone_fingerprint=backbone.fingerprint,
    step=step,
  )


@pytest.fixture(scope='module')
def world(backbone, tmp_path_factory):
  """A library of four tasks, two runs each, and the key of 'one'."""
  folder = tmp_path_factory.mktemp('world')
  for run in (0, 1):
    for number, task in enumerate(TASKS):
      for name, step in (('prompts', 9), ('key', 4), ('start', 0)):
        array = prompt(number, run, step)
        path = folder / f'runs/{run}/{task}/{name}'
        bundle(backbone, task, array, step).save(str(path))
    pattern = str(folder / f'runs/{run}' / '{task}')
    library.add(library=str(folder / 'library'), prompts=pattern, run=run)
  bundle(backbone, 'one', prompt(77), 4).save(str(folder / 'key'))
  bundle(backbone, 'one', prompt(77), 5).save(str(folder / 'later'))
  method = methods.MultitaskPrompts(P)
  arrays = {
    name: np.random.default_rng(size).normal(size=size).astype(np.float32)
    for name, size in method.shapes(tiny.SERVED, 3).items()
  }
  PromptBundle(
    *('multitask', 'source', TASKS[:3], arrays),
    backbone_fingerprint=backbone.fingerprint,
  ).save(str(folder / 'source'))
  return folder


def train(backbone, folder, method, source, **settings):
  rows = [{'text': word, 'answer': word[:3]} for word in ('the cat', 'a fern')]
  task = mpt_jax.Task(train=rows, inputs='{text}', targets='{answer}')
  multitask = isinstance(method, methods.MultitaskPrompts)
  return mpt_jax.train(
    **{
      'backbone': backbone,
      'method': method,
      'tasks': {'one': task},
      'dataset': {
        'task_feature_lengths': {'inputs': 16, 'targets': 6},
        'batch_size': 2,
      },
      'stage': 'target' if multitask else 'teacher',
      'start': source,
      'steps': 1,
      'model_dir': str(folder),
      'evaluation': None,
      'devices': Devices(padding='max'),
      'logging': Logging(1, 1, tensorboard=False, key_step=1),
      **settings,
    }
  )


def order(keys, target, metric):
  """Names by similarity, the nearest first, of a formula of our own."""
  found = {}
  for name, key in keys.items():
    a, b = key.astype(float), target.astype(float)
    if metric == 'average':
      a, b = a.mean(0, keepdims=True), b.mean(0, keepdims=True)
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    b /= np.linalg.norm(b, axis=1, keepdims=True)
    found[name] = (a @ b.T).mean()
  return sorted(found, key=found.get, reverse=True)


@pytest.mark.parametrize('metric', [None, 'per_token'])
def test_soft_starts_from_the_nearest_value(backbone, world, tmp_path, metric):
  keys = {
    (task, run): prompt(number, run, 4)
    for number, task in enumerate(TASKS[:3])
    for run in (0, 1)
  }
  want = order(keys, prompt(77), metric or 'average')
  source = Source(
    str(world / 'library'), target_key=str(world / 'key'), similarity=metric
  )
  method = methods.SoftPrompts(P, start='nearest')
  train(backbone, tmp_path / 'run', method, source)
  (task, run), number = want[0], TASKS.index(want[0][0])
  start = load_prompts(str(tmp_path / 'run/start'))
  np.testing.assert_array_equal(start.table[0], prompt(number, run, 9))
  told = json.loads((tmp_path / 'run/nearest.json').read_text())
  assert told['picked'] == f'{task}/{run}'
  # What is trained is no source of itself, though its key is the same here.
  assert [(r['task'], int(r['run'])) for r in told['ranking']] == want
  config = json.loads((tmp_path / 'run/run_config.json').read_text())
  assert f'library/{task}/{run}/value' in config['start']
  before = pathlib.Path(tmp_path / 'run/results.json').stat().st_mtime_ns
  train(backbone, tmp_path / 'run', method, source)
  after = pathlib.Path(tmp_path / 'run/results.json').stat().st_mtime_ns
  assert after == before
  # Only of some tasks, and of those the one run that is named.
  source = Source(
    str(world / 'library'), ['qqp/1'], target_key=str(world / 'key')
  )
  train(backbone, tmp_path / 'other', method, source)
  start = load_prompts(str(tmp_path / 'other/start'))
  np.testing.assert_array_equal(start.table[0], prompt(1, 1, 9))


def test_multitask_starts_from_the_nearest_task(
  backbone, world, tmp_path, caplog
):
  caplog.set_level(logging.INFO)
  method = methods.MultitaskPrompts(P, start='nearest')
  source = load_prompts(str(world / 'source'))
  key = str(world / 'key')

  def factors(folder):
    start = load_prompts(str(tmp_path / folder / 'start'))
    np.testing.assert_array_equal(
      start.arrays['shared_prompt'], source.arrays['shared_prompt']
    )
    [row] = [
      row
      for row in range(3)
      if np.array_equal(start.arrays['task_u'][0], source.arrays['task_u'][row])
    ]
    np.testing.assert_array_equal(
      start.arrays['task_v'][0], source.arrays['task_v'][row]
    )
    return TASKS[row]

  # By the source's own composed prompts.
  given = Source(str(world / 'source'), target_key=key)
  train(backbone, tmp_path / 'own', method, given)
  table = dict(zip(source.task_names, source.table, strict=True))
  assert factors('own') == order(table, prompt(77), 'average')[0]
  assert 'no library: tasks are compared by their finished' in caplog.text
  # By the keys of a library.
  given = Source(
    *(str(world / 'source'), None, key, str(world / 'library')), 'per_token'
  )
  train(backbone, tmp_path / 'keys', method, given)
  keys = {
    (task, run): prompt(number, run, 4)
    for number, task in enumerate(TASKS[:3])
    for run in (0, 1)
  }
  assert factors('keys') == order(keys, prompt(77), 'per_token')[0][0]
  # A library's value becomes P* itself.
  given = Source(str(world / 'library'), target_key=key)
  train(backbone, tmp_path / 'value', method, given)
  task, run = order(keys, prompt(77), 'average')[0]
  start = load_prompts(str(tmp_path / 'value/start'))
  want = prompt(TASKS.index(task), run, 9)
  np.testing.assert_array_equal(start.table[0], want)


def test_the_overlap_of_neurons_is_a_metric_too(backbone, world):
  keys = ranking.source_keys(str(world / 'library'), backbone, ['qqp', 'sst2'])
  [target] = sources.read(str(world / 'key'), backbone)
  found = ranking.compare(keys, [target], 'on', backbone)
  names = ['qqp/0', 'qqp/1', 'sst2/0', 'sst2/1']
  assert [key.name for key in found.sources] == names
  for key, similarity in zip(keys, found.similarities[0], strict=True):
    want = neurons.overlap(backbone, [target, key])[0, 1]
    np.testing.assert_allclose(similarity, want, atol=1e-6)


def test_the_mean_of_all_sources_is_a_start(backbone, world, tmp_path):
  method = methods.SoftPrompts(P, start='average')
  tasks = ['mnli/0', 'sst2/1']
  given = Source(str(world / 'library'), tasks)
  train(backbone, tmp_path / 'run', method, given)
  start = load_prompts(str(tmp_path / 'run/start'))
  want = (prompt(0, 0, 9) + prompt(2, 1, 9)) / 2
  np.testing.assert_allclose(start.table[0], want, atol=1e-6)
  shares = retrieval.weights([0.5, 0.5])
  np.testing.assert_allclose(
    retrieval.weighted_prompt([prompt(0, 0, 9), prompt(2, 1, 9)], shares),
    start.table[0],
    atol=1e-6,
  )


def test_what_is_missing_or_does_not_fit(backbone, world, tmp_path, caplog):
  nearest = methods.SoftPrompts(P, start='nearest')
  folder, path, key = tmp_path / 'run', str(world / 'library'), world / 'key'

  def refused(words, method, source, **settings):
    with pytest.raises(InputError, match=words):
      train(backbone, folder, method, source, **settings)
    assert not (folder / 'checkpoints/1').exists()

  refused('TARGET_KEY is not given: `python -m.*KEY_STEP=N', nearest, path)
  refused(
    *("TARGET_KEY '/no' is not there: `python", nearest),
    Source(path, target_key='/no'),
  )
  refused('needs SOURCE_PROMPTS, a library', nearest, None)
  plain = methods.SoftPrompts(P)
  given = Source(path, target_key=str(key))
  refused("TARGET_KEY = .*no use without START = 'nearest'", plain, given)
  refused("several runs of 'mnli': name one .*'mnli/0'", plain, path)
  refused(
    "'nearest' picks for one task",
    nearest,
    given,
    tasks={
      name: mpt_jax.Task(train=[{'a': 'b'}], inputs='{a}', targets='{a}')
      for name in ('one', 'two')
    },
    each_task=False,
    stage='source',
  )
  with pytest.raises(InputError, match="START = 'mean'.*average, nearest"):
    methods.SoftPrompts(P, start='mean')
  refused(
    'SOURCE_PROMPTS, prompts', methods.SoftPrompts(P, start='task:x'), None
  )
  # Trained for longer than the others.
  given = Source(path, target_key=str(world / 'later'))
  train(backbone, folder, nearest, given)
  assert "are of step 4 and the target's of step 5" in caplog.text
