"""What the gin-driven entry points share: flags, gin files, error manners.

`python -m mpt_jax.X --gin_file=… --gin.MACRO=…`: wrong input ends with one
line on stderr and exit code 2, a bug with a traceback and exit code 1.
"""

import argparse
import ast
from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import filecmp
import functools
import importlib
import io
import logging
import logging.handlers
import os
import re
import shlex
import signal
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

import gin
from gin import config_parser

from mpt_jax.checkpoints import files
from mpt_jax.engine import hostmemory, preemption
from mpt_jax.engine.face import Face, showing
from mpt_jax.types import (
  ANYTHING,
  InputError,
  expected_by,
  installed,
  local_path,
  nearest,
  prefer_own_packages,
  quiet_pipe,
)

log = logging.getLogger(__name__)

# The entry points that several processes run as one.
MULTIPROCESS = ('mpt_jax.train', 'mpt_jax.eval', 'mpt_jax.infer')
_PROCESS_FLAGS = (
  'coordinator_address',
  'process_count',
  'process_index',
  'initialization_timeout',
)
# Files that include one another can be as many as 2 to their number.
_MOST_FILES = 1000
# Of a line that cannot be read.
_SHOWN = 200


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


def main(module: str, function: str, argv: Sequence[str] | None = None) -> None:
  """Runs `module.function` with its parameters bound by gin.

  Args:
    module: 'mpt_jax.train'. Imported by name, so that gin sees the same
      functions when the module also runs as `__main__`.
    function: the function to call; it is given no arguments but gin's.
    argv: the command line; None is `sys.argv[1:]`.
  """
  global _command
  argv = sys.argv[1:] if argv is None else list(argv)
  debug = '--debug' in argv
  _command = command = _Command(
    shell_command(module.removeprefix('mpt_jax.'), argv), argv
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
      # It may be another process's end that we noticed in our own way.
      command.processes.wait_for_verdict()
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
  target = getattr(importlib.import_module(module), function)
  flags, bindings = _parse_flags(module, target, argv)
  processes = None
  if _several(flags):
    if module not in MULTIPROCESS:
      raise InputError(
        f'{module} runs in one process: start it once, without'
        ' --multiprocess_gpu and its companions'
      )
    # Imported here: a command of one process needs none of it.
    processes = importlib.import_module('mpt_jax.engine.multihost')
    command.processes = processes
    processes.initialize(**{n: getattr(flags, n) for n in _PROCESS_FLAGS})
    processes.check_same('code version', processes.code_version())
  # Before TensorFlow is loaded, which takes seconds.
  check_macros(flags.gin_file, bindings, flags.gin_search_paths)
  if flags.tfds_data_dir is not None:
    use_data_dir(flags.tfds_data_dir)
  logging.getLogger().setLevel(logging.WARNING)  # Gin logs every file.
  configure(flags.gin_file, bindings, flags.gin_search_paths)
  if processes:
    configuration = processes.configuration_lines(gin.config_str())
    processes.check_same('configuration', configuration)
  if not processes or processes.is_first() or flags.debug:
    logging.getLogger().setLevel(logging.INFO)
  if module in MULTIPROCESS:
    hostmemory.prepare()
    use_compilation_cache()
  command.resumes = lambda: 'the same command starts from the start'
  gin.get_configurable(target)()
  if processes:
    processes.finish()


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


def end_at_once() -> preemption.End | None:
  """What ends this command whatever it is doing; None if there is none."""
  command = _command
  return (lambda line: command.end(line, 130)) if command.words else None


class _CommandFace(Face):
  """What a command configured by gin adds to the engine."""

  def keep_log(self, folder: str) -> None:
    keep_log(folder)

  def write_config(self, folder: str) -> None:
    write_config(folder)

  def at_interrupt(self, resumes: Callable[[], str]) -> None:
    at_interrupt(resumes)

  def end_at_once(self) -> preemption.End | None:
    return end_at_once()

  def name_of(self, parameter: str) -> str:
    return macro_of(parameter)

  def again(self, changed: Mapping[str, Any]) -> str:
    return repeated({macro_of(n): value for n, value in changed.items()})

  def following(self, command: str, macros: Mapping[str, Any]) -> str:
    words = [f'--gin_file=gin_configs/runs/{command}.gin']
    if data_dir() and command != 'export':  # Which reads no data.
      words.append(f'--tfds_data_dir={data_dir()}')
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
  for noisy in ('jax', 'orbax', 'absl', 'tensorflow', 'h5py', 'matplotlib'):
    logging.getLogger(noisy).setLevel(logging.WARNING)


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
    os.makedirs(folder, exist_ok=True)
    file = logging.FileHandler(path, encoding='utf-8')
  except OSError as e:
    raise InputError(f'cannot write {path}: {e.strerror or e}') from e
  file.setFormatter(_FORMAT)
  _log.setTarget(file)
  log_only(log_header(_command.words))
  _log.flush()
  # From here on each line is written at once.
  _log.capacity = 1


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


def quoted(word: str) -> str:
  """A word of the command line as a shell wants it: --gin.NAME="'text'"."""
  name, equals, value = word.partition('=')
  if "'" in value and not set(value) & set('"$`\\!'):
    return f'{name}{equals}"{value}"'
  return shlex.quote(word)


def _told(error: InputError, line: str) -> str:
  """An error as a terminal shows it: several details have lines of their own.

  The last line is the error, whatever stands before it.
  """
  details = error.details
  if len(details) < 2:
    return f'error: {line}'
  last = f'error: {error.summary}: {details[0]}; all {len(details)} above'
  return '\n'.join([*(f'  {detail}' for detail in details), last])


def use_compilation_cache() -> None:
  """Keeps what JAX compiles for later processes, in the user's cache folder.

  JAX's own environment variables decide otherwise: JAX_COMPILATION_CACHE_DIR
  is another folder, JAX_ENABLE_COMPILATION_CACHE=false is none.
  """
  import jax

  from mpt_jax.t5 import native

  config: Any = jax.config
  if config.jax_compilation_cache_dir:
    return
  folder = native.cache_folder('xla')
  if folder is not None:
    config.update('jax_compilation_cache_dir', folder)


def _several(flags: argparse.Namespace) -> bool:
  """Whether the command line says that there are other processes."""
  given = {
    name: getattr(flags, name)
    for name in _PROCESS_FLAGS
    if getattr(flags, name) is not None
  }
  if given and not flags.multiprocess_gpu:
    raise InputError(
      f'--{next(iter(given))} is given without --multiprocess_gpu; with it'
      ' several processes run as one'
    )
  return flags.multiprocess_gpu


def _parse_flags(
  module: str, target: Callable, argv: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
  parser = argparse.ArgumentParser(
    prog=f'python -m {module}',
    description=importlib.import_module(module).__doc__,
    epilog='--gin.NAME=VALUE sets a macro (--gin.BATCH_SIZE=32) or a parameter'
    ' (--gin.train.Logging.log_period=50); strings need quotes:'
    ' --gin.MODEL_DIR="\'runs/rte\'". Each shipped gin file names its macros'
    ' at its top: gin_configs/runs/*.gin',
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    '--gin_file',
    action='append',
    default=[],
    help='gin file; may be repeated, later ones win. Looked for as given, in'
    ' --gin_search_paths, then among the installed gin_configs;'
    ' gin_configs/… is the installed one, ./gin_configs/… yours',
  )
  parser.add_argument(
    '--gin_search_paths', default='', help='comma-separated folders'
  )
  parser.add_argument(
    '--tfds_data_dir', default=None, help='folder of prepared TFDS data'
  )
  processes = parser.add_argument_group(
    'several processes',
    'the same command in each, but for --process_index; see docs/gpu.md and'
    ' docs/tpu.md',
  )
  processes.add_argument(
    '--multiprocess_gpu',
    '--multiprocess',
    action='store_true',
    help='run as one of several processes, on GPUs, TPUs or CPUs; without the'
    ' next three flags JAX finds the others (TPU pods, Slurm, Open MPI)',
  )
  processes.add_argument(
    '--coordinator_address', help='HOST:PORT of process 0, the port a free one'
  )
  processes.add_argument('--process_count', type=int, help='how many')
  processes.add_argument('--process_index', type=int, help='this one, from 0')
  processes.add_argument(
    '--initialization_timeout',
    type=int,
    help='seconds to wait for the others at the start (300)',
  )
  parser.add_argument(
    '--debug', action='store_true', help='show the traceback of wrong input'
  )
  flags, rest = parser.parse_known_args(argv)
  bindings: list[str] = []
  for argument in rest:
    if not argument.startswith('--gin.') or '=' not in argument:
      known = [
        '--gin_file',
        '--gin_search_paths',
        '--tfds_data_dir',
        '--debug',
        '--multiprocess_gpu',
        *(f'--{name}' for name in _PROCESS_FLAGS),
      ]
      hint = nearest(argument.split('=')[0], known)
      if argument.startswith('--gin.'):
        hint = f'; a value follows behind =: {argument}=…'
      elif bindings and not argument.startswith('-'):
        hint = (
          f'; a value with blanks needs quotes around it, as in'
          f' {quoted(f"--gin.{bindings[-1]} …")}'
        )
      raise InputError(f'unknown argument {argument!r}{hint or "; see --help"}')
    bindings.append(argument.removeprefix('--gin.'))
  if not flags.gin_file:
    raise InputError('no --gin_file given; see --help')
  return flags, bindings


def search_paths(extra: str = '') -> list[str]:
  """Folders in which gin files are looked for, in order."""
  given = [local_path(p) for p in extra.split(',') if p]
  # The folder itself, and its parent for 'gin_configs/runs/teacher.gin'.
  paths = ['', *given, installed(), installed('gin_configs')]
  if os.path.isdir('gin_configs') and not os.path.samefile(
    'gin_configs', installed('gin_configs')
  ):
    # A folder of that name in the working folder is not ours.
    paths.remove(installed())
    paths = [*given, installed(), '', *paths[len(given) + 1 :]]
  return paths


@functools.cache
def _tell_of_namesake(name: str) -> None:
  """Once: a file in the working folder is not the one that is read."""
  if not filecmp.cmp(name, installed(name), shallow=False):
    log.warning(
      'gin file %s: the installed one is read; yours is ./%s', name, name
    )


def _find(name: str, paths: Sequence[str]) -> str:
  # './x.gin' is in the working folder, whatever else has the name.
  here = name.startswith('./') and os.path.isfile(name)
  name = local_path(name)
  for path in [''] if here else paths:
    candidate = os.path.join(path, name)
    if os.path.isfile(candidate):
      if path == installed() and os.path.isfile(name):
        _tell_of_namesake(name)
      return candidate
  known = []
  for path in filter(None, paths):
    for folder, _, names in os.walk(path):
      known += [
        os.path.relpath(os.path.join(folder, n), path)
        for n in names
        if n.endswith('.gin')
      ]
  raise InputError(
    f'gin file {name!r} does not exist{nearest(name, sorted(set(known)))}'
  )


# What --tfds_data_dir said.
_data_dir: str | None = None


def use_data_dir(path: str) -> None:
  """Makes every task read from this folder, as --tfds_data_dir does.

  Args:
    path: folder of prepared TFDS data.

  Raises:
    InputError: if there is no such folder.
  """
  global _data_dir
  path = local_path(path)
  if not os.path.isdir(path) and '://' not in path:
    raise InputError(
      f'--tfds_data_dir={path} does not exist; `python -m'
      ' tasks.offline --data_dir=…` writes synthetic data'
    )
  importlib.import_module('mpt_jax.data').set_data_dir(path)
  _data_dir = path


def data_dir() -> str | None:
  """The folder given as --tfds_data_dir, or None."""
  return _data_dir


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
  gin_files = check_macros(gin_files, bindings, extra_paths)
  try:
    gin.parse_config_files_and_bindings(gin_files, list(bindings))
  except InputError:
    raise
  except Exception as e:  # Its parsers raise many unrelated types.
    raise InputError(f'gin: {" ".join(str(e).split())}') from e


def check_macros(
  gin_files: Sequence[str], bindings: Sequence[str], extra_paths: str = ''
) -> list[str]:
  """Checks that every macro is used and every required one is set.

  Args:
    gin_files: as for `configure`; nothing is parsed by gin.
    bindings: 'NAME=VALUE'.
    extra_paths: comma-separated folders.

  Returns:
    The gin files, found.

  Raises:
    InputError: if a file is missing, a macro unknown or a required one unset.
  """
  paths = search_paths(extra_paths)
  found = [_find(name, paths) for name in gin_files]
  _read_checked(found, bindings, paths)
  return found


def read_macros(
  gin_files: Sequence[str], bindings: Sequence[str]
) -> dict[str, Any]:
  """Reads what a run would be given; imports and runs nothing.

  Args:
    gin_files: as for `configure`.
    bindings: 'NAME=VALUE'.

  Returns:
    Macro -> value, of those that are set to one; a required one need not be.

  Raises:
    InputError: if a file is missing, a macro unknown or of a wrong type.
  """
  paths = search_paths()
  found = [_find(name, paths) for name in gin_files]
  text = _read_checked(found, bindings, paths, whole=False)
  values = {n: text.resolve(s).value for n, s in text.macros.items()}
  return {n: v for n, v in values.items() if v is not ANYTHING}


def _read_checked(
  found: Sequence[str],
  bindings: Sequence[str],
  paths: Sequence[str],
  whole: bool = True,
) -> '_Text':
  """Reads gin files and bindings; `whole`: nothing required may be missing."""
  text = _read_files(found, paths)
  for binding in bindings:
    text.add(_parse_binding(binding, text.used))
  _check_names(text, whole)
  _check_types(text)
  return text


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


@dataclasses.dataclass(frozen=True)
class _Macro:
  """'%NAME' in the place of a value."""

  name: str


_REQUIRED = _Macro('gin.REQUIRED')


class _References(config_parser.ParserDelegate):
  """Leaves references as they are, and notes which macros there are."""

  def __init__(self, used: set[str]):
    self._used = used

  def configurable_reference(
    self, scoped_configurable_name: str, evaluate: bool
  ) -> Any:
    return ANYTHING

  def macro(self, macro_name: str) -> _Macro:
    self._used.add(macro_name)
    return _Macro(macro_name)


@dataclasses.dataclass(frozen=True)
class _Setting:
  """A statement that sets something.

  Attributes:
    scope: of the parameter, '' for none.
    target: what has the parameter, as 'train.train'; '' for a macro.
    name: of the macro or parameter.
    value: with `_Macro` and `ANYTHING` for references.
    where: 'FILE:LINE'; '' on the command line.
  """

  scope: str
  target: str
  name: str
  value: Any
  where: str

  def shown(self, value: Any) -> str:
    """The statement with a value, to be read or pasted."""
    scope = f'{self.scope}/' if self.scope else ''
    name = f'{scope}{self.target}.{self.name}' if self.target else self.name
    if self.where:
      return f'{name} = {value!r}'
    return quoted(f'--gin.{name}={value!r}')


@dataclasses.dataclass
class _Text:
  """What gin files and bindings say; a later setting wins.

  Attributes:
    settings: in gin's own order.
    used: the macros that are referred to.
    modules: local name -> module, of all imports.
  """

  settings: list[_Setting] = dataclasses.field(default_factory=list)
  used: set[str] = dataclasses.field(default_factory=set)
  modules: dict[str, str] = dataclasses.field(default_factory=dict)

  def add(self, statement: config_parser.BindingStatement) -> None:
    """Takes a statement."""
    target, name = statement.selector, statement.arg_name
    if not name:
      target, name = '', target
    place = statement.location
    where = f'{place.filename}:{place.line_num}' if place.filename else ''
    self.settings.append(
      _Setting(statement.scope, target, name, statement.value, where)
    )

  @property
  def macros(self) -> dict[str, _Setting]:
    """The macros by name."""
    return {s.name: s for s in self.settings if not s.target and not s.scope}

  def resolve(self, setting: _Setting) -> _Setting:
    """What a parameter is set to in the end, and by which statement."""
    macros, seen = self.macros, set()
    while isinstance(setting.value, _Macro):
      name = setting.value.name
      if name in seen or name not in macros:
        return dataclasses.replace(setting, value=ANYTHING)
      seen.add(name)
      setting = macros[name]

    def fill(value: Any, depth: int = 0) -> Any:
      if isinstance(value, _Macro):
        known = value.name in macros and depth < 20
        return fill(macros[value.name].value, depth + 1) if known else ANYTHING
      if isinstance(value, list | tuple):
        return type(value)(fill(v, depth) for v in value)
      if isinstance(value, dict):
        return {fill(k, depth): fill(v, depth) for k, v in value.items()}
      return value

    return dataclasses.replace(setting, value=fill(setting.value))


def _read_files(gin_files: Sequence[str], paths: Sequence[str]) -> _Text:
  """Parses gin files as gin does, but imports nothing."""
  text = _Text()
  count = 0

  def read(path: str, including: tuple[str, ...] = ()) -> None:
    nonlocal count
    if os.path.realpath(path) in including:
      raise InputError(f'gin file {path} includes itself')
    count += 1
    if count > _MOST_FILES:
      raise InputError(f'more than {_MOST_FILES} gin files are included')
    including = (*including, os.path.realpath(path))
    try:
      with open(path, encoding='utf-8') as f:
        content = io.StringIO(f.read())
    except (OSError, UnicodeDecodeError) as e:
      reason = getattr(e, 'strerror', None) or 'not UTF-8'
      raise InputError(f'gin file {path} cannot be read: {reason}') from e
    content.name = path
    try:
      statements = list(
        config_parser.ConfigParser(content, _References(text.used))
      )
    except Exception as e:  # Python's parsers raise many unrelated types.
      raise InputError(_wrong_line(e, path)) from e
    for statement in statements:
      if isinstance(statement, config_parser.IncludeStatement):
        read(_find(statement.filename, paths), including)
      elif isinstance(statement, config_parser.ImportStatement):
        text.modules[statement.bound_name()] = statement.module
      elif isinstance(statement, config_parser.BindingStatement):
        text.add(statement)

  for path in gin_files:
    read(path)
  return text


def _wrong_line(error: Exception, path: str) -> str:
  """What is wrong with a gin file that cannot be parsed."""
  line, number = (getattr(error, 'text', None) or '')[:_SHOWN], '?'
  if getattr(error, 'lineno', None):
    number = str(error.lineno)  # type: ignore[attr-defined]
  elif len(error.args) == 2 and isinstance(error.args[1], tuple):
    number = str(error.args[1][0])
  where = f'{path}:{number}'
  name, equals, value = line.partition('=')
  said = ' '.join(str(getattr(error, 'msg', error)).split())
  token = re.search(r"Failed to parse token '(.+)'$", said)
  if equals:
    hint = _quoted_form(value.split(' #')[0])
    return (
      f'gin: {where}: {line.strip()}: {hint[0]}: {name.strip()} = {hint[1]}'
    )
  if token:
    hint = _quoted_form(token.group(1))
    return f'gin: {where}: {line.strip()}: {hint[0]}: {hint[1]}'
  return f'gin: {where}: {said[:_SHOWN] or type(error).__name__}'


def _parse_binding(
  binding: str, used: set[str]
) -> config_parser.BindingStatement:
  """Parses 'NAME=VALUE' of the command line."""
  name, _, value = binding[:_SHOWN].partition('=')
  try:
    [statement] = config_parser.ConfigParser(binding, _References(used))
    if not isinstance(statement, config_parser.BindingStatement):
      raise ValueError('no binding')
    return statement
  except Exception as e:
    if not re.fullmatch(r'[\w./]+', name):
      raise InputError(
        f'--gin.{binding[:_SHOWN]}: {name!r} is no name of a macro or parameter'
      ) from e
    reason, form = _quoted_form(value)
    raise InputError(
      f'--gin.{binding[:_SHOWN]}: {reason}: {quoted(f"--gin.{name}={form}")}'
    ) from e


# A word in a list that is none of gin's values.
_BARE = re.compile(r'(?<=[\[({,:])\s*([A-Za-z_][\w./-]*)\s*(?=[\])},:])')
_CONSTANTS = {'none': 'None', 'true': 'True', 'false': 'False'}


def _quoted_form(value: str) -> tuple[str, str]:
  """Why gin cannot read a value, and how it is written right.

  Args:
    value: what was typed.

  Returns:
    (the reason, the right form).
  """
  value = value.strip()
  constant = _CONSTANTS.get(value.lower())
  if constant:
    return f'write {constant}, or with quotes if it is a string', constant
  if value[:1] in ('[', '{', '('):
    form = _BARE.sub(
      lambda m: (
        m[0] if m[1] in _CONSTANTS.values() else m[0].replace(m[1], repr(m[1]))
      ),
      value,
    )
    try:
      config_parser.ConfigParser(f'X = {form}', _References(set())).__next__()
      return 'a string needs quotes, in a list too', form
    except Exception:
      close = {'[': "['a', 'b']", '{': "{'a': 1}", '(': "('a', 'b')"}
      return 'its quotes or brackets do not close; like this', close[value[0]]
  bare = value.strip('\'"')
  return 'a string needs quotes', repr(bare)


def _check_names(text: _Text, whole: bool) -> None:
  """Every macro that is set must be used, and if `whole` every one be set.

  Gin itself accepts a misspelt macro in silence.
  """
  # '%gin.REQUIRED' is a constant, not a macro.
  used = {name for name in text.used if '.' not in name}
  macros = text.macros
  for setting in text.settings:
    if setting.target or setting.scope or setting.name in used:
      continue
    near = nearest(setting.name, used)
    if setting.where:
      path = setting.where.rpartition(':')[0]
      raise InputError(f'macro {setting.name} in {path} is used nowhere{near}')
    raise InputError(
      f'--gin.{setting.name} sets a macro that no gin file uses{near}'
    )
  missing = [n for n, s in macros.items() if s.value == _REQUIRED]
  missing += sorted(used - macros.keys())
  if missing and whole:
    others = f' (also missing: {", ".join(missing[1:])})' if missing[1:] else ''
    raise InputError(
      f'required macro {missing[0]} is not set: give'
      f' --gin.{missing[0]}=…{others}'
    )


def _check_types(text: _Text) -> None:
  """Values must be what the parameters that they are bound to ask for."""
  last = {(s.scope, s.target, s.name): s for s in text.settings if s.target}
  for setting in last.values():
    home, _, name = setting.target.rpartition('.')
    module = text.modules.get(home, '')
    annotation = _annotations(module, name).get(setting.name)
    if annotation is None:
      continue
    given = text.resolve(setting)
    words = expected_by(annotation, given.value)
    if words:
      where = f'{given.where}: ' if given.where else ''
      raise InputError(
        f'{where}{given.shown(given.value)}: {given.name} must be {words}'
        f'{_better(annotation, given)}'
      )


def _better(annotation: ast.expr, given: _Setting) -> str:
  """'; write …' where it can be told what was meant."""
  value = given.value
  if isinstance(value, str):
    with contextlib.suppress(Exception):
      meant = ast.literal_eval(value)
      if not expected_by(annotation, meant):
        return f': without inner quotes, {given.shown(meant)}'
  elif isinstance(value, int | float) and not isinstance(value, bool):
    if not expected_by(annotation, str(value)):
      return f': a string needs quotes, {given.shown(str(value))}'
    if float(value).is_integer() and not expected_by(annotation, int(value)):
      return f': {given.shown(int(value))}'
  return ''


@functools.lru_cache(maxsize=256)
def _annotations(module: str, name: str) -> Mapping[str, ast.expr]:
  """The annotated parameters of a function or data class of this package.

  They are read from its source: to import the data layer takes seconds.

  Args:
    module: 'mpt_jax.data.dataset'.
    name: 'DatasetConfig'.
  """
  top, _, rest = module.partition('.')
  path = installed(top, *rest.split('.'))
  path = next(
    (p for p in (f'{path}.py', f'{path}/__init__.py') if os.path.isfile(p)), ''
  )
  if top != 'mpt_jax' or not path:
    return {}
  with open(path, encoding='utf-8') as f:
    tree = ast.parse(f.read())
  found: dict[str, ast.expr] = {}
  for node in tree.body:
    if isinstance(node, ast.ClassDef) and node.name == name:
      for field in node.body:
        if isinstance(field, ast.AnnAssign):
          found[ast.unparse(field.target)] = field.annotation
    elif isinstance(node, ast.FunctionDef) and node.name == name:
      for arg in (*node.args.args, *node.args.kwonlyargs):
        if arg.annotation is not None:
          found[arg.arg] = arg.annotation
    elif isinstance(node, ast.ImportFrom) and node.module:
      for alias in node.names:
        if (alias.asname or alias.name) == name:
          return _annotations(node.module, alias.name)
  return found


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


def differences(there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
  """Says 'NAME: value there, value here' of each setting that differs."""
  return [
    f'{name}: {there.get(name, "none")} there, {here.get(name, "none")} here'
    for name in sorted(there.keys() | here.keys())
    if there.get(name) != here.get(name)
  ]


# The gin configuration that made a folder.
CONFIG = 'config.gin'


def write_config(folder: str) -> None:
  """Keeps the gin configuration in force in a folder, if there is one."""
  text = operative_config()
  if text:
    files.write_file(os.path.join(folder, CONFIG), text.encode())


def changed_macros(folder: str) -> list[str]:
  """Says which macros are other ones than in a folder's configuration.

  Args:
    folder: where `write_config` wrote; without its file nothing is said.

  Returns:
    The lines of `differences`.
  """
  path = os.path.join(folder, CONFIG)
  if not os.path.exists(path):
    return []
  with open(path, encoding='utf-8') as f:
    there = f.read()
  here = operative_config()
  return differences(_macros(there), _macros(here))


def _macros(text: str) -> dict[str, str]:
  """The macros of what `write_config` wrote; values may go over lines."""
  found = re.findall(r'(?m)^(\w+) = (.*(?:\n[ \t].*)*)$', text)
  return {name: ' '.join(value.split()) for name, value in found}


def as_list(value: Any) -> list[Any]:
  """A gin value that may be one item or several."""
  return list(value) if isinstance(value, (list, tuple)) else [value]
