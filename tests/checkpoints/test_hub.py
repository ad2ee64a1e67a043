"""Backbones by their names on the hub.

Guards against a download where a folder or the cache has the model, and
against a mistyped path that ends on the network.
"""

import json
import os
import shutil
import sys

import huggingface_hub
from huggingface_hub import constants
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from mpt_jax import checkpoints
from mpt_jax.checkpoints import backbone, hub
from mpt_jax.study import run as study
from mpt_jax.types import InputError

NAME, REVISION = 'some-one/tiny_t5', '0123456789abcdef' * 2 + '01234567'


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
  """An empty working folder, and a cache of its own."""
  (tmp_path / 'work').mkdir()
  monkeypatch.chdir(tmp_path / 'work')
  monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path / 'hub'))
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))


@pytest.fixture(params=[True, False], ids=['installed', 'absent'])
def installed(request, monkeypatch):
  """With huggingface_hub and without."""
  if not request.param:
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  return request.param


@pytest.fixture
def cache(tmp_path, testdata):
  """Puts a model into the cache as the hub's programs do."""

  def put(only=None):
    model = tmp_path / 'hub' / 'models--some-one--tiny_t5'
    snapshot = model / 'snapshots' / REVISION
    for folder in (snapshot, model / 'refs', model / 'blobs'):
      folder.mkdir(parents=True)
    (model / 'refs' / 'main').write_text(REVISION)
    demo = os.path.join(backbone.demo_folder(), 'spiece.model')
    files = [*(testdata / 'hf_t5_v1_0_tiny').iterdir(), demo]
    for number, file in enumerate(map(os.fspath, files)):
      if only is None or os.path.basename(file) in only:
        shutil.copy(file, model / 'blobs' / str(number))
        link = snapshot / os.path.basename(file)
        link.symlink_to(f'../../blobs/{number}')
    return snapshot

  return put


def test_what_is_a_name():
  for path in ('google-t5/t5-base', 'a/t5.1_1'):
    assert hub.is_name(path), path
  others = ['t5-base', './a/b', '../b', '~/b', 'a/b/c', '/a/b', 'gs://b', 'a/']
  for path in (*others, 'a/..', 'a/.b', 'a\n/b', 'é/b', 'a--b/c', 'a b/c'):
    assert not hub.is_name(path), path


def test_the_cache_has_it(cache, installed, testdata, caplog):
  caplog.set_level('INFO')
  snapshot = cache()
  loaded = checkpoints.load_backbone(NAME)
  assert (loaded.name, loaded.path) == (NAME, str(snapshot))
  assert loaded.origin == {'base': NAME, 'revision': REVISION}
  assert f'{NAME} is revision {REVISION}' in caplog.text
  folder = testdata / 'hf_t5_v1_0_tiny'
  same = checkpoints.load_backbone(str(folder))
  assert loaded.fingerprint == same.fingerprint
  assert same.origin == {'base': str(folder)}
  # Steps of a study are given the name, and find it again.
  assert study.find_backbone(NAME) == NAME


def test_a_folder_here_wins(cache, testdata):
  cache()
  shutil.copytree(testdata / 'hf_t5_v1_1_tiny', NAME)
  assert checkpoints.load_backbone(NAME).path == os.path.abspath(NAME)
  assert study.find_backbone(NAME) == NAME


