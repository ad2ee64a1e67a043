"""LoRA and (IA)^3 beside what tests/goldens has of PEFT: starts, orders, files.

The reference is the bare backbone, with W + scale A B in its kernels, or with
columns and rows scaled: written down here once more. What holds for every
method is in tests/test_every_method.py.
"""

import functools
import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import mpt_jax
from mpt_jax import checkpoints, methods, models
from mpt_jax.checkpoints import bundle as bundle_lib
from mpt_jax.checkpoints import huggingface
from mpt_jax.checkpoints.backbone import Backbone
from mpt_jax.engine import params as params_lib
from mpt_jax.engine import starts
from mpt_jax.export import export
from mpt_jax.types import InputError
from tests.helpers import every_method, tiny

# I = H * K = 15, and neither it nor D, F or r is another one.
CONFIG = tiny.CONFIG.replace(
  emb_dim=14, num_heads=3, head_dim=5, mlp_dim=11, num_decoder_layers=2
)
PLAIN = CONFIG.replace(mlp_activations=('relu',), logits_via_embedding=True)
PROJECTIONS = 'query', 'key', 'value', 'out', 'wo'
LORA = methods.LoRA(rank=4, alpha=6.0)
ALL = methods.LoRA(
  rank=4, alpha=6.0, targets=(*PROJECTIONS, 'wi_0', 'wi_1'), rank_scaled=True
)
ALL_PLAIN = methods.LoRA(rank=4, alpha=6.0, targets=(*PROJECTIONS, 'wi'))
WAYS = {
  'lora': (LORA, PLAIN),
  'lora_gated': (ALL, CONFIG),
  'lora_plain': (ALL_PLAIN, PLAIN),
  'ia3': (methods.IA3(), CONFIG),
}


def _batch(targets=4):
  """Many targets change the order of cross-attention's products."""
  batch = every_method.batch(LORA, 1, size=4, targets=targets)
  return {name: array % CONFIG.vocab_size for name, array in batch.items()}


@functools.cache
def _compiled(config, method, targets):
  """(parameters, key) -> logits of a batch."""
  model, batch = models.PromptedT5(config, method), _batch(targets)
  return jax.jit(
    lambda params, key: model._forward(params, None, batch, key)[0]
  )


def _logits(config, params, method=None, targets=4, key=None):
  return np.asarray(_compiled(config, method, targets)(params, key))


def _with(params, arrays):
  return {**params, 'delta': params_lib.unflatten(arrays)}


@pytest.mark.slow
@pytest.mark.parametrize('way', WAYS)
def test_a_run_starts_at_the_backbone_bit_by_bit(way):
  method, config = WAYS[way]
  params = tiny.backbone(config=config)
  arrays = method.fresh(config, 1, jax.random.PRNGKey(3))
  for name, array in arrays.items():
    if name.endswith('lora_a'):
      bound = array.shape[1] ** -0.5
      assert 0.7 * bound < np.abs(array).max() <= bound
  for targets in (4, 24):
    np.testing.assert_array_equal(
      _logits(config, _with(params, arrays), method, targets),
      _logits(config, params, targets=targets),
    )


def _by_hand(method, params, arrays):
  """The backbone's kernels with what was learned, product by product."""
  flat = params_lib.flatten(params)
  for name, array in arrays.items():
    module, _, part = name.rpartition('/')
    kernel = np.array(flat[f'{module}/kernel'])
    if part == 'lora_a':
      root = method.rank**0.5 if method.rank_scaled else method.rank
      b = arrays[f'{module}/lora_b'][0]
      for r in range(method.rank):
        kernel += method.alpha / root * np.outer(array[0, :, r], b[r])
    elif part == 'ia3':
      for feature, scale in enumerate(array[0]):
        side = kernel if module.endswith('wo') else kernel.T
        side[feature] *= scale
    flat[f'{module}/kernel'] = (
      kernel if part != 'lora_b' else flat[f'{module}/kernel']
    )
  return params_lib.unflatten(flat)


