"""Methods: what is learned for a frozen backbone, a file each.

A method of your own is a subclass of `PromptMethod` or `Delta`, made known by
`register`: training, bundles, evaluation and export then find it by its name.
"""

import dataclasses
from typing import Any, TypeVar

from mpt_jax.methods.adapter import Adapter
from mpt_jax.methods.attempt import Attempt
from mpt_jax.methods.base import (
  DELTA,
  NEAREST,
  PROMPTS,
  Delta,
  Inputs,
  Method,
  PromptMethod,
  PromptsByExample,
  Start,
  Width,
  by_rows,
  learned,
  multiply,
  of_rows,
)
from mpt_jax.methods.bitfit import BitFit
from mpt_jax.methods.deep import DeepPrompts
from mpt_jax.methods.full import FullFinetuning
from mpt_jax.methods.ia3 import IA3
from mpt_jax.methods.initializers import (
  WORDS,
  ClassLabels,
  FromArray,
  FromFile,
  FromString,
  PromptInit,
  SampledVocabulary,
  Uniform,
)
from mpt_jax.methods.lora import LoRA
from mpt_jax.methods.multitask import (
  MultitaskPrompts,
  compose_task_prompts,
  join_prompts,
)
from mpt_jax.methods.prefix import Prefix
from mpt_jax.methods.projector import Projector
from mpt_jax.methods.soft import SoftPrompts
from mpt_jax.types import InputError, Positive, nearest

__all__ = [
  'DELTA',
  'IA3',
  'NEAREST',
  'PROMPTS',
  'Adapter',
  'Attempt',
  'BitFit',
  'ClassLabels',
  'DeepPrompts',
  'Delta',
  'FromArray',
  'FromFile',
  'FromString',
  'FullFinetuning',
  'Inputs',
  'LoRA',
  'Method',
  'MultitaskPrompts',
  'Prefix',
  'Projector',
  'PromptInit',
  'PromptMethod',
  'PromptsByExample',
  'SampledVocabulary',
  'SoftPrompts',
  'Start',
  'Uniform',
  'Width',
  'by_rows',
  'compose_task_prompts',
  'get',
  'holding',
  'join_prompts',
  'known',
  'learned',
  'multiply',
  'names',
  'of_rows',
  'prompt_method',
  'register',
]

_M = TypeVar('_M', bound=type[Method])
_REGISTRY: dict[str, type[Method]] = {}


def register(method: _M) -> _M:
  """Makes a method known by its name; usable as a decorator.

  Args:
    method: a subclass of `Method`. One of the same name is replaced, so that
      a notebook's cell can be run again.

  Returns:
    The class.
  """
  _REGISTRY[method.name] = method
  return method


for _method in (
  MultitaskPrompts,
  SoftPrompts,
  Attempt,
  FullFinetuning,
  Adapter,
  BitFit,
  LoRA,
  IA3,
  Prefix,
  DeepPrompts,
  Projector,
):
  register(_method)


def names() -> tuple[str, ...]:
  """The names of all methods."""
  return tuple(_REGISTRY)


def known() -> tuple[type[Method], ...]:
  """All methods."""
  return tuple(_REGISTRY.values())


def get(name: str) -> type[Method]:
  """Returns the method of a name.

  Raises:
    InputError: if there is none; near names are offered.
  """
  if name not in _REGISTRY:
    raise InputError(
      f'method is {name!r}, expected one of {", ".join(names())}'
      f'{nearest(str(name), names())}; one of your own is known where the'
      ' module that registers it is imported'
    )
  return _REGISTRY[name]


def holding(arrays: set[str]) -> type[PromptMethod]:
  """Returns the prompt method whose arrays have these names.

  Raises:
    InputError: if there is none.
  """
  for method in known():
    if issubclass(method, PromptMethod) and arrays == set(method.arrays):
      return method
  raise InputError(f'no method has the arrays {", ".join(sorted(arrays))}')


def prompt_method(
  name: str = MultitaskPrompts.name,
  length: Positive = 100,
  rank: Positive = 1,
  init: PromptInit = WORDS,
  start: str | None = None,
) -> Method:
  """The prompt method that a gin file names; what it does not have is left.

  Args:
    name: PROMPT_METHOD.
    length: PROMPT_LENGTH.
    rank: PROMPT_RANK.
    init: PROMPT_INIT.
    start: START; None is the method's own.

  Returns:
    The method.

  Raises:
    InputError: if there is no such prompt method, or a size is wrong.
  """
  method = get(name)
  if not issubclass(method, PromptMethod):
    raise InputError(f'PROMPT_METHOD = {name!r} is no method of prompts')
  given: dict[str, Any] = {
    'length': length,
    'rank': rank,
    'init': init,
  }
  if start is not None:
    given['start'] = start
  has = {field.name for field in dataclasses.fields(method)}
  return method(**{name: v for name, v in given.items() if name in has})
