"""The T5X model class around `mpt_jax.models`: no loss, no decoding of its own.

Teacher and target runs wrap a `PromptedT5`, source runs a
`DistilledPromptedT5`; parameters are named as in the native engine.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

from clu import metrics as clu_metrics
from flax import core
from flax.linen import partitioning
import jax
import jax.numpy as jnp
from t5x import metrics as t5x_metrics
from t5x import models as t5x_models

from mpt_jax import data, models
from mpt_jax.data.libraries import seqio
from mpt_jax.engine.settings import Decoding
from mpt_jax.types import Array, Batch, PyTree

# Logical axes of what is ours, one for each of its dimensions.
_AXES = tuple(f'learned_{i}' for i in range(3))


def prompt_axis_rules() -> list[tuple[str, str | None]]:
  """The `additional_rules` of T5X's partitioning: prompts are everywhere."""
  return [(name, None) for name in _AXES]


class PromptedModel(t5x_models.BaseTransformerModel):
  """A prompted T5 as T5X wants it.

  Attributes:
    core: the model; the native engine calls the same methods of it.
    task_names: the tasks in row order.
    FEATURE_CONVERTER_CLS: makes a `PromptFeatureConverter` for these prompts.
  """

  def __init__(
    self,
    model: models.PromptedT5,
    task_names: Sequence[str],
    vocabulary: seqio.Vocabulary | None = None,
    optimizer_def: Any = None,
    decoding: Decoding = Decoding(),
  ):
    """Wraps a model.

    Args:
      model: a `PromptedT5` or `DistilledPromptedT5`.
      task_names: the tasks in row order.
      vocabulary: of inputs and targets; None is the one our tasks share.
      optimizer_def: a T5X optimizer; None for evaluation.
      decoding: how answers are found; their longest length is the batch's.
    """
    vocabulary = vocabulary or data.get_vocabulary()
    super().__init__(
      module=model.module,
      input_vocabulary=vocabulary,
      output_vocabulary=vocabulary,
      optimizer_def=optimizer_def,
      label_smoothing=model.label_smoothing,
      z_loss=model.z_loss,
      loss_normalizing_factor=model.loss_normalizing_factor,
    )
    self.core = model
    self.task_names = tuple(task_names)
    self._decoding = decoding.search
    self.FEATURE_CONVERTER_CLS: Callable[..., seqio.FeatureConverter] = (
      functools.partial(
        data.PromptFeatureConverter,
        prompt_length=self.prompt_length,
        task_names=self.task_names,
      )
    )

  @property
  def prompt_length(self) -> int:
    """P; 0 without prompts."""
    return self.core.prompt_length

  def get_initial_variables(
    self,
    rng: Array,
    input_shapes: Mapping[str, Any],
    input_types: Mapping[str, Any] | None = None,
  ) -> core.FrozenDict:
    """Draws every parameter afresh, and names every axis.

    Args:
      rng: random key.
      input_shapes: not used; parameters don't depend on it.
      input_types: likewise.

    Returns:
      {'params': tree, 'params_axes': the tree of T5X's axis names}.
    """
    variables = self.core.get_initial_variables(rng, input_shapes, input_types)
    return core.freeze(
      {
        'params': variables['params'],
        'params_axes': self.params_axes(variables['params']),
      }
    )

  def params_axes(self, params: PyTree) -> dict[str, Any]:
    """The logical axes of a parameter tree, as T5X's partitioner reads them.

    Args:
      params: the whole tree.

    Returns:
      A tree of `AxisMetadata`, each leaf named '<parameter>_axes'.
    """
    tokens = jnp.ones((1, 2), jnp.int32)
    shapes = jax.eval_shape(
      lambda: self.module.init(
        jax.random.PRNGKey(0), tokens, tokens, tokens, enable_dropout=False
      )
    )
    axes = core.unfreeze(shapes['params_axes'])
    for branch in ('prompts', 'teacher_prompts'):
      if branch in params:
        axes[branch] = {
          f'{name}_axes': partitioning.AxisMetadata(_AXES[: array.ndim])
          for name, array in params[branch].items()
        }
    return axes

  def loss_fn(
    self, params: PyTree, batch: Batch, dropout_rng: Array | None
  ) -> tuple[Array, dict[str, Any]]:
    """The training loss of a batch.

    Args:
      params: the parameter tree. Only `prompts` takes a gradient: the others
        are constants, so that no gradient of the backbone is computed.
      batch: model features.
      dropout_rng: key for dropout, or None for none.

    Returns:
      (scalar float32 loss, T5X metrics: the loss, each of its terms, overall
      and per task).
    """
    params = {
      name: tree if name == 'prompts' else jax.lax.stop_gradient(tree)
      for name, tree in params.items()
    }
    loss, terms = self.core.loss_fn(params, batch, dropout_rng)
    return loss, self._metrics(loss, terms, batch)

  def predict_batch_with_aux(
    self, params: PyTree, batch: Batch, rng: Array | None = None
  ) -> tuple[Array, dict[str, Array]]:
    """Decodes an unpacked batch.

    Args:
      params: the parameter tree.
      batch: model features.
      rng: key for sampling.

    Returns:
      ([B, T] int32, {'scores': [B] float32}), as `PromptedT5.decode_batch`.
    """
    tokens, scores = self.core.decode_batch(
      params, batch, rng, **self._decoding
    )
    return tokens, {'scores': scores}

  def score_batch(
    self, params: PyTree, batch: Batch, return_intermediates: bool = False
  ) -> Array:
    """Log probability of each row's targets, [B] float32.

    Args:
      params: the parameter tree.
      batch: unpacked model features.
      return_intermediates: must be False.

    Returns:
      [B] float32, in nats.

    Raises:
      ValueError: if intermediates are asked for.
    """
    if return_intermediates:
      raise ValueError('score_batch has no intermediates to return')
    return self.core.score_batch(params, batch)

  def _compute_logits(
    self, params: PyTree, batch: Batch, dropout_rng: Array | None = None
  ) -> Array:
    """Logits [B, T, V], for T5X's tools."""
    logits, _ = self.core._forward(
      params, self.core.prompt_table(params), batch, dropout_rng
    )
    return logits

  def _metrics(
    self, loss: Array, terms: models.Metrics, batch: Batch
  ) -> dict[str, Any]:
    targets = batch['decoder_target_tokens']
    if 'decoder_segment_ids' in batch:
      examples = jnp.max(batch['decoder_segment_ids'], axis=1).sum()
    else:
      examples = jnp.asarray(targets.shape[0])
    tokens = jnp.sum(targets > 0)
    metrics: dict[str, Any] = {
      'loss': t5x_metrics.AveragePerStep.from_model_output(loss),
      'timing/seconds': t5x_metrics.Time(),
      'timing/steps_per_second': (t5x_metrics.StepsPerTime.from_model_output()),
      'timing/seqs': t5x_metrics.Sum.from_model_output(examples),
      'timing/seqs_per_second': t5x_metrics.TimeRate.from_model_output(
        numerator=examples
      ),
      'timing/target_tokens_per_second': (
        t5x_metrics.TimeRate.from_model_output(numerator=tokens)
      ),
      'non_padding_fraction/decoder': clu_metrics.Average(
        total=tokens, count=jnp.asarray(targets.size)
      ),
      'non_padding_fraction/encoder': clu_metrics.Average(
        total=jnp.sum(batch['encoder_input_tokens'] > 0),
        count=jnp.asarray(batch['encoder_input_tokens'].size),
      ),
    }
    for name, (sums, weights) in terms.items():
      metrics[name] = clu_metrics.Average(total=sums.sum(), count=weights.sum())
      if len(self.task_names) == len(weights) > 1:
        for task, total, count in zip(
          self.task_names, sums, weights, strict=True
        ):
          # A task without examples since the last summary is NaN: no point.
          metrics[f'{name}/{task}'] = clu_metrics.Average(
            total=total, count=count
          )
    return metrics
