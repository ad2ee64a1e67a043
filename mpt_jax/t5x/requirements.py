"""Is T5X there, and does it have what the adapter uses?"""

from collections.abc import Mapping, Sequence
import importlib
import inspect
from typing import Any

from mpt_jax.types import InputError

INSTALL = 'pip install --no-deps -r requirements/t5x.txt'
TESTED = 'cc342d4'

# Module of T5X -> what the adapter takes from it, as far as 'Class.name' or
# 'function(argument)'.
NEEDED: Mapping[str, Sequence[str]] = {
  't5x.metrics': (
    'AveragePerStep.from_model_output',
    'StepsPerTime.from_model_output',
    'Sum',
    'Time',
    'TimeRate.from_model_output',
  ),
  't5x.models': ('BaseTransformerModel(loss_normalizing_factor)',),
  't5x.optimizers': (
    'OptaxWrapper(optax_optimizer)',
    'OptaxWrapper.derive_logical_axes',
    'OptimizerState',
  ),
  't5x.partitioning': (
    'PjitPartitioner(logical_axis_rules)',
    'standard_logical_axis_rules(additional_rules)',
  ),
  't5x.train_state': ('FlaxOptimTrainState.create',),
  't5x.trainer': ('Trainer(learning_rate_fn)',),
  't5x.utils': (
    'CheckpointConfig(save)',
    'DatasetConfig(mixture_or_task_name)',
    'RestoreCheckpointConfig(state_transformation_fns)',
    'SaveCheckpointConfig(state_transformation_fns)',
    'TrainStateInitializer.from_scratch',
    'create_checkpoint_manager_and_restore(use_orbax)',
  ),
  't5x.train': ('train(train_state_initializer_cls)',),
  't5x.eval': ('evaluate(restore_checkpoint_cfg)',),
  't5x.infer': ('infer(restore_checkpoint_cfg)',),
}


def find_problem(needed: Mapping[str, Sequence[str]] = NEEDED) -> str | None:
  """Says what is missing or does not fit.

  Args:
    needed: as `NEEDED`.

  Returns:
    One line, or None if all is there.
  """
  for module, wanted in needed.items():
    try:
      found = importlib.import_module(module)
    except ModuleNotFoundError as e:
      if (e.name or '').split('.')[0] == 't5x':
        return f'T5X is not installed (no module {e.name!r}): {INSTALL}'
      return (
        f'T5X cannot be imported: it needs the module {e.name!r}; install'
        ' what requirements/t5x.txt names'
      )
    except (ImportError, AttributeError) as e:
      return (
        f'{module} cannot be imported: {" ".join(str(e).split())}; the tested'
        f' versions are in requirements/t5x.txt (T5X {TESTED})'
      )
    for want in wanted:
      if not _has(found, want):
        return (
          f'this T5X has no {module}.{want}; the tested commit is {TESTED}:'
          f' {INSTALL}'
        )
  return None


def require_t5x() -> None:
  """Checks that T5X is there and fits.

  Raises:
    InputError: one line that names the first thing that is missing.
  """
  problem = find_problem()
  if problem:
    raise InputError(problem)


def _has(module: Any, want: str) -> bool:
  path, _, argument = want.rstrip(')').partition('(')
  value = module
  for name in path.split('.'):
    if not hasattr(value, name):
      return False
    value = getattr(value, name)
  return not argument or argument in inspect.signature(value).parameters
