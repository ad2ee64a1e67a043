"""The vocabulary of a tiny encoder, and words that can fill its mask."""

import json
import pathlib

FOLDER = pathlib.Path(__file__).parents[1] / 'testdata' / 'roberta_tiny'
# One token each: ' bad', ' good', ' no'.
WORDS = tuple(json.loads((FOLDER / 'tokens.json').read_text())['label_words'])
