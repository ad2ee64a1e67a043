"""The best prompts of a run by their validation scores, and when to stop."""

from collections.abc import Mapping, Sequence
import dataclasses
import math

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

TaskScores = Mapping[str, float | None]


def main_metric(values: TaskScores) -> str:
  """Returns the name of a task's main metric.

  Args:
    values: the task's metrics.

  Raises:
    InputError: if the task has no metric.
  """
  for name in (*MAIN_METRICS, *values):
    if name in values:
      return name
  raise InputError('a task without metrics has no main score')


def score_of(values: TaskScores, metric: str | None = None) -> float:
  """Returns the score by which prompts are compared.

  Args:
    values: a task's metrics; None stands for one that is not defined, such as
      a correlation with a constant.
    metric: its name; None is the main one.

  Returns:
    The value; minus infinity if it is not defined.

  Raises:
    InputError: if the task has no such metric.
  """
  metric = main_metric(values) if metric is None else metric
  if metric not in values:
    raise InputError(
      f'BEST_METRIC={metric!r} is no metric of the task; it has'
      f' {", ".join(values)}{nearest(metric, values)}'
    )
  value = values[metric]
  return -math.inf if value is None or math.isnan(value) else float(value)


@dataclasses.dataclass
class Selection:
  """Follows the validation scores of each task of a run.

  Attributes:
    metric: name of the metric; None is each task's main one.
    patience: evaluations without a better score after which a task is done;
      None never stops early.
    best: task -> (step, score, metrics) of its best evaluation.
    waited: task -> evaluations since then.
  """

  metric: str | None = None
  patience: int | None = None
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
    """
    better = []
    for task, values in scores.items():
      score = score_of(values, self.metric)
      if task not in self.best or score > self.best[task][1]:
        self.best[task] = (step, score, dict(values))
        self.waited[task] = 0
        better.append(task)
      else:
        self.waited[task] += 1
    return better

  @property
  def finished(self) -> bool:
    """Whether every task has waited too long for a better score."""
    return (
      self.patience is not None
      and bool(self.waited)
      and all(n >= self.patience for n in self.waited.values())
    )
