"""A run's backbone and vocabulary, and what decodes with prompts on it."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import logging
import os
from typing import Any

import jax
import numpy as np

from mpt_jax import models, t5
from mpt_jax.checkpoints import backbone as backbone_lib
from mpt_jax.checkpoints import bundle as bundle_lib
from mpt_jax.checkpoints.backbone import DEMO, Backbone, demo_folder
from mpt_jax.checkpoints.vocabulary import Vocabulary
from mpt_jax.engine import hostmemory, partitioning, trainer
from mpt_jax.types import (
  InputError,
  local_path,
)

log = logging.getLogger(__name__)


def load_backbone(
  backbone: str | Backbone | None,
  config: t5.T5Config | str | None = None,
  vocabulary: str | None = None,
  seed: int = 0,
  fresh: bool = False,
) -> Backbone:
  """Loads a run's backbone and makes its vocabulary that of the tasks.

  Args:
    backbone: path of an HF folder or a T5X checkpoint, 'demo' for the tiny one
      that comes with the package, a loaded backbone, or None for one with
      random parameters.
    config: sizes or the name of a published size, where the path has none.
    vocabulary: SentencePiece file, `tokenizer.json`, a folder with one of
      them, or 'demo'; None is the one beside the backbone, else the data
      layer's default.
    seed: seeds random parameters.
    fresh: whether None is allowed.

  Returns:
    The backbone.

  Raises:
    InputError: if something is missing or does not fit.
  """
  if isinstance(config, str):
    config = t5.get_config(config)
  if backbone is None:
    if not fresh or config is None:
      raise InputError(
        'no INITIAL_CHECKPOINT_PATH given: prompts need a trained backbone'
        if not fresh
        else 'a backbone from scratch needs a model configuration'
      )
    loaded = _fresh_backbone(config, seed)
  elif isinstance(backbone, str):
    log.info('loading the backbone from %s …', backbone)
    loaded = backbone_lib.load_backbone(backbone, config)
    report = loaded.report
    log.info(
      'backbone %s: %d tensors restored, %d new, %d ignored%s',
      loaded.name,
      len(report['restored']),
      len(report['new']),
      len(report['ignored']),
      f' ({", ".join(report["ignored"][:5])})' if report['ignored'] else '',
    )
  else:
    loaded = backbone
  if vocabulary == DEMO:
    vocabulary = os.path.join(demo_folder(), 'spiece.model')
  vocabulary = vocabulary and local_path(vocabulary)
  if vocabulary is not None and '://' in vocabulary:
    loaded = dataclasses.replace(
      loaded, vocabulary_file=vocabulary, vocabulary=None
    )
  elif vocabulary is not None or loaded.vocabulary is None:
    if vocabulary is not None and not os.path.exists(vocabulary):
      raise InputError(f'VOCABULARY = {vocabulary!r} does not exist')
    loaded = loaded.with_vocabulary(vocabulary)
    if loaded.vocabulary is not None:
      log.info('vocabulary: %s', loaded.vocabulary)
  if loaded.vocabulary_file:
    # Imported here: the data layer brings TensorFlow.
    from mpt_jax import data

    data.use_vocabulary(loaded.vocabulary or loaded.vocabulary_file)
  return loaded


def _fresh_backbone(config: t5.T5Config, seed: int) -> Backbone:
  variables = models.PromptedT5(config).get_initial_variables(
    jax.random.PRNGKey(seed)
  )
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
  backbone: Backbone, prompts: str | None, prompt_task: str | None = None
) -> tuple[models.PromptedT5, dict[str, Any], tuple[str, ...]]:
  """Builds the model that serves a bundle.

  Args:
    backbone: the backbone.
    prompts: path of the prompts, or None.
    prompt_task: if given, only this task's composed prompt.

  Returns:
    (model, its whole parameter tree, task names in row order).

  Raises:
    InputError: if the prompts don't fit the backbone or lack the task.
  """
  params = dict(backbone.params)
  if prompts is None:
    model = models.PromptedT5(
      backbone.config, **backbone.special_ids.of_model()
    )
    return model, params, ()
  bundle = bundle_lib.load_prompts(prompts)
  bundle_lib.check_backbone(bundle, backbone)
  if prompt_task is not None:
    bundle = bundle.with_tasks([prompt_task])
  params |= bundle.params
  model = models.PromptedT5(
    backbone.config,
    bundle.learner,
    len(bundle.task_names),
    **backbone.special_ids.of_model(),
  )
  return model, params, bundle.task_names


@dataclasses.dataclass(frozen=True)
class Predictor:
  """A prompted backbone on its mesh, ready to decode batches of text.

  Attributes:
    predict_fn: numpy features [B, ...] -> tokens [B, T]. Every process gives
      all rows, decodes a part and has the answers to all.
    score_fn: the same, but -> [B] log probabilities of the targets.
    prompt_length: P; 0 without prompts.
    task_names: the tasks in row order; empty without prompts.
    backbone_name: what the backbone is called.
  """

  predict_fn: Callable[[Mapping[str, np.ndarray]], np.ndarray]
  score_fn: Callable[[Mapping[str, np.ndarray]], np.ndarray]
  prompt_length: int
  task_names: tuple[str, ...]
  backbone_name: str


def make_predictor(
  backbone: str | Backbone,
  prompts: str | None,
  *,
  batch_size: int,
  prompt_task: str | None = None,
  backbone_config: t5.T5Config | str | None = None,
  vocabulary: str | None = None,
  num_beams: int = 1,
  num_partitions: int = 1,
  dtype: str | None = None,
  precision: str = 'float32',
  scan_layers: bool = False,
  shard_backbone: bool = False,
) -> Predictor:
  """Loads what decodes: backbone, prompts, mesh and the jitted step.

  Args:
    backbone: see `load_backbone`.
    prompts: path of a prompt bundle, PEFT folder or `.npy`; None is none.
    batch_size: B of the batches that will come.
    prompt_task: only this task's composed prompt.
    backbone_config: see `load_backbone`.
    vocabulary: see `load_backbone`.
    num_beams: 1 is greedy.
    num_partitions: size of the mesh's `model` axis.
    dtype: type of activations and backbone matrices; None is the model's own.
    precision: of matrix products, see `t5.T5Config`.
    scan_layers: see `train.train`.
    shard_backbone: split the backbone over the `data` axis too.

  Returns:
    The predictor.

  Raises:
    InputError: if something is missing or does not fit.
  """
  loaded = load_backbone(backbone, backbone_config, vocabulary)
  config = loaded.config.replace(
    dtype=dtype or loaded.config.dtype, precision=precision
  )
  loaded = dataclasses.replace(loaded, config=config)
  model, params, task_names = prompted_model(loaded, prompts, prompt_task)
  mesh = partitioning.make_mesh(num_partitions)
  partitioning.check_batch_size(batch_size, mesh)
  params = partitioning.place_backbone(
    params,
    mesh,
    dtype=config.matrix_dtype,
    scan_layers=scan_layers,
    shard_backbone=shard_backbone,
  )
  name = loaded.name
  del loaded  # The host's copies are not needed any more.
  hostmemory.keep()
  predict = trainer.make_predict_step(model, num_beams=num_beams)
  score = jax.jit(model.score_batch)

  def on_mesh(step: Callable[..., Any]) -> Callable[..., np.ndarray]:
    return lambda batch: partitioning.to_host(
      step(params, trainer.put_batch(batch, mesh, whole=True))
    )

  return Predictor(
    predict_fn=on_mesh(predict),
    score_fn=on_mesh(score),
    prompt_length=model.prompt_length,
    task_names=task_names,
    backbone_name=name,
  )
