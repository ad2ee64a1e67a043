"""How far a study is, and how long it will take."""

from collections.abc import Sequence
import contextlib
import json
import logging
import math
import os
import time

from mpt_jax.engine.trainer import format_seconds
from mpt_jax.study.steps import Step

log = logging.getLogger(__name__)

_SECONDS = 10.0
# In training examples, for the ETA.
_COMPILATION_COST = 3500.0


class Progress:
  """A line on finished steps and the time left, every ten seconds."""

  def __init__(self, total: int, todo: Sequence[Step], folder: str):
    self._total, self._done = total, total - len(todo)
    self._folder = folder
    self._worked = 0.0
    self._compiled: set[str] = set()
    # What a stopped step had done before this call.
    self._before = {s.name: self._share_of(s) for s in todo}
    self._cost = sum(self._cost_of(s) for s in todo)
    self._compiled.clear()
    self._begin = self._last = time.monotonic()
    if self._done:
      log.info('%d of %d runs were finished before', self._done, total)

  def _share_of(self, step: Step) -> float:
    """Which share of a step is done, as its metrics tell."""
    if not step.labels.get('steps'):
      return 0.0
    path = os.path.join(self._folder, step.name, 'metrics.jsonl')
    with contextlib.suppress(OSError, ValueError, KeyError):
      with open(path, 'rb') as f:
        *_, last = f.read().rsplit(b'\n', 2)[:-1]
      return min(json.loads(last)['step'] / step.labels['steps'], 1.0)
    return 0.0

  def _cost_of(self, step: Step, share: float = 1.0) -> float:
    """The cost of a step up to a share of it, in this call."""
    more = max(share - self._before[step.name], 0.0)
    cost = step.cost * more
    if step.likeness not in self._compiled and more:
      self._compiled.add(step.likeness)
      cost += _COMPILATION_COST
    return cost

  def finish(self, step: Step) -> None:
    """Counts a step as done."""
    self._done += 1
    self._worked += self._cost_of(step)

  def seconds_to_next(self) -> float:
    """Until the next line."""
    return max(0.1, self._last + _SECONDS - time.monotonic())

  def seconds_left(self, running: Sequence[Step]) -> float:
    """By the time that the work so far took, half-done steps included."""
    compiled = set(self._compiled)
    worked = self._worked + sum(
      self._cost_of(s, self._share_of(s)) for s in running
    )
    self._compiled = compiled
    if not worked:
      return math.inf
    return (time.monotonic() - self._begin) * (self._cost - worked) / worked

  def maybe_print(self, running: Sequence[Step]) -> None:
    """Writes the line if it is time, or if nothing runs any more."""
    now = time.monotonic()
    if now - self._last < _SECONDS and running:
      return
    self._last = now
    log.info(
      '%d / %d runs  ETA %s  %s',
      self._done,
      self._total,
      format_seconds(self.seconds_left(running)),
      ', '.join(step.name for step in running),
    )
