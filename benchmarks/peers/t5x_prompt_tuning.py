"""Multitask prompt tuning as a T5X user runs it today.

T5X's own Trainer train_step, model.loss_fn over the full parameter tree,
T5X's MultiOptimizer with Adafactor on the prompt parameters only, and
google-research/prompt-tuning's PromptEncoderDecoder (flaxformer). Random
weights. Prints one JSON line.

PYTHONPATH must hold t5x, prompt-tuning and flaxformer.

The values follow prompt-tuning's multi_task_t5_1_1_prompt.gin, but with the
v1.0 shape (ReLU, output layer = embedding) unless --arch 1.1.
--one_hot 1 (embedding by one-hot matmul) is what that configuration sets; it
suits TPUs. --one_hot 0 is the kinder variant on CPU.
"""

import functools
import itertools
import os
import re
import tempfile
import time

from benchmarks import measure

_TOLD = (
  'model batch input_len prompt_len target_len dtype arch one_hot dropout'
  ' microbatches weight_metrics steps keep_heap'
)
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')


class Parts:
  """Factories of the parts of the network, as flaxformer wants them."""

  def __init__(self, args, dtype):
    """Keeps the sizes."""
    from flax import linen as nn
    from flaxformer.components import layer_norm, relative_position_biases
    from prompt_tuning import masks

    self.args, self.dtype = args, dtype
    self.sizes = measure.SHAPES[args.model]
    self.is_v11 = args.arch == '1.1'
    self.dropout = functools.partial(
      nn.Dropout, rate=args.dropout, broadcast_dims=(-2,)
    )
    self.norm = functools.partial(layer_norm.T5LayerNorm, dtype=dtype)
    self.positions = functools.partial(
      relative_position_biases.RelativePositionBiases,
      num_buckets=32,
      max_distance=128,
      num_heads=self.sizes['heads'],
      dtype=dtype,
      embedding_init=_scaled('fan_avg', 'uniform'),
    )
    self.slots = functools.partial(masks.add_fake_prompt, args.prompt_len, True)

  def attention(self):
    """Of both stacks."""
    from flax import linen as nn
    from flaxformer.components.attention import dense_attention

    return dense_attention.MultiHeadDotProductAttention(
      num_heads=self.sizes['heads'],
      head_dim=self.sizes['d_kv'],
      dtype=self.dtype,
      kernel_init=_scaled('fan_in', 'normal'),
      bias_init=nn.initializers.normal(1e-6),
      use_bias=False,
      broadcast_dropout=True,
      dropout_rate=self.args.dropout,
    )

  def mlp(self):
    """The block behind attention."""
    from flax import linen as nn
    from flaxformer.components import dense

    return dense.MlpBlock(
      use_bias=False,
      intermediate_dim=self.sizes['d_ff'],
      activations=('gelu', 'linear') if self.is_v11 else ('relu',),
      kernel_init=_scaled('fan_in', 'truncated_normal'),
      bias_init=nn.initializers.normal(1e-6),
      intermediate_dropout_rate=self.args.dropout,
      final_dropout_rate=0.0,
      dtype=self.dtype,
    )

  def encoder_layer(self, shared_relative_position_bias):
    """One of them."""
    from flaxformer.architectures.t5 import t5_architecture

    return t5_architecture.EncoderLayer(
      attention=self.attention(),
      mlp=self.mlp(),
      dropout_factory=self.dropout,
      layer_norm_factory=self.norm,
      shared_relative_position_bias=shared_relative_position_bias,
    )

  def decoder_layer(self, shared_relative_position_bias):
    """One of them."""
    from flaxformer.architectures.t5 import t5_architecture

    return t5_architecture.DecoderLayer(
      self_attention=self.attention(),
      encoder_decoder_attention=self.attention(),
      mlp=self.mlp(),
      dropout_factory=self.dropout,
      layer_norm_factory=self.norm,
      shared_relative_position_bias=shared_relative_position_bias,
    )

  def prompt(self):
    """What is trained."""
    from flax import linen as nn
    from prompt_tuning.extended import multitask_prompts
    from prompt_tuning.extended.train import multitask_prompts as train_prompts

    return train_prompts.MultiTaskPrompt(
      prompt=multitask_prompts.AddMultiTaskPrompt(
        length=self.args.prompt_len,
        num_tasks=self.args.num_tasks,
        shared_init=nn.initializers.uniform(0.5),
        tasks_init=nn.initializers.uniform(0.5),
        dtype=self.dtype,
      )
    )

  def encoder(self, shared_token_embedder=None):
    """The stack that sees the prompt."""
    from prompt_tuning.train import layers as prompt_layers

    return prompt_layers.PromptEncoder(
      prompt_factory=self.prompt,
      add_fake_prompt_factory=self.slots,
      shared_token_embedder=shared_token_embedder,
      num_layers=self.sizes['layers'],
      layer_factory=self.encoder_layer,
      input_dropout_factory=self.dropout,
      output_dropout_factory=self.dropout,
      layer_norm_factory=self.norm,
      shared_relative_position_bias_factory=self.positions,
      dtype=self.dtype,
    )

  def logits(self):
    """The last layer of T5 v1.1."""
    from flax import linen as nn
    from flaxformer.components import dense

    return dense.DenseGeneral(
      features=measure.VOCABULARY,
      use_bias=False,
      dtype='float32',
      kernel_init=_scaled('fan_in', 'truncated_normal'),
      bias_init=nn.initializers.normal(1e-6),
      kernel_axis_names=['embed', 'vocab'],
    )

  def decoder(self, shared_token_embedder=None):
    """The stack that answers."""
    from flaxformer.architectures.t5 import t5_architecture

    return t5_architecture.Decoder(
      shared_token_embedder=shared_token_embedder,
      num_layers=self.sizes['layers'],
      layer_factory=self.decoder_layer,
      dropout_factory=self.dropout,
      layer_norm_factory=self.norm,
      shared_relative_position_bias_factory=self.positions,
      output_logits_factory=self.logits if self.is_v11 else None,
      dtype=self.dtype,
    )

  def embedding(self):
    """Of tokens, in both stacks."""
    from flax import linen as nn
    from flaxformer.components import embedding
    import jax.numpy as jnp

    return embedding.Embed(
      num_embeddings=measure.VOCABULARY,
      features=self.sizes['d_model'],
      cast_input_dtype=jnp.int32,
      dtype=self.dtype,
      attend_dtype=jnp.float32,
      embedding_init=nn.initializers.normal(1.0),
      one_hot=bool(self.args.one_hot),
      name='token_embedder',
    )


