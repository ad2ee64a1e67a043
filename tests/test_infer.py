"""Lines in, answers out: which line is which, and what of it is read.

Guards against answers that fall out of step with their lines, a line that is
read as something else than it is, and a prompt that is not the line's own.
"""

import errno
import io
import json
import os
import signal
import sys

import numpy as np
import pytest
import scipy.special

from mpt_jax import infer, lines
from mpt_jax.checkpoints import backbone as backbone_lib
from mpt_jax.checkpoints import huggingface
from mpt_jax.checkpoints.backbone import demo_folder
from mpt_jax.checkpoints.bundle import PromptBundle
from mpt_jax.checkpoints.texts import TaskText
from mpt_jax.engine import answers as answers_lib
from mpt_jax.engine.settings import BackboneSource, Decoding, Examples
from mpt_jax.pretrained import PromptedT5
from mpt_jax.types import InputError, quiet_pipe
from tests.helpers import tiny

P, D = 3, tiny.SERVED.emb_dim
NLI = TaskText(
  'nli premise: {premise} hypothesis: {hypothesis}', '{label}', ('no', 'yes')
)
TEXTS = {
  'nli': NLI,
  'sst2': TaskText(
    'sst2 sentence: {sentence}',
    'it is {label}',
    ('bad', 'good', 'so so'),
    {'sentence': 'text'},
  ),
  'squad': TaskText(),
}


def _bundle(**changes) -> PromptBundle:
  rng = np.random.default_rng(0)
  fields = {
    'method': 'multitask',
    'stage': 'source',
    'task_names': ('nli', 'sst2', 'squad'),
    'arrays': {
      'shared_prompt': 9 * rng.normal(size=(P, D)),
      'task_u': rng.normal(size=(3, P, 1)),
      'task_v': rng.normal(size=(3, 1, D)),
    },
    'texts': TEXTS,
  }
  return PromptBundle(**(fields | changes))


ONE = _bundle().with_tasks(['nli'])


def _stream(content, tmp_path):
  """Bytes as a file that is read as standard input is."""
  path = tmp_path / 'stdin'
  path.write_bytes(content)
  return lines.Stream(os.open(path, os.O_RDONLY))


def _ask(content, tmp_path, name='in', asking=None):
  told = answers_lib._Told()
  if name.endswith(lines.SUFFIXES):
    (tmp_path / name).write_bytes(content)
    name, stream = str(tmp_path / name), None
  else:
    stream = _stream(content, tmp_path)
  rows = answers_lib._rows(stream, name, told)
  asking = asking or answers_lib.Asking()
  return list(answers_lib._questions(rows, asking, told)), told


