"""A real run of every method: what trains, what is kept, how it goes on.

Guards against a part that never trains or was not to, a run that is another
one after a kill, and a product that does not give what was trained.
"""

import dataclasses
import json
import os
import pathlib
import shutil

import numpy as np
import pytest

import mpt_jax
from mpt_jax import methods
from mpt_jax.checkpoints import run as run_lib
from mpt_jax.checkpoints.bundle import load_prompts
from mpt_jax.engine import params as params_lib
from mpt_jax.engine import run as run_engine
from mpt_jax.engine import trainer
from mpt_jax.engine.optimizers import Optimizer
from mpt_jax.engine.settings import Evaluation, Logging
from mpt_jax.pretrained import PromptedT5
from tests.helpers import every_method, tiny

WORDS = ('the cat', 'a fern', 'it is so', 'not the town', 'what', 'the hat')
STEPS, HALF = 20, 10
LENGTHS = {'inputs': 40, 'targets': 10}
_ENCODER, _DECODER = 'delta/encoder/layers_0', 'delta/decoder/layers_0'
_SELF = (f'{_ENCODER}/attention', f'{_DECODER}/self_attention')
_CROSS = f'{_DECODER}/encoder_decoder_attention'
_MLPS = (f'{_ENCODER}/mlp', f'{_DECODER}/mlp')
_NORMS = (
  f'{_ENCODER}/pre_attention_layer_norm',
  f'{_ENCODER}/pre_mlp_layer_norm',
  f'{_DECODER}/pre_self_attention_layer_norm',
  f'{_DECODER}/pre_cross_attention_layer_norm',
  f'{_DECODER}/pre_mlp_layer_norm',
)
_FINAL_NORMS = ('delta/encoder/encoder_norm', 'delta/decoder/decoder_norm')


def _in(modules, *names):
  return {f'{module}/{name}' for module in modules for name in names}


# What trains of a backbone of one layer a side, written out.
NAMES: dict[str, set[str]] = {
  'soft': {'prompts/prompt'},
  'multitask': {'prompts/shared_prompt', 'prompts/task_u', 'prompts/task_v'},
  'attempt': {
    f'prompts/{array}'
    for array in (
      *('target_prompts', 'attn_W_down', 'attn_W_up'),
      *('layer_norm_weight', 'layer_norm_bias'),
    )
  },
  'adapter': _in(
    (*_SELF, *_MLPS),
    *('adapter_down', 'adapter_down_bias', 'adapter_up', 'adapter_up_bias'),
  )
  | _in((*_NORMS, *_FINAL_NORMS), 'scale_change'),
  'bitfit': _in(
    (*_SELF, _CROSS), 'query/bias', 'key/bias', 'value/bias', 'out/bias'
  )
  | _in(_MLPS, 'wi/bias', 'wo/bias')
  | _in((*_NORMS, 'delta/decoder/logits_dense'), 'bias'),
  'lora': {
    f'{name}/lora_{half}'
    for half in 'ab'
    for name in _in((*_SELF, _CROSS), 'query', 'key', 'value', 'out')
    | _in(_MLPS, 'wo')
  },
  'ia3': {
    f'{name}/ia3'
    for name in _in((*_SELF, _CROSS), 'key', 'value') | _in(_MLPS, 'wo')
  },
  # An MLP that is not in the product.
  'prefix': _in(
    (f'delta/{place}' for place in ('encoder', 'decoder', 'cross')),
    *('embedding', 'hidden_kernel', 'hidden_bias', 'out_kernel', 'out_bias'),
  ),
  'projector': {
    f'prompts/{array}'
    for array in ('w1', 'b1', 'w2', 'b2', 'ln_weight', 'ln_bias')
  },
  'deep': {'delta/encoder/prompt', f'{_ENCODER}/prompt'},
}


@pytest.fixture(scope='module')
def backbone():
  return tiny.served()


@pytest.fixture(scope='module')
def encoder(request):
  """RoBERTa's golden, whose vocabulary has these words."""
  path = request.config.rootpath / 'tests/testdata/roberta_tiny'
  return mpt_jax.load_backbone(str(path)).with_vocabulary()


FILLERS = {'the cat': ' good', 'a fern': [' bad', ' no']}


def letters(targets, predictions):
  """A score that tells any two sets of answers apart."""
  del targets
  return {'accuracy': float(np.mean([len(p) for p in predictions]) / 10)}


def tasks():
  """Two tasks of the same texts, which want other answers."""
  return {
    name: mpt_jax.Task(
      train=[
        {'text': f'{first} {second}', 'answer': (second, first)[flip]}
        for first in WORDS
        for second in WORDS
      ],
      validation=[{'text': first, 'answer': first} for first in WORDS],
      inputs=name + ' text: {text}',
      targets='{answer}',
      metrics=[letters],
    )
    for flip, name in enumerate(('same', 'other'))
  }


