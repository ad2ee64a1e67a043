"""Softmax attention with a derivative that moves less memory.

On a CPU most of the time of attention goes into writing and reading arrays of
the size of its weights, [B, H, T, S]. This derivative has fewer of them than
JAX's own: the softmax is divided by its sum after the second product, where
there is little to divide; the product's own operand is what is kept for the
backward pass; and the sum over the keys that the softmax's derivative takes is
that of context times gradient (Dao et al., 2022, appendix B.2).

Letters in shapes: B batch, H heads, T queries, S keys, K head size.
"""

from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp

from mpt_jax.t5 import products
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
