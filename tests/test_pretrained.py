"""Text in, text out: tokens, tasks and shapes on the way.

Guards against answers that change with the batch an input happens to share,
prompts that land on the wrong text, and recompilation for every new shape.
"""

import dataclasses

import numpy as np
import pytest

import mpt_jax
from mpt_jax.checkpoints import backbone as backbone_lib
from mpt_jax.checkpoints import huggingface
from mpt_jax.checkpoints.bundle import PromptBundle
from mpt_jax.checkpoints.texts import TaskText
from mpt_jax.pretrained import PromptedT5, Tokenizer
from mpt_jax.types import InputError
from tests.goldens.networks import apply
from tests.helpers import tiny

VOCABULARY = tiny.VOCABULARY
P, D = 3, tiny.SERVED.emb_dim
TASKS = ('mnli', 'sst2', 'rte')
TEXTS = [
  'the cat',
  'sst2 sentence: a fern holds the record of the town',
  'what',
  'is it so <extra_id_0> . not',
  'the the the the the the the the the the the the the the the the the the',
]


def test_demo_names_the_shipped_backbone(tmp_path, monkeypatch):
  (tmp_path / 'demo').mkdir()
  monkeypatch.chdir(tmp_path)
  model = PromptedT5.from_pretrained('demo')
  text = 'mnli hypothesis: the hat premise: the hat'
  assert model.generate([text], max_decode_length=4) == ['holds']


@pytest.fixture(scope='module')
def backbone() -> backbone_lib.Backbone:
  return tiny.served()


def _bundle(**changes) -> PromptBundle:
  rng = np.random.default_rng(0)
  fields = {
    'method': 'multitask',
    'stage': 'source',
    'task_names': TASKS,
    'arrays': {
      'shared_prompt': 9 * rng.normal(size=(P, D)),
      'task_u': rng.normal(size=(3, P, 1)),
      'task_v': rng.normal(size=(3, 1, D)),
    },
  }
  return PromptBundle(**(fields | changes))


@pytest.fixture(scope='module')
def model(backbone) -> PromptedT5:
  return PromptedT5(backbone, _bundle(), Tokenizer(str(VOCABULARY)))


class TestTokenizer:
  @pytest.mark.data
  def test_same_ids_and_texts_as_in_training(self):
    import seqio

    theirs = seqio.SentencePieceVocabulary(str(VOCABULARY), extra_ids=100)
    ours = Tokenizer(str(VOCABULARY))
    assert ours.size == theirs.vocab_size
    odd = ['', ' a  b ', 'x<extra_id_7>y <extra_id_0>, é\n€', '<extra_id_100>']
    for text in [*TEXTS, *odd]:
      assert ours.encode(text) == theirs.encode(text)
    rng = np.random.default_rng(0)
    for ids in rng.integers(0, ours.size + 9, (200, 6)).tolist():
      assert ours.decode(ids) == theirs.decode(ids)

  def test_a_device_is_not_a_vocabulary(self, tmp_path):
    (tmp_path / 'v.model').symlink_to('/dev/zero')
    with pytest.raises(InputError, match='not a regular file'):
      Tokenizer(str(tmp_path / 'v.model'))

  def test_not_a_vocabulary(self, tmp_path):
    (tmp_path / 'v.model').write_bytes(b'\xff' * 50)
    with pytest.raises(InputError, match=r'v\.model is not a Sentence'):
      Tokenizer(str(tmp_path / 'v.model'))
    with pytest.raises(InputError, match='No such file'):
      Tokenizer(str(tmp_path / 'none.model'))


