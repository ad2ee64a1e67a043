"""What a study will run, take and fill, told before anything starts.

Its runs are those of `steps`. Nothing is trained and nothing is written; what
is there already is looked at, and what is missing is told, not refused.
"""

from collections.abc import Mapping, Sequence
import os
from typing import Any

from mpt_jax import backbones, cli, methods
from mpt_jax.checkpoints import files, huggingface
from mpt_jax.checkpoints.backbone import find_backbone
from mpt_jax.engine.outcome import BACKBONE
from mpt_jax.engine.settings import Logging
from mpt_jax.engine.trainer import format_seconds
from mpt_jax.study import arms, rates, run, steps
from mpt_jax.study.plan import Plan
from mpt_jax.study.steps import Step
from mpt_jax.study.workers import STEP
from mpt_jax.types import HUB, InputError

# FLOP a second. Of a core: T5-base in float32 on one with AVX-512
# (benchmarks/results/intel_avx512.json, 675 GFLOP in 3.09 s on
# two). Of an accelerator: nobody has measured one; a third of what an A100 is
# sold with for TF32.
_CORE, _ACCELERATOR = 110e9, 50e12
# Seconds that an example takes at the least, however small the backbone: on a
# core as the embedded benchmark's, of which 675 runs took 17 minutes on two; on
# an accelerator nobody has measured it.
_CORE_LEAST, _ACCELERATOR_LEAST = 6e-4, 3e-4
# Seconds that a kind of run takes to compile, tiny as it may be.
_COMPILATION = 8.0
# Tokens of an example whose lengths nobody has given yet.
_UNKNOWN = {'inputs': 512, 'targets': 16}
# Bytes of a run beside what it learns: logs, predictions, settings.
_BESIDE = 5e5
# Adam keeps two numbers of each, beside the number itself; in float32.
_STATE, _FLOAT = 3, 4
# Of a published backbone's folder: what is written there -> what we write.
_SPELLINGS = (('-', '_'), ('.', '_'), ('t5_v1_1_', 't5_1_1_'))
_ADAPTED = '_lm_adapt'


def of(plan: Plan, workers: int | None = None) -> dict[str, Any]:
  """Tells what a plan will do.

  Args:
    plan: the plan.
    workers: how many steps run at a time; None is what the machine suggests.

  Returns:
    {'title', 'folder', 'rows': [{'stage', 'method', 'setting', 'runs',
    'finished', 'each': [least, most] steps of a run, 'steps'}], 'runs',
    'finished', 'steps', 'time': lines, 'disk': lines, 'data': lines,
    'missing': lines}.
  """
  every = steps.search(plan) + steps.reported(plan, rates.given(plan))
  done = {s.name for s in every if _is_done(plan, s)}
  rows: dict[tuple[str, str, str], list[Step]] = {}
  for step in every:
    labels = step.labels
    named = labels['stage'] if step.entry != 'export' else 'export'
    if step.best_of:
      named = 'best of them'
    key = (named, labels.get('method', '-'), labels.get('setting', '-'))
    rows.setdefault(key, []).append(step)
  config = _config(plan.backbone)
  folder = cli.data_dir() or os.environ.get('TFDS_DATA_DIR')
  return {
    'title': plan.title or 'a study',
    'folder': plan.model_dir,
    'rows': [_row(key, some, done) for key, some in rows.items()],
    'runs': len(every),
    'finished': len(done),
    'steps': sum(_training_steps(s) for s in every),
    'time': _time(plan, every, done, config, workers),
    'disk': _disk(plan, every, config),
    'data': [_data_told(plan, folder)],
    'missing': _missing(plan, config, folder),
  }


