"""The vocabulary that all our tasks share.

Which one it is belongs to the backbone, not to a task: tasks are registered
when their module is imported, long before a run knows its backbone. So there
is one vocabulary object, and it finds its file on first use. Its ids are the
model's, in which 0 is padding.
"""

import os
from typing import Any

import numpy as np

from mpt_jax.checkpoints.vocabulary import Vocabulary
from mpt_jax.types import InputError, local_path

# The public vocabulary of the English T5 checkpoints.
DEFAULT_FILE = 'gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model'
ENVIRONMENT_VARIABLE = 'MPT_JAX_VOCABULARY'


class ChosenVocabulary:
  """The backbone's vocabulary, looked up on first use."""

  def __init__(self):
    """Nobody has chosen one yet."""
    self._chosen: str | Vocabulary | None = None
    self._loaded: tuple[str, Vocabulary] | None = None

  def use(self, chosen: str | os.PathLike | Vocabulary | None) -> None:
    """Chooses the vocabulary or its file; None goes back to the default."""
    if chosen is not None and not isinstance(chosen, Vocabulary):
      chosen = local_path(chosen)
    self._chosen = chosen
    self._loaded = None

  @property
  def file(self) -> str:
    """The file that is, or would be, read."""
    if isinstance(self._chosen, Vocabulary):
      return self._chosen.path
    if self._chosen is not None:
      return self._chosen
    return local_path(os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_FILE)

  @property
  def key(self) -> str:
    """Tells what was written with one vocabulary from all others."""
    if isinstance(self._chosen, Vocabulary):
      return f'{self._chosen} {self._chosen.digest}'
    return self.file

  @property
  def is_known(self) -> bool:
    """Whether anybody has said which vocabulary it is."""
    return bool(self._chosen or os.environ.get(ENVIRONMENT_VARIABLE))

  @property
  def tokenizer(self) -> Vocabulary:
    """The vocabulary itself.

    Raises:
      InputError: if its file cannot be read.
    """
    if isinstance(self._chosen, Vocabulary):
      return self._chosen
    file = self.file
    # The environment may have changed since the last use.
    if self._loaded is None or self._loaded[0] != file:
      self._loaded = file, self._load(file)
    return self._loaded[1]

  def _load(self, file: str) -> Vocabulary:
    try:
      if '://' not in file and os.path.exists(file):
        return Vocabulary(file)
      # TensorFlow reads what lies elsewhere.
      from mpt_jax.data.libraries import read_file

      return Vocabulary(file, content=read_file(file))
    except InputError as e:
      reason = str(e)
    raise InputError(
      f'vocabulary file {file!r} ({self._origin}) cannot be read: {reason}; '
      'give the SentencePiece file of the backbone, e.g. '
      f'{ENVIRONMENT_VARIABLE}=/path/to/spiece.model'
    )

  @property
  def _origin(self) -> str:
    if self._chosen is not None:
      return 'given by the run or its backbone'
    if os.environ.get(ENVIRONMENT_VARIABLE):
      return f'from the environment variable {ENVIRONMENT_VARIABLE}'
    return "T5's public one, the default"

  @property
  def eos_id(self) -> int:
    """The end mark."""
    return self.tokenizer.special.of_model()['eos_id']

  @property
  def masks(self) -> bool:
    """Whether it is that of an encoder, which answers by filling a mask.

    No file is touched where nobody has said which vocabulary it is.
    """
    return self.is_known and self.tokenizer.special.mask is not None

  @property
  def mask_id(self) -> int | None:
    """What an encoder fills in; None of a text-to-text model."""
    return self.tokenizer.special.of_model()['mask_id'] if self.masks else None

  @property
  def unk_id(self) -> int | None:
    """What it cannot write."""
    unknown = self.tokenizer.unk_id
    if unknown is None:
      return None
    return self.tokenizer.special.swap([unknown])[0]

  def encode(self, text: str) -> list[int]:
    """Returns a text's ids, without an end mark."""
    return self.tokenizer.model_ids(text)

  def decode(self, ids: Any) -> str:
    """Returns the text of ids up to the end mark."""
    return self.tokenizer.decode_model(np.asarray(ids, np.int64).tolist())

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, '_loaded': None}


CHOSEN = ChosenVocabulary()


def use_vocabulary(vocabulary: str | os.PathLike | Vocabulary | None) -> None:
  """Sets the vocabulary of all tasks.

  Tasks registered before this call use it too.

  Args:
    vocabulary: the backbone's vocabulary, or its file (`spiece.model`), whose
      folder says what is on top of it; None for the default, which is the
      environment variable MPT_JAX_VOCABULARY or else the public T5 vocabulary.
  """
  CHOSEN.use(vocabulary)
