"""What can be asked about the world: labelled texts, true by construction.

Each function draws one example with a wanted class. The downstream data sets
(`datasets.py`) and the pretraining text (`pretraining.py`) are two dresses of
the same skills.
"""

import dataclasses
import random
from typing import Any

from tasks.offline import world

# Classes, in the order of the class ids used here.
NLI = ('entailment', 'neutral', 'contradiction')
NO, YES = 0, 1
# Everything that two tellings of a fact can differ in, but for denial.
FIELDS = ('name', 'verb', 'thing', *world.OPTIONAL)


def with_noise(rng: random.Random, sentence: str, share: float) -> str:
  """Adds an opinion before or behind a sentence in a share of the cases."""
  if rng.random() >= share:
    return sentence
  noise = world.opinion(rng, rng.random() < 0.5).split(' but ')[0]
  noise = noise.split(' and ')[0]
  parts = [sentence, noise]
  if rng.random() < 0.5:
    parts.reverse()
  return ' . '.join(parts)


def claim(rng: random.Random, fact: world.Fact, label: int) -> world.Fact:
  """Draws what a hypothesis says about a fact.

  One that follows leaves things out and may say the class of an object
  ("toy" for "kite"). A contradiction denies, or gives another colour, place
  or day. A neutral one names another actor, action or object, or adds a
  colour, place or day.

  Args:
    rng: the source of chance.
    fact: what the premise says.
    label: index into `NLI`.
  """
  given = [f for f in world.OPTIONAL if getattr(fact, f)]
  if label == 0:
    said = world.drop(rng, fact)
  elif label == 2:
    if rng.random() < 0.25:
      said = world.change(rng, world.drop(rng, fact), 'never')
    else:
      said = world.drop(rng, fact, rng.choice(given))
      kept = [f for f in given if getattr(said, f)]
      said = world.change_some(rng, said, kept)
  else:
    absent = [f for f in world.OPTIONAL if f not in given]
    said = world.drop(rng, fact)
    if absent and rng.random() < 0.6:
      said = world.change_some(rng, said, absent)
    else:
      said = world.change_some(rng, said, ('name', 'verb', 'thing'))
  if rng.random() < 0.25:
    said = dataclasses.replace(said, thing=world.CLASS_OF[said.thing])
  return said


def nli(rng: random.Random, label: int, noise: float = 0.0) -> tuple[str, str]:
  """Draws a premise and a hypothesis.

  Args:
    rng: the source of chance.
    label: index into `NLI`.
    noise: how often the premise has an opinion beside it.

  Returns:
    (premise, hypothesis).
  """
  fact = world.draw_fact(rng)
  said = claim(rng, fact, label)
  premise = with_noise(rng, world.statement(rng, fact), noise)
  return premise, world.statement(rng, said)


def entailment(rng: random.Random, label: int) -> tuple[str, str]:
  """Draws (premise, hypothesis); label 1 where the hypothesis follows."""
  return nli(rng, 0 if label == YES else rng.choice((1, 2)))


def paraphrase(rng: random.Random, label: int) -> tuple[str, str]:
  """Draws two statements, of the same fact if label is 1.

  Statements that differ do so in one field or more, or one says more.
  """
  fact = world.draw_fact(rng)
  pair = [fact, fact]
  if label != YES:
    pair[rng.randrange(2)] = world.change_some(rng, fact, FIELDS)
  return world.statement(rng, pair[0]), world.statement(rng, pair[1])


def _kinds(fact: world.Fact) -> list[str]:
  kinds = ['who', 'what']
  kinds += ['where'] if fact.place else []
  kinds += ['when'] if fact.day else []
  return kinds


def known(kind: str) -> list[str]:
  """Lists the fields that a question of this kind may say."""
  asked = {'who': 'name', 'what': 'thing', 'where': 'place', 'when': 'day'}
  hidden = {asked[kind], 'colour' if kind == 'what' else ''}
  return [f for f in FIELDS if f not in hidden]


def _mentioned(fact: world.Fact, kind: str) -> list[str]:
  """Lists the fields that this question says."""
  return [f for f in known(kind) if getattr(fact, f) is not None]


def duplicate(rng: random.Random, label: int) -> tuple[str, str]:
  """Draws two questions, with the same meaning if label is 1.

  Questions that differ ask for another thing, or differ in what they say.
  """
  fact = world.draw_fact(rng)
  kind = rng.choice(_kinds(fact))
  first = world.ask(rng, fact, kind)
  if label == YES:
    return first, world.ask(rng, fact, kind)
  if rng.random() < 0.3 and kind in ('where', 'when'):
    # The same known things, but the place is asked and not the day.
    asked = dataclasses.replace(fact, place=None, day=None)
    swapped = 'when' if kind == 'where' else 'where'
    return world.ask(rng, asked, kind), world.ask(rng, asked, swapped)
  second = world.ask(rng, world.change_some(rng, fact, known(kind)), kind)
  return (first, second) if rng.random() < 0.5 else (second, first)


