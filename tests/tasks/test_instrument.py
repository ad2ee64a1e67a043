"""The instrument: true labels, kinds, and what the pretraining may hold."""

import functools
import hashlib
import os
import random

import pytest

pytest.importorskip('seqio')

from mpt_jax import cli, data, pipeline  # noqa: E402
from mpt_jax.checkpoints.backbone import demo_folder  # noqa: E402
from mpt_jax.checkpoints.vocabulary import Vocabulary  # noqa: E402
from mpt_jax.study import rates, steps  # noqa: E402
from tasks.offline import (  # noqa: E402
  compound,
  corpus,
  instrument,
  large_corpus,
  pretraining,
  world,
)
from tests.tasks.reader import (  # noqa: E402
  answers,
  asked_field,
  good,
  read,
  relation,
)

pytestmark = pytest.mark.data

SPECS = {s.name: s for s in instrument.SOURCES + instrument.TARGETS}
# Digests of all rows: no change may touch them.
ROWS = {
  'mnli_world': 'ac1f0c108784',
  'qnli_world': '730f91df67e5',
  'qqp_world': '19697b55313d',
  'sst2_world': '7a12f687769c',
  'squad_world': '85855b2ce7e4',
  'record_world': '5a987430a858',
  'deduction': '40f1b98c17db',
  'rephrasing': 'f1618e2ed77a',
  'verdict': '3f8958cf2ee6',
  'proven_and_praised': '85bf5d546b74',
  'asked_and_answered': '07f64640a354',
  'answer_and_verdict': 'b534b08215de',
  'well_formed': '5e81c0d942dd',
  'earlier': '1f671747aebd',
  'tally': 'b942eacf52f9',
}


@functools.cache
def rows(name):
  rng = random.Random(f'test {name}')
  return [SPECS[name].draw(rng) for _ in range(300)]


def told(text):
  """The sentences of a text that tell a fact."""
  return [s for s in text.split(' . ') if read(s)['name']]


def follows(premise, hypothesis):
  """How a hypothesis stands to the sentences that tell facts."""
  found = {relation(s, hypothesis) for s in told(premise)} - {'neutral'}
  assert len(found) < 2
  return found.pop() if found else 'neutral'


def same_question(one, two):
  return read(one) == read(two) and asked_field(one) == asked_field(two)


def opinion(text):
  (found,) = [s for s in text.split(' . ') if not read(s)['name']]
  return good(found)


def check(name, truth):
  """All rows have the class that the reader finds, and each class occurs."""
  seen = set()
  for row in rows(name):
    assert row['label'] == truth(row), row
    seen.add(row['label'])
  assert seen == set(range(len(SPECS[name].labels)))


def test_labels_of_the_sources_are_true():
  nli = ('entailment', 'neutral', 'contradiction')
  check(
    'mnli_world', lambda r: nli.index(follows(r['premise'], r['hypothesis']))
  )
  check(
    'qnli_world',
    lambda r: int(
      not any(answers(r['question'], s) for s in told(r['sentence']))
    ),
  )
  check('qqp_world', lambda r: same_question(r['question1'], r['question2']))
  check('sst2_world', lambda r: opinion(r['sentence']))


def test_answers_of_the_sources_are_the_only_ones():
  for row in rows('squad_world'):
    (sentence,) = [
      s for s in told(row['context']) if answers(row['question'], s)
    ]
    found = read(sentence)[asked_field(row['question'])]
    assert found == row['answer'].split()[-1], row
  for row in rows('record_world'):
    entities = row['entities'].split(', ')
    assert sorted(entities, key=row['passage'].split().index) == entities
    kind = world.NAMES if row['answer'] in world.NAMES else world.PLACES
    fitting = [
      e
      for e in entities
      if e in kind
      and follows(row['passage'], row['query'].replace(world.HOLE, e))
      == 'entailment'
    ]
    assert fitting == [row['answer']], row


def test_labels_of_the_targets_are_true():
  entails = 'entailment'
  check(
    'deduction', lambda r: relation(r['premise'], r['hypothesis']) == entails
  )
  check('rephrasing', lambda r: same_question(r['question1'], r['question2']))
  check('verdict', lambda r: {good(s) for s in r['text'].split(' . ')} == {1})
  check(
    'proven_and_praised',
    lambda r: relation(r['p'], r['h']) == entails and good(r['text']),
  )
  check(
    'asked_and_answered',
    lambda r: same_question(r['q1'], r['q2']) and answers(r['q1'], r['text']),
  )
  check(
    'earlier',
    lambda r: (
      world.DAYS.index(read(r['first'])['day'])
      < world.DAYS.index(read(r['second'])['day'])
    ),
  )
  check(
    'tally',
    lambda r: sum(world.CLASS_OF[w] == r['kind'] for w in r['listed'].split()),
  )
  for row in rows('answer_and_verdict'):
    *_, answer, word = row['answer'].split()
    (sentence,) = told(row['context'])
    assert read(sentence)[asked_field(row['question'])] == answer
    assert word == ('positive' if good(row['text']) else 'negative')


@pytest.mark.parametrize('name', ['proven_and_praised', 'asked_and_answered'])
def test_one_skill_does_not_do_for_two(name):
  """Who judges one half alone is right in three of four at most."""
  right = {0: 0, 1: 0}
  for row in rows(name):
    if name == 'proven_and_praised':
      halves = relation(row['p'], row['h']) == 'entailment', good(row['text'])
    else:
      halves = (
        same_question(row['q1'], row['q2']),
        answers(row['q1'], row['text']),
      )
    for i in right:
      right[i] += halves[i] == row['label']
  for number in right.values():
    assert 0.65 < number / len(rows(name)) < 0.85


