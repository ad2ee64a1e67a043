r"""Runs the whole of MPT: teachers, source, targets, tests, export, report.

  python -m mpt_jax.pipeline --gin_file=gin_configs/runs/demo.gin \
    --gin.MODEL_DIR="'demo'"

Every step is one of the other commands, in its own folder below MODEL_DIR,
with its `log.txt` and the command in `step.json`. The same command goes on
where it was stopped; finished steps are skipped. Without --tfds_data_dir (or
TFDS_DATA_DIR) synthetic data are written to MODEL_DIR/data and used.
"""

from mpt_jax import cli

if __name__ == '__main__':
  # Before the imports: neither --help nor a wrong macro waits for them.
  cli.main('mpt_jax.pipeline', 'pipeline')

from collections.abc import Mapping, Sequence
import dataclasses
import logging
import os
import sys
import time
from typing import Any

from mpt_jax.checkpoints import files, lock
from mpt_jax.checkpoints import run as run_lib
from mpt_jax.checkpoints.backbone import DEMO
from mpt_jax.checkpoints.run import RESULTS
from mpt_jax.engine import metrics, preemption, selection
from mpt_jax.study import report
from mpt_jax.study.workers import STEP, Pool, Step, StepError
from mpt_jax.types import (
  InputError,
  Lengths,
  Natural,
  Positive,
  Rate,
  local_path,
  nearest,
  require_local,
)

log = logging.getLogger(__name__)

# Source variant -> (prompt method, whether teachers are distilled).
VARIANTS = {
  'mpt': ('multitask', True),
  'no_distillation': ('multitask', False),
  'shared_only': ('soft', True),
  'neither': ('soft', False),
}
# Target method -> the source variant that it starts from, if any.
METHODS = {
  'mpt': 'mpt',
  'mpt_no_distillation': 'no_distillation',
  'pt': None,
  'single_source': None,
}
# A macro for training runs that test runs need too.
_ALLOWED = 'ALLOW_CUT_TARGETS'
_PRIORITIES = ('teacher', 'source', 'target', 'test', 'export')
# In training examples: what a run costs beside its steps, for the ETA.
_RUN_COST, _TEST_COST, _DISTILLED_COST = 1500.0, 1000.0, 1.5
_EVALUATION_COST = 0.5  # of one example

_STOPPING = (
  'stopping: what trains saves its state and ends; press Ctrl-C again to end'
  ' at once'
)

# (rate of P* or the plain prompt, rate of u and v or None).
Rates = tuple[float, float | None]


@dataclasses.dataclass(frozen=True)
class Training:
  """How long and how fast a stage trains.

  Attributes:
    steps: training steps.
    batch_size: rows of a batch.
    learning_rate: peak rate of the (shared) prompt.
    task_learning_rate: peak rate of u and v; for the source stage.
  """

  steps: Natural
  batch_size: Positive
  learning_rate: Rate
  task_learning_rate: Rate | None = None


@dataclasses.dataclass(frozen=True)
class Setting:
  """How much data a target task gives, and how its runs train.

  Attributes:
    name: 'k32' or 'full', for example; a folder name.
    num_shots: examples per task; None is the whole train split.
    steps: training steps.
    batch_size: rows of a batch.
    seeds: the seeds to run; each must be one of the pipeline's.
    rates: method -> (rate of P* or the plain prompt, rate of u and v).
    tuned_as: the setting whose tuned rates are used; None is this one.
  """

  name: str
  num_shots: Positive | None
  steps: Natural
  batch_size: Positive
  seeds: tuple[Natural, ...]
  rates: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  tuned_as: str | None = None


