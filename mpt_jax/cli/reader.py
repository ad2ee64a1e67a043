"""Gin files read without importing what they bind: macros, types, comments."""

import ast
from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import filecmp
import functools
import inspect
import io
import logging
import os
import re
import shlex
from typing import Any

from gin import config_parser

import mpt_jax
from mpt_jax.types import (
  ANYTHING,
  InputError,
  expected_by,
  installed,
  local_path,
  nearest,
)

log = logging.getLogger(__name__)

# Files that include one another can be as many as 2 to their number.
_MOST_FILES = 1000
# Of a line that cannot be read.
_SHOWN = 200


def quoted(word: str) -> str:
  """A word of the command line as a shell wants it: --gin.NAME="'text'"."""
  name, equals, value = word.partition('=')
  if "'" in value and not set(value) & set('"$`\\!'):
    return f'{name}{equals}"{value}"'
  return shlex.quote(word)


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


def find(name: str, paths: Sequence[str]) -> str:
  """Returns the path of a gin file; './x.gin' is in the working folder.

  Args:
    name: as it was given.
    paths: of `search_paths`.

  Raises:
    InputError: if there is none.
  """
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
  return read(gin_files, bindings, extra_paths, whole=True).files


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
  text = read(gin_files, bindings)
  values = {n: text.resolve(s).value for n, s in text.macros.items()}
  return {n: v for n, v in values.items() if v is not ANYTHING}


def read(
  gin_files: Sequence[str],
  bindings: Sequence[str] = (),
  extra_paths: str = '',
  whole: bool = False,
) -> 'Text':
  """Reads gin files and bindings, and checks names and types.

  Args:
    gin_files: as for `configure`.
    bindings: 'NAME=VALUE'.
    extra_paths: comma-separated folders.
    whole: whether every required macro has to be set.

  Returns:
    What they say.

  Raises:
    InputError: if a file is missing, a macro unknown or of a wrong type.
  """
  paths = search_paths(extra_paths)
  text = _read_files([find(name, paths) for name in gin_files], paths)
  for binding in bindings:
    text.add(_parse_binding(binding, text.used))
  _check_names(text, whole)
  _check_parameters(text)
  _check_types(text)
  return text


@dataclasses.dataclass(frozen=True)
class Parameter:
  """What the source says of a parameter.

  Attributes:
    annotation: its type; None if it has none.
    default: the expression; None if there is none.
    text: what the docstring says of it.
  """

  annotation: ast.expr | None = None
  default: ast.expr | None = None
  text: str = ''


# An entry of `Args:` or `Attributes:`.
_ENTRY = re.compile(r'(?m)^  (\w+): (.*(?:\n    .*)*)')


@functools.lru_cache(maxsize=256)
def parameters(module: str, name: str) -> Mapping[str, Parameter]:
  """The parameters of a function or data class of this package.

  They are read from its source: to import the data layer takes seconds.

  Args:
    module: 'mpt_jax.data.dataset'.
    name: 'DatasetConfig'.

  Returns:
    Name -> what is known of it; empty for what is not ours.
  """
  for node in source(module).body:
    if isinstance(node, ast.ImportFrom) and node.module:
      for alias in node.names:
        if (alias.asname or alias.name) == name:
          return parameters(node.module, alias.name)
    if getattr(node, 'name', '') != name:
      continue
    parts: list[tuple[str, ast.expr | None, ast.expr | None]] = []
    known: dict[str, Parameter] = {}
    if isinstance(node, ast.ClassDef):
      for base in map(ast.unparse, node.bases):
        known |= parameters(module, base)
      parts = [
        (ast.unparse(field.target), field.annotation, field.value)
        for field in node.body
        if isinstance(field, ast.AnnAssign)
        and not ast.unparse(field.annotation).startswith('ClassVar')
      ]
    elif isinstance(node, ast.FunctionDef):
      given = node.args
      bare = [None] * (len(given.args) - len(given.defaults))
      defaults = [*bare, *given.defaults, *given.kw_defaults]
      parts = [
        (arg.arg, arg.annotation, default)
        for arg, default in zip(
          [*given.args, *given.kwonlyargs], defaults, strict=True
        )
      ]
    else:
      continue
    texts = dict(
      _ENTRY.findall(inspect.cleandoc(ast.get_docstring(node) or ''))
    )
    return known | {
      n: Parameter(annotation, default, ' '.join(texts.get(n, '').split()))
      for n, annotation, default in parts
    }
  return {}


