r"""Ranks a library's tasks by how near they are to another one, and starts it.

  python -m mpt_jax.transfer retrieve --gin.LIBRARY="'library'" \
    --gin.TARGET_KEY="'runs/rte/key'" --gin.MODEL_DIR="'nearest'" \
    --gin.START="'weighted'" --gin.K=3

The key of a task is its prompt after few steps (KEY_STEP of training). Here
the target's is compared with those of the library by each of METRICS; the
first one decides. MODEL_DIR gets `retrieve.json` (every number; of several
runs the mean and spread over all pairs), `retrieve.png` and, by START,

  'best'      starts/1 … starts/K: the K nearest prompts; train from each, and
              take the best by the validation split
  'weighted'  starts/weighted: their mean, weighted by similarity
  'mixture'   the command that trains one prompt on the data of their tasks
              and the target's, in proportion to size; start from its product

and beside them the controls that a retrieval must beat: starts/fixed (the one
task FIXED for every target) and starts/average (the mean of all). The oracle
is the best of all sources: START = 'best' with K = None.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import logging
import os
import re
from typing import Any

from mpt_jax import analysis, methods
from mpt_jax.checkpoints import files, lock
from mpt_jax.checkpoints.backbone import Backbone
from mpt_jax.checkpoints.bundle import PromptBundle
from mpt_jax.engine import predictor
from mpt_jax.engine.face import face
from mpt_jax.engine.settings import BackboneSource
from mpt_jax.transfer import library as library_lib
from mpt_jax.transfer import ranking, records, retrieval, shelf, sources
from mpt_jax.transfer.ranking import Ranking
from mpt_jax.types import InputError, Names, Positive, nearest, require_local

log = logging.getLogger(__name__)

BEST, WEIGHTED, MIXTURE = 'best', 'weighted', 'mixture'
STARTS = (BEST, WEIGHTED, MIXTURE)
FIXED, AVERAGE = 'fixed', 'average'
RESULTS, PLOT, FOLDER = 'retrieve.json', 'retrieve.png', 'starts'
_MEANING = (
  "similarity of the target's keys to each source's, the mean over all pairs"
  ' of runs; average: cosine of the means of the prompt vectors; per_token:'
  ' mean of the cosines of all pairs of vectors (its own with itself is not 1);'
  ' on: overlap of active neurons in all layers of the decoder'
)
# In the mixture no task counts for more examples.
_CAP = 2**19


def retrieve(
  *,
  library: str,
  target_key: Any,
  model_dir: str,
  backbone: BackboneSource | Backbone | str | None = None,
  tasks: Names | None = None,
  metrics: Names = ('average', 'per_token'),
  k: Positive | None = 3,
  start: str | None = BEST,
  negative: str = 'refuse',
  fixed: str | None = 'mnli',
) -> list[Ranking]:
  """Ranks the prompts of a library for a target, and writes its starts.

  Args:
    library: the folder.
    target_key: the target's key: a bundle's path, or several, of its runs.
    model_dir: folder to write.
    backbone: that of the prompts; only the metric 'on' reads it.
    tasks: tasks of the library to compare; None is all but the target's own.
    metrics: by what; the first one decides. See `ranking.compare`.
    k: how many of the nearest; None is all.
    start: 'best', 'weighted' or 'mixture'; None writes no start.
    negative: what becomes of similarities below 0 in a weighted start:
      'refuse', 'clip' or 'keep', see `retrieval.weights`.
    fixed: the task that is the control; None is none.

  Returns:
    A ranking for each metric.

  Raises:
    InputError: if something cannot be read or compared, or a similarity below
      0 is refused.
  """
  folder, path = require_local(model_dir), require_local(library)
  if start is not None and start not in STARTS:
    raise InputError(
      f'START = {start!r}, expected one of {", ".join(STARTS)}'
      f'{nearest(str(start), STARTS)}'
    )
  library_lib.open_library(path)
  wanted = [metrics] if isinstance(metrics, str) else metrics
  loaded = None
  if ranking.ON in wanted and getattr(backbone, 'path', backbone) is not None:
    loaded = predictor.load_backbone(backbone)
  targets = sources.read(target_key, loaded)
  names = {target.task for target in targets}
  if len(names) > 1:
    raise InputError(
      f'TARGET_KEY = {target_key!r} is of {", ".join(sorted(names))}: give the'
      ' keys of one task'
    )
  [target] = names
  keys = ranking.source_keys(path, loaded, tasks, names)
  _check_backbone(keys, targets)
  ranking.warn_of_steps(keys, targets)
  found = [ranking.compare(keys, targets, m, loaded) for m in wanted]
  if k is not None and k > len(keys):
    raise InputError(f'K = {k}, and there are {len(keys)} source prompts')
  chosen = _Chosen(path, folder, found[0], target, k, negative)
  made = chosen.make(start, fixed)
  settings = {
    'METRICS': list(wanted),
    'K': k,
    'START': start,
    'NEGATIVE': negative,
    'FIXED': fixed,
    **{f'key of {key.name}': key.digest for key in keys},
    'key of the target': [key.digest for key in targets],
  }
  with lock.hold(folder):
    if records.begin(folder, 'retrieve', settings) is None:
      face().keep_log(folder)
      content = {'target': target, 'library': path, **_facts(keys, targets)}
      _write(folder, found, made, content)
    else:
      log.info('%s is finished; nothing to do', folder)
  print('\n'.join([table(found), *made.facts['told']]))
  return found


def _write(
  folder: str,
  found: Sequence[Ranking],
  made: 'Made',
  content: Mapping[str, Any],
) -> None:
  """Writes the starts, and then what says that they are there."""
  metrics = {
    one.metric: {
      'tasks': [row.as_json() for row in one.tasks],
      'prompts': [row.as_json() for row in one.prompts],
    }
    for one in found
  }
  content = {'version': 1, **content, 'metrics': metrics, **made.facts}
  for name, bundle in made.bundles.items():
    bundle.save(os.path.join(folder, FOLDER, name))
  for name, text in made.files.items():
    files.write_file(os.path.join(folder, name), text.encode())
  picture = analysis.png(plot(found, content['target']))
  files.write_file(os.path.join(folder, PLOT), picture)
  files.write_file(os.path.join(folder, RESULTS), files.json_bytes(content))


def _facts(
  keys: Sequence[sources.SourcePrompt], targets: Sequence[sources.SourcePrompt]
) -> dict[str, Any]:
  """What must be read beside the numbers."""
  return {
    'backbone': {
      'name': targets[0].backbone_name,
      'fingerprint': targets[0].backbone_fingerprint,
    },
    'key_steps': {
      'target': sorted({t.step for t in targets}),
      'sources': sorted({key.step for key in keys}),
    },
    'meaning': _MEANING,
  }


def _check_backbone(
  keys: Sequence[sources.SourcePrompt], targets: Sequence[sources.SourcePrompt]
) -> None:
  """Refuses a target of another backbone than the library's."""
  for target in targets:
    for field in ('backbone_fingerprint', 'vocabulary_digest'):
      ours, theirs = getattr(target, field), getattr(keys[0], field)
      if ours and theirs and ours != theirs:
        raise InputError(
          f"the target's key is of the {field.replace('_', ' ')} {ours}, and"
          f' the library of {theirs}: prompts of two backbones cannot be'
          ' compared'
        )


