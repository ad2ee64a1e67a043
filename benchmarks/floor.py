"""The least that a step can cost here: its products at the speed of each.

  python -m benchmarks.floor --library=xla
  python -m benchmarks.floor --library=torch --precision=bfloat16

Counts the operations of the matrix products (projections, feed-forward,
attention, logits) exactly, measures how fast XLA or torch multiplies such
shapes on this machine, and divides. Softmax, norms, gathers and the rest count
as free, so that no program reaches the floor. Prints one line of JSON.

A training step is a forward pass and the gradients of activations: frozen
weights have none. The first decoder layer's self-attention has no backward
pass at all: its input does not depend on the prompt. With few targets the keys
and values of cross-attention are not computed, as in mpt_jax; PEFT and T5X
compute them.
"""

from collections.abc import Callable
import json
import time
from typing import Any

from benchmarks import measure


def terms(a):
  """(name, m, k, n, batch, forward count, backward count) per matmul shape."""
  s = measure.SHAPES[a.model]
  d, i, f, h, dk, L = (
    s['d_model'],
    s['heads'] * s['d_kv'],
    s['d_ff'],
    s['heads'],
    s['d_kv'],
    s['layers'],
  )
  B, P, S = a.batch, a.prompt_len, a.target_len
  T = P + a.input_len
  N, M = B * T, B * S
  t = []

  def add(*x):
    return t.append(x)

  add('enc q,k,v', N, d, i, 1, 3 * L, 3 * L)
  add('enc o', N, i, d, 1, L, L)
  add('enc scores', T, dk, T, B * h, L, 2 * L)  # backward: two products
  add('enc mix', T, T, dk, B * h, L, 2 * L)
  add('enc wi', N, d, f, 1, L, L)
  add('enc wo', N, f, d, 1, L, L)
  add('dec self q,k,v', M, d, i, 1, 3 * L, 3 * (L - 1))
  add('dec self o', M, i, d, 1, L, L - 1)
  add('dec self scores', S, dk, S, B * h, L, 2 * (L - 1))
  add('dec self mix', S, S, dk, B * h, L, 2 * (L - 1))
  add('cross q', M, d, i, 1, L, L - 1)
  add('cross o', M, i, d, 1, L, L)
  if S * (i + T * h) * d < T * (d + S) * i:
    # Few targets: their queries are projected, see `t5.layers.CrossAttention`.
    add('cross k by head', M, dk, d, h, L, L - 1)
    add('cross v by head', M, d, dk, h, L, L)
    add('cross scores', S * h, d, T, B, L, 2 * L)
    add('cross mix', S * h, T, d, B, L, 2 * L)
  else:
    add('cross k,v', N, d, i, 1, 2 * L, 2 * L)
    add('cross scores', S, dk, T, B * h, L, 2 * L)
    add('cross mix', S, T, dk, B * h, L, 2 * L)
  add('dec wi', M, d, f, 1, L, L)
  add('dec wo', M, f, d, 1, L, L)
  add('logits', M, d, measure.VOCABULARY, 1, 1, 1)
  return t


def best(run: Callable[[], Any], flops: float, seconds: float) -> float:
  """GFLOP/s of the fastest of many repetitions."""
  run()
  end, top = time.perf_counter() + seconds, 0.0
  while time.perf_counter() < end:
    begin = time.perf_counter()
    run()
    top = max(top, flops / (time.perf_counter() - begin))
  return top / 1e9


def make_product(
  library: str, precision: str, left: Any, right: Any
) -> Callable[[], Any]:
  """A call that multiplies two arrays, as the library's models do."""
  if library == 'torch':
    import torch

    kind = getattr(torch, precision)
    device = measure.torch_device()
    a, b = (torch.from_numpy(x).to(device, kind) for x in (left, right))

    def multiply() -> None:
      _ = a @ b
      if device == 'cuda':
        torch.cuda.synchronize()

    return multiply
  import jax
  import jax.numpy as jnp

  from mpt_jax.t5 import products

  # Rounded operands are multiplied as float32 where that is faster.
  kind = 'float32' if products.widens() else precision
  a, b = jnp.asarray(left, kind), jnp.asarray(right, kind)
  product = jax.jit(
    lambda x, y: jnp.matmul(x, y, preferred_element_type=jnp.float32)
  )
  return lambda: product(a, b).block_until_ready()


def main() -> None:
  parser = measure.parser(__doc__)
  parser.add_argument(
    '--precision', choices=('float32', 'bfloat16'), default='float32'
  )
  parser.add_argument('--library', choices=('xla', 'torch'), default='xla')
  parser.add_argument('--seconds', type=float, default=1.0, help='per shape')
  flags = parser.parse_args()
  measure.use_cores(flags.threads)
  import numpy as np

  if flags.library == 'torch':
    import torch

    torch.set_num_threads(flags.threads)
  rng = np.random.default_rng(0)
  rates: dict[tuple[int, ...], float] = {}
  rows = []
  for name, m, k, n, batch, forward, backward in terms(flags):
    flops = 2.0 * m * k * n * batch
    key = m, k, n, batch
    if key not in rates:
      lead = (batch,) if batch > 1 else ()
      left = rng.standard_normal((*lead, m, k), np.float32)
      right = rng.standard_normal((*lead, k, n), np.float32)
      product = make_product(flags.library, flags.precision, left, right)
      rates[key] = best(product, flops, flags.seconds)
    rows.append((name, flops, forward, backward, rates[key]))

  def total(passes: Callable[..., int], rated: bool) -> float:
    return sum(
      flops * passes(fwd, bwd) / (rate if rated else 1.0) / 1e9
      for _, flops, fwd, bwd, rate in rows
    )

  kinds: dict[str, Callable[..., int]] = {
    'forward': lambda fwd, bwd: fwd,
    'step': lambda fwd, bwd: fwd + bwd,
    'distill': lambda fwd, bwd: 2 * fwd + bwd,
  }
  print(
    json.dumps(
      {
        'system': f'floor {flags.library}',
        **{
          key: getattr(flags, key)
          for key in ('model', 'batch', 'input_len', 'prompt_len', 'precision')
        },
        'gflop': {k: round(total(f, False), 2) for k, f in kinds.items()},
        'seconds': {k: round(total(f, True), 4) for k, f in kinds.items()},
        'gflops_per_s': round(
          total(kinds['step'], False) / total(kinds['step'], True), 1
        ),
        'gflops_per_s_by_shape': {
          name: round(rate, 1) for name, *_, rate in rows
        },
      }
    )
  )


if __name__ == '__main__':
  main()
