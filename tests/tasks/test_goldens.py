"""Texts, postprocessed values and metrics, exactly as T5 makes them.

The goldens come from the t5 package (see testdata/tasks/README.md). Users
compare scores across code bases, so a space or a capital letter matters.
"""

import json
import math
import pathlib

import pytest
import seqio
import tensorflow_datasets as tfds

import tasks  # noqa: F401

pytestmark = pytest.mark.data

FOLDER = pathlib.Path(__file__).parents[1] / 'testdata/tasks'
NAMES = sorted(path.stem for path in FOLDER.glob('*.jsonl'))


def _lines(name):
  text = (FOLDER / f'{name}.jsonl').read_text()
  # Not splitlines(): the texts hold exotic line separators.
  lines = [json.loads(line) for line in text.strip().split('\n')]
  return lines[0], lines[1:]


def _plain(value):
  """NumPy and bytes to what JSON has."""
  if isinstance(value, bytes):
    return value.decode()
  if hasattr(value, 'tolist'):
    return _plain(value.tolist())
  if isinstance(value, list | tuple):
    return [_plain(v) for v in value]
  if isinstance(value, dict):
    return {k: _plain(v) for k, v in value.items()}
  return value


@pytest.mark.parametrize('name', NAMES)
def test_golden(name, write_tfds):
  meta, lines = _lines(name)
  task = seqio.TaskRegistry.get(name)
  assert task.source.tfds_name == meta['tfds_name']
  raw, expected = [], []
  for line in lines:
    if line['kind'] == 'preprocess':
      raw.append(line['raw'])
      expected.extend(line['expected'])
    else:
      raw.extend(line['raw'])
      expected.extend(line['examples'])
  assert len(lines) > 5
  folder = write_tfds(meta['tfds_name'], {'train': raw})
  builder = tfds.builder(meta['tfds_name'], data_dir=folder)
  ds = task.preprocessors[0](builder.as_dataset(split='train'))
  assert [_plain(e) for e in ds.as_numpy_iterator()] == expected

  for line in lines:
    if line['kind'] == 'metrics':
      _check_metrics(task, line)


def _check_metrics(task, line):
  examples = [
    {
      **example,
      'inputs_pretokenized': example['inputs'].encode(),
      'targets_pretokenized': example['targets'].encode(),
    }
    for example in line['examples']
  ]
  targets = [
    task.postprocess_fn(e['targets'], example=e, is_target=True)
    for e in examples
  ]
  predictions = [
    task.postprocess_fn(text, example=e, is_target=False)
    for text, e in zip(line['predictions'], examples, strict=True)
  ]
  assert _plain(targets) == line['postprocessed_targets'], line['id']
  assert _plain(predictions) == line['postprocessed_predictions'], line['id']
  found = {}
  for metric in task.metric_fns:
    found.update(metric(targets, predictions))
  # Ours also say how many outputs are no valid answer.
  assert set(found) == {*line['metrics'], 'invalid'}, line['id']
  for key, value in line['metrics'].items():
    if value == 'nan':
      assert math.isnan(found[key]), line['id']
    else:
      assert found[key] == pytest.approx(value, abs=1e-6), line['id']
