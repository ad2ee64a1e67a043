"""Batches in parts by length: same members, same gradient, few shapes."""

import itertools
import logging
import types

import jax
import numpy as np
import pytest

from mpt_jax import methods, models
from mpt_jax.engine import (
  batching,
  buckets,
  job,
  optimizers,
  partitioning,
  trainer,
)
from mpt_jax.engine import params as params_lib
from mpt_jax.types import InputError
from tests import test_models as models_test
from tests.data.test_packed_loss import pack
from tests.helpers import tiny
from tests.test_models import K, P

backbone = models_test.backbone
student = models_test.student


def lengths(count, size, seed=0):
  """Batches of S and T: most short, a few long."""
  rng = np.random.default_rng(seed)
  long = rng.random((count, size)) < 0.2
  s = np.where(long, rng.integers(150, 300, (count, size)), 0)
  s = np.where(long, s, rng.integers(20, 80, (count, size)))
  t = np.where(rng.random((count, size)) < 0.1, 40, 3)
  return list(np.stack([s, t], axis=2))


@pytest.mark.parametrize('sizes', [(4,), (8, 4)])
def test_every_example_is_in_one_part_that_holds_it(sizes):
  batches = lengths(20, 24)
  chosen = buckets.choose(batches, sizes, (300, 40))
  seen = set()
  for batch in batches:
    parts = chosen.cut(batch)
    members = [i for part in parts for i in part.members]
    assert sorted(members) == list(range(24))
    for part in parts:
      assert len(part.members) in sizes
      longest = batch[list(part.members)].max(axis=0)
      assert (longest <= [part.input_length, part.target_length]).all()
      seen.add((len(part.members), part.input_length, part.target_length))
    work = [len(part.members) * part.input_length for part in parts]
    assert work == sorted(work, reverse=True)
  assert seen <= set(chosen.shapes)
  assert len(chosen.shapes) <= 12
  assert chosen.inputs[-1] == 300
  assert chosen.targets[-1] == 40
  whole = buckets.grid((24,), (300,), (40,))
  assert chosen.cost(batches) < 0.6 * whole.cost(batches)
  assert chosen.fill(batches) > 1.5 * whole.fill(batches)


def test_smaller_parts_leave_less_padding():
  batches = lengths(20, 32)
  equal = buckets.choose(batches, (8,), (300, 40))
  unequal = buckets.choose(batches, (8, 4), (300, 40))
  assert unequal.fill(batches) > 1.03 * equal.fill(batches)
  assert unequal.cost(batches) < 0.98 * equal.cost(batches)


@pytest.mark.parametrize('seed', range(4))
def test_cuts_are_the_best_there_are(seed):
  rng = np.random.default_rng(seed)
  shapes = buckets.grid((4, 2), (10, 20, 40), (3, 6)).shapes
  dropped = {tuple(shapes[i]) for i in rng.choice(len(shapes), 5, False)}
  dropped.discard((4, 40, 6))
  kept = tuple(s for s in shapes if s not in dropped)
  cutting = buckets.Buckets(kept)
  batch = np.stack([rng.integers(1, 41, 12), rng.integers(1, 7, 12)], axis=1)
  order = batch[np.lexsort((batch[:, 1], batch[:, 0]))]

  def least(rest):
    if not len(rest):
      return 0
    costs = [
      shape.cost + least(rest[shape.rows :])
      for shape in kept
      if shape.rows <= len(rest)
      and (rest[: shape.rows].max(axis=0) <= shape[1:]).all()
    ]
    return min(costs, default=np.inf)

  assert cutting.cost([batch]) == least(order)


def test_later_batches_that_are_longer_fit_too():
  short = [np.minimum(batch, [60, 3]) for batch in lengths(20, 16)]
  chosen = buckets.choose(short, (8, 4), (300, 40))
  parts = chosen.cut(np.full((16, 2), [300, 40]))
  assert [len(part.members) for part in parts] == [8, 8]
  assert {part.input_length for part in parts} == {300}


