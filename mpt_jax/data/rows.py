"""Which task's examples get which row of the prompt table: the only place.

An example carries its task's identity (a hash of the name, stable for ever);
a model lists its tasks by name. Putting the two together here means that
neither a mixture's order nor its size can renumber a row.
"""

from collections.abc import Sequence
import re
import zlib

from mpt_jax.data.providers import Provider
from mpt_jax.types import InputError, nearest

# The output feature that carries a task's identity.
TASK_ID = 'task_id'


def check_name(name: str) -> None:
  """Raises InputError if a task cannot be called so."""
  if not isinstance(name, str) or not re.fullmatch(r'\w+', name, re.ASCII):
    raise InputError(
      f'{name!r} is no task name: letters, digits and underscores only'
    )


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


def rows_of(task_names: Sequence[str], provider: Provider) -> dict[str, int]:
  """Maps each task that is read to its row of the model's prompt table.

  Args:
    task_names: the model's tasks in row order (PROMPT_TASKS). Empty for a
      model with one prompt, or none, for whatever it reads: all get row 0.
    provider: what the run reads.

  Returns:
    Task name -> row.

  Raises:
    InputError: see `lookup.task_rows`.
  """
  tasks = provider.tasks
  if not task_names:
    return {task.name: 0 for task in tasks}
  row_of = {name: row for row, name in enumerate(task_names)}
  if len(row_of) != len(task_names):
    raise InputError(
      f'PROMPT_TASKS={list(task_names)} names a task more than once'
    )
  anonymous = [task.name for task in tasks if not task.knows_itself]
  if anonymous and len(task_names) > 1:
    raise InputError(
      f'task(s) {anonymous} of {provider.name!r} carry no task '
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
      f'task(s) {lacking} of {provider.name!r} have no prompt: '
      f'PROMPT_TASKS is {list(task_names)}{hints}'
    )
  return {task.name: row_of.get(task.name, 0) for task in tasks}
