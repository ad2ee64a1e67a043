r"""Shows what is registered, and what a task's examples look like.

python -m tasks.show
python -m tasks.show mnli --data_dir=DIR --examples=3
python -m tasks.show my_task --module=my_tasks
python -m tasks.show rte --gin_file=gin_configs/runs/teacher.gin \
  --gin.INITIAL_CHECKPOINT_PATH="'t5-base'" --gin.PROMPT_LENGTH=20

With the gin file and the macros of a run, what is shown is as the run reads
it: its lengths, prompt, vocabulary and module of tasks. Nothing is run.
"""

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import importlib
import os
import pathlib
import re
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from mpt_jax.types import HUB, InputError, local_path, nearest, quiet_pipe

if TYPE_CHECKING:
  import seqio

DEMO_VOCABULARY = (
  pathlib.Path(__file__).parent / 'offline/demo_backbone/spiece.model'
)
# Texts longer than this are shown in part.
_WIDTH = 400
# How many examples the lengths are taken from.
_SAMPLE = 1000
# How many examples of a split are looked at, unless they are in memory.
_SURVEYED = 10_000


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='python -m tasks.show',
    description='Lists the tasks and mixtures; or shows one of them, with'
    ' examples from the data to the tokens.',
    epilog='example: python -m tasks.show mnli --data_dir=~/tensorflow_datasets'
    ' --vocabulary=t5-base/spiece.model',
  )
  parser.add_argument('name', nargs='?', help='a task or mixture')
  parser.add_argument(
    '--data_dir', '--tfds_data_dir', help='TFDS data folder', dest='data_dir'
  )
  parser.add_argument('--hf_data_dir', help="folder of the hub's data sets")
  parser.add_argument('--module', help='module that registers more tasks')
  parser.add_argument('--split', default='train')
  parser.add_argument(
    '--examples', type=int, default=2, help='how many to show'
  )
  parser.add_argument('--vocabulary', help='SentencePiece file of the backbone')
  parser.add_argument(
    '--inputs', type=int, help='input length, prompt included (356)'
  )
  parser.add_argument('--targets', type=int, help='target length (128)')
  parser.add_argument('--prompt_length', type=int, help='prompt length (100)')
  parser.add_argument(
    '--prompt_tasks', help="the model's tasks in row order, comma-separated"
  )
  parser.add_argument(
    '--gin_file',
    action='append',
    default=[],
    help="a run's gin file, for what is not given above; with --gin.NAME=VALUE"
    ' as in the command of the run',
  )
  with quiet_pipe():
    args, rest = parser.parse_known_args(argv)
  unknown = [a for a in rest if not re.match(r'--gin\.[^=]+=', a)]
  if unknown:
    parser.error(f'unrecognized arguments: {" ".join(unknown)}')
  bindings = [argument.removeprefix('--gin.') for argument in rest]
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  try:
    _take_over(args, bindings)
    with quiet_pipe():
      for line in _run(args):
        print(line)
  except InputError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


def _take_over(args: argparse.Namespace, bindings: Sequence[str]) -> None:
  """Fills in what was not given, from a run's gin files or by default."""
  macros: dict[str, Any] = {}
  lengths: Mapping[str, Any] = {'inputs': 356, 'targets': 128}
  prompt_length = 100
  if bindings and not args.gin_file:
    raise InputError(f'--gin.{bindings[0]} is given without --gin_file')
  if args.gin_file:
    # By name: only this command knows of runs, the tasks don't.
    cli = importlib.import_module('mpt_jax.cli')
    macros = cli.read_macros(args.gin_file, bindings)
    prompt_length = macros.get('PROMPT_LENGTH', 0)
    lengths = macros.get('TASK_FEATURE_LENGTHS', lengths)
  if args.prompt_length is None:
    args.prompt_length = prompt_length
  for key in ('inputs', 'targets'):
    if getattr(args, key) is None:
      setattr(args, key, lengths.get(key))
  args.module = args.module or macros.get('MIXTURE_OR_TASK_MODULE')
  names = macros.get('PROMPT_TASKS')
  if names and not args.prompt_tasks:
    args.prompt_tasks = names if isinstance(names, str) else ','.join(names)
  args.vocabulary = args.vocabulary or macros.get('VOCABULARY')
  backbone = macros.get('INITIAL_CHECKPOINT_PATH')
  demos = importlib.import_module('mpt_jax.checkpoints.backbone').DEMOS
  if args.vocabulary in demos:
    args.vocabulary = _vocabulary_of(args.vocabulary)
  elif not args.vocabulary and isinstance(backbone, str):
    args.vocabulary = _vocabulary_of(backbone)


