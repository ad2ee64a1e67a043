"""The SeqIO side: tasks and mixtures become batches of model features.

Importing this package imports TensorFlow and SeqIO (some seconds), so entry
points import it late and the core never does. TensorFlow is for reading and
tokenising only: it is kept off the accelerators, which belong to JAX.
"""

import logging

from mpt_jax.data import quiet
from mpt_jax.types import prefer_own_packages

prefer_own_packages()
with quiet.silence_native_logs():
  import seqio  # noqa: F401
  import tensorflow as tf

  try:
    tf.config.set_visible_devices([], 'GPU')
    _too_late = False
  except RuntimeError:
    _too_late = True

if _too_late:
  # TensorFlow was used before us: it has what it took, and we go on.
  logging.warning('TensorFlow has been started with the GPU visible')

# Only now: what follows imports TensorFlow too, which must be quiet.
# ruff: noqa: E402
from mpt_jax.data.dataset import (
  BatchIterator,
  DatasetConfig,
  check_data,
  get_train_iterator,
)
from mpt_jax.data.evaluation import (
  Scores,
  evaluate,
  examine,
  metrics_of,
  predict,
)
from mpt_jax.data.feature_converter import PromptFeatureConverter
from mpt_jax.data.provenance import is_synthetic
from mpt_jax.data.register import register_task, task_texts
from mpt_jax.data.rows import task_identity, task_rows
from mpt_jax.data.sources import TfdsSource, get_data_dir, set_data_dir
from mpt_jax.data.vocabulary import (
  check_vocabulary,
  get_vocabulary,
  use_vocabulary,
)
from mpt_jax.engine.metrics import metric

__all__ = [
  'BatchIterator',
  'DatasetConfig',
  'PromptFeatureConverter',
  'Scores',
  'TfdsSource',
  'check_data',
  'check_vocabulary',
  'evaluate',
  'examine',
  'get_data_dir',
  'get_train_iterator',
  'get_vocabulary',
  'is_synthetic',
  'metric',
  'metrics_of',
  'predict',
  'register_task',
  'set_data_dir',
  'task_identity',
  'task_rows',
  'task_texts',
  'use_vocabulary',
]
