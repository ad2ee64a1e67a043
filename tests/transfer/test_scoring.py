"""What prompts score on tasks: every prompt on every task, at once.

Guards against a cell that is not what the eval command says, a readout that
ranks otherwise than the model does, and a cache that answers for another
prompt or other data.
"""

import dataclasses
import json
import logging

import jax
import numpy as np
import pytest

import mpt_jax
from mpt_jax import pretrained
from mpt_jax.checkpoints.vocabulary import Vocabulary
from mpt_jax.data import memory
from mpt_jax.engine import predictor
from mpt_jax.engine.settings import Decoding
from mpt_jax.transfer import scoring, sources
from mpt_jax.types import InputError
from tests.helpers import scored, tiny


@pytest.fixture(autouse=True)
def _registry():
  memory.register(scored.TASKS)
  yield
  memory.clear()


@pytest.fixture(scope='module')
def backbone():
  return tiny.served()


@pytest.fixture(scope='module')
def bundle():
  return scored.bundle()


@pytest.fixture(scope='module')
def prompts(bundle):
  return sources.read(bundle)


def _scorer(backbone, **kwargs):
  return scoring.Scorer(
    backbone, scored.EXAMPLES, **{'batch_size': 8, **kwargs}
  )


def _by_place(cells):
  return {(cell.source, cell.task): cell for cell in cells}


@pytest.mark.parametrize('beams', [1, 2])
def test_a_cell_is_what_eval_says(backbone, bundle, prompts, tmp_path, beams):
  bundle.save(str(tmp_path / 'prompts'))
  decoding = Decoding(num_beams=beams)
  scorer = _scorer(backbone, readout='generate', decoding=decoding)
  tasks = ['moods', 'names']
  cells = _by_place(scorer.score(prompts, tasks))
  assert list(cells) == [(s, t) for s in scored.SOURCES for t in tasks]
  for source in scored.SOURCES:
    said = mpt_jax.evaluate(
      backbone,
      tasks,
      prompts=str(tmp_path / 'prompts'),
      prompt_task=source,
      batch_size=8,
      decoding=decoding,
      task_feature_lengths=scored.LENGTHS,
      module=None,
    )
    for task, values in said.items():
      cell, judged = cells[source, task], said.judged[task]
      assert cell.metrics == values
      assert cell.score == values[cell.metric]
      assert cell.examples == judged.examples
      assert cell.interval == judged.intervals.get(cell.metric)
      assert cell.why == (judged.collapsed or '')
      assert cell.readout == 'generate'
      majority = judged.floors.get('majority_scores', {})
      assert cell.floor == majority.get(cell.metric)


def test_labels_are_ranked_as_the_model_ranks_them(backbone, bundle, prompts):
  model = pretrained.PromptedT5(
    backbone, bundle, Vocabulary(str(tiny.VOCABULARY))
  )
  task = scored.TASKS['kinds']
  text = memory.find('kinds').text('test')
  inputs = [text.fill(row) for row in task.test]
  ranked = {
    source: [
      max(answers, key=answers.get)
      for answers in zip_words(
        text.answers(),
        [
          model.score(inputs, [answer] * len(inputs), source)
          for answer in text.answers().values()
        ],
      )
    ]
    for source in scored.SOURCES
  }
  # The labels are what the first prompt answers, so it is right everywhere.
  rows = [
    {**row, 'label': word}
    for row, word in zip(task.test, ranked['a'], strict=True)
  ]
  memory.register({'kinds': dataclasses.replace(task, test=rows)})
  cells = _scorer(backbone).score(prompts, ['kinds', 'names'])
  assert [cell.readout for cell in cells] == ['labels', 'generate'] * 3
  for cell in cells[::2]:
    same = np.array(ranked[cell.source]) == np.array(ranked['a'])
    assert cell.score == pytest.approx(100 * same.mean())
  assert cells[0].score == 100 > min(cell.score for cell in cells[::2])


def zip_words(answers, scores):
  """{word: score} of each text, of scores by word."""
  return [
    dict(zip(answers, by, strict=True)) for by in zip(*scores, strict=True)
  ]


def test_words_have_the_scores_of_single_answers(backbone, bundle):
  model, params = predictor.prompted_model(backbone, bundle)
  batch = next(tiny.Batches(5, 3, scored.P, config=tiny.SERVED))
  words = np.array([[7, 9, 1], [8, 1, 0], [11, 12, 1], [0, 0, 0]], np.int32)
  found = np.asarray(jax.jit(model.score_words)(params, batch, words))
  score = jax.jit(model.score_batch)
  for column, word in enumerate(words[:3]):
    targets = np.tile(word, (5, 1))
    one = batch | {
      'decoder_target_tokens': targets,
      'decoder_input_tokens': np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
      'decoder_loss_weights': (targets > 0).astype(np.int32),
    }
    np.testing.assert_allclose(found[:, column], score(params, one), rtol=1e-5)
  assert not found[:, 3].any()


@pytest.mark.parametrize('readout', scoring.READOUTS)
def test_prompts_per_call_change_nothing(backbone, prompts, readout):
  tasks = ['moods', 'names']
  whole = _scorer(backbone, readout=readout).score(prompts, tasks)
  few = _scorer(backbone, readout=readout, prompts_per_call=2)
  assert few.score(prompts, tasks) == whole


