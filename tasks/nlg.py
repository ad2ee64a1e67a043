"""Data to text: E2E and WebNLG, each in TFDS' two versions.

Both E2E builders hold the cleaned release, on which scores are not those of
the original one that most papers report. `web_nlg` is the 2017 challenge,
`gem_web_nlg_en` the English part of the 2020 one. Never compare across them.
Each input counts once in the metrics, with the references of all its rows.
"""

from tasks import metrics, postprocessors, preprocessors
from tasks.splits import own
from tasks.table import Task, register

TEXT_METRICS = (
  metrics.references_per_group(metrics.bleu),
  metrics.references_per_group(metrics.rouge_l),
  metrics.invalid,
)

# fmt: off
register([
  Task(
    name='e2e_cleaned', tfds_name='e2e_cleaned:0.1.0',
    counts={'train': 33_525, 'validation': 4_299, 'test': 4_693},
    splits=own(), prepare=preprocessors.slots_to_text,
    inputs='e2e_cleaned meaning_representation: {meaning_representation}',
    targets='{target}', keep=(),
    postprocess=postprocessors.references, metrics=TEXT_METRICS,
    note='the cleaned E2E data'),
  Task(
    name='gem_e2e_nlg', tfds_name='gem/e2e_nlg:1.1.0',
    counts={'train': 33_525, 'validation': 4_299, 'test': 4_693},
    splits=own(),
    inputs='gem_e2e_nlg meaning_representation: {meaning_representation}',
    targets='{target}', keep=('references', 'gem_id'),
    postprocess=postprocessors.references, metrics=TEXT_METRICS,
    note='the cleaned E2E data, as GEM has them'),
  Task(
    name='web_nlg', tfds_name='web_nlg:0.1.0',
    counts={'train': 18_102, 'validation': 2_268, 'test_all': 4_928},
    splits=own(test='test_all'), prepare=preprocessors.table_to_triples,
    inputs='web_nlg triples: {triples}', targets='{target}', keep=(),
    postprocess=postprocessors.references, metrics=TEXT_METRICS,
    note='the 2017 challenge; seen and unseen categories together'),
  Task(
    name='gem_web_nlg_en', tfds_name='gem/web_nlg_en:1.1.0',
    counts={'train': 35_426, 'validation': 1_667, 'test': 1_779},
    splits=own(), prepare=preprocessors.join_triples,
    inputs='gem_web_nlg_en triples: {triples}', targets='{target}',
    keep=('references', 'gem_id'),
    postprocess=postprocessors.references, metrics=TEXT_METRICS,
    note='the 2020 challenge, English'),
])
# fmt: on
