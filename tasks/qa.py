"""Extractive question answering: the answer is a span of the context."""

from tasks import metrics, postprocessors, preprocessors
from tasks.splits import hold_out
from tasks.table import Task, register

# fmt: off
TASKS = (
  Task(
    'squad', 'squad/v1.1:3.0.0', preprocessors.squad,
    postprocessors.answers, (metrics.squad,), hold_out,
    {'train': 87_599, 'validation': 10_570}),
)
# fmt: on

register(TASKS)
