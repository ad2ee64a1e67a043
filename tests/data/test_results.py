"""What Python shows and the command writes of a finished model's scores."""

import json
import os

import numpy as np
import pytest

import mpt_jax
from mpt_jax.checkpoints.bundle import PromptBundle
from mpt_jax.engine.settings import Decoding
from mpt_jax.types import InputError

P, D = 7, 64
SETTINGS = {
  'task_feature_lengths': {'inputs': 41, 'targets': 5},
  'num_examples': 5,
  'module': None,
}


@pytest.fixture
def prompts(tmp_path):
  """Prompts for the demo backbone that change what it says."""
  rng = np.random.default_rng(0)
  path = str(tmp_path / 'prompts')
  PromptBundle(
    'multitask',
    'source',
    ('toy_a', 'toy_b'),
    {
      'shared_prompt': 9 * rng.normal(size=(P, D)),
      'task_u': rng.normal(size=(2, P, 1)),
      'task_v': rng.normal(size=(2, 1, D)),
    },
  ).save(path)
  return path


@pytest.fixture
def said(make_task):
  """toy_a, toy_b and toy_c, whose metric is the answers' mean length."""

  def length(targets, predictions):
    return {'length': float(np.mean([len(p) for p in predictions]))}

  for name in ('toy_a', 'toy_b', 'toy_c'):
    make_task(name, metric_fns=[length])


@pytest.mark.slow
def test_a_model_and_a_path_score_alike(said, prompts, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  model = mpt_jax.PromptedT5.from_pretrained('demo', prompts)
  # A backbone on a mesh, batches of the same shape.
  given = {**SETTINGS, 'batch_size': 6}
  names = ['toy_a', 'toy_b']
  want = mpt_jax.evaluate('demo', names, 'validation', prompts=prompts, **given)
  got = model.evaluate(names, 'validation', **given)
  assert list(got) == names
  assert got == want == mpt_jax.evaluate(model, names, 'validation', **given)
  outputs = [line['output'] for line in got.predictions()]
  assert outputs == [line['output'] for line in want.predictions()]
  first, second = repr(got).splitlines()
  assert first.startswith('toy_a validation: length ')
  assert 'invalid' in first
  assert 'commonest answer' in second

  # A third task with the second one's prompt; the texts are its own.
  given['prompt_task'] = 'toy_b'
  want = mpt_jax.evaluate(
    'demo', 'toy_c', 'validation', prompts=prompts, **given
  )
  assert os.listdir() == ['prompts'], 'nothing is written unasked'
  got = model.evaluate('toy_c', 'validation', model_dir='scores', **given)
  assert got == want
  [answer] = [line for line in got.predictions() if line['index'] == 1]
  [alone] = model.generate([answer['input']], 'toy_b', max_decode_length=5)
  assert answer['output'] == alone
  found = json.loads((tmp_path / 'scores/results.json').read_text())
  assert found['scores'] == got
  assert found['prompt_task'] == 'toy_b'


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'num_example': 5}, "no setting 'num_example'.*did you mean 'num_ex"),
    ({'decoding': Decoding(temperature=0.5)}, 'searched, not sampled'),
    ({'prompt_task': 'toy_a'}, "'toy_a' is given, but there are no PROMPTS"),
    ({'model_dir': 'hdfs://host/x'}, 'not a local path'),
  ],
)
def test_what_is_refused_before_anything_is_loaded(said, settings, message):
  with pytest.raises(InputError, match=message):
    mpt_jax.evaluate('nowhere', 'toy_a', 'validation', module=None, **settings)


def test_a_model_is_shown_in_a_line(prompts):
  model = mpt_jax.PromptedT5.from_pretrained('demo', prompts)
  assert repr(model.backbone).startswith('Backbone(mpt_jax demo backbone, ')
  assert 'width 64, 458 ids' in repr(model.backbone)
  shown = repr(model)
  assert repr(model.backbone) in shown
  assert repr(model.bundle) in shown
  assert len(shown) < 400
  assert '\n' not in shown
