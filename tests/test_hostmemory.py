"""What becomes of freed memory: kept in huge pages, or given back.

Settings of the C library hold for a whole process, so each test has its own.
"""

import os
import pathlib
import subprocess
import sys

import pytest

_THP = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')

pytestmark = pytest.mark.skipif(
  not sys.platform.startswith('linux'), reason='needs Linux'
)

_CHILD = """
import ctypes
from mpt_jax.engine import (hostmemory)

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
SIZE = 256 << 20

def megabytes(name):
  with open('/proc/self/smaps_rollup') as f:
    return sum(int(l.split()[1]) for l in f if l.startswith(name)) >> 10

def use():
  block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(SIZE)))
  ctypes.memset(block, 1, SIZE)
  libc.free(block)

hostmemory.prepare()
before = megabytes('Rss')
hostmemory.keep()
held = megabytes('Rss') - before
use()
kept = megabytes('Rss') - before
hostmemory.release()
given_back = megabytes('Rss') - before
use()
print(held, kept, given_back, megabytes('AnonHugePages'))
"""

# As XLA's scratch memory is asked for, while Python keeps something small.
_STEPS = """
import ctypes
from mpt_jax.engine import (hostmemory)

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
SIZE = 128 << 20

hostmemory.prepare()
hostmemory.keep()
# What alignment leaves over joins its neighbours only if the thread's cache of
# small blocks is full, as it is in a process that has compiled something.
blocks = [libc.malloc(ctypes.c_size_t(n)) for n in range(128)]
for block in blocks:
  libc.free(ctypes.c_void_p(block))
places = set()
for step in range(8):
  block = ctypes.c_void_p()
  libc.posix_memalign(
    ctypes.byref(block), ctypes.c_size_t(64), ctypes.c_size_t(SIZE)
  )
  places.add(block.value)
  for _ in range(64):
    libc.malloc(ctypes.c_size_t(3000))
  libc.free(block)
print(len(places))
"""


def run(script=_CHILD, **environment):
  child = subprocess.run(
    [sys.executable, '-c', script],
    env={**os.environ, 'XLA_FLAGS': '', **environment},
    capture_output=True,
    text=True,
  )
  assert child.returncode == 0, child.stderr
  return map(int, child.stdout.split())


def test_freed_memory_is_kept_and_given_back_when_asked():
  held, kept, given_back, _ = run()
  assert held < 64  # What is reserved is not in memory.
  assert kept > 200
  assert given_back < 100


@pytest.mark.skipif(
  not _THP.exists() or '[never]' in _THP.read_text(),
  reason='this Linux has no transparent huge pages',
)
def test_in_huge_pages():
  *_, huge = run()
  assert huge > 200


def test_scratch_memory_stays_where_it_was():
  (places,) = run(_STEPS)
  assert places == 1


def test_switched_off():
  held, kept, _, _ = run(MPT_JAX_KEEP_HEAP='0')
  assert held < 64
  assert kept < 100
