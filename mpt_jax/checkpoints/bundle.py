"""Bundles: what a run has learned, its product, and what users share.

A bundle is a folder with `prompts.safetensors` (a method's arrays by name,
float32) and `prompt_config.json`, which says by which method and for which
tasks and backbone they were learned, and how they came about; in format
version 2 also how the text of each task is written (`texts.TaskText`), and the
settings and shapes of a method that enters the network. Its `README.md` tells
the same to people; nothing reads it, and no digest covers it.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
import logging
import math
import os
import re
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

import mpt_jax
from mpt_jax import methods
from mpt_jax.checkpoints import adapterhub, card, files, peft, stores
from mpt_jax.checkpoints.texts import TaskText
from mpt_jax.engine import params as params_lib
from mpt_jax.types import (
  InputError,
  check_shape,
  nearest,
)

if TYPE_CHECKING:
  from mpt_jax.checkpoints.backbone import Backbone

log = logging.getLogger(__name__)

CONFIG = 'prompt_config.json'
TENSORS = 'prompts.safetensors'
# Version 2 is version 1 and `texts`; a bundle without them is of version 1.
FORMAT_VERSION = 2
# The stages of a run, and prompts that come from another program.
STAGES = ('teacher', 'source', 'target', 'imported')

# A name becomes a file name on export, so it must not lead elsewhere.
_TASK_NAME = re.compile(r'\w[\w.:-]*')

# Numbers by split, task and name at most.
_METRICS_DEPTH = 3


@dataclasses.dataclass(frozen=True, eq=False)
class PromptBundle:
  """What a method has learned for K tasks, and where it comes from.

  Attributes:
    method: the name of the method, see `mpt_jax.methods`.
    stage: 'teacher', 'source' or 'target', or 'imported'.
    task_names: the K tasks, in the order of the rows.
    arrays: the method's arrays by name, float32: `shared_prompt` [P, D],
      `task_u` [K, P, R] and `task_v` [K, R, D], or `prompt` [P, D], or those
      of modules of the backbone, 'encoder/layers_0/mlp/…'. Nested, they are
      the method's branch of the model's parameters.
    backbone_name: what the backbone is called; '' when not known.
    backbone_fingerprint: digest of the backbone; '' when not known.
    vocabulary_digest: digest of the SentencePiece file; '' when not known.
    step: training steps taken.
    metrics: scores of these prompts: numbers, or numbers by task. One that is
      not finite becomes None.
    package_version: the mpt_jax that wrote them.
    texts: task -> how its text is written, where that is known.
    settings: the method's own, where its arrays do not show them.
    family: of the backbone, see `backbones.kind_of`; '' is T5 or not known.
    origin: of prompts that were made of others, by name what they were made
      of: 'source_backbone', 'source_fingerprint', 'source_prompts' and
      'projector', the last two digests.

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
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  origin: Mapping[str, str] = dataclasses.field(default_factory=dict)
  family: str = ''

  def __post_init__(self):
    kind = _kind(self.method)
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
      'family',
    ):
      if not isinstance(getattr(self, field), str):
        raise ValueError(f'{field} is {getattr(self, field)!r}, expected text')
    if not isinstance(self.step, int | np.integer) or self.step < 0:
      raise ValueError(f'step is {self.step!r}, expected a number from 0')
    put('step', int(self.step))

    wanted = set(kind.arrays or arrays)
    if set(arrays) != wanted or not arrays:
      raise ValueError(
        f'a {self.method} bundle has the arrays {sorted(wanted)}, got'
        f' {sorted(arrays)}'
      )
    shapes = {name: array.shape for name, array in arrays.items()}
    if _has_prompts(kind):
      check_shape('the prompt', self._anchor, (None, None))
      shapes = _shapes(kind, len(self.task_names), *self._sizes)
    for name, array in arrays.items():
      check_shape(name, array, shapes[name])
      if array.size == 0:
        raise ValueError(f'{name} is empty: its shape is {array.shape}')
      if not np.isfinite(array).all():
        raise ValueError(f'{name} holds NaN or infinity')
    put('settings', _plain_settings(self.settings))
    put('origin', _check_origin(self.origin))
    learner = self.learner  # It checks the settings.
    if kind.branch == methods.PROMPTS and not _has_prompts(kind):
      difference = self._difference(learner, methods.Width(self.emb_dim))
      if difference:
        raise ValueError(f'by its settings, {self.method} has {difference}')
    if not kind.no_matrix:
      with np.errstate(over='ignore', invalid='ignore'):
        if not np.isfinite(self.table).all():
          raise ValueError('the arrays make a prompt with NaN or infinity')

  def __repr__(self) -> str:
    """One line: whose, by which method, of what size, from where."""
    size = ' x '.join(map(str, self._sizes[:2]))
    if not self.prompt_length:
      size = f'{sum(a.size for a in self.arrays.values()):,} parameters'
    tasks = ', '.join(self.task_names)
    backbone = self.backbone_name or 'an unnamed backbone'
    return (
      f'PromptBundle({self.method}, {size}, tasks: {tasks}, {self.stage} of'
      f' {backbone}, step {self.step})'
    )

  @property
  def learner(self) -> methods.Method:
    """The method with its settings."""
    kind = _kind(self.method)
    if _has_prompts(kind):
      return kind.sized(self.prompt_length, self.rank)
    try:
      return kind(**self.settings)
    except (TypeError, InputError) as e:
      raise ValueError(f'settings of method {self.method!r}: {e}') from e

  @property
  def params(self) -> dict[str, Any]:
    """{branch: arrays, nested}: what a model's parameters have more."""
    return {str(self.learner.branch): params_lib.unflatten(self.arrays)}

  @property
  def per_task(self) -> bool:
    """Whether each task has parameters of its own."""
    kind = _kind(self.method)
    if _has_prompts(kind):
      return kind.per_task
    return any(array.shape[0] > 1 for array in self.arrays.values())

  @property
  def prompt_length(self) -> int:
    """P, the number of prompt vectors; 0 without prompts."""
    return self._sizes[0]

  @property
  def emb_dim(self) -> int:
    """D, the width of the backbone; 0 without prompts."""
    return self._sizes[1]

  @property
  def rank(self) -> int:
    """R, the rank of the task factors; 0 without."""
    return self._sizes[2]

  @property
  def table(self) -> np.ndarray:
    """[K, P, D] float32, the composed prompt of every task.

    Raises:
      InputError: if the method has no prompts.
    """
    kind, tasks = _kind(self.method), len(self.task_names)
    if kind.no_matrix:
      raise InputError(
        f'a bundle of method {self.method!r} has no prompt matrix:'
        f' {kind.no_matrix}'
      )
    if _has_prompts(kind):
      return kind.compose(self.arrays, tasks)
    return np.asarray(self.learner.prompt_table(self.arrays, tasks))

  @property
  def _anchor(self) -> np.ndarray:
    return self.arrays[_kind(self.method).arrays[0]]

  @property
  def _sizes(self) -> tuple[int, int, int]:
    """(P, D, R)."""
    kind = _kind(self.method)
    if kind.branch != methods.PROMPTS:
      return 0, 0, 0
    if not _has_prompts(kind):
      return *self.learner.size_of(self.arrays), 0
    length, width = self._anchor.shape[-2:]
    return length, width, kind.rank_of(self.arrays)

  def _difference(self, learner: methods.Method, config: Any) -> str:
    """What of the arrays is not as the method has it on such a backbone."""
    found = {name: array.shape for name, array in self.arrays.items()}
    tasks = len(self.task_names)
    wanted = learner.shapes(config, tasks)
    if not _has_prompts(type(learner)):
      # Shared by the tasks of a run, each has its own where runs were joined.
      for name in wanted.keys() & found.keys():
        if found[name][:1] in ((1,), (tasks,)):
          wanted[name] = found[name][:1] + wanted[name][1:]
    for name in sorted(found.keys() | wanted.keys()):
      if found.get(name) != wanted.get(name):
        return (
          f'{name} {wanted.get(name, "not at all")}, but the bundle'
          f' {found.get(name, "not at all")}'
        )
    return ''

  def row(self, task: str | None = None) -> int:
    """Returns the task's row in the table; None will do for one prompt.

    Raises:
      InputError: if the bundle has no such task; near names are offered.
    """
    if task is None:
      if self.per_task and len(self.task_names) > 1:
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
    arrays = self.learner.select(self.arrays, rows)
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

  @property
  def digest(self) -> str:
    """Of all that `save` writes."""
    return json.loads(self._stored()[CONFIG])[_DIGEST]

  def save(self, path: str, made: card.Made = card.UNKNOWN) -> None:
    """Writes the bundle; a bundle that is there already is replaced.

    Args:
      path: the folder.
      made: how it came about, for its card.

    Raises:
      InputError: if the folder cannot be written, or holds other files.
    """
    told = {files.README: card.of_bundle(self, made=made)}
    files.write_folder(path, {**self._stored(path), **told})

  def _stored(self, path: str = 'the bundle') -> dict[str, bytes]:
    """Returns the bundle's files as its reader takes them."""
    contents = self._contents(self.texts)
    if len(contents[CONFIG]) > files.MAX_JSON_BYTES and self.texts:
      log.warning(
        "%s does not hold how its tasks' text is written: templates and label"
        ' words have more than %d bytes',
        path,
        files.MAX_JSON_BYTES,
      )
      contents = self._contents({})
    return contents

  def _contents(self, texts: Mapping[str, TaskText]) -> dict[str, bytes]:
    """Returns the bundle's files."""
    stored = not _has_prompts(_kind(self.method))
    config = {
      'format_version': (
        2 if texts or stored or self.origin or self.family else 1
      ),
      'prompt_length': self.prompt_length,
      'emb_dim': self.emb_dim,
      'rank': self.rank,
    } | {name: getattr(self, name) for name in _STORED_FIELDS}
    if stored:
      config[_SETTINGS] = dict(self.settings)
      config[_SHAPES] = {k: list(v.shape) for k, v in self.arrays.items()}
    if self.origin:
      config[_ORIGIN] = dict(self.origin)
    if self.family:
      config[_FAMILY] = self.family
    if texts:
      config[_TEXTS] = {k: v.as_json() for k, v in texts.items()}
    tensors = files.tensor_bytes(self.arrays, {'format': 'np'})
    config[_DIGEST] = _digest(config, tensors)
    return {CONFIG: files.json_bytes(config), TENSORS: tensors}

  def check_format(self, name: str) -> None:
    """Checks that the method can be written in a format of `mpt_jax.export`.

    Raises:
      InputError: if that cannot hold it.
    """
    kind = _kind(self.method)
    if name not in kind.formats:
      reason = f' ({kind.no_matrix})' if kind.no_matrix else ''
      raise InputError(
        f'FORMAT = {name!r} cannot hold what method {self.method!r} learns'
        f'{reason}; it can be written as {", ".join(kind.formats)}'
      )
    if self.family and name in ('peft', 'peft_composed', 'adapterhub'):
      raise InputError(
        f'FORMAT = {name!r}: the prompts are of a {self.family} that fills in'
        " masks, which no adapter of the field's programs is for: write 'npy',"
        " 'merged' or 'bundle'"
      )

  def to_peft(
    self,
    path: str,
    task: str | None = None,
    made: card.Made = card.UNKNOWN,
  ) -> None:
    """Writes a PEFT adapter folder.

    Args:
      path: the folder.
      task: of a method in the network, whose set to write; else write this
        task's composed prompt as PROMPT_TUNING. Without it, a multitask bundle
        becomes MULTITASK_PROMPT_TUNING with all its tasks.
      made: how it came about: its card, and what PEFT calls its base model.

    Raises:
      InputError: if the task is unknown or left open, or the folder cannot be
        written.
    """
    kind = _kind(self.method)
    composed = task is not None and not kind.no_matrix
    self.check_format('peft_composed' if composed else 'peft')
    learner, arrays, tasks = self.learner, self.arrays, self.task_names
    if kind.no_matrix:
      arrays, tasks = self.one(task)
    elif task is not None:
      arrays, tasks = {'prompt': self.compose(task)}, (task,)
      learner = methods.holding(set(arrays)).sized(self.prompt_length, 0)
    base, revision = made.origin
    peft.write_adapter(
      path,
      learner,
      arrays,
      tasks,
      base or self.backbone_name,
      revision,
      card.of_bundle(self, 'peft', task and tasks, made),
    )

  def to_adapterhub(
    self,
    path: str,
    task: str | None = None,
    made: card.Made = card.UNKNOWN,
  ) -> None:
    """Writes an adapter folder of AdapterHub's `adapters`.

    Args:
      path: the folder.
      task: whose adapter; may be left out where there is one.
      made: how it came about: its card, and what its base model is called.

    Raises:
      InputError: if the task is unknown or left open, AdapterHub cannot have
        such an adapter, or the folder cannot be written.
    """
    self.check_format('adapterhub')
    learner = self.learner
    assert isinstance(learner, adapterhub.Adapter)
    arrays, tasks = self.one(task)
    adapterhub.write_adapter(
      path,
      learner,
      arrays,
      tasks,
      made.origin[0] or self.backbone_name,
      card.of_bundle(self, 'adapterhub', tasks, made),
    )

  def to_merged(
    self,
    path: str,
    backbone: 'Backbone',
    task: str | None = None,
    made: card.Made = card.UNKNOWN,
  ) -> None:
    """Writes the backbone with what was learned in its own matrices.

    Args:
      path: the folder, as transformers has it.
      backbone: the backbone.
      task: whose set; may be left out where there is one.
      made: how it came about, for its card.

    Raises:
      InputError: if the method has no such form, the task is unknown or left
        open, the backbone is another one, or the folder cannot be written.
    """
    self.check_format('merged')
    check_backbone(self, backbone)
    arrays, tasks = self.one(task)
    learner = self.learner
    assert isinstance(learner, methods.Delta)
    flat = params_lib.flatten(backbone.params)
    merged = learner.merged(flat, {n: a[0] for n, a in arrays.items()})
    told = card.of_bundle(self, 'backbone', tasks, made)
    backbone.save(path, params_lib.unflatten(merged), told)

  def parts(self, path: str) -> list[tuple[str, str | None]]:
    """Returns the folders of a format that holds one set, and whose it is.

    Args:
      path: the folder, or that of the folders where there are several sets.
    """
    several = not self.prompt_length and self.per_task
    if not several or len(self.task_names) == 1:
      return [(path, None)]
    return [(os.path.join(path, task), task) for task in self.task_names]

  def one(
    self, task: str | None = None
  ) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Returns a task's arrays inside the network, and the tasks they are of.

    Args:
      task: its name; may be left out where there is one set.

    Raises:
      InputError: if there are several and none is named, or the task is
        unknown.
    """
    row = self.row(task)
    tasks = self.task_names if task is None else (task,)
    return self.learner.select(self.arrays, [row]), tasks

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
    self.check_format('npy')
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
_SETTINGS, _SHAPES = 'settings', 'shapes'
_ORIGIN, _FAMILY = 'origin', 'family'
_STORED_FIELDS = tuple(
  f.name
  for f in dataclasses.fields(PromptBundle)
  if f.name not in ('arrays', _TEXTS, _SETTINGS, _ORIGIN, _FAMILY)
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
  if not _has_prompts(_kind(first.method)):
    _check_same('method', bundles)
    _check_same('settings', bundles)
  for field in (
    'prompt_length',
    'emb_dim',
    'backbone_fingerprint',
    'vocabulary_digest',
    'family',
  ):
    _check_same(field, bundles)
  known_first = max(
    bundles, key=lambda bundle: bool(bundle.backbone_fingerprint)
  )
  try:
    method, arrays = _join(bundles)
    return dataclasses.replace(
      known_first,
      method=method,
      stage=first.stage,
      task_names=tuple(n for b in bundles for n in b.task_names),
      arrays=arrays,
      vocabulary_digest=max(b.vocabulary_digest for b in bundles),
      step=max(b.step for b in bundles),
      metrics={k: v for b in bundles for k, v in b.metrics.items()},
      texts={k: v for b in bundles for k, v in b.texts.items()},
      origin=_common_origin(bundles),
    )
  except ValueError as e:
    raise InputError(str(e)) from e


def _common_origin(bundles: Sequence[PromptBundle]) -> dict[str, str]:
  """What bundles were made of, as far as that is the same."""
  first, *others = (bundle.origin for bundle in bundles)
  return {
    name: text
    for name, text in first.items()
    if all(other.get(name) == text for other in others)
  }


def _check_same(field: str, bundles: Sequence[PromptBundle]) -> None:
  values = [getattr(bundle, field) for bundle in bundles]
  known = sorted({str(v) for v in values if v != ''})
  if len(known) > 1:
    raise InputError(
      f'prompts of different {field} cannot be merged: {", ".join(known)}'
    )


def _join(bundles: Sequence[PromptBundle]) -> tuple[str, dict[str, np.ndarray]]:
  """The method of bundles together, and its arrays for the tasks of all."""
  first = bundles[0]
  if _has_prompts(_kind(first.method)):
    arrays = [bundle.arrays for bundle in bundles]
    tables = [bundle.table for bundle in bundles]
    joined = methods.join_prompts(arrays, tables)
    return methods.MultitaskPrompts.name, joined
  joined = {}
  for name, array in first.arrays.items():
    parts = [bundle.arrays[name] for bundle in bundles]
    if len(array) == 1 and all(np.array_equal(array, part) for part in parts):
      joined[name] = array  # What none has changed, all share.
      continue
    counts = [len(bundle.task_names) for bundle in bundles]
    joined[name] = np.concatenate(
      [
        np.broadcast_to(part, (count, *part.shape[1:]))
        for count, part in zip(counts, parts, strict=True)
      ]
    )
  return first.method, joined


def load_several(paths: Sequence[str]) -> PromptBundle:
  """Loads prompts, as `load_prompts`, and puts their tasks together.

  Args:
    paths: one or more; a `.npy` file's task is called by the file's name.

  Returns:
    The bundle; its tasks are in the order given.

  Raises:
    InputError: as `load_prompts` and `merge`.
  """
  found = []
  for path in paths:
    names = None
    if path.endswith('.npy'):
      names = [os.path.basename(path).removesuffix('.npy')]
    found.append(load_prompts(path, names))
  return merge(found)


def load_prompts(
  path: str, task_names: Sequence[str] | None = None
) -> PromptBundle:
  """Loads prompts from a bundle, an adapter or a `.npy` file.

  Args:
    path: here or in a bucket: a folder that `PromptBundle.save`, PEFT or
      AdapterHub's `adapters` wrote, or a file with one [P, D] prompt (Google's
      prompt-tuning writes it without a suffix).
    task_names: the tasks of an adapter or `.npy` file, which has only numbers
      for them; default `task_0`, `task_1` and so on. Not for a bundle.

  Returns:
    The prompts.

  Raises:
    InputError: if nothing of the kind is there, or it is damaged.
  """
  with stores.reading(stores.place(path)) as here:
    return _load_prompts(here, task_names)


def _load_prompts(path: str, task_names: Sequence[str] | None) -> PromptBundle:
  """Loads prompts from this machine."""
  if os.path.isdir(path):
    if os.path.lexists(os.path.join(path, CONFIG)):
      if task_names is not None:
        raise InputError(
          f'{path} is a bundle and names its tasks itself; load it without'
          ' task_names'
        )
      return _load_bundle(path)
    if adapterhub.is_adapter(path):
      return _imported(path, adapterhub.read_adapter(path), task_names)
    if os.path.lexists(os.path.join(path, peft.CONFIG)):
      return _imported(path, peft.read_adapter(path), task_names)
    raise InputError(
      f'{path} holds no prompts: neither {CONFIG} (a bundle) nor'
      f' {peft.CONFIG} (an adapter of PEFT or AdapterHub)'
    )
  if not os.path.lexists(path):
    raise InputError(
      f'no prompts at {path}; give a bundle folder, a PEFT adapter folder or'
      ' a .npy file'
    )
  if path.endswith('.safetensors'):
    raise InputError(f'{path} is a part of a folder; give the folder')
  arrays = {'prompt': files.read_npy(path)}
  try:
    method = methods.holding(set(arrays)).sized(len(arrays['prompt']), 0)
  except InputError as e:
    raise InputError(f'{path}: {e}') from e
  return _imported(path, peft.Imported(method, arrays), task_names)


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
  if bundle.prompt_length and bundle.emb_dim != backbone.config.emb_dim:
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
  if difference := bundle._difference(bundle.learner, backbone.config):
    raise InputError(
      f'{bundle.method} on the backbone {backbone.name} has {difference}'
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
  try:
    known, optional = _known_keys(config, version)
  except ValueError as e:
    raise InputError(f'{config_path}: {e}') from e
  for key in known:
    if key not in config and key not in optional:
      raise InputError(
        f'{config_path} lacks the key {key!r} of format_version {version}'
      )
  for key in config:
    if key not in known:
      raise InputError(
        f'{config_path} has an unknown key {key!r}{nearest(key, known)}'
      )
  try:
    shapes = _stored_shapes(config)
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
    names = _SETTINGS, _ORIGIN, _FAMILY
    more = {name: config[name] for name in names if name in config}
    return PromptBundle(arrays=arrays, texts=texts, **more, **stored)
  except ValueError as e:
    raise InputError(f'{config_path}: {e}') from e


_SIZES = 'prompt_length', 'emb_dim', 'rank'
_MORE = _TEXTS, _ORIGIN, _FAMILY


def _known_keys(
  config: Mapping[str, Any], version: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """The keys of a stored bundle, and which of them it need not have."""
  known: tuple[str, ...] = ('format_version', _DIGEST, *_SIZES, *_STORED_FIELDS)
  if version == 1:
    return known, ()
  if 'method' in config and not _has_prompts(_kind(config['method'])):
    known = (*known, _SETTINGS, _SHAPES)
    return (*known, *_MORE), _MORE
  # One of them makes it version 2.
  there = [name for name in _MORE if name in config]
  needed = there[0] if there else _TEXTS
  return (*known, *_MORE), tuple(name for name in _MORE if name != needed)


def _stored_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
  """What a bundle says of the shapes of its arrays.

  Raises:
    ValueError: if it says nothing that can be.
  """
  kind = _kind(config['method'])
  tasks = len(_check_task_names(config['task_names']))
  if not _has_prompts(kind):
    shapes = config.get(_SHAPES)
    if not isinstance(shapes, dict) or not all(
      isinstance(shape, list) and all(type(n) is int and n > 0 for n in shape)
      for shape in shapes.values()
    ):
      raise ValueError(f'shapes is {shapes!r}, expected sizes by name')
    if not isinstance(config.get(_SETTINGS), dict):
      raise ValueError(f'settings is {config.get(_SETTINGS)!r}')
    return {name: tuple(shape) for name, shape in shapes.items()}
  for key in _SIZES:
    least = 0 if key == 'rank' else 1
    if type(config[key]) is not int or config[key] < least:
      raise ValueError(f'{key} is {config[key]!r}, expected a positive number')
  return _shapes(kind, tasks, *(config[key] for key in _SIZES))


def _imported(
  path: str, adapter: peft.Imported, task_names: Sequence[str] | None
) -> PromptBundle:
  """Makes a bundle of what another program wrote."""
  method, arrays = adapter.method, adapter.arrays
  # Only a method with something per task knows how many there are.
  rows = None
  if isinstance(method, methods.PromptMethod) and method.per_task:
    rows = method.num_tasks(arrays)
  task_names = task_names or adapter.task_names
  if task_names is None:
    task_names = [f'task_{k}' for k in range(rows or 1)]
  if rows is not None and len(task_names) != rows:
    raise InputError(
      f'{path} has {rows} tasks, but {len(task_names)} names were given:'
      f' {", ".join(task_names)}'
    )
  try:
    return PromptBundle(
      method=method.name,
      stage='imported',
      task_names=tuple(task_names),
      arrays=arrays,
      backbone_name=adapter.base,
      settings=method.settings,
    )
  except ValueError as e:
    raise InputError(f'{path}: {e}') from e


def _digest(config: Mapping[str, Any], tensors: bytes) -> str:
  """Returns the digest of a bundle's content, of which no bit may change."""
  text = {k: v for k, v in config.items() if k != _DIGEST}
  content = files.json_bytes(text) + tensors
  return f'sha256:{hashlib.sha256(content).hexdigest()}'


