"""The demo's SentencePiece vocabulary: one piece for each word of the world.

    python -m tasks.offline.vocabulary OUTPUT_FILE

The model is written down rather than trained: the words of the world are
known. Single characters stand in for all other text, so nothing in ASCII is
unknown. As in T5's own vocabulary: padding 0, end of text 1, unknown 2; the
100 sentinels are not in the file (SeqIO appends them, the first one last).
"""

import importlib
import io
import os
import string
import sys
import tempfile
from typing import Any

from tasks.offline import corpus

SPACE = '\u2581'


def _charsmap() -> bytes:
  """Returns a compiled rule (a no-break space is a space).

  Without any rule tf_text says so on stderr for each pipeline that it builds.
  Only the trainer compiles rules, so a throw-away model is trained.
  """
  import sentencepiece

  out = io.BytesIO()
  with tempfile.TemporaryDirectory() as folder:
    rules = os.path.join(folder, 'rules.tsv')
    with open(rules, 'w') as file:
      file.write('A0\t20\n')
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(['a b c d e'] * 20),
      model_writer=out,
      vocab_size=12,
      hard_vocab_limit=False,
      normalization_rule_tsv=rules,
      minloglevel=2,
    )
  model = _proto().ModelProto.FromString(out.getvalue())
  return model.normalizer_spec.precompiled_charsmap


def _proto() -> Any:
  return importlib.import_module('sentencepiece.sentencepiece_model_pb2')


def model_bytes() -> bytes:
  """Returns the serialized SentencePiece model, the same bytes every time."""
  proto: Any = importlib.import_module('sentencepiece.sentencepiece_model_pb2')

  model = proto.ModelProto()
  kind = proto.ModelProto.SentencePiece
  control = ('<pad>', kind.CONTROL), ('</s>', kind.CONTROL)
  for piece, type_ in (*control, ('<unk>', kind.UNKNOWN)):
    model.pieces.add(piece=piece, score=0.0, type=type_)
  # One piece beats any split into characters, whose scores add up.
  for word in corpus.words():
    piece = word if word == ',' else SPACE + word
    model.pieces.add(piece=piece, score=-1.0)
  known = {piece.piece for piece in model.pieces}
  letters = string.ascii_letters + string.digits + string.punctuation
  for letter in SPACE + letters:
    if letter not in known:
      model.pieces.add(piece=letter, score=-10.0)
  trainer = model.trainer_spec
  trainer.model_type = proto.TrainerSpec.UNIGRAM
  trainer.vocab_size = len(model.pieces)
  trainer.pad_id, trainer.eos_id, trainer.unk_id = 0, 1, 2
  trainer.bos_id = -1
  trainer.pad_piece = '<pad>'
  trainer.eos_piece = '</s>'
  trainer.unk_piece = '<unk>'
  normalizer = model.normalizer_spec
  normalizer.name = 'user_defined'
  normalizer.precompiled_charsmap = _charsmap()
  normalizer.add_dummy_prefix = True
  normalizer.remove_extra_whitespaces = True
  normalizer.escape_whitespaces = True
  return model.SerializeToString(deterministic=True)


def write(path: str) -> None:
  """Writes the model to a file, whole or not at all."""
  os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  temporary = f'{path}.{os.getpid()}.tmp'
  with open(temporary, 'wb') as file:
    file.write(model_bytes())
  os.replace(temporary, path)


if __name__ == '__main__':
  write(sys.argv[1])
