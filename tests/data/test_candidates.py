"""What an encoder reads of a task: marks in texts, words for the mask."""

import numpy as np
import pytest

from mpt_jax import data
from mpt_jax.checkpoints import texts
from mpt_jax.data import candidates, evaluation, lookup, memory
from mpt_jax.data.vocabulary import CHOSEN
from mpt_jax.engine import batching
from mpt_jax.types import InputError
from tests.data import toys
from tests.helpers import encoder

pytestmark = pytest.mark.data

BAD, GOOD, NO = encoder.WORDS
ROWS = [
  {'text': 'the film is good', 'label': 'yes'},
  {'text': 'a bad plot', 'label': 'no'},
  {'text': 'maybe', 'label': ''},
]
TASK = {
  'inputs': 'review: {text}',
  'labels': ('no', 'yes'),
  'masked': '{mask} {text}',
  'fillers': {'yes': GOOD, 'no': [BAD, NO]},
}
LENGTHS = {'inputs': 20, 'targets': 4}
P = 3


@pytest.fixture(autouse=True)
def _encoder(vocabulary):
  data.use_vocabulary(encoder.FOLDER)
  yield
  memory.clear()


def _iterator(rows=ROWS, batch_size=2, lengths=LENGTHS, pack=False, **kwargs):
  task = data.Task(train=rows, validation=rows, **{**TASK, **kwargs})
  memory.register({'mine': task})
  config = data.DatasetConfig(
    mixture_or_task_name='mine',
    task_feature_lengths=lengths,
    batch_size=batch_size,
    shuffle=False,
    pack=pack,
  )
  return data.get_train_iterator(config, P, ())


def _ids(*words):
  return [i for word in words for i in CHOSEN.encode(word)]


def test_a_batch():
  batch = next(_iterator())
  special = CHOSEN.tokenizer.special
  begin, end = special.swap([special.begin, special.end])
  good = [begin, special.mask, *_ids(' the film is good'), end]
  want = [*[batching.SLOT_TOKEN] * P, *good]
  assert batch['encoder_input_tokens'][0, : len(want)].tolist() == want
  assert not batch['encoder_input_tokens'][0, len(want) :].any()
  words = [*_ids(BAD, NO, GOOD), 0]
  assert batch['decoder_target_tokens'].tolist() == [words] * 2
  assert batch['decoder_input_tokens'].tolist() == [[1, 1, 2, 0]] * 2
  weights = [[0, 0, 1, 0], [1, 0, 0, 0]]
  assert batch['decoder_loss_weights'].tolist() == weights


def test_a_packed_batch():
  rows = [*ROWS[:2], ROWS[0]]
  lengths = {'inputs': 60, 'targets': 10}
  batch = next(_iterator(rows, 1, lengths, pack=True))
  words = _ids(BAD, NO, GOOD)
  assert batch['decoder_target_tokens'][0].tolist() == [*words * 3, 0]
  assert batch['decoder_input_tokens'][0].tolist() == [*[1, 1, 2] * 3, 0]
  weights = [0, 0, 1, 1, 0, 0, 0, 0, 1, 0]
  assert batch['decoder_loss_weights'][0].tolist() == weights
  segments = batch['decoder_segment_ids'][0].tolist()
  assert segments == [1, 1, 1, 2, 2, 2, 3, 3, 3, 0]
  assert batch['decoder_positions'][0].tolist() == [*[0, 1, 2] * 3, 0]


@pytest.mark.parametrize(
  ('tokens', 'limit', 'want'),
  [
    ([5, 9, 6, 7, 8, 2], 6, [5, 9, 6, 7, 8, 2]),
    ([5, 9, 6, 7, 8, 2], 4, [5, 9, 6, 2]),
    # Behind the limit, or where the end mark goes.
    ([5, 6, 7, 8, 9, 2], 4, [5, 6, 9, 2]),
    ([5, 6, 7, 9, 8, 2], 4, [5, 6, 9, 2]),
    ([5, 6, 7, 8, 9], 3, [5, 6, 9]),
    ([5, 6, 9, 8, 7], 3, [5, 6, 9]),
    # Where nothing is filled in.
    ([5, 6, 7, 8, 3, 2], 4, [5, 6, 7, 2]),
  ],
)
def test_the_mask_is_never_cut_off(tokens, limit, want):
  cut = batching.cut(np.array(tokens), limit, end=2, mask=9)
  assert cut.tolist() == want


