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
import json
import os
import re
import shutil
import tempfile
import time

from benchmarks import measure

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')


def build_module(args, dtype):
  from flax import linen as nn
  from flaxformer.architectures.t5 import t5_architecture
  from flaxformer.components import (
    dense,
    embedding,
    layer_norm,
    relative_position_biases,
  )
  from flaxformer.components.attention import dense_attention
  import jax.numpy as jnp
  from prompt_tuning import masks
  from prompt_tuning.extended import masks as ext_masks
  from prompt_tuning.extended import multitask_prompts
  from prompt_tuning.extended.train import multitask_prompts as train_prompts
  from prompt_tuning.train import layers as prompt_layers

  s = measure.SHAPES[args.model]
  v11 = args.arch == '1.1'
  init = nn.initializers.variance_scaling
  dropout = functools.partial(
    nn.Dropout, rate=args.dropout, broadcast_dims=(-2,)
  )
  norm = functools.partial(layer_norm.T5LayerNorm, dtype=dtype)

  def attention():
    return dense_attention.MultiHeadDotProductAttention(
      num_heads=s['heads'],
      head_dim=s['d_kv'],
      dtype=dtype,
      kernel_init=init(1.0, 'fan_in', 'normal'),
      bias_init=nn.initializers.normal(1e-6),
      use_bias=False,
      broadcast_dropout=True,
      dropout_rate=args.dropout,
    )

  def mlp():
    return dense.MlpBlock(
      use_bias=False,
      intermediate_dim=s['d_ff'],
      activations=('gelu', 'linear') if v11 else ('relu',),
      kernel_init=init(1.0, 'fan_in', 'truncated_normal'),
      bias_init=nn.initializers.normal(1e-6),
      intermediate_dropout_rate=args.dropout,
      final_dropout_rate=0.0,
      dtype=dtype,
    )

  relpos = functools.partial(
    relative_position_biases.RelativePositionBiases,
    num_buckets=32,
    max_distance=128,
    num_heads=s['heads'],
    dtype=dtype,
    embedding_init=init(1.0, 'fan_avg', 'uniform'),
  )

  def encoder_layer(shared_relative_position_bias):
    return t5_architecture.EncoderLayer(
      attention=attention(),
      mlp=mlp(),
      dropout_factory=dropout,
      layer_norm_factory=norm,
      shared_relative_position_bias=shared_relative_position_bias,
    )

  def decoder_layer(shared_relative_position_bias):
    return t5_architecture.DecoderLayer(
      self_attention=attention(),
      encoder_decoder_attention=attention(),
      mlp=mlp(),
      dropout_factory=dropout,
      layer_norm_factory=norm,
      shared_relative_position_bias=shared_relative_position_bias,
    )

  def prompt():
    return train_prompts.MultiTaskPrompt(
      prompt=multitask_prompts.AddMultiTaskPrompt(
        length=args.prompt_len,
        num_tasks=args.num_tasks,
        shared_init=nn.initializers.uniform(0.5),
        tasks_init=nn.initializers.uniform(0.5),
        dtype=dtype,
      )
    )

  fake = functools.partial(masks.add_fake_prompt, args.prompt_len, True)

  def encoder(shared_token_embedder=None):
    return prompt_layers.PromptEncoder(
      prompt_factory=prompt,
      add_fake_prompt_factory=fake,
      shared_token_embedder=shared_token_embedder,
      num_layers=s['layers'],
      layer_factory=encoder_layer,
      input_dropout_factory=dropout,
      output_dropout_factory=dropout,
      layer_norm_factory=norm,
      shared_relative_position_bias_factory=relpos,
      dtype=dtype,
    )

  def logits():
    return dense.DenseGeneral(
      features=measure.VOCABULARY,
      use_bias=False,
      dtype='float32',
      kernel_init=init(1.0, 'fan_in', 'truncated_normal'),
      bias_init=nn.initializers.normal(1e-6),
      kernel_axis_names=['embed', 'vocab'],
    )

  def decoder(shared_token_embedder=None):
    return t5_architecture.Decoder(
      shared_token_embedder=shared_token_embedder,
      num_layers=s['layers'],
      layer_factory=decoder_layer,
      dropout_factory=dropout,
      layer_norm_factory=norm,
      shared_relative_position_bias_factory=relpos,
      output_logits_factory=logits if v11 else None,
      dtype=dtype,
    )

  def embed():
    return embedding.Embed(
      num_embeddings=measure.VOCABULARY,
      features=s['d_model'],
      cast_input_dtype=jnp.int32,
      dtype=dtype,
      attend_dtype=jnp.float32,
      embedding_init=nn.initializers.normal(1.0),
      one_hot=bool(args.one_hot),
      name='token_embedder',
    )

  return prompt_layers.PromptEncoderDecoder(
    encoder_factory=encoder,
    decoder_factory=decoder,
    shared_token_embedder_factory=embed,
    dtype=dtype,
    encoder_mask_factory=functools.partial(
      ext_masks.prompt_encoder_attention_mask, args.prompt_len, multitask=True
    ),
    add_fake_prompt_factory=fake,
  )


