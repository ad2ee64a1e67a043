"""What a row of the task tables holds, and the function that registers it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import tensorflow as tf

from mpt_jax import data
from mpt_jax.data import candidates, labels, templates, wording
from tasks import metrics as metrics_lib
from tasks import splits as splits_lib

Preprocessor = Callable[[tf.data.Dataset], tf.data.Dataset]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """One benchmark task.

  Attributes:
    name: its SeqIO name.
    tfds_name: the TFDS data set, with its version.
    counts: the official sizes of the TFDS splits that are used.
    splits: how train, validation and test are cut from them.
    inputs: template of the inputs.
    targets: template of the targets.
    labels: label words in the order of the class ids; none if the answer is
      no class.
    masked: template of the inputs of an encoder that fills a mask; none if it
      cannot answer.
    fillers: label word -> what fills the mask for it.
    prepare: changes the data's features before the templates see them.
    finish: changes the texts afterwards.
    keep: features that evaluation needs.
    postprocess: text -> what the metrics compare, given the `labels` if there
      are any; None is the class id.
    metrics: metric functions.
    train_filter: which examples of the train split to train on.
    train_examples: how many examples the train split makes, where this is
      neither its own size nor what `splits` leaves of it.
    note: what a reader of its scores should know.
  """

  name: str
  tfds_name: str
  counts: Mapping[str, int]
  splits: splits_lib.Rule
  inputs: str
  targets: str = '{label}'
  labels: tuple[str, ...] | None = None
  masked: str | None = None
  fillers: Mapping[str, str | tuple[str, ...]] | None = None
  prepare: Preprocessor | None = None
  finish: Preprocessor | None = None
  keep: Sequence[str] = ('idx',)
  postprocess: Callable[..., Any] | None = None
  metrics: Sequence[metrics_lib.Metric]
  train_filter: Callable[..., tf.Tensor] | None = None
  train_examples: int | None = None
  note: str = ''

  @property
  def sizes(self) -> dict[str, int]:
    """Our split -> number of official examples (rows of the data)."""
    return {
      split: splits_lib.size(part, self.counts)
      for split, part in self.splits(self.counts).items()
    }

  @property
  def weight(self) -> int:
    """Training examples, for mixing in proportion to them."""
    return self.train_examples or self.counts['train']

  @property
  def preprocess(self) -> templates.Chain:
    """What makes texts of TFDS examples: `inputs`, `targets` and `keep`."""
    write = functools.partial(
      templates.text_to_text,
      inputs=self.inputs,
      targets=self.targets,
      labels=self.labels,
      keep=self.keep,
      masked=self.masked,
    )
    steps = (self.prepare, write, self.finish)
    return templates.Chain(tuple(s for s in steps if s is not None))


# Every registered benchmark task by name.
TABLE: dict[str, Task] = {}


def register(rows: Iterable[Task]) -> None:
  """Registers tasks with SeqIO."""
  for row in rows:
    postprocess = row.postprocess or labels.class_id
    if row.labels is not None:
      postprocess = functools.partial(postprocess, labels=row.labels)
    text = wording.Wording(
      row.inputs, row.targets, row.labels, row.masked, row.fillers
    )
    task = data.register_task(
      row.name,
      splits_lib.BenchmarkSource(
        row.tfds_name, row.splits, row.counts, row.train_filter
      ),
      preprocessors=[row.preprocess],
      postprocess_fn=candidates.postprocess(postprocess, text, row.name),
      metric_fns=row.metrics,
    )
    templates.keep_wording(task, text)
    TABLE[row.name] = row


def digits(row: Task, inputs: str, name: str | None = None) -> Task:
  """Returns a task in the format of the MPT and ATTEMPT code lines.

  Their targets are the digits of the class ids, and their inputs begin with
  ATTEMPT's name of the data set.

  Args:
    row: the same task in T5's format.
    inputs: the template.
    name: None is the task's own name and `_digits`.
  """
  assert row.labels is not None
  words = tuple(str(i) for i in range(len(row.labels)))
  fillers = row.fillers and {
    word: row.fillers[label]
    for word, label in zip(words, row.labels, strict=True)
  }
  return dataclasses.replace(
    row,
    name=name or f'{row.name}_digits',
    inputs=inputs,
    labels=words,
    fillers=fillers,
    note='digit labels of the MPT/ATTEMPT line, for reproduction',
  )
