"""A study of a user's own tasks: what it needs of them is examined first."""

import importlib
import pathlib
import sys

import pytest

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
  # The prompt, and the most words of a text with an end mark.
  words = {'the cat ran': 'the cat ran'}
  assert plan.tasks.task_feature_lengths['inputs'] > 10 + len(words)
  assert notes == []


def test_an_own_task_of_a_built_in_name_gets_no_made_up_data(look, tmp_path):
  import seqio

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
