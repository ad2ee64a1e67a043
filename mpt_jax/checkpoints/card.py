"""The README.md of what a run leaves and others may want: a hub's model card.

All of it comes from the product's own metadata and, where it is there, from the
folder of its run; what neither says stands under "Not known". The same product
has the same card, byte by byte. What is written into it may come from
strangers: it stands in code, where neither Markdown nor YAML means anything.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import json
import math
import os
import re
from typing import TYPE_CHECKING, Any

from mpt_jax.checkpoints import files, hub
from mpt_jax.checkpoints import run as run_lib
from mpt_jax.checkpoints.texts import TaskText
from mpt_jax.types import InputError

if TYPE_CHECKING:
  from mpt_jax.checkpoints.bundle import PromptBundle
  from mpt_jax.methods import Method

# Kind of product -> the hub's name of the library, what it is to its base
# model, and what it is in words.
KINDS: Mapping[str, tuple[str, str, str]] = {
  'bundle': ('mpt_jax', 'adapter', 'a bundle of mpt_jax'),
  'peft': ('peft', 'adapter', 'an adapter of PEFT'),
  'adapterhub': ('adapter-transformers', 'adapter', 'an AdapterHub adapter'),
  'backbone': ('transformers', 'finetune', 'a folder of transformers'),
}
# What a person reads of a list or of a text.
_MOST, _LONGEST, _LONGEST_BLOCK = 50, 300, 3000
_STEP_FOLDER = re.compile(r'checkpoint_\d+')
# What YAML takes for text without quotes, and what it would take for more.
_PLAIN = re.compile(r'[A-Za-z][\w./-]*', re.ASCII)
_WORDS = {'true', 'false', 'null', 'yes', 'no', 'on', 'off', 'y', 'n'}


@dataclasses.dataclass(frozen=True)
class Made:
  """How a product came about, beyond what it says itself.

  Attributes:
    record: the `run_config.json` of its run; empty if not known.
    results: the `results.json` of its run; empty if not known.
    base: name or path of the backbone, for programs that load it; '' is what
      the record says, or else the product.
    license: as the hub calls it, where its owner has chosen one.
  """

  record: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  results: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  base: str = ''
  license: str = ''

  @property
  def origin(self) -> tuple[str, str]:
    """Name or path of the backbone, its revision on the hub; '' if unknown."""
    origin = _mapping(self.record.get(run_lib.BACKBONE))
    base, revision = (_text(origin.get(n)) for n in ('base', 'revision'))
    if self.base and self.base != base:
      return self.base, ''
    return base, revision


UNKNOWN = Made()


def read(folder: str, name: str) -> dict[str, Any]:
  """Returns what a file of a run says; nothing if it cannot be read.

  Args:
    folder: of the run.
    name: of the file.
  """
  try:
    return files.read_json(os.path.join(folder, name))
  except InputError:
    return {}


def read_made(folder: str, bundle: 'PromptBundle') -> Made:
  """Reads how the product of a run came about.

  Args:
    folder: of the run.
    bundle: the product; another one has another run.

  Returns:
    What is known; nothing if there is no such run, or it cannot be read.
  """
  record, results = (
    read(folder, name) for name in (run_lib.RUN_CONFIG, run_lib.RESULTS)
  )
  own = record.get(
    'backbone_fingerprint'
  ) == bundle.backbone_fingerprint and record.get('prompt_tasks') == list(
    bundle.task_names
  )
  return Made(record, results) if own else UNKNOWN


@dataclasses.dataclass(frozen=True)
class Product:
  """What a card is about.

  Attributes:
    kind: one of `KINDS`.
    method: by which it was learned.
    tasks: for which.
    size: of it, in words.
    base: what the backbone is called; '' if not known.
    fingerprint: of the backbone; '' if not known.
    vocabulary: digest of the vocabulary; '' if not known.
    stage: of the run.
    step: of the run.
    metrics: its scores, if it holds them.
    texts: how its tasks' texts are written.
    settings: of the method.
    origin: what it was made of.
    version: of the mpt_jax that made it.
    several: whether PEFT must be told the task.
    family: of the backbone, see `backbones.kind_of`.
  """

  kind: str
  method: 'type[Method] | Method'
  tasks: Sequence[str]
  size: str
  base: str
  fingerprint: str
  vocabulary: str
  stage: str
  step: int
  version: str
  metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  texts: Mapping[str, TaskText] = dataclasses.field(default_factory=dict)
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  origin: Mapping[str, str] = dataclasses.field(default_factory=dict)
  several: bool = False
  family: str = ''


def of_bundle(
  bundle: 'PromptBundle',
  kind: str = 'bundle',
  tasks: Sequence[str] | None = None,
  made: Made = UNKNOWN,
) -> bytes:
  """Returns the card of a bundle, or of what is written of it.

  Args:
    bundle: the bundle.
    kind: one of `KINDS`.
    tasks: whose part of it; None is all of it.
    made: how it came about.
  """
  shown = bundle if tasks is None else bundle.with_tasks(tasks)
  numbers = sum(array.size for array in shown.arrays.values())
  length, width = bundle.prompt_length, bundle.emb_dim
  # PEFT's plain prompt of one task has no factors any more.
  factors = bundle.rank if kind != 'peft' or tasks is None else 0
  size = f'{numbers:,} numbers'
  if length:
    numbers = numbers if kind == 'bundle' or tasks is None else length * width
    size = f'{length} vectors of width {width}, {numbers:,} numbers in all'
  if factors:
    size += f', with factors of rank {factors} for each task'
  return text(
    Product(
      kind=kind,
      method=bundle.learner,
      tasks=shown.task_names,
      size=size,
      base=bundle.backbone_name,
      fingerprint=bundle.backbone_fingerprint,
      vocabulary=bundle.vocabulary_digest,
      stage=bundle.stage,
      step=bundle.step,
      version=bundle.package_version,
      metrics=bundle.metrics,
      texts=shown.texts,
      settings=bundle.settings,
      origin=bundle.origin,
      several=bool(factors),
      family=bundle.family,
    ),
    made,
  )


def text(product: Product, made: Made = UNKNOWN) -> bytes:
  """Returns a product's README.md, in UTF-8.

  Args:
    product: what it is about.
    made: how it came about.
  """
  scores = list(_scores(product, made.results))
  training = list(_training(product, made))
  lines = [
    *_front(product, made, scores),
    f'# {_names(product.tasks)} by {product.method.title}',
    '',
    f'{_said(product)}.',
    *_warnings(made),
    *_section('What it is', _table(('', ''), _facts(product, made))),
    *_section('Scores', _score_table(scores)),
    *_section('How it was trained', _table(('', ''), training)),
    *_section('Use', _use(product, made)),
    *_section('Input', _inputs(product)),
    *_section('Not known', _unknown(product, made, scores, training)),
  ]
  return ('\n'.join(lines) + '\n').encode()


# ---------------------------------------------------------------------------
# The parts.


def _front(
  product: Product, made: Made, scores: Sequence[Sequence[str]]
) -> Iterator[str]:
  """The hub's metadata."""
  library, relation, _ = KINDS[product.kind]
  fields: dict[str, Any] = {'library_name': library}
  if made.license:
    fields['license'] = made.license
  name = _hub_name(product, made)
  if name:
    fields |= {'base_model': name, 'base_model_relation': relation}
  found = _data_sets(product, made).values()
  family = (product.family or 'T5').lower()
  tags = ['mpt_jax', family, product.method.name]
  tags += ['synthetic-data'] if _synthetic(made) else []
  fields |= {
    'pipeline_tag': (
      'text-classification' if product.family else 'text2text-generation'
    ),
    'tags': tags,
    'datasets': list(dict.fromkeys(n for n in found if hub.is_name(n))),
    'metrics': list(dict.fromkeys(row[2] for row in scores)),
  }
  yield '---'
  for key, value in fields.items():
    if isinstance(value, str):
      yield f'{key}: {_yaml(value)}'
    elif value:
      yield f'{key}:'
      yield from (f'- {_yaml(item)}' for item in value[:_MOST])
  yield from ('---', '')


