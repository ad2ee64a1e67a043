"""Numbers that others made, and where they lie.

MPT_JAX_GOLDENS names the folder, by default tests/testdata. What is in it is
told by its files and never by its name: the same tests run on goldens of
other names, shapes and seeds, and on several of a kind. A new kind is one
line of `KINDS`.
"""

from collections.abc import Callable, Iterable
import dataclasses
import functools
import json
import os
import pathlib
import re
from typing import Any

import numpy as np
import pytest

DEFAULT = pathlib.Path(__file__).resolve().parents[1] / 'testdata'
ROOT = pathlib.Path(os.environ.get('MPT_JAX_GOLDENS', DEFAULT)).resolve()
if not ROOT.is_dir():
  raise FileNotFoundError(f'MPT_JAX_GOLDENS = {str(ROOT)!r} is no folder')


@dataclasses.dataclass(frozen=True)
class Golden:
  """One golden, by the file that tells its kind."""

  file: pathlib.Path

  @property
  def folder(self) -> pathlib.Path:
    """Where it lies."""
    return self.file.parent

  @property
  def name(self) -> str:
    """What a test calls it."""
    path = self.file if self.file.suffix == '.jsonl' else self.folder
    return path.relative_to(ROOT).with_suffix('').as_posix()

  @property
  def config(self) -> dict[str, Any]:
    """The content of its `.json` file."""
    return json.loads(self.file.read_text())

  @property
  def io(self) -> dict[str, np.ndarray]:
    """Inputs and expected outputs; those of a subfolder lie beside it."""
    name = self.folder.name
    if self.file.suffix == '.npz':
      return arrays(self.file)
    for file in ('io.npz', f'../io_{name}.npz', '../io.npz'):
      if (self.folder / file).exists():
        return arrays(self.folder / file)
    raise FileNotFoundError(f'{self.name}: no io.npz, in it or beside it')