@pytest.mark.parametrize('way', WAYS)
def test_the_network_is_that_of_merged_kernels(way):
  method, config = WAYS[way]
  params = tiny.backbone(config=config)
  arrays = every_method.learned(method, 1, config)
  modules = {name.split('/')[-2] for name in arrays}
  wanted = getattr(method, 'targets', ('key', 'value', 'wo'))
  assert modules == set(wanted)
  by_hand = _by_hand(method, params, arrays)
  flat = params_lib.flatten(params)
  one = {name: array[0] for name, array in arrays.items()}
  merged = method.merged(flat, one)
  assert {n.rpartition('/')[0] for n in merged} == {
    n.rpartition('/')[0] for n in arrays
  }
  for name, kernel in params_lib.flatten(by_hand).items():
    np.testing.assert_allclose(merged.get(name, flat[name]), kernel, atol=1e-5)
  for name, kernel in method.unmerged(merged, one).items():
    np.testing.assert_allclose(kernel, flat[name], atol=2e-6)
  for targets in (4, 24):
    want = _logits(config, by_hand, targets=targets)
    got = _logits(config, _with(params, arrays), method, targets)
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
    assert np.abs(got - _logits(config, params, targets=targets)).max() > 0.1


def test_dropout_is_of_the_update_alone_and_in_training():
  """The mean over masks is what is without, where there is one update."""
  config = CONFIG.replace(num_encoder_layers=1, num_decoder_layers=1)
  params = tiny.backbone(config=config)
  method = methods.LoRA(4, 6.0, targets=('key', 'value'), dropout=0.5)
  model = models.PromptedT5(config, method)
  assert config.dropout_rate == 0
  assert model.drops
  assert not models.PromptedT5(config, LORA).drops
  params = _with(params, every_method.learned(method, 1, config))
  still = methods.LoRA(4, 6.0, targets=('key', 'value'))
  # So many that cross-attention would take its products in the other order.
  want = _logits(config, params, still, 24)
  np.testing.assert_array_equal(_logits(config, params, method, 24), want)
  keys = jax.random.split(jax.random.PRNGKey(0), 2)
  found = [_logits(config, params, method, 24, key) for key in keys]
  for one, other in ((found[0], found[1]), (found[0], want)):
    assert np.abs(one - other).max() > 1e-3
  # The input of one projection, whose mean is known.
  x = jax.random.normal(jax.random.PRNGKey(1), (2, 3, 14))
  keys = jax.random.split(jax.random.PRNGKey(2), 4000)
  dropped = jax.vmap(lambda key: method._dropped(_Drawing(key), x))(keys)
  kept = np.asarray(dropped) / np.asarray(x)
  np.testing.assert_allclose(kept.mean(0), 1, atol=0.1)
  assert set(np.unique(np.round(kept, 3))) == {0.0, 2.0}


class _Drawing:
  """Of a module, what draws."""

  def __init__(self, key):
    self._key = key

  def has_rng(self, name):
    return name == 'dropout'

  def make_rng(self, name):
    return self._key


def test_targets_have_one_spelling():
  assert methods.LoRA(targets=['v', 'q']) == methods.LoRA()
  assert methods.LoRA(targets='o').targets == ('out',)
  assert methods.LoRA(alpha=8).settings == methods.LoRA().settings


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'rank': 0}, 'LORA_RANK is 0, expected 1 or more'),
    ({'alpha': 0}, 'LORA_ALPHA = 0 must be'),
    ({'alpha': float('nan')}, 'LORA_ALPHA = nan must be'),
    ({'dropout': 1.0}, r'LORA_DROPOUT = 1.0 must be in \[0, 1\)'),
    ({'dropout': -0.1}, 'LORA_DROPOUT = -0.1 must be'),
    ({'targets': ('querry',)}, "'querry', expected.*did you mean 'query'"),
    (
      {'targets': ('SelfAttention.q',)},
      "has 'SelfAttention.q', expected query",
    ),
    ({'targets': ()}, 'must name a projection'),
  ],
)
def test_wrong_settings_are_refused(settings, message):
  with pytest.raises(InputError, match=message):
    methods.LoRA(**settings)


def test_a_target_that_the_backbone_lacks_is_refused():
  with pytest.raises(InputError, match="'wi', but this backbone.*wi_0, wi_1"):
    methods.LoRA(targets=('q', 'wi')).shapes(CONFIG, 1)
  with pytest.raises(InputError, match="has 'wi_1', but this backbone"):
    methods.LoRA(targets=('wi_1',)).fresh(PLAIN, 1, jax.random.PRNGKey(0))


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('shared', [False, True])
def test_counts_are_those_of_the_shapes(way, shared):
  method, config = WAYS[way]
  if shared:
    method = type(method)(**method.settings | {'shared': True})
  shapes = method.shapes(config, 3).values()
  assert method.num_parameters(config, 3) == sum(map(np.prod, shapes))
  assert {shape[0] for shape in shapes} == {1 if shared else 3}


# ---------------------------------------------------------------------------
# Files.


