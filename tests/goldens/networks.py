"""The fixtures of T5X, transformers and google prompt-tuning, as arrays."""

import functools
import json
import pathlib
import types

from flax import traverse_util
import numpy as np

from mpt_jax import checkpoints, t5

TESTDATA = pathlib.Path(__file__).parent.parent / 'testdata'


@functools.cache
def load(name: str) -> types.SimpleNamespace:
  """Returns config, module, params and the arrays of io.npz of a fixture."""
  folder = TESTDATA / name
  if name.startswith('hf_'):
    backbone = checkpoints.load_backbone(str(folder))
    config, params, decode = backbone.config, backbone.params, {}
  else:
    stored = json.loads((folder / 'config.json').read_text())
    config = t5.T5Config.from_dict(stored['model'])
    with np.load(folder / 'params.npz') as arrays:
      params = traverse_util.unflatten_dict(dict(arrays), sep='/')
    decode = stored.get('decode', {})
  with np.load(folder / 'io.npz') as arrays:
    io = dict(arrays)
  return types.SimpleNamespace(
    config=config,
    module=t5.Transformer(config),
    params=params,
    io=io,
    decode=decode,
    folder=folder,
  )
