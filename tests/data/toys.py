"""Small SeqIO tasks whose examples can be told apart, and their vocabulary."""

import functools
import pathlib

import numpy as np
import pytest
import seqio
import tensorflow as tf

from mpt_jax import data

VOCABULARY = (
  pathlib.Path(__file__).parents[2] / 'tasks/offline/demo_backbone/spiece.model'
)
LENGTHS = {'inputs': 41, 'targets': 11}
LABELS = ('red', 'blue', 'green')


@pytest.fixture(autouse=True)
def vocabulary():
  """Every test here starts with the demo's vocabulary and no data folder."""
  data.use_vocabulary(VOCABULARY)
  yield data.get_vocabulary()
  data.use_vocabulary(None)
  data.set_data_dir(None)


# One token each.
WORDS = (
  'ann bob carl dora emma fred gina hank ivan jack kate leo saw pear plum hat'
).split()


def make_text(name, split, i):
  """A text that no other task, split or number has; lengths vary."""
  number = f'{WORDS[i // 16]} {WORDS[i % 16]}'
  where = f'{WORDS[ord(name[-1]) % 16]} {WORDS[len(split)]}'
  return f'{where} {number}' + ' kite' * (7 * i % 13)


def _examples(split, shuffle_files=False, seed=None, *, name, sizes, labels):
  del shuffle_files, seed
  count = sizes[split]
  return tf.data.Dataset.from_tensor_slices(
    {
      'inputs': [make_text(name, split, i) for i in range(count)],
      'targets': [labels[i * i % len(labels)] for i in range(count)],
    }
  )


def examples(name, split, lengths=LENGTHS, **kwargs):
  """What is scored of tasks that the test registers itself."""
  return data.Examples(name, split, lengths, module=None, **kwargs)


def percent_right(targets, predictions):
  right = [t == p for t, p in zip(targets, predictions, strict=True)]
  return {'right': 100 * float(np.mean(right))}


@pytest.fixture
def make_task():
  """Registers tasks and mixtures, and removes them afterwards."""
  made = []

  def make(name, train=53, validation=23, labels=LABELS, plain=False, **kwargs):
    sizes = {'train': train, 'validation': validation}
    source = seqio.FunctionDataSource(
      functools.partial(_examples, name=name, sizes=sizes, labels=labels),
      splits=tuple(sizes),
      num_input_examples=sizes,
    )
    made.append(name)
    kwargs.setdefault('metric_fns', [percent_right])
    if not plain:
      return data.register_task(name, source, preprocessors=[], **kwargs)
    vocabulary = kwargs.pop('vocabulary', data.get_vocabulary())
    return seqio.TaskRegistry.add(
      name,
      source,
      preprocessors=[
        seqio.preprocessors.tokenize,
        seqio.preprocessors.append_eos,
      ],
      output_features={
        'inputs': seqio.Feature(vocabulary),
        'targets': seqio.Feature(vocabulary),
      },
      **kwargs,
    )

  yield make
  for name in made:
    seqio.TaskRegistry.remove(name)


@pytest.fixture
def register():
  """`register_task` whose tasks are removed afterwards."""
  made = []

  def call(name, *args, **kwargs):
    task = data.register_task(name, *args, **kwargs)
    made.append(name)
    return task

  yield call
  for name in made:
    seqio.TaskRegistry.remove(name)


@pytest.fixture
def mixture(make_task):
  """The mixture `toy_mix`: toy_a, toy_b, toy_c at 5 : 2 : 1."""
  for name, size in (('toy_a', 53), ('toy_b', 31), ('toy_c', 17)):
    make_task(name, train=size)
  rates = [('toy_a', 5.0), ('toy_b', 2.0), ('toy_c', 1.0)]
  yield seqio.MixtureRegistry.add('toy_mix', rates)
  seqio.MixtureRegistry.remove('toy_mix')


def read_segments(batch, prompt_length):
  """Yields (task row, inputs, targets) of every example of a packed batch.

  Independent of how batches are made; checks the slots, positions, segments
  and the decoder's side on the way.
  """
  tokens = batch['encoder_input_tokens']
  for b in range(len(tokens)):
    segments = batch['encoder_segment_ids'][b]
    count = segments.max()
    assert count == batch['decoder_segment_ids'][b].max()
    # No gaps, padding only at the end.
    for name, ids in (
      ('encoder', segments),
      ('decoder', batch['decoder_segment_ids'][b]),
    ):
      used = ids[ids > 0]
      assert (ids[len(used) :] == 0).all(), name
      assert (np.diff(used) >= 0).all(), name
      assert sorted(set(used)) == list(range(1, count + 1)), name
    unused = segments == 0
    for name in ('input_tokens', 'prompt_slots', 'task_ids', 'positions'):
      assert (batch[f'encoder_{name}'][b][unused] == 0).all(), name
    for segment in range(1, count + 1):
      here = segments == segment
      mine = tokens[b][here]
      slots = batch['encoder_prompt_slots'][b][here]
      assert slots[:prompt_length].tolist() == list(range(1, prompt_length + 1))
      assert (slots[prompt_length:] == 0).all()
      assert (mine != 0).all()
      positions = batch['encoder_positions'][b][here]
      assert positions.tolist() == list(range(here.sum()))
      rows = set(batch['encoder_task_ids'][b][here].tolist())
      assert len(rows) == 1
      there = batch['decoder_segment_ids'][b] == segment
      targets = batch['decoder_target_tokens'][b][there]
      positions = batch['decoder_positions'][b][there]
      assert positions.tolist() == list(range(there.sum()))
      shifted = batch['decoder_input_tokens'][b][there]
      assert shifted.tolist() == [0, *targets[:-1].tolist()]
      assert (batch['decoder_loss_weights'][b][there] == 1).all()
      yield (
        rows.pop(),
        tuple(mine[prompt_length:].tolist()),
        tuple(targets.tolist()),
      )
    assert (batch['decoder_loss_weights'][b].sum()) == (
      batch['decoder_segment_ids'][b] > 0
    ).sum()
