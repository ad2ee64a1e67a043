"""TFDS examples to T5's texts, letter by letter as T5 was trained on them.

Nothing is stripped or lower-cased. Features that evaluation needs are kept.
"""

from collections.abc import Sequence

import seqio
import tensorflow as tf

# What T5 writes where there is no label.
NO_LABEL = '<unk>'


@seqio.map_over_dataset
def classification(
  example, prefix: str, fields: Sequence[str], labels: Sequence[str]
):
  """Writes "prefix field: text field: text" and the label's word.

  Args:
    example: has the features `fields`, and `label` (-1 where it is hidden).
    prefix: the first word.
    fields: in the order in which they appear.
    labels: words in the order of the class ids.

  Returns:
    `inputs`, `targets`, and `idx`.
  """
  parts: list = [prefix]
  for field in fields:
    parts += [f'{field}:', example[field]]
  words = tf.constant([NO_LABEL, *labels])
  return {
    'inputs': tf.strings.join(parts, separator=' '),
    'targets': words[example['label'] + 1],
    'idx': example['idx'],
  }


@seqio.map_over_dataset
def stsb(example):
  """Writes a similarity score as a number on a grid of 0.2.

  Args:
    example: has `sentence1`, `sentence2` and the float `label`, 0 to 5.

  Returns:
    `inputs`, `targets`, and `idx`.
  """
  rounded = tf.round(example['label'] * 5) / 5
  return {
    'inputs': tf.strings.join(
      [
        'stsb sentence1:',
        example['sentence1'],
        'sentence2:',
        example['sentence2'],
      ],
      separator=' ',
    ),
    'targets': tf.strings.as_string(rounded, precision=1),
    'idx': example['idx'],
  }


def _collapse(text):
  return tf.strings.regex_replace(text, r'\s+', ' ')


def _pad_punctuation(text):
  """Puts spaces around ASCII punctuation; typographic marks stay."""
  return _collapse(tf.strings.regex_replace(text, '([[:punct:]])', r' \1 '))


@seqio.map_over_dataset
def squad(example):
  """Writes "question: ... context: ..." and the first answer.

  Args:
    example: as in TFDS' `squad`.

  Returns:
    `inputs`, `targets`, and, padded in the same way, `question`, `context`
    and all `answers`; `id`.
  """
  question = _pad_punctuation(example['question'])
  context = _pad_punctuation(example['context'])
  answers = _pad_punctuation(example['answers']['text'])
  inputs = tf.strings.join(
    ['question:', question, 'context:', context], separator=' '
  )
  return {
    'inputs': _collapse(inputs),
    'targets': answers[0],
    'question': question,
    'context': context,
    'answers': answers,
    'id': example['id'],
  }


def record(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Writes ReCoRD's query, entities and passage; one example per answer.

  Args:
    dataset: examples as in TFDS' `super_glue/record`.

  Returns:
    Examples with `inputs`, `targets`, all `answers`, and the query's number
    as `idx/passage` and `idx/query`.
  """

  def per_answer(example):
    # A highlight line becomes a sentence, with a stop if it has none.
    passage = tf.strings.regex_replace(
      example['passage'], '(\\.|\\?|\\!|"|\')\n@highlight\n', r'\1 '
    )
    passage = tf.strings.regex_replace(passage, '\n@highlight\n', '. ')
    inputs = tf.strings.join(
      [
        'record query:',
        example['query'],
        'entities:',
        tf.strings.reduce_join(example['entities'], separator=', '),
        'passage:',
        passage,
      ],
      separator=' ',
    )
    answers = example['answers']
    targets = tf.cond(
      tf.size(answers) > 0,
      lambda: answers,
      lambda: tf.constant([NO_LABEL]),
    )
    shared = {
      'inputs': inputs,
      'answers': answers,
      'idx/passage': example['idx']['passage'],
      'idx/query': example['idx']['query'],
    }
    count = tf.size(targets)
    repeated = {
      key: tf.repeat(value[None], count, axis=0)
      for key, value in shared.items()
    }
    return {**repeated, 'targets': targets}

  return dataset.map(per_answer, num_parallel_calls=tf.data.AUTOTUNE).unbatch()
