"""What is registered, from which data, cut how, mixed at which rates."""

import subprocess
import sys

import numpy as np
import pytest
import seqio
import tensorflow_datasets as tfds

from mpt_jax import data
from mpt_jax.data import templates
from mpt_jax.types import InputError
import tasks
from tasks import mixtures, splits
from tasks.table import TABLE

pytestmark = pytest.mark.data

SOURCES = ['mnli', 'qnli', 'qqp', 'record', 'squad', 'sst2']
SYNTHETIC = 'SYNTHETIC DATA of a test'


# The design's names.
NAMES = (
  'mnli qnli qqp sst2 squad record stsb mrpc rte cola multirc boolq wic wsc cb'
  ' copa super_glue_rte mrqa_natural_questions mrqa_hotpot_qa mrqa_news_qa'
  ' mrqa_search_qa winogrande yelp_polarity scitail paws_wiki e2e_cleaned'
  ' gem_e2e_nlg gem_web_nlg_en web_nlg'
).split()


def test_names():
  assert set(seqio.TaskRegistry.names()) >= set(TABLE) >= set(NAMES)
  digits = {name for name in TABLE if name.endswith('_digits')}
  others = set(TABLE) - set(NAMES) - digits
  assert others == {'wsc_classification', 'imdb', 'snli'}
  # A task of classes has its digits; STS-B, QA and NLG have none.
  of_classes = {name for name in NAMES if TABLE[name].labels} | {'wsc'}
  assert digits == {f'{name}_digits' for name in of_classes}


@pytest.mark.slow
def test_importing_needs_neither_disk_nor_network():
  # A data folder and a vocabulary that cannot be read, and no sockets.
  code = (
    'import socket, sys\n'
    'def refuse(*a, **k): raise OSError("network")\n'
    'socket.socket.connect = refuse\n'
    'import tasks, seqio\n'
    'assert "mnli" in seqio.TaskRegistry.names()\n'
    'assert seqio.MixtureRegistry.get("mpt_source").total_rate > 0\n'
  )
  process = subprocess.run(
    [sys.executable, '-c', code],
    env={
      'PATH': '',
      'HOME': '/nowhere',
      'TFDS_DATA_DIR': '/nowhere',
      'MPT_JAX_VOCABULARY': '/nowhere',
      'PYTHONPATH': ':'.join(p for p in sys.path if p)
      + f':{tasks.__path__[0]}/..',
    },
    capture_output=True,
    text=True,
    check=False,
  )
  assert process.returncode == 0, process.stderr
  assert not process.stderr


@pytest.mark.parametrize('name', sorted(TABLE))
def test_labels_and_fields_are_those_of_the_data(name, tmp_path):
  row = TABLE[name]
  features = tfds.builder(row.tfds_name, data_dir=tmp_path).info.features
  fields = templates.Template(row.inputs).fields
  if row.labels:
    official = tuple(features['label'].names)
    if name.endswith('_digits'):
      assert row.labels == tuple(str(i) for i in range(len(official)))
    elif name == 'yelp_polarity':
      # The data call them 1 and 2: the negative reviews come first.
      assert (row.labels, official) == (('negative', 'positive'), ('1', '2'))
    elif name == 'imdb':
      assert (row.labels, official) == (
        ('negative', 'positive'),
        ('neg', 'pos'),
      )
    else:
      assert row.labels == official
  if row.prepare is None:
    assert set(fields) <= set(features)
    no_text = {'label', 'idx', 'start1', 'end1', 'start2', 'end2'}
    no_text |= {'gem_id', 'gem_parent_id', 'target', 'references'}
    # Every text of the data is read.
    assert set(fields) == set(features) - no_text
    if not name.endswith('_digits') and name not in ('multirc',):
      # T5's order is that of the alphabet.
      assert list(fields) == sorted(fields)


# What papers of this line report (test sizes: tasks.md, 2c; mpt_facts.md, 4);
# QQP is one smaller in TFDS 2.0.0.
PUBLISHED = {
  'mnli': (392_702, 9_832, 9_815),
  'qqp': (362_846, 1_000, 40_430),
  'qnli': (103_743, 1_000, 5_463),
  'sst2': (66_349, 1_000, 872),
  'stsb': (5_749, 750, 750),
  'mrpc': (3_668, 204, 204),
  'rte': (2_490, 138, 139),
  'cola': (8_551, 521, 522),
  'multirc': (27_243, 2_424, 2_424),
  'boolq': (9_427, 1_635, 1_635),
  'wic': (5_428, 319, 319),
  'wsc': (554, 52, 52),
  'cb': (250, 28, 28),
  'mrqa_natural_questions': (103_071, 1_000, 12_836),
  'mrqa_hotpot_qa': (71_928, 1_000, 5_901),
  'mrqa_search_qa': (116_384, 1_000, 16_980),
  'mrqa_news_qa': (73_160, 1_000, 4_212),
  'winogrande': (39_398, 1_000, 1_267),
  'yelp_polarity': (100_000, 1_000, 38_000),
  # Their SciTail has another train split.
  'scitail': (23_097, 652, 652),
  'paws_wiki': (49_401, 8_000, 8_000),
  'squad': (86_599, 1_000, 10_570),
  'imdb': (24_000, 1_000, 25_000),
  'snli': (550_152, 10_000, 10_000),
}


