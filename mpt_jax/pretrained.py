"""A trained model as a user meets it: text in, text out."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import os
from typing import Any, overload

import jax
import numpy as np

from mpt_jax import methods
from mpt_jax.backbones import Config, family
from mpt_jax.checkpoints.backbone import Backbone, load_backbone
from mpt_jax.checkpoints.bundle import PromptBundle, load_prompts
from mpt_jax.checkpoints.texts import NO_MASK, Marked, TaskText
from mpt_jax.checkpoints.vocabulary import Vocabulary, bring
from mpt_jax.data.candidates import Candidates, in_vocabulary
from mpt_jax.engine.predictor import (
  Predictor,
  check_serving,
  make_predictor,
  prompted_model,
)
from mpt_jax.engine.results import Results, score
from mpt_jax.engine.settings import (
  BackboneSource,
  Decoding,
  Devices,
  Examples,
)
from mpt_jax.types import (
  Array,
  InputError,
  check_least,
  nearest,
)

# A text, or the fields of one, which the bundle's template writes.
Text = str | Mapping[str, Any]

# Any id but padding: what stands in a prompt slot is never embedded.
_SLOT_ID = 2
# Shapes are rounded up to powers of two, so that few are ever compiled.
_SHORTEST = 16


# The name of version 0.1.
Tokenizer = Vocabulary


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
    tokenizer: Vocabulary,
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
    special = getattr(tokenizer, 'special', backbone.special_ids)
    if special != backbone.special_ids:
      raise InputError(
        f'the vocabulary {tokenizer.path} has {special}, but the backbone'
        f' {backbone.name} {backbone.special_ids}'
      )
    self.backbone, self.bundle, self.tokenizer = backbone, bundle, tokenizer
    self.model, params = prompted_model(backbone, bundle)
    self.params = jax.device_put(params)
    self._predict = jax.jit(
      self.model.predict_batch,
      static_argnames=('max_decode_length', *Decoding().search),
    )
    self._score = jax.jit(self.model.score_batch)
    self._weigh = jax.jit(self.model.weigh_batch)

  def __repr__(self) -> str:
    name = type(self).__name__
    return f'{name}({self.backbone!r}, {self.bundle or "no prompts"})'

  @classmethod
  def from_pretrained(
    cls,
    path: str,
    prompts: str | PromptBundle | None = None,
    config: Config | str | None = None,
    vocabulary: str | None = None,
  ) -> 'PromptedT5':
    """Loads a backbone and, on it, prompts.

    Args:
      path: the backbone, as `load_backbone` takes it; 'demo', 'demo-small'
        and 'demo-large' are the tiny ones that come with the package.
      prompts: a bundle, or the path of whatever `load_prompts` reads; None is
        the backbone alone.
      config: sizes of the backbone or their name; its folder says them too.
      vocabulary: another vocabulary than the one in the backbone's folder: a
        SentencePiece file, `tokenizer.json`, or a folder with one.

    Returns:
      The model.

    Raises:
      InputError: if a part is missing or damaged, or they do not belong
        together.
    """
    backbone = load_backbone(os.fspath(path), config=config)
    cls = _face(backbone)
    if prompts is not None and not isinstance(prompts, PromptBundle):
      prompts = load_prompts(prompts)
    backbone = backbone.with_vocabulary(vocabulary and bring(vocabulary))
    tokenizer = backbone.vocabulary
    if tokenizer is None:
      raise InputError(
        f'the backbone {path} has no vocabulary (spiece.model, tokenizer.json);'
        ' give a SentencePiece file as vocabulary'
      )
    return cls(backbone, prompts, tokenizer)

  @classmethod
  def of(
    cls, backbone: Backbone, bundle: PromptBundle, tokenizer: Vocabulary
  ) -> 'PromptedT5':
    """Returns the face of a loaded backbone, whatever its family."""
    return _face(backbone)(backbone, bundle, tokenizer)

  def generate(
    self,
    texts: Sequence[Text],
    task: str | Sequence[str | None] | None = None,
    *,
    max_decode_length: int = 64,
    batch_size: int = 32,
    num_beams: int = 1,
    temperature: float = 0.0,
    topk: int = 0,
    topp: float = 0.0,
    seed: int = 0,
  ) -> list[str]:
    """Answers each text.

    Args:
      texts: inputs in the form that the task was trained on, or dicts of
        their fields ({'premise': …, 'hypothesis': …}), where the bundle knows
        how the task's text is written. Other fields are ignored.
      task: whose prompt to use: one name, or one per text. May be left out
        where there is one prompt.
      max_decode_length: longest answer, in tokens.
      batch_size: texts that are decoded together.
      num_beams: width of the beam search; 1 is greedy, or samples.
      temperature: above 0, answers are sampled.
      topk: sample among the k likeliest tokens; 0 is all.
      topp: sample among the likeliest tokens of this total probability; 0 is
        all.
      seed: fixes what is sampled for the same texts and batch_size.

    Returns:
      One answer per text, in their order.

    Raises:
      InputError: if a task is not among the prompts, the names are not as
        many as the texts, a field is missing, or a setting is out of range.
    """
    decoding = Decoding(
      num_beams=num_beams,
      max_decode_length=max_decode_length,
      temperature=temperature,
      topk=topk,
      topp=topp,
      seed=seed,
    )
    return self.answer(texts, task, decoding, batch_size)

  def answer(
    self,
    texts: Sequence[Text],
    task: str | Sequence[str | None] | None = None,
    decoding: Decoding = Decoding(),
    batch_size: int = 32,
  ) -> list[str]:
    """Answers each text, as `generate` does, with the settings in one piece.

    Args:
      texts: as for `generate`.
      task: as for `generate`.
      decoding: how answers are found.
      batch_size: texts that are decoded together.

    Returns:
      One answer per text, in their order.

    Raises:
      InputError: as `generate`.
    """
    _check_texts('generate', texts)
    check_least(1, batch_size=batch_size)
    rows, names = self._rows(task, len(texts)), _names(task, len(texts))
    inputs = self._encode(self._write(texts, task))
    answers = [''] * len(texts)
    key = jax.random.PRNGKey(decoding.seed)
    for number, (chosen, members) in enumerate(_batches(inputs, batch_size)):
      tokens = self._predict(
        self.params,
        self._batch(*_taken(members, inputs, rows, names)),
        jax.random.fold_in(key, number) if decoding.temperature else None,
        max_decode_length=decoding.max_decode_length,
        **decoding.search,
      )
      for i, ids in zip(chosen, np.asarray(tokens), strict=False):
        text = self.tokenizer.decode_model(ids)
        answers[i] = self._answer_of(text, names[i])
    return answers

  @overload
  def score(
    self,
    texts: Sequence[Text],
    targets: Sequence[str],
    task: str | Sequence[str | None] | None = None,
    *,
    batch_size: int = 32,
  ) -> list[float]: ...

  @overload
  def score(
    self,
    texts: Sequence[Text],
    targets: None = None,
    task: str | Sequence[str | None] | None = None,
    *,
    batch_size: int = 32,
  ) -> list[dict[str, float]]: ...

  def score(
    self,
    texts: Sequence[Text],
    targets: Sequence[str] | None = None,
    task: str | Sequence[str | None] | None = None,
    *,
    batch_size: int = 32,
  ) -> list[float] | list[dict[str, float]]:
    """Returns how likely each target is as the answer to its text.

    Args:
      texts: as for `generate`.
      targets: one answer per text; None ranks the task's own label words.
      task: whose prompt to use, as for `generate`.
      batch_size: pairs that are scored together.

    Returns:
      The log probability of each target, its end mark included, in nats.
      Without targets, for each text {label word: log probability}, the
      likeliest first.

    Raises:
      InputError: as `generate`; also if there are not as many targets as
        texts, or none are given and the bundle knows no label words.
    """
    if targets is None:
      return self._rank(texts, task, batch_size)
    _check_texts('score', texts)
    check_least(1, batch_size=batch_size)
    if isinstance(targets, str) or len(targets) != len(texts):
      raise InputError(
        f'score takes one target for each of the {len(texts)} texts'
      )
    self._rows(task, len(texts))
    return self._score_pairs(
      self._write(texts, task), targets, _names(task, len(texts)), batch_size
    )

  def _score_pairs(
    self,
    written: Sequence[str],
    targets: Sequence[str],
    names: Sequence[str | None],
    batch_size: int,
  ) -> list[float]:
    """Scores one target for each written text."""
    rows = (
      self._rows(list(names), len(names)) if self.bundle else [0] * len(names)
    )
    inputs = self._encode(written)
    scores = [0.0] * len(written)
    for chosen, members in _batches(inputs, batch_size):
      batch = self._batch(*_taken(members, inputs, rows, names))
      batch |= self._targets([(targets[i], names[i]) for i in members])
      found = np.asarray(self._score(self.params, batch))
      for i, value in zip(chosen, found, strict=False):
        scores[i] = float(value)
    return scores

  def _targets(
    self, wanted: Sequence[tuple[str, str | None]]
  ) -> dict[str, np.ndarray]:
    """The features of targets, each with its task."""
    tokens = _padded(self._encode([text for text, _ in wanted]))
    shifted = np.pad(tokens[:, :-1], ((0, 0), (1, 0)))
    return {'decoder_target_tokens': tokens, 'decoder_input_tokens': shifted}

  def _answer_of(self, text: str, name: str | None) -> str:
    """What a decoded text answers."""
    del name
    return text

  def attention(
    self,
    texts: Sequence[Text],
    task: str | Sequence[str | None] | None = None,
    *,
    batch_size: int = 32,
  ) -> list[dict[str, float]]:
    """Returns what the prompt of each text is made of.

    For a method that makes a prompt for each text, of those of source tasks.

    Args:
      texts: as for `generate`.
      task: whose prompt to use, as for `generate`.
      batch_size: texts that are run together.

    Returns:
      For each text {source task, or 'target': weight}; weights sum to 1.

    Raises:
      InputError: as `generate`; also if the method makes no such prompts.
    """
    method = self.model.method
    if not isinstance(method, methods.PromptsByExample):
      raise InputError(
        f'{self} has no attention over sources: all texts of a task have one'
        ' prompt, or none'
      )
    _check_texts('attention', texts)
    check_least(1, batch_size=batch_size)
    rows, names = self._rows(task, len(texts)), _names(task, len(texts))
    inputs = self._encode(self._write(texts, task))
    found: list[dict[str, float]] = [{}] * len(texts)
    for chosen, members in _batches(inputs, batch_size):
      batch = self._batch(*_taken(members, inputs, rows, names))
      weights = np.asarray(self._weigh(self.params, batch))
      for i, row in zip(chosen, weights, strict=False):
        found[i] = dict(zip(method.weighed, row.tolist(), strict=True))
    return found

  def evaluate(
    self,
    tasks: str | Sequence[str] | Mapping[str, Any],
    split: str = 'test',
    *,
    prompt_task: str | None = None,
    model_dir: str | None = None,
    batch_size: int = 128,
    decoding: Decoding = Decoding(),
    **examples: Any,
  ) -> Results:
    """Scores this model on tasks, as `mpt_jax.evaluate` does.

    Args:
      tasks: a registered task or mixture, or several; or {name: `Task`}.
      split: the split to score.
      prompt_task: score with this task's prompt whatever the example's task;
        None takes each example's own.
      model_dir: folder for `results.json` and the answers; None writes none.
      batch_size: examples that are decoded together.
      decoding: how answers are searched.
      **examples: more of `settings.Examples`, such as `num_examples`.

    Returns:
      The scores.

    Raises:
      InputError: if something given is wrong.
    """
    wanted = _examples(tasks, split, examples)
    return score(
      wanted,
      lambda: self._predictor(prompt_task, batch_size, decoding),
      model_dir,
    )

  def _predictor(
    self, prompt_task: str | None, batch_size: int, decoding: Decoding
  ) -> Predictor:
    """This model as what decodes batches of tasks."""
    from mpt_jax import data

    check_serving(decoding, prompt_task, self.bundle is not None)
    check_least(1, batch_size=batch_size)
    data.use_vocabulary(self.tokenizer)
    names: tuple[str, ...] = ()
    row = 0
    if self.bundle is not None:
      if prompt_task is None:
        names = self.bundle.task_names
      else:
        row = self.bundle.row(prompt_task)

    def on(batch: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
      if not row:
        return batch
      full = batch['encoder_input_tokens'] > 0
      return {**batch, 'encoder_task_ids': np.where(full, row, 0)}

    return Predictor(
      predict_fn=lambda batch: np.asarray(
        self._predict(self.params, on(batch), **decoding.search)
      ),
      score_fn=lambda batch: np.asarray(self._score(self.params, on(batch))),
      batch_size=batch_size,
      prompt_length=self.model.prompt_length,
      task_names=names,
      backbone_name=self.backbone.name,
      prompt_task=prompt_task,
    )

  def _encode(self, texts: Sequence[str]) -> list[list[int]]:
    """The model's ids of each text, end mark included."""
    end = self.model.eos_id
    return [[*self.tokenizer.model_ids(text), end] for text in texts]

  def _rank(
    self,
    texts: Sequence[Text],
    task: str | Sequence[str | None] | None,
    batch_size: int,
  ) -> list[dict[str, float]]:
    """Scores each text's label words."""
    _check_texts('score', texts)
    self._rows(task, len(texts))
    if self.bundle is None:
      raise InputError(
        'there are no prompts, whose label words could be ranked: give targets'
      )
    names = _names(task, len(texts))
    known = {name: self.bundle.answers(name) for name in set(names)}
    answers = [known[name] for name in names]
    pairs = [
      (i, answer)
      for i, words in enumerate(answers)
      for answer in words.values()
    ]
    written = self._write(texts, task)
    found = iter(
      self._score_pairs(
        [written[i] for i, _ in pairs],
        [answer for _, answer in pairs],
        [names[i] for i, _ in pairs],
        batch_size,
      )
    )
    ranked = []
    for words in answers:
      scores = {word: next(found) for word in words}
      ranked.append(dict(sorted(scores.items(), key=lambda s: -s[1])))
    return ranked

  def _write(
    self, texts: Sequence[Text], task: str | Sequence[str | None] | None
  ) -> list[str]:
    """Returns the texts, those given as fields written by their template."""
    written = []
    for i, (text, name) in enumerate(
      zip(texts, _names(task, len(texts)), strict=True)
    ):
      if isinstance(text, Mapping):
        try:
          text = self._fill(text, name)
        except InputError as e:
          raise InputError(f'text {i}: {e}') from e
      if not isinstance(text, str):
        raise InputError(
          f'text {i} is {text!r}, expected text or a dict of fields'
        )
      written.append(text)
    return written

  def _text(self, name: str | None) -> TaskText:
    """How the text of a task is written."""
    if self.bundle is None:
      raise InputError('there are no prompts that know a template')
    return self.bundle.text(name)

  def _fill(self, fields: Mapping[str, Any], name: str | None) -> str:
    return self._text(name).fill(fields)

  def _rows(
    self, task: str | Sequence[str | None] | None, count: int
  ) -> list[int]:
    """Returns each text's row of the prompt table."""
    if self.bundle is None:
      if task is not None:
        raise InputError(f'task {task!r} was given, but there are no prompts')
      return [0] * count
    if task is None or isinstance(task, str):
      return [self.bundle.row(task)] * count
    if len(task) != count:
      raise InputError(f'{len(task)} tasks were given for {count} texts')
    return [self.bundle.row(name) for name in task]

  def _batch(
    self,
    inputs: Sequence[Sequence[int]],
    rows: Sequence[int],
    names: Sequence[str | None] = (),
  ) -> dict[str, Array | np.ndarray]:
    """Returns the model features of unpacked examples.

    Args:
      inputs: the ids of each.
      rows: each one's row of the prompt table.
      names: each one's task, as far as it was given.
    """
    del names
    length = self.model.prompt_length
    text = _padded(inputs, _SHORTEST)
    tokens = np.pad(text, ((0, 0), (length, 0)), constant_values=_SLOT_ID)
    slots = np.zeros_like(tokens)
    slots[:, :length] = np.arange(1, length + 1)
    task_rows = np.asarray(rows, np.int32)[:, None]
    return {
      'encoder_input_tokens': tokens,
      'encoder_prompt_slots': slots,
      'encoder_task_ids': np.where(tokens > 0, task_rows, 0),
    }


