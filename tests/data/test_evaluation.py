"""Evaluation and prediction; equality with SeqIO's own evaluator is tested in
`test_feature_converter`.
"""

import numpy as np
import pytest
import seqio

from mpt_jax import data
from mpt_jax.data import evaluation
from mpt_jax.types import InputError
from tests.data import toys
from tests.data.toys import LABELS, LENGTHS, make_text

pytestmark = pytest.mark.data

NAMES = ('toy_b', 'toy_a', 'toy_c')


def _echo(batch):
  return batch['decoder_target_tokens']


def _evaluate(name, predict_fn=_echo, batch_size=7, **kwargs):
  return data.evaluate(
    toys.examples(
      name, 'validation', num_examples=kwargs.pop('num_examples', None)
    ),
    3,
    kwargs.pop('task_names', NAMES),
    predict_fn,
    batch_size,
    progress=False,
    **kwargs,
  )


def test_every_task_of_a_mixture(mixture):
  right = {'right': 100.0}
  assert _evaluate('toy_mix') == {
    'toy_a': right,
    'toy_b': right,
    'toy_c': right,
  }


def test_batches_are_full_and_carry_the_row(mixture):
  batches = []

  def predict(batch):
    batches.append(batch)
    return _echo(batch)

  # 23 examples: three full batches and a rest of two.
  assert _evaluate('toy_a', predict) == {'toy_a': {'right': 100.0}}
  assert [len(b['encoder_input_tokens']) for b in batches] == [7] * 4
  for batch in batches:
    used = batch['encoder_input_tokens'] > 0
    np.testing.assert_array_equal(batch['encoder_task_ids'], used * 1)
    assert used.any(axis=1).all()


def test_a_long_example_keeps_its_end_mark(make_task):
  make_task('toy_plain', plain=True)
  ends = []

  def predict(batch):
    ends.extend(batch['encoder_input_tokens'][:, -1].tolist())
    return _echo(batch)

  lengths = {'inputs': 9, 'targets': 11}
  data.evaluate(
    toys.examples('toy_plain', 'validation', lengths),
    3,
    (),
    predict,
    23,
    progress=False,
  )
  assert set(ends) == {0, 1}


def test_only_so_many_examples(mixture):
  seen = []

  def wrong(batch):
    seen.append(batch)
    return np.zeros_like(batch['decoder_target_tokens'])

  result = _evaluate('toy_b', wrong, num_examples=5)
  assert result == {'toy_b': {'right': 0.0}}
  assert len(seen) == 1


def test_models_with_other_rows_do_not_share_them(mixture):
  rows = []

  def predict(batch):
    rows.append(int(batch['encoder_task_ids'][0, 0]))
    return _echo(batch)

  for names in (NAMES, NAMES[::-1], ('toy_c',)):
    _evaluate('toy_c', predict, batch_size=23, task_names=names)
  assert rows == [2, 0, 0]


def test_a_task_without_metrics_is_skipped(make_task):
  make_task('toy_mute', metric_fns=[])
  assert _evaluate('toy_mute', task_names=['toy_mute']) == {}


def test_scores(make_task):
  def mean_score(targets, scores):
    assert len(targets) == len(scores) == 23
    return {'mean_score': float(np.mean(scores))}

  make_task('toy_score', metric_fns=[mean_score])
  with pytest.raises(InputError, match=r"'toy_score' asks for \['SCORE'\]"):
    _evaluate('toy_score', task_names=['toy_score'])
  result = _evaluate(
    'toy_score',
    task_names=['toy_score'],
    score_fn=lambda batch: np.full(len(batch['encoder_task_ids']), -2.5),
  )
  assert result == {'toy_score': {'mean_score': -2.5}}


def test_postprocessing_sees_the_example(make_task):
  def postprocess(text, example=None, is_target=False):
    return (example['inputs_pretokenized'], is_target or text)

  def check(targets, predictions):
    texts = [make_text('toy_post', 'validation', i).encode() for i in range(23)]
    assert targets == [(t, True) for t in texts]
    assert predictions == [(t, 'red') for t in texts]
    return {'n': len(targets)}

  make_task('toy_post', postprocess_fn=postprocess, metric_fns=[check])
  red = data.get_vocabulary().encode('red') + [1]

  def predict(batch):
    return np.tile(red, (len(batch['encoder_task_ids']), 1))

  for _ in range(2):
    result = _evaluate('toy_post', predict, task_names=['toy_post'])
    assert result == {'toy_post': {'n': 23.0}}


def test_predictions_come_in_the_datas_order(mixture):
  answers = list(
    data.predict(
      toys.examples('toy_mix', 'validation', LENGTHS, num_examples=6),
      3,
      NAMES,
      _echo,
      4,
      progress=False,
    )
  )
  expected = [
    {
      'task': task.name,
      'index': i,
      'inputs': make_text(task.name, 'validation', i),
      'targets': LABELS[i * i % 3],
      'prediction': LABELS[i * i % 3],
    }
    for task in seqio.MixtureRegistry.get('toy_mix').tasks
    for i in range(6)
  ]
  assert answers == expected


def test_examples_of_like_length_share_a_batch():
  rng = np.random.default_rng(0)
  lengths = np.where(
    rng.random(200) < 0.2, rng.integers(90, 150, 200), rng.integers(5, 30, 200)
  )
  examples = [
    {
      'inputs': rng.integers(2, 99, n).astype(np.int32),
      'targets': np.array([5, 1], np.int32),
    }
    for n in lengths
  ]
  widths = []

  def model(batch):
    widths.append(batch['encoder_input_tokens'].shape[1])
    real = batch['encoder_prompt_slots'] == 0
    return (batch['encoder_input_tokens'] * real).sum(axis=1)

  outputs = evaluation._run(
    model, evaluation._Split(examples), 0, (4, 160, 3), 3, 'toy', False
  )
  # In the data's order all the same.
  assert outputs == [e['inputs'].sum() for e in examples]
  assert len(widths) == 50
  assert 2 <= len(set(widths)) <= 4
  assert max(widths) == 160
  assert sum(widths) < 0.5 * 50 * 160


def test_bad_input(mixture):
  with pytest.raises(InputError, match='BATCH_SIZE=0'):
    _evaluate('toy_a', batch_size=0)
  with pytest.raises(InputError, match='0 examples'):
    _evaluate('toy_a', num_examples=0)


def test_one_answer_to_everything_is_said(make_task, caplog):
  make_task('toy_flat')
  ids = [*data.get_vocabulary().encode('red'), 1]

  def always_red(batch):
    tokens = np.zeros((len(batch['encoder_input_tokens']), 11), np.int32)
    tokens[:, : len(ids)] = ids
    return tokens

  _evaluate('toy_flat', always_red, task_names=['toy_flat'])
  assert "task 'toy_flat' has collapsed: the answer to all 23 " in caplog.text
  assert "examples is 'red'" in caplog.text
  caplog.clear()
  _evaluate('toy_flat', task_names=['toy_flat'])
  assert 'collapsed' not in caplog.text
