"""What a user types: values of gin, paths, names that are ours, pipes."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

from mpt_jax import cli, types
from mpt_jax.cli import flags, reader
from mpt_jax.types import InputError
from tests.helpers import children

ROOT = pathlib.Path(__file__).parents[1]
TEACHER = 'gin_configs/runs/teacher.gin'
REQUIRED = [
  "MODEL_DIR='run'",
  "INITIAL_CHECKPOINT_PATH='demo'",
  "MIXTURE_OR_TASK_NAME='rte'",
]


def _error(*bindings, files=(TEACHER,)):
  with pytest.raises(InputError) as error:
    cli.check_macros(files, [*REQUIRED, *bindings])
  text = str(error.value)
  assert text.isprintable()
  return text


@pytest.mark.parametrize(
  ('binding', 'form'),
  [
    ('MODEL_DIR=runs/x', '"\'runs/x\'"'),
    ('MIXTURE_OR_TASK_NAME=rte', '"\'rte\'"'),
    ('INITIAL_CHECKPOINT_PATH=t5-base', '"\'t5-base\'"'),
    ('INITIAL_CHECKPOINT_PATH=/models/t5-base', '"\'/models/t5-base\'"'),
    ('MODEL_DIR=~/runs/x', '"\'~/runs/x\'"'),
    ('MODEL_DIR=runs/x y', '"\'runs/x y\'"'),
    ('MODEL_DIR=gs://b/x', '"\'gs://b/x\'"'),
    ('MODEL_DIR=2026-11-25', '"\'2026-11-25\'"'),
    ('MODEL_DIR=True1', '"\'True1\'"'),
    ("MODEL_DIR='runs/x", '"\'runs/x\'"'),
    ('MODEL_DIR="runs/x', '"\'runs/x\'"'),
    ('MODEL_DIR=', '"\'\'"'),
    ('MODEL_DIR=5', '"\'5\'"'),
    ('PROMPT_TASKS=[mnli, rte]', "\"['mnli', 'rte']\""),
    (
      'TASK_FEATURE_LENGTHS={inputs: 64, targets: 8}',
      "\"{'inputs': 64, 'targets': 8}\"",
    ),
  ],
)
def test_a_string_without_quotes(binding, form):
  name = binding.partition('=')[0]
  text = _error(binding)
  assert name in text
  assert 'a string needs quotes' in text
  assert text.endswith(f'--gin.{name}={form}')
  # What is offered is read, as a shell hands it over.
  [pasted] = subprocess.run(
    ['bash', '-c', f'printf %s --gin.{name}={form}'],
    capture_output=True,
    text=True,
    check=True,
  ).stdout.splitlines()
  cli.check_macros([TEACHER], [*REQUIRED, pasted.removeprefix('--gin.')])


@pytest.mark.parametrize(
  ('binding', 'message'),
  [
    ('KEEP_BEST=true', 'write True, or with quotes.*KEEP_BEST=True'),
    ('PATIENCE=none', 'write None, or with quotes.*PATIENCE=None'),
    ("PROMPT_TASKS=['a,b]", "quotes or brackets do not close.*'a', 'b'"),
    ("TASK_FEATURE_LENGTHS={'inputs': 64", 'quotes or brackets do not close'),
    ("TRAIN_STEPS='100'", r'TRAIN_STEPS must be a whole number.*=100$'),
    ('TRAIN_STEPS=-5', 'a whole number, 0 or more'),
    ('TRAIN_STEPS=1e4', 'TRAIN_STEPS must be .*--gin.TRAIN_STEPS=10000$'),
    ('TRAIN_STEPS=True', 'TRAIN_STEPS must be a whole number'),
    ('BATCH_SIZE=8.5', 'BATCH_SIZE=8.5: BATCH_SIZE must be a whole number'),
    ('BATCH_SIZE=None', 'BATCH_SIZE must be a whole number, 1 or more$'),
    ('LOG_PERIOD=0', 'LOG_PERIOD must be a whole number, 1 or more'),
    ('EVAL_PERIOD=-1', 'EVAL_PERIOD must be a whole number, 0 or more'),
    ("RANDOM_SEED='a'", 'RANDOM_SEED must be a whole number'),
    ("SHARED_LEARNING_RATE='0.3'", 'must be a number.*_RATE=0.3$'),
    ('SHARED_LEARNING_RATE=-0.3', 'SHARED_LEARNING_RATE must be a number, 0'),
    ('CLIP_NORM=1e999', 'CLIP_NORM must be a number, 0 or more, or None'),
    ('DROPOUT_RATE=1.0', 'a number from 0 to below 1'),
    ('NUM_SHOTS=0', 'NUM_SHOTS must be a whole number, 1 or more, or None'),
    ("KEEP_BEST='True'", 'must be True or False.*KEEP_BEST=True$'),
    ('MODEL_DIR=None', 'MODEL_DIR must be a text'),
    ("PROMPT_TASKS=['a', 1]", 'PROMPT_TASKS must be a name or a list of names'),
    (
      "TASK_FEATURE_LENGTHS={'inputs': 64}",
      "TASK_FEATURE_LENGTHS must be {'inputs': …, 'targets': …}",
    ),
    (
      "TASK_FEATURE_LENGTHS={'input': 64, 'targets': 8}",
      "TASK_FEATURE_LENGTHS must be {'inputs': …, 'targets': …}",
    ),
    ("train.Logging.log_period='a'", 'log_period must be a whole number'),
    ('TRAIN_STEPS=%EVAL_SPLIT', "EVAL_SPLIT = 'validation': EVAL_SPLIT must"),
  ],
)
def test_a_value_of_another_kind(binding, message):
  assert re.search(message, _error(binding)), _error(binding)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (
      'MODEL_DIR = runs/x',
      r'own\.gin:2: MODEL_DIR = runs/x: a string needs quotes: MODEL_DIR ='
      r" 'runs/x'$",
    ),
    (
      'PROMPT_TASKS = [\n  mnli,\n]',
      r"own\.gin:3: mnli,: a string needs quotes: 'mnli'$",
    ),
    ('BATCH_SIZE = 8.5', r'own\.gin:2: BATCH_SIZE = 8\.5: BATCH_SIZE must be'),
    ("train.train.seed = 'a'", r"own\.gin:2: train\.train\.seed = 'a': seed"),
  ],
)
def test_a_wrong_line_of_a_file(tmp_path, text, message):
  own = tmp_path / 'own.gin'
  own.write_text(f"include '{TEACHER}'\n{text}\n")
  error = _error(files=[str(own)])
  assert re.search(message, error), error


@pytest.mark.parametrize(
  ('arguments', 'code'), [('--gin.MODEL_DIR=runs/x', 2), ('--help', 0)]
)
def test_what_is_said_before_anything_is_loaded(arguments, code):
  done = subprocess.run(
    [
      *(sys.executable, '-X', 'importtime', '-m', 'mpt_jax.train'),
      *(f'--gin_file={TEACHER}', arguments),
    ],
    capture_output=True,
    text=True,
    check=False,
    cwd=ROOT,
  )
  assert done.returncode == code
  if code:
    assert 'a string needs quotes' in done.stderr.splitlines()[-1]
  else:
    assert 'Required macros' in done.stdout
  for heavy in ('tensorflow', 'seqio', 'orbax', 'jax', 'numpy'):
    assert f' {heavy}\n' not in done.stderr


def test_a_value_that_the_shell_cut():
  argv = [f'--gin_file={TEACHER}', '--gin.PROMPT_TASKS=[a,', 'b]']
  with pytest.raises(InputError, match='blanks needs quotes.*PROMPT_TASKS'):
    flags.parse('mpt_jax.export', argv)


@pytest.mark.parametrize(
  ('annotation', 'good', 'bad'),
  [
    ('Positive | None', [1, None], [0, '1', True, 1.5]),
    ('str | Sequence[str]', ['a', ['a'], ('a', 'b')], [1, [1], {}]),
    ('Mapping[str, int]', [{}, {'a': 1}], [{'a': 'b'}, {1: 1}, 'a']),
    ('bool', [True, 0, 1], ['True', 2, None]),
    ('float | str | None', [1, 0.5, 'A', None], [True, []]),
    ('t5.T5Config | str | None', ['t5_base', None], [5]),
    ('Any', [1, 'a', None, []], []),
    ('Share', [0, 0.5], [1, -0.1, float('nan')]),
    ('Rate', [0, 3], [-1, float('inf'), float('nan')]),
  ],
)
def test_annotations(annotation, good, bad):
  node = ast.parse(annotation, mode='eval').body
  for value in good:
    assert types.expected_by(node, value) == '', value
  for value in bad:
    assert types.expected_by(node, value), value
  assert types.expected_by(node, types.ANYTHING) == ''


# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('path', 'want'),
  [
    ('runs/x', 'runs/x'),
    ('./runs//x/', 'runs/x'),
    ('~/runs/x/', '{home}/runs/x'),
    ('~', '{home}'),
    ('gs://bucket/runs/x/', 'gs://bucket/runs/x/'),
    ('s3://bucket/x', 's3://bucket/x'),
    ('/a/b/../c', '/a/c'),
    ('./~x', '~x'),
    (pathlib.Path('a/b'), 'a/b'),
  ],
)
def test_paths(monkeypatch, tmp_path, path, want):
  monkeypatch.setenv('HOME', str(tmp_path))
  assert types.local_path(path) == want.format(home=tmp_path)


@pytest.mark.parametrize('path', ['', ' ', '~nobody_of_this_name/x'])
def test_paths_that_are_none(path):
  with pytest.raises(InputError):
    types.local_path(path)


def test_every_reader_and_writer_knows_the_home_folder(monkeypatch, tmp_path):
  import numpy as np

  from mpt_jax import export, pretrained
  from mpt_jax.checkpoints import files, load_backbone, lock
  from mpt_jax.checkpoints.bundle import load_prompts

  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  np.save(tmp_path / 'a.npy', np.ones((3, 64), np.float32))
  demo = tmp_path / 'demo_backbone'
  demo.symlink_to(ROOT / 'tasks/offline/demo_backbone')
  assert load_prompts('~/a.npy').prompt_length == 3
  assert load_backbone('~/demo_backbone/').config.emb_dim == 64
  export.export(prompts='~/a.npy', output='~/out', format='npy')
  assert (tmp_path / 'out/a.npy').exists()
  files.write_file('~/b/c.json', b'{}')
  assert (tmp_path / 'b/c.json').exists()
  with lock.hold('~/run'):
    assert (tmp_path / 'run/.lock').exists()
  model = pretrained.PromptedT5.from_pretrained(
    '~/demo_backbone',
    prompts='~/a.npy',
    vocabulary='~/demo_backbone/spiece.model',
  )
  assert model.bundle.prompt_length == 3
  with pytest.raises(InputError, match='hdfs://b/run is not a local path'):
    with lock.hold('hdfs://b/run'):
      pass
  assert not (tmp_path / '~').exists()
  assert not (tmp_path / 'hdfs:').exists()


def test_gin_files_in_the_home_folder(monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'own.gin').write_text(f"include '{TEACHER}'\n")
  [found] = cli.check_macros(['~/own.gin'], REQUIRED)
  assert found == str(tmp_path / 'own.gin')
  [found] = cli.check_macros(['own.gin'], REQUIRED, '~,elsewhere')
  assert found == str(tmp_path / 'own.gin')


# ---------------------------------------------------------------------------


IMPORTS = """
from mpt_jax import cli
from mpt_jax.types import prefer_own_packages
prefer_own_packages()
import tasks.splits, gin_configs, mine
print(tasks.__file__, gin_configs.__file__, mine.metrics.__file__)
print(*cli.check_macros(['gin_configs/runs/teacher.gin'], [
  "MODEL_DIR='x'", "INITIAL_CHECKPOINT_PATH='x'", "MIXTURE_OR_TASK_NAME='x'"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['module', 'package', 'folder'])
def test_what_lies_in_the_working_folder_changes_nothing(tmp_path, kind):
  (tmp_path / 'mine.py').write_text('from tasks import metrics\n')
  gin_configs = tmp_path / 'gin_configs/runs'
  gin_configs.mkdir(parents=True)
  (gin_configs / 'common.gin').write_text('NOT_OURS = 1\n')
  (gin_configs / 'teacher.gin').write_text('NOT_OURS = 1\n')
  if kind == 'module':
    (tmp_path / 'tasks.py').write_text('raise SystemExit("theirs")\n')
  else:
    (tmp_path / 'tasks').mkdir()
    (tmp_path / 'tasks/metrics.py').write_text('')
  if kind == 'package':
    for folder in ('tasks', 'gin_configs'):
      (tmp_path / folder / '__init__.py').write_text('raise ValueError\n')
  done = children.run(['-c', IMPORTS], cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == [
    str(ROOT / 'tasks/__init__.py'),
    str(ROOT / 'gin_configs/__init__.py'),
    str(ROOT / 'tasks/metrics.py'),
    str(ROOT / 'gin_configs/runs/teacher.gin'),
  ]
  if kind != 'package':
    return
  command = ['-m', 'mpt_jax.data', 'mpt_source_equal']
  done = children.run(command, cwd=tmp_path)
  assert done.stdout.startswith('mixture mpt_source_equal\n'), done.stderr


def test_a_gin_file_with_a_dot_in_front_is_the_users(
  monkeypatch, tmp_path, caplog
):
  monkeypatch.chdir(tmp_path)
  own = tmp_path / TEACHER
  own.parent.mkdir(parents=True)
  own.write_text('# mine\n' + (ROOT / TEACHER).read_text())
  reader._tell_of_namesake.cache_clear()
  assert cli.check_macros([TEACHER], REQUIRED) == [str(ROOT / TEACHER)]
  assert f'yours is ./{TEACHER}' in caplog.text
  assert cli.check_macros([f'./{TEACHER}'], REQUIRED) == [TEACHER]


@pytest.mark.slow
@pytest.mark.parametrize(
  'words',
  [
    '-m tasks.show',
    '-m mpt_jax.train --help',
    '-m tasks.offline --help',
  ],
)
def test_a_closed_pipe_is_no_traceback(words):
  done = subprocess.run(
    # The reader is gone before anything is written.
    f'{sys.executable} {words} | true; exit ${{PIPESTATUS[0]}}',
    shell=True,
    executable='/bin/bash',
    capture_output=True,
    text=True,
    check=False,
    cwd=ROOT,
  )
  assert (done.returncode, done.stderr) == (0, '')


def test_a_broken_pipe_of_another_kind_is_an_error():
  with pytest.raises(BrokenPipeError), types.quiet_pipe():
    raise BrokenPipeError('a socket')
