"""A trained model as a user meets it: text in, text out."""

from collections.abc import Iterable, Sequence
import os

import jax
import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from mpt_jax import models
from mpt_jax.checkpoints.backbone import (
  Backbone,
  digest_vocabulary,
  load_backbone,
)
from mpt_jax.checkpoints.bundle import (
  PromptBundle,
  check_backbone,
  load_prompts,
)
from mpt_jax.t5 import T5Config
from mpt_jax.types import Array, InputError

# The class is made when the module is loaded; no type checker sees it.
_ModelProto = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]

_EOS_ID = 1
# Any id but padding: what stands in a prompt slot is never embedded.
_SLOT_ID = 2
_EXTRA_IDS = 100
# Shapes are rounded up to powers of two, so that few are ever compiled.
_SHORTEST = 16


class Tokenizer:
  """A SentencePiece vocabulary with T5's 100 span markers on top.

  Equal, id by id, to the vocabulary that the data layer trains with.
  """

  def __init__(self, path: str):
    """Loads the vocabulary.

    Raises:
      InputError: if the file is no SentencePiece model.
    """
    try:
      with open(path, 'rb') as f:
        model = _ModelProto.FromString(f.read())
      # <extra_id_0> is the highest id.
      for i in reversed(range(_EXTRA_IDS)):
        model.pieces.add(
          piece=f'\u2581<extra_id_{i}>',
          type=_ModelProto.SentencePiece.USER_DEFINED,
        )
      self._pieces = sentencepiece.SentencePieceProcessor(
        model_proto=model.SerializeToString()
      )
    except Exception as e:  # Each of the two parsers has types of its own.
      reason = getattr(e, 'strerror', None) or 'it cannot be parsed'
      raise InputError(
        f'{path} is not a SentencePiece vocabulary: {reason}'
      ) from e

  @property
  def size(self) -> int:
    """The number of ids, span markers included."""
    return self._pieces.get_piece_size()

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text, without EOS."""
    return self._pieces.encode(text)

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of ids up to EOS."""
    known = []
    for token in map(int, ids):
      if token == _EOS_ID:
        break
      # The embedding may have more rows than the vocabulary has pieces.
      known.append(token if token < self.size else self._pieces.unk_id())
    return self._pieces.decode(known)


