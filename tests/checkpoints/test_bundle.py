"""Prompt bundles and their exchange formats.

Guards against prompts that come back changed, half-written or under another
task's name, and against damaged files that load without a word.
"""

import dataclasses
import json
import os
import types

import numpy as np
import pytest
from safetensors import safe_open
import safetensors.numpy

import mpt_jax
from mpt_jax.checkpoints import bundle as bundle_lib
from mpt_jax.checkpoints.texts import TaskText
from mpt_jax.types import InputError

P, D, R = 5, 11, 3
TASKS = ('mnli', 'sst2')
GOOGLE_FILE = 'encoder.prompt.prompt.prompt'


def _multitask(**changes) -> bundle_lib.PromptBundle:
  rng = np.random.default_rng(0)
  fields = {
    'method': 'multitask',
    'stage': 'source',
    'task_names': TASKS,
    'arrays': {
      'shared_prompt': rng.normal(size=(P, D)),
      'task_u': rng.normal(size=(2, P, R)),
      'task_v': rng.normal(size=(2, R, D)),
    },
    'backbone_name': 'tiny',
    'backbone_fingerprint': 'sha256:aa',
    'vocabulary_digest': 'sha256:bb',
    'step': np.int64(7),
    'metrics': {'mnli': {'accuracy': np.float32(0.5)}, 'loss': float('nan')},
  }
  return bundle_lib.PromptBundle(**(fields | changes))


TEXTS = {
  'sst2': TaskText('s: {sentence}', '{label}', ('no', 'é'), {'sentence': 'x'}),
  'mnli': TaskText(),
}


def _soft(**changes) -> bundle_lib.PromptBundle:
  prompt = np.random.default_rng(1).normal(size=(P, D))
  changes = {'arrays': {'prompt': prompt}, 'task_names': ('rte',)} | changes
  return bundle_lib.PromptBundle(method='soft', stage='teacher', **changes)


def _assert_same(got, want):
  assert got.task_names == want.task_names
  assert set(got.arrays) == set(want.arrays)
  for name, array in want.arrays.items():
    assert got.arrays[name].dtype == np.float32
    np.testing.assert_array_equal(got.arrays[name], array)


def _edit_config(folder, **changes):
  path = folder / 'prompt_config.json'
  config = json.loads(path.read_text()) | changes
  path.write_text(json.dumps({k: v for k, v in config.items() if v != 'DROP'}))


def _edit_tensors(folder, **changes):
  path = folder / 'prompts.safetensors'
  arrays = safetensors.numpy.load_file(path) | changes
  arrays = {k: v for k, v in arrays.items() if v is not None}
  path.write_bytes(safetensors.numpy.save(arrays))


