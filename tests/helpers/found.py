"""What the verbs of transfer write, of tasks that nobody has trained."""

TASKS = {'rte': 'nli', 'cb': 'nli', 'mrpc': 'paraphrase'}
SEEDS = ('0', '1', '2')
BACKBONE = {'name': 'tiny', 'fingerprint': 'sha256:' + 'a1' * 32}


def matrix():
  kinds = [(f'{t}/{s}', t, 'value', s) for t in TASKS for s in SEEDS]
  kinds += [('random', '', 'random', '0'), ('P*', '', 'shared', '')]
  names = [
    {
      'name': name,
      'task': task,
      'category': TASKS.get(task, ''),
      'kind': kind,
      'run': run,
      'score': None,
      'step': 7,
      'digest': 'sha256:0',
    }
    for name, task, kind, run in kinds
  ]
  cells = [
    {
      'source': source['name'],
      'task': target,
      'score': 50.0 + 10 * i + (3 * int(source['run'] or 0)),
      'metric': 'accuracy',
      'examples': 64,
      'collapsed': source['kind'] == 'random',
      'interval': [40.0, 90.5],
      'relative': 100.0 + i,
      'gain': 0.25,
    }
    for source in names
    for i, target in enumerate(TASKS)
  ]
  return {
    'version': 1,
    'backbone': BACKBONE,
    'split': 'validation',
    'readout': 'labels',
    'synthetic': ['rte', 'cb'],
    'sources': names,
    'targets': [
      {
        'task': task,
        'category': category,
        'metric': 'accuracy',
        'examples': 64,
        'majority': 52.5,
        'own': 70.0,
      }
      for task, category in TASKS.items()
    ],
    'cells': cells,
    'means': [
      {
        'source': f'{task} (mean of 3)',
        'of': [f'{task}/{seed}' for seed in SEEDS],
        'task': target,
        'score': 53.0 + 10 * i,
        'std': 3.0,
        'runs': 3,
        'relative': 100.0 + i,
        'gain': 0.25,
        'collapsed': 0,
      }
      for task in TASKS
      for i, target in enumerate(TASKS)
    ],
    'groups': {
      name: {'relative': {'mean': 80.0, 'low': 75.5, 'high': 84.0, 'pairs': 2}}
      for name in ('same', 'other', 'difference')
    },
  }


def _rho(value, n):
  return {'rho': value, 'low': value - 0.2, 'high': value + 0.2, 'n': n}


def indicators():
  return {
    'version': 1,
    'backbone': BACKBONE,
    'same_start': False,
    'correlations': [
      {'name': name, 'per_target': _rho(0.43, 3), 'pooled': _rho(-0.1, 6)}
      for name in ('C_average', 'ON decoder 4-6')
    ],
  }


def _mean(value):
  return {'mean': value, 'low': value - 2, 'high': value + 2.5, 'n': 3}


def _ratio(value, left=0):
  low, high = (None, None) if value is None else (value / 2, value * 2)
  reached = 3 - left
  return {
    **{'mean': value, 'low': low, 'high': high},
    **{'reached': reached, 'not_reached': left},
  }


def speedup():
  return {
    'version': 1,
    'backbone': BACKBONE,
    'split': 'validation',
    'definitions': {'convergence': 'within half a point of the best'},
    'tasks': [
      {
        **{'task': 'rte', 'source': 'cb', 'setting': 'full'},
        **{'step0': _mean(60.0), 'scratch_step0': _mean(10.0)},
        **{'final': _mean(80.0), 'scratch_final': _mean(81.0)},
        **{'convergence': _ratio(2.0), 'comparable': _ratio(4.0, 1)},
      }
    ],
    'overall': {'convergence': _ratio(2.0), 'comparable': _ratio(None, 3)},
  }


def retrieve():
  tasks = [
    {'name': name, 'similarity': value, 'std': 0.012}
    for name, value in (('cb', 0.3), ('mrpc', -0.1))
  ]
  return {
    'version': 1,
    'backbone': BACKBONE,
    'target': 'rte',
    'metrics': {
      'average': {'tasks': tasks},
      'per_token': {'tasks': tasks[::-1]},
    },
  }


def project():
  made = {
    **{'goal': 'distance', 'form': 'flat', 'trained_on': ['rte'], 'seed': 0}
  }
  groups = {'rte': 'trained', 'cb': 'same category', 'mrpc': 'other'}
  over = {'mean': 71.5, 'se': 1.25, 'tasks': 4, 'seeds': 3}
  return {
    'version': 1,
    'source_backbone': {**BACKBONE, 'name': 'small'},
    'target_backbone': BACKBONE,
    'targets': [
      {'task': task, 'own': 90.0, 'majority': 50.0, 'examples': 64}
      for task in TASKS
    ],
    'rows': [
      {
        'projector': projector,
        'task': task,
        'group': None if projector == 'zero' else groups[task],
        'score': 77.0,
        'collapsed': False,
        'interval': [70.0, 81.0],
      }
      for projector in ('zero', made)
      for task in TASKS
    ],
    'groups': [
      {
        'trained_on': ['rte'],
        'projector': 'rte: distance, flat',
        'group': 'same category',
        'score': over,
        'gain': {**over, 'mean': 0.5},
      }
    ],
  }


PARTS = {
  'matrix': matrix,
  'indicators': indicators,
  'speedup': speedup,
  'retrieve': retrieve,
  'project': project,
}
