"""What prompts look like, against plain NumPy in float64."""

import numpy as np
import pytest

import mpt_jax
from mpt_jax import analysis
from mpt_jax.checkpoints.bundle import PromptBundle
from mpt_jax.types import InputError

RNG = np.random.default_rng(7)
P, D, K, R = 5, 7, 3, 2


@pytest.fixture(scope='module')
def bundle():
  draw = RNG.normal
  return PromptBundle(
    'multitask',
    'source',
    ('rte', 'cb', 'mrpc'),
    {
      'shared_prompt': draw(size=(P, D)),
      'task_u': draw(size=(K, P, R)),
      'task_v': draw(size=(K, R, D)),
    },
  )


@pytest.fixture(scope='module')
def demo():
  return mpt_jax.load_backbone('demo').with_vocabulary()


def _composed(bundle, task):
  row = bundle.task_names.index(task)
  shared, u, v = (
    bundle.arrays[n].astype(np.float64)
    for n in ('shared_prompt', 'task_u', 'task_v')
  )
  return shared * (u[row] @ v[row])


def _cosine(a, b):
  return a @ b / (np.sqrt((a**2).sum()) * np.sqrt((b**2).sum()))


COSINES = {
  'mean': lambda a, b: _cosine(a.mean(0), b.mean(0)),
  'vectors': lambda a, b: np.mean([[_cosine(x, y) for y in b] for x in a]),
  'whole': lambda a, b: _cosine(a.ravel(), b.ravel()),
}


@pytest.mark.parametrize('kind', analysis.KINDS)
def test_similarity(bundle, tmp_path, kind):
  other = RNG.normal(size=(P, D))
  bundle.save(str(tmp_path / 'bundle'))
  rows = [*(_composed(bundle, t) for t in bundle.task_names), other]
  want = [[COSINES[kind](a, b) for b in rows] for a in rows]
  for source in (bundle, str(tmp_path / 'bundle'), tmp_path / 'bundle'):
    got = analysis.similarity([source, other], kind)
    assert got.dtype == np.float64
    # The composed table is kept in float32.
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_similarity_of_arrays_is_of_double_precision():
  a, b = RNG.normal(size=(2, P, D))
  for kind, cosine in COSINES.items():
    got = analysis.similarity([a, b], kind)[0, 1]
    np.testing.assert_allclose(got, cosine(a, b), rtol=1e-12)
  # Of another length, but not position by position.
  c = RNG.normal(size=(P + 2, D))
  got = analysis.similarity([a, c], 'vectors')[1, 0]
  np.testing.assert_allclose(got, COSINES['vectors'](c, a), rtol=1e-12)
  assert analysis.similarity([a, np.zeros((P, D))])[0, 1] == 0


def test_names(bundle, tmp_path):
  array = np.ones((P, D))
  np.save(tmp_path / 'a.npy', array.astype(np.float32))
  named = analysis.tables({'source': bundle, 'mine': array})
  assert list(named) == ['source/rte', 'source/cb', 'source/mrpc', 'mine']
  named = analysis.tables([bundle, bundle.with_tasks(['cb']), array, array])
  assert list(named) == ['rte', 'cb', 'mrpc', 'cb 2', 'prompt', 'prompt 2']
  assert list(analysis.tables(array.tolist())) == ['prompt']
  assert len(analysis.tables(np.ones((K, P, D)))) == K


@pytest.mark.parametrize(
  ('prompts', 'kind', 'message'),
  [
    (np.ones((2, 3)), 'mea', "did you mean 'mean'"),
    ([np.ones((2, 3)), np.ones((2, 5))], 'mean', 'widths 3 and 5'),
    ([np.ones((2, 3)), np.ones((3, 3))], 'whole', r'\(2, 3\) and \(3, 3\)'),
    (np.ones(3), 'mean', 'expected .P, D.'),
    (np.full((2, 3), np.nan), 'mean', 'NaN'),
    ([], 'mean', 'no prompts'),
    (object(), 'mean', 'object is no prompt'),
    ('none_here', 'mean', 'none_here'),
  ],
)
def test_what_cannot_be_compared(prompts, kind, message):
  with pytest.raises(InputError, match=message):
    analysis.similarity(prompts, kind)