class TestGenerate:
  def test_mixed_tasks_equal_single_tasks(self, model):
    tasks = [TASKS[i % 3] for i in range(len(TEXTS))]
    mixed = model.generate(TEXTS, task=tasks, max_decode_length=7)
    for name in TASKS:
      single = model.generate(TEXTS, task=name, max_decode_length=7)
      for i, task in enumerate(tasks):
        if task == name:
          assert mixed[i] == single[i]
    assert len({a for a in mixed}) > 1

  def test_batches_do_not_matter(self, model):
    want = model.generate(TEXTS, task='rte', max_decode_length=7)
    assert want != model.generate(TEXTS, task='mnli', max_decode_length=7)
    got = model.generate(TEXTS, task='rte', max_decode_length=7, batch_size=2)
    assert got == want
    assert model.generate([], task='rte') == []

  def test_few_shapes_are_compiled(self, backbone):
    model = PromptedT5(backbone, _bundle(), Tokenizer(str(VOCABULARY)))
    for count in range(1, 5):
      model.generate(['the ' * count] * count, task='rte', max_decode_length=2)
    # Batches of 1, 2 and 4 rows of one length.
    assert model._predict._cache_size() == 3

  def test_beams(self, model):
    one = model.generate(
      TEXTS[:1], task='rte', max_decode_length=5, num_beams=2
    )
    assert len(one) == 1

  def test_sampling(self, model):
    arguments = {'task': 'rte', 'max_decode_length': 7, 'temperature': 1.0}
    first = model.generate(TEXTS, **arguments, seed=1)
    assert first == model.generate(TEXTS, **arguments, seed=1)
    assert first != model.generate(TEXTS, **arguments, seed=2)
    # One candidate leaves nothing to chance.
    greedy = model.generate(TEXTS, task='rte', max_decode_length=7)
    assert model.generate(TEXTS, **arguments, topk=1) == greedy

  def test_backbone_alone(self, backbone):
    model = PromptedT5(backbone, None, Tokenizer(str(VOCABULARY)))
    assert len(model.generate(TEXTS[:1], max_decode_length=3)) == 1
    with pytest.raises(InputError, match="task 'rte' was given"):
      model.generate(TEXTS, task='rte')

  def test_one_prompt_needs_no_name(self, backbone):
    one = _bundle().with_tasks(['sst2'])
    model = PromptedT5(backbone, one, Tokenizer(str(VOCABULARY)))
    got = model.generate(TEXTS[:1], max_decode_length=4)
    assert got == model.generate(TEXTS[:1], task='sst2', max_decode_length=4)

  @pytest.mark.parametrize(
    ('texts', 'arguments', 'message'),
    [
      (['a'], {'task': 'rtee'}, "did you mean 'rte'"),
      (['a'], {'task': ['rte', 'rte']}, '2 tasks were given for 1 texts'),
      (['a'], {}, 'task is one of mnli, sst2, rte'),
      ('a', {'task': 'rte'}, 'list of texts'),
      (['a'], {'task': 'rte', 'batch_size': 0}, 'batch_size is 0'),
      (['a'], {'task': 'rte', 'temperature': -1.0}, 'temperature is -1.0'),
      (['a'], {'task': 'rte', 'temperature': float('nan')}, 'is nan'),
      (['a'], {'task': 'rte', 'topp': 1.5}, 'topp is 1.5'),
      (
        ['a'],
        {'task': 'rte', 'num_beams': 2, 'temperature': 1.0},
        'search or sample',
      ),
    ],
  )
  def test_wrong_input(self, model, texts, arguments, message):
    with pytest.raises(InputError, match=message):
      model.generate(texts, **arguments)


