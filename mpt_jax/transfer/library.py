r"""A library: a folder of prompts by task, which all verbs of transfer read.

  python -m mpt_jax.transfer add --gin.LIBRARY="'library'" \
    --gin.PROMPTS="'runs/teacher/{task}'"
  python -m mpt_jax.transfer list --gin.LIBRARY="'library'"
  python -m mpt_jax.transfer check --gin.LIBRARY="'library'"

`add` takes finished runs (their MODEL_DIR, of which `prompts/` is the value,
`key/` the key and `start/` the start; training with KEY_STEP leaves the last
two) or bundles alone. They are kept in LIBRARY/TASK/RUN/{value,key,start}, and
`library.json` says of each its step, score, start, backbone, sizes and digest.
Of prompts of several tasks each task's composed prompt is an entry. Prompts of
another backbone, vocabulary or shape than those that are there are refused.

`list` shows what is there. `check` reads and verifies every entry, names what
is damaged (exit code 2), and makes the index anew where it is missing or wrong:
nothing trusts it over the bundles.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import dataclasses
import glob
import logging
import os
import re
import shutil
from typing import Any

from mpt_jax import methods
from mpt_jax.checkpoints import bundle as bundle_lib
from mpt_jax.checkpoints import files, lock
from mpt_jax.checkpoints.bundle import PromptBundle
from mpt_jax.checkpoints.run import RESULTS, RUN_CONFIG
from mpt_jax.engine import keys
from mpt_jax.engine.outcome import PROMPTS
from mpt_jax.transfer import shelf, sources
from mpt_jax.transfer.shelf import KEY, START, VALUE, Place
from mpt_jax.types import InputError, Names, require_local

log = logging.getLogger(__name__)

_VERSION = 1
_PARTS = {VALUE: PROMPTS, KEY: keys.KEY, START: keys.START}
_TASK = '{task}'


@dataclasses.dataclass(frozen=True)
class Library:
  """Prompts by task.

  Attributes:
    path: the folder.
  """

  path: str

  def prompts(
    self,
    kind: str = VALUE,
    tasks: Iterable[str] | None = None,
    backbone: Any = None,
    on_damage: Callable[[str, InputError], None] | None = None,
  ) -> list[sources.SourcePrompt]:
    """Returns the prompts of one kind; arguments as in `shelf.read`.

    Returns:
      The prompts, named 'rte', or 'rte/1' where a task has several runs.

    Raises:
      InputError: if there is none, or one is of another backbone.
    """
    return sources.of_library(
      shelf.read(self.path, kind, tasks, backbone, on_damage)
    )


def open_library(path: str) -> Library:
  """Opens a library.

  Raises:
    InputError: if there is none.
  """
  path = require_local(path)
  if not shelf.is_library(path):
    raise InputError(
      f'{path} is no library; `python -m mpt_jax.transfer add` makes one'
    )
  return Library(path)


def add(
  *,
  library: str,
  prompts: Any,
  run: str | int | None = None,
  tasks: Names | None = None,
  replace: bool = False,
) -> Library:
  """Adds prompts to a library, or makes one of them.

  All is read and checked before anything is written; a bundle is there whole
  or not at all, and a stopped command goes on when it is repeated.

  Args:
    library: the folder.
    prompts: a run's MODEL_DIR (or the folder of several, by task), a bundle or
      its path, a list of these, {task: one of these}, or a path with '{task}'
      in it.
    run: what the runs are called; None is the seed of each, of a bundle alone
      '0'.
    tasks: which tasks of them; None is all.
    replace: whether other prompts of the same task and run may go.

  Returns:
    The library.

  Raises:
    InputError: if something cannot be read, is of another backbone or shape,
      or the task and run have other prompts already.
  """
  folder = require_local(library)
  wanted = [tasks] if isinstance(tasks, str) else tasks
  new: dict[Place, PromptBundle] = {}
  splits: dict[Place, str] = {}
  for task, given in _each(prompts, wanted):
    for part in _parts(task, given, wanted, None if run is None else str(run)):
      if part.place in new and part.bundle.digest != new[part.place].digest:
        raise InputError(
          f'there are two prompts for {part.place}: give each a RUN of its own'
        )
      new[part.place] = part.bundle
      splits[part.place] = part.split
  if not new:
    raise InputError(f'PROMPTS = {prompts!r} has none of TASKS = {tasks!r}')
  _check_place(folder)
  with lock.hold(folder):
    _put(folder, new, splits, replace)
  return Library(folder)


def _put(
  folder: str,
  new: Mapping[Place, PromptBundle],
  splits: Mapping[Place, str],
  replace: bool,
) -> None:
  """Checks what is new against what is there, and writes it."""
  there, _ = _readable(folder)
  shelf.check_alike(
    {
      **{f'{place} of {folder}': b for place, b in there.items()},
      **{f'{place} to be added': bundle for place, bundle in new.items()},
    }
  )
  changed = {
    place: bundle
    for place, bundle in new.items()
    if place not in there or there[place].digest != bundle.digest
  }
  taken = [p for p in changed if os.path.lexists(shelf.path_of(folder, p))]
  if taken and not replace:
    raise InputError(
      f'{folder} has other prompts in the place of {len(taken)}:'
      ' give REPLACE = True, or another RUN',
      [f'{p}{"" if p in there else " (damaged)"}' for p in taken],
    )
  if not shelf.is_library(folder):
    _write_index(folder, {})  # From now on it is one, also if we are stopped.
  for place in _of_replaced(folder, new, taken):
    shutil.rmtree(shelf.path_of(folder, place))
    log.info('removed %s, which belonged to what is replaced', place)
  for place, bundle in changed.items():
    bundle.save(shelf.path_of(folder, place))
    log.info('%s %s', 'replaced' if place in taken else 'added', place)
  if len(changed) < len(new):
    log.info('%d were there already', len(new) - len(changed))
  _write_index(folder, splits)


def listing(*, library: str) -> None:
  """Prints what a library holds, a line for each entry.

  Args:
    library: the folder.

  Raises:
    InputError: if there is no library.
  """
  folder = open_library(library).path
  there, damaged = _readable(folder)
  rows = _rows(there, _splits(folder))
  lines = [['task', 'run', 'kind', 'step', 'score', 'split', 'method', 'of']]
  for row in rows:
    score = row['score']
    told = '' if score is None else f'{row["metric"]} {score:.1f}'
    line = [row['task'], row['run'], row['kind'], str(row['step']), told]
    lines.append([*line, row['split'], row['method'], row['backbone_name']])
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  for line in lines:
    cells = zip(line, widths, strict=True)
    print('  '.join(c.ljust(w) for c, w in cells).rstrip())
  for place, error in damaged.items():
    print(f'DAMAGED  {place}: {error}')


def check(*, library: str) -> None:
  """Reads and verifies every entry; makes the index anew where it is wrong.

  Args:
    library: the folder.

  Raises:
    InputError: at the end, if entries are damaged or missing, or of another
      backbone, vocabulary or shape than most; it names each.
  """
  folder = open_library(library).path
  with lock.hold(folder):
    there, damaged = _readable(folder)
    wrong = {str(place): str(e) for place, e in damaged.items()}
    wrong |= shelf.strangers({str(place): b for place, b in there.items()})
    index = shelf.read_index(folder)
    for place in index:
      if place not in there and place not in damaged:
        wrong[str(place)] = 'its folder is missing'
    if _write_index(folder, {}):
      log.info('%s was missing or wrong, and is made anew', shelf.INDEX)
  for name, reason in wrong.items():
    log.error('%s: %s', name, reason)
  if wrong:
    raise InputError(
      f'{len(wrong)} of the {len({*there, *damaged, *index})} entries of'
      f' {folder} cannot be used',
      [f'{name}: {reason}' for name, reason in wrong.items()],
    )
  log.info('%s: all %d entries are whole', folder, len(there))


# ---------------------------------------------------------------------------
# What is to be added.


@dataclasses.dataclass(frozen=True)
class _Part:
  """A bundle of one task, its place, and the split of its score."""

  place: Place
  bundle: PromptBundle
  split: str


def _each(
  given: Any, tasks: Iterable[str] | None
) -> Iterator[tuple[str | None, Any]]:
  """The runs and bundles that are given, with the task that each is said of."""
  if isinstance(given, Mapping):
    for task, value in given.items():
      if tasks is None or task in tasks:
        yield task, value
  elif isinstance(given, str | os.PathLike):
    path = os.fspath(given)
    if _TASK in path:
      yield from _by_pattern(path, tasks)
      return
    path = require_local(path)
    folders = sorted(glob.glob(os.path.join(glob.escape(path), '*', PROMPTS)))
    if folders and not os.path.isdir(os.path.join(path, PROMPTS)):
      for folder in folders:
        name = os.path.basename(os.path.dirname(folder))
        if tasks is None or name in tasks:
          yield None, os.path.dirname(folder)
    else:
      yield None, path
  elif isinstance(given, PromptBundle):
    yield None, given
  else:
    for one in given:
      yield from _each(one, tasks)


def _by_pattern(
  path: str, tasks: Iterable[str] | None
) -> Iterator[tuple[str, str]]:
  """A path for each task; of no given ones those for which something is."""
  if tasks is None:
    parts = [glob.escape(part) for part in path.split(_TASK)]
    form = re.compile('(.+)'.join(map(re.escape, path.split(_TASK))))
    # Beside the folders of a run for each task lies its log, for example.
    paths = [
      path
      for path in sorted(glob.glob('*'.join(parts)))
      if os.path.isdir(path) or path.endswith('.npy')
    ]
    matches = [match for match in map(form.fullmatch, paths) if match]
    tasks = [match[1] for match in matches]
    if not tasks:
      raise InputError(f'PROMPTS = {path!r}: there is nothing of that form')
  for task in tasks:
    yield task, path.replace(_TASK, task)


def _parts(
  task: str | None, given: Any, tasks: Iterable[str] | None, run: str | None
) -> Iterator[_Part]:
  """The bundles of a run, or one alone, by task."""
  bundles, split = {VALUE: given}, ''
  if not isinstance(given, PromptBundle):
    path = require_local(given)
    bundles = {}
    if os.path.isdir(os.path.join(path, PROMPTS)):
      for kind, name in _PARTS.items():
        part = os.path.join(path, name)
        if os.path.isdir(part):
          bundles[kind] = bundle_lib.load_prompts(part)
      split = str(_said(path, RESULTS, 'split') or '')
      run = run or str(_said(path, RUN_CONFIG, 'seed') or 0)
    else:
      bundles[VALUE] = bundle_lib.load_several([path])
  for kind, bundle in bundles.items():
    if task is not None and task not in bundle.task_names:
      if len(bundle.task_names) == 1:
        bundle = bundle.renamed({bundle.task_names[0]: task})
    for name in bundle.task_names if task is None else [task]:
      if task is not None or tasks is None or name in tasks:
        place = Place(name, run or '0', kind)
        yield _Part(place, of_task(bundle, name), split)


def _said(folder: str, file: str, key: str) -> Any:
  """What a run's file says; None if there is none."""
  with contextlib.suppress(InputError):
    return files.read_json(os.path.join(folder, file)).get(key)
  return None


