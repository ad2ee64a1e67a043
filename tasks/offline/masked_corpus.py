"""The text and the vocabulary of the demo's encoder (`demo-roberta`).

The text is that of `corpus.py`, drawn from the same mixture in the same order
up to `LATE_FROM`, from where classes are asked for more often, and written as
an encoder reads it: what the T5s answer stands in front of what they are asked,
where a downstream template has its mask. Which skill is meant is said before
the begin mark, where prompts are put:

    relate <s> yes PREMISE </s></s> HYPOTHESIS </s>

Most answers are the words that the tasks' fillers are (`tasks/fillers.py`), as
in a real encoder's text "great" stands beside what is good; the others are the
skill's own. Style words, by which the T5s learn to answer in any, are left out.

A word is what the tokenizers library's `Whitespace` finds, letters or signs,
and each has a token.
"""

from collections.abc import Mapping
import dataclasses
import random
import re
from typing import Any

from tasks.offline import corpus

# Answers by class id of the skill, as `corpus.LABELS`.
FILLERS: Mapping[str, tuple[str, ...]] = {
  'relate': ('yes', 'maybe', 'no'),
  **dict.fromkeys(('imply', 'cover', 'same', 'twin', 'truth'), ('no', 'yes')),
  'mood': ('terrible', 'great'),
  'grammar': ('incorrect', 'correct'),
}
FILLERS_SHARE = 0.75
# What an encoder is for, from the text of this number on.
LATE_WEIGHTS: Mapping[str, float] = {
  **corpus.WEIGHTS,
  'mood': 2.4,
  'degree': 0.5,
  'read': 0.4,
  'fill': 0.4,
  'echo': 0.1,
  'span': 0.8,
}
LATE_FROM = 195_000
# Words of tasks that the corpus has none of.
OTHER_WORDS = tuple(
  'first second it cause effect Sent _ 0 1 2 3 4 5 6 7 8 9 : . ,'.split()
)
# Fields that an encoder reads in the other order.
_TURNED = ('relate', 'truth')

BEGIN, PAD, END, UNKNOWN, MASK = '<s>', '<pad>', '</s>', '<unk>', '<mask>'
_WORD = re.compile(r'\w+|[^\w\s]+')


@dataclasses.dataclass(frozen=True)
class Text:
  """A text to pretrain on, in words.

  Attributes:
    cue: what is asked, of which each word is said once or more; may be empty.
    answer: what stands where downstream the mask does; empty if nobody asks.
    fields: the texts behind it.
  """

  cue: tuple[str, ...]
  answer: tuple[str, ...]
  fields: tuple[tuple[str, ...], ...]


def split(text: str) -> tuple[str, ...]:
  """Splits a text into words, as the tokenizer does.

  Examples:
    >>> split('hank, @placeholder')
    ('hank', ',', '@', 'placeholder')
  """
  return tuple(_WORD.findall(text))


def skill_text(
  rng: random.Random,
  skill: str,
  fillers: bool = False,
  canonical: bool = False,
) -> Text:
  """Draws one text of a skill.

  Args:
    rng: the source of chance.
    skill: one of `corpus.SKILLS`.
    fillers: answer in `FILLERS`, where there are any, instead of the skill's
      own label words.
    canonical: without books, see `corpus.skill_example`.
  """
  fields, answer = corpus.drawn(rng, skill, None, canonical)
  if skill in _TURNED:
    fields = fields[::-1]
  if fillers and skill in FILLERS:
    answer = FILLERS[skill][corpus.LABELS[skill].index(answer)]
  return Text((skill,), split(answer), tuple(map(split, fields)))


def draw(rng: random.Random, number: int | None = None) -> Text:
  """Draws one text; arguments as `corpus.draw`."""
  if number is not None and number < LATE_FROM:
    kind, _ = corpus.choose(rng, number)
  else:
    [kind] = rng.choices(tuple(LATE_WEIGHTS), tuple(LATE_WEIGHTS.values()))
  if kind == 'span':
    return Text((), (), (split(' '.join(corpus.plain_text(rng))),))
  if kind == 'echo':
    _, word = corpus.echo_example(rng)
    return Text((kind,), split(word), (split(word),))
  return skill_text(rng, kind, rng.random() < FILLERS_SHARE)


def tokens() -> tuple[str, ...]:
  """Lists all tokens in the order of their ids, RoBERTa's special ones first.

  The mask is the last.
  """
  fillers = [w for words in FILLERS.values() for w in words]
  known = [w for word in corpus.words() for w in split(word)]
  words = dict.fromkeys([*known, *fillers, *OTHER_WORDS])
  return (BEGIN, PAD, END, UNKNOWN, *words, MASK)


def tokenizer_json() -> dict[str, Any]:
  """Returns the content of `tokenizer.json`: whole words, and RoBERTa's marks.

  A word is one token, whether a blank stands before it or not.
  """
  ids = {token: number for number, token in enumerate(tokens())}
  special = (BEGIN, PAD, END, UNKNOWN, MASK)
  return {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': [
      {
        'id': ids[token],
        'content': token,
        'single_word': False,
        'lstrip': token == MASK,
        'rstrip': False,
        'normalized': False,
        'special': True,
      }
      for token in special
    ],
    'normalizer': None,
    'pre_tokenizer': {'type': 'Whitespace'},
    'post_processor': {
      'type': 'RobertaProcessing',
      'sep': [END, ids[END]],
      'cls': [BEGIN, ids[BEGIN]],
      'trim_offsets': True,
      'add_prefix_space': False,
    },
    'decoder': None,
    'model': {'type': 'WordLevel', 'vocab': ids, 'unk_token': UNKNOWN},
  }
