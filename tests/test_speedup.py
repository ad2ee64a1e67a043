"""Speed-ups: their definitions on curves made by hand, and the verb."""

import dataclasses
import json
import math
import os

import numpy as np
import pytest

from mpt_jax.checkpoints import bundle as bundle_lib
from mpt_jax.transfer import curves, records, runs, speedup
from mpt_jax.transfer.curves import Curve, compare
from mpt_jax.transfer.speedup import Recipe
from mpt_jax.types import InputError

STEPS = (0, 10, 20, 30, 40)


def _curve(*scores, collapsed=(), less=False):
  marks = [step in collapsed for step in STEPS]
  return Curve(STEPS, scores, marks, less)


SCRATCH = _curve(10, 50, 70, 79.6, 80, collapsed=(0,))


def _ratios(transfer, scratch=SCRATCH, tolerance=0.5):
  found = compare(scratch, transfer, tolerance, 10)
  return found['convergence_speedup'], found['comparable_speedup']


def test_a_faster_start():
  found = compare(SCRATCH, _curve(60, 79, 82, 82.4, 82), 0.5, 10)
  assert found['scratch_convergence'] == 30  # 79.6 is within 0.5 of 80
  assert found['convergence'] == 20  # 82 of 82.4
  assert found['comparable'] == 20
  assert found['convergence_speedup'] == found['comparable_speedup'] == 1.5
  assert (found['step0'], found['scratch_step0']) == (60, 10)
  assert (found['final'], found['best']) == (82, 82.4)
  assert (found['bound'], found['why']) == (False, '')


def test_ties_take_the_first():
  assert _ratios(_curve(10, 80, 80, 80, 80)) == (3, 3)
  # Exactly at the bound, and exactly the best of scratch.
  assert _ratios(_curve(10, 79.5, 80, 70, 70)) == (3, 1.5)


def test_not_reached_is_a_value():
  found = compare(SCRATCH, _curve(60, 79, 79.9, 79, 79), 0.5, 10)
  assert found['comparable'] is found['comparable_speedup'] is None
  assert found['convergence_speedup'] == 1.5
  assert found['why'] == 'the best of scratch was not reached'


def test_there_before_the_first_step():
  """Step 0 counts as one period; there is no ratio with zero steps."""
  found = compare(SCRATCH, _curve(85, 80, 84, 84, 84), 0.5, 10)
  assert (found['convergence'], found['comparable']) == (0, 0)
  assert found['convergence_speedup'] == found['comparable_speedup'] == 3
  assert found['bound']
  flat = _curve(85, 85, 85, 85, 85)
  assert _ratios(flat, flat) == (1, 1)


def test_what_says_nothing_does_not_converge():
  majority = _curve(55, 55, 55, 55, 55, collapsed=STEPS)
  found = compare(SCRATCH, majority, 0.5, 10)
  assert found['convergence'] is found['convergence_speedup'] is None
  assert found['collapsed']
  assert 'the transferred start did not converge' in found['why']
  found = compare(majority, SCRATCH, 0.5, 10)
  assert found['scratch_convergence'] is found['comparable_speedup'] is None
  assert 'scratch did not converge' in found['why']
  # Only once it answers.
  assert _ratios(_curve(80, 80, 80, 80, 80, collapsed=(0, 10)))[0] == 1.5


def test_less_may_be_better_and_scores_undefined():
  scratch = _curve(9, 5, 2, 1.2, 1, less=True)
  assert _ratios(_curve(None, 1, 3, 3, 3, less=True), scratch) == (3, 3)
  none = _curve(None, None, None, None, None)
  found = compare(none, none, 0.5, 10)
  assert found['convergence'] is found['comparable'] is found['best'] is None


def test_other_evaluations_are_no_comparison():
  with pytest.raises(ValueError, match='evaluated at'):
    compare(SCRATCH, Curve((0, 20), (1, 2), (False, False)), 0.5, 10)


def test_means_of_ratios_count_what_is_not_there():
  got = curves.mean_ratio([4.0, 1.0, 2.0, None])
  assert math.isclose(got['mean'], 2)
  assert (got['reached'], got['not_reached']) == (3, 1)
  # t = 4.3027 with two degrees of freedom, standard error log(2) / sqrt(3).
  width = 2 ** (4.30265273 / math.sqrt(3))
  assert math.isclose(got['high'], 2 * width, rel_tol=1e-6)
  assert math.isclose(got['low'] * got['high'], 4)
  none = curves.mean_ratio([None])
  assert (none['mean'], none['low'], none['not_reached']) == (None, None, 1)
  # Of two the t distribution's reaches from next to nothing to thousands.
  assert curves.mean_ratio([2.0, 9.0])['high'] is None
  assert curves.mean_score([1.0, None])['n'] == 1


