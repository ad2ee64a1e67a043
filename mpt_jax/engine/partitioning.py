"""The mesh and where arrays live on it.

Mesh axes are `data` and `model`. Logical axis names are T5X's own; prompts,
their optimizer state and scalars are replicated. One device is a 1x1 mesh and
takes the same path.

The frozen backbone is what fills memory. Its matrices are split over `model`,
and with `shard_backbone` over `data` too: each device then keeps a part of
every matrix and fetches the others' as it comes to a layer.
"""

from collections.abc import Mapping, Sequence
import re
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from mpt_jax.engine import params as params_lib
from mpt_jax.types import InputError, PyTree

# Parameter name -> logical axes, first match wins.
LOGICAL_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
  # What methods learn is small, and everywhere.
  (r'((teacher_)?prompts|delta)/.*', ()),
  (r'token_embedder/embedding', ('vocab', 'embed')),
  (r'.*attention/(query|key|value)/kernel', ('embed', 'joined_kv')),
  (r'.*attention/out/kernel', ('joined_kv', 'embed')),
  (r'.*/mlp/wi(_\d+)?/kernel', ('embed', 'mlp')),
  (r'.*/mlp/wo/kernel', ('mlp', 'embed')),
  (r'.*/relpos_bias/rel_embedding', ('heads', 'relpos_buckets')),
  (r'decoder/logits_dense/kernel', ('embed', 'vocab')),
  (r'.*/scale', ('embed',)),
)

# The backbone's matrices that inputs are multiplied with.
_MATRICES = r'token_embedder/embedding|(encoder|decoder)/.*/kernel'

# Logical axis -> mesh axis.
RULES: Mapping[str | None, str | None] = {
  'vocab': 'model',
  'joined_kv': 'model',
  'mlp': 'model',
  'heads': 'model',
  'embed': None,
  'relpos_buckets': None,
  None: None,
}


