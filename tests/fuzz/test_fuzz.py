"""Damaged and hostile files end as a clean read or as one line.

The same cases as the first of `make fuzz`; and the corruption matrix, where
every file of a bundle and a backbone is damaged in turn.
"""

import dataclasses
import mmap
import os
import random
import resource

import numpy as np
import pytest
import safetensors.numpy

from mpt_jax.checkpoints import files
from mpt_jax.checkpoints.bundle import check_backbone
from mpt_jax.types import InputError
from tests.fuzz import cases, mutate, readers

# Of the fixed sequence; a backbone is compiled anew for many of its cases.
CASES = {
  'bundle': 400,
  'library': 200,
  'peft': 400,
  'delta': 300,
  'adapterhub': 300,
  'npy': 400,
  'vocabulary': 300,
  'encoder_vocabulary': 300,
  'infer': 400,
  'found': 300,
  'gin': 200,
  'huggingface': 120,
  't5x_legacy': 120,
  't5x_orbax': 120,
}


def _run(name, count, tmp_path):
  arena = cases.Arena(readers.READERS[name], str(tmp_path))
  arena.check_intact()
  outcomes = {}
  for number in range(count):
    outcome, detail = arena.run(number)
    assert outcome is not cases.UNCLEAN, f'{name} {number}: {detail}'
    outcomes[outcome] = outcomes.get(outcome, 0) + 1
  # Damage that is never read, or never refused, tests nothing.
  assert set(outcomes) == {cases.READ, cases.REFUSED}
  arena.check_intact()


@pytest.mark.parametrize('name', CASES)
def test_short_run(name, tmp_path):
  _run(name, CASES[name], tmp_path)


@pytest.mark.slow
@pytest.mark.data
def test_short_run_of_records(tmp_path):
  _run('records', 300, tmp_path)


def test_every_reader_has_a_short_run():
  assert {*CASES, 'records'} == set(readers.READERS)


def test_equal_seeds_give_equal_damage():
  data = readers.VOCABULARY.read_bytes()
  twice = [
    [mutate.mutate(random.Random(seed), 'a.model', data) for seed in range(50)]
    for _ in range(2)
  ]
  assert twice[0] == twice[1]
  assert len(set(twice[0])) > 45


class TestTheFuzzerItself:
  """It must see what it is there to see."""

  @pytest.mark.parametrize(
    ('read', 'seen'),
    [
      (lambda f, _: 1 / 0, 'ZeroDivisionError'),
      (lambda f, _: open('/etc/hostname').close(), 'opened /etc/hostname'),
      (lambda f, _: open(f'{f}/new', 'w').close(), 'wrote'),
      (lambda f, _: os.unlink(f'{f}/a'), 'wrote'),
      (lambda f, _: _unseen(f'{f}/new'), 'wrote or removed a file'),
      (lambda f, _: _refuse('two\nlines' * 999), None),
      (lambda f, _: _forever(), 'TooSlow'),
      (lambda f, _: _grow(100 << 20), 'took'),
    ],
  )
  def test_unclean(self, read, seen, tmp_path, monkeypatch):
    if seen == 'TooSlow':
      monkeypatch.setattr(cases, '_SECONDS', 0.3)
    reader = readers.Reader('x', lambda: [{'a': b'abc' * 9}], read)
    arena = cases.Arena(reader, str(tmp_path))
    monkeypatch.setattr(cases, '_GROWTH_KIB', 1 << 10)
    outcome, detail = arena.run(0)
    if seen is None:
      assert outcome is cases.REFUSED, detail
    else:
      assert outcome is cases.UNCLEAN
      assert seen in detail


def _unseen(path):
  """Writes as somebody's C++ does, past Python."""
  safetensors.numpy.save_file({}, path)


def _refuse(text):
  raise InputError(text)


