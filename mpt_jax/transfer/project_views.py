"""What projectors score, as a table, a file of lines and a picture."""

from collections.abc import Iterable, Mapping, Sequence
import statistics
from typing import TYPE_CHECKING, Any

from mpt_jax import analysis
from mpt_jax.checkpoints import files
from mpt_jax.study import stats
from mpt_jax.transfer import records
from mpt_jax.transfer.matrix_views import as_csv, as_table, mean, text_of
from mpt_jax.transfer.sources import RANDOM, VALUE

if TYPE_CHECKING:
  from matplotlib.figure import Figure

Found = Mapping[str, Any]

TRAINED, SAME, OTHER = 'trained', 'same category', 'other'
GROUPS = TRAINED, SAME, OTHER
# What a projector would give that makes one prompt of all.
ALWAYS = 'always that of '
# A source prompt where it was learned.
NOT_MOVED = 'not moved'
_COLLAPSED = '†'
# What the numbers of `project.json` mean.
DEFINITIONS = {
  'score': "the target's main metric in percent, zero-shot: a task's source"
  ' prompt goes through the projector and is scored on that task',
  'own': "mean score of the target backbone's own prompts",
  'random': 'mean score of the random prompts',
  'relative': '100 * score / own',
  'gain': '(score - random) / (own - random)',
  'group': "of a projector's scores: 'trained' (the task is one that it was"
  " trained on), 'same category' as one of these, or 'other'",
  'always that of': "the target backbone's own prompt of a trained-on task, on"
  ' every task: what a projector has that makes one prompt of all. One that'
  ' transfers must beat it',
  'groups': 'mean over the tasks of a group, of the mean over seeds; se is over'
  ' tasks, seeds_std over the means of single seeds. What trains nothing is'
  ' given for the same tasks',
  'best step': 'of each run, by the mean validation score of what it was'
  ' trained on, which needs labels of those tasks alone',
}


class Projected:
  """What projectors score on which tasks.

  Attributes:
    record: all numbers, as `project.json` has them.
  """

  def __init__(self, record: Found):
    """Reads what the verb made, or `project.json` holds."""
    self.record = record

  def __repr__(self) -> str:
    return table(self.record)

  def plot(self) -> 'Figure':
    """Draws the gain by group."""
    return picture(self.record)

  def save(self, folder: str) -> None:
    """Writes all files.

    Args:
      folder: where to; made if it is not there.

    Raises:
      InputError: if it cannot be written.
    """
    contents = {
      'project.csv': lines(self.record),
      'project.png': analysis.png(self.plot()),
      # The last: where it is, all is there.
      'project.json': files.json_bytes(self.record),
    }
    records.write(folder, contents)


def group_of(
  task: str, trained_on: Sequence[str], category: Mapping[str, str]
) -> str:
  """Returns the group that a task is of, for a projector.

  Args:
    task: the task.
    trained_on: what the projector was trained on.
    category: task -> its category.
  """
  if task in trained_on:
    return TRAINED
  return SAME if category[task] in {category[t] for t in trained_on} else OTHER


def title(made: Any, seed: bool = False) -> str:
  """Returns what a row of the table is called."""
  if isinstance(made, str):
    return made
  name = f'{"+".join(made["trained_on"])}: {made["goal"]}, {made["form"]}'
  return f'{name}, seed {made["seed"]}' if seed else name


def groups(
  rows: Sequence[Found], trained_on: Sequence[Sequence[str]]
) -> list[dict[str, Any]]:
  """Returns means over the three groups, of projectors and what is free.

  Args:
    rows: the scores.
    trained_on: the tasks of each projector.
  """
  category = {row['task']: row['category'] for row in rows}
  found = []
  for tasks in map(list, trained_on):
    some: dict[tuple[str, str], list[Found]] = {}
    for row in rows:
      made = row['projector']
      if not _stands_beside(made, tasks):
        continue
      group = group_of(row['task'], tasks, category)
      some.setdefault((title(made), group), []).append(row)
    for (name, group), members in some.items():
      found.append(_mean_of(tasks, name, group, members))
  order = {group: i for i, group in enumerate(GROUPS)}
  return sorted(
    found, key=lambda g: (trained_on_key(g, trained_on), order[g['group']])
  )


