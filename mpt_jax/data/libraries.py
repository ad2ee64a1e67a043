"""TensorFlow and SeqIO: whoever needs one in this package takes it from here.

To import them takes seconds, so nothing does that until tasks of theirs are
read. TensorFlow is for reading and tokenising only: it is kept off the
accelerators, which belong to JAX, and its chatter off the terminal.
"""

import logging

from mpt_jax.data import quiet
from mpt_jax.types import InputError

with quiet.silence_native_logs():
  import seqio
  import tensorflow as tf
  import tensorflow_datasets as tfds
  import tensorflow_text as tf_text

  try:
    tf.config.set_visible_devices([], 'GPU')
    _too_late = False
  except RuntimeError:
    _too_late = True

if _too_late:
  # TensorFlow was used before us: it has what it took, and we go on.
  logging.warning('TensorFlow has been started with the GPU visible')

__all__ = ['read_file', 'seqio', 'tf', 'tf_text', 'tfds']


def read_file(path: str) -> bytes:
  """Returns the content of a file wherever TensorFlow can read: also gs://.

  Raises:
    InputError: if it cannot be read; says why.
  """
  try:
    with tf.io.gfile.GFile(path, 'rb') as f:
      return f.read()
  except tf.errors.OpError as e:
    raise InputError(str(e.message).split('\n')[0]) from e
