"""The converter of T5X and SeqIO against hand-written rows and a plain packer.

A slot that is off by one, or a row of the wrong task, trains without an error
and only shows as a bad score. So exact features are compared.
"""

import numpy as np
import pytest
import seqio
import tensorflow as tf

from mpt_jax import data
from mpt_jax.engine import batching
from mpt_jax.types import InputError
from tests.data import toys
from tests.data.toys import LENGTHS, read_segments

pytestmark = pytest.mark.data

NAMES = ('toy_b', 'toy_a')


def _dataset(*examples):
  """examples: (inputs, targets, task name or None)."""
  signature = {
    'inputs': tf.TensorSpec([None], tf.int32),
    'targets': tf.TensorSpec([None], tf.int32),
  }
  if examples[0][2] is not None:
    signature['task_id'] = tf.TensorSpec([1], tf.int32)

  def generate():
    for inputs, targets, name in examples:
      example = {'inputs': inputs, 'targets': targets}
      if name is not None:
        example['task_id'] = [data.task_identity(name)]
      yield example

  return tf.data.Dataset.from_generator(generate, output_signature=signature)


def _convert(ds, lengths, **kwargs):
  converter = data.PromptFeatureConverter(**kwargs)
  return list(converter(ds, lengths).as_numpy_iterator())


TWO = ([11, 12, 1], [5, 1], 'toy_a'), ([13, 1], [6, 7, 1], 'toy_b')


def test_unpacked_rows_by_hand():
  rows = _convert(
    _dataset(*TWO),
    {'inputs': 7, 'targets': 4},
    prompt_length=3,
    task_names=NAMES,
  )
  expected = [
    {
      'encoder_input_tokens': [2, 2, 2, 11, 12, 1, 0],
      'encoder_prompt_slots': [1, 2, 3, 0, 0, 0, 0],
      'encoder_task_ids': [1, 1, 1, 1, 1, 1, 0],
      'decoder_target_tokens': [5, 1, 0, 0],
      'decoder_input_tokens': [0, 5, 1, 0],
      'decoder_loss_weights': [1, 1, 0, 0],
    },
    {
      'encoder_input_tokens': [2, 2, 2, 13, 1, 0, 0],
      'encoder_prompt_slots': [1, 2, 3, 0, 0, 0, 0],
      'encoder_task_ids': [0] * 7,
      'decoder_target_tokens': [6, 7, 1, 0],
      'decoder_input_tokens': [0, 6, 7, 1],
      'decoder_loss_weights': [1, 1, 1, 0],
    },
  ]
  assert [{k: v.tolist() for k, v in row.items()} for row in rows] == expected
  assert {v.dtype for v in rows[0].values()} == {np.dtype('int32')}


def test_packed_row_by_hand():
  [row] = _convert(
    _dataset(*TWO),
    {'inputs': 13, 'targets': 7},
    pack=True,
    prompt_length=3,
    task_names=NAMES,
  )
  assert {k: v.tolist() for k, v in row.items()} == {
    'encoder_input_tokens': [2, 2, 2, 11, 12, 1, 2, 2, 2, 13, 1, 0, 0],
    'encoder_prompt_slots': [1, 2, 3, 0, 0, 0, 1, 2, 3, 0, 0, 0, 0],
    'encoder_task_ids': [1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0],
    'encoder_segment_ids': [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 0, 0],
    'encoder_positions': [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 0, 0],
    'decoder_target_tokens': [5, 1, 6, 7, 1, 0, 0],
    'decoder_input_tokens': [0, 5, 0, 6, 7, 0, 0],
    'decoder_loss_weights': [1, 1, 1, 1, 1, 0, 0],
    'decoder_segment_ids': [1, 1, 2, 2, 2, 0, 0],
    'decoder_positions': [0, 1, 0, 1, 2, 0, 0],
  }


@pytest.mark.parametrize('prompt_length', [0, 3])
def test_an_example_is_cut_before_its_end_mark(prompt_length):
  limit = prompt_length + 4
  long, fits = [11, 12, 13, 14, 15, 1], [11, 12, 13, 1]
  # What is left of the long one when SeqIO has cut it to the limit before.
  trimmed = [11, 12, 13, 14, 15, 1][:limit]
  rows = _convert(
    _dataset(
      (long, [5] * 6 + [1], 'toy_a'),
      (trimmed, [5, 6, 1], 'toy_a'),
      (fits, [5, 1], 'toy_a'),
    ),
    {'inputs': limit, 'targets': 3},
    prompt_length=prompt_length,
    task_names=['toy_a'],
  )
  inputs = [r['encoder_input_tokens'][prompt_length:].tolist() for r in rows]
  assert inputs == [[11, 12, 13, 1]] * 3
  targets = [r['decoder_target_tokens'].tolist() for r in rows]
  assert targets == [[5, 5, 1], [5, 6, 1], [5, 1, 0]]


def _random_examples(seed, count=61):
  rng = np.random.default_rng(seed)
  return [
    (
      [*rng.integers(3, 99, rng.integers(0, 12)).tolist(), 1],
      [*rng.integers(3, 99, rng.integers(0, 4)).tolist(), 1],
      NAMES[rng.integers(2)],
    )
    for _ in range(count)
  ]


