"""One call that registers a SeqIO task whose examples know their task."""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import seqio
import tensorflow as tf

from mpt_jax.data import rows
from mpt_jax.data.sources import TfdsSource
from mpt_jax.data.vocabulary import get_vocabulary
from mpt_jax.types import InputError

Preprocessor = Callable[..., tf.data.Dataset]


def _add_task_id(dataset: tf.data.Dataset, identity: int) -> tf.data.Dataset:
  return dataset.map(
    lambda example: {
      **example,
      rows.TASK_ID: tf.constant([identity], tf.int32),
    },
    num_parallel_calls=tf.data.AUTOTUNE,
  )


def register_task(
  name: str,
  source: seqio.DataSource | str,
  *,
  preprocessors: Sequence[Preprocessor],
  postprocess_fn: Callable[..., Any] | None = None,
  metric_fns: Sequence[Callable[..., Any]] = (),
) -> seqio.Task:
  """Registers a SeqIO task that works in every run, mixture and engine.

  What happens to an example: source, `preprocessors`, tokenising with the
  backbone's vocabulary (the texts stay as `inputs_pretokenized` and
  `targets_pretokenized`), an end-of-sequence mark that survives cutting, and
  the task's identity as the feature `task_id`. The registration touches
  neither disk nor network.

  Args:
    name: the task's name, letters, digits and underscores.
    source: where examples come from: a SeqIO data source, or a TFDS name with
      its version (`glue/mnli:2.0.0`), all of whose splits are then offered.
    preprocessors: functions from tf.data.Dataset to tf.data.Dataset; after
      the last one an example has the strings `inputs` and `targets`. Further
      features are kept for evaluation.
    postprocess_fn: makes of a text what the metrics compare; called as
      `postprocess_fn(text, example=..., is_target=...)`.
    metric_fns: functions of (targets, predictions) that return a dict of
      numbers. Without any, evaluation skips the task.

  Returns:
    The registered task.

  Raises:
    InputError: if the name is taken, or if another task has the same
      identity.
  """
  if name in seqio.TaskRegistry.names():
    raise InputError(f'a task named {name!r} is registered already')
  identity = rows.task_identity(name)
  for other in seqio.TaskRegistry.names():
    if rows.task_identity(other) == identity:
      raise InputError(
        f'the tasks {name!r} and {other!r} would share the identity '
        f'{identity}: choose another name'
      )
  vocabulary = get_vocabulary()
  return seqio.TaskRegistry.add(
    name,
    source=TfdsSource(source) if isinstance(source, str) else source,
    preprocessors=[
      *preprocessors,
      seqio.preprocessors.tokenize,
      seqio.CacheDatasetPlaceholder(),
      seqio.preprocessors.append_eos_after_trim,
      functools.partial(_add_task_id, identity=identity),
    ],
    postprocess_fn=postprocess_fn,
    metric_fns=list(metric_fns),
    output_features={
      'inputs': seqio.Feature(vocabulary),
      'targets': seqio.Feature(vocabulary),
      rows.TASK_ID: seqio.Feature(
        seqio.PassThroughVocabulary(size=0), add_eos=False
      ),
    },
  )
