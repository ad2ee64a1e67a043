"""Reads and writes T5X checkpoints without T5X.

Two layouts hold a folder `checkpoint_<step>`: the legacy one (a msgpack file
`checkpoint` and a zarr folder per array) and orbax's (`state/`, one OCDBT
database or, older, a zarr folder per array). Both are read, the legacy one is
written; parameters only, never an optimizer's state.
"""

from collections.abc import Mapping, Sequence
import contextlib
import os
import re
import shutil
import tempfile
from typing import Any

from flax import serialization, traverse_util
import jax.numpy as jnp
import numpy as np

from mpt_jax.backbones import Config, family
from mpt_jax.checkpoints import files
from mpt_jax.checkpoints.tensors import TensorSource
from mpt_jax.t5 import T5Config, param_shapes
from mpt_jax.types import (
  InputError,
  PyTree,
  require_local,
)

STEP_FOLDER = re.compile(r'checkpoint_(\d+)')
_PREFIX = 'target.'
# T5X's number of the legacy layout.
_LEGACY_VERSION = 3
# Reading many arrays at once hides the latency of the file system; reading
# all would hold every compressed one in memory besides.
_READS_AT_ONCE = 32
# Weights hardly compress, and gzip makes nothing smaller than by this; a
# checkpoint that declares more than it can hold is not allocated.
_LARGEST_RATIO = 1032
_DECLARED_BYTES = 64 << 20


def find_checkpoint(path: str) -> str | None:
  """Returns the folder of one step, or None if there is no checkpoint.

  Args:
    path: the folder of a step, or one with such folders, of which the last
      step is taken.
  """
  if _is_legacy(path) or _is_orbax(path):
    return path
  steps = {}
  for name in os.listdir(path):
    match = STEP_FOLDER.fullmatch(name)
    folder = os.path.join(path, name)
    if match and (_is_legacy(folder) or _is_orbax(folder)):
      steps[int(match[1])] = folder
  return steps[max(steps)] if steps else None


def open_checkpoint(folder: str) -> TensorSource:
  """Opens what `find_checkpoint` found.

  Raises:
    InputError: if the checkpoint is damaged.
  """
  if _is_orbax(folder):
    return _open_orbax(folder)
  return _open_legacy(folder)


def save_t5x(path: str, config: Config, params: PyTree, step: int = 0) -> str:
  """Writes parameters as a legacy T5X checkpoint, without optimizer state.

  The checkpoint appears whole or not at all.

  Args:
    path: the folder for `checkpoint_<step>`.
    config: the architecture.
    params: the parameter tree; what does not belong to the backbone is left
      out.
    step: the number in its name.

  Returns:
    The folder `checkpoint_<step>`.

  Raises:
    InputError: if the folder is there already, or cannot be written; if it is
      no T5.
  """
  if not isinstance(config, T5Config):
    raise InputError(
      f'T5X holds T5s alone, and this backbone is a {family(config).title}:'
      " give FORMAT = 'huggingface'"
    )
  final = os.path.join(
    os.path.abspath(require_local(path)), f'checkpoint_{step}'
  )
  if os.path.lexists(final):
    raise InputError(f'{final} is there already; choose a new folder')
  flat: Mapping[str, Any] = traverse_util.flatten_dict(params, sep='/')
  arrays = {
    name: np.asarray(flat[name], np.float32) for name in param_shapes(config)
  }
  try:
    os.makedirs(path, exist_ok=True)
    work = tempfile.mkdtemp(prefix='.checkpoint.', dir=path)
    try:
      _write_legacy(work, arrays, step)
      os.chmod(work, 0o755)
      os.replace(work, final)
    finally:
      shutil.rmtree(work, ignore_errors=True)
  except OSError as e:
    raise InputError(f'cannot write {final}: {e.strerror or e}') from e
  return final


def _write_legacy(
  folder: str, arrays: Mapping[str, np.ndarray], step: int
) -> None:
  import tensorstore as ts

  leaves: dict[str, Any] = {}
  writing = []
  for name, array in arrays.items():
    place = f'{_PREFIX}{name.replace("/", ".")}/'
    metadata = {
      'chunks': list(array.shape),
      'compressor': {'id': 'gzip', 'level': 1},
      'shape': list(array.shape),
    }
    stored = ts.open(
      {
        'driver': 'zarr',
        'dtype': 'float32',
        'metadata': metadata,
        'kvstore': {'driver': 'file', 'path': os.path.join(folder, place)},
      },
      create=True,
      open=True,
    ).result()
    writing.append(stored.write(array))
    leaves[name] = {
      'driver': 'zarr',
      'dtype': 'float32',
      'kvstore': {'driver': 'file', 'path': place},
      'metadata': metadata,
    }
  try:
    for future in writing:
      future.result()
  except ValueError as e:  # Tensorstore's way to say that a disk is full.
    raise OSError(None, files.first_line(e)) from e
  content = {
    'version': _LEGACY_VERSION,
    'optimizer': {
      'target': traverse_util.unflatten_dict(leaves, sep='/'),
      'state': {'step': np.asarray(step)},
    },
  }
  with open(os.path.join(folder, 'checkpoint'), 'wb') as f:
    f.write(serialization.msgpack_serialize(content))
    f.flush()
    os.fsync(f.fileno())


