"""What happens to TFDS examples before the templates make texts of them.

The texts are T5's, letter by letter. Nothing is stripped or lower-cased.
"""

import seqio
import tensorflow as tf

from mpt_jax.data.labels import NO_LABEL


@seqio.map_over_dataset
def similarity(example):
  """Adds STS-B's `score` as text, on a grid of 0.2, halves to even."""
  rounded = tf.round(example['label'] * 5) / 5
  return {**example, 'score': tf.strings.as_string(rounded, precision=1)}


def _collapse(text):
  return tf.strings.regex_replace(text, r'\s+', ' ')


def _pad_punctuation(text):
  """Puts spaces around ASCII punctuation; typographic marks stay."""
  return _collapse(tf.strings.regex_replace(text, '([[:punct:]])', r' \1 '))


def _padded(example, answers, name):
  answers = _pad_punctuation(answers)
  return {
    'question': _pad_punctuation(example['question']),
    'context': _pad_punctuation(example['context']),
    'answers': answers,
    'answer': answers[0],
    'id': name,
  }


@seqio.map_over_dataset
def squad(example):
  """Pads `question`, `context` and all `answers`; `answer` is the first."""
  return _padded(example, example['answers']['text'], example['id'])


@seqio.map_over_dataset
def mrqa(example):
  """Does as `squad` in MRQA's schema: answers are texts, `qid` is the id."""
  return _padded(example, example['answers'], example['qid'])


@seqio.map_over_dataset
def collapse_inputs(example):
  """Makes one space of every run of white space in `inputs`."""
  return {**example, 'inputs': _collapse(example['inputs'])}


def record(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Makes one example per answer; a highlight line becomes a sentence.

  Args:
    dataset: examples as in TFDS' `super_glue/record`.

  Returns:
    Examples with `query`, `entities` (one text), `passage`, their `answer`
    (`<unk>` if there is none), all `answers`, and the query's number as
    `idx/passage` and `idx/query`.
  """

  def per_answer(example):
    passage = tf.strings.regex_replace(
      example['passage'], '(\\.|\\?|\\!|"|\')\n@highlight\n', r'\1 '
    )
    passage = tf.strings.regex_replace(passage, '\n@highlight\n', '. ')
    answers = example['answers']
    shared = {
      'query': example['query'],
      'entities': tf.strings.reduce_join(example['entities'], separator=', '),
      'passage': passage,
      'answers': answers,
      'idx/passage': example['idx']['passage'],
      'idx/query': example['idx']['query'],
    }
    each = tf.cond(
      tf.size(answers) > 0, lambda: answers, lambda: tf.constant([NO_LABEL])
    )
    repeated = {
      key: tf.repeat(value[None], tf.size(each), axis=0)
      for key, value in shared.items()
    }
    return {**repeated, 'answer': each}

  return dataset.map(per_answer, num_parallel_calls=tf.data.AUTOTUNE).unbatch()


@seqio.map_over_dataset
def multirc(example):
  """Removes MultiRC's mark-up: `<br>` becomes a space, `<b>` nothing."""

  def clean(text):
    text = tf.strings.regex_replace(text, '<br>', ' ')
    return tf.strings.regex_replace(text, '</?b>', '')

  fields = ('question', 'answer', 'paragraph')
  return {**example, **{field: clean(example[field]) for field in fields}}


def _escape(text):
  """Escapes a text for RE2."""
  return tf.strings.regex_replace(text, '([[:punct:]])', r'\\\1')


def _mark(text, word, index, mark):
  """Puts a mark on both sides of the words that begin at a word's index."""
  before = tf.strings.join(
    [r'^((?:\S+\s){', tf.strings.as_string(index), '})(', _escape(word), ')']
  )
  return tf.strings.regex_replace(text, before, rf'\1{mark} \2 {mark}')


@seqio.map_over_dataset
def wsc_spans(example):
  """Marks WSC's noun by ` * ` and the pronoun by ` # ` in `text`."""
  noun, pronoun = example['span1_index'], example['span2_index']
  text = _mark(example['text'], example['span1_text'], noun, '*')
  # The first marks are words too.
  shift = 2 * tf.cast(noun < pronoun, pronoun.dtype)
  text = _mark(text, example['span2_text'], pronoun + shift, '#')
  return {**example, 'text': text}


@seqio.map_over_dataset
def wsc_pronoun(example):
  """Marks WSC's pronoun in `text`: `*it*`.

  In two texts of the data the index is not that of the pronoun alone: it is
  of 'him,"' or of the word before. T5 has their marked texts written out;
  the same come out here.
  """
  words = tf.strings.split([example['text']], sep=' ').values
  index, pronoun = example['span2_index'], example['span2_text']
  word, length = words[index], tf.strings.length(pronoun)
  same = tf.equal(word, pronoun)
  begins = tf.equal(tf.strings.substr(word, 0, length), pronoun) & ~same
  place = index + tf.cast(~same & ~begins, index.dtype)
  rest = tf.strings.substr(word, length, tf.strings.length(word))
  after = tf.cond(
    begins,
    lambda: tf.concat([rest[None], words[place + 1 :]], axis=0),
    lambda: words[place + 1 :],
  )
  text = tf.strings.join(
    [
      tf.strings.reduce_join(words[:place], separator=' '),
      tf.strings.join(['*', pronoun, '*']),
      tf.strings.reduce_join(after, separator=' '),
    ],
    separator=' ',
  )
  text = tf.cond(begins, lambda: tf.strings.strip(text), lambda: text)
  return {**example, 'text': text}


def is_true(example) -> tf.Tensor:
  """Whether a WSC example's noun is what the pronoun means."""
  return tf.equal(example['label'], 1)


@seqio.map_over_dataset
def slots_to_text(example):
  """Writes E2E's table as its `meaning_representation`: name[Aromi], ..."""
  table = example['input_text']['table']
  slots = tf.strings.join([table['column_header'], '[', table['content'], ']'])
  text = tf.strings.reduce_join(slots, separator=', ')
  return {'meaning_representation': text, 'target': example['target_text']}


# Between WebNLG's triples.
_AND = ' && '


@seqio.map_over_dataset
def table_to_triples(example):
  """Writes WebNLG's table as `triples`: s | p | o && s | p | o."""
  table = example['input_text']['table']
  rows = table['row_number']
  begins = tf.not_equal(rows[1:], rows[:-1])
  between = tf.where(begins, _AND, ' | ')
  separators = tf.concat(
    [tf.fill([tf.minimum(tf.size(rows), 1)], ''), between], 0
  )
  pieces = tf.strings.join([separators, table['content']])
  return {
    'triples': tf.strings.reduce_join(pieces),
    'target': example['target_text'],
  }


@seqio.map_over_dataset
def join_triples(example):
  """Joins GEM's list of triples to `triples`: s | p | o && s | p | o."""
  triples = tf.strings.reduce_join(example['input'], separator=_AND)
  return {**example, 'triples': triples}
