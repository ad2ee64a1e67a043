"""What a run writes as it goes: names, tags, and events for TensorBoard."""

import json
import math
import struct
import subprocess
import sys

import pytest

from mpt_jax.engine import metrics, writers

TRAIN = {
  'train/loss': 1.5,
  'train/z_loss': 0.0,
  'train/z_loss/rte': 0.0,
  'train/kl': 0.5,
  'train/kl/rte': 0.25,
  'train/cross_entropy/a/b': 2.0,
  'train/target_tokens/rte': 64.0,
  'train/steps_per_second': 3.0,
  'train/examples_per_second': 96.0,
  'train/seconds_left': 7.0,
  'train/learning_rate/prompts/shared_prompt': 0.3,
  'train/learning_rate/prompts/task_[uv]': 0.4,
  'train/learning_rate/.*': 0.1,
  'train/examples/rte': 320.0,
}
EVAL = {
  'eval_loss/loss': 1.25,
  'eval_loss/cross_entropy/rte': 1.0,
  'eval_loss/target_tokens/rte': 64.0,
  'eval/rte/accuracy': 60.0,
  'eval/mrpc/f1': 80.0,
  'eval/mrpc/invalid': 3.0,
  'floor/rte/commonest': 55.0,
  'floor/rte/majority': 52.0,
  'floor/rte/collapsed': 0.0,
  'floor/mrpc/invalid': 4.0,
}


def test_tags_of_training():
  rates = {
    'rates/shared_prompt': 0.3,
    'rates/task_[uv]': 0.4,
    'rates/.*': 0.1,
  }
  others = {
    'train/loss': 1.5,
    'train/kl': 0.5,
    'train/rte/kl': 0.25,
    'train/a/b/cross_entropy': 2.0,
    'data/rte/target_tokens': 64.0,
    'data/rte/examples': 320.0,
    'speed/steps_per_second': 3.0,
    'speed/examples_per_second': 96.0,
    'speed/seconds_left': 7.0,
  }
  assert writers.tags(TRAIN) == {**others, **rates}
  # What is the same at every step is no curve.
  assert writers.tags(TRAIN, fixed=True) == others


def test_tags_of_an_evaluation():
  assert writers.tags(EVAL) == {
    'eval_loss/loss': 1.25,
    'eval_loss/rte/cross_entropy': 1.0,
    'eval/rte/accuracy': 60.0,
    'eval/mrpc/f1': 80.0,
    'eval/mrpc/invalid': 3.0,
    'eval/rte/commonest': 55.0,
    'eval/rte/collapsed': 0.0,
    'eval/mean': 70.0,
  }


@pytest.mark.parametrize(
  ('scores', 'mean'),
  [
    ({'a/accuracy': 50.0}, 50.0),
    ({'a/accuracy': 50.0, 'b/matthews_corrcoef': 20.0}, 35.0),
    # An undefined correlation counts as it does in a study.
    ({'a/accuracy': 50.0, 'b/matthews_corrcoef': math.nan}, 25.0),
    ({'a/accuracy': 50.0, 'b/wer': 20.0}, None),
    ({'a/accuracy': 50.0, 'b/perplexity': 20.0}, None),
    ({'a/accuracy': 50.0, 'b/mine': 20.0}, None),
    ({'a/mine': 20.0}, None),
    ({}, None),
  ],
)
def test_a_mean_of_what_can_be_averaged(scores, mean):
  scalars = {f'eval/{name}': value for name, value in scores.items()}
  found = writers.tags(scalars)
  assert found.pop('eval/mean', None) == mean
  assert found.keys() == scalars.keys()


def test_a_mean_of_what_tasks_say_themselves():
  said = {'a': {'mine': metrics.Metric('more')}}
  scalars = {'eval/a/mine': 20.0, 'eval/b/accuracy': 50.0}
  assert writers.tags(scalars, said)['eval/mean'] == 35.0
  less = {'a': {'mine': metrics.Metric('less')}}
  assert 'eval/mean' not in writers.tags(scalars, less)


def _events(path):
  """The events of a file, by TensorFlow's format of records."""
  from tensorboard.compat.proto import event_pb2

  content, found = path.read_bytes(), []
  while content:
    [length] = struct.unpack('<Q', content[:8])
    found.append(event_pb2.Event.FromString(content[12 : 12 + length]))
    content = content[16 + length :]
  return found


def test_a_runs_files(tmp_path):
  writer = writers.make_writer(str(tmp_path), 0, writers.tags)
  writer.write_scalars(5, TRAIN)
  writer.write_scalars(10, EVAL)
  writer.close()
  # The line of step 10 will be written again.
  writer = writers.make_writer(str(tmp_path), 5, writers.tags)
  writer.write_scalars(10, {'eval/rte/accuracy': 61.0})
  writer.close()
  lines = (tmp_path / writers.METRICS).read_text().splitlines()
  assert [json.loads(line) for line in lines] == [
    {'step': 5, **TRAIN},
    {'step': 10, 'eval/rte/accuracy': 61.0},
  ]
  first, second = sorted((tmp_path / writers.TENSORBOARD).iterdir())
  told = [
    (event.step, {v.tag: v.simple_value for v in event.summary.value})
    for event in _events(first)
  ]
  assert told[:2] == [(0, {}), (1, {})]
  assert told[2:] == [
    (5, pytest.approx(writers.tags(TRAIN))),
    (10, pytest.approx(writers.tags(EVAL))),
  ]
  version, start, *_ = _events(second)
  assert version.file_version == 'brain.Event:2'
  # TensorBoard forgets what it has from here on.
  assert (start.step, start.session_log.status) == (6, 1)


def test_metrics_alone(tmp_path):
  writer = writers.make_writer(str(tmp_path), 0, None)
  writer.write_scalars(1, {'train/loss': 2})
  writer.close()
  assert [path.name for path in tmp_path.iterdir()] == [writers.METRICS]


def test_events_need_no_tensorflow(tmp_path):
  subprocess.run(
    [
      sys.executable,
      '-c',
      'import sys\n'
      'from mpt_jax.engine import writers\n'
      f'writer = writers.make_writer({str(tmp_path)!r}, 0, writers.tags)\n'
      "writer.write_scalars(1, {'train/loss': 2.0})\n"
      "assert 'tensorflow' not in sys.modules\n",
    ],
    check=True,
  )


@pytest.mark.slow
def test_tensorboard_shows_it(tmp_path):
  from tensorboard.backend.event_processing import event_accumulator

  for resume, steps, loss in ((0, (5, 10, 15), 3.0), (5, (10,), 2.0)):
    writer = writers.make_writer(str(tmp_path), resume, writers.tags)
    for step in steps:
      writer.write_scalars(step, {'train/loss': loss})
    writer.close()
  seen = event_accumulator.EventAccumulator(
    str(tmp_path / writers.TENSORBOARD)
  ).Reload()
  points = seen.Scalars('train/loss')
  assert [point.step for point in points] == [5, 10]