def _said(product: Product) -> str:
  family, base = product.family or 'T5', _code(product.base or '')
  title, tasks = product.method.title, _names(product.tasks)
  if KINDS[product.kind][1] == 'finetune':
    return f'{base or f"A {family}"} after {title} for {tasks}: {product.size}'
  base = f'the frozen {base}' if base else f'a frozen {family}'
  return f'What {title} has learned for {tasks} on {base}: {product.size}'


def _warnings(made: Made) -> Iterator[str]:
  if _synthetic(made):
    yield from (
      '',
      '> **Trained on synthetic data**, made up to try the programs: its scores'
      ' say nothing about',
      '> the real tasks.',
    )
  for prefix in ('test_', ''):
    split = _code(_text(made.results.get(f'{prefix}split')))
    told = _mapping(made.results.get(f'{prefix}collapsed'))
    for task, reason in list(told.items())[:_MOST]:
      yield from (
        '',
        f'> **Its scores on {_code(task)}, {split}, say next to nothing**:'
        f' {_code(_text(reason))}.',
      )


def _facts(product: Product, made: Made) -> Iterator[Sequence[str]]:
  base, revision = made.origin
  yield 'kind', KINDS[product.kind][2]
  yield 'method', f'{product.method.title} ({product.method.paper})'
  yield 'tasks', _names(product.tasks)
  yield 'size', product.size
  if product.settings:
    told = (f'{_code(f"{n} = {v}")}' for n, v in product.settings.items())
    yield 'settings', ', '.join(list(told)[:_MOST])
  if product.base:
    yield 'base model', _code(product.base)
  if revision:
    yield 'its revision', f'{_code(revision)} of {_code(base)} on the hub'
  if product.fingerprint:
    yield 'its digest', _code(product.fingerprint)
  if product.vocabulary:
    yield 'its vocabulary', _code(product.vocabulary)
  for name, source in list(product.origin.items())[:_MOST]:
    yield _code(name), _code(source)
  yield 'made by', f'mpt_jax {_code(product.version)}'


