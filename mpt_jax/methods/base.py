"""What a method is: what is learned, and where it enters the forward pass.

A method is a frozen dataclass of its settings. It holds no arrays: those live
in a parameter tree beside the backbone's, in one branch that says by which of
two seams they enter.

`prompts`, the encoder's input: `prompt_table` composes one prompt for every
task from them, and the batch says which position takes which vector. A
`PromptsByExample` makes one for every example of the batch instead.

`delta`, the network: their names are those of the backbone's own modules
('encoder/layers_0/mlp/gain'), and `intercept` is called in place of every
method of every module of the backbone. It finds the arrays of the module that
it wraps in the collection `delta`. So the backbone knows no method; jit,
gradients, remat, scans, caches and meshes need no case of their own.

A method with neither trains the backbone itself.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import hashlib
import math
from typing import Any, ClassVar, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mpt_jax.methods.initializers import WORDS, PromptInit, Tokenize, Uniform
from mpt_jax.types import Array, InputError, Positive, nearest

PROMPTS, DELTA = 'prompts', 'delta'
# How a run starts from a source with several tasks: from all of them, from
# the one that retrieval picks (`mpt_jax.transfer`), or from the one named.
AVERAGE, NEAREST, TASK = 'average', 'nearest', 'task:'
# Formats of `mpt_jax.export`.
BUNDLE = 'bundle'
# Of the variance in a layer norm.
_EPSILON = 1e-5
NO_T5X = {'t5x': 'the T5X engine trains prompts; use mpt_jax.train'}


@dataclasses.dataclass(frozen=True)
class Start:
  """What start values may be made of.

  Attributes:
    key: random key.
    stage: of the run, '' if there is none.
    embedding: [V, D], the backbone's, or None.
    tokenize: text -> ids without end mark, or None.
    source: the bundle to start from, or None.
    path: where that was, for messages.
    source_task: which of its tasks to start from; None is the whole.
  """

  key: Array
  stage: str = ''
  embedding: Any = None
  tokenize: Tokenize | None = None
  source: Any = None
  path: str = ''
  source_task: str | None = None


@dataclasses.dataclass(frozen=True)
class Width:
  """Of a backbone's sizes, all that prompts must know."""

  emb_dim: int


