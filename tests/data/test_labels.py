"""Labels: what a column holds, what a model can say, what has no label."""

import csv
import json
import logging

import numpy as np
import pytest
import seqio

from mpt_jax import data
from mpt_jax.data import labels, templates
from mpt_jax.types import InputError
from tests.data import toys
from tests.data.toys import percent_right

pytestmark = pytest.mark.data

LENGTHS = {'inputs': 40, 'targets': 11}


def _write(path, cells):
  """A file of rows with a text and a label; `...` leaves the label out."""
  rows = [
    {'text': f'pear {i}'} | ({} if cell is ... else {'label': cell})
    for i, cell in enumerate(cells)
  ]
  with path.open('w') as file:
    if path.suffix == '.jsonl':
      file.writelines(json.dumps(row) + '\n' for row in rows)
    else:
      writer = csv.writer(file, delimiter='\t')
      writer.writerow(['text', 'label'])
      writer.writerows([row['text'], row['label']] for row in rows)
  return path


def _register(register, folder, words, splits):
  """Registers `own` from files: {split: (kind, cells)}."""
  paths = {
    split: _write(folder / f'{split}.{kind}', cells)
    for split, (kind, cells) in splits.items()
  }
  return register(
    'own',
    paths,
    inputs='own text: {text}',
    labels=words,
    metric_fns=[percent_right],
  )


def _targets(task, split='train'):
  ds = task.get_dataset(None, split, shuffle=False)
  return [e['targets_pretokenized'].decode() for e in ds.as_numpy_iterator()]


ONE_TWO = ('1', '2')


@pytest.mark.parametrize(
  ('words', 'kind', 'cells', 'targets'),
  [
    # Numbers are ids.
    (ONE_TWO, 'jsonl', [0, 1, 1, 0], '1 2 2 1'),
    (('1', '0'), 'jsonl', [0, 1], '1 0'),
    (('0', '1'), 'jsonl', [0, 1], '0 1'),
    (('2', '0', '1'), 'jsonl', [0, 1, 2], '2 0 1'),
    (('no', 'yes'), 'jsonl', [0.0, 1.0], 'no yes'),
    # Texts are words, where all of them are.
    (ONE_TWO, 'tsv', ['1', '2', '1'], '1 2 1'),
    (ONE_TWO, 'jsonl', ['2', '1'], '2 1'),
    (ONE_TWO, 'tsv', ['1', '1'], '1 1'),
    (('1', '0'), 'tsv', ['0', '1'], '0 1'),
    (('-1', '1'), 'tsv', ['-1', '1'], '-1 1'),
    (('0', '1'), 'tsv', ['1', '0'], '1 0'),
    # Else they are ids.
    (ONE_TWO, 'tsv', ['0', '1'], '1 2'),
    (('no', 'yes'), 'tsv', ['1', '0'], 'yes no'),
    (('no', 'yes'), 'tsv', ['1.0', '0.0'], 'yes no'),
    # A truth value is the word that it is written as.
    (('False', 'True'), 'jsonl', [True, False], 'True False'),
    (('true', 'false'), 'jsonl', [True, False], 'true false'),
    # Hidden in every way.
    (
      ('no', 'yes'),
      'jsonl',
      [1, None, '', float('nan'), ..., -1, -100],
      'yes' + 6 * ' <unk>',
    ),
    (('no', 'yes'), 'tsv', ['no', '', '-1'], 'no <unk> <unk>'),
  ],
)
def test_a_column_is_read_as_what_it_holds(
  register, tmp_path, words, kind, cells, targets
):
  task = _register(register, tmp_path, words, {'train': (kind, cells)})
  assert ' '.join(_targets(task)) == targets