_SCORES = 'task', 'split', 'metric', 'score', '95 %', 'majority', 'examples'


def _scores(
  product: Product, results: Mapping[str, Any]
) -> Iterator[Sequence[str]]:
  """A row for each score of the product's tasks, as `_SCORES`."""
  found = False
  for prefix in ('test_', ''):
    split = _text(results.get(f'{prefix}split'))
    for task in product.tasks[:_MOST]:
      values, said, limits, floors, scored = (
        _mapping(results.get(f'{prefix}{name}')).get(task)
        for name in ('scores', 'metrics', 'intervals', 'floors', 'scored')
      )
      majority = _mapping(_mapping(floors).get('majority_scores'))
      for name, value in _mapping(values).items():
        if _mapping(_mapping(said).get(name)).get('score') is False:
          continue
        found = True
        ends = _mapping(limits).get(name)
        ends = ends if isinstance(ends, list) else []
        yield (
          task,
          split,
          name,
          _number(value),
          ' to '.join(map(_number, ends)),
          _number(majority.get(name)) if name in majority else '',
          _number(scored) if scored else '',
        )
  if not found:
    for task in product.tasks[:_MOST]:
      for name, value in _mapping(product.metrics.get(task)).items():
        if isinstance(value, float | int):
          yield task, '', name, _number(value), '', '', ''


def _score_table(scores: Sequence[Sequence[str]]) -> Iterator[str]:
  named = ((*map(_code, row[:3]), *row[3:]) for row in scores)
  yield from _table(_SCORES, named)


def _training(product: Product, made: Made) -> Iterator[Sequence[str]]:
  record = made.record
  if product.stage:
    yield 'stage', _code(product.stage)
  if product.step:
    yield 'steps', f'{product.step:,}'
  best = _mapping(made.results.get('best_steps'))
  for task in product.tasks[:_MOST]:
    if task in best:
      yield f'best step of {_code(task)}', _number(best[task])
  if 'seed' in record:
    yield 'seed', _number(record['seed'])
  for name in ('optimizer', 'dataset'):
    if told := _settings(name, record.get(name)):
      yield name, told
  # Where they lay is nobody's business.
  start = _text(record.get('start'))
  if start and 'prompts=None' not in start:
    yield 'start', 'prompts of another run'
  if _text(record.get('distillation')) not in ('', 'None'):
    yield 'distillation', 'from the prompts of other runs'
  for task, name in _data_sets(product, made).items():
    yield f'data set of {_code(task)}', _code(name)
  for name, facts in list(_mapping(record.get(run_lib.DATA)).items())[:_MOST]:
    count, digest = (_mapping(facts).get(n) for n in ('examples', 'digest'))
    told = f'{_number(count)} examples, {_code(_text(digest))}'
    yield f'data {_code(name)}', told


