"""docs/python.md and docs/tour.ipynb run as they stand."""

import pathlib
import re

import pytest

from tests.helpers import pages

DOCS = pathlib.Path(__file__).parents[2] / 'docs'


@pytest.mark.slow
def test_the_page_runs():
  text = (DOCS / 'python.md').read_text()
  blocks = re.findall(r'```(python|text)\n(.*?)```', text, re.DOTALL)
  cells, stored = [], {}
  for kind, block in blocks:
    if kind == 'python':
      cells.append(block)
    else:
      stored[len(cells) - 1] = block
  outputs = pages.run(cells)
  assert len(stored) >= 6
  for number, want in stored.items():
    found = outputs[number]['text/plain']
    assert pages.same(want, found), (cells[number], want, found)
