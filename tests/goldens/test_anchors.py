"""The search by anchors against float64 numbers of others."""

import functools

import jax
import numpy as np
import pytest

from mpt_jax.transfer import anchors
from tests import goldens

GOLDENS = goldens.of('anchors')
CASES = 'full', 'top', 'two'


def _case(io, case):
  """What a loss compares: source codes and the mask."""
  first = anchors.relative(io['prompt'], io['source_anchors'])
  if case == 'full':
    return [first], None
  top = int(io['top_mask'].sum(1)[0])
  if case == 'top':
    return [first], anchors.top_mask(first, top)
  second = anchors.relative(io['prompt_2'], io['source_anchors_2'])
  return [first, second], anchors.top_mask(second, top)


def _double(golden):
  return {
    name: value.astype(np.float64) if value.dtype.kind == 'f' else value
    for name, value in golden.io.items()
  }


@pytest.mark.parametrize('golden', GOLDENS)
def test_codes_masks_and_standardisation(golden):
  io = _double(golden)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
  with jax.enable_x64():
    first, mask = _case(io, 'top')
    close(first[0], io['relative'])
    np.testing.assert_array_equal(mask, io['top_mask'])
    close(first[0] * mask, io['relative_top'])
    (first, second), mask = _case(io, 'two')
    close(second, io['relative_2'])
    close(second * mask, io['relative_2_top'])
    close(first * mask, io['relative_1_masked_by_2'])
    embedding = io['target_embedding']
    close(embedding.mean(), io['target_mean'])
    close(embedding.std(), io['target_std'])
    start = anchors.standardised(
      io['start'], io['target_mean'], io['target_std']
    )
    close(start, io['standardised_start'])
    rows = embedding[io['anchor_rows']]
    close(anchors.relative(start, rows), io['target_relative_start'])


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('golden', GOLDENS)
def test_losses_gradients_and_curves(golden, case, dtype):
  exact = dtype == np.float64
  io = _double(golden) if exact else golden.io
  with jax.enable_x64(exact):
    codes, mask = _case(io, case)
    rows = io['target_embedding'][io['anchor_rows']]

    @jax.jit
    def run(start):
      start = anchors.standardised(
        start, dtype(io['target_mean']), dtype(io['target_std'])
      )
      return anchors.loss(start, rows, codes, mask)

    value, gradient = jax.value_and_grad(run)(io['start'])
    rtol = 1e-9 if exact else 1e-5
    np.testing.assert_allclose(value, io[f'loss_{case}'], rtol=rtol)
    want = io[f'grad_{case}']
    scale = np.abs(want).max() * (1e-9 if exact else 1e-4)
    np.testing.assert_allclose(gradient, want, rtol=0, atol=scale)

    curve = io[f'adam_curve_{case}']
    number = 2 if case == 'two' else 1
    found = anchors.search(
      [io['prompt'], io['prompt_2']][:number],
      [io['source_anchors'], io['source_anchors_2']][:number],
      rows,
      io['target_embedding'],
      top=None if case == 'full' else int(io['top_mask'].sum(1)[0]),
      steps=len(curve),
      start=io['start'],
    )
    np.testing.assert_allclose(found.losses, curve, rtol=1e-4)
    assert found.step == len(curve)
    spread = [found.prompt.mean(), found.prompt.std(ddof=1)]
    np.testing.assert_allclose(
      spread, [io['target_mean'], io['target_std']], atol=1e-5
    )
