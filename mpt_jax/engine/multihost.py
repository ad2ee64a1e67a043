"""Several processes that train as one: start, agree, and stop together.

Every process runs the same program on its own devices. Process 0 decides what
only one can decide (`on_first`) and writes what only one may write. They talk
through JAX's coordination service, which process 0 runs: its store and barriers
carry what they agree on, its heartbeats say who was lost (`_Watch`).
"""

from collections.abc import Callable, Mapping
import contextlib
import ctypes
import hashlib
import itertools
import json
import logging
import os
import signal
import sys
import threading
import time
from typing import Any

import jax
from jax._src import distributed

from mpt_jax.types import InputError, installed

log = logging.getLogger(__name__)

_INITIALIZATION_SECONDS = 300
_HEARTBEAT_SECONDS, _LEAST_HEARTBEAT_SECONDS = 30, 5
# What the service needs to notice silence, and we to end.
_NOTICE_SECONDS = 2
# How long an ending process waits for others; each takes less than a second.
_LEAVE_SECONDS, _GRACE_SECONDS = 5.0, 1.0
# The watch ends whoever waits for a lost process; none else gives up.
_FOREVER = 10 * 24 * 3600 * 1000
# Names in the store.
_MEETING, _END, _LEFT = 'mpt_jax/meeting', 'mpt_jax/end', 'mpt_jax/left'


def count() -> int:
  """How many processes there are."""
  return jax.process_count()


def index() -> int:
  """Which of them this is."""
  return jax.process_index()


def is_first() -> bool:
  """Whether this is process 0, which writes the reports."""
  return jax.process_index() == 0


def initialize(
  coordinator_address: str | None = None,
  process_count: int | None = None,
  process_index: int | None = None,
  initialization_timeout: int | None = None,
  heartbeat_timeout: int | None = None,
) -> None:
  """Joins the other processes; before any use of a device.

  With nothing given, JAX finds the others itself: on TPU pods, under Slurm
  and Open MPI.

  Args:
    coordinator_address: 'host:port' of process 0.
    process_count: how many processes there are.
    process_index: which one this is, from 0.
    initialization_timeout: seconds to wait for the others; None is 300.
    heartbeat_timeout: seconds within which the loss of a process ends the
      others; None is 30.

  Raises:
    InputError: if the arguments do not fit together, or the others do not come.
  """
  _check_arguments(coordinator_address, process_count, process_index)
  heartbeat = heartbeat_timeout or _HEARTBEAT_SECONDS
  if heartbeat < _LEAST_HEARTBEAT_SECONDS:
    raise InputError(
      f'--heartbeat_timeout={heartbeat} is too short for a busy host: expected'
      f' {_LEAST_HEARTBEAT_SECONDS} or more seconds'
    )
  # The one implementation of collectives on CPUs that needs no MPI.
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  # Else JAX ends a process from C++, with a stack trace, before it can say why.
  jax.config.update('jax_enable_recoverability', True)
  seconds = initialization_timeout or _INITIALIZATION_SECONDS
  if coordinator_address is None:
    log.info('looking for the other processes …')
    place = 'no --coordinator_address was given'
  else:
    log.info(
      'process %d of %d meets the others at %s, within %d s …',
      process_index,
      process_count,
      coordinator_address,
      seconds,
    )
    place = f'{coordinator_address}, process {process_index} of {process_count}'
  timer = threading.Timer(seconds, _give_up, (seconds, place))
  timer.daemon = True
  timer.start()
  try:
    jax.distributed.initialize(
      coordinator_address,
      process_count,
      process_index,
      # With an address all is said, and all local devices are meant.
      cluster_detection_method='deactivate' if coordinator_address else None,
      # JAX itself gives up with a stack trace; the timer is before it.
      initialization_timeout=seconds + 30,
      heartbeat_timeout_seconds=heartbeat - _NOTICE_SECONDS,
    )
  except (ValueError, RuntimeError) as e:
    said = ' '.join(str(e).split())
    raise InputError(
      f'the processes did not find each other ({place}): {said[:300]}'
    ) from e
  finally:
    timer.cancel()
  log.info(
    'process %d of %d, with %d of %d devices; when one is lost, the others end'
    ' within %d s',
    index(),
    count(),
    jax.local_device_count(),
    jax.device_count(),
    heartbeat,
  )
  if count() > 1:
    global _watch
    _watch = _Watch(heartbeat)


