"""The report, from results that no run has made."""

import copy
import json
import math

import numpy as np
import pytest

from mpt_jax.checkpoints.bundle import PromptBundle
from mpt_jax.study import arms, plots, screen, stats
from mpt_jax.types import InputError
from tests.helpers import every_method, fake_study
from tests.helpers.fake_study import SOURCES, TARGETS, D, Fake, P


@pytest.fixture(autouse=True)
def _no_drawing(request, monkeypatch):
  """Drawing takes a second each time; a few tests do it."""
  if 'picture' not in request.node.name:
    monkeypatch.setattr(plots, 'save', fake_study.save)


def text_of(folder):
  return (folder / 'report.md').read_text()


def test_numbers(tmp_path):
  written = Fake(tmp_path).fill().write()
  assert written == json.loads((tmp_path / 'report.json').read_text())
  teachers = written['teachers']
  assert teachers['tasks']['mnli']['values'] == {'0': 80.0, '1': 82.0}
  assert teachers['tasks']['mnli']['std'] == pytest.approx(math.sqrt(2))
  assert teachers['mean']['mean'] == 86.0
  assert written['targets']['k32']['mpt']['mean']['mean'] == 66.0
  pair = next(
    p for p in written['pairs'] if (p['where'], p['second']) == ('k32', 'pt')
  )
  assert pair['values'] == {'0': 4.0, '1': 8.0}
  assert pair['mean'] == 6.0
  # Standard deviation 2.83 over the root of two seeds.
  assert pair['se'] == pytest.approx(2.0)
  assert written['parameters']['methods'] == {'mpt': P * D + P + D, 'pt': P * D}
  assert written['parameters']['group'] == P * D / 2 + P + D
  assert written['seconds']['all_runs'] == 2.5 * len(written_steps(tmp_path))
  assert written['curves']['mpt']['seed1'] == [60.0, 85.0]
  assert 'neither' not in written['source']


def test_groups_have_means_and_differences_of_their_own(tmp_path):
  def score(setting, method, task, seed, value):
    del setting, seed
    return value + (10.0 if (method, task) == ('mpt', 'cola') else 0.0)

  fake = Fake(tmp_path).fill(score)
  fake.plan = {'groups': {'judged': ['cola'], 'all': ['rte', 'cola']}}
  written = fake.write()
  of = written['groups']['k32']
  assert of['judged']['mpt']['mean']['values'] == {'0': 74.0, '1': 78.0}
  assert of['all'].keys() == written['targets']['k32'].keys()
  for name, found in of['all'].items():
    assert found == written['targets']['k32'][name]
  found = {
    pair['group']: pair['values']
    for pair in written['group_pairs']
    if (pair['where'], pair['first'], pair['second']) == ('k32', 'mpt', 'pt')
  }
  assert found == {
    'judged': {'0': 14.0, '1': 18.0},
    'all': {'0': 9.0, '1': 13.0},
  }
  text = text_of(tmp_path)
  # 16 with a standard error of 2 and one degree of freedom.
  assert '| mpt - pt | +16.0 (-9.4 to 41.4) | +11.0 (-14.4 to 36.4) |' in text
  rows = (tmp_path / 'tables/differences.csv').read_text()
  assert 'k32,mpt,pt,mean of judged,16.0,' in rows
  assert 'judged' in (tmp_path / 'tables/groups_k32.csv').read_text()


