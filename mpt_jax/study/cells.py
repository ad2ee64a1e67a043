"""How tables and plots write a score, a rate or a task."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mpt_jax.engine import metrics
from mpt_jax.study.stats import COLLAPSED, UNDEFINED, Stat

_MARKS = {
  COLLAPSED: 'collapsed: over 95 % of the answers were one, or over 50 % no'
  ' valid answer; the score says no more than how often that is right',
  UNDEFINED: 'not defined (a correlation with a constant output), counts as 0,'
  ' or as the worst there is where less is better',
}


def show(stat: Stat | None) -> str:
  """'81.2 ± 1.3', or '81.2' of one seed; with its marks."""
  if stat is None:
    return '-'
  text = f'{stat["mean"]:.1f}'
  if stat['std'] is not None:
    text += f' ± {stat["std"]:.1f}'
  return text + ''.join(stat['marks'])


def legend(shown: Iterable[Stat | None]) -> list[str]:
  """What the marks of these cells mean."""
  used = {mark for stat in shown if stat for mark in stat['marks']}
  return [f'{mark} {text}.' for mark, text in _MARKS.items() if mark in used]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  """A Markdown table, numbers to the right."""
  lines = [header, ['---', *['---:'] * (len(header) - 1)], *rows]
  return ['| ' + ' | '.join(line) + ' |' for line in lines] + ['']


def signed(value: float | None) -> str:
  """'+1.3', or 'n/a'."""
  return 'n/a' if value is None else f'{value:+.1f}'


def plain(value: float | None) -> str:
  """'81.2', or '-'."""
  return '-' if value is None else f'{value:.1f}'


def show_rates(rates: Sequence[float | None]) -> str:
  """'0.3 / 0.1', or '0.3' of a plain prompt."""
  return ' / '.join(f'{rate:g}' for rate in rates if rate is not None)


def title(report: Mapping[str, Any]) -> str:
  """The report's title; it says so where data are made up."""
  note = ' on SYNTHETIC DATA' if report['synthetic'] else ''
  return f'Multitask Prompt Tuning{note}'


def task_title(report: Mapping[str, Any], task: str) -> str:
  """'rte (accuracy)'; it says so where less is better."""
  name = report['metrics'][task]
  facts = report['meanings'].get(task)
  less = facts is not None and facts['better'] == metrics.LESS
  return f'{task} ({name}{", less is better" if less else ""})'
