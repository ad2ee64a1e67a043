"""What a run starts from: its model, its start values, its teachers.

Both engines start their stages here.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import logging
import os
from typing import Any

import jax
import numpy as np

from mpt_jax import losses, methods, models
from mpt_jax.backbones import Config
from mpt_jax.checkpoints import bundle as bundle_lib
from mpt_jax.checkpoints.backbone import Backbone
from mpt_jax.checkpoints.bundle import PromptBundle
from mpt_jax.engine import params as params_lib
from mpt_jax.engine.predictor import tokenizer
from mpt_jax.transfer import shelf
from mpt_jax.types import (
  InputError,
  Rate,
  nearest,
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
class Distance:
  """Prompts that a run's own shall be near to, in place of its tasks' loss.

  Attributes:
    target_prompts: each task's finished prompt on this backbone, as
      `Distillation.teacher_prompts`; None is the tasks' loss.
    kind: 'l2', 'l2_squared' or 'mse', see `losses.prompt_distances`.
  """

  target_prompts: Any = None
  kind: str = 'l2'

  def __post_init__(self):
    if self.kind not in losses.DISTANCES:
      raise InputError(
        f'DISTANCE = {self.kind!r}, expected one of'
        f' {", ".join(losses.DISTANCES)}'
        f'{nearest(str(self.kind), losses.DISTANCES)}'
      )


# What may teach a run.
Lesson = Distillation | Distance


@dataclasses.dataclass(frozen=True)
class Source:
  """What a run starts from.

  Attributes:
    prompts: path of a bundle (or PEFT folder, or `.npy`), or of several, whose
      tasks are put together: a list, {task: path}, or a pattern with '{task}'
      in it for each task that `task` names. None is nothing.
      A library gives the values of its tasks.
    task: which task of it to take, or which ones, in order; None is all. Of a
      library 'rte/1' is a task's run.
    target_key: path of the key of the task to train, where the nearest source
      is to be picked.
    source_keys: the library whose keys are compared with it, or a pattern with
      '{task}' in it for each source task; None is that of `prompts`, or
      `prompts` themselves.
    similarity: how, see `transfer.retrieval.similarity`; None is 'average'.
  """

  prompts: str | Sequence[str] | Mapping[str, str] | None = None
  task: str | Sequence[str] | None = None
  target_key: str | None = None
  source_keys: str | None = None
  similarity: str | None = None

  def of_tasks(
    self, method: methods.Method, tasks: Sequence[str] | None
  ) -> 'Source':
    """Returns it with a prompt for each task, where the method takes that."""
    if not method.foreign_source or self.prompts is None or self.task:
      return self
    return dataclasses.replace(self, task=tuple(tasks or ()))


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
  config: Config,
  method: methods.Method,
  num_tasks: int,
  distillation: Lesson | None,
  **loss: Any,
) -> models.PromptedModel:
  """Makes a stage's model.

  Args:
    config: the backbone's sizes.
    method: what to train.
    num_tasks: K.
    distillation: weights of a source run's losses, or the distance that is
      the loss; None for neither.
    **loss: the loss settings and special ids of `models.PromptedModel`.

  Returns:
    The model.
  """
  if distillation is None:
    return models.class_of(config)(config, method, num_tasks, **loss)
  if isinstance(distillation, Distance):
    kind = distillation.kind
    return models.class_of(config, models.Distance)(
      config, method, num_tasks, **loss, distance=kind
    )
  return models.class_of(config, models.Distilled)(
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


def informed(
  method: methods.Method, source: Source, backbone: Backbone
) -> methods.Method:
  """Returns a run's method, with what it must know of the run's source.

  Args:
    method: the method.
    source: what to start from.
    backbone: the backbone; its parameters are not read.

  Raises:
    InputError: if the method needs a source that is missing or does not fit.
  """

  def read() -> PromptBundle | None:
    bundle = read_source(source, None if method.foreign_source else backbone)
    if bundle is not None and isinstance(source.task, str):
      bundle = bundle.with_tasks([_task_of(source.task)])
    return bundle

  try:
    return method.of_source(read)
  except InputError as e:
    if source.prompts is None:
      raise
    raise InputError(f'SOURCE_PROMPTS = {source.prompts!r}: {e}') from e


def start_values(
  model: models.PromptedModel,
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
  bundle = read_source(source, None if method.foreign_source else backbone)
  if bundle is not None:
    log.info('starting from the prompts in %s', source.prompts)
    given = {'source': bundle, 'path': source.prompts}
    if isinstance(source.task, str):
      given['source_task'] = _task_of(source.task)
  if 'token_embedder' in backbone.params:
    given['embedding'] = backbone.params['token_embedder']['embedding']
  start = methods.Start(
    jax.random.PRNGKey(seed),
    stage=stage,
    tokenize=tokenizer(backbone),
    **given,
  )
  arrays = method.started(model.config, model.num_tasks, start)
  return {method.branch: params_lib.unflatten(arrays)}


def read_source(
  source: Source, backbone: Backbone | None
) -> PromptBundle | None:
  """Reads what a run starts from.

  Args:
    source: where it is.
    backbone: the backbone, whose parameters are not read; None where the
      prompts are of another one.

  Returns:
    The bundle, of the tasks that are listed; None if there is nothing.

  Raises:
    InputError: if it is missing or of another backbone.
  """
  given, tasks = source.prompts, source.task
  if given is None:
    return None
  if isinstance(given, os.PathLike):
    given = os.fspath(given)
  named = [tasks] if isinstance(tasks, str) else list(tasks or ())
  if isinstance(given, str) and shelf.is_library(given):
    return _of_library(given, named or None, backbone)
  if isinstance(given, str) and '{task}' not in given:
    bundle = bundle_lib.load_prompts(given)
  elif isinstance(given, str | Mapping):
    if isinstance(given, str) and not named:
      raise InputError(
        f'SOURCE_PROMPTS = {given!r} has {{task}} in it: give the source tasks'
        ' as SOURCE_TASK'
      )
    named = named or list(given)
    found = _by_task('SOURCE_PROMPTS has no prompts', given, named)
    bundle = bundle_lib.merge([found[t].with_tasks([t]) for t in named])
  else:
    bundle = bundle_lib.load_several(given)
  if not isinstance(tasks, str | None):
    bundle = bundle.with_tasks(named)
  if backbone is not None:
    bundle_lib.check_backbone(bundle, backbone)
  return bundle


def _task_of(name: str) -> str:
  """The task of 'rte/1', a run of a library; no task's name has a '/'."""
  return name.partition('/')[0]


