r"""Scores prompts on a task, a mixture, or several of them.

  python -m mpt_jax.eval --gin_file=gin_configs/runs/eval.gin \
    --tfds_data_dir=data --gin.INITIAL_CHECKPOINT_PATH="'demo'" \
    --gin.PROMPTS="'runs/rte/prompts'" --gin.MIXTURE_OR_TASK_NAME="'rte'" \
    --gin.MODEL_DIR="'runs/rte/test'"

Decodes with the trained prompts, applies the tasks' own postprocessing and
metrics, and writes `results.json`, every answer to `predictions.jsonl`, and
for classes who was taken for whom to `confusion.txt`.
"""

if __name__ == '__main__':
  # Before the imports: neither --help nor a wrong macro waits for them.
  from mpt_jax import cli

  cli.main('mpt_jax.eval', 'evaluate')

from mpt_jax.checkpoints.backbone import Backbone
from mpt_jax.engine import results
from mpt_jax.engine.predictor import make_predictor
from mpt_jax.engine.settings import (
  BackboneSource,
  Decoding,
  Devices,
  Examples,
)
from mpt_jax.types import Positive


def evaluate(
  *,
  model_dir: str,
  backbone: BackboneSource | Backbone,
  examples: Examples,
  prompts: str | None = None,
  prompt_task: str | None = None,
  batch_size: Positive = 128,
  decoding: Decoding = Decoding(),
  devices: Devices = Devices(),
) -> results.Results:
  """Scores a backbone with or without prompts.

  Args:
    model_dir: folder for `results.json`, `predictions.jsonl` and, if there are
      classes, `confusion.txt`.
    backbone: where it is read, or a loaded one.
    examples: what to score.
    prompts: path of a prompt bundle, PEFT folder or `.npy`; None is the
      backbone alone.
    prompt_task: score with this task's prompt whatever the example's task
      (zero-shot transfer); None takes each example's own.
    batch_size: rows per batch.
    decoding: how answers are searched.
    devices: devices and memory.

  Returns:
    The scores, {task: {metric: value}}.

  Raises:
    InputError: if something given is wrong.
  """
  return results.score(
    examples,
    lambda: make_predictor(
      backbone,
      prompts,
      batch_size=batch_size,
      prompt_task=prompt_task,
      decoding=decoding,
      devices=devices,
    ),
    model_dir,
  )
