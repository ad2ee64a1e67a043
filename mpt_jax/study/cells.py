"""How tables and plots write a score, a rate or a task."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mpt_jax.engine import metrics
from mpt_jax.study.stats import COLLAPSED, UNDEFINED, Stat

# Behind the name of a task of which much was cut.
CUT = '§'
_MUCH = 0.01  # of a split's inputs; of its targets any
_MARKS = {
  COLLAPSED: 'collapsed: over 95 % of the answers were one, or over 50 % no'
  ' valid answer; the score says no more than how often that is right',
  UNDEFINED: 'not defined (a correlation with a constant output), counts as 0,'
  ' or as the worst there is where less is better',
  CUT: 'data cut: over 1 % of the inputs of a split were longer than their'
  ' length, or a target was; see "What was cut"',
}


def show(stat: Stat | None) -> str:
  """'81.2 ± 1.3', or '81.2' of one seed; with its marks."""
  if stat is None:
    return '-'
  text = f'{stat["mean"]:.1f}'
  if stat['std'] is not None:
    text += f' ± {stat["std"]:.1f}'
  return text + ''.join(stat['marks'])


def bounds(found: Mapping[str, Any] | None) -> str:
  """'73.8 to 77.8', the interval of a score or difference, or '-'."""
  if found is None or found.get('low') is None:
    return '-'
  return f'{found["low"]:.1f} to {found["high"]:.1f}'


def with_bounds(stat: Stat | None) -> str:
  """'81.2 ± 1.3† (73.8 to 88.6)'."""
  known = stat is not None and stat.get('low') is not None
  return show(stat) + (f' ({bounds(stat)})' if known else '')


def ahead(pair: Mapping[str, Any] | None) -> str:
  """'+6.0 (4.1 to 7.9)', a paired difference, or '-'."""
  if pair is None:
    return '-'
  return signed(pair['mean']) + (
    '' if pair['low'] is None else f' ({bounds(pair)})'
  )


def record(found: Mapping[str, Any] | None) -> dict[str, Any]:
  """A score or a difference as plain values of a CSV file."""
  known = found or {}
  spread = 'se' if 'se' in known else 'std'
  numbers = {
    name: known.get(name) for name in ('mean', spread, 'low', 'high', 'n')
  }
  marks = {'marks': ''.join(known['marks'])} if 'marks' in known else {}
  return {**numbers, **marks}


def legend(
  shown: Iterable[Stat | None], titles: Iterable[str] = ()
) -> list[str]:
  """What the marks of these cells and titles mean."""
  used = {mark for stat in shown if stat for mark in stat['marks']}
  used |= {CUT for title in titles if title.endswith(CUT)}
  return [f'{mark} {text}.' for mark, text in _MARKS.items() if mark in used]


def signed(value: float | None) -> str:
  """'+1.3', or 'n/a'."""
  return 'n/a' if value is None else f'{value:+.1f}'


def plain(value: float | None) -> str:
  """'81.2', or '-'."""
  return '-' if value is None else f'{value:.1f}'


def span(values: Iterable[int]) -> str:
  """'256', or '64 to 256'."""
  known = sorted(set(values))
  return ' to '.join(str(v) for v in dict.fromkeys((known[0], known[-1])))


def show_rates(rates: Sequence[float | None]) -> str:
  """'0.3 / 0.1', or '0.3' of a plain prompt."""
  return ' / '.join(f'{rate:g}' for rate in rates if rate is not None)


def title(report: Mapping[str, Any]) -> str:
  """The report's title; it says so where data are made up."""
  note = ' on SYNTHETIC DATA' if report['synthetic'] else ''
  return f'{report["plan"].get("title") or "Multitask Prompt Tuning"}{note}'


def task_title(report: Mapping[str, Any], task: str) -> str:
  """'rte (accuracy)'; it says so where less is better, or data were cut."""
  name = report['metrics'].get(task, 'no score')
  facts = report['meanings'].get(task)
  less = facts is not None and facts['better'] == metrics.LESS
  mark = CUT if is_cut(report, task) else ''
  return f'{task} ({name}{", less is better" if less else ""}){mark}'


def is_cut(report: Mapping[str, Any], task: str) -> bool:
  """Whether so much of a task's data was cut that its scores may show it."""
  return any(
    numbers['cut_targets']
    or numbers['cut_inputs'] > _MUCH * numbers['examples']
    for split, numbers in report['examples'].items()
    if split.rpartition('/')[0] == task
  )
