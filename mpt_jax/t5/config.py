"""Sizes of the T5 family: the configuration and every published model.

Field names are those of T5X's `T5Config` (t5x/examples/t5/network.py), so that
a config travels between the two unchanged.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, Self

from mpt_jax.types import InputError, nearest

ACTIVATIONS = ('relu', 'gelu', 'silu', 'swish', 'linear')
# Distances and sizes are counted in int32.
_LARGEST = 2**31 - 1
# The bias of every distance is tabulated.
_LARGEST_DISTANCE = 1 << 20
DTYPES = ('float32', 'bfloat16', 'float16')
PRECISIONS = ('float32', 'bfloat16')


class Sizes:
  """What the configs of all families do alike; each is a frozen dataclass."""

  dtype: str
  precision: str
  dropout_rate: float
  layer_norm_epsilon: float

  def _check(self, **choices: Sequence[str]) -> None:
    """Refuses values that no backbone can have.

    Args:
      **choices: field -> the words that it may be.

    Raises:
      InputError: names the field, its value and what is expected.
    """
    choices = {'dtype': DTYPES, 'precision': PRECISIONS, **choices}
    for name, known in choices.items():
      value = getattr(self, name)
      if value not in known:
        raise InputError(
          f'{name} is {value!r}, expected one of {", ".join(known)}'
          f'{nearest(str(value), known)}'
        )
    rate = self.dropout_rate
    number = isinstance(rate, int | float) and not isinstance(rate, bool)
    if not number or not 0 <= rate < 1:
      raise InputError(f'dropout_rate is {rate!r}, expected 0 up to 1')
    epsilon = self.layer_norm_epsilon
    if type(epsilon) not in (int, float) or not 0 < epsilon < 1:
      raise InputError(
        f'layer_norm_epsilon is {epsilon!r}, expected a number between 0 and 1'
      )
    name = type(self).__name__
    for field in dataclasses.fields(self):  # type: ignore[arg-type]
      value = getattr(self, field.name)
      if field.type is int and (type(value) is not int or value < 1):
        raise InputError(
          f'{name}.{field.name} is {value!r}, expected a positive integer'
        )
      if field.type is int and value > _LARGEST:
        raise InputError(
          f'{name}.{field.name} is {value!r}, expected {_LARGEST} at most'
        )

  @property
  def matrix_dtype(self) -> str:
    """The type that frozen matrices are held in."""
    return self.dtype if self.precision == 'float32' else self.precision

  @classmethod
  def from_dict(cls, fields: Mapping[str, Any]) -> Self:
    """Builds a config from `to_dict`'s output; T5's also from one of T5X.

    Raises:
      InputError: if a field is unknown or vocab_size is missing.
    """
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in fields:
      if name not in known:
        raise InputError(
          f'unknown field {name!r} of {cls.__name__}, known are '
          f'{", ".join(known)}{nearest(name, known)}'
        )
    if 'vocab_size' not in fields:
      raise InputError(
        f'{cls.__name__} without vocab_size, which every model needs'
      )
    return cls(**fields)

  def replace(self, **changes: Any) -> Self:
    """Returns a copy with some fields changed."""
    return dataclasses.replace(self, **changes)  # type: ignore[type-var]


@dataclasses.dataclass(frozen=True)
class T5Config(Sizes):
  """Architecture of an encoder-decoder T5.

  Attributes:
    vocab_size: V, rows of the embedding (published models pad it).
    dtype: type of the activations. Norms, softmax and logits are float32
      whatever it is, and parameters what they are given as.
    emb_dim: D, the model width.
    num_heads: H.
    num_encoder_layers: blocks of the encoder.
    num_decoder_layers: blocks of the decoder.
    head_dim: size of one head; H * head_dim need not equal D.
    mlp_dim: hidden width of the feed-forward blocks.
    mlp_activations: ('relu',) for v1.0, ('gelu', 'linear') for v1.1: one
      input projection each, multiplied with one another.
    dropout_rate: rate of every dropout of the network.
    logits_via_embedding: True ties the logits to the embedding (v1.0).
    float32_attention_logits: keep attention logits and softmax in float32.
    layer_norm_epsilon: added to the mean square in the norms.
    relpos_num_buckets: buckets of the relative position bias.
    relpos_max_distance: distance from which all share the last bucket.
    precision: 'bfloat16' rounds the operands of every matrix product to
      bfloat16 and sums in float32 (see `products`); 'float32' multiplies what
      there is, in `dtype`.
    relpos_per_layer: whether each block has a position bias of its own, as in
      umT5 (T5X's scalable T5); else those of a stack share one. The names of
      the parameters tell it, so it is no part of the config's name.
    remat_layers: keep of each block its input alone and compute the rest
      again in the backward pass. Changes memory and time and no number, so it
      is no part of the config's name.
  """

  vocab_size: int
  dtype: str = 'float32'
  emb_dim: int = 512
  num_heads: int = 8
  num_encoder_layers: int = 6
  num_decoder_layers: int = 6
  head_dim: int = 64
  mlp_dim: int = 2048
  mlp_activations: tuple[str, ...] = ('relu',)
  dropout_rate: float = 0.1
  logits_via_embedding: bool = False
  float32_attention_logits: bool = True
  layer_norm_epsilon: float = 1e-6
  relpos_num_buckets: int = 32
  relpos_max_distance: int = 128
  precision: str = 'float32'
  relpos_per_layer: bool = dataclasses.field(default=False, repr=False)
  remat_layers: bool = dataclasses.field(default=False, repr=False)

  def __post_init__(self):
    # Lists come from JSON and gin; a tuple keeps the config hashable.
    object.__setattr__(self, 'mlp_activations', tuple(self.mlp_activations))
    for name in self.mlp_activations:
      if name not in ACTIVATIONS:
        raise InputError(
          f'mlp_activations holds {name!r}, expected names from '
          f'{", ".join(ACTIVATIONS)}{nearest(name, ACTIVATIONS)}'
        )
    self._check()
    if type(self.relpos_per_layer) is not bool:
      raise InputError(
        f'relpos_per_layer is {self.relpos_per_layer!r}, expected True or False'
      )
    least, distance = self.relpos_num_buckets // 2 + 1, self.relpos_max_distance
    if self.relpos_num_buckets < 4:
      raise InputError(
        f'relpos_num_buckets is {self.relpos_num_buckets}, expected 4 or more'
      )
    if not least <= distance <= _LARGEST_DISTANCE:
      raise InputError(
        f'relpos_max_distance is {distance}, expected {least} up to'
        f' {_LARGEST_DISTANCE} with {self.relpos_num_buckets} buckets'
      )

  def to_dict(self) -> dict[str, Any]:
    """Returns the fields as JSON types."""
    fields = dataclasses.asdict(self)
    fields['mlp_activations'] = list(self.mlp_activations)
    if not self.relpos_per_layer:
      # Digests of T5s, and configs of T5X, have no such word.
      del fields['relpos_per_layer']
    return fields


# Columns: emb_dim, num_heads, layers (of each stack), head_dim, mlp_dim.
_V1_0_SIZES = {
  'small': (512, 8, 6, 64, 2048),
  'base': (768, 12, 12, 64, 3072),
  'large': (1024, 16, 24, 64, 4096),
  '3b': (1024, 32, 24, 128, 16384),
  '11b': (1024, 128, 24, 128, 65536),
}
_V1_1_SIZES = {
  'small': (512, 6, 8, 64, 1024),
  'base': (768, 12, 12, 64, 2048),
  'large': (1024, 16, 24, 64, 2816),
  'xl': (2048, 32, 24, 64, 5120),
  'xxl': (4096, 64, 24, 64, 10240),
}
# The LM-adapted and Flan-T5 checkpoints have the sizes of T5 1.1. Their
# vocabulary of 32,100 pieces is padded to a multiple of 128; mT5's is larger.
_VOCAB_SIZE = 32128
_MULTILINGUAL_VOCAB_SIZE = 250112


def _sized(
  size: tuple[int, int, int, int, int], vocab_size: int, gated: bool
) -> T5Config:
  emb_dim, num_heads, num_layers, head_dim, mlp_dim = size
  return T5Config(
    vocab_size=vocab_size,
    emb_dim=emb_dim,
    num_heads=num_heads,
    num_encoder_layers=num_layers,
    num_decoder_layers=num_layers,
    head_dim=head_dim,
    mlp_dim=mlp_dim,
    mlp_activations=('gelu', 'linear') if gated else ('relu',),
    logits_via_embedding=not gated,
  )


CONFIGS: dict[str, T5Config] = {
  **{f't5_{k}': _sized(v, _VOCAB_SIZE, False) for k, v in _V1_0_SIZES.items()},
  **{
    f'{family}_{k}': _sized(v, vocab_size, True)
    for family, vocab_size in (
      ('t5_1_1', _VOCAB_SIZE),
      ('t5_1_1_lm100k', _VOCAB_SIZE),
      ('flan_t5', _VOCAB_SIZE),
      ('mt5', _MULTILINGUAL_VOCAB_SIZE),
    )
    for k, v in _V1_1_SIZES.items()
  },
}


def get_config(name: str) -> T5Config:
  """Returns the published config of that name.

  Args:
    name: a key of `CONFIGS`, such as 't5_base' or 't5_1_1_xxl'.

  Raises:
    InputError: if there is no such model.
  """
  if name not in CONFIGS:
    raise InputError(
      f'unknown T5 config {name!r}, known are {", ".join(CONFIGS)}'
      f'{nearest(name, CONFIGS)}'
    )
  return CONFIGS[name]
