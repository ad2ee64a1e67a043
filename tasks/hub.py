"""Where the hub (huggingface.co/datasets) keeps the data of each task.

A row for each TFDS data set of the tables: repository, folder, columns, label
names. Seen for this table, in stored copies:

  card or file list (splits, sizes, files): nyu-mll/glue, aps/super_glue,
    mrqa-workshop/mrqa, allenai/scitail, allenai/winogrande,
    google-research-datasets/paws, fancyzhx/yelp_polarity,
    tuetschek/e2e_nlg_cleaned, GEM/gem, webnlg-challenge/web_nlg
  loader that wrote the columns (github.com/huggingface/datasets,
    datasets/NAME/NAME.py): glue, super_glue, mrqa, scitail, winogrande, paws,
    yelp_polarity, e2e_nlg_cleaned, gem, web_nlg

Not seen: the file lists of rajpurkar/squad, stanfordnlp/imdb, stanfordnlp/snli
and of the converted branch of webnlg-challenge/web_nlg; the Parquet files
themselves.
"""

from collections.abc import Callable, Mapping
import dataclasses
import glob
import itertools
import os
from typing import TYPE_CHECKING, Any

from mpt_jax.types import InputError

if TYPE_CHECKING:
  import pyarrow as pa

# What a column holds.
TEXT, TEXTS, INT, INTS, REAL = 'text', 'texts', 'int', 'ints', 'real'
LISTS = 'lists of texts'
# A class: its id, whose names the file may say, or its name.
CLASS, WORD = 'class', 'word'

# A branch that the hub makes of data sets that are scripts or other files.
CONVERTED = 'refs/convert/parquet'

# (our split of TFDS, row, its number in the split) -> TFDS's key of the row.
Key = Callable[[str, Mapping[str, Any], int], str | int]


def _by_number(split: str, row: Mapping[str, Any], number: int) -> int:
  del split, row
  return number


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubData:
  """One data set on the hub.

  Attributes:
    repo: 'OWNER/NAME'.
    config: the folder in it; '' is the top.
    columns: what TFDS calls a feature, with '/' between nested names -> (what
      the hub calls it, what it holds). All others are left alone.
    labels: names of the classes, in the order of their ids.
    splits: TFDS split -> the hub's, where they differ.
    only: (column, value, TFDS split or None for all) of the rows to take.
    make: makes columns of TFDS's names from those of the hub, a table from a
      table, where renaming does not do it.
    key: what TFDS knows a row by, which fixes its order; None is not known on
      the hub, whose own order is kept.
    key_columns: the columns that `key` looks at.
    revision: the branch that holds Parquet files.
    note: what differs from TFDS.
  """

  repo: str
  config: str
  columns: Mapping[str, tuple[str, str]]
  labels: tuple[str, ...] = ()
  splits: Mapping[str, str] = dataclasses.field(default_factory=dict)
  only: tuple[str, str, str | None] | None = None
  make: 'Callable[[pa.Table], pa.Table] | None' = None
  key: Key | None = _by_number
  key_columns: tuple[str, ...] = ()
  revision: str = 'main'
  note: str = ''

  @property
  def pattern(self) -> str:
    """The files of the data set in its repository."""
    return f'{self.config}/*' if self.config else '*.parquet'

  @property
  def folder(self) -> str:
    """What the paths of these files begin with."""
    return f'{self.config}/' if self.config else ''

  @property
  def cached(self) -> str:
    """What the library `datasets` calls its Arrow files, before the split."""
    return self.repo.rpartition('/')[2]

  def place(self, root: str) -> str | None:
    """Returns where a folder of data sets has this one; None if nowhere.

    Args:
      root: holds OWNER/NAME as fetched, or is the hub's cache, which has
        datasets--OWNER--NAME/snapshots/REVISION, or that of the library
        `datasets`, which has OWNER___NAME/CONFIG/VERSION/HASH.

    Raises:
      InputError: if it is there more than once.
    """
    snapshots = f'datasets--{self.repo.replace("/", "--")}/snapshots/*'
    arrow = f'{self.repo.replace("/", "___")}/{self.config or "default"}/*/*'
    patterns = f'{self.repo}/{self.config}', f'{snapshots}/{self.config}', arrow
    found = [
      path.rstrip('/')
      for pattern in patterns
      for path in sorted(glob.glob(os.path.join(glob.escape(root), pattern)))
      # `datasets` fills HASH.incomplete, and leaves locks beside its folders.
      if os.path.isdir(path) and not path.endswith('.incomplete')
    ]
    if len(found) > 1:
      raise InputError(
        f'{self.repo} is {len(found)} times in --hf_data_dir={root}: leave one'
        f' of {found}'
      )
    return found[0] if found else None


def command(data: HubData, root: str) -> str:
  """Returns the shell command that fetches a data set into a folder."""
  branch = f' --revision {data.revision}' * (data.revision != 'main')
  return (
    f'hf download {data.repo} --repo-type dataset{branch} --include'
    f' "{data.pattern}" --local-dir {root}/{data.repo}'
  )


