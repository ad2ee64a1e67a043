"""Fixtures: TFDS folders of a few rows."""

import importlib.util

from tests.helpers.hub_data import write_hub  # noqa: F401
from tests.helpers.tfds_data import write_tfds  # noqa: F401

if importlib.util.find_spec('seqio') is None:
  collect_ignore = ['test_tasks.py']