def test_long_texts_keep_their_mask():
  rows = [{'text': 'bad ' * 50, 'label': 'no'}]
  [tokens] = next(_iterator(rows, 1, masked='{text}{mask}'))[
    'encoder_input_tokens'
  ]
  special = CHOSEN.tokenizer.special
  assert tokens[-2:].tolist() == [special.mask, CHOSEN.eos_id]
  found = _iterator(rows, 1, masked='{text}{mask}').counts['mine']
  assert (found.cut_inputs, found.cut_targets) == (1, 0)


def test_what_is_shown():
  rows = [{'text': 'a <mask> \ufdd1 b', 'more': '\ufdd2', 'label': 'no'}]
  _iterator(rows, masked='{mask} {text}{sep}{more}')
  [said] = data.predict(
    toys.examples('mine', 'validation', {**LENGTHS, 'inputs': 40}),
    P,
    (),
    lambda batch: np.array([[*_ids(NO), CHOSEN.eos_id, 0, 0]]),
    1,
  )
  assert said == {
    'task': 'mine',
    'index': 0,
    'inputs': '<mask> a <mask> \ufffd b</s></s>\ufffd',
    'targets': 'no',
    'prediction': 'no',
  }


def _word(register, name, words, **kwargs):
  register(
    name,
    lambda split: ROWS,
    splits=('train', 'validation'),
    metric_fns=[toys.percent_right],
    **{**TASK, **kwargs},
  )
  row = [*_ids(words), CHOSEN.eos_id, 0, 0]
  return data.evaluate(
    toys.examples(name, 'validation', LENGTHS),
    P,
    (),
    lambda batch: np.array([row] * len(batch['encoder_input_tokens'])),
    2,
    progress=False,
  )


def test_a_filler_is_its_class(register):
  scores = _word(register, 'own', NO)
  assert scores == {'own': {'right': 50.0}}
  rows = scores.predictions('own')
  assert [row['output'] for row in rows] == [NO] * 2
  assert [row['answer'] for row in rows] == ['no'] * 2
  assert [row['target'] for row in rows] == ['yes', 'no']


def test_a_postprocessor_of_its_own_sees_the_answer(register):
  seen = set()

  def postprocess(text, example=None, is_target=False):
    seen.add((text, is_target))
    return text

  scores = _word(
    register, 'own', GOOD, targets='is {label}', postprocess_fn=postprocess
  )
  assert scores == {'own': {'right': 50.0}}
  assert seen == {('is yes', False), ('is yes', True), ('is no', True)}


def test_ranking_and_questions():
  _iterator()
  batches = []

  def score(batch):
    batches.append(batch)
    return batch['decoder_loss_weights'] @ [1, 2, 3]

  read = toys.examples('mine', 'validation', LENGTHS)
  rows = list(data.predict(read, P, (), None, 3, score_fn=score))
  assert [row['scores'] for row in rows] == [{'no': 1.0, 'yes': 3.0}] * 3
  for batch in batches:
    assert batch['decoder_target_tokens'][0, :3].tolist() == _ids(BAD, NO, GOOD)
  [found] = evaluation.questions(
    toys.examples(('mine',), 'validation', LENGTHS), P, 2
  )
  end = CHOSEN.eos_id
  assert found.words == [[*_ids(BAD, NO), end], [*_ids(GOOD), end]]


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'masked': None, 'fillers': None}, r"give it masked='\{mask\} \{text\}'"),
    (
      {'labels': None, 'targets': '{label}', 'masked': None, 'fillers': None},
      'words or numbers of its own, which an encoder',
    ),
    (
      {'fillers': {'yes': GOOD, 'no': ' nonsense'}},
      r"' nonsense' of 'no' must be one token .*\[' no', 'n', 's', 'en'",
    ),
    ({'fillers': {'yes': GOOD, 'no': 'bad!'}}, 'most words begin with a blank'),
    ({'fillers': {'yes': GOOD, 'no': ['b', 'a', 'd', 'c']}}, 'has 5 fillers'),
  ],
)
def test_what_an_encoder_cannot_answer(kwargs, message):
  with pytest.raises(InputError, match=f"^task 'mine'.*{message}"):
    _iterator(**kwargs)
  with pytest.raises(InputError, match=f"^task 'mine'.*{message}"):
    data.examine(toys.examples('mine', 'validation', LENGTHS), P, ())


