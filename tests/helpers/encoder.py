"""The vocabularies of tiny encoders, and words that can fill their masks."""

import json
import pathlib

FOLDER = pathlib.Path(__file__).parents[1] / 'testdata' / 'roberta_tiny'
# One token each: ' bad', ' good', ' no'.
WORDS = tuple(json.loads((FOLDER / 'tokens.json').read_text())['label_words'])
# What stands for a blank in a byte-level vocabulary.
_BLANK = '\u0120'


def write(folder, words):
  """Writes a vocabulary of characters, in which given words are one token.

  Args:
    folder: where to.
    words: with a blank in front; ASCII.
  """
  letters = [chr(i) for i in range(33, 127)]
  pieces = ['<s>', '<pad>', '</s>', '<unk>', _BLANK, *letters]
  merges = {}
  for word in words:
    known = _BLANK
    for letter in word.removeprefix(' '):
      merges[f'{known} {letter}'] = known + letter
      known += letter
  pieces += [*dict.fromkeys(merges.values()), '<mask>']
  vocab = {piece: i for i, piece in enumerate(pieces)}
  config = {
    **{'model_type': 'roberta', 'vocab_size': len(vocab)},
    **{'bos_token_id': 0, 'pad_token_id': 1, 'eos_token_id': 2},
  }
  (folder / 'vocab.json').write_text(json.dumps(vocab))
  (folder / 'merges.txt').write_text('#version: 0.2\n' + '\n'.join(merges))
  (folder / 'config.json').write_text(json.dumps(config))