def _scaled(fan, distribution):
  from flax import linen as nn

  return nn.initializers.variance_scaling(1.0, fan, distribution)


def build_module(args, dtype):
  """The whole network."""
  from prompt_tuning.extended import masks
  from prompt_tuning.train import layers as prompt_layers

  parts = Parts(args, dtype)
  return prompt_layers.PromptEncoderDecoder(
    encoder_factory=parts.encoder,
    decoder_factory=parts.decoder,
    shared_token_embedder_factory=parts.embedding,
    dtype=dtype,
    encoder_mask_factory=functools.partial(
      masks.prompt_encoder_attention_mask, args.prompt_len, multitask=True
    ),
    add_fake_prompt_factory=parts.slots,
  )


def arguments():
  p = measure.parser(__doc__)
  p.add_argument('--arch', choices=['1.0', '1.1'], default='1.0')
  p.add_argument('--one_hot', type=int, default=1)
  p.add_argument('--dropout', type=float, default=0.0)
  p.add_argument('--microbatches', type=int, default=0)
  p.add_argument(
    '--weight_metrics',
    type=int,
    default=0,
    help="T5X's WeightMetricsComputer (needs weight gradients)",
  )
  p.add_argument('--checkpoint', type=int, default=0, help='time one save')
  p.add_argument('--ckpt_dir', default=None)
  p.add_argument('--dtype', choices=['float32', 'bfloat16'], default='float32')
  return p.parse_args()


def optimizer(matched):
  """Adafactor of the prompts alone; their paths are put into `matched`."""
  from flax import traverse_util
  from t5x import adafactor, optimizers

  regexes = [
    re.compile(r) for r in ('.*/shared_prompt.*', '.*/task_prompts/.*')
  ]

  def is_prompt(path, _):
    hit = any(r.fullmatch(path) for r in regexes)
    if hit and path not in matched:
      matched.append(path)
    return hit

  rules = dict(adafactor.standard_logical_factor_rules())
  for k in ('prompt', 'tasks', 'prompt+embed'):
    rules[k] = adafactor.FactorDim.NONE
  rules['batch'] = adafactor.FactorDim.BATCH
  prompts = adafactor.Adafactor(
    decay_rate=0.8,
    step_offset=0,
    multiply_by_parameter_scale=False,
    weight_decay_rate=1e-5,
    logical_factor_rules=rules,
  )
  return optimizers.MultiOptimizer(
    ((traverse_util.ModelParamTraversal(is_prompt), prompts),)
  )


def batches(args):
  """Yields (batch, (examples, tokens))."""
  import numpy as np

  rng = np.random.default_rng(args.seed)
  drawn = measure.examples(args)
  size = args.batch, args.target_len
  while True:
    inputs = np.zeros((args.batch, args.input_len + 1), np.int32)
    tokens = args.batch * args.target_len
    for row in inputs:
      length, row[0] = next(drawn)  # Column 0: the task.
      row[1 : length + 1] = rng.integers(1, measure.VOCABULARY, length)
      tokens += length
    targets = rng.integers(1, measure.VOCABULARY, size).astype(np.int32)
    yield (
      {
        'encoder_input_tokens': inputs,
        'decoder_input_tokens': np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        'decoder_target_tokens': targets,
        'decoder_loss_weights': np.ones(size, np.float32),
      },
      (args.batch, tokens),
    )


