"""PEFT adapter folders, of the methods that PEFT has under a name of its own.

Of prompts, only those of the encoder are exchanged; a decoder prompt has no
counterpart here. What enters the network says in its own file how PEFT has it
(`Delta.from_peft`, `Delta.to_peft`).
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import os
from typing import Any

import numpy as np

from mpt_jax import methods
from mpt_jax.checkpoints import files, huggingface
from mpt_jax.types import InputError

CONFIG = 'adapter_config.json'
TENSORS = 'adapter_model.safetensors'

# Where our task names stand in the metadata of the tensor file; PEFT numbers
# its tasks and ignores the entry.
TASK_NAMES = 'mpt_jax.task_names'
# What stands in front of the names of the base model's modules.
_MODEL = 'base_model.model.'
# What every adapter says of itself, and what we write there of it.
_COMMON: dict[str, Any] = {
  'auto_mapping': None,
  'base_model_name_or_path': None,
  'inference_mode': True,
  'peft_type': None,
  'revision': None,
  'task_type': 'SEQ_2_SEQ_LM',
}
# A method, its arrays by our names, and the task names.
_Read = tuple[methods.Method, dict[str, np.ndarray], list[str] | None]


@dataclasses.dataclass(frozen=True)
class Imported:
  """What an adapter of another program is here.

  Attributes:
    method: the method, with its settings.
    arrays: by our names, float32.
    task_names: whose they are, if we wrote the adapter.
    base: the base model's name; '' if the adapter does not say.
  """

  method: methods.Method
  arrays: Mapping[str, np.ndarray]
  task_names: Sequence[str] | None = None
  base: str = ''


def read_adapter(path: str) -> Imported:
  """Reads an adapter folder as PEFT's `save_pretrained` writes it.

  Args:
    path: the folder with `adapter_config.json` and
      `adapter_model.safetensors`.

  Returns:
    The adapter.

  Raises:
    InputError: if a file or field is missing or damaged, or the adapter is of
      a kind that our model does not have.
  """
  config_path = os.path.join(path, CONFIG)
  config = files.read_json(config_path, follow_links=True)
  known = {m.peft_type: m for m in methods.known() if m.peft_type}
  kind = config.get('peft_type')
  if not isinstance(kind, str) or kind not in known:
    raise InputError(
      f'{config_path}: peft_type {kind!r} is not a method of ours; expected'
      f' {" or ".join(known)}'
    )
  method = known[kind]
  if config.get('task_type') != 'SEQ_2_SEQ_LM':
    # PEFT itself ignores the prompt without a word when this is missing.
    raise InputError(
      f'{config_path}: task_type is {config.get("task_type")!r}, expected'
      " 'SEQ_2_SEQ_LM'"
    )
  base = config.get('base_model_name_or_path')
  base = base if isinstance(base, str) else ''
  if issubclass(method, methods.PromptMethod):
    learner, arrays, names = _read_prompts(path, method, config)
  else:
    assert issubclass(method, methods.Delta)
    learner, arrays, names = _read_delta(path, method, config)
  return Imported(learner, arrays, names, base)


def _read_prompts(
  path: str, method: type[methods.PromptMethod], config: Mapping[str, Any]
) -> _Read:
  config_path = os.path.join(path, CONFIG)
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
  tensors, names = _read_tensors(path, shapes)
  arrays = {n: tensors[theirs] for n, theirs in method.peft_names.items()}
  if not method.per_task:
    # Plain prompt tuning allocates a part for the decoder, by default, that it
    # never uses.
    arrays = {name: array[:length] for name, array in arrays.items()}
  return method.sized(length, rank), arrays, names


def _read_delta(
  path: str, method: type[methods.Delta], config: Mapping[str, Any]
) -> _Read:
  stored, names = _read_tensors(path, None)
  tensors = {}
  for name, tensor in stored.items():
    found = None
    if name.startswith(_MODEL):
      found = huggingface.module_of(name.removeprefix(_MODEL))
    tensors['/'.join(found) if found else name] = tensor
  common = {*_COMMON, 'peft_version'}
  own = {key: value for key, value in config.items() if key not in common}
  try:
    learner, arrays = method.from_peft(own, tensors)
  except InputError as e:
    raise InputError(f'{os.path.join(path, CONFIG)}: {e}') from e
  shared = names is not None and len(names) > 1
  learner = dataclasses.replace(learner, shared=shared)
  return learner, {name: array[None] for name, array in arrays.items()}, names


def _read_tensors(
  path: str, shapes: Mapping[str, tuple[int, ...]] | None
) -> tuple[dict[str, np.ndarray], list[str] | None]:
  """The tensors of an adapter, and the task names that we wrote there."""
  return read_tensors(
    path, TENSORS, 'adapter_model.bin', 'safe_serialization', shapes
  )


def read_tensors(
  path: str,
  name: str,
  pickle: str,
  option: str,
  shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> tuple[dict[str, np.ndarray], list[str] | None]:
  """Reads the tensors of an adapter that torch's programs write.

  Args:
    path: the folder.
    name: of the file of tensors.
    pickle: of the file that may be there in its place, and is not opened.
    option: what was not given to the program if it is.
    shapes: as for `files.read_tensors`.

  Returns:
    The tensors, float32, and the task names that we wrote there, if we did.

  Raises:
    InputError: if the file is missing or damaged.
  """
  pickled, tensor_path = os.path.join(path, pickle), os.path.join(path, name)
  if os.path.lexists(pickled) and not os.path.lexists(tensor_path):
    raise InputError(
      f'{pickled} is a pickle and is not opened; save the adapter with'
      f' {option}=True, as {name}'
    )
  tensors, metadata = files.read_tensors(
    tensor_path, shapes, ('F32', 'F16', 'BF16'), follow_links=True
  )
  return tensors, _task_names(metadata)


def write_adapter(
  path: str,
  method: methods.Method,
  arrays: Mapping[str, np.ndarray],
  task_names: Sequence[str],
  base: str,
  revision: str,
  readme: bytes,
) -> None:
  """Writes an adapter folder that `PeftModel.from_pretrained` loads.

  Args:
    path: the folder.
    method: the method, with its settings.
    arrays: by our names; of a method in the network one set.
    task_names: the names of the K tasks; PEFT's `task_ids` count in this
      order.
    base: the base model's name on the hub or its path; '' if not known.
    revision: of the base model on the hub.
    readme: the adapter's card.

  Raises:
    InputError: if the folder cannot be written.
  """
  if isinstance(method, methods.PromptMethod):
    own, tensors = _prompts_of(method, arrays)
  else:
    assert isinstance(method, methods.Delta)
    own, found = method.to_peft({n: a[0] for n, a in arrays.items()})
    tensors = {_stored_name(name): tensor for name, tensor in found.items()}
  config = {
    **_COMMON,
    **own,
    'base_model_name_or_path': base or None,
    'peft_type': method.peft_type,
    'revision': revision or None,
  }
  metadata = {'format': 'pt', TASK_NAMES: json.dumps(list(task_names))}
  files.write_folder(
    path,
    {
      CONFIG: files.json_bytes(config),
      TENSORS: files.tensor_bytes(tensors, metadata),
      files.README: readme,
    },
  )


def _stored_name(name: str) -> str:
  """PEFT's name of a tensor that stands at a module of ours."""
  module, slash, part = name.rpartition('/')
  if not slash:
    return name
  try:
    stored, _ = huggingface.name_of(f'{module}/kernel')
  except (KeyError, ValueError, IndexError) as e:
    raise InputError(f'{name} has no name in transformers') from e
  return f'{_MODEL}{stored.removesuffix("weight")}{part}'


def _prompts_of(
  method: methods.PromptMethod, arrays: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """A method of prompts as PEFT has it: configuration and tensors."""
  tensors = {theirs: arrays[n] for n, theirs in method.peft_names.items()}
  length, width = tensors['prompt_embeddings'].shape
  config: dict[str, Any] = {
    'modules_to_save': None,
    'num_attention_heads': None,
    'num_layers': None,
    'num_transformer_submodules': 1,
    'num_virtual_tokens': length,
    'prompt_tuning_init': 'RANDOM',
    'prompt_tuning_init_text': None,
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
  return config, tensors


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
    names = json.loads(metadata.get(TASK_NAMES, 'null'))
  except (ValueError, RecursionError):
    return None
  is_list = isinstance(names, list) and all(isinstance(n, str) for n in names)
  return names if is_list else None
