"""Tiny random models of T5's relatives, and what transformers makes of them.

  python -m tests.goldens.make_relatives FOLDER NAME

writes one of RELATIVES into FOLDER: what `save_pretrained` writes,
`config_hub_style.json`, the same as published models say it, and `io.npz`:
inputs and outputs, as those of `hf_t5_v1_1_tiny` beside the tests. It needs
torch and transformers.

  python -m tests.goldens.make_relatives

compares all of them with our network and prints a table for the docs.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np

SEED = 0
# Primes, so that swapped axes cannot fit; heads of their own width.
SIZES = {
  'vocab_size': 61,
  'd_model': 14,
  'd_kv': 5,
  'num_heads': 3,
  'd_ff': 11,
  'num_layers': 3,
  'num_decoder_layers': 2,
  'dropout_rate': 0.0,
  'pad_token_id': 0,
  'eos_token_id': 1,
  'decoder_start_token_id': 0,
}
V1_1 = {'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False}
PILE = {'eos_token_id': 2, 'pad_token_id': 1}
# What is published, the class in transformers, and what differs from SIZES.
RELATIVES = {
  't5': ('T5 v1.0 (small, base, large)', 'T5', {'d_kv': 7, 'num_heads': 2}),
  't5_3b': ('T5 v1.0 3b: H K = 4 D', 'T5', {'d_kv': 7, 'num_heads': 8}),
  't5_11b': ('T5 v1.0 11b: H K = 16 D', 'T5', {'d_kv': 7, 'num_heads': 32}),
  't5_1_1': ('T5 v1.1, LM-adapted, Flan-T5', 'T5', V1_1),
  'flan_ul2': (
    'UL2, Flan-UL2: silu',
    'T5',
    {**V1_1, 'feed_forward_proj': 'gated-silu', 'd_kv': 7, 'num_heads': 2},
  ),
  'mt5': ('mT5, mT0, Aya', 'MT5', V1_1),
  'byt5': ('ByT5: a short decoder', 'T5', {**V1_1, 'num_decoder_layers': 1}),
  'umt5': ('umT5: a position bias per layer', 'UMT5', V1_1),
  'pile_t5': ('Pile-T5: as umT5; other ids', 'UMT5', {**V1_1, **PILE}),
}


def make(name, folder, seed=SEED):
  """Writes one of RELATIVES into a folder; returns the model."""
  import torch
  import transformers

  _, kind, changes = RELATIVES[name]
  torch.manual_seed(seed)
  config = getattr(transformers, f'{kind}Config')(**{**SIZES, **changes})
  model = getattr(transformers, f'{kind}ForConditionalGeneration')(config)
  if not changes.get('tie_word_embeddings', True):
    # Transformers 5 ties what it makes, and not what it reads.
    head = torch.empty_like(model.lm_head.weight)
    model.lm_head.weight = torch.nn.Parameter(head)
  with torch.no_grad():
    for parameter, weight in model.named_parameters():
      # Every tensor matters, and answers vary.
      if 'layer_norm' in parameter:
        weight.normal_(1.0, 0.2)
      elif (
        weight.shape[-1] == config.num_heads
        or len(weight) == SIZES['vocab_size']
      ):
        weight.normal_()
      else:
        weight.normal_(std=1 / np.sqrt(weight.shape[-1]))
  model.eval().save_pretrained(folder)
  file = pathlib.Path(folder, 'config.json')
  stored = json.loads(file.read_text())
  tied = stored.pop('scale_decoder_outputs', False)
  stored['tie_word_embeddings'] = tied
  file.with_name('config_hub_style.json').write_text(json.dumps(stored))
  np.savez_compressed(pathlib.Path(folder, 'io.npz'), **outputs(model, seed))
  return model


def outputs(model, seed=SEED):
  """Draws examples and returns them with what a model makes of them."""
  rng = np.random.default_rng(seed)
  io = {}
  for case, rows, source, target in (('', 4, 10, 9), ('long_', 2, 140, 131)):
    one = run(model, *draw(model.config, rng, rows, source, target))
    io |= {f'{case}{name}': array for name, array in one.items()}
  drop = ('long_encoder_hidden_', 'long_decoder_hidden_')
  return {name: io[name] for name in io if not name.startswith(drop)}


def draw(config, rng, rows, source, target):
  """Ids of inputs and of targets; padded, but for a first row."""
  drawn = []
  for length in (source, target):
    ids = rng.integers(3, config.vocab_size, (rows, length))
    ends = rng.integers(2, length + 1, rows)
    ends[0] = length
    ids[np.arange(rows), ends - 1] = config.eos_token_id
    past = np.arange(length) >= ends[:, None]
    drawn.append(np.where(past, config.pad_token_id, ids))
  return drawn


def run(model, ids, targets):
  """What transformers makes of inputs and targets, ids [B, S] and [B, T]."""
  import torch

  config = model.config
  real = targets != config.pad_token_id
  start = np.full((len(ids), 1), config.decoder_start_token_id)
  io = {
    'input_ids': ids,
    'attention_mask': (ids != config.pad_token_id).astype(np.int64),
    'decoder_input_ids': np.concatenate([start, targets[:, :-1]], axis=1),
    'labels': np.where(real, targets, -100),
  }
  given = {name: torch.tensor(value) for name, value in io.items()}
  with torch.no_grad():
    out = model(**given, output_hidden_states=True)
    io |= {
      'logits': out.logits,
      'loss': out.loss,
      'encoder_last_hidden_state': out.encoder_last_hidden_state,
    }
    for stack in ('encoder', 'decoder'):
      states = getattr(out, f'{stack}_hidden_states')
      io |= {f'{stack}_hidden_{i}': state for i, state in enumerate(states)}
    if len(ids) > 2:
      io['generate_ids'] = model.generate(
        given['input_ids'],
        attention_mask=given['attention_mask'],
        max_new_tokens=15,
        do_sample=False,
        num_beams=1,
      )
  arrays = {name: np.asarray(value) for name, value in io.items()}
  return {
    name: array.astype(np.int32) if array.dtype == np.int64 else array
    for name, array in arrays.items()
  }


def compare(folder):
  """How far our numbers are from transformers'.

  Args:
    folder: what `make` has written.

  Returns:
    The largest difference of logits, the largest logit, the largest difference
    of the encoder's outputs, and whether all greedy answers are equal. Rows of
    140 and 131 tokens reach past the largest distance.
  """
  from mpt_jax.t5 import decoding
  from tests.goldens import networks

  data = networks.load(folder)
  io = data.io
  inputs, labels = io['long_input_ids'], io['long_labels']
  logits, states = networks.apply(
    data.config,
    data.params,
    inputs,
    io['long_decoder_input_ids'],
    np.maximum(labels, 0),
    return_hidden_states=True,
  )

  def off(got, want, where):
    return float(np.abs(np.asarray(got) - want)[where].max())

  want = io['generate_ids'][:, 1:]
  tokens, _ = networks.decode(
    data, io['input_ids'], want.shape[1], decoding.greedy, **data.ids
  )
  real = labels != -100
  return (
    off(logits, io['long_logits'], real),
    float(np.abs(io['long_logits'][real]).max()),
    off(
      states['encoder'][-1], io['long_encoder_last_hidden_state'], inputs > 0
    ),
    bool((np.asarray(tokens) == want).all()),
  )


def main():
  """Prints the table of relatives."""
  print('| model | logits | of up to | encoder | greedy answers |')
  print('|---|---|---|---|---|')
  for name, (title, *_) in RELATIVES.items():
    with tempfile.TemporaryDirectory() as parent:
      folder = pathlib.Path(parent, name)
      make(name, folder)
      logits, largest, encoded, same = compare(folder)
    print(
      f'| {title} | {logits:.1e} | {largest:.0f} | {encoded:.1e} |'
      f' {"equal" if same else "DIFFER"} |',
      flush=True,
    )


if __name__ == '__main__':
  if sys.argv[1:]:
    make(sys.argv[2], sys.argv[1])
  else:
    main()