class TestRoundTrip:
  @pytest.mark.parametrize('make', [_multitask, _soft])
  def test_bit_equal(self, make, tmp_path):
    want = make()
    want.save(str(tmp_path / 'deep' / 'bundle'))
    got = mpt_jax.load_prompts(tmp_path / 'deep' / 'bundle')
    _assert_same(got, want)
    for name in bundle_lib._STORED_FIELDS:
      assert getattr(got, name) == getattr(want, name), name
    np.testing.assert_array_equal(got.table, want.table)

  def test_sizes_and_metrics(self):
    bundle = _multitask()
    assert (bundle.prompt_length, bundle.emb_dim, bundle.rank) == (P, D, R)
    assert bundle.table.shape == (2, P, D)
    assert bundle.step == 7
    assert bundle.metrics == {'mnli': {'accuracy': 0.5}, 'loss': None}
    assert bundle.package_version == mpt_jax.__version__

  def test_table_is_a_plain_loop(self):
    bundle = _multitask()
    a = bundle.arrays
    for k, task in enumerate(TASKS):
      want = a['shared_prompt'] * sum(
        np.outer(a['task_u'][k, :, r], a['task_v'][k, r]) for r in range(R)
      )
      np.testing.assert_allclose(bundle.compose(task), want, atol=1e-6)

  def test_soft_prompt_serves_every_task(self):
    bundle = _soft()
    several = bundle_lib.PromptBundle(
      'soft', 'source', ('a', 'b', 'c'), bundle.arrays
    )
    assert several.table.shape == (3, P, D)
    np.testing.assert_array_equal(several.compose('c'), bundle.compose('rte'))

  @pytest.mark.parametrize('make', [_multitask, _soft])
  def test_module_owns_the_arrays(self, make):
    bundle = make()
    table = bundle.learner.prompt_table(bundle.arrays, len(bundle.task_names))
    np.testing.assert_allclose(table, bundle.table, atol=1e-6)

  def test_replaces_a_bundle_and_leaves_nothing_behind(self, tmp_path):
    _multitask(step=1).save(str(tmp_path / 'bundle'))
    _multitask(step=2).save(str(tmp_path / 'bundle'))
    assert mpt_jax.load_prompts(tmp_path / 'bundle').step == 2
    assert os.listdir(tmp_path) == ['bundle']
    assert sorted(os.listdir(tmp_path / 'bundle')) == [
      'README.md',
      'prompt_config.json',
      'prompts.safetensors',
    ]

  def test_failed_replacement_keeps_the_old_bundle(self, tmp_path, monkeypatch):
    path = tmp_path / 'bundle'
    _multitask(step=1).save(str(path))

    def full_disk(*args):
      raise OSError(28, 'No space left on device')

    for broken in ('fsync', 'replace'):
      with monkeypatch.context() as m:
        m.setattr(os, broken, full_disk)
        with pytest.raises(InputError, match='No space left'):
          _multitask(step=2).save(str(path))
      assert mpt_jax.load_prompts(path).step == 1
      assert os.listdir(tmp_path) == ['bundle']

  def test_other_peoples_files_are_left_alone(self, tmp_path):
    _multitask().save(str(tmp_path / 'bundle'))
    (tmp_path / 'bundle' / 'notes.md').write_text('mine')
    with pytest.raises(InputError, match=r"holds 'notes.md'"):
      _multitask(step=2).save(str(tmp_path / 'bundle'))
    assert (tmp_path / 'bundle' / 'notes.md').read_text() == 'mine'
    (tmp_path / 'file').write_text('x')
    with pytest.raises(InputError, match='something else has this name'):
      _multitask().save(str(tmp_path / 'file'))


