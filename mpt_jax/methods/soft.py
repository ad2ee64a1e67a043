"""Vanilla prompt tuning: one prompt."""

from collections.abc import Mapping
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mpt_jax.methods.base import (
  AVERAGE,
  BUNDLE,
  PromptMethod,
  Start,
  start_prompt,
)
from mpt_jax.methods.initializers import FromArray
from mpt_jax.types import Array, InputError


@dataclasses.dataclass(frozen=True)
class SoftPrompts(PromptMethod):
  """One prompt [P, D] for every task of the run (Lester et al., EMNLP 2021).

  P * D parameters.
  """

  name: ClassVar[str] = 'soft'
  title: ClassVar[str] = 'vanilla prompt tuning (PT)'
  paper: ClassVar[str] = (
    'Lester et al., "The Power of Scale for Parameter-Efficient Prompt'
    ' Tuning", EMNLP 2021'
  )
  groups: ClassVar[tuple[tuple[str, str], ...]] = (('prompt', 'learning_rate'),)
  rates: ClassVar[Mapping[str, tuple[float, float | None]]] = {
    stage: (0.3, None) for stage in ('teacher', 'source', 'target')
  }
  formats: ClassVar[tuple[str, ...]] = ('npy', 'peft', 'peft_composed', BUNDLE)
  arrays: ClassVar[tuple[str, ...]] = ('prompt',)
  peft_type: ClassVar[str] = 'PROMPT_TUNING'
  peft_names: ClassVar[Mapping[str, str]] = {'prompt': 'prompt_embeddings'}

  def shapes(self, config: Any, num_tasks: int) -> dict[str, tuple[int, ...]]:
    """See `Method.shapes`."""
    return {'prompt': (self.length, config.emb_dim)}

  def num_parameters(self, config: Any, num_tasks: int) -> int:
    """P * D."""
    return self.length * config.emb_dim

  def initial(
    self, config: Any, num_tasks: int, start: Start
  ) -> dict[str, Array]:
    """See `Method.initial`: a source prompt, or what `init` draws."""
    method = self
    if start.source is not None:
      method = dataclasses.replace(self, init=FromArray(self._source(start)))
    elif self.start is not None:
      raise InputError(
        f'START = {self.start!r} needs SOURCE_PROMPTS, prompts to start from'
      )
    key, _ = jax.random.split(start.key)
    return {'prompt': start_prompt(method, config, key, start)}

  def _source(self, start: Start) -> np.ndarray:
    """The prompt [P, D] of a source to start from."""
    source, task = start.source, self._start_task(start)
    if task is not None or not source.per_task:
      return source.compose(task or source.task_names[0])
    if self.start == AVERAGE:
      return source.table.mean(axis=0, dtype=np.float64).astype(np.float32)
    raise InputError(
      f'SOURCE_PROMPTS {start.path!r} holds {len(source.task_names)} task'
      ' prompts and this run trains one plain prompt: name one of'
      f' {", ".join(source.task_names)} as SOURCE_TASK, or give START'
    )

  @classmethod
  def compose(cls, arrays: Mapping[str, Any], num_tasks: int) -> np.ndarray:
    """See `PromptMethod.compose`."""
    prompt = arrays['prompt']
    return np.broadcast_to(prompt, (num_tasks, *prompt.shape))

  def prompt_table(self, arrays: Mapping[str, Any], num_tasks: int) -> Array:
    """[K, P, D] float32: the same prompt K times."""
    prompt = jnp.asarray(arrays['prompt'])
    return jnp.broadcast_to(prompt[None], (num_tasks, *prompt.shape))
