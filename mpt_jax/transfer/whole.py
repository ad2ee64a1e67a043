r"""Runs all of transfer by one command, from teachers to one page.

  python -m mpt_jax.transfer all \
    --gin_file=gin_configs/runs/demo_transfer.gin \
    --gin.MODEL_DIR="'demo-transfer'"

Trains a prompt for each task and seed, puts them into a library, and asks of it
what the other verbs ask, each in a folder of its name below MODEL_DIR. The same
command goes on where it was stopped. At its end stand transfer.md and
transfer.html. Without --tfds_data_dir (or TFDS_DATA_DIR) synthetic data are
written to MODEL_DIR/data and used.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import contextlib
import dataclasses
import functools
import logging
import os
import time
from typing import Any, cast

from mpt_jax import cli
from mpt_jax.checkpoints import files, lock
from mpt_jax.checkpoints import run as run_lib
from mpt_jax.checkpoints.backbone import find_backbone
from mpt_jax.checkpoints.vocabulary import bring, find_vocabulary
from mpt_jax.engine.face import Face, face, showing
from mpt_jax.engine.settings import BackboneSource, Examples
from mpt_jax.engine.trainer import format_seconds
from mpt_jax.study import examine
from mpt_jax.study.plan import Training, check_names
from mpt_jax.study.steps import Step
from mpt_jax.transfer import library, report, runs
from mpt_jax.types import (
  InputError,
  Names,
  Natural,
  Positive,
  require_local,
)

log = logging.getLogger(__name__)

RECORD = 'whole.json'
# Before the folders of the other backbone's prompts.
OTHERS = 'other_'
_SHARED = 'mpt'
_TEACHER = ('gin_configs/runs/teacher.gin',)
# In training examples, for the ETA: what a run costs beside its steps.
_RUN_COST = 1500.0


@dataclasses.dataclass(frozen=True)
class Teachers:
  """The prompts of a backbone, that are transferred.

  Attributes:
    backbone: path of what they are trained on, as INITIAL_CHECKPOINT_PATH; its
      vocabulary lies beside it.
    tasks: a prompt is trained on each.
    training: how.
    seeds: a run of each task for each of them.
    prompt_length: P.
    key_step: the step whose prompt is the task's key; None keeps none.
    macros: more macros of teacher.gin for each run.
  """

  backbone: str
  tasks: Names
  training: Training
  seeds: Sequence[Natural] = (0,)
  prompt_length: Positive = 100
  key_step: Positive | None = None
  macros: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is asked, and of which prompts.

  Attributes:
    model_dir: the folder of all parts.
    teachers: the prompts; their backbone is the one that all is scored on.
    examples: which examples of the tasks are scored; the names in it are not
      looked at.
    shared: training of an MPT run of the first seed's teachers, whose prompts
      are rows of the matrix; None has none.
    source_backbone: path of another backbone: teachers of it are trained, too,
      to be moved to the first; None moves none.
    source_seeds: the seeds of those; None is all.
    prompts: those of the teachers where they are trained already, as
      `sources.read` takes them; None trains them.
    parts: which of `PARTS` are run; what they read must be there.
    options: part -> more settings of its verb: fields of `matrix.Controls`, of
      `speedup.Recipe`, of `project.Projectors`, of the others arguments; and
      of `retrieve` and `speedup` the `targets`, which are all tasks else.
  """

  model_dir: str
  teachers: Teachers
  examples: Examples
  shared: Training | None = None
  source_backbone: str | None = None
  source_seeds: Sequence[Natural] | None = None
  prompts: Any = None
  parts: Names = ()
  options: Mapping[str, Mapping[str, Any]] | None = None

  def __post_init__(self):
    check_names('a part', self.parts, PARTS)
    check_names('a part with options', list(self.options or ()), PARTS)

  @property
  def others(self) -> Teachers | None:
    """The prompts to be moved."""
    if self.source_backbone is None:
      return None
    seeds = self.source_seeds or self.teachers.seeds
    return dataclasses.replace(
      self.teachers, backbone=self.source_backbone, seeds=seeds
    )

  @property
  def sources(self) -> Any:
    """The prompts on the first backbone."""
    return self.folder('library') if self.prompts is None else self.prompts

  @property
  def library(self) -> str:
    """The same, for what needs a library: keys, a prompt of each seed."""
    if not isinstance(self.sources, str):
      raise InputError('PROMPTS must be a library for retrieve and speedup')
    return self.sources

  def folder(self, part: str) -> str:
    """Where a part is."""
    return os.path.join(self.model_dir, part)

  def told(
    self, part: str, known: Iterable[str], **ours: Any
  ) -> dict[str, Any]:
    """Returns the settings of a part, those of `options` over ours.

    Args:
      part: the part.
      known: the names of all that there are.
      **ours: what the plan says otherwise.

    Raises:
      InputError: if `options` has another name.
    """
    given = (self.options or {}).get(part, {})
    check_names(f'OPTIONS: a setting of {part}', list(given), list(known))
    return {**ours, **given}


