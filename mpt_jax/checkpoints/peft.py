"""PEFT adapter folders: `MULTITASK_PROMPT_TUNING` and `PROMPT_TUNING`.

PEFT composes a task's prompt exactly as we do, `P* o (u_k v_k)` with a plain
sum over the ranks, under other names: `prompt_embeddings` [P, D],
`prefix_task_cols` [K, P, R], `prefix_task_rows` [K, R, D]. Only prompts of the
encoder are exchanged; a decoder prompt has no counterpart here.
"""

from collections.abc import Mapping, Sequence
import json
import os
from typing import Any

import numpy as np

from mpt_jax.checkpoints import files
from mpt_jax.types import InputError

CONFIG = 'adapter_config.json'
TENSORS = 'adapter_model.safetensors'

_MULTITASK = 'MULTITASK_PROMPT_TUNING'
_SOFT = 'PROMPT_TUNING'
_NAMES = {
  'shared_prompt': 'prompt_embeddings',
  'task_u': 'prefix_task_cols',
  'task_v': 'prefix_task_rows',
}
# Where our task names stand in the metadata of the tensor file; PEFT numbers
# its tasks and ignores the entry.
_TASK_NAMES = 'mpt_jax.task_names'


def read_adapter(
  path: str,
) -> tuple[dict[str, np.ndarray], list[str] | None, str]:
  """Reads an adapter folder as PEFT's `save_pretrained` writes it.

  Args:
    path: the folder with `adapter_config.json` and
      `adapter_model.safetensors`.

  Returns:
    The arrays by our names (`shared_prompt`, `task_u`, `task_v` or `prompt`;
    float32), the task names if we wrote the adapter, and the base model's
    name ('' if the adapter does not say).

  Raises:
    InputError: if a file or field is missing or damaged, or the adapter is of
      a kind that our model does not have.
  """
  config_path = os.path.join(path, CONFIG)
  config = files.read_json(config_path, follow_links=True)
  kind = config.get('peft_type')
  if kind not in (_MULTITASK, _SOFT):
    raise InputError(
      f'{config_path}: peft_type {kind!r} is not a prompt of ours; expected'
      f' {_MULTITASK} or {_SOFT}'
    )
  if config.get('task_type') != 'SEQ_2_SEQ_LM':
    # PEFT itself ignores the prompt without a word when this is missing.
    raise InputError(
      f'{config_path}: task_type is {config.get("task_type")!r}, expected'
      " 'SEQ_2_SEQ_LM'"
    )
  # PEFT's default for encoder-decoder models is 2, the decoder as well.
  parts = _size(config, 'num_transformer_submodules', config_path, default=2)
  length = _size(config, 'num_virtual_tokens', config_path)
  width = _size(config, 'token_dim', config_path)
  if kind == _MULTITASK:
    if parts != 1:
      raise InputError(
        f'{config_path}: num_transformer_submodules is {parts}: this adapter'
        ' prompts the decoder too; expected 1'
      )
    tasks = _size(config, 'num_tasks', config_path, default=1)
    rank = _size(config, 'num_ranks', config_path, default=1)
    shapes: dict[str, tuple[int, ...]] = {
      'prompt_embeddings': (length, width),
      'prefix_task_cols': (tasks, length, rank),
      'prefix_task_rows': (tasks, rank, width),
    }
  else:
    shapes = {'prompt_embeddings': (parts * length, width)}

  pickled = os.path.join(path, 'adapter_model.bin')
  tensor_path = os.path.join(path, TENSORS)
  if os.path.lexists(pickled) and not os.path.lexists(tensor_path):
    raise InputError(
      f'{pickled} is a pickle and is not opened; save the adapter with'
      f' safe_serialization=True, as {TENSORS}'
    )
  tensors, metadata = files.read_tensors(
    tensor_path, shapes, ('F32', 'F16', 'BF16'), follow_links=True
  )
  if kind == _MULTITASK:
    arrays = {ours: tensors[theirs] for ours, theirs in _NAMES.items()}
  else:
    # Plain prompt tuning allocates a part for the decoder, by default, that it
    # never uses.
    arrays = {'prompt': tensors['prompt_embeddings'][:length]}
  base = config.get('base_model_name_or_path')
  return arrays, _task_names(metadata), base if isinstance(base, str) else ''


def write_adapter(
  path: str, arrays: Mapping[str, np.ndarray], task_names: Sequence[str]
) -> None:
  """Writes an adapter folder that `PeftModel.from_pretrained` loads.

  Args:
    path: the folder.
    arrays: `shared_prompt` [P, D], `task_u` [K, P, R], `task_v` [K, R, D], or
      `prompt` [P, D].
    task_names: the names of the K tasks; PEFT's `task_ids` count in this
      order.

  Raises:
    InputError: if the folder cannot be written.
  """
  if 'prompt' in arrays:
    tensors = {'prompt_embeddings': arrays['prompt']}
  else:
    tensors = {theirs: arrays[ours] for ours, theirs in _NAMES.items()}
  length, width = tensors['prompt_embeddings'].shape
  config: dict[str, Any] = {
    'auto_mapping': None,
    'base_model_name_or_path': None,
    'inference_mode': True,
    'modules_to_save': None,
    'num_attention_heads': None,
    'num_layers': None,
    'num_transformer_submodules': 1,
    'num_virtual_tokens': length,
    'peft_type': _SOFT,
    'prompt_tuning_init': 'RANDOM',
    'prompt_tuning_init_text': None,
    'revision': None,
    'task_type': 'SEQ_2_SEQ_LM',
    'token_dim': width,
    'tokenizer_kwargs': None,
    'tokenizer_name_or_path': None,
  }
  if 'prompt' not in arrays:
    tasks, _, rank = arrays['task_u'].shape
    config |= {
      'num_ranks': rank,
      'num_tasks': tasks,
      'peft_type': _MULTITASK,
      'prompt_tuning_init_state_dict_path': None,
      'prompt_tuning_init_task': 0,
    }
  metadata = {'format': 'pt', _TASK_NAMES: json.dumps(list(task_names))}
  files.write_folder(
    path,
    {
      CONFIG: files.json_bytes(config),
      TENSORS: files.tensor_bytes(tensors, metadata),
    },
  )


def _size(
  config: Mapping[str, Any], key: str, where: str, default: int | None = None
) -> int:
  """Returns a positive size from the configuration."""
  value = config.get(key)
  if value is None:
    value = default
  if type(value) is not int or value < 1:
    raise InputError(f'{where}: {key} is {value!r}, expected a positive number')
  return value


def _task_names(metadata: Mapping[str, str]) -> list[str] | None:
  try:
    names = json.loads(metadata.get(_TASK_NAMES, 'null'))
  except (ValueError, RecursionError):
    return None
  is_list = isinstance(names, list) and all(isinstance(n, str) for n in names)
  return names if is_list else None
