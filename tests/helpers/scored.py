"""Small tasks in memory and prompts of the tiny served backbone."""

import numpy as np

import mpt_jax
from mpt_jax.checkpoints.bundle import PromptBundle
from mpt_jax.engine.settings import Examples
from tests.helpers import tiny

P, D = 4, tiny.SERVED.emb_dim
LENGTHS = {'inputs': 84, 'targets': 10}
WORDS = 'film food hotel music river garden window teacher'.split()
SOURCES = 'abc'


def rows(count, seed):
  """Rows of words, of classes 0 and 1 in turn."""
  rng = np.random.default_rng(seed)
  return [
    {'text': ' '.join(rng.choice(WORDS, rng.integers(2, 16))), 'label': i % 2}
    for i in range(count)
  ]


TASKS = {
  'moods': mpt_jax.Task(
    test=rows(23, 0), inputs='review: {text}', labels=('bad', 'good')
  ),
  'kinds': mpt_jax.Task(
    test=rows(18, 1),
    inputs='kind: {text}',
    targets='so {label}',
    labels=tuple('abcdefgh'),
  ),
  'names': mpt_jax.Task(
    test=[{**row, 'word': WORDS[i % 8]} for i, row in enumerate(rows(11, 2))],
    inputs='first: {text}',
    targets='{word}',
  ),
}

EXAMPLES = Examples('', 'test', LENGTHS, module=None)


def bundle():
  """Three prompts of MPT, far from each other."""
  rng = np.random.default_rng(5)
  return PromptBundle(
    'multitask',
    'source',
    tuple(SOURCES),
    {
      'shared_prompt': rng.normal(size=(P, D)),
      'task_u': 2 * rng.normal(size=(3, P, 1)),
      'task_v': 2 * rng.normal(size=(3, 1, D)),
    },
    backbone_fingerprint=tiny.served().fingerprint,
  )
