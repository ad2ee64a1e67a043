"""The vocabulary must not need its file before it is used."""

import json
import shutil

import numpy as np
import pytest
import seqio
import tensorflow as tf

from mpt_jax import data
from mpt_jax.checkpoints.bundle import PromptBundle, load_prompts
from mpt_jax.checkpoints.vocabulary import Vocabulary
from mpt_jax.data import lookup
from mpt_jax.engine import predictor as predictor_lib
from mpt_jax.engine.settings import BackboneSource
from mpt_jax.pretrained import PromptedT5
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


def _beside(folder, **contents):
  """The demo's vocabulary with JSON files beside it."""
  shutil.copy(toys.VOCABULARY, folder / 'spiece.model')
  for name, content in contents.items():
    (folder / f'{name}.json').write_text(json.dumps(content))
  return str(folder)


@pytest.mark.parametrize(
  'contents',
  [
    {},
    {'tokenizer_config': {'extra_ids': 0}},
    {'tokenizer_config': {'extra_ids': 100}},
    {'added_tokens': {'<e1>': 458, 'a.b': 459, '[é]': 460}},
    {'config': {'pad_token_id': 3, 'eos_token_id': 2}},
    {
      'added_tokens': {'<e1>': 458},
      'config': {'pad_token_id': 458, 'eos_token_id': 2},
    },
    {'tokenizer_config': {'tokenizer_class': 'ByT5Tokenizer'}},
  ],
)
def test_the_op_gives_the_same_ids(vocabulary, tmp_path, contents):
  data.use_vocabulary(_beside(tmp_path, **contents))
  ours = Vocabulary(str(tmp_path))
  texts = [
    'the film was great',
    'a<extra_id_0>, b <extra_id_99> <extra_id_100>',
    'the <e1>film a.b axb a\nb [é] <e1>',
    'the </s> é',
    '',
  ]
  ds = tf.data.Dataset.from_tensor_slices(texts).map(vocabulary.encode_tf)
  for text, ids in zip(texts, ds.as_numpy_iterator(), strict=True):
    assert ids.dtype == np.int32
    assert ids.tolist() == ours.model_ids(text) == vocabulary.encode(text)
    assert 0 not in ids
  want = vocabulary.decode(vocabulary.encode(texts[0]))
  assert vocabulary.decode_tf(
    tf.constant(vocabulary.encode(texts[0]))
  ).numpy() == (want.encode())
  special = ours.special
  assert vocabulary.eos_id == special.of_model()['eos_id']
  assert vocabulary.vocab_size == ours.size


def _same_pieces(folder, **settings):
  return seqio.SentencePieceVocabulary(
    f'{_beside(folder)}/spiece.model', **{'extra_ids': 100, **settings}
  )


class TestTaskOfAnotherVocabulary:
  @pytest.mark.parametrize(
    ('make', 'message'),
    [
      (lambda f: seqio.ByteVocabulary(), r'ByteVocabulary\(259 ids\)'),
      (
        lambda f: _same_pieces(f, extra_ids=0),
        r"spiece.model', extra_ids=0\), but that of the backbone is .*458 ids",
      ),
      (
        lambda f: _same_pieces(f, reverse_extra_ids=False),
        'SentencePieceVocabulary',
      ),
      (lambda f: _other_pieces(f), 'other.model'),
    ],
  )
  @pytest.mark.parametrize('split', ['train', 'validation'])
  def test_is_refused(self, make_task, tmp_path, make, message, split):
    self._add(make(tmp_path), make_task)
    with pytest.raises(InputError, match=f"task 'toy_own' .*{message}"):
      self._read(split)

  @pytest.mark.parametrize(
    ('make', 'backbone'),
    [
      (_same_pieces, None),
      (
        lambda f: seqio.ByteVocabulary(),
        {'tokenizer_class': 'ByT5Tokenizer'},
      ),
      (lambda f: seqio.PassThroughVocabulary(458), None),
    ],
  )
  def test_the_same_is_not(self, make_task, tmp_path, make, backbone):
    self._add(make(tmp_path), make_task)
    if backbone:
      (tmp_path / 'tokenizer_config.json').write_text(json.dumps(backbone))
      data.use_vocabulary(tmp_path)
    data.check_vocabulary(lookup.get_provider('toy_own'))

  def test_special_ids_count(self, make_task, tmp_path):
    self._add(_same_pieces(tmp_path), make_task)
    data.use_vocabulary(_beside(tmp_path, config={'eos_token_id': 2}))
    with pytest.raises(InputError, match='end 2'):
      self._read('train')

  def test_where_nobody_knows_the_backbones(self, make_task, tmp_path):
    self._add(seqio.ByteVocabulary(), make_task)
    data.use_vocabulary(None)
    self._read('train')

  def _add(self, vocabulary, make_task):
    make_task('toy_own', plain=True, vocabulary=vocabulary)

  def _read(self, split):
    if split == 'train':
      data.get_train_iterator(
        data.DatasetConfig(
          mixture_or_task_name='toy_own',
          task_feature_lengths={'inputs': 200, 'targets': 20},
          batch_size=2,
        ),
        0,
        (),
      )
    else:
      next(
        data.predict(
          toys.examples('toy_own', split, {'inputs': 200, 'targets': 20}),
          0,
          (),
          lambda batch: batch['decoder_target_tokens'],
          2,
        )
      )


