"""What the names of a run stand for, and whether it can be read.

A name is that of a task in memory (`memory`), or of SeqIO's. SeqIO, and with
it TensorFlow, is imported when a name asks for it.
"""

from collections.abc import Sequence

from mpt_jax.checkpoints.texts import TaskText
from mpt_jax.data import candidates, labels, memory, quiet, rows
from mpt_jax.data.providers import Provider, TaskReader
from mpt_jax.data.vocabulary import CHOSEN
from mpt_jax.types import InputError


def get_provider(mixture_or_task_name: str | Sequence[str]) -> Provider:
  """Returns what a name stands for.

  Args:
    mixture_or_task_name: a task in memory, a registered SeqIO mixture or task,
      or a list of tasks, which is a mixture with equal rates.

  Raises:
    InputError: if there is no such task or mixture (names the nearest ones);
      if a list is empty, names a task twice, or tasks of both kinds.
  """
  if isinstance(mixture_or_task_name, str):
    return _one(mixture_or_task_name)
  names = list(mixture_or_task_name)
  if not names:
    raise InputError('MIXTURE_OR_TASK_NAME is an empty list: name a task')
  for name in names:
    if names.count(name) > 1:
      raise InputError(f'MIXTURE_OR_TASK_NAME={names} names {name!r} twice')
  found = [_one(name) for name in names]
  tasks: list[TaskReader] = []
  for provider in found:
    if [task.name for task in provider.tasks] != [provider.name]:
      raise InputError(
        f'MIXTURE_OR_TASK_NAME={names}: {provider.name!r} is a mixture; a list'
        ' names tasks, which are drawn evenly'
      )
    tasks.extend(provider.tasks)
  kept = [name for name in names if memory.find(name) is not None]
  if 0 < len(kept) < len(names):
    raise InputError(
      f'MIXTURE_OR_TASK_NAME={names}: of these {", ".join(map(repr, kept))} are'
      " lists of rows and the others SeqIO's tasks; mix tasks of one kind"
    )
  return Provider(', '.join(names), tuple(tasks))


def _one(name: str) -> Provider:
  task = memory.find(name)
  if task is None:
    quiet.announce()
    from mpt_jax.data import seqio_tasks

    return seqio_tasks.get_provider(name, memory.names())
  if quiet.has_seqio():
    from mpt_jax.data import seqio_tasks

    if name in seqio_tasks.known():
      raise InputError(
        f'task {name!r} is a list of rows, and SeqIO has one of that name too:'
        ' call yours otherwise'
      )
  return Provider(name, (task,))


def _all_in_memory(names: str | Sequence[str]) -> bool:
  names = [names] if isinstance(names, str) else names
  return all(memory.find(name) is not None for name in names)


def check_data(
  mixture_or_task_name: str | Sequence[str],
  split: str,
  module: str | None = None,
  use_cached: bool = False,
) -> Provider:
  """Checks at once that a mixture or task can be read.

  Args:
    mixture_or_task_name: as in `get_provider`.
    split: the split that will be read.
    module: a module to import first (MIXTURE_OR_TASK_MODULE), unless all tasks
      are in memory.
    use_cached: whether SeqIO's offline cache will be read instead.

  Returns:
    The mixture or task.

  Raises:
    InputError: one line that names what is missing, where it was looked for
      and what to do.
  """
  if module and not _all_in_memory(mixture_or_task_name):
    quiet.announce()
    from mpt_jax.data import seqio_tasks

    seqio_tasks.import_module(module)
  provider = get_provider(mixture_or_task_name)
  for task in provider.tasks:
    try:
      with task.naming(split):
        task.check(split, use_cached)
    except InputError as e:
      if str(e).startswith(f'task {task.name!r}'):
        raise
      raise InputError(f'task {task.name!r}: {e}') from e
  provider.check_rates(split)
  return provider


def check_labels(
  provider: Provider, target_length: int, prompt_length: int = 0
) -> None:
  """Checks that a model can say the label words of what a run reads.

  Args:
    provider: a mixture or task.
    target_length: T.
    prompt_length: P.

  Raises:
    InputError: see `labels.check_writable`, and for an encoder
      `candidates.check`.
  """
  for task in provider.tasks:
    if CHOSEN.masks:
      candidates.check(task, target_length, prompt_length)
    elif wording := task.wording:
      labels.check_writable(
        wording.answers, task.vocabulary('targets'), target_length, task.name
      )


def check_vocabulary(provider: Provider) -> None:
  """Refuses tasks whose ids are not those of the backbone.

  Args:
    provider: a mixture or task.

  Raises:
    InputError: if a task writes its texts with another vocabulary.
  """
  for task in provider.tasks:
    task.check_vocabulary()


def task_rows(
  task_names: Sequence[str], mixture_or_task_name: str | Sequence[str]
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
  return rows.rows_of(task_names, get_provider(mixture_or_task_name))


def task_texts(task_names: Sequence[str], split: str) -> dict[str, TaskText]:
  """Returns how the texts of tasks are written.

  Args:
    task_names: the tasks; those not registered, or without data, are left
      out.
    split: a split that is read.

  Returns:
    Task name -> its templates and label words, as far as they alone make the
    text of the data's columns: what other code writes is None.
  """
  found = {}
  for name in task_names:
    task: TaskReader | None = memory.find(name)
    if task is None and quiet.has_seqio():
      from mpt_jax.data import seqio_tasks

      task = seqio_tasks.find(name)
    text = None if task is None else task.text(split)
    if text is not None:
      found[name] = text
  return found


def is_synthetic(mixture_or_task_name: str | Sequence[str]) -> bool:
  """Whether any task of a mixture reads data that declare themselves made up.

  Args:
    mixture_or_task_name: what is read, whose data are there.

  Returns:
    True if the description of one task's DatasetInfo says so.
  """
  provider = get_provider(mixture_or_task_name)
  return any(task.is_synthetic for task in provider.tasks)
