"""Projectors scored beside what is free: groups, files, resumption, refusals.

Their training is that of every method (tests/test_projector.py); here it is
only so many random networks, but for one real run at the end.
"""

import csv
import dataclasses
import io
import json
import os
import statistics

import jax
import numpy as np
import pytest

import mpt_jax
from mpt_jax import methods
from mpt_jax.checkpoints.bundle import PromptBundle, load_prompts
from mpt_jax.data import memory
from mpt_jax.engine.settings import Examples
from mpt_jax.transfer import project as project_lib
from mpt_jax.transfer import project_views, projection, sources
from mpt_jax.transfer.matrix import Asking
from mpt_jax.transfer.project import Free, Projectors, project
from mpt_jax.transfer.scoring import Scorer
from mpt_jax.types import InputError
from tests.helpers import tiny

ROWS = [{'text': word, 'label': i % 2} for i, word in enumerate('abca')]
# All of one shape, for which is compiled once.
TASKS = {
  name: mpt_jax.Task(test=ROWS, inputs=f'{name}: {{text}}', labels=('a', 'b'))
  for name in ('moods', 'more', 'kinds', 'names')
}
CATEGORIES = {'moods': 'mood', 'more': 'mood', 'kinds': 'kind', 'names': 'name'}
L, W = 3, 7
P, D = 4, tiny.SERVED.emb_dim
EXAMPLES = Examples('', 'test', {'inputs': 20, 'targets': 4}, module=None)


@pytest.fixture(autouse=True)
def _registry():
  memory.register(TASKS)
  yield
  memory.clear()


@pytest.fixture(scope='module')
def backbone():
  return dataclasses.replace(tiny.served(), path='somewhere')


def _prompt(task, shape, fingerprint='sha256:small', seed=0):
  rng = np.random.default_rng([seed, *task.encode()])
  prompt = rng.normal(size=shape).astype(np.float32)
  return PromptBundle(
    'soft',
    'teacher',
    (task,),
    {'prompt': prompt},
    backbone_name='small',
    backbone_fingerprint=fingerprint,
  )


def _sources():
  return [_prompt(task, (L, W)) for task in CATEGORIES]


def _own(backbone):
  return [
    _prompt(task, (P, D), backbone.fingerprint, seed)
    for task in ('moods', 'more', 'kinds')
    for seed in (0, 1)
  ]


def _settings(backbone, **more):
  return Projectors(
    **{
      'train_on': ['moods', ['kinds', 'names']],
      'goals': ['task'],
      'seeds': (0, 1),
      'target_prompts': _own(backbone),
      **more,
    }
  )


def _train(folder, steps, backbone, module, workers):
  """Random projectors in place of trained ones, where there is none yet."""
  del module, workers
  assert backbone == 'somewhere'
  for number, step in enumerate(steps):
    path = os.path.join(folder, step.name, 'prompts')
    if os.path.isdir(path):
      continue
    assert step.macros['MODEL_DIR'] == os.path.join(folder, step.name)
    tasks = step.labels['trained_on']
    where = step.macros['SOURCE_PROMPTS']
    found = [load_prompts(where.replace('{task}', task)) for task in tasks]
    method = methods.Projector(
      step.macros['PROMPT_LENGTH'],
      5,
      sources=tuple((task, '') for task in tasks),
      source_length=L,
      source_width=W,
      source_fingerprint=found[0].backbone_fingerprint,
    )
    width = methods.Width(D)
    arrays = method.fresh(width, len(tasks), jax.random.PRNGKey(number))
    PromptBundle(
      'projector',
      'target',
      tuple(tasks),
      arrays | {'source_prompts': np.stack([b.table[0] for b in found])},
      backbone_fingerprint=tiny.served().fingerprint,
      settings=method.settings,
    ).save(path)


@pytest.fixture
def made(backbone, tmp_path, monkeypatch):
  """Calls the verb in a folder, with random projectors."""
  monkeypatch.setattr(project_lib.runs, 'run', _train)

  def run(name='project', **more):
    return project(
      **{
        'model_dir': str(tmp_path / name),
        'backbone': backbone,
        'sources': _sources(),
        'projectors': _settings(backbone),
        'free': Free(),
        'examples': EXAMPLES,
        'categories': CATEGORIES,
        'asking': Asking(batch_size=4),
        **more,
      }
    )

  return run


