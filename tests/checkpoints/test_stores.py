"""Files in buckets: whole or not there, held by one, in their own folder."""

import os
import sys

import flax.struct
import fsspec
import jax
import numpy as np
import pytest

from mpt_jax.checkpoints import files, lock, run, stores
from mpt_jax.checkpoints.backbone import load_backbone
from mpt_jax.checkpoints.bundle import load_prompts
from mpt_jax.checkpoints.vocabulary import Vocabulary, bring
from mpt_jax.types import InputError
from tests.helpers.emulators import store

__all__ = ['store']

EVERY = pytest.mark.parametrize(
  'store', ['memory', 'gs', 's3'], indirect=True, scope='module'
)


@pytest.mark.parametrize(
  ('path', 'message'),
  [
    ('hdfs://host/run', 'expected gs:// or s3://'),
    ('gs://b/../c', 'names no folder: write gs://BUCKET/FOLDER'),
    ('s3://', 'names no folder'),
    ('gs://b/run', r"gcsfs is not installed: pip install 'mpt_jax\[gcs\]'"),
    ('s3://b/run', r"s3fs is not installed: pip install 'mpt_jax\[s3\]'"),
  ],
)
def test_what_cannot_be_a_place(path, message, monkeypatch):
  for package in ('gcsfs', 's3fs'):
    monkeypatch.setitem(sys.modules, package, None)
  for use in (
    stores.place,
    load_prompts,
    load_backbone,
    lambda path: files.write_file(path, b''),
    lambda path: files.write_folder(path, {'a': b''}),
    lambda path: lock.hold(path).__enter__(),
  ):
    with pytest.raises(InputError, match=message) as error:
      use(path)
    assert '\n' not in str(error.value)


def test_names_that_lead_elsewhere(monkeypatch, tmp_path):
  class Hostile:
    def _strip_protocol(self, path):
      return path.partition('://')[2]

    def find(self, path, detail=False):
      return {'bucket/x/../../../evil': {'size': 1}}

  monkeypatch.setitem(stores.STORES, 'memory', ('fsspec', 'none'))
  monkeypatch.setattr(fsspec, 'filesystem', lambda *_, **__: Hostile())
  with pytest.raises(InputError, match='which is no name of a file'):
    load_prompts('memory://bucket/x')


@EVERY
def test_files(store):
  folder = f'{store}://bucket/files'
  assert not files.exists(folder)
  assert files.names(folder) == []
  for name in ('a.json', 'sub/b.json'):
    files.write_file(f'{folder}//{name}', b'{"x": 1}')
  files.write_file(f'{folder}_too/a.json', b'{}')
  assert files.is_folder(f'{folder}/')
  assert not files.is_folder(f'{folder}/a.json')
  assert files.names(folder) == ['a.json', 'sub']
  assert files.read_json(f'{folder}/a.json') == {'x': 1}
  with pytest.raises(InputError, match='larger than 3 bytes'):
    files.read_json(f'{folder}/a.json', most_bytes=3)
  with pytest.raises(InputError, match='none.json is missing'):
    files.read_json(f'{folder}/none.json')
  with pytest.raises(InputError, match='is not a regular file'):
    files.read_json(f'{folder}/sub')
  here = stores.bring(folder)
  assert sorted(os.listdir(here)) == ['a.json', 'sub']
  files.write_file(f'{folder}/a.json', b'{"x": 22}')
  files.remove_folder(f'{folder}/sub')
  assert os.listdir(stores.bring(folder)) == ['a.json']
  assert files.read_json(f'{here}/a.json') == {'x': 22}
  files.remove_folder(f'{folder}/none')
  log = files.open_to_append(f'{folder}/log.txt', pause=3600)
  log.write('a\n')
  log.flush()
  log.write('b\n')
  log.flush()
  assert stores.read(f'{folder}/log.txt') == b'a\n'
  log.close()
  with files.open_to_read(f'{folder}/log.txt') as f:
    assert f.read() == b'a\nb\n'
  files.open_to_append(f'{folder}/log.txt').close()
  assert stores.read(f'{folder}/log.txt') == b'a\nb\n'


