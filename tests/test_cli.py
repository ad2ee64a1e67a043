"""Gin files and error manners: one line on stderr, exit code 2."""

import importlib
import inspect
import pathlib
import re
import shlex

import gin
import jax
import pytest

from mpt_jax import cli, t5
from mpt_jax.cli import flags, help, reader
from mpt_jax.engine import compilation
from mpt_jax.study import steps, worker
from mpt_jax.types import InputError

ROOT = pathlib.Path(__file__).parents[1]
RUNS = {
  'teacher': ('mpt_jax.train', 'train'),
  'source': ('mpt_jax.train', 'train'),
  'target': ('mpt_jax.train', 'train'),
  'finetune': ('mpt_jax.train', 'train'),
  'lora': ('mpt_jax.train', 'train'),
  'ia3': ('mpt_jax.train', 'train'),
  'adapter': ('mpt_jax.train', 'train'),
  'bitfit': ('mpt_jax.train', 'train'),
  'attempt': ('mpt_jax.train', 'train'),
  'full': ('mpt_jax.train', 'train'),
  'prefix': ('mpt_jax.train', 'train'),
  'deep': ('mpt_jax.train', 'train'),
  'projector': ('mpt_jax.train', 'train'),
  'eval': ('mpt_jax.eval', 'evaluate'),
  'infer': ('mpt_jax.infer', 'infer'),
  'answer': ('mpt_jax.infer', 'infer'),
  'export': ('mpt_jax.export', 'export'),
  'convert': ('mpt_jax.convert', 'convert'),
  'transfer_report': ('mpt_jax.transfer.report', 'report'),
  'transfer_add': ('mpt_jax.transfer.library', 'add'),
  'transfer_list': ('mpt_jax.transfer.library', 'listing'),
  'transfer_check': ('mpt_jax.transfer.library', 'check'),
  'transfer_matrix': ('mpt_jax.transfer.matrix', 'matrix'),
  'transfer_indicators': ('mpt_jax.transfer.indicators', 'indicators'),
  'transfer_retrieve': ('mpt_jax.transfer.retrieve', 'retrieve'),
  'transfer_speedup': ('mpt_jax.transfer.speedup', 'speedup'),
  'transfer_project': ('mpt_jax.transfer.project', 'project'),
  'transfer_all': ('mpt_jax.transfer.whole', 'whole'),
}
# Bound and run by other tests, or only included.
INCLUDED = (
  'baselines',
  'common',
  'demo',
  'demo_page',
  'demo_roberta',
  'demo_transfer',
  'method_common',
  'pipeline_common',
  'pretrain_demo',
  'pretrain_demo_large',
  'pretrain_demo_small',
  'transfer_common',
)
# Run or bound by the tests of studies, of own tasks and of the instrument, or
# only included.
STUDIES = (
  'common',
  'evidence',
  'instrument',
  'mpt_ablation',
  'mpt_few_shot',
  'mpt_glue',
  'mpt_mrqa',
  'mpt_nlg',
  'mpt_others',
  'mpt_superglue',
  'own_tasks',
  'small',
  'transfer',
)
# Run by T5X's programs; tests/t5x does so.
T5X = {
  'teacher': ['INITIAL_CHECKPOINT_PATH', 'MODEL_DIR', 'MIXTURE_OR_TASK_NAME'],
  'source': ['INITIAL_CHECKPOINT_PATH', 'MODEL_DIR', 'TEACHER_PROMPTS'],
  'target': [
    *('INITIAL_CHECKPOINT_PATH', 'MODEL_DIR', 'MIXTURE_OR_TASK_NAME'),
    'SOURCE_PROMPTS',
  ],
  'eval': ['CHECKPOINT_PATH', 'MIXTURE_OR_TASK_NAME', 'EVAL_OUTPUT_DIR'],
  'infer': ['CHECKPOINT_PATH', 'MIXTURE_OR_TASK_NAME', 'INFER_OUTPUT_DIR'],
}
REQUIRED = {
  'INITIAL_CHECKPOINT_PATH': "'backbone'",
  'MODEL_DIR': "'run'",
  'MIXTURE_OR_TASK_NAME': "'rte'",
  'TEACHER_PROMPTS': "'teachers/{task}'",
  'SOURCE_PROMPTS': "'source'",
  'PROMPTS': "'prompts'",
  'OUTPUT': "'out'",
  'SOURCES': "'sources'",
  'LIBRARY': "'library'",
  'TARGET_KEY': "'key'",
  'PROMPT_LABELS': "['yes', 'no']",
  'PROMPT_TEXT': "'a text'",
  'SOURCE_TASKS': "['rte', 'cb']",
  'PROMPT_FILE': "'prompt.npy'",
  'TRAIN_ON': "[['mnli']]",
}