class PromptedMaskedModel(PromptedT5):
  """A frozen masked encoder with the prompts of one or more tasks.

  It answers with the label words of a task, as its prompts' bundle says them.
  Texts are dicts of their fields, or plain texts where a task's template for
  encoders has one field alone.
  """

  def _fill(self, fields: Mapping[str, Any], name: str | None) -> str:
    return self._text(name).fill(fields, masks=True)

  def _write(
    self, texts: Sequence[Text], task: str | Sequence[str | None] | None
  ) -> list[str]:
    """Returns the texts as the templates for encoders write them."""
    fields: list[Text] = []
    names = _names(task, len(texts))
    for i, (text, name) in enumerate(zip(texts, names, strict=True)):
      if isinstance(text, str) and not isinstance(text, Marked):
        try:
          text = {self._text(name).masked_field: text}
        except InputError as e:
          raise InputError(f'text {i}: {e}') from e
      fields.append(text)
    return super()._write(fields, task)

  def _offered(self, name: str | None) -> Candidates:
    """The words that can fill the mask of a task."""
    text = self._text(name)
    if text.fillers is None:
      raise InputError(
        f'the prompts do not say which words answer task {name!r}: register it'
        f' with {NO_MASK} and train anew'
      )
    known = name or ''
    if known not in self._known:
      self._known[known] = in_vocabulary(text.fillers, known, self.tokenizer)
    return self._known[known]

  @functools.cached_property
  def _known(self) -> dict[str, Candidates]:
    return {}

  def _batch(
    self,
    inputs: Sequence[Sequence[int]],
    rows: Sequence[int],
    names: Sequence[str | None] = (),
  ) -> dict[str, Array | np.ndarray]:
    """As of T5, with the words that are offered."""
    batch = super()._batch(inputs, rows, names)
    offered = [self._offered(name).features(None) for name in names]
    return batch | _candidates(offered)

  def _targets(
    self, wanted: Sequence[tuple[str, str | None]]
  ) -> dict[str, np.ndarray]:
    """The features of targets: answers of a task, as its bundle has them."""
    chosen = []
    for text, name in wanted:
      answers = list(self._text(name).answers().values())
      if text not in answers:
        raise InputError(
          f'target {text!r} is no answer of the task, which are'
          f' {", ".join(answers)}{nearest(text, answers)}'
        )
      chosen.append(self._offered(name).features(answers.index(text)))
    return _candidates(chosen)

  def _answer_of(self, text: str, name: str | None) -> str:
    """The answer of the class whose word was filled in."""
    offered = self._offered(name)
    if text not in offered.texts:
      return text  # A score was not a number.
    place = offered.classes[offered.texts.index(text)] - 1
    return list(self._text(name).answers().values())[place]


