"""What learned prompts look like: similarity, nearest words, norms, pictures.

Prompts are given as a `PromptBundle`, a path that `load_prompts` reads, an
array [P, D] or [K, P, D], a list of these, or a dictionary with names for
them. Numbers are float64; a `plot_…` returns a matplotlib `Figure`.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import io
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from mpt_jax.checkpoints.backbone import Backbone, load_backbone
from mpt_jax.checkpoints.bundle import (
  PromptBundle,
  check_backbone,
  load_prompts,
)
from mpt_jax.engine import metrics
from mpt_jax.transfer import retrieval
from mpt_jax.types import InputError, nearest

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

Prompts = Any
KINDS = ('mean', 'vectors', 'whole')
# The middle half of a vocabulary's norms and nearly all of them.
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def tables(prompts: Prompts) -> dict[str, np.ndarray]:
  """Returns prompts by name: a bundle's tasks, a file's name, 'prompt'.

  Args:
    prompts: see the module. A name given in a dictionary stands before a
      bundle's tasks if it has several ('source/mnli').

  Returns:
    Name -> [P, D] float64. Of equal names the later ones get a number
    ('rte', 'rte 2').

  Raises:
    InputError: if something is no prompt, or there is none.
  """
  found: dict[str, np.ndarray] = {}
  for name, table in _pairs(prompts):
    number, free = 2, name
    while free in found:
      number, free = number + 1, f'{name} {number}'
    found[free] = table
  if not found:
    raise InputError('there are no prompts to look at')
  return found


def _pairs(prompts: Prompts) -> list[tuple[str, np.ndarray]]:
  if isinstance(prompts, Mapping):
    pairs = []
    for name, value in prompts.items():
      inner = _pairs(value)
      several = len(inner) > 1
      pairs += [(f'{name}/{n}' if several else str(name), t) for n, t in inner]
    return pairs
  if isinstance(prompts, str | os.PathLike):
    prompts = load_prompts(os.fspath(prompts))
  if isinstance(prompts, PromptBundle):
    table = np.asarray(prompts.table, np.float64)
    return list(zip(prompts.task_names, table, strict=True))
  if isinstance(prompts, list | tuple) and not _are_numbers(prompts):
    return [pair for value in prompts for pair in _pairs(value)]
  try:
    array = np.asarray(prompts, np.float64)
  except (TypeError, ValueError) as e:
    raise InputError(
      f'{type(prompts).__name__} is no prompt: give a bundle, a path or an'
      ' array [P, D]'
    ) from e
  if array.ndim not in (2, 3) or not array.size:
    raise InputError(
      f'an array of shape {array.shape} is no prompt: expected [P, D], or'
      ' [K, P, D]'
    )
  if not np.isfinite(array).all():
    raise InputError('the prompt holds NaN or infinity')
  return [('prompt', table) for table in array.reshape(-1, *array.shape[-2:])]


def _are_numbers(values: Any) -> bool:
  while isinstance(values, list | tuple) and values:
    values = values[0]
  return isinstance(values, int | float)


def similarity(prompts: Prompts, kind: str = 'mean') -> np.ndarray:
  """Returns how alike prompts are, as cosines.

  Args:
    prompts: N of them, see the module; their names are those of `tables`.
    kind: 'mean' (of the means of their P vectors), 'vectors' (the mean over
      all pairs of one's vectors and the other's) or 'whole' (of all P * D
      numbers, position by position).

  Returns:
    [N, N] float64, symmetric. A vector of zeros is like nothing: 0.

  Raises:
    InputError: if the prompts are of different width, or of different length
      and `kind` is 'whole'.
  """
  if kind not in KINDS:
    raise InputError(
      f'kind is {kind!r}, expected one of {", ".join(KINDS)}'
      f'{nearest(str(kind), KINDS)}'
    )
  rows = list(tables(prompts).values())
  shapes = {row.shape if kind == 'whole' else row.shape[1] for row in rows}
  if len(shapes) > 1:
    said = ' and '.join(map(str, sorted(shapes)))
    what = 'shapes' if kind == 'whole' else 'widths'
    raise InputError(f'prompts of {what} {said} cannot be compared')
  if kind == 'whole':
    units = retrieval.units(np.stack([row.ravel() for row in rows]))
  else:
    metric = 'average' if kind == 'mean' else 'per_token'
    units = np.stack([retrieval.features(row, metric) for row in rows])
  return units @ units.T


@dataclasses.dataclass(frozen=True, eq=False)
class NearestWords:
  """The vocabulary's words next to each vector of a prompt, nearest first.

  Attributes:
    words: P lists of k texts.
    ids: [P, k] the words' ids, as the tokenizer gives them.
    cosine: [P, k] cosine of the vector and the word's embedding.
    distance: [P, k] Euclidean distance of the two.
  """

  words: list[list[str]]
  ids: np.ndarray
  cosine: np.ndarray
  distance: np.ndarray

  def __str__(self) -> str:
    """A line for each vector."""
    return '\n'.join(
      f'{place}: '
      + ', '.join(
        f'{word!r} {cosine:.2f}'
        for word, cosine in zip(words, cosines, strict=True)
      )
      for place, (words, cosines) in enumerate(
        zip(self.words, self.cosine, strict=True), 1
      )
    )


def nearest_words(
  prompts: Prompts,
  backbone: Any,
  task: str | None = None,
  k: int = 5,
  by: str = 'cosine',
) -> NearestWords:
  """Returns the words whose embeddings lie next to a prompt's vectors.

  Args:
    prompts: one prompt, or several with `task`.
    backbone: a `Backbone`, a `PromptedT5`, or the path of a backbone.
    task: the name (as in `tables`) of the prompt.
    k: how many words.
    by: 'cosine' or 'distance' decides what is near.

  Raises:
    InputError: if the prompts are of another backbone, there is no such task
      or the backbone has no vocabulary.
  """
  if by not in ('cosine', 'distance'):
    raise InputError(f"by is {by!r}, expected 'cosine' or 'distance'")
  backbone = _load(backbone)
  if isinstance(prompts, str | os.PathLike):
    prompts = load_prompts(os.fspath(prompts))
  if isinstance(prompts, PromptBundle):
    check_backbone(prompts, backbone)
  vectors = _one(tables(prompts), task)
  tokenizer = backbone.vocabulary
  if tokenizer is None:
    raise InputError(
      f'the backbone {backbone.name} has no vocabulary to find words in'
    )
  # Rows behind the vocabulary stand for nothing, and row 0 is padding.
  embedding = _embedding(backbone)[1 : tokenizer.size]
  if vectors.shape[1] != embedding.shape[1]:
    raise InputError(
      f'the prompt is {vectors.shape[1]} wide, the backbone {backbone.name}'
      f' {embedding.shape[1]}'
    )
  if not 1 <= k <= len(embedding):
    raise InputError(f'k is {k}, expected 1 to {len(embedding)}')
  cosine = retrieval.units(vectors) @ retrieval.units(embedding).T
  squares = (embedding**2).sum(1) - 2 * vectors @ embedding.T
  squares += (vectors**2).sum(1)[:, None]
  distance = np.sqrt(np.maximum(squares, 0))
  order = np.argsort(-cosine if by == 'cosine' else distance, kind='stable')
  order = order[:, :k]
  ids = np.array([backbone.special_ids.swap(row + 1) for row in order])
  return NearestWords(
    words=[[tokenizer.id_to_piece(int(i)) for i in row] for row in ids],
    ids=ids,
    cosine=np.take_along_axis(cosine, order, 1),
    distance=np.take_along_axis(distance, order, 1),
  )


def _one(named: Mapping[str, np.ndarray], name: str | None) -> np.ndarray:
  if name is None and len(named) > 1:
    raise InputError(f'say whose prompt: task is one of {", ".join(named)}')
  if name is not None and name not in named:
    raise InputError(
      f'there is no prompt {name!r}; there are {", ".join(named)}'
      f'{nearest(name, named)}'
    )
  return next(iter(named.values())) if name is None else named[name]


def _load(backbone: Any) -> Backbone:
  """A backbone with its vocabulary, of whatever has one."""
  if isinstance(backbone, str | os.PathLike):
    backbone = load_backbone(os.fspath(backbone))
  backbone = getattr(backbone, 'backbone', backbone)
  return backbone if backbone.vocabulary else backbone.with_vocabulary()


def _embedding(backbone: Backbone) -> np.ndarray:
  return np.asarray(backbone.params['token_embedder']['embedding'], np.float64)


def norms(prompts: Prompts) -> dict[str, np.ndarray]:
  """Returns the length of every vector.

  Args:
    prompts: see the module.

  Returns:
    Name -> [P] float64.
  """
  return {
    name: np.linalg.norm(table, axis=1)
    for name, table in tables(prompts).items()
  }


def embedding_norms(
  backbone: Any, quantiles: Sequence[float] = QUANTILES
) -> dict[float, float]:
  """Returns how long the backbone's word embeddings are.

  Args:
    backbone: a `Backbone`, a `PromptedT5`, or the path of a backbone.
    quantiles: which; 0.5 is the median.

  Returns:
    Quantile -> length, over the words of the vocabulary without padding.
  """
  backbone = _load(backbone)
  rows = backbone.vocabulary.size if backbone.vocabulary else None
  lengths = np.linalg.norm(_embedding(backbone)[1:rows], axis=1)
  return {q: float(np.quantile(lengths, q)) for q in quantiles}


# ---------------------------------------------------------------------------


def figure(
  width: float, height: float, columns: int = 1, rows: int = 1
) -> tuple[Any, Any]:
  """Returns a figure and its axes, without pyplot: no state, no display.

  Args:
    width: in inches.
    height: in inches.
    columns: how many axes beside one another; of several a list is returned.
    rows: and below one another, row by row.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  made: Any = Figure(figsize=(width, height), layout='constrained')
  FigureCanvasAgg(made)
  # A notebook asks for it, and shows the picture.
  made._repr_png_ = lambda: png(made, dpi=80)
  count = columns * rows
  axes = [made.add_subplot(rows, columns, i + 1) for i in range(count)]
  return made, axes[0] if count == 1 else axes


