"""Mixtures. Rates come from the stored counts: no data are needed for them.

`<group>` mixes in proportion to the number of training examples, of which at
most 2^18 count; `<group>_equal` draws every task equally often.
"""

import seqio

from tasks.table import TABLE

# At most so many examples of a task count for its rate.
CAP = 2**18

GROUPS = {
  # The paper's six source tasks.
  'mpt_source': ('mnli', 'qnli', 'qqp', 'sst2', 'squad', 'record'),
  'glue_targets': (
    *('mnli', 'qqp', 'qnli', 'sst2', 'stsb', 'mrpc', 'rte', 'cola'),
  ),
  'superglue_targets': ('multirc', 'boolq', 'wic', 'wsc', 'cb'),
  'mrqa_targets': (
    *('mrqa_natural_questions', 'mrqa_hotpot_qa', 'mrqa_search_qa'),
    'mrqa_news_qa',
  ),
  'other_targets': ('winogrande', 'yelp_polarity', 'scitail', 'paws_wiki'),
}

for _group, _names in GROUPS.items():
  seqio.MixtureRegistry.add(
    _group, [(name, float(min(TABLE[name].weight, CAP))) for name in _names]
  )
  seqio.MixtureRegistry.add(f'{_group}_equal', [(name, 1.0) for name in _names])
