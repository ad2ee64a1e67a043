"""Adapter folders of AdapterHub's `adapters`: one bottleneck adapter each.

`adapter_config.json` says how it is made, `adapter.safetensors` holds its
tensors by transformers' names of the sub-layers. T5's own norms, which
AdapterHub does not keep with an adapter, stand beside it in a file of ours.
"""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import json
import logging
import os
import re
from typing import Any

import numpy as np

from mpt_jax.checkpoints import files, huggingface, peft
from mpt_jax.checkpoints.peft import Imported
from mpt_jax.methods import adapter
from mpt_jax.methods.adapter import Adapter
from mpt_jax.types import InputError

log = logging.getLogger(__name__)

CONFIG = 'adapter_config.json'
TENSORS = 'adapter.safetensors'
# By transformers' names of the norms' weights: what is added to them.
NORMS = 'norm_changes.safetensors'
_HEADS = 'model_head.safetensors', 'pytorch_model_head.bin'

# What an adapter of ours does, in AdapterHub's words; nothing else is read. Its
# "original layer norm" is none of T5's: with `after`, the sum alone follows.
_ALIKE: Mapping[str, Any] = {
  'inv_adapter': None,
  'is_parallel': False,
  'ln_after': False,
  'ln_before': False,
  'mh_adapter': True,
  'original_ln_after': True,
  'original_ln_before': False,
  'output_adapter': True,
  'phm_layer': False,
  'scaling': 1.0,
  'use_gating': False,
}
# What we read of the rest, and what does nothing in such an adapter, or in
# training alone.
_READ = 'cross_adapter', 'leave_out', 'non_linearity', 'reduction_factor'
_IDLE = re.compile(
  r'\w*phm\w*|hypercomplex_nonlinearity|init_weights\w*|dropout'
  r'|inv_adapter_reduction_factor|(adapter_)?residual_before_ln'
  r'|stochastic_depth'
)
_PARTS = {
  'adapter_down.0.weight': adapter.DOWN,
  'adapter_down.0.bias': adapter.DOWN_BIAS,
  'adapter_up.weight': adapter.UP,
  'adapter_up.bias': adapter.UP_BIAS,
}
# A tensor at a sub-layer; that of a model with heads of AdapterHub's own begins
# with a word more.
_AT = re.compile(
  r'(?:transformer\.)?(encoder|decoder)\.block\.(\d{1,4})\.layer\.(\d)\.(.+)'
)
_PART = re.compile(r'adapters\.[^.]+\.(.+)')
_NORM = 'layer_norm'
_DOWN = f'/{adapter.DOWN}'
_MODULE = re.compile(r'(\w+)/layers_(\d+)/(\w+)')


def is_adapter(path: str) -> bool:
  """Returns whether a folder has an `adapter_config.json` of AdapterHub's."""
  file = os.path.join(path, CONFIG)
  return os.path.lexists(file) and 'config' in files.read_json(
    file, follow_links=True
  )


def read_adapter(path: str) -> Imported:
  """Reads a folder as `save_adapter(…, use_safetensors=True)` writes it.

  Args:
    path: the folder.

  Returns:
    The adapter; with the changes of T5's norms, if we wrote some.

  Raises:
    InputError: if a file or field is missing or damaged, or the adapter does
      something that ours do not.
  """
  config_path = os.path.join(path, CONFIG)
  stored = files.read_json(config_path, follow_links=True)
  tensors, names = peft.read_tensors(
    path, TENSORS, 'pytorch_adapter.bin', 'use_safetensors'
  )
  for head in _HEADS:
    if os.path.lexists(os.path.join(path, head)):
      log.warning("%s: %s is not read: the head is the backbone's", path, head)
  norms_path = os.path.join(path, NORMS)
  changes: dict[str, np.ndarray] = {}
  if os.path.lexists(norms_path):
    changes, _ = files.read_tensors(norms_path, None, follow_links=True)
  try:
    method, arrays = _ours(stored, tensors, changes)
  except InputError as e:
    raise InputError(f'{config_path}: {e}') from e
  base, name = stored.get('model_name'), stored.get('name')
  if names is None and isinstance(name, str) and name:
    names = [name]
  method = dataclasses.replace(method, shared=len(names or ()) > 1)
  return Imported(method, arrays, names, base if isinstance(base, str) else '')


