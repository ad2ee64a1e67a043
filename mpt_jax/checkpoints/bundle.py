"""Prompt bundles: the product of a run, and what users share.

A bundle is a folder with `prompts.safetensors` (`shared_prompt`, `task_u` and
`task_v`, or `prompt`; float32) and `prompt_config.json`, which says whose
prompts these are, for which backbone, and how they came about; in format
version 2 also how the text of each task is written (`texts.TaskText`).
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import hashlib
import logging
import math
import os
import re
from typing import Any

import numpy as np

import mpt_jax
from mpt_jax import prompts as prompts_lib
from mpt_jax.checkpoints import files, peft
from mpt_jax.checkpoints.texts import TaskText
from mpt_jax.types import (
  InputError,
  check_shape,
  nearest,
  require_local,
)

log = logging.getLogger(__name__)

CONFIG = 'prompt_config.json'
TENSORS = 'prompts.safetensors'
# Version 2 is version 1 and `texts`; a bundle without them is of version 1.
FORMAT_VERSION = 2
METHODS = ('multitask', 'soft')
# The stages of a run, and prompts that come from another program.
STAGES = ('teacher', 'source', 'target', 'imported')

# A name becomes a file name on export, so it must not lead elsewhere.
_TASK_NAME = re.compile(r'\w[\w.:-]*')

# Numbers by split, task and name at most.
_METRICS_DEPTH = 3


@dataclasses.dataclass(frozen=True, eq=False)
class PromptBundle:
  """The prompts of K tasks, and where they come from.

  Attributes:
    method: 'multitask' (one shared prompt and factors per task) or 'soft' (one
      plain prompt, the same for every task).
    stage: 'teacher', 'source' or 'target', or 'imported'.
    task_names: the K tasks, in the order of the rows.
    arrays: `shared_prompt` [P, D], `task_u` [K, P, R] and `task_v` [K, R, D],
      or `prompt` [P, D]; float32. It is the model's `prompts` subtree.
    backbone_name: what the backbone is called; '' when not known.
    backbone_fingerprint: digest of the backbone; '' when not known.
    vocabulary_digest: digest of the SentencePiece file; '' when not known.
    step: training steps taken.
    metrics: scores of these prompts: numbers, or numbers by task. One that is
      not finite becomes None.
    package_version: the mpt_jax that wrote them.
    texts: task -> how its text is written, where that is known.

  Raises:
    ValueError: if the parts do not fit together, or a value is not finite.
  """

  method: str
  stage: str
  task_names: tuple[str, ...]
  arrays: Mapping[str, np.ndarray] = dataclasses.field(repr=False)
  backbone_name: str = ''
  backbone_fingerprint: str = ''
  vocabulary_digest: str = ''
  step: int = 0
  metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  package_version: str = mpt_jax.__version__
  texts: Mapping[str, TaskText] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    _check_choice('method', self.method, METHODS)
    _check_choice('stage', self.stage, STAGES)
    put = functools.partial(object.__setattr__, self)  # The class is frozen.
    put('task_names', _check_task_names(self.task_names))
    arrays = {k: np.asarray(v, np.float32) for k, v in self.arrays.items()}
    put('arrays', arrays)
    put('metrics', _plain_metrics(self.metrics))
    put('texts', _check_texts(self.texts, self.task_names))
    for field in (
      'backbone_name',
      'backbone_fingerprint',
      'vocabulary_digest',
      'package_version',
    ):
      if not isinstance(getattr(self, field), str):
        raise ValueError(f'{field} is {getattr(self, field)!r}, expected text')
    if not isinstance(self.step, int | np.integer) or self.step < 0:
      raise ValueError(f'step is {self.step!r}, expected a number from 0')
    put('step', int(self.step))

    names = _array_shapes(self.method, 0, 0, 0, 0)
    if set(arrays) != set(names):
      raise ValueError(
        f'a {self.method} bundle has the arrays {sorted(names)}, got'
        f' {sorted(arrays)}'
      )
    anchor = arrays['shared_prompt' if 'shared_prompt' in arrays else 'prompt']
    length, width = check_shape('the prompt', anchor, (None, None))
    rank = arrays['task_u'].shape[-1] if 'task_u' in arrays else 0
    shapes = _array_shapes(
      self.method, len(self.task_names), length, width, rank
    )
    for name, array in arrays.items():
      check_shape(name, array, shapes[name])
      if array.size == 0:
        raise ValueError(f'{name} is empty: its shape is {array.shape}')
      if not np.isfinite(array).all():
        raise ValueError(f'{name} holds NaN or infinity')
    with np.errstate(over='ignore', invalid='ignore'):
      if not np.isfinite(self.table).all():
        raise ValueError('the arrays make a prompt with NaN or infinity')

  @property
  def prompt_length(self) -> int:
    """P, the number of prompt vectors."""
    return self._anchor.shape[0]

  @property
  def emb_dim(self) -> int:
    """D, the width of the backbone."""
    return self._anchor.shape[1]

  @property
  def rank(self) -> int:
    """R, the rank of the task factors; 0 for a plain prompt."""
    return self.arrays['task_u'].shape[2] if self.method == 'multitask' else 0

  @property
  def table(self) -> np.ndarray:
    """[K, P, D] float32, the composed prompt of every task."""
    if self.method == 'soft':
      shape = (len(self.task_names), *self._anchor.shape)
      return np.broadcast_to(self._anchor, shape)
    factors = np.matmul(self.arrays['task_u'], self.arrays['task_v'])
    return self._anchor[None] * factors

  def make_module(self) -> prompts_lib.PromptModule:
    """Returns the Flax module whose parameters `arrays` are."""
    sizes = self.prompt_length, self.emb_dim, len(self.task_names)
    if self.method == 'soft':
      return prompts_lib.SoftPrompts(*sizes)
    return prompts_lib.MultitaskPrompts(*sizes, rank=self.rank)

  @property
  def _anchor(self) -> np.ndarray:
    name = 'prompt' if self.method == 'soft' else 'shared_prompt'
    return self.arrays[name]

  def row(self, task: str | None = None) -> int:
    """Returns the task's row in the table; None will do for one prompt.

    Raises:
      InputError: if the bundle has no such task; near names are offered.
    """
    if task is None:
      if self.method == 'multitask' and len(self.task_names) > 1:
        raise InputError(
          f'say whose prompt to use: task is one of'
          f' {", ".join(self.task_names)}'
        )
      return 0
    if task not in self.task_names:
      raise InputError(
        f'the prompts have no task {task!r}; they have'
        f' {", ".join(self.task_names)}{nearest(str(task), self.task_names)}'
      )
    return self.task_names.index(task)

  def text(self, task: str | None = None) -> TaskText:
    """Returns how the text of a task is written.

    Args:
      task: its name; may be left out where there is only one.

    Raises:
      InputError: if the bundle has no such task, or does not say.
    """
    if task is None:
      if len(self.task_names) > 1:
        raise InputError(
          f'say whose text to write: task is one of'
          f' {", ".join(self.task_names)}'
        )
      [task] = self.task_names
    self.row(task)
    if task not in self.texts:
      raise InputError(
        f'the prompts do not say how the text of task {task!r} is written:'
        ' give texts in the form that it was trained on'
      )
    return self.texts[task]

  def answers(self, task: str | None = None) -> dict[str, str]:
    """Returns the text of a task's answer by label word; `task` as in `text`.

    Raises:
      InputError: as `text`; also if the task has no labels to rank.
    """
    text = self.text(task)
    try:
      return text.answers()
    except InputError as e:
      raise InputError(f'task {task or self.task_names[0]!r}: {e}') from e

  def compose(self, task: str) -> np.ndarray:
    """Returns the [P, D] prompt of one task.

    Raises:
      InputError: if the bundle has no such task.
    """
    return np.array(self.table[self.row(task)])

  def with_tasks(self, names: Sequence[str]) -> 'PromptBundle':
    """Returns a bundle of some of the tasks, in the given order.

    Raises:
      InputError: if the bundle lacks a task, or a name is given twice.
    """
    rows = [self.row(name) for name in names]
    arrays = dict(self.arrays)
    for name in arrays:
      if name in ('task_u', 'task_v'):
        arrays[name] = arrays[name][rows]
    texts = {k: v for k, v in self.texts.items() if k in names}
    try:
      return dataclasses.replace(
        self, task_names=tuple(names), arrays=arrays, texts=texts
      )
    except ValueError as e:
      raise InputError(str(e)) from e

  def renamed(self, names: Mapping[str, str]) -> 'PromptBundle':
    """Returns the bundle with other names for some tasks.

    Args:
      names: old name -> new name.

    Raises:
      InputError: if the bundle lacks a task, or the new names don't do.
    """
    for old in names:
      self.row(old)
    try:
      return dataclasses.replace(
        self,
        task_names=tuple(names.get(n, n) for n in self.task_names),
        texts={names.get(k, k): v for k, v in self.texts.items()},
      )
    except ValueError as e:
      raise InputError(str(e)) from e

  def save(self, path: str) -> None:
    """Writes the bundle; a bundle that is there already is replaced.

    Raises:
      InputError: if the folder cannot be written, or holds other files.
    """
    contents = self._contents(self.texts)
    if len(contents[CONFIG]) > files.MAX_JSON_BYTES and self.texts:
      log.warning(
        "%s does not hold how its tasks' text is written: templates and label"
        ' words have more than %d bytes',
        path,
        files.MAX_JSON_BYTES,
      )
      contents = self._contents({})
    files.write_folder(path, contents)

  def _contents(self, texts: Mapping[str, TaskText]) -> dict[str, bytes]:
    """Returns the bundle's files."""
    config = {
      'format_version': 2 if texts else 1,
      'prompt_length': self.prompt_length,
      'emb_dim': self.emb_dim,
      'rank': self.rank,
    } | {name: getattr(self, name) for name in _STORED_FIELDS}
    if texts:
      config[_TEXTS] = {k: dataclasses.asdict(v) for k, v in texts.items()}
    tensors = files.tensor_bytes(self.arrays, {'format': 'np'})
    config[_DIGEST] = _digest(config, tensors)
    return {CONFIG: files.json_bytes(config), TENSORS: tensors}

  def to_peft(self, path: str, task: str | None = None) -> None:
    """Writes a PEFT adapter folder.

    Args:
      path: the folder.
      task: write this task's composed prompt as PROMPT_TUNING. Without it, a
        multitask bundle becomes MULTITASK_PROMPT_TUNING with all its tasks.

    Raises:
      InputError: if the task is unknown or the folder cannot be written.
    """
    if task is None:
      peft.write_adapter(path, self.arrays, self.task_names)
    else:
      peft.write_adapter(path, {'prompt': self.compose(task)}, [task])

  def to_npy(self, path: str, task: str | None = None) -> list[str]:
    """Writes composed prompts in the layout of Google's prompt-tuning.

    Args:
      path: a folder, for one `<task>.npy` per task; or, with `task`, a file
        whose name ends in `.npy`.
      task: write only this task.

    Returns:
      The files written, each [P, D] float32.

    Raises:
      InputError: if the task is unknown or the place cannot be written.
    """
    tasks = self.task_names if task is None else (task,)
    if path.endswith('.npy'):
      if task is None:
        raise InputError(
          f'{path} names one file, but the prompts have'
          f' {len(self.task_names)} tasks; give a folder, or a task'
        )
      targets = [path]
    else:
      targets = [os.path.join(path, f'{name}.npy') for name in tasks]
    for name, target in zip(tasks, targets, strict=True):
      files.write_file(target, files.npy_bytes(self.compose(name)))
    return targets


