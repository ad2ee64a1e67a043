"""The runs that a plan makes, each one command in a folder of its own."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import os
from typing import Any

from mpt_jax.engine.outcome import BACKBONE, PROMPTS
from mpt_jax.study import arms
from mpt_jax.study import rates as rates_lib
from mpt_jax.study.plan import Plan, Setting, Training
from mpt_jax.study.rates import Chosen, Rates

# A macro for training runs that test runs need too.
ALLOWED = 'ALLOW_CUT_TARGETS'
_PRIORITIES = ('teacher', 'key', 'source', 'target', 'test', 'export')
_EVAL = ('gin_configs/runs/eval.gin',)
_EXPORT = ('gin_configs/runs/export.gin',)
# Of a step that takes the best of several runs: the folder of those, and what
# stands for the best one in its macros.
FROM, BEST = 'from', '{best}'
# In training examples: what a run costs beside its steps, for the ETA.
_RUN_COST, _TEST_COST, _DISTILLED_COST = 1500.0, 1000.0, 1.5
_EVALUATION_COST = 0.5  # of one example


@dataclasses.dataclass(frozen=True)
class Step:
  """One command, in a folder of its own.

  Attributes:
    name: the folder below the study's; unique.
    entry: 'train', 'eval' or 'export'.
    gin_files: its gin files.
    macros: its macros by name.
    after: names of the steps whose results it reads.
    priority: lower ones go first.
    cost: expected work; a training example counts 1.
    likeness: steps of one likeness share a compiled program.
    may_diverge: a loss that is not finite is a result (no scores), no error.
    best_of: names of runs in its folder `FROM`; the best of them by validation
      stands for `BEST` in its macros, see `picked`.
    labels: what the report wants to know.
  """

  name: str
  entry: str
  gin_files: tuple[str, ...]
  macros: Mapping[str, Any]
  after: tuple[str, ...] = ()
  priority: int = 0
  cost: float = 1.0
  likeness: str = ''
  may_diverge: bool = False
  best_of: tuple[str, ...] = ()
  labels: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def bindings(self) -> list[str]:
    """The macros as gin reads them."""
    return [f'{name}={value!r}' for name, value in self.macros.items()]


@dataclasses.dataclass(frozen=True)
class _Chain:
  """A seed's teachers and source runs, and what starts from them.

  Attributes:
    root: their folder.
    seed: the seed.
    scored: whether target runs are scored on the validation split at their
      end, for the search.
  """

  root: str
  seed: int
  scored: bool = False


@dataclasses.dataclass(frozen=True)
class _Trial:
  """A target method, as it is run once on each task or on all together.

  Attributes:
    chain: the seed's runs that it may start from.
    setting: how much data there is.
    method: the target arm.
    rates: its learning rates.
    name: the folder.
  """

  chain: _Chain
  setting: Setting
  method: str
  rates: Rates
  name: str


def reported(plan: Plan, chosen: Chosen) -> list[Step]:
  """The steps that a report tells of.

  Args:
    plan: the plan.
    chosen: the target runs' rates, from `rates.given` or `rates.tuned`.

  Returns:
    The steps, in an order in which they could run.
  """
  steps: list[Step] = []
  stage = plan.target_stage
  for seed in plan.seeds:
    chain = _Chain(f'seed{seed}', seed)
    settings = [s for s in stage.settings if seed in s.seeds]
    every = seed in plan.ablation_seeds
    variants = [v for v in plan.variants if every or v == arms.OURS]
    runs = _sources(plan, chain, variants, stage.methods if settings else ())
    steps += runs
    steps += [_test(plan, run) for run in runs]
    for setting in settings:
      steps += _keys(plan, chain, setting, plan.tasks.targets)
      for method in plan.methods_of(setting):
        rates = chosen[setting.tuned_as or setting.name][method]
        folder = f'{chain.root}/target/{setting.name}/{method}'
        for tasks in _groups(method, list(plan.tasks.targets)):
          together = arms.TARGETS[method].together
          name = folder if together else f'{folder}/{tasks[0]}'
          trial = _Trial(chain, setting, method, rates, name)
          runs = _trained(plan, trial, tasks)
          steps += [*runs, _test(plan, runs[-1])]
  return [*steps, *_zero_shots(plan), *_exports(plan, steps)]


def search(plan: Plan, rungs: int | None = None) -> list[Step]:
  """The steps of the search for learning rates, on seeds of its own.

  Args:
    plan: the plan.
    rungs: how many rungs of successive halving; None is all. What is in a
      rung is known when the steps of those before are finished; see
      `rates.trials`.
  """
  tuning, stage = plan.target_stage.tuning, plan.target_stage
  if tuning is None:
    return []
  starts = {arms.TARGETS[method].start for method in stage.methods}
  variants = [v for v in arms.SOURCES if v in starts]
  settings = [s for s in stage.settings if s.name in tuning.settings]
  steps = []
  for seed in tuning.seeds:
    chain = _Chain(rates_lib.root(plan, seed), seed, scored=True)
    steps += _sources(plan, chain, variants, stage.methods)
    for setting in settings:
      steps += _keys(plan, chain, setting, rates_lib.targets_of(plan))
      for method in plan.methods_of(setting):
        for trial in rates_lib.trials(plan, setting, method):
          if rungs is None or trial.rung < rungs:
            steps += _searched(plan, chain, setting, method, trial)
  return steps


def _searched(
  plan: Plan,
  chain: _Chain,
  setting: Setting,
  method: str,
  trial: rates_lib.Trial,
) -> list[Step]:
  """The runs of one trial of a search."""
  names = dict(rates_lib.runs_of(plan, setting, method, trial, [chain.seed]))
  shorter = dataclasses.replace(setting, steps=trial.steps)
  steps = []
  for tasks in _groups(method, rates_lib.targets_of(plan)):
    run = _Trial(chain, shorter, method, trial.rates, names[tasks[0]])
    steps += _trained(plan, run, tasks)
  return steps


def _groups(method: str, tasks: list[str]) -> list[list[str]]:
  """The tasks of each run of a target method on some tasks."""
  return [tasks] if arms.TARGETS[method].together else [[t] for t in tasks]


def _sources(
  plan: Plan, chain: _Chain, variants: Sequence[str], methods: Sequence[str]
) -> list[Step]:
  """Teachers and source runs of a seed, as far as something reads them."""
  steps = []
  compared = any(arms.TARGETS[method].compares for method in methods)
  for task in plan.taught(variants, methods):
    steps.append(
      _training(
        plan,
        f'{chain.root}/teacher/{task}',
        ('gin_configs/runs/teacher.gin', plan.prompts.prompt_init),
        plan.source_stage.teacher,
        {
          'MIXTURE_OR_TASK_NAME': task,
          'RANDOM_SEED': chain.seed,
          **({'KEY_STEP': plan.key_step} if compared else {}),
        },
        labels={'stage': 'teacher', 'seed': chain.seed, 'task': task},
      )
    )
  teachers = tuple(step.name for step in steps)
  return steps + [_source(plan, chain, v, teachers) for v in variants]


def _keys(
  plan: Plan, chain: _Chain, setting: Setting, tasks: Iterable[str]
) -> list[Step]:
  """A short run of each target on what the setting gives, for its key."""
  compared = [m for m in plan.methods_of(setting) if arms.TARGETS[m].compares]
  if plan.key_step is None or not compared:
    return []
  teacher = plan.source_stage.teacher
  return [
    _training(
      plan,
      _key(chain, setting, task),
      ('gin_configs/runs/teacher.gin', plan.prompts.prompt_init),
      dataclasses.replace(teacher, steps=plan.key_step),
      {
        'MIXTURE_OR_TASK_NAME': task,
        'RANDOM_SEED': chain.seed,
        'NUM_SHOTS': setting.num_shots,
        'KEY_STEP': plan.key_step,
        'train.train.evaluation': None,
      },
      labels={
        'stage': 'key',
        'seed': chain.seed,
        'setting': setting.name,
        'task': task,
      },
    )
    for task in tasks
  ]


def _key(chain: _Chain, setting: Setting, task: str) -> str:
  return f'{chain.root}/key/{setting.name}/{task}'


def _source(
  plan: Plan, chain: _Chain, variant: str, teachers: tuple[str, ...]
) -> Step:
  """One source run."""
  arm, stage = arms.SOURCES[variant], plan.source_stage
  mixture = plan.tasks.source_mixture
  macros: dict[str, Any] = {
    'MIXTURE_OR_TASK_NAME': mixture or list(plan.tasks.source_tasks),
    'RANDOM_SEED': chain.seed,
    'PROMPT_TASKS': list(plan.tasks.source_tasks),
    'PROMPT_METHOD': arm.method,
    'PROMPT_RANK': plan.prompts.prompt_rank,
    'TASK_LEARNING_RATE': stage.source.task_learning_rate,
    'EVAL_PERIOD': max(1, stage.source.steps // stage.curve_points),
  }
  if arm.distilled:
    pattern = _path(plan, f'{chain.root}/teacher/{{task}}/prompts')
    macros |= {'TEACHER_PROMPTS': pattern, **(stage.distillation or {})}
  else:
    macros |= {'TEACHER_PROMPTS': None, 'DISTILLATION': None}
  return _training(
    plan,
    f'{chain.root}/source/{variant}',
    (*arm.gin_files, plan.prompts.prompt_init),
    stage.source,
    macros,
    after=teachers if arm.distilled else (),
    labels={'stage': 'source', 'seed': chain.seed, 'method': variant},
  )


def _trained(plan: Plan, trial: _Trial, tasks: Sequence[str]) -> list[Step]:
  """The runs of a target method on some tasks; the last one's is its product.

  Where each source task is tried, a run from each of them comes before, and
  the last step takes what the best of them has learned.
  """
  if arms.TARGETS[trial.method].start != arms.EACH:
    return [_target(plan, trial, tasks)]
  sources = [t for t in plan.tasks.source_tasks if t not in tasks]
  tried = [_target(plan, trial, tasks, source) for source in sources]
  labels = _target_labels(trial, tasks)
  best = Step(
    name=trial.name,
    entry='export',
    gin_files=_EXPORT,
    macros={
      'PROMPTS': _path(plan, f'{trial.name}/{FROM}/{BEST}/{PROMPTS}'),
      'OUTPUT': _path(plan, f'{trial.name}/{PROMPTS}'),
      'FORMAT': 'bundle',
    },
    after=tuple(step.name for step in tried),
    priority=_PRIORITIES.index('target'),
    likeness='export',
    may_diverge=labels['stage'] == 'tuning',
    best_of=tuple(sources),
    # What it cost to find it.
    labels={**labels, 'steps': sum(step.labels['steps'] for step in tried)},
  )
  return [*tried, best]


def _target(
  plan: Plan, trial: _Trial, tasks: Sequence[str], source: str | None = None
) -> Step:
  """One target run; from the teacher of a source task, where one is given."""
  arm, setting, chain = arms.TARGETS[trial.method], trial.setting, trial.chain
  # Together each task gets as many examples as by itself.
  shared = len(tasks) if arm.together else 1
  macros: dict[str, Any] = {
    'MIXTURE_OR_TASK_NAME': list(tasks) if arm.together else tasks[0],
    'RANDOM_SEED': chain.seed,
    'NUM_SHOTS': setting.num_shots,
  }
  if setting.keep_best is not None:
    macros |= {'KEEP_BEST': True, 'EVAL_PERIOD': shared * setting.keep_best}
  elif source is None and not chain.scored:
    macros['train.train.evaluation'] = None
  gin_files = arm.gin_files
  if arm.start is None:
    gin_files += (plan.prompts.prompt_init,)
  starts, after = _start(plan, trial, tasks, source)
  labels = _target_labels(trial, tasks)
  name = trial.name
  if source is not None:
    name = f'{trial.name}/{FROM}/{source}'
    labels |= {'stage': 'candidate', 'source': source}
  return _training(
    plan,
    name,
    gin_files,
    Training(shared * setting.steps, setting.batch_size, *trial.rates),
    macros | starts,
    after=after,
    labels=labels,
  )


def _target_labels(trial: _Trial, tasks: Sequence[str]) -> dict[str, Any]:
  """What the report wants to know of a target run, but for its steps."""
  together = arms.TARGETS[trial.method].together
  return {
    'stage': 'tuning' if trial.chain.scored else 'target',
    'seed': trial.chain.seed,
    'method': trial.method,
    'setting': trial.setting.name,
    **({'tasks': list(tasks)} if together else {'task': tasks[0]}),
    'rates': list(trial.rates),
  }


def _start(
  plan: Plan, trial: _Trial, tasks: Sequence[str], source: str | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
  """What a target run starts from: (its macros, the runs that it reads)."""
  arm, root = arms.TARGETS[trial.method], trial.chain.root
  if arm.start == arms.TEACHER:
    source = plan.tasks.single_sources[tasks[0]]
  teachers = f'{root}/teacher/{{task}}'
  sources = list(plan.tasks.source_tasks)
  macros: dict[str, Any] = {}
  after: tuple[str, ...] = ()
  if source is not None:
    after = (teachers.format(task=source),)
    macros |= {
      'SOURCE_PROMPTS': _path(plan, f'{after[0]}/prompts'),
      'SOURCE_TASK': source,
    }
  elif arm.start in (arms.TEACHERS, arms.NEAREST):
    after = tuple(teachers.format(task=source) for source in sources)
    macros |= {
      'SOURCE_PROMPTS': _path(plan, f'{teachers}/prompts'),
      'SOURCE_TASK': sources,
    }
  elif arm.start in arms.SOURCES:
    after = (f'{root}/source/{arm.start}',)
    macros['SOURCE_PROMPTS'] = _path(plan, f'{after[0]}/prompts')
    if arm.method == arms.TARGETS[arms.OURS].method:
      macros |= {
        'PROMPT_RANK': plan.prompts.prompt_rank,
        'TASK_LEARNING_RATE': trial.rates[1],
      }
    if arm.together:
      macros['PROMPT_TASKS'] = list(tasks)
  if arm.compares:
    key = _key(trial.chain, trial.setting, tasks[0])
    read = (key, *(teachers.format(task=source) for source in sources))
    after = tuple(dict.fromkeys((*after, *read)))
    macros |= {
      'START': 'nearest',
      'TARGET_KEY': _path(plan, f'{key}/key'),
      'SOURCE_KEYS': _path(plan, f'{teachers}/key'),
    }
  return macros, after


def _training(
  plan: Plan,
  name: str,
  gin_files: tuple[str, ...],
  training: Training,
  macros: Mapping[str, Any],
  labels: Mapping[str, Any],
  after: tuple[str, ...] = (),
) -> Step:
  """A step that trains, of any stage."""
  arm = _arm(labels)
  tasks = _tasks_of(plan, labels)
  weight = _DISTILLED_COST if macros.get('TEACHER_PROMPTS') else 1.0
  cost = _RUN_COST + weight * training.steps * training.batch_size
  if 'train.train.evaluation' not in macros and labels['stage'] != 'teacher':
    period = macros.get('EVAL_PERIOD') or training.steps
    evaluations = 1 + training.steps // max(period, 1)
    examples = plan.tasks.eval_examples * len(tasks)
    cost += _EVALUATION_COST * examples * evaluations
  stage = labels['stage']
  tried = stage in ('tuning', 'candidate')
  return Step(
    name=name,
    entry='train',
    gin_files=gin_files,
    macros={
      'INITIAL_CHECKPOINT_PATH': plan.backbone,
      'MODEL_DIR': _path(plan, name),
      'MIXTURE_OR_TASK_MODULE': plan.tasks.module,
      'TASK_FEATURE_LENGTHS': _lengths(plan, arm, tasks),
      **({arm.length: plan.prompts.prompt_length} if arm.length else {}),
      'TRAIN_STEPS': training.steps,
      'BATCH_SIZE': training.batch_size,
      arm.rate: training.learning_rate,
      'EVAL_EXAMPLES': plan.tasks.eval_examples,
      **(plan.macros or {}),
      **macros,
    },
    after=after,
    priority=_PRIORITIES.index('target' if tried else stage),
    cost=cost,
    likeness=f'{gin_files[0]} {labels.get("method")} {training}',
    may_diverge=tried,
    labels={**labels, 'steps': training.steps},
  )


def _tasks_of(plan: Plan, labels: Mapping[str, Any]) -> Sequence[str]:
  """The tasks of a step that trains."""
  if labels['stage'] == 'source':
    return plan.tasks.source_tasks
  return labels.get('tasks') or [labels['task']]


def _arm(labels: Mapping[str, Any]) -> arms.Arm:
  """The arm of a step that trains."""
  if labels['stage'] == 'source':
    return arms.SOURCES[labels['method']]
  return arms.TARGETS[labels.get('method', arms.PLAIN)]


def _lengths(plan: Plan, arm: arms.Arm, tasks: Sequence[str]) -> dict[str, int]:
  """The lengths of an arm's examples of some tasks."""
  lengths = plan.tasks.lengths_of(*tasks)
  if not arm.slots and 'inputs' in lengths:
    lengths['inputs'] -= plan.prompts.prompt_length
  return lengths


