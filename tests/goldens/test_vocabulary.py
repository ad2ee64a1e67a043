"""Texts, ids, answers and scores of transformers, without transformers.

The folders are made by `make_vocabulary.py`; all that is known of them is
what lies in them.
"""

import json

import numpy as np
import pytest

from mpt_jax.checkpoints import huggingface
from mpt_jax.checkpoints.backbone import load_backbone
from mpt_jax.checkpoints.vocabulary import Vocabulary
from mpt_jax.pretrained import PromptedT5
from tests import goldens

FOLDERS = goldens.of('vocabulary')


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


def _rows(golden):
  if (golden.folder / 'tokenizer.json').exists():
    pytest.importorskip('tokenizers', reason='tokenizers is not installed')
  return json.loads(golden.file.read_text())


@pytest.mark.parametrize('golden', FOLDERS)
def test_ids(golden):
  check_ids(golden.folder, _rows(golden))


@pytest.mark.slow
@pytest.mark.parametrize('golden', FOLDERS)
def test_answers_and_scores(golden):
  check_model(golden.folder, _rows(golden))


@pytest.mark.parametrize('golden', FOLDERS)
def test_a_saved_backbone_is_the_same(golden, tmp_path):
  rows = _rows(golden)
  loaded = save_again(golden.folder, tmp_path / 'saved')
  saved = load_backbone(str(tmp_path / 'saved'))
  assert saved.fingerprint == loaded.fingerprint
  assert saved.special_ids == loaded.special_ids
  assert (
    saved.with_vocabulary().vocabulary.digest
    == loaded.with_vocabulary().vocabulary.digest
  )
  check_ids(tmp_path / 'saved', rows)
