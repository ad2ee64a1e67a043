"""How the text of a task is written: templates, and what fills them.

`'nli premise: {premise} hypothesis: {hypothesis}'` says in one line what the
model reads. `{idx/question}` reaches into a nested feature; `{{` and `}}` are
braces. Nothing is stripped, lower-cased or escaped. The data layer fills the
same templates with tensors (`data/templates.py`).

An encoder that fills a mask has a template of its own: `'{mask} {premise}{sep}
{hypothesis}'`.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import re
import string
from typing import Any

from mpt_jax.data import lines
from mpt_jax.types import InputError, nearest

# The feature whose class id a label word replaces.
LABEL = 'label'

# What a template alone can write, in the texts of an encoder that fills a
# mask: what they begin with, what it fills in, and what stands between two
# texts. These characters are none of any language.
BEGIN, MASK, SEPARATOR = MARKS = '\ufdd0', '\ufdd1', '\ufdd2'
# Their names in braces, and how they are shown.
_BRACES = {'mask': MASK, 'sep': SEPARATOR}
_SHOWN = {BEGIN: '', MASK: '<mask>', SEPARATOR: '</s></s>'}
# All characters that could be taken for a mark, and what stands for them.
FOREIGN, REPLACEMENT = re.compile('[\ufdd0-\ufdef]'), '\ufffd'
# Why an encoder cannot have a task.
NO_MASK = "masked='{mask} {text}' and fillers={'yes': ' yes', 'no': ' no'}"
_SILENT = (
  'the task does not say how an encoder reads it: register it with'
  f' {NO_MASK} and train anew'
)


class Marked(str):
  """A text that `TaskText.fill` has written for an encoder, with its marks."""


def clean(text: str) -> str:
  """Returns a text of the data's without what only a template may write."""
  return FOREIGN.sub(REPLACEMENT, text)


def shown(text: str) -> str:
  """Returns a text with its marks as a reader knows them.

  Examples:
    >>> shown('\ufdd0\ufdd1 a film\ufdd2a movie')
    '<mask> a film</s></s>a movie'
  """
  for mark, known in _SHOWN.items():
    text = text.replace(mark, known)
  return text


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

  def pieces(
    self, values: Mapping[str, Any], text: Callable[[Any], Any]
  ) -> list[Any]:
    """Returns the literal texts and, between them, `text` of each value.

    Raises:
      InputError: if a value is missing; names those there are.
    """
    found: list[Any] = []
    for literal, name in self.parts:
      found.append(literal)
      if name is not None:
        found.append(text(lookup(values, name)))
    return found


def masked_template(text: str) -> Template:
  """Returns a template of an encoder's inputs, with marks in it.

  Args:
    text: as the user writes it: `{mask}` is what is filled in, `{sep}` stands
      between two texts.

  Raises:
    InputError: if it is broken, holds two masks, or the answer itself.
  """
  written = ''
  for literal, name in Template(text).parts:
    written += literal.replace('{', '{{').replace('}', '}}')
    if name is not None:
      written += _BRACES.get(name, f'{{{name}}}')
  found = Template(BEGIN + written)
  if FOREIGN.search(text):
    raise InputError(
      f'masked={text!r} holds a character that is none; write {{mask}} and'
      ' {sep}'
    )
  if written.count(MASK) > 1:
    raise InputError(
      f'masked={text!r} holds {{mask}} twice, but one word is filled in'
    )
  if LABEL in found.fields:
    raise InputError(
      f'masked={text!r} holds {{{LABEL}}}, which would tell the answer'
    )
  return found


