"""One run of one stage, from its folder to its product.

`train` takes a run's settings, or those of several runs that share a backbone.
Below, one is opened or resumed, its backbone and its data are read, its start
values made; it is fitted, scored, and leaves its product.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import json
import logging
import os
import time
from typing import Any

import jax

import mpt_jax
from mpt_jax import methods, models
from mpt_jax.backbones import kind_of
from mpt_jax.checkpoints import bundle as bundle_lib
from mpt_jax.checkpoints import card, files, lock, stores
from mpt_jax.checkpoints import run as run_lib
from mpt_jax.checkpoints.backbone import Backbone
from mpt_jax.engine import (
  compilation,
  hostmemory,
  keys,
  multihost,
  optimizers,
  partitioning,
  picks,
  preemption,
  starts,
  trainer,
)
from mpt_jax.engine import job as job_lib
from mpt_jax.engine import params as params_lib
from mpt_jax.engine.evaluator import (
  Best,
  BestBackbone,
  BestPrompts,
  Evaluator,
  judged_at,
  was_evaluated,
)
from mpt_jax.engine.face import face
from mpt_jax.engine.job import Job, Settings, SharedBackbone, check, rates, read
from mpt_jax.engine.metrics import from_json
from mpt_jax.engine.outcome import BACKBONE, PROMPTS, Run
from mpt_jax.engine.predictor import vocabulary_digest
from mpt_jax.engine.scores import finite_scores, judgements, mean_score
from mpt_jax.engine.settings import (
  BackboneSource,
  Devices,
  Evaluation,
  Logging,
  Loss,
)
from mpt_jax.engine.starts import Distance, Distillation, Lesson, Source
from mpt_jax.engine.writers import METRICS, Writers, make_writer, tags
from mpt_jax.types import (
  InputError,
  Names,
  Natural,
  PyTree,
  is_remote,
  nearest,
)

log = logging.getLogger(__name__)

# S and T where a user gives none; the whole backbone has no prompt in S.
_LENGTHS = {'inputs': 356, 'targets': 128}
_LENGTHS_OF_ALL = {'inputs': 256, 'targets': 128}


@dataclasses.dataclass(frozen=True)
class _Begin:
  """Where a run begins, or goes on.

  Attributes:
    state: the train state.
    frozen: what does not train, on the devices.
    fixed: what of the method does not, on the host.
    window: the metrics summed since they were last written; None is none.
    checkpointer: saves the state.
    keeper: writes its key.
  """

  state: trainer.TrainState
  frozen: PyTree
  fixed: Mapping[str, Any]
  window: Mapping[str, Any] | None
  checkpointer: run_lib.RunCheckpointer
  keeper: keys.Keeper


@dataclasses.dataclass(frozen=True)
class _Beside:
  """What looks on while a run trains.

  Attributes:
    writer: takes the metrics.
    evaluate: scores it, or None.
    best: keeps the best of what is trained, or None.
    request: whether someone has asked to stop.
    needs: bytes that the largest compiled step needs, the latest last.
  """

  writer: Writers
  evaluate: Evaluator | None
  best: Best | None
  request: preemption.StopRequest
  needs: list[int]


def train(
  *,
  model_dir: str,
  backbone: str | BackboneSource | Backbone | None,
  method: methods.Method,
  tasks: Names | Mapping[str, Any] | None = None,
  dataset: Any = None,
  steps: Natural = 30000,
  stage: str | None = None,
  start: str | Sequence[str] | Mapping[str, str] | Source | None = None,
  each_task: bool = False,
  distillation: Lesson | None = None,
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
      `backbone/`) and `results.json`; see docs/runs.md.
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
    start: what another run learned, to start from, or its path (or those of
      several); None is the method's own start.
    each_task: whether each task, also of a mixture, has a run of its own.
    distillation: teachers of a source run, or the prompts that a run's own
      shall be near to; None trains without.
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
  if face().interactive:  # Commands have done so.
    hostmemory.prepare()
    compilation.use_cache()
  if not isinstance(start, Source):
    start = Source(start)
  stage = stage or _stage(method, distillation, start)
  check(stage, method)
  if dataset is None or isinstance(dataset, Mapping):
    dataset = _dataset(tasks, method, stage, seed, dataset or {})
    if isinstance(tasks, Mapping):
      evaluation = _evaluation_of(tasks, evaluation)
    tasks = None
  names = dataset.mixture_or_task_name
  each = each_task or (
    stage == 'teacher' and not method.per_task and not isinstance(names, str)
  )
  if not isinstance(backbone, BackboneSource | Backbone):
    backbone = BackboneSource(backbone)
  settings = Settings(
    model_dir=_folder(model_dir),
    stage=stage,
    backbone=SharedBackbone(
      backbone, each or face().interactive, method.branch is None, seed
    ),
    method=method,
    tasks=_task_names(method, tasks),
    start=start,
    dataset=dataset,
    steps=steps,
    distillation=_lesson(distillation),
    optimizer=optimizer,
    evaluation=evaluation,
    devices=devices,
    loss=loss,
    logging=logging,
    seed=seed,
  )
  return _each(settings) if each else _one(settings)


def _folder(model_dir: str) -> str:
  """MODEL_DIR, where all processes can write to it."""
  model_dir = stores.place(model_dir)
  if is_remote(model_dir) and jax.process_count() > 1:
    raise InputError(
      f'MODEL_DIR {model_dir}: several processes need a folder that all of them'
      ' see: mount the bucket (gcsfuse, mountpoint-s3) and give its path'
    )
  return model_dir


def _dataset(
  tasks: Any,
  method: methods.Method,
  stage: str,
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
      'task_feature_lengths': _LENGTHS if method.branch else _LENGTHS_OF_ALL,
      'batch_size': 32,
      'module': module,
      'seed': seed,
      'task_sampling': 'stochastic' if stage == 'source' else 'proportional',
      **changed,
    }
  )


def _evaluation_of(
  tasks: Mapping[str, Any], evaluation: Evaluation | None
) -> Evaluation | None:
  """No evaluation of rows that have no split for it, which is said."""
  if evaluation is not None and not any(
    evaluation.split in task.splits for task in tasks.values()
  ):
    log.warning(
      'no %s rows in %s: the run is not scored',
      evaluation.split,
      ', '.join(tasks),
    )
    return None
  return evaluation


def _one(settings: Settings) -> Run:
  """Opens or resumes a run, and carries it to its end."""
  model_dir = settings.model_dir
  request = preemption.StopRequest(
    lambda: _resumption(settings), face().end_at_once()
  )
  face().at_interrupt(request.say)
  job = read(settings)
  record = job_lib.record_of(job)
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
    scores = _finish(job, begin, state, beside)
  _tell_results(model_dir, job.following)
  return Run(model_dir, scores, settings.backbone.load, beside.needs[-1])


def _each(settings: Settings) -> dict[str, Run]:
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
  settings.backbone.load()  # What is wrong with it is wrong for all.
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


def _of_task(settings: Settings, task: str) -> Settings:
  """The settings of one of several runs."""
  return dataclasses.replace(
    settings,
    model_dir=os.path.join(settings.model_dir, task),
    tasks=_task_names(settings.method, task),
    dataset=dataclasses.replace(settings.dataset, mixture_or_task_name=task),
    one_of=task,
  )


def _resumption(settings: Settings) -> str:
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
  method: methods.Method, distillation: Lesson | None, start: Source
) -> str:
  """The stage of a run that names none."""
  if isinstance(distillation, Distillation):
    return 'source'
  if method.per_task:
    return 'source' if start.prompts is None else 'target'
  return next(iter(method.rates))


def _lesson(given: Lesson | None) -> Lesson | None:
  """What teaches a run; a distance to nothing is None."""
  if isinstance(given, Distance) and given.target_prompts is None:
    return None
  return given


def _task_names(method: methods.Method, names: Any) -> tuple[str, ...] | None:
  """The run's tasks in row order; None if the data say them."""
  if method.branch is None:
    return ('all',)
  return None if names is None else starts.check_tasks(names)