def test_rows_are_those_of_the_published_results():
  found = {}
  for name in SPECS:
    text = repr(instrument.splits(name)['test'][:100])
    found[name] = hashlib.sha256(text.encode()).hexdigest()[:12]
  assert found == ROWS


def test_no_text_is_in_two_splits_and_all_fit():
  file = os.path.join(demo_folder(), 'spiece.model')
  vocabulary = Vocabulary(file)
  for name, spec in SPECS.items():
    drawn = instrument.splits(name)
    texts = [spec.inputs.format(**r) for part in drawn.values() for r in part]
    assert len(set(texts)) == len(texts)
    assert len(drawn['test']) >= 1000
    assert len(drawn['validation']) >= 512
    assert len(drawn['train']) >= 4000
    longest = max(texts, key=lambda t: len(t.replace(',', ' ,').split()))
    ids = vocabulary.model_ids(longest)
    assert len(ids) + 1 <= instrument.LENGTHS['inputs']
    assert 2 not in ids
    assert data.is_synthetic(name)


def test_each_kind_has_targets_and_each_target_sources():
  kinds = list(instrument.KINDS.values())
  assert {k: kinds.count(k) for k in set(kinds)} == {
    'near': 3,
    'composite': 3,
    'far': 3,
  }
  sources = {s.name for s in instrument.SOURCES}
  for spec in instrument.TARGETS:
    assert len(spec.sources) == (2 if spec.kind == 'composite' else 1)
    assert set(spec.sources) <= sources


def test_pretraining_has_no_downstream_label_format_or_pair():
  downstream = {*corpus.DOWNSTREAM_WORDS, *world.TITLES}
  labels = [*large_corpus.LABELS.values(), *corpus.STYLES.values()]
  assert downstream.isdisjoint(w for group in labels for w in group)
  pairs = {*large_corpus.PAIRS, *large_corpus.THEN}
  assert pairs.isdisjoint(
    {('imply', 'mood'), ('twin', 'cover'), ('read', 'mood')}
  )
  known = {*corpus.words(), *corpus.SENTINELS}
  rng = random.Random(0)
  for _ in range(3000):
    kind, inputs, targets = large_corpus.draw(rng)
    words = f'{inputs} {targets}'.replace(',', ' ,').split()
    assert known.issuperset(words)
    assert len(words) < sum(pretraining.LARGE_LENGTHS.values()), inputs
    if kind not in ('echo', 'span', 'read', 'fill', 'then'):
      assert downstream.isdisjoint(words), inputs


def test_the_harder_texts_come_later():
  rng = random.Random(0)

  def drawn(number):
    return [large_corpus.draw(rng, number) for _ in range(600)]

  early = drawn(0)
  assert {'relate', 'and', 'then'}.isdisjoint(kind for kind, *_ in early)
  middle = drawn(large_corpus.FIRST)
  assert 'and' not in {kind for kind, *_ in middle}
  late = [kind for kind, *_ in drawn(None)]
  assert {'and', 'then', 'day', 'few', 'thing'} < set(late)
  for kind, inputs, _ in middle:
    if kind in ('imply', 'cover', 'truth'):
      names = [w for w in inputs.split() if w in world.NAMES]
      assert len(names) <= 2, inputs


@pytest.mark.parametrize('form', large_corpus.FORMS)
def test_every_form_is_drawn_with_its_labels(form):
  rng = random.Random(1)
  draw = large_corpus.FORMS[form]
  style = None if form in large_corpus.UNSTYLED else 'beta'
  for _ in range(20):
    inputs, targets = draw(rng, style)
    last = targets.split()[-1]
    assert (last in corpus.STYLES['beta']) == (style is not None), inputs
    own, styled = draw(rng, None)[0], inputs
    first = form.split('_')[0]
    assert own.startswith(f'{first} ')
    assert styled.startswith(f'{first} ')


def test_a_fact_beside_shares_nothing():
  rng = random.Random(2)
  for row in rows('mnli_world'):
    texts = row['hypothesis'], told(row['premise'])[0]
    got = compound.beside(rng, texts, 1)
    assert got[0] == texts[0]
    (new,) = set(got[1].split(' . ')) - {texts[1]}
    for text in texts:
      one, two = read(new), read(text)
      assert all(one[f] != two[f] for f in ('name', 'verb', 'thing'))


@pytest.mark.parametrize('name', ['instrument', 'evidence'])
def test_its_studies_have_its_tasks(name, monkeypatch, tmp_path):
  made = []

  class Stop(Exception):
    pass

  def stop(plan, *_, **__):
    made.append(plan)
    raise Stop

  monkeypatch.setattr(pipeline, 'run', stop)
  with pytest.raises(Stop):
    cli.call(
      'mpt_jax.pipeline',
      'pipeline',
      [f'gin_configs/studies/{name}.gin'],
      [f'MODEL_DIR={str(tmp_path)!r}'],
    )
  (plan,) = made
  runs = steps.search(plan) + steps.reported(plan, rates.given(plan))
  assert len({s.name for s in runs}) == len(runs)
  assert plan.backbone == 'demo-large'
  assert list(plan.tasks.source_tasks) == [s.name for s in instrument.SOURCES]
  assert plan.tasks.targets == {
    s.name: s.sources[0] for s in instrument.TARGETS
  }
  lengths = dict(plan.tasks.task_feature_lengths)
  lengths['inputs'] -= plan.prompts.prompt_length
  assert lengths == instrument.LENGTHS