def _kind(name: Any) -> type[methods.Method]:
  """The class of a bundle's method; ValueError if it can have no bundle."""
  try:
    kind = methods.get(name)
  except (InputError, TypeError) as e:
    raise ValueError(str(e)) from e
  if kind.branch is None:
    raise ValueError(f'method {name!r} has no bundle: it trains the backbone')
  return kind


def _has_prompts(
  kind: type[methods.Method],
) -> TypeGuard[type[methods.PromptMethod]]:
  return issubclass(kind, methods.PromptMethod)


def _shapes(
  kind: type[methods.Method], tasks: int, length: int, width: int, rank: int
) -> dict[str, tuple[int, ...]]:
  """The arrays of a method of prompts and their shapes."""
  assert _has_prompts(kind)
  return kind.sized(length, rank).shapes(methods.Width(width), tasks)


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


def _check_origin(origin: Any) -> dict[str, str]:
  """Returns what prompts were made of."""
  if not isinstance(origin, Mapping) or not all(
    isinstance(text, str) for text in (*origin, *origin.values())
  ):
    raise ValueError(f'origin is {origin!r}, expected texts by name')
  return dict(origin)


def _plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a method's settings as its fields hold them, not as JSON does."""

  def plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
      return tuple(plain(v) for v in value)
    return value

  return {name: plain(value) for name, value in settings.items()}


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
