"""LoRA and (IA)^3 in the real PEFT, both ways, where it is installed."""

import jax
import numpy as np
import pytest

import mpt_jax
from mpt_jax import methods, models
from mpt_jax.checkpoints.bundle import PromptBundle
from tests import goldens
from tests.goldens import networks

pytestmark = [pytest.mark.torch, pytest.mark.slow]

torch = pytest.importorskip('torch', reason='torch is not installed')
transformers = pytest.importorskip(
  'transformers', reason='transformers is not installed'
)
peft = pytest.importorskip('peft', reason='peft is not installed')

# Ours, and what the same is called in PEFT's configuration.
METHODS = {
  'plain': (methods.LoRA(), {'r': 8, 'lora_alpha': 8}),
  'scaled': (
    methods.LoRA(3, 5.0, ('k', 'o', 'wo'), True, 0.25),
    {
      'r': 3,
      'lora_alpha': 5,
      'target_modules': ['o', 'wo', 'k'],
      'use_rslora': True,
      'lora_dropout': 0.25,
    },
  ),
  'everywhere': (
    methods.LoRA(2, 9.0, ('q', 'k', 'v', 'o', 'wo')),
    {'r': 2, 'lora_alpha': 9, 'target_modules': r'.*\.(q|k|v|o|wo)'},
  ),
  'inputs': (
    methods.LoRA(5, 7.0, ('wi',)),
    {'r': 5, 'lora_alpha': 7, 'target_modules': ['wi', 'wi_0', 'wi_1']},
  ),
  'ia3': (methods.IA3(), {}),
}
# PEFT knows T5's and mT5's targets by itself, and not umT5's.
TARGETS = {
  'plain': {'target_modules': ['q', 'v']},
  'ia3': {'target_modules': ['k', 'v', 'wo'], 'feedforward_modules': ['wo']},
}
# A backbone as others than the goldens': heads that are not the width.
SIZES = {
  'vocab_size': 61,
  'd_model': 14,
  'd_kv': 5,
  'num_heads': 3,
  'd_ff': 11,
  'num_layers': 1,
  'num_decoder_layers': 3,
  'decoder_start_token_id': 0,
}


@pytest.fixture(
  scope='module', params=['relu', 'gated-gelu', *goldens.of('transformers')]
)
def base(request, tmp_path_factory):
  """A folder of transformers."""
  if not isinstance(request.param, str):
    return request.param.folder
  torch.manual_seed(3)
  config = transformers.T5Config(
    **SIZES,
    feed_forward_proj=request.param,
    tie_word_embeddings=request.param == 'relu',
  )
  path = tmp_path_factory.mktemp('base') / 'tiny'
  transformers.T5ForConditionalGeneration(config).save_pretrained(path)
  return path


def _inputs(size):
  rng = np.random.default_rng(0)
  tokens = rng.integers(2, size - 1, size=(4, 9))
  tokens[1, 6:] = 0
  return tokens, rng.integers(2, size - 1, size=(4, 6))


def _ours(backbone, bundle, tokens, targets):
  batch = networks.batch(tokens, targets, np.zeros(len(tokens)), 0)
  model = models.PromptedT5(backbone.config, bundle.learner)
  params = backbone.params | bundle.params
  return jax.jit(lambda p: model._forward(p, None, batch, None)[0])(params)


def _theirs(model, tokens, targets):
  with torch.no_grad():
    out = model.eval()(
      input_ids=torch.tensor(tokens),
      attention_mask=torch.tensor((tokens > 0).astype(np.int64)),
      labels=torch.tensor(targets),
    )
  return out.logits.numpy()


def _model(base):
  return transformers.AutoModelForSeq2SeqLM.from_pretrained(base)


def _of(method, backbone):
  """The method with the targets that the backbone has."""
  if getattr(method, 'targets', ()) == ('wi',):
    if len(backbone.config.mlp_activations) == 2:
      return methods.LoRA(method.rank, method.alpha, ('wi_0', 'wi_1'))
  return method


@pytest.mark.parametrize('name', METHODS)
def test_both_ways(base, name, tmp_path):
  method, settings = METHODS[name]
  backbone = networks.backbone(base)
  method = _of(method, backbone)
  tokens, targets = _inputs(backbone.config.vocab_size)
  kind = peft.IA3Config if name == 'ia3' else peft.LoraConfig
  if backbone.config.relpos_per_layer:
    settings = TARGETS.get(name, {}) | settings
  torch.manual_seed(5)
  model = peft.get_peft_model(
    _model(base), kind(task_type='SEQ_2_SEQ_LM', **settings)
  )
  count = 0
  for parameter in model.parameters():
    if parameter.requires_grad:
      count += parameter.numel()
      torch.nn.init.uniform_(parameter, -0.3, 0.3)
  assert count == method.num_parameters(backbone.config, 1)
  model.save_pretrained(str(tmp_path / 'theirs'))
  bundle = mpt_jax.load_prompts(tmp_path / 'theirs')
  assert bundle.learner == method
  want = _theirs(model, tokens, targets)
  got = _ours(backbone, bundle, tokens, targets)
  goldens.close(got, want, atol=1e-4)
  assert np.abs(want - _theirs(_model(base), tokens, targets)).max() > 0.1

  # What is learned here, there: another task's set.
  own = PromptBundle(
    method=method.name,
    stage='target',
    task_names=('a', 'b'),
    arrays={
      name: np.concatenate([np.zeros_like(array), -0.9 * array])
      for name, array in bundle.arrays.items()
    },
    settings=method.settings,
  )
  own.to_peft(str(tmp_path / 'ours'), 'b')
  loaded = peft.PeftModel.from_pretrained(_model(base), tmp_path / 'ours')
  got = _theirs(loaded, tokens, targets)
  arrays, _ = own.one('b')
  want = _ours(backbone, own.with_tasks(['b']), tokens, targets)
  assert arrays.keys() == own.arrays.keys()
  goldens.close(got, want, atol=1e-4)
  # And merged, where PEFT merges.
  own.to_merged(str(tmp_path / 'merged'), backbone, 'b')
  goldens.close(
    _theirs(_model(tmp_path / 'merged'), tokens, targets), want, atol=1e-4
  )