class TestScore:
  TARGETS = ['yes', 'the town of the record', '', 'no', 'it is']

  def _by_hand(self, model, text, target, task):
    """Log probability of one pair alone, in float64."""
    ids = [*model.tokenizer.encode(text), 1]
    wanted = [*model.tokenizer.encode(target), 1]
    logits = apply(
      model.backbone.config,
      model.backbone.params,
      np.array([[7] * P + ids]),
      np.array([[0, *wanted[:-1]]]),
      np.array([wanted]),
      prompt_table=model.bundle.table,
      encoder_prompt_slots=np.array([[1, 2, 3] + [0] * len(ids)]),
      encoder_task_ids=np.full((1, P + len(ids)), TASKS.index(task)),
    )
    logits = np.asarray(logits[0], np.float64)
    top = logits.max(axis=-1)
    total = top + np.log(np.exp(logits - top[:, None]).sum(axis=-1))
    return sum(logits[t, i] - total[t] for t, i in enumerate(wanted))

  @pytest.mark.slow
  def test_equals_one_by_one(self, model):
    tasks = [TASKS[i % 3] for i in range(len(TEXTS))]
    scores = model.score(TEXTS, self.TARGETS, task=tasks, batch_size=3)
    expected = [
      self._by_hand(model, *pair)
      for pair in zip(TEXTS, self.TARGETS, tasks, strict=True)
    ]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)

  def test_wrong_input(self, model):
    with pytest.raises(InputError, match='one target for each of the 5 texts'):
      model.score(TEXTS, ['yes'], task='rte')
    with pytest.raises(InputError, match='list of texts'):
      model.score('a', 'b', task='rte')


class TestFields:
  """Dicts in place of texts, and label words in place of targets."""

  ROWS = [
    {'premise': 'the cat', 'hypothesis': 'what', 'id': 7},
    {'premise': 'a fern holds the record of the town', 'hypothesis': 'it'},
    'a plain text',
  ]
  WRITTEN = [
    'mnli hypothesis: what premise: the cat',
    'mnli hypothesis: it premise: a fern holds the record of the town',
    'a plain text',
  ]
  LABELS = ('entailment', 'neutral', 'no')

  @pytest.fixture
  def known(self, backbone) -> PromptedT5:
    texts = {
      'mnli': TaskText(
        'mnli hypothesis: {hypothesis} premise: {premise}',
        'it is {label}',
        self.LABELS,
      ),
      'rte': TaskText(None, '{label}', ('yes', 'no')),
    }
    return PromptedT5(
      backbone, _bundle(texts=texts), Tokenizer(str(VOCABULARY))
    )

  def test_templates_write_them(self, known):
    got = known.generate(self.ROWS, task='mnli', max_decode_length=5)
    assert got == known.generate(self.WRITTEN, task='mnli', max_decode_length=5)
    targets = ['yes', 'no', 'it is']
    assert known.score(self.ROWS, targets, 'mnli') == known.score(
      self.WRITTEN, targets, 'mnli'
    )

  @pytest.mark.slow
  def test_labels_are_ranked_as_pairs_are_scored(self, known):
    texts, tasks = [*self.ROWS, 'the'], ['mnli', 'mnli', 'mnli', 'rte']
    got = known.score(texts, task=tasks, batch_size=3)
    answers = {
      'mnli': {word: f'it is {word}' for word in self.LABELS},
      'rte': {'yes': 'yes', 'no': 'no'},
    }
    by_hand = TestScore()._by_hand
    for text, task, scores in zip(
      [*self.WRITTEN, 'the'], tasks, got, strict=True
    ):
      assert set(scores) == set(answers[task])
      assert list(scores.values()) == sorted(scores.values(), reverse=True)
      for word, value in scores.items():
        want = by_hand(known, text, answers[task][word], task)
        np.testing.assert_allclose(value, want, rtol=1e-5)

  @pytest.mark.parametrize(
    ('texts', 'task', 'message'),
    [
      (
        ['a', {'premise': 'p', 'hypotesis': 'h'}],
        'mnli',
        r"^text 1: no 'hypothesis'; there is \['hypotesis', 'premise'\]",
      ),
      ([{'premise': 'p'}], 'rte', '^text 0: the code of the task writes'),
      ([{'premise': 'p'}], 'sst2', "^text 0: .* do not say .* task 'sst2'"),
      ([3], 'mnli', '^text 0 is 3, expected text or a dict'),
      ({'premise': 'p'}, 'mnli', 'list of texts, not one'),
      (['a'], None, 'say whose prompt to use'),
    ],
  )
  def test_wrong_input(self, known, texts, task, message):
    with pytest.raises(InputError, match=message):
      known.generate(texts, task=task)
    with pytest.raises(InputError, match=message):
      known.score(texts, ['x'] * len(texts), task=task)

  def test_no_labels(self, known, backbone):
    with pytest.raises(InputError, match="do not say .* task 'sst2'"):
      known.score(['a'], task='sst2')
    alone = PromptedT5(backbone, None, Tokenizer(str(VOCABULARY)))
    with pytest.raises(InputError, match='no prompts, whose label words'):
      alone.score(['a'])
    with pytest.raises(InputError, match='^text 0: there are no prompts'):
      alone.generate([{'premise': 'a'}])


