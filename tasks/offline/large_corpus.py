"""The text that the larger demo backbone is pretrained on.

All of `corpus.py`, in the same words, and more: passages that tell a second
fact, three skills that no source task of the instrument needs, and two skills
at once ("imply and grammar ..." -> "yes", "read , grammar ..." -> "hank fine").
`PAIRS` are not those of the instrument's target tasks.
"""

from collections.abc import Callable, Mapping
import functools
import random

from tasks.offline import compound, corpus, skills

LABELS: Mapping[str, tuple[str, ...]] = {
  **corpus.LABELS,
  'day': ('no', 'yes'),
  'few': ('none', 'few', 'some', 'half'),
}
# Skills of `compound.pair` whose classes are both asked for, with 'and'.
PAIRS = (
  ('imply', 'grammar'),
  ('cover', 'grammar'),
  ('twin', 'grammar'),
  ('same', 'mood'),
  ('twin', 'mood'),
  ('cover', 'mood'),
  ('same', 'imply'),
  ('same', 'cover'),
)
# An answer and a class, one after the other.
THEN = (('read', 'grammar'), ('fill', 'mood'), ('fill', 'grammar'))

WEIGHTS: Mapping[str, float] = {
  'relate': 2.4,
  'imply': 1.3,
  'cover': 1.3,
  'same': 1.0,
  'twin': 1.0,
  'mood': 0.8,
  'grammar': 0.9,
  'truth': 1.0,
  'degree': 0.8,
  'read': 1.2,
  'fill': 1.0,
  'echo': 0.4,
  'span': 2.0,
  'day': 0.8,
  'few': 0.8,
  'thing': 0.4,
  'and': 3.0,
  'then': 1.0,
}
# What had not begun after half of the steps comes more often in the last half.
LATE_WEIGHTS: Mapping[str, float] = {
  **WEIGHTS,
  'day': 1.4,
  'grammar': 1.6,
  'read': 1.8,
  'fill': 1.5,
  'same': 0.8,
  'twin': 0.8,
  'truth': 0.8,
  'degree': 0.6,
  'few': 0.4,
  'thing': 0.2,
  'and': 2.4,
}
FIRST_WEIGHTS: Mapping[str, float] = {
  **corpus.FIRST_WEIGHTS,
  'day': 0.6,
  'few': 0.6,
  'thing': 0.3,
}
# Examples before the first passage of two facts, and before the first two
# skills at once: each needs what comes before it.
FIRST = 92_000  # examples drawn by FIRST_WEIGHTS
BESIDE_FROM = corpus.STYLED_FROM
PAIRS_FROM = 200_000
LATE_FROM = 330_000
BESIDE_SHARE = 0.3
# From LATE_FROM on: an answer to find says more than a class does.
LATE_BESIDE_SHARE: Mapping[str, float] = {
  **dict.fromkeys(compound.PASSAGE, 0.2),
  'read': 0.6,
  'fill': 0.6,
}
BARE_SHARE = 0.5  # of the orders of days, from LATE_FROM on

SKILLS = (*corpus.SKILLS, 'day', 'few', 'thing')
BESIDE = tuple(compound.PASSAGE)


def _beside(rng: random.Random, skill: str, texts: compound.Fields):
  texts = compound.beside(rng, texts, compound.PASSAGE[skill])
  if skill == 'fill':
    query, _, passage = texts
    return query, compound.entities(passage), passage
  return texts


def _new_skill(
  rng: random.Random, skill: str, bare: float
) -> tuple[compound.Fields, int]:
  label = rng.randrange(len(LABELS[skill]))
  if skill == 'few':
    return compound.count(rng, label), label
  # Without a draw where there is no choice: that keeps the earlier text.
  return compound.earlier(rng, label, bare > 0 and rng.random() < bare), label


def skill_example(
  rng: random.Random,
  skill: str,
  style: str | None = None,
  canonical: bool = False,
  beside: bool = False,
  bare: float = 0.0,
) -> tuple[str, str]:
  """Draws one example of a skill.

  Args:
    rng: the source of chance.
    skill: one of `SKILLS`.
    style: a key of `corpus.STYLES` for a classification skill; None for the
      skill's own label words.
    canonical: with the canonical field markers and without books, the form
      in which the backbone's skill is measured.
    beside: with a second fact in the passage, for one of `BESIDE`.
    bare: how often the order of days is asked of their names alone.

  Returns:
    (inputs, targets).
  """
  if skill == 'thing':
    listed, answer = compound.odd_one_out(rng)
    return f'{skill} {corpus.fields(rng, (listed,), canonical)}', answer
  if skill in ('day', 'few'):
    texts, label = _new_skill(rng, skill, bare)
    answer = (corpus.STYLES[style] if style else LABELS[skill])[label]
  else:
    texts, answer = corpus.drawn(rng, skill, style, canonical)
  if beside:
    texts = _beside(rng, skill, texts)
  opening = f'{skill} {style}' if style else skill
  return f'{opening} {corpus.fields(rng, texts, canonical)}', answer