def test_a_rate_by_its_last_score():
  finals = {0.3: [70, 72], 0.1: [71, 71], 1.0: [90, -math.inf]}
  assert curves.best_rate(finals) == 0.1  # of equals the smaller


# -- the verb -----------------------------------------------------------------

RECIPE = Recipe(
  steps=40,
  period=10,
  rates=(0.1, 0.3),
  seeds=(0, 1),
  prompt_length=3,
  task_feature_lengths={'inputs': 24, 'targets': 4},
  macros={'PADDING': 'max'},
)


def _bundle(task='mnli', **changes):
  settings = {
    'method': 'soft',
    'stage': 'teacher',
    'task_names': (task,),
    'arrays': {'prompt': np.ones((3, 16), np.float32)},
    'backbone_name': 'tiny',
    'backbone_fingerprint': 'sha256:0',
    'vocabulary_digest': '',
    'step': 5,
    'metrics': {},
    'package_version': '0',
    'texts': {},
    'settings': {'length': 3},
    **changes,
  }
  return bundle_lib.PromptBundle(**settings)


@pytest.fixture
def ran(tmp_path, monkeypatch):
  """Runs that are made of what they start from and their rate, and no other."""
  _bundle().save(str(tmp_path / 'mnli'))
  steps = []

  def scores(step):
    better = 'SOURCE_PROMPTS' in step.macros
    if step.macros['TRAIN_STEPS'] == 0:
      return {0: 60.0 if better else 10.0}
    if step.macros['SHARED_LEARNING_RATE'] == 0.1:
      return {10: 20.0, 20: 20.0, 30: 20.0, 40: 20.0}
    ending = 60.0 if step.macros['RANDOM_SEED'] else 90.0
    return {10: 70.0, 20: 90.0 if better else 75.0, 30: 80.0, 40: ending}

  def run(folder, todo, *rest):
    for step in todo:
      path = os.path.join(folder, step.name)
      os.makedirs(path)
      found = scores(step)
      with open(os.path.join(path, 'metrics.jsonl'), 'w') as f:
        for at, value in found.items():
          line = {'step': at, 'eval/rte/accuracy': value}
          line['floor/rte/collapsed'] = float(value <= 20)
          f.write(json.dumps(line) + '\n')
      content = {'scores': {'rte': {'accuracy': value}}}
      with open(os.path.join(path, 'results.json'), 'w') as f:
        json.dump(content, f)
      _bundle('rte').save(os.path.join(path, 'prompts'))
      steps.append(step)

  monkeypatch.setattr(runs, 'run', run)
  return tmp_path, steps


def _speedup(folder, **changes):
  return speedup.speedup(
    **{
      'model_dir': str(folder / 'out'),
      'backbone': 'demo',
      'sources': {'rte': str(folder / 'mnli')},
      'recipe': RECIPE,
      **changes,
    }
  )


def test_the_arms_differ_in_their_start_alone(ran):
  folder, steps = ran
  _speedup(folder)
  assert len(steps) == len({step.name for step in steps}) == 12
  arms = {'transfer': [], 'scratch': []}
  for step in steps:
    macros = dict(step.macros)
    source = [macros.pop(n, None) for n in ('SOURCE_PROMPTS', 'SOURCE_TASK')]
    arm = step.labels['arm']
    assert source == (
      [str(folder / 'mnli'), 'mnli'] if arm == 'transfer' else [None, None]
    )
    assert macros.pop('MODEL_DIR').endswith(step.name)
    assert macros['PADDING'] == 'max'
    arms[arm].append((step.likeness, macros))
  assert arms['transfer'] == arms['scratch']
  rates = [m.get('SHARED_LEARNING_RATE') for _, m in arms['scratch']]
  assert rates == [None, 0.1, 0.3] * 2
  [start, *_] = [m for _, m in arms['scratch']]
  assert start['TRAIN_STEPS'] == 0


