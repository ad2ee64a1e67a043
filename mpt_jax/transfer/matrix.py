r"""Scores every prompt on every task, where it was not learned: zero-shot.

  python -m mpt_jax.transfer matrix --tfds_data_dir=data \
    --gin.INITIAL_CHECKPOINT_PATH="'demo'" \
    --gin.SOURCES="['runs/teachers/rte/prompts', 'runs/teachers/cb/prompts']" \
    --gin.TASK_FEATURE_LENGTHS="{'inputs': 48, 'targets': 4}" \
    --gin.MODEL_DIR="'runs/transfer/matrix'"

Beside the sources stand what they must beat: random prompts and one of zeros;
and, if asked for, P* and the composed prompts of an MPT run. Writes
`matrix.json` (every number), `matrix.csv` (a line for each cell),
`matrix_scores.csv`, `matrix_relative.csv`, `heatmap.png` (100 * score / score
of the target's own prompt) and `heatmap_gain.png` ((score - random) / (own -
random)), and prints the table. What is known is kept cell by cell, in `cells/`:
the same command goes on where it was stopped.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import logging
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from mpt_jax import analysis
from mpt_jax.checkpoints import bundle as bundle_lib
from mpt_jax.checkpoints import files, lock
from mpt_jax.checkpoints.backbone import Backbone
from mpt_jax.engine import multihost, predictor, preemption
from mpt_jax.engine.face import face
from mpt_jax.engine.settings import (
  BackboneSource,
  Decoding,
  Devices,
  Examples,
)
from mpt_jax.study import stats
from mpt_jax.transfer import categories as categories_lib
from mpt_jax.transfer import correlation, records
from mpt_jax.transfer import matrix_views as views
from mpt_jax.transfer import sources as sources_lib
from mpt_jax.transfer.scoring import LABELS, Cell, Scorer
from mpt_jax.transfer.sources import SourcePrompt
from mpt_jax.types import InputError, Natural, Positive, require_local

if TYPE_CHECKING:
  from matplotlib.figure import Figure

log = logging.getLogger(__name__)

VERB, CELLS = 'matrix', 'cells'
STOPPING = 'stopping; the cells that are known are kept'
# What the numbers of `matrix.json` mean.
DEFINITIONS = {
  'score': "the target's main metric in percent",
  'own': "mean score of the target's own prompts, over their runs",
  'random': 'mean score of the random prompts',
  'relative': '100 * score / own; none where own is not above 0, or less of'
  ' the metric is better',
  'gain': '(score - random) / (own - random); none where own is not better than'
  ' random',
  'collapsed': 'the answers are one class, or most are none',
  'groups': 'means over pairs of two different tasks, each the mean over its'
  ' runs; se and the interval of 95 % (bootstrap) are over pairs, which share'
  ' tasks; seeds_se is over the means of single runs',
}
_DRAWS = 2000
# All of the test split, of whatever the targets are.
_EXAMPLES = Examples('')


@dataclasses.dataclass(frozen=True)
class Controls:
  """Rows beside the sources.

  Attributes:
    random_prompts: how many random prompts to draw, uniform in [0, 1).
    zero: whether a prompt of zeros is scored.
    mpt: a bundle of MPT, or its path, or several: its P* and the composed
      prompt of each of its tasks; None is none.
  """

  random_prompts: Natural = 3
  zero: bool = True
  mpt: Any = None


@dataclasses.dataclass(frozen=True)
class Asking:
  """How prompts are asked; see `scoring.Scorer`.

  Attributes:
    readout: 'labels', the likeliest label word, or 'generate'.
    batch_size: inputs that are asked at once, each with several prompts.
    prompts_per_call: with how many; None is as many as there is memory for.
    decoding: how answers are searched that are generated.
    cache: folder of known cells; None is `cells/` in the verb's own.
  """

  readout: str = LABELS
  batch_size: Positive = 128
  prompts_per_call: Positive | None = None
  decoding: Decoding = Decoding()
  cache: str | None = None

  def scorer(
    self, backbone: Backbone, examples: Examples, devices: Devices
  ) -> Scorer:
    """Returns what asks so; arguments as `scoring.Scorer` has them."""
    return Scorer(
      backbone,
      examples,
      batch_size=self.batch_size,
      readout=self.readout,
      devices=devices,
      decoding=self.decoding,
      cache=self.cache,
      prompts_per_call=self.prompts_per_call,
    )

  def settings(self, examples: Examples) -> dict[str, Any]:
    """Returns what the scores depend on, for a folder's record."""
    lengths = examples.task_feature_lengths
    return {
      'readout': self.readout,
      **self.decoding.search,
      'split': examples.split,
      'num_examples': examples.num_examples,
      **{f'task_feature_lengths {k!r}': lengths[k] for k in sorted(lengths)},
    }


