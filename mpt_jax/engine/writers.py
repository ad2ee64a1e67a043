"""What a run writes as it goes: `metrics.jsonl`, and TensorBoard's events."""

from collections.abc import Mapping
import json
import os
from typing import Any

from mpt_jax.checkpoints import files
from mpt_jax.engine import multihost

METRICS = 'metrics.jsonl'


def read_metrics(path: str) -> list[dict[str, Any]]:
  """Returns the lines of a metrics file, as far as they are whole.

  Args:
    path: the file; without it there are no lines.
  """
  lines = []
  if os.path.exists(path):
    with open(path, encoding='utf-8') as f:
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
    self._file = open(path, 'a', encoding='utf-8')  # noqa: SIM115

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


def make_writer(model_dir: str, tensorboard: bool, resume_step: int) -> Writers:
  """metrics.jsonl, and clu's TensorBoard writer beside it; on process 0."""
  if not multihost.is_first():
    return Writers()
  os.makedirs(model_dir, exist_ok=True)
  writers: list[Any] = [
    JsonlWriter(os.path.join(model_dir, METRICS), resume_step)
  ]
  if tensorboard:
    from clu import metric_writers

    writers.append(
      metric_writers.SummaryWriter(os.path.join(model_dir, 'tensorboard'))
    )
  return Writers(*writers)
