"""Multitask Prompt Tuning for T5 in JAX.

The names below are loaded when they are first used, so that `import mpt_jax`
costs nothing and pulls in neither TensorFlow nor SeqIO.
"""

from collections.abc import Mapping
import importlib
import importlib.abc
import importlib.machinery
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from mpt_jax.checkpoints.backbone import load_backbone
  from mpt_jax.checkpoints.bundle import load_prompts
  from mpt_jax.data.memory import Task
  from mpt_jax.engine.run import train
  from mpt_jax.pretrained import PromptedMaskedModel, PromptedT5, evaluate

__version__ = '0.1.0'

__all__ = [
  'PromptedMaskedModel',
  'PromptedT5',
  'Task',
  '__version__',
  'evaluate',
  'load_backbone',
  'load_prompts',
  'train',
]

_HOMES = {
  'PromptedMaskedModel': 'mpt_jax.pretrained',
  'PromptedT5': 'mpt_jax.pretrained',
  'Task': 'mpt_jax.data.memory',
  'evaluate': 'mpt_jax.pretrained',
  'load_backbone': 'mpt_jax.checkpoints.backbone',
  'load_prompts': 'mpt_jax.checkpoints.bundle',
}

# Modules of version 0.1 -> where they are now.
MOVED = {
  f'mpt_jax.{old}': f'mpt_jax.{new}'
  for old, new in {
    **{
      name: f'engine.{name}'
      for name in (
        *('batching', 'buckets', 'hostmemory', 'metrics', 'multihost'),
        *('optimizers', 'params', 'partitioning', 'preemption', 'selection'),
        *('starts', 'trainer'),
      )
    },
    'lines': 'data.lines',
    'prompts': 'methods',
    'runs': 'engine.predictor',
    'report': 'study.report',
    'workers': 'study.workers',
    'texts': 'checkpoints.texts',
  }.items()
}


class _Moved(importlib.abc.MetaPathFinder, importlib.abc.Loader):
  """Makes an old module's name mean the module that it has become."""

  def find_spec(self, fullname: str, path: Any = None, target: Any = None):
    if fullname not in MOVED:
      return None
    return importlib.machinery.ModuleSpec(fullname, self)

  def exec_module(self, module: Any) -> None:
    name = module.__name__
    # What is in this table in the end is what the import returns.
    sys.modules[name] = importlib.import_module(MOVED[name])


sys.meta_path.insert(0, _Moved())


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
  # `train` is a module that is called.
  return sorted({*globals(), *_HOMES, 'train'})