@pytest.mark.parametrize('name', sorted(PUBLISHED))
def test_sizes_are_the_published_ones(name):
  assert tuple(TABLE[name].sizes.values()) == PUBLISHED[name]


@pytest.mark.parametrize(
  ('name', 'bounds'),
  [
    ('rte', ('train', 'validation[:138]', 'validation[138:]')),
    # The papers' halves of an odd number; a percentage would round up.
    ('cola', ('train', 'validation[:521]', 'validation[521:]')),
    ('cb', ('train', 'validation[:28]', 'validation[28:]')),
    ('sst2', ('train[1000:]', 'train[:1000]', 'validation')),
    ('squad', ('train[1000:]', 'train[:1000]', 'validation')),
    ('record', ('train[1000:]', 'train[:1000]', 'validation')),
    ('mnli', ('train', 'validation_mismatched', 'validation_matched')),
    ('winogrande', ('train_xl[1000:]', 'train_xl[:1000]', 'validation')),
    ('yelp_polarity', ('train[1000:101000]', 'train[:1000]', 'test')),
    ('web_nlg', ('train', 'validation', 'test_all')),
    ('paws_wiki', ('train', 'validation', 'test')),
    ('cb_digits', ('train', 'validation[:28]', 'validation[28:]')),
  ],
)
def test_splits_of_official_data(name, bounds):
  row = TABLE[name]
  expected = dict(zip(('train', 'validation', 'test'), bounds, strict=True))
  assert row.splits(row.counts) == expected
  assert tuple(seqio.TaskRegistry.get(name).splits) == splits.NAMES


def _rte(count):
  return [
    {'sentence1': f's{i}', 'sentence2': 't', 'label': i % 2, 'idx': i}
    for i in range(count)
  ]


SMALL_RTE = {'train': _rte(7), 'validation': _rte(5)}


def test_synthetic_data_are_halved_as_they_are(write_tfds, caplog):
  write_tfds(
    'glue/rte:2.0.0', {'train': _rte(7), 'validation': _rte(5)}, SYNTHETIC
  )
  source = seqio.TaskRegistry.get('rte').source
  found = {
    split: [
      int(e['idx'])
      for e in source.get_dataset(split, shuffle=False).as_numpy_iterator()
    ]
    for split in splits.NAMES
  }
  assert found == {
    'train': [*range(7)],
    'validation': [0, 1],
    'test': [2, 3, 4],
  }
  assert source.num_input_examples('test') == 3
  data.check_data('rte', 'test')
  assert 'SYNTHETIC DATA: glue/rte:2.0.0' in caplog.text
  assert data.is_synthetic('rte')


def test_real_data_of_another_size_are_refused(write_tfds):
  write_tfds('glue/rte:2.0.0', SMALL_RTE)
  with pytest.raises(InputError, match="'train' .* has 7 .* has 2490"):
    data.check_data('rte', 'train')
  with pytest.raises(InputError, match='2490'):
    seqio.TaskRegistry.get('rte').get_dataset(None, 'train')


def test_a_missing_split_is_named(write_tfds):
  write_tfds('glue/rte:2.0.0', {'train': _rte(7)}, SYNTHETIC)
  with pytest.raises(InputError, match="split 'validation' .* is missing"):
    data.check_data('rte', 'train')


def test_an_empty_split_is_named(write_tfds):
  rows = [{'sentence': 's', 'label': 1, 'idx': 0}] * 1000
  write_tfds(
    'glue/sst2:2.0.0', {'train': rows, 'validation': rows[:3]}, SYNTHETIC
  )
  with pytest.raises(InputError, match="split 'train' .* is empty"):
    data.check_data('sst2', 'train')
  data.check_data('sst2', 'validation')


def test_the_data_folder_may_change(write_tfds, tmp_path_factory):
  write_tfds(
    'glue/rte:2.0.0', {'train': _rte(7), 'validation': _rte(5)}, SYNTHETIC
  )
  data.check_data('rte', 'train')
  data.set_data_dir(tmp_path_factory.mktemp('empty'))
  with pytest.raises(InputError, match='no data for'):
    data.check_data('rte', 'train')


RECORD = {
  'passage': 'Ann met Bob.\n@highlight\nBob left\n@highlight\nSo did Ann',
  'query': '@placeholder left',
  'entities': ['Ann', 'Bob'],
  'idx': {'passage': 3, 'query': 7},
}


