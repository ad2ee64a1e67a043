"""The papers' studies, large and small, as a dry run tells them."""

import dataclasses
import pathlib

import gin
import pytest

from mpt_jax import backbones, cli, methods, t5
from mpt_jax.cli import reader
from mpt_jax.study import arms, forecast, rates, steps
from mpt_jax.study.workers import STEP
from tests.test_pipeline import EVERY, changed

ROOT = pathlib.Path(__file__).parents[1]
STUDIES = sorted(
  path.stem for path in (ROOT / 'gin_configs/studies').glob('mpt_*.gin')
)
SMALL = 'gin_configs/studies/small.gin'


@pytest.fixture(autouse=True)
def _nowhere(tmp_path, monkeypatch):
  """No data, no backbone, and a folder in which nothing may appear."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.delenv('TFDS_DATA_DIR', raising=False)
  monkeypatch.setattr(cli, '_data_dir', None)
  gin.clear_config()
  yield
  gin.clear_config()


def dry_run(capsys, *files, more=()):
  """What the command tells, and what the plan behind it would run."""
  gin.clear_config()
  cli.main(
    'mpt_jax.pipeline',
    'pipeline',
    [
      *(f'--gin_file={name}' for name in files),
      '--gin.MODEL_DIR="study"',
      '--dry_run',
      *more,
    ],
  )
  assert not any(pathlib.Path().iterdir())
  return capsys.readouterr().out


def total_of(out):
  """(runs, training steps) of the last row."""
  [row] = [line for line in out.splitlines() if line.startswith('all ')]
  _, runs, *_, trained = row.replace(',', '').split()
  return int(runs), int(trained)


@pytest.mark.parametrize('name', STUDIES)
def test_a_study_and_its_small_twin_tell_what_they_run(name, capsys):
  path = f'gin_configs/studies/{name}.gin'
  large = dry_run(capsys, path)
  assert "missing: there is no backbone at 't5-" in large
  assert '(its sizes are known by its name)' in large
  assert large.startswith('MPT ')
  # A fresh clone has no data, and says what it would take instead.
  assert 'data: no --tfds_data_dir: SYNTHETIC DATA' in large
  small = dry_run(capsys, path, SMALL)
  assert 'missing' not in small
  (runs, taken), (few, fewer) = total_of(large), total_of(small)
  # A seed in place of three, and as many methods.
  assert runs / 4 < few < runs
  assert fewer < taken / 100
  for out in (large, small):
    assert 'estimate' in out
    assert 'assumed, not measured' in out
    assert '\ndisk: about ' in out


def test_the_studies_say_what_the_papers_do(capsys):
  """Of the tasks in `tasks`, as their table has them."""
  said = {}
  for name in STUDIES:
    text = reader.read([str(ROOT / f'gin_configs/studies/{name}.gin')])
    said[name] = {
      s.name: s.value for s in text.settings if not s.target and not s.scope
    }
    assert said[name]['PROMPT_LENGTH'] == 100
    assert said[name]['SEEDS'] == [0, 1, 2]
  assert len(said['mpt_glue']['TARGETS']) == 8
  assert set(said['mpt_superglue']['TARGETS']) == {
    *('multirc', 'boolq', 'wic', 'wsc', 'cb')
  }
  assert said['mpt_ablation']['TARGETS'] == said['mpt_superglue']['TARGETS']
  assert said['mpt_superglue']['LENGTHS'] == {'multirc': {'inputs': 448}}
  assert list(said['mpt_few_shot']['TARGETS']) == ['boolq', 'cb', 'scitail']
  assert len(said['mpt_few_shot']['SETTINGS']) == 3
  assert said['mpt_nlg']['INITIAL_CHECKPOINT_PATH'] == 't5-large'
  # A search is another recipe; but each rate stands ready for it.
  assert said['mpt_glue']['FULL_RATES'].keys() == arms.TARGETS.keys()


def test_the_study_of_transfer_is_whole():
  path = 'gin_configs/studies/transfer.gin'
  cli.check_macros([path], ["MODEL_DIR='x'"])
  text = reader.read([str(ROOT / path)])
  said = {s.name: s.value for s in text.settings if not s.target}
  assert (said['SHARED_LEARNING_RATE'], said['BATCH_SIZE']) == (0.005, 16)


def rows_of(found):
  names = ('stage', 'method', 'setting')
  return {tuple(row[n] for n in names): row for row in found['rows']}


def test_a_forecast_is_of_the_plans_own_steps(tmp_path):
  plan = changed(EVERY, model_dir=str(tmp_path / 'F'), backbone='x/t5-base')
  found = forecast.of(plan)
  every = steps.reported(plan, rates.given(plan))
  assert found['runs'] == len(every) == sum(r['runs'] for r in found['rows'])
  trained = [s.labels['steps'] for s in every if s.entry == 'train']
  assert found['steps'] == sum(trained)
  rows = rows_of(found)
  assert rows['candidate', 'spot_oracle', 'full']['runs'] == 4
  # It costs what its candidates cost, once.
  assert rows['best of them', 'spot_oracle', 'full']['steps'] == 0
  assert rows['target', 'mpt_group', 'full']['each'] == [10, 10]
  assert rows['teacher', '-', '-']['steps'] == 4 * 7
  assert not found['finished']
  assert not (tmp_path / 'F').exists()


def test_what_is_finished_is_measured(tmp_path):
  plan = changed(model_dir=str(tmp_path))
  every = steps.reported(plan, rates.given(plan))
  for step in every[:3]:
    (tmp_path / step.name).mkdir(parents=True)
    text = f'{{"seconds": {step.cost / 1000}}}'
    (tmp_path / step.name / STEP).write_text(text)
  found = forecast.of(plan, 1)
  assert found['finished'] == 3
  left = sum(step.cost for step in every[3:]) / 1000
  [line] = found['time']
  assert line.startswith(f'{forecast.format_seconds(left)} on 1 workers')
  assert 'what the 3 finished runs took: 1 s for 1,000 examples' in line
  for step in every[3:]:
    (tmp_path / step.name).mkdir(parents=True)
    (tmp_path / step.name / STEP).write_text('{"seconds": 1.0}')
  assert forecast.of(plan)['time'] == ['every run is finished']


def test_no_worker_waits_less_than_the_longest_chain():
  def step(name, *after):
    return steps.Step(name, 'train', (), {}, after=after)

  left = [step('a'), step('b', 'a'), step('c'), step('d')]
  seconds = {'a': 5.0, 'b': 7.0, 'c': 1.0, 'd': 11.0}
  for several, want in ((1, '24s'), (2, '12s'), (99, '12s')):
    assert forecast._hours(seconds, left, several) == want


@pytest.mark.parametrize(
  ('name', 'targets', 'measured'),
  [('t5_base', 8, 674.59e9), ('roberta_base', 2, 672.78e9)],
)
def test_flops_of_a_step_are_as_measured(name, targets, measured):
  """XLA's count of a step: 8 x (128 + 100) inputs, and targets or words."""
  lengths = {'inputs': 228, 'targets': targets}
  step = steps.Step(
    *('a', 'train', (), {'TASK_FEATURE_LENGTHS': lengths}),
    labels={'stage': 'teacher'},
  )
  flops = 8 * forecast._flops(backbones.get_config(name), step)
  assert flops == pytest.approx(measured, rel=0.2)