def begun(args, batch, matched, found):
  """Returns T5X's trainer at step 0; puts what that took into `found`."""
  import jax
  import jax.numpy as jnp
  import seqio
  from t5x import models, partitioning, utils
  from t5x import trainer as trainer_lib

  vocabulary = seqio.PassThroughVocabulary(measure.VOCABULARY)
  chosen = optimizer(matched)
  model = models.EncoderDecoderModel(
    module=build_module(args, jnp.dtype(args.dtype)),
    input_vocabulary=vocabulary,
    output_vocabulary=vocabulary,
    optimizer_def=chosen,
    z_loss=0.0001,
    label_smoothing=0.0,
    loss_normalizing_factor=None,
  )
  whole = ('prompt', 'prompt_embed', 'tasks', 'prompt+embed')
  partitioner = partitioning.PjitPartitioner(
    num_partitions=1,
    logical_axis_rules=partitioning.standard_logical_axis_rules(
      additional_rules=tuple((name, None) for name in whole)
    ),
  )
  begin = time.perf_counter()
  init = utils.TrainStateInitializer(
    optimizer_def=chosen,
    init_fn=model.get_initial_variables,
    input_shapes={k: v.shape for k, v in batch.items()},
    input_types={k: jnp.int32 for k in batch},
    partitioner=partitioner,
  )
  state = init.from_scratch(jax.random.PRNGKey(args.seed))
  jax.block_until_ready(state.params)
  found['init_s'] = round(time.perf_counter() - begin, 2)
  found['rss_after_init_mb'] = measure.peak_rss_mb()
  found['params'] = sum(x.size for x in jax.tree.leaves(state.params))
  return trainer_lib.Trainer(
    model=model,
    train_state=state,
    partitioner=partitioner,
    eval_names=[],
    summary_dir=None,
    train_state_axes=init.train_state_axes,
    rng=jax.random.PRNGKey(1),
    learning_rate_fn=lambda step: 0.3,
    num_microbatches=args.microbatches or None,
    weight_metrics_computer=(
      trainer_lib.WeightMetricsComputer() if args.weight_metrics else None
    ),
  ), partitioner


def saved(state, partitioner, folder):
  """Times one checkpoint."""
  from t5x import checkpoints

  with tempfile.TemporaryDirectory(dir=folder) as root:
    checkpointer = checkpoints.Checkpointer(state, partitioner, root)
    begin = time.perf_counter()
    checkpointer.save(state)
    seconds = time.perf_counter() - begin
    paths = [os.path.join(d, f) for d, _, names in os.walk(root) for f in names]
    return {
      'ckpt_mb': round(sum(map(os.path.getsize, paths)) / 2**20, 1),
      'ckpt_files': len(paths),
      'ckpt_save_s': round(seconds, 2),
      'ckpt_peak_rss_mb': measure.peak_rss_mb(),
    }


def main():
  args = arguments()
  if args.keep_heap:
    measure.keep_heap()
  import jax
  import seqio  # noqa: F401
  import t5x.trainer  # noqa: F401

  matched = []
  found = {'system': 't5x', 'trained': matched, 'lengths': bool(args.lengths)}
  found['rss_after_import_mb'] = measure.rss_mb()
  drawn = batches(args)
  first, _ = next(drawn)
  trainer, partitioner = begun(args, first, matched, found)
  with trainer:
    begin = time.perf_counter()
    trainer.compile_train(first)
    found['compile_s'] = round(time.perf_counter() - begin, 2)
    # T5X's own loop body: one compiled train_step per batch.
    compiled = trainer._compiled_train_step
    held = [trainer.train_state]
    trainer.train_state = None

    def step(batch):
      held[0], metrics = compiled(held[0], batch)
      jax.block_until_ready((held[0].params, metrics))

    for batch, _ in itertools.islice(drawn, args.warmup):
      step(batch)
    meter = measure.Meter()
    chosen, counts = zip(*itertools.islice(drawn, args.steps), strict=True)
    rows = meter.time(step, [(batch,) for batch in chosen])
    found['peak_rss_mb'] = measure.peak_rss_mb()
    trainer.train_state = held[0]
    evaluate = trainer._partitioned_eval_step

    def forward():
      return jax.block_until_ready(evaluate(held[0], first))

    forward()
    forwards = meter.time(forward, [()] * max(3, args.steps // 2))
    found |= measure.of_training(meter, rows, forwards, counts)
    if args.checkpoint:
      found |= saved(held[0], partitioner, args.ckpt_dir)
  measure.report(args, _TOLD, found)


if __name__ == '__main__':
  main()
