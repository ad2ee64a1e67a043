"""Which task's examples get which row of the prompt table: the only place.

An example carries its task's identity (a hash of the name, stable for ever);
a model lists its tasks by name. Putting the two together here means that
neither a mixture's order nor its size can renumber a row.
"""

from collections.abc import Sequence
import zlib

from mpt_jax.data.libraries import seqio
from mpt_jax.types import InputError, nearest

# The output feature that carries a task's identity.
TASK_ID = 'task_id'


def task_identity(name: str) -> int:
  """Returns the int32 number that stands for a task's name in its examples.

  Args:
    name: the task's name.

  Returns:
    A number in [0, 2**31).

  Examples:
    >>> task_identity('mnli')
    1466428351
  """
  return zlib.crc32(name.encode()) & 0x7FFFFFFF


def get_provider(mixture_or_task_name: str) -> seqio.Task | seqio.Mixture:
  """Returns a registered SeqIO mixture or task.

  Args:
    mixture_or_task_name: its name.

  Returns:
    The mixture, or else the task, of that name.

  Raises:
    InputError: if there is none; names the nearest ones.
  """
  known = [*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()]
  if mixture_or_task_name not in known:
    raise InputError(
      f'MIXTURE_OR_TASK_NAME={mixture_or_task_name!r} is not a registered '
      f'task or mixture{nearest(mixture_or_task_name, known)} (is the '
      'module that registers it given as MIXTURE_OR_TASK_MODULE?)'
    )
  return seqio.get_mixture_or_task(mixture_or_task_name)


def task_rows(
  task_names: Sequence[str], mixture_or_task_name: str
) -> dict[str, int]:
  """Maps each task of a mixture to its row of the model's prompt table.

  Args:
    task_names: the model's tasks in row order (PROMPT_TASKS). Empty for a
      model with one prompt, or none, for whatever it reads: all get row 0.
    mixture_or_task_name: what the run reads.

  Returns:
    Task name -> row, for the tasks of the mixture.

  Raises:
    InputError: if the mixture has tasks that the model lacks, if the model
      lists a task twice, or if a task's examples do not say whose they are
      while there are several rows to choose from.
  """
  tasks = seqio.get_subtasks(get_provider(mixture_or_task_name))
  if not task_names:
    return {task.name: 0 for task in tasks}
  row_of = {name: row for row, name in enumerate(task_names)}
  if len(row_of) != len(task_names):
    raise InputError(
      f'PROMPT_TASKS={list(task_names)} names a task more than once'
    )
  anonymous = [t.name for t in tasks if TASK_ID not in t.output_features]
  if anonymous and len(task_names) > 1:
    raise InputError(
      f'task(s) {anonymous} of {mixture_or_task_name!r} carry no task '
      'identity, so they work with one prompt only, but PROMPT_TASKS has '
      f'{len(task_names)}: register them with mpt_jax.data.register_task'
    )
  lacking = [
    task.name
    for task in tasks
    if task.name not in row_of and task.name not in anonymous
  ]
  if lacking:
    hints = ''.join(dict.fromkeys(nearest(n, task_names) for n in lacking))
    raise InputError(
      f'task(s) {lacking} of {mixture_or_task_name!r} have no prompt: '
      f'PROMPT_TASKS is {list(task_names)}{hints}'
    )
  return {task.name: row_of.get(task.name, 0) for task in tasks}
