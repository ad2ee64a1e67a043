"""A library on the disk: LIBRARY/TASK/RUN/{value,key,start}, each a bundle.

What is there is what the folders hold. The index beside them is only made of
them, and believed in nothing that a bundle says itself.
"""

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import logging
import os
import re
from typing import Any

from mpt_jax.checkpoints import bundle as bundle_lib
from mpt_jax.checkpoints import files
from mpt_jax.checkpoints.bundle import PromptBundle
from mpt_jax.types import InputError, nearest, require_local

log = logging.getLogger(__name__)

INDEX = 'library.json'
# The finished prompt, an early one to compare tasks by, and that of step 0.
VALUE, KEY, START = 'value', 'key', 'start'
KINDS = (VALUE, KEY, START)

_NAME = re.compile(r'\w[\w.:-]*')
_MOST_INDEX_BYTES = 1 << 24
# What the prompts of a library have in common, where they say it.
_COMMON = {
  'backbone_fingerprint': 'backbone',
  'vocabulary_digest': 'vocabulary',
  'prompt_length': 'prompt length',
  'emb_dim': 'width',
}


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a bundle is in a library.

  Attributes:
    task: what it was learned on.
    run: which of several runs of that.
    kind: 'value', 'key' or 'start'.
  """

  task: str
  run: str
  kind: str = VALUE

  def __post_init__(self):
    for what, name in (('task', self.task), ('run', self.run)):
      if not _is_name(name):
        raise InputError(
          f'{what} {name!r} can be no folder of a library: a name is made of'
          ' letters, digits and _.:-'
        )

  def __str__(self) -> str:
    return f'{self.task}/{self.run}/{self.kind}'


@dataclasses.dataclass(frozen=True)
class Item:
  """A bundle of a library, of one task.

  Attributes:
    place: where it is.
    name: 'rte', or 'rte/1' where the task has several runs.
    path: its folder.
    bundle: what is there.
    start: what its run began with; None if that is not known.
  """

  place: Place
  name: str
  path: str
  bundle: PromptBundle
  start: PromptBundle | None = None


def is_library(path: Any) -> bool:
  """Whether a path is a library's folder."""
  if not isinstance(path, str | os.PathLike):
    return False
  path = os.fspath(path)
  if os.path.lexists(os.path.join(path, INDEX)):
    return True
  if os.path.lexists(os.path.join(path, bundle_lib.CONFIG)):
    return False
  return any(place.kind == VALUE for place in places(path))


def places(folder: str) -> list[Place]:
  """Returns where bundles are, by task, run ('2' before '10') and kind."""
  found = [
    Place(task, run, kind)
    for task in _folders(folder)
    for run in _folders(os.path.join(folder, task))
    for kind in KINDS
    if os.path.lexists(os.path.join(folder, task, run, kind))
  ]
  return sorted(found, key=_order)


def _order(place: Place) -> tuple[Any, ...]:
  number = int(place.run) if place.run.isdecimal() else -1
  return place.task, number, place.run, KINDS.index(place.kind)


def _folders(path: str) -> list[str]:
  try:
    names = os.listdir(path)
  except OSError:
    return []
  return [
    name
    for name in names
    if _is_name(name) and os.path.isdir(os.path.join(path, name))
  ]


def _is_name(name: Any) -> bool:
  return isinstance(name, str) and _NAME.fullmatch(name) is not None


def path_of(folder: str, place: Place) -> str:
  """Returns the folder of a bundle in a library."""
  return os.path.join(folder, place.task, place.run, place.kind)


def load(folder: str, place: Place) -> PromptBundle:
  """Reads and verifies a bundle of a library.

  Raises:
    InputError: if it is missing or damaged, or is not of the one task whose
      place it has.
  """
  for path in (
    os.path.join(folder, place.task),
    os.path.join(folder, place.task, place.run),
    path_of(folder, place),
  ):
    if os.path.islink(path):
      raise InputError(
        f'{path} is a symbolic link; put the folder itself there'
      )
  bundle = bundle_lib.load_prompts(path_of(folder, place))
  if bundle.task_names != (place.task,):
    raise InputError(
      f'{path_of(folder, place)} holds prompts of'
      f' {", ".join(bundle.task_names)}, and not of {place.task}'
    )
  bundle.table  # noqa: B018 - It has one.
  return bundle


def read_index(folder: str) -> dict[Place, dict[str, Any]]:
  """Returns what the index says, by place; what cannot be read is left out."""
  path = os.path.join(folder, INDEX)
  if not os.path.lexists(path):
    return {}
  try:
    content = files.read_json(path, most_bytes=_MOST_INDEX_BYTES)
  except InputError as e:
    log.warning('the index is made anew: %s', e)
    return {}
  rows = content.get('entries')
  found = {}
  for row in rows if isinstance(rows, list) else ():
    if isinstance(row, dict) and row.get('kind') in KINDS:
      if _is_name(row.get('task')) and _is_name(row.get('run')):
        found[Place(row['task'], row['run'], row['kind'])] = row
  return found


