"""What the gin-driven entry points share: flags, gin files, error manners.

`python -m mpt_jax.X --gin_file=… --gin.MACRO=…`: wrong input ends with one
line on stderr and exit code 2, a bug with a traceback and exit code 1.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import importlib
import logging
import logging.handlers
import os
import re
import signal
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

import gin

from mpt_jax.cli import flags as flags_lib
from mpt_jax.cli import reader
from mpt_jax.cli.help import HELP, show_help, tell_macros
from mpt_jax.cli.reader import (
  check_macros,
  quoted,
  read_macros,
  search_paths,
)
from mpt_jax.engine import preemption
from mpt_jax.engine.face import Face, showing
from mpt_jax.types import (
  HUB,
  InputError,
  local_path,
  prefer_own_packages,
  quiet_pipe,
)

__all__ = [
  'CONFIG',
  'LOG',
  'as_list',
  'at_interrupt',
  'call',
  'changed_macros',
  'check_macros',
  'configure',
  'data_dir',
  'end_at_once',
  'keep_log',
  'log_header',
  'macro_of',
  'main',
  'operative_config',
  'quoted',
  'read_macros',
  'repeated',
  'search_paths',
  'shell_command',
  'tell_macros',
  'use_data_dir',
  'write_config',
]

log = logging.getLogger(__name__)


@dataclasses.dataclass
class _Command:
  """The command that this process runs, and how it ends.

  Attributes:
    words: what was typed.
    arguments: the same, one by one.
    processes: `multihost`, where several processes run as one.
    resumes: what a repetition of the command will do.
  """

  words: str = ''
  arguments: Sequence[str] = ()
  processes: Any = None
  resumes: Callable[[], str] = lambda: (
    'nothing was begun: the same command starts from the start'
  )

  def end(self, line: str, code: int, text: str = '') -> NoReturn:
    """Ends the process, and the others with it; from any thread."""
    log_only(text or line)
    if self.processes:
      self.processes.abort(text or line, line, code)
    print(text or line, file=sys.stderr, flush=True)
    if threading.current_thread() is not threading.main_thread():
      os._exit(code)
    sys.exit(code)


_command = _Command()


def main(
  module: str,
  function: str,
  argv: Sequence[str] | None = None,
  spoken: str = '',
) -> None:
  """Runs `module.function` with its parameters bound by gin.

  Args:
    module: 'mpt_jax.train'. Imported by name, so that gin sees the same
      functions when the module also runs as `__main__`.
    function: the function to call; it is given no arguments but gin's.
    argv: the command line; None is `sys.argv[1:]`.
    spoken: what is typed behind `python -m`, if it is not the module.
  """
  global _command
  argv = sys.argv[1:] if argv is None else list(argv)
  if HELP & set(argv):
    show_help(module, function, argv, spoken)
  debug = '--debug' in argv
  _command = command = _Command(
    shell_command((spoken or module).removeprefix('mpt_jax.'), argv), argv
  )
  _start_logging()
  try:
    with quiet_pipe(), showing(_CommandFace()):
      _run(command, module, function, argv)
  except InputError as e:
    if debug and not command.processes:
      raise
    # Gin appends the call it was in; the first line is ours.
    line = str(e).splitlines()[0]
    text = traceback.format_exc() if debug else _told(e, line)
    command.end(line, 2, text)
  except preemption.Stopped as e:
    # Gin appends the call it was in.
    line = (
      f'{str(e).splitlines()[0]}; its state is saved, the same command resumes'
    )
    if e.number == signal.SIGINT:
      line = f'{line.rpartition(", ")[0]}, {command.resumes()}'
    else:
      # Schedulers send SIGTERM, and may know the line of version 0.1.
      log.info(command.resumes())
    if command.processes:
      command.processes.finish()
      command.processes = None
    command.end(line, 128 + e.number)
  except KeyboardInterrupt as e:
    number = getattr(e, 'number', signal.SIGINT)
    command.end(str(e) or f'interrupted; {command.resumes()}', 128 + number)
  except Exception as e:
    log_only(traceback.format_exc())
    if command.processes:
      line = f'{type(e).__name__}: {str(e).partition(chr(10))[0]}'
      command.processes.abort(traceback.format_exc(), line, 1)
    raise
  finally:
    _stop_keeping_log()
    _command = _Command()


def _run(
  command: _Command, module: str, function: str, argv: Sequence[str]
) -> None:
  """Reads the command line, and does what it says."""
  prefer_own_packages()
  flags, bindings = flags_lib.parse(module, argv)
  processes = None
  if flags_lib.several(flags):
    if module not in flags_lib.MULTIPROCESS:
      raise InputError(
        f'{module} runs in one process: start it once, without'
        ' --multiprocess_gpu and its companions'
      )
    # Imported here: a command of one process needs none of it.
    processes = importlib.import_module('mpt_jax.engine.multihost')
    command.processes = processes
    given = {name: getattr(flags, name) for name in flags_lib.PROCESS_FLAGS}
    processes.initialize(**given, tell=log_only)
    processes.check_same('code version', processes.code_version())
  if flags.dry_run and module not in flags_lib.DRY:
    raise InputError(
      f'--dry_run: {module} has none; {", ".join(flags_lib.DRY)} has'
    )
  given = {'dry_run': True} if flags.dry_run else {}
  if flags.push_to is not None or flags.upload:
    given |= _pushing(module, flags.push_to, flags.upload)
  # Before JAX and TensorFlow are loaded, which takes seconds.
  check_macros(flags.gin_file, bindings, flags.gin_search_paths)
  target = getattr(importlib.import_module(module), function)
  folder = flags_lib.data_dir(flags.tfds_data_dir, flags.hf_data_dir)
  if folder is not None:
    if module in flags_lib.READ_DATA:
      use_data_dir(folder, missing=flags.dry_run)
    else:
      log.info('%s: %s reads no data', data_flag(folder), module)
  logging.getLogger().setLevel(logging.WARNING)  # Gin logs every file.
  configure(flags.gin_file, bindings, flags.gin_search_paths)
  if processes:
    configuration = processes.configuration_lines(gin.config_str())
    processes.check_same('configuration', configuration)
  if not processes or processes.is_first() or flags.debug:
    logging.getLogger().setLevel(logging.INFO)
  if module in flags_lib.MULTIPROCESS:
    from mpt_jax.engine import compilation, hostmemory

    hostmemory.prepare()
    compilation.use_cache()
  command.resumes = lambda: 'the same command starts from the start'
  gin.get_configurable(target)(**given)
  if processes:
    processes.finish()


def _pushing(module: str, name: str | None, upload: bool) -> dict[str, Any]:
  """The arguments of --push_to and --upload."""
  if module not in flags_lib.PUSHES:
    raise InputError(
      f'--push_to: {module} has none; {", ".join(flags_lib.PUSHES)} has'
    )
  if name is None:
    raise InputError('--upload is given without --push_to=USER/NAME')
  return {'push_to': name, 'upload': upload}


def repeated(macros: Mapping[str, Any]) -> str:
  """This command with other macros, to be pasted; '' if there is none.

  Args:
    macros: name -> value.
  """
  given = tuple(f'--gin.{name}=' for name in macros)
  kept = [a for a in _command.arguments if not a.startswith(given)]
  kept += [f'--gin.{name}={value!r}' for name, value in macros.items()]
  program = _command.words.partition(' --')[0]
  return ' '.join([program, *map(quoted, kept)]) if program else ''


def at_interrupt(resumes: Callable[[], str]) -> None:
  """Sets what the end of an interrupted command says of its repetition.

  Args:
    resumes: returns 'the same command resumes from step 8', for example; it
      may be called in any thread.
  """
  _command.resumes = resumes


def end_at_once() -> Callable[[str], None] | None:
  """What ends this command whatever it is doing; None if there is none."""
  command = _command
  return (lambda line: command.end(line, 130)) if command.words else None


class _CommandFace(Face):
  """What a command configured by gin adds to the engine."""

  interactive = False

  def keep_log(self, folder: str) -> None:
    keep_log(folder)

  def write_config(self, folder: str) -> None:
    write_config(folder)

  def at_interrupt(self, resumes: Callable[[], str]) -> None:
    at_interrupt(resumes)

  def end_at_once(self) -> Callable[[str], None] | None:
    return end_at_once()

  def name_of(self, parameter: str) -> str:
    return macro_of(parameter)

  def again(self, changed: Mapping[str, Any]) -> str:
    return repeated({macro_of(n): value for n, value in changed.items()})

  def following(self, command: str, macros: Mapping[str, Any]) -> str:
    words = [f'--gin_file=gin_configs/runs/{command}.gin']
    if (data := data_dir()) and command != 'export':  # Which reads no data.
      words.append(data_flag(data))
    words += [f'--gin.{name}={value!r}' for name, value in macros.items()]
    return shell_command(command, words)


# What is logged before its folder is known, then the file in it.
_log: logging.handlers.MemoryHandler | None = None
_FORMAT = logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S')
LOG = 'log.txt'


def _start_logging() -> None:
  """Logs to stderr, and remembers it for `keep_log`."""
  global _log
  _log = logging.handlers.MemoryHandler(1000, logging.CRITICAL + 1)
  terminal = logging.StreamHandler(sys.stderr)
  terminal.setFormatter(_FORMAT)
  logging.basicConfig(level=logging.INFO, handlers=[terminal, _log], force=True)
  noisy = 'jax', 'orbax', 'absl', 'tensorflow', 'h5py', 'matplotlib'
  for name in (*noisy, 'botocore', 'aiobotocore', 's3fs'):
    logging.getLogger(name).setLevel(logging.WARNING)
  # It writes down what it also raises, at length.
  logging.getLogger('gcsfs').setLevel(logging.CRITICAL)


def keep_log(folder: str) -> None:
  """Writes what this command says to `folder/log.txt`, behind what is there.

  Of several processes the first one does. A step of a pipeline has all its
  output there already.

  Args:
    folder: MODEL_DIR; made if it is not there.

  Raises:
    InputError: if the file cannot be written.
  """
  others = _command.processes and not _command.processes.is_first()
  if _log is None or _log.target is not None or others:
    return
  path = os.path.join(folder, LOG)
  try:
    file = _LogFile(path)
  except OSError as e:
    raise InputError(f'cannot write {path}: {e.strerror or e}') from e
  file.setFormatter(_FORMAT)
  _log.setTarget(file)
  # What a store's client says while a line is sent would wait for that line.
  _log.addFilter(lambda record: record.threadName != 'fsspecIO')
  log_only(log_header(_command.words))
  _log.flush()
  # From here on each line is written at once.
  _log.capacity = 1


class _LogFile(logging.FileHandler):
  """A log here or in a bucket; there it is seldom more than behind a little."""

  def __init__(self, path: str):
    self._path = path
    super().__init__(path)

  def _open(self) -> Any:
    from mpt_jax.checkpoints import files

    return files.open_to_append(self._path, pause=10)


def log_header(words: str) -> str:
  """The line that begins a run of a command in a log: date and command."""
  return f'--- {time.strftime("%Y-%m-%d %H:%M:%S")} {words}'


def log_only(text: str) -> None:
  """Writes to the log file, if one is kept; for what stderr has anyway."""
  if _log is not None and isinstance(_log.target, logging.FileHandler):
    _log.target.acquire()
    with contextlib.suppress(OSError, ValueError):
      print(text, file=_log.target.stream, flush=True)
    _log.target.release()


def _stop_keeping_log() -> None:
  global _log
  if _log is not None:
    logging.getLogger().removeHandler(_log)
    file = _log.target
    _log.close()
    if file is not None:
      file.close()
  _log = None


def shell_command(entry: str, arguments: Sequence[str]) -> str:
  """`python -m mpt_jax.ENTRY …`, quoted as one would type it."""
  return ' '.join(['python', '-m', f'mpt_jax.{entry}', *map(quoted, arguments)])


def _told(error: InputError, line: str) -> str:
  """An error as a terminal shows it: several details have lines of their own.

  The last line is the error, whatever stands before it.
  """
  details = error.details
  if len(details) < 2:
    return f'error: {line}'
  last = f'error: {error.summary}: {details[0]}; all {len(details)} above'
  return '\n'.join([*(f'  {detail}' for detail in details), last])


# What --tfds_data_dir said, or `hf:` and what --hf_data_dir said.
_data_dir: str | None = None


def use_data_dir(path: str, missing: bool = False) -> None:
  """Makes every task read from this folder, as --tfds_data_dir does.

  Args:
    path: folder of prepared TFDS data; `hf:DIR` is one of the hub's data sets.
    missing: whether it need not be there.

  Raises:
    InputError: if there is no such folder.
  """
  global _data_dir
  hub, folder = path.startswith(HUB), local_path(path.removeprefix(HUB))
  path = f'{HUB}{folder}' if hub else folder
  if not missing and not os.path.isdir(folder) and '://' not in folder:
    writes = (
      'tasks.download NAME --hf_data_dir=…` fills it'
      if hub
      else 'tasks.offline --data_dir=…` writes synthetic data'
    )
    raise InputError(f'{data_flag(path)} does not exist; `python -m {writes}')
  importlib.import_module('mpt_jax.data.quiet').announce()
  importlib.import_module('mpt_jax.data').set_data_dir(path)
  _data_dir = path


def data_dir() -> str | None:
  """What was given to `use_data_dir`, or None."""
  return _data_dir


def data_flag(path: str) -> str:
  """Returns the flag that says what `use_data_dir` takes."""
  if path.startswith(HUB):
    return f'--hf_data_dir={path.removeprefix(HUB)}'
  return f'--tfds_data_dir={path}'


def configure(
  gin_files: Sequence[str], bindings: Sequence[str], extra_paths: str = ''
) -> None:
  """Parses gin files and bindings, and checks every macro.

  Args:
    gin_files: looked for as given, in `extra_paths`, then among the
      installed gin_configs.
    bindings: 'NAME=VALUE', over what the files say.
    extra_paths: comma-separated folders.

  Raises:
    InputError: if a file is missing, a macro unknown or a required one unset,
      or gin refuses something.
  """
  paths = search_paths(extra_paths)
  # Includes are looked for in this order; gin can only add to its own.
  gin.config._LOCATION_PREFIXES[:] = paths
  text = reader.read(gin_files, bindings, extra_paths, whole=True)
  # A binding means what it would mean in the files. What gin has registered
  # from another file in this process under another name would not be found.
  imports = text.imports()
  try:
    gin.parse_config_files_and_bindings(text.files, [*imports, *bindings])
  except InputError:
    raise
  except Exception as e:  # Its parsers raise many unrelated types.
    raise InputError(f'gin: {" ".join(str(e).split())}') from e


def call(
  module: str,
  function: str,
  gin_files: Sequence[str],
  bindings: Sequence[str],
  **given: Any,
) -> Any:
  """Calls an entry point as its command would, in this process.

  Args:
    module: 'mpt_jax.train'.
    function: its function.
    gin_files: as for `configure`; an earlier configuration is forgotten.
    bindings: 'NAME=VALUE'.
    **given: arguments that gin shall not bind, such as a loaded backbone.

  Returns:
    What the function returns.

  Raises:
    InputError: as `configure`, or from the function.
  """
  target = getattr(importlib.import_module(module), function)
  gin.clear_config()
  configure(gin_files, bindings)
  with showing(_CommandFace()):
    return gin.get_configurable(target)(**given)


def macro_of(parameter: str) -> str:
  """Returns the macro that sets a parameter, for what a user is told.

  Args:
    parameter: of a command's function or of a dataclass that gin binds.

  Returns:
    Its macro's name; the parameter's own where gin binds no macro to it.
  """
  bound = re.search(
    rf'(?m)\.{re.escape(parameter)} = %(\w+)$', gin.config_str()
  )
  return bound[1] if bound else parameter


def operative_config() -> str:
  """The gin configuration in force, for the run's folder."""
  return gin.operative_config_str() or gin.config_str()


# The gin configuration that made a folder.
CONFIG = 'config.gin'


def write_config(folder: str) -> None:
  """Keeps the gin configuration in force in a folder, if there is one."""
  text = operative_config()
  if text:
    from mpt_jax.checkpoints import files

    files.write_file(os.path.join(folder, CONFIG), text.encode())


def changed_macros(folder: str) -> list[str]:
  """Says which macros are other ones than in a folder's configuration.

  Args:
    folder: where `write_config` wrote; without its file nothing is said.

  Returns:
    'NAME: value there, value here' of each.
  """
  from mpt_jax.checkpoints import files, run

  path = os.path.join(folder, CONFIG)
  if not files.exists(path):
    return []
  with files.open_to_read(path) as f:
    there = f.read().decode()

  return run.differences(_macros(there), _macros(operative_config()))


def _macros(text: str) -> dict[str, str]:
  """The macros of what `write_config` wrote; values may go over lines."""
  found = re.findall(r'(?m)^(\w+) = (.*(?:\n[ \t].*)*)$', text)
  return {name: ' '.join(value.split()) for name, value in found}


def as_list(value: Any) -> list[Any]:
  """A gin value that may be one item or several."""
  return list(value) if isinstance(value, (list, tuple)) else [value]
