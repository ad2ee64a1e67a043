"""Writes the synthetic data sets as TFDS folders."""

from collections.abc import Callable, Iterable
import os
import shutil

from mpt_jax.types import InputError, nearest
from tasks import offline
from tasks.offline import datasets, rows

ROWS_PER_FILE = 2000


def _write_one(
  data_dir: str,
  dataset: rows.Dataset,
  splits: dict[str, list[rows.Row]],
  seed: int,
) -> None:
  """Writes one data set beside its place, then moves it there."""
  import tensorflow_datasets as tfds

  from mpt_jax.data import quiet

  final = offline.dataset_path(data_dir, dataset.tfds_name)
  # TFDS derives the folder from the name: a temporary data_dir, then a move.
  temporary = os.path.join(data_dir, f'.incomplete.{os.getpid()}')
  try:
    builder = tfds.builder(dataset.tfds_name, data_dir=temporary)
    builder.data_path.mkdir(parents=True, exist_ok=True)
    info = tfds.core.DatasetInfo(
      builder=builder,
      features=builder.info.features,
      description=(
        f'{offline.SYNTHETIC} of mpt_jax (tasks.offline, seed {seed}) in'
        f' the schema of {dataset.tfds_name}. It holds nothing of the'
        ' official data set.'
      ),
      homepage='',
      citation='',
    )
    writer = tfds.core.SequentialWriter(
      info, max_examples_per_shard=ROWS_PER_FILE
    )
    writer.initialize_splits(list(splits))
    # TFDS warns of its own use of a field when it writes nested sequences.
    with quiet.only_errors():
      writer.add_examples(splits)
    writer.close_all()
    os.makedirs(os.path.dirname(final), exist_ok=True)
    if os.path.isdir(final):
      shutil.rmtree(final)
    os.replace(offline.dataset_path(temporary, dataset.tfds_name), final)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def write(
  data_dir: str,
  names: Iterable[str] | None = None,
  seed: int = 0,
  train_size: int | None = None,
  overwrite: bool = False,
  say: Callable[[str], None] = print,
) -> list[str]:
  """Writes synthetic data sets into a TFDS data folder.

  Real data are never touched: a folder that holds a data set which does not
  declare itself synthetic is left as it is, also with `overwrite`.

  Args:
    data_dir: the folder; made if missing.
    names: which data sets, by task name; default all.
    seed: fixes the rows.
    train_size: rows of each split to train on; default by the data set.
    overwrite: write synthetic data anew where there are some.
    say: takes one line for each data set.

  Returns:
    The task names that were written.

  Raises:
    InputError: for an unknown name, a train_size that leaves no rows, or a
      data_dir that cannot be written.
  """
  data_dir = os.path.abspath(os.path.expanduser(data_dir))
  names = list(datasets.DATASETS if names is None else names)
  for name in names:
    if name not in datasets.DATASETS:
      raise InputError(
        f'no synthetic data set {name!r} (--tasks); known are'
        f' {", ".join(datasets.DATASETS)}{nearest(name, datasets.DATASETS)}'
      )
  if train_size is not None and train_size < rows.LEAST_TRAIN:
    raise InputError(
      f'--train_size={train_size} is too small: at least'
      f' {rows.LEAST_TRAIN} rows, {rows.HELD_OUT} of which'
      ' the source tasks hold out for validation'
    )
  try:
    os.makedirs(data_dir, exist_ok=True)
  except OSError as error:
    raise InputError(
      f'--data_dir={data_dir} cannot be made: {error.strerror}'
    ) from error
  written = []
  for name in names:
    dataset = datasets.DATASETS[name]
    folder = offline.dataset_path(data_dir, dataset.tfds_name)
    if os.path.exists(os.path.join(folder, 'dataset_info.json')):
      if not offline.is_synthetic(data_dir, dataset.tfds_name):
        say(f'{name}: real data in {folder}, left as they are')
        continue
      if not overwrite:
        say(f'{name}: there already, {folder}')
        continue
    splits = datasets.make_splits(name, seed, train_size)
    _write_one(data_dir, dataset, splits, seed)
    sizes = ', '.join(f'{s} {len(r)}' for s, r in splits.items())
    say(f'{name}: {offline.SYNTHETIC}, {sizes}')
    written.append(name)
  return written
