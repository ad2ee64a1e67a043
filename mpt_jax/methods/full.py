"""Full fine-tuning: the backbone itself."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any, ClassVar

from mpt_jax.backbones import param_shapes
from mpt_jax.methods.base import NO_T5X, Method


@dataclasses.dataclass(frozen=True)
class FullFinetuning(Method):
  """Trains every parameter of the backbone; the product is a backbone.

  One for all tasks of a run, whatever their number.
  """

  name: ClassVar[str] = 'full'
  title: ClassVar[str] = 'full fine-tuning'
  paper: ClassVar[str] = (
    'Raffel et al., "Exploring the Limits of Transfer Learning with a Unified'
    ' Text-to-Text Transformer", JMLR 2020'
  )
  # From scratch, and as a baseline of the paper's table (Asai et al.).
  rates: ClassVar[Mapping[str, tuple[float, float | None]]] = {
    'finetune': (1e-3, None),
    'target': (3e-4, None),
  }
  formats: ClassVar[tuple[str, ...]] = ()
  cannot: ClassVar[Mapping[str, str]] = NO_T5X

  def num_parameters(self, config: Any, num_tasks: int) -> int:
    """All of the backbone; how many tasks there are does not count."""
    del num_tasks
    return sum(math.prod(shape) for shape in param_shapes(config).values())