def _other_pieces(folder):
  file = folder / 'other.model'
  file.write_bytes(_reversed_words(toys.VOCABULARY))
  return seqio.SentencePieceVocabulary(str(file), extra_ids=100)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['madlad_spiece', 'added_spiece', 'byt5'])
def test_a_task_is_read_as_text_is(make_task, testdata, name):
  """Answers and losses of batches against those of single texts."""
  folder = str(testdata / 'vocabulary' / name)
  make_task('toy_a', train=7, validation=7)
  lengths = {'inputs': 90, 'targets': 23}
  served = PromptedT5.from_pretrained(folder)
  predictor = predictor_lib.make_predictor(folder, None, batch_size=8)
  answers = list(
    data.predict(
      toys.examples('toy_a', 'validation', lengths),
      0,
      (),
      predictor.predict_fn,
      8,
    )
  )
  inputs = [a['inputs'] for a in answers]
  assert [a['prediction'] for a in answers] == served.generate(
    inputs, max_decode_length=23
  )
  config = data.DatasetConfig(
    mixture_or_task_name='toy_a',
    task_feature_lengths=lengths,
    batch_size=7,
    shuffle=False,
    pack=True,
  )
  batch = next(data.get_train_iterator(config, 0, ()))
  loss, terms = served.model.loss_fn(served.params, batch, None)
  count = float(terms['cross_entropy'][1].sum())
  # As many examples as there are, so each once.
  texts = [toys.make_text('toy_a', 'train', i) for i in range(7)]
  targets = [toys.LABELS[i * i % 3] for i in range(7)]
  assert batch['decoder_segment_ids'].max() > 1
  scores = served.score(texts * 9, targets * 9, batch_size=8)
  drawn = int(sum(row.max() for row in batch['decoder_segment_ids']))
  np.testing.assert_allclose(
    float(loss) * count, -sum(scores[:drawn]), rtol=1e-5
  )


def test_a_cut_target_keeps_the_checkpoints_end_mark(make_task, tmp_path):
  data.use_vocabulary(_beside(tmp_path, config={'eos_token_id': 2}))
  make_task('toy_a', train=7)
  config = data.DatasetConfig(
    mixture_or_task_name='toy_a',
    task_feature_lengths={'inputs': 4, 'targets': 1},
    batch_size=7,
    allow_cut_targets=True,
  )
  batch = next(data.get_train_iterator(config, 0, ()))
  assert (batch['encoder_input_tokens'][:, -1] == 2).all()
  assert (batch['decoder_target_tokens'] == 2).all()


def test_prompts_of_another_vocabulary_are_not_scored(tmp_path):
  bundle = PromptBundle(
    method='soft',
    stage='teacher',
    task_names=('a',),
    arrays={'prompt': np.ones((3, 64), np.float32)},
    vocabulary_digest=Vocabulary(str(toys.VOCABULARY)).digest,
  )
  bundle.save(str(tmp_path / 'prompts'))
  other = _other_pieces(tmp_path).sentencepiece_model_file
  for vocabulary, refused in ((None, False), (other, True)):
    loaded = predictor_lib.load_backbone(
      BackboneSource('demo', vocabulary=vocabulary)
    )
    prompts = load_prompts(str(tmp_path / 'prompts'))
    if refused:
      with pytest.raises(InputError, match='another vocabulary .*other.model'):
        predictor_lib.prompted_model(loaded, prompts)
    else:
      predictor_lib.prompted_model(loaded, prompts)
