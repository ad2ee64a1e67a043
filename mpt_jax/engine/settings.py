"""Settings that belong together, written once for every command.

Gin binds them (`train.Devices`, `train.Evaluation`, …), a notebook passes them
to `mpt_jax.train` and `mpt_jax.evaluate`; defaults stand here alone.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

from mpt_jax.backbones import Config
from mpt_jax.types import (
  InputError,
  Lengths,
  Natural,
  Positive,
  Rate,
  Share,
  check_least,
)


@dataclasses.dataclass(frozen=True)
class BackboneSource:
  """Where a backbone is read from.

  Attributes:
    path: an HF folder, a T5X checkpoint, a model of the hub ('owner/name'),
      'demo' or another of `backbone.DEMOS`; None draws a fresh one.
    config: its sizes or their name, where the checkpoint has none.
    vocabulary: SentencePiece file, `tokenizer.json` or a folder with one; None
      is the one beside the backbone.
  """

  path: str | None
  config: Config | str | None = None
  vocabulary: str | None = None

  @property
  def trained(self) -> str:
    """The path, where none will do but a trained one.

    Raises:
      InputError: if there is none.
    """
    if self.path is None:
      raise InputError(
        'no INITIAL_CHECKPOINT_PATH given: prompts need a trained backbone'
      )
    return self.path


@dataclasses.dataclass(frozen=True)
class Devices:
  """Devices, memory and speed; of what a run is, `dtype` and `precision` only.

  Attributes:
    num_partitions: size of the mesh's `model` axis; the others split batches.
    shard_backbone: split the backbone over the `data` axis too.
    microbatches: parts that a batch is run in; the update is the same. None
      is one, or in buckets as many as suit the device.
    remat_layers: compute layers again in the backward pass.
    scan_layers: run the layers as a loop over stacked parameters, which
      compiles one layer in place of all; for a frozen backbone.
    dtype: type of activations and frozen matrices; None is the model's own.
    precision: of matrix products, see `t5.T5Config`.
    padding: of training: 'max' pads every example to the lengths of the data;
      'bucket' cuts a batch by length into parts, each padded to one of a few
      lengths (`buckets`), which makes the same update with less work; 'pack'
      puts several examples in a row, so that a batch holds more of them;
      'auto' is 'bucket', on a TPU 'max', of data that are packed 'pack'.
  """

  num_partitions: Positive = 1
  shard_backbone: bool = False
  microbatches: Positive | None = None
  remat_layers: bool = False
  scan_layers: bool = False
  dtype: str | None = None
  precision: str = 'float32'
  padding: str = 'auto'

  def configure(self, config: Config) -> Config:
    """Returns a backbone's sizes with these types and this memory."""
    return dataclasses.replace(
      config,
      dtype=self.dtype or config.dtype,
      precision=self.precision,
      remat_layers=self.remat_layers,
    )


@dataclasses.dataclass(frozen=True)
class Loss:
  """What a step makes small.

  Attributes:
    dropout_rate: dropout of the frozen backbone during training.
    loss_normalizing_factor: see `models.PromptedModel`.
    label_smoothing: see `models.PromptedModel`.
    z_loss: see `models.PromptedModel`.
  """

  dropout_rate: Share = 0.0
  loss_normalizing_factor: float | str | None = 'NUM_REAL_TARGET_TOKENS'
  label_smoothing: Share = 0.0
  z_loss: Rate = 0.0

  def of_model(self) -> dict[str, Any]:
    """The settings that `models.PromptedModel` has, by their names there."""
    settings = dataclasses.asdict(self)
    del settings['dropout_rate']
    return settings


@dataclasses.dataclass(frozen=True)
class Logging:
  """What a run keeps while it trains.

  Attributes:
    log_period: steps between metrics.
    checkpoint_period: steps between checkpoints.
    max_checkpoints: how many of the newest ones to keep.
    tensorboard: also write TensorBoard events beside `metrics.jsonl`.
    key_step: the step whose prompts are kept in `key`, to find the task by
      (`mpt_jax.transfer`), and those of step 0 in `start`; None keeps neither.
  """

  log_period: Positive = 100
  checkpoint_period: Positive = 1000
  max_checkpoints: Positive = 3
  tensorboard: bool = True
  key_step: Positive | None = None


