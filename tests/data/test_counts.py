"""What is cut, hidden, empty or double is counted and said."""

import json

import pytest
import seqio

from mpt_jax import data
from mpt_jax.data import counts, seqio_tasks, survey
from mpt_jax.types import InputError
from tests.data import toys
from tests.data.toys import percent_right

pytestmark = pytest.mark.data


@pytest.fixture
def make(register, tmp_path):
  """Registers `own` of (text, label) rows per split."""

  def call(**splits):
    paths = {}
    for split, rows in splits.items():
      paths[split] = tmp_path / f'{split}.jsonl'
      paths[split].write_text(
        ''.join(
          json.dumps({'text': text, 'label': label}) + '\n'
          for text, label in rows
        )
      )
    return register(
      'own',
      paths,
      inputs='saw {text}',
      labels=('no', 'yes'),
      metric_fns=[percent_right],
    )

  return call


def _read(inputs, targets, name='own', **kwargs):
  config = data.DatasetConfig(
    mixture_or_task_name=name,
    task_feature_lengths={'inputs': inputs, 'targets': targets},
    batch_size=2,
    **kwargs,
  )
  return data.get_train_iterator(config, 3, [name])


# With 'saw' and the end mark these are 3, 5 and 8 tokens.
ROWS = [('pear', 0), ('pear plum hat', 1), ('pear plum hat ann bob kate', 1)]


@pytest.mark.parametrize(
  ('length', 'cut', 'said'),
  [
    (11, 0, []),
    (10, 1, ['1 of 3 inputs (33.3 %) are longer than 7 tokens']),
    (7, 2, ['2 of 3 inputs (66.7 %) are longer than 4 tokens']),
    (5, 3, ['3 of 3 inputs (100.0 %) are longer than 2 tokens']),
  ],
)
def test_cut_inputs(make, caplog, length, cut, said):
  make(train=ROWS, test=ROWS)
  batches = _read(length, 4)
  found = batches.counts['own']
  assert (found.examples, found.cut_inputs, found.cut_targets) == (3, cut, 0)
  assert (found.longest_input, found.longest_target) == (8, 2)
  lengths = {'inputs': length, 'targets': 4}
  scored = data.examine(toys.examples('own', 'test', lengths), 3, ['own'])[
    'own'
  ]
  assert scored.as_json() == found.as_json()
  assert [r.getMessage() for r in caplog.records] == [
    f'own/{split}: {line} and were cut (the longest has 8:'
    f" TASK_FEATURE_LENGTHS['inputs'] would have to be {11 - length} more)"
    for split in ('train', 'test')
    for line in said
  ]
  # And they are cut, with their end mark.
  tokens = next(batches)['encoder_input_tokens']
  assert tokens.shape[1] == length
  assert set(tokens[tokens > 0][-1:]) == {1}


def test_what_is_kept_with_the_results(make):
  make(train=[*ROWS, ('', 0), ('hat', None)])
  assert _read(10, 4).counts['own'].as_json() == {
    'examples': 5,
    'unlabelled': 1,
    'empty_inputs': 1,
    'cut_inputs': 1,
    'cut_targets': 0,
    'longest_input': 8,
    'longest_target': 2,
  }


@pytest.mark.parametrize('read', ['train', 'examine'])
def test_cut_targets_are_refused_unless_allowed(register, read, caplog):
  rows = [{'q': 'pear', 'a': a} for a in ('hat', 'pear plum', 'ann bob kate')]
  register(
    'own_free',
    lambda split: rows,
    inputs='{q}',
    targets='{a}',
    metric_fns=[percent_right],
  )

  def call(targets, allow=False):
    if read == 'train':
      batches = _read(9, targets, 'own_free', allow_cut_targets=allow)
      return batches.counts['own_free']
    return data.examine(
      toys.examples(
        'own_free',
        'test',
        {'inputs': 9, 'targets': targets},
        allow_cut_targets=allow,
      ),
      3,
      ['own_free'],
    )['own_free']

  assert call(4).cut_targets == 0
  message = (
    r"task 'own_free', split '\w+': 2 of 3 targets are longer than 2 tokens"
    r' \(the longest has 4\) .* ALLOW_CUT_TARGETS=True'
  )
  with pytest.raises(InputError, match=message):
    call(2)
  assert call(3, allow=True).cut_targets == 1
  assert '1 of 3 targets (33.3 %) are longer than 3 tokens' in caplog.text


