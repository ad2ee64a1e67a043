"""SuperGLUE (https://super.gluebenchmark.com), TFDS version 1.0.2."""

from tasks import metrics, postprocessors, preprocessors
from tasks.splits import halve, hold_out
from tasks.table import Task, classification, register

# fmt: off
TASKS = (
  classification(
    'boolq', 'super_glue/boolq:1.0.2', 'passage question',
    'False True', (metrics.accuracy,), halve,
    {'train': 9_427, 'validation': 3_270}),
  # The classes are not in MNLI's order.
  classification(
    'cb', 'super_glue/cb:1.0.2', 'hypothesis premise',
    'entailment contradiction neutral',
    (metrics.mean_f1(3), metrics.accuracy), halve,
    {'train': 250, 'validation': 56}),
  Task(
    'record', 'super_glue/record:1.0.2', preprocessors.record,
    postprocessors.grouped_answers,
    (metrics.once_per_group(metrics.squad),), hold_out,
    {'train': 100_730, 'validation': 10_000}),
)
# fmt: on

register(TASKS)
