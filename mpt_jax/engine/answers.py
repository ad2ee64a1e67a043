"""Answers to tasks and to lines of text, one JSON line per answer."""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import dataclasses
import functools
import io
import itertools
import json
import logging
import os
import sys
from typing import Any, TextIO

import jax
import numpy as np
import tqdm

from mpt_jax import pretrained
from mpt_jax.checkpoints.backbone import fills_masks
from mpt_jax.checkpoints.bundle import PromptBundle, load_prompts
from mpt_jax.checkpoints.texts import Marked, shown
from mpt_jax.data import lines as lines_lib
from mpt_jax.engine import multihost
from mpt_jax.engine.predictor import Predictor
from mpt_jax.engine.settings import BackboneSource, Decoding, Examples
from mpt_jax.types import InputError, check_least

log = logging.getLogger(__name__)

# Stands for standard input or output in place of a file.
STANDARD = '-'
_PREDICTION, _PROBABILITIES = 'prediction', 'probabilities'
# What ends a line for some readers of our output, though not in JSON.
_BREAKS = {ord(c): f'\\u{ord(c):04x}' for c in '\x85\u2028\u2029'}


def answer_examples(
  examples: Examples,
  output: str,
  predictor: Predictor,
  rank_labels: bool = False,
) -> int:
  """Answers the examples of tasks, with their targets beside the answers.

  Args:
    examples: what to answer.
    output: file of JSON lines; '-' is standard output.
    predictor: what answers.
    rank_labels: answer with the likeliest label word of the task, and write
      the probability of each.

  Returns:
    How many answers were written.

  Raises:
    InputError: if something given is wrong.
  """
  from mpt_jax import data

  answers: Iterator[dict[str, Any]] = data.predict(
    examples,
    predictor.prompt_length,
    predictor.task_names,
    predictor.predict_fn,
    predictor.batch_size,
    score_fn=predictor.score_fn if rank_labels else None,
  )
  if rank_labels:
    answers = (line | _best(line.pop('scores')) for line in answers)
  if jax.process_count() == 1:
    return _write(answers, output)
  # Every process decodes its part and knows all answers; one writes.
  known = list(answers)
  multihost.on_first(lambda: _write(known, output))
  return len(known)


def answer_lines(
  input: str,
  output: str,
  backbone: BackboneSource | str,
  asking: 'Asking',
  batch_size: int = 32,
  decoding: Decoding = Decoding(),
) -> int:
  """Answers lines of text or rows of a file, as they come.

  Args:
    input: the file, see `mpt_jax.infer`; '-' is standard input.
    output: file of JSON lines; '-' is standard output.
    backbone: where the backbone is read, or no more than its path.
    asking: what makes a question of a line.
    batch_size: lines that are answered together.
    decoding: how answers are found.

  Returns:
    How many answers were written.

  Raises:
    InputError: if something given is wrong; names the line if it is one.
  """
  check_least(1, batch_size=batch_size)
  if not isinstance(backbone, BackboneSource):
    backbone = BackboneSource(backbone)
  masks = fills_masks(backbone.trained)
  asking = dataclasses.replace(asking, masks=masks)
  _check_lines(input, asking)
  model = pretrained.PromptedT5.from_pretrained(
    backbone.trained, asking.bundle, backbone.config, backbone.vocabulary
  )
  answer = functools.partial(
    _answer, model, batch_size, None if asking.rank else decoding
  )
  # What is sampled must not depend on how fast lines come.
  eager = not decoding.temperature
  told = _Told()
  with _open_input(input) as stream:
    ready = getattr(stream, 'ready', None) if eager else None
    questions = _questions(_rows(stream, input, told), asking, told)
    answers = _answers(questions, answer, batch_size, ready)
    return _write(answers, output, told)


