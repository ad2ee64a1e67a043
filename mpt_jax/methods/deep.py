"""Per-layer prompts: each layer of the encoder finds vectors of its own."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp

from mpt_jax.methods.base import NO_T5X, Delta, Start, learned, of_rows
from mpt_jax.methods.initializers import Uniform
from mpt_jax.types import Array, InputError, Positive, check_least, nearest

REPLACE, ADD = 'replace', 'add'


@dataclasses.dataclass(frozen=True)
class DeepPrompts(Delta):
  """A prompt [P, D] for each of the E layers of the encoder.

  It is between prompt tuning and prefix tuning: a layer's vectors are put
  through the layer's own frozen projections. Google's prompt-tuning defines it
  so (`extended/train/per_layer.py`); P-Tuning v2 (Liu et al., ACL 2022) calls
  prompts deep that are prefixes in truth (see `Prefix`). E P D parameters; with
  'add' P D more.

  Attributes:
    length: P, the slots in front of an input.
    combine: 'replace' puts a layer's vectors in the place of what the layer
      before has left in the slots; 'add' puts a plain prompt there and adds
      the layers' vectors, which start as zeros, as in Qin & Eisner (2021).
  """

  name: ClassVar[str] = 'deep'
  title: ClassVar[str] = 'per-layer prompts'
  paper: ClassVar[str] = (
    'google-research/prompt-tuning, extended/train/per_layer.py; after Lester'
    ' et al., EMNLP 2021'
  )
  rates: ClassVar[Mapping[str, tuple[float, float | None]]] = {
    'target': (0.3, None)
  }
  cannot: ClassVar[Mapping[str, str]] = {
    **NO_T5X,
    'pack': (
      'its layers find their slots at the beginning of a row, and a packed row'
      " has some further on: give PADDING = 'bucket'"
    ),
  }

  length: Positive = 100
  combine: str = REPLACE

  def __post_init__(self):
    check_least(1, PROMPT_LENGTH=self.length)
    known = REPLACE, ADD
    if self.combine not in known:
      raise InputError(
        f'COMBINE = {self.combine!r}, expected {" or ".join(known)}'
        f'{nearest(str(self.combine), known)}'
      )

  @property
  def prompt_length(self) -> int:
    """P."""
    return self.length

  def shapes(self, config: Any, num_tasks: int) -> dict[str, tuple[int, ...]]:
    """See `Method.shapes`."""
    shape = self.sets(num_tasks), self.length, config.emb_dim
    layers = range(config.num_encoder_layers)
    found = {f'encoder/layers_{i}/prompt': shape for i in layers}
    return found | ({'encoder/prompt': shape} if self.combine == ADD else {})

  def num_parameters(self, config: Any, num_tasks: int) -> int:
    """E P D for each set; with 'add' (E + 1) P D."""
    prompts = config.num_encoder_layers + (self.combine == ADD)
    return self.sets(num_tasks) * prompts * self.length * config.emb_dim

  def initial(
    self, config: Any, num_tasks: int, start: Start
  ) -> dict[str, Array]:
    """See `Method.initial`: uniform in [-0.5, 0.5]; what is added, zero."""
    draw = Uniform().bind()
    shapes = self.shapes(config, num_tasks)
    keys = jax.random.split(start.key, len(shapes))
    return {
      name: jnp.zeros(shape)
      if self.combine == ADD and 'layers' in name
      else draw(key, shape)
      for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }

  def intercept(
    self,
    call: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    context: nn.module.InterceptorContext,
  ) -> Any:
    """See `Delta.intercept`: changes the input of the encoder's layers."""
    prompt = learned(context.module, 'prompt')
    if prompt is None or context.method_name != '__call__':
      return call(*args, **kwargs)
    x, *rest = args
    prompt = of_rows(prompt, len(x)).astype(x.dtype)
    in_front = x[:, : self.length]
    # The encoder's own is what the slots hold at first.
    if self.combine == ADD and context.module.name != 'encoder':
      prompt += in_front
    prompt = jnp.broadcast_to(prompt, in_front.shape)
    x = jnp.concatenate([prompt, x[:, self.length :]], axis=1)
    return call(x, *rest, **kwargs)
