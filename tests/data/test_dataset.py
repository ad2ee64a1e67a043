"""Training batches: nothing lost, nothing doubled, resumed to the bit.

A resumed run must see the very batches that an uninterrupted one sees, and a
packed epoch must hold the very examples of an unpacked one.
"""

from collections import Counter
import json
import time

import numpy as np
import pytest
import seqio

from mpt_jax import data
from mpt_jax.data import few_shot
from mpt_jax.types import InputError
from tests.data.toys import LABELS, LENGTHS, make_text, read_segments

pytestmark = pytest.mark.data

MIX = ('toy_c', 'other', 'toy_a', 'toy_b')
SIZES = {'toy_a': 53, 'toy_b': 31, 'toy_c': 17}
PROMPT = 3


def _config(name='toy_mix', **kwargs):
  kwargs = {'batch_size': 7, 'task_feature_lengths': LENGTHS, **kwargs}
  return data.DatasetConfig(mixture_or_task_name=name, **kwargs)


def _iterator(name='toy_mix', task_names=MIX, **kwargs):
  host = {k: kwargs.pop(k) for k in tuple(kwargs) if 'shard' in k}
  return data.get_train_iterator(
    _config(name, **kwargs), PROMPT, task_names, **host
  )


def _assert_equal(batch, other):
  assert set(batch) == set(other)
  for name, value in batch.items():
    np.testing.assert_array_equal(value, other[name], name)


def _expected(name, row, vocabulary):
  """The examples of a task's train split as `read_segments` gives them."""
  return [
    (
      row,
      (*vocabulary.encode(make_text(name, 'train', i)), 1),
      (*vocabulary.encode(LABELS[i * i % 3]), 1),
    )
    for i in range(SIZES[name])
  ]


def _examples(batch):
  """The same of an unpacked batch."""
  columns = zip(
    batch['encoder_task_ids'][:, 0].tolist(),
    batch['encoder_input_tokens'][:, PROMPT:].tolist(),
    batch['decoder_target_tokens'].tolist(),
    strict=True,
  )
  for row, inputs, targets in columns:
    yield row, tuple(t for t in inputs if t), tuple(t for t in targets if t)


def test_an_unpacked_batch(mixture):
  batch = next(_iterator())
  assert {v.dtype for v in batch.values()} == {np.dtype('int32')}
  assert {k: v.shape for k, v in batch.items()} == {
    'encoder_input_tokens': (7, 41),
    'encoder_prompt_slots': (7, 41),
    'encoder_task_ids': (7, 41),
    'decoder_target_tokens': (7, 11),
    'decoder_input_tokens': (7, 11),
    'decoder_loss_weights': (7, 11),
  }
  np.testing.assert_array_equal(
    batch['encoder_prompt_slots'], np.tile([1, 2, 3] + [0] * 38, (7, 1))
  )
  ids = batch['encoder_task_ids']
  used = batch['encoder_input_tokens'] > 0
  np.testing.assert_array_equal(ids, np.where(used, ids[:, :1], 0))
  np.testing.assert_array_equal(
    batch['decoder_loss_weights'], batch['decoder_target_tokens'] > 0
  )


def test_every_epoch_has_every_example_once(mixture, vocabulary):
  iterator = _iterator('toy_a', batch_size=53)
  first, second = next(iterator), next(iterator)
  expected = Counter(_expected('toy_a', 2, vocabulary))
  assert Counter(_examples(first)) == Counter(_examples(second)) == expected
  assert list(_examples(first)) != list(_examples(second))


def test_without_shuffling_the_order_is_the_datas(mixture, vocabulary):
  batch = next(_iterator('toy_a', batch_size=53, shuffle=False))
  assert list(_examples(batch)) == _expected('toy_a', 2, vocabulary)


