"""SeqIO's tasks and mixtures, as the rest of the data layer reads them."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import importlib
import inspect
import itertools
import os
import traceback
from typing import Any

import numpy as np

from mpt_jax.checkpoints import texts
from mpt_jax.checkpoints.texts import LABEL, TaskText
from mpt_jax.data import faults, providers, rows, seqio_vocabulary, templates
from mpt_jax.data import sources as sources_lib
from mpt_jax.data.libraries import seqio, tf
from mpt_jax.data.quiet import only_errors
from mpt_jax.data.wording import Wording
from mpt_jax.types import InputError, nearest, prefer_own_packages

# How many examples are read at a time.
_BLOCK = 1024


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
  except InputError as e:
    line = faults.users_line(e)
    if not line or line in str(e):
      raise
    raise InputError(f'{line}: {e}') from e
  except Exception as e:
    name = e.name if isinstance(e, ModuleNotFoundError) else None
    # Of its own: one that it imports in turn may be missing too.
    if name is not None and (module + '.').startswith(name + '.'):
      raise InputError(
        f'MIXTURE_OR_TASK_MODULE={module!r} cannot be imported: there is no '
        f'module {name!r}'
        + ("; `tasks` is mpt_jax's own package: call yours otherwise" * ours)
      ) from None
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


def known() -> list[str]:
  """Returns the names of all registered mixtures and tasks."""
  return [*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()]


def find(name: str) -> 'SeqioTask | None':
  """Returns a registered task; None if there is none of that name."""
  if name not in seqio.TaskRegistry.names():
    return None
  return SeqioTask(seqio.TaskRegistry.get(name))


def get_provider(name: str, others: Sequence[str] = ()) -> 'SeqioProvider':
  """Returns a registered mixture or task.

  Args:
    name: its name.
    others: what could have been meant too.

  Returns:
    The mixture, or else the task, of that name.

  Raises:
    InputError: if there is none; names the nearest ones.
  """
  if name not in known():
    raise InputError(
      f'MIXTURE_OR_TASK_NAME={name!r} is not a registered '
      f'task or mixture{nearest(name, [*known(), *others])} (is the '
      'module that registers it given as MIXTURE_OR_TASK_MODULE?)'
    )
  return SeqioProvider.of(seqio.get_mixture_or_task(name))


@dataclasses.dataclass(frozen=True)
class SeqioProvider(providers.Provider):
  """A SeqIO mixture or task.

  Attributes:
    mixture: itself.
  """

  mixture: Any

  @classmethod
  def of(cls, mixture: seqio.Task | seqio.Mixture) -> 'SeqioProvider':
    """Returns it as the rest of the data layer reads it."""
    tasks = tuple(map(SeqioTask, seqio.get_subtasks(mixture)))
    return cls(mixture.name, tasks, mixture)

  def rates(self) -> dict[str, float]:
    """Returns each task's rate, in any unit.

    Raises:
      InputError: if a rate is no positive number, or a mixture names a task
        twice.
    """
    if not isinstance(self.mixture, seqio.Mixture):
      return super().rates()
    _check_rates(self.mixture, 'train')
    return {t.name: self.mixture.get_rate(t) for t in self.mixture.tasks}

  def check_rates(self, split: str) -> None:
    """Checks the rates; those that are functions for 'train' only."""
    _check_rates(self.mixture, split)


@dataclasses.dataclass(frozen=True)
class SeqioTask(providers.TaskReader):
  """A SeqIO task.

  Attributes:
    task: itself.
  """

  task: Any

  @property
  def name(self) -> str:
    """The task's name."""
    return self.task.name

  @property
  def splits(self) -> Collection[str]:
    """The names of its splits."""
    return self.task.splits

  @property
  def wording(self) -> Wording | None:
    """How its examples are written; None if that is not known."""
    return templates.wording_of(self.task)

  @property
  def label_words(self) -> Sequence[str] | None:
    """The label words that its postprocessor was given, if any."""
    if (words := super().label_words) is not None:
      return words
    postprocess = getattr(self.task, '_postprocess_fn', None)
    if isinstance(postprocess, functools.partial):
      return postprocess.keywords.get('labels')
    return None

  @property
  def knows_itself(self) -> bool:
    """Whether an example says whose it is."""
    return rows.TASK_ID in self.task.output_features

  @property
  def _classes(self) -> list[Any]:
    """Its metrics that are classes; those of functions come after them."""
    objects = self.task.metric_objs
    return list(objects)[: len(objects) - len(self.task.metric_fns)]

  @property
  def metrics(self) -> Sequence[Any]:
    """The functions, or classes, that give its metrics."""
    return [*self._classes, *self.task.metric_fns]

  @property
  def wants(self) -> frozenset[str]:
    """The kinds of output that its metrics ask for."""
    objects = self.task.metric_objs
    return frozenset(metric.model_output_type.name for metric in objects)

  @property
  def is_synthetic(self) -> bool:
    """Whether its DatasetInfo says so, or the source of its rows itself."""
    source = self.task.source
    if isinstance(source, sources_lib.TfdsSource | sources_lib.RecordsSource):
      return source.is_synthetic
    return isinstance(
      source, seqio.TfdsDataSource
    ) and sources_lib.info_is_synthetic(source.tfds_dataset.info)

  @property
  def data_set(self) -> str:
    """What its source says; '' if it says nothing."""
    return getattr(self.task.source, 'data_set', '')

  def vocabulary(self, key: str) -> providers.Vocabulary:
    """Returns what writes its `inputs` or `targets`."""
    return self.task.output_features[key].vocabulary

  def check(self, split: str, use_cached: bool) -> None:
    """Checks that a split can be read; see `TaskReader`."""
    _check(self.task, split, use_cached)

  def check_vocabulary(self) -> None:
    """Checks that its ids are those of the backbone."""
    seqio_vocabulary.check(self.task)

  def naming(self, split: str) -> contextlib.AbstractContextManager[None]:
    """Makes one line of what goes wrong in its own code and data."""
    return naming(self.task, split)

  def size(self, split: str) -> int:
    """Returns how many rows a split has; 0 if that is not known."""
    return self.task.num_input_examples(split) or 0

  def state(self, split: str) -> Any:
    """Returns the data folder, and what changes when its file is edited."""
    source = self.task.source
    state = None
    if isinstance(source, sources_lib.RecordsSource) and split in source.splits:
      state = source.state(split)
    return os.path.abspath(sources_lib.get_data_dir()), state

  def examples(
    self,
    split: str,
    limits: Mapping[str, int],
    use_cached: bool,
    most: int | None = None,
    lean: bool = False,
  ) -> Iterator[dict[str, Any]]:
    """Yields the tokenised examples of a split; see `TaskReader`."""
    with only_errors():
      ds = self.task.get_dataset(
        sequence_length=whole_lengths(self.task, limits),
        split=split,
        use_cached=use_cached,
        shuffle=False,
        trim_output_features=False,
        try_in_mem_cache=False,
      )
    if most is not None:
      ds = ds.take(most)
    yield from _by_blocks(ds) if lean else ds.as_numpy_iterator()

  def score(
    self,
    examples: Sequence[Mapping[str, Any]],
    outputs: Mapping[str, np.ndarray],
    targets: list[Any] | None,
  ) -> providers.Computed:
    """Computes the metrics; what is no number (a text, a plot) is left out."""
    values: dict[str, float] = {}
    functions: dict[str, Callable[..., Any]] = {}
    seen: dict[str, Any] = {}
    features = self.task.output_features
    objects = self.task.metric_objs
    for metric, source in zip(objects, self.metrics, strict=True):
      output = outputs[metric.model_output_type.name]
      collecting = isinstance(metric, seqio.metrics.CollectingMetric)
      order = {}
      if collecting:
        # The defaults are the same, as JAX arrays, and so cost a compilation.
        count = np.arange(len(output), dtype=np.int32)
        order['mask'] = np.ones_like(count)
        order['indices_2d'] = np.stack([np.zeros_like(count), count], axis=1)
      result = metric.from_model_output(examples, output, features, **order)
      if collecting:
        named, used = result.actual_compute(
          examples, features, cached_targets=targets
        )
        targets = used['targets']
      else:
        named, used = result.compute(), {}
      found = providers.numbers(named)
      values |= found
      if found and 'prediction' in used:
        functions |= dict.fromkeys(found, source)
        seen = used
    return providers.Computed(
      values,
      functions,
      targets,
      seen.get('prediction', ()),
      seen.get('output', ()),
    )

  def text(self, split: str) -> TaskText | None:
    """Returns how its texts are written; see `TaskReader`."""
    return _text_of(self.task, split)