def _own(**kinds: str) -> dict[str, tuple[str, str]]:
  """Columns that TFDS calls by the same names; `__` stands for '/'."""
  names = {name.replace('__', '/'): kind for name, kind in kinds.items()}
  return {name: (name, kind) for name, kind in names.items()}


def _texts(names: str, **more: str) -> dict[str, tuple[str, str]]:
  return _own(**dict.fromkeys(names.split(), TEXT), **more)


def _idx(split: str, row: Mapping[str, Any], number: int) -> int:
  del split, number
  return row['idx']


def _glue(config: str, texts: str, *labels: str) -> HubData:
  kind = CLASS if labels else REAL
  return HubData(
    repo='nyu-mll/glue',
    config=config,
    columns=_texts(texts, idx=INT, label=kind),
    labels=labels,
    key=_idx,
    key_columns=('idx',),
  )


def _super_glue(
  config: str,
  columns: Mapping[str, tuple[str, str]],
  *labels: str,
  key: Key = _idx,
) -> HubData:
  return HubData(
    repo='aps/super_glue',
    config=config,
    columns=columns,
    labels=labels,
    key=key,
    key_columns=('idx',),
  )


def _multirc_key(split: str, row: Mapping[str, Any], number: int) -> str:
  del split, number
  idx = row['idx']
  return f'{idx["paragraph"]}_{idx["question"]}_{idx["answer"]}'


def _record_key(split: str, row: Mapping[str, Any], number: int) -> int:
  del split, number
  return row['idx']['query']


def _named(column: str) -> Key:
  def key(split: str, row: Mapping[str, Any], number: int) -> str:
    del split, number
    return str(row[column])

  return key


def _mrqa(subset: str) -> HubData:
  def key(split: str, row: Mapping[str, Any], number: int) -> str:
    del number
    return f'{split}+{subset}_{row["qid"]}'

  return HubData(
    repo='mrqa-workshop/mrqa',
    config='plain_text',
    columns=_texts('qid question context', answers=TEXTS),
    only=('subset', subset, None),
    key=key,
    key_columns=('qid',),
  )


def _slots(table: 'pa.Table') -> 'pa.Table':
  """Makes TFDS's table of E2E's 'name[Aromi], area[riverside]'."""
  import pyarrow as pa

  headers, contents = [], []
  for text in table['meaning_representation'].to_pylist():
    slots = [piece.partition('[') for piece in text.split(', ')]
    headers.append([name for name, _, _ in slots])
    contents.append([value[:-1] for _, _, value in slots])
  return pa.table(
    {
      'input_text/table/column_header': pa.array(
        headers, pa.list_(pa.string())
      ),
      'input_text/table/content': pa.array(contents, pa.list_(pa.string())),
      'target_text': table['human_reference'],
    }
  )


def _texts_of_triples(table: 'pa.Table') -> 'pa.Table':
  """Makes a row for each text of WebNLG's sets of triples."""
  import pyarrow as pa

  contents, numbers, targets = [], [], []
  sets = table['modified_triple_sets/mtriple_set'].to_pylist()
  for versions, texts in zip(sets, table['lex/text'].to_pylist(), strict=True):
    triples = list(itertools.chain.from_iterable(versions))
    parts = [triple.split(' | ')[:3] for triple in triples]
    for text in texts:
      contents.append(list(itertools.chain.from_iterable(parts)))
      numbers.append([n for n, some in enumerate(parts) for _ in some])
      targets.append(text)
  return pa.table(
    {
      'input_text/table/content': pa.array(contents, pa.list_(pa.string())),
      'input_text/table/row_number': pa.array(numbers, pa.list_(pa.int16())),
      'target_text': pa.array(targets, pa.string()),
    }
  )


_ENTAILMENT = ('entailment', 'not_entailment')
_FALSE_TRUE = ('False', 'True')
_GEM = dict.fromkeys(('gem_id', 'gem_parent_id', 'target'), TEXT)
_WSC = _texts(
  'text span1_text span2_text',
  span1_index=INT,
  span2_index=INT,
  idx=INT,
  label=CLASS,
)

