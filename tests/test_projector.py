"""Prompts of another backbone: where from, what trains, what comes out.

The numbers are held by tests/goldens/test_projector.py and test_anchors.py.
"""

import json
import pathlib

import jax
import numpy as np
import pytest

import mpt_jax
from mpt_jax import methods
from mpt_jax.checkpoints import backbone as backbone_lib
from mpt_jax.checkpoints.bundle import PromptBundle, load_prompts, merge
from mpt_jax.checkpoints.vocabulary import SpecialIds, Vocabulary
from mpt_jax.engine import starts
from mpt_jax.engine.settings import Evaluation, Logging
from mpt_jax.export import export
from mpt_jax.models import PromptedT5
from mpt_jax.transfer import anchors, projection, sources
from mpt_jax.types import InputError
from tests.helpers import tiny

# Of the source backbone, and of the target.
L, W, P, D = 3, 7, 4, tiny.SERVED.emb_dim
TASKS = 'red', 'blue'
SIZES = {'hidden': 6, 'source_length': L, 'source_width': W}


def _soft(task, length=L, width=W, fingerprint='sha256:other', **more):
  rng = np.random.default_rng([ord(letter) for letter in task])
  prompt = rng.normal(size=(length, width)).astype(np.float32)
  return PromptBundle(
    'soft',
    'teacher',
    (task,),
    {'prompt': prompt},
    backbone_name='small',
    backbone_fingerprint=fingerprint,
    **more,
  )


@pytest.fixture(scope='module')
def loaded():
  return tiny.served()


@pytest.fixture(scope='module')
def folder(tmp_path_factory, loaded):
  """Prompts of the source backbone, and two tasks' own of the target."""
  path = tmp_path_factory.mktemp('prompts')
  for task in (*TASKS, 'green'):
    _soft(task, vocabulary_digest='sha256:v').save(str(path / 'small' / task))
  for task in TASKS:
    own = _soft(task, P, D, loaded.fingerprint)
    own.save(str(path / 'own' / task))
  merge([_soft(task) for task in TASKS]).save(str(path / 'all'))
  _soft('red', L + 1).save(str(path / 'long'))
  return path


def _started(loaded, given, names=None, tasks=TASKS, **settings):
  """A run's method and start values, as the engine makes them."""
  method = methods.Projector(P, 6, **settings)
  source = starts.Source(given, names).of_tasks(method, tasks)
  method = starts.informed(method, source, loaded)
  model = PromptedT5(loaded.config, method, len(tasks))
  started = starts.start_values(model, loaded, source, 'target', 3)
  return method, started[methods.PROMPTS]


@pytest.mark.parametrize('form', ['pattern', 'list', 'mapping', 'bundle'])
def test_each_task_takes_the_source_prompt_of_its_name(loaded, folder, form):
  given = {
    'pattern': f'{folder}/small/{{task}}',
    'list': [f'{folder}/small/{task}' for task in TASKS],
    'mapping': {t: f'{folder}/small/{t}' for t in ('green', *TASKS)},
    'bundle': f'{folder}/all',
  }[form]
  order = TASKS[::-1]
  method, arrays = _started(loaded, given, tasks=order)
  want = [_soft(task).arrays['prompt'] for task in order]
  np.testing.assert_array_equal(arrays['source_prompts'], want)
  assert [name for name, _ in method.sources] == list(order)
  assert (method.source_length, method.source_width) == (L, W)
  assert method.source_fingerprint == 'sha256:other'
  shapes = {name: value.shape for name, value in arrays.items()}
  assert shapes == method.shapes(loaded.config, 2)


def test_another_task_may_stand_in_its_place(loaded, folder):
  given = f'{folder}/small/{{task}}'
  method, arrays = _started(loaded, given, ['green', 'red'])
  np.testing.assert_array_equal(
    arrays['source_prompts'][0], _soft('green').arrays['prompt']
  )
  assert [name for name, _ in method.sources] == ['green', 'red']