@pytest.mark.slow
def test_three_groups_and_what_is_free(made, backbone, tmp_path, monkeypatch):
  rng = np.random.default_rng(0)
  embedding = backbone.params['token_embedder']['embedding']
  words = projection.Words(
    rng.normal(size=(60, W)), embedding[:60], embedding, 'small', 'sha256:small'
  )
  monkeypatch.setattr(projection, 'read_words', lambda *given: words)
  found = made(free=Free('small', anchor_steps=5)).record
  folder = tmp_path / 'project'
  told = json.loads((folder / 'project.json').read_text())
  assert told == json.loads(json.dumps(found))
  assert told['source_backbone'] == {
    'name': 'small',
    'fingerprint': 'sha256:small',
  }
  rows = told['rows']
  # Two projectors of two seeds, three random prompts, zeros, two ways; and
  # the two prompts that a projector might make of all.
  assert len(rows) == 4 * (4 + 3 + 1 + 2 + 2)
  groups = {
    (tuple(row['projector']['trained_on']), row['task']): row['group']
    for row in rows
    if isinstance(row['projector'], dict)
  }
  trained, same, other = project_views.GROUPS
  assert groups == {
    (('moods',), 'moods'): trained,
    (('moods',), 'more'): same,
    (('moods',), 'kinds'): other,
    (('moods',), 'names'): other,
    (('kinds', 'names'), 'kinds'): trained,
    (('kinds', 'names'), 'names'): trained,
    (('kinds', 'names'), 'moods'): other,
    (('kinds', 'names'), 'more'): other,
  }
  assert {r['projector'] for r in rows if isinstance(r['projector'], str)} == {
    *('random', 'zero', 'linear', 'anchors'),
    *('always that of moods', 'always that of kinds'),
  }
  assert set(told['own']) == set(CATEGORIES)
  assert told['own']['names'] is None  # It has no prompt of its own.
  assert all(row['examples'] and row['metric'] for row in rows)

  for group in told['groups']:
    values = {}
    for row in rows:
      by = row['projector']
      if project_views.title(by) != group['projector']:
        continue
      on = group['trained_on']
      if project_views.group_of(row['task'], on, CATEGORIES) == group['group']:
        values.setdefault(row['task'], []).append(row['score'])
    means = [statistics.fmean(some) for some in values.values()]
    assert group['score']['mean'] == pytest.approx(statistics.fmean(means))
    assert group['score']['tasks'] == len(means)
  by = {(g['projector'], g['group']): g for g in told['groups']}
  assert by['moods: task, flat', same]['score']['seeds'] == 2
  # Each prompt of a way that trains nothing is for one task: no seed of all.
  assert by['linear', other]['score']['tasks'] == 2
  assert by['linear', other]['score']['seeds'] == 1
  assert by['linear', other]['score']['seeds_std'] is None
  assert by['random', other]['score']['seeds'] == 3
  assert ('linear', trained) in by
  always = [
    g['trained_on'] for g in told['groups'] if 'moods' in g['projector']
  ]
  assert all(on == ['moods'] for on in always)
  own = [r for r in rows if r['projector'] == 'always that of moods']
  assert own[0]['prompt'] == sources.of_bundle(_own(backbone)[0])[0].digest

  with open(folder / 'project.csv', newline='') as f:
    lines = list(csv.DictReader(f))
  assert len(lines) == len(rows)
  assert [line['score'] for line in lines[:3]] == [
    str(row['score']) for row in rows[:3]
  ]
  assert (folder / 'project.png').read_bytes()[:4] == b'\x89PNG'
  text = repr(project_views.Projected(told))
  assert 'moods: task, flat' in text
  assert 'SYNTHETIC' not in text

  # What came out are prompts of the target backbone like any other.
  path = f'{folder}/projected/task/flat/moods/0/more'
  bundle = load_prompts(path)
  assert bundle.backbone_fingerprint == backbone.fingerprint
  assert bundle.origin['source_fingerprint'] == 'sha256:small'
  with open(f'{folder}/runs/task/flat/moods/0/prompts/prompt_config.json') as f:
    assert json.load(f)['settings']['source_fingerprint'] == 'sha256:small'
  score = next(
    row['score']
    for row in rows
    if row['source'] == 'task/flat/moods/0/more' and row['task'] == 'more'
  )
  scorer = Scorer(backbone, EXAMPLES, batch_size=4)
  [cell] = scorer.score(sources.of_bundle(bundle), ['more'])
  assert cell.score == score