def _vocabulary_of(backbone: str) -> str | None:
  """The vocabulary beside a backbone, if there is one."""
  find = importlib.import_module('mpt_jax.checkpoints.backbone').find_backbone
  lib = importlib.import_module('mpt_jax.checkpoints.vocabulary')
  return lib.find_vocabulary(local_path(find(backbone, fetch=False)))


def _run(args: argparse.Namespace) -> Iterator[str]:
  importlib.import_module('tasks')
  if args.module:
    from mpt_jax.data.seqio_tasks import import_module

    import_module(args.module)
  import seqio

  from mpt_jax import data

  if args.data_dir and args.hf_data_dir:
    raise InputError('--data_dir and --hf_data_dir: give one of them')
  if args.hf_data_dir:
    args.data_dir = f'{HUB}{args.hf_data_dir}'
  if args.data_dir:
    data.set_data_dir(args.data_dir)
  if args.vocabulary:
    data.use_vocabulary(args.vocabulary)
  if args.name is None:
    yield from registry()
  elif args.name in seqio.MixtureRegistry.names():
    yield from mixture(args.name)
  elif args.name in seqio.TaskRegistry.names():
    yield from _task(seqio.TaskRegistry.get(args.name), args)
  else:
    known = [*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()]
    raise InputError(
      f'{args.name!r} is no registered task or mixture'
      f'{nearest(args.name, known)}'
    )


def _table(rows: Iterable[Sequence[str]]) -> Iterator[str]:
  rows = list(rows)
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  for row in rows:
    cells = (c.ljust(w) for c, w in zip(row, widths, strict=True))
    yield '  '.join(cells).rstrip()


def _names(functions: Iterable[Any]) -> str:
  """Returns the names of functions, which may be partial ones."""
  plain = [getattr(fn, 'func', fn) for fn in functions]
  return ' '.join(getattr(fn, '__name__', repr(fn)) for fn in plain)


def registry() -> Iterator[str]:
  """Yields one line for each task of the tables and each mixture."""
  import seqio

  from mpt_jax.data import labels
  from tasks import mixtures, own
  from tasks.table import TABLE

  sizes = 'TRAIN/VALIDATION/TEST'
  rows = [('TASK', 'DATA', sizes, 'POSTPROCESSOR', 'METRICS', 'TEXT')]
  for row in TABLE.values():
    answer = '|'.join(row.labels) if row.labels else row.targets
    rows.append(
      (
        row.name,
        row.tfds_name,
        '/'.join(f'{n:,}' for n in row.sizes.values()),
        _names([row.postprocess or labels.class_id]),
        _names(row.metrics),
        f'{row.inputs} -> {answer}',
      )
    )
  yield from _table(rows)
  yield ''
  own_rows = [('FILES OF YOUR OWN', 'HUB', 'TEXT')]
  for task in own.OWN.values():
    text = f'{task.inputs} -> {"|".join(task.labels)}'
    own_rows.append((task.name, f'{task.repo} {task.config}'.strip(), text))
  yield from _table(own_rows)
  others = set(seqio.TaskRegistry.names()) - set(TABLE) - set(own.OWN)
  if others:
    yield f'\nnot of the tables: {" ".join(sorted(others))}'
  yield ''
  yield from _table(
    [
      ('MIXTURE', 'TASKS'),
      *((name, ' '.join(names)) for name, names in mixtures.GROUPS.items()),
    ]
  )
  yield (
    'Each is mixed in proportion to its training examples, of which at most'
    f' {mixtures.CAP:,} count; NAME_equal mixes evenly.'
  )


def mixture(name: str) -> Iterator[str]:
  """Yields the tasks of a mixture and their shares."""
  from mpt_jax.data import lookup

  rates = lookup.get_provider(name).rates()
  yield f'mixture {name}'
  total = sum(rates.values())
  yield from _table(
    (f'  {task}', f'{rate:,.6g}', f'{100 * rate / total:.1f}%')
    for task, rate in rates.items()
  )


def _short(text: str) -> str:
  text = _on_one_line(text)
  return text if len(text) <= _WIDTH else f'{text[:_WIDTH]} …'


def _on_one_line(text: str) -> str:
  """Returns the text on one line: control characters as escapes."""
  return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _plain(value: Any) -> Any:
  if isinstance(value, bytes):
    return value.decode()
  if isinstance(value, Mapping):
    return {k: _plain(v) for k, v in value.items()}
  if hasattr(value, 'tolist'):
    return _plain(value.tolist())
  if isinstance(value, list | tuple):
    return [_plain(v) for v in value]
  return value


