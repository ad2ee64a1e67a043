"""Prompted backbones: from parameters and a batch to losses and answers.

The model classes know no engine (the native trainer and T5X call the same
methods) and no task. They hold no arrays, only static settings, so that they
are hashable and a jitted step is compiled once per model.

A family of backbones has its class: `PromptedT5` answers with any text,
`PromptedMaskedModel` with the label words that a batch offers. `class_of` says
which, with or without a lesson.

A parameter tree is the backbone's with up to two more branches at the top:
`prompts/...` or `delta/...` (what a method learns, see `methods.base`) and,
for distillation, `teacher_prompts/prompt_table` [K, P, D].
"""

from collections.abc import Mapping
import contextlib
import dataclasses
from typing import Any, ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp

from mpt_jax import backbones, losses, methods, roberta, t5
from mpt_jax.engine import params as params_lib
from mpt_jax.t5 import decoding
from mpt_jax.types import Array, Batch, InputError, PyTree, check_shape

# One loss term or metric: (sums [K], weights [K]), a row per task.
Metrics = dict[str, losses.SumAndWeight]

NORMALIZERS = (
  'NUM_REAL_TARGET_TOKENS',
  'NUM_TOTAL_TARGET_TOKENS',
  'AVERAGE_PER_SEQUENCE',
)