@pytest.mark.parametrize(
  ('words', 'kind', 'cells', 'message'),
  [
    (ONE_TWO, 'jsonl', [1, 2], r'jsonl:2: label 2 is outside .* class id, 0'),
    (
      ONE_TWO,
      'tsv',
      ['0', '2'],
      r"tsv:2: label '0' is a class id .*'2' \(.*:3",
    ),
    (ONE_TWO, 'jsonl', [0, '1'], r"jsonl:2: label '1' is a text, .* 0 .*:1\)"),
    (('-1', '1'), 'jsonl', [1, -1], r'jsonl:2: label -1 is outside'),
    (('no', 'yes'), 'jsonl', [True], r'jsonl:1: label True is outside'),
    (
      ('yes', 'no'),
      'jsonl',
      [False],
      r'label False .* or the class id, 0 to 1',
    ),
    (('no', 'yes'), 'jsonl', [0.5], r'jsonl:1: label 0.5 is outside'),
    (('no', 'yes'), 'jsonl', [2], r'jsonl:1: label 2 is outside'),
    (('no', 'yes'), 'jsonl', [[1]], r'label \[1\] is outside'),
    (('no', 'yes'), 'tsv', ['no', ' yes'], r"tsv:3: label ' yes' is outside"),
    (('no', 'yes'), 'tsv', ['nan'], r"label 'nan' is outside"),
  ],
)
def test_a_column_that_can_be_read_in_no_way_or_two(
  register, tmp_path, words, kind, cells, message
):
  _register(register, tmp_path, words, {'train': (kind, cells)})
  with pytest.raises(InputError, match=message):
    data.check_data('own', 'train')


@pytest.mark.parametrize('order', [('train', 'test'), ('test', 'train')])
def test_a_small_split_does_not_flip_the_reading(register, tmp_path, order):
  task = _register(
    register,
    tmp_path,
    ONE_TWO,
    {'train': ('tsv', ['0', '1', '1']), 'test': ('tsv', ['1', '1'])},
  )
  read = {split: _targets(task, split) for split in order}
  assert read == {'train': ['1', '2', '2'], 'test': ['2', '2']}


def test_splits_that_differ_are_refused(register, tmp_path):
  _register(
    register,
    tmp_path,
    ONE_TWO,
    {'train': ('jsonl', [0, 1]), 'test': ('tsv', ['1', '2'])},
  )
  for split in ('train', 'test'):
    with pytest.raises(InputError, match=r"label 0 .* but label '2' .*tsv:3"):
      data.check_data('own', split)


def test_other_splits_of_a_function_decide_too(register):
  def rows(split):
    cells = {'train': ['0', '1'], 'test': ['1']}[split]
    return [{'text': 'pear', 'label': cell} for cell in cells]

  # There is no validation split.
  task = register('own', rows, inputs='{text}', labels=ONE_TWO)
  assert _targets(task, 'test') == ['2']


def test_numbers_of_numpy(register):
  rows = [{'text': 'pear', 'label': n} for n in np.array([1, 0, -1])]
  rows.append({'text': 'pear', 'label': np.float32('nan')})
  task = register(
    'own', lambda split: rows, inputs='{text}', labels=('no', 'yes')
  )
  assert _targets(task) == ['yes', 'no', '<unk>', '<unk>']


def test_words_and_ids_in_one_column_are_said(register, tmp_path, caplog):
  task = _register(
    register, tmp_path, ('no', 'yes'), {'train': ('jsonl', ['yes', 0])}
  )
  assert _targets(task) == ['yes', 'no']
  [record] = caplog.records
  assert 'train.jsonl:2: the label column holds class ids too (0)' in (
    record.getMessage()
  )


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    ('no', "task 'own': labels='no' is no list of words"),
    (('no', 'yes', 'no'), "word 'no' stands for the classes 0 and 2"),
    (('no', ''), "word '' of class 1 is no text"),
    ((0, 1), "word 0 of class 0 is no text .* write it as '0'"),
    ((), 'labels are empty'),
    (7, 'labels=7 is no list'),
  ],
)
def test_words_that_are_none(register, words, message):
  with pytest.raises(InputError, match=message):
    register('own', 'a.jsonl', inputs='{text}', labels=words)
  assert 'own' not in seqio.TaskRegistry.names()


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (('no', 'caf\u00e9'), r"word 'caf\u00e9' cannot be written .*\u2047"),
    (('\U0001f44e', 'yes'), "task 'own': label word '\U0001f44e' cannot"),
    (('no', 'yes '), "word 'yes ' comes back from the vocabulary as 'yes'"),
    ((' no', 'yes'), "word ' no' comes back from the vocabulary as 'no'"),
    (('so  so', 'yes'), "word 'so  so' comes back .* as 'so so'"),
    (('no', 'xyzxyzxyzxyz'), r'has 1\d tokens .* is 11: raise it to 1\d'),
  ],
)
def test_words_that_a_model_cannot_say(register, words, message):
  register(
    'own',
    lambda split: [{'text': 'pear', 'label': i} for i in (0, 1)],
    inputs='{text}',
    labels=words,
    metric_fns=[percent_right],
  )
  for read in (_iterator, _evaluate, _predict):
    with pytest.raises(InputError, match=message):
      read('own')


