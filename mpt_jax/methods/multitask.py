"""Multitask Prompt Tuning: a shared prompt and a low-rank factor per task."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mpt_jax.methods.base import (
  AVERAGE,
  BUNDLE,
  NEAREST,
  PromptMethod,
  Start,
  start_prompt,
)
from mpt_jax.methods.initializers import FromArray
from mpt_jax.types import Array, InputError, Positive, check_shape

# A target's start from P* alone.
SHARED = 'shared'


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


@dataclasses.dataclass(frozen=True)
class MultitaskPrompts(PromptMethod):
  """P_k = P* o (u_k v_k) for every task k (Wang et al., ICLR 2023).

  P * D + K * (P + D) * R parameters. The factors start as ones: every task
  then starts from P* itself. A product near zero would erase P*, and random
  signs make the average over tasks, from which a target starts, meaningless.

  Attributes:
    rank: R, the rank of the task factors; 1 is the paper.
    start: what u and v of a target start as, of those of the source tasks:
      'average' (the paper; PEFT's AVERAGE_SOURCE_TASKS), 'shared' (ones: P*
      itself; ONLY_SOURCE_SHARED takes over P* too, and draws its factors),
      'task:<name>' (EXACT_SOURCE_TASK), or 'nearest', the task that retrieval
      picks.
  """

  name: ClassVar[str] = 'multitask'
  title: ClassVar[str] = 'MPT'
  paper: ClassVar[str] = (
    'Wang et al., "Multitask Prompt Tuning Enables Parameter-Efficient'
    ' Transfer Learning", ICLR 2023'
  )
  per_task: ClassVar[bool] = True
  groups: ClassVar[tuple[tuple[str, str], ...]] = (
    ('shared_prompt', 'learning_rate'),
    ('task_[uv]', 'task_learning_rate'),
  )
  rates: ClassVar[Mapping[str, tuple[float, float | None]]] = {
    'teacher': (0.3, None),
    'source': (0.3, 0.1),
    'target': (0.3, 0.4),
  }
  formats: ClassVar[tuple[str, ...]] = ('npy', 'peft', 'peft_composed', BUNDLE)
  arrays: ClassVar[tuple[str, ...]] = ('shared_prompt', 'task_u', 'task_v')
  peft_type: ClassVar[str] = 'MULTITASK_PROMPT_TUNING'
  # PEFT composes exactly so, with a plain sum over the ranks.
  peft_names: ClassVar[Mapping[str, str]] = {
    'shared_prompt': 'prompt_embeddings',
    'task_u': 'prefix_task_cols',
    'task_v': 'prefix_task_rows',
  }

  starts: ClassVar[tuple[str, ...]] = (AVERAGE, SHARED, NEAREST)

  rank: Positive = 1
  start: str | None = dataclasses.field(
    default=AVERAGE, kw_only=True, compare=False
  )

  @classmethod
  def sized(cls, length: int, rank: int) -> 'MultitaskPrompts':
    """See `PromptMethod.sized`."""
    return cls(length, rank)

  @classmethod
  def rank_of(cls, arrays: Mapping[str, Any]) -> int:
    """R, of the arrays."""
    return int(arrays['task_u'].shape[-1])

  def shapes(self, config: Any, num_tasks: int) -> dict[str, tuple[int, ...]]:
    """See `Method.shapes`."""
    return {
      'shared_prompt': (self.length, config.emb_dim),
      'task_u': (num_tasks, self.length, self.rank),
      'task_v': (num_tasks, self.rank, config.emb_dim),
    }

  def num_parameters(self, config: Any, num_tasks: int) -> int:
    """P * D + K * (P + D) * R."""
    factors = (self.length + config.emb_dim) * self.rank
    return self.length * config.emb_dim + num_tasks * factors

  def initial(
    self, config: Any, num_tasks: int, start: Start
  ) -> dict[str, Array]:
    """See `Method.initial`: from source prompts, or what `init` draws.

    One task's prompt, or a plain one, becomes P* with factors of ones. Of
    several tasks P* is taken over, and `start` says what becomes of their
    factors.
    """
    method, source = self, start.source
    if source is None:
      if start.stage == 'target':
        raise InputError(
          'stage target needs SOURCE_PROMPTS, the prompt bundle of a source run'
        )
    elif start.source_task is not None or not source.per_task:
      prompt = source.compose(start.source_task or source.task_names[0])
      method = dataclasses.replace(self, init=FromArray(prompt))
    else:
      return self._from_source(config, num_tasks, start)
    prompt_key, factor_key = jax.random.split(start.key)
    shapes = self.shapes(config, num_tasks)
    return {
      'shared_prompt': start_prompt(method, config, prompt_key, start),
      'task_u': task_u_init(factor_key, shapes['task_u']),
      'task_v': task_v_init(factor_key, shapes['task_v']),
    }

  def _from_source(
    self, config: Any, num_tasks: int, start: Start
  ) -> dict[str, Array]:
    """Takes over P*, and starts all tasks from the source's factors."""
    source = start.source.arrays
    if 'shared_prompt' not in source:
      raise InputError(
        f'SOURCE_PROMPTS {start.path!r} holds prompts of method'
        f' {start.source.method!r}, which have nothing in common: name one of'
        f' {", ".join(start.source.task_names)} as SOURCE_TASK'
      )
    want = (self.length, config.emb_dim, self.rank)
    got = (*np.shape(source['shared_prompt']), np.shape(source['task_u'])[-1])
    if got != want:
      raise InputError(
        f'the source prompts have (P, D, R) = {got}, this run has {want}:'
        ' set PROMPT_LENGTH and PROMPT_RANK as in the source run'
      )
    shared = jnp.asarray(source['shared_prompt'], jnp.float32)
    shapes = self.shapes(config, num_tasks)
    if self.start == SHARED:
      _, key = jax.random.split(start.key)
      return {
        'shared_prompt': shared,
        'task_u': task_u_init(key, shapes['task_u']),
        'task_v': task_v_init(key, shapes['task_v']),
      }
    task = self._start_task(start)
    row = None if task is None else start.source.row(task)

    def factor(name: str) -> Array:
      values = jnp.asarray(source[name], jnp.float32)
      if row is None:
        value = jnp.mean(values, axis=0, keepdims=True)
      else:
        value = values[row : row + 1]
      return jnp.repeat(value, num_tasks, axis=0)

    return {
      'shared_prompt': shared,
      'task_u': factor('task_u'),
      'task_v': factor('task_v'),
    }

  @classmethod
  def compose(cls, arrays: Mapping[str, Any], num_tasks: int) -> np.ndarray:
    """See `PromptMethod.compose`."""
    factors = np.matmul(arrays['task_u'], arrays['task_v'])
    return arrays['shared_prompt'][None] * factors

  @classmethod
  def num_tasks(cls, arrays: Mapping[str, Any]) -> int:
    """K, of the arrays."""
    return len(arrays['task_u'])

  def prompt_table(self, arrays: Mapping[str, Any], num_tasks: int) -> Array:
    """[K, P, D] float32, see `compose_task_prompts`."""
    del num_tasks
    return compose_task_prompts(*(jnp.asarray(arrays[n]) for n in self.arrays))

  def select(
    self, arrays: Mapping[str, Any], rows: Sequence[int]
  ) -> dict[str, Any]:
    """See `Method.select`."""
    rows = list(rows)
    return {
      name: value if name == 'shared_prompt' else value[rows]
      for name, value in arrays.items()
    }


