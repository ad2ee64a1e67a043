"""A study of a user's own tasks: what it needs of them is examined first."""

import hashlib
import importlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from mpt_jax import cli
from mpt_jax.cli import flags, reader
from mpt_jax.pipeline import Setting
from mpt_jax.study import arms, examine
from mpt_jax.types import InputError
from tasks import reviews
from tests.helpers import quick, rated
from tests.test_pipeline import ROOT, VOCABULARY, changed

pytestmark = pytest.mark.data

MODULE = """
from mpt_jax import data
from tasks import metrics


def register(name, **more):
  data.register_task(
    name,
    f'own/{name}_{{split}}.tsv',
    inputs='{text}',
    labels=('bad', 'good'),
    metric_fns=[metrics.accuracy],
    **more,
  )
"""
REGISTERED = "register('own_films')\nregister('own_food')\n"
ROWS = 'text\tlabel\nthe cat ran\tgood\nthe dog\tbad\nann sat\tgood\n'
NONE = 'text\tlabel\nthe cat ran\t\n'


@pytest.fixture
def look(tmp_path, monkeypatch):
  """Examines a study of a module's tasks, in a folder of its own."""
  import seqio

  from mpt_jax import data

  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  (tmp_path / 'own').mkdir()
  for name in ('own_films', 'own_food'):
    for split in ('train', 'validation', 'test'):
      (tmp_path / f'own/{name}_{split}.tsv').write_text(ROWS)
  import tasks  # noqa: F401

  before = set(seqio.TaskRegistry.names())
  data_dir = data.get_data_dir()
  data.use_vocabulary(VOCABULARY)

  def examined(text=REGISTERED, module='own_module', **changes):
    (tmp_path / 'own_module.py').write_text(MODULE + text)
    importlib.invalidate_caches()
    sources = changes.pop('source_tasks', ('own_films',))
    targets = changes.pop('targets', ('own_food',))
    plan = changed(
      source_tasks=sources,
      source_mixture=None,
      targets=targets,
      module=module,
      **{'task_feature_lengths': None, 'settings': (), **changes},
    )
    made_up = examine.write_data('data', plan.all_tasks, module)
    facts = examine.tasks('data', plan)
    if plan.tasks.task_feature_lengths is None:
      found = examine.lengths(plan)
      plan = changed(plan, task_feature_lengths=found)
    return made_up, facts, plan, examine.texts(plan)

  yield examined
  for name in set(seqio.TaskRegistry.names()) - before:
    seqio.TaskRegistry.remove(name)
  sys.modules.pop('own_module', None)
  data.use_vocabulary(None)
  data.set_data_dir(data_dir)


def test_own_tasks_are_read_and_left_alone(look, tmp_path):
  made_up, facts, plan, notes = look()
  assert made_up == []
  assert not any((tmp_path / 'data').iterdir())
  assert facts['own_food'] == {
    'synthetic': False,
    'train': 3,
    'validation': 3,
    'test': 3,
  }
  # Beside the prompt the cat and her end mark, of letters: r, a, n.
  assert plan.tasks.task_feature_lengths == {'inputs': 20, 'targets': 6}
  assert notes == []


def test_an_own_task_of_a_built_in_name_gets_no_made_up_data(look, tmp_path):
  import seqio

  import tasks  # noqa: F401

  built_in = seqio.TaskRegistry.get('rte')
  seqio.TaskRegistry.remove('rte')
  try:
    for split in ('train', 'validation', 'test'):
      (tmp_path / f'own/rte_{split}.tsv').write_text(ROWS)
    made_up, facts, *_ = look(
      "register('own_films')\nregister('rte')\n", targets=('rte',)
    )
    assert made_up == []
    assert not facts['rte']['synthetic']
  finally:
    seqio.TaskRegistry.remove('rte')
    seqio.TaskRegistry.add_provider('rte', built_in)


CUT_TEST = "register('own_food', splits=('train', 'test'))\n"
ONE_FILE = """
data.register_task(
  'own_few',
  {'train': 'own/own_food_train.tsv'},
  inputs='{text}',
  labels=('bad', 'good'),
  metric_fns=[metrics.accuracy],
)
"""
FEW = Setting('k4', 4, 5, 2, (0,), {'mpt': (0.1, 0.1), 'pt': 0.3})


