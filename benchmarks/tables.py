r"""What was measured, a file a machine, and the tables made of it.

  python -m benchmarks.tables
  python -m benchmarks.tables --page

`benchmarks.compare --output=benchmarks/results/MACHINE.json` writes such a file
or renews its rows. This prints the tables of all of them, or with --page writes
them where benchmarks/README.md has

  <!-- table MACHINE MODEL -->
  <!-- end -->
"""

import argparse
from collections.abc import Mapping, Sequence
import dataclasses
import json
import os
import re
import statistics
from typing import Any

from mpt_jax.checkpoints import files

OURS, PEFT, T5X, HF = 'mpt_jax', 'peft', 't5x', 'transformers'
FLOOR_XLA, FLOOR_TORCH = 'floor xla', 'floor torch'
# Of mpt_jax alone.
CHECKPOINT, START, STUDY = 'checkpoint', 'start', 'study'
FOLDER = os.path.join(os.path.dirname(__file__), 'results')
README = os.path.join(os.path.dirname(__file__), 'README.md')
# What a step's share of its floor should be, on any machine.
SHARE_GOAL = '>= 0.80'
_SECONDS, _RATE = 's', 'examples/s'
_KEYS = {_SECONDS: 'step_s_median', _RATE: 'examples_per_s'}
_TABLE = re.compile(r'(<!-- table (\S+) (\S+) -->\n).*?(<!-- end -->)', re.S)

# system -> what its runs printed, a line of JSON each; and row -> such.
Found = Mapping[str, Sequence[Mapping[str, Any]]]
Results = Mapping[str, Found]


@dataclasses.dataclass(frozen=True)
class Row:
  """What is compared.

  Attributes:
    label: what a reader calls it.
    unit: of its values.
    goals: peer -> what mpt_jax aims at for the ratio of itself to it.
    floor: which floor it has: (the row that measured it, what of it).
  """

  label: str
  unit: str = _SECONDS
  goals: Mapping[str, str] = dataclasses.field(default_factory=dict)
  floor: tuple[str, str] | None = None


ROWS = {
  'step_f32': Row(
    'step, float32',
    goals={PEFT: '<= 0.90', T5X: '<= 0.70'},
    floor=('step_f32', 'step'),
  ),
  'step_bf16': Row('step, bfloat16', floor=('step_bf16', 'step')),
  'distill_f32': Row(
    'distillation, float32',
    goals={PEFT: '<= 0.90'},
    floor=('step_f32', 'distill'),
  ),
  'distill_bf16': Row('distillation, bfloat16', floor=('step_bf16', 'distill')),
  'mix_f32': Row('length mix, float32', _RATE),
  'mix_bf16': Row('length mix, bfloat16', _RATE),
  'lora_f32': Row('LoRA, float32'),
  'prefix_f32': Row('prefix, float32'),
  'attempt_f32': Row('ATTEMPT, float32'),
  'masked_f32': Row('prompt on RoBERTa-base, float32'),
  'decode_f32': Row('greedy decoding, float32', _RATE, {HF: '>= 1.2'}),
  'decode_bf16': Row('greedy decoding, bfloat16', _RATE),
}
# Row of mpt_jax alone, what, goal, keys of the values, their form.
OWN = (
  (
    CHECKPOINT,
    'checkpoint, 6 tasks: bytes; seconds',
    '< 1,000,000; < 0.1',
    ('bytes', 'save_s_median'),
    '{:,.0f}; {:.2f}',
  ),
  (
    START,
    '--help; start to first step, and again with its steps compiled: seconds',
    '< 1; < 12',
    ('help_s', 'no_cache_s', 'cache_s'),
    '{:.2f}; {:.1f}, {:.1f}',
  ),
  (STUDY, 'a study: runs an hour', '', ('runs_per_hour',), '{:.0f}'),
)


def median(found: Found, system: str, key: str) -> float | None:
  """Of what a system measured in a row's rounds; None if it did not."""
  runs = [one[key] for one in found.get(system, ()) if key in one]
  return statistics.median(runs) if runs else None


