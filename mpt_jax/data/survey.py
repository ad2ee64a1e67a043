"""What a reader should know of a SeqIO task's splits before a run."""

import collections
from collections.abc import Mapping
import dataclasses

from mpt_jax.data import counts, templates
from mpt_jax.data.libraries import seqio, tf

_KEYS = ('inputs', 'targets')
# How many examples are read at a time.
_BLOCK = 1024


@dataclasses.dataclass(frozen=True)
class Survey:
  """What a reader should know of a split before a run.

  Attributes:
    examples: how many were looked at.
    unlabelled: those whose label is hidden or missing.
    empty: those with empty inputs.
    double: those that repeat an earlier one, inputs and target.
    conflicting: those whose inputs have other labels elsewhere in the split;
      None if the task has no label words.
    classes: label word -> how many have it; empty without label words.
    inputs: of each input, how many examples have it.
  """

  examples: int
  unlabelled: int
  empty: int
  double: int
  conflicting: int | None
  classes: Mapping[str, int]
  inputs: Mapping[bytes, int]

  def within(self, other: 'Survey') -> int:
    """Returns how many examples have inputs that another split has too."""
    return sum(n for text, n in self.inputs.items() if text in other.inputs)


def survey(task: seqio.Task, split: str, most: int | None) -> Survey:
  """Looks at the texts of a split.

  Args:
    task: the task.
    split: the split.
    most: how many of its first examples to look at; None is all.

  Returns:
    What was found.

  Raises:
    InputError: if it cannot be read.
  """
  ds = task.get_dataset(None, split, shuffle=False, try_in_mem_cache=False)
  known = [f'{key}_pretokenized' in ds.element_spec for key in _KEYS]

  def texts(example):
    return [
      *(tf.size(example[key]) for key in _KEYS),
      *(
        example[f'{key}_pretokenized']
        if whole
        else tf.io.serialize_tensor(example[key])
        for key, whole in zip(_KEYS, known, strict=True)
      ),
    ]

  if most is not None:
    ds = ds.take(most)
  wording = templates.wording_of(task)
  watch = counts.Watch(wording)
  pairs: collections.Counter[tuple[bytes, bytes]] = collections.Counter()
  for batch in ds.map(texts).batch(_BLOCK).as_numpy_iterator():
    for source, said, text, target in zip(*batch, strict=True):
      watch.add(
        int(source),
        int(said),
        text if known[0] else None,
        target if known[1] else None,
      )
      pairs[text, target] += 1
  count = watch.count((0, 0))
  inputs: collections.Counter[bytes] = collections.Counter()
  targets: dict[bytes, set[bytes]] = {}
  answers: collections.Counter[bytes] = collections.Counter()
  for (text, target), number in pairs.items():
    inputs[text] += number
    answers[target] += number
    if not watch.is_hidden(target):
      targets.setdefault(text, set()).add(target)
  classes = wording.answers if wording and wording.is_label else {}
  return Survey(
    examples=count.examples,
    unlabelled=count.unlabelled,
    empty=count.empty_inputs,
    double=count.examples - len(pairs),
    conflicting=sum(inputs[t] for t, all_ in targets.items() if len(all_) > 1)
    if classes
    else None,
    classes={word: answers[text.encode()] for word, text in classes.items()},
    inputs=inputs,
  )