def _use(product: Product, made: Made) -> Iterator[str]:
  """How it is loaded, by us and by others."""
  # A path of this machine is nobody's business.
  base = repr(_hub_name(product, made) or product.base or 'BASE MODEL')
  task = product.tasks[0]
  told = product.texts.get(task)
  example = repr(_example(told))
  if product.family and told is not None:
    fields = dict.fromkeys(told.masked_fields, '…')
    example = repr(fields)
  place, named = f"{base}, prompts='FOLDER'", ''
  if product.kind == 'backbone':
    base = place = "'FOLDER'"
  elif len(product.tasks) > 1:
    named = f', task={task!r}'
  face = 'PromptedMaskedModel' if product.family else 'PromptedT5'
  yield '`FOLDER` is this folder on your disk. With mpt_jax:'
  yield from _block(
    'import mpt_jax\n\n'
    f'model = mpt_jax.{face}.from_pretrained({place})\n'
    f'model.generate([{example}]{named})',
    'python',
  )
  if product.kind != 'bundle' and not product.family:
    yield from ('', f'As {KINDS[product.kind][2]}:')
    yield from _block('\n'.join(_loading(product, base, example)), 'python')
  if product.kind == 'adapterhub':
    yield from (
      '',
      "If `norm_changes.safetensors` is here, T5's own norms were trained too,"
      ' which `adapters` does\nnot load: add its tensors to the weights of the'
      ' same names.',
    )


def _loading(product: Product, base: str, example: str) -> Iterator[str]:
  """The lines of another program; `base` and `example` are Python's words."""
  imported, *loads = {
    'peft': (
      'from peft import AutoPeftModelForSeq2SeqLM',
      "model = AutoPeftModelForSeq2SeqLM.from_pretrained('FOLDER')",
    ),
    'adapterhub': (
      'from adapters import AutoAdapterModel',
      f'model = AutoAdapterModel.from_pretrained({base})',
      "model.load_adapter('FOLDER', use_safetensors=True, set_active=True)",
    ),
    'backbone': (
      'from transformers import AutoModelForSeq2SeqLM',
      "model = AutoModelForSeq2SeqLM.from_pretrained('FOLDER')",
    ),
  }[product.kind]
  if product.several:
    yield 'import torch'
  yield from (imported, 'from transformers import AutoTokenizer', '', *loads)
  yield f'tokenizer = AutoTokenizer.from_pretrained({base})'
  yield f"inputs = tokenizer([{example}], return_tensors='pt')"
  if product.several:
    yield "inputs['task_ids'] = torch.tensor([0])  # the first task"
  yield 'model.generate(**inputs)'


def _inputs(product: Product) -> Iterator[str]:
  for task in product.tasks[:_MOST]:
    told = product.texts.get(task)
    if told is None:
      continue
    text = told.masked if product.family else told.inputs
    if text is None:
      continue
    yield f'{_code(task)}, with a column of the data in each pair of braces:'
    yield from _block(text, 'text')
    if told.labels:
      fillers = told.fillers if product.family else None
      words = ', '.join(map(_code, told.labels[:_MOST]))
      yield from ('', f'Answers: {words}.')
      for label, filled in list((fillers or {}).items())[:_MOST]:
        said = ' or '.join(map(_code, filled[:_MOST]))
        yield f'- {_code(label)} where the mask is {said}'
    yield ''


def _unknown(
  product: Product,
  made: Made,
  scores: Sequence[Any],
  training: Sequence[Any],
) -> Iterator[str]:
  if not made.license:
    yield (
      '- The licence: who publishes this chooses one, with regard to those of'
      ' the base model\n  and of the data, and adds `license: …` to the first'
      ' lines.'
    )
  if not (product.base or made.origin[0]):
    yield '- The base model.'
  elif not _hub_name(product, made):
    yield (
      "- The base model's name on the hub: add `base_model: owner/name` to the"
      ' first lines.'
    )
  if not product.fingerprint:
    yield '- Which revision of the base model: there is no digest of it.'
  if not made.record:
    yield '- The data, the seed and the learning rate: its run is not known.'
  named = _data_sets(product, made)
  lost = [t for t in product.tasks if not hub.is_name(named.get(t, ''))]
  if lost:
    yield f'- The names on the hub of the data of {_names(lost)}.'
  if not scores:
    yield '- How good it is: no scores are known.'
  if not any(row[0] == 'steps' for row in training):
    yield '- How long it was trained.'
  bare = [t for t in product.tasks if t not in product.texts]
  if bare:
    yield f'- How the text of {_names(bare)} is written.'