def test_packing_loses_and_doubles_nothing(mixture, vocabulary):
  iterator = _iterator(pack=True, batch_size=5)
  seen, per_task = [], dict.fromkeys(SIZES, 0)
  for _ in range(40):
    batch = next(iterator)
    examples = list(read_segments(batch, PROMPT))
    assert len(examples) > 5
    seen.extend(examples)
  per_task = iterator.get_state()['taken']
  assert sum(per_task.values()) == len(seen)
  found = Counter(seen)
  for name, row in (('toy_a', 2), ('toy_b', 3), ('toy_c', 0)):
    epochs, rest = divmod(per_task[name], SIZES[name])
    counts = [found.pop(e) for e in _expected(name, row, vocabulary)]
    assert set(counts) <= {epochs, epochs + 1}
    assert sum(c > epochs for c in counts) == rest
  assert not found


def test_packed_and_unpacked_draw_the_same_examples(mixture):
  packed, unpacked = _iterator(pack=True), _iterator(batch_size=1)
  examples = [e for _ in range(4) for e in read_segments(next(packed), PROMPT)]
  alone = [e for _ in examples for e in _examples(next(unpacked))]
  assert Counter(examples) == Counter(alone)


@pytest.mark.parametrize('plain', [False, True])
def test_an_example_that_is_too_long_keeps_its_end_mark(make_task, plain):
  # A plain task marks the end before anything is cut.
  make_task('toy_long', plain=plain)
  lengths = {'inputs': PROMPT + 5, 'targets': 11}
  for pack in (False, True):
    batch = next(
      _iterator(
        'toy_long', ['toy_long'], pack=pack, task_feature_lengths=lengths
      )
    )
    tokens = batch['encoder_input_tokens']
    assert ((tokens == 1).sum(axis=1) == 1).all()
    full = tokens[:, -1] != 0
    assert full.any()
    assert (tokens[full, -1] == 1).all()


def test_the_order_of_prompt_tasks_changes_the_rows_only(mixture):
  names = ('toy_a', 'toy_b', 'toy_c')
  for pack in (False, True):
    one = _iterator(task_names=names, pack=pack)
    two = _iterator(task_names=names[::-1], pack=pack)
    for _ in range(3):
      a, b = next(one), next(two)
      used = a['encoder_input_tokens'] > 0
      ids, reverse = a.pop('encoder_task_ids'), b.pop('encoder_task_ids')
      np.testing.assert_array_equal(reverse, np.where(used, 2 - ids, 0))
      _assert_equal(a, b)
      assert len(set(ids[used])) > 1


@pytest.mark.parametrize('pack', [False, True])
@pytest.mark.parametrize('name', ['toy_a', 'toy_mix'])
# 53 examples at 7 per batch: an epoch of toy_a ends within batch 8, and with
# 151 batches several block of task draws have gone by.
@pytest.mark.parametrize('batches', [0, 7, 8, 151])
def test_resumes_to_the_bit(mixture, name, pack, batches):
  uninterrupted = _iterator(name, pack=pack)
  for _ in range(batches):
    next(uninterrupted)
  state = json.loads(json.dumps(uninterrupted.get_state()))
  assert state['batches'] == batches
  resumed = _iterator(name, pack=pack)
  next(resumed)
  resumed.set_state(state)
  for _ in range(20):
    _assert_equal(next(resumed), next(uninterrupted))
  assert resumed.get_state() == uninterrupted.get_state()


def test_a_position_in_other_tasks_is_refused(mixture):
  state = _iterator('toy_a').get_state()
  with pytest.raises(InputError, match=r"\['toy_a'\].*\['toy_b'\]"):
    _iterator('toy_b').set_state(state)


def test_the_seed_fixes_everything(mixture):
  _assert_equal(next(_iterator(seed=5)), next(_iterator(seed=5)))
  one, two = next(_iterator(seed=5)), next(_iterator(seed=6))
  assert list(_examples(one)) != list(_examples(two))


def test_tasks_are_drawn_at_the_mixtures_rates(mixture):
  iterator = _iterator(batch_size=500)
  for _ in range(40):
    next(iterator)
  taken = iterator.get_state()['taken']
  shares = {name: count / 20_000 for name, count in taken.items()}
  # Three standard deviations of a share are at most .011.
  assert shares == pytest.approx(
    {'toy_a': 5 / 8, 'toy_b': 2 / 8, 'toy_c': 1 / 8}, abs=0.011
  )


