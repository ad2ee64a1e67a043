"""What holds for every method, whatever it is.

Guards against a method that is silently left out, or another one, where
batches mix tasks, layers are scanned or computed again, batches come in parts
of other lengths, numbers are rounded, or answers are found with caches.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpt_jax import methods, models
from mpt_jax.engine import batching, partitioning
from mpt_jax.engine import params as params_lib
from tests.helpers import every_method
from tests.helpers.every_method import CONFIGS, METHODS, T5, K

# The methods with parameters beside the backbone's.
BESIDE = sorted(n for n, m in METHODS.items() if m.branch)
EVERYWHERE = [(name, family) for name in BESIDE for family in CONFIGS]
TASKS = np.arange(9) % K


def test_every_method_is_tested():
  # Tests register methods of their own.
  shipped = {
    method.name
    for method in methods.known()
    if method.__module__.startswith('mpt_jax.')
  }
  assert shipped == set(METHODS)


def _params(method, tasks, arrays, scan=False, family=T5):
  params = every_method.backbone(CONFIGS[family])
  if scan:
    mesh = partitioning.make_mesh(1, jax.devices()[:1])
    params = partitioning.place_backbone(params, mesh, scan_layers=True)
  return {**params, method.branch: params_lib.unflatten(arrays)}


def _loss_and_gradient(method, arrays, batch, family=T5, **way):
  """Of a batch, run in some way; the gradient by name."""
  scan = way.pop('scan', False)
  model = every_method.model(method, K, family, **way)
  params = _params(method, K, arrays, scan, family)

  @jax.jit
  def run(learned):
    def loss(learned):
      return model.loss_fn(params | {method.branch: learned}, batch, None)[0]

    return jax.value_and_grad(loss)(learned)

  loss, grads = run(params[method.branch])
  return float(loss), params_lib.flatten(jax.device_get(grads))


def _close(got, want, tolerance, method):
  assert got.keys() == want.keys()
  for name, value in want.items():
    if every_method.is_idle(method, name):
      continue
    scale = max(np.abs(value).max(), 1e-4)
    np.testing.assert_allclose(
      got[name], value, rtol=0, atol=tolerance * scale, err_msg=name
    )


def _with_biases_of_their_own(params):
  """The same network with its stacks' position biases in each layer."""
  flat = dict(params_lib.flatten(params))
  for stack in ('encoder', 'decoder'):
    table = flat.pop(f'{stack}/relpos_bias/rel_embedding')
    for i in range(2):
      flat[f'{stack}/layers_{i}/relpos_bias/rel_embedding'] = table
  return params_lib.unflatten(flat)


@pytest.mark.slow
def test_a_position_bias_per_layer_changes_no_number():
  """umT5 whose layers have the same bias is a T5, in every way to run it."""
  method = METHODS['prefix']  # It asks for biases of its own.
  arrays, batch, loss, grads = _plain('prefix')
  learned = {method.branch: params_lib.unflatten(arrays)}
  own = _with_biases_of_their_own(every_method.backbone())
  mesh = partitioning.make_mesh(1, jax.devices()[:1])
  scanned = partitioning.place_backbone(own, mesh, scan_layers=True)

  @functools.partial(jax.jit, static_argnums=0)
  def decode(model, params):
    return model.decode_batch(params, batch, num_beams=2)

  @functools.partial(jax.jit, static_argnums=0)
  def differentiate(model, learned, backbone):
    return jax.value_and_grad(
      lambda learned: model.loss_fn(backbone | learned, batch, None)[0]
    )(learned)

  want = decode(every_method.model(method, K), _params(method, K, arrays))
  for backbone, remat in ((own, False), (scanned, True)):
    model = every_method.model(
      method, K, relpos_per_layer=True, remat_layers=remat
    )
    found, gradient = differentiate(model, learned, backbone)
    assert float(found) == pytest.approx(loss, rel=1e-5)
    gradient = params_lib.flatten(jax.device_get(gradient[method.branch]))
    _close(gradient, grads, 1e-4, method)
    answers = decode(model, backbone | learned)
    np.testing.assert_array_equal(answers[0], want[0])
    np.testing.assert_allclose(answers[1], want[1], rtol=1e-4)


