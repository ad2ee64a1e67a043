"""Folders of transformers, read and written without it."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from mpt_jax import checkpoints
from mpt_jax.types import InputError

FAMILIES = ('hf_t5_v1_0_tiny', 'hf_t5_v1_1_tiny')


@pytest.fixture
def copy(testdata, tmp_path):
  """Copies a family's folder and returns it."""

  def make(family='hf_t5_v1_1_tiny'):
    folder = tmp_path / 'model'
    shutil.copytree(testdata / family, folder)
    return folder

  return make


def _weights(folder):
  return safetensors.numpy.load_file(folder / 'model.safetensors')


def _write(folder, weights):
  weights = {k: np.ascontiguousarray(v) for k, v in weights.items()}
  safetensors.numpy.save_file(weights, folder / 'model.safetensors')


def _configure(folder, **changes):
  file = folder / 'config.json'
  config = {**json.loads(file.read_text()), **changes}
  config = {k: v for k, v in config.items() if v is not None}
  file.write_text(json.dumps(config))


def _load(folder, config=None):
  return checkpoints.load_backbone(str(folder), config)


def _equal(a, b):
  return a.config == b.config and a.fingerprint == b.fingerprint


@pytest.mark.parametrize(
  ('changes', 'vocab_size'),
  [
    # As google/flan-t5-*, google/mt5-* and google/byt5-* have it.
    ({'model_type': 't5', 'feed_forward_proj': 'gated-gelu'}, None),
    ({'model_type': 'mt5', 'tokenizer_class': 'T5Tokenizer'}, None),
    ({'model_type': 't5', 'tokenizer_class': 'ByT5Tokenizer'}, 384),
  ],
)
def test_families_of_v1_1(testdata, copy, changes, vocab_size):
  folder = copy()
  weights = _weights(folder)
  if vocab_size:
    # ByT5: bytes for pieces, and a decoder of a third of the layers.
    rng = np.random.RandomState(0)
    for name in ('shared.weight', 'lm_head.weight'):
      shape = vocab_size, weights[name].shape[1]
      weights[name] = rng.normal(size=shape).astype(np.float32)
    weights = {
      k: v for k, v in weights.items() if not k.startswith('decoder.block.1.')
    }
    changes = {**changes, 'vocab_size': vocab_size, 'num_decoder_layers': 1}
    _write(folder, weights)
  _configure(folder, architectures=['MT5ForConditionalGeneration'], **changes)
  loaded = _load(folder)
  assert not loaded.config.logits_via_embedding
  assert loaded.config.mlp_activations == ('gelu', 'linear')
  want = _load(testdata / FAMILIES[1])
  if vocab_size:
    assert loaded.config == want.config.replace(
      vocab_size=vocab_size, num_decoder_layers=1
    )
    table = loaded.params['token_embedder']['embedding']
    np.testing.assert_array_equal(table, weights['shared.weight'])
    head = loaded.params['decoder']['logits_dense']['kernel']
    np.testing.assert_array_equal(head.T, weights['lm_head.weight'])
  else:
    assert _equal(loaded, want)


def test_copies_of_the_embedding_are_ignored(testdata, copy):
  # As old files have them; the head is a copy too, so that it is tied.
  want = _load(testdata / FAMILIES[0])
  folder = copy(FAMILIES[0])
  leftover = (
    'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight'
  )
  copies = ('decoder.embed_tokens.weight', 'lm_head.weight')
  weights = _weights(folder)
  shared = weights['shared.weight']
  extra = dict.fromkeys(copies, shared) | {leftover: np.ones((32, 4))}
  _write(folder, weights | extra)
  backbone = _load(folder)
  assert _equal(backbone, want)
  assert backbone.report['ignored'] == sorted(extra)


def test_the_embedding_under_another_name(testdata, copy):
  folder = copy(FAMILIES[0])
  weights = _weights(folder)
  weights['encoder.embed_tokens.weight'] = weights.pop('shared.weight')
  _write(folder, weights)
  assert _equal(_load(folder), _load(testdata / FAMILIES[0]))


