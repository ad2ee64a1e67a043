"""The benchmark scripts run, and their lines hold what the README says."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks import accelerators, compare, floor, measure, tables
from tests.helpers import quick

ROOT = pathlib.Path(__file__).parent.parent
SMALL = ('--model=tiny', '--batch=4', '--input_len=12', '--prompt_len=4')


def run(module, *arguments):
  done = subprocess.run(
    [sys.executable, '-m', module, *SMALL, *arguments],
    cwd=ROOT,
    env={**os.environ, 'BENCH_WAIT_S': '0', 'XLA_FLAGS': quick.FLAGS},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
  'arguments',
  [
    (),
    ('--padding=bucket', '--lengths', '--part_rows=2', '--distill'),
    ('--padding=pack', '--pack_len=40', '--precision=bfloat16'),
    ('--method=lora', '--num_tasks=1'),
    ('--method=attempt', '--num_tasks=1'),
  ],
)
def test_step(arguments):
  line = run('benchmarks.step', '--steps=2', *arguments)
  assert line['examples_per_s'] > 0
  assert line['fwd_s'] > 0
  # P * D + K * (P + D), the paper's count; 2r (d + I) (E + 2D); or
  # K P D + 2 r D + 2 D.
  wanted = {
    'multitask': 4 * 64 + 6 * (4 + 64),
    'lora': 2 * 8 * (64 + 64) * (2 + 2 * 2),
    'attempt': (4 + 2 * 100 + 2) * 64,
  }
  assert line['trainable'] == wanted[line['method']]
  if line['padding'] == 'bucket':
    assert len(line['shapes']) <= 12
    assert 0 < line['fill'] <= 1
  else:
    assert line['scratch_mb'] > 0
    assert line['xla_gflop'] > 0
    assert line['xla_gb'] > 0
  # Nothing needs TensorFlow: it would take half a gigabyte.
  assert line['rss_after_import_mb'] < 400


@pytest.mark.slow
def test_decode_and_checkpoint():
  assert run('benchmarks.decode', '--steps=2')['examples_per_s'] > 0
  line = run('benchmarks.checkpoint', '--steps=2')
  # Prompts and two moments, float32, and what orbax writes beside them.
  assert line['bytes'] > 3 * 4 * (4 * 64 + 6 * (4 + 64))
  assert line['files'] > 0


def test_the_least_time_of_a_chip():
  chip = accelerators.CHIPS['v5e']
  assert chip.bound(394e12, 819e9) == (2.0, 'operations')
  assert chip.bound(197e12, 2457e9) == (3.0, 'bytes')
  found = {'chips': 4, 'needs': 8e9, 'flops': 394e12, 'bytes': 1e9, 'batch': 32}
  assert accelerators.row('t5_1_1_xl', 'lora', 'v5e', found) == (
    '| t5_1_1_xl | lora | 4 v5e | 8.0 | 394.00 | 1 | operations | 2000 | 16 |'
  )


def test_the_page_on_tpus_says_what_was_compiled():
  page = (ROOT / 'docs/tpu.md').read_text()
  kept = json.loads((ROOT / 'benchmarks/tpu.json').read_text())
  for key, found in kept.items():
    size, method, name, _ = key.split()
    seconds, _ = accelerators.CHIPS[name].bound(found['flops'], found['bytes'])
    needs, least = f'{found["needs"] / 1e9:.1f}', f'{1e3 * seconds:.0f}'
    if method == 'multitask':
      several = f' on each of {found["chips"]}' if found['chips'] > 1 else ''
      first, cell = size.removeprefix('t5_1_1_'), f'{needs}{several}, {least}'
    else:
      first, cell = f'`{method}`', f'{needs} |'
    [row] = [
      row
      for row in page.splitlines()
      if row.startswith('|')
      and first in row.split('|')[1].replace(',', ' ').split()
    ]
    assert cell in row, key
    assert least in row, key


def test_operations_of_a_step():
  """T5-small, one row of three positions."""
  flags = measure.parser('').parse_args(
    ['--batch=1', '--input_len=2', '--prompt_len=1', '--target_len=1']
  )
  rows = {name: (m, k, n, b) for name, m, k, n, b, *_ in floor.terms(flags)}
  assert rows['enc q,k,v'] == (3, 512, 512, 1)
  assert rows['enc scores'] == (3, 64, 3, 8)
  assert rows['logits'] == (1, 512, measure.VOCABULARY, 1)
  # Queries are projected instead of keys, which are common to all heads ...
  assert rows['cross k by head'] == (1, 64, 512, 8)
  assert rows['cross scores'] == (8, 512, 3, 1)
  # ... but not where there are as many of them.
  flags.target_len = 3
  rows = {name: (m, k, n, b) for name, m, k, n, b, *_ in floor.terms(flags)}
  assert rows['cross k,v'] == (3, 512, 512, 1)
  assert rows['cross scores'] == (3, 64, 3, 8)


def test_ratios_are_of_medians():
  found = {
    tables.OURS: [{'step_s_median': x} for x in (1.0, 2.0, 9.0)],
    tables.PEFT: [{'step_s_median': 4.0}],
    tables.T5X: [],
  }
  assert tables.ratio('step_f32', found, tables.PEFT) == 0.5
  assert tables.ratio('step_f32', found, tables.T5X) is None
  row = tables.table({'step_f32': found}).splitlines()[-1]
  assert row == (
    '| step, float32, s | 2.000 | 4.000 | - | 0.50 (<= 0.90) | - | - | - | - |'
  )


def test_a_table_of_what_was_measured():
  step = {'step_s_median': 2.0, 'peak_rss_mb': 800.0}
  floors = [{'seconds': {'step': x, 'distill': 2 * x}} for x in (1.9, 1.7)]
  results = {
    'step_f32': {
      tables.OURS: [step],
      tables.PEFT: [{'step_s_median': 2.5, 'peak_rss_mb': 1000.0}],
      tables.T5X: [],
      tables.FLOOR_XLA: floors,
      tables.FLOOR_TORCH: [{'seconds': {'step': 2.0, 'distill': 1.7}}],
    },
    'distill_f32': {tables.OURS: [{'step_s_median': 4.0}]},
    'mix_f32': {
      tables.OURS: [{'examples_per_s': 12.0}],
      tables.T5X: [{'examples_per_s': 4.0}],
    },
    'decode_f32': {
      tables.OURS: [{'examples_per_s': 13.0}],
      tables.HF: [{'examples_per_s': 10.0}],
    },
    'checkpoint': {
      tables.CHECKPOINT: [{'bytes': 625995, 'save_s_median': 0.053}]
    },
    'start': {tables.START: []},
  }
  assert tables.table(results).splitlines()[2:] == [
    '| step, float32, s | 2.000 | 2.500 | - | 0.80 (<= 0.90) | - |'
    ' 0.85 (>= 0.80) | 0.85 | 0.80 |',
    '| distillation, float32, s | 4.000 | - | - | - | - |'
    ' 0.85 (>= 0.80) | 2.00 | - |',
    '| length mix, float32, examples/s | 12.000 | - | 4.000 | - | 3.00 | - | -'
    ' | - |',
    '| greedy decoding, float32, examples/s | 13.000 | 10.000 | - |'
    ' 1.30 (>= 1.2) | - | - | - | - |',
    '',
    'checkpoint, 6 tasks: bytes; seconds: 625,995; 0.05 (< 1,000,000; < 0.1)',
  ]


def test_the_page_has_what_the_files_have():
  with open(tables.README, encoding='utf-8') as f:
    text = f.read()
  for name in os.listdir(tables.FOLDER):
    assert f'<!-- table {name.removesuffix(".json")} ' in text
  assert tables.page(text) == text


def test_a_file_of_a_machine_is_renewed_by_row(tmp_path):
  path = str(tmp_path / 'machine.json')
  one, other = ({tables.OURS: [{'step_s_median': x}]} for x in (1.0, 2.0))
  tables.write(path, 'slow', 'small', {'step_f32': one, 'step_bf16': one})
  tables.write(path, 'fast', 'base', {'step_f32': one})
  tables.write(path, 'fast', 'small', {'step_f32': other})
  assert tables.read(path) == {
    'machine': 'fast',
    'models': {
      'small': {'step_f32': other, 'step_bf16': one},
      'base': {'step_f32': one},
    },
  }


def test_rows_are_those_of_the_tables():
  alone = {tables.CHECKPOINT, tables.START, tables.STUDY}
  assert set(compare.ROWS) == set(tables.ROWS) | alone
