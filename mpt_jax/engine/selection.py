"""The best step of a run by its validation scores, and when to stop."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
import statistics

from mpt_jax.engine import metrics
from mpt_jax.engine.metrics import Metric
from mpt_jax.types import InputError, nearest

# The main score of a task is the first of these that it has.
MAIN_METRICS = (
  'accuracy',
  'f1',
  'em',
  'matthews_corrcoef',
  'pearson_corrcoef',
  'spearman_corrcoef',
  'bleu',
)

_ONE_FOR_ALL = (
  'KEEP_BEST and PATIENCE go by the mean over the tasks, which share what is'
  ' trained, and their scores have none',
  'give a BEST_METRIC that all have',
)

TaskScores = Mapping[str, float | None]
# Task -> what its own metric functions say of what they give.
Meanings = Mapping[str, Mapping[str, Metric]]


def main_metric(
  values: Iterable[str], said: Mapping[str, Metric] | None = None
) -> str:
  """Returns the name of a task's main metric.

  Args:
    values: the task's metrics by name, or just their names.
    said: what its own metric functions say of them.

  Returns:
    The first of `MAIN_METRICS`, else the first that is a score; what only
    says how the answers look (`invalid`) comes last.

  Raises:
    InputError: if the task has no metric.
  """
  names = list(values)
  scores = [name for name in names if metrics.is_score(name, said)]
  for name in (*MAIN_METRICS, *scores, *names):
    if name in names:
      return name
  raise InputError('a task without metrics has no main score')


def score_of(
  values: TaskScores,
  metric: str | None = None,
  said: Mapping[str, Metric] | None = None,
  task: str = '',
) -> float:
  """Returns the score by which prompts are compared; more is better.

  Args:
    values: a task's metrics; None stands for one that is not defined, such as
      a correlation with a constant.
    metric: its name; None is the main one.
    said: what the task's own metric functions say of their metrics.
    task: its name, for messages.

  Returns:
    The value, negative where less is better; minus infinity if it is not
    defined.

  Raises:
    InputError: if the task has no such metric, or nobody knows which way of
      it is better.
  """
  metric = main_metric(values, said) if metric is None else metric
  check_metric(metric, values, task)
  return metrics.meaning(metric, said, task).gain(values[metric])


def check_metric(
  metric: str, names: Mapping[str, object] | Sequence[str], task: str
) -> None:
  """Refuses a BEST_METRIC that a task does not have.

  Args:
    metric: BEST_METRIC.
    names: the task's metrics.
    task: its name.

  Raises:
    InputError: if it is not among them.
  """
  if metric not in names:
    raise InputError(
      f'BEST_METRIC={metric!r} is no metric of the task'
      f'{f" {task!r}" if task else ""}; it has {", ".join(names)}'
      f'{nearest(metric, names)}'
    )


def check_declared(
  tasks: Mapping[str, tuple[Mapping[str, Metric], bool]],
  metric: str | None,
  together: bool = False,
) -> None:
  """Refuses before training what the first evaluation would refuse.

  Args:
    tasks: task -> (what its metric functions say, whether that is all they
      give).
    metric: BEST_METRIC; None is each task's main one.
    together: whether the mean over the tasks decides.

  Raises:
    InputError: if a task lacks the metric, or has none at all; or if there is
      no mean.
  """
  for task, (said, whole) in tasks.items():
    if not whole:
      continue  # The first evaluation will tell.
    if not said:
      raise InputError(
        f'task {task!r} has no metrics, so KEEP_BEST and PATIENCE have nothing'
        ' to compare: give it metric_fns'
      )
    if metric is not None:
      check_metric(metric, said, task)
  meanings = {
    task: metrics.meaning(metric or main_metric(said, said), said, task)
    for task, (said, whole) in tasks.items()
    if together and whole
  }
  if meanings:
    require_common(meanings, *_ONE_FOR_ALL)


def common_meaning(found: Iterable[Metric | None]) -> Metric | None:
  """What metrics of several tasks mean together, in a mean over the tasks.

  Args:
    found: each task's; None is one that nobody knows.

  Returns:
    The first of them; None if one is unknown, or if they differ in which way
    is better or in their unit: then there is no mean.
  """
  kinds = list(found)
  first = kinds[0] if kinds else None
  if first is None:
    return None
  same = all(
    m and (m.better, m.unit) == (first.better, first.unit) for m in kinds
  )
  return first if same else None


def require_common(found: Mapping[str, Metric], why: str, fix: str) -> Metric:
  """As `common_meaning`, of tasks whose scores must have a mean.

  Args:
    found: task -> what its metric means; at least one.
    why: who needs the mean, for the message.
    fix: what to do without.

  Raises:
    InputError: if there is none.
  """
  together = common_meaning(found.values())
  if together is None:
    told = ', '.join(
      f'{task}: {m.better} is better{f" ({m.unit})" if m.unit else ""}'
      for task, m in found.items()
    )
    raise InputError(f'{why} ({told}): {fix}')
  return together


@dataclasses.dataclass
class Selection:
  """Follows the validation scores of each task of a run.

  Attributes:
    metric: name of the metric; None is each task's main one.
    patience: evaluations without a better score after which a task is done;
      None never stops early.
    said: what the tasks' own metric functions say of their metrics.
    together: whether the tasks have one best step, that of the best mean of
      their scores; an undefined one counts as `Metric.stand_in` has it.
    best: task -> (step, score, metrics) of its best evaluation; the score is
      that of `score_of`, of which more is better, or the tasks' mean of it.
    waited: task -> evaluations since then.
  """

  metric: str | None = None
  patience: int | None = None
  said: Meanings = dataclasses.field(default_factory=dict)
  together: bool = False
  best: dict[str, tuple[int, float, TaskScores]] = dataclasses.field(
    default_factory=dict
  )
  waited: dict[str, int] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    if self.patience is not None and self.patience < 1:
      raise InputError(f'PATIENCE={self.patience} must be positive')

  def update(
    self, step: int, scores: Mapping[str, TaskScores]
  ) -> Sequence[str]:
    """Takes the scores of a step.

    Args:
      step: the step.
      scores: {task: {metric: value}}.

    Returns:
      The tasks whose score is better than ever before; of equal scores the
      first one stays the best.

    Raises:
      InputError: see `score_of`; nothing of the step is taken then.
    """
    found = {
      task: score_of(values, self.metric, self.said.get(task), task)
      for task, values in scores.items()
    }
    if self.together and len(found) > 1:
      found = dict.fromkeys(found, self._mean(scores))
    better = []
    for task, score in found.items():
      if task not in self.best or score > self.best[task][1]:
        self.best[task] = (step, score, dict(scores[task]))
        self.waited[task] = 0
        better.append(task)
      else:
        self.waited[task] += 1
    return better

  def _mean(self, scores: Mapping[str, TaskScores]) -> float:
    """The mean over the tasks, of which more is better."""
    kinds, gains = {}, []
    for task, values in scores.items():
      said = self.said.get(task)
      name = self.metric or main_metric(values, said)
      kind = kinds[task] = metrics.meaning(name, said, task)
      gain = kind.gain(values[name])
      gains.append(gain if math.isfinite(gain) else kind.gain(kind.stand_in()))
    require_common(kinds, *_ONE_FOR_ALL)
    return statistics.fmean(gains)

  @property
  def finished(self) -> bool:
    """Whether every task has waited too long for a better score."""
    return (
      self.patience is not None
      and bool(self.waited)
      and all(n >= self.patience for n in self.waited.values())
    )
