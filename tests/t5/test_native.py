"""Attention by code of our own: against float64, and what it must survive.

It is for one CPU device. A plain run of the tests has two;
test_one_device.py runs this file with one.
"""

import logging
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpt_jax import t5
from mpt_jax.t5 import attention, native

pytestmark = pytest.mark.skipif(
  not attention.is_native(16),
  reason='needs one CPU device, see test_one_device.py, and a C compiler',
)


def inputs(batch, length, heads, depth, seed=0):
  rng = np.random.default_rng(seed)
  arrays = [rng.standard_normal((batch, length, heads, depth)) for _ in '1234']
  query, key, value, gradient = arrays
  bias = rng.standard_normal((heads, 2 * length - 1))
  return query / np.sqrt(depth), key, value, bias, gradient


def exactly(query, key, value, bias, gradient, segments):
  """Context and the gradients of query, key, value, bias, float64."""
  length = query.shape[1]
  places = np.arange(length)
  distance = places[None, :] - places[:, None] + length - 1
  logits = np.einsum('bthk,bshk->bhts', query, key) + bias[:, distance]
  mask = segments[:, :, None] == segments[:, None, :]
  mask = (mask & (segments[:, None, :] > 0))[:, None]
  logits = np.where(mask, logits, -1e30)
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  context = np.einsum('bhts,bshk->bthk', weights, value)
  to_weights = np.einsum('bthk,bshk->bhts', gradient, value)
  mean = (weights * to_weights).sum(-1, keepdims=True)
  to_logits = weights * (to_weights - mean)
  to_bias = np.zeros_like(bias)
  for t in range(length):
    np.add.at(to_bias.T, distance[t], to_logits.sum(0)[:, t].T)
  return context, (
    np.einsum('bhts,bshk->bthk', to_logits, key),
    np.einsum('bhts,bthk->bshk', to_logits, query),
    np.einsum('bhts,bthk->bshk', weights, gradient),
    to_bias,
  )


def ours(query, key, value, bias, gradient, segments, of_bias=False):
  arrays = [jnp.float32(x) for x in (query, key, value, bias)]
  segments = jnp.asarray(segments)
  if of_bias:
    context, pull = jax.vjp(
      lambda *a: attention.attend_in_segments(*a, segments), *arrays
    )
  else:
    bias = arrays.pop()
    context, pull = jax.vjp(
      lambda *a: attention.attend_in_segments(*a, bias, segments), *arrays
    )
  return context, pull(jnp.float32(gradient))


def check(values, segments, **kwargs):
  """Compares context and gradients at the positions of examples."""
  real = (segments > 0)[:, :, None, None]
  *rest, gradient = values
  values = *rest, gradient * real
  context, gradients = ours(*values, segments, **kwargs)
  exact, exact_gradients = exactly(*values, segments)
  np.testing.assert_allclose(context * real, exact * real, rtol=0, atol=5e-6)
  for got, wanted in zip(gradients, exact_gradients, strict=False):
    # A single key has the weight 1 whatever it is: no gradient to compare to.
    scale = max(np.abs(wanted).max(), 0.1)
    assert np.abs(got - wanted).max() / scale < 3e-6
  return context, gradients


# Lengths below, at and beyond a vector, a tile and a block of queries; head
# sizes of one vector, of a panel and between.
@pytest.mark.parametrize(
  ('batch', 'length', 'heads', 'depth'),
  [
    (2, 1, 3, 16),
    (2, 5, 1, 16),
    (3, 16, 2, 48),
    (2, 67, 3, 64),
    (1, 129, 5, 80),
    (1, 631, 1, 32),
  ],
)
def test_context_and_gradients(batch, length, heads, depth):
  check(inputs(batch, length, heads, depth), np.ones((batch, length), np.int32))


def test_padded_rows():
  segments = np.ones((3, 53), np.int32)
  segments[1, 31:] = 0
  segments[2] = 0
  context, gradients = check(inputs(3, 53, 2, 16), segments)
  assert not np.asarray(context)[segments == 0].any()
  for gradient in gradients:
    assert not np.asarray(gradient)[segments == 0].any()


def test_packed_rows():
  segments = np.zeros((2, 61), np.int32)
  segments[0, :17], segments[0, 17:18], segments[0, 18:52] = 1, 2, 3
  segments[1, :30], segments[1, 40:] = 1, 2
  check(inputs(2, 61, 3, 32), segments)


def test_padding_inside_an_example():
  segments = np.ones((2, 29), np.int32)
  segments[0, 4:9] = 0
  segments[1, 28] = 0
  values = inputs(2, 29, 2, 16)
  check(values, segments)


def test_what_padding_holds_does_not_matter():
  values = inputs(2, 37, 2, 16)
  segments = np.ones((2, 37), np.int32)
  segments[:, 20:] = 0
  clean = ours(*values, segments)
  dirty = [x.copy() for x in values]
  for x in (*dirty[:3], dirty[4]):
    x[:, 20:] = np.nan
  for got, wanted in zip(
    jax.tree.leaves(ours(*dirty, segments)), jax.tree.leaves(clean), strict=True
  ):
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_what_is_not_finite_is_not_hidden(bad):
  values = inputs(1, 33, 1, 16)
  values[0][0, 7, 0, 3] = bad
  context, gradients = ours(*values, np.ones((1, 33), np.int32))
  assert np.isnan(context[0, 7]).all()
  assert all(np.isnan(gradient).any() for gradient in gradients[:2])