# The key of the digest of everything else in the folder.
_DIGEST = 'digest'
# What version 2 holds and version 1 does not.
_TEXTS = 'texts'
_STORED_FIELDS = tuple(
  f.name
  for f in dataclasses.fields(PromptBundle)
  if f.name not in ('arrays', _TEXTS)
)


def merge(bundles: Sequence[PromptBundle]) -> PromptBundle:
  """Puts the tasks of several bundles into one, for one backbone.

  Bundles of one shared prompt and rank keep it. Any other prompts [P, D] are
  held exactly as factors of rank P: a shared prompt of ones, u_k the identity
  and v_k the prompt.

  Args:
    bundles: of one prompt length and width, whose task names all differ.

  Returns:
    The bundle; its tasks are in the order given.

  Raises:
    InputError: if lengths, backbones or vocabularies differ, or a name occurs
      twice.
  """
  if not bundles:
    raise InputError('there are no prompts to merge')
  first = bundles[0]
  if len(bundles) == 1:
    return first
  for field in (
    'prompt_length',
    'emb_dim',
    'backbone_fingerprint',
    'vocabulary_digest',
  ):
    values = [getattr(bundle, field) for bundle in bundles]
    known = sorted({str(v) for v in values if v != ''})
    if len(known) > 1:
      raise InputError(
        f'prompts of different {field} cannot be merged: {", ".join(known)}'
      )
  shared = all(
    bundle.method == 'multitask'
    and bundle.rank == first.rank
    and np.array_equal(
      bundle.arrays['shared_prompt'], first.arrays['shared_prompt']
    )
    for bundle in bundles
  )
  parts = [b.arrays if shared else _exact_factors(b) for b in bundles]
  known_first = max(
    bundles, key=lambda bundle: bool(bundle.backbone_fingerprint)
  )
  try:
    return dataclasses.replace(
      known_first,
      method='multitask',
      stage=first.stage,
      task_names=tuple(n for b in bundles for n in b.task_names),
      arrays={
        'shared_prompt': parts[0]['shared_prompt'],
        **{
          name: np.concatenate([part[name] for part in parts])
          for name in ('task_u', 'task_v')
        },
      },
      vocabulary_digest=max(b.vocabulary_digest for b in bundles),
      step=max(b.step for b in bundles),
      metrics={k: v for b in bundles for k, v in b.metrics.items()},
      texts={k: v for b in bundles for k, v in b.texts.items()},
    )
  except ValueError as e:
    raise InputError(str(e)) from e