class TestTexts:
  """How the tasks' texts are written: format version 2."""

  def test_round_trip(self, tmp_path):
    want = _multitask(texts=TEXTS)
    want.save(str(tmp_path / 'bundle'))
    got = mpt_jax.load_prompts(tmp_path / 'bundle')
    _assert_same(got, want)
    assert got.texts == TEXTS
    assert list(got.texts) == ['mnli', 'sst2']
    config = json.loads((tmp_path / 'bundle/prompt_config.json').read_text())
    assert config['format_version'] == 2
    assert config['texts']['sst2'] == {
      'inputs': 's: {sentence}',
      'targets': '{label}',
      'labels': ['no', 'é'],
      'columns': {'sentence': 'x'},
    }

  def test_what_an_encoder_needs(self, tmp_path):
    more = {'masked': '{mask} {sentence}', 'fillers': {'no': ' a', 'é': [' b']}}
    text = dataclasses.replace(TEXTS['sst2'], **more)
    _multitask(texts={**TEXTS, 'sst2': text}).save(str(tmp_path / 'bundle'))
    got = mpt_jax.load_prompts(tmp_path / 'bundle')
    assert got.texts == {**TEXTS, 'sst2': text}
    config = json.loads((tmp_path / 'bundle/prompt_config.json').read_text())
    said = config['texts']['sst2']
    assert said['fillers'] == {'no': [' a'], 'é': [' b']}
    assert 'masked' not in config['texts']['mnli']

  def test_version_1_is_read_for_ever(self, testdata, tmp_path):
    folder = testdata / 'bundle_v1'
    got = mpt_jax.load_prompts(folder / 'bundle')
    for name, array in np.load(folder / 'arrays.npz').items():
      assert got.arrays[name].tobytes() == array.tobytes()
    assert got.texts == {}
    assert got.task_names == TASKS
    with pytest.raises(InputError, match="do not say .* task 'mnli'"):
      got.text('mnli')
    # Without texts nothing else is written, byte by byte.
    got.save(str(tmp_path / 'again'))
    for path in (folder / 'bundle').iterdir():
      assert (tmp_path / 'again' / path.name).read_bytes() == path.read_bytes()

  def test_they_go_with_their_tasks(self):
    bundle = _multitask(texts=TEXTS)
    one = bundle.with_tasks(['sst2'])
    assert one.texts == {'sst2': TEXTS['sst2']}
    named = bundle.renamed({'sst2': 'mine'})
    assert named.texts == {'mine': TEXTS['sst2'], 'mnli': TEXTS['mnli']}
    other = _soft(texts={'rte': TaskText('r: {a}')})
    merged = bundle_lib.merge([bundle, other])
    assert merged.texts == TEXTS | other.texts

  @pytest.mark.parametrize(
    ('texts', 'message'),
    [
      ({}, 'expected templates by task'),
      ([], 'expected templates by task'),
      ({'cb': {}}, "texts of 'cb': it is"),
      ({'mnli': None}, "texts of 'mnli': it is None"),
      (
        {'mnli': {**TaskText().as_json(), 'masked': '{mask}'}},
        "texts of 'mnli': masked is '{mask}', but there are no fillers",
      ),
      ('DROP', "lacks the key 'texts' of format_version 2"),
    ],
  )
  def test_damage(self, tmp_path, texts, message):
    _multitask(texts=TEXTS).save(str(tmp_path / 'bundle'))
    folder = tmp_path / 'bundle'
    _edit_config(folder, texts=texts)
    # As one who can compute a digest would write it.
    config = json.loads((folder / 'prompt_config.json').read_text())
    content = (folder / 'prompts.safetensors').read_bytes()
    _edit_config(folder, digest=bundle_lib._digest(config, content))
    with pytest.raises(InputError, match=message):
      mpt_jax.load_prompts(folder)

  @pytest.mark.parametrize(
    ('texts', 'message'),
    [
      ({'cb': TaskText()}, "'cb', which is not among the tasks"),
      ({'mnli': 'a'}, 'expected a TaskText'),
    ],
  )
  def test_parts_must_fit(self, texts, message):
    with pytest.raises(ValueError, match=message):
      _multitask(texts=texts)

  def test_version_1_has_none(self, tmp_path):
    _multitask(texts=TEXTS).save(str(tmp_path / 'bundle'))
    _edit_config(tmp_path / 'bundle', format_version=1)
    with pytest.raises(InputError, match="unknown key 'texts'"):
      mpt_jax.load_prompts(tmp_path / 'bundle')

  def test_more_than_a_reader_would_take(self, tmp_path, caplog):
    long = {'mnli': TaskText('é' * 300_000)}
    _multitask(texts=long).save(str(tmp_path / 'bundle'))
    assert 'does not hold how its tasks' in caplog.text
    got = mpt_jax.load_prompts(tmp_path / 'bundle')
    assert got.texts == {}
    _assert_same(got, _multitask())


class TestTasks:
  def test_with_tasks_picks_rows_by_name(self):
    bundle = _multitask()
    swapped = bundle.with_tasks(['sst2', 'mnli'])
    assert swapped.task_names == ('sst2', 'mnli')
    np.testing.assert_array_equal(swapped.table, bundle.table[::-1])
    one = bundle.with_tasks(['sst2'])
    np.testing.assert_array_equal(one.compose('sst2'), bundle.compose('sst2'))

  def test_unknown_task_gets_the_nearest_name(self):
    with pytest.raises(InputError, match=r"'mnly'.*mnli, sst2.*mean 'mnli'"):
      _multitask().compose('mnly')
    with pytest.raises(InputError, match='twice'):
      _multitask().with_tasks(['mnli', 'mnli'])

  @pytest.mark.parametrize(
    'names', [(), ('a', 'a'), ('../a', 'b'), ('', 'b'), 'ab', (1, 2)]
  )
  def test_bad_names_are_refused(self, names):
    with pytest.raises(ValueError, match='task_names'):
      _multitask(task_names=names)


