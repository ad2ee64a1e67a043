"""A step holds nothing of the backbone's size beside the backbone.

By XLA's memory analysis of the compiled step, on shapes: a backbone that
outweighs the activations of a small batch by far, so that a gradient, a moment
or a copy of it would be seen.
"""

import jax
import pytest

from benchmarks import memory
from mpt_jax import t5
from mpt_jax.engine import partitioning
from tests.helpers import every_method

CONFIG = t5.T5Config(
  vocab_size=512,
  emb_dim=512,
  num_heads=8,
  num_encoder_layers=2,
  num_decoder_layers=2,
  mlp_dim=2048,
  mlp_activations=('gelu', 'linear'),
  dropout_rate=0.0,
)


def _with_layers(count):
  return CONFIG.replace(num_encoder_layers=count, num_decoder_layers=count)


def _measure(devices=1, config=CONFIG, **settings):
  mesh = partitioning.make_mesh(1, jax.devices()[:devices])
  setting = memory.Setting(
    config, batch=2, input_len=8, target_len=2, prompt_length=5, **settings
  )
  return memory.measure(setting, mesh)


@pytest.mark.parametrize(
  'settings',
  [
    {'distill': False},
    pytest.param({'distill': True}, marks=pytest.mark.slow),
    # The loop copies a layer at a time: there must be many of them.
    pytest.param(
      {'scan_layers': True, 'config': _with_layers(8)}, marks=pytest.mark.slow
    ),
    pytest.param({'microbatches': 2}, marks=pytest.mark.slow),
  ],
)
def test_no_gradient_and_no_state_of_the_backbone(settings):
  sizes = _measure(**settings)
  assert sizes['backbone'] == sizes['backbone_float32'] > 5e7
  assert sizes['learned'] + sizes['optimizer'] < 0.01 * sizes['backbone']
  assert sizes['arguments'] < 1.01 * sizes['backbone']
  assert sizes['temp'] + sizes['output'] < 0.15 * sizes['backbone']


# Of six tasks, each with a set of its own; of some the sets are no trifle.
@pytest.mark.slow
@pytest.mark.parametrize(
  'method',
  every_method.each(every_method.METHODS.keys() - {'multitask', 'full'}),
)
def test_no_method_makes_a_gradient_of_the_backbone(method):
  sizes = _measure(method=method, distill=False)
  assert sizes['backbone'] == sizes['backbone_float32'] > 5e7
  learned, moments = sizes['learned'], sizes['optimizer']
  assert moments == pytest.approx(2 * learned, rel=0.01)
  beside = sizes['arguments'] - sizes['backbone'] - learned - moments
  assert beside < 0.01 * sizes['backbone']
  # Sets are gathered for each example, and have gradients.
  assert sizes['temp'] < 0.15 * sizes['backbone'] + 4 * learned


@pytest.mark.slow
def test_the_measure_would_see_a_gradient():
  """Where the backbone trains there are a gradient and two moments of it."""
  sizes = _measure(method='full', distill=False)
  assert sizes['optimizer'] > 1.9 * sizes['backbone']
  assert sizes['temp'] > 0.5 * sizes['backbone']


@pytest.mark.slow
def test_a_backbone_split_over_the_batch_axis_is_stored_once():
  one = _measure(distill=False, scan_layers=True)
  two = _measure(2, distill=False, scan_layers=True, shard_backbone=True)
  assert two['arguments'] < 0.52 * one['arguments']
  # What comes from the other device is a layer at a time, not all of it.
  assert two['temp'] < 0.5 * one['backbone']


def test_bfloat16_halves_the_backbone():
  sizes = memory.measure(
    memory.Setting(CONFIG.replace(dtype='bfloat16')),
    partitioning.make_mesh(),
    compiled=False,
  )
  assert sizes['backbone'] < 0.51 * sizes['backbone_float32']


def test_sizes_of_t5_xxl():
  """From shapes alone: 11 billion parameters, of which a million train."""
  sizes = memory.measure(
    memory.Setting(t5.get_config('t5_1_1_xxl').replace(dtype='bfloat16')),
    partitioning.make_mesh(),
    compiled=False,
  )
  assert sizes['backbone_float32'] == 4 * 11_135_332_352
  assert sizes['learned'] == 4 * (100 * 4096 + 6 * (100 + 4096))
  assert sizes['optimizer'] < 2 * sizes['learned'] + 100
