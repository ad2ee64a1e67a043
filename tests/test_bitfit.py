"""BitFit: the backbone at the start; cross-attention in either order."""

import jax
import numpy as np
import pytest

from mpt_jax import methods, models
from mpt_jax.engine import params as params_lib
from mpt_jax.t5 import layers
from tests.helpers import tiny

METHOD = methods.BitFit()
KEY = jax.random.PRNGKey(1)


def _forward(config, method, key=None):
  """(parameters of the backbone and more) -> logits, compiled."""
  batch = next(tiny.Batches(tasks=1, length=0, config=config))
  model = models.PromptedT5(config, method)
  return jax.jit(lambda params: model._forward(params, None, batch, key)[0])


@pytest.mark.parametrize(
  ('tied', 'dtype'), [(True, 'bfloat16'), (False, 'float32')]
)
def test_the_first_step_is_the_backbones_bit_for_bit(tied, dtype):
  config = tiny.CONFIG.replace(logits_via_embedding=tied, dtype=dtype)
  params = tiny.backbone(config=config)
  start = METHOD.fresh(config, 1, KEY)
  got = _forward(config, METHOD)(
    params | {'delta': params_lib.unflatten(start)}
  )
  np.testing.assert_array_equal(got, _forward(config, None)(params))


@pytest.mark.parametrize('rate', [0.0, 0.3])
def test_the_order_of_cross_attention_changes_nothing(monkeypatch, rate):
  config = tiny.CONFIG.replace(dropout_rate=rate)
  attention = layers.CrossAttention(config)
  assert attention._is_less_work(queries=3, keys=11)
  rng = np.random.default_rng(0)
  arrays = {
    name: rng.normal(size=shape).astype(np.float32)
    for name, shape in METHOD.shapes(config, 1).items()
  }
  params = tiny.backbone(config=config)
  params['delta'] = params_lib.unflatten(arrays)
  key = KEY if rate else None
  got = _forward(config, METHOD, key)(params)
  monkeypatch.setattr(layers.CrossAttention, '_is_less_work', lambda *_: False)
  want = _forward(config, METHOD, key)(params)
  # With dropout on the weights it was not taken.
  np.testing.assert_allclose(got, want, rtol=0, atol=0 if rate else 1e-5)