def whole(plan: Plan, workers: Positive | None = None) -> dict[str, Any]:
  """Runs the parts of a plan that are not finished.

  Args:
    plan: what is asked.
    workers: processes that train; None is one with an accelerator, else up to
      two.

  Returns:
    What was done, as in `whole.json`.

  Raises:
    InputError: if something given is wrong.
    workers.StepError: if a run fails otherwise.
  """
  plan = dataclasses.replace(plan, model_dir=require_local(plan.model_dir))
  idle = {
    'teachers': plan.prompts is not None,
    'retrieve': plan.teachers.key_step is None,
    'project': plan.others is None,
  }
  parts = [
    part
    for part in PARTS
    if part in (plan.parts or PARTS) and not idle.get(part)
  ]
  # Workers train beside what we have on the same accelerator.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  with lock.hold(plan.model_dir):
    face().keep_log(plan.model_dir)
    site = _Site(plan, _find_data(plan), workers)
    _check_answers(plan)
    clock = _Clock(parts, plan.folder(RECORD))
    for number, part in enumerate(parts):
      clock.begin(part)
      done = f'{number} of {len(parts)} parts are done; of {part}'
      with showing(cast(Face, _Part(face(), done))):
        PARTS[part](site)
      record = {
        'version': 1,
        'seconds': clock.end(part),
        'synthetic': site.synthetic,
        'plan': run_lib.record(dataclasses.asdict(plan)),
      }
      files.write_file(plan.folder(RECORD), files.json_bytes(record))
  return record


class _Part:
  """The face of a part: an interrupt says what was done before it."""

  def __init__(self, whole: Face, done: str):
    self._whole, self._done = whole, done
    self.at_interrupt(lambda: 'the same command goes on')

  def at_interrupt(self, resumes: Callable[[], str]) -> None:
    """Takes what the part says of its repetition."""
    self._whole.at_interrupt(lambda: f'{self._done}: {resumes()}')

  def __getattr__(self, name: str) -> Any:
    return getattr(self._whole, name)


class _Clock:
  """Says where the parts are, and how long it will take."""

  def __init__(self, parts: Sequence[str], record: str):
    self._parts = parts
    self._before = {}
    with contextlib.suppress(InputError):
      self._before = dict(files.read_json(record)['seconds'])
    self._begin = self._last = time.monotonic()
    self._seconds: dict[str, float] = {}

  def begin(self, part: str) -> None:
    """Says which part is next."""
    number, total = self._parts.index(part) + 1, len(self._parts)
    so_far = format_seconds(time.monotonic() - self._begin)
    log.info(
      'part %d of %d: %s (%s so far, ETA %s)',
      *(number, total, part, so_far, self._left(number - 1)),
    )

  def _left(self, number: int) -> str:
    """How long what is left will take, by what the first parts took."""
    shares = [_SHARES[part] for part in self._parts]
    done, left = sum(shares[:number]), sum(shares[number:])
    if not done:
      return '?'
    took = sum(self._seconds.values())
    before = self._before.get(self._parts[number], 0.0)
    return format_seconds(max(took * left / done - before, 0.0))

  def end(self, part: str) -> dict[str, float]:
    """Returns the seconds of all parts, those of stopped calls included."""
    now = time.monotonic()
    spent, self._last = now - self._last, now
    self._seconds[part] = round(self._before.get(part, 0.0) + spent, 1)
    return {**self._before, **self._seconds}


@dataclasses.dataclass(frozen=True)
class _Site:
  """A plan, and what its parts share."""

  plan: Plan
  data_dir: str
  workers: int | None

  @functools.cached_property
  def synthetic(self) -> list[str]:
    """The tasks whose data are made up."""
    from mpt_jax import data

    data.check_data(
      list(self.plan.teachers.tasks),
      self.plan.examples.split,
      self.plan.examples.module,
    )
    return [t for t in self.plan.teachers.tasks if data.is_synthetic(t)]


