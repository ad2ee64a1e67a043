"""One call that registers a SeqIO task whose examples know their task."""

from collections.abc import Callable, Mapping, Sequence
import functools
import os
import re
from typing import Any

from mpt_jax.data import candidates, rows, templates
from mpt_jax.data.labels import class_id
from mpt_jax.data.libraries import seqio, tf
from mpt_jax.data.records import RowsFn
from mpt_jax.data.seqio_vocabulary import get_vocabulary
from mpt_jax.data.sources import TfdsSource, make_source
from mpt_jax.data.vocabulary import CHOSEN
from mpt_jax.data.wording import Wording
from mpt_jax.types import InputError

Preprocessor = Callable[..., tf.data.Dataset]

# 'glue/mnli:2.0.0'
_TFDS_NAME = re.compile(r'[\w/.-]+:\d+\.\d+\.\d+')


_INPUTS = 'inputs_pretokenized'


def _add_task_id(dataset: tf.data.Dataset, identity: int) -> tf.data.Dataset:
  masks = CHOSEN.masks and _INPUTS in dataset.element_spec

  def finish(example):
    example = {**example, rows.TASK_ID: tf.constant([identity], tf.int32)}
    if masks:
      example[_INPUTS] = templates.show_marks(example[_INPUTS])
    return example

  return dataset.map(finish, num_parallel_calls=tf.data.AUTOTUNE)


def _new_identity(name: str) -> int:
  """Returns the identity of a task that is not registered yet."""
  rows.check_name(name)
  if name in seqio.TaskRegistry.names():
    raise InputError(
      f'a task named {name!r} is registered already: call this one otherwise'
    )
  identity = rows.task_identity(name)
  for other in seqio.TaskRegistry.names():
    if rows.task_identity(other) == identity:
      raise InputError(
        f'the tasks {name!r} and {other!r} would share the identity '
        f'{identity}: choose another name'
      )
  return identity


def _of_rows(
  source: Any,
  splits: Mapping[str, str] | Sequence[str] | None,
  wording: Wording | None,
  keep: Sequence[str],
  columns: Mapping[str, str],
) -> seqio.DataSource:
  """The data source of files or of a function; see `register_task`."""
  fields = wording.fields if wording is not None else ()
  wanted = [*fields, *(k for k in keep if k not in ('idx', 'id'))]
  words = wording.labels if wording is not None else None
  return make_source(source, splits, wanted, columns, words)


def register_task(
  name: str,
  source: seqio.DataSource
  | str
  | os.PathLike
  | Mapping[str, str | os.PathLike]
  | RowsFn,
  *,
  inputs: str | None = None,
  targets: str | None = None,
  labels: Sequence[str] | None = None,
  masked: str | None = None,
  fillers: Mapping[str, str | Sequence[str]] | None = None,
  columns: Mapping[str, str] | None = None,
  splits: Mapping[str, str] | Sequence[str] | None = None,
  keep: Sequence[str] = ('idx', 'id'),
  preprocessors: Sequence[Preprocessor] = (),
  postprocess_fn: Callable[..., Any] | None = None,
  metric_fns: Sequence[Callable[..., Any]] = (),
) -> seqio.Task:
  """Registers a SeqIO task that works in every run, mixture and engine.

  What happens to an example: source, `preprocessors`, the templates,
  tokenising with the backbone's vocabulary (the texts stay as
  `inputs_pretokenized` and `targets_pretokenized`), an end-of-sequence mark
  that survives cutting, and the task's identity as the feature `task_id`. The
  registration touches neither disk nor network.

  Args:
    name: the task's name, letters, digits and underscores.
    source: where examples come from: a TFDS name with its version
      (`glue/mnli:2.0.0`); a .jsonl, .tsv or .csv file, also in .gz, a
      .parquet or an .arrow file, as a path with `{split}` in it, {split:
      path}, or one path (the split `train`); a
      Python function from the name of a split to rows (dicts); or a SeqIO
      data source.
    inputs: template of the model's input, as in 'nli premise: {premise}
      hypothesis: {hypothesis}'. None if `preprocessors` make `inputs` and
      `targets` themselves.
    targets: template of the answer; default '{label}' where there are label
      words.
    labels: label words in the order of the class ids. The column `label`
      holds the ids, or the words as text: one of the two in all splits. A
      negative id, an empty cell or no such column hides the label: such an
      example is answered, but neither trained on nor scored. '{label}' is
      the word, and postprocessing gives the id, -1 for any other output.
    masked: template of the input of an encoder (RoBERTa), which answers by
      filling a mask, as in '{mask} {premise}{sep}{hypothesis}'; `{sep}` stands
      between the texts of a pair. None: only text-to-text models can have the
      task.
    fillers: label word -> the word that fills the mask for it, as in
      {'positive': ' great', 'negative': ' terrible'}, or several in a list.
      Each must be one token; most begin with a blank.
    columns: name in the templates -> column of the data, where they differ.
    splits: our split -> split of the data, which may be cut
      (`{'train': 'train[1000:]', 'validation': 'train[:1000]'}`); or the
      names alone. None is every split that the source names.
    keep: columns that stay with an example for its evaluation.
    preprocessors: functions from tf.data.Dataset to tf.data.Dataset, which
      run before the templates.
    postprocess_fn: makes of a text what the metrics compare; called as
      `postprocess_fn(text, example=..., is_target=...)`.
    metric_fns: functions of (targets, predictions) that return a dict of
      numbers. Without any, evaluation skips the task.

  Returns:
    The registered task.

  Raises:
    InputError: if the name is no name or is taken, if another task has the
      same identity, if a label word is empty or occurs twice, or if a
      template or the source is not understood.
  """
  identity = _new_identity(name)
  steps = list(preprocessors)
  wording: Wording | None = None
  if inputs is not None:
    try:
      wording = Wording.create(inputs, targets, labels, masked, fillers)
      classes = None if postprocess_fn else wording.classes()
    except InputError as e:
      raise InputError(f'task {name!r}: {e}') from e
    if classes is not None:
      postprocess_fn = functools.partial(class_id, labels=classes)
    postprocess_fn = candidates.postprocess(postprocess_fn, wording, name)
  elif columns or any(
    given is not None for given in (targets, labels, masked, fillers)
  ):
    raise InputError(
      f'task {name!r}: targets, labels, columns, masked and fillers go with an'
      ' inputs template'
    )
  # Files hold columns under their own names, which the source maps.
  renamed = dict(columns or {})
  if not isinstance(source, seqio.DataSource):
    if isinstance(source, str) and _TFDS_NAME.fullmatch(source):
      source = TfdsSource(source, splits)
    else:
      source = _of_rows(source, splits, wording, keep, renamed)
      renamed = {}
  if wording is not None:
    steps.append(
      functools.partial(
        templates.text_to_text,
        inputs=wording.inputs,
        targets=wording.targets,
        labels=wording.labels,
        columns=renamed,
        keep=keep,
        masked=wording.masked,
      )
    )
  vocabulary = get_vocabulary()
  task = seqio.TaskRegistry.add(
    name,
    source=source,
    preprocessors=[
      *steps,
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
  if wording is not None:
    templates.keep_wording(task, wording)
  return task
