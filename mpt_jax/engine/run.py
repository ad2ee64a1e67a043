"""One run of one stage, from its folder to its product.

`train` takes a run's settings, or those of several runs that share a backbone.
Below, one is opened or resumed, its backbone and its data are read, its start
values made; it is fitted, scored, and leaves its product.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import logging
import os
import re
import time
from typing import Any

import jax
from jax.sharding import Mesh

import mpt_jax
from mpt_jax import checkpoints, methods, models
from mpt_jax.checkpoints import bundle as bundle_lib
from mpt_jax.checkpoints import files, lock
from mpt_jax.checkpoints import run as run_lib
from mpt_jax.checkpoints.backbone import Backbone
from mpt_jax.engine import (
  hostmemory,
  multihost,
  optimizers,
  partitioning,
  preemption,
  selection,
  starts,
  trainer,
)
from mpt_jax.engine import params as params_lib
from mpt_jax.engine.evaluator import (
  BestPrompts,
  Evaluator,
  judged_at,
  was_evaluated,
)
from mpt_jax.engine.face import face
from mpt_jax.engine.metrics import Metric, from_json
from mpt_jax.engine.outcome import BACKBONE, PROMPTS, Run
from mpt_jax.engine.predictor import load_backbone, vocabulary_digest
from mpt_jax.engine.scores import finite_scores, judgements, mean_score
from mpt_jax.engine.settings import (
  BackboneSource,
  Devices,
  Evaluation,
  Logging,
  Loss,
)
from mpt_jax.engine.starts import Distillation, Source
from mpt_jax.engine.writers import METRICS, Writers, make_writer, tags
from mpt_jax.t5 import native, products
from mpt_jax.types import (
  InputError,
  Names,
  Natural,
  PyTree,
  nearest,
  require_local,
)

log = logging.getLogger(__name__)

STAGES = ('teacher', 'source', 'target', 'finetune')
PADDINGS = ('auto', 'max', 'bucket', 'pack')
# S and T where a user gives none; the whole backbone has no prompt in S.
_LENGTHS = {'inputs': 356, 'targets': 128}
_LENGTHS_WITHOUT_PROMPT = {'inputs': 256, 'targets': 128}


@dataclasses.dataclass
class _Backbone:
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
class _Settings:
  """What `train` is given; see there."""

  model_dir: str
  stage: str
  backbone: _Backbone
  method: methods.Method
  # In row order; None until the data say it.
  tasks: tuple[str, ...] | None
  start: Source
  dataset: Any
  steps: int
  distillation: Distillation | None
  optimizer: optimizers.Optimizer
  evaluation: Evaluation | None
  devices: Devices
  loss: Loss
  logging: Logging
  seed: int
  # The task whose run this is, if it is one of several.
  one_of: str = ''


@dataclasses.dataclass(frozen=True)
class _Job:
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
    following: the command to go on with, or ''.
  """

  settings: _Settings
  mesh: Mesh
  dataset: Any
  loaded: Backbone
  model: models.PromptedT5
  optimizer: optimizers.Optimizer
  batches: Any
  texts: Mapping[str, Any]
  examples: Mapping[str, Mapping[str, Any]]
  said: Mapping[str, Mapping[str, Metric]]
  synthetic: bool
  following: str

  @property
  def task_names(self) -> tuple[str, ...]:
    """The tasks whose losses are told apart, in row order."""
    assert self.settings.tasks is not None
    return self.settings.tasks

  @property
  def rows(self) -> tuple[str, ...]:
    """The tasks whose examples are told apart in a batch."""
    return self.task_names if self.settings.method.branch else ()

  def without_backbone(self) -> '_Job':
    """Forgets the host's copy of a frozen backbone."""
    if self.settings.method.branch is None:
      return self  # Its product is the backbone.
    light = dataclasses.replace(self.loaded, params={})
    return dataclasses.replace(self, loaded=light)


@dataclasses.dataclass(frozen=True)
class _Begin:
  """Where a run begins, or goes on.

  Attributes:
    state: the train state.
    frozen: what does not train, on the devices.
    window: the metrics summed since they were last written; None is none.
    checkpointer: saves the state.
  """

  state: trainer.TrainState
  frozen: PyTree
  window: Mapping[str, Any] | None
  checkpointer: run_lib.RunCheckpointer


