"""Which parameters train: names, patterns, the split into two trees.

Trainable and frozen parameters are two trees from the start, so that
gradients, optimizer state and checkpoints see only the trainable one.
"""

from collections.abc import Iterable, Mapping, Sequence
import re
from typing import Any

from flax import traverse_util
import numpy as np

from mpt_jax.types import InputError, PyTree


def flatten(tree: PyTree) -> dict[str, Any]:
  """Nested dict -> {'a/b/c': leaf}, sorted by name."""
  flat = traverse_util.flatten_dict(tree, sep='/')
  return {name: flat[name] for name in sorted(flat)}


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """{'a/b/c': leaf} -> nested dict."""
  return traverse_util.unflatten_dict(dict(flat), sep='/')


def split(
  params: PyTree, trainable: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Splits a parameter tree by name.

  Args:
    params: nested dict of arrays.
    trainable: regular expressions; a parameter whose whole name ('a/b/c')
      matches one of them trains.

  Returns:
    (trainable tree, frozen tree); together they hold every parameter once.

  Raises:
    InputError: if a pattern matches no parameter at all. (A pattern that
      silently misses its parameter is how a prompt never trains.)
  """
  flat = flatten(params)
  for pattern in trainable:
    if not any(re.fullmatch(pattern, name) for name in flat):
      raise InputError(
        f'trainable pattern {pattern!r} matches no parameter; there are'
        f' {len(flat)}, the first is {next(iter(flat), "none")!r}'
      )
  chosen = {
    n for n in flat if any(re.fullmatch(pattern, n) for pattern in trainable)
  }
  return (
    unflatten({n: v for n, v in flat.items() if n in chosen}),
    unflatten({n: v for n, v in flat.items() if n not in chosen}),
  )


def merge(first: PyTree, second: PyTree) -> dict[str, Any]:
  """Joins two trees; where both have a name, the second counts."""
  return unflatten({**flatten(first), **flatten(second)})


def layer_groups(names: Iterable[str]) -> dict[str, list[str]]:
  """Which parameters are one when the layers of a stack are stacked.

  Args:
    names: of parameters; those of a layer, 'encoder/layers_0/…', for every
      layer of its stack.

  Returns:
    {'encoder/layers/…': names of layers 0, 1, … in order}; every other name
    stands for itself alone.

  Examples:
    >>> layer_groups(['a/layers_1/w', 'a/layers_0/w', 'b'])
    {'a/layers/w': ['a/layers_0/w', 'a/layers_1/w'], 'b': ['b']}
  """
  groups: dict[str, dict[int, str]] = {}
  for name in names:
    found = re.fullmatch(r'(.*/layers)_(\d+)(/.*)', name)
    if found:
      group = groups.setdefault(found[1] + found[3], {})
      group[int(found[2])] = name
    else:
      groups[name] = {0: name}
  return {
    group: [members[i] for i in sorted(members)]
    for group, members in groups.items()
  }


def count(tree: PyTree) -> int:
  """Number of scalars in a tree of arrays or shapes."""
  return sum(int(np.prod(v.shape)) for v in flatten(tree).values())


def describe(trainable: PyTree, frozen: PyTree) -> list[str]:
  """Lines for the start of a run: what trains, and how much is frozen."""
  total = count(trainable) + count(frozen)
  lines = ['trainable parameters:']
  flat = flatten(trainable)
  for name, members in layer_groups(flat).items():
    value, times = flat[members[0]], len(members)
    shape = ' x '.join(str(s) for s in value.shape)
    if times > 1:
      shape = f'{times} x ({shape})'
    lines.append(f'  {name:<40} {shape:<20} {value.dtype}')
  lines.append(
    f'  {count(trainable):,} of {total:,} parameters train'
    f' ({100 * count(trainable) / total:.3f} %)'
  )
  return lines
