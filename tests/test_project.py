"""The house as a whole: layers, packaging, declared versions.

Guards against an import that climbs, a core that cannot be used without
TensorFlow, and a package that installs without what it needs.
"""

import ast
from collections.abc import Iterator
import functools
import pathlib
import re
import runpy
import subprocess
import sys

from packaging.requirements import Requirement
from packaging.version import Version
import pytest
import setuptools

from mpt_jax.methods import get, names

ROOT = pathlib.Path(__file__).parent.parent

# A module may import its own layer and those before it; a folder's modules are
# in its layer unless they have one of their own.
LAYERS = (
  {'mpt_jax', 'mpt_jax.types'},
  {
    *('mpt_jax.methods', 'mpt_jax.t5', 'mpt_jax.losses', 'mpt_jax.data.lines'),
    *('mpt_jax.roberta', 'mpt_jax.backbones'),
    'mpt_jax.data.arrow',
    *('mpt_jax.engine', 'mpt_jax.engine.params', 'mpt_jax.engine.metrics'),
    *('mpt_jax.engine.batching', 'mpt_jax.engine.buckets'),
    *('mpt_jax.engine.hostmemory', 'mpt_jax.checkpoints.texts'),
  },
  {
    *('mpt_jax.models', 'mpt_jax.engine.optimizers'),
    'mpt_jax.engine.settings',
    *('mpt_jax.engine.partitioning', 'mpt_jax.engine.selection'),
    'mpt_jax.engine.scores',
    *('mpt_jax.engine.preemption', 'mpt_jax.engine.multihost'),
    'mpt_jax.engine.face',
  },
  {
    *('mpt_jax.engine.trainer', 'mpt_jax.engine.writers'),
    *('mpt_jax.checkpoints', 'mpt_jax.data'),
  },
  {
    *('mpt_jax.pretrained', 'mpt_jax.analysis', 'mpt_jax.engine.predictor'),
    *('mpt_jax.engine.starts', 'mpt_jax.engine.evaluator'),
    *('mpt_jax.engine.keys', 'mpt_jax.engine.picks'),
    *('mpt_jax.engine.answers', 'mpt_jax.engine.results'),
    *('mpt_jax.engine.outcome', 'mpt_jax.engine.job', 'mpt_jax.engine.run'),
    *('mpt_jax.study', 'mpt_jax.transfer'),
  },
  # Beside the entry points, of which it may use `cli` alone.
  {
    *('mpt_jax.t5x', 'mpt_jax.cli'),
    *('mpt_jax.cli.flags', 'mpt_jax.cli.help', 'mpt_jax.cli.reader'),
  },
)
# The only modules that import gin.
ENTRY_POINTS = {
  'cli',
  'cli.flags',
  'cli.help',
  'cli.reader',
  'train',
  'eval',
  'infer',
  'export',
  'convert',
  'pipeline',
  'study.forecast',
  'study.run',
  'study.examine',
  # With those on Ray, which may be absent.
  *(f'study.{n}' for n in ('worker', 'workers', 'cluster')),
  # They train, on a study's workers.
  *(f'transfer.{n}' for n in ('__main__', 'runs', 'speedup', 'project')),
  'transfer.whole',
}
# Commands beside the tasks: one evaluates what it ships, two write files.
COMMANDS = {
  *('tasks.offline.ship', 'tasks.offline.pretrain_masked'),
  *('tasks.reviews', 'tasks.semeval'),
}
# The rooms of the data layer that import TensorFlow and SeqIO.
SEQIO_ROOMS = {
  f'mpt_jax.data.{name}'
  for name in (
    *('libraries', 'seqio_tasks', 'seqio_vocabulary', 'sources', 'survey'),
    *('feature_converter', 'register', 'templates'),
  )
}
# What the core must do without.
HEAVY = {'tensorflow', 'tensorflow_datasets', 'seqio', 'gin', 't5x'}

# Import name -> name on the package index, where they differ.
DISTRIBUTIONS = {
  'absl': 'absl-py',
  'gin': 'gin-config',
  'orbax': 'orbax-checkpoint',
  'sklearn': 'scikit-learn',
  'tensorflow_datasets': 'tensorflow-datasets',
}
# Declared for tensorflow-datasets and sentencepiece, which don't say so.
NOT_IMPORTED = {'importlib_resources', 'protobuf'}