@dataclasses.dataclass(frozen=True)
class _Beside:
  """What looks on while a run trains.

  Attributes:
    writer: takes the metrics.
    evaluate: scores it, or None.
    best: keeps each task's best prompts, or None.
    request: whether someone has asked to stop.
  """

  writer: Writers
  evaluate: Evaluator | None
  best: BestPrompts | None
  request: preemption.StopRequest


def train(
  *,
  model_dir: str,
  backbone: str | BackboneSource | Backbone | None,
  method: methods.Method,
  tasks: Names | Mapping[str, Any] | None = None,
  dataset: Any = None,
  steps: Natural = 30000,
  stage: str | None = None,
  start: str | Source | None = None,
  each_task: bool = False,
  distillation: Distillation | None = None,
  optimizer: optimizers.Optimizer = optimizers.Optimizer(),
  evaluation: Evaluation | None = Evaluation(),
  devices: Devices = Devices(),
  loss: Loss = Loss(),
  logging: Logging = Logging(),
  seed: Natural = 0,
) -> Run | dict[str, Run]:
  """Trains up to a step, resuming what `model_dir` holds.

  Several tasks are one run on all of them, or with `each_task` a run each, in
  `model_dir/<task>`: those that are finished are skipped, and what goes wrong
  in one does not stop the others. A teacher's stage always has a run each.

  Args:
    model_dir: the run's folder: checkpoints, metrics, the chosen examples of
      a few-shot run, and at the end the prompt bundle `prompts/` (or
      `backbone/`) and `results.json`.
    backbone: where it is read, or its path alone, or a loaded one; None draws
      a fresh one (`finetune` only).
    method: what is learned, and where it enters; see `mpt_jax.methods`.
    tasks: what to train on: a registered task or mixture, several tasks, which
      are drawn evenly, or {name: `mpt_jax.Task`}. Where `dataset` says it, the
      run's tasks in row order; None is what it names.
    dataset: `mpt_jax.data.DatasetConfig` of the training data, or those of its
      fields that differ from the gin files' ({'batch_size': 16}).
    steps: the last step.
    stage: 'teacher', 'source', 'target' or 'finetune'; None is what method,
      start and teachers make of it.
    start: what another run learned, to start from, or its path; None is the
      method's own start.
    each_task: whether each task, also of a mixture, has a run of its own.
    distillation: teachers of a source run; None trains without.
    optimizer: rates, schedule, groups; what it leaves open is the stage's own.
    evaluation: how to evaluate; None never does.
    devices: devices, memory and speed.
    loss: what a step makes small.
    logging: what is kept while it trains.
    seed: seeds start values and dropout, and the data where `dataset` does not.

  Returns:
    What it made; of a run for each task {task: what it made}.

  Raises:
    InputError: if something given is wrong, or of several runs some failed.
    trainer.NonFiniteLossError: if the loss explodes.
  """
  if not isinstance(start, Source):
    start = Source(start)
  stage = stage or _stage(method, distillation, start)
  _check(stage, method, evaluation)
  native.keep_compiled()
  if dataset is None or isinstance(dataset, Mapping):
    lengths = _LENGTHS if method.branch else _LENGTHS_WITHOUT_PROMPT
    dataset = _dataset(tasks, stage, lengths, seed, dataset or {})
    tasks = None
  names = dataset.mixture_or_task_name
  each = each_task or (
    stage == 'teacher' and not method.per_task and not isinstance(names, str)
  )
  if not isinstance(backbone, BackboneSource | Backbone):
    backbone = BackboneSource(backbone)
  settings = _Settings(
    model_dir=require_local(model_dir),
    stage=stage,
    backbone=_Backbone(
      backbone, each or face().interactive, method.branch is None, seed
    ),
    method=method,
    tasks=_task_names(method, tasks),
    start=start,
    dataset=dataset,
    steps=steps,
    distillation=distillation,
    optimizer=optimizer,
    evaluation=evaluation,
    devices=devices,
    loss=loss,
    logging=logging,
    seed=seed,
  )
  return _each(settings) if each else _one(settings)


