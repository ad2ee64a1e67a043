"""The frozen backbone: reads it from whatever layout it is stored in."""

from collections.abc import Mapping
import dataclasses
import hashlib
import json
import os
from typing import Any

from flax import traverse_util
import numpy as np

from mpt_jax.backbones import Config, family, get_config, param_shapes
from mpt_jax.checkpoints import (
  files,
  hub,
  huggingface,
  stores,
  t5x_format,
  tensors,
)
from mpt_jax.checkpoints.vocabulary import (
  ORDINARY,
  SpecialIds,
  Vocabulary,
  find_vocabulary,
  read_special_ids,
)
from mpt_jax.engine import params as params_lib
from mpt_jax.types import (
  InputError,
  PyTree,
  installed,
  is_remote,
)

# How a backbone is run, not which one it is.
_RUNTIME_FIELDS = (
  'dtype',
  'dropout_rate',
  'float32_attention_logits',
  'precision',
  'remat_layers',
)
# Which prompts fit it depends on these, but not which weights.
_CONVENTIONS = ('prompt_positions',)


# The tiny backbones that come with the package: names, wherever one works.
DEMO = 'demo'
DEMOS: Mapping[str, str] = {
  DEMO: 'demo_backbone',
  'demo-small': 'demo_small_backbone',
  'demo-large': 'demo_large_backbone',
  'demo-roberta': 'demo_roberta_backbone',
}


@dataclasses.dataclass(frozen=True, repr=False)
class Backbone:
  """A frozen backbone.

  Attributes:
    config: its architecture.
    params: nested dict of float32 numpy arrays, named as T5X names them.
    fingerprint: digest of config and parameters, 'sha256:…'.
    name: what to call it.
    path: where it was read.
    vocabulary_file: the file beside it that says what its vocabulary is
      (`vocabulary.find_vocabulary`), or None.
    report: names of the tensors 'restored', 'new' and 'ignored'. None is
      ever new: a backbone with a random tensor is an error.
    special_ids: pad, start and end, in the checkpoint's own ids.
    vocabulary: the vocabulary, once somebody has read it.
  """

  config: Config
  params: dict[str, Any]
  fingerprint: str
  name: str
  path: str
  vocabulary_file: str | None
  report: dict[str, list[str]]
  special_ids: SpecialIds = ORDINARY
  vocabulary: Vocabulary | None = None

  def __repr__(self) -> str:
    c = self.config
    leaves = traverse_util.flatten_dict(self.params).values()
    return (
      f'Backbone({self.name}, {c.num_encoder_layers} +'
      f' {c.num_decoder_layers} layers, width {c.emb_dim}, {c.vocab_size} ids,'
      f' {sum(leaf.size for leaf in leaves):,} parameters)'
    )

  @property
  def origin(self) -> dict[str, str]:
    """'base': its name on the hub, with the 'revision', or else its path."""
    known = hub.name_of(self.path)
    return dict(zip(('base', 'revision'), known or (self.path,), strict=False))

  def with_vocabulary(self, file: str | None = None) -> 'Backbone':
    """Reads the vocabulary, if there is one.

    Args:
      file: another one than the backbone's own; what lies beside it counts.

    Returns:
      The backbone with its vocabulary.

    Raises:
      InputError: if the vocabulary is damaged or cannot be the backbone's.
    """
    file = file or self.vocabulary_file
    if file is None:
      return self
    vocabulary = Vocabulary(
      file,
      self.config.vocab_size,
      self.special_ids,
      owner=self.path or self.name,
    )
    special = self.special_ids
    if special.begin is not None and special.mask is None:
      # The weights alone do not say which id the mask has.
      special = dataclasses.replace(special, mask=vocabulary.special.mask)
    return dataclasses.replace(
      self,
      vocabulary_file=vocabulary.path,
      vocabulary=vocabulary,
      special_ids=special,
    )

  def save(
    self, path: str, changed: Mapping[str, Any], readme: bytes = b''
  ) -> None:
    """Writes a folder of transformers, with other values for some parameters.

    Args:
      path: the folder.
      changed: nested dict of the parameters that are not as here.
      readme: its card; b'' for what stays here.

    Raises:
      InputError: if the folder cannot be written, or holds other files.
    """
    huggingface.save_huggingface(
      path,
      self.config,
      params_lib.merge(self.params, changed),
      vocabulary_file=self.vocabulary_file,
      special_ids=self.special_ids,
      readme=readme,
    )


def demo_folder(name: str = DEMO) -> str:
  """Returns the folder of a demo backbone, beside the installed package.

  Args:
    name: 'demo'; 'demo-small', which is narrower and deeper; 'demo-large',
      which is wider and deeper, and pretrained on more; or 'demo-roberta', an
      encoder of the same text.
  """
  return installed('tasks', 'offline', DEMOS[name])


def find_backbone(path: str, fetch: bool = True) -> str:
  """Returns the path that a name of a backbone stands for.

  Args:
    path: 'demo', 'demo-small', 'demo-large' and 'demo-roberta' come with the
      package, whatever lies in the working folder (`./demo` is one there);
      'owner/name' is a model of the hub, if there is no such folder; all else
      is a path.
    fetch: whether a model of the hub may be downloaded.

  Raises:
    InputError: if a model is neither in the hub's cache nor can be downloaded.
  """
  if path in DEMOS:
    return demo_folder(path)
  if hub.is_name(path) and not os.path.lexists(path):
    return hub.find(path, fetch) or path
  return path


