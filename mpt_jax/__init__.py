"""Multitask Prompt Tuning for T5 in JAX.

The names below are loaded when they are first used, so that `import mpt_jax`
costs nothing and pulls in neither TensorFlow nor SeqIO.
"""

from collections.abc import Mapping
import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from mpt_jax.checkpoints.backbone import load_backbone
  from mpt_jax.checkpoints.bundle import load_prompts
  from mpt_jax.pretrained import PromptedT5

__version__ = '0.1.0'

__all__ = ['PromptedT5', '__version__', 'load_backbone', 'load_prompts']

_HOMES = {
  'PromptedT5': 'mpt_jax.pretrained',
  'load_backbone': 'mpt_jax.checkpoints.backbone',
  'load_prompts': 'mpt_jax.checkpoints.bundle',
}


def lazily(package: str, homes: Mapping[str, str], name: str) -> Any:
  """Returns an attribute of a package, loaded now that it is used.

  Args:
    package: the package's name.
    homes: name -> module that it stands in.
    name: of the attribute: one of these, or a module of the package.

  Raises:
    AttributeError: if it is neither.
  """
  if name in homes:
    value = getattr(importlib.import_module(homes[name]), name)
    setattr(sys.modules[package], name, value)
    return value
  try:
    # So that `mpt_jax.t5` works after `import mpt_jax` alone.
    return importlib.import_module(f'{package}.{name}')
  except ModuleNotFoundError as e:
    if e.name != f'{package}.{name}':
      raise
    message = f'module {package!r} has no attribute {name!r}'
    raise AttributeError(message) from None


def __getattr__(name: str) -> Any:
  return lazily(__name__, _HOMES, name)


def __dir__() -> list[str]:
  return sorted({*globals(), *_HOMES})
