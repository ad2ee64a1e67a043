r"""What a training step holds in memory, per device, without any weights.

  python -m benchmarks.memory --model=t5_1_1_xxl --batch=32 --input_len=356 \
    --dtype=bfloat16 --scan_layers --remat_layers

Everything is worked out from shapes: the sizes of what is kept (backbone,
learned arrays, optimizer state) by `jax.eval_shape`, that of what a step needs
beside it ("temp") from XLA's memory analysis of the compiled step. No weight is
read or made, so that XXL can be measured on a laptop. Prints one line of JSON.

By default the step is compiled for this machine's CPU. XLA's CPU backend
widens bfloat16 to float32, and undoes part of what rematerialisation saves:
take its temp as an upper bound. With `--topology=v5e:2x4` it is compiled for
that TPU slice instead, which needs the package libtpu and no TPU.
"""

import argparse
import dataclasses
import json
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
import numpy as np

from benchmarks import measure as measure_lib
from mpt_jax import methods, models, t5
from mpt_jax.engine import optimizers, partitioning, trainer
from mpt_jax.engine import params as params_lib
from mpt_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Setting:
  """What is measured; lengths are S (prompt slots included) and T."""

  config: t5.T5Config
  batch: int = 32
  input_len: int = 356
  target_len: int = 16
  prompt_length: int = 100
  tasks: int = 6
  method: str = methods.MultitaskPrompts.name
  distill: bool = True
  packed: bool = False
  num_partitions: int = 1
  microbatches: int = 1
  scan_layers: bool = False
  shard_backbone: bool = False

  @property
  def learner(self) -> methods.Method:
    """The method, of its usual sizes."""
    kind = methods.get(self.method)
    given = {
      'length': self.prompt_length,
      'sources': tuple((f'source {i}', '') for i in range(6)),
    }
    has = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: v for name, v in given.items() if name in has})

  @property
  def model(self) -> models.PromptedT5:
    """The model of this setting."""
    kind = models.DistilledPromptedT5 if self.distill else models.PromptedT5
    return kind(self.config, self.learner, self.tasks)


def num_bytes(tree: PyTree) -> int:
  """Size of a tree of arrays or shapes, over all devices together."""
  return sum(
    int(np.prod(x.shape)) * jnp.dtype(x.dtype).itemsize
    for x in jax.tree.leaves(tree)
  )


def abstract_arguments(setting: Setting, mesh: Mesh) -> tuple[Any, ...]:
  """The arguments of the train step as shapes with shardings.

  Args:
    setting: what is measured.
    mesh: the mesh that they would lie on.

  Returns:
    (state, frozen, batch, totals) of `trainer.make_train_step`.
  """
  model, config = setting.model, setting.config
  everywhere = partitioning.replicated(mesh)

  def like(x: Any, sharding: NamedSharding = everywhere) -> Any:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  params: PyTree = params_lib.unflatten(
    {
      name: jax.ShapeDtypeStruct(shape, jnp.float32)
      for name, shape in t5.param_shapes(config).items()
    }
  )
  if branch := setting.learner.branch:
    shapes = setting.learner.shapes(config, setting.tasks)
    learned = {
      name: jax.ShapeDtypeStruct(shape, jnp.float32)
      for name, shape in shapes.items()
    }
    params[branch] = params_lib.unflatten(learned)
  trained, params = params_lib.split(params, setting.learner.trainable)
  if setting.distill:
    shape = (setting.tasks, setting.prompt_length, config.emb_dim)
    params['teacher_prompts'] = {
      'prompt_table': jax.ShapeDtypeStruct(shape, jnp.float32)
    }
  frozen = partitioning.place_backbone(
    params,
    mesh,
    dtype=config.dtype,
    scan_layers=setting.scan_layers,
    shard_backbone=setting.shard_backbone,
  )
  state = trainer.TrainState(
    step=jax.ShapeDtypeStruct((), jnp.int32),
    params=trained,
    opt_state=jax.eval_shape(_optimizer(setting).make(trained).init, trained),
    rng=jax.ShapeDtypeStruct((2,), jnp.uint32),
    bad_step=jax.ShapeDtypeStruct((), jnp.int32),
    bad_tasks=jax.ShapeDtypeStruct((model.num_tasks,), bool),
  )
  sides = {'encoder': setting.input_len, 'decoder': setting.target_len}
  features = {
    'encoder': ['input_tokens', 'prompt_slots', 'task_ids'],
    'decoder': ['target_tokens', 'input_tokens', 'loss_weights'],
  }
  rows = partitioning.batch_sharding(mesh)
  batch = {
    f'{side}_{name}': jax.ShapeDtypeStruct(
      (setting.batch, length), jnp.int32, sharding=rows
    )
    for side, length in sides.items()
    for name in features[side] + ['segment_ids'] * setting.packed
  }
  totals = jax.eval_shape(lambda: trainer.zero_metrics(model))
  return jax.tree.map(like, state), frozen, batch, jax.tree.map(like, totals)