def test_what_leads_out_of_the_cache_is_not_followed(cache, monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  snapshot = cache()
  ref = snapshot.parents[1] / 'refs' / 'main'
  for text in (f'../snapshots/{REVISION}', '..', '', '.', '\0'):
    ref.write_text(text)
    assert hub.find(NAME, fetch=False) is None


@pytest.mark.parametrize('only', [(), ('config.json',)])
def test_absent_is_one_line_with_the_command(only, cache, installed):
  if only:
    cache(only)
  reason = 'HF_HUB_OFFLINE is set' if installed else 'is not installed'
  for find in (checkpoints.load_backbone, study.find_backbone):
    with pytest.raises(InputError) as e:
      find(NAME)
    assert reason in str(e.value)
    assert f'hf download {NAME} --include' in str(e.value)
  # A dry run and a look at a task fetch nothing.
  assert backbone.find_backbone(NAME, fetch=False) == NAME
  with pytest.raises(InputError, match='must be downloaded'):
    study.find_backbone(NAME, fetch=False)


def _online(monkeypatch, download):
  """Lets `download(name, allow_patterns)` stand for the network."""
  real = huggingface_hub.snapshot_download

  def snapshot_download(name, *, local_files_only=False, allow_patterns=None):
    if local_files_only:
      return real(name, local_files_only=True, allow_patterns=allow_patterns)
    return download(name, allow_patterns)

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot_download)
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)


@pytest.mark.parametrize('only', [None, ('config.json', 'model.safetensors')])
def test_it_is_downloaded_once(only, cache, monkeypatch):
  """What was stopped goes on: here before the vocabulary had come."""
  asked = []

  def download(name, patterns):
    asked.append((name, patterns))
    shutil.rmtree('../hub', ignore_errors=True)
    return str(cache())

  _online(monkeypatch, download)
  if only:
    cache(only)
  first = checkpoints.load_backbone(NAME)
  assert first.fingerprint == checkpoints.load_backbone(NAME).fingerprint
  [(name, patterns)] = asked
  assert name == NAME
  wanted = {'config.json', 'spiece.model', 'tokenizer.json'}
  weights = {'model.safetensors', 'model.safetensors.index.json'}
  assert wanted | weights <= set(patterns)
  assert not any('bin' in p or 'msgpack' in p for p in patterns)


def test_what_the_network_says(cache, monkeypatch):
  def download(name, patterns):
    raise huggingface_hub.errors.LocalEntryNotFoundError('no route\nmore')

  _online(monkeypatch, download)
  message = r'cannot be downloaded \(LocalEntryNotFoundError: no route\); .* hf'
  with pytest.raises(InputError, match=message):
    checkpoints.load_backbone(NAME)
  # Where nothing else is to be had, another vocabulary may be given.
  snapshot = cache(('config.json', 'model.safetensors'))
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  assert checkpoints.load_backbone(NAME).path == str(snapshot)


def test_a_mistyped_path_stays_off_the_network(monkeypatch):
  _online(monkeypatch, lambda *args: pytest.fail('it was asked for'))
  os.mkdir('some-one')
  with pytest.raises(InputError, match='some-one is a folder here'):
    checkpoints.load_backbone(NAME)


def test_without_safetensors(cache, monkeypatch):
  _online(monkeypatch, lambda *args: str(cache(('config.json',))))
  with pytest.raises(InputError, match='no weights of .* as model.safetensors'):
    checkpoints.load_backbone(NAME)


def test_shards_in_bfloat16(cache):
  snapshot = cache()
  weights = safetensors.numpy.load_file(snapshot / 'model.safetensors')
  weights = {n: w.astype(ml_dtypes.bfloat16) for n, w in weights.items()}
  names = sorted(weights)
  (snapshot / 'model.safetensors').unlink()
  places = {}
  for number, part in enumerate((names[::2], names[1::2]), 1):
    file = f'model-0000{number}-of-00002.safetensors'
    places |= dict.fromkeys(part, file)
    shard = {n: weights[n] for n in part}
    safetensors.numpy.save_file(shard, snapshot / file)
  index = snapshot / 'model.safetensors.index.json'
  index.write_text(json.dumps({'metadata': {}, 'weight_map': places}))
  embedding = checkpoints.load_backbone(NAME).params['token_embedder']
  np.testing.assert_array_equal(
    embedding['embedding'], weights['shared.weight'].astype(np.float32)
  )
  # One that has not come yet is no model.
  (snapshot / file).unlink()
  assert hub.find(NAME, fetch=False) is None
