"""At each T5X checkpoint: the prompts as a bundle, beside it."""

import os

from absl import logging
import jax
from t5x import utils as t5x_utils

import mpt_jax
from mpt_jax import data
from mpt_jax.checkpoints.bundle import PromptBundle
from mpt_jax.engine import partitioning
from mpt_jax.t5x import remote
from mpt_jax.t5x.restore import TrainModel
from mpt_jax.types import PyTree

# Folders in MODEL_DIR: the newest prompts, and those of each checkpoint.
LATEST = 'prompts'
HISTORY = 'prompt_bundles'


class BundleWriter:
  """A T5X save transformation that changes nothing and writes a bundle.

  T5X calls it with the whole state whenever it saves a checkpoint.
  """

  def __init__(self, model: TrainModel, model_dir: str):
    """Names what is saved.

    Args:
      model: the run's model.
      model_dir: MODEL_DIR.
    """
    self._model, self._model_dir = model, model_dir

  def __call__(
    self, state_dict: PyTree, parameter_infos: PyTree
  ) -> tuple[PyTree, PyTree]:
    """Writes `prompts/` and `prompt_bundles/<step>/`.

    Args:
      state_dict: T5X's state.
      parameter_infos: T5X's infos.

    Returns:
      Both as they came.
    """
    bundle = self.bundle(state_dict)
    if jax.process_index() == 0:
      history = os.path.join(self._model_dir, HISTORY, str(bundle.step))
      for path in (history, os.path.join(self._model_dir, LATEST)):
        remote.save_bundle(bundle, path)
      logging.info('prompts of step %d: %s', bundle.step, history)
    return state_dict, parameter_infos

  def bundle(self, state_dict: PyTree) -> PromptBundle:
    """The prompts of a T5X state.

    Args:
      state_dict: T5X's state dict, on every host.

    Returns:
      The bundle; its step counts the steps of prompt training.
    """
    model, start = self._model, self._model.start
    assert model.core.method is not None
    params = state_dict['target']
    step = int(partitioning.to_host(state_dict['state']['step']))
    return PromptBundle(
      method=model.core.method.name,
      stage=start.stage,
      task_names=model.task_names,
      arrays=dict(partitioning.to_host(params['prompts'])),
      backbone_name=model.backbone_name,
      backbone_fingerprint=model.fingerprint(params),
      vocabulary_digest=start.vocabulary.digest if start.vocabulary else '',
      step=step - remote.initial_step(start.backbone),
      package_version=mpt_jax.__version__,
      texts=data.task_texts(model.task_names, 'train'),
    )


def save_config(
  model: TrainModel,
  model_dir: str,
  period: int,
  keep: int | None,
  save_dataset: bool,
) -> t5x_utils.SaveCheckpointConfig:
  """T5X's save settings, with the bundle writer.

  Args:
    model: the run's model.
    model_dir: MODEL_DIR.
    period: steps between checkpoints.
    keep: how many of the newest to keep; None is all.
    save_dataset: whether the data iterator's state is saved too.

  Returns:
    The settings.
  """
  return t5x_utils.SaveCheckpointConfig(
    dtype='float32',
    period=period,
    keep=keep,
    save_dataset=save_dataset,
    state_transformation_fns=[BundleWriter(model, model_dir)],
  )
