r"""Examples a second of greedy decoding, as evaluation does it.

  python -m benchmarks.decode --model=small --batch=64 --target_len=8
  TORCH/bin/python -m benchmarks.decode --system=hf --model=small --batch=64

Random weights never say the end, so all rows decode `--target_len` tokens.
`--system=hf` is Hugging Face's `generate` on the same shapes. Prints one line
of JSON.
"""

import os
from typing import Any

from benchmarks import measure


def ours(flags: Any) -> Any:
  """Returns tokens [B, S] -> nothing, decoding with mpt_jax."""
  import jax
  import numpy as np

  from benchmarks import backbone
  from mpt_jax import methods, models
  from mpt_jax.engine import hostmemory, partitioning, trainer

  hostmemory.prepare()
  config = backbone.make_config(flags.model, flags.precision)
  mesh = partitioning.make_mesh()
  params = backbone.place(config, mesh, flags.seed)
  method = methods.SoftPrompts(flags.prompt_len)
  params['prompts'] = method.fresh(config, 1, jax.random.PRNGKey(0))
  predict = trainer.make_predict_step(
    models.PromptedT5(config, method),
    max_decode_length=flags.target_len,
  )
  slots = np.zeros((flags.batch, flags.prompt_len + flags.input_len), np.int32)
  slots[:, : flags.prompt_len] = np.arange(1, flags.prompt_len + 1)

  def decode(tokens: Any) -> None:
    batch = {
      'encoder_input_tokens': tokens,
      'encoder_prompt_slots': slots,
      'encoder_task_ids': np.zeros_like(slots),
    }
    jax.block_until_ready(predict(params, trainer.put_batch(batch, mesh)))

  return decode


def hugging_face(flags: Any) -> Any:
  """Returns tokens [B, S] -> nothing, decoding with transformers."""
  import torch
  from transformers import T5ForConditionalGeneration

  torch.set_num_threads(flags.threads)
  config = measure.hf_config(flags.model)
  model = T5ForConditionalGeneration(config).eval()
  device = measure.torch_device()
  model = model.to(device, getattr(torch, flags.precision))

  def decode(tokens: Any) -> None:
    with torch.no_grad():
      answers = model.generate(
        input_ids=torch.from_numpy(tokens).long().to(device),
        min_new_tokens=flags.target_len,
        max_new_tokens=flags.target_len,
        num_beams=1,
        do_sample=False,
      )
    answers.cpu()  # Waits for the device.

  return decode


def main() -> None:
  parser = measure.parser(__doc__)
  parser.add_argument('--system', choices=('mpt_jax', 'hf'), default='mpt_jax')
  parser.add_argument(
    '--precision', choices=('float32', 'bfloat16'), default='float32'
  )
  parser.set_defaults(batch=64)
  flags = parser.parse_args()
  measure.use_cores(flags.threads)
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  decode = (ours if flags.system == 'mpt_jax' else hugging_face)(flags)
  import numpy as np

  rng = np.random.default_rng(flags.seed)
  size = flags.batch, flags.prompt_len + flags.input_len
  batches = [
    rng.integers(3, measure.VOCABULARY, size).astype(np.int32)
    for _ in range(flags.steps + 1)
  ]
  decode(batches[0])
  rows = measure.Meter().time(decode, [(batch,) for batch in batches[1:]])
  found = measure.summary(rows)
  keys = 'system model batch input_len prompt_len target_len precision threads'
  measure.report(flags, keys, found)


if __name__ == '__main__':
  main()
