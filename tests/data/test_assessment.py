"""Floors, collapse, intervals and confusion, against numbers by other hands."""

import json
import math

import numpy as np
import pytest

pytest.importorskip('sklearn')

import scipy.stats  # noqa: E402
import sklearn.metrics  # noqa: E402

from mpt_jax import data
from mpt_jax.data import assessment  # noqa: E402
from mpt_jax.engine import metrics as meanings  # noqa: E402
from mpt_jax.engine import scores as scores_lib  # noqa: E402
from tasks import metrics  # noqa: E402
from tests.data import toys

pytestmark = pytest.mark.data

WORDS = ('no', 'yes', 'maybe')


def answers(targets, said, functions, words=WORDS, outputs=None):
  """What an evaluation of these answers would hand over."""
  scores, by_name = {}, {}
  for function in functions:
    for name, value in function(targets, said).items():
      scores[name], by_name[name] = value, function
  declared, _ = meanings.collect(functions)
  outputs = outputs or [str(assessment.plain(s)) for s in said]
  return assessment.Answers(
    'toy', targets, said, outputs, words, scores, by_name, declared
  )


def draw(count, seed=0, classes=3, right=0.7):
  rng = np.random.default_rng(seed)
  targets = np.maximum(rng.integers(-1, classes, count), 0)
  wrong = rng.integers(-1, classes, count)
  said = np.where(rng.random(count) < right, targets, wrong)
  return targets.tolist(), said.tolist()


