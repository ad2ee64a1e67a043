"""A run's start: T5X reads the backbone, the prompts are new, nothing else."""

import json
import shutil

import numpy as np
import pytest

pytest.importorskip('t5x', reason='T5X is not on PYTHONPATH')

from t5x import partitioning

from mpt_jax import checkpoints, methods, models, t5
from mpt_jax.checkpoints.bundle import PromptBundle
from mpt_jax.engine import optimizers, starts
from mpt_jax.engine import params as params_lib
from mpt_jax.engine.settings import BackboneSource, Decoding
from mpt_jax.t5x import optimizers as t5x_optimizers
from mpt_jax.t5x import remote, restore, runs
from mpt_jax.t5x.models import PromptedModel, prompt_axis_rules
from mpt_jax.types import InputError

pytestmark = pytest.mark.t5x

LAYOUTS = [
  ('t5x_v1_0_tiny', 'orbax', 1200),
  ('t5x_v1_1_tiny', 'orbax', 700),
  ('t5x_v1_1_tiny', 'legacy', 700),
  ('t5x_v1_1_tiny', 'legacy_mixed', 700),
]
P = 3
SHAPES = {'encoder_input_tokens': (2, 7), 'decoder_input_tokens': (2, 5)}


def stored(testdata, name):
  config = json.loads((testdata / name / 'config.json').read_text())['model']
  with np.load(testdata / name / 'params.npz') as arrays:
    return t5.T5Config.from_dict(config), dict(arrays)


def start_model(path, config, **kwargs):
  """A teacher's model, by the pieces that `runs.train_model` puts together."""
  method = methods.SoftPrompts(P, init=methods.SampledVocabulary())
  settings = optimizers.Optimizer(
    optimizers.method_groups(method, 0.3, 0.1), schedule='constant'
  )
  return restore.TrainModel(
    models.PromptedT5(config, method),
    ('rte',),
    optimizer_def=t5x_optimizers.PromptOptimizer(
      settings, t5x_optimizers.trainable_names(method)
    ),
    start=restore.Start(
      backbone=str(path), stage='teacher', source=starts.Source(**kwargs)
    ),
  )


def first_state(model):
  return restore.PromptStateInitializer(
    optimizer_def=model.optimizer_def,
    init_fn=model.get_initial_variables,
    input_shapes=SHAPES,
    partitioner=partitioning.PjitPartitioner(
      num_partitions=1,
      logical_axis_rules=partitioning.standard_logical_axis_rules(
        additional_rules=prompt_axis_rules()
      ),
    ),
  ).from_scratch(None)


@pytest.mark.parametrize(('name', 'layout', 'step'), LAYOUTS)
def test_every_layout_gives_the_same_bits(testdata, name, layout, step):
  config, arrays = stored(testdata, name)
  path = testdata / name / layout / f'checkpoint_{step}'
  model = start_model(path, config)
  state = first_state(model)
  assert int(state.step) == step
  flat = params_lib.flatten(state.params)
  assert set(flat) == {*arrays, 'prompts/prompt'}
  for key, array in arrays.items():
    np.testing.assert_array_equal(flat[key], array, err_msg=key)
  # The prompt is made of words of this very backbone.
  words = arrays['token_embedder/embedding']
  for row in np.asarray(flat['prompts/prompt']):
    assert (row == words).all(axis=1).any()
  native = checkpoints.load_backbone(str(path))
  assert model.fingerprint(state.params) == native.fingerprint
  assert model.backbone_name == native.name


