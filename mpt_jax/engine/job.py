"""What a run is given and what it reads, before its folder is touched."""

from collections.abc import Mapping, Sequence
import dataclasses
import logging
import os
import re
from typing import Any

from jax.sharding import Mesh

import mpt_jax
from mpt_jax import methods, models
from mpt_jax.checkpoints import run as run_lib
from mpt_jax.checkpoints.backbone import Backbone
from mpt_jax.engine import (
  keys,
  multihost,
  optimizers,
  partitioning,
  picks,
  selection,
  starts,
)
from mpt_jax.engine import params as params_lib
from mpt_jax.engine.face import face
from mpt_jax.engine.metrics import Metric
from mpt_jax.engine.outcome import BACKBONE, PROMPTS
from mpt_jax.engine.predictor import load_backbone
from mpt_jax.engine.settings import (
  BackboneSource,
  Devices,
  Evaluation,
  Logging,
  Loss,
)
from mpt_jax.engine.starts import Lesson, Source
from mpt_jax.t5 import products
from mpt_jax.types import InputError, PyTree, nearest

log = logging.getLogger(__name__)

STAGES = ('teacher', 'source', 'target', 'finetune')
PADDINGS = ('auto', 'max', 'bucket', 'pack')


@dataclasses.dataclass
class SharedBackbone:
  """The backbone of one or more runs.

  Attributes:
    source: where it is read, or a loaded one.
    keep: whether it is needed again, and stays in the host's memory.
    fresh: whether it may be drawn.
    seed: of what is drawn.
  """

  source: BackboneSource | Backbone
  keep: bool
  fresh: bool
  seed: int
  _kept: Backbone | None = None

  def load(self) -> Backbone:
    """Returns it; its vocabulary is that of the tasks from then on."""
    source = self._kept or self.source
    loaded = load_backbone(source, self.seed, fresh=self.fresh)
    if self.keep:
      self._kept = loaded
    return loaded


@dataclasses.dataclass(frozen=True)
class Settings:
  """What `train` is given; see there."""

  model_dir: str
  stage: str
  backbone: SharedBackbone
  method: methods.Method
  # In row order; None until the data say it.
  tasks: tuple[str, ...] | None
  start: Source
  dataset: Any
  steps: int
  distillation: Lesson | None
  optimizer: optimizers.Optimizer
  evaluation: Evaluation | None
  devices: Devices
  loss: Loss
  logging: Logging
  seed: int
  # The task whose run this is, if it is one of several.
  one_of: str = ''


@dataclasses.dataclass(frozen=True)
class Job:
  """A run whose settings are checked and whose data are known.

  Attributes:
    settings: what `train` was given.
    mesh: its devices.
    dataset: that of the settings, packed or not as the padding wants it.
    loaded: the backbone.
    model: what trains.
    optimizer: that of the settings, as the run carries it out.
    batches: `mpt_jax.data.BatchIterator`.
    texts: how each task's text is written, for the bundle.
    examples: split -> task -> its `data.Counts`.
    said: what the tasks' metrics say of themselves, where one selects.
    synthetic: whether the data are.
    data_sets: task -> what others call its data, where they do.
    following: the command to go on with, or ''.
    nearest: what was compared to pick its source, see `picks.Picked.found`.
  """

  settings: Settings
  mesh: Mesh
  dataset: Any
  loaded: Backbone
  model: models.PromptedModel
  optimizer: optimizers.Optimizer
  batches: Any
  texts: Mapping[str, Any]
  examples: Mapping[str, Mapping[str, Any]]
  said: Mapping[str, Mapping[str, Metric]]
  synthetic: bool
  data_sets: Mapping[str, str]
  following: str
  nearest: Mapping[str, Any] | None

  @property
  def task_names(self) -> tuple[str, ...]:
    """The tasks whose losses are told apart, in row order."""
    assert self.settings.tasks is not None
    return self.settings.tasks

  def without_backbone(self) -> 'Job':
    """Forgets the host's copy of a frozen backbone."""
    if self.settings.method.branch is None:
      return self  # Its product is the backbone.
    light = dataclasses.replace(self.loaded, params={})
    return dataclasses.replace(self, loaded=light)