@pytest.mark.parametrize(
  ('targets', 'said', 'words', 'expected'),
  [
    # Label words, an own task's accuracy only.
    ([0, 0, 1, 2], [0, 1, -1, 0], WORDS, (25.0, 50.0, 50.0, 'no')),
    # Integers without label words, as WSC has.
    ([1, 1, 1, 0], [1, 1, 1, 1], None, (0.0, 100.0, 75.0, '1')),
    # Grouped, as MultiRC has.
    (
      [{'value': v, 'group': i // 2} for i, v in enumerate([0, 1, 1, 1])],
      [{'value': v} for v in (-1, -1, 1, 0)],
      ('False', 'True'),
      (50.0, 50.0, 75.0, 'True'),
    ),
    # A few words again and again, without a postprocessor.
    (
      ['a', 'b', 'b'] * 5,
      ['b', 'b', 'z'] * 5,
      None,
      (100 / 3, 200 / 3, 200 / 3, 'b'),
    ),
    (
      [True, False, True],
      [True, None, True],
      None,
      (100 / 3, 200 / 3, 200 / 3, 'True'),
    ),
  ],
)
def test_floors_of_classes(targets, said, words, expected):
  floors = answers(targets, said, [], words).judge(False).floors
  invalid, commonest, majority, answer = expected
  assert floors['invalid'] == pytest.approx(invalid)
  assert floors['commonest'] == pytest.approx(commonest)
  assert floors['majority'] == pytest.approx(majority)
  assert floors['majority_answer'] == answer


@pytest.mark.parametrize(
  ('targets', 'said'),
  [
    ([['a', 'b'], ['c']], ['a', '']),
    ([1.5, 2.0], [1.5, -1.0]),
    (['x', 'y'], ['x', ' ']),
    # Counts, not classes: 17 is as good an answer as any other.
    ([12, 40, 3, 25], [-1, 17, -1, 40]),
  ],
)
def test_texts_and_numbers_have_no_majority(targets, said):
  floors = answers(targets, said, [], None).judge(False).floors
  assert floors == {'invalid': 50.0, 'commonest': 50.0}
  # Where -1 may be right it is no mark of a wrong form.
  floors = (
    answers([-1, 5, 3, 8], [-1, -1, None, 5], [], None).judge(False).floors
  )
  assert floors['invalid'] == 25.0


def test_the_majority_by_the_tasks_own_metrics():
  targets, said = draw(200, classes=2)
  functions = [metrics.f1_with_invalid, metrics.matthews_corrcoef]
  judged = answers(targets, said, functions).judge(False)
  zeros = [0] * 200
  assert judged.floors['majority_scores'] == {
    'f1': 0.0,
    'matthews_corrcoef': sklearn.metrics.matthews_corrcoef(targets, zeros),
  }
  assert judged.floors['majority'] == 100 * np.mean(np.array(targets) == 0)


@pytest.mark.parametrize(
  ('targets', 'said', 'collapsed'),
  [
    ([0, 1] * 50, [0] * 100, "the answer to all 100 examples is '0'"),
    ([0, 1] * 50, [0] * 96 + [1] * 4, 'the answer to 96.0 % of 100 examples'),
    # Exactly 95 % is not over it.
    ([0, 1] * 50, [0] * 95 + [1] * 5, None),
    # So are the targets: no collapse, and the majority says the rest.
    ([0] * 97 + [1] * 3, [0] * 100, None),
    ([0, 1] * 50, [-1] * 51 + [0] * 49, '51.0 % of the outputs are invalid'),
    ([0, 1] * 50, [-1] * 50 + [0] * 50, None),
    ([0, 0, 0], [0, 0, 0], None),
  ],
)
def test_collapse_is_a_threshold(targets, said, collapsed):
  found = answers(targets, said, [])
  judged = found.judge(False)
  if collapsed is None:
    assert judged.collapsed is None
    assert found.warning() is None
  else:
    assert judged.collapsed.startswith(collapsed)
    assert f"task 'toy' has collapsed: {judged.collapsed}" in found.warning()


def test_outputs_that_are_no_answer_are_not_one():
  outputs = [f'text {i % 4}' for i in range(100)]
  found = answers([0, 1] * 50, [-1] * 100, [], outputs=outputs)
  assert found.judge(False).floors['commonest'] == 25.0
  long = answers([0, 1] * 5, [-1] * 10, [], outputs=['x' * 99] * 10)
  assert f"Commonest outputs: '{'x' * 38} …' 100.0 %" in long.warning()


def test_the_warning_shows_the_commonest_outputs_and_the_floor():
  outputs = ['no'] * 96 + ['yes', 'yes', 'No', 'x']
  said = [0] * 96 + [1, 1, -1, -1]
  found = answers([0, 1] * 50, said, [], outputs=outputs)
  assert found.warning().endswith(
    "Commonest outputs: 'no' 96.0 %, 'yes' 2.0 %, 'No' 1.0 %; 'no' to"
    ' everything would be right in 50.0 %'
  )


def test_intervals_are_those_of_scipy():
  count = 149
  targets, said = draw(count, classes=2)
  functions = [metrics.accuracy, metrics.f1_with_invalid]
  judged = answers(targets, said, functions).judge(True)
  wanted, got = np.array(targets), np.array(said)
  for name, function in (
    ('accuracy', lambda i: 100 * np.mean(wanted[i] == got[i])),
    ('f1', lambda i: metrics.f1_with_invalid(wanted[i], got[i])['f1']),
  ):
    expected = scipy.stats.bootstrap(
      (np.arange(count),),
      function,
      vectorized=False,
      n_resamples=500,
      method='percentile',
      rng=np.random.default_rng(1),
    )
    width = expected.confidence_interval.high - expected.confidence_interval.low
    # The two draw other resamples.
    assert judged.intervals[name] == pytest.approx(
      tuple(expected.confidence_interval), abs=0.12 * width
    )
  # The same seed, the same numbers; and training gives those that are free.
  free = answers(targets, said, functions).judge(False).intervals
  assert free == {'accuracy': judged.intervals['accuracy']}


def test_a_group_is_drawn_as_a_whole():
  # Each group's answers are all right or all wrong: 6 of 12 groups.
  targets = [{'value': 1, 'group': i // 5} for i in range(60)]
  said = [{'value': i // 5 % 2} for i in range(60)]
  found = answers(targets, said, [metrics.exact_match_per_group], None)
  low, high = found.judge(True).intervals['exact_match']
  rng = np.random.default_rng(3)
  means = rng.integers(0, 2, (20_000, 12)).mean(axis=1)
  assert low == pytest.approx(100 * np.percentile(means, 2.5), abs=9)
  assert high == pytest.approx(100 * np.percentile(means, 97.5), abs=9)


def test_intervals_of_means_over_texts():
  rng = np.random.default_rng(0)
  right = rng.random(80) < 0.6
  targets = [['the answer']] * 80
  said = ['answer' if ok else 'other' for ok in right]
  found = answers(targets, said, [metrics.squad], None)
  judged = found.judge(True)
  sigma = 100 * np.std(right) / math.sqrt(80)
  for name in ('em', 'f1'):
    low, high = judged.intervals[name]
    assert (high - low) / (2 * 1.96) == pytest.approx(sigma, rel=0.1)
  assert found.example_scores('em') == [100.0 * ok for ok in right]


def test_a_score_that_is_the_accuracy_by_chance_is_not_taken_for_it():
  # Of class 1 three are found, one is missed and one is made up: 75, as of all.
  targets, said = [1, 1, 1, 1, 0, 0, 0, 0] * 5, [1, 1, 1, 0, 1, 0, 0, 0] * 5
  found = answers(targets, said, [metrics.accuracy, metrics.f1_with_invalid])
  assert found.scores['f1'] == pytest.approx(found.scores['accuracy'])
  low, high = found.judge(True).intervals['accuracy']
  assert found.judge(True).intervals['f1'] != (low, high)

  def zero(targets, predictions):
    return {'wer': 0.0}

  none_right = answers([0, 1] * 9, [-1] * 18, [zero])
  assert none_right.judge(False).intervals == {}


def test_why_there_is_no_interval(monkeypatch):
  targets, said = draw(30)
  left = [3.0]

  def once(targets, predictions):
    return {'once': left.pop()}

  def text(targets, predictions):
    return {'text': float(len(targets))}

  found = answers(targets, said, [once, text, metrics.accuracy])
  judged = found.judge(False)
  # In training no function that does not declare itself is called again.
  assert judged.no_interval == dict.fromkeys(
    ('once', 'text'), '`eval` computes it'
  )
  assert set(judged.intervals) == {'accuracy'}
  assert found.judge(True).no_interval == {
    'once': 'IndexError on resampled examples'
  }
  single = answers([0], [0], [metrics.accuracy]).judge(True)
  assert single.no_interval == {'accuracy': 'a single example'}
  constant = answers([1.0, 2.0], [3.0, 4.0], [metrics.pearson_corrcoef], None)
  assert constant.judge(True).no_interval == {
    'pearson_corrcoef': 'not defined in some resamples'
  }
  monkeypatch.setattr(assessment, '_SECONDS', -1.0)
  reason = found.judge(True).no_interval['text']
  assert reason == '500 resamples would take 0 s'


@pytest.mark.parametrize('seed', range(3))
def test_confusion_is_sklearns(seed):
  targets, said = draw(150, seed)
  found = answers(targets, said, []).confusion()
  expected = sklearn.metrics.confusion_matrix(
    targets, said, labels=[0, 1, 2, -1]
  )
  assert found == {
    'labels': list(WORDS),
    'matrix': expected[:3].tolist(),
  }


def test_the_line_in_the_log():
  targets = [0] * 73 + [1] * 66
  said = [0] * 135 + [1] * 4
  found = answers(targets, said, [metrics.accuracy, metrics.invalid])
  judged = found.judge(False)
  line = scores_lib.format_scores(found.scores, judged)
  low, high = judged.intervals['accuracy']
  assert line == (
    f'accuracy 55.4 (95 % {low:.1f} to {high:.1f}; majority 52.5; invalid 0.0'
    ' %; commonest answer 97 %: COLLAPSED)'
  )
  assert (low, high) == (pytest.approx(47, abs=1.5), pytest.approx(64, abs=1.5))
  assert scores_lib.format_scores({'f1': math.nan}) == 'f1 undefined'
  less = answers(targets, said, [lambda targets, predictions: {'wer': 120.0}])
  assert scores_lib.format_scores(less.scores, less.judge(False)).startswith(
    'wer 120.0 (less is better; majority class 52.5 %; invalid 0.0 %'
  )


def test_every_answer_can_be_read(make_task):
  make_task(
    'toy_labels',
    labels=WORDS,
    postprocess_fn=None,
    metric_fns=[metrics.accuracy],
  )
  lengths = {'inputs': 41, 'targets': 11}
  ids = [*data.get_vocabulary().encode('yes'), 1]

  def predict(batch):
    tokens = np.zeros_like(batch['decoder_target_tokens'])
    tokens[:, : len(ids)] = ids
    return tokens

  scores = data.evaluate(
    toys.examples('toy_labels', 'validation', lengths),
    3,
    ['toy_labels'],
    predict,
    7,
    progress=False,
  )
  rows = scores.predictions('toy_labels')
  assert [row['index'] for row in rows] == list(range(23))
  assert {row['output'] for row in rows} == {'yes'}
  assert [row['score'] for row in rows] == [
    100.0 if row['target'] == 'yes' else 0.0 for row in rows
  ]
  assert np.mean([row['score'] for row in rows]) == pytest.approx(
    scores['toy_labels']['accuracy']
  )
  assert rows == json.loads(json.dumps(rows))
  judged = scores_lib.judgements({'toy_labels': scores.judge('toy_labels')})
  assert judged['scored'] == {'toy_labels': 23}
  assert json.loads(json.dumps(judged))['metrics']['toy_labels'] == {
    'accuracy': {
      'better': 'more',
      'range': [0, 100],
      'unit': '%',
      'score': True,
    }
  }


def test_a_metric_outside_its_range_is_told(make_task, caplog):
  def wrong(targets, predictions):
    return {'accuracy': 5400.0}

  make_task('toy_range', metric_fns=[wrong])
  data.evaluate(
    toys.examples('toy_range', 'validation', {'inputs': 41, 'targets': 11}),
    3,
    ['toy_range'],
    lambda batch: batch['decoder_target_tokens'],
    23,
    progress=False,
  )
  assert 'accuracy is 5400, outside its range from 0 to 100' in caplog.text
