"""What a run says about its pace."""

import numpy as np

from mpt_jax import trainer


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
