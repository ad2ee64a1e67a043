r"""Trains targets from a transferred start and from scratch, and compares.

  python -m mpt_jax.transfer speedup --tfds_data_dir=data \
    --gin.INITIAL_CHECKPOINT_PATH="'demo'" \
    --gin.SOURCES="{'rte': 'runs/teacher/mnli/prompts'}" \
    --gin.TASK_FEATURE_LENGTHS="{'inputs': 48, 'targets': 4}" \
    --gin.PROMPT_LENGTH=10 --gin.TRAIN_STEPS=200 --gin.EVAL_PERIOD=10 \
    --gin.MODEL_DIR="'runs/speedup'"

Both starts have the same data, steps, evaluations, seeds and the same grid of
learning rates, of which each takes its best. Writes `speedup.json` (final
scores, convergence and comparable-result speed-ups, with what they are in
words, the curves), `speedup.csv` and `curves.png`. Step 0 is the score of the
start itself. The same command goes on where it was stopped.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import logging
import math
import os
import statistics
from typing import Any

from mpt_jax import analysis
from mpt_jax.checkpoints import bundle as bundle_lib
from mpt_jax.checkpoints import files
from mpt_jax.checkpoints import run as run_lib
from mpt_jax.engine import metrics, selection
from mpt_jax.study.steps import Step
from mpt_jax.transfer import (
  correlation,
  curves,
  records,
  runs,
  shelf,
  speedup_tables,
)
from mpt_jax.transfer import sources as sources_lib
from mpt_jax.transfer.curves import Curve
from mpt_jax.transfer.speedup_tables import ARMS, SCRATCH, TRANSFER
from mpt_jax.types import (
  InputError,
  Lengths,
  Names,
  Positive,
  Rate,
  check_least,
  local_path,
  nearest,
  require_local,
)

log = logging.getLogger(__name__)

_GIN = ('gin_configs/runs/teacher.gin',)
_SEED, _SOURCE = '{seed}', '{source}'
# In training examples, for the ETA: what a run costs beside its steps, and an
# evaluated example.
_RUN_COST, _EVALUATION_COST = 1500.0, 0.5
# How a rate is chosen, for who reads only the files.
CHOICE = (
  'of the same grid each start has the rate with the best mean over seeds of'
  ' the last evaluation, for each task; on the split whose scores are shown'
)


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How a target is trained, whatever it starts from.

  Attributes:
    steps: the last step.
    period: steps between evaluations.
    rates: the grid of learning rates.
    seeds: of start values, data and few-shot choice; a run for each.
    batch_size: rows per step.
    prompt_length: P, that of the sources.
    num_shots: examples per class of the train split; None is all.
    task_feature_lengths: {'inputs': S with prompt slots, 'targets': T}.
    split: of the evaluations.
    num_examples: of it; None is all.
    module: registers the tasks.
    macros: more macros of every run.
  """

  steps: Positive = 30000
  period: Positive = 500
  rates: Sequence[float] = (0.03, 0.1, 0.3, 1.0)
  seeds: Sequence[int] = (0, 1, 2)
  batch_size: Positive = 32
  prompt_length: Positive = 100
  num_shots: Positive | None = None
  task_feature_lengths: Lengths = dataclasses.field(
    default_factory=lambda: {'inputs': 356, 'targets': 128}
  )
  split: str = 'validation'
  num_examples: Positive | None = None
  module: str | None = 'tasks'
  macros: Mapping[str, Any] | None = None

  def __post_init__(self):
    check_least(1, TRAIN_STEPS=self.steps, EVAL_PERIOD=self.period)
    for name, values in (('RATES', self.rates), ('SEEDS', self.seeds)):
      if not values or len(set(values)) < len(values):
        raise InputError(
          f'{name} is {list(values)}: expected one or more, each once'
        )
    if not all(0 < rate < math.inf for rate in self.rates):
      raise InputError(f'RATES is {list(self.rates)}, expected above 0')
    if self.period > self.steps:
      raise InputError(
        f'EVAL_PERIOD is {self.period}, more than TRAIN_STEPS = {self.steps}:'
        ' there would be no curve'
      )

  @property
  def setting(self) -> str:
    """'full', or 'k16'."""
    return 'full' if self.num_shots is None else f'k{self.num_shots}'

  @property
  def evaluated(self) -> list[int]:
    """The steps of a curve."""
    return [*range(0, self.steps, self.period), self.steps]


# Seed -> path of a bundle.
Paths = Mapping[int, str]


@dataclasses.dataclass(frozen=True)
class Start:
  """What a target starts from, by seed.

  Attributes:
    source: the task whose prompt it is.
    paths: seed -> the bundle.
    digests: seed -> digest of the prompt.
  """

  source: str
  paths: Paths
  digests: Mapping[int, str]


