"""Adapters: where they are, norms of several tasks, and bad settings."""

import jax
import numpy as np
import pytest

from mpt_jax import methods, models, t5
from mpt_jax.engine import params as params_lib
from mpt_jax.types import InputError
from tests.helpers import tiny

CONFIG = tiny.CONFIG.replace(num_encoder_layers=2, num_decoder_layers=3)


def _modules(**settings):
  """The modules with an adapter, and the number of norms that change."""
  shapes = methods.Adapter(size=3, **settings).shapes(CONFIG, 1)
  down = {
    name.removesuffix('/adapter_down')
    for name in shapes
    if name.endswith('/adapter_down')
  }
  return down, sum(name.endswith('/scale_change') for name in shapes)


def test_adapters_are_where_the_paper_and_its_variants_have_them():
  both = {
    *(
      f'encoder/layers_{i}/{n}' for i in range(2) for n in ('attention', 'mlp')
    ),
    *(
      f'decoder/layers_{i}/{n}'
      for i in range(3)
      for n in ('self_attention', 'mlp')
    ),
  }
  cross = {f'decoder/layers_{i}/encoder_decoder_attention' for i in range(3)}
  assert _modules() == (both, 2 * 2 + 3 * 3 + 2)
  assert _modules(norms=False, cross=True) == (both | cross, 0)
  upper = {name for name in both if 'layers_0' not in name}
  assert _modules(first_layer=1) == (upper, 15)
  first = {name for name in both if 'layers_0' in name}
  assert _modules(last_layer=0) == (first, 15)
  # Deeper than the encoder, which has none then.
  assert _modules(first_layer=2, norms=False)[0] == {
    'decoder/layers_2/self_attention',
    'decoder/layers_2/mlp',
  }


def test_dropped_adapters_are_counted():
  """AdapterDrop's 1.1M: layers 5 to 11 of T5-base, norms everywhere."""
  method, config = methods.Adapter(first_layer=5), t5.get_config('t5_base')
  assert method.num_parameters(config, 1) == 1_101_984
  assert sum(map(np.prod, method.shapes(config, 1).values())) == 1_101_984


def test_norms_of_tasks_that_were_trained_apart():
  """Of merged bundles each task has its own; a run has one for all."""
  method, config = methods.Adapter(size=3), tiny.CONFIG
  rng = np.random.default_rng(0)
  arrays = {
    name: rng.normal(size=(2, *shape[1:])).astype(np.float32)
    for name, shape in method.shapes(config, 2).items()
  }
  batch = next(tiny.Batches(tasks=2, length=0, config=config))
  params = tiny.backbone(config=config)

  def logits(arrays, tasks):
    model = models.PromptedT5(config, method, tasks)
    tree = params | {'delta': params_lib.unflatten(arrays)}
    return model._forward(tree, None, batch, None)[0]

  logits = jax.jit(logits, static_argnums=1)
  got, rows = logits(arrays, 2), batch['encoder_task_ids'][:, 0]
  assert set(rows) == {0, 1}
  for task in range(2):
    want = logits(method.select(arrays, [task]), 1)
    np.testing.assert_allclose(
      got[rows == task], want[rows == task], rtol=0, atol=1e-4
    )


def test_it_starts_near_the_backbone():
  method = methods.Adapter(size=50)
  start = method.fresh(CONFIG, 4, jax.random.PRNGKey(0))
  for name, array in start.items():
    if name.endswith(('/adapter_down', '/adapter_up')):
      assert np.std(array) == pytest.approx(0.01, rel=0.1)
      assert np.abs(array[0] - array[1]).min() > 0
    else:
      assert not array.any()


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'reduction': 0}, 'ADAPTER_REDUCTION = 0 must be'),
    ({'size': 0}, 'ADAPTER_SIZE = 0 must be'),
    ({'activation': 'gelu_old'}, "'gelu_old', expected one of.*'gelu_new'"),
    ({'first_layer': 2, 'last_layer': 1}, 'no range of layers'),
    ({'first_layer': -1}, 'no range of layers'),
    ({'reduction': 15}, 'ADAPTER_REDUCTION = 15 leaves nothing .* 14 wide'),
    ({'size': 2, 'last_layer': 3}, 'ADAPTER_LAST_LAYER = 3, but the last .* 2'),
    ({'size': 2, 'first_layer': 3}, 'ADAPTER_FIRST_LAYER = 3 and'),
  ],
)
def test_bad_settings_are_refused(settings, message):
  with pytest.raises(InputError, match=message):
    methods.Adapter(**settings).num_parameters(CONFIG, 1)


def test_layers_that_differ_are_not_scanned():
  methods.Adapter().check_can(scan=True)
  for settings in ({'first_layer': 1}, {'last_layer': 0}):
    with pytest.raises(InputError, match='SCAN_LAYERS'):
      methods.Adapter(**settings).check_can(scan=True)
