"""The folder of a finished study that no run has made."""

import functools
import io
import itertools
import json
import pathlib
import re

import numpy as np

from mpt_jax import analysis
from mpt_jax.checkpoints.bundle import PromptBundle
from mpt_jax.study import appendix, plots, report, results

P, D = 3, 5
SOURCES = 'mnli', 'sst2'
TARGETS = {'rte': 'mnli', 'cola': 'sst2'}
SETTINGS = {'k32': 32, 'full': None}
METRICS = {'cola': 'matthews_corrcoef'}


@functools.cache
def _picture(form):
  figure, _ = analysis.figure(1, 1)
  buffer = io.BytesIO()
  figure.savefig(buffer, format=form, dpi=10)
  return buffer.getvalue()


def save(draw, path):
  """In place of `plots.save`: drawing takes a second each time."""
  for name in (path, plots.vector(path)):
    pathlib.Path(name).write_bytes(_picture(name[-3:]))


class Fake:
  """Writes the folder of a finished pipeline."""

  def __init__(
    self,
    folder,
    seeds=(0, 1),
    synthetic=True,
    settings=SETTINGS,
    targets=TARGETS,
  ):
    self.folder, self.seeds, self.synthetic = folder, seeds, synthetic
    # Name -> number of examples; target task -> its hand-picked source.
    self.settings, self.targets = settings, targets
    # More for the plan.
    self.plan = {}
    # Name of a run -> more for its results.
    self.beside = {}
    self.steps = []
    self.tuning = []

  def run(self, name, scores, labels, curve=(), **beside):
    path = self.folder / name
    (path / 'test').mkdir(parents=True)
    place = '.' if labels['stage'] == 'zero_shot' else 'test'
    results = {'scores': scores, **beside, **self.beside.get(name, {})}
    (path / place / 'results.json').write_text(json.dumps(results))
    done = {'settings': {}, 'command': f'run {name}', 'seconds': 2.5}
    (path / 'step.json').write_text(json.dumps(done))
    lines = [json.dumps({'step': 1, 'train/loss': 2.0})]
    for step, value in curve:
      values = {f'eval/{t}/accuracy': value for t in SOURCES}
      lines.append(json.dumps({'step': step, **values}))
    (path / 'metrics.jsonl').write_text('\n'.join(lines))
    rng = np.random.default_rng(len(self.steps))
    method = labels.get('method', 'pt')
    names = tuple(scores)
    if method in ('mpt', 'no_distillation'):
      arrays = {
        'shared_prompt': rng.normal(size=(P, D)),
        'task_u': rng.normal(size=(len(names), P, 1)),
        'task_v': rng.normal(size=(len(names), 1, D)),
      }
      bundle = PromptBundle('multitask', 'source', names, arrays)
    else:
      arrays = {'prompt': rng.normal(size=(P, D))}
      bundle = PromptBundle('soft', 'teacher', names, arrays)
    bundle.save(str(path / 'prompts'))
    self.steps.append({'name': name, 'steps': 40, **labels})

  def fill(self, targets=None):
    """Scores that are easy to add up; MPT leads PT by 4 and 8 points."""

    def score(setting, method, task, seed):
      value = 60.0 + (4.0 * (1 + seed) if method == 'mpt' else 0.0)
      if targets is None:
        return value
      return targets(setting, method, task, seed, value)

    self.fill_sources()
    return self.fill_targets(('mpt', 'pt'), score)

  def fill_sources(self):
    """Teachers and source runs."""
    for seed in self.seeds:
      root = f'seed{seed}'
      for task, score in zip(SOURCES, (80.0, 90.0), strict=True):
        self.run(
          f'{root}/teacher/{task}',
          {task: {'accuracy': score + 2 * seed}},
          {'stage': 'teacher', 'seed': seed, 'task': task},
        )
      for variant, score in (
        ('mpt', 85.0),
        ('no_distillation', 84.0),
        ('shared_only', 70.0),
      ):
        early = {'mpt': 60.0, 'no_distillation': 55.0, 'shared_only': 50.0}
        self.run(
          f'{root}/source/{variant}',
          {t: {'accuracy': score + seed} for t in SOURCES},
          {'stage': 'source', 'seed': seed, 'method': variant},
          curve=[(4, early[variant]), (40, score)],
        )
    return self

  def fill_targets(self, methods, score):
    """Target runs.

    Args:
      methods: names of arms.
      score: (setting, method, task, seed) -> score.
    """
    for seed, setting, method, task in itertools.product(
      self.seeds, self.settings, methods, self.targets
    ):
      metric = METRICS.get(task, 'accuracy')
      labels = {'seed': seed, 'method': method, 'setting': setting}
      self.run(
        f'seed{seed}/target/{setting}/{method}/{task}',
        {task: {metric: score(setting, method, task, seed)}},
        {'stage': 'target', 'task': task, **labels},
      )
    return self

  def write(self, methods=('mpt', 'pt'), **changed):
    settings = [
      {
        'name': name,
        'num_shots': shots,
        'steps': 30,
        'batch_size': 16,
        'seeds': list(self.seeds),
        'tuned_as': None,
      }
      for name, shots in self.settings.items()
    ]
    rates = dict.fromkeys(methods, [0.3, None]) | {'mpt': [0.1, 0.2]}
    record = {
      'command': 'python -m mpt_jax.pipeline --gin_file=x.gin',
      'plan': {
        'backbone': str(self.folder / 'backbone'),
        'methods': list(methods),
        'variants': ['mpt', 'no_distillation', 'shared_only', 'neither'],
        'settings': settings,
        'seeds': list(self.seeds),
        'ablation_seeds': list(self.seeds),
        'targets': dict(self.targets),
        'prompt_rank': 1,
        'teacher': {'steps': 40},
        'source': {'steps': 40},
        'tuning': {'seed': 77, 'search': 'halving'} if self.tuning else None,
        **self.plan,
      },
      'rates': dict.fromkeys(self.settings, rates),
      'tuning': self.tuning,
      'data': {
        task: {'train': 100, 'test': 400, 'synthetic': self.synthetic}
        for task in (*SOURCES, *self.targets)
      },
      'backbone': {'name': 'tiny', 'parameters': 12_345},
      'device': 'cpu',
      'versions': {'jax': '1.2.3'},
      'seconds': 100.0,
      'steps': self.steps,
      **changed,
    }
    (self.folder / 'pipeline.json').write_text(json.dumps(record))
    return report.write(str(self.folder))


def untimed(folder):
  """File -> text of a report's files, without what holds times."""
  texts = {}
  for path in sorted(pathlib.Path(folder).rglob('*')):
    name = str(path.relative_to(folder))
    if path.suffix in ('.md', '.html', '.csv') and name != 'tables/costs.csv':
      text = path.read_text()
      for part in appendix.TIMED:
        text = re.sub(rf'(?ms)^## {part}$.*?(?=^## |\Z)', '', text)
        section = rf'(?s)<section id="{part.lower()}">.*?</section>'
        text = re.sub(section, '', text)
      texts[name] = text
  found = json.loads((pathlib.Path(folder) / report.JSON).read_text())
  timed = results.TIMED
  texts[report.JSON] = {k: v for k, v in found.items() if k not in timed}
  return texts
