"""One run of one stage, from its folder to its product.

`train` takes a run's settings; below, it is opened or resumed, its backbone
and its data are read, its start values made; it is fitted, scored, and leaves
its product.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import logging
import os
import re
import time
from typing import Any

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
from mpt_jax.t5 import products
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
PROMPTS = 'prompts'
BACKBONE = 'backbone'


@dataclasses.dataclass(frozen=True)
class _Settings:
  """What `train` is given; see there."""

  model_dir: str
  stage: str
  backbone: BackboneSource | Backbone
  method: methods.Method
  prompt_tasks: tuple[str, ...]
  start: Source
  dataset: Any
  train_steps: int
  distillation: Distillation | None
  optimizer: optimizers.Optimizer
  evaluation: Evaluation | None
  devices: Devices
  loss: Loss
  logging: Logging
  seed: int


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
    return self.settings.prompt_tasks

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
  backbone: str | Backbone | BackboneSource | None,
  method: methods.Method,
  dataset: Any,
  train_steps: Natural,
  prompt_tasks: Names | None = None,
  stage: str | None = None,
  start: str | Source | None = None,
  distillation: Distillation | None = None,
  optimizer: optimizers.Optimizer = optimizers.Optimizer(),
  evaluation: Evaluation | None = None,
  devices: Devices = Devices(),
  loss: Loss = Loss(),
  logging: Logging = Logging(),
  seed: Natural = 0,
) -> dict[str, dict[str, float]]:
  """Runs one stage up to `train_steps`, resuming what `model_dir` holds.

  Args:
    model_dir: the run's folder: checkpoints, metrics, the chosen examples of
      a few-shot run, and at the end the prompt bundle `prompts/` (or
      `backbone/`) and `results.json`.
    backbone: where it is read from, or its path alone, or a loaded one; None
      draws a fresh one (`finetune` only).
    method: what is learned, and where it enters; see `mpt_jax.methods`.
    dataset: `mpt_jax.data.DatasetConfig` of the training data.
    train_steps: steps of training, counted from 0.
    prompt_tasks: the run's tasks in row order; None is what `dataset` names.
    stage: 'teacher', 'source', 'target' or 'finetune'; None is what method,
      start and teachers make of it.
    start: what another run learned, to start from, or its path; None is the
      method's own start.
    distillation: teachers of a source run; None trains without.
    optimizer: rates, schedule, groups; what it leaves open is the stage's own.
    evaluation: how to evaluate; None never does.
    devices: devices, memory and speed.
    loss: what a step makes small.
    logging: what is kept while it trains.
    seed: seeds start values and dropout.

  Returns:
    {task: {metric: value}} of the final evaluation (empty without one).

  Raises:
    InputError: if something given is wrong; nothing is trained.
    trainer.NonFiniteLossError: if the loss explodes.
  """
  if not isinstance(start, Source):
    start = Source(start)
  if backbone is None or isinstance(backbone, str):
    backbone = BackboneSource(backbone)
  return _one_run(
    _Settings(
      model_dir=require_local(model_dir),
      stage=stage or _stage(method, distillation, start),
      backbone=backbone,
      method=method,
      prompt_tasks=_task_names(method, prompt_tasks, dataset),
      start=start,
      dataset=dataset,
      train_steps=train_steps,
      distillation=distillation,
      optimizer=optimizer,
      evaluation=evaluation,
      devices=devices,
      loss=loss,
      logging=logging,
      seed=seed,
    )
  )


def _one_run(settings: _Settings) -> dict[str, dict[str, float]]:
  """Opens or resumes a run, and carries it to its end."""
  model_dir = settings.model_dir
  request = preemption.StopRequest(
    lambda: preemption.resumption(run_lib.latest_step(model_dir)),
    face().end_at_once(),
  )
  face().at_interrupt(request.say)
  _check(settings)
  job = _read(settings)
  record = _record(job)
  with contextlib.ExitStack() as held:
    finished = multihost.on_first(lambda: _open_run(held, job, record))
    face().keep_log(model_dir)
    if finished is not None:
      log.info('%s is finished; nothing to do', model_dir)
      _tell_results(model_dir, job.following)
      return finished
    run_lib.check_shared(model_dir)
    begin = _begin(job)
    # The host's copies are not needed any more, if nobody else has them.
    job = job.without_backbone()
    hostmemory.keep()
    beside = _beside(job, begin, request)
    held.enter_context(request.listening())
    state = _fit(job, begin, beside)
    begin.checkpointer.close()
    scores = _finish(job, state, beside)
  _tell_results(model_dir, job.following)
  return scores


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


def _task_names(
  method: methods.Method, names: Sequence[str] | str | None, dataset: Any
) -> tuple[str, ...]:
  """The run's tasks in row order."""
  if method.branch is None:
    return ('all',)
  return starts.check_tasks(
    dataset.mixture_or_task_name if names is None else names
  )