def _dataset(
  tasks: Any,
  stage: str,
  lengths: Mapping[str, int],
  seed: int,
  changed: Mapping[str, Any],
) -> Any:
  """The data of a run as the gin files have them, but for what is given."""
  from mpt_jax import data
  from mpt_jax.data import memory

  if tasks is None and 'mixture_or_task_name' not in changed:
    raise InputError("no tasks are given: tasks='rte', for example")
  fields = [f.name for f in dataclasses.fields(data.DatasetConfig)]
  for name in changed:
    if name not in fields:
      raise InputError(
        f'dataset has {name!r}, which is no field of DatasetConfig'
        f'{nearest(name, fields)}'
      )
  module: str | None = 'tasks'
  if isinstance(tasks, Mapping):
    memory.register(tasks)
    # The registry is not needed, nor SeqIO.
    module, tasks = None, list(tasks)
    tasks = tasks if len(tasks) > 1 else tasks[0]
  return data.DatasetConfig(
    **{
      'mixture_or_task_name': tasks,
      'task_feature_lengths': lengths,
      'batch_size': 32,
      'module': module,
      'seed': seed,
      'task_sampling': 'stochastic' if stage == 'source' else 'proportional',
      **changed,
    }
  )


def _one(settings: _Settings) -> Run:
  """Opens or resumes a run, and carries it to its end."""
  model_dir = settings.model_dir
  request = preemption.StopRequest(
    lambda: _resumption(settings), face().end_at_once()
  )
  face().at_interrupt(request.say)
  job = _read(settings)
  record = _record(job)
  with contextlib.ExitStack() as held:
    scores = multihost.on_first(lambda: _open_run(held, job, record))
    face().keep_log(model_dir)
    if scores is not None:
      log.info('%s is finished; nothing to do', model_dir)
      if not settings.one_of:
        _tell_results(model_dir, job.following)
      return Run(model_dir, scores, settings.backbone.load)
    run_lib.check_shared(model_dir)
    begin = _begin(job)
    # The host's copies are not needed any more, if nobody else has them.
    job = job.without_backbone()
    hostmemory.keep()
    beside = _beside(job, begin, request)
    held.callback(beside.writer.close)
    held.enter_context(request.listening())
    state = _fit(job, begin, beside)
    begin.checkpointer.close()
    scores = _finish(job, state, beside)
  _tell_results(model_dir, job.following)
  return Run(model_dir, scores, settings.backbone.load)


def _each(settings: _Settings) -> dict[str, Run]:
  """Runs each task by itself; one that fails does not stop the others.

  Raises:
    InputError: at the end, if some failed.
  """
  dataset = settings.dataset
  names = dataset.mixture_or_task_name
  from mpt_jax import data

  tasks: dict[str, None] = {}
  for name in [names] if isinstance(names, str) else names:
    provider = data.check_data(
      name, dataset.split, dataset.module, dataset.use_cached
    )
    tasks |= dict.fromkeys(task.name for task in provider.tasks)
  face().keep_log(settings.model_dir)
  runs: dict[str, Run] = {}
  failed: dict[str, str] = {}
  for number, task in enumerate(tasks, 1):
    log.info('run %d of %d: %s', number, len(tasks), task)
    try:
      runs[task] = _one(_of_task(settings, task))
    except InputError as e:
      # Of several processes all must fail together.
      alike = isinstance(e, trainer.NonFiniteLossError)
      if jax.process_count() > 1 and not alike:
        raise
      failed[task] = str(e).splitlines()[0]
      log.error('%s failed: %s', task, failed[task])
  _tell_table(tasks, runs, failed)
  if failed:
    raise InputError(
      f'{len(failed)} of {len(tasks)} runs failed',
      [f'{task}: {reason}' for task, reason in failed.items()],
    )
  return runs


def _of_task(settings: _Settings, task: str) -> _Settings:
  """The settings of one of several runs."""
  return dataclasses.replace(
    settings,
    model_dir=os.path.join(settings.model_dir, task),
    tasks=_task_names(settings.method, task),
    dataset=dataclasses.replace(settings.dataset, mixture_or_task_name=task),
    one_of=task,
  )


def _resumption(settings: _Settings) -> str:
  """What a repetition of the command would do now."""
  step = run_lib.latest_step(settings.model_dir)
  if settings.one_of:
    return (
      f'the same command goes on at {settings.one_of!r}, from step {step or 0}'
    )
  return preemption.resumption(step)


