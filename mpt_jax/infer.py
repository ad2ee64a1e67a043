r"""Writes a model's answers to a file, one JSON line per example.

  python -m mpt_jax.infer --gin_file=gin_configs/runs/infer.gin \
    --tfds_data_dir=DATA --gin.INITIAL_CHECKPOINT_PATH="'t5-base'" \
    --gin.PROMPTS="'runs/target/rte/prompts'" \
    --gin.MIXTURE_OR_TASK_NAME="'rte'" --gin.OUTPUT="'rte.jsonl'"

Each line has task, index, inputs, targets and prediction.
"""

from collections.abc import Mapping
import json
import logging

from mpt_jax import cli, t5
from mpt_jax.checkpoints import files
from mpt_jax.checkpoints.backbone import Backbone
from mpt_jax.runs import make_predictor

log = logging.getLogger(__name__)


def infer(
  *,
  output: str,
  backbone: str | Backbone,
  mixture_or_task_name: str,
  task_feature_lengths: Mapping[str, int],
  prompts: str | None = None,
  prompt_task: str | None = None,
  split: str = 'test',
  batch_size: int = 128,
  num_examples: int | None = None,
  module: str | None = 'tasks',
  backbone_config: t5.T5Config | str | None = None,
  vocabulary: str | None = None,
  num_beams: int = 1,
  num_partitions: int = 1,
  dtype: str | None = None,
  scan_layers: bool = False,
  shard_backbone: bool = False,
) -> int:
  """Decodes a task or mixture and writes the answers.

  Args:
    output: file to write, JSON lines.
    backbone: path of an HF folder or T5X checkpoint, or a loaded backbone.
    mixture_or_task_name: what to answer.
    task_feature_lengths: {'inputs': S with prompt slots, 'targets': T}.
    prompts: path of a prompt bundle, PEFT folder or `.npy`; None is none.
    prompt_task: answer with this task's prompt whatever the example's task.
    split: split to read.
    batch_size: rows per batch.
    num_examples: examples per task; None is all.
    module: module that registers the tasks.
    backbone_config: sizes or their name, where the checkpoint has none.
    vocabulary: SentencePiece file; None is the backbone's own.
    num_beams: 1 is greedy.
    num_partitions: size of the mesh's `model` axis.
    dtype: type of activations and backbone matrices; None is the model's own.
    scan_layers: see `train.train`.
    shard_backbone: split the backbone over the `data` axis too.

  Returns:
    How many answers were written.

  Raises:
    InputError: if something given is wrong.
  """
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
    scan_layers=scan_layers,
    shard_backbone=shard_backbone,
  )
  log.info('reading the tasks (TensorFlow takes a few seconds) …')
  from mpt_jax import data

  answers = data.predict(
    mixture_or_task_name,
    split,
    task_feature_lengths,
    prompt_length=predictor.prompt_length,
    task_names=(mixture_or_task_name,) if prompt_task else predictor.task_names,
    predict_fn=predictor.predict_fn,
    batch_size=batch_size,
    num_examples=num_examples,
    module=module,
  )
  lines = [json.dumps(a, ensure_ascii=False) + '\n' for a in answers]
  files.write_file(output, ''.join(lines).encode())
  log.info('wrote %d answers to %s', len(lines), output)
  return len(lines)


if __name__ == '__main__':
  cli.main('mpt_jax.infer', 'infer')
