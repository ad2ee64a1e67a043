"""A small synthetic world: facts, opinions, questions, and what follows.

A fact is "NAME VERB the [COLOUR] OBJECT [in the PLACE] [on DAY]", told in
the active or passive voice, with synonyms for every verb and a class word for
every object. All text is lower case, words are separated by single spaces,
and punctuation stands alone. A statement, a question and a yes/no question
can be made of one fact, so entailment, paraphrase, question answering and
graded similarity all have labels that are true by construction.

Everything draws from a `random.Random`, so a seed fixes the text.
"""

from collections.abc import Sequence
import dataclasses
import random
from typing import Any

NAMES = tuple(
  'ann bob carl dora emma fred gina hank ivan jack kate leo'.split()
)
# Two synonyms for each kind of action; past and participle are one form.
VERBS = (
  ('bought', 'purchased'),
  ('found', 'discovered'),
  ('lost', 'misplaced'),
  ('made', 'built'),
  ('cleaned', 'washed'),
  ('sold', 'traded'),
  ('fixed', 'repaired'),
  ('moved', 'shifted'),
)
# How often the second, rarer synonym is said. At one half, a comparison of two
# texts learns nothing from a verb that differs, and never starts to.
RARE = 0.2
COLOURS = tuple('red blue green white black brown'.split())
CLASSES = {
  'toy': ('kite', 'doll', 'ball'),
  'tool': ('hammer', 'saw', 'drill'),
  'fruit': ('apple', 'pear', 'plum'),
  'garment': ('coat', 'hat', 'scarf'),
  'instrument': ('drum', 'flute', 'violin'),
  'dish': ('cup', 'bowl', 'plate'),
}
CLASS_OF = {o: c for c, members in CLASSES.items() for o in members}
OBJECTS = tuple(CLASS_OF)
PLACES = tuple(
  'market park station harbour library garden museum school'.split()
)
DAYS = tuple('monday tuesday wednesday thursday friday saturday sunday'.split())
SUBJECTS = tuple('film food music hotel story actor'.split())
GOOD = tuple(
  'great lovely superb charming brilliant pleasant splendid funny fresh'
  ' warm'.split()
)
BAD = tuple(
  'awful dull boring terrible ugly weak dreadful nasty stale cold'.split()
)

# The answers that the downstream tasks will ask for. In the pretraining text
# they are titles of books: seen and said, never a label.
LABEL_WORDS = (
  'entailment',
  'not_entailment',
  'neutral',
  'contradiction',
  'duplicate',
  'not_duplicate',
  'equivalent',
  'not_equivalent',
  'positive',
  'negative',
  'acceptable',
  'unacceptable',
  'True',
  'False',
)
# How similar two statements are, by the number of fields in common (0..5).
SIMILARITY = (0.0, 0.8, 1.6, 2.6, 3.8, 5.0)
SIMILARITY_WORDS = tuple(f'{s:.1f}' for s in SIMILARITY)
TITLES = LABEL_WORDS + SIMILARITY_WORDS

OPTIONAL = ('colour', 'place', 'day')
HOLE = '@placeholder'


@dataclasses.dataclass(frozen=True)
class Fact:
  """Who did what to which thing, and perhaps its colour, place and day.

  Attributes:
    name: the one who acts.
    verb: index into `VERBS`; both synonyms mean the same.
    thing: an object, one of the class words, or 'book'.
    colour: one of `COLOURS` or None.
    place: one of `PLACES` or None.
    day: one of `DAYS` or None.
    title: of a book, else None.
    never: whether the fact is denied.
  """

  name: str
  verb: int
  thing: str
  colour: str | None = None
  place: str | None = None
  day: str | None = None
  title: str | None = None
  never: bool = False


def draw_fact(
  rng: random.Random, optional: float = 0.6, least: int = 1
) -> Fact:
  """Draws a fact.

  Args:
    rng: the source of chance.
    optional: how likely each of colour, place and day is given.
    least: how many of them are given at least.

  Returns:
    A fact about an object.
  """
  given = {f for f in OPTIONAL if rng.random() < optional}
  while len(given) < least:
    given.add(rng.choice(OPTIONAL))
  return Fact(
    name=rng.choice(NAMES),
    verb=rng.randrange(len(VERBS)),
    thing=rng.choice(OBJECTS),
    colour=rng.choice(COLOURS) if 'colour' in given else None,
    place=rng.choice(PLACES) if 'place' in given else None,
    day=rng.choice(DAYS) if 'day' in given else None,
  )


def other(rng: random.Random, choices: Sequence, value):
  """Draws one of `choices` that is not `value`."""
  while True:
    drawn = rng.choice(choices)
    if drawn != value:
      return drawn


def change(rng: random.Random, fact: Fact, field: str) -> Fact:
  """Returns the fact with another value in one field.

  Args:
    rng: the source of chance.
    fact: the fact to start from.
    field: the field to change; a field that is not given gets a value. The
      new `thing` is of another class, so that its class word differs too.

  Returns:
    A fact that differs in this field alone.
  """
  if field == 'never':
    return dataclasses.replace(fact, never=not fact.never)
  if field == 'thing':
    old = CLASS_OF.get(fact.thing, fact.thing)
    cls = other(rng, tuple(CLASSES), old)
    return dataclasses.replace(fact, thing=rng.choice(CLASSES[cls]))
  choices: Sequence = {
    'name': NAMES,
    'verb': range(len(VERBS)),
    'colour': COLOURS,
    'place': PLACES,
    'day': DAYS,
    'title': TITLES,
  }[field]
  new = other(rng, choices, getattr(fact, field))
  return dataclasses.replace(fact, **{field: new})


