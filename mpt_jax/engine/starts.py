"""What a run starts from: its model, its start values, its teachers.

Both engines start their stages here.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import logging
from typing import Any

import jax
import numpy as np

from mpt_jax import methods, models, t5
from mpt_jax.checkpoints import bundle as bundle_lib
from mpt_jax.checkpoints.backbone import Backbone
from mpt_jax.engine import params as params_lib
from mpt_jax.engine.predictor import tokenizer
from mpt_jax.types import (
  InputError,
  Rate,
)

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Distillation:
  """The teachers of a source run and the weights of their losses.

  Attributes:
    teacher_prompts: where each task's finished prompt is: a pattern with
      '{task}' in it, a list of paths, or {task: path}.
    distill_weight: lambda of the paper.
    logits_weight: weight of the logits loss; None is `distill_weight`.
    hidden_weight: weight of the hidden loss; None is `distill_weight`.
    temperature: of both softmaxes.
    hidden_layers: 'last' or 'all'.
  """

  teacher_prompts: Any
  distill_weight: Rate = 0.9
  logits_weight: Rate | None = None
  hidden_weight: Rate | None = None
  temperature: Rate = 1.0
  hidden_layers: str = 'last'


@dataclasses.dataclass(frozen=True)
class Source:
  """What a run starts from.

  Attributes:
    prompts: path of a bundle (or PEFT folder, or `.npy`); None is nothing.
    task: which task of it to take; None is the whole bundle.
  """

  prompts: str | None = None
  task: str | None = None


NO_SOURCE = Source()


def check_tasks(names: Sequence[str] | str) -> tuple[str, ...]:
  """Returns a run's tasks in row order.

  Raises:
    InputError: if there is none, or one is named twice.
  """
  names = (names,) if isinstance(names, str) else tuple(names)
  if not names or len(set(names)) != len(names):
    raise InputError(
      f'PROMPT_TASKS = {list(names)} must name at least one task, each once'
    )
  return names


def make_model(
  config: t5.T5Config,
  method: methods.Method,
  num_tasks: int,
  distillation: Distillation | None,
  **loss: Any,
) -> models.PromptedT5:
  """Makes a stage's model.

  Args:
    config: the backbone's sizes.
    method: what to train.
    num_tasks: K.
    distillation: weights of a source run's losses; None for none.
    **loss: the loss settings and special ids of `models.PromptedT5`.

  Returns:
    The model.
  """
  if distillation is None:
    return models.PromptedT5(config, method, num_tasks, **loss)
  return models.DistilledPromptedT5(
    config,
    method,
    num_tasks,
    **loss,
    **{
      name: getattr(distillation, name)
      for name in (
        'distill_weight',
        'logits_weight',
        'hidden_weight',
        'temperature',
        'hidden_layers',
      )
    },
  )


def start_values(
  model: models.PromptedT5,
  backbone: Backbone,
  source: Source,
  stage: str,
  seed: int,
) -> dict[str, Any]:
  """Draws what a run learns, or takes it from what another one learned.

  Args:
    model: the model, with its method and sizes.
    backbone: the backbone; of its parameters only the embedding is read, and
      only where nothing is given to start from.
    source: what to start from.
    stage: 'teacher', 'source', 'target' or 'finetune'.
    seed: seeds what is drawn.

  Returns:
    {branch: the method's arrays, nested}; empty for a method without any.

  Raises:
    InputError: if the source prompts are missing, do not fit, or have no use.
  """
  method = model.method
  if method is None or method.branch is None:
    if source.prompts is not None:
      raise InputError(
        f'SOURCE_PROMPTS = {source.prompts!r}: what trains the whole backbone'
        ' starts from INITIAL_CHECKPOINT_PATH alone'
      )
    return {}
  given: dict[str, Any] = {}
  if source.prompts is not None:
    bundle = bundle_lib.load_prompts(source.prompts)
    bundle_lib.check_backbone(bundle, backbone)
    log.info('starting from the prompts in %s', source.prompts)
    given = {
      'source': bundle,
      'path': source.prompts,
      'source_task': source.task,
    }
  else:
    given['embedding'] = backbone.params['token_embedder']['embedding']
  start = methods.Start(
    jax.random.PRNGKey(seed),
    stage=stage,
    tokenize=tokenizer(backbone),
    **given,
  )
  arrays = method.initial(model.config, model.num_tasks, start)
  return {method.branch: params_lib.unflatten(arrays)}


def teacher_table(
  given: Any,
  task_names: Sequence[str],
  length: int,
  backbone: Backbone,
) -> np.ndarray:
  """Reads the teachers' prompts.

  Args:
    given: TEACHER_PROMPTS, see `Distillation`.
    task_names: the run's tasks, in row order.
    length: P.
    backbone: the backbone; its parameters are not read.

  Returns:
    [K, P, D] float32: each task's teacher prompt, in the run's row order.

  Raises:
    InputError: if a teacher is missing or does not fit.
  """
  if isinstance(given, str):
    if '{task}' not in given:
      raise InputError(
        f"TEACHER_PROMPTS = {given!r} must contain '{{task}}', or be a list of"
        ' paths, or {task: path}'
      )
    given = {t: given.replace('{task}', t) for t in task_names}
  if not isinstance(given, Mapping):
    bundles = [bundle_lib.load_prompts(path) for path in given]
    found = {t: b for b in bundles for t in b.task_names}
  else:
    found = {
      t: bundle_lib.load_prompts(path)
      for t, path in given.items()
      if t in task_names
    }
  rows = []
  for task in task_names:
    if task not in found:
      raise InputError(
        f'TEACHER_PROMPTS has no teacher for {task!r}; it has'
        f' {", ".join(sorted(found)) or "none"}'
      )
    teacher = found[task]
    bundle_lib.check_backbone(teacher, backbone)
    if teacher.prompt_length != length:
      raise InputError(
        f'the teacher of {task!r} has {teacher.prompt_length} prompt vectors'
        f' and PROMPT_LENGTH = {length}: they must be equal'
      )
    rows.append(teacher.compose(task))
  return np.stack(rows)
