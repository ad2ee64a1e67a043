"""A study of a user's own tasks: what it needs of them is examined first."""

import importlib
import sys

import pytest

from mpt_jax.pipeline import Setting
from mpt_jax.study import examine
from mpt_jax.types import InputError
from tests.test_pipeline import VOCABULARY, changed

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