def check(stage: str, method: methods.Method) -> None:
  """Refuses settings that do not belong together."""
  if stage not in STAGES:
    raise InputError(
      f'stage is {stage!r}, expected one of {", ".join(STAGES)}'
      f'{nearest(stage, STAGES)}'
    )
  if stage not in method.rates:
    raise InputError(
      f'stage {stage!r} is none of method {method.name!r}, which has'
      f' {", ".join(method.rates)}'
    )


def read(settings: Settings) -> Job:
  """Reads what a run needs before its folder is touched."""
  dataset, devices, method = settings.dataset, settings.devices, settings.method
  keys.check(settings.logging.key_step, settings.steps, method)
  mesh = partitioning.make_mesh(devices.num_partitions)
  partitioning.check_batch_size(
    dataset.batch_size, mesh, devices.microbatches or 1
  )
  padding = _choose_padding(devices.padding, dataset, mesh)
  dataset = dataclasses.replace(dataset, pack=padding == 'pack')
  from mpt_jax import data

  # Before a large backbone is read in vain.
  provider = data.check_data(
    dataset.mixture_or_task_name,
    dataset.split,
    dataset.module,
    dataset.use_cached,
  )
  if settings.tasks is None:
    names = tuple(task.name for task in provider.tasks)
    settings = dataclasses.replace(settings, tasks=names)
  method.check_can(
    pack=dataset.pack,
    bucket=padding == 'bucket',
    scan=devices.scan_layers,
    mix=len(settings.tasks or ()) > 1,
  )
  loaded = _read_backbone(settings)
  start = settings.start.of_tasks(method, settings.tasks)
  picked = picks.pick(method, start, loaded, settings.tasks or ())
  method = starts.informed(picked.method, picked.source, loaded)
  settings = dataclasses.replace(settings, method=method, start=picked.source)
  model = _make_model(settings, loaded)
  model.check_length(dataset.task_feature_lengths['inputs'])
  optimizer = settings.optimizer.of_run(
    optimizers.method_groups(method, *rates(settings)), settings.steps
  )
  parts = None
  if padding == 'bucket':
    parts = partitioning.part_sizes(
      dataset.batch_size, mesh, devices.microbatches
    )
  batches, examples = _read_examples(settings, dataset, model, mesh, parts)
  synthetic = data.is_synthetic(dataset.mixture_or_task_name)
  if synthetic:
    log.info(
      'SYNTHETIC DATA: scores of this run say nothing about the real %s',
      provider.name,
    )
  return Job(
    settings=settings,
    mesh=mesh,
    dataset=dataset,
    loaded=loaded,
    model=model,
    optimizer=optimizer,
    batches=batches,
    texts=data.task_texts(settings.tasks or (), dataset.split),
    examples=examples,
    said=_check_selection(dataset, settings.evaluation, method),
    synthetic=synthetic,
    data_sets={t.name: t.data_set for t in provider.tasks if t.data_set},
    following=_next_command(settings, dataset, 'test' in provider.splits),
    nearest=picked.found,
  )


def _make_model(settings: Settings, loaded: Backbone) -> models.PromptedModel:
  config = dataclasses.replace(
    settings.devices.configure(loaded.config),
    dropout_rate=settings.loss.dropout_rate,
  )
  return starts.make_model(
    config,
    settings.method,
    len(settings.tasks or ()),
    settings.distillation,
    **settings.loss.of_model(),
    **loaded.special_ids.of_model(),
  )


def _read_backbone(settings: Settings) -> Backbone:
  loaded, devices = settings.backbone.load(), settings.devices
  if devices.scan_layers:
    _check_no_layer_trains(loaded.params, settings.method.trainable)
  if devices.precision == 'bfloat16' and products.widens():
    log.info(
      'PRECISION: operands rounded to bfloat16 are multiplied as float32, which'
      ' this processor does faster'
    )
  return loaded


