"""Greedy, sampled and beam decoding over a cached step function.

A step function maps (tokens [N, 1], cache) to (logits [N, V], cache); every
leaf of the cache has N rows in front or is a scalar. All loops stop as soon
as every row is finished. Outputs hold no start token, the EOS where there is
one and 0 after it; conventions and numbers are T5X's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mpt_jax.types import Array, InputError, PyTree

TokensToLogits = Callable[[Array, PyTree], tuple[Array, PyTree]]

START_ID = 0
EOS_ID = 1
# Low enough to lose against any log-probability, and finite, so that sums
# of it stay ordered.
_WORST = -1.0e7


def make_decode_step(
  module: Any,
  variables: PyTree,
  encoded: Array,
  encoder_input_tokens: Array,
  max_decode_length: int,
) -> tuple[PyTree, TokensToLogits]:
  """Prepares cached decoding of encoded inputs.

  Keys and values of the cross-attention, where it needs them, are computed
  here, once, and are shared by the beams of an example.

  Args:
    module: a `Transformer`.
    variables: its collections, `params` and what a method adds.
    encoded: [B, S, D], what `Transformer.encode` returned.
    encoder_input_tokens: [B, S] int32, of which 0 is masked.
    max_decode_length: number of positions to make room for.

  Returns:
    The empty cache for B rows, and the step function, which also takes N rows
    where N is a multiple of B, those of one example next to one another.
  """

  def apply(tokens, cached, mutable):
    return module.apply(
      {**variables, **cached},
      encoded,
      encoder_input_tokens,
      tokens,
      tokens,
      enable_dropout=False,
      decode=True,
      max_decode_length=max_decode_length,
      mutable=mutable,
      method='decode',
    )

  start = jnp.full((encoded.shape[0], 1), START_ID, jnp.int32)
  _, made = apply(start, {}, ['cache', 'encoder_cache'])

  def tokens_to_logits(tokens, cache):
    cached = {'cache': cache, 'encoder_cache': made.get('encoder_cache', {})}
    logits, changed = apply(tokens, cached, ['cache'])
    return logits[:, 0], changed['cache']

  return made['cache'], tokens_to_logits


class _SampleState(NamedTuple):
  position: Array  # () int32, the position to fill
  last: Array  # [N, 1] int32
  tokens: Array  # [N, L] int32
  log_probs: Array  # [N] float32
  finished: Array  # [N] bool
  rng: Array
  cache: PyTree


def _decode_rows(
  tokens_to_logits: TokensToLogits,
  cache: PyTree,
  batch_size: int,
  max_decode_length: int,
  choose: Callable[[Array, Array], Array],
  rng: Array,
  eos_id: int,
  start_id: int,
) -> tuple[Array, Array]:
  """Extends each row on its own by `choose(logits [N, V], rng) -> [N]`."""

  def step(state: _SampleState) -> _SampleState:
    logits, cache = tokens_to_logits(state.last, state.cache)
    logits = logits.astype(jnp.float32)
    rng, key = jax.random.split(state.rng)
    token = choose(logits, key).astype(jnp.int32)
    log_prob = jnp.take_along_axis(
      jax.nn.log_softmax(logits), token[:, None], axis=1
    )[:, 0]
    token = jnp.where(state.finished, 0, token)
    return _SampleState(
      position=state.position + 1,
      last=token[:, None],
      tokens=jax.lax.dynamic_update_slice(
        state.tokens, token[:, None], (0, state.position)
      ),
      log_probs=state.log_probs + jnp.where(state.finished, 0.0, log_prob),
      finished=state.finished | (token == eos_id),
      rng=rng,
      cache=cache,
    )

  def goes_on(state: _SampleState) -> Array:
    return (state.position < max_decode_length) & ~jnp.all(state.finished)

  final = jax.lax.while_loop(
    goes_on,
    step,
    _SampleState(
      position=jnp.zeros((), jnp.int32),
      last=jnp.full((batch_size, 1), start_id, jnp.int32),
      tokens=jnp.zeros((batch_size, max_decode_length), jnp.int32),
      log_probs=jnp.zeros((batch_size,), jnp.float32),
      finished=jnp.zeros((batch_size,), bool),
      rng=rng,
      cache=cache,
    ),
  )
  return final.tokens, final.log_probs


def greedy(
  tokens_to_logits: TokensToLogits,
  cache: PyTree,
  *,
  batch_size: int,
  max_decode_length: int,
  eos_id: int = EOS_ID,
  start_id: int = START_ID,
) -> tuple[Array, Array]:
  """Takes the most probable token at every step.

  Args:
    tokens_to_logits: the step function.
    cache: its first cache, of N rows.
    batch_size: N.
    max_decode_length: L, tokens to produce at most.
    eos_id: the token that ends a row.
    start_id: the first input.

  Returns:
    tokens [N, L] int32 and the sum of their log-probabilities [N] float32.
  """
  return _decode_rows(
    tokens_to_logits,
    cache,
    batch_size,
    max_decode_length,
    lambda logits, _: jnp.argmax(logits, axis=-1),
    jax.random.key(0),
    eos_id,
    start_id,
  )


def temperature_sample(
  tokens_to_logits: TokensToLogits,
  cache: PyTree,
  rng: Array,
  *,
  batch_size: int,
  max_decode_length: int,
  temperature: float = 1.0,
  topk: int = 0,
  topp: float = 0.0,
  eos_id: int = EOS_ID,
  start_id: int = START_ID,
) -> tuple[Array, Array]:
  """Draws every token from softmax(logits / temperature).

  Args:
    tokens_to_logits: the step function.
    cache: its first cache, of N rows.
    rng: a PRNG key.
    batch_size: N.
    max_decode_length: L, tokens to produce at most.
    temperature: above 0; small values come near to greedy.
    topk: draws among the k most probable tokens; 0 for all.
    topp: draws among the fewest tokens that hold this probability; 0 for all.
    eos_id: the token that ends a row.
    start_id: the first input.

  Returns:
    tokens [N, L] int32 and the sum of their log-probabilities under the model
    (temperature 1, nothing cut) [N] float32.

  Raises:
    InputError: if temperature, topk or topp is out of range.
  """
  if not temperature > 0:
    raise InputError(f'temperature is {temperature}, expected more than 0')
  if topk < 0:
    raise InputError(f'topk is {topk}, expected 0 (off) or more')
  if not 0 <= topp <= 1:
    raise InputError(f'topp is {topp}, expected 0 (off) up to 1')

  def choose(logits: Array, key: Array) -> Array:
    scaled = logits / temperature
    if topk:
      least = jax.lax.top_k(scaled, min(topk, scaled.shape[-1]))[0][:, -1:]
      scaled = jnp.where(scaled < least, -jnp.inf, scaled)
    if topp:
      # A token stays if those before it hold less than topp together.
      ranked = -jnp.sort(-scaled, axis=-1)
      probs = jax.nn.softmax(ranked, axis=-1)
      stays = jnp.cumsum(probs, axis=-1) - probs < topp
      least = jnp.min(jnp.where(stays, ranked, jnp.inf), axis=-1, keepdims=True)
      scaled = jnp.where(scaled < least, -jnp.inf, scaled)
    return jax.random.categorical(key, scaled)

  return _decode_rows(
    tokens_to_logits,
    cache,
    batch_size,
    max_decode_length,
    choose,
    rng,
    eos_id,
    start_id,
  )


class _BeamState(NamedTuple):
  position: Array  # () int32, the position to fill
  live_log_probs: Array  # [B, K] float32
  live_tokens: Array  # [B, K, L] int32
  live_last: Array  # [B, K] int32
  done_scores: Array  # [B, K] float32
  done_tokens: Array  # [B, K, L] int32
  done: Array  # [B, K] bool: the hypothesis is a real one
  cache: PyTree


def _take_beams(tree: PyTree, beams: Array) -> PyTree:
  """Picks beams [B, K] int32 of every [B, K', ...] leaf."""

  def take(x):
    shape = beams.shape + (1,) * (x.ndim - 2)
    return jnp.take_along_axis(x, beams.reshape(shape), axis=1)

  return jax.tree.map(take, tree)


class _Beam(NamedTuple):
  """What a search is for; see `beam_search`."""

  batch_size: int
  width: int
  length: int
  alpha: float
  eos_id: int
  start_id: int

  def first(self, cache: PyTree) -> _BeamState:
    """All beams start equal: only one may be extended at the first step."""
    shape = (self.batch_size, self.width)
    log_probs = jnp.where(jnp.arange(self.width) == 0, 0.0, _WORST)
    empty = jnp.zeros((*shape, self.length), jnp.int32)
    return _BeamState(
      position=jnp.zeros((), jnp.int32),
      live_log_probs=jnp.broadcast_to(log_probs, shape).astype(jnp.float32),
      live_tokens=empty,
      live_last=jnp.full(shape, self.start_id, jnp.int32),
      done_scores=jnp.full(shape, _WORST, jnp.float32),
      done_tokens=empty,
      done=jnp.zeros(shape, bool),
      cache=self._of_rows(lambda x: jnp.repeat(x, self.width, axis=0), cache),
    )

  def goes_on(self, state: _BeamState) -> Array:
    """Whether a live hypothesis may still beat a finished one."""
    reachable = jnp.max(state.live_log_probs, axis=1) / self._penalty(
      self.length
    )
    settled = jnp.min(state.done_scores, axis=1) > reachable
    return (state.position < self.length) & ~jnp.all(settled)

  def extend(
    self, state: _BeamState, logits: Array, cache: PyTree
  ) -> _BeamState:
    """Takes the next step, from logits [B * K, V] and the cache behind them."""
    shape, vocab_size = (self.batch_size, self.width), logits.shape[-1]
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    log_probs = log_probs.reshape(*shape, vocab_size)
    log_probs += state.live_log_probs[:, :, None]
    # With twice the beam, K live candidates remain even if K of them end.
    top_log_probs, flat = jax.lax.top_k(
      log_probs.reshape(self.batch_size, -1), 2 * self.width
    )  # [B, 2K]
    parent, token = flat // vocab_size, flat % vocab_size
    tokens = _take_beams(state.live_tokens, parent)
    tokens = jax.lax.dynamic_update_slice(
      tokens, token[:, :, None], (0, 0, state.position)
    )
    ends = token == self.eos_id

    live_log_probs, best = jax.lax.top_k(
      jnp.where(ends, top_log_probs + _WORST, top_log_probs), self.width
    )
    live_tokens, live_last, parent = _take_beams((tokens, token, parent), best)

    def follow(x: Array) -> Array:
      by_beam = x.reshape(*shape, *x.shape[1:])
      return _take_beams(by_beam, parent).reshape(x.shape)

    scores = top_log_probs / self._penalty(state.position + 1)
    scores = jnp.where(ends, scores, scores + _WORST)
    done_scores, best = jax.lax.top_k(
      jnp.concatenate([state.done_scores, scores], axis=1), self.width
    )
    done_tokens, done = _take_beams(
      (
        jnp.concatenate([state.done_tokens, tokens], axis=1),
        jnp.concatenate([state.done, ends], axis=1),
      ),
      best,
    )
    return _BeamState(
      position=state.position + 1,
      live_log_probs=live_log_probs,
      live_tokens=live_tokens,
      live_last=live_last,
      done_scores=done_scores,
      done_tokens=done_tokens,
      done=done,
      cache=self._of_rows(follow, cache),
    )

  def _penalty(self, length: Array | int) -> Array:
    """Brevity's."""
    return jnp.power((5.0 + length) / 6.0, self.alpha)

  def _of_rows(self, f: Callable[[Array], Array], cache: PyTree) -> PyTree:
    """Maps what the cache has for each row; the position is one for all."""
    return jax.tree.map(lambda x: x if x.ndim == 0 else f(x), cache)


def beam_search(
  tokens_to_logits: TokensToLogits,
  cache: PyTree,
  *,
  batch_size: int,
  max_decode_length: int,
  num_beams: int,
  alpha: float = 0.6,
  eos_id: int = EOS_ID,
  start_id: int = START_ID,
) -> tuple[Array, Array]:
  """Searches for the best sequences with a beam of `num_beams`.

  A finished hypothesis of n tokens scores log-prob / ((5 + n) / 6)**alpha. A
  row of the batch in which none finishes returns the live ones, scored by
  their log-probability alone. The search ends when no live hypothesis can
  beat a finished one any more.

  Args:
    tokens_to_logits: the step function, called with N = B * K rows.
    cache: its first cache, of B rows.
    batch_size: B.
    max_decode_length: L, tokens to produce at most.
    num_beams: K, the width of the beam.
    alpha: 0 for no brevity penalty; larger favours longer sequences.
    eos_id: the token that ends a hypothesis.
    start_id: the first input.

  Returns:
    tokens [B, K, L] int32 and scores [B, K] float32, the best one last.

  Raises:
    InputError: if num_beams is less than 1.
  """
  if num_beams < 1:
    raise InputError(f'num_beams is {num_beams}, expected 1 or more')
  beam = _Beam(
    batch_size, num_beams, max_decode_length, alpha, eos_id, start_id
  )

  def step(state: _BeamState) -> _BeamState:
    last = state.live_last.reshape(-1, 1)
    return beam.extend(state, *tokens_to_logits(last, state.cache))

  final = jax.lax.while_loop(beam.goes_on, step, beam.first(cache))
  any_done = jnp.any(final.done, axis=1, keepdims=True)
  tokens = jnp.where(any_done[:, :, None], final.done_tokens, final.live_tokens)
  scores = jnp.where(any_done, final.done_scores, final.live_log_probs)
  return jnp.flip(tokens, axis=1), jnp.flip(scores, axis=1)