def infer_config(source: TensorSource) -> T5Config:
  """Returns the architecture that a checkpoint's shapes imply.

  What shapes cannot tell is as in all published models: relu in plain, tanh
  gelu in gated MLPs, a largest distance of 128.

  Raises:
    InputError: if a tensor that tells is missing.
  """
  shapes = source.shapes

  def shape(name: str, rank: int) -> tuple[int, ...]:
    if len(shapes.get(name, ())) != rank:
      raise InputError(
        f'{source.path} is no T5: it has no tensor {name!r} of rank {rank}'
      )
    return shapes[name]

  def layers(stack: str) -> int:
    return len(
      {n.split('/')[1] for n in shapes if n.startswith(f'{stack}/layers_')}
    )

  if any(name.startswith('encoder/encoder/') for name in shapes):
    raise InputError(
      f'{source.path} has the layers of a stack in one array, as T5X stores its'
      ' scalable T5 (umT5, Pile-T5), which is not read; take the folder of'
      ' transformers that it is published as'
    )
  gated = 'encoder/layers_0/mlp/wi_0/kernel' in shapes
  vocab_size, emb_dim = shape('token_embedder/embedding', 2)
  bias = 'relpos_bias/rel_embedding'
  per_layer = f'encoder/layers_0/{bias}' in shapes
  num_heads, buckets = shape(
    f'encoder/{"layers_0/" if per_layer else ""}{bias}', 2
  )
  _, joined = shape('encoder/layers_0/attention/query/kernel', 2)
  wi = 'wi_0' if gated else 'wi'
  _, mlp_dim = shape(f'encoder/layers_0/mlp/{wi}/kernel', 2)
  return T5Config(
    vocab_size=vocab_size,
    emb_dim=emb_dim,
    num_heads=num_heads,
    num_encoder_layers=layers('encoder'),
    num_decoder_layers=layers('decoder'),
    head_dim=joined // max(num_heads, 1),
    mlp_dim=mlp_dim,
    mlp_activations=('gelu', 'linear') if gated else ('relu',),
    logits_via_embedding='decoder/logits_dense/kernel' not in shapes,
    relpos_num_buckets=buckets,
    relpos_per_layer=per_layer,
  )


def _is_legacy(folder: str) -> bool:
  return os.path.isfile(os.path.join(folder, 'checkpoint'))


def _is_orbax(folder: str) -> bool:
  return os.path.isfile(os.path.join(folder, 'state', '_METADATA'))


def _open_orbax(folder: str) -> TensorSource:
  import tensorstore as ts

  state = os.path.join(folder, 'state', '')
  kvstore: dict[str, Any] = {'driver': 'file', 'path': state}
  if os.path.isfile(os.path.join(state, 'manifest.ocdbt')):
    kvstore = {'driver': 'ocdbt', 'base': kvstore}
    try:
      stored = ts.KvStore.open(kvstore).result()
      # '/' follows '.': all keys that start with the prefix.
      keys = stored.list(ts.KvStore.KeyRange('target.', 'target/')).result()
    except Exception as e:  # Tensorstore raises several unrelated types.
      raise InputError(f'{state} cannot be read: {files.first_line(e)}') from e
    names = sorted(
      key.decode().removesuffix('/.zarray')
      for key in keys
      if key.endswith(b'/.zarray')
    )
  else:
    try:
      names = sorted(n for n in os.listdir(state) if n.startswith(_PREFIX))
    except OSError as e:
      raise InputError(f'{state} cannot be read: {e.strerror}') from e
    for name in names:
      if not _is_inside(state, name):
        raise InputError(f'{state}{name} is a link that leads out of {folder}')
  if not names:
    raise InputError(f'{state} holds no parameters (names {_PREFIX}…)')
  base = kvstore.get('path', '')
  specs = {
    _parameter(name): {**kvstore, 'path': f'{base}{name}/'} for name in names
  }
  return _source(folder, specs, {})