def test_whole_answers_are_checked():
  def check(words, targets):
    answers = templates.Wording('{text}', targets, words).answers
    labels.check_writable(answers, data.get_vocabulary(), 11, 'own')

  check(('no', 'yes'), 'it is {label}')
  with pytest.raises(InputError, match=r"'no' \(written 'it is no '\) comes"):
    check(('no', 'yes'), 'it is {label} ')
  # Of a text with other fields only the word is known.
  check(('no', 'yes'), 'it is {label} {why} ')


def _config(**kwargs):
  return data.DatasetConfig(
    mixture_or_task_name='own',
    task_feature_lengths=LENGTHS,
    batch_size=4,
    **kwargs,
  )


def _iterator(name, **kwargs):
  del name
  return data.get_train_iterator(_config(**kwargs), 3, ['own'])


def _say(text):
  """A model that says one text to everything."""
  ids = [*data.get_vocabulary().encode(text), 1]

  def predict(batch):
    tokens = np.zeros_like(batch['decoder_target_tokens'])
    tokens[:, : len(ids)] = ids
    return tokens

  return predict


def _evaluate(name, split='test', said='yes'):
  return data.evaluate(
    toys.examples(name, split, LENGTHS),
    3,
    [name],
    _say(said),
    4,
    progress=False,
  )


def _predict(name, split='test'):
  return list(
    data.predict(
      toys.examples(name, split, LENGTHS),
      3,
      [name],
      _say('yes'),
      4,
      progress=False,
    )
  )


def _drawn(batches, count=3):
  """The different target texts of some batches."""
  vocabulary = data.get_vocabulary()
  return {
    vocabulary.decode(row.tolist())
    for _ in range(count)
    for row in next(batches)['decoder_target_tokens']
  }


def test_an_answer_around_the_word_is_scored(register):
  rows = [{'text': 'pear', 'label': i} for i in (0, 1, 1, 1)]
  task = register(
    'own',
    lambda split: rows,
    inputs='{text}',
    targets='it is {label}',
    labels=('no', 'yes'),
    metric_fns=[percent_right],
  )
  assert task.postprocess_fn('it is yes') == 1
  assert task.postprocess_fn('yes') == -1
  assert _evaluate('own', said='it is yes') == {'own': {'right': 75.0}}


@pytest.mark.parametrize(
  ('targets', 'message'),
  [
    ('{label} since {why}', 'not told by its label alone.*postprocess_fn'),
    ('{answer}', r'do not hold \{label\}'),
  ],
)
def test_a_class_that_the_target_does_not_tell(register, targets, message):
  with pytest.raises(InputError, match=message):
    register(
      'own', 'a.tsv', inputs='{text}', targets=targets, labels=('no', 'yes')
    )


def test_some_without_a_label(register, tmp_path, caplog):
  cells = [1, None, 0, 1, -1]
  _register(
    register,
    tmp_path,
    ('no', 'yes'),
    {'train': ('jsonl', cells), 'test': ('jsonl', cells)},
  )
  batches = _iterator('own')
  assert batches.num_examples == {'own': 3}
  assert batches.counts['own'].unlabelled == 2
  assert _drawn(batches) == {'no', 'yes'}
  # Two of the three that have a label are right.
  assert _evaluate('own')['own']['right'] == pytest.approx(200 / 3)
  assert [a['targets'] for a in _predict('own')] == (
    ['yes', '<unk>', 'no', 'yes', '<unk>']
  )
  said = [r.getMessage() for r in caplog.records]
  for split, what in (('train', 'trained on'), ('test', 'scored')):
    assert (
      f'own/{split}: 2 of 5 examples (40.0 %) have no label: not {what}' in said
    )


