"""SeqIO tasks that pretrain the demo backbones and measure their skills.

Importing this module registers

- `offline_pretrain`: the text of `corpus.py`, as many examples as a run takes;
- `offline_skill_NAME`: the canonical form of each skill, for the accuracy
  that the demo reports as the backbone's own;
- `offline_style_NAME`: the same with label words picked by a style word;
- `offline_skills`: the mixture of all `offline_skill_` tasks;
- `offline_pretrain_large`: the text of `large_corpus.py`, and of each form
  that it adds an `offline_skill_NAME` and, where it has labels, an
  `offline_style_NAME`.

The text is drawn while it is read; no data set on disk is needed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import random
from typing import Any

import seqio
import tensorflow as tf

from mpt_jax import data
from tasks import metrics, postprocessors
from tasks.offline import corpus, large_corpus

TRAIN_EXAMPLES = 800_000
TEST_EXAMPLES = 1000
CHUNK = 250
LARGE_TRAIN_EXAMPLES = 650_000
LENGTHS = {'inputs': 48, 'targets': 12}
LARGE_LENGTHS = {'inputs': 64, 'targets': 12}

Draw = Callable[[random.Random, int], tuple[str, str]]

# The skill that each downstream task needs.
SKILL_OF: Mapping[str, str] = {
  'mnli': 'relate',
  'qnli': 'cover',
  'qqp': 'twin',
  'sst2': 'mood',
  'squad': 'read',
  'record': 'fill',
  'rte': 'imply',
  'cb': 'relate',
  'mrpc': 'same',
  'boolq': 'truth',
  'cola': 'grammar',
  'stsb': 'degree',
}
# Of the instrument's tasks, where one skill alone is what they need.
LARGE_SKILL_OF: Mapping[str, str] = {
  'mnli_world': 'relate',
  'qnli_world': 'cover',
  'qqp_world': 'twin',
  'sst2_world': 'mood',
  'squad_world': 'read',
  'record_world': 'fill',
  'deduction': 'imply',
  'rephrasing': 'twin',
  'verdict': 'mood',
  'well_formed': 'grammar',
  'earlier': 'day',
  'tally': 'few',
}

# What the downstream task is scored by, where it is not the accuracy.
OTHER_METRICS: Mapping[str, Sequence[Callable[..., Any]]] = {
  'grammar': (metrics.matthews_corrcoef,),
  'degree': (metrics.pearson_corrcoef,),
}


def _draw_pretraining(rng: random.Random, number: int) -> tuple[str, str]:
  _, inputs, targets = corpus.draw(rng, number)
  return inputs, targets


def _draw_large(rng: random.Random, number: int) -> tuple[str, str]:
  _, inputs, targets = large_corpus.draw(rng, number)
  return inputs, targets


def _draw_skill(rng: random.Random, number: int, skill: str) -> tuple[str, str]:
  del number
  return corpus.skill_example(rng, skill, canonical=True)


def _draw_style(rng: random.Random, number: int, skill: str) -> tuple[str, str]:
  del number
  style = rng.choice(tuple(corpus.STYLES))
  return corpus.skill_example(rng, skill, style, canonical=True)


def _draw_form(
  rng: random.Random, number: int, form: str, styled: bool
) -> tuple[str, str]:
  del number
  style = rng.choice(tuple(corpus.STYLES)) if styled else None
  return large_corpus.FORMS[form](rng, style)


def _source(
  draw: Draw, sizes: Mapping[str, int], salt: str
) -> seqio.DataSource:
  """Returns a source of drawn examples, the same ones in every pass.

  Args:
    draw: (chance, number of the example) -> (inputs, targets).
    sizes: examples by split, multiples of CHUNK.
    salt: keeps the examples of different tasks apart.
  """

  def chunks(split: str) -> Iterator[dict[str, list[str]]]:
    rng = random.Random(f'{salt}/{split}')
    for start in range(0, sizes[split], CHUNK):
      texts = [draw(rng, start + i) for i in range(CHUNK)]
      yield {
        'inputs': [inputs for inputs, _ in texts],
        'targets': [targets for _, targets in texts],
      }

  def dataset_fn(split, shuffle_files=False, seed=None):
    del shuffle_files, seed  # The order is drawn already.
    text = tf.TensorSpec((CHUNK,), tf.string)
    # One call into Python for a whole chunk: calls are what costs.
    return (
      tf.data.Dataset.from_generator(
        functools.partial(chunks, split),
        output_signature={'inputs': text, 'targets': text},
      )
      .unbatch()
      .prefetch(2 * CHUNK)
    )

  return seqio.FunctionDataSource(
    dataset_fn, splits=tuple(sizes), num_input_examples=dict(sizes)
  )


def _text(text: str, example=None, is_target: bool = False) -> str:
  del example, is_target
  return text


def _register_skill(
  skill: str, draw: Draw, labels: Sequence[str] | None, style: Draw | None
) -> None:
  """Registers a skill's canonical form, and the one with style words."""
  sizes = {'validation': TEST_EXAMPLES, 'test': TEST_EXAMPLES}
  postprocess: Callable[..., Any] = _text
  if labels is not None:
    postprocess = functools.partial(postprocessors.class_id, labels=labels)
  name = f'offline_skill_{skill}'
  data.register_task(
    name,
    _source(draw, sizes, name),
    preprocessors=[],
    postprocess_fn=postprocess,
    metric_fns=[metrics.accuracy, *OTHER_METRICS.get(skill, ())],
  )
  if style is None:
    return
  name = f'offline_style_{skill}'
  data.register_task(
    name,
    _source(style, sizes, name),
    preprocessors=[],
    postprocess_fn=_text,
    metric_fns=[metrics.accuracy],
  )


def _register() -> None:
  for name, draw, size in (
    ('offline_pretrain', _draw_pretraining, TRAIN_EXAMPLES),
    ('offline_pretrain_large', _draw_large, LARGE_TRAIN_EXAMPLES),
  ):
    data.register_task(
      name,
      _source(draw, {'train': size, 'validation': TEST_EXAMPLES}, name),
      preprocessors=[],
      postprocess_fn=_text,
      metric_fns=[metrics.accuracy],
    )
  for skill in corpus.SKILLS:
    labels = corpus.LABELS.get(skill)
    _register_skill(
      skill,
      functools.partial(_draw_skill, skill=skill),
      labels,
      functools.partial(_draw_style, skill=skill) if labels else None,
    )
  for form in large_corpus.FORMS:
    plain, styled = (
      functools.partial(_draw_form, form=form, styled=styled)
      for styled in (False, True)
    )
    has_style = form not in large_corpus.UNSTYLED
    _register_skill(form, plain, None, styled if has_style else None)
  seqio.MixtureRegistry.add(
    'offline_skills',
    [f'offline_skill_{skill}' for skill in corpus.SKILLS],
    default_rate=1.0,
  )


_register()