@functools.cache
def _plain(name, family=T5):
  """Loss and gradient of a mixed batch, in the plainest way."""
  method = METHODS[name]
  arrays = every_method.learned(method, K, CONFIGS[family])
  batch = every_method.batch(method, K, family=family)
  return arrays, batch, *_loss_and_gradient(method, arrays, batch, family)


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'family'), EVERYWHERE)
def test_every_array_acts_and_each_task_has_its_own(name, family):
  """Those of a task alone, on its examples alone, are the same numbers."""
  method = METHODS[name]
  arrays, batch, _, grads = _plain(name, family)
  unused = {n for n, g in grads.items() if not np.abs(g).max() > 1e-7}
  assert all(every_method.is_idle(method, name) for name in unused), unused
  model, alone = (every_method.model(method, n, family) for n in (K, 1))
  params = _params(method, K, arrays, family=family)
  together = jax.jit(model.score_batch)(params, batch)
  score = jax.jit(alone.score_batch)
  for task in range(K):
    own = every_method.part_of(batch, TASKS == task, task=0)
    mine = method.select(arrays, [task])
    params = _params(method, 1, mine, family=family)
    np.testing.assert_allclose(
      score(params, own), together[TASKS == task], rtol=1e-4
    )
    if name != 'soft':  # All tasks have the same.
      other = method.select(arrays, [(task + 1) % K])
      found = score(_params(method, 1, other, family=family), own)
      assert np.abs(found - together[TASKS == task]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'family'), every_method.everywhere(BESIDE))
def test_no_way_to_run_it_changes_a_number(name, family):
  method = METHODS[name]
  arrays, batch, loss, grads = _plain(name, family)
  way = {'remat_layers': True, 'scan': 'scan' not in method.cannot}
  got = _loss_and_gradient(method, arrays, batch, family, **way)
  assert got[0] == pytest.approx(loss, rel=1e-5)
  _close(got[1], grads, 1e-4, method)
  low = _loss_and_gradient(method, arrays, batch, family, dtype='bfloat16')
  assert low[0] == pytest.approx(loss, rel=0.02)
  assert low[0] != loss
  assert all(np.isfinite(g).all() for g in low[1].values())


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'family'), every_method.everywhere(BESIDE))
def test_parts_of_other_lengths_add_up(name, family):
  """As length buckets run a batch: padding changes no number."""
  method = METHODS[name]
  arrays, batch, loss, grads = _plain(name, family)
  model = every_method.model(method, K, family)
  params = _params(method, K, arrays, family=family)
  lengths = np.count_nonzero(batch['encoder_input_tokens'], axis=1)
  order = np.argsort(lengths)
  parts = [
    every_method.part_of(batch, rows, int(lengths[rows].max()))
    for rows in (order[:5], order[5:])
  ]
  assert (
    parts[0]['encoder_input_tokens'].shape
    != parts[1]['encoder_input_tokens'].shape
  )
  weights = model.loss_weights(batch)
  size = batch['decoder_target_tokens'].size

  @jax.jit
  def run(learned, part):
    def share(learned):
      whole = params | {method.branch: learned}
      return model.part_loss_fn(whole, part, weights, size, None)[0]

    return jax.value_and_grad(share)(learned)

  got = [run(params[method.branch], part) for part in parts]
  assert float(sum(g[0] for g in got)) == pytest.approx(loss, rel=1e-5)
  total = jax.tree.map(jnp.add, *(g[1] for g in got))
  _close(params_lib.flatten(total), grads, 1e-4, method)


