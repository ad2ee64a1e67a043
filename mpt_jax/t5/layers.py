"""The layers of T5: norm, projections, attention, position bias, MLP.

Parameters are named and shaped as in T5X's `examples/t5`; each also records
the logical axis names that T5X's partitioner reads (collection `params_axes`).
Letters in shapes: B batch, S source, T target, D width, H heads, K head size.
"""

import functools
import operator
from typing import Any, ClassVar

from flax import linen as nn
from flax.linen import partitioning as nn_partitioning
import jax
import jax.numpy as jnp
import numpy as np

from mpt_jax.t5 import attention
from mpt_jax.t5.config import T5Config
from mpt_jax.t5.products import einsum
from mpt_jax.types import Array

_ACTIVATIONS = {
  'relu': nn.relu,
  'gelu': nn.gelu,  # the tanh approximation, as T5 1.1 was trained
  'silu': nn.silu,
  'swish': nn.swish,
  'linear': lambda x: x,
}


def _kernel_init(scale: float = 1.0) -> nn.initializers.Initializer:
  return nn.initializers.variance_scaling(scale, 'fan_in', 'truncated_normal')


class LayerNorm(nn.Module):
  """T5's norm: divides by the root mean square; no mean, no bias."""

  dtype: str
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Normalises the last axis in float32; [..., D] -> [..., D]."""
    scale = nn_partitioning.param_with_axes(
      'scale', nn.initializers.ones, (x.shape[-1],), axes=('embed',)
    )
    x = x.astype(jnp.float32)
    mean_square = jnp.mean(jax.lax.square(x), axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(mean_square + self.epsilon)
    scale = scale.reshape((1,) * (x.ndim - 1) + scale.shape)
    return (x * scale).astype(self.dtype)


class Dense(nn.Module):
  """A linear map without bias, `x @ kernel`.

  Its config, like that of attention and embedding, may be of another family
  with these sizes.
  """

  config: Any
  inputs: int
  features: int
  axes: tuple[str, str]
  kernel_init: nn.initializers.Initializer = _kernel_init()

  def setup(self):
    """Declares the kernel [inputs, features]."""
    self.kernel = nn_partitioning.param_with_axes(
      'kernel',
      self.kernel_init,
      (self.inputs, self.features),
      axes=self.axes,
      module=self,
    )

  def __call__(self, x: Array) -> Array:
    """Maps [B, T, inputs] to [B, T, features]."""
    return product('bti,io->bto', x, self.kernel, self.config)

  def by_head(self, spec: str, x: Array) -> Array:
    """Multiplies each head with its part of the kernel.

    Args:
      spec: 'bhtk,dhk->bhtd' or 'bhtd,dhk->bhtk'.
      x: [B, H, T, K] or [B, H, T, D].

    Returns:
      [B, H, T, D] or [B, H, T, K].
    """
    heads = (self.config.num_heads, self.config.head_dim)

    def multiply(x: Array, kernel: Array) -> Array:
      kernel = kernel.reshape(self.inputs, *heads)
      return product(spec, x, kernel, self.config)

    # A scan over layers would keep the reshaped kernels of all of them for the
    # backward pass; now it has the kernels themselves.
    return jax.checkpoint(multiply, prevent_cse=False)(x, self.kernel)


def product(spec: str, x: Array, kernel: Array, config: Any) -> Array:
  """Multiplies in the precision of a config, into its dtype."""
  if config.precision == 'float32':
    x, kernel = x.astype(config.dtype), kernel.astype(config.dtype)
  return einsum(spec, x, kernel, config.precision).astype(config.dtype)


class Embed(nn.Module):
  """The token embedding, looked up by gather."""

  config: Any

  def setup(self):
    """Declares the table [V, D]."""
    self.embedding = nn_partitioning.param_with_axes(
      'embedding',
      nn.initializers.normal(stddev=1.0),
      (self.config.vocab_size, self.config.emb_dim),
      axes=('vocab', 'embed'),
      module=self,
    )

  def __call__(self, tokens: Array) -> Array:
    """Looks up [B, S] int32 tokens; returns [B, S, D]."""
    return jnp.take(self.embedding, tokens, axis=0).astype(self.config.dtype)

  def attend(self, x: Array) -> Array:
    """Returns float32 logits [B, T, V] of x [B, T, D], scaled as in v1.0."""
    logits = _logits('btd,vd->btv', x, self.embedding, self.config)
    return logits / np.sqrt(self.config.emb_dim).astype(np.float32)


class Logits(nn.Module):
  """The output projection of T5 v1.1, `x @ kernel` in float32."""

  config: T5Config

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [..., D] to float32 [..., V]."""
    kernel = nn_partitioning.param_with_axes(
      'kernel',
      _kernel_init(),
      (x.shape[-1], self.config.vocab_size),
      axes=('embed', 'vocab'),
    )
    return _logits('btd,dv->btv', x, kernel, self.config)