def at_home(
  matrix: Found, trained_on: Sequence[Sequence[str]]
) -> list[dict[str, Any]]:
  """Returns the same means of the source prompts on their own backbone.

  Of the prompts of the tasks of a projector, the group is that of a target
  beside the prompt's own task. Random prompts have the targets' groups.

  Args:
    matrix: what `matrix.json` of the source backbone holds.
    trained_on: the tasks of each projector.
  """
  category = {
    target['task']: target['category'] for target in matrix['targets']
  }
  sources = {source['name']: source for source in matrix['sources']}
  found = []
  for tasks in map(list, trained_on):
    some: dict[tuple[str, str], list[Found]] = {}
    for cell in matrix['cells']:
      source, task = sources[cell['source']], cell['task']
      if source['kind'] == VALUE and source['task'] in tasks:
        name, own = NOT_MOVED, [source['task']]
      elif source['kind'] == RANDOM:
        name, own = f'random, {NOT_MOVED}', tasks
      else:
        continue
      group = group_of(task, own, category)
      row = {**cell, 'projector': name}
      some.setdefault((name, group), []).append(row)
    for name in dict.fromkeys(name for name, _ in some):
      found += [
        _mean_of(tasks, name, group, some[name, group])
        for group in GROUPS
        if (name, group) in some
      ]
  return found


def _mean_of(
  tasks: list[str], name: str, group: str, members: Sequence[Found]
) -> dict[str, Any]:
  """A group of `project.json`."""
  return {
    'trained_on': tasks,
    'projector': name,
    'group': group,
    **{what: _over(members, what) for what in ('score', 'gain')},
    'collapsed': sum(row['collapsed'] for row in members),
    'cells': len(members),
  }


def _stands_beside(made: Any, trained_on: Sequence[str]) -> bool:
  """Whether a row is told of with a projector."""
  if not isinstance(made, str):
    return list(made['trained_on']) == trained_on
  return not made.startswith(ALWAYS) or made[len(ALWAYS) :] in trained_on


def trained_on_key(group: Found, trained_on: Sequence[Sequence[str]]) -> int:
  """The place of a group's projector among all."""
  return [list(tasks) for tasks in trained_on].index(group['trained_on'])


def _over(rows: Sequence[Found], what: str) -> dict[str, Any] | None:
  """Mean over tasks of the means over seeds; None if nothing is defined."""
  by_task: dict[str, list[float]] = {}
  by_seed: dict[Any, list[float]] = {}
  for row in rows:
    value, made = row[what], row['projector']
    if value is not None:
      by_task.setdefault(row['task'], []).append(value)
      seed = row['source'] if isinstance(made, str) else made['seed']
      by_seed.setdefault(seed, []).append(value)
  if not by_task:
    return None
  values = [statistics.fmean(some) for some in by_task.values()]
  # A prompt of one task alone is no seed of all of them.
  seeds = [
    statistics.fmean(some)
    for some in by_seed.values()
    if len(some) == len(by_task)
  ]
  return {
    'mean': statistics.fmean(values),
    'se': stats.standard_error(values),
    'tasks': len(values),
    'seeds': max(len(seeds), 1),
    'seeds_std': statistics.stdev(seeds) if len(seeds) > 1 else None,
  }


def _by_title(rows: Iterable[Found]) -> dict[str, list[Found]]:
  found: dict[str, list[Found]] = {}
  for row in rows:
    found.setdefault(title(row['projector']), []).append(row)
  return found


def table(record: Found) -> str:
  """Returns the scores as text: what was trained on in brackets."""
  targets = record['targets']
  tasks = [target['task'] for target in targets]
  written = [['', *tasks]]
  written.append(['own prompt', *(text_of(t['own'], 'score') for t in targets)])
  for name, rows in _by_title(record['rows']).items():
    line = [name]
    for task in tasks:
      some = [row for row in rows if row['task'] == task]
      text = text_of(mean(row['score'] for row in some), 'score')
      text = f'[{text}]' if some and some[0]['group'] == TRAINED else text
      marked = any(row['collapsed'] for row in some)
      line.append(text + (_COLLAPSED if marked else ''))
    written.append(line)
  written.append(
    ['majority class', *(text_of(t['majority'], 'score') for t in targets)]
  )
  written.append(['metric', *(t['metric'] for t in targets)])
  written.append(['examples', *(str(t['examples']) for t in targets)])
  below = [
    f'[trained on]  {_COLLAPSED} collapsed: the answers are one class, or most'
    ' are none, of a run at least',
    *record['undefined'],
    '',
    'by group: mean score, share of the way from random to the own prompt',
    as_table(_group_lines(record['groups'])),
  ]
  if record['synthetic']:
    below.append('SYNTHETIC DATA: these scores say nothing about the real data')
  return '\n'.join([as_table(written), *below])