class TestLines:
  @pytest.mark.parametrize(
    ('content', 'want'),
    [
      (b'', []),
      (b'a', ['a']),
      (b'a\nb\n', ['a', 'b']),
      (b'a\n\nb', ['a', None, 'b']),
      (b'\n \t\na\n\n', [None, None, 'a', None]),
      (b'a\r\nb\r\n\r\nc', ['a', 'b', None, 'c']),
      (b'\xef\xbb\xbfa\n\xef\xbb\xbfb\n', ['a', '\ufeffb']),
      (b'\xef\xbb\xbf{"inputs": "a"}\n', ['a']),
      # Nothing but a line feed ends a line.
      (
        'a\rb\x00c\x0bd\x0ce\x1cf\x85g\u2028h\u2029i\n j '.encode(),
        ['a\rb\x00c\x0bd\x0ce\x1cf\x85g\u2028h\u2029i', ' j '],
      ),
      # Marks are text.
      (b'"a "b""\n\'c\'\t"d\n[e]\n["f"]\n42\n', None),
      (b'  {"inputs": "a"}\n {b}\n', ['a', ' {b}']),
      (('x' * 70_000 + '\né\n').encode(), ['x' * 70_000, 'é']),
    ],
  )
  def test_every_line_is_one_question(self, tmp_path, content, want):
    if want is None:
      want = content.decode().splitlines()
    got, _ = _ask(content, tmp_path)
    assert [line['index'] for line in got] == list(range(len(want)))
    for line, text in zip(got, want, strict=True):
      assert line['inputs'] == (text or '')
      assert ('prediction' in line) == (text is None)

  @pytest.mark.parametrize(
    ('content', 'message'),
    [
      (b'a\n\n\xffb\n', r'^in:3: not UTF-8 \(the byte 0xff\)'),
      (b'a\n{"inputs": "\xc3"}\n', r'^in:2: not UTF-8 \(the byte 0xc3\)'),
      (b'\n{b}\n', r'^in:2: no JSON: .*a plain text that begins with {'),
      (b'{"inputs": "a", "inputs": "b"}', "^in:1: .*'inputs' occurs twice"),
      (b'{"inputs": "a", "x": {"y": 1, "y": 1}}', "'y' occurs twice"),
      (b'a\n{"inputs": "a", "prediction": "b"}', "^in:2: the key 'prediction'"),
      (b'{"inputs": ["a"]}', "^in:1: 'inputs' is \\['a'\\], expected text"),
      (b'{"inputs": "a", "x": NaN}', '^in:1: no valid text or number'),
      (b'a\n' + b'x' * (lines.LONGEST + 1), '^in:2: the line has more than'),
    ],
  )
  def test_a_line_that_is_refused(self, tmp_path, content, message):
    with pytest.raises(InputError, match=message):
      _ask(content, tmp_path)

  def test_the_longest_line(self, tmp_path):
    text = 'é' * lines.LONGEST
    got, _ = _ask(f'{text}\r\n{text}'.encode(), tmp_path)
    assert [line['inputs'] == text for line in got] == [True, True]

  def test_what_is_told(self, tmp_path, caplog):
    content = (
      b'\na\rb\n{"inputs": "c", "index": 7}\n{"inputs": ""}\n["d"]\n"e"\n\n'
    )
    got, told = _ask(content, tmp_path)
    assert [line['index'] for line in got] == [0, 1, 7, 3, 4, 5, 6]
    with caplog.at_level('INFO'):
      told.say()
    assert sorted(caplog.messages) == [
      'lines: 1 of empty inputs, answered all the same (first: in:4)',
      'lines: 1 with a carriage return inside, taken as text (first: in:2)',
      "lines: 1 with an 'index' of its own, passed on in place of ours (first:"
      ' in:3)',
      'lines: 2 JSON (first: in:3)',
      'lines: 2 JSON but no object, taken as plain text with all its marks'
      ' (first: in:5)',
      'lines: 2 empty, answered with null (first: in:1)',
      'lines: 3 plain text (first: in:2)',
    ]

  def test_quotes_of_a_table_are_told(self, tmp_path):
    content = b'inputs\tid\n"a"\t1\nb "c"\t"2"\n"\t3\n'
    got, told = _ask(content, tmp_path, 'a.tsv')
    assert [line['inputs'] for line in got] == ['"a"', 'b "c"', '"']
    assert told._counts == {told.QUOTED: 2}

  def test_what_needs_no_word_is_not_told(self, tmp_path, caplog):
    _, told = _ask(b'a\nb "c"\n', tmp_path)
    with caplog.at_level('INFO'):
      told.say()
    assert not caplog.messages


