"""The runs that a plan makes, each one command in a folder of its own."""

from collections.abc import Mapping, Sequence
import dataclasses
import os
from typing import Any

from mpt_jax.engine.outcome import BACKBONE
from mpt_jax.study import arms
from mpt_jax.study import rates as rates_lib
from mpt_jax.study.plan import Plan, Setting, Training
from mpt_jax.study.rates import Chosen, Rates

# A macro for training runs that test runs need too.
ALLOWED = 'ALLOW_CUT_TARGETS'
_PRIORITIES = ('teacher', 'source', 'target', 'test', 'export')
_EVAL = ('gin_configs/runs/eval.gin',)
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


def reported(plan: Plan, chosen: Chosen) -> list[Step]:
  """The steps that a report tells of.

  Args:
    plan: the plan.
    chosen: the target runs' rates, from `rates.given` or `rates.tuned`.

  Returns:
    The steps, in an order in which they could run.
  """
  steps: list[Step] = []
  for seed in plan.seeds:
    chain = _Chain(f'seed{seed}', seed)
    every = seed in plan.ablation_seeds
    variants = plan.source_stage.variants if every else (arms.OURS,)
    runs = _sources(plan, chain, variants)
    steps += runs
    for run in runs:
      own = run.labels.get('task')
      steps.append(_test(plan, run, [own] if own else plan.tasks.source_tasks))
    for setting in plan.target_stage.settings:
      if seed not in setting.seeds:
        continue
      for method in plan.target_stage.methods:
        rates = chosen[setting.tuned_as or setting.name][method]
        for task in plan.tasks.targets:
          name = f'{chain.root}/target/{setting.name}/{method}/{task}'
          run = _target(plan, chain, name, setting, method, task, rates)
          steps += [run, _test(plan, run, [task])]
  return [*steps, *_zero_shots(plan), *_exports(plan, steps)]


def search(plan: Plan) -> list[Step]:
  """The steps of the search for learning rates, on its own seed."""
  tuning, stage = plan.target_stage.tuning, plan.target_stage
  if tuning is None:
    return []
  starts = {arms.TARGETS[method].start for method in stage.methods}
  chain = _Chain('tuning', tuning.seed, scored=True)
  steps = _sources(plan, chain, [v for v in arms.SOURCES if v in starts])
  for setting in stage.settings:
    if setting.name not in tuning.settings:
      continue
    for method in stage.methods:
      for rates in rates_lib.grid(plan, method):
        for task in plan.tasks.targets:
          name = rates_lib.search_name(setting.name, method, rates, task)
          steps.append(_target(plan, chain, name, setting, method, task, rates))
  return steps


def _sources(plan: Plan, chain: _Chain, variants: Sequence[str]) -> list[Step]:
  """Teachers and source runs of a seed."""
  steps = []
  for task in plan.tasks.source_tasks:
    steps.append(
      _training(
        plan,
        f'{chain.root}/teacher/{task}',
        ('gin_configs/runs/teacher.gin', plan.prompts.prompt_init),
        plan.source_stage.teacher,
        {'MIXTURE_OR_TASK_NAME': task, 'RANDOM_SEED': chain.seed},
        labels={'stage': 'teacher', 'seed': chain.seed, 'task': task},
      )
    )
  teachers = tuple(step.name for step in steps)
  return steps + [_source(plan, chain, v, teachers) for v in variants]


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


def _target(
  plan: Plan,
  chain: _Chain,
  name: str,
  setting: Setting,
  method: str,
  task: str,
  rates: Rates,
) -> Step:
  """One target run."""
  arm = arms.TARGETS[method]
  macros = {
    'MIXTURE_OR_TASK_NAME': task,
    'RANDOM_SEED': chain.seed,
    'NUM_SHOTS': setting.num_shots,
  }
  if not chain.scored:
    macros['train.train.evaluation'] = None
  after: tuple[str, ...] = ()
  gin_files = arm.gin_files
  if arm.start is None:
    gin_files += (plan.prompts.prompt_init,)
  elif arm.start == arms.TEACHER:
    source = plan.tasks.single_sources[task]
    after = (f'{chain.root}/teacher/{source}',)
    macros |= {
      'SOURCE_PROMPTS': _path(plan, f'{after[0]}/prompts'),
      'SOURCE_TASK': source,
    }
  elif arm.start == arms.TEACHERS:
    teachers = f'{chain.root}/teacher/{{task}}'
    sources = list(plan.tasks.source_tasks)
    after = tuple(teachers.format(task=source) for source in sources)
    macros |= {
      'SOURCE_PROMPTS': _path(plan, f'{teachers}/prompts'),
      'SOURCE_TASK': sources,
    }
  elif arm.start != arms.OWN:
    after = (f'{chain.root}/source/{arm.start}',)
    macros |= {
      'SOURCE_PROMPTS': _path(plan, f'{after[0]}/prompts'),
      'PROMPT_RANK': plan.prompts.prompt_rank,
      'TASK_LEARNING_RATE': rates[1],
    }
  return _training(
    plan,
    name,
    gin_files,
    Training(setting.steps, setting.batch_size, *rates),
    macros,
    after=after,
    labels={
      'stage': 'tuning' if chain.scored else 'target',
      'seed': chain.seed,
      'method': method,
      'setting': setting.name,
      'task': task,
      'rates': list(rates),
    },
  )


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
  tasks = [labels['task']] if 'task' in labels else plan.tasks.source_tasks
  weight = _DISTILLED_COST if macros.get('TEACHER_PROMPTS') else 1.0
  cost = _RUN_COST + weight * training.steps * training.batch_size
  if labels['stage'] == 'source':
    examples = plan.tasks.eval_examples * len(plan.tasks.source_tasks)
    evaluations = plan.source_stage.curve_points + 1
    cost += _EVALUATION_COST * examples * evaluations
  stage = 'target' if labels['stage'] == 'tuning' else labels['stage']
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
      **arm.macros,
      **(plan.macros or {}),
      **macros,
    },
    after=after,
    priority=_PRIORITIES.index(stage),
    cost=cost,
    likeness=f'{gin_files[0]} {labels.get("method")} {training}',
    may_diverge=labels['stage'] == 'tuning',
    labels={**labels, 'steps': training.steps},
  )


def _arm(labels: Mapping[str, Any]) -> arms.Arm:
  """The arm of a step that trains."""
  if labels['stage'] == 'source':
    return arms.SOURCES[labels['method']]
  return arms.TARGETS[labels.get('method', arms.PLAIN)]


def _lengths(plan: Plan, arm: arms.Arm, tasks: Sequence[str]) -> dict[str, int]:
  """The lengths of an arm's examples of some tasks."""
  lengths = plan.tasks.lengths_of(*tasks)
  if not arm.slots:
    lengths['inputs'] -= plan.prompts.prompt_length
  return lengths


def _test(plan: Plan, run: Step, tasks: Sequence[str]) -> Step:
  """Scores what a run has learned on its tasks' test splits."""
  arm = _arm(run.labels)
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
          gin_files=('gin_configs/runs/export.gin',),
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