def check_fillers(
  labels: Sequence[str] | None, fillers: Any
) -> dict[str, tuple[str, ...]]:
  """Checks the words that can fill the mask of a task.

  Args:
    labels: label words in the order of the class ids.
    fillers: label word -> the word that stands for it, or several.

  Returns:
    Label word -> its fillers, in the order of the class ids.

  Raises:
    InputError: if they are not the words of these labels, or one stands for
      two classes.
  """
  if labels is None:
    raise InputError(
      f'fillers={fillers!r} go with label words: an encoder answers with a'
      ' class'
    )
  if not isinstance(fillers, Mapping):
    raise InputError(
      f'fillers={fillers!r} are no words by label word, as in'
      f" {{{labels[0]!r}: ' {labels[0]}'}}"
    )
  for label in fillers:
    if label not in labels:
      raise InputError(
        f'fillers hold {label!r}, which is none of the label words'
        f' {list(labels)}{nearest(str(label), list(labels))}'
      )
  found: dict[str, tuple[str, ...]] = {}
  seen: dict[str, str] = {}
  for label in labels:
    if label not in fillers:
      raise InputError(
        f'fillers lack the label word {label!r}: give the word that fills the'
        ' mask for it'
      )
    given = fillers[label]
    words = (given,) if isinstance(given, str) else given
    if not isinstance(words, list | tuple) or not words:
      raise InputError(
        f'the filler of {label!r} is {given!r}, expected a word or a list of'
        " words, as in ' great'"
      )
    for word in words:
      if not isinstance(word, str) or not word:
        raise InputError(
          f"a filler of {label!r} is {word!r}, expected a word, as in ' great'"
        )
      if word in seen:
        raise InputError(
          f'the filler {word!r} stands for {seen[word]!r} and {label!r}, which'
          ' could not be told apart: give each its own'
          if seen[word] != label
          else f'the filler {word!r} of {label!r} is given twice'
        )
      seen[word] = label
    found[label] = tuple(words)
  return found


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


def has(values: Mapping[str, Any], name: str) -> bool:
  """Whether `find` finds a value."""
  try:
    find(values, name)
  except KeyError:
    return False
  return True


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