def test_few_shots_of_those_with_a_label(register, tmp_path, caplog):
  cells = [None, 1, 0, None, 1, 0, 1]
  _register(
    register, tmp_path, ('no', 'yes', 'what'), {'train': ('jsonl', cells)}
  )
  batches = _iterator('own', num_shots=2)
  choice = batches.chosen['own']
  assert len(choice.positions) == 4
  assert choice.ids['idx'] == choice.positions
  assert [cells[i] for i in choice.positions] == [
    ('no', 'yes').index(t) for t in choice.targets
  ]
  assert _drawn(batches) == {'no', 'yes'}
  assert "own/train: no example of class 'what'" in caplog.text


@pytest.mark.parametrize('column', ['absent', 'empty', 'negative'])
def test_none_has_a_label(register, tmp_path, column):
  cell = {'absent': ..., 'empty': None, 'negative': -1}[column]
  kind = 'jsonl', [cell] * 3
  _register(register, tmp_path, ('no', 'yes'), {'train': kind, 'test': kind})
  message = "task 'own': none of the 3 examples of split 'train' has a label"
  with pytest.raises(InputError, match=message):
    _iterator('own')
  with pytest.raises(InputError, match="'test' of 'own' has no labels"):
    _evaluate('own')
  with pytest.raises(InputError, match="'test' of 'own' has no labels"):
    data.examine(toys.examples('own', 'test', LENGTHS), 3, ['own'])
  assert [a['prediction'] for a in _predict('own')] == ['yes'] * 3


def test_a_table_without_the_column(register, tmp_path):
  (tmp_path / 'test.csv').write_text('text\npear\nplum\n')
  register(
    'own', {'test': tmp_path / 'test.csv'}, inputs='{text}', labels=('a', 'b')
  )
  data.check_data('own', 'test')
  assert len(_predict('own')) == 2


def test_a_task_without_labels_is_left_out_of_a_mixture(
  register, tmp_path, make_task, caplog
):
  make_task('toy_known', metric_fns=[percent_right])
  _register(
    register, tmp_path, ('no', 'yes'), {'validation': ('jsonl', [None])}
  )
  seqio.MixtureRegistry.add('own_mix', ['toy_known', 'own'], 1.0)
  try:
    scores = data.evaluate(
      toys.examples('own_mix', 'validation', LENGTHS),
      3,
      (),
      _say('red'),
      4,
      progress=False,
    )
    found = data.examine(toys.examples('own_mix', 'validation', LENGTHS), 3, ())
  finally:
    seqio.MixtureRegistry.remove('own_mix')
  assert set(scores) == {'toy_known'}
  assert [found[name].labelled for name in ('toy_known', 'own')] == [23, 0]
  assert "'own', split 'validation': no example has a label" in caplog.text


def test_labels_of_tfds_that_are_hidden(register, write_tfds):
  rows = [
    {'premise': 'pear', 'hypothesis': 'h', 'label': n, 'idx': 0}
    for n in (-1, 1, -1)
  ]
  write_tfds('super_glue/cb:1.0.2', {'train': rows})
  register(
    'own', 'super_glue/cb:1.0.2', inputs='{premise}', labels=('no', 'yes')
  )
  batches = _iterator('own')
  assert _drawn(batches) == {'yes'}
  assert batches.counts['own'].unlabelled == 2


def test_label_words_in_a_data_source(register):
  import tensorflow as tf

  def source(cells):
    return seqio.FunctionDataSource(
      lambda split, shuffle_files=False, seed=None: (
        tf.data.Dataset.from_tensor_slices(
          {'text': ['pear'] * len(cells), 'label': cells}
        )
      ),
      splits=['train'],
    )

  task = register(
    'own', source(['2', '1', '']), inputs='{text}', labels=ONE_TWO
  )
  assert _targets(task) == ['2', '1', '<unk>']
  register('own_odd', source(['0', '1']), inputs='{text}', labels=ONE_TWO)
  logging.getLogger('tensorflow').setLevel(logging.ERROR)
  config = data.DatasetConfig(
    mixture_or_task_name='own_odd', task_feature_lengths=LENGTHS, batch_size=1
  )
  with pytest.raises(InputError, match='outside the label words'):
    data.get_train_iterator(config, 3, ['own_odd'])
  task = register(
    'own_float', source([0.5]), inputs='{text}', labels=('no', 'yes')
  )
  with pytest.raises(InputError, match="'label' holds float32, expected"):
    _targets(task)
