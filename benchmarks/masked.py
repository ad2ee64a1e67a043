r"""One training step of a soft prompt on RoBERTa, ours and PEFT's.

  python -m benchmarks.masked
  TORCH/bin/python -m benchmarks.masked --system=peft

RoBERTa-base with random weights, sentiment of two label words. PEFT's is
prompt tuning of `RobertaForSequenceClassification`, the cheaper of its two
ways: a classifier at the first token, where its masked language model would
score all 50,265 words at every position. Prints one line of JSON.
"""

import os
from typing import Any

from benchmarks import measure

VOCABULARY, MASK, END = 50265, 50264, 2
WORDS = (372, 2082)


def ours(flags: Any) -> Any:
  """Returns (tokens [B, S], classes [B]) -> nothing, a step of mpt_jax."""
  import jax
  import numpy as np

  from benchmarks import backbone
  from mpt_jax import methods, models, roberta
  from mpt_jax.engine import (
    batching,
    hostmemory,
    optimizers,
    partitioning,
    trainer,
  )

  hostmemory.prepare()
  config = roberta.CONFIGS['roberta_base'].replace(
    dropout_rate=0.0, precision=flags.precision
  )
  mesh = partitioning.make_mesh()
  frozen = backbone.place(config, mesh, flags.seed)
  method = methods.SoftPrompts(flags.prompt_len)
  model = models.class_of(config)(config, method, mask_id=MASK, eos_id=END)
  optimizer = optimizers.Optimizer(
    optimizers.method_groups(method, 0.3, None), schedule='constant'
  )
  start = method.fresh(config, 1, jax.random.PRNGKey(flags.seed))
  state = trainer.make_state(model, optimizer, {'prompts': start}, 0, mesh)
  zeros = jax.device_put(trainer.zero_metrics(model))
  step = trainer.make_train_step(model, optimizer)
  held = [state, zeros]
  words, classes = np.array(WORDS), np.array([1, 2])

  def train(tokens: Any, right: Any) -> None:
    tokens[:, 1] = MASK
    rows = [
      [batching.Example(ids, words, 0, classes, (classes == 1 + one) * 1)]
      for ids, one in zip(tokens, right, strict=True)
    ]
    shape = len(rows), flags.prompt_len + tokens.shape[1], len(words)
    batch = batching.lay_out(rows, shape, flags.prompt_len, packed=False)
    held[:] = step(held[0], frozen, trainer.put_batch(batch, mesh), held[1])
    jax.block_until_ready(held)

  return train


def peft(flags: Any) -> Any:
  """Returns (tokens [B, S], classes [B]) -> nothing, a step of PEFT."""
  import peft
  import torch
  import transformers

  torch.set_num_threads(flags.threads)
  torch.manual_seed(flags.seed)
  config = transformers.RobertaConfig(
    vocab_size=VOCABULARY,
    max_position_embeddings=514,
    type_vocab_size=1,
    num_labels=len(WORDS),
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
  )
  base = transformers.RobertaForSequenceClassification(config)
  wanted = peft.PromptTuningConfig(
    task_type='SEQ_CLS', num_virtual_tokens=flags.prompt_len
  )
  device = measure.torch_device()
  model = peft.get_peft_model(
    base.to(getattr(torch, flags.precision)), wanted
  ).to(device)
  model.train()
  trainable = [q for q in model.parameters() if q.requires_grad]
  optimizer = torch.optim.AdamW(trainable, lr=0.3)

  def train(tokens: Any, right: Any) -> None:
    ids = torch.from_numpy(tokens).long().to(device)
    loss = model(
      input_ids=ids,
      attention_mask=torch.ones_like(ids),
      labels=torch.from_numpy(right).long().to(device),
    ).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    loss.item()  # Waits for the device.

  return train


def main() -> None:
  parser = measure.parser(__doc__)
  parser.add_argument(
    '--system', choices=('mpt_jax', 'peft'), default='mpt_jax'
  )
  parser.add_argument(
    '--precision', choices=('float32', 'bfloat16'), default='float32'
  )
  flags = parser.parse_args()
  measure.use_cores(flags.threads)
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  train = (ours if flags.system == 'mpt_jax' else peft)(flags)
  import numpy as np

  rng = np.random.default_rng(flags.seed)
  count = flags.warmup + flags.steps
  batches = [
    (
      rng.integers(3, MASK, (flags.batch, flags.input_len)).astype(np.int32),
      rng.integers(0, len(WORDS), flags.batch),
    )
    for _ in range(count)
  ]
  for batch in batches[: flags.warmup]:
    train(*batch)
  found = measure.summary(measure.Meter().time(train, batches[flags.warmup :]))
  keys = 'system batch input_len prompt_len precision threads'
  measure.report(flags, keys, found)


if __name__ == '__main__':
  main()