def change_some(rng: random.Random, fact: Fact, fields: Sequence[str]) -> Fact:
  """Changes one of the fields, or in half of the cases perhaps more."""
  if rng.random() < 0.5:
    # An action is the hardest to compare, because of the synonyms.
    verb = 'verb' in fields and rng.random() < 0.2
    return change(rng, fact, 'verb' if verb else rng.choice(fields))
  for field in rng.sample(fields, rng.randint(1, len(fields))):
    fact = change(rng, fact, field)
  return fact


def drop(rng: random.Random, fact: Fact, keep: str | None = None) -> Fact:
  """Leaves out each optional field with probability 0.4, never `keep`."""
  gone: dict[str, Any] = {
    f: None for f in OPTIONAL if f != keep and rng.random() < 0.4
  }
  return dataclasses.replace(fact, **gone)


def _thing(fact: Fact) -> str:
  words = ['the']
  if fact.colour:
    words.append(fact.colour)
  words.append(fact.thing)
  if fact.title:
    words.append(fact.title)
  return ' '.join(words)


def _where_when(rng: random.Random, fact: Fact) -> list[str]:
  parts = []
  if fact.place:
    parts.append(f'in the {fact.place}')
  if fact.day:
    parts.append(f'on {fact.day}')
  if rng.random() < 0.2:
    parts.reverse()
  return parts


def _verb(rng: random.Random, fact: Fact) -> str:
  return VERBS[fact.verb][rng.random() < RARE]


def statement(rng: random.Random, fact: Fact) -> str:
  """Tells a fact: voice, synonym and order are drawn."""
  past = _verb(rng, fact)
  never = ['never'] if fact.never else []
  tail = _where_when(rng, fact)
  front: list[str] = []
  if tail and rng.random() < 0.15:
    front = [tail.pop()]
  if rng.random() < 0.3:
    core = [_thing(fact), 'was', *never, past, 'by', fact.name]
  else:
    core = [fact.name, *never, past, _thing(fact)]
  return ' '.join(front + core + tail)


def ask(rng: random.Random, fact: Fact, kind: str) -> str:
  """Asks for one field of a fact; every other given field is mentioned.

  Args:
    rng: the source of chance.
    fact: what the question takes as known.
    kind: 'who', 'what', 'where', 'when', or 'which' for the title of a book.

  Returns:
    The question, without a question mark.
  """
  past = _verb(rng, fact)
  rarely = rng.random() < 0.3
  known = fact
  if kind == 'where':
    known = dataclasses.replace(fact, place=None)
  elif kind == 'when':
    known = dataclasses.replace(fact, day=None)
  if kind == 'who':
    core = f'by whom was {_thing(fact)} {past}'
    core = core if rarely else f'who {past} {_thing(fact)}'
  elif kind in ('what', 'which'):
    opening = 'which book' if kind == 'which' else 'what'
    if kind == 'what' and rarely:
      opening = 'which thing'
    core = f'{opening} was {past} by {fact.name}'
  else:
    opening = kind
    if rarely:
      opening = 'in which place' if kind == 'where' else 'on which day'
    core = f'{opening} was {_thing(fact)} {past} by {fact.name}'
  return ' '.join([core, *_where_when(rng, known)])


def answer(fact: Fact, kind: str) -> str:
  """Returns the answer to `ask(rng, fact, kind)`, a span of the statement."""
  if kind == 'what':
    return f'{fact.colour} {fact.thing}' if fact.colour else fact.thing
  field = {'who': 'name', 'where': 'place', 'when': 'day', 'which': 'title'}
  return getattr(fact, field[kind])


def yes_no_question(rng: random.Random, fact: Fact) -> str:
  """Asks whether a fact is so."""
  core = f'was {_thing(fact)} {_verb(rng, fact)} by {fact.name}'
  return ' '.join([core, *_where_when(rng, fact)])


def _clause(rng: random.Random, good: bool) -> str:
  flip = rng.random() < 0.25
  adjective = rng.choice(GOOD if good != flip else BAD)
  words = ['the', rng.choice(SUBJECTS), 'was']
  if flip:
    words.append('not')
  elif rng.random() < 0.4:
    words.append(rng.choice(('very', 'quite')))
  words.append(adjective)
  return ' '.join(words)


def opinion(rng: random.Random, good: bool) -> str:
  """Says something good or bad: 'not' flips, what follows 'but' decides."""
  drawn = rng.random()
  if drawn < 0.4:
    return _clause(rng, good)
  if drawn < 0.7:
    return f'{_clause(rng, good)} and {_clause(rng, good)}'
  return f'{_clause(rng, not good)} but {_clause(rng, good)}'


def spoil(rng: random.Random, sentence: str) -> str:
  """Breaks the grammar of a statement, question or opinion.

  One of: a determiner behind its noun, a doubled word, a lost determiner, a
  lost verb.

  Args:
    rng: the source of chance.
    sentence: a well-formed sentence of this world that has a 'the'.

  Returns:
    A sentence that the grammar cannot make.
  """
  words = sentence.split()
  the = rng.choice([i for i, w in enumerate(words) if w == 'the'])
  drawn = rng.random()
  if drawn < 0.3:
    words[the], words[the + 1] = words[the + 1], words[the]
  elif drawn < 0.55:
    i = rng.randrange(len(words))
    words.insert(i, words[i])
  elif drawn < 0.75:
    del words[the]
  else:
    verbs = {form for pair in VERBS for form in pair}
    at = [i for i, w in enumerate(words) if w in verbs or w == 'was']
    del words[at[-1]]
  return ' '.join(words)
