"""Scores what a run trains, and keeps the best: prompts, or the backbone."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import itertools
import logging
import os
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from mpt_jax import checkpoints, models
from mpt_jax.checkpoints import bundle as bundle_lib
from mpt_jax.checkpoints import files
from mpt_jax.checkpoints.backbone import Backbone
from mpt_jax.engine import (
  multihost,
  partitioning,
  preemption,
  selection,
  trainer,
)
from mpt_jax.engine import params as params_lib
from mpt_jax.engine.metrics import Judgement, Metric
from mpt_jax.engine.scores import finite_scores, flat_scores, format_scores
from mpt_jax.engine.settings import Evaluation
from mpt_jax.engine.writers import METRICS, read_metrics
from mpt_jax.types import PyTree

log = logging.getLogger(__name__)

# Each task's best prompts, or the best backbone.
BEST = 'best'
# What stands beside the scores in the metrics: 'floor/rte/commonest'.
_FLOOR = 'floor'


class Evaluator:
  """Scores the prompts of a step; remembers the latest scores.

  Attributes:
    latest_step: the step of the latest scores, or None.
    latest_scores: {task: {metric: value}}.
    latest_judged: {task: what stands beside them}.
  """

  def __init__(
    self,
    model: models.PromptedModel,
    frozen: PyTree,
    mesh: Mesh,
    dataset: Any,
    evaluation: Evaluation,
    task_names: Sequence[str],
  ):
    self._model, self._frozen, self._mesh = model, frozen, mesh
    self._dataset, self._evaluation = dataset, evaluation
    self._task_names = tuple(task_names)
    assert model.method is not None
    self._rows = model.method.rows(task_names)
    self._predict = trainer.make_predict_step(
      model.answering(model.method, model.num_tasks)
    )
    self._loss_batches: list[Mapping[str, np.ndarray]] | None = None
    self._follower: Callable[..., None] | None = None
    self._request: preemption.StopRequest | None = None
    self.latest_step: int | None = None
    self.latest_scores: dict[str, dict[str, float]] = {}
    self.latest_judged: dict[str, Judgement] = {}

  def follow(self, follower: Callable[..., None]) -> None:
    """Tells somebody of each evaluation: (step, scores, trainable tree)."""
    self._follower = follower

  def check_at_each_batch(self, request: preemption.StopRequest) -> None:
    """Gives up an evaluation, by `Stopped`, when someone asks to stop."""
    self._request = request

  def _check(self) -> None:
    if self._request is not None and self._request.on_any_process():
      raise preemption.Stopped(
        'stopped in the middle of an evaluation', self._request.number
      )

  def __call__(self, step: int, trained: PyTree) -> dict[str, float]:
    """Returns scalars to write for this step."""
    params = params_lib.merge(trained, self._frozen)
    scalars = self._losses(params) if self._evaluation.loss_steps else {}
    self.latest_scores, self.latest_judged = self._decode(
      params, self._evaluation.split, self._predict
    )
    self.latest_step = step
    if self._follower is not None:
      self._follower(step, self.latest_scores, trained)
    for task, judged in self.latest_judged.items():
      floors = {**judged.floors, 'collapsed': float(bool(judged.collapsed))}
      for name, value in floors.items():
        if isinstance(value, float):
          scalars[f'{_FLOOR}/{task}/{name}'] = value
    return {**scalars, **flat_scores(self.latest_scores)}

  def test(
    self,
    bundle: bundle_lib.PromptBundle | None,
    trained: PyTree,
    split: str,
  ) -> tuple[dict[str, dict[str, float]], dict[str, Judgement]]:
    """Scores a split with finished prompts, or with what was trained.

    Args:
      bundle: the prompts; None for a run without any.
      trained: the trainable tree of such a run.
      split: the split.

    Returns:
      ({task: {metric: value}}, {task: what stands beside them}).
    """
    if bundle is None:
      params = params_lib.merge(trained, self._frozen)
      return self._decode(params, split, self._predict)
    # Prompts of several steps may have another rank than the run's.
    predict = trainer.make_predict_step(
      self._model.answering(bundle.learner, len(bundle.task_names))
    )
    params = params_lib.merge(
      partitioning.shard_params(bundle.params, self._mesh), self._frozen
    )
    return self._decode(params, split, predict)

  def _losses(self, params: PyTree) -> dict[str, float]:
    if self._loss_batches is None:
      from mpt_jax import data

      part, num_parts = partitioning.data_part(self._mesh)
      batches = data.get_train_iterator(
        dataclasses.replace(
          self._dataset,
          split=self._evaluation.split,
          shuffle=False,
          num_shots=None,
        ),
        prompt_length=self._model.prompt_length,
        task_names=self._rows,
        shard_index=part,
        num_shards=num_parts,
      )
      count = self._evaluation.loss_steps
      self._loss_batches = list(itertools.islice(batches, count))
    eval_step = trainer.make_eval_step(self._model)
    parts = [
      eval_step(params, trainer.put_batch(batch, self._mesh))
      for batch in self._loss_batches
    ]
    totals = jax.tree.map(lambda *terms: sum(terms[1:], terms[0]), *parts)
    scalars = trainer.summarize(totals, self._task_names)
    return {f'eval_loss/{name}': value for name, value in scalars.items()}

  def _decode(
    self, params: dict[str, Any], split: str, predict: Callable[..., Any]
  ) -> tuple[dict[str, dict[str, float]], dict[str, Judgement]]:
    from mpt_jax import data

    params = {k: v for k, v in params.items() if k != 'teacher_prompts'}

    def predict_fn(batch: Mapping[str, np.ndarray]) -> np.ndarray:
      self._check()
      placed = trainer.put_batch(batch, self._mesh, whole=True)
      return partitioning.to_host(predict(params, placed))

    evaluation = self._evaluation
    scores = data.evaluate(
      evaluation.examples(self._dataset, split),
      self._model.prompt_length,
      self._rows,
      predict_fn,
      evaluation.batch_size,
    )
    judged = {task: scores.judge(task) for task in scores}
    for task, values in scores.items():
      log.info('%s %s: %s', task, split, format_scores(values, judged[task]))
    return scores, judged


@dataclasses.dataclass(frozen=True)
class BestPrompts:
  """Each task's best prompts, in `best/<task>`.

  Attributes:
    model_dir: the run's folder.
    make_bundle: (step, arrays, scores) -> bundle of the run's tasks.
  """

  model_dir: str
  make_bundle: Callable[..., bundle_lib.PromptBundle]

  def save(
    self,
    step: int,
    scores: Mapping[str, Mapping[str, float]],
    tasks: Sequence[str],
    trained: Mapping[str, Any],
  ) -> None:
    """Saves those of some tasks, from the host's trainable tree."""
    [arrays] = trained.values()
    for task in tasks:
      bundle = self.make_bundle(step, arrays, {task: scores[task]})
      if task in bundle.task_names:
        bundle.with_tasks([task]).save(self._path(task))

  def product(self, tasks: Iterable[str]) -> bundle_lib.PromptBundle:
    """The best prompts of tasks, in their order."""
    parts = [bundle_lib.load_prompts(self._path(task)) for task in tasks]
    return bundle_lib.merge(parts)

  def _path(self, task: str) -> str:
    return os.path.join(self.model_dir, BEST, task)


