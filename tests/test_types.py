"""The user error is one line, whatever a stranger's file puts into it."""

import time

import pytest

from mpt_jax.types import InputError, nearest


@pytest.mark.parametrize(
  ('text', 'shown'),
  [
    ("a 'plain' line é", "a 'plain' line é"),
    ('two\nlines', 'two lines'),
    ('\x1b[2Jgone\0', r'\x1b[2Jgone\x00'),
    ('half \ud800 \u2028', r'half \ud800 \u2028'),
  ],
)
def test_messages_are_one_printable_line(text, shown):
  assert str(InputError(text)) == shown


def test_long_messages_keep_both_ends():
  text = str(InputError(f'the file {"x" * 10**6} expected a number'))
  assert len(text) < 1100
  assert text.startswith('the file x')
  assert text.endswith('expected a number')


def test_near_names_are_found_in_time():
  began = time.monotonic()
  assert nearest('a' * 10**6, ['b' * 10**6]) == ''
  assert 'BATCH_SIZE' in nearest('BATCHSIZE', ['x' * 10**6, 'BATCH_SIZE'])
  nearest('abcdefgh', (f'abcdefg{i}' for i in range(10**5)))
  assert time.monotonic() - began < 5
