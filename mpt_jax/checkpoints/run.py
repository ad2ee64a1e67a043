"""Save and resume a run with orbax: prompts, optimizer, position in the data.

With several processes all of them save and restore together, in a folder that
all of them see; the data's position is the same on all, and process 0 writes
it. A checkpoint holds whole arrays: any number of devices and processes can
restore it.

A MODEL_DIR holds `run_config.json` (what the run is), `checkpoints/<step>/`
(orbax) and, when it has finished, the prompt bundle. The backbone is never in
it; its fingerprint is.
"""

import ast
from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
import hashlib
import json
import logging
import os
import re
from typing import Any

from flax import serialization
import jax
import numpy as np

from mpt_jax import methods
from mpt_jax.checkpoints import files
from mpt_jax.checkpoints import steps as steps_lib
from mpt_jax.engine import multihost
from mpt_jax.engine import params as params_lib
from mpt_jax.t5 import T5Config
from mpt_jax.types import (
  InputError,
  is_remote,
  local_path,
)

RUN_CONFIG = 'run_config.json'
RESULTS = 'results.json'
# The record's key for the digests of what the run reads.
DATA = 'data'
# Its key for where the prompts lie that it starts from.
PATHS = 'paths'
# Its key for where the backbone was read: its fingerprint says which it is.
BACKBONE = 'backbone'
# Its key for what others call the data: their digests say which they are.
DATA_SETS = 'data_sets'
_PATH_FIELDS = (
  *('prompts', 'teacher_prompts', 'target_prompts', 'path'),
  *('target_key', 'source_keys'),
)
# Stands for the class of a setting that is the run's own.
_RUN = 'run'
# What is recorded under another name than its parameter's, or follows from it.
_PARAMETERS = {
  **dict.fromkeys(
    ('backbone_fingerprint', 'initial_checkpoint_path'),
    'BackboneSource.path',
  ),
  **dict.fromkeys(
    (f.name for f in dataclasses.fields(T5Config)), 'BackboneSource.path'
  ),
  'dtype': 'dtype',
  'dropout_rate': 'dropout_rate',
  'precision': 'precision',
  'total_steps': 'steps',
  'train_steps': 'steps',
  'name': 'Optimizer.name',
  **dict.fromkeys(('num_tasks', 'prompt_tasks'), 'tasks'),
}
CHECKPOINTS = 'checkpoints'
# Where damaged checkpoints are put.
DAMAGED = 'damaged'

log = logging.getLogger(__name__)


class DamagedError(Exception):
  """A checkpoint cannot be read, or is not what was saved."""


def latest_step(model_dir: str) -> int | None:
  """The step of the newest finished checkpoint in a MODEL_DIR, or None."""
  found = steps_lib.finished(os.path.join(model_dir, CHECKPOINTS))
  return max(found, default=None)


