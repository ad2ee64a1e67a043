"""A study's report as a page: what was run, its scores and differences."""

from collections.abc import Mapping
import math
from typing import Any

from mpt_jax.study import (
  appendix,
  cells,
  differences,
  groups,
  published,
  screen,
  stages,
)
from mpt_jax.study.page import (
  Block,
  Heading,
  Strong,
  Table,
  Text,
)


def blocks(report: Mapping[str, Any]) -> list[Block]:
  """The report as a page.

  Args:
    report: from `results.collect`, with its plots.

  Returns:
    What `page.markdown` and `page.page` write.
  """
  return [
    *_opening(report),
    *published.section(report),
    *stages.teachers(report),
    *stages.source(report),
    *stages.targets(report),
    *groups.section(report),
    *stages.few_shot(report),
    *differences.ablation(report),
    *differences.pairs(report),
    *appendix.blocks(report),
  ]


def _opening(report: Mapping[str, Any]) -> list[Block]:
  """What was run, the methods' means, and which differences are told apart."""
  made: list[Block] = [Heading(cells.title(report), 1)]
  if report['synthetic']:
    names = [t for t, facts in report['data'].items() if facts['synthetic']]
    made.append(
      Text(
        f'The data of {", ".join(names)} are made up: short sentences about a'
        ' tiny world in the formats of the official data sets. The scores show'
        ' how the methods compare here; they say nothing about the real tasks.'
      )
    )
  plan = report['plan']
  sources = ', '.join(report['teachers']['tasks'])
  made.append(
    Text(
      f'Backbone {report["backbone"]["name"]}'
      f' ({report["backbone"]["parameters"]:,} parameters); targets'
      f' {", ".join(plan["targets"])}'
      + (f'; sources {sources}.' if sources else '.')
    )
  )
  made += _summary(report)
  lines = [line for line in screen.noise(report) if line]
  return [
    *made,
    *(Text([Strong(line)]) for line in lines),
    Text(_noise(report)),
  ]


def _summary(report: Mapping[str, Any]) -> list[Block]:
  """Each method's mean in each setting."""
  settings = [
    s
    for s in report['plan']['settings']
    if any(r['tasks'] for r in report['targets'][s['name']].values())
  ]
  if not settings:
    return []
  shown = {s['name']: stages.rows_of(report, s['name']) for s in settings}
  counts = report['parameters']['methods']
  rows, records, used = [], [], []
  for arm, title in stages.names_of(report, shown).items():
    found = [shown[s['name']].get(arm, {}).get('mean') for s in settings]
    count = f'{counts[arm]:,}' if arm in counts else '-'
    rows.append([title, *map(cells.with_bounds, found), count])
    used += found
    records += [
      {'method': title, 'setting': s['name'], **cells.record(stat)}
      for s, stat in zip(settings, found, strict=True)
      if stat
    ]
  header = ['mean over the targets', *map(_setting_title, settings)]
  notes = cells.legend(used)
  notes += {line for table in shown.values() for line in stages.no_mean(table)}
  return [
    Table([*header, 'trained a task'], rows, 'summary', records),
    *map(Text, notes),
  ]


def _setting_title(setting: Mapping[str, Any]) -> str:
  seeds = len(setting['seeds'])
  return f'{setting["name"]} ({seeds} seed{"s" if seeds > 1 else ""})'


def _noise(report: Mapping[str, Any]) -> str | list[str]:
  """What the reader must know before comparing two numbers."""
  seeds = report['seeds']
  sizes = [facts['test'] for facts in report['data'].values()]
  error = 100 * math.sqrt(0.25 / min(sizes))
  text = (
    f'Scores are percentages on test splits of {cells.span(sizes)} examples,'
    ' which alone gives a score a standard error of up to'
    f' {error:.1f} points. Seeds vary start values, batches, few-shot examples'
    ' and teachers; not the backbone, nor the test sets.'
  )
  if len(seeds) == 1:
    return [
      f'{text} ',
      Strong('This is one seed'),
      ': no number below has an error bar, and nothing is claimed to be ahead'
      ' or behind. A difference of a few points in one run may well be luck.',
    ]
  count = len(report['pairs'])
  return (
    f'{text} "±" is the standard deviation over seeds; "a to b" the interval'
    " of 95 % for the mean over seeds, by Student's t. Differences are paired:"
    ' seed by seed, on the same test examples. One whose interval holds 0 is'
    f' not told apart; of the {count} paired means below, none corrected for'
    ' being one of many, one in twenty would leave it out by luck alone.'
  )
