"""Which source prompts are near a target's, and a start made of them.

Vu et al., "SPoT: Better Frozen Model Adaptation through Soft Prompt Transfer",
ACL 2022, sections 3.2 and 3.3. What is compared there are prompts that were
trained equally long (10,000 steps, with which similarity predicted transfer
best); what a target starts from are the sources' best prompts. Numbers are
float64.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpt_jax.types import InputError, nearest

METRICS = ('average', 'per_token', 'same_position')
NEGATIVE = ('refuse', 'clip', 'keep')
_LEAST_NORM = 1e-12


def features(prompt: Any, metric: str = 'average') -> np.ndarray:
  """Returns the vector of a prompt whose inner products are a similarity.

  Args:
    prompt: [P, D].
    metric: see `similarity`.

  Returns:
    [D] float64, or [P * D] for 'same_position'. A vector of zeros is like
    nothing: it stays 0.

  Raises:
    InputError: if there is no such metric, or this is no prompt.
  """
  if metric not in METRICS:
    raise InputError(
      f'metric is {metric!r}, expected one of {", ".join(METRICS)}'
      f'{nearest(str(metric), METRICS)}'
    )
  rows = np.asarray(prompt, np.float64)
  if rows.ndim != 2 or not rows.size or not np.isfinite(rows).all():
    raise InputError(
      f'an array of shape {rows.shape} is compared as a prompt: expected'
      ' [P, D], all finite'
    )
  if metric == 'average':
    return units(rows.mean(0))
  if metric == 'per_token':
    # The mean of all products is the product of the means.
    return units(rows).mean(0)
  return units(rows).ravel()


def units(rows: np.ndarray) -> np.ndarray:
  """Returns […, D] with each vector of length 1, or 0."""
  length = np.linalg.norm(rows, axis=-1, keepdims=True)
  return rows / np.maximum(length, _LEAST_NORM)


def similarity(
  sources: Sequence[Any] | np.ndarray, target: Any, metric: str = 'average'
) -> np.ndarray:
  """Returns how near each source prompt is to a target's.

  Args:
    sources: N prompts [P, D].
    target: [P, D].
    metric: 'average' (cosine of the means of the P vectors) or 'per_token'
      (mean of the cosines of all P x P pairs), as SPoT has them; or
      'same_position' (sum of the cosines at the P positions), as the SPoT
      baseline in ATTEMPT's code has it.

  Returns:
    [N] float64.

  Raises:
    InputError: if there is no source or no such metric, or the prompts are of
      different widths, or of different lengths with 'same_position'.
  """
  wanted = features(target, metric)
  rows = [features(source, metric) for source in sources]
  if not rows:
    raise InputError('there are no source prompts to compare')
  for source, row in zip(sources, rows, strict=True):
    if row.shape != wanted.shape:
      raise InputError(
        f'a source prompt {np.shape(source)} cannot be compared with the'
        f' target {np.shape(target)} by {metric!r}'
      )
  return np.stack(rows) @ wanted


def rank(similarities: Any) -> np.ndarray:
  """Returns the sources [N] int, the nearest first; of equals the first."""
  return np.argsort(-_similarities(similarities), kind='stable')


def weights(
  similarities: Any, k: int | None = None, negative: str = 'refuse'
) -> np.ndarray:
  """Returns the shares of the nearest sources in a start: sim / sum of sims.

  Args:
    similarities: [N].
    k: of how many sources, the nearest ones; None is all.
    negative: what becomes of a similarity below 0, of which the paper says
      nothing. 'refuse' it, 'clip' it to 0, or 'keep' the formula: shares then
      lie outside of 0..1.

  Returns:
    [N] float64 that sum to 1; 0 for the others.

  Raises:
    InputError: if `k` is no number of sources, or the similarities give no
      shares.
  """
  sims = _similarities(similarities)
  k = len(sims) if k is None else k
  if not 1 <= k <= len(sims):
    raise InputError(f'k is {k}, and there are {len(sims)} sources')
  if negative not in NEGATIVE:
    raise InputError(
      f'negative is {negative!r}, expected one of {", ".join(NEGATIVE)}'
      f'{nearest(str(negative), NEGATIVE)}'
    )
  best = rank(sims)[:k]
  chosen = np.zeros_like(sims)
  chosen[best] = sims[best]
  if negative == 'refuse' and (chosen < 0).any():
    raise InputError(
      f'{(chosen < 0).sum()} of the {k} nearest sources have a similarity below'
      f" 0 ({chosen.min():.3g}): take fewer, or give negative = 'clip'"
    )
  if negative == 'clip':
    chosen = np.maximum(chosen, 0.0)
  total = chosen.sum()
  if total == 0:
    raise InputError(
      f'the similarities of the {k} nearest sources sum to 0, which gives no'
      ' shares'
    )
  return chosen / total


def weighted_prompt(prompts: Any, shares: Any) -> np.ndarray:
  """Returns the mean [P, D] float64 of N prompts, weighted.

  Args:
    prompts: [N, P, D], the prompts to start from.
    shares: [N], see `weights`.

  Raises:
    InputError: if there are not as many prompts as shares.
  """
  values, by = (np.asarray(x, np.float64) for x in (prompts, shares))
  if values.ndim != 3 or by.shape != values.shape[:1]:
    raise InputError(
      f'prompts of shape {values.shape} and shares of shape {by.shape}:'
      ' expected [N, P, D] and [N]'
    )
  return np.tensordot(by, values, axes=1)


def _similarities(values: Any) -> np.ndarray:
  sims = np.asarray(values, np.float64)
  if sims.ndim != 1 or not sims.size or not np.isfinite(sims).all():
    raise InputError(
      f'similarities of shape {sims.shape}: expected [N], all finite'
    )
  return sims