def join_prompts(
  arrays: Sequence[Mapping[str, np.ndarray]], tables: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
  """Puts the prompts of several bundles into the arrays of one.

  Parts of one shared prompt and rank keep it. Any other prompts are held
  exactly as factors of rank P: a shared prompt of ones, u_k the identity and
  v_k the prompt.

  Args:
    arrays: the arrays of each part, of any prompt method.
    tables: [K, P, D], the composed prompts of each part.

  Returns:
    `shared_prompt`, `task_u` and `task_v`, the tasks in the order given.
  """
  first = arrays[0]
  alike = all(
    set(part) == set(MultitaskPrompts.arrays)
    and part['task_u'].shape[-1] == first['task_u'].shape[-1]
    and np.array_equal(part['shared_prompt'], first['shared_prompt'])
    for part in arrays
  )
  parts = arrays if alike else [_exact_factors(table) for table in tables]
  return {
    'shared_prompt': parts[0]['shared_prompt'],
    **{
      name: np.concatenate([part[name] for part in parts])
      for name in ('task_u', 'task_v')
    },
  }


def _exact_factors(table: np.ndarray) -> dict[str, np.ndarray]:
  """Arrays whose composed prompts are the table [K, P, D]."""
  tasks, length, _ = table.shape
  identity = np.eye(length, dtype=np.float32)
  return {
    'shared_prompt': np.ones(table.shape[1:], np.float32),
    'task_u': np.broadcast_to(identity, (tasks, length, length)),
    'task_v': np.asarray(table),
  }


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
