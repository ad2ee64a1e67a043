"""Start values of a prompt.

Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning",
EMNLP 2021, section 3.2. `bind` takes what the run knows and returns a Flax
initialiser for [P, D].
"""

from collections.abc import Callable, Sequence
import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mpt_jax.types import Array, InputError, require_local

Tokenize = Callable[[str], Sequence[int]]

# Ids below this are padding, end of sequence and unknown in every T5
# vocabulary: their embeddings say nothing a prompt could start from.
_FIRST_WORD_ID = 3


@dataclasses.dataclass(frozen=True)
class Uniform:
  """Uniform in [-scale, scale].

  Note that `flax.linen.initializers.uniform(scale)` draws from [0, scale).
  """

  scale: float = 0.5

  def bind(self, embedding: Any = None, tokenize: Tokenize | None = None):
    """Returns an initialiser (key, [P, D], dtype) -> [P, D]."""
    del embedding, tokenize

    def init(key: Array, shape: Sequence[int], dtype=jnp.float32) -> Array:
      return jax.random.uniform(
        key, shape, dtype, minval=-self.scale, maxval=self.scale
      )

    return init


@dataclasses.dataclass(frozen=True)
class SampledVocabulary:
  """Embeddings of random words among the `max_id` most common ones."""

  max_id: int = 5000

  def bind(self, embedding: Any = None, tokenize: Tokenize | None = None):
    """Returns an initialiser (key, [P, D], dtype) -> [P, D]."""
    del tokenize
    table = _need_embedding(embedding, 'SampledVocabulary')

    def init(key: Array, shape: Sequence[int], dtype=jnp.float32) -> Array:
      words = min(self.max_id, table.shape[0]) - _FIRST_WORD_ID
      ids = _FIRST_WORD_ID + jax.random.choice(
        key, words, (shape[0],), replace=words < shape[0]
      )
      return jnp.asarray(table[np.asarray(ids)], dtype)

    return init


WORDS = SampledVocabulary()


@dataclasses.dataclass(frozen=True)
class ClassLabels:
  """Mean embedding of each label's tokens; sampled words fill what is left."""

  labels: tuple[str, ...]
  max_id: int = 5000

  def bind(self, embedding: Any = None, tokenize: Tokenize | None = None):
    """Returns an initialiser (key, [P, D], dtype) -> [P, D]."""
    table = _need_embedding(embedding, 'ClassLabels')
    tokens = [
      _tokens_of(label, tokenize, 'ClassLabels') for label in self.labels
    ]
    rows = np.stack([table[np.asarray(ids)].mean(axis=0) for ids in tokens])
    return _with_fallback(rows, SampledVocabulary(self.max_id).bind(table))


@dataclasses.dataclass(frozen=True)
class FromString:
  """Embeddings of a text's tokens, cut at P; sampled words fill the rest."""

  text: str
  max_id: int = 5000

  def bind(self, embedding: Any = None, tokenize: Tokenize | None = None):
    """Returns an initialiser (key, [P, D], dtype) -> [P, D]."""
    table = _need_embedding(embedding, 'FromString')
    rows = table[np.asarray(_tokens_of(self.text, tokenize, 'FromString'))]
    return _with_fallback(rows, SampledVocabulary(self.max_id).bind(table))


@dataclasses.dataclass(frozen=True)
class FromArray:
  """A given [P, D] matrix; `FromFile` reads one."""

  values: Any

  def bind(self, embedding: Any = None, tokenize: Tokenize | None = None):
    """Returns an initialiser (key, [P, D], dtype) -> [P, D]."""
    del embedding, tokenize

    def init(key: Array, shape: Sequence[int], dtype=jnp.float32) -> Array:
      del key
      if np.shape(self.values) != tuple(shape):
        raise InputError(
          f'the start prompt has shape {np.shape(self.values)}, the run needs'
          f' {tuple(shape)}: set PROMPT_LENGTH or give another prompt'
        )
      return jnp.asarray(self.values, dtype)

    return init


@dataclasses.dataclass(frozen=True)
class FromFile:
  """A [P, D] matrix from a `.npy` file, the layout of Google's prompts."""

  path: str

  def bind(self, embedding: Any = None, tokenize: Tokenize | None = None):
    """Returns an initialiser (key, [P, D], dtype) -> [P, D]."""
    path = require_local(self.path)
    if not os.path.isfile(path):
      raise InputError(f'prompt file {self.path!r} does not exist')
    try:
      values = np.load(path, allow_pickle=False)
    except ValueError as e:
      raise InputError(
        f'prompt file {self.path!r} is no .npy array: {e}'
      ) from e
    return FromArray(values).bind(embedding, tokenize)


PromptInit = (
  Uniform | SampledVocabulary | ClassLabels | FromString | FromArray | FromFile
)


def _need_embedding(embedding: Any, who: str) -> np.ndarray:
  if embedding is None:
    raise InputError(f'{who} needs a backbone with an embedding')
  return np.asarray(embedding)


def _tokens_of(text: str, tokenize: Tokenize | None, who: str) -> list[int]:
  if tokenize is None:
    raise InputError(f'{who} needs a vocabulary: set VOCABULARY')
  ids = [int(i) for i in tokenize(text)]
  if not ids:
    raise InputError(f'{who}: {text!r} has no tokens in this vocabulary')
  return ids


def _with_fallback(rows: np.ndarray, fallback: Callable):
  """The given rows first, cut at P; `fallback` draws what is missing."""

  def init(key: Array, shape: Sequence[int], dtype=jnp.float32) -> Array:
    values = fallback(key, shape, dtype)
    count = min(len(rows), shape[0])
    return values.at[:count].set(jnp.asarray(rows[:count], dtype))

  return init