def _read_examples(
  settings: Settings,
  dataset: Any,
  model: models.PromptedModel,
  mesh: Mesh,
  part_sizes: tuple[int, ...] | None,
) -> tuple[Any, dict[str, dict[str, Any]]]:
  """The batches of a run, and what is known of all splits that it reads."""
  from mpt_jax import data

  rows = settings.method.rows(settings.tasks)
  part, parts = partitioning.data_part(mesh)
  batches = data.get_train_iterator(
    dataset,
    prompt_length=model.prompt_length,
    task_names=rows,
    shard_index=part,
    num_shards=parts,
    part_sizes=part_sizes,
  )
  examples: dict[str, dict[str, Any]] = {}
  if settings.evaluation is not None:
    examples = _examine(dataset, settings.evaluation, model.prompt_length, rows)
  examples[dataset.split] = examples.get(dataset.split, {}) | batches.counts
  return batches, examples


def _examine(
  dataset: Any,
  evaluation: Evaluation,
  prompt_length: int,
  task_names: Sequence[str],
) -> dict[str, dict[str, Any]]:
  """Reads the splits that the run will score: what is wrong ends it here.

  Returns:
    Split -> task -> its `data.Counts`.
  """
  from mpt_jax import data

  found: dict[str, dict[str, Any]] = {}
  for split in dict.fromkeys((evaluation.split, evaluation.test_split)):
    if split is None:
      continue
    examples = evaluation.examples(dataset, split)
    found[split] = data.examine(examples, prompt_length, task_names)
  bare = [n for n, c in found[evaluation.split].items() if not c.labelled]
  macros = {
    'KEEP_BEST': evaluation.keep_best,
    'PATIENCE': evaluation.patience is not None,
    'EVAL_STEPS': evaluation.loss_steps > 0,
  }
  wanted = [name for name, given in macros.items() if given]
  if bare and wanted:
    raise InputError(
      f'{wanted[0]} needs a score of every task, and in EVAL_SPLIT='
      f'{evaluation.split!r} no example of {" and ".join(map(repr, bare))} has'
      ' a label: give another EVAL_SPLIT'
    )
  return found


def _check_selection(
  dataset: Any, evaluation: Evaluation | None, method: methods.Method
) -> dict[str, dict[str, Metric]]:
  """Refuses a selection by a metric that the tasks don't have.

  Args:
    dataset: the data.
    evaluation: what is selected by.
    method: what is learned.

  Returns:
    Task -> what its metric functions say of what they give; empty where
    nothing is selected.
  """
  if evaluation is None or not evaluation.selects:
    return {}
  from mpt_jax import data

  declared: dict[str, tuple[dict[str, Metric], bool]] = {}
  for name in evaluation.examples(dataset).names:
    declared |= data.metrics_of(name, evaluation.split, dataset.module)
  together = method.branch is None or method.together
  selection.check_declared(declared, evaluation.best_metric, together)
  if together:
    log.info(
      'one %s for all tasks: the best %s of %s decides',
      'backbone' if method.branch is None else method.title,
      evaluation.best_metric or 'mean main score',
      ', '.join(declared),
    )
  return {task: said for task, (said, _) in declared.items()}


def _choose_padding(padding: str, dataset: Any, mesh: Mesh) -> str:
  if padding not in PADDINGS:
    raise InputError(
      f'PADDING = {padding!r}, expected one of {", ".join(PADDINGS)}'
      f'{nearest(str(padding), PADDINGS)}'
    )
  if padding != 'auto':
    return padding
  platform = mesh.devices.flat[0].platform
  if dataset.pack:
    chosen = 'pack'
  else:
    # A TPU compiles for long, and likes few shapes.
    chosen = 'max' if platform == 'tpu' else 'bucket'
  log.info('PADDING: %s (platform %s)', chosen, platform)
  return chosen


def _check_no_layer_trains(backbone: PyTree, trainable: Sequence[str]) -> None:
  for name in params_lib.flatten(backbone):
    in_layer = re.match(r'(encoder|decoder)/layers_', name)
    if in_layer and any(re.fullmatch(pattern, name) for pattern in trainable):
      raise InputError(
        'SCAN_LAYERS = True stacks the layers of a frozen backbone, and this'
        f' run trains {name!r}: set SCAN_LAYERS = False'
      )


