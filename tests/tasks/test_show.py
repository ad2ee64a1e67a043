"""What `python -m tasks.show` says."""

import re

import pytest

from mpt_jax import data
from tasks import mixtures, show
from tasks.table import TABLE
from tests.data import toys

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


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
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
