"""Sizes of the RoBERTa family: the configuration and every published model.

Fields that T5 has, too, are called as in `t5.T5Config`: whoever asks a config
for its width or its layers need not know whose it is.
"""

import dataclasses
from typing import Any

from mpt_jax.t5.config import Sizes
from mpt_jax.types import InputError

ABSOLUTE, NONE = 'absolute', 'none'
# The first position is that behind the padding's, whose id is 1.
FIRST_POSITION = 2


@dataclasses.dataclass(frozen=True)
class RobertaConfig(Sizes):
  """Architecture of a RoBERTa with its masked language model's head.

  Attributes:
    vocab_size: V, rows of the embedding.
    dtype: type of the activations. Norms, softmax and logits are float32
      whatever it is, and parameters what they are given as.
    emb_dim: D, the model width.
    num_heads: H; each has D / H numbers.
    num_encoder_layers: blocks.
    mlp_dim: hidden width of the feed-forward blocks.
    max_positions: rows of the table of positions, of which the first two are
      nobody's: S, prompt slots included, is at most two less.
    dropout_rate: rate of every dropout of the network.
    layer_norm_epsilon: added to the variance in the norms.
    precision: see `t5.T5Config`.
    prompt_positions: which positions prompt vectors have. 'absolute': they are
      counted like tokens, as in transformers, and so PEFT and OpenPrompt;
      'none': theirs is zero, while tokens are counted from behind them, as in
      the first version of Prompt-Transferability.
    remat_layers: see `t5.T5Config`.
  """

  vocab_size: int
  dtype: str = 'float32'
  emb_dim: int = 768
  num_heads: int = 12
  num_encoder_layers: int = 12
  mlp_dim: int = 3072
  max_positions: int = 514
  dropout_rate: float = 0.1
  layer_norm_epsilon: float = 1e-5
  precision: str = 'float32'
  prompt_positions: str = ABSOLUTE
  remat_layers: bool = dataclasses.field(default=False, repr=False)

  # What the encoder of T5 may have, and this one has not.
  num_decoder_layers = 0
  mlp_activations = ('gelu',)
  logits_via_embedding = True
  float32_attention_logits = True
  relpos_per_layer = False

  def __post_init__(self):
    self._check(prompt_positions=(ABSOLUTE, NONE))
    if self.emb_dim % self.num_heads:
      raise InputError(
        f'emb_dim is {self.emb_dim}, which {self.num_heads} heads cannot share'
      )
    if self.max_positions <= FIRST_POSITION:
      raise InputError(
        f'max_positions is {self.max_positions}, of which the first'
        f' {FIRST_POSITION} are never used: expected more'
      )

  @property
  def head_dim(self) -> int:
    """Size of one head."""
    return self.emb_dim // self.num_heads

  @property
  def max_length(self) -> int:
    """The longest input, prompt slots included."""
    return self.max_positions - FIRST_POSITION

  def to_dict(self) -> dict[str, Any]:
    """Returns the fields as JSON types."""
    return dataclasses.asdict(self)


_LARGE: dict[str, Any] = {
  'emb_dim': 1024,
  'num_heads': 16,
  'num_encoder_layers': 24,
  'mlp_dim': 4096,
}
_VOCAB_SIZE, _MULTILINGUAL_VOCAB_SIZE = 50265, 250002

CONFIGS: dict[str, RobertaConfig] = {
  'roberta_base': RobertaConfig(_VOCAB_SIZE),
  'roberta_large': RobertaConfig(_VOCAB_SIZE, **_LARGE),
  'distilroberta_base': RobertaConfig(_VOCAB_SIZE, num_encoder_layers=6),
  'xlm_roberta_base': RobertaConfig(_MULTILINGUAL_VOCAB_SIZE),
  'xlm_roberta_large': RobertaConfig(_MULTILINGUAL_VOCAB_SIZE, **_LARGE),
}
