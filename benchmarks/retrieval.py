r"""Does retrieval pick a better source than no retrieval? On the demo backbone.

  python -m tasks.offline --data_dir=data
  python -m benchmarks.retrieval --data=data --folder=retrieval

For each seed, target and number of examples k: `soft` from each of six source
tasks, from their mean and weighted mean and from scratch, and `multitask` from
P* with each source task's factors, with their mean and alone, all with the same
steps. So one choice of a source is read off against another: the nearest by its
key (SPoT), one fixed task for all, one picked by hand, and the oracle, which is
the best by the validation split. Scores are those of the test split.

The same command goes on where it was stopped. Prints a table, the mean
difference to the average start over targets with its standard error over seeds,
and writes FOLDER/retrieval.json. Five seeds are 935 runs.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import itertools
import json
import logging
import os
import statistics
import sys
from typing import Any

import scipy.stats

from mpt_jax.checkpoints import backbone as backbone_lib
from mpt_jax.checkpoints import files
from mpt_jax.engine import predictor, preemption
from mpt_jax.study import stats
from mpt_jax.study.steps import Step
from mpt_jax.transfer import library, ranking, retrieve, runs, shelf, sources
from mpt_jax.transfer.ranking import Ranking

SOURCES = ('mnli', 'qnli', 'qqp', 'sst2', 'squad', 'record')
# Target -> the source that one would pick by hand, as pipeline_common.gin has.
TARGETS = {
  **{'rte': 'mnli', 'cb': 'mnli', 'mrpc': 'qqp'},
  **{'boolq': 'qnli', 'cola': 'sst2'},
}
FIXED = 'mnli'
METRICS = ranking.AVERAGE, 'per_token', ranking.ON
SOFT, MPT = 'soft', 'mpt'
# Rates that a search found for few examples of the demo's targets.
FROM_SOURCE, SCRATCH, OF_MPT = 0.1, 1.0, (0.1, 0.1)
TOP = 3
RESULTS = 'retrieval.json'


@dataclasses.dataclass(frozen=True)
class Study:
  """What is compared.

  Attributes:
    folder: of all runs.
    teachers: folder of finished teachers with keys, SEED/TASK; '' trains them.
    seeds: the seeds.
    targets: the target tasks.
    shots: numbers of examples.
    key_step: steps behind a key, of sources and targets.
    steps: of target runs, teachers and source runs.
  """

  folder: str
  teachers: str
  seeds: Sequence[int]
  targets: Sequence[str]
  shots: Sequence[int]
  key_step: int = 200
  steps: tuple[int, int, int] = (200, 800, 1000)

  @property
  def cells(self) -> Iterator[tuple[int, int, str]]:
    """(seed, k, target)."""
    return itertools.product(self.seeds, self.shots, self.targets)

  @property
  def library(self) -> str:
    """Its folder."""
    return os.path.join(self.folder, 'library')

  def teacher(self, seed: int, task: str) -> str:
    """The folder of a teacher."""
    given = os.path.join(self.teachers, str(seed), task)
    if self.teachers and os.path.isdir(os.path.join(given, 'key')):
      return given
    return os.path.join(self.folder, f'teacher/{seed}/{task}')


def _step(
  study: Study,
  name: str,
  file: str,
  steps: int,
  rates: Any,
  macros: Mapping[str, Any],
  after: tuple[str, ...] = (),
) -> Step:
  """A run of training."""
  shared, own = rates if isinstance(rates, tuple) else (rates, None)
  batch = macros.get('BATCH_SIZE', 16)
  return Step(
    name=name,
    entry='train',
    gin_files=(f'gin_configs/runs/{file}.gin',),
    macros={
      'INITIAL_CHECKPOINT_PATH': _backbone(),
      'MODEL_DIR': os.path.join(study.folder, name),
      'TASK_FEATURE_LENGTHS': {'inputs': 48, 'targets': 4},
      'PROMPT_LENGTH': 10,
      'PADDING': 'max',
      'WEIGHT_DECAY': 0.0,
      'TRAIN_STEPS': steps,
      'CHECKPOINT_PERIOD': 1000,
      'BATCH_SIZE': 16,
      'EVAL_EXAMPLES': 256,
      'SHOTS_PER_CLASS': False,
      'SHARED_LEARNING_RATE': shared,
      **({} if own is None else {'TASK_LEARNING_RATE': own}),
      'train.Logging.tensorboard': False,
      **macros,
    },
    after=after,
    priority=int(file == 'source'),
    cost=1500 + steps * batch,
    likeness=f'{file} {steps} {rates}',
    labels={'steps': steps},
  )


def _backbone() -> str:
  return backbone_lib.find_backbone('demo')


def sources_of(study: Study) -> list[Step]:
  """Teachers, source runs, and the keys of the targets."""
  target_steps, teacher_steps, source_steps = study.steps
  made = []
  for seed in study.seeds:
    teachers = []
    for task in SOURCES:
      name = f'teacher/{seed}/{task}'
      if study.teacher(seed, task) != os.path.join(study.folder, name):
        continue
      teachers.append(name)
      macros = {'MIXTURE_OR_TASK_NAME': task, 'RANDOM_SEED': seed}
      macros['KEY_STEP'] = min(study.key_step, teacher_steps)
      made.append(_step(study, name, 'teacher', teacher_steps, 0.3, macros))
    macros = {
      'MIXTURE_OR_TASK_NAME': 'mpt_source_equal',
      'PROMPT_TASKS': list(SOURCES),
      'RANDOM_SEED': seed,
      'BATCH_SIZE': 24,
      'TASK_SAMPLING': 'proportional',
      'TEACHER_PROMPTS': {
        task: os.path.join(study.teacher(seed, task), 'prompts')
        for task in SOURCES
      },
    }
    made.append(
      _step(
        *(study, f'source/{seed}', 'source', source_steps, (0.3, 0.1), macros),
        tuple(teachers),
      )
    )
  for seed, k, target in study.cells:
    macros = _few(seed, k, target) | {
      'KEY_STEP': study.key_step,
      'train.train.evaluation': None,
    }
    name = f'key/{seed}/{k}/{target}'
    made.append(_step(study, name, 'teacher', study.key_step, 0.3, macros))
  return made


def _few(seed: int, k: int, target: str) -> dict[str, Any]:
  return {'MIXTURE_OR_TASK_NAME': target, 'RANDOM_SEED': seed, 'NUM_SHOTS': k}


def rankings(study: Study) -> dict[tuple[int, int, str], dict[str, Ranking]]:
  """The sources of each cell by how near they are; writes weighted starts."""
  for seed in study.seeds:
    given = {task: study.teacher(seed, task) for task in SOURCES}
    library.add(library=study.library, prompts=given, run=seed)
  found = {}
  backbone = predictor.load_backbone('demo')
  for seed, k, target in study.cells:
    path = os.path.join(study.folder, f'key/{seed}/{k}/{target}/key')
    names = [f'{task}/{seed}' for task in SOURCES]
    keys = ranking.source_keys(study.library, None, names)
    targets = sources.read(path)
    each = {m: ranking.compare(keys, targets, m, backbone) for m in METRICS}
    found[seed, k, target] = each
    values = {i.name: i.bundle for i in shelf.read(study.library, tasks=names)}
    shares = each[METRICS[0]].weights(TOP, 'clip')
    start = retrieve.mean_of([values[n] for n in shares], [*shares.values()])
    start.save(_weighted(study, seed, k, target))
  return found


def _weighted(study: Study, seed: int, k: int, target: str) -> str:
  return os.path.join(study.folder, f'weighted/{seed}/{k}/{target}')


def targets_of(study: Study) -> dict[tuple[str, str, int, int, str], Step]:
  """The target runs by (method, start, seed, k, target)."""
  made = {}
  steps = study.steps[0]
  for seed, k, target in study.cells:
    few = _few(seed, k, target) | {'TEST_SPLIT': 'test'}
    every = {
      task: os.path.join(study.teacher(seed, task), 'prompts')
      for task in SOURCES
    }
    soft: dict[str, dict[str, Any]] = {
      **{task: {'SOURCE_PROMPTS': path} for task, path in every.items()},
      'average': {'SOURCE_PROMPTS': every, 'START': 'average'},
      'weighted': {'SOURCE_PROMPTS': _weighted(study, seed, k, target)},
      'scratch': {},
    }
    for start, macros in soft.items():
      name = f'{SOFT}/{seed}/{k}/{target}/{start}'
      rate = SCRATCH if start == 'scratch' else FROM_SOURCE
      made[SOFT, start, seed, k, target] = _step(
        study, name, 'teacher', steps, rate, {**few, **macros}
      )
    bundle = os.path.join(study.folder, f'source/{seed}/prompts')
    for start in ('average', 'shared', *SOURCES):
      name = f'{MPT}/{seed}/{k}/{target}/{start}'
      own = start if start in ('average', 'shared') else f'task:{start}'
      macros = {**few, 'SOURCE_PROMPTS': bundle, 'START': own}
      made[MPT, start, seed, k, target] = _step(
        study, name, 'target', steps, OF_MPT, macros
      )
  return made


# ---------------------------------------------------------------------------
# What it says.


@dataclasses.dataclass(frozen=True)
class Cell:
  """The runs of a method on a target with k examples of a seed.

  Attributes:
    target: the task.
    valid: start -> score of the validation split, percent.
    test: start -> score of the test split, percent.
    order: metric -> sources, the nearest first.
    similarity: metric -> source -> similarity.
  """

  target: str
  valid: Mapping[str, float]
  test: Mapping[str, float]
  order: Mapping[str, Sequence[str]]
  similarity: Mapping[str, Mapping[str, float]]

  def best(self, among: Sequence[str]) -> str:
    """The best source by the validation split; of equals the first."""
    return max(among, key=lambda source: self.valid[source])

  def of_all(self) -> float:
    """The mean of all sources, which is what a source drawn at random has."""
    return statistics.fmean(self.test[source] for source in SOURCES)


def _nearest(metric: str) -> Callable[[Cell], float]:
  return lambda cell: cell.test[cell.order[metric][0]]


ARMS: Mapping[str, Callable[[Cell], float]] = {
  **{f'nearest, {metric}': _nearest(metric) for metric in METRICS},
  f'best of {TOP} nearest': lambda c: c.test[c.best(c.order[METRICS[0]][:TOP])],
  f'weighted, {TOP} nearest': lambda c: c.test['weighted'],
  'oracle': lambda c: c.test[c.best(SOURCES)],
  f'fixed: {FIXED}': lambda c: c.test[FIXED],
  'by hand': lambda c: c.test[TARGETS[c.target]],
  'a source at random': Cell.of_all,
  'shared': lambda c: c.test['shared'],
  'scratch': lambda c: c.test['scratch'],
}


def cells_of(
  study: Study,
  steps: Mapping[tuple[str, str, int, int, str], Step],
  ranked: Mapping[tuple[int, int, str], Mapping[str, Ranking]],
) -> dict[tuple[str, int, int, str], Cell]:
  """The results by (method, seed, k, target)."""
  scores: dict[Any, dict[str, tuple[float, float]]] = {}
  for (method, start, *where), step in steps.items():
    told = runs.results(study.folder, step)
    target = where[-1]
    scores.setdefault((method, *where), {})[start] = (
      stats.main_score(told['scores'][target])[1],
      stats.main_score(told['test_scores'][target])[1],
    )
  return {
    (method, *where): Cell(
      where[-1],
      {start: valid for start, (valid, _) in of.items()},
      {start: test for start, (_, test) in of.items()},
      {m: [row.task for row in r.prompts] for m, r in ranked[*where].items()},
      {
        m: {row.task: row.similarity for row in r.prompts}
        for m, r in ranked[*where].items()
      },
    )
    for (method, *where), of in scores.items()
  }


def summary(
  study: Study, cells: Mapping[tuple[str, int, int, str], Cell]
) -> dict[str, Any]:
  """Means, differences to the average start, and how good the picks are."""
  report: dict[str, Any] = {}
  for method, k in itertools.product((SOFT, MPT), study.shots):
    by_seed = {
      seed: [cells[method, seed, k, target] for target in study.targets]
      for seed in study.seeds
    }
    flat = [cell for of in by_seed.values() for cell in of]
    arms = {'average': {'test': _mean(by_seed, lambda c: c.test['average'])}}
    for name, arm in ARMS.items():
      if all(_has(arm, cell) for cell in flat):
        arms[name] = {
          'test': _mean(by_seed, arm),
          'over average': _mean(
            by_seed, lambda c, arm=arm: arm(c) - c.test['average']
          ),
          'by target': {
            target: statistics.fmean(
              arm(c) - c.test['average'] for c in flat if c.target == target
            )
            for target in study.targets
          },
        }
    report[f'{method} k={k}'] = {
      'arms': arms,
      'picks': {metric: _picks(flat, metric) for metric in METRICS},
    }
  return report


def _has(arm: Callable[[Cell], float], cell: Cell) -> bool:
  try:
    arm(cell)
  except KeyError:  # A method has no such start.
    return False
  return True


def _mean(
  by_seed: Mapping[int, Sequence[Cell]], arm: Callable[[Cell], float]
) -> dict[str, Any]:
  values = {s: statistics.fmean(map(arm, of)) for s, of in by_seed.items()}
  return {
    'mean': statistics.fmean(values.values()),
    'standard_error': stats.standard_error([*values.values()]),
    'seeds': values,
  }


def _picks(cells: Sequence[Cell], metric: str) -> dict[str, Any]:
  """How often the nearest is the best, and whether near ones are better."""
  hits = [c.order[metric][0] == c.best(SOURCES) for c in cells]
  rhos = []
  for cell in cells:
    near = [cell.similarity[metric][source] for source in SOURCES]
    good = [cell.test[source] for source in SOURCES]
    if len(set(good)) > 1:
      rhos.append(float(scipy.stats.spearmanr(near, good).statistic))
  return {
    'nearest is the best by validation': statistics.fmean(hits),
    'chance': 1 / len(SOURCES),
    'spearman of similarity and test score': statistics.fmean(rhos)
    if rhos
    else None,
    'cells': len(cells),
    'negative similarities': sum(
      value < 0 for c in cells for value in c.similarity[metric].values()
    ),
    'picked': {
      source: sum(c.order[metric][0] == source for c in cells)
      for source in SOURCES
    },
  }


def table(report: Mapping[str, Any]) -> str:
  """The differences to the average start, an arm a line."""
  arms = list(
    dict.fromkeys(a for part in report.values() for a in part['arms'])
  )
  lines = [['over the average start (test)', *report]]
  for arm in arms:
    line = [arm]
    for part in report.values():
      told = part['arms'].get(arm)
      if told is None:
        line.append('')
      elif arm == 'average':
        line.append(_told(told['test'], '') + ' itself')
      else:
        line.append(_told(told['over average'], '+'))
    lines.append(line)
  for metric in METRICS:
    lines.append([f'picks the best, {metric}'])
    lines.append([f'spearman, {metric}'])
    for part in report.values():
      picks = part['picks'][metric]
      share = picks['nearest is the best by validation']
      lines[-2].append(f'{100 * share:.0f} % (chance {100 / len(SOURCES):.0f})')
      rho = picks['spearman of similarity and test score']
      lines[-1].append('-' if rho is None else f'{rho:+.2f}')
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return '\n'.join(
    '  '.join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
    for line in lines
  )


def _told(part: Mapping[str, Any], sign: str) -> str:
  error = part['standard_error']
  spread = '' if error is None else f' ± {error:.2f}'
  return f'{part["mean"]:{sign}.2f}{spread}'


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--folder', required=True)
  parser.add_argument('--data', required=True)
  parser.add_argument('--teachers', default='')
  parser.add_argument('--seeds', type=int, nargs='+', default=[*range(5)])
  parser.add_argument('--targets', nargs='+', default=[*TARGETS])
  parser.add_argument('--shots', type=int, nargs='+', default=[16, 32])
  parser.add_argument('--key_step', type=int, default=200)
  parser.add_argument('--steps', type=int, nargs=3, default=[200, 800, 1000])
  parser.add_argument('--workers', type=int)
  args = parser.parse_args()
  logging.basicConfig(level=logging.INFO, format='%(asctime)s %(message)s')
  logging.getLogger('absl').setLevel(logging.WARNING)
  study = Study(
    *(os.path.abspath(args.folder), args.teachers, args.seeds, args.targets),
    *(args.shots, args.key_step, tuple(args.steps)),
  )
  first, last = sources_of(study), targets_of(study)
  logging.info('%d runs, and %d of targets', len(first), len(last))
  data = os.path.abspath(args.data)
  run = {'workers': args.workers, 'data_dir': data}
  runs.run(study.folder, first, _backbone(), **run)
  ranked = rankings(study)
  runs.run(study.folder, list(last.values()), _backbone(), **run)
  cells = cells_of(study, last, ranked)
  report = summary(study, cells)
  content = {
    'version': 1,
    'seeds': list(study.seeds),
    'key_step': study.key_step,
    'selection': 'the oracle is chosen by the validation split',
    'report': report,
    'cells': {'/'.join(map(str, w)): vars(c) for w, c in cells.items()},
  }
  path = os.path.join(study.folder, RESULTS)
  files.write_file(path, json.dumps(content, indent=1).encode())
  print(table(report))


if __name__ == '__main__':
  try:
    main()
  except preemption.Interrupted:
    sys.exit('stopped; the same command goes on with what is missing')
