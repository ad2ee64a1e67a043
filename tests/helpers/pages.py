"""Runs the code of a page or a notebook, in a plain Python of its own.

`python -m tests.helpers.pages docs/tour.ipynb` runs a notebook and stores what
comes out in it.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np

from tests.helpers import quick

ROOT = pathlib.Path(__file__).parents[2]
_NUMBER = re.compile(r'-?\d+(?:\.\d+)?(?:e-?\d+)?')
# Runs cells and, as a notebook does, shows what the last line of each is.
_RUNNER = """
import ast, base64, contextlib, gc, io, json, sys
gc.set_threshold(50_000, 20, 100)
cells, names = json.load(sys.stdin), {'__name__': '__main__'}
outputs = []
for cell in cells:
  body = ast.parse(cell).body
  last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
  said, shown = io.StringIO(), None
  with contextlib.redirect_stdout(said):
    exec(compile(ast.Module(body, []), 'cell', 'exec'), names)
    if last is not None:
      code = compile(ast.Expression(last.value), 'cell', 'eval')
      shown = eval(code, names)
  data = {}
  if hasattr(shown, '_repr_png_'):
    data['image/png'] = base64.b64encode(shown._repr_png_()).decode()
  elif shown is not None:
    data['text/plain'] = repr(shown)
  outputs.append({'stdout': said.getvalue(), **data})
for heavy in ('tensorflow', 'seqio', 'gin', 'IPython'):
  assert heavy not in sys.modules, heavy
json.dump(outputs, sys.stdout)
"""


def run(cells: list[str]) -> list[dict[str, str]]:
  """Runs cells in order, in a folder of their own.

  Returns:
    For each what it printed as `stdout` and, where its last line is a value,
    that as `text/plain` or `image/png`.
  """
  # As a user's, not the two devices of the tests.
  plain = {k: v for k, v in os.environ.items() if not k.startswith('XLA_')}
  with tempfile.TemporaryDirectory() as folder:
    done = subprocess.run(
      [sys.executable, '-c', _RUNNER],
      input=json.dumps(cells),
      cwd=folder,
      env={**plain, 'XLA_FLAGS': quick.FLAGS, 'PYTHONPATH': str(ROOT)},
      capture_output=True,
      text=True,
      check=False,
    )
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout)


def same(stored: str, found: str) -> bool:
  """Whether two outputs agree: words exactly, numbers roughly."""
  if _NUMBER.sub('#', stored.strip()) != _NUMBER.sub('#', found.strip()):
    return False
  numbers = [np.array(_NUMBER.findall(text), float) for text in (stored, found)]
  return np.allclose(*numbers, rtol=0.1, atol=0.1)


def main(path: str) -> None:
  """Stores the outputs of a notebook in it."""
  notebook = json.loads(pathlib.Path(path).read_text())
  cells = [c for c in notebook['cells'] if c['cell_type'] == 'code']
  outputs = run([''.join(cell['source']) for cell in cells])
  for number, (cell, output) in enumerate(zip(cells, outputs, strict=True), 1):
    cell.update(execution_count=number, outputs=[])
    if output['stdout']:
      lines = output['stdout'].splitlines(keepends=True)
      cell['outputs'].append(
        {'output_type': 'stream', 'name': 'stdout', 'text': lines}
      )
    data = {k: v for k, v in output.items() if k != 'stdout'}
    if data:
      cell['outputs'].append(
        {
          'output_type': 'execute_result',
          'execution_count': number,
          'data': data,
          'metadata': {},
        }
      )
  text = json.dumps(notebook, indent=1, ensure_ascii=False)
  pathlib.Path(path).write_text(text + '\n')


if __name__ == '__main__':
  main(sys.argv[1])
