"""The T5X path and the native one: the same numbers on the same batches."""

import jax
import numpy as np
import optax
import pytest

pytest.importorskip('t5x', reason='T5X is not on PYTHONPATH')

from mpt_jax.engine import optimizers, partitioning, trainer
from mpt_jax.engine import params as params_lib
from tests.helpers import tiny
from tests.t5x import helpers

pytestmark = pytest.mark.t5x

STAGES = sorted(helpers.TRAINED)
STEPS = 20


class Sgd:
  """Stands in for `optimizers.Optimizer`."""

  def make(self, trainable):
    del trainable
    return optax.sgd(0.3)


def packed(batch):
  """Two rows of a batch in one: the same examples, packed."""
  size = len(batch['encoder_input_tokens']) // 2
  out = {
    k: np.concatenate([v[:size], v[size:]], axis=1) for k, v in batch.items()
  }
  for side, like in (
    ('encoder', 'encoder_input_tokens'),
    ('decoder', 'decoder_target_tokens'),
  ):
    length = batch[like].shape[1]
    ids = np.repeat([[1, 2]], length, axis=1).reshape(1, -1)
    ids = np.concatenate([np.full(length, 1), np.full(length, 2)])[None]
    out[f'{side}_segment_ids'] = np.repeat(ids, size, axis=0).astype(np.int32)
    places = np.tile(np.arange(length), 2)[None]
    out[f'{side}_positions'] = np.repeat(places, size, 0).astype(np.int32)
  return out


@pytest.mark.parametrize('stage', STAGES)
@pytest.mark.parametrize('pack', [False, True])
def test_loss_terms_and_prompt_gradients_are_equal(stage, pack):
  model, native, params = helpers.make_model(stage)
  batch = next(helpers.batches(stage))
  if pack:
    batch = packed(batch)

  def native_loss(trainable, frozen):
    return native.loss_fn(params_lib.merge(trainable, frozen), batch, None)

  trained, frozen = params_lib.split(params, tiny.PROMPTS)
  (want, terms), want_grads = jax.jit(
    jax.value_and_grad(native_loss, has_aux=True)
  )(trained, frozen)
  (got, metrics), grads = jax.jit(
    jax.value_and_grad(model.loss_fn, has_aux=True)
  )(params, batch, None)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  for name, (sums, weights) in terms.items():
    mean = sums.sum() / weights.sum()
    value = metrics[name].compute_value().value
    np.testing.assert_allclose(value, mean, rtol=1e-5, atol=1e-6, err_msg=name)
    if native.num_tasks > 1:
      for task, s, w in zip(helpers.TASKS, sums, weights, strict=True):
        value = metrics[f'{name}/{task}'].compute_value().value
        if w > 0:
          np.testing.assert_allclose(value, s / w, rtol=1e-5, atol=1e-6)
  grads = params_lib.flatten(grads)
  want_grads = params_lib.flatten(want_grads)
  assert sorted(want_grads) == helpers.TRAINED[stage]
  for name, grad in grads.items():
    if name in want_grads:
      assert np.abs(grad).max() > 1e-4
      np.testing.assert_allclose(
        grad, want_grads[name], rtol=1e-5, atol=1e-6, err_msg=name
      )
    else:
      assert not np.any(grad), name


@pytest.mark.parametrize('stage', STAGES)
@pytest.mark.parametrize('optimizer', ['sgd', 'adamw'])
def test_twenty_steps_end_at_the_same_prompts(stage, optimizer):
  if optimizer == 'sgd':
    settings = Sgd()
    t5x_settings = settings.make(None)
  else:
    t5x_settings = settings = optimizers.Optimizer(
      optimizers.method_groups(tiny.method(stage), 0.3, 0.1),
      total_steps=STEPS,
      warmup_steps=3,
    )
  model, native, params = helpers.make_model(stage, t5x_settings)
  trained, frozen = params_lib.split(params, tiny.PROMPTS)
  mesh = partitioning.make_mesh()
  state = trainer.make_state(native, settings, trained, 0, mesh)
  step = trainer.make_train_step(native, settings)
  totals = trainer.zero_metrics(native)
  frozen = partitioning.shard_params(frozen, mesh)
  stream = helpers.batches(stage)
  for _ in range(STEPS):
    batch = trainer.put_batch(next(stream), mesh)
    state, totals = step(state, frozen, batch, totals)

  with helpers.make_trainer(model, params) as t5x_trainer:
    summary = t5x_trainer.train(helpers.batches(stage), STEPS).result()
    got = params_lib.flatten(t5x_trainer.train_state.params)
  assert int(state.bad_step) == -1
  for name, want in params_lib.flatten(state.params).items():
    assert np.abs(want - params_lib.flatten(params)[name]).max() > 1e-3
    np.testing.assert_allclose(got[name], want, atol=1e-4, err_msg=name)
  mean = trainer.summarize(totals, helpers.TASKS[: native.num_tasks])
  np.testing.assert_allclose(summary['loss'].value, mean['loss'], rtol=1e-4)


def test_decodes_and_scores_are_the_native_ones():
  model, native, params = helpers.make_model('target')
  batch = next(tiny.Batches(tasks=1, config=helpers.CONFIG))
  tokens, aux = model.predict_batch_with_aux(params, batch)
  np.testing.assert_array_equal(tokens, native.predict_batch(params, batch))
  np.testing.assert_array_equal(tokens, model.predict_batch(params, batch))
  assert aux['scores'].shape == (4,)
  np.testing.assert_allclose(
    model.score_batch(params, batch), native.score_batch(params, batch)
  )