# ---------------------------------------------------------------------------
# Words.


def _settings(name: str, told: Any) -> str:
  """What a record says of a setting, without what is not set."""
  if not isinstance(told, str):
    return ''
  try:
    found = list(run_lib.fields(name, told))
  except ValueError:
    return ''
  return ', '.join(
    _code(f'{field} = {value}')
    for (_, field), value in found[:_MOST]
    if value not in ('None', 'False') and not field.startswith('pattern')
  )


def _hub_name(product: Product, made: Made) -> str:
  """The base model's name on the hub, if it has one."""
  for name in (made.origin[0], product.base):
    known = hub.name_of(name)
    name = known[0] if known else name
    # T5X's folders have names of two parts, too.
    if hub.is_name(name) and not _STEP_FOLDER.fullmatch(name.split('/')[1]):
      return name
  return ''


def _data_sets(product: Product, made: Made) -> dict[str, str]:
  """What others call the data of the product's tasks."""
  named = _mapping(made.record.get(run_lib.DATA_SETS))
  found = {task: _text(named.get(task)) for task in product.tasks[:_MOST]}
  return {t: n for t, n in found.items() if n and not _synthetic(made)}


def _synthetic(made: Made) -> bool:
  return made.record.get('synthetic_data') is True


def _example(told: TaskText | None) -> str:
  """A text as the task has it, with dots for the columns."""
  if told is None or told.inputs is None:
    return '…'
  return re.sub(r'\{[^{}]*\}', '…', told.inputs)[:_LONGEST]


def _names(names: Sequence[str]) -> str:
  told = ', '.join(map(_code, names[:_MOST]))
  more = len(names) - _MOST
  return told if more <= 0 else f'{told} and {more} more'


def _mapping(value: Any) -> Mapping[str, Any]:
  return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str:
  return value if isinstance(value, str) else ''


def _number(value: Any) -> str:
  """A number as a person writes it; what is none is not defined."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    return '–'
  if isinstance(value, int):
    return f'{value:,}' if abs(value) < 10**18 else '–'
  return f'{value:.4g}' if math.isfinite(value) else '–'


def _line(value: str, most: int) -> str:
  """A text on one line, without what no one can see, and cut."""
  value = ''.join(c if c.isprintable() else ' ' for c in value[: 2 * most])
  value = ' '.join(value.split())
  return value if len(value) <= most else f'{value[:most]}…'


def _fence(value: str, least: int) -> str:
  """Backticks that no run of backticks in a text ends."""
  runs = [len(run) for run in re.findall('`+', value)]
  return '`' * max(least, *(n + 1 for n in runs), least)


def _code(value: str, most: int = _LONGEST) -> str:
  """A text as code within a line, also of a table."""
  value = _line(value, most)
  if not value:
    return ''
  fence = _fence(value, 1)
  space = ' ' if '`' in value else ''
  return f'{fence}{space}{value}{space}{fence}'


def _block(value: str, language: str) -> Iterator[str]:
  """A text as a block of code."""
  lines = value[:_LONGEST_BLOCK].splitlines()
  lines = [''.join(c for c in s if c.isprintable()) for s in lines]
  fence = _fence(value, 3)
  yield from ('', f'{fence}{language}', *lines, fence)


def _section(title: str, lines: Iterator[str]) -> list[str]:
  """A part with its title, if there is something in it."""
  found = list(lines)
  while found and not found[-1]:
    found.pop()
  return ['', f'## {title}', '', *found] if found else []


def _table(
  header: Sequence[str], rows: Iterable[Sequence[str]]
) -> Iterator[str]:
  """A table, without the columns that are empty."""
  rows = list(rows)
  if not rows:
    return
  kept = [
    i for i, name in enumerate(header) if not name or any(r[i] for r in rows)
  ]
  for row in (header, ['---'] * len(header), *rows):
    # A bar ends a cell in code, too.
    cells = (row[i].replace('|', '\\|') for i in kept)
    yield f'| {" | ".join(cells)} |'


def _yaml(value: str) -> str:
  value = _line(value, _LONGEST)
  if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
    return value
  return json.dumps(value, ensure_ascii=False)