def write_adapter(
  path: str,
  method: Adapter,
  arrays: Mapping[str, np.ndarray],
  task_names: Sequence[str],
  base: str,
  readme: bytes,
) -> None:
  """Writes a folder that `load_adapter(path, use_safetensors=True)` loads.

  Args:
    path: the folder.
    method: the method, with its settings.
    arrays: one set, by our names.
    task_names: whose it is.
    base: the backbone's name, or ''.
    readme: the adapter's card.

  Raises:
    InputError: if AdapterHub cannot have it, or the folder cannot be written.
  """
  # In torch a module's name has no dot.
  name = 'shared' if task_names[1:] else task_names[0].replace('.', '_')
  tensors, changes = {}, {}
  for ours, array in arrays.items():
    module, _, part = ours.rpartition('/')
    if part == adapter.CHANGE:
      changes[huggingface.name_of(f'{module}/scale')[0]] = array[0]
      continue
    theirs = next(theirs for theirs, own in _PARTS.items() if own == part)
    place = f'{_place_of(module)}.adapters.{name}.{theirs}'
    tensors[place] = np.ascontiguousarray(array[0].T)
  width, size = next(
    array.shape[1:] for n, array in arrays.items() if n.endswith(_DOWN)
  )
  config = {
    **_ALIKE,
    'cross_adapter': method.cross,
    'leave_out': _left_out(method, arrays),
    'non_linearity': method.activation,
    'reduction_factor': _reduction(method, width, size),
    'residual_before_ln': True,
  }
  stored = {
    'config': config,
    'hidden_size': width,
    'model_class': 'T5ForConditionalGeneration',
    'model_name': base,
    'model_type': 't5',
    'name': name,
    # The first whose words for activations are these.
    'version': 'adapters.1.0.0',
  }
  metadata = {'format': 'pt', peft.TASK_NAMES: json.dumps(list(task_names))}
  contents = {
    CONFIG: files.json_bytes(stored),
    TENSORS: files.tensor_bytes(tensors, metadata),
    files.README: readme,
  }
  if any(change.any() for change in changes.values()):
    contents[NORMS] = files.tensor_bytes(changes, metadata)
    log.warning(
      "%s: `adapters` does not load T5's own norms, which were trained too: add"
      " the tensors of %s to the model's weights of the same names, or train"
      ' with ADAPTER_NORMS = False',
      path,
      NORMS,
    )
  files.write_folder(path, contents)


def _ours(
  stored: Mapping[str, Any],
  tensors: Mapping[str, np.ndarray],
  changes: Mapping[str, np.ndarray],
) -> tuple[Adapter, dict[str, np.ndarray]]:
  """The method and its arrays, of an adapter and what norms change by."""
  config = stored['config']
  if not isinstance(config, dict) or not isinstance(stored.get('version'), str):
    raise InputError(
      'config or version is missing; load the adapter with `adapters` and save'
      ' it again'
    )
  for key, value in config.items():
    if key in _ALIKE:
      if value != _ALIKE[key]:
        raise InputError(f'{key} is {value!r}, ours have {_ALIKE[key]!r}')
    elif value and key not in _READ and not _IDLE.fullmatch(key):
      raise InputError(f'{key} is {value!r}, which is not read here')
  arrays: dict[str, np.ndarray] = {}
  for name, tensor in (*tensors.items(), *changes.items()):
    ours = _our_name(name)
    if ours is None or ours in arrays:
      raise InputError(f'{name} is not of one bottleneck adapter for T5')
    arrays[ours] = tensor.T[None]
  shapes = [array.shape for n, array in arrays.items() if n.endswith(_DOWN)]
  if not shapes or len(shapes[0]) != 3:
    raise InputError('there is no adapter_down.0.weight [b, d]')
  _, width, size = shapes[0]
  cross, left_out = config.get('cross_adapter'), config.get('leave_out') or []
  if type(cross) not in (bool, type(None)):
    raise InputError(f'cross_adapter is {cross!r}, expected true or false')
  if not isinstance(left_out, list) or not all(
    type(i) is int for i in left_out
  ):
    raise InputError(f'leave_out is {left_out!r}, expected numbers of blocks')
  first, last = _range(arrays, left_out)
  activation = config.get('non_linearity')
  method = Adapter(
    activation=activation.lower() if isinstance(activation, str) else '',
    norms=bool(changes),
    first_layer=first,
    last_layer=last,
    cross=cross or False,
  )
  reduction = config.get('reduction_factor')
  if type(reduction) is int and reduction > 0 and width // reduction == size:
    return dataclasses.replace(method, reduction=reduction), arrays
  return dataclasses.replace(method, size=size), arrays


