"""Time and memory on a machine that others use too.

Imports no framework until asked what torch has.

A step counts as clean if everything else on the machine used little of it
meanwhile. CPU seconds of a process on one core are what repeats best when the
machine is never quiet.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
import ctypes
import itertools
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

VOCABULARY = 32128

# T5 v1.0: one ReLU projection, logits tied to the embedding.
SHAPES = {
  'tiny': {'d_model': 64, 'd_kv': 16, 'd_ff': 128, 'layers': 2, 'heads': 4},
  'small': {'d_model': 512, 'd_kv': 64, 'd_ff': 2048, 'layers': 6, 'heads': 8},
  'base': {'d_model': 768, 'd_kv': 64, 'd_ff': 3072, 'layers': 12, 'heads': 12},
  'large': {
    'd_model': 1024,
    'd_kv': 64,
    'd_ff': 4096,
    'layers': 24,
    'heads': 16,
  },
  '3b': {
    'd_model': 1024,
    'd_kv': 128,
    'd_ff': 16384,
    'layers': 24,
    'heads': 32,
  },
}
# Those that PEFT has too, a prefix as PEFT has it, in one place; and ATTEMPT.
METHODS = 'multitask', 'lora', 'prefix', 'attempt'
LENGTHS = os.path.join(os.path.dirname(__file__), 'source_lengths.json')


def parser(description: str | None) -> argparse.ArgumentParser:
  """A parser with what all systems are measured with."""
  made = argparse.ArgumentParser(
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  made.add_argument('--model', choices=sorted(SHAPES), default='small')
  made.add_argument('--batch', type=int, default=8)
  made.add_argument('--input_len', type=int, default=128, help='without prompt')
  made.add_argument('--prompt_len', type=int, default=100)
  made.add_argument(
    '--method', choices=METHODS, default=METHODS[0], help='what is trained'
  )
  made.add_argument('--target_len', type=int, default=8)
  made.add_argument('--num_tasks', type=int, default=6)
  made.add_argument('--steps', type=int, default=8)
  made.add_argument('--warmup', type=int, default=2)
  made.add_argument('--threads', type=int, default=2)
  made.add_argument('--distill', action='store_true')
  made.add_argument(
    '--lengths',
    nargs='?',
    const=LENGTHS,
    help='JSON list of input lengths to draw from; by itself the length mix'
    ' of the six source tasks',
  )
  made.add_argument('--seed', type=int, default=0)
  made.add_argument(
    '--keep_heap',
    type=int,
    default=0,
    help='1: glibc keeps freed memory (fewer page faults)',
  )
  return made


def use_cores(count: int) -> None:
  """Binds this process to its first cores. Must run before threads start."""
  if hasattr(os, 'sched_setaffinity'):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:count])


def keep_heap() -> bool:
  """Tells glibc to keep freed memory; returns whether it did."""
  libc = ctypes.CDLL(None)
  if not hasattr(libc, 'mallopt'):
    return False
  trim_threshold, mmap_max, arena_max = -1, -4, -8
  options = ((mmap_max, 0), (trim_threshold, -1), (arena_max, 1))
  return all([libc.mallopt(name, value) for name, value in options])


def examples(flags: Any) -> Iterator[tuple[int, int]]:
  """Yields (length of the inputs, task) of one example after the other.

  Args:
    flags: of `parser`: whole inputs and each task in turn, or as `--lengths`.
  """
  import numpy as np

  tasks = list(range(flags.num_tasks))
  lengths = [flags.input_len] * len(tasks)
  if flags.lengths:
    lengths, tasks = load_lengths(flags.lengths)
  order = np.random.default_rng(flags.seed).permutation(len(lengths))
  for place in itertools.cycle(order):
    yield min(lengths[place], flags.input_len), tasks[place] % flags.num_tasks


def report(flags: Any, keys: str, found: Mapping[str, Any]) -> None:
  """Prints what was measured as a line of JSON.

  Args:
    flags: of the command; those that `keys` names are told, too.
    keys: names, with blanks between.
    found: `summary` of the batches, and what else there is to tell.
  """
  told = {key: getattr(flags, key) for key in keys.split()}
  speed = round(flags.batch / found['step_s_median'], 2)
  more = {'examples_per_s': speed, 'peak_rss_mb': peak_rss_mb()}
  print(json.dumps({**told, **more, **found}))


def timed(
  command: Sequence[str],
  parts: Sequence[tuple[str, str]],
  environment: Mapping[str, str],
) -> tuple[float, dict[str, float]]:
  """Runs a command, and reads from its log when each part of it ends.

  Args:
    command: the command.
    parts: (name, pattern of what the log says at its end), in order.
    environment: what differs from this process's.

  Returns:
    Seconds from the start to the end of the last part, and of each part.
  """
  begin = last = time.monotonic()
  process = subprocess.Popen(
    command,
    stderr=subprocess.PIPE,
    text=True,
    env={**os.environ, **environment},
  )
  assert process.stderr is not None
  taken: dict[str, float] = {}
  waiting, lines = list(parts), []
  for line in process.stderr:
    lines.append(line)
    now = time.monotonic()
    while waiting and re.search(waiting[0][1], line):
      taken[waiting.pop(0)[0]] = round(now - last, 2)
      last = now
  if process.wait():
    sys.exit(f'the run failed: {"".join(lines[-20:])}')
  if waiting:
    sys.exit(f'the log does not say {waiting[0][1]!r}: {"".join(lines)}')
  return round(last - begin, 2), taken


def cost(compiled: Any) -> dict[str, float]:
  """XLA's own count of what a compiled JAX function computes and moves."""
  found = compiled.cost_analysis()
  return found[0] if isinstance(found, list) else found


