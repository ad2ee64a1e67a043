"""Several processes that train as one: start, agree, and stop together.

Every process runs the same program on its own devices. Process 0 decides what
only one can decide (`on_first`) and writes what only one may write. `Watch`
is a TCP connection from every process to process 0: whoever stops says so, and
a connection that breaks is a lost process; either way all others end with one
line instead of waiting for it in a collective operation.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import hashlib
import json
import logging
import os
import secrets
import socket
import sys
import threading
import time
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from mpt_jax.types import InputError, installed

log = logging.getLogger(__name__)

_INITIALIZATION_SECONDS = 300
# How long to look for process 0, and to wait for others to leave first.
_CONNECT_SECONDS = 20.0
_LEAVE_SECONDS = 3.0
# Less than that.
_GRACE_SECONDS = 1.0
# A collective operation of ours may notice a lost process before the watch.
_VERDICT_SECONDS = 5.0
# A host that is gone without a word is noticed after this many silent probes.
_PROBE_SECONDS, _PROBES = 10, 6
_MAX_LINE = 4096


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
) -> None:
  """Joins the other processes; before any use of a device.

  With nothing given, JAX finds the others itself: on TPU pods, under Slurm
  and Open MPI.

  Args:
    coordinator_address: 'host:port' of process 0.
    process_count: how many processes there are.
    process_index: which one this is, from 0.
    initialization_timeout: seconds to wait for the others; None is 300.

  Raises:
    InputError: if the arguments do not fit together, or the others do not come.
  """
  _check_arguments(coordinator_address, process_count, process_index)
  # The one implementation of collectives on CPUs that needs no MPI.
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
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
    )
  except (ValueError, RuntimeError) as e:
    said = ' '.join(str(e).split())
    raise InputError(
      f'the processes did not find each other ({place}): {said[:300]}'
    ) from e
  finally:
    timer.cancel()
  if count() > 1:
    global _watch
    _watch = Watch.start(coordinator_address)
  log.info(
    'process %d of %d, with %d of %d devices',
    index(),
    count(),
    jax.local_device_count(),
    jax.device_count(),
  )


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
  error, result = json.loads(_broadcast(json.dumps([error, result])))
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


def _broadcast(text: str) -> str:
  """Process 0's text, on every process."""
  data = np.frombuffer(text.encode(), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
  padded = np.zeros(size, np.uint8)
  padded[: len(data)] = data[:size]
  # Broadcasting is a sum, and a sum of uint8 is one.
  return multihost_utils.broadcast_one_to_all(padded).tobytes().decode()


def _gather(text: str) -> list[str]:
  """Every process's text, cut to 1000 bytes."""
  data = np.frombuffer(text.encode()[:1000], np.uint8)
  padded = np.zeros(1000, np.uint8)
  padded[: len(data)] = data
  rows = multihost_utils.process_allgather(padded)
  return [r.tobytes().rstrip(b'\0').decode(errors='ignore') for r in rows]


# ---------------------------------------------------------------------------
# The end.


def finish() -> None:
  """Says that this process is done, and waits for the others."""
  if _watch is not None:
    _watch.say('done')
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
    _watch.stop(text, f'process {index()} stopped: {message}', code)
  else:
    print(text, file=sys.stderr)
  _exit(code)


def wait_for_verdict() -> None:
  """Gives the watch time to say whose loss caused an error, and end us."""
  if _watch is not None:
    time.sleep(_VERDICT_SECONDS)


def _exit(code: int) -> None:
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(Exception):
      stream.flush()
  # Neither atexit nor destructors: they wait for the lost process.
  os._exit(code)


class Watch:
  """Connections between process 0 and every other one.

  Each is silent until one end sends a line: 'done', or 'stop CODE MESSAGE'. An
  end without a line is a lost process.
  """

  def __init__(self, peers: Mapping[int, socket.socket]):
    """Use `start`."""
    self._peers = dict(peers)
    # TensorFlow's start-up messages are kept off the terminal by taking
    # stderr away for a while: ours must be seen even then.
    self._stderr = os.dup(2)
    self._left = {peer: threading.Event() for peer in peers}
    self._ending = threading.Lock()
    for peer, connection in peers.items():
      threading.Thread(
        target=self._listen, args=(peer, connection), daemon=True
      ).start()

  @classmethod
  def start(cls, coordinator_address: str | None) -> 'Watch':
    """Connects the processes.

    Args:
      coordinator_address: 'host:port' of process 0, if it was given; the port
        is another one.

    Returns:
      The watch; a process that cannot reach process 0 has an idle one, and
      relies on JAX's own slower checks.
    """
    host = (coordinator_address or '').rpartition(':')[0].strip('[]')
    if is_first():
      server = _listening_socket(host)
      hosts = [host] if host else _own_addresses()
      facts = [hosts, server.getsockname()[1], secrets.token_hex(16)]
      on_first(lambda: facts)
      peers = _accept(server, facts[2], count() - 1)
      server.close()
    else:
      hosts, port, token = on_first(lambda: None)
      peers = _connect(hosts, port, f'{token} {index()}\n')
    if len(peers) < (count() - 1 if is_first() else 1):
      log.warning(
        'not every process could be reached for the watch: the loss of one is'
        ' noticed by JAX, after minutes'
      )
    return cls(peers)

  def say(self, line: str) -> None:
    """Sends a line to all that this process is connected with."""
    for connection in self._peers.values():
      with contextlib.suppress(OSError):
        connection.sendall(line.encode()[: _MAX_LINE - 1] + b'\n')

  def stop(self, text: str, message: str, code: int) -> None:
    """Prints `text`, tells all others to stop, and ends this process."""
    if not self._ending.acquire(blocking=False):
      time.sleep(60)  # The other thread is ending this process.
    # The shortest way: JAX may be about to end us, too.
    os.write(self._stderr, f'{text}\n'.encode())
    self.say(f'stop {code} {" ".join(message.split())}')
    if is_first():
      # JAX ends the others with a stack trace as soon as process 0 is gone.
      until = time.monotonic() + _LEAVE_SECONDS
      for event in self._left.values():
        event.wait(max(until - time.monotonic(), 0))
    _exit(code)

  def _listen(self, peer: int, connection: socket.socket) -> None:
    done, stopped = False, ''
    data = b''
    try:
      while not stopped and (chunk := connection.recv(_MAX_LINE)):
        data += chunk
        *lines, data = data.split(b'\n')
        for line in lines:
          word, _, rest = line.decode(errors='replace').partition(' ')
          done |= word == 'done'
          if word == 'stop':
            stopped = rest
            break
    except OSError:
      pass  # Broken off, which is an end without a word.
    self._left[peer].set()
    if stopped:
      # We may be about to say the same ourselves.
      time.sleep(_GRACE_SECONDS)
      code, _, message = stopped.partition(' ')
      self.stop(f'error: {message}', message, int(code))
    elif not done:
      message = (
        f'process {peer} of {count()} was lost: it was killed or its host is'
        ' gone; the same command on all processes resumes at the last'
        ' checkpoint'
      )
      self.stop(f'error: {message}', message, 1)


_watch: Watch | None = None


def _listening_socket(host: str) -> socket.socket:
  """A socket on the coordinator's address, or on every one of this host."""
  for address in (host, ''):
    with contextlib.suppress(OSError):
      return socket.create_server((address, 0), backlog=1024)
  raise InputError('this host offers no port to listen on')


def _own_addresses() -> list[str]:
  """What other hosts may know this one by."""
  names = [socket.gethostname(), socket.getfqdn()]
  with contextlib.suppress(OSError):
    names.insert(0, socket.gethostbyname(socket.gethostname()))
  return list(dict.fromkeys(names))


def _accept(
  server: socket.socket, token: str, wanted: int
) -> dict[int, socket.socket]:
  peers: dict[int, socket.socket] = {}
  until = time.monotonic() + _CONNECT_SECONDS + 5
  while len(peers) < wanted and time.monotonic() < until:
    server.settimeout(max(until - time.monotonic(), 0.1))
    with contextlib.suppress(OSError, ValueError):
      connection, _ = server.accept()
      connection.settimeout(5)
      # 32 digits, a space, a number and the end of the line; no more is sent.
      greeting = b''
      while not greeting.endswith(b'\n') and len(greeting) < 64:
        received = connection.recv(64 - len(greeting))
        if not received:
          break
        greeting += received
      said, _, number = greeting.decode().partition(' ')
      if not secrets.compare_digest(said, token):
        connection.close()
        continue
      _keep_alive(connection)
      peers[int(number)] = connection
  return peers


def _connect(
  hosts: Sequence[str], port: int, greeting: str
) -> dict[int, socket.socket]:
  until = time.monotonic() + _CONNECT_SECONDS
  while time.monotonic() < until:
    for host in hosts:
      with contextlib.suppress(OSError):
        connection = socket.create_connection((host, port), timeout=5)
        connection.sendall(greeting.encode())
        _keep_alive(connection)
        return {0: connection}
    time.sleep(0.5)
  return {}


def _keep_alive(connection: socket.socket) -> None:
  """Makes the kernel notice a host that is gone without closing."""
  connection.settimeout(None)
  connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for name, value in (
    ('TCP_KEEPIDLE', _PROBE_SECONDS),
    ('TCP_KEEPINTVL', _PROBE_SECONDS),
    ('TCP_KEEPCNT', _PROBES),
  ):
    if hasattr(socket, name):  # macOS lacks some of them.
      connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
