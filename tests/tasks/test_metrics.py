"""Metrics against values worked out by hand."""

import math

import pytest

pytest.importorskip('sklearn')

from tasks import metrics, postprocessors  # noqa: E402

pytestmark = pytest.mark.data


def test_accuracy_counts_an_invalid_output_as_wrong():
  result = metrics.accuracy([0, 1, 2, 1], [0, 1, -1, 0])
  assert result == {'accuracy': 50.0}


def test_f1_takes_an_invalid_output_for_the_wrong_class():
  # Becomes 1 0 0 | 1: two hits, a miss (1 -> 0) and a false alarm (0 -> 1).
  result = metrics.f1_with_invalid([1, 1, 1, 0, 0], [1, 1, -1, -1, 0])
  # Precision 2/3, recall 2/3.
  assert result == {'f1': pytest.approx(100 * 2 / 3)}
  assert metrics.f1_with_invalid([1, 0], [-1, -1]) == {'f1': 0.0}
  assert metrics.f1_with_invalid([0, 0], [0, 0]) == {'f1': 0.0}


def test_mean_f1_averages_over_all_classes():
  # Class 0: F1 1. Class 1: precision 1, recall 1/2, F1 2/3. Class 2, of which
  # there is one, is never found: 0.
  result = metrics.mean_f1(3)([0, 1, 1, 2], [0, 1, -1, -1])
  assert result == {'mean_3class_f1': pytest.approx(100 * (1 + 2 / 3) / 3)}


def test_matthews_takes_an_invalid_output_for_a_third_class():
  result = metrics.matthews_corrcoef([0, 0, 1, 1], [0, 1, 1, 1])
  # (TP TN - FP FN) / sqrt(...) = (2 * 1 - 1 * 0) / sqrt(3 * 2 * 2 * 1).
  assert result == {'matthews_corrcoef': pytest.approx(100 * 2 / 12**0.5)}
  half = metrics.matthews_corrcoef([0, 0, 1, 1], [0, -1, 1, -1])
  # (c s - sum p t) / sqrt((s^2 - sum p^2)(s^2 - sum t^2)), s = 4, c = 2.
  expected = (2 * 4 - 4) / ((16 - 6) * (16 - 8)) ** 0.5
  assert half == {'matthews_corrcoef': pytest.approx(100 * expected)}


def test_correlations():
  targets, predictions = [1.0, 2.0, 3.0], [1.0, 2.0, 9.0]
  # Deviations -1 0 1 and -3 -2 5: 8 / sqrt(2 * 38).
  assert metrics.pearson_corrcoef(targets, predictions) == {
    'pearson_corrcoef': pytest.approx(100 * 8 / 76**0.5)
  }
  assert metrics.spearman_corrcoef(targets, predictions) == {
    'spearman_corrcoef': pytest.approx(100)
  }


@pytest.mark.parametrize('predictions', [[2.0, 2.0], [2.0]])
def test_correlation_with_a_constant_is_no_number(predictions):
  targets = [1.0, 3.0][: len(predictions)]
  [value] = metrics.pearson_corrcoef(targets, predictions).values()
  assert math.isnan(value)
  [value] = metrics.spearman_corrcoef(targets, predictions).values()
  assert math.isnan(value)


@pytest.mark.parametrize(
  ('answers', 'output', 'em', 'f1'),
  [
    (['the cat'], 'Cat!', 100, 100),
    (['a red cat', 'dog'], 'red dog', 0, 100 * 2 / 3),
    # Two of three words, in each direction.
    (['one two three'], 'two three four', 0, 100 * 2 / 3),
    # A word counts as often as both have it.
    (['no no no'], 'no', 0, 50),
    (['x'], '', 0, 0),
    # Nothing is left of either: equal, without a common word.
    (['the'], 'a', 100, 0),
    (['ill'], "I'll", 100, 100),
    # Only ASCII punctuation goes.
    (['naïf'], '«naïf»', 0, 0),
  ],
)
def test_squad(answers, output, em, f1):
  result = metrics.squad([answers], [output])
  assert result == {'em': pytest.approx(em), 'f1': pytest.approx(f1)}


def test_squad_is_the_mean():
  result = metrics.squad([['a b'], ['c']], ['b', 'd'])
  assert result == {'em': 50.0, 'f1': 50.0}


def test_only_the_first_of_a_group_counts():
  targets = [
    {'value': ['x'], 'group': (1, 1)},
    {'value': ['x'], 'group': (1, 2)},
    {'value': ['x'], 'group': (1, 1)},
  ]
  predictions = [{'value': v} for v in ('x', 'y', 'y')]
  result = metrics.once_per_group(metrics.squad)(targets, predictions)
  assert result == {'em': 50.0, 'f1': 50.0}


@pytest.mark.parametrize(
  ('text', 'value'),
  [
    ('3.8', 3.8),
    ('-1.0', -1.0),
    (' 2 ', 2.0),
    ('', -1.0),
    ('three', -1.0),
    ('nan', -1.0),
    ('inf', -1.0),
  ],
)
def test_number(text, value):
  assert postprocessors.number(text) == value


@pytest.mark.parametrize(
  ('text', 'value'),
  [('no', 0), ('yes', 1), ('Yes', -1), ('yes ', -1), ('', -1)],
)
def test_class_id(text, value):
  assert postprocessors.class_id(text, ('no', 'yes')) == value


def test_shape_of_the_outputs():
  targets = [0, 1, 1, 2]
  assert metrics.invalid(targets, [0, -1, -1, 1]) == {'invalid': 50}
  assert metrics.invalid(['a', 'b'], ['', ' \n']) == {'invalid': 100}
  assert metrics.invalid([{}], [{'value': -1}]) == {'invalid': 100}
  numbers = metrics.invalid_or_outside(0, 5)
  assert numbers([1.0] * 4, [-1.0, 5.0, 5.2, 0.0]) == {'invalid': 50}
  assert metrics.commonest(targets, [1, 1, 1, 0]) == {'commonest': 75}
  assert metrics.commonest([{}] * 2, [{'value': 1}] * 2) == {'commonest': 100}
  # The name of version 0.1 still works in a task.
  assert metrics.majority is metrics.commonest