def rates(settings: Settings) -> tuple[float, float | None]:
  """The peak rates of a run; of u and v None where they have none apart."""
  return settings.optimizer.rates(settings.method, settings.stage)


def record_of(job: Job) -> dict[str, Any]:
  """What the run is, for its folder: settings, backbone and data."""
  settings = job.settings
  method, distillation = settings.method, settings.distillation
  record = {
    'stage': settings.stage,
    'backbone_fingerprint': job.loaded.fingerprint,
    'model': repr(job.model),
    'optimizer': repr(job.optimizer),
    'method': repr(method),
    'prompt_tasks': list(job.task_names),
    'start': repr(settings.start),
    'distillation': repr(distillation),
    'dataset': repr(job.dataset),
    'train_steps': settings.steps,
    'seed': settings.seed,
    'synthetic_data': job.synthetic,
    'package_version': mpt_jax.__version__,
    run_lib.DATA: _digests(job),
  }
  multihost.check_same('run', record)
  record[run_lib.PATHS] = run_lib.real_paths(
    settings.start.prompts,
    settings.start.target_key,
    settings.start.source_keys,
    getattr(getattr(method, 'init', None), 'path', None),
    getattr(distillation, 'teacher_prompts', None),
    getattr(distillation, 'target_prompts', None),
  )
  record[run_lib.BACKBONE] = job.loaded.origin
  record[run_lib.DATA_SETS] = dict(job.data_sets)
  return record


def _digests(job: Job) -> dict[str, dict[str, Any]]:
  """What the run reads: 'task/split' -> how many examples, and their digest."""
  train_split, evaluation = job.dataset.split, job.settings.evaluation
  found = {
    f'{task}/{train_split}': facts
    for task, facts in job.batches.digests().items()
  }
  limit = evaluation.num_examples if evaluation else None
  part = '' if limit is None else f'[:{limit}]'
  for split, tasks in job.examples.items():
    if split != train_split:
      for task, counts in tasks.items():
        found[f'{task}/{split}{part}'] = {
          'examples': counts.examples,
          'digest': counts.digest,
        }
  return found


def _next_command(settings: Settings, dataset: Any, testable: bool) -> str:
  """The command that scores the run's product, or exports what is scored."""
  source, evaluation = settings.backbone.source, settings.evaluation
  if isinstance(source, Backbone):
    return ''  # Steps of a pipeline share a loaded one.
  if source.path is None:
    return ''
  product = os.path.join(settings.model_dir, PROMPTS)
  finetuned = settings.method.branch is None
  if evaluation is not None and evaluation.test_split and not finetuned:
    if 'npy' not in settings.method.formats:
      return ''  # The bundle is all that there is.
    output = os.path.join(settings.model_dir, 'exported')
    return face().following('export', {'PROMPTS': product, 'OUTPUT': output})
  precision = settings.devices.precision
  macros: dict[str, Any] = {
    'INITIAL_CHECKPOINT_PATH': source.path,
    'MODEL': source.config,
    'VOCABULARY': source.vocabulary,
    'PRECISION': None if precision == 'float32' else precision,
    'DTYPE': settings.devices.dtype,
  }
  macros = {
    **{n: v for n, v in macros.items() if isinstance(v, str)},
    'PROMPTS': product,
    'MIXTURE_OR_TASK_NAME': dataset.mixture_or_task_name,
    'MIXTURE_OR_TASK_MODULE': dataset.module,
    'TASK_FEATURE_LENGTHS': dict(dataset.task_feature_lengths),
    'MODEL_DIR': os.path.join(settings.model_dir, 'test'),
  }
  if finetuned:
    product = os.path.join(settings.model_dir, BACKBONE)
    macros |= {'INITIAL_CHECKPOINT_PATH': product, 'PROMPTS': None}
  if not testable:
    macros['EVAL_SPLIT'] = evaluation.split if evaluation else dataset.split
  return face().following('eval', macros)
