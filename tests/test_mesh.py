"""Devices, micro-batches, scans and rematerialisation change no number.

A process with eight virtual devices trains ten steps of the source stage in
every way (`helpers/mesh_check.py`); here what they got is compared. float32
may differ by the order of sums: relative to the largest value of an array by
1e-5 (the worst seen is 1.1e-6). In bfloat16 the loss may differ by 1 %, a
gradient by 5 % (the worst seen are 0.2 % and 2.6 %).
"""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpt_jax import models, t5
from mpt_jax.engine import job, partitioning
from mpt_jax.engine import params as params_lib
from mpt_jax.types import InputError
from tests.helpers import children, every_method, mesh_check, tiny

_USUAL = ('', 'attempt', 'lora')
FLOAT32 = [
  pytest.param(n, marks=[] if c.method in _USUAL else pytest.mark.long)
  for n, c in mesh_check.CASES.items()
  if c.dtype == 'float32'
]
BFLOAT16 = [n for n, c in mesh_check.CASES.items() if c.dtype == 'bfloat16']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return str(tmp_path_factory.mktemp('saved'))


@pytest.fixture(scope='module')
def results(folder, request):
  # Those that are asked for, and what they are compared with.
  wanted = {'plain', 'plain_packed', '2x2'}
  for item in request.session.items:
    if item.path == request.path and 'name' in item.fixturenames:
      name = item.callspec.params['name']
      wanted |= {name, _reference_of(name)}
  flags = os.environ['XLA_FLAGS'].replace('device_count=2', 'device_count=8')
  done = children.run(
    ['-m', 'tests.helpers.mesh_check', folder, *wanted],
    env={**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
    timeout=1200,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def _reference_of(name):
  case = mesh_check.CASES[name]
  if case.method:
    return case.method
  plain = 'plain' if case.family == every_method.T5 else case.family
  return f'{plain}_packed' if case.packed else plain


def _reference(results, name):
  return results[_reference_of(name)]


def _check(got, want, tolerance):
  assert got.keys() == want.keys()
  for name, value in want.items():
    # The label is what is off; the scale is that of the whole array.
    np.testing.assert_allclose(
      got[name],
      value,
      rtol=0,
      atol=tolerance * max(np.abs(value).max(), 1e-9),
      err_msg=name,
    )


@pytest.mark.slow
@pytest.mark.parametrize('name', FLOAT32)
def test_every_way_gets_the_same(results, name):
  got, want = results[name], _reference(results, name)
  assert len(want['losses']) == mesh_check.STEPS
  assert want['gradients'].keys() == want['prompts'].keys()
  assert want['prompts']
  np.testing.assert_allclose(got['losses'], want['losses'], rtol=1e-5)
  method = every_method.METHODS.get(mesh_check.CASES[name].method)
  for part in ('terms', 'gradients', 'prompts'):
    for kept in (got, want) if method else ():
      # An optimizer makes steps of rounding errors, too.
      kept[part] = {
        array: value
        for array, value in kept[part].items()
        if not every_method.is_idle(method, array)
      }
    _check(got[part], want[part], 1e-5)
  assert all(np.abs(g).max() > 1e-4 for g in want['gradients'].values())


@pytest.mark.slow
@pytest.mark.parametrize('name', BFLOAT16)
def test_bfloat16_is_near(results, name):
  got, want = results[name], _reference(results, name)
  np.testing.assert_allclose(got['losses'], want['losses'], rtol=0.01)
  _check(got['gradients'], want['gradients'], 0.05)
  assert want['losses'] != got['losses']


@pytest.mark.slow
@pytest.mark.parametrize(
  'case', [mesh_check.Case(), mesh_check.Case(2, 1, scan=True)]
)
def test_a_checkpoint_restores_on_fewer_devices(results, folder, case):
  """Saved by a process of eight devices, of which four are in the mesh."""
  got = mesh_check.run(case, restore=folder)
  half = mesh_check.STEPS // 2
  assert len(got['losses']) == half
  np.testing.assert_allclose(
    got['losses'], results['plain']['losses'][half:], rtol=1e-5
  )
  _check(got['prompts'], results['plain']['prompts'], 1e-5)


# ---------------------------------------------------------------------------
# Micro-batches.


@pytest.mark.slow
@pytest.mark.parametrize(
  'packed', [pytest.param(False, marks=pytest.mark.long), True]
)
def test_parts_add_up_for_every_normalizer(packed):
  """Uneven parts: the loss and the gradient are those of the whole batch."""
  config = tiny.CONFIG.replace(
    vocab_size=40, emb_dim=16, num_encoder_layers=1, num_decoder_layers=1
  )
  model, params = tiny.stage_model('source', config)
  batch = mesh_check.make_batch(0, packed)
  parts = [
    {k: v[rows] for k, v in batch.items()}
    for rows in (slice(0, 3), slice(3, 32))
  ]
  trained, frozen = params_lib.split(params, tiny.PROMPTS)

  def both(trained):
    losses = []
    for factor in (None, 7.0, *models.NORMALIZERS):
      normalized = models.DistilledPromptedT5(
        model.config,
        model.method,
        model.num_tasks,
        loss_normalizing_factor=factor,
        z_loss=0.1,
      )
      whole, _ = normalized.loss_fn(
        params_lib.merge(trained, frozen), batch, None
      )
      shares = [
        normalized.part_loss_fn(
          params_lib.merge(trained, frozen),
          part,
          normalized.loss_weights(batch),
          batch['decoder_target_tokens'].size,
          None,
        )[0]
        for part in parts
      ]
      losses.append(jnp.stack([whole, sum(shares)]))
    return (jnp.stack(losses),) * 2

  # All losses in one compilation.
  gradients, losses = jax.jit(jax.jacrev(both, has_aux=True))(trained)
  np.testing.assert_allclose(losses[:, 1], losses[:, 0], rtol=1e-5)
  for gradient in jax.tree.leaves(gradients):
    for whole, shares in gradient:
      close = {'rtol': 0, 'atol': 1e-5 * float(jnp.abs(whole).max())}
      np.testing.assert_allclose(shares, whole, **close)
  assert len({round(float(x), 3) for x in losses[:, 0]}) == 5


# ---------------------------------------------------------------------------
# Stacked layers.


@pytest.mark.slow
def test_a_stack_decodes_and_scores_the_same():
  config = tiny.CONFIG.replace(num_encoder_layers=1, num_decoder_layers=2)
  model, params = tiny.stage_model('target', config)
  mesh = partitioning.make_mesh(1, jax.devices()[:1])
  stacked = partitioning.place_backbone(params, mesh, scan_layers=True)
  assert 'layers_0' not in stacked['decoder']
  assert params_lib.count(stacked) == params_lib.count(params)
  batch = next(tiny.Batches(tasks=1, config=config))
  for beams in (1, 2):
    decode = jax.jit(
      lambda p, beams=beams: model.predict_batch(p, batch, num_beams=beams)
    )
    np.testing.assert_array_equal(decode(stacked), decode(params))
  score = jax.jit(lambda p: model.score_batch(p, batch))
  np.testing.assert_allclose(score(stacked), score(params), rtol=1e-5)


def test_layers_are_stacked_in_the_order_of_their_numbers():
  names = [f'encoder/layers_{i}/mlp/wo/kernel' for i in range(12)]
  groups = params_lib.layer_groups([*sorted(names), 'token_embedder/embedding'])
  assert groups == {
    'encoder/layers/mlp/wo/kernel': names,
    'token_embedder/embedding': ['token_embedder/embedding'],
  }


def test_a_layer_that_trains_is_not_stacked():
  kernel = np.zeros((2, 2))
  tree = {'encoder': {'layers_0': {'mlp': {'wo': {'kernel': kernel}}}}}
  with pytest.raises(InputError, match="SCAN_LAYERS .*'encoder/layers_0/mlp"):
    job._check_no_layer_trains(tree, ['encoder/.*'])
  job._check_no_layer_trains(tree, ['encoder/encoder_norm/.*'])


# ---------------------------------------------------------------------------
# Where parameters lie, and in which type.


def _spec(name, shape, mesh, **settings):
  return tuple(partitioning.param_sharding(name, shape, mesh, **settings).spec)


def test_shardings():
  mesh = partitioning.make_mesh(2, jax.devices()[:2])  # 1 x 2
  kernel = 'encoder/layers_0/attention/query/kernel'
  assert _spec(kernel, (14, 16), mesh) == (None, 'model')
  assert _spec(kernel, (14, 15), mesh) == (None, None)
  assert _spec('encoder/layers/mlp/wo/kernel', (3, 8, 14), mesh) == (
    None,
    'model',
    None,
  )
  mesh = partitioning.make_mesh(1, jax.devices()[:2])  # 2 x 1
  sharded = {'shard_backbone': True}
  assert _spec(kernel, (14, 16), mesh, **sharded) == ('data', 'model')
  assert _spec(kernel, (15, 16), mesh, **sharded) == (None, 'model')
  # Norms are small, and prompts train: both are everywhere.
  scale = 'encoder/encoder_norm/scale'
  assert _spec(scale, (14,), mesh, **sharded) == (None,)
  for name in ('prompts/shared_prompt', 'teacher_prompts/prompt_table'):
    assert _spec(name, (6, 14), mesh, **sharded) == ()


def test_bfloat16_is_for_matrices_alone():
  _, params = tiny.stage_model('source')
  placed = partitioning.place_backbone(
    params, partitioning.make_mesh(), dtype='bfloat16'
  )
  for name, value in params_lib.flatten(placed).items():
    matrix = name.endswith(('/kernel', 'token_embedder/embedding'))
    assert value.dtype == ('bfloat16' if matrix else 'float32'), name


@pytest.mark.parametrize('tied', [False, True])
def test_bfloat16_loss_and_gradients_are_float32(tied):
  config = tiny.CONFIG.replace(dtype='bfloat16', logits_via_embedding=tied)
  model, params = tiny.stage_model('source', config)
  placed = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
    partitioning.place_backbone(
      params, partitioning.make_mesh(), dtype='bfloat16'
    ),
  )
  batch = next(tiny.Batches())
  logits, states = jax.eval_shape(
    lambda p: model._forward(p, model.prompt_table(p), batch, None, True),
    placed,
  )
  assert logits.dtype == jnp.float32
  assert {s.dtype for side in states.values() for s in side} == {
    jnp.dtype(jnp.bfloat16)
  }
  trained, frozen = params_lib.split(placed, tiny.PROMPTS)
  loss, grads = jax.eval_shape(
    jax.value_and_grad(
      lambda t, f: model.loss_fn(params_lib.merge(t, f), batch, None)[0]
    ),
    trained,
    frozen,
  )
  assert loss.dtype == jnp.float32
  assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype(jnp.float32)}


# ---------------------------------------------------------------------------
# Settings.


def test_microbatches_must_divide_each_devices_rows():
  mesh = partitioning.make_mesh(1, jax.devices()[:2])
  partitioning.check_batch_size(12, mesh, 3)
  with pytest.raises(
    InputError, match='MICROBATCHES = 4 does not divide the 6 .* 1, 2, 3, 6$'
  ):
    partitioning.check_batch_size(12, mesh, 4)
  for wrong in (0, -1, 2.0, '2'):
    with pytest.raises(InputError, match='MICROBATCHES = .* expected 1, 2'):
      partitioning.check_batch_size(12, mesh, wrong)


def test_how_a_run_is_laid_out_is_no_part_of_its_name():
  """A stopped run goes on with other settings for memory."""
  config = t5.get_config('t5_small')
  remat = config.replace(remat_layers=True)
  assert remat != config
  assert repr(remat) == repr(config)
