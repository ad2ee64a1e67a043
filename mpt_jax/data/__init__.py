"""Tasks and mixtures become batches of model features, and answers scores.

The names below are loaded when they are first used: those that read SeqIO's
tasks bring TensorFlow with them (some seconds, see `libraries`); a run on
rows that are in memory (`Task`) never needs it.
"""

from typing import TYPE_CHECKING

import mpt_jax
from mpt_jax.types import prefer_own_packages

if TYPE_CHECKING:
  from mpt_jax.data.dataset import (
    BatchIterator,
    DatasetConfig,
    get_train_iterator,
  )
  from mpt_jax.data.evaluation import (
    Questions,
    Scores,
    evaluate,
    examine,
    metrics_of,
    predict,
    questions,
  )
  from mpt_jax.data.feature_converter import PromptFeatureConverter
  from mpt_jax.data.lookup import (
    check_data,
    check_vocabulary,
    is_synthetic,
    task_rows,
    task_texts,
  )
  from mpt_jax.data.memory import Task
  from mpt_jax.data.register import register_task
  from mpt_jax.data.rows import task_identity
  from mpt_jax.data.seqio_vocabulary import get_vocabulary
  from mpt_jax.data.sources import TfdsSource, get_data_dir, set_data_dir
  from mpt_jax.data.vocabulary import use_vocabulary
  from mpt_jax.engine.metrics import metric
  from mpt_jax.engine.settings import Examples

prefer_own_packages()

_HOMES = {
  'BatchIterator': 'mpt_jax.data.dataset',
  'DatasetConfig': 'mpt_jax.data.dataset',
  'Examples': 'mpt_jax.engine.settings',
  'PromptFeatureConverter': 'mpt_jax.data.feature_converter',
  'Questions': 'mpt_jax.data.evaluation',
  'Scores': 'mpt_jax.data.evaluation',
  'Task': 'mpt_jax.data.memory',
  'TfdsSource': 'mpt_jax.data.sources',
  'check_data': 'mpt_jax.data.lookup',
  'check_vocabulary': 'mpt_jax.data.lookup',
  'evaluate': 'mpt_jax.data.evaluation',
  'examine': 'mpt_jax.data.evaluation',
  'get_data_dir': 'mpt_jax.data.sources',
  'get_train_iterator': 'mpt_jax.data.dataset',
  'get_vocabulary': 'mpt_jax.data.seqio_vocabulary',
  'is_synthetic': 'mpt_jax.data.lookup',
  'metric': 'mpt_jax.engine.metrics',
  'metrics_of': 'mpt_jax.data.evaluation',
  'predict': 'mpt_jax.data.evaluation',
  'questions': 'mpt_jax.data.evaluation',
  'register_task': 'mpt_jax.data.register',
  'set_data_dir': 'mpt_jax.data.sources',
  'task_identity': 'mpt_jax.data.rows',
  'task_rows': 'mpt_jax.data.lookup',
  'task_texts': 'mpt_jax.data.lookup',
  'use_vocabulary': 'mpt_jax.data.vocabulary',
}

__all__ = [
  'BatchIterator',
  'DatasetConfig',
  'Examples',
  'PromptFeatureConverter',
  'Questions',
  'Scores',
  'Task',
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
  'questions',
  'register_task',
  'set_data_dir',
  'task_identity',
  'task_rows',
  'task_texts',
  'use_vocabulary',
]


def __getattr__(name: str) -> object:
  return mpt_jax.lazily(__name__, _HOMES, name)


def __dir__() -> list[str]:
  return sorted({*globals(), *_HOMES})