def speedup(
  *,
  model_dir: str,
  backbone: str,
  sources: str | Mapping[str, Any],
  matrix: str | None = None,
  targets: Names | None = None,
  recipe: Recipe = Recipe(),
  tolerance: Rate = 0.5,
  workers: Positive | None = None,
) -> dict[str, Any]:
  """Trains targets from both starts, and compares the curves.

  Args:
    model_dir: folder for all runs and what is found.
    backbone: its path.
    sources: target -> path of a bundle to start from, with '{seed}' where each
      seed has its own; of a bundle of several tasks [path, task]. Or a
      library, or a path with '{source}' in it: each target has the foreign
      source that scores best on it in a matrix.
    matrix: `matrix.json` of the verb `matrix`, or its folder, for that.
    targets: which of its targets; None is all that have a foreign source.
    recipe: how the targets are trained.
    tolerance: points below the best that are as good, see
      `curves.definitions`.
    workers: processes; None is one with an accelerator, else up to two.

  Returns:
    What `speedup.json` holds.

  Raises:
    InputError: if something given is wrong.
  """
  folder = require_local(model_dir)
  if isinstance(sources, str):
    starts = _best_foreign(sources, matrix, targets, recipe.seeds)
  else:
    starts = {}
    for task, given in sources.items():
      path, source = given if isinstance(given, list | tuple) else (given, None)
      starts[task] = _start(task, _by_seed(path, recipe.seeds), source)
  if not starts:
    raise InputError('SOURCES is empty: give {target: path of a bundle}')
  settings = {
    'INITIAL_CHECKPOINT_PATH': backbone,
    **{
      f'SOURCES[{task!r}]': [start.source, *start.digests.values()]
      for task, start in starts.items()
    },
    'TOLERANCE': tolerance,
    **dataclasses.asdict(recipe),
  }
  if (done := records.begin(folder, 'speedup', settings)) is not None:
    log.info('%s: finished, nothing to do', folder)
    return done
  steps = _steps(folder, backbone, starts, recipe)
  runs.run(folder, list(steps.values()), backbone, recipe.module, workers)
  written = _collect(folder, steps, starts, recipe, tolerance)
  contents = {
    'curves.png': analysis.png(speedup_tables.plot(written)),
    'speedup.csv': speedup_tables.csv(written),
    'speedup.json': files.json_bytes(written),
  }
  records.write(folder, contents)
  for line in speedup_tables.lines(written):
    log.info('%s', line)
  return written


def _best_foreign(
  pattern: str,
  matrix: str | None,
  targets: Names | None,
  seeds: Sequence[int],
) -> dict[str, Start]:
  """Returns each target's start: the source that scores best, its own apart.

  Of a source with several runs the mean counts.
  """
  if matrix is None or not (_SOURCE in pattern or shelf.is_library(pattern)):
    raise InputError(
      f'SOURCES is {pattern!r}: give {{target: path}}; or with MATRIX a'
      f' library, or a path with {_SOURCE} in it'
    )
  content = correlation.load_matrix(matrix)
  task_of = correlation.trained(content)
  found: dict[str, dict[str, list[float]]] = {}
  for cell in content['cells']:
    source = task_of.get(cell['source'])
    if source and source != cell['task'] and cell['score'] is not None:
      sign = -1 if cell.get('better') == metrics.LESS else 1
      scores = found.setdefault(cell['task'], {}).setdefault(source, [])
      scores.append(sign * cell['score'])
  names = [targets] if isinstance(targets, str) else targets or list(found)
  chosen = {}
  for name in names:
    if name not in found:
      raise InputError(
        f'MATRIX {matrix!r} has no source for {name!r}{nearest(name, found)}'
      )
    means = {s: statistics.fmean(v) for s, v in found[name].items()}
    best = max(means, key=lambda source: means[source])
    log.info('%s starts from %s, the best of MATRIX', name, best)
    chosen[name] = _start(name, _of_source(pattern, best, seeds), best)
  return chosen


def _of_source(pattern: str, source: str, seeds: Sequence[int]) -> Paths:
  """The prompts of a source by seed: of a library the run of its name.

  A seed without a run has the library's first.
  """
  if not shelf.is_library(pattern):
    return _by_seed(pattern.replace(_SOURCE, source), seeds)
  there = {
    place.run: shelf.path_of(pattern, place)
    for place in shelf.places(pattern)
    if (place.task, place.kind) == (source, shelf.VALUE)
  }
  if not there:
    raise InputError(
      f'the library {pattern} has no prompt of {source}, the best of MATRIX'
    )
  first = next(iter(there))
  if others := [seed for seed in seeds if str(seed) not in there]:
    log.info('%s: seeds %s start from run %s', source, others, first)
  return {seed: there.get(str(seed), there[first]) for seed in seeds}