class TestMerge:
  def test_one_shared_prompt_stays_one(self):
    whole = _multitask()
    parts = [whole.with_tasks([name]) for name in reversed(whole.task_names)]
    merged = bundle_lib.merge(parts)
    assert merged.task_names == whole.task_names[::-1]
    _assert_same(merged.with_tasks(whole.task_names), whole)

  def test_other_prompts_are_kept_exactly(self, tmp_path):
    rng = np.random.default_rng(1)
    soft = [
      _soft(
        task_names=(name,),
        arrays={'prompt': rng.normal(size=(P, D)).astype(np.float32)},
      )
      for name in ('cb', 'wsc')
    ]
    multi = _multitask()
    merged = bundle_lib.merge([*soft, multi])
    assert merged.task_names == ('cb', 'wsc', *multi.task_names)
    merged.save(str(tmp_path / 'm'))
    loaded = bundle_lib.load_prompts(str(tmp_path / 'm'))
    for bundle in (*soft, multi):
      for name in bundle.task_names:
        np.testing.assert_array_equal(
          loaded.compose(name), bundle.compose(name)
        )

  def test_what_cannot_be_merged(self):
    one = _multitask()
    with pytest.raises(InputError, match='twice'):
      bundle_lib.merge([one, one])
    other = dataclasses.replace(
      _soft(task_names=('cb',)), backbone_fingerprint='sha256:other'
    )
    with pytest.raises(InputError, match='different backbone_fingerprint'):
      bundle_lib.merge(
        [dataclasses.replace(one, backbone_fingerprint='sha256:x'), other]
      )
    long = _soft(
      task_names=('cb',), arrays={'prompt': np.ones((P + 1, D), np.float32)}
    )
    with pytest.raises(InputError, match=f'prompt_length .*: {P}, {P + 1}'):
      bundle_lib.merge([one, long])

  def test_other_names(self):
    one = _multitask()
    first, *rest = one.task_names
    renamed = one.renamed({first: 'fresh'})
    assert renamed.task_names == ('fresh', *rest)
    np.testing.assert_array_equal(renamed.table, one.table)
    with pytest.raises(InputError, match='have no task'):
      one.renamed({'nope': 'x'})
    with pytest.raises(InputError, match='twice'):
      one.renamed({first: rest[0]})
    with pytest.raises(InputError, match='made of letters'):
      one.renamed({first: '../x'})


class TestConstruction:
  @pytest.mark.parametrize(
    ('changes', 'message'),
    [
      ({'method': 'mulittask'}, "did you mean 'multitask'"),
      ({'stage': 'done'}, 'stage'),
      ({'step': -1}, 'step'),
      ({'metrics': {'a': 'b'}}, 'metrics'),
      ({'metrics': {'a': {'b': {'c': {'d': 1}}}}}, 'metrics'),
      ({'backbone_name': None}, 'backbone_name'),
      ({'arrays': {}}, 'has the arrays'),
      ({'task_names': ('a', 'b', 'c')}, 'task_u has shape'),
    ],
  )
  def test_parts_must_fit(self, changes, message):
    with pytest.raises(ValueError, match=message):
      _multitask(**changes)

  def test_values_must_be_finite(self):
    arrays = dict(_soft().arrays)
    arrays['prompt'] = arrays['prompt'].copy()
    arrays['prompt'][2, 3] = np.inf
    with pytest.raises(ValueError, match='prompt holds NaN or infinity'):
      _soft(arrays=arrays)
    arrays = {k: np.full_like(v, 1e30) for k, v in _multitask().arrays.items()}
    with pytest.raises(ValueError, match='make a prompt with NaN'):
      _multitask(arrays=arrays)


