r"""Answers a task, or lines of text, one JSON line per answer.

  python -m mpt_jax.infer --gin_file=gin_configs/runs/infer.gin \
    --tfds_data_dir=data --gin.INITIAL_CHECKPOINT_PATH="'demo'" \
    --gin.PROMPTS="'runs/rte/prompts'" --gin.MIXTURE_OR_TASK_NAME="'rte'" \
    --gin.OUTPUT="'rte.jsonl'"

  cat texts.txt | python -m mpt_jax.infer \
    --gin_file=gin_configs/runs/answer.gin \
    --gin.INITIAL_CHECKPOINT_PATH="'demo'" \
    --gin.PROMPTS="'runs/rte/prompts'" --gin.OUTPUT="'-'"

The first form writes task, index, inputs, targets and prediction. The second
needs neither tasks nor TensorFlow. It reads plain lines or JSON lines as they
come, or a .jsonl, .tsv or .csv file: rows with `inputs`, or with the fields of
which the bundle writes them, and perhaps a `task`. Every line has its answer,
in order: `index` counts from 0, and the prediction for an empty line is null.
"""

if __name__ == '__main__':
  # Before the imports: neither --help nor a wrong macro waits for them.
  from mpt_jax import cli

  cli.main('mpt_jax.infer', 'infer')

from mpt_jax.checkpoints.backbone import Backbone
from mpt_jax.engine import answers
from mpt_jax.engine.predictor import make_predictor
from mpt_jax.engine.settings import (
  BackboneSource,
  Decoding,
  Devices,
  Examples,
)
from mpt_jax.types import InputError, require_local


def infer(
  *,
  output: str,
  backbone: BackboneSource | Backbone,
  examples: Examples | None = None,
  input: str | None = None,
  prompts: str | None = None,
  prompt_task: str | None = None,
  batch_size: int = 128,
  decoding: Decoding = Decoding(),
  devices: Devices = Devices(),
  rank_labels: bool = False,
) -> int:
  """Answers tasks, or lines of text, and writes the answers.

  Args:
    output: file to write, JSON lines; '-' is standard output.
    backbone: where it is read; for tasks also a loaded one.
    examples: what to answer; None for lines of text.
    input: file of lines, each a plain text, or a JSON object with `inputs`
      or the fields of its task's template, and perhaps `task` (all keys are
      passed on); or a .jsonl, .tsv or .csv file of such rows; '-' is standard
      input.
    prompts: path of a prompt bundle, PEFT folder or `.npy`; None is none.
    prompt_task: answer with this task's prompt whatever the example's task,
      or, of lines, those that don't say.
    batch_size: rows per batch.
    decoding: how answers are found; for lines they may be sampled.
    devices: devices and memory, for tasks.
    rank_labels: answer with the likeliest label word of the task, and write
      the probability of each as `probabilities`.

  Returns:
    How many answers were written.

  Raises:
    InputError: if something given is wrong; names the line if it is one.
  """
  if (examples is None) == (input is None):
    raise InputError('give MIXTURE_OR_TASK_NAME or INPUT, one of the two')
  output = require_local(output)
  input = None if input is None else require_local(input)
  answers.check_output(output, input)
  if rank_labels and (decoding.num_beams > 1 or decoding.temperature):
    raise InputError('RANK_LABELS scores the labels: no beams, no temperature')
  if input is not None:
    if isinstance(backbone, Backbone):
      raise InputError('lines of text are answered from a backbone on disk')
    asking = answers.Asking.create(prompts, prompt_task, rank_labels)
    return answers.answer_lines(
      input, output, backbone, asking, batch_size, decoding
    )
  assert examples is not None
  predictor = make_predictor(
    backbone,
    prompts,
    batch_size=batch_size,
    prompt_task=prompt_task,
    decoding=decoding,
    devices=devices,
  )
  return answers.answer_examples(examples, output, predictor, rank_labels)
