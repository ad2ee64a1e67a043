"""What is computed differently on a single CPU device, as users have it."""

import os
import pathlib
import subprocess
import sys

import pytest

TESTS = pathlib.Path(__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize(
  'files',
  [
    ('t5/test_products.py', 't5/test_attention.py'),
    pytest.param(('integration/test_precision.py',), marks=pytest.mark.long),
  ],
  ids=lambda files: files[0],
)
def test_on_one_device(files):
  run = subprocess.run(
    [sys.executable, '-m', 'pytest', '-q', '-n', '0']
    + [str(TESTS / name) for name in files],
    cwd=TESTS.parent,
    env={**os.environ, 'MPT_JAX_TEST_DEVICES': '1'},
    capture_output=True,
    text=True,
  )
  assert run.returncode == 0, run.stdout + run.stderr
  assert 'skipped' not in run.stdout, run.stdout
