"""Which tasks of a library are near another one, by their keys.

Vu et al., "SPoT", ACL 2022, sections 3.2 and 3.3: the key of a task is its
prompt after few steps, as many for all; what is ranked are prompts, several
of a task where it has several runs.
"""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import functools
import logging
from typing import Any

import numpy as np

from mpt_jax.transfer import retrieval, shelf, sources
from mpt_jax.transfer.sources import SourcePrompt
from mpt_jax.types import InputError, nearest

log = logging.getLogger(__name__)

AVERAGE = retrieval.METRICS[0]
# By the neurons that prompts switch on, see `neurons.overlap`.
ON = 'on'
METRICS = (*retrieval.METRICS, ON)


@dataclasses.dataclass(frozen=True)
class Row:
  """How near a prompt, or all of a task, is to the target.

  Attributes:
    name: of the prompt, or of the task.
    task: the task.
    run: the run; '' for all of them.
    similarity: the mean over all pairs with the target's keys.
    std: their standard deviation; None of one pair.
    pairs: how many there are.
    rank: 1 is the nearest.
  """

  name: str
  task: str
  run: str
  similarity: float
  std: float | None
  pairs: int
  rank: int

  def as_json(self) -> dict[str, Any]:
    """Ready for JSON."""
    return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Ranking:
  """Sources by how near they are to a target.

  Attributes:
    metric: by what.
    sources: the N keys.
    similarities: [S, N] float64, of each of S keys of the target.
  """

  metric: str
  sources: Sequence[SourcePrompt]
  similarities: np.ndarray

  @functools.cached_property
  def prompts(self) -> list[Row]:
    """Each prompt, the nearest first."""
    columns = {
      source: (source.name, self.similarities[:, [column]])
      for column, source in enumerate(self.sources)
    }
    return _rows(columns)

  @functools.cached_property
  def tasks(self) -> list[Row]:
    """Each task, the nearest first: means over all pairs of runs."""
    by_task: dict[str, list[int]] = {}
    for column, source in enumerate(self.sources):
      by_task.setdefault(source.task, []).append(column)
    columns = {
      dataclasses.replace(self.sources[of[0]], run=''): (
        task,
        self.similarities[:, of],
      )
      for task, of in by_task.items()
    }
    return _rows(columns)

  def weights(self, k: int | None, negative: str) -> dict[str, float]:
    """Returns the shares of the nearest prompts in a start, by name.

    Args:
      k: of how many; None is all.
      negative: see `retrieval.weights`.
    """
    shares = retrieval.weights(self.similarities.mean(axis=0), k, negative)
    named = {s.name: shares[i] for i, s in enumerate(self.sources)}
    return {row.name: float(named[row.name]) for row in self.prompts[:k]}


def _rows(columns: Mapping[SourcePrompt, tuple[str, np.ndarray]]) -> list[Row]:
  values = [part.ravel() for _, part in columns.values()]
  order = retrieval.rank([value.mean() for value in values])
  ranks = {int(index): number for number, index in enumerate(order, 1)}
  rows = [
    Row(
      name,
      source.task,
      source.run,
      float(value.mean()),
      float(value.std(ddof=1)) if len(value) > 1 else None,
      len(value),
      ranks[index],
    )
    for index, ((source, (name, _)), value) in enumerate(
      zip(columns.items(), values, strict=True)
    )
  ]
  return sorted(rows, key=lambda row: row.rank)


def compare(
  keys: Sequence[SourcePrompt],
  targets: Sequence[SourcePrompt],
  metric: str = AVERAGE,
  backbone: Any = None,
) -> Ranking:
  """Compares the keys of sources with those of one target.

  Args:
    keys: of the sources.
    targets: of the target, one for each of its runs.
    metric: see `retrieval.similarity`; or 'on', the overlap of neurons in all
      layers of the decoder.
    backbone: that of the prompts; needed for 'on' alone.

  Raises:
    InputError: if there is none, no such metric, or they do not fit.
  """
  if metric not in METRICS:
    raise InputError(
      f'metric is {metric!r}, expected one of {", ".join(METRICS)}'
      f'{nearest(str(metric), METRICS)}'
    )
  if metric == ON:
    return _by_neurons(keys, targets, backbone)
  arrays = [key.array for key in keys]
  rows = [retrieval.similarity(arrays, t.array, metric) for t in targets]
  if not rows:
    raise InputError('the target has no key to compare')
  return Ranking(metric, tuple(keys), np.stack(rows))


def _by_neurons(
  keys: Sequence[SourcePrompt], targets: Sequence[SourcePrompt], backbone: Any
) -> Ranking:
  if backbone is None:
    raise InputError(
      f'metric {ON!r} compares what prompts do in their backbone: give'
      ' INITIAL_CHECKPOINT_PATH'
    )
  # Imported here: nothing else here runs a network.
  from mpt_jax.transfer import neurons

  everything = neurons.overlap(backbone, [*keys, *targets])
  rows = everything[len(keys) :, : len(keys)]
  return Ranking(ON, tuple(keys), np.asarray(rows, np.float64))


def warn_of_steps(
  keys: Sequence[SourcePrompt], targets: Sequence[SourcePrompt]
) -> None:
  """Says so where keys were not trained equally long."""
  steps = {key.step for key in keys}
  own = {target.step for target in targets}
  if len(steps | own) > 1:
    log.warning(
      "the sources' keys are of step %s and the target's of step %s: those that"
      ' were trained equally long compare better',
      ', '.join(map(str, sorted(steps))),
      ', '.join(map(str, sorted(own))),
    )


def source_keys(
  given: Any,
  backbone: Any = None,
  tasks: Collection[str] | None = None,
  without: Collection[str] = (),
) -> list[SourcePrompt]:
  """Reads what tells the tasks of a source apart.

  Args:
    given: a library, of which the keys are taken whose value is whole; {task:
      path of its key}; or other prompts, which are their own keys.
    backbone: they must be of this one; None does not check.
    tasks: which tasks; None is all.
    without: tasks to leave out: a target is the nearest to itself.

  Returns:
    The keys, named as the prompts that they stand for.

  Raises:
    InputError: if there is none, or one is of another backbone.
  """
  if shelf.is_library(given):
    read = functools.partial(shelf.read, tasks=tasks, backbone=backbone)
    keys = sources.of_library(read(given, shelf.KEY))
    values = {(i.place.task, i.place.run): i.name for i in read(given)}
    keys = [
      key.renamed(values[key.task, key.run])
      for key in keys
      if (key.task, key.run) in values
    ]
  else:
    keys = sources.read(given, backbone)
    if not isinstance(given, Mapping):
      log.info('no library: tasks are compared by their finished prompts')
    if tasks is not None:
      keys = [key for key in keys if key.task in tasks]
  own = sorted({key.task for key in keys if key.task in without})
  if own:
    log.info('left out, as it is what is trained: %s', ', '.join(own))
  keys = [key for key in keys if key.task not in without]
  if not keys:
    raise InputError(f'{given!r} has no key of another task to compare with')
  return keys


def told(ranking: Ranking, most: int = 5) -> str:
  """'mnli 0.912, qqp 0.871, …': the nearest prompts."""
  names = [f'{r.name} {r.similarity:.4f}' for r in ranking.prompts[:most]]
  return ', '.join(names) + (', …' if len(ranking.prompts) > most else '')