class _Told:
  """What a user should know of the lines: counted, with the first place."""

  EMPTY = 'empty, answered with null'
  NO_INPUT = 'of empty inputs, answered all the same'
  NO_OBJECT = 'JSON but no object, taken as plain text with all its marks'
  RETURN = 'with a carriage return inside, taken as text'
  QUOTED = 'with a cell in quotation marks, which are text in a .tsv'
  INDEX = "with an 'index' of its own, passed on in place of ours"
  JSON, PLAIN = 'JSON', 'plain text'

  def __init__(self):
    self._counts: collections.Counter[str] = collections.Counter()
    self._first: dict[str, str] = {}

  def note(self, kind: str, where: str) -> None:
    """Counts a line."""
    self._counts[kind] += 1
    self._first.setdefault(kind, where)

  def say(self) -> None:
    """Writes a line of the log for each kind that a user may not expect."""
    for kind, count in self._counts.items():
      mixed = self._counts[self.JSON] and self._counts[self.PLAIN]
      if mixed or kind not in (self.JSON, self.PLAIN):
        log.info('lines: %d %s (first: %s)', count, kind, self._first[kind])


@dataclasses.dataclass(frozen=True)
class Asking:
  """What makes a question of a row.

  Attributes:
    bundle: the prompts; None is none.
    task: whose prompt, where rows don't say.
    rank: whether label words are ranked.
    masks: whether an encoder that fills in masks is asked.
  """

  bundle: PromptBundle | None = None
  task: str | None = None
  rank: bool = False
  masks: bool = False

  @classmethod
  def create(
    cls, prompts: str | None, task: str | None, rank: bool
  ) -> 'Asking':
    """Loads the prompts and checks the rest against them."""
    if prompts is None:
      if task is not None or rank:
        given = 'RANK_LABELS' if task is None else f'PROMPT_TASK = {task!r}'
        raise InputError(f'{given} is given, but there are no PROMPTS')
      return cls()
    bundle = load_prompts(prompts)
    if task is not None:
      bundle.row(task)
    return cls(bundle, task, rank)

  def question(
    self, row: str | Mapping[str, Any] | None, index: int
  ) -> dict[str, Any]:
    """Returns the row with its `index`, the text `inputs` and perhaps `task`.

    Args:
      row: a plain text, a row, or None for an empty line, whose prediction is
        known.
      index: the line's number from 0.

    Raises:
      InputError: if the row lacks something, or has what we write.
    """
    default = {} if self.task is None else {'task': self.task}
    if row is None:
      return {'index': index, **default, 'inputs': '', _PREDICTION: None}
    plain = isinstance(row, str)
    if isinstance(row, str):
      row = {'inputs': row}
    for key in ('inputs', 'task'):
      if not isinstance(row.get(key, ''), str):
        raise InputError(f'{key!r} is {row[key]!r}, expected text')
    for key in (_PREDICTION, *([_PROBABILITIES] if self.rank else [])):
      if key in row:
        raise InputError(f'the key {key!r} is for the answer: rename it')
    line = {'index': index, **default, **row}
    if not plain:
      line['inputs'] = self._text(row, line.get('task'))
    if self.bundle is not None:
      self.bundle.row(line.get('task'))
      if self.rank:
        self.bundle.answers(line.get('task'))
    try:
      # What cannot be written as an answer must not be computed.
      json.dumps(line, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as e:
      raise InputError(f'no valid text or number: {e}') from e
    return line

  def _text(self, row: Mapping[str, Any], task: str | None) -> str:
    """The text of a row: its `inputs`, or its fields in the template."""
    known = None
    if self.bundle is not None:
      self.bundle.row(task)
      names = self.bundle.task_names
      # Tasks of one prompt have their own templates all the same.
      only = names[0] if len(names) == 1 else ''
      known = self.bundle.texts.get(only if task is None else task)
    fields = known.fields if known is not None else ()
    if 'inputs' in row and 'inputs' not in fields:
      return row['inputs']
    if known is not None and known.has_any(row):
      return known.fill(row, self.masks)
    hint = '; no prompts tell how else the text is written'
    if fields:
      hint = f', nor any of {", ".join(fields)}, of which the text is written'
    raise InputError(f"no 'inputs'; there is {sorted(row)}{hint}")


def _check_lines(path: str, asking: Asking) -> None:
  """Reads a file once before anything is loaded: a broken line is told now."""
  if path == STANDARD or (os.path.exists(path) and not os.path.isfile(path)):
    return  # What comes through a pipe comes once.
  told = _Told()
  with _open_input(path) as stream:
    for _ in _questions(_rows(stream, path, told), asking, told):
      pass


@contextlib.contextmanager
def _open_input(path: str) -> Iterator[Any]:
  if path == STANDARD:
    try:
      stream: Any = lines_lib.Stream(sys.stdin.fileno())
    except OSError:
      stream = sys.stdin  # It is no file, but has lines.
    yield stream
    return
  if path.endswith(lines_lib.SUFFIXES):
    yield None  # Its reader opens it: CSV is not made of lines.
    return
  try:
    file = open(path, 'rb', buffering=0)  # noqa: SIM115
  except OSError as e:
    raise InputError(f'INPUT {path} cannot be read: {e.strerror}') from e
  with file:
    yield lines_lib.Stream(file.fileno())


def _rows(
  stream: Any, name: str, told: _Told
) -> Iterator[tuple[str, str | Mapping[str, Any] | None]]:
  """Yields ('file:line', row), a plain text, or None for an empty line."""
  if stream is None:
    for where, cells in lines_lib.read_rows(name):
      if lines_lib.is_tsv(name) and any(
        map(_is_quoted, (cells or {}).values())
      ):
        told.note(told.QUOTED, where)
      yield where, cells
    return
  for where, text in lines_lib.read_lines(stream, name):
    if '\r' in text:
      told.note(told.RETURN, where)
    if not text.strip():
      yield where, None
      continue
    row = _parse(text, where)
    told.note(told.PLAIN if isinstance(row, str) else told.JSON, where)
    if isinstance(row, str) and _is_json(row):
      told.note(told.NO_OBJECT, where)
    yield where, row


def _parse(text: str, where: str) -> str | dict[str, Any]:
  """Returns a JSON object, or the text if it is none."""
  begins = text.lstrip().startswith('{')
  if not begins:
    return text
  try:
    return lines_lib.parse_json(text, where)
  except InputError as e:
    if not text.startswith('{'):
      return text
    raise InputError(
      f'{e}; a plain text that begins with {{ is written {{"inputs": "{{…"}}'
    ) from e


def _is_quoted(cell: str) -> bool:
  return len(cell) > 1 and cell[0] == cell[-1] == '"'


def _is_json(text: str) -> bool:
  """Whether a plain text is a list or a string of JSON."""
  if not text.lstrip().startswith(('[', '"')):
    return False
  try:
    json.loads(text)
  except (ValueError, RecursionError):
    return False
  return True


def _questions(
  rows: Iterable[tuple[str, str | Mapping[str, Any] | None]],
  asking: Asking,
  told: _Told,
) -> Iterator[dict[str, Any]]:
  """Yields what `Asking.question` makes of each row."""
  for index, (where, row) in enumerate(rows):
    try:
      line = asking.question(row, index)
    except InputError as e:
      raise InputError(f'{where}: {e}') from e
    if row is None:
      told.note(told.EMPTY, where)
    elif not line['inputs'].strip():
      told.note(told.NO_INPUT, where)
    own = line['index']
    if type(own) is not int or own != index:
      told.note(told.INDEX, where)
    yield line


def _read(stream: Any, name: str, task: str | None) -> Iterator[dict[str, Any]]:
  """Yields lines as dicts with `index`, `inputs` and perhaps `task`."""
  told = _Told()
  yield from _questions(_rows(stream, name, told), Asking(None, task), told)


def _take(
  lines: Iterator[dict[str, Any]],
  size: int,
  ready: Callable[[], bool] | None,
) -> tuple[list[dict[str, Any]], InputError | None]:
  """Takes lines with up to `size` questions, but waits for the first alone.

  Returns:
    (lines, what is wrong with the next one): those before it have answers.
  """
  some: list[dict[str, Any]] = []
  asked = 0
  try:
    for line in lines:
      some.append(line)
      asked += _PREDICTION not in line
      if asked == size or (ready is not None and not ready()):
        break
  except InputError as e:
    return some, e
  return some, None


def _answers(
  lines: Iterator[dict[str, Any]],
  answer: Callable[[list[dict[str, Any]], int], list[dict[str, Any]]],
  batch_size: int,
  ready: Callable[[], bool] | None,
) -> Iterator[dict[str, Any]]:
  """Yields the lines with their answers, batch by batch."""
  for number in itertools.count():
    some, error = _take(lines, batch_size, ready)
    asked = [line for line in some if _PREDICTION not in line]
    found = iter(answer(asked, number) if asked else ())
    for line in some:
      known = line if _PREDICTION in line else {**line, **next(found)}
      if isinstance(known['inputs'], Marked):
        known = {**known, 'inputs': shown(known['inputs'])}
      yield known
    if error is not None:
      raise error
    if not some:
      return


def _answer(
  model: pretrained.PromptedT5,
  batch_size: int,
  decoding: Decoding | None,
  some: list[dict[str, Any]],
  number: int,
) -> list[dict[str, Any]]:
  """Answers a batch of lines: by decoding, or by ranking its labels."""
  texts = [line['inputs'] for line in some]
  # One prompt needs no name, and without prompts there is none.
  tasks = [line.get('task') for line in some]
  named = tasks if any(task is not None for task in tasks) else None
  if decoding is None:
    ranked = model.score(texts, None, named, batch_size=batch_size)
    return [_best(scores) for scores in ranked]
  decoding = dataclasses.replace(decoding, seed=decoding.seed + number)
  found = model.answer(texts, named, decoding, batch_size)
  return [{_PREDICTION: text} for text in found]


def _best(scores: Mapping[str, float]) -> dict[str, Any]:
  """Returns the likeliest label and each one's share of the probability."""
  values = np.array(list(scores.values()), np.float64)
  shares = np.exp(values - values.max())
  shares /= shares.sum()
  order = np.argsort(-shares, kind='stable')
  words = list(scores)
  return {
    _PREDICTION: words[order[0]],
    _PROBABILITIES: {words[i]: float(shares[i]) for i in order},
  }


def _write(
  answers: Iterable[Mapping[str, Any]], output: str, told: _Told | None = None
) -> int:
  """Writes JSON lines as they come; a file appears when it is whole."""
  count = 0
  with _open_output(output) as file:
    progress = tqdm.tqdm(
      answers, desc='answers', unit='ex', leave=False, disable=None
    )
    for line in progress:
      text = json.dumps(line, ensure_ascii=False).translate(_BREAKS)
      try:
        file.write(text + '\n')
        file.flush()
      except BrokenPipeError:
        raise  # The reader has had enough, see `types.quiet_pipe`.
      except OSError as e:
        raise InputError(
          f'OUTPUT {output} cannot be written: {e.strerror}'
        ) from e
      count += 1
  log.info('wrote %d answers to %s', count, output)
  if told is not None:
    told.say()
  return count


def check_output(output: str, input: str | None) -> None:
  """Refuses what would be lost at the end, before anything is loaded."""
  if output == STANDARD:
    return
  if os.path.isdir(output):
    raise InputError(f'OUTPUT {output} is a folder: name a .jsonl file')
  if input not in (None, STANDARD) and os.path.exists(output):
    assert input is not None
    if os.path.exists(input) and os.path.samefile(input, output):
      raise InputError(f'OUTPUT {output} is INPUT itself: name another file')


@contextlib.contextmanager
def _open_output(path: str) -> Iterator[TextIO]:
  if path == STANDARD:
    if isinstance(sys.stdout, io.TextIOWrapper):
      sys.stdout.reconfigure(encoding='utf-8')
    yield sys.stdout
    return
  path = os.path.realpath(path)
  # A device or a pipe is written to, and not replaced.
  special = os.path.exists(path) and not os.path.isfile(path)
  temporary = path if special else f'{path}.{os.getpid()}.tmp'
  try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    file = open(temporary, 'w', encoding='utf-8')  # noqa: SIM115
  except OSError as e:
    raise InputError(f'OUTPUT {path} cannot be written: {e.strerror}') from e
  try:
    with file:
      yield file
    if not special:
      os.replace(temporary, path)
  finally:
    if not special:
      with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
