"""The batches that training packs: same loss and gradients as unpacked ones.

The unpacked batch is laid out by the plain loop of `tests/test_models.py`,
which shares no code with the data layer.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from mpt_jax.engine import batching
from tests import test_models as models_test
from tests.test_models import P

backbone = models_test.backbone
student = models_test.student


def pack(examples, rows):
  packer = batching.Packer(rows, 47, 13, P, pack=True)
  for row, inputs, targets in examples:
    added = packer.add(
      batching.Example(np.array(inputs), np.array(targets), row)
    )
    assert added, 'the rows are too few for this test'
  return {k: jnp.asarray(v) for k, v in packer.finish().items()}


@pytest.mark.parametrize(
  'layers', ['last', pytest.param('all', marks=pytest.mark.slow)]
)
def test_packed_batch_equals_unpacked(backbone, student, layers):
  examples = models_test.make_examples(24, seed=4)
  packed = pack(examples, rows=10)
  assert int(packed['encoder_segment_ids'].max()) > 2
  settings = {'hidden_layers': layers}
  (want, terms), grads = models_test._loss_and_grads(
    backbone, student, models_test.unpack(examples), **settings
  )
  (got, packed_terms), packed_grads = models_test._loss_and_grads(
    backbone, student, packed, **settings
  )
  np.testing.assert_allclose(got, want, atol=1e-5)
  for name, (sums, weights) in terms.items():
    np.testing.assert_array_equal(packed_terms[name][1], weights)
    np.testing.assert_allclose(
      packed_terms[name][0] / weights,
      sums / weights,
      atol=1e-5,
      err_msg=name,
    )
  for name, grad in grads.items():
    np.testing.assert_allclose(
      packed_grads[name], grad, atol=1e-5, err_msg=name
    )