def _find_data(plan: Plan) -> str:
  """The folder of the data; made up ones are written if none is given."""
  given = cli.data_dir() or os.environ.get('TFDS_DATA_DIR')
  if given:
    return given
  data_dir = plan.folder('data')
  module = plan.examples.module
  if examine.write_data(data_dir, plan.teachers.tasks, module):
    log.info('no --tfds_data_dir: SYNTHETIC DATA in %s', data_dir)
  cli.use_data_dir(data_dir)
  return data_dir


def _check_answers(plan: Plan) -> None:
  """Refuses tasks that a backbone cannot answer, before any run of others."""
  from mpt_jax import data
  from mpt_jax.data import lookup, seqio_tasks

  examples = plan.examples
  if examples.module:
    seqio_tasks.import_module(examples.module)
  longest = examples.task_feature_lengths['targets']
  for teachers in (plan.teachers, plan.others):
    if teachers is None:
      continue
    given = (teachers.macros or {}).get('VOCABULARY')
    words = given or find_vocabulary(bring(find_backbone(teachers.backbone)))
    if words is None:
      continue
    data.use_vocabulary(words)
    known = lookup.get_provider(list(teachers.tasks))
    lookup.check_labels(known, longest, teachers.prompt_length)


# ---------------------------------------------------------------------------
# The parts.


def _train(site: _Site) -> None:
  """Trains what is transferred, and puts it into libraries."""
  plan = site.plan
  for prefix, teachers in (('', plan.teachers), (OTHERS, plan.others)):
    if teachers is None:
      continue
    folder = plan.folder(f'{prefix}teachers')
    steps = _steps(plan, teachers, folder)
    if not prefix and plan.shared is not None:
      steps.append(_shared(plan, teachers, plan.shared, steps))
    runs.run(
      folder,
      steps,
      teachers.backbone,
      plan.examples.module,
      site.workers,
      site.data_dir,
    )
    library.add(
      library=plan.folder(f'{prefix}library'),
      prompts=[
        os.path.join(folder, step.name)
        for step in steps
        if step.name != _SHARED
      ],
    )


def _steps(plan: Plan, teachers: Teachers, folder: str) -> list[Step]:
  """A run for each task and seed."""
  training = teachers.training
  return [
    Step(
      name=f'{task}/{seed}',
      entry='train',
      gin_files=_TEACHER,
      macros={
        **_macros(plan, teachers, training, f'{folder}/{task}/{seed}'),
        'MIXTURE_OR_TASK_NAME': task,
        'RANDOM_SEED': seed,
        'KEY_STEP': teachers.key_step,
      },
      cost=_RUN_COST + training.steps * training.batch_size,
      likeness=_TEACHER[0],
      labels={'task': task, 'seed': seed, 'steps': training.steps},
    )
    for seed in teachers.seeds
    for task in teachers.tasks
  ]


def _shared(
  plan: Plan, teachers: Teachers, training: Training, steps: Sequence[Step]
) -> Step:
  """MPT's source run on the teachers of the first seed."""
  folder = plan.folder('teachers')
  seed, tasks = teachers.seeds[0], list(teachers.tasks)
  return Step(
    name=_SHARED,
    entry='train',
    gin_files=('gin_configs/runs/source.gin',),
    macros={
      **_macros(plan, teachers, training, f'{folder}/{_SHARED}'),
      'MIXTURE_OR_TASK_NAME': tasks,
      'PROMPT_TASKS': tasks,
      'RANDOM_SEED': seed,
      'TASK_LEARNING_RATE': training.task_learning_rate,
      'TEACHER_PROMPTS': f'{folder}/{{task}}/{seed}/prompts',
    },
    after=tuple(s.name for s in steps if s.labels['seed'] == seed),
    priority=1,
    cost=_RUN_COST + 1.5 * training.steps * training.batch_size,
    likeness='source',
    labels={'steps': training.steps},
  )


def _macros(
  plan: Plan, teachers: Teachers, training: Training, model_dir: str
) -> dict[str, Any]:
  """The macros of every run."""
  return {
    'INITIAL_CHECKPOINT_PATH': teachers.backbone,
    'MODEL_DIR': model_dir,
    'MIXTURE_OR_TASK_MODULE': plan.examples.module,
    'TASK_FEATURE_LENGTHS': dict(plan.examples.task_feature_lengths),
    'PROMPT_LENGTH': teachers.prompt_length,
    'TRAIN_STEPS': training.steps,
    'BATCH_SIZE': training.batch_size,
    'SHARED_LEARNING_RATE': training.learning_rate,
    'EVAL_EXAMPLES': plan.examples.num_examples,
    **(teachers.macros or {}),
  }


