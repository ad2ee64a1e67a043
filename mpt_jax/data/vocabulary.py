"""The vocabulary that all our tasks share.

Which one it is belongs to the backbone, not to a task: tasks are registered
when their module is imported, long before a run knows its backbone. So there
is one vocabulary object, and it finds its file on first use. Its ids are the
model's, in which 0 is padding.
"""

import hashlib
import os
from typing import Any

import numpy as np

from mpt_jax.checkpoints.vocabulary import Vocabulary
from mpt_jax.data.libraries import seqio, tf, tf_text
from mpt_jax.engine.batching import EOS
from mpt_jax.types import (
  InputError,
  local_path,
)

# The public vocabulary of the English T5 checkpoints.
DEFAULT_FILE = 'gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model'
ENVIRONMENT_VARIABLE = 'MPT_JAX_VOCABULARY'


class LazyVocabulary(seqio.Vocabulary):
  """The backbone's vocabulary for SeqIO, looked up on first use."""

  def __init__(self):
    super().__init__()
    self._chosen: str | Vocabulary | None = None
    self._loaded: tuple[str, Vocabulary] | None = None

  def use(self, chosen: str | os.PathLike | Vocabulary | None) -> None:
    """Chooses the vocabulary or its file; None goes back to the default."""
    if chosen is not None and not isinstance(chosen, Vocabulary):
      chosen = local_path(chosen)
    self._chosen = chosen
    self._loaded = None

  @property
  def sentencepiece_model_file(self) -> str:
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
    return self.sentencepiece_model_file

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
    file = self.sentencepiece_model_file
    # The environment may have changed since the last use.
    if self._loaded is None or self._loaded[0] != file:
      self._loaded = file, self._load(file)
    return self._loaded[1]

  def _load(self, file: str) -> Vocabulary:
    try:
      if '://' not in file and os.path.exists(file):
        return Vocabulary(file)
      return Vocabulary(file, content=_read(file))
    except tf.errors.OpError as e:
      reason = str(e.message).split('\n')[0]
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
  def bos_id(self) -> int | None:
    """There is none."""
    return None

  @property
  def eos_id(self) -> int:
    """The end mark."""
    return self.tokenizer.special.of_model()['eos_id']

  @property
  def unk_id(self) -> int | None:
    """What it cannot write."""
    unknown = self.tokenizer.unk_id
    if unknown is None:
      return None
    return self.tokenizer.special.swap([unknown])[0]

  @property
  def extra_ids(self) -> int:
    """The sentinels on top; `vocab_size` counts them."""
    return self.tokenizer.num_sentinels

  @property
  def vocab_size(self) -> int:
    """The number of ids."""
    return self.tokenizer.size

  @property
  def _base_vocab_size(self) -> int:
    return self.tokenizer.size

  def _encode(self, s: str) -> list[int]:
    return self.tokenizer.model_ids(s)

  def decode(self, ids: Any) -> str:
    """Returns the text of ids up to the end mark."""
    return self._decode(np.asarray(ids, np.int64).tolist())

  def _decode(self, ids: Any) -> str:
    return self.tokenizer.decode_model(ids)

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    """[length] int32 ids of a scalar text.

    Pieces are cut by TensorFlow's own op, which gives the same ids, unless the
    text has a token in it that the op does not know.
    """
    vocabulary = self.tokenizer

    def by_hand() -> tf.Tensor:
      def encode(text: bytes) -> np.ndarray:
        ids = vocabulary.model_ids(text.decode('utf-8', 'replace'))
        return np.array(ids, np.int32)

      ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
      return tf.ensure_shape(ids, [None])

    def by_op() -> tf.Tensor:
      if vocabulary.is_bytes:
        ids = tf.cast(tf.io.decode_raw(s, tf.uint8), tf.int32) + 3
      else:
        tokenizer = tf_text.SentencepieceTokenizer(vocabulary.sentencepiece)
        ids = tokenizer.tokenize(s)
      pad = vocabulary.special.pad
      if pad:
        unknown = self.unk_id
        assert unknown is not None
        ids = tf.where(ids == pad, unknown, tf.where(ids == 0, pad, ids))
      return ids

    if vocabulary.sentencepiece is None and not vocabulary.is_bytes:
      return by_hand()
    if not vocabulary.markers:
      return by_op()
    return tf.cond(
      tf.strings.regex_full_match(s, _holding(vocabulary.markers)),
      by_hand,
      by_op,
    )

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    def decode(values: np.ndarray) -> np.ndarray:
      texts = [self._decode(row.tolist()) for row in np.atleast_2d(values)]
      return np.array([t.encode() for t in texts], object)

    texts = tf.numpy_function(decode, [ids], tf.string, stateful=False)
    return texts if ids.shape.rank == 2 else texts[0]

  def decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    """Returns the text(s) of [N] or [B, N] ids up to the end mark."""
    return self._decode_tf(ids)

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, '_loaded': None}

  def __eq__(self, other: object) -> bool:
    return isinstance(other, LazyVocabulary) and self.key == other.key

  def __hash__(self) -> int:
    return hash(self.key)

  def __str__(self) -> str:
    return f'LazyVocabulary({self.key})'