class Matrix:
  """Scores of sources on targets, and what they mean.

  Attributes:
    sources: names of the N rows.
    targets: names of the K columns.
    scores: [N, K] float64, NaN where a score is not defined.
    relative: [N, K] percent of the target's own score, NaN likewise.
    gain: [N, K] share of the way from random to the own prompt, NaN likewise.
    collapsed: [N, K] bool, where the answers are all one class.
    record: all numbers, as `matrix.json` has them.
  """

  def __init__(self, record: Mapping[str, Any]):
    """Reads what `collect` made, or `matrix.json` holds."""
    self.record = record
    self.sources = [source['name'] for source in record['sources']]
    self.targets = [target['task'] for target in record['targets']]
    self._cells = {(c['source'], c['task']): c for c in record['cells']}
    self.scores, self.relative, self.gain = (
      self._array(name).astype(float) for name in ('score', 'relative', 'gain')
    )
    self.collapsed = self._array('collapsed').astype(bool)

  def _array(self, name: str) -> np.ndarray:
    """[N, K] of objects, whatever the cells have under a name."""
    values = [
      [self._cells[source, target][name] for target in self.targets]
      for source in self.sources
    ]
    return np.array(values, object)

  def __repr__(self) -> str:
    return views.table(self.record)

  def plot(self, what: str = 'relative') -> 'Figure':
    """Draws a heatmap.

    Args:
      what: 'score', 'relative' or 'gain'.
    """
    return views.heatmap(self.record, what)

  def save(self, folder: str) -> None:
    """Writes all files.

    Args:
      folder: where to; made if it is not there.

    Raises:
      InputError: if it cannot be written.
    """
    contents = {
      'matrix.csv': views.long_csv(self.record),
      'matrix_scores.csv': views.wide_csv(self.record, 'score'),
      'matrix_relative.csv': views.wide_csv(self.record, 'relative'),
      'heatmap.png': analysis.png(self.plot()),
      'heatmap_gain.png': analysis.png(self.plot('gain')),
      # The last: where it is, all is there.
      f'{VERB}.json': files.json_bytes(self.record),
    }
    records.write(folder, contents)


def matrix(
  *,
  model_dir: str | None = None,
  backbone: BackboneSource | Backbone | str,
  sources: Any,
  targets: Sequence[str] | None = None,
  controls: Controls = Controls(),
  examples: Examples = _EXAMPLES,
  categories: Mapping[str, str] | None = None,
  asking: Asking = Asking(),
  devices: Devices = Devices(),
) -> Matrix:
  """Scores every source prompt on every target.

  Args:
    model_dir: folder for all files; None writes nothing.
    backbone: where it is read, or a loaded one.
    sources: a library, bundles, paths of these, a list, or {name: one};
      see `transfer.sources.read`.
    targets: names of tasks; None is the tasks of the sources.
    controls: the rows beside them.
    examples: which examples of the targets; the names in it are not looked at.
    categories: task -> category, over those of `transfer.categories`.
    asking: how prompts are asked.
    devices: devices and memory.

  Returns:
    The matrix.

  Raises:
    InputError: if something given is wrong, or the folder holds a matrix with
      other settings.
  """
  loaded = predictor.load_backbone(
    BackboneSource(backbone) if isinstance(backbone, str) else backbone
  )
  rows = _rows(sources, loaded, controls)
  tasks = _tasks(rows, targets, categories)
  if model_dir is None:
    found = asking.scorer(loaded, examples, devices).score(rows, tasks)
    return Matrix(collect(rows, found, loaded, examples, asking, categories))
  folder = require_local(model_dir)
  asking = dataclasses.replace(
    asking, cache=asking.cache or os.path.join(folder, CELLS)
  )
  face().at_interrupt(lambda: _standing(asking.cache))
  with lock.hold(folder), preemption.interrupting(STOPPING):
    face().keep_log(folder)
    settings = _settings(
      loaded, rows, tasks, examples, asking, devices, categories
    )
    done = records.begin(folder, VERB, settings)
    if done is not None:
      log.info('%s holds the whole matrix; nothing to do', folder)
      made = Matrix(done)
    else:
      found = asking.scorer(loaded, examples, devices).score(rows, tasks)
      made = Matrix(collect(rows, found, loaded, examples, asking, categories))
      multihost.on_first(lambda: made.save(folder))
  if not face().interactive:
    print(made)
  return made