@functools.lru_cache(maxsize=64)
def source(module: str) -> ast.Module:
  """The source of a module of this package; empty of another."""
  module = mpt_jax.MOVED.get(module, module)
  top, _, rest = module.partition('.')
  path = installed(top, *rest.split('.'))
  for file in (f'{path}.py', os.path.join(path, '__init__.py')):
    if top == 'mpt_jax' and os.path.isfile(file):
      with open(file, encoding='utf-8') as f:
        return ast.parse(f.read())
  return ast.Module([], [])


@dataclasses.dataclass(frozen=True)
class Macro:
  """'%NAME' in the place of a value."""

  name: str


_REQUIRED = Macro('gin.REQUIRED')


class _References(config_parser.ParserDelegate):
  """Leaves references as they are, and notes which macros there are."""

  def __init__(self, used: set[str]):
    self._used = used

  def configurable_reference(
    self, scoped_configurable_name: str, evaluate: bool
  ) -> Any:
    return ANYTHING

  def macro(self, macro_name: str) -> Macro:
    self._used.add(macro_name)
    return Macro(macro_name)


@dataclasses.dataclass(frozen=True)
class Setting:
  """A statement that sets something.

  Attributes:
    scope: of the parameter, '' for none.
    target: what has the parameter, as 'train.train'; '' for a macro.
    name: of the macro or parameter.
    value: with `Macro` and `ANYTHING` for references.
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
class Text:
  """What gin files and bindings say; a later setting wins.

  Attributes:
    files: the paths of the gin files, without those that they include.
    settings: in gin's own order.
    used: the macros that are referred to.
    modules: local name -> module, of all imports.
  """

  files: list[str] = dataclasses.field(default_factory=list)
  settings: list[Setting] = dataclasses.field(default_factory=list)
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
      Setting(statement.scope, target, name, statement.value, where)
    )

  def imports(self) -> list[str]:
    """The files' imports, for a text of its own with the same names."""
    lines = []
    for name, module in self.modules.items():
      home, _, last = module.rpartition('.')
      if home != '__gin__':
        renamed = '' if last == name else f' as {name}'
        line = f'import {last}{renamed}'
        lines.append(f'from {home} {line}' if home else line)
    return ['from __gin__ import dynamic_registration', *lines] if lines else []

  @property
  def macros(self) -> dict[str, Setting]:
    """The macros by name."""
    return {s.name: s for s in self.settings if not s.target and not s.scope}

  @property
  def used_macros(self) -> set[str]:
    """Those that are referred to; '%gin.REQUIRED' is a constant, no macro."""
    return {name for name in self.used if '.' not in name}

  def missing(self) -> list[str]:
    """The macros that have to be set yet."""
    macros = self.macros
    missing = [n for n, s in macros.items() if s.value == _REQUIRED]
    return missing + sorted(self.used_macros - macros.keys())

  def home(self, setting: Setting) -> tuple[str, str]:
    """(Module, name) of what has the parameter that is set."""
    home, _, name = setting.target.rpartition('.')
    return self.modules.get(home, ''), name

  def parameter_of(self, macro: str) -> Parameter:
    """The parameter that a macro sets, perhaps by way of other macros."""
    seen: set[str] = set()
    while macro not in seen:
      seen.add(macro)
      for setting in self.settings:
        if setting.value == Macro(macro):
          if setting.target:
            found = parameters(*self.home(setting)).get(setting.name)
            return found or Parameter()
          macro = setting.name
          break
    return Parameter()

  def resolve(self, setting: Setting) -> Setting:
    """What a parameter is set to in the end, and by which statement."""
    macros, seen = self.macros, set()
    while isinstance(setting.value, Macro):
      name = setting.value.name
      if name in seen or name not in macros:
        return dataclasses.replace(setting, value=ANYTHING)
      seen.add(name)
      setting = macros[name]

    def fill(value: Any, depth: int = 0) -> Any:
      if isinstance(value, Macro):
        known = value.name in macros and depth < 20
        return fill(macros[value.name].value, depth + 1) if known else ANYTHING
      if isinstance(value, list | tuple):
        return type(value)(fill(v, depth) for v in value)
      if isinstance(value, dict):
        return {fill(k, depth): fill(v, depth) for k, v in value.items()}
      return value

    return dataclasses.replace(setting, value=fill(setting.value))