class TestDamage:
  """Each damage ends as one line that names the file and what is wrong."""

  @pytest.fixture
  def folder(self, tmp_path):
    _multitask().save(str(tmp_path / 'bundle'))
    return tmp_path / 'bundle'

  def _refused(self, folder, *words):
    with pytest.raises(InputError) as caught:
      mpt_jax.load_prompts(folder)
    message = str(caught.value)
    assert '\n' not in message
    for word in (folder.name, *words):
      assert word in message

  @pytest.mark.parametrize('version', [2, 0, '1', True, 1.0, None, 'DROP'])
  def test_format_version(self, folder, version):
    _edit_config(folder, format_version=version)
    self._refused(folder, 'format_version')

  @pytest.mark.parametrize(
    'key', ['prompt_length', 'emb_dim', 'rank', *bundle_lib._STORED_FIELDS]
  )
  def test_missing_key(self, folder, key):
    _edit_config(folder, **{key: 'DROP'})
    self._refused(folder, f"lacks the key '{key}'")

  @pytest.mark.parametrize('number', ['1e999', '-1e999', 'NaN'])
  def test_numbers_must_be_finite(self, folder, number):
    file = folder / bundle_lib.CONFIG
    text = file.read_text()
    file.write_text(
      text.replace('"metrics": {', f'"metrics": {{"x": {number},')
    )
    self._refused(folder, 'cannot be read as JSON')

  def test_deep_nesting(self, folder):
    value = []
    for _ in range(300):
      value = [value]
    _edit_config(folder, metrics=value)
    self._refused(folder)

  def test_extra_key(self, folder):
    _edit_config(folder, stagee='source')
    self._refused(folder, "unknown key 'stagee'", "did you mean 'stage'")

  @pytest.mark.parametrize(
    ('key', 'value'),
    [
      ('method', 'adapter'),
      ('method', []),
      ('stage', 3),
      ('task_names', 'mnli'),
      ('task_names', ['mnli']),
      ('task_names', ['mnli', '/etc/passwd']),
      ('prompt_length', P + 1),
      ('prompt_length', 10**30),
      ('prompt_length', float(P)),
      ('emb_dim', -D),
      ('rank', 0),
      ('rank', True),
      ('step', '7'),
      ('metrics', [1]),
      ('vocabulary_digest', None),
    ],
  )
  def test_wrong_value(self, folder, key, value):
    _edit_config(folder, **{key: value})
    self._refused(folder)

  def test_soft_bundle_has_no_rank(self, tmp_path):
    _soft().save(str(tmp_path / 'bundle'))
    _edit_config(tmp_path / 'bundle', rank=1)
    self._refused(tmp_path / 'bundle', 'rank')

  @pytest.mark.parametrize(
    'text', ['', '{', '[]', '{"a": NaN}', '[' * 100000, '\x00', '"' * 3000000]
  )
  def test_config_is_not_a_json_object(self, folder, text):
    (folder / 'prompt_config.json').write_text(text)
    self._refused(folder, 'prompt_config.json')

  @pytest.mark.parametrize(
    ('changes', 'word'),
    [
      ({'task_u': None}, "lacks the tensor 'task_u'"),
      ({'more': np.ones(3, np.float32)}, "unknown tensor 'more'"),
      ({'task_v': np.ones((2, R, D + 1), np.float32)}, 'shape (2, 3, 12)'),
      ({'task_v': np.ones((2, R, D))}, 'F64'),
      (
        {'shared_prompt': np.full((P, D), np.nan, np.float32)},
        'shared_prompt holds NaN',
      ),
    ],
  )
  def test_wrong_tensor(self, folder, changes, word):
    _edit_tensors(folder, **changes)
    self._refused(folder, 'prompts.safetensors', word)

  def test_every_truncation(self, folder):
    path = folder / 'prompts.safetensors'
    content = path.read_bytes()
    for length in {0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1}:
      path.write_bytes(content[:length])
      self._refused(folder, 'prompts.safetensors')

  @pytest.mark.parametrize(
    'file', ['prompts.safetensors', 'prompt_config.json']
  )
  def test_odd_files(self, folder, file):
    path = folder / file
    path.rename(folder / 'elsewhere')
    path.symlink_to('elsewhere')
    self._refused(folder, file, 'symbolic link')
    path.unlink()
    path.mkdir()
    self._refused(folder, file, 'not a regular file')
    path.rmdir()
    os.mkfifo(path)
    self._refused(folder, file, 'not a regular file')
    path.unlink()
    self._refused(folder)

  def test_nothing_of_the_kind(self, tmp_path, folder):
    self._refused(tmp_path / 'nowhere', 'no prompts at')
    (tmp_path / 'empty').mkdir()
    self._refused(tmp_path / 'empty', 'holds no prompts')
    self._refused(folder / 'prompts.safetensors', 'give the folder')
    with pytest.raises(InputError, match='names its tasks itself'):
      mpt_jax.load_prompts(folder, ['a', 'b'])


