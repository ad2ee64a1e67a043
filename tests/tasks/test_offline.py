"""The synthetic data: true labels, official schemas, the same every time.

Here the demo's twelve sets; `test_offline_more.py` has the others.
"""

import hashlib
import os
import random

import pytest

from mpt_jax.types import InputError
from tasks import offline
from tasks.offline import corpus, datasets, skills, world
from tasks.offline import rows as data_rows
from tests.tasks.reader import (
  answers,
  asked_field,
  good,
  read,
  relation,
  telling,
)

DEMO = [dataset.name for dataset in datasets.DEMO]
# Digests of the rows with 40 for training: no change may touch them.
ROWS = {
  'mnli': 'fa7be53d7823',
  'qnli': '50c0d4b21176',
  'qqp': 'd5f8e8c5fff7',
  'sst2': '1e121423083d',
  'squad': '20f82575cc63',
  'record': '2835d98c357a',
  'rte': '21a79503ea8a',
  'cb': 'ce6dfc938fa2',
  'mrpc': '2e7a89e0f7ce',
  'boolq': '8548fbf8910f',
  'cola': 'abf9adcfa58e',
  'stsb': 'c6a91bc2b8bc',
}


def rows(name, count=400):
  rng = random.Random(f'test {name}')
  draw = datasets.DATASETS[name].draw
  return [draw(rng, 'train')[0] for _ in range(count)]


def check(label, expected, row):
  assert label == expected, row


@pytest.mark.parametrize(
  ('name', 'labels', 'fields'),
  [
    ('mnli', ('entailment', 'neutral', 'contradiction'), None),
    ('cb', ('entailment', 'contradiction', 'neutral'), None),
    ('rte', ('entailment', 'not_entailment'), ('sentence1', 'sentence2')),
  ],
)
def test_entailment_labels_are_true(name, labels, fields):
  premise, hypothesis = fields or ('premise', 'hypothesis')
  seen = set()
  for row in rows(name):
    truth = relation(row[premise], row[hypothesis])
    if name == 'rte' and truth != 'entailment':
      truth = 'not_entailment'
    check(labels[row['label']], truth, row)
    seen.add(truth)
  assert seen == set(labels)


def test_paraphrase_labels_are_true():
  for row in rows('mrpc'):
    same = read(row['sentence1']) == read(row['sentence2'])
    check(row['label'], int(same), row)


def test_duplicate_labels_are_true():
  for row in rows('qqp'):
    one, two = row['question1'], row['question2']
    same = read(one) == read(two) and asked_field(one) == asked_field(two)
    check(row['label'], int(same), row)


def test_answerable_labels_are_true():
  for row in rows('qnli'):
    covered = answers(row['question'], row['sentence'])
    # Class 0 is "entailment": the sentence answers.
    check(row['label'], int(not covered), row)


def test_yes_no_labels_are_true():
  for row in rows('boolq'):
    asked, fact = read(row['question']), read(row['passage'])
    so = not fact['never'] and all(
      asked[f] in (None, fact[f]) for f in asked if f != 'never'
    )
    check(row['label'], int(so), row)


def test_sentiment_labels_are_true():
  for row in rows('sst2'):
    check(row['label'], int(good(row['sentence'])), row)


def test_similarity_counts_the_common_fields():
  for row in rows('stsb'):
    one, two = read(row['sentence1']), read(row['sentence2'])
    common = sum(
      one[f] == two[f] for f in ('name', 'verb', 'thing', 'place', 'day')
    )
    check(row['label'], world.SIMILARITY[common], row)


def test_every_second_cola_sentence_has_been_spoilt():
  labels = [row['label'] for row in rows('cola')]
  assert 0.4 < sum(labels) / len(labels) < 0.6
  rng = random.Random(5)
  for _ in range(200):
    sentence = skills.acceptable(rng, 1)
    assert world.spoil(rng, sentence) != sentence


def test_squad_answers_are_spans_that_answer():
  for row in rows('squad'):
    context, (text,) = row['context'], row['answers']['text']
    (start,) = row['answers']['answer_start']
    assert context[start : start + len(text)] == text
    sentence = telling(context)
    assert answers(row['question'], sentence), row
    field = asked_field(row['question'])
    assert read(sentence)[field] == text.split()[-1], row


def test_record_answers_fill_the_hole():
  for row in rows('record'):
    (gold,) = row['answers']
    assert gold in row['entities'], row
    filled = row['query'].replace(world.HOLE, gold)
    assert relation(row['passage'], filled) == 'entailment', row


def test_demo_has_the_rows_of_its_published_results():
  found = {}
  for name in DEMO:
    text = repr(datasets.make_splits(name, seed=0, train_size=40))
    found[name] = hashlib.sha256(text.encode()).hexdigest()[:12]
  assert found == ROWS


@pytest.mark.parametrize('name', DEMO)
def test_splits_are_fixed_by_the_seed_and_share_no_text(name):
  first = datasets.make_splits(name, seed=3, train_size=1100)
  assert first == datasets.make_splits(name, seed=3, train_size=1100)
  other = datasets.make_splits(name, seed=4, train_size=1100)
  assert first['train'] != other['train']
  larger = datasets.make_splits(name, seed=3, train_size=1200)
  for split, content in first.items():
    # More training data leave the held-out data alone.
    assert larger[split][: len(content)] == content
  texts = [
    repr(
      sorted((k, v) for k, v in r.items() if k not in ('idx', 'id', 'label'))
    )
    for content in first.values()
    for r in content
    if 'answers' not in r or r['answers']
  ]
  assert len(set(texts)) == len(texts)