class TestRows:
  ROWS = [
    {'premise': 'a "b"', 'hypothesis': 'c, d', 'id': '7'},
    {'premise': 'é ' * 90_000, 'hypothesis': '{x}', 'id': '8'},
  ]

  @pytest.mark.parametrize(
    ('name', 'content'),
    [
      (
        'a.tsv',
        'premise\thypothesis\tid\na "b"\tc, d\t7\n\nL\t{x}\t8\n',
      ),
      (
        'a.csv',
        '\ufeffpremise,hypothesis,id\r\n"a ""b""","c, d",7\r\n\r\nL,{x},8\r\n',
      ),
      (
        'a.jsonl',
        '\ufeff{"premise": "a \\"b\\"", "hypothesis": "c, d", "id": "7"}\n \n'
        '{"premise": "L", "hypothesis": "{x}", "id": "8"}',
      ),
    ],
  )
  def test_files_are_read_as_data_are(self, tmp_path, name, content):
    content = content.replace('L', 'é ' * 90_000)
    got, told = _ask(content.encode(), tmp_path, name, answers_lib.Asking(ONE))
    assert [line['index'] for line in got] == [0, 1, 2]
    assert got[1] == {'index': 1, 'inputs': '', 'prediction': None}
    for line, row in zip(got[::2], self.ROWS, strict=True):
      assert line == {
        **row,
        'index': line['index'],
        'inputs': NLI.fill(row),
      }
    assert told._counts == {told.EMPTY: 1}

  @pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
      ('a.tsv', b'premise\thypothesis\na\n', r'a\.tsv:2: 1 cells, but'),
      ('a.tsv', b'premise\thypothesis\n\na\t\xff\n', r'a\.tsv:3: not UTF-8'),
      ('a.csv', b'premise,id\n"a\nb",1\n', r"a\.csv:3: no 'hypothesis'; there"),
      ('a.csv', b'x,id\na,1\n', r"a\.csv:2: no 'inputs'; there is .*, nor any"),
      ('a.jsonl', b'\n"a"\n', r'a\.jsonl:2: expected a JSON object, got str'),
      ('a.jsonl', b'plain\n', r'a\.jsonl:1: no JSON'),
      ('a.jsonl', b'{"premise": "a"}\n', r"a\.jsonl:1: no 'hypothesis'"),
    ],
  )
  def test_a_row_that_is_refused(self, tmp_path, name, content, message):
    with pytest.raises(InputError, match=message):
      _ask(content, tmp_path, name, answers_lib.Asking(ONE))

  def test_inputs_are_the_text_itself(self, tmp_path):
    rows = b'{"inputs": "i", "premise": "p", "hypothesis": "h"}\n'
    [line], _ = _ask(rows, tmp_path, 'a.jsonl', answers_lib.Asking(ONE))
    assert line['inputs'] == 'i'
    # Unless the task's data have a column of this name.
    own = ONE.renamed({'nli': 'q'}).with_tasks(['q'])
    own = PromptBundle(
      'multitask',
      'source',
      ('q',),
      own.arrays,
      texts={'q': TaskText('q: {inputs}')},
    )
    [line], _ = _ask(rows, tmp_path, 'a.jsonl', answers_lib.Asking(own))
    assert line['inputs'] == 'q: i'
    [line], _ = _ask(b'i', tmp_path, 'in', answers_lib.Asking(own))
    assert line['inputs'] == 'i'


class TestTasks:
  def test_each_line_has_its_own(self, tmp_path):
    content = (
      b'plain\n{"inputs": "a", "task": "nli"}\n{"text": "b"}\n'
      b'{"premise": "c", "hypothesis": "d", "task": "nli"}\n'
      b'{"sentence": "e", "task": "sst2"}\n'
    )
    got, _ = _ask(
      content, tmp_path, asking=answers_lib.Asking(_bundle(), 'sst2')
    )
    assert [(line['task'], line['inputs']) for line in got] == [
      ('sst2', 'plain'),
      ('nli', 'a'),
      ('sst2', 'sst2 sentence: b'),
      ('nli', 'nli premise: c hypothesis: d'),
      ('sst2', 'sst2 sentence: e'),
    ]

  @pytest.mark.parametrize(
    ('content', 'rank', 'message'),
    [
      (
        b'{"inputs": "a", "task": "nli"}\nb\n',
        False,
        '^in:2: say whose prompt to use: task is one of nli, sst2, squad',
      ),
      (
        b'{"inputs": "a", "task": "nil"}\n',
        False,
        "^in:1: .*no task 'nil'.*did you mean 'nli'",
      ),
      (b'{"inputs": "a", "task": 3}\n', False, "^in:1: 'task' is 3, expected"),
      (
        b'{"question": "a", "task": "squad"}\n',
        False,
        r"^in:1: no 'inputs'; there is \['question', 'task'\]",
      ),
      (
        b'{"inputs": "a", "task": "nli"}\n{"inputs": "a", "task": "squad"}\n',
        True,
        "^in:2: task 'squad': no label words",
      ),
    ],
  )
  def test_no_task_is_guessed(self, tmp_path, content, rank, message):
    with pytest.raises(InputError, match=message):
      _ask(content, tmp_path, asking=answers_lib.Asking(_bundle(), rank=rank))

  def test_tasks_of_one_prompt_have_templates_of_their_own(self, tmp_path):
    soft = PromptBundle(
      'soft',
      'source',
      ('nli', 'sst2'),
      {'prompt': np.ones((P, D))},
      texts={k: TEXTS[k] for k in ('nli', 'sst2')},
    )
    asking = answers_lib.Asking(soft)
    assert _ask(b'a\n', tmp_path, asking=asking)[0][0]['inputs'] == 'a'
    with pytest.raises(InputError, match="no 'inputs'"):
      _ask(b'{"premise": "a", "hypothesis": "b"}', tmp_path, asking=asking)


