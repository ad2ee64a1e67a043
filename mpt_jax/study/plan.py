"""What a study is, as data: tasks, stages, settings, seeds.

Nothing runs here and nothing is read; `steps` says which runs a plan makes.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, cast

from mpt_jax.study import arms
from mpt_jax.types import (
  InputError,
  Lengths,
  Natural,
  Positive,
  Rate,
  nearest,
)


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
    seeds: the seeds to run; each must be one of the plan's.
    rates: method -> (rate of P* or the plain prompt, rate of u and v).
    tuned_as: the setting whose tuned rates are used; None is this one.
    keep_best: steps between scores on the validation split, of which the best
      step is kept; None keeps the last step.
    methods: those of the target methods that it runs; None is all.
  """

  name: str
  num_shots: Positive | None
  steps: Natural
  batch_size: Positive
  seeds: tuple[Natural, ...]
  rates: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  tuned_as: str | None = None
  keep_best: Positive | None = None
  methods: Sequence[str] | None = None


@dataclasses.dataclass(frozen=True)
class Tuning:
  """The search for each target method's learning rates.

  Every method has as many trials, of as many steps, on the same seeds and on
  the validation split.

  Attributes:
    seed: a seed that is not reported, or several.
    grids: method -> its pairs of rates; all grids have the same size.
    settings: names of the settings that are tuned.
    search: 'grid' trains each pair as long as the setting says. 'halving' is
      successive halving with the grids' points as trials: short runs of all
      of them, each complete with its own schedule, then longer ones of the
      best, up to the setting's steps. A rung is finished before the next one
      is chosen, so that timing decides nothing.
    reduction_factor: of halving: about one trial in so many goes on, and is
      trained so many times longer.
    targets: the target tasks that are searched on; None is all.
  """

  seed: Natural | Sequence[Natural]
  grids: Mapping[str, Any]
  settings: tuple[str, ...]
  search: str = 'grid'
  reduction_factor: Positive = 3
  targets: Sequence[str] | None = None

  @property
  def seeds(self) -> tuple[int, ...]:
    """Its seeds."""
    given = self.seed
    return (given,) if isinstance(given, int) else tuple(given)


@dataclasses.dataclass(frozen=True)
class Tasks:
  """The tasks, and how much of them is read.

  Attributes:
    source_mixture: mixture of the source tasks; None is the tasks by
      themselves, in equal shares.
    source_tasks: its tasks, in row order.
    targets: target task -> the source task whose teacher `single_source`
      starts from, picked by hand, or None; or the target tasks alone. Kept as
      a mapping.
    task_feature_lengths: {'inputs': S with prompt slots, 'targets': T}; None
      is what the longest texts need, found before anything is trained.
    module: module that registers the tasks.
    eval_examples: validation examples per task, for curves and tuning.
    lengths: task -> its own lengths, over `task_feature_lengths`:
      {'multirc': {'inputs': 448}}.
    groups: name -> target tasks whose mean the report tells, too.
  """

  source_mixture: str | None
  source_tasks: Sequence[str]
  targets: Mapping[str, str | None] | Sequence[str]
  task_feature_lengths: Lengths | None
  module: str = 'tasks'
  eval_examples: Positive = 256
  lengths: Mapping[str, Mapping[str, Positive]] | None = None
  groups: Mapping[str, Sequence[str]] | None = None

  def __post_init__(self):
    if not isinstance(self.targets, Mapping):
      names = [self.targets] if isinstance(self.targets, str) else self.targets
      object.__setattr__(self, 'targets', dict.fromkeys(names))
    tasks = list(dict.fromkeys((*self.source_tasks, *self.targets)))
    check_names('a task of LENGTHS', list(self.lengths or ()), tasks)
    for group, members in (self.groups or {}).items():
      check_names(f'a task of GROUPS[{group!r}]', members, list(self.targets))
    for task, own in (self.lengths or {}).items():
      check_names(f'LENGTHS of {task}', list(own), ('inputs', 'targets'))

  @property
  def single_sources(self) -> dict[str, str]:
    """Target task -> its hand-picked source, of those that have one."""
    picked = cast(Mapping[str, str | None], self.targets).items()
    return {task: source for task, source in picked if source is not None}

  def lengths_of(self, *tasks: str) -> dict[str, int]:
    """The lengths of a task's examples; of several tasks, the longest.

    Args:
      *tasks: names of tasks.

    Returns:
      {'inputs': S with prompt slots, 'targets': T}; what is not known yet is
      left out.
    """
    each = [
      {
        **(self.task_feature_lengths or {}),
        **(self.lengths or {}).get(task, {}),
      }
      for task in tasks
    ]
    return {
      name: max(lengths[name] for lengths in each)
      for name in ('inputs', 'targets')
      if all(name in lengths for lengths in each)
    }


