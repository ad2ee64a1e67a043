"""One call that registers a SeqIO task whose examples know their task."""

from collections.abc import Callable, Mapping, Sequence
import functools
import os
import re
from typing import Any

from mpt_jax.checkpoints.texts import LABEL, TaskText
from mpt_jax.data import records, rows, templates
from mpt_jax.data.libraries import seqio, tf
from mpt_jax.data.sources import TfdsSource
from mpt_jax.data.vocabulary import get_vocabulary
from mpt_jax.types import InputError

Preprocessor = Callable[..., tf.data.Dataset]

# 'glue/mnli:2.0.0'
_TFDS_NAME = re.compile(r'[\w/.-]+:\d+\.\d+\.\d+')


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
  source: seqio.DataSource
  | str
  | os.PathLike
  | Mapping[str, str | os.PathLike]
  | records.RowsFn,
  *,
  inputs: str | None = None,
  targets: str | None = None,
  labels: Sequence[str] | None = None,
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
      (`glue/mnli:2.0.0`); a .jsonl, .tsv or .csv file, as a path with
      `{split}` in it, {split: path}, or one path (the split `train`); a
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
  if not re.fullmatch(r'\w+', name, re.ASCII):
    raise InputError(
      f'{name!r} is no task name: letters, digits and underscores only'
    )
  if name in seqio.TaskRegistry.names():
    raise InputError(f'a task named {name!r} is registered already')
  identity = rows.task_identity(name)
  for other in seqio.TaskRegistry.names():
    if rows.task_identity(other) == identity:
      raise InputError(
        f'the tasks {name!r} and {other!r} would share the identity '
        f'{identity}: choose another name'
      )
  steps = list(preprocessors)
  fields: tuple[str, ...] = ()
  wording: templates.Wording | None = None
  if inputs is not None:
    if targets is None and labels is None:
      raise InputError(f'task {name!r}: give targets or label words')
    targets = '{label}' if targets is None else targets
    fields = tuple(
      dict.fromkeys(
        templates.Template(inputs).fields + templates.Template(targets).fields
      )
    )
    try:
      wording = templates.Wording(inputs, targets, labels)
    except InputError as e:
      raise InputError(f'task {name!r}: {e}') from e
    labels = wording.labels
    if labels is not None and postprocess_fn is None:
      if not wording.is_label:
        raise InputError(
          f'task {name!r}: the class of {targets!r} is not told by its label'
          " alone: give targets='{label}', or a postprocess_fn"
        )
      postprocess_fn = functools.partial(
        templates.class_id, labels=tuple(wording.answers.values())
      )
  elif targets is not None or labels is not None or columns:
    raise InputError(
      f'task {name!r}: targets, labels and columns go with an inputs template'
    )
  # Files hold columns under their own names, which the source maps.
  renamed = dict(columns or {})
  if not isinstance(source, seqio.DataSource):
    if isinstance(source, str) and _TFDS_NAME.fullmatch(source):
      source = TfdsSource(source, splits)
    else:
      wanted = [*fields, *(k for k in keep if k not in ('idx', 'id'))]
      source = records.make_source(source, splits, wanted, renamed, labels)
      renamed = {}
  if inputs is not None:
    assert targets is not None
    steps.append(
      functools.partial(
        templates.text_to_text,
        inputs=inputs,
        targets=targets,
        labels=labels,
        columns=renamed,
        keep=keep,
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


def task_texts(task_names: Sequence[str], split: str) -> dict[str, TaskText]:
  """Returns how the texts of tasks are written.

  Args:
    task_names: the tasks; those not registered, or without data, are left
      out.
    split: a split that is read.

  Returns:
    Task name -> its templates and label words, as far as they alone make the
    text of the data's columns: what other code writes is None.
  """
  found = {}
  for name in task_names:
    if name not in seqio.TaskRegistry.names():
      continue
    text = _text_of(seqio.TaskRegistry.get(name), split)
    if text is not None:
      found[name] = text
  return found


def _text_of(task: seqio.Task, split: str) -> TaskText | None:
  steps: list[Any] = []
  for step in task.preprocessors:
    steps += step.steps if isinstance(step, templates.Chain) else [step]
  written = [
    number
    for number, step in enumerate(steps)
    if isinstance(step, functools.partial)
    and step.func is templates.text_to_text
  ]
  if not written or steps[written[0] + 1] is not seqio.preprocessors.tokenize:
    return TaskText()
  [number] = written
  given = steps[number].keywords
  inputs, targets, labels = (given[k] for k in ('inputs', 'targets', 'labels'))
  columns = dict(given.get('columns') or {})
  if isinstance(task.source, records.RecordsSource):
    columns |= task.source.renamed
  answer = templates.Template(targets).fields
  # A step before the templates makes other features of the columns.
  raw = number == 0 and _fill_alike(task, split, inputs, columns)
  if raw is None:
    return None
  known = raw or (labels is not None and set(answer) <= {LABEL})
  names = {*templates.Template(inputs).fields, *answer}
  return TaskText(
    inputs if raw else None,
    targets if known else None,
    labels if labels is None else tuple(labels),
    {k: v for k, v in columns.items() if raw and k in names and k != v},
  )


def _fill_alike(
  task: seqio.Task, split: str, inputs: str, columns: Mapping[str, str]
) -> bool | None:
  """Whether plain values make the same text as the data's own features.

  TensorFlow writes 3.5 as '3.500000' and True as 'true'. None if there are
  no data that could tell.
  """
  if isinstance(task.source, records.RecordsSource):
    return True  # Its features are text.
  try:
    if split not in task.splits:
      return None
    spec = task.source.get_dataset(split, shuffle=False).element_spec
  except InputError:
    return None
  features = [
    templates.lookup(spec, columns.get(name, name))
    for name in templates.Template(inputs).fields
  ]
  return not any(
    f.dtype.is_bool or f.dtype.is_floating or f.shape.rank for f in features
  )
