"""The synthetic data sets beside the demo's: true labels, right spans.

As in `test_offline.py`, a reader of its own parses the texts back.
"""

from collections.abc import Mapping
import os
import re

import pytest

from tasks import offline
from tasks.offline import datasets, rows, world
from tests.tasks.reader import answers, asked_field, good, read, relation

DEMO = {dataset.name for dataset in datasets.DEMO}
MORE = [name for name in datasets.DATASETS if name not in DEMO]
MRQA = [name for name in MORE if name.startswith('mrqa_')]
# Rows by official split, the splits as the builders' sources name them.
HALVED = {'train': 600, 'validation': 200, 'test': 50}
OFFICIAL = {'train': 600, 'validation': 200, 'test': 200}
SPLITS = {
  **dict.fromkeys(
    'multirc wic wsc copa super_glue_rte scitail'.split(), HALVED
  ),
  **dict.fromkeys(MRQA, {'train': 1600, 'validation': 300}),
  'winogrande': {
    'train_xl': 1600,
    **dict.fromkeys(('train_l', 'train_m', 'train_s', 'train_xs'), 50),
    'validation': 300,
    'test': 50,
  },
  **dict.fromkeys(('yelp_polarity', 'imdb'), {'train': 1600, 'test': 300}),
  **dict.fromkeys('paws_wiki snli e2e_cleaned gem_e2e_nlg'.split(), OFFICIAL),
  'gem_web_nlg_en': OFFICIAL,
  'web_nlg': {
    'train': 600,
    **dict.fromkeys(('validation', 'test_all', 'test_unseen'), 200),
  },
}
HIDDEN = ('multirc', 'wic', 'wsc', 'copa', 'super_glue_rte', 'winogrande')
# What the demo's vocabulary has to spell: the schemas' marks and names, and
# the pronoun.
SPELT = {
  *('Sent', '1:', '2:', '3:', '[PAR]', '[DOC]', '|', '_', 'it'),
  *('cause', 'effect', 'name', 'action', 'colour', 'area'),
  *('subject', 'predicate', 'object'),
}
LIFE = 'made sold bought moved lost found cleaned fixed'.split()
EATEN = {'food', 'apple', 'pear', 'plum'}


@pytest.fixture(scope='module')
def made():
  """All splits of a data set, as they are written."""
  cache = {}

  def splits(name):
    if name not in cache:
      cache[name] = datasets.make_splits(name)
    return cache[name]

  return splits


def labelled(splits):
  content = [row for split in splits.values() for row in split]
  return [row for row in content if row.get('label') != -1]


def judged(question, fact, answer):
  """Whether an answer, a word or a sentence, is right by the fact it is on."""
  if read(answer)['verb'] is not None:
    return relation(fact, answer) == 'entailment'
  *colour, word = answer.split()
  known = read(fact)
  return known[asked_field(question)] == word and colour in (
    [],
    [known['colour']],
  )


def test_multirc_labels_are_true_and_rows_belong_together(made):
  for split in made('multirc').values():
    groups = {}
    for number, row in enumerate(split):
      marked = re.findall(r'<b>Sent (\d+): </b>(.*?) \.<br>', row['paragraph'])
      assert [int(i) for i, _ in marked] == [1, 2, 3]
      (fact,) = (s for _, s in marked if answers(row['question'], s))
      if row['label'] != -1:
        right = judged(row['question'], fact, row['answer'])
        assert right == row['label'], row
      idx = row['idx']
      assert idx['answer'] == number
      question = groups.setdefault(idx['paragraph'], {})
      question.setdefault(idx['question'], []).append(row)
    for questions in groups.values():
      assert len(questions) == 2
      assert len({r['paragraph'] for q in questions.values() for r in q}) == 1
      for group in questions.values():
        assert len(group) == 5
        assert len({r['question'] for r in group}) == 1
        assert len({r['answer'] for r in group}) == 5
        if group[0]['label'] != -1:
          assert {r['label'] for r in group} == {0, 1}


