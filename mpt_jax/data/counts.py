"""What of a split is cut, hidden or empty, in numbers.

Neither training nor a score shows that half of the texts were cut, so it is
counted where a split is read, said once, and kept with a run's results.
"""

from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any

from mpt_jax.data import labels
from mpt_jax.data.wording import Wording
from mpt_jax.types import InputError


@dataclasses.dataclass(frozen=True)
class Counts:
  """Numbers of examples of a task's split.

  Attributes:
    examples: all of them.
    unlabelled: those whose label is hidden or missing.
    empty_inputs: those whose inputs hold nothing but their template.
    cut_inputs: those with more input tokens than fit.
    cut_targets: those with more target tokens than fit.
    longest_input: the most input tokens, end mark included, before any cut.
    longest_target: likewise.
    absent: label words that no example has.
    digest: of the examples, where it was asked for.
  """

  examples: int
  unlabelled: int
  empty_inputs: int
  cut_inputs: int
  cut_targets: int
  longest_input: int
  longest_target: int
  absent: tuple[str, ...] = ()
  digest: str = ''

  @property
  def labelled(self) -> int:
    """How many examples can be trained on and scored."""
    return self.examples - self.unlabelled

  def as_json(self) -> dict[str, int]:
    """Returns the numbers by name."""
    values = dataclasses.asdict(self)
    del values['absent'], values['digest']
    return values


class Watch:
  """Looks at a task's examples as they are read, and keeps their lengths.

  Attributes:
    inputs: input tokens of each example, end mark included, before any cut.
    targets: likewise.
    labelled: positions of examples that have a label.
    blank: positions of examples with empty inputs.
  """

  def __init__(self, wording: Wording | None):
    """Takes how the task's examples are written; None is not known."""
    self._answers = wording.answers if wording and wording.is_label else {}
    hidden = wording.hidden if wording else labels.NO_LABEL
    self._hidden = {hidden.encode(), labels.NO_LABEL.encode()}
    self._empty = {b'', wording.blank.strip().encode() if wording else b''}
    self._seen: set[bytes | None] = set()
    self.inputs: list[int] = []
    self.targets: list[int] = []
    self.labelled: list[int] = []
    self.blank: list[int] = []

  def see(self, example: Mapping[str, Any]) -> None:
    """Takes note of an example as `TaskReader.examples` yields it."""
    self.add(
      len(example['inputs']),
      len(example['targets']),
      example.get('inputs_pretokenized'),
      example.get('targets_pretokenized'),
    )

  def add(
    self,
    input_length: int,
    target_length: int,
    input_text: bytes | None,
    target_text: bytes | None,
  ) -> None:
    """Takes note of an example.

    Args:
      input_length: how many input tokens it has.
      target_length: likewise.
      input_text: None if it is not known.
      target_text: likewise.
    """
    place = len(self.inputs)
    self.inputs.append(input_length)
    self.targets.append(target_length)
    self._seen.add(target_text)
    if not self.is_hidden(target_text):
      self.labelled.append(place)
    # Without a text, there is the end mark alone.
    if (
      input_length < 2
      if input_text is None
      else input_text.strip() in self._empty
    ):
      self.blank.append(place)

  def is_hidden(self, target_text: bytes | None) -> bool:
    """Whether a target's text stands for a hidden label."""
    return target_text in self._hidden

  def count(self, limits: tuple[int, int]) -> Counts:
    """Returns the counts, given the most input and target tokens."""
    absent = (
      w for w, t in self._answers.items() if t.encode() not in self._seen
    )
    # A hidden target stands for no text.
    targets = [self.targets[i] for i in self.labelled]
    return Counts(
      examples=len(self.inputs),
      unlabelled=len(self.inputs) - len(self.labelled),
      empty_inputs=len(self.blank),
      cut_inputs=sum(n > limits[0] for n in self.inputs),
      cut_targets=sum(n > limits[1] for n in targets),
      longest_input=max(self.inputs, default=0),
      longest_target=max(targets, default=0),
      absent=tuple(absent),
    )


def share(part: int, whole: int) -> str:
  """Returns a share in percent.

  Examples:
    >>> share(37, 2490)
    '1.5 %'
  """
  percent = 100 * part / max(whole, 1)
  return f'{percent:.1f} %' if percent >= 0.05 or not part else '< 0.1 %'


def lines(
  name: str, counts: Counts, limits: tuple[int, int], used: str
) -> Iterator[str]:
  """Yields what a user should know of a split, one line each.

  Args:
    name: 'task/split'.
    counts: its numbers.
    limits: most input and target tokens.
    used: what examples without a label are not: 'trained on', 'scored'.
  """
  whole = counts.examples

  def some(part: int, what: str) -> str:
    return f'{name}: {part:,} of {whole:,} {what} ({share(part, whole)})'

  if counts.unlabelled:
    yield f'{some(counts.unlabelled, "examples")} have no label: not {used}'
  if counts.empty_inputs:
    yield f'{some(counts.empty_inputs, "examples")} have empty inputs'
  for part, what, limit, longest in (
    (counts.cut_inputs, 'inputs', limits[0], counts.longest_input),
    (counts.cut_targets, 'targets', limits[1], counts.longest_target),
  ):
    if part:
      yield (
        f'{some(part, what)} are longer than {limit} tokens and were cut'
        f' (the longest has {longest:,}: TASK_FEATURE_LENGTHS[{what!r}] would'
        f' have to be {longest - limit:,} more)'
      )


def refuse_cut_targets(
  task: str, split: str, cut: int, counts: Counts, limit: int
) -> None:
  """Raises InputError if targets are cut.

  Args:
    task: its name.
    split: the split.
    cut: how many targets are cut.
    counts: of the split.
    limit: T.
  """
  if cut:
    raise InputError(
      f'task {task!r}, split {split!r}: {cut:,} of {counts.examples:,} targets'
      f' are longer than {limit} tokens (the longest has'
      f' {counts.longest_target:,}) and would be cut: raise'
      " TASK_FEATURE_LENGTHS['targets'], or allow it by ALLOW_CUT_TARGETS=True"
    )
