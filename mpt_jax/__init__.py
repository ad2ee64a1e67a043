"""Multitask Prompt Tuning for T5 in JAX.

The names below are loaded when they are first used, so that `import mpt_jax`
costs nothing and pulls in neither TensorFlow nor SeqIO.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from mpt_jax.checkpoints.backbone import load_backbone
  from mpt_jax.checkpoints.bundle import load_prompts
  from mpt_jax.pretrained import PromptedT5, evaluate

__version__ = '0.1.0'

__all__ = [
  'PromptedT5',
  '__version__',
  'evaluate',
  'load_backbone',
  'load_prompts',
]

_HOMES = {
  'PromptedT5': 'mpt_jax.pretrained',
  'evaluate': 'mpt_jax.pretrained',
  'load_backbone': 'mpt_jax.checkpoints.backbone',
  'load_prompts': 'mpt_jax.checkpoints.bundle',
}


def __getattr__(name: str) -> Any:
  if name in _HOMES:
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
  try:
    # Subpackages, so that `mpt_jax.t5` works after `import mpt_jax` alone.
    return importlib.import_module(f'mpt_jax.{name}')
  except ModuleNotFoundError as e:
    if e.name != f'mpt_jax.{name}':
      raise
    message = f'module {__name__!r} has no attribute {name!r}'
    raise AttributeError(message) from None


def __dir__() -> list[str]:
  return sorted({*globals(), *_HOMES})
