"""A second frozen backbone: RoBERTa's masked encoder in Flax linen."""

from mpt_jax.roberta.config import CONFIGS, RobertaConfig
from mpt_jax.roberta.network import (
  Roberta,
  find_masks,
  init_params,
  param_shapes,
)

__all__ = [
  'CONFIGS',
  'Roberta',
  'RobertaConfig',
  'find_masks',
  'init_params',
  'param_shapes',
]
