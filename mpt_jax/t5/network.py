"""T5 in Flax linen, parameter tree and call as T5X's `examples/t5`.

Prompts enter the encoder by one rule for packed and unpacked rows alike:
`x = where(slot > 0, prompt_table[task_id, slot - 1], embedding[token])`.
Only positions that hold a token (id > 0) mean something in the outputs.

A stack runs its blocks one by one, or as a scan where its parameters come
stacked (`partitioning.place_backbone`: `encoder/layers/…` [L, …] instead of
`encoder/layers_0/…`): one block is compiled then, whatever L is.
"""

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp

from mpt_jax.t5 import layers
from mpt_jax.t5.config import T5Config
from mpt_jax.types import Array, check_shape

HiddenStates = dict[str, tuple[Array, ...]]
# Of queries [T] and of keys [S], int32.
Positions = tuple[Array, Array]


def attention_mask(
  key_tokens: Array,
  query_segment_ids: Array | None = None,
  key_segment_ids: Array | None = None,
) -> Array:
  """Returns which keys a query may see: tokens of its own segment.

  Args:
    key_tokens: [B, S] int32, 0 is padding.
    query_segment_ids: [B, T] int32, or None in unpacked rows.
    key_segment_ids: [B, S] int32, or None in unpacked rows.

  Returns:
    bool [B, 1, 1, S], or [B, 1, T, S] with segments.
  """
  mask = (key_tokens > 0)[:, None, None, :]
  if query_segment_ids is not None and key_segment_ids is not None:
    same = query_segment_ids[:, :, None] == key_segment_ids[:, None, :]
    mask = mask & same[:, None]
  return mask


def insert_prompts(
  embedded: Array, prompt_table: Array, slots: Array, task_ids: Array
) -> Array:
  """Puts prompt vectors where a slot says so.

  Args:
    embedded: [B, S, D], the embedded tokens.
    prompt_table: [K, P, D], one prompt per task.
    slots: [B, S] int32, j in 1..P where vector j - 1 goes, else 0.
    task_ids: [B, S] int32, rows of the table.

  Returns:
    [B, S, D] in embedded's dtype; NaN where a row or slot is out of range.
  """
  check_shape('prompt_table', prompt_table, (None, None, embedded.shape[-1]))
  check_shape('encoder_prompt_slots', slots, embedded.shape[:2])
  check_shape('encoder_task_ids', task_ids, embedded.shape[:2])
  # A row or slot beyond the table must not pass as its last one: NaN is seen.
  index = (task_ids, jnp.maximum(slots - 1, 0))
  prompts = jnp.asarray(prompt_table).at[index].get(mode='fill')
  chosen = (slots > 0)[:, :, None]
  return jnp.where(chosen, prompts.astype(embedded.dtype), embedded)


class EncoderLayer(nn.Module):
  """Self-attention and MLP, each behind a norm and a residual sum."""

  config: T5Config

  @nn.compact
  def __call__(
    self,
    x: Array,
    mask: Array,
    bias: Array | Positions,
    deterministic: bool,
  ) -> Array:
    """Maps [B, S, D] to [B, S, D]."""
    cfg = self.config
    if isinstance(bias, tuple):
      bias = _position_bias(cfg, True, bias)
    y = _norm(cfg, 'pre_attention_layer_norm')(x)
    y = layers.SelfAttention(cfg, name='attention')(
      y, mask, bias, deterministic
    )
    x += layers.dropout(cfg)(y, deterministic)
    y = _norm(cfg, 'pre_mlp_layer_norm')(x)
    y = layers.MlpBlock(cfg, name='mlp')(y, deterministic)
    return x + layers.dropout(cfg)(y, deterministic)


class DecoderLayer(nn.Module):
  """Self-attention, cross-attention and MLP."""

  config: T5Config

  @nn.compact
  def __call__(
    self,
    x: Array,
    encoded: Array,
    mask: Array,
    cross_mask: Array,
    bias: Array | Positions,
    deterministic: bool,
    cache_length: int | None = None,
    cache_index: Array | None = None,
  ) -> Array:
    """Maps [B, T, D] to [B, T, D]; the cache as in `layers`."""
    cfg = self.config
    if isinstance(bias, tuple):
      bias = _position_bias(cfg, False, bias)
    y = _norm(cfg, 'pre_self_attention_layer_norm')(x)
    y = layers.SelfAttention(cfg, name='self_attention')(
      y, mask, bias, deterministic, cache_length, cache_index
    )
    x += layers.dropout(cfg)(y, deterministic)
    y = _norm(cfg, 'pre_cross_attention_layer_norm')(x)
    y = layers.CrossAttention(cfg, name='encoder_decoder_attention')(
      y, encoded, cross_mask, deterministic, cache_length
    )
    x += layers.dropout(cfg)(y, deterministic)
    y = _norm(cfg, 'pre_mlp_layer_norm')(x)
    y = layers.MlpBlock(cfg, name='mlp')(y, deterministic)
    return x + layers.dropout(cfg)(y, deterministic)