@pytest.mark.parametrize(
  ('path', 'name'),
  [
    ('t5-base', 't5_base'),
    ('google/t5-v1_1-large', 't5_1_1_large'),
    ('models/t5-small-lm-adapt', 't5_1_1_lm100k_small'),
    ('google/flan-t5-xl', 'flan_t5_xl'),
    ('t5x/t5_base/checkpoint_999900', 't5_base'),
  ],
)
def test_sizes_are_known_by_name(path, name):
  assert forecast._config(path) == t5.get_config(name)


def test_nothing_is_guessed_of_an_unknown_backbone():
  found = forecast.of(changed(backbone='mine'))
  assert found['time'][0].startswith("not known: no sizes of the backbone 'mi")
  assert found['disk'] == ['not known: no sizes of the backbone']
  assert found['missing'] == ["there is no backbone at 'mine'"]


def test_disk_counts_what_a_run_learns():
  setting = dataclasses.replace(EVERY.target_stage.settings[0], steps=1001)
  plan = changed(
    EVERY, methods=('full', 'lora'), variants=(), settings=(setting,)
  )
  plan = dataclasses.replace(plan, backbone='t5-base')
  prompts, whole = forecast.of(plan)['disk']
  # Two checkpoints: the number, and two of Adam; float32. Two tasks.
  count = methods.get('full')().num_parameters(t5.get_config('t5_base'), 1)
  assert forecast._size(2 * 4 * count * (1 + 3 * 2)) in whole
  assert prompts.startswith('about ')


def test_a_dry_run_tells_of_missing_data(capsys):
  out = dry_run(
    capsys,
    'gin_configs/runs/demo.gin',
    more=['--tfds_data_dir=no/such/folder'],
  )
  assert "missing: the data: there is no folder 'no/such/folder'" in out


def test_other_commands_have_no_dry_run(capsys):
  words = ['--gin_file=gin_configs/runs/teacher.gin', '--dry_run']
  with pytest.raises(SystemExit) as e:
    cli.main('mpt_jax.train', 'train', words)
  assert e.value.code == 2
  assert 'mpt_jax.pipeline has' in capsys.readouterr().err