class TestPeft:
  @pytest.mark.parametrize('make', [_multitask, _soft])
  def test_round_trip_keeps_values_and_names(self, make, tmp_path):
    make().to_peft(str(tmp_path / 'adapter'))
    _assert_same(mpt_jax.load_prompts(tmp_path / 'adapter'), make())

  def test_one_composed_task(self, tmp_path):
    bundle = _multitask()
    bundle.to_peft(str(tmp_path / 'adapter'), task='sst2')
    got = mpt_jax.load_prompts(tmp_path / 'adapter')
    assert (got.method, got.task_names) == ('soft', ('sst2',))
    np.testing.assert_array_equal(got.compose('sst2'), bundle.compose('sst2'))

  def test_half_precision(self, tmp_path):
    import ml_dtypes

    folder = tmp_path / 'adapter'
    _soft().to_peft(str(folder))
    stored = _soft().arrays['prompt'].astype(ml_dtypes.bfloat16)
    (folder / 'adapter_model.safetensors').write_bytes(
      safetensors.numpy.save({'prompt_embeddings': stored})
    )
    got = mpt_jax.load_prompts(folder)
    np.testing.assert_array_equal(
      got.arrays['prompt'], stored.astype(np.float32)
    )

  def test_unused_decoder_part_is_dropped(self, tmp_path):
    folder = tmp_path / 'adapter'
    _soft().to_peft(str(folder))
    config = json.loads((folder / 'adapter_config.json').read_text())
    del config['num_transformer_submodules']  # PEFT's default, 2.
    (folder / 'adapter_config.json').write_text(json.dumps(config))
    prompt = _soft().arrays['prompt']
    (folder / 'adapter_model.safetensors').write_bytes(
      safetensors.numpy.save(
        {'prompt_embeddings': np.concatenate([prompt, -prompt])}
      )
    )
    np.testing.assert_array_equal(
      mpt_jax.load_prompts(folder).arrays['prompt'], prompt
    )

  @pytest.mark.parametrize(
    ('key', 'value'),
    [
      ('peft_type', 'LORA'),
      ('peft_type', None),
      ('task_type', None),
      ('task_type', 'CAUSAL_LM'),
      ('num_transformer_submodules', None),
      ('num_transformer_submodules', 2),
      ('num_virtual_tokens', None),
      ('num_virtual_tokens', P + 1),
      ('num_tasks', 3),
      ('num_ranks', '3'),
      ('token_dim', None),
    ],
  )
  def test_foreign_or_wrong_config(self, key, value, tmp_path):
    _multitask().to_peft(str(tmp_path / 'adapter'))
    path = tmp_path / 'adapter' / 'adapter_config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(InputError, match='adapter'):
      mpt_jax.load_prompts(tmp_path / 'adapter')

  def test_pickle_is_not_opened(self, tmp_path):
    _soft().to_peft(str(tmp_path / 'adapter'))
    (tmp_path / 'adapter' / 'adapter_model.safetensors').rename(
      tmp_path / 'adapter' / 'adapter_model.bin'
    )
    with pytest.raises(InputError, match='pickle'):
      mpt_jax.load_prompts(tmp_path / 'adapter')

  def test_names_must_fit_the_rows(self, tmp_path):
    _multitask().to_peft(str(tmp_path / 'adapter'))
    got = mpt_jax.load_prompts(tmp_path / 'adapter', task_names=['a', 'b'])
    assert got.task_names == ('a', 'b')
    with pytest.raises(InputError, match='has 2 tasks, but 3 names'):
      mpt_jax.load_prompts(tmp_path / 'adapter', task_names=['a', 'b', 'c'])

  def test_numbers_stand_for_unknown_names(self, tmp_path):
    _multitask().to_peft(str(tmp_path / 'adapter'))
    path = tmp_path / 'adapter' / 'adapter_model.safetensors'
    with safe_open(path, framework='np') as f:
      arrays = {k: f.get_tensor(k) for k in f.keys()}
    path.write_bytes(
      safetensors.numpy.save(arrays, {'mpt_jax.task_names': '[1, 2]'})
    )
    got = mpt_jax.load_prompts(tmp_path / 'adapter')
    assert got.task_names == ('task_0', 'task_1')


