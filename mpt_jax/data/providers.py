"""What a run reads, whoever keeps it: SeqIO, or rows in memory.

Streams, batches and scores need no more of a task than this. It has two
makers: `seqio_tasks` and `memory`.
"""

import abc
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
import contextlib
import dataclasses
from typing import Any, Protocol

import numpy as np

from mpt_jax.checkpoints.texts import TaskText
from mpt_jax.data import faults
from mpt_jax.data.wording import Wording
from mpt_jax.engine.batching import EOS

KEYS = ('inputs', 'targets')
# Kinds of output that a metric asks for.
PREDICTION, SCORE = 'PREDICTION', 'SCORE'


class Vocabulary(Protocol):
  """What writes a task's texts as ids."""

  @property
  def eos_id(self) -> int | None:
    """The end mark."""
    ...

  @property
  def unk_id(self) -> int | None:
    """What it cannot write."""
    ...

  def encode(self, text: str) -> Sequence[int]:
    """Returns a text's ids, without an end mark."""
    ...

  def decode(self, ids: Any) -> str:
    """Returns the text of ids."""
    ...


@dataclasses.dataclass(frozen=True)
class Computed:
  """A task's metrics of the outputs for some examples.

  Attributes:
    values: metric name -> value.
    functions: of those that read answers, the function that gave it.
    targets: the postprocessed targets, if any metric read them.
    answers: where there are such functions, the postprocessed outputs.
    outputs: likewise, the outputs as decoded.
  """

  values: Mapping[str, float]
  functions: Mapping[str, Callable[..., Any]]
  targets: list[Any] | None = None
  answers: Sequence[Any] = ()
  outputs: Sequence[str] = ()


class TaskReader(abc.ABC):
  """A task that can be read and scored; equal readers read the same."""

  @property
  @abc.abstractmethod
  def name(self) -> str:
    """The task's name."""

  @property
  @abc.abstractmethod
  def splits(self) -> Collection[str]:
    """The names of its splits."""

  @property
  @abc.abstractmethod
  def wording(self) -> Wording | None:
    """How its examples are written; None if that is not known."""

  @property
  def label_words(self) -> Sequence[str] | None:
    """The label words in the order of the class ids, if there are any."""
    return self.wording.labels if self.wording is not None else None

  @property
  def knows_itself(self) -> bool:
    """Whether an example says whose it is."""
    return True

  @property
  @abc.abstractmethod
  def metrics(self) -> Sequence[Any]:
    """The functions, or classes, that give its metrics."""

  @property
  def wants(self) -> frozenset[str]:
    """The kinds of output that its metrics ask for."""
    return frozenset([PREDICTION] if self.metrics else [])

  @property
  def is_synthetic(self) -> bool:
    """Whether its data declare themselves made up."""
    return False

  @property
  def data_set(self) -> str:
    """What others call its data, TFDS or the hub; '' if nobody does."""
    return ''

  @abc.abstractmethod
  def vocabulary(self, key: str) -> Vocabulary:
    """Returns what writes its `inputs` or `targets`."""

  def end_ids(self) -> tuple[int, int]:
    """Returns the end marks of its inputs and targets."""
    found = [self.vocabulary(key).eos_id for key in KEYS]
    inputs, targets = (EOS if i is None else i for i in found)
    return inputs, targets

  @abc.abstractmethod
  def check(self, split: str, use_cached: bool) -> None:
    """Checks that a split can be read.

    Raises:
      InputError: if not, or if its examples are none of ours.
    """

  @abc.abstractmethod
  def check_vocabulary(self) -> None:
    """Checks that its ids are those of the backbone.

    Raises:
      InputError: if not.
    """

  def naming(self, split: str) -> contextlib.AbstractContextManager[None]:
    """Makes one line of what goes wrong in its own code; see `faults`."""
    return faults.naming(self.name, split)

  @abc.abstractmethod
  def size(self, split: str) -> int:
    """Returns how many rows a split has; 0 if that is not known."""

  def state(self, split: str) -> Any:
    """Returns what changes when the data of a split do."""
    del split

  @abc.abstractmethod
  def examples(
    self,
    split: str,
    limits: Mapping[str, int],
    use_cached: bool,
    most: int | None = None,
    lean: bool = False,
  ) -> Iterator[dict[str, Any]]:
    """Yields the tokenised examples of a split, in the data's order.

    Args:
      split: the split.
      limits: of `inputs` and `targets`. Nothing is cut to them, except where
        the task's own code makes examples of a length.
      use_cached: whether to read SeqIO's offline cache.
      most: how many of the first examples; None is all.
      lean: whether no more is wanted than the features below and those of
        which `identifies` is true.

    Yields:
      NumPy features: `inputs` and `targets` with their end marks and, where
      they are known, `inputs_pretokenized` and `targets_pretokenized`.
    """

  @abc.abstractmethod
  def score(
    self,
    examples: Sequence[Mapping[str, Any]],
    outputs: Mapping[str, np.ndarray],
    targets: list[Any] | None,
  ) -> Computed:
    """Computes the metrics.

    Args:
      examples: from `examples`, cut to their lengths.
      outputs: kind of output -> [examples, ...].
      targets: those postprocessed before, to save the work.
    """

  @abc.abstractmethod
  def text(self, split: str) -> TaskText | None:
    """Returns how its texts are written, as far as templates alone say it.

    Args:
      split: a split that is read.

    Returns:
      The templates and label words; None if there are no data to tell.
    """


@dataclasses.dataclass(frozen=True)
class Provider:
  """What a name, or a list of them, stands for: tasks that are drawn evenly.

  Attributes:
    name: the name, for messages.
    tasks: in their order.
  """

  name: str
  tasks: tuple[TaskReader, ...]

  @property
  def splits(self) -> frozenset[str]:
    """The splits that any of the tasks has."""
    return frozenset().union(*(task.splits for task in self.tasks))

  def num_input_examples(self, split: str) -> int:
    """Returns how many rows a split has in all tasks."""
    return sum(task.size(split) for task in self.tasks if split in task.splits)

  def rates(self) -> dict[str, float]:
    """Returns each task's rate, in any unit.

    Raises:
      InputError: if one is no positive number.
    """
    return {task.name: 1.0 for task in self.tasks}

  def check_rates(self, split: str) -> None:
    """Checks the rates as far as they can be told when a split is read."""
    del split


def numbers(named: Mapping[str, Any]) -> dict[str, float]:
  """Returns the numbers of what a metric gave, without texts and plots."""
  values = {name: getattr(v, 'value', v) for name, v in named.items()}
  return {
    name: float(value)
    for name, value in values.items()
    if np.ndim(value) == 0 and not isinstance(value, str)
  }


def identifies(name: str) -> bool:
  """Whether a feature's name says that it tells examples apart."""
  return name in ('id', 'idx', 'gem_id') or name.startswith('idx/')
