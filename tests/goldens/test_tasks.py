"""Texts, postprocessed values and metrics, exactly as T5 makes them.

The goldens come from the t5 package (see testdata/tasks/README.md). Users
compare scores across code bases, so a space or a capital letter matters.
"""

import functools
import json
import math

import pytest
import seqio
import tensorflow_datasets as tfds

from mpt_jax.data import sources
from tasks import hub_source, metrics
from tasks.table import TABLE
from tests import goldens

pytestmark = pytest.mark.data

# T5's formats of one data set -> our task and split.
WSC = {
  'wsc_simple_train': ('wsc', 'train'),
  'wsc_simple_eval': ('wsc', 'validation'),
  'wsc_classification': ('wsc_classification', 'validation'),
}


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


def _formats(golden):
  """T5 may have several formats of one data set."""
  lines = goldens.lines_of(golden.file)[1:]
  return sorted({line.get('variant', '') for line in lines})


@pytest.mark.parametrize(('golden', 'variant'), goldens.of('task', _formats))
@pytest.mark.parametrize('kept', ['tfds', 'hub'])
def test_golden(golden, variant, kept, write_tfds, write_hub):
  meta, *lines = goldens.lines_of(golden.file)
  lines = [line for line in lines if line.get('variant', '') == variant]
  name, split = WSC.get(variant, (meta['task'], 'train'))
  write = write_tfds if kept == 'tfds' else write_hub
  _check(name, split, meta['tfds_name'], lines, write)


def _read(tfds_name, folder):
  """The rows in the folder, whichever of the two it is."""
  if sources.hub_dir() is None:
    return tfds.builder(tfds_name, data_dir=folder).as_dataset(split='train')
  return hub_source.dataset(
    hub_source.HubSplits(folder, tfds_name).read('train')
  )


def _check(name, split, tfds_name, lines, write):
  task = seqio.TaskRegistry.get(name)
  assert task.source.tfds_name == tfds_name
  raw, expected = [], []
  for line in lines:
    if line['kind'] == 'preprocess':
      raw.append(line['raw'])
      expected.extend(line['expected'])
    else:
      raw.extend(line['raw'])
      expected.extend(line['examples'])
  assert raw
  ds = _read(tfds_name, write(tfds_name, {'train': raw}))
  if split == 'train' and TABLE[name].train_filter is not None:
    ds = ds.filter(TABLE[name].train_filter)
  ds = task.preprocessors[0](ds)
  found = [_plain(e) for e in ds.as_numpy_iterator()]
  if sources.hub_dir() is not None:
    # Its rows are put into the order in which TFDS's builder stores them.
    as_text = functools.partial(json.dumps, sort_keys=True)
    assert sorted(map(as_text, found)) == sorted(map(as_text, expected))
    return
  assert found == expected

  for line in lines:
    if line['kind'] == 'metrics':
      _check_metrics(task, line)


NLG = {'bleu': metrics.bleu, 'rouge': metrics.rouge_l}


@pytest.mark.parametrize('golden', goldens.of('metrics'))
def test_nlg_metrics(golden):
  meta, *lines = goldens.lines_of(golden.file)
  assert lines
  assert len({line['kind'] for line in lines}) == len(meta['metric_names'])
  for line in lines:
    found = NLG[line['kind']](line['references'], line['predictions'])
    assert found == pytest.approx(line['metrics'], abs=1e-6), line['id']


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
  # Ours also say what the outputs are like.
  more = set(found) - set(line['metrics'])
  assert more == {'invalid'}, line['id']
  for key, value in line['metrics'].items():
    if value == 'nan':
      assert math.isnan(found[key]), line['id']
    else:
      assert found[key] == pytest.approx(value, abs=1e-6), line['id']
