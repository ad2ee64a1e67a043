"""Whether a similarity of prompts predicts what they score elsewhere.

Su et al., "On Transferability of Prompt Tuning for Natural Language
Processing", NAACL 2022: Spearman's rank correlation of an indicator with
zero-shot relative performance. The convention decides the sign: here each
target over its sources, without the target's own prompt, then the mean over
targets; and, as a second number, all pairs of source and target in one pool.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import os
from typing import Any

import numpy as np

from mpt_jax.transfer import records
from mpt_jax.transfer.sources import VALUE, SourcePrompt
from mpt_jax.types import InputError, require_local

_LEAST = 3  # points, of which a rank correlation says something
_DRAWS = 1000
RESAMPLED = (
  f'targets, with replacement, {_DRAWS} times with a fixed seed, each with all'
  ' its sources; from the 2.5 % to the 97.5 % quantile'
)


def relative_performance(scores: Any, own: Any) -> np.ndarray:
  """Returns 100 * score of a source on a target / the target's own.

  Args:
    scores: [S, T], a row for each source; NaN where there is none.
    own: [T], of each target with its own prompt.

  Returns:
    [S, T] float64 in percent, may be above 100; NaN where the own score is not
    above 0.
  """
  values, best = np.asarray(scores, np.float64), np.asarray(own, np.float64)
  some = np.broadcast_to(best > 0, values.shape)
  return 100 * np.divide(
    values, best, out=np.full(values.shape, np.nan), where=some
  )


def spearman(first: Any, second: Any) -> float | None:
  """Returns Spearman's rho, ties with their mean ranks.

  Args:
    first: [N].
    second: [N].

  Returns:
    -1..1; None where it is not defined: of fewer than 3 points, or where all
    of one side are equal.
  """
  [rho] = _spearman(first, second, np.ones((1, len(first))))
  return None if np.isnan(rho) else float(rho)


def _spearman(first: Any, second: Any, weights: np.ndarray) -> np.ndarray:
  """[W] for N points that are there `weights` [W, N] times; NaN is none."""
  count = weights.sum(1, keepdims=True)
  a, b = (_ranks(np.asarray(x, np.float64), weights) for x in (first, second))
  # The mean of all ranks, whatever the ties.
  a, b = a - (count + 1) / 2, b - (count + 1) / 2
  size = np.sqrt((weights * a**2).sum(1) * (weights * b**2).sum(1))
  known = (size > 0) & (count[:, 0] >= _LEAST)
  none = np.full(len(weights), np.nan)
  return np.divide((weights * a * b).sum(1), size, out=none, where=known)


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """[W, N], of values [N] of which each is there so many times [W, N]."""
  # What differs by rounding alone is the same.
  each, place = np.unique(np.round(values, 12), return_inverse=True)
  times = weights @ (place[:, None] == np.arange(len(each)))
  return (np.cumsum(times, 1) - times + (times + 1) / 2)[:, place]


def correlate(
  similarity: Any, performance: Any, own: Any, seed: int = 0
) -> dict[str, dict[str, Any]]:
  """Returns the rank correlation of a similarity with performance.

  Args:
    similarity: [S, T], of source s with the own prompt of target t.
    performance: [S, T], what s scores on t; NaN where it is not known.
    own: [S, T] bool, where s is t's own prompt; not counted.
    seed: of the intervals, see `RESAMPLED`.

  Returns:
    {'per_target': mean over targets, 'pooled': all pairs}, each with `rho`,
    `low`, `high` (None where not defined) and `n`, of the first the number of
    targets that have a rho, of the second of pairs. Of the first also
    `targets`: a list of [rho, n] in their order.
  """
  x, y = np.asarray(similarity, np.float64), np.asarray(performance, np.float64)
  counted = ~np.asarray(own, bool) & np.isfinite(x) & np.isfinite(y)
  each = [spearman(x[c, t], y[c, t]) for t, c in enumerate(counted.T)]
  known = np.array([rho for rho in each if rho is not None])
  some = counted.any(0)
  rng = np.random.default_rng(seed)
  times = rng.multinomial(some.sum(), some / max(some.sum(), 1), _DRAWS)
  _, targets = np.nonzero(counted)
  pools = _spearman(x[counted], y[counted], times[:, targets].astype(float))
  means = rng.choice(known, (_DRAWS, len(known))).mean(1) if known.size else []
  return {
    'per_target': {
      'rho': float(known.mean()) if known.size else None,
      **_interval(means, len(known)),
      'n': len(known),
      'targets': [
        [rho, int(c.sum())] for rho, c in zip(each, counted.T, strict=True)
      ],
    },
    'pooled': {
      'rho': spearman(x[counted], y[counted]),
      **_interval(pools[np.isfinite(pools)], int(some.sum())),
      'n': int(counted.sum()),
    },
  }


def _interval(draws: Any, targets: int) -> dict[str, float | None]:
  """Quantiles; of fewer than three targets none."""
  if targets < _LEAST or not len(draws):
    return {'low': None, 'high': None}
  low, high = np.quantile(np.asarray(draws), (0.025, 0.975))
  return {'low': float(low), 'high': float(high)}


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
  """Sources and targets of which prompts and scores are known, by task.

  Attributes:
    tasks: S sources, in the order of the prompts.
    targets: T of them.
    performance: {'relative' or 'gain': [S, T], NaN where it is not known}, of
      several runs of a source the mean.
    members: task -> its prompts, by their places among all.
    runs: the run of each prompt.
  """

  tasks: Sequence[str]
  targets: Sequence[str]
  performance: Mapping[str, np.ndarray]
  members: Mapping[str, Sequence[int]]
  runs: Sequence[str]

  @property
  def own(self) -> np.ndarray:
    """[S, T] bool, where a source is the target itself."""
    return np.array([[s == t for t in self.targets] for s in self.tasks])

  def similarity(self, values: np.ndarray) -> np.ndarray:
    """Returns [S, T], of prompts' similarities [N, N].

    Of tasks with several runs it is the mean over pairs of runs; over those of
    the same run if both tasks have some, which began alike.
    """
    return np.array(
      [[self._mean(values, s, t) for t in self.targets] for s in self.tasks]
    )

  def _mean(self, values: np.ndarray, source: str, target: str) -> float:
    every = [(i, j) for i in self.members[source] for j in self.members[target]]
    alike = [(i, j) for i, j in every if self.runs[i] == self.runs[j]]
    return float(np.mean([values[pair] for pair in alike or every]))


def load_matrix(path: str) -> dict[str, Any]:
  """Reads what the verb `matrix` has written.

  Args:
    path: `matrix.json`, or its folder.

  Raises:
    InputError: if it is nothing of the kind.
  """
  path = require_local(path)
  if os.path.isdir(path):
    path = os.path.join(path, 'matrix.json')
  found = records.read(path)
  for key in ('sources', 'targets', 'cells'):
    if not isinstance(found.get(key), list):
      raise InputError(
        f'MATRIX {path!r} has no {key}: give what the verb `matrix` wrote'
      )
  return found


def trained(matrix: Mapping[str, Any]) -> dict[str, str]:
  """Returns the rows that are a task's finished prompts: name -> task."""
  return {
    row['name']: row['task']
    for row in matrix['sources']
    if row['task'] and row.get('kind', VALUE) == VALUE
  }