def test_record_makes_an_example_per_answer(write_tfds):
  rows = [
    {**RECORD, 'answers': ['Bob', 'Ann']},
    {**RECORD, 'answers': [], 'entities': []},
    {**RECORD, 'answers': ['Bob']},
  ]
  folder = write_tfds('super_glue/record:1.0.2', {'train': rows})
  builder = tfds.builder('super_glue/record:1.0.2', data_dir=folder)
  task = seqio.TaskRegistry.get('record')
  ds = task.preprocessors[0](builder.as_dataset(split='train'))
  examples = list(ds.as_numpy_iterator())
  assert [e['targets'] for e in examples] == [b'Bob', b'Ann', b'<unk>', b'Bob']
  answers = [e['answers'].tolist() for e in examples]
  assert answers == [[b'Bob', b'Ann']] * 2 + [[], [b'Bob']]
  # After a full stop a highlight mark goes; elsewhere it becomes one.
  passage = b'Ann met Bob. Bob left. So did Ann'
  query = b'record query: @placeholder left entities: '
  inputs = query + b'Ann, Bob passage: ' + passage
  assert [e['inputs'] for e in examples] == [
    inputs,
    inputs,
    query + b' passage: ' + passage,
    inputs,
  ]
  target = task.postprocess_fn('x', example=examples[1], is_target=True)
  assert target == {'value': ['Bob', 'Ann'], 'group': (3, 7)}
  assert task.postprocess_fn('x', example=examples[1]) == {'value': 'x'}


def _rates(name):
  mixture = seqio.MixtureRegistry.get(name)
  return {task.name: mixture.get_rate(task) for task in mixture.tasks}


def test_mixture_rates():
  assert _rates('mpt_source') == {
    'mnli': 262_144,
    'qnli': 104_743,
    'qqp': 262_144,
    'record': 138_854,
    'squad': 87_599,
    'sst2': 67_349,
  }
  assert _rates('mpt_source_equal') == dict.fromkeys(SOURCES, 1.0)
  # T5 counts WSC's true referents only, and the papers cut Yelp.
  assert _rates('superglue_targets') == {
    'multirc': 27_243,
    'boolq': 9_427,
    'wic': 5_428,
    'wsc': 259,
    'cb': 250,
  }
  assert _rates('other_targets')['yelp_polarity'] == 100_000
  glue = 'mnli qqp qnli sst2 stsb mrpc rte cola'.split()
  assert set(_rates('glue_targets')) == set(glue)
  assert set(_rates('mrqa_targets')) == {n for n in NAMES if 'mrqa' in n}
  for group, names in mixtures.GROUPS.items():
    assert set(_rates(group)) == set(names) == set(_rates(f'{group}_equal'))
    assert set(_rates(f'{group}_equal').values()) == {1.0}


def test_a_task_from_folder_to_batch_and_score(write_tfds):
  rows = [
    {
      'premise': 'ann bought a kite',
      'hypothesis': 'ann',
      'label': i % 3,
      'idx': i,
    }
    for i in range(12)
  ]
  write_tfds(
    'super_glue/cb:1.0.2', {'train': rows, 'validation': rows}, SYNTHETIC
  )
  from tests.data import toys

  data.use_vocabulary(toys.VOCABULARY)
  lengths = {'inputs': 47, 'targets': 13}
  config = data.DatasetConfig(
    mixture_or_task_name='cb',
    task_feature_lengths=lengths,
    batch_size=5,
    num_shots=1,
  )
  iterator = data.get_train_iterator(config, 3, ['rte', 'cb'])
  assert iterator.chosen['cb'].ids['idx'] == iterator.chosen['cb'].positions
  assert sorted(i % 3 for i in iterator.chosen['cb'].positions) == [0, 1, 2]
  batch = next(iterator)
  vocabulary = data.get_vocabulary()
  text = vocabulary.decode(batch['encoder_input_tokens'][0, 3:].tolist())
  assert text == 'cb hypothesis: ann premise: ann bought a kite'
  words = {
    vocabulary.decode(t.tolist()) for t in batch['decoder_target_tokens']
  }
  assert words == {'entailment', 'contradiction', 'neutral'}

  def always_neutral(batch):
    ids = [*vocabulary.encode('neutral'), 1]
    return np.tile(ids, (len(batch['encoder_task_ids']), 1))

  scores = data.evaluate(
    data.Examples('cb', 'test', lengths),
    3,
    ['rte', 'cb'],
    always_neutral,
    4,
    progress=False,
  )
  # A third is right: recall 1, precision 1/3, F1 1/2, and 0 for the others.
  assert scores == {
    'cb': {
      'mean_3class_f1': pytest.approx(100 / 6),
      'accuracy': pytest.approx(100 / 3),
      'invalid': 0.0,
    }
  }
  floors = scores.judge('cb').floors
  assert floors == {
    'invalid': 0.0,
    'commonest': 100.0,
    'majority': pytest.approx(100 / 3),
    'majority_answer': 'entailment',
    # Precision 1/3, recall 1: F1 1/2, of one class in three.
    'majority_scores': {
      'mean_3class_f1': pytest.approx(100 / 6),
      'accuracy': pytest.approx(100 / 3),
    },
  }
  data.use_vocabulary(None)
