"""Attention with a derivative of its own, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpt_jax.t5 import attention

B, H, T, S, K = 3, 2, 7, 11, 5


def inputs(seed=0):
  rng = np.random.default_rng(seed)
  query, key, value, bias, gradient = (
    rng.standard_normal(size)
    for size in (
      (B, H, T, K),
      (B, H, S, K),
      (B, H, S, K),
      (1, H, T, S),
      (B, H, T, K),
    )
  )
  mask = rng.random((B, 1, T, S)) < 0.7
  mask[..., 0] = True
  return query, key, value, bias, mask, gradient


def exactly(query, key, value, bias, mask, gradient):
  """Context and gradients by the softmax's Jacobian, float64."""
  logits = np.einsum('bhtk,bhsk->bhts', query, key) + bias
  logits = np.where(mask, logits, attention.MASKED)
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  context = np.einsum('bhts,bhsk->bhtk', weights, value)
  jacobian = (
    np.eye(S) * weights[..., None] - weights[..., None] * weights[..., None, :]
  )
  to_weights = np.einsum('bhtk,bhsk->bhts', gradient, value)
  to_logits = np.einsum('bhtsr,bhtr->bhts', jacobian, to_weights)
  to_logits = np.where(mask, to_logits, 0.0)
  return context, (
    np.einsum('bhts,bhsk->bhtk', to_logits, key),
    np.einsum('bhts,bhtk->bhsk', to_logits, query),
    np.einsum('bhts,bhtk->bhsk', weights, gradient),
    to_logits.sum(0, keepdims=True),
  )


def ours(query, key, value, bias, mask, gradient, precision):
  arrays = [jnp.float32(x) for x in (query, key, value, bias)]
  context, pull = jax.vjp(
    lambda *a: attention.attend(*a, jnp.asarray(mask), precision), *arrays
  )
  return context, pull(jnp.float32(gradient))


def pairs(got, wanted):
  return zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)


# The rounding of bfloat16 is 2**-9 of an operand.
@pytest.mark.parametrize(
  ('precision', 'bound'), [('float32', 2e-6), ('bfloat16', 1.5e-2)]
)
def test_context_and_every_gradient(precision, bound):
  values = inputs()
  got, wanted = ours(*values, precision), exactly(*values)
  for array, exact in pairs(got, wanted):
    assert np.abs(array - exact).max() / np.abs(exact).max() < bound
  if precision == 'bfloat16':
    # Far enough off that the test would see no rounding.
    assert np.abs(got[0] - wanted[0]).max() > 1e-4


@pytest.mark.parametrize('shape', [(B, 1, 1, S), (1, 1, T, S)])
def test_masks_that_are_broadcast(shape):
  query, key, value, bias, _, gradient = inputs(1)
  mask = np.random.default_rng(2).random(shape) < 0.7
  mask[..., 0] = True
  values = query, key, value, bias, mask, gradient
  for got, exact in pairs(ours(*values, 'float32'), exactly(*values)):
    np.testing.assert_allclose(got, exact, rtol=1e-5, atol=2e-6)


def test_a_query_with_nothing_to_attend_to():
  values = inputs(3)
  values[4][1, :, 2] = False
  context, gradients = ours(*values, 'float32')
  exact, exact_gradients = exactly(*values)
  np.testing.assert_allclose(
    context[1, :, 2], values[2][1].mean(axis=1), rtol=1e-5, atol=1e-6
  )
  np.testing.assert_allclose(context, exact, rtol=1e-5, atol=1e-6)
  for got, wanted in zip(gradients, exact_gradients, strict=True):
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=2e-6)


def test_logits_too_large_for_exp():
  values = list(inputs(4))
  values[0] *= 60.0
  context, gradients = ours(*values, 'float32')
  exact, exact_gradients = exactly(*values)
  np.testing.assert_allclose(context, exact, rtol=1e-4, atol=1e-4)
  for got, wanted in zip(gradients, exact_gradients, strict=True):
    error = np.abs(got - wanted).max() / np.abs(wanted).max()
    assert error < 1e-4


def test_without_bias_and_mask():
  query, key, value, _, _, gradient = inputs(5)
  arrays = [jnp.float32(x) for x in (query, key, value)]
  context, pull = jax.vjp(
    lambda *a: attention.attend(*a, None, None, 'float32'), *arrays
  )
  exact, exact_gradients = exactly(
    query, key, value, 0.0, np.full((1, 1, 1, S), True), gradient
  )
  np.testing.assert_allclose(context, exact, rtol=1e-5, atol=1e-6)
  for got, wanted in zip(
    pull(jnp.float32(gradient)), exact_gradients[:3], strict=True
  ):
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=2e-6)