@dataclasses.dataclass(frozen=True)
class Method:
  """What all methods say of themselves; `PromptMethod` and `Delta` say how.

  Class attributes:
    name: in gin files, bundles and messages.
    title: in tables and plots.
    paper: where it was published.
    branch: 'prompts' or 'delta'; None trains the backbone.
    arrays: the names in its branch, where no backbone changes them; the first
      is [P, D], or [K, P, D].
    per_task: whether each task of a run has parameters of its own.
    together: whether KEEP_BEST keeps one step for all tasks of a run.
    foreign_source: whether what a run starts from are prompts of another
      backbone, one for each of its tasks; else they are refused.
    groups: (name pattern in the branch, which rate it takes), all of them;
      the rate is 'learning_rate' or 'task_learning_rate'.
    rates: stage -> the two rates, as its paper or its code has them.
    formats: what `mpt_jax.export` can write of it.
    cannot: what it cannot do ('pack', 'scan', 'mix', 't5x') -> the reason.
    peft_type: PEFT's word for it; '' where PEFT has none.
    no_matrix: why no file of a prompt matrix can hold it; '' where one can.
  """

  name: ClassVar[str]
  title: ClassVar[str]
  paper: ClassVar[str]
  branch: ClassVar[str | None] = None
  arrays: ClassVar[tuple[str, ...]] = ()
  per_task: ClassVar[bool] = False
  together: ClassVar[bool] = False
  foreign_source: ClassVar[bool] = False
  groups: ClassVar[tuple[tuple[str, str], ...]] = (('.*', 'learning_rate'),)
  rates: ClassVar[Mapping[str, tuple[float, float | None]]]
  formats: ClassVar[tuple[str, ...]] = (BUNDLE,)
  cannot: ClassVar[Mapping[str, str]] = {}
  peft_type: ClassVar[str] = ''
  no_matrix: ClassVar[str] = 'what it has learned is inside the network'

  @property
  def prompt_length(self) -> int:
    """P, the slots in front of an input; 0 for none."""
    return 0

  @property
  def settings(self) -> dict[str, Any]:
    """What a bundle must hold beside the arrays to make the method again."""
    return {}

  @property
  def drops(self) -> bool:
    """Whether training draws dropout of the method's own."""
    return False

  @property
  def trainable(self) -> tuple[str, ...]:
    """Patterns of the whole names of what trains."""
    return ('.*',) if self.branch is None else (f'{self.branch}/.*',)

  @property
  def picks(self) -> bool:
    """Whether someone must say which task of a source is the nearest."""
    return False

  def picked(self, task: str) -> 'Method':
    """Returns the method once that was said."""
    del task
    return self

  def of_source(self, read: Callable[[], Any]) -> 'Method':
    """Returns the method with what it must know of what a run starts from.

    Args:
      read: reads the bundle to start from, of the tasks that are named; None
        where there is none.
    """
    del read
    return self

  def shapes(self, config: Any, num_tasks: int) -> dict[str, tuple[int, ...]]:
    """Returns name in the branch -> shape of every array of a bundle.

    All are learned, but for those that `trainable` leaves out.

    Args:
      config: the backbone's sizes.
      num_tasks: K.
    """
    del config, num_tasks
    return {}

  def num_parameters(self, config: Any, num_tasks: int) -> int:
    """Returns how many numbers are learned: a formula, where there is one."""
    shapes = self.shapes(config, num_tasks).values()
    return sum(math.prod(shape) for shape in shapes)

  def initial(
    self, config: Any, num_tasks: int, start: Start
  ) -> dict[str, Array]:
    """Returns the start values of `shapes`, float32.

    Args:
      config: the backbone's sizes.
      num_tasks: K.
      start: what they may be made of.

    Raises:
      InputError: if something that they need is missing or does not fit.
    """
    del config, num_tasks, start
    return {}

  def started(
    self, config: Any, num_tasks: int, start: Start
  ) -> dict[str, Array]:
    """As `initial`, which looks for a source itself where it can use one."""
    return self.initial(config, num_tasks, start)

  def fresh(self, config: Any, num_tasks: int, key: Array) -> dict[str, Array]:
    """Start values that need nothing but a key."""
    return self.initial(config, num_tasks, Start(key))

  def product(
    self, arrays: Mapping[str, Any], config: Any
  ) -> tuple['Method', dict[str, Any]]:
    """Returns what a bundle holds of a run's arrays.

    Args:
      arrays: what was trained.
      config: the backbone's sizes.

    Returns:
      The method that the bundle names, this one if all of it is kept, and its
      arrays.
    """
    del config
    return self, dict(arrays)

  def prompt_table(
    self, arrays: Mapping[str, Any], num_tasks: int
  ) -> Array | None:
    """Composes the prompts [K, P, D] float32 of all tasks; None without."""
    del arrays, num_tasks
    return None

  def size_of(self, arrays: Mapping[str, Any]) -> tuple[int, int]:
    """(P, D), of the arrays of a method of the first seam."""
    length, width = arrays[self.arrays[0]].shape[-2:]
    return length, width

  def select(
    self, arrays: Mapping[str, Any], rows: Sequence[int]
  ) -> dict[str, Any]:
    """Returns the arrays of some of the tasks, by their rows."""
    del rows
    return dict(arrays)

  def rows(self, task_names: Sequence[str] | None) -> tuple[str, ...]:
    """The tasks whose examples a batch tells apart, of those of a run."""
    return tuple(task_names or ()) if self.branch else ()

  def check_can(self, **wanted: Any) -> None:
    """Refuses what the method cannot do.

    Args:
      **wanted: 'pack', 'bucket', 'scan', 'mix' or 't5x' -> whether the run
        does it.

    Raises:
      InputError: names the method and the reason.
    """
    for what, wants in wanted.items():
      if wants and what in self.cannot:
        raise InputError(f'method {self.name!r}: {self.cannot[what]}')


