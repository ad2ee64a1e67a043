"""A library: what goes in comes out, and what cannot be used is named.

Guards against a damaged or foreign entry that costs the others or joins them,
an index that is believed over the bundles, and a name that leads elsewhere.
"""

import json
import os
import pathlib
import shutil

import gin
import numpy as np
import pytest

from mpt_jax import methods
from mpt_jax.checkpoints.bundle import PromptBundle
from mpt_jax.transfer import __main__ as verbs
from mpt_jax.transfer import library, shelf, sources
from mpt_jax.types import InputError
from tests.helpers import tiny

P, D = 5, tiny.SERVED.emb_dim
TASKS = ('rte', 'cb')


@pytest.fixture(autouse=True)
def _clean_gin():
  gin.clear_config()
  yield
  gin.clear_config()


def prompt(seed, shape=(P, D)):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def bundle(task='rte', seed=0, **changed):
  return PromptBundle(
    **{
      'method': 'soft',
      'stage': 'teacher',
      'task_names': (task,),
      'arrays': {'prompt': prompt(seed)},
      'backbone_name': 'tiny',
      'backbone_fingerprint': 'sha256:ours',
      'vocabulary_digest': 'sha256:words',
      'step': 40,
      'metrics': {task: {'accuracy': 70.0 + seed, 'f1': 1.0}},
      **changed,
    }
  )


def a_run(folder, task='rte', seed=0, split='validation'):
  """The folder of a finished run with a key."""
  bundle(task, seed).save(str(folder / 'prompts'))
  bundle(task, seed + 10, step=8, metrics={}).save(str(folder / 'key'))
  bundle(task, 99, step=0, metrics={}).save(str(folder / 'start'))
  (folder / 'results.json').write_text(json.dumps({'split': split}))
  (folder / 'run_config.json').write_text(json.dumps({'seed': seed}))
  return folder


@pytest.fixture
def folder(tmp_path):
  """A library of two tasks with two runs each."""
  for seed in (0, 1):
    for task in TASKS:
      a_run(tmp_path / f'runs/{seed}/{task}', task, seed)
    pattern = str(tmp_path / f'runs/{seed}' / '{task}')
    library.add(library=str(tmp_path / 'library'), prompts=pattern)
  return tmp_path / 'library'


def snapshot(folder):
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in sorted(pathlib.Path(folder).rglob('*'))
    if p.is_file() and p.name != '.lock'
  }


def damage(path):
  content = bytearray((path / 'prompts.safetensors').read_bytes())
  content[-3] ^= 1
  (path / 'prompts.safetensors').write_bytes(content)


def test_what_goes_in_comes_out(folder):
  found = library.open_library(str(folder)).prompts()
  assert [p.name for p in found] == ['cb/0', 'cb/1', 'rte/0', 'rte/1']
  for source in found:
    seed = int(source.run)
    np.testing.assert_array_equal(source.array, prompt(seed))
    np.testing.assert_array_equal(source.start, prompt(99))
    assert (source.kind, source.step, source.score) == ('value', 40, 70 + seed)
    assert source.backbone_fingerprint == 'sha256:ours'
  [key] = library.open_library(str(folder)).prompts('key', ['rte/1'])
  assert (key.name, key.kind, key.step, key.score) == ('rte/1', 'key', 8, None)
  np.testing.assert_array_equal(key.array, prompt(11))
  # Wherever prompts are given, a library gives its values.
  got = sources.read({'all': str(folder), 'one': bundle()})
  assert [p.name for p in got][-2:] == ['all/rte/1', 'one']
  index = json.loads((folder / 'library.json').read_text())
  assert index['version'] == 1
  assert len(index['entries']) == 12
  [row] = [
    row
    for row in index['entries']
    if (row['task'], row['run'], row['kind']) == ('cb', '1', 'value')
  ]
  start = sources.SourcePrompt('start', found[1].start)
  assert row['start'] == {'path': 'cb/1/start', 'digest': start.digest}
  assert (row['metric'], row['score'], row['split']) == (
    *('accuracy', 71.0, 'validation'),
  )
  assert (row['step'], row['prompt_length'], row['emb_dim']) == (40, P, D)
  assert row['digest'] == bundle('cb', 1).digest


