"""Matrix products of the network, in the precision that its config asks for.

With `precision = 'bfloat16'` the operands of every product are rounded to
bfloat16 and their products summed in float32, forward and backward. That is
what matrix units do fastest (tensor cores, TPUs, CPUs with AMX), while
everything between two products stays float32.

A CPU that multiplies float32 faster multiplies the rounded operands as float32.
That is the same product: two bfloat16 make an exact float32.
"""

import functools
import math
import platform

import jax
from jax.experimental.layout import Layout, with_layout_constraint
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


def operand(x: Array, precision: str) -> Array:
  """The array as products of this precision have it."""
  if precision != 'bfloat16' or x.dtype == jnp.bfloat16:
    return x
  if widens():
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
  return x.astype(jnp.bfloat16)


def multiply(spec: str, left: Array, right: Array, precision: str) -> Array:
  """The float32 product of `einsum`, without its derivative."""
  left, right = operand(left, precision), operand(right, precision)
  if precision == 'bfloat16':
    if widens():
      left, right = left.astype(jnp.float32), right.astype(jnp.float32)
    elif _is_one_cpu():
      return _multiply_on_cpu(spec, left, right)
  return jnp.einsum(spec, left, right, preferred_element_type=jnp.float32)


def widens() -> bool:
  """Whether operands rounded to bfloat16 are multiplied as float32 here."""
  on_cpu = jax.default_backend() == 'cpu'
  return on_cpu and not has_fast_bfloat16(_processor())


@functools.cache
def has_fast_bfloat16(processor: str) -> bool:
  """Whether a CPU multiplies bfloat16 faster than float32.

  Intel's AVX512-BF16 multiplies no more numbers in a cycle than AVX-512 does of
  float32, and XLA takes longer with it (benchmarks/README.md).

  Args:
    processor: its description, see `_processor`.

  Returns:
    What is known of x86; True of others.
  """
  described = {
    name.strip(): value.split()
    for name, _, value in (
      line.partition(':') for line in processor.splitlines()
    )
  }
  if 'flags' not in described:
    return True
  flags = described['flags']
  return 'amx_bf16' in flags or (
    'avx512_bf16' in flags and described.get('vendor_id') == ['AuthenticAMD']
  )


@functools.cache
def _processor() -> str:
  """Describes the processor.

  Returns:
    On Linux lines of /proc/cpuinfo ('flags : ...'), else its name.
  """
  try:
    with open('/proc/cpuinfo', encoding='utf-8') as f:
      lines = f.read().partition('\n\n')[0].splitlines()
  except OSError:
    return platform.processor() or platform.machine()
  return '\n'.join(x for x in lines if x.startswith(('vendor_id', 'flags')))


def _is_one_cpu() -> bool:
  """Whether this process computes on one CPU device.

  Over several XLA would not know how to split fixed layouts.
  """
  return jax.default_backend() == 'cpu' and jax.device_count() == 1


def _multiply_on_cpu(spec: str, left: Array, right: Array) -> Array:
  """A bfloat16 product in the form that XLA has fast code for on a CPU.

  It wants all three arrays row-major, the letters that are summed last in the
  left operand, and the left operand's other letters first in the product.
  Anything else, such as an operand that is transposed by its layout alone, it
  widens to float32, which takes three to five times as long. Of the two orders
  of the operands the one is taken that leaves less to transpose.
  """
  operands, out = spec.split('->')
  first, second = operands.split(',')
  sizes = dict(zip(first + second, left.shape + right.shape, strict=True))
  if _moved(first, second, out, sizes) > _moved(second, first, out, sizes):
    first, second, left, right = second, first, right, left
  turned, natural = _orders(first, second, out)
  product = jnp.einsum(
    f'{turned},{second}->{natural}',
    _row_major(left.transpose([first.index(letter) for letter in turned])),
    _row_major(right),
    preferred_element_type=jnp.float32,
  )
  order = [natural.index(letter) for letter in out]
  return _row_major(product).transpose(order)


def _orders(first: str, second: str, out: str) -> tuple[str, str]:
  """The letters of the left operand and of the product, in the fast order."""
  shared = [letter for letter in out if letter in first and letter in second]
  mine = [letter for letter in out if letter not in second]
  theirs = [letter for letter in out if letter not in first]
  summed = [letter for letter in first if letter not in out]
  return ''.join(shared + mine + summed), ''.join(shared + mine + theirs)


def _moved(first: str, second: str, out: str, sizes: dict[str, int]) -> int:
  """How many numbers have to change places for the fast order."""
  turned, natural = _orders(first, second, out)
  return sum(
    math.prod(sizes[letter] for letter in now)
    for now, then in ((first, turned), (out, natural))
    if now != then
  )


def _row_major(x: Array) -> Array:
  if not isinstance(x, jax.core.Tracer):
    return x  # Outside of jit arrays are row-major, and nothing is widened.
  order = tuple(range(x.ndim))
  return with_layout_constraint(x, Layout(major_to_minor=order))


# JAX's own derivative would widen both operands of the backward products to
# float32 again: the cotangent is float32.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rounded(spec: str, left: Array, right: Array) -> Array:
  return multiply(spec, left, right, 'bfloat16')


def _forward(spec: str, left: Array, right: Array) -> tuple[Array, _Saved]:
  types = jnp.zeros((), left.dtype), jnp.zeros((), right.dtype)
  left, right = (operand(x, 'bfloat16') for x in (left, right))
  return multiply(spec, left, right, 'bfloat16'), (left, right, *types)


def _backward(spec: str, saved: _Saved, gradient: Array) -> tuple[Array, Array]:
  left, right, left_type, right_type = saved
  operands, out = spec.split('->')
  first, second = operands.split(',')
  product = functools.partial(multiply, precision='bfloat16')
  to_left = product(f'{out},{second}->{first}', gradient, right)
  to_right = product(f'{first},{out}->{second}', left, gradient)
  return to_left.astype(left_type.dtype), to_right.astype(right_type.dtype)


_rounded.defvjp(_forward, _backward)
