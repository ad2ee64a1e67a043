"""A registered task: whose its examples are, and what they keep."""

import json

import numpy as np
import pytest
import seqio
import tensorflow as tf

from mpt_jax import data
from mpt_jax.checkpoints.texts import TaskText
from mpt_jax.data import register
from mpt_jax.types import InputError
from tests.data.toys import make_text

pytestmark = pytest.mark.data


def test_identity_of_a_name_never_changes():
  # Cached data carry these numbers.
  assert data.task_identity('mnli') == 1466428351
  assert data.task_identity('rte') == 1589595145


def test_examples_keep_their_text_and_know_their_task(make_task):
  task = make_task('toy_known')
  ds = task.get_dataset({'inputs': 41, 'targets': 11}, 'train', shuffle=False)
  example = next(ds.as_numpy_iterator())
  assert (
    example['inputs_pretokenized']
    == make_text('toy_known', 'train', 0).encode()
  )
  assert example['targets_pretokenized'] == b'red'
  assert example['task_id'].tolist() == [data.task_identity('toy_known')]
  assert example['task_id'].dtype == np.int32
  assert 'task_id_pretokenized' not in example
  assert example['inputs'][-1] == example['targets'][-1] == 1


def test_the_end_mark_survives_seqios_own_cutting(make_task):
  task = make_task('toy_cut')
  ds = task.get_dataset({'inputs': 5, 'targets': 11}, 'train', shuffle=False)
  for example in ds.as_numpy_iterator():
    assert len(example['inputs']) <= 5
    assert example['inputs'][-1] == 1


def test_a_name_can_be_used_once(make_task):
  make_task('toy_once')
  with pytest.raises(InputError, match="'toy_once' is registered already"):
    make_task('toy_once')


def test_two_tasks_with_one_identity_are_refused(make_task, monkeypatch):
  make_task('toy_first')
  monkeypatch.setattr(register.rows, 'task_identity', lambda name: 7)
  with pytest.raises(InputError, match='would share the identity 7'):
    make_task('toy_second')
  assert 'toy_second' not in seqio.TaskRegistry.names()


def test_rows_follow_the_models_list_not_the_mixture(mixture):
  names = ['toy_c', 'other', 'toy_a', 'toy_b']
  assert data.task_rows(names, 'toy_mix') == {
    'toy_a': 2,
    'toy_b': 3,
    'toy_c': 0,
  }
  assert data.task_rows(names, 'toy_b') == {'toy_b': 3}
  assert data.task_rows((), 'toy_mix') == dict.fromkeys(
    ('toy_a', 'toy_b', 'toy_c'), 0
  )


def test_a_task_without_a_prompt_is_named(mixture):
  message = r"\['toy_b', 'toy_c'\] of 'toy_mix' have no prompt"
  with pytest.raises(InputError, match=message):
    data.task_rows(['toy_a', 'other'], 'toy_mix')


def test_a_task_listed_twice_is_refused(mixture):
  with pytest.raises(InputError, match='more than once'):
    data.task_rows(['toy_a', 'toy_a'], 'toy_a')


def test_a_plain_task_works_with_one_prompt_only(make_task):
  make_task('toy_plain', plain=True)
  assert data.task_rows(['anything'], 'toy_plain') == {'toy_plain': 0}
  with pytest.raises(InputError, match='carry no task identity'):
    data.task_rows(['toy_plain', 'toy_b'], 'toy_plain')


def test_an_unknown_name_gets_the_nearest(make_task):
  make_task('toy_nearby')
  with pytest.raises(InputError, match="did you mean 'toy_nearby'"):
    data.task_rows((), 'toy_nerby')


NLI = 'nli premise: {premise} hypothesis: {hypothesis}'


class TestTaskTexts:
  """What a bundle will say of its tasks; a plain row gives the same text."""

  @pytest.fixture
  def register(self):
    made = []

    def call(name, *args, **kwargs):
      made.append(name)
      return data.register_task(name, *args, **kwargs)

    yield call
    for name in made:
      seqio.TaskRegistry.remove(name)

  @pytest.mark.parametrize(
    'row',
    [
      {'p': ' a {x} "b"', 'h': 'é\n', 'gold': 'yes'},
      {'p': 3, 'h': -0.5, 'gold': 0},
      {'p': True, 'h': '', 'gold': 1},
    ],
  )
  def test_a_file_of_rows(self, register, tmp_path, row):
    (tmp_path / 'a.jsonl').write_text(json.dumps(row) + '\n')
    columns = {'premise': 'p', 'hypothesis': 'h', 'label': 'gold'}
    task = register(
      'own_text',
      tmp_path / 'a.jsonl',
      inputs=NLI,
      labels=('no', 'yes'),
      columns=columns,
    )
    text = data.task_texts(['own_text', 'no_task'], 'train')['own_text']
    assert text == TaskText(NLI, '{label}', ('no', 'yes'), columns)
    ds = task.get_dataset(None, 'train', shuffle=False)
    [example] = ds.as_numpy_iterator()
    assert text.fill(row) == example['inputs_pretokenized'].decode()
    answer = example['targets_pretokenized'].decode()
    assert answer in text.answers().values()

  def test_what_other_code_writes(self, register, tmp_path, write_tfds):
    (tmp_path / 'a.jsonl').write_text('{"premise": "a", "hypothesis": "b"}\n')

    def upper(ds):
      return ds.map(
        lambda e: {**e, 'premise': tf.strings.upper(e['premise']), 'label': 1}
      )

    register(
      'own_prepared',
      lambda split: [{'premise': 'a', 'hypothesis': 'b', 'label': 1}],
      inputs=NLI,
      labels=('no', 'yes'),
      preprocessors=[upper],
    )
    register('own_code', tmp_path / 'a.jsonl', preprocessors=[upper])
    texts = data.task_texts(['own_code', 'own_prepared'], 'train')
    assert texts == {
      'own_code': TaskText(),
      'own_prepared': TaskText(None, '{label}', ('no', 'yes')),
    }

  def test_numbers_that_tensorflow_writes_otherwise(self, register, write_tfds):
    row = {'sentence1': 'a', 'sentence2': 'b', 'label': 3.5, 'idx': 1}
    write_tfds('glue/stsb:2.0.0', {'train': [row], 'validation': [row]})
    for name, inputs in (('own_float', '{label}'), ('own_int', '{idx}')):
      register(name, 'glue/stsb:2.0.0', inputs=inputs, targets='{sentence1}')
    texts = data.task_texts(['own_float', 'own_int'], 'train')
    assert texts['own_float'] == TaskText()
    assert texts['own_int'] == TaskText('{idx}', '{sentence1}')
    # No data, no word.
    assert data.task_texts(['own_int'], 'nowhere') == {}