@pytest.fixture(autouse=True)
def _clean_gin():
  gin.clear_config()
  yield
  gin.clear_config()


def _required(*names):
  """Bindings of those REQUIRED macros that the files ask for."""
  text = ''.join((ROOT / n).read_text() for n in names)
  for common in re.findall(r'runs/((?:transfer_)?common)\.gin', text):
    text += (ROOT / f'gin_configs/runs/{common}.gin').read_text()
  if 'runs/method_common.gin' in text:
    text += (ROOT / 'gin_configs/runs/common.gin').read_text()
  return [
    f'--gin.{macro}={value}'
    for macro, value in REQUIRED.items()
    if re.search(rf'^{macro} = %gin.REQUIRED', text, re.MULTILINE)
  ]


def _capture(monkeypatch, module, function, argv):
  """The arguments that gin would call the entry point with."""
  captured = {}
  target = getattr(importlib.import_module(module), function)
  configurable = gin.get_configurable

  def get(fn):
    assert fn is target
    configurable(fn)  # It must be bound at all.
    for (_, selector), value in gin.config._CONFIG.items():
      if selector.endswith(f'.{function}'):
        captured.update(value)
    return lambda: None

  monkeypatch.setattr(gin, 'get_configurable', get)
  cli.main(module, function, argv)
  return captured


@pytest.mark.parametrize('name', sorted(RUNS))
def test_every_run_file_binds_its_entry_point(monkeypatch, name):
  path = f'gin_configs/runs/{name}.gin'
  captured = _capture(
    monkeypatch, *RUNS[name], [f'--gin_file={path}', *_required(path)]
  )
  # What reads a folder needs no more than its path.
  assert len(captured) >= (1 if name.startswith('transfer_') else 4)
  function = getattr(importlib.import_module(RUNS[name][0]), RUNS[name][1])
  assert len(captured) >= min(4, len(inspect.signature(function).parameters))


@pytest.mark.parametrize('name', T5X)
@pytest.mark.parametrize('size', ['t5_base', 'mt5_xxl'])
def test_t5x_files_use_and_require_the_macros_they_name(name, size):
  path = ROOT / f'gin_configs/t5x/{name}.gin'
  head = path.read_text().partition('from __gin__')[0]
  files = [f'gin_configs/t5x/{name}.gin', f'gin_configs/models/{size}.gin']
  given = [f"{macro}='x'" for macro in T5X[name]]
  cli.check_macros(files, given)
  for macro in T5X[name]:
    assert f'--gin.{macro}=' in head
    others = [g for g in given if not g.startswith(f'{macro}=')]
    with pytest.raises(InputError, match=f'required macro {macro} is not set'):
      cli.check_macros(files, others)
  assert f'--gin_file=gin_configs/t5x/{name}.gin' in head
  with pytest.raises(InputError, match='sets a macro that no gin file uses'):
    cli.check_macros(files, [*given, 'BATCHSIZE=3'])


def test_every_shipped_gin_file_is_covered():
  known = {f'runs/{n}.gin' for n in RUNS}
  known |= {f'runs/{n}.gin' for n in INCLUDED}
  known |= {f'studies/{n}.gin' for n in STUDIES}
  known |= {f'models/{n}.gin' for n in t5.CONFIGS}
  known |= {f't5x/{n}.gin' for n in (*T5X, 'common')}
  known |= {f'prompts/{n}.gin' for n in PROMPT_INITS}
  folder = ROOT / 'gin_configs'
  shipped = {str(p.relative_to(folder)) for p in folder.rglob('*.gin')}
  assert shipped <= known, shipped - known