def _of_library(
  path: str, tasks: Sequence[str] | None, backbone: Backbone | None
) -> PromptBundle:
  """The values of a library as one bundle."""
  items = shelf.read(path, tasks=tasks, backbone=backbone)
  found = [item.place.task for item in items]
  for item in items:
    if found.count(item.place.task) > 1:
      raise InputError(
        f'the library {path} has several runs of {item.place.task!r}: name one'
        f' as SOURCE_TASK, such as {item.name!r}'
      )
  return bundle_lib.merge([item.bundle for item in items])


def _by_task(
  lacking: str, given: Any, task_names: Sequence[str]
) -> dict[str, PromptBundle]:
  """Reads the bundle of each task.

  Args:
    lacking: the words for a task that has none.
    given: a pattern with '{task}', a list of paths, or {task: path}.
    task_names: the tasks.
  """
  if isinstance(given, str):
    given = {t: given.replace('{task}', t) for t in task_names}
  if isinstance(given, Mapping):
    found = {
      t: bundle_lib.load_prompts(path)
      for t, path in given.items()
      if t in task_names
    }
  else:
    bundles = [bundle_lib.load_prompts(path) for path in given]
    found = {t: b for b in bundles for t in b.task_names}
  for task in task_names:
    if task not in found:
      raise InputError(
        f'{lacking} for {task!r}; it has {", ".join(sorted(found)) or "none"}'
      )
  return found


def teacher_table(
  given: Any,
  task_names: Sequence[str],
  length: int,
  backbone: Backbone,
  macro: str = 'TEACHER_PROMPTS',
) -> np.ndarray:
  """Reads the teachers' prompts.

  Args:
    given: TEACHER_PROMPTS, see `Distillation`.
    task_names: the run's tasks, in row order.
    length: P.
    backbone: the backbone; its parameters are not read.
    macro: where they were given.

  Returns:
    [K, P, D] float32: each task's teacher prompt, in the run's row order.

  Raises:
    InputError: if a teacher is missing or does not fit.
  """
  if isinstance(given, str):
    if '{task}' not in given:
      raise InputError(
        f"{macro} = {given!r} must contain '{{task}}', or be a list of"
        ' paths, or {task: path}'
      )
  found = _by_task(f'{macro} has no teacher', given, task_names)
  rows = []
  for task in task_names:
    teacher = found[task]
    bundle_lib.check_backbone(teacher, backbone)
    if teacher.prompt_length != length:
      raise InputError(
        f'the teacher of {task!r} has {teacher.prompt_length} prompt vectors'
        f' and PROMPT_LENGTH = {length}: they must be equal'
      )
    rows.append(teacher.compose(task))
  return np.stack(rows)
