"""docs/tasks.md: what it prints is what the commands print."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.data

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / 'docs/tasks.md').read_text()


def _run(command, folder):
  """Runs a command of the docs as a user would, who has no data yet."""
  environment = {
    'HOME': str(folder),
    'PATH': f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}',
    'PYTHONPATH': str(ROOT),
  }
  return subprocess.run(
    ['bash', '-c', command],
    cwd=folder,
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  )


def _console():
  """Yields (command, what the docs say it prints)."""
  for block in re.findall(r'```console\n\$ (.*?)```', TEXT, re.DOTALL):
    lines = block.split('\n')
    count = 1
    while lines[count - 1].endswith('\\'):
      count += 1
    yield '\n'.join(lines[:count]), '\n'.join(lines[count:])


def _write_files(folder):
  files = re.findall(r'^`([\w./]+)`\n\n```\w+\n(.*?)```', TEXT, re.M | re.S)
  for name, content in files:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(content)
  assert [name for name, _ in files] == [
    'reviews/train.tsv',
    'reviews/test.tsv',
    'my_tasks.py',
  ]
  return dict(files)


@pytest.mark.slow
def test_commands_print_what_the_docs_say(tmp_path):
  files = _write_files(tmp_path)
  assert len(files['my_tasks.py'].strip().split('\n')) <= 12
  commands = dict(_console())
  assert len(commands) == 4
  for command, expected in commands.items():
    done = _run(command, tmp_path)
    assert done.stdout == expected, command
    if 'mpt_jax.train' in command:
      [score] = re.findall(r'reviews test: .*', done.stderr)
      assert f'`{score}`' in TEXT
  # And it says where a mistake is.
  with (tmp_path / 'reviews/train.tsv').open('a') as file:
    file.write('the film was red\tpositiv\n')
  [train] = [c for c in commands if 'mpt_jax.train' in c]
  with pytest.raises(subprocess.CalledProcessError) as e:
    _run(train.replace('runs/reviews', 'runs/other'), tmp_path)
  assert e.value.returncode == 2
  assert "train.tsv:10: label 'positiv' is outside" in e.value.stderr
  assert not (tmp_path / 'runs/other').exists()


def test_bash_blocks_name_flags_and_files_that_exist():
  for block in re.findall(r'```bash\n(.*?)```', TEXT, re.DOTALL):
    for path in re.findall(r'--gin_file=(\S+)', block):
      assert (ROOT / path).exists()