@dataclasses.dataclass(frozen=True)
class PromptMethod(Method):
  """A method of the first seam.

  Attributes:
    length: P, the number of prompt vectors.
    init: how the [P, D] prompt starts when no source prompts are given.
    start: what becomes of a source's tasks, one of `starts` or 'task:NAME';
      None is for a source of one.
  """

  branch: ClassVar[str | None] = PROMPTS
  no_matrix: ClassVar[str] = ''
  # Our names -> PEFT's.
  peft_names: ClassVar[Mapping[str, str]] = {}
  starts: ClassVar[tuple[str, ...]] = (AVERAGE, NEAREST)

  length: Positive = 100
  init: PromptInit = dataclasses.field(
    default=WORDS, kw_only=True, compare=False
  )
  start: str | None = dataclasses.field(
    default=None, kw_only=True, compare=False
  )

  def __post_init__(self):
    if self.length < 1:
      raise InputError(f'PROMPT_LENGTH = {self.length} must be at least 1')
    start = self.start
    if start is not None and start not in self.starts:
      if not start.startswith(TASK):
        raise InputError(
          f'START = {start!r}, expected one of {", ".join(self.starts)} or'
          f" '{TASK}NAME'{nearest(start, self.starts)}"
        )

  @property
  def picks(self) -> bool:
    """See `Method.picks`."""
    return self.start == NEAREST

  def picked(self, task: str) -> 'PromptMethod':
    """See `Method.picked`."""
    return dataclasses.replace(self, start=f'{TASK}{task}')

  def _start_task(self, start: Start) -> str | None:
    """The one task of a source to start from; None is all.

    Raises:
      InputError: if that has still to be picked.
    """
    if start.source_task is not None:
      return start.source_task
    if self.picks:
      raise InputError(
        f'START = {NEAREST!r} needs something that says which source task is'
        f" the nearest: give '{TASK}NAME', one of"
        f' {", ".join(start.source.task_names)}'
      )
    if self.start is None or not self.start.startswith(TASK):
      return None
    return self.start.removeprefix(TASK)

  @property
  def prompt_length(self) -> int:
    """P."""
    return self.length

  def fresh(self, config: Any, num_tasks: int, key: Array) -> dict[str, Array]:
    """As `Method.fresh`: the prompt is uniform in [-0.5, 0.5]."""
    drawn = dataclasses.replace(self, init=Uniform())
    return drawn.initial(config, num_tasks, Start(key))

  @classmethod
  def sized(cls, length: int, rank: int) -> 'PromptMethod':
    """Returns the method of these sizes.

    Args:
      length: P.
      rank: R; 0 for none.

    Raises:
      ValueError: if it has no such size.
    """
    if rank:
      raise ValueError(f'rank is {rank}, but a plain prompt has none')
    return cls(length)

  @classmethod
  def compose(cls, arrays: Mapping[str, Any], num_tasks: int) -> np.ndarray:
    """As `prompt_table`, of host arrays and on the host."""
    raise NotImplementedError

  @classmethod
  def num_tasks(cls, arrays: Mapping[str, Any]) -> int:
    """K, of the arrays of a method with something per task."""
    raise NotImplementedError

  @classmethod
  def rank_of(cls, arrays: Mapping[str, Any]) -> int:
    """R, of the arrays; 0 for none."""
    del arrays
    return 0


@dataclasses.dataclass(frozen=True)
class Sets(Method):
  """A method whose arrays are sets: every one has one axis more in front.

  It is of size K where each task has its own, of size 1 where all share one.
  """

  @property
  def settings(self) -> dict[str, Any]:
    """See `Method.settings`; what is left out of comparisons is left out."""
    fields = [f for f in dataclasses.fields(self) if f.compare]
    return {f.name: getattr(self, f.name) for f in fields}

  def select(
    self, arrays: Mapping[str, Any], rows: Sequence[int]
  ) -> dict[str, Any]:
    """See `Method.select`."""
    return {
      name: array if array.shape[0] == 1 else array[np.asarray(rows)]
      for name, array in arrays.items()
    }


class Inputs(NamedTuple):
  """The inputs of a batch's examples, as `PromptsByExample` sees them.

  A position is a token, padding, or a prompt's slot, which is neither.

  Attributes:
    embedded: [B, S, D] the backbone's embeddings of all positions.
    is_token: [B, S] bool.
    is_padding: [B, S] bool.
    rows: [B] int32, the task of each example.
  """

  embedded: Array
  is_token: Array
  is_padding: Array
  rows: Array