def test_examples_that_no_parts_hold_exactly():
  with pytest.raises(ValueError, match='6 examples cannot be cut .* of 4'):
    buckets.grid((4,), (16,), (8,)).cut(np.ones((6, 2), int))


def test_every_host_has_its_share_of_every_part():
  shapes = buckets.Shape(8, P + 60, 3), buckets.Shape(4, P + 4, 3)
  cutting = buckets.Buckets(shapes)
  bucketer = batching.Bucketer(24, P, cutting)
  for i in range(24):
    size = 4 if i < 12 else 60
    bucketer.add(batching.Example(np.full(size, i + 2), np.ones(3, int), 0))
  whole = bucketer.finish()
  assert {len(part['encoder_input_tokens']) for part in whole} == {8, 4}
  first, second = bucketer.finish(slice(0, 4)), bucketer.finish(slice(4, 8))
  for part, *halves in zip(whole, first, second, strict=True):
    for name, array in part.items():
      assert len(halves[0][name]) == len(halves[1][name])
      joined = np.concatenate([half[name] for half in halves])
      np.testing.assert_array_equal(joined, array)


def test_too_long_an_example_is_an_error():
  cutting = buckets.grid((1,), (16, 32), (8,))
  with pytest.raises(ValueError, match=r'33 \+ 2 tokens is longer than 32 \+'):
    cutting.cut(np.array([[33, 2]]))


