"""Softmax attention with a derivative that moves less memory.

On a CPU most of the time of attention goes into writing and reading arrays of
the size of its weights, [B, H, T, S]. This derivative has fewer of them than
JAX's own: the softmax is divided by its sum after the second product, where
there is little to divide; the product's own operand is what is kept for the
backward pass; and the sum over the keys that the softmax's derivative takes is
that of context times gradient (Dao et al., 2022, appendix B.2).


On one CPU device an encoder's attention is code of our own (`native`), for
which nothing of that size is written at all.

Letters in shapes: B batch, H heads, T queries, S keys, K head size.
"""

from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp

from mpt_jax.t5 import native, products
from mpt_jax.types import Array

# Finite, so that a query with nothing to attend to stays finite too.
MASKED = float(jnp.finfo(jnp.float32).min / 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend(
  query: Array,
  key: Array,
  value: Array,
  bias: Array | None,
  mask: Array | None,
  precision: str,
) -> Array:
  """Attention without dropout: softmax(query key' + bias) value.

  Differentiated in reverse only, as jax.grad does; jax.jvp raises a TypeError.

  Args:
    query: [B, H, T, K] float32; the logits are not scaled.
    key: [B, H, S, K] float32.
    value: [B, H, S, K] float32.
    bias: [1, H, T, S] float32, or None.
    mask: bool, broadcastable to [B, H, T, S], True attends; or None. A query
      that may attend to nothing gets the mean of all values.
    precision: see `products.einsum`.

  Returns:
    [B, H, T, K] float32.
  """
  return _attend((query, key, value), bias, mask, precision)[0]


def _attend(
  heads: Sequence[Array], bias: Array | None, mask: Array | None, precision: str
) -> tuple[Array, Array, Array]:
  """The context, exp(logits - largest), and one over its sum [B, H, T, 1]."""
  query, key, value = heads
  logits = products.multiply('bhtk,bhsk->bhts', query, key, precision)
  if bias is not None:
    logits += bias
  if mask is not None:
    logits = jnp.where(mask, logits, MASKED)
  weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
  scale = 1.0 / jnp.sum(weights, axis=-1, keepdims=True)
  weights = products.operand(weights, precision)
  context = products.multiply('bhts,bhsk->bhtk', weights, value, precision)
  return context * scale, weights, scale


def _forward(
  query: Any, key: Any, value: Any, bias: Any, mask: Any, precision: str
) -> tuple[Array, tuple[Any, ...]]:
  heads = [products.operand(x.value, precision) for x in (query, key, value)]
  offset = None if bias is None else bias.value
  allowed = None if mask is None else mask.value
  context, weights, scale = _attend(heads, offset, allowed, precision)
  # Only full fine-tuning needs the bias's gradient. That is known when the
  # step is traced, so it goes along as the structure of a tree.
  wanted = () if bias is not None and bias.perturbed else None
  return context, (*heads, allowed, context, weights, scale, wanted)


def _backward(
  precision: str, saved: tuple[Any, ...], gradient: Array
) -> tuple[Array | None, ...]:
  query, key, value, mask, context, weights, scale, wanted = saved
  product = functools.partial(products.multiply, precision=precision)
  mean = jnp.sum(gradient * context, axis=-1, keepdims=True) * scale
  gradient = products.operand(gradient * scale, precision)
  to_weights = product('bhtk,bhsk->bhts', gradient, value)
  to_logits = weights.astype(jnp.float32) * (to_weights - mean)
  if mask is not None:
    to_logits = jnp.where(mask, to_logits, 0.0)
  to_bias = None if wanted is None else to_logits.sum(axis=0, keepdims=True)
  to_logits = products.operand(to_logits, precision)
  return (
    product('bhts,bhsk->bhtk', to_logits, key),
    product('bhts,bhtk->bhsk', to_logits, query),
    product('bhts,bhtk->bhsk', weights, gradient),
    to_bias,
    None,
  )


attend.defvjp(_forward, _backward, symbolic_zeros=True)


# Head sizes are a multiple of the widest vectors that the code is made for.
_NATIVE_STEP = 16


def is_native(head_dim: int) -> bool:
  """Whether `attend_in_segments` can be used here, for heads of this size."""
  return (
    head_dim % _NATIVE_STEP == 0
    and native.is_wanted()
    and native.targets() is not None
  )


@jax.custom_vjp
def attend_in_segments(
  query: Array, key: Array, value: Array, bias: Array, segments: Array
) -> Array:
  """Attention of a padded or packed row's examples, each to itself.

  Needs `is_native`. Differentiated in reverse only, as `attend`.

  Args:
    query: [B, S, H, K] float32; the logits are not scaled.
    key: [B, S, H, K] float32.
    value: [B, S, H, K] float32.
    bias: [H, 2 * S - 1] float32: at [h, S - 1 + d] that of a key d positions
      behind its query.
    segments: [B, S] int32: the example at each position, 0 at padding. The
      positions of an example follow one another; padding among them is not
      attended to.

  Returns:
    [B, S, H, K] float32; 0 at padding behind an example.
  """
  return _run_forward(query, key, value, bias, segments)[0]


def _run_forward(
  query: Array, key: Array, value: Array, bias: Array, segments: Array
) -> tuple[Array, Array]:
  """The context, and the logarithm of the softmax's sum [B, H, S]."""
  batch, length, heads, _ = query.shape
  results = (
    jax.ShapeDtypeStruct(query.shape, jnp.float32),
    jax.ShapeDtypeStruct((batch, heads, length), jnp.float32),
  )
  call = jax.ffi.ffi_call(_target('attention_forward'), results)
  context, statistics = call(query, key, value, bias, segments)
  return context, statistics


def _target(handler: str) -> str:
  names = native.targets()
  assert names is not None, 'is_native() says whether this can be called'
  return names[handler]


def _forward_in_segments(
  query: Any, key: Any, value: Any, bias: Any, segments: Any
) -> tuple[Array, Any]:
  arrays = [x.value for x in (query, key, value, bias, segments)]
  if bias.perturbed:
    # Full fine-tuning: the code has no gradient of the bias.
    return jax.vjp(
      functools.partial(_by_xla, segments=arrays[-1]), *arrays[:-1]
    )
  context, statistics = _run_forward(*arrays)
  return context, (*arrays, context, statistics)


def _by_xla(
  query: Array, key: Array, value: Array, bias: Array, segments: Array
) -> Array:
  """`attend_in_segments` as `attend` computes it."""
  length = query.shape[1]
  places = jnp.arange(length)
  distance = places[None, :] - places[:, None]
  same = segments[:, :, None] == segments[:, None, :]
  context = attend(
    *(x.transpose(0, 2, 1, 3) for x in (query, key, value)),
    bias[:, distance + length - 1][None],
    (same & (segments > 0)[:, None, :])[:, None],
    'float32',
  )
  return context.transpose(0, 2, 1, 3)


def _backward_in_segments(
  saved: Any, gradient: Array
) -> tuple[Array | None, ...]:
  if not isinstance(saved, tuple):
    return (*saved(gradient), None)
  result = jax.ShapeDtypeStruct(gradient.shape, jnp.float32)
  call = jax.ffi.ffi_call(_target('attention_backward'), (result,) * 3)
  return (*call(*saved, gradient), None, None)


attend_in_segments.defvjp(
  _forward_in_segments, _backward_in_segments, symbolic_zeros=True
)
