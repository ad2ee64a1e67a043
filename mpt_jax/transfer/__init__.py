"""Prompts used where they were not learned, and what predicts that.

A verb of `python -m mpt_jax.transfer` is a function of its module
(`matrix.matrix`, `indicators.indicators`, …). Names and modules are loaded
when they are first used.
"""

import mpt_jax

_HOMES = {
  'Plan': 'mpt_jax.transfer.whole',
  'Scorer': 'mpt_jax.transfer.scoring',
  'SourcePrompt': 'mpt_jax.transfer.sources',
  'category_of': 'mpt_jax.transfer.categories',
  'open_library': 'mpt_jax.transfer.library',
  'read': 'mpt_jax.transfer.sources',
}


def __getattr__(name: str) -> object:
  return mpt_jax.lazily(__name__, _HOMES, name)


def __dir__() -> list[str]:
  return sorted({*globals(), *_HOMES})