@pytest.mark.parametrize(
  ('text', 'changes', 'words'),
  [
    (
      REGISTERED,
      {'targets': ('own_fod',)},
      "TARGETS: 'own_fod' is no task that MIXTURE_OR_TASK_MODULE='own_module'"
      " registers; did you mean 'own_food' or 'own_films'?",
    ),
    (
      REGISTERED,
      {'source_tasks': ('own_filns',)},
      "SOURCE_TASKS: 'own_filns' is no task that",
    ),
    (
      REGISTERED,
      {'targets': ('mpt_source',)},
      "TARGETS: 'mpt_source' is a mixture; name its tasks",
    ),
    (
      REGISTERED + "register('own_food')\n",
      {},
      "own_module.py:7: a task named 'own_food' is registered already",
    ),
    (REGISTERED, {'module': 'own_modul'}, "there is no module 'own_modul'"),
    (
      'import nowhere\n',
      {},
      'own_module.py:15: ModuleNotFoundError: No module',
    ),
    (
      "register('own_films')\n" + CUT_TEST,
      {},
      "task 'own_food' has no split 'validation', only test, train: a study"
      ' reads train, validation and test of each task; to cut',
    ),
    (
      REGISTERED + ONE_FILE,
      {'targets': ('own_few',)},
      "register the task with splits={'validation': 'train[:200]'",
    ),
    (
      REGISTERED,
      {'own_food_validation': None},
      "task 'own_food': own/own_food_validation.tsv (split 'validation') cannot"
      ' be read: No such file or directory: a study reads train, validation',
    ),
    (
      REGISTERED,
      {'own_food_test': NONE},
      "split 'test' of 'own_food' has no labels (they are absent, empty or"
      ' negative), so there is nothing to score; mpt_jax.infer answers it; to'
      ' score, cut a split from one with labels (splits= of register_task)',
    ),
    (REGISTERED, {'own_films_validation': NONE}, "'validation' of 'own_films'"),
    (REGISTERED, {'own_films_train': NONE}, 'so there is nothing to train on'),
    (
      REGISTERED,
      {'settings': (FEW,)},
      "setting 'k4': NUM_SHOTS=4 does not fit the train split of 'own_food',"
      " which has 1 examples of class 'bad'",
    ),
    (
      REGISTERED,
      {'own_food_test': ROWS.replace('good', 'god')},
      "own/own_food_test.tsv:2: label 'god' is outside the label words",
    ),
    (
      REGISTERED,
      {'task_feature_lengths': {'inputs': 58, 'targets': 1}},
      "label word 'bad' has 5 tokens with its end mark",
    ),
  ],
)
def test_what_is_wrong_is_one_line(look, tmp_path, text, changes, words):
  files = {n: c for n, c in changes.items() if n.startswith('own_')}
  for name, content in files.items():
    path = tmp_path / f'own/{name}.tsv'
    path.unlink()
    if content is not None:
      path.write_text(content)
  with pytest.raises(InputError) as e:
    look(text, **{n: v for n, v in changes.items() if n not in files})
  assert words in str(e.value)
  assert '\n' not in str(e.value)


def test_what_a_user_would_not_expect_is_said(look, tmp_path):
  (tmp_path / 'own/own_films_train.tsv').write_text(
    'text\tlabel\na very very very long film\tbad\nann ran\t\n'
  )
  notes = look(
    targets=('own_films', 'own_food'),
    task_feature_lengths={'inputs': 20, 'targets': 6},
  )[-1]
  assert notes[0].startswith('own_films is both in SOURCE_TASKS and in TARGETS')
  assert 'own_films/train: 1 of 2 examples (50.0 %) have no label' in notes[1]
  assert (
    'own_films/train: 1 of 2 inputs (50.0 %) are longer than 10' in notes[2]
  )
  assert notes[3] == "own_films/train: no example of class 'good'"
  assert len(notes) == 4


# ---------------------------------------------------------------------------
# docs/studies.md, the tutorial.

PAGE = (ROOT / 'docs/studies.md').read_text().partition("\n## The papers'")[0]
# What makes its study one of minutes.
SMALL = {
  'INITIAL_CHECKPOINT_PATH': 'demo',
  'SOURCE_TASKS': ['movies', 'tweets'],
  'METHODS': ['mpt', 'pt'],
  'SETTINGS': '[@k32/pipeline.Setting()]',
  'SEEDS': [0],
  'TUNING': None,
  'TEACHER_STEPS': 2,
  'SOURCE_STEPS': 2,
  'TARGET_STEPS': 2,
  'EVAL_EXAMPLES': 10,
  'WORKERS': 1,
}
WORDS = ('dull', 'a good film', 'we sat in the garden', 'very nice', 'it broke')


def _commands():
  text = PAGE.replace('\\\n', ' ')
  for block in re.findall(r'```bash\n(.*?)```', text, re.DOTALL):
    yield from block.strip().splitlines()