@dataclasses.dataclass(frozen=True)
class Tuning:
  """The search for each target method's learning rates.

  Attributes:
    seed: a seed that is not reported.
    grids: method -> its pairs of rates; all grids have the same size.
    settings: names of the settings that are tuned.
  """

  seed: int
  grids: Mapping[str, Any]
  settings: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
  """All that decides which steps there are.

  Attributes:
    folder: the pipeline's folder (MODEL_DIR).
    backbone: path of the backbone.
    source_mixture: mixture of the source tasks.
    source_tasks: its tasks, in row order.
    targets: target task -> the source task whose teacher `single_source`
      starts from, picked by hand.
    lengths: {'inputs': S with prompt slots, 'targets': T}.
    prompt_length: P.
    teacher: the teachers' training.
    source: the source runs' training.
    settings: the target settings.
    seeds: seeds of the whole chain of teachers, MPT source run and targets.
    ablation_seeds: seeds of the other source variants.
    variants: source variants, of `VARIANTS`.
    methods: target methods, of `METHODS`.
    tuning: the search for the targets' rates; None uses those given.
    prompt_rank: R.
    prompt_init: gin file of the start values of teachers and source runs.
    distillation: macros of source.gin that set the distillation.
    macros: macros for every training run.
    module: module that registers the tasks.
    eval_examples: validation examples per task, for curves and tuning.
    curve_points: evaluations during a source run.
    benchmark_bars: whether the report holds the run against what the embedded
      benchmark expects.
  """

  folder: str
  backbone: str
  source_mixture: str
  source_tasks: tuple[str, ...]
  targets: Mapping[str, str]
  lengths: Mapping[str, int]
  prompt_length: int
  teacher: Training
  source: Training
  settings: tuple[Setting, ...]
  seeds: tuple[int, ...]
  ablation_seeds: tuple[int, ...]
  variants: tuple[str, ...]
  methods: tuple[str, ...]
  tuning: Tuning | None = None
  prompt_rank: int = 1
  prompt_init: str = 'gin_configs/prompts/vocabulary.gin'
  distillation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  macros: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  module: str = 'tasks'
  eval_examples: int = 256
  curve_points: int = 10
  benchmark_bars: bool = False

  def __post_init__(self):
    _check_names('source variant', self.variants, VARIANTS)
    _check_names('target method', self.methods, METHODS)
    for task, source in self.targets.items():
      _check_names(f'the source of {task}', [source], self.source_tasks)
    for method in self.methods:
      variant = METHODS[method]
      if variant is not None and variant not in self.variants:
        raise InputError(
          f'target method {method!r} needs the source variant {variant!r}'
        )
    names = [s.name for s in self.settings]
    for setting in self.settings:
      _check_names(f'a seed of {setting.name}', setting.seeds, self.seeds)
      if 'mpt_no_distillation' in self.methods:
        _check_names(
          f'a seed of {setting.name}', setting.seeds, self.ablation_seeds
        )
      if setting.tuned_as is not None:
        _check_names(f'tuned_as of {setting.name}', [setting.tuned_as], names)
    _check_names('ablation seed', self.ablation_seeds, self.seeds)
    if self.tuning is not None:
      _check_names('tuned setting', self.tuning.settings, names)
      if self.tuning.seed in self.seeds:
        raise InputError(
          f'the tuning seed {self.tuning.seed} is among the reported seeds'
        )
      sizes = {m: len(self.tuning.grids.get(m, ())) for m in self.methods}
      if len(set(sizes.values())) > 1 or not all(sizes.values()):
        raise InputError(
          f'the grids must have one size, for equal tuning; they have {sizes}'
        )

  def steps(self, chosen: Mapping[str, Mapping[str, Rates]]) -> list[Step]:
    """The reported steps.

    Args:
      chosen: setting -> method -> rates; from `tuned_rates` or `given_rates`.

    Returns:
      The steps, in an order in which they could run.
    """
    steps: list[Step] = []
    for seed in self.seeds:
      root = f'seed{seed}'
      variants = self.variants if seed in self.ablation_seeds else ('mpt',)
      steps += self._sources(root, seed, variants, tested=True)
      for setting in self.settings:
        if seed not in setting.seeds:
          continue
        for method in self.methods:
          for task in self.targets:
            run = self._target(
              root,
              f'{root}/target/{setting.name}/{method}/{task}',
              seed,
              setting,
              method,
              task,
              chosen[setting.tuned_as or setting.name][method],
            )
            steps += [run, self._test(run, [task])]
    return [*steps, *self._zero_shots(), *self._exports(steps)]

  def tuning_steps(self) -> list[Step]:
    """The steps of the search for learning rates, on its own seed."""
    if self.tuning is None:
      return []
    seed = self.tuning.seed
    variants = [v for v in VARIANTS if v in {METHODS[m] for m in self.methods}]
    steps = self._sources('tuning', seed, variants, tested=False)
    for setting in self.settings:
      if setting.name not in self.tuning.settings:
        continue
      for method in self.methods:
        for rates in self._grid(method):
          for task in self.targets:
            name = f'tuning/{setting.name}/{method}/{_rates_name(rates)}/{task}'
            steps.append(
              self._target(
                'tuning', name, seed, setting, method, task, rates, scored=True
              )
            )
    return steps

  def given_rates(self) -> dict[str, dict[str, Rates]]:
    """The rates in the settings, or the first ones of the grids.

    Returns:
      Setting -> method -> rates.

    Raises:
      InputError: if a setting lacks a method's rates and nothing is tuned.
    """
    chosen: dict[str, dict[str, Rates]] = {}
    for setting in self.settings:
      if setting.tuned_as is not None:
        continue
      chosen[setting.name] = {}
      for method in self.methods:
        if method in setting.rates:
          chosen[setting.name][method] = _rates(setting.rates[method])
        elif self.tuning and setting.name in self.tuning.settings:
          chosen[setting.name][method] = self._grid(method)[0]
        else:
          raise InputError(
            f'setting {setting.name!r} has no learning rates for {method!r}'
          )
    return chosen

  def check_tuning(
    self, declared: Mapping[str, tuple[Mapping[str, metrics.Metric], bool]]
  ) -> None:
    """Refuses a search whose scores cannot be compared, before it runs.

    Args:
      declared: of each target what its metric functions say, and whether that
        is all they give.

    Raises:
      InputError: if the targets' main scores have no common mean.
    """
    selection.check_declared(declared, None)
    self._common_metric(
      [
        {task: said[selection.main_metric(said, said)]}
        for task, (said, whole) in declared.items()
        if whole
      ]
    )

  def tuned_rates(self) -> tuple[dict[str, dict[str, Rates]], list[dict]]:
    """Reads the finished search.

    Returns:
      (setting -> method -> best rates by the mean over the targets, the whole
      search as rows for the report).
    """
    chosen = self.given_rates()
    rows: list[dict] = []
    for setting in self.tuning.settings if self.tuning else ():
      for method in self.methods:
        grid = self._grid(method)
        found = [self._tuning_row(setting, method, rates) for rates in grid]
        together = self._common_metric([meanings for _, meanings in found])
        for row, _ in found:
          values = [_filled(v, together) for v in row['scores'].values()]
          known = [v for v in values if v is not None]
          row['mean'] = (
            sum(known) / len(known) if len(known) == len(values) else None
          )
          rows.append(row)
        gains = [together.gain(row['mean']) for row, _ in found]
        best = gains.index(max(gains))
        chosen[setting][method] = grid[best]
        rows[best - len(grid)]['chosen'] = True
        rows[best - len(grid)]['on_edge'] = _on_edge(grid[best], grid)
    return chosen, rows

  def _tuning_row(
    self, setting: str, method: str, rates: Rates
  ) -> tuple[dict[str, Any], dict[str, metrics.Metric]]:
    """The search's scores of one pair of rates, and what they mean, by task.

    A score is None where it is not defined or the run diverged.
    """
    scores: dict[str, float | None] = {}
    meanings = {}
    for task in self.targets:
      name = f'tuning/{setting}/{method}/{_rates_name(rates)}/{task}'
      results = files.read_json(os.path.join(self.folder, name, RESULTS))
      values = results['scores'].get(task)
      scores[task] = None
      if values:
        said = metrics.from_json(results.get('metrics', {}).get(task, {}))
        main = selection.main_metric(values, said)
        meanings[task] = metrics.meaning(main, said, task)
        scores[task] = values[main]
    row = {'setting': setting, 'method': method, 'rates': list(rates)}
    return {**row, 'scores': scores}, meanings

  def _common_metric(
    self, found: Sequence[Mapping[str, metrics.Metric]]
  ) -> metrics.Metric:
    """What the mean over the targets means.

    Args:
      found: what is known of each target's main score, maybe in many runs.

    Raises:
      InputError: if the targets' scores have no common mean.
    """
    kinds = {task: m for meanings in found for task, m in meanings.items()}
    if not kinds:
      return metrics.KNOWN['accuracy']  # Every run diverged.
    together = selection.common_meaning(kinds.values())
    if together is None:
      told = ', '.join(
        f'{task}: {m.better} is better{f" ({m.unit})" if m.unit else ""}'
        for task, m in kinds.items()
      )
      raise InputError(
        'TUNING compares means over the targets, whose main scores have none'
        f' ({told}): set TUNING = None and give each setting its rates'
      )
    return together

  def _grid(self, method: str) -> list[Rates]:
    assert self.tuning is not None
    return [_rates(r) for r in self.tuning.grids[method]]

  def _sources(
    self, root: str, seed: int, variants: Sequence[str], tested: bool
  ) -> list[Step]:
    """Teachers and source runs of a seed, with their tests."""
    steps = []
    teachers = tuple(f'{root}/teacher/{task}' for task in self.source_tasks)
    for task, name in zip(self.source_tasks, teachers, strict=True):
      steps.append(
        self._training(
          name,
          ('gin_configs/runs/teacher.gin', self.prompt_init),
          self.teacher,
          {'MIXTURE_OR_TASK_NAME': task, 'RANDOM_SEED': seed},
          labels={'stage': 'teacher', 'seed': seed, 'task': task},
        )
      )
    for variant in variants:
      method, distilled = VARIANTS[variant]
      macros: dict[str, Any] = {
        'MIXTURE_OR_TASK_NAME': self.source_mixture,
        'RANDOM_SEED': seed,
        'PROMPT_TASKS': list(self.source_tasks),
        'PROMPT_METHOD': method,
        'PROMPT_RANK': self.prompt_rank,
        'TASK_LEARNING_RATE': self.source.task_learning_rate,
        'EVAL_PERIOD': max(1, self.source.steps // self.curve_points),
      }
      if distilled:
        pattern = self._path(f'{root}/teacher/{{task}}/prompts')
        macros |= {'TEACHER_PROMPTS': pattern, **self.distillation}
      else:
        macros |= {'TEACHER_PROMPTS': None, 'DISTILLATION': None}
      steps.append(
        self._training(
          f'{root}/source/{variant}',
          ('gin_configs/runs/source.gin', self.prompt_init),
          self.source,
          macros,
          after=teachers if distilled else (),
          labels={'stage': 'source', 'seed': seed, 'method': variant},
        )
      )
    if tested:
      for run in list(steps):
        own = run.labels.get('task')
        steps.append(self._test(run, [own] if own else self.source_tasks))
    return steps

  def _target(
    self,
    root: str,
    name: str,
    seed: int,
    setting: Setting,
    method: str,
    task: str,
    rates: Rates,
    scored: bool = False,
  ) -> Step:
    """One target run; `scored` on the validation split at its end."""
    macros = {
      'MIXTURE_OR_TASK_NAME': task,
      'RANDOM_SEED': seed,
      'NUM_SHOTS': setting.num_shots,
    }
    if not scored:
      macros['train.train.evaluation'] = None
    after: tuple[str, ...] = ()
    gin_files: tuple[str, ...] = ('gin_configs/runs/teacher.gin',)
    variant = METHODS[method]
    if variant is not None:
      after = (f'{root}/source/{variant}',)
      gin_files = ('gin_configs/runs/target.gin',)
      macros |= {
        'SOURCE_PROMPTS': self._path(f'{after[0]}/prompts'),
        'PROMPT_RANK': self.prompt_rank,
        'TASK_LEARNING_RATE': rates[1],
      }
    elif method == 'single_source':
      source = self.targets[task]
      after = (f'{root}/teacher/{source}',)
      macros |= {
        'SOURCE_PROMPTS': self._path(f'{after[0]}/prompts'),
        'SOURCE_TASK': source,
      }
    else:
      gin_files += (self.prompt_init,)
    training = Training(setting.steps, setting.batch_size, *rates)
    return self._training(
      name,
      gin_files,
      training,
      macros,
      after=after,
      labels={
        'stage': 'tuning' if scored else 'target',
        'seed': seed,
        'method': method,
        'setting': setting.name,
        'task': task,
        'rates': list(rates),
      },
    )

  def _training(
    self,
    name: str,
    gin_files: tuple[str, ...],
    training: Training,
    macros: Mapping[str, Any],
    labels: Mapping[str, Any],
    after: tuple[str, ...] = (),
  ) -> Step:
    weight = _DISTILLED_COST if macros.get('TEACHER_PROMPTS') else 1.0
    cost = _RUN_COST + weight * training.steps * training.batch_size
    if labels['stage'] == 'source':
      examples = self.eval_examples * len(self.source_tasks)
      cost += _EVALUATION_COST * examples * (self.curve_points + 1)
    stage = 'target' if labels['stage'] == 'tuning' else labels['stage']
    return Step(
      name=name,
      entry='train',
      gin_files=gin_files,
      macros={
        'INITIAL_CHECKPOINT_PATH': self.backbone,
        'MODEL_DIR': self._path(name),
        'MIXTURE_OR_TASK_MODULE': self.module,
        'TASK_FEATURE_LENGTHS': dict(self.lengths),
        'PROMPT_LENGTH': self.prompt_length,
        'TRAIN_STEPS': training.steps,
        'BATCH_SIZE': training.batch_size,
        'SHARED_LEARNING_RATE': training.learning_rate,
        'EVAL_EXAMPLES': self.eval_examples,
        **self.macros,
        **macros,
      },
      after=after,
      priority=_PRIORITIES.index(stage),
      cost=cost,
      likeness=f'{gin_files[0]} {labels.get("method")} {training}',
      may_diverge=labels['stage'] == 'tuning',
      labels={**labels, 'steps': training.steps},
    )

  @property
  def _allowed(self) -> dict[str, Any]:
    """What tests share of the macros for training runs."""
    return {n: self.macros[n] for n in (_ALLOWED,) if n in self.macros}

  def _test(self, run: Step, tasks: Sequence[str]) -> Step:
    name = f'{run.name}/test'
    return Step(
      name=name,
      entry='eval',
      gin_files=('gin_configs/runs/eval.gin',),
      macros={
        'INITIAL_CHECKPOINT_PATH': self.backbone,
        'MODEL_DIR': self._path(name),
        'PROMPTS': self._path(f'{run.name}/prompts'),
        'MIXTURE_OR_TASK_NAME': list(tasks),
        'MIXTURE_OR_TASK_MODULE': self.module,
        'TASK_FEATURE_LENGTHS': dict(self.lengths),
        'EVAL_SPLIT': 'test',
        **self._allowed,
      },
      after=(run.name,),
      priority=_PRIORITIES.index('test'),
      cost=_TEST_COST * len(tasks),
      likeness=f'eval {run.gin_files[0]} {run.labels.get("method")}',
      labels={'stage': 'test', 'of': run.name},
    )

  def _zero_shots(self) -> list[Step]:
    """The backbone alone on each task's test split."""
    return [
      Step(
        name=f'zero_shot/{task}',
        entry='eval',
        gin_files=('gin_configs/runs/eval.gin',),
        macros={
          'INITIAL_CHECKPOINT_PATH': self.backbone,
          'MODEL_DIR': self._path(f'zero_shot/{task}'),
          'PROMPTS': None,
          'MIXTURE_OR_TASK_NAME': task,
          'MIXTURE_OR_TASK_MODULE': self.module,
          'TASK_FEATURE_LENGTHS': dict(self.lengths),
          'EVAL_SPLIT': 'test',
          **self._allowed,
        },
        priority=_PRIORITIES.index('test'),
        cost=_TEST_COST,
        likeness='eval zero_shot',
        labels={'stage': 'zero_shot', 'task': task},
      )
      for task in dict.fromkeys((*self.source_tasks, *self.targets))
    ]

  def _exports(self, steps: Sequence[Step]) -> list[Step]:
    """Exports each target task's MPT prompts of the first seed.

    Of several settings, those with the most data.
    """
    best: dict[str, Step] = {}
    shots = {s.name: s.num_shots or float('inf') for s in self.settings}
    for step in steps:
      labels = step.labels
      if (labels['stage'], labels.get('method')) == ('target', 'mpt'):
        found = best.setdefault(labels['task'], step)
        if shots[labels['setting']] > shots[found.labels['setting']]:
          best[labels['task']] = step
    exports = []
    for task, step in best.items():
      # A bundle needs a folder of its own; `.npy` files share one.
      for kind, output in (('npy', 'npy'), ('bundle', f'bundle/{task}')):
        exports.append(
          Step(
            name=f'export/{kind}-{task}',
            entry='export',
            gin_files=('gin_configs/runs/export.gin',),
            macros={
              'PROMPTS': self._path(f'{step.name}/prompts'),
              'OUTPUT': self._path(f'exported/{output}'),
              'FORMAT': kind,
            },
            after=(step.name,),
            priority=_PRIORITIES.index('export'),
            cost=1.0,
            likeness='export',
            labels={'stage': 'export', 'task': task},
          )
        )
    return exports

  def _path(self, name: str) -> str:
    return os.path.join(self.folder, name)


def _check_names(what: str, names: Sequence[Any], known: Any) -> None:
  for name in names:
    if name not in known:
      near = nearest(str(name), [str(k) for k in known])
      raise InputError(
        f'{what} is {name!r}, expected one of'
        f' {", ".join(str(k) for k in known)}{near}'
      )


def _filled(value: float | None, meaning: metrics.Metric) -> float | None:
  """A score, or what stands for one that is not defined."""
  return meaning.stand_in() if value is None else value


def _rates(value: Any) -> Rates:
  """(shared rate, task rate or None) from a number or a pair."""
  if isinstance(value, (int, float)):
    return float(value), None
  shared, task = value
  return float(shared), None if task is None else float(task)


def _rates_name(rates: Rates) -> str:
  return '-'.join(f'{r:g}' for r in rates if r is not None)


def _on_edge(best: Rates, grid: Sequence[Rates]) -> bool:
  """Whether a rate is the smallest or largest of those tried."""
  for i, value in enumerate(best):
    axis = sorted({r for rates in grid if (r := rates[i]) is not None})
    if len(axis) > 1 and value in (axis[0], axis[-1]):
      return True
  return False


def pipeline(
  *,
  model_dir: str,
  backbone: str,
  source_mixture: str,
  source_tasks: Sequence[str],
  targets: Mapping[str, str],
  task_feature_lengths: Lengths,
  prompt_length: Positive,
  teacher: Training,
  source: Training,
  settings: Sequence[Setting],
  seeds: Sequence[Natural] = (0,),
  ablation_seeds: Sequence[Natural] | None = None,
  variants: Sequence[str] = tuple(VARIANTS),
  methods: Sequence[str] = ('mpt', 'pt', 'single_source'),
  tuning: Tuning | None = None,
  prompt_rank: Positive = 1,
  prompt_init: str = 'gin_configs/prompts/vocabulary.gin',
  distillation: Mapping[str, Any] | None = None,
  macros: Mapping[str, Any] | None = None,
  module: str = 'tasks',
  eval_examples: Positive = 256,
  curve_points: Positive = 10,
  workers: Positive | None = None,
  benchmark_bars: bool = False,
) -> dict[str, Any]:
  """Runs every step that is not finished, and writes the report.

  Args:
    model_dir: the pipeline's folder.
    backbone: path of an HF folder or a T5X checkpoint; a relative path that
      does not exist is looked for beside the installed packages.
    source_mixture: mixture of the source tasks.
    source_tasks: its tasks, in row order.
    targets: target task -> the source task whose teacher `single_source`
      starts from, picked by hand.
    task_feature_lengths: {'inputs': S with prompt slots, 'targets': T}.
    prompt_length: P.
    teacher: the teachers' training.
    source: the source runs' training.
    settings: the target settings.
    seeds: seeds of teachers, MPT source run and targets.
    ablation_seeds: seeds of the other source variants; None is all.
    variants: source variants: 'mpt', 'no_distillation', 'shared_only',
      'neither'.
    methods: target methods: 'mpt', 'mpt_no_distillation', 'pt',
      'single_source'.
    tuning: the search for the targets' rates; None uses the settings' own.
    prompt_rank: R.
    prompt_init: gin file of the start values of teachers and source runs.
    distillation: macros of source.gin that set the distillation.
    macros: macros for every training run.
    module: module that registers the tasks.
    eval_examples: validation examples per task, for curves and tuning.
    curve_points: evaluations during a source run.
    workers: processes; None is one with an accelerator, else up to two.
    benchmark_bars: whether the report holds the run against the bars of the
      embedded benchmark; they are shown for its own synthetic data only.

  Returns:
    The report, as in `report.json`.

  Raises:
    InputError: if something given is wrong.
    SystemExit: with status 1, if a step failed by a bug.
  """
  model_dir = require_local(model_dir)
  plan = Plan(
    folder=model_dir,
    backbone=_find_backbone(backbone),
    source_mixture=source_mixture,
    source_tasks=tuple(source_tasks),
    targets=dict(targets),
    lengths=dict(task_feature_lengths),
    prompt_length=prompt_length,
    teacher=teacher,
    source=source,
    settings=tuple(settings),
    seeds=tuple(seeds),
    ablation_seeds=tuple(seeds if ablation_seeds is None else ablation_seeds),
    variants=tuple(variants),
    methods=tuple(methods),
    tuning=tuning,
    prompt_rank=prompt_rank,
    prompt_init=prompt_init,
    distillation=dict(distillation or {}),
    macros=dict(macros or {}),
    module=module,
    eval_examples=eval_examples,
    curve_points=curve_points,
    benchmark_bars=benchmark_bars,
  )
  cli.at_interrupt(lambda: _standing(plan))
  with lock.hold(model_dir), preemption.interrupting(_STOPPING):
    cli.keep_log(model_dir)
    changed = cli.changed_macros(model_dir)
    if not os.path.exists(os.path.join(model_dir, cli.CONFIG)):
      cli.write_config(model_dir)
    try:
      written = _run(plan, workers)
    except InputError as e:
      # A step names its own macros; the user set the pipeline's.
      raise InputError(e.summary, [*changed, *e.details]) from e
    except StepError as e:
      print(
        f'error: {e}. The same command resumes: {_command()}', file=sys.stderr
      )
      sys.exit(1)
    if changed:  # Others that every step took.
      cli.write_config(model_dir)
  print(report.summary(written))
  print(f'report: {os.path.join(model_dir, report.MARKDOWN)}')
  return written


def _standing(plan: Plan) -> str:
  """What there is to resume, by the files in the pipeline's folder."""
  steps = plan.tuning_steps() + plan.steps(plan.given_rates())
  begun = []
  finished = 0
  for step in steps:
    folder = os.path.join(plan.folder, step.name)
    saved = run_lib.latest_step(folder)
    if os.path.exists(os.path.join(folder, STEP)):
      finished += 1
    elif saved is not None:
      begun.append(f'{step.name} from step {saved}')
  if not finished and not begun:
    return 'nothing was saved: the same command starts from the start'
  resumed = f': {", ".join(begun)}' if begun else ' after them'
  return (
    f'{finished} of {len(steps)} runs are finished; the same command'
    f' resumes{resumed}'
  )


def _run(plan: Plan, workers: int | None) -> dict[str, Any]:
  """Runs what is not finished; returns the report."""
  begin = time.monotonic()
  given = cli.data_dir() or os.environ.get('TFDS_DATA_DIR')
  data_dir = given or os.path.join(plan.folder, 'data')
  tuning_steps = plan.tuning_steps()
  # The rates may not be known yet, but the number of steps is.
  chosen = plan.given_rates()
  tuned: list[dict] = []
  steps = plan.steps(chosen)
  log.info('%d runs in %s', len(tuning_steps) + len(steps), plan.folder)
  log.info('reading the tasks (TensorFlow takes a few seconds) …')
  with Pool(plan.folder, workers, plan.backbone, data_dir, plan.module) as pool:
    if given is None:
      log.info('no --tfds_data_dir: SYNTHETIC DATA in %s', data_dir)
      pool.call(_write_data, data_dir, [*plan.source_tasks, *plan.targets])
    facts = pool.call(_examine_data, data_dir, plan)
    backbone = pool.call(_examine_backbone, plan.backbone)
    pool.shared = {
      'backbone': backbone['fingerprint'],
      'tfds_data_dir': _inside(data_dir, plan.folder),
    }
    if all(map(pool.is_done, tuning_steps)) and tuning_steps:
      chosen, tuned = plan.tuned_rates()
      steps = plan.steps(chosen)
    path = os.path.join(plan.folder, report.JSON)
    if os.path.exists(path) and all(map(pool.is_done, tuning_steps + steps)):
      log.info('every run is finished; nothing to do')
      return files.read_json(path)
    pool.call(_examine_texts, plan)
    pool.start_all()
    if tuning_steps:
      pool.run(tuning_steps, others=steps)
      chosen, tuned = plan.tuned_rates()
      steps = plan.steps(chosen)
    pool.run(steps, others=tuning_steps)
  record = {
    'command': _command(),
    'plan': dataclasses.asdict(plan),
    'rates': chosen,
    'tuning': tuned,
    'data': facts,
    'backbone': backbone,
    'device': pool.device,
    'versions': report.versions(),
    'seconds': round(time.monotonic() - begin, 1),
    'steps': [
      {'name': step.name, **step.labels} for step in tuning_steps + steps
    ],
  }
  path = os.path.join(plan.folder, report.RECORD)
  files.write_file(path, files.json_bytes(record))
  return report.write(plan.folder)


def _inside(path: str, folder: str) -> str:
  """A path that stays the same when the folder that holds it is moved."""
  absolute, root = os.path.realpath(path), os.path.realpath(folder)
  if absolute.startswith(root + os.sep):
    return os.path.relpath(absolute, root)
  return absolute


def _command() -> str:
  """The command that is running, to be typed again."""
  return cli.shell_command('pipeline', sys.argv[1:])


def _find_backbone(path: str) -> str:
  """The backbone's path; what we ship is found from any working folder."""
  if path == DEMO:
    return path
  path = local_path(path)
  if path == DEMO:  # ./demo, which must not become the name.
    path = os.path.join(os.curdir, path)
  if os.path.exists(path) or os.path.isabs(path):
    return path
  for folder in filter(None, cli.search_paths()):
    installed = os.path.join(folder, path)
    if os.path.exists(installed):
      return installed
  raise InputError(f'there is no backbone at {path!r}')


# ---------------------------------------------------------------------------
# In the first worker.


def _write_data(data_dir: str, tasks: Sequence[str]) -> None:
  from tasks.offline import writer

  writer.write(data_dir, list(tasks))


def _examine_data(data_dir: str, plan: Plan) -> dict[str, dict[str, Any]]:
  """Checks every task before anything is trained.

  Returns:
    Task -> the sizes of its splits, and whether its data are synthetic.

  Raises:
    InputError: if data are missing, or the mixture has other tasks.
  """
  cli.use_data_dir(data_dir)
  import seqio

  from mpt_jax import data

  mixture = data.check_data(plan.source_mixture, 'train', plan.module)
  mixed = sorted(task.name for task in seqio.get_subtasks(mixture))
  if mixed != sorted(plan.source_tasks):
    raise InputError(
      f'mixture {plan.source_mixture!r} has the tasks {", ".join(mixed)}, but'
      f' SOURCE_TASKS are {", ".join(plan.source_tasks)}'
    )
  facts: dict[str, dict[str, Any]] = {}
  for name in (*plan.source_tasks, *plan.targets):
    facts[name] = {'synthetic': data.is_synthetic(name)}
    for split in ('train', 'validation', 'test'):
      task = data.check_data(name, split, plan.module)
      facts[name][split] = task.num_input_examples(split)
  if plan.tuning is not None:
    plan.check_tuning(
      {task: data.metrics_of(task, 'validation')[task] for task in plan.targets}
    )
  return facts


def _examine_texts(plan: Plan) -> None:
  """Reads what will be trained on and scored, as the first runs do anyway.

  Raises:
    InputError: if a split has no labels, or if a target or a label word does
      not fit: in hours a test run would find it.
  """
  from mpt_jax import data

  allowed = bool(plan.macros.get(_ALLOWED))
  all_examples = any(setting.num_shots is None for setting in plan.settings)
  for name in dict.fromkeys((*plan.source_tasks, *plan.targets)):
    source = name in plan.source_tasks
    scored: dict[str, int | None] = {'test': None}
    if source or plan.tuning is not None:
      scored['validation'] = plan.eval_examples
    for split, examples in scored.items():
      data.examine(
        name,
        split,
        plan.lengths,
        plan.prompt_length,
        (),
        examples,
        allow_cut_targets=allowed,
      )
    if source or all_examples:
      config = data.DatasetConfig(
        mixture_or_task_name=name,
        task_feature_lengths=plan.lengths,
        batch_size=1,
        allow_cut_targets=allowed,
      )
      data.get_train_iterator(config, plan.prompt_length, ())


def _examine_backbone(path: str) -> dict[str, Any]:
  from mpt_jax.engine import params, predictor

  loaded = predictor.load_backbone(path)
  return {
    'name': loaded.name,
    'fingerprint': loaded.fingerprint,
    'parameters': params.count(loaded.params),
  }
