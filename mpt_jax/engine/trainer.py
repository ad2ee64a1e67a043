"""The native engine: train state, jitted steps and the loop around them.

The gradient is taken with respect to the trainable tree only; the frozen
backbone is an argument of the step. The loop takes any iterator of batches
(dicts of host arrays); one with `get_state()` is resumed exactly.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
import contextlib
import dataclasses
import functools
import logging
import math
import os
import time
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
import numpy as np
import tqdm

from mpt_jax.engine import (
  hostmemory,
  multihost,
  optimizers,
  partitioning,
  preemption,
)
from mpt_jax.engine import params as params_lib
from mpt_jax.engine.face import face
from mpt_jax.models import Metrics, PromptedModel
from mpt_jax.types import (
  Array,
  Batch,
  InputError,
  PyTree,
)

log = logging.getLogger(__name__)

_PROGRESS_SECONDS = 10.0

# The rows of a batch, or its parts (see `buckets`).
HostBatch = Mapping[str, np.ndarray] | list[Mapping[str, np.ndarray]]


class NonFiniteLossError(InputError, RuntimeError):
  """The loss or a gradient was not finite; the message says where."""


class TrainState(flax.struct.PyTreeNode):
  """All that changes during a run.

  Attributes:
    step: [] int32, finished steps.
    params: the trainable tree.
    opt_state: optax state of the trainable tree.
    rng: [2] uint32 key data; step k uses fold_in(rng, k).
    bad_step: [] int32, the first step whose loss or gradient was not finite,
      -1 as long as there is none. From then on nothing is updated.
    bad_tasks: [K] bool, the tasks whose loss was not finite in that step.
  """

  step: Array
  params: PyTree
  opt_state: PyTree
  rng: Array
  bad_step: Array
  bad_tasks: Array


class Checkpointer(Protocol):
  """Saves a run; `checkpoints.run.RunCheckpointer` is one."""

  def save(self, state: TrainState, iterator_state: Mapping[str, Any] | None):
    """Saves the state of step `state.step`, atomically."""


class Writer(Protocol):
  """Takes scalars by name."""

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes {name: value} for a step."""


def make_state(
  model: PromptedModel,
  optimizer: optimizers.Optimizer,
  trainable: PyTree,
  seed: int,
  mesh: Mesh,
  shard_backbone: bool = False,
) -> TrainState:
  """Makes the state of step 0, on the mesh.

  Args:
    model: the model.
    optimizer: its settings.
    trainable: the trainable tree at its start values.
    seed: seeds dropout.
    mesh: the mesh; prompts are replicated, backbone tensors as in
      `partitioning`.
    shard_backbone: see `partitioning.param_sharding`.

  Returns:
    The train state.
  """
  # A copy: the step donates its state, and the caller keeps its arrays.
  trainable = jax.tree.map(jnp.array, trainable)
  params = partitioning.shard_params(trainable, mesh, shard_backbone)
  everywhere = partitioning.replicated(mesh)
  init = optimizer.make(params).init
  places = _shard_like(jax.eval_shape(init, params), params, mesh)
  return TrainState(
    step=partitioning.put(np.int32(0), everywhere),
    params=params,
    opt_state=jax.jit(init, out_shardings=places)(params),
    rng=partitioning.put(jax.random.PRNGKey(seed), everywhere),
    bad_step=partitioning.put(np.int32(-1), everywhere),
    bad_tasks=partitioning.put(np.zeros(model.num_tasks, bool), everywhere),
  )


def _shard_like(opt_state: PyTree, params: PyTree, mesh: Mesh) -> PyTree:
  """Where things go: a moment where its parameter is, the rest everywhere."""
  shardings = {n: p.sharding for n, p in params_lib.flatten(params).items()}
  shapes = {n: p.shape for n, p in params_lib.flatten(params).items()}

  def place(path: Sequence[Any], leaf: Array) -> NamedSharding:
    # A moment's path ends with its parameter's: …/mu/prompts/task_u.
    keys = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
    for start in range(len(keys)):
      name = '/'.join(keys[start:])
      if shapes.get(name) == leaf.shape:
        return shardings[name]
    return partitioning.replicated(mesh)

  return jax.tree_util.tree_map_with_path(place, opt_state)


