"""Runs the steps of a study on workers: processes here, or Ray's anywhere.

A step is one command of an entry point (`python -m mpt_jax.train …`) with a
folder of its own; `worker` says what happens in a worker.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import concurrent.futures
from concurrent.futures.process import BrokenProcessPool
import contextlib
import logging
import multiprocessing
import os
from typing import Any, Protocol

from mpt_jax import cli
from mpt_jax.checkpoints import files
from mpt_jax.checkpoints import run as run_lib
from mpt_jax.engine import preemption
from mpt_jax.study import worker as worker_lib
from mpt_jax.study.progress import Progress
from mpt_jax.study.steps import Step
from mpt_jax.study.worker import STEP, settings_of
from mpt_jax.types import InputError, nearest

log = logging.getLogger(__name__)

# What an interrupt says while steps run.
STOPPING = (
  'stopping: what trains saves its state and ends; press Ctrl-C again to end'
  ' at once'
)
EXECUTORS = ('local', 'ray')
# A step that has lost so many workers is what kills them.
_TRIES = 4
# Seconds after which a file server has given a lost machine's locks up.
_PATIENCE = 120.0


class StepError(RuntimeError):
  """A step failed by a bug or was killed; the message says which and where."""


def is_done(step: Step, folder: str, shared: Mapping[str, str]) -> bool:
  """Whether a step was finished by an earlier call.

  Args:
    step: the step.
    folder: the study's folder.
    shared: what else decides its result; see `Pool.shared`.

  Returns:
    True if its folder says so.

  Raises:
    InputError: if it was finished with other settings.
  """
  if not _is_finished(step, folder):
    return False
  before, now = (
    files.read_json(os.path.join(folder, step.name, STEP))['settings'],
    settings_of(step, folder, shared),
  )
  for settings in (before, now):
    # Its fingerprint counts, not how its path is spelt.
    settings.pop('INITIAL_CHECKPOINT_PATH', None)
  if differences := run_lib.differences(before, now):
    raise InputError(
      f'{os.path.join(folder, step.name)} was made with other settings; use'
      ' another MODEL_DIR, or those',
      differences,
    )
  return True


def _is_finished(step: Step, folder: str) -> bool:
  return os.path.exists(os.path.join(folder, step.name, STEP))


def standing(folder: str, steps: Sequence[Step]) -> str:
  """Returns what there is to resume of some steps, by the files there.

  Args:
    folder: that of all of them.
    steps: the steps.
  """
  begun = []
  finished = 0
  for step in steps:
    saved = run_lib.latest_step(os.path.join(folder, step.name))
    if _is_finished(step, folder):
      finished += 1
    elif saved is not None:
      begun.append(f'{step.name} from step {saved}')
  if not finished and not begun:
    return 'nothing was saved: the same command starts from the start'
  resumed = f': {", ".join(begun)}' if begun else ' after them'
  return (
    f'{finished} of {len(steps)} runs are finished; the same command'
    f' resumes{resumed}'
  )


class Worker(Protocol):
  """A process that runs one step at a time.

  Attributes:
    started: is done when the worker can take a step: ('ok', its device) or
      an error; see `worker.guarded`.
  """

  started: concurrent.futures.Future

  def submit(
    self, function: Callable[..., Any], *args: Any
  ) -> concurrent.futures.Future:
    """Runs a function in the worker."""

  def terminate(self) -> None:
    """Asks it to end; a training saves its state first."""

  def close(self) -> None:
    """Ends it after what it runs."""

  def kill(self) -> None:
    """Ends it at once."""


class Executor(Protocol):
  """Where workers come from.

  Attributes:
    lost: the errors of a future whose worker is gone.
    replaces: whether a lost worker's step runs again on another.
  """

  lost: tuple[type[Exception], ...]
  replaces: bool

  def start(self) -> Worker:
    """Starts a worker."""

  def limit(self, device: str) -> int:
    """How many workers there can be now, given the first one's device."""

  def shutdown(self) -> None:
    """After the last worker."""