# ---------------------------------------------------------------------------
# What a run learns.


def _stage(
  method: methods.Method, distillation: Distillation | None, start: Source
) -> str:
  """The stage of a run that names none."""
  if distillation is not None:
    return 'source'
  if method.per_task:
    return 'source' if start.prompts is None else 'target'
  return next(iter(method.rates))


def _task_names(method: methods.Method, names: Any) -> tuple[str, ...] | None:
  """The run's tasks in row order; None if the data say them."""
  if method.branch is None:
    return ('all',)
  return None if names is None else starts.check_tasks(names)


def _make_model(settings: _Settings, loaded: Backbone) -> models.PromptedT5:
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


def _start_values(job: _Job) -> dict[str, Any]:
  """What is beside the backbone, at its start: given prompts, or drawn ones."""
  settings, distillation = job.settings, job.settings.distillation
  params = starts.start_values(
    job.model, job.loaded, settings.start, settings.stage, settings.seed
  )
  if distillation is not None:
    params['teacher_prompts'] = {
      'prompt_table': starts.teacher_table(
        distillation.teacher_prompts,
        job.task_names,
        job.model.prompt_length,
        job.loaded,
      )
    }
  return params


def _rates(settings: _Settings) -> tuple[float, float | None]:
  return settings.optimizer.rates(settings.method, settings.stage)


def _make_bundle(
  job: _Job, step: int, arrays: Mapping[str, Any], scores: Mapping[str, Any]
) -> bundle_lib.PromptBundle:
  """The product of a run that learns no backbone."""
  method = job.settings.method
  return bundle_lib.PromptBundle(
    method=method.name,
    stage=job.settings.stage,
    task_names=job.task_names,
    arrays=params_lib.flatten(arrays),
    backbone_name=job.loaded.name,
    backbone_fingerprint=job.loaded.fingerprint,
    vocabulary_digest=vocabulary_digest(job.loaded),
    step=step,
    metrics=scores,
    package_version=mpt_jax.__version__,
    texts=job.texts,
    settings=method.settings,
  )


# ---------------------------------------------------------------------------
# What a run reads.


def _check(
  stage: str, method: methods.Method, evaluation: Evaluation | None
) -> None:
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
  if method.branch is None and evaluation is not None and evaluation.keep_best:
    raise InputError('KEEP_BEST keeps prompts, and stage finetune has none')


def _read(settings: _Settings) -> _Job:
  """Reads what a run needs before its folder is touched."""
  dataset, devices, method = settings.dataset, settings.devices, settings.method
  mesh = partitioning.make_mesh(devices.num_partitions)
  partitioning.check_batch_size(
    dataset.batch_size, mesh, devices.microbatches or 1
  )
  padding = _choose_padding(devices.padding, dataset, mesh)
  dataset = dataclasses.replace(dataset, pack=padding == 'pack')
  method.check_can(pack=dataset.pack, scan=devices.scan_layers)
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
  method.check_can(mix=len(settings.tasks or ()) > 1)
  loaded = _read_backbone(settings)
  model = _make_model(settings, loaded)
  optimizer = settings.optimizer.of_run(
    optimizers.method_groups(method, *_rates(settings)), settings.steps
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
  return _Job(
    settings=settings,
    mesh=mesh,
    dataset=dataset,
    loaded=loaded,
    model=model,
    optimizer=optimizer,
    batches=batches,
    texts=data.task_texts(settings.tasks or (), dataset.split),
    examples=examples,
    said=_check_selection(dataset, settings.evaluation),
    synthetic=synthetic,
    following=_next_command(settings, dataset, 'test' in provider.splits),
  )


def _read_backbone(settings: _Settings) -> Backbone:
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
  settings: _Settings,
  dataset: Any,
  model: models.PromptedT5,
  mesh: Mesh,
  part_sizes: tuple[int, ...] | None,
) -> tuple[Any, dict[str, dict[str, Any]]]:
  """The batches of a run, and what is known of all splits that it reads."""
  from mpt_jax import data

  rows = settings.tasks or () if settings.method.branch else ()
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


def _record(job: _Job) -> dict[str, Any]:
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
    getattr(getattr(method, 'init', None), 'path', None),
    distillation and distillation.teacher_prompts,
  )
  return record