class RunCheckpointer:
  """Writes and reads the checkpoints of one MODEL_DIR."""

  def __init__(self, model_dir: str, *, max_to_keep: int | None = 3):
    import orbax.checkpoint as ocp  # A fifth of a second: not for --help.

    path = os.path.join(model_dir, CHECKPOINTS)
    self._steps = steps_lib.Steps(path, max_to_keep)
    self._manager = ocp.CheckpointManager(
      self._steps.here,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=max_to_keep,
        enable_async_checkpointing=False,
      ),
      item_handlers={
        'state': ocp.StandardCheckpointHandler(),
        'iterator': ocp.JsonCheckpointHandler(),
      },
    )
    self._path = self._steps.folder

  def latest_step(self) -> int | None:
    """The newest finished checkpoint's step, or None."""
    if self._steps.are_sent:
      return self._steps.newest()
    return self._manager.latest_step()

  def save(self, state: Any, iterator_state: Mapping[str, Any] | None) -> None:
    """Saves a train state, replacing nothing until it is complete.

    Args:
      state: the train state.
      iterator_state: the data iterator's state, fit for JSON, or None.

    Raises:
      InputError: if it cannot be written; earlier checkpoints are untouched.
    """
    import orbax.checkpoint as ocp

    step = int(state.step)
    if self.latest_step() == step:
      return
    flat = _to_flat(state)
    try:
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(flat),
          iterator=ocp.args.JsonSave(
            {'state': iterator_state, 'digests': _digests(flat, iterator_state)}
          ),
        ),
      )
      self._steps.send(step)
    except (OSError, ValueError) as e:  # Tensorstore's is a ValueError.
      raise InputError(
        f'checkpoint {step} cannot be written to {self._path}:'
        f' {files.first_line(e)[:200]}; the last one is'
        f' {self.latest_step()}'
      ) from e

  def restore(self, state: Any, step: int | None = None) -> tuple[Any, Any]:
    """Reads a checkpoint into the form of a given state.

    Args:
      state: a train state of the run's shapes; its values are replaced.
      step: which checkpoint; None is the newest.

    Returns:
      (train state, the data iterator's state or None).

    Raises:
      InputError: if the checkpoint's names or shapes are not the run's.
      DamagedError: if it cannot be read, or is not what was saved.
    """
    step = self.latest_step() if step is None else step
    if step is None:
      raise InputError(f'there is no checkpoint in {self._path}')
    try:
      return self._restore(state, step)
    except InputError:
      raise
    except Exception as e:  # Orbax and tensorstore raise many types.
      raise DamagedError(
        f'checkpoint {step} in {self._path} is damaged:'
        f' {files.first_line(e)[:200]}'
      ) from e

  def _restore(self, state: Any, step: int) -> tuple[Any, Any]:
    import orbax.checkpoint as ocp

    if self._steps.bring(step):
      self._manager.reload()
    want = _to_flat(state)
    saved = self._manager.item_metadata(step)['state']
    saved = {k: tuple(v.shape) for k, v in saved.items()}
    # Parameters first: they say most about what is different.
    names = sorted(want.keys() | saved.keys())
    for name in sorted(names, key=lambda n: not n.startswith('params/')):
      ours = tuple(want[name].shape) if name in want else 'absent'
      theirs = saved.get(name, 'absent')
      if ours != theirs:
        raise InputError(
          f'checkpoint {step} in {self._path} does not fit this run: {name}'
          f' is {theirs} there and {ours} here; use another MODEL_DIR'
        )
    out = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(want),
        iterator=ocp.args.JsonRestore(),
      ),
    )
    flat, iterator_state = out['state'], out['iterator']['state']
    digests = out['iterator']['digests']
    for name, digest in _digests(flat, iterator_state).items():
      if digests[name] != digest:
        raise ValueError(f'{name} is not what was saved')
    return _from_flat(state, flat), iterator_state

  def restore_newest(self, state: Any) -> tuple[Any, Any] | None:
    """Reads the newest checkpoint that is whole.

    A damaged one is put aside, into `damaged/` beside the checkpoints, and
    the one before it is taken. All processes must call this together.

    Args:
      state: a train state of the run's shapes; its values are replaced.

    Returns:
      (train state, the data iterator's state or None); None if there is no
      checkpoint.

    Raises:
      InputError: if a checkpoint's names or shapes are not the run's, or if
        there are checkpoints and all of them are damaged.
    """
    damaged = ''
    while True:
      step = multihost.on_first(self.latest_step)
      if step is None:
        break
      found, error = None, ''
      try:
        found = self.restore(state, step)
      except DamagedError as e:
        error = str(e)
      if not multihost.any_process(bool(error)):
        return found
      damaged = error or f'checkpoint {step} is damaged on another process'
      log.warning('%s; trying the one before it', damaged)
      multihost.on_first(functools.partial(self._put_aside, step))
      self._manager.reload()
    if damaged:
      raise InputError(
        f'{damaged}; there is no other checkpoint: the damaged ones are in'
        f' {self._damaged}'
      )
    return None

  @property
  def _damaged(self) -> str:
    return os.path.join(os.path.dirname(self._path), DAMAGED)

  def _put_aside(self, step: int) -> None:
    self._steps.put_aside(step, self._damaged)

  def close(self) -> None:
    """Waits for and releases the manager."""
    self._manager.close()


