"""The mesh and where arrays live on it.

Mesh axes are `data` and `model`. Logical axis names are T5X's own; prompts,
their optimizer state and scalars are replicated. One device is a 1x1 mesh and
takes the same path.
"""

from collections.abc import Mapping, Sequence
import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from mpt_jax import params as params_lib
from mpt_jax.types import InputError, PyTree

# Parameter name -> logical axes, first match wins.
LOGICAL_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
  (r'token_embedder/embedding', ('vocab', 'embed')),
  (r'.*attention/(query|key|value)/kernel', ('embed', 'joined_kv')),
  (r'.*attention/out/kernel', ('joined_kv', 'embed')),
  (r'.*/mlp/wi(_\d+)?/kernel', ('embed', 'mlp')),
  (r'.*/mlp/wo/kernel', ('mlp', 'embed')),
  (r'.*/relpos_bias/rel_embedding', ('heads', 'relpos_buckets')),
  (r'decoder/logits_dense/kernel', ('embed', 'vocab')),
  (r'.*/scale', ('embed',)),
  (r'(teacher_)?prompts/.*', ()),
)

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
    devices: the devices to use; None is all of them.

  Returns:
    A mesh of len(devices) / num_partitions by num_partitions.

  Raises:
    InputError: if the devices don't divide by `num_partitions`.
  """
  devices = jax.devices() if devices is None else devices
  if num_partitions < 1 or len(devices) % num_partitions:
    raise InputError(
      f'num_partitions = {num_partitions} does not divide the'
      f' {len(devices)} device(s) of this run'
    )
  grid = np.asarray(devices).reshape(-1, num_partitions)
  return Mesh(grid, ('data', 'model'))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
  """Raises InputError unless the batch divides over the `data` axis."""
  size = mesh.shape['data']
  if batch_size % size:
    raise InputError(
      f'BATCH_SIZE = {batch_size} is not divisible by the {size} data-parallel'
      f' devices: use a multiple of {size}'
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows of a batch over the `data` axis."""
  return NamedSharding(mesh, PartitionSpec('data'))


def replicated(mesh: Mesh) -> NamedSharding:
  """The same array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def param_sharding(name: str, shape: Sequence[int], mesh: Mesh):
  """The sharding of a parameter by its name.

  An axis that its mesh axis does not divide is replicated. Names without a
  rule are replicated.

  Args:
    name: 'encoder/layers_0/attention/query/kernel'.
    shape: its shape.
    mesh: the mesh.

  Returns:
    A NamedSharding.
  """
  for pattern, axes in LOGICAL_AXES:
    if re.fullmatch(pattern, name):
      spec = [
        RULES[axis] if size % mesh.shape.get(RULES[axis], 1) == 0 else None
        for axis, size in zip(axes, shape, strict=bool(axes))
      ]
      return NamedSharding(mesh, PartitionSpec(*spec))
  return replicated(mesh)


def shard_params(params: PyTree, mesh: Mesh) -> dict[str, Any]:
  """Puts a parameter tree onto the mesh."""
  return params_lib.unflatten(
    {
      name: jax.device_put(value, param_sharding(name, value.shape, mesh))
      for name, value in params_lib.flatten(params).items()
    }
  )