def _start_values(job: Job) -> dict[str, Any]:
  """What is beside the backbone, at its start: given prompts, or drawn ones."""
  settings, distillation = job.settings, job.settings.distillation
  params = starts.start_values(
    job.model, job.loaded, settings.start, settings.stage, settings.seed
  )
  if distillation is not None:
    given = {'TEACHER_PROMPTS': getattr(distillation, 'teacher_prompts', None)}
    if isinstance(distillation, Distance):
      given = {'TARGET_PROMPTS': distillation.target_prompts}
    [(macro, prompts)] = given.items()
    params['teacher_prompts'] = {
      'prompt_table': starts.teacher_table(
        prompts,
        job.task_names,
        job.model.prompt_length,
        job.loaded,
        macro,
      )
    }
  return params


def _make_bundle(
  job: Job,
  fixed: Mapping[str, Any],
  step: int,
  arrays: Mapping[str, Any],
  scores: Mapping[str, Any],
) -> bundle_lib.PromptBundle:
  """The product of a run that learns no backbone."""
  method, kept = job.settings.method.product(
    {**params_lib.flatten(arrays), **params_lib.flatten(fixed)},
    job.model.config,
  )
  return bundle_lib.PromptBundle(
    method=method.name,
    stage=job.settings.stage,
    task_names=job.task_names,
    arrays=kept,
    backbone_name=job.loaded.name,
    backbone_fingerprint=job.loaded.fingerprint,
    vocabulary_digest=vocabulary_digest(job.loaded),
    step=step,
    metrics=scores,
    package_version=mpt_jax.__version__,
    texts=job.texts,
    settings=method.settings,
    family=kind_of(job.model.config),
  )


