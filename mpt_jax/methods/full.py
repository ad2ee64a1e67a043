"""Full fine-tuning: the backbone itself."""

from collections.abc import Mapping
import dataclasses
from typing import ClassVar

from mpt_jax.methods.base import NO_T5X, Method


@dataclasses.dataclass(frozen=True)
class FullFinetuning(Method):
  """Trains every parameter of the backbone; the product is a backbone."""

  name: ClassVar[str] = 'full'
  title: ClassVar[str] = 'full fine-tuning'
  paper: ClassVar[str] = (
    'Raffel et al., "Exploring the Limits of Transfer Learning with a Unified'
    ' Text-to-Text Transformer", JMLR 2020'
  )
  rates: ClassVar[Mapping[str, tuple[float, float | None]]] = {
    'finetune': (1e-3, None)
  }
  formats: ClassVar[tuple[str, ...]] = ()
  cannot: ClassVar[Mapping[str, str]] = NO_T5X