def _logits(spec: str, x: Array, kernel: Array, config: T5Config) -> Array:
  if config.precision != 'float32':
    return einsum(spec, x, kernel, config.precision)
  # Products of the wider type of the two: no float32 copy of a bfloat16
  # kernel, no rounding of a float32 one.
  return jnp.einsum(spec, x, kernel, preferred_element_type=jnp.float32)


class MlpBlock(nn.Module):
  """Feed-forward block; with two activations, the gated one of v1.1."""

  config: T5Config

  @nn.compact
  def __call__(self, x: Array, deterministic: bool) -> Array:
    """Maps [B, T, D] to [B, T, D]."""
    cfg = self.config
    branches = []
    for i, activation in enumerate(cfg.mlp_activations):
      name = 'wi' if len(cfg.mlp_activations) == 1 else f'wi_{i}'
      wi = Dense(cfg, cfg.emb_dim, cfg.mlp_dim, ('embed', 'mlp'), name=name)
      branches.append(_ACTIVATIONS[activation](wi(x)))
    hidden = functools.reduce(operator.mul, branches)
    hidden = dropout(cfg)(hidden, deterministic)
    wo = Dense(cfg, cfg.mlp_dim, cfg.emb_dim, ('mlp', 'embed'), name='wo')
    return wo(hidden)


def dropout(config: T5Config) -> nn.Dropout:
  """T5's dropout: one mask for all positions of a row, as in T5X."""
  return nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))


@functools.cache
def _distance_buckets(
  bidirectional: bool, num_buckets: int, max_distance: int
) -> np.ndarray:
  """Buckets of the distances -max_distance .. max_distance, int32.

  A distance is key index minus query index. Half of a direction's buckets
  hold one distance each, the others grow logarithmically.
  """
  distance = np.arange(-max_distance, max_distance + 1)
  if bidirectional:
    num_buckets //= 2
    offset = np.where(distance > 0, num_buckets, 0)
    distance = np.abs(distance)
  else:
    offset = np.zeros_like(distance)
    distance = np.maximum(-distance, 0)
  exact = num_buckets // 2
  # Done in float64 and nudged up, so that powers of two, which sit on the
  # border of two buckets, fall on the same side on every device.
  ratio = np.log(np.maximum(distance, 1) / exact) / np.log(max_distance / exact)
  grown = exact + np.floor(ratio * (num_buckets - exact) + 1e-7).astype(int)
  bucket = np.where(distance < exact, distance, grown)
  return (offset + np.minimum(bucket, num_buckets - 1)).astype(np.int32)


class RelativePositionBias(nn.Module):
  """Learned bias per head and distance, of a stack or of one of its layers."""

  config: T5Config
  bidirectional: bool

  @nn.compact
  def __call__(self, query_positions: Array, key_positions: Array) -> Array:
    """Returns the bias [1, H, T, S] for positions [T] and [S] (int32)."""
    cfg = self.config
    embedding = nn_partitioning.param_with_axes(
      'rel_embedding',
      nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform'),
      (cfg.num_heads, cfg.relpos_num_buckets),
      axes=('heads', 'relpos_buckets'),
    )
    limit = cfg.relpos_max_distance
    buckets = jnp.asarray(
      _distance_buckets(self.bidirectional, cfg.relpos_num_buckets, limit)
    )
    distance = key_positions[None, :] - query_positions[:, None]  # [T, S]
    bucket = buckets[jnp.clip(distance, -limit, limit) + limit]
    # The type of the attention logits that it is added to.
    dtype = 'float32' if cfg.float32_attention_logits else cfg.dtype
    return jnp.take(embedding, bucket, axis=1)[None].astype(dtype)


