"""The demo backbone's pretraining text as SeqIO tasks."""

import os

import pytest

seqio = pytest.importorskip('seqio')

from mpt_jax.data import vocabulary  # noqa: E402
from tasks import offline  # noqa: E402
from tasks.offline import corpus, datasets, pretraining  # noqa: E402

pytestmark = pytest.mark.data


@pytest.fixture(autouse=True)
def _demo_vocabulary():
  folder = os.path.join(os.path.dirname(offline.__file__), 'demo_backbone')
  vocabulary.use_vocabulary(os.path.join(folder, 'spiece.model'))
  yield
  vocabulary.use_vocabulary(None)


def take(name, split, count):
  task = seqio.get_mixture_or_task(name)
  dataset = task.get_dataset(pretraining.LENGTHS, split, shuffle=False)
  return list(dataset.take(count).as_numpy_iterator())


def test_every_downstream_task_has_a_measured_skill():
  assert set(pretraining.SKILL_OF) == set(datasets.DATASETS)
  assert set(pretraining.SKILL_OF.values()) == set(corpus.SKILLS)
  (mixture,) = (seqio.get_mixture_or_task('offline_skills'),)
  names = {task.name for task in mixture.tasks}
  assert names == {f'offline_skill_{skill}' for skill in corpus.SKILLS}


def test_pretraining_examples_fit_and_come_in_the_same_order():
  first = take('offline_pretrain', 'train', 300)
  again = take('offline_pretrain', 'train', 300)
  for one, two in zip(first, again, strict=True):
    assert one['inputs_pretokenized'] == two['inputs_pretokenized']
    # A text that was cut would have lost words of its own.
    text = one['inputs_pretokenized'].decode()
    assert len(one['inputs']) == len(text.replace(',', ' ,').split()) + 1
    assert one['inputs'][-1] == 1
    assert 2 not in one['inputs']


def test_curriculum_starts_without_style_words():
  kinds, styles = set(), set(corpus.STYLES)
  for example in take('offline_pretrain', 'train', 1000):
    words = example['inputs_pretokenized'].decode().split()
    assert not (words[0] in corpus.LABELS and words[1] in styles)
    kinds.add(words[0])
  assert 'relate' not in kinds
  assert 'same' in kinds


def test_sentinels_are_the_last_ids_of_the_vocabulary():
  size = vocabulary.get_vocabulary().vocab_size
  for example in take('offline_pretrain', 'train', 300):
    targets = example['targets_pretokenized'].decode()
    if targets.startswith('<extra_id_0>'):
      assert example['targets'][0] == size - 1
      return
  raise AssertionError('no span corruption among 300 examples')


@pytest.mark.parametrize('skill', ['relate', 'degree', 'read'])
def test_skill_tasks_are_canonical(skill):
  allowed = {w for labels in corpus.LABELS.values() for w in labels}
  for example in take(f'offline_skill_{skill}', 'test', 50):
    inputs = example['inputs_pretokenized'].decode()
    assert inputs.startswith(f'{skill} {corpus.MARKERS[0][0]} ')
    if skill in corpus.LABELS:
      assert example['targets_pretokenized'].decode() in allowed