@dataclasses.dataclass(frozen=True)
class PromptedModel:
  """A backbone with what a method learns for it, or a backbone alone.

  Attributes:
    config: sizes of the backbone.
    method: the method; None is the backbone alone.
    num_tasks: K, the tasks of the run.
    loss_normalizing_factor: what the summed loss is divided by: a number,
      None (nothing), 'NUM_REAL_TARGET_TOKENS' (the default: mean per token),
      'NUM_TOTAL_TARGET_TOKENS' (padding counts too) or
      'AVERAGE_PER_SEQUENCE' (mean over tokens, then over examples), as in T5X.
    label_smoothing: see `losses.cross_entropy_per_token`.
    z_loss: see `losses.cross_entropy_per_token`.
    eos_id: the end mark of an answer.
  """

  config: Any
  method: methods.Method | None = None
  num_tasks: int = 1
  loss_normalizing_factor: float | str | None = 'NUM_REAL_TARGET_TOKENS'
  label_smoothing: float = 0.0
  z_loss: float = 0.0
  eos_id: int = 1

  # How many times the network takes tokens, and the sides with states.
  _inputs: ClassVar[int] = 1
  _sides: ClassVar[tuple[str, ...]] = ('encoder',)

  def __post_init__(self):
    factor = self.loss_normalizing_factor
    if isinstance(factor, str) and factor not in NORMALIZERS:
      raise ValueError(
        f'loss_normalizing_factor is {factor!r}, expected None, a number or'
        f' one of {", ".join(NORMALIZERS)}'
      )

  @property
  def module(self) -> Any:
    """The backbone's Flax module."""
    return backbones.family(self.config).network(self.config)

  @property
  def special_ids(self) -> dict[str, int]:
    """The settings that are ids."""
    return {'eos_id': self.eos_id}

  def check_length(self, length: int) -> None:
    """Refuses inputs that the backbone has no positions for.

    Args:
      length: S, prompt slots included.

    Raises:
      InputError: if they are too long.
    """
    del length

  def answering(
    self, method: methods.Method | None, num_tasks: int
  ) -> 'PromptedModel':
    """Returns a model of this backbone that answers with another method.

    Args:
      method: the method.
      num_tasks: K.
    """
    # Losses and lessons have no part in answers.
    plain = class_of(self.config)
    return plain(self.config, method, num_tasks, **self.special_ids)

  @property
  def prompt_length(self) -> int:
    """P; 0 without prompts."""
    return 0 if self.method is None else self.method.prompt_length

  @property
  def drops(self) -> bool:
    """Whether there is any dropout in training."""
    own = self.method is not None and self.method.drops
    return self.config.dropout_rate > 0.0 or own

  @property
  def term_names(self) -> tuple[str, ...]:
    """The names that `loss_terms` returns."""
    return 'cross_entropy', 'z_loss', 'token_accuracy'

  def get_initial_variables(
    self,
    rng: Array,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    input_types: Mapping[str, Any] | None = None,
  ) -> dict[str, PyTree]:
    """Draws every parameter afresh.

    Args:
      rng: random key.
      input_shapes: accepted as T5X gives them; parameters don't depend on it.
      input_types: likewise.

    Returns:
      {'params': tree}; prompts start uniform in [-0.5, 0.5].
    """
    del input_shapes, input_types
    backbone_key, prompt_key = jax.random.split(rng)
    tokens = jnp.ones((1, 2), jnp.int32)
    params = dict(
      self.module.init(
        backbone_key, *[tokens] * self._inputs, enable_dropout=False
      )['params']
    )
    if self.method is not None and self.method.branch is not None:
      drawn = self.method.fresh(self.config, self.num_tasks, prompt_key)
      params[self.method.branch] = params_lib.unflatten(drawn)
    return {'params': params}

  def prompt_table(self, params: PyTree) -> Array | None:
    """[K, P, D] float32; None without prompts, or with one an example."""
    if self.method is None or self.method.branch != methods.PROMPTS:
      return None
    return self.method.prompt_table(params[methods.PROMPTS], self.num_tasks)

  def method_inputs(
    self, params: PyTree, batch: Batch, answering: bool = False
  ) -> methods.Inputs:
    """What a method that makes a prompt for each example sees of a batch.

    Args:
      params: the parameter tree.
      batch: unpacked model features.
      answering: whether the batch is answered or scored. Such batches are of
        any length: they have one more padding here, so that what their
        examples are like does not depend on it.
    """
    tokens = batch['encoder_input_tokens']
    slots = batch['encoder_prompt_slots']
    if answering:
      tokens, slots = (jnp.pad(x, ((0, 0), (0, 1))) for x in (tokens, slots))
    embedded: Any = self.module.apply(
      self._variables(params, batch),
      tokens,
      method=lambda module, tokens: module.token_embedder(tokens),
    )
    return methods.Inputs(
      embedded,
      is_token=(tokens > 0) & (slots == 0),
      is_padding=tokens == 0,
      rows=_example_rows(batch),
    )

  def loss_terms(
    self, params: PyTree, batch: Batch, dropout_rng: Array | None
  ) -> Metrics:
    """Every term of the loss and the token accuracy, apart for every task.

    Args:
      params: the parameter tree (see the module's header).
      batch: model features, see docs/architecture.md.
      dropout_rng: key for dropout, or None for none.

    Returns:
      {name: (sums [K], weights [K])}; a term is sum / weight.
    """
    logits, _ = self._forward(
      params, self.prompt_table(params), batch, dropout_rng
    )
    return self._by_task(self._target_values(logits, batch), batch)

  def loss_fn(
    self, params: PyTree, batch: Batch, dropout_rng: Array | None
  ) -> tuple[Array, Metrics]:
    """The training loss of a batch.

    Args:
      params: the parameter tree.
      batch: model features.
      dropout_rng: key for dropout, or None for none.

    Returns:
      (scalar float32 loss, the terms of `loss_terms`).
    """
    terms = self.loss_terms(params, batch, dropout_rng)
    return self.combine(terms, batch['decoder_target_tokens'].size), terms

  def eval_fn(self, params: PyTree, batch: Batch) -> tuple[Array, Metrics]:
    """`loss_fn` without dropout."""
    return self.loss_fn(params, batch, dropout_rng=None)

  def loss_weights(self, batch: Batch) -> dict[str, Array]:
    """What the terms of a batch are divided by, {term: [K]} float32.

    It depends on the batch alone, not on parameters, and that of a batch is
    the sum over its parts.
    """
    return {
      name: losses.weights_by_task(*place, self.num_tasks)
      for name, place in self._places(batch).items()
    }

  def part_loss_fn(
    self,
    params: PyTree,
    part: Batch,
    weights: Mapping[str, Array],
    num_targets: Array | int,
    dropout_rng: Array | None,
  ) -> tuple[Array, Metrics]:
    """The share of some rows in the loss of their whole batch.

    The losses and the gradients of disjoint parts add up to those of `loss_fn`
    on the whole batch, however uneven the parts are.

    Args:
      params: the parameter tree.
      part: model features of some rows of the batch.
      weights: `loss_weights` of the whole batch.
      num_targets: B * T of the whole batch, padding included.
      dropout_rng: key for dropout, or None for none.

    Returns:
      (scalar float32 share of the loss, the part's own terms).
    """
    terms = self.loss_terms(params, part, dropout_rng)
    whole = {name: (sums, weights[name]) for name, (sums, _) in terms.items()}
    return self.combine(whole, num_targets), terms

  def combine(self, terms: Metrics, num_targets: Array | int) -> Array:
    """The scalar loss that these terms of a batch with B * T targets make."""
    total = sum(terms[n][0].sum() for n in ('cross_entropy', 'z_loss'))
    return total / self._normalizer(terms, num_targets)

  def predict_batch(
    self,
    params: PyTree,
    batch: Batch,
    rng: Array | None = None,
    **decoding: Any,
  ) -> Array:
    """The tokens [B, T] of `decode_batch`; same arguments."""
    return self.decode_batch(params, batch, rng, **decoding)[0]

  def decode_batch(
    self,
    params: PyTree,
    batch: Batch,
    rng: Array | None = None,
    **decoding: Any,
  ) -> tuple[Array, Array]:
    """Answers an unpacked batch.

    Args:
      params: the parameter tree.
      batch: model features.
      rng: key for sampling.
      **decoding: how, see `PromptedT5.decode_batch`.

    Returns:
      [B, T] int32: ids with EOS, then 0; and [B] float32: the log probability
      of each row.
    """
    raise NotImplementedError

  def score_batch(self, params: PyTree, batch: Batch) -> Array:
    """Log probability of each row's target.

    Args:
      params: the parameter tree.
      batch: unpacked model features.

    Returns:
      [B] float32, in nats.
    """
    raise NotImplementedError

  def score_words(self, params: PyTree, batch: Batch, words: Array) -> Array:
    """Log probability of each of a few answers to every input.

    Args:
      params: the parameter tree.
      batch: `encoder_input_tokens` [B, S] and, with prompts, the two prompt
        features.
      words: [C, T] int32, each with its end mark, then 0.

    Returns:
      [B, C] float32, in nats.
    """
    raise NotImplementedError

  def captured(
    self, params: PyTree, table: Array, batch: Batch, module: str
  ) -> dict[str, Any]:
    """Runs the backbone with prompts, and returns what a module puts out.

    Args:
      params: the backbone's parameters.
      table: [K, P, D].
      batch: unpacked model features; of T5 `decoder_input_tokens`, too, all
        of which are real, whatever their ids.
      module: the name of a module of each block, such as 'wi'.

    Returns:
      side -> what Flax captures of its blocks.
    """
    raise NotImplementedError

  def weigh_batch(self, params: PyTree, batch: Batch) -> Array:
    """What each example's prompt is made of.

    Args:
      params: the parameter tree.
      batch: unpacked model features.

    Returns:
      [B, N] float32, see `methods.PromptsByExample.example_weights`.
    """
    assert isinstance(self.method, methods.PromptsByExample)
    inputs = self.method_inputs(params, batch, answering=True)
    return self.method.example_weights(params[methods.PROMPTS], inputs)

  # -- parts ----------------------------------------------------------------

  def _variables(self, params: PyTree, batch: Batch) -> dict[str, Any]:
    """The network's collections: the backbone, and what enters it."""
    branches = backbones.family(self.config).branches
    backbone = {k: params[k] for k in branches if k in params}
    variables = {'params': backbone}
    if isinstance(self.method, methods.Delta):
      learned = params_lib.flatten(params[methods.DELTA])
      laid_out = self.method.laid_out(learned, self.config)
      delta = params_lib.unflatten(laid_out)
      if self.num_tasks > 1:
        delta = methods.by_rows(delta, _example_rows(batch))
      variables[methods.DELTA] = _like_layers(delta, backbone)
    return variables

  def _entered(self) -> contextlib.AbstractContextManager[Any]:
    """The method in the network, as long as that is called or traced."""
    if isinstance(self.method, methods.Delta):
      return nn.intercept_methods(self.method.intercept)
    return contextlib.nullcontext()

  def _prompt_inputs(
    self,
    params: PyTree,
    table: Array | None,
    batch: Batch,
    answering: bool = False,
  ) -> dict[str, Any]:
    by_example = isinstance(self.method, methods.PromptsByExample)
    if table is None and not by_example:
      return {}
    slots = batch['encoder_prompt_slots']
    rows = batch['encoder_task_ids']
    check_shape('encoder_prompt_slots', slots, rows.shape)
    if isinstance(self.method, methods.PromptsByExample):
      # An example's prompt stands in its own row of the table.
      inputs = self.method_inputs(params, batch, answering)
      table = self.method.example_prompts(params[methods.PROMPTS], inputs)
      rows = jnp.broadcast_to(jnp.arange(len(slots))[:, None], slots.shape)
    return {
      'prompt_table': table,
      'encoder_prompt_slots': slots,
      'encoder_task_ids': rows,
    }

  def _places(self, batch: Batch) -> dict[str, tuple[Array, Array]]:
    """{term: (weights, prompt table rows)}, both [B, T] or [B, S]."""
    rows, weights = self._decoder_rows(batch), _token_weights(batch)
    loss_weights = weights
    if self.loss_normalizing_factor == 'AVERAGE_PER_SEQUENCE':
      loss_weights = weights / jnp.maximum(_sequence_sums(weights, batch), 1.0)
    return {
      'cross_entropy': (loss_weights, rows),
      'z_loss': (loss_weights, rows),
      'token_accuracy': (weights, rows),
    }

  def _forward(
    self,
    params: PyTree,
    table: Array | None,
    batch: Batch,
    dropout_rng: Array | None,
    hidden_states: bool = False,
    answering: bool = False,
  ) -> tuple[Array, dict[str, tuple[Array, ...]]]:
    """What targets are judged by, and on request each side's hidden states."""
    raise NotImplementedError

  def _target_values(self, logits: Array, batch: Batch) -> dict[str, Array]:
    """[B, T] float32 of each term, at every target."""
    raise NotImplementedError

  def _divergence(
    self, teacher: Array, student: Array, batch: Batch, temperature: float
  ) -> Array:
    """[B, T] float32: how far a student is from its teacher."""
    raise NotImplementedError

  def _lesson_weights(self, batch: Batch) -> Array:
    """[B, T] float32: where that counts."""
    raise NotImplementedError

  def _by_task(self, values: Mapping[str, Array], batch: Batch) -> Metrics:
    places = self._places(batch)
    return {
      name: losses.weighted_by_task(value, *places[name], self.num_tasks)
      for name, value in values.items()
    }

  def _decoder_rows(self, batch: Batch) -> Array:
    """[B, T] int32: the prompt table row of the example at each target."""
    targets = batch['decoder_target_tokens']
    if not self.prompt_length and self.num_tasks == 1:
      return jnp.zeros_like(targets)
    rows = batch['encoder_task_ids']
    if 'encoder_segment_ids' in batch:
      # An example has the same segment number on both sides of its row.
      same = (
        batch['decoder_segment_ids'][:, :, None]
        == batch['encoder_segment_ids'][:, None, :]
      )  # [B, T, S]
      return jnp.max(jnp.where(same, rows[:, None, :], 0), axis=-1)
    return jnp.broadcast_to(_example_rows(batch)[:, None], targets.shape)

  def _normalizer(self, terms: Metrics, num_targets: Array | int) -> Array:
    factor = self.loss_normalizing_factor
    if factor is None:
      return jnp.float32(1.0)
    if factor == 'NUM_TOTAL_TARGET_TOKENS':
      return jnp.float32(num_targets)
    if isinstance(factor, str):
      # Tokens, or with AVERAGE_PER_SEQUENCE examples: see `_target_terms`.
      return jnp.maximum(terms['cross_entropy'][1].sum(), 1.0)
    return jnp.float32(factor)


