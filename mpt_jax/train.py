r"""Trains prompts: one run of one stage, in its own MODEL_DIR.

  python -m tasks.offline --data_dir=data
  python -m mpt_jax.train --gin_file=gin_configs/runs/teacher.gin \
    --tfds_data_dir=data --gin.INITIAL_CHECKPOINT_PATH="'demo'" \
    --gin.MIXTURE_OR_TASK_NAME="'rte'" --gin.MODEL_DIR="'runs/rte'" \
    --gin.TRAIN_STEPS=200

The first line writes synthetic data, and `demo` is the backbone that comes with
the package: any Hugging Face folder or T5X checkpoint stands in its place.

The stages are `teacher` (vanilla prompt tuning of one task), `source` (MPT's
first stage: distil teachers into one shared prompt), `target` (its second
stage) and `finetune` (the whole backbone). The same command resumes a run
that was stopped. A list of tasks, or a mixture with EACH_TASK=True, is a run
for each in MODEL_DIR/<task>.

From Python, `mpt_jax.train(...)` is the same: the module is called.
"""

if __name__ == '__main__':
  # Before the imports: neither --help nor a wrong macro waits for them. And
  # only here: a notebook has no gin.
  from mpt_jax import cli

  cli.main('mpt_jax.train', 'train')

import functools
import inspect
import sys
import types
from typing import Any

from mpt_jax.engine.optimizers import Optimizer
from mpt_jax.engine.outcome import Run
from mpt_jax.engine.run import train
from mpt_jax.engine.settings import (
  BackboneSource,
  Devices,
  Evaluation,
  Logging,
  Loss,
)
from mpt_jax.engine.starts import Distance, Distillation, Source

__all__ = [
  'BackboneSource',
  'Devices',
  'Distance',
  'Distillation',
  'Evaluation',
  'Logging',
  'Loss',
  'Optimizer',
  'Run',
  'Source',
  'train',
]


class _Callable(types.ModuleType):
  """A module that is called as its function: `mpt_jax.train(...)`.

  It stands under that name in the package as soon as it is imported.
  """

  __signature__ = inspect.signature(train)

  @functools.wraps(train)
  def __call__(self, **settings: Any) -> Run | dict[str, Run]:
    return train(**settings)


sys.modules[__name__].__class__ = _Callable
