"""Runs of training that a question about transfer needs, on workers.

They are steps of a study (`study.steps.Step`): each a command in a folder of
its own, skipped where it is finished, resumed where it was stopped.
"""

from collections.abc import Sequence
import logging
import os
from typing import Any

from mpt_jax import cli
from mpt_jax.checkpoints import files, lock
from mpt_jax.checkpoints.run import RESULTS
from mpt_jax.engine import preemption
from mpt_jax.engine.face import face
from mpt_jax.engine.writers import METRICS, read_metrics
from mpt_jax.study.steps import Step
from mpt_jax.study.workers import STOPPING, Pool, standing
from mpt_jax.types import require_local

log = logging.getLogger(__name__)


def run(
  folder: str,
  steps: Sequence[Step],
  backbone: str,
  module: str | None = 'tasks',
  workers: int | None = None,
  data_dir: str | None = None,
) -> None:
  """Runs the steps that are not finished, each after those it needs.

  Args:
    folder: of all steps.
    steps: what to run.
    backbone: path of the one that they share, as `INITIAL_CHECKPOINT_PATH`
      has it in their macros.
    module: module that registers the tasks.
    workers: processes; None is one with an accelerator, else up to two.
    data_dir: folder of the TFDS data; None is that of --tfds_data_dir, or what
      TFDS takes.

  Raises:
    InputError: if a step was given something wrong, or was finished with
      other settings.
    workers.StepError: if a step fails otherwise.
  """
  folder = require_local(folder)
  data_dir = data_dir or cli.data_dir() or os.environ.get('TFDS_DATA_DIR')
  face().at_interrupt(lambda: standing(folder, steps))
  with lock.hold(folder), preemption.interrupting(STOPPING):
    face().keep_log(folder)
    with Pool(folder, workers, backbone, data_dir, module) as pool:
      pool.shared = {'backbone': pool.call(_fingerprint, backbone)}
      pool.run(steps)


def _fingerprint(backbone: str) -> str:
  from mpt_jax.engine import predictor

  return predictor.load_backbone(backbone).fingerprint


def results(folder: str, step: Step) -> dict[str, Any]:
  """Returns what a finished step's `results.json` says."""
  return files.read_json(os.path.join(folder, step.name, RESULTS))


def history(folder: str, step: Step) -> list[dict[str, Any]]:
  """Returns the lines of a step's `metrics.jsonl`."""
  return list(read_metrics(os.path.join(folder, step.name, METRICS)))