def check_alike(bundles: Mapping[str, PromptBundle]) -> None:
  """Checks that prompts are of one backbone, vocabulary and shape.

  Args:
    bundles: by the name that a message calls them.

  Raises:
    InputError: names two that are not, and in what.
  """
  for field, word in _COMMON.items():
    known = ''
    for name, bundle in bundles.items():
      value = getattr(bundle, field)
      if value == '':
        continue
      if known and value != getattr(bundles[known], field):
        raise InputError(
          f'{name} is of another {word} ({value}) than {known}'
          f' ({getattr(bundles[known], field)}): a library is of one'
        )
      known = known or name


def strangers(bundles: Mapping[str, PromptBundle]) -> dict[str, str]:
  """Returns which prompts are of another kind than most, and in what."""
  found = {}
  for field, word in _COMMON.items():
    values = {name: getattr(bundle, field) for name, bundle in bundles.items()}
    known = {name: value for name, value in values.items() if value != ''}
    if known:
      [(usual, _)] = collections.Counter(known.values()).most_common(1)
      for name, value in known.items():
        if value != usual:
          found[name] = f'of another {word} ({value}) than most ({usual})'
  return found


def read(
  folder: str,
  kind: str = VALUE,
  tasks: Iterable[str] | None = None,
  backbone: Any = None,
  on_damage: Callable[[str, InputError], None] | None = None,
) -> list[Item]:
  """Reads a library's bundles of one kind.

  Args:
    folder: the library.
    kind: 'value', 'key' or 'start'.
    tasks: of which tasks, or runs of tasks ('rte/1'); None is all.
    backbone: they must be of this one; None does not check.
    on_damage: told of each that cannot be read, ('rte/1/key', why), which is
      left out; None says it in the log.

  Returns:
    The bundles, by task and run.

  Raises:
    InputError: if there is none, a task has none, or one is of another
      backbone than the others or than `backbone`.
  """
  folder = require_local(folder)
  if kind not in KINDS:
    raise InputError(
      f'kind is {kind!r}, expected one of {", ".join(KINDS)}'
      f'{nearest(str(kind), KINDS)}'
    )
  tell = on_damage or _warn
  there = [place for place in places(folder) if place.kind == kind]
  missing = [
    place
    for place in read_index(folder)
    if place.kind == kind and place not in there
  ]
  if not there and not missing:
    raise InputError(_nothing(folder, kind))
  names = _names(sorted([*there, *missing], key=_order))
  chosen = _choose(folder, list(names), tasks)
  items = []
  for place in chosen:
    try:
      if place in missing:
        raise InputError('its folder is missing')
      bundle = load(folder, place)
    except InputError as e:
      tell(str(place), e)
      continue
    if backbone is not None:
      try:
        bundle_lib.check_backbone(bundle, backbone)
      except InputError as e:
        raise InputError(f'library {folder}, {place}: {e}') from e
    start = _start(folder, place, tell)
    path = path_of(folder, place)
    items.append(Item(place, names[place], path, bundle, start))
  if not items:
    raise InputError(
      f'library {folder}: none of its {len(chosen)} bundles of this kind can'
      f' be read ({kind})'
    )
  try:
    check_alike({str(item.place): item.bundle for item in items})
  except InputError as e:
    raise InputError(f'library {folder}: {e}') from e
  return items


def _nothing(folder: str, kind: str) -> str:
  if not os.path.isdir(folder):
    return f'there is no library at {folder}'
  how = {
    VALUE: 'add a run with `python -m mpt_jax.transfer add`',
    KEY: 'train with KEY_STEP, and add those runs',
    START: 'train with KEY_STEP, and add those runs',
  }
  return f'library {folder} has no {kind}: {how[kind]}'


def _choose(
  folder: str, there: Sequence[Place], tasks: Iterable[str] | None
) -> list[Place]:
  """The places of some tasks, in the order given."""
  if tasks is None:
    return list(there)
  wanted = [tasks] if isinstance(tasks, str) else tasks
  known = dict.fromkeys(p.task for p in there)
  chosen: dict[Place, None] = {}
  for task in wanted:
    fitting = [p for p in there if task in (p.task, f'{p.task}/{p.run}')]
    if not fitting:
      raise InputError(
        f'library {folder} has no {there[0].kind} of {task!r}; it has'
        f' {", ".join(known)}{nearest(task, known)}'
      )
    chosen |= dict.fromkeys(fitting)
  return list(chosen)


def _names(there: Sequence[Place]) -> dict[Place, str]:
  tasks = [place.task for place in there]
  return {
    p: p.task if tasks.count(p.task) == 1 else f'{p.task}/{p.run}'
    for p in there
  }


def _start(
  folder: str, place: Place, tell: Callable[[str, InputError], None]
) -> PromptBundle | None:
  """What the run of a bundle began with."""
  start = dataclasses.replace(place, kind=START)
  if not os.path.lexists(path_of(folder, start)):
    return None
  try:
    return load(folder, start)
  except InputError as e:
    tell(str(start), e)
    return None


def _warn(name: str, error: InputError) -> None:
  log.warning('library: %s is left out: %s', name, error)
