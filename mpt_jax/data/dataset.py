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
import itertools
import logging
from typing import Any

import numpy as np
import tqdm

from mpt_jax.data import (
  candidates,
  counts,
  few_shot,
  lookup,
  rows,
  sampling,
)
from mpt_jax.data.providers import KEYS, Provider, TaskReader, identifies
from mpt_jax.data.vocabulary import CHOSEN
from mpt_jax.engine import batching, buckets
from mpt_jax.types import InputError, Lengths, Names, Natural, Positive

log = logging.getLogger(__name__)

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
    mixture_or_task_name: a registered SeqIO mixture or task, or a task in
      memory; a list of tasks is a mixture with equal rates.
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

  mixture_or_task_name: str | Names
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
    if not isinstance(self.mixture_or_task_name, str):
      names = tuple(self.mixture_or_task_name)
      object.__setattr__(self, 'mixture_or_task_name', names)
    if self.batch_size < 1:
      raise InputError(f'BATCH_SIZE={self.batch_size} must be positive')
    if self.seed < 0:
      raise InputError(f'the data seed {self.seed} must not be negative')


def check_lengths(
  task_feature_lengths: Mapping[str, int], prompt_length: int
) -> tuple[int, int]:
  """Checks TASK_FEATURE_LENGTHS against the prompt length.

  Args:
    task_feature_lengths: `inputs` (prompt slots included) and `targets`.
    prompt_length: P; 0 for a model without prompts.

  Returns:
    (S, T): encoder and decoder length.

  Raises:
    InputError: if a length is missing, or if no token and end mark fit beside
      the prompt.
  """
  for key in ('inputs', 'targets'):
    length = task_feature_lengths.get(key)
    if not isinstance(length, int) or length < 1:
      raise InputError(
        f'TASK_FEATURE_LENGTHS={dict(task_feature_lengths)} must give a '
        f"positive length for {key!r}, as in {{'inputs': 256, 'targets': 8}}"
      )
  # A token of the text, and the end mark.
  if task_feature_lengths['inputs'] < prompt_length + 2:
    raise InputError(
      f"TASK_FEATURE_LENGTHS['inputs']={task_feature_lengths['inputs']} "
      f'leaves no room beside the prompt (PROMPT_LENGTH={prompt_length}): '
      'it counts the prompt slots and the end mark too, so it must be at '
      f'least {prompt_length + 2}, and more for any real text'
    )
  return task_feature_lengths['inputs'], task_feature_lengths['targets']


@dataclasses.dataclass(frozen=True)
class _Tokens:
  """A tokenised split.

  Attributes:
    inputs: the input tokens of each example.
    targets: likewise.
    labels: the target texts.
    more: of an encoder's examples, the classes and weights of `targets`.
    ids: name of an identifying feature (`idx`, `id`) -> its values.
    watch: their lengths before any cut, and which have a label.
  """

  watch: counts.Watch
  inputs: list[np.ndarray] = dataclasses.field(default_factory=list)
  targets: list[np.ndarray] = dataclasses.field(default_factory=list)
  labels: list[str] = dataclasses.field(default_factory=list)
  more: list[dict[str, np.ndarray]] = dataclasses.field(default_factory=list)
  ids: dict[str, list[Any]] = dataclasses.field(default_factory=dict)

  def add(
    self,
    example: Mapping[str, Any],
    limits: tuple[int, int],
    ends: tuple[int, int],
    mask: int | None,
  ) -> None:
    """Takes an example, cut to its lengths with the end marks."""
    inputs, targets = (example[key] for key in KEYS)
    self.inputs.append(batching.cut(inputs, limits[0], ends[0], mask))
    self.targets.append(batching.cut(targets, limits[1], ends[1]))
    if candidates.CLASSES in example:
      names = candidates.CLASSES, candidates.WEIGHTS
      self.more.append({name: example[name] for name in names})
    self.watch.see(example)
    text = example.get('targets_pretokenized')
    self.labels.append(
      ' '.join(map(str, targets)) if text is None else text.decode()
    )
    for name, value in example.items():
      if identifies(name):
        plain = value.tolist() if isinstance(value, np.generic) else value
        self.ids.setdefault(name, []).append(plain)

  def example(self, index: int, row: int) -> batching.Example:
    """Returns an example for a batch, of a row of the prompt table."""
    features = {'inputs': self.inputs[index], 'targets': self.targets[index]}
    more = self.more[index] if self.more else {}
    return candidates.example({**features, **more}, row)

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


