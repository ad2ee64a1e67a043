"""docs/runs.md names every file and metric of a run, and no others."""

import json
import pathlib
import re

import gin
import pytest

from mpt_jax import cli
from mpt_jax.engine import writers
from tests.integration.test_runs import arguments, bundles, stage_macros

__all__ = ['bundles']
ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / 'docs/runs.md').read_text()
WORDS = {'TASK': 'a', 'METRIC': 'f1', 'GROUP': 'prompts/b', 'TERM': 'loss'}


def _rows(section):
  """The rows of a section's tables, each a list of its cells."""
  text = re.split(r'\n(?=#+ )', PAGE.partition(f'\n{section}\n')[2])[0]
  rows = [
    [cell.strip() for cell in line.strip('|').split('|')]
    for line in text.splitlines()
    if line.startswith('|') and not line.startswith('|---')
  ]
  return [row for row in rows if row[0] not in ('file', 'key', 'TERM')]


def _names(cell):
  return re.findall(r'`([^`]+)`', cell)


METRICS = _rows('## Metrics')[1:]
TERMS = [name for row in _rows('### Terms') for name in _names(row[0])]
NAMES = [name for row in METRICS for name in _names(row[0])]
PATTERNS = {
  name: re.compile(
    re.sub('TASK|METRIC', r'\\w+', name)
    .replace('TERM', f'(?:{"|".join(TERMS)})')
    .replace('GROUP', '.+')
  )
  for name in NAMES
}


@pytest.mark.parametrize('row', METRICS, ids=lambda row: row[0] or row[1])
def test_tags_are_those_of_the_page(row):
  def filled(name):
    for word, example in WORDS.items():
      name = name.replace(word, example)
    return name

  for name in _names(row[0]):
    tags = {filled(tag).replace('prompts/', '') for tag in _names(row[1])} - {
      'eval/mean'
    }
    # One score has a mean, too.
    assert writers.tags({filled(name): 1.0}).keys() - {'eval/mean'} == tags
  if not row[0]:
    assert 'eval/mean' in writers.tags({'eval/a/f1': 1.0})


@pytest.fixture(scope='module')
def run(bundles):
  """A run that writes all that a prompt run can write, and its evaluation."""
  folder = bundles / 'files'
  settings = {
    **stage_macros(bundles, 'source'),
    'PADDING': 'max',
    'TRAIN_STEPS': 4,
    'LOG_PERIOD': 2,
    'EVAL_PERIOD': 2,
    'EVAL_EXAMPLES': 5,
    'EVAL_STEPS': 1,
    'KEEP_BEST': True,
    'TEST_SPLIT': 'validation',
    'NUM_SHOTS': 8,
    'KEY_STEP': 3,
  }
  argv = arguments(bundles, 'source', folder / 'run', **settings)
  cli.main('mpt_jax.train', 'train', argv)
  gin.clear_config()
  macros = {
    'MODEL_DIR': str(folder / 'eval'),
    'PROMPTS': str(folder / 'run/prompts'),
    'INITIAL_CHECKPOINT_PATH': str(bundles / 'backbone'),
    'MIXTURE_OR_TASK_NAME': ['mnli', 'sst2'],
    'TASK_FEATURE_LENGTHS': {'inputs': 60, 'targets': 7},
    'EVAL_SPLIT': 'validation',
    'EVAL_EXAMPLES': 5,
  }
  argv = [f'--gin.{name}={value!r}' for name, value in macros.items()]
  argv.append(f'--tfds_data_dir={bundles / "data"}')
  path = '--gin_file=gin_configs/runs/eval.gin'
  cli.main('mpt_jax.eval', 'evaluate', [path, *argv])
  gin.clear_config()
  return folder


@pytest.mark.slow
class TestOfAWholeRun:
  def test_files(self, run):
    told = {row[0].strip('`').rstrip('/') for row in _rows('## Files')}
    told = {re.sub('STEP|TASK', '*', name) for name in told}
    beside_train = {'predictions.jsonl', 'confusion.txt'}
    # What this run has no reason to write.
    absent = {'damaged/*', 'backbone', 'best/backbone', 'nearest.json'}
    assert beside_train | absent <= told
    found = set()
    for path in (run / 'run').iterdir():
      inside = path.name in ('checkpoints', 'best')
      found |= {f'{path.name}/*' if inside else path.name}
    assert found == told - beside_train - absent
    found = {path.name for path in (run / 'eval').iterdir()}
    assert found == {'results.json', 'log.txt'} | beside_train
    assert {p.name for p in (run / 'run/best').iterdir()} == {'mnli', 'sst2'}

  def test_the_card_says_what_the_folder_says(self, run):
    text = (run / 'run/prompts/README.md').read_text()
    record, results = (
      json.loads((run / 'run' / name).read_text())
      for name in ('run_config.json', 'results.json')
    )
    assert record['backbone_fingerprint'] in text
    for facts in record['data'].values():
      assert facts['digest'] in text
    for task, best in results['best_steps'].items():
      assert f'| best step of `{task}` | {best} |' in text
    score = results['test_scores']['mnli']['accuracy']
    assert f'| `mnli` | `validation` | `accuracy` | {score:.4g} |' in text
    # A path is nobody's business.
    assert record['backbone']['base'].endswith('/backbone')
    assert record['backbone']['base'] not in text

  def test_metrics(self, run):
    lines = writers.read_metrics(str(run / 'run' / writers.METRICS))
    found = {name for line in lines for name in line} - {'step'}
    for name in found:
      fitting = [n for n, form in PATTERNS.items() if form.fullmatch(name)]
      assert fitting, f'{name} is not in docs/runs.md'
    for name, form in PATTERNS.items():
      assert any(map(form.fullmatch, found)), f'{name} is never written'
    # The goal of a projector has no other term.
    for term in set(TERMS) - {'distance'}:
      assert f'train/{term}' in found

  def test_results(self, run):
    told = {'train': set(), 'eval': set()}
    for row in _rows('## results.json'):
      for command in _names(row[1]):
        told[command] |= set(_names(row[0]))
    for command, folder in (('train', 'run'), ('eval', 'eval')):
      content = json.loads((run / folder / 'results.json').read_text())
      assert set(content) == told[command]

  def test_few_shot(self, run):
    content = json.loads((run / 'run/few_shot.json').read_text())
    [row] = [r for r in _rows('## Files') if r[0] == '`few_shot.json`']
    told = set(_names(row[2])) - {'position', 'idx', 'target'}
    assert set(content) == told
    for examples in content['examples'].values():
      assert set(examples[0]) == {'position', 'idx', 'target'}
