"""Stories of several facts, and what can be asked about them.

As in `skills.py`, each function draws one example, true by construction. The
demo backbone's pretraining has none of these.
"""

from collections.abc import Sequence
import dataclasses
import random
from typing import Any

from tasks.offline import skills, world

# (sentence, character offset of the word)
Use = tuple[str, int]

# Kind of question -> the field of a fact that it asks for.
ASKED = {'who': 'name', 'what': 'thing', 'where': 'place', 'when': 'day'}
PRONOUN = 'it'
GAP = '_'

# What becomes of a thing, as indices into `world.VERBS`: it is made, sold,
# bought, moved, lost, found, cleaned, fixed. Each is why the next can be.
LIFE = (3, 5, 0, 7, 2, 1, 4, 6)
DIRECTIONS = {'cause': -1, 'effect': 1}

# These words mean one thing of what is eaten, and another of what is told.
TWO_SENSES = ('warm', 'cold', 'fresh', 'stale')
SENSES = (
  ('food', *world.CLASSES['fruit']),
  ('film', 'music', 'story', 'actor'),
)


def story(rng: random.Random, count: int) -> list[world.Fact]:
  """Draws facts that share no name, action, class, colour, place or day."""
  facts: list[world.Fact] = []
  while len(facts) < count:
    fact = world.draw_fact(rng)
    if all(_apart(fact, other) for other in facts):
      facts.append(fact)
  return facts


def _apart(one: world.Fact, two: world.Fact) -> bool:
  if world.CLASS_OF[one.thing] == world.CLASS_OF[two.thing]:
    return False
  fields = ('name', 'verb', *world.OPTIONAL)
  return not any(getattr(one, f) == getattr(two, f) is not None for f in fields)


def retell(rng: random.Random, fact: world.Fact, count: int) -> list[str]:
  """Draws so many different statements of one fact; there are four or more."""
  told: list[str] = []
  while len(told) < count:
    text = world.statement(rng, fact)
    if text not in told:
      told.append(text)
  return told


def question(rng: random.Random, fact: world.Fact) -> tuple[str, str]:
  """Draws (question, its kind) about a fact of a story.

  Beside what is asked, at least the action and the name or the thing are said:
  no other fact of the story answers.
  """
  kinds = ['who', 'what']
  kinds += ['where'] if fact.place else []
  kinds += ['when'] if fact.day else []
  kind = rng.choice(kinds)
  keep = {'where': 'place', 'when': 'day'}.get(kind)
  return world.ask(rng, world.drop(rng, fact, keep), kind), kind


def accepted(fact: world.Fact, kind: str) -> list[str]:
  """Lists the right answers: a thing may be named without its colour."""
  answers = [world.answer(fact, kind)]
  if kind == 'what' and fact.colour:
    answers.append(fact.thing)
  return answers


def reading(
  rng: random.Random, others: int, told: int, opinions: int
) -> tuple[str, list[str], list[str]]:
  """Draws a question about a passage of several sentences.

  Args:
    rng: the source of chance.
    others: how many other facts are told.
    told: how often the fact that answers is told, in different words.
    opinions: how many opinions there are.

  Returns:
    (question, sentences, right answers): each answer is a span of each
    sentence that tells the fact, and nowhere else in the passage.
  """
  fact, *rest = story(rng, 1 + others)
  asked, kind = question(rng, fact)
  sentences = retell(rng, fact, told)
  sentences += [world.statement(rng, other) for other in rest]
  sentences += [world.opinion(rng, rng.random() < 0.5) for _ in range(opinions)]
  rng.shuffle(sentences)
  return asked, sentences, accepted(fact, kind)


def judged_answers(
  rng: random.Random, fact: world.Fact, count: int
) -> tuple[str, list[tuple[str, int]]]:
  """Draws a question about a fact of a story, and answers to judge.

  An answer is a word or two, or a whole sentence.

  Args:
    rng: the source of chance.
    fact: what the question is about.
    count: how many answers there are; some are right and some are wrong.

  Returns:
    (question, [(answer, 1 if it is right)]).
  """
  asked, kind = question(rng, fact)
  field = ASKED[kind]
  right = rng.randint(1, count - 1)
  judged: dict[str, int] = {}
  while len(judged) < count:
    label = int(len(judged) < right)
    said = fact if label else world.change(rng, fact, field)
    answer = rng.choice([*accepted(said, kind), world.statement(rng, said)])
    judged.setdefault(answer, label)
  answers = list(judged.items())
  rng.shuffle(answers)
  return asked, answers