def test_every_arm_says_what_it_trains_and_takes(tmp_path):
  fake = Fake(tmp_path, seeds=(0,)).fill()
  config = every_method.CONFIG
  for name, arm in arms.TARGETS.items():
    if (tmp_path / 'seed0/target/k32' / name).exists():
      continue
    run = f'seed0/target/k32/{name}/rte'
    labels = {'seed': 0, 'method': name, 'setting': 'k32', 'task': 'rte'}
    fake.run(run, {'rte': {'accuracy': 50.0}}, {'stage': 'target', **labels})
    done = {'settings': {}, 'command': 'x', 'seconds': 1.0, 'step_bytes': 300}
    (tmp_path / run / 'step.json').write_text(json.dumps(done))
    line = {'step': 30, 'train/steps_per_second': 4.0}
    (tmp_path / run / 'metrics.jsonl').write_text(json.dumps(line))
    method = every_method.METHODS[arm.method]
    if method.branch is not None:
      arrays = every_method.learned(method, 1)
      learned = PromptBundle(
        *(method.name, 'target', ('rte',), arrays), settings=method.settings
      )
      learned.save(str(tmp_path / run / 'prompts'))
  ours = tmp_path / 'seed0/target/k32/mpt/rte'
  done = json.loads((ours / 'step.json').read_text()) | {'step_bytes': 200}
  (ours / 'step.json').write_text(json.dumps(done))
  line = {'step': 30, 'train/steps_per_second': 8.0}
  (ours / 'metrics.jsonl').write_text(json.dumps(line))
  written = fake.write(
    methods=list(arms.TARGETS),
    backbone={'name': 'x', 'parameters': 12_345, 'config': config.to_dict()},
  )
  counts = written['parameters']['methods']
  assert counts['full'] == 12_345
  for name, arm in arms.TARGETS.items():
    if name not in ('mpt', 'pt', 'full'):
      method = every_method.METHODS[arm.method]
      assert counts[name] == method.num_parameters(config, 1)
  costs = text_of(tmp_path).split('\n## Cost\n')[1]
  row = next(r for r in costs.splitlines() if '| LoRA |' in r)
  assert row.endswith(f'| {counts["lora"]:,} | 2.00 | 1.50 |')


def written_steps(folder):
  return json.loads((folder / 'pipeline.json').read_text())['steps']


def test_text_has_every_section_and_picture(tmp_path):
  Fake(tmp_path).fill().write()
  text = text_of(tmp_path)
  assert text.startswith('# Multitask Prompt Tuning on SYNTHETIC DATA\n')
  for title in (
    '## Teachers',
    '## Source stage',
    '### k32: 32 training examples per task',
    '### full: all training examples',
    '## Paired differences',
    '## Parameters per target task',
    '## Prompt similarity',
    '## Learning rates',
    '## How',
  ):
    assert f'{title}\n' in text
  assert '| MPT | 66.0 ± 2.8 |' in text
  assert 'cola (matthews_corrcoef)' in text
  assert '+6.0 | 2.0 | +4.0 +8.0' in text
  assert 'run seed0/target/k32/mpt/rte' in text
  assert 'jax 1.2.3' in text
  for line in text.splitlines():
    if line.startswith('!['):
      plot = tmp_path / line.partition('(')[2].rstrip(')')
      assert plot.read_bytes().startswith(b'\x89PNG')


def _counted(**numbers):
  return {
    **dict.fromkeys(
      ('cut_inputs', 'cut_targets', 'unlabelled', 'empty_inputs'), 0
    ),
    'examples': 400,
    **numbers,
  }


def test_what_was_cut_is_a_table(tmp_path):
  fake = Fake(tmp_path).fill()
  # Runs of version 0.1 told nothing.
  assert fake.write()['examples'] == {}
  assert 'What was cut' not in text_of(tmp_path)

  def tell(run, **examples):
    (tmp_path / run / 'results.json').write_text(
      json.dumps({'examples': examples})
    )

  tell('seed0/teacher/mnli', train={'mnli': _counted()})
  fake.write()
  assert 'No input or target was longer than its length' in text_of(tmp_path)
  for run, cut in (('seed0/teacher/sst2', 6), ('seed1/teacher/sst2', 2)):
    tell(
      run,
      train={'sst2': _counted(cut_inputs=cut)},
      test={'sst2': _counted(unlabelled=1)},
    )
  fake.write()
  text = text_of(tmp_path)
  assert '| sst2/train | 400 | 6 (1.5 %) | 0 | 0 | 0 |' in text
  assert '| sst2/test | 400 | 0 | 0 | 1 (0.2 %) | 0 |' in text
  assert '| mnli/train' not in text
  assert 'Nothing of the kind in 1 other splits' in text