@functools.lru_cache(maxsize=16)
def make_train_step(
  model: PromptedModel, optimizer: optimizers.Optimizer, microbatches: int = 1
) -> Callable[..., tuple[TrainState, Metrics]]:
  """Returns the jitted step of a model and an optimizer.

  Runs of one process that share both share the compiled step.

  Args:
    model: the model; dropout is on if it has some.
    optimizer: the optimizer's settings.
    microbatches: parts that a batch is cut into. They are run one after
      another and make the update of the whole batch; activations are held for
      one part at a time.

  Returns:
    (state, frozen params, batch, totals) -> (state, totals): one update, with
    this batch's metrics added to `totals`. State and totals are donated.
  """
  dropout = model.drops

  def train_step(
    state: TrainState, frozen: PyTree, batch: Batch, totals: Metrics
  ) -> tuple[TrainState, Metrics]:
    rng = jax.random.fold_in(state.rng, state.step) if dropout else None
    weights = model.loss_weights(batch) if microbatches > 1 else {}

    def loss_fn(
      trainable: PyTree, part: Batch, rng: Array | None
    ) -> tuple[Array, Metrics]:
      params = params_lib.merge(trainable, frozen)
      if microbatches == 1:
        return model.loss_fn(params, part, rng)
      num_targets = batch['decoder_target_tokens'].size
      return model.part_loss_fn(params, part, weights, num_targets, rng)

    sums = _accumulate(
      jax.value_and_grad(loss_fn, has_aux=True),
      state.params,
      batch,
      rng,
      microbatches,
    )
    return _update(optimizer, state, sums, totals)

  return jax.jit(
    train_step, donate_argnums=(0, 3), compiler_options=_compiler_options()
  )


def _update(
  optimizer: optimizers.Optimizer,
  state: TrainState,
  sums: PyTree,
  totals: Metrics,
) -> tuple[TrainState, Metrics]:
  """One update from ((loss, terms), gradient) of a whole batch."""
  (loss, terms), grads = sums
  norm = optimizers.global_norm(grads)
  finite = jnp.isfinite(loss) & jnp.isfinite(norm)
  healthy = finite & (state.bad_step < 0)
  updates, opt_state = optimizer.make(state.params).update(
    grads, state.opt_state, state.params
  )
  params = jax.tree.map(jnp.add, state.params, updates)

  def keep(new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda n, o: jnp.where(healthy, n, o), new, old)

  bad = jnp.zeros_like(state.bad_tasks)
  for term, _ in terms.values():
    bad |= ~jnp.isfinite(term)
  first = ~finite & (state.bad_step < 0)
  new_state = state.replace(
    step=state.step + 1,
    params=keep(params, state.params),
    opt_state=keep(opt_state, state.opt_state),
    bad_step=jnp.where(first, state.step + 1, state.bad_step),
    bad_tasks=jnp.where(first, bad, state.bad_tasks),
  )
  one = jnp.ones((1,), jnp.float32)
  terms = {
    **terms,
    'loss': (loss[None], one),
    'gradient_norm': (norm[None], one),
    'parameter_norm': (optimizers.global_norm(new_state.params)[None], one),
  }
  return new_state, jax.tree.map(jnp.add, totals, terms)


def _compile(what: str, function: Any, *args: Any) -> int:
  """Compiles a jitted function before its first call with such arguments.

  Apart from the call, so that what the compiler has freed is given back
  before the function needs memory of its own.

  Returns:
    The bytes that the function needs on a device: arguments, results and what
    it holds in between; 0 if the platform does not say.
  """
  log.info('compiling %s …', what)
  stats = function.lower(*args).compile().memory_analysis()
  hostmemory.release()
  needs = 0
  if stats is not None:
    needs = stats.argument_size_in_bytes + stats.temp_size_in_bytes
    needs += stats.output_size_in_bytes - stats.alias_size_in_bytes
  return needs


