"""ATTEMPT: each input has its own mixture of source prompts."""

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from mpt_jax.methods.base import (
  Inputs,
  PromptsByExample,
  Start,
  by_rows,
  check_sources,
  layer_norm,
  prompt_digest,
)
from mpt_jax.methods.initializers import PromptInit, Uniform
from mpt_jax.types import Array, InputError, Positive, Rate

# Of the normal start values of W_down and W_up.
_STDDEV = 0.01
_TARGET = 'target'


@dataclasses.dataclass(frozen=True)
class Attempt(PromptsByExample):
  """A prompt for each example, of frozen source prompts and a learned one.

  With X the embedded input of an example, Z the source prompts and the prompt
  of its task (Asai et al., EMNLP 2022):

    q = LayerNorm(W_up silu(W_down max(X)))
    a = softmax over j of max(Z_j) . q / T
    prompt = sum over j of a_j Z_j + target

  where the maxima are over tokens. K * P * D + 2 * r * D + 2 * D numbers are
  learned: all tasks of a run share the attention, and each has its target
  prompt.

  Attributes:
    length: P, of all prompts.
    rank: r, the width of the attention's hidden layer.
    temperature: T; None is D * e (2087 on T5-base, as published; the code's
      default is 2000).
    pad_in_max: whether the maximum over X has padding in it, as in the
      published code. What an input's prompt is then depends on whether it is
      padded; without, it does not.
    train_layer_norm: whether LayerNorm's weight and bias train: the paper
      counts them, its code freezes them.
    sources: (task, digest of its prompt) of the source prompts, in order; a
      run reads them from what it starts from.
    init: how target prompts start; None is as a copy of the first source.
  """

  name: ClassVar[str] = 'attempt'
  title: ClassVar[str] = 'ATTEMPT'
  paper: ClassVar[str] = (
    'Asai et al., "ATTEMPT: Parameter-Efficient Multi-task Tuning via'
    ' Attentional Mixtures of Soft Prompts", EMNLP 2022'
  )
  groups: ClassVar[tuple[tuple[str, str], ...]] = (
    ('(attn|layer_norm)_.*', 'learning_rate'),
    ('target_prompts', 'task_learning_rate'),
  )
  rates: ClassVar[Mapping[str, tuple[float, float | None]]] = {
    'target': (0.3, None)
  }
  arrays: ClassVar[tuple[str, ...]] = (
    'target_prompts',
    'source_prompts',
    'attn_W_down',
    'attn_W_up',
    'layer_norm_weight',
    'layer_norm_bias',
  )

  length: Positive = 100
  rank: Positive = 100
  temperature: Rate | None = None
  pad_in_max: bool = False
  train_layer_norm: bool = True
  sources: tuple[tuple[str, str], ...] = dataclasses.field(
    default=(), kw_only=True
  )
  init: PromptInit | None = dataclasses.field(
    default=None, kw_only=True, compare=False
  )

  def __post_init__(self):
    for name, size in (
      ('PROMPT_LENGTH', self.length),
      ('ATTENTION_RANK', self.rank),
    ):
      if size < 1:
        raise InputError(f'{name} = {size} must be at least 1')
    given = self.temperature
    if given is not None and not 0 < given < math.inf:
      raise InputError(
        f'ATTENTION_TEMPERATURE = {given} must be above 0; None is the width'
        ' of the backbone times e'
      )
    check_sources(self.sources)

  @property
  def prompt_length(self) -> int:
    """P."""
    return self.length

  @property
  def trainable(self) -> tuple[str, ...]:
    """See `Method.trainable`: all but the source prompts."""
    trained = 'target_prompts|attn_W_(down|up)'
    if self.train_layer_norm:
      trained += '|layer_norm_(weight|bias)'
    return (f'{self.branch}/({trained})',)

  def of_source(self, read: Callable[[], Any]) -> 'Attempt':
    """See `Method.of_source`: what are its sources."""
    source = read()
    if source is None:
      raise InputError(
        f'method {self.name!r} needs SOURCE_PROMPTS, the prompts of source'
        ' tasks: a bundle with all of them, a list of bundles, or a path with'
        " '{task}' in it and the tasks as SOURCE_TASK"
      )
    named = zip(
      source.task_names, map(prompt_digest, source.table), strict=True
    )
    return dataclasses.replace(self, sources=tuple(named))

  def shapes(self, config: Any, num_tasks: int) -> dict[str, tuple[int, ...]]:
    """See `Method.shapes`."""
    width, rank = config.emb_dim, self.rank
    return {
      'target_prompts': (num_tasks, self.length, width),
      'source_prompts': (1, len(self.sources), self.length, width),
      'attn_W_down': (1, rank, width),
      'attn_W_up': (1, width, rank),
      'layer_norm_weight': (1, width),
      'layer_norm_bias': (1, width),
    }

  def num_parameters(self, config: Any, num_tasks: int) -> int:
    """K * P * D + 2 * r * D, and 2 * D where LayerNorm trains."""
    attention = 2 * self.rank + 2 * self.train_layer_norm
    return (num_tasks * self.length + attention) * config.emb_dim

  def initial(
    self, config: Any, num_tasks: int, start: Start
  ) -> dict[str, Array]:
    """See `Method.initial`: the query's weights alone are drawn."""
    method = self if self.sources else self.of_source(lambda: start.source)
    names = [name for name, _ in method.sources]
    sources = jnp.asarray(start.source.with_tasks(names).table)
    want = self.length, config.emb_dim
    if sources.shape[1:] != want:
      raise InputError(
        f'the source prompts {", ".join(names)} have (P, D) ='
        f' {sources.shape[1:]}, this run has {want}: set PROMPT_LENGTH as in'
        ' the source runs'
      )
    return method._start(config, num_tasks, start, sources)

  def _start(
    self, config: Any, num_tasks: int, start: Start, sources: Array
  ) -> dict[str, Array]:
    """The start values, with these source prompts [S, P, D]."""
    shapes = self.shapes(config, num_tasks)
    down, up, key = jax.random.split(start.key, 3)
    if self.init is None:
      target = sources[0]
    else:
      init = self.init.bind(start.embedding, start.tokenize)
      target = init(key, sources.shape[1:], jnp.float32)
    return {
      'target_prompts': jnp.repeat(target[None], num_tasks, axis=0),
      'source_prompts': sources[None],
      'attn_W_down': _STDDEV * jax.random.normal(down, shapes['attn_W_down']),
      'attn_W_up': _STDDEV * jax.random.normal(up, shapes['attn_W_up']),
      'layer_norm_weight': jnp.ones(shapes['layer_norm_weight']),
      'layer_norm_bias': jnp.zeros(shapes['layer_norm_bias']),
    }

  def fresh(self, config: Any, num_tasks: int, key: Array) -> dict[str, Array]:
    """As `Method.fresh`: all prompts are uniform in [-0.5, 0.5]."""
    drawn = dataclasses.replace(self, init=Uniform())
    key, sources = jax.random.split(key)
    shape = self.shapes(config, num_tasks)['source_prompts'][1:]
    values = jax.random.uniform(sources, shape, minval=-0.5, maxval=0.5)
    return drawn._start(config, num_tasks, Start(key), values)

  def check_can(self, **wanted: Any) -> None:
    """See `Method.check_can`."""
    super().check_can(**wanted)
    if self.pad_in_max and wanted.get('bucket'):
      raise InputError(
        'PAD_IN_MAX = True makes prompts depend on padding, and length buckets'
        " change that: give PADDING = 'max'"
      )

  # -- the attention ---------------------------------------------------------

  @property
  def weighed(self) -> tuple[str, ...]:
    """The source tasks, and 'target'."""
    return (*(name for name, _ in self.sources), _TARGET)

  def pooled(self, inputs: Inputs) -> Array:
    """The maximum over an input's positions [B, D] float32; 0 of none."""
    counted = inputs.is_token
    if self.pad_in_max:
      counted |= inputs.is_padding
    x = inputs.embedded.astype(jnp.float32)
    largest = jnp.max(jnp.where(counted[:, :, None], x, -jnp.inf), axis=1)
    # Rows that only fill a batch have no token at all.
    return jnp.where(jnp.any(counted, axis=1)[:, None], largest, 0.0)

  def query(self, own: Mapping[str, Any], pooled: Array) -> Array:
    """The queries [B, D] float32.

    Args:
      own: the method's arrays, [1, ...] or [B, ...].
      pooled: [B, D].
    """
    x = pooled[:, :, None]
    # Products of so few numbers are not worth rounding.
    x = jnp.matmul(own['attn_W_down'], x, precision='highest')
    x = jnp.matmul(own['attn_W_up'], jax.nn.silu(x), precision='highest')
    return layer_norm(
      x[:, :, 0], own['layer_norm_weight'], own['layer_norm_bias']
    )

  def scores(self, own: Mapping[str, Any], query: Array) -> Array:
    """What the softmax is taken of [B, S + 1], the target last."""
    keys = jnp.max(own['source_prompts'], axis=-2)
    of_sources = jnp.matmul(keys, query[:, :, None], precision='highest')
    key = jnp.max(own['target_prompts'], axis=-2)
    of_target = jnp.sum(key * query, axis=-1, keepdims=True)
    given = self.temperature
    temperature = query.shape[-1] * math.e if given is None else given
    scores = jnp.concatenate([of_sources[:, :, 0], of_target], axis=-1)
    return scores / temperature

  def example_weights(self, arrays: Mapping[str, Any], inputs: Inputs) -> Array:
    """The attention [B, S + 1] float32; see `weighed`."""
    own = _own(arrays, inputs)
    return jax.nn.softmax(
      self.scores(own, self.query(own, self.pooled(inputs)))
    )

  def example_prompts(self, arrays: Mapping[str, Any], inputs: Inputs) -> Array:
    """See `PromptsByExample.example_prompts`."""
    own, weights = _own(arrays, inputs), self.example_weights(arrays, inputs)
    sources, target = own['source_prompts'], own['target_prompts']
    mixed = jnp.einsum(
      'bs,spd->bpd', weights[:, :-1], sources[0], precision='highest'
    )
    return mixed + (1 + weights[:, -1])[:, None, None] * target


def _own(arrays: Mapping[str, Any], inputs: Inputs) -> Mapping[str, Any]:
  """The arrays of each example's task, [1, ...] or [B, ...]."""
  own: Mapping[str, Any] = by_rows(
    {name: jnp.asarray(value) for name, value in arrays.items()}, inputs.rows
  )
  return own
