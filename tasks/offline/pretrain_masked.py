r"""Pretrains the demo's encoder, and writes it as a folder of transformers.

    python -m tasks.offline.pretrain_masked tasks/offline/demo_roberta_backbone

A tiny RoBERTa (width 64, 4 heads, 4 layers) learns from scratch to fill in
masks of the text of `masked_corpus.py`: in some texts the answer alone, in the
others 15 % of the words, of which 80 % become the mask, 10 % another word and
10 % stay (Devlin et al., NAACL 2019). 20 minutes on one core. OUT gets
the weights in float16, `tokenizer.json`, and `skills.json`: how often the right
class is the likeliest of its skill's words, on 1,000 texts drawn for it. State
is kept in OUT.state; the same command goes on where it was stopped.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
import functools
import io
import os
import random
import shutil
import sys
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mpt_jax import roberta
from mpt_jax.checkpoints import files, huggingface
from mpt_jax.checkpoints.vocabulary import SpecialIds
from mpt_jax.engine import optimizers
from mpt_jax.engine.trainer import format_seconds
from mpt_jax.types import InputError, quiet_pipe
from tasks.offline import corpus, masked_corpus, pretraining
from tasks.offline.masked_corpus import Text
from tasks.offline.ship import forget_skills

STEPS = 12_000
ROWS, LENGTH = 16, 128
# Masks of a row that are learned from; what is beyond stays as it is.
MASKS = 24
# About so many texts fill a batch: the curriculum counts those.
TEXTS = 78
MASKED_SHARE, MASK_SHARE, WORD_SHARE = 0.15, 0.8, 0.1
# Texts of which the answer alone is hidden; what any other hidden word weighs.
# Few of those can be known, and the loss would be theirs.
ASKED_SHARE, LATE_ASKED_SHARE, OTHERS_WEIGHT = 0.6, 0.85, 0.3
# Texts that begin further behind.
SHIFTED_SHARE = 0.3
MOST_CUES = 12
TEST_TEXTS = 1000
_PERIOD, _KEEP_PERIOD = 100, 500

# Ids within our models, where 0 is padding: rows 0 and 1 are swapped.
_TOKENS = masked_corpus.tokens()
SPECIAL = SpecialIds(pad=1, start=1, end=2, begin=0, mask=len(_TOKENS) - 1)
_IDS = {
  token: SPECIAL.swap([number])[0] for number, token in enumerate(_TOKENS)
}
_BEGIN, _END = _IDS[masked_corpus.BEGIN], _IDS[masked_corpus.END]
_MASK = _IDS[masked_corpus.MASK]
_WORDS = tuple(range(SPECIAL.end + 2, _MASK))  # Behind the unknown.

CONFIG = roberta.RobertaConfig(
  vocab_size=len(_TOKENS),
  emb_dim=64,
  num_heads=4,
  num_encoder_layers=4,
  mlp_dim=256,
  max_positions=LENGTH + roberta.config.FIRST_POSITION,
  dropout_rate=0.0,
)
_OPTIMIZER = optimizers.Optimizer(
  groups=(
    optimizers.Group('token_embedder/embedding|.*position_embedding', 5e-3),
    optimizers.Group('.*/kernel', 3e-3, 'muon'),
    optimizers.Group('.*', 1e-3),
  ),
  warmup_steps=200,
  weight_decay=0.0,
  clip_norm=1.0,
)

Batch = dict[str, np.ndarray]


def ids_of(
  text: Text, cue: Sequence[str]
) -> tuple[list[int], list[int], list[int]]:
  """Writes a text in our ids.

  Args:
    text: the text.
    cue: what stands before the begin mark.

  Returns:
    The ids, the places of the answer, and those of its other words.
  """
  ids = [_IDS[word] for word in cue]
  ids.append(_BEGIN)
  first = len(ids)
  ids += [_IDS[word] for word in text.answer]
  answer = [*range(first, len(ids))]
  others: list[int] = []
  for number, field in enumerate(text.fields):
    ids += [_END] * 2 if number else []
    others += range(len(ids), len(ids) + len(field))
    ids += [_IDS[word] for word in field]
  ids.append(_END)
  return ids, answer, others


def _cue(rng: random.Random, words: Sequence[str]) -> list[str]:
  """Says what is asked as often as a prompt may be long."""
  return list(words) * rng.randint(1, MOST_CUES)


def _hide(
  rng: random.Random,
  ids: list[int],
  answer: list[int],
  others: list[int],
  asked: float,
) -> dict[int, tuple[int, float]]:
  """Hides words of a text in place; returns what was where, and its weight."""
  if answer and rng.random() < asked:
    # With all that is needed to know it, as downstream.
    hidden = {place: (ids[place], 1.0) for place in answer}
    for place in answer:
      ids[place] = _MASK
    return hidden
  words = answer + others
  count = max(1, round(MASKED_SHARE * len(words)))
  hidden = {}
  for place in rng.sample(words, count):
    hidden[place] = ids[place], OTHERS_WEIGHT
    drawn = rng.random()
    if drawn < MASK_SHARE:
      ids[place] = _MASK
    elif drawn < MASK_SHARE + WORD_SHARE:
      ids[place] = rng.choice(_WORDS)
  return hidden


def batch_of(step: int) -> Batch:
  """Draws a batch of a step, several texts to a row.

  Args:
    step: which, from 0.

  Returns:
    `tokens`, `segments` and `positions` [R, S] int32; `places` and `words`
    [R, M] int32 of the hidden words, and `weights` [R, M] float32, 0 where
    there is none.
  """
  rng = random.Random(f'masked/{step}')
  shape, few = (ROWS, LENGTH), (ROWS, MASKS)
  names = {'tokens': shape, 'segments': shape, 'positions': shape}
  names |= {'places': few, 'words': few}
  batch = {name: np.zeros(size, np.int32) for name, size in names.items()}
  batch['weights'] = np.zeros(few, np.float32)
  used, texts, masks = [0] * ROWS, [0] * ROWS, [0] * ROWS
  number = step * TEXTS
  late = number >= masked_corpus.LATE_FROM
  asked = LATE_ASKED_SHARE if late else ASKED_SHARE
  while True:
    text = masked_corpus.draw(rng, number)
    number += 1
    ids, answer, others = ids_of(text, _cue(rng, text.cue))
    hidden = _hide(rng, ids, answer, others, asked)
    fitting = [row for row in range(ROWS) if used[row] + len(ids) <= LENGTH]
    if not fitting:
      return batch
    row = min(fitting, key=used.__getitem__)
    start, end = used[row], used[row] + len(ids)
    shift = 0
    if rng.random() < SHIFTED_SHARE:
      shift = rng.randint(0, LENGTH - len(ids))
    texts[row] += 1
    batch['tokens'][row, start:end] = ids
    batch['segments'][row, start:end] = texts[row]
    batch['positions'][row, start:end] = np.arange(len(ids)) + shift
    for place, (word, weight) in hidden.items():
      if masks[row] < MASKS:
        at = row, masks[row]
        batch['places'][at], batch['words'][at] = start + place, word
        batch['weights'][at] = weight
        masks[row] += 1
    used[row] = end


def _loss(params: Any, batch: Mapping[str, Any]) -> tuple[Any, Any]:
  """The mean cross entropy of hidden words, and how many answers are right."""
  network = roberta.Roberta(CONFIG)
  encoded, _ = network.apply(
    {'params': params},
    batch['tokens'],
    batch['segments'],
    batch['positions'],
    enable_dropout=False,
    method='encode',
  )
  hidden = jnp.take_along_axis(encoded, batch['places'][..., None], axis=1)
  logits: Any = network.apply({'params': params}, hidden, method='fill')
  found = jax.nn.log_softmax(logits)
  words, weights = batch['words'], batch['weights']
  of_words = jnp.take_along_axis(found, words[..., None], axis=-1)[..., 0]
  asked = weights == 1
  right = ((logits.argmax(-1) == words) & asked).sum() / asked.sum()
  return -(of_words * weights).sum() / weights.sum(), right


def train(out: str, steps: int = STEPS) -> Any:
  """Pretrains the encoder, or goes on with it.

  Args:
    out: folder of what is written; state is kept beside it.
    steps: in all.

  Returns:
    The parameters.

  Raises:
    InputError: if the state beside it is of another number of steps.
  """
  params: Any = roberta.init_params(CONFIG, jax.random.key(0))
  settings = _OPTIMIZER.of_run((), steps)
  tx = settings.make(params)
  state: Any = (params, tx.init(params))
  kept = f'{out}.state/{steps}.npz'
  step = 0
  if os.path.exists(kept):
    step, state = _restore(kept, state)
  elif os.path.isdir(os.path.dirname(kept)):
    raise InputError(
      f'{os.path.dirname(kept)} is of another number of steps: remove it'
    )

  @functools.partial(jax.jit, donate_argnums=0)
  def update(state: Any, batch: Mapping[str, Any]) -> tuple[Any, Any]:
    params, moments = state
    (loss, right), grads = jax.value_and_grad(_loss, has_aux=True)(
      params, batch
    )
    changes, moments = tx.update(grads, moments, params)
    params = jax.tree.map(lambda p, c: p + c, params, changes)
    return (params, moments), jnp.stack([loss, right])

  begin, first = time.monotonic(), step
  told: list[Any] = []
  while step < steps:
    state, values = update(state, batch_of(step))
    told.append(values)
    step += 1
    if step % _PERIOD == 0 or step == steps:
      loss, right = np.mean(jax.device_get(told), axis=0)
      told = []
      left = (time.monotonic() - begin) / (step - first) * (steps - step)
      print(
        f'{step} / {steps}  loss {loss:.3f}  answers {100 * right:.1f} %  ETA'
        f' {format_seconds(left)}',
        flush=True,
      )
    if step % _KEEP_PERIOD == 0 and step < steps:
      _keep(kept, step, state)
  return jax.device_get(state[0])


def _keep(path: str, step: int, state: Any) -> None:
  file = io.BytesIO()
  np.savez(file, np.asarray(step), *map(np.asarray, jax.tree.leaves(state)))
  os.makedirs(os.path.dirname(path), exist_ok=True)
  files.write_file(path, file.getvalue())


def _restore(path: str, like: Any) -> tuple[int, Any]:
  with np.load(path, allow_pickle=False) as stored:
    arrays = [stored[f'arr_{i}'] for i in range(len(stored.files))]
  step, *leaves = arrays
  return int(step), jax.tree.unflatten(jax.tree.structure(like), leaves)


def _questions(skill: str) -> Iterator[tuple[list[int], int, int]]:
  """Test texts of a skill: ids, the place of the mask, the class."""
  rng = random.Random(f'test/{skill}')
  for _ in range(TEST_TEXTS):
    text = masked_corpus.skill_text(rng, skill, fillers=True, canonical=True)
    ids, [place], _ = ids_of(text, text.cue)
    label = classes(skill).index(text.answer[0])
    ids[place] = _MASK
    yield ids, place, label


def classes(skill: str) -> tuple[str, ...]:
  """The words that a skill is answered in, as `FILLERS` or its own."""
  return masked_corpus.FILLERS.get(skill) or corpus.LABELS[skill]


@jax.jit
def _at(params: Any, tokens: Any, places: Any) -> Any:
  """Logits [B, V] at a place [B] of each text [B, S]."""
  network = roberta.Roberta(CONFIG)
  encoded: Any
  encoded, _ = network.apply(
    {'params': params}, tokens, enable_dropout=False, method='encode'
  )
  at_place = jnp.take_along_axis(encoded, places[:, None, None], axis=1)
  logits: Any = network.apply({'params': params}, at_place, method='fill')
  return logits[:, 0]


def measure(params: Any) -> dict[str, Any]:
  """Measures the skills of an encoder without prompts.

  Args:
    params: the parameter tree.

  Returns:
    {'skills': {skill: {'score', 'accuracy', 'examples'}}, 'tasks': {task:
    skill}}, accuracies in percent of the skills whose answer is a class.
  """
  skills = {}
  for skill in corpus.LABELS:
    tokens = np.zeros((TEST_TEXTS, LENGTH // 2), np.int32)
    places, labels = [], []
    for row, (ids, place, label) in enumerate(_questions(skill)):
      tokens[row, : len(ids)] = ids
      places.append(place)
      labels.append(label)
    logits = np.asarray(_at(params, tokens, np.array(places)))
    scores = logits[:, [_IDS[word] for word in classes(skill)]]
    right = scores.argmax(-1) == np.array(labels)
    accuracy = round(100 * float(right.mean()), 1)
    # Named as what the T5s are measured by.
    skills[skill] = {
      'score': accuracy,
      'accuracy': accuracy,
      'examples': TEST_TEXTS,
    }
  tasks = {t: s for t, s in pretraining.SKILL_OF.items() if s in skills}
  return {'skills': skills, 'tasks': tasks}


def ship(out: str, params: Any) -> dict[str, Any]:
  """Writes the encoder into a folder; returns what `measure` does."""
  name = os.path.basename(os.path.abspath(out)).replace('_', ' ')
  with tempfile.TemporaryDirectory() as temporary:
    tokenizer = os.path.join(temporary, 'tokenizer.json')
    content = files.json_bytes(masked_corpus.tokenizer_json())
    files.write_file(tokenizer, content)
    forget_skills(out)
    huggingface.save_huggingface(
      out, CONFIG, params, tokenizer, 'float16', f'mpt_jax {name}', SPECIAL
    )
  rounded = jax.tree.map(lambda a: np.asarray(a, np.float16), params)
  result = measure(jax.tree.map(lambda a: a.astype(np.float32), rounded))
  files.write_file(os.path.join(out, 'skills.json'), files.json_bytes(result))
  return result


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='python -m tasks.offline.pretrain_masked',
    description="Pretrains the demo's encoder from scratch.",
  )
  parser.add_argument('out', help='folder to write')
  parser.add_argument('--steps', type=int, default=STEPS)
  with quiet_pipe():
    args = parser.parse_args(argv)
  try:
    with quiet_pipe():
      result = ship(args.out, train(args.out, args.steps))
  except InputError as error:
    print(error, file=sys.stderr)
    return 2
  shutil.rmtree(f'{args.out}.state', ignore_errors=True)
  for skill, values in result['skills'].items():
    print(skill, values)
  return 0


if __name__ == '__main__':
  sys.exit(main())