def _digests(
  flat: Mapping[str, Any], iterator_state: Mapping[str, Any] | None
) -> dict[str, str]:
  """Digests of what a checkpoint holds, by name.

  Arrays that are split over several processes have none.
  """
  found = {}
  for name, array in flat.items():
    whole = not isinstance(array, jax.Array) or (
      array.is_fully_addressable or array.is_fully_replicated
    )
    if whole:
      content = np.ascontiguousarray(np.asarray(array))
      found[name] = hashlib.sha256(content.tobytes()).hexdigest()
  text = json.dumps(iterator_state, sort_keys=True)
  found['the position in the data'] = hashlib.sha256(text.encode()).hexdigest()
  return found


def _to_flat(state: Any) -> dict[str, Any]:
  """Train state -> {'params/prompts/task_u': array}, no empty nodes."""
  return params_lib.flatten(serialization.to_state_dict(state))


def _from_flat(template: Any, flat: Mapping[str, Any]) -> Any:
  """The inverse of `_to_flat`, keeping the template's structure."""
  leaves, treedef = jax.tree_util.tree_flatten(template)
  names = params_lib.flatten(
    serialization.to_state_dict(
      jax.tree_util.tree_unflatten(treedef, list(range(len(leaves))))
    )
  )
  restored = list(leaves)
  for name, index in names.items():
    restored[index] = flat[name]
  return jax.tree_util.tree_unflatten(treedef, restored)


def check_run_config(
  model_dir: str,
  config: Mapping[str, Any],
  name_of: Callable[[str], str] = str,
) -> bool:
  """Compares a run's settings with those its MODEL_DIR was made with.

  A folder in which nothing was saved yet belongs to no run: the new settings
  take it.

  Args:
    model_dir: the run's folder; need not exist.
    config: JSON-able settings of this run; those in dataclasses as `repr`.
    name_of: see `refuse_differences`.

  Returns:
    Whether the folder already holds this run (otherwise it is new, and
    `config` is written there).

  Raises:
    InputError: if it holds a run with other settings or of other data; its
      details have a line for each.
  """
  path = os.path.join(model_dir, RUN_CONFIG)
  now = record(config)
  # Damaged ones are put aside, into a folder that is made for them.
  saved = latest_step(model_dir) is not None or files.is_folder(
    os.path.join(model_dir, DAMAGED)
  )
  if saved and not files.exists(path):
    raise InputError(
      f'MODEL_DIR {model_dir!r} holds checkpoints but no {RUN_CONFIG}: it is'
      ' not one of our runs; use another MODEL_DIR'
    )
  # An evaluation's results, without a record, are no run's.
  if files.exists(path) and files.exists(os.path.join(model_dir, RESULTS)):
    saved = True
  if saved:
    before = files.read_json(path)
    refuse_differences(model_dir, before, now, name_of)
    if DATA in now and DATA not in before:
      log.warning(
        '%s was made by a version that kept no digest of its data: whether they'
        ' are still the same is not known',
        model_dir,
      )
    # A later call may evaluate other splits too.
    now = {**before, DATA: {**before.get(DATA, {}), **now.get(DATA, {})}}
    if now == before:
      return True
  files.write_file(path, files.json_bytes(now))
  return saved