def _face(backbone: Backbone) -> type[PromptedT5]:
  """The class of a backbone's family."""
  generates = family(backbone.config).generates
  return PromptedT5 if generates else PromptedMaskedModel


def _candidates(
  offered: Sequence[Mapping[str, np.ndarray]],
) -> dict[str, np.ndarray]:
  """The features of the words of several examples; see `models`."""
  names = {
    'decoder_target_tokens': 'targets',
    'decoder_input_tokens': 'classes',
    'decoder_loss_weights': 'weights',
  }
  return {
    feature: _padded([words[name].tolist() for words in offered])
    for feature, name in names.items()
  }


def _padded(rows: Sequence[Sequence[int]], shortest: int = 4) -> np.ndarray:
  """[N, length] int32: rows of ids, filled up with zeros to a round length."""
  tokens = np.zeros(
    (len(rows), _round_up(max(map(len, rows)), shortest)), np.int32
  )
  for row, ids in zip(tokens, rows, strict=True):
    row[: len(ids)] = ids
  return tokens


def evaluate(
  model: PromptedT5 | BackboneSource | Backbone | str,
  tasks: str | Sequence[str] | Mapping[str, Any],
  split: str = 'test',
  *,
  prompts: str | None = None,
  prompt_task: str | None = None,
  model_dir: str | None = None,
  batch_size: int = 128,
  decoding: Decoding = Decoding(),
  devices: Devices = Devices(),
  **examples: Any,
) -> Results:
  """Scores a model, or a backbone with prompts, by the tasks' own metrics.

  What `python -m mpt_jax.eval` does.

  Args:
    model: a `PromptedT5`, which is on its device already; or a backbone, where
      it is read, or no more than its path.
    tasks: a registered task or mixture, or several; or {name: `Task`}.
    split: the split to score.
    prompts: path of a prompt bundle, PEFT folder or `.npy`, for a backbone;
      None is the backbone alone.
    prompt_task: score with this task's prompt whatever the example's task;
      None takes each example's own.
    model_dir: folder for `results.json` and the answers; None writes none.
    batch_size: examples that are decoded together.
    decoding: how answers are searched.
    devices: devices and memory, for a backbone.
    **examples: more of `settings.Examples`: `task_feature_lengths`,
      `num_examples`, `module`, `allow_cut_targets`.

  Returns:
    The scores, {task: {metric: value}}; shown with their intervals and floors.

  Raises:
    InputError: if something given is wrong.
  """
  if isinstance(model, PromptedT5):
    if prompts is not None:
      raise InputError(
        'the model has its prompts: give a backbone to score others'
      )
    return model.evaluate(
      tasks,
      split,
      prompt_task=prompt_task,
      model_dir=model_dir,
      batch_size=batch_size,
      decoding=decoding,
      **examples,
    )
  return score(
    _examples(tasks, split, examples),
    lambda: make_predictor(
      model,
      prompts,
      batch_size=batch_size,
      prompt_task=prompt_task,
      decoding=decoding,
      devices=devices,
    ),
    model_dir,
  )


