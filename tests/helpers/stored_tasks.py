"""A task of two files, wherever `MPT_JAX_TEST_DATA` says that they lie."""

import os

from mpt_jax import data
from tasks import metrics

data.register_task(
  'stored',
  os.environ['MPT_JAX_TEST_DATA'] + '/{split}.jsonl',
  inputs='stored text: {text}',
  labels=('low', 'high'),
  splits=('train', 'validation'),
  metric_fns=[metrics.accuracy],
)