# ---------------------------------------------------------------------------
# Its course.


def _begin(job: Job) -> _Begin:
  """Resumes MODEL_DIR, or starts from what `_start_values` gives."""
  settings, devices = job.settings, job.settings.devices
  params = {**job.loaded.params, **_start_values(job)}
  trained, frozen = params_lib.split(params, settings.method.trainable)
  for line in params_lib.describe(trained, frozen):
    log.info(line)
  _check_count(trained, job.model)
  branch = settings.method.branch or ''
  fixed = frozen.get(branch, {})
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
  light = job.without_backbone()
  keeper = keys.Keeper(
    settings.model_dir,
    settings.logging.key_step,
    lambda step, arrays: _make_bundle(light, fixed, step, arrays, {}),
  )
  keeper.begin(
    trained.get(branch, {}), int(state.step), state.params.get(branch, {})
  )
  frozen = partitioning.place_backbone(
    frozen,
    job.mesh,
    dtype=job.model.config.matrix_dtype,
    scan_layers=devices.scan_layers,
    shard_backbone=devices.shard_backbone,
  )
  return _Begin(state, frozen, fixed, window, checkpointer, keeper)


def _beside(
  job: Job, begin: _Begin, request: preemption.StopRequest
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
    kept: BestPrompts | BestBackbone = BestPrompts(
      settings.model_dir, functools.partial(_make_bundle, job, begin.fixed)
    )
    if settings.method.branch is None:
      kept = BestBackbone(settings.model_dir, job.loaded)
    best = Best.create(
      evaluation, job.said, step, kept, settings.method.together
    )
    evaluate.follow(best.update)
  return _Beside(writer, evaluate, best, request, [0])


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


def _fit(job: Job, begin: _Begin, beside: _Beside) -> trainer.TrainState:
  """Trains up to the last step, or until nothing gets better."""
  settings, evaluation = job.settings, job.settings.evaluation
  started = time.monotonic()
  step, steps = int(begin.state.step), settings.steps
  branch = settings.method.branch or ''
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
        settings.logging.key_step,
      ),
      trainer.Hooks(
        checkpointer=begin.checkpointer,
        evaluate=beside.evaluate,
        writer=beside.writer,
        keep=lambda at, params: begin.keeper.keep(at, params[branch]),
        finished=lambda: (
          beside.best is not None and beside.best.selection.finished
        ),
        request=beside.request,
        compiled=beside.needs.append,
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
  job: Job,
  begin: _Begin,
  state: trainer.TrainState,
  beside: _Beside,
) -> dict[str, dict[str, float]]:
  """Scores what was trained and writes the run's product and its results."""
  settings, evaluation = job.settings, job.settings.evaluation
  evaluate, best, step = beside.evaluate, beside.best, int(state.step)
  scores: dict[str, Any] = {}
  results: dict[str, Any] = {}
  if evaluate is not None:
    if evaluate.latest_step != step:
      beside.writer.write_scalars(step, evaluate(step, state.params))
    scores = dict(evaluate.latest_scores)
    results |= judgements(evaluate.latest_judged)
  trained, bundle = state.params, None
  product = partitioning.to_host(trained)
  branch = settings.method.branch
  if branch is not None:
    bundle = _make_bundle(job, begin.fixed, step, product[branch], scores)
    begin.keeper.end(step, product[branch])
  if best is not None and best.kept is not None:
    chosen, kept = best.selection.best, best.kept
    if isinstance(kept, BestPrompts):
      bundle = kept.product(chosen)
      scores = dict(bundle.metrics)
    else:
      product = kept.load()
      trained = partitioning.shard_params(
        product, job.mesh, settings.devices.shard_backbone
      )
      scores = {task: dict(found) for task, (*_, found) in chosen.items()}
    results['best_steps'] = {task: at for task, (at, *_) in chosen.items()}
    path = os.path.join(settings.model_dir, METRICS)
    results |= multihost.on_first(
      lambda: judged_at(path, results['best_steps'], results)
    )
  if evaluate is not None and evaluation is not None and evaluation.test_split:
    split = results['test_split'] = evaluation.test_split
    tested, judged = evaluate.test(bundle, trained, split)
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
  if best is not None and isinstance(best.kept, BestBackbone):
    multihost.on_first(best.kept.remove)
  return scores


