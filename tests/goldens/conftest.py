"""Fixtures: TFDS folders of a few rows."""

from tests.helpers.tfds_data import write_tfds  # noqa: F401
