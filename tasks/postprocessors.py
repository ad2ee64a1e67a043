"""Texts to what the metrics compare; called for targets and for outputs."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

# What stands for an output that is no valid answer.
INVALID = -1


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


def number(
  text: str,
  example: Mapping[str, Any] | None = None,
  is_target: bool = False,
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


def _answers(example: Mapping[str, Any]) -> list[str]:
  return [
    answer.decode() if isinstance(answer, bytes) else str(answer)
    for answer in example['answers']
  ]


def answers(
  text: str,
  example: Mapping[str, Any] | None = None,
  is_target: bool = False,
) -> str | list[str]:
  """Returns an output as it is; for a target, all accepted answers.

  Args:
    text: a target or an output.
    example: has `answers`.
    is_target: which of the two.
  """
  return _answers(example) if is_target and example is not None else text


def grouped_answers(
  text: str,
  example: Mapping[str, Any] | None = None,
  is_target: bool = False,
) -> dict[str, Any]:
  """Like `answers`, with the query that the example repeats.

  Args:
    text: a target or an output.
    example: has `answers`, `idx/passage` and `idx/query`.
    is_target: which of the two.

  Returns:
    `value`: an output, or a target's answers; for a target also `group`.
  """
  if not is_target or example is None:
    return {'value': text}
  group = int(example['idx/passage']), int(example['idx/query'])
  return {'value': _answers(example), 'group': group}