def _give_up(seconds: int, place: str) -> None:
  line = (
    f'error: the processes did not find each other within {seconds} s'
    f' ({place}): start all of them, and check that process 0 can be reached'
    ' there; --initialization_timeout=SECONDS waits longer'
  )
  os.write(2, f'{line}\n'.encode())
  _exit(2)


def _check_arguments(
  coordinator_address: str | None,
  process_count: int | None,
  process_index: int | None,
) -> None:
  given = coordinator_address, process_count, process_index
  if any(v is None for v in given) and any(v is not None for v in given):
    names = ('coordinator_address', 'process_count', 'process_index')
    missing = [n for n, v in zip(names, given, strict=True) if v is None]
    raise InputError(
      f'--{missing[0]} is not given; give all of --coordinator_address,'
      ' --process_count and --process_index, or none of them where JAX finds'
      ' the processes itself (TPU pods, Slurm, Open MPI)'
    )
  if coordinator_address is None:
    return
  assert process_count is not None
  assert process_index is not None
  host, _, port = coordinator_address.rpartition(':')
  if not host or not port.isdigit():
    raise InputError(
      f'--coordinator_address={coordinator_address} must be HOST:PORT of'
      ' process 0'
    )
  if not 0 <= process_index < process_count:
    raise InputError(
      f'--process_index={process_index} is not one of the {process_count}'
      f' processes: expected 0 to {process_count - 1}'
    )


# ---------------------------------------------------------------------------
# Agreement. All processes must call these, in the same order.


def on_first(work: Callable[[], Any]) -> Any:
  """Runs something on process 0 and tells the others what came of it.

  Args:
    work: returns something that JSON can hold; may raise InputError.

  Returns:
    What `work` returned, on every process.

  Raises:
    InputError: on every process, if `work` did on process 0.
  """
  if count() == 1:
    return work()
  error, result = None, None
  if is_first():
    try:
      result = work()
    except InputError as e:
      error = str(e)
  error, result = json.loads(_gather(json.dumps([error, result]))[0])
  if error is not None:
    raise InputError(error)
  return result


def raise_together(error: str) -> None:
  """Raises the first error that any process has, on all of them.

  Args:
    error: this process's error; '' is none.

  Raises:
    InputError: if a process has one; it says which.
  """
  if count() == 1:
    if error:
      raise InputError(error)
    return
  for process, said in enumerate(_gather(error)):
    if said:
      raise InputError(f'process {process}: {said}')


def check_same(what: str, values: Mapping[str, Any]) -> None:
  """Checks that all processes were started alike.

  Args:
    what: what this is about, 'configuration'.
    values: what must be equal on all of them, fit for JSON.

  Raises:
    InputError: on every process, if one has another value than process 0;
      names the process, the value and both of its settings.
  """
  if count() == 1:
    return
  ours = json.loads(json.dumps(values, default=str))
  first = on_first(lambda: ours)
  names = sorted(ours.keys() | first.keys())
  different = [n for n in names if ours.get(n) != first.get(n)]
  error = ''
  if different:
    name = different[0]
    error = (
      f'another {what} than process 0: {name} is {_short(ours.get(name))}'
      f' here and {_short(first.get(name))} there'
    )
  raise_together(error)


def code_version() -> dict[str, str]:
  """Digest of the sources of this installation, and the versions under it."""
  digest = hashlib.sha256()
  for package in ('mpt_jax', 'tasks'):
    folder = installed(package)
    for parent, folders, files in os.walk(folder):
      folders.sort()
      for name in sorted(f for f in files if f.endswith('.py')):
        path = os.path.join(parent, name)
        digest.update(os.path.relpath(path, folder).encode())
        with open(path, 'rb') as f:
          digest.update(f.read())
  return {
    'source digest': digest.hexdigest()[:12],
    'jax': jax.__version__,
    'python': '.'.join(map(str, sys.version_info[:2])),
  }


