"""Reads and writes backbones as transformers stores them, without it.

A folder holds `config.json`, the weights as safetensors (one file, or shards
with an index) and often a vocabulary (see `vocabulary`). Names and transposes:
transformers keeps linear weights as (out, in), T5X kernels as (in, out), and
both join heads and head size, heads major. Where its padding is another id
than 0, these two rows of the embedding and the head are swapped. Names and
config of T5 are here, those of other families in files of their own.
"""

from collections.abc import Mapping, Sequence
import os
import re
from typing import Any

from flax import traverse_util
import numpy as np
from safetensors import safe_open

from mpt_jax.backbones import Config, param_shapes
from mpt_jax.checkpoints import files, roberta_format, vocabulary
from mpt_jax.checkpoints.tensors import TensorSource
from mpt_jax.roberta import RobertaConfig
from mpt_jax.t5 import T5Config
from mpt_jax.types import InputError, PyTree

CONFIG = vocabulary.CONFIG
WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
VOCABULARY = vocabulary.SPIECE

_EMBEDDING = 'shared.weight'
# Other names of the same array; a file may hold any of them.
_EMBEDDING_ALIASES = (
  'encoder.embed_tokens.weight',
  'decoder.embed_tokens.weight',
)
_HEAD = 'lm_head.weight'
_EMBEDDING_PARAMETER = 'token_embedder/embedding'
_HEAD_PARAMETER = 'decoder/logits_dense/kernel'
_FLOATS = ('F32', 'F16', 'BF16', 'F64')

