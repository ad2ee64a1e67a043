"""Looks at tasks, data and backbone before anything is trained.

What a run of hours would stumble over is told in one line that names the task
and what to do. These functions run in a study's first worker.
"""

from collections.abc import Iterator, Sequence
import os
from typing import Any

from mpt_jax import cli
from mpt_jax.engine.settings import Examples
from mpt_jax.study import rates, steps
from mpt_jax.study.plan import Plan
from mpt_jax.types import InputError, Lengths, nearest

SPLITS = ('train', 'validation', 'test')
# The most tokens of an input that are read where no lengths are given: what
# T5 was pretrained with.
MOST_INPUTS = 512
_UNLIMITED = 1 << 20


def write_data(
  data_dir: str, names: Sequence[str], module: str | None
) -> list[str]:
  """Writes made up data of built-in tasks, where there are none.

  Args:
    data_dir: folder for TFDS data; made if missing.
    names: tasks; a user's own are left alone, whatever they are called.
    module: module that registers the tasks.

  Returns:
    The tasks that read made up data, old or new.

  Raises:
    InputError: if the module cannot be imported.
  """
  from mpt_jax.data import seqio_tasks

  if module:
    seqio_tasks.import_module(module)
  from tasks.offline import datasets, writer

  found = []
  for name in names:
    task, known = seqio_tasks.find(name), datasets.DATASETS.get(name)
    if task is None or known is None:
      continue
    source = getattr(task.task.source, 'tfds_name', None)
    if source == known.tfds_name:
      found.append(name)
  os.makedirs(data_dir, exist_ok=True)
  writer.write(data_dir, found)
  return found


def tasks(data_dir: str, plan: Plan) -> dict[str, dict[str, Any]]:
  """Checks every task before anything is trained.

  Args:
    data_dir: folder of the TFDS data.
    plan: the study.

  Returns:
    Task -> the sizes of its splits, and whether its data are synthetic.

  Raises:
    InputError: if a task or a split is missing or broken, or the mixture has
      other tasks.
  """
  from mpt_jax import data
  from mpt_jax.data import seqio_tasks

  cli.use_data_dir(data_dir)
  named = plan.tasks
  if named.module:
    seqio_tasks.import_module(named.module)
  for macro, names in (
    ('SOURCE_TASKS', named.source_tasks),
    ('TARGETS', named.targets),
  ):
    for name in names:
      _check_name(macro, name, named.module)
  mixture = data.check_data(
    named.source_mixture or list(named.source_tasks), 'train', named.module
  )
  mixed = sorted(task.name for task in mixture.tasks)
  if mixed != sorted(named.source_tasks):
    raise InputError(
      f'mixture {named.source_mixture!r} has the tasks {", ".join(mixed)},'
      f' but SOURCE_TASKS are {", ".join(named.source_tasks)}'
    )
  facts: dict[str, dict[str, Any]] = {}
  for name in plan.all_tasks:
    for split in SPLITS:
      _check_split(name, split)
    [task] = data.check_data(name, 'train').tasks
    facts[name] = {
      'synthetic': data.is_synthetic(name),
      **{split: task.size(split) for split in SPLITS},
    }
  if plan.target_stage.tuning is not None:
    rates.check_metrics(
      {
        name: data.metrics_of(name, 'validation')[name]
        for name in rates.targets_of(plan)
      }
    )
  return facts


def _check_name(macro: str, name: str, module: str) -> None:
  """Refuses what is no task."""
  from mpt_jax.data import seqio_tasks

  if seqio_tasks.find(name) is not None:
    return
  known = seqio_tasks.known()
  if name in known:
    raise InputError(f'{macro}: {name!r} is a mixture; name its tasks')
  raise InputError(
    f'{macro}: {name!r} is no task that MIXTURE_OR_TASK_MODULE={module!r}'
    f' registers{nearest(name, known)}'
  )


def _check_split(name: str, split: str) -> None:
  """Refuses a task without a split, or with one that cannot be read."""
  from mpt_jax import data
  from mpt_jax.data import seqio_tasks

  task = seqio_tasks.find(name)
  assert task is not None
  need = f'a study reads train, validation and test of each task; {_cut(split)}'
  if split not in task.splits:
    raise InputError(
      f'task {name!r} has no split {split!r}, only'
      f' {", ".join(sorted(task.splits))}: {need}'
    )
  try:
    data.check_data(name, split)
  except InputError as e:
    lost: BaseException | None = e
    while lost is not None and not isinstance(lost, FileNotFoundError):
      lost = lost.__cause__
    raise e if lost is None else InputError(f'{e}: {need}') from e


