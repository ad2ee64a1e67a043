r"""Turns prompts into the form another program reads.

  python -m mpt_jax.export --gin_file=gin_configs/runs/export.gin \
    --gin.PROMPTS="'runs/target/rte/prompts'" \
    --gin.OUTPUT="'exported'" --gin.FORMAT="'npy'"

Formats: `npy` (one composed [P, D] matrix per task, the layout of Google's
prompt-tuning), `peft` (a Hugging Face PEFT adapter folder) and `bundle` (ours,
with other tasks). PROMPTS may itself be any of the three.
"""

from collections.abc import Sequence
import logging

from mpt_jax import cli
from mpt_jax.checkpoints import bundle as bundle_lib
from mpt_jax.types import InputError, nearest

log = logging.getLogger(__name__)

FORMATS = ('npy', 'peft', 'bundle')


def export(
  *,
  prompts: str,
  output: str,
  format: str = 'npy',
  tasks: Sequence[str] | str | None = None,
) -> None:
  """Exports prompts.

  Args:
    prompts: path of a bundle, PEFT adapter folder or `.npy` file.
    output: folder to write.
    format: 'npy', 'peft' or 'bundle'.
    tasks: the tasks to export, in row order; None is all.

  Raises:
    InputError: if the prompts can't be read, a task or format is unknown, or
      `output` can't be written; nothing is left behind.
  """
  if format not in FORMATS:
    raise InputError(
      f'FORMAT = {format!r}, expected one of {", ".join(FORMATS)}'
      f'{nearest(format, FORMATS)}'
    )
  bundle = bundle_lib.load_prompts(prompts)
  if tasks is not None:
    bundle = bundle.with_tasks(cli.as_list(tasks))
  if format == 'npy':
    bundle.to_npy(output)
  elif format == 'peft':
    bundle.to_peft(output)
  else:
    bundle.save(output)
  log.info('wrote %s of %s to %s', format, ', '.join(bundle.task_names), output)


if __name__ == '__main__':
  cli.main('mpt_jax.export', 'export')