def _test(plan: Plan, run: Step) -> Step:
  """Scores what a run has learned on its tasks' test splits."""
  arm, tasks = _arm(run.labels), _tasks_of(plan, run.labels)
  product = _path(plan, f'{run.name}/{arm.product}')
  own: dict[str, Any] = {'PROMPTS': product}
  if arm.product == BACKBONE:
    own = {'INITIAL_CHECKPOINT_PATH': product, 'PROMPTS': None}
  return _evaluation(
    plan,
    f'{run.name}/test',
    {**own, 'TASK_FEATURE_LENGTHS': _lengths(plan, arm, tasks)},
    list(tasks),
    after=(run.name,),
    cost=_TEST_COST * len(tasks),
    likeness=f'eval {run.gin_files[0]} {run.labels.get("method")}',
    labels={'stage': 'test', 'of': run.name},
  )


def _zero_shots(plan: Plan) -> list[Step]:
  """The backbone alone on each task's test split."""
  return [
    _evaluation(
      plan,
      f'zero_shot/{task}',
      {'TASK_FEATURE_LENGTHS': plan.tasks.lengths_of(task)},
      task,
      cost=_TEST_COST,
      likeness='eval zero_shot',
      labels={'stage': 'zero_shot', 'task': task},
    )
    for task in plan.all_tasks
  ]