def png(made: 'Figure', dpi: int = 110) -> bytes:
  """Returns a figure as a file; the same numbers give the same bytes."""
  buffer = io.BytesIO()
  # No version and no date.
  made.savefig(buffer, format='png', dpi=dpi, metadata={'Software': None})
  return buffer.getvalue()


def svg(made: 'Figure') -> bytes:
  """Returns a figure as vectors; the same numbers give the same bytes."""
  import matplotlib

  buffer = io.BytesIO()
  with matplotlib.rc_context({'svg.hashsalt': 'mpt_jax'}):
    made.savefig(buffer, format='svg', metadata={'Date': None, 'Creator': None})
  return buffer.getvalue()


def plot_similarity(prompts: Prompts, kind: str = 'mean') -> 'Figure':
  """Draws `similarity`; arguments as there."""
  return plot_matrix(similarity(prompts, kind), list(tables(prompts)))


def plot_matrix(
  cosine: Any,
  names: Sequence[str],
  title: str = 'Composed task prompts',
  label: str = 'cosine',
  spread: bool = False,
) -> 'Figure':
  """Draws cosines that have been computed, or other similarities.

  Args:
    cosine: [N, N].
    names: N of them.
    title: what stands above.
    label: what the numbers are.
    spread: whether they are tiny, or all alike: colours go from the least to
      the greatest off the diagonal in place of 0 to 1, and more digits are
      shown.
  """
  cosine = np.asarray(cosine)
  low, high, digits = min(0.0, cosine.min()), 1.0, 2
  others = cosine[~np.eye(len(cosine), dtype=bool)]
  if spread and len(others):
    low, high, digits = others.min(), others.max(), 4
  size = 2.2 + (0.6 if spread else 0.5) * len(names)
  made, axes = figure(size + 0.8, size)
  image = axes.imshow(cosine, vmin=low, vmax=high)
  axes.set_xticks(range(len(names)), names, rotation=45, ha='right')
  axes.set_yticks(range(len(names)), names)
  for (row, column), value in np.ndenumerate(cosine):
    axes.text(
      column,
      row,
      f'{value:.{digits}f}',
      ha='center',
      va='center',
      fontsize=7,
      color='black' if value > low + 0.6 * (high - low) else 'white',
    )
  made.colorbar(image, shrink=0.8, label=label)
  axes.set_title(title, fontsize=10)
  return made


