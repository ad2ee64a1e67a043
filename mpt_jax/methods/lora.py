"""LoRA: an update of low rank beside the kernels of projections."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import re
from typing import Any, ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mpt_jax.backbones import param_shapes
from mpt_jax.methods.base import (
  BUNDLE,
  Delta,
  Start,
  check_peft,
  learned,
  multiply,
  of_rows,
)
from mpt_jax.types import (
  Array,
  InputError,
  Names,
  Positive,
  Rate,
  Share,
  check_least,
  nearest,
)

# The projections of T5 by our names, and by the field's.
_FIELD = {
  **{'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'},
  **{name: name for name in ('wi', 'wi_0', 'wi_1', 'wo')},
}
_OURS = {theirs: ours for ours, theirs in _FIELD.items()}
_KERNEL = re.compile(r'((?:encoder|decoder)/layers_\d+/\w+/(\w+))/kernel')
# PEFT's settings by ours, with their types; and what the tensors show or what
# has no effect on an adapter that is trained.
_PEFT_FIELDS: Mapping[str, tuple[str, tuple[type, ...]]] = {
  'r': ('rank', (int,)),
  'lora_alpha': ('alpha', (int, float)),
  'lora_dropout': ('dropout', (int, float)),
  'use_rslora': ('rank_scaled', (bool,)),
}
_PEFT_KEYS = (
  *(*_PEFT_FIELDS, 'target_modules', 'exclude_modules', 'init_lora_weights'),
  *('megatron_core', 'qalora_group_size'),
)
# Starts that leave the backbone's own kernels as they are.
_PEFT_STARTS = None, True, False, 'gaussian', 'orthogonal'


@dataclasses.dataclass(frozen=True)
class LoRA(Delta):
  """y = x W + scale (x A) B at each target (Hu et al., ICLR 2022).

  A [I, r] is uniform in +-1/sqrt(I) and B [r, O] zero, as in PEFT: a run starts
  at the backbone itself. The scale is alpha / r, or alpha / sqrt(r) where
  `rank_scaled` (Kalajdzievski, "A Rank Stabilization Scaling Factor for
  Fine-Tuning with LoRA", 2023).

  Attributes:
    rank: r.
    alpha: equal to the rank, as PEFT, the paper (base models) and LST's T5
      have it: the scale is 1, so that the learning rate alone says how fast.
    targets: the projections, in every layer and attention: query, key, value,
      out, wi (wi_0 and wi_1 where it is gated), wo, or q, k, v, o.
    rank_scaled: whether the scale is that of rsLoRA.
    dropout: on x in front of A, in training.
  """

  name: ClassVar[str] = 'lora'
  title: ClassVar[str] = 'LoRA'
  paper: ClassVar[str] = (
    'Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022'
  )
  rates: ClassVar[Mapping[str, tuple[float, float | None]]] = {
    'target': (3e-4, None)
  }
  formats: ClassVar[tuple[str, ...]] = ('peft', 'merged', BUNDLE)
  peft_type: ClassVar[str] = 'LORA'

  rank: Positive = 8
  alpha: Rate = 8.0
  targets: Names = ('query', 'value')
  rank_scaled: bool = False
  dropout: Share = 0.0

  def __post_init__(self):
    check_least(1, LORA_RANK=self.rank)
    if not 0 < self.alpha <= np.finfo(np.float32).max:
      raise InputError(f'LORA_ALPHA = {self.alpha} must be positive')
    if not 0 <= self.dropout < 1:
      raise InputError(f'LORA_DROPOUT = {self.dropout} must be in [0, 1)')
    given = self.targets
    given = (given,) if isinstance(given, str) else tuple(given)
    for target in given:
      if target not in _FIELD and target not in _OURS:
        raise InputError(
          f'LORA_TARGETS has {target!r}, expected {", ".join(_FIELD)}, or'
          f' q, k, v, o{nearest(str(target), (*_FIELD, *_OURS))}'
        )
    named = {_OURS.get(target, target) for target in given}
    if not named:
      raise InputError('LORA_TARGETS = () must name a projection')
    # One spelling and order, so that equal settings are equal.
    targets = tuple(name for name in _FIELD if name in named)
    object.__setattr__(self, 'targets', targets)
    object.__setattr__(self, 'alpha', float(self.alpha))

  @property
  def scale(self) -> float:
    """What the update is multiplied with."""
    return self.alpha / (self.rank**0.5 if self.rank_scaled else self.rank)

  @property
  def drops(self) -> bool:
    """See `Method.drops`."""
    return self.dropout > 0

  def _kernels(self, config: Any) -> dict[str, tuple[int, ...]]:
    """Module -> [I, O] of its kernel, for every target."""
    found, has = {}, {}
    for name, shape in param_shapes(config).items():
      if match := _KERNEL.fullmatch(name):
        has[match[2]] = True
        if match[2] in self.targets:
          found[match[1]] = shape
    for target in self.targets:
      if target not in has:
        raise InputError(
          f'LORA_TARGETS has {target!r}, but this backbone has'
          f' {", ".join(n for n in _FIELD if n in has)}'
        )
    return found

  def shapes(self, config: Any, num_tasks: int) -> dict[str, tuple[int, ...]]:
    """See `Method.shapes`: A [1|K, I, r] and B [1|K, r, O] of each target."""
    sets = self.sets(num_tasks)
    found: dict[str, tuple[int, ...]] = {}
    for module, (inputs, outputs) in self._kernels(config).items():
      found[f'{module}/lora_a'] = (sets, inputs, self.rank)
      found[f'{module}/lora_b'] = (sets, self.rank, outputs)
    return found

  def num_parameters(self, config: Any, num_tasks: int) -> int:
    """[n (d + I)(E + 2D) + m (d + F)(E + D)] r; n, m the targets of each."""
    heads = config.num_heads * config.head_dim
    encoder, decoder = config.num_encoder_layers, config.num_decoder_layers
    mlp = sum(target.startswith('w') for target in self.targets)
    attention = len(self.targets) - mlp
    count = attention * (config.emb_dim + heads) * (encoder + 2 * decoder)
    count += mlp * (config.emb_dim + config.mlp_dim) * (encoder + decoder)
    return self.sets(num_tasks) * self.rank * count

  def initial(
    self, config: Any, num_tasks: int, start: Start
  ) -> dict[str, Array]:
    """See `Method.initial`."""
    shapes = self.shapes(config, num_tasks)
    keys = iter(jax.random.split(start.key, len(shapes)))
    arrays = {}
    for name, shape in shapes.items():
      bound = shape[1] ** -0.5
      arrays[name] = (
        jax.random.uniform(next(keys), shape, jnp.float32, -bound, bound)
        if name.endswith('/lora_a')
        else jnp.zeros(shape, jnp.float32)
      )
    return arrays

  def intercept(
    self,
    call: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    context: nn.module.InterceptorContext,
  ) -> Any:
    """See `Delta.intercept`: adds the update, in either order of products."""
    module, method = context.module, context.method_name
    if method == '_is_less_work' and self._is_dropping(module):
      # What is dropped is the input of keys and values, which the other order
      # never has.
      return False
    a, b = learned(module, 'lora_a'), learned(module, 'lora_b')
    if a is None or b is None or method not in ('__call__', 'by_head'):
      return call(*args, **kwargs)
    y = call(*args, **kwargs)
    if method == '__call__':
      update = multiply(multiply(self._dropped(module, *args), a), b)
    else:
      update = _by_head(args[0], args[1], a, b)
    return y + (update * self.scale).astype(y.dtype)

  def _is_dropping(self, module: nn.Module) -> bool:
    return self.drops and module.has_rng('dropout')

  def _dropped(self, module: nn.Module, x: Array) -> Array:
    if not self._is_dropping(module):
      return x
    kept = 1.0 - self.dropout
    mask = jax.random.bernoulli(module.make_rng('dropout'), kept, x.shape)
    return jnp.where(mask, x / kept, 0).astype(x.dtype)

  def merged(
    self, params: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
  ) -> dict[str, np.ndarray]:
    """See `Delta.merged`: W + scale A B."""
    return self._added(params, arrays, self.scale)

  def unmerged(
    self, params: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
  ) -> dict[str, np.ndarray]:
    """See `Delta.unmerged`: W - scale A B."""
    return self._added(params, arrays, -self.scale)

  def _added(
    self,
    params: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    scale: float,
  ) -> dict[str, np.ndarray]:
    kernels = {}
    for name, a in arrays.items():
      module, _, part = name.rpartition('/')
      if part == 'lora_a':
        update = np.float32(scale) * (a @ arrays[f'{module}/lora_b'])
        kernel = np.asarray(params[f'{module}/kernel'], np.float32)
        kernels[f'{module}/kernel'] = kernel + update
    return kernels

  @classmethod
  def from_peft(
    cls, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
  ) -> tuple['LoRA', dict[str, np.ndarray]]:
    """See `Delta.from_peft`; the tensors say which projections are targets."""
    check_peft(config, _PEFT_KEYS)
    if config.get('init_lora_weights') not in _PEFT_STARTS:
      raise InputError(
        f'init_lora_weights is {config["init_lora_weights"]!r}, which changes'
        " the backbone's own kernels"
      )
    arrays: dict[str, np.ndarray] = {}
    targets = []
    for name, tensor in tensors.items():
      match = re.fullmatch(r'(.+/(\w+))/lora_([AB])\.weight', name)
      if not match or match[2] not in _FIELD or tensor.ndim != 2:
        raise InputError(f'{name} {tensor.shape} is not of a projection of T5')
      targets.append(match[2])
      arrays[f'{match[1]}/lora_{match[3].lower()}'] = tensor.T
    # Where nothing is said our defaults are PEFT's.
    settings = {}
    for key, (ours, types) in _PEFT_FIELDS.items():
      if key in config:
        settings[ours] = config[key]
        if type(config[key]) not in types:
          raise InputError(f'{key} is {config[key]!r}')
    method = cls(targets=tuple(targets), **settings)
    for name, array in arrays.items():
      module, _, part = name.rpartition('/')
      rank = array.shape[1] if part == 'lora_a' else array.shape[0]
      if not {f'{module}/lora_a', f'{module}/lora_b'} <= arrays.keys():
        raise InputError(f'{module} has one of lora_A and lora_B alone')
      if rank != method.rank:
        raise InputError(f'r is {method.rank}, but {name} has rank {rank}')
    return method, arrays

  def to_peft(
    self, arrays: Mapping[str, np.ndarray]
  ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """See `Delta.to_peft`."""
    whole = self.alpha.is_integer()
    config = {
      'bias': 'none',
      'fan_in_fan_out': False,
      'init_lora_weights': True,
      'lora_alpha': int(self.alpha) if whole else self.alpha,
      'lora_dropout': self.dropout,
      'modules_to_save': None,
      'r': self.rank,
      'target_modules': [_FIELD[target] for target in self.targets],
      'use_rslora': self.rank_scaled,
    }
    tensors = {}
    for name, array in arrays.items():
      module, part = name.rsplit('/lora_', 1)
      tensors[f'{module}/lora_{part.upper()}.weight'] = array.T
    return config, tensors


def _by_head(spec: str, x: Array, a: Array, b: Array) -> Array:
  """The update of `t5.layers.Dense.by_head`.

  Args:
    spec: queries [B, H, T, K] that meet keys' kernels, 'bhtk,dhk->bhtd', or
      mixed inputs [B, H, T, D] that become values, 'bhtd,dhk->bhtk'.
    x: either of these.
    a: [1, D, r] or [B, D, r].
    b: [1, r, H * K] or [B, r, H * K].
  """
  rows, heads = x.shape[:2]
  a, b = (of_rows(array, rows).astype(x.dtype) for array in (a, b))
  b = b.reshape(*b.shape[:2], heads, -1)
  own = 'b'
  if len(a) == 1:
    a, b, own = a[0], b[0], ''
  if spec.startswith('bhtk'):
    small = jnp.einsum(f'bhtk,{own}rhk->bhtr', x, b)
    return jnp.einsum(f'bhtr,{own}dr->bhtd', small, a)
  small = jnp.einsum(f'bhtd,{own}dr->bhtr', x, a)
  return jnp.einsum(f'bhtr,{own}rhk->bhtk', small, b)
