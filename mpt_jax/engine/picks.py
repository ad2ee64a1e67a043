"""Which source a run starts from, where the nearest one is wanted."""

from collections.abc import Mapping, Sequence
import dataclasses
import logging
from typing import Any

from mpt_jax import methods
from mpt_jax.checkpoints import files
from mpt_jax.checkpoints.backbone import Backbone
from mpt_jax.engine import starts
from mpt_jax.engine.starts import Source
from mpt_jax.transfer import ranking, shelf, sources
from mpt_jax.types import InputError

log = logging.getLogger(__name__)

# In MODEL_DIR: which source was picked, and of which.
PICKED = 'nearest.json'
_NEAREST = repr(methods.NEAREST)


@dataclasses.dataclass(frozen=True)
class Picked:
  """What a run starts from, once the nearest source is known.

  Attributes:
    method: that of the run.
    source: its source.
    found: what was compared, ready for JSON; None if nothing had to be.
  """

  method: methods.Method
  source: Source
  found: Mapping[str, Any] | None = None


def pick(
  method: methods.Method,
  source: Source,
  backbone: Backbone,
  task_names: Sequence[str],
) -> Picked:
  """Picks the source that is nearest to a run's task, where one is wanted.

  Args:
    method: the run's.
    source: what it may start from, and the keys to compare.
    backbone: the backbone; its parameters are not read.
    task_names: what the run trains on, which is no source of its own.

  Returns:
    A method and a source that name it.

  Raises:
    InputError: if a key is missing, or has no use.
  """
  if not method.picks:
    for macro in ('target_key', 'source_keys', 'similarity'):
      if (value := getattr(source, macro)) is not None:
        raise InputError(
          f'{macro.upper()} = {value!r} has no use without START = {_NEAREST}'
        )
    return Picked(method, source)
  if source.prompts is None:
    raise InputError(f'START = {_NEAREST} needs SOURCE_PROMPTS, a library')
  if len(task_names) > 1:
    raise InputError(
      f'START = {_NEAREST} picks for one task, and this run has'
      f' {", ".join(task_names)}'
    )
  target = _target_key(source, backbone, task_names)
  tasks = [source.task] if isinstance(source.task, str) else source.task
  library = shelf.is_library(source.prompts)
  given: Any = source.prompts
  if library:
    items = shelf.read(str(given), tasks=tasks, backbone=backbone)
    names = {(item.place.task, item.place.run) for item in items}
  else:
    given = starts.read_source(source, backbone)
    names = {(task, '') for task in given.task_names}
  compared: Any = source.source_keys or given
  if isinstance(compared, str) and '{task}' in compared:
    compared = {
      task: compared.replace('{task}', task)
      for task, _ in sorted(names)
      if task not in task_names
    }
  keys = ranking.source_keys(compared, backbone, tasks, task_names)
  keys = [
    key for key in keys if (key.task, key.run if library else '') in names
  ]
  if not keys:
    raise InputError(
      f'SOURCE_KEYS = {source.source_keys!r} has no key of what SOURCE_PROMPTS'
      f' has: {", ".join(sorted({task for task, _ in names}))}'
    )
  ranking.warn_of_steps(keys, [target])
  found = ranking.compare(keys, [target], source.similarity or ranking.AVERAGE)
  best = found.prompts[0]
  log.info('nearest by %s: %s', found.metric, ranking.told(found))
  if library:
    place = shelf.Place(best.task, best.run)
    path = shelf.path_of(str(source.prompts), place)
    source = dataclasses.replace(source, prompts=path, task=None)
  return Picked(
    method.picked(best.task),
    source,
    {
      'version': 1,
      'picked': best.name,
      'metric': found.metric,
      'target_key': source.target_key,
      'target_key_step': target.step,
      'source_keys': str(source.source_keys or source.prompts),
      'ranking': [row.as_json() for row in found.prompts],
    },
  )


def _target_key(
  source: Source, backbone: Backbone, task_names: Sequence[str]
) -> sources.SourcePrompt:
  """The one key of the task to train."""
  path, task = source.target_key, task_names[0]
  if path is None or not files.exists(path):
    told = 'is not given' if path is None else f'{path!r} is not there'
    raise InputError(
      f"START = {_NEAREST} compares the task's own key, and TARGET_KEY {told}:"
      ' `python -m mpt_jax.train --gin_file=gin_configs/runs/teacher.gin'
      f' --gin.MIXTURE_OR_TASK_NAME="{task!r}" --gin.TRAIN_STEPS=N'
      ' --gin.KEY_STEP=N …`, N as of the library, leaves one in MODEL_DIR/key'
    )
  found = sources.read(path, backbone)
  if len(found) > 1:
    found = [key for key in found if key.task == task]
  if len(found) != 1:
    raise InputError(
      f'TARGET_KEY = {path!r} holds the prompts of several tasks, and none of'
      f' {task!r}'
    )
  if found[0].task != task:
    log.warning(
      'TARGET_KEY is of %s, and this run trains %s', found[0].task, task
    )
  return found[0]