def _read_files(gin_files: Sequence[str], paths: Sequence[str]) -> Text:
  """Parses gin files as gin does, but imports nothing."""
  text = Text(list(gin_files))
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
        read(find(statement.filename, paths), including)
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


def _check_names(text: Text, whole: bool) -> None:
  """Every macro that is set must be used, and if `whole` every one be set.

  Gin itself accepts a misspelt macro in silence.
  """
  used = text.used_macros
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
  missing = text.missing()
  if missing and whole:
    others = f' (also missing: {", ".join(missing[1:])})' if missing[1:] else ''
    raise InputError(
      f'required macro {missing[0]} is not set: give'
      f' --gin.{missing[0]}=…{others}'
    )


# Parameters of version 0.1 whose names changed when they moved.
_RENAMED = {
  'backbone_config': 'config',
  'checkpoint_path': 'path',
  'initial_checkpoint_path': 'path',
}
# What version 0.1 had and nothing has become -> what does its work.
_GONE = {
  'mpt_jax.prompts.PromptConfig': (
    'methods.prompt_method has its sizes, train.Source its SOURCE_PROMPTS, as'
    ' in gin_configs/runs/target.gin'
  ),
}


def _check_parameters(text: Text) -> None:
  """What is set must be there; a file may be of version 0.1."""
  for setting in text.settings:
    module, name = text.home(setting)
    where = f'{setting.where}: ' if setting.where else ''
    if f'{module}.{name}' in _GONE:
      raise InputError(
        f'{where}there is no {setting.target} any more:'
        f' {_GONE[f"{module}.{name}"]}'
      )
    known = parameters(module, name)
    if known and setting.name not in known:
      raise InputError(
        f'{where}{setting.target} has no parameter {setting.name}'
        f'{_now(setting, module) or nearest(setting.name, known)}'
      )


def _now(setting: Setting, module: str) -> str:
  """Where a parameter is that a function had in version 0.1."""
  home = setting.target.rpartition('.')[0]
  name = _RENAMED.get(setting.name, setting.name)
  for node in source(module).body:
    for alias in node.names if isinstance(node, ast.ImportFrom) else ():
      if alias.name[:1].isupper() and name in parameters(module, alias.name):
        return f': it is {home}.{alias.name}.{name} now'
  return ''


def _check_types(text: Text) -> None:
  """Values must be what the parameters that they are bound to ask for."""
  last = {(s.scope, s.target, s.name): s for s in text.settings if s.target}
  for setting in last.values():
    parameter = parameters(*text.home(setting)).get(setting.name)
    if parameter is None or parameter.annotation is None:
      continue
    annotation, given = parameter.annotation, text.resolve(setting)
    words = expected_by(annotation, given.value)
    if words:
      where = f'{given.where}: ' if given.where else ''
      raise InputError(
        f'{where}{given.shown(given.value)}: {given.name} must be {words}'
        f'{_better(annotation, given)}'
      )


def _better(annotation: ast.expr, given: Setting) -> str:
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
