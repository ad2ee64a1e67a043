"""The data sets beside the demo's whose answer is a class or a span."""

import random
from typing import Any

from tasks.offline import skills, stories, world
from tasks.offline.rows import (
  SMALL_HALVED,
  SMALL_HELD_OUT,
  SMALL_OFFICIAL,
  Dataset,
  Row,
  as_drawn,
  single,
)

MULTIRC_FACTS = 3
MULTIRC_QUESTIONS = 2
MULTIRC_ANSWERS = 5
MULTIRC_ROWS = MULTIRC_QUESTIONS * MULTIRC_ANSWERS


def _multirc(rng: random.Random, split: str) -> list[Row]:
  del split
  facts = stories.story(rng, MULTIRC_FACTS)
  paragraph = ''.join(
    f'<b>Sent {i}: </b>{world.statement(rng, fact)} .<br>'
    for i, fact in enumerate(facts, 1)
  )
  rows = []
  for fact in rng.sample(facts, MULTIRC_QUESTIONS):
    question, judged = stories.judged_answers(rng, fact, MULTIRC_ANSWERS)
    for answer, label in judged:
      rows.append(
        {
          'paragraph': paragraph,
          'question': question,
          'answer': answer,
          'label': label,
        }
      )
  return rows


def _multirc_idx(row: Row, split: str, number: int) -> Row:
  """Numbers paragraphs, questions and answers through the whole split."""
  del split
  idx = {
    'paragraph': number // MULTIRC_ROWS,
    'question': number // MULTIRC_ANSWERS,
    'answer': number,
  }
  return {**row, 'idx': idx}


def _wic(rng: random.Random) -> Row:
  label = rng.randrange(2)
  word, uses = stories.word_senses(rng, label)
  row: Row = {'word': word, 'label': label}
  for i, (sentence, start) in enumerate(uses, 1):
    row[f'sentence{i}'] = sentence
    row[f'start{i}'] = start
    row[f'end{i}'] = start + len(word)
  return row


def _wsc(rng: random.Random) -> Row:
  label = rng.randrange(2)
  text, (thing, words), pronoun = stories.referent(rng, label)
  return {
    'text': text,
    'span1_index': thing,
    'span1_text': words,
    'span2_index': pronoun,
    'span2_text': stories.PRONOUN,
    'label': label,
  }


def _copa(rng: random.Random) -> Row:
  label = rng.randrange(2)
  premise, question, choices = stories.consequence(rng, label)
  return {
    'premise': premise,
    'question': question,
    'choice1': choices[0],
    'choice2': choices[1],
    'label': label,
  }


def _super_glue_rte(rng: random.Random) -> Row:
  yes = rng.randrange(2)
  premise, hypothesis = skills.entailment(rng, yes)
  return {'premise': premise, 'hypothesis': hypothesis, 'label': 1 - yes}


def _winogrande(rng: random.Random) -> Row:
  label = rng.randrange(2)
  sentence, options = stories.gap(rng, label)
  return {
    'sentence': sentence,
    'option1': options[0],
    'option2': options[1],
    'label': label,
  }


def _yelp_polarity(rng: random.Random) -> Row:
  label = rng.randrange(2)
  return {'text': stories.review(rng, label), 'label': label}


def _imdb(rng: random.Random) -> Row:
  label = rng.randrange(2)
  return {'text': stories.review(rng, label), 'label': label}


def _snli(rng: random.Random) -> Row:
  label = rng.randrange(3)
  premise, hypothesis = skills.nli(rng, label)
  return {'premise': premise, 'hypothesis': hypothesis, 'label': label}


def _scitail(rng: random.Random) -> Row:
  # The classes are entailment and neutral: there are no contradictions.
  label = rng.randrange(2)
  premise, hypothesis = skills.nli(rng, label)
  return {'premise': premise, 'hypothesis': hypothesis, 'label': label}


def _paws_wiki(rng: random.Random) -> Row:
  label = rng.randrange(2)
  first, second = skills.paraphrase(rng, label)
  return {'sentence1': first, 'sentence2': second, 'label': label}


def _tokens(text: str) -> dict[str, list[Any]]:
  """Splits a text at its single spaces, with character offsets."""
  tokens = text.split(' ')
  offsets, at = [], 0
  for token in tokens:
    offsets.append(at)
    at += len(token) + 1
  return {'tokens': tokens, 'offsets': offsets}


