"""What ATTEMPT's prompts depend on, start from and are kept as.

Its numbers are held by tests/goldens/test_attempt.py.
"""

import json
import re
import types

import jax
import numpy as np
import pytest

from mpt_jax import methods, models
from mpt_jax.checkpoints import backbone as backbone_lib
from mpt_jax.checkpoints.bundle import PromptBundle, load_prompts, merge
from mpt_jax.engine import batching, starts
from mpt_jax.types import InputError
from tests.helpers import tiny

P, K, D = tiny.P, tiny.K, tiny.CONFIG.emb_dim
SOURCES = ('mnli', 'sst2')


@pytest.fixture(scope='module')
def loaded():
  params = tiny.backbone()
  return backbone_lib.Backbone(
    config=tiny.CONFIG,
    params=params,
    fingerprint='',
    name='tiny',
    path='',
    vocabulary_file=None,
    report={},
  )


def _soft(task, length=P, width=D):
  rng = np.random.default_rng([ord(letter) for letter in task])
  prompt = rng.normal(size=(length, width)).astype(np.float32)
  return PromptBundle('soft', 'teacher', (task,), {'prompt': prompt})


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Source prompts in all forms that a run may have them in."""
  path = tmp_path_factory.mktemp('sources')
  for task in SOURCES:
    _soft(task).save(str(path / task / 'prompts'))
    _soft(task).to_npy(str(path / f'{task}.npy'), task)
  merge([_soft(task) for task in SOURCES]).save(str(path / 'all'))
  _soft('long', P + 1).save(str(path / 'long'))
  _soft('wide', P, D + 1).save(str(path / 'wide'))
  return path


def _started(loaded, source, tasks=K, **settings):
  """The method and its arrays as a run starts them."""
  method = starts.informed(methods.Attempt(P, 4, **settings), source, loaded)
  model = models.PromptedT5(loaded.config, method, tasks)
  started = starts.start_values(model, loaded, source, 'target', 3)
  return method, started[methods.PROMPTS]


def _given(folder, form):
  return {
    'pattern': starts.Source(f'{folder}/{{task}}/prompts', SOURCES),
    'list': starts.Source([f'{folder}/{t}/prompts' for t in SOURCES]),
    'npy': starts.Source([f'{folder}/{t}.npy' for t in SOURCES]),
    'names': starts.Source({t: f'{folder}/{t}/prompts' for t in SOURCES}),
    'bundle': starts.Source(f'{folder}/all'),
    'chosen': starts.Source(f'{folder}/all', list(SOURCES)),
  }[form]


@pytest.mark.parametrize(
  'form', ['pattern', 'list', 'npy', 'names', 'bundle', 'chosen']
)
def test_a_run_starts_from_its_sources(loaded, folder, form):
  method, arrays = _started(loaded, _given(folder, form))
  want = np.stack([_soft(task).arrays['prompt'] for task in SOURCES])
  np.testing.assert_array_equal(arrays['source_prompts'], want[None])
  for target in arrays['target_prompts']:
    np.testing.assert_array_equal(target, want[0])
  assert len(arrays['target_prompts']) == K
  assert [name for name, _ in method.sources] == list(SOURCES)
  digests = {digest for _, digest in method.sources}
  assert len(digests) == 2
  assert all(re.fullmatch('sha256:[0-9a-f]{64}', d) for d in digests)
  for name in ('attn_W_down', 'attn_W_up'):
    assert 0.005 < np.std(arrays[name]) < 0.015, name
  np.testing.assert_array_equal(arrays['layer_norm_weight'], np.ones((1, D)))
  np.testing.assert_array_equal(arrays['layer_norm_bias'], np.zeros((1, D)))
  shapes = {name: value.shape for name, value in arrays.items()}
  assert shapes == method.shapes(loaded.config, K)


def test_order_and_start_can_be_chosen(loaded, folder):
  source = starts.Source(f'{folder}/all', SOURCES[::-1])
  method, arrays = _started(loaded, source)
  assert [name for name, _ in method.sources] == list(SOURCES[::-1])
  first = _soft(SOURCES[1]).arrays['prompt']
  np.testing.assert_array_equal(arrays['target_prompts'][0], first)
  one, arrays = _started(loaded, starts.Source(f'{folder}/all', 'sst2'))
  assert one.weighed == ('sst2', 'target')
  np.testing.assert_array_equal(arrays['source_prompts'][0, 0], first)
  words = methods.SampledVocabulary()
  _, arrays = _started(loaded, starts.Source(f'{folder}/all'), init=words)
  embedding = loaded.params['token_embedder']['embedding']
  for vector in np.asarray(arrays['target_prompts'][0]):
    assert (embedding == vector).all(axis=1).any()


@pytest.mark.parametrize(
  ('source', 'message'),
  [
    ((None,), "'attempt' needs SOURCE_PROMPTS, the prompts of source tasks"),
    (('{}/{{task}}/prompts',), 'give the source tasks as SOURCE_TASK'),
    (('{}/all', ['mnli', 'sst3']), "no task 'sst3'.*did you mean 'sst2'"),
    (('{}/all', ['mnli', 'mnli']), "'mnli' twice"),
    (('{}/long',), r'prompts long have \(P, D\) = \(6, 14\), this run has \(5'),
    (('{}/wide',), '15 wide .*the backbone tiny has emb_dim 14'),
    ((['{}/all', '{}/long'],), 'different prompt_length cannot be merged'),
    ((['{}/all', '{}/mnli.npy'],), "'mnli' twice"),
    (('{}/none',), 'no prompts at'),
    (('{}/attempt',), "'attempt' has no prompt matrix: each input has a prom"),
  ],
)
def test_sources_that_do_not_do(loaded, folder, source, message):
  method, arrays = _started(loaded, starts.Source(f'{folder}/all'), 1)
  _bundle(method, arrays, ('rte',)).save(str(folder / 'attempt'))
  filled = json.loads(json.dumps(source).replace('{{', '<<'))
  filled = jax.tree.map(
    lambda text: (
      text
      and text.replace('{}', str(folder)).replace('<<', '{').replace('}}', '}')
    ),
    filled,
  )
  with pytest.raises(InputError, match=message) as caught:
    _started(loaded, starts.Source(*filled))
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'length': 0}, 'PROMPT_LENGTH = 0 must be at least 1'),
    ({'rank': 0}, 'ATTENTION_RANK = 0 must be at least 1'),
    ({'temperature': 0.0}, 'ATTENTION_TEMPERATURE = 0.0 must be above 0'),
    ({'temperature': float('nan')}, 'ATTENTION_TEMPERATURE = nan'),
  ],
)
def test_settings_that_do_not_do(settings, message):
  with pytest.raises(InputError, match=message):
    methods.Attempt(**settings)


def test_what_it_cannot_do_is_refused_at_the_start():
  method = methods.Attempt()
  method.check_can(bucket=True, scan=True, mix=True)
  with pytest.raises(InputError, match="give PADDING = 'bucket'"):
    method.check_can(pack=True)
  with pytest.raises(InputError, match='T5X engine has one prompt a task'):
    method.check_can(t5x=True)
  with pytest.raises(InputError, match="PAD_IN_MAX.*give PADDING = 'max'"):
    methods.Attempt(pad_in_max=True).check_can(bucket=True)
  with pytest.raises(InputError, match="distillation.*'attempt' has none"):
    models.DistilledPromptedT5(tiny.CONFIG, method)


@pytest.mark.parametrize(
  ('width', 'tasks', 'want'),
  [(512, 1, 154624), (768, 1, 231936), (1024, 1, 309248), (768, 8, 8 * 96192)],
)
def test_the_paper_s_counts(width, tasks, want):
  sizes = types.SimpleNamespace(emb_dim=width)
  method = methods.Attempt(sources=(('a', ''), ('b', '')))
  assert method.num_parameters(sizes, tasks) == want
  frozen = methods.Attempt(train_layer_norm=False)
  assert frozen.num_parameters(sizes, tasks) == want - 2 * width
  for some in (method, frozen):
    trained = sum(
      int(np.prod(shape))
      for name, shape in some.shapes(sizes, tasks).items()
      if re.fullmatch(some.trainable[0], f'prompts/{name}')
    )
    assert trained == some.num_parameters(sizes, tasks)


# ---------------------------------------------------------------------------
# What a prompt depends on.


def _batch(length, empty=0):
  rng = np.random.default_rng(1)
  rows = [
    [batching.Example(rng.integers(3, 37, 3 + i), np.array([5, 1]), i % K)]
    for i in range(4)
  ] + [[]] * empty
  return batching.lay_out(rows, (len(rows), P + length, 2), P, False)


def _params(loaded, method, tasks=K):
  drawn = method.fresh(loaded.config, tasks, jax.random.PRNGKey(1))
  return loaded.params | {methods.PROMPTS: drawn}


SHARP = {'temperature': 0.5, 'sources': (('a', ''), ('b', ''))}


@pytest.mark.parametrize(
  'pad_in_max', [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_padding_changes_nothing_that_is_answered(loaded, pad_in_max):
  method = methods.Attempt(P, 4, pad_in_max=pad_in_max, **SHARP)
  model = models.PromptedT5(loaded.config, method, K)
  params = _params(loaded, method)
  run = jax.jit(
    lambda batch: (
      model.loss_fn(params, batch, None)[0],
      model.decode_batch(params, batch, max_decode_length=3)[1],
      model.weigh_batch(params, batch),
    )
  )
  # The longest example fills its row, or does not.
  short, long = run(_batch(6)), run(_batch(9, empty=2))
  for got, want in zip(long[1:], short[1:], strict=True):
    np.testing.assert_allclose(got[:4], want, rtol=1e-5, atol=1e-6)
    assert np.isfinite(got).all()
  same = np.isclose(short[0], long[0], rtol=1e-5)
  assert same != pad_in_max
  assert np.ptp(np.asarray(short[2]), axis=0).max() > 0.01


def test_the_default_temperature_is_the_width_times_e(loaded):
  settings = {'sources': SHARP['sources']}
  default = methods.Attempt(P, 4, **settings)
  params = _params(loaded, default)
  found = [
    models.PromptedT5(loaded.config, method, K).weigh_batch(params, _batch(6))
    for method in (
      default,
      methods.Attempt(P, 4, D * np.e, **settings),
      methods.Attempt(P, 4, 2000.0, **settings),
    )
  ]
  np.testing.assert_array_equal(found[0], found[1])
  assert np.abs(found[0] - found[2]).max() > 1e-4


# ---------------------------------------------------------------------------
# Bundles.


def _bundle(method, arrays, tasks=('a', 'b', 'c'), **changes):
  fields = {
    'method': 'attempt',
    'stage': 'target',
    'task_names': tasks,
    'arrays': arrays,
    'settings': method.settings,
  }
  return PromptBundle(**(fields | changes))


def test_a_bundle_is_whole(loaded, folder, tmp_path):
  method, arrays = _started(loaded, starts.Source(f'{folder}/all'))
  path = str(tmp_path / 'bundle')
  _bundle(method, arrays).save(path)
  bundle = load_prompts(path)
  assert bundle.learner == method
  assert (bundle.prompt_length, bundle.emb_dim, bundle.rank) == (P, D, 0)
  assert bundle.per_task
  for name, value in arrays.items():
    np.testing.assert_array_equal(bundle.arrays[name], value)
  one = bundle.with_tasks(['b'])
  assert one.arrays['target_prompts'].shape == (1, P, D)
  for export in (bundle.to_npy, bundle.to_peft):
    with pytest.raises(InputError, match=r'\(each input has a prompt of its o'):
      export(str(tmp_path / 'out'))
  with pytest.raises(ValueError, match='by its settings, attempt has attn_W_d'):
    _bundle(method, arrays, settings={**method.settings, 'rank': 5})
  with pytest.raises(ValueError, match='has source_prompts.*, but the bundle'):
    _bundle(method, arrays, settings={**method.settings, 'sources': []})


def test_tasks_that_are_joined_keep_their_own_attention(loaded, folder):
  """As KEEP_BEST joins them, each from the step where it was best."""
  method, arrays = _started(loaded, starts.Source(f'{folder}/all'))
  method = methods.Attempt(P, 4, 0.5, sources=method.sources)
  rng = np.random.default_rng(2)
  parts = []
  for number, task in enumerate('abc'):
    trained = dict(arrays)
    for name in arrays.keys() - {'source_prompts', 'layer_norm_bias'}:
      trained[name] = arrays[name] + rng.normal(size=arrays[name].shape)
    whole = _bundle(method, trained)
    parts.append(whole.with_tasks([task]))
    assert parts[-1].task_names == (task,), number
  joined = merge(parts)
  assert joined.learner == method
  # What is the same in all is not repeated.
  sizes = {name: len(array) for name, array in joined.arrays.items()}
  assert sizes['source_prompts'] == sizes['layer_norm_bias'] == 1
  assert sizes['target_prompts'] == sizes['attn_W_up'] == K
  batch = _batch(6)
  whole = models.PromptedT5(loaded.config, method, K)
  score = jax.jit(whole.score_batch)
  together = score(loaded.params | joined.params, batch)
  rows = batch['encoder_task_ids'].max(axis=1)
  for task, part in enumerate(parts):
    # Rows beyond those of an array are its last, so these are all the task's.
    got = score(loaded.params | part.params, batch)
    np.testing.assert_allclose(
      together[rows == task], got[rows == task], rtol=1e-5
    )
