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

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import functools
import hashlib
import importlib
import itertools
import logging
import os
from typing import Any

import numpy as np
import tqdm

from mpt_jax.data import (
  counts,
  faults,
  few_shot,
  labels,
  records,
  rows,
  sampling,
  sources,
  templates,
)
from mpt_jax.data.feature_converter import check_lengths
from mpt_jax.data.libraries import seqio, tf
from mpt_jax.data.quiet import only_errors
from mpt_jax.data.vocabulary import check_vocabulary, end_ids, get_vocabulary
from mpt_jax.engine import batching, buckets
from mpt_jax.types import (
  InputError,
  Lengths,
  Natural,
  Positive,
  nearest,
  prefer_own_packages,
)

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
    allow_cut_targets: whether targets over their length are cut, not refused.
  """

  mixture_or_task_name: str
  task_feature_lengths: Lengths
  batch_size: Positive
  split: str = 'train'
  shuffle: bool = True
  seed: Natural = 0
  pack: bool = False
  use_cached: bool = False
  module: str | None = None
  num_shots: Positive | None = None
  shots_per_class: bool = True
  task_sampling: str = sampling.PROPORTIONAL
  max_tasks_per_batch: Positive | None = None
  # A run that is not refused reads the same examples either way.
  allow_cut_targets: bool = dataclasses.field(default=False, repr=False)

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
  ours = module.partition('.')[0] == 'tasks'
  prefer_own_packages(again=ours)
  try:
    importlib.import_module(module)
  except ModuleNotFoundError as e:
    # A module that it imports in turn may be missing: that is not our input.
    if e.name is None or not (module + '.').startswith(e.name + '.'):
      raise
    raise InputError(
      f'MIXTURE_OR_TASK_MODULE={module!r} cannot be imported: there is no '
      f'module {e.name!r}'
      + ("; `tasks` is mpt_jax's own package: call yours otherwise" * ours)
    ) from None
  except InputError:
    raise
  except Exception as e:
    line = faults.users_line(e)
    where = f'{line}: ' if line else ''
    mixture = _unfinished_mixture(e)
    # What SeqIO says of a mixture of an unknown task.
    said, _, name = str(e).partition('not registered: ')
    if said and name:
      known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
      raise InputError(
        f'{where}a mixture of module {module!r} names {name!r}, which is no'
        f' registered task{nearest(name, known)}'
      ) from e
    if mixture and 'need a rate' in str(e):
      raise InputError(
        f'{where}mixture {mixture["name"]!r}: {mixture["t"]!r} has no rate;'
        f" give it as ('{mixture['t']}', 1.0), or one default_rate for all"
      ) from e
    if not line:
      raise
    raise InputError(
      f'MIXTURE_OR_TASK_MODULE={module!r}: {line}: {faults.said(e)}'
    ) from e


def _unfinished_mixture(error: Exception) -> Mapping[str, Any] | None:
  """The names in SeqIO's constructor of a mixture, if it failed in there."""
  trace = error.__traceback__
  while trace is not None:
    known = trace.tb_frame.f_locals
    if isinstance(known.get('self'), seqio.Mixture) and 't' in known:
      return known
    trace = trace.tb_next
  return None


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
      with faults.naming(task, split):
        _check_task(task, split, use_cached)
    except InputError as e:
      if str(e).startswith(f'task {task.name!r}'):
        raise
      raise InputError(f'task {task.name!r}: {e}') from e
  check_rates(provider, split)
  return provider


def check_labels(
  provider: seqio.Task | seqio.Mixture, target_length: int
) -> None:
  """Checks that a model can say the label words of what a run reads.

  Args:
    provider: a mixture or task.
    target_length: T.

  Raises:
    InputError: see `labels.check_writable`.
  """
  for task in seqio.get_subtasks(provider):
    if wording := templates.wording_of(task):
      labels.check_writable(
        wording.answers,
        task.output_features['targets'].vocabulary,
        target_length,
        task.name,
      )


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
    watch: their lengths before any cut, and which have a label.
  """

  watch: counts.Watch
  inputs: list[np.ndarray] = dataclasses.field(default_factory=list)
  targets: list[np.ndarray] = dataclasses.field(default_factory=list)
  labels: list[str] = dataclasses.field(default_factory=list)
  ids: dict[str, list[Any]] = dataclasses.field(default_factory=dict)

  def digest(self, chosen: Iterable[int]) -> str:
    """Returns the digest of the chosen examples."""
    return digest(
      part
      for i in chosen
      for part in (self.inputs[i], self.targets[i], self.labels[i])
    )


def digest(values: Iterable[Any]) -> str:
  """Returns 'sha256:…' of texts, numbers and arrays, in their order.

  Args:
    values: str, bytes, or what NumPy takes.
  """
  found = hashlib.sha256()
  for value in values:
    if not isinstance(value, bytes | str):
      array = np.asarray(value)
      value = (
        repr(array.tolist()) if array.dtype.kind in 'OSU' else array.tobytes()
      )
    content = value.encode() if isinstance(value, str) else value
    # Its length tells 'ab', 'c' from 'a', 'bc'.
    found.update(b'%d ' % len(content))
    found.update(content)
  return f'sha256:{found.hexdigest()}'


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


def source_state(task: seqio.Task, split: str) -> Any:
  """Returns what changes when a task's file is edited; None if unknown."""
  source = task.source
  known = isinstance(source, records.RecordsSource) and split in source.splits
  return source.state(split) if known else None