@dataclasses.dataclass(frozen=True)
class PromptedT5(PromptedModel):
  """T5 with what a method learns for it, or T5 alone.

  Attributes:
    start_id: first input of the decoder. A run's record has it in the
      fingerprint of the backbone, not here.
  """

  _inputs: ClassVar[int] = 3
  _sides: ClassVar[tuple[str, ...]] = ('encoder', 'decoder')

  start_id: int = dataclasses.field(default=0, repr=False)

  @property
  def special_ids(self) -> dict[str, int]:
    """The settings that are ids."""
    return {**super().special_ids, 'start_id': self.start_id}

  def decode_batch(  # type: ignore[override]
    self,
    params: PyTree,
    batch: Batch,
    rng: Array | None = None,
    *,
    max_decode_length: int | None = None,
    num_beams: int = 1,
    beam_alpha: float = 0.6,
    temperature: float = 0.0,
    topk: int = 0,
    topp: float = 0.0,
  ) -> tuple[Array, Array]:
    """Decodes an unpacked batch.

    Args:
      params: the parameter tree.
      batch: `encoder_input_tokens` [B, S] and, with prompts, the two prompt
        features; `decoder_input_tokens` [B, T] gives the length if
        `max_decode_length` does not.
      rng: key for sampling; needed when `temperature` > 0.
      max_decode_length: longest output.
      num_beams: beams; the best one is returned. 1 is greedy or sampling.
      beam_alpha: exponent of the length penalty ((5 + n) / 6)**alpha.
      temperature: 0 is greedy.
      topk: sample among the k likeliest ids; 0 is all.
      topp: sample among the likeliest ids of this total probability; 0 is all.

    Returns:
      [B, T] int32: ids with EOS, then 0; and [B] float32: the log probability
      of each row, with beams divided by the length penalty.
    """
    length = max_decode_length or batch['decoder_input_tokens'].shape[1]
    table = self.prompt_table(params)
    variables = self._variables(params, batch)
    # The loops trace their step, too, while the method is there.
    with self._entered():
      encoded: Any = self.module.apply(
        variables,
        batch['encoder_input_tokens'],
        enable_dropout=False,
        method='encode',
        **self._prompt_inputs(params, table, batch, answering=True),
      )
      cache, step = decoding.make_decode_step(
        self.module, variables, encoded, batch['encoder_input_tokens'], length
      )
      loop: dict[str, Any] = {
        'batch_size': encoded.shape[0],
        'max_decode_length': length,
        'eos_id': self.eos_id,
        'start_id': self.start_id,
      }
      if num_beams > 1:
        tokens, scores = decoding.beam_search(
          step, cache, num_beams=num_beams, alpha=beam_alpha, **loop
        )
        return tokens[:, -1], scores[:, -1]
      if temperature > 0.0:
        if rng is None:
          raise ValueError('sampling needs a random key: give rng')
        return decoding.temperature_sample(
          step,
          cache,
          rng,
          temperature=temperature,
          topk=topk,
          topp=topp,
          **loop,
        )
      return decoding.greedy(step, cache, **loop)

  def score_batch(self, params: PyTree, batch: Batch) -> Array:
    """Log probability of each row's target tokens.

    Args:
      params: the parameter tree.
      batch: unpacked model features.

    Returns:
      [B] float32, sum over the row's tokens, in nats.
    """
    logits, _ = self._forward(
      params, self.prompt_table(params), batch, None, answering=True
    )
    loss, _ = losses.cross_entropy_per_token(
      logits, batch['decoder_target_tokens']
    )
    return -jnp.sum(loss * _token_weights(batch), axis=-1)

  def score_words(self, params: PyTree, batch: Batch, words: Array) -> Array:
    """Log probability of each of a few answers to every input.

    An input is encoded once. The answers stand behind one another in one row
    of the decoder, where each sees itself and the input alone.

    Args:
      params: the parameter tree.
      batch: `encoder_input_tokens` [B, S] and, with prompts, the two prompt
        features.
      words: [C, T] int32, each with its end mark, then 0.

    Returns:
      [B, C] float32, sum over an answer's tokens, in nats; 0 for an answer
      of none.
    """
    tokens = batch['encoder_input_tokens']
    count, length = words.shape
    shifted = jnp.pad(words[:, :-1], ((0, 0), (1, 0)))
    shifted = shifted.at[:, 0].set(self.start_id)
    answers = jnp.repeat(jnp.arange(1, count + 1), length)
    row = jnp.stack([shifted.ravel(), words.ravel(), answers])
    inputs, targets, segments = jnp.broadcast_to(
      row[:, None], (3, len(tokens), count * length)
    )
    variables = self._variables(params, batch)
    with self._entered():
      encoded: Any = self.module.apply(
        variables,
        tokens,
        enable_dropout=False,
        method='encode',
        **self._prompt_inputs(
          params, self.prompt_table(params), batch, answering=True
        ),
      )
      logits: Any = self.module.apply(
        variables,
        encoded,
        tokens,
        inputs,
        targets,
        decoder_segment_ids=segments,
        enable_dropout=False,
        method='decode',
      )
    loss, _ = losses.cross_entropy_per_token(logits, targets)
    found = jnp.where(targets > 0, -loss, 0.0)
    return found.reshape(len(tokens), count, length).sum(axis=-1)

  def _forward(
    self,
    params: PyTree,
    table: Array | None,
    batch: Batch,
    dropout_rng: Array | None,
    hidden_states: bool = False,
    answering: bool = False,
  ) -> tuple[Array, dict[str, tuple[Array, ...]]]:
    """Logits [B, T, V] and, on request, the hidden states of each side."""
    with self._entered():
      out: Any = self.module.apply(
        self._variables(params, batch),
        batch['encoder_input_tokens'],
        self._decoder_inputs(batch),
        batch['decoder_target_tokens'],
        encoder_segment_ids=batch.get('encoder_segment_ids'),
        decoder_segment_ids=batch.get('decoder_segment_ids'),
        encoder_positions=batch.get('encoder_positions'),
        decoder_positions=batch.get('decoder_positions'),
        enable_dropout=dropout_rng is not None,
        return_hidden_states=hidden_states,
        rngs=None if dropout_rng is None else {'dropout': dropout_rng},
        **self._prompt_inputs(params, table, batch, answering),
      )
    return out if hidden_states else (out, {})

  def captured(
    self, params: PyTree, table: Array, batch: Batch, module: str
  ) -> dict[str, Any]:
    """See `PromptedModel.captured`."""
    first = batch['decoder_input_tokens']
    _, state = self.module.apply(
      {'params': params},
      batch['encoder_input_tokens'],
      first,
      jnp.ones_like(first),
      enable_dropout=False,
      mutable=['intermediates'],
      capture_intermediates=_named(module),
      **self._prompt_inputs(params, table, batch),
    )
    return state['intermediates']

  def _decoder_inputs(self, batch: Batch) -> Array:
    """[B, T] int32: the targets shifted right, behind the start id."""
    tokens = batch['decoder_input_tokens']
    if not self.start_id:
      return tokens
    first = jnp.arange(tokens.shape[1]) == 0
    if 'decoder_positions' in batch:
      # At padding nobody looks.
      first = batch['decoder_positions'] == 0
    return jnp.where(first, self.start_id, tokens)

  def _target_values(self, logits: Array, batch: Batch) -> dict[str, Array]:
    """[B, T] float32 of each term, at every target."""
    targets = batch['decoder_target_tokens']
    loss, z_loss = losses.cross_entropy_per_token(
      logits, targets, self.label_smoothing, self.z_loss
    )
    right = losses.is_likeliest(logits, targets).astype(jnp.float32)
    return {'cross_entropy': loss, 'z_loss': z_loss, 'token_accuracy': right}

  def _divergence(
    self, teacher: Array, student: Array, batch: Batch, temperature: float
  ) -> Array:
    return losses.kl_per_token(teacher, student, temperature)

  def _lesson_weights(self, batch: Batch) -> Array:
    return (batch['decoder_target_tokens'] > 0).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class PromptedMaskedModel(PromptedModel):
  """A masked encoder that answers with one of its task's label words.

  The batch says which these are: `decoder_target_tokens` [B, T] are the words
  of the example's task, class after class, `decoder_input_tokens` the number
  of each one's class from 1, and `decoder_loss_weights` 1 at the first word of
  the right class. A class scores the mean of its words' logits at the mask
  (Ding et al., "OpenPrompt", ACL 2022), and the loss is the cross entropy of
  the softmax over the example's own classes (Su et al., NAACL 2022). An
  example is read at its mask, see `roberta.find_masks`.

  Attributes:
    mask_id: the id of the mask.
  """

  mask_id: int | None = None

  def __post_init__(self):
    super().__post_init__()
    if self.mask_id is None:
      raise InputError(
        'the backbone fills in masks, and there is no tokenizer beside it that'
        ' says which id the mask has: put tokenizer.json, or vocab.json and'
        ' merges.txt, into its folder'
      )
    if self.label_smoothing:
      raise InputError(
        f'LABEL_SMOOTHING = {self.label_smoothing}: label words are not'
        ' smoothed; give 0.0'
      )

  @property
  def special_ids(self) -> dict[str, int]:
    """The settings that are ids."""
    assert self.mask_id is not None
    return {**super().special_ids, 'mask_id': self.mask_id}

  def check_length(self, length: int) -> None:
    """See `PromptedModel.check_length`."""
    if length > self.config.max_length:
      raise InputError(
        f"TASK_FEATURE_LENGTHS['inputs'] is {length}, prompt slots included,"
        f' but the backbone knows {self.config.max_length} positions: give'
        f' {self.config.max_length} at most'
      )

  def decode_batch(
    self,
    params: PyTree,
    batch: Batch,
    rng: Array | None = None,
    **decoding: Any,
  ) -> tuple[Array, Array]:
    """Answers an unpacked batch with the best of its label words.

    Args:
      params: the parameter tree.
      batch: model features.
      rng: not used.
      **decoding: the best word is found exactly, however one searches.

    Returns:
      [B, 2] int32: the first word of the best class, and the end mark; 0
      where no score is a number. And [B] float32: its log probability among
      the classes.
    """
    del rng
    if decoding.get('temperature'):
      raise InputError(
        f'temperature is {decoding["temperature"]}: label words are searched,'
        ' not sampled; give 0.0'
      )
    scores, _ = self._forward(
      params, self.prompt_table(params), batch, None, answering=True
    )
    words = batch['decoder_target_tokens']
    choices = _choices(batch)
    first = jnp.where(choices.is_first, scores, -jnp.inf)
    best = jnp.argmax(first, axis=-1, keepdims=True)
    word = jnp.take_along_axis(words, best, axis=-1)
    # An argmax of NaN is a class like any other.
    broken = jnp.any(choices.is_first & ~jnp.isfinite(scores), axis=-1)
    tokens = jnp.concatenate([word, jnp.full_like(word, self.eos_id)], axis=-1)
    found = losses.choice_log_probs(scores, choices)
    found = jnp.take_along_axis(found, best, axis=-1)[:, 0]
    return jnp.where(broken[:, None], 0, tokens), found

  def score_batch(self, params: PyTree, batch: Batch) -> Array:
    """Log probability of each row's class among those of its task.

    Args:
      params: the parameter tree.
      batch: unpacked model features.

    Returns:
      [B] float32, in nats.
    """
    scores, _ = self._forward(
      params, self.prompt_table(params), batch, None, answering=True
    )
    found = losses.choice_log_probs(scores, _choices(batch))
    return jnp.sum(found * _token_weights(batch), axis=-1)

  def score_words(self, params: PyTree, batch: Batch, words: Array) -> Array:
    """Log probability of each of a few classes for every input.

    Args:
      params: the parameter tree.
      batch: `encoder_input_tokens` [B, S] and, with prompts, the two prompt
        features.
      words: [C, T] int32, the words of each class, then the end mark, then 0.

    Returns:
      [B, C] float32, in nats; 0 for a class of none.
    """
    real = (words != self.eos_id) & (words > 0)
    some = jnp.any(real, axis=-1)
    logits = self._fill(
      params, self.prompt_table(params), batch, words.reshape(1, 1, -1)
    )[0]
    logits = jnp.where(real[None], logits.reshape(-1, *words.shape), 0.0)
    counts = jnp.maximum(real.sum(axis=-1), 1)[None]
    means = jnp.where(some[None], logits.sum(axis=-1) / counts, -jnp.inf)
    return jnp.where(some[None], jax.nn.log_softmax(means, axis=-1), 0.0)

  def captured(
    self, params: PyTree, table: Array, batch: Batch, module: str
  ) -> dict[str, Any]:
    """See `PromptedModel.captured`."""
    _, state = self.module.apply(
      {'params': params},
      batch['encoder_input_tokens'],
      enable_dropout=False,
      mask_id=self.mask_id,
      method='encode',
      mutable=['intermediates'],
      capture_intermediates=_named(module),
      **self._prompt_inputs(params, table, batch),
    )
    return state['intermediates']

  def _fill(
    self,
    params: PyTree,
    table: Array | None,
    batch: Batch,
    words: Array,
    dropout_rng: Array | None = None,
    answering: bool = True,
  ) -> tuple[Array, tuple[Array, ...]]:
    """Logits [B, N, W] of words [B or 1, N, W] at the masks, and the states.

    N is T in packed rows, where each target has its own example, else 1.
    """
    inputs = self._prompt_inputs(params, table, batch, answering)
    if inputs:
      inputs['mask_id'] = self.mask_id
    tokens = batch['encoder_input_tokens']
    slots = batch.get('encoder_prompt_slots', jnp.zeros_like(tokens))
    inputs['encoder_prompt_slots'] = slots
    segments = batch.get('encoder_segment_ids')
    variables = self._variables(params, batch)
    with self._entered():
      encoded: Any
      encoded, states = self.module.apply(
        variables,
        tokens,
        segments,
        batch.get('encoder_positions'),
        enable_dropout=dropout_rng is not None,
        rngs=None if dropout_rng is None else {'dropout': dropout_rng},
        method='encode',
        **inputs,
      )
      assert self.mask_id is not None
      masks = roberta.find_masks(tokens, slots, self.mask_id, segments)[:, None]
      if segments is not None:
        own = batch['decoder_segment_ids'][:, :, None] == segments[:, None]
        masks = masks & own
      # The first one, of several.
      place = jnp.argmax(masks, axis=-1)[..., None]
      at_mask = jnp.take_along_axis(encoded, place, axis=1)
      logits: Any = self.module.apply(variables, at_mask, words, method='fill')
    return logits, states

  def _forward(
    self,
    params: PyTree,
    table: Array | None,
    batch: Batch,
    dropout_rng: Array | None,
    hidden_states: bool = False,
    answering: bool = False,
  ) -> tuple[Array, dict[str, tuple[Array, ...]]]:
    """Scores [B, T] of the classes, at each of their words; the states."""
    words = batch['decoder_target_tokens']
    packed = 'encoder_segment_ids' in batch
    words = words[:, :, None] if packed else words[:, None]
    logits, states = self._fill(
      params, table, batch, words, dropout_rng, answering
    )
    logits = logits[..., 0] if packed else logits[:, 0]
    scores = losses.choice_scores(logits, _choices(batch))
    return scores, {'encoder': states} if hidden_states else {}

  def _target_values(self, scores: Array, batch: Batch) -> dict[str, Array]:
    """[B, T] float32 of each term, at every label word."""
    choices = _choices(batch)
    found = losses.choice_log_probs(scores, choices)
    log_z = jnp.where(choices.is_first, scores - found, 0.0)
    best = jnp.max(jnp.where(choices.same, scores[:, None], -jnp.inf), axis=-1)
    return {
      'cross_entropy': -found,
      'z_loss': self.z_loss * jnp.square(log_z),
      'token_accuracy': (scores >= best).astype(jnp.float32),
    }

  def _divergence(
    self, teacher: Array, student: Array, batch: Batch, temperature: float
  ) -> Array:
    return losses.choice_kl(teacher, student, _choices(batch), temperature)

  def _lesson_weights(self, batch: Batch) -> Array:
    """Once for each example."""
    return _token_weights(batch)


