r"""How alike prompts are, in themselves and in what they do; and what for.

  python -m mpt_jax.transfer indicators \
    --gin.INITIAL_CHECKPOINT_PATH="'demo'" --gin.PROMPTS="'library'" \
    --gin.MATRIX="'runs/matrix'" --gin.MODEL_DIR="'runs/indicators'"

Compares all pairs of prompts as vectors (with and without what they started
from) and by the neurons that they switch on in their backbone, and, given a
transfer matrix, tells which of that goes along with the scores. Writes
`indicators.json`, `indicators.csv`, heatmaps and, with a matrix, scatter plots.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import logging
from typing import Any

import numpy as np

from mpt_jax import analysis
from mpt_jax.checkpoints import files, lock
from mpt_jax.checkpoints.backbone import Backbone
from mpt_jax.engine import predictor
from mpt_jax.engine.face import face
from mpt_jax.engine.settings import BackboneSource, Devices
from mpt_jax.transfer import (
  correlation,
  indicator_tables,
  records,
)
from mpt_jax.transfer.categories import ordered
from mpt_jax.transfer.neurons import (
  Window,
  activations,
  jaccard,
  on,
  overlap,
  raw_cosine,
  sentinel_id,
  windows,
)
from mpt_jax.transfer.sources import (
  KEY,
  VALUE,
  SourcePrompt,
  read,
  table_of,
)
from mpt_jax.types import (
  InputError,
  Positive,
  check_least,
  require_local,
)

__all__ = [
  'Indicator',
  'indicators',
  'measure',
  'overlap',
  'similarities',
  'starts_of',
]

log = logging.getLogger(__name__)

SIMILARITIES = ('E_concat', 'E_average', 'C_concat', 'C_average', 'C_mean')
_EUCLIDEAN = ('E_concat', 'E_average')
_COSINES = {'C_concat': 'whole', 'C_average': 'vectors', 'C_mean': 'mean'}
# What the numbers of `indicators.json` are, for who reads only that.
MEANINGS: Mapping[str, str] = {
  'E_concat': '1 / (1 + |A - B|) of the prompts as one vector each',
  'E_average': '1 / (1 + mean distance of all pairs of vectors)',
  'C_concat': 'cosine of the prompts as one vector each',
  'C_average': 'mean cosine of all pairs of vectors',
  'C_mean': 'cosine of the means of the vectors',
  'ON': 'of the neurons above 0, |A and B| / sqrt(|A| |B|)',
  'jaccard': 'of the neurons above 0, |A and B| / |A or B|',
  'raw_cosine': 'cosine of the activations of a layer, mean over a window',
  'minus_start': 'of what training added to each start',
  'window': 'layers, [first, behind the last]',
  'side': 'decoder: at the start token; encoder: at the token behind a prompt',
  'same_start': 'whether the trained prompts of a run began alike; if not,'
  ' E_concat and C_concat mean nothing (minus_start apart)',
  'groups': 'means over pairs of tasks of one category, and of two',
  'per_target': "mean over targets of Spearman's rho with score / own over the"
  " sources, without the target's own prompt; n targets have a rho",
  'pooled': "Spearman's rho over all n pairs of source and target, without the"
  ' own prompts',
  'runs': 'of tasks with several runs: similarities are means over pairs of'
  ' runs (of the same run, if both have it), scores over the runs',
  'interval': f'low, high: {correlation.RESAMPLED}; null below three targets',
  'pooled_gain': 'the same with (score - random) / (own - random) in place of'
  ' score / own; per target that is the same',
}


def similarities(
  prompts: Sequence[SourcePrompt], minus_start: bool = False
) -> dict[str, np.ndarray]:
  """Returns how alike prompts are, as vectors.

  Su et al., "On Transferability of Prompt Tuning for Natural Language
  Processing", NAACL 2022; `C_mean` is the first metric of SPoT.
  Of prompts A and B with vectors a_i and b_j:

    E_concat   1 / (1 + |A - B|), A and B as one vector of P * D numbers each
    E_average  1 / (1 + mean over all pairs of |a_i - b_j|)
    C_concat   cos(A, B)
    C_average  mean over all pairs of cos(a_i, b_j)
    C_mean     cos(mean of a_i, mean of b_j)

  The averages of a prompt with itself are not 1. A cosine with zero is 0.

  Args:
    prompts: N of one shape.
    minus_start: compare what training added to each prompt's own start (task
      prompt vectors, arXiv 2408.01119).

  Returns:
    {name: [N, N] float64, symmetric}.

  Raises:
    InputError: if the shapes differ, or a start is not known.
  """
  table = np.asarray(table_of(prompts), np.float64)
  if minus_start:
    unknown = [prompt.name for prompt in prompts if prompt.start is None]
    if unknown:
      raise InputError(
        f'minus start: nobody knows what {", ".join(unknown)} started from; a'
        ' run with KEY_STEP keeps it'
      )
    table -= np.stack([np.asarray(p.start, np.float64) for p in prompts])
  named = {str(i): prompt for i, prompt in enumerate(table)}
  found = {name: _euclidean(table, name == 'E_average') for name in _EUCLIDEAN}
  for name, kind in _COSINES.items():
    found[name] = analysis.similarity(named, kind)
  return {name: found[name] for name in SIMILARITIES}


def _euclidean(table: np.ndarray, average: bool) -> np.ndarray:
  """Returns 1 / (1 + distance) of prompts [N, P, D], as [N, N] float64.

  Args:
    table: the prompts.
    average: whether the distance is the mean over all pairs of vectors.
  """
  # Imported here: it takes a while.
  from scipy.spatial import distance

  if not average:
    whole = table.reshape(len(table), -1)
    return 1 / (1 + distance.cdist(whole, whole))
  found = np.empty((len(table), len(table)))
  for i, one in enumerate(table):
    for j, other in enumerate(table[: i + 1]):
      mean = distance.cdist(one, other).mean()
      found[i, j] = found[j, i] = 1 / (1 + mean)
  return found


@dataclasses.dataclass(frozen=True, eq=False)
class Indicator:
  """One measure of all pairs of prompts.

  Attributes:
    indicator: a similarity, 'ON', 'jaccard' or 'raw_cosine'.
    values: [N, N] float64.
    minus_start: whether the prompts were compared without their starts.
    side: 'encoder' or 'decoder'; None of the prompts themselves.
    window: layers of it, (first, behind the last).
  """

  indicator: str
  values: np.ndarray
  minus_start: bool = False
  side: str | None = None
  window: Window | None = None

  @property
  def name(self) -> str:
    """'C_average minus start', 'ON decoder 0-3'."""
    words = [self.indicator, *(['minus start'] if self.minus_start else [])]
    if self.side and self.window:
      words += [self.side, '-'.join(map(str, self.window))]
    return ' '.join(words)


def measure(
  backbone: Backbone,
  prompts: Sequence[SourcePrompt],
  width: int = 3,
  **options: Any,
) -> list[Indicator]:
  """Returns every indicator of some prompts.

  Args:
    backbone: the prompts' own.
    prompts: N of one shape.
    width: of the windows of layers.
    **options: see `activations`.

  Returns:
    The similarities, without starts too if all are known, and what is said of
    neurons by windows of layers; `raw_cosine` is the mean over a window's.
  """
  found = [Indicator(n, v) for n, v in similarities(prompts).items()]
  if all(prompt.start is not None for prompt in prompts):
    without = similarities(prompts, minus_start=True)
    found += [Indicator(n, v, True) for n, v in without.items()]
  for side, states in activations(backbone, prompts, **options).items():
    cosines = raw_cosine(states)
    for window in windows(states.shape[1], width):
      for name, values in (
        ('ON', on(states, window)),
        ('jaccard', jaccard(states, window)),
        ('raw_cosine', cosines[slice(*window)].mean(0)),
      ):
        found.append(Indicator(name, values, side=side, window=window))
  return found


def starts_of(prompts: Sequence[SourcePrompt]) -> str:
  """'same', 'different' or 'unknown': what prompts of a run began with.

  Prompts of different runs may have different starts; they are compared within
  a run (`correlation.Pairs`).
  """
  trained = [prompt for prompt in prompts if prompt.kind in (VALUE, KEY)]
  if not trained or any(prompt.start is None for prompt in trained):
    return 'unknown'
  by_run: dict[str, set[bytes]] = {}
  for prompt in trained:
    start = np.asarray(prompt.start, np.float32)
    by_run.setdefault(prompt.run, set()).add(start.tobytes())
  return 'same' if all(len(s) == 1 for s in by_run.values()) else 'different'


def indicators(
  *,
  model_dir: str,
  backbone: BackboneSource | Backbone | str,
  prompts: str | Sequence[Any] | Mapping[str, Any],
  matrix: str | None = None,
  window: Positive = 3,
  sentinel: str | int | None = None,
  kind: str = 'pre',
  categories: Mapping[str, str] | None = None,
  devices: Devices = Devices(),
) -> dict[str, Any]:
  """Measures how alike prompts are, and how well that predicts transfer.

  Args:
    model_dir: folder for what is found.
    backbone: the prompts' own, or where it is read.
    prompts: see `sources.read`.
    matrix: `matrix.json` of the verb `matrix`, or its folder; None correlates
      with nothing.
    window: how many layers are looked at together.
    sentinel: the token behind a prompt, see `activations`.
    kind: whose signs make a neuron active, see `activations`.
    categories: {task: category}, over our own.
    devices: where to run.

  Returns:
    What `indicators.json` holds.

  Raises:
    InputError: if something given is wrong.
  """
  check_least(1, WINDOW=window)
  folder = require_local(model_dir)
  loaded = predictor.load_backbone(backbone)
  found = _ordered(read(prompts, loaded), categories)
  table_of(found)
  scores = None if matrix is None else correlation.load_matrix(matrix)
  pairs = None if scores is None else correlation.read_matrix(scores, found)
  settings = {
    'backbone': loaded.fingerprint,
    **{f'prompt {prompt.name}': prompt.digest for prompt in found},
    'MATRIX': None if scores is None else _digest(scores),
    'WINDOW': window,
    'SENTINEL': sentinel_id(loaded, sentinel),
    'ACTIVATIONS': kind,
    'CATEGORIES': dict(categories or {}),
  }
  with lock.hold(folder):
    if (done := records.begin(folder, 'indicators', settings)) is not None:
      log.info('%s: finished, nothing to do', folder)
      return done
    face().keep_log(folder)
    measured = measure(
      loaded, found, window, sentinel=sentinel, kind=kind, devices=devices
    )
    written = _as_json(loaded, found, measured, pairs, settings)
    pictures = indicator_tables.pictures(found, measured, pairs, categories)
    contents = {
      **pictures,
      'indicators.csv': indicator_tables.csv(found, measured, categories),
      'indicators.json': files.json_bytes(written),
    }
    records.write(folder, contents)
  indicator_tables.say(written)
  return written


def _ordered(
  prompts: Sequence[SourcePrompt], categories: Mapping[str, str] | None
) -> list[SourcePrompt]:
  """The prompts, those of a category side by side."""
  tasks = list(dict.fromkeys(prompt.task for prompt in prompts))
  places = {task: i for i, task in enumerate(ordered(tasks, categories))}
  return sorted(prompts, key=lambda prompt: places[prompt.task])


def _digest(content: Mapping[str, Any]) -> str:
  return f'sha256:{hashlib.sha256(files.json_bytes(content)).hexdigest()}'


def _as_json(
  backbone: Backbone,
  prompts: Sequence[SourcePrompt],
  measured: Sequence[Indicator],
  pairs: correlation.Pairs | None,
  settings: Mapping[str, Any],
) -> dict[str, Any]:
  """What `indicators.json` holds."""
  categories = settings['CATEGORIES']
  starts = starts_of(prompts)
  return {
    'version': 1,
    'backbone': {'name': backbone.name, 'fingerprint': backbone.fingerprint},
    'names': [prompt.name for prompt in prompts],
    'prompts': [
      {
        **{name: getattr(prompt, name) for name in _ABOUT},
        'digest': prompt.digest,
      }
      for prompt in prompts
    ],
    'starts': starts,
    'same_start': starts == 'same',
    'no_start': [p.name for p in prompts if p.start is None],
    'sentinel': settings['SENTINEL'],
    'activations': settings['ACTIVATIONS'],
    'indicators': [
      {
        **_about(each),
        'groups': indicator_tables.groups(prompts, each.values, categories),
      }
      for each in measured
    ],
    'similarities': {each.name: each.values.tolist() for each in measured},
    'means': dict(MEANINGS),
    'correlations': [
      {
        **_about(each),
        **correlation.correlate(
          similarity, pairs.performance['relative'], pairs.own
        ),
        'pooled_gain': correlation.correlate(
          similarity, pairs.performance['gain'], pairs.own
        )['pooled'],
      }
      for each in measured
      for similarity in [pairs.similarity(each.values)]
    ]
    if pairs
    else [],
    'correlated': {'sources': pairs.tasks, 'targets': pairs.targets}
    if pairs
    else None,
  }


_ABOUT = ('name', 'task', 'kind', 'run', 'step', 'score')


def _about(each: Indicator) -> dict[str, Any]:
  return {
    'name': each.name,
    'indicator': each.indicator + ' minus start' * each.minus_start,
    'minus_start': each.minus_start,
    'side': each.side,
    'window': list(each.window) if each.window else None,
  }