@functools.lru_cache(maxsize=32)
def _load(
  task: seqio.Task,
  split: str,
  input_limit: int,
  target_limit: int,
  use_cached: bool,
  data_dir: str,
  vocabulary: str,
  state: Any,
) -> _Tokens:
  """Tokenises a split; the last three arguments tell the results apart."""
  del data_dir, vocabulary, state
  limits = {'inputs': input_limit, 'targets': target_limit}
  with only_errors(), faults.naming(task, split):
    ds = task.get_dataset(
      sequence_length=counts.whole_lengths(task, limits),
      split=split,
      use_cached=use_cached,
      shuffle=False,
      trim_output_features=False,
      try_in_mem_cache=False,
    )
  ids = [k for k, v in ds.element_spec.items() if _identifies(k, v)]
  wanted = {*limits, *(f'{key}_pretokenized' for key in limits), *ids}
  ds = ds.map(lambda e: {k: v for k, v in e.items() if k in wanted})
  tokens = _Tokens(counts.Watch(task), ids={name: [] for name in ids})
  # One step of a Python iterator costs as much as tokenising an example.
  bar = loading_bar(task, split)
  with faults.naming(task, split):
    ends = end_ids(task)
    _tokenise(ds, tokens, input_limit, target_limit, ends, bar)
  bar.close()
  log.debug('%s/%s: %d examples', task.name, split, len(tokens.labels))
  found = tokens.watch.count((input_limit, target_limit))
  for line in counts.lines(
    f'{task.name}/{split}', found, (input_limit, target_limit), 'trained on'
  ):
    log.warning(line)
  if found.absent:
    log.warning(
      '%s/%s: no example of class %s',
      task.name,
      split,
      ', '.join(map(repr, found.absent)),
    )
  return tokens


def _tokenise(
  ds: tf.data.Dataset,
  tokens: _Tokens,
  input_limit: int,
  target_limit: int,
  ends: tuple[int, int],
  bar: tqdm.tqdm,
) -> None:
  """Appends the examples of a data set to the tokens."""
  for batch in ds.ragged_batch(_BLOCK):
    inputs = _rows_of(batch['inputs'])
    targets = _rows_of(batch['targets'])
    tokens.inputs.extend(batching.cut(x, input_limit, ends[0]) for x in inputs)
    tokens.targets.extend(
      batching.cut(x, target_limit, ends[1]) for x in targets
    )
    texts = [
      batch[f'{key}_pretokenized'].numpy()
      if f'{key}_pretokenized' in batch
      else [None] * len(inputs)
      for key in ('inputs', 'targets')
    ]
    for source, target, *pair in zip(inputs, targets, *texts, strict=True):
      tokens.watch.add(len(source), len(target), *pair)
    tokens.labels.extend(
      ' '.join(map(str, target)) if text is None else text.decode()
      for target, text in zip(targets, texts[1], strict=True)
    )
    for name, values in tokens.ids.items():
      values.extend(batch[name].numpy().tolist())
    bar.update(len(inputs))