def fills_masks(path: str) -> bool:
  """Whether a backbone is an encoder that fills in masks; reads no weights."""
  folder = stores.place(find_backbone(path))
  if is_remote(folder):
    file = f'{folder}/{huggingface.CONFIG}'
    if not files.exists(file):
      return False
    folder = os.path.dirname(stores.bring(file))
  return (
    huggingface.is_model_folder(folder)
    and read_special_ids(folder).begin is not None
  )


def load_backbone(path: str, config: Config | str | None = None) -> Backbone:
  """Loads a backbone.

  Args:
    path: an HF folder (`config.json` and safetensors), or a T5X checkpoint, in
      its legacy or its orbax layout: the folder of one step or the one above,
      of which the last step is taken; here or in a bucket; or a name:
      'google-t5/t5-base', 'demo', see `find_backbone`.
    config: the architecture or the name of a published one. An HF folder says
      it itself, a T5X checkpoint implies it by its shapes; when given, it must
      agree, and decides how the model runs (dtype, dropout).

  Returns:
    The backbone, complete.

  Raises:
    InputError: if there is no backbone at `path`, a part of it is missing or
      damaged, or it is not of the config's sizes.
  """
  if isinstance(config, str):
    config = get_config(config)
  place = stores.place(find_backbone(path))
  with stores.reading(place) as path:
    loaded = _load(os.path.abspath(path), config)
  return dataclasses.replace(loaded, path=place) if is_remote(place) else loaded


def _load(path: str, config: Config | None) -> Backbone:
  """Loads a backbone from a folder of this machine."""
  if not os.path.exists(path):
    raise InputError(
      f'there is no backbone at {path}: no such folder; a model of the hub is'
      ' owner/name'
    )
  if not os.path.isdir(path):
    raise InputError(f'{path} is a file; give the folder that it lies in')
  step_folder = t5x_format.find_checkpoint(path)
  if step_folder is not None:
    source = t5x_format.open_checkpoint(step_folder)
    config = config or t5x_format.infer_config(source)
    name = f'{os.path.basename(os.path.dirname(step_folder))}/'
    name += os.path.basename(step_folder)
  elif huggingface.is_model_folder(path):
    source, stored_config, name = huggingface.open_folder(path)
    config = _same_architecture(path, stored_config, config)
    if known := hub.name_of(path):
      name = known[0]
  else:
    raise InputError(
      f'there is no backbone in {path}; expected config.json with'
      ' model.safetensors, or a T5X checkpoint (checkpoint_<step>)'
    )
  # A T5X checkpoint says nothing about its ids, and has T5's.
  special = ORDINARY if step_folder is not None else read_special_ids(path)
  ignored = tensors.check_tensors(source, config)
  names = list(param_shapes(config))
  # What is not finite is refused below.
  with np.errstate(over='ignore', invalid='ignore'):
    arrays = source.read(names)
  for tensor, array in arrays.items():
    if not np.isfinite(array).all():
      raise InputError(f'{path}: {tensor} holds NaN or infinity')
  params = traverse_util.unflatten_dict(arrays, sep='/')
  return Backbone(
    config=config,
    params=params,
    fingerprint=fingerprint(config, params, special),
    name=name,
    path=path,
    vocabulary_file=find_vocabulary(path),
    report={'restored': names, 'new': [], 'ignored': ignored},
    special_ids=special,
  )


def fingerprint(
  config: Config, params: PyTree, special_ids: SpecialIds = ORDINARY
) -> str:
  """Returns a digest that tells one backbone from another.

  It covers the architecture, every parameter's name, shape and float32 value,
  and special ids other than T5's; not how the model is run (dtype, dropout
  rate) and not the order of the tree.

  Args:
    config: the architecture.
    params: the backbone's parameter tree.
    special_ids: pad, start and end.

  Returns:
    'sha256:' and 64 hexadecimal digits.
  """
  fields = config.to_dict()
  for name in _RUNTIME_FIELDS:
    fields.pop(name, None)
  if special_ids != ORDINARY:
    fields['special_ids'] = special_ids.facts()
  digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
  flat: Mapping[str, Any] = traverse_util.flatten_dict(params, sep='/')
  for name, leaf in sorted(flat.items()):
    array = np.ascontiguousarray(np.asarray(leaf), dtype='<f4')
    digest.update(f'\n{name} {list(array.shape)}\n'.encode())
    digest.update(array.reshape(-1).view(np.uint8).data)
  return f'sha256:{digest.hexdigest()}'


def digest_vocabulary(file: str) -> str:
  """Returns 'sha256:…' of a SentencePiece file.

  Raises:
    InputError: if the file cannot be read.
  """
  try:
    with open(file, 'rb') as f:
      return f'sha256:{hashlib.file_digest(f, "sha256").hexdigest()}'
  except OSError as e:
    raise InputError(
      f'cannot read the vocabulary {file}: {e.strerror or e}'
    ) from e


def _same_architecture(
  path: str, stored: Config, given: Config | None
) -> Config:
  """Returns the given config if it describes the stored model."""
  if given is None:
    return stored
  if type(given) is not type(stored):
    raise InputError(
      f'{path} is a {family(stored).title}, but the config given is of a'
      f' {family(given).title}'
    )
  for field in dataclasses.fields(stored):
    want, got = getattr(given, field.name), getattr(stored, field.name)
    if want != got and field.name not in _RUNTIME_FIELDS + _CONVENTIONS:
      raise InputError(
        f'{path} has {field.name} {got}, but the config given asks for {want}'
      )
  return given
