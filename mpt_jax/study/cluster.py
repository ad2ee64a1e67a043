"""Workers of a study on Ray: one box with several GPUs, or a cluster.

Ray places them, gives each its GPUs and tells of lost ones. A worker is an
actor: what it has loaded and compiled lives as long as its process.
"""

from collections.abc import Callable
import concurrent.futures
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from typing import Any

from mpt_jax.checkpoints import lock
from mpt_jax.engine import preemption
from mpt_jax.study import worker as worker_lib
from mpt_jax.types import InputError

try:
  import ray
  from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as e:
  raise InputError(
    "EXECUTOR = 'ray' needs Ray, which is not installed: pip install"
    " 'mpt_jax[ray]'"
  ) from e


class Ray:
  """The cluster of RAY_ADDRESS or of `ray start` on this machine, or our own.

  See `workers.Executor`.
  """

  lost: tuple[type[Exception], ...] = (
    ray.exceptions.RayActorError,
    ray.exceptions.OutOfMemoryError,
  )
  replaces = True

  def __init__(self, folder: str, workers: int | None):
    """Connects.

    Args:
      folder: the study's folder.
      workers: how many; GPUs and cores are shared among them. None is one for
        each GPU, or for each core where there is no GPU.
    """
    self._folder, self._workers = folder, workers
    self._ours = not ray.is_initialized()
    if self._ours:
      _connect()
    nodes = _nodes()
    with_gpus = [(cpus, gpus) for cpus, gpus in nodes if gpus]
    self._gpus = self._share([gpus for _, gpus in with_gpus])
    if with_gpus:
      self._cpus = min(
        cpus * self._gpus // gpus
        for cpus, gpus in with_gpus  # Those beside its GPUs.
      )
    else:
      self._cpus = self._share([cpus for cpus, _ in nodes if cpus]) or 1

  def _share(self, there: list[int]) -> int:
    """What a worker gets of what the nodes have; all of it from one node."""
    if not there or not self._workers:
      return min(len(there), 1)
    return max(1, min(sum(there) // self._workers, *there))

  def start(self) -> '_RayWorker':
    """Starts a worker, as soon as there is room for it."""
    variables = worker_lib.environment(max(1, self._cpus))
    # What multiprocessing hands on, too.
    variables['PYTHONPATH'] = os.pathsep.join(filter(None, sys.path))
    actor = (
      ray.remote(_Actor)
      .options(
        num_cpus=self._cpus,
        num_gpus=self._gpus,
        runtime_env={'env_vars': variables},
      )
      .remote()
    )
    return _RayWorker(actor, self._folder)

  def limit(self, device: str) -> int:
    """As many as the nodes that there are now can hold."""
    del device
    room = sum(
      min(
        there // wanted
        for there, wanted in zip(node, (self._cpus, self._gpus), strict=True)
        if wanted
      )
      for node in _nodes()
    )
    # Where all nodes were lost, one waits for the next.
    return max(1, min(room, self._workers or room))

  def shutdown(self) -> None:
    """Ends what we started; a cluster of others goes on."""
    if self._ours:
      ray.shutdown()


def _connect() -> None:
  """Connects quietly, and leaves this process its signals."""
  # It would ask the network otherwise.
  os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
  # It warns of it; a worker without a GPU is to see none.
  os.environ.setdefault('RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO', '1')
  logging.getLogger('ray').setLevel(logging.ERROR)
  before = signal.getsignal(signal.SIGTERM)
  try:
    with preemption.deaf_children():
      ray.init(
        configure_logging=False, log_to_driver=False, include_dashboard=False
      )
  except (ConnectionError, RuntimeError) as e:
    raise InputError(
      f'no connection to Ray at {os.environ.get("RAY_ADDRESS")!r}'
      f' (RAY_ADDRESS): {str(e).splitlines()[0]}'
    ) from e
  finally:
    if threading.current_thread() is threading.main_thread():
      signal.signal(signal.SIGTERM, before)


def _nodes() -> list[tuple[int, int]]:
  """(cores, GPUs) of each node that is alive."""
  found = [node['Resources'] for node in ray.nodes() if node['Alive']]
  return [(int(r.get('CPU', 0)), int(r.get('GPU', 0))) for r in found]


class _RayWorker:
  """An actor, one call at a time; see `workers.Worker`."""

  def __init__(self, actor: Any, folder: str):
    self._actor = actor
    self._asked: Any = None
    self._place = actor.place.remote()
    self._last = self.started = actor.start.remote(
      os.getcwd(), folder, lock.holder(folder)
    ).future()

  def submit(
    self, function: Callable[..., Any], *args: Any
  ) -> concurrent.futures.Future:
    """Runs a function in it."""
    self._last = self._actor.call.remote(function, *args).future()
    return self._last

  def terminate(self) -> None:
    """As SIGTERM ends a local worker; without a note of Ray, if it is idle."""
    if self._last.done() or not ray.wait([self._place], timeout=0)[0]:
      self.kill()
      return
    with contextlib.suppress(ray.exceptions.RayError):
      node, process = ray.get(self._place)
      on_node = NodeAffinitySchedulingStrategy(node, soft=False)
      # Not waited for: there may be many nodes.
      self._asked = (
        ray.remote(_terminate)
        .options(num_cpus=0, scheduling_strategy=on_node)
        .remote(process)
      )

  def close(self) -> None:
    """Ends it after what it runs; one that waits for room never begins."""
    if self.started.done():
      concurrent.futures.wait([self._last])
    self.kill()

  def kill(self) -> None:
    """Ends it at once."""
    ray.kill(self._actor)


# ---------------------------------------------------------------------------
# On a node.


class _Actor:
  """A worker process."""

  def place(self) -> tuple[str, int]:
    """Returns the node's name and this process's number."""
    return ray.get_runtime_context().get_node_id(), os.getpid()

  def start(self, *args: Any) -> tuple[str, Any]:
    """Prepares it; see `_prepare`, and `worker.guarded` for what returns."""
    return worker_lib.guarded(_prepare, args)

  def call(self, function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function."""
    return function(*args)


def _prepare(working: str, folder: str, held: str | None) -> str:
  """Prepares this process where the study was started; returns its device.

  Raises:
    InputError: if this node does not see the study's folder.
  """
  node = socket.gethostname()
  try:
    os.chdir(working)
    seen = lock.holder(folder)
  except OSError as e:
    raise InputError(
      f'{working}, where the study was started, is not on node {node}: all'
      ' nodes must see one file system'
    ) from e
  if seen != held:
    raise InputError(
      f'{folder} on node {node} is not the folder of the study: put MODEL_DIR'
      ' on a file system that all nodes see'
    )
  # Ray would end after what is running; what trains takes it for a request.
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  worker_lib.start(folder)
  return worker_lib.device()


def _terminate(process: int) -> None:
  os.kill(process, signal.SIGTERM)
