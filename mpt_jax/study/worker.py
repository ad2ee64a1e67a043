"""What happens in a worker process of a study: one step at a time.

Each worker imports TensorFlow, loads the backbone and compiles a kind of step
only once, whoever started it.
"""

from collections.abc import Callable, Mapping, Sequence
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
from mpt_jax.checkpoints import files, lock
from mpt_jax.checkpoints.run import RESULTS
from mpt_jax.engine import hostmemory, preemption, trainer
from mpt_jax.study import picked
from mpt_jax.study.steps import Step
from mpt_jax.types import InputError, prefer_own_packages

# Written into a step's folder when it is finished.
STEP = 'step.json'
CACHE = 'compilation_cache'

_FUNCTIONS = {'train': 'train', 'eval': 'evaluate', 'export': 'export'}
# So small models leave nothing for a second thread to do.
_ONE_THREAD = '--xla_cpu_multi_thread_eigen=false'


def environment(threads: int) -> dict[str, str]:
  """Returns variables that say how many threads a worker's libraries use."""
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
  return changed


def command(step: Step, data_dir: str | None = None) -> str:
  """The shell command that does what a step does.

  Args:
    step: the step.
    data_dir: folder of the TFDS data.
  """
  words = [f'--gin_file={name}' for name in step.gin_files]
  if data_dir:
    words.append(cli.data_flag(data_dir))
  words += [f'--gin.{binding}' for binding in step.bindings]
  return cli.shell_command(step.entry, words)


def settings_of(
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


def start(folder: str) -> None:
  """Prepares this process; before JAX is loaded.

  Args:
    folder: the study's, of the log and of the compiled programs.
  """
  # One decides for all whether Ctrl-C ends them.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
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


def start_child(folder: str) -> None:
  """Prepares a process that must not write on when its parent was killed."""
  threading.Thread(target=_die_with_parent, daemon=True).start()
  start(folder)


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


def device() -> str:
  """Returns 'cpu', 'gpu' or 'tpu'."""
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


def guarded(
  function: Callable[..., Any], args: Sequence[Any]
) -> tuple[str, Any]:
  """Calls; an exception comes back as text, since not all can be pickled.

  Returns:
    ('ok', what the function returns), or ('input', the line of an InputError)
    or ('bug', what else went wrong).
  """
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


def run_step(
  step: Step,
  folder: str,
  shared: Mapping[str, str],
  backbone: str,
  data_dir: str | None,
  module: str | None,
  patience: float,
) -> tuple[str, Any]:
  """Runs one step; its output goes to its own folder.

  Args:
    step: the step.
    folder: the study's.
    shared: see `workers.Pool.shared`.
    backbone: path of the one that the steps share.
    data_dir: folder of the TFDS data.
    module: module that registers the tasks.
    patience: seconds to wait for a lost worker to let go of the step's folder.

  Returns:
    See `guarded`.
  """
  path = os.path.join(folder, step.name)
  os.makedirs(path, exist_ok=True)
  lock.wait(path, patience)
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
          'settings': settings_of(step, folder, shared),
          'command': command(called, data_dir),
          'seconds': round(time.monotonic() - begin, 2),
          # Of a step that trains.
          'step_bytes': getattr(made, 'step_bytes', 0),
        }
      ),
    )

  try:
    kind, value = guarded(run, ())
    if kind == 'bug':
      value = f'{value}; see {os.path.join(path, cli.LOG)}'
    return kind, value
  finally:
    _redirect(os.path.join(folder, cli.LOG))