PROMPT_INITS = ('class_labels', 'file', 'string', 'uniform', 'vocabulary')


@pytest.mark.parametrize('init', PROMPT_INITS)
def test_every_initialiser_file_works_with_a_run(monkeypatch, init):
  files = ['gin_configs/runs/teacher.gin', f'gin_configs/prompts/{init}.gin']
  captured = _capture(
    monkeypatch,
    'mpt_jax.train',
    'train',
    [*(f'--gin_file={f}' for f in files), *_required(*files)],
  )
  config = captured['method'].scoped_configurable_fn()
  names = {
    'class_labels': 'ClassLabels',
    'file': 'FromFile',
    'string': 'FromString',
    'uniform': 'Uniform',
    'vocabulary': 'SampledVocabulary',
  }
  assert type(config.init).__name__ == names[init]
  assert config.length == 100
  assert captured['tasks'].scoped_configurable_fn() == 'rte'


@pytest.mark.parametrize('name', sorted(t5.CONFIGS))
def test_every_model_file_names_a_size(name):
  text = (ROOT / f'gin_configs/models/{name}.gin').read_text()
  assert text.endswith(f"MODEL = '{name}'\n")


def _error(capsys, module, function, argv):
  with pytest.raises(SystemExit) as e:
    cli.main(module, function, argv)
  assert e.value.code == 2
  lines = capsys.readouterr().err.strip().splitlines()
  errors = [line for line in lines if line.startswith('error: ')]
  assert len(errors) == 1, lines
  assert lines[-1] == errors[0], lines
  return errors[0]


def test_missing_gin_file(capsys):
  error = _error(
    capsys,
    'mpt_jax.train',
    'train',
    ['--gin_file=gin_configs/runs/teachr.gin'],
  )
  assert "'gin_configs/runs/teachr.gin' does not exist" in error
  assert "did you mean 'gin_configs/runs/teacher.gin'" in error


def test_missing_required_macro(capsys):
  error = _error(
    capsys,
    'mpt_jax.train',
    'train',
    [
      '--gin_file=gin_configs/runs/teacher.gin',
      "--gin.MODEL_DIR='x'",
      "--gin.INITIAL_CHECKPOINT_PATH='x'",
    ],
  )
  assert 'required macro MIXTURE_OR_TASK_NAME is not set' in error


def test_misspelt_macro_on_the_command_line(capsys):
  path = 'gin_configs/runs/teacher.gin'
  error = _error(
    capsys,
    'mpt_jax.train',
    'train',
    [f'--gin_file={path}', *_required(path), '--gin.BATCHSIZE=3'],
  )
  assert 'BATCHSIZE' in error
  assert "did you mean 'BATCH_SIZE'" in error


def test_misspelt_macro_in_a_users_file(capsys, tmp_path):
  own = tmp_path / 'own.gin'
  own.write_text(
    "include 'gin_configs/runs/teacher.gin'\nTRAIN_STEP = 3  # one S short\n"
  )
  error = _error(capsys, 'mpt_jax.train', 'train', [f'--gin_file={own}'])
  assert 'TRAIN_STEP' in error
  assert "did you mean 'TRAIN_STEPS'" in error