def test_real_data_are_not_called_synthetic(tmp_path):
  Fake(tmp_path, synthetic=False).fill().write()
  text = text_of(tmp_path)
  assert text.startswith('# Multitask Prompt Tuning\n')
  assert 'SYNTHETIC' not in text


def test_one_seed_says_how_noisy_it_is(tmp_path):
  written = Fake(tmp_path, seeds=(0,)).fill().write()
  text = text_of(tmp_path)
  assert '**This is one seed**' in text
  assert '±' not in text.replace('"±"', '')
  assert written['teachers']['mean']['std'] is None
  assert 'One seed' in screen.summary(written)
  # 400 test examples: half a point in the root of 400 is 2.5 %.
  assert 'up to 2.5 points' in text


def test_several_seeds_show_their_spread(tmp_path):
  written = Fake(tmp_path).fill().write()
  assert 'one seed' not in text_of(tmp_path)
  assert 'One seed' not in screen.summary(written)


def test_losing_is_shown(tmp_path):
  def losing(setting, method, task, seed, value):
    return 50.0 if (setting, method) == ('full', 'mpt') else value

  written = Fake(tmp_path).fill(losing).write()
  assert 'pt over mpt (full +10.0)' in screen.summary(written)
  text = text_of(tmp_path).replace('\n', ' ')
  against = '- MPT against vanilla prompt tuning (PT): behind on '
  assert f'{against}rte (-10.0), cola (-10.0).' in text
  assert f'{against}none.' in text


def test_undefined_correlation_counts_as_zero(tmp_path):
  def constant(setting, method, task, seed, value):
    return None if task == 'cola' and method == 'pt' else value

  written = Fake(tmp_path).fill(constant).write()
  stat = written['targets']['k32']['pt']['tasks']['cola']
  assert stat['values'] == {'0': 0.0, '1': 0.0}
  assert written['targets']['k32']['pt']['mean']['mean'] == 30.0
  text = text_of(tmp_path)
  assert 'nan' not in text.lower().replace('dominant', '')
  assert 'counts as 0' in text


def test_skills_stand_beside_the_teachers(tmp_path):
  (tmp_path / 'backbone').mkdir()
  skills = {
    'skills': {'nli': {'score': 88.0}, 'mood': {'score': 91.0}},
    'tasks': {'mnli': 'nli', 'sst2': 'mood', 'other': 'unknown'},
  }
  (tmp_path / 'backbone/skills.json').write_text(json.dumps(skills))
  written = Fake(tmp_path).fill().write()
  assert written['skills'] == {'mnli': 88.0, 'sst2': 91.0}
  assert '| mnli (accuracy) | 81.0 ± 1.4 | 88.0 | 400 |' in text_of(tmp_path)


FLOORS = {
  'rte': {'majority': 55.0, 'majority_scores': {'accuracy': 55.0}},
  'cola': {'majority': 70.0, 'majority_scores': {'matthews_corrcoef': 0.0}},
}


def with_baselines(fake):
  """Zero-shot runs, and floors beside the scores of the first target run."""
  fake.beside['seed0/target/k32/pt/rte'] = {
    'floors': {'rte': FLOORS['rte']},
    'collapsed': {'rte': 'the answer to all 400 examples is "entailment"'},
  }
  fake.beside['seed0/target/k32/pt/cola'] = {'floors': {'cola': FLOORS['cola']}}
  fake.fill()
  for task, metric, value in (
    ('rte', 'accuracy', 12.0),
    ('cola', 'matthews_corrcoef', None),
    ('mnli', 'accuracy', 33.0),
  ):
    fake.run(
      f'zero_shot/{task}',
      {task: {metric: value}},
      {'stage': 'zero_shot', 'task': task},
      collapsed={} if task == 'mnli' else {task: 'all invalid'},
    )
  return fake


