"""The projector, both of its goals and their curves against float64."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from mpt_jax import losses, methods, models
from mpt_jax.engine.optimizers import Optimizer, method_groups
from tests import goldens
from tests.goldens import networks

GOLDENS = goldens.of('projector')
CASES = {
  'leaky_norm': {},
  'tanh_norm': {'activation': 'tanh'},
  'leaky': {'layer_norm': False},
  'token': {'flatten': False, 'layer_norm': False},
  'single': {'flatten': False, 'layer_norm': False, 'layers': 1},
}
NAMES = {
  'token': {n: f'token_{n}' for n in ('w1', 'b1', 'w2', 'b2')},
  'single': {'w1': 'single_w', 'b1': 'single_b'},
}
ALL = 'w1', 'b1', 'w2', 'b2', 'ln_weight', 'ln_bias'
FULL = [case for case, settings in CASES.items() if 'flatten' not in settings]


def _projector(io, case, dtype='float32'):
  """The method of a projection, what it trains, and its source prompts."""
  tasks, length, width = io['source_prompts'].shape
  names = NAMES.get(case) or {n: n for n in ALL}
  if not CASES[case].get('layer_norm', True):
    names = {n: theirs for n, theirs in names.items() if n[:2] != 'ln'}
  arrays = {n: io[theirs][None].astype(dtype) for n, theirs in names.items()}
  target = io['target_prompts'].shape
  method = methods.Projector(
    target[1],
    len(arrays['b1'][0]) if 'w2' in arrays else None,
    sources=tuple((f'task_{n}', '') for n in range(tasks)),
    source_length=length,
    source_width=width,
    **CASES[case],
  )
  sources = {'source_prompts': io['source_prompts'].astype(dtype)}
  whole = arrays | sources
  assert {n: a.shape for n, a in whole.items()} == method.shapes(
    methods.Width(target[2]), tasks
  )
  assert method.size_of(whole) == target[1:]
  count = method.num_parameters(methods.Width(target[2]), tasks)
  assert count == sum(array.size for array in arrays.values())
  return method, arrays, sources


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('golden', GOLDENS)
def test_projected_prompts(golden, case):
  io = golden.io
  for dtype, rtol in (('float32', 1e-5), ('float64', 1e-12)):
    with jax.enable_x64(dtype == 'float64'):
      method, arrays, sources = _projector(io, case, dtype)
      compose = jax.jit(method.prompt_table, static_argnums=1)
      table = compose(arrays | sources, len(io['source_prompts']))
    want = io[f'projected_{case}']
    scale = rtol * np.abs(want).max()
    np.testing.assert_allclose(table, want, rtol=0, atol=scale)


def _distance(io, case, kind, dtype='float64'):
  method, arrays, sources = _projector(io, case, dtype)
  targets = io['target_prompts'].astype(dtype)

  def loss(arrays):
    table = method.prompt_table(arrays | sources, len(targets))
    return losses.prompt_distances(table, targets, kind).mean()

  return loss, arrays


@pytest.mark.parametrize('kind', losses.DISTANCES)
@pytest.mark.parametrize('golden', GOLDENS)
def test_distances_and_gradients(golden, kind):
  io = golden.io
  with jax.enable_x64():
    for case in FULL:
      loss, arrays = _distance(io, case, kind)
      found, grads = jax.jit(jax.value_and_grad(loss))(arrays)
      want = io[f'distance_{kind}__{case}']
      np.testing.assert_allclose(found, want, rtol=1e-12)
      if case != 'leaky_norm':
        continue
      for name, grad in grads.items():
        want = io[f'grad_distance_{kind}__{name}']
        np.testing.assert_allclose(grad[0], want, rtol=1e-9, atol=1e-12)


def _task_model(golden, case):
  """The target backbone's loss of a projector, and the batch in our ids."""
  io = dict(golden.io)
  logits = io['task_logits__leaky_norm']
  width = io['target_prompts'].shape[-1]
  folder = goldens.backbone_of(golden, width, logits.shape[-1])
  loaded = networks.backbone(folder)
  io['labels'] = io.pop('targets')
  io['logits'] = io.pop('task_logits__leaky_norm')
  io = networks.in_our_ids(loaded, io)
  method, arrays, sources = _projector(io, case)
  special = loaded.special_ids.of_model()
  tasks = len(io['source_prompts'])
  model = models.PromptedT5(loaded.config, method, tasks, **special)
  batch = networks.batch(
    io['input_ids'], io['labels'], io['task_ids'], method.length
  )

  def params(arrays):
    return loaded.params | {'prompts': arrays | sources}

  return model, batch, arrays, params, io


