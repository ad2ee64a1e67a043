"""A run's backbone and vocabulary, and what decodes with prompts on it."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import logging
import os
from typing import Any

import jax
import numpy as np

from mpt_jax import backbones, models
from mpt_jax.checkpoints import backbone as backbone_lib
from mpt_jax.checkpoints import bundle as bundle_lib
from mpt_jax.checkpoints.backbone import DEMOS, Backbone, demo_folder
from mpt_jax.checkpoints.bundle import PromptBundle
from mpt_jax.checkpoints.vocabulary import Vocabulary, bring, find_vocabulary
from mpt_jax.engine import compilation, hostmemory, partitioning, trainer
from mpt_jax.engine.settings import BackboneSource, Decoding, Devices
from mpt_jax.types import InputError

log = logging.getLogger(__name__)


def load_backbone(
  backbone: BackboneSource | Backbone | str | None,
  seed: int = 0,
  fresh: bool = False,
) -> Backbone:
  """Loads a run's backbone and makes its vocabulary that of the tasks.

  Args:
    backbone: where it is read, or no more than its path; or a loaded one.
    seed: seeds random parameters.
    fresh: whether one without a path is drawn at random.

  Returns:
    The backbone.

  Raises:
    InputError: if something is missing or does not fit.
  """
  if isinstance(backbone, Backbone):
    loaded = _with_vocabulary(backbone, None)
  else:
    if not isinstance(backbone, BackboneSource):
      backbone = BackboneSource(backbone)
    loaded = _with_vocabulary(_read(backbone, seed, fresh), backbone.vocabulary)
  if loaded.vocabulary_file:
    # Imported here: the data layer brings TensorFlow.
    from mpt_jax import data

    data.use_vocabulary(loaded.vocabulary or loaded.vocabulary_file)
  return loaded


def _read(source: BackboneSource, seed: int, fresh: bool) -> Backbone:
  config = source.config
  if isinstance(config, str):
    config = backbones.get_config(config)
  if source.path is None and fresh:
    if config is None:
      raise InputError('a backbone from scratch needs a model configuration')
    return _fresh_backbone(config, seed)
  path = source.trained
  log.info('loading the backbone from %s …', path)
  loaded = backbone_lib.load_backbone(path, config)
  report = loaded.report
  log.info(
    'backbone %s: %d tensors restored, %d new, %d ignored%s',
    loaded.name,
    len(report['restored']),
    len(report['new']),
    len(report['ignored']),
    f' ({", ".join(report["ignored"][:5])})' if report['ignored'] else '',
  )
  return loaded


def _with_vocabulary(loaded: Backbone, vocabulary: str | None) -> Backbone:
  """A backbone with the vocabulary that is given, else with its own."""
  if vocabulary and vocabulary in DEMOS:
    vocabulary = find_vocabulary(demo_folder(vocabulary))
  given = vocabulary
  vocabulary = vocabulary and bring(vocabulary)
  if vocabulary is not None and not os.path.exists(vocabulary):
    raise InputError(f'VOCABULARY = {given!r} does not exist')
  if vocabulary is None and loaded.vocabulary is not None:
    return loaded
  loaded = loaded.with_vocabulary(vocabulary)
  if loaded.vocabulary is not None:
    log.info('vocabulary: %s', loaded.vocabulary)
  return loaded


def _fresh_backbone(config: backbones.Config, seed: int) -> Backbone:
  if not backbones.family(config).generates:
    raise InputError(
      f'a {backbones.family(config).title} is not pretrained here: give'
      ' INITIAL_CHECKPOINT_PATH'
    )
  model = models.class_of(config)(config)
  variables = model.get_initial_variables(jax.random.PRNGKey(seed))
  params = jax.tree.map(np.asarray, variables['params'])
  return Backbone(
    config=config,
    params=params,
    fingerprint=backbone_lib.fingerprint(config, params),
    name='scratch',
    path='',
    vocabulary_file=None,
    report={'restored': [], 'new': [], 'ignored': []},
  )


def tokenizer(backbone: Backbone) -> Callable[[str], Sequence[int]] | None:
  """Returns text -> the model's ids, or None without a local vocabulary."""
  vocabulary = _vocabulary(backbone)
  return None if vocabulary is None else vocabulary.model_ids


def vocabulary_digest(backbone: Backbone) -> str:
  """Digest of the backbone's vocabulary, '' when not known."""
  vocabulary = _vocabulary(backbone)
  return '' if vocabulary is None else vocabulary.digest


def _vocabulary(backbone: Backbone) -> Vocabulary | None:
  path = backbone.vocabulary_file
  if backbone.vocabulary is None and path and os.path.exists(path):
    backbone = backbone.with_vocabulary()
  return backbone.vocabulary


