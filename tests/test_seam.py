"""A method from outside of the package enters the network, in every way.

The reference is the backbone with the scales multiplied into its kernels, and
no method at all: its losses and answers must be the same, and its gradients,
by the chain rule, give those of the scales. Guards against a method that is
silently left out of a scan, a cache, a part of a batch or a file. For eight
devices, and the same of every shipped method in every run of the tests, see
tests/test_every_method.py and tests/test_mesh.py.
"""

import functools
import json
import shutil

import jax
import numpy as np
import pytest

from mpt_jax import cli, models
from mpt_jax.checkpoints import run as run_lib
from mpt_jax.checkpoints.bundle import PromptBundle, load_prompts, merge
from mpt_jax.engine import batching, optimizers, partitioning, trainer
from mpt_jax.engine import params as params_lib
from mpt_jax.pretrained import PromptedT5
from mpt_jax.types import InputError
from tests.helpers import tiny, toy_method

CONFIG = tiny.CONFIG.replace(
  vocab_size=40, num_encoder_layers=2, num_decoder_layers=2
)
METHOD = toy_method.Scale(heads=True, shared=True)
PACKED, ORDER = {'packed': True}, {'targets': 24}


@pytest.fixture(scope='module')
def backbone():
  return tiny.backbone(config=CONFIG)


@pytest.fixture(scope='module')
def scales():
  rng = np.random.default_rng(0)
  return {
    name: rng.uniform(0.5, 1.5, shape).astype(np.float32)
    for name, shape in METHOD.shapes(CONFIG, 1).items()
  }


def kernel_of(name):
  """The kernel whose columns a scale multiplies."""
  module = name.removesuffix('/gain')
  if module.endswith(('key', 'value')):
    return f'{module}/kernel'
  return f'{module}/{"wo" if module.endswith("mlp") else "out"}/kernel'


@pytest.fixture(scope='module')
def merged(backbone, scales):
  flat = params_lib.flatten(backbone)
  for name, scale in scales.items():
    flat[kernel_of(name)] = flat[kernel_of(name)] * scale[0]
  return params_lib.unflatten(flat)


