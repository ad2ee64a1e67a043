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

All but `npy` have a README.md, and name their base model as the run did; that
may be said anew with INITIAL_CHECKPOINT_PATH. The licence is yours to choose:
--gin.LICENSE="'apache-2.0'". `--push_to=USER/NAME` tells what
an upload to the hub would hold, with `--upload` it is done.
"""

from mpt_jax import cli

if __name__ == '__main__':
  # Before the imports: neither --help nor a wrong macro waits for them.
  cli.main('mpt_jax.export', 'export')

from collections.abc import Mapping, Sequence
import dataclasses
import logging
import os

from mpt_jax.checkpoints import bundle as bundle_lib
from mpt_jax.checkpoints import card, files, hub, stores
from mpt_jax.checkpoints.backbone import find_backbone
from mpt_jax.checkpoints.backbone import load_backbone as read_backbone
from mpt_jax.checkpoints.bundle import PromptBundle
from mpt_jax.engine.outcome import PROMPTS
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
  license: str | None = None,
  push_to: str | None = None,
  upload: bool = False,
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
    backbone: what 'merged' puts them into, and what adapters name as their
      base model; None is what the run was given.
    license: of what is written, as the hub calls it; its card says so.
    push_to: 'USER/NAME' of the hub; tells what an upload there would hold.
    upload: whether it is uploaded.

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
  made = card.UNKNOWN
  if len(paths) == 1:
    folder, name = os.path.split(stores.absolute(paths[0]))
    made = card.read_made(folder, bundle) if name == PROMPTS else made
  made = dataclasses.replace(made, license=license or '')
  if rename:
    bundle = bundle.renamed(rename)
  if tasks is not None:
    bundle = bundle.with_tasks(cli.as_list(tasks))
  bundle.check_format(format)
  parts = _parts(bundle, output, format)
  if push_to is not None:
    _check_push(push_to, parts, format)
  if format in ('peft', 'peft_composed', 'adapterhub'):
    made = dataclasses.replace(made, base=_base(backbone, bundle))
  loaded = load_backbone(backbone) if format == 'merged' else None
  for folder, whose in parts:
    if loaded is not None:
      bundle.to_merged(folder, loaded, whose, made)
    elif format == 'npy':
      bundle.to_npy(folder)
    elif format == 'bundle':
      bundle.save(folder, made)
    elif format == 'adapterhub':
      bundle.to_adapterhub(folder, whose, made)
    else:
      bundle.to_peft(folder, whose, made)
  if bundle.texts and format != 'bundle':
    log.info(
      "format %s does not hold how the tasks' text is written, a bundle does",
      format,
    )
  log.info('wrote %s of %s to %s', format, ', '.join(bundle.task_names), output)
  if push_to is not None:
    if os.path.isabs(made.origin[0]):
      log.warning(
        'the base model is named by a path of this machine, %s: give'
        ' INITIAL_CHECKPOINT_PATH its name on the hub',
        made.origin[0],
      )
    [(folder, _)] = parts
    print(hub.push(stores.bring(stores.place(folder)), push_to, upload))


def _parts(
  bundle: PromptBundle, output: str, format: str
) -> list[tuple[str, str | None]]:
  """The folders of a format, and whose part of the prompts goes there."""
  if format in ('npy', 'bundle'):
    return [(output, None)]
  if format == 'peft_composed':
    return [(os.path.join(output, task), task) for task in bundle.task_names]
  return bundle.parts(output)


def _check_push(
  name: str, parts: Sequence[tuple[str, str | None]], format: str
) -> None:
  """Refuses what is no model of the hub."""
  if not hub.is_name(name):
    raise InputError(f'--push_to={name}: expected USER/NAME')
  if format == 'npy':
    raise InputError(
      "--push_to: FORMAT = 'npy' has no card and names no base model; give"
      " FORMAT = 'bundle' or 'peft'"
    )
  if len(parts) > 1:
    tasks = ', '.join(str(task) for _, task in parts)
    raise InputError(
      f'--push_to: FORMAT = {format!r} makes a folder for each of {tasks}, and'
      ' one goes into one model of the hub: give TASKS one of them'
    )


def _base(backbone: BackboneSource | str | None, bundle: PromptBundle) -> str:
  """What adapters call their base model; '' is as the run did."""
  if isinstance(backbone, BackboneSource):
    backbone = backbone.path
  if backbone is None:
    return ''
  path = find_backbone(backbone, fetch=False)
  if files.exists(stores.place(path)):
    bundle_lib.check_backbone(bundle, read_backbone(path))
  else:
    log.warning(
      '%s is not here: nobody has checked that the prompts are of it', backbone
    )
  named = hub.is_name(backbone) and not os.path.exists(backbone)
  return backbone if named else stores.absolute(path)
