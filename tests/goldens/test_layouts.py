"""Files of T5X and transformers, read and written without them, bit for bit."""

import json
import shutil

from flax import traverse_util
import numpy as np
import pytest
import safetensors.numpy

from mpt_jax import checkpoints
from tests import goldens
from tests.goldens import networks


@pytest.mark.parametrize('whole', [True, False])
@pytest.mark.parametrize(
  ('golden', 'layout'), goldens.of('t5x', goldens.layouts)
)
def test_every_layout_gives_the_same_bits(golden, layout, whole):
  data = networks.load(golden.folder)
  arrays = goldens.arrays(golden.folder / 'params.npz')
  folder = golden.folder / layout
  step = next(folder.iterdir())
  assert step.name == f'checkpoint_{golden.config["step"]}'
  backbone = checkpoints.load_backbone(str(folder if whole else step))
  flat = traverse_util.flatten_dict(backbone.params, sep='/')
  assert set(flat) == set(arrays)
  for name, array in arrays.items():
    assert flat[name].dtype == np.float32
    np.testing.assert_array_equal(flat[name], array, err_msg=name)
  # The shapes imply all but the dropout rate.
  assert backbone.config == data.config.replace(dropout_rate=0.1)
  assert backbone.name == f'{folder.name}/{step.name}'
  assert backbone.vocabulary_file is None
  assert backbone.report == {
    'restored': sorted(arrays),
    'new': [],
    'ignored': [],
  }


def _styles(golden):
  """The files that describe the same model in another style."""
  return sorted(file.name for file in golden.folder.glob('config_*.json'))


@pytest.mark.parametrize(
  ('golden', 'style'), goldens.of('transformers', _styles)
)
def test_both_styles_of_config(golden, style, tmp_path):
  want = networks.backbone(golden.folder)
  for name in ('generation_config.json', 'model.safetensors'):
    shutil.copyfile(golden.folder / name, tmp_path / name)
  shutil.copyfile(golden.folder / style, tmp_path / 'config.json')
  # The Hub's says by this flag whether the head is the embedding.
  tied = json.loads((golden.folder / style).read_text())['tie_word_embeddings']
  got = checkpoints.load_backbone(str(tmp_path))
  assert (got.config, got.fingerprint) == (want.config, want.fingerprint)
  assert want.config.logits_via_embedding == tied
  assert want.report['new'] == want.report['ignored'] == []


def _weights(folder):
  return safetensors.numpy.load_file(folder / 'model.safetensors')


@pytest.mark.parametrize('golden', goldens.of('transformers'))
@pytest.mark.parametrize('dtype', ['float32', 'float16'])
def test_written_as_transformers_writes(golden, dtype, tmp_path):
  backbone = networks.backbone(golden.folder)
  width = backbone.config.emb_dim
  vocabulary = tmp_path / 'other.model'
  vocabulary.write_bytes(b'pieces')
  path = tmp_path / 'saved'
  checkpoints.save_huggingface(
    str(path),
    backbone.config,
    {**backbone.params, 'prompts': {'prompt': np.ones((2, width))}},
    vocabulary_file=str(vocabulary),
    dtype=dtype,
    name='tiny',
    special_ids=backbone.special_ids,
  )
  assert sorted(p.name for p in path.iterdir()) == [
    'config.json',
    'model.safetensors',
    'spiece.model',
  ]
  saved = checkpoints.load_backbone(str(path))
  assert saved.config == backbone.config
  assert saved.name == 'tiny'
  assert saved.vocabulary_file == str(path / 'spiece.model')
  assert (saved.fingerprint == backbone.fingerprint) == (dtype == 'float32')
  # The same names and shapes as transformers' own file.
  written, theirs = _weights(path), _weights(golden.folder)
  shapes = [{k: v.shape for k, v in w.items()} for w in (written, theirs)]
  assert shapes[0] == shapes[1]
  assert {v.dtype.name for v in written.values()} == {dtype}
  ours = json.loads((path / 'config.json').read_text())
  common = set(golden.config) & set(ours)
  assert {'d_kv', 'feed_forward_proj', 'scale_decoder_outputs'} <= common
  # Transformers writes the flag as true whatever it was.
  common.remove('tie_word_embeddings')
  assert {k: ours[k] for k in common} == {k: golden.config[k] for k in common}