class TestInStep:
  def _answers(self, stream, batch_size, eager=True):
    """Answers by the batch's number and size."""
    told = answers_lib._Told()
    questions = answers_lib._questions(
      answers_lib._rows(stream, '-', told), answers_lib.Asking(), told
    )
    return answers_lib._answers(
      questions,
      lambda some, number: [{'prediction': (number, len(some))}] * len(some),
      batch_size,
      stream.ready if eager else None,
    )

  def test_a_line_is_answered_while_no_other_comes(self):
    read, write = os.pipe()
    signal.alarm(60)  # If it waits for more, it waits for ever.
    try:
      answers = self._answers(lines.Stream(read), 32)
      os.write(write, b'one\n')
      assert next(answers)['prediction'] == (0, 1)
      os.write(write, b'two\n\nthree\nhal')
      assert [next(answers)['prediction'] for _ in range(3)] == [
        (1, 2),
        None,
        (1, 2),
      ]
      os.write(write, b'f\n')
      assert next(answers)['inputs'] == 'half'
      os.close(write)
      assert list(answers) == []
    finally:
      signal.alarm(0)

  @pytest.mark.parametrize('eager', [True, False])
  def test_a_file_makes_full_batches(self, tmp_path, eager):
    # Empty lines take no place in a batch, so numbers do not move.
    stream = _stream(b'a\n\nb\nc\n\n\nd\ne\n\n', tmp_path)
    got = [a['prediction'] for a in self._answers(stream, 2, eager)]
    assert got == [
      *[(0, 2), None, (0, 2)],
      *[(1, 2), None, None, (1, 2)],
      *[(2, 1), None],
    ]

  def test_what_comes_before_a_broken_line_is_answered(self, tmp_path):
    answers = self._answers(_stream(b'a\nb\n{c\nd\n', tmp_path), 32)
    assert [next(answers)['inputs'] for _ in range(2)] == ['a', 'b']
    with pytest.raises(InputError, match='^-:3: no JSON'):
      next(answers)


