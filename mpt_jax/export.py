r"""Turns prompts into the form another program reads.

  python -m mpt_jax.export --gin_file=gin_configs/runs/export.gin \
    --gin.PROMPTS="'runs/rte/prompts'" --gin.OUTPUT="'exported'" \
    --gin.FORMAT="'npy'"

Formats: `npy` (one composed [P, D] matrix per task, the layout of Google's
prompt-tuning), `peft` (a Hugging Face PEFT adapter folder with all tasks, or,
of what enters the network, one per task), `peft_composed` (one PEFT
PROMPT_TUNING folder per task), `adapterhub` (of bottleneck adapters, a folder
of AdapterHub's `adapters` per task), `merged` (a Hugging Face folder of the
backbone INITIAL_CHECKPOINT_PATH with what was learned in its matrices, one per
task) and `bundle` (ours, with other tasks). PROMPTS may itself be a bundle, an
adapter folder of PEFT or AdapterHub, a .npy file, or a list of them, whose
tasks are put together.
"""

from mpt_jax import cli

if __name__ == '__main__':
  # Before the imports: neither --help nor a wrong macro waits for them.
  cli.main('mpt_jax.export', 'export')

from collections.abc import Mapping, Sequence
import logging
import os

from mpt_jax.checkpoints import bundle as bundle_lib
from mpt_jax.engine.predictor import load_backbone
from mpt_jax.engine.settings import BackboneSource
from mpt_jax.types import InputError, nearest

log = logging.getLogger(__name__)

FORMATS = 'npy', 'peft', 'peft_composed', 'adapterhub', 'merged', 'bundle'


def export(
  *,
  prompts: str | Sequence[str],
  output: str,
  format: str = 'npy',
  tasks: Sequence[str] | str | None = None,
  rename: Mapping[str, str] | None = None,
  backbone: BackboneSource | str | None = None,
) -> None:
  """Exports prompts.

  Args:
    prompts: path of a bundle, PEFT adapter folder or `.npy` file; or several.
      A `.npy` file's task is called by the file's name.
    output: folder to write.
    format: 'npy', 'peft', 'peft_composed', 'adapterhub', 'merged' or
      'bundle'.
    tasks: the tasks to export, in row order; None is all.
    rename: old task name -> new one; done before `tasks` are picked.
    backbone: what 'merged' puts them into; nothing else reads it.

  Raises:
    InputError: if the prompts can't be read or put together, a task or format
      is unknown, or `output` can't be written; nothing is left behind.
  """
  if format not in FORMATS:
    raise InputError(
      f'FORMAT = {format!r}, expected one of {", ".join(FORMATS)}'
      f'{nearest(format, FORMATS)}'
    )
  paths = cli.as_list(prompts)
  bundle = bundle_lib.load_several(paths)
  if rename:
    bundle = bundle.renamed(rename)
  if tasks is not None:
    bundle = bundle.with_tasks(cli.as_list(tasks))
  bundle.check_format(format)
  if format == 'npy':
    bundle.to_npy(output)
  elif format == 'peft_composed':
    for task in bundle.task_names:
      bundle.to_peft(os.path.join(output, task), task)
  elif format == 'bundle':
    bundle.save(output)
  else:
    loaded = load_backbone(backbone) if format == 'merged' else None
    for folder, whose in bundle.parts(output):
      if loaded is not None:
        bundle.to_merged(folder, loaded, whose)
      elif format == 'adapterhub':
        bundle.to_adapterhub(folder, whose)
      else:
        bundle.to_peft(folder, whose)
  if bundle.texts and format != 'bundle':
    log.info(
      "format %s does not hold how the tasks' text is written, a bundle does",
      format,
    )
  log.info('wrote %s of %s to %s', format, ', '.join(bundle.task_names), output)
