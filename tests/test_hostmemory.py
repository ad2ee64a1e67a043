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
from mpt_jax import hostmemory

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


def run(**environment):
  child = subprocess.run(
    [sys.executable, '-c', _CHILD],
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


def test_switched_off():
  held, kept, _, _ = run(MPT_JAX_KEEP_HEAP='0')
  assert held < 64
  assert kept < 100