class BucketedStep:
  """One update from a batch whose parts have different lengths.

  The parts are run one after another by a function that is compiled once for
  each shape; their gradients add up to that of the whole batch. Nothing is
  fetched in between, so that the device always has the next part to do.

  Attributes:
    shapes: the shapes (R, S, T) that parts have had.
    compile_seconds: how long all of them took to compile.
    num_bytes: what the largest of them needs, see `_compile`.
  """

  def __init__(
    self,
    model: PromptedModel,
    optimizer: optimizers.Optimizer,
    target_length: int,
  ):
    """Compiles nothing yet.

    Args:
      model: the model; dropout is on if it has some.
      optimizer: the optimizer's settings.
      target_length: T of a batch that is not cut, which counts with the
        normalizer 'NUM_TOTAL_TARGET_TOKENS'.
    """
    self._target_length = target_length
    self.shapes: set[tuple[int, ...]] = set()
    self.compile_seconds = 0.0
    self.num_bytes = 0
    self._starts: dict[Any, Callable[..., Any]] = {}
    dropout = model.drops

    def weigh(weights: dict[str, Array], part: Batch) -> dict[str, Array]:
      return jax.tree.map(jnp.add, weights, model.loss_weights(part))

    def add_part(
      sums: PyTree,
      state: TrainState,
      frozen: PyTree,
      part: Batch,
      index: Array,
      weights: dict[str, Array],
      num_targets: Array,
    ) -> PyTree:
      key = jax.random.fold_in(state.rng, state.step) if dropout else None

      def loss_fn(trainable: PyTree) -> tuple[Array, Metrics]:
        return model.part_loss_fn(
          params_lib.merge(trainable, frozen),
          part,
          weights,
          num_targets,
          None if key is None else jax.random.fold_in(key, index),
        )

      more = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
      return jax.tree.map(jnp.add, sums, more)

    def start(state: TrainState) -> tuple[PyTree, dict[str, Array]]:
      tasks = jnp.zeros(model.num_tasks)
      terms = dict.fromkeys(model.term_names, (tasks, tasks))
      grads = jax.tree.map(jnp.zeros_like, state.params)
      return ((jnp.float32(0.0), terms), grads), dict.fromkeys(terms, tasks)

    def update(
      state: TrainState, sums: PyTree, totals: Metrics
    ) -> tuple[TrainState, Metrics]:
      return _update(optimizer, state, sums, totals)

    options = _compiler_options()
    self._weigh = jax.jit(weigh, donate_argnums=0)
    self._add_part = jax.jit(
      add_part, donate_argnums=0, compiler_options=options
    )
    self._start = start
    self._update = jax.jit(update, donate_argnums=(0, 2))

  def __call__(
    self,
    state: TrainState,
    frozen: PyTree,
    parts: Sequence[Batch],
    totals: Metrics,
  ) -> tuple[TrainState, Metrics]:
    """As the step of `make_train_step`, of a batch in parts."""
    return self._update(
      state, self.value_and_grad(state, frozen, parts), totals
    )

  def value_and_grad(
    self, state: TrainState, frozen: PyTree, parts: Sequence[Batch]
  ) -> tuple[tuple[Array, Metrics], PyTree]:
    """Returns ((loss, terms), gradient) of a whole batch in parts."""
    sums, weights = self._zeros(state)
    rows = 0
    for part in parts:
      weights = self._weigh(weights, part)
      rows += part['decoder_target_tokens'].shape[0]
    num_targets = np.float32(rows * self._target_length)

    def arguments(index: int, sums: PyTree) -> tuple[Any, ...]:
      indexed = parts[index], np.int32(index)
      return sums, state, frozen, *indexed, weights, num_targets

    new = {
      shape: arguments(index, sums)
      for index, shape in enumerate(map(_shape_of, parts))
      if shape not in self.shapes
    }
    if new:
      self._compile_all(new)
    for index in range(len(parts)):
      sums = self._add_part(*arguments(index, sums))
    return sums

  def _compile_all(
    self, new: Mapping[tuple[int, ...], tuple[Any, ...]]
  ) -> None:
    """Compiles for shapes that are new, as many at once as there are cores."""
    begin = time.monotonic()

    def one(shape: tuple[int, ...]) -> int:
      what = '{} examples, {} + {} tokens'.format(*shape)
      return _compile(f'parts of {what}', self._add_part, *new[shape])

    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      self.num_bytes = max([self.num_bytes, *pool.map(one, new)])
    self.shapes |= set(new)
    self.compile_seconds += time.monotonic() - begin

  def _zeros(self, state: TrainState) -> tuple[PyTree, dict[str, Array]]:
    """Sums to start from, placed as the parts return them."""
    places = tuple(x.sharding for x in jax.tree.leaves(state.params))
    everywhere = state.step.sharding
    key = everywhere, places
    if key not in self._starts:
      shapes = jax.eval_shape(self._start, state)
      (_, grads), _ = shapes
      (losses, _), weights = jax.tree.map(lambda x: everywhere, shapes)
      placed = jax.tree.unflatten(jax.tree.structure(grads), places)
      self._starts[key] = jax.jit(
        self._start, out_shardings=((losses, placed), weights)
      )
    return self._starts[key](state)

  @property
  def num_compiled(self) -> int:
    """How many shapes of parts have been compiled."""
    compiled: Any = self._add_part
    return compiled._cache_size()