@EVERY
def test_a_folder_is_known_by_its_last_file(store, monkeypatch):
  folder = f'{store}://bucket/folder'
  contents = {'config': b'new', 'tensors': b'new', 'card': b'new'}
  files.write_folder(folder, dict.fromkeys(contents, b'old'))
  write = stores.write
  killed_at = iter(range(9))

  def dying(path, content):
    if next(killed_at) == 1:
      raise KeyboardInterrupt
    write(path, content)

  monkeypatch.setattr(stores, 'write', dying)
  with pytest.raises(KeyboardInterrupt):
    files.write_folder(folder, contents)
  assert not files.exists(f'{folder}/config')
  files.write_folder(folder, contents)
  for name in contents:
    assert stores.read(f'{folder}/{name}') == b'new'
  with pytest.raises(InputError, match="it also holds 'tensors'"):
    files.write_folder(folder, {'config': b'', 'card': b''})
  with pytest.raises(InputError, match='something else has this name'):
    files.write_folder(f'{folder}/card', contents)


@EVERY
def test_errors_name_the_original(store):
  folder = f'{store}://bucket/prompts'
  with pytest.raises(InputError, match=f'no prompts at {folder};'):
    load_prompts(folder)
  with pytest.raises(InputError, match=f'no backbone at {folder}:'):
    load_backbone(folder)
  files.write_file(f'{folder}/prompt_config.json', b'{')
  with pytest.raises(InputError, match=f'^{folder}/prompt_config.json cannot'):
    load_prompts(folder)


@EVERY
def test_backbones(store, tmp_path):
  here, there = str(tmp_path / 'demo'), f'{store}://bucket/demo'
  for folder in (here, there):
    load_backbone('demo').save(folder, {})
  want, found = load_backbone(here), load_backbone(there)
  assert found.path == there
  assert (found.fingerprint, found.name) == (want.fingerprint, want.name)
  files_of = [want.vocabulary_file, found.vocabulary_file]
  # Its file alone, with what lies beside it; and its folder.
  stores._copied.clear()
  files_of += [bring(f'{there}/spiece.model'), bring(there)]
  assert len({Vocabulary(file).digest for file in files_of}) == 1


@EVERY
def test_a_folder_is_one_process_s(store):
  folder = f'{store}://bucket/held'
  path = f'{folder}/{lock.LOCK}'
  with lock.hold(folder):
    assert stores.read(path).decode() == lock._name()
    for words in (lock._name(), 'process 1 on elsewhere\n', 'who knows\n'):
      stores.write(path, words.encode())
      message = f'in use by {words.strip()}: .* remove {path}'
      with pytest.raises(InputError, match=message), lock.hold(folder):
        pass
  assert not files.exists(path)
  # Nobody has so high a number: that process was killed.
  stores.write(path, lock._name().replace(str(os.getpid()), '4999999').encode())
  with lock.hold(folder):
    assert stores.read(path).decode() == lock._name()


@flax.struct.dataclass
class _State:
  step: int
  params: dict


def _state(step):
  return _State(jax.numpy.int32(step), {'w': np.full((3, 5), step, np.float32)})


@EVERY
def test_checkpoints(store):
  folder = f'{store}://bucket/run'
  place = f'{folder}/checkpoints'
  first = run.RunCheckpointer(folder, max_to_keep=2)
  assert run.latest_step(folder) is None
  for step in (3, 5, 8):
    first.save(_state(step), {'at': step})
  first.close()
  assert files.names(place) == ['5', '8']
  # One was killed while it sent the next.
  files.write_file(f'{place}/9/_METADATA', b'{}')
  files.write_file(f'{place}/11/left', b'{}')
  assert run.latest_step(folder) == 8
  second = run.RunCheckpointer(folder, max_to_keep=2)
  found, position = second.restore_newest(_state(0))
  assert int(found.step) == 8
  assert position == {'at': 8}
  np.testing.assert_array_equal(found.params['w'], np.full((3, 5), 8.0))
  second.save(_state(11), {'at': 11})
  second.close()
  assert files.names(place) == ['11', '8']
  assert 'left' not in files.names(f'{place}/11')
  # A damaged one is put aside, and the one before it is taken.
  for name in fsspec.filesystem(store).find(f'{place}/11/state'):
    stores.write(f'{store}://{name.lstrip("/")}', b'damaged')
  third = run.RunCheckpointer(folder, max_to_keep=2)
  found, position = third.restore_newest(_state(0))
  third.close()
  assert (int(found.step), position) == (8, {'at': 8})
  assert files.names(f'{folder}/damaged') == ['11']
  assert files.names(place) == ['8']
