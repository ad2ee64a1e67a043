"""The SentencePiece vocabulary that all our tasks share.

Which file it reads belongs to the backbone, not to a task: tasks are
registered when their module is imported, long before a run knows its
backbone. So there is one vocabulary object, and it finds its file on first
use.
"""

import os

import seqio
import tensorflow as tf

from mpt_jax.types import (
  InputError,
  local_path,
)

# The public vocabulary of the English T5 checkpoints.
DEFAULT_FILE = 'gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model'
ENVIRONMENT_VARIABLE = 'MPT_JAX_VOCABULARY'
# T5's sentinels <extra_id_0> .. <extra_id_99>, after the file's own pieces.
EXTRA_IDS = 100


class LazyVocabulary(seqio.SentencePieceVocabulary):
  """A SentencePiece vocabulary whose file is looked up on first use."""

  def __init__(self):
    super().__init__('', extra_ids=EXTRA_IDS)
    self._chosen: str | None = None

  def use(self, file: str | os.PathLike | None) -> None:
    """Chooses the file; None goes back to the default."""
    self._chosen = None if file is None else local_path(file)
    self._model = None

  @property
  def sentencepiece_model_file(self) -> str:
    """The file that is, or would be, read."""
    if self._chosen is not None:
      return self._chosen
    return local_path(os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_FILE)

  def _model_context(self):
    file = self.sentencepiece_model_file
    # The environment may have changed since the last use.
    if self._model is None or self._sentencepiece_model_file != file:
      self._sentencepiece_model_file = file
      self._model = None
      try:
        super()._model_context()
      except tf.errors.OpError as e:
        origin = (
          'given by the run or its backbone'
          if self._chosen is not None
          else f'from the environment variable {ENVIRONMENT_VARIABLE}'
          if os.environ.get(ENVIRONMENT_VARIABLE)
          else "T5's public one, the default"
        )
        reason = str(e.message).split('\n')[0]
        raise InputError(
          f'vocabulary file {file!r} ({origin}) cannot be read: {reason}; '
          'give the SentencePiece file of the backbone, e.g. '
          f'{ENVIRONMENT_VARIABLE}=/path/to/spiece.model'
        ) from e
      except Exception as e:
        # Neither the protobuf nor the SentencePiece parser has a type of
        # its own for a file of another kind.
        raise InputError(
          f'vocabulary file {file!r} is not a SentencePiece model'
        ) from e
    return self._model


_VOCABULARY = LazyVocabulary()


def get_vocabulary() -> LazyVocabulary:
  """Returns the vocabulary; touches no file until it is used."""
  return _VOCABULARY


def use_vocabulary(sentencepiece_file: str | os.PathLike | None) -> None:
  """Sets the file that the vocabulary reads.

  Tasks registered before this call use it too.

  Args:
    sentencepiece_file: the backbone's `spiece.model`; None for the default,
      which is the environment variable MPT_JAX_VOCABULARY or else the public
      T5 vocabulary.
  """
  _VOCABULARY.use(sentencepiece_file)