@pytest.mark.parametrize('seed', range(6))
def test_bounds_are_the_best_there_are(seed):
  rng = np.random.default_rng(seed)
  values = rng.integers(1, 60, 40)
  rounded = np.minimum(-(-values // 4) * 4, 60)
  candidates = sorted({*rounded.tolist(), 60})

  def cost(bounds):
    return sum(min(b for b in bounds if b >= v) for v in rounded)

  best = min(
    cost((*inner, 60)) for inner in itertools.combinations(candidates[:-1], 3)
  )
  assert cost(buckets.bounds(values, 60, 4, 4)) <= 1.01 * best


def test_one_length_needs_one_bound():
  assert buckets.bounds(np.full(10, 7), 7, 16, 6) == (7,)


def cut(examples, sizes):
  """The parts of a batch, as training lays them out."""
  made = [batching.Example(np.array(x), np.array(y), k) for k, x, y in examples]
  chosen = buckets.grid(sizes, (11, 13, 16), (3, 5), targets_first=True)
  bucketer = batching.Bucketer(len(made), P, chosen)
  assert all([bucketer.add(example) for example in made])
  assert not bucketer.add(made[0])
  return bucketer.finish(), chosen


def make_state(backbone, student, model):
  trainable, table = student
  mesh = partitioning.make_mesh(1, jax.devices()[:1])
  optimizer = optimizers.Optimizer(
    optimizers.method_groups(model.method, 0.3, 0.1),
    schedule='constant',
  )
  state = trainer.make_state(model, optimizer, {'prompts': trainable}, 0, mesh)
  teachers = {'teacher_prompts': {'prompt_table': table}}
  frozen = partitioning.shard_params({**backbone.params, **teachers}, mesh)
  return mesh, optimizer, state, frozen


@pytest.mark.slow
@pytest.mark.parametrize(
  ('settings', 'sizes'),
  [
    ({}, (8, 4)),
    ({'loss_normalizing_factor': 'NUM_TOTAL_TARGET_TOKENS'}, (4,)),
  ],
)
def test_bucketed_equals_padded_equals_packed(
  backbone, student, settings, sizes, monkeypatch
):
  # So that these few short examples are worth cutting unequally.
  monkeypatch.setattr(buckets, '_PART_COST', 10)
  examples = models_test.make_examples(24, seed=4)
  parts, chosen = cut(examples, sizes)
  shapes = {p['encoder_input_tokens'].shape for p in parts}
  assert len({source for _, source in shapes}) > 1, 'needs several lengths'
  assert {rows for rows, _ in shapes} == set(sizes)
  padded = models_test.unpack(examples)
  (want, want_terms), want_grads = models_test._loss_and_grads(
    backbone, student, padded, **settings
  )
  model = models.DistilledPromptedT5(
    backbone.config,
    methods.MultitaskPrompts(P),
    K,
    **settings,
  )
  mesh, optimizer, state, frozen = make_state(backbone, student, model)
  width = padded['decoder_target_tokens'].shape[1]
  step = trainer.BucketedStep(model, optimizer, width)
  placed = [trainer.put_batch(part, mesh) for part in parts]
  (got, terms), grads = step.value_and_grad(state, frozen, placed)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  for name, (sums, weights) in want_terms.items():
    np.testing.assert_allclose(terms[name][1], weights, rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(
      terms[name][0], sums, rtol=1e-5, atol=1e-5, err_msg=name
    )
  for name, grad in want_grads.items():
    np.testing.assert_allclose(
      grads['prompts'][name], grad, atol=1e-5, err_msg=name
    )
  if settings.get('loss_normalizing_factor') != 'NUM_TOTAL_TARGET_TOKENS':
    # A packed batch has another number of positions.
    (loss, _), packed = models_test._loss_and_grads(
      backbone, student, pack(examples, rows=10), **settings
    )
    np.testing.assert_allclose(got, loss, rtol=1e-5)
    for name, grad in packed.items():
      np.testing.assert_allclose(
        grads['prompts'][name], grad, atol=1e-5, err_msg=name
      )
  # Another batch of these shapes compiles nothing.
  step.value_and_grad(state, frozen, placed[::-1])
  assert (
    step.num_compiled
    == len(step.shapes)
    == len(
      {
        (p['encoder_input_tokens'].shape, p['decoder_target_tokens'].shape)
        for p in parts
      }
    )
  )
  assert step.num_compiled <= len(chosen.shapes)


class Parts(tiny.Batches):
  """The batches of `tiny`, in two parts of two lengths."""

  def __init__(self, **kwargs):
    super().__init__(size=8, **kwargs)

  def __next__(self):
    batch = super().__next__()
    for name, array in batch.items():
      if name.startswith('encoder'):
        array[:4, 12:] = 0
    return [
      {
        name: array[rows, : width if name.startswith('encoder') else None]
        for name, array in batch.items()
      }
      for rows, width in ((slice(4), 12), (slice(4, 8), 16))
    ]


class Whole(Parts):
  """The same examples, padded to one length."""

  def __next__(self):
    short, long = super().__next__()
    pad = {
      name: np.pad(array, ((0, 0), (0, long[name].shape[1] - array.shape[1])))
      for name, array in short.items()
    }
    return {k: np.concatenate([pad[k], long[k]]) for k in long}


def fit(batches, devices, steps=12):
  model, params = tiny.stage_model('source')
  mesh = partitioning.make_mesh(1, jax.devices()[:devices])
  trained, frozen = params_lib.split(params, tiny.PROMPTS)
  optimizer = optimizers.Optimizer(
    optimizers.method_groups(model.method, 0.03, 0.01),
    total_steps=steps,
  )
  state = trainer.make_state(model, optimizer, trained, 0, mesh)
  scalars = []

  class Writer:
    def write_scalars(self, step, values):
      scalars.append((step, values))

  state = trainer.fit(
    trainer.Training(model, optimizer, mesh, ['a', 'b', 'c'], target_length=3),
    state,
    partitioning.shard_params(frozen, mesh),
    batches,
    steps,
    trainer.Periods(log=4),
    trainer.Hooks(writer=Writer()),
  )
  return params_lib.flatten(jax.device_get(state.params)), scalars


@pytest.mark.slow
@pytest.mark.parametrize('devices', [1, 2])
def test_a_run_in_parts_is_that_of_whole_batches(devices):
  if len(jax.devices()) < devices:
    pytest.skip(f'needs {devices} devices; conftest.py asks for virtual ones')
  want, want_scalars = fit(Whole(), 1)
  got, scalars = fit(Parts(), devices)
  for name, value in want.items():
    np.testing.assert_allclose(got[name], value, atol=2e-5, err_msg=name)
  assert len(scalars) == len(want_scalars) == 3
  for (step, values), (_, others) in zip(scalars, want_scalars, strict=True):
    for name, value in others.items():
      if 'second' not in name:
        assert values[name] == pytest.approx(value, rel=1e-4), (step, name)


def test_nothing_is_fetched_between_two_log_periods(monkeypatch):
  """Whoever waits for the device would show up here."""
  kind = type(jax.jit(lambda x: x)(np.float32(0)))
  fetched, step = [], [0]

  def count(name):
    old = getattr(kind, name)
    if callable(old):

      def new(self, *args, **kwargs):
        fetched.append((step[0], name))
        return old(self, *args, **kwargs)

      return new

    def get(self):
      fetched.append((step[0], name))
      return old.__get__(self)

    return property(get)

  class Counted(Parts):
    def __next__(self):
      step[0] += 1
      return super().__next__()

  fit(Counted(), 1)
  step[0] = 0
  names = '__array__', 'block_until_ready', '_value', '__int__', '__float__'
  for name in names:
    monkeypatch.setattr(kind, name, count(name))
  whole = partitioning.to_host

  def to_host(tree):
    fetched.append((step[0], 'to_host'))
    return whole(tree)

  monkeypatch.setattr(partitioning, 'to_host', to_host)
  fit(Counted(), 1)
  # Step 1 is waited for, so that its compilation is not in the ETA.
  assert {at for at, _ in fetched} <= {0, 1, 4, 8, 12}
  assert {4, 8, 12} <= {at for at, _ in fetched}


def test_new_shapes_are_announced(caplog):
  model, _ = tiny.stage_model('source')
  trainer.make_bucketed_step.cache_clear()
  with caplog.at_level(logging.INFO):
    fit(Parts(), 1, steps=4)
  lines = [r.getMessage() for r in caplog.records]
  found = [line for line in lines if line.startswith('compiling parts')]
  assert found == [
    'compiling parts of 4 examples, 12 + 3 tokens …',
    'compiling parts of 4 examples, 16 + 3 tokens …',
  ]


@pytest.mark.parametrize(
  ('devices', 'batch_size', 'microbatches', 'sizes'),
  [
    (1, 32, None, (8, 4)),
    (1, 6, None, (6, 3)),
    (1, 7, None, (7,)),
    (1, 22, None, (2, 1)),
    (2, 32, None, (16, 8)),
    (2, 36, None, (12, 6)),
    (2, 6, None, (6,)),
    (1, 32, 2, (16,)),
  ],
)
def test_rows_of_a_part(devices, batch_size, microbatches, sizes):
  mesh = partitioning.make_mesh(1, jax.devices()[:devices])
  assert partitioning.part_sizes(batch_size, mesh, microbatches) == sizes


@pytest.mark.parametrize(
  ('padding', 'pack', 'chosen'),
  [
    ('auto', False, 'bucket'),
    ('auto', True, 'pack'),
    ('max', False, 'max'),
    ('bucket', True, 'bucket'),
  ],
)
def test_choice_of_padding(padding, pack, chosen):
  mesh = partitioning.make_mesh(1, jax.devices()[:1])
  dataset = types.SimpleNamespace(pack=pack)
  assert job._choose_padding(padding, dataset, mesh) == chosen


def test_unknown_padding():
  mesh = partitioning.make_mesh(1, jax.devices()[:1])
  with pytest.raises(InputError, match="PADDING = 'buckets', .*'bucket'"):
    job._choose_padding('buckets', types.SimpleNamespace(pack=False), mesh)
