"""A reader of the synthetic world.

It parses sentences back into facts, on its own: a wrong rule in the generator
cannot agree with itself here.
"""

from tasks.offline import world

OPTIONAL = ('colour', 'place', 'day')


def read(sentence):
  """Parses a statement or question; a field that it lacks is None."""
  words = sentence.split()

  def pick(pool):
    found = [w for w in words if w in pool]
    assert len(found) <= 1, sentence
    return found[0] if found else None

  verbs = {form: i for i, pair in enumerate(world.VERBS) for form in pair}
  verb = pick(verbs)
  return {
    'name': pick(world.NAMES),
    'verb': None if verb is None else verbs[verb],
    'thing': pick((*world.OBJECTS, *world.CLASSES)),
    'colour': pick(world.COLOURS),
    'place': pick(world.PLACES),
    'day': pick(world.DAYS),
    'never': 'never' in words,
  }


def fits(thing, claimed):
  return claimed in (thing, world.CLASS_OF[thing])


def telling(text):
  """The sentence with a fact; the other one is an opinion."""
  return next(s for s in text.split(' . ') if read(s)['name'])


def relation(premise, hypothesis):
  fact = read(telling(premise))
  claim = read(hypothesis)
  if (
    fact['name'] != claim['name']
    or fact['verb'] != claim['verb']
    or not fits(fact['thing'], claim['thing'])
    or any(claim[f] and not fact[f] for f in OPTIONAL)
  ):
    return 'neutral'
  if fact['never'] != claim['never'] or any(
    claim[f] and claim[f] != fact[f] for f in OPTIONAL
  ):
    return 'contradiction'
  return 'entailment'


def asked_field(question):
  words = question.split()
  if 'who' in words or 'whom' in words:
    return 'name'
  if words[0] == 'where' or 'place' in words:
    return 'place'
  if words[0] == 'when' or 'day' in words:
    return 'day'
  return 'thing'


def answers(question, sentence):
  field = asked_field(question)
  known, fact = read(question), read(sentence)
  skip = {field} | ({'colour'} if field == 'thing' else set())
  agrees = all(
    known[f] in (None, fact[f]) for f in known if f not in {*skip, 'never'}
  )
  return agrees and fact[field] is not None


def good(opinion):
  """Whether the last clause is good: 'and' joins two of one mind."""
  words = opinion.split(' but ')[-1].split(' and ')[-1].split()
  return (words[-1] in world.GOOD) != ('not' in words)