def test_logits_too_large_for_exp():
  values = list(inputs(2, 40, 2, 16, seed=3))
  values[0] *= 240.0
  segments = np.ones((2, 40), np.int32)
  context, gradients = ours(*values, segments)
  exact, exact_gradients = exactly(*values, segments)
  np.testing.assert_allclose(context, exact, rtol=0, atol=2e-4)
  for got, wanted in zip(gradients, exact_gradients, strict=False):
    assert np.abs(got - wanted).max() / np.abs(wanted).max() < 2e-4


def test_gradient_of_the_bias():
  # Full fine-tuning trains it.
  segments = np.ones((2, 23), np.int32)
  segments[1, 15:] = 0
  check(inputs(2, 23, 3, 16), segments, of_bias=True)


def test_same_numbers_every_time():
  values = inputs(4, 150, 4, 32)
  segments = np.ones((4, 150), np.int32)
  first = jax.tree.leaves(ours(*values, segments))
  for _ in range(5):
    again = jax.tree.leaves(ours(*values, segments))
    for got, wanted in zip(again, first, strict=True):
      np.testing.assert_array_equal(got, wanted)


CONFIG = t5.T5Config(
  vocab_size=97,
  emb_dim=32,
  num_heads=3,
  num_encoder_layers=2,
  num_decoder_layers=2,
  head_dim=16,
  mlp_dim=64,
  dropout_rate=0.0,
)


@pytest.mark.parametrize(
  ('packed', 'per_layer'), [(False, False), (True, False), (True, True)]
)
def test_the_network_is_the_same_with_and_without(
  packed, per_layer, monkeypatch
):
  rng = np.random.default_rng(0)
  module = t5.Transformer(CONFIG.replace(relpos_per_layer=per_layer))
  tokens = rng.integers(2, 97, (3, 41)).astype(np.int32)
  targets = rng.integers(2, 97, (3, 11)).astype(np.int32)
  slots = np.zeros_like(tokens)
  slots[:, :5] = np.arange(1, 6)
  kwargs = {}
  if packed:
    segments = np.ones_like(tokens)
    segments[:, 20:] = 2
    segments[0, 35:] = tokens[0, 35:] = 0
    kwargs['encoder_segment_ids'] = segments
    kwargs['decoder_segment_ids'] = np.ones_like(targets)
    kwargs['decoder_segment_ids'][:, 6:] = 2
  else:
    tokens[1, 30:] = tokens[2, 22:] = 0
  params = module.init(
    jax.random.PRNGKey(0), tokens, targets, targets, enable_dropout=False
  )['params']

  def loss(table, params):
    logits, states = module.apply(
      {'params': params},
      tokens,
      targets,
      targets,
      enable_dropout=False,
      prompt_table=table,
      encoder_prompt_slots=slots,
      return_hidden_states=True,
      **kwargs,
    )
    real = jnp.asarray(tokens > 0)[:, :, None]
    encoded = states['encoder'][-1] * real
    return (jnp.sin(logits).sum() + (encoded**2).sum()), (logits, encoded)

  table = jnp.float32(rng.standard_normal((1, 5, 32)))

  def run():
    # Anew, as the choice is made when the function is traced.
    whole = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    frozen = jax.jit(jax.grad(lambda t: loss(t, params)[0]))
    return (
      whole(table, params),
      frozen(table),
      str(frozen.lower(table).as_text()),
    )

  *got, text = run()
  assert 'mpt_jax_attention_forward' in text
  assert 'mpt_jax_attention_backward' in text
  monkeypatch.setenv(native.SWITCH, '0')
  *wanted, text = run()
  assert 'mpt_jax_attention' not in text
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
    scale = np.abs(y).max()
    np.testing.assert_allclose(x, y, rtol=0, atol=2e-5 * max(scale, 1e-3))


def test_is_compiled_once(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  calls = tmp_path / 'calls'
  compiler = tmp_path / 'counting'
  found = native._compiler()[0]
  compiler.write_text(f'#!/bin/sh\necho call >> {calls}\nexec {found} "$@"\n')
  compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
  monkeypatch.setenv('CC', str(compiler))
  _, first = native._load()
  _, second = native._load()
  assert first == second
  assert calls.read_text() == 'call\n'
  folder = tmp_path / 'mpt_jax' / 'native'
  assert [p.suffix for p in folder.iterdir()] == ['.so']
  assert folder.stat().st_mode & 0o077 == 0


def test_every_processor_has_its_own(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  _, here = native._load()
  monkeypatch.setattr(native, 'processor', lambda: 'another')
  _, there = native._load()
  assert here != there


@pytest.mark.parametrize('compiler', ['/nowhere/cc', 'false'])
def test_a_compiler_that_fails_leaves_nothing(
  compiler, tmp_path, monkeypatch, caplog
):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setenv('CC', compiler)
  with caplog.at_level(logging.INFO):
    assert native.targets.__wrapped__() is None
  assert 'attention is left to XLA' in caplog.text
  assert not list((tmp_path / 'mpt_jax' / 'native').iterdir())


def test_without_a_compiler(tmp_path, monkeypatch, caplog):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.delenv('CC', raising=False)
  monkeypatch.setenv('PATH', str(tmp_path))
  with caplog.at_level(logging.INFO):
    assert native.targets.__wrapped__() is None
  assert 'no C compiler' in caplog.text


def test_a_cache_that_others_can_write_is_not_used(tmp_path, monkeypatch):
  folder = tmp_path / 'mpt_jax' / 'native'
  folder.mkdir(parents=True)
  folder.chmod(0o777)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setattr(native.tempfile, 'tempdir', str(tmp_path))
  assert native._load()[0].attention_forward
  assert not list(folder.iterdir())


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
  # Root may write anywhere, so a file stands where the folder would.
  (tmp_path / 'mpt_jax').write_text('')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setattr(native.tempfile, 'tempdir', str(tmp_path))
  library, _ = native._load()
  assert library.attention_forward