class TestOutput:
  def test_a_closed_pipe_is_the_end(self, monkeypatch, capfd):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, 'w') as file:
      monkeypatch.setattr(sys, 'stdout', file)
      with pytest.raises(SystemExit) as e, quiet_pipe():
        answers_lib._write(iter([{'a': 1}] * 3), '-')
      assert e.value.code == 0
      print('what is left goes nowhere', file=file, flush=True)
    assert capfd.readouterr().err == ''

  def test_lines_for_readers_that_break_them_elsewhere(self, tmp_path):
    answers = [{'inputs': 'a\x85b\u2028c\u2029d é'}]
    path = tmp_path / 'a.jsonl'
    assert answers_lib._write(answers, str(path)) == 1
    text = path.read_text(encoding='utf-8')
    assert len(text.splitlines()) == 1
    assert 'é' in text
    assert json.loads(text) == answers[0]

  def test_a_device_is_written_to_and_stays(self):
    assert answers_lib._write([{'a': 1}], os.devnull) == 1
    assert not os.path.isfile(os.devnull)

  def test_a_full_disk(self, monkeypatch):
    class Full(io.StringIO):
      def flush(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys, 'stdout', Full())
    with pytest.raises(InputError, match='OUTPUT - cannot be .*No space left'):
      answers_lib._write([{'a': 1}], '-')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A tiny backbone and prompts on it."""
  root = tmp_path_factory.mktemp('infer')
  vocabulary = os.path.join(demo_folder(), 'spiece.model')
  huggingface.save_huggingface(
    str(root / 'backbone'),
    tiny.SERVED,
    tiny.served_backbone(),
    vocabulary_file=vocabulary,
  )
  _bundle().save(str(root / 'prompts'))
  return root


@pytest.fixture(scope='module')
def model(folder):
  return PromptedT5.from_pretrained(
    str(folder / 'backbone'), str(folder / 'prompts')
  )


class TestInfer:
  def _run(self, folder, tmp_path, content, **settings):
    (tmp_path / 'in.txt').write_text(content)
    settings = {
      'input': str(tmp_path / 'in.txt'),
      'output': str(tmp_path / 'out.jsonl'),
      'backbone': BackboneSource(str(folder / 'backbone')),
      'prompts': str(folder / 'prompts'),
      'decoding': Decoding(max_decode_length=5),
      'batch_size': 3,
      **settings,
    }
    count = infer.infer(**settings)
    text = (tmp_path / 'out.jsonl').read_text(encoding='utf-8')
    got = [json.loads(line) for line in text.splitlines()]
    assert len(got) == count
    return got

  CONTENT = (
    'the cat\n\n{"text": "a fern", "task": "sst2", "id": 5}\n'
    '{"premise": "p", "hypothesis": "what"}\nsst2 sentence: a fern\n'
  )

  def test_mixed_lines_have_their_own_prompts(self, folder, model, tmp_path):
    got = self._run(folder, tmp_path, self.CONTENT, prompt_task='nli')
    tasks = ['nli', 'nli', 'sst2', 'nli', 'nli']
    assert [a['task'] for a in got] == tasks
    assert got[2]['id'] == 5
    assert got[1]['prediction'] is None
    for a in got[:1] + got[2:]:
      [want] = model.generate([a['inputs']], a['task'], max_decode_length=5)
      assert a['prediction'] == want
    # The same text, another prompt.
    assert got[2]['inputs'] == got[4]['inputs']

  def test_labels_are_ranked(self, folder, model, tmp_path):
    got = self._run(
      folder, tmp_path, self.CONTENT, prompt_task='nli', rank_labels=True
    )
    assert 'probabilities' not in got[1]
    for a in got[:1] + got[2:]:
      answers = TEXTS[a['task']].answers()
      scores = model.score(
        [a['inputs']] * len(answers), list(answers.values()), a['task']
      )
      shares = scipy.special.softmax(np.array(scores, np.float64))
      want = dict(zip(answers, shares, strict=True))
      assert set(a['probabilities']) == set(want)
      for word, share in a['probabilities'].items():
        np.testing.assert_allclose(share, want[word], rtol=1e-5)
      assert list(a['probabilities']) == sorted(want, key=lambda w: -want[w])
      assert a['prediction'] == next(iter(a['probabilities']))

  @pytest.mark.parametrize(
    ('content', 'settings', 'message'),
    [
      ('a\n{b\n', {}, 'in.txt:2: no JSON'),
      ('a\n', {'prompt_task': 'nil'}, "did you mean 'nli'"),
      ('a\n', {'prompt_task': None}, 'in.txt:1: say whose prompt to use'),
      ('a\n', {'prompts': None}, "'nli' is given, but there are no PROMPTS"),
      ('a\n', {'output': '.'}, 'is a folder'),
      ('a\n', {'batch_size': 0}, 'batch_size is 0'),
      ('a\n', {'examples': Examples('rte')}, 'or INPUT, one of the two'),
      (
        'a\n',
        {'rank_labels': True, 'decoding': Decoding(num_beams=2)},
        'RANK_LABELS scores',
      ),
      ('a\n', {'input': '/nowhere/x.tsv'}, 'x.tsv cannot be read: No such'),
    ],
  )
  def test_told_before_anything_is_loaded(
    self, folder, tmp_path, monkeypatch, content, settings, message
  ):
    monkeypatch.setattr(backbone_lib, 'load_backbone', None)
    monkeypatch.setattr('mpt_jax.pretrained.load_backbone', None)
    with pytest.raises(InputError, match=message):
      self._run(
        folder, tmp_path, content, **({'prompt_task': 'nli'} | settings)
      )
    assert not (tmp_path / 'out.jsonl').exists()

  def test_the_input_is_not_overwritten(self, folder, tmp_path):
    (tmp_path / 'link').symlink_to(tmp_path / 'in.txt')
    for output in (tmp_path / 'in.txt', tmp_path / 'link'):
      with pytest.raises(InputError, match='is INPUT itself'):
        self._run(folder, tmp_path, 'a\n', output=str(output))
    assert (tmp_path / 'in.txt').read_text() == 'a\n'
