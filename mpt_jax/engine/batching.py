"""Tokenised examples to a batch of model features, in NumPy.

The same features as `PromptFeatureConverter` makes in tf.data (a test holds
them equal). Training uses this one: without a graph to trace, a run starts at
once, any batch can be made anew from the examples it holds, and the two cores
of a laptop are left to the model.
"""

from collections.abc import Iterable, Sequence
import dataclasses

import numpy as np

from mpt_jax.engine.buckets import Buckets

# What stands in `encoder_input_tokens` where a prompt vector goes. It is never
# embedded; it must only differ from padding. T5's unknown mark.
SLOT_TOKEN = 2
# T5's end-of-sequence mark.
EOS = 1


@dataclasses.dataclass(frozen=True)
class Example:
  """A tokenised example.

  Attributes:
    inputs: [<= S - P] int32, ends with the end-of-sequence mark.
    targets: [<= T] int32, likewise; for an encoder that fills a mask, the
      words that could fill it.
    row: the row of its task in the prompt table.
    classes: for an encoder, [n] int32: the class of each word, from 1. None
      for a model that writes its targets.
    weights: likewise, 1 at the first word of the right class, else 0.
  """

  inputs: np.ndarray
  targets: np.ndarray
  row: int
  classes: np.ndarray | None = None
  weights: np.ndarray | None = None


def cut(
  tokens: np.ndarray, limit: int, end: int = EOS, mask: int | None = None
) -> np.ndarray:
  """Cuts tokens to a length; a final end-of-sequence mark stays final.

  Args:
    tokens: [length] int32.
    limit: the length to cut to.
    end: the end-of-sequence mark.
    mask: what an encoder fills in. It stays, too: where it would be cut off,
      it stands behind what is left.

  Returns:
    [min(length, limit)] int32.
  """
  if len(tokens) <= limit:
    return tokens
  short = tokens[:limit].copy()
  kept = limit
  if tokens[-1] == end:
    short[-1] = end
    kept -= 1
  if mask is not None and mask in tokens[kept:]:
    short[kept - 1] = mask
  return short


class Packer:
  """Puts examples into the rows of one batch as long as there is room."""

  def __init__(
    self,
    batch_size: int,
    input_length: int,
    target_length: int,
    prompt_length: int,
    pack: bool,
  ):
    """Opens an empty batch.

    Args:
      batch_size: B, the number of rows.
      input_length: S, prompt slots included.
      target_length: T.
      prompt_length: P.
      pack: whether a row takes more than one example.
    """
    self._pack = pack
    self._prompt_length = prompt_length
    self._room = np.tile([input_length, target_length], (batch_size, 1))
    self._shape = (batch_size, input_length, target_length)
    self._rows: list[list[Example]] = [[] for _ in range(batch_size)]

  def add(self, example: Example) -> bool:
    """Puts an example into the first row with room for it.

    Args:
      example: the example.

    Returns:
      Whether there was room; if not, the batch is complete without it.
    """
    need = np.array(
      [self._prompt_length + len(example.inputs), len(example.targets)]
    )
    fits = np.flatnonzero((self._room >= need).all(axis=1))
    if not len(fits):
      return False
    self._rows[fits[0]].append(example)
    self._room[fits[0]] = self._room[fits[0]] - need if self._pack else 0
    return True

  def finish(self, part: slice = slice(None)) -> dict[str, np.ndarray]:
    """Returns the batch: see docs/architecture.md, [B, S] or [B, T] int32.

    Args:
      part: the rows to return, a host's part of the batch; default all.
    """
    rows = self._rows[part]
    shape = (len(rows), *self._shape[1:])
    return lay_out(rows, shape, self._prompt_length, packed=self._pack)


class Collector:
  """Takes the examples of one batch, one to a row."""

  def __init__(self, batch_size: int, prompt_length: int):
    """Opens an empty batch.

    Args:
      batch_size: B, examples in a batch.
      prompt_length: P.
    """
    self._size, self._prompt_length = batch_size, prompt_length
    self._examples: list[Example] = []

  def add(self, example: Example) -> bool:
    """Takes an example; returns whether there was room."""
    if len(self._examples) == self._size:
      return False
    self._examples.append(example)
    return True

  def lengths(self) -> np.ndarray:
    """[N, 2] int: the positions that each example needs, S and T."""
    return lengths_of(self._examples, self._prompt_length)


