"""Fixtures of the tests that need TensorFlow and SeqIO."""

import importlib.util

if importlib.util.find_spec('seqio') is None:
  collect_ignore_glob = ['test_*.py']
else:
  from tests.data.toys import make_task, mixture, register, vocabulary
  from tests.helpers.tfds_data import write_tfds

  __all__ = ['make_task', 'mixture', 'register', 'vocabulary', 'write_tfds']
