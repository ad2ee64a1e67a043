"""TFDS data as it lies on disk: never downloaded, checked before it is read.

SeqIO's own source starts a download when data are missing and, without a
network, retries for minutes; it also keeps the first data directory it sees
for as long as the process lives. Both are wrong for a run that should start
or fail at once.
"""

from collections.abc import Mapping, Sequence
import os

from mpt_jax.data.libraries import seqio, tf, tfds
from mpt_jax.types import (
  InputError,
  local_path,
)


def set_data_dir(data_dir: str | os.PathLike | None) -> None:
  """Sets the TFDS data directory (`--tfds_data_dir`) for every task.

  Args:
    data_dir: the directory; None for TFDS' default.
  """
  seqio.set_tfds_data_dir_override(
    None if data_dir is None else local_path(data_dir)
  )


def _override() -> str | None:
  # T5X sets the directory in SeqIO directly. SeqIO has a setter only; a loader
  # made now tells what it holds.
  return seqio.LazyTfdsLoader('any:0.0.0').data_dir


def get_data_dir() -> str:
  """Returns the TFDS data directory in use."""
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