def hf_config(model: str, **more: Any) -> Any:
  """The T5Config of transformers of a key of `SHAPES`."""
  from transformers import T5Config

  shape = SHAPES[model]
  return T5Config(
    d_model=shape['d_model'],
    d_kv=shape['d_kv'],
    d_ff=shape['d_ff'],
    num_layers=shape['layers'],
    num_heads=shape['heads'],
    vocab_size=VOCABULARY,
    decoder_start_token_id=0,
    feed_forward_proj='relu',
    **more,
  )


def torch_device() -> str:
  """Where torch computes: on the GPU if it sees one."""
  import torch

  return 'cuda' if torch.cuda.is_available() else 'cpu'


def load_lengths(path: str) -> tuple[list[int], list[int]]:
  """Reads lengths and the task of each; see source_lengths.json."""
  with open(path, encoding='utf-8') as f:
    content = json.load(f)
  if isinstance(content, list):
    return content, [0] * len(content)
  lengths = content['lengths']
  return lengths, content.get('task_ids', [0] * len(lengths))


def peak_rss_mb() -> float:
  """The most memory that this process has held."""
  return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def rss_mb() -> float | None:
  """The memory that this process holds."""
  with open('/proc/self/status', encoding='utf-8') as f:
    for line in f:
      if line.startswith('VmRSS'):
        return round(int(line.split()[1]) / 1024, 1)
  return None


def _busy() -> float:
  """CPU seconds of the whole machine so far."""
  with open('/proc/stat', encoding='utf-8') as f:
    ticks = [int(x) for x in f.readline().split()[1:9]]
  return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf('SC_CLK_TCK')


def _own() -> tuple[float, float]:
  usage = resource.getrusage(resource.RUSAGE_SELF)
  return usage.ru_utime + usage.ru_stime, usage.ru_stime


class Meter:
  """Times a function again until the machine was quiet meanwhile."""

  def __init__(self, quiet: float = 0.06, wait: float | None = None):
    """Makes a meter.

    Args:
      quiet: share of the machine that others may use.
      wait: seconds to wait for a quiet machine in all; default BENCH_WAIT_S
        of the environment, or a minute.
    """
    default = float(os.environ.get('BENCH_WAIT_S', '60'))
    self._quiet, self._patience = quiet, default if wait is None else wait
    self.dirty, self.waited = 0, 0.0

  def _measure(self, f: Callable[[], Any]) -> dict[str, Any]:
    busy, (own, kernel), begin = _busy(), _own(), time.perf_counter()
    f()
    wall = time.perf_counter() - begin
    cpu, kernel = _own()[0] - own, _own()[1] - kernel
    # 0.02 s is the grain of /proc/stat.
    other = max(0.0, _busy() - busy - cpu - 0.02) / (wall * os.cpu_count())
    return {'wall': wall, 'cpu': cpu, 'kernel': kernel, 'other': other}

  def _wait(self) -> bool:
    while self.waited < self._patience:
      if self._measure(lambda: time.sleep(0.25))['other'] < self._quiet:
        return True
      self.waited += 0.25
    return False

  def time(
    self,
    f: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    tries: int = 3,
  ) -> list[dict[str, Any]]:
    """Times f(*a) for each a; a dirty call is repeated, `tries` in all."""
    rows = []
    for one in arguments:
      for _ in range(tries):
        quiet = self._wait()
        row = self._measure(lambda one=one: f(*one))
        if row['other'] <= self._quiet or not quiet:
          break
        self.dirty += 1
      rows.append({**row, 'clean': row['other'] <= self._quiet})
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Median and least of the clean steps, or of all if none was."""
  good = [row for row in rows if row['clean']] or rows
  walls = [row['wall'] for row in good]
  return {
    'step_s_median': round(statistics.median(walls), 4),
    'step_s_min': round(min(walls), 4),
    'cpu_s_median': round(statistics.median(r['cpu'] for r in rows), 4),
    'cpu_s_min': round(min(r['cpu'] for r in rows), 4),
    'kernel_s_median': round(statistics.median(r['kernel'] for r in rows), 4),
    'step_s_all': [round(row['wall'], 4) for row in rows],
    'clean_steps': sum(row['clean'] for row in rows),
    'others': round(statistics.median(row['other'] for row in rows), 3),
  }


def of_training(
  meter: Meter,
  rows: Sequence[dict[str, Any]],
  forwards: Sequence[dict[str, Any]],
  counts: Sequence[tuple[int, int]],
) -> dict[str, Any]:
  """What is told of training steps, and of steps without gradients.

  Args:
    meter: what timed them.
    rows: of the steps.
    forwards: of the steps without gradients.
    counts: (examples, their tokens without prompts and padding) of each step.
  """
  seconds = sum(row['wall'] for row in rows)
  examples, tokens = (sum(some) for some in zip(*counts, strict=True))
  forward = summary(forwards)
  return {
    **summary(rows),
    'examples_per_s': round(examples / seconds, 3),
    'tokens_per_s': round(tokens / seconds, 1),
    'cpu_s_total': round(sum(row['cpu'] for row in rows), 3),
    'fwd_s': forward['step_s_median'],
    'fwd_cpu_s': forward['cpu_s_median'],
    'dirty': meter.dirty,
    'waited_s': round(meter.waited, 1),
  }
