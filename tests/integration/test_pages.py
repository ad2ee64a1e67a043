"""docs/python.md and docs/tour.ipynb run as they stand."""

import base64
import json
import pathlib
import re
import shlex

import pytest

from mpt_jax import cli
from mpt_jax.cli import flags
from mpt_jax.transfer import __main__ as transfer
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


def test_the_commands_of_the_page_on_transfer_can_be_typed():
  text = (DOCS / 'transfer.md').read_text().replace('\\\n', ' ')
  blocks = re.findall(r'```(?:bash)?\n(.*?)```', text, re.DOTALL)
  lines = [line for block in blocks for line in block.splitlines()]
  verbs = set()
  for line in lines:
    if not line.startswith('python -m mpt_jax.') or '…' in line:
      continue
    _, _, module, *words = shlex.split(line, comments=True)
    if module == 'mpt_jax.transfer':
      if not words or words[0] == 'VERB':
        continue
      verb = words.pop(0)
      verbs.add(verb)
      module = f'mpt_jax.transfer.{transfer.VERBS[verb][0]}'
      if not any(word.startswith('--gin_file') for word in words):
        words.append(f'--gin_file=gin_configs/runs/transfer_{verb}.gin')
    flags_of, bindings = flags.parse(module, words)
    cli.check_macros(flags_of.gin_file, bindings)
  assert {'add', 'matrix', 'indicators', 'report'} <= verbs


def _tour():
  cells = json.loads((DOCS / 'tour.ipynb').read_text())['cells']
  return [cell for cell in cells if cell['cell_type'] == 'code']


def test_the_tour_is_whole():
  """Run from top to bottom, with small pictures, and the page's lines."""
  cells = _tour()
  assert [c['execution_count'] for c in cells] == [*range(1, len(cells) + 1)]
  pictures = [
    base64.b64decode(output['data']['image/png'])
    for cell in cells
    for output in cell['outputs']
    if 'image/png' in output.get('data', {})
  ]
  assert len(pictures) >= 2
  assert sum(map(len, pictures)) < 100_000
  assert all(picture[:4] == b'\x89PNG' for picture in pictures)
  source = '\n'.join(''.join(cell['source']) for cell in cells)
  [stages] = re.findall(
    r'```py\n(.*?)```', (DOCS / 'python.md').read_text(), re.DOTALL
  )
  for line in stages.splitlines():
    assert line in source


@pytest.mark.slow
def test_the_tour_runs_and_its_outputs_come_out():
  cells = _tour()
  outputs = pages.run([''.join(cell['source']) for cell in cells])
  for cell, found in zip(cells, outputs, strict=True):
    stored = {'stdout': ''}
    for output in cell['outputs']:
      if output['output_type'] == 'stream':
        stored['stdout'] = ''.join(output['text'])
      else:
        stored |= output['data']
    assert stored.keys() == found.keys(), cell['source']
    for kind in stored.keys() - {'image/png'}:
      assert pages.same(stored[kind], found[kind]), (stored, found)
