"""Every test runs under strict JAX flags, on two CPU devices, off the net.

MPT_JAX_TEST_DEVICES sets another number of devices (see test_one_device.py).
"""

import atexit
import collections
import ctypes
import gc
import os
import pathlib
import shutil
import tempfile

from tests.helpers import quick

# Before jax is imported: the number of virtual devices is fixed then.
os.environ['XLA_FLAGS'] = ' '.join(
  [
    os.environ.get('XLA_FLAGS', ''),
    '--xla_force_host_platform_device_count='
    + os.environ.get('MPT_JAX_TEST_DEVICES', '2'),
    quick.FLAGS,
  ]
).strip()
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
# A name of the hub that no test has put there is not asked for.
os.environ['HF_HUB_OFFLINE'] = '1'
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  # Not in the user's own; workers and child processes share it.
  _cache = tempfile.mkdtemp(prefix='mpt-jax-tests-')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _cache
  atexit.register(shutil.rmtree, _cache, ignore_errors=True)
  # JAX's own limit is a second, which hardly a step takes with these flags.
  # Small programs count, too: a random backbone is a hundred of them.
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

import socket

import jax
import pytest

TESTDATA = pathlib.Path(__file__).parent / 'testdata'

# A sloppy broadcast between [P, D] and [K, P, D] must not pass unnoticed.
jax.config.update('jax_numpy_rank_promotion', 'raise')


def _keep_freed_memory():
  """Where glibc can: it maps the same pages again and again otherwise.

  That is a third of the CPU time that demo-large takes to decode.
  """
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is not None:
    mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD of glibc's malloc.h,
    mallopt(-2, 64 << 20)  # M_TOP_PAD
    mallopt(-3, 1 << 30)  # and M_MMAP_THRESHOLD.


def pytest_configure(config):
  _keep_freed_memory()
  # A warning that our own lines cause is an error; libraries may warn.
  for package in ('mpt_jax', 'tasks'):
    config.addinivalue_line('filterwarnings', rf'error:::{package}(\..*)?$')


def pytest_collection_finish():
  # What was imported stays: garbage is looked for among the rest, and not
  # every 700 objects, of which a trace makes hundreds of thousands.
  gc.freeze()
  gc.set_threshold(50_000, 20, 100)


def pytest_collection_modifyitems(items):
  """Files of mostly slow tests go first.

  A file is one worker's, and one that comes last leaves the other idle.
  """
  slow, count = collections.Counter(), collections.Counter()
  for item in items:
    slow[item.path] += item.get_closest_marker('slow') is not None
    count[item.path] += 1
  items.sort(key=lambda item: -slow[item.path] / count[item.path])


@pytest.fixture
def testdata() -> pathlib.Path:
  """The folder of shared fixtures."""
  return TESTDATA


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
  """Lets a test talk to its own machine only."""
  connect = socket.socket.connect

  def local_only(self, address):
    if self.family == socket.AF_UNIX or address[0] in ('127.0.0.1', '::1'):
      return connect(self, address)
    raise OSError(f'a test tried to reach {address}')

  monkeypatch.setattr(socket.socket, 'connect', local_only)
