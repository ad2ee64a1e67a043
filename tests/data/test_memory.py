"""Tasks of rows in memory are what the same rows are with SeqIO."""

import itertools

import numpy as np
import pytest
import seqio

from mpt_jax import data
from mpt_jax.data import lookup, memory
from mpt_jax.data.vocabulary import CHOSEN
from mpt_jax.types import InputError
from tests.data import toys
from tests.helpers import encoder

pytestmark = pytest.mark.data

LENGTHS = {'inputs': 24, 'targets': 12}
P = 3
TEXTS = (
  *('the film was great', 'the food was "awful"', 'café {naïve} \\1', ''),
  *('  two  spaces ', 'nan', 'long ' * 40, 'the hotel was dull'),
)
WORDS = [
  {'text': text, 'label': ('bad', 'good')[i % 2], 'stars': i / 2}
  for i, text in enumerate(TEXTS)
]
HIDDEN = [{**WORDS[0], 'label': ''}, {'text': 'no label', 'stars': 3}]
# What is no command, and no character that could be one.
TYPED = [{'text': 'a <mask></s> <s><pad> \ufdd1\ufdd0', 'label': 0, 'stars': 1}]
IDS = [{**row, 'label': i % 2, 'id': f'r{i}'} for i, row in enumerate(WORDS)]
SENTIMENT = {'inputs': 'review: {text}', 'labels': ('bad', 'good')}
BAD, GOOD, NO = encoder.WORDS
MASKED = {
  **SENTIMENT,
  'masked': '{mask} {text}{sep}{stars}',
  'fillers': {'good': GOOD, 'bad': [BAD, NO]},
}


@pytest.fixture(autouse=True)
def _registries():
  yield
  memory.clear()


def _make(rows, **kwargs):
  splits = {'train': rows, 'validation': rows[1:], 'test': rows[::-1]}
  return data.Task(**splits, **kwargs)


def _register(name, task):
  """Registers the same rows with SeqIO."""
  data.register_task(
    name,
    lambda split: getattr(task, split),
    inputs=task.inputs,
    targets=task.targets,
    labels=task.labels,
    masked=task.masked,
    fillers=task.fillers,
    metric_fns=task.metrics,
  )


def _answers(batch):
  """Some right answers, some wrong ones, by the tokens of the input."""
  targets = batch['decoder_target_tokens']
  odd = batch['encoder_input_tokens'].sum(axis=1, keepdims=True) % 3 == 0
  if CHOSEN.masks:
    # The first word of a class, and the end mark.
    fits = (targets == targets.max(axis=1, keepdims=True)) == odd
    best = targets[np.arange(len(targets)), fits.argmax(axis=1)]
    answers = np.zeros_like(targets)
    answers[:, 0], answers[:, 1] = best, CHOSEN.eos_id
    return answers
  return np.where(odd, targets[:, ::-1], targets)


def _everything(names, task_names, **config):
  """All that a run sees of what it reads."""
  iterator = data.get_train_iterator(
    data.DatasetConfig(
      mixture_or_task_name=names,
      task_feature_lengths=LENGTHS,
      batch_size=4,
      **config,
    ),
    prompt_length=P,
    task_names=task_names,
  )
  batches = [next(iterator) for _ in range(5)]
  chosen = {k: c.examples() for k, c in iterator.chosen.items()}
  found = [iterator.digests(), iterator.counts, chosen, iterator.get_state()]
  test, validation = (
    toys.examples(names, split, LENGTHS) for split in ('test', 'validation')
  )
  read = (P, task_names)
  found.append(data.examine(test, *read))
  scores = data.evaluate(validation, *read, _answers, 4)
  found.append(dict(scores))
  for name in scores:
    found += [scores.judge(name, again=True), scores.predictions(name)]
  found.append(list(data.predict(test, *read, _answers, 4)))
  found.append(data.task_texts(task_names, 'train'))
  found.append(data.metrics_of(names, 'test'))
  return batches, found


