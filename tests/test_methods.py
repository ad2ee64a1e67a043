"""Prompt algebra against plain loops; initialisers; what starts a target."""

import math
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpt_jax import methods, t5
from mpt_jax.checkpoints.bundle import PromptBundle
from mpt_jax.engine import starts
from mpt_jax.types import InputError

P, D, V = 5, 7, 29
SIZES = types.SimpleNamespace(emb_dim=D)


def _factors(tasks, rank, seed=0):
  rng = np.random.RandomState(seed)
  return (
    rng.normal(size=(P, D)).astype(np.float32),
    rng.normal(size=(tasks, P, rank)).astype(np.float32),
    rng.normal(size=(tasks, rank, D)).astype(np.float32),
  )


# K == P and K == D on purpose: a swapped axis would pass by shape.
@pytest.mark.parametrize('tasks', [1, 3, P, D])
@pytest.mark.parametrize('rank', [1, 2])
def test_compose_equals_a_plain_loop(tasks, rank):
  shared, u, v = _factors(tasks, rank)
  want = np.zeros((tasks, P, D))
  for k in range(tasks):
    for p in range(P):
      for d in range(D):
        for r in range(rank):
          want[k, p, d] += float(shared[p, d]) * u[k, p, r] * v[k, r, d]
  got = methods.compose_task_prompts(*map(jnp.asarray, (shared, u, v)))
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_compose_refuses_factors_of_another_shape():
  shared, u, v = map(jnp.asarray, _factors(3, 1))
  with pytest.raises(ValueError, match='task_u has shape'):
    methods.compose_task_prompts(shared, jnp.swapaxes(u, 1, 2), v)
  with pytest.raises(ValueError, match=r'task_v has shape .* \(3, 1, 7\)'):
    methods.compose_task_prompts(shared, u, v[:2])


@pytest.mark.parametrize('rank', [1, 3])
def test_every_task_starts_from_the_shared_prompt(rank):
  method = methods.MultitaskPrompts(P, rank)
  params = method.fresh(SIZES, 3, jax.random.PRNGKey(0))
  table = method.prompt_table(params, 3)
  np.testing.assert_array_equal(
    table, np.broadcast_to(params['shared_prompt'], (3, P, D))
  )
  if rank == 1:
    assert (params['task_u'] == 1).all()
    assert (params['task_v'] == 1).all()
  else:
    # Ranks that start alike would stay alike.
    def loss(p):
      return jnp.sum(method.prompt_table(p, 3) ** 3)

    grads = jax.grad(loss)(params)['task_v']
    assert float(jnp.abs(grads[:, 1] - grads[:, 2]).max()) > 1e-4


def test_start_values_have_the_shapes_and_count_that_a_method_says():
  for method in (methods.MultitaskPrompts(P, 2), methods.SoftPrompts(P)):
    drawn = method.fresh(SIZES, 3, jax.random.PRNGKey(0))
    assert jax.tree.map(jnp.shape, drawn) == method.shapes(SIZES, 3)
    count = sum(np.size(v) for v in drawn.values())
    assert count == method.num_parameters(SIZES, 3)


def test_soft_prompts_give_every_row_the_same_prompt():
  prompt = jnp.asarray(_factors(1, 1)[0])
  table = methods.SoftPrompts(P).prompt_table({'prompt': prompt}, 3)
  assert table.shape == (3, P, D)
  for row in table:
    np.testing.assert_array_equal(row, prompt)


def test_uniform_is_two_sided():
  draw = methods.Uniform(0.5).bind()(jax.random.PRNGKey(0), (100, 97))
  assert -0.5 <= float(draw.min()) < -0.49
  assert 0.49 < float(draw.max()) <= 0.5


@pytest.fixture
def embedding():
  return np.random.RandomState(3).normal(size=(V, D)).astype(np.float32)


def _rows_of(values, embedding):
  """Which embedding row each prompt vector is."""
  return [
    int(np.where((embedding == v).all(axis=1))[0][0])
    for v in np.asarray(values)
  ]


