"""Extractive question answering: the answer is a span of the context.

SQuAD 1.1 and four sets of the MRQA 2019 shared task, in T5's SQuAD format.
"""

from tasks import metrics, postprocessors, preprocessors
from tasks.splits import hold_out
from tasks.table import Task, register

SQUAD_METRICS = (metrics.squad, metrics.invalid)


def _task(name: str, tfds_name: str, train: int, validation: int) -> Task:
  mrqa = tfds_name.startswith('mrqa/')
  return Task(
    name=name,
    tfds_name=tfds_name,
    counts={'train': train, 'validation': validation},
    splits=hold_out(),
    prepare=preprocessors.mrqa if mrqa else preprocessors.squad,
    inputs='question: {question} context: {context}',
    targets='{answer}',
    finish=preprocessors.collapse_inputs,
    keep=('question', 'context', 'answers', 'id'),
    postprocess=postprocessors.answers,
    metrics=SQUAD_METRICS,
    note='scored over all answers',
  )


# fmt: off
register([
  _task('squad', 'squad/v1.1:3.0.0', 87_599, 10_570),
  _task('mrqa_natural_questions', 'mrqa/natural_questions:1.0.0',
        104_071, 12_836),
  _task('mrqa_hotpot_qa', 'mrqa/hotpot_qa:1.0.0', 72_928, 5_901),
  _task('mrqa_news_qa', 'mrqa/news_qa:1.0.0', 74_160, 4_212),
  _task('mrqa_search_qa', 'mrqa/search_qa:1.0.0', 117_384, 16_980),
])
# fmt: on