def _from_home(path: str) -> str:
  home = os.path.expanduser('~')
  return path.replace(home, '~', 1) if path.startswith(home + os.sep) else path


@contextlib.contextmanager
def _some_data(task: 'seqio.Task', split: str, draw: bool) -> Iterator[str]:
  """Makes sure that there are examples; yields where they come from.

  Without data on disk synthetic ones are drawn, if that is wanted; they are
  not kept.
  """
  from mpt_jax import data
  from mpt_jax.data import sources
  from tasks.table import TABLE

  source = task.source
  if not isinstance(source, sources.TfdsSource):
    data.check_data(task.name, split)
    yield 'data of its own'
    return
  try:
    folder = source.folder
  except InputError:
    if not draw or task.name not in TABLE:
      raise
  else:
    data.check_data(task.name, split)
    synthetic = data.is_synthetic(task.name)
    kind = f'{sources.SYNTHETIC}, ' if synthetic else ''
    yield f'{kind}{_from_home(folder)}'
    return
  from tasks.offline import datasets, writer

  before = data.get_data_dir()
  [name] = [
    name
    for name, dataset in datasets.DATASETS.items()
    if dataset.tfds_name == source.tfds_name
  ]
  with tempfile.TemporaryDirectory() as folder:
    writer.write(folder, [name], say=lambda line: None)
    data.set_data_dir(folder)
    try:
      yield (
        f'{sources.SYNTHETIC}, since there is no {source.tfds_name} in'
        f' {_from_home(before)} (--data_dir)'
      )
    finally:
      data.set_data_dir(None)


def _vocabulary_note() -> str:
  """Takes the demo's vocabulary if none was chosen; says which is in use."""
  from mpt_jax import data
  from mpt_jax.data.vocabulary import DEFAULT_FILE

  file = data.get_vocabulary().sentencepiece_model_file
  if file != DEFAULT_FILE:
    return _from_home(file)
  # T5's own lies on the network.
  data.use_vocabulary(DEMO_VOCABULARY)
  return "the demo backbone's; --vocabulary chooses yours"


def _limits(args: argparse.Namespace) -> dict[str, int]:
  """Returns how many tokens of inputs and targets fit."""
  from mpt_jax.data.dataset import check_lengths

  lengths = {'inputs': args.inputs, 'targets': args.targets}
  if args.gin_file:
    check_lengths(lengths, args.prompt_length)
  elif args.inputs < args.prompt_length + 2:
    raise InputError(
      f'--inputs={args.inputs} leaves no room beside'
      f' --prompt_length={args.prompt_length}'
    )
  return {**lengths, 'inputs': args.inputs - args.prompt_length}


def _task(task: 'seqio.Task', args: argparse.Namespace) -> Iterator[str]:
  """Yields what a task is, then its examples and their lengths."""
  from mpt_jax import data
  from mpt_jax.data import candidates, lookup, seqio_tasks, templates
  from tasks import mixtures
  from tasks.table import TABLE

  row = TABLE.get(task.name)
  limits = _limits(args)
  if args.split not in task.splits:
    raise InputError(
      f'task {task.name!r} has no split {args.split!r}; it has'
      f' {sorted(task.splits)}'
    )
  yield f'task {task.name}'
  if row is not None:
    sizes = ', '.join(f'{s} {n:,}' for s, n in row.sizes.items())
    yield f'  data         {row.tfds_name}; {sizes}'
    cuts = row.splits(row.counts).items()
    yield f'  splits       {", ".join(f"{s} = {cut}" for s, cut in cuts)}'
    yield f'  inputs       {row.inputs}'
    answer = ' | '.join(row.labels) if row.labels else row.targets
    yield f'  targets      {answer}'
    if row.labels is not None and row.fillers is not None:
      words = (f'{label} ={row.fillers[label]}' for label in row.labels)
      yield f'  encoders     {row.masked} -> {" | ".join(words)}'
    if row.note:
      yield f'  note         {row.note}'
  yield f'  metrics      {_names(task.metric_fns)}'
  source = mixtures.GROUPS['mpt_source']
  names = (
    args.prompt_tasks.split(',')
    if args.prompt_tasks
    else source
    if task.name in source
    else (task.name,)
  )
  place = data.task_rows(names, task.name)[task.name]
  yield f'  prompt row   {place} of PROMPT_TASKS = {list(names)}'
  with (
    seqio_tasks.naming(task, args.split),
    _some_data(task, args.split, args.data_dir is None) as origin,
  ):
    yield f'  examples     {origin}'
    yield f'  vocabulary   {_vocabulary_note()}'
    lookup.check_labels(lookup.get_provider(task.name), limits['targets'])
    raw = task.source.get_dataset(args.split, shuffle=False)
    yield ''
    yield from _examples(task, raw.take(args.examples), limits)
    lengths: dict[str, list[int]] = {key: [] for key in limits}
    found = candidates.of(templates.wording_of(task), task.name)
    for example in (
      task.get_dataset(None, args.split, shuffle=False, try_in_mem_cache=False)
      .take(_SAMPLE)
      .as_numpy_iterator()
    ):
      for key, values in lengths.items():
        if found is not None and key == 'targets':
          values.append(len(found.ids))
        else:
          values.append(len(example[key]))
    yield from _lengths(lengths, limits)
    yield ''
    yield from _splits(task, args.split)