def _write_files(folder):
  """Writes the page's files; and the text, from no network."""
  files = re.findall(r'^`([\w./]+)`\n\n```\w+\n(.*?)```', PAGE, re.M | re.S)
  assert [name for name, _ in files] == ['review_tasks.py', 'my_study.gin']
  for name, content in files:
    (folder / name).write_text(content)
  lines = {
    kind: ''.join(
      f'{i}\t{(i % 5 - 2) * 1.5}\t{kind} {WORDS[i % 5]} {i}\n'
      for i in range(120)
    )
    for kind in reviews.SOURCES
  }
  content = rated.archive(lines)
  (folder / 'archive.tar.gz').write_bytes(content)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(reviews, 'SHA256', hashlib.sha256(content).hexdigest())
    reviews.write(str(folder / 'reviews'), str(folder / 'archive.tar.gz'))


def _run(command, folder):
  """Runs a command as a user would."""
  environment = {
    **os.environ,
    'HOME': str(folder),
    'PATH': f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}',
    'PYTHONPATH': str(ROOT),
    'XLA_FLAGS': quick.FLAGS,
  }
  environment.pop('TFDS_DATA_DIR', None)
  return subprocess.run(
    ['bash', '-c', command],
    cwd=folder,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )


def test_the_page_names_macros_and_defaults_that_there_are(tmp_path):
  _write_files(tmp_path)
  study = [c for c in _commands() if ' mpt_jax.pipeline ' in c]
  assert len(study) == 3
  for command in study:
    _, _, module, *words = shlex.split(command)
    words = [w.replace('my_study', str(tmp_path / 'my_study')) for w in words]
    given, bindings = flags.parse(module, words)
    cli.check_macros(given.gin_file, bindings)
  text = reader.read([str(ROOT / 'gin_configs/studies/own_tasks.gin')])
  macros = {s.name: s.value for s in text.settings if not s.target}
  table = PAGE[PAGE.index('| macro |') :]
  rows = re.findall(r'^\| (`.*?`) \| (.*?) \|', table, re.MULTILINE)
  assert len(rows) == 8
  for names, defaults in rows:
    names = re.findall(r'`(\w+)`', names)
    values = defaults.split(', ') if names[1:] else [defaults.strip('`')]
    for name, value in zip(names, values, strict=True):
      # Of a reference, the reader keeps no text.
      assert '@' in value or str(macros[name]) == value, name
  # Every method can be searched, with as many trials as any other.
  grids = macros['TUNING_GRIDS']
  assert grids.keys() == arms.TARGETS.keys()
  assert {len(grid) for grid in grids.values()} == {3}
  own = (ROOT / 'gin_configs/studies/own_tasks.gin').read_text()
  # And what it says one must give, is all that is required.
  asked = re.findall(r'^(\w+) = %gin.REQUIRED', own, re.MULTILINE)
  assert asked == re.findall(
    r'^(\w+) = ', (tmp_path / 'my_study.gin').read_text(), re.MULTILINE
  )


@pytest.mark.slow
def test_the_page_runs(tmp_path):
  _write_files(tmp_path)
  small = ''.join(
    f' --gin.{name}={shlex.quote(v if "@" in str(v) else repr(v))}'
    for name, v in SMALL.items()
  )
  commands = list(_commands())
  assert len(commands) == 5
  for command in commands[:4]:
    more = small if ' mpt_jax.pipeline ' in command else ''
    done = _run(command + more, tmp_path)
    assert done.returncode == 0, (command, done.stderr)
    if '--dry_run' in command:
      assert 'tokens, which its texts will say' in done.stdout
      assert not (tmp_path / 'study').exists()
  # The last one is the one before, with other steps and seeds.
  table = PAGE[PAGE.index('| file |') : PAGE.index('### What is looked')]
  named = re.findall(
    r'`([\w./]+)`', ''.join(re.findall(r'^\| (.*?) \|', table, re.M))
  )
  assert len(named) == 7
  for name in named:
    if name != 'tuning/':
      assert (tmp_path / 'look' / name).exists(), name
  assert not any((tmp_path / 'look/data').iterdir())
  report = json.loads((tmp_path / 'look/report.json').read_text())
  assert not report['synthetic']
  # What answers one word is marked wherever it is shown.
  text = (tmp_path / 'look/report.md').read_text()
  collapsed = {
    method
    for method, found in report['targets']['k32'].items()
    if '†' in found['tasks']['mixed']['marks']
  }
  for method in ('mpt', 'pt'):
    folder = tmp_path / f'look/seed0/target/k32/{method}/mixed/test'
    results = json.loads((folder / 'results.json').read_text())
    assert bool(results['collapsed']) == (method in collapsed)
  assert collapsed, 'two steps from chance say nothing'
  assert '† collapsed' in text
  assert '† collapsed, k32' in done.stdout
