"""How a run begins: the backbone restored, the prompts new, all accounted for.

`t5x.train` first looks for a checkpoint in MODEL_DIR. Only if there is none
it asks for a state "from scratch", which this module makes: a T5X checkpoint
is read by T5X itself (each host reads what it holds, gs:// works), another
backbone by `mpt_jax.checkpoints`.
"""

from collections.abc import Mapping
import dataclasses
import os
from typing import Any

from absl import logging
from flax import core
import jax
import numpy as np
from t5x import train_state as t5x_train_state
from t5x import utils as t5x_utils

from mpt_jax import checkpoints, t5
from mpt_jax.checkpoints import hub, tensors
from mpt_jax.checkpoints.backbone import Backbone
from mpt_jax.checkpoints.vocabulary import Vocabulary
from mpt_jax.engine import params as params_lib
from mpt_jax.engine import partitioning, predictor, starts
from mpt_jax.engine.settings import BackboneSource
from mpt_jax.t5x import remote
from mpt_jax.t5x.models import PromptedModel
from mpt_jax.types import Array, InputError, PyTree

_DIFFERENTLY_NAMED = 5  # names of ignored tensors that are logged


@dataclasses.dataclass(frozen=True)
class Start:
  """What a training run starts from.

  Attributes:
    backbone: path of the backbone: a T5X checkpoint or an HF folder.
    stage: 'teacher', 'source' or 'target'.
    source: what the prompts start from.
    teacher_prompts: TEACHER_PROMPTS of a source run with distillation.
    vocabulary: the vocabulary, if it is local.
    seed: seeds the prompts' start values.
  """

  backbone: str
  stage: str
  source: starts.Source = starts.Source()
  teacher_prompts: Any = None
  vocabulary: Vocabulary | None = None
  seed: int = 0


class TrainModel(PromptedModel):
  """A prompted model that knows what its training starts from.

  Attributes:
    start: what it starts from.
    backbone_name: what to call the backbone.
  """

  def __init__(self, *args: Any, start: Start, **kwargs: Any):
    """Wraps a model, see `PromptedModel`.

    Args:
      *args: passed on.
      start: what the run starts from.
      **kwargs: passed on.
    """
    super().__init__(*args, **kwargs)
    self.start = start
    folder = remote.checkpoint_folder(start.backbone)
    path = (folder or start.backbone).rstrip('/')
    parts = path.split('/')
    self.backbone_name = '/'.join(parts[-2:]) if folder else parts[-1]
    if known := hub.name_of(path):
      self.backbone_name = known[0]
    self._fingerprint: str | None = None

  def fingerprint(self, params: PyTree) -> str:
    """Digest of the backbone in a parameter tree; computed once per run.

    Args:
      params: the whole tree, on every host.

    Returns:
      'sha256:…' as `load_backbone` gives it, or '' if the parameters are not
      float32: then they are not the ones that other runs fingerprint.
    """
    if self._fingerprint is None:
      names = t5.param_shapes(self.core.config)
      flat = params_lib.flatten(params)
      if any(flat[name].dtype != np.float32 for name in names):
        self._fingerprint = ''
      else:
        self._fingerprint = checkpoints.fingerprint(
          self.core.config,
          params_lib.unflatten({n: _LazyLeaf(flat[n]) for n in names}),
        )
    return self._fingerprint


class _LazyLeaf:
  """Brings a parameter to the host when it is looked at, and not before."""

  def __init__(self, value: Any):
    self._value = value

  def __array__(self, dtype=None, copy=None):
    del copy
    whole = partitioning.to_host(self._value)
    return whole.astype(dtype or np.float32, copy=False)


