"""Every task and mixture, from synthetic data to batches and to scores."""

import functools

import numpy as np
import pytest
import seqio
import tensorflow as tf

from mpt_jax import data
from tasks import mixtures, offline
from tasks.offline import writer
from tasks.table import TABLE
from tests.data import toys
from tests.helpers import encoder

pytestmark = [pytest.mark.data, pytest.mark.slow]

P = 3
LENGTHS = {'inputs': 260, 'targets': 60}
# Tasks of digits differ from their namesakes in the template alone.
NAMES = [
  pytest.param(n, marks=pytest.mark.long) if n.endswith('_digits') else n
  for n in sorted(TABLE)
]
ROWS = ['first', *sorted(TABLE), 'last']
GROUPS = [*mixtures.GROUPS, *(f'{name}_equal' for name in mixtures.GROUPS)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """The whole of the synthetic data, small."""
  path = tmp_path_factory.mktemp('tfds')
  writer.write(str(path), train_size=1040, say=lambda line: None)
  return path


@pytest.fixture(autouse=True)
def _in_use(folder):
  data.set_data_dir(folder)
  data.use_vocabulary(toys.VOCABULARY)
  yield
  data.set_data_dir(None)
  data.use_vocabulary(None)


def test_every_data_set_is_covered(folder):
  assert all(offline.is_synthetic(folder, r.tfds_name) for r in TABLE.values())


@functools.cache
def _examples(name, split):
  """The texts of a task's examples, and WSC's label."""
  ds = seqio.TaskRegistry.get(name).get_dataset(None, split, shuffle=False)
  return [
    (
      e['inputs_pretokenized'].decode(),
      e['targets_pretokenized'].decode(),
      int(e.get('label', 0)),
    )
    for e in ds.as_numpy_iterator()
  ]


@functools.cache
def _expected_segments(name):
  """What the examples of a task must look like in any batch."""
  encode = data.get_vocabulary().encode
  return {
    (
      tuple(data_cut([*encode(inputs), 1], LENGTHS['inputs'] - P)),
      tuple(data_cut([*encode(targets), 1], LENGTHS['targets'])),
    )
    for inputs, targets, _ in _examples(name, 'train')
  }


def data_cut(tokens, limit):
  return tokens if len(tokens) <= limit else [*tokens[: limit - 1], 1]


def _segments(batch, packed):
  if packed:
    yield from toys.read_segments(batch, P)
    return
  for b in range(len(batch['encoder_input_tokens'])):
    tokens = batch['encoder_input_tokens'][b]
    slots = batch['encoder_prompt_slots'][b]
    assert slots[:P].tolist() == [1, 2, 3]
    assert not slots[P:].any()
    [row] = set(batch['encoder_task_ids'][b][tokens > 0].tolist())
    targets = batch['decoder_target_tokens'][b]
    yield row, tuple(tokens[P:][tokens[P:] > 0]), tuple(targets[targets > 0])


@functools.cache
def _converter(pack, spec):
  """Examples to be given, and what tf.data makes of them, in one graph."""
  given = []
  ds = tf.data.Dataset.from_generator(
    lambda: iter(tuple(given)), output_signature=dict(spec)
  )
  converter = data.PromptFeatureConverter(
    pack=pack, prompt_length=P, task_names=ROWS
  )
  return given, converter(ds, LENGTHS).batch(4)


@pytest.mark.parametrize('name', NAMES)
def test_task_to_batches(name):
  rows = ['first', name, 'last']
  ds = seqio.TaskRegistry.get(name).get_dataset(None, 'train', shuffle=False)
  examples = list(ds.take(64).as_numpy_iterator())
  for pack in (False, True):
    config = data.DatasetConfig(
      mixture_or_task_name=name,
      task_feature_lengths=LENGTHS,
      batch_size=16,
      pack=pack,
    )
    batch = next(data.get_train_iterator(config, P, rows))
    count = 0
    for row, *tokens in _segments(batch, pack):
      assert row == 1
      assert tuple(tokens) in _expected_segments(name)
      count += 1
    assert count > 16 if pack else count == 16
    # tf.data's converter, as T5X uses it, agrees.
    given, ds_converted = _converter(pack, tuple(ds.element_spec.items()))
    given[:] = examples
    converted = next(ds_converted.as_numpy_iterator())
    assert set(converted) == set(batch)
    for row, *tokens in _segments(converted, pack):
      assert row == ROWS.index(name)
      assert tuple(tokens) in _expected_segments(name)


@pytest.mark.parametrize('name', GROUPS)
def test_mixture_to_batches(name):
  tasks = [task.name for task in seqio.MixtureRegistry.get(name).tasks]
  rows = sorted(tasks, reverse=True)
  for pack in (False, True):
    config = data.DatasetConfig(
      mixture_or_task_name=name,
      task_feature_lengths=LENGTHS,
      batch_size=64,
      pack=pack,
      task_sampling='stochastic',
    )
    iterator = data.get_train_iterator(config, P, rows)
    seen = set()
    for _ in range(4):
      for row, *tokens in _segments(next(iterator), pack):
        assert tuple(tokens) in _expected_segments(rows[row])
        seen.add(row)
    assert len(seen) >= 2


def _answers(name, split):
  """The targets of a split as the model should say them."""
  return [targets for _, targets, _ in _examples(name, split)]


def _scores(name, outputs):
  """Evaluates a model that says these texts where these were the targets."""
  limit = LENGTHS['targets']

  def encode(text):
    return [*data.get_vocabulary().encode(text), 1]

  targets = [tuple(data_cut(encode(t), limit)) for t in _answers(name, 'test')]
  said = dict(zip(targets, outputs, strict=True))

  def predict_fn(batch):
    tokens = np.zeros_like(batch['decoder_target_tokens'])
    for row, target in zip(tokens, batch['decoder_target_tokens'], strict=True):
      ids = encode(said[tuple(target[target > 0].tolist())])[:limit]
      row[: len(ids)] = ids
    return tokens

  return data.evaluate(
    data.Examples(name, 'test', LENGTHS),
    P,
    [name],
    predict_fn,
    64,
    progress=False,
  )[name]


PERFECT = {
  'accuracy': 100,
  'f1': 100,
  'em': 100,
  'exact_match': 100,
  'mean_3class_f1': 100,
  'matthews_corrcoef': 100,
  'pearson_corrcoef': 100,
  'spearman_corrcoef': 100,
  'bleu': 100,
  'rougeL': 100,
  'invalid': 0,
}
KEYS = {
  'accuracy': {'accuracy', 'invalid'},
  'f1_accuracy': {'f1', 'accuracy', 'invalid'},
  'squad': {'em', 'f1', 'invalid'},
  'nlg': {'bleu', 'rougeL', 'invalid'},
  'stsb': {'pearson_corrcoef', 'spearman_corrcoef', 'invalid'},
  'cola': {'matthews_corrcoef', 'invalid'},
  'multirc': {'f1', 'exact_match', 'invalid'},
  'cb': {'mean_3class_f1', 'accuracy', 'invalid'},
}


def _kind(name):
  name = name.removesuffix('_digits')
  if name in KEYS:
    return name
  if name in ('qqp', 'mrpc'):
    return 'f1_accuracy'
  if name in ('squad', 'record') or name.startswith('mrqa_'):
    return 'squad'
  if name.startswith(('e2e', 'gem', 'web')):
    return 'nlg'
  return 'accuracy'


@pytest.mark.parametrize('name', NAMES)
def test_perfect_outputs(name):
  outputs = _answers(name, 'test')
  scores = _scores(name, outputs)
  assert set(scores) == KEYS[_kind(name)]
  if name == 'wsc':
    # Naming the noun is right where it is the referent.
    labels = [label for *_, label in _examples('wsc', 'test')]
    expected = pytest.approx(100 * np.mean(labels))
    assert scores == {'accuracy': expected, 'invalid': 0}
    return
  assert scores == pytest.approx({k: PERFECT[k] for k in scores}, abs=1e-6)


@pytest.mark.parametrize('name', NAMES)
def test_wrong_outputs(name):
  row = TABLE[name]
  answers = _answers(name, 'test')
  if row.labels:
    outputs = [_next(row.labels, answer) for answer in answers]
  elif name == 'stsb':
    outputs = [f'{5 - float(answer):.1f}' for answer in answers]
  else:
    outputs = ['zebra'] * len(answers)
  scores = _scores(name, outputs)
  expected = dict.fromkeys(scores, 0.0)
  if name == 'stsb':
    expected = {
      'pearson_corrcoef': -100,
      'spearman_corrcoef': -100,
      'invalid': 0,
    }
  elif _kind(name) == 'cola':
    expected = {'matthews_corrcoef': -100, 'invalid': 0}
  elif name == 'wsc':
    # 'zebra' is never the noun: right where the noun is not the referent.
    expected['accuracy'] = 100 - _scores(name, answers)['accuracy']
  assert scores == pytest.approx(expected, abs=1e-5)


def _next(words, word):
  return words[(words.index(word) + 1) % len(words)]


@pytest.mark.parametrize('name', NAMES)
def test_unparsable_outputs(name):
  row = TABLE[name]
  count = len(_answers(name, 'test'))
  # Where any text may be the answer, only an empty one is none.
  texts = row.labels is None and name != 'stsb'
  scores = _scores(name, ['' if texts else 'zebra'] * count)
  assert scores.pop('invalid') == 100
  for metric, value in scores.items():
    if 'corrcoef' in metric and name == 'stsb':
      assert np.isnan(value)  # All are -1: a constant.
    else:
      assert value == 0


@pytest.fixture(scope='module')
def encoder_folder(tmp_path_factory):
  """A vocabulary in which every filler of the tables is one token."""
  words = {w for row in TABLE.values() for w in (row.fillers or {}).values()}
  folder = tmp_path_factory.mktemp('encoder')
  encoder.write(folder, sorted(words))
  return folder


@pytest.mark.parametrize('right', [True, False], ids=['right', 'wrong'])
@pytest.mark.parametrize(
  'name', [n for n in sorted(TABLE) if TABLE[n].labels and 'digits' not in n]
)
def test_an_encoder_fills_the_mask(name, right, encoder_folder):
  pytest.importorskip('tokenizers', reason='tokenizers is not installed')
  data.use_vocabulary(encoder_folder)
  special = data.get_vocabulary().tokenizer.special
  begin, end = special.swap([special.begin, special.end])

  def predict_fn(batch):
    tokens = batch['encoder_input_tokens'][:, P : P + 2]
    assert (tokens == [begin, special.mask]).all()
    words = batch['decoder_target_tokens']
    count = (words[0] > 0).sum()
    # Of as many classes as there are words.
    assert batch['decoder_input_tokens'][0, :count].tolist() == [
      *range(1, count + 1)
    ]
    place = batch['decoder_loss_weights'].argmax(axis=1)
    place = place if right else (place + 1) % count
    answers = np.zeros_like(words)
    answers[:, 0] = words[np.arange(len(words)), place]
    answers[:, 1] = end
    return answers

  examples = data.Examples(name, 'test', {**LENGTHS, 'targets': 4})
  found = data.evaluate(examples, P, [name], predict_fn, 64, progress=False)
  scores = dict(found[name])
  assert set(scores) == KEYS[_kind(name)]
  perfect = {k: PERFECT[k] for k in scores}
  wrong = dict.fromkeys(scores, -100 if _kind(name) == 'cola' else 0)
  expected = perfect if right else {**wrong, 'invalid': 0}
  assert scores == pytest.approx(expected, abs=1e-5)
  row = found.predictions(name)[0]
  assert row['input'].startswith('<mask> ')
  assert row['target'] in TABLE[name].labels
  assert row['output'] in TABLE[name].fillers.values()
