"""Label words: what a column of labels holds, and what a model can say.

A column holds class ids or label words. Which of the two is one decision per
task: where words look like ids (the words '1' and '2' of the classes 0 and
1), a cell alone does not tell.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import logging
import math
import re
from typing import Any

import numpy as np

from mpt_jax.types import InputError, nearest

log = logging.getLogger(__name__)

# The class id of a label that is hidden or missing.
HIDDEN = -1
# What stands for an output that is no valid answer.
INVALID = -1
# What T5 writes where a label is hidden.
NO_LABEL = '<unk>'

# A number is a class id, a text is a label word or an id, None is hidden.
Cell = int | str | None
# What a column holds -> where it was seen first.
Seen = Mapping[Cell, str]

_NUMBER = re.compile(r'(-?\d{1,18})(\.0+)?')


def check_words(words: Any) -> tuple[str, ...]:
  """Checks label words as they are given.

  Args:
    words: in the order of the class ids.

  Returns:
    The words.

  Raises:
    InputError: if they are no list of texts, or if one is empty or stands
      for two classes.
  """
  if isinstance(words, str) or not isinstance(words, Iterable):
    raise InputError(
      f'labels={words!r} is no list of words: give the word of each class in'
      " the order of the ids, as in ('no', 'yes')"
    )
  words = tuple(words)
  if not words:
    raise InputError('labels are empty: give the word of each class, or None')
  for number, word in enumerate(words):
    if not isinstance(word, str) or not word:
      raise InputError(
        f'label word {word!r} of class {number} is no text that a model can'
        f' say{f"; write it as {str(word)!r}" if word != "" else ""}'
      )
    if word in words[:number]:
      raise InputError(
        f'label word {word!r} stands for the classes {words.index(word)} and'
        f' {number}, which could not be told apart: give each its own'
      )
  return words


def _as_id(cell: int | str, count: int) -> int | None:
  """The class id that a cell can be read as; any negative one is hidden."""
  if isinstance(cell, str):
    match = _NUMBER.fullmatch(cell)
    if not match:
      return None
    cell = int(match[1])
  return max(cell, HIDDEN) if cell < count else None


@dataclasses.dataclass(frozen=True)
class Column:
  """Reads the label cells of a task's data.

  Attributes:
    words: the label words in the order of the class ids.
  """

  words: tuple[str, ...]

  def __post_init__(self):
    check_words(self.words)

  @property
  def _clash(self) -> bool:
    """Whether a word looks like the id of another class."""
    ids = [_as_id(word, len(self.words)) for word in self.words]
    return any(i is not None and i != n for n, i in enumerate(ids))

  def cell(self, value: Any, where: str) -> Cell:
    """Returns what a cell holds.

    Args:
      value: from a file or a function; None, NaN and '' are hidden labels.
      where: 'file:line', for the message.

    Raises:
      InputError: if it is neither a number nor a text.
    """
    if isinstance(value, np.generic):
      value = value.item()
    if isinstance(value, bool):
      # A truth value is no id: with ('yes', 'no') it would be the other one.
      for word in self.words:
        if word.lower() == str(value).lower():
          return word
    elif isinstance(value, str):
      return value or None
    elif value is None or (isinstance(value, float) and math.isnan(value)):
      return None
    elif isinstance(value, int):
      return value
    elif isinstance(value, float) and value.is_integer():
      return int(value)
    raise self._outside(value, where)

  def _outside(self, value: Any, where: str) -> InputError:
    hint = nearest(str(value), self.words) if isinstance(value, str) else ''
    last = len(self.words) - 1
    if not isinstance(value, str) and str(value) in self.words:
      hint = (
        f': a number is a class id, 0 to {last}; write the label word as'
        f' text, "{value}"'
      )
    elif isinstance(value, bool):
      hint = f': write the word, or the class id, 0 to {last}'
    return InputError(
      f'{where}: label {value!r} is outside the label words'
      f' {list(self.words)}{hint}'
    )

  def ids(
    self, cells: Sequence[Cell], seen: Seen, others: Iterable[Seen]
  ) -> list[int]:
    """Returns the class ids of a split's cells.

    Args:
      cells: of the split, from `cell`.
      seen: the different ones, and where.
      others: the same of the task's other splits; looked at only where it
        matters.

    Returns:
      One id for each cell, -1 where hidden.

    Raises:
      InputError: if a cell is neither an id nor a word; if the column holds
        both and one could be taken for the other.
    """
    as_words = True
    if self._clash:
      as_words = self._holds_words(seen, others)
    else:
      self._warn_of_both(seen)
    known: dict[Cell, int] = {None: HIDDEN}
    for cell, where in seen.items():
      if cell is None:
        continue
      number = _as_id(cell, len(self.words))
      if as_words and cell in self.words:
        number = self.words.index(str(cell))
      if number is None:
        raise self._outside(cell, where)
      known[cell] = number
    return [known[cell] for cell in cells]

  def _one_meaning(self, seen: Seen) -> tuple[Cell, Cell]:
    """The first cells that can be an id only and a word only, or None."""
    only: tuple[list[Cell], list[Cell]] = ([], [])
    for cell in seen:
      number = None if cell is None else _as_id(cell, len(self.words))
      if cell in self.words:
        if number is None:
          only[1].append(cell)
      elif number is not None and number != HIDDEN:
        only[0].append(cell)
    return next(iter(only[0]), None), next(iter(only[1]), None)

  def _warn_of_both(self, seen: Seen) -> None:
    number, word = self._one_meaning(seen)
    if number is not None and word is not None:
      log.warning(
        '%s: the label column holds class ids too (%r); at %s it is a label'
        ' word (%r): each is read as what it is',
        seen[number],
        number,
        seen[word],
        word,
      )

  def _holds_words(self, seen: Seen, others: Iterable[Seen]) -> bool:
    """Decides what a task's column holds where words look like ids."""
    self._check_numbers(seen)
    found: dict[str, tuple[Cell, str]] = {}
    for split in (seen, *others):
      for kind, cell in zip(
        ('id', 'word'), self._one_meaning(split), strict=True
      ):
        if cell is not None:
          found.setdefault(kind, (cell, split[cell]))
    if len(found) == 2:
      (number, here), (word, there) = found['id'], found['word']
      raise InputError(
        f'{here}: label {number!r} is a class id and no label word of'
        f' {list(self.words)}, but label {word!r} ({there}) is a word and no'
        f' class id (0 to {len(self.words) - 1}): write one of the two in all'
        ' splits'
      )
    as_words = 'id' not in found
    log.info(
      'the label column holds %s (as at %s), so %s',
      'label words, not class ids' if as_words else 'class ids',
      next(iter(seen.values()), 'no row'),
      ', '.join(f'class {i} is {w!r}' for i, w in enumerate(self.words)),
    )
    return as_words

  def _check_numbers(self, seen: Seen) -> None:
    """Refuses numbers beside texts, and hidden ids that look like a word."""
    numbers = [c for c in seen if isinstance(c, int)]
    texts = [c for c in seen if isinstance(c, str)]
    if numbers and texts:
      raise InputError(
        f'{seen[texts[0]]}: label {texts[0]!r} is a text, but label'
        f' {numbers[0]!r} ({seen[numbers[0]]}) a number: of the label words'
        f' {list(self.words)} some look like class ids, so the column must'
        ' hold one kind'
      )
    for number in numbers:
      if number < 0 and str(number) in self.words:
        raise self._outside(number, seen[number])