def _rows(
  given: Any, backbone: Backbone, controls: Controls
) -> list[SourcePrompt]:
  """The sources and what stands beside them, each with a name of its own."""
  rows = sources_lib.read(given, backbone)
  shape = rows[0].array.shape
  for seed in range(controls.random_prompts):
    name = f'random/{seed}' if controls.random_prompts > 1 else 'random'
    rows.append(sources_lib.random_prompt(shape, seed, name))
  if controls.zero:
    rows.append(sources_lib.zero_prompt(shape))
  mpt = controls.mpt
  bundles = mpt if isinstance(mpt, list | tuple) else [mpt]
  for bundle in bundles:
    if isinstance(bundle, str | os.PathLike):
      bundle = bundle_lib.load_prompts(os.fspath(bundle))
    if bundle is not None:
      bundle_lib.check_backbone(bundle, backbone)
      rows.append(sources_lib.shared_of(bundle))
      rows += [
        prompt.renamed(f'mpt/{prompt.name}')
        for prompt in sources_lib.of_bundle(bundle, sources_lib.COMPOSED)
      ]
  return sources_lib.read(rows)


def _tasks(
  rows: Iterable[SourcePrompt],
  targets: Sequence[str] | None,
  categories: Mapping[str, str] | None,
) -> list[str]:
  """The targets, those of a category side by side."""
  if targets is None:
    learned = [r.task for r in rows if r.kind == sources_lib.VALUE and r.task]
    targets = list(dict.fromkeys(learned))
    if not targets:
      raise InputError(
        'no source says of which task it is: name the TARGETS to score on'
      )
  targets = [targets] if isinstance(targets, str) else list(targets)
  if len(set(targets)) < len(targets) or not targets:
    raise InputError(f'TARGETS = {targets}: expected some tasks, each once')
  return categories_lib.ordered(targets, categories)


def _settings(
  backbone: Backbone,
  rows: Sequence[SourcePrompt],
  tasks: Sequence[str],
  examples: Examples,
  asking: Asking,
  devices: Devices,
  categories: Mapping[str, str] | None,
) -> dict[str, Any]:
  """What the numbers of a folder depend on."""
  return {
    'backbone': backbone.fingerprint,
    **{f'prompt {row.name!r}': row.digest for row in rows},
    'targets': list(tasks),
    **{
      f'category of {task}': categories_lib.category_of(task, categories)
      for task in dict.fromkeys([*tasks, *(r.task for r in rows if r.task)])
    },
    **asking.settings(examples),
    'dtype': devices.dtype,
    'precision': devices.precision,
  }


def _standing(cache: str | None) -> str:
  """What an interrupted matrix says."""
  known = 0
  if cache and os.path.isdir(cache):
    known = sum(name.endswith('.json') for name in os.listdir(cache))
  return f'{known} cells are known: the same command goes on with the others'


# -----------------------------------------------------------------------------
# The numbers.