def plot_norms(prompts: Prompts, backbone: Any = None) -> 'Figure':
  """Draws the length of every vector, beside those of the words.

  Args:
    prompts: see the module.
    backbone: whose words; None draws none.
  """
  made, axes = figure(6, 3.6)
  for name, lengths in norms(prompts).items():
    places = range(1, len(lengths) + 1)
    axes.plot(places, lengths, marker='.', linewidth=1, label=name)
  if backbone is not None:
    least, low, middle, high, most = embedding_norms(backbone).values()
    axes.axhspan(least, most, color='0.92', label='words: 5 to 95 %')
    axes.axhspan(low, high, color='0.82', label='words: 25 to 75 %')
    axes.axhline(middle, color='0.6', linewidth=1)
  axes.set_yscale('log')
  axes.set_xlabel('prompt vector')
  axes.set_ylabel('length')
  axes.legend(fontsize=7)
  return made


def plot_history(history: Any) -> 'Figure':
  """Draws what a run wrote as it went: its losses, and its scores.

  Args:
    history: `run.history`, a run that has one, or columns by the names of
      `metrics.jsonl`, with 'step'. A value that is None or NaN is none.

  Raises:
    InputError: if there is nothing to draw.
  """
  history = getattr(history, 'history', history)
  names = [n for n in history if n in ('train/loss', 'eval_loss/loss')]
  scores = [
    name
    for name in history
    if name.startswith('eval/') and metrics.is_score(name.rpartition('/')[2])
  ]
  panels = [
    (some, label)
    for some, label in ((names, 'loss'), (scores, 'score'))
    if some
  ]
  if not panels:
    raise InputError('the history holds neither a loss nor a score')
  made, axes = figure(4.5 * len(panels), 3.4, len(panels))
  for place, (some, label) in zip(np.ravel(axes), panels, strict=True):
    for name in some:
      _draw_column(place, history['step'], history[name], name)
    place.set_xlabel('step')
    place.set_ylabel(label)
    place.legend(fontsize=7)
  return made


def _draw_column(axes: 'Axes', steps: Any, values: Any, name: str) -> None:
  y = np.array([np.nan if v is None else v for v in values], np.float64)
  x = np.asarray(steps, np.float64)
  known = np.isfinite(y)
  label = name.removeprefix('eval/')
  axes.plot(x[known], y[known], marker='.', linewidth=1, label=label)
