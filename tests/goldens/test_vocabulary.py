"""Texts, ids, answers and scores of transformers, without transformers.

The folders are made by `make_vocabulary.py`; all that is known of them is
what lies in them.
"""

import json
import os
import pathlib

import numpy as np
import pytest

from mpt_jax.checkpoints import huggingface
from mpt_jax.checkpoints.backbone import load_backbone
from mpt_jax.checkpoints.vocabulary import Vocabulary
from mpt_jax.pretrained import PromptedT5

_TESTDATA = pathlib.Path(__file__).parent.parent / 'testdata'
ROOT = pathlib.Path(os.environ.get('MPT_JAX_GOLDENS', _TESTDATA)) / 'vocabulary'
FOLDERS = sorted(p.parent.name for p in ROOT.glob('*/expected.json'))


def check_ids(folder, rows):
  """Texts become transformers' ids, and ids its texts."""
  vocabulary = Vocabulary(str(folder))
  for row in rows:
    ids = [*vocabulary.encode(row['text']), vocabulary.special.end]
    assert ids == row['ids'], row['text']
    # SentencePiece has texts of its own for unknown and sentinels.
    if vocabulary.sentencepiece is None or '<' not in row['answer']:
      assert vocabulary.decode(row['answer_ids']) == row['answer']


def check_model(folder, rows):
  """The same answers and scores from the same texts."""
  model = PromptedT5.from_pretrained(str(folder))
  special = model.backbone.special_ids
  texts = [row['text'] for row in rows]
  length = max(1, *(len(row['answer_ids']) for row in rows))
  tokens = model._predict(
    model.params,
    model._batch(model._encode(texts), [0] * len(rows)),
    max_decode_length=length,
    num_beams=1,
    temperature=0.0,
    topk=0,
    topp=0.0,
  )
  for row, found in zip(rows, np.asarray(tokens), strict=True):
    ids = special.swap(found)
    if special.end in ids:
      ids = ids[: ids.index(special.end)]
    assert ids == row['answer_ids'], row['text']
  scores = model.score(texts, [row['target'] for row in rows])
  np.testing.assert_allclose(scores, [r['score'] for r in rows], rtol=2e-5)


def save_again(folder, target):
  """Writes a folder's backbone anew, as we do; returns what was read."""
  loaded = load_backbone(str(folder))
  huggingface.save_huggingface(
    str(target),
    loaded.config,
    loaded.params,
    vocabulary_file=loaded.vocabulary_file,
    special_ids=loaded.special_ids,
  )
  return loaded


def _rows(name):
  if (ROOT / name / 'tokenizer.json').exists():
    pytest.importorskip('tokenizers', reason='tokenizers is not installed')
  return json.loads((ROOT / name / 'expected.json').read_text())


def test_there_are_folders():
  assert FOLDERS


@pytest.mark.parametrize('name', FOLDERS)
def test_ids(name):
  check_ids(ROOT / name, _rows(name))


@pytest.mark.slow
@pytest.mark.parametrize('name', FOLDERS)
def test_answers_and_scores(name):
  check_model(ROOT / name, _rows(name))


@pytest.mark.parametrize('name', FOLDERS)
def test_a_saved_backbone_is_the_same(name, tmp_path):
  rows = _rows(name)
  loaded = save_again(ROOT / name, tmp_path / 'saved')
  saved = load_backbone(str(tmp_path / 'saved'))
  assert saved.fingerprint == loaded.fingerprint
  assert saved.special_ids == loaded.special_ids
  assert (
    saved.with_vocabulary().vocabulary.digest
    == loaded.with_vocabulary().vocabulary.digest
  )
  check_ids(tmp_path / 'saved', rows)