def _evaluation(
  plan: Plan,
  name: str,
  own: Mapping[str, Any],
  tasks: str | list[str],
  **rest: Any,
) -> Step:
  """A step that scores test splits; its own macros say of what."""
  macros = {
    'INITIAL_CHECKPOINT_PATH': plan.backbone,
    'MODEL_DIR': _path(plan, name),
    'PROMPTS': None,
    'MIXTURE_OR_TASK_NAME': tasks,
    'MIXTURE_OR_TASK_MODULE': plan.tasks.module,
    'EVAL_SPLIT': 'test',
    **own,
  }
  given = plan.macros or {}
  macros |= {n: given[n] for n in (ALLOWED,) if n in given}
  return Step(
    name=name,
    entry='eval',
    gin_files=_EVAL,
    macros=macros,
    priority=_PRIORITIES.index('test'),
    **rest,
  )


def _exports(plan: Plan, steps: Sequence[Step]) -> list[Step]:
  """Exports each target task's MPT prompts of the first seed.

  Of several settings, those with the most data.
  """
  best: dict[str, Step] = {}
  settings = plan.target_stage.settings
  shots = {s.name: s.num_shots or float('inf') for s in settings}
  for step in steps:
    labels = step.labels
    if (labels['stage'], labels.get('method')) == ('target', arms.OURS):
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
          gin_files=_EXPORT,
          macros={
            'PROMPTS': _path(plan, f'{step.name}/prompts'),
            'OUTPUT': _path(plan, f'exported/{output}'),
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


def _path(plan: Plan, name: str) -> str:
  return os.path.join(plan.model_dir, name)
