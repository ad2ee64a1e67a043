"""Writes what a study found: a page, its tables, its pictures, and as JSON."""

import importlib.metadata
import json
import os
import platform
from typing import Any

from mpt_jax.checkpoints import files
from mpt_jax.study import page, plots, results, tables

JSON = 'report.json'
MARKDOWN, HTML = 'report.md', 'report.html'
# The folder of the tables as CSV files.
TABLES = 'tables'

_PACKAGES = (
  'mpt_jax',
  'jax',
  'flax',
  'optax',
  'orbax-checkpoint',
  'seqio',
  'tensorflow-datasets',
  'tensorflow',
  'numpy',
)


def versions() -> dict[str, str]:
  """The versions of Python and of the packages that matter."""
  found = {'python': platform.python_version()}
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def write(folder: str) -> dict[str, Any]:
  """Writes the report of a finished pipeline.

  What is there and the same is left as it is; pictures are drawn anew if what
  they show has changed, one is missing, or another version made them.

  Args:
    folder: the pipeline's MODEL_DIR.

  Returns:
    The report, as in `report.json`.

  Raises:
    InputError: if a result is missing.
  """
  report = results.collect(folder)
  figures = plots.figures(report)
  report['plots'] = list(figures)
  report['written_by'] = versions().get('mpt_jax', 'unknown')
  content = files.json_bytes(report)
  drawn = [
    os.path.join(folder, name)
    for picture in figures
    for name in (picture, plots.vector(picture))
  ]
  same = _untimed(_read(os.path.join(folder, JSON))) == _untimed(content)
  if not same or not all(map(os.path.exists, drawn)):
    for name, draw in figures.items():
      plots.save(draw, os.path.join(folder, name))
  blocks = tables.blocks(report)
  texts = {
    **{os.path.join(TABLES, n): text for n, text in page.csv_files(blocks)},
    MARKDOWN: page.markdown(blocks),
    HTML: page.page(blocks, folder),
  }
  os.makedirs(os.path.join(folder, TABLES), exist_ok=True)
  made = {name: text.encode() for name, text in texts.items()}
  # Last: where it stands, the pictures are whole.
  for name, new in {**made, JSON: content}.items():
    path = os.path.join(folder, name)
    if _read(path) != new:
      files.write_file(path, new)
  return report


def _untimed(content: bytes | None) -> dict[str, Any]:
  """A report as it was read, without its times; {} of what is none."""
  try:
    found = json.loads(content or b'{}')
    return {k: v for k, v in found.items() if k not in results.TIMED}
  except (ValueError, AttributeError):
    return {}


def _read(path: str) -> bytes | None:
  if not os.path.exists(path):
    return None
  with open(path, 'rb') as f:
    return f.read()
