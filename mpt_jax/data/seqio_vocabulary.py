"""The backbone's vocabulary as SeqIO wants it, and those of others' tasks."""

import hashlib
from typing import Any

import numpy as np

from mpt_jax.checkpoints.vocabulary import Vocabulary
from mpt_jax.data.libraries import read_file, seqio, tf, tf_text
from mpt_jax.data.vocabulary import CHOSEN
from mpt_jax.engine.batching import EOS
from mpt_jax.types import InputError


class LazyVocabulary(seqio.Vocabulary):
  """The backbone's vocabulary for SeqIO, looked up on first use."""

  def __init__(self):
    super().__init__()
    self._chosen = CHOSEN

  @property
  def sentencepiece_model_file(self) -> str:
    """The file that is, or would be, read."""
    return self._chosen.file

  @property
  def tokenizer(self) -> Vocabulary:
    """The vocabulary itself.

    Raises:
      InputError: if its file cannot be read.
    """
    return self._chosen.tokenizer

  @property
  def bos_id(self) -> int | None:
    """There is none."""
    return None

  @property
  def eos_id(self) -> int:
    """The end mark."""
    return self._chosen.eos_id

  @property
  def unk_id(self) -> int | None:
    """What it cannot write."""
    return self._chosen.unk_id

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
    return self._chosen.encode(s)

  def decode(self, ids: Any) -> str:
    """Returns the text of ids up to the end mark."""
    return self._chosen.decode(ids)

  def _decode(self, ids: Any) -> str:
    return self._chosen.decode(ids)

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

  def __eq__(self, other: object) -> bool:
    return (
      isinstance(other, LazyVocabulary)
      and self._chosen.key == other._chosen.key
    )

  def __hash__(self) -> int:
    return hash(self._chosen.key)

  def __str__(self) -> str:
    return f'LazyVocabulary({self._chosen.key})'


_VOCABULARY = LazyVocabulary()


def get_vocabulary() -> LazyVocabulary:
  """Returns the vocabulary; touches no file until it is used."""
  return _VOCABULARY


def check(task: seqio.Task) -> None:
  """Refuses a task whose ids are not those of the backbone.

  Args:
    task: a SeqIO task.

  Raises:
    InputError: if it writes its texts with another vocabulary.
  """
  for key in ('inputs', 'targets'):
    given = task.output_features[key].vocabulary
    if isinstance(given, LazyVocabulary | seqio.PassThroughVocabulary):
      continue
    # Where nobody knows the backbone's, the task's is taken on trust.
    if CHOSEN.is_known and not _same(given, CHOSEN.tokenizer):
      raise InputError(
        f'task {task.name!r} writes its {key} with the vocabulary'
        f' {_describe(given)}, but that of the backbone is'
        f' {CHOSEN.tokenizer}; give the feature'
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
    content = read_file(given.sentencepiece_model_file)
  except InputError:
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


def _holding(markers: list[str]) -> str:
  """A pattern (RE2) of the texts that hold one of some markers."""
  quoted = (
    ''.join(c if c.isalnum() or c == '_' else f'\\x{{{ord(c):x}}}' for c in m)
    for m in markers
  )
  return f'(?s).*({"|".join(quoted)}).*'
