"""A method from outside of the package: learned scales in the network.

It adds one file, and gin or a test that imports it; nothing in mpt_jax knows
of it. `gain` [D] stands behind every sub-layer; with `heads` there is also one
number for each feature of the keys and values [H * K], as in (IA)^3.
"""

import dataclasses
import re
from typing import ClassVar

import jax.numpy as jnp

from mpt_jax import methods, t5

_OUT = r'(.*/(?:\w*attention|mlp))/(?:out|wo)/kernel'
_HEADS = r'(.*/\w*attention/(?:key|value))/kernel'


@methods.register
@dataclasses.dataclass(frozen=True)
class Scale(methods.Delta):
  """Scales what each sub-layer adds to the residual stream.

  Attributes:
    heads: whether to scale keys and values too.
    value: what all scales start as.
  """

  name: ClassVar[str] = 'scale'
  title: ClassVar[str] = 'learned scales'
  paper: ClassVar[str] = 'none'
  rates: ClassVar = {'target': (1e-2, None), 'teacher': (1e-2, None)}

  heads: bool = False
  value: float = dataclasses.field(default=1.0, compare=False)

  def shapes(self, config, num_tasks):
    """One vector for each module that is scaled."""
    found, sets = {}, (self.sets(num_tasks),)
    for name, shape in t5.param_shapes(config).items():
      if match := re.fullmatch(_OUT, name):
        found[f'{match[1]}/gain'] = sets + shape[1:]
      elif self.heads and (match := re.fullmatch(_HEADS, name)):
        found[f'{match[1]}/gain'] = sets + shape[1:]
    return found

  def initial(self, config, num_tasks, start):
    """All of them the same."""
    shapes = self.shapes(config, num_tasks)
    return {name: jnp.full(s, self.value) for name, s in shapes.items()}

  def intercept(self, call, args, kwargs, context):
    """Scales the output; of keys in the other order, the queries."""
    gain = methods.learned(context.module, 'gain')
    if gain is None or context.method_name not in ('__call__', 'by_head'):
      return call(*args, **kwargs)
    if context.method_name == '__call__':
      y = call(*args, **kwargs)
      return y * methods.of_rows(gain, len(y))[:, None]
    spec, x = args
    by_head = gain.reshape(len(gain), x.shape[1], 1, -1)
    if spec.startswith('bhtk'):  # Queries, which meet the keys' features.
      return call(spec, x * by_head, **kwargs)
    return call(spec, x, **kwargs) * by_head
