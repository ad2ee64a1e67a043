"""The arms of a study: one row for each way to train that it compares.

Plan, tables and plots read them here, so a row makes a new arm: its runs, its
line in every table, its pairs, its colour. An arm's name is what VARIANTS and
METHODS say, and the name of a folder.
"""

import dataclasses
import functools
import itertools
from typing import Any

from mpt_jax import methods
from mpt_jax.engine.outcome import BACKBONE, PROMPTS
from mpt_jax.methods import MultitaskPrompts, SoftPrompts

_MPT, _SOFT = MultitaskPrompts, SoftPrompts
_FRESH = ('gin_configs/runs/teacher.gin',)
_SOURCE = ('gin_configs/runs/source.gin',)
_TARGET = ('gin_configs/runs/target.gin',)

# What an arm starts from, beside the names of source arms.
TEACHER = 'the teacher of one source task'
TEACHERS = 'the teachers of all source tasks'
OWN = 'its own start values'
# The source task is picked: by the similarity of early prompts, which needs a
# short run of the target; or a run from each, the best by validation of which
# counts.
NEAREST = 'the nearest source task'
EACH = 'the teacher of the best source task'
# Starts that read teachers of source tasks.
OF_TEACHERS = TEACHER, TEACHERS, NEAREST, EACH
# The arm, of both stages, that the study is about, and that of teachers.
OURS, PLAIN = 'mpt', 'pt'


@dataclasses.dataclass(frozen=True)
class Arm:
  """One way to train, beside the others of its stage.

  Attributes:
    title: how tables and plots call it.
    method: name of its method, see `mpt_jax.methods`.
    gin_files: what its runs read, before the study's macros.
    colour: of its curve or bars, as matplotlib writes it.
    start: the source arm whose prompts of the same seed it starts from, or
      one of `OF_TEACHERS`, or `OWN`; None starts from the study's
      `prompt_init`.
    picks: whether, of the source arm it starts from, it takes the factors of
      the nearest source task.
    together: whether one run trains all target tasks.
    distilled: whether it learns from the teachers of its source tasks.
    line: style of its curve.
    rate: the macro of its learning rate.
    length: the macro of the study's prompt length; None has none.
    slots: whether its prompt takes positions of the input. The others' inputs
      are shorter by the prompt length: all arms read the same text.
  """

  title: str
  method: str
  gin_files: tuple[str, ...]
  colour: str
  start: str | None = None
  picks: bool = False
  together: bool = False
  distilled: bool = False
  line: str = '-'
  rate: str = 'SHARED_LEARNING_RATE'
  length: str | None = 'PROMPT_LENGTH'
  slots: bool = True

  @property
  def compares(self) -> bool:
    """Whether it compares the keys of source tasks with its target's."""
    return self.picks or self.start == NEAREST

  @property
  def product(self) -> str:
    """The folder, in a run's, of what it has learned."""
    whole = methods.get(self.method).branch is None
    return BACKBONE if whole else PROMPTS


def _baseline(name: str, colour: str, **more: Any) -> Arm:
  """The arm of a method that has a gin file of its name."""
  return Arm(
    methods.get(name).title,
    name,
    (f'gin_configs/runs/{name}.gin',),
    colour,
    rate='LEARNING_RATE',
    **more,
  )


_inside = functools.partial(_baseline, start=OWN, length=None, slots=False)

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
  'mpt_nearest': Arm(
    'MPT, factors of the nearest source',
    _MPT.name,
    _TARGET,
    'deeppink',
    start='mpt',
    picks=True,
  ),
  'mpt_group': Arm(
    'MPT (m), all targets together',
    _MPT.name,
    _TARGET,
    'slateblue',
    start='mpt',
    together=True,
  ),
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
  'spot': Arm(
    'SPoT, nearest source', _SOFT.name, _FRESH, 'teal', start=NEAREST
  ),
  'spot_oracle': Arm(
    'SPoT, best of all sources', _SOFT.name, _FRESH, 'darkgreen', start=EACH
  ),
  'attempt': _baseline('attempt', 'black', start=TEACHERS),
  'full': _inside('full', 'C5'),
  'adapter': _inside('adapter', 'C4'),
  'bitfit': _inside('bitfit', 'C8'),
  'lora': _inside('lora', 'C9'),
  'ia3': _inside('ia3', 'C6'),
  'prefix': _inside('prefix', 'navy', length='PREFIX_LENGTH'),
  'deep': _baseline('deep', 'gold', start=OWN),
  'mpt_no_decomposition': Arm(
    'MPT, source run without decomposition',
    _SOFT.name,
    _FRESH,
    'lightcoral',
    start='shared_only',
  ),
  'mpt_neither': Arm(
    'MPT, source run without either',
    _SOFT.name,
    _FRESH,
    'rosybrown',
    start='neither',
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
