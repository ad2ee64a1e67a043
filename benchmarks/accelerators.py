r"""A training step on TPUs without one: memory, work, and the time it implies.

  pip install libtpu
  python -m benchmarks.accelerators --output=benchmarks/tpu.json
  python -m benchmarks.accelerators --models=t5_1_1_xl --chips=v6e

Compiles the step of each size and method ahead of time for a slice of each
chip (`benchmarks.memory`). Memory is XLA's of the whole step. Work (floating-
point operations, and bytes that XLA's operations read and write) is counted by
XLA on two and three layers and carried on to all of them, as XLA counts a loop
once. The least time of a step is the larger of operations by the chip's peak
and bytes by its bandwidth: no step is faster, and a good one is slower. Prints
a table; with --output what is in that file is not compiled again.
"""

import argparse
import dataclasses
import os
import sys
import time
from typing import Any, NamedTuple

import jax

from benchmarks import memory
from mpt_jax import methods, t5
from mpt_jax.checkpoints import files
from mpt_jax.engine import partitioning


class Chip(NamedTuple):
  """A chip, and its peaks by the pages of who makes it."""

  kind: str  # What JAX calls it.
  teraflops: float  # bfloat16, dense
  gigabytes_a_second: float
  gigabytes: float
  topology: str = ''  # Of four, to compile for.

  def bound(self, flops: float, moved: float) -> tuple[float, str]:
    """The least seconds for operations and bytes, and which bounds them."""
    operations = flops / (self.teraflops * 1e12)
    transfers = moved / (self.gigabytes_a_second * 1e9)
    by = 'operations' if operations > transfers else 'bytes'
    return max(operations, transfers), by


CHIPS = {
  'v5e': Chip('TPU v5 lite', 197, 819, 16, 'v5e:2x2'),
  'v5p': Chip('TPU v5', 459, 2765, 95, 'v5p:2x2x1'),
  'v6e': Chip('TPU v6 lite', 918, 1640, 32, 'v6e:2x2'),
  'a100': Chip('NVIDIA A100-SXM4-80GB', 312, 2039, 80),
  'h100': Chip('NVIDIA H100 80GB HBM3', 989, 3350, 80),
  'h200': Chip('NVIDIA H200', 989, 4800, 141),
}
TPUS = tuple(name for name, chip in CHIPS.items() if chip.topology)


def chip_of(device: jax.Device) -> Chip | None:
  """The chip that a device is; None if it is not in the table."""
  return next((c for c in CHIPS.values() if device.device_kind == c.kind), None)


MODELS = (
  't5_1_1_small',
  't5_1_1_base',
  't5_1_1_large',
  't5_1_1_xl',
  't5_1_1_xxl',
)
# From here on in a loop over layers, with the activations computed again.
_LARGE = ('t5_1_1_xl', 't5_1_1_xxl')
_OF_METHODS = 't5_1_1_base'


def setting_of(model: str, method: str, batch: int) -> memory.Setting:
  """The step that is compiled: 100 prompt vectors, 256 inputs, 16 targets."""
  config = t5.get_config(model).replace(
    dtype='bfloat16', dropout_rate=0.0, remat_layers=model in _LARGE
  )
  distill = method == methods.MultitaskPrompts.name
  return memory.Setting(
    config,
    batch=batch,
    method=method,
    tasks=6 if distill else 1,
    distill=distill,
    scan_layers=model in _LARGE,
  )


def measure(setting: memory.Setting, chip: Chip) -> dict[str, Any]:
  """Sizes and work per chip, on one chip or, if it doesn't fit, on four."""
  for count in (1, 4):
    devices = memory.devices(chip.topology)[:count]
    mesh = partitioning.make_mesh(count, devices)
    setting = dataclasses.replace(setting, num_partitions=count)
    try:
      sizes = memory.measure(setting, mesh)
    except jax.errors.JaxRuntimeError as e:
      # XLA itself refuses what needs more than the chip has.
      if 'RESOURCE_EXHAUSTED' not in str(e) or count == 4:
        raise
      continue
    needs = sizes['arguments'] + sizes['temp'] + sizes['output']
    if needs < chip.gigabytes * 1e9:
      break
  return {'chips': count, 'needs': needs, **memory.work(setting, mesh)}


def row(model: str, method: str, name: str, found: dict[str, Any]) -> str:
  """A line of the table."""
  seconds, by = CHIPS[name].bound(found['flops'], found['bytes'])
  cells = (
    model,
    method,
    f'{found["chips"]} {name}',
    f'{found["needs"] / 1e9:.1f}',
    f'{found["flops"] / 1e12:.2f}',
    f'{found["bytes"] / 1e9:.0f}',
    by,
    f'{1e3 * seconds:.0f}',
    f'{found["batch"] / seconds:,.0f}',
  )
  return f'| {" | ".join(cells)} |'


_COLUMNS = (
  'size',
  'method',
  'chips',
  'GB a chip',
  'TFLOP a chip',
  'GB moved',
  'bound by',
  'least ms',
  'most examples/s',
)
HEAD = f'| {" | ".join(_COLUMNS)} |\n|---|---|---|---:|---:|---:|---|---:|---:|'


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--models', default=','.join(MODELS))
  parser.add_argument('--methods', default='all', help='of them on T5-base')
  parser.add_argument('--chips', default=','.join(TPUS))
  parser.add_argument('--batch', type=int, default=32)
  parser.add_argument('--output', help='JSON file that keeps what was found')
  flags = parser.parse_args()
  kept: dict[str, Any] = {}
  if flags.output and os.path.exists(flags.output):
    kept = files.read_json(flags.output)
  # A projector trains on its source's prompts, not for a task alone.
  done = methods.MultitaskPrompts.name, 'projector'
  others = [name for name in methods.names() if name not in done]
  if flags.methods != 'all':
    others = [n for n in flags.methods.split(',') if n]
  wanted = [(m, methods.MultitaskPrompts.name) for m in flags.models.split(',')]
  wanted += [(_OF_METHODS, method) for method in others]
  lines = [HEAD]
  for chip in flags.chips.split(','):
    for model, method in wanted:
      key = f'{model} {method} {chip} {flags.batch}'
      if key not in kept:
        begin = time.monotonic()
        found = measure(setting_of(model, method, flags.batch), CHIPS[chip])
        kept[key] = {**found, 'batch': flags.batch}
        print(f'{key}: {time.monotonic() - begin:.0f} s', file=sys.stderr)
        if flags.output:
          files.write_file(flags.output, files.json_bytes(kept))
      lines.append(row(model, method, chip, kept[key]))
  print('\n'.join(lines))


if __name__ == '__main__':
  main()
