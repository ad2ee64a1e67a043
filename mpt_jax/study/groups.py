"""Means over groups of a study's targets, and who is ahead on them."""

from collections.abc import Mapping, Sequence
from typing import Any

from mpt_jax.study import arms, cells
from mpt_jax.study.page import Block, Heading, Table, Text


def section(report: Mapping[str, Any]) -> list[Block]:
  """A table of means and one of differences for each setting."""
  groups: Mapping[str, Sequence[str]] = report['plan'].get('groups') or {}
  if not groups:
    return []
  made: list[Block] = [
    Heading('Groups of targets'),
    Text(
      '; '.join(f'{name}: {", ".join(of)}' for name, of in groups.items())
      + '. Means over their tasks, with intervals of 95 %, and below them the'
      ' paired differences of these means.'
    ),
  ]
  for setting, of in report['groups'].items():
    rows, records = [], []
    for arm in report['plan']['methods']:
      means = {group: of[group][arm]['mean'] for group in groups}
      if any(means.values()):
        rows.append(
          [arms.TARGETS[arm].title, *map(cells.with_bounds, means.values())]
        )
        records += [
          {'method': arm, 'group': group, **cells.record(stat)}
          for group, stat in means.items()
          if stat
        ]
    if rows:
      made += [
        Heading(setting, 3),
        Table(['method', *groups], rows, f'groups_{setting}', records),
        *_differences(report, setting, list(groups)),
      ]
  return made


def _differences(
  report: Mapping[str, Any], setting: str, groups: Sequence[str]
) -> list[Block]:
  pairs = {
    (pair['first'], pair['second'], pair['group']): pair
    for pair in report['group_pairs']
    if pair['where'] == setting
  }
  names = dict.fromkeys(key[:2] for key in pairs)
  rows = [
    [
      f'{first} - {second}',
      *(cells.ahead(pairs.get((first, second, group))) for group in groups),
    ]
    for first, second in names
  ]
  return [Table(['difference', *groups], rows)] if rows else []