def _our_name(stored: str) -> str | None:
  """Our name of a tensor of an adapter, or of a norm; None for others."""
  for stack, sublayers in huggingface.SUBLAYERS.items():
    if stored == f'{stack}.final_{_NORM}.weight':
      return f'{stack}/{stack}_norm/{adapter.CHANGE}'
    match = _AT.fullmatch(stored)
    if not match or match[1] != stack:
      continue
    is_norm = match[4] == f'{_NORM}.weight'
    part = _PART.fullmatch(match[4])
    ours = adapter.CHANGE if is_norm else part and _PARTS.get(part[1])
    for module, (index, name) in sublayers.items():
      if ours and index == int(match[3]) and is_norm == (name == _NORM):
        return f'{stack}/layers_{match[2]}/{module}/{ours}'
  return None


def _place_of(module: str) -> str:
  """Transformers' name of the layer that a sub-layer of ours is."""
  match = _MODULE.fullmatch(module)
  assert match
  stack, block, kind = match.groups()
  index, _ = huggingface.SUBLAYERS[stack][kind]
  return f'{stack}.block.{block}.layer.{index}'


def _blocks(names: Collection[str], stack: str) -> list[int]:
  """The blocks of a stack that have adapters."""
  found = (_MODULE.fullmatch(n.removesuffix(_DOWN)) for n in names)
  return sorted({int(m[2]) for m in found if m and m[1] == stack})


def _range(
  names: Collection[str], left_out: Collection[int]
) -> tuple[int, int | None]:
  """The first and the last layer, of the blocks that have adapters.

  AdapterHub counts the decoder's blocks on from the encoder's.
  """
  encoder, decoder = _blocks(names, 'encoder'), _blocks(names, 'decoder')
  first = min((*encoder, *decoder))
  both = (range(first, first + len(b)) for b in (encoder, decoder))
  if [encoder, decoder] == [list(b) for b in both] and encoder and decoder:
    last, ends = encoder[-1], _below(first, encoder[-1] + 1)
    if sorted(set(left_out)) == ends:
      return first, None
    if set(ends) < set(left_out) and last == decoder[-1]:
      return first, last
  raise InputError(
    f'leave_out is {list(left_out)}, with adapters in the blocks {encoder} and'
    f' {decoder}: ours are in one range of blocks, of both stacks'
  )


def _below(first: int, num_encoder_layers: int) -> list[int]:
  """What is left out below a first layer."""
  return [i + at for at in (0, num_encoder_layers) for i in range(first)]


def _left_out(method: Adapter, names: Collection[str]) -> list[int]:
  """The blocks without adapters, as AdapterHub counts them."""
  encoder, decoder = _blocks(names, 'encoder'), _blocks(names, 'decoder')
  if method.last_layer is not None or not encoder or not decoder:
    raise InputError(
      f'ADAPTER_FIRST_LAYER = {method.first_layer}, ADAPTER_LAST_LAYER ='
      f' {method.last_layer}: AdapterHub counts the blocks of both stacks in a'
      ' row, and a bundle does not say how many have no adapter above these'
    )
  return _below(method.first_layer, encoder[-1] + 1)


def _reduction(method: Adapter, width: int, size: int) -> int | float:
  """What AdapterHub divides the width by, and rounds down, for a size."""
  for whole in (method.reduction, width // size):
    if whole and width // whole == size:
      return whole
  return width / (size + 0.5)