def _cut(split: str) -> str:
  """How a split is made of the train split."""
  return (
    f"to cut {split!r} from 'train', register the task with splits={{"
    f"{split!r}: 'train[:200]', 'train': 'train[200:]', …}}"
  )


def lengths(plan: Plan) -> dict[str, int]:
  """Finds the lengths that the longest examples need.

  Args:
    plan: the study; its backbone is loaded.

  Returns:
    {'inputs': S with prompt slots, 'targets': T}. Of longer inputs, no more
    than `MOST_INPUTS` tokens are read.

  Raises:
    InputError: if a split cannot be read.
  """
  limits = dict.fromkeys(('inputs', 'targets'), _UNLIMITED)
  found = [
    counted
    for name in plan.all_tasks
    for _, counted in _counts(plan, name, limits, 0, everything=True)
  ]
  longest = max(counted.longest_input for counted in found)
  return {
    'inputs': min(longest, MOST_INPUTS) + plan.prompts.prompt_length,
    'targets': max(counted.longest_target for counted in found),
  }


def texts(plan: Plan) -> list[str]:
  """Reads what will be trained on and scored, as the first runs do anyway.

  Args:
    plan: the study, with lengths; its backbone is loaded.

  Returns:
    What a user should know: texts that are cut, examples without a label,
    targets that are sources too.

  Raises:
    InputError: if a split has no labels, if a target or a label word does not
      fit, or a few-shot setting asks for more examples than there are: in
      hours a run would find it.
  """
  from mpt_jax.data import counts

  notes = [
    f'{name} is both in SOURCE_TASKS and in TARGETS: what starts from the'
    ' sources has seen its training examples'
    for name in plan.tasks.targets
    if name in plan.tasks.source_tasks
  ]
  slots = plan.prompts.prompt_length
  for name in plan.all_tasks:
    limits = plan.tasks.lengths_of(name)
    fit = limits['inputs'] - slots, limits['targets']
    for split, counted in _counts(plan, name, limits, slots):
      used = 'trained on' if split == 'train' else 'scored'
      notes += counts.lines(f'{name}/{split}', counted, fit, used)
      if split == 'train' and counted.absent:
        words = ', '.join(map(repr, counted.absent))
        notes.append(f'{name}/{split}: no example of class {words}')
  return notes


def _counts(
  plan: Plan, name: str, limits: Lengths, slots: int, everything: bool = False
) -> Iterator[tuple[str, Any]]:
  """Yields (split, its counts) of what a study reads of a task.

  Args:
    plan: the study.
    name: the task.
    limits: the lengths to read with.
    slots: those of them that are the prompt's.
    everything: all of all splits, and cut targets are no error.
  """
  from mpt_jax import data

  stage = plan.target_stage
  allowed = everything or bool((plan.macros or {}).get(steps.ALLOWED))
  source = name in plan.tasks.source_tasks
  scored: dict[str, int | None] = {'test': None}
  if everything or source or stage.tuning is not None:
    scored['validation'] = None if everything else plan.tasks.eval_examples
  for split, number in scored.items():
    examples = Examples(name, split, limits, number, None, allowed)
    for counted in data.examine(examples, slots, ()).values():
      yield split, counted
  shots: dict[int | None, str] = {}
  if not everything and name in plan.tasks.targets:
    shots = {s.num_shots: s.name for s in stage.settings}
  if everything or source:
    shots.setdefault(None, '')
  for number, setting in shots.items():
    config = data.DatasetConfig(
      mixture_or_task_name=name,
      task_feature_lengths=limits,
      batch_size=1,
      num_shots=number,
      shots_per_class=(plan.macros or {}).get('SHOTS_PER_CLASS', True),
      allow_cut_targets=allowed,
    )
    try:
      read = data.get_train_iterator(config, slots, ())
    except InputError as e:
      where = f'setting {setting!r}: ' if number is not None else ''
      raise InputError(f'{where}{e}') from e
    if number == next(iter(shots)):  # All of them read the same split.
      yield 'train', read.counts[name]


def backbone(path: str) -> dict[str, Any]:
  """Loads the backbone; returns what a report says of it.

  Args:
    path: its path or name.
  """
  from mpt_jax.engine import params
  from mpt_jax.engine import predictor as runs

  loaded = runs.load_backbone(path)
  return {
    'name': loaded.name,
    'fingerprint': loaded.fingerprint,
    'parameters': params.count(loaded.params),
    'config': loaded.config.to_dict(),
    **(loaded.origin if 'revision' in loaded.origin else {}),
  }