def make_mesh(
  num_partitions: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
  """Makes a [data, model] mesh.

  Args:
    num_partitions: size of the `model` axis.
    devices: the devices to use; None is all of them, those of a process one
      after the other, so that a process has consecutive rows of a batch.

  Returns:
    A mesh of len(devices) / num_partitions by num_partitions.

  Raises:
    InputError: if the devices don't divide by `num_partitions`.
  """
  if devices is None:
    devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
  if num_partitions < 1 or len(devices) % num_partitions:
    raise InputError(
      f'num_partitions = {num_partitions} does not divide the'
      f' {len(devices)} device(s) of this run'
    )
  grid = np.asarray(devices).reshape(-1, num_partitions)
  return Mesh(grid, ('data', 'model'))


def check_batch_size(
  batch_size: int, mesh: Mesh, microbatches: int = 1
) -> None:
  """Checks that each part of a batch divides over the `data` axis.

  Args:
    batch_size: B.
    mesh: the mesh.
    microbatches: parts that a batch is cut into.

  Raises:
    InputError: if it does not.
  """
  size = mesh.shape['data']
  if batch_size % size:
    raise InputError(
      f'BATCH_SIZE = {batch_size} is not divisible by the {size} data-parallel'
      f' devices: use a multiple of {size}'
    )
  if type(microbatches) is not int or microbatches < 1:
    raise InputError(f'MICROBATCHES = {microbatches!r}, expected 1, 2, 3, …')
  if batch_size % (size * microbatches):
    rows = batch_size // size
    fits = [k for k in range(1, rows + 1) if rows % k == 0]
    raise InputError(
      f'MICROBATCHES = {microbatches} does not divide the {rows} rows that'
      f' BATCH_SIZE = {batch_size} leaves to each of {size} data-parallel'
      f' device(s): use one of {", ".join(map(str, fits))}'
    )


# Rows per device of a part of a batch in length buckets; few keep a CPU busy.
_PART_ROWS = {'cpu': 8}
_OTHER_PART_ROWS = 32


def part_sizes(
  batch_size: int, mesh: Mesh, microbatches: int | None
) -> tuple[int, ...]:
  """How many examples the parts of a batch in length buckets may have.

  Args:
    batch_size: B.
    mesh: the mesh.
    microbatches: how many parts to make; None is what suits the devices.

  Returns:
    R, a divisor of B; and, unless the number of parts is given, half of it.
    All are multiples of the `data` axis.
  """
  if microbatches is not None:
    return (batch_size // microbatches,)
  size = mesh.shape['data']
  platform = mesh.devices.flat[0].platform
  most = size * _PART_ROWS.get(platform, _OTHER_PART_ROWS)
  rows = max(
    rows
    for rows in range(size, min(most, batch_size) + 1, size)
    if batch_size % rows == 0
  )
  return (rows,) if rows % (2 * size) else (rows, rows // 2)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows of a batch over the `data` axis."""
  return NamedSharding(mesh, PartitionSpec('data'))


def replicated(mesh: Mesh) -> NamedSharding:
  """The same array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def data_part(mesh: Mesh) -> tuple[int, int]:
  """Which rows of a batch this process's devices need.

  Args:
    mesh: the mesh, over all processes.

  Returns:
    (number of the part, how many equal parts of consecutive rows there are).
    Processes that a partition of the model spans share a part.

  Raises:
    InputError: if the mesh does not cut the batch so for every process.
  """
  rows: dict[int, set[int]] = {}
  for row, devices in enumerate(mesh.devices):
    for device in devices.flat:
      rows.setdefault(device.process_index, set()).add(row)
  size = len(rows[jax.process_index()])
  for mine in rows.values():
    start = min(mine)
    if mine != set(range(start, start + size)) or start % size:
      raise InputError(
        f'a mesh of {mesh.shape["data"]} (data) x {mesh.shape["model"]} (model)'
        f' cuts the devices of the {len(rows)} processes unevenly: choose'
        ' NUM_PARTITIONS so that one of it and the devices of a process'
        ' divides the other'
      )
  return min(rows[jax.process_index()]) // size, mesh.shape['data'] // size


def put(value: Any, sharding: NamedSharding) -> jax.Array:
  """Puts a host's array onto devices, of other processes too.

  Args:
    value: the whole array, the same on every process (which is not checked).
    sharding: where its parts go.

  Returns:
    The array on its devices.
  """
  if sharding.is_fully_addressable:
    return jax.device_put(value, sharding)
  host = np.asarray(value)
  return jax.make_array_from_callback(
    host.shape, sharding, lambda place: host[place]
  )


def to_host(tree: PyTree) -> PyTree:
  """Whole arrays on every process; all processes must call it together."""

  def fetch(array: Any) -> np.ndarray:
    if isinstance(array, jax.Array) and not (
      array.is_fully_addressable or array.is_fully_replicated
    ):
      return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)

  return jax.tree.map(fetch, tree)


def param_sharding(
  name: str, shape: Sequence[int], mesh: Mesh, shard_backbone: bool = False
) -> NamedSharding:
  """The sharding of a parameter by its name.

  An axis that its mesh axis does not divide is replicated. Names without a
  rule are replicated.

  Args:
    name: 'encoder/layers_0/attention/query/kernel', or of a stack
      'encoder/layers/attention/query/kernel'.
    shape: its shape.
    mesh: the mesh.
    shard_backbone: whether to split matrices over `data` too, along D.

  Returns:
    A NamedSharding.
  """
  for pattern, axes in LOGICAL_AXES:
    if re.fullmatch(pattern, name):
      if not axes:
        break
      rules = RULES
      if shard_backbone and len(axes) > 1:
        rules = {**RULES, 'embed': 'data'}
      if '/layers/' in name:
        axes = None, *axes
      spec = [
        rules[axis] if size % mesh.shape.get(rules[axis], 1) == 0 else None
        for axis, size in zip(axes, shape, strict=True)
      ]
      return NamedSharding(mesh, PartitionSpec(*spec))
  return replicated(mesh)


def shard_params(
  params: PyTree, mesh: Mesh, shard_backbone: bool = False
) -> dict[str, Any]:
  """Puts a parameter tree onto the mesh; see `param_sharding`."""
  return params_lib.unflatten(
    {
      name: put(value, param_sharding(name, value.shape, mesh, shard_backbone))
      for name, value in params_lib.flatten(params).items()
    }
  )


def place_backbone(
  params: PyTree,
  mesh: Mesh,
  *,
  dtype: str = 'float32',
  scan_layers: bool = False,
  shard_backbone: bool = False,
) -> dict[str, Any]:
  """Puts frozen parameters onto the mesh in the form that they run in.

  Args:
    params: the frozen tree, as it is on disk: host arrays, or shapes
      (jax.ShapeDtypeStruct), which stay shapes and get a sharding.
    mesh: the mesh.
    dtype: type of the matrices that inputs are multiplied with. Norms,
      position biases and prompts stay as they are.
    scan_layers: whether to stack the layers, so that the network scans them.
    shard_backbone: see `param_sharding`.

  Returns:
    The tree on the mesh.
  """
  flat = params_lib.flatten(params)
  groups = {name: [name] for name in flat}
  if scan_layers:
    groups = params_lib.layer_groups(flat)
  placed: dict[str, Any] = {}
  # One tensor after another, so that the host never holds a second backbone.
  for name, members in groups.items():
    stacked = members != [name]
    leaf = flat[members[0]]
    kind = leaf.dtype
    if re.fullmatch(_MATRICES, name):
      kind = jnp.dtype(dtype)
    shape = (len(members), *leaf.shape) if stacked else leaf.shape
    sharding = param_sharding(name, shape, mesh, shard_backbone)
    if isinstance(leaf, jax.ShapeDtypeStruct):
      placed[name] = jax.ShapeDtypeStruct(shape, kind, sharding=sharding)
      continue
    parts = [np.asarray(flat[member]).astype(kind) for member in members]
    value = np.stack(parts) if stacked else parts[0]
    placed[name] = put(value, sharding)
  return params_lib.unflatten(placed)
