"""The verb `retrieve`: ranks over runs, starts and their controls.

Guards against means that are not over all pairs of runs, a target that is its
own nearest source, and a folder that another retrieval writes into.
"""

import itertools
import json
import logging
import re

import gin
import numpy as np
import pytest

from mpt_jax.checkpoints.bundle import PromptBundle, load_prompts
from mpt_jax.transfer import __main__ as verbs
from mpt_jax.transfer import library, retrieval, retrieve
from mpt_jax.types import InputError

P, D = 3, 7
TASKS = ('mnli', 'qqp', 'sst2', 'rte')
RUNS = (0, 1, 2)


@pytest.fixture(autouse=True)
def _clean_gin():
  gin.clear_config()
  yield
  gin.clear_config()


def prompt(*seed):
  made = np.random.default_rng(seed).normal(size=(P, D)) + 0.5
  return made.astype(np.float32)


def bundle(task, array, step=4, **changed):
  arrays = {'prompt': array}
  return PromptBundle('soft', 'teacher', (task,), arrays, step=step, **changed)


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  """A library of three runs of each task, and two keys of 'rte'."""
  folder = tmp_path_factory.mktemp('world')
  for run, (number, task) in itertools.product(RUNS, enumerate(TASKS)):
    path = folder / f'runs/{run}/{task}'
    bundle(task, prompt(number, run, 9), 9).save(str(path / 'prompts'))
    bundle(task, prompt(number, run, 4)).save(str(path / 'key'))
  for run in RUNS:
    runs = str(folder / f'runs/{run}')
    library.add(library=str(folder / 'library'), prompts=runs, run=run)
  for seed in (5, 6):
    bundle('rte', prompt(seed)).save(str(folder / f'key{seed}'))
  return folder


def call(world, folder, **settings):
  return retrieve.retrieve(
    library=str(world / 'library'),
    target_key=[str(world / 'key5'), str(world / 'key6')],
    model_dir=str(folder),
    **settings,
  )


def test_means_and_spreads_are_over_all_pairs_of_runs(world, tmp_path, capsys):
  call(world, tmp_path / 'out', k=2)
  told = json.loads((tmp_path / 'out/retrieve.json').read_text())
  for metric, rows in told['metrics'].items():
    assert {row['task'] for row in rows['prompts']} == {*TASKS[:3]}
    for row in rows['tasks']:
      number = TASKS.index(row['task'])
      pairs = [
        retrieval.similarity([prompt(number, run, 4)], prompt(seed), metric)[0]
        for run in RUNS
        for seed in (5, 6)
      ]
      assert (row['pairs'], row['run']) == (6, '')
      np.testing.assert_allclose(row['similarity'], np.mean(pairs))
      np.testing.assert_allclose(row['std'], np.std(pairs, ddof=1))
    for of, count in (('tasks', 3), ('prompts', 9)):
      ranks = [row['rank'] for row in rows[of]]
      sims = [row['similarity'] for row in rows[of]]
      assert ranks == list(range(1, count + 1))
      assert sims == sorted(sims, reverse=True)
  assert (tmp_path / 'out/retrieve.png').read_bytes()[:4] == b'\x89PNG'
  out = capsys.readouterr().out
  best = told['metrics']['average']['prompts'][0]
  assert re.search(rf'(?m)^1 +{best["name"]} +{best["similarity"]:.4f} ± ', out)
  # The K nearest prompts, to train from each.
  assert told['starts'] == ['1', '2', 'average', 'fixed']
  for number, name in enumerate(told['nearest'], 1):
    task, run = name.split('/')
    start = load_prompts(str(tmp_path / f'out/starts/{number}')).table[0]
    want = prompt(TASKS.index(task), int(run), 9)
    np.testing.assert_array_equal(start, want)
  assert told['controls'] == {'fixed': 'mnli/0', 'average': 9}
  assert told['key_steps'] == {'target': [4], 'sources': [4]}


def test_a_mixture_of_the_nearest_tasks_and_the_target(world, tmp_path, capsys):
  [found] = call(
    world, tmp_path / 'out', k=4, start='mixture', metrics=('per_token',)
  )
  tasks = list(dict.fromkeys(row.task for row in found.prompts[:4]))
  text = (tmp_path / 'out/mixture_rte.py').read_text()
  compile(text, 'mixture_rte.py', 'exec')
  assert repr([*tasks, 'rte']) in text
  assert 'maximum=524288' in text
  out = capsys.readouterr().out
  assert f'PYTHONPATH={tmp_path / "out"} python -m mpt_jax.train' in out
  assert f'PROMPT_TASKS="{[*tasks, "rte"]!r}"' in out


def test_again_does_nothing_and_another_is_refused(world, tmp_path, caplog):
  caplog.set_level(logging.INFO)
  folder = tmp_path / 'out'
  call(world, folder)
  before = (folder / 'retrieve.json').stat().st_mtime_ns
  call(world, folder)
  assert 'is finished; nothing to do' in caplog.text
  assert (folder / 'retrieve.json').stat().st_mtime_ns == before
  with pytest.raises(InputError, match='other settings.*K: 3 there, 2 here'):
    call(world, folder, k=2)


def test_what_cannot_be_compared_is_refused(world, tmp_path, caplog):
  out = tmp_path / 'out'
  with pytest.raises(InputError, match="START = 'weigted'.*mean 'weighted'"):
    call(world, out, start='weigted')
  with pytest.raises(InputError, match='K = 10, and there are 9'):
    call(world, out, k=10)
  with pytest.raises(
    InputError, match="'on' compares.*INITIAL_CHECKPOINT_PATH"
  ):
    call(world, out, metrics=('on',))
  with pytest.raises(InputError, match='has no key of another task'):
    call(world, out, tasks=['rte'])
  path, settings = str(tmp_path / 'key'), {'library': str(world / 'library')}
  settings |= {'target_key': path, 'model_dir': str(out), 'k': 1}
  bundle('rte', prompt(5)[:, :5]).save(path)
  with pytest.raises(InputError, match='cannot be compared with the target'):
    retrieve.retrieve(**settings)
  assert not out.exists()
  bundle('rte', prompt(5), 7).save(path)
  retrieve.retrieve(**settings)
  assert "are of step 4 and the target's of step 7" in caplog.text


def test_a_key_of_another_backbone_is_refused(tmp_path, capsys):
  for name, task in (('run/prompts', 'mnli'), ('run/key', 'mnli')):
    bundle(task, prompt(1), backbone_fingerprint='sha256:a').save(
      str(tmp_path / name)
    )
  library.add(library=str(tmp_path / 'lib'), prompts=str(tmp_path / 'run'))
  key = bundle('rte', prompt(2), backbone_fingerprint='sha256:b')
  key.save(str(tmp_path / 'key'))
  macros = {
    'LIBRARY': str(tmp_path / 'lib'),
    'TARGET_KEY': str(tmp_path / 'key'),
    'MODEL_DIR': str(tmp_path / 'out'),
    'K': 1,
  }
  with pytest.raises(SystemExit) as e:
    verbs.main(
      ['retrieve', *(f'--gin.{name}={v!r}' for name, v in macros.items())]
    )
  assert e.value.code == 2
  assert 'prompts of two backbones' in capsys.readouterr().err