@pytest.mark.parametrize(
  ('rows', 'kwargs', 'config'),
  [
    (WORDS + HIDDEN, SENTIMENT, {}),
    (IDS, {**SENTIMENT, 'targets': 'it is {label}'}, {'num_shots': 2}),
    (IDS, {**SENTIMENT, 'labels': ('1', '0')}, {'pack': True}),
    (WORDS, {'inputs': 'rate: {text}', 'targets': '{stars}'}, {}),
    (IDS, {**SENTIMENT, 'metrics': toys.percent_right}, {'shuffle': False}),
    (WORDS + HIDDEN, MASKED, {}),
    (IDS + TYPED, {**MASKED, 'targets': 'it is {label}'}, {'num_shots': 2}),
    (IDS + TYPED, {**MASKED, 'masked': '{text} it was{mask}.'}, {'pack': True}),
  ],
  ids=[
    *('words', 'ids', 'digits', 'texts', 'own metric'),
    *('masked words', 'masked ids', 'mask behind'),
  ],
)
def test_the_same_rows_with_seqio(rows, kwargs, config):
  if 'masked' in kwargs:
    data.use_vocabulary(encoder.FOLDER)
  task = _make(rows, **kwargs)
  _register('reviews', task)
  try:
    wanted = _everything('reviews', ('other', 'reviews'), **config)
  finally:
    seqio.TaskRegistry.remove('reviews')
  memory.register({'reviews': task})
  got = _everything('reviews', ('other', 'reviews'), **config)
  np.testing.assert_equal(got[0], wanted[0])
  for mine, theirs in zip(got[1], wanted[1], strict=True):
    assert mine == theirs


def test_a_list_is_a_mixture_with_equal_rates():
  tasks = {
    'first': _make(WORDS, **SENTIMENT),
    'second': _make(IDS[:5], **SENTIMENT),
  }
  for name, task in tasks.items():
    _register(name, task)
  seqio.MixtureRegistry.add('both', list(tasks), default_rate=1.0)
  try:
    wanted = _everything('both', tuple(tasks))
    of_seqio = _everything(['first', 'second'], tuple(tasks))
  finally:
    seqio.MixtureRegistry.remove('both')
    for name in tasks:
      seqio.TaskRegistry.remove(name)
  memory.register(tasks)
  got = _everything(('first', 'second'), tuple(tasks))
  for found in (of_seqio, got):
    np.testing.assert_equal(found[0], wanted[0])
    assert found[1] == wanted[1]


@pytest.mark.parametrize(
  ('names', 'message'),
  [
    ([], 'an empty list'),
    (['mine', 'mine'], "names 'mine' twice"),
    (['mine', 'toy'], "'mine' are lists of rows and the others SeqIO's"),
    (['toy', 'toy_mix'], "'toy_mix' is a mixture"),
    (['toy', 'tooy'], "'tooy' is not a registered .*did you mean 'toy'"),
    ('mein', "'mein' is not a registered .*did you mean 'mine'"),
    ('toy_a', "'toy_a' is a list of rows, and SeqIO has one of that name"),
  ],
)
def test_names_that_cannot_be_read(make_task, mixture, names, message):
  make_task('toy')
  task = _make(WORDS, **SENTIMENT)
  memory.register({'mine': task, 'toy_a': task})
  with pytest.raises(InputError, match=message):
    lookup.get_provider(names)


def _bad(place, **changes):
  rows = [dict(row) for row in WORDS]
  rows[place] |= changes
  return rows


@pytest.mark.parametrize(
  ('rows', 'message'),
  [
    (_bad(3, label='god'), "train row 3: label 'god' is outside .*'good'"),
    (_bad(3, label=2), 'train row 3: label 2 is outside'),
    (_bad(4, text=float('nan')), "train row 4: column 'text' is nan"),
    (_bad(5, text={'a': 1}), "train row 5: column 'text' holds dict"),
    ([{'txt': 'a', 'label': 0}], "train row 0: no column 'text'.*'txt'"),
    ([{'text': 'a', 'lable': 0}], "train row 0: no column 'label'"),
    ([{'text': ['a'], 'label': 0}], "train: column 'text' holds lists"),
    ([], "split 'train' is empty: the list has no row"),
    ([{'text': 'a', 'label': None}] * 3, 'none of the 3 examples'),
  ],
)
def test_rows_that_are_wrong(rows, message):
  memory.register({'mine': data.Task(train=rows, **SENTIMENT)})
  with pytest.raises(InputError, match=f"^task 'mine'.*{message}"):
    _everything('mine', ('mine',))


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({}, 'give train, validation or test'),
    ({'train': 'rows.jsonl'}, 'train=str is no table'),
    ({'train': WORDS[0]}, 'train=dict is no table'),
    ({'train': [WORDS[0], 'a text']}, 'train row 1: expected a dictionary'),
    ({'train': WORDS, 'inputs': None}, 'inputs=None is no template'),
    ({'train': WORDS, 'inputs': '{text'}, 'is broken'),
    ({'train': WORDS, 'labels': None}, 'give targets or label words'),
    ({'train': WORDS, 'labels': ('a', 'a')}, "label word 'a' stands for"),
    ({'train': WORDS, 'targets': '{text}'}, 'do not hold {label}'),
    ({'train': WORDS, 'targets': '{text} {label}'}, 'not told by its label'),
    ({'train': WORDS, 'metrics': ['f1']}, "metric 'f1' is no function"),
    (
      {'train': WORDS, 'metrics': lambda targets, scores: {}},
      'asks for scores',
    ),
  ],
)
def test_tasks_that_are_none(kwargs, message):
  with pytest.raises(InputError, match=message):
    data.Task(**{**SENTIMENT, **kwargs})