def _choices(batch: Batch) -> losses.Choices:
  """The label words that a batch offers."""
  return losses.choices(
    batch['decoder_target_tokens'],
    batch['decoder_input_tokens'],
    batch.get('decoder_segment_ids'),
  )


@dataclasses.dataclass(frozen=True)
class Distilled(PromptedModel):
  """A student taught by its tasks' finished prompts (MPT, source stage).

  total = L_PLM + logits_weight * L_logits + hidden_weight * L_hidden; both
  weights are the paper's lambda unless set apart (Wang et al., ICLR 2023).
  Teacher and student are the same frozen backbone on the same batch; only the
  prompts differ. The teacher runs without dropout and takes no gradient.

  Attributes:
    distill_weight: lambda.
    logits_weight: weight of KL(teacher || student); None is lambda.
    hidden_weight: weight of the hidden-state error; None is lambda.
    temperature: of both softmaxes in L_logits.
    hidden_layers: 'last' compares the output of both final norms, encoder's
      plus decoder's; 'all' takes the mean over the embeddings, blocks and
      final norms of both.
  """

  distill_weight: float = 0.9
  logits_weight: float | None = None
  hidden_weight: float | None = None
  temperature: float = 1.0
  hidden_layers: str = 'last'

  def __post_init__(self):
    super().__post_init__()
    if not isinstance(self.method, methods.PromptMethod):
      raise InputError(
        'distillation needs one prompt a task to distill into, and method'
        f' {getattr(self.method, "name", None)!r} has none'
      )
    if self.hidden_layers not in ('last', 'all'):
      raise ValueError(
        f"hidden_layers is {self.hidden_layers!r}, expected 'last' or 'all'"
      )

  @property
  def term_names(self) -> tuple[str, ...]:
    """The names that `loss_terms` returns."""
    hidden = [f'hidden_loss_{side}' for side in self._sides]
    return (*super().term_names, 'logits_loss', *hidden)

  def get_initial_variables(
    self,
    rng: Array,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    input_types: Mapping[str, Any] | None = None,
  ) -> dict[str, PyTree]:
    """As without a lesson; the teacher table is zeros, to be filled."""
    variables = super().get_initial_variables(rng, input_shapes, input_types)
    shape = (self.num_tasks, self.prompt_length, self.config.emb_dim)
    variables['params']['teacher_prompts'] = {
      'prompt_table': jnp.zeros(shape, jnp.float32)
    }
    return variables

  def loss_terms(
    self, params: PyTree, batch: Batch, dropout_rng: Array | None
  ) -> Metrics:
    """As without a lesson, with the logits loss and a hidden loss a side."""
    student_logits, student = self._forward(
      params, self.prompt_table(params), batch, dropout_rng, True
    )
    teacher_logits, teacher = jax.lax.stop_gradient(
      self._forward(
        params, params['teacher_prompts']['prompt_table'], batch, None, True
      )
    )
    values = self._target_values(student_logits, batch)
    values['logits_loss'] = self._divergence(
      teacher_logits, student_logits, batch, self.temperature
    )
    for side in self._sides:
      pairs = zip(
        losses.select_states(teacher[side], self.hidden_layers),
        losses.select_states(student[side], self.hidden_layers),
        strict=True,
      )
      errors = [losses.squared_error_per_position(t, s) for t, s in pairs]
      values[f'hidden_loss_{side}'] = self._state_scale * sum(
        errors[1:], errors[0]
      )
    return self._by_task(values, batch)

  def _places(self, batch: Batch) -> dict[str, tuple[Array, Array]]:
    places = super()._places(batch)
    targets = self._lesson_weights(batch), self._decoder_rows(batch)
    of_side = {
      'decoder': targets,
      'encoder': (
        (batch['encoder_input_tokens'] > 0).astype(jnp.float32),
        batch['encoder_task_ids'],
      ),
    }
    places['logits_loss'] = targets
    for side in self._sides:
      places[f'hidden_loss_{side}'] = of_side[side]
    return places

  @property
  def _state_scale(self) -> float:
    """'last': one state a side, summed. 'all': the mean over all states."""
    if self.hidden_layers == 'last':
      return 1.0
    # Embeddings, blocks 1..L-1 and the final norm: L + 1 states a side.
    blocks = self.config.num_encoder_layers + self.config.num_decoder_layers
    return 1.0 / (blocks + len(self._sides))

  def combine(self, terms: Metrics, num_targets: Array | int) -> Array:
    """The scalar loss that these terms of a batch with B * T targets make."""

    def mean(name: str) -> Array:
      sums, weights = terms[name]
      return sums.sum() / jnp.maximum(weights.sum(), 1.0)

    logits_weight = (
      self.distill_weight if self.logits_weight is None else self.logits_weight
    )
    hidden_weight = (
      self.distill_weight if self.hidden_weight is None else self.hidden_weight
    )
    first, *others = (mean(f'hidden_loss_{side}') for side in self._sides)
    hidden = sum(others, first)
    return (
      super().combine(terms, num_targets)
      + logits_weight * mean('logits_loss')
      + hidden_weight * hidden
    )