@functools.cache
def arrays(file: pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays of a `.npz` file."""
  with np.load(file, allow_pickle=False) as stored:
    return dict(stored)


def _said(key: str, *values: str) -> Callable[[pathlib.Path], bool]:
  return lambda file: json.loads(file.read_text()).get(key) in values


def _has(key: str) -> Callable[[pathlib.Path], bool]:
  return lambda file: key in json.loads(file.read_text())


def _of_transformers(file: pathlib.Path) -> bool:
  beside = (file.parent / 'io.npz').exists()
  return beside and _said('model_type', 't5', 'mt5', 'umt5')(file)


def _of_t5x(file: pathlib.Path) -> bool:
  return _has('model')(file) and not _has('prompt_path')(file)


def _holds(name: str) -> Callable[[pathlib.Path], bool]:
  def is_there(file):
    with np.load(file, allow_pickle=False) as stored:
      return name in stored.files

  return is_there


def _of_a_task(file: pathlib.Path) -> bool:
  return bool(lines_of(file)[0].get('tfds_name'))


def _of_metrics(file: pathlib.Path) -> bool:
  first = lines_of(file)[0]
  return first['kind'] == 'meta' and not first.get('tfds_name')


# kind -> (the files that may tell it, what tells it in such a file).
KINDS: dict[str, tuple[str, Callable[[pathlib.Path], bool]]] = {
  'transformers': ('config.json', _of_transformers),
  't5x': ('config.json', _of_t5x),
  'google': ('config.json', _has('prompt_path')),
  'peft_multitask': (
    'adapter_config.json',
    _said('peft_type', 'MULTITASK_PROMPT_TUNING'),
  ),
  'peft_soft': ('adapter_config.json', _said('peft_type', 'PROMPT_TUNING')),
  'lora': ('adapter_config.json', _said('peft_type', 'LORA')),
  'ia3': ('adapter_config.json', _said('peft_type', 'IA3')),
  'prefix': ('adapter_config.json', _said('peft_type', 'PREFIX_TUNING')),
  'prefix_full': ('io.npz', _holds('cross_prefix')),
  'deep': ('io.npz', _holds('layer_prompts')),
  'adapter': ('adapter_config.json', _has('config')),
  'bitfit': ('biases.safetensors', lambda file: True),
  'attempt': ('*.npz', _holds('attn_W_down')),
  'spot': ('*.npz', _holds('cos_average')),
  'indicators': ('*.npz', _holds('decoder_pre')),
  'correlation': ('correlation.json', lambda file: True),
  'projector': ('io.npz', _holds('projected_leaky')),
  'anchors': ('io.npz', _holds('target_relative_start')),
  'peft_start': ('start.npz', _holds('average__task_u')),
  'masked': ('io.npz', _holds('transformers_mask_logits')),
  'distill': ('io.npz', _holds('teacher_prompts')),
  'vocabulary': ('expected.json', lambda file: True),
  'encoder_vocabulary': ('tokens.json', _has('label_words')),
  'task': ('*.jsonl', _of_a_task),
  'metrics': ('*.jsonl', _of_metrics),
}


def lines_of(file: pathlib.Path) -> list[dict[str, Any]]:
  """The objects of a JSON Lines file."""
  # Not splitlines(): the texts hold exotic line separators.
  return [json.loads(s) for s in file.read_text().strip().split('\n')]


def find(kind: str) -> list[Golden]:
  """All goldens of a kind, wherever under the folder they lie."""
  return _find(ROOT, kind)


@functools.cache
def _find(root, kind):
  pattern, tells = KINDS[kind]
  return [Golden(f) for f in sorted(root.rglob(pattern)) if tells(f)]


def of(
  kind: str, each: Callable[[Golden], Iterable[Any]] | None = None
) -> list[Any]:
  """The rows of a test's parametrisation: the goldens of a kind.

  Args:
    kind: one of `KINDS`.
    each: what the test takes beside a golden, of which one may have several.

  Returns:
    A row for each; where there is none, one that is skipped and says so.
  """
  rows = []
  for golden in find(kind):
    if each is None:
      rows.append(pytest.param(golden, id=golden.name))
      continue
    for value in each(golden):
      label = f'{golden.name}-{value}' if value != '' else golden.name
      rows.append(pytest.param(golden, value, id=label))
  if rows:
    return rows
  # What lies beside the tests is whole.
  assert ROOT != DEFAULT, f'no golden of the kind {kind} in tests/testdata'
  skip = pytest.mark.skip(reason=f'no golden of the kind {kind} in {ROOT}')
  return [pytest.param(*[None] * (1 + bool(each)), id='absent', marks=skip)]


def prefixes(array: str) -> Callable[[Golden], list[str]]:
  """For `of`: what stands before an array's name, once for each such array."""
  return lambda golden: sorted(
    name.removesuffix(array) for name in golden.io if name.endswith(array)
  )


def matches(pattern: str) -> Callable[[Golden], list[str]]:
  """For `of`: the first group of the pattern, for each array that fits."""

  def each(golden):
    found = (re.fullmatch(pattern, name) for name in golden.io)
    return sorted(match[1] for match in found if match)

  return each


def layouts(golden: Golden) -> list[str]:
  """For `of`: the subfolders that hold a checkpoint of T5X."""
  found = golden.folder.glob('*/checkpoint_*')
  return sorted({file.parent.name for file in found})


def backbone_of(
  golden: Golden, width: int, vocab_size: int, **sizes: int
) -> pathlib.Path:
  """The folder of transformers that a golden's numbers were made with.

  It is the one whose sizes fit, also others by their names in `config.json`;
  of several, the one that the golden's configuration or a README names.
  """
  sizes = {'d_model': width, 'vocab_size': vocab_size, **sizes}
  fit = [
    g.folder
    for g in find('transformers')
    if all(g.config.get(n, size) == size for n, size in sizes.items())
  ]
  if not fit:
    pytest.skip(f'{golden.name}: its backbone is not in {ROOT}')
  named = set()
  if golden.file.suffix == '.json':
    base = golden.config.get('base_model_name_or_path') or ''
    named.add(pathlib.PurePath(base).name)
  if not any(folder.name in named for folder in fit):
    for folder in (golden.folder, golden.folder.parent):
      if (folder / 'README.md').exists():
        text = (folder / 'README.md').read_text()
        named.update(re.findall(r'\.\./([\w.-]+)', text))
  fit = [f for f in fit if f.name in named] or fit
  assert len(fit) == 1, f'{golden.name} is of which backbone: {fit}?'
  return fit[0]


def room(want: np.ndarray, usual: float = 20.0) -> float:
  """How much wider a bound in absolute terms may be for such numbers.

  Logits of the goldens beside the tests reach 18, where 1e-4 is what tells a
  tanh gelu from an exact one; larger numbers need more.
  """
  return max(1.0, float(np.abs(want).max()) / usual)


def close(
  got: Any,
  want: Any,
  where: Any = ...,
  atol: float = 1e-4,
  usual: float = 20.0,
) -> None:
  """Asserts equality up to what float32 leaves of numbers up to `usual`."""
  got, want = np.asarray(got)[where], np.asarray(want)[where]
  assert np.isfinite(want).all()
  atol *= room(want, usual)
  np.testing.assert_allclose(got, want, rtol=0, atol=atol)
