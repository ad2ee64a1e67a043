"""Prompts of one backbone made into prompts of another, and what that costs.

What comes out is a bundle like any other: a plain prompt of the target
backbone, which answers, is scored, and can be what a run starts from. It says
where it came from (`PromptBundle.origin`).
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import re
from typing import Any

import numpy as np

from mpt_jax import methods
from mpt_jax.checkpoints import backbone as backbone_lib
from mpt_jax.checkpoints.backbone import Backbone
from mpt_jax.checkpoints.bundle import PromptBundle
from mpt_jax.engine.predictor import vocabulary_digest
from mpt_jax.transfer import anchors
from mpt_jax.transfer.anchors import Found
from mpt_jax.transfer.sources import SourcePrompt
from mpt_jax.types import InputError

# The ways that train nothing.
LINEAR, ANCHORS = 'linear', 'anchors'


@dataclasses.dataclass(frozen=True, eq=False)
class Words:
  """The embeddings of the words that two backbones share.

  Attributes:
    source: [n, d], of the source backbone.
    target: [n, D], of the target.
    embedding: [V, D], all of the target's.
    source_backbone: what the source backbone is called.
    source_fingerprint: its digest.
  """

  source: np.ndarray
  target: np.ndarray
  embedding: np.ndarray
  source_backbone: str
  source_fingerprint: str


def digest_of(projector: PromptBundle) -> str:
  """The digest of a projector: of its network and settings."""
  found = hashlib.sha256(repr(sorted(projector.settings.items())).encode())
  for name, array in sorted(projector.arrays.items()):
    if name != 'source_prompts':
      found.update(f'{name} {array.shape}'.encode() + array.tobytes())
  return f'sha256:{found.hexdigest()}'


def project(
  projector: PromptBundle, prompts: Sequence[SourcePrompt]
) -> list[PromptBundle]:
  """Makes prompts of the target backbone out of some of the source's.

  Args:
    projector: what a run of `methods.Projector` has left.
    prompts: of its source backbone: those that it was trained on, or others.

  Returns:
    A bundle for each, of its task.

  Raises:
    InputError: if that is no projector, or a prompt is of another backbone or
      size than its sources.
  """
  method = projector.learner
  if not method.foreign_source:
    raise InputError(
      f'a bundle of method {projector.method!r} is no projector: it cannot make'
      ' prompts out of others'
    )
  settings = projector.settings
  want = settings['source_length'], settings['source_width']
  for prompt in prompts:
    if prompt.array.shape != want:
      raise InputError(
        f'the prompt {prompt.name!r} is {prompt.array.shape}, and the projector'
        f' was trained on {want}'
      )
    _check_source(
      prompt, settings['source_backbone'], settings['source_fingerprint']
    )
  network = {k: v for k, v in projector.arrays.items() if k != 'source_prompts'}
  network['source_prompts'] = np.stack([p.array for p in prompts])
  table = np.asarray(method.prompt_table(network, len(prompts)))
  digest = digest_of(projector)
  return [
    _moved(array, prompt, projector, digest)
    for array, prompt in zip(table, prompts, strict=True)
  ]


def read_words(source: str, target: Backbone) -> Words:
  """Loads the source backbone for its embedding alone.

  Args:
    source: its path.
    target: the target backbone.

  Raises:
    InputError: if there is none, or one of the two has no vocabulary of its
      own, or they share no word.
  """
  loaded = backbone_lib.load_backbone(source)
  known = []
  for backbone in (loaded, target):
    backbone = backbone if backbone.vocabulary else backbone.with_vocabulary()
    if backbone.vocabulary is None:
      raise InputError(
        f'{backbone.name} has no vocabulary beside it, so nobody knows which'
        ' words its embeddings are of'
      )
    known.append(backbone.vocabulary)
  rows, own = anchors.shared_rows(*known)
  embedding = target.params['token_embedder']['embedding']
  return Words(
    loaded.params['token_embedder']['embedding'][rows],
    embedding[own],
    embedding,
    loaded.name,
    loaded.fingerprint,
  )


def linear(
  words: Words, prompts: Sequence[SourcePrompt], target: Backbone
) -> list[PromptBundle]:
  """Moves prompts by the least-squares map between the two embeddings.

  Args:
    words: what the backbones share.
    prompts: of the source backbone.
    target: the target backbone.

  Raises:
    InputError: if a prompt is of another backbone.
  """
  matrix = anchors.linear_map(words.source, words.target)
  return [
    _moved(array, prompt, target, LINEAR)
    for prompt in prompts
    for array in [_vectors(words, prompt) @ matrix]
  ]


def by_anchors(
  words: Words,
  prompts: Sequence[SourcePrompt],
  target: Backbone,
  **search: Any,
) -> list[PromptBundle]:
  """Moves prompts by the search of `anchors.search`, without labels.

  Args:
    words: what the backbones share.
    prompts: of the source backbone.
    target: the target backbone.
    **search: see `anchors.search`.

  Raises:
    InputError: if a prompt is of another backbone.
  """
  made = []
  for prompt in prompts:
    vectors = _vectors(words, prompt)
    found: Found = anchors.search(
      [vectors], [words.source], words.target, words.embedding, **search
    )
    made.append(_moved(found.prompt, prompt, target, ANCHORS))
  return made


def _vectors(words: Words, prompt: SourcePrompt) -> np.ndarray:
  """A prompt [L, d] of the source backbone."""
  _check_source(prompt, words.source_backbone, words.source_fingerprint)
  width = words.source.shape[1]
  if prompt.array.shape[1] != width:
    raise InputError(
      f'the prompt {prompt.name!r} is {prompt.array.shape[1]} wide, and the'
      f' source backbone {words.source_backbone} {width}'
    )
  return prompt.array


def _check_source(prompt: SourcePrompt, name: str, fingerprint: str) -> None:
  """Refuses a prompt that is known to be of another backbone."""
  known = prompt.backbone_fingerprint
  if known and fingerprint and known != fingerprint:
    raise InputError(
      f'the prompt {prompt.name!r} is of {prompt.backbone_name or "another"}'
      f' ({known}), and the source backbone is {name or "unnamed"}'
      f' ({fingerprint})'
    )


def bundle_of(
  prompt: SourcePrompt, task: str = '', **more: Any
) -> PromptBundle:
  """Returns a bundle of one plain prompt.

  Args:
    prompt: the prompt.
    task: what its task is called; '' is its own, or its name.
    **more: other fields of the bundle.

  Raises:
    InputError: if that is no name of a task.
  """
  arrays = {'prompt': prompt.array}
  # A name of several runs, 'rte/1', is none of a task.
  task = task or prompt.task or re.sub(r'[^\w.:-]', '_', prompt.name)
  try:
    return PromptBundle(
      method=methods.holding(set(arrays)).name,
      stage='imported',
      task_names=(task,),
      arrays=arrays,
      backbone_name=prompt.backbone_name,
      backbone_fingerprint=prompt.backbone_fingerprint,
      vocabulary_digest=prompt.vocabulary_digest,
      step=prompt.step,
      **more,
    )
  except ValueError as e:
    raise InputError(f'the prompt {prompt.name!r}: {e}') from e


def _moved(
  array: np.ndarray,
  prompt: SourcePrompt,
  target: Backbone | PromptBundle,
  projector: str,
) -> PromptBundle:
  """A plain prompt of the target backbone, and what it was made of."""
  if isinstance(target, PromptBundle):
    name, fingerprint = target.backbone_name, target.backbone_fingerprint
    vocabulary, step = target.vocabulary_digest, target.step
  else:
    name, fingerprint = target.name, target.fingerprint
    vocabulary, step = vocabulary_digest(target), 0
  moved = dataclasses.replace(
    prompt,
    array=array,
    score=None,
    start=None,
    step=step,
    backbone_name=name,
    backbone_fingerprint=fingerprint,
    vocabulary_digest=vocabulary,
  )
  origin = {
    'source_backbone': prompt.backbone_name,
    'source_fingerprint': prompt.backbone_fingerprint,
    'source_prompts': prompt.digest,
    'projector': projector,
  }
  return bundle_of(moved, origin=origin)
