"""Sources of SeqIO's tasks: TFDS data on disk, a user's own files and rows.

TFDS data are never downloaded, and checked before they are read. SeqIO's own
source starts a download when data are missing and, without a
network, retries for minutes; it also keeps the first data directory it sees
for as long as the process lives. Both are wrong for a run that should start
or fail at once.
"""

from collections.abc import Mapping, Sequence
import os
from typing import Any

import numpy as np

from mpt_jax.data.libraries import seqio, tf, tfds
from mpt_jax.data.lines import SUFFIXES
from mpt_jax.data.records import (
  INDEX,
  NAME,
  SPLITS,
  Columns,
  Records,
  Rows,
  RowsFn,
  Slice,
)
from mpt_jax.types import HUB, InputError, is_remote, local_path

# How the description of a synthetic data set begins.
SYNTHETIC = 'SYNTHETIC DATA'


def info_is_synthetic(info: tfds.core.DatasetInfo) -> bool:
  """Whether a DatasetInfo declares its data made up."""
  return (info.description or '').startswith(SYNTHETIC)


# The folder of the hub's data sets, if they are what tasks read.
_hub: str | None = None


def set_data_dir(data_dir: str | os.PathLike | None) -> None:
  """Sets the data directory for every task.

  Args:
    data_dir: TFDS' directory (`--tfds_data_dir`); `hf:DIR`, one of the hub's
      data sets (`--hf_data_dir`), which the built-in tasks can read; None for
      TFDS' default.
  """
  global _hub
  text = None if data_dir is None else os.fspath(data_dir)
  hub = text is not None and text.startswith(HUB)
  path = None if text is None else local_path(text.removeprefix(HUB))
  if path and is_remote(path) and (hub or not path.startswith('gs://')):
    raise InputError(
      f'{text}: data sets are read from a local folder, those of TFDS from'
      ' gs:// too; copy it, or name files in the bucket as sources of tasks'
    )
  _hub = path if hub else None
  seqio.set_tfds_data_dir_override(None if hub else path)


def hub_dir() -> str | None:
  """Returns the folder of the hub's data sets; None if tasks read TFDS'."""
  return _hub


def _override() -> str | None:
  # T5X sets the directory in SeqIO directly. SeqIO has a setter only; a loader
  # made now tells what it holds.
  return seqio.LazyTfdsLoader('any:0.0.0').data_dir


def get_data_dir() -> str:
  """Returns the data directory in use, as `set_data_dir` takes it."""
  if _hub is not None:
    return f'{HUB}{_hub}'
  return os.path.expanduser(
    _override()
    or os.environ.get('TFDS_DATA_DIR')
    or str(tfds.core.constants.DATA_DIR)
  )


def find_dataset(tfds_name: str) -> str:
  """Returns the folder of a prepared TFDS data set.

  Args:
    tfds_name: name, optional config, and version: `glue/mnli:2.0.0`.

  Returns:
    The folder that holds its `dataset_info.json`.

  Raises:
    InputError: at once, if there is none; names the folder and the ways out.
  """
  if _hub is not None:
    raise InputError(
      f'{tfds_name!r} is a TFDS data set, but --hf_data_dir={_hub} is one of'
      " the hub's: give --tfds_data_dir instead"
    )
  name, _, version = tfds_name.partition(':')
  folder = os.path.join(get_data_dir(), name, version)
  candidates = [folder]
  if '/' not in name:
    # Without a config in its name, a data set may still have a default one.
    pattern = os.path.join(get_data_dir(), name, '*', version)
    candidates += sorted(tf.io.gfile.glob(pattern))
  for candidate in candidates:
    if tf.io.gfile.exists(os.path.join(candidate, 'dataset_info.json')):
      return candidate
  parent = os.path.dirname(folder)
  others = tf.io.gfile.listdir(parent) if tf.io.gfile.exists(parent) else []
  there = f' (there is {sorted(others)})' if others else ''
  build = name.replace('/', ' --config=', 1)
  raise InputError(
    f'no data for {tfds_name!r}: {folder} does not exist or is '
    f'incomplete{there}; '
    'give the right --tfds_data_dir, prepare the data (tfds build '
    f'{build} --data_dir={get_data_dir()}), or write synthetic stand-ins '
    f'(python -m tasks.offline --data_dir={get_data_dir()})'
  )