@dataclasses.dataclass(frozen=True)
class BestBackbone:
  """The best backbone, in `best/backbone`: one, for all tasks.

  Attributes:
    model_dir: the run's folder.
    backbone: what it was at the start.
  """

  model_dir: str
  backbone: Backbone

  @property
  def path(self) -> str:
    """Where it is, until it has become the product."""
    return os.path.join(self.model_dir, BEST, 'backbone')

  def save(
    self,
    step: int,
    scores: Mapping[str, Mapping[str, float]],
    tasks: Sequence[str],
    trained: Mapping[str, Any],
  ) -> None:
    """Saves the host's trainable tree over the one before it."""
    del tasks, scores
    self.backbone.save(self.path, trained)
    log.info(
      'best step so far: %d; its backbone is in %s, %.0f MB',
      step,
      self.path,
      4e-6 * params_lib.count(trained),
    )

  def load(self) -> dict[str, Any]:
    """Its parameters."""
    return checkpoints.load_backbone(self.path).params

  def remove(self) -> None:
    """Frees the disk, once the run has its product."""
    files.remove_folder(self.path)


@dataclasses.dataclass
class Best:
  """Follows a run's evaluations, and keeps what was best.

  Attributes:
    selection: what was best so far.
    kept: where it is; None keeps nothing.
  """

  selection: selection.Selection
  kept: BestPrompts | BestBackbone | None

  @classmethod
  def create(
    cls,
    evaluation: Evaluation,
    said: Mapping[str, Mapping[str, Metric]],
    step: int,
    kept: BestPrompts | BestBackbone,
    together: bool = False,
  ) -> 'Best':
    """Takes up what the run has seen up to a step."""
    followed = selection.Selection(
      evaluation.best_metric,
      evaluation.patience,
      said,
      together=together or isinstance(kept, BestBackbone),
    )
    path = os.path.join(kept.model_dir, METRICS)
    for then, scores in multihost.on_first(lambda: past_scores(path, step)):
      followed.update(then, scores)
    return cls(followed, kept if evaluation.keep_best else None)

  def update(
    self,
    step: int,
    scores: dict[str, dict[str, float]],
    trained: Mapping[str, Any],
  ) -> None:
    """Takes an evaluation; saves what is better than ever before."""
    better, kept = self.selection.update(step, finite_scores(scores)), self.kept
    if better and kept is not None:
      host = partitioning.to_host(trained)
      multihost.on_first(lambda: kept.save(step, scores, better, host))


def past_scores(
  path: str, step: int
) -> list[tuple[int, dict[str, dict[str, float]]]]:
  """Reads the evaluations up to a step from a run's metrics."""
  found = []
  for line in read_metrics(path):
    scores: dict[str, dict[str, float]] = {}
    for name, value in line.items():
      kind, _, rest = name.partition('/')
      if kind == 'eval':
        task, _, metric = rest.partition('/')
        scores.setdefault(task, {})[metric] = value
    if scores and line['step'] <= step:
      found.append((line['step'], scores))
  return found


def was_evaluated(model_dir: str, step: int) -> bool:
  """Whether the run's metrics have the scores of a step."""
  path = os.path.join(model_dir, METRICS)
  return multihost.on_first(
    lambda: any(then == step for then, _ in past_scores(path, step))
  )


def judged_at(
  path: str, steps: Mapping[str, int], latest: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
  """What stands beside each task's scores of its best step.

  Intervals are left out: the best of many evaluations is no fair draw.

  Args:
    path: the run's metrics.
    steps: task -> step.
    latest: `judgements` of the last step.
  """
  floors = {task: dict(latest['floors'].get(task, {})) for task in steps}
  collapsed = {}
  for line in read_metrics(path):
    for name, value in line.items():
      kind, _, rest = name.partition('/')
      task, _, name = rest.partition('/')
      if kind == _FLOOR and line['step'] == steps.get(task):
        floors[task][name] = value
  for task, values in floors.items():
    if values.pop('collapsed', 0):
      collapsed[task] = (
        f'{values["commonest"]:.1f} % of the answers are one,'
        f' {values["invalid"]:.1f} % are invalid'
      )
  return {'floors': floors, 'collapsed': collapsed, 'intervals': {}}