def _rows_of(batch: tf.Tensor | tf.RaggedTensor) -> list[np.ndarray]:
  if isinstance(batch, tf.RaggedTensor):
    values, bounds = batch.values.numpy(), batch.row_splits.numpy()
    return [values[a:b] for a, b in itertools.pairwise(bounds)]
  return list(batch.numpy())


def _by_blocks(ds: tf.data.Dataset) -> Iterator[dict[str, Any]]:
  """Yields what training needs of each example.

  One step of a Python iterator costs as much as tokenising an example.
  """
  ids = [
    name
    for name, spec in ds.element_spec.items()
    if providers.identifies(name) and spec.shape.rank == 0
  ]
  texts = [f'{key}_pretokenized' for key in providers.KEYS]
  wanted = [*providers.KEYS, *(t for t in texts if t in ds.element_spec), *ids]
  ds = ds.map(lambda example: {name: example[name] for name in wanted})
  for batch in ds.ragged_batch(_BLOCK):
    columns = [_rows_of(batch[name]) for name in wanted]
    for values in zip(*columns, strict=True):
      yield dict(zip(wanted, values, strict=True))


@contextlib.contextmanager
def naming(task: seqio.Task, split: str) -> Iterator[None]:
  """Makes one line of what goes wrong in a task's own code and data.

  Args:
    task: what is read or scored.
    split: its split.

  Yields:
    Nothing.

  Raises:
    InputError: if the user's own code raised something, or the data are not
      what the task expects; `--debug` shows where.
  """
  with faults.naming(task.name, split):
    try:
      yield
    except InputError:
      raise
    except Exception as e:
      reason = _reason(task, e)
      if reason is None:
        raise
      raise InputError(f'task {task.name!r}, split {split!r}: {reason}') from e