def _modules() -> dict[str, pathlib.Path]:
  """Every module of the repository by its dotted name."""
  found = {}
  for top in ('mpt_jax', 'tasks', 'gin_configs'):
    for path in sorted((ROOT / top).rglob('*.py')):
      parts = list(path.relative_to(ROOT).with_suffix('').parts)
      if parts[-1] == '__init__':
        parts.pop()
      found['.'.join(parts)] = path
  return found


MODULES = _modules()


@functools.cache
def _imports(name: str, top_only: bool = False) -> tuple[str, ...]:
  """The modules that a module imports, lazily too, but not for types only."""

  def visit(node) -> Iterator[str]:
    if isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test):
      return
    if top_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      return
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{name} has a relative import'
      for alias in node.names:
        full = f'{node.module}.{alias.name}'
        yield full if full in MODULES else node.module
    for child in ast.iter_child_nodes(node):
      yield from visit(child)

  return tuple(visit(ast.parse(MODULES[name].read_text())))


def _top(name: str) -> str:
  return name.partition('.')[0]


def _is_entry_point(name: str) -> bool:
  return name.removeprefix('mpt_jax.') in ENTRY_POINTS


def _core() -> list[str]:
  return [
    name
    for name in MODULES
    if _top(name) == 'mpt_jax'
    and not name.startswith('mpt_jax.t5x')
    # It is `tasks.show`.
    and name not in SEQIO_ROOMS | {'mpt_jax.data.__main__'}
    and not _is_entry_point(name)
  ]


def _layer(name: str) -> int:
  for place in (name, None, '.'.join(name.split('.')[:2])):
    if place is None and _is_entry_point(name):
      return len(LAYERS)
    for number, layer in enumerate(LAYERS):
      if place in layer:
        return number
  raise AssertionError(f'{name} has no place in LAYERS')


# What stands beside the folders of mpt_jax.
FACES = {
  *('train', 'eval', 'infer', 'export', 'convert', 'pipeline'),
  *('__init__', 'models', 'losses', 'types', 'pretrained', 'analysis'),
  'backbones',
}
# Who names a method, and why.
NAMES_A_METHOD = {
  'mpt_jax.checkpoints.adapterhub': 'a format of one method',
  'mpt_jax.study.arms': 'what a study compares, a row each',
  'mpt_jax.checkpoints.bundle': 'factors hold the prompts of any merge exactly',
  'mpt_jax.checkpoints.run': 'what a record of version 0.1 left out',
}


class TestHouse:
  def test_rooms_are_in_folders(self):
    assert {path.stem for path in (ROOT / 'mpt_jax').glob('*.py')} == FACES

  def test_a_method_is_named_in_its_own_file(self):
    classes = {get(name).__name__ for name in names()} - {'Scale'}
    # 'full' and the like are everyday words.
    words = {name for name in ('multitask', 'soft') if name in names()}
    naming = set()
    for name, path in MODULES.items():
      if name.startswith('mpt_jax.methods') or _top(name) != 'mpt_jax':
        continue
      for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name | ast.Attribute | ast.alias):
          said = {getattr(node, n, '') for n in ('id', 'attr', 'name')}
          if said & classes:
            naming.add(name)
        elif isinstance(node, ast.Constant) and node.value in words | classes:
          naming.add(name)
    assert naming == set(NAMES_A_METHOD)