@dataclasses.dataclass(frozen=True)
class Distance(PromptedModel):
  """Prompts that shall be near to finished ones of the same tasks.

  The loss is their distance, whatever the batch: neither backbone nor text has
  a part in it (Su et al., NAACL 2022, distance minimizing).

  Attributes:
    distance: see `losses.prompt_distances`.
  """

  distance: str = 'l2'

  @property
  def term_names(self) -> tuple[str, ...]:
    """The names that `loss_terms` returns."""
    return ('distance',)

  def loss_terms(
    self, params: PyTree, batch: Batch, dropout_rng: Array | None
  ) -> Metrics:
    """The distance of each task; every row of the batch has a share in it."""
    del dropout_rng
    table = self.prompt_table(params)
    if table is None:
      raise InputError(
        'a distance needs one prompt a task, and method'
        f' {getattr(self.method, "name", None)!r} has none'
      )
    wanted = params['teacher_prompts']['prompt_table']
    found = losses.prompt_distances(table, wanted, self.distance)
    [weights] = self.loss_weights(batch).values()
    return {'distance': (found * weights, weights)}

  def loss_weights(self, batch: Batch) -> dict[str, Array]:
    """See `PromptedModel.loss_weights`: the rows, for every task."""
    rows = batch['encoder_input_tokens'].shape[0]
    return {'distance': jnp.full((self.num_tasks,), float(rows))}

  def combine(self, terms: Metrics, num_targets: Array | int) -> Array:
    """The mean over the tasks."""
    del num_targets
    sums, weights = terms['distance']
    return jnp.mean(sums / jnp.maximum(weights, 1.0))


