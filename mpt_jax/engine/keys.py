"""What a run leaves by which its task is found: a key, and where it began.

A task's key is its prompts after few steps (Vu et al., "SPoT", ACL 2022,
section 3.2: prompts that were trained equally long tell tasks apart best, not
the best ones). Both are bundles beside the product.
"""

from collections.abc import Callable, Mapping
import dataclasses
import logging
import os
from typing import Any

from mpt_jax import methods
from mpt_jax.checkpoints import bundle as bundle_lib
from mpt_jax.checkpoints import files
from mpt_jax.engine import multihost, partitioning
from mpt_jax.types import InputError

log = logging.getLogger(__name__)

# Folders in MODEL_DIR.
KEY, START = 'key', 'start'


def check(step: int | None, steps: int, method: methods.Method) -> None:
  """Refuses a KEY_STEP that no key can be of.

  Args:
    step: KEY_STEP; None is none.
    steps: the run's last.
    method: what it learns.

  Raises:
    InputError: if it is behind the last step, or what is learned cannot be
      compared.
  """
  if step is None:
    return
  if method.no_matrix:
    raise InputError(
      f'KEY_STEP = {step}: tasks are compared by their prompt matrices, and'
      f' method {method.name!r} has none: {method.no_matrix}'
    )
  if not 1 <= step <= steps:
    raise InputError(
      f"KEY_STEP = {step} is none of the run's steps: TRAIN_STEPS = {steps}"
    )


@dataclasses.dataclass(frozen=True)
class Keeper:
  """Writes a run's `key/` and `start/`.

  Attributes:
    model_dir: the run's folder.
    step: KEY_STEP; None writes neither.
    make_bundle: (step, the method's arrays) -> bundle.
  """

  model_dir: str
  step: int | None
  make_bundle: Callable[[int, Mapping[str, Any]], bundle_lib.PromptBundle]

  def begin(
    self, start: Mapping[str, Any], step: int, arrays: Mapping[str, Any]
  ) -> None:
    """Writes what is due where a run begins or goes on.

    Args:
      start: the arrays of step 0.
      step: the step it is.
      arrays: those of this step.

    Raises:
      InputError: if the key's step is over and was not kept.
    """
    if self.step is None:
      return
    if not files.is_folder(os.path.join(self.model_dir, START)):
      self._save(START, 0, start)
    if step == self.step:
      self.keep(step, arrays)
    elif step > self.step:
      multihost.on_first(lambda: check_kept(self.model_dir, self.step))

  def keep(self, step: int, arrays: Mapping[str, Any]) -> None:
    """Writes the key."""
    self._save(KEY, step, arrays)

  def end(self, step: int, arrays: Mapping[str, Any]) -> None:
    """Writes the key of a run that has ended before its step, and says so."""
    if self.step is not None and step < self.step:
      log.warning(
        'the run ended before KEY_STEP = %d: its key is that of step %d, and'
        ' compares worse with keys of other steps',
        self.step,
        step,
      )
      self.keep(step, arrays)

  def _save(self, name: str, step: int, arrays: Mapping[str, Any]) -> None:
    host = partitioning.to_host(arrays)
    bundle = self.make_bundle(step, host)
    path = os.path.join(self.model_dir, name)
    multihost.on_first(lambda: bundle.save(path))


def check_kept(model_dir: str, step: int | None) -> None:
  """Checks that a run which is past its key's step has the key.

  Args:
    model_dir: the run's folder.
    step: the step it was kept at; None is none.

  Raises:
    InputError: if there is no key, a damaged one, or one of another step.
  """
  if step is None:
    return
  path = os.path.join(model_dir, KEY)
  there = 'none'
  if files.is_folder(path):
    there = f'that of step {(found := bundle_lib.load_prompts(path).step)}'
    if found == step:
      return
  raise InputError(
    f'MODEL_DIR {model_dir!r} is past step {step} and its key is {there}:'
    ' KEY_STEP cannot be given later; give what it was made with, or another'
    ' MODEL_DIR'
  )