def text(found: Mapping[str, Any]) -> str:
  """A forecast for a terminal.

  Args:
    found: from `of`.
  """
  header = ['stage', 'method', 'setting', 'runs', 'finished', 'steps', 'total']
  body = [
    [
      row['stage'],
      row['method'],
      row['setting'],
      f'{row["runs"]:,}',
      f'{row["finished"]:,}' if row['finished'] else '-',
      _between(row['each']),
      f'{row["steps"]:,}' if row['steps'] else '-',
    ]
    for row in found['rows']
  ]
  total = f'{found["steps"]:,}'
  done = f'{found["finished"]:,}' if found['finished'] else '-'
  body.append(['all', '', '', f'{found["runs"]:,}', done, '', total])
  columns = list(zip(header, *body, strict=True))
  widths = [max(map(len, column)) for column in columns]
  lines = [
    '  '.join(
      cell.ljust(width) if i < 3 else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in (header, *body)
  ]
  told = [
    f'{name}: {line}'
    for name in ('time', 'disk', 'data', 'missing')
    for line in found[name]
  ]
  return '\n'.join(
    [f'{found["title"]}, in {found["folder"]}', '', *lines, '', *told]
  )


def _between(each: Sequence[int]) -> str:
  least, most = each
  if not most:
    return '-'
  return f'{least:,}' if least == most else f'{least:,} to {most:,}'


def _training_steps(step: Step) -> int:
  """Steps of training; what others have trained is not counted twice."""
  return step.labels.get('steps', 0) if step.entry == 'train' else 0


def _row(
  key: tuple[str, str, str], some: Sequence[Step], done: set[str]
) -> dict[str, Any]:
  trained = [_training_steps(step) for step in some]
  return {
    **dict(zip(('stage', 'method', 'setting'), key, strict=True)),
    'runs': len(some),
    'finished': sum(step.name in done for step in some),
    'each': [min(trained), max(trained)],
    'steps': sum(trained),
  }


def _is_done(plan: Plan, step: Step) -> bool:
  return os.path.exists(os.path.join(plan.model_dir, step.name, STEP))


# ---------------------------------------------------------------------------
# Time.


def _time(
  plan: Plan,
  every: Sequence[Step],
  done: set[str],
  config: backbones.Config | None,
  workers: int | None,
) -> list[str]:
  """How long what is not finished takes, and how that is known."""
  left = [step for step in every if step.name not in done]
  if not left:
    return ['every run is finished']
  measured = _measured(plan, every, done)
  cores = os.cpu_count() or 1
  if measured is not None:
    several = workers or min(2, cores)
    hours = _hours({s.name: s.cost * measured for s in left}, left, several)
    return [
      f'{hours} on {several} workers, by what the {len(done)} finished runs'
      f' took: {1000 * measured:.3g} s for 1,000 examples'
    ]
  if config is None:
    return [
      f'not known: no sizes of the backbone {plan.backbone!r}, and no finished'
      ' run'
    ]
  work = {s.name: s.cost * _flops(config, s) for s in left}
  first = {s.likeness: s.name for s in reversed(left)}
  compiled = dict.fromkeys(first.values(), _COMPILATION)

  def seconds(rate: float, least: float) -> dict[str, float]:
    return {
      s.name: max(work[s.name] / rate, s.cost * least) + compiled.get(s.name, 0)
      for s in left
    }

  lengths = 'its lengths allow'
  if not plan.tasks.task_feature_lengths:
    lengths = f'{_UNKNOWN["inputs"]} tokens, which its texts will say'
  several = workers or 1
  on_cores = _hours(seconds(_CORE, _CORE_LEAST), left, cores)
  elsewhere = _hours(seconds(_ACCELERATOR, _ACCELERATOR_LEAST), left, several)
  return [
    f'an estimate, as if every example were as long as {lengths}:'
    f' {on_cores} on the {cores} cores here at {_CORE / 1e9:.0f} GFLOP/s each,'
    ' as measured with T5-base',
    f'or {elsewhere} on {several} accelerator{"" if several == 1 else "s"} of'
    f' {_ACCELERATOR / 1e12:.0f} TFLOP/s, which is assumed, not measured; the'
    ' first finished runs will tell better',
  ]


def _hours(
  seconds: Mapping[str, float], left: Sequence[Step], several: int
) -> str:
  """Of some steps, several at a time, each after what it needs."""
  ends: dict[str, float] = {}
  for step in left:
    begin = max((ends.get(name, 0.0) for name in step.after), default=0.0)
    ends[step.name] = begin + seconds[step.name]
  total = max(sum(seconds.values()) / several, max(ends.values()))
  if total < 3 * 3600:
    return format_seconds(total)
  return f'{total / 3600:,.0f} hours'


def _measured(
  plan: Plan, every: Sequence[Step], done: set[str]
) -> float | None:
  """Seconds of a worker for one unit of `Step.cost`, by the finished runs."""
  took = spent = 0.0
  for step in every:
    if step.name in done:
      path = os.path.join(plan.model_dir, step.name, STEP)
      took += float(files.read_json(path).get('seconds', 0.0))
      spent += step.cost
  return took / spent if took else None


def _flops(config: backbones.Config, step: Step) -> float:
  """Of an example that trains a prompt: forward, and back to the inputs.

  A product [n, d] x [d, f] has 2 n d f; what is frozen has no gradient of its
  own, and what trains all has one.
  """
  lengths = {**_UNKNOWN, **(step.macros.get('TASK_FEATURE_LENGTHS') or {})}
  inputs, targets = lengths['inputs'], lengths['targets']
  width, inner = config.emb_dim, config.num_heads * config.head_dim
  attention = 4 * width * inner
  mlp = (len(config.mlp_activations) + 1) * width * config.mlp_dim
  encoder = inputs * (attention + mlp + 2 * inputs * inner)
  decoder = targets * (
    attention + mlp + 2 * width * inner + 2 * (targets + inputs) * inner
  )
  decoder += inputs * 2 * width * inner  # Keys and values of the inputs.
  # Else a layer at the mask, and a few words.
  generates = backbones.family(config).generates
  scores = targets * config.vocab_size if generates else width
  forward = 2 * (
    config.num_encoder_layers * encoder
    + config.num_decoder_layers * decoder
    + width * scores
  )
  whole = step.entry == 'train' and _arm(step).product == BACKBONE
  return forward * (3 if whole else 2)


def _arm(step: Step) -> arms.Arm:
  """The arm of a step that trains."""
  stage = arms.SOURCES if step.labels['stage'] == 'source' else arms.TARGETS
  return stage[step.labels.get('method', arms.PLAIN)]


def _config(path: str) -> backbones.Config | None:
  """The sizes of a backbone, whether it is there or not; None if unknown."""
  try:
    there = find_backbone(run.find_backbone(path, fetch=False), fetch=False)
    if huggingface.is_model_folder(there):
      return huggingface.open_folder(there)[1]
  except InputError:
    pass
  for part in reversed(os.path.normpath(path).split(os.sep)):
    name = part.lower()
    for written, ours in _SPELLINGS:
      name = name.replace(written, ours)
    if name.endswith(_ADAPTED):
      name = name.removesuffix(_ADAPTED).replace('t5_', 't5_1_1_lm100k_')
    if name in backbones.configs():
      return backbones.get_config(name)
  return None


# ---------------------------------------------------------------------------
# Disk, and what is missing.


def _disk(
  plan: Plan, every: Sequence[Step], config: backbones.Config | None
) -> list[str]:
  """How much the folder will hold, in bytes as people say them."""
  if config is None:
    return ['not known: no sizes of the backbone']
  small = whole = 0.0
  for step in every:
    if step.entry != 'train':
      continue
    learned = _FLOAT * _learned(plan, step, config)
    period = step.macros.get('CHECKPOINT_PERIOD') or Logging().checkpoint_period
    saved = min(-(-_training_steps(step) // period), Logging().max_checkpoints)
    taken = learned * (1 + _STATE * saved)
    if _arm(step).product == BACKBONE:
      whole += taken
    small += _BESIDE + (taken if _arm(step).product != BACKBONE else 0.0)
  told = [f'about {_size(small)} of prompts and the like, checkpoints and logs']
  if whole:
    told.append(
      f'and {_size(whole)} of whole backbones and their checkpoints, by full'
      ' fine-tuning'
    )
  return told


def _learned(plan: Plan, step: Step, config: backbones.Config) -> int:
  """How many numbers a run learns, with its method's own settings."""
  arm, labels = _arm(step), step.labels
  length, rank = plan.prompts.prompt_length, plan.prompts.prompt_rank
  tasks = 1
  if labels['stage'] == 'source':
    tasks = len(plan.tasks.source_tasks)
  tasks = len(labels.get('tasks', ())) or tasks
  method: Any = methods.get(arm.method)
  if issubclass(method, methods.PromptMethod):
    made = methods.prompt_method(arm.method, length, rank)
  else:
    made = method(length=length) if arm.length else method()
  return made.num_parameters(config, tasks)


def _size(count: float) -> str:
  for unit, value in (('TB', 1e12), ('GB', 1e9), ('MB', 1e6)):
    if count >= value:
      return f'{count / value:.3g} {unit}'
  return f'{count / 1e3:.3g} kB'


def _data_told(plan: Plan, folder: str | None) -> str:
  """Where the data come from."""
  if folder is not None:
    return folder
  path = os.path.join(plan.model_dir, 'data')
  return (
    f'no --tfds_data_dir: SYNTHETIC DATA of built-in tasks, written to {path}'
  )


def _missing(
  plan: Plan, config: backbones.Config | None, folder: str | None
) -> list[str]:
  """What must be there before the study can start."""
  told = []
  try:
    run.find_backbone(plan.backbone, fetch=False)
  except InputError as e:
    known = ' (its sizes are known by its name)' if config else ''
    told.append(f'{e}{known}')
  if folder is None:
    return told
  folder = folder.removeprefix(HUB)
  if not os.path.isdir(folder) and '://' not in folder:
    return [*told, f'the data: there is no folder {folder!r}']
  return told + _lost(plan)


def _lost(plan: Plan) -> list[str]:
  """The tasks that cannot be read."""
  from mpt_jax import data

  lost = []
  for name in plan.all_tasks:
    try:
      for split in ('train', 'validation', 'test'):
        data.check_data(name, split, plan.tasks.module)
    except InputError as e:
      lost.append((name, e.summary))
  # The first one's words tell what is to be done.
  if len(lost) < 2:
    return [words for _, words in lost]
  names = ', '.join(name for name, _ in lost)
  return [f'the data of {names}; the first of them: {lost[0][1]}']