def test_only_the_chosen_targets_must_fit(register):
  rows = [{'q': 'pear', 'a': a} for a in ('hat', 'kite', 'ann bob kate')]
  register('own_free', lambda split: rows, inputs='{q}', targets='{a}')
  fits = []
  for seed in range(8):
    try:
      batches = _read(
        9, 2, 'own_free', num_shots=2, shots_per_class=False, seed=seed
      )
    except InputError:
      continue
    fits.append(seed)
    assert set(batches.chosen['own_free'].targets) == {'hat', 'kite'}
  assert 0 < len(fits) < 8


def test_a_run_is_the_same_with_and_without_the_leave():
  # Else a stopped run of version 0.1 could not be resumed.
  kwargs = {
    'mixture_or_task_name': 'own',
    'task_feature_lengths': {'inputs': 9, 'targets': 9},
    'batch_size': 1,
  }
  assert 'allow' not in repr(data.DatasetConfig(**kwargs))


@pytest.mark.parametrize(
  ('length', 'fits'), [(3, False), (4, False), (5, True)]
)
def test_room_for_the_text(make, length, fits):
  make(train=ROWS, test=ROWS)
  lengths = {'inputs': length, 'targets': 4}
  if fits:
    assert data.examine(toys.examples('own', 'test', lengths), 3, ['own'])
    return
  message = r'leaves no room beside the prompt .*PROMPT_LENGTH=3.*at least 5'
  with pytest.raises(InputError, match=message):
    _read(length, 4)
  with pytest.raises(InputError, match=message):
    data.examine(toys.examples('own', 'test', lengths), 3, ['own'])


def test_a_task_that_makes_examples_of_a_length_gets_it():
  def spans(dataset, sequence_length):
    del sequence_length
    return dataset

  class Task:
    preprocessors = (seqio.preprocessors.append_eos_after_trim,)

  limits = {'inputs': 9, 'targets': 4}
  assert seqio_tasks.whole_lengths(Task, limits) is None
  Task.preprocessors = (spans, *Task.preprocessors)
  assert seqio_tasks.whole_lengths(Task, limits) is limits


def test_survey(make):
  train = [
    ('ann', 0),
    ('bob', 1),
    ('bob', 1),
    ('bob', 0),
    ('', 1),
    ('  ', 1),
    ('kate', None),
  ]
  task = make(train=train, test=[('bob', 1), ('hat', 0), ('bob', None)])
  found = survey.survey(task, 'train', None)
  assert (found.examples, found.unlabelled, found.empty) == (7, 1, 2)
  assert (found.double, found.conflicting) == (1, 3)
  assert found.classes == {'no': 2, 'yes': 4}
  test = survey.survey(task, 'test', None)
  assert test.within(found) == 2
  assert survey.survey(task, 'train', 2).examples == 2


def test_survey_of_a_plain_task(make_task):
  task = make_task('toy_plain', plain=True)
  found = survey.survey(task, 'train', None)
  assert (found.examples, found.empty, found.double) == (53, 0, 0)
  assert found.conflicting is None
  assert found.within(found) == 53


@pytest.mark.parametrize(
  ('part', 'whole', 'shown'),
  [(0, 5, '0.0 %'), (1, 9999, '< 0.1 %'), (1, 3, '33.3 %'), (3, 3, '100.0 %')],
)
def test_share(part, whole, shown):
  assert counts.share(part, whole) == shown
