"""What an encoder can answer: the words that fill the mask, class by class.

The only place where a task's label becomes these words, and a word that was
filled in the answer of its class, which the task's own postprocessor knows. A
text-to-text model has none of this: its examples pass unchanged.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import numpy as np

from mpt_jax.checkpoints.texts import MASK, NO_MASK
from mpt_jax.checkpoints.vocabulary import Vocabulary
from mpt_jax.data.providers import TaskReader
from mpt_jax.data.vocabulary import CHOSEN
from mpt_jax.data.wording import Wording
from mpt_jax.engine import batching
from mpt_jax.types import InputError

# Features of an example that an encoder reads: see `batching.Example`.
CLASSES, WEIGHTS = 'classes', 'weights'


@dataclasses.dataclass(frozen=True)
class Candidates:
  """The words that can fill the mask of a task.

  Attributes:
    ids: [n] int32, class after class.
    classes: [n] int32: the class of each, from 1.
    texts: each as the vocabulary writes it.
  """

  ids: np.ndarray
  classes: np.ndarray
  texts: tuple[str, ...]

  def weights(self, place: int | None) -> np.ndarray:
    """[n] int32: 1 at the first word of a class; None is no class."""
    found = np.zeros_like(self.ids)
    if place is not None:
      found[np.flatnonzero(self.classes == place + 1)[0]] = 1
    return found

  def features(self, place: int | None) -> dict[str, np.ndarray]:
    """The features of an example of a class; None is a hidden label."""
    return {
      'targets': self.ids,
      CLASSES: self.classes,
      WEIGHTS: self.weights(place),
    }

  def words(self) -> list[list[int]]:
    """The ids of each class."""
    last = int(self.classes[-1])
    return [
      self.ids[self.classes == number].tolist() for number in range(1, last + 1)
    ]


def of(wording: Wording | None, name: str) -> Candidates | None:
  """Returns a task's words in the chosen vocabulary.

  Args:
    wording: how its examples are written.
    name: the task, for messages.

  Returns:
    The words; None if the model writes its answers.

  Raises:
    InputError: if an encoder cannot answer the task, or a filler is not one
      token.
  """
  if not CHOSEN.masks:
    return None
  if wording is None or wording.labels is None:
    raise InputError(
      f'task {name!r} is answered in words or numbers of its own, which an'
      ' encoder (RoBERTa) cannot write: it takes tasks with label words only'
    )
  if not wording.is_label:
    raise InputError(
      f'task {name!r}: an answer is {wording.targets!r}, more than its label,'
      " which an encoder (RoBERTa) cannot write: give targets='{label}'"
    )
  if wording.filled is None:
    raise InputError(
      f'task {name!r} does not say how an encoder (RoBERTa) reads and answers'
      f' it: give it {NO_MASK}'
    )
  return _of(tuple(wording.filled.items()), name, CHOSEN.key)


@functools.lru_cache(maxsize=256)
def _of(
  fillers: tuple[tuple[str, tuple[str, ...]], ...], name: str, key: str
) -> Candidates:
  del key
  return in_vocabulary(dict(fillers), name, CHOSEN.tokenizer)


def in_vocabulary(
  fillers: Mapping[str, Sequence[str]], name: str, vocabulary: Vocabulary
) -> Candidates:
  """Returns the words of a task's classes in a vocabulary.

  Args:
    fillers: label word -> the words that fill the mask for it, in class order.
    name: the task, for messages.
    vocabulary: an encoder's.

  Raises:
    InputError: if a filler is not one token.
  """
  special, unknown = vocabulary.special, vocabulary.unk_id
  reserved = special.swap([special.pad, special.end])
  reserved += [] if unknown is None else special.swap([unknown])
  ids: list[int] = []
  classes: list[int] = []
  known: dict[int, str] = {}
  for number, (label, words) in enumerate(fillers.items(), start=1):
    for word in words:
      tokens = vocabulary.model_ids(word)
      what = f'task {name!r}: the filler {word!r} of {label!r}'
      if len(tokens) != 1 or tokens[0] in reserved:
        pieces = [vocabulary.decode_model([token]) for token in tokens]
        blank = '' if word[:1] == ' ' else ' (most words begin with a blank)'
        raise InputError(
          f'{what} must be one token of the vocabulary, but it is'
          f' {len(tokens)}: {pieces}; choose another word{blank}'
        )
      [token] = tokens
      if token in known:
        raise InputError(
          f'{what} is the same token as {known[token]!r}: choose another word'
        )
      known[token] = word
      ids.append(token)
      classes.append(number)
  texts = tuple(vocabulary.decode_model([token]) for token in ids)
  for place, text in enumerate(texts):
    if text in texts[:place]:
      raise InputError(
        f'task {name!r}: the fillers {known[ids[texts.index(text)]]!r} and'
        f' {known[ids[place]]!r} both read {text!r}: choose another word'
      )
  return Candidates(np.array(ids, np.int32), np.array(classes, np.int32), texts)


def check(task: TaskReader, target_length: int, prompt_length: int) -> None:
  """Checks that an encoder can answer a task.

  Args:
    task: the task; any, if the model writes its answers.
    target_length: T.
    prompt_length: P.

  Raises:
    InputError: as `of`; also if T does not hold all words, or there is neither
      a mask nor a prompt whose first slot could be one.
  """
  found = of(task.wording, task.name)
  if found is not None and not prompt_length:
    assert task.wording is not None
    if MASK not in task.wording.source.text:
      raise InputError(
        f'task {task.name!r}: masked={task.wording.masked!r} has no {{mask}},'
        ' and there is no prompt in whose first slot it could be: write {mask}'
      )
  if found is not None and len(found.ids) > target_length:
    raise InputError(
      f'task {task.name!r} has {len(found.ids)} fillers, but'
      f" TASK_FEATURE_LENGTHS['targets'] is {target_length}: raise it to"
      f' {len(found.ids)}'
    )


def read(
  task: TaskReader,
  split: str,
  limits: Mapping[str, int],
  use_cached: bool,
  most: int | None = None,
  lean: bool = False,
) -> Iterator[dict[str, Any]]:
  """Yields a task's examples as the model of the chosen vocabulary has them.

  Arguments and features are those of `TaskReader.examples`. For an encoder,
  `targets` are the words of the task, and there are `CLASSES` and `WEIGHTS`.
  """
  examples = task.examples(split, limits, use_cached, most, lean)
  found = of(task.wording, task.name)
  if found is None:
    yield from examples
    return
  if use_cached:
    raise InputError(
      f'USE_CACHED_TASKS=True, but the cache of task {task.name!r} may hold the'
      ' text that T5 reads, not that of an encoder: leave it out'
    )
  assert task.wording is not None
  answers = task.wording.answers.values()
  features = {
    answer.encode(): found.features(place)
    for place, answer in enumerate(answers)
  }
  hidden = found.features(None)
  for example in examples:
    known = features.get(example['targets_pretokenized'], hidden)
    yield {**example, **known}


def example(features: Mapping[str, Any], row: int) -> batching.Example:
  """Returns an example for a batch.

  Args:
    features: `inputs`, `targets` and, for an encoder, the two above.
    row: the row of its task in the prompt table.
  """
  return batching.Example(
    features['inputs'],
    features['targets'],
    row,
    features.get(CLASSES),
    features.get(WEIGHTS),
  )


def said(wording: Wording | None, name: str, text: str) -> str:
  """Returns the answer of a task that a model's output stands for.

  Args:
    wording: how its examples are written.
    name: the task, for messages.
    text: the output as decoded.

  Returns:
    The answer of the class whose word an encoder filled in; what a model
    wrote, as it is.
  """
  found = of(wording, name)
  if found is None or text not in found.texts:
    return text
  assert wording is not None
  place = found.classes[found.texts.index(text)] - 1
  return list(wording.answers.values())[place]


@dataclasses.dataclass(frozen=True)
class Postprocess:
  """A task's own postprocessor, which knows its answers, not its fillers.

  Attributes:
    function: called as `function(text, example=…, is_target=…)`.
    wording: how the task's examples are written.
    name: the task.
  """

  function: Callable[..., Any]
  wording: Wording
  name: str

  def __call__(self, text: str, is_target: bool = False, **more: Any) -> Any:
    """Postprocesses a target, or an output."""
    if not is_target:
      text = said(self.wording, self.name, text)
    return self.function(text, is_target=is_target, **more)


def postprocess(
  function: Callable[..., Any] | None, wording: Wording | None, name: str
) -> Callable[..., Any] | None:
  """Returns a task's postprocessor, which knows its fillers if it has any."""
  if function is None or wording is None or wording.fillers is None:
    return function
  return Postprocess(function, wording, name)


def word_ids(wording: Wording, name: str, end: int) -> list[list[int]] | None:
  """The ids of each class's words and the end mark; None if it writes them."""
  found = of(wording, name)
  return None if found is None else [[*ids, end] for ids in found.words()]
