"""The metrics of tasks that name none, in percent; they need no library.

`tasks/metrics.py` has the others.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpt_jax.engine.metrics import metric


def _share_equal(targets: Sequence[Any], predictions: Sequence[Any]) -> float:
  pairs = zip(targets, predictions, strict=True)
  return 100 * float(np.mean([target == said for target, said in pairs]))


@metric()
def accuracy(
  targets: Sequence[int], predictions: Sequence[int]
) -> dict[str, float]:
  """Returns the share of right answers.

  Args:
    targets: class ids.
    predictions: likewise, -1 for an invalid output.
  """
  return {'accuracy': _share_equal(targets, predictions)}


@metric()
def exact_match(
  targets: Sequence[str], predictions: Sequence[str]
) -> dict[str, float]:
  """Returns the share of outputs that are the target, letter by letter.

  Args:
    targets: texts.
    predictions: the outputs as decoded.
  """
  return {'exact_match': _share_equal(targets, predictions)}
