"""The synthetic data sets: rows in the schemas of the official ones.

`DATASETS` says which data sets there are, under which TFDS name, with which
splits; `make_split` draws the rows. No TensorFlow here.
"""

from collections.abc import Callable, Mapping
import dataclasses
import random
from typing import Any

from tasks.offline import skills, world

Row = dict[str, Any]
Maker = Callable[[random.Random], Row]


def _mnli(rng: random.Random) -> Row:
  label = rng.randrange(3)
  premise, hypothesis = skills.nli(rng, label)
  return {'premise': premise, 'hypothesis': hypothesis, 'label': label}


def _qnli(rng: random.Random) -> Row:
  yes = rng.randrange(2)
  question, sentence = skills.answerable(rng, yes)
  return {'question': question, 'sentence': sentence, 'label': 1 - yes}


def _qqp(rng: random.Random) -> Row:
  label = rng.randrange(2)
  first, second = skills.duplicate(rng, label)
  return {'question1': first, 'question2': second, 'label': label}


def _sst2(rng: random.Random) -> Row:
  label = rng.randrange(2)
  return {'sentence': skills.sentiment(rng, label), 'label': label}


def _rte(rng: random.Random) -> Row:
  yes = rng.randrange(2)
  premise, hypothesis = skills.entailment(rng, yes)
  return {'sentence1': premise, 'sentence2': hypothesis, 'label': 1 - yes}


def _cb(rng: random.Random) -> Row:
  label = rng.randrange(3)
  # CB's order of the classes is not MNLI's.
  name = ('entailment', 'contradiction', 'neutral')[label]
  premise, hypothesis = skills.nli(rng, skills.NLI.index(name), noise=1.0)
  return {'premise': premise, 'hypothesis': hypothesis, 'label': label}


def _mrpc(rng: random.Random) -> Row:
  label = rng.randrange(2)
  first, second = skills.paraphrase(rng, label)
  return {'sentence1': first, 'sentence2': second, 'label': label}


def _boolq(rng: random.Random) -> Row:
  label = rng.randrange(2)
  question, passage = skills.yes_no(rng, label)
  return {'question': question, 'passage': passage, 'label': label}


def _cola(rng: random.Random) -> Row:
  label = rng.randrange(2)
  return {'sentence': skills.acceptable(rng, label), 'label': label}


def _stsb(rng: random.Random) -> Row:
  level = rng.randrange(len(world.SIMILARITY))
  first, second = skills.similarity(rng, level)
  return {
    'sentence1': first,
    'sentence2': second,
    'label': world.SIMILARITY[level],
  }


def _squad(rng: random.Random) -> Row:
  question, context, answer = skills.reading(rng)
  return {
    'title': 'synthetic',
    'question': question,
    'context': context,
    'answers': {
      'text': [answer],
      'answer_start': [f' {context} '.index(f' {answer} ')],
    },
  }


def _record(rng: random.Random) -> Row:
  query, entities, passage, answer = skills.cloze(rng)
  return {
    'query': query,
    'entities': entities,
    'passage': passage,
    'answers': [answer],
  }


@dataclasses.dataclass(frozen=True)
class Dataset:
  """One synthetic data set.

  Attributes:
    name: the SeqIO task's short name.
    tfds_name: the official name and version.
    make: draws one row, without its running index.
    source: whether it is a source task (large) or a target.
    heldout: names of the official splits besides `train`; all have labels
      but `test`, where the official one hides them.
  """

  name: str
  tfds_name: str
  make: Maker
  source: bool
  heldout: tuple[str, ...] = ('validation', 'test')


DATASETS: Mapping[str, Dataset] = {
  d.name: d
  for d in (
    Dataset(
      'mnli',
      'glue/mnli:2.0.0',
      _mnli,
      True,
      (
        'validation_matched',
        'validation_mismatched',
        'test_matched',
        'test_mismatched',
      ),
    ),
    Dataset('qnli', 'glue/qnli:2.0.0', _qnli, True),
    Dataset('qqp', 'glue/qqp:2.0.0', _qqp, True),
    Dataset('sst2', 'glue/sst2:2.0.0', _sst2, True),
    Dataset('squad', 'squad/v1.1:3.0.0', _squad, True, ('validation',)),
    Dataset('record', 'super_glue/record:1.0.2', _record, True),
    Dataset('rte', 'glue/rte:2.0.0', _rte, False),
    Dataset('cb', 'super_glue/cb:1.0.2', _cb, False),
    Dataset('mrpc', 'glue/mrpc:2.0.0', _mrpc, False),
    Dataset('boolq', 'super_glue/boolq:1.0.2', _boolq, False),
    Dataset('cola', 'glue/cola:2.0.0', _cola, False),
    Dataset('stsb', 'glue/stsb:2.0.0', _stsb, False),
  )
}

# Rows. A source must leave 1,000 rows of `train` for validation; a target's
# official validation split is halved into validation and test.
SOURCE_TRAIN = 7000
TARGET_TRAIN = 2000
SOURCE_HELDOUT = 1000
TARGET_HELDOUT = 1600
HIDDEN_TEST = 100
# A smaller `train` leaves the source tasks nothing beside their validation.
LEAST_TRAIN = SOURCE_HELDOUT + 32


def _key(row: Row) -> str:
  return repr(sorted((k, v) for k, v in row.items() if k != 'label'))


def make_splits(
  name: str, seed: int = 0, train_size: int | None = None
) -> dict[str, list[Row]]:
  """Draws all splits of a data set; no text occurs twice.

  Args:
    name: a key of `DATASETS`.
    seed: fixes the rows, together with the name.
    train_size: rows of `train`; default by the kind of task.

  Returns:
    Rows by official split name. Those of a hidden test split carry the label
    -1 (or no answers), as the official ones do.
  """
  dataset = DATASETS[name]
  if train_size is None:
    train_size = SOURCE_TRAIN if dataset.source else TARGET_TRAIN
  heldout = SOURCE_HELDOUT if dataset.source else TARGET_HELDOUT
  rng = random.Random(f'{name}/{seed}')
  seen: set[str] = set()
  splits: dict[str, list[Row]] = {}
  # The held-out rows come first: they do not depend on the size of `train`.
  for split in (*dataset.heldout, 'train'):
    hidden = split.startswith('test')
    size = HIDDEN_TEST if hidden else heldout
    size = train_size if split == 'train' else size
    rows: list[Row] = []
    while len(rows) < size:
      row = dataset.make(rng)
      if (key := _key(row)) in seen:
        continue
      seen.add(key)
      rows.append(_finish(name, split, len(rows), row, hidden))
    splits[split] = rows
  return splits


def _finish(name: str, split: str, number: int, row: Row, hidden: bool) -> Row:
  """Adds the running index and hides what the official test split hides."""
  if name == 'squad':
    return {'id': f'{split}-{number}', **row}
  if name == 'record':
    row['idx'] = {'passage': number, 'query': number}
    if hidden:
      row['answers'] = []
    return row
  row['idx'] = number
  if hidden:
    row['label'] = -1
  return row