@dataclasses.dataclass(frozen=True)
class Prompts:
  """The prompts of every run.

  Attributes:
    prompt_length: P.
    prompt_rank: R.
    prompt_init: gin file of the start values of teachers and source runs.
    key_step: the early step whose prompts tell source tasks apart, where a
      method picks the nearest; None is a quarter of the teachers' steps.
  """

  prompt_length: Positive
  prompt_rank: Positive = 1
  prompt_init: str = 'gin_configs/prompts/vocabulary.gin'
  key_step: Positive | None = None


@dataclasses.dataclass(frozen=True)
class SourceStage:
  """Teachers and source runs.

  Attributes:
    teacher: the teachers' training.
    source: the source runs' training.
    variants: source variants, of `arms.SOURCES`; None is those that the target
      methods start from.
    ablation_seeds: seeds of the variants beside MPT; None is all.
    distillation: macros of source.gin that set the distillation.
    curve_points: evaluations during a source run.
  """

  teacher: Training
  source: Training
  variants: Sequence[str] | None = tuple(arms.SOURCES)
  ablation_seeds: Sequence[Natural] | None = None
  distillation: Mapping[str, Any] | None = None
  curve_points: Positive = 10


@dataclasses.dataclass(frozen=True)
class TargetStage:
  """Target runs.

  Attributes:
    settings: how much data there is, and how a run trains.
    methods: target methods, of `arms.TARGETS`.
    tuning: the search for their rates; None uses the settings' own.
  """

  settings: Sequence[Setting]
  methods: Sequence[str] = ('mpt', 'pt', 'single_source')
  tuning: Tuning | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
  """All that decides which runs there are.

  Attributes:
    model_dir: the study's folder.
    backbone: path of an HF folder or a T5X checkpoint; a relative path that
      does not exist is looked for beside the installed packages.
    tasks: source and target tasks.
    prompts: the prompts of every run.
    source_stage: teachers and source runs.
    target_stage: target runs.
    seeds: seeds of the whole chain of teachers, MPT source run and targets.
    macros: macros for every training run.
    title: heading of the report; None is that of any study.
  """

  model_dir: str
  backbone: str
  tasks: Tasks
  prompts: Prompts
  source_stage: SourceStage
  target_stage: TargetStage
  seeds: Sequence[Natural] = (0,)
  macros: Mapping[str, Any] | None = None
  title: str | None = None

  def __post_init__(self):
    self._check_arms()
    self._check_settings()
    self._check_tuning()

  @property
  def ablation_seeds(self) -> Sequence[int]:
    """Seeds of the source variants beside MPT."""
    given = self.source_stage.ablation_seeds
    return self.seeds if given is None else given

  @property
  def variants(self) -> list[str]:
    """The source variants."""
    given = self.source_stage.variants
    if given is not None:
      return list(given)
    starts = {arms.TARGETS[m].start for m in self.target_stage.methods}
    return [name for name in arms.SOURCES if name in starts]

  @property
  def key_step(self) -> int | None:
    """The step of the keys of tasks; None where no method compares them."""
    if not any(arms.TARGETS[m].compares for m in self.target_stage.methods):
      return None
    quarter = max(self.source_stage.teacher.steps // 4, 1)
    return self.prompts.key_step or quarter

  def methods_of(self, setting: Setting) -> list[str]:
    """The target methods of a setting, in the plan's order."""
    own = setting.methods
    return [m for m in self.target_stage.methods if own is None or m in own]

  def taught(
    self, variants: Sequence[str], methods: Sequence[str]
  ) -> list[str]:
    """The source tasks whose teachers some arms read, in order.

    Args:
      variants: source arms.
      methods: target arms.
    """
    read = [arms.TARGETS[m] for m in methods]
    if (
      any(arms.SOURCES[v].distilled for v in variants)
      or any(arm.compares for arm in read)
      or {arm.start for arm in read} & {arms.TEACHERS, arms.EACH}
    ):
      return list(self.tasks.source_tasks)
    if not any(arm.start == arms.TEACHER for arm in read):
      return []
    picked = self.tasks.single_sources.values()
    return [task for task in self.tasks.source_tasks if task in picked]

  @property
  def all_tasks(self) -> list[str]:
    """Source tasks, then target tasks; none twice."""
    return list(dict.fromkeys((*self.tasks.source_tasks, *self.tasks.targets)))

  def record(self) -> dict[str, Any]:
    """The plan in one level, as `pipeline.json` and reports have it."""
    flat = dataclasses.asdict(self)
    flat['folder'] = flat.pop('model_dir')
    for part in ('tasks', 'prompts', 'source_stage', 'target_stage'):
      flat |= flat.pop(part)
    flat['task_lengths'] = flat.pop('lengths')
    flat['lengths'] = flat.pop('task_feature_lengths')
    for name in ('distillation', 'macros'):
      flat[name] = flat[name] or {}
    return {
      **flat,
      'variants': self.variants,
      'key_step': self.key_step,
      'ablation_seeds': list(self.ablation_seeds),
    }

  def _check_arms(self) -> None:
    variants, methods = self.variants, self.target_stage.methods
    check_names('source variant', variants, arms.SOURCES)
    check_names('target method', methods, arms.TARGETS)
    for task, source in self.tasks.single_sources.items():
      check_names(f'the source of {task}', [source], self.tasks.source_tasks)
    self._check_sources()
    for method in methods:
      start = arms.TARGETS[method].start
      if start in arms.SOURCES and start not in variants:
        raise InputError(
          f'target method {method!r} needs the source variant {start!r}'
        )

  def _check_sources(self) -> None:
    """What starts from source tasks has some, and the one that it wants."""
    tasks, methods = self.tasks, self.target_stage.methods
    alone = [t for t in tasks.targets if t not in tasks.single_sources]
    for name in methods:
      arm = arms.TARGETS[name]
      if not tasks.source_tasks and (
        arm.start in arms.OF_TEACHERS or arm.start in arms.SOURCES
      ):
        raise InputError(
          f'target method {name!r} starts from source tasks, and SOURCE_TASKS'
          ' has none'
        )
      if arm.start == arms.TEACHER and alone:
        raise InputError(
          f'target method {name!r} starts from a source task that is picked by'
          f' hand, and TARGETS has none for {alone[0]!r}: give it one,'
          f' {{{alone[0]!r}: {tasks.source_tasks[0]!r}}}, or leave {name!r} out'
          ' of METHODS'
        )
    last = self.source_stage.teacher.steps
    if (key := self.key_step) is not None and key > last:
      raise InputError(
        f"KEY_STEP = {key} is none of the teachers' steps: TEACHER_STEPS ="
        f' {last}'
      )

  def _check_settings(self) -> None:
    given = {s.name: s for s in self.target_stage.settings}
    for setting in self.target_stage.settings:
      check_names(
        f'a method of {setting.name}',
        setting.methods or (),
        self.target_stage.methods,
      )
      check_names(f'a seed of {setting.name}', setting.seeds, self.seeds)
      starts = {arms.TARGETS[m].start for m in self.methods_of(setting)}
      if starts & set(arms.SOURCES) - {arms.OURS}:
        check_names(
          f'a seed of {setting.name}', setting.seeds, self.ablation_seeds
        )
      if setting.tuned_as is not None:
        check_names(f'tuned_as of {setting.name}', [setting.tuned_as], given)
        check_names(
          f'a method of {setting.name}, which is tuned as {setting.tuned_as},',
          self.methods_of(setting),
          self.methods_of(given[setting.tuned_as]),
        )
    check_names('ablation seed', self.ablation_seeds, self.seeds)

  def _check_tuning(self) -> None:
    tuning, stage = self.target_stage.tuning, self.target_stage
    if tuning is None:
      return
    check_names(
      'tuned setting', tuning.settings, [s.name for s in stage.settings]
    )
    check_names(
      'a target of Tuning', tuning.targets or (), list(self.tasks.targets)
    )
    check_names('search of Tuning', [tuning.search], ('grid', 'halving'))
    if tuning.reduction_factor < 2:
      raise InputError(
        f'reduction_factor of Tuning is {tuning.reduction_factor}: at least 2'
      )
    if not tuning.seeds or len({*tuning.seeds}) < len(tuning.seeds):
      raise InputError(f'the tuning seeds must differ: {tuning.seed}')
    for seed in tuning.seeds:
      if seed in self.seeds:
        raise InputError(f'the tuning seed {seed} is among the reported seeds')
    sizes = {m: len(tuning.grids.get(m, ())) for m in stage.methods}
    if len(set(sizes.values())) > 1 or not all(sizes.values()):
      raise InputError(
        f'the grids must have one size, for equal tuning; they have {sizes}'
      )
    for method in stage.methods:
      tried = [repr(rates) for rates in tuning.grids[method]]
      if len({*tried}) < len(tried):
        raise InputError(f'the grid of {method!r} has a pair of rates twice')


def check_names(what: str, names: Sequence[Any], known: Any) -> None:
  """Refuses a name that is not known.

  Args:
    what: what the names are, for the message.
    names: the names.
    known: those that there are.

  Raises:
    InputError: if one is unknown.
  """
  for name in names:
    if name not in known:
      near = nearest(str(name), [str(k) for k in known])
      raise InputError(
        f'{what} is {name!r}, expected one of'
        f' {", ".join(str(k) for k in known)}{near}'
      )
