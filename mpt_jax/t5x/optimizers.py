"""Only prompts train: a T5X optimizer over an explicit list of names."""

from collections.abc import Sequence
from typing import Any

from flax import core
import jax
from t5x import optimizers as t5x_optimizers

from mpt_jax.engine import optimizers
from mpt_jax.engine import params as params_lib
from mpt_jax.methods import PromptMethod
from mpt_jax.types import InputError, PyTree


def trainable_names(method: PromptMethod) -> tuple[str, ...]:
  """The parameters that train, by their whole names.

  Args:
    method: the method.

  Returns:
    The names; there is no pattern that could miss one.
  """
  return tuple(f'{method.branch}/{name}' for name in method.arrays)


class PromptOptimizer(t5x_optimizers.OptaxWrapper):
  """Updates the named parameters; the others have no state and never move.

  The transformation is the native engine's (`optimizers.Optimizer`). It sees
  the named parameters alone, so that its state, and what a clip norm counts,
  are the same in both engines.
  """

  def __init__(self, settings: Any, names: Sequence[str]):
    """Keeps the settings.

    Args:
      settings: an `optimizers.Optimizer`, or an optax transformation.
      names: whole names of the parameters that train.
    """
    self.names = tuple(names)
    self.settings = settings
    # The transformation depends on the tree, see `_transform`.
    super().__init__(optax_optimizer=None)

  def init_state(self, params: PyTree) -> t5x_optimizers.OptimizerState:
    """Makes the state of the named parameters.

    Args:
      params: the whole parameter tree.

    Returns:
      The state of step 0.

    Raises:
      InputError: if a name is not there, or the tree has a prompt parameter
        that is not among the names.
    """
    trained, _ = self._split(params)
    return t5x_optimizers.OptimizerState(
      step=0, param_states=self._transform(trained).init(trained)
    )

  def apply_gradient(
    self,
    hyper_params: Any,
    params: PyTree,
    state: t5x_optimizers.OptimizerState,
    grads: PyTree,
  ) -> tuple[PyTree, t5x_optimizers.OptimizerState]:
    """One update.

    Args:
      hyper_params: not used; schedules are part of the settings.
      params: the whole parameter tree.
      state: the optimizer's state.
      grads: gradients in the form of `params`; those of frozen parameters are
        not looked at.

    Returns:
      (new parameters, new state); frozen parameters are the same arrays.
    """
    del hyper_params
    trained, frozen = self._split(params)
    gradients, _ = self._split(grads)
    updates, new_state = self._transform(trained).update(
      gradients, state.param_states, trained
    )
    trained = jax.tree.map(lambda p, u: p + u, trained, updates)
    merged: Any = params_lib.merge(trained, frozen)
    if isinstance(params, core.FrozenDict):
      merged = core.freeze(merged)
    return merged, t5x_optimizers.OptimizerState(
      step=state.step + 1, param_states=new_state
    )

  def derive_logical_axes(self, optimizer: Any, param_logical_axes: Any) -> Any:
    """Partitioning: parameters as they say, the prompts' state everywhere.

    Args:
      optimizer: a T5X optimizer.
      param_logical_axes: axis names of every parameter.

    Returns:
      The optimizer with axis names, or None for replicated, as leaves.
    """
    axes = jax.tree.map(lambda _: None, optimizer.state_dict())
    axes['target'] = core.unfreeze(param_logical_axes)
    return optimizer.restore_state(axes)

  def _transform(self, trained: PyTree) -> Any:
    if isinstance(self.settings, optimizers.Optimizer):
      return self.settings.make(trained)
    return self.settings

  def _split(self, params: PyTree) -> tuple[dict[str, Any], dict[str, Any]]:
    flat = params_lib.flatten(params)
    prompts = {name for name in flat if name.startswith('prompts/')}
    if prompts != set(self.names):
      raise InputError(
        f'the optimizer trains {sorted(self.names)}, but the model has the'
        f' prompt parameters {sorted(prompts)}'
      )
    return (
      params_lib.unflatten({n: flat[n] for n in self.names}),
      params_lib.unflatten({n: v for n, v in flat.items() if n not in prompts}),
    )