def _exact_factors(bundle: PromptBundle) -> dict[str, np.ndarray]:
  """Returns arrays of a multitask bundle with the same composed prompts."""
  table = bundle.table
  tasks, length, _ = table.shape
  identity = np.eye(length, dtype=np.float32)
  return {
    'shared_prompt': np.ones(table.shape[1:], np.float32),
    'task_u': np.broadcast_to(identity, (tasks, length, length)),
    'task_v': np.asarray(table),
  }


def load_prompts(
  path: str, task_names: Sequence[str] | None = None
) -> PromptBundle:
  """Loads prompts from a bundle, a PEFT adapter or a `.npy` file.

  Args:
    path: a folder that `PromptBundle.save` or PEFT wrote, or a file with one
      [P, D] prompt (Google's prompt-tuning writes it without a suffix).
    task_names: the tasks of an adapter or `.npy` file, which has only numbers
      for them; default `task_0`, `task_1` and so on. Not for a bundle.

  Returns:
    The prompts.

  Raises:
    InputError: if nothing of the kind is there, or it is damaged.
  """
  path = require_local(path)
  if os.path.isdir(path):
    if os.path.lexists(os.path.join(path, CONFIG)):
      if task_names is not None:
        raise InputError(
          f'{path} is a bundle and names its tasks itself; load it without'
          ' task_names'
        )
      return _load_bundle(path)
    if os.path.lexists(os.path.join(path, peft.CONFIG)):
      arrays, own_names, base = peft.read_adapter(path)
      return _imported(path, arrays, task_names or own_names, base)
    raise InputError(
      f'{path} holds no prompts: neither {CONFIG} (a bundle) nor'
      f' {peft.CONFIG} (a PEFT adapter)'
    )
  if not os.path.lexists(path):
    raise InputError(
      f'no prompts at {path}; give a bundle folder, a PEFT adapter folder or'
      ' a .npy file'
    )
  if path.endswith('.safetensors'):
    raise InputError(f'{path} is a part of a folder; give the folder')
  return _imported(path, {'prompt': files.read_npy(path)}, task_names, '')