def test_misspelt_parameter_and_flag(capsys):
  path = 'gin_configs/runs/teacher.gin'
  arguments = [f'--gin_file={path}', *_required(path)]
  error = _error(
    capsys,
    'mpt_jax.train',
    'train',
    [*arguments, '--gin.train.train.learning_rat=3'],
  )
  assert 'learning_rat' in error
  error = _error(
    capsys, 'mpt_jax.train', 'train', [*arguments, '--tfds_datadir=x']
  )
  assert "'--tfds_datadir=x'; did you mean '--tfds_data_dir'" in error


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    (
      ['--tfds_data_dir=no/such'],
      '--tfds_data_dir=no/such does not exist; `python -m tasks.offline',
    ),
    (
      ['--hf_data_dir=no/such'],
      '--hf_data_dir=no/such does not exist; `python -m tasks.download NAME',
    ),
    (
      ['--hf_data_dir=a', '--tfds_data_dir=b'],
      '--tfds_data_dir=b and --hf_data_dir=a: give one of them',
    ),
  ],
)
def test_missing_data_folder(capsys, flags, words):
  path = 'gin_configs/runs/teacher.gin'
  error = _error(
    capsys,
    'mpt_jax.train',
    'train',
    [f'--gin_file={path}', *_required(path), *flags],
  )
  assert words in error


def test_a_folder_of_the_hub_is_handed_on(monkeypatch, tmp_path):
  import mpt_jax.data

  said = []
  monkeypatch.setattr(mpt_jax.data, 'set_data_dir', said.append)
  monkeypatch.setattr(cli, '_data_dir', None)
  cli.use_data_dir(f'hf:{tmp_path}/')
  assert said == [f'hf:{tmp_path}'] == [cli.data_dir()]
  flag = f'--hf_data_dir={tmp_path}'
  assert cli.data_flag(cli.data_dir()) == flag
  step = steps.Step('a', 'eval', ('a.gin',), {})
  assert f' {flag}' in worker.command(step, cli.data_dir())


def test_no_gin_file(capsys):
  assert 'no --gin_file' in _error(capsys, 'mpt_jax.eval', 'evaluate', [])


def _help(capsys, module, function, *argv):
  with pytest.raises(SystemExit) as e:
    cli.main(module, function, ['--help', *argv])
  assert e.value.code == 0
  return capsys.readouterr().out


COMMANDS = {**RUNS, 'demo': ('mpt_jax.pipeline', 'pipeline')}


@pytest.mark.parametrize(('module', 'function'), sorted(set(COMMANDS.values())))
def test_help_tells_how_to_use_it(capsys, module, function):
  out = _help(capsys, module, function)
  flags = {'--gin_file', '--gin_search_paths', '--debug'}
  data = {'--tfds_data_dir', '--hf_data_dir'}
  several = {
    *('--multiprocess_gpu', '--coordinator_address', '--process_count'),
    *('--process_index', '--initialization_timeout'),
    '--heartbeat_timeout',
  }
  if module in cli.flags_lib.READ_DATA:
    flags |= data
  if module in ('mpt_jax.train', 'mpt_jax.eval', 'mpt_jax.infer'):
    flags |= several
  if module in cli.flags_lib.DRY:
    flags |= {'--dry_run'}
  if module == 'mpt_jax.export':
    flags |= {'--push_to', '--upload'}
  options = out.partition('\noptions:')[2]
  assert set(re.findall(r'--[a-z_]\w+', options)) - {'--multiprocess'} == flags
  fitting = {n for n, place in COMMANDS.items() if place == (module, function)}
  told = set(re.findall(r'(?m)^  gin_configs/runs/(\w+)\.gin', out))
  assert fitting <= told <= fitting | {*INCLUDED} - {'common'}


@pytest.mark.parametrize(('module', 'function'), sorted(set(COMMANDS.values())))
def test_the_examples_of_a_command_have_all_that_it_needs(module, function):
  text = importlib.import_module(module).__doc__.replace('\\\n', ' ')
  lines = [shlex.split(line) for line in text.splitlines() if '-m mpt' in line]
  assert lines
  for words in lines:
    at = words.index('-m') + 1
    at += words[at] == 'mpt_jax.transfer'  # The verb is the next word.
    flags_of, bindings = flags.read(module, words[at + 1 :])
    own = [f'gin_configs/runs/transfer_{words[at]}.gin']
    cli.check_macros(flags_of.gin_file or own, bindings)
    given = words[words.index('-m') + 2 :]
    if module.startswith('mpt_jax.transfer.'):
      # A verb reads its own file.
      given[0] = f'--gin_file=gin_configs/runs/transfer_{given[0]}.gin'
    flags_of, bindings = flags.parse(module, given)
    cli.check_macros(flags_of.gin_file, bindings)
    assert "INITIAL_CHECKPOINT_PATH='demo'" in bindings or not any(
      'INITIAL' in binding for binding in bindings
    )


