"""GLUE (https://gluebenchmark.com), TFDS version 2.0.0."""

from tasks import metrics, postprocessors, preprocessors
from tasks.splits import halve, hold_out, mismatched
from tasks.table import Task, classification, register

ACCURACY = (metrics.accuracy,)
F1_ACCURACY = (metrics.f1_with_invalid, metrics.accuracy)
MATTHEWS = (metrics.matthews_corrcoef,)
CORRELATIONS = (metrics.pearson_corrcoef, metrics.spearman_corrcoef)

# fmt: off
TASKS = (
  # name, data, fields, labels in the order of their ids, metrics, splits and
  # official sizes
  classification(
    'mnli', 'glue/mnli:2.0.0', 'hypothesis premise',
    'entailment neutral contradiction', ACCURACY, mismatched,
    {'train': 392_702, 'validation_matched': 9_815,
     'validation_mismatched': 9_832}),
  classification(
    'qnli', 'glue/qnli:2.0.0', 'question sentence',
    'entailment not_entailment', ACCURACY, hold_out,
    {'train': 104_743, 'validation': 5_463}),
  classification(
    'qqp', 'glue/qqp:2.0.0', 'question1 question2',
    'not_duplicate duplicate', F1_ACCURACY, hold_out,
    {'train': 363_846, 'validation': 40_430}),
  classification(
    'sst2', 'glue/sst2:2.0.0', 'sentence',
    'negative positive', ACCURACY, hold_out,
    {'train': 67_349, 'validation': 872}),
  classification(
    'mrpc', 'glue/mrpc:2.0.0', 'sentence1 sentence2',
    'not_equivalent equivalent', F1_ACCURACY, halve,
    {'train': 3_668, 'validation': 408}),
  classification(
    'rte', 'glue/rte:2.0.0', 'sentence1 sentence2',
    'entailment not_entailment', ACCURACY, halve,
    {'train': 2_490, 'validation': 277}),
  classification(
    'cola', 'glue/cola:2.0.0', 'sentence',
    'unacceptable acceptable', MATTHEWS, halve,
    {'train': 8_551, 'validation': 1_043}),
  Task(
    'stsb', 'glue/stsb:2.0.0', preprocessors.stsb,
    postprocessors.number, CORRELATIONS, halve,
    {'train': 5_749, 'validation': 1_500}),
)
# fmt: on

register(TASKS)