def loading_bar(task: TaskReader, split: str) -> tqdm.tqdm:
  """Returns a progress bar for reading a split; silent for a small one."""
  total = task.size(split)
  return tqdm.tqdm(
    desc=f'reading {task.name}/{split}',
    total=total,
    unit='ex',
    leave=False,
    disable=total < _LARGE,
  )


@functools.lru_cache(maxsize=32)
def _load(
  task: TaskReader,
  split: str,
  limits: tuple[int, int],
  use_cached: bool,
  vocabulary: str,
  state: Any,
) -> _Tokens:
  """Tokenises a split; the last two arguments tell the results apart."""
  del vocabulary, state
  lengths = dict(zip(KEYS, limits, strict=True))
  tokens = _Tokens(counts.Watch(task.wording))
  bar = loading_bar(task, split)
  with task.naming(split):
    ends = task.end_ids()
    mask = CHOSEN.mask_id
    for example in candidates.read(task, split, lengths, use_cached, lean=True):
      tokens.add(example, limits, ends, mask)
      bar.update()
  bar.close()
  log.debug('%s/%s: %d examples', task.name, split, len(tokens.labels))
  found = tokens.watch.count(limits)
  for line in counts.lines(f'{task.name}/{split}', found, limits, 'trained on'):
    log.warning(line)
  if found.absent:
    log.warning(
      '%s/%s: no example of class %s',
      task.name,
      split,
      ', '.join(map(repr, found.absent)),
    )
  return tokens


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
    return self._tokens.example(index, self._row)


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
  provider = lookup.check_data(
    config.mixture_or_task_name,
    config.split,
    config.module,
    config.use_cached,
  )
  lookup.check_vocabulary(provider)
  row_of = rows.rows_of(task_names, provider)
  lookup.check_labels(provider, target_length, prompt_length)
  limits = input_length - prompt_length, target_length
  streams, chosen, known = _open_streams(config, provider, row_of, limits)
  rates = provider.rates()
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


def _open_streams(
  config: DatasetConfig,
  provider: Provider,
  row_of: Mapping[str, int],
  limits: tuple[int, int],
) -> tuple[
  dict[str, _Stream], dict[str, few_shot.Choice], dict[str, counts.Counts]
]:
  """By task: its stream, its few-shot choice if any, and what is cut of it."""
  streams: dict[str, _Stream] = {}
  chosen: dict[str, few_shot.Choice] = {}
  known: dict[str, counts.Counts] = {}
  for task in provider.tasks:
    tokens = _load(
      task,
      config.split,
      limits,
      config.use_cached,
      CHOSEN.key,
      task.state(config.split),
    )
    mine = _choose_examples(config, task, tokens, chosen)
    known[task.name] = tokens.watch.count(limits)
    counts.refuse_cut_targets(
      task.name,
      config.split,
      0
      if config.allow_cut_targets
      else sum(tokens.watch.targets[i] > limits[1] for i in mine),
      known[task.name],
      limits[1],
    )
    identity = rows.task_identity(task.name)
    seed = (config.seed, _EXAMPLE_ORDER, identity, 0)
    streams[task.name] = _Stream(
      tokens, mine, row_of[task.name], seed if config.shuffle else None
    )
  return streams, chosen, known


def _choose_examples(
  config: DatasetConfig,
  task: TaskReader,
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
