"""Texts and ids of an encoder's tokenizer, as others gave them.

A folder has it as `tokenizer.json`, as `vocab.json` and `merges.txt`, or both;
`tokens.json` says what comes out.
"""

import json
import shutil

import pytest

from mpt_jax.checkpoints import texts, vocabulary
from mpt_jax.checkpoints.vocabulary import Vocabulary
from tests import goldens

pytest.importorskip('tokenizers', reason='tokenizers is not installed')

WAYS = {
  'json': ({vocabulary.TOKENIZER}, {vocabulary.VOCAB, vocabulary.MERGES}),
  'merges': ({vocabulary.VOCAB, vocabulary.MERGES}, {vocabulary.TOKENIZER}),
}


def _ways(golden):
  names = {file.name for file in golden.folder.iterdir()}
  return [way for way, (needs, _) in WAYS.items() if needs <= names]


@pytest.fixture
def read(tmp_path):
  """Reads a golden's vocabulary, stored in one way alone."""

  def call(golden, way):
    _, without = WAYS[way]
    folder = tmp_path / way
    folder.mkdir()
    for file in golden.folder.glob('*'):
      if file.suffix in ('.json', '.txt') and file.name not in without:
        shutil.copy(file, folder)
    return Vocabulary(str(folder))

  return call


def _names(golden):
  """What the tokenizer's special tokens are called, by their use."""
  usual = {
    'bos_token': '<s>',
    'eos_token': '</s>',
    'pad_token': '<pad>',
    'mask_token': '<mask>',
  }
  file = golden.folder / vocabulary.TOKENIZER_CONFIG
  said = json.loads(file.read_text()) if file.exists() else {}
  names = {use: said.get(use, token) for use, token in usual.items()}
  return {
    use: token if isinstance(token, str) else token['content']
    for use, token in names.items()
  }


def _special(found):
  special = found.special
  return {special.begin, special.pad, special.end, special.mask}


def _ours(golden, case):
  """A case as a template writes it; None if a user must have typed it."""
  names = _names(golden)
  text = case['text'].replace(names['mask_token'], texts.MASK)
  if 'pair' in case:
    text += texts.SEPARATOR + case['pair']
  typed = any(name in text for name in names.values())
  return None if typed else text


ROWS = goldens.of('encoder_vocabulary', _ways)


@pytest.mark.parametrize(('golden', 'way'), ROWS)
def test_ids(golden, way, read):
  found, said = read(golden, way), golden.config
  assert found.special.mask == said['mask_id']
  checked = 0
  for case in said['cases']:
    text = _ours(golden, case)
    if text is None:
      continue
    checked += 1
    ids = found.special.swap(found.input_ids(text))
    assert [*ids, found.special.end] == case['ids_with_special'], text
    if 'ids' in case:
      assert found.encode(text) == case['ids'], text
  assert checked


@pytest.mark.parametrize(('golden', 'way'), ROWS)
def test_label_words(golden, way, read):
  found, said = read(golden, way), golden.config
  ids = [found.encode(word) for word in said['label_words']]
  assert ids == [[i] for i in said['label_ids']]
  assert [found.decode(i) for i in ids] == said['label_words']


@pytest.mark.parametrize(('golden', 'way'), ROWS)
def test_decoded(golden, way, read):
  found = read(golden, way)
  for case in golden.config['cases']:
    if 'decoded' in case:
      ids = [i for i in case['ids'] if i not in _special(found)]
      assert found.decode(ids) == case['decoded'], case['text']


@pytest.mark.parametrize(('golden', 'way'), ROWS)
def test_what_is_typed_is_text(golden, way, read):
  found = read(golden, way)
  for name in _names(golden).values():
    for text in (name, f'a {name} b', f'{name}{name}'):
      ids = found.encode(text)
      assert not _special(found).intersection(ids), text
      assert found.decode(ids) == text
  for case in golden.config['cases']:
    assert not _special(found).intersection(found.encode(case['text']))


@pytest.mark.parametrize('golden', goldens.of('encoder_vocabulary'))
def test_both_ways_are_one_vocabulary(golden, read, tmp_path):
  if len(_ways(golden)) < 2:
    pytest.skip(f'{golden.name} is stored in one way alone')
  first, second = (read(golden, way) for way in WAYS)
  assert (first.digest, first.size) == (second.digest, second.size)
  # What is written elsewhere is read alike.
  for number, found in enumerate((first, second)):
    folder = tmp_path / f'again{number}'
    folder.mkdir()
    config = golden.folder / vocabulary.CONFIG
    (folder / vocabulary.CONFIG).write_bytes(config.read_bytes())
    for name, content in vocabulary.files_of(found.path).items():
      (folder / name).write_bytes(content)
    assert Vocabulary(str(folder)).digest == found.digest