def _examples(
  tasks: str | Sequence[str] | Mapping[str, Any],
  split: str,
  more: Mapping[str, Any],
) -> Examples:
  """Examples by the names of their settings."""
  known = [field.name for field in dataclasses.fields(Examples)][2:]
  for name in more:
    if name not in known:
      raise InputError(
        f'evaluate knows no setting {name!r}: it is one of'
        f' {", ".join(known)}{nearest(name, known)}'
      )
  from mpt_jax.data import memory

  if isinstance(tasks, Mapping):
    memory.register(tasks)
    tasks = list(tasks)
  names = [tasks] if isinstance(tasks, str) else tasks
  if all(map(memory.find, names)):
    # The registry is not needed, nor SeqIO.
    more = {'module': None, **more}
  return Examples(tasks, split, **more)


def _check_texts(method: str, texts: Sequence[Text]) -> None:
  if isinstance(texts, str | Mapping):
    raise InputError(f'{method} takes a list of texts, not one text')


def _names(
  task: str | Sequence[str | None] | None, count: int
) -> Sequence[str | None]:
  return [task] * count if task is None or isinstance(task, str) else task


def _taken(members: Sequence[int], *lists: Sequence[Any]) -> list[list[Any]]:
  """Some members of each of several lists."""
  return [[each[i] for i in members] for each in lists]


def _batches(
  inputs: Sequence[Sequence[int]], batch_size: int
) -> Iterator[tuple[list[int], list[int]]]:
  """Cuts inputs into batches of few shapes: like lengths go together.

  Args:
    inputs: tokens of each input.
    batch_size: the most inputs in a batch.

  Yields:
    (positions of the inputs, the same filled up to the batch's size). The
    batch is filled up with its last input, which unlike an empty one cannot
    keep the decoder busy longer.
  """
  order = sorted(range(len(inputs)), key=lambda i: len(inputs[i]))
  for start in range(0, len(order), batch_size):
    chosen = order[start : start + batch_size]
    size = min(_round_up(len(chosen), 1), batch_size)
    yield chosen, chosen + chosen[-1:] * (size - len(chosen))


def _round_up(size: int, least: int) -> int:
  """Returns the next power of two, at least `least`."""
  return max(least, 1 << (size - 1).bit_length())