@pytest.mark.slow
def test_stopped_and_repeated(made, tmp_path, monkeypatch):
  whole = made('whole').record
  score = Scorer.score
  asked = []

  def stop(self, prompts, tasks):
    asked.extend(tasks)
    if len(asked) == 3:
      raise KeyboardInterrupt
    return score(self, prompts, tasks)

  with monkeypatch.context() as patch:
    patch.setattr(Scorer, 'score', stop)
    with pytest.raises(KeyboardInterrupt):
      made('killed')
  assert not (tmp_path / 'killed/project.json').exists()
  assert made('killed').record == whole
  with monkeypatch.context() as patch:
    patch.setattr(Scorer, 'score', None)
    patch.setattr(project_lib.runs, 'run', None)
    assert made('killed').record == json.loads(json.dumps(whole))
  with pytest.raises(InputError, match='other settings') as e:
    made('killed', projectors=_settings(tiny.served(), seeds=(0,)))
  assert 'seeds: [0, 1] there, [0] here' in str(e.value)


@pytest.mark.parametrize(
  ('more', 'message'),
  [
    ({'goals': ['tasks']}, "GOALS has 'tasks'.*mean 'task'"),
    ({'goals': ['distance'], 'target_prompts': None}, 'needs TARGET_PROMPTS'),
    ({'goals': ['distance']}, "no prompt of the task 'names', which the goal"),
    ({'train_on': ['mood']}, "TRAIN_ON has 'mood'.*mean 'moods'"),
    ({'train_on': []}, 'must each name one'),
    ({'forms': {'a/b': {}}}, "FORMS has 'a/b'"),
    ({'targets': ['movie']}, "SOURCES has no prompt of the task 'movie'"),
    ({'sources': '{task}/x'}, 'name the tasks as TARGETS'),
    ({'free': 'linaer'}, "FREE has 'linaer'.*mean 'linear'"),
    ({'two': True}, 'SOURCES are of 2 backbones'),
    ({'long': True}, r"'kinds' .* are of different shapes"),
    ({'own': (P, D + 1)}, 'wide'),
  ],
)
def test_what_is_refused_before_training(
  made, backbone, tmp_path, more, message
):
  given = dict(more)
  settings = {}
  if 'sources' in given:
    settings['sources'] = given.pop('sources')
  if 'targets' in given:
    settings['targets'] = given.pop('targets')
  if given.pop('two', False):
    third = _prompt('kinds', (L, W), 'sha256:third')
    settings['sources'] = [*_sources()[:2], third, _sources()[3]]
  if given.pop('long', False):
    settings['sources'] = [*_sources()[:2], _prompt('kinds', (L + 1, W))]
    given['train_on'] = ['kinds']
  if shape := given.pop('own', None):
    given['target_prompts'] = [_prompt('moods', shape)]
  ways = given.pop('free', 'linear')
  with pytest.raises(InputError, match=message):
    made(
      projectors=_settings(backbone, **given),
      free=Free(ways=[ways]),
      **settings,
    )
  assert not (tmp_path / 'project/runs').exists()


def test_lines_have_what_is_not_defined_empty():
  row = {
    'projector': 'zero',
    'group': None,
    'task': 'x',
    'category': 'y',
    'metric': 'f1',
    'readout': 'labels',
    'examples': 3,
    'score': None,
    'interval': None,
    'collapsed': True,
    'relative': None,
    'gain': None,
  }
  text = project_views.lines({'rows': [row]}).decode()
  [line] = csv.DictReader(io.StringIO(text))
  assert (line['score'], line['low'], line['group']) == ('', '', '')