# ---------------------------------------------------------------------------
# Its course.


def _begin(job: _Job) -> _Begin:
  """Resumes MODEL_DIR, or starts from what `_start_values` gives."""
  settings, devices = job.settings, job.settings.devices
  params = {**job.loaded.params, **_start_values(job)}
  trained, frozen = params_lib.split(params, settings.method.trainable)
  for line in params_lib.describe(trained, frozen):
    log.info(line)
  _check_count(trained, job.model)
  state = trainer.make_state(
    job.model,
    job.optimizer,
    trained,
    settings.seed,
    job.mesh,
    devices.shard_backbone,
  )
  checkpointer = run_lib.RunCheckpointer(
    settings.model_dir, max_to_keep=settings.logging.max_checkpoints
  )
  restored = checkpointer.restore_newest(state)
  window = None
  if restored is not None:
    state, position = restored
    job.batches.set_state(position)
    window = position.get('window')
    log.info('resumed %s at step %d', settings.model_dir, int(state.step))
  frozen = partitioning.place_backbone(
    frozen,
    job.mesh,
    dtype=job.model.config.matrix_dtype,
    scan_layers=devices.scan_layers,
    shard_backbone=devices.shard_backbone,
  )
  return _Begin(state, frozen, window, checkpointer)


def _beside(
  job: _Job, begin: _Begin, request: preemption.StopRequest
) -> _Beside:
  """Makes the evaluator and the writers of a run at some step."""
  settings, step = job.settings, int(begin.state.step)
  evaluation = settings.evaluation
  evaluate = best = None
  if evaluation is not None:
    evaluate = Evaluator(
      job.model,
      begin.frozen,
      job.mesh,
      job.dataset,
      evaluation,
      job.task_names,
    )
    evaluate.check_at_each_batch(request)
  group = functools.partial(_tags, job.optimizer, evaluate)
  writer = make_writer(
    settings.model_dir, step, group if settings.logging.tensorboard else None
  )
  if evaluate is not None and evaluation is not None and evaluation.selects:
    best = BestPrompts.create(
      settings.model_dir,
      evaluation,
      job.said,
      step,
      functools.partial(_make_bundle, job),
    )
    evaluate.follow(best.update)
  return _Beside(writer, evaluate, best, request)


def _tags(
  optimizer: optimizers.Optimizer,
  evaluate: Evaluator | None,
  scalars: Mapping[str, float],
) -> dict[str, float]:
  """Groups metrics for TensorBoard, by what this run knows of them."""
  judged = evaluate.latest_judged if evaluate else {}
  said = {task: found.metrics for task, found in judged.items()}
  fixed = optimizer.schedule == 'constant' and not optimizer.warmup_steps
  return tags(scalars, said, fixed)


def _fit(job: _Job, begin: _Begin, beside: _Beside) -> trainer.TrainState:
  """Trains up to the last step, or until nothing gets better."""
  settings, evaluation = job.settings, job.settings.evaluation
  started = time.monotonic()
  step, steps = int(begin.state.step), settings.steps
  period = evaluation.period if evaluation else 0
  if beside.evaluate is not None and period and 0 < step < steps:
    # Its checkpoint came before it was stopped, or killed.
    if not step % period and not was_evaluated(settings.model_dir, step):
      scalars = beside.evaluate(step, begin.state.params)
      beside.writer.write_scalars(step, scalars)
  with _advising(settings):
    state = trainer.fit(
      trainer.Training(
        job.model,
        job.optimizer,
        job.mesh,
        job.task_names,
        settings.devices.microbatches or 1,
        job.dataset.task_feature_lengths['targets'],
      ),
      begin.state,
      begin.frozen,
      job.batches,
      steps,
      trainer.Periods(
        settings.logging.log_period,
        settings.logging.checkpoint_period,
        period or None,
      ),
      trainer.Hooks(
        checkpointer=begin.checkpointer,
        evaluate=beside.evaluate,
        writer=beside.writer,
        finished=lambda: (
          beside.best is not None and beside.best.selection.finished
        ),
        request=beside.request,
      ),
      begin.window,
    )
  last_step = int(state.step)
  log.info(
    'trained to step %d in %s%s',
    last_step,
    trainer.format_seconds(time.monotonic() - started),
    '' if last_step == steps else ': no better score any more',
  )
  taken = job.batches.taken
  if len(taken) > 1:
    counts = ', '.join(f'{task} {n:,}' for task, n in taken.items())
    log.info('examples drawn: %s', counts)
  return state


