"""The arms of a study: one row for each way to train that it compares.

Plan, tables and plots read them here, so a row makes a new arm: its runs, its
line in every table, its pairs, its colour. An arm's name is what VARIANTS and
METHODS say, and the name of a folder.
"""

import dataclasses
import itertools

from mpt_jax.methods import MultitaskPrompts, SoftPrompts

_MPT, _SOFT = MultitaskPrompts, SoftPrompts
_FRESH = ('gin_configs/runs/teacher.gin',)
_SOURCE = ('gin_configs/runs/source.gin',)
_TARGET = ('gin_configs/runs/target.gin',)

# What an arm starts from, beside the names of source arms.
TEACHER = 'the teacher of one source task'
# The arm, of both stages, that the study is about.
OURS = 'mpt'


@dataclasses.dataclass(frozen=True)
class Arm:
  """One way to train, beside the others of its stage.

  Attributes:
    title: how tables and plots call it.
    method: name of its method, see `mpt_jax.methods`.
    gin_files: what its runs read, before the study's macros.
    colour: of its curve or bars, as matplotlib writes it.
    start: the source arm whose prompts of the same seed it starts from, or
      `TEACHER`; None starts from the study's `prompt_init`.
    distilled: whether it learns from the teachers of its source tasks.
    line: style of its curve.
  """

  title: str
  method: str
  gin_files: tuple[str, ...]
  colour: str
  start: str | None = None
  distilled: bool = False
  line: str = '-'


SOURCES = {
  'mpt': Arm(_MPT.title, _MPT.name, _SOURCE, 'C0', distilled=True),
  'no_distillation': Arm(
    'no distillation', _MPT.name, _SOURCE, 'C0', line='--'
  ),
  'shared_only': Arm(
    'no decomposition (shared prompt only)',
    _SOFT.name,
    _SOURCE,
    'C1',
    distilled=True,
  ),
  'neither': Arm('neither', _SOFT.name, _SOURCE, 'C1', line='--'),
}
TARGETS = {
  'mpt': Arm(_MPT.title, _MPT.name, _TARGET, 'C0', start='mpt'),
  'mpt_no_distillation': Arm(
    'MPT, source run without distillation',
    _MPT.name,
    _TARGET,
    'C3',
    start='no_distillation',
  ),
  'pt': Arm(_SOFT.title, _SOFT.name, _FRESH, 'C1'),
  'single_source': Arm(
    'single-source transfer', _SOFT.name, _FRESH, 'C2', start=TEACHER
  ),
}


def source_pairs() -> list[tuple[str, str]]:
  """The source arms that differ in one thing alone, first those in method."""
  pairs = list(itertools.combinations(SOURCES, 2))
  return [
    (first, second)
    for thing in ('method', 'distilled')
    for first, second in pairs
    if _differences(SOURCES[first], SOURCES[second]) == [thing]
  ]


def target_pairs() -> list[tuple[str, str]]:
  """`OURS` and each other target arm, those of its own method last."""
  own = TARGETS[OURS].method
  others = sorted(TARGETS, key=lambda name: TARGETS[name].method == own)
  return [(OURS, other) for other in others if other != OURS]


def _differences(first: Arm, second: Arm) -> list[str]:
  return [
    thing
    for thing in ('method', 'distilled')
    if getattr(first, thing) != getattr(second, thing)
  ]
