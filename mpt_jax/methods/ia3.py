"""(IA)^3: learned scales on keys, values and the hidden feed-forward layer."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import re
from typing import Any, ClassVar

from flax import linen as nn
import jax.numpy as jnp
import numpy as np

from mpt_jax.backbones import param_shapes
from mpt_jax.methods.base import (
  BUNDLE,
  Delta,
  Start,
  check_peft,
  learned,
  of_rows,
)
from mpt_jax.types import Array, InputError

_OUTPUT = re.compile(r'(.*attention/(?:key|value))/kernel')
_INPUT = re.compile(r'(.*/mlp/wo)/kernel')
# Of PEFT's configuration: the tensors show which modules are scaled, and how.
_PEFT_KEYS = (
  *('target_modules', 'feedforward_modules', 'exclude_modules'),
  'init_ia3_weights',
)


@dataclasses.dataclass(frozen=True)
class IA3(Delta):
  """One number for each feature of k, v and FF's hidden layer (Liu et al.).

  All start as ones: a run starts at the backbone itself.
  """

  name: ClassVar[str] = 'ia3'
  title: ClassVar[str] = '(IA)^3'
  paper: ClassVar[str] = (
    'Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and'
    ' Cheaper than In-Context Learning", NeurIPS 2022'
  )
  rates: ClassVar[Mapping[str, tuple[float, float | None]]] = {
    'target': (3e-3, None)
  }
  formats: ClassVar[tuple[str, ...]] = ('peft', 'merged', BUNDLE)
  peft_type: ClassVar[str] = 'IA3'

  def shapes(self, config: Any, num_tasks: int) -> dict[str, tuple[int, ...]]:
    """See `Method.shapes`: [1|K, I] behind k and v, [1|K, F] before wo."""
    sets = self.sets(num_tasks)
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in param_shapes(config).items():
      for pattern, axis in ((_OUTPUT, 1), (_INPUT, 0)):
        if match := pattern.fullmatch(name):
          found[f'{match[1]}/ia3'] = (sets, shape[axis])
    return found

  def num_parameters(self, config: Any, num_tasks: int) -> int:
    """E (2I + F) + D (4I + F)."""
    heads = config.num_heads * config.head_dim
    encoder, decoder = config.num_encoder_layers, config.num_decoder_layers
    count = heads * (2 * encoder + 4 * decoder)
    return self.sets(num_tasks) * (count + config.mlp_dim * (encoder + decoder))

  def initial(
    self, config: Any, num_tasks: int, start: Start
  ) -> dict[str, Array]:
    """See `Method.initial`."""
    shapes = self.shapes(config, num_tasks)
    return {name: jnp.ones(shape) for name, shape in shapes.items()}

  def intercept(
    self,
    call: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    context: nn.module.InterceptorContext,
  ) -> Any:
    """See `Delta.intercept`; keys' scales may meet the queries instead."""
    module, method = context.module, context.method_name
    scale = learned(module, 'ia3')
    if scale is None or method not in ('__call__', 'by_head'):
      return call(*args, **kwargs)
    *spec, x = args
    scale = of_rows(scale, len(x)).astype(x.dtype)
    if spec:  # [B, heads, T, K] or [B, heads, T, D].
      scale = scale.reshape(len(scale), x.shape[1], 1, -1)
    else:
      scale = scale[:, None]
    if module.name == 'wo' or (spec and spec[0].startswith('bhtk')):
      return call(*spec, x * scale, **kwargs)
    return call(*spec, x, **kwargs) * scale

  def merged(
    self, params: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
  ) -> dict[str, np.ndarray]:
    """See `Delta.merged`: columns of k and v, rows of wo."""
    kernels = {}
    for name, scale in arrays.items():
      kernel = f'{name.removesuffix("/ia3")}/kernel'
      scale = scale[:, None] if _INPUT.fullmatch(kernel) else scale
      kernels[kernel] = np.asarray(params[kernel], np.float32) * scale
    return kernels

  def unmerged(
    self, params: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
  ) -> dict[str, np.ndarray]:
    """See `Delta.unmerged`; a scale of 0 has nothing left to take out."""
    for name, scale in arrays.items():
      if not np.all(scale):
        raise InputError(f'{name} has a scale of 0, which cannot be undone')
    return self.merged(params, {n: 1 / scale for n, scale in arrays.items()})

  @classmethod
  def from_peft(
    cls, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
  ) -> tuple['IA3', dict[str, np.ndarray]]:
    """See `Delta.from_peft`."""
    check_peft(config, _PEFT_KEYS)
    arrays = {}
    for name, tensor in tensors.items():
      module, _, part = name.rpartition('/')
      shape = None
      if _OUTPUT.fullmatch(f'{module}/kernel'):
        shape = (tensor.size, 1)
      elif _INPUT.fullmatch(f'{module}/kernel'):
        shape = (1, tensor.size)
      if part != 'ia3_l' or tensor.shape != shape:
        raise InputError(
          f'{name} {tensor.shape} is no scale of k, v or the input of wo'
        )
      arrays[f'{module}/ia3'] = tensor.ravel()
    return cls(), arrays

  def to_peft(
    self, arrays: Mapping[str, np.ndarray]
  ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """See `Delta.to_peft`."""
    config = {
      'fan_in_fan_out': False,
      'feedforward_modules': ['wo'],
      'init_ia3_weights': True,
      'modules_to_save': None,
      'target_modules': ['k', 'v', 'wo'],
    }
    tensors = {}
    for name, scale in arrays.items():
      module = name.removesuffix('/ia3')
      shape = (1, -1) if _INPUT.fullmatch(f'{module}/kernel') else (-1, 1)
      tensors[f'{module}/ia3_l'] = scale.reshape(shape)
    return config, tensors