def test_sampled_vocabulary_takes_distinct_words(embedding):
  init = methods.SampledVocabulary(max_id=20).bind(embedding)
  rows = _rows_of(init(jax.random.PRNGKey(0), (P, D)), embedding)
  assert len(set(rows)) == P
  assert all(3 <= r < 20 for r in rows)
  again = _rows_of(init(jax.random.PRNGKey(0), (P, D)), embedding)
  assert rows == again


def test_class_labels_are_means_then_sampled_words(embedding):
  ids = {'yes': [4], 'not at all': [5, 9]}
  init = methods.ClassLabels(('yes', 'not at all')).bind(
    embedding, ids.__getitem__
  )
  prompt = np.asarray(init(jax.random.PRNGKey(0), (P, D)))
  np.testing.assert_array_equal(prompt[0], embedding[4])
  np.testing.assert_allclose(prompt[1], embedding[[5, 9]].mean(0), rtol=1e-6)
  assert len(_rows_of(prompt[2:], embedding)) == P - 2


def test_string_is_cut_at_the_prompt_length(embedding):
  init = methods.FromString('words').bind(embedding, lambda _: range(3, 15))
  prompt = init(jax.random.PRNGKey(0), (P, D))
  assert _rows_of(prompt, embedding) == [3, 4, 5, 6, 7]


def test_initialisers_say_what_they_lack(embedding, tmp_path):
  with pytest.raises(InputError, match='VOCABULARY'):
    methods.FromString('a').bind(embedding)
  with pytest.raises(InputError, match='embedding'):
    methods.SampledVocabulary().bind()
  with pytest.raises(InputError, match="missing.npy' does not exist"):
    methods.FromFile(str(tmp_path / 'missing.npy')).bind()
  bad = tmp_path / 'pickled.npy'
  np.save(bad, np.array([{'a': 1}], dtype=object), allow_pickle=True)
  with pytest.raises(InputError, match='no .npy array'):
    methods.FromFile(str(bad)).bind()
  good = tmp_path / 'prompt.npy'
  np.save(good, np.ones((P + 1, D), np.float32))
  with pytest.raises(InputError, match=r'shape \(6, 7\), the run needs \(5, 7'):
    methods.FromFile(str(good)).bind()(jax.random.PRNGKey(0), (P, D))


def _source(tasks=6, rank=1):
  shared, u, v = _factors(tasks, rank)
  arrays = {'shared_prompt': shared, 'task_u': u, 'task_v': v}
  names = tuple(f't{k}' for k in range(tasks))
  return PromptBundle('multitask', 'source', names, arrays)


def _started(method, tasks=2, **kwargs):
  start = methods.Start(jax.random.PRNGKey(0), 'target', **kwargs)
  return method.initial(SIZES, tasks, start)


@pytest.mark.parametrize(
  ('start', 'rows'),
  [('average', range(6)), ('task:t4', [4])],
)
def test_target_starts_from_shared_prompt_and_factors(start, rows):
  source = _source()
  arrays = source.arrays
  target = _started(
    methods.MultitaskPrompts(P, start=start),
    source=source,
  )
  np.testing.assert_array_equal(
    target['shared_prompt'], arrays['shared_prompt']
  )
  for name in ('task_u', 'task_v'):
    want = np.mean([arrays[name][r] for r in rows], axis=0)
    for k in range(2):
      np.testing.assert_allclose(target[name][k], want, rtol=1e-6)


@pytest.mark.parametrize('rank', [1, 2])
def test_target_may_start_from_the_shared_prompt_alone(rank):
  source = _source(rank=rank)
  method = methods.MultitaskPrompts(P, rank, start='shared')
  target = _started(method, source=source)
  for row in method.prompt_table(target, 2):
    np.testing.assert_array_equal(row, source.arrays['shared_prompt'])


