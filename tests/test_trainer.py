"""Only prompts move, nothing of backbone size is kept, resume is exact."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpt_jax import methods, models, t5
from mpt_jax.checkpoints.run import RunCheckpointer
from mpt_jax.engine import optimizers, partitioning, trainer
from mpt_jax.engine import params as params_lib
from mpt_jax.types import InputError
from tests.helpers import tiny

# Written out, not derived from the patterns: a pattern that misses its
# parameter must not agree with itself.
TRAINABLE = {
  'teacher': ['prompts/prompt'],
  'source': ['prompts/shared_prompt', 'prompts/task_u', 'prompts/task_v'],
  'target': ['prompts/shared_prompt', 'prompts/task_u', 'prompts/task_v'],
}


def make_optimizer(stage, steps=20, **settings):
  return optimizers.Optimizer(
    groups=optimizers.method_groups(tiny.method(stage), 0.3, 0.1),
    total_steps=steps,
    **settings,
  )


def run(stage, steps=20, optimizer=None, batches=None, **fit_args):
  """Trains a stage; returns (trainable before, after, frozen, state)."""
  mesh = partitioning.make_mesh()
  model, params = tiny.stage_model(stage)
  tasks = model.num_tasks
  optimizer = optimizer or make_optimizer(stage, steps)
  trained, frozen = params_lib.split(params, tiny.PROMPTS)
  before = jax.tree.map(np.array, trained)
  state = trainer.make_state(model, optimizer, trained, 0, mesh)
  frozen = partitioning.shard_params(frozen, mesh)
  state = trainer.fit(
    trainer.Training(
      model, optimizer, mesh, [f'task{i}' for i in range(tasks)]
    ),
    state,
    frozen,
    batches or tiny.Batches(tasks=tasks),
    steps,
    **fit_args,
  )
  return before, jax.device_get(state.params), jax.device_get(frozen), state


@pytest.mark.parametrize('stage', ['teacher', 'source', 'target'])
@pytest.mark.parametrize(
  'name', ['adamw', pytest.param('adafactor', marks=pytest.mark.slow)]
)
def test_only_prompts_move(stage, name):
  optimizer = make_optimizer(stage, 20, name=name)
  before, after, frozen, state = run(stage, optimizer=optimizer)
  after = params_lib.flatten(after)
  assert list(after) == TRAINABLE[stage]
  for path, value in params_lib.flatten(before).items():
    assert (after[path] != value).mean() > 0.9, f'{path} did not move'
  _, params = tiny.stage_model(stage)
  kept = params_lib.flatten(frozen)
  for path, value in params_lib.flatten(params).items():
    if path not in TRAINABLE[stage]:
      np.testing.assert_array_equal(kept[path], value, err_msg=path)
  # Two moments (one for Adafactor) a prompt parameter, and a few counters.
  prompt_size = sum(v.size for v in after.values())
  state_size = sum(np.size(x) for x in jax.tree.leaves(state.opt_state))
  assert state_size <= 2 * prompt_size + 16


def test_two_learning_rates_are_those_of_their_groups():
  """First step of Adam without decay: every entry moves by its rate."""
  optimizer = make_optimizer('source', 1, weight_decay=0.0)
  before, after, _, _ = run('source', steps=1, optimizer=optimizer)
  for name, rate in (('shared_prompt', 0.3), ('task_u', 0.1), ('task_v', 0.1)):
    step = np.abs(after['prompts'][name] - before['prompts'][name])
    moved = step[step > 0]
    np.testing.assert_allclose(np.median(moved), rate, rtol=1e-3)


def test_schedule():
  optimizer = optimizers.Optimizer(
    groups=(optimizers.Group('.*', 0.5),), total_steps=110, warmup_steps=10
  )
  rate = optimizer.rate(0.5)
  assert float(rate(0)) == 0.0
  assert float(rate(5)) == pytest.approx(0.25)
  assert float(rate(10)) == pytest.approx(0.5)
  assert float(rate(60)) == pytest.approx(0.25)
  assert float(rate(110)) == 0.0
  constant = dataclasses.replace(optimizer, schedule='constant').rate(0.5)
  assert float(constant(1000)) == 0.5


@pytest.mark.parametrize(
  ('schedule', 'steps', 'warmup'),
  [('linear', 30000, 500), ('linear', 200, 20), ('constant', 200, 0)],
)
def test_warmup_is_the_papers_and_a_tenth_at_most(schedule, steps, warmup):
  made = optimizers.Optimizer(schedule=schedule).of_run((), steps)
  assert made.warmup_steps == warmup
  assert float(made.rate(0.5)(warmup)) == pytest.approx(0.5)
  if warmup:
    assert float(made.rate(0.5)(warmup // 2)) == pytest.approx(0.25)


def test_a_warmup_without_end_is_said(caplog):
  optimizers.Optimizer(warmup_steps=500).of_run((), 200)
  assert 'a warm-up of 500 steps in a run of 200' in caplog.text


def test_optimizer_mistakes_are_named():
  trainable = {'prompts': {'prompt': jnp.zeros((2, 3))}}
  with pytest.raises(InputError, match="'prompts/shared_prompt' matches no"):
    optimizers.Optimizer(
      groups=(
        optimizers.Group('prompts/prompt', 0.1),
        optimizers.Group('prompts/shared_prompt', 0.1),
      ),
      schedule='constant',
    ).make(trainable)
  with pytest.raises(InputError, match="parameter 'prompts/prompt'"):
    optimizers.Optimizer(
      groups=(optimizers.Group('prompts/task_.*', 0.1),), schedule='constant'
    ).make(trainable)
  with pytest.raises(InputError, match="did you mean 'adafactor'"):
    optimizers.Optimizer(groups=(), name='adafacter', schedule='constant')


def test_a_pattern_without_a_hit_is_an_error():
  _, params = tiny.stage_model('source')
  # The mistake of an ancestor: the parameter is a leaf, not a folder.
  with pytest.raises(InputError, match="'.*/shared_prompt/.*' matches no"):
    params_lib.split(params, ['.*/shared_prompt/.*', 'prompts/task_.*'])


def test_split_and_merge_lose_nothing():
  _, params = tiny.stage_model('source')
  trained, frozen = params_lib.split(params, tiny.PROMPTS)
  merged = params_lib.flatten(params_lib.merge(trained, frozen))
  assert merged.keys() == params_lib.flatten(params).keys()
  assert not params_lib.flatten(trained).keys() & params_lib.flatten(frozen)


class Stop(Exception):
  """Stands for a kill between two steps."""


class StopAfter:
  """Batches that stop the run after some steps, keeping their state."""

  def __init__(self, batches, steps):
    self._batches, self._left = batches, steps

  def __next__(self):
    if not self._left:
      raise Stop
    self._left -= 1
    return next(self._batches)

  def get_state(self):
    return self._batches.get_state()


@pytest.mark.slow
@pytest.mark.parametrize('stage', ['teacher', 'source', 'target'])
def test_resume_is_bit_equal(stage, tmp_path):
  steps, optimizer = 15, make_optimizer(stage, 15)
  _, want, _, _ = run(stage, steps, optimizer)
  mesh = partitioning.make_mesh()
  model, params = tiny.stage_model(stage)
  names = [f'task{i}' for i in range(model.num_tasks)]
  trained, frozen = params_lib.split(params, tiny.PROMPTS)
  frozen = partitioning.shard_params(frozen, mesh)
  batches = tiny.Batches(tasks=model.num_tasks)
  state = trainer.make_state(model, optimizer, trained, 0, mesh)
  training = trainer.Training(model, optimizer, mesh, names)
  periods = trainer.Periods(checkpoint=4)
  checkpointer = RunCheckpointer(str(tmp_path))
  with pytest.raises(Stop):
    trainer.fit(
      training,
      state,
      frozen,
      StopAfter(batches, 10),
      steps,
      periods,
      trainer.Hooks(checkpointer=checkpointer),
    )
  checkpointer.close()

  fresh = trainer.make_state(model, optimizer, trained, 0, mesh)
  checkpointer = RunCheckpointer(str(tmp_path))
  assert checkpointer.latest_step() == 8
  state, position = checkpointer.restore(fresh)
  batches = tiny.Batches(tasks=model.num_tasks)
  batches.set_state(position)
  state = trainer.fit(
    training,
    state,
    frozen,
    batches,
    steps,
    periods,
    trainer.Hooks(checkpointer=checkpointer),
  )
  for name, value in params_lib.flatten(want).items():
    np.testing.assert_array_equal(
      params_lib.flatten(state.params)[name], value, err_msg=name
    )


@pytest.mark.slow
def test_checkpoint_of_another_shape_is_refused(tmp_path):
  checkpointer = RunCheckpointer(str(tmp_path))
  _, _, _, state = run('source', 2)
  checkpointer.save(state, None)
  model, params = tiny.stage_model('target')
  trained, _ = params_lib.split(params, tiny.PROMPTS)
  other = trainer.make_state(
    model, make_optimizer('target'), trained, 0, partitioning.make_mesh()
  )
  with pytest.raises(InputError, match=r'task_[uv] is \(3, .* and \(1, '):
    checkpointer.restore(other)


def test_checkpoint_size_of_t5_base(tmp_path):
  """Six tasks, 100 prompt vectors, AdamW: nothing of the backbone in it."""
  config = t5.get_config('t5_base')
  method = methods.MultitaskPrompts(100)
  trained = {'prompts': method.fresh(config, 6, jax.random.PRNGKey(0))}
  model = models.PromptedT5(config, method, 6)
  mesh = partitioning.make_mesh()
  optimizer = make_optimizer('source')
  state = trainer.make_state(model, optimizer, trained, 0, mesh)
  # Random moments, since zeros compress.
  rng = np.random.RandomState(0)
  state = state.replace(
    opt_state=jax.tree.map(
      lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype),
      state.opt_state,
    )
  )
  RunCheckpointer(str(tmp_path)).save(state, {'batches': 0})
  size = sum(
    f.stat().st_size for f in pathlib.Path(tmp_path).rglob('*') if f.is_file()
  )
  print(f'checkpoint of T5-base shapes: {size:,} bytes')
  assert size < 1.5e6


@pytest.mark.slow
def test_dropout_is_seeded_and_resumable():
  config = dataclasses.replace(tiny.CONFIG, dropout_rate=0.3)
  mesh = partitioning.make_mesh()
  model, params = tiny.stage_model('target', config)
  optimizer = make_optimizer('target')
  trained, frozen = params_lib.split(params, tiny.PROMPTS)
  frozen = partitioning.shard_params(frozen, mesh)

  def train(seed):
    state = trainer.make_state(model, optimizer, trained, seed, mesh)
    return trainer.fit(
      trainer.Training(model, optimizer, mesh, ['a']),
      state,
      frozen,
      tiny.Batches(tasks=1),
      3,
    ).params

  first, again, other = train(0), train(0), train(1)
  assert jax.tree.all(
    jax.tree.map(lambda a, b: bool((a == b).all()), first, again)
  )
  assert not jax.tree.all(
    jax.tree.map(lambda a, b: bool((a == b).all()), first, other)
  )


def test_a_loss_that_is_not_finite_stops_at_the_last_good_state(tmp_path):
  mesh = partitioning.make_mesh()
  model, params = tiny.stage_model('source')
  optimizer = make_optimizer('source', 50)
  # The teacher of row 1 is broken: its examples have no finite loss.
  table = np.array(params['teacher_prompts']['prompt_table'])
  table[1] = np.nan
  params['teacher_prompts'] = {'prompt_table': table}
  trained, frozen = params_lib.split(params, tiny.PROMPTS)
  frozen = partitioning.shard_params(frozen, mesh)

  class OneBad(tiny.Batches):
    def __next__(self):
      batch = super().__next__()
      rows = batch['encoder_task_ids']
      bad = self._taken == 7  # the seventh step
      rows[:] = np.where(rows == 1, 0, rows)
      if bad:
        rows[2] = 1
      return batch

  checkpointer = RunCheckpointer(str(tmp_path))
  state = trainer.make_state(model, optimizer, trained, 0, mesh)
  with pytest.raises(trainer.NonFiniteLossError, match='step 7.*: qnli') as e:
    trainer.fit(
      trainer.Training(model, optimizer, mesh, ['mnli', 'qnli', 'qqp']),
      state,
      frozen,
      OneBad(),
      50,
      trainer.Periods(log=10, checkpoint=5),
      trainer.Hooks(checkpointer=checkpointer),
    )
  assert 'mnli' not in str(e.value).split('.')[0]
  assert checkpointer.latest_step() == 5


def test_metrics_are_apart_for_every_task():
  written = {}

  class Writer:
    def write_scalars(self, step, scalars):
      written[step] = scalars

  run(
    'source',
    periods=trainer.Periods(log=10),
    hooks=trainer.Hooks(writer=Writer()),
  )
  assert sorted(written) == [10, 20]
  scalars = written[20]
  for term in (
    'cross_entropy',
    'logits_loss',
    'hidden_loss_encoder',
    'hidden_loss_decoder',
    'token_accuracy',
  ):
    parts = [scalars[f'train/{term}/task{i}'] for i in range(3)]
    assert min(parts) <= scalars[f'train/{term}'] <= max(parts)
  hidden = (
    scalars['train/hidden_loss_encoder'] + scalars['train/hidden_loss_decoder']
  )
  # With equal rows a step the mean of the ratios is near the ratio of sums.
  total = scalars['train/cross_entropy'] + 0.9 * (
    scalars['train/logits_loss'] + hidden
  )
  assert scalars['train/loss'] == pytest.approx(total, rel=0.02)
  assert sum(scalars[f'train/target_tokens/task{i}'] for i in range(3)) == (
    10 * 4 * 3
  )


@pytest.mark.slow
def test_two_devices_equal_one():
  """Data parallel: the batch over two devices gives the same update."""
  if len(jax.devices()) < 2:
    pytest.skip('needs two devices; conftest.py asks for two virtual ones')
  model, params = tiny.stage_model('source')
  optimizer = make_optimizer('source')
  results = []
  for devices, partitions in ((1, 1), (2, 1), (2, 2)):
    mesh = partitioning.make_mesh(partitions, jax.devices()[:devices])
    trained, frozen = params_lib.split(params, tiny.PROMPTS)
    frozen = partitioning.shard_params(frozen, mesh)
    state = trainer.make_state(model, optimizer, trained, 0, mesh)
    state = trainer.fit(
      trainer.Training(model, optimizer, mesh, ['a', 'b', 'c']),
      state,
      frozen,
      tiny.Batches(),
      3,
    )
    results.append(params_lib.flatten(jax.device_get(state.params)))
  for other in results[1:]:
    for name, value in results[0].items():
      np.testing.assert_allclose(other[name], value, atol=1e-4, err_msg=name)


def test_batch_must_divide_over_the_devices():
  mesh = partitioning.make_mesh(1, jax.devices()[:2])
  with pytest.raises(InputError, match='BATCH_SIZE = 7 .* multiple of 2'):
    partitioning.check_batch_size(7, mesh)
  with pytest.raises(InputError, match='num_partitions = 3'):
    partitioning.make_mesh(3, jax.devices()[:2])
