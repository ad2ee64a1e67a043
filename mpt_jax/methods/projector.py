"""A projector: prompts of another backbone, made into prompts of this one."""

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mpt_jax.methods.base import (
  BUNDLE,
  PROMPTS,
  Sets,
  Start,
  check_sources,
  layer_norm,
  prompt_digest,
)
from mpt_jax.types import Array, InputError, Positive, check_least, nearest

# LeakyReLU's slope is 0.01, in jax as in torch.
ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
  'leaky_relu': jax.nn.leaky_relu,
  'tanh': jnp.tanh,
}
WEIGHTS = 'fan_in', 'torch', 'normal'
# Of a flattened projector, as published.
_HIDDEN = 768
_SOURCES = 'source_prompts'
_MATRICES = ('w1', 'b1', 'w2', 'b2')


@dataclasses.dataclass(frozen=True)
class Projector(Sets):
  """Each task's prompt is that of a source backbone, through a small network.

    Proj(P) = LayerNorm(W2 a(W1 vec(P) + b1) + b2)

  where vec(P) is the whole prompt, token by token, or with `flatten` False
  each of its vectors (Su et al., NAACL 2022). The source prompts are frozen,
  and all tasks of the run share the network: an example of task k takes the
  k-th source prompt, that of the task of its name. The source backbone itself
  is not needed. With I inputs and O outputs of the network,
  (I + 1) h + (h + 1) O + 2 D numbers are learned.

  Attributes:
    length: P, of the prompts that are made; with `flatten` False that of the
      source prompts.
    hidden: h, the width inside; None is 768, with `flatten` False D.
    flatten: whether a prompt goes through as one vector; False: its vectors
      one by one, which needs fewer weights by P^2.
    layers: matrices: 2, or 1, where the activation stands behind it.
    activation: 'leaky_relu' or 'tanh'.
    layer_norm: whether each vector is normalized at the end.
    weights: how they start: 'fan_in', N(0, 1 / fan_in) and biases of 0;
      'torch', as a torch.nn.Linear; or 'normal', N(0, 1), as the published
      code has it for T5, with torch's biases.
    sources: (task, digest of its prompt) of the source prompts, in the order
      of the run's tasks; a run reads them and what follows from
      SOURCE_PROMPTS.
    source_length: of the source prompts.
    source_width: of the source backbone.
    source_backbone: what that is called; '' if not known.
    source_fingerprint: digest of that; '' if not known.
  """

  name: ClassVar[str] = 'projector'
  title: ClassVar[str] = 'cross-model projector'
  paper: ClassVar[str] = (
    'Su et al., "On Transferability of Prompt Tuning for Natural Language'
    ' Processing", NAACL 2022'
  )
  branch: ClassVar[str | None] = PROMPTS
  no_matrix: ClassVar[str] = ''
  # One network for all tasks is worth what they score together.
  together: ClassVar[bool] = True
  foreign_source: ClassVar[bool] = True
  rates: ClassVar[Mapping[str, tuple[float, float | None]]] = {
    'target': (5e-3, None)
  }
  formats: ClassVar[tuple[str, ...]] = ('npy', 'peft_composed', BUNDLE)
  cannot: ClassVar[Mapping[str, str]] = {
    't5x': 'the T5X engine trains prompts themselves; use mpt_jax.train'
  }

  length: Positive = 100
  hidden: Positive | None = None
  flatten: bool = True
  layers: Positive = 2
  activation: str = 'leaky_relu'
  layer_norm: bool = True
  weights: str = dataclasses.field(default='fan_in', compare=False)
  sources: tuple[tuple[str, str], ...] = dataclasses.field(
    default=(), kw_only=True
  )
  source_length: int = dataclasses.field(default=0, kw_only=True)
  source_width: int = dataclasses.field(default=0, kw_only=True)
  source_backbone: str = dataclasses.field(default='', kw_only=True)
  source_fingerprint: str = dataclasses.field(default='', kw_only=True)

  def __post_init__(self):
    check_least(1, PROMPT_LENGTH=self.length)
    if self.hidden is not None:
      check_least(1, PROJECTOR_HIDDEN=self.hidden)
    if self.layers not in (1, 2):
      raise InputError(f'PROJECTOR_LAYERS = {self.layers!r}, expected 1 or 2')
    for macro, value, known in (
      ('PROJECTOR_ACTIVATION', self.activation, ACTIVATIONS),
      ('PROJECTOR_WEIGHTS', self.weights, WEIGHTS),
    ):
      if value not in known:
        raise InputError(
          f'{macro} = {value!r}, expected one of {", ".join(known)}'
          f'{nearest(str(value), known)}'
        )
    check_sources(self.sources)

  @property
  def prompt_length(self) -> int:
    """P."""
    return self.length

  @property
  def trainable(self) -> tuple[str, ...]:
    """See `Method.trainable`: all but the source prompts."""
    return (f'{self.branch}/(?!{_SOURCES}).*',)

  def of_source(self, read: Callable[[], Any]) -> 'Projector':
    """See `Method.of_source`: what the sources are, and of which backbone."""
    source = read()
    if source is None:
      raise InputError(
        f'method {self.name!r} needs SOURCE_PROMPTS, the prompts of another'
        " backbone: a bundle, a list of bundles, or a path with '{task}' in"
        ' it, with a prompt for each task of the run'
      )
    table = source.table
    _, length, width = table.shape
    if not self.flatten and length != self.length:
      raise InputError(
        f'the source prompts have {length} vectors and PROMPT_LENGTH ='
        f' {self.length}: with FLATTEN = False each vector becomes one, so they'
        ' must be equal'
      )
    named = zip(source.task_names, map(prompt_digest, table), strict=True)
    return dataclasses.replace(
      self,
      sources=tuple(named),
      source_length=length,
      source_width=width,
      source_backbone=source.backbone_name,
      source_fingerprint=source.backbone_fingerprint,
    )

  def sizes(self, width: int) -> list[tuple[int, int]]:
    """The (inputs, outputs) of each matrix, to a backbone of a width D."""
    first, last = self.source_width, width
    if self.flatten:
      first, last = self.source_length * first, self.length * last
    if self.layers == 1:
      return [(first, last)]
    hidden = self.hidden or (_HIDDEN if self.flatten else width)
    return [(first, hidden), (hidden, last)]

  def shapes(self, config: Any, num_tasks: int) -> dict[str, tuple[int, ...]]:
    """See `Method.shapes`; matrices are [1, out, in], as torch has them."""
    found: dict[str, tuple[int, ...]] = {
      _SOURCES: (num_tasks, self.source_length, self.source_width)
    }
    for number, (first, last) in enumerate(self.sizes(config.emb_dim), 1):
      found[f'w{number}'], found[f'b{number}'] = (1, last, first), (1, last)
    if self.layer_norm:
      found |= dict.fromkeys(('ln_weight', 'ln_bias'), (1, config.emb_dim))
    return found

  def num_parameters(self, config: Any, num_tasks: int) -> int:
    """(I + 1) h + (h + 1) O, and 2 D of the layer norm."""
    matrices = (
      (first + 1) * last for first, last in self.sizes(config.emb_dim)
    )
    return sum(matrices) + 2 * config.emb_dim * self.layer_norm

  def size_of(self, arrays: Mapping[str, Any]) -> tuple[int, int]:
    """See `Method.size_of`."""
    shape = np.shape(arrays.get(f'b{self.layers}', ()))
    outputs = shape[-1] if shape else 0
    return self.length, outputs // (self.length if self.flatten else 1)

  def initial(
    self, config: Any, num_tasks: int, start: Start
  ) -> dict[str, Array]:
    """See `Method.initial`: the sources, and a network that is drawn."""
    method = self if self.sources else self.of_source(lambda: start.source)
    names = [name for name, _ in method.sources]
    if len(names) != num_tasks:
      raise InputError(
        f'there are source prompts of {", ".join(names)}, and the run has'
        f' {num_tasks} tasks: each takes one'
      )
    sources = jnp.asarray(start.source.with_tasks(names).table)
    return method._start(config, start.key, sources)

  def fresh(self, config: Any, num_tasks: int, key: Array) -> dict[str, Array]:
    """As `Method.fresh`: the sources are uniform in [-0.5, 0.5]."""
    key, sources = jax.random.split(key)
    shape = self.shapes(config, num_tasks)[_SOURCES]
    drawn = jax.random.uniform(sources, shape, minval=-0.5, maxval=0.5)
    return self._start(config, key, drawn)

  def _start(self, config: Any, key: Array, sources: Array) -> dict[str, Array]:
    """The start values, with these source prompts [K, L, d]."""
    shapes = self.shapes(config, len(sources))
    keys = dict(zip(_MATRICES, jax.random.split(key, 4), strict=True))
    found = {_SOURCES: sources}
    for number, (inputs, _) in enumerate(self.sizes(config.emb_dim), 1):
      bound = 1 / math.sqrt(inputs)
      for name in (f'w{number}', f'b{number}'):
        drawn = keys[name], shapes[name]
        if name[0] == 'b' and self.weights == 'fan_in':
          found[name] = jnp.zeros(shapes[name])
        elif name[0] == 'b' or self.weights == 'torch':
          found[name] = jax.random.uniform(*drawn, minval=-bound, maxval=bound)
        else:
          scale = bound if self.weights == 'fan_in' else 1.0
          found[name] = scale * jax.random.normal(*drawn)
    if self.layer_norm:
      found['ln_weight'] = jnp.ones(shapes['ln_weight'])
      found['ln_bias'] = jnp.zeros(shapes['ln_bias'])
    return found

  def prompt_table(self, arrays: Mapping[str, Any], num_tasks: int) -> Array:
    """[K, P, D]: the source prompts, projected."""
    del num_tasks
    own = {name: jnp.asarray(array) for name, array in arrays.items()}
    prompts = own[_SOURCES]
    tasks = len(prompts)
    # [K, N, I]: one vector a prompt, or all that it has.
    x = prompts.reshape(tasks, 1, -1) if self.flatten else prompts
    act = ACTIVATIONS[self.activation]
    x = act(_linear(x, own['w1'], own['b1']))
    if self.layers == 2:
      x = _linear(x, own['w2'], own['b2'])
    x = x.reshape(tasks, self.length, -1)
    if not self.layer_norm:
      return x
    weight, bias = own['ln_weight'][:, None], own['ln_bias'][:, None]
    return layer_norm(x, weight, bias)


def _linear(x: Array, weight: Array, bias: Array) -> Array:
  """Returns x W^T + b of [K, N, I], with W [1 or K, O, I] and b [1 or K, O]."""
  # A prompt is few numbers, which are not worth rounding.
  y = jnp.matmul(x, weight.swapaxes(1, 2), precision='highest')
  return y + bias[:, None]
