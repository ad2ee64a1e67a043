r"""mpt_jax and its peers on the same work, in turn, and the ratios.

  python -m benchmarks.compare
  python -m benchmarks.compare --rows=step_f32,mix_bf16 --rounds=3 \
    --torch_python=/path/to/torch/venv/bin/python \
    --t5x_python=/path/to/t5x/venv/bin/python --t5x_path=t5x:flaxformer:...

Each row is measured as A B A B ...: the systems of a row by turns, each in a
process of its own, so that a busy minute hits all of them. A ratio compares the
medians of the same row. Beside them stand the rates at which XLA and torch
multiply matrices on this machine, and the floor that follows. A peer that is
not on the machine is left out, and said to be. The last table has what mpt_jax
aims at, on T5-small. benchmarks/README.md says how to set them up.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks import measure

OURS, PEFT, T5X, FLOOR_XLA, FLOOR_TORCH = (
  'mpt_jax',
  'peft',
  't5x',
  'floor xla',
  'floor torch',
)
# Of mpt_jax alone.
CHECKPOINT, START = 'checkpoint', 'start'
_STEP = ['--steps=5']
_LORA = [*_STEP, '--method=lora', '--num_tasks=1']
_PREFIX = [*_STEP, '--method=prefix', '--num_tasks=1']
_MIX = ['--input_len=256', '--lengths']

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
    OURS: [*_STEP, '--precision=bfloat16'],
    PEFT: [*_STEP, '--dtype=bfloat16'],
    FLOOR_XLA: ['--precision=bfloat16'],
    FLOOR_TORCH: ['--precision=bfloat16'],
  },
  'distill_f32': {OURS: [*_STEP, '--distill'], PEFT: [*_STEP, '--distill']},
  'distill_bf16': {
    OURS: [*_STEP, '--distill', '--precision=bfloat16'],
    PEFT: [*_STEP, '--distill', '--dtype=bfloat16'],
  },
  'mix_f32': {
    OURS: [*_MIX, '--batch=32', '--padding=bucket', '--steps=4'],
    PEFT: [*_MIX, '--padding=longest', '--steps=12'],
    T5X: [*_MIX, '--steps=4'],
  },
  'mix_bf16': {
    OURS: [
      *_MIX,
      '--batch=32',
      '--padding=bucket',
      '--steps=4',
      '--precision=bfloat16',
    ],
    PEFT: [*_MIX, '--padding=longest', '--steps=12', '--dtype=bfloat16'],
  },
  # One set of parameters each; a prefix in the one place where PEFT has it.
  'lora_f32': {OURS: _LORA, PEFT: _LORA},
  'prefix_f32': {OURS: _PREFIX, PEFT: _PREFIX},
  CHECKPOINT: {CHECKPOINT: []},
  START: {START: []},
}
# Row, peer, and what mpt_jax aims at for the ratio of itself to the peer.
RATIO_GOALS = (
  ('step_f32', PEFT, '<= 0.53'),
  ('step_bf16', PEFT, '<= 0.80'),
  ('step_f32', T5X, '<= 0.74'),
  ('distill_f32', PEFT, '<= 0.56'),
  ('distill_bf16', PEFT, '<= 0.75'),
  ('mix_f32', PEFT, '>= 3.6'),
  ('mix_bf16', PEFT, '>= 2.3'),
  ('mix_f32', T5X, '>= 2.4'),
)
# System and row, what, what mpt_jax aims at, keys of the values, their form.
OWN_GOALS = (
  (
    CHECKPOINT,
    'checkpoint, 6 tasks: bytes; seconds',
    '< 1,000,000; < 0.1',
    ('bytes', 'save_s_median'),
    '{:,.0f}; {:.2f}',
  ),
  (
    START,
    '--help; start to first step, seconds',
    '< 1; < 12',
    ('help_s', 'no_cache_s'),
    '{:.2f}; {:.1f}',
  ),
)
_MODULES = {
  OURS: 'benchmarks.step',
  PEFT: 'benchmarks.peers.peft_mpt',
  T5X: 'benchmarks.peers.t5x_prompt_tuning',
  FLOOR_XLA: 'benchmarks.floor',
  FLOOR_TORCH: 'benchmarks.floor',
  CHECKPOINT: 'benchmarks.checkpoint',
  START: 'benchmarks.start',
}


def run(
  system: str, arguments: list[str], flags: argparse.Namespace
) -> dict[str, Any] | None:
  """Measures a system once, in a process of its own; None if it fails."""
  python, path = sys.executable, ''
  if system in (PEFT, FLOOR_TORCH):
    python = flags.torch_python
  if system == T5X:
    python, path = flags.t5x_python, flags.t5x_path
  if not python:
    return None
  more = [f'--model={flags.model}', f'--threads={flags.threads}']
  if system == START:
    more = []  # It is of the demo's backbone.
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
    [python, '-m', _MODULES[system], *arguments, *more],
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


def _unit(row: str) -> str:
  return 'examples/s' if row.startswith('mix') else 'seconds'


def _key(row: str) -> str:
  """Under which key the systems of a row report what is compared."""
  return 'examples_per_s' if row.startswith('mix') else 'step_s_median'


def ratio(
  row: str, found: dict[str, list[dict[str, Any]]], peer: str
) -> float | None:
  """Ours to a peer's median: seconds, or of a length mix examples/s."""
  if not found.get(OURS) or not found.get(peer):
    return None
  key = _key(row)
  return round(median(found, OURS, key) / median(found, peer, key), 3)


