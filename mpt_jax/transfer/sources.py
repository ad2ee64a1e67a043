"""Prompts as transfer sees them: [P, D], where from, and what stands beside.

All that transfer compares, scores or moves is a list of these, each with a
name of its own: rows of a matrix, points of a plot.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import functools
import hashlib
import os
from typing import Any

import numpy as np

from mpt_jax.checkpoints import bundle as bundle_lib
from mpt_jax.checkpoints.bundle import PromptBundle
from mpt_jax.engine import selection
from mpt_jax.transfer import shelf
from mpt_jax.types import InputError

# What a prompt is. A value is the finished one, a key an early one by which
# tasks are compared.
VALUE, KEY = shelf.VALUE, shelf.KEY
SHARED, RANDOM, ZERO = 'shared', 'random', 'zero'
PROJECTED, COMPOSED = 'projected', 'composed'
_SHARED = 'shared_prompt'

Given = str | PromptBundle | Sequence[Any] | Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class SourcePrompt:
  """One prompt to use where it was not learned.

  Attributes:
    name: what tables and plots call it.
    array: [P, D] float32.
    task: what it was learned on; '' for nothing, or several tasks.
    kind: 'value', 'key', 'shared' (MPT's P*), 'composed' (of P* and a task's
      factors), 'random', 'zero' or 'projected'.
    run: which of several runs of the task, a seed or a name; '' for the only.
    step: training steps behind it.
    score: its own score on its own task in percent, if known.
    start: [P, D], what its run began with, if known.
    backbone_name: of which backbone it is; '' if not known.
    backbone_fingerprint: digest of that; '' if not known.
    vocabulary_digest: digest of its vocabulary; '' if not known.
  """

  name: str
  array: np.ndarray = dataclasses.field(repr=False)
  task: str = ''
  kind: str = VALUE
  run: str = ''
  step: int = 0
  score: float | None = None
  start: np.ndarray | None = dataclasses.field(default=None, repr=False)
  backbone_name: str = ''
  backbone_fingerprint: str = ''
  vocabulary_digest: str = ''

  def __post_init__(self):
    array = np.ascontiguousarray(self.array, np.float32)
    if array.ndim != 2 or not array.size or not np.isfinite(array).all():
      raise InputError(
        f'the prompt {self.name!r} has the shape {array.shape}: expected'
        ' [P, D], all finite'
      )
    object.__setattr__(self, 'array', array)

  @functools.cached_property
  def digest(self) -> str:
    """Of shape and numbers; equal prompts have equal ones."""
    content = repr(self.array.shape).encode() + self.array.tobytes()
    return f'sha256:{hashlib.sha256(content).hexdigest()}'

  def renamed(self, name: str) -> 'SourcePrompt':
    """Returns the same under another name."""
    return dataclasses.replace(self, name=name)


def of_bundle(bundle: PromptBundle, kind: str = VALUE) -> list[SourcePrompt]:
  """Returns the composed prompts of a bundle's tasks, in their order.

  Args:
    bundle: of a method that has a prompt matrix.
    kind: what they are.

  Raises:
    InputError: if there is no such matrix.
  """
  scores = bundle.metrics
  return [
    SourcePrompt(
      name=task,
      array=array,
      task=task,
      kind=kind,
      step=bundle.step,
      score=main_score(scores.get(task)),
      backbone_name=bundle.backbone_name,
      backbone_fingerprint=bundle.backbone_fingerprint,
      vocabulary_digest=bundle.vocabulary_digest,
    )
    for task, array in zip(bundle.task_names, bundle.table, strict=True)
  ]


def of_library(items: Iterable[shelf.Item]) -> list[SourcePrompt]:
  """Returns the prompts of what was read of a library."""
  found = []
  for item in items:
    [prompt] = of_bundle(item.bundle, item.place.kind)
    found.append(
      dataclasses.replace(
        prompt,
        name=item.name,
        run=item.place.run,
        start=None if item.start is None else item.start.table[0],
      )
    )
  return found


def shared_of(bundle: PromptBundle, name: str = 'P*') -> SourcePrompt:
  """Returns P* of an MPT bundle.

  Raises:
    InputError: if the bundle is of another method.
  """
  if _SHARED not in bundle.arrays:
    raise InputError(
      f'a bundle of method {bundle.method!r} has no {_SHARED}: that of a source'
      ' run of MPT has'
    )
  [first, *_] = of_bundle(bundle)
  return dataclasses.replace(
    first,
    name=name,
    array=bundle.arrays[_SHARED],
    task='',
    kind=SHARED,
    score=None,
  )


def random_prompt(
  shape: tuple[int, int], seed: int = 0, name: str = 'random'
) -> SourcePrompt:
  """Returns a prompt uniform in [0, 1), as the paper's code draws its control.

  Args:
    shape: (P, D).
    seed: of the draw.
    name: its name.
  """
  drawn = np.random.default_rng(seed).random(shape, np.float32)
  return SourcePrompt(name, drawn, kind=RANDOM, run=str(seed))


def zero_prompt(shape: tuple[int, int], name: str = 'zero') -> SourcePrompt:
  """Returns a prompt of zeros [P, D]."""
  return SourcePrompt(name, np.zeros(shape, np.float32), kind=ZERO)


def read(given: Given, backbone: Any = None) -> list[SourcePrompt]:
  """Reads prompts to transfer.

  Args:
    given: a bundle, a library (its values), whatever `load_prompts` reads, a
      list of these, or {name: one of these}, whose names stand before those of
      several tasks ('mpt/rte').
    backbone: they must be of this one; None does not check.

  Returns:
    The prompts, each with a name of its own: of equal ones the later get a
    number ('rte', 'rte 2').

  Raises:
    InputError: if one is missing or damaged, has no prompt matrix, or is of
      another backbone.
  """
  found: dict[str, SourcePrompt] = {}
  for prompt in _read(given, backbone):
    number, free = 2, prompt.name
    while free in found:
      number, free = number + 1, f'{prompt.name} {number}'
    found[free] = prompt.renamed(free)
  if not found:
    raise InputError('there are no prompts to transfer')
  return list(found.values())


def _read(given: Given, backbone: Any) -> list[SourcePrompt]:
  if isinstance(given, SourcePrompt):
    return [given]
  if isinstance(given, Mapping):
    named = []
    for name, value in given.items():
      inner = _read(value, backbone)
      several = len(inner) > 1
      named += [
        p.renamed(f'{name}/{p.name}' if several else name) for p in inner
      ]
    return named
  where = ''
  if isinstance(given, str | os.PathLike):
    path = os.fspath(given)
    where = f'{path}: '
    if shelf.is_library(path):
      return of_library(shelf.read(path, VALUE, backbone=backbone))
    given = bundle_lib.load_prompts(path)
  if isinstance(given, PromptBundle):
    where = where or f'prompts of {", ".join(given.task_names)}: '
    if backbone is not None:
      try:
        bundle_lib.check_backbone(given, backbone)
      except InputError as e:
        raise InputError(f'{where}{e}') from e
    return of_bundle(given)
  return [prompt for one in given for prompt in _read(one, backbone)]


def main_score(metrics: Any) -> float | None:
  """Returns a task's main score of those in a bundle; None if it has none."""
  return named_score(metrics)[1]


def named_score(metrics: Any) -> tuple[str, float | None]:
  """Returns (name, value) of a task's main score in a bundle.

  Args:
    metrics: the task's.

  Returns:
    ('', None) if it has none; a value that is not defined is None.
  """
  if not isinstance(metrics, Mapping) or not metrics:
    return '', None
  name = selection.main_metric(metrics)
  return name, metrics[name]


def table_of(prompts: Iterable[SourcePrompt]) -> np.ndarray:
  """Returns the prompts [K, P, D] float32 as one array.

  Raises:
    InputError: if they are of different shapes.
  """
  arrays = {prompt.name: prompt.array for prompt in prompts}
  shapes = {array.shape for array in arrays.values()}
  if len(shapes) > 1:
    (first, a), (other, b) = _two_different(arrays)
    raise InputError(
      f'the prompts {first!r} {a.shape} and {other!r} {b.shape} are of'
      ' different shapes'
    )
  return np.stack(list(arrays.values()))


def _two_different(arrays: Mapping[str, np.ndarray]):
  items = list(arrays.items())
  other = next(item for item in items if item[1].shape != items[0][1].shape)
  return items[0], other