class _Stream:
  """One task's endless sequence of examples."""

  def __init__(
    self,
    tokens: _Tokens,
    chosen: Sequence[int],
    row: int,
    seed: tuple[int, ...] | None,
  ):
    self._tokens = tokens
    self._chosen = chosen
    self._row = row
    self._seed = seed
    self._epoch = -1

  def __len__(self) -> int:
    return len(self._chosen)

  def digest(self) -> str:
    return self._tokens.digest(self._chosen)

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
    counts: task name -> what of its split is cut, hidden or empty.
  """

  def __init__(
    self,
    streams: Mapping[str, _Stream],
    sampler: sampling.TaskSampler,
    chosen: Mapping[str, few_shot.Choice],
    known: Mapping[str, counts.Counts],
    make_packer: functools.partial,
    part: slice,
  ):
    """Use `get_train_iterator`."""
    self.num_examples = {name: len(s) for name, s in streams.items()}
    self.chosen = dict(chosen)
    self.counts = dict(known)
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

  def digests(self) -> dict[str, dict[str, Any]]:
    """Returns task name -> {'examples': how many, 'digest': of them all}."""
    return {
      name: {'examples': len(stream), 'digest': stream.digest()}
      for name, stream in self._streams.items()
    }

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
  check_labels(provider, target_length)
  streams: dict[str, _Stream] = {}
  chosen: dict[str, few_shot.Choice] = {}
  known: dict[str, counts.Counts] = {}
  limits = input_length - prompt_length, target_length
  for task in seqio.get_subtasks(provider):
    tokens = _load(
      task,
      config.split,
      *limits,
      config.use_cached,
      os.path.abspath(sources.get_data_dir()),
      get_vocabulary().key,
      source_state(task, config.split),
    )
    mine = _choose_examples(config, task, tokens, chosen)
    known[task.name] = tokens.watch.count(limits)
    counts.refuse_cut_targets(
      task.name,
      config.split,
      0
      if config.allow_cut_targets
      else sum(tokens.watch.targets[i] > target_length for i in mine),
      known[task.name],
      target_length,
    )
    identity = rows.task_identity(task.name)
    seed = (config.seed, _EXAMPLE_ORDER, identity, 0)
    streams[task.name] = _Stream(
      tokens, mine, row_of[task.name], seed if config.shuffle else None
    )
  rates = mixing_rates(provider)
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
    known=known,
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


def _choose_examples(
  config: DatasetConfig,
  task: seqio.Task,
  tokens: _Tokens,
  chosen: dict[str, few_shot.Choice],
) -> Sequence[int]:
  """Returns which examples of a task to train on; notes a few-shot choice."""
  name, split = task.name, config.split
  if not tokens.labels:
    raise InputError(f'task {name!r}: split {split!r} has no examples')
  labelled = tokens.watch.labelled
  if not labelled:
    raise InputError(
      f'task {name!r}: none of the {len(tokens.labels):,} examples of split'
      f' {split!r} has a label (they are absent, empty or negative), so there'
      ' is nothing to train on; mpt_jax.infer answers them'
    )
  if config.num_shots is None:
    return labelled
  choice = few_shot.choose(
    [tokens.labels[i] for i in labelled],
    config.num_shots,
    config.seed,
    name,
    per_class=config.shots_per_class,
    ids={key: [v[i] for i in labelled] for key, v in tokens.ids.items()},
  )
  positions = [labelled[i] for i in choice.positions]
  chosen[name] = dataclasses.replace(choice, positions=positions)
  return positions


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


def mixing_rates(provider: seqio.Task | seqio.Mixture) -> dict[str, float]:
  """Returns each task's rate, in any unit.

  Args:
    provider: a mixture or task.

  Returns:
    Task name -> rate, by the names.

  Raises:
    InputError: if a rate is no positive number, or a mixture names a task
      twice.
  """
  if not isinstance(provider, seqio.Mixture):
    return {provider.name: 1.0}
  check_rates(provider)
  return {task.name: provider.get_rate(task) for task in provider.tasks}


def check_rates(
  provider: seqio.Task | seqio.Mixture, split: str = 'train'
) -> None:
  """Checks what a mixture says of its tasks.

  Args:
    provider: a mixture, also of mixtures; or a task.
    split: what is read; rates that are functions are asked only for 'train',
      whose size they may need.

  Raises:
    InputError: as `mixing_rates`.
  """
  if not isinstance(provider, seqio.Mixture):
    return
  what = f'mixture {provider.name!r}'
  direct = [task.name for task in (*provider._tasks, *provider._sub_mixtures)]
  for name, stated in provider.rate_per_task_name.items():
    if direct.count(name) > 1:
      raise InputError(
        f'{what} names {name!r} {direct.count(name)} times: of its rates only'
        ' the last would count; name it once'
      )
    part = provider._task_map[name]
    check_rates(part, split)
    if callable(stated) and split != 'train':
      continue
    try:
      rate = float(stated(part) if callable(stated) else stated)
    except Exception as e:
      line = faults.users_line(e)
      where = f' at {line}' if line else ''
      raise InputError(
        f'{what}: the rate of {name!r} cannot be told{where}: {faults.said(e)};'
        ' give a number'
      ) from e
    if not 0 < rate < np.inf:
      never = ', so it would never be drawn' if rate == 0 else ''
      raise InputError(
        f'{what}: the rate of {name!r} is {rate:g}{never}; a rate is a number'
        ' above 0'
      )