def test_a_start_that_is_none():
  with pytest.raises(InputError, match="START = 'averag'.*mean 'average'"):
    methods.MultitaskPrompts(P, start='averag')
  method = methods.MultitaskPrompts(P, start='task:t9')
  with pytest.raises(InputError, match="no task 't9'; they have t0, t1"):
    _started(method, source=_source())
  method = methods.MultitaskPrompts(P, start='nearest')
  with pytest.raises(InputError, match="give 'task:NAME', one of t0, t1"):
    _started(method, source=_source())
  with pytest.raises(InputError, match='stage target needs SOURCE_PROMPTS'):
    _started(method)


def test_target_refuses_a_source_of_another_shape():
  with pytest.raises(InputError, match=r'\(5, 7, 1\), this run has \(4, 7, 1'):
    _started(methods.MultitaskPrompts(4), source=_source())


def test_a_run_checks_its_tasks():
  assert starts.check_tasks('rte') == ('rte',)
  with pytest.raises(InputError, match='each once'):
    starts.check_tasks(('rte', 'rte'))
  with pytest.raises(InputError, match='PROMPT_LENGTH = 0'):
    methods.SoftPrompts(0)


# reference/baselines.md section 1: what each is counted as, of T5 1.0 small,
# base and large; None where the table has no figure.
_HALF = methods.Adapter(first_layer=5)
COUNTS = {
  'full': (methods.FullFinetuning(), 1, (60506624, 222903552, 737668096)),
  'adapter': (methods.Adapter(norms=False), 1, (405888, 1807488, 6392832)),
  'adapter and norms': (methods.Adapter(), 1, (422272, 1855104, 6517760)),
  'adapter, 8 tasks': (methods.Adapter(), 8, (407936, 1813440, 6408448)),
  'AdapterDrop': (_HALF, 1, (None, 1101984, None)),
  'adapter, cross': (
    methods.Adapter(norms=False, cross=True),
    1,
    (None, 2259360, None),
  ),
  'bitfit': (methods.BitFit(), 1, (115072, 280960, 695680)),
  'lora r4': (methods.LoRA(rank=4), 1, (147456, 442368, 1179648)),
  'lora r8': (methods.LoRA(rank=8), 1, (None, 884736, None)),
  'lora r32': (methods.LoRA(rank=32), 1, (None, 3538944, None)),
  'soft': (methods.SoftPrompts(100), 1, (51200, 76800, 102400)),
  'attempt': (methods.Attempt(), 1, (154624, 231936, 309248)),
  'attempt, 8 tasks': (methods.Attempt(), 8, (64128, 96192, 128256)),
  "attempt's code": (
    methods.Attempt(train_layer_norm=False),
    1,
    (None, 230400, None),
  ),
  'multitask': (methods.MultitaskPrompts(100), 1, (51812, 77668, 103524)),
  'multitask, 8 tasks': (
    methods.MultitaskPrompts(100),
    8,
    (7012, 10468, 13924),
  ),
  'projector': (
    methods.Projector(source_length=100, source_width=768),
    1,
    (98356992, 118043904, 137730816),
  ),
  'prefix of PEFT': (
    methods.Prefix(places=('decoder',)),
    1,
    (614400, 1843200, 4915200),
  ),
  'prefix': (methods.Prefix(), 1, (1843200, 5529600, 14745600)),
}


@pytest.mark.parametrize('row', COUNTS)
def test_counts_of_the_published_table(row):
  method, tasks, wanted = COUNTS[row]
  for size, want in zip(('small', 'base', 'large'), wanted, strict=True):
    if want is None:
      continue
    config = t5.get_config(f't5_{size}')
    assert method.num_parameters(config, tasks) == want * tasks
    # The formula is that of the arrays.
    shapes = method.shapes(config, tasks)
    if method.branch is None:
      shapes = t5.param_shapes(config)
    trained = [
      math.prod(shape)
      for name, shape in shapes.items()
      if any(
        re.fullmatch(
          pattern, f'{method.branch}/{name}' if method.branch else name
        )
        for pattern in method.trainable
      )
    ]
    assert sum(trained) == want * tasks
