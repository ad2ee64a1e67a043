"""What a run reads has a digest: an edit of the data must not go unnoticed.

And what a run does not read is no reason to refuse it.
"""

import os

import pytest
import seqio

from mpt_jax import data
from tests.data import toys

pytestmark = pytest.mark.data

LENGTHS = {'inputs': 24, 'targets': 8}
TEXT = """text\tlabel\tnote
the film was great\tgood\t1
the food was awful\tbad\t2
the music was lovely\tgood\t3
the hotel was dull\tbad\t4
"""


@pytest.fixture
def read(tmp_path):
  """Digests of the split as it is trained on, and as it is scored."""
  path = tmp_path / 'train.tsv'
  name = 'edited'
  data.register_task(
    name,
    str(path),
    inputs='edited text: {text}',
    labels=('bad', 'good'),
    metric_fns=[lambda targets, predictions: {'n': len(targets)}],
  )

  def call(content, stamp, **config):
    path.write_bytes(
      content if isinstance(content, bytes) else content.encode()
    )
    # As if it had been edited at another time: sizes may be equal.
    os.utime(path, ns=(stamp, stamp))
    iterator = data.get_train_iterator(
      data.DatasetConfig(
        mixture_or_task_name=name,
        task_feature_lengths=LENGTHS,
        batch_size=2,
        **config,
      ),
      prompt_length=3,
      task_names=(name,),
    )
    scored = data.examine(toys.examples(name, 'train', LENGTHS), 3, (name,))[
      name
    ]
    return iterator.digests()[name], {
      'examples': scored.examples,
      'digest': scored.digest,
    }

  yield call
  seqio.TaskRegistry.remove(name)


@pytest.mark.parametrize(
  ('edit', 'examples'),
  [
    (lambda t: t.replace('great\tgood', 'great\tbad'), 4),
    (lambda t: t.replace('awful', 'bland'), 4),
    (lambda t: t + 'the story was dull\tbad\t5\n', 5),
    (lambda t: '\n'.join(t.split('\n')[:4]), 3),
    (lambda t: '\n'.join(t.split('\n')[i] for i in (0, 2, 1, 3, 4)), 4),
  ],
  ids=['label', 'text', 'more', 'fewer', 'order'],
)
def test_an_edit_is_another_digest(read, edit, examples):
  before = read(TEXT, 10**18)
  after = read(edit(TEXT), 10**18 + 10**9)
  for was, now in zip(before, after, strict=True):
    assert was['examples'] == 4
    assert now['examples'] == examples
    assert now['digest'] != was['digest']
  # The old file again is the old data again.
  assert read(TEXT, 10**18 + 2 * 10**9) == before


@pytest.mark.parametrize(
  'edit',
  [
    lambda t: t.replace('\n', '\r\n'),
    lambda t: '\ufeff' + t,
    lambda t: t.replace('\t1\n', '\t9\n'),
    lambda t: t.rstrip('\n'),
  ],
  ids=['line ends', 'byte order mark', 'column not read', 'last line'],
)
def test_what_is_not_read_is_no_other_data(read, edit):
  before = read(TEXT, 10**18)
  assert read(edit(TEXT), 10**18 + 10**9) == before


def test_few_shot_runs_are_tied_to_what_was_chosen(read):
  config = {'num_shots': 1, 'seed': 5}
  before, _ = read(TEXT, 10**18, **config)
  assert before['examples'] == 2
  digests = set()
  for number, line in enumerate(TEXT.splitlines()[1:], start=1):
    edited = TEXT.replace(line, line.replace('the', 'one'))
    after, _ = read(edited, 10**18 + number * 10**9, **config)
    digests.add(after['digest'])
  # Two of the four were chosen, and either edit shows.
  assert len(digests) == 3
  assert before['digest'] in digests