def run_layers(
  stack: nn.Module,
  make_layer: Callable[[str], nn.Module],
  call: Callable[[Any, Array], Array],
  x: Array,
  num_layers: int,
  remat: bool,
) -> tuple[Array, list[Array]]:
  """Runs the blocks of a stack, one by one or scanned.

  Args:
    stack: the module whose blocks they are, in its compact call.
    make_layer: name -> a block of that name.
    call: (block, its input) -> its output.
    x: [B, S, D], the input of the first block.
    num_layers: L.
    remat: whether to compute blocks again in the backward pass.

  Returns:
    The last block's output and those of all L blocks.
  """
  scanned = stack.has_variable('params', 'layers')
  if remat:
    # In a scan nothing can be merged with what was computed before.
    call = nn.remat(call, prevent_cse=not scanned)
  if not scanned:
    outputs = []
    for i in range(num_layers):
      x = call(make_layer(f'layers_{i}'), x)
      outputs.append(x)
    return x, outputs

  def body(layer: Any, x: Array, _: None) -> tuple[Array, Array]:
    x = call(layer, x)
    return x, x

  # Caches keep their rows in front, where the decoding loops want them. Who
  # captures intermediates gets those of all layers; else there are none.
  scan = nn.scan(
    body,
    variable_axes={
      **{'params': 0, 'delta': 0, 'intermediates': 0},
      **{'cache': 1, 'encoder_cache': 1},
    },
    split_rngs={'params': True, 'dropout': True},
    length=num_layers,
  )
  x, stacked = scan(make_layer('layers'), x, None)
  return x, [stacked[i] for i in range(num_layers)]


class Encoder(nn.Module):
  """The encoder stack."""

  config: T5Config

  @nn.compact
  def __call__(
    self, x: Array, mask: Array, deterministic: bool
  ) -> tuple[Array, tuple[Array, ...]]:
    """Encodes embedded inputs.

    Args:
      x: [B, S, D], the embedded tokens and prompts.
      mask: bool [B, 1, S or 1, S].
      deterministic: True switches dropout off.

    Returns:
      The output [B, S, D] and the hidden states: the input, each block's
      output, and the final norm's (before its dropout).
    """
    cfg = self.config
    positions = jnp.arange(x.shape[1], dtype=jnp.int32)
    bias: Array | Positions = (positions, positions)
    if not cfg.relpos_per_layer:
      bias = _position_bias(cfg, True, (positions, positions))
    x = layers.dropout(cfg)(x, deterministic)
    embedded = x
    x, outputs = run_layers(
      self,
      lambda name: EncoderLayer(cfg, name=name),
      lambda layer, x: layer(x, mask, bias, deterministic),
      x,
      cfg.num_encoder_layers,
      cfg.remat_layers,
    )
    x = _norm(cfg, 'encoder_norm')(x)
    states = (embedded, *outputs, x)
    x = nn.Dropout(cfg.dropout_rate)(x, deterministic)
    return x, states


