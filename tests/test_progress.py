"""What a run says about its pace."""

import numpy as np
import pytest

from mpt_jax.engine import trainer
from mpt_jax.study import progress as study_progress
from mpt_jax.study.steps import Step


def test_counts_examples_and_not_rows():
  progress = trainer.Progress(total=10)
  progress.count({'decoder_target_tokens': np.ones((4, 3))})
  segments = np.array([[1, 1, 2, 3], [1, 2, 2, 0]])
  progress.count(
    {'decoder_target_tokens': segments, 'decoder_segment_ids': segments}
  )
  rates = progress.rates(step=2)
  ratio = rates['examples_per_second'] / rates['steps_per_second']
  np.testing.assert_allclose(ratio, (4 + 3 + 2) / 2, rtol=1e-2)


def test_durations_are_readable():
  assert trainer.format_seconds(12.4) == '12s'
  assert trainer.format_seconds(185) == '3m05s'
  assert trainer.format_seconds(3720) == '1h02m'
  assert trainer.format_seconds(float('inf')) == '?'


class Clock:
  """Tells a time that the test sets."""

  def __init__(self):
    self.now = 1000.0

  def __call__(self):
    return self.now


def _progress(**kwargs):
  clock = Clock()
  return trainer.Progress(clock=clock, **kwargs), clock


def test_compiling_saving_and_evaluating_are_outside_the_clock():
  progress, clock = _progress(total=100, eval_period=30)
  clock.now += 5  # ten steps
  assert progress.rates(10)['steps_per_second'] == 2
  clock.now += 40  # a new shape of a part
  progress.exclude(40)
  assert progress.rates(10)['steps_per_second'] == 2
  with progress.outside():
    clock.now += 7  # a checkpoint
  clock.now += 10
  with progress.outside(evaluation=True):
    clock.now += 13
  rates = progress.rates(30)
  assert rates['steps_per_second'] == 2
  # 70 steps, and evaluations at 60, 90 and 100.
  assert rates['seconds_left'] == 70 / 2 + 3 * 13
  assert progress.rates(100)['seconds_left'] == 0


@pytest.mark.parametrize(
  ('step', 'period', 'left'),
  [(0, 10, 4), (9, 10, 4), (10, 10, 3), (39, 10, 1), (39, 40, 1), (5, None, 0)],
)
def test_evaluations_to_come(step, period, left):
  progress, _ = _progress(total=40, eval_period=period)
  assert progress._evaluations_left(step) == left


@pytest.mark.parametrize(
  ('rate', 'text'),
  [
    (12.345, '12.3 steps/s'),
    (1.0, '1.0 steps/s'),
    (0.6, '1.7 s/step'),
    (0.01, '100.0 s/step'),
    (0.0, '? s/step'),
  ],
)
def test_the_unit_of_slow_steps(rate, text):
  assert trainer.format_rate(rate) == text


def test_a_line_of_a_slow_run(caplog):
  progress, clock = _progress(total=10)
  clock.now += 17
  with caplog.at_level('INFO'):
    progress.maybe_print(10, 'loss 1', force=True)
  assert '1.7 s/step' in caplog.text
  assert 'ETA 0s' in caplog.text


def test_a_pipeline_counts_what_running_steps_have_done(tmp_path, monkeypatch):
  clock = Clock()
  monkeypatch.setattr(study_progress.time, 'monotonic', clock)
  steps = [
    Step(
      name=name,
      entry='train',
      gin_files=(),
      macros={},
      cost=cost,
      likeness='all',
      labels={'steps': 100},
    )
    for name, cost in (('a', 3000.0), ('b', 1000.0), ('c', 1000.0))
  ]
  # Of b an earlier call has done half.
  (tmp_path / 'b').mkdir()
  metrics = tmp_path / 'b/metrics.jsonl'
  metrics.write_text('{"step": 25}\n{"step": 50}\n{"st')
  monkeypatch.setattr(study_progress, '_COMPILATION_COST', 500.0)
  progress = study_progress.Progress(4, steps, str(tmp_path))
  a, b, c = steps
  assert progress.seconds_left([a, b]) == float('inf')
  clock.now += 30
  # 2000 of all 5000 are done: half of a, and the program that all share.
  (tmp_path / 'a').mkdir()
  (tmp_path / 'a/metrics.jsonl').write_text('{"step": 50}\n')
  assert progress.seconds_left([a, b]) == pytest.approx(30 * 3000 / 2000)
  metrics.write_text('{"step": 100}\n')
  progress.finish(b)
  clock.now += 30
  assert progress.seconds_left([a, c]) == pytest.approx(60 * 2500 / 2500)