@pytest.mark.parametrize('by', ['cosine', 'distance'])
def test_nearest_words(demo, by):
  words = demo.params['token_embedder']['embedding'].astype(np.float64)
  vectors = RNG.normal(size=(P, words.shape[1])) + 3 * words[3 : 3 + P]
  got = analysis.nearest_words(vectors, demo, k=3, by=by)
  for place in range(P):
    cosine = np.array([_cosine(vectors[place], word) for word in words])
    distance = np.sqrt(((words - vectors[place]) ** 2).sum(1))
    near = -cosine if by == 'cosine' else distance
    near[0] = np.inf  # Padding is no word.
    ids = np.argsort(near)[:3]
    assert got.ids[place].tolist() == ids.tolist()
    np.testing.assert_allclose(got.cosine[place], cosine[ids], rtol=1e-9)
    np.testing.assert_allclose(got.distance[place], distance[ids], rtol=1e-9)
    assert got.words[place] == [demo.vocabulary.id_to_piece(i) for i in ids]
  assert str(got).splitlines()[0].startswith(f'1: {got.words[0][0]!r} ')


def test_nearest_words_of_a_task(demo):
  words = demo.params['token_embedder']['embedding']
  film = demo.vocabulary.encode('film')[0]
  bundle = PromptBundle(
    'multitask',
    'source',
    ('a', 'b'),
    {
      'shared_prompt': words[[film, film]],
      'task_u': np.ones((2, 2, 1)),
      'task_v': np.ones((2, 1, words.shape[1])),
    },
  )
  got = analysis.nearest_words(bundle, 'demo', task='b', k=1)
  assert got.words == [['▁film'], ['▁film']]
  with pytest.raises(InputError, match='say whose prompt: task is one of a, b'):
    analysis.nearest_words(bundle, demo)
  with pytest.raises(InputError, match="no prompt 'c'; there are a, b"):
    analysis.nearest_words(bundle, demo, task='c')
  with pytest.raises(InputError, match='the prompt is 7 wide'):
    analysis.nearest_words(np.ones((P, D)), demo)
  with pytest.raises(InputError, match='k is 0, expected 1 to'):
    analysis.nearest_words(words[:2], demo, k=0)


def test_nearest_words_where_ids_are_swapped(demo):
  """A checkpoint that pads with another id has that row in place of 0."""
  import dataclasses

  from mpt_jax.checkpoints.vocabulary import SpecialIds

  class _Words:
    size = 6

    def id_to_piece(self, token):
      return f'id {token}'

  embedding = np.eye(6)
  swapped = dataclasses.replace(
    demo,
    params={'token_embedder': {'embedding': embedding}},
    vocabulary=_Words(),
    special_ids=SpecialIds(pad=4, start=4, end=1),
  )
  # Row 4 of the model is the checkpoint's word 0.
  got = analysis.nearest_words(embedding[[4, 2]], swapped, k=1)
  assert got.ids.tolist() == [[0], [2]]
  assert got.words == [['id 0'], ['id 2']]


def test_norms(bundle, demo):
  got = analysis.norms(bundle)
  assert list(got) == list(bundle.task_names)
  for task, lengths in got.items():
    want = np.sqrt((_composed(bundle, task) ** 2).sum(1))
    np.testing.assert_allclose(lengths, want, rtol=1e-6)
  words = demo.params['token_embedder']['embedding'].astype(np.float64)
  lengths = np.sqrt((words[1:] ** 2).sum(1))
  assert analysis.embedding_norms(demo) == pytest.approx(
    {q: np.quantile(lengths, q) for q in analysis.QUANTILES}
  )


def test_plots(bundle, demo):
  from matplotlib.figure import Figure

  history = {
    'step': [10, 20, 30],
    'train/loss': [3.0, 2.0, 1.5],
    'train/loss/rte': [3.0, 2.0, 1.5],
    'eval/rte/accuracy': [None, 50.0, float('nan')],
    'eval/rte/invalid': [None, 0.0, 0.0],
    'train/learning_rate/prompt': [1, 2, 3],
  }

  class _Run:
    pass

  run = _Run()
  run.history = history
  figures = [
    analysis.plot_similarity(bundle, 'vectors'),
    analysis.plot_norms([bundle, np.ones((P, 7))]),
    analysis.plot_norms(np.ones((P, 64)), demo),
    analysis.plot_history(history),
    analysis.plot_history(run),
  ]
  for figure in figures:
    assert isinstance(figure, Figure)
    assert figure._repr_png_()[:4] == b'\x89PNG'
  losses, scores = figures[-1].axes
  assert [line.get_label() for line in losses.lines] == ['train/loss']
  [line] = scores.lines
  assert line.get_label() == 'rte/accuracy'
  assert line.get_xydata().tolist() == [[20.0, 50.0]]
  texts = [text.get_text() for text in figures[0].axes[0].texts]
  want = analysis.similarity(bundle, 'vectors').ravel()
  assert texts == [f'{value:.2f}' for value in want]
  with pytest.raises(InputError, match='neither a loss nor a score'):
    analysis.plot_history({'step': [1]})


def test_it_is_a_part_of_the_package():
  assert mpt_jax.analysis is analysis
