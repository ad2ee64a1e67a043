"""Prompt algebra against plain loops; initialisers; what starts a target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpt_jax import prompts
from mpt_jax.types import InputError

P, D, V = 5, 7, 29


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
  got = prompts.compose_task_prompts(*map(jnp.asarray, (shared, u, v)))
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_compose_refuses_factors_of_another_shape():
  shared, u, v = map(jnp.asarray, _factors(3, 1))
  with pytest.raises(ValueError, match='task_u has shape'):
    prompts.compose_task_prompts(shared, jnp.swapaxes(u, 1, 2), v)
  with pytest.raises(ValueError, match=r'task_v has shape .* \(3, 1, 7\)'):
    prompts.compose_task_prompts(shared, u, v[:2])


@pytest.mark.parametrize('rank', [1, 3])
def test_every_task_starts_from_the_shared_prompt(rank):
  module = prompts.MultitaskPrompts(P, D, num_tasks=3, rank=rank)
  params = prompts.initial_prompts(
    module, jax.random.PRNGKey(0), prompts.Uniform()
  )
  table = module.apply({'params': params})
  np.testing.assert_array_equal(
    table, np.broadcast_to(params['shared_prompt'], (3, P, D))
  )
  if rank == 1:
    assert (params['task_u'] == 1).all()
    assert (params['task_v'] == 1).all()
  else:
    # Ranks that start alike would stay alike.
    def loss(p):
      return jnp.sum(module.apply({'params': p}) ** 3)

    grads = jax.grad(loss)(params)['task_v']
    assert float(jnp.abs(grads[:, 1] - grads[:, 2]).max()) > 1e-4


def test_module_init_has_the_same_names_and_shapes():
  for module in (
    prompts.MultitaskPrompts(P, D, num_tasks=3, rank=2),
    prompts.SoftPrompts(P, D, num_tasks=3),
  ):
    key = jax.random.PRNGKey(0)
    drawn = prompts.initial_prompts(module, key, prompts.Uniform())
    inited = module.init(key)['params']
    assert jax.tree.map(jnp.shape, dict(inited)) == jax.tree.map(
      jnp.shape, drawn
    )
    count = sum(np.size(v) for v in drawn.values())
    assert count == prompts.num_parameters(module)


def test_paper_counts():
  # l = 100, d = 768: 77,668 for one target, 10,468 a task for eight.
  assert prompts.num_parameters(prompts.MultitaskPrompts(100, 768, 1)) == 77668
  eight = prompts.num_parameters(prompts.MultitaskPrompts(100, 768, 8))
  assert eight == 8 * 10468


def test_soft_prompts_give_every_row_the_same_prompt():
  module = prompts.SoftPrompts(P, D, num_tasks=3)
  prompt = jnp.asarray(_factors(1, 1)[0])
  table = module.apply({'params': {'prompt': prompt}})
  assert table.shape == (3, P, D)
  for row in table:
    np.testing.assert_array_equal(row, prompt)


def test_uniform_is_two_sided():
  draw = prompts.Uniform(0.5).bind()(jax.random.PRNGKey(0), (100, 97))
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
  init = prompts.SampledVocabulary(max_id=20).bind(embedding)
  rows = _rows_of(init(jax.random.PRNGKey(0), (P, D)), embedding)
  assert len(set(rows)) == P
  assert all(3 <= r < 20 for r in rows)
  again = _rows_of(init(jax.random.PRNGKey(0), (P, D)), embedding)
  assert rows == again


def test_class_labels_are_means_then_sampled_words(embedding):
  ids = {'yes': [4], 'not at all': [5, 9]}
  init = prompts.ClassLabels(('yes', 'not at all')).bind(
    embedding, ids.__getitem__
  )
  prompt = np.asarray(init(jax.random.PRNGKey(0), (P, D)))
  np.testing.assert_array_equal(prompt[0], embedding[4])
  np.testing.assert_allclose(prompt[1], embedding[[5, 9]].mean(0), rtol=1e-6)
  assert len(_rows_of(prompt[2:], embedding)) == P - 2


def test_string_is_cut_at_the_prompt_length(embedding):
  init = prompts.FromString('words').bind(embedding, lambda _: range(3, 15))
  prompt = init(jax.random.PRNGKey(0), (P, D))
  assert _rows_of(prompt, embedding) == [3, 4, 5, 6, 7]


def test_initialisers_say_what_they_lack(embedding, tmp_path):
  with pytest.raises(InputError, match='VOCABULARY'):
    prompts.FromString('a').bind(embedding)
  with pytest.raises(InputError, match='embedding'):
    prompts.SampledVocabulary().bind()
  with pytest.raises(InputError, match="missing.npy' does not exist"):
    prompts.FromFile(str(tmp_path / 'missing.npy')).bind()
  bad = tmp_path / 'pickled.npy'
  np.save(bad, np.array([{'a': 1}], dtype=object), allow_pickle=True)
  with pytest.raises(InputError, match='no .npy array'):
    prompts.FromFile(str(bad)).bind()
  good = tmp_path / 'prompt.npy'
  np.save(good, np.ones((P + 1, D), np.float32))
  with pytest.raises(InputError, match=r'shape \(6, 7\), the run needs \(5, 7'):
    prompts.FromFile(str(good)).bind()(jax.random.PRNGKey(0), (P, D))


def test_target_starts_from_shared_prompt_and_averaged_factors():
  shared, u, v = _factors(6, 1)
  source = {'shared_prompt': shared, 'task_u': u, 'task_v': v}
  target = prompts.target_prompts(prompts.MultitaskPrompts(P, D, 2), source)
  np.testing.assert_array_equal(target['shared_prompt'], shared)
  for k in range(2):
    np.testing.assert_allclose(target['task_u'][k], u.mean(0), rtol=1e-6)
    np.testing.assert_allclose(target['task_v'][k], v.mean(0), rtol=1e-6)


def test_target_refuses_a_source_of_another_shape():
  shared, u, v = _factors(6, 1)
  source = {'shared_prompt': shared, 'task_u': u, 'task_v': v}
  with pytest.raises(InputError, match=r'\(5, 7, 1\), this run has \(4, 7, 1'):
    prompts.target_prompts(prompts.MultitaskPrompts(4, D, 1), source)


def test_prompt_config_checks_its_tasks():
  config = prompts.PromptConfig(length=P, task_names='rte')
  assert config.task_names == ('rte',)
  with pytest.raises(InputError, match='each once'):
    prompts.PromptConfig(length=P, task_names=('rte', 'rte'))
  with pytest.raises(InputError, match='PROMPT_LENGTH = 0'):
    prompts.PromptConfig(length=0, task_names=('rte',))
