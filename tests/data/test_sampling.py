"""Which task comes next: distributions and seeds."""

from collections import Counter
import itertools

import numpy as np
import pytest
import scipy.stats
import seqio

from mpt_jax import data
from mpt_jax.checkpoints.bundle import PromptBundle, load_prompts
from mpt_jax.data import sampling
from mpt_jax.types import InputError
from tests.data.toys import LENGTHS, read_segments

pytestmark = pytest.mark.data

RATES = (262_144.0, 104_743.0, 262_144.0, 67_349.0, 87_599.0, 138_854.0)


def _config(name='toy_mix', **kwargs):
  return data.DatasetConfig(
    mixture_or_task_name=name,
    task_feature_lengths=LENGTHS,
    batch_size=kwargs.pop('batch_size', 12),
    task_sampling=kwargs.pop('task_sampling', 'stochastic'),
    **kwargs,
  )


def _iterator(*, shard_index=0, num_shards=1, **kwargs):
  return data.get_train_iterator(
    _config(**kwargs),
    3,
    ['toy_a', 'toy_b', 'toy_c'],
    shard_index=shard_index,
    num_shards=num_shards,
  )


def _p_value(counts, expected):
  """Chi-square, with the expected shares from a formula of the test."""
  expected = np.asarray(expected, np.float64)
  total = sum(counts)
  return scipy.stats.chisquare(counts, total * expected / expected.sum()).pvalue


def test_proportional_draws_follow_the_rates():
  sampler = sampling.ProportionalSampler(RATES, (0,))
  drawn = Counter(itertools.islice(sampler.tasks(0, 0), 20_000))
  assert _p_value([drawn[i] for i in range(6)], RATES) > 0.01


def test_stochastic_draws_follow_the_rates():
  sampler = sampling.StochasticSampler(RATES, (0,), max_tasks=6)
  batches = [sampler.draw(batch) for batch in range(20_000)]
  # How many draws a batch has is uniform over 2..6.
  sizes = Counter(map(len, batches))
  assert _p_value([sizes[n] for n in range(2, 7)], [1] * 5) > 0.01
  assert set(sizes) == {2, 3, 4, 5, 6}
  # Each draw follows the rates, whatever its place and its batch.
  for place in (0, 1, -1):
    drawn = Counter(batch[place] for batch in batches)
    assert _p_value([drawn[i] for i in range(6)], RATES) > 0.01
  # The two first draws are independent: one may repeat the other.
  pairs = Counter((batch[0], batch[1]) for batch in batches)
  expected = np.outer(RATES, RATES)
  counts = [pairs[i, j] for i in range(6) for j in range(6)]
  assert _p_value(counts, expected.ravel()) > 0.01


def test_places_go_round_the_draws():
  sampler = sampling.StochasticSampler(RATES, (0,), max_tasks=6)
  for batch in range(50):
    drawn = sampler.draw(batch)
    places = list(itertools.islice(sampler.tasks(batch, 0), 32))
    assert places == (drawn * 16)[:32]
    shares = Counter(i % len(drawn) for i in range(32))
    assert max(shares.values()) - min(shares.values()) <= 1


def test_a_seed_fixes_the_draws():
  def draws(seed):
    sampler = sampling.make_sampler('stochastic', RATES, None, (seed,))
    return [list(itertools.islice(sampler.tasks(b, 0), 8)) for b in range(50)]

  assert draws(3) == draws(3)
  assert draws(3) != draws(4)


@pytest.mark.parametrize('pack', [False, True])
def test_batches_are_of_few_tasks_evenly(mixture, pack):
  iterator = _iterator(pack=pack, max_tasks_per_batch=2, batch_size=12)
  kinds = Counter()
  for _ in range(40):
    before = dict(iterator.taken)
    batch = next(iterator)
    taken = {n: iterator.taken[n] - before[n] for n in before}
    used = sorted(n for n in taken.values() if n)
    kinds[len(used)] += 1
    assert len(used) <= 2
    # Even; a packed batch ends where an example does not fit any more.
    assert used[-1] - used[0] <= 1
    if pack:
      rows = Counter(row for row, *_ in read_segments(batch, 3))
      assert sorted(rows.values()) == used
      assert sum(used) > 12
    else:
      assert sum(used) == 12
      rows = batch['encoder_task_ids'].max(axis=1)
      assert sorted(Counter(rows.tolist()).values()) == used
  # Draws with replacement: some batches are of one task.
  assert set(kinds) == {1, 2}


