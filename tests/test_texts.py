"""Templates, their fields and label words, without TensorFlow.

Guards against a text that is not the one that was trained on.
"""

import dataclasses

import pytest

from mpt_jax.checkpoints.texts import TaskText, Template
from mpt_jax.types import InputError

NLI = 'nli premise: {premise} hypothesis: {hypothesis}'
ROW = {'premise': ' {x} "a" ', 'hypothesis': 'é\n', 'id': 3}
FILLED = 'nli premise:  {x} "a"  hypothesis: é\n'


@pytest.mark.parametrize(
  ('template', 'columns', 'row', 'want'),
  [
    (NLI, {}, ROW, FILLED),
    ('{a}{{b}}{a}', {}, {'a': 7}, '7{b}7'),
    ('{a} {b/c}', {}, {'a': 2.5, 'b': {'c': True}}, '2.5 True'),
    # The data's own columns, or the names in the template.
    ('{a}', {'a': 'x'}, {'x': '1', 'a': '2'}, '1'),
    ('{a}', {'a': 'x'}, {'a': '2'}, '2'),
    # A name that is another's column: never half by one and half by the other.
    ('{a} {b}', {'a': 'b', 'b': 'c'}, {'b': '1', 'c': '2'}, '1 2'),
    ('{a} {b}', {'a': 'b', 'b': 'c'}, {'a': '1', 'b': '2'}, '1 2'),
  ],
)
def test_fields_become_the_text(template, columns, row, want):
  assert TaskText(template, columns=columns).fill(row) == want


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    (
      {'premise': 'p', 'hypotesis': 'h'},
      r"no 'hypothesis'; there is \['hypotesis', 'premise'\], and the text is"
      r" written of premise, hypothesis; did you mean 'hypotesis'",
    ),
    ({**ROW, 'premise': None}, "'premise' holds NoneType"),
    ({**ROW, 'premise': float('nan')}, "'premise' is nan"),
    ({**ROW, 'premise': ['a']}, "'premise' holds a list"),
    ({**ROW, 'premise': '\ud800'}, "'premise' is not valid text"),
  ],
)
def test_fields_that_are_missing_or_no_text(row, message):
  with pytest.raises(InputError, match=message):
    TaskText(NLI).fill(row)


def test_text_that_code_makes():
  with pytest.raises(InputError, match='the code of the task writes its text'):
    TaskText().fill(ROW)


def test_answers():
  labels = ('no', 'yes ', 'é')
  assert TaskText(NLI, '{label}', labels).answers() == {
    'no': 'no',
    'yes ': 'yes ',
    'é': 'é',
  }
  assert TaskText(NLI, 'it is {label}.', ('a', 'b')).answers() == {
    'a': 'it is a.',
    'b': 'it is b.',
  }
  with pytest.raises(InputError, match='no label words'):
    TaskText(NLI, '{label}').answers()
  for targets in (None, '{why} {label}', 'no field'):
    with pytest.raises(InputError, match='cannot be ranked'):
      TaskText(NLI, targets, ('a', 'b')).answers()


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'inputs': 3}, 'inputs is 3, expected text'),
    ({'inputs': 'a {'}, 'template .* is broken'),
    ({'inputs': '{a.b!r}'}, 'plain names in braces'),
    ({'inputs': '\ud800'}, 'surrogates'),
    ({'targets': ['a']}, 'targets is'),
    ({'labels': 'yes'}, 'expected a list of words'),
    ({'labels': []}, 'expected a list of words'),
    ({'labels': ['a', 1]}, 'labels is 1'),
    ({'labels': ['a', 'a']}, 'a word twice'),
    ({'columns': []}, 'columns is'),
    ({'columns': {'a': 1}}, 'columns is 1'),
    ({'more': 1}, r"it is \['columns', .*'more'"),
  ],
)
def test_parts_of_another_kind_are_refused(change, message):
  value = dataclasses.asdict(TaskText(NLI, '{label}', ('a', 'b')))
  assert dataclasses.asdict(TaskText.parse(value)) == value
  with pytest.raises(ValueError, match=message):
    TaskText.parse(value | change)


def test_a_hostile_name_is_only_a_name():
  template = Template('{a.__class__} {0} {a[b]}')
  names = {'a.__class__': 'x', '0': 'y', 'a[b]': 'z'}
  assert template.write(names) == 'x y z'
