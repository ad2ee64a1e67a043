"""A tiny world on disk: synthetic data, a random backbone, source prompts."""

import importlib.util

import gin
import pytest

from mpt_jax import t5
from mpt_jax.checkpoints import save_huggingface
from mpt_jax.models import PromptedT5

if importlib.util.find_spec('seqio') is None:
  collect_ignore_glob = ['test_*.py']

CONFIG = t5.T5Config(
  vocab_size=475,
  emb_dim=12,
  num_heads=2,
  head_dim=6,
  num_encoder_layers=1,
  num_decoder_layers=1,
  mlp_dim=17,
  mlp_activations=('relu',),
  dropout_rate=0.0,
  logits_via_embedding=True,
)


@pytest.fixture(autouse=True)
def _clean_gin():
  gin.clear_config()
  yield
  gin.clear_config()


def save_backbone(root, path, seed=0, config=CONFIG):
  """Writes a random backbone with the demo's vocabulary; returns its path."""
  import jax
  import numpy as np

  variables = PromptedT5(config).get_initial_variables(jax.random.PRNGKey(seed))
  save_huggingface(
    str(path),
    config,
    jax.tree.map(np.asarray, variables['params']),
    vocabulary_file=str(root / 'tasks/offline/demo_backbone/spiece.model'),
  )
  return str(path)


@pytest.fixture(scope='session')
def world(request, tmp_path_factory):
  """The folder with `data/` and `backbone/`."""
  from tasks.offline import writer

  folder = tmp_path_factory.mktemp('world')
  names = ['mnli', 'sst2', 'rte']
  writer.write(
    str(folder / 'data'), names, train_size=1100, say=lambda line: None
  )
  save_backbone(request.config.rootpath, folder / 'backbone')
  return folder