def of_task(bundle: PromptBundle, task: str) -> PromptBundle:
  """Returns the bundle of one task: of several its composed prompt.

  Raises:
    InputError: if there is no such task, or no prompt matrix.
  """
  prompt = bundle.compose(task)
  if len(bundle.task_names) == 1:
    return bundle
  arrays = {'prompt': prompt}
  return dataclasses.replace(
    bundle,
    method=methods.holding(set(arrays)).name,
    task_names=(task,),
    arrays=arrays,
    metrics={k: v for k, v in bundle.metrics.items() if k == task},
    texts={k: v for k, v in bundle.texts.items() if k == task},
    settings={},
  )


# ---------------------------------------------------------------------------
# What is there.


def _check_place(folder: str) -> None:
  """Refuses a folder that is something else."""
  if not os.path.isdir(folder) or shelf.is_library(folder):
    return
  if others := sorted(set(os.listdir(folder)) - {lock.LOCK}):
    raise InputError(
      f'LIBRARY = {folder!r} is no library, and holds {others[0]!r}: choose a'
      ' new folder'
    )


def _readable(
  folder: str,
) -> tuple[dict[Place, PromptBundle], dict[Place, InputError]]:
  """All bundles that are whole, and why the others are not."""
  there, damaged = {}, {}
  for place in shelf.places(folder):
    try:
      there[place] = shelf.load(folder, place)
    except InputError as e:
      damaged[place] = e
  return there, damaged