def _open_legacy(folder: str) -> TensorSource:
  file = os.path.join(folder, 'checkpoint')
  try:
    with open(file, 'rb') as f:
      content = serialization.msgpack_restore(f.read())
    target = content['optimizer']['target']
  except Exception as e:  # Damaged msgpack raises several unrelated types.
    raise InputError(
      f'{file} is no T5X checkpoint: {files.first_line(e)}'
    ) from e
  specs: dict[str, Any] = {}
  inlined: dict[str, np.ndarray] = {}

  def walk(tree: Any, path: str) -> None:
    if isinstance(tree, np.ndarray) and jnp.issubdtype(
      tree.dtype, jnp.floating
    ):
      inlined[path] = tree
    elif isinstance(tree, Mapping) and 'kvstore' in tree:
      specs[path] = _zarr_folder(folder, file, path, tree)
    elif isinstance(tree, Mapping):
      for name, child in tree.items():
        walk(child, f'{path}/{name}' if path else str(name))
    else:
      raise InputError(
        f'{file}: {path or "target"} is a {type(tree).__name__}, expected an'
        ' array of floats'
      )

  walk(target, '')
  return _source(folder, specs, inlined)


def _zarr_folder(
  folder: str, file: str, parameter: str, leaf: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns where an array lies, which must be inside the checkpoint.

  Of what the file says only the last name counts: driver and bucket are those
  of the place that the checkpoint was first written to.
  """
  stored = leaf['kvstore']
  name = stored.get('path') if isinstance(stored, Mapping) else None
  name = name.rstrip('/') if isinstance(name, str) else ''
  inside = name not in ('', '.', '..') and not re.search(r'[/\\\0]', name)
  path = os.path.join(folder, name)
  if not inside or not _is_inside(folder, name):
    raise InputError(
      f'{file}: the array {parameter} is said to lie at {name!r}, expected the'
      f' name of a folder in {folder}'
    )
  return {'driver': 'file', 'path': os.path.join(path, '')}


def _is_inside(folder: str, name: str) -> bool:
  """Returns whether `name` stays in the folder when links are followed."""
  root = os.path.join(os.path.realpath(folder), '')
  return os.path.realpath(os.path.join(folder, name)).startswith(root)


def _check_declared(folder: str, arrays: Mapping[str, Any]) -> None:
  """Refuses arrays that the files cannot hold, before they are allocated."""
  stored = 0
  for base, _, names in os.walk(folder):
    for name in names:
      with contextlib.suppress(OSError):  # A link to nowhere.
        stored += os.path.getsize(os.path.join(base, name))
  declared, largest = 0, ('', 0)
  for name, array in arrays.items():
    size = array.dtype.numpy_dtype.itemsize
    for length, chunk in zip(
      array.shape, array.chunk_layout.read_chunk.shape, strict=True
    ):
      # A chunk is decoded whole, however little of it is in the array.
      size *= -(-length // max(chunk, 1)) * max(chunk, 1)
    declared += size
    largest = max(largest, (name, size), key=lambda item: item[1])
  if declared > _LARGEST_RATIO * stored + _DECLARED_BYTES:
    raise InputError(
      f'{folder}: its arrays declare {declared} bytes, {largest[0]} alone'
      f' {largest[1]}, but its files have {stored} bytes'
    )


def _source(
  folder: str, specs: Mapping[str, Any], inlined: Mapping[str, np.ndarray]
) -> TensorSource:
  """Opens zarr arrays, of which only shapes are read for now."""
  import tensorstore as ts

  opening = {
    name: ts.open(
      {
        'driver': 'zarr',
        'kvstore': kvstore,
        # A lost chunk must not be read as zeros.
        'fill_missing_data_reads': False,
      },
      open=True,
      read=True,
    )
    for name, kvstore in specs.items()
  }
  arrays = {n: _result(folder, n, future) for n, future in opening.items()}
  _check_declared(folder, arrays)
  shapes = {name: tuple(array.shape) for name, array in arrays.items()}
  shapes |= {name: array.shape for name, array in inlined.items()}

  def read(names: Sequence[str]) -> dict[str, np.ndarray]:
    values = {n: np.asarray(inlined[n]) for n in names if n in inlined}
    stored = [n for n in names if n not in inlined]
    for name in stored:
      dtype = arrays[name].dtype.numpy_dtype
      if not jnp.issubdtype(dtype, jnp.floating):
        raise InputError(f'{folder}: {name} is of {dtype}, expected floats')
    for start in range(0, len(stored), _READS_AT_ONCE):
      some = stored[start : start + _READS_AT_ONCE]
      reading = {n: arrays[n].read() for n in some}
      for name, future in reading.items():
        values[name] = _result(folder, name, future)
    return {n: values[n].astype(np.float32, copy=False) for n in names}

  return TensorSource(folder, shapes, read)


def _result(folder: str, name: str, future: Any) -> Any:
  try:
    return future.result()
  except Exception as e:  # Tensorstore raises several unrelated types.
    raise InputError(
      f'{folder}: {name} cannot be read: {files.first_line(e)}'
    ) from e


def _parameter(name: str) -> str:
  """'target.encoder.encoder_norm.scale' -> 'encoder/encoder_norm/scale'."""
  return name.removeprefix(_PREFIX).replace('.', '/')