class Bucketer(Collector):
  """Takes the examples of one batch and lays them out in parts."""

  def __init__(self, batch_size: int, prompt_length: int, buckets: Buckets):
    """Opens an empty batch; see `Collector`.

    Args:
      batch_size: B, examples in a batch.
      prompt_length: P.
      buckets: how to cut it.
    """
    super().__init__(batch_size, prompt_length)
    self._buckets = buckets

  def finish(self, part: slice = slice(None)) -> list[dict[str, np.ndarray]]:
    """Returns the parts of the batch, each as `Packer.finish` returns one.

    Args:
      part: the rows to return of a part that has `Buckets.rows` of them, a
        host's share; of smaller parts the same share. Default all.
    """
    laid_out = []
    for cut in self._buckets.cut(self.lengths()):
      begin, end, _ = (
        x * len(cut.members) // self._buckets.rows
        for x in part.indices(self._buckets.rows)
      )
      rows = [[self._examples[i]] for i in cut.members[begin:end]]
      shape = len(rows), cut.input_length, cut.target_length
      laid_out.append(lay_out(rows, shape, self._prompt_length, packed=False))
    return laid_out


def lengths_of(examples: Sequence[Example], prompt_length: int) -> np.ndarray:
  """[N, 2] int: the positions that each example needs, S and T."""
  return np.array(
    [[prompt_length + len(e.inputs), len(e.targets)] for e in examples]
  ).reshape(-1, 2)


def lay_out(
  rows: Iterable[Sequence[Example]],
  shape: tuple[int, int, int],
  prompt_length: int,
  packed: bool,
) -> dict[str, np.ndarray]:
  """Writes examples into the arrays of a batch.

  Args:
    rows: the examples of each row, one after the other.
    shape: (B, S, T).
    prompt_length: P.
    packed: whether to tell the examples of a row apart by segments.

  Returns:
    The model features, [B, S] or [B, T] int32.
  """
  batch, source, target = shape
  encoder = {
    name: np.zeros((batch, source), np.int32)
    for name in (
      'input_tokens',
      'prompt_slots',
      'task_ids',
      'segment_ids',
      'positions',
    )
  }
  decoder = {
    name: np.zeros((batch, target), np.int32)
    for name in ('target_tokens', 'segment_ids', 'positions')
  }
  slots = np.arange(1, prompt_length + 1)
  given: list[tuple[int, slice, np.ndarray, np.ndarray]] = []
  for b, examples in enumerate(rows):
    s = t = 0
    for segment, example in enumerate(examples, start=1):
      own = s + prompt_length
      end = own + len(example.inputs)
      encoder['input_tokens'][b, s:own] = SLOT_TOKEN
      encoder['input_tokens'][b, own:end] = example.inputs
      encoder['prompt_slots'][b, s:own] = slots
      encoder['task_ids'][b, s:end] = example.row
      encoder['segment_ids'][b, s:end] = segment
      encoder['positions'][b, s:end] = np.arange(end - s)
      s = end
      end = t + len(example.targets)
      decoder['target_tokens'][b, t:end] = example.targets
      decoder['segment_ids'][b, t:end] = segment
      decoder['positions'][b, t:end] = np.arange(end - t)
      if example.classes is not None and example.weights is not None:
        given.append((b, slice(t, end), example.classes, example.weights))
      t = end
  shifted = np.zeros_like(decoder['target_tokens'])
  shifted[:, 1:] = decoder['target_tokens'][:, :-1]
  if packed:
    shifted[decoder['positions'] == 0] = 0
  weights = (decoder['target_tokens'] > 0).astype(np.int32)
  for b, place, classes, chosen in given:
    shifted[b, place.stop : place.stop + 1] = 0
    shifted[b, place] = classes
    weights[b, place] = chosen
  features = {
    'encoder_input_tokens': encoder['input_tokens'],
    'encoder_prompt_slots': encoder['prompt_slots'],
    'encoder_task_ids': encoder['task_ids'],
    'decoder_target_tokens': decoder['target_tokens'],
    'decoder_input_tokens': shifted,
    'decoder_loss_weights': weights,
  }
  if packed:
    for name in ('segment_ids', 'positions'):
      features[f'encoder_{name}'] = encoder[name]
      features[f'decoder_{name}'] = decoder[name]
  return features