def check_backbone(bundle: PromptBundle, backbone: Any) -> None:
  """Checks that the prompts were trained on this backbone and vocabulary.

  Args:
    bundle: the prompts.
    backbone: what `load_backbone` returned.

  Raises:
    InputError: if the width differs, or both fingerprints or both digests of
      the vocabulary are known and differ.
  """
  trained = bundle.backbone_name or 'an unnamed backbone'
  if bundle.emb_dim != backbone.config.emb_dim:
    raise InputError(
      f'the prompts are {bundle.emb_dim} wide (trained on {trained}), but the'
      f' backbone {backbone.name} has emb_dim {backbone.config.emb_dim}'
    )
  if (
    bundle.backbone_fingerprint
    and bundle.backbone_fingerprint != backbone.fingerprint
  ):
    raise InputError(
      f'the prompts were trained on {trained}'
      f' ({bundle.backbone_fingerprint}), but the backbone {backbone.name} is'
      f' another one ({backbone.fingerprint})'
    )
  vocabulary = getattr(backbone, 'vocabulary', None)
  if bundle.vocabulary_digest and vocabulary is not None:
    # Version 0.1 knew the file alone.
    known = vocabulary.digest, vocabulary.file_digest
    if bundle.vocabulary_digest not in known:
      raise InputError(
        f'the prompts were trained with another vocabulary'
        f' ({bundle.vocabulary_digest}) than {vocabulary.path}'
        f' ({vocabulary.digest})'
      )