def test_prompts_of_several_lengths(backbone, prompts):
  more = dataclasses.replace(
    prompts[0], array=np.concatenate([prompts[0].array] * 2), name='long'
  )
  scorer = _scorer(backbone)
  both = scorer.score([more, prompts[0]], ['moods'])
  assert [cell.source for cell in both] == ['long', 'a']
  assert both[:1] == scorer.score([more], ['moods'])
  assert both[1:] == scorer.score(prompts[:1], ['moods'])


class TestCache:
  def _counted(self, monkeypatch):
    """What is asked from now on: (task, names of the prompts)."""
    asked, answer = [], scoring.Scorer._answer

    def counted(self, call):
      asked.append((call.questions.task, [p.name for p in call.prompts]))
      return answer(self, call)

    monkeypatch.setattr(scoring.Scorer, '_answer', counted)
    return asked

  def test_what_is_known_is_not_asked(
    self, backbone, prompts, tmp_path, monkeypatch, caplog
  ):
    asked = self._counted(monkeypatch)
    cache = str(tmp_path / 'cells')
    first = _scorer(backbone, cache=cache).score(
      prompts[:2], ['moods', 'kinds']
    )
    assert asked == [('moods', ['a', 'b']), ('kinds', ['a', 'b'])]
    asked.clear()
    # Another prompt under a known name is asked, a known one under another not.
    other = [prompts[2].renamed('a'), prompts[0].renamed('z')]
    second = _scorer(backbone, cache=cache).score(other, ['moods', 'kinds'])
    assert asked == [('moods', ['a']), ('kinds', ['a'])]
    assert [c.source for c in second] == ['a', 'a', 'z', 'z']
    assert dataclasses.replace(second[2], source='a') == first[0]
    asked.clear()
    # Other data, another readout, another split are others.
    memory.register(
      {
        'moods': dataclasses.replace(
          scored.TASKS['moods'], test=scored.rows(23, 9)
        )
      }
    )
    _scorer(backbone, cache=cache).score(prompts[:2], ['moods', 'kinds'])
    assert asked == [('moods', ['a', 'b'])]
    _scorer(backbone, cache=cache, readout='generate').score(prompts, ['kinds'])
    assert asked[1:] == [('kinds', ['a', 'b', 'c'])]
    with caplog.at_level(logging.WARNING):
      again = _scorer(backbone, cache=cache).score(prompts[:1], ['kinds'])
    assert again == first[1:2]
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]

  @pytest.mark.parametrize(
    'damage',
    [
      lambda text: text[: len(text) // 2],
      lambda text: text.replace('"examples": 23', '"examples": "23"'),
      lambda text: text.replace('"split": "test"', '"split": "train"'),
      lambda text: text.replace('"why"', '"how"'),
      lambda text: '{"cell": 3}',
    ],
    ids=['half', 'type', 'key', 'name', 'other'],
  )
  def test_a_damaged_file_is_named_and_written_anew(
    self, backbone, prompts, tmp_path, monkeypatch, caplog, damage
  ):
    asked = self._counted(monkeypatch)
    scorer = _scorer(backbone, cache=str(tmp_path))
    whole = scorer.score(prompts, ['moods'])
    [path, *_] = sorted(tmp_path.iterdir())
    text = path.read_text()
    assert damage(text) != text
    path.write_text(damage(text))
    with caplog.at_level(logging.WARNING):
      assert scorer.score(prompts, ['moods']) == whole
    assert len(asked) == 2
    assert len(asked[1][1]) == 1
    assert path.name in caplog.text
    assert json.loads(path.read_text()) == json.loads(text)

  def test_a_killed_run_goes_on(self, backbone, prompts, tmp_path, monkeypatch):
    asked = self._counted(monkeypatch)
    write, calls = scoring._write, []

    def dies(*args):
      if len(calls) == 4:
        raise KeyboardInterrupt
      calls.append(write(*args))

    scorer = _scorer(backbone, cache=str(tmp_path), prompts_per_call=2)
    with monkeypatch.context() as patch:
      patch.setattr(scoring, '_write', dies)
      with pytest.raises(KeyboardInterrupt):
        scorer.score(prompts, ['moods', 'kinds'])
    asked.clear()
    cells = scorer.score(prompts, ['moods', 'kinds'])
    assert asked == [('kinds', ['b', 'c'])]
    assert cells == _scorer(backbone).score(prompts, ['moods', 'kinds'])


def test_what_cannot_be_scored_is_named(backbone, prompts):
  scorer = _scorer(backbone)
  narrow = sources.random_prompt((scored.P, scored.D - 1), name='narrow')
  with pytest.raises(
    InputError, match="'narrow' is 15 wide.* tiny has emb_dim"
  ):
    scorer.score([narrow], ['moods'])
  for change in (
    {'backbone_fingerprint': 'sha256:other', 'backbone_name': 't5-base'},
    {'vocabulary_digest': 'sha256:other'},
  ):
    other = dataclasses.replace(prompts[0], **change)
    with pytest.raises(InputError, match="'a' .*sha256:other"):
      scorer.score([other], ['moods'])
  with pytest.raises(InputError, match="readout is 'label'.*'labels'"):
    _scorer(backbone, readout='label')
  with pytest.raises(InputError, match='prompts_per_call'):
    _scorer(backbone, prompts_per_call=0)


def test_words_take_few_shapes():
  sizes = {
    scoring._padded([[3] * length] * count).shape
    for count in range(2, 9)
    for length in range(1, 9)
  }
  assert len(sizes) == 6