@functools.lru_cache(maxsize=16)
def make_bucketed_step(
  model: PromptedModel, optimizer: optimizers.Optimizer, target_length: int
) -> BucketedStep:
  """Returns the step of batches in parts; runs of one process share it."""
  return BucketedStep(model, optimizer, target_length)


def _shape_of(part: Batch) -> tuple[int, ...]:
  """The shape (R, S, T) of a part."""
  targets = part['decoder_target_tokens'].shape
  return (*part['encoder_input_tokens'].shape, targets[1])


def _compiler_options() -> dict[str, bool] | None:
  """XLA's settings for this platform.

  On CPU, XLA by default orders operations so that several may run at once.
  With all cores in every matrix product anyway that costs a tenth of a step
  and half a gigabyte at T5-small (benchmarks/README.md).
  """
  if jax.default_backend() != 'cpu':
    return None
  return {'xla_cpu_enable_concurrency_optimized_scheduler': False}


def _accumulate(
  value_and_grad: Callable[..., PyTree],
  params: PyTree,
  batch: Batch,
  rng: Array | None,
  microbatches: int,
) -> PyTree:
  """Sums what (params, part, rng) -> … returns over the parts of a batch."""
  if microbatches == 1:
    return value_and_grad(params, batch, rng)

  def split(rows: Array) -> Array:
    # Every device gives some of its rows to each part: none moves.
    parts = rows.reshape(-1, microbatches, *rows.shape[1:])
    return parts.swapaxes(0, 1)

  def run(index: Array, part: Batch) -> PyTree:
    key = None if rng is None else jax.random.fold_in(rng, index)
    return value_and_grad(params, part, key)

  def add(totals: PyTree, indexed: tuple[Array, Batch]) -> tuple[PyTree, None]:
    return jax.tree.map(jnp.add, totals, run(*indexed)), None

  indexed = jnp.arange(microbatches), jax.tree.map(split, batch)
  shapes = jax.eval_shape(run, *jax.tree.map(lambda x: x[0], indexed))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  totals, _ = jax.lax.scan(add, zeros, indexed)
  return totals


@functools.lru_cache(maxsize=16)
def make_eval_step(model: PromptedModel) -> Callable[..., Metrics]:
  """Returns the jitted (params, batch) -> metrics of a batch, no dropout."""

  def eval_step(params: PyTree, batch: Batch) -> Metrics:
    loss, terms = model.eval_fn(params, batch)
    one = jnp.ones((1,), jnp.float32)
    return {**terms, 'loss': (loss[None], one)}

  return jax.jit(eval_step, compiler_options=_compiler_options())


@functools.lru_cache(maxsize=16)
def make_predict_step(
  model: PromptedModel, **decode_args: Any
) -> Callable[..., Array]:
  """Returns the jitted (params, batch, rng) -> tokens [B, T]."""
  return jax.jit(
    lambda params, batch, rng=None: model.predict_batch(
      params, batch, rng, **decode_args
    ),
    compiler_options=_compiler_options(),
  )