class TfdsSource(seqio.TfdsDataSource):
  """A TFDS data set in the data directory in use."""

  def __init__(
    self,
    tfds_name: str,
    splits: Mapping[str, str] | Sequence[str] | None = None,
  ):
    """Names the data; touches no disk.

    Args:
      tfds_name: name with version.
      splits: our split -> TFDS split or slice of it; or just the names, for
        a subclass whose `split_map` works the slices out; or None for the
        data set's own splits.
    """
    super().__init__(tfds_name, splits=splits, read_only=True)
    self.tfds_name = tfds_name
    self._slices = dict(splits) if isinstance(splits, Mapping) else None

  @property
  def data_set(self) -> str:
    """What a card calls the data."""
    return self.tfds_name

  def split_map(self, info: tfds.core.DatasetInfo) -> Mapping[str, str] | None:
    """Maps our split names to TFDS splits or slices of this very data set.

    Args:
      info: the data set's description on disk, with its split sizes.

    Returns:
      Our split -> TFDS split or slice; None to use the names as they are.
    """
    del info
    return self._slices

  @property
  def folder(self) -> str:
    """The folder that holds the data; see `find_dataset`."""
    return find_dataset(self.tfds_name)

  @property
  def is_synthetic(self) -> bool:
    """Whether the data declare themselves made up."""
    return info_is_synthetic(self.tfds_dataset.info)

  @property
  def tfds_dataset(self) -> seqio.LazyTfdsLoader:
    """The loader for the data directory in use now."""
    find_dataset(self.tfds_name)

    def loader(split_map):
      return seqio.LazyTfdsLoader(
        self.tfds_name,
        # SeqIO warns of a directory that it overrides by itself.
        data_dir=None if _override() else get_data_dir(),
        split_map=split_map,
        read_only=True,
      )

    return loader(self.split_map(loader(None).info))

  def list_shards(self, split: str) -> Sequence[str]:
    """Returns the files of a split.

    Not memoised as in the base class: the data directory may change.
    """
    return [file.filename for file in self.tfds_dataset.files(split)]

  def check(self, split: str) -> None:
    """Checks that a split can be read.

    Args:
      split: our name of the split.

    Raises:
      InputError: if the data, or this split of it, are missing or empty.
    """
    info = self.tfds_dataset.info
    slices = self.split_map(info) or {name: name for name in info.splits}
    if split not in slices:
      raise InputError(
        f'{self.tfds_name!r} has no split {split!r}; it has {sorted(slices)}'
      )
    wanted = slices[split].partition('[')[0]
    if wanted not in info.splits:
      raise InputError(
        f'split {split!r} of {self.tfds_name!r} is read from {wanted!r}, '
        f'which {find_dataset(self.tfds_name)} lacks; it has '
        f'{sorted(info.splits)}'
      )
    if not info.splits[slices[split]].num_examples:
      raise InputError(f'split {split!r} of {self.tfds_name!r} is empty')


class RecordsSource(Records, seqio.DataSource):
  """Rows of files or of a function, as a SeqIO data source."""

  def __init__(
    self,
    rows: Rows,
    splits: Mapping[str, str],
    columns: Sequence[str],
    renamed: Mapping[str, str],
    labels: Sequence[str] | None,
  ):
    """Names the data, as `Records` does; reads nothing."""
    Records.__init__(self, rows, splits, columns, renamed, labels)
    seqio.DataSource.__init__(self, splits=tuple(splits))

  @property
  def is_synthetic(self) -> bool:
    """Whether the rows' function has a `description` that says so."""
    description = getattr(self._rows, 'description', None) or ''
    return str(description).startswith(SYNTHETIC)

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """Rows are in memory: any host can take any of them."""
    return True

  def list_shards(self, split: str) -> Sequence[str]:
    """Returns one name: a split is one shard, and is divided by rows."""
    return [split]

  def pack(self, columns: Columns) -> dict[str, Any]:
    """Returns the features of a split as tensors."""
    count = columns.count

    def texts(cells: list[Any]) -> tf.Tensor:
      return tf.constant(cells, tf.string, shape=[count])

    return {
      INDEX: np.arange(count, dtype=np.int64),
      **({} if columns.names is None else {NAME: texts(columns.names)}),
      **{
        name: tf.ragged.constant(cells, dtype=tf.string)
        if name in columns.lists
        else np.array(cells, np.int64)
        if self.holds_ids(name)
        else texts(cells)
        for name, cells in columns.cells.items()
      },
    }

  def get_dataset(
    self,
    split: str,
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
  ) -> tf.data.Dataset:
    """Returns the rows of a split: one feature per column, and `idx`."""
    self.check(split)
    columns, bounds = self.part(split)
    dataset = tf.data.Dataset.from_tensor_slices(
      {
        name: cells[bounds.start : bounds.stop]
        for name, cells in columns.items()
      }
    )
    if shard_info and shard_info.num_shards > 1:
      dataset = dataset.shard(shard_info.num_shards, shard_info.index)
    if shuffle:
      size = bounds.stop - bounds.start
      dataset = dataset.shuffle(size, seed=seed)
    return dataset


def make_source(
  source: str | os.PathLike | Mapping[str, str | os.PathLike] | RowsFn,
  splits: Mapping[str, str] | Sequence[str] | None,
  columns: Sequence[str],
  renamed: Mapping[str, str],
  labels: Sequence[str] | None,
) -> RecordsSource:
  """Makes a source of files or of a function.

  Args:
    source: a path with `{split}` in it, {split: path}, one path (which is
      then the split `train`), or a function from the name of a split to its
      rows. A path ends in one of `SUFFIXES`.
    splits: our split -> split of the data or a slice of it, or just names;
      None is what the source says, or train, validation and test.
    columns: names that every row must have.
    renamed: name in the templates -> column.
    labels: words in the order of the class ids.

  Returns:
    The source; nothing is read yet.

  Raises:
    InputError: for a file of another kind.
  """
  rows: Mapping[str, str] | RowsFn
  known: tuple[str, ...]
  if callable(source):
    rows, known = source, SPLITS
  elif isinstance(source, Mapping):
    rows = {name: local_path(path) for name, path in source.items()}
    known = tuple(rows)
  else:
    path = local_path(source)
    if '{split}' in path:
      named = splits.values() if isinstance(splits, Mapping) else splits
      known = tuple(
        dict.fromkeys(Slice.parse(text).split for text in named or SPLITS)
      )
      rows = {name: path.replace('{split}', name) for name in known}
    else:
      rows, known = {'train': path}, ('train',)
  for path in () if callable(rows) else rows.values():
    if not path.endswith(SUFFIXES):
      raise InputError(
        f'{path!r} is no data file: expected {", ".join(SUFFIXES)}, or a TFDS'
        " name with its version, as in 'glue/mnli:2.0.0'"
      )
  if not isinstance(splits, Mapping):
    splits = {name: name for name in (splits or known)}
  return RecordsSource(rows, splits, columns, renamed, labels)