@pytest.mark.parametrize(
  ('given', 'settings', 'message'),
  [
    (None, {}, "'projector' needs SOURCE_PROMPTS, the prompts of another back"),
    ('{}/all', {'tasks': ('red', 'bleu')}, "no task 'bleu'.*mean 'blue'"),
    ('{}/small/{{task}}', {'tasks': ('rot',)}, 'no prompts at .*rot'),
    ('{}/all', {'names': ['red']}, 'prompts of red, and the run has 2 tasks'),
    ('{}/all', {'flatten': False}, '3 vectors and PROMPT_LENGTH = 4: with FLA'),
    (['{}/long', '{}/small/blue'], {}, 'different prompt_length cannot be'),
    ('{}/all', {'layers': 3}, 'PROJECTOR_LAYERS = 3, expected 1 or 2'),
    ('{}/all', {'activation': 'tan'}, "ACTIVATION = 'tan'.*mean 'tanh'"),
    ('{}/all', {'weights': 'tensor'}, "PROJECTOR_WEIGHTS = 'tensor'"),
  ],
)
def test_what_does_not_do(loaded, folder, given, settings, message):
  if given is not None:
    one = isinstance(given, str)
    given = [path.format(folder) for path in ([given] if one else given)]
    given = given[0] if one else given
  with pytest.raises(InputError, match=message):
    _started(loaded, given, **settings)


def test_no_other_method_takes_them(loaded, folder):
  for method in (methods.SoftPrompts(L), methods.Attempt(L)):
    source = starts.Source(f'{folder}/all').of_tasks(method, TASKS)
    assert source.task is None
    with pytest.raises(InputError, match='7 wide .trained on small., but the'):
      starts.read_source(source, loaded)


@pytest.mark.parametrize('weights', ['fan_in', 'torch', 'normal'])
def test_how_weights_start(weights):
  width = methods.Width(20)
  method = methods.Projector(
    5, 40, weights=weights, source_length=10, source_width=9
  )
  arrays = method.fresh(width, 2, jax.random.PRNGKey(0))
  for name, fan_in in (('1', 90), ('2', 40)):
    spread = {'fan_in': 1.0, 'torch': 1 / 3, 'normal': fan_in}[weights]
    got = np.asarray(arrays[f'w{name}'])
    assert np.var(got) == pytest.approx(spread / fan_in, rel=0.1)
    bias = np.abs(np.asarray(arrays[f'b{name}']))
    assert bias.max() <= fan_in**-0.5
    assert (bias.max() > 0) == (weights != 'fan_in')
  assert (np.asarray(arrays['ln_weight']) == 1).all()


def test_a_published_projector_of_the_largest():
  """T5-XXL to T5-base: 409,600 to 512 to 76,800 numbers."""
  method = methods.Projector(
    100, 512, source_length=100, source_width=4096, layer_norm=False
  )
  count = method.num_parameters(methods.Width(768), 3)
  assert count == 409600 * 512 + 512 + 512 * 76800 + 76800


# ---------------------------------------------------------------------------
# Runs of the real trainer; those of task tuning are in test_every_run.py.


def _tasks():
  rows = [{'text': word, 'label': word[:1]} for word in ('ab', 'ba', 'aa')]
  return {
    name: mpt_jax.Task(
      train=rows,
      validation=rows,
      inputs=name + ': {text}',
      targets='{label}',
    )
    for name in TASKS
  }


@pytest.fixture(scope='module')
def distance(loaded, folder, tmp_path_factory):
  """Twenty steps towards the target's own prompts, kept where best."""
  run = str(tmp_path_factory.mktemp('run') / 'distance')
  settings = {
    'backbone': loaded,
    'method': methods.Projector(P, 6),
    'tasks': _tasks(),
    'dataset': {'task_feature_lengths': {'inputs': 20, 'targets': 4}},
    'start': f'{folder}/small/{{task}}',
    'distillation': starts.Distance(f'{folder}/own/{{task}}'),
    'steps': 20,
    'model_dir': run,
    'evaluation': Evaluation(period=10, keep_best=True),
    'logging': Logging(log_period=5, checkpoint_period=10, tensorboard=False),
  }
  return run, settings, mpt_jax.train(**settings)