def prompted_model(
  backbone: Backbone, bundle: PromptBundle | None
) -> tuple[models.PromptedModel, dict[str, Any]]:
  """Builds the model that serves a bundle.

  Args:
    backbone: the backbone.
    bundle: the prompts, or None.

  Returns:
    (model, its whole parameter tree).

  Raises:
    InputError: if the prompts don't fit the backbone.
  """
  params = dict(backbone.params)
  method, tasks = None, 1
  if bundle is not None:
    bundle_lib.check_backbone(bundle, backbone)
    params |= bundle.params
    method, tasks = bundle.learner, len(bundle.task_names)
  model = models.class_of(backbone.config)(
    backbone.config, method, tasks, **backbone.special_ids.of_model()
  )
  return model, params


@dataclasses.dataclass(frozen=True)
class Predictor:
  """A prompted backbone on its devices, ready to decode batches of text.

  Attributes:
    predict_fn: numpy features [B, ...] -> tokens [B, T]. Every process gives
      all rows, decodes a part and has the answers to all.
    score_fn: the same, but -> [B] log probabilities of the targets.
    batch_size: B.
    prompt_length: P; 0 without prompts.
    task_names: the tasks in row order; empty where all have the same prompt,
      or none.
    backbone_name: what the backbone is called.
    prompts: where the prompts were read; None for none, or if nobody knows.
    prompt_task: whose prompt all tasks have; None is each its own.
  """

  predict_fn: Callable[[Mapping[str, np.ndarray]], np.ndarray]
  score_fn: Callable[[Mapping[str, np.ndarray]], np.ndarray]
  batch_size: int
  prompt_length: int
  task_names: tuple[str, ...]
  backbone_name: str
  prompts: str | None = None
  prompt_task: str | None = None


def make_predictor(
  backbone: BackboneSource | Backbone | str,
  prompts: str | None = None,
  *,
  batch_size: int = 128,
  prompt_task: str | None = None,
  decoding: Decoding = Decoding(),
  devices: Devices = Devices(),
) -> Predictor:
  """Loads what decodes: backbone, prompts, mesh and the jitted step.

  Args:
    backbone: see `load_backbone`.
    prompts: path of a prompt bundle, PEFT folder or `.npy`; None is none.
    batch_size: B of the batches that will come.
    prompt_task: only this task's composed prompt.
    decoding: how tokens are searched.
    devices: devices and memory.

  Returns:
    The predictor.

  Raises:
    InputError: if something is missing or does not fit.
  """
  check_serving(decoding, prompt_task, prompts is not None)
  compilation.use_cache()
  loaded = load_backbone(backbone)
  config = devices.configure(loaded.config)
  loaded = dataclasses.replace(loaded, config=config)
  bundle = None if prompts is None else bundle_lib.load_prompts(prompts)
  if bundle is not None and prompt_task is not None:
    bundle = bundle.with_tasks([prompt_task])
  model, params = prompted_model(loaded, bundle)
  mesh = partitioning.make_mesh(devices.num_partitions)
  partitioning.check_batch_size(batch_size, mesh)
  params = partitioning.place_backbone(
    params,
    mesh,
    dtype=config.matrix_dtype,
    scan_layers=devices.scan_layers,
    shard_backbone=devices.shard_backbone,
  )
  name = loaded.name
  del loaded  # The host's copies are not needed any more.
  hostmemory.keep()
  predict = trainer.make_predict_step(model, **decoding.search)
  score = jax.jit(model.score_batch)

  def on_mesh(step: Callable[..., Any]) -> Callable[..., np.ndarray]:
    return lambda batch: partitioning.to_host(
      step(params, trainer.put_batch(batch, mesh, whole=True))
    )

  return Predictor(
    predict_fn=on_mesh(predict),
    score_fn=on_mesh(score),
    batch_size=batch_size,
    prompt_length=model.prompt_length,
    task_names=bundle.task_names if bundle and not prompt_task else (),
    backbone_name=name,
    prompts=prompts,
    prompt_task=prompt_task,
  )


def check_serving(
  decoding: Decoding, prompt_task: str | None, prompted: bool
) -> None:
  """Refuses settings that answers to tasks cannot follow.

  Args:
    decoding: how answers are found.
    prompt_task: whose prompt all tasks have, if any.
    prompted: whether there are prompts.

  Raises:
    InputError: if answers would be sampled, or a prompt is asked for that is
      not there.
  """
  if prompt_task is not None and not prompted:
    raise InputError(
      f'PROMPT_TASK = {prompt_task!r} is given, but there are no PROMPTS'
    )
  if decoding.temperature:
    raise InputError(
      f'temperature is {decoding.temperature}: answers to tasks are searched,'
      ' not sampled'
    )
