"""Full fine-tuning: the backbone itself."""

from collections.abc import Mapping
import dataclasses
from typing import Any, ClassVar

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
    """All of T5: V D (twice with a head of its own), the layers, the rest.

    Args:
      config: the backbone's sizes.
      num_tasks: does not count.
    """
    del num_tasks
    width, heads = config.emb_dim, config.num_heads
    attention = 4 * width * heads * config.head_dim
    mlp = (len(config.mlp_activations) + 1) * width * config.mlp_dim
    layers = config.num_encoder_layers * (attention + mlp + 2 * width)
    layers += config.num_decoder_layers * (2 * attention + mlp + 3 * width)
    tables = 1 if config.logits_via_embedding else 2
    # Each stack has a norm at its end, and one table of position biases or
    # one for each of its layers.
    biases = 2
    if config.relpos_per_layer:
      biases = config.num_encoder_layers + config.num_decoder_layers
    ends = 2 * width + biases * config.relpos_num_buckets * heads
    return layers + tables * config.vocab_size * width + ends