def test_tied_but_not_scaled(copy):
  # Transformers >= 5 leaves a head out that equals the embedding.
  folder = copy()
  weights = _weights(folder)
  del weights['lm_head.weight']
  _write(folder, weights)
  backbone = _load(folder)
  assert not backbone.config.logits_via_embedding
  np.testing.assert_array_equal(
    backbone.params['decoder']['logits_dense']['kernel'],
    backbone.params['token_embedder']['embedding'].T,
  )


def test_a_lost_head_is_an_error(copy):
  folder = copy()
  shutil.copy(folder / 'config_hub_style.json', folder / 'config.json')
  weights = _weights(folder)
  del weights['lm_head.weight']
  _write(folder, weights)
  with pytest.raises(InputError, match=r"lacks 1 .*'decoder/logits_dense"):
    _load(folder)


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floats_become_float32(copy, dtype):
  folder = copy()
  weights = {k: v.astype(dtype) for k, v in _weights(folder).items()}
  _write(folder, weights)
  embedding = _load(folder).params['token_embedder']['embedding']
  assert embedding.dtype == np.float32
  want = weights['shared.weight'].astype(np.float32)
  np.testing.assert_array_equal(embedding, want)


def _shard(folder):
  weights = _weights(folder)
  (folder / 'model.safetensors').unlink()
  files = (
    'model-00001-of-00002.safetensors',
    'model-00002-of-00002.safetensors',
  )
  names = sorted(weights)
  weight_map = {n: files[i % 2] for i, n in enumerate(names)}
  for file in files:
    safetensors.numpy.save_file(
      {n: weights[n] for n in names if weight_map[n] == file}, folder / file
    )
  index = folder / 'model.safetensors.index.json'
  index.write_text(json.dumps({'metadata': {}, 'weight_map': weight_map}))
  return index, weight_map


def test_shards(testdata, copy):
  folder = copy()
  _shard(folder)
  assert _equal(_load(folder), _load(testdata / FAMILIES[1]))


@pytest.mark.parametrize(
  ('shard', 'message'),
  [
    ('../model-00001-of-00002.safetensors', 'in the same folder'),
    ('/etc/passwd', 'in the same folder'),
    ('weights.bin', 'in the same folder'),
    ('model-00003-of-00003.safetensors', 'is missing'),
    ('model-00001-of-00002.safetensors', 'no shard holds it'),
  ],
)
def test_bad_indices_are_errors(copy, shard, message):
  folder = copy()
  index, weight_map = _shard(folder)
  name = next(n for n, f in weight_map.items() if f.startswith('model-00002'))
  if 'no shard' in message:
    name = 'shared.bias'
  index.write_text(json.dumps({'weight_map': {**weight_map, name: shard}}))
  with pytest.raises(InputError, match=message):
    _load(folder)


def test_links_of_a_download_cache(testdata, copy):
  folder = copy()
  for name in ('config.json', 'model.safetensors'):
    (folder / name).rename(folder.parent / name)
    (folder / name).symlink_to(folder.parent / name)
  assert _equal(_load(folder), _load(testdata / FAMILIES[1]))