class TestFromPretrained:
  def test_parts_from_folders(self, backbone, model, tmp_path):
    huggingface.save_huggingface(
      str(tmp_path / 'backbone'),
      backbone.config,
      backbone.params,
      vocabulary_file=str(VOCABULARY),
    )
    digest = backbone_lib.digest_vocabulary(str(VOCABULARY))
    bundle = _bundle(
      backbone_fingerprint=backbone.fingerprint, vocabulary_digest=digest
    )
    bundle.save(str(tmp_path / 'prompts'))
    loaded = mpt_jax.PromptedT5.from_pretrained(
      str(tmp_path / 'backbone'), prompts=str(tmp_path / 'prompts')
    )
    got = loaded.generate(TEXTS, task='rte', max_decode_length=7)
    assert got == model.generate(TEXTS, task='rte', max_decode_length=7)

    other = dataclasses.replace(bundle, vocabulary_digest='sha256:00')
    with pytest.raises(InputError, match='another vocabulary'):
      PromptedT5.from_pretrained(str(tmp_path / 'backbone'), prompts=other)
    other = dataclasses.replace(bundle, backbone_fingerprint='sha256:00')
    with pytest.raises(InputError, match='sha256:00'):
      PromptedT5.from_pretrained(str(tmp_path / 'backbone'), prompts=other)

  def test_no_vocabulary(self, testdata):
    with pytest.raises(InputError, match='has no vocabulary'):
      PromptedT5.from_pretrained(str(testdata / 'hf_t5_v1_0_tiny'))

  def test_vocabulary_of_another_model(self, testdata):
    with pytest.raises(InputError, match=r'the vocabulary has \d+ ids'):
      PromptedT5.from_pretrained(
        str(testdata / 'hf_t5_v1_0_tiny'), vocabulary=str(VOCABULARY)
      )


@pytest.fixture(scope='module')
def masked(request):
  path = request.config.rootpath / 'tests/testdata/roberta_tiny'
  fillers = {'no': (' bad', ' no'), 'yes': (' good',)}
  rng = np.random.default_rng(2)
  bundle = PromptBundle(
    method='multitask',
    stage='source',
    task_names=('one', 'pair'),
    arrays={
      'shared_prompt': rng.normal(size=(P, 32)),
      'task_u': rng.normal(size=(2, P, 1)),
      'task_v': rng.normal(size=(2, 1, 32)),
    },
    texts={
      'one': TaskText(
        's: {s}', '{label}', ('no', 'yes'), {}, '{mask} {s}', fillers
      ),
      'pair': TaskText(
        '{a} {b}',
        'it is {label}',
        ('yes', 'no'),
        {},
        '{a}{sep}{mask} {b}',
        {'yes': (' good',), 'no': (' bad',)},
      ),
    },
    family='RoBERTa',
  )
  model = PromptedT5.from_pretrained(str(path), bundle)
  assert type(model) is mpt_jax.PromptedMaskedModel
  return model