def ratio(row: str, found: Found, peer: str, key: str = '') -> float | None:
  """Ours to a peer's median: seconds, or of a length mix examples/s."""
  key = key or _KEYS[ROWS[row].unit]
  return _divided(median(found, OURS, key), median(found, peer, key))


def floor_of(results: Results, row: str, system: str) -> float | None:
  """The least seconds of a row's matrix products by XLA or torch."""
  place = ROWS[row].floor
  if place is None:
    return None
  runs = results.get(place[0], {}).get(system, ())
  return min((one['seconds'][place[1]] for one in runs), default=None)


def share_of_floor(results: Results, row: str) -> float | None:
  """The least seconds of XLA's products to those of our step."""
  ours = median(results[row], OURS, 'step_s_median')
  return _divided(floor_of(results, row, FLOOR_XLA), ours)


def _divided(one: float | None, other: float | None) -> float | None:
  return one / other if one and other else None


def table(results: Results) -> str:
  """The results as a Markdown table, and what is of mpt_jax alone."""
  head = (
    'row',
    'mpt_jax',
    'PEFT, transformers',
    'T5X',
    'to PEFT',
    'to T5X',
    "share of XLA's floor",
    "torch's speed to XLA's",
    'memory to PEFT',
  )
  lines = [f'| {" | ".join(head)} |', f'|---|{"---:|" * (len(head) - 1)}']
  for name, row in ROWS.items():
    found = results.get(name, {})
    if not found.get(OURS):
      continue
    peer = HF if found.get(HF) else PEFT
    key = _KEYS[row.unit]
    values = [
      *(_number(median(found, system, key), 3) for system in (OURS, peer, T5X)),
      *(_aimed(row, p, ratio(name, found, p)) for p in (peer, T5X)),
      _goal(_number(share_of_floor(results, name)), SHARE_GOAL),
      _number(
        _divided(
          floor_of(results, name, FLOOR_XLA),
          floor_of(results, name, FLOOR_TORCH),
        )
      ),
      _number(ratio(name, found, peer, 'peak_rss_mb')),
    ]
    lines.append(f'| {row.label}, {row.unit} | {" | ".join(values)} |')
  if len(lines) == 2:
    lines = []
  for name, what, goal, keys, form in OWN:
    values = [median(results.get(name, {}), name, key) for key in keys]
    if None not in values:
      lines.append(f'\n{what}: {_goal(form.format(*values), goal)}')
  return '\n'.join(lines)


def _number(value: float | None, digits: int = 2) -> str:
  return '-' if value is None else f'{value:.{digits}f}'


def _goal(value: str, goal: str) -> str:
  return value if value == '-' or not goal else f'{value} ({goal})'


def _aimed(row: Row, peer: str, value: float | None) -> str:
  return _goal(_number(value), row.goals.get(peer, ''))


def read(path: str) -> dict[str, Any]:
  """A machine's file: what it is, and model -> its results."""
  with open(path, encoding='utf-8') as f:
    return json.load(f)


def write(path: str, machine: str, model: str, results: Results) -> None:
  """Renews the rows of a machine's file, or begins one."""
  known = read(path) if os.path.exists(path) else {'models': {}}
  rows = {**known['models'].get(model, {}), **results}
  content = {'machine': machine, 'models': {**known['models'], model: rows}}
  files.write_file(path, f'{json.dumps(content, indent=1)}\n'.encode())


def page(text: str) -> str:
  """A page with its tables as the files of results have them."""

  def fill(match: re.Match[str]) -> str:
    begin, machine, model, end = match.groups()
    found = read(os.path.join(FOLDER, f'{machine}.json'))
    return f'{begin}\n{table(found["models"][model])}\n\n{end}'

  return _TABLE.sub(fill, text)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--page', action='store_true', help='write the tables of README.md anew'
  )
  if parser.parse_args().page:
    with open(README, encoding='utf-8') as f:
      text = page(f.read())
    files.write_file(README, text.encode())
    return
  for name in sorted(os.listdir(FOLDER)):
    content = read(os.path.join(FOLDER, name))
    print(f'{name}: {content["machine"]}')
    for model, results in content['models'].items():
      print(f'\nT5-{model}\n\n{table(results)}\n')


if __name__ == '__main__':
  main()
