"""The instrument: six sources and targets of three kinds.

Importing this module registers them with SeqIO; they need no data on disk.
Made for the backbone 'demo-large', whose pretraining has the skills under
other words, formats and pairs. `KINDS` says of each target what of the sources
helps it:

- near: the skill of one source, in another format with other label words;
- composite: the skills of two sources at once;
- far: a skill that no source needs.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import random

from mpt_jax import data
from tasks import fillers, glue, metrics, super_glue
from tasks.offline import (
  SYNTHETIC,
  compound,
  corpus,
  datasets,
  skills,
  stories,
  world,
)
from tasks.offline.rows import Row

SIZES: Mapping[str, int] = {'test': 1000, 'validation': 512, 'train': 6000}
TARGET_SIZES: Mapping[str, int] = {**SIZES, 'test': 1500, 'train': 4000}
# The longest inputs, without a prompt; answers are up to 3 words.
LENGTHS = {'inputs': 46, 'targets': 4}

# How often a passage of a source has an opinion beside it.
NOISE_SHARE = 0.5


@dataclasses.dataclass(frozen=True)
class Spec:
  """One task.

  Attributes:
    name: its SeqIO name.
    draw: draws a row; a class is its `label`, an answer its `answer`.
    inputs: template of the inputs.
    labels: label words in the order of the class ids; None: '{answer}'.
    masked: template of an encoder's inputs; None if it cannot answer.
    fillers: label word -> what fills the mask for it, a word of the world.
    kind: of a target: 'near', 'composite' or 'far'; None for a source.
    sources: of a target: the sources whose skills it needs, or, of a far one,
      the one whose text is most like its own.
  """

  name: str
  draw: Callable[[random.Random], Row]
  inputs: str
  labels: tuple[str, ...] | None = None
  masked: str | None = None
  fillers: Mapping[str, str] | None = None
  kind: str | None = None
  sources: tuple[str, ...] = ()


def _noisy(rng: random.Random, text: str) -> str:
  return skills.with_noise(rng, text, NOISE_SHARE)


# --- Sources: the official formats and labels.


def _mnli(rng: random.Random) -> Row:
  label = rng.randrange(3)
  premise, hypothesis = skills.nli(rng, label, NOISE_SHARE)
  return {'premise': premise, 'hypothesis': hypothesis, 'label': label}


def _qnli(rng: random.Random) -> Row:
  row = datasets.qnli(rng)
  return {**row, 'sentence': _noisy(rng, row['sentence'])}


def _squad(rng: random.Random) -> Row:
  question, context, answer = skills.reading(rng)
  return {
    'question': question,
    'context': _noisy(rng, context),
    'answer': answer,
  }


def _record(rng: random.Random) -> Row:
  query, entities, passage, answer = skills.cloze(rng)
  return {
    'query': query,
    'entities': ', '.join(entities),
    'passage': _noisy(rng, passage),
    'answer': answer,
  }


# --- Near targets.


def _deduction(rng: random.Random) -> Row:
  label = rng.randrange(2)
  premise, hypothesis = skills.entailment(rng, label)
  return {'premise': premise, 'hypothesis': hypothesis, 'label': label}


def _verdict(rng: random.Random) -> Row:
  label = rng.randrange(2)
  return {'text': stories.review(rng, label), 'label': label}


# --- Composite targets, of pairs that the pretraining does not have.


def _proven_and_praised(rng: random.Random) -> Row:
  label = rng.randrange(2)
  classes = compound.both(rng, label)
  premise, hypothesis, text = compound.pair(rng, 'imply', 'mood', classes)
  return {'p': premise, 'h': hypothesis, 'text': text, 'label': label}


def _asked_and_answered(rng: random.Random) -> Row:
  label = rng.randrange(2)
  classes = compound.both(rng, label)
  first, second, text = compound.pair(rng, 'twin', 'cover', classes)
  return {'q1': first, 'q2': second, 'text': text, 'label': label}


def _answer_and_verdict(rng: random.Random) -> Row:
  good = rng.randrange(2)
  question, context, answer = skills.reading(rng)
  return {
    'question': question,
    'context': context,
    'text': skills.sentiment(rng, good),
    'answer': f'{answer} {("negative", "positive")[good]}',
  }


# --- Far targets.


def _well_formed(rng: random.Random) -> Row:
  label = rng.randrange(2)
  return {'sentence': skills.acceptable(rng, label), 'label': label}


def _earlier(rng: random.Random) -> Row:
  label = rng.randrange(2)
  first, second = compound.earlier(rng, label)
  return {'first': first, 'second': second, 'label': label}


def _tally(rng: random.Random) -> Row:
  label = rng.randrange(compound.MOST + 1)
  kind, listed = compound.count(rng, label)
  return {'kind': kind, 'listed': listed, 'label': label}


_NO_YES = super_glue.FALSE_TRUE
_TALLIES = world.SIMILARITY_WORDS[: compound.MOST + 1]
_COUNTS = tuple(f' {word}' for word in corpus.LABELS['degree'][: len(_TALLIES)])

_ENTAILED = fillers.pairs('not_entailment', 'entailment')
_PRAISED = {'negative': ' terrible', 'positive': ' great'}

SOURCES = (
  Spec(
    'mnli_world',
    _mnli,
    glue.MNLI.inputs,
    glue.MNLI.labels,
    glue.MNLI.masked,
    {'entailment': ' yes', 'neutral': ' open', 'contradiction': ' no'},
  ),
  Spec(
    'qnli_world',
    _qnli,
    glue.QNLI.inputs,
    glue.QNLI.labels,
    glue.QNLI.masked,
    _ENTAILED,
  ),
  Spec(
    'qqp_world',
    datasets.qqp,
    glue.QQP.inputs,
    glue.QQP.labels,
    glue.QQP.masked,
    fillers.pairs('not_duplicate', 'duplicate'),
  ),
  Spec(
    'sst2_world',
    datasets.sst2,
    glue.SST2.inputs,
    glue.SST2.labels,
    glue.SST2.masked,
    _PRAISED,
  ),
  Spec('squad_world', _squad, 'question: {question} context: {context}'),
  Spec('record_world', _record, super_glue.RECORD.inputs),
)
TARGETS = (
  Spec(
    'deduction',
    _deduction,
    'passage: {premise} sentence: {hypothesis}',
    _NO_YES,
    '{mask} {premise}{sep}{hypothesis}',
    fillers.pairs(*_NO_YES),
    'near',
    ('mnli_world',),
  ),
  Spec(
    'rephrasing',
    datasets.qqp,
    'sentence1: {question1} sentence2: {question2}',
    ('not_equivalent', 'equivalent'),
    '{mask} {question1}{sep}{question2}',
    fillers.pairs('not_equivalent', 'equivalent'),
    'near',
    ('qqp_world',),
  ),
  Spec(
    'verdict',
    _verdict,
    'passage: {text}',
    ('unacceptable', 'acceptable'),
    '{mask} {text}',
    {'unacceptable': ' terrible', 'acceptable': ' great'},
    'near',
    ('sst2_world',),
  ),
  Spec(
    'proven_and_praised',
    _proven_and_praised,
    'hypothesis: {h} premise: {p} sentence: {text}',
    _NO_YES,
    '{mask} {p}{sep}{h}{sep}{text}',
    fillers.pairs(*_NO_YES),
    'composite',
    ('mnli_world', 'sst2_world'),
  ),
  Spec(
    'asked_and_answered',
    _asked_and_answered,
    'question1: {q1} question2: {q2} sentence: {text}',
    _NO_YES,
    '{mask} {q1}{sep}{q2}{sep}{text}',
    fillers.pairs(*_NO_YES),
    'composite',
    ('qqp_world', 'qnli_world'),
  ),
  Spec(
    'answer_and_verdict',
    _answer_and_verdict,
    'question: {question} context: {context} sentence: {text}',
    kind='composite',
    sources=('squad_world', 'sst2_world'),
  ),
  Spec(
    'well_formed',
    _well_formed,
    'sentence: {sentence}',
    ('unacceptable', 'acceptable'),
    '{mask} {sentence}',
    {'unacceptable': ' faulty', 'acceptable': ' fine'},
    'far',
    ('sst2_world',),
  ),
  Spec(
    'earlier',
    _earlier,
    'sentence1: {first} sentence2: {second}',
    _NO_YES,
    '{mask} {first}{sep}{second}',
    fillers.pairs(*_NO_YES),
    'far',
    ('qqp_world',),
  ),
  Spec(
    'tally',
    _tally,
    'query: {kind} entities: {listed}',
    _TALLIES,
    '{mask} {kind}{sep}{listed}',
    dict(zip(_TALLIES, _COUNTS, strict=True)),
    'far',
    ('qnli_world',),
  ),
)
KINDS: Mapping[str, str] = {
  spec.name: spec.kind for spec in TARGETS if spec.kind
}


@functools.cache
def splits(name: str) -> Mapping[str, list[Row]]:
  """Draws all splits of a task, the same rows every time; no text twice."""
  spec = next(s for s in SOURCES + TARGETS if s.name == name)
  rng = random.Random(f'instrument/{name}')
  seen: set[str] = set()
  drawn: dict[str, list[Row]] = {}
  for split, size in (TARGET_SIZES if spec.kind else SIZES).items():
    rows: list[Row] = []
    while len(rows) < size:
      row = spec.draw(rng)
      text = spec.inputs.format(**row)
      if text not in seen:
        seen.add(text)
        rows.append(row)
    drawn[split] = rows
  return drawn


@dataclasses.dataclass(frozen=True)
class _Rows:
  """The rows of a task's splits, for `data.register_task`."""

  name: str
  description: str = f'{SYNTHETIC} of mpt_jax (tasks.offline.instrument)'

  def __call__(self, split: str) -> Sequence[Row]:
    return splits(self.name)[split]


def _register(spec: Spec) -> None:
  data.register_task(
    spec.name,
    _Rows(spec.name),
    inputs=spec.inputs,
    targets=None if spec.labels else '{answer}',
    labels=spec.labels,
    masked=spec.masked,
    fillers=spec.fillers,
    metric_fns=[metrics.accuracy, *((metrics.invalid,) if spec.labels else ())],
  )


for _spec in SOURCES + TARGETS:
  _register(_spec)
