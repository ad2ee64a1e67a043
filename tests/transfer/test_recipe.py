"""The recipe of an encoder and a T5, both ways, by its one command."""

import json

import numpy as np
import pytest

pytest.importorskip('seqio')
pytest.importorskip('tokenizers')

import mpt_jax  # noqa: E402
from mpt_jax.checkpoints import bundle as bundle_lib  # noqa: E402
from mpt_jax.checkpoints.backbone import (  # noqa: E402
  demo_folder,
  load_backbone,
)
from mpt_jax.checkpoints.vocabulary import Vocabulary  # noqa: E402
from mpt_jax.data import memory  # noqa: E402
from mpt_jax.engine import predictor, settings  # noqa: E402
from mpt_jax.transfer import (  # noqa: E402
  anchors,
  report,
  scoring,
  sources,
  whole,
)
from mpt_jax.types import InputError  # noqa: E402
from tests.helpers import children  # noqa: E402

ENCODER, T5 = 'demo-roberta', 'demo-small'
SHORT = {
  'SEEDS': [0],
  'TEACHER_STEPS': 3,
  'KEY_STEP': 2,
  'EVAL_EXAMPLES': 12,
  'SOURCE_TASKS': ['sst2', 'imdb', 'rte'],
  'WORKERS': 1,
}
OPTIONS = {
  'project': {
    'train_on': [['sst2']],
    'steps': 2,
    'evaluations': 1,
    'forms': {'token': {'FLATTEN': False}},
  },
  'speedup': {'steps': 2, 'period': 1, 'rates': [0.3], 'targets': ['rte']},
  'retrieve': {'metrics': ['average', 'per_token']},
}


def _run(folder, **macros):
  given = {**SHORT, 'MODEL_DIR': str(folder), **macros}
  return children.run(
    [
      *('-m', 'mpt_jax.transfer', 'all'),
      '--gin_file=gin_configs/runs/demo_roberta.gin',
      *(f'--gin.{name}={value!r}' for name, value in given.items()),
    ],
    timeout=900,
  )


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize(
  ('source', 'target', 'parts'),
  [(ENCODER, T5, ['teachers', 'project', 'report']), (T5, ENCODER, [])],
)
def test_prompts_go_from_one_family_to_the_other(
  tmp_path, source, target, parts
):
  options = {p: v for p, v in OPTIONS.items() if not parts or p in parts}
  done = _run(
    tmp_path,
    SOURCE_BACKBONE=source,
    INITIAL_CHECKPOINT_PATH=target,
    PARTS=parts,
    OPTIONS=options,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  found = json.loads((tmp_path / 'project/project.json').read_text())
  want = load_backbone(demo_folder(target))
  assert found['target_backbone']['fingerprint'] == want.fingerprint
  groups = {
    (g['projector'], g['group']): g['score']['tasks'] for g in found['groups']
  }
  for name in ('sst2: task, token', 'sst2: distance, token', 'linear'):
    for group in ('trained', 'same category', 'other'):
      assert groups[name, group] == 1
  made = bundle_lib.load_prompts(
    str(tmp_path / 'project/projected/task/token/sst2/0/imdb')
  )
  bundle_lib.check_backbone(made, want)
  assert (
    made.origin['source_backbone'] == load_backbone(demo_folder(source)).name
  )
  page = (tmp_path / 'transfer.md').read_text()
  table = page[page.rindex('| trained on |') :]
  assert '| sst2 | not moved | ' in table
  assert '| sst2 | random, not moved | ' in table
  home = json.loads((tmp_path / report.AT_HOME / 'matrix.json').read_text())
  own = {s['name']: s['task'] for s in home['sources']}
  [score] = [
    cell['score']
    for cell in home['cells']
    if own[cell['source']] == 'sst2' == cell['task']
  ]
  assert f'| sst2 | not moved | {score:.1f}' in table
  if not parts:
    for part in ('matrix', 'indicators', 'retrieve', 'speedup'):
      assert (tmp_path / part).is_dir(), part


@pytest.mark.data
def test_a_task_that_an_encoder_cannot_answer_is_refused_before_any_run(
  tmp_path,
):
  plan = whole.Plan(
    str(tmp_path),
    whole.Teachers(T5, ('sst2', 'squad'), whole.Training(2, 2, 0.3)),
    whole.Examples('', 'test'),
    source_backbone=ENCODER,
  )
  with pytest.raises(InputError, match=r"task 'squad' .* an encoder") as e:
    whole._check_answers(plan)
  assert '\n' not in str(e.value)


@pytest.mark.data
def test_a_class_of_several_words_answers_with_its_first():
  texts = ['the film was great', 'the hotel was awful', 'the food was dull']
  rows = [{'text': t, 'label': int(i > 0)} for i, t in enumerate(texts)] * 2
  task = mpt_jax.Task(
    test=rows,
    inputs='{text}',
    labels=['good', 'bad'],
    masked='{mask} {text}',
    fillers={'good': [' great', ' superb'], 'bad': [' terrible', ' awful']},
  )
  memory.register({'words': task})
  backbone = predictor.load_backbone(ENCODER)
  # What its pretraining calls the sentiment of a text.
  [mood] = Vocabulary(demo_folder(ENCODER)).model_ids('mood')
  table = np.asarray(backbone.params['token_embedder']['embedding'])
  prompt = sources.SourcePrompt('mood', np.repeat(table[mood][None], 4, 0))
  examples = settings.Examples(
    '', 'test', {'inputs': 24, 'targets': 4}, module=None
  )
  found = {
    readout: scoring.Scorer(
      backbone, examples, batch_size=4, readout=readout
    ).score([prompt], ['words'])[0]
    for readout in scoring.READOUTS
  }
  assert found['labels'].metrics == found['generate'].metrics
  assert found['labels'].metrics['accuracy'] > 60


def test_words_that_are_one_token_in_both_families_are_shared():
  encoder, t5 = (Vocabulary(demo_folder(name)) for name in (ENCODER, T5))
  rows, others = anchors.shared_rows(encoder, t5)
  assert len(rows) > 200
  words = [encoder.decode_model([row]) for row in rows]
  assert words == [t5.decode_model([row]) for row in others]
  assert {'great', 'hank', 'library'} <= {*words}
  assert not {'<s>', '</s>', '<mask>', '<pad>', '<unk>'} & {*words}
  back, forth = anchors.shared_rows(t5, encoder)
  assert sorted(zip(forth, back, strict=True)) == sorted(
    zip(rows, others, strict=True)
  )
  same, again = anchors.shared_rows(encoder, encoder)
  np.testing.assert_array_equal(same, again)
