"""RoBERTa in Flax linen: an encoder, and the head that fills in masks.

What a block is made of is T5's (`t5.layers`), by the same names, with biases,
scaled queries and norms behind the sums. Positions are a learned table. As in
T5, 0 is padding: the reader of weights has swapped rows 0 and 1 of what is
indexed by ids.
"""

import functools
from typing import Any

from flax import linen as nn
from flax.linen import partitioning as nn_partitioning
import jax
import jax.numpy as jnp

from mpt_jax.roberta.config import FIRST_POSITION, NONE, RobertaConfig
from mpt_jax.t5 import layers
from mpt_jax.t5.network import (
  attention_mask,
  insert_prompts,
  run_layers,
  shapes_of,
)
from mpt_jax.types import Array, InputError, check_shape


def _gelu(x: Array) -> Array:
  return nn.gelu(x, approximate=False)


def _along(x: Array, vector: Array) -> Array:
  """A vector with as many axes as x, along the last one."""
  return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


def _norm(config: RobertaConfig, name: str) -> 'LayerNorm':
  return LayerNorm(config, name=name)


class LayerNorm(nn.Module):
  """Layer norm with scale and bias, in float32."""

  config: RobertaConfig

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Normalises the last axis; [..., D] -> [..., D]."""
    scale, bias = (
      nn_partitioning.param_with_axes(
        name, start, x.shape[-1:], axes=('embed',)
      )
      for name, start in (
        ('scale', nn.initializers.ones),
        ('bias', nn.initializers.zeros),
      )
    )
    x = x.astype(jnp.float32)
    x -= jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jax.lax.square(x), axis=-1, keepdims=True)
    x *= jax.lax.rsqrt(variance + self.config.layer_norm_epsilon)
    return (x * _along(x, scale) + _along(x, bias)).astype(self.config.dtype)


class Dense(layers.Dense):
  """A linear map, `x @ kernel + bias`."""

  def setup(self):
    """Declares kernel [inputs, features] and bias [features]."""
    super().setup()
    self.bias = nn_partitioning.param_with_axes(
      'bias',
      nn.initializers.zeros,
      (self.features,),
      axes=self.axes[1:],
      module=self,
    )

  def __call__(self, x: Array) -> Array:
    """Maps [B, T, inputs] to [B, T, features]."""
    # Not by the class above, whose call methods of PEFT would see, too.
    y = layers.product('bti,io->bto', x, self.kernel, self.config)
    return y + _along(y, self.bias.astype(y.dtype))


class SelfAttention(layers.SelfAttention):
  """Self-attention with scaled logits and biases."""

  dense = Dense

  def _heads(self, name: str, x: Array) -> Array:
    """Projects [B, T, D] to heads [B, H, T, K]; queries are scaled."""
    heads = super()._heads(name, x)
    return heads * self.config.head_dim**-0.5 if name == 'query' else heads

  def _drop(self, weights: Array, deterministic: bool) -> Array:
    return nn.Dropout(self.config.dropout_rate)(weights, deterministic)


class MlpBlock(nn.Module):
  """Feed-forward block with the exact GELU."""

  config: RobertaConfig

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, T, D] to [B, T, D]."""
    cfg = self.config
    wi = Dense(cfg, cfg.emb_dim, cfg.mlp_dim, ('embed', 'mlp'), name='wi')
    wo = Dense(cfg, cfg.mlp_dim, cfg.emb_dim, ('mlp', 'embed'), name='wo')
    return wo(_gelu(wi(x)))


class EncoderLayer(nn.Module):
  """Self-attention and MLP, each with a residual sum and then a norm."""

  config: RobertaConfig

  @nn.compact
  def __call__(self, x: Array, mask: Array, deterministic: bool) -> Array:
    """Maps [B, S, D] to [B, S, D]."""
    cfg = self.config
    drop = nn.Dropout(cfg.dropout_rate)
    y = SelfAttention(cfg, name='attention')(x, mask, None, deterministic)
    x = _norm(cfg, 'post_attention_layer_norm')(x + drop(y, deterministic))
    y = MlpBlock(cfg, name='mlp')(x)
    return _norm(cfg, 'post_mlp_layer_norm')(x + drop(y, deterministic))