@dataclasses.dataclass(frozen=True)
class Decoding:
  """How answers are found.

  Attributes:
    num_beams: width of the beam search; 1 is greedy, or samples.
    beam_alpha: exponent of its length penalty ((5 + n) / 6)**alpha.
    max_decode_length: longest answer to a text, in tokens; to a task's example
      it is the length of the task's targets.
    temperature: above 0, answers are sampled.
    topk: sample among the k likeliest tokens; 0 is all.
    topp: sample among the likeliest tokens of this total probability; 0 is
      all.
    seed: fixes what is sampled for the same texts and batch size.

  Raises:
    InputError: if a value is out of range.
  """

  num_beams: Positive = 1
  beam_alpha: Rate = 0.6
  max_decode_length: Positive = 64
  temperature: Rate = 0.0
  topk: Natural = 0
  topp: Rate = 0.0
  seed: Natural = 0

  def __post_init__(self):
    check_least(
      1, max_decode_length=self.max_decode_length, num_beams=self.num_beams
    )
    check_least(
      0,
      temperature=self.temperature,
      topk=self.topk,
      topp=self.topp,
      seed=self.seed,
    )
    if self.topp > 1:
      raise InputError(f'topp is {self.topp}, expected a probability')
    if self.num_beams > 1 and self.temperature:
      raise InputError(
        f'num_beams is {self.num_beams} and temperature {self.temperature}:'
        ' search or sample, not both'
      )

  @property
  def search(self) -> dict[str, Any]:
    """The arguments of `models.PromptedT5.decode_batch`, but for the length."""
    return {
      'num_beams': self.num_beams,
      'beam_alpha': self.beam_alpha,
      'temperature': self.temperature,
      'topk': self.topk,
      'topp': self.topp,
    }


@dataclasses.dataclass(frozen=True)
class Examples:
  """Which examples are scored or answered, and how they are read.

  Attributes:
    mixture_or_task_name: a registered task or mixture, or several.
    split: their split.
    task_feature_lengths: {'inputs': S with prompt slots, 'targets': T}.
    num_examples: of each task; None is all.
    module: module that registers the tasks; None if it is imported.
    allow_cut_targets: whether to score targets that are longer than any
      answer can be.
  """

  mixture_or_task_name: str | Sequence[str]
  split: str = 'test'
  task_feature_lengths: Lengths = dataclasses.field(
    default_factory=lambda: {'inputs': 356, 'targets': 128}
  )
  num_examples: Positive | None = None
  module: str | None = 'tasks'
  allow_cut_targets: bool = False

  @property
  def names(self) -> list[str]:
    """The tasks and mixtures, one by one."""
    names = self.mixture_or_task_name
    return [names] if isinstance(names, str) else list(names)


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """How a run is evaluated while it trains and at its end.

  Attributes:
    split: split to score.
    period: steps between evaluations; 0 evaluates at the end only.
    num_examples: examples per task; None is all.
    batch_size: rows per decoding batch.
    tasks: tasks to score; None is the run's own.
    loss_steps: batches (packed if training is) for the teacher-forced loss
      terms of the split, written to the metrics; 0 is none.
    keep_best: whether each task's best prompts by `split` are kept in
      `best/<task>`, and become the run's product. Of a run that trains the
      backbone one is kept, for all tasks, in `best/backbone`.
    best_metric: name of the metric that decides; None is each task's main
      one. Of one backbone for several tasks it is their mean.
    patience: evaluations without a better score after which a task is done;
      the run ends when all are. None never ends early.
    test_split: split to score once, at the end, with the run's product; None
      is none.
  """

  split: str = 'validation'
  period: Natural = 0
  num_examples: Positive | None = None
  batch_size: Positive = 128
  tasks: Sequence[str] | None = None
  loss_steps: Natural = 0
  keep_best: bool = False
  best_metric: str | None = None
  patience: Positive | None = None
  test_split: str | None = None

  def __post_init__(self):
    if self.selects and not self.period:
      raise InputError(
        'KEEP_BEST and PATIENCE compare evaluations: set EVAL_PERIOD too'
      )

  @property
  def selects(self) -> bool:
    """Whether evaluations are compared with each other."""
    return self.keep_best or self.patience is not None

  def examples(self, dataset: Any, split: str | None = None) -> Examples:
    """What is scored in a run on a data set, in a split; None is ours."""
    return Examples(
      self.tasks or dataset.mixture_or_task_name,
      split or self.split,
      dataset.task_feature_lengths,
      self.num_examples,
      module=None,  # The run has imported it.
      allow_cut_targets=dataset.allow_cut_targets,
    )