def test_pickles_are_not_read(copy):
  folder = copy()
  (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin')
  with pytest.raises(
    InputError, match='pickle .*save the model as safetensors'
  ):
    _load(folder)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'model_type': 'longt5'},
      "is 'longt5', expected t5, .*attends to a window",
    ),
    ({'model_type': 't5gemma'}, "T5Gemma is made of Gemma's blocks"),
    ({'model_type': 't5gemma2'}, "T5Gemma 2 is made of Gemma's blocks"),
    ({'model_type': 'switch_transformers'}, 'one of several experts'),
    (
      {'model_type': 'bart'},
      "is 'bart', expected t5, mt5, umt5, roberta, xlm-roberta$",
    ),
    ({'model_type': ['t5']}, r"is \['t5'\], expected t5"),
    ({'model_type': 'umt5'}, r"lacks 2 .*'decoder/layers_1/relpos_bias/"),
    ({'feed_forward_proj': 'gelu'}, "feed_forward_proj is 'gelu'"),
    ({'d_model': None}, "lacks the key 'd_model'"),
    ({'d_model': '32'}, "config.json: T5Config.emb_dim is '32'"),
    ({'d_kv': 9}, r'has shape \(32, 32\), but the config asks for \(32, 36\)'),
    ({'num_layers': 3}, r"lacks 9 .*'encoder/layers_2/"),
    ({'num_layers': 1}, r"holds 'encoder.block.1"),
    # Found by the fuzzer: unhashable, or too large to be made at all.
    ({'feed_forward_proj': ['relu']}, r"feed_forward_proj is \['relu'\]"),
    ({'num_layers': 10**6}, r'too few for 1000000 layers'),
    ({'vocab_size': 2**31}, r'vocab_size is 2147483648, expected'),
    ({'d_ff': 2**31 - 1}, r'd_ff is 2147483647, but no weight has a side'),
    ({'d_kv': 2**30}, r'num_heads \* d_kv is 4294967296, but'),
    ({'layer_norm_epsilon': 'small'}, "layer_norm_epsilon is 'small'"),
    ({'layer_norm_epsilon': 10**400}, 'layer_norm_epsilon is 1000'),
    ({'relative_attention_max_distance': 2**30}, 'relpos_max_distance'),
    ({'relative_attention_max_distance': 16}, 'expected 17 up to'),
    ({'relative_attention_num_buckets': 3}, 'relpos_num_buckets is 3'),
  ],
)
def test_configs_that_do_not_fit(copy, changes, message):
  folder = copy()
  _configure(folder, **changes)
  with pytest.raises(InputError, match=message) as error:
    _load(folder)
  assert '\n' not in str(error.value)


def test_damaged_weights_are_an_error(copy):
  folder = copy()
  file = folder / 'model.safetensors'
  file.write_bytes(file.read_bytes()[:5000])
  with pytest.raises(InputError, match='not a readable safetensors file'):
    _load(folder)
  file.unlink()
  with pytest.raises(InputError, match='model.safetensors is missing'):
    _load(folder)


def test_a_given_config_decides_how_the_model_runs(testdata):
  folder = testdata / FAMILIES[1]
  config = _load(folder).config.replace(dtype='bfloat16')
  assert _load(folder, config).config == config
  with pytest.raises(InputError, match='vocab_size 256, but .* asks for 32128'):
    _load(folder, 't5_1_1_base')


def test_a_name_is_never_somebody_s_path(copy):
  folder = copy()
  for stored, name in (
    ('google/t5-v1_1-base', 'google/t5-v1_1-base'),
    ('/somewhere/private/model', 'model'),
    ('./model-of-mine', 'model'),
  ):
    _configure(folder, _name_or_path=stored)
    assert _load(folder).name == name


def test_saving_refuses_what_would_be_wrong(testdata, tmp_path):
  backbone = _load(testdata / FAMILIES[1])
  path = str(tmp_path / 'saved')

  def save(**kwargs):
    arguments = {'config': backbone.config, 'params': backbone.params}
    checkpoints.save_huggingface(path, **{**arguments, **kwargs})

  with pytest.raises(InputError, match="dtype is 'float8'"):
    save(dtype='float8')
  with pytest.raises(InputError, match='have no name in transformers'):
    save(config=backbone.config.replace(mlp_activations=('gelu',)))
  with pytest.raises(InputError, match='cannot read the vocabulary'):
    save(vocabulary_file=str(tmp_path / 'none'))
  large = {**backbone.params, 'token_embedder': {}}
  large['token_embedder'] = {'embedding': np.full((256, 32), 1e5)}
  with pytest.raises(InputError, match='beyond the range of float16'):
    save(params=large, dtype='float16')
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_values_must_be_finite(copy, value):
  folder = copy()
  file = folder / 'model.safetensors'
  arrays = safetensors.numpy.load_file(file)
  arrays['shared.weight'][3, 4] = value
  safetensors.numpy.save_file(arrays, file)
  with pytest.raises(InputError, match='embedding holds NaN or infinity'):
    _load(folder)