def main():
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
  args = p.parse_args()
  if args.keep_heap:
    measure.keep_heap()

  from flax import traverse_util
  import jax
  import jax.numpy as jnp
  import numpy as np
  import seqio
  from t5x import (
    adafactor,
    checkpoints,
    models,
    optimizers,
    partitioning,
    utils,
  )
  from t5x import trainer as trainer_lib

  rss_import = measure.rss_mb()

  module = build_module(args, jnp.dtype(args.dtype))
  vocab = seqio.PassThroughVocabulary(measure.VOCABULARY)
  regexes = [
    re.compile(r) for r in ('.*/shared_prompt.*', '.*/task_prompts/.*')
  ]
  matched = []

  def is_prompt(path, _):
    hit = any(r.fullmatch(path) for r in regexes)
    if hit and path not in matched:
      matched.append(path)
    return hit

  rules = dict(adafactor.standard_logical_factor_rules())
  for k in ('prompt', 'tasks', 'prompt+embed'):
    rules[k] = adafactor.FactorDim.NONE
  rules['batch'] = adafactor.FactorDim.BATCH
  opt = optimizers.MultiOptimizer(
    (
      (
        traverse_util.ModelParamTraversal(is_prompt),
        adafactor.Adafactor(
          decay_rate=0.8,
          step_offset=0,
          multiply_by_parameter_scale=False,
          weight_decay_rate=1e-5,
          logical_factor_rules=rules,
        ),
      ),
    )
  )
  model = models.EncoderDecoderModel(
    module=module,
    input_vocabulary=vocab,
    output_vocabulary=vocab,
    optimizer_def=opt,
    z_loss=0.0001,
    label_smoothing=0.0,
    loss_normalizing_factor=None,
  )

  B, T, S = args.batch, args.input_len, args.target_len
  rng = np.random.default_rng(args.seed)
  if args.lengths:
    pool, pool_tasks = measure.load_lengths(args.lengths)
    order = rng.permutation(len(pool))

  def batch(i):
    lens, tids = [T] * B, rng.integers(0, args.num_tasks, B)
    if args.lengths:
      idx = [order[(i * B + j) % len(pool)] for j in range(B)]
      lens = [min(pool[k], T) for k in idx]
      tids = [pool_tasks[k] % args.num_tasks for k in idx]
    enc = np.zeros((B, T + 1), np.int32)  # column 0: the task index
    enc[:, 0] = tids
    for r, n in enumerate(lens):
      enc[r, 1 : n + 1] = rng.integers(1, measure.VOCABULARY, n)
    tgt = rng.integers(1, measure.VOCABULARY, (B, S)).astype(np.int32)
    dec = np.pad(tgt, ((0, 0), (1, 0)))[:, :-1]
    return dict(
      encoder_input_tokens=enc,
      decoder_input_tokens=dec,
      decoder_target_tokens=tgt,
      decoder_loss_weights=np.ones((B, S), np.float32),
    ), sum(lens)

  first = batch(0)[0]
  partitioner = partitioning.PjitPartitioner(
    num_partitions=1,
    logical_axis_rules=partitioning.standard_logical_axis_rules(
      additional_rules=(
        ('prompt', None),
        ('prompt_embed', None),
        ('tasks', None),
        ('prompt+embed', None),
      )
    ),
  )
  t0 = time.perf_counter()
  init = utils.TrainStateInitializer(
    optimizer_def=opt,
    init_fn=model.get_initial_variables,
    input_shapes={k: v.shape for k, v in first.items()},
    input_types={k: jnp.int32 for k in first},
    partitioner=partitioner,
  )
  state = init.from_scratch(jax.random.PRNGKey(args.seed))
  jax.block_until_ready(state.params)
  init_s = time.perf_counter() - t0
  n_params = sum(x.size for x in jax.tree.leaves(state.params))
  rss_init = measure.peak_rss_mb()

  with trainer_lib.Trainer(
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
  ) as trainer:
    t0 = time.perf_counter()
    trainer.compile_train(first)
    compile_s = time.perf_counter() - t0
    del state

    # T5X's own loop body: one compiled train_step per batch.
    fn = trainer._compiled_train_step
    box = [trainer.train_state]
    trainer.train_state = None

    def step(b):
      box[0], metrics = fn(box[0], b)
      jax.block_until_ready((box[0].params, metrics))

    for i in range(args.warmup):
      step(batch(i)[0])
    meter = measure.Meter()
    batches = [batch(args.warmup + i) for i in range(args.steps)]
    rows = meter.time(step, [(b,) for b, _ in batches])
    peak_train = measure.peak_rss_mb()
    tokens = sum(n + B * S for _, n in batches)

    trainer.train_state = box[0]
    ev = trainer._partitioned_eval_step

    def evaluate():
      return jax.block_until_ready(ev(box[0], first))

    evaluate()
    fwd = meter.time(evaluate, [()] * max(3, args.steps // 2))

    ckpt = {}
    if args.checkpoint:
      root = tempfile.mkdtemp(dir=args.ckpt_dir)
      c = checkpoints.Checkpointer(box[0], partitioner, root)
      t0 = time.perf_counter()
      c.save(box[0])
      save_s = time.perf_counter() - t0
      size = sum(
        os.path.getsize(os.path.join(d, f))
        for d, _, fs in os.walk(root)
        for f in fs
      )
      nfiles = sum(len(fs) for _, _, fs in os.walk(root))
      ckpt = dict(
        ckpt_mb=round(size / 2**20, 1),
        ckpt_files=nfiles,
        ckpt_save_s=round(save_s, 2),
        ckpt_peak_rss_mb=measure.peak_rss_mb(),
      )
      shutil.rmtree(root)

  out = dict(
    system='t5x',
    **{
      k: getattr(args, k)
      for k in (
        'model',
        'batch',
        'input_len',
        'prompt_len',
        'target_len',
        'dtype',
        'arch',
        'one_hot',
        'dropout',
        'microbatches',
        'weight_metrics',
        'steps',
        'keep_heap',
      )
    },
  )
  out.update(lengths=bool(args.lengths))
  out.update(measure.summary(rows))
  total = sum(m['wall'] for m in rows)
  out.update(
    examples_per_s=round(B * args.steps / total, 3),
    tokens_per_s=round(tokens / total, 1),
    cpu_s_total=round(sum(m['cpu'] for m in rows), 3),
    fwd_s=measure.summary(fwd)['step_s_median'],
    fwd_cpu_s=measure.summary(fwd)['cpu_s_median'],
    init_s=round(init_s, 2),
    compile_s=round(compile_s, 2),
    peak_rss_mb=peak_train,
    rss_after_import_mb=rss_import,
    rss_after_init_mb=rss_init,
    params=n_params,
    trained=matched,
    dirty=meter.dirty,
    waited_s=round(meter.waited, 1),
    **ckpt,
  )
  print(json.dumps(out))


if __name__ == '__main__':
  main()
