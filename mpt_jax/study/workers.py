"""Runs the steps of a study in worker processes.

A step is one command of an entry point (`python -m mpt_jax.train …`) with a
folder of its own. Workers live as long as the study: each imports
TensorFlow, loads the backbone and compiles a kind of step only once.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import concurrent.futures
from concurrent.futures.process import BrokenProcessPool
import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any

from mpt_jax import cli
from mpt_jax.checkpoints import files
from mpt_jax.checkpoints import run as run_lib
from mpt_jax.checkpoints.run import RESULTS
from mpt_jax.engine import hostmemory, preemption, trainer
from mpt_jax.study import picked
from mpt_jax.study.progress import Progress
from mpt_jax.study.steps import Step
from mpt_jax.types import InputError, prefer_own_packages

log = logging.getLogger(__name__)

# Written into a step's folder when it is finished.
STEP = 'step.json'
CACHE = 'compilation_cache'
# What an interrupt says while steps run.
STOPPING = (
  'stopping: what trains saves its state and ends; press Ctrl-C again to end'
  ' at once'
)

_FUNCTIONS = {'train': 'train', 'eval': 'evaluate', 'export': 'export'}
# So small models leave nothing for a second thread to do.
_ONE_THREAD = '--xla_cpu_multi_thread_eigen=false'


class StepError(RuntimeError):
  """A step failed by a bug or was killed; the message says which and where."""


def command(step: Step, data_dir: str | None = None) -> str:
  """The shell command that does what a step does.

  Args:
    step: the step.
    data_dir: folder of the TFDS data.
  """
  words = [f'--gin_file={name}' for name in step.gin_files]
  if data_dir:
    words.append(f'--tfds_data_dir={data_dir}')
  words += [f'--gin.{binding}' for binding in step.bindings]
  return cli.shell_command(step.entry, words)


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
    _settings(step, folder, shared),
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


def _settings(
  step: Step, folder: str, shared: Mapping[str, str]
) -> dict[str, str]:
  """A step's settings as text, whatever the study's folder is called."""
  return {
    **shared,
    'gin_files': ', '.join(step.gin_files),
    **{
      name: repr(value).replace(folder.rstrip('/') + '/', '')
      for name, value in step.macros.items()
    },
  }


class Pool:
  """Worker processes, one step at a time each.

  Attributes:
    device: 'cpu', 'gpu' or 'tpu'.
    limit: how many workers there are at the most.
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
  ):
    """Starts the first worker; the others start when there is work for them.

    Args:
      folder: the study's folder.
      workers: how many; None is one with an accelerator, else two where there
        are two cores.
      backbone: path of the backbone that the steps share.
      data_dir: folder of the TFDS data; need not exist yet. None is what
        TFDS takes.
      module: module that registers the tasks.
    """
    self._folder = folder
    self._share = backbone, data_dir, module
    self.shared: dict[str, str] = {}
    self._executors: list[concurrent.futures.ProcessPoolExecutor] = []
    self._seen = collections.defaultdict[int, set[str]](set)
    os.makedirs(folder, exist_ok=True)
    cores = os.cpu_count() or 1
    with contextlib.suppress(AttributeError):
      cores = len(os.sched_getaffinity(0))
    # Each takes its share of the cores, so that they don't fight for them.
    self._threads = max(1, cores // (workers or 2))
    self.device = self._result(self._add(), 'the first worker')
    self.limit = workers or (1 if self.device != 'cpu' else min(2, cores))

  def _add(self) -> concurrent.futures.Future:
    """Starts a worker; its first result is the device that it found."""
    with _environment(self._threads), preemption.deaf_children():
      executor = concurrent.futures.ProcessPoolExecutor(
        1,
        mp_context=multiprocessing.get_context('spawn'),
        initializer=_start_worker,
        initargs=(self._folder,),
      )
      # The process starts with its first call.
      started = executor.submit(_device)
    self._executors.append(executor)
    return started

  def call(self, function: Callable[..., Any], *args: Any) -> Any:
    """Runs a function in the first worker and waits for it."""
    future = self._executors[0].submit(_guarded, function, args)
    return self._unwrap(self._result(future, function.__name__), 'the start')

  def _result(self, future: concurrent.futures.Future, what: str) -> Any:
    try:
      return future.result()
    except BrokenProcessPool as e:
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
    running: dict[concurrent.futures.Future, tuple[int, Step]] = {}
    while waiting or running:
      busy = {worker for worker, _ in running.values()}
      for worker in range(self.limit):
        if worker in busy:
          continue
        step = self._choose(worker, waiting, done)
        if step is None:
          break
        if worker == len(self._executors):
          self._add()
        waiting.remove(step)
        self._seen[worker].add(step.likeness)
        future = self._executors[worker].submit(
          _run_step, step, self._folder, self.shared, *self._share
        )
        running[future] = worker, step
      if not running:
        raise ValueError(f'steps wait for each other: {waiting[0].after}')
      finished, _ = concurrent.futures.wait(
        running,
        timeout=progress.seconds_to_next(),
        return_when=concurrent.futures.FIRST_COMPLETED,
      )
      for future in finished:
        _, step = running.pop(future)
        self._unwrap(self._result(future, step.name), step.name)
        done.add(step.name)
        progress.finish(step)
      progress.maybe_print([step for _, step in running.values()])

  def _choose(
    self, worker: int, waiting: Sequence[Step], done: set[str]
  ) -> Step | None:
    """The step that a free worker takes: what it has compiled before others."""
    ready = [s for s in waiting if done.issuperset(s.after)]
    if not ready:
      return None
    ready = [s for s in ready if s.priority == ready[0].priority]
    others = set().union(
      *(seen for w, seen in self._seen.items() if w != worker)
    )
    for fits in (
      lambda s: s.likeness in self._seen[worker],
      lambda s: s.likeness not in others,
    ):
      for step in ready:
        if fits(step):
          return step
    return ready[0]

  def __enter__(self) -> 'Pool':
    return self

  def __exit__(self, kind: type | None, *rest: Any) -> None:
    """Ends the workers; after an error, whatever they are doing.

    A training among it saves its state, unless the user cannot wait.
    """
    workers = [
      process
      for executor in self._executors
      for process in (executor._processes or {}).values()
    ]
    if kind is not None:
      for process in workers:
        process.terminate()
    try:
      for executor in self._executors:
        executor.shutdown(wait=True, cancel_futures=True)
    except KeyboardInterrupt:
      for process in workers:
        process.kill()
      raise


@contextlib.contextmanager
def _environment(threads: int):
  """What a worker inherits: how many threads its libraries may use."""
  changed = {
    'TF_CPP_MIN_LOG_LEVEL': '3',
    'NPROC': str(threads),
    'OMP_NUM_THREADS': str(threads),
    # Python's own helper process complains when a worker was ended early.
    'PYTHONWARNINGS': 'ignore::UserWarning:multiprocessing.resource_tracker',
  }
  if threads == 1:
    flags = os.environ.get('XLA_FLAGS', '')
    changed['XLA_FLAGS'] = f'{flags} {_ONE_THREAD}'.strip()
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


# ---------------------------------------------------------------------------
# In a worker.


def _start_worker(folder: str) -> None:
  # The parent ends us; and where it was killed, we must not write on.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  threading.Thread(target=_die_with_parent, daemon=True).start()
  prefer_own_packages()
  _redirect(os.path.join(folder, cli.LOG))
  logging.basicConfig(
    level=logging.INFO,
    format='%(asctime)s %(message)s',
    datefmt='%H:%M:%S',
    stream=sys.stderr,
    force=True,
  )
  for noisy in ('jax', 'orbax', 'absl', 'tensorflow', 'h5py'):
    logging.getLogger(noisy).setLevel(logging.WARNING)
  import jax

  hostmemory.prepare()
  cache = os.path.abspath(os.path.join(folder, CACHE))
  jax.config.update('jax_compilation_cache_dir', cache)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


def _die_with_parent() -> None:
  parent = multiprocessing.parent_process()
  assert parent is not None
  multiprocessing.connection.wait([parent.sentinel])
  os._exit(1)


def _redirect(path: str) -> None:
  """Appends all that the process prints, native libraries too, to a file."""
  sys.stdout.flush()
  sys.stderr.flush()
  with open(path, 'ab') as f:
    os.dup2(f.fileno(), 1)
    os.dup2(f.fileno(), 2)


def _device() -> str:
  import jax

  return jax.default_backend()


_shared: dict[str, Any] = {}


def _warm_up(backbone: str, data_dir: str | None, module: str | None) -> None:
  """Loads what all steps of this worker share; quick if it is there."""
  if not _shared:
    if data_dir:
      cli.use_data_dir(data_dir)
    if module:
      from mpt_jax.data.seqio_tasks import import_module

      import_module(module)
    from mpt_jax.engine import predictor as runs

    _shared['backbone'] = runs.load_backbone(backbone)


def _guarded(
  function: Callable[..., Any], args: Sequence[Any]
) -> tuple[str, Any]:
  """Calls; an exception comes back as text, since not all can be pickled."""
  try:
    return 'ok', function(*args)
  except InputError as e:
    return 'input', str(e).splitlines()[0]
  except preemption.Stopped as e:
    # Only who sent the signal asks for it.
    print(str(e).splitlines()[0], flush=True)
    return 'bug', str(e).splitlines()[0]
  except Exception as e:
    traceback.print_exc()
    first = (str(e).splitlines() or [''])[0]
    return 'bug', f'{type(e).__name__}: {first}'


def _run_step(
  step: Step,
  folder: str,
  shared: Mapping[str, str],
  backbone: str,
  data_dir: str | None,
  module: str | None,
) -> tuple[str, Any]:
  """Runs one step; its output goes to its own folder."""
  path = os.path.join(folder, step.name)
  os.makedirs(path, exist_ok=True)
  _redirect(os.path.join(path, cli.LOG))
  begin = time.monotonic()

  def run() -> None:
    _warm_up(backbone, data_dir, module)
    given = {}
    if step.macros.get('INITIAL_CHECKPOINT_PATH') == backbone:
      given = {'backbone': _shared['backbone']}
    called, made = step, None
    try:
      called = picked.resolve(step, folder)
      print(cli.log_header(command(called, data_dir)), flush=True)
      made = cli.call(
        f'mpt_jax.{step.entry}',
        _FUNCTIONS[step.entry],
        called.gin_files,
        called.bindings,
        **given,
      )
    except trainer.NonFiniteLossError as e:
      if not step.may_diverge:
        raise
      results = {'scores': {}, 'diverged': str(e).splitlines()[0]}
      files.write_file(os.path.join(path, RESULTS), files.json_bytes(results))
    files.write_file(
      os.path.join(path, STEP),
      files.json_bytes(
        {
          'settings': _settings(step, folder, shared),
          'command': command(called, data_dir),
          'seconds': round(time.monotonic() - begin, 2),
          # Of a step that trains.
          'step_bytes': getattr(made, 'step_bytes', 0),
        }
      ),
    )

  try:
    kind, value = _guarded(run, ())
    if kind == 'bug':
      value = f'{value}; see {os.path.join(path, cli.LOG)}'
    return kind, value
  finally:
    _redirect(os.path.join(folder, cli.LOG))