def _group_lines(found: Sequence[Found]) -> list[list[str]]:
  written = [['trained on', 'by', *GROUPS]]
  seen: dict[tuple[str, str], dict[str, str]] = {}
  for group in found:
    key = '+'.join(group['trained_on']), _short(group)
    score, gain = group['score'], group['gain']
    text = '-' if score is None else f'{score["mean"]:.1f}'
    text += '' if gain is None else f' ({gain["mean"]:.2f})'
    seen.setdefault(key, {})[group['group']] = text
  for (tasks, name), texts in seen.items():
    written.append([tasks, name, *(texts.get(g, '-') for g in GROUPS)])
  return written


def lines(record: Found) -> bytes:
  """Returns a line for each score; what is not defined is empty."""
  header = (
    *('trained_on', 'goal', 'form', 'seed', 'task', 'category', 'group'),
    *('metric', 'readout', 'examples', 'score', 'low', 'high', 'collapsed'),
    *('relative', 'gain'),
  )
  written: list[Sequence[Any]] = [header]
  for row in record['rows']:
    made = row['projector']
    of: list[Any] = ['', made, '', '']
    if not isinstance(made, str):
      of = ['+'.join(made['trained_on'])]
      of += [made[n] for n in ('goal', 'form', 'seed')]
    written.append(
      (
        *of,
        *(row['task'], row['category'], row['group'] or ''),
        *(row['metric'], row['readout'], row['examples'], row['score']),
        *(row['interval'] or (None, None)),
        *(int(row['collapsed']), row['relative'], row['gain']),
      )
    )
  return as_csv(written)


def picture(record: Found) -> 'Figure':
  """Draws the gain of each projector by group, one panel for each."""
  from matplotlib import colormaps

  by_tasks: dict[str, list[Found]] = {}
  for group in record['groups']:
    by_tasks.setdefault('+'.join(group['trained_on']), []).append(group)
  count = len(by_tasks)
  figure, panels = analysis.figure(1.6 + 3.4 * count, 4.6, count)
  # The same has one colour in all panels.
  labels = list(dict.fromkeys(_short(group) for group in record['groups']))
  shades = colormaps['tab20']
  colours = {name: shades(i % 20) for i, name in enumerate(labels)}
  for panel, (tasks, found) in zip(
    [panels] if count == 1 else panels, by_tasks.items(), strict=True
  ):
    names = list(dict.fromkeys(map(_short, found)))
    for i, name in enumerate(names):
      at, gains, errors = [], [], []
      for group in found:
        if _short(group) == name and group['gain'] is not None:
          place = GROUPS.index(group['group'])
          at.append(place + 0.8 * (i + 0.5) / len(names) - 0.4)
          gains.append(group['gain']['mean'])
          errors.append(group['gain']['se'] or 0.0)
      panel.bar(
        *(at, gains, 0.8 / len(names)),
        yerr=errors,
        label=name,
        color=colours[name],
        error_kw={'elinewidth': 0.8},
      )
    panel.set_xticks(range(len(GROUPS)), GROUPS, fontsize=8)
    panel.axhline(0, color='black', linewidth=0.8)
    panel.axhline(1, color='0.6', linewidth=0.8, linestyle='--')
    panel.set_title(f'trained on {tasks}', fontsize=9)
    panel.set_ylabel('(score - random) / (own - random)', fontsize=8)
    below = 0.5, -0.08
    panel.legend(fontsize=6, ncols=2, loc='upper center', bbox_to_anchor=below)
  return figure


def _short(group: Found) -> str:
  """A projector's name without what it was trained on."""
  name: str = group['projector']
  return name.partition(': ')[2] or name