def record(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a run's settings as its folder's record holds them."""
  return json.loads(json.dumps(config, default=_plain))


def refuse_differences(
  model_dir: str,
  before: Mapping[str, Any],
  now: Mapping[str, Any],
  name_of: Callable[[str], str] = str,
) -> None:
  """Raises InputError if two records are of different runs.

  Args:
    model_dir: whose record `before` is.
    before: a run's record. What it lacks, since an older version wrote it, is
      not compared.
    now: the record of the run that wants the folder.
    name_of: parameter of `train.train`, of a dataclass or 'Class.field' -> what
      a user calls it.
  """
  details = _settings_that_differ(_of_0_1(before, now), now, name_of)
  if not details:  # Other settings read other data: nothing new.
    details = _data_that_differ(before.get(DATA, {}), now.get(DATA, {}))
  if details:
    raise InputError(
      f'MODEL_DIR {model_dir!r} holds a run with other settings or data; use'
      ' another MODEL_DIR, or what it was made with',
      details,
    )


# Version 0.1 had a Flax module in the model, which shows itself on many lines.
_MODULE = re.compile(
  r'prompts=(?:None|(\w+)\(\n *# attributes\n(.*?)\n *\))', re.DOTALL
)


def _of_0_1(
  before: Mapping[str, Any], now: Mapping[str, Any]
) -> dict[str, Any]:
  """A record of version 0.1 in today's words; another one as it is."""
  found = _MODULE.search(before.get('model', ''))
  if not found:
    return dict(before)
  old = _keywords(before.get('prompts', ''))
  sizes = dict(re.findall(r'(\w+) = (\d+)', found[2] or ''))
  if old.get('source_prompts') == 'None':  # Else it was not used.
    sizes['init'] = old['init']
  method = ', '.join(
    f'{name}={sizes.get(name, value)}'
    for name, value in _keywords(_keywords(now['model'])['method']).items()
  )
  model = (
    f'method={found[1] or "FullFinetuning"}({method}),'
    f' num_tasks={sizes.get("num_tasks", 1)}'
  )
  known = {'model': before['model'].replace(found[0], model)}
  if old:
    known['start'] = (
      f'Source(prompts={old["source_prompts"]}, task={old["source_task"]})'
    )
    known['prompt_tasks'] = list(ast.literal_eval(old['task_names']))
  return {**before, **known}


def _keywords(text: str) -> dict[str, str]:
  """The arguments of a call in Python's words; none of what is no call."""
  try:
    node = ast.parse(text, mode='eval').body
  except (SyntaxError, ValueError):
    return {}
  if not isinstance(node, ast.Call):
    return {}
  return {str(k.arg): ast.unparse(k.value) for k in node.keywords}


def differences(there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
  """Says 'NAME: value there, value here' of each setting that differs."""
  return [
    f'{name}: {there.get(name, "none")} there, {here.get(name, "none")} here'
    for name in sorted(there.keys() | here.keys())
    if there.get(name) != here.get(name)
  ]


def _settings_that_differ(
  before: Mapping[str, Any],
  now: Mapping[str, Any],
  name_of: Callable[[str], str],
) -> list[str]:
  """'TRAIN_STEPS: 2000 there, 1000 here', one for each name."""
  changed = [
    name
    for name in now
    if name not in (DATA, PATHS, BACKBONE, DATA_SETS)
    and name in before
    and now[name] != before[name]
  ]
  there, here = (
    dict(field for name in changed for field in fields(name, record[name]))
    for record in (before, now)
  )
  lines: dict[str, str] = {}
  # What the run says itself comes before what follows from it, which then
  # has a line already.
  for place in sorted({*there, *here}, key=lambda p: (p[0] != _RUN, p)):
    theirs, ours = there.get(place, 'None'), here.get(place, 'None')
    same = place[1] in _PATH_FIELDS and (
      _real(theirs, before.get(PATHS, {})) == _real(ours, now.get(PATHS, {}))
    )
    if ours != theirs and not same:
      name = name_of(_parameter(place[1]))
      lines.setdefault(name, *differences({name: theirs}, {name: ours}))
  return list(lines.values())


def _parameter(field: str) -> str:
  """The parameter that a recorded field is set by."""
  for method in methods.known():
    for pattern, rate in method.groups:
      if field == f'learning_rate[{method.branch}/{pattern}]':
        return rate
  return _PARAMETERS.get(field, field)


def real_paths(*values: Any) -> dict[str, str]:
  """Returns what the paths of a run are in full, for its record.

  Args:
    *values: paths as they were given, lists or dictionaries of them, or None.

  Returns:
    Path as given -> absolute path without links.
  """
  found: dict[str, str] = {}
  for value in values:
    if isinstance(value, str):
      path = local_path(value)
      found[value] = path if is_remote(path) else os.path.realpath(path)
    elif isinstance(value, Mapping):
      found |= real_paths(*value.values())
    elif isinstance(value, list | tuple):
      found |= real_paths(*value)
  return found


def _real(text: str, known: Mapping[str, str]) -> Any:
  """A setting's paths in full: one folder may be spelt in many ways."""

  def fill(value: Any) -> Any:
    if isinstance(value, str):
      return known.get(value) or real_paths(value)[value]
    if isinstance(value, Mapping):
      return {task: fill(path) for task, path in value.items()}
    if isinstance(value, list | tuple):
      return [fill(path) for path in value]
    return value

  try:
    return fill(ast.literal_eval(text))
  except (ValueError, SyntaxError):
    return text


def fields(name: str, value: Any) -> Iterator[tuple[tuple[str, str], str]]:
  """Takes a setting's `repr` apart.

  Args:
    name: of the setting.
    value: what the record of a run has there.

  Yields:
    ((class or 'run', field), value); of groups of parameters the field has its
    pattern behind it, in brackets.
  """
  try:
    node = ast.parse(str(value), mode='eval').body
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    node = None
  if isinstance(node, ast.Call):
    yield from _fields_of(node, '')
  else:
    yield (_RUN, name), str(value)


def _fields_of(
  node: ast.Call, suffix: str
) -> Iterator[tuple[tuple[str, str], str]]:
  owner = ast.unparse(node.func)
  texts = {k.arg: ast.unparse(k.value) for k in node.keywords}
  # Groups of parameters differ in their pattern.
  if 'pattern' in texts:
    suffix += f'[{ast.literal_eval(texts["pattern"])}]'
  for keyword in node.keywords:
    value = keyword.value
    parts = value.elts if isinstance(value, ast.Tuple) else [value]
    calls = [part for part in parts if isinstance(part, ast.Call)]
    for call in calls:
      yield from _fields_of(call, suffix)
    if not calls:
      yield (owner, f'{keyword.arg}{suffix}'), texts[keyword.arg]


def _data_that_differ(
  before: Mapping[str, Any], now: Mapping[str, Any]
) -> list[str]:
  """'the data of rte/train differ: 2490 examples there, 2489 here'."""
  lines = []
  for name in sorted(before.keys() & now.keys()):
    there, here = before[name], now[name]
    if there != here:
      counts = f'{there["examples"]} examples there, {here["examples"]} here'
      if there['examples'] == here['examples']:
        counts = f'{here["examples"]} examples, but not the same'
      lines.append(f'the data of {name} differ: {counts}')
  return lines


def check_shared(model_dir: str) -> None:
  """Checks that every process sees the folder that process 0 has opened.

  Raises:
    InputError: on every process, if one does not.
  """
  seen = files.exists(os.path.join(model_dir, RUN_CONFIG))
  multihost.raise_together(
    ''
    if seen
    else f'MODEL_DIR {model_dir!r} is not the folder of process 0: give one on'
    ' storage that all hosts share'
  )


def _plain(value: Any) -> Any:
  if isinstance(value, (np.integer, np.floating)):
    return value.item()
  if hasattr(value, '__dataclass_fields__'):
    return {k: getattr(value, k) for k in value.__dataclass_fields__}
  return str(value)