def test_hosts_share_no_example_of_an_epoch(mixture):
  hosts = [
    _iterator('toy_a', batch_size=14, shard_index=i, num_shards=2)
    for i in range(2)
  ]
  parts = [set(), set()]
  for _ in range(3):
    for host, seen in zip(hosts, parts, strict=True):
      batch = next(host)
      assert len(batch['encoder_input_tokens']) == 7
      seen.update(_examples(batch))
  # 3 batches of 14 of the 53 examples.
  assert len(parts[0]) == len(parts[1]) == 21
  assert not parts[0] & parts[1]
  with pytest.raises(InputError, match='BATCH_SIZE=15 .* 2 hosts'):
    _iterator('toy_a', batch_size=15, shard_index=0, num_shards=2)


@pytest.mark.parametrize('pack', [False, True])
@pytest.mark.parametrize('num_shards', [2, 3])
@pytest.mark.parametrize(
  'kwargs',
  [{}, {'task_sampling': 'stochastic'}, {'num_shots': 6}],
  ids=['mixture', 'stochastic', 'few-shot'],
)
def test_the_batch_does_not_depend_on_the_hosts(
  mixture, pack, num_shards, kwargs
):
  kwargs = {'batch_size': 12, 'pack': pack, **kwargs}
  whole = _iterator(**kwargs)
  hosts = [
    _iterator(**kwargs, shard_index=i, num_shards=num_shards)
    for i in range(num_shards)
  ]
  for step in range(12):
    expected = next(whole)
    parts = [next(host) for host in hosts]
    _assert_equal(
      expected,
      {k: np.concatenate([part[k] for part in parts]) for k in expected},
    )
    assert [host.get_state() for host in hosts] == (
      [whole.get_state()] * num_shards
    )
    if step == 5:  # A position saved on one host holds on all.
      for host in hosts:
        host.set_state(whole.get_state())


def test_few_shot_trains_on_the_chosen_examples_only(mixture, vocabulary):
  few = {'num_shots': 6, 'shots_per_class': False, 'batch_size': 6}
  iterator = _iterator(**few, seed=3)
  assert iterator.num_examples == dict.fromkeys(SIZES, 6)
  again = _iterator(**few, seed=3)
  assert iterator.chosen == again.chosen
  other = _iterator(**few, seed=4)
  assert iterator.chosen != other.chosen
  expected = {
    _expected(name, row, vocabulary)[i]
    for name, row in (('toy_a', 2), ('toy_b', 3), ('toy_c', 0))
    for i in iterator.chosen[name].positions
  }
  seen = {e for _ in range(30) for e in _examples(next(iterator))}
  assert seen == expected


def _choose(targets, k, seed, **kwargs):
  return few_shot.choose(list(targets), k, seed, 'toy', **kwargs).positions


def _choose_in_all(targets, k, seed):
  return _choose(targets, k, seed, per_class=False)


def test_few_shot_per_class():
  rng = np.random.default_rng(0)
  targets = rng.choice(['yes', 'no', 'maybe'], 97, p=[0.8, 0.15, 0.05])
  rare = min(Counter(targets.tolist()).values())
  for k in (1, 2, rare):
    chosen = _choose(targets.tolist(), k, 0)
    assert set(Counter(targets[chosen].tolist()).values()) == {k}
  message = f"NUM_SHOTS={rare + 1} .* {rare} examples of class 'maybe'"
  with pytest.raises(InputError, match=message):
    _choose(targets.tolist(), rare + 1, 0)


def test_few_shot_choices_are_told_by_their_ids():
  targets = ['yes', 'no'] * 5
  ids = {'idx': list(range(100, 110)), 'id': [b'q%d' % i for i in range(10)]}
  choice = few_shot.choose(targets, 2, 0, 'toy', ids=ids)
  assert choice.examples() == [
    {
      'position': p,
      'target': targets[p],
      'idx': 100 + p,
      'id': f'q{p}',
    }
    for p in choice.positions
  ]


