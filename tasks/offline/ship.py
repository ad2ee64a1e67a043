r"""Makes a pretraining run's backbone a demo's: the last step of its recipe.

    python -m mpt_jax.train --gin_file=gin_configs/runs/pretrain_demo.gin \
      --gin.MODEL_DIR="'pretrained'"
    python -m tasks.offline.ship pretrained

Writes the weights in float16, the vocabulary, and `skills.json`: what these
float16 weights score on the canonical form of each skill, on 1,000 examples
drawn for it.
"""

import argparse
from collections.abc import Mapping, Sequence
import contextlib
import math
import os
import sys
import tempfile
from typing import Any

from mpt_jax.types import InputError

DEMO_BACKBONE = os.path.join(os.path.dirname(__file__), 'demo_backbone')


def measure(
  backbone: str, num_examples: int | None = None, large: bool = False
) -> dict[str, Any]:
  """Measures the skills of a backbone without prompts.

  Args:
    backbone: folder of a backbone with the demo's vocabulary.
    num_examples: per skill; None is all.
    large: measure what `large_corpus` adds, too.

  Returns:
    {'skills': {skill: {'score', 'accuracy', 'style_accuracy', 'examples'}},
    'tasks': {task: skill}}, in percent. The score is the main metric of the
    downstream task; the style accuracy is that with other label words.
  """
  import mpt_jax
  from tasks.offline import corpus, large_corpus, pretraining

  styled, forms = list(corpus.LABELS), []
  tasks, lengths = dict(pretraining.SKILL_OF), pretraining.LENGTHS
  if large:
    forms = list(large_corpus.FORMS)
    styled += [f for f in forms if f not in large_corpus.UNSTYLED]
    tasks.update(pretraining.LARGE_SKILL_OF)
    lengths = pretraining.LARGE_LENGTHS
  scores = mpt_jax.evaluate(
    backbone,
    [
      'offline_skills',
      *(f'offline_skill_{name}' for name in forms),
      *(f'offline_style_{name}' for name in styled),
    ],
    task_feature_lengths=lengths,
    num_examples=num_examples,
    module='tasks.offline.pretraining',
  )
  skills = {}
  for name in (*corpus.SKILLS, *forms):
    values = scores[f'offline_skill_{name}']
    others = [v for k, v in values.items() if k != 'accuracy']
    skills[name] = {
      'score': _round(others[0] if others else values['accuracy']),
      'accuracy': _round(values['accuracy']),
      'examples': num_examples or pretraining.TEST_EXAMPLES,
    }
    if name in styled:
      style: Mapping[str, float] = scores[f'offline_style_{name}']
      skills[name]['style_accuracy'] = _round(style['accuracy'])
  return {'skills': skills, 'tasks': tasks}


def _round(value: float) -> float:
  # A correlation with a constant is not defined: no skill.
  return 0.0 if math.isnan(value) else round(float(value), 1)


def forget_skills(out: str) -> None:
  """Removes what a folder says of the backbone that is about to be replaced."""
  with contextlib.suppress(FileNotFoundError):
    os.unlink(os.path.join(out, 'skills.json'))


def ship(
  model_dir: str,
  out: str = DEMO_BACKBONE,
  num_examples: int | None = None,
  large: bool = False,
) -> dict[str, Any]:
  """Writes the demo backbone.

  Args:
    model_dir: MODEL_DIR of the pretraining run, or a backbone's folder.
    out: folder to write; its name becomes the backbone's.
    num_examples: per skill; None is all.
    large: measure what `large_corpus` adds, too.

  Returns:
    What `measure` returned.

  Raises:
    InputError: if there is no backbone.
  """
  from mpt_jax.checkpoints import backbone as backbone_lib
  from mpt_jax.checkpoints import files, huggingface
  from tasks.offline import vocabulary

  name = os.path.basename(os.path.abspath(out)).replace('_', ' ')
  folder = os.path.join(model_dir, 'backbone')
  folder = folder if os.path.isdir(folder) else model_dir
  loaded = backbone_lib.load_backbone(folder)
  with tempfile.TemporaryDirectory() as temporary:
    spiece = os.path.join(temporary, 'spiece.model')
    vocabulary.write(spiece)
    if loaded.vocabulary_file and backbone_lib.digest_vocabulary(
      loaded.vocabulary_file
    ) != backbone_lib.digest_vocabulary(spiece):
      raise InputError(
        f'{loaded.vocabulary_file} is not the vocabulary of this version of'
        ' tasks.offline: pretrain again'
      )
    forget_skills(out)
    huggingface.save_huggingface(
      out, loaded.config, loaded.params, spiece, 'float16', f'mpt_jax {name}'
    )
  result = measure(out, num_examples, large)
  files.write_file(os.path.join(out, 'skills.json'), files.json_bytes(result))
  return result


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='python -m tasks.offline.ship',
    description='Makes a pretraining run the backbone of the demo.',
  )
  parser.add_argument('model_dir', help='MODEL_DIR of the pretraining run')
  parser.add_argument('--out', default=DEMO_BACKBONE, help='folder to write')
  parser.add_argument(
    '--large',
    action='store_true',
    help='measure what the larger backbone has read beside the others, too',
  )
  args = parser.parse_args(argv)
  try:
    result = ship(args.model_dir, args.out, large=args.large)
  except InputError as error:
    print(error, file=sys.stderr)
    return 2
  for skill, values in result['skills'].items():
    print(skill, values)
  return 0


if __name__ == '__main__':
  sys.exit(main())