def zero_metrics(model: PromptedModel) -> Metrics:
  """Totals to start from; see `make_train_step`."""
  sizes = dict.fromkeys(model.term_names, model.num_tasks)
  sizes.update({'loss': 1, 'gradient_norm': 1, 'parameter_norm': 1})
  return {n: (jnp.zeros(k), jnp.zeros(k)) for n, k in sizes.items()}


def summarize(totals: Metrics, task_names: Sequence[str]) -> dict[str, float]:
  """Turns summed metrics into scalars.

  Args:
    totals: {name: (sums [K], weights [K])}.
    task_names: the K tasks in row order.

  Returns:
    {'name': mean over all, 'name/task': mean of one task}; tasks that had no
    examples are left out. With one task there is no 'name/task'.
  """
  scalars = {}
  for name, (sums, weights) in partitioning.to_host(totals).items():
    if weights.sum() > 0:
      scalars[name] = float(sums.sum() / weights.sum())
    if len(weights) == len(task_names) > 1:
      for task, s, w in zip(task_names, sums, weights, strict=True):
        if w > 0:
          scalars[f'{name}/{task}'] = float(s / w)
          if name == 'cross_entropy':
            scalars[f'target_tokens/{task}'] = float(w)
  return scalars


def put_batch(
  batch: Mapping[str, np.ndarray], mesh: Mesh, whole: bool = False
) -> Batch:
  """Moves rows onto the mesh, over the `data` axis.

  Args:
    batch: host arrays [B, ...]: this process's part of the rows
      (`partitioning.data_part`).
    mesh: the mesh.
    whole: every process has all rows of the batch.

  Returns:
    The batch of all processes.
  """
  sharding = partitioning.batch_sharding(mesh)
  if whole:
    return {k: partitioning.put(v, sharding) for k, v in batch.items()}
  return {
    k: jax.make_array_from_process_local_data(sharding, v)
    for k, v in batch.items()
  }