@dataclasses.dataclass(frozen=True)
class DistilledPromptedT5(Distilled, PromptedT5):
  """T5 with a lesson."""


@dataclasses.dataclass(frozen=True)
class DistancePromptedT5(Distance, PromptedT5):
  """T5 whose prompts shall be near to others."""


@dataclasses.dataclass(frozen=True)
class DistilledPromptedMaskedModel(Distilled, PromptedMaskedModel):
  """A masked encoder with a lesson: KL over the label words."""


@dataclasses.dataclass(frozen=True)
class DistancePromptedMaskedModel(Distance, PromptedMaskedModel):
  """A masked encoder whose prompts shall be near to others."""


# By family, the one without a lesson first.
_CLASSES: Mapping[type, tuple[type[PromptedModel], ...]] = {
  t5.T5Config: (PromptedT5, DistilledPromptedT5, DistancePromptedT5),
  roberta.RobertaConfig: (
    PromptedMaskedModel,
    DistilledPromptedMaskedModel,
    DistancePromptedMaskedModel,
  ),
}


def class_of(
  config: backbones.Config, lesson: type[PromptedModel] = PromptedModel
) -> type[Any]:
  """Returns the model class of a backbone.

  Args:
    config: the backbone's.
    lesson: `Distilled` or `Distance`; `PromptedModel` is neither.
  """
  return next(c for c in _CLASSES[type(config)] if issubclass(c, lesson))


