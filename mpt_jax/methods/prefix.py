"""Prefix tuning: learned keys and values in front of those of the text."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import math
from typing import Any, ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mpt_jax.methods.base import (
  BUNDLE,
  NO_T5X,
  Delta,
  Method,
  Start,
  check_peft,
  learned,
  of_rows,
)
from mpt_jax.t5 import layers
from mpt_jax.types import (
  Array,
  InputError,
  Names,
  Positive,
  check_least,
  nearest,
)

# Place -> the stack and its attention that have a prefix there.
_MODULES = {
  'encoder': ('encoder', 'attention'),
  'decoder': ('decoder', 'self_attention'),
  'cross': ('decoder', 'encoder_decoder_attention'),
}
_ARRAYS = 'prefix_key', 'prefix_value'
SHIFTED, UNSHIFTED = 'shifted', 'unshifted'
# Of PEFT's configuration: what is read, and what does not outlast training.
_PEFT_KEYS = (
  *('num_virtual_tokens', 'num_layers', 'token_dim', 'num_attention_heads'),
  *('num_transformer_submodules', 'prefix_projection', 'encoder_hidden_size'),
  'init_weights',
)


@dataclasses.dataclass(frozen=True)
class Prefix(Delta):
  """L keys and values of each layer's own (Li & Liang, ACL 2021).

  They stand in front of the projected keys and values of an attention, and
  every query sees all of them: softmax(q [K_p; K]' + bias) [V_p; V].
  2 L I parameters for each attention that has one, I = H x head size.

  Attributes:
    length: L.
    places: which attentions have a prefix: 'encoder' and 'decoder' are the
      self-attentions, 'cross' the decoder's to the encoder.
    positions: 'shifted' counts tokens from L, behind the prefix, as PEFT does:
      their distances stay those of the backbone. 'unshifted' counts keys from
      L and queries from 0, as AdapterHub's `adapters` 1.3 does: for prefixes
      that were trained there.
    hidden: width of the tanh layer of an MLP that makes the prefixes of a
      place from L vectors while training, as in the paper; the product is
      what it has made. None trains the keys and values themselves.
    peft_layers: n of a prefix in the form of PEFT's files, `prompt_embeddings`
      [L, 2 n I], where layers i and i + n / 2 share one if n is even. None is
      a prefix for each layer.
  """

  name: ClassVar[str] = 'prefix'
  title: ClassVar[str] = 'prefix tuning'
  paper: ClassVar[str] = (
    'Li & Liang, "Prefix-Tuning: Optimizing Continuous Prompts for'
    ' Generation", ACL 2021'
  )
  # That of PEFT's own page on prefixes for T5, which has no MLP either.
  rates: ClassVar[Mapping[str, tuple[float, float | None]]] = {
    'target': (1e-2, None)
  }
  formats: ClassVar[tuple[str, ...]] = ('peft', BUNDLE)
  peft_type: ClassVar[str] = 'PREFIX_TUNING'
  cannot: ClassVar[Mapping[str, str]] = {
    **NO_T5X,
    'pack': (
      'a prefix stands right in front of its example, which is so for the'
      " first one of a packed row alone: give PADDING = 'bucket'"
    ),
  }

  length: Positive = 100
  places: Names = tuple(_MODULES)
  positions: str = SHIFTED
  hidden: Positive | None = None
  peft_layers: Positive | None = None

  def __post_init__(self):
    check_least(1, PREFIX_LENGTH=self.length)
    if self.hidden is not None:
      check_least(1, PREFIX_HIDDEN=self.hidden)
    if self.peft_layers is not None:
      check_least(1, peft_layers=self.peft_layers)
    places = self.places
    places = (places,) if isinstance(places, str) else tuple(places)
    object.__setattr__(self, 'places', places)  # The class is frozen.
    for place in places:
      if place not in _MODULES or places.count(place) > 1:
        raise InputError(
          f'PREFIX_PLACES has {place!r}, expected some of'
          f' {", ".join(_MODULES)}, each once{nearest(str(place), _MODULES)}'
        )
    if not places:
      raise InputError(
        f'PREFIX_PLACES = () must name some of {", ".join(_MODULES)}'
      )
    known = SHIFTED, UNSHIFTED
    if self.positions not in known:
      raise InputError(
        f'PREFIX_POSITIONS = {self.positions!r}, expected'
        f' {" or ".join(known)}{nearest(str(self.positions), known)}'
      )
    if self.peft_layers and (self.hidden or places != ('decoder',)):
      raise InputError(
        f"peft_layers = {self.peft_layers} is PEFT's form, which has"
        f" places = ('decoder',) and no hidden layer, but places is {places}"
        f' and hidden {self.hidden}'
      )

  def shapes(self, config: Any, num_tasks: int) -> dict[str, tuple[int, ...]]:
    """See `Method.shapes`: keys and values, or what makes them."""
    sets, joined = self.sets(num_tasks), config.num_heads * config.head_dim
    if n := self.peft_layers:
      if not 0 < config.num_decoder_layers <= n:
        raise InputError(
          f"a prefix in PEFT's form for {n} layers does not do for a decoder of"
          f' {config.num_decoder_layers}'
        )
      return {'prompt_embeddings': (sets, self.length, 2 * n * joined)}
    found: dict[str, tuple[int, ...]] = {}
    for place in self.places:
      modules = list(_attentions(config, place))
      if not modules:
        continue  # The backbone has no such stack.
      if not self.hidden:
        heads = config.num_heads, config.head_dim
        for module in modules:
          for name in _ARRAYS:
            found[f'{module}/{name}'] = (sets, self.length, *heads)
        continue
      width = 2 * len(modules) * joined
      found |= {
        f'{place}/embedding': (sets, self.length, joined),
        f'{place}/hidden_kernel': (sets, joined, self.hidden),
        f'{place}/hidden_bias': (sets, self.hidden),
        f'{place}/out_kernel': (sets, self.hidden, width),
        f'{place}/out_bias': (sets, width),
      }
    if not found:
      raise InputError(
        f'PREFIX_PLACES = {self.places}, none of which the backbone has: name'
        " 'encoder'"
      )
    return found

  def num_parameters(self, config: Any, num_tasks: int) -> int:
    """2 L I for each attention; with an MLP what that has instead."""
    joined = config.num_heads * config.head_dim
    if self.peft_layers:
      return self.sets(num_tasks) * 2 * self.length * self.peft_layers * joined
    total = 0
    for place in self.places:
      width = 2 * joined * sum(1 for _ in _attentions(config, place))
      if self.hidden and width:
        total += joined * self.length + (joined + 1) * self.hidden
        total += (self.hidden + 1) * width
      else:
        total += self.length * width
    return self.sets(num_tasks) * total

  def initial(
    self, config: Any, num_tasks: int, start: Start
  ) -> dict[str, Array]:
    """See `Method.initial`: normal; kernels by their inputs, biases zero."""
    shapes = self.shapes(config, num_tasks)
    found = {}
    keys = jax.random.split(start.key, len(shapes))
    for key, (name, shape) in zip(keys, shapes.items(), strict=True):
      if name.endswith('bias'):
        found[name] = jnp.zeros(shape)
        continue
      scale = 1.0
      if name.endswith('kernel'):
        scale = 1.0 / math.sqrt(shape[1])
      found[name] = scale * jax.random.normal(key, shape)
    return found

  def laid_out(
    self, arrays: Mapping[str, Array], config: Any
  ) -> dict[str, Array]:
    """See `Delta.laid_out`: deals out what an MLP makes, or PEFT's form."""
    if not self.hidden and not self.peft_layers:
      return dict(arrays)
    found = {}
    for place in self.places:
      if self.hidden and f'{place}/embedding' not in arrays:
        continue
      table = (
        self._made(arrays, place)
        if self.hidden
        else arrays['prompt_embeddings']
      )  # [1 or K, L, 2 n I]
      sizes = *table.shape[:2], -1, config.num_heads, config.head_dim
      heads = table.reshape(sizes)
      for i, module in enumerate(_attentions(config, place)):
        # PEFT doubles the table for its cross-attention, which does not use
        # it, and deals out by fours.
        at = 4 * i % heads.shape[2] if self.peft_layers else 2 * i
        for part, name in enumerate(_ARRAYS):
          found[f'{module}/{name}'] = heads[:, :, at + part]
    return found

  def _made(self, arrays: Mapping[str, Array], place: str) -> Array:
    """The keys and values [1 or K, L, 2 n I] that a place's MLP makes."""
    embedding, kernel, bias, out_kernel, out_bias = (
      arrays[f'{place}/{name}']
      for name in (
        'embedding',
        'hidden_kernel',
        'hidden_bias',
        'out_kernel',
        'out_bias',
      )
    )
    hidden = jnp.tanh(embedding @ kernel + bias[:, None])
    return hidden @ out_kernel + out_bias[:, None]

  def product(
    self, arrays: Mapping[str, Array], config: Any
  ) -> tuple[Method, dict[str, Array]]:
    """See `Method.product`: the MLP is left behind."""
    if not self.hidden:
      return self, dict(arrays)
    return dataclasses.replace(self, hidden=None), self.laid_out(arrays, config)

  @classmethod
  def from_peft(
    cls, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
  ) -> tuple['Prefix', dict[str, np.ndarray]]:
    """See `Delta.from_peft`: one at the decoder, its layers' sharing kept."""
    check_peft(config, _PEFT_KEYS)
    if config.get('num_transformer_submodules') not in (None, 2):
      raise InputError(
        'num_transformer_submodules is'
        f' {config["num_transformer_submodules"]!r}, but T5 has 2'
      )
    sizes = []
    for name in ('num_virtual_tokens', 'token_dim'):
      if type(config.get(name)) is not int or config[name] < 1:
        raise InputError(f'{name} is {config.get(name)!r}, expected a number')
      sizes.append(config[name])
    length, width = sizes
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    n = shapes.get('prompt_embeddings', (0,))[-1] // (2 * width)
    if n < 1 or shapes != {'prompt_embeddings': (length, 2 * n * width)}:
      raise InputError(
        f'num_virtual_tokens is {length} and token_dim {width}, which makes'
        f' prompt_embeddings ({length}, 2 n {width}), but the tensors are'
        f' {shapes}'
      )
    if config.get('num_layers') not in (None, n):
      raise InputError(
        f'num_layers is {config["num_layers"]!r}, but the tensor has {n}'
      )
    method = cls(length, ('decoder',), peft_layers=n)
    return method, dict(tensors)

  def to_peft(
    self, arrays: Mapping[str, np.ndarray]
  ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """See `Delta.to_peft`.

    Each layer of D takes one of n pairs, of which PEFT hands out every other
    one, round and round: for odd n all differ. So n is D, or D + 1 where D is
    even and layers i and i + D / 2 are not the same; PEFT ignores the layer
    more.
    """
    if self.places != ('decoder',) or self.positions != SHIFTED or self.hidden:
      raise InputError(
        "PEFT's prefixes are at the decoder's self-attention alone, with"
        f' positions shifted: it cannot hold one at {", ".join(self.places)}'
        f" with positions {self.positions}; write FORMAT = 'bundle'"
      )
    heads, n, table = None, self.peft_layers, arrays.get('prompt_embeddings')
    if n is None or table is None:
      table, heads = _for_peft(arrays)
      n = table.shape[1] // 2
      table = table.reshape(self.length, -1)
    config = {
      'encoder_hidden_size': None,
      'init_weights': None,
      'modules_to_save': None,
      'num_attention_heads': heads,
      'num_layers': n,
      'num_transformer_submodules': 2,
      'num_virtual_tokens': self.length,
      'prefix_projection': False,
      'token_dim': table.shape[1] // (2 * n),
    }
    return config, {'prompt_embeddings': table}

  def intercept(
    self,
    call: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    context: nn.module.InterceptorContext,
  ) -> Any:
    """See `Delta.intercept`."""
    module, method = context.module, context.method_name
    if isinstance(module, layers.RelativePositionBias):
      place = 'encoder' if module.bidirectional else 'decoder'
      if method == '__call__' and place in self.places:
        args = self._widened(*args)
      return call(*args, **kwargs)
    keys, values = (
      learned(module, 'prefix_key'),
      learned(module, 'prefix_value'),
    )
    if keys is None or values is None:
      return call(*args, **kwargs)
    if method == '_is_less_work':
      return False  # The prefix is there in heads alone.
    if method == '_attend':
      query, key, value, mask, *rest = args
      if mask is not None:
        front = (0, 0), (0, 0), (0, 0), (self.length, 0)
        mask = jnp.pad(mask, front, constant_values=True)
      args = query, _before(key, keys), _before(value, values), mask, *rest
    return call(*args, **kwargs)

  def _widened(self, queries: Array, keys: Array) -> tuple[Array, Array]:
    """The positions [T] and [L + S] of a stack that counts [T] and [S]."""
    front = jnp.arange(self.length, dtype=keys.dtype)
    if self.positions == SHIFTED:
      return queries, jnp.concatenate([front - self.length, keys])
    return queries, jnp.concatenate([front, keys + self.length])


def _attentions(config: Any, place: str) -> Iterator[str]:
  """The names of the attention modules of a place, by layers."""
  stack, name = _MODULES[place]
  for i in range(getattr(config, f'num_{stack}_layers')):
    yield f'{stack}/layers_{i}/{name}'


def _for_peft(arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, int]:
  """The keys and values of D layers as [L, 2 n, H, K], and H."""
  pairs = [
    [arrays[f'decoder/layers_{i}/self_attention/{name}'] for name in _ARRAYS]
    for i in range(len(arrays) // 2)
  ]
  n, half = len(pairs), len(pairs) // 2
  if n % 2 == 0 and not np.array_equal(pairs[:half], pairs[half:]):
    n += 1
  length, heads, size = pairs[0][0].shape
  table = np.zeros((length, 2 * n, heads, size), np.float32)
  for i, pair in enumerate(pairs):
    at = 4 * i % (2 * n)
    table[:, at], table[:, at + 1] = pair
  return table, heads


def _before(x: Array, prefix: Array) -> Array:
  """Puts [1 or B, L, H, K] before [N, H, S, K]."""
  prefix = of_rows(prefix, len(x)).transpose(0, 2, 1, 3).astype(x.dtype)
  prefix = jnp.broadcast_to(prefix, (len(x), *prefix.shape[1:]))
  return jnp.concatenate([prefix, x], axis=2)
