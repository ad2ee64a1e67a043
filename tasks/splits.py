"""Train, validation and test, as the MPT line of papers means them.

The official test splits have no labels, so papers test on the official
validation split and take their own validation data from elsewhere. The bounds
are absolute numbers: percentages round differently from one library to
another. Within a split the order is TFDS's, so a half here is not the same
examples as a half in a paper that shuffled first.
"""

from collections.abc import Callable, Mapping, Sequence

from absl import logging
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from mpt_jax.data import TfdsSource, get_data_dir
from mpt_jax.data.records import Slice
from mpt_jax.data.sources import SYNTHETIC, hub_dir, info_is_synthetic
from mpt_jax.types import InputError
from tasks import hub as hub_lib
from tasks import hub_source

NAMES = ('train', 'validation', 'test')
# How many training examples a large task holds out for validation.
HELD_OUT = 1000

# Sizes of the TFDS splits -> our split to TFDS slice.
Rule = Callable[[Mapping[str, int]], Mapping[str, str]]


def hold_out(
  train: str = 'train', test: str = 'validation', most: int | None = None
) -> Rule:
  """Large tasks: validate on 1,000 training examples.

  Args:
    train: the TFDS split to train on.
    test: the labelled TFDS split to test on.
    most: train on so many examples only.

  Returns:
    The rule.
  """

  def rule(counts: Mapping[str, int]) -> dict[str, str]:
    stop = counts[train]
    if most is not None:
      stop = min(stop, HELD_OUT + most)
    end = '' if stop == counts[train] else str(stop)
    return {
      'train': f'{train}[{HELD_OUT}:{end}]',
      'validation': f'{train}[:{HELD_OUT}]',
      'test': test,
    }

  return rule


def halve(counts: Mapping[str, int]) -> dict[str, str]:
  """Small tasks: validate on the first half of the official validation."""
  half = counts['validation'] // 2
  return {
    'train': 'train',
    'validation': f'validation[:{half}]',
    'test': f'validation[{half}:]',
  }


def own(validation: str = 'validation', test: str = 'test') -> Rule:
  """Tasks whose official splits all have labels.

  Args:
    validation: the TFDS split to validate on.
    test: the one to test on.

  Returns:
    The rule.
  """

  def rule(counts: Mapping[str, int]) -> dict[str, str]:
    del counts
    return {'train': 'train', 'validation': validation, 'test': test}

  return rule


def size(part: str, counts: Mapping[str, int]) -> int:
  """Returns the number of examples of a TFDS slice such as 'train[1000:]'."""
  cut = Slice.parse(part)
  return (cut.stop or counts[cut.split]) - cut.start


class BenchmarkSource(TfdsSource):
  """A TFDS data set that must have its official sizes, or be synthetic."""

  def __init__(
    self,
    tfds_name: str,
    rule: Rule,
    counts: Mapping[str, int],
    train_filter: Callable[..., tf.Tensor] | None = None,
  ):
    """Names the data; touches no disk.

    Args:
      tfds_name: name with version.
      rule: how our splits are cut.
      counts: official sizes of the TFDS splits that the rule uses.
      train_filter: which examples of `train` to train on; None is all.
    """
    super().__init__(tfds_name, splits=NAMES)
    self._rule = rule
    self._counts = dict(counts)
    self._train_filter = train_filter
    self._announced: set[str] = set()

  @property
  def data_set(self) -> str:
    """What the hub calls the data, wherever they are read; else TFDS."""
    known = hub_lib.DATA.get(self.tfds_name)
    return known.repo if known else self.tfds_name

  def _hub(self) -> hub_source.HubSplits | None:
    """The same data as the hub has them, if those are in use."""
    root = hub_dir()
    return None if root is None else hub_source.HubSplits(root, self.tfds_name)

  @property
  def folder(self) -> str:
    """The folder that holds the data, TFDS's or the hub's."""
    hub = self._hub()
    return super().folder if hub is None else hub.folder

  @property
  def is_synthetic(self) -> bool:
    """Whether the data declare themselves made up."""
    hub = self._hub()
    if hub is None:
      return super().is_synthetic
    return all(hub.is_synthetic(name, SYNTHETIC) for name in self._counts)

  def split_map(self, info: tfds.core.DatasetInfo) -> Mapping[str, str]:
    """Returns the slices for the data on disk.

    Synthetic data have sizes of their own: the rule is applied to those.

    Args:
      info: the data set's description on disk.

    Returns:
      train, validation and test -> TFDS slice.

    Raises:
      InputError: if real data lack a split or have another size.
    """
    on_disk = {name: split.num_examples for name, split in info.splits.items()}
    return self._cut(on_disk, info_is_synthetic(info), 'prepare the data anew')

  def _cut(
    self, on_disk: Mapping[str, int], synthetic: bool, ways_out: str
  ) -> Mapping[str, str]:
    for name, official in self._counts.items():
      found = on_disk.get(name)
      if found is None or (found != official and not synthetic):
        what = 'is missing' if found is None else f'has {found} examples'
        raise InputError(
          f'split {name!r} of {self.tfds_name!r} in {get_data_dir()} {what}, '
          f'the official one has {official}: {ways_out}'
        )
    return self._rule(on_disk)

  def _of_hub(self, hub: hub_source.HubSplits, split: str) -> tuple[Slice, int]:
    """Which rows of the hub's data our split is, and how many."""
    on_disk = {name: hub.count(name) for name in self._counts}
    cut = self._cut(on_disk, self.is_synthetic, 'fetch the data anew')
    if split not in cut:
      raise InputError(
        f'{self.tfds_name!r} has no split {split!r}; it has {sorted(cut)}'
      )
    return Slice.parse(cut[split]), size(cut[split], on_disk)

  def num_input_examples(self, split: str) -> int | None:
    """Returns how many rows a split has."""
    hub = self._hub()
    if hub is None:
      return super().num_input_examples(split)
    return self._of_hub(hub, split)[1]

  def list_shards(self, split: str) -> Sequence[str]:
    """Returns the files of a split; those of the hub are read as one."""
    return super().list_shards(split) if self._hub() is None else [split]

  def get_dataset(
    self,
    split: str,
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
  ) -> tf.data.Dataset:
    """Returns a split; of `train` only what the task trains on."""
    hub = self._hub()
    if hub is None:
      dataset = super().get_dataset(split, shuffle, seed, shard_info)
    else:
      part, count = self._of_hub(hub, split)
      table = hub.read(part.split).slice(part.start, count)
      dataset = hub_source.dataset(table)
      if shuffle:
        dataset = dataset.shuffle(count, seed=seed)
    if self._train_filter is None or split != 'train':
      return dataset
    return dataset.filter(self._train_filter)

  def check(self, split: str) -> None:
    """Checks that a split can be read, and says so if it is synthetic."""
    hub, data_dir = self._hub(), get_data_dir()
    if hub is None:
      super().check(split)
    elif not self._of_hub(hub, split)[1]:
      raise InputError(f'split {split!r} of {self.tfds_name!r} is empty')
    notes = []
    if self.is_synthetic:
      notes.append(f'SYNTHETIC DATA: {self.tfds_name} in {data_dir}')
    if hub is not None and hub.data.note:
      notes.append(f'{self.tfds_name} of the hub: {hub.data.note}')
    if notes and data_dir not in self._announced:
      self._announced.add(data_dir)
      for note in notes:
        logging.warning(note)