def _make_model(settings: _Settings, loaded: Backbone) -> models.PromptedT5:
  config = dataclasses.replace(
    settings.devices.configure(loaded.config),
    dropout_rate=settings.loss.dropout_rate,
  )
  return starts.make_model(
    config,
    settings.method,
    len(settings.prompt_tasks),
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


def _check(settings: _Settings) -> None:
  """Refuses settings that do not belong together."""
  stage, method = settings.stage, settings.method
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
  evaluation = settings.evaluation
  if method.branch is None and evaluation is not None and evaluation.keep_best:
    raise InputError('KEEP_BEST keeps prompts, and stage finetune has none')


def _read(settings: _Settings) -> _Job:
  """Reads what a run needs before its folder is touched."""
  dataset, devices = settings.dataset, settings.devices
  mesh = partitioning.make_mesh(devices.num_partitions)
  partitioning.check_batch_size(
    dataset.batch_size, mesh, devices.microbatches or 1
  )
  padding = _choose_padding(devices.padding, dataset, mesh)
  dataset = dataclasses.replace(dataset, pack=padding == 'pack')
  settings.method.check_can(
    pack=dataset.pack,
    scan=devices.scan_layers,
    mix=len(settings.prompt_tasks) > 1,
  )
  # The data layer is the first to need TensorFlow.
  log.info('reading the tasks (TensorFlow takes a few seconds) …')
  from mpt_jax import data

  # Before a large backbone is read in vain.
  provider = data.check_data(
    dataset.mixture_or_task_name,
    dataset.split,
    dataset.module,
    dataset.use_cached,
  )
  loaded = _read_backbone(settings)
  model = _make_model(settings, loaded)
  optimizer = settings.optimizer.of_run(
    optimizers.method_groups(settings.method, *_rates(settings)),
    settings.train_steps,
  )
  rows = settings.prompt_tasks if settings.method.branch else ()
  part, parts = partitioning.data_part(mesh)
  batches = data.get_train_iterator(
    dataset,
    prompt_length=model.prompt_length,
    task_names=rows,
    shard_index=part,
    num_shards=parts,
    part_sizes=partitioning.part_sizes(
      dataset.batch_size, mesh, devices.microbatches
    )
    if padding == 'bucket'
    else None,
  )
  texts = data.task_texts(settings.prompt_tasks, dataset.split)
  examples: dict[str, dict[str, Any]] = {}
  if settings.evaluation is not None:
    examples = _examine(dataset, settings.evaluation, model.prompt_length, rows)
  examples[dataset.split] = examples.get(dataset.split, {}) | batches.counts
  synthetic = data.is_synthetic(dataset.mixture_or_task_name)
  if synthetic:
    log.info(
      'SYNTHETIC DATA: scores of this run say nothing about the real %s',
      dataset.mixture_or_task_name,
    )
  return _Job(
    settings=settings,
    mesh=mesh,
    dataset=dataset,
    loaded=loaded,
    model=model,
    optimizer=optimizer,
    batches=batches,
    texts=texts,
    examples=examples,
    said=_check_selection(dataset, settings.evaluation),
    synthetic=synthetic,
    following=_next_command(settings, dataset, 'test' in provider.splits),
  )


def _read_backbone(settings: _Settings) -> Backbone:
  source, devices = settings.backbone, settings.devices
  loaded = load_backbone(
    source, settings.seed, fresh=settings.method.branch is None
  )
  if devices.scan_layers:
    _check_no_layer_trains(loaded.params, settings.method.trainable)
  if devices.precision == 'bfloat16' and products.widens():
    log.info(
      'PRECISION: operands rounded to bfloat16 are multiplied as float32, which'
      ' this processor does faster'
    )
  return loaded


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
    'prompt_tasks': list(settings.prompt_tasks),
    'start': repr(settings.start),
    'distillation': repr(distillation),
    'dataset': repr(job.dataset),
    'train_steps': settings.train_steps,
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
  step, steps = int(begin.state.step), settings.train_steps
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
  beside.writer.close()
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
    found[split] = {}
    for name in evaluation.names(dataset):
      found[split] |= data.examine(
        name,
        split,
        dataset.task_feature_lengths,
        prompt_length,
        task_names,
        evaluation.num_examples,
        allow_cut_targets=dataset.allow_cut_targets,
      )
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


def _next_command(settings: _Settings, dataset: Any, testable: bool) -> str:
  """The command that scores the run's product, or exports what is scored."""
  source, evaluation = settings.backbone, settings.evaluation
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
  for name in evaluation.names(dataset):
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
