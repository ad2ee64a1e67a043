"""Optimizers: parameter groups with their own learning rate, one schedule.

MPT trains P* and the task factors with two learning rates; pretraining the
demo backbone needs three groups. Both are a list of `Group`s, chosen by name.
"""

from collections.abc import Sequence
import dataclasses
import logging
import re

import jax.numpy as jnp
import optax

from mpt_jax.engine import params as params_lib
from mpt_jax.methods import Method
from mpt_jax.types import (
  Array,
  InputError,
  Natural,
  Positive,
  PyTree,
  Rate,
  nearest,
)

log = logging.getLogger(__name__)

OPTIMIZERS = ('adamw', 'adafactor', 'muon')
SCHEDULES = ('linear', 'constant')
WARMUP = 500


@dataclasses.dataclass(frozen=True)
class Group:
  """Parameters that share a learning rate.

  Attributes:
    pattern: regular expression for the whole name ('prompts/task_u').
    learning_rate: peak learning rate.
    optimizer: 'adamw', 'adafactor' or 'muon'; None is the run's own.
  """

  pattern: str
  learning_rate: float
  optimizer: str | None = None


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """An optimizer's settings; `make` turns them into an optax transformation.

  A run completes what its user says (`of_run`).

  Attributes:
    groups: first match wins; every trainable parameter must be matched and
      every group must match one. Empty: the run's own.
    name: 'adamw' or 'adafactor' ('muon': orthogonalised momentum for hidden
      matrices, used to pretrain the demo backbone).
    schedule: after the warm-up 'linear' falls to 0 at `total_steps`,
      'constant' stays.
    total_steps: steps of the run, warm-up included; for 'linear'.
    warmup_steps: steps of the linear rise from 0. None is what the papers'
      code has: of 'linear' 500 (Asai et al., EMNLP 2022), at most a tenth of
      the run; of 'constant' none (Lester et al., EMNLP 2021).
    weight_decay: decoupled, times the learning rate for AdamW and Muon.
    clip_norm: largest global norm of the gradient; None does not clip.
    learning_rate: peak rate of P* (or the plain prompt, or the backbone) in
      the run's own groups; None is the run's own.
    task_learning_rate: peak rate of u and v there; None is `learning_rate`,
      or the run's own where that is None too.
  """

  groups: tuple[Group, ...] = ()
  name: str = 'adamw'
  schedule: str = 'linear'
  total_steps: Positive | None = None
  warmup_steps: Natural | None = None
  weight_decay: Rate = 1e-5
  clip_norm: Rate | None = None
  # A run's record has them in its groups.
  learning_rate: Rate | None = dataclasses.field(default=None, repr=False)
  task_learning_rate: Rate | None = dataclasses.field(default=None, repr=False)

  def __post_init__(self):
    object.__setattr__(self, 'groups', tuple(self.groups or ()))
    names = {self.name, *(g.optimizer or self.name for g in self.groups)}
    for name in sorted(names):
      if name not in OPTIMIZERS:
        raise InputError(
          f'optimizer is {name!r}, expected one of {", ".join(OPTIMIZERS)}'
          f'{nearest(name, OPTIMIZERS)}'
        )
    if self.schedule not in SCHEDULES:
      raise InputError(
        f'schedule is {self.schedule!r}, expected one of'
        f' {", ".join(SCHEDULES)}{nearest(self.schedule, SCHEDULES)}'
      )

  def rates(self, method: Method, stage: str) -> tuple[float, float | None]:
    """The peak rates of a stage; of u and v None where they have none apart."""
    rate, task_rate = method.rates[stage]
    if self.learning_rate is not None:
      rate, task_rate = self.learning_rate, None
    if self.task_learning_rate is not None:
      task_rate = self.task_learning_rate
    return rate, task_rate

  def of_run(
    self, groups: Sequence[Group], total_steps: int | None
  ) -> 'Optimizer':
    """Returns these settings as a run carries them out.

    Args:
      groups: the run's own, with their rates; not used if there are others.
      total_steps: steps of the run; a constant rate needs none.
    """
    warmup = self._warmup(total_steps)
    if total_steps and warmup >= total_steps:
      log.warning(
        'a warm-up of %d steps in a run of %d: no rate reaches its peak',
        *(warmup, total_steps),
      )
    return dataclasses.replace(
      self,
      groups=self.groups or tuple(groups),
      total_steps=total_steps,
      warmup_steps=warmup,
      learning_rate=None,
      task_learning_rate=None,
    )

  def rate(self, peak: float) -> optax.Schedule:
    """The schedule of a group: step -> learning rate."""
    warmup = self._warmup(self.total_steps)
    if self.schedule == 'constant':
      after = optax.constant_schedule(peak)
    else:
      if not self.total_steps:
        raise InputError("schedule 'linear' needs total_steps")
      after = optax.linear_schedule(
        peak, 0.0, max(1, self.total_steps - warmup)
      )
    if not warmup:
      return after
    rise = optax.linear_schedule(0.0, peak, warmup)
    return optax.join_schedules([rise, after], [warmup])

  def _warmup(self, total_steps: int | None) -> int:
    if self.warmup_steps is not None:
      return self.warmup_steps
    if self.schedule == 'constant' or not total_steps:
      return 0
    return min(WARMUP, total_steps // 10)

  def make(self, trainable: PyTree) -> optax.GradientTransformation:
    """Builds the transformation for a tree of trainable parameters.

    Args:
      trainable: nested dict of arrays (or shapes).

    Returns:
      An optax transformation whose state covers `trainable` and nothing else.

    Raises:
      InputError: if a parameter has no group or a group no parameter.
    """
    labels = {}
    for name in params_lib.flatten(trainable):
      hits = [
        i for i, g in enumerate(self.groups) if re.fullmatch(g.pattern, name)
      ]
      if not hits:
        raise InputError(
          f'no optimizer group matches the trainable parameter {name!r};'
          f' there are {[g.pattern for g in self.groups]}'
        )
      labels[name] = str(hits[0])
    for i, group in enumerate(self.groups):
      if str(i) not in labels.values():
        raise InputError(
          f'optimizer group {group.pattern!r} matches no trainable parameter;'
          f' there are {sorted(labels)}'
        )
    transforms = {
      str(i): self._transform(group) for i, group in enumerate(self.groups)
    }
    update = optax.partition(transforms, params_lib.unflatten(labels))
    if self.clip_norm is None:
      return update
    return optax.chain(optax.clip_by_global_norm(self.clip_norm), update)

  def _transform(self, group: Group) -> optax.GradientTransformation:
    rate = self.rate(group.learning_rate)
    name = group.optimizer or self.name
    if name == 'adamw':
      return optax.adamw(rate, weight_decay=self.weight_decay)
    if name == 'muon':
      return optax.contrib.muon(rate, weight_decay=self.weight_decay)
    # As Lester et al. set it: no parameter scaling, nothing factored.
    return optax.adafactor(
      rate,
      multiply_by_parameter_scale=False,
      factored=False,
      decay_rate=0.8,
      clipping_threshold=1.0,
      weight_decay_rate=self.weight_decay or None,
    )


def method_groups(
  method: Method, learning_rate: float, task_learning_rate: float | None = None
) -> tuple[Group, ...]:
  """The groups of a method's parameters.

  Args:
    method: the method.
    learning_rate: peak rate of what all tasks share.
    task_learning_rate: peak rate of what each task has; None is the same.
  """
  rates = {
    'learning_rate': learning_rate,
    'task_learning_rate': learning_rate
    if task_learning_rate is None
    else task_learning_rate,
  }
  branch = f'{method.branch}/' if method.branch else ''
  return tuple(
    Group(f'{branch}{pattern}', rates[rate]) for pattern, rate in method.groups
  )


def global_norm(tree: PyTree) -> Array:
  """Euclidean norm over all leaves, float32."""
  return optax.tree.norm(tree).astype(jnp.float32)


def learning_rates(optimizer: Optimizer, step: int) -> dict[str, float]:
  """{pattern: learning rate at this step}, for the metrics."""
  return {
    g.pattern: float(optimizer.rate(g.learning_rate)(step))
    for g in optimizer.groups
  }