def _as_examples(examples):
  return [
    batching.Example(np.array(i), np.array(t), NAMES.index(name))
    for i, t, name in examples
  ]


def test_unpacked_equals_the_training_batches():
  examples = _random_examples(0)
  rows = _convert(
    _dataset(*examples),
    {'inputs': 19, 'targets': 5},
    prompt_length=5,
    task_names=NAMES,
  )
  batch = batching.lay_out(
    [[e] for e in _as_examples(examples)], (61, 19, 5), 5, packed=False
  )
  assert set(batch) == set(rows[0])
  for name, value in batch.items():
    np.testing.assert_array_equal(value, [r[name] for r in rows], name)


def test_packed_equals_a_plain_packer():
  examples = _random_examples(1)
  source, target, prompt = 47, 13, 5
  # SeqIO's rule: into the open row, or else into a new one; rows end at the
  # end of each chunk of max(lengths) examples.
  groups = []
  for start in range(0, len(examples), source):
    room = (0, 0)
    for example in _as_examples(examples[start : start + source]):
      need = prompt + len(example.inputs), len(example.targets)
      if need[0] > room[0] or need[1] > room[1]:
        groups.append([])
        room = source, target
      groups[-1].append(example)
      room = room[0] - need[0], room[1] - need[1]
  assert max(map(len, groups)) > 2
  rows = _convert(
    _dataset(*examples),
    {'inputs': source, 'targets': target},
    pack=True,
    prompt_length=prompt,
    task_names=NAMES,
  )
  batch = batching.lay_out(
    groups, (len(groups), source, target), prompt, packed=True
  )
  assert set(batch) == set(rows[0])
  for name, value in batch.items():
    np.testing.assert_array_equal(value, [r[name] for r in rows], name)


def test_one_prompt_needs_no_identity_several_do():
  ds = _dataset(([11, 1], [5, 1], None))
  lengths = {'inputs': 7, 'targets': 4}
  for names in ((), ('any',)):
    [row] = _convert(ds, lengths, prompt_length=3, task_names=names)
    assert row['encoder_task_ids'].tolist() == [0] * 7
  with pytest.raises(InputError, match="carry no 'task_id'"):
    _convert(ds, lengths, prompt_length=3, task_names=('any', 'other'))


def test_a_task_that_is_not_listed_never_trains_a_row():
  ds = _dataset(([11, 1], [5, 1], 'toy_z'))
  with pytest.raises(tf.errors.InvalidArgumentError, match='belongs to none'):
    _convert(ds, {'inputs': 7, 'targets': 4}, prompt_length=3, task_names=NAMES)


@pytest.mark.parametrize('length', [3, 5])
def test_no_room_beside_the_prompt(length):
  message = rf"\['inputs'\]={length} .*PROMPT_LENGTH=5"
  with pytest.raises(InputError, match=message):
    _convert(
      _dataset(*TWO),
      {'inputs': length, 'targets': 4},
      prompt_length=5,
      task_names=NAMES,
    )


@pytest.mark.parametrize('pack', [False, True])
def test_in_seqio_get_dataset(mixture, pack):
  names = ('toy_c', 'toy_a', 'toy_b')
  ds = seqio.get_dataset(
    'toy_mix',
    LENGTHS,
    data.PromptFeatureConverter(pack=pack, prompt_length=3, task_names=names),
    dataset_split='validation',
    shuffle=True,
    num_epochs=None,
    seed=0,
  )
  rows = list(ds.take(20).as_numpy_iterator())
  assert {r['encoder_task_ids'][0] for r in rows} == {0, 1, 2}
  if pack:
    batch = {k: np.stack([r[k] for r in rows]) for k in rows[0]}
    assert len(list(read_segments(batch, 3))) > 40


def test_in_seqios_evaluator(mixture):
  """Our evaluation computes what SeqIO's own does."""
  names = ('toy_c', 'toy_a', 'toy_b')

  def predict(batch):
    # Depends on the features and on the row, and is sometimes wrong.
    out = np.array(batch['decoder_target_tokens'])
    sums = np.sum(batch['encoder_input_tokens'], axis=1)
    wrong = (sums + batch['encoder_task_ids'][:, 0]) % 3 == 0
    out[wrong] = out[wrong][:, ::-1]
    return out

  def predict_fn(ds):
    batches = ds.batch(100).as_numpy_iterator()
    return [
      (int(i), tokens)
      for index, batch in batches
      for i, tokens in zip(index, predict(batch), strict=True)
    ]

  evaluator = seqio.Evaluator(
    'toy_mix',
    data.PromptFeatureConverter(prompt_length=3, task_names=names),
    eval_split='validation',
    sequence_length=LENGTHS,
    async_compute_metrics=False,
  )
  metrics, _ = evaluator.evaluate(compute_metrics=True, predict_fn=predict_fn)
  expected = metrics.result()
  ours = data.evaluate(
    toys.examples('toy_mix', 'validation', LENGTHS),
    3,
    names,
    predict,
    7,
    progress=False,
  )
  assert ours == expected
  assert 0 < ours['toy_a']['right'] < 100