# ---------------------------------------------------------------------------
# What the target starts from.


@dataclasses.dataclass(frozen=True)
class Made:
  """Starts of a target.

  Attributes:
    bundles: name below `starts/` -> prompt to start from.
    files: name -> text of what else is written.
    facts: what `retrieve.json` says of them.
  """

  bundles: Mapping[str, PromptBundle]
  files: Mapping[str, str]
  facts: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class _Chosen:
  """The nearest prompts of a library.

  Attributes:
    library: the folder.
    folder: where the starts will be.
    ranking: what decides.
    target: the task.
    k: how many; None is all.
    negative: see `retrieval.weights`.
  """

  library: str
  folder: str
  ranking: Ranking
  target: str
  k: int | None
  negative: str

  def make(self, start: str | None, fixed: str | None) -> Made:
    """Makes the starts that are asked for, and those of the controls."""
    values = {item.name: item for item in shelf.read(self.library)}
    rows = self.ranking.prompts
    nearest = [row.name for row in rows[: self.k]]
    bundles: dict[str, PromptBundle] = {}
    facts: dict[str, Any] = {'nearest': nearest}
    written: dict[str, str] = {}
    lines = []
    if start == BEST:
      for number, name in enumerate(nearest, 1):
        bundles[str(number)] = values[name].bundle
        lines.append(f'start {number}: {name}')
    elif start == WEIGHTED:
      shares = self.ranking.weights(self.k, self.negative)
      facts['weights'] = shares
      bundles[WEIGHTED] = mean_of(
        [values[name].bundle for name in shares], list(shares.values())
      )
      told = ', '.join(f'{n} {share:.3f}' for n, share in shares.items())
      lines.append(f'weighted start: {told}')
      lines += _negative(self.ranking, nearest, self.negative)
    elif start == MIXTURE:
      tasks = list(dict.fromkeys(row.task for row in rows[: self.k]))
      name, text, command = _mixture(tasks, self.target)
      written[name] = text
      facts['mixture'] = [*tasks, self.target]
      facts['command'] = command.format(folder=self.folder)
      lines.append(f'one prompt of their data: {facts["command"]}')
    alike = [values[row.name].bundle for row in rows]
    bundles[AVERAGE] = mean_of(alike, [1 / len(alike)] * len(alike))
    of_fixed = [row.name for row in rows if row.task == fixed]
    if of_fixed:
      bundles[FIXED] = values[sorted(of_fixed)[0]].bundle
    elif fixed is not None:
      log.info('no control %r: the library has no such source', fixed)
    facts['controls'] = {
      FIXED: sorted(of_fixed)[0] if of_fixed else None,
      AVERAGE: len(alike),
    }
    facts['starts'] = list(bundles)
    return Made(bundles, written, {**facts, 'told': lines})


