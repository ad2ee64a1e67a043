"""A wrong size would go unnoticed until a real checkpoint is loaded."""

import math

import pytest

from mpt_jax import methods, t5
from mpt_jax.types import InputError

# Of the published checkpoints.
_NUM_PARAMETERS = {
  't5_small': 60_506_624,
  't5_base': 222_903_552,
  't5_large': 737_668_096,
  't5_3b': 2_851_598_336,
  't5_11b': 11_307_321_344,
  't5_1_1_small': 76_961_152,
  't5_1_1_base': 247_577_856,
  't5_1_1_large': 783_150_080,
  't5_1_1_xl': 2_849_757_184,
  't5_1_1_xxl': 11_135_332_352,
  'mt5_small': 300_176_768,
  'mt5_base': 582_401_280,
  'mt5_large': 1_229_581_312,
  'mt5_xl': 3_742_619_648,
  'mt5_xxl': 12_921_057_280,
}


def _count(config, num_layers):
  config = config.replace(
    num_encoder_layers=num_layers, num_decoder_layers=num_layers
  )
  return sum(map(math.prod, t5.param_shapes(config).values()))


@pytest.mark.parametrize('name', _NUM_PARAMETERS)
def test_published_sizes(name):
  config = t5.get_config(name)
  one, two = _count(config, 1), _count(config, 2)
  layers = config.num_encoder_layers
  assert config.num_decoder_layers == layers
  assert one + (layers - 1) * (two - one) == _NUM_PARAMETERS[name]


@pytest.mark.parametrize('name', ['t5_11b', 't5_1_1_xxl'])
def test_the_largest_in_full(name):
  config = t5.get_config(name)
  assert _count(config, config.num_encoder_layers) == _NUM_PARAMETERS[name]


@pytest.mark.parametrize(
  ('name', 'count'),
  # Of Pile-T5, as its cards say: sizes of v1.1, a position bias per layer.
  [
    ('t5_1_1_base', 247_586_304),
    ('t5_1_1_large', 783_173_632),
    ('t5_1_1_xxl', 11_135_426_560),
  ],
)
def test_with_a_position_bias_per_layer(name, count):
  config = t5.get_config(name).replace(relpos_per_layer=True)
  one, two = _count(config, 1), _count(config, 2)
  assert one + (config.num_encoder_layers - 1) * (two - one) == count
  assert methods.FullFinetuning().num_parameters(config, 1) == count


def test_every_config_is_of_a_counted_size():
  counted = {t5.CONFIGS[name] for name in _NUM_PARAMETERS}
  assert set(t5.CONFIGS.values()) == counted


def test_round_trip():
  config = t5.get_config('t5_1_1_base')
  fields = config.to_dict()
  assert isinstance(fields['mlp_activations'], list)
  assert t5.T5Config.from_dict(fields) == config
  assert hash(t5.T5Config.from_dict(fields)) == hash(config)
  # As it was before there was umT5: digests and records of runs know no other.
  assert 'relpos_per_layer' not in {*fields, *repr(config).split('=')}
  other = config.replace(relpos_per_layer=True)
  assert t5.T5Config.from_dict(other.to_dict()) == other
  assert repr(other) == repr(config)


def test_unknown_names_are_errors():
  with pytest.raises(InputError, match="did you mean 't5_base'"):
    t5.get_config('t5_bse')
  with pytest.raises(InputError, match="did you mean 'emb_dim'"):
    t5.T5Config.from_dict({'vocab_size': 7, 'embdim': 3})
  with pytest.raises(InputError, match='vocab_size'):
    t5.T5Config.from_dict({'emb_dim': 3})


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'vocab_size': 0}, 'vocab_size is 0'),
    ({'vocab_size': '7'}, "vocab_size is '7'"),
    ({'vocab_size': 7, 'num_heads': True}, 'num_heads is True'),
    ({'vocab_size': 7, 'relpos_per_layer': 1}, 'relpos_per_layer is 1'),
    ({'vocab_size': 7, 'dropout_rate': 1.0}, 'dropout_rate is 1.0'),
    ({'vocab_size': 7, 'dtype': 'bfloat'}, "did you mean 'bfloat16'"),
    ({'vocab_size': 7, 'mlp_activations': ['gely']}, "did you mean 'gelu'"),
  ],
)
def test_bad_values_are_errors(fields, message):
  with pytest.raises(InputError, match=message):
    t5.T5Config(**fields)
