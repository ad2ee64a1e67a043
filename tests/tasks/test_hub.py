"""The built-in tasks from the hub's Parquet files, as from TFDS's."""

import json
import os
import random

import pytest
import seqio
import tensorflow_datasets as tfds

from mpt_jax import data
from mpt_jax.types import InputError
from tasks import hub, hub_source
from tasks.offline import datasets
from tasks.table import TABLE
from tests.helpers import hub_data

pytestmark = pytest.mark.data

SYNTHETIC = 'SYNTHETIC DATA of a test'


def drawn(name, split='train', count=14):
  """Rows of a synthetic data set, in TFDS's schema."""
  dataset = datasets.DATASETS[name]
  rng = random.Random(name)
  rows = []
  while len(rows) < count:
    for row in dataset.draw(rng, split):
      rows.append(dataset.identify(row, split, len(rows)))
  return rows


def plain(value):
  """An example as JSON."""

  def convert(value):
    if isinstance(value, bytes):
      return value.decode()
    if hasattr(value, 'tolist'):
      return convert(value.tolist())
    if isinstance(value, dict):
      return {k: convert(v) for k, v in value.items()}
    return [convert(v) for v in value] if isinstance(value, list) else value

  return json.dumps(convert(value), sort_keys=True)


def texts(ds, name):
  ds = seqio.TaskRegistry.get(name).preprocessors[0](ds)
  return [plain(example) for example in ds.as_numpy_iterator()], ds.element_spec


def test_every_data_set_is_known():
  assert set(hub.DATA) == {row.tfds_name for row in TABLE.values()}
  assert set(hub.DATA) == set(hub_data.HUB)


@pytest.mark.parametrize('name', sorted(datasets.DATASETS))
def test_texts_are_those_of_tfds(name, write_tfds, write_hub):
  tfds_name = datasets.DATASETS[name].tfds_name
  split = datasets.DATASETS[name].train
  rows = drawn(name, split)
  folder = write_tfds(tfds_name, {split: rows})
  expected = tfds.builder(tfds_name, data_dir=folder).as_dataset(split=split)
  root = write_hub(tfds_name, {split: rows}, shards=2)
  found = hub_source.HubSplits(str(root), tfds_name)
  assert found.count(split) == len(rows)
  ds = hub_source.dataset(found.read(split))
  for task, row in TABLE.items():
    # Tasks of digits differ from their namesakes in the template alone.
    if row.tfds_name != tfds_name or task.endswith('_digits'):
      continue
    (theirs, their_spec), (ours, spec) = texts(expected, task), texts(ds, task)
    assert sorted(ours) == sorted(theirs)
    assert {k: (s.dtype, s.shape.rank) for k, s in spec.items()} == {
      k: (s.dtype, s.shape.rank) for k, s in their_spec.items()
    }
