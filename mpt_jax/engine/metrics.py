"""What the name of a metric means: which way is better, range and unit.

Whoever compares two values of a metric, draws or averages them asks here. A
metric that is not in this table says it itself, by `metric` above its function.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import math
import re
from typing import Any, TypeVar

from mpt_jax.types import InputError

MORE, LESS = 'more', 'less'
_ATTRIBUTE = '_mpt_jax_metrics'
_Function = TypeVar('_Function', bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Metric:
  """What a metric's values mean.

  Attributes:
    better: 'more' or 'less'.
    low: the smallest value.
    high: the largest value.
    unit: '%', or '' for a plain number.
    score: whether it says how good the answers are; if not, it only says what
      they look like, and is no task's main score while there is another.
  """

  better: str
  low: float = 0.0
  high: float = 100.0
  unit: str = '%'
  score: bool = True

  def __post_init__(self):
    if self.better not in (MORE, LESS):
      raise InputError(
        f"better={self.better!r} of a metric must be 'more' or 'less'"
      )

  def gain(self, value: float | None) -> float:
    """A value as a number of which more is better; -inf if it is undefined."""
    if value is None or math.isnan(value):
      return -math.inf
    return float(value) if self.better == MORE else -float(value)

  def stand_in(self) -> float | None:
    """What an undefined value counts as in a mean: 0, or the worst there is.

    None if the range has no worst end.
    """
    if self.better == MORE:
      return 0.0
    return self.high if math.isfinite(self.high) else None


@dataclasses.dataclass(frozen=True)
class Judgement:
  """What a reader of a task's scores must know, in plain numbers.

  Attributes:
    examples: how many were scored.
    metrics: what the scores mean, as far as it is known.
    floors: `invalid` and `commonest`, shares of the outputs in percent; for
      classes also `majority`, the accuracy of always giving the commonest
      class of these targets, that `majority_answer`, and in
      `majority_scores` what it gets by the task's own metrics. Empty where
      the model did not answer in words.
    intervals: metric -> bounds of the middle 95 % of its bootstrapped values.
    no_interval: metric -> why it has none.
    collapsed: why the scores say next to nothing; None if they do.
  """

  examples: int
  metrics: Mapping[str, Metric]
  floors: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  intervals: Mapping[str, tuple[float, float]] = dataclasses.field(
    default_factory=dict
  )
  no_interval: Mapping[str, str] = dataclasses.field(default_factory=dict)
  collapsed: str | None = None


_SHARE = Metric(MORE)
_ERROR_SHARE = Metric(LESS)
_CORRELATION = Metric(MORE, low=-100.0)
_AMOUNT = Metric(LESS, high=math.inf, unit='')
_LOOKS = Metric(LESS, score=False)
# 'majority' is what `commonest` was called in version 0.1.
INVALID, COMMONEST = 'invalid', 'commonest'
KNOWN: Mapping[str, Metric] = {
  **dict.fromkeys(
    (
      *('accuracy', 'f1', 'em', 'exact_match', 'precision', 'recall'),
      *('bleu', 'rouge1', 'rouge2', 'rougeL', 'rougeLsum', 'chrf'),
    ),
    _SHARE,
  ),
  **dict.fromkeys(
    ('matthews_corrcoef', 'pearson_corrcoef', 'spearman_corrcoef'),
    _CORRELATION,
  ),
  **dict.fromkeys(('error', 'error_rate', 'ter'), _ERROR_SHARE),
  # They count insertions too, and so may pass 100 %.
  **dict.fromkeys(('wer', 'cer'), Metric(LESS, high=math.inf)),
  **dict.fromkeys(
    ('loss', 'nll', 'mae', 'mse', 'rmse', 'edit_distance', 'distance'), _AMOUNT
  ),
  **dict.fromkeys(('cross_entropy', 'errors', 'perplexity'), _AMOUNT),
  **dict.fromkeys((INVALID, COMMONEST, 'majority'), _LOOKS),
}
_MEAN_F1 = re.compile(r'mean_\d+class_f1')


def known(name: str) -> Metric | None:
  """Returns what a metric's name alone says; None if that is nothing.

  Args:
    name: as in `results.json`.
  """
  return _SHARE if _MEAN_F1.fullmatch(name) else KNOWN.get(name)


def meanings(
  names: Iterable[str], said: Mapping[str, Metric]
) -> dict[str, Metric]:
  """Returns what metrics mean, as far as anybody says it.

  Args:
    names: of the metrics.
    said: what a task's own functions say, which comes first.
  """
  found = {name: said.get(name) or known(name) for name in names}
  return {name: facts for name, facts in found.items() if facts is not None}


def is_score(name: str, said: Mapping[str, Metric] | None = None) -> bool:
  """Whether a metric is a score; one that nobody knows is taken for one."""
  facts = (said or {}).get(name) or known(name)
  return facts is None or facts.score


def metric(
  *names: str,
  better: str | None = None,
  low: float | None = None,
  high: float | None = None,
  unit: str | None = None,
) -> Callable[[_Function], _Function]:
  """A decorator: says which metrics a function gives and what they mean.

  Args:
    *names: keys of what the function returns; none is the function's name.
    better: 'more' or 'less'; None if the names are known (`KNOWN`).
    low: the smallest value; None is 0, or as known.
    high: the largest value; None is infinity, or as known.
    unit: '%', or '' for a plain number; None is '', or as known.

  Returns:
    The decorator; the function stays what it is.

  Raises:
    InputError: if nobody says whether more is better.

  Examples:
    >>> @metric('errors', better='less')
    ... def count(targets, predictions):
    ...   return {'errors': 3.0}
  """
  given: dict[str, Any] = {
    key: value
    for key, value in (
      ('better', better),
      ('low', low),
      ('high', high),
      ('unit', unit),
    )
    if value is not None
  }

  def declare(function: _Function) -> _Function:
    found = {}
    for name in names or (getattr(function, '__name__', ''),):
      facts = known(name)
      if facts is None:
        if better is None:
          raise InputError(
            f"metric {name!r}: give better='more' or better='less'"
          )
        facts = Metric(better, 0.0, math.inf, '')
      found[name] = dataclasses.replace(facts, **given)
    setattr(function, _ATTRIBUTE, {**declared(function), **found})
    return function

  return declare


def declared(function: Any) -> dict[str, Metric]:
  """Returns what `metric` said above a function: name -> its meaning."""
  return dict(getattr(function, _ATTRIBUTE, {}))


def collect(functions: Iterable[Any]) -> tuple[dict[str, Metric], bool]:
  """Gathers what metric functions say of themselves.

  Args:
    functions: a task's metric functions and classes.

  Returns:
    ({name: meaning}, whether these are all the metrics that they give).
  """
  found: dict[str, Metric] = {}
  whole = True
  for function in functions:
    said = declared(function)
    whole = whole and bool(said)
    found |= said
  return found, whole


def meaning(
  name: str, said: Mapping[str, Metric] | None = None, task: str = ''
) -> Metric:
  """Returns what a metric means.

  Args:
    name: its name.
    said: what the task's own functions say, which comes first.
    task: the task's name, for the message.

  Raises:
    InputError: if nobody knows which way is better.
  """
  facts = (said or {}).get(name) or known(name)
  if facts is None:
    raise InputError(
      f'{f"task {task!r}: " if task else ""}KEEP_BEST, PATIENCE and tuning must'
      f' know whether more or less of the metric {name!r} is better: put'
      f" @data.metric({name!r}, better='less') (or 'more') above its function"
    )
  return facts


def as_json(facts: Mapping[str, Metric]) -> dict[str, dict[str, Any]]:
  """Returns the meanings as `results.json` keeps them; None is no bound."""
  return {
    name: {
      'better': m.better,
      'range': [b if math.isfinite(b) else None for b in (m.low, m.high)],
      'unit': m.unit,
      'score': m.score,
    }
    for name, m in facts.items()
  }


def from_json(content: Mapping[str, Mapping[str, Any]]) -> dict[str, Metric]:
  """Reads what `as_json` wrote."""
  return {
    name: Metric(
      m['better'],
      -math.inf if m['range'][0] is None else m['range'][0],
      math.inf if m['range'][1] is None else m['range'][1],
      m['unit'],
      m['score'],
    )
    for name, m in content.items()
  }
