r"""Moves prompts to another backbone: trained projectors beside what is free.

  python -m mpt_jax.transfer project --tfds_data_dir=data \
    --gin.INITIAL_CHECKPOINT_PATH="'demo'" \
    --gin.SOURCES="'runs/small/{task}/prompts'" \
    --gin.TARGET_PROMPTS="'runs/teachers/{task}/prompts'" \
    --gin.TARGETS="['sst2', 'mnli', 'qnli', 'rte', 'cb']" \
    --gin.TRAIN_ON="[['mnli'], ['sst2']]" --gin.SOURCE_BACKBONE="'demo-small'" \
    --gin.TASK_FEATURE_LENGTHS="{'inputs': 48, 'targets': 4}" \
    --gin.MODEL_DIR="'runs/transfer/project'"

A projector is trained for each entry of TRAIN_ON, each goal (task tuning, or
the distance to TARGET_PROMPTS), form and seed, as projector.gin does, on worker
processes; then every source prompt goes through it and is scored on its own
task, on three groups of tasks: those it was trained on, others of their
categories, and all others. Beside them stand random prompts, zeros, and with
SOURCE_BACKBONE the least-squares map and the anchors, which train nothing.
Writes `project.json` (every number), `project.csv` (a line for each score),
`project.png`, `runs/` (the projectors) and `projected/` (bundles of the target
backbone), and prints the table. The same command goes on where it was stopped.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import logging
import os
from typing import Any

from mpt_jax.checkpoints import bundle as bundle_lib
from mpt_jax.checkpoints import lock
from mpt_jax.checkpoints.backbone import Backbone
from mpt_jax.checkpoints.bundle import PromptBundle
from mpt_jax.engine import predictor, preemption
from mpt_jax.engine.face import face
from mpt_jax.engine.outcome import PROMPTS
from mpt_jax.engine.settings import BackboneSource, Devices, Examples
from mpt_jax.study.steps import Step
from mpt_jax.transfer import categories as categories_lib
from mpt_jax.transfer import (
  matrix,
  project_views,
  projection,
  records,
  runs,
)
from mpt_jax.transfer import sources as sources_lib
from mpt_jax.transfer.matrix import Asking
from mpt_jax.transfer.project_views import Projected
from mpt_jax.transfer.scoring import Cell, check_backbone
from mpt_jax.transfer.sources import SourcePrompt
from mpt_jax.types import (
  InputError,
  Natural,
  Positive,
  Rate,
  nearest,
  require_local,
)

log = logging.getLogger(__name__)

VERB, CELLS, RUNS, MADE = 'project', 'cells', 'runs', 'projected'
DISTANCE, TASK = 'distance', 'task'
GOALS = DISTANCE, TASK
STOPPING = 'stopping; the scores that are known are kept'
_GIN = ('gin_configs/runs/projector.gin',)
# What a run costs beside its steps, in training examples, for the ETA.
_RUN_COST = 1500.0
_RANDOM_PROMPTS = 3
# All of the test split, of whatever the targets are.
_EXAMPLES, _ASKING = Examples(''), Asking()


@dataclasses.dataclass(frozen=True)
class Projectors:
  """Which projectors are trained, and how.

  Attributes:
    train_on: the tasks of each: a name, or several.
    goals: 'distance' (to `target_prompts`), 'task' (tuning).
    forms: name -> macros of projector.gin that make it.
    seeds: of the networks and of the order of the data.
    target_prompts: own prompts of the target backbone, as the sources are
      given; the first of a task is what 'distance' wants, and all of them are
      its own score. None has neither.
    steps: of each run.
    batch_size: of each run.
    learning_rate: of each run.
    evaluations: how often a run is scored on its validation split, by which
      the best step is kept.
    macros: more macros of projector.gin.
    workers: processes; None is one with an accelerator, else up to two.
  """

  train_on: Sequence[str | Sequence[str]]
  goals: Sequence[str] = GOALS
  forms: Mapping[str, Mapping[str, Any]] = dataclasses.field(
    default_factory=lambda: {'flat': {}}
  )
  seeds: Sequence[int] = (0,)
  target_prompts: Any = None
  steps: Positive = 2000
  batch_size: Positive = 16
  learning_rate: Rate = 5e-3
  evaluations: Positive = 10
  macros: Mapping[str, Any] | None = None
  workers: Positive | None = None

  def __post_init__(self):
    for goal in self.goals:
      if goal not in GOALS:
        raise InputError(
          f'GOALS has {goal!r}, expected some of {", ".join(GOALS)}'
          f'{nearest(str(goal), GOALS)}'
        )
    if DISTANCE in self.goals and self.target_prompts is None:
      raise InputError(
        f'the goal {DISTANCE!r} needs TARGET_PROMPTS, own prompts of the target'
        f' backbone; or give GOALS = [{TASK!r}]'
      )
    for name in self.forms:
      if not name or not str(name).isidentifier():
        raise InputError(f'FORMS has {name!r}, expected a word')
    if not self.train_on or not self.goals or not self.seeds or not self.forms:
      raise InputError('TRAIN_ON, GOALS, FORMS and SEEDS must each name one')

  @property
  def groups(self) -> list[tuple[str, ...]]:
    """The tasks of each projector."""
    return [
      (tasks,) if isinstance(tasks, str) else tuple(tasks)
      for tasks in self.train_on
    ]


@dataclasses.dataclass(frozen=True)
class Free:
  """What moves prompts without training.

  Attributes:
    source_backbone: path of the source backbone, of which only the embedding
      is used; None leaves out the ways that need it.
    ways: some of 'linear', 'anchors'.
    anchor_steps: of the search.
    anchor_top: how many anchors count; None is all.
  """

  source_backbone: str | None = None
  ways: Sequence[str] = (projection.LINEAR, projection.ANCHORS)
  anchor_steps: Positive = 2000
  anchor_top: Natural | None = None

  def __post_init__(self):
    known = projection.LINEAR, projection.ANCHORS
    for way in self.ways:
      if way not in known:
        raise InputError(
          f'FREE has {way!r}, expected some of {", ".join(known)}'
          f'{nearest(str(way), known)}'
        )


@dataclasses.dataclass(frozen=True)
class _Job:
  """What is known before anything is trained.

  Attributes:
    folder: of the verb.
    backbone: macros that say where the target backbone is read.
    loaded: it.
    sources: task -> its source prompt.
    own: task -> the prompts of the target backbone for it.
    settings: which projectors.
    examples: what is scored.
  """

  folder: str
  backbone: Mapping[str, str]
  loaded: Backbone
  sources: Mapping[str, SourcePrompt]
  own: Mapping[str, Sequence[SourcePrompt]]
  settings: Projectors
  examples: Examples

  @property
  def length(self) -> int:
    """P, of the target backbone's prompts; without any, of the sources'."""
    known = [*(p for some in self.own.values() for p in some)]
    return len((known or list(self.sources.values()))[0].array)


def project(
  *,
  model_dir: str,
  backbone: BackboneSource | Backbone | str,
  sources: Any,
  targets: Sequence[str] | None = None,
  projectors: Projectors,
  free: Free = Free(),
  examples: Examples = _EXAMPLES,
  categories: Mapping[str, str] | None = None,
  asking: Asking = _ASKING,
  devices: Devices = Devices(),
) -> Projected:
  """Trains projectors, and scores what they make of all source prompts.

  Args:
    model_dir: folder of all files.
    backbone: where the target backbone is read, or a loaded one.
    sources: prompts of the source backbone: a library, bundles, paths, a list,
      {task: one}, or a path with '{task}' in it for each of the targets.
    targets: tasks to score on; None is those of the sources.
    projectors: which are trained.
    free: what needs no training.
    examples: which examples of the targets; the names in it are not looked at.
    categories: task -> category, over those of `transfer.categories`.
    asking: how prompts are asked.
    devices: devices and memory of the scores.

  Returns:
    The scores.

  Raises:
    InputError: if something given is wrong, or the folder was begun with other
      settings.
  """
  folder = require_local(model_dir)
  loaded = predictor.load_backbone(backbone)
  moved = _by_task('SOURCES', sources, targets, None)
  tasks = categories_lib.ordered(list(targets or moved), categories)
  own: dict[str, list[SourcePrompt]] = {}
  if projectors.target_prompts is not None:
    own = _by_task('TARGET_PROMPTS', projectors.target_prompts, tasks, loaded)
  job = _Job(
    folder,
    _read_by_workers(backbone),
    loaded,
    {task: _first(task, moved) for task in tasks},
    own,
    projectors,
    dataclasses.replace(examples, mixture_or_task_name=tasks),
  )
  _check(job)
  _check_answers(job)
  asking = dataclasses.replace(
    asking, cache=asking.cache or os.path.join(folder, CELLS)
  )
  with lock.hold(folder):
    record = _record(job, free, asking, categories)
    done = records.begin(folder, VERB, record)
    if done is not None:
      log.info('%s holds the whole; nothing to do', folder)
      made = Projected(done)
    else:
      steps = _train(job)
      face().keep_log(folder)
      face().at_interrupt(lambda: 'the same command goes on with the others')
      with preemption.interrupting(STOPPING):
        rows = _rows(job, steps, free)
        cells = _ask(job, rows, asking, devices)
        made = Projected(_collect(job, steps, rows, cells, asking, categories))
        made.save(folder)
  if not face().interactive:
    print(made)
  return made


# ---------------------------------------------------------------------------
# What is given.


def _read_by_workers(
  backbone: BackboneSource | Backbone | str,
) -> dict[str, str]:
  """The macros by which a run reads the target backbone."""
  if isinstance(backbone, Backbone):
    backbone = backbone.path
  if isinstance(backbone, str):
    backbone = BackboneSource(backbone or None)
  found = {
    'INITIAL_CHECKPOINT_PATH': backbone.trained,
    'MODEL': backbone.config,
    'VOCABULARY': backbone.vocabulary,
  }
  return {name: text for name, text in found.items() if isinstance(text, str)}


def _by_task(
  macro: str, given: Any, tasks: Sequence[str] | None, backbone: Any
) -> dict[str, list[SourcePrompt]]:
  """The prompts of each task, those of several runs in order."""
  if isinstance(given, str) and '{task}' in given:
    if not tasks:
      raise InputError(
        f'{macro} = {given!r} has {{task}} in it: name the tasks as TARGETS'
      )
    given = {task: given.replace('{task}', task) for task in tasks}
  found: dict[str, list[SourcePrompt]] = {}
  for prompt in sources_lib.read(given, backbone):
    if prompt.kind == sources_lib.VALUE and prompt.task:
      found.setdefault(prompt.task, []).append(prompt)
  if not found:
    raise InputError(f'{macro} has no prompt that says of which task it is')
  return found


def _first(
  task: str, found: Mapping[str, Sequence[SourcePrompt]]
) -> SourcePrompt:
  if task not in found:
    raise InputError(
      f'SOURCES has no prompt of the task {task!r}; it has'
      f' {", ".join(found)}{nearest(task, found)}'
    )
  first, *others = found[task]
  if others:
    log.info(
      'of %d source prompts of %s %r is taken',
      1 + len(others),
      task,
      first.name,
    )
  return first


def _check(job: _Job) -> None:
  """Refuses before training what training or scoring would."""
  sources_lib.table_of(job.sources.values())  # Of one shape.
  backbones = {p.backbone_fingerprint for p in job.sources.values()} - {''}
  if len(backbones) > 1:
    raise InputError(
      f'SOURCES are of {len(backbones)} backbones, expected one:'
      f' {", ".join(sorted(backbones))}'
    )
  for some in job.own.values():
    for prompt in some:
      check_backbone(prompt, job.loaded)
  for tasks in job.settings.groups:
    for task in tasks:
      if task not in job.sources:
        raise InputError(
          f'TRAIN_ON has {task!r}, which is none of the TARGETS'
          f' {", ".join(job.sources)}{nearest(task, job.sources)}'
        )
      if DISTANCE in job.settings.goals and task not in job.own:
        raise InputError(
          f'TARGET_PROMPTS has no prompt of the task {task!r}, which the goal'
          f' {DISTANCE!r} needs; it has {", ".join(job.own)}'
        )
  lengths = {len(some[0].array) for some in job.own.values()}
  if len(lengths) > 1:
    raise InputError(
      f'TARGET_PROMPTS are of the lengths {sorted(lengths)}, expected one'
    )


def _check_answers(job: _Job) -> None:
  """Refuses tasks whose answers the target backbone cannot give."""
  from mpt_jax.data import lookup

  examples = job.examples
  known = lookup.check_data(examples.names, examples.split, examples.module)
  if not examples.allow_cut_targets:
    longest = examples.task_feature_lengths['targets']
    lookup.check_labels(known, longest, job.length)


def _record(
  job: _Job,
  free: Free,
  asking: Asking,
  categories: Mapping[str, str] | None,
) -> dict[str, Any]:
  """What the numbers of a folder depend on."""
  settings = dataclasses.asdict(job.settings)
  for name in ('target_prompts', 'workers'):
    del settings[name]
  return {
    'backbone': job.loaded.fingerprint,
    **{f'source of {t}': p.digest for t, p in job.sources.items()},
    **{
      f'own prompts of {task}': [prompt.digest for prompt in some]
      for task, some in job.own.items()
    },
    **settings,
    **dataclasses.asdict(free),
    **{
      f'category of {task}': categories_lib.category_of(task, categories)
      for task in job.sources
    },
    **asking.settings(job.examples),
  }


# ---------------------------------------------------------------------------
# Training.


def _train(job: _Job) -> list[Step]:
  """Trains what is not trained; returns the steps of all projectors."""
  for task, prompt in job.sources.items():
    _keep(os.path.join(job.folder, 'sources', task), prompt, task)
  for task, some in job.own.items():
    _keep(os.path.join(job.folder, 'targets', task), some[0], task)
  folder = os.path.join(job.folder, RUNS)
  steps = list(_steps(job, folder))
  path = job.backbone['INITIAL_CHECKPOINT_PATH']
  runs.run(folder, steps, path, job.examples.module, job.settings.workers)
  return steps


def _keep(path: str, prompt: SourcePrompt, task: str) -> None:
  """Writes a prompt as a bundle that a run reads."""
  if not os.path.isdir(path):
    projection.bundle_of(prompt, task).save(path)


def _steps(job: _Job, folder: str) -> Iterator[Step]:
  settings = job.settings
  period = max(1, settings.steps // settings.evaluations)
  for tasks in settings.groups:
    for goal in settings.goals:
      for form, macros in settings.forms.items():
        for seed in settings.seeds:
          name = f'{goal}/{form}/{"+".join(tasks)}/{seed}'
          made = {
            **job.backbone,
            'MODEL_DIR': os.path.join(folder, name),
            'MIXTURE_OR_TASK_NAME': tasks[0] if len(tasks) == 1 else [*tasks],
            'MIXTURE_OR_TASK_MODULE': job.examples.module,
            'TASK_FEATURE_LENGTHS': dict(job.examples.task_feature_lengths),
            'ALLOW_CUT_TARGETS': job.examples.allow_cut_targets,
            'SOURCE_PROMPTS': os.path.join(job.folder, 'sources', '{task}'),
            'PROMPT_LENGTH': job.length,
            'TRAIN_STEPS': settings.steps,
            'BATCH_SIZE': settings.batch_size,
            'LEARNING_RATE': settings.learning_rate,
            'RANDOM_SEED': seed,
            'EVAL_PERIOD': period,
            'EVAL_EXAMPLES': job.examples.num_examples,
            'KEEP_BEST': True,
            'CHECKPOINT_PERIOD': settings.steps,
            **(settings.macros or {}),
            **macros,
          }
          if goal == DISTANCE:
            wanted = os.path.join(job.folder, 'targets', '{task}')
            made['TARGET_PROMPTS'] = wanted
          yield Step(
            name=name,
            entry='train',
            gin_files=_GIN,
            macros=made,
            cost=_RUN_COST + settings.steps * settings.batch_size,
            likeness=f'{goal} {form} {len(tasks)}',
            labels={
              'goal': goal,
              'form': form,
              'trained_on': list(tasks),
              'seed': seed,
            },
          )


# ---------------------------------------------------------------------------
# What is scored: prompts by task, and what made each.


@dataclasses.dataclass(frozen=True)
class _Row:
  """A prompt to score on its task.

  Attributes:
    prompt: the prompt.
    task: the task; '' for every one.
    made: what made it: a projector's labels, or a name.
  """

  prompt: SourcePrompt
  task: str
  made: Any


def _rows(job: _Job, steps: Sequence[Step], free: Free) -> list[_Row]:
  shape = job.length, job.loaded.config.emb_dim
  rows = [
    _Row(p.renamed(f'own/{task}/{n}'), task, 'own')
    for task, some in job.own.items()
    for n, p in enumerate(some)
    if task in job.sources
  ]
  for seed in range(_RANDOM_PROMPTS):
    random = sources_lib.random_prompt(shape, seed, f'random/{seed}')
    rows.append(_Row(random, '', 'random'))
  rows.append(_Row(sources_lib.zero_prompt(shape), '', 'zero'))
  for task in dict.fromkeys(t for tasks in job.settings.groups for t in tasks):
    for prompt in job.own.get(task, [])[:1]:
      name = f'{project_views.ALWAYS}{task}'
      kind = sources_lib.PROJECTED
      same = dataclasses.replace(prompt, name=name, kind=kind, task='')
      rows.append(_Row(same, '', name))
  prompts = list(job.sources.values())
  for step in steps:
    folder = os.path.join(job.folder, RUNS, step.name, PROMPTS)
    projector = bundle_lib.load_prompts(folder)
    made = _made(
      job,
      step.name,
      projection.digest_of(projector),
      functools.partial(projection.project, projector, prompts),
    )
    rows += _of(made, step.name, dict(step.labels))
  if free.source_backbone is not None and free.ways:
    words = projection.read_words(free.source_backbone, job.loaded)
    log.info('%d words are shared by both vocabularies', len(words.source))
    for way in free.ways:
      move = functools.partial(projection.linear, words, prompts, job.loaded)
      if way == projection.ANCHORS:
        move = functools.partial(
          projection.by_anchors,
          words,
          prompts,
          job.loaded,
          steps=free.anchor_steps,
          top=free.anchor_top,
        )
      rows += _of(_made(job, way, way, move), way, way)
  return rows


def _made(job: _Job, name: str, digest: str, move: Any) -> list[PromptBundle]:
  """The projected prompts of all tasks: kept ones, or new ones."""
  folders = [os.path.join(job.folder, MADE, name, task) for task in job.sources]
  if all(map(os.path.isdir, folders)):
    kept = [bundle_lib.load_prompts(folder) for folder in folders]
    if all(bundle.origin.get('projector') == digest for bundle in kept):
      return kept
  made: list[PromptBundle] = move()
  for folder, bundle in zip(folders, made, strict=True):
    bundle.save(folder)
  return made


def _of(bundles: Sequence[PromptBundle], name: str, made: Any) -> list[_Row]:
  rows = []
  for bundle in bundles:
    [prompt] = sources_lib.of_bundle(bundle, sources_lib.PROJECTED)
    rows.append(
      _Row(prompt.renamed(f'{name}/{prompt.task}'), prompt.task, made)
    )
  return rows


def _ask(
  job: _Job, rows: Sequence[_Row], asking: Asking, devices: Devices
) -> list[Cell]:
  scorer = asking.scorer(job.loaded, job.examples, devices)
  found = []
  for number, task in enumerate(job.sources, 1):
    log.info('%s, %d of %d tasks', task, number, len(job.sources))
    asked = [row.prompt for row in rows if row.task in ('', task)]
    found += scorer.score(asked, [task])
  return found


def _collect(
  job: _Job,
  steps: Sequence[Step],
  rows: Sequence[_Row],
  cells: Sequence[Cell],
  asking: Asking,
  categories: Mapping[str, str] | None,
) -> dict[str, Any]:
  """What `project.json` holds."""
  prompts = [row.prompt for row in rows]
  found = matrix.collect(
    prompts, cells, job.loaded, job.examples, asking, categories
  )
  made = {row.prompt.name: row.made for row in rows}
  targets = {target['task']: target for target in found['targets']}
  scored = []
  for cell in found['cells']:
    by, task = made[cell['source']], cell['task']
    if by == 'own':
      continue
    group = None
    if not isinstance(by, str):
      group = project_views.group_of(
        task, by['trained_on'], {t: v['category'] for t, v in targets.items()}
      )
    scored.append(
      {'projector': by, 'group': group, 'category': targets[task]['category']}
      | cell
    )
  source = next(iter(job.sources.values()))
  return {
    'version': 1,
    'source_backbone': {
      'name': source.backbone_name,
      'fingerprint': source.backbone_fingerprint,
    },
    'target_backbone': found['backbone'],
    'source_shape': list(source.array.shape),
    'target_shape': [job.length, job.loaded.config.emb_dim],
    'definitions': project_views.DEFINITIONS,
    **{n: found[n] for n in ('split', 'readout', 'synthetic', 'undefined')},
    'targets': found['targets'],
    'own': {task: target['own'] for task, target in targets.items()},
    'random': {task: target['random'] for task, target in targets.items()},
    'rows': scored,
    'groups': project_views.groups(scored, job.settings.groups),
  }
