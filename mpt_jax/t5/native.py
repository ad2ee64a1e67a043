"""Code of our own for XLA's CPU backend, compiled where it runs.

`native.c` is compiled by the machine's C compiler for the machine's own
processor, once: the result is kept in the user's cache folder. Without a
compiler XLA's own operations do the work, more slowly and with more memory.

MPT_JAX_NATIVE=0 in the environment switches it off.
"""

import ctypes
import functools
import hashlib
import logging
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import tempfile
from typing import Any

import jax

log = logging.getLogger(__name__)

SWITCH = 'MPT_JAX_NATIVE'
_SOURCE = pathlib.Path(__file__).with_name('native.c')
_FLAGS = ('-O3', '-march=native', '-std=gnu11', '-shared', '-fPIC', '-w')
_HANDLERS = ('attention_forward', 'attention_backward')


def cache_folder(name: str) -> str | None:
  """A folder in the user's cache, made; None if it isn't the user's alone."""
  root = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  folder = os.path.join(root, 'mpt_jax', name)
  try:
    # What is in it is run: nobody else may write there.
    os.makedirs(folder, mode=0o700, exist_ok=True)
    found = os.stat(folder)
  except OSError:
    return None
  theirs = found.st_uid != os.getuid() or found.st_mode & 0o022
  return None if theirs or not os.access(folder, os.W_OK) else folder


def keep_compiled() -> None:
  """Keeps what JAX compiles for later processes, in the user's cache folder.

  JAX's own environment variables decide otherwise: JAX_COMPILATION_CACHE_DIR
  is another folder, JAX_ENABLE_COMPILATION_CACHE=false is none.
  """
  config: Any = jax.config
  if config.jax_compilation_cache_dir:
    return
  folder = cache_folder('xla')
  if folder is not None:
    config.update('jax_compilation_cache_dir', folder)


def is_wanted() -> bool:
  """Whether this process computes on one CPU device and may use the code."""
  return os.environ.get(SWITCH, '1') != '0' and is_one_cpu()


def is_one_cpu() -> bool:
  """Whether this process computes on one CPU device.

  Over several XLA would not know how to split calls and fixed layouts.
  """
  return jax.default_backend() == 'cpu' and jax.device_count() == 1


@functools.cache
def targets() -> dict[str, str] | None:
  """Compiles, loads and registers the code, the first time.

  Returns:
    {name of a handler: its name for `jax.ffi.ffi_call`}, or None without a
    compiler; the log says why.
  """
  try:
    library, digest = _load()
  except (OSError, subprocess.SubprocessError) as e:
    log.info('attention is left to XLA: %s', e)
    return None
  names = {}
  for handler in _HANDLERS:
    # JAX keeps compiled steps between processes by the names in them.
    names[handler] = f'mpt_jax_{handler}_{digest[:12]}'
    capsule = jax.ffi.pycapsule(getattr(library, handler))
    jax.ffi.register_ffi_target(names[handler], capsule, platform='cpu')
  return names


def _load() -> tuple[ctypes.CDLL, str]:
  """The compiled library, and what it was made of as a digest."""
  command = [*_compiler(), *_FLAGS, f'-I{jax.ffi.include_dir()}']
  made_of = [_SOURCE.read_text(), *command, processor(), jax.__version__]
  digest = hashlib.sha256('\0'.join(made_of).encode()).hexdigest()
  folder = cache_folder('native')
  if folder is None:
    folder = tempfile.mkdtemp(prefix='mpt-jax-native-')
  path = os.path.join(folder, f'attention-{digest[:32]}.so')
  if not os.path.exists(path):
    log.info('compiling attention for this processor, once …')
    handle, unfinished = tempfile.mkstemp(dir=folder, suffix='.so')
    os.close(handle)
    try:
      run = subprocess.run(
        [*command, str(_SOURCE), '-o', unfinished, '-lm'],
        capture_output=True,
        text=True,
        check=False,
      )
      if run.returncode:
        first = (run.stderr.strip().splitlines() or ['no message'])[0]
        raise OSError(f'{shlex.join(command[:1])} failed: {first}')
      os.replace(unfinished, path)
    finally:
      if os.path.exists(unfinished):
        os.remove(unfinished)
  return ctypes.CDLL(path), digest


def _compiler() -> list[str]:
  if os.environ.get('CC'):
    return shlex.split(os.environ['CC'])
  for name in ('cc', 'gcc', 'clang'):
    if shutil.which(name):
      return [name]
  raise OSError('no C compiler (cc, gcc, clang) on PATH')


@functools.cache
def processor() -> str:
  """Describes the processor by what -march=native depends on.

  Returns:
    On Linux lines of /proc/cpuinfo ('flags : ...'), else its name.
  """
  try:
    with open('/proc/cpuinfo', encoding='utf-8') as f:
      lines = f.read().partition('\n\n')[0].splitlines()
  except OSError:
    return platform.processor() or platform.machine()
  kept = ('vendor_id', 'model name', 'flags', 'Features', 'CPU part')
  return '\n'.join(line for line in lines if line.startswith(kept))
