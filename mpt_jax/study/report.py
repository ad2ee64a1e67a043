"""Writes what a study found: `report.md`, `report.json` and plots."""

import importlib.metadata
import os
import platform
from typing import Any

from mpt_jax.checkpoints import files
from mpt_jax.study import plots, results, tables

JSON = 'report.json'
MARKDOWN = 'report.md'

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

  Args:
    folder: the pipeline's MODEL_DIR.

  Returns:
    The report, as in `report.json`.

  Raises:
    InputError: if a result is missing.
  """
  report = results.collect(folder)
  for name, figure in plots.figures(report).items():
    plots.save(figure, os.path.join(folder, name))
    report['plots'].append(name)
  files.write_file(os.path.join(folder, JSON), files.json_bytes(report))
  text = tables.markdown(report)
  files.write_file(os.path.join(folder, MARKDOWN), text.encode())
  return report