def test_resuming_in_the_middle(mixture):
  whole = _iterator(pack=True, seed=5)
  for _ in range(7):
    next(whole)
  resumed = _iterator(pack=True, seed=5)
  resumed.set_state(whole.get_state())
  for _ in range(5):
    expected, got = next(whole), next(resumed)
    for name, value in expected.items():
      np.testing.assert_array_equal(got[name], value, err_msg=name)


def test_hosts_share_the_tasks_but_no_example(mixture):
  iterators = [
    _iterator(shard_index=i, num_shards=2, batch_size=12) for i in range(2)
  ]
  size = iterators[0].num_examples
  every = set()
  while True:
    examples, tasks = [], []
    for iterator in iterators:
      before = dict(iterator.taken)
      batch = next(iterator)
      rows = batch['encoder_task_ids'].max(axis=1).tolist()
      tokens = map(tuple, batch['encoder_input_tokens'].tolist())
      examples.append(set(zip(rows, tokens, strict=True)))
      tasks.append(set(rows))
    # With six rows a host each drawn task (at most three) is on both.
    assert tasks[0] == tasks[1]
    if all(
      before[name] // size[name] == (n - 1) // size[name]
      for name, n in iterators[0].taken.items()
      if n > before[name]
    ):
      # The batch lies within an epoch of each of its tasks.
      assert not examples[0] & examples[1]
    every |= examples[0] | examples[1]
    if min(iterators[0].taken[n] // size[n] for n in size) >= 2:
      break
  # Every example of every task has been somewhere.
  assert len(every) == 53 + 31 + 17


def test_it_can_be_switched_off(mixture):
  rows = []
  for _ in range(2):
    iterator = _iterator(task_sampling='proportional')
    rows.append([next(iterator)['encoder_task_ids'] for _ in range(5)])
  np.testing.assert_array_equal(*rows)
  stochastic = _iterator()
  assert any(
    (next(stochastic)['encoder_task_ids'] != batch).any() for batch in rows[0]
  )


def test_one_task_needs_no_sampling(mixture):
  iterator = _iterator(name='toy_b')
  next(iterator)
  assert iterator.taken == {'toy_b': 12}


def test_wrong_settings(mixture):
  with pytest.raises(InputError, match="did you mean 'stochastic'"):
    _iterator(task_sampling='stocastic')
  with pytest.raises(InputError, match='MAX_TASKS_PER_BATCH=1'):
    _iterator(max_tasks_per_batch=1)


def test_a_larger_or_reordered_mixture_moves_no_row(
  mixture, make_task, tmp_path
):
  names = ['toy_c', 'toy_a', 'toy_b']
  rng = np.random.default_rng(0)
  PromptBundle(
    method='multitask',
    stage='source',
    task_names=tuple(names),
    arrays={
      'shared_prompt': rng.normal(size=(3, 4)).astype(np.float32),
      'task_u': rng.normal(size=(3, 3, 1)).astype(np.float32),
      'task_v': rng.normal(size=(3, 1, 4)).astype(np.float32),
    },
    backbone_name='b',
    backbone_fingerprint='f',
  ).save(str(tmp_path / 'bundle'))
  make_task('toy_new', train=9)
  before = data.task_rows(names, 'toy_mix')
  seqio.MixtureRegistry.add(
    'toy_larger',
    [('toy_b', 9.0), ('toy_new', 1.0), ('toy_c', 2.0), ('toy_a', 4.0)],
  )
  try:
    after = data.task_rows([*names, 'toy_new'], 'toy_larger')
    # A model without a prompt for the newcomer says so instead of shifting.
    with pytest.raises(InputError, match="'toy_new'.* have no prompt"):
      data.task_rows(names, 'toy_larger')
  finally:
    seqio.MixtureRegistry.remove('toy_larger')
  assert {name: after[name] for name in before} == before
  assert after['toy_new'] == 3
  bundle = load_prompts(str(tmp_path / 'bundle'))
  for name in names:
    np.testing.assert_array_equal(
      bundle.table[after[name]], bundle.compose(name)
    )