def _bundle(method=ALL, tasks=('a', 'b'), config=CONFIG, dtype=np.float32):
  arrays = every_method.learned(method, len(tasks), config)
  return bundle_lib.PromptBundle(
    method=method.name,
    stage='target',
    task_names=tasks,
    arrays={n: a.astype(dtype) for n, a in arrays.items()},
    settings=method.settings,
  )


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """The backbone as a folder of transformers."""
  path = str(tmp_path_factory.mktemp('backbone') / 'tiny')
  huggingface.save_huggingface(path, CONFIG, tiny.backbone(config=CONFIG))
  return path


@pytest.mark.parametrize('method', [ALL, LORA, methods.IA3()])
def test_each_task_is_exported_and_read_again(method, tmp_path):
  bundle = _bundle(method)
  bundle.save(str(tmp_path / 'bundle'))
  output = tmp_path / 'peft'
  export(prompts=str(tmp_path / 'bundle'), output=str(output), format='peft')
  for row, task in enumerate(bundle.task_names):
    got = mpt_jax.load_prompts(output / task)
    assert (got.method, got.task_names) == (method.name, (task,))
    assert got.learner == method
    assert got.arrays.keys() == bundle.arrays.keys()
    for name, array in bundle.arrays.items():
      np.testing.assert_array_equal(got.arrays[name], array[row : row + 1])
  with pytest.raises(InputError, match='task is one of a, b'):
    bundle.to_peft(str(tmp_path / 'x'))
  with pytest.raises(InputError, match="'c'; they have a, b"):
    bundle.to_peft(str(tmp_path / 'x'), 'c')
  with pytest.raises(InputError, match="'npy' cannot hold what method"):
    export(prompts=str(tmp_path / 'bundle'), output=str(tmp_path / 'x'))
  assert not (tmp_path / 'x').exists()


def test_one_set_of_several_tasks_is_one_adapter(tmp_path):
  method = methods.LoRA(4, 6.0, shared=True)
  bundle = _bundle(method)
  assert not bundle.per_task
  bundle.save(str(tmp_path / 'bundle'))
  output = str(tmp_path / 'peft')
  export(prompts=str(tmp_path / 'bundle'), output=output, format='peft')
  got = mpt_jax.load_prompts(output)
  assert (got.learner, got.task_names) == (method, ('a', 'b'))


def test_a_backbone_with_each_task_merged(folder, tmp_path):
  bundle = _bundle()
  bundle.save(str(tmp_path / 'bundle'))
  output = tmp_path / 'merged'
  given = {'prompts': str(tmp_path / 'bundle'), 'format': 'merged'}
  export(output=str(output), backbone=folder, **given)
  original = checkpoints.load_backbone(folder)
  for task in bundle.task_names:
    merged = checkpoints.load_backbone(str(output / task))
    assert merged.fingerprint != original.fingerprint
    arrays, _ = bundle.one(task)
    want = _logits(CONFIG, _with(original.params, arrays), ALL)
    got = _logits(CONFIG, merged.params)
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
    for name in ('token_embedder', 'decoder/logits_dense'):
      for key, value in params_lib.flatten(original.params).items():
        if key.startswith(name):
          np.testing.assert_array_equal(
            params_lib.flatten(merged.params)[key], value
          )
  with pytest.raises(InputError, match='no INITIAL_CHECKPOINT_PATH given'):
    export(output=str(tmp_path / 'x'), **given)
  other = _bundle(methods.LoRA(5))
  with pytest.raises(InputError, match='lora on the backbone'):
    other.to_merged(
      str(tmp_path / 'x'),
      checkpoints.load_backbone('demo'),
      'a',
    )
  assert not (tmp_path / 'x').exists()


def test_a_run_starts_from_what_another_has_learned(tmp_path):
  """Also from PEFT's folder; each of its tasks from the same set."""
  bundle = _bundle(LORA)
  bundle.save(str(tmp_path / 'bundle'))
  bundle.to_peft(str(tmp_path / 'peft'), 'b')
  backbone = Backbone(CONFIG, {}, '', 'tiny', '', None, {})

  def start(method, path, task=None, tasks=3):
    model = models.PromptedT5(CONFIG, method, tasks)
    source = starts.Source(str(tmp_path / path), task)
    made = starts.start_values(model, backbone, source, 'target', 0)
    return params_lib.flatten(made['delta'])

  for method, path, sets in (
    (LORA, 'bundle', 3),
    (methods.LoRA(4, 6.0, shared=True), 'peft', 1),
  ):
    found = start(method, path, 'b')
    for name, array in bundle.arrays.items():
      want = np.repeat(array[1:2], sets, axis=0)
      np.testing.assert_array_equal(found[name], want)
  with pytest.raises(InputError, match='name one of a, b as SOURCE_TASK'):
    start(LORA, 'bundle')
  with pytest.raises(InputError, match='has rank 4, and this run 5: lora st'):
    start(methods.LoRA(5, 6.0), 'bundle', 'b')
  with pytest.raises(InputError, match="has method 'lora', and this run 'ia3'"):
    start(methods.IA3(), 'peft')
  with pytest.raises(InputError, match="'lora' has no prompt matrix"):
    start(methods.SoftPrompts(3), 'peft')