def _write_product(
  job: Job,
  bundle: bundle_lib.PromptBundle | None,
  product: PyTree,
  results: Mapping[str, Any],
) -> None:
  """Writes the bundle, or the backbone, and then what makes it finished."""
  model_dir = job.settings.model_dir
  content = files.json_bytes(results)
  record = card.read(model_dir, run_lib.RUN_CONFIG)
  made = card.Made(record, json.loads(content))
  if bundle is None:
    readme = card.text(_backbone_product(job, product, results['step']), made)
    job.loaded.save(os.path.join(model_dir, BACKBONE), product, readme)
  else:
    bundle.save(os.path.join(model_dir, PROMPTS), made)
  files.write_file(os.path.join(model_dir, run_lib.RESULTS), content)


def _backbone_product(job: Job, product: PyTree, step: int) -> card.Product:
  """What the card of a trained backbone is about."""
  from mpt_jax import data

  loaded, split = job.loaded, job.dataset.split
  tasks = tuple(job.examples[split])
  return card.Product(
    kind='backbone',
    method=job.settings.method,
    tasks=tasks,
    size=f'{params_lib.count(product):,} numbers',
    # One that was drawn has no name.
    base=loaded.name if loaded.path else '',
    fingerprint=loaded.fingerprint,
    vocabulary=vocabulary_digest(loaded),
    stage=job.settings.stage,
    step=step,
    version=mpt_jax.__version__,
    texts=data.task_texts(tasks, split),
    family=kind_of(loaded.config),
  )


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
    if files.is_folder(path := os.path.join(model_dir, name)):
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


@contextlib.contextmanager
def _advising(settings: Settings) -> Iterator[None]:
  """Says, of a loss that is not finite, with which command it will be."""
  try:
    yield
  except trainer.NonFiniteLossError:
    number = 2
    while files.exists(f'{settings.model_dir}-{number}'):
      number += 1
    rate, task_rate = rates(settings)
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
  held: contextlib.ExitStack, job: Job, record: Mapping[str, Any]
) -> dict[str, dict[str, float]] | None:
  """Takes the run's folder; returns the scores of a finished run."""
  model_dir = job.settings.model_dir
  held.enter_context(lock.hold(model_dir))
  existed = run_lib.check_run_config(model_dir, record, face().name_of)
  path = os.path.join(model_dir, run_lib.RESULTS)
  if existed and files.exists(path):
    results = files.read_json(path)
    if key_step := job.settings.logging.key_step:
      keys.check_kept(model_dir, min(key_step, results['step']))
    return results['scores']
  face().write_config(model_dir)
  if job.nearest is not None:
    path = os.path.join(model_dir, picks.PICKED)
    files.write_file(path, files.json_bytes(job.nearest))
  if job.batches.chosen:
    _write_few_shot(model_dir, job.dataset, job.batches.chosen)
  return None


def _check_count(trained: PyTree, model: models.PromptedModel) -> None:
  """What trains must be as many numbers as the method's formula says."""
  method = model.method
  assert method is not None
  expected = method.num_parameters(model.config, model.num_tasks)
  got = params_lib.count(trained)
  if got != expected:
    raise ValueError(f'{got} parameters train, the formula says {expected}')
  log.info(
    'method %r: %s parameters, as its formula says; %s for each of %d task%s',
    method.name,
    f'{got:,}',
    f'{got / model.num_tasks:,.0f}',
    model.num_tasks,
    '' if model.num_tasks == 1 else 's',
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
