"""Template strings: the text of an example, from the names of its features.

`'nli premise: {premise} hypothesis: {hypothesis}'` says in one line what the
model reads. `{idx/question}` reaches into a nested feature; `{{` and `}}` are
braces. Nothing is stripped, lower-cased or escaped.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import string
from typing import Any
import weakref

import tensorflow as tf

from mpt_jax.data.labels import NO_LABEL, check_words
from mpt_jax.types import InputError, nearest

# The feature whose class id a label word replaces.
LABEL = 'label'
# How the complaint about a class id without a word begins.
OUTSIDE = 'a label is outside the label words'
# What stands for an output that is no valid answer.
INVALID = -1


@dataclasses.dataclass(frozen=True)
class Template:
  """A text with the names of features in braces.

  Attributes:
    text: the template string.
    parts: literal text and the name of the feature that follows it, in turn.
  """

  text: str
  parts: tuple[tuple[str, str | None], ...] = dataclasses.field(
    init=False, repr=False
  )

  def __post_init__(self):
    try:
      parsed = list(string.Formatter().parse(self.text))
    except ValueError as e:
      raise InputError(f'the template {self.text!r} is broken: {e}') from e
    for _, name, spec, conversion in parsed:
      if name == '' or spec or conversion:
        raise InputError(
          f'the template {self.text!r} may hold plain names in braces only,'
          ' as in {premise}'
        )
    object.__setattr__(self, 'parts', tuple((p[0], p[1]) for p in parsed))

  @property
  def fields(self) -> tuple[str, ...]:
    """The features that the text needs, in order."""
    return tuple(name for _, name in self.parts if name is not None)

  def write(self, values: Mapping[str, str]) -> str:
    """Returns the text with these values; '' for a field without one."""
    return ''.join(
      literal + ('' if name is None else values.get(name, ''))
      for literal, name in self.parts
    )

  def fill(self, example: Mapping[str, Any]) -> tf.Tensor:
    """Returns the text of one example as a scalar string tensor."""
    pieces: list[Any] = []
    for literal, name in self.parts:
      pieces.append(literal)
      if name is not None:
        value = lookup(example, name)
        if value.dtype != tf.string:
          value = tf.strings.as_string(value)
        pieces.append(value)
    return tf.strings.join(pieces)


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


def find(values: Mapping[str, Any], name: str) -> Any:
  """Returns a value, which may be nested.

  Args:
    values: by name.
    name: 'label', or 'idx/question' for values['idx']['question'].

  Raises:
    KeyError: if there is none.
  """
  if name in values:
    return values[name]
  value: Any = values
  for part in name.split('/'):
    if not isinstance(value, Mapping) or part not in value:
      raise KeyError(name)
    value = value[part]
  return value


def lookup(example: Mapping[str, Any], name: str) -> Any:
  """Returns a feature as `find` does.

  Raises:
    InputError: if there is none; names those there are.
  """
  try:
    return find(example, name)
  except KeyError:
    raise InputError(
      f'no feature {name!r} in the data; there is {sorted(example)}'
      f'{nearest(name, sorted(example))}'
    ) from None


def _has(example: Mapping[str, Any], name: str) -> bool:
  try:
    find(example, name)
  except KeyError:
    return False
  return True


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
    kept = {name: lookup(fields, name) for name in keep if _has(fields, name)}
    if labels is not None:
      fields[LABEL] = _word(lookup(fields, LABEL), labels)
    return {
      'inputs': source.fill(fields),
      'targets': target.fill(fields),
      **kept,
    }

  return dataset.map(write, num_parallel_calls=tf.data.AUTOTUNE)


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