def test_splits_that_are_not_there():
  memory.register({'mine': data.Task(train=WORDS, **SENTIMENT)})
  with pytest.raises(InputError, match=r"'mine': no split 'test'; .*\['train"):
    data.check_data('mine', 'test')
  with pytest.raises(InputError, match='no cache'):
    data.check_data('mine', 'train', use_cached=True)


@pytest.mark.parametrize(
  ('name', 'task', 'message'),
  [
    ('my task', data.Task(train=WORDS, **SENTIMENT), 'is no task name'),
    ('mine', WORDS, "'mine' is list, expected mpt_jax.Task"),
  ],
)
def test_what_cannot_be_registered(name, task, message):
  with pytest.raises(InputError, match=message):
    memory.register({name: task})
  assert not memory.names()


@pytest.mark.parametrize(
  ('metric', 'message'),
  [
    (lambda targets, predictions: 0.5, 'returned 0.5, expected numbers'),
    (lambda targets, predictions: {'n': 1 / 0}, r'test_memory.py:\d+: Zero'),
  ],
)
def test_metrics_that_fail(metric, message):
  task = data.Task(test=WORDS, metrics=metric, **SENTIMENT)
  memory.register({'mine': task})
  with pytest.raises(InputError, match=f"^task 'mine'.*{message}"):
    data.evaluate(toys.examples('mine', 'test'), P, (), _answers, 4)


def _first_digest():
  read = toys.examples('mine', 'train', LENGTHS)
  return data.examine(read, P, ('mine',))['mine'].digest


def test_the_rows_are_those_of_the_last_cell_that_was_run():
  rows = [dict(row) for row in WORDS]
  task = data.Task(train=rows, **SENTIMENT)
  memory.register({'mine': task})
  before = _first_digest()
  rows[0]['text'] = 'changed later'
  memory.register({'mine': task})
  assert _first_digest() == before
  memory.register({'mine': data.Task(train=rows, **SENTIMENT)})
  assert _first_digest() != before
  memory.clear()
  assert memory.find('mine') is None


class _Frame:
  """What a DataFrame of pandas does."""

  def to_dict(self, orient):
    assert orient == 'records'
    return [*WORDS, {'text': 'hidden', 'label': float('nan'), 'stars': 1.0}]


def test_a_data_frame():
  memory.register({'mine': data.Task(train=_Frame(), **SENTIMENT)})
  found = data.examine(toys.examples('mine', 'train'), P, ('mine',))['mine']
  assert (found.examples, found.unlabelled) == (9, 1)


def test_it_shows_what_it_is():
  task = data.Task(train=WORDS, test=iter(IDS), **SENTIMENT)
  assert repr(task) == (
    "Task(train=8 rows, test=8 rows, inputs='review: {text}',"
    " targets='{label}', labels=('bad', 'good'))"
  )
  numbers = list(itertools.islice(task.test, 2))
  assert numbers == IDS[:2]


def test_every_name_of_the_package_is_somewhere():
  assert [n for n in data.__all__ if getattr(data, n).__name__ != n] == []
  with pytest.raises(AttributeError, match="'mpt_jax.data' has no .*'nonsense"):
    _ = data.nonsense
