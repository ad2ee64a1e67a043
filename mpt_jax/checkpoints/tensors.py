"""What every backbone format offers: named tensors, read on demand."""

from collections.abc import Callable, Sequence
import dataclasses
import re

import numpy as np

from mpt_jax.backbones import Config, param_shapes
from mpt_jax.types import InputError

# A tensor of a block, in T5X's or in transformers' words; but not the bias of
# cross-attention that old files carry and no T5 has ever used.
_IN_A_BLOCK = re.compile(
  r'(roberta\.)?(encoder|decoder)[/.](layers_|block\.|layer\.)\d+[/.]'
  r'(?!.*EncDecAttention\.relative_attention_bias)'
)

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class TensorSource:
  """The tensors of a stored backbone.

  Attributes:
    path: where they are stored.
    shapes: T5X's name -> shape, as the tensor will be when read.
    read: takes T5X's names and returns their float32 arrays.
    others: stored names that have no place in a backbone.
  """

  path: str
  shapes: dict[str, Shape]
  read: Callable[[Sequence[str]], dict[str, np.ndarray]]
  others: tuple[str, ...] = ()


def check_tensors(source: TensorSource, config: Config) -> list[str]:
  """Checks that a backbone is complete and of the config's sizes.

  Args:
    source: what is stored.
    config: what it must be.

  Returns:
    The names that will not be used, sorted.

  Raises:
    InputError: if a tensor is missing or has another shape, or the stored
      model has blocks or logits that the config lacks.
  """
  expected = param_shapes(config)
  missing = [name for name in expected if name not in source.shapes]
  if missing:
    raise InputError(
      f'{source.path} lacks {len(missing)} of the {len(expected)} tensors of'
      f' its model, the first is {missing[0]!r}; is the config its own?'
    )
  for name, want in expected.items():
    got = source.shapes[name]
    if got != want:
      raise InputError(
        f'{source.path}: {name} has shape {got}, but the config asks for {want}'
      )
  unused = [name for name in source.shapes if name not in expected]
  for name in [*unused, *source.others]:
    # Leaving out a part of the model would load another model.
    if _IN_A_BLOCK.match(name) or name.startswith('decoder/logits_dense/'):
      raise InputError(
        f'{source.path} holds {name!r}, for which the config has no place;'
        f' it says {config.num_encoder_layers} encoder and'
        f' {config.num_decoder_layers} decoder layers,'
        f' {"/".join(config.mlp_activations)} and'
        f' {"tied" if config.logits_via_embedding else "untied"} logits,'
        ' a position bias per'
        f' {"layer" if config.relpos_per_layer else "stack"}'
      )
  return sorted([*unused, *source.others])
