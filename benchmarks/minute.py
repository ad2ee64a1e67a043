r"""The first minute: from a command to step 100 of a new target run.

  python -m benchmarks.minute --model=small
  TORCH/bin/python -m benchmarks.minute --system=peft --model=small

Prompt tuning of 100 vectors on 32 examples of a JSONL file, batch 16, from a
folder of transformers with random weights. mpt_jax runs as its command does, in
length buckets, with an empty cache of compiled steps and then with what the
first run has left; PEFT as a script of its user's, batches padded to their
longest. Prints one line of JSON: seconds, and where they went by the logs.
"""

import argparse
import json
import os
import random
import sys
import tempfile

from benchmarks import measure

_WORDS = 'the film was great and a story of one man who is not what he was'
_VOCABULARY = os.path.join('tasks', 'offline', 'demo_backbone', 'spiece.model')
_TASK = """from mpt_jax import data

data.register_task(
  'minute',
  {rows!r},
  inputs='minute text: {{text}}',
  labels=('negative', 'positive'),
  splits=('train',),
)
"""
# What a child says when a part ends and the next begins.
_OURS = (
  ('imports, gin and backbone', r'reading the tasks'),
  ('TensorFlow and data', r'parameters? train|trainable|prompts/'),
  ('prompts and weights in place', r'compiling'),
  ('compiling, and the steps', r'trained to step'),
)
_PEFT = (
  ('imports', r'imported'),
  ('backbone', r'loaded'),
  ('the steps', r'trained to step'),
)


def write_rows(folder: str, count: int, longest: int) -> str:
  """Writes a JSONL file of texts of 20 to `longest` words; returns its path."""
  rng = random.Random(0)
  path = os.path.join(folder, 'train.jsonl')
  with open(path, 'w', encoding='utf-8') as f:
    for row in range(count):
      words = rng.choices(_WORDS.split(), k=rng.randint(20, longest))
      print(json.dumps({'text': ' '.join(words), 'label': row % 2}), file=f)
  return path


def ours(folder: str, flags: argparse.Namespace) -> dict[str, object]:
  """Two runs of the command, without and with a cache."""
  from benchmarks import backbone
  from mpt_jax import checkpoints

  config = backbone.make_config(flags.model)
  path = os.path.join(folder, 'backbone')
  checkpoints.save_huggingface(
    path, config, backbone.draw(config, 0), vocabulary_file=_VOCABULARY
  )
  rows = write_rows(folder, flags.shots, flags.longest)
  with open(os.path.join(folder, 'minute_task.py'), 'w') as f:
    f.write(_TASK.format(rows=rows))
  results: dict[str, object] = {}
  for name in ('cold', 'warm'):
    command = [
      *(sys.executable, '-m', 'mpt_jax.train'),
      '--gin_file=gin_configs/runs/teacher.gin',
      f"--gin.INITIAL_CHECKPOINT_PATH='{path}'",
      "--gin.MIXTURE_OR_TASK_MODULE='minute_task'",
      "--gin.MIXTURE_OR_TASK_NAME='minute'",
      f"--gin.MODEL_DIR='{os.path.join(folder, name)}'",
      "--gin.TASK_FEATURE_LENGTHS={'inputs': 228, 'targets': 8}",
      f'--gin.BATCH_SIZE={flags.batch}',
      f'--gin.TRAIN_STEPS={flags.steps}',
      "--gin.PADDING='bucket'",
      '--gin.train.train.evaluation=None',
      *flags.more,
    ]
    environment = {
      'XDG_CACHE_HOME': os.path.join(folder, 'cache'),
      'PYTHONPATH': os.pathsep.join([os.getcwd(), folder]),
    }
    results[f'{name}_s'], results[name] = measure.timed(
      command, _OURS, environment
    )
  return results


def peft(folder: str, flags: argparse.Namespace) -> dict[str, object]:
  """One run of a script; there is nothing to be cached."""
  from transformers import T5ForConditionalGeneration

  config = measure.hf_config(flags.model, dropout_rate=0.0)
  T5ForConditionalGeneration(config).save_pretrained(folder)
  write_rows(folder, flags.shots, flags.longest)
  command = [*(sys.executable, '-m', 'benchmarks.minute'), *sys.argv[1:]]
  seconds, parts = measure.timed([*command, f'--child={folder}'], _PEFT, {})
  return {'cold_s': seconds, 'cold': parts}


def peft_run(flags: argparse.Namespace) -> None:
  """What a user of PEFT would write."""
  import peft
  import sentencepiece
  import torch
  from transformers import T5ForConditionalGeneration

  print('imported', file=sys.stderr)
  torch.manual_seed(0)
  base = T5ForConditionalGeneration.from_pretrained(flags.child)
  model = peft.get_peft_model(
    base,
    peft.PromptTuningConfig(
      task_type='SEQ_2_SEQ_LM',
      num_virtual_tokens=100,
      num_transformer_submodules=1,
    ),
  )
  vocabulary = sentencepiece.SentencePieceProcessor(_VOCABULARY)
  with open(os.path.join(flags.child, 'train.jsonl'), encoding='utf-8') as f:
    rows = [json.loads(line) for line in f]
  examples = [
    (
      [*vocabulary.encode('minute text: ' + row['text'])[:127], 1],
      [*vocabulary.encode(('negative', 'positive')[row['label']]), 1],
    )
    for row in rows
  ]
  print('loaded', file=sys.stderr)
  device = measure.torch_device()
  model.to(device).train()
  trained = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(trained, lr=0.3)

  def padded(sequences: list[list[int]], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(
      [torch.tensor(s) for s in sequences], True, value
    ).to(device)

  for _ in range(flags.steps):
    chosen = random.sample(examples, flags.batch)
    inputs = padded([x for x, _ in chosen], 0)
    labels = padded([y for _, y in chosen], -100)
    mask = (inputs != 0).long()
    loss = model(input_ids=inputs, attention_mask=mask, labels=labels).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    loss.item()
  print(f'trained to step {flags.steps}', file=sys.stderr)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--system', choices=('mpt_jax', 'peft'), default='mpt_jax'
  )
  parser.add_argument(
    '--model', choices=sorted(measure.SHAPES), default='small'
  )
  parser.add_argument('--steps', type=int, default=100)
  parser.add_argument('--shots', type=int, default=32)
  parser.add_argument('--batch', type=int, default=16)
  parser.add_argument('--longest', type=int, default=100, help='words')
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--child', help=argparse.SUPPRESS)
  parser.add_argument('more', nargs='*', help='flags for `mpt_jax.train`')
  flags = parser.parse_args()
  measure.use_cores(flags.threads)
  if flags.child:
    return peft_run(flags)
  with tempfile.TemporaryDirectory() as folder:
    results = (ours if flags.system == 'mpt_jax' else peft)(folder, flags)
  keys = 'system model steps shots batch longest'.split()
  print(json.dumps({**{k: getattr(flags, k) for k in keys}, **results}))


if __name__ == '__main__':
  main()