class Decoder(nn.Module):
  """The decoder stack and the logits."""

  config: T5Config
  shared_embedding: nn.Module

  @nn.compact
  def __call__(
    self,
    encoded: Array,
    tokens: Array,
    mask: Array | None,
    cross_mask: Array,
    deterministic: bool,
    decode: bool = False,
    max_decode_length: int | None = None,
  ) -> tuple[Array, tuple[Array, ...]]:
    """Returns logits [B, T, V] float32 and the hidden states.

    Args:
      encoded: [B, S, D], the encoder's output.
      tokens: [B, T] int32, the decoder's inputs.
      mask: bool [B, 1, T or 1, T], to which causality is added.
      cross_mask: bool [B, 1, T or 1, S].
      deterministic: True switches dropout off.
      decode: without a `cache` collection makes one (the logits then mean
        nothing), with one does the step of one token, `tokens` [B, 1].
      max_decode_length: positions of the cache, default T.
    """
    cfg = self.config
    length = tokens.shape[1]
    positions = keys = jnp.arange(length, dtype=jnp.int32)
    cache_length = index = None
    if decode:
      is_step = self.has_variable('cache', 'cache_index')
      cached = self.variable('cache', 'cache_index', jnp.zeros, (), jnp.int32)
      cache_length = max_decode_length or length
      if is_step:
        check_shape('tokens of a decoding step', tokens, (None, 1))
        stacked = self.has_variable('cache', 'layers')
        name = 'layers' if stacked else 'layers_0'
        first: Any = self.get_variable('cache', name)
        cache_length = first['self_attention']['cached_key'].shape[-2]
        index = cached.value
        cached.value = index + 1
        positions = index[None]
        keys = jnp.arange(cache_length, dtype=jnp.int32)
    causal = (keys[None, :] <= positions[:, None])[None, None]
    mask = causal if mask is None else mask & causal
    bias: Array | Positions = (positions, keys)
    if not cfg.relpos_per_layer:
      bias = _position_bias(cfg, False, (positions, keys))
    y = self.shared_embedding(tokens)
    y = layers.dropout(cfg)(y, deterministic)
    embedded = y
    y, outputs = run_layers(
      self,
      lambda name: DecoderLayer(cfg, name=name),
      lambda layer, y: layer(
        y,
        encoded,
        mask,
        cross_mask,
        bias,
        deterministic,
        cache_length,
        index,
      ),
      y,
      cfg.num_decoder_layers,
      cfg.remat_layers and not decode,
    )
    y = _norm(cfg, 'decoder_norm')(y)
    states = (embedded, *outputs, y)
    y = layers.dropout(cfg)(y, deterministic)
    if cfg.logits_via_embedding:
      logits = self.shared_embedding.attend(y)
    else:
      logits = layers.Logits(cfg, name='logits_dense')(y)
    return logits, states


class Transformer(nn.Module):
  """Encoder-decoder T5, called as T5X's `examples/t5` network is."""

  config: T5Config

  def setup(self):
    """Declares the parts; both stacks share the embedding."""
    self.token_embedder = layers.Embed(self.config)
    self.encoder = Encoder(self.config)
    self.decoder = Decoder(self.config, self.token_embedder)

  def __call__(
    self,
    encoder_input_tokens: Array,
    decoder_input_tokens: Array,
    decoder_target_tokens: Array,
    encoder_segment_ids: Array | None = None,
    decoder_segment_ids: Array | None = None,
    encoder_positions: Array | None = None,
    decoder_positions: Array | None = None,
    *,
    enable_dropout: bool = True,
    decode: bool = False,
    prompt_table: Array | None = None,
    encoder_prompt_slots: Array | None = None,
    encoder_task_ids: Array | None = None,
    return_hidden_states: bool = False,
  ) -> Any:
    """Runs encoder and decoder.

    Args:
      encoder_input_tokens: [B, S] int32, 0 is padding; a prompt slot holds any
        other id.
      decoder_input_tokens: [B, T] int32, the targets shifted right.
      decoder_target_tokens: [B, T] int32, 0 is padding.
      encoder_segment_ids: [B, S] int32, the example of each position in a
        packed row; None when not packed.
      decoder_segment_ids: [B, T] int32, likewise.
      encoder_positions: accepted for T5X's callers; positions act through
        differences of indices alone, which packing leaves as they are.
      decoder_positions: likewise.
      enable_dropout: needs a `dropout` rng unless the rate is 0.
      decode: makes the decoding cache; see `Decoder`.
      prompt_table: [K, P, D] float, the prompt of every task; None for none.
      encoder_prompt_slots: [B, S] int32, j in 1..P where prompt vector j - 1
        goes, else 0.
      encoder_task_ids: [B, S] int32, rows of the table; None for row 0.
      return_hidden_states: returns them beside the logits.

    Returns:
      logits [B, T, V] float32, or with hidden states (logits, states): a dict
      of `encoder`, L + 2 arrays [B, S, D], and `decoder`, L + 2 arrays
      [B, T, D]: the embeddings with prompts, each block's output, the final
      norm's.
    """
    encoded, encoder_states = self._encode(
      encoder_input_tokens,
      encoder_segment_ids,
      enable_dropout,
      prompt_table,
      encoder_prompt_slots,
      encoder_task_ids,
    )
    logits, decoder_states = self._decode(
      encoded,
      encoder_input_tokens,
      decoder_input_tokens,
      decoder_target_tokens,
      encoder_segment_ids,
      decoder_segment_ids,
      enable_dropout,
      decode,
    )
    if not return_hidden_states:
      return logits
    return logits, {'encoder': encoder_states, 'decoder': decoder_states}

  def encode(
    self,
    encoder_input_tokens: Array,
    encoder_segment_ids: Array | None = None,
    *,
    enable_dropout: bool = True,
    prompt_table: Array | None = None,
    encoder_prompt_slots: Array | None = None,
    encoder_task_ids: Array | None = None,
  ) -> Array:
    """Returns the encoder's output [B, S, D]; arguments as `__call__`."""
    encoded, _ = self._encode(
      encoder_input_tokens,
      encoder_segment_ids,
      enable_dropout,
      prompt_table,
      encoder_prompt_slots,
      encoder_task_ids,
    )
    return encoded

  def decode(
    self,
    encoded: Array,
    encoder_input_tokens: Array,
    decoder_input_tokens: Array,
    decoder_target_tokens: Array,
    encoder_segment_ids: Array | None = None,
    decoder_segment_ids: Array | None = None,
    decoder_positions: Array | None = None,
    *,
    enable_dropout: bool = True,
    decode: bool = False,
    max_decode_length: int | None = None,
  ) -> Array:
    """Returns logits [B, T, V] of given encodings; arguments as `__call__`.

    A decoding step (`decode=True` with a `cache` collection) takes tokens
    [N, 1], N a multiple of B, the rows of one example next to one another.
    """
    logits, _ = self._decode(
      encoded,
      encoder_input_tokens,
      decoder_input_tokens,
      decoder_target_tokens,
      encoder_segment_ids,
      decoder_segment_ids,
      enable_dropout,
      decode,
      max_decode_length,
    )
    return logits

  def _encode(
    self, tokens, segment_ids, enable_dropout, prompt_table, slots, task_ids
  ):
    check_shape('encoder_input_tokens', tokens, (None, None))
    x = self.token_embedder(tokens)
    if prompt_table is not None:
      if slots is None:
        raise ValueError('prompt_table was given without encoder_prompt_slots')
      if task_ids is None:
        task_ids = jnp.zeros_like(slots)
      x = insert_prompts(x, prompt_table, slots, task_ids)
    mask = attention_mask(tokens, segment_ids, segment_ids)
    return self.encoder(x, mask, not enable_dropout)

  def _decode(
    self,
    encoded,
    encoder_tokens,
    tokens,
    targets,
    encoder_segment_ids,
    segment_ids,
    enable_dropout,
    decode,
    max_decode_length=None,
  ):
    cross_mask = attention_mask(
      encoder_tokens, segment_ids, encoder_segment_ids
    )
    mask = None  # In a step every cached position holds a token.
    if not decode:
      mask = attention_mask(targets, segment_ids, segment_ids)
    return self.decoder(
      encoded,
      tokens,
      mask,
      cross_mask,
      not enable_dropout,
      decode,
      max_decode_length,
    )