def collect(
  rows: Sequence[SourcePrompt],
  found: Sequence[Cell],
  backbone: Backbone,
  examples: Examples,
  asking: Asking,
  categories: Mapping[str, str] | None = None,
) -> dict[str, Any]:
  """Puts cells into relation to the target's own prompts and to random ones.

  Args:
    rows: the prompts.
    found: their cells, as `Scorer.score` gives them.
    backbone: whose prompts they are.
    examples: which examples were scored.
    asking: how.
    categories: see `matrix`.

  Returns:
    What `matrix.json` holds.
  """
  from mpt_jax import data

  def category(task: str) -> str:
    return categories_lib.category_of(task, categories) if task else ''

  by_name = {row.name: row for row in rows}
  targets, said = _targets(found, by_name, category)
  by_task = {target['task']: target for target in targets}
  cells = [
    {
      **dataclasses.asdict(cell),
      'relative': _relative(cell.score, by_task[cell.task]),
      'gain': _gain(cell.score, by_task[cell.task]),
    }
    for cell in found
  ]
  sources = [
    {
      'name': row.name,
      'task': row.task,
      'category': category(row.task),
      'kind': row.kind,
      'run': row.run,
      'score': row.score,
      'step': row.step,
      'digest': row.digest,
    }
    for row in rows
  ]
  for line in said:
    log.info('%s', line)
  return {
    'version': 1,
    'backbone': {'name': backbone.name, 'fingerprint': backbone.fingerprint},
    'split': examples.split,
    'readout': asking.readout,
    'synthetic': [t for t in by_task if data.is_synthetic(t)],
    'definitions': DEFINITIONS,
    'undefined': said,
    'sources': sources,
    'targets': targets,
    'cells': cells,
    'means': _means(sources, cells),
    'groups': _groups(sources, targets, cells),
  }


def _targets(
  found: Sequence[Cell],
  rows: Mapping[str, SourcePrompt],
  category: Callable[[str], str],
) -> tuple[list[dict[str, Any]], list[str]]:
  """The targets with what their scores are compared with; and what is not."""
  targets: list[dict[str, Any]] = []
  said: dict[str, list[str]] = {}
  for task in dict.fromkeys(cell.task for cell in found):
    cells = [cell for cell in found if cell.task == task]

    def mean(kind: str, of: str, cells: Sequence[Cell] = cells) -> float | None:
      return views.mean(
        cell.score
        for cell in cells
        if rows[cell.source].kind == kind and rows[cell.source].task == of
      )

    first = cells[0]
    target: dict[str, Any] = {
      'task': task,
      'category': category(task),
      'metric': first.metric,
      'better': first.better,
      'readout': first.readout,
      'examples': first.examples,
      'majority': first.floor,
      'own': mean(sources_lib.VALUE, task),
      'random': mean(sources_lib.RANDOM, ''),
    }
    targets.append(target)
    reasons = _undefined(target)
    undefined = [cell.source for cell in cells if cell.score is None]
    if undefined:
      reasons.append(f'{first.metric} of {", ".join(undefined)} is not defined')
    for reason in reasons:
      said.setdefault(reason, []).append(task)
  return targets, [f'{", ".join(t)}: {reason}' for reason, t in said.items()]


def _undefined(target: Mapping[str, Any]) -> list[str]:
  """Why a target has no relative scores, or no gains."""
  own, floor = target['own'], target['random']
  if own is None:
    return ['no prompt of its own has a score: no relative scores, no gains']
  said = []
  if _relative(own, target) is None:
    reason = f"its own prompt's {target['metric']} is {own:.2f}, not above 0"
    if target['better'] != 'more':
      reason = f'less {target["metric"]} is better'
    said.append(f'no relative scores, since {reason}')
  if floor is None:
    said.append('no gains, since no random prompt has a score')
  elif _gain(own, target) is None:
    said.append(
      f'no gains, since its own prompt ({own:.2f}) is not better than random'
      f' ones ({floor:.2f})'
    )
  return said


def _relative(score: float | None, target: Mapping[str, Any]) -> float | None:
  own = target['own']
  if score is None or own is None or target['better'] != 'more':
    return None
  [[value]] = correlation.relative_performance([[score]], [own])
  return None if np.isnan(value) else float(value)


def _gain(score: float | None, target: Mapping[str, Any]) -> float | None:
  own, floor = target['own'], target['random']
  if score is None or own is None or floor is None:
    return None
  way = own - floor
  if way == 0 or (way > 0) != (target['better'] == 'more'):
    return None
  return (score - floor) / way


