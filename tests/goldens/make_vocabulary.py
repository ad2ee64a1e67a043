"""Folders of transformers, and what transformers makes of them.

  python tests/goldens/make_vocabulary.py FOLDER

writes one folder for each of CASES: a tiny random T5 with a vocabulary, and
`expected.json`: the ids, greedy answers and scores of some texts. It needs
torch, transformers and sentencepiece; the tests that read the folders do not.
"""

import io
import json
import pathlib
import shutil
import sys
import tempfile

SEED = 0
WORDS = (
  'the film was great and the food awful but a hat is red or blue in town'
  ' where ann bought kites on monday morning yes no maybe not true false'
).split()
TEXTS = (
  'the film was great',
  'a red hat,  and the blue one.',
  ' ann  bought kites',
  'the <extra_id_0> was <extra_id_1> awful',
  'food<extra_id_2>, kites <extra_id_0>.',
  'maybe <e1> not<e2>true <s1> <extra_id_7>',
  'yes',
)
TARGETS = ('yes', 'not true', 'red hat', '<extra_id_0> film', 'no', 'a', 'blue')
# What transformers' tokenizer class cannot write (it takes id 2 for unknown,
# whatever the file says) is left out of the texts.

SIZES = {
  'd_model': 8,
  'd_kv': 4,
  'd_ff': 12,
  'num_heads': 2,
  'num_layers': 1,
  'num_decoder_layers': 1,
  'relative_attention_num_buckets': 8,
}
V1_1 = {'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False}
ORDINARY = {'pad_id': 0, 'eos_id': 1, 'unk_id': 2, 'bos_id': -1}
MADLAD = {'unk_id': 0, 'bos_id': 1, 'eos_id': 2, 'pad_id': -1}
MADLAD_IDS = {'pad_token_id': 1, 'eos_token_id': 2, 'decoder_start_token_id': 0}

# Pile-T5's: LLaMA's pieces (and bytes), padded with the unknown.
LLAMA = {
  **{'unk_id': 0, 'bos_id': 1, 'eos_id': 2, 'pad_id': -1},
  **{'model_type': 'bpe', 'byte_fallback': True, 'vocab_size': 340},
  'remove_extra_whitespaces': False,
}
PILE = {
  'llama': True,
  'config': {**V1_1, 'model_type': 'umt5', 'num_layers': 2, 'eos_token_id': 2},
  'added': [f'<extra_id_{i}>' for i in reversed(range(8))],
}

# Of each: the SentencePiece file ('spm'), the model's configuration ('config'),
# arguments of the tokenizer ('tokenizer'), tokens that are added to it
# ('added'; special if the name says so), whether the tokenizer is LLaMA's
# ('llama'), and the layout: 'json' as
# transformers 5 saves it, 'spiece' as version 4 did.
CASES = {
  't5': {},
  't5_spiece': {'layout': 'spiece'},
  'flan': {'config': V1_1},
  'mt5_spiece': {
    'config': {**V1_1, 'model_type': 'mt5'},
    'sentinels_in_file': 100,
    'tokenizer': {'extra_ids': 0},
    'layout': 'spiece',
  },
  'byt5': {'config': {**V1_1, 'num_layers': 2}, 'bytes': True},
  'byt5_added': {'config': V1_1, 'bytes': True, 'added': ['<e1>', '<s1>']},
  'pile': PILE,
  'none': {'tokenizer': {'extra_ids': 0}},
  'none_spiece': {'tokenizer': {'extra_ids': 0}, 'layout': 'spiece'},
  'many': {'tokenizer': {'extra_ids': 300}},
  'many_spiece': {'tokenizer': {'extra_ids': 300}, 'layout': 'spiece'},
  'added': {'added': ['<e1>', '<e2>', '<s1>'], 'config': V1_1},
  'added_spiece': {'added': ['<e1>', '<e2>', '<s1>'], 'layout': 'spiece'},
  'start': {'config': {'decoder_start_token_id': 5}},
  'start_is_pad': {
    'spm': MADLAD,
    'config': {**MADLAD_IDS, 'decoder_start_token_id': 1},
    'tokenizer': {'pad_token': '<s>'},
  },
  'end': {
    'spm': {'pad_id': 0, 'bos_id': 1, 'unk_id': 2, 'eos_id': 3},
    'config': {'eos_token_id': 3},
    'layout': 'spiece',
  },
  'madlad': {
    'spm': MADLAD,
    'config': {**V1_1, **MADLAD_IDS},
    'tokenizer': {'pad_token': '<s>', 'extra_ids': 0},
  },
  'madlad_spiece': {
    'spm': MADLAD,
    'config': MADLAD_IDS,
    'tokenizer': {'pad_token': '<s>', 'extra_ids': 0},
    'layout': 'spiece',
  },
}


def write_pieces(path, ids, in_file=0):
  """Trains a SentencePiece file; `in_file` sentinels at its end, as mT5."""
  import sentencepiece
  from sentencepiece import sentencepiece_model_pb2 as proto

  corpus = [' '.join(WORDS[i:] + WORDS[:i]) + ' , . , .' for i in range(30)]
  written = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(corpus * 3),
    model_writer=written,
    normalization_rule_name='identity',
    hard_vocab_limit=False,
    required_chars='<>_0123456789x',
    num_threads=1,
    minloglevel=2,
    **{'vocab_size': 80, **ids},
  )
  model = proto.ModelProto.FromString(written.getvalue())
  for i in reversed(range(in_file)):
    model.pieces.add(
      piece=f'\u2581<extra_id_{i}>',
      type=proto.ModelProto.SentencePiece.USER_DEFINED,
    )
  path.write_bytes(model.SerializeToString())


