r"""Answers a task, or lines of text, one JSON line per answer.

  python -m mpt_jax.infer --gin_file=gin_configs/runs/infer.gin \
    --tfds_data_dir=DATA --gin.INITIAL_CHECKPOINT_PATH="'t5-base'" \
    --gin.PROMPTS="'runs/target/rte/prompts'" \
    --gin.MIXTURE_OR_TASK_NAME="'rte'" --gin.OUTPUT="'rte.jsonl'"

  cat texts.txt | python -m mpt_jax.infer \
    --gin_file=gin_configs/runs/answer.gin \
    --gin.INITIAL_CHECKPOINT_PATH="'t5-base'" \
    --gin.PROMPTS="'runs/target/rte/prompts'" --gin.OUTPUT="'-'"

The first form writes task, index, inputs, targets and prediction. The second
reads plain lines, or JSON lines with `inputs` and perhaps a `task`, as they
come, and needs neither tasks nor TensorFlow.
"""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import itertools
import json
import logging
import os
import sys
from typing import Any, TextIO

import jax
import tqdm

from mpt_jax import cli, multihost, pretrained, t5
from mpt_jax.checkpoints.backbone import Backbone
from mpt_jax.runs import make_predictor
from mpt_jax.types import (
  InputError,
  Lengths,
  Natural,
  Positive,
  Rate,
  local_path,
  require_local,
)

log = logging.getLogger(__name__)

# Stands for standard input or output in place of a file.
STANDARD = '-'
_LONGEST_LINE = 1 << 20


def infer(
  *,
  output: str,
  backbone: str | Backbone,
  mixture_or_task_name: str | None = None,
  input: str | None = None,
  task_feature_lengths: Lengths | None = None,
  prompts: str | None = None,
  prompt_task: str | None = None,
  split: str = 'test',
  batch_size: Positive = 128,
  num_examples: Positive | None = None,
  module: str | None = 'tasks',
  backbone_config: t5.T5Config | str | None = None,
  vocabulary: str | None = None,
  num_beams: Positive = 1,
  num_partitions: Positive = 1,
  max_decode_length: Positive = 64,
  temperature: Rate = 0.0,
  seed: Natural = 0,
  dtype: str | None = None,
  precision: str = 'float32',
  scan_layers: bool = False,
  shard_backbone: bool = False,
) -> int:
  """Answers a task or mixture, or lines of text, and writes the answers.

  Args:
    output: file to write, JSON lines; '-' is standard output.
    backbone: path of an HF folder or T5X checkpoint, or a loaded backbone.
    mixture_or_task_name: what to answer; None for lines of text.
    input: file of lines, each a plain text, or a JSON object with `inputs`
      and perhaps `task` (other keys are passed on); '-' is standard input.
    task_feature_lengths: {'inputs': S with prompt slots, 'targets': T}, of a
      task.
    prompts: path of a prompt bundle, PEFT folder or `.npy`; None is none.
    prompt_task: answer with this task's prompt whatever the example's task,
      or, of lines, those that don't say.
    split: split of the task to read.
    batch_size: rows per batch.
    num_examples: examples per task; None is all.
    module: module that registers the tasks.
    backbone_config: sizes or their name, where the checkpoint has none.
    vocabulary: SentencePiece file; None is the backbone's own.
    num_beams: 1 is greedy.
    num_partitions: size of the mesh's `model` axis, for a task.
    max_decode_length: longest answer to a line, in tokens.
    temperature: above 0, answers to lines are sampled.
    seed: fixes what is sampled.
    dtype: type of activations and backbone matrices; None is the model's own.
    precision: of matrix products, see `t5.T5Config`.
    scan_layers: see `train.train`.
    shard_backbone: split the backbone over the `data` axis too.

  Returns:
    How many answers were written.

  Raises:
    InputError: if something given is wrong; names the line if it is one.
  """
  if (mixture_or_task_name is None) == (input is None):
    raise InputError('give MIXTURE_OR_TASK_NAME or INPUT, one of the two')
  if input is not None:
    if not isinstance(backbone, str):
      raise InputError('lines of text are answered from a backbone on disk')
    model = pretrained.PromptedT5.from_pretrained(
      backbone,
      prompts,
      backbone_config,
      vocabulary,
    )
    if prompt_task is not None and model.bundle is not None:
      model.bundle.row(prompt_task)
    with _open_input(input) as stream:
      lines = _read(stream, input, prompt_task)
      return _write(
        _answers(
          model,
          lines,
          batch_size,
          seed,
          max_decode_length=max_decode_length,
          num_beams=num_beams,
          temperature=temperature,
        ),
        output,
      )
  if task_feature_lengths is None:
    raise InputError('a task needs TASK_FEATURE_LENGTHS')
  assert mixture_or_task_name is not None
  predictor = make_predictor(
    backbone,
    prompts,
    batch_size=batch_size,
    prompt_task=prompt_task,
    backbone_config=backbone_config,
    vocabulary=vocabulary,
    num_beams=num_beams,
    num_partitions=num_partitions,
    dtype=dtype,
    precision=precision,
    scan_layers=scan_layers,
    shard_backbone=shard_backbone,
  )
  log.info('reading the tasks (TensorFlow takes a few seconds) …')
  from mpt_jax import data

  answers = data.predict(
    mixture_or_task_name,
    split,
    task_feature_lengths,
    prompt_length=predictor.prompt_length,
    task_names=() if prompt_task else predictor.task_names,
    predict_fn=predictor.predict_fn,
    batch_size=batch_size,
    num_examples=num_examples,
    module=module,
  )
  if jax.process_count() == 1:
    return _write(answers, output)
  # Every process decodes its part and knows all answers; one writes.
  known = list(answers)
  multihost.on_first(lambda: _write(known, output))
  return len(known)