@pytest.mark.slow
@pytest.mark.parametrize('case', FULL)
@pytest.mark.parametrize('golden', GOLDENS)
def test_task_tuning(golden, case):
  """The gradient that the published T5 code cuts is there."""
  model, batch, arrays, params, io = _task_model(golden, case)

  @jax.jit
  def run(arrays):
    return jax.value_and_grad(
      lambda arrays: model.loss_fn(params(arrays), batch, None)[0]
    )(arrays)

  loss, grads = run(arrays)
  np.testing.assert_allclose(loss, io[f'task_loss__{case}'], rtol=1e-5)
  for name, grad in grads.items():
    want = io[f'grad_task__{case}__{name}']
    scale = np.abs(want).max()
    assert scale > 0
    np.testing.assert_allclose(
      grad[0], want, rtol=0, atol=1e-4 * scale, err_msg=name
    )
  if case == 'leaky_norm':
    whole = params(arrays)
    table = model.prompt_table(whole)
    logits, _ = model._forward(whole, table, batch, None)
    goldens.close(logits, io['logits'], io['labels'] > 0, atol=5e-5)


def _curve(loss, arrays, steps, method):
  """The loss before each step of the engine's own optimizer."""
  optimizer = Optimizer(
    method_groups(method, 5e-3), schedule='constant', weight_decay=0.0
  )
  tree = {'prompts': arrays}
  update = optimizer.make(tree)
  state = update.init(tree)

  @jax.jit
  def step(tree, state):
    found, grads = jax.value_and_grad(lambda tree: loss(tree['prompts']))(tree)
    changes, state = update.update(grads, state, tree)
    return optax.apply_updates(tree, changes), state, found

  curve = []
  for _ in range(steps):
    tree, state, found = step(tree, state)
    curve.append(float(found))
  return curve


@pytest.mark.parametrize('goal', ['task', 'distance'])
@pytest.mark.parametrize('golden', GOLDENS)
def test_curves_of_adam(golden, goal):
  want = golden.io[f'adam_curve_{goal}']
  model, batch, arrays, params, io = _task_model(golden, 'leaky_norm')
  if goal == 'distance':
    # The engine's own loss, which sees of the batch only its size.
    target = {'prompt_table': io['target_prompts']}
    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
    model = models.DistancePromptedT5(**fields)

    def loss(arrays):
      whole = params(arrays) | {'teacher_prompts': target}
      return model.loss_fn(whole, batch, None)[0]

  else:

    def loss(arrays):
      return model.loss_fn(params(arrays), batch, None)[0]

  curve = _curve(loss, arrays, len(want), model.method)
  np.testing.assert_allclose(curve, want, rtol=1e-4)
  assert curve[-1] < curve[0]


def test_parts_of_a_batch_share_a_distance():
  """However uneven they are, and where a part has no example of a task."""
  rng = np.random.default_rng(0)
  config = networks.t5.T5Config(
    vocab_size=9, emb_dim=4, num_heads=1, head_dim=2, mlp_dim=3
  )
  method = methods.Projector(
    3, 2, sources=(('a', ''), ('b', '')), source_length=2, source_width=5
  )
  model = models.DistancePromptedT5(config, method, 2)
  params = {
    'prompts': method.fresh(config, 2, jax.random.PRNGKey(0)),
    'teacher_prompts': {'prompt_table': rng.normal(size=(2, 3, 4))},
  }
  batch = networks.batch(
    rng.integers(3, 9, (6, 4)),
    rng.integers(3, 9, (6, 2)),
    [0, 0, 1, 1, 1, 1],
    3,
  )
  parts = [
    {name: value[rows] for name, value in batch.items()}
    for rows in (slice(0, 2), slice(2, 6))
  ]
  whole, terms = model.loss_fn(params, batch, None)
  sums, weights = terms['distance']
  np.testing.assert_allclose((sums / weights).mean(), whole, rtol=1e-6)
  weights = model.loss_weights(batch)
  shares = [model.part_loss_fn(params, p, weights, 0, None)[0] for p in parts]
  np.testing.assert_allclose(sum(shares), whole, rtol=1e-6)