class TestLayers:
  def test_core_needs_no_tensorflow(self):
    for name in _core():
      used = {_top(i) for i in _imports(name)}
      assert not used & HEAVY, f'{name} imports {used & HEAVY}'
      used = {_top(i) for i in _imports(name, top_only=True)}
      # Its metric writers import tensorflow.
      assert 'clu' not in used, f'{name} imports clu when it is loaded'

  def test_one_room_imports_the_data_stack(self):
    """Quietly and away from the accelerators; the others take it there."""
    for name in MODULES:
      if name.startswith('mpt_jax') and name != 'mpt_jax.data.libraries':
        used = {_top(i) for i in _imports(name)}
        wanted = HEAVY - {'gin', 't5x'} | {'tensorflow_text'}
        assert not used & wanted, f'{name} imports {used & wanted}'
      # Whatever else is loaded, no room of the core brings it by itself.
      if name in _core():
        used = set(_imports(name, top_only=True))
        assert not used & SEQIO_ROOMS, f'{name} imports {used & SEQIO_ROOMS}'

  def test_only_entry_points_import_gin(self):
    for name in MODULES:
      if 'gin' in map(_top, _imports(name)):
        assert _is_entry_point(name), name

  def test_only_the_adapter_imports_t5x(self):
    for name in MODULES:
      if not name.startswith('mpt_jax.t5x'):
        used = list(_imports(name))
        assert 't5x' not in map(_top, used), name
        assert not any(u.startswith('mpt_jax.t5x') for u in used), name

  def test_the_adapter_can_say_that_t5x_is_absent(self):
    for name in ('', '.__main__', '.requirements'):
      used = _imports(f'mpt_jax.t5x{name}', top_only=True)
      assert not {'t5x', 'tensorflow', 'seqio', 'clu'} & set(map(_top, used))

  def test_imports_run_downwards(self):
    for name in MODULES:
      if _top(name) != 'mpt_jax':
        continue
      for used in _imports(name):
        if _top(used) == 'mpt_jax':
          assert _layer(used) <= _layer(name), f'{name} imports {used}'
        # The demo writes its data; nothing else knows a task.
        allowed = name == 'mpt_jax.study.examine' or _top(used) != 'tasks'
        assert allowed, f'{name} imports {used}'

  def test_tasks_know_only_the_data_layer(self):
    for name in MODULES:
      if _top(name) in ('tasks', 'gin_configs') and name not in COMMANDS:
        for used in _imports(name):
          if _top(used) == 'mpt_jax':
            allowed = used.startswith('mpt_jax.data') or used == 'mpt_jax.types'
            assert allowed, f'{name} imports {used}'

  def test_no_circle(self):
    graph = {
      name: {i for i in _imports(name) if i in MODULES and i != name}
      for name in MODULES
    }
    done, path = set(), []

    def visit(name):
      assert name not in path, f'circle: {" -> ".join([*path, name])}'
      if name in done:
        return
      path.append(name)
      for used in sorted(graph[name]):
        visit(used)
      done.add(path.pop())

    for name in MODULES:
      visit(name)


