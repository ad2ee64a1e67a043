"""Backbones from one format to the other and back, bit for bit."""

import os

import jax
import numpy as np
import pytest

from mpt_jax.checkpoints import backbone as backbone_lib
from mpt_jax.checkpoints import t5x_format
from mpt_jax.convert import convert
from mpt_jax.engine.settings import BackboneSource
from mpt_jax.types import InputError

FIXTURES = {
  'hf_t5_v1_0_tiny': None,
  'hf_t5_v1_1_tiny': None,
  't5x_v1_0_tiny/orbax': 't5x_v1_0_tiny',
  't5x_v1_1_tiny/legacy': 't5x_v1_1_tiny',
}


def _load(path, config=None):
  return backbone_lib.load_backbone(str(path), config=config)


def _assert_same(got, want):
  assert got.config == want.config
  jax.tree.map(np.testing.assert_array_equal, got.params, want.params)
  assert got.fingerprint == want.fingerprint


@pytest.mark.parametrize('name', FIXTURES)
def test_there_and_back(name, testdata, tmp_path):
  source = testdata / name
  want = _load(source)
  convert(
    backbone=str(source), output=str(tmp_path / 't5x'), format='t5x', step=7
  )
  assert os.listdir(tmp_path / 't5x') == ['checkpoint_7']
  _assert_same(_load(tmp_path / 't5x', want.config), want)
  convert(
    backbone=BackboneSource(str(tmp_path / 't5x'), want.config),
    output=str(tmp_path / 'hf'),
  )
  _assert_same(_load(tmp_path / 'hf'), want)


def test_nothing_is_replaced_or_left_behind(testdata, tmp_path, monkeypatch):
  source = str(testdata / 'hf_t5_v1_0_tiny')
  output = str(tmp_path / 'o')
  convert(backbone=source, output=output, format='t5x')
  with pytest.raises(InputError, match='checkpoint_0 is there already'):
    convert(backbone=source, output=output, format='t5x')

  def full(*args):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(t5x_format, '_write_legacy', full)
  with pytest.raises(InputError, match='No space left'):
    convert(backbone=source, output=output, format='t5x', step=1)
  assert os.listdir(output) == ['checkpoint_0']


def test_wrong_settings(testdata, tmp_path):
  source = str(testdata / 'hf_t5_v1_0_tiny')
  for kwargs, message in (
    ({'format': 't5'}, "did you mean 't5x'"),
    ({'format': 't5x', 'dtype': 'float16'}, 'is float32'),
    ({'dtype': 'int8'}, "dtype is 'int8'"),
    ({'backbone': BackboneSource(source, 't5_small')}, 'vocab_size'),
  ):
    given = {'backbone': source, 'output': str(tmp_path / 'o')} | kwargs
    with pytest.raises(InputError, match=message):
      convert(**given)
  assert not (tmp_path / 'o').exists()


def test_special_ids_survive_or_are_refused(testdata, tmp_path):
  source = testdata / 'vocabulary' / 'madlad_spiece'
  with pytest.raises(InputError, match='pad 1, start 0, end 2, but a T5X'):
    convert(backbone=str(source), output=str(tmp_path / 't5x'), format='t5x')
  convert(backbone=str(source), output=str(tmp_path / 'hf'))
  _assert_same(_load(tmp_path / 'hf'), _load(source))
  for name in ('spiece.model', 'tokenizer_config.json'):
    copied = (tmp_path / 'hf' / name).read_bytes()
    assert copied == (source / name).read_bytes()
