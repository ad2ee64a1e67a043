"""What `python -m tasks.show` says."""

import re

import pytest
import seqio

from mpt_jax import data
from tasks import mixtures, show
from tasks.table import TABLE
from tests.data import toys
from tests.helpers import encoder

pytestmark = pytest.mark.data


@pytest.fixture(autouse=True)
def _vocabulary(tmp_path):
  data.set_data_dir(tmp_path)
  data.use_vocabulary(toys.VOCABULARY)
  yield
  data.use_vocabulary(None)
  data.set_data_dir(None)


def _show(capsys, *argv):
  assert show.main(argv) == 0
  return capsys.readouterr().out


def test_the_registry_names_everything(capsys):
  out = _show(capsys)
  for row in TABLE.values():
    [line] = re.findall(rf'^{row.name} .*$', out, re.MULTILINE)
    assert row.tfds_name in line
    assert row.inputs in line
  for group, names in mixtures.GROUPS.items():
    assert re.search(rf'^{group} +{" ".join(names)}$', out, re.MULTILINE)


def test_a_task_from_raw_to_tokens(capsys):
  out = _show(capsys, 'cb', '--examples=1', '--inputs=20', '--prompt_length=5')
  assert 'SYNTHETIC DATA, since there is no super_glue/cb:1.0.2 in' in out
  raw = re.search(r'raw premise: (.*)', out)[1]
  hypothesis = re.search(r'raw hypothesis: (.*)', out)[1]
  assert f'inputs: cb hypothesis: {hypothesis} premise: {raw}\n' in out
  count, pieces = re.search(r'(\d+) tokens, cut to 15: (.*)', out).groups()
  assert len(pieces.split()) == int(count)
  text = data.get_vocabulary().encode(
    f'cb hypothesis: {hypothesis} premise: {raw}'
  )
  assert int(count) == len(text) + 1
  assert pieces.split()[-1] == '</s>'
  row = "prompt row   0 of PROMPT_TASKS = ['cb']"
  assert row in out
  # Most are longer than 15 tokens.
  cut = float(re.search(r'inputs .* 15 +([\d.]+)%', out)[1])
  assert 50 < cut <= 100


def test_what_an_encoder_reads(capsys, tmp_path):
  pytest.importorskip('tokenizers', reason='tokenizers is not installed')
  row = TABLE['cb']
  encoder.write(tmp_path, row.fillers.values())
  flags = ('--examples=1', '--inputs=300', '--targets=3')
  out = _show(capsys, 'cb', f'--vocabulary={tmp_path}', *flags)
  words = [row.fillers[label] for label in row.labels]
  both = zip(row.labels, words, strict=True)
  said = ' | '.join(f'{label} ={word}' for label, word in both)
  assert f'encoders     {row.masked} -> {said}\n' in out
  premise = re.search(r'raw premise: (.*)', out)[1]
  hypothesis = re.search(r'raw hypothesis: (.*)', out)[1]
  assert f'inputs: <mask> {premise}</s></s>{hypothesis}\n' in out
  assert re.search(r' tokens: <s> <mask> .* </s> </s> .* </s>\n', out)
  assert f'fillers, class by class: {" |".join(words)}\n' in out
  assert re.search(r'targets +3.0 +3 +3 +3 +0.0%', out)
  assert show.main(['stsb', f'--vocabulary={tmp_path}']) == 2
  assert "'stsb' is answered in words or numbers" in capsys.readouterr().err


def test_the_prompt_row_is_that_of_the_models_list(capsys):
  out = _show(capsys, 'sst2', '--examples=0')
  assert "prompt row   3 of PROMPT_TASKS = ['mnli', 'qnli'," in out
  out = _show(capsys, 'sst2', '--examples=0', '--prompt_tasks=rte,sst2')
  assert "prompt row   1 of PROMPT_TASKS = ['rte', 'sst2']" in out


def test_one_example_may_become_several_or_none(write_tfds, capsys):
  row = {
    'passage': 'ann met bob',
    'query': '@placeholder left',
    'entities': ['ann', 'bob'],
    'idx': {'passage': 0, 'query': 0},
  }
  rows = [{**row, 'answers': ['ann', 'bob']}] * 1001
  write_tfds(
    'super_glue/record:1.0.2',
    {'train': rows, 'validation': rows},
    'SYNTHETIC DATA of a test',
  )
  out = _show(capsys, 'record', '--examples=1')
  assert re.findall(r'^  targets: (.*)$', out, re.MULTILINE) == ['ann', 'bob']
  # The first 1,000 rows are the validation split.
  assert 'of the first 2 examples' in out


