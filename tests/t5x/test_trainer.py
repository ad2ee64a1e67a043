"""Only prompts move, in T5X's own Trainer, by literal names."""

import jax
import numpy as np
import pytest

pytest.importorskip('t5x', reason='T5X is not on PYTHONPATH')

from mpt_jax.engine import optimizers
from mpt_jax.engine import params as params_lib
from mpt_jax.types import InputError
from tests.helpers import tiny
from tests.t5x import helpers

pytestmark = pytest.mark.t5x

STEPS = 4
BACKBONE = [
  'decoder/decoder_norm/scale',
  'decoder/layers_0/encoder_decoder_attention/key/kernel',
  'decoder/layers_0/encoder_decoder_attention/out/kernel',
  'decoder/layers_0/encoder_decoder_attention/query/kernel',
  'decoder/layers_0/encoder_decoder_attention/value/kernel',
  'decoder/layers_0/mlp/wi_0/kernel',
  'decoder/layers_0/mlp/wi_1/kernel',
  'decoder/layers_0/mlp/wo/kernel',
  'decoder/layers_0/pre_cross_attention_layer_norm/scale',
  'decoder/layers_0/pre_mlp_layer_norm/scale',
  'decoder/layers_0/pre_self_attention_layer_norm/scale',
  'decoder/layers_0/self_attention/key/kernel',
  'decoder/layers_0/self_attention/out/kernel',
  'decoder/layers_0/self_attention/query/kernel',
  'decoder/layers_0/self_attention/value/kernel',
  'decoder/logits_dense/kernel',
  'decoder/relpos_bias/rel_embedding',
  'encoder/encoder_norm/scale',
  'encoder/layers_0/attention/key/kernel',
  'encoder/layers_0/attention/out/kernel',
  'encoder/layers_0/attention/query/kernel',
  'encoder/layers_0/attention/value/kernel',
  'encoder/layers_0/mlp/wi_0/kernel',
  'encoder/layers_0/mlp/wi_1/kernel',
  'encoder/layers_0/mlp/wo/kernel',
  'encoder/layers_0/pre_attention_layer_norm/scale',
  'encoder/layers_0/pre_mlp_layer_norm/scale',
  'encoder/relpos_bias/rel_embedding',
  'token_embedder/embedding',
]
FROZEN = {
  'teacher': BACKBONE,
  'source': [*BACKBONE, 'teacher_prompts/prompt_table'],
  'target': BACKBONE,
}


def settings(stage, **kwargs):
  return optimizers.Optimizer(
    optimizers.method_groups(tiny.method(stage), 0.3, 0.1),
    **{'schedule': 'constant', **kwargs},
  )


@pytest.mark.parametrize('num_microbatches', [None, 2])
@pytest.mark.parametrize('stage', sorted(helpers.TRAINED))
def test_only_the_listed_parameters_move(stage, num_microbatches):
  # A large decay would show in a frozen parameter.
  chosen = settings(stage, weight_decay=0.1, clip_norm=1.0)
  model, _, params = helpers.make_model(stage, chosen)
  before = params_lib.flatten(params)
  trained, frozen = helpers.TRAINED[stage], FROZEN[stage]
  assert sorted(before) == sorted([*trained, *frozen])
  with helpers.make_trainer(
    model, params, num_microbatches=num_microbatches
  ) as trainer:
    trainer.train(helpers.batches(stage), STEPS).result()
    state = trainer.train_state
  assert int(state.step) == STEPS
  after = params_lib.flatten(state.params)
  assert sorted(after) == sorted(before)
  for name in trained:
    assert np.abs(after[name] - before[name]).max() > 1e-3, name
  for name in frozen:
    np.testing.assert_array_equal(after[name], before[name], err_msg=name)


@pytest.mark.parametrize('stage', sorted(helpers.TRAINED))
def test_optimizer_state_is_of_the_prompts_alone(stage):
  model, _, params = helpers.make_model(stage, settings(stage))
  with helpers.make_trainer(model, params) as trainer:
    state = trainer.train_state
  sizes = [
    leaf.size for leaf in jax.tree.leaves(state.param_states) if leaf.ndim
  ]
  prompts = sum(
    params_lib.flatten(params)[n].size for n in helpers.TRAINED[stage]
  )
  assert sum(sizes) == 2 * prompts  # AdamW's two moments


def test_two_learning_rates():
  """AdamW's first step is as long as its rate."""
  model, _, params = helpers.make_model('source', settings('source'))
  before = params_lib.flatten(params)
  with helpers.make_trainer(model, params) as trainer:
    trainer.train(helpers.batches('source'), 1).result()
    after = params_lib.flatten(trainer.train_state.params)
  for name, rate in (
    ('prompts/shared_prompt', 0.3),
    ('prompts/task_u', 0.1),
    ('prompts/task_v', 0.1),
  ):
    step = np.abs(after[name] - before[name]).max()
    np.testing.assert_allclose(step, rate, rtol=1e-2, err_msg=name)


def test_a_name_that_is_not_there_is_an_error():
  """A prompt that silently never trains is what this guards against."""
  from mpt_jax.t5x import optimizers as t5x_optimizers

  _, _, params = helpers.make_model('source')
  for names in (
    ['prompts/prompt'],
    ['prompts/task_u', 'prompts/task_v'],
    ['prompts/shared_prompt/', 'prompts/task_u', 'prompts/task_v'],
  ):
    optimizer = t5x_optimizers.PromptOptimizer(settings('source'), names)
    with pytest.raises(InputError, match='prompts/shared_prompt'):
      optimizer.init_state(params)


def test_backbone_is_partitioned_and_prompts_are_everywhere():
  model, _, params = helpers.make_model('source', settings('source'))
  partitioner = helpers.make_partitioner(num_partitions=2)
  assert dict(partitioner.mesh.shape) == {'data': 1, 'model': 2}
  with helpers.make_trainer(model, params, partitioner) as trainer:
    trainer.train(helpers.batches('source'), 1).result()
    state = trainer.train_state
  for name, value in params_lib.flatten(state.params).items():
    parts = value.size // value.addressable_shards[0].data.size
    if 'prompts/' in name:
      assert parts == 1, name
    elif name.endswith(('kernel', 'embedding')) and 'relpos' not in name:
      assert parts == 2, name
