"""How far a study's methods are ahead of each other, as parts of its report."""

from collections.abc import Iterable, Mapping
from typing import Any

from mpt_jax.study import arms, cells, stats
from mpt_jax.study.page import Block, Bullets, Heading, Table, Text


def behind(report: Mapping[str, Any], setting: str) -> list[Block]:
  """Where MPT loses, so that nobody has to look for it."""
  told: dict[tuple[str, str], dict[int | None, list[str]]] = {}
  for row in report['task_pairs']:
    if row['where'] == setting:
      words = f'{row["task"]} ({cells.signed(row["mean"])})'
      pair = told.setdefault((row['first'], row['second']), {})
      pair.setdefault(stats.told_apart(row), []).append(words)
  lines = []
  for (first, second), found in told.items():
    each = {v: ', '.join(found.get(v, ['none'])) for v in (-1, 0, 1)}
    names = [arms.TARGETS[arm].title for arm in (first, second)]
    lines.append(
      ' against '.join(names)
      + (
        f': one seed, so no claim: {", ".join(found[None])}.'
        if None in found
        else f': behind on {each[-1]}. Not told apart: {each[0]}. Ahead on'
        f' {each[1]}.'
      )
    )
  return [Bullets(lines)] if lines else []


def ablation(report: Mapping[str, Any]) -> list[Block]:
  """Source variants and what starts from them, against MPT."""
  ours = {'source': report['source'], **report['targets']}
  rows, records = [], []
  settings = [s['name'] for s in report['plan']['settings']]
  for variant in report['source']:
    row = [arms.SOURCES[variant].title]
    targets = [
      arm
      for arm in report['plan']['methods']
      if arms.TARGETS[arm].start == variant
      and arms.TARGETS[arm].method == arms.TARGETS[arms.OURS].method
    ]
    for where in ('source', *settings):
      arm = variant if where == 'source' else next(iter(targets), None)
      found = ours[where].get(arm, {}).get('mean')
      pair = _pair(report['pairs'], where, arm)
      row += [cells.with_bounds(found), cells.ahead(pair)]
      if found:
        told = {'variant': variant, 'where': where, **cells.record(found)}
        more = cells.record(pair) if pair else {}
        told |= {f'mpt_ahead_{name}': value for name, value in more.items()}
        records.append(told)
    rows.append(row)
  if len(rows) < 2:
    return []
  header = ['source variant']
  for where in ('source', *settings):
    header += [f'{where}: mean', 'MPT ahead by']
  return [
    Heading('Ablation'),
    Text(
      'What the source run leaves out, and what that costs: the mean over tasks'
      ' of the source stage, and of the target runs that start from it where'
      ' the study has such runs. Behind it how far MPT is ahead, paired by'
      ' seed.'
    ),
    Table(header, rows, 'ablation', records),
  ]


def _pair(
  pairs: Iterable[Mapping[str, Any]], where: str, second: str | None
) -> Mapping[str, Any] | None:
  for pair in pairs:
    if (pair['where'], pair['first'], pair['second']) == (
      *(where, arms.OURS),
      second,
    ):
      return pair
  return None


_WORDS = {None: 'one seed: no claim', -1: 'behind', 0: 'not told apart'}


def pairs(report: Mapping[str, Any]) -> list[Block]:
  """Every paired difference of means with its interval."""
  rows = [
    [
      f'{pair["where"]}: {pair["first"]} - {pair["second"]}',
      cells.signed(pair['mean']),
      '-' if pair['se'] is None else f'{pair["se"]:.1f}',
      ' '.join(cells.signed(v) for v in pair['values'].values()),
      cells.bounds(pair),
      str(pair['n']),
      _WORDS.get(stats.told_apart(pair), 'ahead'),
    ]
    for pair in report['pairs']
  ]
  if not rows:
    return []
  records = [
    {
      **{name: pair[name] for name in ('where', 'first', 'second')},
      'task': pair.get('task', 'mean'),
      **cells.record(pair),
    }
    for pair in (
      *report['pairs'],
      *(
        {**pair, 'task': f'mean of {pair["group"]}'}
        for pair in report['group_pairs']
      ),
      *report['task_pairs'],
    )
  ]
  header = ['difference', 'mean', 'se', 'per seed', '95 %', 'seeds', '']
  return [
    Heading('Paired differences'),
    Text(
      'Of the mean over tasks, in points, seed by seed; more is better for the'
      ' first of the two. "se" is the standard error.'
    ),
    Table(header, rows, 'differences', records),
  ]