@pytest.mark.parametrize(('name', 'layout', 'step'), LAYOUTS)
def test_what_t5x_restored_computes_what_t5x_computes(
  testdata, name, layout, step
):
  """Logits, scores, greedy and beam decodes of T5X's own network."""
  config, _ = stored(testdata, name)
  state = first_state(
    start_model(testdata / name / layout / f'checkpoint_{step}', config)
  )
  params = {k: v for k, v in state.params.items() if k != 'prompts'}
  with np.load(testdata / name / 'io.npz') as arrays:
    io = dict(arrays)
  model = PromptedModel(models.PromptedT5(config), ('rte',))
  batch = {
    k: v for k, v in io.items() if k.startswith(('encoder_in', 'decoder_'))
  }
  real = io['decoder_target_tokens'] > 0
  logits = model._compute_logits(params, batch)
  np.testing.assert_allclose(
    logits[real], io['logits'][real], rtol=1e-4, atol=1e-4
  )
  np.testing.assert_allclose(
    model.score_batch(params, batch), io['score_batch'], rtol=1e-4
  )
  packed = {
    k.removeprefix('packed_'): v
    for k, v in io.items()
    if k.startswith('packed_')
  }
  real = packed['decoder_target_tokens'] > 0
  logits = model._compute_logits(params, packed)
  np.testing.assert_allclose(
    logits[real], packed['logits'][real], rtol=1e-4, atol=1e-4
  )
  batch['decoder_input_tokens'] = np.zeros_like(io['greedy_tokens'])
  tokens, aux = model.predict_batch_with_aux(params, batch)
  np.testing.assert_array_equal(tokens, io['greedy_tokens'])
  np.testing.assert_allclose(aux['scores'], io['greedy_log_probs'], rtol=1e-4)
  beams = PromptedModel(
    models.PromptedT5(config), ('rte',), decoding=Decoding(num_beams=4)
  )
  tokens, aux = beams.predict_batch_with_aux(params, batch)
  np.testing.assert_array_equal(tokens, io['beam4_tokens'][:, -1])
  np.testing.assert_allclose(
    aux['scores'], io['beam4_scores'][:, -1], rtol=1e-4
  )


@pytest.mark.parametrize('layout', ['orbax', 'legacy'])
def test_t5x_network_itself_agrees(testdata, layout):
  """T5X's examples/t5 on the parameters that our start restored."""
  from t5x.examples.t5 import network

  config, _ = stored(testdata, 't5x_v1_1_tiny')
  path = testdata / 't5x_v1_1_tiny' / layout / 'checkpoint_700'
  state = first_state(start_model(path, config))
  fields = {f for f in network.T5Config.__dataclass_fields__}
  theirs = network.Transformer(
    network.T5Config(
      **{k: v for k, v in config.to_dict().items() if k in fields}
    )
  )
  params = {k: v for k, v in state.params.items() if k != 'prompts'}
  with np.load(testdata / 't5x_v1_1_tiny' / 'io.npz') as io:
    names = [f'{n}_tokens' for n in ('encoder_input', 'decoder_input')]
    tokens = [io[n] for n in (*names, 'decoder_target_tokens')]
  import jax

  with jax.numpy_rank_promotion('allow'):
    want = theirs.apply({'params': params}, *tokens, enable_dropout=False)
  got = t5.Transformer(config).apply(
    {'params': params}, *tokens, enable_dropout=False
  )
  real = tokens[2] > 0
  np.testing.assert_allclose(got[real], want[real], rtol=1e-4, atol=1e-4)


def test_wrong_sizes_and_missing_tensors_are_named(testdata, tmp_path):
  config, _ = stored(testdata, 't5x_v1_1_tiny')
  path = testdata / 't5x_v1_1_tiny' / 'orbax' / 'checkpoint_700'
  with pytest.raises(InputError, match="lacks .* 'decoder/layers_2/"):
    first_state(start_model(path, config.replace(num_decoder_layers=3)))
  with pytest.raises(InputError, match='has no place'):
    first_state(start_model(path, config.replace(num_encoder_layers=1)))
  with pytest.raises(InputError, match='has shape'):
    first_state(start_model(path, config.replace(mlp_dim=62)))
  legacy = tmp_path / 'checkpoint_700'
  shutil.copytree(testdata / 't5x_v1_1_tiny/legacy/checkpoint_700', legacy)
  with pytest.raises(InputError, match='has shape'):
    first_state(start_model(legacy, config.replace(mlp_dim=62)))