def _detected(context: dict[str, list[Any]], answer: str) -> Row:
  """Finds an answer in the context; ends are inclusive, as MRQA has them."""
  words = answer.split()
  tokens, offsets = context['tokens'], context['offsets']
  starts = [
    i for i in range(len(tokens)) if tokens[i : i + len(words)] == words
  ]
  return {
    'text': answer,
    'char_spans': [
      {'start': offsets[i], 'end': offsets[i] + len(answer) - 1} for i in starts
    ],
    'token_spans': [{'start': i, 'end': i + len(words) - 1} for i in starts],
  }


def _mrqa(
  name: str,
  subset: str,
  others: int,
  told: int = 1,
  opinions: int = 0,
  mark: str = '',
) -> Dataset:
  """Returns one of the four MRQA sets.

  Args:
    name: as in `mrqa/NAME`.
    subset: the name that the data give to themselves.
    others: how many facts the context has that do not answer.
    told: how often it tells the fact that does.
    opinions: how many opinions it has.
    mark: stands before each sentence of the context.
  """

  def make(rng: random.Random) -> Row:
    question, sentences, answers = stories.reading(rng, others, told, opinions)
    context = ' '.join(f'{mark} {s} .'.strip() for s in sentences)
    tokens = _tokens(context)
    return {
      'subset': subset,
      'question': question,
      'question_tokens': _tokens(question),
      'context': context,
      'context_tokens': tokens,
      'answers': answers,
      'detected_answers': [_detected(tokens, answer) for answer in answers],
    }

  def identify(row: Row, split: str, number: int) -> Row:
    return {**row, 'qid': f'{name}-{split}-{number}'}

  return Dataset(
    f'mrqa_{name}',
    f'mrqa/{name}:1.0.0',
    single(make),
    SMALL_HELD_OUT,
    identify,
    unique=('question', 'context'),
    hidden=(),
  )


DATASETS = (
  Dataset(
    'multirc',
    'super_glue/multirc:1.0.2',
    _multirc,
    SMALL_HALVED,
    _multirc_idx,
    unique=('paragraph',),
  ),
  Dataset('wic', 'super_glue/wic:1.0.2', single(_wic), SMALL_HALVED),
  Dataset('wsc', 'super_glue/wsc.fixed:1.0.2', single(_wsc), SMALL_HALVED),
  Dataset('copa', 'super_glue/copa:1.0.2', single(_copa), SMALL_HALVED),
  Dataset(
    'super_glue_rte',
    'super_glue/rte:1.0.2',
    single(_super_glue_rte),
    SMALL_HALVED,
  ),
  _mrqa('natural_questions', 'NaturalQuestionsShort', others=1),
  _mrqa('hotpot_qa', 'HotpotQA', others=2, mark='[PAR]'),
  _mrqa('news_qa', 'NewsQA', others=1, opinions=2),
  _mrqa('search_qa', 'SearchQA', others=1, told=2, mark='[DOC]'),
  Dataset(
    'winogrande',
    'winogrande:1.2.0',
    single(_winogrande),
    SMALL_HELD_OUT,
    as_drawn,
    spare=('train_l', 'train_m', 'train_s', 'train_xs'),
    train='train_xl',
  ),
  Dataset(
    'yelp_polarity',
    'yelp_polarity_reviews:0.2.0',
    single(_yelp_polarity),
    SMALL_HELD_OUT,
    as_drawn,
    heldout=('test',),
    hidden=(),
  ),
  Dataset(
    'imdb',
    'imdb_reviews/plain_text:1.0.0',
    single(_imdb),
    SMALL_HELD_OUT,
    as_drawn,
    heldout=('test',),
    hidden=(),
  ),
  Dataset(
    'snli',
    'snli:1.1.0',
    single(_snli),
    SMALL_OFFICIAL,
    as_drawn,
    heldout=('validation', 'test'),
    hidden=(),
  ),
  # Its test split has labels, but the papers halve the validation split.
  Dataset(
    'scitail',
    'sci_tail:1.0.0',
    single(_scitail),
    SMALL_HALVED,
    as_drawn,
    hidden=(),
    spare=('test',),
  ),
  Dataset(
    'paws_wiki',
    'paws_wiki/labeled_final_tokenized:1.1.0',
    single(_paws_wiki),
    SMALL_OFFICIAL,
    as_drawn,
    heldout=('validation', 'test'),
    hidden=(),
  ),
)
