"""The demo's encoder: its words, its text, its pretraining, what is shipped."""

import json
import os
import random

import jax
import numpy as np
import pytest

seqio = pytest.importorskip('seqio')
pytest.importorskip('tokenizers')

from mpt_jax import data  # noqa: E402
from mpt_jax.checkpoints import backbone as backbone_lib  # noqa: E402
from mpt_jax.checkpoints.texts import masked_template  # noqa: E402
from mpt_jax.checkpoints.vocabulary import Vocabulary  # noqa: E402
from mpt_jax.data import candidates, seqio_tasks  # noqa: E402
from mpt_jax.study import results  # noqa: E402
from tasks.offline import (  # noqa: E402
  corpus,
  datasets,
  masked_corpus,
  pretrain_masked,
  pretraining,
  writer,
)
from tasks.table import TABLE  # noqa: E402

pytestmark = pytest.mark.data

FOLDER = backbone_lib.demo_folder('demo-roberta')
# What an encoder can answer of the data that are made up.
NAMES = sorted(n for n in datasets.DATASETS if n in TABLE and TABLE[n].fillers)
UNKNOWN = masked_corpus.tokens().index(masked_corpus.UNKNOWN)


@pytest.fixture(scope='module')
def vocabulary():
  return Vocabulary(FOLDER)


@pytest.fixture
def chosen(vocabulary):
  data.use_vocabulary(vocabulary)
  yield vocabulary
  data.use_vocabulary(None)


def test_the_shipped_tokenizer_is_that_of_the_text():
  with open(os.path.join(FOLDER, 'tokenizer.json')) as file:
    assert json.load(file) == masked_corpus.tokenizer_json()


def test_a_word_is_one_token_with_a_blank_and_without(vocabulary):
  [number] = vocabulary.encode('great')
  assert vocabulary.encode(' great') == [number]
  assert vocabulary.id_to_piece(number) == 'great'
  assert vocabulary.decode([number]) == 'great'


@pytest.mark.parametrize(
  ('template', 'want'),
  [
    ('{mask} {a}', '<s> <mask> the film , it was great'),
    (
      '{mask} {a}{sep}{b}',
      '<s> <mask> the film , it was great </s> </s> hank < mask >',
    ),
  ],
)
def test_templates_are_the_text_it_was_pretrained_on(
  vocabulary, template, want
):
  values = {'a': 'the film, it was great', 'b': 'hank <mask>'}
  text = masked_template(template).write(values)
  pieces = [vocabulary.id_to_piece(i) for i in vocabulary.encode(text)]
  # What a user types is no mark; and these are no words of the world.
  want = want.replace('< mask >', '<unk> mask <unk>')
  known = set(masked_corpus.tokens())
  assert pieces == [w if w in known else '<unk>' for w in want.split()]


def test_the_text_is_that_of_the_t5s_up_to_the_late_part():
  for number in (0, corpus.FIRST, masked_corpus.LATE_FROM - 1):
    own, others = random.Random(number), random.Random(number)
    kind, _, _ = corpus.draw(others, number)
    cue = masked_corpus.draw(own, number).cue
    assert cue == (() if kind == 'span' else (kind,))


def test_every_word_of_the_text_has_a_token(vocabulary):
  rng, known = random.Random(3), masked_corpus.tokens()
  assert len(set(known)) == len(known) == vocabulary.size
  for number in range(0, 400_000, 200):
    text = masked_corpus.draw(rng, number)
    for words in (text.cue, text.answer, *text.fields):
      ids = vocabulary.encode(' '.join(words))
      assert [vocabulary.id_to_piece(i) for i in ids] == list(words)


@pytest.mark.parametrize('name', NAMES)
def test_every_filler_is_a_token(chosen, name):
  task = seqio_tasks.find(name)
  found = candidates.of(task.wording, name)
  assert UNKNOWN not in found.ids


