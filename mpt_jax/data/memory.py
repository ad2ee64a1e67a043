"""Tasks of rows that are in memory, which need neither SeqIO nor TensorFlow.

The same rows registered with `register_task` give the same tokens, digests
and scores (a test holds them equal).
"""

from collections.abc import (
  Callable,
  Collection,
  Iterable,
  Iterator,
  Mapping,
  Sequence,
)
import dataclasses
import functools
import inspect
from typing import Any

import numpy as np

from mpt_jax.checkpoints.texts import LABEL, TaskText, Template, clean, shown
from mpt_jax.data import candidates, providers, rows, scoring
from mpt_jax.data.labels import NO_LABEL, class_id
from mpt_jax.data.records import INDEX, NAME, SPLITS, Records
from mpt_jax.data.vocabulary import CHOSEN
from mpt_jax.data.wording import Wording
from mpt_jax.types import InputError

MetricFn = Callable[[Sequence[Any], Sequence[Any]], Mapping[str, float]]
# A list of dictionaries, or a pandas DataFrame.
Table = Any


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Task:
  """A task of rows: dictionaries, or a pandas DataFrame.

  The rows are copied: what becomes of them later does not count.

  Attributes:
    train: the rows to train on.
    validation: those to score while training.
    test: those to score at the end. One split is enough.
    inputs: template of the model's input, as in 'review: {text}'.
    targets: template of the answer; None is '{label}', with label words.
    labels: label words in the order of the class ids. The column `label` holds
      the ids, or the words as text. A negative id, an empty cell, NaN or no
      such column hides the label: such an example is answered, but neither
      trained on nor scored.
    masked: template of the input of an encoder (RoBERTa), as in '{mask}
      {text}'; see `register_task`.
    fillers: label word -> the word that fills the mask for it, or several.
    metrics: functions of (targets, predictions) that return a dict of numbers:
      of class ids where there are label words (-1 for any other output), else
      of texts. None is `accuracy` of label words, else `exact_match`.

  Raises:
    InputError: if there is no row at all, if a template is broken, or if a
      label word is empty or occurs twice.
  """

  train: Table = None
  validation: Table = None
  test: Table = None
  inputs: str
  targets: str | None = None
  labels: Sequence[str] | None = None
  masked: str | None = None
  fillers: Mapping[str, str | Sequence[str]] | None = None
  metrics: Sequence[MetricFn] | None = None

  def __post_init__(self):
    for split in SPLITS:
      table = getattr(self, split)
      if table is not None:
        object.__setattr__(self, split, _copied(table, split))
    if not self.splits:
      raise InputError('a task needs rows: give train, validation or test')
    if not isinstance(self.inputs, str):
      raise InputError(
        f"inputs={self.inputs!r} is no template, as in 'review: {{text}}'"
      )
    wording = self.wording
    wording.classes()
    object.__setattr__(self, 'targets', wording.targets)
    object.__setattr__(self, 'labels', wording.labels)
    metrics: Any = self.metrics
    if metrics is None:
      words = self.labels is not None
      metrics = scoring.accuracy if words else scoring.exact_match
    metrics = (metrics,) if callable(metrics) else tuple(metrics)
    for metric in metrics:
      _check_metric(metric)
    object.__setattr__(self, 'metrics', metrics)

  @property
  def splits(self) -> tuple[str, ...]:
    """The names of the splits that it has."""
    return tuple(s for s in SPLITS if getattr(self, s) is not None)

  @functools.cached_property
  def wording(self) -> Wording:
    """How its examples are written."""
    return Wording.create(
      self.inputs, self.targets, self.labels, self.masked, self.fillers
    )

  @functools.cached_property
  def records(self) -> Records:
    """Its rows, checked when they are read."""
    return Records(
      {split: getattr(self, split) for split in self.splits},
      {split: split for split in self.splits},
      self.wording.fields,
      {},
      self.labels,
    )

  def __repr__(self) -> str:
    parts = [f'{s}={len(getattr(self, s)):,} rows' for s in self.splits]
    parts += [f'inputs={self.inputs!r}', f'targets={self.targets!r}']
    if self.labels is not None:
      parts.append(f'labels={self.labels!r}')
    if self.masked is not None:
      parts.append(f'masked={self.masked!r}')
    return f'Task({", ".join(parts)})'


def _copied(table: Table, split: str) -> tuple[dict[str, Any], ...]:
  """Returns a split's rows as dictionaries of their own."""
  # A DataFrame of pandas, which is not imported for it.
  if hasattr(table, 'to_dict'):
    table = table.to_dict('records')
  if isinstance(table, str | bytes | Mapping) or not isinstance(
    table, Iterable
  ):
    raise InputError(
      f'{split}={type(table).__name__} is no table: give a list of'
      ' dictionaries or a DataFrame'
    )
  found = []
  for number, row in enumerate(table):
    if not isinstance(row, Mapping):
      raise InputError(
        f'{split} row {number}: expected a dictionary, got {type(row).__name__}'
      )
    found.append(dict(row))
  return tuple(found)


def _check_metric(metric: Any) -> None:
  if not callable(metric):
    raise InputError(
      f'metric {metric!r} is no function of (targets, predictions)'
    )
  try:
    names = inspect.signature(metric).parameters
  except ValueError:  # Of a built-in one nothing is known.
    return
  if 'scores' in names:
    raise InputError(
      f'metric {getattr(metric, "__name__", metric)!r} asks for scores, and'
      ' tasks of rows have predictions only'
    )


