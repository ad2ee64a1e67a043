"""All of transfer by one command: which runs, in which order, and its clock."""

import dataclasses
import json
import logging

import pytest

from mpt_jax import cli
from mpt_jax.engine import face
from mpt_jax.engine.settings import Examples
from mpt_jax.study.plan import Training
from mpt_jax.transfer import whole
from mpt_jax.types import InputError

TEACHERS = whole.Teachers(
  backbone='demo',
  tasks=('rte', 'cb', 'mrpc'),
  training=Training(7, 5, 0.3),
  seeds=(3, 4),
  prompt_length=11,
  key_step=2,
  macros={'PADDING': 'max'},
)


def _plan(folder, **changes):
  plan = whole.Plan(str(folder), TEACHERS, Examples('', 'test'))
  return dataclasses.replace(plan, **changes)


@pytest.fixture
def done(monkeypatch):
  """The parts that were run; none of them does anything."""
  found = []

  def noted(part):
    return lambda site: found.append((part, site))

  for part in whole.PARTS:
    monkeypatch.setitem(whole.PARTS, part, noted(part))
  monkeypatch.setattr(whole, '_find_data', lambda plan: 'data')
  monkeypatch.setattr(whole._Site, 'synthetic', ['rte'])
  monkeypatch.setenv('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  return found


def test_parts_run_in_order_and_say_so(tmp_path, done, caplog):
  caplog.set_level(logging.INFO)
  record = whole.whole(_plan(tmp_path, source_backbone='demo-small'))
  names = [part for part, _ in done]
  assert names == list(whole.PARTS)
  total = len(names)
  first, *others = [m for m in caplog.messages if m.startswith('part ')]
  assert first == f'part 1 of {total}: {names[0]} (0s so far, ETA ?)'
  assert all('ETA 0s' in line for line in others)
  stored = json.loads((tmp_path / 'whole.json').read_text())
  assert stored == record
  assert list(stored['seconds']) == sorted(names)
  assert stored['synthetic'] == ['rte']
  assert stored['plan']['teachers']['tasks'] == ['rte', 'cb', 'mrpc']
  # What was there before counts in the time of each part.
  stored['seconds'] = {part: 100.0 for part in names}
  (tmp_path / 'whole.json').write_text(json.dumps(stored))
  again = whole.whole(_plan(tmp_path, source_backbone='demo-small'))
  assert min(again['seconds'].values()) >= 100


def test_an_interrupt_says_which_parts_are_done(tmp_path, done, monkeypatch):
  said = []

  class Shown(face.Face):
    def at_interrupt(self, resumes):
      said.append(resumes)

  def verb(site):
    face.face().at_interrupt(lambda: '3 of 8 runs are finished')

  monkeypatch.setitem(whole.PARTS, 'matrix', verb)
  with face.showing(Shown()):
    whole.whole(_plan(tmp_path, parts=('teachers', 'matrix')))
  assert [resumes() for resumes in said] == [
    '0 of 2 parts are done; of teachers: the same command goes on',
    '1 of 2 parts are done; of matrix: the same command goes on',
    '1 of 2 parts are done; of matrix: 3 of 8 runs are finished',
  ]


@pytest.mark.parametrize(
  ('changes', 'left'),
  [
    ({}, {'project'}),
    ({'source_backbone': 'demo-small', 'prompts': 'library'}, {'teachers'}),
    (
      {'parts': ('report', 'matrix')},
      whole.PARTS.keys() - {'matrix', 'report'},
    ),
  ],
)
def test_what_nobody_asks_for_is_not_run(tmp_path, done, changes, left):
  whole.whole(_plan(tmp_path, **changes))
  want = [part for part in whole.PARTS if part not in left]
  assert [part for part, _ in done] == want


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'parts': ('matrx',)}, "a part is 'matrx'.*'matrix'"),
    ({'options': {'matrx': {}}}, "a part with options is 'matrx'.*'matrix'"),
  ],
)
def test_an_unknown_part_is_refused(tmp_path, changes, message):
  with pytest.raises(InputError, match=message):
    _plan(tmp_path, **changes)


def test_every_run_is_a_command_that_there_is(tmp_path):
  plan = _plan(tmp_path, shared=Training(9, 5, 0.3, 0.1))
  folder = plan.folder('teachers')
  steps = whole._steps(plan, TEACHERS, folder)
  shared = whole._shared(plan, TEACHERS, plan.shared, steps)
  names = [step.name for step in steps]
  assert names == [f'{t}/{s}' for s in (3, 4) for t in TEACHERS.tasks]
  for step in [*steps, shared]:
    cli.check_macros(step.gin_files, step.bindings)
    assert step.macros['MODEL_DIR'] == f'{folder}/{step.name}'
    assert step.macros['PROMPT_LENGTH'] == 11
    assert step.macros['PADDING'] == 'max'
  assert {step.macros['KEY_STEP'] for step in steps} == {2}
  # Of the first seed alone.
  assert set(shared.after) == {f'{task}/3' for task in TEACHERS.tasks}
  assert shared.macros['TEACHER_PROMPTS'] == f'{folder}/{{task}}/3/prompts'


def test_options_stand_over_what_the_plan_says(tmp_path):
  plan = _plan(tmp_path, options={'speedup': {'steps': 5}})
  known = ('steps', 'period')
  assert plan.told('speedup', known, steps=9, period=3) == {
    **{'steps': 5, 'period': 3}
  }
  assert plan.told('matrix', known, steps=9) == {'steps': 9}
  with pytest.raises(InputError, match="a setting of speedup is 'steps'"):
    plan.told('speedup', ('step', 'period'))


def test_prompts_that_are_there_stand_for_the_library(tmp_path):
  assert _plan(tmp_path).library == str(tmp_path / 'library')
  assert _plan(tmp_path, prompts='there').library == 'there'
  plan = _plan(tmp_path, prompts=['a', 'b'])
  assert plan.sources == ['a', 'b']
  with pytest.raises(InputError, match='PROMPTS must be a library'):
    _ = plan.library


def test_the_other_backbone_has_the_same_teachers(tmp_path):
  assert _plan(tmp_path).others is None
  plan = _plan(tmp_path, source_backbone='demo-small', source_seeds=(4,))
  want = dataclasses.replace(TEACHERS, backbone='demo-small', seeds=(4,))
  assert plan.others == want