def test_few_shot_in_all_is_balanced():
  rng = np.random.default_rng(0)
  targets = rng.choice(['yes', 'no', 'maybe'], 97, p=[0.8, 0.15, 0.05])
  for k in (3, 7, 12, 31):
    chosen = _choose_in_all(targets.tolist(), k, 0)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == k
    available = Counter(targets.tolist())
    counts = Counter(targets[chosen].tolist())
    # Nobody has two more than another who has some left.
    for label in available:
      left = counts[label] < available[label]
      assert not left or max(counts.values()) - counts[label] <= 1
  small = _choose_in_all(targets.tolist(), 12, 0)
  assert set(small) < set(_choose_in_all(targets.tolist(), 31, 0))
  # Both the members and the odd ones out vary with the seed.
  draws = [_choose_in_all(targets.tolist(), 4, s) for s in range(20)]
  assert len({tuple(d) for d in draws}) == 20
  assert len({Counter(targets[d]).most_common(1)[0][0] for d in draws}) > 1


def test_few_shot_without_classes():
  targets = [f'answer {i}' for i in range(40)]
  chosen = _choose(targets, 5, 0)
  assert len(set(chosen)) == 5
  assert chosen != _choose(targets, 5, 1)


@pytest.mark.parametrize('k', [0, 54])
def test_few_shot_with_a_k_that_does_not_fit(mixture, k):
  with pytest.raises(InputError, match=f"NUM_SHOTS={k} .*'toy_a'.* 53"):
    _iterator('toy_a', num_shots=k, shots_per_class=False)


def test_a_plain_seqio_task_works_with_one_prompt(make_task, vocabulary):
  make_task('toy_plain', plain=True)
  batch = next(_iterator('toy_plain', ['anything'], batch_size=53))
  expected = {
    (0, (*vocabulary.encode(make_text('toy_plain', 'train', i)), 1))
    for i in range(53)
  }
  assert {e[:2] for e in _examples(batch)} == expected


def test_without_prompts(mixture):
  config = _config(pack=True)
  batch = next(data.get_train_iterator(config, 0, ()))
  assert not batch['encoder_prompt_slots'].any()
  assert not batch['encoder_task_ids'].any()
  assert len(list(read_segments(batch, 0))) > 7


def test_missing_data_are_told_at_once(tmp_path):
  source = data.TfdsSource('glue/mnli:2.0.0')
  data.register_task('toy_missing', source, preprocessors=[])
  try:
    data.set_data_dir(tmp_path)
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
      _iterator('toy_missing', ['toy_missing'])
    assert time.monotonic() - start < 5
  finally:
    seqio.TaskRegistry.remove('toy_missing')
  message = str(caught.value)
  assert '\n' not in message
  folder = str(tmp_path / 'glue/mnli/2.0.0')
  for part in (
    "'toy_missing'",
    folder,
    '--tfds_data_dir',
    'tfds build glue --config=mnli',
    f'python -m tasks.offline --data_dir={tmp_path}',
  ):
    assert part in message


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'name': 'toy_mxi'}, "'toy_mxi' is not .*did you mean 'toy_mix'"),
    ({'split': 'dev'}, "'toy_a': no split 'dev'; .*'train', 'validation'"),
    ({'module': 'taskss'}, "MIXTURE_OR_TASK_MODULE='taskss' cannot be"),
    ({'module': 'json.nothing'}, "no module 'json.nothing'"),
    ({'batch_size': 0}, 'BATCH_SIZE=0'),
    ({'task_names': ['toy_a']}, r"\['toy_b', 'toy_c'\]"),
    (
      {'task_feature_lengths': {'inputs': 3, 'targets': 4}},
      r"\['inputs'\]=3 .*PROMPT_LENGTH=3",
    ),
    ({'task_feature_lengths': {'inputs': 8}}, "length for 'targets'"),
    ({'use_cached': True}, "'toy_a': USE_CACHED_TASKS=True"),
  ],
)
def test_bad_input_is_one_clear_line(mixture, change, message):
  with pytest.raises(InputError, match=message) as caught:
    _iterator(**change)
  assert '\n' not in str(caught.value)


def test_a_module_with_a_broken_import_is_named(tmp_path, monkeypatch):
  (tmp_path / 'broken_tasks.py').write_text('import no_such_library')
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(InputError, match=r'broken_tasks.py:1: .*no_such_library'):
    data.check_data('toy', 'train', module='broken_tasks')
