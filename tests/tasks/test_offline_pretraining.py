"""The demo backbone's pretraining text as SeqIO tasks."""

import json
import os

import jax
import numpy as np
import pytest

seqio = pytest.importorskip('seqio')

from mpt_jax import data, t5  # noqa: E402
from mpt_jax.checkpoints import backbone as backbone_lib  # noqa: E402
from mpt_jax.checkpoints import files, huggingface  # noqa: E402
from mpt_jax.checkpoints.backbone import DEMOS, demo_folder  # noqa: E402
from mpt_jax.types import InputError  # noqa: E402
from tasks import offline  # noqa: E402
from tasks.offline import (  # noqa: E402
  corpus,
  datasets,
  large_corpus,
  pretraining,
  ship,
)

pytestmark = pytest.mark.data
# The encoder's text is its own: test_offline_masked.py.
T5S = [name for name in DEMOS if name != 'demo-roberta']


@pytest.fixture(autouse=True)
def _demo_vocabulary():
  folder = os.path.join(os.path.dirname(offline.__file__), 'demo_backbone')
  data.use_vocabulary(os.path.join(folder, 'spiece.model'))
  yield
  data.use_vocabulary(None)


def take(name, split, count):
  task = seqio.get_mixture_or_task(name)
  dataset = task.get_dataset(pretraining.LENGTHS, split, shuffle=False)
  return list(dataset.take(count).as_numpy_iterator())


def test_every_task_of_the_demo_has_a_measured_skill():
  assert set(pretraining.SKILL_OF) == {d.name for d in datasets.DEMO}
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
  size = data.get_vocabulary().vocab_size
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


def test_shipped_backbones_differ_in_all_sizes_but_the_words():
  shipped = [backbone_lib.load_backbone(demo_folder(name)) for name in T5S]
  assert [x.name for x in shipped] == [
    'mpt_jax demo backbone',
    'mpt_jax demo small backbone',
    'mpt_jax demo large backbone',
  ]
  assert len({x.config.vocab_size for x in shipped}) == 1
  digests = {backbone_lib.digest_vocabulary(x.vocabulary_file) for x in shipped}
  assert len(digests) == 1
  for size in ('emb_dim', 'mlp_dim', 'head_dim'):
    found = [getattr(x.config, size) for x in shipped]
    assert found[0] != found[2] != found[1], size
  for size in ('emb_dim', 'num_heads', 'num_encoder_layers', 'mlp_dim'):
    first, second = (getattr(x.config, size) for x in shipped[:2])
    assert first != second, size


@pytest.mark.parametrize('name', T5S)
def test_shipped_backbone_is_small_and_says_its_skills(name):
  folder = demo_folder(name)
  sizes = [
    os.path.getsize(os.path.join(folder, file)) for file in os.listdir(folder)
  ]
  assert sum(sizes) < 4 * 2**20
  with open(os.path.join(folder, 'skills.json')) as file:
    told = json.load(file)
  large = name == 'demo-large'
  assert told['tasks'] == {
    **pretraining.SKILL_OF,
    **(pretraining.LARGE_SKILL_OF if large else {}),
  }
  forms = large_corpus.FORMS if large else ()
  assert set(told['skills']) == {*corpus.SKILLS, *forms}
  for skill, values in told['skills'].items():
    # What the larger one has read and not learned: no task needs it.
    if not skill.endswith(('_beside', '_and_grammar', '_then_grammar')):
      assert values['accuracy'] >= 85, skill


@pytest.mark.slow
@pytest.mark.parametrize('name', T5S)
def test_shipped_skills_are_what_is_measured(name):
  with open(os.path.join(demo_folder(name), 'skills.json')) as file:
    told = json.load(file)['skills']
  found = ship.measure(
    demo_folder(name), num_examples=300, large=name == 'demo-large'
  )['skills']
  for skill, values in found.items():
    # 300 of the same 1,000 examples: three standard errors, and a little.
    assert values['accuracy'] == pytest.approx(
      told[skill]['accuracy'], abs=6
    ), skill


@pytest.fixture
def pretrained(tmp_path):
  """A run's folder: a tiny random backbone with the demo's vocabulary."""
  config = t5.T5Config(
    vocab_size=data.get_vocabulary().vocab_size,
    emb_dim=6,
    num_heads=2,
    head_dim=3,
    mlp_dim=11,
    num_encoder_layers=1,
    num_decoder_layers=1,
    logits_via_embedding=True,
  )
  params = t5.init_params(config, jax.random.PRNGKey(0))

  def make(spiece):
    huggingface.save_huggingface(
      str(tmp_path / 'run' / 'backbone'), config, params, spiece
    )
    return str(tmp_path / 'run'), params

  return make


@pytest.mark.slow
def test_ship_writes_half_precision_weights_and_skills(pretrained, tmp_path):
  spiece = os.path.join(ship.DEMO_BACKBONE, 'spiece.model')
  run, params = pretrained(spiece)
  out = str(tmp_path / 'out')
  os.mkdir(out)  # That of a backbone before, with what it could.
  for name in ('config.json', 'skills.json'):
    files.write_file(os.path.join(out, name), b'{}')
  result = ship.ship(run, out, num_examples=3)
  loaded = backbone_lib.load_backbone(out)
  want = np.asarray(params['token_embedder']['embedding'])
  got = loaded.params['token_embedder']['embedding']
  np.testing.assert_array_equal(got, want.astype(np.float16))
  with open(os.path.join(out, 'skills.json')) as file:
    assert json.load(file) == result


def test_ship_refuses_another_vocabulary(pretrained, tmp_path):
  spiece = tmp_path / 'other.model'
  with open(os.path.join(ship.DEMO_BACKBONE, 'spiece.model'), 'rb') as file:
    spiece.write_bytes(file.read() + b' ')
  run, _ = pretrained(str(spiece))
  with pytest.raises(InputError, match='is not the vocabulary'):
    ship.ship(run, str(tmp_path / 'out'))