def median(
  found: dict[str, list[dict[str, Any]]], system: str, key: str
) -> float:
  """Of what a system measured in a row's rounds."""
  return statistics.median(one[key] for one in found[system])


def share_of_floor(found: dict[str, list[dict[str, Any]]]) -> float | None:
  """The least seconds of XLA's products to those of our step."""
  if not found.get(FLOOR_XLA) or not found.get(OURS):
    return None
  floor = min(one['seconds']['step'] for one in found[FLOOR_XLA])
  return floor / median(found, OURS, 'step_s_median')


def table(results: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
  """The results as a Markdown table."""
  lines = [
    '| row | what | mpt_jax | PEFT | T5X | to PEFT | to T5X | floor XLA'
    ' | floor torch | share of the XLA floor |',
    '|---|---|---|---|---|---|---|---|---|---|',
  ]
  for row, found in results.items():
    if OURS not in found:
      continue
    key = _key(row)
    cells = [row, _unit(row)]
    for system in (OURS, PEFT, T5X):
      values = [one[key] for one in found.get(system, [])]
      cells.append(f'{statistics.median(values):.3f}' if values else '-')
    for peer in (PEFT, T5X):
      cells.append(str(ratio(row, found, peer) or '-'))
    for system in (FLOOR_XLA, FLOOR_TORCH):
      values = [one['seconds']['step'] for one in found.get(system, [])]
      cells.append(f'{min(values):.3f}' if values else '-')
    share = share_of_floor(found)
    cells.append('-' if share is None else f'{share:.2f}')
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)


def goals(results: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
  """What was aimed at and what was measured, as a Markdown table."""
  rows: list[tuple[str, str, str | None]] = []
  for row, peer, goal in RATIO_GOALS:
    value = ratio(row, results.get(row, {}), peer)
    rows.append(
      (f'{row}, {_unit(row)} / {peer}', goal, value and f'{value:.2f}')
    )
  step = results.get('step_f32', {})
  share = share_of_floor(step)
  rows.append(
    ('step_f32, share of the XLA floor', '>= 0.80', share and f'{share:.2f}')
  )
  if step.get(OURS) and step.get(PEFT):
    ours, theirs = (median(step, s, 'peak_rss_mb') for s in (OURS, PEFT))
    rows.append(
      ('step_f32, peak memory / peft', '<= 1.0', f'{ours / theirs:.2f}')
    )
  for system, what, goal, keys, form in OWN_GOALS:
    found = results.get(system, {})
    if found.get(system):
      values = (median(found, system, key) for key in keys)
      rows.append((what, goal, form.format(*values)))
  return '\n'.join(
    ['| what | goal | measured |', '|---|---|---|']
    + [f'| {what} | {goal} | {value} |' for what, goal, value in rows if value]
  )


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
  parser.add_argument('--output', help='file for the results as JSON')
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
      for system, arguments in ROWS[row].items():
        begin = time.monotonic()
        one = run(system, arguments, flags)
        if one is not None:
          found[system].append(one)
          print(
            f'{row} {turn + 1}/{flags.rounds} {system}:'
            f' {time.monotonic() - begin:.0f} s',
            file=sys.stderr,
          )
  print(table(results))
  print(f'\n{goals(results)}')
  if flags.output:
    with open(flags.output, 'w', encoding='utf-8') as f:
      json.dump(
        {
          'model': flags.model,
          'threads': flags.threads,
          'cpu': platform.processor() or platform.machine(),
          'load': os.getloadavg(),
          'results': results,
        },
        f,
        indent=1,
      )


if __name__ == '__main__':
  main()
