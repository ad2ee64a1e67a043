r"""One training step of mpt_jax on random weights, as the trainer runs it.

  python -m benchmarks.step --model=small --batch=8 --input_len=128 \
    --prompt_len=100 --target_len=8 --precision=bfloat16 --distill
  python -m benchmarks.step --method=lora --num_tasks=1
  python -m benchmarks.step --batch=32 --input_len=256 --lengths \
    --padding=bucket

Prints one line of JSON: seconds and CPU seconds a step, examples and tokens
(without prompts and padding) a second, seconds to compile, peak memory, XLA's
scratch memory and its own count of floating-point operations and of bytes; in
bfloat16 on a known accelerator the least seconds that these allow, and which
of them does. Needs the core's packages only: no TensorFlow.
"""

import os
import time
from typing import Any

import jax
import numpy as np

from benchmarks import accelerators, backbone, measure
from mpt_jax import methods, models
from mpt_jax.engine import (
  batching,
  hostmemory,
  optimizers,
  partitioning,
  trainer,
)
from mpt_jax.engine import buckets as buckets_lib
from mpt_jax.engine import params as params_lib

_TOLD = (
  'model method batch input_len prompt_len target_len precision padding'
  ' distill threads steps keep_heap'
)
# Batches of which the shapes of parts are chosen.
_SEEN = 100


def arguments() -> Any:
  parser = measure.parser(__doc__)
  parser.add_argument(
    '--precision', choices=('float32', 'bfloat16'), default='float32'
  )
  parser.add_argument(
    '--padding', choices=('max', 'bucket', 'pack'), default='max'
  )
  parser.add_argument('--part_rows', type=int, help='examples in a part')
  parser.add_argument(
    '--pack_len', type=int, default=512, help='row length of --padding=pack'
  )
  parser.add_argument(
    '--platform', help='cpu, gpu or tpu; default: what JAX finds'
  )
  parser.set_defaults(keep_heap=1)
  return parser.parse_args()


def learner(flags: Any) -> methods.Method:
  """The method that --method names."""
  made: dict[str, methods.Method] = {
    'multitask': methods.MultitaskPrompts(flags.prompt_len),
    'lora': methods.LoRA(),
    'prefix': methods.Prefix(flags.prompt_len, places=('decoder',)),
    'attempt': methods.Attempt(
      flags.prompt_len, sources=tuple((f'source {i}', '') for i in range(6))
    ),
  }
  return made[flags.method]


class Batches:
  """Random tokens in batches, as a run lays them out.

  Attributes:
    cutting: the shapes of parts; None without --padding=bucket.
    some: [B, 2] int each, S and T of batches before those of `next`, by which
      they were chosen.
    sizes: how many examples a part may have.
  """

  def __init__(self, flags: Any, prompt_length: int, mesh: jax.sharding.Mesh):
    """Chooses the shapes.

    Args:
      flags: of the command.
      prompt_length: what the prompt adds to S.
      mesh: what the batches are for.
    """
    self._flags, self._prompt_length = flags, prompt_length
    self._rng = np.random.default_rng(flags.seed)
    self._drawn = measure.examples(flags)
    self._whole = prompt_length + flags.input_len, flags.target_len
    self.cutting: buckets_lib.Buckets | None = None
    if flags.padding == 'bucket':
      self.sizes = partitioning.part_sizes(flags.batch, mesh, None)
      if flags.part_rows:
        self.sizes = (flags.part_rows,)
      self.some = [
        np.array(
          [
            [prompt_length + next(self._drawn)[0], flags.target_len]
            for _ in range(flags.batch)
          ]
        )
        for _ in range(_SEEN)
      ]
      self.cutting = buckets_lib.choose(self.some, self.sizes, self._whole)

  def _example(self) -> batching.Example:
    length, task = next(self._drawn)
    inputs, targets = (
      self._rng.integers(3, measure.VOCABULARY, n).astype(np.int32)
      for n in (length, self._flags.target_len)
    )
    return batching.Example(inputs, targets, task)

  def next(self) -> tuple[Any, tuple[int, int]]:
    """Returns a batch, and how many examples and real tokens it has."""
    flags = self._flags
    packer: Any
    if self.cutting is not None:
      packer = batching.Bucketer(flags.batch, self._prompt_length, self.cutting)
    else:
      packed = flags.padding == 'pack'
      size = (flags.pack_len, 8 * flags.target_len) if packed else self._whole
      packer = batching.Packer(flags.batch, *size, self._prompt_length, packed)
    count = tokens = 0
    while packer.add(example := self._example()):
      count += 1
      tokens += len(example.inputs) + len(example.targets)
    return packer.finish(), (count, tokens)


