"""Losses against float64 formulas, and the properties users rely on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from mpt_jax import losses

B, T, V, K = 3, 5, 11, 2


@pytest.fixture
def logits():
  return np.random.RandomState(0).normal(size=(2, B, T, V)).astype(np.float32)


@pytest.fixture
def targets():
  return np.random.RandomState(1).randint(0, V, size=(B, T))


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_cross_entropy_is_the_textbook_formula(logits, targets, smoothing):
  x = logits[0].astype(np.float64)
  log_p = special.log_softmax(x, axis=-1)
  soft = np.full((B, T, V), smoothing / (V - 1))
  np.put_along_axis(soft, targets[..., None], 1.0 - smoothing, axis=-1)
  entropy = -np.sum(special.xlogy(soft, soft), axis=-1)
  want = -np.sum(soft * log_p, axis=-1) - entropy
  loss, z_loss = losses.cross_entropy_per_token(
    jnp.asarray(logits[0]), jnp.asarray(targets), smoothing, z_loss=1e-2
  )
  np.testing.assert_allclose(loss, want, atol=1e-5)
  want_z = 1e-2 * special.logsumexp(x, axis=-1) ** 2
  np.testing.assert_allclose(z_loss, want_z, atol=1e-5)


@pytest.mark.parametrize('temperature', [1.0, 2.0])
def test_kl_is_from_teacher_to_student(logits, temperature):
  teacher, student = logits.astype(np.float64) / temperature
  p = special.softmax(teacher, axis=-1)
  want = temperature**2 * np.sum(
    special.rel_entr(p, special.softmax(student, axis=-1)), axis=-1
  )
  got = losses.kl_per_token(
    jnp.asarray(logits[0]), jnp.asarray(logits[1]), temperature
  )
  np.testing.assert_allclose(got, want, atol=1e-5)
  assert (np.asarray(got) > 0).all()


def test_distillation_is_zero_when_student_is_teacher(logits):
  x = jnp.asarray(logits[0])
  assert float(jnp.abs(losses.kl_per_token(x, x)).max()) < 1e-6
  assert float(losses.squared_error_per_position(x, x).max()) == 0.0
  grad = jax.grad(lambda s: losses.kl_per_token(x, s).sum())(x)
  assert float(jnp.abs(grad).max()) < 1e-6


def test_sums_and_weights_do_not_depend_on_the_batch_split(logits, targets):
  x, y = jnp.asarray(logits[0]), jnp.asarray(targets)
  weights = jnp.asarray(np.random.RandomState(2).randint(0, 2, (B, T)))
  loss, _ = losses.cross_entropy_per_token(x, y)
  rows = jnp.zeros((B, T), int)
  total = losses.weighted_by_task(loss, weights, rows, 1)
  parts = [
    losses.weighted_by_task(
      loss[i : i + 1], weights[i : i + 1], rows[i : i + 1], 1
    )
    for i in range(B)
  ]
  np.testing.assert_allclose(total[0], sum(p[0] for p in parts), rtol=1e-6)
  assert total[1] == sum(p[1] for p in parts)


def test_by_task_blames_only_the_task_that_is_not_finite():
  values = jnp.asarray([[1.0, 2.0], [jnp.nan, 3.0], [4.0, jnp.inf]])
  weights = jnp.asarray([[1, 1], [1, 1], [1, 0]])
  rows = jnp.asarray([[0, 0], [1, 1], [0, 0]])
  sums, counts = losses.weighted_by_task(values, weights, rows, K)
  assert float(sums[0]) == 7.0
  assert np.isnan(float(sums[1]))
  assert counts.tolist() == [3.0, 2.0]


def test_selects_the_states_of_both_conventions():
  states = ['embedded', 'block1', 'block2', 'normed']
  assert losses.select_states(states, 'last') == ['normed']
  assert losses.select_states(states, 'all') == [
    'embedded',
    'block1',
    'normed',
  ]
  with pytest.raises(ValueError, match="'first'"):
    losses.select_states(states, 'first')


def test_shapes_that_would_broadcast_are_refused(logits):
  with pytest.raises(ValueError, match='targets has shape'):
    losses.cross_entropy_per_token(jnp.asarray(logits[0]), jnp.zeros((T,), int))
