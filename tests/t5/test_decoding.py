"""Decoding against teacher forcing and brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpt_jax.t5 import decoding
from mpt_jax.types import InputError
from tests.goldens import networks

EOS = 1


def test_steps_equal_teacher_forcing(testdata):
  # Rows of two decodes per example, which share the cross-attention's keys.
  data = networks.load(testdata / 't5x_v1_1_tiny')
  tokens = data.io['long_encoder_input_tokens']
  inputs = data.io['long_decoder_input_tokens'][:, :9]
  inputs = np.concatenate([inputs, np.roll(inputs, 1, axis=1)])
  targets = np.ones_like(inputs)

  @jax.jit
  def forced(params):
    pair = np.concatenate([tokens, tokens])
    return data.module.apply(
      {'params': params}, pair, inputs, targets, enable_dropout=False
    )

  @jax.jit
  def stepwise(params):
    encoded = data.module.apply(
      {'params': params}, tokens, enable_dropout=False, method='encode'
    )
    cache, step = decoding.make_decode_step(
      data.module, {'params': params}, encoded, tokens, 9
    )
    cache = jax.tree.map(lambda x: jnp.repeat(x, 2, 0) if x.ndim else x, cache)
    _, logits = jax.lax.scan(
      lambda cache, token: step(token, cache)[::-1], cache, inputs.T[:, :, None]
    )
    return logits.swapaxes(0, 1)

  want = forced(data.params)
  assert np.abs(want[0] - want[1]).max() > 1
  np.testing.assert_allclose(stepwise(data.params), want, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_step_takes_one_token(testdata):
  data = networks.load(testdata / 't5x_v1_1_tiny')
  tokens = data.io['encoder_input_tokens']
  encoded = np.zeros((*tokens.shape, data.config.emb_dim), np.float32)
  cache, step = decoding.make_decode_step(
    data.module, {'params': data.params}, encoded, tokens, 5
  )
  with pytest.raises(ValueError, match=r'\(4, 3\), expected \(\?, 1\)'):
    step(np.ones((4, 3), np.int32), cache)


def _chain(logits, memory=0.0):
  """A step function whose logits depend on the last token or two.

  Args:
    logits: [V, V], what follows which token.
    memory: how much the token before the last one, which only the cache
      knows, counts.
  """
  table = jnp.asarray(logits, jnp.float32)

  def step(tokens, cache):
    logits = table[tokens[:, 0]] + memory * table[cache['before'][:, 0]]
    return logits, {'steps': cache['steps'] + 1, 'before': tokens}

  def cache(rows):
    return {
      'steps': jnp.zeros((), jnp.int32),
      'before': jnp.zeros((rows, 1), jnp.int32),
    }

  return step, cache


def _score_all(logits, memory, length, alpha):
  """Scores every finished sequence of at most `length` tokens."""
  pairs = logits[None, :] + memory * logits[:, None]
  log_probs = np.asarray(jax.nn.log_softmax(pairs))  # [before, last, next]
  scores = {}
  symbols = [s for s in range(len(logits)) if s != EOS]
  for size in range(length):
    for body in itertools.product(symbols, repeat=size):
      sequence = (*body, EOS)
      steps = zip((0, 0, *body), (0, *body), sequence, strict=False)
      total = sum(log_probs[step] for step in steps)
      scores[sequence] = total / ((5 + len(sequence)) / 6) ** alpha
  return scores


@pytest.mark.slow
@pytest.mark.parametrize('alpha', [0.0, 0.6])
def test_a_wide_beam_finds_the_best(alpha):
  logits = np.random.default_rng(5).normal(size=(5, 5))
  logits[0, EOS] -= 3
  step, cache = _chain(logits, memory=0.5)
  tokens, scores = decoding.beam_search(
    step,
    cache(2),
    batch_size=2,
    max_decode_length=4,
    num_beams=80,
    alpha=alpha,
  )
  ranked = sorted(
    _score_all(logits, 0.5, 4, alpha).items(), key=lambda item: item[1]
  )
  for row in range(2):
    for place in range(1, 4):
      sequence, score = ranked[-place]
      padded = (*sequence, *[0] * (4 - len(sequence)))
      assert tuple(tokens[row, -place].tolist()) == padded
      assert scores[row, -place] == pytest.approx(score, abs=1e-5)
  assert (np.diff(scores, axis=1) >= 0).all()


@pytest.mark.slow
def test_without_an_end_the_live_beams_are_returned():
  logits = np.zeros((3, 3))
  logits[:, EOS] = -50
  logits[:, 2] = 1
  step, cache = _chain(jax.nn.log_softmax(logits))
  tokens, _ = decoding.beam_search(
    step, cache(1), batch_size=1, max_decode_length=3, num_beams=1
  )
  # The only finished hypothesis can be one that nothing would ever choose.
  assert tokens.shape == (1, 1, 3)
  assert (np.asarray(tokens) == [[[2, 2, 2]]]).all()


def _counted(step):
  calls = []

  def counting(tokens, cache):
    jax.debug.callback(lambda: calls.append(1))
    return step(tokens, cache)

  return counting, calls


@pytest.mark.slow
@pytest.mark.parametrize('search', ['greedy', 'beam_search'])
def test_stops_when_all_is_finished(search):
  logits = np.full((4, 4), -9.0)
  logits[:2, 2] = logits[2, 3] = logits[3, EOS] = 9.0
  step, cache = _chain(logits)
  step, calls = _counted(step)
  kwargs = {'num_beams': 1} if search == 'beam_search' else {}
  tokens, _ = getattr(decoding, search)(
    step, cache(2), batch_size=2, max_decode_length=50, **kwargs
  )
  jax.effects_barrier()
  assert tokens.reshape(2, 50)[:, :4].tolist() == [[2, 3, EOS, 0]] * 2
  assert len(calls) == 3


def _first_tokens(logits, **kwargs):
  step, cache = _chain(np.tile(logits, (len(logits), 1)))
  tokens, log_probs = decoding.temperature_sample(
    step,
    cache(4000),
    jax.random.key(0),
    batch_size=4000,
    max_decode_length=1,
    **kwargs,
  )
  counts = np.bincount(np.asarray(tokens)[:, 0], minlength=len(logits))
  return counts / 4000, tokens, log_probs


@pytest.mark.slow
def test_sampling_follows_the_probabilities():
  logits = np.log([0.1, 0.2, 0.3, 0.4])
  shares, tokens, log_probs = _first_tokens(logits)
  np.testing.assert_allclose(shares, [0.1, 0.2, 0.3, 0.4], atol=0.03)
  np.testing.assert_allclose(log_probs, logits[tokens[:, 0]], atol=1e-5)
  shares, *_ = _first_tokens(logits, temperature=0.5)
  squares = np.square([0.1, 0.2, 0.3, 0.4])
  np.testing.assert_allclose(shares, squares / squares.sum(), atol=0.03)


@pytest.mark.slow
def test_sampling_cuts_the_tail():
  logits = np.log([0.1, 0.2, 0.3, 0.4])
  shares, *_ = _first_tokens(logits, topk=2)
  np.testing.assert_allclose(shares, [0, 0, 3 / 7, 4 / 7], atol=0.03)
  # 0.4 and 0.3 hold 0.7 together, so that 0.71 needs the third.
  shares, *_ = _first_tokens(logits, topp=0.69)
  np.testing.assert_allclose(shares, [0, 0, 3 / 7, 4 / 7], atol=0.03)
  shares, *_ = _first_tokens(logits, topp=0.71)
  np.testing.assert_allclose(shares, [0, 2 / 9, 3 / 9, 4 / 9], atol=0.03)


@pytest.mark.parametrize(
  'kwargs', [{'temperature': 0.0}, {'topk': -1}, {'topp': 1.5}]
)
def test_bad_settings_are_errors(kwargs):
  name = next(iter(kwargs))
  with pytest.raises(InputError, match=f'{name} is {kwargs[name]}'):
    _first_tokens(np.zeros(4), **kwargs)
