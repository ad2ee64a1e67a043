r"""Runs the whole of MPT: teachers, source, targets, tests, export, report.

  python -m mpt_jax.pipeline --gin_file=gin_configs/runs/demo.gin \
    --gin.MODEL_DIR="'demo'"

Every step is one of the other commands, in its own folder below MODEL_DIR,
with its `log.txt` and the command in `step.json`. The same command goes on
where it was stopped; finished steps are skipped. With --dry_run it only tells
which runs there are, how long they take and what they fill. Without
--tfds_data_dir (or TFDS_DATA_DIR) synthetic data are written to MODEL_DIR/data
and used.
"""

if __name__ == '__main__':
  # Before the imports: neither --help nor a wrong macro waits for them.
  from mpt_jax import cli

  cli.main('mpt_jax.pipeline', 'pipeline')

import os
import sys
from typing import Any

from mpt_jax.study import forecast, report, screen
from mpt_jax.study.plan import (
  Plan,
  Prompts,
  Setting,
  SourceStage,
  TargetStage,
  Tasks,
  Training,
  Tuning,
)
from mpt_jax.study.run import command, run
from mpt_jax.study.workers import StepError
from mpt_jax.types import Positive, local_path

__all__ = [
  'Plan',
  'Prompts',
  'Setting',
  'SourceStage',
  'TargetStage',
  'Tasks',
  'Training',
  'Tuning',
  'pipeline',
]


def pipeline(
  plan: Plan,
  workers: Positive | None = None,
  executor: str = 'local',
  dry_run: bool = False,
) -> dict[str, Any]:
  """Runs every step that is not finished, writes the report and shows it.

  Args:
    plan: what is run, and in which folder.
    workers: processes; None is one with an accelerator, else up to two; with
      Ray one for each GPU, or for each core where there is none.
    executor: 'local', or 'ray' for several GPUs or machines (the extra `ray`).
    dry_run: whether to tell only what would be run, and touch nothing; what
      --dry_run says.

  Returns:
    The report, as in `report.json`; of a dry run what `forecast.of` tells.

  Raises:
    InputError: if something given is wrong.
    SystemExit: with status 1, if a step failed by a bug.
  """
  if dry_run:
    told = forecast.of(plan, workers)
    print(forecast.text(told))
    return told
  try:
    written = run(plan, workers, executor)
  except StepError as e:
    print(f'error: {e}. The same command resumes: {command()}', file=sys.stderr)
    sys.exit(1)
  folder = local_path(plan.model_dir)
  print(f'report: {os.path.join(folder, report.HTML)}')
  print(screen.summary(written))
  return written