def test_distance_minimising_comes_nearer(distance, folder, loaded):
  run, settings, _ = distance
  lines = pathlib.Path(run, 'metrics.jsonl').read_text().splitlines()
  told = [json.loads(line) for line in lines]
  curve = [line['train/loss'] for line in told if 'train/loss' in line]
  assert len(curve) == 4
  assert curve[-1] < curve[0]
  last = next(line for line in told[::-1] if 'train/loss' in line)
  parts = [last[f'train/distance/{task}'] for task in TASKS]
  assert np.mean(parts) == pytest.approx(last['train/loss'], rel=1e-5)
  results = json.loads(pathlib.Path(run, 'results.json').read_text())
  # One network for both tasks has one best step.
  assert len(set(results['best_steps'].values())) == 1
  bundle = load_prompts(f'{run}/prompts')
  assert bundle.settings['source_fingerprint'] == 'sha256:other'
  assert bundle.backbone_fingerprint == loaded.fingerprint
  assert [name for name, _ in bundle.settings['sources']] == list(TASKS)
  # The same command does nothing; with another goal it is refused.
  with pytest.raises(InputError, match='there, .* here'):
    mpt_jax.train(
      **settings | {'distillation': starts.Distance(f'{folder}/own/x')}
    )


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    (
      {'target_prompts': 'x', 'kind': 'l1'},
      "DISTANCE = 'l1', expected one of l2",
    ),
    ({'target_prompts': '{}/own/red'}, 'TARGET_PROMPTS = .* must contain'),
    ({'target_prompts': '{}/small/{{task}}'}, 'TARGET|7 wide|3 prompt vec'),
    (
      {'target_prompts': ['{}/own/red']},
      "TARGET_PROMPTS .* 'blue'; it has red",
    ),
  ],
)
def test_target_prompts_that_do_not_do(
  distance, folder, tmp_path, given, message
):
  _, settings, _ = distance
  paths = given['target_prompts']
  one = isinstance(paths, str)
  paths = [path.format(folder) for path in ([paths] if one else paths)]
  given = given | {'target_prompts': paths[0] if one else paths}
  with pytest.raises(InputError, match=message):
    mpt_jax.train(
      **settings
      | {
        'distillation': starts.Distance(**given),
        'model_dir': str(tmp_path / 'run'),
      }
    )


def test_a_projector_is_a_bundle_of_composed_prompts(distance, tmp_path):
  run, _, made = distance
  bundle = load_prompts(f'{run}/prompts')
  learner, table = bundle.learner, bundle.table
  assert (bundle.prompt_length, bundle.emb_dim) == (P, D)
  assert table.shape == (2, P, D)
  np.testing.assert_allclose(
    table, learner.prompt_table(bundle.arrays, 2), rtol=1e-6
  )
  for form in ('npy', 'peft_composed'):
    output = str(tmp_path / form)
    export(prompts=f'{run}/prompts', output=output, format=form)
    for task, want in zip(TASKS, table, strict=True):
      file = f'{output}/{task}.npy' if form == 'npy' else f'{output}/{task}'
      np.testing.assert_array_equal(load_prompts(file).table[0], want)
  with pytest.raises(InputError, match="FORMAT = 'peft' cannot hold"):
    bundle.to_peft(str(tmp_path / 'peft'))
  one = bundle.with_tasks(['blue'])
  np.testing.assert_allclose(one.table[0], table[1], rtol=1e-4)
  assert [p.name for p in sources.of_bundle(bundle)] == list(TASKS)
  assert made.model.generate(['ab'], task='red')
  damaged = dict(bundle.arrays, w1=bundle.arrays['w1'][:, 1:])
  with pytest.raises(ValueError, match='by its settings, projector has w1'):
    PromptBundle(
      'projector', 'target', TASKS, damaged, settings=bundle.settings
    )


def test_it_makes_prompts_out_of_others(distance, folder, loaded, tmp_path):
  run, _, _ = distance
  bundle = load_prompts(f'{run}/prompts')
  given = sources.read([f'{folder}/small/{t}' for t in ('blue', 'green')])
  blue, green = projection.project(bundle, given)
  np.testing.assert_allclose(blue.table[0], bundle.table[1], rtol=1e-4)
  green.save(str(tmp_path / 'green'))
  again = load_prompts(str(tmp_path / 'green'))
  assert (
    again.origin
    == green.origin
    == {
      'source_backbone': 'small',
      'source_fingerprint': 'sha256:other',
      'source_prompts': given[1].digest,
      'projector': projection.digest_of(bundle),
    }
  )
  assert again.task_names == ('green',)
  np.testing.assert_array_equal(again.table, green.table)
  mpt_jax.load_prompts(str(tmp_path / 'green'))
  # It is a start like any other.
  source = starts.Source(str(tmp_path / 'green'))
  for method in (methods.SoftPrompts(P), methods.MultitaskPrompts(P)):
    model = PromptedT5(loaded.config, method, 1)
    started = starts.start_values(model, loaded, source, 'target', 0)
    table = model.prompt_table(started)
    np.testing.assert_allclose(table[0], green.table[0], rtol=1e-6)
  joined = merge([blue, green])
  assert set(joined.origin) == set(green.origin) - {'source_prompts'}
  np.testing.assert_allclose(joined.compose('green'), green.table[0], rtol=1e-6)