def _answers(
  model: pretrained.PromptedT5,
  lines: Iterator[dict[str, Any]],
  batch_size: int,
  seed: int,
  **settings: Any,
) -> Iterator[dict[str, Any]]:
  """Yields the lines with a `prediction` each, batch by batch."""
  for number in itertools.count():
    some = list(itertools.islice(lines, max(1, batch_size)))
    if not some:
      return
    tasks = [line['task'] for line in some if 'task' in line]
    predictions = model.generate(
      [line['inputs'] for line in some],
      # One prompt needs no name.
      tasks if len(tasks) == len(some) else None,
      batch_size=batch_size,
      seed=seed + number,
      **settings,
    )
    for line, prediction in zip(some, predictions, strict=True):
      yield {**line, 'prediction': prediction}


@contextlib.contextmanager
def _open_input(path: str) -> Iterator[TextIO]:
  if path == STANDARD:
    yield sys.stdin
    return
  try:
    file = open(local_path(path), encoding='utf-8')  # noqa: SIM115
  except OSError as e:
    raise InputError(f'INPUT {path} cannot be read: {e.strerror}') from e
  with file:
    yield file


def _read(
  stream: TextIO, name: str, task: str | None
) -> Iterator[dict[str, Any]]:
  """Yields lines as dicts with `index`, `inputs` and perhaps `task`."""
  default = {} if task is None else {'task': task}
  index = 0
  for number in itertools.count(1):
    try:
      line = stream.readline(_LONGEST_LINE + 1)
    except UnicodeDecodeError as e:
      raise InputError(f'INPUT {name} is not UTF-8: {e.reason}') from e
    except OSError as e:
      raise InputError(f'INPUT {name} cannot be read: {e.strerror}') from e
    if not line:
      return
    if len(line) > _LONGEST_LINE:
      # A device or a damaged file need not have a second line.
      raise InputError(
        f'{name}:{number}: the line has more than {_LONGEST_LINE} characters'
      )
    line = line.rstrip('\r\n')
    if not line:
      continue
    where = f'{name}:{number}'
    row = {'index': index, **default, **_parse(line, where)}
    try:
      # What cannot be written as an answer must not be computed.
      json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as e:
      raise InputError(f'{where}: no valid text or number: {e}') from e
    yield row
    index += 1


def _parse(line: str, where: str) -> dict[str, Any]:
  if not line.startswith('{'):
    return {'inputs': line}
  try:
    row = json.loads(line)
  except (ValueError, RecursionError) as e:
    raise InputError(f'{where}: no JSON: {e}') from e
  for key in ('inputs', 'task'):
    if not isinstance(row.get(key, ''), str):
      raise InputError(f'{where}: {key!r} is {row[key]!r}, expected text')
  if 'inputs' not in row:
    raise InputError(f"{where}: no 'inputs'; there is {sorted(row)}")
  return row


def _write(answers: Iterable[Mapping[str, Any]], output: str) -> int:
  """Writes JSON lines as they come; a file appears when it is whole."""
  count = 0
  with _open_output(output) as file:
    progress = tqdm.tqdm(
      answers, desc='answers', unit='ex', leave=False, disable=None
    )
    for line in progress:
      file.write(json.dumps(line, ensure_ascii=False) + '\n')
      file.flush()
      count += 1
  log.info('wrote %d answers to %s', count, output)
  return count


@contextlib.contextmanager
def _open_output(path: str) -> Iterator[TextIO]:
  if path == STANDARD:
    yield sys.stdout
    return
  path = os.path.abspath(require_local(path))
  temporary = f'{path}.{os.getpid()}.tmp'
  try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    file = open(temporary, 'w', encoding='utf-8')  # noqa: SIM115
  except OSError as e:
    raise InputError(f'OUTPUT {path} cannot be written: {e.strerror}') from e
  try:
    with file:
      yield file
    os.replace(temporary, path)
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(temporary)


if __name__ == '__main__':
  cli.main('mpt_jax.infer', 'infer')
