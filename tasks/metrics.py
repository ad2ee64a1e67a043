"""Metrics on postprocessed targets and outputs, in percent.

Names and values are T5's. An output that is no valid answer never counts as
right (see `postprocessors.INVALID`).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
import re
import string
from typing import Any
import warnings

import numpy as np
import scipy.stats
import sklearn.metrics

Metric = Callable[[Sequence[Any], Sequence[Any]], dict[str, float]]


def accuracy(
  targets: Sequence[int], predictions: Sequence[int]
) -> dict[str, float]:
  """Returns the share of right answers."""
  return {
    'accuracy': 100 * sklearn.metrics.accuracy_score(targets, predictions)
  }


def f1_with_invalid(
  targets: Sequence[int], predictions: Sequence[int]
) -> dict[str, float]:
  """Returns the F1 score of class 1 of two.

  An invalid output is counted as the class that is wrong.
  """
  wanted, got = np.asarray(targets), np.asarray(predictions)
  got = np.where((got == 0) | (got == 1), got, 1 - wanted)
  return {'f1': 100 * sklearn.metrics.f1_score(wanted, got, zero_division=0)}


def mean_f1(num_classes: int) -> Metric:
  """Returns the metric "F1 score averaged over the classes 0..n-1"."""

  def metric(
    targets: Sequence[int], predictions: Sequence[int]
  ) -> dict[str, float]:
    value = sklearn.metrics.f1_score(
      targets,
      predictions,
      labels=range(num_classes),
      average='macro',
      zero_division=0,
    )
    return {f'mean_{num_classes}class_f1': 100 * value}

  return metric


def matthews_corrcoef(
  targets: Sequence[int], predictions: Sequence[int]
) -> dict[str, float]:
  """Returns Matthews' correlation; invalid outputs are a class of their own."""
  value = sklearn.metrics.matthews_corrcoef(targets, predictions)
  return {'matthews_corrcoef': 100 * value}


def pearson_corrcoef(
  targets: Sequence[float], predictions: Sequence[float]
) -> dict[str, float]:
  """Returns Pearson's correlation; NaN if either side is constant."""
  return {
    'pearson_corrcoef': _correlation(scipy.stats.pearsonr, targets, predictions)
  }


def spearman_corrcoef(
  targets: Sequence[float], predictions: Sequence[float]
) -> dict[str, float]:
  """Returns Spearman's rank correlation; NaN if either side is constant."""
  return {
    'spearman_corrcoef': _correlation(
      scipy.stats.spearmanr, targets, predictions
    )
  }


def _correlation(function, targets, predictions) -> float:
  if len(targets) < 2:
    return float('nan')
  with warnings.catch_warnings():
    # The NaN says it.
    warnings.simplefilter('ignore', scipy.stats.ConstantInputWarning)
    return 100 * float(function(targets, predictions)[0])


_PUNCTUATION = str.maketrans('', '', string.punctuation)


def _normalize(answer: str) -> str:
  """SQuAD's normal form: no case, ASCII punctuation, articles or layout."""
  text = answer.lower().translate(_PUNCTUATION)
  return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', text).split())


def _token_f1(target: str, prediction: str) -> float:
  wanted, got = target.split(), prediction.split()
  common = sum((Counter(wanted) & Counter(got)).values())
  return 2 * common / (len(wanted) + len(got)) if common else 0.0


def squad(
  targets: Sequence[Sequence[str]], predictions: Sequence[str]
) -> dict[str, float]:
  """Returns exact match and token F1 against the best accepted answer.

  Args:
    targets: all accepted answers of each question, at least one.
    predictions: one output each.
  """
  em, f1 = [], []
  for answers, prediction in zip(targets, predictions, strict=True):
    wanted = [_normalize(answer) for answer in answers]
    got = _normalize(prediction)
    em.append(max(answer == got for answer in wanted))
    f1.append(max(_token_f1(answer, got) for answer in wanted))
  return {'em': 100 * float(np.mean(em)), 'f1': 100 * float(np.mean(f1))}


def once_per_group(metric: Metric) -> Metric:
  """Returns a metric that looks at the first example of each group only.

  Args:
    metric: of the `value`s of targets and outputs.
  """

  def deduplicated(
    targets: Sequence[Mapping[str, Any]],
    predictions: Sequence[Mapping[str, Any]],
  ) -> dict[str, float]:
    first: dict[Any, tuple[Any, Any]] = {}
    for target, prediction in zip(targets, predictions, strict=True):
      values = target['value'], prediction['value']
      first.setdefault(target['group'], values)
    wanted, got = zip(*first.values(), strict=True)
    return metric(wanted, got)

  return deduplicated
