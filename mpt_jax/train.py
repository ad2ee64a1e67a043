r"""Trains prompts: one run of one stage, in its own MODEL_DIR.

  python -m mpt_jax.train --gin_file=gin_configs/runs/teacher.gin \
    --gin_file=gin_configs/models/t5_base.gin --tfds_data_dir=DIR \
    --gin.MODEL_DIR="'runs/mnli'" --gin.MIXTURE_OR_TASK_NAME="'mnli'"

The stages are `teacher` (vanilla prompt tuning of one task), `source` (MPT's
first stage: distil teachers into one shared prompt), `target` (its second
stage) and `finetune` (the whole backbone). The same command resumes a run
that was stopped.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import itertools
import json
import logging
import os
import re
import time
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

import mpt_jax
from mpt_jax import checkpoints, cli, methods, models, t5
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
from mpt_jax.engine.metrics import Judgement, Metric, from_json
from mpt_jax.engine.predictor import (
  RESULTS,
  finite_scores,
  flat_scores,
  format_scores,
  judgements,
  load_backbone,
  mean_score,
  vocabulary_digest,
)
from mpt_jax.engine.settings import Evaluation
from mpt_jax.engine.starts import NO_SOURCE, Distillation, Source
from mpt_jax.t5 import products
from mpt_jax.types import (
  InputError,
  Names,
  Natural,
  Positive,
  PyTree,
  Rate,
  Share,
  nearest,
  require_local,
)

log = logging.getLogger(__name__)

STAGES = ('teacher', 'source', 'target', 'finetune')
PADDINGS = ('auto', 'max', 'bucket', 'pack')
PROMPTS = 'prompts'
BACKBONE = 'backbone'
# Each task's best prompts, and the run's metrics.
BEST = 'best'
METRICS = 'metrics.jsonl'
# What stands beside the scores there: 'floor/rte/commonest'.
_FLOOR = 'floor'


def train(
  *,
  model_dir: str,
  stage: str,
  backbone: str | Backbone | None,
  dataset: Any,
  train_steps: Natural,
  method: methods.Method,
  learning_rate: Rate | None = None,
  prompt_tasks: Names = ('all',),
  source: Source = NO_SOURCE,
  task_learning_rate: Rate | None = None,
  optimizer: str = 'adamw',
  groups: Sequence[optimizers.Group] | None = None,
  schedule: str = 'linear',
  warmup_steps: Natural = 0,
  weight_decay: Rate = 1e-5,
  clip_norm: Rate | None = None,
  backbone_config: t5.T5Config | str | None = None,
  vocabulary: str | None = None,
  dropout_rate: Share = 0.0,
  distillation: Distillation | None = None,
  evaluation: Evaluation | None = None,
  trainable: Sequence[str] | None = None,
  loss_normalizing_factor: float | str | None = 'NUM_REAL_TARGET_TOKENS',
  label_smoothing: Share = 0.0,
  z_loss: Rate = 0.0,
  log_period: Positive = 100,
  checkpoint_period: Positive = 1000,
  max_checkpoints: Positive = 3,
  padding: str = 'auto',
  num_partitions: Positive = 1,
  microbatches: Positive | None = None,
  dtype: str | None = None,
  precision: str = 'float32',
  remat_layers: bool = False,
  scan_layers: bool = False,
  shard_backbone: bool = False,
  seed: Natural = 0,
  tensorboard: bool = True,
) -> dict[str, dict[str, float]]:
  """Runs one stage up to `train_steps`, resuming what `model_dir` holds.

  Args:
    model_dir: the run's folder: checkpoints, metrics, the chosen examples of
      a few-shot run, and at the end the prompt bundle `prompts/` (or
      `backbone/`) and `results.json`.
    stage: 'teacher', 'source', 'target' or 'finetune'.
    backbone: path of an HF folder or T5X checkpoint, or a loaded backbone;
      None draws a fresh one (`finetune` only).
    dataset: `mpt_jax.data.DatasetConfig` of the training data.
    train_steps: steps of prompt training, counted from 0.
    method: what is learned, and where it enters; see `mpt_jax.methods`.
    prompt_tasks: the run's tasks in row order.
    source: what to start from.
    learning_rate: peak rate of P* (or the plain prompt, or the backbone); None
      is what the method's paper has.
    task_learning_rate: peak rate of u and v; None is `learning_rate`.
    optimizer: 'adamw' or 'adafactor'.
    groups: parameter groups in place of the stage's own.
    schedule: 'linear' (to 0) or 'constant', after the warm-up.
    warmup_steps: steps of the linear rise.
    weight_decay: decoupled weight decay.
    clip_norm: largest global gradient norm; None does not clip.
    backbone_config: sizes or their name, where the checkpoint has none.
    vocabulary: SentencePiece file; None is the backbone's own.
    dropout_rate: dropout of the frozen backbone during training.
    distillation: teachers of a source run; None trains without.
    evaluation: how to evaluate; None never does.
    trainable: name patterns of what trains; None is what the stage means.
    loss_normalizing_factor: see `models.PromptedT5`.
    label_smoothing: see `models.PromptedT5`.
    z_loss: see `models.PromptedT5`.
    log_period: steps between metrics.
    checkpoint_period: steps between checkpoints.
    max_checkpoints: how many of the newest ones to keep.
    padding: 'max' pads every example to the lengths of `dataset`; 'bucket'
      cuts a batch by length into parts, each padded to one of a few lengths
      (`buckets`), which makes the same update with less work; 'pack' puts
      several examples in a row, so that a batch holds more of them; 'auto' is
      'bucket', on a TPU 'max', with `dataset.pack` 'pack'.
    num_partitions: size of the mesh's `model` axis.
    microbatches: parts that a batch is run in; the update is the same. None
      is one, or in buckets as many as suit the device.
    dtype: type of activations and frozen matrices; None is the model's own.
    precision: of matrix products, see `t5.T5Config`.
    remat_layers: see `t5.T5Config`.
    scan_layers: run the layers as a loop over stacked parameters, which
      compiles one layer in place of all; for a frozen backbone.
    shard_backbone: split the backbone over the `data` axis too.
    seed: seeds start values and dropout.
    tensorboard: also write TensorBoard events beside `metrics.jsonl`.

  Returns:
    {task: {metric: value}} of the final evaluation (empty without one).

  Raises:
    InputError: if something given is wrong; nothing is trained.
    trainer.NonFiniteLossError: if the loss explodes.
  """
  model_dir = require_local(model_dir)
  request = preemption.StopRequest(
    lambda: preemption.resumption(run_lib.latest_step(model_dir)),
    cli.end_at_once(),
  )
  cli.at_interrupt(request.say)
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
  branch = method.branch
  if branch is None and evaluation is not None and evaluation.keep_best:
    raise InputError('KEEP_BEST keeps prompts, and stage finetune has none')
  if learning_rate is None:
    learning_rate, task_learning_rate = method.rates[stage]
  mesh = partitioning.make_mesh(num_partitions)
  partitioning.check_batch_size(dataset.batch_size, mesh, microbatches or 1)
  padding = _choose_padding(padding, dataset, mesh)
  dataset = dataclasses.replace(dataset, pack=padding == 'pack')
  task_names = starts.check_tasks(prompt_tasks)
  prompt_length = method.prompt_length
  rows = () if branch is None else task_names
  method.check_can(
    pack=padding == 'pack', scan=scan_layers, mix=len(task_names) > 1
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
  loaded = load_backbone(
    backbone, backbone_config, vocabulary, seed, fresh=stage == 'finetune'
  )
  patterns = trainable or method.trainable
  if scan_layers:
    _check_no_layer_trains(loaded.params, patterns)
  config = dataclasses.replace(
    loaded.config,
    dropout_rate=dropout_rate,
    dtype=dtype or loaded.config.dtype,
    precision=precision,
    remat_layers=remat_layers,
  )
  if precision == 'bfloat16' and products.widens():
    log.info(
      'PRECISION: operands rounded to bfloat16 are multiplied as float32, which'
      ' this processor does faster'
    )
  model = starts.make_model(
    config,
    method,
    len(task_names),
    distillation,
    loss_normalizing_factor=loss_normalizing_factor,
    label_smoothing=label_smoothing,
    z_loss=z_loss,
    **loaded.special_ids.of_model(),
  )
  settings = optimizers.Optimizer(
    groups=tuple(groups)
    if groups
    else optimizers.method_groups(method, learning_rate, task_learning_rate),
    name=optimizer,
    schedule=schedule,
    total_steps=train_steps,
    warmup_steps=warmup_steps,
    weight_decay=weight_decay,
    clip_norm=clip_norm,
  )

  part, parts = partitioning.data_part(mesh)
  batches = data.get_train_iterator(
    dataset,
    prompt_length=prompt_length,
    task_names=rows,
    shard_index=part,
    num_shards=parts,
    part_sizes=partitioning.part_sizes(dataset.batch_size, mesh, microbatches)
    if padding == 'bucket'
    else None,
  )
  texts = data.task_texts(task_names, dataset.split)
  examples: dict[str, dict[str, Any]] = {}
  if evaluation is not None:
    examples = _examine(dataset, evaluation, prompt_length, rows)
  examples[dataset.split] = examples.get(dataset.split, {}) | batches.counts
  synthetic = data.is_synthetic(dataset.mixture_or_task_name)
  if synthetic:
    log.info(
      'SYNTHETIC DATA: scores of this run say nothing about the real %s',
      dataset.mixture_or_task_name,
    )

  said = _check_selection(dataset, evaluation)
  run_config = {
    'stage': stage,
    'backbone_fingerprint': loaded.fingerprint,
    'model': repr(model),
    'optimizer': repr(settings),
    'method': repr(method),
    'prompt_tasks': list(task_names),
    'source': repr(source),
    'distillation': repr(distillation),
    'dataset': repr(dataset),
    'train_steps': train_steps,
    'seed': seed,
    'synthetic_data': synthetic,
    'package_version': mpt_jax.__version__,
    run_lib.DATA: _digests(batches, dataset, evaluation, examples),
  }
  multihost.check_same('run', run_config)
  run_config[run_lib.PATHS] = run_lib.real_paths(
    source.prompts,
    getattr(getattr(method, 'init', None), 'path', None),
    distillation and distillation.teacher_prompts,
  )
  following = ''
  if isinstance(backbone, str):  # Steps of a pipeline share a loaded one.
    following = _next_command(
      model_dir,
      dataset,
      evaluation,
      branch is None,
      'test' in provider.splits,
      INITIAL_CHECKPOINT_PATH=backbone,
      MODEL=backbone_config,
      VOCABULARY=vocabulary,
      PRECISION=None if precision == 'float32' else precision,
      DTYPE=dtype,
    )
  with contextlib.ExitStack() as held:
    finished = multihost.on_first(
      lambda: _open_run(held, model_dir, run_config, dataset, batches.chosen)
    )
    cli.keep_log(model_dir)
    if finished is not None:
      log.info('%s is finished; nothing to do', model_dir)
      _tell_results(model_dir, following)
      return finished
    run_lib.check_shared(model_dir)

    # Start order: 1. resume MODEL_DIR, 2. given prompts, 3. initialise.
    params = dict(loaded.params)
    params |= starts.start_values(model, loaded, source, stage, seed)
    if distillation is not None:
      params['teacher_prompts'] = {
        'prompt_table': starts.teacher_table(
          distillation.teacher_prompts, task_names, prompt_length, loaded
        )
      }
    trained, frozen = params_lib.split(params, patterns)
    for line in params_lib.describe(trained, frozen):
      log.info(line)
    _check_count(trained, model, trainable)
    state = trainer.make_state(
      model, settings, trained, seed, mesh, shard_backbone
    )
    checkpointer = run_lib.RunCheckpointer(
      model_dir, max_to_keep=max_checkpoints
    )
    restored = checkpointer.restore_newest(state)
    window = None
    if restored is not None:
      state, position = restored
      batches.set_state(position)
      window = position.get('window')
      log.info('resumed %s at step %d', model_dir, int(state.step))
    frozen = partitioning.place_backbone(
      frozen,
      mesh,
      dtype=config.matrix_dtype,
      scan_layers=scan_layers,
      shard_backbone=shard_backbone,
    )

    # The host's copies are not needed any more, if nobody else has them.
    del params, trained
    if branch is not None:
      loaded = dataclasses.replace(loaded, params={})
    hostmemory.keep()

    def make_bundle(
      step: int, arrays: Mapping[str, Any], scores: Mapping[str, Any]
    ) -> bundle_lib.PromptBundle:
      return bundle_lib.PromptBundle(
        method=method.name,
        stage=stage,
        task_names=task_names,
        arrays=params_lib.flatten(arrays),
        backbone_name=loaded.name,
        backbone_fingerprint=loaded.fingerprint,
        vocabulary_digest=vocabulary_digest(loaded),
        step=step,
        metrics=scores,
        package_version=mpt_jax.__version__,
        texts=texts,
        settings=method.settings,
      )

    evaluate = None
    if evaluation is not None:
      evaluate = _Evaluator(
        model, frozen, mesh, dataset, evaluation, prompt_length, task_names
      )
      evaluate.check_at_each_batch(request)
    writer = make_writer(model_dir, tensorboard, resume_step=int(state.step))
    best: _BestPrompts | None = None
    if evaluate is not None and evaluation is not None:
      if evaluation.selects:
        best = _BestPrompts.create(
          model_dir, evaluation, said, int(state.step), make_bundle
        )
        evaluate.follow(best.update)
    started = time.monotonic()
    held.enter_context(request.listening())
    if evaluate is not None and evaluation is not None and evaluation.period:
      step = int(state.step)
      # Its checkpoint came before it was stopped, or killed.
      if 0 < step < train_steps and not step % evaluation.period:
        if not _was_evaluated(model_dir, step):
          writer.write_scalars(step, evaluate(step, state.params))
    with _advising(model_dir, learning_rate, task_learning_rate):
      state = trainer.fit(
        model,
        settings,
        state,
        frozen,
        batches,
        train_steps=train_steps,
        mesh=mesh,
        task_names=task_names,
        log_period=log_period,
        checkpoint_period=checkpoint_period,
        checkpointer=checkpointer,
        eval_period=(evaluation.period or None) if evaluation else None,
        evaluate=evaluate,
        writer=writer,
        microbatches=microbatches or 1,
        target_length=dataset.task_feature_lengths['targets'],
        window=window,
        finished=lambda: best is not None and best.selection.finished,
        request=request,
      )
    last_step = int(state.step)
    log.info(
      'trained to step %d in %s%s',
      last_step,
      trainer.format_seconds(time.monotonic() - started),
      '' if last_step == train_steps else ': no better score any more',
    )
    if len(batches.taken) > 1:
      counts = ', '.join(f'{task} {n:,}' for task, n in batches.taken.items())
      log.info('examples drawn: %s', counts)
    checkpointer.close()
    scores: dict[str, dict[str, float]] = {}
    results: dict[str, Any] = {}
    if evaluate is not None:
      if evaluate.latest_step != last_step:
        writer.write_scalars(last_step, evaluate(last_step, state.params))
      scores = dict(evaluate.latest_scores)
      results |= judgements(evaluate.latest_judged)
    writer.close()
    product = partitioning.to_host(state.params)
    bundle = None
    if branch is not None:
      bundle = make_bundle(last_step, product[branch], scores)
      if best is not None and evaluation is not None and evaluation.keep_best:
        bundle = best.product()
        scores = dict(bundle.metrics)
        results['best_steps'] = {
          task: step for task, (step, *_) in best.selection.best.items()
        }
        results |= multihost.on_first(
          lambda: _judged_at(
            os.path.join(model_dir, METRICS), results['best_steps'], results
          )
        )
    if (
      evaluate is not None and evaluation is not None and evaluation.test_split
    ):
      results['test_split'] = evaluation.test_split
      tested, judged = evaluate.test(
        bundle, state.params, evaluation.test_split
      )
      results['test_scores'] = finite_scores(tested)
      results |= judgements(judged, 'test_')

    def write() -> None:
      if bundle is None:
        _save_backbone(model_dir, loaded, product)
      else:
        bundle.save(os.path.join(model_dir, PROMPTS))
      files.write_file(
        os.path.join(model_dir, RESULTS),
        files.json_bytes(
          {
            'scores': finite_scores(scores),
            'step': last_step,
            'split': evaluation.split if evaluation else None,
            'synthetic_data': synthetic,
            'examples': {
              split: {task: found.as_json() for task, found in tasks.items()}
              for split, tasks in examples.items()
            },
            **results,
          }
        ),
      )

    multihost.on_first(write)
    _tell_results(model_dir, following)
    return scores


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
    for name in cli.as_list(evaluation.tasks or dataset.mixture_or_task_name):
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
  results = files.read_json(os.path.join(model_dir, RESULTS))
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


def _next_command(
  model_dir: str,
  dataset: Any,
  evaluation: Evaluation | None,
  finetuned: bool,
  testable: bool,
  **macros: Any,
) -> str:
  """The command that scores the run's product, or exports what is scored."""
  product = os.path.join(model_dir, PROMPTS)
  if evaluation is not None and evaluation.test_split and not finetuned:
    return cli.shell_command(
      'export',
      [
        '--gin_file=gin_configs/runs/export.gin',
        f'--gin.PROMPTS={product!r}',
        f'--gin.OUTPUT={os.path.join(model_dir, "exported")!r}',
      ],
    )
  macros = {
    **{n: v for n, v in macros.items() if isinstance(v, str)},
    'PROMPTS': product,
    'MIXTURE_OR_TASK_NAME': dataset.mixture_or_task_name,
    'MIXTURE_OR_TASK_MODULE': dataset.module,
    'TASK_FEATURE_LENGTHS': dict(dataset.task_feature_lengths),
    'MODEL_DIR': os.path.join(model_dir, 'test'),
  }
  if finetuned:
    product = os.path.join(model_dir, BACKBONE)
    macros |= {'INITIAL_CHECKPOINT_PATH': product, 'PROMPTS': None}
  if not testable:
    macros['EVAL_SPLIT'] = evaluation.split if evaluation else dataset.split
  words = ['--gin_file=gin_configs/runs/eval.gin']
  if cli.data_dir():
    words.append(f'--tfds_data_dir={cli.data_dir()}')
  words += [f'--gin.{name}={value!r}' for name, value in macros.items()]
  return cli.shell_command('eval', words)