class Encoder(nn.Module):
  """Positions, the norm of the embeddings, and the blocks."""

  config: RobertaConfig

  @nn.compact
  def __call__(
    self, x: Array, positions: Array, mask: Array, deterministic: bool
  ) -> tuple[Array, tuple[Array, ...]]:
    """Encodes embedded inputs.

    Args:
      x: [B, S, D], the embedded tokens and prompts.
      positions: [B, S] int32, rows of the table; -1 has a position of zeros.
      mask: bool [B, 1, S or 1, S].
      deterministic: True switches dropout off.

    Returns:
      The output [B, S, D] and L + 2 hidden states: the normed embeddings, and
      each block's output, the last one twice, as there is no final norm.
    """
    cfg = self.config
    table, token_type = (
      nn_partitioning.param_with_axes(
        name,
        nn.initializers.normal(stddev=0.02),
        (rows, cfg.emb_dim),
        axes=('positions', 'embed'),
      )
      for name, rows in (
        ('position_embedding', cfg.max_positions),
        ('token_type_embedding', 1),
      )
    )
    # What is beyond the table is NaN, which is seen.
    places = jnp.asarray(table).at[positions].get(mode='fill')
    places = jnp.where((positions >= 0)[..., None], places, 0.0)
    x = x + (places + token_type[None]).astype(cfg.dtype)
    x = _norm(cfg, 'embedding_layer_norm')(x)
    x = nn.Dropout(cfg.dropout_rate)(x, deterministic)
    embedded = x
    x, outputs = run_layers(
      self,
      lambda name: EncoderLayer(cfg, name=name),
      lambda layer, x: layer(x, mask, deterministic),
      x,
      cfg.num_encoder_layers,
      cfg.remat_layers,
    )
    return x, (embedded, *outputs, x)


class Head(nn.Module):
  """What is asked of words at a mask: `LN(gelu(dense x)) E' + bias`."""

  config: RobertaConfig

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, Array]:
    """Maps [B, N, D] to features [B, N, D], and the biases [1, V] of words."""
    cfg = self.config
    dense = Dense(
      cfg, cfg.emb_dim, cfg.emb_dim, ('embed', 'joined'), name='dense'
    )
    bias = nn_partitioning.param_with_axes(
      'bias', nn.initializers.zeros, (cfg.vocab_size,), axes=('vocab',)
    )
    return _norm(cfg, 'layer_norm')(_gelu(dense(x))), bias[None]


class Embed(layers.Embed):
  """The token embedding; what is asked of a word is not scaled."""

  def setup(self):
    """Declares the table [V, D]."""
    self.embedding = nn_partitioning.param_with_axes(
      'embedding',
      nn.initializers.normal(stddev=0.02),
      (self.config.vocab_size, self.config.emb_dim),
      axes=('vocab', 'embed'),
      module=self,
    )

  def attend(self, x: Array) -> Array:
    """Returns float32 logits [B, T, V] of x [B, T, D]."""
    return jnp.einsum(
      'btd,vd->btv', x, self.embedding, preferred_element_type=jnp.float32
    )

  def words(self, tokens: Array) -> Array:
    """The rows [..., D] float32 of words [...] in the table."""
    return jnp.take(self.embedding, tokens, axis=0).astype(jnp.float32)


