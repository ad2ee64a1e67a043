"""Fills the templates of `checkpoints.texts` with tensors, in tf.data."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any
import weakref

from mpt_jax.checkpoints import texts
from mpt_jax.checkpoints.texts import LABEL, has, lookup
from mpt_jax.data.labels import NO_LABEL
from mpt_jax.data.libraries import tf
from mpt_jax.data.vocabulary import CHOSEN
from mpt_jax.data.wording import Wording
from mpt_jax.types import InputError

# How the complaint about a class id without a word begins.
OUTSIDE = 'a label is outside the label words'


class Template(texts.Template):
  """A template whose features are tensors."""

  def fill(self, values: Mapping[str, Any]) -> tf.Tensor:
    """Returns the text of one example as a scalar string tensor."""
    return tf.strings.join(self.pieces(values, _string))

  def fill_cleaned(self, values: Mapping[str, Any]) -> tf.Tensor:
    """As `fill`, but of a feature nothing is taken for a template's mark."""
    return tf.strings.join(
      self.pieces(
        values,
        lambda value: tf.strings.regex_replace(
          _string(value), texts.FOREIGN.pattern, texts.REPLACEMENT
        ),
      )
    )


def show_marks(text: tf.Tensor) -> tf.Tensor:
  """Returns a text as `texts.shown` does."""
  for mark in texts.MARKS:
    text = tf.strings.regex_replace(text, mark, texts.shown(mark))
  return text


def _string(value: tf.Tensor) -> tf.Tensor:
  return value if value.dtype == tf.string else tf.strings.as_string(value)


# On the task, not its name: a name may be registered anew.
_WORDINGS: weakref.WeakKeyDictionary[Any, Wording] = weakref.WeakKeyDictionary()


def keep_wording(task: Any, wording: Wording) -> None:
  """Remembers how the examples of a registered SeqIO task are written."""
  _WORDINGS[task] = wording


def wording_of(task: Any) -> Wording | None:
  """Returns how a SeqIO task's examples are written; None if not known."""
  return _WORDINGS.get(task)


def _word(label: tf.Tensor, words: Sequence[str]) -> tf.Tensor:
  """Returns the label word of a class id, or of itself.

  The type of the feature decides. A negative id and an empty text are hidden:
  `<unk>`.
  """
  if label.dtype == tf.string:
    known = tf.reduce_any(tf.equal(label, tf.constant(['', *words])))
    label = tf.where(tf.equal(label, ''), NO_LABEL, label)
    check = tf.debugging.assert_equal(known, True, f'{OUTSIDE} {list(words)}')
    with tf.control_dependencies([check]):
      return tf.identity(label)
  if not label.dtype.is_integer:
    raise InputError(
      f'the feature {LABEL!r} holds {label.dtype.name}, expected class ids or'
      f' the label words {list(words)}'
    )
  check = tf.debugging.assert_less(
    label,
    tf.cast(len(words), label.dtype),
    f'{OUTSIDE} {list(words)}',
  )
  with tf.control_dependencies([check]):
    return tf.constant([NO_LABEL, *words])[tf.maximum(label, -1) + 1]


def text_to_text(
  dataset: tf.data.Dataset,
  inputs: str,
  targets: str,
  labels: Sequence[str] | None = None,
  columns: Mapping[str, str] | None = None,
  keep: Sequence[str] = ('idx', 'id'),
  masked: str | None = None,
) -> tf.data.Dataset:
  """Writes the `inputs` and `targets` of every example.

  Args:
    dataset: examples of scalar or nested features.
    inputs: template of what the model reads.
    targets: template of what it shall answer.
    labels: words in the order of the class ids: the feature `label` holds
      ids (negative where hidden, which makes `<unk>`) or, as text, the words,
      and stands for its word.
    columns: name in the templates -> name in the data, where they differ.
    keep: features that evaluation or a reader needs, kept under these names
      where the data have them.
    masked: template of what an encoder reads in place of `inputs`; it counts
      if the vocabulary chosen by now is one's.

  Returns:
    Examples with `inputs`, `targets`, and what is kept.

  Raises:
    InputError: if a template is broken, or names a feature that the data
      lack.
  """
  source, target = Template(inputs), Template(targets)
  write_inputs = source.fill
  if masked is not None and CHOSEN.masks:
    marked = Template(texts.masked_template(masked).text)
    write_inputs = marked.fill_cleaned
  renamed = dict(columns or {})

  # AutoGraph would wrap our errors, and there is nothing for it to convert.
  @tf.autograph.experimental.do_not_convert
  def write(example):
    fields = dict(example)
    for name, column in renamed.items():
      fields[name] = lookup(example, column)
    kept = {name: lookup(fields, name) for name in keep if has(fields, name)}
    if labels is not None:
      fields[LABEL] = _word(lookup(fields, LABEL), labels)
    return {
      'inputs': write_inputs(fields),
      'targets': target.fill(fields),
      **kept,
    }

  return dataset.map(write, num_parallel_calls=tf.data.AUTOTUNE)


@dataclasses.dataclass(frozen=True)
class Chain:
  """Several steps as one, of which `register.task_texts` finds each.

  Attributes:
    steps: functions from tf.data.Dataset to tf.data.Dataset.
  """

  steps: tuple[Callable[[tf.data.Dataset], tf.data.Dataset], ...]

  def __call__(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Runs one after the other."""
    for step in self.steps:
      dataset = step(dataset)
    return dataset
