"""Fills the templates of `checkpoints.texts` with tensors, in tf.data."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any
import weakref

from mpt_jax.checkpoints import texts
from mpt_jax.checkpoints.texts import LABEL, has, lookup
from mpt_jax.data.labels import NO_LABEL, check_words
from mpt_jax.data.libraries import tf
from mpt_jax.types import InputError

# How the complaint about a class id without a word begins.
OUTSIDE = 'a label is outside the label words'
# What stands for an output that is no valid answer.
INVALID = -1


class Template(texts.Template):
  """A template whose features are tensors."""

  def fill(self, values: Mapping[str, Any]) -> tf.Tensor:
    """Returns the text of one example as a scalar string tensor."""
    return tf.strings.join(self.pieces(values, _string))


def _string(value: tf.Tensor) -> tf.Tensor:
  return value if value.dtype == tf.string else tf.strings.as_string(value)


@dataclasses.dataclass(frozen=True)
class Wording:
  """How the examples of a task are written.

  Attributes:
    inputs: template of the inputs.
    targets: template of the targets.
    labels: label words in the order of the class ids; None if the answer is
      no class.
  """

  inputs: str
  targets: str
  labels: Sequence[str] | None = None

  def __post_init__(self):
    if self.labels is not None:
      object.__setattr__(self, 'labels', check_words(self.labels))
      if LABEL not in Template(self.targets).fields:
        raise InputError(
          f'label words are given, but the targets {self.targets!r} do not'
          f' hold {{{LABEL}}}'
        )

  @property
  def answers(self) -> dict[str, str]:
    """Label word -> the target text that holds it.

    The whole text if the template has no other field, else the word.
    """
    whole = self.is_label
    template = Template(self.targets)
    return {
      word: template.write({LABEL: word}) if whole else word
      for word in self.labels or ()
    }

  @property
  def is_label(self) -> bool:
    """Whether a target is told by its label alone."""
    return set(Template(self.targets).fields) == {LABEL}

  @property
  def hidden(self) -> str:
    """The target text of an example whose label is hidden."""
    return (
      Template(self.targets).write({LABEL: NO_LABEL})
      if self.labels is not None and self.is_label
      else NO_LABEL
    )

  @property
  def blank(self) -> str:
    """The input text of an example whose fields are all empty."""
    return Template(self.inputs).write({})


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

  Returns:
    Examples with `inputs`, `targets`, and what is kept.

  Raises:
    InputError: if a template is broken, or names a feature that the data
      lack.
  """
  source, target = Template(inputs), Template(targets)
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
      'inputs': source.fill(fields),
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


def class_id(
  text: str,
  labels: Sequence[str],
  example: Mapping[str, Any] | None = None,
  is_target: bool = False,
) -> int:
  """Returns the id of a label word; -1 for anything else.

  The text must be the word exactly: "Entailment" and " True" are wrong.

  Args:
    text: a target or an output.
    labels: the words in the order of their ids.
    example: not used.
    is_target: not used.
  """
  del example, is_target
  return labels.index(text) if text in labels else INVALID
