"""The frozen backbone: T5 v1.0 and v1.1 in Flax linen."""

from mpt_jax.t5.config import CONFIGS, T5Config, get_config
from mpt_jax.t5.network import Transformer, init_params, param_shapes

__all__ = [
  'CONFIGS',
  'T5Config',
  'Transformer',
  'get_config',
  'init_params',
  'param_shapes',
]
