"""A TFDS folder of a few rows, for tests."""

import pytest


@pytest.fixture
def write_tfds(tmp_path):
  """Writes rows in an official schema; the folder is then in use.

  Returns:
    A function of the TFDS name, {split: rows} and a description.
  """
  import tensorflow_datasets as tfds

  from mpt_jax import data

  def write(tfds_name, splits, description='rows of a test'):
    builder = tfds.builder(tfds_name, data_dir=tmp_path)
    builder.data_path.mkdir(parents=True)
    info = tfds.core.DatasetInfo(
      builder=builder,
      features=builder.info.features,
      description=description,
    )
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=1000)
    writer.initialize_splits(list(splits))
    writer.add_examples(splits)
    writer.close_all()
    data.set_data_dir(tmp_path)
    return tmp_path

  yield write
  data.set_data_dir(None)
