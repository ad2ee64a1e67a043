"""The synthetic data sets: rows in the schemas of the official ones.

`DATASETS` says which data sets there are, under which TFDS name, with which
splits; `make_splits` draws the rows. Here are the twelve data sets of the
demo; `more_datasets` and `data_to_text` have the others. No TensorFlow here.
"""

from collections.abc import Mapping
import random

from tasks.offline import data_to_text, more_datasets, skills, world
from tasks.offline.rows import SOURCE, TARGET, Dataset, Row, single


def _mnli(rng: random.Random) -> Row:
  label = rng.randrange(3)
  premise, hypothesis = skills.nli(rng, label)
  return {'premise': premise, 'hypothesis': hypothesis, 'label': label}


def qnli(rng: random.Random) -> Row:
  """Draws a row of QNLI."""
  yes = rng.randrange(2)
  question, sentence = skills.answerable(rng, yes)
  return {'question': question, 'sentence': sentence, 'label': 1 - yes}


def qqp(rng: random.Random) -> Row:
  """Draws a row of QQP."""
  label = rng.randrange(2)
  first, second = skills.duplicate(rng, label)
  return {'question1': first, 'question2': second, 'label': label}


def sst2(rng: random.Random) -> Row:
  """Draws a row of SST-2."""
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


def _squad_id(row: Row, split: str, number: int) -> Row:
  return {'id': f'{split}-{number}', **row}


def _record_idx(row: Row, split: str, number: int) -> Row:
  del split
  return {**row, 'idx': {'passage': number, 'query': number}}


# What the demo trains and tests on. Its results depend on each of these rows.
DEMO = (
  Dataset(
    'mnli',
    'glue/mnli:2.0.0',
    single(_mnli),
    SOURCE,
    heldout=('validation_matched', 'validation_mismatched'),
    hidden=('test_matched', 'test_mismatched'),
  ),
  Dataset('qnli', 'glue/qnli:2.0.0', single(qnli), SOURCE),
  Dataset('qqp', 'glue/qqp:2.0.0', single(qqp), SOURCE),
  Dataset('sst2', 'glue/sst2:2.0.0', single(sst2), SOURCE),
  Dataset(
    'squad', 'squad/v1.1:3.0.0', single(_squad), SOURCE, _squad_id, hidden=()
  ),
  Dataset(
    'record', 'super_glue/record:1.0.2', single(_record), SOURCE, _record_idx
  ),
  Dataset('rte', 'glue/rte:2.0.0', single(_rte), TARGET),
  Dataset('cb', 'super_glue/cb:1.0.2', single(_cb), TARGET),
  Dataset('mrpc', 'glue/mrpc:2.0.0', single(_mrpc), TARGET),
  Dataset('boolq', 'super_glue/boolq:1.0.2', single(_boolq), TARGET),
  Dataset('cola', 'glue/cola:2.0.0', single(_cola), TARGET),
  Dataset('stsb', 'glue/stsb:2.0.0', single(_stsb), TARGET),
)

DATASETS: Mapping[str, Dataset] = {
  d.name: d for d in (*DEMO, *more_datasets.DATASETS, *data_to_text.DATASETS)
}


def make_splits(
  name: str, seed: int = 0, train_size: int | None = None
) -> dict[str, list[Row]]:
  """Draws all splits of a data set; no text occurs twice.

  Args:
    name: a key of `DATASETS`.
    seed: fixes the rows, together with the name.
    train_size: rows of the split to train on; default by the data set.

  Returns:
    Rows by official split name. Those of a hidden test split carry the label
    -1 (or no answers), as the official ones do.
  """
  dataset = DATASETS[name]
  rng = random.Random(f'{name}/{seed}')
  seen: set[str] = set()
  splits: dict[str, list[Row]] = {}
  for split, size in dataset.split_sizes(train_size).items():
    rows: list[Row] = []
    while len(rows) < size:
      drawn = dataset.draw(rng, split)
      if (key := dataset.key(drawn[0])) in seen:
        continue
      seen.add(key)
      for row in drawn:
        row = dataset.identify(row, split, len(rows))
        rows.append(_hide(row) if split in dataset.hidden else row)
    splits[split] = rows[:size]
  return splits


def _hide(row: Row) -> Row:
  """Hides what the official test split hides."""
  nothing: Row = {'label': -1, 'answers': []}
  return {key: nothing.get(key, value) for key, value in row.items()}