def _finish(
  job: _Job, state: trainer.TrainState, beside: _Beside
) -> dict[str, dict[str, float]]:
  """Scores what was trained and writes the run's product and its results."""
  settings, evaluation = job.settings, job.settings.evaluation
  evaluate, best, step = beside.evaluate, beside.best, int(state.step)
  scores: dict[str, dict[str, float]] = {}
  results: dict[str, Any] = {}
  if evaluate is not None:
    if evaluate.latest_step != step:
      beside.writer.write_scalars(step, evaluate(step, state.params))
    scores = dict(evaluate.latest_scores)
    results |= judgements(evaluate.latest_judged)
  product = partitioning.to_host(state.params)
  bundle = None
  branch = settings.method.branch
  if branch is not None:
    bundle = _make_bundle(job, step, product[branch], scores)
    if best is not None and best.keep:
      bundle = best.product()
      scores = dict(bundle.metrics)
      results['best_steps'] = {
        task: at for task, (at, *_) in best.selection.best.items()
      }
      path = os.path.join(settings.model_dir, METRICS)
      results |= multihost.on_first(
        lambda: judged_at(path, results['best_steps'], results)
      )
  if evaluate is not None and evaluation is not None and evaluation.test_split:
    split = results['test_split'] = evaluation.test_split
    tested, judged = evaluate.test(bundle, state.params, split)
    results['test_scores'] = finite_scores(tested)
    results |= judgements(judged, 'test_')
  results = {
    'scores': finite_scores(scores),
    'step': step,
    'split': evaluation.split if evaluation else None,
    'synthetic_data': job.synthetic,
    'examples': {
      split: {task: found.as_json() for task, found in tasks.items()}
      for split, tasks in job.examples.items()
    },
    **results,
  }
  multihost.on_first(lambda: _write_product(job, bundle, product, results))
  return scores


def _write_product(
  job: _Job,
  bundle: bundle_lib.PromptBundle | None,
  product: PyTree,
  results: Mapping[str, Any],
) -> None:
  """Writes the bundle, or the backbone, and then what makes it finished."""
  model_dir = job.settings.model_dir
  if bundle is None:
    _save_backbone(model_dir, job.loaded, product)
  else:
    bundle.save(os.path.join(model_dir, PROMPTS))
  content = files.json_bytes(results)
  files.write_file(os.path.join(model_dir, run_lib.RESULTS), content)


# ---------------------------------------------------------------------------


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


def _tell_results(model_dir: str, following: str) -> None:
  """Says what a finished run has made, how good it is, and what comes next."""
  results = files.read_json(os.path.join(model_dir, run_lib.RESULTS))
  for prefix in ('', 'test_'):
    split, scores = (results.get(f'{prefix}{k}') for k in ('split', 'scores'))
    if split and scores:
      said = {
        task: from_json(content)
        for task, content in results.get(f'{prefix}metrics', {}).items()
      }
      log.info('%s: %s', split, mean_score(scores, said))
  if best := results.get('best_steps'):
    steps = ', '.join(f'{task} {step}' for task, step in best.items())
    log.info('best step: %s', steps)
  for name in (PROMPTS, BACKBONE):
    if os.path.isdir(path := os.path.join(model_dir, name)):
      log.info('product: %s', path)
  if following:
    log.info('next: %s', following)


def _tell_table(
  tasks: Collection[str], runs: Mapping[str, Run], failed: Mapping[str, str]
) -> None:
  """Says what became of several runs, a line each."""
  width = max(map(len, tasks))
  for task in tasks:
    if task in failed:
      told = f'FAILED: {failed[task]}'
    else:
      run = runs[task]
      score = mean_score(run.scores, {}) if run.scores else 'not evaluated'
      told = f'{score}  {run.model_dir}'
    log.info('%s  %s', task.ljust(width), told)


