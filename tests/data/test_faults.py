"""What goes wrong in a user's own code is one line that names it."""

import itertools
import re

import numpy as np
import pytest
import seqio
import tensorflow as tf

from mpt_jax import data
from mpt_jax.data import lookup, seqio_tasks
from mpt_jax.types import InputError
from tests.data import toys

_NUMBERS = itertools.count()
ROWS = [{'text': f'a text {i}', 'label': i % 2} for i in range(4)]
LENGTHS = {'inputs': 24, 'targets': 4}


def _register(**kwargs):
  name = f'faulty_{next(_NUMBERS)}'
  given = {
    'source': lambda split: ROWS,
    'inputs': '{text}',
    'labels': ('no', 'yes'),
    'splits': ('train',),
    **kwargs,
  }
  data.register_task(name, given.pop('source'), **given)
  return name


def _no_rows(split):
  raise KeyError('column')


def _no_such_feature(ds):
  return ds.map(lambda e: {**e, 'text': e['sentence']})


def _no_number(ds):
  return ds.map(
    lambda e: {**e, 'label': tf.strings.to_number(e['text'], tf.int64)}
  )


def _python(ds):
  def fail(text):
    raise ValueError(f'cannot read {text.numpy().decode()!r}')

  def call(example):
    text = tf.py_function(fail, [example['text']], tf.string)
    return {**example, 'text': tf.ensure_shape(text, [])}

  return ds.map(call)


def _no_shape(ds):
  return ds.map(
    lambda e: {**e, 'text': tf.py_function(lambda x: x, [e['text']], tf.string)}
  )


def _own_metric(targets, predictions):
  return {'accuracy': 100 / (len(targets) - len(predictions))}


def _own_postprocess(text, **kwargs):
  return {'yes': 1}[text]


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'source': _no_rows}, r"test_faults\.py:\d+: KeyError: 'column'"),
    (
      {'preprocessors': [_no_such_feature]},
      r"test_faults\.py:\d+: KeyError: 'sentence'",
    ),
    (
      {'preprocessors': [_no_number]},
      r'InvalidArgumentError: .*could not correctly convert string: a text 0'
      r'.*\(in _no_number at .*test_faults\.py:\d+\)',
    ),
    (
      {'preprocessors': [_no_shape]},
      r'ValueError: Rank .*\(in _no_shape at .*test_faults\.py:\d+\)',
    ),
    (
      {'preprocessors': [_python]},
      r"test_faults\.py:\d+: .*cannot read 'a text 0'",
    ),
  ],
)
def test_reading(kwargs, message):
  name = _register(**kwargs)
  config = data.DatasetConfig(
    mixture_or_task_name=name, task_feature_lengths=LENGTHS, batch_size=2
  )
  with pytest.raises(InputError) as error:
    data.get_train_iterator(config, prompt_length=2, task_names=(name,))
  text = str(error.value)
  assert text.startswith(f"task {name!r}, split 'train': "), text
  assert re.search(message, text), text
  assert text.isprintable()


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    (
      {'metric_fns': [_own_metric]},
      r'test_faults\.py:\d+: ZeroDivisionError: division by zero',
    ),
    (
      {'postprocess_fn': _own_postprocess},
      r"test_faults\.py:\d+: KeyError: 'no'",
    ),
  ],
)
def test_scoring(kwargs, message):
  given = {'metric_fns': [lambda targets, predictions: {'n': len(targets)}]}
  name = _register(**{**given, **kwargs})
  with pytest.raises(InputError) as error:
    data.evaluate(
      toys.examples(name, 'train', LENGTHS),
      prompt_length=2,
      task_names=(name,),
      predict_fn=lambda batch: np.ones((2, 4), np.int32),
      batch_size=2,
      progress=False,
    )
  text = str(error.value)
  assert text.startswith(f"task {name!r}, split 'train': "), text
  assert re.search(message, text), text


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch):
  def bug(*args):
    raise ZeroDivisionError('ours')

  # As if a line of the package had raised it.
  code = bug.__code__.replace(co_filename=seqio_tasks.__file__)
  bug.__code__ = code
  monkeypatch.setattr(seqio_tasks, '_check', bug)
  monkeypatch.setattr(seqio_tasks.faults, '_is_users', lambda file: False)
  with pytest.raises(ZeroDivisionError):
    data.check_data(_register(), 'train')


