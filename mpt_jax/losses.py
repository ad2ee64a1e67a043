"""The losses of MPT as pure functions.

Functions named `*_per_token` and `*_per_position` return one value per place;
`weighted_by_task` turns them into (sum, weight), so that averaging over
uneven batches, micro-batches and devices is exact.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mpt_jax.types import Array, check_shape

SumAndWeight = tuple[Array, Array]


def cross_entropy_per_token(
  logits: Array,
  targets: Array,
  label_smoothing: float = 0.0,
  z_loss: float = 0.0,
) -> tuple[Array, Array]:
  """Cross entropy of the target ids, and the z-loss beside it.

  Smoothing spreads `label_smoothing` evenly over the other V - 1 ids and
  subtracts the entropy of that target distribution, so that a perfect
  prediction has loss 0. The z-loss `z_loss * log(Z)**2` keeps the softmax
  normaliser near one (both as in T5X).

  Args:
    logits: [..., V] float.
    targets: [...] int.
    label_smoothing: share taken from the target, in [0, 1).
    z_loss: weight of log(Z)**2.

  Returns:
    (cross entropy [...], z-loss [...]), float32, in nats.
  """
  check_shape('targets', targets, logits.shape[:-1])
  logits = logits.astype(jnp.float32)
  log_z = jax.nn.logsumexp(logits, axis=-1)
  target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  loss = log_z - target
  if label_smoothing:
    others = logits.shape[-1] - 1
    high, low = 1.0 - label_smoothing, label_smoothing / others
    entropy = -(high * jnp.log(high) + others * low * jnp.log(low))
    all_ids = (log_z[..., None] - logits).sum(axis=-1)
    loss = (high - low) * loss + low * all_ids - entropy
  return loss, z_loss * jnp.square(log_z)


def is_likeliest(logits: Array, targets: Array) -> Array:
  """Whether no id has a higher logit than the target.

  A maximum costs much less than its place, which XLA's CPU backend looks for
  one id at a time.

  Args:
    logits: [..., V] float.
    targets: [...] int.

  Returns:
    [...] bool; True for each of several ids that are equally likely.
  """
  check_shape('targets', targets, logits.shape[:-1])
  target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return target >= jnp.max(logits, axis=-1)


def kl_per_token(
  teacher_logits: Array, student_logits: Array, temperature: float = 1.0
) -> Array:
  """KL(teacher || student) over the vocabulary, times temperature squared.

  The factor keeps the size of the gradient independent of the temperature
  (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015).

  Args:
    teacher_logits: [..., V] float.
    student_logits: [..., V] float.
    temperature: both softmaxes are taken of logits / temperature.

  Returns:
    [...] float32, in nats, never negative but for rounding.
  """
  check_shape('student_logits', student_logits, teacher_logits.shape)
  teacher = jax.nn.log_softmax(
    teacher_logits.astype(jnp.float32) / temperature, axis=-1
  )
  student = jax.nn.log_softmax(
    student_logits.astype(jnp.float32) / temperature, axis=-1
  )
  kl = jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)
  return temperature**2 * kl


def squared_error_per_position(teacher: Array, student: Array) -> Array:
  """Mean over the features of (teacher - student)**2.

  Args:
    teacher: [..., D] float.
    student: [..., D] float.

  Returns:
    [...] float32.
  """
  check_shape('student states', student, teacher.shape)
  difference = teacher.astype(jnp.float32) - student.astype(jnp.float32)
  return jnp.mean(jnp.square(difference), axis=-1)


# By which prompts are near, see `prompt_distances`.
DISTANCES = ('l2', 'l2_squared', 'mse')


def prompt_distances(prompts: Array, wanted: Array, kind: str = 'l2') -> Array:
  """How far prompts are from others.

  Args:
    prompts: [K, P, D].
    wanted: [K, P, D], what they shall be near to.
    kind: 'l2', the Frobenius norm of the difference; 'l2_squared', its square;
      or 'mse', the mean of the squares of its entries.

  Returns:
    [K]; its mean is the loss. At a distance of 0 the gradient of 'l2' is 0.

  Raises:
    ValueError: if the shapes differ, or there is no such kind.
  """
  check_shape('prompts', prompts, wanted.shape)
  squares = jnp.square(prompts - wanted)
  if kind == 'mse':
    return jnp.mean(squares, axis=(1, 2))
  if kind not in DISTANCES:
    raise ValueError(f'kind is {kind!r}, expected {" or ".join(DISTANCES)}')
  total = jnp.sum(squares, axis=(1, 2))
  if kind == 'l2_squared':
    return total
  some = total > 0
  return jnp.where(some, jnp.sqrt(jnp.where(some, total, 1.0)), 0.0)


def select_states(states: Sequence[Array], layers: str) -> Sequence[Array]:
  """Picks the hidden states that are compared.

  Args:
    states: embeddings, the residual stream after block 1..L, and the state
      after the final norm; each [B, S, D] or [B, T, D].
    layers: 'last' for the final norm's output alone; 'all' for embeddings,
      blocks 1..L-1 and the final norm's output (what Hugging Face calls
      `hidden_states`: the un-normed output of the last block is left out).

  Returns:
    The chosen states.

  Raises:
    ValueError: if `layers` is neither.
  """
  if layers == 'last':
    return states[-1:]
  if layers == 'all':
    return [*states[:-2], states[-1]]
  raise ValueError(f"hidden_layers is {layers!r}, expected 'last' or 'all'")


def weighted_by_task(
  values: Array, weights: Array, rows: Array, num_tasks: int
) -> SumAndWeight:
  """Sums values and weights, apart for every task.

  Args:
    values: [B, N] float.
    weights: [B, N] float, 0 where a place does not count.
    rows: [B, N] int, the prompt table row of the example at that place.
    num_tasks: K.

  Returns:
    (sums [K], weights [K]), float32. A row outside of 0..K-1 counts nowhere.
  """
  # Selected, not multiplied: NaN * 0 would blame every task.
  member = _members(weights, rows, num_tasks)
  chosen = jnp.where(member, values[..., None], 0.0)
  sums = jnp.sum(chosen * weights.astype(jnp.float32)[..., None], axis=(0, 1))
  return sums, weights_by_task(weights, rows, num_tasks)


def weights_by_task(weights: Array, rows: Array, num_tasks: int) -> Array:
  """The weights of `weighted_by_task` alone: [K] float32."""
  member = _members(weights, rows, num_tasks)
  return jnp.sum(member * weights.astype(jnp.float32)[..., None], axis=(0, 1))


def _members(weights: Array, rows: Array, num_tasks: int) -> Array:
  """[B, N, K] bool: whether a place counts, and for which task."""
  same = rows[..., None] == jnp.arange(num_tasks)[None, None]
  return same & (weights[..., None] > 0)


class Choices(NamedTuple):
  """The label words that the examples of a batch offer.

  Attributes:
    same: [B, T, T] bool, whether two places hold words of one example.
    of_class: [B, T, T] float32, 1 / n where the second place is one of the n
      words of the class at the first, else 0.
    is_first: [B, T] bool, whether it is the first word of a class.
  """

  same: Array
  of_class: Array
  is_first: Array


def choices(
  words: Array, classes: Array, segment_ids: Array | None = None
) -> Choices:
  """Reads label words as a batch holds them.

  Args:
    words: [B, T] int32, 0 is padding.
    classes: [B, T] int32, each word's class, from 1; those of a class stand
      next to one another.
    segment_ids: [B, T] int32, the example of each word in a packed row.
  """
  real = words > 0
  same = real[:, :, None] & real[:, None]
  if segment_ids is not None:
    same &= segment_ids[:, :, None] == segment_ids[:, None]
  of_class = same & (classes[:, :, None] == classes[:, None])
  before = jnp.tril(jnp.ones(same.shape[1:], bool), -1)[None]
  is_first = real & ~jnp.any(of_class & before, axis=-1)
  shares = of_class.astype(jnp.float32)
  shares /= jnp.maximum(shares.sum(axis=-1, keepdims=True), 1.0)
  return Choices(same, shares, is_first)


def choice_scores(logits: Array, offered: Choices) -> Array:
  """The score of each word's class: the mean over its words' logits.

  Args:
    logits: [B, T] float, of the words.
    offered: `choices` of the batch.

  Returns:
    [B, T] float32.
  """
  # Selected, not multiplied: padding must not make a NaN of others.
  chosen = jnp.where(offered.of_class > 0, logits[:, None], 0.0)
  return jnp.sum(chosen * offered.of_class, axis=-1).astype(jnp.float32)


def choice_log_probs(scores: Array, offered: Choices) -> Array:
  """Log softmax over the classes of each word's own example.

  Args:
    scores: [B, T] float, see `choice_scores`.
    offered: `choices` of the batch.

  Returns:
    [B, T] float32, in nats; 0 at padding.
  """
  rivals = offered.same & offered.is_first[:, None]
  real = jnp.any(rivals, axis=-1)
  rivals = jnp.where(real[..., None], rivals, True)
  log_z = jax.nn.logsumexp(
    jnp.where(rivals, scores[:, None], -jnp.inf), axis=-1
  )
  return jnp.where(real, scores - log_z, 0.0)


def choice_kl(
  teacher: Array, student: Array, offered: Choices, temperature: float = 1.0
) -> Array:
  """KL(teacher || student) over an example's classes, at each of its words.

  Args:
    teacher: [B, T] float, see `choice_scores`.
    student: [B, T] float.
    offered: `choices` of the batch.
    temperature: see `kl_per_token`.

  Returns:
    [B, T] float32, in nats, times temperature squared; 0 at padding.
  """
  check_shape('student scores', student, teacher.shape)
  known = choice_log_probs(teacher / temperature, offered)
  found = choice_log_probs(student / temperature, offered)
  terms = jnp.exp(known) * (known - found)
  rivals = offered.same & offered.is_first[:, None]
  kl = jnp.sum(jnp.where(rivals, terms[:, None], 0.0), axis=-1)
  return temperature**2 * kl