def test_a_cache_is_of_t5():
  _iterator()
  [reader] = lookup.get_provider('mine').tasks
  with pytest.raises(InputError, match='may hold the text that T5 reads'):
    next(candidates.read(reader, 'train', LENGTHS, use_cached=True))


def test_tasks_of_others(make_task):
  make_task('toy_plain', plain=True)
  with pytest.raises(InputError, match="'toy_plain' is answered in words"):
    data.examine(toys.examples('toy_plain', 'validation', LENGTHS), P, ())


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'masked': None}, 'fillers=.* alone is half'),
    ({'fillers': None}, 'masked=.* alone is half'),
    ({'masked': 3}, 'masked=3 is no template'),
    ({'masked': '{mask} {mask}'}, 'twice'),
    ({'masked': '{mask} {label}'}, 'would tell the answer'),
    ({'masked': '\ufdd1 {text}'}, 'a character that is none'),
    ({'masked': '{mask'}, 'broken'),
    ({'labels': None, 'targets': '{text}'}, 'go with label words'),
    ({'fillers': GOOD}, 'no words by label word'),
    ({'fillers': {'yes': GOOD}}, "lack the label word 'no'"),
    ({'fillers': {'yes': GOOD, 'noo': BAD}}, "'noo'.*did you mean 'no'"),
    ({'fillers': {'yes': GOOD, 'no': GOOD}}, "stands for 'yes' and|'no' and"),
    ({'fillers': {'yes': GOOD, 'no': [BAD, BAD]}}, "of 'no' is given twice"),
    ({'fillers': {'yes': GOOD, 'no': []}}, r"of 'no' is \[\], expected"),
    ({'fillers': {'yes': GOOD, 'no': ''}}, "filler of 'no' is ''"),
  ],
)
def test_wordings_that_are_none(kwargs, message):
  with pytest.raises(InputError, match=message):
    data.Task(train=ROWS, **{**TASK, **kwargs})


def test_a_mask_may_be_left_out():
  batch = next(_iterator(masked='{text}'))
  mask = CHOSEN.tokenizer.special.mask
  assert not (batch['encoder_input_tokens'] == mask).any()


def test_a_text_to_text_model_sees_nothing_of_it():
  data.use_vocabulary(toys.VOCABULARY)
  lengths = {'inputs': 40, 'targets': 8}
  with_masks = _iterator(lengths=lengths)
  without = _iterator(lengths=lengths, masked=None, fillers=None)
  assert with_masks.digests() == without.digests()
  np.testing.assert_equal(next(with_masks), next(without))


def test_the_vocabulary_counts_when_it_is_read(register):
  register('own', lambda split: ROWS, splits=['train'], **TASK)
  config = data.DatasetConfig(
    mixture_or_task_name='own', task_feature_lengths=LENGTHS, batch_size=1
  )
  one = data.get_train_iterator(config, P, ()).digests()
  data.use_vocabulary(toys.VOCABULARY)
  other = data.get_train_iterator(config, P, ()).digests()
  data.use_vocabulary(encoder.FOLDER)
  assert data.get_train_iterator(config, P, ()).digests() == one != other


def test_texts_that_are_kept(register):
  register('own', lambda split: ROWS, splits=['train'], **TASK)
  memory.register({'mine': data.Task(train=ROWS, **TASK)})
  found = data.task_texts(('own', 'mine'), 'train')
  assert found['own'] == found['mine']
  text = found['own']
  assert text.fillers == {'no': (BAD, NO), 'yes': (GOOD,)}
  assert texts.TaskText.parse(text.as_json()) == text
  filled = text.fill({'text': 'a \ufdd1 film'}, masks=True)
  assert texts.shown(filled) == '<mask> a \ufffd film'
  assert CHOSEN.tokenizer.input_ids(filled) == [
    *CHOSEN.tokenizer.special.swap([CHOSEN.tokenizer.special.begin]),
    *[CHOSEN.mask_id, *CHOSEN.encode(' a \ufffd film')],
  ]
  assert text.fill({'text': 'a film'}) == 'review: a film'