def check_writable(
  answers: Mapping[str, str], vocabulary: Any, limit: int, name: str
) -> None:
  """Checks that a model can say every answer of a task.

  Args:
    answers: label word -> the whole target text with it.
    vocabulary: of the targets, see `providers.Vocabulary`.
    limit: T, the target length, end mark included.
    name: the task, for the message.

  Raises:
    InputError: if a text does not come back from the vocabulary as itself or
      is too long; names the word and its pieces.
  """
  for word, text in answers.items():
    tokens = [int(token) for token in vocabulary.encode(text)]
    pieces = [vocabulary.decode([token]) for token in tokens]
    said = vocabulary.decode(tokens)
    label = f'task {name!r}: label word {word!r}'
    if text != word:
      label += f' (written {text!r})'
    if vocabulary.unk_id in tokens:
      raise InputError(
        f'{label} cannot be written by the vocabulary: of its pieces {pieces}'
        ' one is unknown, so no answer could be right; choose another word'
      )
    if said != text:
      raise InputError(
        f'{label} comes back from the vocabulary as {said!r} (pieces'
        f' {pieces}), so no answer could be right; choose another word'
      )
    if len(tokens) + 1 > limit:
      raise InputError(
        f'{label} has {len(tokens) + 1} tokens with its end mark (pieces'
        f" {pieces}), but TASK_FEATURE_LENGTHS['targets'] is {limit}: raise"
        f' it to {len(tokens) + 1}'
      )


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
