"""T5X's layouts, read without T5X; each against the same plain arrays."""

import json
import pathlib
import resource
import shutil

from flax import serialization
import numpy as np
import pytest

from mpt_jax import checkpoints, t5
from mpt_jax.checkpoints import t5x_format
from mpt_jax.types import InputError

STEP = 'checkpoint_700'
_CONFIG = t5.T5Config(
  vocab_size=256,
  emb_dim=32,
  num_heads=4,
  num_encoder_layers=2,
  num_decoder_layers=2,
  head_dim=16,
  mlp_dim=64,
  mlp_activations=('gelu', 'linear'),
)


def _stored(folder):
  config = json.loads((folder / 'config.json').read_text())['model']
  with np.load(folder / 'params.npz') as arrays:
    return t5.T5Config.from_dict(config), dict(arrays)


@pytest.fixture
def copy(testdata, tmp_path):
  """Copies a layout; returns the folder of its step."""

  def make(layout):
    source = testdata / 't5x_v1_1_tiny' / layout
    shutil.copytree(source, tmp_path / layout)
    return tmp_path / layout / STEP

  return make


def test_the_last_whole_step_is_taken(copy):
  step = copy('legacy')
  shutil.copytree(step, step.parent / 'checkpoint_95')
  (step.parent / 'checkpoint_1200').mkdir()
  (step.parent / 'checkpoint_800.tmp-1').mkdir()
  backbone = checkpoints.load_backbone(str(step.parent))
  assert backbone.name == f'legacy/{STEP}'


def test_the_optimizer_is_never_read(copy):
  step = copy('legacy')
  for folder in step.glob('state.*'):
    shutil.rmtree(folder)
  checkpoints.load_backbone(str(step))


def _as_older_orbax(step):
  """Orbax without OCDBT: the names of a legacy folder under `state`."""
  (step / 'checkpoint').unlink()
  (step / 'state').mkdir()
  for folder in step.glob('target.*'):
    folder.rename(step / 'state' / folder.name)
  (step / 'state' / '_METADATA').write_text('{}')


def test_zarr_folders_of_older_orbax(testdata, copy):
  step = copy('legacy')
  _as_older_orbax(step)
  backbone = checkpoints.load_backbone(str(step))
  want = checkpoints.load_backbone(str(testdata / 't5x_v1_1_tiny/legacy'))
  assert backbone.fingerprint == want.fingerprint


def test_a_given_config_must_fit(testdata):
  path = str(testdata / 't5x_v1_1_tiny/orbax')
  config, _ = _stored(testdata / 't5x_v1_1_tiny')
  given = config.replace(dtype='bfloat16', dropout_rate=0.2)
  assert checkpoints.load_backbone(path, given).config == given
  shape = r'kernel has shape \(32, 256\), but the config asks for \(32, 257\)'
  with pytest.raises(InputError, match=shape):
    checkpoints.load_backbone(path, config.replace(vocab_size=257))
  with pytest.raises(InputError, match='decoder_norm/scale has shape'):
    checkpoints.load_backbone(path, config.replace(emb_dim=31))
  with pytest.raises(InputError, match=r'lacks 9 .*encoder/layers_2'):
    checkpoints.load_backbone(path, config.replace(num_encoder_layers=3))
  with pytest.raises(InputError, match=r"holds 'encoder/layers_1/.*1 encoder"):
    checkpoints.load_backbone(path, config.replace(num_encoder_layers=1))
  with pytest.raises(InputError, match=r"holds 'decoder/logits_dense.* tied"):
    checkpoints.load_backbone(path, config.replace(logits_via_embedding=True))
  with pytest.raises(InputError, match=r'lacks 4 .*mlp/wi/kernel'):
    checkpoints.load_backbone(path, config.replace(mlp_activations=('relu',)))


def _rewrite(step, change):
  """Changes the tree in the msgpack file."""
  file = step / 'checkpoint'
  content = serialization.msgpack_restore(file.read_bytes())
  change(content['optimizer']['target'])
  file.write_bytes(serialization.msgpack_serialize(content))


def test_a_position_bias_per_layer(testdata, tmp_path):
  stored = checkpoints.load_backbone(str(testdata / 'hf_umt5_tiny'))
  assert stored.config.relpos_per_layer
  step = t5x_format.save_t5x(str(tmp_path), stored.config, stored.params)
  loaded = checkpoints.load_backbone(step)
  assert loaded.fingerprint == stored.fingerprint
  assert loaded.config == stored.config.replace(dropout_rate=0.1)
  _rewrite(
    pathlib.Path(step),
    lambda target: target.update(encoder={'encoder': target['encoder']}),
  )
  with pytest.raises(InputError, match=r'scalable T5 .* is not read; take the'):
    checkpoints.load_backbone(step)