def inquiry(
  rng: random.Random, fact: world.Fact, label: int
) -> tuple[world.Fact, str]:
  """Draws a question, which a statement of the fact answers if label is 1.

  Otherwise the fact lacks the place or day that is asked for, or the question
  is about another name, action, object, colour, place or day.

  Args:
    rng: the source of chance.
    fact: what the statement says.
    label: class.

  Returns:
    (what the question takes as known, its kind), as `world.ask` takes them.
  """
  if label == YES:
    kind = rng.choice(_kinds(fact))
    keep = {'where': 'place', 'when': 'day'}.get(kind)
    return world.drop(rng, fact, keep), kind
  missing = [
    k for k, f in (('where', 'place'), ('when', 'day')) if not getattr(fact, f)
  ]
  if missing and rng.random() < 0.6:
    return world.drop(rng, fact), rng.choice(missing)
  kind = rng.choice(_kinds(fact))
  asked = world.drop(rng, fact, {'where': 'place', 'when': 'day'}.get(kind))
  return world.change_some(rng, asked, _mentioned(asked, kind)), kind


def answerable(rng: random.Random, label: int) -> tuple[str, str]:
  """Draws (question, sentence); label 1 where the sentence answers it."""
  fact = world.draw_fact(rng)
  question = world.ask(rng, *inquiry(rng, fact, label))
  return question, world.statement(rng, fact)


def sentiment(rng: random.Random, label: int) -> str:
  """Draws an opinion, good if label is 1."""
  return world.opinion(rng, label == YES)


def acceptable(rng: random.Random, label: int) -> str:
  """Draws a sentence, grammatical if label is 1."""
  drawn = rng.random()
  if drawn < 0.6:
    sentence = world.statement(rng, world.draw_fact(rng))
  elif drawn < 0.8:
    fact = world.draw_fact(rng)
    sentence = world.ask(rng, fact, rng.choice(('who', 'where', 'when')))
  else:
    sentence = world.opinion(rng, rng.random() < 0.5)
  return sentence if label == YES else world.spoil(rng, sentence)


def yes_no(rng: random.Random, label: int) -> tuple[str, str]:
  """Draws (question, passage); label 1 where the answer is yes."""
  fact = world.draw_fact(rng)
  asked = world.drop(rng, fact)
  if label != YES:
    if rng.random() < 0.15:
      fact = world.change(rng, fact, 'never')
    else:
      fields = ['name', 'verb', 'thing']
      fields += [f for f in world.OPTIONAL if getattr(asked, f)]
      asked = world.change_some(rng, asked, fields)
  return world.yes_no_question(rng, asked), world.statement(rng, fact)


SIMILARITY_FIELDS = ('name', 'verb', 'thing', 'place', 'day')


def similarity(rng: random.Random, level: int) -> tuple[str, str]:
  """Draws two statements that share `level` (0..5) of five fields."""
  fact = dataclasses.replace(
    world.draw_fact(rng, optional=0.0),
    colour=None,
    place=rng.choice(world.PLACES),
    day=rng.choice(world.DAYS),
  )
  second = fact
  fields = list(SIMILARITY_FIELDS)
  rng.shuffle(fields)
  for field in fields[level:]:
    second = world.change(rng, second, field)
  return world.statement(rng, fact), world.statement(rng, second)


def as_book(rng: random.Random, fact: world.Fact) -> world.Fact:
  """Returns the fact about a book with a title, of no colour."""
  return dataclasses.replace(
    fact, thing='book', colour=None, title=rng.choice(world.TITLES)
  )


def reading(rng: random.Random, books: float = 0.0) -> tuple[str, str, str]:
  """Draws a question about a text: a fact, at times with an opinion beside it.

  Args:
    rng: the source of chance.
    books: how often the fact is about a book, whose title is asked.

  Returns:
    (question, context, answer): the answer is a span of the context.
  """
  fact = world.draw_fact(rng)
  if rng.random() < books:
    fact = as_book(rng, fact)
    kind = 'which'
  else:
    kind = rng.choice(_kinds(fact))
  asked = world.drop(rng, fact, {'where': 'place', 'when': 'day'}.get(kind))
  context = with_noise(rng, world.statement(rng, fact), 0.3)
  return world.ask(rng, asked, kind), context, world.answer(fact, kind)


def cloze(
  rng: random.Random, books: float = 0.0
) -> tuple[str, list[str], str, str]:
  """Draws a sentence with a hole that one of the entities fills.

  Args:
    rng: the source of chance.
    books: how often the fact is about a book, whose title is an entity.

  Returns:
    (query, entities in the order of the passage, passage, answer).
  """
  fact = dataclasses.replace(
    world.draw_fact(rng), place=rng.choice(world.PLACES)
  )
  if rng.random() < books:
    fact = as_book(rng, fact)
  passage = with_noise(rng, world.statement(rng, fact), 0.3)
  known = set(world.NAMES + world.PLACES + world.TITLES)
  entities = [w for w in passage.split() if w in known]
  field = rng.choice(
    ('name', 'place', 'title') if fact.title else ('name', 'place')
  )
  said = world.drop(rng, fact, 'place')
  gold = getattr(fact, field)
  hole: dict[str, Any] = {field: world.HOLE}
  query = world.statement(rng, dataclasses.replace(said, **hole))
  return query, entities, passage, gold