def configuration_lines(text: str) -> dict[str, str]:
  """A gin configuration as {name: value}, for `check_same`."""
  lines: dict[str, str] = {}
  # A value may go on in the next lines; they are indented.
  joined = text.replace('\\\n', ' ').replace('\n ', ' ')
  for line in joined.splitlines():
    name, equals, value = line.partition('=')
    if equals and not line.startswith('#'):
      lines[name.strip()] = ' '.join(value.split())
  return lines


def _short(value: Any) -> str:
  text = value if isinstance(value, str) else repr(value)
  return text if len(text) <= 80 else f'{text[:77]}…'


def any_process(flag: bool) -> bool:
  """Whether a flag is set on any process; all must ask together."""
  return flag if count() == 1 else any(_gather('1' if flag else ''))


_meetings = itertools.count()


def _gather(text: str) -> list[str]:
  """Every process's text."""
  # Whoever reads the last meeting's texts is in no later one than the next.
  place = f'{_MEETING}/{next(_meetings) % 2}'
  client = _client()
  client.key_value_set(f'{place}/{index()}', text, allow_overwrite=True)
  client.wait_at_barrier(_MEETING, _FOREVER)
  texts = dict(_entries(place))
  return [texts[process] for process in range(count())]


def _entries(place: str) -> list[tuple[int, str]]:
  """The entries of a folder of the store that are named by a process."""
  found = _client().key_value_dir_get(place)
  return [(int(name.rpartition('/')[2]), text) for name, text in found]


def _client() -> Any:
  """JAX's connection with the coordination service.

  It has no public name; `multihost_utils.live_devices` gets it here, too.
  """
  return distributed.global_state.client


# ---------------------------------------------------------------------------
# The end.


def finish() -> None:
  """Waits until all processes are done, and leaves them."""
  if _watch is not None:
    _watch.close()
  if jax.distributed.is_initialized():
    jax.distributed.shutdown()


def abort(text: str, message: str, code: int) -> None:
  """Ends this process after an error, and all others with it.

  The usual end would wait for processes that wait for this one.

  Args:
    text: what to print here.
    message: one line, for the others.
    code: exit code of all of them.
  """
  if _watch is not None:
    _watch.end(text, code, message)
  print(text, file=sys.stderr)
  _exit(code)


def wait_for_verdict(error: Exception) -> None:
  """Gives the watch time to say whose loss caused an error, and end us.

  Args:
    error: what was raised here; a wait is worth it after a broken connection.
  """
  broken = isinstance(error, jax.errors.JaxRuntimeError) or 'Gloo' in str(error)
  if _watch is not None and broken and 'RESOURCE_EXHAUSTED' not in str(error):
    time.sleep(_watch.seconds + _LEAVE_SECONDS)


def _exit(code: int) -> None:
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(Exception):
      stream.flush()
  # Neither atexit nor destructors: they wait for the lost process.
  os._exit(code)