def test_the_files_say_all(ran, caplog):
  caplog.set_level('INFO')
  folder, steps = ran
  written = _speedup(folder)
  path = folder / 'out/speedup.json'
  assert written == json.loads(path.read_text())
  chosen = written['rates']['rte']['scratch']
  assert (chosen['chosen'], chosen['on_edge']) == (0.3, True)
  first, second = written['rows']
  assert (first['task'], first['source'], first['setting']) == (
    *('rte', 'mnli'),
    'full',
  )
  # Seed 0: scratch has its best, 90, at 40; the other start at 20.
  assert first['convergence_speedup'] == first['comparable_speedup'] == 2
  assert (first['step0'], first['scratch_step0']) == (60, 10)
  # Seed 1: scratch has its best, 80, at 30.
  assert second['convergence_speedup'] == second['comparable_speedup'] == 1.5
  curve = written['curves']['rte']['transfer']['1']
  assert curve['steps'] == [0, 10, 20, 30, 40]
  assert curve['scores'] == [60, 70, 90, 80, 60]
  [task] = written['tasks']
  assert math.isclose(task['convergence']['mean'], math.sqrt(3))
  assert task['final']['mean'] == 75
  for text in (caplog.text, (folder / 'out/speedup.csv').read_text()):
    for words in written['definitions'].values():
      assert words in text
  assert (folder / 'out/curves.png').exists()
  # Finished: nothing runs again; and nothing else is mixed in.
  assert _speedup(folder) == written
  assert len(steps) == 12
  with pytest.raises(InputError, match=r'other settings.*rates: \[0.1, 0.3\]'):
    _speedup(folder, recipe=dataclasses.replace(RECIPE, rates=(0.1,)))


def test_what_cannot_be_compared_is_said(tmp_path):
  two = ('mnli', 'qqp')
  _bundle('mnli').save(str(tmp_path / 'source0'))
  _bundle('qqp').save(str(tmp_path / 'source1'))
  with pytest.raises(InputError, match='the seeds have prompts of mnli, qqp'):
    _speedup(tmp_path, sources={'rte': str(tmp_path / 'source{seed}')})
  with pytest.raises(InputError, match='source2'):
    _speedup(tmp_path, sources={'rte': str(tmp_path / 'source2')})
  arrays = {
    'shared_prompt': np.ones((3, 16), np.float32),
    'task_u': np.ones((2, 3, 1), np.float32),
    'task_v': np.ones((2, 1, 16), np.float32),
  }
  settings = {'length': 3, 'rank': 1}
  several = _bundle(
    method='multitask', arrays=arrays, task_names=two, settings=settings
  )
  several.save(str(tmp_path / 'several'))
  with pytest.raises(InputError, match=r'mnli, qqp: give \[path, task\]'):
    _speedup(tmp_path, sources={'rte': str(tmp_path / 'several')})
  for changes, words in (
    ({'rates': ()}, 'RATES is .*: expected one or more'),
    ({'seeds': (0, 0)}, 'SEEDS is .*: expected one or more, each once'),
    ({'rates': (0.0,)}, 'expected above 0'),
    ({'period': 41}, 'EVAL_PERIOD is 41, more than TRAIN_STEPS = 40'),
  ):
    with pytest.raises(InputError, match=words):
      dataclasses.replace(RECIPE, **changes)
  assert not (tmp_path / 'out').exists()


def test_the_best_foreign_source_of_a_matrix(ran):
  folder, _ = ran
  scores = {'rte/0': 99, 'rte/1': 99, 'qqp': 70, 'mnli/0': 60, 'mnli/1': 90}
  tasks = {name: name.partition('/')[0] for name in (*scores, 'random')}
  rows = [{'name': n, 'task': t, 'digest': ''} for n, t in tasks.items()]
  rows[-1] |= {'task': '', 'kind': 'random'}
  cells = [
    {'source': name, 'task': 'rte', 'score': score}
    for name, score in {**scores, 'random': 100}.items()
  ]
  content = {'sources': rows, 'targets': [{'task': 'rte'}], 'cells': cells}
  (folder / 'matrix.json').write_text(json.dumps(content))
  given = {'sources': str(folder / '{source}'), 'matrix': str(folder)}
  written = _speedup(folder, **given)
  assert {row['source'] for row in written['rows']} == {'mnli'}
  _bundle().save(str(folder / 'library/mnli/0/value'))
  library = {**given, 'sources': str(folder / 'library')}
  assert _speedup(folder, **library) == written  # It is the same prompt.
  with pytest.raises(InputError, match="no source for 'rtee'; did you mean"):
    _speedup(folder, targets='rtee', **given)
  with pytest.raises(InputError, match='or with MATRIX a library, or'):
    _speedup(folder, sources='nothing', matrix=str(folder))


def test_the_order_of_a_dictionary_is_no_setting(tmp_path):
  for macros in ({'A': 1, 'B': 2}, {'B': 2, 'A': 1}):
    assert records.begin(str(tmp_path), 'x', {'macros': macros}) is None
  with pytest.raises(InputError, match='macros: {"A": 1, "B": 2} there, {"A"'):
    records.begin(str(tmp_path), 'x', {'macros': {'A': 1}})