def measure(setting: Setting, mesh: Mesh, compiled: bool = True) -> dict:
  """Sizes in bytes: of what is kept, and on each device of a step.

  Args:
    setting: what is measured.
    mesh: the mesh to compile for.
    compiled: whether to compile the step; without, only shapes are counted.

  Returns:
    `backbone_float32`, `backbone`, `learned` and `optimizer`, over all
    devices; if compiled `arguments`, `temp` and `output` per device (the
    output that is written over an argument left out) and the `seconds` that
    compiling took.
  """
  state, frozen, batch, totals = abstract_arguments(setting, mesh)
  backbone = sum(
    int(np.prod(s)) for s in t5.param_shapes(setting.config).values()
  )
  sizes = {
    'backbone_float32': 4 * backbone,
    'backbone': num_bytes(
      {
        k: v
        for k, v in frozen.items()
        if k not in ('teacher_prompts', setting.learner.branch)
      }
    ),
    'learned': num_bytes(state.params),
    'optimizer': num_bytes(state.opt_state),
  }
  if not compiled:
    return sizes
  step: Any = trainer.make_train_step(
    setting.model, _optimizer(setting), setting.microbatches
  )
  start = time.monotonic()
  stats = step.lower(state, frozen, batch, totals).compile().memory_analysis()
  return {
    **sizes,
    'arguments': stats.argument_size_in_bytes,
    'temp': stats.temp_size_in_bytes,
    'output': stats.output_size_in_bytes - stats.alias_size_in_bytes,
    'seconds': round(time.monotonic() - start, 1),
  }


def _optimizer(setting: Setting) -> optimizers.Optimizer:
  groups = optimizers.method_groups(setting.learner, 0.3, 0.1)
  return optimizers.Optimizer(groups, schedule='constant')


def work(setting: Setting, mesh: Mesh) -> dict[str, float]:
  """What a step computes and moves on each device, by XLA's own count.

  Counted on two and on three layers and carried on, as every further layer
  costs the same and XLA counts what is in a loop once.

  Args:
    setting: what is measured.
    mesh: the mesh to compile for.

  Returns:
    `flops`, floating-point operations, and `bytes`, those that XLA's operations
    read and write.
  """
  counted = []
  for layers in (2, 3):
    config = setting.config.replace(
      num_encoder_layers=layers, num_decoder_layers=layers
    )
    few = dataclasses.replace(setting, config=config, scan_layers=False)
    step: Any = trainer.make_train_step(few.model, _optimizer(few))
    compiled = step.lower(*abstract_arguments(few, mesh)).compile()
    cost = measure_lib.cost(compiled)
    counted.append((cost['flops'], cost['bytes accessed']))
  more = setting.config.num_encoder_layers - 2
  flops, moved = ([a, b - a] for a, b in zip(*counted, strict=True))
  return {
    'flops': flops[0] + more * flops[1],
    'bytes': moved[0] + more * moved[1],
  }


def devices(topology: str | None) -> list[Any]:
  if topology is None:
    return jax.devices()
  # There is no machine to ask what it is.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  os.environ.setdefault('TPU_WORKER_ID', '0')
  from jax.experimental import topologies

  return list(topologies.get_topology_desc(topology, 'tpu').devices)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--model', required=True, choices=list(t5.CONFIGS))
  parser.add_argument('--topology', help="TPU slice, such as 'v5e:2x4'")
  parser.add_argument('--devices', type=int, help='use so many; default all')
  parser.add_argument('--dtype', default='float32', choices=t5.config.DTYPES)
  parser.add_argument('--remat_layers', action='store_true')
  parser.add_argument('--shapes_only', action='store_true', help='no compiling')
  for field in dataclasses.fields(Setting):
    if field.type is bool:
      parser.add_argument(
        f'--{field.name}',
        action=argparse.BooleanOptionalAction,
        default=field.default,
      )
    elif field.type in (int, str):
      parser.add_argument(
        f'--{field.name}', type=field.type, default=field.default
      )
  flags = vars(parser.parse_args())
  config = t5.get_config(flags['model']).replace(
    dtype=flags['dtype'], remat_layers=flags['remat_layers'], dropout_rate=0.0
  )
  names = {f.name for f in dataclasses.fields(Setting)}
  setting = Setting(config, **{k: v for k, v in flags.items() if k in names})
  used = devices(flags['topology'])[: flags['devices']]
  mesh = partitioning.make_mesh(setting.num_partitions, used)
  partitioning.check_batch_size(setting.batch, mesh, setting.microbatches)
  sizes = measure(setting, mesh, not flags['shapes_only'])
  print(
    json.dumps(
      {
        'model': flags['model'],
        'compiled_for': flags['topology'] or used[0].platform,
        'mesh': 'x'.join(str(n) for n in mesh.shape.values()),
        **{k: v for k, v in flags.items() if k in names},
        'dtype': config.dtype,
        'remat_layers': config.remat_layers,
        **sizes,
      }
    )
  )


if __name__ == '__main__':
  main()