def test_wic_senses_and_offsets(made):
  for row in labelled(made('wic')):
    eaten = set()
    for i in '12':
      sentence = row[f'sentence{i}']
      start, end = row[f'start{i}'], row[f'end{i}']
      assert sentence[start:end] == row['word'], row
      eaten.add(sentence.split()[1] in EATEN)
    assert (len(eaten) == 1) == row['label'], row


def test_wsc_spans_and_referents(made):
  for row in labelled(made('wsc')):
    words = row['text'].split()
    for i in '12':
      span = row[f'span{i}_text'].split()
      start = row[f'span{i}_index']
      assert words[start : start + len(span)] == span, row
    assert row['span2_text'] == 'it'
    *facts, claim = map(read, row['text'].split(' . '))
    (meant,) = (
      f['thing']
      for f in facts
      if (f['name'], f['verb']) == (claim['name'], claim['verb'])
    )
    assert (meant == row['span1_text'].split()[-1]) == row['label'], row


def test_copa_has_one_cause_or_effect(made):
  orders = {
    form: i for i, verb in enumerate(LIFE) for form in world_forms(verb)
  }
  for row in labelled(made('copa')):
    step = {'cause': -1, 'effect': 1}[row['question']]

    def event(text):
      (at,) = (orders[w] for w in text.split() if w in orders)
      fact = read(text)
      return at, fact['colour'], fact['thing']

    at, *rest = event(row['premise'])
    fits = [event(row[f'choice{i}']) == (at + step, *rest) for i in '12']
    assert fits == [row['label'] == 0, row['label'] == 1], row


def world_forms(verb):
  return next(pair for pair in world.VERBS if verb in pair)


def test_winogrande_has_one_option_that_fits(made):
  for row in labelled(made('winogrande')):
    *facts, claim = row['sentence'].split(' . ')
    assert row['sentence'].split().count('_') == 1
    fits = []
    for option in (row['option1'], row['option2']):
      assert any(option in fact.split() for fact in facts), row
      filled = claim.replace('_', option)
      fits.append(any(relation(f, filled) == 'entailment' for f in facts))
    assert fits == [row['label'] == 0, row['label'] == 1], row


@pytest.mark.parametrize(
  ('name', 'labels'),
  [
    ('super_glue_rte', ({'entailment'}, {'neutral', 'contradiction'})),
    ('scitail', ({'entailment'}, {'neutral'})),
  ],
)
def test_entailment_labels_are_true(made, name, labels):
  for row in labelled(made(name)):
    truth = relation(row['premise'], row['hypothesis'])
    assert truth in labels[row['label']], row


def test_paraphrase_and_review_labels_are_true(made):
  for row in labelled(made('paws_wiki')):
    same = read(row['sentence1']) == read(row['sentence2'])
    assert same == row['label'], row
  for row in labelled(made('yelp_polarity')):
    moods = {good(opinion) for opinion in row['text'].split(' . ')}
    assert moods == {bool(row['label'])}, row


@pytest.mark.parametrize('name', MRQA)
def test_mrqa_spans_say_the_answers(made, name):
  several_answers = several_spans = 0
  for row in labelled(made(name)):
    for field in ('question', 'context'):
      tokens = row[f'{field}_tokens']
      for token, start in zip(tokens['tokens'], tokens['offsets'], strict=True):
        assert row[field][start : start + len(token)] == token
      assert ' '.join(tokens['tokens']) == row[field]
    tokens = row['context_tokens']['tokens']
    assert [d['text'] for d in row['detected_answers']] == row['answers']
    for found in row['detected_answers']:
      for span in found['char_spans']:
        said = row['context'][span['start'] : span['end'] + 1]
        assert said == found['text']
      for span in found['token_spans']:
        said = tokens[span['start'] : span['end'] + 1]
        assert ' '.join(said) == found['text']
      assert len(found['char_spans']) == len(found['token_spans']) > 0
      several_spans += len(found['char_spans']) > 1
    several_answers += len(row['answers']) > 1
    # Only the sentences that answer the question say the answer.
    for sentence in re.split(r' \.(?: |$)', row['context'])[:-1]:
      right = read(sentence)['name'] and answers(row['question'], sentence)
      for answer in row['answers']:
        assert bool(right) == (f' {answer} ' in f' {sentence} '), row
        assert not right or judged(row['question'], sentence, answer)
  assert several_answers > 100
  assert bool(several_spans) == (name == 'mrqa_search_qa')


