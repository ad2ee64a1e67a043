"""The memory of a process that computes on its CPU.

XLA's CPU backend asks for its scratch memory anew at each call, and glibc
gives so much back to the system each time: of a T5-small step a tenth of the
CPU time went into mapping the same half gigabyte again. So freed memory is
kept, in huge pages where Linux has them. Computations then run one at a time
in the thread that asks for them; otherwise those that wait hold their scratch
memory too.

MPT_JAX_KEEP_HEAP=0 in the environment switches all of it off.
"""

import ctypes
import os
from typing import Any

import jax

SWITCH = 'MPT_JAX_KEEP_HEAP'
# glibc's malloc.h and Linux's mman.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_HUGEPAGE = 14
_HUGEPAGE_BYTES = 2 << 20
# More than Python and JAX come to hold for good between two compilations.
_ROOM_FOR_SMALL_BYTES = 64 << 20

# Whether `keep` has been called, and done something.
_kept = False


def prepare() -> None:
  """Makes ready for computing on the CPU; before JAX has started a backend.

  Nothing is changed for another platform, several virtual devices or several
  processes, which need to compute at the same time.
  """
  if _wanted():
    jax.config.update('jax_cpu_enable_async_dispatch', False)


def keep() -> None:
  """Gives back what is free now, and keeps what is freed from now on.

  To be called when the weights are in place and the copies of them gone.
  """
  global _kept
  if _wanted() and jax.default_backend() == 'cpu':
    mallopt = getattr(_c_library(), 'mallopt', None)
    if mallopt is not None:
      mallopt(_MMAP_MAX, 0)
      mallopt(_TRIM_THRESHOLD, -1)
      _kept = True
  release()


def release() -> None:
  """Gives freed memory back to the system, where the C library can."""
  libc = _c_library()
  trim = getattr(libc, 'malloc_trim', None)
  if trim is not None:
    trim(0)
  if _kept:
    _ask_for_huge_pages(libc)
    _make_room_for_small(libc)


def _c_library() -> Any:
  libc = ctypes.CDLL(None)
  libc.malloc.restype = libc.realloc.restype = ctypes.c_void_p
  return libc


def _ask_for_huge_pages(libc: Any) -> None:
  """Has the heap grow into memory that Linux backs with pages of 2 MiB.

  A heap that is kept holds on to the addresses of a free block, so one block
  is taken, marked and given back; nothing of it is in memory before it is
  written to.
  """
  size = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') // 2
  block = libc.malloc(ctypes.c_size_t(size))
  if block is None:
    return
  begin = -(-block // _HUGEPAGE_BYTES) * _HUGEPAGE_BYTES
  libc.madvise(
    ctypes.c_void_p(begin), ctypes.c_size_t(block + size - begin), _HUGEPAGE
  )
  libc.free(ctypes.c_void_p(block))


def _make_room_for_small(libc: Any) -> None:
  """Keeps small blocks from the end of the heap, where scratch memory is.

  One that lay behind scratch memory would keep it from joining the end of the
  heap when freed, and the next of the same size, which is aligned and so needs
  a few bytes more, would be placed behind it: the same again in memory. The C
  library takes from a free block before it takes from the end, so there is one,
  and behind it a block that stays.
  """
  size = ctypes.c_size_t(_ROOM_FOR_SMALL_BYTES)
  room, fence = libc.malloc(size), libc.malloc(size)
  libc.realloc(ctypes.c_void_p(fence), ctypes.c_size_t(1))
  libc.free(ctypes.c_void_p(room))


def _wanted() -> bool:
  config: Any = jax.config
  platforms = config.jax_platforms or ''
  return (
    os.environ.get(SWITCH, '1') != '0'
    and platforms in ('', 'cpu')
    and 'host_platform_device_count' not in os.environ.get('XLA_FLAGS', '')
    and not jax.distributed.is_initialized()
  )
