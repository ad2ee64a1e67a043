"""GLUE (https://gluebenchmark.com), TFDS version 2.0.0."""

from tasks import fillers, metrics, postprocessors, preprocessors
from tasks.splits import halve, hold_out, own
from tasks.table import Task, digits, register

ACCURACY = (metrics.accuracy, metrics.invalid)
F1_ACCURACY = (metrics.f1_with_invalid, *ACCURACY)
MATTHEWS = (metrics.matthews_corrcoef, metrics.invalid)
CORRELATIONS = (
  metrics.pearson_corrcoef,
  metrics.spearman_corrcoef,
  metrics.invalid_or_outside(0, 5),
)

# fmt: off
MNLI = Task(
  name='mnli', tfds_name='glue/mnli:2.0.0',
  counts={'train': 392_702, 'validation_matched': 9_815,
          'validation_mismatched': 9_832},
  splits=own('validation_mismatched', 'validation_matched'),
  inputs='mnli hypothesis: {hypothesis} premise: {premise}',
  labels=('entailment', 'neutral', 'contradiction'),
  masked='{mask} {premise}{sep}{hypothesis}',
  fillers=fillers.ENTAILMENT,
  metrics=ACCURACY)
QNLI = Task(
  name='qnli', tfds_name='glue/qnli:2.0.0',
  counts={'train': 104_743, 'validation': 5_463}, splits=hold_out(),
  inputs='qnli question: {question} sentence: {sentence}',
  labels=('entailment', 'not_entailment'),
  masked='{mask} {question}{sep}{sentence}',
  fillers=fillers.pairs('not_entailment', 'entailment'),
  metrics=ACCURACY)
QQP = Task(
  name='qqp', tfds_name='glue/qqp:2.0.0',
  counts={'train': 363_846, 'validation': 40_430}, splits=hold_out(),
  inputs='qqp question1: {question1} question2: {question2}',
  labels=('not_duplicate', 'duplicate'),
  masked='{mask} {question1}{sep}{question2}',
  fillers=fillers.pairs('not_duplicate', 'duplicate'),
  metrics=F1_ACCURACY)
SST2 = Task(
  name='sst2', tfds_name='glue/sst2:2.0.0',
  counts={'train': 67_349, 'validation': 872}, splits=hold_out(),
  inputs='sst2 sentence: {sentence}',
  labels=('negative', 'positive'),
  masked='{mask} {sentence}',
  fillers=fillers.SENTIMENT,
  metrics=ACCURACY)
STSB = Task(
  name='stsb', tfds_name='glue/stsb:2.0.0',
  counts={'train': 5_749, 'validation': 1_500}, splits=halve,
  prepare=preprocessors.similarity,
  inputs='stsb sentence1: {sentence1} sentence2: {sentence2}',
  targets='{score}', postprocess=postprocessors.number, metrics=CORRELATIONS)
MRPC = Task(
  name='mrpc', tfds_name='glue/mrpc:2.0.0',
  counts={'train': 3_668, 'validation': 408}, splits=halve,
  inputs='mrpc sentence1: {sentence1} sentence2: {sentence2}',
  labels=('not_equivalent', 'equivalent'),
  masked='{mask} {sentence1}{sep}{sentence2}',
  fillers=fillers.pairs('not_equivalent', 'equivalent'),
  metrics=F1_ACCURACY)
RTE = Task(
  name='rte', tfds_name='glue/rte:2.0.0',
  counts={'train': 2_490, 'validation': 277}, splits=halve,
  inputs='rte sentence1: {sentence1} sentence2: {sentence2}',
  labels=('entailment', 'not_entailment'),
  masked='{mask} {sentence1}{sep}{sentence2}',
  fillers=fillers.pairs('not_entailment', 'entailment'),
  metrics=ACCURACY)
COLA = Task(
  name='cola', tfds_name='glue/cola:2.0.0',
  counts={'train': 8_551, 'validation': 1_043}, splits=halve,
  inputs='cola sentence: {sentence}',
  labels=('unacceptable', 'acceptable'),
  masked='{mask} {sentence}',
  fillers={'unacceptable': ' incorrect', 'acceptable': ' correct'},
  metrics=MATTHEWS)
# fmt: on

register([MNLI, QNLI, QQP, SST2, STSB, MRPC, RTE, COLA])

# Only MNLI's fields are in another order there. STS-B has no digits: without
# the misplaced bracket of that line its targets are T5's.
register(
  [
    digits(MNLI, 'mnli premise: {premise} hypothesis: {hypothesis}'),
    *(digits(row, row.inputs) for row in (QNLI, QQP, SST2, MRPC, RTE, COLA)),
  ]
)
