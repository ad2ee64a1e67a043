"""A tiny T5X: models of every stage, a partitioner, states, a real Trainer."""

import dataclasses

from flax import core
import jax
import numpy as np
from t5x import partitioning, train_state, trainer, utils

from mpt_jax import methods
from mpt_jax.engine import optimizers as native_optimizers
from mpt_jax.engine import starts
from mpt_jax.models import PromptedT5
from mpt_jax.t5x import models, optimizers, restore
from tests.helpers import tiny

# T5X's mesh on CPUs puts all devices (tests have two) on its `model` axis.
CONFIG = dataclasses.replace(
  tiny.CONFIG, vocab_size=38, mlp_dim=26, num_heads=2, head_dim=7
)
TASKS = ('mnli', 'sst2', 'rte')
# What trains in a stage, name by name.
TRAINED = {
  'teacher': ['prompts/prompt'],
  'source': ['prompts/shared_prompt', 'prompts/task_u', 'prompts/task_v'],
  'target': ['prompts/shared_prompt', 'prompts/task_u', 'prompts/task_v'],
}


def batches(stage, **kwargs):
  tasks = tiny.K if stage == 'source' else 1
  return tiny.Batches(tasks=tasks, config=CONFIG, **kwargs)


def make_model(stage, settings=None):
  """(T5X model, the native model in it, its parameters)."""
  native, params = tiny.stage_model(stage, CONFIG)
  wrapped = models.PromptedModel(
    native,
    TASKS[: native.num_tasks],
    optimizer_def=optimizers.PromptOptimizer(
      settings, optimizers.trainable_names(native.method)
    ),
  )
  return wrapped, native, jax.tree.map(np.asarray, params)


def make_partitioner(num_partitions=1):
  return partitioning.PjitPartitioner(
    num_partitions=num_partitions,
    logical_axis_rules=partitioning.standard_logical_axis_rules(
      additional_rules=models.prompt_axis_rules()
    ),
  )


def make_trainer(model, params, partitioner=None, num_microbatches=None):
  """T5X's own Trainer at the given parameters."""
  partitioner = partitioner or make_partitioner()
  batch = next(tiny.Batches(tasks=1, config=CONFIG))
  initializer = utils.TrainStateInitializer(
    optimizer_def=model.optimizer_def,
    init_fn=model.get_initial_variables,
    input_shapes={k: v.shape for k, v in batch.items()},
    partitioner=partitioner,
  )
  state = train_state.FlaxOptimTrainState.create(
    model.optimizer_def,
    core.freeze({'params': params, 'params_axes': model.params_axes(params)}),
  )
  state = partitioner.partition(
    lambda x: x, (None,), initializer.train_state_axes
  )(state.replace(params_axes=None))
  return trainer.Trainer(
    model=model,
    train_state=state,
    partitioner=partitioner,
    eval_names=[],
    summary_dir=None,
    train_state_axes=initializer.train_state_axes,
    rng=jax.random.PRNGKey(0),
    learning_rate_fn=lambda step: 0.1,
    num_microbatches=num_microbatches,
  )


# Of a run's start, which T5X reads from a checkpoint.
LENGTH = 3
SHAPES = {'encoder_input_tokens': (2, 7), 'decoder_input_tokens': (2, 5)}


def start_model(path, config, **kwargs):
  """A teacher's model, by the pieces that `runs.train_model` puts together."""
  method = methods.SoftPrompts(LENGTH, init=methods.SampledVocabulary())
  settings = native_optimizers.Optimizer(
    native_optimizers.method_groups(method, 0.3), schedule='constant'
  )
  return restore.TrainModel(
    PromptedT5(config, method),
    ('rte',),
    optimizer_def=optimizers.PromptOptimizer(
      settings, optimizers.trainable_names(method)
    ),
    start=restore.Start(
      backbone=str(path), stage='teacher', source=starts.Source(**kwargs)
    ),
  )


def first_state(model):
  return restore.PromptStateInitializer(
    optimizer_def=model.optimizer_def,
    init_fn=model.get_initial_variables,
    input_shapes=SHAPES,
    partitioner=make_partitioner(),
  ).from_scratch(None)
