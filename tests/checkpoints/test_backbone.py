"""Which backbone is loaded, and that a damaged one never is."""

import os

import numpy as np
import pytest

from mpt_jax import checkpoints, t5
from mpt_jax.checkpoints.backbone import DEMOS, demo_folder
from mpt_jax.engine import predictor
from mpt_jax.engine.settings import BackboneSource
from mpt_jax.types import InputError

TINY = t5.T5Config(
  vocab_size=13,
  emb_dim=5,
  num_heads=3,
  num_encoder_layers=1,
  num_decoder_layers=1,
  head_dim=2,
  mlp_dim=7,
)


@pytest.mark.parametrize('name', DEMOS)
def test_a_demo_is_a_shipped_backbone_wherever_one_works(
  tmp_path, monkeypatch, name
):
  shipped = checkpoints.load_backbone(demo_folder(name))
  # What `make demo` leaves, and a copy that is a backbone but not this one.
  (tmp_path / name).mkdir()
  (tmp_path / name / 'report.md').write_text('a report')
  monkeypatch.chdir(tmp_path)
  loaded = predictor.load_backbone(BackboneSource(name, vocabulary=name))
  assert loaded.fingerprint == shipped.fingerprint
  masks = loaded.special_ids.mask is not None
  words = 'tokenizer.json' if masks else 'spiece.model'
  assert loaded.vocabulary_file == os.path.join(demo_folder(name), words)
  with pytest.raises(InputError, match='there is no backbone in'):
    checkpoints.load_backbone(f'./{name}')


def test_fingerprint_tells_backbones_apart():
  params = {
    'encoder': {'b': np.arange(6.0).reshape(2, 3), 'a': np.ones(4)},
    'decoder': {'c': np.zeros((1, 2))},
  }
  digest = checkpoints.fingerprint(TINY, params)
  assert digest.startswith('sha256:')
  assert len(digest) == 7 + 64

  reordered = {
    'decoder': params['decoder'],
    'encoder': dict(reversed(params['encoder'].items())),
  }
  assert checkpoints.fingerprint(TINY, reordered) == digest
  running = TINY.replace(dtype='bfloat16', dropout_rate=0.3)
  assert checkpoints.fingerprint(running, params) == digest

  assert checkpoints.fingerprint(TINY.replace(num_heads=1), params) != digest
  for encoder in (
    {'b': params['encoder']['b'].reshape(3, 2), 'a': np.ones(4)},
    {'b': params['encoder']['b'] + 1e-6, 'a': np.ones(4)},
    {'d': params['encoder']['b'], 'a': np.ones(4)},
  ):
    changed = {**params, 'encoder': encoder}
    assert checkpoints.fingerprint(TINY, changed) != digest


def test_layouts_of_one_backbone_have_one_fingerprint(testdata, tmp_path):
  legacy = checkpoints.load_backbone(str(testdata / 't5x_v1_1_tiny/legacy'))
  orbax = checkpoints.load_backbone(str(testdata / 't5x_v1_1_tiny/orbax'))
  path = str(tmp_path / 'hf')
  checkpoints.save_huggingface(path, legacy.config, legacy.params)
  hf = checkpoints.load_backbone(path)
  assert legacy.fingerprint == orbax.fingerprint == hf.fingerprint


def test_digest_of_a_vocabulary(tmp_path):
  file = tmp_path / 'spiece.model'
  file.write_bytes(b'pieces')
  digest = checkpoints.digest_vocabulary(str(file))
  assert digest.startswith('sha256:')
  file.write_bytes(b'other pieces')
  assert checkpoints.digest_vocabulary(str(file)) != digest
  with pytest.raises(InputError, match='cannot read the vocabulary'):
    checkpoints.digest_vocabulary(str(tmp_path / 'none'))


def test_no_backbone_is_one_clear_line(tmp_path):
  (tmp_path / 'model.safetensors').touch()
  for path, message in (
    (tmp_path / 'none', 'no such folder'),
    (tmp_path, r'expected config.json .* T5X checkpoint'),
    (tmp_path / 'model.safetensors', 'give the folder'),
  ):
    with pytest.raises(InputError, match=message) as error:
      checkpoints.load_backbone(str(path))
    assert '\n' not in str(error.value)
  with pytest.raises(InputError, match='not a local path'):
    checkpoints.load_backbone('hdfs://host/t5/checkpoint_7')
  with pytest.raises(InputError, match="did you mean 't5_base'"):
    checkpoints.load_backbone(str(tmp_path), 't5_bas')
