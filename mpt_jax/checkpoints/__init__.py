"""Reading and writing: backbones, runs and prompt bundles.

The names below are loaded when they are first used, so that a bundle can be
read without what a backbone needs.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from mpt_jax.checkpoints.backbone import (
    Backbone,
    digest_vocabulary,
    fingerprint,
    load_backbone,
  )
  from mpt_jax.checkpoints.huggingface import save_huggingface

__all__ = [
  'Backbone',
  'digest_vocabulary',
  'fingerprint',
  'load_backbone',
  'save_huggingface',
]


def __getattr__(name: str) -> Any:
  if name not in __all__:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  home = 'huggingface' if name == 'save_huggingface' else 'backbone'
  return getattr(importlib.import_module(f'{__name__}.{home}'), name)
