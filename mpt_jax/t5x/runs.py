"""What gin_configs/t5x/*.gin builds: models, data and checkpoint settings.

Everything that a user can get wrong is checked here, before T5X compiles or
writes anything.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
import tempfile
from typing import Any

import jax
from t5x import utils as t5x_utils

import mpt_jax
from mpt_jax import backbones, data, methods, models, t5
from mpt_jax.checkpoints import bundle as bundle_lib
from mpt_jax.checkpoints import files, huggingface, t5x_format
from mpt_jax.checkpoints import run as run_lib
from mpt_jax.checkpoints import vocabulary as vocabulary_lib
from mpt_jax.checkpoints.backbone import DEMOS, demo_folder, find_backbone
from mpt_jax.data.dataset import check_lengths
from mpt_jax.data.libraries import tf
from mpt_jax.data.lookup import check_labels
from mpt_jax.data.seqio_tasks import import_module
from mpt_jax.engine import optimizers, starts
from mpt_jax.engine.optimizers import Optimizer
from mpt_jax.engine.settings import BackboneSource, Decoding, Loss
from mpt_jax.engine.starts import NO_SOURCE, Distillation, Source
from mpt_jax.t5x import optimizers as t5x_optimizers
from mpt_jax.t5x import remote, saving
from mpt_jax.t5x.models import PromptedModel, prompt_axis_rules
from mpt_jax.t5x.requirements import require_t5x
from mpt_jax.t5x.restore import PromptStateInitializer, Start, TrainModel
from mpt_jax.types import (
  InputError,
  Lengths,
  Names,
  Natural,
  Positive,
  is_remote,
  local_path,
  nearest,
)

__all__ = [
  'BackboneSource',
  'Decoding',
  'Distillation',
  'Loss',
  'Optimizer',
  'PromptStateInitializer',
  'Source',
  'checkpoint_config',
  'dataset_config',
  'inference_model',
  'learning_rate',
  'prompt_axis_rules',
  'restore_config',
  'total_steps',
  'train_model',
]


STAGES = ('teacher', 'source', 'target')


def train_model(
  *,
  stage: str,
  backbone: BackboneSource,
  method: methods.PromptMethod,
  prompt_tasks: Names,
  total_steps: Natural,
  source: Source = NO_SOURCE,
  distillation: Distillation | None = None,
  optimizer: Optimizer = Optimizer(),
  loss: Loss = Loss(),
  decoding: Decoding = Decoding(),
  dtype: str = 'float32',
  seed: Natural = 0,
) -> TrainModel:
  """Makes the model of a training run.

  Args:
    stage: 'teacher', 'source' or 'target'.
    backbone: a T5X checkpoint (gs:// too), an HF folder, 'demo',
      'demo-small' or 'demo-large'; its sizes where it does not say them; a
      vocabulary where none lies beside it and it is not T5's public one.
    method: what is learned, a method of prompts.
    prompt_tasks: the run's tasks in row order.
    total_steps: the T5X step at which the run ends, see `total_steps`.
    source: what the prompts start from.
    distillation: teachers of a source run; None trains without.
    optimizer: rates and schedule; rates that it leaves open are the method's.
    loss: what a step makes small; also dropout of the frozen backbone.
    decoding: of inference evaluation.
    dtype: of activations; prompts, logits and loss are float32.
    seed: seeds the prompts' start values.

  Returns:
    A T5X model.

  Raises:
    InputError: if something given is wrong.
  """
  require_t5x()
  if stage not in STAGES:
    raise InputError(
      f'stage is {stage!r}, expected one of {", ".join(STAGES)}'
      f'{nearest(stage, STAGES)}'
    )
  path = find_backbone(backbone.trained)
  config = _config(path, backbone.config).replace(
    dropout_rate=loss.dropout_rate, dtype=dtype
  )
  known = _use_vocabulary(path, backbone.vocabulary, config)
  method.check_can(t5x=True, mix=len(prompt_tasks) > 1)
  task_names = starts.check_tasks(prompt_tasks)
  teachers = None
  if distillation is not None:
    teachers = _localize_teachers(distillation.teacher_prompts, task_names)
  settings = optimizer.of_run(
    optimizers.method_groups(method, *optimizer.rates(method, stage)),
    # A constant rate needs no end: such a run can be prolonged.
    total_steps - remote.initial_step(path)
    if optimizer.schedule == 'linear'
    else None,
  )
  return TrainModel(
    starts.make_model(
      config, method, len(task_names), distillation, **loss.of_model()
    ),
    task_names,
    optimizer_def=t5x_optimizers.PromptOptimizer(
      settings, t5x_optimizers.trainable_names(method)
    ),
    decoding=decoding,
    start=Start(
      backbone=path,
      stage=stage,
      source=_localize(source),
      teacher_prompts=teachers,
      vocabulary=known,
      seed=seed,
    ),
  )


def inference_model(
  *,
  checkpoint: BackboneSource,
  prompts: str | None = None,
  dtype: str = 'float32',
  decoding: Decoding = Decoding(),
) -> PromptedModel:
  """Makes the model for `t5x.eval` and `t5x.infer`.

  Args:
    checkpoint: one that our T5X run wrote, with its sizes where it does not
      say them; the vocabulary is T5's public one unless it is given.
    prompts: a bundle that says what prompts the checkpoint holds (not their
      values); None is the one that the run wrote beside it.
    dtype: of activations.
    decoding: how answers are found.

  Returns:
    A T5X model.

  Raises:
    InputError: if there is no such checkpoint, or no bundle beside it.
  """
  require_t5x()
  folder = _checkpoint(checkpoint.path)
  if prompts is None:
    prompts = f'{os.path.dirname(folder)}/{saving.LATEST}'
  bundle = bundle_lib.load_prompts(remote.localize(prompts))
  config = _config(folder, checkpoint.config).replace(dtype=dtype)
  _use_vocabulary(folder, checkpoint.vocabulary, config)
  return PromptedModel(
    models.PromptedT5(config, bundle.learner, len(bundle.task_names)),
    bundle.task_names,
    decoding=decoding,
  )


def total_steps(
  train_steps: int | None,
  train_steps_relative: int | None,
  initial_checkpoint_path: str,
) -> int:
  """The T5X step at which a run ends.

  T5X counts the backbone's own steps too, and its own `relative_steps` count
  from wherever a run was stopped; these count from the backbone, always.

  Args:
    train_steps: TRAIN_STEPS, the backbone's steps included.
    train_steps_relative: TRAIN_STEPS_RELATIVE, steps of this run; if given,
      `train_steps` is ignored.
    initial_checkpoint_path: the backbone.

  Returns:
    The last step.

  Raises:
    InputError: if neither is given or nothing would be left to train.
  """
  first = remote.initial_step(find_backbone(initial_checkpoint_path))
  if train_steps_relative:
    return first + train_steps_relative
  if not train_steps:
    raise InputError('give TRAIN_STEPS_RELATIVE, or TRAIN_STEPS')
  if train_steps <= first:
    raise InputError(
      f'TRAIN_STEPS = {train_steps} counts the {first} steps of'
      f' {initial_checkpoint_path} too: give TRAIN_STEPS_RELATIVE ='
      f' {train_steps} for as many steps of prompt training'
    )
  return train_steps


def learning_rate(model: TrainModel) -> Callable[[Any], Any]:
  """What T5X's trainer logs: the rate of P* (or of the plain prompt).

  Args:
    model: the run's model.

  Returns:
    A function from T5X's step to the rate.
  """
  settings = model.optimizer_def.settings
  rate = settings.rate(settings.groups[0].learning_rate)
  first = remote.initial_step(model.start.backbone)
  return lambda step: jax.numpy.asarray(rate(step - first), jax.numpy.float32)


def dataset_config(
  *,
  model: PromptedModel,
  mixture_or_task_name: str,
  task_feature_lengths: Lengths,
  split: str,
  batch_size: Positive,
  module: str | None = 'tasks',
  shuffle: bool = False,
  seed: Natural | None = None,
  use_cached: bool = False,
  pack: bool = False,
) -> t5x_utils.DatasetConfig:
  """T5X's data settings, checked against the model's prompts.

  Args:
    model: the model that will read the data.
    mixture_or_task_name: a registered SeqIO mixture or task.
    task_feature_lengths: {'inputs': S with prompt slots, 'targets': T}.
    split: the split.
    batch_size: rows of a batch.
    module: the module that registers the task; None if it is imported.
    shuffle: whether to shuffle.
    seed: of the order.
    use_cached: whether to read SeqIO's offline cache.
    pack: whether a row holds several examples.

  Returns:
    The settings.

  Raises:
    InputError: if the task is unknown, its data are missing, it has no
      prompt, no token fits beside the prompt, or a label word cannot be said.
  """
  if module:
    import_module(module)
  data.task_rows(model.task_names, mixture_or_task_name)
  provider = data.check_data(mixture_or_task_name, split, use_cached=use_cached)
  data.check_vocabulary(provider)
  _, target_length = check_lengths(task_feature_lengths, model.prompt_length)
  check_labels(provider, target_length)
  return t5x_utils.DatasetConfig(
    mixture_or_task_name=mixture_or_task_name,
    task_feature_lengths=dict(task_feature_lengths),
    split=split,
    batch_size=batch_size,
    shuffle=shuffle,
    seed=seed,
    use_cached=use_cached,
    pack=pack,
  )


def checkpoint_config(
  *,
  model: TrainModel,
  model_dir: str,
  period: Positive = 1000,
  keep: Positive | None = 3,
  save_dataset: bool = False,
) -> t5x_utils.CheckpointConfig:
  """T5X's checkpoint settings; refuses a MODEL_DIR of another run.

  Nothing is restored by T5X itself but a run's own checkpoint: the backbone
  is the business of `PromptStateInitializer`.

  Args:
    model: the run's model.
    model_dir: MODEL_DIR.
    period: steps between checkpoints.
    keep: how many of the newest to keep; None is all.
    save_dataset: whether the data iterator's state is saved too.

  Returns:
    The settings.

  Raises:
    InputError: if `model_dir` holds a run with other settings.
  """
  if local_path(model_dir) != model_dir.rstrip('/') and model_dir[:1] == '~':
    raise InputError(
      f'MODEL_DIR = {model_dir!r}: T5X takes ~ for a name; give'
      f' {local_path(model_dir)!r}'
    )
  _check_run(
    model_dir,
    {
      'engine': 't5x',
      'stage': model.start.stage,
      'initial_checkpoint_path': model.start.backbone,
      'model': repr(model.core),
      'optimizer': repr(model.optimizer_def.settings),
      'task_names': list(model.task_names),
      'source_prompts': model.start.source.prompts is not None,
      'teacher_prompts': model.start.teacher_prompts is not None,
      'seed': model.start.seed,
      'package_version': mpt_jax.__version__,
    },
  )
  return t5x_utils.CheckpointConfig(
    save=saving.save_config(model, model_dir, period, keep, save_dataset),
    restore=None,
  )


def restore_config(
  checkpoint_path: str, dtype: str = 'float32'
) -> t5x_utils.RestoreCheckpointConfig:
  """T5X's settings for reading a run's checkpoint.

  Args:
    checkpoint_path: the folder of a step, or locally a run's folder.
    dtype: of the parameters.

  Returns:
    The settings.

  Raises:
    InputError: if there is no checkpoint.
  """
  return t5x_utils.RestoreCheckpointConfig(
    path=_checkpoint(checkpoint_path), mode='specific', dtype=dtype
  )


# ---------------------------------------------------------------------------


def _checkpoint(path: str | None) -> str:
  folder = None if path is None else remote.checkpoint_folder(path)
  if folder is None:
    raise InputError(
      f'CHECKPOINT_PATH = {path!r} holds no T5X checkpoint (checkpoint_<step>)'
    )
  return folder


def _config(path: str, given: backbones.Config | str | None) -> t5.T5Config:
  """The sizes that are given, or that a local backbone implies."""
  if given is not None:
    return _of_t5(
      backbones.get_config(given) if isinstance(given, str) else given
    )
  if is_remote(path):
    raise InputError(
      f'the sizes of {path} are not known: give a second --gin_file, such as'
      ' gin_configs/models/t5_1_1_base.gin'
    )
  folder = remote.checkpoint_folder(path)
  if folder is not None:
    return t5x_format.infer_config(t5x_format.open_checkpoint(folder))
  if not huggingface.is_model_folder(path):
    raise InputError(
      f'there is no backbone in {path}; expected config.json with'
      ' model.safetensors, or a T5X checkpoint (checkpoint_<step>)'
    )
  return _of_t5(huggingface.open_folder(path)[1])


def _of_t5(config: backbones.Config) -> t5.T5Config:
  if not isinstance(config, t5.T5Config):
    raise InputError(
      f'the backbone is a {backbones.family(config).title}, and T5X trains'
      ' prompts of T5 alone: use mpt_jax.train'
    )
  return config


def _use_vocabulary(
  path: str, given: str | None, config: t5.T5Config
) -> vocabulary_lib.Vocabulary | None:
  """Makes a vocabulary that of the tasks; returns it if it is local."""
  if not is_remote(path):
    special = vocabulary_lib.read_special_ids(path)
    vocabulary_lib.require_ordinary(special, path)
  if given and given in DEMOS:
    given = os.path.join(demo_folder(given), huggingface.VOCABULARY)
  if given is not None:
    given = local_path(given)
    if not tf.io.gfile.exists(given):
      raise InputError(f'VOCABULARY = {given!r} does not exist')
  elif not is_remote(path):
    given = vocabulary_lib.find_vocabulary(path)
  if given is None:
    return None
  if is_remote(given):
    data.use_vocabulary(given)
    return None
  found = vocabulary_lib.Vocabulary(
    given, config.vocab_size, vocabulary_lib.ORDINARY, owner=path
  )
  data.use_vocabulary(found)
  return found


def _localize(source: Source) -> Source:
  given, tasks = source.prompts, source.task
  if given is None:
    return source
  if isinstance(given, str) and '{task}' not in given:
    local = remote.localize(given)
  else:
    named = [tasks] if isinstance(tasks, str) else tasks
    local = _localize_teachers(given, named or list(given))
  return dataclasses.replace(source, prompts=local)


def _localize_teachers(given: Any, task_names: Sequence[str]) -> Any:
  if isinstance(given, str) and '{task}' in given:
    given = {t: given.replace('{task}', t) for t in task_names}
  if isinstance(given, Mapping):
    return {
      task: remote.localize(path)
      for task, path in given.items()
      if task in task_names
    }
  if isinstance(given, Sequence) and not isinstance(given, str):
    return [remote.localize(path) for path in given]
  return given


def _check_run(model_dir: str, config: Mapping[str, Any]) -> None:
  """Compares with what MODEL_DIR was made with; process 0 writes it."""
  gfile = tf.io.gfile
  path = f'{model_dir}/{run_lib.RUN_CONFIG}'
  now = run_lib.record(config)
  if not gfile.glob(f'{model_dir}/checkpoint_*'):
    if jax.process_index() == 0:
      gfile.makedirs(model_dir)
      with gfile.GFile(path, 'wb') as f:
        f.write(files.json_bytes(now))
    return
  if not gfile.exists(path):
    raise InputError(
      f'MODEL_DIR {model_dir!r} holds checkpoints but no {run_lib.RUN_CONFIG}:'
      ' it is not one of our runs; use another MODEL_DIR'
    )
  with tempfile.TemporaryDirectory(prefix='mpt_jax.') as folder:
    local = os.path.join(folder, run_lib.RUN_CONFIG)
    gfile.copy(path, local)
    before = files.read_json(local)
  run_lib.refuse_differences(model_dir, before, now)
