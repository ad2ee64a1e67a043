r"""Scores prompts on a task, a mixture, or several of them.

  python -m mpt_jax.eval --gin_file=gin_configs/runs/eval.gin \
    --tfds_data_dir=DATA --gin.INITIAL_CHECKPOINT_PATH="'t5-base'" \
    --gin.PROMPTS="'runs/target/rte/prompts'" \
    --gin.MIXTURE_OR_TASK_NAME="'rte'" --gin.MODEL_DIR="'runs/eval/rte'"

Decodes with the trained prompts, applies the tasks' own postprocessing and
metrics, and writes `results.json`, every answer to `predictions.jsonl`, and
for classes who was taken for whom to `confusion.txt`.
"""

from collections.abc import Mapping, Sequence
import json
import logging
import os
from typing import Any

from mpt_jax import cli, t5
from mpt_jax.checkpoints import files
from mpt_jax.checkpoints.backbone import Backbone
from mpt_jax.checkpoints.run import RESULTS
from mpt_jax.engine import multihost
from mpt_jax.engine.predictor import make_predictor
from mpt_jax.engine.scores import (
  finite_scores,
  format_scores,
  judgements,
  mean_score,
)
from mpt_jax.types import (
  Lengths,
  Positive,
  require_local,
)

log = logging.getLogger(__name__)

PREDICTIONS, CONFUSION = 'predictions.jsonl', 'confusion.txt'


def evaluate(
  *,
  model_dir: str,
  backbone: str | Backbone,
  mixture_or_task_name: str | Sequence[str],
  task_feature_lengths: Lengths,
  prompts: str | None = None,
  prompt_task: str | None = None,
  split: str = 'test',
  batch_size: Positive = 128,
  num_examples: Positive | None = None,
  allow_cut_targets: bool = False,
  module: str | None = 'tasks',
  backbone_config: t5.T5Config | str | None = None,
  vocabulary: str | None = None,
  num_beams: Positive = 1,
  num_partitions: Positive = 1,
  dtype: str | None = None,
  precision: str = 'float32',
  scan_layers: bool = False,
  shard_backbone: bool = False,
) -> dict[str, dict[str, float]]:
  """Scores a backbone with or without prompts.

  Args:
    model_dir: folder for `results.json`, `predictions.jsonl` and, if there are
      classes, `confusion.txt`.
    backbone: path of an HF folder or T5X checkpoint, or a loaded backbone.
    mixture_or_task_name: what to score; may be a list.
    task_feature_lengths: {'inputs': S with prompt slots, 'targets': T}.
    prompts: path of a prompt bundle, PEFT folder or `.npy`; None is the
      backbone alone.
    prompt_task: score with this task's prompt whatever the example's task
      (zero-shot transfer); None takes each example's own.
    split: split to score.
    batch_size: rows per batch.
    num_examples: examples per task; None is all.
    allow_cut_targets: whether to score targets that are longer than any
      answer can be.
    module: module that registers the tasks.
    backbone_config: sizes or their name, where the checkpoint has none.
    vocabulary: SentencePiece file; None is the backbone's own.
    num_beams: 1 is greedy.
    num_partitions: size of the mesh's `model` axis.
    dtype: type of activations and backbone matrices; None is the model's own.
    precision: of matrix products, see `t5.T5Config`.
    scan_layers: see `train.train`.
    shard_backbone: split the backbone over the `data` axis too.

  Returns:
    {task: {metric: value}}.

  Raises:
    InputError: if something given is wrong.
  """
  model_dir = require_local(model_dir)
  log.info('reading the tasks (TensorFlow takes a few seconds) …')
  from mpt_jax import data

  names = cli.as_list(mixture_or_task_name)
  for name in names:
    data.check_data(name, split, module)
  predictor = make_predictor(
    backbone,
    prompts,
    batch_size=batch_size,
    prompt_task=prompt_task,
    backbone_config=backbone_config,
    vocabulary=vocabulary,
    num_beams=num_beams,
    num_partitions=num_partitions,
    dtype=dtype,
    precision=precision,
    scan_layers=scan_layers,
    shard_backbone=shard_backbone,
  )
  # One prompt for whatever is read, or each task's own.
  task_names = () if prompt_task else predictor.task_names
  examples: dict[str, Any] = {}
  for name in names:
    examples |= data.examine(
      name,
      split,
      task_feature_lengths,
      predictor.prompt_length,
      task_names,
      num_examples,
      module=module,
      allow_cut_targets=allow_cut_targets,
    )
  cli.keep_log(model_dir)
  scores = data.Scores()
  for name in names:
    scores.add(
      data.evaluate(
        name,
        split,
        task_feature_lengths,
        prompt_length=predictor.prompt_length,
        task_names=task_names,
        predict_fn=predictor.predict_fn,
        batch_size=batch_size,
        num_examples=num_examples,
        module=module,
      )
    )
  synthetic = any(data.is_synthetic(name) for name in names)
  if synthetic:
    log.info('SYNTHETIC DATA: these scores say nothing about the real data')
  results = {
    'split': split,
    'prompts': prompts,
    'prompt_task': prompt_task,
    'backbone': predictor.backbone_name,
    'synthetic_data': synthetic,
    'examples': {
      split: {task: found.as_json() for task, found in examples.items()}
    },
  }
  multihost.on_first(lambda: _write(model_dir, scores, results))
  path = os.path.join(model_dir, RESULTS)
  log.info('%s: %s; in %s', split, mean_score(scores, scores.said), path)
  return dict(scores)


def _write(model_dir: str, scores: Any, results: Mapping[str, Any]) -> None:
  """Judges the scores, tells of them and writes what was found.

  Args:
    model_dir: the folder.
    scores: `mpt_jax.data.Scores`.
    results: more for `results.json`.
  """
  judged, confusion, lines = {}, {}, []
  for task, values in scores.items():
    judged[task] = scores.judge(task, again=True)
    told = format_scores(values, judged[task])
    log.info('%s %s: %s', task, results['split'], told)
    for name, reason in judged[task].no_interval.items():
      log.info('%s: no interval of %s: %s', task, name, reason)
    if task in scores.answers:
      lines += scores.predictions(task)
      counts = scores.answers[task].confusion()
      if counts is not None:
        confusion[task] = counts
  # The results come last: where they are, all is there.
  text = ''.join(json.dumps(line, ensure_ascii=False) + '\n' for line in lines)
  files.write_file(os.path.join(model_dir, PREDICTIONS), text.encode())
  if confusion:
    tables = [_table(task, counts) for task, counts in confusion.items()]
    path = os.path.join(model_dir, CONFUSION)
    files.write_file(path, '\n'.join(tables).encode())
  content = files.json_bytes(
    {
      **results,
      'scores': finite_scores(scores),
      **judgements(judged),
      'confusion': confusion,
    }
  )
  files.write_file(os.path.join(model_dir, RESULTS), content)


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


if __name__ == '__main__':
  cli.main('mpt_jax.eval', 'evaluate')
