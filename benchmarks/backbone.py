"""T5 v1.0 of the measured sizes, with random weights, on the device."""

from typing import Any

from jax.sharding import Mesh
import numpy as np

from benchmarks import measure
from mpt_jax import backbones, t5
from mpt_jax.engine import hostmemory, partitioning
from mpt_jax.engine import params as params_lib


def make_config(model: str, precision: str = 'float32') -> t5.T5Config:
  """The config of a key of `measure.SHAPES`."""
  shape = measure.SHAPES[model]
  return t5.T5Config(
    vocab_size=measure.VOCABULARY,
    emb_dim=shape['d_model'],
    num_heads=shape['heads'],
    num_encoder_layers=shape['layers'],
    num_decoder_layers=shape['layers'],
    head_dim=shape['d_kv'],
    mlp_dim=shape['d_ff'],
    mlp_activations=('relu',),
    dropout_rate=0.0,
    logits_via_embedding=True,
    precision=precision,
  )


def draw(config: backbones.Config, seed: int) -> dict[str, Any]:
  """Draws the tree of a backbone, on the host."""
  rng = np.random.default_rng(seed)
  flat = {
    name: rng.standard_normal(size, np.float32) * np.float32(0.05)
    for name, size in backbones.param_shapes(config).items()
  }
  return params_lib.unflatten(flat)


def place(config: backbones.Config, mesh: Mesh, seed: int) -> dict[str, Any]:
  """Draws weights and puts them on the mesh, as a run does with a checkpoint.

  Args:
    config: the architecture.
    mesh: the mesh.
    seed: fixes the weights.

  Returns:
    The backbone's tree on the mesh; nothing of it is left on the host.
  """
  params = partitioning.place_backbone(
    draw(config, seed), mesh, dtype=config.matrix_dtype
  )
  hostmemory.keep()
  return params
