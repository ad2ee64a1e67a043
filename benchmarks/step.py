r"""One training step of mpt_jax on random weights, as the trainer runs it.

  python -m benchmarks.step --model=small --batch=8 --input_len=128 \
    --prompt_len=100 --target_len=8 --precision=bfloat16 --distill
  python -m benchmarks.step --method=lora --num_tasks=1
  python -m benchmarks.step --batch=32 --input_len=256 --lengths \
    --padding=bucket

Prints one line of JSON: seconds and CPU seconds a step, examples and tokens
(without prompts and padding) a second, seconds to compile, peak memory, XLA's
scratch memory and its own count of floating-point operations. Needs the core's
packages only: no TensorFlow.
"""

import json
import os
import time
from typing import Any

from benchmarks import measure


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


def main() -> None:
  flags = arguments()
  if flags.platform:
    os.environ['JAX_PLATFORMS'] = flags.platform
  measure.use_cores(flags.threads)
  os.environ['MPT_JAX_KEEP_HEAP'] = str(flags.keep_heap)
  import jax

  # Compilation is measured, so it must not come from a cache.
  jax.config.update('jax_enable_compilation_cache', False)
  import numpy as np

  from benchmarks import backbone
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

  hostmemory.prepare()
  rss_after_import = measure.rss_mb()
  config = backbone.make_config(flags.model, flags.precision)
  method: methods.Method = {
    'multitask': methods.MultitaskPrompts(flags.prompt_len),
    'lora': methods.LoRA(),
    'prefix': methods.Prefix(flags.prompt_len, places=('decoder',)),
    'attempt': methods.Attempt(
      flags.prompt_len, sources=tuple((f'source {i}', '') for i in range(6))
    ),
  }[flags.method]
  length = method.prompt_length
  kind = models.DistilledPromptedT5 if flags.distill else models.PromptedT5
  model = kind(config, method, flags.num_tasks)
  task_rate = 0.1 if flags.method in ('multitask', 'attempt') else None
  optimizer = optimizers.Optimizer(
    optimizers.method_groups(method, 0.3, task_rate), schedule='constant'
  )
  mesh = partitioning.make_mesh()

  rng = np.random.default_rng(flags.seed)
  frozen = backbone.place(config, mesh, flags.seed)
  if flags.distill:
    size = flags.num_tasks, flags.prompt_len, config.emb_dim
    table = {'prompt_table': rng.standard_normal(size, np.float32)}
    frozen['teacher_prompts'] = partitioning.shard_params(table, mesh)
  start = method.fresh(config, flags.num_tasks, jax.random.PRNGKey(flags.seed))
  trained, kept = params_lib.split(
    {str(method.branch): params_lib.unflatten(start)}, method.trainable
  )
  frozen = params_lib.merge(frozen, partitioning.shard_params(kept, mesh))
  state = trainer.make_state(model, optimizer, trained, 0, mesh)
  rss_after_init = measure.rss_mb()

  tasks = list(range(flags.num_tasks))
  lengths = [flags.input_len] * len(tasks)
  if flags.lengths:
    lengths, tasks = measure.load_lengths(flags.lengths)
  order = rng.permutation(len(lengths))
  drawn = 0

  def examples() -> Any:
    nonlocal drawn
    while True:
      place = order[drawn % len(order)]
      length = min(lengths[place], flags.input_len)
      yield batching.Example(
        rng.integers(3, measure.VOCABULARY, length).astype(np.int32),
        rng.integers(3, measure.VOCABULARY, flags.target_len).astype(np.int32),
        tasks[place % len(tasks)] % flags.num_tasks,
      )
      drawn += 1

  whole = length + flags.input_len, flags.target_len
  if flags.padding == 'bucket':
    sizes = partitioning.part_sizes(flags.batch, mesh, None)
    if flags.part_rows:
      sizes = (flags.part_rows,)
    every = np.array(
      [[length + min(n, flags.input_len), flags.target_len] for n in lengths]
    )
    some = [
      every[rng.permutation(len(every))[: flags.batch]]
      if len(every) >= flags.batch
      else np.repeat(every[:1], flags.batch, axis=0)
      for _ in range(100)
    ]
    cutting = buckets_lib.choose(some, sizes, whole)

  def make_batch() -> tuple[Any, int, int]:
    """A batch, how many examples, and how many of their tokens are real."""
    stream = examples()
    packer: Any
    if flags.padding == 'bucket':
      packer = batching.Bucketer(flags.batch, length, cutting)
    else:
      packed = flags.padding == 'pack'
      size = (flags.pack_len, 8 * flags.target_len) if packed else whole
      packer = batching.Packer(flags.batch, *size, length, packed)
    count = tokens = 0
    for example in stream:
      if not packer.add(example):
        break
      count += 1
      tokens += len(example.inputs) + len(example.targets)
    return packer.finish(), count, tokens

  plain: Any = trainer.make_train_step(model, optimizer)
  bucketed = trainer.BucketedStep(model, optimizer, flags.target_len)
  everywhere = partitioning.replicated(mesh)
  held = [
    state,
    jax.tree.map(
      lambda zero: partitioning.put(np.asarray(zero), everywhere),
      trainer.zero_metrics(model),
    ),
  ]

  def step(batch: Any) -> None:
    if isinstance(batch, list):
      parts = [trainer.put_batch(part, mesh) for part in batch]
      held[:] = bucketed(held[0], frozen, parts, held[1])
    else:
      held[:] = plain(held[0], frozen, trainer.put_batch(batch, mesh), held[1])
    jax.block_until_ready(held)

  begin = time.perf_counter()
  first = make_batch()[0]
  if not isinstance(first, list):
    placed = trainer.put_batch(first, mesh)
    plain.lower(held[0], frozen, placed, held[1]).compile()
    hostmemory.release()
  step(first)
  compile_s = time.perf_counter() - begin
  warmup = max(0, flags.warmup - 1)
  if flags.padding == 'bucket':
    # Until every shape has been compiled, or nearly so.
    warmup = max(warmup, 40 // (flags.batch // cutting.rows))
  for _ in range(warmup):
    step(make_batch()[0])
  warm_s = time.perf_counter() - begin - compile_s

  batches = [make_batch() for _ in range(flags.steps)]
  meter = measure.Meter()
  rows = meter.time(step, [(batch,) for batch, _, _ in batches])
  peak = measure.peak_rss_mb()
  seconds = sum(row['wall'] for row in rows)

  evaluate = trainer.make_eval_step(model)

  def forward(batch: Any) -> None:
    params = params_lib.merge(held[0].params, frozen)
    parts = batch if isinstance(batch, list) else [batch]
    jax.block_until_ready(
      [evaluate(params, trainer.put_batch(part, mesh)) for part in parts]
    )

  forward(batches[0][0])
  forwards = measure.summary(
    meter.time(forward, [(batches[0][0],)] * max(3, flags.steps // 2))
  )

  compiled: dict[str, Any] = {}
  if flags.padding != 'bucket':
    lowered = plain.lower(
      held[0], frozen, trainer.put_batch(batches[0][0], mesh), held[1]
    ).compile()
    cost = measure.cost(lowered)
    memory = lowered.memory_analysis()
    compiled = {
      'scratch_mb': round(memory.temp_size_in_bytes / 2**20, 1),
      'xla_gflop': round(cost.get('flops', 0.0) / 1e9, 2),
    }
  else:
    compiled = {
      'part_sizes': sizes,
      'shapes': sorted(map(list, bucketed.shapes)),
      'fill': round(cutting.fill(some), 3),
    }
  stats = jax.devices()[0].memory_stats() or {}
  if 'peak_bytes_in_use' in stats:
    compiled['peak_device_mb'] = round(stats['peak_bytes_in_use'] / 2**20, 1)
  keys = (
    'model method batch input_len prompt_len target_len precision padding'
    ' distill threads steps keep_heap'
  )
  print(
    json.dumps(
      {
        'system': 'mpt_jax',
        'device': jax.devices()[0].device_kind,
        **{key: getattr(flags, key) for key in keys.split()},
        'lengths': bool(flags.lengths),
        **measure.summary(rows),
        'examples_per_s': round(sum(n for _, n, _ in batches) / seconds, 3),
        'tokens_per_s': round(sum(t for _, _, t in batches) / seconds, 1),
        'cpu_s_total': round(sum(row['cpu'] for row in rows), 3),
        'fwd_s': forwards['step_s_median'],
        'fwd_cpu_s': forwards['cpu_s_median'],
        'compile_s': round(compile_s, 2),
        'warmup_s': round(warm_s, 2),
        'peak_rss_mb': peak,
        'rss_after_import_mb': rss_after_import,
        'rss_after_init_mb': rss_after_init,
        'trainable': method.num_parameters(config, flags.num_tasks),
        'dirty': meter.dirty,
        'waited_s': round(meter.waited, 1),
        **compiled,
      }
    )
  )


if __name__ == '__main__':
  main()
