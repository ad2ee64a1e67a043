"""Every loss of the source stage and its gradients, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpt_jax import methods, models
from tests import goldens
from tests.goldens import networks

OURS = {'shared_prompt': 'prompt_shared', 'task_u': 'u', 'task_v': 'v'}


def _student(golden, **settings):
  """The jitted loss and its gradients at the golden's prompts."""
  io = golden.io
  length, width = io['prompt_shared'].shape
  vocab_size = io['student_logits'].shape[-1]
  backbone = networks.backbone(goldens.backbone_of(golden, width, vocab_size))
  model = models.DistilledPromptedT5(
    backbone.config,
    methods.MultitaskPrompts(length),
    len(io['u']),
    **settings,
  )
  batch = networks.batch(io['input_ids'], io['targets'], io['task_ids'], length)
  trainable = {
    'shared_prompt': io['prompt_shared'],
    'task_u': io['u'][..., None],
    'task_v': io['v'][:, None],
  }
  frozen = {
    **backbone.params,
    'teacher_prompts': {'prompt_table': io['teacher_prompts']},
  }
  trainable, frozen = jax.tree.map(jnp.float32, (trainable, frozen))

  @jax.jit
  def run(trainable):
    def loss_fn(trainable):
      return model.loss_fn({**frozen, 'prompts': trainable}, batch, None)

    return jax.value_and_grad(loss_fn, has_aux=True)(trainable)

  (loss, terms), grads = run(trainable)
  means = {k: float(s.sum() / w.sum()) for k, (s, w) in terms.items()}
  return float(loss), means, grads


# The task loss is always there; its gradient is subtracted from the others.
_TASK = {}


def _task_gradient(golden):
  if golden not in _TASK:
    _TASK[golden] = _student(golden, distill_weight=0.0)
  return _TASK[golden]


def _check_gradient(grads, io, *names):
  for ours, theirs in OURS.items():
    want = sum(io[f'grad_{name}__{theirs}'] for name in names)
    np.testing.assert_allclose(
      np.asarray(grads[ours]).reshape(want.shape), want, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize('golden', goldens.of('distill'))
def test_task_loss(golden):
  loss, means, grads = _task_gradient(golden)
  want = pytest.approx(float(golden.io['L_plm']), rel=1e-4)
  assert loss == want
  assert means['cross_entropy'] == want
  _check_gradient(grads, golden.io, 'L_plm')


@pytest.mark.parametrize('golden', goldens.of('distill'))
def test_total(golden):
  io = golden.io
  terms = io['L_logits_T1'], io['L_hidden_enc'], io['L_hidden_dec']
  weight = round(float((io['total'] - io['L_plm']) / sum(terms)), 6)
  loss, _, grads = _student(golden, distill_weight=weight)
  assert loss == pytest.approx(float(io['total']), rel=1e-4)
  _check_gradient(grads, io, 'total')


def _terms(golden):
  """The names of the terms that have gradients."""
  logits = goldens.matches(r'grad_(L_logits_T(?:1|\d+_scaled))__u')(golden)
  return [*logits, 'L_hidden', 'L_hidden_all']


def _settings(name):
  if name.startswith('L_logits'):
    temperature = float(name.split('_')[2].removeprefix('T'))
    return {'logits_weight': 1.0, 'temperature': temperature}
  layers = 'all' if name.endswith('all') else 'last'
  return {'hidden_weight': 1.0, 'hidden_layers': layers}


@pytest.mark.parametrize(('golden', 'name'), goldens.of('distill', _terms))
def test_terms(golden, name):
  io = golden.io
  off = {'logits_weight': 0.0, 'hidden_weight': 0.0}
  loss, means, grads = _student(golden, **off | _settings(name))
  _, _, task_grads = _task_gradient(golden)
  parts = {'L_hidden': ('L_hidden_enc', 'L_hidden_dec')}.get(name, (name,))
  extra = loss - float(io['L_plm'])
  assert extra == pytest.approx(float(sum(io[p] for p in parts)), rel=2e-4)
  _check_gradient(jax.tree.map(jnp.subtract, grads, task_grads), io, *parts)
  if name == 'L_hidden':
    for part, term in (('enc', 'encoder'), ('dec', 'decoder')):
      want = float(io[f'L_hidden_{part}'])
      assert means[f'hidden_loss_{term}'] == pytest.approx(want, rel=1e-4)
