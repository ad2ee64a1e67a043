"""The tasks, and a mixture of two of them for a tiny pipeline."""

import seqio

import tasks  # noqa: F401

seqio.MixtureRegistry.add('two_sources', [('mnli', 1.0), ('sst2', 1.0)])