class _Watch:
  """Ends this process when another is lost or ends, and says so."""

  def __init__(self, seconds: float):
    """Begins to watch.

    Args:
      seconds: after which silence is a loss.
    """
    self.seconds = seconds
    # TensorFlow's start-up messages are kept off the terminal by taking
    # stderr away for a while: ours must be seen even then.
    self._stderr = os.dup(2)
    self._ending, self._done = threading.Lock(), threading.Event()
    self._client, self._all = _client(), list(range(count()))
    # By process; one that is started again has another number.
    self._numbers = self._client.get_live_nodes(self._all)
    self._threads = [
      threading.Thread(target=work, daemon=True)
      for work in (self._wait_for_loss, self._wait_for_end)
    ]
    for thread in self._threads:
      thread.start()
    self._at_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)
    if not is_first():
      ctypes.CDLL(None).signal(signal.SIGABRT, self._at_abort)

  def close(self) -> None:
    """Waits until all are done, and ends the connection."""
    self._client.wait_at_barrier(_MEETING, _FOREVER)
    self._done.set()
    self._leave()
    # JAX answers those who wait for an answer when all have asked that are not
    # gone. Process 0 goes last: the others need its service to go.
    alive = self._numbers
    while self._threads[0].is_alive() or (is_first() and len(alive) > 1):
      alive = self._client.get_live_nodes(self._all)
      self._threads[0].join(0.01)
    ctypes.CDLL(None).signal(signal.SIGABRT, None)
    jax.distributed.shutdown()
    self._threads[1].join()

  def end(
    self, text: str, code: int, message: str = '', lost: int | None = None
  ) -> None:
    """Prints `text` and ends this process.

    Args:
      text: what is printed here.
      code: exit code.
      message: one line, with which the others end, too; '' is none.
      lost: a process that cannot leave any more.
    """
    if not self._ending.acquire(blocking=False):
      time.sleep(60)  # Another thread is ending this process.
    os.write(self._stderr, f'{text}\n'.encode())
    if message:
      said = json.dumps([index(), code, ' '.join(message.split())])
      _attempt(lambda: self._client.key_value_set(_END, said))
    if lost != 0:
      _attempt(self._leave)
    # JAX ends the others with a stack trace as soon as process 0 is gone.
    until = time.monotonic() + _LEAVE_SECONDS
    others = set(self._all) - {lost}
    while is_first() and others - _left() and time.monotonic() < until:
      time.sleep(0.1)
    _exit(code)

  def _leave(self) -> None:
    self._client.key_value_set(f'{_LEFT}/{index()}', '')

  def _wait_for_end(self) -> None:
    """Ends when another process does."""
    try:
      said = self._client.blocking_key_value_get(_END, _FOREVER)
    except jax.errors.JaxRuntimeError:
      return  # All are done; or process 0 is gone, and JAX ends this one.
    process, code, message = json.loads(said)
    # We may be about to say the same ourselves.
    time.sleep(_GRACE_SECONDS)
    hint = '; its own output says where' if code == 1 else ''
    self.end(f'error: process {process} stopped: {message}{hint}', code)

  def _wait_for_loss(self) -> None:
    """Ends when another process is silent for too long."""
    while not self._done.wait(1):
      try:
        # JAX answers when all that are alive have asked.
        alive, left = self._client.get_live_nodes(self._all), _left()
      except jax.errors.JaxRuntimeError:
        return  # Process 0 is gone, and JAX ends this one.
      for process, number in self._numbers.items():
        if alive.get(process) != number and process not in left:
          self._lost(process)

  def _aborted(self, _: int) -> None:
    """Says why, when JAX ends this process from C++ for want of process 0.

    JAX's own callback for this takes no Python function (0.10.2: bad_cast).
    """
    # Its client answers nothing then. If it does, the cause is another one.
    if _attempt(_left) is None:
      self._lost(0)
    ctypes.CDLL(None).signal(signal.SIGABRT, None)
    os.kill(os.getpid(), signal.SIGABRT)

  def _lost(self, process: int) -> None:
    text = (
      f'error: process {process} of {count()} was lost: it was killed, or its'
      ' host is gone or cannot be reached; the same command on all processes'
      ' resumes at the last checkpoint'
    )
    self.end(text, 1, lost=process)


_watch: _Watch | None = None


def _left() -> set[int]:
  """The processes that ended with a word."""
  return {process for process, _ in _entries(_LEFT)}


def _attempt(work: Callable[[], Any]) -> Any:
  """What `work` returns; None if it fails or takes more than a second.

  Without process 0, calls of JAX's client may never return.
  """
  results: list[Any] = []

  def run() -> None:
    with contextlib.suppress(Exception):
      results.append(work())

  thread = threading.Thread(target=run, daemon=True)
  thread.start()
  thread.join(1)
  return results[0] if results else None