def _meaning(name, row):
  """The input of a data-to-text row as the reader's fact."""
  if name == 'gem_e2e_nlg':
    slots = dict(re.findall(r'(\w+)\[(\w+)\]', row['meaning_representation']))
  elif name == 'e2e_cleaned':
    table = row['input_text']['table']
    assert {cell['row_number'] for cell in table} == {1}
    slots = {cell['column_header']: cell['content'] for cell in table}
  else:
    if name == 'web_nlg':
      table = row['input_text']['table']
      headers = [cell['column_header'] for cell in table]
      assert headers == ['subject', 'predicate', 'object'] * (len(table) // 3)
      assert [cell['row_number'] for cell in table] == [
        i // 3 for i in range(len(table))
      ]
      texts = [cell['content'] for cell in table]
      triples = list(zip(texts[::3], texts[1::3], texts[2::3], strict=True))
    else:
      triples = [tuple(triple.split(' | ')) for triple in row['input']]
    (who, action, thing), *about = triples
    assert all(subject == thing for subject, _, _ in about)
    slots = {'name': who, 'action': action, 'thing': thing}
    names = {'was': 'colour', 'in': 'area', 'on': 'day'}
    slots |= {names[p]: value for _, p, value in about}
  return read(' '.join(slots.values()))


def _input(row):
  return repr(
    row.get('input') or row.get('input_text') or row['meaning_representation']
  )


@pytest.mark.parametrize('name', ['e2e_cleaned', 'web_nlg'])
def test_rows_share_inputs_and_tell_them(made, name):
  owner = {}
  for split, content in made(name).items():
    texts = {}
    for row in content:
      assert read(row['target_text']) == _meaning(name, row), row
      texts.setdefault(_input(row), []).append(row['target_text'])
    counts = {len(t) for t in texts.values()}
    assert counts >= {2, 3, 4}
    assert all(len(set(t)) == len(t) for t in texts.values())
    for one in texts:
      assert owner.setdefault(one, split) == split


@pytest.mark.parametrize('name', ['gem_e2e_nlg', 'gem_web_nlg_en'])
def test_gem_has_references_where_it_is_tested(made, name):
  splits = made(name)
  for split, content in splits.items():
    counts = set()
    for number, row in enumerate(content):
      counts.add(len(row['references']))
      assert row['gem_id'] == f'{name[4:]}-{split}-{number}'
      assert row['references'][:1] in ([], [row['target']])
      assert len(set(row['references'])) == len(row['references'])
      for text in (row['target'], *row['references']):
        assert read(text) == _meaning(name, row), row
    assert counts == ({0} if split == 'train' else {2, 3, 4})


def test_web_nlg_tests_on_a_category_that_is_never_trained_on(made):
  found = {
    split: {row['input_text']['context'] for row in content}
    for split, content in made('web_nlg').items()
  }
  assert found['test_unseen'] == {'dish'}
  assert 'dish' not in found['train'] | found['validation']
  assert found['test_all'] == set(world.CLASSES)


@pytest.mark.parametrize('name', MORE)
def test_splits_and_labels(made, name):
  splits = made(name)
  assert {k: len(content) for k, content in splits.items()} == SPLITS[name]
  for split, content in splits.items():
    labels = [row['label'] for row in content if 'label' in row]
    if not labels:
      continue
    if split == 'test' and name in HIDDEN:
      assert set(labels) == {-1}
    else:
      last = 2 if name == 'snli' else 1
      assert set(labels) == set(range(last + 1))
      mean = sum(labels) / len(labels) / last
      assert len(labels) < 200 or 0.4 < mean < 0.6


@pytest.mark.parametrize('name', MORE)
def test_rows_are_fixed_by_the_seed_and_occur_once(made, name):
  train = datasets.DATASETS[name].train
  first = datasets.make_splits(name, seed=3, train_size=70)
  assert first == datasets.make_splits(name, seed=3, train_size=70)
  other = datasets.make_splits(name, seed=4, train_size=70)
  assert first[train] != other[train]
  assert len(first[train]) == 70
  larger = datasets.make_splits(name, seed=3, train_size=130)
  for split, content in first.items():
    assert larger[split][: len(content)] == content
    assert split == train or larger[split] == content
  ids = {'idx', 'qid', 'gem_id', 'gem_parent_id', 'webnlg_id', 'label'}
  texts = [
    repr(sorted((k, v) for k, v in row.items() if k not in ids))
    for content in made(name).values()
    for row in content
  ]
  assert len(set(texts)) == len(texts)


def _texts(value):
  """All texts in a row."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, Mapping):
    for inner in value.values():
      yield from _texts(inner)
  elif isinstance(value, list):
    for inner in value:
      yield from _texts(inner)


@pytest.mark.parametrize('name', MORE)
def test_demo_vocabulary_has_the_words(made, name):
  sentencepiece = pytest.importorskip('sentencepiece')
  model = sentencepiece.SentencePieceProcessor(
    os.path.join(
      os.path.dirname(offline.__file__), 'demo_backbone', 'spiece.model'
    )
  )
  ids = {'qid', 'subset', 'gem_id', 'gem_parent_id', 'webnlg_id'}
  words = set()
  for row in labelled(made(name)):
    for text in _texts({k: v for k, v in row.items() if k not in ids}):
      text = re.sub(r'</?br?>', ' ', text)
      # E2E's slots: name[ann].
      words.update(re.sub(r'(\w)\[(\w+)\],?', r'\1 \2', text).split())
  pieces = {word: model.encode(word) for word in words}
  assert all(model.unk_id() not in encoded for encoded in pieces.values())
  spelt = {word for word, encoded in pieces.items() if len(encoded) > 1}
  assert spelt <= SPELT


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  pytest.importorskip('tensorflow_datasets')
  from tasks.offline import writer

  folder = str(tmp_path_factory.mktemp('tfds'))
  lines = []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(rows, 'LEAST_TRAIN', 1)
    written = writer.write(folder, MORE, train_size=40, say=lines.append)
  assert written == MORE
  assert all(offline.SYNTHETIC in line for line in lines)
  return folder


def _columns(value):
  """A row as TFDS returns it: a list of dicts is a dict of lists."""
  if isinstance(value, Mapping):
    return {key: _columns(inner) for key, inner in value.items()}
  if isinstance(value, list) and value and isinstance(value[0], Mapping):
    return {key: _columns([v[key] for v in value]) for key in value[0]}
  if isinstance(value, list) and value and isinstance(value[0], list):
    columns = [_columns(inner) for inner in value]
    if isinstance(columns[0], Mapping):
      return {key: [c[key] for c in columns] for key in columns[0]}
  return value


def _plain(value):
  """What TFDS returned, as Python's own types."""
  if isinstance(value, Mapping):
    return {key: _plain(inner) for key, inner in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(inner) for inner in value]
  if hasattr(value, 'to_list'):
    return _plain(value.to_list())
  if hasattr(value, 'tolist'):
    return _plain(value.tolist())
  return value.decode() if isinstance(value, bytes) else value


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize('name', MORE)
def test_official_builders_read_the_data(data_dir, name):
  import tensorflow_datasets as tfds

  dataset = datasets.DATASETS[name]
  builder = tfds.builder(dataset.tfds_name, data_dir=data_dir)
  sizes = {k: v.num_examples for k, v in builder.info.splits.items()}
  assert sizes == {**SPLITS[name], dataset.train: 40}
  assert builder.info.description.startswith(offline.SYNTHETIC)
  assert offline.is_synthetic(data_dir, dataset.tfds_name)
  for split, content in datasets.make_splits(name, train_size=40).items():
    first = tfds.as_numpy(builder.as_dataset(split=f'{split}[:7]'))
    got = [_plain(row) for row in first]
    assert got == [_columns(row) for row in content[:7]]


@pytest.mark.data
@pytest.mark.parametrize('name', list(datasets.DATASETS))
def test_every_task_has_its_data(name):
  seqio = pytest.importorskip('seqio')
  source = seqio.TaskRegistry.get(name).source
  assert source.tfds_name == datasets.DATASETS[name].tfds_name
