"""Evaluation with the tasks' own postprocessors and SeqIO metrics.

What `seqio.Evaluator` computes, without its tf.data pipelines (a test holds
the two equal): examples are tokenised once, kept in memory for the next
evaluation of the same process, and laid out one per row in the data's order.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
from typing import Any

from absl import logging
import numpy as np
import tqdm

from mpt_jax.data import candidates, counts, lookup, rows
from mpt_jax.data.assessment import Answers
from mpt_jax.data.dataset import check_lengths, digest, loading_bar
from mpt_jax.data.providers import (
  KEYS,
  PREDICTION,
  SCORE,
  Computed,
  TaskReader,
)
from mpt_jax.data.vocabulary import CHOSEN
from mpt_jax.engine import batching, buckets, metrics, selection
from mpt_jax.engine.settings import Examples
from mpt_jax.types import InputError

# [B, ...] features -> one output per row: [B, T] tokens or [B] scores.
ModelFn = Callable[[Mapping[str, np.ndarray]], Any]
# Inputs are padded to one of a few multiples of this. Each length is compiled
# for, which must be worth it.
_STEP, _MOST_LENGTHS, _BATCHES_PER_LENGTH = 32, 4, 8


@dataclasses.dataclass
class _Split:
  """A split in memory.

  Attributes:
    examples: every feature of every example, as NumPy.
    found: what of it is cut, hidden or empty.
    labelled: the part whose examples have a label, which can be scored; None
      is all of it.
    targets: the postprocessed targets, once they have been asked for.
  """

  examples: list[dict[str, Any]]
  found: counts.Counts | None = None
  labelled: '_Split | None' = None
  targets: list[Any] | None = None

  @property
  def scored(self) -> '_Split':
    """What can be scored; may be empty."""
    return self if self.labelled is None else self.labelled

  def digest(self) -> str:
    """Returns the digest of every feature of every example."""
    features = (sorted(example.items()) for example in self.examples)
    return digest(part for pairs in features for pair in pairs for part in pair)


class Scores(dict[str, dict[str, float]]):
  """Task -> metric -> value.

  Attributes:
    examples: task -> the examples that were scored, as read, by their place
      in the data.
    said: task -> what its metric functions say of their metrics.
    answers: task -> what was answered; not of tasks without a metric function
      that reads answers.
    readers: task -> the task itself.
  """

  def __init__(self):
    super().__init__()
    self.examples: dict[str, Mapping[int, Mapping[str, Any]]] = {}
    self.said: dict[str, dict[str, metrics.Metric]] = {}
    self.answers: dict[str, Answers] = {}
    self.readers: dict[str, TaskReader] = {}

  def add(self, other: 'Scores') -> None:
    """Takes the scores of other tasks."""
    self.update(other)
    self.examples.update(other.examples)
    self.said.update(other.said)
    self.answers.update(other.answers)
    self.readers.update(other.readers)

  def judge(self, task: str, again: bool = False) -> metrics.Judgement:
    """Says what must stand beside a task's scores.

    Args:
      task: the task.
      again: see `Answers.judge`.
    """
    if task in self.answers:
      return self.answers[task].judge(again)
    return metrics.Judgement(
      len(self.examples[task]),
      metrics.meanings(self[task], self.said[task]),
    )

  def predictions(self, task: str) -> list[dict[str, Any]]:
    """Returns every answer to a task's examples, ready for JSON.

    Args:
      task: the task.

    Returns:
      Dicts with `id` (the example's own, or None), `index`, `task`, `input`,
      `target`, `output` (as decoded), `answer` (as the metrics see it) and
      `score` (see `Answers.example_scores`).
    """
    said = self.answers[task]
    main = selection.main_metric(self[task], self.said[task])
    rows = zip(
      self.examples[task].items(),
      said.outputs,
      said.answers,
      said.example_scores(main),
      strict=True,
    )
    reader = self.readers[task]
    return [
      {
        'id': _id(example),
        'index': index,
        'task': task,
        'input': _text(reader, example, 'inputs'),
        'target': _text(reader, example, 'targets'),
        'output': output,
        'answer': said.readable(answer),
        'score': score,
      }
      for (index, example), output, answer, score in rows
    ]


@functools.lru_cache(maxsize=64)
def _load(
  task: TaskReader,
  split: str,
  limits: tuple[int, int],
  num_examples: int | None,
  vocabulary: str,
  state: Any,
) -> _Split:
  """Tokenises a split; the last two arguments tell the results apart."""
  del vocabulary, state
  lengths = dict(zip(KEYS, limits, strict=True))
  examples = []
  watch = counts.Watch(task.wording)
  bar = loading_bar(task, split)
  with task.naming(split):
    ends = task.end_ids()
    masks = CHOSEN.mask_id, None
    for example in candidates.read(task, split, lengths, False, num_examples):
      watch.see(example)
      for key, limit, end, mask in zip(KEYS, limits, ends, masks, strict=True):
        example[key] = batching.cut(example[key], limit, end, mask)
      examples.append(example)
      bar.update()
  bar.close()
  if not examples:
    raise InputError(f'task {task.name!r}: split {split!r} has no examples')
  logging.info('%s/%s: %d examples', task.name, split, len(examples))
  found = watch.count(limits)
  for line in counts.lines(f'{task.name}/{split}', found, limits, 'scored'):
    logging.warning(line)
  labelled = None
  if found.unlabelled:
    labelled = _Split([examples[i] for i in watch.labelled], found)
  return _Split(examples, found, labelled)


def _sorted(
  split: _Split, prompt_length: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
  """Places of the examples and the longest length of each of their batches.

  The longest come first: what they needed in memory then does for all.
  """
  lengths = np.array([prompt_length + len(e['inputs']) for e in split.examples])
  order = np.argsort(lengths, kind='stable')[::-1]
  return order, lengths[order[::size]]


def _bounds(longest: np.ndarray, limit: int) -> tuple[int, ...]:
  """The few lengths to which batches of these longest lengths are padded."""
  return buckets.bounds(
    longest,
    min(-(-int(longest.max()) // _STEP) * _STEP, limit),
    _STEP,
    min(_MOST_LENGTHS, 1 + len(longest) // _BATCHES_PER_LENGTH),
  )


def _run(
  model_fn: ModelFn,
  split: _Split,
  row: int,
  shape: tuple[int, int, int],
  prompt_length: int,
  description: str,
  progress: bool,
  padded: Sequence[int] | None = None,
) -> list[Any]:
  """Returns the model's output for every example, in order.

  Examples of like length share a batch, padded to one of a few lengths, the
  split's own if none are given. The last batch is filled up with its last
  example, which is as harmless to the model as any.
  """
  size, limit, targets = shape
  order, longest = _sorted(split, prompt_length, size)
  padded = padded or _bounds(longest, limit)
  outputs: list[Any] = [None] * len(order)
  bar = tqdm.tqdm(
    total=len(split.examples),
    desc=description,
    unit='ex',
    leave=False,
    # None: shown on a terminal only, a log file would be flooded.
    disable=None if progress else True,
  )
  with bar:
    for number, start in enumerate(range(0, len(order), size)):
      places = order[start : start + size]
      part = [split.examples[i] for i in places]
      full = part + part[-1:] * (size - len(part))
      source = padded[int(np.searchsorted(padded, longest[number]))]
      batch = batching.lay_out(
        [[candidates.example(e, row)] for e in full],
        (size, source, targets),
        prompt_length,
        packed=False,
      )
      answers = np.asarray(model_fn(batch))
      for place, answer in zip(places, answers, strict=False):
        outputs[place] = answer
      bar.update(len(part))
  return outputs


@dataclasses.dataclass(frozen=True)
class _Reader:
  """What is read of one task or mixture, and how it is laid out; checked."""

  tasks: Sequence[TaskReader]
  split: str
  num_examples: int | None
  row_of: Mapping[str, int]
  shape: tuple[int, int, int]
  prompt_length: int
  progress: bool

  @classmethod
  def of_each(
    cls,
    examples: Examples,
    prompt_length: int,
    task_names: Sequence[str],
    batch_size: int,
    progress: bool,
  ) -> list['_Reader']:
    source, target = check_lengths(examples.task_feature_lengths, prompt_length)
    if batch_size < 1:
      raise InputError(f'BATCH_SIZE={batch_size} must be positive')
    number = examples.num_examples
    if number is not None and number < 1:
      raise InputError(f'{number} examples are too few to evaluate')
    found = []
    for name in examples.names:
      provider = lookup.check_data(name, examples.split, examples.module)
      lookup.check_vocabulary(provider)
      lookup.check_labels(provider, target, prompt_length)
      found.append(
        cls(
          provider.tasks,
          examples.split,
          number,
          rows.rows_of(task_names, provider),
          (batch_size, source, target),
          prompt_length,
          progress,
        )
      )
    return found

  def load(self, task: TaskReader) -> _Split:
    return _load(
      task,
      self.split,
      (self.shape[1] - self.prompt_length, self.shape[2]),
      self.num_examples,
      CHOSEN.key,
      task.state(self.split),
    )

  def run(
    self, task: TaskReader, split: _Split, model_fn: ModelFn
  ) -> list[Any]:
    return _run(
      model_fn,
      split,
      self.row_of[task.name],
      self.shape,
      self.prompt_length,
      task.name,
      self.progress,
    )


def evaluate(
  examples: Examples,
  prompt_length: int,
  task_names: Sequence[str],
  predict_fn: ModelFn,
  batch_size: int,
  *,
  score_fn: ModelFn | None = None,
  progress: bool = True,
) -> Scores:
  """Evaluates a model on every task of some mixtures that has metrics.

  Args:
    examples: which ones, of which tasks.
    prompt_length: P; 0 for no prompt slots.
    task_names: the model's tasks in row order (PROMPT_TASKS).
    predict_fn: makes [B, T] tokens of a batch of [B, ...] NumPy features,
      always `batch_size` rows.
    batch_size: B.
    score_fn: makes [B] log likelihoods of a batch; only for tasks whose
      metrics ask for them.
    progress: whether to show a progress bar with the time left.

  Returns:
    Task name -> metric name -> value, and behind it the answers.

  Raises:
    InputError: as `get_train_iterator`; also if a metric asks for a kind of
      output that is not offered.
  """
  model_fns = {PREDICTION: predict_fn}
  if score_fn is not None:
    model_fns[SCORE] = score_fn
  results = Scores()
  for reader in _Reader.of_each(
    examples, prompt_length, task_names, batch_size, progress
  ):
    results.add(_evaluate(reader, model_fns))
  return results


def _evaluate(reader: _Reader, model_fns: Mapping[str, ModelFn]) -> Scores:
  results = Scores()
  unlabelled: list[str] = []
  for task in reader.tasks:
    if not task.wants:
      logging.info('task %r has no metrics: not evaluated', task.name)
      continue
    if not task.wants <= set(model_fns):
      kinds = sorted(task.wants - set(model_fns))
      raise InputError(f'a metric of task {task.name!r} asks for {kinds}')
    scored = reader.load(task).scored
    if not scored.examples:
      unlabelled.append(task.name)
      logging.warning(
        'task %r, split %r: no example has a label, so it has no score',
        task.name,
        reader.split,
      )
      continue
    outputs = {
      kind: np.array(reader.run(task, scored, model_fns[kind]))
      # Processes that share the work do it in one order.
      for kind in sorted(task.wants)
    }
    results.add(_scored(reader, task, outputs))
    answers = results.answers.get(task.name)
    warning = answers.warning() if answers is not None else None
    if warning is not None:
      logging.warning(warning)
  if unlabelled and not results:
    raise _nothing_to_score(unlabelled, reader.split)
  return results


def _scored(
  reader: _Reader, task: TaskReader, outputs: Mapping[str, np.ndarray]
) -> Scores:
  """The scores of a task, of {kind: outputs for what can be scored}."""
  loaded = reader.load(task)
  scored = loaded.scored
  with task.naming(reader.split):
    computed = task.score(scored.examples, outputs, scored.targets)
  scored.targets = computed.targets
  results = Scores()
  _take(results, task, computed)
  chosen = set(map(id, scored.examples))
  results.examples[task.name] = {
    place: example
    for place, example in enumerate(loaded.examples)
    if id(example) in chosen
  }
  return results


@dataclasses.dataclass(frozen=True)
class Questions:
  """The examples of one task that can be scored, for several prompts to answer.

  Attributes:
    task: its name.
    digest: of every feature of every example of the split.
    words: the ids of its label words as answers, each with the end mark; for
      an encoder of each class those that fill the mask. None if it has none,
      so that answers can only be generated.
    metrics: the names of its metric functions.
  """

  task: str
  digest: str
  words: Sequence[Sequence[int]] | None
  metrics: Sequence[str]
  _reader: _Reader
  _task: TaskReader
  _padded: Sequence[int]

  @property
  def positions(self) -> int:
    """The input positions of all its batches, padding included."""
    size, _, _ = self._reader.shape
    split = self._reader.load(self._task).scored
    _, longest = _sorted(split, self._reader.prompt_length, size)
    places = np.searchsorted(self._padded, longest)
    return size * int(np.asarray(self._padded)[places].sum())

  def answer(self, answer_fn: ModelFn) -> list[Scores]:
    """Scores the answers of several prompts.

    Args:
      answer_fn: makes [B, K, T] tokens of a batch, the answers of K prompts to
        each of its B rows; these are of row 0.

    Returns:
      The task's scores by each prompt.
    """
    scored = self._reader.load(self._task).scored
    outputs = _run(
      answer_fn,
      scored,
      0,
      self._reader.shape,
      self._reader.prompt_length,
      self.task,
      False,
      self._padded,
    )
    return [
      _scored(self._reader, self._task, {PREDICTION: np.ascontiguousarray(by)})
      for by in np.stack(outputs, axis=1)
    ]


def questions(
  examples: Examples, prompt_length: int, batch_size: int
) -> list[Questions]:
  """Reads tasks for several prompts to answer, all padded to the same lengths.

  Args:
    examples: of which tasks.
    prompt_length: P.
    batch_size: B.

  Returns:
    The tasks, in the order of their names.

  Raises:
    InputError: as `examine`; also for a mixture, or a task without metrics or
      with one that asks for more than answers.
  """
  found: list[tuple[_Reader, TaskReader, str]] = []
  for name, reader in zip(
    examples.names,
    _Reader.of_each(examples, prompt_length, (), batch_size, False),
    strict=True,
  ):
    [task, *others] = reader.tasks
    if others or task.name != name:
      raise InputError(
        f'{name!r} is a mixture of {len(reader.tasks)} tasks: name the tasks'
      )
    if task.wants != {PREDICTION}:
      asks = f'asks for {sorted(task.wants)}' if task.wants else 'is not there'
      raise InputError(f'task {name!r} cannot be scored: a metric {asks}')
    counted = _examine(reader, examples.allow_cut_targets)
    found.append((reader, task, counted[name].digest))
  longest = [
    _sorted(reader.load(task).scored, prompt_length, batch_size)[1]
    for reader, task, _ in found
  ]
  padded = _bounds(np.concatenate(longest), found[0][0].shape[1])
  return [
    Questions(
      task.name,
      digest,
      _word_ids(task),
      [getattr(metric, '__name__', str(metric)) for metric in task.metrics],
      reader,
      task,
      padded,
    )
    for reader, task, digest in found
  ]


def _word_ids(task: TaskReader) -> list[list[int]] | None:
  """The ids of a task's label words as answers; None if it has none."""
  wording = task.wording
  if wording is None or wording.labels is None or not wording.is_label:
    return None
  vocabulary, (_, end) = task.vocabulary('targets'), task.end_ids()
  return candidates.word_ids(wording, task.name, end) or [
    [*map(int, vocabulary.encode(text)), end]
    for text in wording.answers.values()
  ]


def _nothing_to_score(tasks: Sequence[str], split: str) -> InputError:
  return InputError(
    f'split {split!r} of {" and ".join(map(repr, tasks))} has no labels (they'
    ' are absent, empty or negative), so there is nothing to score;'
    ' mpt_jax.infer answers it; to score, cut a split from one with labels'
    ' (splits= of register_task)'
  )


def examine(
  examples: Examples, prompt_length: int, task_names: Sequence[str]
) -> dict[str, counts.Counts]:
  """Reads what `evaluate` will score, so that it does not fail after hours.

  Args:
    examples: as in `evaluate`, like the next ones.
    prompt_length: P.
    task_names: the model's tasks in row order.

  Returns:
    Task name -> what of its split is cut, hidden or empty; of tasks that have
    metrics.

  Raises:
    InputError: as `evaluate`; if there is no label at all; if a target is
      longer than T and that is not allowed.
  """
  found: dict[str, counts.Counts] = {}
  for reader in _Reader.of_each(examples, prompt_length, task_names, 1, True):
    found |= _examine(reader, examples.allow_cut_targets)
  return found


def _examine(reader: _Reader, allow_cut: bool) -> dict[str, counts.Counts]:
  found: dict[str, counts.Counts] = {}
  for task in reader.tasks:
    if not task.wants:
      continue
    loaded = reader.load(task)
    if loaded.found is not None:
      found[task.name] = dataclasses.replace(
        loaded.found, digest=loaded.digest()
      )
  if found and not any(c.labelled for c in found.values()):
    raise _nothing_to_score(list(found), reader.split)
  for name, numbers in found.items():
    cut = 0 if allow_cut else numbers.cut_targets
    counts.refuse_cut_targets(name, reader.split, cut, numbers, reader.shape[2])
  return found


def metrics_of(
  mixture_or_task_name: str, split: str, module: str | None = None
) -> dict[str, tuple[dict[str, metrics.Metric], bool]]:
  """Says what is known of the tasks' metrics before anything is scored.

  Args:
    mixture_or_task_name: a registered mixture or task.
    split: the split that will be scored.
    module: a module to import first.

  Returns:
    Task name -> ({metric: its meaning} as its functions say it, whether these
    are all that they give).

  Raises:
    InputError: if there is no such task or split.
  """
  provider = lookup.check_data(mixture_or_task_name, split, module)
  return {task.name: metrics.collect(task.metrics) for task in provider.tasks}


def _take(results: Scores, task: TaskReader, computed: Computed) -> None:
  """Adds a task's metrics, what they mean, and the answers behind them."""
  values = dict(computed.values)
  said, _ = metrics.collect(task.metrics)
  _check_range(task.name, metrics.meanings(values, said), values)
  results[task.name] = values
  results.said[task.name] = said
  results.readers[task.name] = task
  if computed.functions:
    results.answers[task.name] = Answers(
      task.name,
      computed.targets or (),
      computed.answers,
      computed.outputs,
      task.label_words,
      values,
      computed.functions,
      said,
    )


def _check_range(
  task: str,
  meanings: Mapping[str, metrics.Metric],
  values: Mapping[str, float],
) -> None:
  """Says so if a metric is not what its name promises."""
  for name, m in meanings.items():
    # Sums of floats may pass a bound by a hair.
    if values[name] < m.low - 1e-6 or values[name] > m.high + 1e-6:
      logging.warning(
        f'task {task!r}: {name} is {values[name]:g}, outside its range from'
        f' {m.low:g} to {m.high:g}'
      )


def predict(
  examples: Examples,
  prompt_length: int,
  task_names: Sequence[str],
  predict_fn: ModelFn,
  batch_size: int,
  *,
  score_fn: ModelFn | None = None,
  progress: bool = True,
) -> Iterator[dict[str, Any]]:
  """Yields the model's answer to every example, in the data's order.

  Args:
    examples: as in `evaluate`, like all other arguments.
    prompt_length: P.
    task_names: the model's tasks in row order.
    predict_fn: makes tokens of a batch.
    batch_size: B.
    score_fn: makes [B] log likelihoods of a batch; given, the label words of
      each task are scored in place of a prediction.
    progress: whether to show a progress bar with the time left.

  Yields:
    A dict with `task`, `index`, `inputs`, `targets` and `prediction`, or in
    its place `scores`: label word -> log probability.

  Raises:
    InputError: as `evaluate`.
  """
  for reader in _Reader.of_each(
    examples, prompt_length, task_names, batch_size, progress
  ):
    for task in reader.tasks:
      split = reader.load(task)
      pairs = zip(
        split.examples,
        _answers(reader, task, split, predict_fn, score_fn),
        strict=True,
      )
      for index, (example, answer) in enumerate(pairs):
        yield {
          'task': task.name,
          'index': index,
          'inputs': _text(task, example, 'inputs'),
          'targets': _text(task, example, 'targets'),
          **answer,
        }


def _answers(
  reader: _Reader,
  task: TaskReader,
  split: _Split,
  predict_fn: ModelFn,
  score_fn: ModelFn | None,
) -> list[dict[str, Any]]:
  """The answer to each example of a task: a text, or its words' scores."""
  if score_fn is not None:
    scores = _label_scores(reader, task, split, score_fn)
    return [{'scores': found} for found in scores]
  vocabulary = task.vocabulary('targets')
  return [
    {
      'prediction': candidates.said(
        task.wording, task.name, vocabulary.decode(tokens.tolist())
      )
    }
    for tokens in reader.run(task, split, predict_fn)
  ]


def _label_scores(
  reader: _Reader, task: TaskReader, split: _Split, score_fn: ModelFn
) -> list[dict[str, float]]:
  """Scores every label word of a task as the answer to every example."""
  words = _word_ids(task)
  if words is None:
    raise InputError(f'task {task.name!r} has no label words to rank')
  assert task.label_words is not None
  scores: list[dict[str, float]] = [{} for _ in split.examples]
  filled = candidates.of(task.wording, task.name)
  for place, word in enumerate(task.label_words):
    if filled is None:
      answer = {'targets': np.array(words[place], np.int32)}
    else:
      answer = filled.features(place)
    size, limit, _ = reader.shape
    outputs = _run(
      score_fn,
      _Split([{**example, **answer} for example in split.examples]),
      reader.row_of[task.name],
      (size, limit, len(answer['targets'])),
      reader.prompt_length,
      f'{task.name}: {word}',
      reader.progress,
    )
    for found, value in zip(scores, outputs, strict=True):
      found[word] = float(value)
  return scores


def _text(task: TaskReader, example: Mapping[str, Any], key: str) -> str:
  text = example.get(f'{key}_pretokenized')
  if isinstance(text, bytes):
    return text.decode()
  return task.vocabulary(key).decode(example[key].tolist())


def _id(example: Mapping[str, Any]) -> Any:
  """The example's own name: its `id`, else `idx`, as far as they were kept."""
  for key in ('id', 'idx'):
    if key in example:
      value = np.asarray(example[key]).tolist()
      return value.decode() if isinstance(value, bytes) else value
  parts = {k: v for k, v in example.items() if k.startswith('idx/')}
  return {k: np.asarray(v).tolist() for k, v in parts.items()} or None