def make_tokenizer(case, folder):
  """Writes a tokenizer's files into a folder and returns it."""
  import transformers

  arguments = case.get('tokenizer', {})
  if case.get('bytes'):
    tokenizer = transformers.ByT5Tokenizer(**arguments)
    _add(tokenizer, case)
    tokenizer.save_pretrained(folder)
    return tokenizer
  if case.get('llama'):
    write_pieces(folder / 'tokenizer.model', LLAMA)
    tokenizer = transformers.LlamaTokenizer.from_pretrained(
      folder, add_bos_token=False, add_eos_token=True
    )
    (folder / 'tokenizer.model').unlink()
    _add(tokenizer, case)
    tokenizer.save_pretrained(folder)
    return tokenizer
  write_pieces(
    folder / 'spiece.model',
    case.get('spm', ORDINARY),
    case.get('sentinels_in_file', 0),
  )
  if case.get('layout') == 'spiece':
    _write_old_files(case, folder)
    return transformers.T5Tokenizer.from_pretrained(folder)
  tokenizer = transformers.T5Tokenizer.from_pretrained(folder, **arguments)
  (folder / 'spiece.model').unlink()
  _add(tokenizer, case)
  tokenizer.save_pretrained(folder)
  return tokenizer


def _add(tokenizer, case):
  added = case.get('added', [])
  plain = [t for t in added if not t.startswith(('<s', '<extra'))]
  if plain:
    tokenizer.add_tokens(plain)
  for token in [t for t in added if t not in plain]:
    tokenizer.add_special_tokens(
      {'additional_special_tokens': [token]},
      replace_extra_special_tokens=False,
    )


def _write_old_files(case, folder):
  """What version 4 wrote beside `spiece.model`."""
  import sentencepiece

  pieces = sentencepiece.SentencePieceProcessor(
    model_file=str(folder / 'spiece.model')
  )
  arguments = {'extra_ids': 100, **case.get('tokenizer', {})}
  count = arguments['extra_ids']
  sentinels = [f'<extra_id_{i}>' for i in range(count)]
  first = pieces.get_piece_size() + count
  added = {t: first + i for i, t in enumerate(case.get('added', []))}
  config = {
    'additional_special_tokens': sentinels
    + [t for t in added if t.startswith('<s')],
    'eos_token': '</s>',
    'pad_token': '<pad>',
    'tokenizer_class': 'T5Tokenizer',
    'unk_token': '<unk>',
    **arguments,
  }
  if added:
    config['added_tokens_decoder'] = {
      str(number): {
        'content': token,
        'lstrip': False,
        'normalized': False,
        'rstrip': False,
        'single_word': False,
        'special': token.startswith('<s'),
      }
      for token, number in added.items()
    }
    (folder / 'added_tokens.json').write_text(json.dumps(added))
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))


def make_model(case, folder, rows):
  """Writes a random model into a folder and returns it."""
  import torch
  import transformers

  torch.manual_seed(SEED)
  config = dict(case.get('config', {}))
  kind = {
    't5': (transformers.T5Config, transformers.T5ForConditionalGeneration),
    'mt5': (transformers.MT5Config, transformers.MT5ForConditionalGeneration),
    'umt5': (
      transformers.UMT5Config,
      transformers.UMT5ForConditionalGeneration,
    ),
  }[config.pop('model_type', 't5')]
  ids = {'pad_token_id': 0, 'eos_token_id': 1, 'decoder_start_token_id': 0}
  config = kind[0](vocab_size=rows, **SIZES | ids | config)
  model = kind[1](config).eval()
  with torch.no_grad():
    for name, weight in model.named_parameters():
      if 'layer_norm' not in name:
        # Wide enough that answers differ from text to text; and few of them
        # are sentinels.
        table = name in ('shared.weight', 'lm_head.weight')
        weight.normal_(std=1.5 if table else 0.8)
        if table:
          weight[rows // 2 :] *= 0.5
  model.save_pretrained(folder)
  return model


def make_expected(tokenizer, model):
  """What transformers makes of the texts."""
  import torch

  special = model.config
  rows = []
  for text, target in zip(TEXTS, TARGETS, strict=True):
    ids = tokenizer(text).input_ids
    labels = tokenizer(text_target=target).input_ids
    inputs = torch.tensor([ids])
    with torch.no_grad():
      out = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=6,
        do_sample=False,
        num_beams=1,
      )[0].tolist()
      logits = model(input_ids=inputs, labels=torch.tensor([labels])).logits[0]
    scores = torch.log_softmax(logits.double(), -1)
    answer = out[1:]
    if special.eos_token_id in answer:
      answer = answer[: answer.index(special.eos_token_id)]
    rows.append(
      {
        'text': text,
        'ids': ids,
        'target': target,
        'score': sum(scores[t, i].item() for t, i in enumerate(labels)),
        'answer_ids': answer,
        'answer': tokenizer.decode(
          [i for i in answer if i != special.pad_token_id],
          skip_special_tokens=False,
        ),
      }
    )
  return rows


def make(name, folder):
  """Writes one case into a folder, which is made."""
  case = CASES[name]
  folder.mkdir(parents=True)
  tokenizer = make_tokenizer(case, folder)
  # As published models, some rows more than there are ids.
  model = make_model(case, folder, len(tokenizer) + 4)
  rows = make_expected(tokenizer, model)
  for file in folder.glob('*.json'):
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content, separators=(',', ':'), sort_keys=True))
  (folder / 'expected.json').write_text(json.dumps(rows, indent=1))


def main(root):
  """Writes all cases."""
  for name in CASES:
    with tempfile.TemporaryDirectory() as temporary:
      make(name, pathlib.Path(temporary) / name)
      shutil.rmtree(root / name, ignore_errors=True)
      shutil.copytree(pathlib.Path(temporary) / name, root / name)


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