class _Attention(nn.Module):
  """What self- and cross-attention share.

  Class attributes:
    dense: the class of its projections.
  """

  dense: ClassVar[Any] = Dense

  config: Any

  def _project(self, name: str) -> Dense:
    """The projection to queries, keys or values."""
    cfg = self.config
    # T5 does not scale the logits; the start value of the query does.
    scale = 1.0 / cfg.head_dim if name == 'query' else 1.0
    return self.dense(
      cfg,
      cfg.emb_dim,
      cfg.num_heads * cfg.head_dim,
      ('embed', 'joined_kv'),
      _kernel_init(scale),
      name=name,
    )

  def _heads(self, name: str, x: Array) -> Array:
    """Projects [B, T, D] to heads [B, H, T, K]."""
    cfg = self.config
    joined = self._project(name)(x)  # [B, T, H * K], heads major
    split = joined.reshape(*x.shape[:2], cfg.num_heads, cfg.head_dim)
    return split.transpose(0, 2, 1, 3)

  def _attend(
    self,
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    bias: Array | None,
    deterministic: bool,
  ) -> Array:
    """softmax(query key' + bias) value: [B, H, T, K] -> [B, H, T, K].

    Keys and values [B, H, S, K] may also be common to all heads, [B, 1, S, K].
    """
    cfg = self.config
    size = batch, _, queries, width = query.shape
    common = key.shape[1] == 1
    if cfg.dtype == 'float32' and (deterministic or cfg.dropout_rate == 0.0):
      if common:
        # To one head that has the queries of all.
        query = query.reshape(batch, 1, -1, width)
        if mask is not None and mask.shape[2] > 1:
          mask = jnp.broadcast_to(mask, (*size[:3], mask.shape[-1]))
          mask = mask.reshape(batch, 1, -1, mask.shape[-1])
      context = attention.attend(query, key, value, bias, mask, cfg.precision)
      return context.reshape(size)
    # In any type, with dropout on the weights.
    dtype = 'float32' if cfg.float32_attention_logits else cfg.dtype
    if common:
      key, value = key[:, 0], value[:, 0]
    keys = 'bsk' if common else 'bhsk'
    if cfg.precision == 'float32':
      logits = jnp.einsum(
        f'bhtk,{keys}->bhts', query, key, preferred_element_type=dtype
      )
    else:
      logits = einsum(f'bhtk,{keys}->bhts', query, key, cfg.precision)
    if bias is not None:
      logits += bias.astype(dtype)
    if mask is not None:
      # Finite, so that a row with nothing to attend to stays finite too.
      logits = jnp.where(mask, logits, jnp.finfo(dtype).min / 2)
    weights = jax.nn.softmax(logits, axis=-1).astype(cfg.dtype)
    weights = self._drop(weights, deterministic)
    return einsum(f'bhts,{keys}->bhtk', weights, value, cfg.precision)

  def _drop(self, weights: Array, deterministic: bool) -> Array:
    return dropout(self.config)(weights, deterministic)

  def _out(self, context: Array) -> Array:
    """Projects heads [B, H, T, K] back to [B, T, D]."""
    cfg = self.config
    joined = cfg.num_heads * cfg.head_dim
    context = context.transpose(0, 2, 1, 3)
    axes = 'joined_kv', 'embed'
    out = self.dense(cfg, joined, cfg.emb_dim, axes, name='out')
    return out(context.reshape(*context.shape[:2], joined))