_VOCABULARY = LazyVocabulary()


def get_vocabulary() -> LazyVocabulary:
  """Returns the vocabulary; touches no file until it is used."""
  return _VOCABULARY


def use_vocabulary(vocabulary: str | os.PathLike | Vocabulary | None) -> None:
  """Sets the vocabulary of all tasks.

  Tasks registered before this call use it too.

  Args:
    vocabulary: the backbone's vocabulary, or its file (`spiece.model`), whose
      folder says what is on top of it; None for the default, which is the
      environment variable MPT_JAX_VOCABULARY or else the public T5 vocabulary.
  """
  _VOCABULARY.use(vocabulary)


def check_vocabulary(provider: seqio.Task | seqio.Mixture) -> None:
  """Refuses tasks whose ids are not those of the backbone.

  Args:
    provider: a task or mixture.

  Raises:
    InputError: if a task writes its texts with another vocabulary.
  """
  for task in seqio.get_subtasks(provider):
    for key in ('inputs', 'targets'):
      given = task.output_features[key].vocabulary
      if isinstance(given, LazyVocabulary | seqio.PassThroughVocabulary):
        continue
      # Where nobody knows the backbone's, the task's is taken on trust.
      if _VOCABULARY.is_known and not _same(given, _VOCABULARY.tokenizer):
        raise InputError(
          f'task {task.name!r} writes its {key} with the vocabulary'
          f' {_describe(given)}, but that of the backbone is'
          f' {_VOCABULARY.tokenizer}; give the feature'
          ' mpt_jax.data.get_vocabulary()'
        )


def end_ids(task: seqio.Task) -> tuple[int, int]:
  """The end marks of a task's inputs and targets."""
  found = (
    task.output_features[key].vocabulary.eos_id for key in ('inputs', 'targets')
  )
  inputs, targets = (EOS if i is None else i for i in found)
  return inputs, targets


def _same(given: seqio.Vocabulary, ours: Vocabulary) -> bool:
  """Whether two vocabularies give every text the same ids, to be sure."""
  special = ours.special
  if special.pad != 0 or special.end != given.eos_id or ours.added:
    return False
  if type(given) is seqio.ByteVocabulary:
    return ours.is_bytes
  if type(given) is not seqio.SentencePieceVocabulary or not ours.sentencepiece:
    return False
  try:
    content = _read(given.sentencepiece_model_file)
  except tf.errors.OpError:
    return False
  return (
    f'sha256:{hashlib.sha256(content).hexdigest()}' == ours.file_digest
    and given.extra_ids == ours.num_sentinels
    and given._reverse_extra_ids
    and given._normalizer_spec_overrides is None
  )


def _describe(given: seqio.Vocabulary) -> str:
  if isinstance(given, seqio.SentencePieceVocabulary):
    return (
      f'{type(given).__name__}({given.sentencepiece_model_file!r},'
      f' extra_ids={given.extra_ids})'
    )
  return f'{type(given).__name__}({given.vocab_size} ids)'


def _read(file: str) -> bytes:
  with tf.io.gfile.GFile(file, 'rb') as f:
    return f.read()


def _holding(markers: list[str]) -> str:
  """A pattern (RE2) of the texts that hold one of some markers."""
  quoted = (
    ''.join(c if c.isalnum() or c == '_' else f'\\x{{{ord(c):x}}}' for c in m)
    for m in markers
  )
  return f'(?s).*({"|".join(quoted)}).*'