@dataclasses.dataclass(frozen=True)
class PromptsByExample(Sets):
  """A method of the first seam with a prompt of its own for each example."""

  branch: ClassVar[str | None] = PROMPTS
  cannot: ClassVar[Mapping[str, str]] = {
    't5x': 'the T5X engine has one prompt a task; use mpt_jax.train',
    'pack': (
      "it makes a prompt for each row of a batch: give PADDING = 'bucket'"
    ),
  }
  no_matrix: ClassVar[str] = 'each input has a prompt of its own'

  def example_prompts(self, arrays: Mapping[str, Any], inputs: Inputs) -> Array:
    """Makes the prompt of each example of a batch.

    Args:
      arrays: the method's.
      inputs: the examples.

    Returns:
      [B, P, D] float32.
    """
    raise NotImplementedError

  def example_weights(self, arrays: Mapping[str, Any], inputs: Inputs) -> Array:
    """Returns what each example's prompt is made of: [B, N] float32.

    Args:
      arrays: the method's.
      inputs: the examples.
    """
    raise NotImplementedError

  @property
  def weighed(self) -> tuple[str, ...]:
    """What the N weights of an example are of."""
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Delta(Sets):
  """A method of the second seam.

  Its arrays are sets (`Sets`). An interceptor sees 1 or, taken by the
  examples' tasks, B on their first axis (`learned`).

  Attributes:
    shared: whether all tasks of a run share one set; else each has its own.
  """

  branch: ClassVar[str | None] = DELTA
  cannot: ClassVar[Mapping[str, str]] = NO_T5X

  shared: bool = dataclasses.field(default=False, kw_only=True)

  def sets(self, num_tasks: int) -> int:
    """K, or 1 where all tasks share one set."""
    return 1 if self.shared else num_tasks

  def started(
    self, config: Any, num_tasks: int, start: Start
  ) -> dict[str, Array]:
    """See `Method.started`: what a source has learned, if there is one."""
    make = self.initial if start.source is None else self.from_source
    return make(config, num_tasks, start)

  def from_source(
    self, config: Any, num_tasks: int, start: Start
  ) -> dict[str, Array]:
    """Returns the start values of `shapes` that a source has learned.

    Args:
      config: the backbone's sizes.
      num_tasks: K; all start from the same.
      start: with its source.

    Raises:
      InputError: if that is of another method or settings, or has several
        tasks of which none is named.
    """
    source = start.source
    where = f'SOURCE_PROMPTS {start.path!r}'
    told = {'method': self.name, **self.settings, 'shared': None}
    other = {'method': source.method, **source.settings, 'shared': None}
    for name in {**told, **other}:
      if told.get(name) != other.get(name):
        raise InputError(
          f'{where} has {name} {other.get(name)!r}, and this run'
          f' {told.get(name)!r}: {self.name} starts from the same or from none'
        )
    if start.source_task is None and source.per_task:
      raise InputError(
        f'{where} has a set for each task: name one of'
        f' {", ".join(source.task_names)} as SOURCE_TASK'
      )
    arrays = self.select(source.arrays, [source.row(start.source_task)])
    return {
      name: jnp.repeat(jnp.asarray(arrays[name]), shape[0], axis=0)
      for name, shape in self.shapes(config, num_tasks).items()
    }

  def check_can(self, **wanted: Any) -> None:
    """See `Method.check_can`."""
    super().check_can(**wanted)
    if wanted.get('pack') and wanted.get('mix') and not self.shared:
      raise InputError(
        f'method {self.name!r}: a packed row would mix examples of several'
        " tasks, of which each has its own set: give PADDING = 'bucket', or"
        ' share one set'
      )

  def laid_out(self, arrays: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Returns the arrays by the names of the backbone's modules.

    They are what `intercept` finds, with the axis in front; of a method that
    trains them themselves they are those of `shapes`.

    Args:
      arrays: what is trained.
      config: the backbone's sizes.
    """
    del config
    return dict(arrays)

  def intercept(
    self,
    call: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    context: nn.module.InterceptorContext,
  ) -> Any:
    """Runs a method of a module of the backbone, with what is learned there.

    It is Flax's interceptor (`flax.linen.intercept_methods`). `learned` gives
    a module's own arrays. A projection is called by two names, `__call__` and,
    where cross-attention takes its products in another order, `by_head`
    (`t5.layers.Dense`): one that changes a projection must change both.

    Args:
      call: what the module would do.
      args: its arguments.
      kwargs: likewise.
      context: `context.module`, and `context.method_name`.

    Returns:
      What the backbone goes on with.
    """
    raise NotImplementedError

  @classmethod
  def from_peft(
    cls, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
  ) -> tuple['Delta', dict[str, np.ndarray]]:
    """Reads an adapter of `peft_type`.

    Args:
      config: what it says of itself, without what every adapter says.
      tensors: by PEFT's names, but with modules called as here:
        'encoder/layers_0/attention/query/lora_A.weight'.

    Returns:
      The method, and its arrays by our names, without the axis in front.

    Raises:
      InputError: if it is something that we do not have, or does not fit
        together.
    """
    raise NotImplementedError

  def to_peft(
    self, arrays: Mapping[str, np.ndarray]
  ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns what `from_peft` takes, of arrays without the axis in front."""
    raise NotImplementedError

  def merged(
    self, params: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
  ) -> dict[str, np.ndarray]:
    """Puts what was learned into the backbone's own matrices.

    Args:
      params: the backbone's parameters, by whole names.
      arrays: what one task has learned, without the axis in front.

    Returns:
      The parameters that change, float32. The backbone with these is what
      `intercept` makes of it.
    """
    raise NotImplementedError

  def unmerged(
    self, params: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
  ) -> dict[str, np.ndarray]:
    """Takes out again what `merged` put in, but for float32's rounding."""
    raise NotImplementedError


def learned(module: nn.Module, name: str) -> Array | None:
  """Returns what a `Delta` has learned for a module, or None.

  Args:
    module: the module of the backbone that is running.
    name: the last part of the array's name.

  Returns:
    [1, ...], or [B, ...], one for each example of the batch.
  """
  if not module.has_variable(DELTA, name):
    return None
  array: Array = module.get_variable(DELTA, name)
  return array


def of_rows(array: Array, rows: int) -> Array:
  """Returns `learned` arrays for the rows of a module's input.

  Args:
    array: [1, ...] or [B, ...].
    rows: N, a multiple of B: the beams of an example lie side by side.

  Returns:
    [1, ...] or [N, ...].
  """
  if array.shape[0] in (1, rows):
    return array
  return jnp.repeat(array, rows // array.shape[0], axis=0)


def multiply(x: Array, kernel: Array) -> Array:
  """Multiplies a module's input with a learned kernel.

  Args:
    x: [N, T, I].
    kernel: [1, I, O] or [B, I, O], float32.

  Returns:
    [N, T, O] in x's dtype.
  """
  kernel = of_rows(kernel, x.shape[0]).astype(x.dtype)
  if kernel.shape[0] == 1:
    return x @ kernel[0]
  return jnp.einsum('bti,bio->bto', x, kernel)


def by_rows(tree: Any, rows: Array) -> Any:
  """Takes the arrays of each example's task: [K, ...] -> [B, ...].

  Args:
    tree: arrays [1, ...], which stay as they are, or [K, ...].
    rows: [B] int32, the task of each example.
  """
  return jax.tree.map(lambda a: a if a.shape[0] == 1 else a[rows], tree)


def layer_norm(x: Array, weight: Array, bias: Array) -> Array:
  """Normalizes the vectors on the last axis: mean 0, variance (1/n) 1."""
  mean = jnp.mean(x, axis=-1, keepdims=True)
  variance = jnp.var(x, axis=-1, keepdims=True)
  return (x - mean) / jnp.sqrt(variance + _EPSILON) * weight + bias


def prompt_digest(prompt: Any) -> str:
  """The digest of a prompt [P, D]."""
  content = np.ascontiguousarray(prompt, np.float32).tobytes()
  return f'sha256:{hashlib.sha256(content).hexdigest()}'


def check_sources(sources: Sequence[Any]) -> None:
  """Refuses a setting that does not say of which prompts a method is made.

  Args:
    sources: (task, `prompt_digest`) of each.

  Raises:
    InputError: if one is no such pair.
  """
  for source in sources:
    if len(source) != 2 or not all(isinstance(s, str) for s in source):
      raise InputError(f'sources has {source!r}, expected (task, digest)')


def check_peft(config: Mapping[str, Any], known: Sequence[str]) -> None:
  """Refuses what an adapter's configuration asks for and we do not have.

  Args:
    config: as for `Delta.from_peft`.
    known: the keys that are read, or change nothing.

  Raises:
    InputError: if another key is there and not empty.
  """
  for key, value in config.items():
    if value and value != 'none' and key not in known:
      raise InputError(f'{key} is {value!r}, which is not read here')


def start_prompt(
  method: PromptMethod, config: Any, key: Array, start: Start
) -> Array:
  """Returns a prompt [P, D] float32 as the method's `init` starts it."""
  init = method.init.bind(start.embedding, start.tokenize)
  return init(key, (method.length, config.emb_dim), jnp.float32)