def test_sizes_leave_room_for_the_canonical_splits():
  for dataset in datasets.DEMO:
    sizes = {k: len(v) for k, v in datasets.make_splits(dataset.name).items()}
    assert sizes['train'] >= 2000
    if dataset.sizes is data_rows.SOURCE:
      assert sizes['train'] > 5 * data_rows.HELD_OUT
    else:
      assert sizes['validation'] >= 1600


def test_downstream_words_are_no_labels_or_prefixes_of_the_pretraining():
  downstream = {*corpus.DOWNSTREAM_WORDS, *world.TITLES}
  labels = [*corpus.LABELS.values(), *corpus.STYLES.values()]
  assert downstream.isdisjoint(w for group in labels for w in group)
  assert downstream.isdisjoint(w for group in corpus.MARKERS for w in group)
  assert downstream.isdisjoint([*corpus.WEIGHTS, *corpus.STYLES])
  # ... but each of them has been read and said.
  assert downstream <= set(corpus.ECHO_WORDS)
  rng = random.Random(0)
  for _ in range(2000):
    kind, inputs, targets = corpus.draw(rng)
    if kind in corpus.LABELS:
      assert downstream.isdisjoint(f'{inputs} {targets}'.split()), inputs


def test_vocabulary_has_a_piece_for_each_word(tmp_path):
  sentencepiece = pytest.importorskip('sentencepiece')
  from tasks.offline import vocabulary

  file = str(tmp_path / 'spiece.model')
  vocabulary.write(file)
  shipped = os.path.join(
    os.path.dirname(offline.__file__), 'demo_backbone', 'spiece.model'
  )
  with open(file, 'rb') as made, open(shipped, 'rb') as kept:
    assert made.read() == kept.read()
  model = sentencepiece.SentencePieceProcessor(file)
  assert (model.pad_id(), model.eos_id(), model.unk_id()) == (0, 1, 2)
  for word in corpus.words():
    text = f'the{word}' if word == ',' else f'the {word}'
    assert len(model.encode(text)) == 2, word
    assert model.decode(model.encode(text)) == text
  odd = 'Zebra? #7 (x@y) ~ `A`'
  assert model.decode(model.encode(odd)) == odd
  assert 2 not in model.encode(odd)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  pytest.importorskip('tensorflow_datasets')
  from tasks.offline import writer

  folder = str(tmp_path_factory.mktemp('tfds'))
  lines = []
  written = writer.write(folder, DEMO, 7, 1100, say=lines.append)
  assert written == DEMO
  assert all(offline.SYNTHETIC in line for line in lines)
  return folder


@pytest.mark.data
@pytest.mark.parametrize('name', DEMO)
def test_official_builders_read_the_data(data_dir, name):
  import tensorflow_datasets as tfds

  dataset = datasets.DATASETS[name]
  builder = tfds.builder(dataset.tfds_name, data_dir=data_dir)
  made = datasets.make_splits(name, seed=7, train_size=1100)
  sizes = {k: v.num_examples for k, v in builder.info.splits.items()}
  assert sizes == {split: len(content) for split, content in made.items()}
  assert builder.info.description.startswith(offline.SYNTHETIC)
  assert offline.is_synthetic(data_dir, dataset.tfds_name)
  split = dataset.heldout[0]
  got = next(iter(tfds.as_numpy(builder.as_dataset(split=f'{split}[-1:]'))))
  want = made[split][-1]
  assert set(got) == set(want)
  for key, value in want.items():
    if isinstance(value, str):
      assert got[key].decode() == value
    elif isinstance(value, int | float):
      assert got[key] == pytest.approx(value)
  if name == 'record':
    assert [a.decode() for a in got['answers']] == want['answers']


@pytest.mark.data
def test_writing_again_keeps_or_replaces_but_never_real_data(data_dir):
  from tasks.offline import writer

  def write(**arguments):
    return writer.write(
      data_dir, ['cola'], train_size=1100, say=lambda _: None, **arguments
    )

  assert write() == []
  assert write(seed=8, overwrite=True) == ['cola']
  info = os.path.join(
    offline.dataset_path(data_dir, 'glue/cola:2.0.0'), 'dataset_info.json'
  )
  with open(info) as file:
    text = file.read()
  real = text.replace(offline.SYNTHETIC, 'The Corpus')
  with open(info, 'w') as file:
    file.write(real)
  assert not offline.is_synthetic(data_dir, 'glue/cola:2.0.0')
  assert write(overwrite=True) == []
  with open(info) as file:
    assert file.read() == real
  with open(info, 'w') as file:
    file.write(text)


def test_synthetic_is_said_only_of_data_that_are_there(tmp_path):
  assert not offline.is_synthetic(str(tmp_path), 'glue/rte:2.0.0')


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'names': ['mnlli']}, "'mnlli'.*did you mean 'mnli'"),
    ({'train_size': 10}, 'train_size=10 .* at least 1032'),
  ],
)
def test_wrong_arguments_are_one_clear_line(tmp_path, arguments, message):
  from tasks.offline import writer

  with pytest.raises(InputError, match=message) as error:
    writer.write(str(tmp_path), **arguments)
  assert '\n' not in str(error.value)


def test_command_reports_wrong_input_with_exit_code_2(tmp_path, capsys):
  from tasks.offline import __main__

  status = __main__.main([f'--data_dir={tmp_path}', '--tasks=nope'])
  assert status == 2
  captured = capsys.readouterr()
  assert "'nope'" in captured.err
  assert 'Traceback' not in captured.err
