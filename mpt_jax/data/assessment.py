"""What stands beside a score: floors, collapse, intervals, single answers.

Works on postprocessed targets and answers, so it is the same for every task,
whatever its metrics ask for.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import math
import time
from typing import Any

import numpy as np

from mpt_jax.data.labels import INVALID
from mpt_jax.engine import metrics
from mpt_jax.engine.metrics import Judgement, Metric

# One answer to more than this share of the examples, in percent, while the
# targets are not so, or more outputs than that which are no valid answer.
COLLAPSED, MOSTLY_INVALID = 95.0, 50.0
# Answers that are texts are classes if there are few of them.
_MOST_CLASSES, _EXAMPLES_PER_CLASS = 20, 5
# A larger confusion matrix shows nobody anything.
_MOST_CONFUSED = 50
# Resamples: of values of single examples, and by calls of a metric function,
# which may take so long in all.
_DRAWS, _CALLS, _SECONDS = 1000, 500, 30.0
_ROWS_AT_ONCE = 100
_ACCURACY = 'accuracy'
# Letters of an output in a warning.
_SHOWN = 40


def plain(value: Any) -> Any:
  """Returns what is compared of a postprocessed target or answer.

  Args:
    value: anything; of a dict with a `value`, that.

  Returns:
    A value that can be counted.
  """
  if isinstance(value, Mapping):
    value = value.get('value', repr(value))
  if isinstance(value, np.generic):
    value = value.item()
  if isinstance(value, list | np.ndarray):
    value = tuple(map(plain, value))
  try:
    hash(value)
  except TypeError:
    return repr(value)
  return value


def share_of_invalid(answers: Sequence[Any]) -> float:
  """Returns the share of outputs that are no valid answer, in percent."""
  return 100 * float(np.mean([is_invalid(answer) for answer in answers]))


def is_invalid(answer: Any, classes: Sequence[Any] | None = None) -> bool:
  """Whether an output is no valid answer: no class, no number, or empty."""
  value = plain(answer)
  if classes is not None:
    return value not in classes
  if value is None or isinstance(value, str):
    return not (value or '').strip()
  return value == INVALID or value != value


def share_of_commonest(answers: Sequence[Any]) -> float:
  """Returns the share of the most frequent answer, in percent."""
  [(_, count)] = Counter(map(plain, answers)).most_common(1)
  return 100 * count / len(answers)


@dataclasses.dataclass(frozen=True)
class Answers:
  """The answers to a split's examples, all in the data's order.

  Attributes:
    task: the task's name.
    targets: postprocessed targets.
    answers: postprocessed outputs.
    outputs: the outputs as decoded.
    words: label words in the order of the class ids, if the task has any.
    scores: metric -> value.
    functions: metric -> the metric function that gave it.
    said: what these say of their metrics.
  """

  task: str
  targets: Sequence[Any]
  answers: Sequence[Any]
  outputs: Sequence[str]
  words: Sequence[str] | None
  scores: Mapping[str, float]
  functions: Mapping[str, Callable[..., Mapping[str, Any]]]
  said: Mapping[str, Metric]

  @functools.cached_property
  def classes(self) -> tuple[Any, ...] | None:
    """What could be right where answers are classes; else None."""
    found = {plain(target) for target in self.targets}
    numbers = all(type(value) in (int, bool) for value in found)
    if numbers and self.words:
      return tuple(sorted({*found, *range(len(self.words))} - {INVALID}))
    few = min(_MOST_CLASSES, len(self.targets) // _EXAMPLES_PER_CLASS)
    if numbers and len(found) <= max(2, few):
      return tuple(sorted(found))
    if all(isinstance(value, str) for value in found) and len(found) <= few:
      return tuple(sorted(found))
    return None

  @functools.cached_property
  def _valid(self) -> tuple[Any, ...] | None:
    """All that can be a valid answer; None if that is not known."""
    if self.classes and (self.words or isinstance(self.classes[0], str)):
      return self.classes
    return None

  def _is_invalid(self, answer: Any) -> bool:
    if INVALID in self._counts and plain(answer) == INVALID:
      return False  # A number like others here.
    return is_invalid(answer, self._valid)

  @functools.cached_property
  def _said(self) -> list[Any]:
    """The answers to count; invalid ones differ as their texts do."""
    pairs = zip(self.answers, self.outputs, strict=True)
    return [o if self._is_invalid(a) else plain(a) for a, o in pairs]

  @functools.cached_property
  def _counts(self) -> Counter:
    """How often each target comes."""
    return Counter(map(plain, self.targets))

  def name_of(self, value: Any) -> str:
    """The label word of a class, or the class itself as text."""
    if self.words and type(value) is int and 0 <= value < len(self.words):
      return self.words[value]
    return str(value)

  def readable(self, answer: Any) -> Any:
    """A postprocessed answer for JSON; a class by its word, None if invalid."""
    value = plain(answer)
    if isinstance(value, str):
      return value
    if self._is_invalid(answer):
      return None
    if self.classes is not None:
      return self.name_of(value)
    return value if isinstance(value, int | float) else str(value)

  @functools.cached_property
  def right(self) -> np.ndarray | None:
    """Which answers are right, [examples] of bool; None without classes."""
    if self.classes is None:
      return None
    pairs = zip(self.targets, self.answers, strict=True)
    return np.array(
      [plain(target) == plain(answer) for target, answer in pairs]
    )

  # -------------------------------------------------------------------------

  def judge(self, again: bool) -> Judgement:
    """Judges the scores.

    Args:
      again: whether any metric function may be called again, for intervals
        and for the score of a constant answer. If not, only those that
        declare themselves are called, once.

    Returns:
      The judgement; without `warning`.
    """
    floors = self._floors()
    if 'majority' in floors:
      floors['majority_scores'] = self._constant(self._majority[0], again)
    intervals, reasons = self._intervals(again)
    return Judgement(
      len(self.targets),
      metrics.meanings(self.scores, self.said),
      floors,
      intervals,
      reasons,
      self._collapse(floors),
    )

  def warning(self) -> str | None:
    """What to say of a collapse, in one line; None if there is none."""
    floors = self._floors()
    collapsed = self._collapse(floors)
    if collapsed is None:
      return None
    common = ', '.join(
      f'{_short(output)!r} {100 * n / len(self.outputs):.1f} %'
      for output, n in Counter(self.outputs).most_common(3)
    )
    floor = ''
    if 'majority' in floors:
      floor = (
        f'; {floors["majority_answer"]!r} to everything would be right in'
        f' {floors["majority"]:.1f} %'
      )
    return (
      f'task {self.task!r} has collapsed: {collapsed}; its scores say no more'
      f' than how often that is right. Commonest outputs: {common}{floor}'
    )

  @functools.cached_property
  def _majority(self) -> tuple[Any, int]:
    """The commonest target and how often it comes; the first of equals."""
    return self._counts.most_common(1)[0]

  def _floors(self) -> dict[str, Any]:
    # A task's own metric may know more of what is valid.
    invalid = self.scores.get(metrics.INVALID)
    if invalid is None:
      invalid = 100 * float(np.mean([*map(self._is_invalid, self.answers)]))
    floors: dict[str, Any] = {
      metrics.INVALID: invalid,
      metrics.COMMONEST: share_of_commonest(self._said),
    }
    if self.classes is not None:
      answer, count = self._majority
      floors['majority'] = 100 * count / len(self.targets)
      floors['majority_answer'] = self.name_of(answer)
    return floors

  def _collapse(self, floors: Mapping[str, Any]) -> str | None:
    count = len(self.targets)
    if floors[metrics.INVALID] > MOSTLY_INVALID:
      return f'{floors[metrics.INVALID]:.1f} % of the outputs are invalid'
    most = 100 * self._majority[1] / count
    share = floors[metrics.COMMONEST]
    if share <= COLLAPSED or most > COLLAPSED:
      return None
    [(answer, _)] = Counter(self._said).most_common(1)
    output = _short(self.outputs[self._said.index(answer)])
    told = f'all {count}' if share == 100 else f'{share:.1f} % of {count}'
    return f'the answer to {told} examples is {output!r}'

  def _constant(self, answer: Any, again: bool) -> dict[str, float | None]:
    """What one answer to everything gets by the task's own metrics."""
    like = self.answers[0]
    said = {**like, 'value': answer} if isinstance(like, Mapping) else answer
    found: dict[str, float | None] = {}
    for function, names in self._by_function():
      if not again and not metrics.declared(function):
        continue
      try:
        values = function(self.targets, [said] * len(self.targets))
      except Exception:  # A user's function; its score stands anyway.
        continue
      for name in names:
        value = _number(values.get(name))
        found[name] = value if math.isfinite(value) else None
    return found

  def _by_function(self) -> list[tuple[Callable[..., Any], list[str]]]:
    """Metric functions with the scores that they give."""
    found: dict[int, tuple[Callable[..., Any], list[str]]] = {}
    for name, function in self.functions.items():
      if metrics.is_score(name, self.said):
        found.setdefault(id(function), (function, []))[1].append(name)
    return list(found.values())

  # -------------------------------------------------------------------------

  @functools.cached_property
  def _units(self) -> list[list[int]]:
    """Examples that are drawn together: those of a group, or one by one."""
    units: dict[Any, list[int]] = {}
    for i, target in enumerate(self.targets):
      grouped = isinstance(target, Mapping) and 'group' in target
      key = ('group', plain(target['group'])) if grouped else ('single', i)
      units.setdefault(key, []).append(i)
    return list(units.values())

  def _call(self, function: Callable[..., Any], units: Sequence[int]) -> Any:
    """Calls a metric function on drawn units; a unit drawn twice is two."""
    targets, answers = [], []
    for turn, unit in enumerate(units):
      for i in self._units[unit]:
        target = self.targets[i]
        if isinstance(target, Mapping) and 'group' in target:
          target = {**target, 'group': (turn, target['group'])}
        targets.append(target)
        answers.append(self.answers[i])
    return function(targets, answers)

  def _intervals(
    self, again: bool
  ) -> tuple[dict[str, tuple[float, float]], dict[str, str]]:
    """Bounds of 95 % for each score, and why others have none."""
    found: dict[str, tuple[float, float]] = {}
    reasons: dict[str, str] = {}
    for function, names in self._by_function():
      try:
        values, reason = self._resampled(function, names, again)
      except Exception as e:  # A user's function, on data it did not expect.
        values, reason = None, f'{type(e).__name__} on resampled examples'
      for column, name in enumerate(names):
        if values is None:
          reasons[name] = reason
        elif not np.isfinite(values[:, column]).all():
          reasons[name] = 'not defined in some resamples'
        else:
          low, high = np.percentile(values[:, column], [2.5, 97.5])
          found[name] = float(low), float(high)
    return found, reasons

  def _resampled(
    self, function: Callable[..., Any], names: Sequence[str], again: bool
  ) -> tuple[np.ndarray | None, str]:
    """Values on resampled units: ([draws, names] or None, why none)."""
    count = len(self._units)
    if count < 2:
      return None, 'a single example'
    rng = np.random.default_rng(0)
    singles = self._singles if again else self._rights
    if all(name in singles for name in names):
      values = np.stack([singles[name] for name in names], axis=1)
      drawn = []
      for first in range(0, _DRAWS, _ROWS_AT_ONCE):
        rows = min(_ROWS_AT_ONCE, _DRAWS - first)
        drawn.append(values[rng.integers(0, count, (rows, count))].mean(axis=1))
      return np.concatenate(drawn), ''
    if not again:
      return None, '`eval` computes it'
    begin = time.monotonic()
    self._call(function, range(count))
    needed = _CALLS * (time.monotonic() - begin)
    if needed > _SECONDS:
      return None, f'{_CALLS} resamples would take {needed:.0f} s'
    called = []
    for _ in range(_CALLS):
      given = self._call(function, rng.integers(0, count, count).tolist())
      called.append([_number(given.get(name)) for name in names])
    return np.array(called), ''

  @functools.cached_property
  def _rights(self) -> dict[str, np.ndarray]:
    """The accuracy, if it is the share of right classes; [units]."""
    if self.right is None or len(self._units) < len(self.targets):
      return {}
    # Others may be equal to it by chance.
    values = 100.0 * self.right
    found = _ACCURACY in self.scores and self._is_mean(_ACCURACY, values)
    return {_ACCURACY: values} if found else {}

  @functools.cached_property
  def _singles(self) -> dict[str, np.ndarray]:
    """The metrics that are a mean over units: each unit's own, [units]."""
    found = dict(self._rights)
    if self.right is not None:
      return found  # Of classes no other metric is one, as a rule.
    for function, names in self._by_function():
      for name, column in self._one_by_one(function, names).items():
        if self._is_mean(name, column):
          found[name] = column
    return found

  def _is_mean(self, name: str, values: np.ndarray) -> bool:
    mean = float(values.mean())
    return math.isclose(mean, self.scores[name], rel_tol=1e-9, abs_tol=1e-9)

  def _one_by_one(
    self, function: Callable[..., Any], names: Sequence[str]
  ) -> dict[str, np.ndarray]:
    """Calls a metric function on each unit; nothing if that takes too long."""
    count, rows = len(self._units), []
    begin = time.monotonic()
    for done in range(1, count + 1):
      try:
        given = self._call(function, [done - 1])
      except Exception:  # It wants more than one example.
        return {}
      rows.append([_number(given.get(name)) for name in names])
      needed = (time.monotonic() - begin) * count / done
      if done >= 10 and needed > _SECONDS:
        return {}
    return dict(zip(names, np.array(rows).T, strict=True))

  # -------------------------------------------------------------------------

  def confusion(self) -> dict[str, Any] | None:
    """Counts how often each class was answered as what.

    Returns:
      `labels`, and the `matrix` with a row for each target and a column for
      each answer, the last one for invalid outputs; None without classes.
    """
    if self.classes is None or len(self.classes) > _MOST_CONFUSED:
      return None
    place = {value: i for i, value in enumerate(self.classes)}
    matrix = np.zeros((len(place), len(place) + 1), int)
    for target, answer in zip(self.targets, self.answers, strict=True):
      if plain(target) in place:
        column = place.get(plain(answer), len(place))
        matrix[place[plain(target)], column] += 1
    return {
      'labels': [self.name_of(value) for value in self.classes],
      'matrix': matrix.tolist(),
    }

  def example_scores(self, metric: str) -> list[float | None]:
    """Scores each example.

    Args:
      metric: the task's main metric.

    Returns:
      100 or 0 for a class that is right or wrong; else the example's value of
      the metric, None where only all examples together have one.
    """
    if self.right is not None:
      return [100.0 if right else 0.0 for right in self.right]
    values: list[float | None] = [None] * len(self.targets)
    single = self._singles.get(metric)
    if single is not None:
      for unit, value in zip(self._units, single, strict=True):
        for i in unit:
          values[i] = float(value)
    return values


def _short(text: str) -> str:
  return text if len(text) <= _SHOWN else f'{text[: _SHOWN - 2]} …'


def _number(value: Any) -> float:
  value = getattr(value, 'value', value)
  return float('nan') if value is None else float(value)