class System:
  """A backbone, what is trained, and its steps."""

  def __init__(self, flags: Any, mesh: jax.sharding.Mesh):
    """Draws the weights and puts them in place."""
    config = backbone.make_config(flags.model, flags.precision)
    method = learner(flags)
    kind = models.DistilledPromptedT5 if flags.distill else models.PromptedT5
    model = kind(config, method, flags.num_tasks)
    task_rate = 0.1 if flags.method in ('multitask', 'attempt') else None
    optimizer = optimizers.Optimizer(
      optimizers.method_groups(method, 0.3, task_rate), schedule='constant'
    )
    frozen = backbone.place(config, mesh, flags.seed)
    if flags.distill:
      size = flags.num_tasks, flags.prompt_len, config.emb_dim
      rng = np.random.default_rng(flags.seed)
      table = {'prompt_table': rng.standard_normal(size, np.float32)}
      frozen['teacher_prompts'] = partitioning.shard_params(table, mesh)
    key = jax.random.PRNGKey(flags.seed)
    start = method.fresh(config, flags.num_tasks, key)
    trained, kept = params_lib.split(
      {str(method.branch): params_lib.unflatten(start)}, method.trainable
    )
    state = trainer.make_state(model, optimizer, trained, 0, mesh)
    everywhere = partitioning.replicated(mesh)
    totals = jax.tree.map(
      lambda zero: partitioning.put(np.asarray(zero), everywhere),
      trainer.zero_metrics(model),
    )
    self._mesh = mesh
    self._frozen = params_lib.merge(
      frozen, partitioning.shard_params(kept, mesh)
    )
    self._held = [state, totals]
    self._plain: Any = trainer.make_train_step(model, optimizer)
    self._bucketed = trainer.BucketedStep(model, optimizer, flags.target_len)
    self._evaluate = trainer.make_eval_step(model)
    self.prompt_length = method.prompt_length
    self.trainable = method.num_parameters(config, flags.num_tasks)

  @property
  def shapes(self) -> list[list[int]]:
    """The shapes of parts that have been seen."""
    return sorted(map(list, self._bucketed.shapes))

  def compile(self, batch: Any) -> Any:
    """Compiles the step for a batch that is not cut."""
    placed = trainer.put_batch(batch, self._mesh)
    state, totals = self._held
    return self._plain.lower(state, self._frozen, placed, totals).compile()

  def step(self, batch: Any) -> None:
    """Trains on a batch."""
    parts = batch if isinstance(batch, list) else [batch]
    placed = [trainer.put_batch(part, self._mesh) for part in parts]
    state, totals = self._held
    if isinstance(batch, list):
      self._held[:] = self._bucketed(state, self._frozen, placed, totals)
    else:
      self._held[:] = self._plain(state, self._frozen, placed[0], totals)
    jax.block_until_ready(self._held)

  def forward(self, batch: Any) -> None:
    """Takes the loss of a batch."""
    params = params_lib.merge(self._held[0].params, self._frozen)
    parts = batch if isinstance(batch, list) else [batch]
    jax.block_until_ready(
      [
        self._evaluate(params, trainer.put_batch(part, self._mesh))
        for part in parts
      ]
    )


def warm_up(system: System, batches: Batches, flags: Any) -> dict[str, float]:
  """Compiles; returns the seconds of that, and of more steps."""
  begin = time.perf_counter()
  first, _ = batches.next()
  warmup = max(0, flags.warmup - 1)
  if batches.cutting is None:
    system.compile(first)
    hostmemory.release()
  else:
    # Until every shape has been compiled, or nearly so.
    warmup = max(warmup, 40 // (flags.batch // batches.cutting.rows))
  system.step(first)
  compiled = time.perf_counter()
  for _ in range(warmup):
    system.step(batches.next()[0])
  return {
    'compile_s': round(compiled - begin, 2),
    'warmup_s': round(time.perf_counter() - compiled, 2),
  }


def by_xla(
  system: System, batches: Batches, batch: Any, precision: str
) -> dict[str, Any]:
  """What XLA says of the step, or the shapes that a batch is cut into."""
  found: dict[str, Any]
  if batches.cutting is None:
    compiled = system.compile(batch)
    scratch = compiled.memory_analysis().temp_size_in_bytes
    cost = measure.cost(compiled)
    flops, moved = cost.get('flops', 0.0), cost.get('bytes accessed', 0.0)
    found = {
      'scratch_mb': round(scratch / 2**20, 1),
      'xla_gflop': round(flops / 1e9, 2),
      'xla_gb': round(moved / 1e9, 2),
    }
    chip = accelerators.chip_of(jax.devices()[0])
    if chip and precision == 'bfloat16':
      seconds, by = chip.bound(flops, moved)
      found |= {'least_s': round(seconds, 4), 'bound_by': by}
  else:
    found = {
      'part_sizes': batches.sizes,
      'shapes': system.shapes,
      'fill': round(batches.cutting.fill(batches.some), 3),
    }
  stats = jax.devices()[0].memory_stats() or {}
  if 'peak_bytes_in_use' in stats:
    found['peak_device_mb'] = round(stats['peak_bytes_in_use'] / 2**20, 1)
  return found


def main() -> None:
  flags = arguments()
  if flags.platform:
    jax.config.update('jax_platforms', flags.platform)
  # Compilation is measured, so it must not come from a cache.
  jax.config.update('jax_enable_compilation_cache', False)
  measure.use_cores(flags.threads)
  os.environ[hostmemory.SWITCH] = str(flags.keep_heap)
  hostmemory.prepare()
  found: dict[str, Any] = {'system': 'mpt_jax', 'lengths': bool(flags.lengths)}
  found['rss_after_import_mb'] = measure.rss_mb()
  mesh = partitioning.make_mesh()
  found['device'] = jax.devices()[0].device_kind
  system = System(flags, mesh)
  found |= {
    'rss_after_init_mb': measure.rss_mb(),
    'trainable': system.trainable,
  }
  batches = Batches(flags, system.prompt_length, mesh)
  found |= warm_up(system, batches, flags)
  drawn = [batches.next() for _ in range(flags.steps)]
  chosen, counts = zip(*drawn, strict=True)
  meter = measure.Meter()
  rows = meter.time(system.step, [(batch,) for batch in chosen])
  found['peak_rss_mb'] = measure.peak_rss_mb()
  system.forward(chosen[0])
  again = [(chosen[0],)] * max(3, flags.steps // 2)
  forwards = meter.time(system.forward, again)
  found |= measure.of_training(meter, rows, forwards, counts)
  measure.report(
    flags, _TOLD, found | by_xla(system, batches, chosen[0], flags.precision)
  )


if __name__ == '__main__':
  main()
