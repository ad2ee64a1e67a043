"""Child processes of tests that start with their imports done.

Of the CPU seconds of a small command, TensorFlow, SeqIO and JAX take five to
be imported. One process for each that runs tests has imported them, made no
device, and forks whenever a command is to run. What it forks is a process as
any other: with its own command line, environment, folder, signals and end.
What is imported, and when, is tested with a new Python instead.
"""

import atexit
import builtins
import contextlib
import functools
import gc
import importlib.util
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import types
from typing import Any
import warnings

import jax

ROOT = pathlib.Path(__file__).parents[2]
# Not what `python -m` runs: Python warns of that.
_IMPORTED = (
  'mpt_jax.cli',
  'mpt_jax.data.evaluation',
  'mpt_jax.engine.predictor',
  'mpt_jax.engine.run',
  'orbax.checkpoint',
)
if importlib.util.find_spec('seqio') is not None:
  _IMPORTED += ('mpt_jax.data.seqio_tasks',)


class Child:
  """A command that runs.

  Attributes:
    pid: of its process.
    returncode: its exit code, or minus the signal that ended it; None before.
  """

  def __init__(self, command, env=None, cwd=ROOT, stderr_to_stdout=False):
    """Starts it.

    Args:
      command: what follows `python`: ['-m', module, …] or ['-c', code, …].
      env: its environment; None is that of the tests.
      cwd: its working folder.
      stderr_to_stdout: whether both are one text.
    """
    self._folder = tempfile.TemporaryDirectory(prefix='mpt-jax-child-')
    self._both = stderr_to_stdout
    self.returncode = None
    self.pid = _ask(
      command=list(command),
      env=dict(os.environ if env is None else env),
      cwd=str(cwd),
      folder=self._folder.name,
      both=stderr_to_stdout,
    )

  def wait(self, timeout=None):
    """Returns its exit code; subprocess.TimeoutExpired if it takes longer."""
    if self.returncode is None:
      code = _ask(wait=self.pid, timeout=timeout)
      if code is None:
        raise subprocess.TimeoutExpired(f'child {self.pid}', timeout)
      self.returncode = code
    return self.returncode

  def kill(self):
    """Ends it at once, if it has not ended."""
    if self.returncode is None:
      # Until it is waited for, no other process has its number.
      with contextlib.suppress(ProcessLookupError):
        os.kill(self.pid, signal.SIGKILL)

  def communicate(self, timeout=None):
    """Waits for it; returns what it has written to stdout and to stderr."""
    self.wait(timeout)
    out, err = (
      path.read_text() if path.exists() else ''
      for path in (pathlib.Path(self._folder.name, n) for n in ('out', 'err'))
    )
    return out, None if self._both else err


def run(command, env=None, cwd=ROOT, timeout=300):
  """Runs a command to its end, as `subprocess.run` with text captured.

  Args:
    command: what follows `python`: ['-m', module, …] or ['-c', code, …].
    env: its environment; None is that of the tests.
    cwd: its working folder.
    timeout: seconds that it may take.
  """
  child = Child(command, env, cwd)
  try:
    out, err = child.communicate(timeout)
  finally:
    child.kill()
    child.wait()
  return subprocess.CompletedProcess(command, child.returncode, out, err)


@functools.cache
def _parent():
  """The process that forks."""
  path = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
  parent = subprocess.Popen(
    [sys.executable, '-m', 'tests.helpers.children'],
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(path)},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )

  def end():
    parent.stdin.close()
    parent.wait()

  atexit.register(end)
  return parent


def _ask(**request) -> Any:
  parent = _parent()
  parent.stdin.write(json.dumps(request) + '\n')
  parent.stdin.flush()
  return json.loads(parent.stdout.readline())


# --- In the other process. --------------------------------------------------


def _next_child() -> dict[str, Any]:
  """Answers requests; returns, in a new process, that of what to run there."""
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # Nobody else writes answers.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  for line in sys.stdin:
    request = json.loads(line)
    if 'wait' in request:
      answer = _wait(request['wait'], request['timeout'])
    else:
      with warnings.catch_warnings():
        # JAX warns of its threads, of which there are none before a device.
        warnings.simplefilter('ignore')
        answer = os.fork()
      if not answer:
        os.close(answers.fileno())
        return request
    answers.write(f'{json.dumps(answer)}\n')
    answers.flush()
  os._exit(0)


def _wait(pid: int, timeout: float | None) -> int | None:
  end = time.monotonic() + (timeout or 1e9)
  while time.monotonic() < end:
    found, status = os.waitpid(pid, os.WNOHANG)
    if found:
      return os.waitstatus_to_exitcode(status)
    time.sleep(0.01)
  return None


def _become(request: dict[str, Any]) -> tuple[str, str]:
  """Makes this process the one that was asked for; returns what to run."""
  signal.signal(signal.SIGINT, signal.default_int_handler)
  files = [os.devnull, 'out', 'out' if request['both'] else 'err']
  for number, name in enumerate(files):
    path = os.path.join(request['folder'], name)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.dup2(file, number)
    os.close(file)
  for name in os.environ.keys() - request['env'].keys():
    del os.environ[name]
  os.environ.update(request['env'])
  # Read when JAX was imported.
  jax.config.update('jax_platforms', os.environ.get('JAX_PLATFORMS'))
  os.chdir(request['cwd'])
  kind, what, *words = request['command']
  sys.argv[:] = [kind, *words]
  sys.path[0] = request['cwd'] if kind == '-m' else ''
  return kind, what


def _main() -> None:
  for name in _IMPORTED:
    importlib.import_module(name)
  gc.freeze()  # As the tests themselves; see conftest.py.
  gc.set_threshold(50_000, 20, 100)
  kind, what = _become(_next_child())
  if kind == '-m':
    runpy.run_module(what, run_name='__main__', alter_sys=True)
  else:
    module = types.ModuleType('__main__')
    module.__dict__['__builtins__'] = builtins
    sys.modules['__main__'] = module
    exec(compile(what, '<string>', 'exec'), module.__dict__)


if __name__ == '__main__':
  _main()