def test_again_is_no_change_and_other_content_is_refused(folder, tmp_path):
  before = snapshot(folder)
  library.add(library=str(folder), prompts=str(tmp_path / 'runs/0'))
  assert snapshot(folder) == before
  other = bundle('rte', 5)
  given = {'library': str(folder), 'prompts': other}
  with pytest.raises(
    InputError, match='other prompts in the place of 1.*rte/0'
  ):
    library.add(**given)
  assert snapshot(folder) == before
  library.add(**given, run='mine')
  library.add(**given, replace=True)
  found = library.open_library(str(folder))
  [value] = found.prompts(tasks=['rte/0'])
  np.testing.assert_array_equal(value.array, prompt(5))
  # The key of the run that went would be another's.
  assert [p.name for p in found.prompts('key')] == ['cb/0', 'cb/1', 'rte']


def test_of_several_tasks_each_has_its_composed_prompt(tmp_path):
  method = methods.MultitaskPrompts(P)
  arrays = {
    name: prompt(i, shape)
    for i, (name, shape) in enumerate(method.shapes(tiny.SERVED, 2).items())
  }
  several = bundle(
    method='multitask',
    stage='source',
    task_names=TASKS,
    arrays=arrays,
    metrics={'cb': {'accuracy': 7.0}},
  )
  several.save(str(tmp_path / 'source'))
  made = library.add(
    library=str(tmp_path / 'lib'), prompts=str(tmp_path / 'source'), run=3
  )
  found = {p.task: p for p in made.prompts()}
  for task in TASKS:
    np.testing.assert_array_equal(found[task].array, several.compose(task))
  assert (found['cb'].score, found['rte'].score) == (7.0, None)
  only = library.add(
    library=str(tmp_path / 'only'),
    prompts={'new': bundle()},  # One prompt takes the name.
  )
  assert [p.name for p in only.prompts()] == ['new']


def test_a_damaged_entry_is_named_and_the_rest_goes_on(folder, caplog):
  damage(folder / 'cb/0/value')
  damage(folder / 'rte/0/start')
  shutil.rmtree(folder / 'rte/1/value')
  opened = library.open_library(str(folder))
  found = opened.prompts()
  # The names of the others stay what they were.
  assert [p.name for p in found] == ['cb/1', 'rte/0']
  assert found[1].start is None
  for name in ('cb/0/value', 'rte/0/start', 'rte/1/value'):
    assert f'library: {name} is left out: ' in caplog.text
  told = {}
  opened.prompts(on_damage=lambda name, error: told.update({name: error}))
  assert set(told) == {'cb/0/value', 'rte/0/start', 'rte/1/value'}
  with pytest.raises(InputError, match='none of its 1 bundles'):
    opened.prompts(tasks=['cb/0'])
  for _ in range(2):  # What is missing is said once, what is there each time.
    with pytest.raises(InputError) as e:
      library.check(library=str(folder))
  assert [d.partition(':')[0] for d in e.value.details] == [
    *('cb/0/value', 'rte/0/start'),
  ]
  library.add(library=str(folder), prompts=bundle('cb'), replace=True)
  assert len(opened.prompts()) == 3


def test_the_index_is_made_anew_and_never_believed(folder, capsys):
  right = snapshot(folder)
  index = folder / 'library.json'
  for content in (
    None,
    b'{',
    b'{"entries": 3}',
    right['library.json'].replace(b'"step": 40', b'"step": 41'),
    right['library.json'].replace(b'"run": "1"', b'"run": "../.."'),
  ):
    index.unlink()
    if content is not None:
      index.write_bytes(content)
    assert len(library.open_library(str(folder)).prompts()) == 4
    library.check(library=str(folder))
    rows = json.loads(index.read_text())['entries']
    assert {row['step'] for row in rows} == {0, 8, 40}
    # The split of a score is known to nobody else.
    split = 'validation' if content and b'4' in content else ''
    assert rows[0]['split'] == split
  library.listing(library=str(folder))
  out = capsys.readouterr().out.splitlines()
  assert len(out) == 13
  assert out[1].split()[:6] == ['cb', '0', 'value', '40', 'accuracy', '70.0']


