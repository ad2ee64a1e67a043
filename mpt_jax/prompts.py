"""Soft prompts: the tables that steer the frozen encoder.

A prompt module owns parameters and returns a prompt table [K, P, D], one row
per task of the run. Which position takes which vector is decided by the
batch (`encoder_prompt_slots`, `encoder_task_ids`), not here.

Start values are made outside of the modules, since most of them (sampled
vocabulary, class labels, a file) need the backbone's embedding.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mpt_jax.types import (
  Array,
  InputError,
  Names,
  Positive,
  check_shape,
  require_local,
)

Tokenize = Callable[[str], Sequence[int]]

# Ids below this are padding, end of sequence and unknown in every T5
# vocabulary: their embeddings say nothing a prompt could start from.
_FIRST_WORD_ID = 3


def compose_task_prompts(
  shared_prompt: Array, task_u: Array, task_v: Array
) -> Array:
  r"""Builds one prompt per task by a Hadamard product of low rank.

  Computes :math:`P_k = P^* \circ (u_k v_k^\top)` for every task at once
  (Wang et al., "Multitask Prompt Tuning Enables Parameter-Efficient Transfer
  Learning", ICLR 2023, prompt decomposition). The paper has R = 1.

  Args:
    shared_prompt: [P, D] float. The prompt that all tasks share, P*.
    task_u: [K, P, R] float. Position factors, one per task.
    task_v: [K, R, D] float. Feature factors, one per task.

  Returns:
    [K, P, D] float, in the dtype of `shared_prompt`.

  Raises:
    ValueError: if the factors do not fit the shared prompt.

  Examples:
    >>> shared = jnp.arange(6.).reshape(2, 3)            # P=2, D=3
    >>> u, v = jnp.ones((5, 2, 1)), jnp.ones((5, 1, 3))  # K=5, R=1
    >>> out = compose_task_prompts(shared, u, v)
    >>> bool((out == shared[None]).all())
    True
  """
  length, features = check_shape('shared_prompt', shared_prompt, (None, None))
  tasks, _, rank = check_shape('task_u', task_u, (None, length, None))
  check_shape('task_v', task_v, (tasks, rank, features))
  return shared_prompt[None] * jnp.einsum('kpr,krd->kpd', task_u, task_v)


class SoftPrompts(nn.Module):
  """One prompt for every task of the run (Lester et al., EMNLP 2021).

  Attributes:
    length: P, the number of prompt vectors.
    features: D, the width of the backbone.
    num_tasks: K, rows of the table; all of them are the same prompt.
  """

  length: int
  features: int
  num_tasks: int = 1

  @nn.compact
  def __call__(self) -> Array:
    """Returns the prompt table, [K, P, D] float32."""
    prompt = self.param(
      'prompt', Uniform().bind(), (self.length, self.features), jnp.float32
    )
    return jnp.broadcast_to(
      prompt[None], (self.num_tasks, self.length, self.features)
    )


class MultitaskPrompts(nn.Module):
  """A shared prompt and a low-rank factor per task (Wang et al., ICLR 2023).

  The factors start as ones: every task then starts from P* itself. A product
  near zero would erase P*, and random signs make the average over tasks, from
  which a target starts, meaningless.

  Attributes:
    length: P, the number of prompt vectors.
    features: D, the width of the backbone.
    num_tasks: K, rows of the table.
    rank: R, the rank of the task factors; 1 is the paper.
  """

  length: int
  features: int
  num_tasks: int
  rank: int = 1

  @nn.compact
  def __call__(self) -> Array:
    """Returns the prompt table, [K, P, D] float32."""
    shared = self.param(
      'shared_prompt',
      Uniform().bind(),
      (self.length, self.features),
      jnp.float32,
    )
    task_u = self.param(
      'task_u',
      task_u_init,
      (self.num_tasks, self.length, self.rank),
      jnp.float32,
    )
    task_v = self.param(
      'task_v',
      task_v_init,
      (self.num_tasks, self.rank, self.features),
      jnp.float32,
    )
    return compose_task_prompts(shared, task_u, task_v)


PromptModule = SoftPrompts | MultitaskPrompts


def task_u_init(key: Array, shape: Sequence[int], dtype=jnp.float32) -> Array:
  """Starts `task_u` [K, P, R]: ones in rank 0, small noise in further ranks.

  Ranks that are equal at the start stay equal for ever, and R ones add up to
  R. So only rank 0 counts at first (see `task_v_init`) and the noise makes the
  gradients of the other ranks differ.
  """
  noise = 0.02 * jax.random.normal(key, shape, dtype)
  return noise.at[:, :, 0].set(1.0)


def task_v_init(key: Array, shape: Sequence[int], dtype=jnp.float32) -> Array:
  """Starts `task_v` [K, R, D]: ones in rank 0, zeros in further ranks."""
  del key
  return jnp.zeros(shape, dtype).at[:, 0, :].set(1.0)


# ---------------------------------------------------------------------------
# Start values of a prompt (Lester et al., "The Power of Scale for
# Parameter-Efficient Prompt Tuning", EMNLP 2021, section 3.2).
# `bind` takes what the run knows and returns a Flax initialiser for [P, D].


@dataclasses.dataclass(frozen=True)
class Uniform:
  """Uniform in [-scale, scale].

  Note that `flax.linen.initializers.uniform(scale)` draws from [0, scale).
  """

  scale: float = 0.5

  def bind(self, embedding: Any = None, tokenize: Tokenize | None = None):
    """Returns an initialiser (key, [P, D], dtype) -> [P, D]."""
    del embedding, tokenize

    def init(key: Array, shape: Sequence[int], dtype=jnp.float32) -> Array:
      return jax.random.uniform(
        key, shape, dtype, minval=-self.scale, maxval=self.scale
      )

    return init


@dataclasses.dataclass(frozen=True)
class SampledVocabulary:
  """Embeddings of random words among the `max_id` most common ones."""

  max_id: int = 5000

  def bind(self, embedding: Any = None, tokenize: Tokenize | None = None):
    """Returns an initialiser (key, [P, D], dtype) -> [P, D]."""
    del tokenize
    table = _need_embedding(embedding, 'SampledVocabulary')

    def init(key: Array, shape: Sequence[int], dtype=jnp.float32) -> Array:
      words = min(self.max_id, table.shape[0]) - _FIRST_WORD_ID
      ids = _FIRST_WORD_ID + jax.random.choice(
        key, words, (shape[0],), replace=words < shape[0]
      )
      return jnp.asarray(table[np.asarray(ids)], dtype)

    return init


@dataclasses.dataclass(frozen=True)
class ClassLabels:
  """Mean embedding of each label's tokens; sampled words fill what is left."""

  labels: tuple[str, ...]
  max_id: int = 5000

  def bind(self, embedding: Any = None, tokenize: Tokenize | None = None):
    """Returns an initialiser (key, [P, D], dtype) -> [P, D]."""
    table = _need_embedding(embedding, 'ClassLabels')
    tokens = [
      _tokens_of(label, tokenize, 'ClassLabels') for label in self.labels
    ]
    rows = np.stack([table[np.asarray(ids)].mean(axis=0) for ids in tokens])
    return _with_fallback(rows, SampledVocabulary(self.max_id).bind(table))


@dataclasses.dataclass(frozen=True)
class FromString:
  """Embeddings of a text's tokens, cut at P; sampled words fill the rest."""

  text: str
  max_id: int = 5000

  def bind(self, embedding: Any = None, tokenize: Tokenize | None = None):
    """Returns an initialiser (key, [P, D], dtype) -> [P, D]."""
    table = _need_embedding(embedding, 'FromString')
    rows = table[np.asarray(_tokens_of(self.text, tokenize, 'FromString'))]
    return _with_fallback(rows, SampledVocabulary(self.max_id).bind(table))


@dataclasses.dataclass(frozen=True)
class FromArray:
  """A given [P, D] matrix; `FromFile` reads one."""

  values: Any

  def bind(self, embedding: Any = None, tokenize: Tokenize | None = None):
    """Returns an initialiser (key, [P, D], dtype) -> [P, D]."""
    del embedding, tokenize

    def init(key: Array, shape: Sequence[int], dtype=jnp.float32) -> Array:
      del key
      if np.shape(self.values) != tuple(shape):
        raise InputError(
          f'the start prompt has shape {np.shape(self.values)}, the run needs'
          f' {tuple(shape)}: set PROMPT_LENGTH or give another prompt'
        )
      return jnp.asarray(self.values, dtype)

    return init


@dataclasses.dataclass(frozen=True)
class FromFile:
  """A [P, D] matrix from a `.npy` file, the layout of Google's prompts."""

  path: str

  def bind(self, embedding: Any = None, tokenize: Tokenize | None = None):
    """Returns an initialiser (key, [P, D], dtype) -> [P, D]."""
    path = require_local(self.path)
    if not os.path.isfile(path):
      raise InputError(f'prompt file {self.path!r} does not exist')
    try:
      values = np.load(path, allow_pickle=False)
    except ValueError as e:
      raise InputError(
        f'prompt file {self.path!r} is no .npy array: {e}'
      ) from e
    return FromArray(values).bind(embedding, tokenize)


PromptInit = (
  Uniform | SampledVocabulary | ClassLabels | FromString | FromArray | FromFile
)


def _need_embedding(embedding: Any, who: str) -> np.ndarray:
  if embedding is None:
    raise InputError(f'{who} needs a backbone with an embedding')
  return np.asarray(embedding)


def _tokens_of(text: str, tokenize: Tokenize | None, who: str) -> list[int]:
  if tokenize is None:
    raise InputError(f'{who} needs a vocabulary: set VOCABULARY')
  ids = [int(i) for i in tokenize(text)]
  if not ids:
    raise InputError(f'{who}: {text!r} has no tokens in this vocabulary')
  return ids


def _with_fallback(rows: np.ndarray, fallback: Callable):
  """The given rows first, cut at P; `fallback` draws what is missing."""

  def init(key: Array, shape: Sequence[int], dtype=jnp.float32) -> Array:
    values = fallback(key, shape, dtype)
    count = min(len(rows), shape[0])
    return values.at[:count].set(jnp.asarray(rows[:count], dtype))

  return init


# ---------------------------------------------------------------------------
# Start values of a whole module.


def initial_prompts(
  module: PromptModule,
  key: Array,
  init: PromptInit,
  embedding: Any = None,
  tokenize: Tokenize | None = None,
) -> dict[str, Array]:
  """Draws a prompt module's parameters.

  Args:
    module: the prompt module.
    key: random key.
    init: how the [P, D] prompt starts; task factors start as ones.
    embedding: [V, D], the backbone's embedding, for initialisers that need it.
    tokenize: text -> ids without EOS, for initialisers that need it.

  Returns:
    The module's parameters by name, float32.

  Raises:
    InputError: if the initialiser lacks what it needs or does not fit.
  """
  prompt_key, u_key = jax.random.split(key)
  shape = (module.length, module.features)
  prompt = init.bind(embedding, tokenize)(prompt_key, shape, jnp.float32)
  if isinstance(module, SoftPrompts):
    return {'prompt': prompt}
  tasks, rank = module.num_tasks, module.rank
  return {
    'shared_prompt': prompt,
    'task_u': task_u_init(u_key, (tasks, module.length, rank)),
    'task_v': task_v_init(u_key, (tasks, rank, module.features)),
  }


def target_prompts(
  module: MultitaskPrompts, source: Mapping[str, Any]
) -> dict[str, Array]:
  """Starts a target stage from the source stage's parameters.

  P* is taken over; u and v of every target task are the average of the source
  tasks' vectors, averaged separately (as PEFT does), in float32.

  Args:
    module: the target run's prompt module, K = its number of target tasks.
    source: `shared_prompt` [P, D], `task_u` [K', P, R], `task_v` [K', R, D].

  Returns:
    The target module's parameters by name, float32.

  Raises:
    InputError: if P, D or R of the source differ from the target's.
  """
  want = (module.length, module.features, module.rank)
  got = (*np.shape(source['shared_prompt']), np.shape(source['task_u'])[-1])
  if got != want:
    raise InputError(
      f'the source prompts have (P, D, R) = {got}, this run has {want}:'
      ' set PROMPT_LENGTH and PROMPT_RANK as in the source run'
    )

  def average(factor: Any) -> Array:
    mean = jnp.mean(jnp.asarray(factor, jnp.float32), axis=0, keepdims=True)
    return jnp.repeat(mean, module.num_tasks, axis=0)

  return {
    'shared_prompt': jnp.asarray(source['shared_prompt'], jnp.float32),
    'task_u': average(source['task_u']),
    'task_v': average(source['task_v']),
  }


def num_parameters(module: PromptModule) -> int:
  """Closed formula: P*D, plus K*(P + D)*R for multitask prompts."""
  count = module.length * module.features
  if isinstance(module, MultitaskPrompts):
    count += module.num_tasks * (module.length + module.features) * module.rank
  return count


@dataclasses.dataclass(frozen=True)
class PromptConfig:
  """What prompts a run trains and how they start.

  Attributes:
    length: P.
    task_names: the run's tasks; their order is the order of the table's rows.
    method: 'multitask' (P*, u, v) or 'soft' (one prompt for all tasks).
    rank: R of multitask prompts.
    init: how the [P, D] prompt starts when no source prompts are given.
    source_prompts: path of a bundle (or PEFT folder, or `.npy`) to start from.
    source_task: which task's composed prompt of it to take; None is the whole
      bundle (P* with the average of u and v, or its one prompt).
  """

  length: Positive
  task_names: Names
  method: str = 'multitask'
  rank: Positive = 1
  init: PromptInit = Uniform()
  source_prompts: str | None = None
  source_task: str | None = None

  def __post_init__(self):
    names = self.task_names
    names = (names,) if isinstance(names, str) else tuple(names)
    object.__setattr__(self, 'task_names', names)
    if self.method not in ('multitask', 'soft'):
      raise InputError(
        f"prompt method is {self.method!r}, expected 'multitask' or 'soft'"
      )
    if self.length < 1:
      raise InputError(f'PROMPT_LENGTH = {self.length} must be at least 1')
    if not names or len(set(names)) != len(names):
      raise InputError(
        f'PROMPT_TASKS = {list(names)} must name at least one task, each once'
      )

  def make_module(self, features: int) -> PromptModule:
    """The Flax module of these prompts for a backbone of width `features`."""
    if self.method == 'soft':
      return SoftPrompts(self.length, features, len(self.task_names))
    return MultitaskPrompts(
      self.length, features, len(self.task_names), self.rank
    )
