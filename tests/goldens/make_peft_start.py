"""Writes how PEFT starts a target from source tasks: `start.npz` in a folder.

  python -m tests.goldens.make_peft_start FOLDER SEED

Needs torch and peft; what it has written stands in tests/testdata.
"""

import os
import pathlib
import sys
import tempfile

import numpy as np

STARTS = {
  'average': 'AVERAGE_SOURCE_TASKS',
  'shared': 'ONLY_SOURCE_SHARED',
  'exact': 'EXACT_SOURCE_TASK',
}


def main(folder: str, seed: int) -> None:
  import peft
  from peft.tuners.multitask_prompt_tuning.model import (
    MultitaskPromptEmbedding,
  )
  import safetensors.torch
  import torch

  rng = np.random.default_rng(seed)
  tasks, length, rank, width = (int(n) for n in rng.permutation([2, 3, 5, 7]))
  shapes = {
    'prompt_embeddings': (length, width),
    'prefix_task_cols': (tasks, length, rank),
    'prefix_task_rows': (tasks, rank, width),
  }
  source = {
    name: rng.normal(size=shape).astype(np.float32)
    for name, shape in shapes.items()
  }
  exact = int(rng.integers(tasks))
  found = {f'source__{name}': value for name, value in source.items()}
  found |= {'exact_task': np.int64(exact), 'peft': np.array(peft.__version__)}
  with tempfile.TemporaryDirectory() as scratch:
    path = os.path.join(scratch, 'source.safetensors')
    safetensors.torch.save_file(
      {name: torch.from_numpy(value) for name, value in source.items()}, path
    )
    for start, init in STARTS.items():
      config = peft.MultitaskPromptTuningConfig(
        task_type='SEQ_2_SEQ_LM',
        num_virtual_tokens=length,
        token_dim=width,
        num_transformer_submodules=1,
        num_ranks=rank,
        num_tasks=1,
        prompt_tuning_init=init,
        prompt_tuning_init_task=exact,
        prompt_tuning_init_state_dict_path=path,
      )
      module = MultitaskPromptEmbedding(config, torch.nn.Embedding(2, width))
      found[f'{start}__shared_prompt'] = module.embedding.weight
      found[f'{start}__task_u'] = module.prefix_task_cols
      found[f'{start}__task_v'] = module.prefix_task_rows
  arrays = {
    name: value.detach().numpy() if hasattr(value, 'detach') else value
    for name, value in found.items()
  }
  pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
  np.savez(pathlib.Path(folder) / 'start.npz', **arrays)


if __name__ == '__main__':
  main(sys.argv[1], int(sys.argv[2]))