def _load_bundle(path: str) -> PromptBundle:
  """Reads our own folder, strictly."""
  config_path = os.path.join(path, CONFIG)
  config = files.read_json(config_path)
  version = config.get('format_version')
  if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
    raise InputError(
      f'{config_path}: format_version is {version!r}, this mpt_jax reads 1 to'
      f' {FORMAT_VERSION}'
    )
  sizes = ('prompt_length', 'emb_dim', 'rank')
  known = ('format_version', _DIGEST, *sizes, *_STORED_FIELDS)
  if version == FORMAT_VERSION:
    known = (*known, _TEXTS)
  for key in known:
    if key not in config:
      raise InputError(
        f'{config_path} lacks the key {key!r} of format_version {version}'
      )
  for key in config:
    if key not in known:
      raise InputError(
        f'{config_path} has an unknown key {key!r}{nearest(key, known)}'
      )
  try:
    _check_choice('method', config['method'], METHODS)
    names = _check_task_names(config['task_names'])
    for key in sizes:
      least = 0 if key == 'rank' and config['method'] == 'soft' else 1
      if type(config[key]) is not int or config[key] < least:
        raise ValueError(
          f'{key} is {config[key]!r}, expected a positive number'
        )
    if config['method'] == 'soft' and config['rank']:
      raise ValueError(f'rank is {config["rank"]}, but a plain prompt has none')
    shapes = _array_shapes(
      config['method'], len(names), *(config[key] for key in sizes)
    )
  except ValueError as e:
    raise InputError(f'{config_path}: {e}') from e
  tensor_path = os.path.join(path, TENSORS)
  arrays, _ = files.read_tensors(tensor_path, shapes)
  try:
    with open(tensor_path, 'rb') as f:
      found = _digest(config, f.read())
  except (OSError, ValueError, RecursionError) as e:
    raise InputError(f'{path} cannot be read: {e}') from e
  if config[_DIGEST] != found:
    raise InputError(
      f'{path} is damaged or was edited: its digest is {found}, and'
      f' {CONFIG} says {config[_DIGEST]!r}'
    )
  stored = {name: config[name] for name in _STORED_FIELDS}
  try:
    texts = _parse_texts(config[_TEXTS]) if _TEXTS in config else {}
    return PromptBundle(arrays=arrays, texts=texts, **stored)
  except ValueError as e:
    raise InputError(f'{config_path}: {e}') from e


