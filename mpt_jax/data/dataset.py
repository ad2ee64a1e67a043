"""Training data: a seeded, endless, restorable stream of batches.

A split is tokenised once and kept in memory (4 bytes per token: the six
source tasks of the paper take about half a gigabyte at 256 tokens). Every
epoch is then a full permutation, the state of the stream is a few numbers,
and a resumed run is at its batch at once. The tokens are shared by all
iterators of a process, so a pipeline of many runs reads its data once.

The batch is the same however many hosts share it: each host follows the whole
stream, which costs next to nothing as the tokens are in memory, and lays out
its own rows only. So a seed means the same run on one host and on many, packed
or not, and a saved position holds for any number of hosts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import importlib
import itertools
import logging
import os
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
import tqdm

from mpt_jax import batching, buckets
from mpt_jax.data import (
  few_shot,
  records,
  rows,
  sampling,
  sources,
  templates,
)
from mpt_jax.data.feature_converter import check_lengths
from mpt_jax.data.quiet import only_errors
from mpt_jax.data.vocabulary import check_vocabulary, end_ids, get_vocabulary
from mpt_jax.types import InputError, nearest

log = logging.getLogger(__name__)

# How many examples are read at a time.
_BLOCK = 1024
# Reading a split of this size takes some seconds.
_LARGE = 20_000
# Length buckets are chosen by so many batches.
_BATCHES_LOOKED_AT = 100
# Keeps the random streams apart that share a seed.
_TASK_DRAWS, _EXAMPLE_ORDER = 1, 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetConfig:
  """What a run reads.

  Attributes:
    mixture_or_task_name: a registered SeqIO mixture or task.
    task_feature_lengths: S (prompt slots included) as `inputs`, T as
      `targets`.
    batch_size: B, the rows of a batch over all hosts.
    split: the split.
    shuffle: whether each epoch has its own order.
    seed: fixes orders, task draws and the few-shot choice.
    pack: whether a row holds several examples.
    use_cached: whether to read SeqIO's offline cache.
    module: the module that registers the task; None if it is imported.
    num_shots: k; if set, train on k examples of each class of a task.
    shots_per_class: False for k examples of a task in all; a task without
      classes always has k in all.
    task_sampling: how a batch chooses among the tasks of a mixture:
      'proportional', each example on its own, or 'stochastic', a few tasks
      per batch (see `sampling.StochasticSampler`).
    max_tasks_per_batch: the most tasks in a batch of stochastic sampling;
      None is the number of tasks.
  """

  mixture_or_task_name: str
  task_feature_lengths: Mapping[str, int]
  batch_size: int
  split: str = 'train'
  shuffle: bool = True
  seed: int = 0
  pack: bool = False
  use_cached: bool = False
  module: str | None = None
  num_shots: int | None = None
  shots_per_class: bool = True
  task_sampling: str = sampling.PROPORTIONAL
  max_tasks_per_batch: int | None = None

  def __post_init__(self):
    if self.batch_size < 1:
      raise InputError(f'BATCH_SIZE={self.batch_size} must be positive')
    if self.seed < 0:
      raise InputError(f'the data seed {self.seed} must not be negative')


def import_module(module: str) -> None:
  """Imports the module that registers a run's tasks.

  Args:
    module: its dotted name (MIXTURE_OR_TASK_MODULE).

  Raises:
    InputError: if there is no such module, or if a mixture in it names an
      unknown task.
  """
  try:
    importlib.import_module(module)
  except ModuleNotFoundError as e:
    # A module that it imports in turn may be missing: that is not our input.
    if e.name is None or not (module + '.').startswith(e.name + '.'):
      raise
    raise InputError(
      f'MIXTURE_OR_TASK_MODULE={module!r} cannot be imported: there is no '
      f'module {e.name!r}'
    ) from None
  except ValueError as e:
    # What SeqIO says of a mixture of an unknown task.
    said, _, name = str(e).partition('not registered: ')
    if isinstance(e, InputError) or not said or not name:
      raise
    known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    raise InputError(
      f'a mixture of module {module!r} names {name!r}, which is no registered '
      f'task{nearest(name, known)}'
    ) from e


def check_data(
  mixture_or_task_name: str,
  split: str,
  module: str | None = None,
  use_cached: bool = False,
) -> seqio.Task | seqio.Mixture:
  """Checks at once that a mixture or task can be read.

  Args:
    mixture_or_task_name: its name.
    split: the split that will be read.
    module: a module to import first (MIXTURE_OR_TASK_MODULE).
    use_cached: whether SeqIO's offline cache will be read instead.

  Returns:
    The mixture or task.

  Raises:
    InputError: one line that names what is missing, where it was looked for
      and what to do.
  """
  if module:
    import_module(module)
  provider = rows.get_provider(mixture_or_task_name)
  for task in seqio.get_subtasks(provider):
    try:
      _check_task(task, split, use_cached)
    except InputError as e:
      raise InputError(f'task {task.name!r}: {e}') from e
  return provider


def _check_task(task: seqio.Task, split: str, use_cached: bool) -> None:
  missing = {'inputs', 'targets'} - set(task.output_features)
  if missing:
    raise InputError(f'it has no output feature {sorted(missing)}')
  if use_cached and task.supports_caching:
    if not task.cache_dir:
      raise InputError(
        'USE_CACHED_TASKS=True, but there is no cache of it in '
        f'{list(seqio.get_global_cache_dirs())}'
      )
    return
  source = task.source
  if isinstance(source, sources.TfdsSource | records.RecordsSource):
    source.check(split)
  elif isinstance(source, seqio.TfdsDataSource) and source.tfds_dataset.name:
    if not source.tfds_dataset.data_dir:
      sources.find_dataset(source.tfds_dataset.name)
  if split not in task.splits:
    raise InputError(f'no split {split!r}; it has {sorted(task.splits)}')


@dataclasses.dataclass(frozen=True)
class _Tokens:
  """A tokenised split.

  Attributes:
    inputs: the input tokens of each example.
    targets: likewise.
    labels: the target texts.
    ids: name of an identifying feature (`idx`, `id`) -> its values.
  """

  inputs: list[np.ndarray] = dataclasses.field(default_factory=list)
  targets: list[np.ndarray] = dataclasses.field(default_factory=list)
  labels: list[str] = dataclasses.field(default_factory=list)
  ids: dict[str, list[Any]] = dataclasses.field(default_factory=dict)


def loading_bar(task: seqio.Task, split: str) -> tqdm.tqdm:
  """Returns a progress bar for reading a split; silent for a small one."""
  total = task.num_input_examples(split) or 0
  return tqdm.tqdm(
    desc=f'reading {task.name}/{split}',
    total=total,
    unit='ex',
    leave=False,
    disable=total < _LARGE,
  )


def _rows_of(batch: tf.Tensor | tf.RaggedTensor) -> list[np.ndarray]:
  if isinstance(batch, tf.RaggedTensor):
    values, bounds = batch.values.numpy(), batch.row_splits.numpy()
    return [values[a:b] for a, b in itertools.pairwise(bounds)]
  return list(batch.numpy())


def _identifies(name: str, spec: tf.TensorSpec) -> bool:
  """Whether a feature tells examples apart: `id`, `idx`, `idx/query`, ..."""
  named = name in ('id', 'idx', 'gem_id') or name.startswith('idx/')
  return named and spec.shape.rank == 0


@contextlib.contextmanager
def telling_wrong_labels(task: seqio.Task, split: str) -> Iterator[None]:
  """Makes one line of TensorFlow's complaint about a label.

  Args:
    task: what is read.
    split: its split.

  Yields:
    Nothing.

  Raises:
    InputError: if the labels do not fit the label words.
  """
  try:
    yield
  except tf.errors.InvalidArgumentError as e:
    if templates.OUTSIDE not in e.message:
      raise
    said = e.message[e.message.index(templates.OUTSIDE) :].split('\n')[0]
    raise InputError(f'task {task.name!r}, split {split!r}: {said}') from e


@functools.lru_cache(maxsize=32)
def _load(
  task: seqio.Task,
  split: str,
  input_limit: int,
  target_limit: int,
  use_cached: bool,
  data_dir: str,
  vocabulary: str,
) -> _Tokens:
  """Tokenises a split; the last two arguments only tell the results apart."""
  del data_dir, vocabulary
  limits = {'inputs': input_limit, 'targets': target_limit}
  with only_errors():
    ds = task.get_dataset(
      sequence_length=limits,
      split=split,
      use_cached=use_cached,
      shuffle=False,
      trim_output_features=False,
      try_in_mem_cache=False,
    )
  text = 'targets_pretokenized'
  ids = [k for k, v in ds.element_spec.items() if _identifies(k, v)]
  wanted = {'inputs', 'targets', text, *ids}
  ds = ds.map(lambda e: {k: v for k, v in e.items() if k in wanted})
  tokens = _Tokens(ids={name: [] for name in ids})
  # One step of a Python iterator costs as much as tokenising an example.
  bar = loading_bar(task, split)
  with telling_wrong_labels(task, split):
    cut_input, cut_target = (
      functools.partial(batching.cut, limit=limit, end=end)
      for limit, end in zip(limits.values(), end_ids(task), strict=True)
    )
    _tokenise(ds, tokens, text, cut_input, cut_target, bar)
  bar.close()
  log.debug('%s/%s: %d examples', task.name, split, len(tokens.labels))
  return tokens


def _tokenise(
  ds: tf.data.Dataset,
  tokens: _Tokens,
  text: str,
  cut_input: Callable[[np.ndarray], np.ndarray],
  cut_target: Callable[[np.ndarray], np.ndarray],
  bar: tqdm.tqdm,
) -> None:
  """Appends the examples of a data set to the tokens."""
  for batch in ds.ragged_batch(_BLOCK):
    inputs = _rows_of(batch['inputs'])
    targets = _rows_of(batch['targets'])
    tokens.inputs.extend(map(cut_input, inputs))
    tokens.targets.extend(map(cut_target, targets))
    if text in batch:
      tokens.labels.extend(label.decode() for label in batch[text].numpy())
    else:
      tokens.labels.extend(' '.join(map(str, x)) for x in targets)
    for name, values in tokens.ids.items():
      values.extend(batch[name].numpy().tolist())
    bar.update(len(inputs))


class _Stream:
  """One task's endless sequence of examples."""

  def __init__(
    self,
    tokens: _Tokens,
    chosen: list[int] | None,
    row: int,
    seed: tuple[int, ...] | None,
  ):
    self._tokens = tokens
    self._chosen = np.arange(len(tokens.labels)) if chosen is None else chosen
    self._row = row
    self._seed = seed
    self._epoch = -1

  def __len__(self) -> int:
    return len(self._chosen)

  @property
  def longest(self) -> tuple[int, int]:
    """The most input and target tokens that any of its examples has."""
    return (
      max(len(self._tokens.inputs[i]) for i in self._chosen),
      max(len(self._tokens.targets[i]) for i in self._chosen),
    )

  def __getitem__(self, count: int) -> batching.Example:
    """Returns the example that is drawn after `count` others."""
    epoch, place = divmod(count, len(self))
    if self._seed is not None:
      if epoch != self._epoch:
        rng = np.random.default_rng([*self._seed, epoch])
        self._epoch, self._order = epoch, rng.permutation(len(self))
      place = self._order[place]
    index = self._chosen[place]
    return batching.Example(
      self._tokens.inputs[index], self._tokens.targets[index], self._row
    )


