"""One case: damage a folder, read it, say how it went."""

import contextlib
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings

from mpt_jax.types import InputError
from tests.fuzz import mutate, readers

SEED = 20_231
# The outcomes, as one byte each in the file of a run.
NOT_RUN, STARTED, READ, REFUSED, UNCLEAN = b'.', b's', b'r', b'i', b'u'

# Of the processor: a wait is no hang on a busy machine. And by the clock.
_SECONDS = 10
_PATIENCE = 120
_MESSAGE_CHARACTERS = 2000
_GROWTH_KIB = 300 << 10


class TooSlow(BaseException):
  """Not an Exception, so that no reader takes it for damage."""


@contextlib.contextmanager
def time_limit(seconds: float):
  """Raises `TooSlow` in the main thread, once the interpreter has it."""

  def stop(*_):
    raise TooSlow(f'more than {seconds} s of work or {_PATIENCE} s of waiting')

  old = signal.signal(signal.SIGALRM, stop)
  old_prof = signal.signal(signal.SIGPROF, stop)
  signal.setitimer(signal.ITIMER_PROF, seconds)
  signal.setitimer(signal.ITIMER_REAL, _PATIENCE)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGPROF, old_prof)
    signal.signal(signal.SIGALRM, old)


class _Watch:
  """Notes which files Python opens and changes; hooks cannot be removed."""

  def __init__(self) -> None:
    self.root: str | None = None
    self.found: list[str] = []
    self.own_files_only = True
    self._code = tuple(
      os.path.realpath(p) for p in {*sys.path, sys.prefix, sys.base_prefix} if p
    )
    sys.addaudithook(self._hook)

  def _hook(self, event: str, args: tuple) -> None:
    if self.root is None:
      return
    if event == 'open':
      path, _, flags = args
      if not isinstance(path, str | bytes):
        return
      writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
      self._note(os.fsdecode(path), bool(writes))
    elif event in ('os.mkdir', 'os.remove', 'os.rename', 'os.rmdir'):
      self._note(os.fsdecode(args[0]), True)
    elif event in (
      'subprocess.Popen',
      'os.system',
      'os.exec',
      'socket.connect',
    ):
      self.found.append(f'{event} {args[0]!r}')

  def _note(self, path: str, writes: bool) -> None:
    root, self.root = self.root, None  # Not for what follows.
    try:
      # A link in the folder may be followed, where download caches have them.
      real = os.path.abspath(path)
      inside = real == root or real.startswith(os.path.join(root or '', ''))
      code = real.startswith(self._code) or real.startswith(('/proc', '/sys'))
      if writes or (self.own_files_only and not inside and not code):
        self.found.append(f'{"wrote" if writes else "opened"} {path}')
    finally:
      self.root = root


_watch: _Watch | None = None


