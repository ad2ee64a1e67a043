"""Mixtures. Rates come from the numbers below: no data are needed for them."""

import seqio

# At most so many examples of a task count for its rate.
CAP = 2**18

# The paper's six source tasks and how many training examples each makes.
SOURCE_EXAMPLES = {
  'mnli': 392_702,
  'qnli': 104_743,
  'qqp': 363_846,
  'sst2': 67_349,
  'squad': 87_599,
  # One per answer of the 100,730 queries.
  'record': 138_854,
}

# Examples-proportional, with the cap.
seqio.MixtureRegistry.add(
  'mpt_source',
  [(name, float(min(n, CAP))) for name, n in SOURCE_EXAMPLES.items()],
)

# Every task equally often.
seqio.MixtureRegistry.add(
  'mpt_source_equal', [(name, 1.0) for name in SOURCE_EXAMPLES]
)
