"""Our exports in the real PEFT and transformers, where they are installed."""

import re

import numpy as np
import pytest

from mpt_jax.checkpoints.backbone import demo_folder, load_backbone
from mpt_jax.checkpoints.bundle import PromptBundle
from mpt_jax.convert import convert
from mpt_jax.export import export
from tests import goldens
from tests.goldens import networks

pytestmark = [pytest.mark.torch, pytest.mark.slow]

torch = pytest.importorskip('torch', reason='torch is not installed')
transformers = pytest.importorskip(
  'transformers', reason='transformers is not installed'
)

P, TASKS = 5, ('a', 'b', 'c')
BASES = goldens.of('transformers')


def _bundle(width, rank):
  rng = np.random.default_rng(rank)
  return PromptBundle(
    method='multitask',
    stage='source',
    task_names=TASKS,
    arrays={
      'shared_prompt': rng.normal(size=(P, width)),
      'task_u': rng.normal(size=(3, P, rank)),
      'task_v': rng.normal(size=(3, rank, width)),
    },
  )


def _inputs(vocab_size):
  rng = np.random.default_rng(0)
  tokens = rng.integers(2, vocab_size - 1, size=(4, 9))
  tokens[1, 6:] = 0
  targets = rng.integers(2, vocab_size - 1, size=(4, 6))
  return tokens, targets, np.array([0, 2, 1, 0])


def _our_logits(backbone, bundle, tokens, targets, rows):
  batch = networks.batch(tokens, targets, rows, P)
  return np.asarray(
    networks.apply(
      backbone.config,
      backbone.params,
      batch['encoder_input_tokens'],
      batch['decoder_input_tokens'],
      targets,
      prompt_table=bundle.table,
      encoder_prompt_slots=batch['encoder_prompt_slots'],
      encoder_task_ids=batch['encoder_task_ids'],
    )
  )


def _their_logits(base, adapter, tokens, targets, **inputs):
  peft = pytest.importorskip('peft', reason='peft is not installed')
  model = transformers.AutoModelForSeq2SeqLM.from_pretrained(base).eval()
  model = peft.PeftModel.from_pretrained(model, adapter).eval()
  with torch.no_grad():
    out = model(
      input_ids=torch.tensor(tokens),
      attention_mask=torch.tensor((tokens > 0).astype(np.int64)),
      labels=torch.tensor(targets),
      **inputs,
    )
  return out.logits.numpy()


@pytest.mark.parametrize('rank', [1, 2])
@pytest.mark.parametrize('base', BASES)
def test_exported_adapters_give_our_logits(base, rank, tmp_path):
  folder = str(base.folder)
  backbone = networks.backbone(base.folder)
  bundle = _bundle(backbone.config.emb_dim, rank)
  tokens, targets, rows = _inputs(backbone.config.vocab_size)
  ours = _our_logits(backbone, bundle, tokens, targets, rows)
  bundle.to_peft(str(tmp_path / 'multitask'))
  theirs = _their_logits(
    folder,
    str(tmp_path / 'multitask'),
    tokens,
    targets,
    task_ids=torch.tensor(rows),
  )
  np.testing.assert_allclose(theirs, ours, atol=1e-4)
  # One composed prompt, as plain prompt tuning.
  for row, task in enumerate(TASKS):
    bundle.to_peft(str(tmp_path / task), task)
    mine = rows == row
    theirs = _their_logits(
      folder, str(tmp_path / task), tokens[mine], targets[mine]
    )
    np.testing.assert_allclose(theirs, ours[mine], atol=1e-4)


@pytest.mark.parametrize('base', BASES)
def test_converted_backbones_load_in_transformers(base, tmp_path):
  folder = str(base.folder)
  convert(backbone=folder, output=str(tmp_path / 'hf'))
  tokens, targets, _ = _inputs(base.config['vocab_size'])
  logits = []
  for path in (folder, str(tmp_path / 'hf')):
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(path).eval()
    with torch.no_grad():
      out = model(
        input_ids=torch.tensor(tokens),
        attention_mask=torch.tensor((tokens > 0).astype(np.int64)),
        labels=torch.tensor(targets),
      )
    logits.append(out.logits.numpy())
  np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize('form', ['peft', 'peft_composed'])
def test_an_adapter_finds_its_base_model(form, tmp_path):
  """Offline, by its path; as the code in its card does."""
  peft = pytest.importorskip('peft', reason='peft is not installed')
  demo = load_backbone('demo')
  _bundle(demo.config.emb_dim, 1).save(str(tmp_path / 'bundle'))
  export(
    prompts=str(tmp_path / 'bundle'),
    output=str(tmp_path / 'out'),
    format=form,
    backbone='demo',
  )
  folder = tmp_path / 'out' / ('' if form == 'peft' else 'b')
  model = peft.AutoPeftModelForSeq2SeqLM.from_pretrained(
    str(folder), dtype=torch.float32
  ).eval()
  config = model.peft_config['default']
  assert config.base_model_name_or_path == demo_folder()
  tokens, targets, _ = _inputs(demo.config.vocab_size)
  several = {} if form != 'peft' else {'task_ids': torch.ones(4, dtype=int)}
  with torch.no_grad():
    out = model(
      input_ids=torch.tensor(tokens),
      attention_mask=torch.tensor((tokens > 0).astype(np.int64)),
      labels=torch.tensor(targets),
      **several,
    )
  bundle = _bundle(demo.config.emb_dim, 1)
  ours = _our_logits(demo, bundle, tokens, targets, np.ones(4, int))
  np.testing.assert_allclose(out.logits.numpy(), ours, atol=1e-4)

  blocks = re.findall(
    r'```python\n(.*?)```', (folder / 'README.md').read_text(), re.DOTALL
  )
  for code in blocks:
    code = code.replace('FOLDER', str(folder)).replace(
      'BASE MODEL', demo_folder()
    )
    found: dict = {}
    exec(re.sub(r'\n(?=model\.generate)', '\nanswer = ', code), found)
    assert len(found['answer']) == 1