@pytest.mark.parametrize(
  ('changed', 'words'),
  [
    ({'backbone_fingerprint': 'sha256:other'}, 'another backbone'),
    ({'vocabulary_digest': 'sha256:other'}, 'another vocabulary'),
    ({'arrays': {'prompt': prompt(0, (P + 1, D))}}, 'another prompt length'),
    ({'arrays': {'prompt': prompt(0, (P, D + 1))}}, 'another width'),
  ],
)
def test_prompts_of_another_kind_are_refused(folder, changed, words):
  before = snapshot(folder)
  strange = bundle('boolq', **changed)
  with pytest.raises(InputError, match=rf'boolq/0/value to be.*{words}.*than'):
    library.add(library=str(folder), prompts=strange)
  assert snapshot(folder) == before
  # By whatever way it came.
  strange.save(str(folder / 'boolq/0/value'))
  with pytest.raises(InputError, match=f'{words}.*than .*: a library is of'):
    library.open_library(str(folder)).prompts()
  with pytest.raises(InputError, match='1 of the 13 .*boolq/0/value'):
    library.check(library=str(folder))


def test_another_backbone_is_refused(folder):
  backbone = tiny.served()
  opened = library.open_library(str(folder))
  with pytest.raises(InputError, match='cb/0/value: .* is another one'):
    opened.prompts(backbone=backbone)
  with pytest.raises(InputError, match='is another one'):
    sources.read([str(folder)], backbone)


def test_no_name_leads_out_of_the_folder(folder, tmp_path):
  outside = tmp_path / 'outside'
  bundle().save(str(outside / '0/value'))
  for name in ('../outside', '..', '', 'a/b', '/tmp/x', '.hidden'):
    with pytest.raises(InputError, match='can be no folder|a name is made of'):
      library.add(library=str(folder), prompts=bundle(), run=name or '.')
    with pytest.raises(InputError):
      library.add(library=str(folder), prompts={name: bundle()})
    with pytest.raises(InputError):
      shelf.Place(name, '0')
  os.symlink(outside, folder / 'linked')
  told = []
  library.open_library(str(folder)).prompts(
    on_damage=lambda name, error: told.append((name, str(error)))
  )
  [(name, why)] = told
  assert name == 'linked/0/value'
  assert 'symbolic link' in why


def test_what_is_missing_is_said(folder, tmp_path, capsys):
  with pytest.raises(InputError, match=r'is no library; `python -m mpt_jax'):
    library.open_library(str(tmp_path / 'nothing'))
  with pytest.raises(InputError, match="has no value of 'rta'.*mean 'rte'"):
    library.open_library(str(folder)).prompts(tasks=['rta'])
  only = library.add(library=str(tmp_path / 'only'), prompts=bundle())
  with pytest.raises(InputError, match='has no key: train with KEY_STEP'):
    only.prompts('key')
  with pytest.raises(InputError, match="runs' is no library, and holds '0'"):
    library.add(library=str(tmp_path / 'runs'), prompts=bundle())
  with pytest.raises(InputError, match='nothing of that form'):
    library.add(library=str(folder), prompts=str(tmp_path / '{task}/x'))
  lora = methods.LoRA()
  arrays = lora.fresh(tiny.SERVED, 1, np.zeros(2, np.uint32))
  inside = bundle(method='lora', arrays=arrays, settings=lora.settings)
  with pytest.raises(InputError, match='no prompt matrix'):
    library.add(library=str(folder), prompts=inside)
  damage(folder / 'cb/0/value')
  with pytest.raises(SystemExit) as e:
    verbs.main(['check', f"--gin.LIBRARY='{folder}'"])
  assert e.value.code == 2
  err = capsys.readouterr().err
  assert 'error: 1 of the 12 entries of' in err
  assert 'cb/0/value: ' in err
