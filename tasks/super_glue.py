"""SuperGLUE (https://super.gluebenchmark.com), TFDS version 1.0.2."""

from tasks import fillers, metrics, postprocessors, preprocessors
from tasks.glue import ACCURACY
from tasks.splits import halve, hold_out
from tasks.table import Task, digits, register

FALSE_TRUE = ('False', 'True')
MULTIRC_KEYS = ('idx/paragraph', 'idx/question', 'idx/answer')
RECORD_KEYS = ('answers', 'idx/passage', 'idx/query')

# fmt: off
MULTIRC = Task(
  name='multirc', tfds_name='super_glue/multirc:1.0.2',
  counts={'train': 27_243, 'validation': 4_848}, splits=halve,
  prepare=preprocessors.multirc,
  inputs='multirc question: {question} answer: {answer}'
         ' paragraph: {paragraph}',
  labels=FALSE_TRUE,
  masked='{mask} {question} {answer}{sep}{paragraph}',
  fillers=fillers.pairs(*FALSE_TRUE),
  keep=MULTIRC_KEYS,
  postprocess=postprocessors.grouped_class_id,
  metrics=(metrics.f1_over_answers, metrics.exact_match_per_group,
           metrics.invalid),
  note='the halves cut through questions, which exact_match feels, f1 not')
BOOLQ = Task(
  name='boolq', tfds_name='super_glue/boolq:1.0.2',
  counts={'train': 9_427, 'validation': 3_270}, splits=halve,
  inputs='boolq passage: {passage} question: {question}',
  labels=FALSE_TRUE,
  masked='{mask} {question}{sep}{passage}',
  fillers=fillers.pairs(*FALSE_TRUE),
  metrics=ACCURACY)
WIC = Task(
  name='wic', tfds_name='super_glue/wic:1.0.2',
  counts={'train': 5_428, 'validation': 638}, splits=halve,
  inputs='wic sentence1: {sentence1} sentence2: {sentence2} word: {word}',
  labels=FALSE_TRUE,
  masked='{mask} {word}: {sentence1}{sep}{sentence2}',
  fillers=fillers.pairs(*FALSE_TRUE),
  metrics=ACCURACY)
# T5's pair in one task: it trains on true referents, whose noun is the
# target, and is scored on all by whether it names the noun.
WSC = Task(
  name='wsc', tfds_name='super_glue/wsc.fixed:1.0.2',
  counts={'train': 554, 'validation': 104}, splits=halve,
  prepare=preprocessors.wsc_pronoun,
  train_filter=preprocessors.is_true, train_examples=259,
  inputs='wsc: {text}', targets='{span1_text}', keep=('label', 'idx'),
  postprocess=postprocessors.wsc_simple, metrics=ACCURACY,
  note='trains on true referents only; names the noun')
WSC_CLASSIFICATION = Task(
  name='wsc_classification', tfds_name='super_glue/wsc.fixed:1.0.2',
  counts={'train': 554, 'validation': 104}, splits=halve,
  prepare=preprocessors.wsc_spans,
  inputs='wsc text: {text}', labels=FALSE_TRUE,
  masked='{mask} {text}', fillers=fillers.pairs(*FALSE_TRUE), metrics=ACCURACY)
# The classes are not in MNLI's order.
CB = Task(
  name='cb', tfds_name='super_glue/cb:1.0.2',
  counts={'train': 250, 'validation': 56}, splits=halve,
  inputs='cb hypothesis: {hypothesis} premise: {premise}',
  labels=('entailment', 'contradiction', 'neutral'),
  masked='{mask} {premise}{sep}{hypothesis}',
  fillers=fillers.ENTAILMENT,
  metrics=(metrics.mean_f1(3), *ACCURACY))
SUPER_GLUE_RTE = Task(
  name='super_glue_rte', tfds_name='super_glue/rte:1.0.2',
  counts={'train': 2_490, 'validation': 277}, splits=halve,
  inputs='rte hypothesis: {hypothesis} premise: {premise}',
  labels=('entailment', 'not_entailment'),
  masked='{mask} {premise}{sep}{hypothesis}',
  fillers=fillers.pairs('not_entailment', 'entailment'),
  metrics=ACCURACY)
COPA = Task(
  name='copa', tfds_name='super_glue/copa:1.0.2',
  counts={'train': 400, 'validation': 100}, splits=halve,
  inputs='copa choice1: {choice1} choice2: {choice2} premise: {premise}'
         ' question: {question}',
  labels=('choice1', 'choice2'),
  masked='{mask} {premise} {question}: {choice1}{sep}{choice2}',
  fillers={'choice1': ' first', 'choice2': ' second'},
  metrics=ACCURACY)
RECORD = Task(
  name='record', tfds_name='super_glue/record:1.0.2',
  counts={'train': 100_730, 'validation': 10_000}, splits=hold_out(),
  prepare=preprocessors.record, train_examples=138_854,
  inputs='record query: {query} entities: {entities} passage: {passage}',
  targets='{answer}', keep=RECORD_KEYS,
  postprocess=postprocessors.grouped_answers,
  metrics=(metrics.once_per_group(metrics.squad), metrics.invalid),
  note='one example per answer; each query is scored once')

register([MULTIRC, BOOLQ, WIC, WSC, WSC_CLASSIFICATION, CB, SUPER_GLUE_RTE,
          COPA, RECORD])

# ATTEMPT's COPA leaves the question out, without which it has no answer; here
# it is asked.
register([
  digits(MULTIRC, 'superglue-multirc question: {question} answer: {answer}'
                  ' paragraph: {paragraph}'),
  digits(BOOLQ, 'superglue-boolq question: {question} passage: {passage}'),
  digits(WIC, 'superglue-wic sentence1: {sentence1} sentence2: {sentence2}'
              ' word: {word}'),
  digits(WSC_CLASSIFICATION, 'superglue-wsc.fixed text: {text}', 'wsc_digits'),
  digits(CB, 'superglue-cb premise: {premise} hypothesis: {hypothesis}'),
  digits(SUPER_GLUE_RTE, 'superglue-rte premise: {premise} hypothesis:'
                         ' {hypothesis}'),
  digits(COPA, 'superglue-copa premise: {premise} choice1: {choice1} choice2:'
               ' {choice2} question: {question}'),
])
# fmt: on
