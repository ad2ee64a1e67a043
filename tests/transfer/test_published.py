"""docs/transfer.md says what the published matrices say."""

import itertools
import json
import pathlib
import re

import numpy as np
import pytest

from mpt_jax.transfer import categories

DOCS = pathlib.Path(__file__).parents[2] / 'docs'
PUBLISHED = json.loads((DOCS / 'transfer_published.json').read_text())
CATEGORIES = {
  task: category
  for category, tasks in PUBLISHED['categories'].items()
  for task in tasks
}
NAMES = {
  'roberta-base': 'RoBERTa-base',
  'roberta-large': 'RoBERTa-large',
  't5-base': 'T5-base',
  't5-small': 'T5-small',
}


def _rows(heading):
  """Rows of all tables behind a heading, by their first cell."""
  text = (DOCS / 'transfer.md').read_text().split(f'## {heading}')[1]
  lines = [line for line in text.splitlines() if line.startswith('| ')]
  rows = [[c.strip() for c in line.strip('|').split('|')] for line in lines]
  return {row[0]: row[1:] for row in rows}


def _summary(matrix, count):
  """Means of relative performance and gain over the first tasks' pairs."""
  tasks = matrix['tasks'][:count]
  scores = np.array(matrix['scores_source_by_target'])[:count, :count]
  own = scores.diagonal()
  random = matrix['random_prompt'] and np.array(matrix['random_prompt'][:count])
  means = []
  for table in (
    100 * scores / own,
    None if random is None else (scores - random) / (own - random),
  ):
    groups = {True: [], False: []}
    for i, j in itertools.permutations(range(count), 2):
      if table is not None:
        same = CATEGORIES[tasks[i]] == CATEGORIES[tasks[j]]
        groups[same].append(table[i, j])
    means.append([np.mean(groups[k]) if groups[k] else None for k in groups])
  (same, other), gains = means
  chance = None if random is None else np.mean(100 * random / own)
  return [same, other, chance, *gains]


@pytest.mark.parametrize(
  ('name', 'count'),
  [*((name, 13) for name in NAMES), ('t5-base', 17), ('t5-small', 17)],
)
def test_summaries_of_the_published_matrices(name, count):
  matrix = PUBLISHED['matrices'][name]
  title = NAMES[name]
  if count < len(matrix['tasks']):
    title += ', without generation'
  row = _rows('Published figures')[title]
  want = _summary(matrix, count)
  assert row[0] == str(count)
  for cell, value, digits in zip(row[1:], want, [1, 1, 1, 2, 2], strict=True):
    if value is None:
      assert cell == '-'
    else:
      assert float(cell) == pytest.approx(value, abs=0.51 * 10**-digits), title


def test_correlations_of_the_published_prompts():
  rows = _rows('Published figures')
  columns = list(NAMES)
  columns[2:] = ['t5-small', 't5-base']
  for indicator in ('e_concat', 'e_average', 'c_concat', 'c_average'):
    cells = rows[f'`{indicator[0].upper()}{indicator[1:]}`']
    for name, cell in zip(columns, cells, strict=True):
      found = list(map(float, re.findall(r'-?\d+\.\d+', cell)))
      assert found == PUBLISHED['correlations'][name][indicator]


def test_categories_of_the_published_tasks_are_ours():
  for task, category in CATEGORIES.items():
    if task != 'SST-2':  # Ours is sst2.
      assert categories.category_of(task) == category
  assert categories.category_of('sst2') == 'sentiment'