class Roberta(nn.Module):
  """The encoder and its head; `fill` scores words, `encode` encodes."""

  config: RobertaConfig

  def setup(self):
    """Declares the parts; the head shares the embedding."""
    self.token_embedder = Embed(self.config)
    self.encoder = Encoder(self.config)
    self.lm_head = Head(self.config)

  def __call__(self, encoder_input_tokens: Array, **inputs: Any) -> Array:
    """Returns logits [B, S, V] float32 at every position; see `encode`."""
    encoded, _ = self.encode(encoder_input_tokens, **inputs)
    return self.fill(encoded)

  def encode(
    self,
    encoder_input_tokens: Array,
    encoder_segment_ids: Array | None = None,
    encoder_positions: Array | None = None,
    *,
    enable_dropout: bool = True,
    mask_id: int | None = None,
    prompt_table: Array | None = None,
    encoder_prompt_slots: Array | None = None,
    encoder_task_ids: Array | None = None,
  ) -> tuple[Array, tuple[Array, ...]]:
    """Runs the encoder.

    Args:
      encoder_input_tokens: [B, S] int32, 0 is padding; a prompt slot holds any
        other id.
      encoder_segment_ids: [B, S] int32, the example of each position in a
        packed row; None when not packed.
      encoder_positions: [B, S] int32, the place of each position in its
        example, from 0; None is that in the row.
      enable_dropout: needs a `dropout` rng unless the rate is 0.
      mask_id: the id of the mask, which takes the first slot of examples
        without one (`find_masks`); None leaves slots alone.
      prompt_table: [K, P, D] float, the prompt of every task; None for none.
      encoder_prompt_slots: [B, S] int32, j in 1..P where prompt vector j - 1
        goes, else 0.
      encoder_task_ids: [B, S] int32, rows of the table; None for row 0.

    Returns:
      The output [B, S, D] and the hidden states, see `Encoder`.

    Raises:
      InputError: if an input is longer than the table of positions.
    """
    tokens, slots = encoder_input_tokens, encoder_prompt_slots
    check_shape('encoder_input_tokens', tokens, (None, None))
    longest = self.config.max_length
    if tokens.shape[1] > longest:
      raise InputError(
        f'an input has {tokens.shape[1]} positions, prompt slots included, but'
        f' the backbone knows {longest} at most: give shorter'
        ' TASK_FEATURE_LENGTHS or a shorter prompt'
      )
    x = self.token_embedder(tokens)
    if prompt_table is not None:
      if slots is None:
        raise ValueError('prompt_table was given without encoder_prompt_slots')
      if encoder_task_ids is None:
        encoder_task_ids = jnp.zeros_like(slots)
      x = insert_prompts(x, prompt_table, slots, encoder_task_ids)
    if slots is not None and mask_id is not None:
      masks = find_masks(tokens, slots, mask_id, encoder_segment_ids)
      at_mask = self.token_embedder(jnp.full((1, 1), mask_id, jnp.int32))
      x = jnp.where((masks & (slots > 0))[..., None], at_mask, x)
    places = encoder_positions
    if places is None:
      places = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    positions = jnp.broadcast_to(places + FIRST_POSITION, tokens.shape)
    if slots is not None and self.config.prompt_positions == NONE:
      positions = jnp.where(slots > 0, -1, positions)
    mask = attention_mask(tokens, encoder_segment_ids, encoder_segment_ids)
    return self.encoder(x, positions, mask, not enable_dropout)

  def fill(self, encoded: Array, words: Array | None = None) -> Array:
    """Scores words at places of the encoder's output.

    Args:
      encoded: [B, N, D], the output at N places of each example.
      words: [B or 1, N or 1, W] int32, what may stand there; None is every
        word.

    Returns:
      [B, N, W or V] float32 logits.
    """
    features, bias = self.lm_head(encoded)
    if words is None:
      return self.token_embedder.attend(features) + bias[:, None]
    # Rows of a few words, not a product with fifty thousand.
    rows = self.token_embedder.words(words)
    logits = jnp.matmul(rows, features.astype(jnp.float32)[..., None])[..., 0]
    return logits + jnp.take_along_axis(bias[:, None], words, axis=-1)


def find_masks(
  tokens: Array,
  slots: Array,
  mask_id: int,
  segment_ids: Array | None = None,
) -> Array:
  """Returns where each example is read: at its mask.

  An example without a mask in its text is read at its first prompt slot, in
  which the mask then stands instead of a prompt vector: the template of the
  first version of Prompt-Transferability (Su et al., NAACL 2022).

  Args:
    tokens: [B, S] int32.
    slots: [B, S] int32, see `Roberta.encode`.
    mask_id: the mask's id.
    segment_ids: [B, S] int32 of packed rows, else None.

  Returns:
    bool [B, S].
  """
  written = (tokens == mask_id) & (slots == 0)
  if segment_ids is None:
    has = jnp.any(written, axis=-1, keepdims=True)
  else:
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    has = jnp.any(same & written[:, None], axis=-1)
  return written | ((slots == 1) & ~has)


def init_params(config: RobertaConfig, rng: Array) -> dict[str, Any]:
  """Draws fresh parameters, matrices as N(0, 0.02^2).

  Args:
    config: the architecture.
    rng: a PRNG key.

  Returns:
    The float32 parameter tree.
  """
  tokens = jnp.ones((1, 1), jnp.int32)
  init = jax.jit(
    lambda key: Roberta(config).init(key, tokens, enable_dropout=False)
  )
  return init(rng)['params']


@functools.cache
def param_shapes(config: RobertaConfig) -> dict[str, tuple[int, ...]]:
  """Returns name -> shape of every parameter, sorted by name."""
  return shapes_of(lambda: init_params(config, jax.random.key(0)))
