"""What prompts do in their backbone: which neurons they switch on.

Su et al., "On Transferability of Prompt Tuning for Natural Language
Processing", NAACL 2022. A neuron is an output of the first matrix
of a feed-forward block; it is active above 0.
"""

from collections.abc import Mapping, Sequence
import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mpt_jax import models
from mpt_jax.backbones import Config
from mpt_jax.checkpoints.backbone import Backbone
from mpt_jax.engine import partitioning
from mpt_jax.engine.settings import Devices
from mpt_jax.transfer import retrieval
from mpt_jax.transfer.sources import SourcePrompt, table_of
from mpt_jax.types import InputError, nearest

log = logging.getLogger(__name__)

SIDES = ('encoder', 'decoder')
# Which first matrix of a gated block, by its number.
ACTIVATIONS: Mapping[str, int] = {'pre': 0, 'linear': 1}
_SENTINEL = '<extra_id_0>'

Window = tuple[int, int]


def activations(
  backbone: Backbone,
  prompts: Sequence[SourcePrompt],
  *,
  sentinel: str | int | None = None,
  kind: str = 'pre',
  devices: Devices = Devices(),
) -> dict[str, np.ndarray]:
  """Returns what prompts make of the neurons of the feed-forward blocks.

  All prompts run through the network as one batch, each with one token behind
  it and the start token in the decoder. Nothing is padded, so that no mask
  matters (the published code attends padding here). A masked encoder has
  `<s> <mask> </s>` behind them and is read at the mask; where prompts have no
  positions, `<s>`, and the mask in the first slot.

  Args:
    backbone: the prompts' own.
    prompts: N of one shape.
    sentinel: the token behind the prompt, as a text that is one token or as
      its id; None is <extra_id_0>, in a vocabulary without it the highest id.
      A masked encoder has none.
    kind: 'pre' is the output of the first matrix before its activation (`wi`,
      of gated blocks the gate `wi_0`), 'linear' that of the gate's partner
      `wi_1`. Their product, the input of `wo`, is not offered: where a gate is
      shut its sign is that of a rounding error.
    devices: where to run.

  Returns:
    'encoder' -> [N, L, F] float32, at the token behind the prompt, or at the
    mask; 'decoder' -> [N, L, F] float32, at the start token, if there is one.

  Raises:
    InputError: if there is no such token or kind, or a prompt is of another
      width.
  """
  config = devices.configure(backbone.config)
  table = table_of(prompts)
  if table.shape[-1] != config.emb_dim:
    raise InputError(
      f'the prompts are {table.shape[-1]} wide, and {backbone.name}'
      f' {config.emb_dim}'
    )
  neuron = _neuron(config, kind)
  special, ids = backbone.special_ids, backbone.special_ids.of_model()
  model = models.class_of(config)(config, **ids)
  mesh = partitioning.make_mesh(devices.num_partitions)
  params = partitioning.place_backbone(
    backbone.params,
    mesh,
    dtype=config.matrix_dtype,
    scan_layers=devices.scan_layers,
    shard_backbone=devices.shard_backbone,
  )
  count, length = table.shape[:2]
  token = sentinel_id(backbone, sentinel)
  if token is not None:
    behind, place = [token], length
  elif getattr(config, 'prompt_positions', '') == 'none':
    behind, place = special.swap([special.begin or 0]), 0
  else:
    assert special.mask is not None
    behind = special.swap([special.begin or 0, special.mask, special.end])
    place = length + 1
  tokens = np.tile([*[behind[0]] * length, *behind], (count, 1))
  batch = {
    'encoder_input_tokens': tokens,
    'encoder_prompt_slots': np.tile(
      [*range(1, length + 1), *[0] * len(behind)], (count, 1)
    ),
    'encoder_task_ids': np.tile(np.arange(count)[:, None], tokens.shape[1]),
    'decoder_input_tokens': np.full((count, 1), ids.get('start_id', 0)),
  }
  batch = {name: array.astype(np.int32) for name, array in batch.items()}
  found = partitioning.to_host(
    _run(params, table, batch, model=model, neuron=neuron, place=place)
  )
  return {side: np.asarray(a, np.float32) for side, a in found.items()}


@functools.partial(jax.jit, static_argnames=('model', 'neuron', 'place'))
def _run(
  params: Any,
  table: Any,
  batch: Mapping[str, Any],
  model: models.PromptedModel,
  neuron: str,
  place: int,
) -> dict[str, Any]:
  """The outputs of the matrices called `neuron`, by side.

  The encoder's are those at a place of each row, the decoder's the only ones.
  """
  found = model.captured(params, table, batch, neuron)
  places = {'encoder': place, 'decoder': 0}
  return {
    side: _by_layer(found[side], neuron, places[side])
    for side in SIDES
    if side in found
  }


def _by_layer(found: Mapping[str, Any], neuron: str, place: int) -> Any:
  """[N, L, F] at a position of a stack, of what it has captured."""
  if 'layers' in found:  # scanned: [L, N, S, F]
    [stacked] = found['layers']['mlp'][neuron]['__call__']
    return jnp.swapaxes(stacked[:, :, place], 0, 1)
  layers = [found[f'layers_{i}'] for i in range(len(found))]
  outputs = [layer['mlp'][neuron]['__call__'][0] for layer in layers]
  return jnp.stack([output[:, place] for output in outputs], axis=1)