def _next_command(settings: _Settings, dataset: Any, testable: bool) -> str:
  """The command that scores the run's product, or exports what is scored."""
  source, evaluation = settings.backbone.source, settings.evaluation
  if isinstance(source, Backbone):
    return ''  # Steps of a pipeline share a loaded one.
  if source.path is None:
    return ''
  product = os.path.join(settings.model_dir, PROMPTS)
  finetuned = settings.method.branch is None
  if evaluation is not None and evaluation.test_split and not finetuned:
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


@contextlib.contextmanager
def _advising(settings: _Settings) -> Iterator[None]:
  """Says, of a loss that is not finite, with which command it will be."""
  try:
    yield
  except trainer.NonFiniteLossError:
    number = 2
    while os.path.lexists(f'{settings.model_dir}-{number}'):
      number += 1
    rate, task_rate = _rates(settings)
    changed: dict[str, Any] = {
      'model_dir': f'{settings.model_dir}-{number}',
      'learning_rate': _lower(rate),
      'clip_norm': 1.0,
    }
    if settings.one_of:
      changed |= {'mixture_or_task_name': settings.one_of, 'each_task': False}
    if task_rate is not None:
      changed['task_learning_rate'] = _lower(task_rate)
    command = face().again(changed)
    if command:
      log.info('for example: %s', command)
    raise


def _lower(rate: float) -> float:
  """A tenth of a learning rate; of one beyond all measure, a usual one."""
  return float(f'{min(rate / 10, 0.1):.2g}')


def _open_run(
  held: contextlib.ExitStack, job: _Job, record: Mapping[str, Any]
) -> dict[str, dict[str, float]] | None:
  """Takes the run's folder; returns the scores of a finished run."""
  model_dir = job.settings.model_dir
  held.enter_context(lock.hold(model_dir))
  existed = run_lib.check_run_config(model_dir, record, face().name_of)
  results = os.path.join(model_dir, run_lib.RESULTS)
  if existed and os.path.exists(results):
    return files.read_json(results)['scores']
  face().write_config(model_dir)
  if job.batches.chosen:
    _write_few_shot(model_dir, job.dataset, job.batches.chosen)
  return None


def _digests(job: _Job) -> dict[str, dict[str, Any]]:
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


def _check_selection(
  dataset: Any, evaluation: Evaluation | None
) -> dict[str, dict[str, Metric]]:
  """Refuses a selection by a metric that the tasks don't have.

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
  selection.check_declared(declared, evaluation.best_metric)
  return {task: said for task, (said, _) in declared.items()}


def _check_count(trained: PyTree, model: models.PromptedT5) -> None:
  """The printed count must be the closed formula P*D + K*(P+D)*R."""
  method = model.method
  if method is None or method.branch is None:
    return
  expected = method.num_parameters(model.config, model.num_tasks)
  got = params_lib.count(trained)
  if got != expected:
    raise ValueError(f'{got} parameters train, the formula says {expected}')


def _check_no_layer_trains(backbone: PyTree, trainable: Sequence[str]) -> None:
  for name in params_lib.flatten(backbone):
    in_layer = re.match(r'(encoder|decoder)/layers_', name)
    if in_layer and any(re.fullmatch(pattern, name) for pattern in trainable):
      raise InputError(
        'SCAN_LAYERS = True stacks the layers of a frozen backbone, and this'
        f' run trains {name!r}: set SCAN_LAYERS = False'
      )


def _save_backbone(model_dir: str, backbone: Backbone, trained: PyTree) -> None:
  """Saves the backbone with what was trained in the place of what it had."""
  checkpoints.save_huggingface(
    os.path.join(model_dir, BACKBONE),
    backbone.config,
    params_lib.merge(backbone.params, trained),
    vocabulary_file=backbone.vocabulary_file,
    special_ids=backbone.special_ids,
  )


def _write_few_shot(
  model_dir: str, dataset: Any, chosen: Mapping[str, Any]
) -> None:
  """Writes which examples a few-shot run trains on: `few_shot.json`."""
  facts = {
    'split': dataset.split,
    'num_shots': dataset.num_shots,
    'per_class': dataset.shots_per_class,
    'seed': dataset.seed,
    'examples': {task: choice.examples() for task, choice in chosen.items()},
  }
  for task, choice in chosen.items():
    log.info('few-shot: %d examples of %s', len(choice.positions), task)
  files.write_file(
    os.path.join(model_dir, 'few_shot.json'), files.json_bytes(facts)
  )
