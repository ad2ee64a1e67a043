"""What a run starts from: its model, its prompts' start values, its teachers.

Both engines start their stages here.
"""

from collections.abc import Mapping
import dataclasses
import logging
from typing import Any

import jax
import numpy as np

from mpt_jax import models, t5
from mpt_jax import prompts as prompts_lib
from mpt_jax.checkpoints import bundle as bundle_lib
from mpt_jax.checkpoints.backbone import Backbone
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


def make_model(
  config: t5.T5Config,
  prompts: prompts_lib.PromptConfig | None,
  distillation: Distillation | None,
  **loss: Any,
) -> models.PromptedT5:
  """Makes a stage's model.

  Args:
    config: the backbone's sizes.
    prompts: what to train; None for the backbone alone.
    distillation: weights of a source run's losses; None for none.
    **loss: the loss settings and special ids of `models.PromptedT5`.

  Returns:
    The model.
  """
  module = prompts.make_module(config.emb_dim) if prompts else None
  if distillation is None:
    return models.PromptedT5(config, module, **loss)
  return models.DistilledPromptedT5(
    config,
    module,
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


def initial_prompts(
  prompts: prompts_lib.PromptConfig,
  module: prompts_lib.PromptModule | None,
  backbone: Backbone,
  stage: str,
  seed: int,
) -> dict[str, Any]:
  """Draws the prompts' start values, or takes them from source prompts.

  Args:
    prompts: what to train and how it starts.
    module: the model's prompt module.
    backbone: the backbone; of its parameters only the embedding is read, and
      only if no source prompts are given.
    stage: 'teacher', 'source' or 'target'.
    seed: seeds what is drawn.

  Returns:
    The prompt module's parameters by name.

  Raises:
    InputError: if the source prompts are missing or do not fit.
  """
  assert module is not None
  init = prompts.init
  if prompts.source_prompts is not None:
    source = bundle_lib.load_prompts(prompts.source_prompts)
    bundle_lib.check_backbone(source, backbone)
    log.info('starting from the prompts in %s', prompts.source_prompts)
    if prompts.source_task is not None:
      init = prompts_lib.FromArray(source.compose(prompts.source_task))
    elif source.method == 'soft':
      init = prompts_lib.FromArray(source.arrays['prompt'])
    elif isinstance(module, prompts_lib.MultitaskPrompts):
      return prompts_lib.target_prompts(module, source.arrays)
    else:
      raise InputError(
        f'SOURCE_PROMPTS {prompts.source_prompts!r} holds'
        f' {len(source.task_names)} task prompts and this run trains one plain'
        ' prompt: name one of'
        f' {", ".join(source.task_names)} as SOURCE_TASK'
      )
  elif stage == 'target' and prompts.method == 'multitask':
    raise InputError(
      'stage target needs SOURCE_PROMPTS, the prompt bundle of a source run'
    )
  embedding = None
  if prompts.source_prompts is None:
    embedding = backbone.params['token_embedder']['embedding']
  return prompts_lib.initial_prompts(
    module,
    jax.random.PRNGKey(seed),
    init,
    embedding,
    tokenizer(backbone),
  )


def teacher_table(
  given: Any,
  prompts: prompts_lib.PromptConfig,
  backbone: Backbone,
) -> np.ndarray:
  """Reads the teachers' prompts.

  Args:
    given: TEACHER_PROMPTS, see `Distillation`.
    prompts: what the run trains.
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
    given = {t: given.replace('{task}', t) for t in prompts.task_names}
  if not isinstance(given, Mapping):
    bundles = [bundle_lib.load_prompts(path) for path in given]
    found = {t: b for b in bundles for t in b.task_names}
  else:
    found = {
      t: bundle_lib.load_prompts(path)
      for t, path in given.items()
      if t in prompts.task_names
    }
  rows = []
  for task in prompts.task_names:
    if task not in found:
      raise InputError(
        f'TEACHER_PROMPTS has no teacher for {task!r}; it has'
        f' {", ".join(sorted(found)) or "none"}'
      )
    teacher = found[task]
    bundle_lib.check_backbone(teacher, backbone)
    if teacher.prompt_length != prompts.length:
      raise InputError(
        f'the teacher of {task!r} has {teacher.prompt_length} prompt vectors'
        f' and PROMPT_LENGTH = {prompts.length}: they must be equal'
      )
    rows.append(teacher.compose(task))
  return np.stack(rows)