# fmt: off
DATA: Mapping[str, HubData] = {
  'glue/mnli:2.0.0': _glue('mnli', 'premise hypothesis', 'entailment',
                           'neutral', 'contradiction'),
  'glue/qnli:2.0.0': _glue('qnli', 'question sentence', *_ENTAILMENT),
  'glue/qqp:2.0.0': _glue('qqp', 'question1 question2', 'not_duplicate',
                          'duplicate'),
  'glue/sst2:2.0.0': _glue('sst2', 'sentence', 'negative', 'positive'),
  'glue/stsb:2.0.0': _glue('stsb', 'sentence1 sentence2'),
  'glue/mrpc:2.0.0': _glue('mrpc', 'sentence1 sentence2', 'not_equivalent',
                           'equivalent'),
  'glue/rte:2.0.0': _glue('rte', 'sentence1 sentence2', *_ENTAILMENT),
  'glue/cola:2.0.0': _glue('cola', 'sentence', 'unacceptable', 'acceptable'),
  'super_glue/multirc:1.0.2': _super_glue(
    'multirc', _texts('paragraph question answer', idx__paragraph=INT,
                      idx__question=INT, idx__answer=INT, label=CLASS),
    *_FALSE_TRUE, key=_multirc_key),
  'super_glue/boolq:1.0.2': _super_glue(
    'boolq', _texts('question passage', idx=INT, label=CLASS), *_FALSE_TRUE),
  'super_glue/wic:1.0.2': _super_glue(
    'wic', _texts('word sentence1 sentence2', start1=INT, end1=INT,
                  start2=INT, end2=INT, idx=INT, label=CLASS), *_FALSE_TRUE),
  'super_glue/wsc.fixed:1.0.2': _super_glue('wsc.fixed', _WSC, *_FALSE_TRUE),
  'super_glue/cb:1.0.2': _super_glue(
    'cb', _texts('premise hypothesis', idx=INT, label=CLASS), 'entailment',
    'contradiction', 'neutral'),
  'super_glue/rte:1.0.2': _super_glue(
    'rte', _texts('premise hypothesis', idx=INT, label=CLASS), *_ENTAILMENT),
  'super_glue/copa:1.0.2': _super_glue(
    'copa', _texts('premise choice1 choice2 question', idx=INT, label=CLASS),
    'choice1', 'choice2'),
  'super_glue/record:1.0.2': _super_glue(
    'record', _texts('passage query', entities=TEXTS, answers=TEXTS,
                     idx__passage=INT, idx__query=INT), key=_record_key),
  'squad/v1.1:3.0.0': HubData(
    repo='rajpurkar/squad', config='plain_text',
    columns=_texts('id title question context', answers__text=TEXTS,
                   answers__answer_start=INTS),
    key=_named('id'), key_columns=('id',)),
  'mrqa/natural_questions:1.0.0': _mrqa('NaturalQuestionsShort'),
  'mrqa/hotpot_qa:1.0.0': _mrqa('HotpotQA'),
  'mrqa/news_qa:1.0.0': _mrqa('NewsQA'),
  'mrqa/search_qa:1.0.0': _mrqa('SearchQA'),
  'winogrande:1.2.0': HubData(
    repo='allenai/winogrande', config='winogrande_xl',
    columns={**_texts('sentence option1 option2'), 'label': ('answer', WORD)},
    labels=('1', '2'), splits={'train_xl': 'train'}, key=None,
    note='other rows are held out of train: TFDS orders them by an id that'
         ' the hub lacks'),
  'yelp_polarity_reviews:0.2.0': HubData(
    repo='fancyzhx/yelp_polarity', config='plain_text',
    columns=_texts('text', label=CLASS), labels=('1', '2')),
  'imdb_reviews/plain_text:1.0.0': HubData(
    repo='stanfordnlp/imdb', config='plain_text',
    columns=_texts('text', label=CLASS), labels=('neg', 'pos'), key=None,
    note='other rows are held out of train: TFDS orders them by file names that'
         ' the hub lacks, where all of one class come first'),
  'snli:1.1.0': HubData(
    repo='stanfordnlp/snli', config='plain_text',
    columns=_texts('premise hypothesis', label=CLASS),
    labels=('entailment', 'neutral', 'contradiction')),
  'sci_tail:1.0.0': HubData(
    repo='allenai/scitail', config='tsv_format',
    columns=_texts('premise hypothesis', label=WORD),
    labels=('entails', 'neutral')),
  'paws_wiki/labeled_final_tokenized:1.1.0': HubData(
    repo='google-research-datasets/paws', config='labeled_final',
    columns=_texts('sentence1 sentence2', label=CLASS), labels=('0', '1'),
    key=_named('id'), key_columns=('id',)),
  'e2e_cleaned:0.1.0': HubData(
    repo='tuetschek/e2e_nlg_cleaned', config='default',
    columns=_texts('meaning_representation human_reference'), make=_slots,
    revision=CONVERTED),
  'gem/e2e_nlg:1.1.0': HubData(
    repo='GEM/gem', config='e2e_nlg',
    columns=_own(**_GEM, meaning_representation=TEXT, references=TEXTS),
    revision=CONVERTED),
  'gem/web_nlg_en:1.1.0': HubData(
    repo='GEM/gem', config='web_nlg_en',
    columns=_own(**_GEM, input=TEXTS, references=TEXTS, category=TEXT,
                 webnlg_id=TEXT), revision=CONVERTED),
  'web_nlg:0.1.0': HubData(
    repo='webnlg-challenge/web_nlg', config='webnlg_challenge_2017',
    columns={'modified_triple_sets/mtriple_set':
             ('modified_triple_sets/mtriple_set', LISTS),
             'lex/text': ('lex/text', TEXTS)},
    splits={'validation': 'dev', 'test_all': 'test'},
    only=('test_category', 'testdata_with_lex', 'test_all'),
    make=_texts_of_triples, key=None, revision=CONVERTED,
    note='texts and triples without the blanks at their ends'),
}
# fmt: on
