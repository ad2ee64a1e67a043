"""Fresh folders of the transformers that is installed, there and back."""

import json

import numpy as np
import pytest

from tests.goldens import make_vocabulary
from tests.goldens.test_vocabulary import check_ids, check_model, save_again

pytestmark = [pytest.mark.torch, pytest.mark.slow]

pytest.importorskip('torch', reason='torch is not installed')
transformers = pytest.importorskip(
  'transformers', reason='transformers is not installed'
)
pytest.importorskip('tokenizers', reason='tokenizers is not installed')

FURTHER = {
  # Starts with a sentinel; a padding that is a word of its own at the end.
  'start_is_a_sentinel': {'config': {'decoder_start_token_id': 60}},
  'flan_madlad_added': {
    'spm': make_vocabulary.MADLAD,
    'config': {**make_vocabulary.V1_1, **make_vocabulary.MADLAD_IDS},
    'tokenizer': {'pad_token': '<s>', 'extra_ids': 3},
    'added': ['<e1>', '<s1>'],
  },
  'pile_padded': {
    **make_vocabulary.PILE,
    'config': {**make_vocabulary.PILE['config'], 'pad_token_id': 1},
  },
  'byt5_few': {'bytes': True, 'tokenizer': {'extra_ids': 5}},
  'few': {'tokenizer': {'extra_ids': 2}, 'added': ['<e2>']},
  'few_spiece': {
    'tokenizer': {'extra_ids': 2},
    'added': ['<e2>', '<s1>'],
    'layout': 'spiece',
    'config': {**make_vocabulary.V1_1, 'decoder_start_token_id': 9},
  },
}
CASES = make_vocabulary.CASES | FURTHER


@pytest.mark.parametrize('name', CASES)
def test_there_and_back(tmp_path, monkeypatch, name):
  monkeypatch.setattr(make_vocabulary, 'CASES', CASES)
  monkeypatch.setattr(make_vocabulary, 'SEED', 7)
  folder = tmp_path / name
  make_vocabulary.make(name, folder)
  rows = json.loads((folder / 'expected.json').read_text())
  check_ids(folder, rows)
  check_model(folder, rows)
  save_again(folder, tmp_path / 'saved')
  kinds = {'bytes': 'ByT5Tokenizer', 'llama': 'LlamaTokenizer'}
  found = [kind for key, kind in kinds.items() if CASES[name].get(key)]
  [kind] = found or ['T5Tokenizer']
  tokenizer = getattr(transformers, kind).from_pretrained(tmp_path / 'saved')
  model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / 'saved')
  again = make_vocabulary.make_expected(tokenizer, model.eval())
  for key in ('ids', 'answer_ids', 'answer'):
    assert [r[key] for r in again] == [r[key] for r in rows]
  np.testing.assert_allclose(
    [r['score'] for r in again], [r['score'] for r in rows], rtol=2e-5
  )