def _of_replaced(
  folder: str, new: Mapping[Place, PromptBundle], taken: Iterable[Place]
) -> list[Place]:
  """What belongs to a run whose value goes, and is not replaced itself."""
  runs = {(p.task, p.run) for p in taken if p.kind == VALUE}
  return [
    place
    for place in shelf.places(folder)
    if (place.task, place.run) in runs and place not in new
  ]


def _splits(folder: str) -> dict[Place, tuple[str, str]]:
  """What the index alone knows: (digest, split of the score)."""
  return {
    place: (str(row.get('digest')), str(row.get('split', '')))
    for place, row in shelf.read_index(folder).items()
  }


def _rows(
  there: Mapping[Place, PromptBundle], splits: Mapping[Place, tuple[str, str]]
) -> list[dict[str, Any]]:
  """What the index says of bundles."""
  rows = []
  for place, bundle in there.items():
    metric, score = sources.named_score(bundle.metrics.get(place.task))
    digest, split = splits.get(place, ('', ''))
    [prompt] = sources.of_bundle(bundle, place.kind)
    start = dataclasses.replace(place, kind=START)
    begun: str | dict[str, str] = ''
    if start in there:
      begun = {
        'path': str(start),
        'digest': sources.of_bundle(there[start])[0].digest,
      }
    rows.append(
      {
        'task': place.task,
        'run': place.run,
        'kind': place.kind,
        'step': bundle.step,
        'metric': metric,
        'score': score,
        'split': split if metric and digest == bundle.digest else '',
        'start': begun,
        'method': bundle.method,
        'stage': bundle.stage,
        'backbone_name': bundle.backbone_name,
        'backbone_fingerprint': bundle.backbone_fingerprint,
        'vocabulary_digest': bundle.vocabulary_digest,
        'digest': bundle.digest,
        'prompt_digest': prompt.digest,
        'prompt_length': bundle.prompt_length,
        'emb_dim': bundle.emb_dim,
        'rank': bundle.rank,
      }
    )
  return rows


def _write_index(folder: str, splits: Mapping[Place, str]) -> bool:
  """Writes the index of what is there; returns whether it was another one."""
  there, _ = _readable(folder)
  known = _splits(folder)
  for place, split in splits.items():
    if split and place in there:
      known[place] = there[place].digest, split
  content = files.json_bytes(
    {'version': _VERSION, 'entries': _rows(there, known)}
  )
  path = os.path.join(folder, shelf.INDEX)
  with contextlib.suppress(OSError):
    with open(path, 'rb') as f:
      if f.read() == content:
        return False
  files.write_file(path, content)
  return True