def _means(
  sources: Sequence[Mapping[str, Any]], cells: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
  """What several runs of a task, or several random prompts, are on average."""
  several: dict[tuple[str, str], list[str]] = {}
  for source in sources:
    several.setdefault((source['task'], source['kind']), []).append(
      source['name']
    )
  means = []
  for (task, kind), names in several.items():
    if len(names) < 2:
      continue
    for target in dict.fromkeys(cell['task'] for cell in cells):
      some = [c for c in cells if c['task'] == target and c['source'] in names]
      scores = [c['score'] for c in some if c['score'] is not None]
      means.append(
        {
          'source': f'{task or kind} (mean of {len(names)})',
          'of': names,
          'task': target,
          'score': views.mean(scores),
          'std': float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
          'runs': len(scores),
          'relative': views.mean(c['relative'] for c in some),
          'gain': views.mean(c['gain'] for c in some),
          'collapsed': all(c['collapsed'] for c in some),
          'collapsed_runs': sum(c['collapsed'] for c in some),
        }
      )
  return means


def _groups(
  sources: Sequence[Mapping[str, Any]],
  targets: Sequence[Mapping[str, Any]],
  cells: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
  """Transfer inside a category and out of it, without the diagonal."""
  category = {t['task']: t['category'] for t in targets}
  learned = {
    s['name']: s
    for s in sources
    if s['kind'] == sources_lib.VALUE and s['task']
  }
  turns: dict[str, int] = {}
  number: dict[str, str] = {}
  for name, source in learned.items():
    turn = turns[source['task']] = turns.get(source['task'], -1) + 1
    number[name] = source['run'] or str(turn)
  groups: dict[str, Any] = {}
  for what in ('relative', 'gain'):
    values: dict[str, dict[tuple[str, str], dict[str, float]]] = {
      'same': {},
      'other': {},
    }
    for cell in cells:
      of, target = learned.get(cell['source']), cell['task']
      if of is None or of['task'] == target or cell[what] is None:
        continue
      same = of['category'] == category[target]
      pair = values['same' if same else 'other'].setdefault(
        (of['task'], target), {}
      )
      pair[number[cell['source']]] = cell[what]
    for name, pairs in values.items():
      groups.setdefault(name, {})[what] = _spread(pairs)
    groups.setdefault('difference', {})[what] = _difference(values)
  return groups


def _spread(pairs: Mapping[Any, Mapping[str, float]]) -> dict[str, Any] | None:
  """Mean over pairs, with its errors; None of no pair."""
  if not pairs:
    return None
  values = np.array(
    [np.mean(list(by_run.values())) for by_run in pairs.values()]
  )
  runs = sorted({run for by_run in pairs.values() for run in by_run})
  by_run = [
    float(np.mean([pair[run] for pair in pairs.values() if run in pair]))
    for run in runs
  ]
  low, high = _interval(_resampled(values))
  return {
    'mean': float(values.mean()),
    'median': float(np.median(values)),
    'pairs': len(values),
    'se': stats.standard_error(values.tolist()),
    'low': low,
    'high': high,
    'seeds': len(runs),
    'seeds_se': stats.standard_error(by_run),
  }


def _difference(
  values: Mapping[str, Mapping[Any, Mapping[str, float]]],
) -> dict[str, Any] | None:
  """How much more the same category has than others have."""
  same, other = (
    np.array([np.mean(list(pair.values())) for pair in pairs.values()])
    for pairs in values.values()
  )
  if not len(same) or not len(other):
    return None
  low, high = _interval(_resampled(same) - _resampled(other, seed=1))
  mean = float(same.mean() - other.mean())
  return {'mean': mean, 'low': low, 'high': high}


def _resampled(values: np.ndarray, seed: int = 0) -> np.ndarray:
  """Means of resamples, [draws]."""
  rng = np.random.default_rng(seed)
  drawn = rng.integers(0, len(values), (_DRAWS, len(values)))
  return values[drawn].mean(axis=1)


def _interval(values: np.ndarray) -> tuple[float, float]:
  low, high = np.percentile(values, [2.5, 97.5])
  return float(low), float(high)