def test_prompts_of_another_backbone_are_refused(testdata, tmp_path):
  config, _ = stored(testdata, 't5x_v1_1_tiny')
  path = testdata / 't5x_v1_1_tiny' / 'orbax' / 'checkpoint_700'
  native = checkpoints.load_backbone(str(path))
  start = np.full((P, config.emb_dim), 0.5, np.float32)
  for fingerprint in (native.fingerprint, 'sha256:other'):
    PromptBundle(
      method='soft',
      stage='teacher',
      task_names=('rte',),
      arrays={'prompt': start},
      backbone_fingerprint=fingerprint,
    ).save(str(tmp_path / 'prompts'))
    model = start_model(path, config, prompts=str(tmp_path / 'prompts'))
    if fingerprint == native.fingerprint:
      state = first_state(model)
      np.testing.assert_array_equal(state.params['prompts']['prompt'], start)
    else:
      with pytest.raises(InputError, match='another one'):
        first_state(model)


def test_steps_count_from_the_backbone(testdata):
  path = str(testdata / 't5x_v1_1_tiny' / 'legacy' / 'checkpoint_700')
  assert remote.initial_step(path) == 700
  assert remote.initial_step(str(testdata / 't5x_v1_1_tiny' / 'legacy')) == 700
  assert remote.initial_step('gs://b/t5/checkpoint_1000000') == 1000000
  assert runs.total_steps(None, 30, path) == 730
  assert runs.total_steps(900, None, path) == 900
  assert runs.total_steps(None, 30, 'demo') == 30
  with pytest.raises(InputError, match='TRAIN_STEPS_RELATIVE = 500'):
    runs.total_steps(500, None, path)
  with pytest.raises(InputError, match='give TRAIN_STEPS_RELATIVE'):
    runs.total_steps(None, None, path)
  with pytest.raises(InputError, match='does not name a step'):
    remote.initial_step('gs://b/t5')


def train_model(**kwargs):
  arguments = {
    'stage': 'target',
    'backbone': BackboneSource('demo'),
    'method': methods.MultitaskPrompts(P),
    'prompt_tasks': ('rte',),
    'source': starts.Source('x'),
    'total_steps': 7,
    'optimizer': optimizers.Optimizer(learning_rate=0.3),
  }
  return runs.train_model(**{**arguments, **kwargs})


def test_wrong_settings_say_so(tmp_path):
  with pytest.raises(InputError, match="did you mean 'target'"):
    train_model(stage='taget')
  for source, message in (
    (BackboneSource(str(tmp_path / 'no')), 'no such folder'),
    (BackboneSource(str(tmp_path)), 'there is no backbone in'),
    (BackboneSource('gs://b/checkpoint_5'), 'gin_configs/models'),
    (BackboneSource('demo', vocabulary='no'), "'no' does not exist"),
    (BackboneSource(None), 'no INITIAL_CHECKPOINT_PATH'),
  ):
    with pytest.raises(InputError, match=message):
      train_model(backbone=source)
  with pytest.raises(InputError, match='PROMPT_TASKS'):
    runs.dataset_config(
      model=train_model(),
      mixture_or_task_name='sst2',
      task_feature_lengths={'inputs': 20, 'targets': 4},
      split='train',
      batch_size=2,
    )
  with pytest.raises(InputError, match='no T5X checkpoint'):
    runs.restore_config(str(tmp_path))


def test_model_dir_of_another_run_is_refused(tmp_path):
  model_dir = str(tmp_path / 'run')
  # Nothing was saved yet: the folder is free.
  slow = {'optimizer': optimizers.Optimizer(learning_rate=0.2)}
  runs.checkpoint_config(model=train_model(**slow), model_dir=model_dir)
  runs.checkpoint_config(model=train_model(), model_dir=model_dir)
  (tmp_path / 'run' / 'checkpoint_7').mkdir()
  runs.checkpoint_config(model=train_model(), model_dir=model_dir)
  with pytest.raises(
    InputError, match='learning_rate: .* there, 0.2 here'
  ) as e:
    runs.checkpoint_config(model=train_model(**slow), model_dir=model_dir)
  assert repr(model_dir) in str(e.value)
  foreign = tmp_path / 'foreign'
  (foreign / 'checkpoint_7').mkdir(parents=True)
  with pytest.raises(InputError, match='not one of our runs'):
    runs.checkpoint_config(model=train_model(), model_dir=str(foreign))
