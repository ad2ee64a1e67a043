"""A prompt moved to another backbone by what both call by the same words.

Wu, Wu & Mou, "Zero-Shot Continuous Prompt Transfer: Generalizing Task Semantics
Across Language Models", ICLR 2024. What a prompt vector means is said by its
cosines with the embeddings of words that both vocabularies have as one token,
the anchors; the prompt of the target backbone is searched that has the same
cosines with its own. No examples are needed, and of the backbones only the
embeddings; but to keep the best of several steps by a score (`validate`) needs
labels.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mpt_jax.checkpoints.vocabulary import Vocabulary
from mpt_jax.types import Array, InputError, check_least

# A piece that begins a word.
_WORD = '\u2581'
_LEAST_NORM = 1e-8


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
  """What a search found.

  Attributes:
    prompt: [L, D] float32.
    losses: [steps], before each step.
    step: how many steps the prompt has behind it.
  """

  prompt: np.ndarray
  losses: np.ndarray
  step: int


def shared_rows(
  source: Vocabulary, target: Vocabulary
) -> tuple[np.ndarray, np.ndarray]:
  """Returns which rows of two embeddings are of the same word.

  Args:
    source: the vocabulary of one backbone.
    target: that of the other.

  Returns:
    (rows [n], rows [n]) int, in the order of the first one: of one vocabulary
    all but its special ids, of two the words that are one token in both.

  Raises:
    InputError: if they have no word in common.
  """
  rows_of = _pieces if source.digest == target.digest else _words
  pieces, others = rows_of(source), rows_of(target)
  both = [piece for piece in pieces if piece in others]
  if not both:
    raise InputError(
      f'the vocabularies {source.path} and {target.path} have no word in common'
      ' that is one token in both'
    )
  rows = [[table[piece] for piece in both] for table in (pieces, others)]
  return np.array(rows[0]), np.array(rows[1])


def _pieces(vocabulary: Vocabulary) -> dict[str, int]:
  """Piece -> row of our embedding, of what is no special id."""
  special = vocabulary.special
  left_out = {special.pad, special.start, special.end, vocabulary.unk_id}
  left_out |= set(vocabulary.added)
  ids = [i for i in range(vocabulary.size) if i not in left_out]
  found: dict[str, int] = {}
  for i, row in zip(ids, special.swap(ids), strict=True):
    piece = vocabulary.id_to_piece(i)
    if '<extra_id_' not in piece:
      found.setdefault(piece, row)
  return found


def _words(vocabulary: Vocabulary) -> dict[str, int]:
  """Word -> row of our embedding, of words that are one token."""
  pieces = _pieces(vocabulary)
  marked = {p[1:]: row for p, row in pieces.items() if p[:1] == _WORD and p[1:]}
  if marked:
    return marked
  # Whole words, or bytes: the vocabulary says what a word becomes in a text.
  found: dict[str, int] = {}
  for row in pieces.values():
    word = vocabulary.decode_model([row]).strip()
    if word and vocabulary.model_ids(f' {word}') == [row]:
      found.setdefault(word, row)
  return found


def relative(vectors: Array, anchors: Array) -> Array:
  """Returns the cosines [L, n] of vectors [L, d] with anchors [n, d]."""
  return _units(vectors) @ _units(anchors).T


def _units(rows: Array) -> Array:
  length = jnp.linalg.norm(rows, axis=-1, keepdims=True)
  return rows / jnp.maximum(length, _LEAST_NORM)


def top_mask(codes: Array, top: int) -> Array:
  """Returns [L, n], 1 at the `top` largest values of each row and else 0.

  Raises:
    InputError: if there are not so many.
  """
  if not 1 <= top <= codes.shape[-1]:
    raise InputError(f'top is {top}, and there are {codes.shape[-1]} anchors')
  _, largest = jax.lax.top_k(codes, top)
  rows = jnp.arange(len(codes))[:, None]
  return jnp.zeros_like(codes).at[rows, largest].set(1.0)


def standardised(candidate: Array, mean: Any, std: Any) -> Array:
  """Returns a candidate [L, D] whose entries have this mean and deviation.

  The candidate's own are over all entries, the deviation with n - 1.
  """
  own = jnp.std(candidate, ddof=1)
  return (candidate - jnp.mean(candidate)) / own * std + mean


def loss(
  prompt: Array,
  anchors: Array,
  codes: Sequence[Array],
  mask: Array | None = None,
) -> Array:
  """How far a prompt's code is from those of source prompts.

  Args:
    prompt: [L, D].
    anchors: [n, D], of the target backbone.
    codes: [L, n], one of each source.
    mask: [L, n], 1 where codes count; None is everywhere.

  Returns:
    The mean over the sources and the L rows of 1 - cosine.
  """
  own = relative(prompt, anchors)
  if mask is not None:
    own, codes = own * mask, [code * mask for code in codes]
  parts = [
    jnp.mean(1 - jnp.sum(_units(own) * _units(code), axis=-1)) for code in codes
  ]
  return sum(parts[1:], parts[0]) / len(parts)


def search(
  prompts: Sequence[Any],
  source_anchors: Sequence[Any],
  target_anchors: Any,
  target_embedding: Any,
  *,
  top: int | None = None,
  steps: int = 2000,
  learning_rate: float = 5e-3,
  start: Any = 0,
  validate: Callable[[np.ndarray], float] | None = None,
  period: int = 50,
) -> Found:
  """Searches the prompt whose cosines with anchors are those of the sources.

  Args:
    prompts: source prompts [L, d], of one or more backbones.
    source_anchors: the anchors' embeddings [n, d] of each.
    target_anchors: [n, D], those of the target backbone.
    target_embedding: [V, D], whose mean and deviation a prompt shall have.
    top: count only so many anchors, those that the last source is nearest to;
      None is all.
    steps: of Adam.
    learning_rate: its rate.
    start: [L, D], or the seed by which it is drawn from N(0, 2 / (L + D)).
    validate: prompt -> a score on the target task, more is better; None takes
      the last step.
    period: steps between two scores.

  Returns:
    The prompt, standardised.

  Raises:
    InputError: if sizes do not fit.
  """
  check_least(1, steps=steps, period=period)
  codes = _codes(prompts, source_anchors, len(target_anchors))
  mask = None if top is None else top_mask(codes[-1], top)
  anchors = jnp.asarray(target_anchors)
  embedding = np.asarray(target_embedding, np.float64)
  if isinstance(start, int):
    shape = len(codes[0]), anchors.shape[1]
    drawn = np.random.default_rng(start).normal(size=shape)
    start = (drawn * np.sqrt(2 / sum(shape))).astype(anchors.dtype)
  make = functools.partial(
    standardised, mean=embedding.mean(), std=embedding.std()
  )
  run = _descent(
    optax.adam(learning_rate),
    lambda candidate: loss(make(candidate), anchors, codes, mask),
  )
  state = run(jnp.asarray(start), None, 0)[0]
  losses: list[np.ndarray] = []
  best: tuple[float, np.ndarray, int] | None = None
  for done in range(0, steps, period if validate else steps):
    count = min(period if validate else steps, steps - done)
    state, values = run(*state, count)
    losses.append(np.asarray(values))
    prompt = np.asarray(make(state[0]), np.float32)
    score = validate(prompt) if validate else 0.0
    if best is None or score > best[0]:
      best = score, prompt, done + count
  assert best is not None
  return Found(best[1], np.concatenate(losses), best[2])


def _descent(
  optimizer: optax.GradientTransformation, value: Callable[[Array], Array]
) -> Callable[..., Any]:
  """Steps downhill: (x, moments or None, count) -> ((x, moments), values)."""

  def step(state: Any, _: None) -> tuple[Any, Array]:
    x, moments = state
    before, gradient = jax.value_and_grad(value)(x)
    update, moments = optimizer.update(gradient, moments)
    return (x + update, moments), before

  @functools.partial(jax.jit, static_argnums=2)
  def run(x: Array, moments: Any, count: int) -> Any:
    moments = optimizer.init(x) if moments is None else moments
    return jax.lax.scan(step, (x, moments), length=count)

  return run


def _codes(
  prompts: Sequence[Any], anchors: Sequence[Any], number: int
) -> list[Array]:
  """The code [L, n] of each source prompt."""
  codes = []
  for prompt, own in zip(prompts, anchors, strict=True):
    vectors, words = jnp.asarray(prompt), jnp.asarray(own)
    if vectors.shape[-1] != words.shape[-1] or len(words) != number:
      raise InputError(
        f'a prompt {vectors.shape} has anchors {words.shape}, and the target'
        f' {number}: widths and numbers of anchors must be the same'
      )
    codes.append(relative(vectors, words))
  if len({len(code) for code in codes}) != 1:
    raise InputError(
      'the source prompts must be of one length, and one at least'
    )
  return codes


def linear_map(source_anchors: Any, target_anchors: Any) -> np.ndarray:
  """Returns the matrix that takes one backbone's embeddings to another's.

  Least squares over words that both have, so that a prompt [L, d] times the
  matrix is one of the target backbone: the cheapest way to move it (the
  linear map of Lester et al., "Reducing Retraining by Recycling
  Parameter-Efficient Prompts", 2022).

  Args:
    source_anchors: [n, d], the embeddings of words.
    target_anchors: [n, D], of the same words.

  Returns:
    [d, D] float64.

  Raises:
    InputError: if there are not as many of both.
  """
  source, target = (
    np.asarray(rows, np.float64) for rows in (source_anchors, target_anchors)
  )
  if source.ndim != 2 or target.ndim != 2 or len(source) != len(target):
    raise InputError(
      f'anchors of shapes {source.shape} and {target.shape}: expected [n, d]'
      ' and [n, D]'
    )
  return np.linalg.lstsq(source, target)[0]
