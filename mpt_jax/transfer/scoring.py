"""What prompts score on tasks, whether they were learned there or not.

All prompts of a length share a compiled step: they are its arguments, and the
inputs of a task are asked with several of them in one call. What is known is
kept by what was asked of whom, so that it is asked once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
import logging
import math
import os
import time
from typing import Any, ClassVar

import jax
import numpy as np

import mpt_jax
from mpt_jax import backbones, methods, models
from mpt_jax.checkpoints import files
from mpt_jax.checkpoints.backbone import Backbone
from mpt_jax.engine import (
  compilation,
  hostmemory,
  metrics,
  multihost,
  partitioning,
  predictor,
  selection,
  trainer,
)
from mpt_jax.engine.settings import Decoding, Devices, Examples
from mpt_jax.transfer.sources import SourcePrompt
from mpt_jax.types import (
  Array,
  InputError,
  check_least,
  nearest,
  require_local,
)

log = logging.getLogger(__name__)

LABELS, GENERATE = 'labels', 'generate'
READOUTS = (LABELS, GENERATE)
# What the rows of a call may need beside the weights, where the device does
# not say what it has. More rows at once make a CPU slower.
_ROOM = 128 << 20
# Of what a device has left.
_SHARE = 0.5
# Seconds between two lines on what is left.
_SECONDS = 10.0
# Label words are padded to a multiple of so many tokens.
_WORD_STEP = 4
# Of the files in the cache; another one is a miss.
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Cell:
  """What a prompt scores on a task.

  Attributes:
    source: the name of the prompt.
    task: the target.
    score: its main metric; None where that is not defined.
    metric: the name of that.
    metrics: all metrics, None where one is not defined.
    examples: how many were scored.
    floor: what the commonest class as the only answer gets by `metric`; None
      where answers are no classes, or that is not known.
    collapsed: whether the score says next to nothing, since the answers are
      one class, or most are none.
    why: of that, in words; '' if it has not.
    interval: bounds of the middle 95 % of the bootstrapped score.
    readout: 'labels' or 'generate', as it was found.
    better: 'more', or 'less' of an error.
    prompt: digest of the prompt.
    data: digest of the examples.
  """

  source: str
  task: str
  score: float | None
  metric: str
  metrics: Mapping[str, float | None]
  examples: int
  floor: float | None
  collapsed: bool
  why: str
  interval: tuple[float, float] | None
  readout: str
  better: str
  prompt: str
  data: str


@dataclasses.dataclass(frozen=True)
class _Table(methods.PromptMethod):
  """Whole prompts [K, P, D], none of which has to do with another."""

  arrays: ClassVar[tuple[str, ...]] = ('table',)

  def prompt_table(self, arrays: Mapping[str, Any], num_tasks: int) -> Array:
    """Returns the prompts."""
    del num_tasks
    return arrays['table']


class Scorer:
  """Scores prompts of one backbone on tasks.

  Two readouts. 'labels' takes the likeliest of a task's label words, by the
  log probability of the whole word with its end mark. (Su et al., "On
  Transferability of Prompt Tuning for Natural Language Processing", NAACL
  2022, compare the words' first tokens alone, which two words may share.)
  Tasks without label words are generated, and their cells say so. 'generate'
  writes freely, as `mpt_jax.eval` does, and has its scores.
  """

  def __init__(
    self,
    backbone: Backbone,
    examples: Examples,
    *,
    batch_size: int = 128,
    readout: str = LABELS,
    devices: Devices = Devices(),
    decoding: Decoding = Decoding(),
    cache: str | None = None,
    prompts_per_call: int | None = None,
  ):
    """Puts the backbone on its devices.

    Args:
      backbone: a loaded one.
      examples: which examples of the tasks that `score` is given, and how they
        are read; the names in it are not looked at.
      batch_size: inputs that are asked at once, each with several prompts.
      readout: see the class.
      devices: devices and memory.
      decoding: how answers are searched that are generated.
      cache: folder of what is known, a file for each cell; None keeps nothing.
      prompts_per_call: with how many prompts; None is as many as there is
        memory for. Scores do not depend on it.

    Raises:
      InputError: if something given is wrong.
    """
    if readout not in READOUTS:
      raise InputError(
        f'readout is {readout!r}, expected one of {", ".join(READOUTS)}'
        f'{nearest(str(readout), READOUTS)}'
      )
    check_least(1, batch_size=batch_size)
    if prompts_per_call is not None:
      check_least(1, prompts_per_call=prompts_per_call)
    predictor.check_serving(decoding, None, True)
    compilation.use_cache()
    loaded = predictor.load_backbone(backbone)
    config = devices.configure(loaded.config)
    self._backbone = dataclasses.replace(loaded, config=config)
    self._mesh = partitioning.make_mesh(devices.num_partitions)
    partitioning.check_batch_size(batch_size, self._mesh)
    self._params = partitioning.place_backbone(
      loaded.params,
      self._mesh,
      dtype=config.matrix_dtype,
      scan_layers=devices.scan_layers,
      shard_backbone=devices.shard_backbone,
    )
    hostmemory.keep()
    self._generates = backbones.family(config).generates
    self._examples, self._size = examples, batch_size
    self._readout, self._decoding = readout, decoding
    self._cache = None if cache is None else require_local(cache)
    self._at_once = prompts_per_call

  def score(
    self, prompts: Sequence[SourcePrompt], tasks: Sequence[str]
  ) -> list[Cell]:
    """Scores every prompt on every task.

    Args:
      prompts: of the backbone, of any lengths.
      tasks: names of tasks.

    Returns:
      The cells of the first prompt on all tasks, then those of the next.

    Raises:
      InputError: if a prompt is of another backbone, or a task cannot be
        scored.
    """
    if not prompts or not tasks:
      return []
    for prompt in prompts:
      check_backbone(prompt, self._backbone)
    from mpt_jax import data

    keys: dict[tuple[str, str], dict[str, Any]] = {}
    asked: list[tuple[Any, list[SourcePrompt]]] = []
    for length in dict.fromkeys(len(prompt.array) for prompt in prompts):
      # Equal prompts are asked once.
      group = {p.digest: p for p in prompts if len(p.array) == length}
      examples = dataclasses.replace(
        self._examples, mixture_or_task_name=list(tasks)
      )
      for questions in data.questions(examples, length, self._size):
        asked.append((questions, list(group.values())))
        for digest in group:
          keys[digest, questions.task] = self._key(digest, questions)
    known = self._known(keys)
    calls = [
      call
      for questions, group in asked
      for call in self._calls(
        questions, [p for p in group if (p.digest, questions.task) not in known]
      )
    ]
    if known:
      log.info('%d of %d cells are known', len(known), len(keys))
    progress = _Progress(calls)
    for call in calls:
      for prompt, cell in zip(call.prompts, self._answer(call), strict=True):
        place = prompt.digest, call.questions.task
        known[place] = cell
        if self._cache is not None and multihost.is_first():
          _write(self._cache, keys[place], cell)
      progress.finish(call)
    return [
      dataclasses.replace(known[prompt.digest, task], source=prompt.name)
      for prompt in prompts
      for task in tasks
    ]

  def readout_of(self, questions: Any) -> str:
    """How the answers of a task are found."""
    return LABELS if self._readout == LABELS and questions.words else GENERATE

  # ---------------------------------------------------------------------------

  def _key(self, prompt: str, questions: Any) -> dict[str, Any]:
    """All that a cell depends on."""
    config, readout = self._backbone.config, self.readout_of(questions)
    generated = readout == GENERATE
    return {
      'version': _VERSION,
      'mpt_jax': mpt_jax.__version__,
      'backbone': self._backbone.fingerprint,
      'vocabulary': predictor.vocabulary_digest(self._backbone),
      'types': [config.dtype, config.precision],
      'prompt': prompt,
      'task': questions.task,
      'split': self._examples.split,
      'data': questions.digest,
      'metrics': list(questions.metrics),
      'readout': readout,
      'words': None if generated else [list(ids) for ids in questions.words],
      'length': self._length if generated else None,
      'decoding': self._decoding.search if generated else None,
    }

  @property
  def _length(self) -> int:
    """T, the longest answer that is generated."""
    return self._examples.task_feature_lengths['targets']

  def _known(
    self, keys: Mapping[tuple[str, str], Mapping[str, Any]]
  ) -> dict[tuple[str, str], Cell]:
    """The cells that are in the cache."""
    folder = self._cache
    if folder is None:
      return {}
    found = multihost.on_first(
      lambda: [_read(folder, key) for key in keys.values()]
    )
    return {
      place: _cell(content)
      for place, content in zip(keys, found, strict=True)
      if content is not None
    }

  def _calls(
    self, questions: Any, prompts: Sequence[SourcePrompt]
  ) -> Iterator['_Call']:
    """Divides prompts evenly among as few calls as there is memory for."""
    if not prompts:
      return
    most = self._at_once or self._fitting(questions, len(prompts[0].array))
    count = -(-len(prompts) // min(most, len(prompts)))
    size = -(-len(prompts) // count)
    for start in range(0, len(prompts), size):
      yield _Call(questions, prompts[start : start + size], size)

  def _fitting(self, questions: Any, prompt_length: int) -> int:
    """How many prompts one call may have: an estimate."""
    config, lengths = self._backbone.config, self._examples.task_feature_lengths
    source, target = lengths['inputs'], self._length
    if self.readout_of(questions) == LABELS:
      target = int(np.size(_padded(questions.words)))
    joined = config.num_heads * config.head_dim
    wide = len(config.mlp_activations) * config.mlp_dim
    of_logits = config.vocab_size if self._generates else config.emb_dim
    # One layer of the encoder, the decoder's cache, the logits.
    numbers = (
      source * (4 * config.emb_dim + 4 * joined + 2 * wide)
      + config.num_heads * source * source
      + 2 * config.num_decoder_layers * (source + target) * joined
      + 2 * target * of_logits
    )
    rows = self._room() * self._mesh.shape['data'] // (4 * numbers)
    return max(1, rows // self._size)

  def _room(self) -> int:
    """Bytes for the rows of a call, of each device."""
    device = self._mesh.local_devices[0]
    stats = device.memory_stats() or {}
    if 'bytes_limit' not in stats:
      return _ROOM
    return int(_SHARE * (stats['bytes_limit'] - stats.get('bytes_in_use', 0)))

  def _answer(self, call: '_Call') -> list[Cell]:
    """Asks the prompts of a call."""
    questions = call.questions
    readout = self.readout_of(questions)
    table = np.stack([prompt.array for prompt in call.prompts])
    more = call.size - len(table)
    table = np.concatenate([table, np.repeat(table[-1:], more, axis=0)])
    params = {
      **self._params,
      methods.PROMPTS: partitioning.shard_params({'table': table}, self._mesh),
    }
    ids = self._backbone.special_ids.of_model()
    config = self._backbone.config
    model = models.class_of(config)(config, _Table(table.shape[1]), **ids)
    generate, compare = _steps(model, self._decoding)

    def answer(batch: Mapping[str, np.ndarray]) -> np.ndarray:
      rows = trainer.put_batch(
        _spread(batch, call.size), self._mesh, whole=True
      )
      if readout == GENERATE:
        found = partitioning.to_host(generate(params, rows))
        return found.reshape(-1, call.size, found.shape[-1])
      words = _padded(questions.words)
      found = partitioning.to_host(compare(params, rows, words))
      found = found[:, : len(questions.words)]
      if not np.isfinite(found).all():
        raise InputError(
          f'task {questions.task!r}: log probabilities that are not finite, by'
          f' one of the prompts {", ".join(p.name for p in call.prompts)}'
        )
      if not self._generates:
        # A class answers with its first word, whatever others it has.
        ends = np.full_like(words[:, :1], ids['eos_id'])
        words = np.concatenate([words[:, :1], ends], axis=1)
      return words[found.argmax(axis=-1)].reshape(-1, call.size, words.shape[1])

    each = questions.answer(answer)[: len(call.prompts)]
    return [
      _judged(prompt, questions, scores, readout)
      for prompt, scores in zip(call.prompts, each, strict=True)
    ]


@functools.lru_cache(maxsize=8)
def _steps(
  model: models.PromptedModel, decoding: Decoding
) -> tuple[Callable[..., Array], Callable[..., Array]]:
  """The compiled steps of all scorers: one generates, one compares words."""
  generate = trainer.make_predict_step(model, **decoding.search)
  return generate, jax.jit(model.score_words)


@dataclasses.dataclass(frozen=True)
class _Call:
  """Some prompts to ask on one task.

  Attributes:
    questions: of the task, `mpt_jax.data.Questions`.
    prompts: the prompts.
    size: how many the step takes; the others are copies of the last.
  """

  questions: Any
  prompts: Sequence[SourcePrompt]
  size: int

  @property
  def cost(self) -> int:
    """The work, in input positions."""
    return self.size * self.questions.positions


class _Progress:
  """A line on known cells and the time left, every ten seconds."""

  def __init__(self, calls: Sequence[_Call]):
    self._left = sum(call.cost for call in calls)
    self._total = sum(len(call.prompts) for call in calls)
    self._done = self._worked = 0
    self._begin = self._last = time.monotonic()

  def finish(self, call: _Call) -> None:
    """Counts the cells of a call as done."""
    self._done += len(call.prompts)
    self._worked += call.cost
    self._left -= call.cost
    now = time.monotonic()
    if now - self._last < _SECONDS and self._left:
      return
    self._last = now
    seconds = (now - self._begin) * self._left / self._worked
    log.info(
      '%d / %d cells  ETA %s  %s',
      self._done,
      self._total,
      trainer.format_seconds(seconds),
      call.questions.task,
    )


def check_backbone(prompt: SourcePrompt, backbone: Backbone) -> None:
  """Checks that a prompt is of a backbone, as far as it says of which it is.

  Args:
    prompt: the prompt.
    backbone: a loaded one.

  Raises:
    InputError: if the width, the fingerprint or the vocabulary is another.
  """
  width = prompt.array.shape[1]
  of = f'the prompt {prompt.name!r}'
  trained = prompt.backbone_name or 'an unnamed backbone'
  if width != backbone.config.emb_dim:
    raise InputError(
      f'{of} is {width} wide (of {trained}), but the backbone {backbone.name}'
      f' has emb_dim {backbone.config.emb_dim}'
    )
  if prompt.backbone_fingerprint not in ('', backbone.fingerprint):
    raise InputError(
      f'{of} is of {trained} ({prompt.backbone_fingerprint}), but the backbone'
      f' {backbone.name} is another one ({backbone.fingerprint}):'
      ' mpt_jax.transfer project moves prompts from one to the other'
    )
  vocabulary = backbone.vocabulary
  if vocabulary is not None and prompt.vocabulary_digest not in (
    '',
    vocabulary.digest,
    vocabulary.file_digest,
  ):
    raise InputError(
      f'{of} was trained with another vocabulary ({prompt.vocabulary_digest})'
      f' than {vocabulary.path} ({vocabulary.digest})'
    )


def _padded(words: Sequence[Sequence[int]]) -> np.ndarray:
  """Words [C, T] int32, with rows of zeros up to one of a few sizes.

  Each size is compiled for, whatever the task.
  """
  count = 1 << (len(words) - 1).bit_length()
  longest = -(-max(map(len, words)) // _WORD_STEP) * _WORD_STEP
  padded = np.zeros((count, longest), np.int32)
  for row, ids in enumerate(words):
    padded[row, : len(ids)] = ids
  return padded


def _spread(batch: Mapping[str, np.ndarray], count: int) -> dict[str, Any]:
  """Each row of a batch `count` times, once for every row of the table."""
  rows = {
    name: np.repeat(array, count, axis=0) for name, array in batch.items()
  }
  tokens = rows['encoder_input_tokens']
  prompt = np.tile(np.arange(count, dtype=np.int32), len(tokens) // count)
  rows['encoder_task_ids'] = np.where(tokens > 0, prompt[:, None], 0)
  return rows


def _judged(
  prompt: SourcePrompt, questions: Any, scores: Any, readout: str
) -> Cell:
  """A cell of a task's scores, with what must stand beside them."""
  task = questions.task
  values, said = scores[task], scores.said[task]
  main = selection.main_metric(values, said)
  judged = scores.judge(task)
  interval = judged.intervals.get(main)
  if interval is None and task in scores.answers:
    # By calls of the metric function, of the main one alone.
    answers = scores.answers[task]
    answers = dataclasses.replace(
      answers, functions={main: answers.functions[main]}
    )
    judged = answers.judge(again=True)
    interval = judged.intervals.get(main)
  facts = judged.metrics.get(main)
  floors = judged.floors.get('majority_scores', {})
  return Cell(
    source=prompt.name,
    task=task,
    score=_finite(values[main]),
    metric=main,
    metrics={name: _finite(value) for name, value in values.items()},
    examples=judged.examples,
    floor=_finite(floors.get(main)),
    collapsed=judged.collapsed is not None,
    why=judged.collapsed or '',
    interval=interval,
    readout=readout,
    better=metrics.MORE if facts is None else facts.better,
    prompt=prompt.digest,
    data=questions.digest,
  )


def _finite(value: float | None) -> float | None:
  return float(value) if value is not None and math.isfinite(value) else None


# -----------------------------------------------------------------------------
# The cache: a file for each cell, named by the digest of its key.


def _path(folder: str, key: Mapping[str, Any]) -> str:
  text = json.dumps(key, sort_keys=True)
  return os.path.join(
    folder, f'{hashlib.sha256(text.encode()).hexdigest()}.json'
  )


def _write(folder: str, key: Mapping[str, Any], cell: Cell) -> None:
  content = {'key': key, 'cell': dataclasses.asdict(cell)}
  files.write_file(_path(folder, key), files.json_bytes(content))


def _read(folder: str, key: Mapping[str, Any]) -> dict[str, Any] | None:
  """What is known of a cell; None if that is nothing, or damaged."""
  path = _path(folder, key)
  if not os.path.lexists(path):
    return None
  try:
    content = files.read_json(path)
    if content.get('key') != json.loads(json.dumps(key)):
      raise InputError('it is of another cell')
    cell: Any = content.get('cell')
    _cell(cell)
  except (InputError, TypeError, ValueError) as e:
    log.warning(
      '%s is damaged, its cell is found anew: %s', path, files.first_line(e)
    )
    return None
  return cell


def _cell(content: Any) -> Cell:
  """A cell of what JSON holds.

  Raises:
    InputError, TypeError, ValueError: if it is none.
  """
  cell = Cell(**content)
  interval = cell.interval
  if interval is not None:
    low, high = interval
    interval = float(low), float(high)
  numbers = [cell.score, cell.floor, *cell.metrics.values()]
  texts = [
    *(cell.source, cell.task, cell.metric, cell.why, cell.readout),
    *(cell.better, cell.prompt, cell.data),
  ]
  if (
    not all(x is None or type(x) in (int, float) for x in numbers)
    or not all(isinstance(text, str) for text in texts)
    or type(cell.examples) is not int
    or type(cell.collapsed) is not bool
  ):
    raise InputError(f'a cell of {cell.source!r} on {cell.task!r} is none')
  return dataclasses.replace(cell, interval=interval)
