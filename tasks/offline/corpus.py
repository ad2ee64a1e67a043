"""The text that the demo backbone is pretrained on.

The skills that the downstream tasks need, under other prefixes, field
markers and label words, and span corruption. A downstream label word is only
ever a book's title here or a word to repeat, a downstream prefix or marker
only a word to repeat: a prompt has to say which skill is wanted and in which
words to answer.

Most classification examples are canonical ("relate ..." -> "follows"); in the
others a style word picks one of six fixed label vocabularies
("relate beta ..." -> "gold"), so that deciding the class and naming it are
learnt apart from each other.
"""

from collections.abc import Mapping, Sequence
import random

from tasks.offline import skills, world

# Label words by class id of the skill.
LABELS: Mapping[str, tuple[str, ...]] = {
  'relate': ('follows', 'open', 'clash'),
  'imply': ('fails', 'holds'),
  'cover': ('missing', 'covered'),
  'same': ('apart', 'same'),
  'twin': ('single', 'twin'),
  'mood': ('minus', 'plus'),
  'grammar': ('faulty', 'fine'),
  'truth': ('no', 'yes'),
  'degree': ('none', 'few', 'some', 'half', 'most', 'all'),
}
STYLES: Mapping[str, tuple[str, ...]] = {
  'alpha': ('north', 'south', 'west', 'east', 'up', 'down'),
  'beta': ('gold', 'silver', 'copper', 'iron', 'tin', 'lead'),
  'gamma': ('lion', 'tiger', 'bear', 'wolf', 'fox', 'deer'),
  'delta': ('rose', 'lily', 'daisy', 'tulip', 'poppy', 'fern'),
  'sigma': ('bread', 'milk', 'rice', 'salt', 'corn', 'soup'),
  'omega': ('circle', 'square', 'star', 'line', 'point', 'cross'),
}
# How often each kind of text is drawn.
WEIGHTS: Mapping[str, float] = {
  'relate': 2.4,
  'imply': 1.3,
  'cover': 1.3,
  'same': 1.3,
  'twin': 1.3,
  'mood': 0.8,
  'grammar': 0.9,
  'truth': 1.3,
  'degree': 1.5,
  'read': 1.2,
  'fill': 1.0,
  'echo': 0.4,
  'span': 2.8,
}
# The curriculum. Comparing two texts is what most skills need and what takes
# longest to begin: all skills at once were still at chance after 3,000 steps,
# these ones first take a thousand.
FIRST_WEIGHTS: Mapping[str, float] = {
  'same': 2.0,
  'degree': 2.0,
  'truth': 1.0,
  'mood': 0.6,
  'grammar': 0.6,
  'read': 1.5,
  'fill': 0.7,
  'echo': 0.4,
  'span': 1.5,
}
FIRST = 76_800  # examples drawn by FIRST_WEIGHTS
STYLED_FROM = 153_600  # examples before the first style word
SKILLS = tuple(k for k in WEIGHTS if k not in ('echo', 'span'))
STYLED_SHARE = 0.4
BOOKS_SHARE = 0.2

# Field markers: the first is the canonical one.
MARKERS = (
  ('a:', 'b:', 'c:'),
  ('first:', 'second:', 'third:'),
  ('left:', 'right:', 'middle:'),
  ('here:', 'there:', 'beyond:'),
  ('this:', 'that:', 'these:'),
  ('upper:', 'lower:', 'inner:'),
)
# What the downstream text has in these roles (T5's format).
DOWNSTREAM_WORDS = tuple(
  'mnli qnli qqp sst2 record rte cb mrpc boolq cola stsb hypothesis: premise:'
  ' question: sentence: question1: question2: sentence1: sentence2: context:'
  ' passage: query: entities:'.split()
)
SENTINELS = ('<extra_id_0>', '<extra_id_1>', '<extra_id_2>')


def fields(rng: random.Random, texts: Sequence[str], canonical: bool) -> str:
  """Puts texts behind the canonical field markers, or behind drawn ones."""
  markers = MARKERS[0] if canonical else rng.choice(MARKERS)
  marked = zip(markers, texts, strict=False)
  return ' '.join(f'{marker} {text}' for marker, text in marked)


def _texts(rng: random.Random, skill: str, label: int) -> tuple[str, ...]:
  """Draws the fields of a classification example, in downstream order."""
  if skill == 'relate':
    premise, hypothesis = skills.nli(rng, label, noise=0.3)
    return hypothesis, premise
  if skill == 'truth':
    question, passage = skills.yes_no(rng, label)
    return passage, question
  if skill == 'mood':
    return (skills.sentiment(rng, label),)
  if skill == 'grammar':
    return (skills.acceptable(rng, label),)
  pair = {
    'imply': skills.entailment,
    'cover': skills.answerable,
    'same': skills.paraphrase,
    'twin': skills.duplicate,
    'degree': skills.similarity,
  }[skill]
  return pair(rng, label)


