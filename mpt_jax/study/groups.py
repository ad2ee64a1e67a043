"""Means over groups of a study's targets, and who is ahead on them."""

from collections.abc import Mapping, Sequence
from typing import Any

from mpt_jax.study import arms, cells, stats
from mpt_jax.study.page import Block, Heading, Table, Text


def collect(
  plan: Mapping[str, Any],
  runs: Sequence[Mapping[str, Any]],
  compared: Sequence[tuple[str, str]],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """The results of each group, and the paired differences of their means.

  Args:
    plan: the plan, as `pipeline.json` has it.
    runs: the target runs, with their scores.
    compared: pairs of arms.

  Returns:
    ({setting: {group: {arm: results, from `stats.by_task`}}}, rows as
    `stats.pairs` has them, each with its `group`).
  """
  groups: Mapping[str, Sequence[str]] = plan.get('groups') or {}
  found: dict[str, Any] = {}
  rows: list[dict[str, Any]] = []
  for setting in plan['settings'] if groups else ():
    name = setting['name']
    own = [run for run in runs if run['setting'] == name]
    found[name] = {}
    for group, tasks in groups.items():
      inside = [_within(run, tasks) for run in own]
      found[name][group] = results = {
        arm: stats.by_task([run for run in inside if run['method'] == arm])
        for arm in plan['methods']
      }
      pairs = stats.pairs(name, results, compared)
      rows += [{'group': group, **pair} for pair in pairs]
  return found, rows


def _within(run: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, Any]:
  """A run with the scores of some tasks alone."""
  scores = {t: s for t, s in run['scores'].items() if t in tasks}
  return {**run, 'scores': scores}


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