def _by_seed(pattern: Any, seeds: Sequence[int]) -> Paths:
  return {
    seed: local_path(str(pattern).replace(_SEED, str(seed))) for seed in seeds
  }


def _start(task: str, paths: Paths, source: str | None) -> Start:
  """Reads what a target starts from; a source of None is the only one."""
  digests, names = {}, set()
  for seed, place in paths.items():
    bundle = bundle_lib.load_prompts(place)
    if source is None and len(bundle.task_names) > 1:
      raise InputError(
        f'SOURCES[{task!r}]: {place} has the tasks'
        f' {", ".join(bundle.task_names)}: give [path, task]'
      )
    name = bundle.task_names[0] if source is None else source
    [prompt] = sources_lib.of_bundle(bundle.with_tasks([name]))
    digests[seed] = prompt.digest
    names.add(name)
  if len(names) > 1:
    raise InputError(
      f'SOURCES[{task!r}]: the seeds have prompts of {", ".join(sorted(names))}'
    )
  return Start(names.pop(), paths, digests)


# -- the runs -----------------------------------------------------------------

# (task, arm, seed, rate); rate None is the start itself.
Key = tuple[str, str, int, float | None]


def _steps(
  folder: str, backbone: str, starts: Mapping[str, Start], recipe: Recipe
) -> dict[Key, Step]:
  """Every run: both arms differ in what they start from and in nothing else."""
  found = {}
  for task, start in starts.items():
    for arm in ARMS:
      for seed in recipe.seeds:
        for rate in (None, *recipe.rates):
          key = (task, arm, seed, rate)
          found[key] = _step(folder, backbone, start, recipe, key)
  return found


def _step(
  folder: str, backbone: str, start: Start, recipe: Recipe, key: Key
) -> Step:
  task, arm, seed, rate = key
  name = f'{task}/{arm}/seed{seed}/{"start" if rate is None else f"{rate:g}"}'
  macros: dict[str, Any] = {
    'INITIAL_CHECKPOINT_PATH': backbone,
    'MODEL_DIR': os.path.join(folder, name),
    'MIXTURE_OR_TASK_NAME': task,
    'MIXTURE_OR_TASK_MODULE': recipe.module,
    'TASK_FEATURE_LENGTHS': dict(recipe.task_feature_lengths),
    'PROMPT_LENGTH': recipe.prompt_length,
    'RANDOM_SEED': seed,
    'NUM_SHOTS': recipe.num_shots,
    'BATCH_SIZE': recipe.batch_size,
    'TRAIN_STEPS': recipe.steps,
    'EVAL_PERIOD': recipe.period,
    'EVAL_SPLIT': recipe.split,
    'EVAL_EXAMPLES': recipe.num_examples,
    **(recipe.macros or {}),
  }
  if arm == TRANSFER:
    macros |= {
      'SOURCE_PROMPTS': start.paths[seed],
      'SOURCE_TASK': start.source,
    }
  evaluations, steps = len(recipe.evaluated) - 1, recipe.steps
  if rate is None:
    # No step of it: the start is scored as all the others are.
    macros |= {'TRAIN_STEPS': 0, 'EVAL_PERIOD': 0, 'SCHEDULE': 'constant'}
    evaluations, steps = 1, 0
  else:
    macros['SHARED_LEARNING_RATE'] = rate
  examples = recipe.num_examples or _RUN_COST
  return Step(
    name=name,
    entry='train',
    gin_files=_GIN,
    macros=macros,
    cost=_RUN_COST
    + steps * recipe.batch_size
    + _EVALUATION_COST * evaluations * examples,
    likeness=f'start {task}' if rate is None else f'train {task}',
    may_diverge=True,
    labels={'task': task, 'arm': arm, 'seed': seed, 'steps': steps},
  )


# -- what they tell -----------------------------------------------------------