def drawn(
  rng: random.Random, skill: str, style: str | None, canonical: bool
) -> tuple[tuple[str, ...], str]:
  """Draws the fields of an example and its answer, see `skill_example`."""
  books = 0.0 if canonical else BOOKS_SHARE
  if skill == 'read':
    question, context, answer = skills.reading(rng, books)
    return (question, context), answer
  if skill == 'fill':
    query, entities, passage, answer = skills.cloze(rng, books)
    return (query, ', '.join(entities), passage), answer
  label = rng.randrange(len(LABELS[skill]))
  words = STYLES[style] if style else LABELS[skill]
  return _texts(rng, skill, label), words[label]


def skill_example(
  rng: random.Random,
  skill: str,
  style: str | None = None,
  canonical: bool = False,
) -> tuple[str, str]:
  """Draws one example of a skill.

  Args:
    rng: the source of chance.
    skill: one of `SKILLS`.
    style: a key of `STYLES` for a classification skill; None for the skill's
      own label words.
    canonical: with the canonical field markers and without books, the form
      in which the backbone's skill is measured.

  Returns:
    (inputs, targets).
  """
  texts, answer = drawn(rng, skill, style, canonical)
  opening = f'{skill} {style}' if style else skill
  return f'{opening} {fields(rng, texts, canonical)}', answer


def echo_example(rng: random.Random) -> tuple[str, str]:
  """Draws a word to repeat."""
  word = rng.choice(ECHO_WORDS)
  return f'echo {word}', word


def plain_text(rng: random.Random) -> list[str]:
  """Draws words whose gaps can be filled: told twice, or said twice."""
  drawn = rng.random()
  if drawn < 0.3:
    words = [rng.choice(ECHO_WORDS) for _ in range(rng.randint(4, 8))]
    return words + ['again'] + words
  if drawn < 0.75:
    fact = world.draw_fact(rng)
    if rng.random() < 0.3:
      fact = skills.as_book(rng, fact)
    return (
      f'{world.statement(rng, fact)} . {world.statement(rng, fact)}'.split()
    )
  fact = world.draw_fact(rng)
  mood = world.opinion(rng, rng.random() < 0.5)
  return f'{world.statement(rng, fact)} . {mood}'.split()


def span_example(rng: random.Random) -> tuple[str, str]:
  """Draws a text with spans of one to three words cut out, as T5 does it."""
  words = plain_text(rng)
  inputs: list[str] = []
  targets: list[str] = []
  at = 0
  # One span in each third of the text, at most.
  third = len(words) // 3
  parts = sorted(rng.sample(range(3), rng.randint(1, 3)))
  for mark, part in zip(SENTINELS, parts, strict=False):
    start = max(at, part * third + rng.randrange(third))
    end = min(start + rng.randint(1, 2), len(words))
    inputs += words[at:start] + [mark]
    targets += [mark, *words[start:end]]
    at = end
  inputs += words[at:]
  return ' '.join(inputs), ' '.join(targets)


def choose(
  rng: random.Random, number: int | None = None
) -> tuple[str, str | None]:
  """Draws a kind of text, and of a skill perhaps a style; see `draw`."""
  weights = FIRST_WEIGHTS if number is not None and number < FIRST else WEIGHTS
  kind = rng.choices(tuple(weights), tuple(weights.values()))[0]
  styled = number is None or number >= STYLED_FROM
  if styled and kind in LABELS and rng.random() < STYLED_SHARE:
    return kind, rng.choice(tuple(STYLES))
  return kind, None


def draw(rng: random.Random, number: int | None = None) -> tuple[str, str, str]:
  """Draws one pretraining example.

  Args:
    rng: the source of chance.
    number: how many examples the model has seen, for the curriculum; None
      draws as after it.

  Returns:
    (kind of text, inputs, targets).
  """
  kind, style = choose(rng, number)
  if kind == 'span':
    return (kind, *span_example(rng))
  if kind == 'echo':
    return (kind, *echo_example(rng))
  return (kind, *skill_example(rng, kind, style))


def words() -> tuple[str, ...]:
  """Lists every word of the world and of its tasks, each once."""
  pools = [
    'the in on was by never not very quite and but who whom what which'
    ' where when thing place day book again , .'.split(),
    world.NAMES,
    [form for pair in world.VERBS for form in pair],
    world.COLOURS,
    world.CLASSES,
    world.OBJECTS,
    world.PLACES,
    world.DAYS,
    world.SUBJECTS,
    world.GOOD,
    world.BAD,
    [world.HOLE],
    world.TITLES,
    DOWNSTREAM_WORDS,
    [w for group in MARKERS for w in group],
    WEIGHTS,
    [w for labels in LABELS.values() for w in labels],
    STYLES,
    [w for labels in STYLES.values() for w in labels],
  ]
  return tuple(dict.fromkeys(w for pool in pools for w in pool))


# A downstream word as often as all the others: it has no other place.
ECHO_WORDS = (
  tuple(w for w in words() if w not in ',.')
  + (DOWNSTREAM_WORDS + world.TITLES) * 3
)