class TestNpy:
  def test_one_file_per_task(self, tmp_path):
    bundle = _multitask()
    written = bundle.to_npy(str(tmp_path / 'out'))
    assert written == [str(tmp_path / 'out' / f'{t}.npy') for t in TASKS]
    for path, task in zip(written, TASKS, strict=True):
      got = mpt_jax.load_prompts(path, task_names=[task])
      np.testing.assert_array_equal(got.compose(task), bundle.compose(task))
    assert sorted(os.listdir(tmp_path / 'out')) == ['mnli.npy', 'sst2.npy']

  def test_one_named_file(self, tmp_path):
    path = str(tmp_path / 'p.npy')
    assert _multitask().to_npy(path, task='sst2') == [path]
    np.testing.assert_array_equal(
      np.load(path, allow_pickle=False), _multitask().compose('sst2')
    )
    with pytest.raises(InputError, match='give a folder, or a task'):
      _multitask().to_npy(path)

  def test_file_without_suffix(self, tmp_path):
    prompt = np.asfortranarray(_soft().arrays['prompt'].astype('>f8'))
    with open(tmp_path / GOOGLE_FILE, 'wb') as f:
      np.save(f, prompt)
    bundle = mpt_jax.load_prompts(tmp_path / GOOGLE_FILE)
    assert (bundle.method, bundle.task_names) == ('soft', ('task_0',))
    np.testing.assert_array_equal(
      bundle.arrays['prompt'], prompt.astype(np.float32)
    )

  @pytest.mark.parametrize(
    'array',
    [
      np.ones(3),
      np.ones((2, 3, 4)),
      np.ones((2, 3), int),
      np.ones((2, 3), complex),
      np.ones((0, 3)),
      np.full((2, 3), np.nan),
      np.full((2, 4), 1e300),
      np.array([[{}]]),
    ],
    ids=lambda a: f'{a.dtype}{a.shape}',
  )
  def test_not_a_prompt(self, array, tmp_path):
    np.save(tmp_path / 'p.npy', array, allow_pickle=True)
    with pytest.raises(InputError, match=r'p\.npy'):
      mpt_jax.load_prompts(tmp_path / 'p.npy')

  @pytest.mark.parametrize('dtype', ['<f2', '<f8'])
  @pytest.mark.filterwarnings('error')
  def test_every_kind_of_nan_is_refused_in_silence(self, dtype, tmp_path):
    # A signalling NaN warns when it is cast.
    bits = {'<f2': 0x7D00, '<f8': 0x7FF4000000000000}[dtype]
    array = np.full((2, 3), bits, dtype.replace('f', 'u')).view(dtype)
    np.save(tmp_path / 'p.npy', array)
    with pytest.raises(InputError, match='NaN or infinity'):
      mpt_jax.load_prompts(tmp_path / 'p.npy')

  def test_declared_size_is_not_allocated(self, tmp_path):
    path = tmp_path / 'p.npy'
    np.save(path, np.ones((2, 3)))
    content = path.read_bytes()
    small, huge = b'(2, 3), }' + b' ' * 8, b'(999999999, 3), }'
    assert small in content
    path.write_bytes(content.replace(small, huge))
    with pytest.raises(InputError, match=r'p\.npy'):
      mpt_jax.load_prompts(path)
    for length in (0, 5, 20, len(content) - 1):
      path.write_bytes(content[:length])
      with pytest.raises(InputError, match=r'p\.npy'):
        mpt_jax.load_prompts(path)


class TestBackbone:
  def _backbone(self, emb_dim=D, fingerprint='sha256:aa'):
    config = types.SimpleNamespace(emb_dim=emb_dim)
    return types.SimpleNamespace(
      config=config, fingerprint=fingerprint, name='given'
    )

  def test_same_or_unknown(self):
    bundle_lib.check_backbone(_multitask(), self._backbone())
    # An imported prompt does not say what it was trained on.
    bundle_lib.check_backbone(_soft(), self._backbone())

  def test_another(self):
    with pytest.raises(InputError, match='tiny.*sha256:aa.*given.*sha256:cc'):
      bundle_lib.check_backbone(
        _multitask(), self._backbone(fingerprint='sha256:cc')
      )
    with pytest.raises(InputError, match='11 wide.*emb_dim 13'):
      bundle_lib.check_backbone(_soft(), self._backbone(emb_dim=13))
