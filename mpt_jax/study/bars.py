"""What the embedded benchmark expects of a study, and whether it is met."""

from collections.abc import Mapping, Sequence
import statistics
from typing import Any

from mpt_jax.study import stats
from mpt_jax.study.page import Block, Heading, Strong, Table, Text


def measure(report: Mapping[str, Any]) -> list[dict[str, Any]]:
  """What was asked, what was found, and whether it is met.

  Args:
    report: from `results.collect`, without bars.

  Returns:
    A row for each bar. A bar is met, or missed, by more than the standard
    error over seeds; else nobody can say, and `met` is None, as for a bar
    that this study does not measure.
  """
  teachers = report['teachers']
  scores = teachers['mean']['values'] if teachers['mean'] else {}
  return [
    _bar('teachers: mean score', list(scores.values()), 80.0),
    _bar(
      "teachers: worst of (teacher - backbone's own skill)",
      _worst_gap(teachers['tasks'], report['skills']),
      -5.0,
    ),
    _bar(
      'source: MPT - shared prompt only',
      _differences(report, 'source', 'mpt', 'shared_only'),
      5.0,
    ),
    _bar(
      'source: the same, both without distillation',
      _differences(report, 'source', 'no_distillation', 'neither'),
      5.0,
    ),
    _bar(
      'source: distillation - none, at a tenth of the steps (validation)',
      _early_lead(report['curves']),
      0.0,
    ),
    _bar(
      'source: distillation - none, at the end',
      _differences(report, 'source', 'mpt', 'no_distillation'),
      -5.0,
    ),
    *(
      _bar(
        f'targets, {setting["name"]}: MPT - PT',
        _differences(report, setting['name'], 'mpt', 'pt'),
        2.0 if setting['num_shots'] == 32 else 0.0,
      )
      for setting in report['plan']['settings']
    ),
  ]


def _bar(what: str, values: Sequence[float], least: float) -> dict[str, Any]:
  """A bar: its name, what was found for each seed, and the least."""
  value = statistics.fmean(values) if values else None
  error = stats.standard_error(values)
  sign = None if value is None else stats.verdict(value - least, error)
  return {
    'bar': what,
    'least': least,
    'value': value,
    'se': error,
    'met': None if not sign else sign > 0,
  }


def _differences(
  report: Mapping[str, Any], where: str, first: str, second: str
) -> list[float]:
  """Differences of two arms, seed by seed."""
  for pair in report['pairs']:
    if (pair['where'], pair['first'], pair['second']) == (where, first, second):
      return list(pair['values'].values())
  return []


def _worst_gap(
  tasks: Mapping[str, stats.Stat], skills: Mapping[str, float]
) -> list[float]:
  """Of the task that is furthest below the backbone's skill, by seed."""
  gaps = [
    [value - skills[task] for value in stat['values'].values()]
    for task, stat in tasks.items()
    if task in skills
  ]
  return min(gaps, key=statistics.fmean, default=[])


def _early_lead(curves: Mapping[str, Mapping[str, Any]]) -> list[float]:
  """MPT minus no distillation at a tenth of the steps, seed by seed."""
  early = []
  for variant in ('mpt', 'no_distillation'):
    curve = curves.get(variant)
    if not curve or not curve['steps']:
      return []
    early.append(curve)
  steps = early[0]['steps']
  place = min(range(len(steps)), key=lambda i: abs(steps[i] - steps[-1] / 10))
  seeds = [k for k in early[0] if k != 'steps' and k in early[1]]
  if early[1]['steps'] != steps:
    return []
  return [early[0][s][place] - early[1][s][place] for s in seeds]


def section(report: Mapping[str, Any]) -> list[Block]:
  """The bars as a part of a page; none where nothing was asked."""
  if not report['bars']:
    return []
  rows = [
    [
      bar['bar'],
      f'{bar["least"]:+.1f}' if '-' in bar['bar'] else f'{bar["least"]:.1f}',
      'n/a' if bar['value'] is None else f'{bar["value"]:.1f}',
      _bar_words(bar),
    ]
    for bar in report['bars']
  ]
  return [
    Heading('Bars'),
    Text(
      'What the benchmark expects, set before this run. A bar is met or not met'
      ' by more than the standard error over seeds.'
    ),
    Table(['bar', 'at least', 'found', ''], rows, 'bars', report['bars']),
  ]


def _bar_words(bar: Mapping[str, Any]) -> str:
  if bar['met'] is not None:
    return 'met' if bar['met'] else Strong('not met')
  if bar['value'] is None:
    return 'not measured'
  if bar['se'] is None:
    return 'one seed: no claim'
  return f'level (within its standard error, {bar["se"]:.1f})'