def read_matrix(
  matrix: Mapping[str, Any], prompts: Sequence[SourcePrompt]
) -> Pairs:
  """Brings a transfer matrix and the prompts of its sources together.

  Args:
    matrix: what the verb `matrix` has written.
    prompts: of its source tasks; what has no task, or is P*, a random or a
      zero prompt, is left out.

  Returns:
    What both know.

  Raises:
    InputError: if these are not the prompts that the matrix scored, or too few
      tasks are in both.
  """
  task_of = trained(matrix)
  digests = {row['digest'] for row in matrix['sources']}
  members: dict[str, list[int]] = {}
  others = []
  for i, prompt in enumerate(prompts):
    if prompt.task in task_of.values():
      members.setdefault(prompt.task, []).append(i)
      if prompt.kind == VALUE and prompt.digest not in digests:
        others.append(prompt.name)
  if others:
    raise InputError(
      f'MATRIX was made of other prompts than these: {", ".join(others)} differ'
    )
  targets = [row['task'] for row in matrix['targets'] if row['task'] in members]
  tasks = list(members)
  if len(tasks) < _LEAST or not targets:
    raise InputError(
      f'MATRIX and PROMPTS share {len(tasks)} source tasks'
      f' ({", ".join(tasks)}) and {len(targets)} targets: a correlation takes'
      f' {_LEAST} sources of a target'
    )
  cells: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
  for cell in matrix['cells']:
    if task := task_of.get(cell['source']):
      cells.setdefault((task, cell['task']), []).append(cell)

  def mean(source: str, target: str, by: str) -> float:
    found = [cell[by] for cell in cells.get((source, target), [])]
    known = [value for value in found if value is not None]
    return float(np.mean(known)) if known else np.nan

  return Pairs(
    tasks=tasks,
    targets=targets,
    performance={
      by: np.array([[mean(s, t, by) for t in targets] for s in tasks])
      for by in SCORES
    },
    members=members,
    runs=[prompt.run for prompt in prompts],
  )


SCORES = ('relative', 'gain')