def make_batch(packed=False, targets=4):
  """Examples of uneven lengths; many targets change cross-attention's order."""
  rng = np.random.default_rng(1)
  examples = [
    batching.Example(
      rng.integers(3, 40, rng.integers(2, 8)),
      rng.integers(3, 40, rng.integers(1, targets // 2 + 1)),
      0,
    )
    for _ in range(8)
  ]
  rows = [[e] for e in examples]
  if packed:
    rows = [examples[i : i + 2] for i in range(0, 8, 2)]
  return batching.lay_out(rows, (len(rows), 16, targets), 0, packed)


def _scanned(params):
  mesh = partitioning.make_mesh(1, jax.devices()[:1])
  return partitioning.place_backbone(params, mesh, scan_layers=True)


WAYS = {
  'plain': ({}, {}, None),
  'many_targets': (ORDER, {}, None),
  'packed': (PACKED, {}, None),
  'remat': ({}, {'remat_layers': True}, None),
  'scan': (PACKED, {}, _scanned),
  'scan_and_remat': (ORDER, {'remat_layers': True}, _scanned),
}


@pytest.mark.parametrize(
  'way',
  [
    'plain',
    *(pytest.param(w, marks=pytest.mark.long) for w in WAYS if w != 'plain'),
  ],
)
def test_loss_and_gradient_are_those_of_merged_kernels(
  backbone, scales, merged, way
):
  shape, settings, place = WAYS[way]
  batch, config = make_batch(**shape), CONFIG.replace(**settings)

  def merged_loss(kernels):
    params = params_lib.merge(merged, params_lib.unflatten(kernels))
    return models.PromptedT5(CONFIG).loss_fn(params, batch, None)[0]

  flat = params_lib.flatten(merged)
  kernels = {kernel_of(name): flat[kernel_of(name)] for name in scales}
  want, kernel_grads = jax.jit(jax.value_and_grad(merged_loss))(kernels)
  frozen = place(backbone) if place else backbone

  def loss(scales):
    params = {**frozen, 'delta': params_lib.unflatten(scales)}
    return models.PromptedT5(config, METHOD).loss_fn(params, batch, None)[0]

  got, grads = jax.jit(jax.value_and_grad(loss))(scales)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  original = params_lib.flatten(backbone)
  for name, grad in grads.items():
    kernel = kernel_of(name)
    expected = (np.asarray(original[kernel]) * kernel_grads[kernel]).sum(0)
    np.testing.assert_allclose(
      grad[0],
      expected,
      rtol=1e-4,
      atol=1e-5 * np.abs(expected).max(),
      err_msg=name,
    )


@pytest.mark.long
@pytest.mark.parametrize(
  ('num_beams', 'place', 'length'),
  [(1, None, 4), (3, _scanned, 4), (1, _scanned, 40), (3, None, 40)],
)
def test_cached_decoding_gives_the_answers_of_merged_kernels(
  backbone, scales, merged, num_beams, place, length
):
  """Few steps project queries in cross-attention, many keys and values."""
  batch = make_batch()

  def run(model, params):
    decode = functools.partial(
      model.decode_batch, num_beams=num_beams, max_decode_length=length
    )
    return jax.jit(decode)(params, batch)

  want, want_scores = run(models.PromptedT5(CONFIG), merged)
  frozen = place(backbone) if place else backbone
  params = {**frozen, 'delta': params_lib.unflatten(scales)}
  got, scores = run(models.PromptedT5(CONFIG, METHOD), params)
  np.testing.assert_array_equal(got, want)
  np.testing.assert_allclose(scores, want_scores, rtol=1e-4)
  assert len(np.unique(np.asarray(want))) > 3


@pytest.mark.long
def test_parts_and_buckets_make_the_update_of_the_whole(backbone, scales):
  model = models.PromptedT5(CONFIG, METHOD)
  mesh = partitioning.make_mesh(1, jax.devices()[:1])
  optimizer = optimizers.Optimizer(
    optimizers.method_groups(METHOD, 0.1), schedule='constant'
  )
  frozen = partitioning.shard_params(backbone, mesh)
  batch = make_batch()
  trained = {'delta': params_lib.unflatten(scales)}

  def state():
    return trainer.make_state(model, optimizer, trained, 0, mesh)

  def zeros():
    return trainer.zero_metrics(model)

  def flat(state):
    return params_lib.flatten(jax.device_get(state.params))

  whole, _ = trainer.make_train_step(model, optimizer)(
    state(), frozen, batch, zeros()
  )
  parts, _ = trainer.make_train_step(model, optimizer, 4)(
    state(), frozen, batch, zeros()
  )
  cut = [
    {k: v[rows] for k, v in batch.items()} for rows in (slice(5), slice(5, 8))
  ]
  bucketed, _ = trainer.BucketedStep(model, optimizer, 4)(
    state(), frozen, cut, zeros()
  )
  before = {f'delta/{name}': value for name, value in scales.items()}
  for name, value in flat(whole).items():
    assert np.abs(value - before[name]).max() > 0.05, name
    for other in (parts, bucketed):
      np.testing.assert_allclose(flat(other)[name], value, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize('num_beams', [1, 3])
def test_tasks_of_a_batch_have_each_its_own(backbone, scales, num_beams):
  """Each example's loss and answer are those of its task's set alone."""
  batch = make_batch()
  tasks = np.arange(8) % 3
  full = batch['encoder_input_tokens'] > 0
  batch['encoder_task_ids'] = np.where(full, tasks[:, None], 0)
  own = {
    name: np.concatenate([scale, np.ones_like(scale), 1 / scale])
    for name, scale in scales.items()
  }
  many = models.PromptedT5(CONFIG, toy_method.Scale(heads=True), 3)
  one = models.PromptedT5(CONFIG, METHOD)
  decode = {'num_beams': num_beams, 'max_decode_length': 4}

  def run(model, arrays, batch):
    params = {**backbone, 'delta': params_lib.unflatten(arrays)}
    value = jax.value_and_grad(
      lambda delta: -model.score_batch({**params, 'delta': delta}, batch).sum()
    )
    return (
      model.score_batch(params, batch),
      params_lib.flatten(value(params['delta'])[1]),
      model.decode_batch(params, batch, **decode)[0],
    )

  scores, grads, answers = jax.jit(run, static_argnums=0)(many, own, batch)
  for task in range(3):
    rows = tasks == task
    part = {k: v[rows] for k, v in batch.items()} | {
      'encoder_task_ids': np.zeros_like(full[rows], np.int32)
    }
    alone = METHOD.select(own, [task])
    want = jax.jit(run, static_argnums=0)(one, alone, part)
    np.testing.assert_allclose(scores[rows], want[0], rtol=1e-5)
    for name, grad in want[1].items():
      np.testing.assert_allclose(grads[name][task], grad[0], atol=1e-4)
    np.testing.assert_array_equal(answers[rows], want[2])


# ---------------------------------------------------------------------------
# Files.


def _bundle(scales, **changes):
  fields = {
    'method': 'scale',
    'stage': 'target',
    'task_names': ('a', 'b'),
    'arrays': scales,
    'settings': METHOD.settings,
  }
  return PromptBundle(**(fields | changes))


def test_a_bundle_holds_the_method_and_what_it_learned(scales, tmp_path):
  path = str(tmp_path / 'bundle')
  _bundle(scales).save(path)
  loaded = load_prompts(path)
  assert loaded.learner == METHOD
  assert (loaded.prompt_length, loaded.per_task) == (0, False)
  assert loaded.row() == 0  # One set of scales for all tasks.
  for name, value in scales.items():
    np.testing.assert_array_equal(loaded.arrays[name], value)
  only = loaded.with_tasks(['b'])
  assert (only.task_names, len(only.arrays)) == (('b',), len(scales))


def test_bundles_of_single_tasks_are_put_together(scales, tmp_path):
  other = {name: 2 * scale for name, scale in scales.items()}
  shared = _bundle(scales)
  path = str(tmp_path / 'bundle')
  merge([shared, _bundle(other, task_names=('c',))]).save(path)
  both = load_prompts(path)
  assert (both.task_names, both.per_task) == (('a', 'b', 'c'), True)
  for name, scale in scales.items():
    got = both.with_tasks(['c', 'a']).arrays[name]
    np.testing.assert_array_equal(got, np.concatenate([2 * scale, scale]))
  with pytest.raises(InputError, match='different settings cannot be merged'):
    merge([shared, _bundle(scales, settings={}, task_names=('c',))])


def test_what_a_file_cannot_hold_is_said(scales, tmp_path):
  bundle = _bundle(scales)
  for export in (bundle.to_npy, bundle.to_peft):
    with pytest.raises(InputError, match="cannot hold what method 'scale' le"):
      export(str(tmp_path / 'out'))
  with pytest.raises(InputError, match='has no prompt matrix'):
    bundle.compose('a')
  with pytest.raises(ValueError, match="settings of method 'scale'.*depth"):
    _bundle(scales, settings={'depth': 3})
  path = tmp_path / 'bundle'
  bundle.save(str(path))
  config = json.loads((path / 'prompt_config.json').read_text())
  config['method'] = 'scales'
  (path / 'prompt_config.json').write_text(json.dumps(config))
  with pytest.raises(InputError, match="'scales'.*did you mean 'scale'"):
    load_prompts(str(path))


# ---------------------------------------------------------------------------
# The command line.


def _arguments(folder, model_dir, data, **macros):
  settings = {
    'INITIAL_CHECKPOINT_PATH': 'demo',
    'MODEL_DIR': str(model_dir),
    'MIXTURE_OR_TASK_NAME': 'rte',
    'TASK_FEATURE_LENGTHS': {'inputs': 60, 'targets': 7},
    'BATCH_SIZE': 4,
    'TRAIN_STEPS': 4,
    'CHECKPOINT_PERIOD': 2,
    'EVAL_EXAMPLES': 32,
    **macros,
  }
  gin_file = folder / 'scale.gin'
  gin_file.write_text(
    'from __gin__ import dynamic_registration\n'
    'from tests.helpers import toy_method\n'
    'METHOD = @toy_method.Scale()\n'
    'toy_method.Scale.heads = True\n'
    'toy_method.Scale.shared = True\n'
  )
  return [
    '--gin_file=gin_configs/runs/teacher.gin',
    f'--gin_file={gin_file}',
    f'--tfds_data_dir={data}',
    *(f'--gin.{name}={value!r}' for name, value in settings.items()),
  ]


@pytest.mark.slow
@pytest.mark.data
def test_the_command_trains_resumes_and_serves_it(tmp_path):
  import gin

  from tasks.offline import writer

  data = tmp_path / 'data'
  writer.write(str(data), ['rte'], train_size=1100, say=lambda line: None)
  whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
  main = functools.partial(cli.main, 'mpt_jax.train', 'train')
  gin.clear_config()
  main(_arguments(tmp_path, whole, data))
  bundle = load_prompts(str(whole / 'prompts'))
  assert bundle.learner == METHOD
  moved = [np.abs(value - 1).max() for value in bundle.arrays.values()]
  assert min(moved) > 1e-3
  # What is left after a kill behind the second step.
  shutil.copytree(whole, stopped)
  shutil.rmtree(stopped / 'checkpoints' / '4')
  shutil.rmtree(stopped / 'prompts')
  (stopped / 'results.json').unlink()
  assert run_lib.latest_step(str(stopped)) == 2
  gin.clear_config()
  main(_arguments(tmp_path, stopped, data))
  for name in ('prompt_config.json', 'prompts.safetensors'):
    assert (stopped / 'prompts' / name).read_bytes() == (
      whole / 'prompts' / name
    ).read_bytes()
  scores = json.loads((whole / 'results.json').read_text())['scores']
  model = PromptedT5.from_pretrained('demo', str(whole / 'prompts'))
  answers = model.generate(
    ['rte hypothesis: the hat premise: the hat'], max_decode_length=4
  )
  assert len(answers) == 1
  gin.clear_config()
  cli.main(
    'mpt_jax.eval',
    'evaluate',
    [
      '--gin_file=gin_configs/runs/eval.gin',
      f'--tfds_data_dir={data}',
      "--gin.INITIAL_CHECKPOINT_PATH='demo'",
      f'--gin.PROMPTS={str(whole / "prompts")!r}',
      "--gin.MIXTURE_OR_TASK_NAME='rte'",
      f'--gin.MODEL_DIR={str(tmp_path / "eval")!r}',
      "--gin.TASK_FEATURE_LENGTHS={'inputs': 60, 'targets': 7}",
      "--gin.EVAL_SPLIT='validation'",
      '--gin.EVAL_EXAMPLES=32',
      '--gin.BATCH_SIZE=32',
    ],
  )
  found = json.loads((tmp_path / 'eval' / 'results.json').read_text())
  assert found['scores'] == scores


def test_what_a_method_cannot_do_is_refused_at_the_start():
  with pytest.raises(InputError, match="'scale': the T5X engine trains prom"):
    METHOD.check_can(t5x=True)
  METHOD.check_can(t5x=False, pack=True, scan=True, mix=True)
  own = toy_method.Scale()
  own.check_can(pack=True, mix=False)
  with pytest.raises(InputError, match='mix examples of several tasks'):
    own.check_can(pack=True, mix=True)
