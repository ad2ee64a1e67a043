"""Task features to model features: T5X's, plus prompt slots and task rows.

Where an example's prompt goes, and which row of the prompt table it is, is
written position by position next to its tokens. So padding and packing are
the same to the model, and an example keeps its own task's prompt in a packed
row.
"""

from collections.abc import Mapping, Sequence

from mpt_jax.data import rows
from mpt_jax.data.dataset import check_lengths
from mpt_jax.data.libraries import seqio, tf
from mpt_jax.engine.batching import EOS, SLOT_TOKEN
from mpt_jax.types import InputError

# The functions below hold no Python branch on a tensor; rewriting them all the
# same takes AutoGraph a second at the start of a run.
_plain = tf.autograph.experimental.do_not_convert


class PromptFeatureConverter(seqio.EncDecFeatureConverter):
  """Encoder-decoder features with room for prompts.

  Model features, all int32, as in T5X except for the last two:
    encoder_input_tokens, encoder_prompt_slots, encoder_task_ids: [S]
    decoder_target_tokens, decoder_input_tokens, decoder_loss_weights: [T]
    when packed also encoder_segment_ids, encoder_positions: [S] and
    decoder_segment_ids, decoder_positions: [T]

  The P slots of an example stand in front of its own tokens, so S includes
  them; positions count them. An example that is too long is cut and ends
  with the end-of-sequence mark all the same.
  """

  MODEL_FEATURES = {
    **seqio.EncDecFeatureConverter.MODEL_FEATURES,
    'encoder_prompt_slots': seqio.FeatureConverter.FeatureSpec(tf.int32),
    'encoder_task_ids': seqio.FeatureConverter.FeatureSpec(tf.int32),
  }

  def __init__(
    self,
    pack: bool = False,
    prompt_length: int = 0,
    task_names: Sequence[str] = (),
    **kwargs,
  ):
    """Sets up the conversion.

    Args:
      pack: whether several examples share a row.
      prompt_length: P, the number of slots; 0 for none.
      task_names: the model's tasks in row order; empty for a model with one
        prompt, or none, for whatever it reads: every example gets row 0.
      **kwargs: passed on to `seqio.FeatureConverter`.
    """
    super().__init__(pack=pack, **kwargs)
    self._prompt_length = prompt_length
    self._task_names = tuple(task_names)

  def __call__(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    """Converts a data set.

    Args:
      ds: examples with `inputs` and `targets`, and with `task_id` unless the
        model has one task.
      task_feature_lengths: S and T as `inputs` and `targets`; the length that
        SeqIO's Evaluator gives for `task_id` is ignored.

    Returns:
      The data set of model features, not batched.

    Raises:
      InputError: see `check_lengths`; also if examples do not say whose they
        are while there are several prompts.
    """
    lengths = {
      k: v for k, v in task_feature_lengths.items() if k != rows.TASK_ID
    }
    check_lengths(lengths, self._prompt_length)
    if rows.TASK_ID not in ds.element_spec and len(self._task_names) > 1:
      raise InputError(
        f'the examples carry no {rows.TASK_ID!r}, but PROMPT_TASKS has '
        f'{len(self._task_names)} tasks: register the task with '
        'mpt_jax.data.register_task'
      )
    limits = {
      'inputs': lengths['inputs'] - self._prompt_length,
      'targets': lengths['targets'],
    }

    @_plain
    def cut(example):
      example = dict(example)
      for key, limit in limits.items():
        tokens = example[key]
        # A task may have cut before, to exactly the limit when P is 0. If so,
        # its end mark is gone; if not, it is there and stays.
        end = tf.fill([1], tf.constant(EOS, tokens.dtype))
        example[key] = tf.cond(
          tf.size(tokens) >= limit,
          lambda t=tokens, n=limit, e=end: tf.concat([t[: n - 1], e], 0),
          lambda t=tokens: t,
        )
      return example

    ds = ds.map(cut, num_parallel_calls=tf.data.AUTOTUNE)
    return super().__call__(ds, lengths)

  def _row(self, example: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Returns the scalar row of the example's task in the prompt table."""
    if rows.TASK_ID not in example or not self._task_names:
      return tf.constant(0, tf.int32)
    identities = tf.constant(
      [rows.task_identity(name) for name in self._task_names], tf.int32
    )
    mine = tf.equal(identities, example[rows.TASK_ID][0])
    # `task_rows` has said this in words before a run starts; here it keeps
    # a caller that skipped it from training the wrong row.
    tf.debugging.assert_equal(
      tf.reduce_any(mine),
      True,
      f'an example belongs to none of the tasks {self._task_names}',
    )
    return tf.argmax(tf.cast(mine, tf.int32), output_type=tf.int32)

  @_plain
  def _add_slots(
    self, example: Mapping[str, tf.Tensor]
  ) -> dict[str, tf.Tensor]:
    slots = self._prompt_length
    count = tf.size(example['inputs'])
    # Both side features are shifted by one, since the packer takes the number
    # of non-zeros for the length.
    return {
      **example,
      'inputs': tf.concat([tf.fill([slots], SLOT_TOKEN), example['inputs']], 0),
      'slots': 1
      + tf.concat([tf.range(1, slots + 1), tf.zeros([count], tf.int32)], 0),
      'rows': 1 + tf.fill([slots + count], self._row(example)),
    }

  @_plain
  def _convert_example(
    self, features: Mapping[str, tf.Tensor]
  ) -> Mapping[str, tf.Tensor]:
    return {
      **super()._convert_example(features),
      'encoder_prompt_slots': tf.maximum(features['slots'] - 1, 0),
      'encoder_task_ids': tf.maximum(features['rows'] - 1, 0),
    }

  def _convert_features(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    ds = ds.map(self._add_slots, num_parallel_calls=tf.data.AUTOTUNE)
    length = task_feature_lengths['inputs']
    return super()._convert_features(
      ds, {**task_feature_lengths, 'slots': length, 'rows': length}
    )

  def get_model_feature_lengths(
    self, task_feature_lengths: Mapping[str, int]
  ) -> Mapping[str, int]:
    """Returns the length of each model feature."""
    length = task_feature_lengths['inputs']
    return {
      **super().get_model_feature_lengths(task_feature_lengths),
      'encoder_prompt_slots': length,
      'encoder_task_ids': length,
    }
