"""PEFT adapter folders, of the methods that PEFT has under a name of its own.

Only prompts of the encoder are exchanged; a decoder prompt has no counterpart
here.
"""

from collections.abc import Mapping, Sequence
import json
import os
from typing import Any

import numpy as np

from mpt_jax import methods
from mpt_jax.checkpoints import files
from mpt_jax.types import InputError

CONFIG = 'adapter_config.json'
TENSORS = 'adapter_model.safetensors'

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
  known = {
    method.peft_type: method
    for method in methods.known()
    if issubclass(method, methods.PromptMethod) and method.peft_type
  }
  kind = config.get('peft_type')
  if not isinstance(kind, str) or kind not in known:
    raise InputError(
      f'{config_path}: peft_type {kind!r} is not a prompt of ours; expected'
      f' {" or ".join(known)}'
    )
  method = known[kind]
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
  tasks, rank = 1, 0
  if method.per_task:
    if parts != 1:
      raise InputError(
        f'{config_path}: num_transformer_submodules is {parts}: this adapter'
        ' prompts the decoder too; expected 1'
      )
    tasks = _size(config, 'num_tasks', config_path, default=1)
    rank = _size(config, 'num_ranks', config_path, default=1)
  sizes = method.sized(parts * length, rank).shapes(methods.Width(width), tasks)
  shapes = {method.peft_names[ours]: shape for ours, shape in sizes.items()}

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
  arrays = {n: tensors[theirs] for n, theirs in method.peft_names.items()}
  if not method.per_task:
    # Plain prompt tuning allocates a part for the decoder, by default, that it
    # never uses.
    arrays = {name: array[:length] for name, array in arrays.items()}
  base = config.get('base_model_name_or_path')
  return arrays, _task_names(metadata), base if isinstance(base, str) else ''


def write_adapter(
  path: str, arrays: Mapping[str, np.ndarray], task_names: Sequence[str]
) -> None:
  """Writes an adapter folder that `PeftModel.from_pretrained` loads.

  Args:
    path: the folder.
    arrays: those of a method of prompts, by our names.
    task_names: the names of the K tasks; PEFT's `task_ids` count in this
      order.

  Raises:
    InputError: if the folder cannot be written.
  """
  method = methods.holding(set(arrays))
  tensors = {theirs: arrays[n] for n, theirs in method.peft_names.items()}
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
    'peft_type': method.peft_type,
    'prompt_tuning_init': 'RANDOM',
    'prompt_tuning_init_text': None,
    'revision': None,
    'task_type': 'SEQ_2_SEQ_LM',
    'token_dim': width,
    'tokenizer_kwargs': None,
    'tokenizer_name_or_path': None,
  }
  if method.per_task:
    config |= {
      'num_ranks': method.rank_of(arrays),
      'num_tasks': method.num_tasks(arrays),
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
