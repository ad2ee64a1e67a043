"""Writes (IA)^3 of PEFT on a backbone: `adapter` and `io.npz` in a folder.

  python -m tests.goldens.make_ia3 BACKBONE FOLDER SEED

BACKBONE is a folder of transformers. Needs torch, transformers and peft; what
it has written stands in tests/testdata.
"""

import os
import pathlib
import sys

import numpy as np


def main(backbone: str, folder: str, seed: int) -> None:
  import peft
  import torch
  import transformers

  torch.manual_seed(seed)
  base = transformers.T5ForConditionalGeneration.from_pretrained(backbone)
  model = peft.get_peft_model(
    base, peft.IA3Config(task_type='SEQ_2_SEQ_LM')
  ).eval()
  learned = {n: p for n, p in model.named_parameters() if p.requires_grad}
  for value in learned.values():
    torch.nn.init.uniform_(value, 0.3, 2.0)
  out = pathlib.Path(folder)
  out.mkdir(parents=True, exist_ok=True)
  model.peft_config['default'].base_model_name_or_path = os.path.basename(
    os.path.abspath(backbone)
  )
  model.save_pretrained(str(out / 'adapter'))
  (out / 'adapter' / 'README.md').unlink()

  rng = np.random.default_rng(seed)
  size = base.config.vocab_size
  tokens = rng.integers(3, size - 1, (3, 9))
  tokens[1, 6:] = tokens[2, 4:] = base.config.pad_token_id
  targets = rng.integers(3, size - 1, (3, 6))
  labels = np.where(np.arange(6) < [[6], [4], [2]], targets, -100)
  mask = (tokens != base.config.pad_token_id).astype(np.int64)
  inputs = {
    'input_ids': torch.tensor(tokens),
    'attention_mask': torch.tensor(mask),
  }
  given = model(**inputs, labels=torch.tensor(labels))
  given.loss.backward()
  with torch.no_grad():
    answers = model.generate(
      **inputs, max_new_tokens=8, do_sample=False, num_beams=1
    )
  found = {
    'input_ids': tokens,
    'attention_mask': mask,
    'labels': labels,
    'logits': given.logits.detach().numpy(),
    'loss': given.loss.detach().numpy(),
    'encoder_last_hidden_state': (
      given.encoder_last_hidden_state.detach().numpy()
    ),
    'generate_ids': answers.numpy(),
  }
  for name, value in learned.items():
    name = name.removeprefix('base_model.model.').replace('.default', '')
    found[f'grad/{name}'] = value.grad.numpy()
  np.savez(out / 'io.npz', **found)


if __name__ == '__main__':
  main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
