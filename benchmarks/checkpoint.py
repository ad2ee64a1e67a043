r"""Saving a run: bytes, files and seconds.

  python -m benchmarks.checkpoint --model=small --num_tasks=6

Saves the state of a source run (prompts, their AdamW state, step and seed)
with the trainer's checkpointer, several times, and prints one line of JSON.
Moments are random, so that nothing compresses better than it would in a run.
"""

import json
import os
import statistics
import tempfile
import time

from benchmarks import measure


def main() -> None:
  parser = measure.parser(__doc__)
  flags = parser.parse_args()
  import jax
  import numpy as np

  from benchmarks import backbone
  from mpt_jax import methods, models
  from mpt_jax.checkpoints.run import RunCheckpointer
  from mpt_jax.engine import optimizers, partitioning, trainer

  config = backbone.make_config(flags.model)
  method = methods.MultitaskPrompts(flags.prompt_len)
  model = models.PromptedT5(config, method, flags.num_tasks)
  start = method.fresh(config, flags.num_tasks, jax.random.PRNGKey(flags.seed))
  optimizer = optimizers.Optimizer(
    optimizers.method_groups(method, 0.3, 0.1), schedule='constant'
  )
  state = trainer.make_state(
    model, optimizer, {'prompts': start}, 0, partitioning.make_mesh()
  )
  rng = np.random.default_rng(flags.seed)
  state = jax.tree.map(
    lambda x: (
      jax.device_put(rng.standard_normal(x.shape, np.float32), x.sharding)
      if x.dtype == np.float32
      else x
    ),
    state,
  )
  seconds = []
  with tempfile.TemporaryDirectory() as folder:
    checkpointer = RunCheckpointer(folder, max_to_keep=1)
    for step in range(1, flags.steps + 1):
      begin = time.perf_counter()
      checkpointer.save(state.replace(step=np.int32(step)), {'batches': step})
      seconds.append(time.perf_counter() - begin)
    checkpointer.close()
    last = os.path.join(folder, 'checkpoints', str(flags.steps))
    sizes = [
      os.path.getsize(os.path.join(parent, name))
      for parent, _, names in os.walk(last)
      for name in names
    ]
  print(
    json.dumps(
      {
        'system': 'mpt_jax',
        'model': flags.model,
        'num_tasks': flags.num_tasks,
        'prompt_len': flags.prompt_len,
        'bytes': sum(sizes),
        'files': len(sizes),
        'first_save_s': round(seconds[0], 3),
        'save_s_median': round(statistics.median(seconds[1:]), 3),
      }
    )
  )


if __name__ == '__main__':
  main()