class Progress:
  """Prints where a run stands: step, rate, examples/s, ETA.

  The rates are of training alone: what compiles, evaluates or saves is outside
  the clock. The ETA has the evaluations to come.
  """

  def __init__(
    self,
    total: int,
    start: int = 0,
    parts: int = 1,
    eval_period: int | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Starts the clock.

    Args:
      total: the last step.
      start: the step it is.
      parts: how many parts a batch has, of which this process counts one.
      eval_period: steps between evaluations; None has none.
      clock: returns seconds.
    """
    self._total, self._first, self._examples = total, start, 0
    self._parts, self._eval_period, self._clock = parts, eval_period, clock
    self._begin = self._last = clock()
    self._outside = self._evaluation = 0.0

  def exclude(self, seconds: float) -> None:
    """Takes what was no training off the clock."""
    self._outside += seconds

  @contextlib.contextmanager
  def outside(self, evaluation: bool = False) -> Iterator[None]:
    """Stops the clock.

    Args:
      evaluation: whether this is an evaluation; the latest one tells how long
        those to come will take.

    Yields:
      Nothing.
    """
    begin = self._clock()
    try:
      yield
    finally:
      seconds = self._clock() - begin
      self.exclude(seconds)
      if evaluation:
        self._evaluation = seconds

  def _evaluations_left(self, step: int) -> int:
    """How many come behind a step and its own; the last step has one."""
    if not self._eval_period or step >= self._total:
      return 0
    return -(-self._total // self._eval_period) - step // self._eval_period

  def count(self, batch: HostBatch) -> None:
    """Counts the examples of a host's batch, packed, in parts or neither."""
    if isinstance(batch, list):
      for part in batch:
        self.count(part)
    elif 'decoder_segment_ids' in batch:
      self._examples += int(batch['decoder_segment_ids'].max(axis=1).sum())
    else:
      self._examples += len(batch['decoder_target_tokens'])

  def rates(self, step: int) -> dict[str, float]:
    """Steps and examples per second since the start, and seconds left."""
    seconds = max(self._clock() - self._begin - self._outside, 1e-9)
    rate = (step - self._first) / seconds
    left = (self._total - step) / rate if rate else math.inf
    left += self._evaluations_left(step) * self._evaluation
    return {
      'steps_per_second': rate,
      'examples_per_second': self._parts * self._examples / seconds,
      'seconds_left': left if step < self._total else 0.0,
    }

  def maybe_print(self, step: int, note: str = '', force: bool = False):
    """Logs a line, at most every ten seconds unless forced."""
    now = self._clock()
    if not force and now - self._last < _PROGRESS_SECONDS:
      return
    self._last = now
    rates = self.rates(step)
    log.info(
      'step %d / %d  %s  %.0f examples/s  ETA %s  %s',
      step,
      self._total,
      format_rate(rates['steps_per_second']),
      rates['examples_per_second'],
      format_seconds(rates['seconds_left']),
      note,
    )


def format_rate(rate: float) -> str:
  """'3.4 steps/s', or below one step a second '1.7 s/step'."""
  if not rate:
    return '? s/step'
  return f'{rate:.1f} steps/s' if rate >= 1 else f'{1 / rate:.1f} s/step'


def format_seconds(seconds: float) -> str:
  """'1h02m', '3m05s' or '12s'."""
  if not math.isfinite(seconds):
    return '?'
  whole = round(seconds)
  if whole >= 3600:
    return f'{whole // 3600}h{whole % 3600 // 60:02d}m'
  if whole >= 60:
    return f'{whole // 60}m{whole % 60:02d}s'
  return f'{whole}s'


@dataclasses.dataclass(frozen=True)
class Training:
  """What the steps of a run share.

  Attributes:
    model: the model.
    optimizer: the optimizer's settings.
    mesh: the mesh.
    task_names: the K tasks in row order, for logging.
    microbatches: see `make_train_step`; of batches that are not lists.
    target_length: see `BucketedStep`; of batches that are lists.
  """

  model: PromptedModel
  optimizer: optimizers.Optimizer
  mesh: Mesh
  task_names: Sequence[str]
  microbatches: int = 1
  target_length: int | None = None


@dataclasses.dataclass(frozen=True)
class Periods:
  """How many steps lie between what is done beside them.

  Attributes:
    log: between metric fetches; the device is not waited for in between.
    checkpoint: between checkpoints; the last step has one too.
    evaluation: between evaluations, and at the last step; None is never.
    key: the one step that is kept; None is none.
  """

  log: int = 100
  checkpoint: int = 1000
  evaluation: int | None = None
  key: int | None = None


@dataclasses.dataclass(frozen=True)
class Hooks:
  """What is called beside the steps.

  Attributes:
    checkpointer: saves the state; None saves nothing.
    evaluate: (step, trainable params) -> scalars to write.
    writer: takes the scalars.
    keep: (step, trainable params) of the key's step.
    finished: whether the run is over before its last step; asked at the start
      and after each evaluation.
    request: asks the run to save its state and stop; looked at at each step,
      of several processes at each log period.
    compiled: told of the bytes that the largest step so far needs on a device,
      as the compiler has it; 0 if it does not say.
  """

  checkpointer: Checkpointer | None = None
  evaluate: Callable[[int, PyTree], Mapping[str, float]] | None = None
  writer: Writer | None = None
  keep: Callable[[int, PyTree], None] = lambda step, params: None
  finished: Callable[[], bool] = lambda: False
  request: preemption.StopRequest | None = None
  compiled: Callable[[int], None] = lambda needs: None


def fit(
  training: Training,
  state: TrainState,
  frozen: PyTree,
  batches: Iterator[HostBatch],
  train_steps: int,
  periods: Periods = Periods(),
  hooks: Hooks = Hooks(),
  window: Mapping[str, Any] | None = None,
) -> TrainState:
  """Trains up to step `train_steps`.

  Args:
    training: model, optimizer and mesh.
    state: where to start; `state.step` counts.
    frozen: the frozen parameters, on the mesh.
    batches: host batches of numpy arrays [B, ...], or lists of such parts of
      a batch (`buckets`), of this process's rows only
      (`partitioning.data_part`); if it has `get_state()`,
      that is saved with each checkpoint; if it has `taken`, the examples drawn
      of each task so far, they are written with the metrics.
    train_steps: the step at which to stop.
    periods: when to log, save and evaluate.
    hooks: what saves, evaluates, writes, and stops it.
    window: what the resumed checkpoint's position holds as `window`: the
      metrics summed since they were last written; None starts from zero.

  Returns:
    The final state.

  Raises:
    Stopped: after a request to stop; the state is saved.
    NonFiniteLossError: names the step and the tasks; the last good checkpoint
      is untouched.
  """
  loop = _Loop(training, state, frozen, batches, train_steps, periods, hooks)
  if window is not None:
    loop.resume(window)
  with loop.bar:
    while loop.step < train_steps and not hooks.finished():
      loop.train()
      loop.look()
  return loop.state


class _Loop:
  """A run between two steps.

  Attributes:
    step: finished steps.
    state: the train state after them.
    bar: shows them to whoever sees no log.
  """

  def __init__(
    self,
    training: Training,
    state: TrainState,
    frozen: PyTree,
    batches: Iterator[HostBatch],
    train_steps: int,
    periods: Periods,
    hooks: Hooks,
  ):
    self.step, self.state = int(state.step), state
    self._training, self._frozen, self._batches = training, frozen, batches
    self._total, self._periods, self._hooks = train_steps, periods, hooks
    self._train_step = make_train_step(
      training.model, training.optimizer, training.microbatches
    )
    # Placed as the step returns them; otherwise it is compiled twice.
    self._everywhere = partitioning.replicated(training.mesh)
    self._zeros = jax.device_get(zero_metrics(training.model))
    self._totals = self._start_totals()
    self._progress: Progress | None = None
    self._note = ''
    told = log.isEnabledFor(logging.INFO) and log.hasHandlers()
    self.bar = tqdm.tqdm(
      initial=self.step,
      total=train_steps,
      unit='step',
      disable=told or not face().interactive or not multihost.is_first(),
    )

  def _start_totals(self) -> Metrics:
    return jax.tree.map(
      lambda z: partitioning.put(z, self._everywhere), self._zeros
    )

  def resume(self, window: Mapping[str, Any]) -> None:
    """Goes on with the metrics that a checkpoint had summed."""
    self._totals = jax.tree.map(
      lambda z, open_: partitioning.put(
        np.asarray(open_, z.dtype), self._everywhere
      ),
      self._zeros,
      {name: tuple(map(np.asarray, window[name])) for name in self._zeros},
    )

  def train(self) -> None:
    """Makes one update."""
    batch = next(self._batches)
    if isinstance(batch, list):
      self._train_on_parts(batch)
    else:
      args = self._frozen, put_batch(batch, self._training.mesh), self._totals
      if self._progress is None:
        needs = _compile('the first step', self._train_step, self.state, *args)
        self._hooks.compiled(needs)
      self.state, self._totals = self._train_step(self.state, *args)
    self.step += 1
    self.bar.update()
    if self._progress is not None:
      self._progress.count(batch)
      return
    jax.block_until_ready(self._totals)
    # Counted from here, so that compilation doesn't spoil the ETA.
    hooks, periods = self._hooks, self._periods
    _, num_parts = partitioning.data_part(self._training.mesh)
    self._progress = Progress(
      self._total,
      start=self.step,
      parts=num_parts,
      eval_period=None if hooks.evaluate is None else periods.evaluation,
    )

  def _train_on_parts(self, batch: list[Mapping[str, np.ndarray]]) -> None:
    training = self._training
    assert training.target_length is not None
    step_parts = make_bucketed_step(
      training.model, training.optimizer, training.target_length
    )
    parts = [put_batch(part, training.mesh) for part in batch]
    compiled = step_parts.compile_seconds
    self.state, self._totals = step_parts(
      self.state, self._frozen, parts, self._totals
    )
    if self._progress is not None:
      self._progress.exclude(step_parts.compile_seconds - compiled)
    if self._progress is None or step_parts.compile_seconds > compiled:
      self._hooks.compiled(step_parts.num_bytes)

  def look(self) -> None:
    """Does what is due at this step: logs, saves, stops, evaluates."""
    progress, hooks, periods = self._progress, self._hooks, self._periods
    assert progress is not None
    last = self.step == self._total
    logs = last or self.step % periods.log == 0
    # Several processes must ask at the same step.
    may_stop = jax.process_count() == 1 or logs
    stops = (
      hooks.request is not None
      and may_stop
      and not last
      and hooks.request.on_any_process()
    )
    saves = hooks.checkpointer is not None and (
      last or stops or self.step % periods.checkpoint == 0
    )
    evaluates = (
      hooks.evaluate is not None
      and periods.evaluation is not None
      and (last or self.step % periods.evaluation == 0)
    )
    keeps = self.step == periods.key
    if logs or saves or evaluates or keeps:
      check_finite(self.state, self._training.task_names)
    if logs:
      self._log()
    progress.maybe_print(self.step, self._note, force=last)
    if keeps:  # Before what a resumed run would begin behind.
      with progress.outside():
        hooks.keep(self.step, self.state.params)
    if saves:
      self._save()
    if stops:
      assert hooks.request is not None
      raise preemption.Stopped(
        f'stopped at step {self.step} of {self._total}', hooks.request.number
      )
    if evaluates:
      self._evaluate()

  def _log(self) -> None:
    """Writes the metrics of the steps since it was last called."""
    training, step = self._training, self.step
    scalars = summarize(self._totals, training.task_names)
    self._totals = self._start_totals()
    assert self._progress is not None
    scalars.update(self._progress.rates(step))
    rates = optimizers.learning_rates(training.optimizer, step - 1)
    scalars.update({f'learning_rate/{n}': rate for n, rate in rates.items()})
    taken: Mapping[str, int] = getattr(self._batches, 'taken', {})
    scalars.update({f'examples/{name}': n for name, n in taken.items()})
    self._note = f'loss {scalars["loss"]:.4f}'
    self.bar.set_postfix_str(self._note, refresh=False)
    if self._hooks.writer is not None:
      named = {f'train/{name}': value for name, value in scalars.items()}
      self._hooks.writer.write_scalars(step, named)

  def _save(self) -> None:
    """Saves the state, and where the run stands between two of its logs."""
    if self._hooks.checkpointer is None:
      return
    assert self._progress is not None
    open_steps = self.step % self._periods.log
    with self._progress.outside():
      self._hooks.checkpointer.save(
        self.state, _position(self._batches, open_steps, self._totals)
      )

  def _evaluate(self) -> None:
    hooks = self._hooks
    assert self._progress is not None
    assert hooks.evaluate is not None
    try:
      with self._progress.outside(evaluation=True):
        scores = hooks.evaluate(self.step, self.state.params)
    except preemption.Stopped:
      self._save()
      raise
    if hooks.writer is not None:
      hooks.writer.write_scalars(self.step, scores)


def _position(
  batches: Iterator[Any], open_steps: int, totals: Metrics
) -> dict[str, Any] | None:
  """Where a run stands between two steps, fit for JSON; None if unknown."""
  get_state = getattr(batches, 'get_state', None)
  if get_state is None:
    return None
  position = dict(get_state())
  if open_steps:
    host = partitioning.to_host(totals)
    position['window'] = {
      name: [part.tolist() for part in parts] for name, parts in host.items()
    }
  return position


def check_finite(state: TrainState, task_names: Sequence[str]) -> None:
  """Raises NonFiniteLossError if a step so far was not finite."""
  bad_step = int(state.bad_step)
  if bad_step < 0:
    return
  flags = np.asarray(state.bad_tasks)
  tasks = [name for name, bad in zip(task_names, flags, strict=True) if bad]
  where = ', '.join(tasks) if tasks else 'no single task (the gradient)'
  raise NonFiniteLossError(
    f'the loss was not finite at step {bad_step}; task(s): {where}. This run'
    ' would come to it again: lower the learning rate or set a clip norm, in'
    ' another MODEL_DIR'
  )
