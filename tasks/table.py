"""What a row of the task tables holds, and the function that registers it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

from mpt_jax import data
from tasks import postprocessors, preprocessors, splits


@dataclasses.dataclass(frozen=True)
class Task:
  """One benchmark task.

  Attributes:
    name: its SeqIO name.
    tfds_name: the TFDS data set, with its version.
    preprocess: tf.data.Dataset of TFDS examples -> one with `inputs` and
      `targets`.
    postprocess: text -> what the metrics compare.
    metrics: metric functions.
    rule: how train, validation and test are cut from the official splits.
    counts: the official sizes of the TFDS splits that the rule uses.
  """

  name: str
  tfds_name: str
  preprocess: Callable[..., Any]
  postprocess: Callable[..., Any]
  metrics: Sequence[Callable[..., Any]]
  rule: splits.Rule
  counts: Mapping[str, int]


def classification(
  name: str,
  tfds_name: str,
  fields: str,
  labels: str,
  metrics: Sequence[Callable[..., Any]],
  rule: splits.Rule,
  counts: Mapping[str, int],
) -> Task:
  """Returns the row of a classification task in T5's text format.

  Args:
    name: its SeqIO name, also the first word of the inputs.
    tfds_name: the TFDS data set, with its version.
    fields: the features that make the inputs, in order, space-separated.
    labels: the label words in the order of the class ids, likewise.
    metrics: metric functions of class ids.
    rule: how train, validation and test are cut.
    counts: the official sizes.
  """
  words = tuple(labels.split())
  return Task(
    name,
    tfds_name,
    functools.partial(
      preprocessors.classification,
      prefix=name,
      fields=fields.split(),
      labels=words,
    ),
    functools.partial(postprocessors.class_id, labels=words),
    metrics,
    rule,
    counts,
  )


def register(table: Iterable[Task]) -> None:
  """Registers tasks with SeqIO."""
  for task in table:
    data.register_task(
      task.name,
      splits.BenchmarkSource(task.tfds_name, task.rule, task.counts),
      preprocessors=[task.preprocess],
      postprocess_fn=task.postprocess,
      metric_fns=task.metrics,
    )
