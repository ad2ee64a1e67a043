"""A target starts from source prompts as PEFT starts it."""

import jax
import numpy as np
import pytest

from mpt_jax import methods
from mpt_jax.checkpoints.bundle import PromptBundle
from tests import goldens


@pytest.mark.parametrize('start', ['average', 'shared', 'exact'])
@pytest.mark.parametrize('golden', goldens.of('peft_start'))
def test_start_equals_peft(golden, start):
  io = goldens.arrays(golden.file)
  columns = io['source__prefix_task_cols']
  source = PromptBundle(
    method='multitask',
    stage='imported',
    task_names=tuple(
      f't{k}' for k in range(len(io['source__prefix_task_cols']))
    ),
    arrays={
      'shared_prompt': io['source__prompt_embeddings'],
      'task_u': columns,
      'task_v': io['source__prefix_task_rows'],
    },
  )
  length, width = io['source__prompt_embeddings'].shape
  chosen = f'task:t{io["exact_task"]}' if start == 'exact' else start
  method = methods.MultitaskPrompts(length, source.rank, start=chosen)
  found = method.initial(
    methods.Width(width),
    1,
    methods.Start(jax.random.PRNGKey(0), 'target', source=source),
  )
  # PEFT draws the factors of `shared`; ours are ones.
  for name in ('shared_prompt', 'task_u', 'task_v')[
    : 1 if start == 'shared' else 3
  ]:
    np.testing.assert_allclose(
      found[name], io[f'{start}__{name}'], rtol=1e-6, err_msg=name
    )