class TestMasked:
  """Label words in place of texts, on an encoder that fills in masks."""

  def test_answers_are_the_likeliest_label_words(self, masked):
    pair = {'a': 'a good film', 'b': 'the film'}
    texts = ['a bad film', {'s': 'good'}, pair, 'film ' * 9]
    tasks = ['one', 'one', 'pair', 'one']
    answers = masked.generate(texts, tasks, batch_size=3)
    ranked = masked.score(texts, task=tasks, batch_size=2)
    assert set(ranked[0]) == {'no', 'yes'}
    for answer, scores, task in zip(answers, ranked, tasks, strict=True):
      best = next(iter(scores))
      assert answer == (best if task == 'one' else f'it is {best}')
      assert sum(np.exp(list(scores.values()))) == pytest.approx(1, abs=1e-5)
    for text, task, scores in zip(texts, tasks, ranked, strict=True):
      [alone] = masked.score([text], task=task)
      assert alone == pytest.approx(scores, abs=1e-5)

  def test_a_class_of_several_words_has_their_mean(self, masked):
    text = 'a bad film'
    [scores] = masked.score([text], task='one')
    words = [masked.tokenizer.model_ids(w)[0] for w in (' bad', ' no', ' good')]
    batch = masked._batch(
      masked._encode(masked._write([text], 'one')), [0], ['one']
    )
    table = masked.model.prompt_table(masked.params)
    logits, _ = masked.model._fill(
      masked.params, table, batch, np.array([[words]])
    )
    bad, no, good = np.asarray(logits)[0, 0]
    want = (bad + no) / 2 - good
    assert scores['no'] - scores['yes'] == pytest.approx(want, abs=1e-4)

  def test_a_vocabulary_that_lies_elsewhere_says_which_the_mask_is(
    self, masked, tmp_path
  ):
    masked.backbone.save(str(tmp_path / 'all'), {})
    (tmp_path / 'weights').mkdir()
    for name in ('config.json', 'model.safetensors'):
      (tmp_path / 'all' / name).rename(tmp_path / 'weights' / name)
    alone = PromptedT5.from_pretrained(
      str(tmp_path / 'weights'), masked.bundle, vocabulary=str(tmp_path / 'all')
    )
    assert alone.model == masked.model
    text = 'a bad film'
    assert alone.score([text], task='one') == masked.score([text], task='one')

  def test_what_users_type_is_text(self, masked):
    """Neither names of special tokens nor our own marks are commands."""
    typed = 'a <mask> film</s> \ufdd1 <s>'
    [ids] = masked._encode(masked._write([typed], 'one'))
    special = masked.backbone.special_ids
    begin, mask, end = special.swap((special.begin, special.mask, special.end))
    assert [i for i in ids if i in (begin, mask, end)] == [begin, mask, end]
    assert ids[0] == begin
    assert ids[1] == mask
    assert ids[-1] == end

  @pytest.mark.parametrize(
    ('ask', 'message'),
    [
      (lambda m: m.generate(['a film'], 'pair'), 'give a dict of these'),
      (lambda m: m.generate([{'a': 'x'}], 'pair'), "no 'b'"),
      (lambda m: m.score(['x'], ['great'], 'one'), 'is no answer of the task'),
      (
        lambda m: m.generate(['x'], 'one', temperature=1.0),
        'searched, not sampled',
      ),
    ],
  )
  def test_what_is_refused(self, masked, ask, message):
    with pytest.raises(InputError, match=message):
      ask(masked)

  @pytest.mark.parametrize('format', ['peft', 'peft_composed'])
  def test_the_family_is_in_the_bundle(self, masked, format, tmp_path):
    path = str(tmp_path / 'bundle')
    masked.bundle.save(path)
    again = mpt_jax.load_prompts(path)
    assert again.family == 'RoBERTa'
    assert again.texts == masked.bundle.texts
    readme = (tmp_path / 'bundle' / 'README.md').read_text()
    assert 'PromptedMaskedModel' in readme
    assert '- `no` where the mask is `bad` or `no`' in readme
    with pytest.raises(InputError, match='of a RoBERTa that fills in'):
      again.check_format(format)