def test_a_scale_of_zero_cannot_be_taken_out():
  flat = params_lib.flatten(tiny.backbone(config=CONFIG))
  arrays = {'decoder/layers_1/mlp/wo/ia3': np.arange(11.0)}
  with pytest.raises(InputError, match='wo/ia3 has a scale of 0'):
    methods.IA3().unmerged(flat, arrays)


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_read(dtype, tmp_path):
  bundle = _bundle(LORA, ('a',))
  bundle.to_peft(str(tmp_path / 'x'))
  file = tmp_path / 'x' / 'adapter_model.safetensors'
  stored = safetensors.numpy.load_file(file)
  safetensors.numpy.save_file(
    {name: value.astype(dtype) for name, value in stored.items()}, file
  )
  got = mpt_jax.load_prompts(tmp_path / 'x')
  assert got.task_names == ('task_0',)
  for name, array in bundle.arrays.items():
    np.testing.assert_array_equal(got.arrays[name], array.astype(dtype))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'bias': 'all'}, "bias is 'all'"),
    ({'use_dora': True}, 'use_dora is True'),
    ({'rank_pattern': {'q': 2}}, "rank_pattern is {'q': 2}"),
    ({'alpha_pattern': {'q': 2}}, 'alpha_pattern is'),
    ({'layers_to_transform': [0]}, r'layers_to_transform is \[0\]'),
    ({'modules_to_save': ['lm_head']}, 'modules_to_save is'),
    ({'fan_in_fan_out': True}, 'fan_in_fan_out is True'),
    ({'something_new': 'on'}, "something_new is 'on'"),
    ({'init_lora_weights': 'pissa'}, "init_lora_weights is 'pissa'"),
    ({'r': 5}, 'r is 5, but decoder/layers_0/self_attention/query/lora_a'),
    ({'r': 4.0}, 'r is 4.0'),
    ({'r': 0}, 'LORA_RANK is 0'),
    ({'lora_alpha': 'x'}, "lora_alpha is 'x'"),
    ({'lora_dropout': 2}, 'LORA_DROPOUT = 2 must be'),
    ({'task_type': 'CAUSAL_LM'}, "task_type is 'CAUSAL_LM'"),
    ({'peft_type': 'LOHA'}, "peft_type 'LOHA' is not a method of ours"),
  ],
)
def test_what_we_do_not_have_is_refused_in_one_line(changes, message, tmp_path):
  _bundle(LORA, ('a',)).to_peft(str(tmp_path / 'x'))
  file = tmp_path / 'x' / 'adapter_config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | changes))
  with pytest.raises(InputError, match=f'adapter_config.json: {message}'):
    mpt_jax.load_prompts(tmp_path / 'x')


@pytest.mark.parametrize('method', [LORA, methods.IA3()])
def test_tensors_of_something_else_are_refused(method, tmp_path):
  _bundle(method, ('a',)).to_peft(str(tmp_path / 'x'))
  file = tmp_path / 'x' / 'adapter_model.safetensors'
  stored = safetensors.numpy.load_file(file)
  first = min(stored)
  for name in ('base_model.model.lm_head.lora_A.weight', 'x', first[17:]):
    changed = {n: v for n, v in stored.items() if n != first}
    safetensors.numpy.save_file(changed | {name: stored[first]}, file)
    with pytest.raises(InputError, match='is not of a proj|is no scale of k'):
      mpt_jax.load_prompts(tmp_path / 'x')
  # One less: read, or said; but on a backbone it does not fit.
  safetensors.numpy.save_file(changed, file)
  backbone = checkpoints.load_backbone('demo')

  def use():
    bundle = mpt_jax.load_prompts(tmp_path / 'x')
    bundle_lib.check_backbone(bundle, backbone)

  with pytest.raises(InputError, match='alone|on the backbone'):
    use()
