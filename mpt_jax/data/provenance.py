"""Whether data are real: synthetic data say so in their DatasetInfo."""

from mpt_jax.data.libraries import seqio, tfds
from mpt_jax.data.rows import get_provider

# How the description of a synthetic data set begins.
SYNTHETIC = 'SYNTHETIC DATA'


def info_is_synthetic(info: tfds.core.DatasetInfo) -> bool:
  """Whether a DatasetInfo declares its data made up."""
  return (info.description or '').startswith(SYNTHETIC)


def is_synthetic(mixture_or_task_name: str) -> bool:
  """Whether any task of a mixture reads data that declare themselves made up.

  Args:
    mixture_or_task_name: a registered mixture or task whose data are there.

  Returns:
    True if the description of one task's DatasetInfo says so.
  """
  for task in seqio.get_subtasks(get_provider(mixture_or_task_name)):
    if isinstance(task.source, seqio.TfdsDataSource):
      if info_is_synthetic(task.source.tfds_dataset.info):
        return True
  return False