def test_a_projector_of_several_tasks_is_no_start_without_a_name(
  distance, loaded
):
  run, _, _ = distance
  for method in (methods.SoftPrompts(P), methods.MultitaskPrompts(P)):
    model = PromptedT5(loaded.config, method, 1)
    with pytest.raises(
      InputError, match='name one of red, blue as SOURCE_TASK'
    ):
      starts.start_values(
        model, loaded, starts.Source(f'{run}/prompts'), 'target', 0
      )


def test_prompts_that_it_cannot_take(distance, folder):
  run, _, _ = distance
  bundle = load_prompts(f'{run}/prompts')
  [long] = sources.read(f'{folder}/long')
  with pytest.raises(InputError, match=r"'red' is \(4, 7\), and the projector"):
    projection.project(bundle, [long])
  [strange] = sources.of_bundle(_soft('red', fingerprint='sha256:third'))
  with pytest.raises(InputError, match="'red' is of small .sha256:third., and"):
    projection.project(bundle, [strange])
  with pytest.raises(InputError, match="'soft' is no projector"):
    projection.project(_soft('red'), [strange])


# ---------------------------------------------------------------------------
# What trains nothing.


def test_a_linear_map_is_exact_where_one_is(tmp_path, loaded):
  """Two backbones whose embeddings differ by a matrix, in other rows."""
  rng = np.random.default_rng(0)
  matrix = rng.normal(size=(W, D))
  embedding = rng.normal(size=(50, W))
  words = projection.Words(
    embedding, embedding @ matrix, embedding @ matrix, 'small', 'sha256:other'
  )
  prompts = sources.of_bundle(_soft('red'))
  [moved] = projection.linear(words, prompts, loaded)
  want = prompts[0].array @ matrix
  np.testing.assert_allclose(moved.table[0], want, rtol=1e-4, atol=1e-5)
  assert moved.origin['projector'] == projection.LINEAR
  assert moved.backbone_fingerprint == loaded.fingerprint
  [found] = projection.by_anchors(words, prompts, loaded, steps=30)
  assert found.table.shape == (1, L, D)
  wide = sources.of_bundle(_soft('red', L, W + 1))
  with pytest.raises(InputError, match='8 wide, and the source backbone small'):
    projection.linear(words, wide, loaded)


def test_a_search_keeps_what_a_score_likes():
  rng = np.random.default_rng(0)
  embedding = rng.normal(size=(30, D))
  args = ([rng.normal(size=(L, W))], [rng.normal(size=(30, W))])
  seen = []

  def validate(prompt):
    seen.append(prompt)
    return -abs(len(seen) - 2)

  found = anchors.search(
    *args, embedding, embedding, steps=25, period=10, validate=validate
  )
  assert (found.step, len(seen), len(found.losses)) == (20, 3, 25)
  np.testing.assert_array_equal(found.prompt, seen[1])
  plain = anchors.search(*args, embedding, embedding, steps=25)
  np.testing.assert_allclose(plain.losses, found.losses, rtol=1e-5)
  assert plain.losses[-1] < plain.losses[0]
  with pytest.raises(InputError, match='top is 31, and there are 30 anchors'):
    anchors.search(*args, embedding, embedding, top=31)


def test_words_that_two_vocabularies_share(tmp_path):
  file = f'{backbone_lib.demo_folder()}/spiece.model'
  vocabulary = Vocabulary(file)
  rows, own = anchors.shared_rows(vocabulary, vocabulary)
  np.testing.assert_array_equal(rows, own)
  special = vocabulary.special
  assert not {special.pad, special.end, vocabulary.unk_id} & set(rows.tolist())
  pieces = [vocabulary.id_to_piece(i) for i in rows]
  assert len(pieces) > 100
  assert not any('<extra_id_' in piece for piece in pieces)
  # What pads in one of them is no word.
  other = Vocabulary(file, special=SpecialIds(pad=30, start=30))
  found, own = anchors.shared_rows(vocabulary, other)
  np.testing.assert_array_equal(found, own)
  np.testing.assert_array_equal(found, rows[rows != 30])