class Arena:
  """A folder that is damaged, read and repaired again and again."""

  def __init__(self, reader: readers.Reader, parent: str, seed: int = SEED):
    global _watch
    _watch = _watch or _Watch()
    self.reader = reader
    self.seed = seed
    self._parent = pathlib.Path(parent)
    self._seeds = reader.seeds()
    for i, files in enumerate(self._seeds):
      for name, content in files.items():
        self._put(self._parent / f'seed{i}' / name, content)
    for name, content in reader.outside().items():
      self._put(self._parent / 'outside' / name, content)
    self._listing = self._list()

  def run(self, number: int) -> tuple[bytes, str]:
    """Runs one case; returns its outcome and what to know about it."""
    rng = random.Random(f'{self.seed}:{self.reader.name}:{number}')
    i = rng.randrange(len(self._seeds))
    changed = self._damage(rng, i)
    folder = self._parent / f'seed{i}'
    try:
      outcome, detail = self._read(str(folder), i)
      what = ', '.join(f'{name} {how}' for name, how in changed.items())
      if outcome is not UNCLEAN and self._list(changed, i) != self._listing:
        outcome, detail = UNCLEAN, 'wrote or removed a file'
      return outcome, f'seed{i}: {what}: {detail}'
    finally:
      for name in changed:
        self._repair(folder, name, self._seeds[i][name])

  def check_intact(self) -> None:
    """Fails if the seeds are not read cleanly."""
    for i in range(len(self._seeds)):
      self.reader.read(str(self._parent / f'seed{i}'), i)

  def damaged(self, number: int, to: str) -> str:
    """Writes the folder of a case to look at, and returns it."""
    rng = random.Random(f'{self.seed}:{self.reader.name}:{number}')
    i = rng.randrange(len(self._seeds))
    self._damage(rng, i)
    target = os.path.join(to, f'{self.reader.name}-{number}')
    shutil.copytree(self._parent / f'seed{i}', target, symlinks=True)
    return target

  def _damage(self, rng: random.Random, seed: int) -> dict[str, str]:
    files = self._seeds[seed]
    folder = self._parent / f'seed{seed}'
    names = [
      n for n in sorted(files) if n.endswith(self.reader.targets or ('',))
    ]
    if len(names) > 8 and rng.random() < 0.5:
      # Many arrays, one file that says where they are.
      main = [n for n in names if n.count('/') < 2 and '.zarray' not in n]
      main = [n for n in main if n.rsplit('/')[-1][0].isalpha()]
      names = main or names
    chosen = rng.sample(names, min(len(names), rng.choice((1, 1, 1, 1, 2))))
    changed = {}
    for name in chosen:
      path = folder / name
      kind = rng.randrange(100)
      if kind < 94:
        path.write_bytes(mutate.mutate(rng, name, files[name]))
        changed[name] = 'mutated'
        continue
      path.unlink()
      if kind == 95:
        path.mkdir()
        changed[name] = 'is a folder'
      elif kind == 96:
        path.symlink_to(rng.choice(('/dev/zero', '/nowhere', name, '/etc')))
        changed[name] = 'is a link'
      elif kind == 97:
        path.write_bytes(b'')
        changed[name] = 'is empty'
      elif kind == 98:
        path.write_bytes(files[rng.choice(sorted(files))])
        changed[name] = 'is another file of the folder'
      else:
        changed[name] = 'is gone'
    return changed

  def _read(self, folder: str, seed: int) -> tuple[bytes, str]:
    assert _watch is not None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _watch.found.clear()
    _watch.own_files_only = self.reader.own_files_only
    try:
      with warnings.catch_warnings(), time_limit(_SECONDS):
        warnings.simplefilter('error', RuntimeWarning)
        _watch.root = os.path.realpath(folder)
        self.reader.read(folder, seed)
      outcome, detail = READ, ''
    except InputError as e:
      outcome, detail = _judge(e)
    except readers.Unclean as e:
      outcome, detail = UNCLEAN, f'read, but {e}'
    except (Exception, TooSlow) as e:
      where = traceback.extract_tb(e.__traceback__)
      ours = [f for f in where if '/mpt_jax/' in f.filename] or where
      last = f'{os.path.basename(ours[-1].filename)}:{ours[-1].lineno}'
      outcome = UNCLEAN
      detail = f'{type(e).__name__} at {last}: {str(e)[:300]!r}'
    finally:
      _watch.root = None
    if _watch.found:
      return UNCLEAN, f'{_watch.found[0]} ({detail})'
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if grown > _GROWTH_KIB:
      return UNCLEAN, f'took {grown >> 10} MiB ({detail})'
    return outcome, detail

  def _list(
    self, changed: dict[str, str] | tuple = (), seed: int = 0
  ) -> list[str]:
    """Every file; those of a case as if it had not been."""
    found = set()
    for base, _, names in os.walk(self._parent):
      found |= {os.path.join(base, name) for name in names}
    for name in changed:
      found.add(str(self._parent / f'seed{seed}' / name))
    return sorted(found)

  def _repair(self, folder: pathlib.Path, name: str, content: bytes) -> None:
    path = folder / name
    if path.is_dir() and not path.is_symlink():
      shutil.rmtree(path)
    elif path.is_symlink():
      path.unlink()
    self._put(path, content)

  @staticmethod
  def _put(path: pathlib.Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _judge(error: InputError) -> tuple[bytes, str]:
  """The message is what the user sees, so it must be one readable line."""
  text = str(error)
  if not text.strip():
    return UNCLEAN, 'an empty message'
  if not text.isprintable():
    return UNCLEAN, f'a message with control characters: {text[:200]!r}'
  if len(text) > _MESSAGE_CHARACTERS:
    return UNCLEAN, f'a message of {len(text)} characters: {text[:200]!r}'
  return REFUSED, text


@contextlib.contextmanager
def arena(reader: readers.Reader, seed: int = SEED):
  """An `Arena` in a folder of its own."""
  with tempfile.TemporaryDirectory(prefix='fuzz-') as parent:
    yield Arena(reader, parent, seed)