def test_baselines_and_marks_in_table_and_terminal(tmp_path):
  written = with_baselines(Fake(tmp_path)).write()
  assert written['majority'] == {'rte': 55.0, 'cola': 0.0}
  text = text_of(tmp_path)
  assert '| vanilla prompt tuning (PT) | 60.0 ± 0.0† | 60.0 ± 0.0† | 60.0' in (
    text
  )
  assert '| majority class | 27.5 | 55.0 | 0.0 |' in text
  assert '| no prompt (zero-shot) | 6.0†‡ | 12.0† | 0.0†‡ |' in text
  # Of the sources one has no such score: no mean.
  assert '| no prompt (zero-shot) | - | 33.0 | - |' in text
  assert '† collapsed: over 95 % of the answers were one' in text
  assert '‡ not defined' in text
  summary = screen.summary(written)
  assert '† collapsed, k32: vanilla prompt tuning (PT): rte' in summary
  assert '† collapsed, no prompt (zero-shot): rte, cola' in summary
  lines = [line.split() for line in summary.splitlines()]
  assert ['majority', 'class', '27.5', '27.5'] in lines
  assert ['no', 'prompt', '(zero-shot)', '6.0†‡', '6.0†‡'] in lines


def test_marks_and_baselines_in_the_picture(tmp_path):
  written = with_baselines(Fake(tmp_path)).write()
  figure = plots._plot_targets(written, 'k32', written['targets']['k32'])
  [axes] = figure.axes
  hatched = [bar for bar in axes.patches if bar.get_hatch()]
  # PT on RTE and its mean; zero-shot on both tasks and its mean.
  assert len(hatched) == 5
  lines = [c for c in axes.collections if c.get_label() == 'majority class']
  assert [s[0][1] for s in lines[0].get_segments()] == [55.0, 0.0, 27.5]


def test_nothing_is_claimed_of_one_seed(tmp_path):
  def losing(setting, method, task, seed, value):
    return 50.0 if method == 'mpt' else value

  written = Fake(tmp_path, seeds=(0,)).fill(losing).write()
  assert 'behind' not in screen.summary(written)
  text = text_of(tmp_path)
  assert 'one seed, so no claim: rte (-10.0), cola (-10.0).' in text
  assert 'behind on' not in text


def test_what_an_interval_leaves_open_is_not_told_apart(tmp_path):
  def noisy(setting, method, task, seed, value):
    # On RTE 4, -3: nobody knows; on CoLA 4, 4.1, though of two seeds: ahead.
    if method == 'mpt':
      return 60.0 + {'rte': (4.0, -3.0), 'cola': (4.0, 4.1)}[task][seed]
    return value

  written = Fake(tmp_path).fill(noisy).write()
  text = text_of(tmp_path)
  assert (
    '- MPT against vanilla prompt tuning (PT): behind on none. Not told apart:'
    ' rte (+0.5). Ahead on cola (+4.0).'
  ) in text
  # 4 and 0.55: 2.275 with a standard error of 1.725.
  pair = next(
    p for p in written['pairs'] if (p['where'], p['second']) == ('k32', 'pt')
  )
  assert pair['mean'] == pytest.approx(2.275)
  assert pair['se'] == pytest.approx(1.725)


@pytest.mark.parametrize('synthetic', [False, True])
def test_one_seed_claims_nothing_wherever_the_data_come_from(
  tmp_path, synthetic
):
  fake = Fake(tmp_path, seeds=(0,), synthetic=synthetic)
  written = fake.fill().write()
  text = text_of(tmp_path)
  for words in ('benchmark', '1 to 4 points', 'pretraining'):
    assert words not in text
  assert '**This is one seed**' in text
  assert 'bar' not in screen.summary(written)