def mean_of(
  bundles: Sequence[PromptBundle], shares: Sequence[float]
) -> PromptBundle:
  """Returns the weighted mean of the prompts of N bundles of one task each.

  Args:
    bundles: the prompts.
    shares: [N], see `retrieval.weights`.

  Returns:
    A bundle of the first one's kind; its task is called 'mean'.
  """
  arrays = {
    'prompt': retrieval.weighted_prompt([b.table[0] for b in bundles], shares)
  }
  return dataclasses.replace(
    bundles[0],
    method=methods.holding(set(arrays)).name,
    task_names=('mean',),
    arrays=arrays,
    metrics={},
    texts={},
    settings={},
  )


def _negative(
  found: Ranking, nearest: Sequence[str], negative: str
) -> list[str]:
  """Says which similarities below 0 are in a weighted start."""
  below = [
    f'{row.name} {row.similarity:.3f}'
    for row in found.prompts
    if row.name in nearest and row.similarity < 0
  ]
  if not below:
    return []
  became = {
    'clip': 'they count as 0',
    'keep': 'their shares are below 0',
  }
  return [f'similarities below 0: {", ".join(below)}; {became[negative]}']


def _mixture(tasks: Sequence[str], target: str) -> tuple[str, str, str]:
  """One prompt on the data of several tasks (SPoT, section 3.3).

  Args:
    tasks: the nearest ones.
    target: the task that starts from it.

  Returns:
    The name of a Python file, its text, which registers a mixture in
    proportion to size, and the command that trains on it.
  """
  name = 'mixture_' + re.sub(r'\W', '_', target)
  names = [*tasks, target]
  text = (
    f'"""The data of {target} and what is near, in proportion to size."""\n'
    'import functools\n\nimport seqio\n\n'
    'import tasks  # noqa: F401 - Or the module that registers yours.\n\n'
    'seqio.MixtureRegistry.add(\n'
    f'  {name!r},\n  {names!r},\n'
    '  default_rate=functools.partial(\n'
    f'    seqio.mixing_rate_num_examples, maximum={_CAP}\n  ),\n)\n'
  )
  command = (
    'PYTHONPATH={folder} python -m mpt_jax.train'
    ' --gin_file=gin_configs/runs/source.gin'
    f' --gin.MIXTURE_OR_TASK_MODULE="{name!r}"'
    f' --gin.MIXTURE_OR_TASK_NAME="{name!r}" --gin.PROMPT_TASKS="{names!r}"'
    ' --gin.PROMPT_METHOD="\'soft\'" --gin.DISTILLATION=None'
    ' --gin.TEACHER_PROMPTS=None --gin.TASK_SAMPLING="\'proportional\'"'
    ' --gin.INITIAL_CHECKPOINT_PATH=… --gin.MODEL_DIR=…'
  )
  return f'{name}.py', text, command


# ---------------------------------------------------------------------------
# To look at.


def table(found: Sequence[Ranking]) -> str:
  """A line for each prompt, the nearest first, with all metrics."""
  first, *others = found
  ranks = [{row.name: row for row in one.prompts} for one in found]
  lines = [['rank', 'source', *(one.metric for one in found)]]
  for row in first.prompts:
    cells = [str(row.rank), row.name]
    for rows in ranks:
      other = rows[row.name]
      spread = '' if other.std is None else f' ± {other.std:.4f}'
      place = '' if rows is ranks[0] else f' ({other.rank})'
      cells.append(f'{other.similarity:.4f}{spread}{place}')
    lines.append(cells)
  if len(first.tasks) < len(first.prompts):
    lines.append(['', 'of all runs', *('' for _ in found)])
    for row in first.tasks:
      spread = '' if row.std is None else f' ± {row.std:.4f}'
      means = [
        next(r for r in one.tasks if r.name == row.name) for one in others
      ]
      lines.append(
        [
          str(row.rank),
          row.name,
          f'{row.similarity:.4f}{spread}',
          *(f'{r.similarity:.4f} ({r.rank})' for r in means),
        ]
      )
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return '\n'.join(
    '  '.join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
    for line in lines
  )


def plot(found: Sequence[Ranking], target: str) -> Any:
  """Draws each task's similarity, a group of bars for each metric."""
  order = [row.name for row in found[0].tasks]
  figure, axes = analysis.figure(2 + 0.6 * len(order), 3.2, len(found))
  for one, ax in zip(found, axes if len(found) > 1 else [axes], strict=True):
    rows = {row.name: row for row in one.tasks}
    ax.bar(
      order,
      [rows[name].similarity for name in order],
      yerr=[rows[name].std or 0.0 for name in order],
      color='tab:blue',
      capsize=3,
    )
    ax.axhline(0, color='black', linewidth=0.8)
    ax.set_title(f'{target}: {one.metric}', fontsize=9)
    ax.tick_params(axis='x', rotation=60)
    ax.set_ylabel('similarity')
  return figure