class PromptStateInitializer(t5x_utils.TrainStateInitializer):
  """T5X's initializer, whose "scratch" is a backbone with new prompts.

  Give it to `t5x.train` as `train_state_initializer_cls`.
  """

  def __init__(
    self,
    optimizer_def: Any,
    init_fn: Any,
    input_shapes: Mapping[str, Any],
    partitioner: Any,
    input_types: Mapping[str, Any] | None = None,
  ):
    """See `t5x.utils.TrainStateInitializer`.

    Args:
      optimizer_def: a T5X optimizer.
      init_fn: `get_initial_variables` of a `TrainModel`.
      input_shapes: shapes of a batch.
      partitioner: T5X's partitioner.
      input_types: types of a batch.
    """
    super().__init__(
      optimizer_def=optimizer_def,
      init_fn=init_fn,
      input_shapes=input_shapes,
      input_types=input_types,
      partitioner=partitioner,
    )
    self._model: TrainModel = init_fn.__self__
    self._optimizer_def = optimizer_def
    self._mesh_partitioner = partitioner
    self._input_shapes = input_shapes

  def from_scratch(self, init_rng: Array) -> Any:
    """Makes the first train state of a run.

    Args:
      init_rng: not used: prompts are seeded by the run's own seed.

    Returns:
      A partitioned T5X train state at the step of the backbone's checkpoint.

    Raises:
      InputError: if the backbone is incomplete or of other sizes, or the
        source prompts or teachers do not fit.
    """
    del init_rng
    model, start = self._model, self._model.start
    folder = remote.checkpoint_folder(start.backbone)
    if folder is not None:
      backbone, report = self._restore_t5x(folder)
    else:
      backbone, report = _read_backbone(model)
    ours = self._new_params(backbone)
    new = params_lib.flatten(ours)
    logging.info(
      'backbone %s: %d tensors restored, 0 new, %d ignored%s',
      model.backbone_name,
      len(report['restored']),
      len(report['ignored']),
      f' ({", ".join(report["ignored"][:_DIFFERENTLY_NAMED])})'
      if report['ignored']
      else '',
    )
    logging.info('new parameters: %s', ', '.join(new))
    if self._optimizer_def is not None:
      trained = {n: v for n, v in new.items() if n.startswith('prompts/')}
      rest = {
        **params_lib.flatten(backbone),
        **{n: v for n, v in new.items() if n not in trained},
      }
      for line in params_lib.describe(
        params_lib.unflatten(trained), params_lib.unflatten(rest)
      ):
        logging.info(line)
    return self._make_state(
      {**backbone, **ours}, remote.initial_step(start.backbone)
    )

  def _restore_t5x(
    self, folder: str
  ) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Lets T5X read the backbone, and nothing but the backbone."""
    report: dict[str, list[str]] = {}
    expected = t5.param_shapes(self._model.core.config)

    def check(
      state_dict: Any, target_state_dict: Any, *, is_resuming: bool = False
    ) -> Any:
      del target_state_dict, is_resuming
      stored = {}
      for name, leaf in _flatten(state_dict['target']).items():
        stored[name] = _stored_shape(leaf)
      # A shape that is not known before reading is checked after it.
      source = tensors.TensorSource(
        folder,
        {n: s or expected.get(n, ()) for n, s in stored.items()},
        lambda names: {},
      )
      report['ignored'] = tensors.check_tensors(source, self._model.core.config)
      report['restored'] = list(expected)
      return {
        'target': state_dict['target'],
        'state': {'step': state_dict['state']['step']},
      }

    only_backbone = t5x_utils.TrainStateInitializer(
      optimizer_def=None,
      init_fn=_BackboneAlone(self._model).get_initial_variables,
      input_shapes=self._input_shapes,
      partitioner=self._mesh_partitioner,
    )
    state, _ = t5x_utils.create_checkpoint_manager_and_restore(
      only_backbone,
      self._mesh_partitioner,
      t5x_utils.RestoreCheckpointConfig(
        path=folder,
        mode='specific',
        dtype='float32',
        strict=False,
        state_transformation_fns=[check],
      ),
      folder,
      None,
      use_orbax=True,
    )
    params = core.unfreeze(state.params)
    for name, value in params_lib.flatten(params).items():
      if tuple(value.shape) != expected[name]:
        raise InputError(
          f'{folder}: {name} has shape {tuple(value.shape)}, but the config'
          f' asks for {expected[name]}'
        )
    return params, report

  def _new_params(self, params: Mapping[str, Any]) -> dict[str, Any]:
    """The prompts' start values and the teachers' table, as host arrays."""
    model, start = self._model, self._model.start
    given = [start.source.prompts, start.teacher_prompts]
    backbone = Backbone(
      config=model.core.config,
      params={},
      # It takes a pass over all parameters: only where something is compared.
      fingerprint=model.fingerprint(params) if any(given) else '',
      name=model.backbone_name,
      path=start.backbone,
      vocabulary_file=start.vocabulary.path if start.vocabulary else None,
      report={},
      vocabulary=start.vocabulary,
    )
    if not backbone.fingerprint and any(given):
      logging.info(
        'the backbone is not float32: prompts are not checked with it'
      )
    if start.source.prompts is None:
      backbone.params['token_embedder'] = {
        'embedding': partitioning.to_host(params['token_embedder']['embedding'])
      }
    out = starts.start_values(
      model.core, backbone, start.source, start.stage, start.seed
    )
    if start.teacher_prompts is not None:
      out['teacher_prompts'] = {
        'prompt_table': starts.teacher_table(
          start.teacher_prompts,
          model.task_names,
          model.prompt_length,
          backbone,
        )
      }
    return jax.tree.map(np.asarray, out)

  def _make_state(self, params: Mapping[str, Any], step: int) -> Any:
    """Puts the parameters and a fresh optimizer state onto the mesh."""
    axes = core.freeze(self._model.params_axes(params))

    def make(params: PyTree) -> Any:
      variables = core.freeze({'params': params, 'params_axes': axes})
      if self._optimizer_def is None:
        state: Any = t5x_train_state.InferenceState.create(variables)
      else:
        state = t5x_train_state.FlaxOptimTrainState.create(
          self._optimizer_def, variables
        )
      return state.replace_step(jax.numpy.asarray(step, jax.numpy.int32))

    return self._mesh_partitioner.partition(
      make,
      in_axis_resources=(self.train_state_axes.params,),
      out_axis_resources=self.train_state_axes,
    )(core.freeze(dict(params)))


class _BackboneAlone:
  """The model without its prompts, as T5X's initializer wants one."""

  def __init__(self, model: PromptedModel):
    self._model = model
    self.module = model.module

  def get_initial_variables(
    self, rng: Array, input_shapes: Any, input_types: Any = None
  ) -> core.FrozenDict:
    variables = core.unfreeze(
      self._model.get_initial_variables(rng, input_shapes, input_types)
    )
    for tree in variables.values():
      for branch in ('prompts', 'teacher_prompts'):
        tree.pop(branch, None)
    return core.freeze(variables)


def _read_backbone(
  model: TrainModel,
) -> tuple[dict[str, Any], dict[str, list[str]]]:
  """Reads a backbone that is no T5X checkpoint, whole, on every host."""
  vocabulary = model.start.vocabulary
  loaded = predictor.load_backbone(
    BackboneSource(
      model.start.backbone,
      model.core.config,
      vocabulary.path if vocabulary else None,
    )
  )
  return dict(loaded.params), loaded.report


def _flatten(tree: Any, path: str = '') -> dict[str, Any]:
  """Flattens nested dicts down to arrays, placeholders or array specs."""
  if isinstance(tree, Mapping) and not {'kvstore', 'driver'} <= set(tree):
    out = {}
    for name, child in tree.items():
      out.update(_flatten(child, os.path.join(path, str(name))))
    return out
  return {path: tree}


def _stored_shape(leaf: Any) -> tuple[int, ...] | None:
  """The shape of an array as a checkpoint describes it, None if it does not."""
  if isinstance(leaf, Mapping):
    shape = leaf.get('metadata', {}).get('shape')
    return None if shape is None else tuple(shape)
  shape = getattr(leaf, 'shape', None)
  return tuple(shape) if shape is not None else None