class Local:
  """Processes of this machine, on the standard library's executors."""

  lost: tuple[type[Exception], ...] = (BrokenProcessPool,)
  replaces = False

  def __init__(self, folder: str, workers: int | None):
    self._folder, self._workers = folder, workers
    cores = os.cpu_count() or 1
    with contextlib.suppress(AttributeError):
      cores = len(os.sched_getaffinity(0))
    self._cores = cores

  def start(self) -> Worker:
    """Starts a process."""
    # Each takes its share of the cores, so that they don't fight for them.
    threads = max(1, self._cores // (self._workers or 2))
    return _LocalWorker(self._folder, threads)

  def limit(self, device: str) -> int:
    """As many as asked for, or as there is something to work on."""
    return self._workers or (1 if device != 'cpu' else min(2, self._cores))

  def shutdown(self) -> None:
    """There is nothing beside the workers."""


class _LocalWorker:
  """An executor of one process, so that each step's worker can be chosen."""

  def __init__(self, folder: str, threads: int):
    with _environment(threads), preemption.deaf_children():
      self._executor = concurrent.futures.ProcessPoolExecutor(
        1,
        mp_context=multiprocessing.get_context('spawn'),
        initializer=worker_lib.start_child,
        initargs=(folder,),
      )
      # The process starts with its first call.
      self.started = self._executor.submit(
        worker_lib.guarded, worker_lib.device, ()
      )
    self._processes = list((self._executor._processes or {}).values())

  def submit(
    self, function: Callable[..., Any], *args: Any
  ) -> concurrent.futures.Future:
    return self._executor.submit(function, *args)

  def terminate(self) -> None:
    for process in self._processes:
      process.terminate()

  def close(self) -> None:
    self._executor.shutdown(wait=True, cancel_futures=True)

  def kill(self) -> None:
    for process in self._processes:
      process.kill()


@contextlib.contextmanager
def _environment(threads: int):
  """What a worker inherits: how many threads its libraries may use."""
  changed = worker_lib.environment(threads)
  before = {name: os.environ.get(name) for name in changed}
  os.environ.update(changed)
  try:
    yield
  finally:
    for name, value in before.items():
      if value is None:
        del os.environ[name]
      else:
        os.environ[name] = value


class Pool:
  """Workers, one step at a time each.

  Attributes:
    device: 'cpu', 'gpu' or 'tpu'.
    shared: settings that all steps share, such as the backbone's fingerprint;
      a step that was finished under others is an error, not a result.
  """

  def __init__(
    self,
    folder: str,
    workers: int | None,
    backbone: str,
    data_dir: str | None,
    module: str | None,
    executor: str = 'local',
  ):
    """Starts the first worker; the others start when there is work for them.

    Args:
      folder: the study's folder; workers of another machine must see it.
      workers: how many; None is one with an accelerator, else two where there
        are two cores, and with Ray one for each GPU, else for each core.
      backbone: path of the backbone that the steps share.
      data_dir: folder of the TFDS data; need not exist yet. None is what
        TFDS takes.
      module: module that registers the tasks.
      executor: 'local' or 'ray'.

    Raises:
      InputError: if the executor is unknown or not installed, or its workers
        don't see the folder.
      StepError: if the first worker dies.
    """
    self._folder = folder
    self._share = backbone, data_dir, module
    self.shared: dict[str, str] = {}
    os.makedirs(folder, exist_ok=True)
    self._workers: list[Worker] = []
    self._lost = collections.Counter[str]()
    self._seen = collections.defaultdict[Worker, set[str]](set)
    self._executor = _executor(executor, folder, workers)
    with contextlib.ExitStack() as stack:
      stack.push(self.__exit__)
      self._add()
      self.device = self._unwrap(
        self._result(self._workers[0].started, 'the first worker'), 'the start'
      )
      stack.pop_all()

  @property
  def limit(self) -> int:
    """How many workers there are at the most; nodes come and go."""
    return self._executor.limit(self.device)

  def _add(self) -> Worker:
    """Starts a worker."""
    self._workers.append(self._executor.start())
    return self._workers[-1]

  def call(self, function: Callable[..., Any], *args: Any) -> Any:
    """Runs a function in the first worker and waits for it."""
    future = self._workers[0].submit(worker_lib.guarded, function, args)
    return self._unwrap(self._result(future, function.__name__), 'the start')

  def _result(self, future: concurrent.futures.Future, what: str) -> Any:
    try:
      return future.result()
    except self._executor.lost as e:
      raise StepError(
        f'{what}: the worker process died (out of memory?); see'
        f' {os.path.join(self._folder, cli.LOG)}'
      ) from e

  def _unwrap(self, outcome: tuple[str, Any], what: str) -> Any:
    kind, value = outcome
    if kind == 'input':
      raise InputError(f'{what}: {value}')
    if kind == 'bug':
      raise StepError(f'{what}: {value}')
    return value

  def is_done(self, step: Step) -> bool:
    """Whether a step was finished by an earlier call; see `is_done`."""
    return is_done(step, self._folder, self.shared)

  def run(self, steps: Sequence[Step], others: Sequence[Step] = ()) -> None:
    """Runs steps, each after those it needs.

    Args:
      steps: the steps; finished ones are skipped.
      others: steps of other calls, for the count and the time left.

    Raises:
      InputError: if a step was given something wrong.
      StepError: if a step fails otherwise.
    """
    done = {s.name for s in steps if self.is_done(s)}
    # Not with which settings: a search may be about to say them.
    ahead = [s for s in others if not _is_finished(s, self._folder)]
    waiting = sorted(
      (s for s in steps if s.name not in done), key=lambda s: s.priority
    )
    progress = Progress(
      len(steps) + len(others), [*waiting, *ahead], self._folder
    )
    running: dict[concurrent.futures.Future, tuple[Worker, Step]] = {}
    self._lost.clear()
    while waiting or running:
      self._hand_out(waiting, running, done)
      starting = [w.started for w in self._workers if not w.started.done()]
      if not running and not starting:
        raise ValueError(f'steps wait for each other: {waiting[0].after}')
      finished, _ = concurrent.futures.wait(
        [*running, *starting],
        timeout=progress.seconds_to_next(),
        return_when=concurrent.futures.FIRST_COMPLETED,
      )
      for future in finished & running.keys():
        worker, step = running.pop(future)
        if self._is_lost(worker, future, step.name):
          waiting.insert(0, step)
          continue
        self._unwrap(self._result(future, step.name), step.name)
        done.add(step.name)
        progress.finish(step)
      progress.maybe_print([step for _, step in running.values()])

  def _hand_out(
    self,
    waiting: list[Step],
    running: dict[concurrent.futures.Future, tuple[Worker, Step]],
    done: set[str],
  ) -> None:
    """Gives each free worker a step that is ready; starts workers for more."""
    busy = {worker for worker, _ in running.values()}
    idle = [w for w in self._workers if w not in busy]
    for worker in [w for w in idle if w.started.done()]:
      if self._is_lost(worker, worker.started, 'a start'):
        idle.remove(worker)
        continue
      self._unwrap(self._result(worker.started, 'a start'), 'a start')
      if step := self._choose(worker, waiting, done):
        waiting.remove(step)
        self._seen[worker].add(step.likeness)
        future = worker.submit(
          worker_lib.run_step,
          step,
          self._folder,
          self.shared,
          *self._share,
          _PATIENCE if self._lost[step.name] else 0.0,
        )
        running[future] = worker, step
        idle.remove(worker)
    ready = sum(done.issuperset(s.after) for s in waiting)
    for _ in range(min(ready - len(idle), self.limit - len(self._workers))):
      self._add()

  def _choose(
    self, worker: Worker, waiting: Sequence[Step], done: set[str]
  ) -> Step | None:
    """The step that a free worker takes: what it has compiled before others."""
    ready = [s for s in waiting if done.issuperset(s.after)]
    if not ready:
      return None
    ready = [s for s in ready if s.priority == ready[0].priority]
    others = set().union(
      *(seen for w, seen in self._seen.items() if w is not worker)
    )
    for fits in (
      lambda s: s.likeness in self._seen[worker],
      lambda s: s.likeness not in others,
    ):
      for step in ready:
        if fits(step):
          return step
    return ready[0]

  def _is_lost(
    self, worker: Worker, future: concurrent.futures.Future, what: str
  ) -> bool:
    """Whether a worker is gone and another one is to do what it did."""
    if not isinstance(future.exception(), self._executor.lost):
      return False
    self._lost[what] += 1
    if not self._executor.replaces or self._lost[what] >= _TRIES:
      return False
    log.info('%s: its worker was lost; another one goes on with it', what)
    self._workers.remove(worker)
    self._seen.pop(worker, None)
    worker.kill()
    return True

  def __enter__(self) -> 'Pool':
    return self

  def __exit__(self, kind: type | None, *rest: Any) -> None:
    """Ends the workers; after an error, whatever they are doing.

    A training among it saves its state, unless the user cannot wait.
    """
    if kind is not None:
      for worker in self._workers:
        worker.terminate()
    try:
      for worker in self._workers:
        worker.close()
    except KeyboardInterrupt:
      for worker in self._workers:
        worker.kill()
      raise
    finally:
      self._executor.shutdown()


def _executor(name: str, folder: str, workers: int | None) -> Executor:
  if name not in EXECUTORS:
    raise InputError(
      f'EXECUTOR is {name!r}, expected one of {", ".join(EXECUTORS)}'
      f'{nearest(name, EXECUTORS)}'
    )
  if name == 'local':
    return Local(folder, workers)
  from mpt_jax.study import cluster

  return cluster.Ray(folder, workers)