def _told(task):
  raise FileNotFoundError('counts.json')


@pytest.mark.parametrize(
  ('rates', 'message'),
  [
    ([1.0, 0.0], "'{b}' is 0, so it would never be drawn"),
    ([1.0, -2], "'{b}' is -2; a rate is a number above 0"),
    ([float('nan'), 1], "'{a}' is nan;"),
    ([1, float('inf')], "'{b}' is inf;"),
    ([1, 'much'], "'{b}' cannot be told: ValueError"),
    ([1, None], "'{b}' cannot be told: TypeError"),
    ([_told, 1], r"'{a}' cannot be told at .*test_faults.py:\d+: FileNotFound"),
  ],
)
def test_rates(rates, message):
  tasks = [_register(), _register()]
  name = f'mixture_{next(_NUMBERS)}'
  seqio.MixtureRegistry.add(name, list(zip(tasks, rates, strict=True)))
  wanted = f"mixture '{name}': the rate of {message}".format(
    a=tasks[0], b=tasks[1]
  )
  outer = f'mixture_{next(_NUMBERS)}'
  seqio.MixtureRegistry.add(outer, [(name, 2.0), (_register(), 1.0)])
  for mixture in (name, outer):
    with pytest.raises(InputError, match=wanted):
      data.check_data(mixture, 'train')


def test_a_task_that_is_named_twice():
  task = _register()
  name = f'mixture_{next(_NUMBERS)}'
  seqio.MixtureRegistry.add(name, [(task, 1.0), (task, 3.0)])
  with pytest.raises(InputError, match=f'{name}.*{task}.* 2 times'):
    data.check_data(name, 'train')


def test_rates_that_need_the_train_split_are_not_asked_for_another():
  task = _register(splits=('train', 'test'))
  name = f'mixture_{next(_NUMBERS)}'
  seqio.MixtureRegistry.add(name, [(task, _told)])
  assert data.check_data(name, 'test').name == name


def test_rates_of_mixtures_in_mixtures():
  """A part's share is its rate, divided among its tasks by theirs."""
  tasks = [_register() for _ in range(3)]
  inner, outer = (f'mixture_{next(_NUMBERS)}' for _ in range(2))
  seqio.MixtureRegistry.add(inner, [(tasks[0], 1.0), (tasks[1], lambda t: 3)])
  seqio.MixtureRegistry.add(outer, [(inner, 8.0), (tasks[2], 5.0)])
  assert lookup.get_provider(outer).rates() == dict(
    zip(tasks, (2.0, 6.0, 5.0), strict=True)
  )


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('x = 1\nraise OSError("no host")\n', r'{file}:2: OSError: no host'),
    ('def f(:\n', r'{file}:1: .*SyntaxError'),
    ('import json\njson.loads("{{")\n', r'{file}:2: JSONDecodeError'),
    (
      'import seqio\nimport tasks\n'
      'seqio.MixtureRegistry.add("without", ["mnli", "rte"])\n',
      r"{file}:3: mixture 'without': 'mnli' has no rate",
    ),
  ],
)
def test_a_module_that_cannot_be_imported(tmp_path, monkeypatch, text, message):
  name = f'faulty_module_{next(_NUMBERS)}'
  file = tmp_path / f'{name}.py'
  file.write_text(text.replace('{{', '{'))
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(
    InputError, match=message.format(file=re.escape(str(file)))
  ):
    seqio_tasks.import_module(name)