def test_a_mixture_and_its_shares(capsys):
  out = _show(capsys, 'superglue_targets_equal')
  names = re.findall(r'(\w+) +1 +20.0%', out)
  assert sorted(names) == sorted(mixtures.GROUPS['superglue_targets'])


@pytest.fixture
def own(tmp_path):
  """Registers `own_shown`, whose splits are not what they should be."""
  (tmp_path / 'train.tsv').write_text(
    'text\tlabel\nann saw bob\tyes\nann saw bob\tyes\nbob\tno\n'
    'bob\tyes\n\tno\nkate\t\n'
  )
  (tmp_path / 'test.tsv').write_text('text\tlabel\nbob\tno\nivan\tyes\n')
  yield data.register_task(
    'own_shown',
    # There is no validation split.
    tmp_path / '{split}.tsv',
    inputs='{text}',
    labels=('no', 'yes'),
  )
  seqio.TaskRegistry.remove('own_shown')


def test_splits_are_counted(own, capsys):
  out = _show(capsys, 'own_shown', '--examples=0')
  lines = out[out.index('splits, all examples') :].split('\n')
  assert [re.split(r' {2,}', line.strip()) for line in lines[1:4]] == [
    [
      *('examples', 'no label', 'empty inputs', 'duplicates'),
      *('conflicting', 'overlap with train'),
    ],
    ['train', '6', '1', '1', '1', '2', '-'],
    ['test', '2', '0', '0', '0', '0', '1'],
  ]
  assert re.match(r'  validation: .*validation.tsv .*No such file', lines[4])
  assert lines[5:7] == [
    '  train: no 2 (33.3 %), yes 3 (50.0 %)',
    '  test: no 1 (50.0 %), yes 1 (50.0 %)',
  ]


def test_large_data_are_counted_in_part(monkeypatch, capsys):
  monkeypatch.setattr(show, '_SURVEYED', 30)
  out = _show(capsys, 'cb', '--examples=0')
  assert 'splits, the first 30 examples of each' in out
  assert re.search(r'^  train +30 ', out, re.MULTILINE)


RUN = (
  '--gin_file=gin_configs/runs/teacher.gin',
  "--gin.INITIAL_CHECKPOINT_PATH='demo'",
  '--gin.PROMPT_LENGTH=5',
  "--gin.PROMPT_TASKS=['rte', 'own_shown']",
)


@pytest.mark.parametrize(
  ('macros', 'argv', 'limits'),
  [
    ({}, [], (351, 128)),
    ({'TASK_FEATURE_LENGTHS': {'inputs': 9, 'targets': 4}}, [], (4, 4)),
    ({'PROMPT_LENGTH': 7}, ['--inputs=10', '--targets=2'], (3, 2)),
  ],
)
def test_as_a_run_reads_it(own, capsys, macros, argv, limits):
  out = _show(
    capsys,
    'own_shown',
    *RUN,
    *(f'--gin.{name}={value}' for name, value in macros.items()),
    *argv,
  )
  found = re.findall(r'^  (?:inputs|targets) .* (\d+) +[\d.]+%$', out, re.M)
  assert tuple(map(int, found)) == limits
  assert "row   1 of PROMPT_TASKS = ['rte', 'own_shown']" in out
  assert 'demo_backbone/spiece.model' in out


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    (
      ['mnli', *RUN, '--gin.PROMPT_LENGHT=3'],
      "PROMPT_LENGHT sets a macro that no gin file uses.*'PROMPT_LENGTH'",
    ),
    (
      ['mnli', *RUN, '--gin.PROMPT_LENGTH=355'],
      r"TASK_FEATURE_LENGTHS\['inputs'\]=356 leaves no room .* at least 357",
    ),
    (['mnli', '--gin.PROMPT_LENGTH=3'], 'is given without --gin_file'),
    (['mnli', '--inputs=101'], '--inputs=101 leaves no room beside'),
    (
      ['mnli_digits', '--targets=2'],
      r"label word '0' has 3 tokens .* is 2: raise it to 3",
    ),
    (['mnly'], "error: 'mnly' is no registered task or mixture.*'mnli'"),
    (['mnli', '--data_dir=/nowhere'], "error: no data for 'glue/mnli:2.0.0'"),
    (['mnli', '--split=dev'], "no split 'dev'"),
    (['mnli', '--inputs=90'], '--inputs=90 leaves no room beside'),
    (['mnli', '--prompt_tasks=rte'], 'have no prompt'),
    (['--module=nowhere'], "no module 'nowhere'"),
  ],
)
def test_wrong_input_is_one_line(capsys, argv, message):
  assert show.main(argv) == 2
  err = capsys.readouterr().err
  assert re.search(message, err)
  assert err.count('\n') == 1