@pytest.mark.slow
@pytest.mark.parametrize('family', CONFIGS)
@pytest.mark.parametrize(
  'name', [n for n, m in METHODS.items() if 'merged' in m.formats]
)
def test_merged_into_the_backbone_it_is_the_same(name, family):
  method, config = METHODS[name], CONFIGS[family]
  arrays = every_method.learned(method, 1, config)
  batch = every_method.batch(method, 1, family=family)
  own = {array: value[0] for array, value in arrays.items()}
  flat = params_lib.flatten(every_method.backbone(config))
  merged = params_lib.unflatten(flat | method.merged(flat, own))
  plain = every_method.model(None, 1, family).score_batch(merged, batch)
  params = _params(method, 1, arrays, family=family)
  found = every_method.model(method, 1, family).score_batch(params, batch)
  np.testing.assert_allclose(found, plain, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('family', CONFIGS)
@pytest.mark.parametrize('lesson', [models.PromptedModel, models.Distilled])
def test_packed_equals_one_in_a_row(family, lesson):
  """Loss, terms and gradient, with a lesson and without."""
  method, config = METHODS['multitask'], CONFIGS[family]
  model = every_method.model(method, K, family, lesson)
  examples = every_method.examples(K, 12, family=family)
  length = method.prompt_length
  packer = batching.Packer(5, 3 * (length + 12), 12, length, pack=True)
  assert all([packer.add(example) for example in examples])
  rows = [[example] for example in examples]
  plain = batching.lay_out(rows, (12, length + 12, 4), length, packed=False)
  table = np.random.default_rng(3).normal(size=(K, length, config.emb_dim))
  params = {
    **every_method.backbone(config),
    'teacher_prompts': {'prompt_table': table.astype(np.float32)},
  }

  @jax.jit
  def run(learned, batch):
    def loss(learned):
      return model.loss_fn(params | {'prompts': learned}, batch, None)

    return jax.value_and_grad(loss, has_aux=True)(learned)

  learned = every_method.learned(method, K, config)
  (want, terms), grads = run(learned, plain)
  (got, packed_terms), packed_grads = run(learned, packer.finish())
  assert float(got) == pytest.approx(float(want), rel=1e-5)
  assert set(terms) == set(model.term_names)
  for name, (sums, weights) in terms.items():
    np.testing.assert_allclose(packed_terms[name][1], weights, err_msg=name)
    np.testing.assert_allclose(
      packed_terms[name][0], sums, rtol=1e-5, atol=1e-5, err_msg=name
    )
  _close(packed_grads, grads, 1e-4, method)


def _as_targets(batch, answers):
  """A batch with these targets, and the rows in which no token is padding's.

  A random network may answer with id 0, which as a target is none.
  """
  ends = np.cumsum(answers == 1, axis=1) - (answers == 1)
  rows = ((answers > 0) | (ends > 0)).all(axis=1)
  told = {
    'decoder_target_tokens': answers,
    'decoder_input_tokens': np.pad(answers, ((0, 0), (1, 0)))[:, :-1],
    'decoder_loss_weights': (answers > 0).astype(np.int32),
  }
  assert rows.sum() > len(rows) / 2
  return batch | told, rows


@pytest.mark.slow
@pytest.mark.parametrize('name', every_method.each(BESIDE))
def test_answers_with_caches_are_the_likeliest_of_the_whole(name):
  """Each token is what the whole network, without a cache, finds likeliest."""
  method = METHODS[name]
  arrays, batch, *_ = _plain(name)
  model = every_method.model(method, K)
  params = _params(method, K, arrays)
  decode = jax.jit(model.decode_batch, static_argnames=('num_beams',))
  score = jax.jit(model.score_batch)

  answers, scores = map(np.asarray, decode(params, batch))
  told, rows = _as_targets(batch, answers)
  table = model.prompt_table(params)
  logits, _ = model._forward(params, table, told, None)
  real = (answers > 0) & rows[:, None]
  best = np.argmax(np.asarray(logits), -1)
  np.testing.assert_array_equal(best[real], answers[real])
  np.testing.assert_allclose(
    score(params, told)[rows], scores[rows], rtol=1e-4, atol=1e-4
  )
  assert len(np.unique(answers)) > 3

  # A beam's score is that of its tokens, by the penalty if it has an end.
  answers, scores = map(np.asarray, decode(params, batch, num_beams=3))
  told, rows = _as_targets(batch, answers)
  length = np.count_nonzero(answers, axis=1)
  ended = (answers == model.eos_id).any(axis=1)
  want = score(params, told) / np.where(ended, ((5 + length) / 6) ** 0.6, 1)
  np.testing.assert_allclose(scores[rows], want[rows], rtol=1e-3)