def _grow(size):
  """Takes memory beyond the most that this process has ever had."""
  most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
  with open('/proc/self/statm') as f:
    now = int(f.read().split()[1]) * mmap.PAGESIZE
  # Not of the heap, which may have room left; and every page of it.
  flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
  mmap.mmap(-1, size + most - now, flags=flags).close()


def _forever():
  while True:
    pass


# --- The corruption matrix ---

DAMAGE = {
  'cut': lambda data: data[: len(data) // 2],
  'zeroed': lambda data: bytes(len(data)),
  'bit flipped': lambda data: (
    data[: len(data) // 2]
    + bytes([data[len(data) // 2] ^ 0x10])
    + data[len(data) // 2 + 1 :]
  ),
  'emptied': lambda data: b'',
  'removed': lambda data: None,
}
# Files that say nothing about the parameters, or nothing that is read.
UNUSED = {'state/_METADATA'}


def _digest(name, folder, seed):
  """What tells one read from another."""
  if name == 'bundle':
    bundle = readers.load_prompts(folder)
    return {k: v.tobytes() for k, v in bundle.arrays.items()}
  backbone = readers.load_backbone(folder)
  return backbone.fingerprint


def _is_refused_with_prompts(folder, fingerprint):
  """Whether prompts of the intact backbone are refused with the damaged."""
  backbone = readers.load_backbone(folder)
  width = backbone.config.emb_dim
  bundle = dataclasses.replace(
    readers.bundles()[1],
    arrays={'prompt': np.ones((3, width), np.float32)},
    backbone_fingerprint=fingerprint,
  )
  with pytest.raises(InputError, match='is another one'):
    check_backbone(bundle, backbone)
  return True


def _kind(file):
  """Files that differ only by the array they belong to."""
  parts = file.rsplit('/', 1)
  if len(parts) == 2 and 'target.' in parts[0]:
    chunk = parts[1] if parts[1] == '.zarray' else 'chunk'
    return f'{parts[0].partition("target.")[0]}<array>/{chunk}'
  return 'state/d/<data>' if file.startswith('state/d/') else file


def matrix(folder):
  """Returns (reader, seed, kind of file, damage) -> {outcome: count}."""
  table = {}
  names = ('bundle', 'huggingface', 't5x_legacy', 't5x_orbax')
  for name in names:
    for seed, stored in enumerate(readers.READERS[name].seeds()):
      place = folder / f'{name}{seed}'
      for file, data in stored.items():
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_bytes(data)
      intact = _digest(name, str(place), seed)
      for file, data in stored.items():
        for damage, change in DAMAGE.items():
          damaged = change(data)
          if damaged is None:
            (place / file).unlink()
          else:
            (place / file).write_bytes(damaged)
          try:
            same = _digest(name, str(place), seed) == intact
            outcome = 'same values' if same else 'other fingerprint'
            # Formats without checksums: the prompts tell.
            assert same or _is_refused_with_prompts(str(place), intact)
          except InputError as e:
            outcome = 'refused' if str(e).isprintable() else 'unprintable'
          (place / file).write_bytes(data)
          cell = table.setdefault((name, seed, _kind(file), damage), {})
          cell[outcome] = cell.get(outcome, 0) + 1
  return table


@pytest.mark.slow
def test_corruption_matrix(tmp_path):
  table = matrix(tmp_path)
  print()
  for (name, seed, file, damage), cell in table.items():
    counts = ', '.join(f'{k} {v}' for k, v in cell.items())
    print(f'{name}/{seed}  {file:<32} {damage:<12} {counts}')
  for (name, seed, file, damage), cell in table.items():
    where = name, seed, file, damage, cell
    if file == files.README:
      # For people; nothing reads it.
      assert set(cell) == {'same values'}, where
    elif name == 'bundle':
      # The digest covers every bit of the rest.
      assert set(cell) == {'refused'}, where
    elif damage != 'bit flipped' and file not in UNUSED:
      assert set(cell) == {'refused'}, where