def test_help_with_a_gin_file_lists_its_macros(capsys, tmp_path):
  own = tmp_path / 'own.gin'
  own.write_text(
    "include 'gin_configs/runs/target.gin'\n"
    "EVAL_SPLIT = 'test'  # mine\n"
    'PATIENCE = 3         # a long\n'
    '                     # comment\n'
    '# no comment of a macro\n'
    'BATCH_SIZE = 7\n'
  )
  out = _help(
    capsys,
    'mpt_jax.train',
    'train',
    f'--gin_file={own}',
    "--gin.MODEL_DIR='run'",
    '--gin.TRAIN_STEPS=11',
  )
  required, _, others = out.partition('Macros and their values')
  names = re.findall(r'(?m)^  ([A-Z_]+)\b', required)
  assert names == [
    *('INITIAL_CHECKPOINT_PATH', 'MIXTURE_OR_TASK_NAME', 'SOURCE_PROMPTS'),
  ]
  told = {}
  for name, value, rest in re.findall(
    r'(?m)^  ([A-Z_]+) = (.*?)(?:  +|\n +)(.*(?:\n {30}.*)*)', others
  ):
    told[name] = (value, ' '.join(rest.split()))
  assert told['MODEL_DIR'][0] == "'run'"
  assert told['TRAIN_STEPS'][0] == '11'
  assert told['EVAL_SPLIT'] == ("'test'", 'a text; mine')
  assert told['PATIENCE'] == (
    '3',
    'a whole number, 1 or more, or None; a long comment',
  )
  # Without a comment, the docstring speaks.
  assert told['BATCH_SIZE'][0] == '7'
  assert told['BATCH_SIZE'][1].startswith('a whole number, 1 or more; B, the')
  assert told['PROMPT_TASKS'][0] == '%MIXTURE_OR_TASK_NAME'
  assert told['SHARD_BACKBONE'][1].startswith('True or False; split the')


def test_help_of_a_missing_gin_file(capsys):
  with pytest.raises(SystemExit) as e:
    cli.main('mpt_jax.train', 'train', ['--help', '--gin_file=teachr.gin'])
  assert e.value.code == 2
  assert capsys.readouterr().err.startswith("error: gin file 'teachr.gin' does")


@pytest.mark.parametrize(
  'path',
  sorted(
    str(p.relative_to(ROOT)) for p in (ROOT / 'gin_configs').rglob('*.gin')
  ),
)
def test_every_macro_of_a_shipped_file_is_explained(path):
  part = path.endswith(('common.gin', 'small.gin'))
  if path.startswith('gin_configs/prompts') or part:
    pytest.skip('not run by itself')
  files = [path]
  if 'models' in path:
    files.insert(0, 'gin_configs/runs/teacher.gin')
  told = {m.name: m for m in help.describe_macros(files, [])}
  text = reader.read(files)
  assert told.keys() == text.macros.keys() | text.used_macros
  bare = {n for n, m in told.items() if not m.comment}
  assert not bare, bare


def test_export_names_what_is_wrong(tmp_path):
  from mpt_jax.export import export

  with pytest.raises(InputError, match="'nyp'.*did you mean 'npy'"):
    export(prompts='x', output=str(tmp_path / 'o'), format='nyp')
  with pytest.raises(InputError, match='missing'):
    export(prompts=str(tmp_path / 'missing'), output=str(tmp_path / 'o'))
  assert not (tmp_path / 'o').exists()