_FIELDS = {
  'vocab_size': 'vocab_size',
  'd_model': 'emb_dim',
  'num_heads': 'num_heads',
  'num_layers': 'num_encoder_layers',
  'num_decoder_layers': 'num_decoder_layers',
  'd_kv': 'head_dim',
  'd_ff': 'mlp_dim',
  'dropout_rate': 'dropout_rate',
  'layer_norm_epsilon': 'layer_norm_epsilon',
  'relative_attention_num_buckets': 'relpos_num_buckets',
  'relative_attention_max_distance': 'relpos_max_distance',
}
_OPTIONAL_FIELDS = (
  'dropout_rate',
  'layer_norm_epsilon',
  'relative_attention_num_buckets',
  'relative_attention_max_distance',
)
_ACTIVATIONS = {
  'relu': ('relu',),
  'gated-relu': ('relu', 'linear'),
  'gated-gelu': ('gelu', 'linear'),
  'gated-silu': ('silu', 'linear'),
}
# Each block of it has a position bias of its own; so Pile-T5 is stored as one.
_PER_LAYER = 'umt5'
_MODEL_TYPES = ('t5', 'mt5', _PER_LAYER, *vocabulary.ENCODERS)
# Other models with T5 in their names, and what this network has not.
_OTHERS = {
  'longt5': (
    "LongT5's encoder attends to a window, and to summaries of the rest, which"
    " T5's does not"
  ),
  't5gemma': "T5Gemma is made of Gemma's blocks, not of T5's",
  't5gemma2': "T5Gemma 2 is made of Gemma's blocks, not of T5's",
  'switch_transformers': (
    'Switch Transformers send each token to one of several experts'
  ),
}
# Sublayer of a block by T5X's name: its index and transformers' name.
SUBLAYERS = {
  'encoder': {
    'pre_attention_layer_norm': (0, 'layer_norm'),
    'attention': (0, 'SelfAttention'),
    'pre_mlp_layer_norm': (1, 'layer_norm'),
    'mlp': (1, 'DenseReluDense'),
  },
  'decoder': {
    'pre_self_attention_layer_norm': (0, 'layer_norm'),
    'self_attention': (0, 'SelfAttention'),
    'pre_cross_attention_layer_norm': (1, 'layer_norm'),
    'encoder_decoder_attention': (1, 'EncDecAttention'),
    'pre_mlp_layer_norm': (2, 'layer_norm'),
    'mlp': (2, 'DenseReluDense'),
  },
}
_PROJECTIONS = {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'}
_IN_A_MODULE = re.compile(
  r'(encoder|decoder)\.block\.(0|[1-9]\d*)\.layer\.(\d)'
  r'\.(\w*Attention|DenseReluDense)\.(\w+)\.(.+)'
)


def is_model_folder(path: str) -> bool:
  """Returns whether the folder claims to be a model of transformers."""
  return os.path.isfile(os.path.join(path, CONFIG))


def open_folder(path: str) -> tuple[TensorSource, Config, str]:
  """Opens a folder of transformers.

  Returns:
    The tensors, the architecture and the model's name.

  Raises:
    InputError: if config or weights are missing, damaged or of a model that is
      not known here.
  """
  file = os.path.join(path, CONFIG)
  stored_config = files.read_json(file, follow_links=True)
  model_type = _read_model_type(file, stored_config)
  stored = _open_weights(path)
  config: Config
  if model_type in vocabulary.ENCODERS:
    config, renamed = _open_roberta(file, stored_config, stored)
  else:
    config, renamed = _open_t5(file, stored_config, stored)
  source = _source(path, config, stored, renamed)
  return source, config, _model_name(path, stored_config)


def _open_t5(
  file: str, stored_config: Mapping[str, Any], stored: Mapping[str, '_Stored']
) -> tuple[T5Config, dict[str, str]]:
  """The architecture, and the names in this file of arrays with several."""
  embedding = next(
    (n for n in (_EMBEDDING, *_EMBEDDING_ALIASES) if n in stored), _EMBEDDING
  )
  tied, head = _read_head(stored_config, stored, embedding)
  config = _read_config(file, stored_config, tied)
  _check_sizes(file, config, stored)
  return config, {_EMBEDDING: embedding, _HEAD: head}


def _open_roberta(
  file: str, stored_config: Mapping[str, Any], stored: Mapping[str, '_Stored']
) -> tuple[RobertaConfig, dict[str, str]]:
  """As `_open_t5`."""
  config = roberta_format.read_config(file, stored_config)
  shapes = {name: tensor.shape for name, tensor in stored.items()}
  roberta_format.check_sizes(file, config, shapes)
  embedding, head = roberta_format.EMBEDDING, roberta_format.HEAD
  if embedding in stored and head in stored:
    if not np.array_equal(stored[embedding].read(), stored[head].read()):
      raise InputError(
        f'{os.path.dirname(file)}: {head} is not the embedding {embedding}; a'
        ' head of its own is not supported'
      )
  return config, {roberta_format.today(name): name for name in stored}


def _source(
  path: str,
  config: Config,
  stored: Mapping[str, '_Stored'],
  renamed: Mapping[str, str],
) -> TensorSource:
  """The tensors by our names."""
  pad = vocabulary.read_special_ids(path).pad

  def stored_name(parameter: str) -> tuple[str, bool]:
    name, transposed = _name_in(config, parameter)
    return renamed.get(name, name), transposed

  shapes = {}
  for parameter in param_shapes(config):
    name, transposed = stored_name(parameter)
    if name in stored:
      shape = stored[name].shape
      shapes[parameter] = shape[::-1] if transposed else shape

  def read(parameters: Sequence[str]) -> dict[str, np.ndarray]:
    arrays = {}
    for parameter in parameters:
      name, transposed = stored_name(parameter)
      array = stored[name].read()
      array = _swap_padding(parameter, array, pad)
      arrays[parameter] = np.ascontiguousarray(
        array.T if transposed else array, dtype=np.float32
      )
    return arrays

  used = {stored_name(parameter)[0] for parameter in shapes}
  others = tuple(sorted(set(stored) - used))
  return TensorSource(path, shapes, read, others)


def _name_in(config: Config, parameter: str) -> tuple[str, bool]:
  """As `name_of`, of any family."""
  if isinstance(config, RobertaConfig):
    return roberta_format.name_of(parameter)
  return name_of(parameter)


def name_of(parameter: str) -> tuple[str, bool]:
  """Returns transformers' name of a T5X parameter, and whether to transpose.

  Examples:
    >>> name_of('encoder/layers_0/attention/query/kernel')
    ('encoder.block.0.layer.0.SelfAttention.q.weight', True)
    >>> name_of('decoder/decoder_norm/scale')
    ('decoder.final_layer_norm.weight', False)
    >>> name_of('encoder/layers_1/relpos_bias/rel_embedding')[0][:15]
    'encoder.block.1'
  """
  if parameter == _EMBEDDING_PARAMETER:
    return _EMBEDDING, False
  if parameter == _HEAD_PARAMETER:
    return _HEAD, True
  stack, part, *rest = parameter.split('/')
  if part == f'{stack}_norm':
    return f'{stack}.final_layer_norm.weight', False
  # The one bias of a stack stands in its first block.
  block = part.removeprefix('layers_') if part != 'relpos_bias' else 0
  if 'relpos_bias' in (part, rest[0]):
    bias = 'layer.0.SelfAttention.relative_attention_bias'
    return f'{stack}.block.{block}.{bias}.weight', True
  index, name = SUBLAYERS[stack][rest[0]]
  prefix = f'{stack}.block.{block}.layer.{index}.{name}'
  if name == 'layer_norm':
    return f'{prefix}.weight', False
  return f'{prefix}.{_PROJECTIONS.get(rest[1], rest[1])}.weight', True


def module_of(stored: str) -> tuple[str, str] | None:
  """Returns our name of the projection that a name of transformers begins with.

  Args:
    stored: transformers' name of something in a block.

  Returns:
    The module and what stands behind its name; None where no module is named.

  Examples:
    >>> module_of('encoder.block.0.layer.0.SelfAttention.q.lora_A.weight')
    ('encoder/layers_0/attention/query', 'lora_A.weight')
  """
  match = _IN_A_MODULE.fullmatch(stored)
  if not match:
    return None
  stack, layer, index, name, projection, rest = match.groups()
  ours = {place: part for part, place in SUBLAYERS[stack].items()}
  part = ours.get((int(index), name))
  if part is None:
    return None
  projections = {theirs: our for our, theirs in _PROJECTIONS.items()}
  projection = projections.get(projection, projection)
  return f'{stack}/layers_{layer}/{part}/{projection}', rest


def save_huggingface(
  path: str,
  config: Config,
  params: PyTree,
  vocabulary_file: str | None = None,
  dtype: str = 'float32',
  name: str = '',
  special_ids: vocabulary.SpecialIds = vocabulary.ORDINARY,
  readme: bytes = b'',
) -> None:
  """Writes a folder that transformers and `load_backbone` read.

  The folder appears whole or not at all.

  Args:
    path: the folder.
    config: the architecture.
    params: the parameter tree; what does not belong to the backbone is left
      out.
    vocabulary_file: the vocabulary to put beside it, see
      `vocabulary.find_vocabulary`, with what lies beside that file.
    dtype: 'float32' or 'float16', the type of the stored weights.
    name: the model's name, as `load_backbone` will call it.
    special_ids: of the checkpoint; the rows of its padding are swapped back.
    readme: the `README.md` of a model that is new; b'' writes none.

  Raises:
    InputError: if transformers has no such architecture, a weight does not
      fit into float16, or the place cannot be written.
  """
  if dtype not in ('float32', 'float16'):
    raise InputError(f'dtype is {dtype!r}, expected float32 or float16')
  if isinstance(config, RobertaConfig):
    fields = roberta_format.config_json(config)
    fields['bos_token_id'] = special_ids.begin
  else:
    fields = _config_json(config)
    fields['decoder_start_token_id'] = special_ids.start
  flat: Mapping[str, Any] = traverse_util.flatten_dict(params, sep='/')
  arrays = {}
  for parameter in param_shapes(config):
    stored_name, transposed = _name_in(config, parameter)
    array = np.asarray(flat[parameter], np.float32)
    if dtype == 'float16' and np.abs(array).max() > np.finfo(dtype).max:
      raise InputError(
        f'{parameter} has values beyond the range of float16; save as float32'
      )
    array = (array.T if transposed else array).astype(dtype)
    arrays[stored_name] = _swap_padding(parameter, array, special_ids.pad)
  stored_config = {
    **fields,
    'pad_token_id': special_ids.pad,
    'eos_token_id': special_ids.end,
    'torch_dtype': dtype,
  }
  if name:
    stored_config['_name_or_path'] = name
  contents = {
    CONFIG: files.json_bytes(stored_config),
    WEIGHTS: files.tensor_bytes(arrays, {'format': 'pt'}),
  }
  if vocabulary_file is not None:
    contents |= vocabulary.files_of(vocabulary_file)
  if readme:
    contents[files.README] = readme
  files.write_folder(path, contents)


def _config_json(config: T5Config) -> dict[str, Any]:
  """What a `config.json` says of a T5."""
  kinds = {v: k for k, v in _ACTIVATIONS.items()}
  if config.mlp_activations not in kinds:
    raise InputError(
      f'mlp_activations {config.mlp_activations} have no name in transformers,'
      f' expected one of {", ".join(map(str, kinds))}'
    )
  return {
    **{hf: getattr(config, ours) for hf, ours in _FIELDS.items()},
    'model_type': _PER_LAYER if config.relpos_per_layer else 't5',
    'architectures': [
      f'{"UM" if config.relpos_per_layer else ""}T5ForConditionalGeneration'
    ],
    'is_encoder_decoder': True,
    'feed_forward_proj': kinds[config.mlp_activations],
    'tie_word_embeddings': config.logits_via_embedding,
    # Transformers >= 5 asks this instead of tie_word_embeddings.
    'scale_decoder_outputs': config.logits_via_embedding,
  }


def _swap_padding(parameter: str, array: np.ndarray, pad: int) -> np.ndarray:
  """Swaps rows 0 and `pad` of the stored embedding and head."""
  by_id = _EMBEDDING_PARAMETER, _HEAD_PARAMETER, *roberta_format.BY_ID
  if not pad or parameter not in by_id:
    return array
  array = array.copy()
  array[[0, pad]] = array[[pad, 0]]
  return array


class _Stored:
  """One tensor of a safetensors file; read when asked for."""

  def __init__(self, file: Any, path: str, name: str):
    view = file.get_slice(name)
    if view.get_dtype() not in _FLOATS:
      raise InputError(
        f'{path}: {name} has type {view.get_dtype()}, expected one of'
        f' {", ".join(_FLOATS)}'
      )
    self.shape = tuple(view.get_shape())
    self._file, self._name = file, name

  def read(self) -> np.ndarray:
    return self._file.get_tensor(self._name)


def has_weights(path: str) -> bool:
  """Returns whether a folder has all files of weights that it should have."""
  try:
    names = _weight_files(path)[0]
  except InputError:
    return False
  return all(os.path.isfile(os.path.join(path, name)) for name in names)


def _weight_files(path: str) -> tuple[list[str], list[str]]:
  """One file, or the shards that an index lists; and the tensors it lists."""
  single, index = os.path.join(path, WEIGHTS), os.path.join(path, INDEX)
  if os.path.isfile(single):
    return [WEIGHTS], []
  if not os.path.isfile(index):
    pickled = sorted(n for n in os.listdir(path) if n.endswith('.bin'))
    if pickled:
      raise InputError(
        f'{path} has its weights as a pickle ({pickled[0]}), which is not read'
        ' because it can run code; save the model as safetensors'
      )
    raise InputError(f'{path} has no weights: {WEIGHTS} is missing')
  weight_map = files.read_json(index, follow_links=True).get('weight_map')
  if not isinstance(weight_map, dict) or not weight_map:
    raise InputError(f'{index} has no weight_map')
  shards = sorted(set(map(str, weight_map.values())))
  for shard in shards:
    if os.path.basename(shard) != shard or not shard.endswith('.safetensors'):
      raise InputError(
        f'{index} names the shard {shard!r}, expected the name of a'
        ' .safetensors file in the same folder'
      )
  return shards, list(weight_map)


def _open_weights(path: str) -> dict[str, _Stored]:
  """Opens what `_weight_files` names."""
  names, listed = _weight_files(path)
  stored: dict[str, _Stored] = {}
  for name in names:
    stored |= _open_file(os.path.join(path, name))
  for name in listed:
    if name not in stored:
      raise InputError(
        f'{os.path.join(path, INDEX)} lists {name!r}, but no shard holds it'
      )
  return stored


def _open_file(path: str) -> dict[str, _Stored]:
  files.require_file(path, follow_links=True)
  try:
    file: Any = safe_open(path, framework='np')
    return {name: _Stored(file, path, name) for name in file.keys()}
  except InputError:
    raise
  except Exception as e:  # safetensors raises several unrelated types.
    raise InputError(f'{path} is not a readable safetensors file: {e}') from e


def _read_head(
  config: Mapping[str, Any], stored: Mapping[str, _Stored], embedding: str
) -> tuple[bool, str]:
  """Decides how the logits are made, from the weights first.

  Transformers writes `tie_word_embeddings: true` for untied models too (since
  5.0), so that a head of its own counts, and after it the scaling, which its
  mT5 has not.

  Returns:
    Whether they come from the scaled embedding, as in v1.0; and if not, from
    which tensor.
  """
  tie = config.get('tie_word_embeddings', True)
  scaled = config.get(
    'scale_decoder_outputs', tie and config.get('model_type') != 'mt5'
  )
  if _HEAD not in stored:
    # If not tied, the head will be found missing.
    return bool(scaled and tie), embedding if tie else _HEAD
  if scaled and embedding in stored:
    same = np.array_equal(stored[_HEAD].read(), stored[embedding].read())
    return same, _HEAD
  return False, _HEAD


def _read_model_type(file: str, stored: Mapping[str, Any]) -> str:
  """Which of `_MODEL_TYPES` it is; others are refused by their names."""
  model_type = stored.get('model_type', 't5')
  if model_type not in _MODEL_TYPES:
    why = _OTHERS.get(model_type) if isinstance(model_type, str) else None
    raise InputError(
      f'{file}: model_type is {model_type!r}, expected'
      f' {", ".join(_MODEL_TYPES)}{f"; {why}" if why else ""}'
    )
  return model_type


def _read_config(file: str, stored: Mapping[str, Any], tied: bool) -> T5Config:
  kind = stored.get('feed_forward_proj', 'relu')
  if not isinstance(kind, str) or kind not in _ACTIVATIONS:
    raise InputError(
      f'{file}: feed_forward_proj is {kind!r}, expected one of'
      f' {", ".join(_ACTIVATIONS)}'
    )
  fields: dict[str, Any] = {}
  for theirs, ours in _FIELDS.items():
    if stored.get(theirs) is not None:
      fields[ours] = stored[theirs]
    elif theirs == 'num_decoder_layers':
      fields[ours] = stored.get('num_layers')
    elif theirs not in _OPTIONAL_FIELDS:
      raise InputError(f'{file} lacks the key {theirs!r}')
  try:
    return T5Config(
      **fields,
      mlp_activations=_ACTIVATIONS[kind],
      logits_via_embedding=tied,
      relpos_per_layer=_read_model_type(file, stored) == _PER_LAYER,
    )
  except (InputError, TypeError) as e:
    raise InputError(f'{file}: {e}') from e


def _check_sizes(
  file: str, config: T5Config, stored: Mapping[str, _Stored]
) -> None:
  """Refuses sizes that the weights cannot have, before they cost anything."""
  largest = max((max(s.shape, default=0) for s in stored.values()), default=0)
  layers = max(config.num_encoder_layers, config.num_decoder_layers)
  sizes = {
    'vocab_size': config.vocab_size,
    'd_model': config.emb_dim,
    'num_heads * d_kv': config.num_heads * config.head_dim,
    'd_ff': config.mlp_dim,
    'relative_attention_num_buckets': config.relpos_num_buckets,
  }
  for name, size in sizes.items():
    if size > largest:
      raise InputError(
        f'{file}: {name} is {size}, but no weight has a side of more than'
        f' {largest}; is the config their own?'
      )
  if layers > len(stored):
    raise InputError(
      f'{file}: there are {len(stored)} tensors, too few for {layers} layers'
    )


def _model_name(path: str, config: Mapping[str, Any]) -> str:
  name = config.get('_name_or_path')
  # Transformers may have put a path of somebody's machine there.
  if isinstance(name, str) and name and not os.path.isabs(name):
    if name.count('/') <= 1 and '\\' not in name and name[0] not in '.~':
      return name
  return os.path.basename(path)
