"""Adapters: a bottleneck behind every sub-layer."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import re
from typing import Any, ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp

from mpt_jax.backbones import param_shapes
from mpt_jax.methods.base import (
  BUNDLE,
  Delta,
  Start,
  learned,
  multiply,
  of_rows,
)
from mpt_jax.types import Array, InputError, Natural, Positive, nearest

# By their names in AdapterHub and transformers.
ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
  'gelu_new': nn.gelu,  # The tanh approximation.
  'gelu': functools.partial(nn.gelu, approximate=False),
  'relu': nn.relu,
  'silu': nn.silu,
  'swish': nn.swish,
  'tanh': nn.tanh,
}
_START_SCALE = 0.01
_SUB_LAYER = re.compile(r'(\w+/layers_(\d+)/(\w+))/(?:out|wo)/kernel')
_NORM = re.compile(r'(.*norm)/scale')
_CROSS = 'encoder_decoder_attention'
# What a sub-layer has, and a norm.
DOWN, DOWN_BIAS = 'adapter_down', 'adapter_down_bias'
UP, UP_BIAS = 'adapter_up', 'adapter_up_bias'
CHANGE = 'scale_change'


@dataclasses.dataclass(frozen=True)
class Adapter(Delta):
  """A bottleneck behind self-attention and feed-forward of every block.

  Of the output y of a sub-layer, before dropout and the residual sum, it makes
  y + act(y W_down + b_down) W_up + b_up, with W_down [d, b] and W_up [b, d].
  Weights start as N(0, 0.01^2), biases as 0: nearly the backbone, not exactly.

  Attributes:
    reduction: b = d // reduction.
    size: b itself; None is what `reduction` makes of d.
    activation: see `ACTIVATIONS`.
    norms: whether the scales of the backbone's own norms train too, the final
      ones included, as in the paper's table. What is learned is a change of
      each scale that starts at 0, one for all tasks.
    first_layer: the first block of each stack with adapters, from 0; with
      more than that it is AdapterDrop.
    last_layer: the last one; None is the stack's last.
    cross: whether cross-attention has adapters too.
  """

  name: ClassVar[str] = 'adapter'
  title: ClassVar[str] = 'adapters'
  paper: ClassVar[str] = (
    'Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", ICML 2019'
  )
  rates: ClassVar[Mapping[str, tuple[float, float | None]]] = {
    'target': (3e-4, None)
  }
  formats: ClassVar[tuple[str, ...]] = ('adapterhub', BUNDLE)

  reduction: Positive = 32
  size: Positive | None = None
  activation: str = 'gelu_new'
  norms: bool = True
  first_layer: Natural = 0
  last_layer: Natural | None = None
  cross: bool = False

  def __post_init__(self):
    for name in ('reduction', 'size'):
      value = getattr(self, name)
      if value is not None and (type(value) is not int or value < 1):
        raise InputError(
          f'ADAPTER_{name.upper()} = {value!r} must be a number from 1'
        )
    if self.activation not in ACTIVATIONS:
      raise InputError(
        f'ADAPTER_ACTIVATION = {self.activation!r}, expected one of'
        f' {", ".join(ACTIVATIONS)}{nearest(str(self.activation), ACTIVATIONS)}'
      )
    first, last = self.first_layer, self.last_layer
    if first < 0 or (last is not None and last < first):
      raise InputError(
        f'ADAPTER_FIRST_LAYER = {first} and ADAPTER_LAST_LAYER = {last} are no'
        ' range of layers, which count from 0'
      )

  def bottleneck(self, config: Any) -> int:
    """The width b.

    Raises:
      InputError: if the backbone is too narrow for the reduction.
    """
    size = self.size or config.emb_dim // self.reduction
    if size < 1:
      raise InputError(
        f'ADAPTER_REDUCTION = {self.reduction} leaves nothing of a backbone'
        f' {config.emb_dim} wide: give {config.emb_dim} at most, or'
        ' ADAPTER_SIZE'
      )
    return size

  def _layers(self, config: Any) -> range:
    """The blocks with adapters, of the deeper stack."""
    deepest = max(config.num_encoder_layers, config.num_decoder_layers) - 1
    last = deepest if self.last_layer is None else self.last_layer
    if max(self.first_layer, last) > deepest:
      raise InputError(
        f'ADAPTER_FIRST_LAYER = {self.first_layer} and ADAPTER_LAST_LAYER ='
        f' {self.last_layer}, but the last layer of the backbone is {deepest}'
      )
    return range(self.first_layer, last + 1)

  def shapes(self, config: Any, num_tasks: int) -> dict[str, tuple[int, ...]]:
    """See `Method.shapes`; what is learned of norms is one set."""
    sets, width = self.sets(num_tasks), config.emb_dim
    size, layers = self.bottleneck(config), self._layers(config)
    found: dict[str, tuple[int, ...]] = {}
    for name in param_shapes(config):
      if match := _SUB_LAYER.fullmatch(name):
        module, layer, kind = match.groups()
        if int(layer) in layers and (self.cross or kind != _CROSS):
          found[f'{module}/{DOWN}'] = (sets, width, size)
          found[f'{module}/{DOWN_BIAS}'] = (sets, size)
          found[f'{module}/{UP}'] = (sets, size, width)
          found[f'{module}/{UP_BIAS}'] = (sets, width)
      elif self.norms and (match := _NORM.fullmatch(name)):
        found[f'{match[1]}/{CHANGE}'] = (1, width)
    return found

  def num_parameters(self, config: Any, num_tasks: int) -> int:
    """K (2 E' + 2 N') (2 d b + b + d), and (2 E + 3 N + 2) d of norms.

    E' and N' are the layers with adapters, with `cross` 3 N' of them.
    """
    width, size = config.emb_dim, self.bottleneck(config)
    encoder, decoder = config.num_encoder_layers, config.num_decoder_layers
    layers = self._layers(config)
    places = 2 * sum(i < encoder for i in layers)
    places += (2 + self.cross) * sum(i < decoder for i in layers)
    count = self.sets(num_tasks) * places * (2 * width * size + size + width)
    return count + self.norms * (2 * encoder + 3 * decoder + 2) * width

  def initial(
    self, config: Any, num_tasks: int, start: Start
  ) -> dict[str, Array]:
    """See `Method.initial`: small random weights, all else 0."""
    shapes = self.shapes(config, num_tasks)
    keys = jax.random.split(start.key, len(shapes))
    return {
      name: _START_SCALE * jax.random.normal(key, shape)
      if name.endswith((f'/{DOWN}', f'/{UP}'))
      else jnp.zeros(shape)
      for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }

  def check_can(self, **wanted: Any) -> None:
    """See `Method.check_can`."""
    super().check_can(**wanted)
    if wanted.get('scan') and (self.first_layer or self.last_layer is not None):
      raise InputError(
        f'method {self.name!r}: a scan needs all layers to be alike: give'
        ' SCAN_LAYERS = False, or adapters in all layers'
      )

  def intercept(
    self,
    call: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    context: nn.module.InterceptorContext,
  ) -> Any:
    """See `Delta.intercept`: an adapter on an output, or another norm."""
    module = context.module
    if context.method_name != '__call__':
      return call(*args, **kwargs)
    if (change := learned(module, CHANGE)) is not None:
      return _norm(module, change, *args)
    y = call(*args, **kwargs)
    down = learned(module, DOWN)
    if down is None:
      return y

    def bias(name: str) -> Array:
      array: Any = learned(module, name)
      return of_rows(array, len(y)).astype(y.dtype)[:, None]

    hidden = ACTIVATIONS[self.activation](multiply(y, down) + bias(DOWN_BIAS))
    up: Any = learned(module, UP)
    return y + multiply(hidden, up) + bias(UP_BIAS)


def _norm(module: nn.Module, change: Array, x: Array) -> Array:
  """What a norm makes of x [N, T, D] with its scale changed by [1 or B, D]."""
  own: Any = module.variables['params']

  def run(scale: Array, x: Array) -> Any:
    params = {**own, 'scale': scale}
    return module.clone(parent=None).apply({'params': params}, x)

  scales = of_rows(own['scale'][None] + change, len(x))
  if len(scales) == 1:
    return run(scales[0], x)
  return jax.vmap(run)(scales, x)