def _run(script: str) -> str:
  done = subprocess.run(
    [sys.executable, '-c', script],
    capture_output=True,
    text=True,
    cwd=ROOT,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


class TestImport:
  def test_package_alone_loads_nothing(self):
    out = _run(
      'import sys, mpt_jax; print(mpt_jax.__version__); print(dir(mpt_jax));'
      'print({"jax", "numpy", "tensorflow"} & set(sys.modules))'
    )
    assert 'load_backbone' in out
    assert out.endswith('set()\n')

  def test_core_works_without_the_data_stack(self):
    blocked = sorted(HEAVY | {'clu'})
    out = _run(
      'import importlib, sys\n'
      f'sys.modules.update(dict.fromkeys({blocked}))\n'
      f'for name in {_core()}: importlib.import_module(name)\n'
      'import mpt_jax\n'
      'print([getattr(mpt_jax, name).__name__ for name in'
      ' ("PromptedT5", "load_backbone", "load_prompts")])\n'
    )
    assert out == "['PromptedT5', 'load_backbone', 'load_prompts']\n"

  def test_rows_in_memory_need_no_data_stack(self):
    """What the engine asks of a task, of that of docs/tasks.md."""
    text = (
      (ROOT / 'docs/tasks.md').read_text().split('### A task from lists')[1]
    )
    example = re.search(r'```python\n(.*?)```', text, re.DOTALL)[1]
    folder = ROOT / 'tasks/offline/demo_backbone'
    out = _run(
      'import sys\n'
      f'sys.modules.update(dict.fromkeys({sorted(HEAVY | {"clu"})}))\n'
      f'{example}\n'
      'from mpt_jax import data\n'
      'from mpt_jax.data import memory\n'
      'memory.register({"reviews": reviews})\n'
      f'data.use_vocabulary({str(folder / "spiece.model")!r})\n'
      'name, lengths = ["reviews"], {"inputs": 32, "targets": 8}\n'
      'given = (3, ("reviews",))\n'
      'config = data.DatasetConfig(mixture_or_task_name=name, batch_size=2,\n'
      '  task_feature_lengths=lengths)\n'
      'assert next(data.get_train_iterator(config, *given))\n'
      'assert data.task_rows(given[1], name) == {"reviews": 0}\n'
      'assert data.task_texts(("no", "reviews"), "train").keys() == {*name}\n'
      'assert not data.is_synthetic(name)\n'
      'assert data.metrics_of(name, "validation")["reviews"][1]\n'
      'assert "validation" in data.check_data(name, "train").splits\n'
      'read = data.Examples(name, "validation", lengths)\n'
      'print(data.examine(read, *given)["reviews"].examples)\n'
      'right = lambda batch: batch["decoder_target_tokens"]\n'
      'print(data.evaluate(read, *given, right, 2))\n'
      'print([*data.predict(read, *given, right, 2)])\n'
    )
    assert out.splitlines() == [
      "Task(train=2 rows, validation=1 rows, inputs='review: {text}',"
      " targets='{label}', labels=('bad', 'good'))",
      '1',
      "{'reviews': {'accuracy': 100.0}}",
      "[{'task': 'reviews', 'index': 0, 'inputs': 'review: the music was"
      " lovely', 'targets': 'good', 'prediction': 'good'}]",
    ]

  @pytest.mark.slow
  def test_core_trains_a_step_without_the_data_stack(self):
    """A GPU box has jax, flax, optax and orbax, and that must do."""
    blocked = sorted(HEAVY | {'clu'})
    out = _run(
      'import sys\n'
      f'sys.modules.update(dict.fromkeys({blocked}))\n'
      'from mpt_jax.engine import optimizers, params, partitioning\n'
      'from mpt_jax.engine import trainer\n'
      'from tests.helpers import tiny\n'
      'model, tree = tiny.stage_model("source")\n'
      'optimizer = optimizers.Optimizer(\n'
      '  optimizers.method_groups(model.method, 0.3, 0.1), total_steps=2)\n'
      'mesh = partitioning.make_mesh()\n'
      'trained, frozen = params.split(tree, tiny.PROMPTS)\n'
      'state = trainer.make_state(model, optimizer, trained, 0, mesh)\n'
      'training = trainer.Training(model, optimizer, mesh, ["a", "b", "c"])\n'
      'state = trainer.fit(training, state,\n'
      '  partitioning.shard_params(frozen, mesh), tiny.Batches(), 2)\n'
      'print(int(state.step), int(state.bad_step))\n'
    )
    assert out == '2 -1\n'


@pytest.fixture(scope='module')
def package() -> dict:
  """What setup.py hands to setuptools."""
  handed = {}
  setup, setuptools.setup = setuptools.setup, handed.update
  try:
    runpy.run_path(str(ROOT / 'setup.py'))
  finally:
    setuptools.setup = setup
  return handed


def _canonical(name: str) -> str:
  return re.sub(r'[-_.]+', '-', name).lower()


@pytest.fixture(scope='module')
def constraints() -> dict[str, str]:
  """Distribution -> version in constraints.txt."""
  lines = (ROOT / 'constraints.txt').read_text().splitlines()
  found = {}
  for line in lines:
    if line and not line.startswith('#'):
      match = re.fullmatch(r'([\w.-]+)==([\w.+]+)', line)
      assert match, f'not an exact version: {line!r}'
      found[_canonical(match[1])] = match[2]
  return found


class TestPackage:
  def test_versions_are_lower_bounds(self, package, constraints):
    wanted = [*package['install_requires'], *package['extras_require']['test']]
    for text in wanted:
      bounds = list(Requirement(text).specifier)
      assert [b.operator for b in bounds] == ['>='], text
      version = constraints[_canonical(Requirement(text).name)]
      assert Version(version) >= Version(bounds[0].version), text

  def test_every_import_is_declared_and_nothing_else(self, package):
    used = set()
    for name in MODULES:
      used |= {_top(i) for i in _imports(name)}
    used -= set(sys.stdlib_module_names) | {'mpt_jax', 'tasks', 'gin_configs'}
    used -= {'t5x'}  # Not on a package index; mpt_jax.t5x says so itself.
    used = {_canonical(DISTRIBUTIONS.get(name, name)) for name in used}
    declared = {
      _canonical(Requirement(text).name) for text in package['install_requires']
    }
    assert declared - used == {_canonical(n) for n in NOT_IMPORTED}
    # Where they are used, a line says which extra has them.
    optional = {
      _canonical(Requirement(text).name)
      for extra, texts in package['extras_require'].items()
      if extra != 'test'
      for text in texts
    }
    assert used - declared - optional == set()

  def test_data_files_are_in_packages(self, package):
    for path in [
      *(ROOT / 'gin_configs').rglob('*.gin'),
      *(ROOT / 'mpt_jax').rglob('*.py'),
      *(ROOT / 'tasks').rglob('*.py'),
    ]:
      folder = '.'.join(path.relative_to(ROOT).parent.parts)
      assert folder in package['packages'], f'{path} would not be installed'

  def test_python_floor(self, package):
    assert package['python_requires'] == '>=3.11'
