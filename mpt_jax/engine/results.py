"""What a finished model scores on a split, and the files that say so."""

from collections.abc import Callable, Mapping
import json
import logging
import os
from typing import Any

from mpt_jax.checkpoints import files, stores
from mpt_jax.checkpoints.run import RESULTS
from mpt_jax.engine import multihost
from mpt_jax.engine.face import face
from mpt_jax.engine.metrics import Judgement
from mpt_jax.engine.predictor import Predictor
from mpt_jax.engine.scores import (
  finite_scores,
  format_scores,
  judgements,
  mean_score,
)
from mpt_jax.engine.settings import Examples

log = logging.getLogger(__name__)

PREDICTIONS, CONFUSION = 'predictions.jsonl', 'confusion.txt'


class Results(dict[str, dict[str, float]]):
  """Task -> metric -> value, and what must be read beside them.

  Attributes:
    split: the split that was scored.
    judged: task -> intervals, floors, the number of examples.
    said: task -> what its metrics mean, as far as they say it.
    confusion: task -> who was taken for whom: {'labels', 'matrix'}, a row for
      each target; of tasks with classes.
    about: how the scores were made, as `results.json` has it.
  """

  def __init__(self, scores: Any, split: str, about: Mapping[str, Any]):
    """Judges scores.

    Args:
      scores: `mpt_jax.data.Scores`.
      split: the split.
      about: how they were made.
    """
    super().__init__(scores)
    self._scores = scores
    self.split, self.about = split, dict(about)
    self.said = scores.said
    self.judged: dict[str, Judgement] = {
      task: scores.judge(task, again=True) for task in scores
    }
    self.confusion: dict[str, Mapping[str, Any]] = {
      task: counts
      for task, answers in scores.answers.items()
      if (counts := answers.confusion()) is not None
    }

  def __repr__(self) -> str:
    return '\n'.join(self._lines()) or f'{self.split}: no task has a metric'

  def _lines(self) -> list[str]:
    return [
      f'{task} {self.split}: {format_scores(values, self.judged[task])}'
      for task, values in self.items()
    ]

  @property
  def mean(self) -> str:
    """The main scores in short: 'accuracy 71.5', 'mean 60.2 of 3 tasks'."""
    return mean_score(self, self.said)

  def predictions(self) -> list[dict[str, Any]]:
    """Every answer, ready for JSON, see `mpt_jax.data.Scores.predictions`."""
    return [
      line
      for task in self
      if task in self._scores.answers
      for line in self._scores.predictions(task)
    ]

  def say(self) -> None:
    """Writes the scores into the log."""
    for line, (task, judged) in zip(
      self._lines(), self.judged.items(), strict=True
    ):
      log.info('%s', line)
      for name, reason in judged.no_interval.items():
        log.info('%s: no interval of %s: %s', task, name, reason)

  def save(self, folder: str) -> None:
    """Writes `predictions.jsonl`, `results.json` and perhaps `confusion.txt`.

    Args:
      folder: where to; made if it is not there.

    Raises:
      InputError: if it cannot be written.
    """
    # The results come last: where they are, all is there.
    text = ''.join(
      json.dumps(line, ensure_ascii=False) + '\n' for line in self.predictions()
    )
    files.write_file(os.path.join(folder, PREDICTIONS), text.encode())
    if self.confusion:
      tables = [_table(task, counts) for task, counts in self.confusion.items()]
      path = os.path.join(folder, CONFUSION)
      files.write_file(path, '\n'.join(tables).encode())
    content = files.json_bytes(
      {
        **self.about,
        'scores': finite_scores(self),
        **judgements(self.judged),
        'confusion': self.confusion,
      }
    )
    files.write_file(os.path.join(folder, RESULTS), content)


def score(
  examples: Examples,
  make_predictor: Callable[[], Predictor],
  model_dir: str | None = None,
) -> Results:
  """Scores examples by their tasks' own metrics.

  Args:
    examples: what to score.
    make_predictor: loads what answers; called once the tasks are known.
    model_dir: folder for `Results.save`; None writes nothing.

  Returns:
    The scores.

  Raises:
    InputError: if something given is wrong.
  """
  if model_dir is not None:
    model_dir = stores.place(model_dir)
  from mpt_jax import data

  split, names = examples.split, examples.names
  for name in names:
    data.check_data(name, split, examples.module)
  predictor = make_predictor()
  prompts = predictor.prompt_length, predictor.task_names
  found = data.examine(examples, *prompts)
  if model_dir is not None:
    face().keep_log(model_dir)
  scores = data.evaluate(
    examples, *prompts, predictor.predict_fn, predictor.batch_size
  )
  synthetic = any(data.is_synthetic(name) for name in names)
  if synthetic:
    log.info('SYNTHETIC DATA: these scores say nothing about the real data')
  results = Results(
    scores,
    split,
    {
      'split': split,
      'prompts': predictor.prompts,
      'prompt_task': predictor.prompt_task,
      'backbone': predictor.backbone_name,
      'synthetic_data': synthetic,
      'examples': {
        split: {task: counts.as_json() for task, counts in found.items()}
      },
    },
  )
  results.say()
  where = ''
  if model_dir is not None:
    multihost.on_first(lambda: results.save(model_dir))
    where = f'; in {os.path.join(model_dir, RESULTS)}'
  log.info('%s: %s%s', split, results.mean, where)
  return results


def _table(task: str, confusion: Mapping[str, Any]) -> str:
  """A confusion matrix to read: a row for each target."""
  labels = confusion['labels']
  rows = [
    [f'{task}: target \\ answer', *labels, 'invalid'],
    *(
      [w, *map(str, n)]
      for w, n in zip(labels, confusion['matrix'], strict=True)
    ),
  ]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return ''.join(
    '  '.join(
      [row[0].ljust(widths[0])]
      + [cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)]
    )
    + '\n'
    for row in rows
  )
