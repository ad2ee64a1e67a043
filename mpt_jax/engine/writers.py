"""What a run writes as it goes: `metrics.jsonl`, and TensorBoard's events."""

from collections.abc import Callable, Mapping
import io
import json
import math
import os
import socket
import time
from typing import Any

from mpt_jax.checkpoints import files
from mpt_jax.engine import metrics, multihost, selection
from mpt_jax.engine.metrics import Metric

METRICS = 'metrics.jsonl'
TENSORBOARD = 'tensorboard'
# Task -> metric -> what it means, as far as somebody says it.
Said = Mapping[str, Mapping[str, Metric]]


def read_metrics(path: str) -> list[dict[str, Any]]:
  """Returns the lines of a metrics file, as far as they are whole.

  Args:
    path: the file; without it there are no lines.
  """
  lines = []
  if files.exists(path):
    file = files.open_to_read(path)
    with io.TextIOWrapper(file, encoding='utf-8') as f:
      for text in f:
        try:
          line = json.loads(text)
        except ValueError:
          continue  # The line that was being written when we were killed.
        if isinstance(line, dict) and isinstance(line.get('step'), int):
          lines.append(line)
  return lines


class JsonlWriter:
  """Appends {'step': …, name: value} lines to a file."""

  def __init__(self, path: str, resume_step: int):
    # Lines after the checkpoint that we resume from will be written again.
    kept = [line for line in read_metrics(path) if line['step'] <= resume_step]
    text = ''.join(json.dumps(line) + '\n' for line in kept)
    files.write_file(path, text.encode())
    self._file = files.open_to_append(path)

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Appends one line and flushes it."""
    line = {'step': step, **{k: float(v) for k, v in scalars.items()}}
    self._file.write(json.dumps(line) + '\n')
    self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


class Writers:
  """Several writers as one."""

  def __init__(self, *writers: Any):
    self._writers = writers

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Passes the scalars on."""
    for writer in self._writers:
      writer.write_scalars(step, scalars)

  def close(self) -> None:
    """Closes all of them."""
    for writer in self._writers:
      writer.close()


_SPEED = ('steps_per_second', 'examples_per_second', 'seconds_left')
_COUNTS = ('examples', 'target_tokens')


def tags(
  scalars: Mapping[str, float], said: Said | None = None, fixed: bool = False
) -> dict[str, float]:
  """Groups a run's metrics as TensorBoard draws them.

  Args:
    scalars: by their names in `metrics.jsonl`.
    said: what the scores mean, for `eval/mean`.
    fixed: whether the learning rates are the same at every step.

  Returns:
    Tag -> value: `train/TERM`, `train/TASK/TERM`, `eval_loss/…` alike,
    `eval/TASK/METRIC`, `eval/mean` of the tasks' main scores where they have
    one unit and direction, `rates/GROUP`, `speed/…` and `data/TASK/…`. What
    is the same at every step is left out.
  """
  found: dict[str, float] = {}
  scores: dict[str, dict[str, float]] = {}
  for name, value in scalars.items():
    kind, _, rest = name.partition('/')
    first, _, second = rest.partition('/')
    if kind == 'eval':
      scores.setdefault(first, {})[second] = value
      tag = name
    elif kind == 'floor':
      # Which class is commonest depends on the data alone.
      tag = '' if second == 'majority' else f'eval/{rest}'
    elif kind == 'train' and first == 'learning_rate':
      tag = '' if fixed else f'rates/{second.removeprefix("prompts/")}'
    elif first in _COUNTS:
      # The batches that `eval_loss` is of are the same each time.
      tag = f'data/{second}/{first}' if kind == 'train' else ''
    elif kind == 'train' and first in _SPEED:
      tag = f'speed/{first}'
    elif first == 'z_loss' and not value:
      tag = ''  # It has no weight.
    else:
      tag = f'{kind}/{second}/{first}' if second else name
    if tag and (kind != 'floor' or tag not in scalars):
      found[tag] = value
  mean = _mean(scores, said or {})
  return found if mean is None else {**found, 'eval/mean': mean}


def _mean(
  scores: Mapping[str, Mapping[str, float]], said: Said
) -> float | None:
  """The mean of the tasks' main scores; None where there is none."""
  values, kinds = [], []
  for task, of_task in scores.items():
    name = selection.main_metric(of_task, said.get(task))
    facts = said.get(task, {}).get(name) or metrics.known(name)
    undefined = not math.isfinite(of_task[name])
    value = facts.stand_in() if undefined and facts else of_task[name]
    if value is None:
      return None
    values.append(value)
    kinds.append(facts)
  if selection.common_meaning(kinds) is None:
    return None
  return sum(values) / len(values)


class TensorboardWriter:
  """Writes TensorBoard's events, without TensorFlow."""

  def __init__(self, folder: str, resume_step: int, group: Callable[..., Any]):
    """Opens a new file of events.

    Args:
      folder: where it lies; made if it is not there.
      resume_step: points behind it, of an earlier file, are not shown.
      group: `tags`, of a run.
    """
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer import record_writer

    self._event, self._summary = event_pb2.Event, summary_pb2.Summary
    self._group = group
    now, host = f'{time.time():017.6f}', socket.gethostname()
    name = f'events.out.tfevents.{now}.{host}.{os.getpid()}'
    file = files.open_to_append(os.path.join(folder, name), 'ab')
    self._file = record_writer.RecordWriter(file)
    self._add(0, file_version='brain.Event:2')
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._add(resume_step + 1, session_log=start)

  def _add(self, step: int, **content: Any) -> None:
    event = self._event(wall_time=time.time(), step=step, **content)
    self._file.write(event.SerializeToString())
    self._file.flush()

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes the scalars by their tags, at once."""
    values = [
      self._summary.Value(tag=tag, simple_value=float(value))
      for tag, value in self._group(scalars).items()
    ]
    self._add(step, summary=self._summary(value=values))

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


def make_writer(
  model_dir: str,
  resume_step: int,
  group: Callable[[Mapping[str, float]], Mapping[str, float]] | None,
) -> Writers:
  """Returns what writes a run's metrics; on process 0.

  Args:
    model_dir: the run's folder.
    resume_step: what was written behind this step is written again.
    group: gives TensorBoard's tags (`tags`); None writes `metrics.jsonl` alone.
  """
  if not multihost.is_first():
    return Writers()
  writers: list[Any] = [
    JsonlWriter(os.path.join(model_dir, METRICS), resume_step)
  ]
  if group is not None:
    folder = os.path.join(model_dir, TENSORBOARD)
    writers.append(TensorboardWriter(folder, resume_step, group))
  return Writers(*writers)