@contextlib.contextmanager
def _advising(
  model_dir: str, learning_rate: float, task_learning_rate: float | None
) -> Iterator[None]:
  """Says, of a loss that is not finite, with which command it will be."""
  try:
    yield
  except trainer.NonFiniteLossError:
    number = 2
    while os.path.lexists(f'{model_dir}-{number}'):
      number += 1
    macros: dict[str, Any] = {
      cli.macro_of('model_dir'): f'{model_dir}-{number}',
      cli.macro_of('learning_rate'): _lower(learning_rate),
      cli.macro_of('clip_norm'): 1.0,
    }
    if task_learning_rate is not None:
      macros[cli.macro_of('task_learning_rate')] = _lower(task_learning_rate)
    command = cli.repeated(macros)
    if command:
      log.info('for example: %s', command)
    raise


def _lower(rate: float) -> float:
  """A tenth of a learning rate; of one beyond all measure, a usual one."""
  return float(f'{min(rate / 10, 0.1):.2g}')


def _open_run(
  held: contextlib.ExitStack,
  model_dir: str,
  run_config: Mapping[str, Any],
  dataset: Any,
  chosen: Mapping[str, Any],
) -> dict[str, dict[str, float]] | None:
  """Takes the run's folder; returns the scores of a finished run."""
  held.enter_context(lock.hold(model_dir))
  existed = run_lib.check_run_config(model_dir, run_config, cli.macro_of)
  results = os.path.join(model_dir, RESULTS)
  if existed and os.path.exists(results):
    return files.read_json(results)['scores']
  cli.write_config(model_dir)
  if chosen:
    _write_few_shot(model_dir, dataset, chosen)
  return None