def _reason(task: seqio.Task, error: Exception) -> str | None:
  """What TensorFlow's error says of the data; None if it is another."""
  message = str(getattr(error, 'message', ''))
  if templates.OUTSIDE in message:
    return message[message.index(templates.OUTSIDE) :].split('\n')[0]
  if faults.users_line(error):
    return None
  own = [h for step in task.preprocessors if (h := faults.home(step))]
  trace = ''.join(traceback.format_tb(error.__traceback__))
  mapped = faults.GENERATED in trace
  if own and (mapped or isinstance(error, tf.errors.OpError)):
    return f'{faults.said(error)} (in {", ".join(own)})'
  if isinstance(error, tf.errors.DataLossError | tf.errors.NotFoundError):
    return f'its data cannot be read: {faults.said(error)}'
  return None


def whole_lengths(
  task: seqio.Task, limits: Mapping[str, int]
) -> Mapping[str, int] | None:
  """The lengths to ask a task for, so that it does not cut by itself.

  What it cut could not be counted. A task whose own preprocessors make
  examples of a length (spans of a running text) needs the lengths.

  Args:
    task: the task.
    limits: of `inputs` and `targets`.

  Returns:
    The limits, or None for none.
  """
  for step in task.preprocessors:
    if step is not seqio.preprocessors.append_eos_after_trim:
      if 'sequence_length' in inspect.signature(step).parameters:
        return limits
  return None


def _check(task: seqio.Task, split: str, use_cached: bool) -> None:
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
  if isinstance(source, sources_lib.TfdsSource | sources_lib.RecordsSource):
    source.check(split)
  elif isinstance(source, seqio.TfdsDataSource) and source.tfds_dataset.name:
    if not source.tfds_dataset.data_dir:
      sources_lib.find_dataset(source.tfds_dataset.name)
  if split not in task.splits:
    raise InputError(f'no split {split!r}; it has {sorted(task.splits)}')


def _check_rates(provider: seqio.Task | seqio.Mixture, split: str) -> None:
  """Checks what a mixture says of its tasks.

  Args:
    provider: a mixture, also of mixtures; or a task.
    split: what is read; rates that are functions are asked only for 'train',
      whose size they may need.

  Raises:
    InputError: as `SeqioProvider.rates`.
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
    _check_rates(part, split)
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


def _text_of(task: seqio.Task, split: str) -> TaskText | None:
  steps: list[Any] = []
  for step in task.preprocessors:
    steps += step.steps if isinstance(step, templates.Chain) else [step]
  written = [
    number
    for number, step in enumerate(steps)
    if isinstance(step, functools.partial)
    and step.func is templates.text_to_text
  ]
  if not written or steps[written[0] + 1] is not seqio.preprocessors.tokenize:
    return TaskText()
  [number] = written
  given = steps[number].keywords
  inputs, targets, labels = (given[k] for k in ('inputs', 'targets', 'labels'))
  fields = templates.Template(inputs).fields
  if masked := given.get('masked'):
    fields += texts.masked_template(masked).fields
  columns = dict(given.get('columns') or {})
  if isinstance(task.source, sources_lib.RecordsSource):
    columns |= task.source.renamed
  answer = templates.Template(targets).fields
  # A step before the templates makes other features of the columns.
  raw = number == 0 and _fill_alike(task, split, fields, columns)
  if raw is None:
    return None
  known = raw or (labels is not None and set(answer) <= {LABEL})
  names = {*fields, *answer}
  wording = templates.wording_of(task)
  return TaskText(
    inputs if raw else None,
    targets if known else None,
    labels if labels is None else tuple(labels),
    {k: v for k, v in columns.items() if raw and k in names and k != v},
    masked if raw else None,
    wording.filled if wording and labels is not None else None,
  )


def _fill_alike(
  task: seqio.Task,
  split: str,
  fields: Sequence[str],
  columns: Mapping[str, str],
) -> bool | None:
  """Whether plain values make the same text as the data's own features.

  TensorFlow writes 3.5 as '3.500000' and True as 'true'. None if there are
  no data that could tell.
  """
  if isinstance(task.source, sources_lib.RecordsSource):
    return True  # Its features are text.
  try:
    if split not in task.splits:
      return None
    spec = task.source.get_dataset(split, shuffle=False).element_spec
  except InputError:
    return None
  features = [
    templates.lookup(spec, columns.get(name, name)) for name in fields
  ]
  return not any(
    f.dtype.is_bool or f.dtype.is_floating or f.shape.rank for f in features
  )