def _position_bias(
  config: T5Config, bidirectional: bool, positions: Positions
) -> Array:
  """The bias [1, H, T, S] of the module in whose compact call this is.

  It is a stack's one bias; of a config with one per layer, a block's.
  """
  return layers.RelativePositionBias(config, bidirectional, name='relpos_bias')(
    *positions
  )


def _norm(config: T5Config, name: str) -> layers.LayerNorm:
  return layers.LayerNorm(config.dtype, config.layer_norm_epsilon, name=name)


def init_params(config: T5Config, rng: Array) -> dict[str, Any]:
  """Draws fresh parameters, as T5X draws them.

  Args:
    config: the architecture.
    rng: a PRNG key.

  Returns:
    The float32 parameter tree, `encoder/layers_0/attention/query/kernel` ...
  """
  tokens = jnp.ones((1, 1), jnp.int32)
  init = jax.jit(
    lambda key: Transformer(config).init(
      key, tokens, tokens, tokens, enable_dropout=False
    )
  )
  return init(rng)['params']


@functools.cache
def param_shapes(config: T5Config) -> dict[str, tuple[int, ...]]:
  """Returns name -> shape of every parameter, sorted by name.

  Args:
    config: the architecture.

  Examples:
    >>> param_shapes(T5Config(vocab_size=9))['token_embedder/embedding']
    (9, 512)
  """
  return shapes_of(lambda: init_params(config, jax.random.key(0)))


def shapes_of(draw: Callable[[], Any]) -> dict[str, tuple[int, ...]]:
  """Returns name -> shape of what would be drawn, sorted by name."""
  flat = traverse_util.flatten_dict(jax.eval_shape(draw), sep='/')
  return {name: tuple(leaf.shape) for name, leaf in sorted(flat.items())}
