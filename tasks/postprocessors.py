"""Texts to what the metrics compare; called for targets and for outputs.

The ids of label words come from `mpt_jax.data.labels.class_id`.
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any

from mpt_jax.data.labels import INVALID, class_id

Example = Mapping[str, Any] | None


def number(
  text: str, example: Example = None, is_target: bool = False
) -> float:
  """Returns a text's number; -1.0 if it is none, or not finite.

  Args:
    text: a target or an output.
    example: not used.
    is_target: not used.
  """
  del example, is_target
  try:
    value = float(text)
  except ValueError:
    return float(INVALID)
  return value if math.isfinite(value) else float(INVALID)


def _text(value: Any) -> str:
  return value.decode() if isinstance(value, bytes) else str(value)


def answers(
  text: str, example: Example = None, is_target: bool = False
) -> str | list[str]:
  """Returns an output as it is; for a target, all accepted answers.

  Args:
    text: a target or an output.
    example: has `answers`.
    is_target: which of the two.
  """
  if not is_target or example is None:
    return text
  return [_text(answer) for answer in example['answers']]


def grouped_answers(
  text: str, example: Example = None, is_target: bool = False
) -> dict[str, Any]:
  """Like `answers`, with the ReCoRD query that the example repeats.

  Args:
    text: a target or an output.
    example: has `answers`, `idx/passage` and `idx/query`.
    is_target: which of the two.

  Returns:
    `value`: an output, or a target's answers; for a target also `group`.
  """
  value = answers(text, example, is_target)
  if not is_target or example is None:
    return {'value': value}
  group = int(example['idx/passage']), int(example['idx/query'])
  return {'value': value, 'group': group}


def grouped_class_id(
  text: str,
  labels: Sequence[str],
  example: Example = None,
  is_target: bool = False,
) -> dict[str, Any]:
  """Returns the id of a label word with the question it belongs to.

  Args:
    text: a target or an output.
    labels: the words in the order of their ids.
    example: has `idx/question`.
    is_target: which of the two.

  Returns:
    `value`: the id; for a target also `group`.
  """
  value = class_id(text, labels)
  if not is_target or example is None:
    return {'value': value}
  return {'value': value, 'group': int(example['idx/question'])}


def references(
  text: str, example: Example = None, is_target: bool = False
) -> dict[str, Any]:
  """Returns an output, or a target's references and what they verbalise.

  Args:
    text: a target or an output.
    example: has `inputs_pretokenized`; `references`, where the data list
      them.
    is_target: which of the two.

  Returns:
    `value`: an output, or the list of references; for a target also `group`,
    the inputs.
  """
  if not is_target or example is None:
    return {'value': text}
  listed = [_text(reference) for reference in example.get('references', ())]
  inputs = example.get('inputs_pretokenized', example.get('inputs'))
  return {'value': listed or [text], 'group': _text(inputs)}


# What WSC's comparison leaves out of a noun phrase.
_DETERMINERS = frozenset(
  'a an few her his each every many much my our some that the their these this'
  ' those which whose your'.split()
)


def _content_words(text: str) -> list[str]:
  words = text.strip().lower().split(' ')
  return [word for word in words if word not in _DETERMINERS]


def wsc_simple(
  text: str, example: Example = None, is_target: bool = False
) -> int:
  """Returns whether an output names WSC's noun; for a target, the label.

  Case and determiners don't count, and either side may have words more than
  the other ("the fuzzy bunny" is "bunny"), but a genitive is another word
  ("Bob's" is not "Bob").

  Args:
    text: a target or an output.
    example: has `label` and, as `targets_pretokenized`, the noun.
    is_target: which of the two.

  Returns:
    0 or 1; -1 for an output without a content word.
  """
  assert example is not None
  if is_target:
    return int(example['label'])
  said = _content_words(text)
  if not ' '.join(said):
    return INVALID
  noun = _content_words(_text(example['targets_pretokenized']))
  if any("'" in word for word in said) != any("'" in word for word in noun):
    return 0
  # A noun without a content word is no part of anything.
  return int(set(said) <= set(noun) or set(noun or ['']) <= set(said))