def classes():
  """Two tasks of the same texts, of which one turns all answers around."""
  labels = tuple(FILLERS)
  return {
    name: mpt_jax.Task(
      train=[
        {'text': f'{first} {second}', 'label': (i + flip) % 2}
        for first in WORDS
        for i, second in enumerate(WORDS)
      ],
      validation=[
        {'text': first, 'label': (i + flip) % 2}
        for i, first in enumerate(WORDS)
      ],
      inputs='{text}',
      labels=labels,
      masked=name + ' {mask} {text}',
      fillers=FILLERS,
    )
    for flip, name in enumerate(('same', 'other'))
  }


def train(backbone, folder, method, make=tasks, **settings):
  """Twenty steps on both tasks in mixed batches of uneven lengths."""
  return mpt_jax.train(
    backbone=backbone,
    method=method,
    tasks=make(),
    dataset={
      'task_feature_lengths': LENGTHS,
      'batch_size': 4,
    },
    stage='source' if 'source' in method.rates else None,
    steps=STEPS,
    model_dir=str(folder),
    optimizer=Optimizer(learning_rate=0.01),
    evaluation=Evaluation(period=HALF, keep_best=True),
    logging=Logging(log_period=5, checkpoint_period=HALF, tensorboard=False),
    **settings,
  )


def stored(folder, step):
  """The trained parameters in a checkpoint, by name."""
  import orbax.checkpoint as ocp

  path = pathlib.Path(folder, run_lib.CHECKPOINTS).resolve()
  with ocp.CheckpointManager(path) as manager:
    args = ocp.args.Composite(state=ocp.args.StandardRestore())
    flat = manager.restore(step, args=args)['state']
  return {
    name.removeprefix('params/'): value
    for name, value in flat.items()
    if name.startswith('params/')
  }


def test_scores_on_the_way_are_asked_with_the_backbones_ids(
  backbone, tmp_path, monkeypatch
):
  asked, make = [], trainer.make_predict_step

  def recorded(model):
    asked.append((model.start_id, model.eos_id))
    return make(model)

  monkeypatch.setattr(trainer, 'make_predict_step', recorded)
  ids = dataclasses.replace(backbone.special_ids, start=5, end=7)
  mpt_jax.train(
    backbone=dataclasses.replace(backbone, special_ids=ids),
    method=every_method.METHODS['soft'],
    tasks={'same': tasks()['same']},
    dataset={'task_feature_lengths': LENGTHS, 'batch_size': 4},
    steps=2,
    model_dir=str(tmp_path / 'run'),
    evaluation=Evaluation(period=1, keep_best=True),
    logging=Logging(tensorboard=False),
  )
  assert asked
  assert set(asked) == {(5, 7)}


def _killed(*args):
  raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'family'), every_method.everywhere(every_method.METHODS)
)
def test_trains_what_it_says_and_goes_on_as_if_never_killed(
  name, family, backbone, encoder, tmp_path, monkeypatch
):
  method, make = every_method.METHODS[name], tasks
  if family == every_method.MASKED:
    backbone, make = encoder, classes
  before = params_lib.flatten(backbone.params)
  kept = {n: value.copy() for n, value in before.items()}
  whole, killed = str(tmp_path / 'whole'), str(tmp_path / 'killed')
  start = every_method.start_of(method, tmp_path, backbone.config.emb_dim)
  run = train(backbone, whole, method, make, start=start)
  for array, value in kept.items():
    np.testing.assert_array_equal(before[array], value)
  half, last = stored(whole, HALF), stored(whole, STEPS)
  want = NAMES[name] if method.branch else set(before)
  if family == every_method.MASKED and isinstance(method, methods.Delta):
    shapes = method.shapes(backbone.config, 2)
    want = {f'{method.branch}/{array}' for array in shapes}
  assert set(last) == want
  for array in want:
    idle = every_method.is_idle(method, array.partition('/')[2])
    if not idle:
      assert np.abs(last[array] - half[array]).max() > 1e-5, array

  with monkeypatch.context() as patch:
    patch.setattr(run_engine, '_finish', _killed)
    with pytest.raises(KeyboardInterrupt):
      train(backbone, killed, method, make, start=start)
  shutil.rmtree(f'{killed}/{run_lib.CHECKPOINTS}/{STEPS}')
  train(backbone, killed, method, make, start=start)
  product = 'prompts' if method.branch else 'backbone'
  files = sorted(os.listdir(f'{whole}/{product}'))
  assert files == sorted(os.listdir(f'{killed}/{product}'))
  for file in files:
    paths = [pathlib.Path(f, product, file) for f in (whole, killed)]
    assert paths[0].read_bytes() == paths[1].read_bytes(), file
  results = [
    json.loads(pathlib.Path(f, run_lib.RESULTS).read_text())
    for f in (whole, killed)
  ]
  assert results[0] == results[1]

  # The product gives what the run was scored with.
  if method.branch:
    made = load_prompts(f'{whole}/prompts').method
    # Each task's own best step: no longer one prompt for all.
    assert made == ('multitask' if name == 'soft' else name)
  assert isinstance(run.model, PromptedT5)
  again = run.model.evaluate(
    make(), split='validation', task_feature_lengths=LENGTHS
  )
  for task, scores in results[0]['scores'].items():
    assert again[task] == pytest.approx(scores), task