class SelfAttention(_Attention):
  """Self-attention, with a key and value cache for decoding."""

  @nn.compact
  def __call__(
    self,
    x: Array,
    mask: Array | None,
    bias: Array | None,
    deterministic: bool,
    cache_length: int | None = None,
    cache_index: Array | None = None,
  ) -> Array:
    """Attends over x itself.

    Args:
      x: [B, T, D]; in a decoding step T is 1.
      mask: bool, broadcastable to [B, H, T, S]; True attends.
      bias: [1, H, T, S] position bias, or None.
      deterministic: True switches dropout off.
      cache_length: when given, a cache of that many positions is made.
      cache_index: when given, x is the position of this index (int32 scalar):
        its key and value are put in the cache and all of that is attended to.

    Returns:
      [B, T, D].
    """
    cfg = self.config
    query = self._heads('query', x)
    key = self._heads('key', x)
    value = self._heads('value', x)
    if cache_length is not None:
      shape = (x.shape[0], cfg.num_heads, cache_length, cfg.head_dim)
      cached_key = self.variable(
        'cache', 'cached_key', jnp.zeros, shape, key.dtype
      )
      cached_value = self.variable(
        'cache', 'cached_value', jnp.zeros, shape, value.dtype
      )
      if cache_index is not None:
        start = (0, 0, cache_index, 0)
        key = jax.lax.dynamic_update_slice(cached_key.value, key, start)
        value = jax.lax.dynamic_update_slice(cached_value.value, value, start)
        cached_key.value, cached_value.value = key, value
    context = self._attend(query, key, value, mask, bias, deterministic)
    return self._out(context)


class CrossAttention(_Attention):
  """Attention from the decoder to the encoder's output.

  With few queries the encoder's output is not projected to keys and values,
  the largest part of the decoder's work. The products are taken in another
  order: `q (x Wk)'` is `(q Wk') x'`, and `p (x Wv)` is `(p x) Wv`. So the
  projections have as many rows as there are queries, and the output itself
  serves as keys and values of all heads.
  """

  @nn.compact
  def __call__(
    self,
    x: Array,
    encoded: Array,
    mask: Array | None,
    deterministic: bool,
    cache_length: int | None = None,
  ) -> Array:
    """Attends over the encoder's output.

    Args:
      x: [B, T, D]; when decoding [N, 1, D] with N a multiple of B, the rows of
        one example (its beams) next to one another.
      encoded: [B, S, D].
      mask: bool, broadcastable to [B, H, T, S]; True attends.
      deterministic: True switches dropout off.
      cache_length: when given, the positions there are to decode: reads keys
        and values from the collection `encoder_cache` if it is there, writes
        them there if it is mutable and they are needed.

    Returns:
      x's shape.
    """
    shape = x.shape
    decode = cache_length is not None
    if decode:
      # An example's beams see the same keys: they become query positions
      # instead of copies of the keys.
      x = x.reshape(encoded.shape[0], -1, shape[-1])
    query = self._heads('query', x)
    name = 'encoder_cache'
    makes = decode and self.is_mutable_collection(name)
    queries = x.shape[1] * (cache_length or 1)
    cached = decode and self.has_variable(name, 'key')
    # A step without a cache is one that was found to be better off without.
    common = not cached and (
      (decode and not makes) or self._is_less_work(queries, encoded.shape[1])
    )
    key: Array
    value: Array
    if cached:
      key = self.get_variable(name, 'key')
      value = self.get_variable(name, 'value')
    elif common:
      query = self._project('key').by_head('bhtk,dhk->bhtd', query)
      key = value = encoded[:, None]
    else:
      key = self._heads('key', encoded)
      value = self._heads('value', encoded)
      if makes:
        self.put_variable(name, 'key', key)
        self.put_variable(name, 'value', value)
    context = self._attend(query, key, value, mask, None, deterministic)
    if common:
      context = self._project('value').by_head('bhtd,dhk->bhtk', context)
    return self._out(context).reshape(shape)

  def _is_less_work(self, queries: int, keys: int) -> bool:
    """Whether to project the queries instead of the keys and values."""
    cfg = self.config
    joined = cfg.num_heads * cfg.head_dim
    projected = keys * (cfg.emb_dim + queries) * joined
    common = queries * (joined + keys * cfg.num_heads) * cfg.emb_dim
    return common < projected