@dataclasses.dataclass(frozen=True)
class MemoryTask(providers.TaskReader):
  """A task in memory under the name that it has in a run.

  Attributes:
    title: the name.
    task: the task.
  """

  title: str
  task: Task

  @property
  def name(self) -> str:
    """The task's name."""
    return self.title

  @property
  def splits(self) -> Collection[str]:
    """The names of its splits."""
    return self.task.splits

  @property
  def wording(self) -> Wording:
    """How its examples are written."""
    return self.task.wording

  @property
  def metrics(self) -> Sequence[Any]:
    """The functions that give its metrics."""
    return self.task.metrics or ()

  def vocabulary(self, key: str) -> providers.Vocabulary:
    """Returns the backbone's."""
    del key
    return CHOSEN

  def check(self, split: str, use_cached: bool) -> None:
    """Reads and checks every row of a split; see `TaskReader`."""
    if use_cached:
      raise InputError(
        'USE_CACHED_TASKS=True, but it is a list of rows, of which there is no'
        ' cache'
      )
    self.task.records.check(split)
    columns, _ = self.task.records.part(split)
    for name in columns.lists:
      raise InputError(
        f'{split}: column {name!r} holds lists, expected one text in each row'
      )

  def check_vocabulary(self) -> None:
    """Its vocabulary is the backbone's."""

  def size(self, split: str) -> int:
    """Returns how many rows a split has."""
    return self.task.records.num_input_examples(split)

  def examples(
    self,
    split: str,
    limits: Mapping[str, int],
    use_cached: bool,
    most: int | None = None,
    lean: bool = False,
  ) -> Iterator[dict[str, Any]]:
    """Yields the tokenised examples of a split; see `TaskReader`."""
    del limits, use_cached, lean
    columns, bounds = self.task.records.part(split)
    templates = {
      'inputs': self.wording.source,
      'targets': Template(self.wording.targets),
    }
    is_masked = self.wording.is_masked
    end = CHOSEN.eos_id
    identity = np.array([rows.task_identity(self.name)], np.int32)
    for index in range(bounds.start, bounds.stop)[:most]:
      values = {name: cells[index] for name, cells in columns.cells.items()}
      if is_masked:
        values = {
          name: clean(cell) if isinstance(cell, str) else cell
          for name, cell in values.items()
        }
      if self.wording.labels is not None:
        place = values[LABEL]
        words = self.wording.labels
        values[LABEL] = NO_LABEL if place < 0 else words[place]
      example: dict[str, Any] = {INDEX: np.int64(index)}
      if columns.names is not None:
        example[NAME] = columns.names[index].encode()
      for key, template in templates.items():
        text = template.write(values)
        example[key] = np.array([*CHOSEN.encode(text), end], np.int32)
        text = shown(text) if is_masked else text
        example[f'{key}_pretokenized'] = text.encode()
      example[rows.TASK_ID] = identity
      yield example

  def score(
    self,
    examples: Sequence[Mapping[str, Any]],
    outputs: Mapping[str, np.ndarray],
    targets: list[Any] | None,
  ) -> providers.Computed:
    """Computes the metrics; what is no number is left out."""
    texts = [CHOSEN.decode(ids) for ids in outputs[providers.PREDICTION]]
    answers = [
      self._postprocess(candidates.said(self.wording, self.name, text))
      for text in texts
    ]
    if targets is None:
      targets = [
        self._postprocess(example['targets_pretokenized'].decode())
        for example in examples
      ]
    values: dict[str, float] = {}
    functions: dict[str, Callable[..., Any]] = {}
    for metric in self.metrics:
      found: Any = metric(targets, answers)
      if not isinstance(found, Mapping):
        raise InputError(
          f'task {self.name!r}: metric'
          f' {getattr(metric, "__name__", metric)!r} returned {found!r},'
          " expected numbers by name, as in {'accuracy': 50.0}"
        )
      named = providers.numbers(found)
      values |= named
      functions |= dict.fromkeys(named, metric)
    return providers.Computed(values, functions, targets, answers, texts)

  def _postprocess(self, text: str) -> Any:
    classes = self.wording.classes()
    return text if classes is None else class_id(text, classes)

  def text(self, split: str) -> TaskText:
    """Returns how its texts are written."""
    del split
    wording = self.wording
    labels = None if wording.labels is None else tuple(wording.labels)
    return TaskText(
      wording.inputs,
      wording.targets,
      labels,
      masked=wording.masked,
      fillers=wording.filled,
    )


_TASKS: dict[str, MemoryTask] = {}


def register(tasks: Mapping[str, Task]) -> None:
  """Makes tasks known by their names, as a run takes them.

  Args:
    tasks: name -> task. One that was registered under a name before is
      replaced.

  Raises:
    InputError: if a name is no name, or a value no task.
  """
  for name, task in tasks.items():
    rows.check_name(name)
    if not isinstance(task, Task):
      raise InputError(
        f'task {name!r} is {type(task).__name__}, expected mpt_jax.Task(...)'
      )
  for name, task in tasks.items():
    known = _TASKS.get(name)
    if known is None or known.task is not task:
      _TASKS[name] = MemoryTask(name, task)


def clear() -> None:
  """Forgets all tasks in memory."""
  _TASKS.clear()


def names() -> list[str]:
  """Returns the names of the tasks in memory."""
  return list(_TASKS)


def find(name: str) -> MemoryTask | None:
  """Returns the task of a name; None if there is none in memory."""
  return _TASKS.get(name)