def _example_rows(batch: Batch) -> Array:
  """[B] int32: the task's row of each example of unpacked rows."""
  real = batch['encoder_input_tokens'] > 0
  return jnp.max(jnp.where(real, batch['encoder_task_ids'], 0), axis=-1)


def _named(name: str) -> Any:
  """Which calls Flax captures: of the modules of a name."""
  return lambda module, method: module.name == name and method == '__call__'


def _like_layers(delta: PyTree, backbone: PyTree) -> PyTree:
  """Stacks a delta's layers where the backbone's are (`place_backbone`)."""
  if not any('layers' in backbone.get(s, {}) for s in ('encoder', 'decoder')):
    return delta
  flat = params_lib.flatten(delta)
  stacked = {}
  for name, members in params_lib.layer_groups(flat).items():
    parts = [flat[member] for member in members]
    stacked[name] = parts[0] if members == [name] else jnp.stack(parts)
  return params_lib.unflatten(stacked)


def _token_weights(batch: Batch) -> Array:
  """[B, T] float32: 1 at a real target, 0 at padding, or as the batch says."""
  if 'decoder_loss_weights' in batch:
    return batch['decoder_loss_weights'].astype(jnp.float32)
  return (batch['decoder_target_tokens'] > 0).astype(jnp.float32)


def _sequence_sums(weights: Array, batch: Batch) -> Array:
  """[B, T]: at each target, the sum of the weights of its own example."""
  if 'decoder_segment_ids' not in batch:
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return jnp.broadcast_to(total, weights.shape)
  segments = batch['decoder_segment_ids']
  same = segments[:, :, None] == segments[:, None, :]
  return jnp.einsum('btu,bu->bt', same.astype(jnp.float32), weights)
