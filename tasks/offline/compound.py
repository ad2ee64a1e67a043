"""Harder things to ask about the world: a fact beside it, two skills at once.

As in `skills.py`, each function draws one example, true by construction. The
larger demo backbone is pretrained on these too (`large_corpus.py`), and the
instrument's target tasks (`instrument.py`) ask for some of them.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import random

from tasks.offline import skills, world

Fields = tuple[str, ...]

# The field of a skill's texts, in the order of `corpus`, that tells a fact.
PASSAGE: Mapping[str, int] = {
  'relate': 1,
  'imply': 0,
  'cover': 1,
  'truth': 0,
  'read': 1,
  'fill': 2,
}


def beside(rng: random.Random, texts: Sequence[str], at: int) -> Fields:
  """Puts a fact that bears on nothing beside one of the texts.

  Its name, action and class of object occur in none of them, so that it
  neither answers a question, nor proves or denies a statement.

  Args:
    rng: the source of chance.
    texts: the fields of an example.
    at: which of them gets the fact, before or behind it.

  Returns:
    The fields.
  """
  used = set(' '.join(texts).split())
  while True:
    fact = world.draw_fact(rng)
    kind = world.CLASS_OF[fact.thing]
    told = {fact.name, *world.VERBS[fact.verb], kind, *world.CLASSES[kind]}
    if used.isdisjoint(told):
      break
  parts = [texts[at], world.statement(rng, fact)]
  if rng.random() < 0.5:
    parts.reverse()
  return (*texts[:at], ' . '.join(parts), *texts[at + 1 :])


def entities(passage: str) -> str:
  """Lists the names, places and titles of a passage, in its order."""
  known = set(world.NAMES + world.PLACES + world.TITLES)
  return ', '.join(w for w in passage.split() if w in known)


# --- Skills that none of the source tasks needs.


def earlier(rng: random.Random, label: int, bare: bool = False) -> Fields:
  """Draws two statements; the first one's day comes first if label is 1.

  Args:
    rng: the source of chance.
    label: class. Monday is the first day, sunday the last.
    bare: draw the names of the days alone.
  """
  days = sorted(rng.sample(range(len(world.DAYS)), 2), reverse=label == 0)
  if bare:
    return tuple(world.DAYS[day] for day in days)
  facts = (
    dataclasses.replace(world.draw_fact(rng), day=world.DAYS[day])
    for day in days
  )
  first, second = (world.statement(rng, fact) for fact in facts)
  return first, second


LISTED = 6
MOST = 3


def count(rng: random.Random, label: int) -> Fields:
  """Draws (class word, list of six things): 0 to 3 of them are of the class."""
  kind = rng.choice(tuple(world.CLASSES))
  members = world.CLASSES[kind]
  rest = [thing for thing in world.OBJECTS if thing not in members]
  listed = rng.sample(members, label) + rng.sample(rest, LISTED - label)
  rng.shuffle(listed)
  return kind, ' '.join(listed)


def odd_one_out(rng: random.Random) -> tuple[str, str]:
  """Draws (four things, the one that is of another class than the rest)."""
  kind, other = rng.sample(tuple(world.CLASSES), 2)
  odd = rng.choice(world.CLASSES[other])
  listed = [*world.CLASSES[kind], odd]
  rng.shuffle(listed)
  return ' '.join(listed), odd


# --- Two skills at once.


def _about(rng: random.Random, skill: str, fact: world.Fact, label: int) -> str:
  """Draws a text of which, beside a fact, a skill says the class."""
  if skill == 'same':
    if label != skills.YES:
      fact = world.change_some(rng, fact, skills.FIELDS)
    return world.statement(rng, fact)
  if skill == 'imply':
    relation = 0 if label == skills.YES else rng.choice((1, 2))
    return world.statement(rng, skills.claim(rng, fact, relation))
  assert skill == 'cover'
  return world.ask(rng, *skills.inquiry(rng, fact, label))


def _twins(rng: random.Random, same: int, covered: int) -> Fields:
  """Draws two questions, and a statement that answers the first or not."""
  fact = world.draw_fact(rng)
  asked, kind = skills.inquiry(rng, fact, covered)
  again = asked
  if same != skills.YES:
    again = world.change_some(rng, asked, skills.known(kind))
  return (
    world.ask(rng, asked, kind),
    world.ask(rng, again, kind),
    world.statement(rng, fact),
  )


def pair(
  rng: random.Random, first: str, second: str, labels: Sequence[int]
) -> Fields:
  """Draws the fields of two binary skills at once.

  Args:
    rng: the source of chance.
    first: a skill of two texts: same, imply, cover or twin.
    second: mood or grammar, of a text of its own; else same, imply or cover,
      which share a text with the first.
    labels: the class of each.

  Returns:
    Three texts. Of (imply, mood): premise, hypothesis, opinion; of (twin,
    cover): two questions, and a sentence that answers the first or not; of
    (same, cover): two statements, and a question about the first.
  """
  if (first, second) == ('twin', 'cover'):
    return _twins(rng, *labels)
  if second in ('mood', 'grammar'):
    alone = skills.sentiment if second == 'mood' else skills.acceptable
    if first == 'twin':
      one, two = skills.duplicate(rng, labels[0])
    else:
      fact = world.draw_fact(rng)
      one = world.statement(rng, fact)
      two = _about(rng, first, fact, labels[0])
    return one, two, alone(rng, labels[1])
  fact = world.draw_fact(rng)
  return (
    world.statement(rng, fact),
    _about(rng, first, fact, labels[0]),
    _about(rng, second, fact, labels[1]),
  )


def both(rng: random.Random, label: int) -> tuple[int, int]:
  """Draws the classes of two skills, of which both are 1 if label is 1.

  Otherwise one of them is, as a rule: neither skill alone says the answer.
  """
  if label == skills.YES:
    return 1, 1
  return rng.choice(((0, 1), (1, 0)) * 4 + ((0, 0),))