@pytest.mark.slow
def test_every_word_of_the_tasks_has_a_token(chosen, tmp_path):
  writer.write(str(tmp_path), NAMES, train_size=1040, say=lambda line: None)
  data.set_data_dir(tmp_path)
  try:
    for name in NAMES:
      task = seqio.TaskRegistry.get(name)
      examples = task.get_dataset(None, 'validation', shuffle=False)
      for example in examples.as_numpy_iterator():
        text = example['inputs_pretokenized'].decode()
        assert UNKNOWN not in example['inputs'], (name, text)
        longest = pretrain_masked.CONFIG.max_length
        assert len(example['inputs']) <= longest - 10, (name, text)
  finally:
    data.set_data_dir(None)


@pytest.mark.parametrize('step', [0, 2499, 2500])
def test_a_batch_hides_what_it_asks_for(step):
  batch = pretrain_masked.batch_of(step)
  again = pretrain_masked.batch_of(step)
  for name, array in batch.items():
    np.testing.assert_array_equal(array, again[name])
  tokens, places = batch['tokens'], batch['places']
  assert (tokens > 0).mean() > 0.75
  assert ((tokens > 0) == (batch['segments'] > 0)).all()
  assert batch['positions'].max() < pretrain_masked.LENGTH
  real = batch['weights'] > 0
  there = np.take_along_axis(tokens, places, axis=1)[real]
  words = batch['words'][real]
  mask = pretrain_masked._MASK
  assert (words != mask).all()
  # Answers are masked, of the others eight in ten.
  asked = batch['weights'][real] == 1
  assert (there[asked] == mask).all()
  assert 0.6 < (there[~asked] == mask).mean() < 0.95
  assert (there != mask).any()
  # And nothing is masked that is not asked for.
  assert (tokens == mask).sum() == (there == mask).sum()


@pytest.mark.slow
def test_pretraining_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
  monkeypatch.setattr(pretrain_masked, '_KEEP_PERIOD', 2)
  whole = pretrain_masked.train(str(tmp_path / 'whole'), steps=3)
  batch_of = pretrain_masked.batch_of

  def stopped(step):
    if step == 2:
      raise KeyboardInterrupt
    return batch_of(step)

  monkeypatch.setattr(pretrain_masked, 'batch_of', stopped)
  with pytest.raises(KeyboardInterrupt):
    pretrain_masked.train(str(tmp_path / 'parts'), steps=3)
  monkeypatch.setattr(
    pretrain_masked, 'batch_of', lambda step: batch_of(max(step, 2))
  )
  parts = pretrain_masked.train(str(tmp_path / 'parts'), steps=3)
  jax.tree.map(np.testing.assert_array_equal, whole, parts)


def test_the_shipped_encoder_is_small_and_says_its_skills():
  loaded = backbone_lib.load_backbone(FOLDER)
  assert loaded.name == 'mpt_jax demo roberta backbone'
  assert loaded.config.replace(dropout_rate=0.0) == pretrain_masked.CONFIG
  assert loaded.special_ids == pretrain_masked.SPECIAL
  files = [os.path.join(FOLDER, name) for name in os.listdir(FOLDER)]
  assert sum(map(os.path.getsize, files)) < 2**20
  with open(os.path.join(FOLDER, 'skills.json')) as file:
    told = json.load(file)
  assert set(told['skills']) == set(corpus.LABELS)
  assert set(told['tasks']) == {
    task for task, s in pretraining.SKILL_OF.items() if s in corpus.LABELS
  }
  # What a study writes beside its teachers.
  skills = results._skills('demo-roberta')
  assert skills['sst2'] == told['skills']['mood']['accuracy']
  for skill in ('mood', 'grammar'):
    assert told['skills'][skill]['accuracy'] >= 90, skill


@pytest.mark.slow
def test_shipped_skills_are_what_is_measured():
  with open(os.path.join(FOLDER, 'skills.json')) as file:
    told = json.load(file)
  params = backbone_lib.load_backbone(FOLDER).params
  found = pretrain_masked.measure(params)
  for skill, values in told['skills'].items():
    # Another machine's sums may turn an example over.
    accuracy = found['skills'][skill]['accuracy']
    assert accuracy == pytest.approx(values['accuracy'], abs=1), skill
