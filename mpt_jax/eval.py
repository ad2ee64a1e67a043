r"""Scores prompts on a task, a mixture, or several of them.

  python -m mpt_jax.eval --gin_file=gin_configs/runs/eval.gin \
    --tfds_data_dir=DATA --gin.INITIAL_CHECKPOINT_PATH="'t5-base'" \
    --gin.PROMPTS="'runs/target/rte/prompts'" \
    --gin.MIXTURE_OR_TASK_NAME="'rte'" --gin.MODEL_DIR="'runs/eval/rte'"

Decodes with the trained prompts, applies the tasks' own postprocessing and
metrics (SeqIO's Evaluator) and writes `results.json`.
"""

from collections.abc import Sequence
import logging
import os
from typing import Any

from mpt_jax import cli, multihost, t5
from mpt_jax.checkpoints import files
from mpt_jax.checkpoints.backbone import Backbone
from mpt_jax.runs import (
  RESULTS,
  finite_scores,
  format_scores,
  make_predictor,
)
from mpt_jax.types import (
  Lengths,
  Positive,
  require_local,
)

log = logging.getLogger(__name__)


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
    model_dir: folder for `results.json`.
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
  log.info('reading the tasks (TensorFlow takes a few seconds) …')
  from mpt_jax import data

  names = cli.as_list(mixture_or_task_name)
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
  scores: dict[str, dict[str, float]] = {}
  for name in names:
    scores.update(
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
  for task, values in scores.items():
    log.info('%s %s: %s', task, split, format_scores(values))
  content = files.json_bytes(
    {
      'scores': finite_scores(scores),
      'split': split,
      'prompts': prompts,
      'prompt_task': prompt_task,
      'backbone': predictor.backbone_name,
      'synthetic_data': synthetic,
      'examples': {
        split: {task: found.as_json() for task, found in examples.items()}
      },
    }
  )
  path = os.path.join(model_dir, RESULTS)
  multihost.on_first(lambda: files.write_file(path, content))
  return scores


if __name__ == '__main__':
  cli.main('mpt_jax.eval', 'evaluate')