def _lengths(
  lengths: Mapping[str, Sequence[int]], limits: Mapping[str, int]
) -> Iterator[str]:
  """Yields how long examples are, and how many are cut."""
  import numpy as np

  yield f'lengths in tokens, of the first {len(lengths["inputs"]):,} examples'
  rows = [('', 'mean', '95%', 'longest', 'limit', 'cut')]
  for key, values in lengths.items():
    cut = 100 * np.mean([n > limits[key] for n in values])
    rows.append(
      (
        f'  {key}',
        f'{np.mean(values):.1f}',
        f'{np.percentile(values, 95):.0f}',
        str(max(values)),
        str(limits[key]),
        f'{cut:.1f}%',
      )
    )
  yield from _table(rows)


def _splits(task: 'seqio.Task', split: str) -> Iterator[str]:
  """Yields sizes, balance, doubles and overlap of a task's splits."""
  from mpt_jax.data import counts, sources, survey

  most = None if isinstance(task.source, sources.RecordsSource) else _SURVEYED
  found: dict[str, survey.Survey] = {}
  missing = []
  for name in task.splits:
    try:
      found[name] = survey.survey(task, name, most)
    except Exception as e:
      if name == split:
        raise
      # Not every split that a task may have is there.
      missing.append(f'  {name}: {_short(str(e))}')
  yield (
    'splits, all examples'
    if most is None or all(s.examples < most for s in found.values())
    else f'splits, the first {most:,} examples of each'
  )
  rows: list[Sequence[str]] = [
    (
      *('', 'examples', 'no label', 'empty inputs', 'duplicates'),
      *('conflicting', 'overlap with train'),
    )
  ]
  train = found.get('train')
  for name, s in found.items():
    rows.append(
      (
        f'  {name}',
        *(f'{n:,}' for n in (s.examples, s.unlabelled, s.empty, s.double)),
        '-' if s.conflicting is None else f'{s.conflicting:,}',
        '-' if train is None or s is train else f'{s.within(train):,}',
      )
    )
  yield from _table(rows)
  yield from missing
  for name, s in found.items():
    if s.classes:
      classes = (
        f'{word} {n:,} ({counts.share(n, s.examples)})'
        for word, n in s.classes.items()
      )
      yield f'  {name}: {", ".join(classes)}'


def _examples(
  task: 'seqio.Task', raw: Any, limits: Mapping[str, int]
) -> Iterator[str]:
  """Yields raw examples and the texts and tokens that become of them."""
  import tensorflow as tf

  from mpt_jax.data import candidates, templates

  vocabulary = task.output_features['inputs'].vocabulary
  special = vocabulary.tokenizer.special
  found = candidates.of(templates.wording_of(task), task.name)
  for number, example in enumerate(raw.as_numpy_iterator(), start=1):
    yield f'example {number}'
    for key, value in sorted(_plain(example).items()):
      yield f'  raw {key}: {_short(str(value))}'
    # One example may become several, or none.
    one = tf.data.Dataset.from_tensors(example)
    for result in task.preprocess_precache(one).as_numpy_iterator():
      for key, limit in limits.items():
        tokens = [*result[key].tolist(), vocabulary.eos_id]
        text = templates.show_marks(result[f'{key}_pretokenized'])
        yield f'  {key}: {_short(text.numpy().decode())}'
        if found is not None and key == 'targets':
          yield f'  fillers, class by class: {" |".join(found.texts)}'
          continue
        pieces = map(vocabulary.tokenizer.id_to_piece, special.swap(tokens))
        kept = f', cut to {limit}' if len(tokens) > limit else ''
        yield f'  {len(tokens)} tokens{kept}: {_short(" ".join(pieces))}'
    yield ''


if __name__ == '__main__':
  sys.exit(main())