def _matrix(site: _Site) -> None:
  from mpt_jax.transfer import matrix

  plan = site.plan
  mpt = None
  if plan.shared is not None and plan.prompts is None:
    mpt = os.path.join(plan.folder('teachers'), _SHARED, 'prompts')
  controls = plan.told('matrix', _fields(matrix.Controls), mpt=mpt)
  matrix.matrix(
    model_dir=plan.folder('matrix'),
    backbone=BackboneSource(plan.teachers.backbone),
    sources=plan.sources,
    controls=matrix.Controls(**controls),
    examples=plan.examples,
  )


def _indicators(site: _Site) -> None:
  from mpt_jax.transfer import indicators

  plan = site.plan
  indicators.indicators(
    model_dir=plan.folder('indicators'),
    backbone=BackboneSource(plan.teachers.backbone),
    prompts=plan.sources,
    matrix=plan.folder('matrix'),
    **plan.told('indicators', ('window', 'sentinel', 'kind')),
  )


def _retrieve(site: _Site) -> None:
  from mpt_jax.transfer import retrieve

  plan = site.plan
  others = (len(plan.teachers.tasks) - 1) * len(plan.teachers.seeds)
  told = plan.told(
    'retrieve',
    ('targets', 'metrics', 'k', 'start', 'negative', 'fixed'),
    targets=plan.teachers.tasks,
    k=min(3, others),
  )
  for target in told.pop('targets'):
    retrieve.retrieve(
      library=plan.library,
      target_key=[
        os.path.join(plan.library, target, str(seed), 'key')
        for seed in plan.teachers.seeds
      ],
      model_dir=plan.folder(f'retrieve/{target}'),
      **told,
    )


def _speedup(site: _Site) -> None:
  from mpt_jax.transfer import speedup

  plan, teachers = site.plan, site.plan.teachers
  recipe = plan.told(
    'speedup',
    ('targets', *_fields(speedup.Recipe)),
    targets=plan.teachers.tasks,
    steps=teachers.training.steps,
    period=max(1, teachers.training.steps // 10),
    batch_size=teachers.training.batch_size,
    seeds=tuple(teachers.seeds),
    prompt_length=teachers.prompt_length,
    task_feature_lengths=plan.examples.task_feature_lengths,
    num_examples=plan.examples.num_examples,
    module=plan.examples.module,
    macros=teachers.macros,
  )
  speedup.speedup(
    model_dir=plan.folder('speedup'),
    backbone=teachers.backbone,
    sources=os.path.join(plan.library, '{source}', '{seed}', 'value'),
    matrix=plan.folder('matrix'),
    targets=tuple(recipe.pop('targets')),
    recipe=speedup.Recipe(**recipe),
    workers=site.workers,
  )


def _project(site: _Site) -> None:
  from mpt_jax.transfer import matrix, project

  plan, others = site.plan, site.plan.others
  assert others is not None
  # What the prompts do where they come from, to compare with.
  matrix.matrix(
    model_dir=plan.folder(report.AT_HOME),
    backbone=BackboneSource(others.backbone),
    sources=plan.folder(f'{OTHERS}library'),
    examples=plan.examples,
  )
  told = plan.told(
    'project',
    _fields(project.Projectors),
    train_on=[[plan.teachers.tasks[0]]],
    target_prompts=plan.sources,
    macros=plan.teachers.macros,
    workers=site.workers,
  )
  project.project(
    model_dir=plan.folder('project'),
    backbone=plan.teachers.backbone,
    sources=plan.folder(f'{OTHERS}library'),
    projectors=project.Projectors(**told),
    free=project.Free(plan.source_backbone),
    examples=plan.examples,
  )


def _fields(settings: Any) -> list[str]:
  return [field.name for field in dataclasses.fields(settings)]


def _report(site: _Site) -> None:
  report.report(site.plan.model_dir)


# In this order. Each reads what those before it wrote.
PARTS: Mapping[str, Callable[[_Site], None]] = {
  'teachers': _train,
  'matrix': _matrix,
  'indicators': _indicators,
  'retrieve': _retrieve,
  'speedup': _speedup,
  'project': _project,
  'report': _report,
}
# Of the time of all, on the embedded benchmark.
_SHARES = {
  'teachers': 0.42,
  'matrix': 0.15,
  'indicators': 0.03,
  'retrieve': 0.01,
  'speedup': 0.13,
  'project': 0.26,
  'report': 0.001,
}