def _neuron(config: Config, kind: str) -> str:
  """The name of the matrix whose outputs are the neurons."""
  gated = len(config.mlp_activations) > 1
  if kind not in ACTIVATIONS:
    reason = (
      ": of the product behind the gate the sign is a rounding error's"
      if kind == 'mid'
      else nearest(str(kind), ACTIVATIONS)
    )
    raise InputError(
      f'ACTIVATIONS is {kind!r}, expected one of {", ".join(ACTIVATIONS)}'
      f'{reason}'
    )
  number = ACTIVATIONS[kind]
  if number and not gated:
    raise InputError(
      f"ACTIVATIONS is {kind!r}, but this backbone's blocks have no gate: take"
      " 'pre'"
    )
  return f'wi_{number}' if gated else 'wi'


def sentinel_id(
  backbone: Backbone, sentinel: str | int | None = None
) -> int | None:
  """Returns our id of the token behind a prompt; see `activations`.

  None for a masked encoder.

  Raises:
    InputError: if it is no single token of the backbone.
  """
  special, rows = backbone.special_ids, backbone.config.vocab_size
  if special.begin is not None:
    if sentinel is not None:
      raise InputError(
        f'SENTINEL is {sentinel!r}, but {backbone.name} is read at its mask:'
        ' give None'
      )
    return None
  if isinstance(sentinel, int):
    if not 0 <= sentinel < rows or sentinel == special.pad:
      raise InputError(
        f'SENTINEL is {sentinel}, expected an id below {rows} that does not pad'
      )
    return special.swap([sentinel])[0]
  if backbone.vocabulary is None:
    backbone = backbone.with_vocabulary()
  vocabulary = backbone.vocabulary
  known = None
  if vocabulary is not None:
    known = vocabulary.id_of(_SENTINEL if sentinel is None else sentinel)
  if known is not None:
    return special.swap([known])[0]
  if sentinel is not None:
    raise InputError(
      f'SENTINEL is {sentinel!r}, which is no token of {backbone.name}: give'
      " one as its vocabulary writes it ('</s>'), or its id"
    )
  highest = (rows if vocabulary is None else vocabulary.size) - 1
  log.warning(
    '%s has no %s: id %d, its highest, stands behind the prompts; SENTINEL'
    ' names another',
    backbone.name,
    _SENTINEL,
    highest,
  )
  return special.swap([highest])[0]


def windows(layers: int, width: int) -> list[Window]:
  """Returns windows of layers, (first, behind the last), and that of all.

  They stand one behind another from the bottom, as in Su et al., who have
  three layers in each; the last may be shorter. 'All layers' comes last.

  Examples:
    >>> windows(8, 3)
    [(0, 3), (3, 6), (6, 8), (0, 8)]
  """
  found = [(i, min(i + width, layers)) for i in range(0, layers, width)]
  return [*found, (0, layers)] if len(found) > 1 else found


def _active(states: np.ndarray, window: Window | None) -> np.ndarray:
  """[N, neurons of the window] float64, 1 where active."""
  layers = states.shape[1]
  first, behind = window or (0, layers)
  if not 0 <= first < behind <= layers:
    raise InputError(
      f'the window {first, behind} is not within the {layers} layers: expected'
      ' (first, behind the last)'
    )
  chosen = states[:, first:behind] > 0
  return chosen.reshape(len(states), -1).astype(np.float64)


def on(states: np.ndarray, window: Window | None = None) -> np.ndarray:
  """Returns ON, the overlapping rate of activated neurons.

  Args:
    states: [N, L, F], from `activations`; a neuron is active above 0.
    window: (first layer, behind the last); None is all.

  Returns:
    [N, N] float64, |A and B| / sqrt(|A| |B|): the cosine of the sets.
  """
  units = retrieval.units(_active(states, window))
  return units @ units.T


def jaccard(states: np.ndarray, window: Window | None = None) -> np.ndarray:
  """Returns |A and B| / |A or B| [N, N]; arguments as `on`."""
  active = _active(states, window)
  both, sizes = active @ active.T, active.sum(1)
  either = sizes[:, None] + sizes[None, :] - both
  return np.divide(both, either, out=np.zeros_like(both), where=either > 0)


def raw_cosine(states: np.ndarray) -> np.ndarray:
  """Returns the cosines [L, N, N] of the activations of each layer."""
  units = retrieval.units(np.asarray(states, np.float64).swapaxes(0, 1))
  return units @ units.swapaxes(1, 2)


def overlap(
  backbone: Backbone,
  prompts: Sequence[SourcePrompt],
  side: str | None = None,
  window: Window | None = None,
  **options: Any,
) -> np.ndarray:
  """Returns ON of prompts from one run through their backbone.

  Args:
    backbone: the prompts' own.
    prompts: N of one shape.
    side: 'decoder', at the start token, as the paper has it for T5; or
      'encoder', at the token behind the prompt or at the mask. None is the
      decoder, if there is one.
    window: (first layer, behind the last); None is all.
    **options: see `activations`.

  Returns:
    [N, N] float64, 0..1. Unrelated prompts overlap a lot, too: compare ranks.

  Raises:
    InputError: see `activations`; or if there is no such side or window.
  """
  if side not in (None, *SIDES):
    raise InputError(
      f'side is {side!r}, expected one of {", ".join(SIDES)}'
      f'{nearest(str(side), SIDES)}'
    )
  states = activations(backbone, prompts, **options)
  side = side or next(s for s in reversed(SIDES) if s in states)
  if side not in states:
    raise InputError(f'side is {side!r}, but {backbone.name} has no {side}')
  return on(states[side], window)