def _collect(
  folder: str,
  steps: Mapping[Key, Step],
  starts: Mapping[str, Start],
  recipe: Recipe,
  tolerance: float,
) -> dict[str, Any]:
  """What `speedup.json` holds."""
  rows: list[dict[str, Any]] = []
  rates: dict[str, dict[str, Any]] = {}
  drawn: dict[str, dict[str, Any]] = {}
  for task, start in starts.items():
    name, best, rates[task] = _best(folder, steps, task, recipe)
    drawn[task] = {
      arm: {
        str(seed): curve.as_json()
        for seed, curve in zip(recipe.seeds, some, strict=True)
      }
      for arm, some in best.items()
    }
    about = {
      'task': task,
      'source': start.source,
      'setting': recipe.setting,
      'metric': name,
      'rate': rates[task][TRANSFER]['chosen'],
      'scratch_rate': rates[task][SCRATCH]['chosen'],
    }
    for seed, ours, theirs in zip(
      recipe.seeds, best[TRANSFER], best[SCRATCH], strict=True
    ):
      compared = curves.compare(theirs, ours, tolerance, recipe.period)
      rows.append({**about, 'seed': seed, **compared})
  tasks = [
    _summary([r for r in rows if r['task'] == task], rates[task])
    for task in starts
  ]
  product = bundle_lib.load_prompts(
    os.path.join(folder, next(iter(steps.values())).name, 'prompts')
  )
  return run_lib.record(
    {
      'version': 1,
      'definitions': {
        **curves.definitions(tolerance, recipe.period),
        'rates': CHOICE,
      },
      'backbone': {
        'name': product.backbone_name,
        'fingerprint': product.backbone_fingerprint,
      },
      'split': recipe.split,
      'setting': recipe.setting,
      'recipe': dataclasses.asdict(recipe),
      'tolerance': tolerance,
      'rows': rows,
      'tasks': tasks,
      'overall': {
        name: {
          **curves.mean_ratio([task[name]['mean'] for task in tasks]),
          'of': 'tasks',
        }
        for name in ('convergence', 'comparable')
      },
      'rates': rates,
      'curves': drawn,
    }
  )


def _best(
  folder: str, steps: Mapping[Key, Step], task: str, recipe: Recipe
) -> tuple[str, dict[str, list[Curve]], dict[str, Any]]:
  """A task's metric, the curves of each arm's best rate, and its rates."""
  name, meaning = _metric(folder, steps, task)
  rates: dict[str, Any] = {}
  best: dict[str, list[Curve]] = {}
  for arm in ARMS:
    tried = {
      rate: [
        _curve(folder, steps, (task, arm, seed, rate), name, meaning, recipe)
        for seed in recipe.seeds
      ]
      for rate in recipe.rates
    }
    rates[arm] = _chosen(tried)
    best[arm] = tried[rates[arm]['chosen']]
  return name, best, rates


def _chosen(tried: Mapping[float, Sequence[Curve]]) -> dict[str, Any]:
  """Which rate of a grid an arm takes, and what the others scored."""
  best = curves.best_rate(
    {rate: [c.gains[-1] for c in some] for rate, some in tried.items()}
  )
  return {
    'chosen': best,
    'on_edge': len(tried) > 1 and best in (min(tried), max(tried)),
    'finals': {
      f'{rate:g}': [c.scores[-1] for c in some] for rate, some in tried.items()
    },
  }


def _metric(
  folder: str, steps: Mapping[Key, Step], task: str
) -> tuple[str, metrics.Metric]:
  """The name of a task's main metric, and what it means."""
  for (of, *_), step in steps.items():
    if of == task:
      found = runs.results(folder, step)
      if values := found['scores'].get(task):
        said = metrics.from_json(found.get('metrics', {}).get(task, {}))
        name = selection.main_metric(values, said)
        return name, metrics.meaning(name, said, task)
  raise InputError(f'no run of {task} has a score: has {task} a metric?')


def _curve(
  folder: str,
  steps: Mapping[Key, Step],
  key: Key,
  name: str,
  meaning: metrics.Metric,
  recipe: Recipe,
) -> Curve:
  """A run's evaluations behind that of its start; None where it diverged."""
  task, arm, seed, _ = key
  start = steps[task, arm, seed, None]
  lines: dict[int, Mapping[str, Any]] = {}
  for step in (start, steps[key]):
    for line in runs.history(folder, step):
      if f'eval/{task}/{name}' in line:
        lines[line['step']] = line
  scores = [
    lines.get(at, {}).get(f'eval/{task}/{name}') for at in recipe.evaluated
  ]
  return Curve(
    steps=recipe.evaluated,
    scores=[None if s is None or math.isnan(s) else float(s) for s in scores],
    collapsed=[
      bool(lines.get(at, {}).get(f'floor/{task}/collapsed'))
      for at in recipe.evaluated
    ],
    less=meaning.better == metrics.LESS,
  )


def _summary(
  rows: Sequence[Mapping[str, Any]], rates: Mapping[str, Any]
) -> dict[str, Any]:
  """A task's rows in one, over seeds."""
  about = {k: rows[0][k] for k in ('task', 'source', 'setting', 'metric')}
  return {
    **about,
    **{
      name: curves.mean_score([row[name] for row in rows])
      for name in ('step0', 'final', 'scratch_step0', 'scratch_final')
    },
    'convergence': curves.mean_ratio([r['convergence_speedup'] for r in rows]),
    'comparable': curves.mean_ratio([r['comparable_speedup'] for r in rows]),
    'bounds': sum(row['bound'] for row in rows),
    'on_edge': [arm for arm in ARMS if rates[arm]['on_edge']],
  }
