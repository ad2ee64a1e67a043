"""The vocabulary must not need its file before it is used."""

import pytest

from mpt_jax import data
from mpt_jax.types import InputError
from tests.data import toys

pytestmark = pytest.mark.data


def test_has_the_sentinels_of_t5(vocabulary):
  size = vocabulary.vocab_size
  assert vocabulary.encode('<extra_id_0>') == [size - 1]
  assert vocabulary.encode('<extra_id_99>') == [size - 100]
  assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id) == (0, 1, 2)


def test_text_survives(vocabulary):
  text = 'mnli hypothesis: the red kite premise: ann bought a kite'
  ids = vocabulary.encode(text)
  assert vocabulary.decode(ids) == text
  assert vocabulary.encode_tf(text).numpy().tolist() == ids


def test_touches_no_file_until_it_is_used(vocabulary, make_task):
  data.use_vocabulary('/nowhere/spiece.model')
  make_task('toy_lazy')
  assert data.get_vocabulary() is vocabulary
  message = r"'/nowhere/spiece.model' \(given by the run .* cannot be read"
  with pytest.raises(InputError, match=message):
    vocabulary.encode('a')


def test_another_file_takes_effect_at_once(vocabulary, tmp_path):
  ids = vocabulary.encode('kite')
  other = tmp_path / 'spiece.model'
  other.write_bytes(_reversed_words(toys.VOCABULARY))
  data.use_vocabulary(other)
  assert vocabulary.encode('kite') != ids
  assert vocabulary.decode(vocabulary.encode('kite')) == 'kite'
  data.use_vocabulary(toys.VOCABULARY)
  assert vocabulary.encode('kite') == ids


def _reversed_words(file):
  """The same pieces in another order, the control pieces apart."""
  from sentencepiece import sentencepiece_model_pb2 as proto

  model = proto.ModelProto.FromString(file.read_bytes())
  pieces = [proto.ModelProto.SentencePiece() for _ in model.pieces]
  order = list(model.pieces[:3]) + list(reversed(model.pieces[3:]))
  for new, old in zip(pieces, order, strict=True):
    new.CopyFrom(old)
  del model.pieces[:]
  model.pieces.extend(pieces)
  return model.SerializeToString()


def test_environment_variable_is_the_default(vocabulary, monkeypatch):
  size = vocabulary.vocab_size
  data.use_vocabulary(None)
  monkeypatch.setenv('MPT_JAX_VOCABULARY', str(toys.VOCABULARY))
  assert vocabulary.vocab_size == size
  monkeypatch.setenv('MPT_JAX_VOCABULARY', '/nowhere')
  with pytest.raises(InputError, match='variable MPT_JAX_VOCABULARY'):
    vocabulary.encode('a')
  monkeypatch.delenv('MPT_JAX_VOCABULARY')
  assert vocabulary.sentencepiece_model_file.startswith('gs://t5-data/')


def test_a_file_of_another_kind_is_refused(vocabulary, tmp_path):
  file = tmp_path / 'spiece.model'
  file.write_text('this is no model')
  data.use_vocabulary(file)
  with pytest.raises(InputError, match='is not a SentencePiece model'):
    vocabulary.encode('a')
