"""The long run: `make fuzz`, or one case again

  python -m tests.fuzz --readers=peft --show=1234

Each reader runs in a process of its own, so that a crash or a hang in
somebody's C++ ends a case and not the run.
"""

import argparse
import itertools
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

from tests.fuzz import cases, readers

# A case that no signal could end: the process is killed.
_SILENT_SECONDS = 300
_START_SECONDS = 1800
_MEMORY = 4 << 30


def _child(reader: str, start: int, stop: int, seed: int, folder: str) -> None:
  """Runs cases; writes an outcome per byte and a line per unclean case."""
  path = pathlib.Path(folder, reader)
  outcomes = os.open(f'{path}.outcomes', os.O_WRONLY)
  with cases.arena(readers.READERS[reader], seed) as arena:
    arena.check_intact()
    # Everything is imported now; what is added is allocated by cases.
    size = int(pathlib.Path('/proc/self/statm').read_text().split()[0])
    limit = size * resource.getpagesize() + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with open(f'{path}.unclean', 'a', encoding='utf-8') as log:
      for number in range(start, stop):
        os.pwrite(outcomes, cases.STARTED, number)
        outcome, detail = arena.run(number)
        os.pwrite(outcomes, outcome, number)
        if outcome is cases.UNCLEAN:
          log.write(f'{number}: {ascii(detail)}\n')
          log.flush()


def _supervise(reader: str, count: int, seed: int, folder: str) -> bytes:
  """Runs the cases of a reader to their end; returns the outcomes."""
  path = pathlib.Path(folder, f'{reader}.outcomes')
  path.write_bytes(cases.NOT_RUN * count)
  began = time.monotonic()
  start = 0
  while start < count:
    command = [sys.executable, '-m', 'tests.fuzz', '--child', reader]
    command += ['--start', str(start), '--cases', str(count)]
    command += ['--seed', str(seed), '--out', folder]
    errors = pathlib.Path(folder, f'{reader}.stderr')
    with errors.open('ab') as stderr:
      process = subprocess.Popen(command, stderr=stderr)
    changed, last, killed = time.monotonic(), path.read_bytes(), False
    limit = _START_SECONDS
    while process.poll() is None:
      time.sleep(0.5)
      now = path.read_bytes()
      if now != last:
        last, changed = now, time.monotonic()
        limit = _SILENT_SECONDS
      elif time.monotonic() - changed > limit:
        process.kill()
        killed = True
      _progress(reader, now, began)
    outcomes = path.read_bytes()
    done = count - outcomes.count(cases.NOT_RUN)
    if process.returncode == 0:
      break
    if done == start:
      raise SystemExit(f'{reader} cannot start; see {errors}')
    # The case in which it ended is unclean.
    at = done - 1
    with open(path, 'r+b') as f:
      f.seek(at)
      f.write(cases.UNCLEAN)
    how = 'a hang' if killed else f'exit code {process.returncode}'
    with open(f'{folder}/{reader}.unclean', 'a', encoding='utf-8') as log:
      log.write(f'{at}: the process ended: {how}\n')
    start = done
  if sys.stderr.isatty():
    print(file=sys.stderr)
  return path.read_bytes()


_printed = itertools.count()


def _progress(reader: str, outcomes: bytes, began: float) -> None:
  done = len(outcomes) - outcomes.count(cases.NOT_RUN)
  seconds = time.monotonic() - began
  left = seconds * (len(outcomes) - done) / max(done, 1)
  text = (
    f'{reader} is starting'
    if not done
    else (
      f'{reader} {done}/{len(outcomes)},'
      f' {outcomes.count(cases.UNCLEAN)} unclean, {left / 60:.1f} min left'
    )
  )
  if sys.stderr.isatty():
    print(f'\r{text:<70}', end='', file=sys.stderr, flush=True)
  elif next(_printed) % 60 == 0:
    print(text, file=sys.stderr, flush=True)


def _row(*cells: object) -> str:
  name, *numbers = map(str, cells)
  return f'{name:<12}' + ''.join(f'{n:>15}' for n in numbers)


def main() -> int:
  parser = argparse.ArgumentParser(prog='python -m tests.fuzz')
  parser.add_argument('--readers', default=','.join(readers.READERS))
  parser.add_argument('--cases', type=int, default=20_000)
  parser.add_argument('--seed', type=int, default=cases.SEED)
  parser.add_argument('--out', help='folder for outcomes and unclean cases')
  parser.add_argument('--show', type=int, help='run one case and keep it')
  parser.add_argument('--start', type=int, default=0, help=argparse.SUPPRESS)
  parser.add_argument('--child', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.child:
    _child(args.child, args.start, args.cases, args.seed, args.out)
    return 0
  names = args.readers.split(',')
  for name in names:
    if name not in readers.READERS:
      parser.error(
        f'no reader {name!r}; there are {", ".join(readers.READERS)}'
      )
  out = args.out or tempfile.mkdtemp(prefix='mpt_jax-fuzz-')
  os.makedirs(out, exist_ok=True)
  if args.show is not None:
    for name in names:
      with cases.arena(readers.READERS[name], args.seed) as arena:
        outcome, detail = arena.run(args.show)
        print(outcome.decode(), ascii(detail), arena.damaged(args.show, out))
    return 0
  unclean = 0
  table = [_row('reader', 'cases', 'read cleanly', 'refused', 'unclean')]
  for name in names:
    outcomes = _supervise(name, args.cases, args.seed, out)
    counts = [
      outcomes.count(o) for o in (cases.READ, cases.REFUSED, cases.UNCLEAN)
    ]
    table.append(_row(name, len(outcomes), *counts))
    print('\n'.join(table[-1:]), flush=True)
    unclean += len(outcomes) - sum(counts[:2])
  print('\n' + '\n'.join(table))
  if unclean:
    print(f'\n{unclean} unclean; see {out}/*.unclean', file=sys.stderr)
  return int(unclean > 0)


if __name__ == '__main__':
  sys.exit(main())