def test_extra_parameters_are_ignored_and_told(copy):
  step = copy('legacy_mixed')
  extra = {'prompt': {'prompt': np.ones((3, 32), np.float32)}}
  _rewrite(step, lambda target: target['encoder'].update(prompt=extra))
  backbone = checkpoints.load_backbone(str(step))
  assert backbone.report['ignored'] == ['encoder/prompt/prompt/prompt']


@pytest.mark.parametrize('name', ['decoder_norm', 'relpos_bias', 'layers_1'])
def test_a_lost_tensor_is_an_error(copy, name):
  step = copy('legacy_mixed')
  _rewrite(step, lambda target: target['decoder'].pop(name))
  with pytest.raises(InputError, match=f"lacks .*'decoder/{name}/"):
    checkpoints.load_backbone(str(step), _CONFIG)


@pytest.mark.parametrize(
  'name', ['../elsewhere', '/etc', 'a/b', '..', '', 'a\\b', 7, None]
)
def test_names_do_not_leave_the_checkpoint(copy, name):
  step = copy('legacy')
  shutil.copytree(
    step / 'target.encoder.relpos_bias.rel_embedding', step.parent / 'elsewhere'
  )

  def change(target):
    leaf = target['encoder']['relpos_bias']['rel_embedding']
    leaf['kvstore']['path'] = name

  _rewrite(step, change)
  with pytest.raises(InputError, match='rel_embedding is said to lie at'):
    checkpoints.load_backbone(str(step))


def test_links_do_not_leave_the_checkpoint(copy):
  step = copy('legacy')
  array = step / 'target.encoder.relpos_bias.rel_embedding'
  array.rename(step.parent / 'elsewhere')
  array.symlink_to(step.parent / 'elsewhere')
  with pytest.raises(InputError, match='rel_embedding is said to lie at'):
    checkpoints.load_backbone(str(step))


def test_where_it_was_first_written_does_not_matter(copy):
  step = copy('legacy')

  def change(target):
    kvstore = target['encoder']['relpos_bias']['rel_embedding']['kvstore']
    kvstore.update(driver='gcs', bucket='a-bucket')

  _rewrite(step, change)
  checkpoints.load_backbone(str(step))


@pytest.mark.parametrize(
  ('layout', 'file'),
  [
    ('legacy', 'checkpoint'),
    ('legacy', 'target.encoder.layers_0.mlp.wo.kernel/.zarray'),
    ('legacy', 'target.encoder.layers_0.mlp.wo.kernel/0.0'),
    ('orbax', 'state/manifest.ocdbt'),
  ],
)
@pytest.mark.parametrize('damage', ['cut', 'gone'])
def test_damaged_files_are_one_clear_line(copy, layout, file, damage):
  step = copy(layout)
  if damage == 'cut':
    content = (step / file).read_bytes()
    (step / file).write_bytes(content[: len(content) // 2])
  else:
    (step / file).unlink()
  with pytest.raises(InputError) as error:
    checkpoints.load_backbone(str(step))
  assert '\n' not in str(error.value)


def test_a_lost_database_file_is_one_clear_line(copy):
  step = copy('orbax')
  for file in step.glob('state/ocdbt.process_0/d/*'):
    file.unlink()
  with pytest.raises(InputError) as error:
    checkpoints.load_backbone(str(step))
  assert '\n' not in str(error.value)


def test_another_model_is_no_t5(copy):
  step = copy('legacy_mixed')
  _rewrite(step, lambda target: target.pop('token_embedder'))
  with pytest.raises(
    InputError, match="is no T5: .*'token_embedder/embedding'"
  ):
    checkpoints.load_backbone(str(step))


_ARRAY = 'target.token_embedder.embedding'


def _declare(step, **changes):
  file = step / _ARRAY / '.zarray'
  file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
  'changes',
  [
    {'shape': [10**9, 32]},
    {'shape': [10**9, 32], 'chunks': [1, 32]},
    {'chunks': [10**9, 32]},
    {'shape': [2**62, 32]},
  ],
)
def test_declared_sizes_are_not_allocated(copy, changes):
  # The shapes imply the config, so that nothing else would disagree.
  step = copy('legacy')
  _declare(step, **changes)
  tracked = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  with pytest.raises(InputError, match=r'declare \d+ bytes|cannot be read'):
    checkpoints.load_backbone(str(step))
  grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - tracked
  assert grown < 100 << 10  # KiB


def test_integers_are_no_weights(copy):
  step = copy('legacy')
  _declare(step, dtype='<i4')
  with pytest.raises(InputError, match='embedding is of int32'):
    checkpoints.load_backbone(str(step))


def test_links_do_not_leave_an_orbax_folder_either(copy, tmp_path):
  step = copy('legacy')
  _as_older_orbax(step)
  (step / 'state' / _ARRAY).rename(tmp_path / 'elsewhere')
  (step / 'state' / _ARRAY).symlink_to(tmp_path / 'elsewhere')
  with pytest.raises(InputError, match='a link that leads out of'):
    checkpoints.load_backbone(str(step))