class PromptedT5:
  """A frozen T5 with the prompts of one or more tasks.

  Attributes:
    backbone: the frozen model.
    bundle: its prompts, or None.
    tokenizer: the backbone's vocabulary.
    model: the model class that computes.
    params: its parameters, on the device.
  """

  def __init__(
    self,
    backbone: Backbone,
    bundle: PromptBundle | None,
    tokenizer: Tokenizer,
  ):
    """Puts the parts together.

    Raises:
      InputError: if prompts, backbone and vocabulary do not belong together.
    """
    if tokenizer.size > backbone.config.vocab_size:
      raise InputError(
        f'the vocabulary has {tokenizer.size} ids, but the backbone'
        f' {backbone.name} has only {backbone.config.vocab_size}'
      )
    self.backbone, self.bundle, self.tokenizer = backbone, bundle, tokenizer
    params = dict(backbone.params)
    module = None
    if bundle is not None:
      check_backbone(bundle, backbone)
      params['prompts'] = dict(bundle.arrays)
      module = bundle.make_module()
    self.model = models.PromptedT5(backbone.config, module)
    self.params = jax.device_put(params)
    self._predict = jax.jit(
      self.model.predict_batch,
      static_argnames=('max_decode_length', 'num_beams'),
    )

  @classmethod
  def from_pretrained(
    cls,
    path: str,
    prompts: str | PromptBundle | None = None,
    config: T5Config | str | None = None,
    vocabulary: str | None = None,
  ) -> 'PromptedT5':
    """Loads a backbone and, on it, prompts.

    Args:
      path: the backbone, as `load_backbone` takes it.
      prompts: a bundle, or the path of whatever `load_prompts` reads; None is
        the backbone alone.
      config: sizes of the backbone or their name; its folder says them too.
      vocabulary: the SentencePiece file; default is the one in the backbone's
        folder.

    Returns:
      The model.

    Raises:
      InputError: if a part is missing or damaged, or they do not belong
        together.
    """
    backbone = load_backbone(os.fspath(path), config=config)
    if prompts is not None and not isinstance(prompts, PromptBundle):
      prompts = load_prompts(prompts)
    file = vocabulary or backbone.vocabulary_file
    if file is None:
      raise InputError(
        f'the backbone {path} has no vocabulary (spiece.model); give a'
        ' SentencePiece file as vocabulary'
      )
    tokenizer = Tokenizer(file)
    if prompts is not None and prompts.vocabulary_digest:
      digest = digest_vocabulary(file)
      if digest != prompts.vocabulary_digest:
        raise InputError(
          f'the prompts were trained with another vocabulary'
          f' ({prompts.vocabulary_digest}) than {file} ({digest})'
        )
    return cls(backbone, prompts, tokenizer)

  def generate(
    self,
    texts: Sequence[str],
    task: str | Sequence[str] | None = None,
    *,
    max_decode_length: int = 64,
    batch_size: int = 32,
    num_beams: int = 1,
  ) -> list[str]:
    """Answers each text.

    Args:
      texts: inputs in the form that the task was trained on.
      task: whose prompt to use: one name, or one per text. May be left out
        where there is one prompt.
      max_decode_length: longest answer, in tokens.
      batch_size: texts that are decoded together.
      num_beams: width of the beam search; 1 is greedy.

    Returns:
      One answer per text, in their order.

    Raises:
      InputError: if a task is not among the prompts, or the names are not as
        many as the texts.
    """
    if isinstance(texts, str):
      raise InputError('generate takes a list of texts, not one text')
    for name, value in (
      ('max_decode_length', max_decode_length),
      ('batch_size', batch_size),
      ('num_beams', num_beams),
    ):
      if value < 1:
        raise InputError(f'{name} is {value}, expected 1 or more')
    rows = self._rows(task, len(texts))
    inputs = [[*self.tokenizer.encode(text), _EOS_ID] for text in texts]
    answers = [''] * len(texts)
    # Texts of like length go together: less padding, fewer shapes.
    order = sorted(range(len(texts)), key=lambda i: len(inputs[i]))
    for start in range(0, len(order), batch_size):
      chosen = order[start : start + batch_size]
      # The batch is filled up with its last text, which unlike an empty one
      # cannot keep the decoder busy longer.
      size = min(_round_up(len(chosen), 1), batch_size)
      members = chosen + chosen[-1:] * (size - len(chosen))
      tokens = self._predict(
        self.params,
        self._batch([inputs[i] for i in members], [rows[i] for i in members]),
        max_decode_length=max_decode_length,
        num_beams=num_beams,
      )
      for i, ids in zip(chosen, np.asarray(tokens), strict=False):
        answers[i] = self.tokenizer.decode(ids)
    return answers

  def _rows(self, task: str | Sequence[str] | None, count: int) -> list[int]:
    """Returns each text's row of the prompt table."""
    if self.bundle is None:
      if task is not None:
        raise InputError(f'task {task!r} was given, but there are no prompts')
      return [0] * count
    if task is None:
      if self.bundle.method == 'multitask' and len(self.bundle.task_names) > 1:
        raise InputError(
          f'say whose prompt to use: task is one of'
          f' {", ".join(self.bundle.task_names)}'
        )
      return [0] * count
    if isinstance(task, str):
      return [self.bundle.row(task)] * count
    if len(task) != count:
      raise InputError(f'{len(task)} tasks were given for {count} texts')
    return [self.bundle.row(name) for name in task]

  def _batch(
    self, inputs: Sequence[Sequence[int]], rows: Sequence[int]
  ) -> dict[str, Array | np.ndarray]:
    """Returns the model features of unpacked examples."""
    length = 0 if self.bundle is None else self.bundle.prompt_length
    longest = _round_up(max(map(len, inputs)), _SHORTEST)
    tokens = np.zeros((len(inputs), length + longest), np.int32)
    slots = np.zeros_like(tokens)
    tokens[:, :length] = _SLOT_ID
    slots[:, :length] = np.arange(1, length + 1)
    for row, ids in enumerate(inputs):
      tokens[row, length : length + len(ids)] = ids
    task_rows = np.asarray(rows, np.int32)[:, None]
    return {
      'encoder_input_tokens': tokens,
      'encoder_prompt_slots': slots,
      'encoder_task_ids': np.where(tokens > 0, task_rows, 0),
    }


def _round_up(size: int, least: int) -> int:
  """Returns the next power of two, at least `least`."""
  return max(least, 1 << (size - 1).bit_length())
