r"""mpt_jax and its peers on the same work, in turn, and the ratios.

  python -m benchmarks.compare
  python -m benchmarks.compare --rows=step_f32,mix_bf16 --rounds=3 \
    --torch_python=/path/to/torch/venv/bin/python \
    --t5x_python=/path/to/t5x/venv/bin/python --t5x_path=t5x:flaxformer:...

Each row is measured as A B A B ...: the systems of a row by turns, each in a
process of its own, so that a busy minute hits all of them. A ratio compares the
medians of the same row. Beside it stand the share of the least time that XLA's
matrix products take on this machine, and torch's speed to XLA's; in brackets
what mpt_jax aims at. A peer that is not on the machine is left out, and said to
be. benchmarks/README.md says how to set them up.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from typing import Any

from benchmarks import measure, tables
from benchmarks.tables import (
  CHECKPOINT,
  FLOOR_TORCH,
  FLOOR_XLA,
  HF,
  OURS,
  PEFT,
  START,
  STUDY,
  T5X,
)

_STEP = ['--steps=5']
_LORA = [*_STEP, '--method=lora', '--num_tasks=1']
_PREFIX = [*_STEP, '--method=prefix', '--num_tasks=1']
_ATTEMPT = [*_STEP, '--method=attempt']
_MIX = ['--input_len=256', '--lengths']
_DECODE, _HF, _BF16 = ['--steps=3'], '--system=hf', '--precision=bfloat16'

# Row -> system -> arguments.
ROWS: dict[str, dict[str, list[str]]] = {
  'step_f32': {
    OURS: _STEP,
    PEFT: _STEP,
    T5X: _STEP,
    FLOOR_XLA: [],
    FLOOR_TORCH: [],
  },
  'step_bf16': {
    OURS: [*_STEP, _BF16],
    PEFT: [*_STEP, '--dtype=bfloat16'],
    FLOOR_XLA: [_BF16],
    FLOOR_TORCH: [_BF16],
  },
  'distill_f32': {OURS: [*_STEP, '--distill'], PEFT: [*_STEP, '--distill']},
  'distill_bf16': {
    OURS: [*_STEP, '--distill', _BF16],
    PEFT: [*_STEP, '--distill', '--dtype=bfloat16'],
  },
  'mix_f32': {
    OURS: [*_MIX, '--batch=32', '--padding=bucket', '--steps=4'],
    PEFT: [*_MIX, '--padding=longest', '--steps=12'],
    T5X: [*_MIX, '--steps=4'],
  },
  'mix_bf16': {
    OURS: [*_MIX, '--batch=32', '--padding=bucket', '--steps=4', _BF16],
    PEFT: [*_MIX, '--padding=longest', '--steps=12', '--dtype=bfloat16'],
  },
  # One set of parameters each; a prefix in the one place where PEFT has it.
  'lora_f32': {OURS: _LORA, PEFT: _LORA},
  'prefix_f32': {OURS: _PREFIX, PEFT: _PREFIX},
  'attempt_f32': {OURS: _ATTEMPT, PEFT: _ATTEMPT},
  'decode_f32': {OURS: _DECODE, HF: [*_DECODE, _HF]},
  'decode_bf16': {OURS: [*_DECODE, _BF16], HF: [*_DECODE, _HF, _BF16]},
  'masked_f32': {OURS: _STEP, PEFT: [*_STEP, '--system=peft']},
  CHECKPOINT: {CHECKPOINT: []},
  START: {START: []},
  STUDY: {STUDY: []},
}
_MODULES = {
  OURS: 'benchmarks.step',
  PEFT: 'benchmarks.peers.peft_mpt',
  T5X: 'benchmarks.peers.t5x_prompt_tuning',
  FLOOR_XLA: 'benchmarks.floor',
  FLOOR_TORCH: 'benchmarks.floor',
  CHECKPOINT: 'benchmarks.checkpoint',
  START: 'benchmarks.start',
  STUDY: 'benchmarks.study',
}


# Of rows whose systems are in one module.
_ROW_MODULES = {'decode': 'benchmarks.decode', 'masked': 'benchmarks.masked'}


def run(
  row: str, system: str, flags: argparse.Namespace
) -> dict[str, Any] | None:
  """Measures a system once, in a process of its own; None if it fails."""
  module = _ROW_MODULES.get(row.partition('_')[0]) or _MODULES[system]
  python, path = sys.executable, ''
  if system in (PEFT, HF, FLOOR_TORCH):
    python = flags.torch_python
  if system == T5X:
    python, path = flags.t5x_python, flags.t5x_path
  if not python:
    return None
  more = [f'--model={flags.model}', f'--threads={flags.threads}']
  if system in (START, STUDY):
    more = []  # They are of the demo's backbone.
  if system == PEFT and flags.torch_compile:
    more.append('--compile')
  if system == FLOOR_TORCH:
    more.append('--library=torch')
  environment = {
    **os.environ,
    'PYTHONPATH': os.pathsep.join(filter(None, [os.getcwd(), path])),
    'TF_CPP_MIN_LOG_LEVEL': '3',
  }
  done = subprocess.run(
    [python, '-m', module, *ROWS[row][system], *more],
    capture_output=True,
    text=True,
    env=environment,
    check=False,
  )
  if done.returncode:
    last = (done.stderr.strip().splitlines() or ['no message'])[-1]
    print(f'{system} failed: {last}', file=sys.stderr)
    return None
  return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--rows', default=','.join(ROWS), help='of these rows')
  parser.add_argument('--rounds', type=int, default=2)
  parser.add_argument(
    '--model', choices=sorted(measure.SHAPES), default='small'
  )
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument(
    '--torch_compile', action='store_true', help='PEFT with torch.compile'
  )
  parser.add_argument(
    '--output', help='file of a machine, whose rows are written or renewed'
  )
  parser.add_argument(
    '--machine', default=_machine(), help='what --output says that it is of'
  )
  for name in ('torch_python', 't5x_python', 't5x_path'):
    parser.add_argument(
      f'--{name}',
      default=os.environ.get(f'BENCH_{name.upper()}', ''),
      help=f'default: BENCH_{name.upper()} of the environment',
    )
  flags = parser.parse_args()
  rows = flags.rows.split(',')
  for row in rows:
    if row not in ROWS:
      parser.error(f'--rows: {row!r} is none of {", ".join(ROWS)}')
  for name, what in (('torch_python', 'PEFT'), ('t5x_python', 'T5X')):
    if not getattr(flags, name):
      print(f'{what} is left out: give --{name}', file=sys.stderr)
  results: dict[str, dict[str, list[dict[str, Any]]]] = {}
  for row in rows:
    found = results.setdefault(row, {system: [] for system in ROWS[row]})
    for turn in range(flags.rounds):
      for system in ROWS[row]:
        begin = time.monotonic()
        one = run(row, system, flags)
        if one is not None:
          found[system].append(one)
          print(
            f'{row} {turn + 1}/{flags.rounds} {system}:'
            f' {time.monotonic() - begin:.0f} s',
            file=sys.stderr,
          )
    if flags.output:
      tables.write(flags.output, flags.machine, flags.model, {row: found})
  print(tables.table(results))


def _machine() -> str:
  """What this machine is, and today."""
  name = platform.processor() or platform.machine()
  if os.path.exists('/proc/cpuinfo'):
    with open('/proc/cpuinfo', encoding='utf-8') as f:
      found = re.search(r'model name\s*: (.*)', f.read())
    name = found[1] if found else name
  jax = importlib.metadata.version('jax')
  today = datetime.date.today().isoformat()
  return f'{os.cpu_count()} cores, {name}; jax {jax}, {today}'


if __name__ == '__main__':
  main()
