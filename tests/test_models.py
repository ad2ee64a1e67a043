"""The prompted model: packed against unpacked, and what its losses mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpt_jax import methods, models
from mpt_jax.checkpoints import load_backbone
from mpt_jax.engine import trainer

# No two sizes are alike, so swapped axes cannot fit by shape.
K, P = 3, 7


@pytest.fixture(scope='module')
def backbone(request):
  path = request.config.rootpath / 'tests/testdata/hf_t5_v1_0_tiny'
  return load_backbone(str(path))


def shift_right(targets):
  return np.pad(targets, ((0, 0), (1, 0)))[:, :-1]


def plain_batch(tokens, targets, rows, length):
  """Model features of an unpacked batch, prompt slots in front."""
  size = len(tokens)
  slots = np.zeros((size, length + tokens.shape[1]), np.int32)
  slots[:, :length] = np.arange(1, length + 1)
  ids = np.concatenate([np.full((size, length), 2), tokens], axis=1)
  return {
    'encoder_input_tokens': jnp.asarray(ids, jnp.int32),
    'encoder_prompt_slots': jnp.asarray(slots),
    'encoder_task_ids': jnp.asarray(
      np.repeat(np.asarray(rows)[:, None], ids.shape[1], axis=1), jnp.int32
    ),
    'decoder_target_tokens': jnp.asarray(targets, jnp.int32),
    'decoder_input_tokens': jnp.asarray(shift_right(targets), jnp.int32),
    'decoder_loss_weights': jnp.asarray(targets > 0, jnp.int32),
  }


# ---------------------------------------------------------------------------
# Packed equals unpacked.


def make_examples(count, seed):
  """Mixed-task examples: (row, input ids, target ids), ending with EOS."""
  rng = np.random.RandomState(seed)
  examples = []
  for i in range(count):
    inputs = rng.randint(3, 120, size=rng.randint(2, 9)).tolist() + [1]
    targets = rng.randint(3, 120, size=rng.randint(1, 5)).tolist() + [1]
    examples.append((i % K, inputs, targets))
  return examples


def unpack(examples):
  s = max(len(e[1]) for e in examples)
  t = max(len(e[2]) for e in examples)
  tokens = np.zeros((len(examples), s), np.int32)
  targets = np.zeros((len(examples), t), np.int32)
  for b, (_, x, y) in enumerate(examples):
    tokens[b, : len(x)], targets[b, : len(y)] = x, y
  return plain_batch(tokens, targets, [e[0] for e in examples], P)


def pack(examples, source_length=47, target_length=13):
  """Fills rows greedily, several examples each, in a plain loop."""
  rows = []
  for example in examples:
    need_s, need_t = P + len(example[1]), len(example[2])
    for row in rows:
      used_s = sum(P + len(e[1]) for e in row)
      used_t = sum(len(e[2]) for e in row)
      if used_s + need_s <= source_length and used_t + need_t <= target_length:
        row.append(example)
        break
    else:
      rows.append([example])
  encoder = (
    'input_tokens',
    'prompt_slots',
    'task_ids',
    'segment_ids',
    'positions',
  )
  decoder = (
    'target_tokens',
    'input_tokens',
    'segment_ids',
    'positions',
    'loss_weights',
  )
  out = {
    f'encoder_{n}': np.zeros((len(rows), source_length), np.int32)
    for n in encoder
  }
  out.update(
    {
      f'decoder_{n}': np.zeros((len(rows), target_length), np.int32)
      for n in decoder
    }
  )
  for b, row in enumerate(rows):
    s = t = 0
    for segment, (task, x, y) in enumerate(row, start=1):
      n = P + len(x)
      out['encoder_input_tokens'][b, s : s + n] = [2] * P + x
      out['encoder_prompt_slots'][b, s : s + P] = range(1, P + 1)
      out['encoder_task_ids'][b, s : s + n] = task
      out['encoder_segment_ids'][b, s : s + n] = segment
      out['encoder_positions'][b, s : s + n] = range(n)
      m = len(y)
      out['decoder_target_tokens'][b, t : t + m] = y
      out['decoder_input_tokens'][b, t : t + m] = [0, *y[:-1]]
      out['decoder_segment_ids'][b, t : t + m] = segment
      out['decoder_positions'][b, t : t + m] = range(m)
      out['decoder_loss_weights'][b, t : t + m] = 1
      s, t = s + n, t + m
  assert len(rows) < len(examples) / 2
  return {k: jnp.asarray(v) for k, v in out.items()}


@pytest.fixture(scope='module')
def student(backbone):
  width = backbone.config.emb_dim
  rng = np.random.RandomState(5)

  def draw(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  trainable = {
    'shared_prompt': draw(P, width),
    'task_u': 1 + 0.3 * draw(K, P, 1),
    'task_v': 1 + 0.3 * draw(K, 1, width),
  }
  return trainable, draw(K, P, width)


def _loss_and_grads(backbone, student, batch, **settings):
  trainable, table = student
  model = models.DistilledPromptedT5(
    backbone.config,
    methods.MultitaskPrompts(P),
    K,
    **settings,
  )

  @jax.jit
  def value_and_grad(trainable):
    def loss_fn(trainable):
      params = {
        **backbone.params,
        'prompts': trainable,
        'teacher_prompts': {'prompt_table': table},
      }
      return model.loss_fn(params, batch, None)

    return jax.value_and_grad(loss_fn, has_aux=True)(trainable)

  return value_and_grad(trainable)


def _mean(term):
  return float(term[0].sum() / term[1].sum())


def test_teacher_takes_no_gradient_and_perfect_student_no_loss(
  backbone, student
):
  shared = student[0]['shared_prompt']
  width = backbone.config.emb_dim
  model = models.DistilledPromptedT5(
    backbone.config, methods.MultitaskPrompts(P), K
  )
  batch = unpack(make_examples(5, seed=3))
  ones = {
    'shared_prompt': shared,
    'task_u': jnp.ones((K, P, 1)),
    'task_v': jnp.ones((K, 1, width)),
  }

  def loss_fn(table):
    params = {
      **backbone.params,
      'prompts': ones,
      'teacher_prompts': {'prompt_table': table},
    }
    return model.loss_fn(params, batch, None)

  table = jnp.broadcast_to(shared[None], (K, P, width))
  value_and_grad = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
  (_, terms), grad = value_and_grad(table)
  assert (grad == 0).all()
  for name in ('logits_loss', 'hidden_loss_encoder', 'hidden_loss_decoder'):
    assert abs(_mean(terms[name])) < 1e-6


@pytest.mark.slow
def test_a_task_that_is_absent_gets_no_gradient(backbone, student):
  examples = [(0, *rest) for _, *rest in make_examples(5, seed=3)]
  _, grads = _loss_and_grads(backbone, student, unpack(examples))
  for name in ('task_u', 'task_v'):
    assert (grads[name][1:] == 0).all()
    assert (grads[name][0] != 0).any()


@pytest.mark.parametrize(
  'settings',
  [
    {},
    pytest.param(
      {'hidden_layers': 'all', 'temperature': 2.0, 'z_loss': 1e-3},
      marks=pytest.mark.slow,
    ),
    pytest.param(
      {'loss_normalizing_factor': 'AVERAGE_PER_SEQUENCE'},
      marks=pytest.mark.slow,
    ),
  ],
)
def test_packed_equals_unpacked(backbone, student, settings):
  examples = make_examples(24, seed=4)
  plain = _loss_and_grads(backbone, student, unpack(examples), **settings)
  packed = _loss_and_grads(backbone, student, pack(examples), **settings)
  (plain_loss, plain_terms), plain_grads = plain
  (packed_loss, packed_terms), packed_grads = packed
  np.testing.assert_allclose(packed_loss, plain_loss, atol=1e-5)
  assert packed_terms.keys() == plain_terms.keys()
  for name, (sums, weights) in plain_terms.items():
    np.testing.assert_allclose(packed_terms[name][1], weights, rtol=1e-6)
    assert (weights > 0).all(), name
    np.testing.assert_allclose(
      packed_terms[name][0] / weights,
      sums / weights,
      atol=1e-5,
      err_msg=name,
    )
  for name, grad in plain_grads.items():
    np.testing.assert_allclose(
      packed_grads[name], grad, atol=1e-5, err_msg=name
    )


def _damage_segments(batch):
  ids = np.array(batch['encoder_segment_ids'])
  ids[ids == 2] = 1
  return {**batch, 'encoder_segment_ids': jnp.asarray(ids)}


def _damage_slots(batch):
  slots = np.array(batch['encoder_prompt_slots'])
  slots[slots > 0] = slots[slots > 0] % P + 1
  return {**batch, 'encoder_prompt_slots': jnp.asarray(slots)}


def _damage_rows(batch):
  rows = np.array(batch['encoder_task_ids'])
  swapped = np.where(rows == 0, 1, np.where(rows == 1, 0, rows))
  return {**batch, 'encoder_task_ids': jnp.asarray(swapped)}


@pytest.mark.slow
@pytest.mark.parametrize(
  'damage', [_damage_segments, _damage_slots, _damage_rows]
)
def test_the_comparison_sees_typical_mistakes(backbone, student, damage):
  examples = make_examples(24, seed=4)
  (plain, _), _ = _loss_and_grads(backbone, student, unpack(examples))
  (wrong, _), _ = _loss_and_grads(backbone, student, damage(pack(examples)))
  assert abs(float(wrong - plain)) > 1e-3


@pytest.mark.slow
def test_padding_and_batch_split_change_nothing(backbone, student):
  examples = make_examples(12, seed=6)
  batch = unpack(examples)
  (loss, _), grads = _loss_and_grads(backbone, student, batch)
  wider = {
    k: jnp.pad(v, ((0, 0), (0, 5 if k.startswith('encoder') else 3)))
    for k, v in batch.items()
  }
  (padded, _), padded_grads = _loss_and_grads(backbone, student, wider)
  np.testing.assert_allclose(padded, loss, atol=1e-5)
  for name, grad in grads.items():
    np.testing.assert_allclose(padded_grads[name], grad, atol=1e-5)
  halves = [
    _loss_and_grads(
      backbone, student, {k: v[i : i + 6] for k, v in batch.items()}
    )[0][1]
    for i in (0, 6)
  ]
  (_, whole), _ = _loss_and_grads(backbone, student, batch)
  for name, (sums, weights) in whole.items():
    np.testing.assert_allclose(
      halves[0][name][0] + halves[1][name][0], sums, rtol=1e-4, atol=1e-4
    )
    np.testing.assert_array_equal(
      halves[0][name][1] + halves[1][name][1], weights
    )


@pytest.mark.slow
def test_loss_normalizing_factors(backbone):
  model = models.PromptedT5(backbone.config, loss_normalizing_factor=None)
  batch = unpack(make_examples(5, seed=8))
  total, terms = jax.jit(model.eval_fn)(backbone.params, batch)
  tokens = float(terms['cross_entropy'][1].sum())
  assert tokens == sum(len(e[2]) for e in make_examples(5, seed=8))
  for factor, divisor in (
    ('NUM_REAL_TARGET_TOKENS', tokens),
    ('NUM_TOTAL_TARGET_TOKENS', batch['decoder_target_tokens'].size),
    (7.0, 7.0),
  ):
    other = models.PromptedT5(backbone.config, loss_normalizing_factor=factor)
    loss, _ = jax.jit(other.eval_fn)(backbone.params, batch)
    assert float(loss) == pytest.approx(float(total) / divisor, rel=1e-5)
  with pytest.raises(ValueError, match="'TOKENS'"):
    models.PromptedT5(backbone.config, loss_normalizing_factor='TOKENS')


@pytest.mark.slow
def test_beam_search_keeps_each_example_s_prompt(backbone, student):
  """Beams must not mix up rows: one by one equals all together."""
  trainable, _ = student
  model = models.PromptedT5(backbone.config, methods.MultitaskPrompts(P), K)
  params = {**backbone.params, 'prompts': trainable}
  batch = unpack(make_examples(4, seed=9))
  predict = trainer.make_predict_step(model, max_decode_length=6, num_beams=3)
  together = predict(params, batch)
  for i in range(4):
    alone = predict(params, {k: v[i : i + 1] for k, v in batch.items()})
    np.testing.assert_array_equal(alone[0], together[i])