def test_less_is_better_where_it_is(tmp_path):
  def errors(setting, method, task, seed, value):
    return 30.0 + seed if method == 'mpt' else 40.0

  fake = Fake(tmp_path)
  less = {'better': 'less', 'range': [0, None], 'unit': '%', 'score': True}
  for seed in (0, 1):
    for setting in ('k32', 'full'):
      for method in ('mpt', 'pt'):
        for task, name in (('rte', 'accuracy'), ('cola', 'matthews_corrcoef')):
          run = f'seed{seed}/target/{setting}/{method}/{task}'
          fake.beside[run] = {'metrics': {task: {name: less}}}
  written = fake.fill(errors).write()
  pair = next(p for p in written['pairs'] if p['where'] == 'k32')
  assert pair['values'] == {'0': 10.0, '1': 9.0}
  text = text_of(tmp_path)
  assert 'rte (accuracy, less is better)' in text
  assert 'behind on none.' in text
  assert 'Ahead on rte (+9.5), cola (+9.5).' in text


def test_scores_that_have_no_mean_get_none(tmp_path):
  fake = Fake(tmp_path)
  wer = {'better': 'less', 'range': [0, None], 'unit': '%', 'score': True}
  for seed in (0, 1):
    for setting in ('k32', 'full'):
      for method in ('mpt', 'pt'):
        run = f'seed{seed}/target/{setting}/{method}/rte'
        fake.beside[run] = {'metrics': {'rte': {'accuracy': wer}}}
  written = fake.fill().write()
  assert written['targets']['k32']['mpt']['mean'] is None
  assert not [p for p in written['pairs'] if p['where'] == 'k32']
  text = text_of(tmp_path)
  assert '| MPT | - | 66.0 ± 2.8 |' in text
  assert 'No mean over the tasks' in text
  assert plots._plot_targets(written, 'k32', written['targets']['k32'])
  assert screen.summary(written)


def test_search_is_shown_with_its_edges(tmp_path):
  fake = Fake(tmp_path).fill()
  fake.tuning = [
    {
      'setting': 'k32',
      'method': method,
      'rates': rates,
      'scores': {'rte': 50.0, 'cola': 41.0},
      'mean': 45.5,
      **more,
    }
    for method, rates, more in (
      ('mpt', [0.1, 0.2], {'chosen': True, 'on_edge': False}),
      ('mpt', [0.3, 0.2], {}),
      ('pt', [0.3, None], {'chosen': True, 'on_edge': True}),
    )
  ]
  fake.write()
  text = text_of(tmp_path)
  assert 'Searched with seed 77' in text
  assert 'perhaps undertuned: pt at k32 (0.3).' in text
  assert '| k32, mpt | 0.1 / 0.2 | 45.5 | 50.0 | 41.0 | chosen |' in text
  assert '| k32, mpt | 0.3 / 0.2 | 45.5 | 50.0 | 41.0 |  |' in text


def test_missing_result_is_named(tmp_path):
  fake = Fake(tmp_path).fill()
  (tmp_path / 'seed1/source/mpt/step.json').unlink()
  with pytest.raises(InputError, match='seed1/source/mpt/step.json'):
    fake.write()


@pytest.mark.parametrize(
  ('values', 'expected'),
  [
    ({'f1': 70.0, 'accuracy': 80.0}, ('accuracy', 80.0)),
    ({'em': 60.0, 'f1': 70.0}, ('f1', 70.0)),
    (
      {'spearman_corrcoef': 3.0, 'pearson_corrcoef': 4.0},
      ('pearson_corrcoef', 4.0),
    ),
    ({'matthews_corrcoef': None}, ('matthews_corrcoef', 0.0)),
    ({'bleu': 12.0}, ('bleu', 12.0)),
    ({'accuracy': math.nan}, ('accuracy', 0.0)),
  ],
)
def test_main_score(values, expected):
  assert stats.main_score(values) == expected


def test_similarity_is_of_composed_prompts(tmp_path):
  written = Fake(tmp_path).fill().write()
  similarity = copy.deepcopy(written['similarity'])
  assert similarity['tasks'] == [*SOURCES, *TARGETS]
  assert similarity['setting'] == 'full'
  cosine = np.array(similarity['cosine'])
  np.testing.assert_allclose(np.diag(cosine), 1.0, atol=1e-4)
  np.testing.assert_allclose(cosine, cosine.T)