def and_example(
  rng: random.Random,
  first: str,
  second: str,
  style: str | None = None,
  canonical: bool = False,
) -> tuple[str, str]:
  """Draws one example that asks whether both of two skills say yes."""
  label = rng.randrange(2)
  texts = compound.pair(rng, first, second, compound.both(rng, label))
  words = corpus.STYLES[style] if style else LABELS['truth']
  opening = f'{first} and {second}' + (f' {style}' if style else '')
  return f'{opening} {corpus.fields(rng, texts, canonical)}', words[label]


def then_example(
  rng: random.Random,
  first: str,
  second: str,
  style: str | None = None,
  canonical: bool = False,
) -> tuple[str, str]:
  """Draws one example that asks for an answer, and then for a class."""
  label = rng.randrange(2)
  if first == 'read':
    question, passage, answer = skills.reading(rng)
    texts: tuple[str, ...] = question, passage
  else:
    query, _, passage, answer = skills.cloze(rng)
    texts = query, passage
  alone = skills.sentiment if second == 'mood' else skills.acceptable
  texts = (*texts, alone(rng, label))
  word = (corpus.STYLES[style] if style else LABELS[second])[label]
  opening = f'{first} , {second}' + (f' {style}' if style else '')
  return (
    f'{opening} {corpus.fields(rng, texts, canonical)}',
    f'{answer} {word}',
  )


def draw(rng: random.Random, number: int | None = None) -> tuple[str, str, str]:
  """Draws one pretraining example, as `corpus.draw` does.

  Args:
    rng: the source of chance.
    number: how many examples the model has seen, for the curriculum; None
      draws as after it.

  Returns:
    (kind of text, inputs, targets).
  """
  seen = float('inf') if number is None else number
  late = seen >= LATE_FROM
  weights = dict(LATE_WEIGHTS if late else WEIGHTS)
  if seen < FIRST:
    weights = dict(FIRST_WEIGHTS)
  if seen < PAIRS_FROM:
    weights = {k: w for k, w in weights.items() if k not in ('and', 'then')}
  kind = rng.choices(tuple(weights), tuple(weights.values()))[0]
  if kind == 'span':
    return (kind, *corpus.span_example(rng))
  if kind == 'echo':
    return (kind, *corpus.echo_example(rng))
  style = None
  if seen >= corpus.STYLED_FROM and rng.random() < corpus.STYLED_SHARE:
    style = rng.choice(tuple(corpus.STYLES))
  if kind == 'and':
    return (kind, *and_example(rng, *rng.choice(PAIRS), style))
  if kind == 'then':
    return (kind, *then_example(rng, *rng.choice(THEN), style))
  beside = False
  if kind in BESIDE and seen >= BESIDE_FROM:
    share = LATE_BESIDE_SHARE[kind] if late else BESIDE_SHARE
    beside = rng.random() < share
  style = style if kind in LABELS else None
  bare = BARE_SHARE if late else 0.0
  return (kind, *skill_example(rng, kind, style, beside=beside, bare=bare))


def _forms() -> dict[str, Callable[..., tuple[str, str]]]:
  new = [s for s in SKILLS if s not in corpus.SKILLS]
  return {
    **{s: functools.partial(_skill, s, False) for s in new},
    **{f'{s}_beside': functools.partial(_skill, s, True) for s in BESIDE},
    **{f'{a}_and_{b}': functools.partial(_and, a, b) for a, b in PAIRS},
    **{f'{a}_then_{b}': functools.partial(_then, a, b) for a, b in THEN},
  }


def _skill(
  skill: str, beside: bool, rng: random.Random, style: str | None
) -> tuple[str, str]:
  return skill_example(rng, skill, style, canonical=True, beside=beside)


def _and(
  first: str, second: str, rng: random.Random, style: str | None
) -> tuple[str, str]:
  return and_example(rng, first, second, style, canonical=True)


def _then(
  first: str, second: str, rng: random.Random, style: str | None
) -> tuple[str, str]:
  return then_example(rng, first, second, style, canonical=True)


# What is measured beside the canonical forms of `corpus.SKILLS`: name -> draws
# (inputs, targets) of (chance, style or None).
FORMS: Mapping[str, Callable[..., tuple[str, str]]] = _forms()
UNSTYLED = ('thing', 'read_beside', 'fill_beside')
