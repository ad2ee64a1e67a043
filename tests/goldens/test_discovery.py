"""Goldens are found by what is in them; what is absent is said."""

import json
import shutil

import pytest

from tests import goldens

# Written by ourselves: of another test.
OWN = {'bundle_v1'}


@pytest.mark.skipif(goldens.ROOT != goldens.DEFAULT, reason='other goldens')
def test_all_that_lies_beside_the_tests_is_of_a_kind():
  read = {
    golden.file.relative_to(goldens.ROOT).parts[0]
    for kind in goldens.KINDS
    for golden in goldens.find(kind)
  }
  there = {path.name for path in goldens.ROOT.iterdir()}
  assert there - read == OWN
  for kind in goldens.KINDS:
    assert goldens.find(kind), kind


def test_something_is_read():
  assert any(goldens.find(kind) for kind in goldens.KINDS)


def test_names_and_places_do_not_matter(tmp_path, monkeypatch):
  kinds = 'transformers', 't5x', 'google', 'distill', 'peft_multitask'
  for kind in kinds:
    golden = goldens._find(goldens.DEFAULT, kind)[0]
    folder = golden.folder
    if kind.startswith('peft'):
      folder = folder.parent
    for place in ('a', 'deep/b'):
      shutil.copytree(folder, tmp_path / place / f'{kind}_other')
  monkeypatch.setattr(goldens, 'ROOT', tmp_path)
  for kind in kinds:
    found = goldens.find(kind)
    want = len(found) // 2
    names = [golden.name for golden in found]
    assert names[want:] == [f'deep/b{name[1:]}' for name in names[:want]]
    assert names[0].startswith(f'a/{kind}_other')
    rows = goldens.of(kind)
    assert [row.id for row in rows] == names
    assert all(golden.io for golden in found)


def test_what_is_absent_is_a_skip_that_says_so(tmp_path, monkeypatch):
  monkeypatch.setattr(goldens, 'ROOT', tmp_path)
  [row] = goldens.of('t5x', goldens.layouts)
  assert row.values == (None, None)
  [mark] = row.marks
  assert mark.name == 'skip'
  assert mark.kwargs['reason'] == f'no golden of the kind t5x in {tmp_path}'
  # Beside the tests nothing may be absent.
  monkeypatch.setattr(goldens, 'DEFAULT', tmp_path)
  with pytest.raises(AssertionError, match='no golden of the kind t5x'):
    goldens.of('t5x')


def test_the_backbone_of_a_golden(tmp_path, monkeypatch):
  sizes = {'model_type': 't5', 'd_model': 6, 'vocab_size': 11}
  for name, changes in {'x': {}, 'y': {}, 'z': {'d_model': 7}}.items():
    (tmp_path / name).mkdir()
    config = json.dumps(sizes | changes)
    (tmp_path / name / 'config.json').write_text(config)
    (tmp_path / name / 'io.npz').touch()
  (tmp_path / 'adapter').mkdir()
  file = tmp_path / 'adapter' / 'adapter_config.json'
  file.write_text('{}')
  monkeypatch.setattr(goldens, 'ROOT', tmp_path)
  golden = goldens.Golden(file)
  # One fits; else what is named decides.
  assert goldens.backbone_of(golden, 7, 11) == tmp_path / 'z'
  with pytest.raises(AssertionError, match='adapter is of which backbone'):
    goldens.backbone_of(golden, 6, 11)
  (tmp_path / 'README.md').write_text('made with `../y`.')
  assert goldens.backbone_of(golden, 6, 11) == tmp_path / 'y'
  file.write_text(json.dumps({'base_model_name_or_path': 'somewhere/x'}))
  assert goldens.backbone_of(golden, 6, 11) == tmp_path / 'x'
  with pytest.raises(pytest.skip.Exception, match='its backbone is not in'):
    goldens.backbone_of(golden, 6, 12)