def _digests(
  batches: Any,
  dataset: Any,
  evaluation: Evaluation | None,
  examples: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
  """What the run reads: 'task/split' -> how many examples, and their digest."""
  found = {
    f'{task}/{dataset.split}': facts
    for task, facts in batches.digests().items()
  }
  limit = evaluation.num_examples if evaluation else None
  part = '' if limit is None else f'[:{limit}]'
  for split, tasks in examples.items():
    if split != dataset.split:
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


def _check_count(
  trained: PyTree,
  model: models.PromptedT5,
  trainable: Sequence[str] | None,
) -> None:
  """The printed count must be the closed formula P*D + K*(P+D)*R."""
  method = model.method
  if method is None or method.branch is None or trainable is not None:
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


class _Evaluator:
  """Scores the prompts of a step; remembers the latest scores.

  Attributes:
    latest_step: the step of the latest scores, or None.
    latest_scores: {task: {metric: value}}.
    latest_judged: {task: what stands beside them}.
  """

  def __init__(
    self,
    model: models.PromptedT5,
    frozen: PyTree,
    mesh: Mesh,
    dataset: Any,
    evaluation: Evaluation,
    prompt_length: int,
    task_names: Sequence[str],
  ):
    self._model, self._frozen, self._mesh = model, frozen, mesh
    self._dataset, self._evaluation = dataset, evaluation
    self._prompt_length, self._task_names = prompt_length, tuple(task_names)
    method = model.method
    self._rows = self._task_names if method and method.branch else ()
    # Distillation has no part in decoding.
    self._predict = trainer.make_predict_step(
      models.PromptedT5(model.config, model.method, model.num_tasks)
    )
    self._loss_batches: list[Mapping[str, np.ndarray]] | None = None
    self._follower: Callable[..., None] | None = None
    self._request: preemption.StopRequest | None = None
    self.latest_step: int | None = None
    self.latest_scores: dict[str, dict[str, float]] = {}
    self.latest_judged: dict[str, Judgement] = {}

  def follow(self, follower: Callable[..., None]) -> None:
    """Tells somebody of each evaluation: (step, scores, trainable tree)."""
    self._follower = follower

  def check_at_each_batch(self, request: preemption.StopRequest) -> None:
    """Gives up an evaluation, by `Stopped`, when someone asks to stop."""
    self._request = request

  def _check(self) -> None:
    if self._request is not None and self._request.on_any_process():
      raise preemption.Stopped(
        'stopped in the middle of an evaluation', self._request.number
      )

  def __call__(self, step: int, trained: PyTree) -> dict[str, float]:
    """Returns scalars to write for this step."""
    params = params_lib.merge(trained, self._frozen)
    scalars = self._losses(params) if self._evaluation.loss_steps else {}
    self.latest_scores, self.latest_judged = self._decode(
      params, self._evaluation.split, self._predict
    )
    self.latest_step = step
    if self._follower is not None:
      self._follower(step, self.latest_scores, trained)
    for task, judged in self.latest_judged.items():
      floors = {**judged.floors, 'collapsed': float(bool(judged.collapsed))}
      for name, value in floors.items():
        if isinstance(value, float):
          scalars[f'{_FLOOR}/{task}/{name}'] = value
    return {**scalars, **flat_scores(self.latest_scores)}

  def test(
    self,
    bundle: bundle_lib.PromptBundle | None,
    trained: PyTree,
    split: str,
  ) -> tuple[dict[str, dict[str, float]], dict[str, Judgement]]:
    """Scores a split with finished prompts, or with what was trained.

    Args:
      bundle: the prompts; None for a run without any.
      trained: the trainable tree of such a run.
      split: the split.

    Returns:
      ({task: {metric: value}}, {task: what stands beside them}).
    """
    if bundle is None:
      params = params_lib.merge(trained, self._frozen)
      return self._decode(params, split, self._predict)
    # Prompts of several steps may have another rank than the run's.
    model = models.PromptedT5(
      self._model.config, bundle.learner, len(bundle.task_names)
    )
    predict = trainer.make_predict_step(model)
    params = params_lib.merge(
      partitioning.shard_params(bundle.params, self._mesh), self._frozen
    )
    return self._decode(params, split, predict)

  def _losses(self, params: PyTree) -> dict[str, float]:
    if self._loss_batches is None:
      from mpt_jax import data

      part, num_parts = partitioning.data_part(self._mesh)
      batches = data.get_train_iterator(
        dataclasses.replace(
          self._dataset,
          split=self._evaluation.split,
          shuffle=False,
          num_shots=None,
        ),
        prompt_length=self._prompt_length,
        task_names=self._rows,
        shard_index=part,
        num_shards=num_parts,
      )
      count = self._evaluation.loss_steps
      self._loss_batches = list(itertools.islice(batches, count))
    eval_step = trainer.make_eval_step(self._model)
    parts = [
      eval_step(params, trainer.put_batch(batch, self._mesh))
      for batch in self._loss_batches
    ]
    totals = jax.tree.map(lambda *terms: sum(terms[1:], terms[0]), *parts)
    scalars = trainer.summarize(totals, self._task_names)
    return {f'eval_loss/{name}': value for name, value in scalars.items()}

  def _decode(
    self, params: dict[str, Any], split: str, predict: Callable[..., Any]
  ) -> tuple[dict[str, dict[str, float]], dict[str, Judgement]]:
    from mpt_jax import data

    params = {k: v for k, v in params.items() if k != 'teacher_prompts'}

    def predict_fn(batch: Mapping[str, np.ndarray]) -> np.ndarray:
      self._check()
      placed = trainer.put_batch(batch, self._mesh, whole=True)
      return partitioning.to_host(predict(params, placed))

    evaluation = self._evaluation
    scores = data.Scores()
    for name in evaluation.names(self._dataset):
      scores.add(
        data.evaluate(
          name,
          split,
          self._dataset.task_feature_lengths,
          prompt_length=self._prompt_length,
          task_names=self._rows,
          predict_fn=predict_fn,
          batch_size=evaluation.batch_size,
          num_examples=evaluation.num_examples,
        )
      )
    judged = {task: scores.judge(task) for task in scores}
    for task, values in scores.items():
      log.info('%s %s: %s', task, split, format_scores(values, judged[task]))
    return scores, judged


@dataclasses.dataclass
class _BestPrompts:
  """Keeps each task's best prompts in `best/<task>`.

  Attributes:
    folder: where the bundles are.
    selection: what was best so far.
    make_bundle: (step, arrays, scores) -> bundle of the run's tasks.
    keep: whether prompts are kept at all.
  """

  folder: str
  selection: selection.Selection
  make_bundle: Callable[..., bundle_lib.PromptBundle]
  keep: bool

  @classmethod
  def create(
    cls,
    model_dir: str,
    evaluation: Evaluation,
    said: Mapping[str, Mapping[str, Metric]],
    step: int,
    make_bundle: Callable[..., bundle_lib.PromptBundle],
  ) -> '_BestPrompts':
    """Takes up what the run has seen up to a step."""
    followed = selection.Selection(
      evaluation.best_metric, evaluation.patience, said
    )
    path = os.path.join(model_dir, METRICS)
    for then, scores in multihost.on_first(lambda: _past_scores(path, step)):
      followed.update(then, scores)
    return cls(
      os.path.join(model_dir, BEST), followed, make_bundle, evaluation.keep_best
    )

  def update(
    self,
    step: int,
    scores: dict[str, dict[str, float]],
    trained: Mapping[str, Any],
  ) -> None:
    """Takes an evaluation; saves the prompts of tasks that are better."""
    better = self.selection.update(step, finite_scores(scores))
    if not better or not self.keep:
      return
    [branch] = trained
    arrays = partitioning.to_host(trained[branch])

    def save() -> None:
      for task in better:
        bundle = self.make_bundle(step, arrays, {task: scores[task]})
        if task in bundle.task_names:
          bundle.with_tasks([task]).save(os.path.join(self.folder, task))

    multihost.on_first(save)

  def product(self) -> bundle_lib.PromptBundle:
    """The best prompts of all tasks, in the order of the run's."""
    return bundle_lib.merge(
      [
        bundle_lib.load_prompts(os.path.join(self.folder, task))
        for task in self.selection.best
      ]
    )


def _past_scores(
  path: str, step: int
) -> list[tuple[int, dict[str, dict[str, float]]]]:
  """Reads the evaluations up to a step from a run's metrics."""
  found = []
  for line in read_metrics(path):
    scores: dict[str, dict[str, float]] = {}
    for name, value in line.items():
      kind, _, rest = name.partition('/')
      if kind == 'eval':
        task, _, metric = rest.partition('/')
        scores.setdefault(task, {})[metric] = value
    if scores and line['step'] <= step:
      found.append((line['step'], scores))
  return found


def _was_evaluated(model_dir: str, step: int) -> bool:
  """Whether the run's metrics have the scores of a step."""
  path = os.path.join(model_dir, METRICS)
  return multihost.on_first(
    lambda: any(then == step for then, _ in _past_scores(path, step))
  )


def _judged_at(
  path: str, steps: Mapping[str, int], latest: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
  """What stands beside each task's scores of its best step.

  Intervals are left out: the best of many evaluations is no fair draw.

  Args:
    path: the run's metrics.
    steps: task -> step.
    latest: `judgements` of the last step.
  """
  floors = {task: dict(latest['floors'].get(task, {})) for task in steps}
  collapsed = {}
  for line in read_metrics(path):
    for name, value in line.items():
      kind, _, rest = name.partition('/')
      task, _, name = rest.partition('/')
      if kind == _FLOOR and line['step'] == steps.get(task):
        floors[task][name] = value
  for task, values in floors.items():
    if values.pop('collapsed', 0):
      collapsed[task] = (
        f'{values["commonest"]:.1f} % of the answers are one,'
        f' {values["invalid"]:.1f} % are invalid'
      )
  return {'floors': floors, 'collapsed': collapsed, 'intervals': {}}


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


def read_metrics(path: str) -> list[dict[str, Any]]:
  """Returns the lines of a metrics file, as far as they are whole.

  Args:
    path: the file; without it there are no lines.
  """
  lines = []
  if os.path.exists(path):
    with open(path, encoding='utf-8') as f:
      for text in f:
        try:
          line = json.loads(text)
        except ValueError:
          continue  # The line that was being written when we were killed.
        if isinstance(line, dict) and isinstance(line.get('step'), int):
          lines.append(line)
  return lines


class JsonlWriter:
  """Appends {'step': …, name: value} lines to a file."""

  def __init__(self, path: str, resume_step: int):
    # Lines after the checkpoint that we resume from will be written again.
    kept = [line for line in read_metrics(path) if line['step'] <= resume_step]
    text = ''.join(json.dumps(line) + '\n' for line in kept)
    files.write_file(path, text.encode())
    self._file = open(path, 'a', encoding='utf-8')  # noqa: SIM115

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Appends one line and flushes it."""
    line = {'step': step, **{k: float(v) for k, v in scalars.items()}}
    self._file.write(json.dumps(line) + '\n')
    self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


class Writers:
  """Several writers as one."""

  def __init__(self, *writers: Any):
    self._writers = writers

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Passes the scalars on."""
    for writer in self._writers:
      writer.write_scalars(step, scalars)

  def close(self) -> None:
    """Closes all of them."""
    for writer in self._writers:
      writer.close()


def make_writer(model_dir: str, tensorboard: bool, resume_step: int) -> Writers:
  """metrics.jsonl, and clu's TensorBoard writer beside it; on process 0."""
  if not multihost.is_first():
    return Writers()
  os.makedirs(model_dir, exist_ok=True)
  writers: list[Any] = [
    JsonlWriter(os.path.join(model_dir, METRICS), resume_step)
  ]
  if tensorboard:
    from clu import metric_writers

    writers.append(
      metric_writers.SummaryWriter(os.path.join(model_dir, 'tensorboard'))
    )
  return Writers(*writers)


if __name__ == '__main__':
  cli.main('mpt_jax.train', 'train')
