"""Metrics on postprocessed targets and outputs, in percent.

Names and values are T5's. An output that is no valid answer never counts as
right, and `invalid` says how many there are.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
import functools
import itertools
import re
import string
from typing import Any
import warnings

import numpy as np
import scipy.stats
import sklearn.metrics

from mpt_jax import data
from mpt_jax.data import assessment, scoring

Metric = Callable[[Sequence[Any], Sequence[Any]], dict[str, float]]


# The data layer has it for tasks that name no metric.
accuracy = scoring.accuracy


@data.metric('f1')
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
    return {name: 100 * value}

  name = metric.__name__ = f'mean_{num_classes}class_f1'
  return data.metric(name)(metric)


@data.metric()
def matthews_corrcoef(
  targets: Sequence[int], predictions: Sequence[int]
) -> dict[str, float]:
  """Returns Matthews' correlation; invalid outputs are a class of their own."""
  with warnings.catch_warnings():
    # Of one class on both sides; the value is 0 then.
    warnings.simplefilter('ignore', UserWarning)
    value = sklearn.metrics.matthews_corrcoef(targets, predictions)
  return {'matthews_corrcoef': 100 * value}


@data.metric()
def pearson_corrcoef(
  targets: Sequence[float], predictions: Sequence[float]
) -> dict[str, float]:
  """Returns Pearson's correlation; NaN if either side is constant."""
  return {
    'pearson_corrcoef': _correlation(scipy.stats.pearsonr, targets, predictions)
  }


@data.metric()
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


@data.metric('em', 'f1')
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

  @functools.wraps(metric)
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


@data.metric()
def invalid(
  targets: Sequence[Any], predictions: Sequence[Any]
) -> dict[str, float]:
  """Returns the share of outputs that are no valid answer.

  That is an output that is no label word or no number (-1 after
  postprocessing), or, where any text may be right, an empty one.
  """
  del targets
  return {'invalid': assessment.share_of_invalid(predictions)}


@data.metric()
def commonest(
  targets: Sequence[Any], predictions: Sequence[Any]
) -> dict[str, float]:
  """Returns the share of the most frequent output.

  Near 100 the model says the same whatever it reads, and an accuracy is no
  more than the share of that class. Every evaluation has it beside the scores
  anyway.
  """
  del targets
  return {'commonest': assessment.share_of_commonest(predictions)}


# Its name in version 0.1, which reads as the majority baseline.
majority = commonest


def invalid_or_outside(low: float, high: float) -> Metric:
  """Returns `invalid` for numbers that must also be in a range."""

  def metric(
    targets: Sequence[float], predictions: Sequence[float]
  ) -> dict[str, float]:
    del targets
    outside = [not low <= p <= high for p in predictions]
    return {'invalid': 100 * float(np.mean(outside))}

  metric.__name__ = 'invalid'
  return data.metric('invalid')(metric)


@data.metric('f1')
def f1_over_answers(
  targets: Sequence[Mapping[str, Any]],
  predictions: Sequence[Mapping[str, Any]],
) -> dict[str, float]:
  """Returns MultiRC's F1 of the class True over all answers (F1a).

  Args:
    targets: `value` is the class id.
    predictions: likewise, -1 for an invalid output.
  """
  return f1_with_invalid(
    [target['value'] for target in targets],
    [prediction['value'] for prediction in predictions],
  )


@data.metric('exact_match')
def exact_match_per_group(
  targets: Sequence[Mapping[str, Any]],
  predictions: Sequence[Mapping[str, Any]],
) -> dict[str, float]:
  """Returns the share of groups all of whose members are right.

  MultiRC's EM: a question counts if every answer to it is judged rightly.

  Args:
    targets: `value` is compared, `group` says whose it is.
    predictions: with a `value` each.
  """
  right: dict[Any, bool] = {}
  for target, prediction in zip(targets, predictions, strict=True):
    same = target['value'] == prediction['value']
    right[target['group']] = right.get(target['group'], True) and same
  return {'exact_match': 100 * float(np.mean(list(right.values())))}


def _streams(references: Sequence[str | Sequence[str]]) -> list[list[Any]]:
  """Per-example references as sacrebleu's streams, None where there is none."""
  lists = [[r] if isinstance(r, str) else list(r) for r in references]
  return [list(s) for s in itertools.zip_longest(*lists)]


@data.metric()
def bleu(
  targets: Sequence[str | Sequence[str]], predictions: Sequence[str]
) -> dict[str, float]:
  """Returns corpus BLEU (sacrebleu, tokenised as T5 does: `intl`).

  Args:
    targets: the reference of each example, or all of them.
    predictions: one output each.
  """
  import sacrebleu

  score = sacrebleu.corpus_bleu(
    list(predictions),
    _streams(targets),
    smooth_method='exp',
    smooth_value=0.0,
    force=False,
    lowercase=False,
    tokenize='intl',
    use_effective_order=False,
  )
  return {'bleu': score.score}


@data.metric('rougeL')
def rouge_l(
  targets: Sequence[str | Sequence[str]], predictions: Sequence[str]
) -> dict[str, float]:
  """Returns the mean ROUGE-L F-measure against the best reference.

  Args:
    targets: the reference of each example, or all of them.
    predictions: one output each.
  """
  # It imports all of NLTK, which few tasks need.
  from rouge_score import rouge_scorer

  scorer = rouge_scorer.RougeScorer(['rougeL'], use_stemmer=False)
  values = []
  for wanted, got in zip(targets, predictions, strict=True):
    references = [wanted] if isinstance(wanted, str) else list(wanted)
    score = scorer.score_multi(references, got)
    values.append(score['rougeL'].fmeasure)
  return {'rougeL': 100 * float(np.mean(values))}


def references_per_group(metric: Metric) -> Metric:
  """Returns a metric that pools the references of a group.

  Data to text has one row for each way to say the same thing: each input
  counts once, with all its rows' references.

  Args:
    metric: of reference lists and outputs.
  """

  @functools.wraps(metric)
  def pooled(
    targets: Sequence[Mapping[str, Any]],
    predictions: Sequence[Mapping[str, Any]],
  ) -> dict[str, float]:
    references: dict[Any, list[str]] = defaultdict(list)
    outputs: dict[Any, str] = {}
    for target, prediction in zip(targets, predictions, strict=True):
      known = references[target['group']]
      known.extend(r for r in target['value'] if r not in known)
      outputs.setdefault(target['group'], prediction['value'])
    return metric(list(references.values()), list(outputs.values()))

  return pooled