def _imported(
  path: str,
  arrays: Mapping[str, np.ndarray],
  task_names: Sequence[str] | None,
  backbone_name: str,
) -> PromptBundle:
  """Makes a bundle of arrays that another program wrote."""
  rows = len(arrays['task_u']) if 'task_u' in arrays else None
  if task_names is None:
    task_names = [f'task_{k}' for k in range(rows or 1)]
  if rows is not None and len(task_names) != rows:
    raise InputError(
      f'{path} has {rows} tasks, but {len(task_names)} names were given:'
      f' {", ".join(task_names)}'
    )
  try:
    return PromptBundle(
      method='soft' if rows is None else 'multitask',
      stage='imported',
      task_names=tuple(task_names),
      arrays=arrays,
      backbone_name=backbone_name,
    )
  except ValueError as e:
    raise InputError(f'{path}: {e}') from e


def _digest(config: Mapping[str, Any], tensors: bytes) -> str:
  """Returns the digest of a bundle's content, of which no bit may change."""
  text = {k: v for k, v in config.items() if k != _DIGEST}
  content = files.json_bytes(text) + tensors
  return f'sha256:{hashlib.sha256(content).hexdigest()}'


def _array_shapes(
  method: str, tasks: int, length: int, width: int, rank: int
) -> dict[str, tuple[int, ...]]:
  """Returns the arrays of a method and their shapes."""
  if method == 'soft':
    return {'prompt': (length, width)}
  return {
    'shared_prompt': (length, width),
    'task_u': (tasks, length, rank),
    'task_v': (tasks, rank, width),
  }


def _check_choice(name: str, value: Any, known: Sequence[str]) -> None:
  if value not in known:
    raise ValueError(
      f'{name} is {value!r}, expected {" or ".join(known)}'
      f'{nearest(str(value), known)}'
    )


def _check_task_names(names: Any) -> tuple[str, ...]:
  if not isinstance(names, list | tuple) or not names:
    raise ValueError(f'task_names is {names!r}, expected a list of names')
  for name in names:
    if not isinstance(name, str) or not _TASK_NAME.fullmatch(name):
      raise ValueError(
        f'task_names has {name!r}; a name is made of letters, digits and _.:-'
      )
  if len(set(names)) != len(names):
    twice = next(n for n in names if names.count(n) > 1)
    raise ValueError(f'task_names has {twice!r} twice')
  return tuple(names)


def _parse_texts(value: Any) -> dict[str, TaskText]:
  """Reads what a bundle says of its tasks' texts."""
  if not isinstance(value, dict) or not value:
    raise ValueError(f'texts is {value!r}, expected templates by task')
  found = {}
  for task, text in value.items():
    try:
      found[task] = TaskText.parse(text)
    except ValueError as e:
      raise ValueError(f'texts of {task!r}: {e}') from e
  return found


def _check_texts(
  texts: Mapping[str, TaskText], task_names: Sequence[str]
) -> dict[str, TaskText]:
  """Returns the texts in the order of the tasks."""
  for task, text in texts.items():
    if task not in task_names:
      raise ValueError(f'texts has {task!r}, which is not among the tasks')
    if not isinstance(text, TaskText):
      raise ValueError(f'texts of {task!r} is {text!r}, expected a TaskText')
  return {task: texts[task] for task in task_names if task in texts}


def _plain_metrics(metrics: Any, depth: int = 1) -> dict[str, Any]:
  """Returns the metrics as JSON can hold them."""
  if not isinstance(metrics, Mapping) or depth > _METRICS_DEPTH:
    raise ValueError('metrics must be numbers by name, or by task and name')
  plain: dict[str, Any] = {}
  for name, value in metrics.items():
    if not isinstance(name, str):
      raise ValueError(f'metrics has the name {name!r}, expected text')
    if isinstance(value, Mapping):
      plain[name] = _plain_metrics(value, depth + 1)
    elif value is None or isinstance(value, bool | int):
      plain[name] = value
    elif np.ndim(value) == 0 and np.asarray(value).dtype.kind in 'fiub':
      number = np.asarray(value).item()
      plain[name] = number if math.isfinite(number) else None
    else:
      raise ValueError(f'metrics[{name!r}] is {value!r}, expected a number')
  return plain
