"""The families of frozen backbones: what each must offer, in one table.

A backbone is a Flax network whose encoder embeds tokens and takes prompts by
slots, a config with the sizes that methods ask for, and a model class in
`models` that makes losses and answers of it. Whoever needs more than a
network's shapes asks here; nothing above knows which family it is.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from flax import linen as nn

from mpt_jax import roberta, t5
from mpt_jax.types import InputError, nearest

Config = t5.T5Config | roberta.RobertaConfig


@dataclasses.dataclass(frozen=True)
class Family:
  """What a family of backbones offers.

  Attributes:
    title: what it is called.
    config: the class of its configs.
    network: config -> its Flax module.
    param_shapes: config -> {name: shape} of every parameter, sorted.
    branches: the roots of its parameter tree.
    generates: whether it answers with any text; else with label words alone.
    configs: name -> config of the published models.
  """

  title: str
  config: Any
  network: Callable[[Any], nn.Module]
  param_shapes: Callable[[Any], dict[str, tuple[int, ...]]]
  branches: tuple[str, ...]
  generates: bool
  configs: dict[str, Any]


FAMILIES = (
  Family(
    title='T5',
    config=t5.T5Config,
    network=t5.Transformer,
    param_shapes=t5.param_shapes,
    branches=('token_embedder', 'encoder', 'decoder'),
    generates=True,
    configs=t5.CONFIGS,
  ),
  Family(
    title='RoBERTa',
    config=roberta.RobertaConfig,
    network=roberta.Roberta,
    param_shapes=roberta.param_shapes,
    branches=('token_embedder', 'encoder', 'lm_head'),
    generates=False,
    configs=roberta.CONFIGS,
  ),
)


def family(config: Config) -> Family:
  """Returns the family of a config."""
  return next(f for f in FAMILIES if isinstance(config, f.config))


def kind_of(config: Config) -> str:
  """What files call a backbone's family; '' is T5, as in those of old."""
  found = family(config)
  return '' if found is FAMILIES[0] else found.title


def param_shapes(config: Config) -> dict[str, tuple[int, ...]]:
  """Returns name -> shape of every parameter of a backbone, sorted by name."""
  return family(config).param_shapes(config)


def configs() -> dict[str, Config]:
  """Returns the configs of all published models, by their names."""
  return {name: c for f in FAMILIES for name, c in f.configs.items()}


def get_config(name: str) -> Config:
  """Returns the published config of a name, such as 't5_base'.

  Raises:
    InputError: if there is no such model.
  """
  known = configs()
  if name not in known:
    raise InputError(
      f'unknown backbone config {name!r}, known are {", ".join(known)}'
      f'{nearest(name, known)}'
    )
  return known[name]


def config_of(fields: Mapping[str, Any]) -> Config:
  """Returns the config that these fields, its `to_dict`, describe.

  Raises:
    InputError: if no family has such fields.
  """
  for each in FAMILIES:
    if set(fields) <= {field.name for field in dataclasses.fields(each.config)}:
      return each.config.from_dict(fields)
  # Its message says which field is unknown.
  return FAMILIES[0].config.from_dict(fields)
