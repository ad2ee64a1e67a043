"""The embedded benchmark: synthetic data in the schemas of the official sets.

`python -m tasks.offline --data_dir=DIR` writes the data. This module knows
how to tell them from real ones, without TensorFlow.
"""

import json
import os

# The first words of the description in a synthetic set's DatasetInfo.
SYNTHETIC = 'SYNTHETIC DATA'


def dataset_path(data_dir: str, tfds_name: str) -> str:
  """Returns where TFDS keeps a data set.

  Args:
    data_dir: the TFDS data folder.
    tfds_name: e.g. 'glue/mnli:2.0.0'.

  Returns:
    The folder, e.g. DIR/glue/mnli/2.0.0.
  """
  name, _, version = tfds_name.partition(':')
  return os.path.join(data_dir, *name.split('/'), version)


def is_synthetic(data_dir: str | None, tfds_name: str) -> bool:
  """Tells whether a data set on disk declares itself synthetic.

  Args:
    data_dir: the TFDS data folder; None is TFDS' own default.
    tfds_name: the official name with its version.

  Returns:
    True if its DatasetInfo says so; False also where there is no data set.
  """
  if data_dir is None:
    data_dir = os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
  folder = dataset_path(os.path.expanduser(data_dir), tfds_name)
  try:
    with open(os.path.join(folder, 'dataset_info.json')) as file:
      info = json.load(file)
  except (OSError, ValueError):
    return False
  return str(info.get('description', '')).startswith(SYNTHETIC)
