"""RoBERTa as transformers stores it: names, transposes, and its config.

Linear weights are kept as (out, in), kernels here as (in, out). What has a row
for each id is stored with the checkpoint's own padding, which is 1.
"""

from collections.abc import Mapping
import os
from typing import Any

from mpt_jax.checkpoints.vocabulary import ENCODERS
from mpt_jax.roberta import RobertaConfig
from mpt_jax.types import InputError

EMBEDDING = 'roberta.embeddings.word_embeddings.weight'
# The head's own copy of it, in files of old.
HEAD = 'lm_head.decoder.weight'
# Parameters with a row for each id.
BY_ID = ('token_embedder/embedding', 'lm_head/bias')

_FIELDS = {
  'vocab_size': 'vocab_size',
  'hidden_size': 'emb_dim',
  'num_attention_heads': 'num_heads',
  'num_hidden_layers': 'num_encoder_layers',
  'intermediate_size': 'mlp_dim',
  'max_position_embeddings': 'max_positions',
  'hidden_dropout_prob': 'dropout_rate',
  'layer_norm_eps': 'layer_norm_epsilon',
}
_OPTIONAL = ('hidden_dropout_prob', 'layer_norm_eps')
# What transformers assumes where nothing is said, and not RoBERTa's 1e-5.
_EPSILON = 1e-12
# Fields that say which network it is, and the only one that this is.
_WANTED = {
  'hidden_act': 'gelu',
  'position_embedding_type': 'absolute',
  'type_vocab_size': 1,
  'is_decoder': False,
  'add_cross_attention': False,
}
_OUTSIDE = {
  'token_embedder/embedding': (EMBEDDING, False),
  'encoder/position_embedding': (
    'roberta.embeddings.position_embeddings.weight',
    False,
  ),
  'encoder/token_type_embedding': (
    'roberta.embeddings.token_type_embeddings.weight',
    False,
  ),
  'lm_head/bias': ('lm_head.bias', False),
}
_MODULES = {
  'encoder/embedding_layer_norm': 'roberta.embeddings.LayerNorm',
  'lm_head/dense': 'lm_head.dense',
  'lm_head/layer_norm': 'lm_head.layer_norm',
}
_IN_A_LAYER = {
  'attention/query': 'attention.self.query',
  'attention/key': 'attention.self.key',
  'attention/value': 'attention.self.value',
  'attention/out': 'attention.output.dense',
  'post_attention_layer_norm': 'attention.output.LayerNorm',
  'mlp/wi': 'intermediate.dense',
  'mlp/wo': 'output.dense',
  'post_mlp_layer_norm': 'output.LayerNorm',
}


def name_of(parameter: str) -> tuple[str, bool]:
  """Returns transformers' name of a parameter, and whether to transpose.

  Examples:
    >>> name_of('encoder/layers_0/mlp/wo/kernel')
    ('roberta.encoder.layer.0.output.dense.weight', True)
    >>> name_of('lm_head/layer_norm/scale')
    ('lm_head.layer_norm.weight', False)
  """
  if parameter in _OUTSIDE:
    return _OUTSIDE[parameter]
  module, _, leaf = parameter.rpartition('/')
  name = 'bias' if leaf == 'bias' else 'weight'
  if module in _MODULES:
    return f'{_MODULES[module]}.{name}', leaf == 'kernel'
  _, layer, part = module.split('/', 2)
  number = layer.removeprefix('layers_')
  place = f'roberta.encoder.layer.{number}.{_IN_A_LAYER[part]}'
  return f'{place}.{name}', leaf == 'kernel'


def today(stored: str) -> str:
  """Returns the name of a tensor today: old files call a norm's otherwise."""
  for then, now in (('gamma', 'weight'), ('beta', 'bias')):
    if stored.endswith(f'LayerNorm.{then}'):
      return stored.removesuffix(then) + now
  return stored


def read_config(file: str, stored: Mapping[str, Any]) -> RobertaConfig:
  """Returns the architecture that a `config.json` describes.

  Args:
    file: the file, for messages.
    stored: its content.

  Raises:
    InputError: if a size is missing, or the network is another one.
  """
  for name, want in _WANTED.items():
    if stored.get(name, want) != want:
      raise InputError(
        f'{file}: {name} is {stored[name]!r}, and only {want!r} is known here'
      )
  fields: dict[str, Any] = {'layer_norm_epsilon': _EPSILON}
  for theirs, ours in _FIELDS.items():
    if stored.get(theirs) is not None:
      fields[ours] = stored[theirs]
    elif theirs not in _OPTIONAL:
      raise InputError(f'{file} lacks the key {theirs!r}')
  try:
    return RobertaConfig(**fields)
  except (InputError, TypeError) as e:
    raise InputError(f'{file}: {e}') from e


def config_json(config: RobertaConfig) -> dict[str, Any]:
  """Returns what a `config.json` says of an architecture."""
  rate = config.dropout_rate
  return {
    **{theirs: getattr(config, ours) for theirs, ours in _FIELDS.items()},
    **_WANTED,
    # XLM-R is the same network; which texts it reads its vocabulary says.
    'model_type': ENCODERS[0],
    'architectures': ['RobertaForMaskedLM'],
    'attention_probs_dropout_prob': rate,
    'tie_word_embeddings': True,
  }


def check_sizes(
  file: str, config: RobertaConfig, shapes: Mapping[str, tuple[int, ...]]
) -> None:
  """Refuses sizes that the weights cannot have, before they cost anything."""
  largest = max((max(s, default=0) for s in shapes.values()), default=0)
  for theirs in ('vocab_size', 'hidden_size', 'intermediate_size'):
    size = getattr(config, _FIELDS[theirs])
    if size > largest:
      raise InputError(
        f'{file}: {theirs} is {size}, but no weight has a side of more than'
        f' {largest}; is the config their own?'
      )
  if config.num_encoder_layers > len(shapes):
    raise InputError(
      f'{file}: there are {len(shapes)} tensors, too few for'
      f' {config.num_encoder_layers} layers'
    )
  if not any('lm_head' in n for n in shapes):
    raise InputError(
      f'{os.path.dirname(file)} has no lm_head, which fills in masks: save it'
      ' as transformers.RobertaForMaskedLM'
    )