class BatchIterator(Iterator[Any]):
  """Endless batches of model features, with a state that can be saved.

  Attributes:
    num_examples: task name -> how many examples it draws from.
    chosen: task name -> the few-shot choice; empty without few-shot.
    taken: task name -> how many of its examples all hosts have drawn.
  """

  def __init__(
    self,
    streams: Mapping[str, _Stream],
    sampler: sampling.TaskSampler,
    chosen: Mapping[str, few_shot.Choice],
    make_packer: functools.partial,
    part: slice,
  ):
    """Use `get_train_iterator`."""
    self.num_examples = {name: len(s) for name, s in streams.items()}
    self.chosen = dict(chosen)
    self._streams = streams
    self._names = list(streams)
    self._sampler = sampler
    self._make_packer = make_packer
    self._part = part
    self._batches = 0
    self._draws = 0
    self.taken = dict.fromkeys(streams, 0)

  def __next__(self) -> dict[str, np.ndarray] | list[dict[str, np.ndarray]]:
    """Returns this host's rows of the next batch: model features, int32.

    In length buckets they come in a list of parts.
    """
    packer = self._make_packer()
    for task in self._sampler.tasks(self._batches, self._draws):
      name = self._names[task]
      # An example that does not fit any more has not been taken: it is the
      # next one of its task.
      if not packer.add(self._streams[name][self.taken[name]]):
        break
      self.taken[name] += 1
      self._draws += 1
    self._batches += 1
    return packer.finish(self._part)

  def get_state(self) -> dict[str, Any]:
    """Returns the position in the stream, fit for JSON; all hosts' is the same.

    Returns:
      `batches`: batches given; `draws`: examples in them; `taken`: the same
      per task.
    """
    return {
      'batches': self._batches,
      'draws': self._draws,
      'taken': dict(self.taken),
    }

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Goes to a position; costs the same wherever it is.

    Args:
      state: from `get_state` of an iterator with the same configuration.

    Raises:
      InputError: if the state belongs to other tasks.
    """
    if set(state['taken']) != set(self.taken):
      raise InputError(
        f'the saved data position is of tasks {sorted(state["taken"])}, '
        f'this run reads {sorted(self.taken)}'
      )
    self._batches = state['batches']
    self._draws = state['draws']
    self.taken = dict(state['taken'])


def get_train_iterator(
  config: DatasetConfig,
  prompt_length: int,
  task_names: tuple[str, ...] | list[str],
  *,
  shard_index: int = 0,
  num_shards: int = 1,
  part_sizes: tuple[int, ...] | None = None,
) -> BatchIterator:
  """Builds the stream of training batches.

  The tasks of a mixture are drawn example by example at the mixture's rates.
  The same configuration gives the same batches, on any machine and any number
  of them.

  Args:
    config: what to read.
    prompt_length: P; 0 for no prompt slots.
    task_names: the model's tasks in row order (PROMPT_TASKS).
    shard_index: which part of each batch to make.
    num_shards: how many parts of consecutive rows a batch has.
    part_sizes: cut each batch by length into parts of so many examples (over
      all hosts), see `buckets`; None pads or packs to the lengths given.

  Returns:
    An iterator that never ends.

  Raises:
    InputError: for unknown names, missing data, a task without a prompt,
      lengths that do not fit, or a batch that hosts cannot share.
  """
  input_length, target_length = check_lengths(
    config.task_feature_lengths, prompt_length
  )
  if config.batch_size % num_shards:
    raise InputError(
      f'BATCH_SIZE={config.batch_size} cannot be shared by {num_shards} '
      'hosts evenly'
    )
  provider = check_data(
    config.mixture_or_task_name,
    config.split,
    config.module,
    config.use_cached,
  )
  check_vocabulary(provider)
  row_of = rows.task_rows(task_names, config.mixture_or_task_name)
  streams: dict[str, _Stream] = {}
  chosen: dict[str, few_shot.Choice] = {}
  for task in seqio.get_subtasks(provider):
    tokens = _load(
      task,
      config.split,
      input_length - prompt_length,
      target_length,
      config.use_cached,
      os.path.abspath(sources.get_data_dir()),
      get_vocabulary().key,
    )
    mine = None
    if config.num_shots is not None:
      chosen[task.name] = few_shot.choose(
        tokens.labels,
        config.num_shots,
        config.seed,
        task.name,
        per_class=config.shots_per_class,
        ids=tokens.ids,
      )
      mine = chosen[task.name].positions
    identity = rows.task_identity(task.name)
    seed = (config.seed, _EXAMPLE_ORDER, identity, 0)
    stream = _Stream(
      tokens, mine, row_of[task.name], seed if config.shuffle else None
    )
    if not len(stream):
      raise InputError(
        f'task {task.name!r}: split {config.split!r} has no examples'
      )
    streams[task.name] = stream
  rates = _rates(provider)
  rows_here = max(part_sizes or (config.batch_size,)) // num_shards
  make = functools.partial(
    BatchIterator,
    streams,
    sampler=sampling.make_sampler(
      config.task_sampling,
      [rates[name] for name in streams],
      config.max_tasks_per_batch,
      (config.seed, _TASK_DRAWS),
    ),
    chosen=chosen,
    part=slice(shard_index * rows_here, (shard_index + 1) * rows_here),
  )
  if part_sizes is None:
    return make(
      make_packer=functools.partial(
        batching.Packer,
        config.batch_size,
        input_length,
        target_length,
        prompt_length,
        config.pack,
      )
    )
  cutting = _choose_buckets(
    make(
      make_packer=functools.partial(_Lengths, config.batch_size, prompt_length)
    ),
    part_sizes,
    np.max([stream.longest for stream in streams.values()], axis=0)
    + [prompt_length, 0],
    (input_length, target_length),
  )
  return make(
    make_packer=functools.partial(
      batching.Bucketer, config.batch_size, prompt_length, cutting
    ),
  )


class _Lengths(batching.Collector):
  """Takes the examples of one batch and returns their lengths."""

  def finish(self, part: slice) -> np.ndarray:
    del part
    return self.lengths()


def _choose_buckets(
  iterator: Iterator[np.ndarray],
  sizes: tuple[int, ...],
  longest: np.ndarray,
  whole: tuple[int, int],
) -> buckets.Buckets:
  """Chooses buckets by the first batches of a run, and says how they fill."""
  batches = list(itertools.islice(iterator, _BATCHES_LOOKED_AT))
  chosen = buckets.choose(batches, sizes, (int(longest[0]), int(longest[1])))
  padded = buckets.grid(sizes[:1], whole[:1], whole[1:])
  log.info(
    'batches are run in parts of %s examples, padded to %s + %s tokens'
    ' (%d shapes): %.0f%% of the positions hold something (%.0f%% if padded'
    ' to %d)',
    _listed(sorted({shape.rows for shape in chosen.shapes})),
    _listed(chosen.inputs),
    _listed(chosen.targets),
    len(chosen.shapes),
    100 * chosen.fill(batches),
    100 * padded.fill(batches),
    whole[0],
  )
  return chosen


def _listed(numbers: Sequence[int]) -> str:
  return '/'.join(map(str, numbers))


def _rates(provider: seqio.Task | seqio.Mixture) -> dict[str, float]:
  if isinstance(provider, seqio.Mixture):
    return {task.name: provider.get_rate(task) for task in provider.tasks}
  return {provider.name: 1.0}
