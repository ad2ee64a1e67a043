"""The data sets whose answer is a text: E2E and WebNLG, old and new.

The input is a fact as a table; each of its statements is a right answer. The
old data sets have a row for each text, the GEM ones a list of references in
the splits that a task tests on.
"""

import dataclasses
import random

from tasks.offline import stories, world
from tasks.offline.rows import SMALL_OFFICIAL, Dataset, Row, as_drawn

# How many right texts an input has.
TEXTS = (2, 4)
# WebNLG tests on categories too that training has not seen.
UNSEEN = 'dish'
SEEN = tuple(c for c in world.CLASSES if c != UNSEEN)


def _texts(rng: random.Random, fact: world.Fact) -> list[str]:
  return stories.retell(rng, fact, rng.randint(*TEXTS))


def _attributes(fact: world.Fact) -> dict[str, str]:
  """Lists what is given of a fact, under names like E2E's."""
  given = {
    'name': fact.name,
    'action': world.VERBS[fact.verb][0],
    'thing': fact.thing,
    'colour': fact.colour,
    'area': fact.place,
    'day': fact.day,
  }
  return {key: value for key, value in given.items() if value}


def _e2e_cleaned(rng: random.Random, split: str) -> list[Row]:
  del split
  fact = world.draw_fact(rng)
  table = [
    {'column_header': key, 'row_number': 1, 'content': value}
    for key, value in _attributes(fact).items()
  ]
  return [
    {'input_text': {'table': table}, 'target_text': text}
    for text in _texts(rng, fact)
  ]


def _references(split: str, texts: list[str]) -> Row:
  """Returns GEM's target and references; training has no references."""
  return {'target': texts[0], 'references': [] if split == 'train' else texts}


def _gem_e2e_nlg(rng: random.Random, split: str) -> list[Row]:
  fact = world.draw_fact(rng)
  meaning = ', '.join(f'{k}[{v}]' for k, v in _attributes(fact).items())
  texts = _texts(rng, fact)
  return [{'meaning_representation': meaning, **_references(split, texts)}]


def _gem_id(config: str, split: str, number: int) -> Row:
  name = f'{config}-{split}-{number}'
  return {'gem_id': name, 'gem_parent_id': name}


def _gem_e2e_id(row: Row, split: str, number: int) -> Row:
  return {**row, **_gem_id('e2e_nlg', split, number)}


def _fact_in(rng: random.Random, category: str) -> world.Fact:
  thing = rng.choice(world.CLASSES[category])
  return dataclasses.replace(world.draw_fact(rng), thing=thing)


def _category(rng: random.Random, split: str) -> str:
  """Draws a class of things; half of a test is of the unseen one."""
  tested = split.startswith('test')
  if split == 'test_unseen' or (tested and rng.random() < 0.5):
    return UNSEEN
  return rng.choice(SEEN)


def _triples(fact: world.Fact) -> list[tuple[str, str, str]]:
  """Lists what is given of a fact as (subject, predicate, object)."""
  triples = [(fact.name, world.VERBS[fact.verb][0], fact.thing)]
  about = {'was': fact.colour, 'in': fact.place, 'on': fact.day}
  triples += [(fact.thing, p, value) for p, value in about.items() if value]
  return triples


def _gem_web_nlg(rng: random.Random, split: str) -> list[Row]:
  category = _category(rng, split)
  fact = _fact_in(rng, category)
  texts = _texts(rng, fact)
  return [
    {
      'input': [' | '.join(triple) for triple in _triples(fact)],
      'category': category,
      **_references(split, texts),
    }
  ]


def _gem_web_nlg_id(row: Row, split: str, number: int) -> Row:
  entry = f'{split}/{row["category"]}/{len(row["input"])}/Id{number}'
  ids = _gem_id('web_nlg_en', split, number)
  return {**row, 'webnlg_id': entry, **ids}


def _web_nlg(rng: random.Random, split: str) -> list[Row]:
  category = _category(rng, split)
  fact = _fact_in(rng, category)
  table = [
    {'column_header': header, 'row_number': number, 'content': content}
    for number, triple in enumerate(_triples(fact))
    for header, content in zip(
      ('subject', 'predicate', 'object'), triple, strict=True
    )
  ]
  return [
    {'input_text': {'context': category, 'table': table}, 'target_text': text}
    for text in _texts(rng, fact)
  ]


DATASETS = (
  Dataset(
    'e2e_cleaned',
    'e2e_cleaned:0.1.0',
    _e2e_cleaned,
    SMALL_OFFICIAL,
    as_drawn,
    unique=('input_text',),
    heldout=('validation', 'test'),
    hidden=(),
  ),
  Dataset(
    'gem_e2e_nlg',
    'gem/e2e_nlg:1.1.0',
    _gem_e2e_nlg,
    SMALL_OFFICIAL,
    _gem_e2e_id,
    unique=('meaning_representation',),
    heldout=('validation', 'test'),
    hidden=(),
  ),
  Dataset(
    'gem_web_nlg_en',
    'gem/web_nlg_en:1.1.0',
    _gem_web_nlg,
    SMALL_OFFICIAL,
    _gem_web_nlg_id,
    unique=('input',),
    heldout=('validation', 'test'),
    hidden=(),
  ),
  Dataset(
    'web_nlg',
    'web_nlg:0.1.0',
    _web_nlg,
    SMALL_OFFICIAL,
    as_drawn,
    unique=('input_text',),
    heldout=('validation', 'test_all', 'test_unseen'),
    hidden=(),
  ),
)
