"""docs/start.md: its commands, run as they stand on stand-ins."""

import os
import pathlib
import re
import shlex
import subprocess
import sys
import types

import gin
from huggingface_hub import constants
import pytest

from mpt_jax import cli, data
from mpt_jax.checkpoints import hub
from mpt_jax.types import InputError
from tasks import download
from tasks.offline import SYNTHETIC
from tests.helpers import hub_data
from tests.integration.conftest import save_backbone

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / 'docs/start.md').read_text()
NAME = 'google-t5/t5-small'
FUNCTIONS = {'eval': 'evaluate'}
# What makes its runs ones of seconds.
SMALL = {
  'train': {
    **{'PROMPT_LENGTH': 5, 'TRAIN_STEPS': 4, 'BATCH_SIZE': 4},
    **{'TASK_FEATURE_LENGTHS': {'inputs': 60, 'targets': 7}},
    'EVAL_EXAMPLES': 7,
  },
  'eval': {'TASK_FEATURE_LENGTHS': {'inputs': 60, 'targets': 7}},
}


def _steps():
  """Each command of the page, and the output below it."""
  found = re.findall(
    r'```bash\n(.*?)```(?:\n+ *```text\n(.*?)```)?', PAGE, re.DOTALL
  )
  return [
    (' '.join(command.replace('\\\n', ' ').split()), output)
    for command, output in found
  ]


class _Hub:
  """A `huggingface_hub` that has RTE."""

  def HfApi(self):  # noqa: N802
    return self

  def snapshot_download(self, repo, *, local_dir, **more):
    assert repo == 'nyu-mll/glue'
    labels = ('entailment', 'not_entailment')
    rows = [
      {
        **{'sentence1': f'word {i}', 'sentence2': 'a word'},
        **{'label': labels[i % 2], 'idx': i},
      }
      for i in range(40)
    ]
    hub_data.write(
      local_dir.removesuffix(f'/{repo}'),
      'glue/rte:2.0.0',
      {'train': rows, 'validation': rows[:9]},
      SYNTHETIC,
    )

  def verify_repo_checksums(self, repo, **more):
    return types.SimpleNamespace(mismatches=[], missing_paths=[])


def _shows(said, output):
  """Asserts that a command said what the page shows, but for numbers."""
  for line in filter(None, map(str.strip, output.splitlines())):
    pattern = re.escape(line).replace('…', '.*')
    pattern = re.sub(r'\d+(\\\.\d+)?', r'\\d+(?:\\.\\d+)?', pattern)
    assert re.search(pattern, said), (line, said)


@pytest.mark.slow
def test_the_commands_run(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
  steps = _steps()
  assert len(steps) == 8
  (clone, _), (install, _), (fetch, _), *steps = steps
  assert clone.startswith('git clone ')
  assert install.endswith("pip install '.[hub]'")
  # What the package itself tells to type where the model is not there.
  with pytest.raises(InputError) as error:
    hub.find(NAME)
  assert fetch == str(error.value).partition('network: ')[2]
  model = tmp_path / 'cache' / f'models--{NAME.replace("/", "--")}'
  (model / 'refs').mkdir(parents=True)
  (model / 'refs' / 'main').write_text('0123456789')
  save_backbone(ROOT, model / 'snapshots' / '0123456789')
  for command, output in steps:
    echo, _, python = command.rpartition(' | ')
    _, _, module, *words = shlex.split(python)
    verb = module.rpartition('.')[2]
    if verb == 'download':
      with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'huggingface_hub', _Hub())
        assert download.main(words) == 0
    elif echo:
      done = subprocess.run(
        ['bash', '-c', f'{echo} | {sys.executable} {python[len("python") :]}'],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
      )
      assert done.returncode == 0, done.stderr
      _shows(done.stdout, output)
      continue
    else:
      words += [f'--gin.{n}={v!r}' for n, v in SMALL.get(verb, {}).items()]
      gin.clear_config()
      cli.main(module, FUNCTIONS.get(verb, verb), words)
    _shows(''.join(capsys.readouterr()), output)
  data.set_data_dir(None)
  assert sorted(os.listdir('exported')) == [
    'README.md',
    'adapter_config.json',
    'adapter_model.safetensors',
  ]
