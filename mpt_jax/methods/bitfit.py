"""BitFit: biases alone."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import re
from typing import Any, ClassVar

from flax import linen as nn
import jax.numpy as jnp

from mpt_jax.backbones import param_shapes
from mpt_jax.methods.base import Delta, Start, learned, of_rows
from mpt_jax.t5 import layers
from mpt_jax.types import Array

# What gets a bias: every projection, also to the logits, and every norm but
# the two final ones.
_BIASED = re.compile(r'(.*)/kernel|(.*/layers_\d+/\w+_norm)/scale')
_TIED = 'token_embedder'


@dataclasses.dataclass(frozen=True)
class BitFit(Delta):
  """A bias behind every projection and norm of a block and the logits.

  A backbone's own biases train, as changes that start at 0. T5 has none, so
  they are added, as the code of the paper's table does
  (Mahabadi et al., NeurIPS 2021; Asai et al., EMNLP 2022): y = x W + b, after a
  norm's scale, and logits + b [V]; the two final norms have none. All are 0 at
  the start, where the network is the backbone, bit for bit.

  A bias of keys would add the same to all scores of a query, which the softmax
  does not see: it is counted, as in the paper, and never moves from 0.
  """

  name: ClassVar[str] = 'bitfit'
  title: ClassVar[str] = 'BitFit'
  paper: ClassVar[str] = (
    'Ben Zaken et al., "BitFit: Simple Parameter-efficient Fine-tuning for'
    ' Transformer-based Masked Language-models", ACL 2022'
  )
  rates: ClassVar[Mapping[str, tuple[float, float | None]]] = {
    'target': (3e-4, None)
  }

  def shapes(self, config: Any, num_tasks: int) -> dict[str, tuple[int, ...]]:
    """See `Method.shapes`: [K or 1, outputs] each."""
    sets = self.sets(num_tasks)
    known = param_shapes(config)
    own = {n: (sets, *s) for n, s in known.items() if n.endswith('/bias')}
    if own:
      return own
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in known.items():
      if match := _BIASED.fullmatch(name):
        found[f'{match[1] or match[2]}/bias'] = (sets, shape[-1])
    if config.logits_via_embedding:
      found[f'{_TIED}/bias'] = (sets, config.vocab_size)
    return found

  def num_parameters(self, config: Any, num_tasks: int) -> int:
    """Of T5: K (E (3d + 3I + mF + d) + N (3d + 6I + 2d + mF + d) + V)."""
    if not config.num_decoder_layers:
      return super().num_parameters(config, num_tasks)
    width, joined = config.emb_dim, config.num_heads * config.head_dim
    inner = len(config.mlp_activations) * config.mlp_dim
    encoder = 4 * width + 3 * joined + inner
    decoder = 6 * width + 6 * joined + inner
    return self.sets(num_tasks) * (
      config.num_encoder_layers * encoder
      + config.num_decoder_layers * decoder
      + config.vocab_size
    )

  def initial(
    self, config: Any, num_tasks: int, start: Start
  ) -> dict[str, Array]:
    """See `Method.initial`: zeros."""
    del start
    shapes = self.shapes(config, num_tasks)
    return {name: jnp.zeros(shape) for name, shape in shapes.items()}

  def intercept(
    self,
    call: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    context: nn.module.InterceptorContext,
  ) -> Any:
    """See `Delta.intercept`: adds the bias."""
    module, method = context.module, context.method_name
    if method == '_is_less_work' and _drops(module):
      return False  # The weights of the values would not add up to 1.
    y = call(*args, **kwargs)
    bias = learned(module, 'bias')
    # The embedding's own is that of its logits.
    wanted = 'attend' if isinstance(module, layers.Embed) else '__call__'
    if bias is None or method not in (wanted, 'by_head'):
      return y
    if module.name == 'key':
      return y  # Added, it would do nothing but gather noise in its gradient.
    if isinstance(y, tuple):  # A head, whose words have biases of their own.
      features, own = y
      return features, own + of_rows(bias, len(features))
    bias = of_rows(bias, len(y)).astype(y.dtype)
    if method == wanted:
      return y + bias[:, None]
    # Values by head: their weights add up to 1.
    return y + bias.reshape(len(bias), y.shape[1], 1, -1)


def _drops(module: Any) -> bool:
  """Whether an attention has dropout on its weights now."""
  return module.has_rng('dropout') and module.config.dropout_rate > 0