def _replaced(
  rng: random.Random, fact: world.Fact, field: str, word: str
) -> str:
  """Tells a fact with a word in the place of its name or of its thing."""
  hole: dict[str, Any] = {field: world.HOLE}
  said = dataclasses.replace(world.drop(rng, fact), **hole)
  if field == 'name':
    return world.statement(rng, said).replace(world.HOLE, word)
  said = dataclasses.replace(said, colour=None)
  return world.statement(rng, said).replace(f'the {world.HOLE}', word)


def referent(
  rng: random.Random, label: int
) -> tuple[str, tuple[int, str], int]:
  """Draws two facts, and one of them again with a pronoun for its thing.

  Args:
    rng: the source of chance.
    label: 1 if the pronoun means the thing that is pointed at.

  Returns:
    (text, (word offset of the thing, its words), word offset of the pronoun).
  """
  facts = story(rng, 2)
  again = rng.choice(facts)
  pointed = again if label else world.other(rng, facts, again)
  sentences = [
    *(world.statement(rng, fact) for fact in facts),
    _replaced(rng, again, 'thing', PRONOUN),
  ]
  words = ' . '.join(sentences).split()
  thing = ['the', *([pointed.colour] if pointed.colour else []), pointed.thing]
  start = words.index(pointed.thing) + 1 - len(thing)
  return (
    ' '.join(words),
    (start, ' '.join(thing)),
    words.index(PRONOUN),
  )


def gap(rng: random.Random, label: int) -> tuple[str, tuple[str, str]]:
  """Draws two facts, and one of them again with a gap.

  Args:
    rng: the source of chance.
    label: which of the options fills the gap, 0 or 1.

  Returns:
    (text, the two options): both are names or both are things of the text.
  """
  facts = story(rng, 2)
  again = rng.choice(facts)
  field = rng.choice(('name', 'thing'))
  word = GAP if field == 'name' else f'the {GAP}'
  sentences = [
    *(world.statement(rng, fact) for fact in facts),
    _replaced(rng, again, field, word),
  ]
  options = [getattr(again, field)]
  wrong = getattr(world.other(rng, facts, again), field)
  options.insert(1 - label, wrong)
  return ' . '.join(sentences), (options[0], options[1])


def consequence(
  rng: random.Random, label: int
) -> tuple[str, str, tuple[str, str]]:
  """Draws what became of a thing, and two guesses at its cause or effect.

  The wrong guess is the other one of cause and effect, or tells of another
  thing.

  Args:
    rng: the source of chance.
    label: which of the choices is right, 0 or 1.

  Returns:
    (premise, 'cause' or 'effect', the two choices).
  """
  direction = rng.choice(tuple(DIRECTIONS))
  step = DIRECTIONS[direction]
  # Somewhere in the middle, where both cause and effect are known.
  at = rng.randrange(1, len(LIFE) - 1)
  thing = rng.choice(world.OBJECTS)
  colour = rng.choice((None, *world.COLOURS))

  def event(number: int) -> world.Fact:
    name = rng.choice(world.NAMES)
    return world.Fact(name, LIFE[number], thing, colour)

  right = event(at + step)
  if rng.random() < 0.5:
    wrong = event(at - step)
  else:
    wrong = world.change(rng, event(at + step), 'thing')
  choices = [world.statement(rng, right)]
  choices.insert(1 - label, world.statement(rng, wrong))
  premise = world.statement(rng, event(at))
  return premise, direction, (choices[0], choices[1])


def word_senses(rng: random.Random, label: int) -> tuple[str, tuple[Use, Use]]:
  """Draws two uses of a word that has two senses.

  Args:
    rng: the source of chance.
    label: 1 if the word means the same in both.

  Returns:
    (word, its two uses).
  """
  word = rng.choice(TWO_SENSES)
  sense = rng.randrange(len(SENSES))
  first = _use(rng, word, SENSES[sense])
  second = first
  while second == first:
    second = _use(rng, word, SENSES[sense if label else 1 - sense])
  return word, (first, second)


def _use(rng: random.Random, word: str, subjects: Sequence[str]) -> Use:
  degree = rng.choice(('', 'very ', 'quite ', 'not '))
  before = f'the {rng.choice(subjects)} was {degree}'
  tail = [f'in the {rng.choice(world.PLACES)}', f'on {rng.choice(world.DAYS)}']
  rng.shuffle(tail)
  after = ' '.join(['', *tail[: rng.randrange(3)]])
  return f'{before}{word}{after}', len(before)


def review(rng: random.Random, label: int) -> str:
  """Draws two opinions of one mind, good if label is 1."""
  return f'{skills.sentiment(rng, label)} . {skills.sentiment(rng, label)}'
