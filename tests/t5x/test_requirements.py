"""What is missing is said in one line; these run without T5X too."""

import pathlib
import re
import subprocess
import sys

from mpt_jax.t5x import requirements

ROOT = pathlib.Path(__file__).parents[2]
BLOCKED = """
import sys
sys.modules['{module}'] = None
from mpt_jax.t5x import __main__
__main__.main({argv})
"""


def run(module, argv=()):
  code = BLOCKED.format(module=module, argv=list(argv))
  return subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )


def test_t5x_absent_is_one_line_and_exit_code_2():
  for argv in ([], ['train', '--gin_file=x.gin']):
    done = run('t5x', argv)
    assert done.returncode == 2
    assert 'Traceback' not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith('error: T5X is not installed')
    assert line.endswith('pip install --no-deps -r requirements/t5x.txt')


def test_absent_attribute_or_argument_is_named():
  needed = {'json': ('dumps(indent)', 'JSONDecoder.decode')}
  assert requirements.find_problem(needed) is None
  problem = requirements.find_problem({'json': ('dumps(indnt)',)})
  assert problem.startswith('this T5X has no json.dumps(indnt)')
  problem = requirements.find_problem({'json': ('JSONDecoder.x',)})
  assert problem.startswith('this T5X has no json.JSONDecoder.x')
  problem = requirements.find_problem({'mpt_jax.nothing': ()})
  assert "needs the module 'mpt_jax.nothing'" in problem


def test_file_names_commits_and_lower_bounds():
  lines = (ROOT / 'requirements/t5x.txt').read_text().splitlines()
  lines = [x for x in lines if x and not x.startswith('#')]
  git = [x for x in lines if ' @ ' in x]
  assert [x.split(' @ ')[0] for x in git] == ['t5x', 'airio', 'jestimator']
  for line in git:
    assert re.fullmatch(r'\w+ @ git\+https://\S+@[0-9a-f]{40}', line), line
  assert requirements.TESTED in git[0]
  for line in lines:
    if line not in git:
      assert re.fullmatch(r'[\w.-]+>=[\d.]+', line), line
