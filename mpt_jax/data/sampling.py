"""Which task the next example is of.

A sampler is a pure function of a seed and a position, so that a resumed run
goes on where it was, and all hosts draw the same. It yields the tasks of one
batch, without end: the batch decides how many it has room for.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import itertools
from typing import Protocol

import numpy as np

from mpt_jax.types import InputError, nearest

PROPORTIONAL, STOCHASTIC = 'proportional', 'stochastic'
SAMPLINGS = (PROPORTIONAL, STOCHASTIC)
# Choices of a task that are drawn at a time.
_BLOCK = 1024


class TaskSampler(Protocol):
  """Chooses the tasks of batches."""

  def tasks(self, batch: int, draws: int) -> Iterator[int]:
    """Yields the task of each place of a batch.

    Args:
      batch: how many batches came before.
      draws: how many examples were drawn before.

    Yields:
      Numbers of tasks, without end.
    """
    ...


@dataclasses.dataclass
class ProportionalSampler:
  """Draws a task for each example on its own.

  Attributes:
    weights: rates of the tasks, in any unit.
    seed: fixes the draws.
  """

  weights: Sequence[float]
  seed: Sequence[int]
  _block: int = dataclasses.field(default=-1, init=False)

  def tasks(self, batch: int, draws: int) -> Iterator[int]:
    """Yields the tasks from a number of draws on; `batch` plays no part."""
    del batch
    rates = np.asarray(self.weights, np.float64)
    for draw in itertools.count(draws):
      block, place = divmod(draw, _BLOCK)
      if block != self._block:
        rng = np.random.default_rng([*self.seed, block])
        self._block = block
        self._drawn = rng.choice(len(rates), _BLOCK, p=rates / rates.sum())
      yield int(self._drawn[place])


@dataclasses.dataclass
class StochasticSampler:
  """Stochastic task sampling: each batch is of a few tasks, evenly.

  For a batch, n is drawn uniformly from 2..max_tasks, then n tasks at the
  mixture's rates, with replacement as in the DPT code ("based on MPT"): so a
  task's expected share of all examples is its rate. The places of the batch
  go round the n draws.

  Attributes:
    weights: rates of the tasks, in any unit.
    seed: fixes the draws.
    max_tasks: the largest n.
  """

  weights: Sequence[float]
  seed: Sequence[int]
  max_tasks: int

  def draw(self, batch: int) -> list[int]:
    """Returns the n tasks drawn for a batch; one may occur twice."""
    rng = np.random.default_rng([*self.seed, batch])
    count = rng.integers(2, self.max_tasks, endpoint=True)
    rates = np.asarray(self.weights, np.float64)
    return rng.choice(len(rates), count, p=rates / rates.sum()).tolist()

  def tasks(self, batch: int, draws: int) -> Iterator[int]:
    """Yields the tasks of a batch's places; `draws` plays no part."""
    del draws
    yield from itertools.cycle(self.draw(batch))


def make_sampler(
  sampling: str,
  weights: Sequence[float],
  max_tasks: int | None,
  seed: Sequence[int],
) -> TaskSampler:
  """Makes the sampler that a run asks for.

  Args:
    sampling: 'proportional' or 'stochastic'.
    weights: rates of the tasks; a single task is a mixture too.
    max_tasks: the most tasks in a batch of stochastic sampling; None is the
      number of tasks.
    seed: of the run and its purpose.

  Returns:
    The sampler.

  Raises:
    InputError: for an unknown sampling, or less than two tasks a batch.
  """
  if sampling not in SAMPLINGS:
    raise InputError(
      f'TASK_SAMPLING={sampling!r} is none of {", ".join(SAMPLINGS)}'
      f'{nearest(sampling, SAMPLINGS)}'
    )
  if max_tasks is not None and max_tasks < 2:
    raise InputError(
      f'MAX_TASKS_PER_BATCH={max_tasks}: stochastic task sampling draws at'
      ' least 2 tasks a batch'
    )
  if sampling == PROPORTIONAL or len(weights) == 1:
    return ProportionalSampler(weights, [*seed, 0])
  return StochasticSampler(weights, seed, max_tasks or len(weights))