def test_export_puts_together_and_renames(tmp_path):
  import numpy as np

  from mpt_jax.checkpoints.bundle import load_prompts
  from mpt_jax.export import export

  rng = np.random.default_rng(0)
  prompts = {n: rng.normal(size=(3, 4)).astype(np.float32) for n in ('a', 'b')}
  for name, prompt in prompts.items():
    np.save(tmp_path / f'{name}.npy', prompt)
  paths = [str(tmp_path / f'{name}.npy') for name in prompts]
  for format in ('bundle', 'peft', 'peft_composed', 'npy'):
    output = str(tmp_path / format)
    export(
      prompts=paths,
      output=output,
      format=format,
      rename={'a': 'cb'},
      tasks=['b', 'cb'],
    )
  for name, old in (('cb', 'a'), ('b', 'b')):
    for path in (
      tmp_path / 'bundle',
      tmp_path / 'peft',
      tmp_path / 'peft_composed' / name,
    ):
      got = load_prompts(str(path))
      np.testing.assert_array_equal(got.compose(name), prompts[old])
    got = np.load(tmp_path / f'npy/{name}.npy', allow_pickle=False)
    np.testing.assert_array_equal(got, prompts[old])
  assert load_prompts(str(tmp_path / 'peft')).task_names == ('b', 'cb')


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (b'A = 1 \xff\xfe', 'own.gin cannot be read: not UTF-8'),
    (b"include 'own.gin'", 'own.gin includes itself'),
    (b'infer.batch_size = ' + b'(' * 300, 'gin: '),
    (b'infer.batch_size = ' + b'-' * 3000 + b'1', 'gin: '),
    (b'infer.batch_size = @', 'gin: '),
  ],
)
def test_hostile_gin_files_are_one_line(tmp_path, monkeypatch, text, message):
  (tmp_path / 'own.gin').write_bytes(text)
  monkeypatch.chdir(tmp_path)
  with pytest.raises(InputError, match=message) as error:
    cli.configure(['own.gin'], [])
  assert str(error.value).isprintable()


def test_files_that_include_one_another_too_often(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for i in range(30):
    (tmp_path / f'{i}.gin').write_text(f"include '{i + 1}.gin'\n" * 2)
  (tmp_path / '30.gin').write_text('')
  with pytest.raises(InputError, match='more than 1000 gin files'):
    cli.configure(['0.gin'], [])


@pytest.mark.parametrize(
  'line',
  [
    '{"inputs": "half \\ud800"}',
    '{"inputs": "a", "\\udfff": 1}',
    '{"inputs": "a", "score": NaN}',
    '{"inputs": "a", "score": 1e999}',
    '{"inputs": "a", "deep": ' + '[' * 5000,
  ],
)
def test_lines_that_could_not_be_answered(line):
  import io

  from mpt_jax.engine import answers

  with pytest.raises(InputError, match='^in.jsonl:2: no '):
    list(answers._read(io.StringIO(f'a text\n{line}\n'), 'in.jsonl', None))


def test_a_line_without_end():
  from mpt_jax.engine import answers

  with open('/dev/zero', encoding='utf-8') as stream:
    with pytest.raises(InputError, match='^zero:1: the line has more than'):
      list(answers._read(stream, 'zero', None))


class TestCompilationCache:
  """Where compiled steps are kept; the setting of this process stays."""

  @pytest.fixture(autouse=True)
  def _no_folder_yet(self, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update('jax_compilation_cache_dir', None)
    yield
    jax.config.update('jax_compilation_cache_dir', before)

  def test_is_in_the_users_cache_folder(self, monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    compilation.use_cache()
    folder = tmp_path / 'mpt_jax/xla'
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700

  def test_leaves_the_users_choice(self, monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    jax.config.update('jax_compilation_cache_dir', '/elsewhere')
    compilation.use_cache()
    assert jax.config.jax_compilation_cache_dir == '/elsewhere'
    assert not list(tmp_path.iterdir())

  def test_a_folder_that_others_can_write_is_not_used(
    self, monkeypatch, tmp_path
  ):
    folder = tmp_path / 'mpt_jax/xla'
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    compilation.use_cache()
    assert jax.config.jax_compilation_cache_dir is None

  def test_a_folder_that_cannot_be_made_is_no_error(
    self, monkeypatch, tmp_path
  ):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    compilation.use_cache()
    assert jax.config.jax_compilation_cache_dir is None
