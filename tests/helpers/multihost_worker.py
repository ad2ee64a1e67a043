"""One of several processes that train the tiny model; run by the tests.

  python -m tests.helpers.multihost_worker '{"process_index": 0, …}'

Trains without TensorFlow, SeqIO or gin, so that it starts in seconds.
"""

import dataclasses
import json
import os
import sys

import jax
import numpy as np

from mpt_jax.checkpoints.run import RunCheckpointer
from mpt_jax.engine import multihost, optimizers, partitioning, trainer
from mpt_jax.engine import params as params_lib
from mpt_jax.types import InputError
from tests.helpers import tiny

STEPS, PERIOD, ROWS = 6, 3, 8
# Every sharded axis divides by four.
CONFIG = dataclasses.replace(
  tiny.CONFIG, vocab_size=40, num_heads=4, head_dim=7, mlp_dim=24
)


class Part:
  """A process's rows of the batches of one stream, as the data layer cuts."""

  def __init__(self, part, parts):
    self._batches = tiny.Batches(ROWS, config=CONFIG)
    rows = ROWS // parts
    self._rows = slice(part * rows, (part + 1) * rows)
    self.get_state = self._batches.get_state
    self.set_state = self._batches.set_state

  def __iter__(self):
    return self

  def __next__(self):
    return {k: v[self._rows] for k, v in next(self._batches).items()}


class Losses:
  def __init__(self):
    self.all = []

  def write_scalars(self, step, scalars):
    self.all.append([step, scalars['train/loss']])


def train(folder, num_partitions=1, steps=STEPS, devices=None):
  """Trains in a folder, from its newest checkpoint on.

  Returns:
    (parameters by name, [[step, loss], …]).
  """
  mesh = partitioning.make_mesh(num_partitions, devices)
  model, tree = tiny.stage_model('source', CONFIG)
  optimizer = optimizers.Optimizer(
    optimizers.method_groups(model.method, 0.3, 0.1),
    total_steps=STEPS,
  )
  trained, frozen = params_lib.split(tree, tiny.PROMPTS)
  state = trainer.make_state(model, optimizer, trained, 0, mesh)
  batches = Part(*partitioning.data_part(mesh))
  checkpointer = RunCheckpointer(str(folder), max_to_keep=None)
  step = multihost.on_first(checkpointer.latest_step)
  if step is not None:
    state, position = checkpointer.restore(state, step)
    batches.set_state(position)
  losses = Losses()
  state = trainer.fit(
    trainer.Training(model, optimizer, mesh, ['a', 'b', 'c']),
    state,
    partitioning.shard_params(frozen, mesh),
    batches,
    steps,
    trainer.Periods(log=1, checkpoint=PERIOD),
    trainer.Hooks(checkpointer=checkpointer, writer=losses),
  )
  checkpointer.close()
  params = params_lib.flatten(partitioning.to_host(state.params))
  return params, losses.all


def refusal(work):
  """What an InputError of `work` says."""
  try:
    work()
  except InputError as e:
    return str(e)
  return ''


def main(settings):
  several = settings['process_count'] > 1
  if several:
    multihost.initialize(
      settings['coordinator_address'],
      settings['process_count'],
      settings['process_index'],
    )
  mine = jax.process_index()
  facts = {'devices': jax.device_count(), 'losses': {}, 'parts': {}}
  for name, num_partitions in settings['runs'].items():
    folder = os.path.join(settings['folder'], name)
    params, losses = train(folder, num_partitions)
    facts['losses'][name] = losses
    facts['parts'][name] = partitioning.data_part(
      partitioning.make_mesh(num_partitions)
    )
    np.savez(f'{folder}.{mine}.npz', **params)
  if several:
    facts['on_first'] = multihost.on_first(lambda: ['of', mine])
    facts['raised'] = refusal(
      lambda: multihost.on_first(lambda: partitioning.make_mesh(3))
    )
    facts['same'] = refusal(
      lambda: multihost.check_same('code version', {'digest': 'ä' * 2000})
    )
    facts['another'] = refusal(
      lambda: multihost.check_same('code version', {'a': 1, 'digest': mine})
    )
    facts['uneven'] = refusal(
      lambda: multihost.raise_together('no disk' if mine else '')
    )
  path = os.path.join(settings['folder'], f'facts.{jax.device_count()}.{mine}')
  with open(path, 'w') as f:
    json.dump(facts, f)
  multihost.finish()


if __name__ == '__main__':
  main(json.loads(sys.argv[1]))
