"""Products in bfloat16: what is rounded, and that nothing else is."""

import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from mpt_jax.t5 import products
from mpt_jax.t5.products import einsum

# Every product of the network.
SPECS = {
  'bti,io->bto': ((2, 5, 7), (7, 11)),
  'btd,vd->btv': ((2, 5, 7), (11, 7)),
  'bhtk,bhsk->bhts': ((2, 3, 5, 7), (2, 3, 4, 7)),
  'bhts,bhsk->bhtk': ((2, 3, 5, 4), (2, 3, 4, 7)),
}


def rounded(x):
  """float64 of the nearest bfloat16."""
  return np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float64)


@pytest.fixture(params=[False, True], ids=['bfloat16', 'widened'])
def widened(request, monkeypatch):
  """Products as on CPUs with and without fast bfloat16."""
  monkeypatch.setattr(products, 'widens', lambda: request.param)


@pytest.mark.usefixtures('widened')
@pytest.mark.parametrize('spec', SPECS)
def test_value_and_gradients_are_those_of_rounded_operands(spec):
  rng = np.random.default_rng(0)
  left, right = (
    rng.standard_normal(size).astype(np.float32) for size in SPECS[spec]
  )
  out, pull = jax.vjp(lambda a, b: einsum(spec, a, b, 'bfloat16'), left, right)
  assert out.dtype == jnp.float32
  np.testing.assert_allclose(
    out, np.einsum(spec, rounded(left), rounded(right)), rtol=1e-5, atol=1e-5
  )
  gradient = rng.standard_normal(out.shape).astype(np.float32)
  to_left, to_right = pull(gradient)
  operands, result = spec.split('->')
  first, second = operands.split(',')
  np.testing.assert_allclose(
    to_left,
    np.einsum(f'{result},{second}->{first}', rounded(gradient), rounded(right)),
    rtol=1e-5,
    atol=1e-5,
  )
  np.testing.assert_allclose(
    to_right,
    np.einsum(f'{first},{result}->{second}', rounded(left), rounded(gradient)),
    rtol=1e-5,
    atol=1e-5,
  )
  # Far enough from the product itself that the test would see no rounding.
  exact = np.einsum(spec, left.astype(np.float64), right.astype(np.float64))
  assert np.abs(out - exact).max() > 1e-3


@pytest.mark.usefixtures('widened')
def test_compiled_products_are_of_rounded_operands():
  # XLA may take a conversion to bfloat16 and back for none at all.
  rng = np.random.default_rng(2)
  left, right = (
    rng.standard_normal(size).astype(np.float32) for size in ((1, 9, 7), (7, 5))
  )
  held = jnp.asarray(right, jnp.bfloat16)
  expected = np.einsum('bti,io->bto', rounded(2 * left), rounded(right))
  for kernel in (right, held):
    out = jax.jit(lambda a, b: einsum('bti,io->bto', 2 * a, b, 'bfloat16'))(
      left, kernel
    )
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ('processor', 'fast'),
  [
    ('vendor_id\t: GenuineIntel\nflags\t\t: fma avx512_bf16 amx_bf16', True),
    ('vendor_id\t: GenuineIntel\nflags\t\t: fma avx512_bf16', False),
    ('vendor_id\t: AuthenticAMD\nflags\t\t: fma avx512_bf16', True),
    ('vendor_id\t: AuthenticAMD\nflags\t\t: fma avx2', False),
    ('Features\t: fp asimd bf16', True),
    ('arm', True),
  ],
)
def test_what_multiplies_bfloat16_fast(processor, fast):
  assert products.has_fast_bfloat16(processor) is fast


@pytest.mark.usefixtures('widened')
def test_gradients_keep_the_types_of_their_operands():
  left = jnp.ones((2, 3, 4), jnp.float32)
  right = jnp.ones((4, 5), jnp.bfloat16)
  to_left, to_right = jax.grad(
    lambda a, b: einsum('bti,io->bto', a, b, 'bfloat16').sum(), argnums=(0, 1)
  )(left, right)
  assert (to_left.dtype, to_right.dtype) == (jnp.float32, jnp.bfloat16)


def test_float32_is_a_plain_product():
  rng = np.random.default_rng(1)
  left, right = rng.standard_normal((2, 5, 7)), rng.standard_normal((7, 3))
  out = einsum('bti,io->bto', jnp.float32(left), jnp.float32(right), 'float32')
  np.testing.assert_allclose(out, left @ right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('spec', SPECS)
@pytest.mark.skipif(
  jax.default_backend() != 'cpu' or jax.device_count() > 1,
  reason='for one CPU device: test_one_device.py runs it',
)
def test_no_product_is_widened_on_a_cpu_that_has_fast_ones(spec, monkeypatch):
  monkeypatch.setattr(products, 'widens', lambda: False)
  # Heads come transposed, and so does what the backward pass multiplies.
  sizes = {letter: 16 + 8 * i for i, letter in enumerate('btiohskdv')}

  def heads(name, x):
    return x.transpose(0, 2, 1, 3) if 'h' in name else x

  def loss(left, right, gradient):
    left, right = heads(first, left), heads(second, right)
    product = heads(out, einsum(spec, left, right, 'bfloat16'))
    return (product * gradient).sum()

  operands, out = spec.split('->')
  first, second = operands.split(',')
  arrays = []
  for name in (first, second, out):
    shape = [sizes[letter] for letter in name]
    if 'h' in name:
      shape[1], shape[2] = shape[2], shape[1]
    arrays.append(jnp.ones(shape))
  compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arrays)
  text = compiled.compile().as_text()
  types = dict(re.findall(r'(%?[\w.-]+) = (\w+)\[', text))
  pairs = re.findall(r' dot\((%?[\w.-]+), (%?[\w.-]+)\)', text)
  assert len(pairs) >= 2
  assert {types[name] for pair in pairs for name in pair} == {'bf16'}
