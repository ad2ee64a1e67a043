"""Every method, small: what a test over all of them needs to know.

A method that is registered and not here is an error, so a new one is tested
as the others are by one line.
"""

from collections.abc import Collection, Iterable
import functools
import re
from typing import Any

import jax
import numpy as np
import pytest

from mpt_jax import methods, models, roberta
from mpt_jax.checkpoints import bundle
from mpt_jax.engine import batching
from mpt_jax.engine import params as params_lib
from tests.helpers import tiny

P, K = tiny.P, tiny.K
# Every layer of every kind twice, and eight heads for eight devices.
CONFIG = tiny.CONFIG.replace(
  vocab_size=40,
  emb_dim=16,
  num_heads=8,
  head_dim=3,
  mlp_dim=24,
  num_encoder_layers=2,
  num_decoder_layers=2,
)
# Of an encoder that fills in masks, likewise.
ENCODER = roberta.RobertaConfig(
  vocab_size=40,
  emb_dim=16,
  num_heads=8,
  mlp_dim=24,
  num_encoder_layers=2,
  max_positions=64,
  dropout_rate=0.0,
)
T5, MASKED = 't5', 'masked'
CONFIGS = {T5: CONFIG, MASKED: ENCODER}
# What an encoder's inputs begin and end with, and what it fills in.
BEGIN, END, MASK = 1, 2, 39
# The words of each task's classes; tasks have several numbers of classes, and
# classes of words.
CLASSES = (((5, 6), (7,)), ((8,), (9, 10), (11,)), ((12,), (13,)))
METHODS: dict[str, methods.Method] = {
  'soft': methods.SoftPrompts(P, init=methods.Uniform()),
  'multitask': methods.MultitaskPrompts(P, 2, init=methods.Uniform()),
  'attempt': methods.Attempt(
    P, 4, temperature=3.0, sources=(('one', ''), ('two', ''))
  ),
  'full': methods.FullFinetuning(),
  'adapter': methods.Adapter(size=3),
  'bitfit': methods.BitFit(),
  'lora': methods.LoRA(rank=2, alpha=1, targets=('q', 'k', 'v', 'o', 'wo')),
  'ia3': methods.IA3(),
  'prefix': methods.Prefix(P, hidden=5),
  'deep': methods.DeepPrompts(P, combine='add'),
  'projector': methods.Projector(
    P, 6, sources=(('same', ''), ('other', '')), source_length=4, source_width=7
  ),
}

# One of each seam's kinds: what takes long is done with these in every run of
# the tests, and with all of them in `make test-long`.
USUAL = ('attempt', 'lora', 'prefix')


def each(names: Iterable[str], usual: Collection[str] = USUAL) -> list[Any]:
  """The rows of a test that takes long, by a method's name."""
  return [
    pytest.param(name, marks=[] if name in usual else pytest.mark.long)
    for name in sorted(names)
  ]


def everywhere(
  names: Iterable[str], usual: Collection[str] = USUAL
) -> list[Any]:
  """As `each`, on every family of backbones: rows of name and family."""
  return [
    pytest.param(name, family, marks=[] if name in usual else pytest.mark.long)
    for name in sorted(names)
    for family in CONFIGS
  ]


def learned(
  method: methods.Method, tasks: int, config=CONFIG, seed: int = 0
) -> dict[str, np.ndarray]:
  """Random arrays of a method: none is zero, and no task's is another's."""
  drawn = method.fresh(config, tasks, jax.random.PRNGKey(seed))
  rng = np.random.default_rng(seed)
  return {
    name: np.asarray(value) + 0.3 * rng.normal(size=value.shape).astype('f')
    for name, value in sorted(drawn.items())
  }


@functools.cache
def backbone(config=CONFIG):
  """Its random backbone, whose answers depend on what it reads."""
  params = tiny.backbone(config=config)
  if config is ENCODER:
    # Drawn as RoBERTa is, so narrow a network hears nothing.
    flat = params_lib.flatten(params)
    louder = {
      n: 2 * v for n, v in flat.items() if n.endswith(('kernel', 'ing'))
    }
    return params_lib.unflatten(flat | louder)
  for layer in params.get('decoder', {}).values():
    if 'encoder_decoder_attention' in layer:
      cross = layer['encoder_decoder_attention']['out']
      cross['kernel'] = 3 * cross['kernel']
  return params


def model(
  method: methods.Method,
  tasks: int,
  family: str = T5,
  lesson: type[models.PromptedModel] = models.PromptedModel,
  **settings,
) -> models.PromptedModel:
  """The model of a method for some tasks, with other sizes or types."""
  config = CONFIGS[family].replace(**settings)
  ids = {'mask_id': MASK, 'eos_id': END} if family == MASKED else {}
  return models.class_of(config, lesson)(config, method, tasks, **ids)


def examples(tasks: int, size=9, targets=4, seed=1, family=T5):
  """Examples of uneven lengths and, in turn, of all tasks."""
  rng = np.random.default_rng(seed)
  most = CONFIG.vocab_size if family == T5 else MASK
  made = []
  for i in range(size):
    tokens = rng.integers(3, most, rng.integers(2, 9))
    if family == T5:
      answer = rng.integers(3, most, rng.integers(1, targets + 1))
      made.append(batching.Example(tokens, answer, i % tasks))
      continue
    classes = CLASSES[i % len(CLASSES)]
    words = [(w, n) for n, own in enumerate(classes, start=1) for w in own]
    ids, numbers = np.array(words).T
    right = 1 + rng.integers(len(classes))
    weights = (np.arange(len(ids)) == list(numbers).index(right)).astype(int)
    tokens = np.array([BEGIN, MASK, *tokens, END])
    made.append(batching.Example(tokens, ids, i % tasks, numbers, weights))
  return made


def batch(method: methods.Method, tasks: int, size=9, targets=4, family=T5):
  """Those examples, one to a row."""
  rows = [[e] for e in examples(tasks, size, targets, family=family)]
  length = method.prompt_length
  return batching.lay_out(rows, (size, length + 12, targets), length, False)


def part_of(batch, rows, length: int | None = None, task: int | None = None):
  """Some rows of a batch, of a shorter length and as another task's."""
  part = {name: array[rows] for name, array in batch.items()}
  for name in part:
    if name.startswith('encoder_') and length:
      part[name] = part[name][:, :length]
  if task is not None:
    full = part['encoder_input_tokens'] > 0
    part['encoder_task_ids'] = np.where(full, task, 0).astype(np.int32)
  return part


def is_idle(method: methods.Method, name: str) -> bool:
  """Whether an array cannot have a gradient, by its name in the branch."""
  whole = f'{method.branch}/{name}'
  frozen = not any(re.fullmatch(p, whole) for p in method.trainable)
  # Softmax does not see what is added to all keys of a query.
  return frozen or name.endswith('key/bias')


def start_of(method: methods.Method, folder, width: int) -> str | None:
  """What a run of a method starts from: its source prompts, if it has some."""
  sources = getattr(method, 'sources', ())
  if not sources:
    return None
  rng = np.random.default_rng(0)
  length = P
  if method.foreign_source:
    length, width = method.source_length, method.source_width
  path = str(folder / 'sources')
  bundle.PromptBundle(
    method='multitask',
    stage='source',
    task_names=tuple(name for name, _ in sources),
    arrays={
      'shared_prompt': rng.normal(size=(length, width)),
      'task_u': rng.normal(size=(len(sources), length, 1)),
      'task_v': rng.normal(size=(len(sources), 1, width)),
    },
  ).save(path)
  return path
