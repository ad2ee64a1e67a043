"""Writes what transformers computes with a prompt at each layer of the encoder.

  python -m tests.goldens.make_deep FOLDER BACKBONE SEED

`io.npz` in FOLDER, on the T5 that BACKBONE, a folder of transformers, holds.
Hooks on the encoder's blocks put the prompts into their inputs. Needs torch and
transformers; what it has written stands in tests/testdata.
"""

import pathlib
import sys

import numpy as np


def _draw(config, rng):
  """Examples of uneven lengths, and prompts."""
  rows, source, target, length = (int(n) for n in rng.permutation([3, 9, 6, 4]))
  ids = rng.integers(3, config.vocab_size, (rows, source))
  labels = rng.integers(3, config.vocab_size, (rows, target))
  ends = rng.integers(1, source + 1, rows)
  mask = (np.arange(source) < ends[:, None]).astype(np.int64)
  labels[1, max(1, target - 2) :] = -100
  start = np.full((rows, 1), config.decoder_start_token_id)
  inputs = np.concatenate([start, labels[:, :-1]], axis=1)
  width = config.d_model
  return {
    'input_ids': np.where(mask > 0, ids, config.pad_token_id),
    'attention_mask': mask,
    'decoder_input_ids': np.where(inputs < 0, config.pad_token_id, inputs),
    'labels': labels,
    'embedding_prompt': rng.normal(size=(length, width)).astype(np.float32),
    'layer_prompts': rng.normal(size=(config.num_layers, length, width)).astype(
      np.float32
    ),
  }


def main(folder: str, backbone: str, seed: int) -> None:
  import torch
  import transformers

  model = transformers.T5ForConditionalGeneration.from_pretrained(backbone)
  model = model.float().eval()
  io = _draw(model.config, np.random.default_rng(seed))
  given = {name: torch.tensor(value) for name, value in io.items()}
  first = given['embedding_prompt'].requires_grad_()
  layers = given['layer_prompts'].requires_grad_()
  length, case = len(first), ''

  def hook(i):
    def put(block, args):
      x, *rest = args
      slots = layers[i].expand(len(x), -1, -1)
      if case == 'add/':
        slots = slots + x[:, :length]
      return (torch.cat([slots, x[:, length:]], dim=1), *rest)

    return put

  for i, block in enumerate(model.encoder.block):
    block.register_forward_pre_hook(hook(i))
  front = torch.ones(len(given['input_ids']), length, dtype=torch.int64)
  mask = torch.cat([front, given['attention_mask']], dim=1)
  for case in ('replace/', 'add/'):
    embedded = model.shared(given['input_ids'])
    prompts = first.expand(len(embedded), -1, -1)
    encoded = model.encoder(
      inputs_embeds=torch.cat([prompts, embedded], dim=1), attention_mask=mask
    )
    rest = {'encoder_outputs': encoded, 'attention_mask': mask}
    out = model(
      decoder_input_ids=given['decoder_input_ids'],
      labels=given['labels'],
      **rest,
    )
    grads = torch.autograd.grad(out.loss, (first, layers), allow_unused=True)
    states = encoded.last_hidden_state
    # Without a cache: transformers 5.24 makes that for the encoder's layers.
    search = {'max_new_tokens': 8, 'do_sample': False, 'use_cache': False}
    found = {
      'logits': out.logits,
      'loss': out.loss,
      'encoder_last_hidden_state': states[:, length:],
      'grad/layer_prompts': grads[1],
      'generate_ids': model.generate(**rest, **search),
    }
    if case == 'add/':
      found['grad/embedding_prompt'] = grads[0]
    else:
      assert not grads[0].abs().max(), 'the layers replace it'
    for name, value in found.items():
      io[f'{case}{name}'] = value.detach().numpy()
  pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
  np.savez(pathlib.Path(folder) / 'io.npz', **io)


if __name__ == '__main__':
  main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
