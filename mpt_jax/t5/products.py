"""Matrix products of the network, in the precision that its config asks for.

With `precision = 'bfloat16'` the operands of every product are rounded to
bfloat16 and their products summed in float32, forward and backward. That is
what matrix units do fastest (tensor cores, TPUs, CPUs with AMX or AVX512-BF16),
while everything between two products stays float32.
"""

import functools

import jax
import jax.numpy as jnp

from mpt_jax.types import Array

_Saved = tuple[Array, Array, Array, Array]


def einsum(spec: str, left: Array, right: Array, precision: str) -> Array:
  """The product of two arrays.

  Args:
    spec: 'bti,io->bto', two operands, every letter in two of the three terms.
    left: the first operand.
    right: the second.
    precision: 'float32' multiplies the operands as they are; 'bfloat16' rounds
      them first and returns float32.

  Returns:
    The product.
  """
  if precision == 'bfloat16':
    return _rounded(spec, left, right)
  return jnp.einsum(spec, left, right)


def _multiply(spec: str, left: Array, right: Array) -> Array:
  return jnp.einsum(
    spec,
    left.astype(jnp.bfloat16),
    right.astype(jnp.bfloat16),
    preferred_element_type=jnp.float32,
  )


# JAX's own derivative would widen both operands of the backward products to
# float32 again: the cotangent is float32.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rounded(spec: str, left: Array, right: Array) -> Array:
  return _multiply(spec, left, right)


def _forward(spec: str, left: Array, right: Array) -> tuple[Array, _Saved]:
  types = jnp.zeros((), left.dtype), jnp.zeros((), right.dtype)
  left, right = left.astype(jnp.bfloat16), right.astype(jnp.bfloat16)
  return _multiply(spec, left, right), (left, right, *types)


def _backward(spec: str, saved: _Saved, gradient: Array) -> tuple[Array, Array]:
  left, right, left_type, right_type = saved
  operands, out = spec.split('->')
  first, second = operands.split(',')
  to_left = _multiply(f'{out},{second}->{first}', gradient, right)
  to_right = _multiply(f'{first},{out}->{second}', left, gradient)
  return to_left.astype(left_type.dtype), to_right.astype(right_type.dtype)


_rounded.defvjp(_forward, _backward)