@dataclasses.dataclass(frozen=True)
class TaskText:
  """How the text of one task is written, as far as templates say it.

  Attributes:
    inputs: template of the model's input; None if the task's own code makes
      it of the data, so that columns cannot fill it.
    targets: template of the answer; None likewise.
    labels: label words in the order of the class ids; None if the answer is
      no class.
    columns: name in the templates -> column of the task's data, where they
      differ.
    masked: template of an encoder's input (`masked_template`); None if the
      task does not say it, or its own code makes it of the data.
    fillers: label word -> the words that fill the mask for it; None if the
      task does not say it. Written into files only where it does.

  Raises:
    ValueError: if a part is of another kind.
  """

  inputs: str | None = None
  targets: str | None = None
  labels: tuple[str, ...] | None = None
  columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
  masked: str | None = None
  fillers: Mapping[str, tuple[str, ...]] | None = None

  def __post_init__(self):
    for name in ('inputs', 'targets', 'masked'):
      value = getattr(self, name)
      if value is not None:
        _check_text(name, value)
        (masked_template if name == 'masked' else Template)(value)
    if self.labels is not None:
      if not isinstance(self.labels, list | tuple) or not self.labels:
        raise ValueError(f'labels is {self.labels!r}, expected a list of words')
      for word in self.labels:
        _check_text('labels', word)
      if len(set(self.labels)) < len(self.labels):
        raise ValueError(f'labels has a word twice: {list(self.labels)}')
      object.__setattr__(self, 'labels', tuple(self.labels))
    if not isinstance(self.columns, Mapping):
      raise ValueError(f'columns is {self.columns!r}, expected names by name')
    for name, column in self.columns.items():
      _check_text('columns', name)
      _check_text('columns', column)
    if self.fillers is not None:
      fillers = check_fillers(self.labels, self.fillers)
      for word in (w for words in fillers.values() for w in words):
        _check_text('fillers', word)
      object.__setattr__(self, 'fillers', fillers)
    elif self.masked is not None:
      raise ValueError(f'masked is {self.masked!r}, but there are no fillers')

  def as_json(self) -> dict[str, Any]:
    """Returns what `parse` reads, fit for JSON."""
    value = dataclasses.asdict(self)
    for name in _FOR_ENCODERS:
      if value[name] is None:
        del value[name]
    return value

  @classmethod
  def parse(cls, value: Any) -> 'TaskText':
    """Reads what `as_json` made.

    Raises:
      ValueError: if a key is missing or unknown, or a part is wrong.
    """
    known = [field.name for field in dataclasses.fields(cls)]
    if not isinstance(value, Mapping) or not (
      set(known) - set(_FOR_ENCODERS) <= set(value) <= set(known)
    ):
      keys = sorted(value) if isinstance(value, Mapping) else value
      raise ValueError(f'it is {keys!r}, expected {", ".join(known)}')
    return cls(**value)

  @property
  def fields(self) -> tuple[str, ...]:
    """The names that an input is made of; none if code makes it."""
    if self.inputs is None:
      return ()
    return tuple(dict.fromkeys(Template(self.inputs).fields))

  @property
  def masked_fields(self) -> tuple[str, ...]:
    """The names that an encoder's input is made of; none if nobody says."""
    if self.masked is None:
      return ()
    return tuple(dict.fromkeys(masked_template(self.masked).fields))

  @property
  def masked_field(self) -> str:
    """The one name that an encoder's input is made of.

    Raises:
      InputError: if there are several, or the task says nothing of encoders.
    """
    if self.masked is None:
      raise InputError(_SILENT)
    fields = self.masked_fields
    if len(fields) != 1:
      raise InputError(
        f'the text is written of {", ".join(fields)}: give a dict of these'
      )
    return fields[0]

  def has_any(self, row: Mapping[str, Any]) -> bool:
    """Whether a row has any of the fields, by the one name or the other."""
    fields = self.fields
    if self.masked is not None:
      fields += masked_template(self.masked).fields
    return any(
      has(row, name) or has(row, self.columns.get(name, name))
      for name in fields
    )

  def fill(self, row: Mapping[str, Any], masks: bool = False) -> str:
    """Writes the model's input.

    Args:
      row: texts and numbers by the columns of the task's data or, if it lacks
        one of these, by the names in the template.
      masks: whether the model is an encoder that fills a mask; its text has
        marks in it (`shown` is how it reads).

    Raises:
      InputError: names the field that is missing, and those there are.
    """
    if self.inputs is None:
      raise InputError(
        'the code of the task writes its text, which fields alone cannot;'
        ' give the text itself'
      )
    if masks and self.masked is None:
      raise InputError(_SILENT)
    template = Template(self.inputs)
    if masks and self.masked is not None:
      template = masked_template(self.masked)
    names = {name: self.columns.get(name, name) for name in template.fields}
    if not all(has(row, column) for column in names.values()):
      if any(not has(row, name) for name in names):
        raise InputError(_lacking(row, names))
      names = {name: name for name in names}
    values = {}
    for name, key in names.items():
      text = lines.cell_text(find(row, key), f'column {key!r}')
      if not isinstance(text, str):
        raise InputError(f'column {key!r} holds a list, expected one text')
      values[name] = clean(text) if masks else text
    written = template.write(values)
    return Marked(written) if masks else written

  def answers(self) -> dict[str, str]:
    """Returns the text of the answer by label word.

    Raises:
      InputError: if the task has no label words, or its answers hold more.
    """
    if self.labels is None:
      raise InputError('no label words to rank')
    if self.targets is None or set(Template(self.targets).fields) != {LABEL}:
      raise InputError(
        f'label words cannot be ranked where an answer is {self.targets!r}'
      )
    target = Template(self.targets)
    return {word: target.write({LABEL: word}) for word in self.labels}


# Left out of a bundle where a task does not say them.
_FOR_ENCODERS = ('masked', 'fillers')


def _check_text(name: str, value: Any) -> None:
  if not isinstance(value, str):
    raise ValueError(f'{name} is {value!r}, expected text')
  try:
    value.encode()
  except UnicodeEncodeError as e:
    raise ValueError(f'{name} is {value!r}: {e.reason}') from e


def _lacking(row: Mapping[str, Any], names: Mapping[str, str]) -> str:
  """What a row lacks, in the words that are nearer to what it has."""
  known: Sequence[str] = sorted(map(str, row))
  missing = next(name for name, column in names.items() if not has(row, column))
  if any(has(row, name) for name in names):
    missing = next(name for name in names if not has(row, name))
  return (
    f'no {missing!r}; there is {known}, and the text is written of'
    f' {", ".join(names)}{nearest(missing, known)}'
  )
