"""Folders of the hub's data sets, for tests.

The schemas are written down a second time here, as the data sets' cards have
them, and rows come in TFDS's: so a slip in `tasks/hub.py` is seen.
"""

import json
import os

import pytest

TEXT, INT = 'string', 'int32'


def _row(row):
  return row


def _glue(config, texts, *names):
  label = names or 'float32'
  features = {**dict.fromkeys(texts, TEXT), 'label': label, 'idx': INT}
  return 'nyu-mll/glue', config, features, _row


def _super_glue(config, texts, *names, **more):
  features = {
    **dict.fromkeys(texts, TEXT),
    'idx': INT,
    **more,
    **({'label': names} if names else {}),
  }
  return 'aps/super_glue', config, features, _row


TOKENS = {'tokens': [TEXT], 'offsets': [INT]}
SPANS = {'start': [[INT]], 'end': [[INT]]}
MRQA = {
  **{'subset': TEXT, 'context': TEXT, 'context_tokens': TOKENS, 'qid': TEXT},
  **{'question': TEXT, 'question_tokens': TOKENS},
  'detected_answers': {
    'text': [TEXT],
    'char_spans': [SPANS],
    'token_spans': [SPANS],
  },
  'answers': [TEXT],
}


SUBSETS = ('NaturalQuestionsShort', 'HotpotQA', 'NewsQA', 'SearchQA')


def _mrqa(row):
  # Of these only their types are looked at.
  tokens = {'tokens': [], 'offsets': []}
  nothing = {'text': [], 'char_spans': [], 'token_spans': []}
  return {
    **{k: row[k] for k in ('context', 'qid', 'question', 'answers')},
    # The goldens' rows are of no set by name.
    'subset': row['subset'] if row['subset'] in SUBSETS else SUBSETS[0],
    **{'context_tokens': tokens, 'question_tokens': tokens},
    'detected_answers': nothing,
  }


def _winogrande(row):
  words = {0: '1', 1: '2', -1: '', '1': '1', '2': '2'}
  texts = ('sentence', 'option1', 'option2')
  return {**{k: row[k] for k in texts}, 'answer': words[row['label']]}


def _scitail(row):
  words = {0: 'entails', 1: 'neutral'}
  return {**row, 'label': words.get(row['label'], row['label'])}


def _cells(table):
  """TFDS's table as a list of cells."""
  if isinstance(table, dict):
    names = list(table)
    values = zip(*table.values(), strict=True)
    return [dict(zip(names, some, strict=True)) for some in values]
  return table


def _e2e(row):
  slots = [
    f'{cell["column_header"]}[{cell["content"]}]'
    for cell in _cells(row['input_text']['table'])
  ]
  return {
    'meaning_representation': ', '.join(slots),
    'human_reference': row['target_text'],
  }


WEB = {
  **{'category': TEXT, 'size': INT, 'eid': TEXT},
  'original_triple_sets': {'otriple_set': [[TEXT]]},
  'modified_triple_sets': {'mtriple_set': [[TEXT]]},
  **{'shape': TEXT, 'shape_type': TEXT},
  'lex': {'comment': [TEXT], 'lid': [TEXT], 'text': [TEXT], 'lang': [TEXT]},
  **{'test_category': TEXT, 'dbpedia_links': [TEXT], 'links': [TEXT]},
}


def _web_nlg(rows, split):
  """Sets of triples with their texts, of the rows that stand together."""
  found = []
  for row in rows:
    triples = {}
    for cell in _cells(row['input_text']['table']):
      triples.setdefault(cell['row_number'], []).append(cell['content'])
    triples = [' | '.join(parts) for parts in triples.values()]
    if not found or found[-1]['modified_triple_sets']['mtriple_set'] != [
      triples
    ]:
      found.append(
        {
          'category': row['input_text']['context'],
          'size': len(triples),
          'eid': f'Id{len(found)}',
          'original_triple_sets': {'otriple_set': [triples]},
          'modified_triple_sets': {'mtriple_set': [triples]},
          **{'shape': '', 'shape_type': '', 'dbpedia_links': [], 'links': []},
          'lex': {'comment': [], 'lid': [], 'text': [], 'lang': []},
          'test_category': 'testdata_with_lex' if split == 'test_all' else '',
        }
      )
    lex = found[-1]['lex']
    for name, value in ('comment', ''), ('lid', 'Id1'), ('lang', ''):
      lex[name].append(value)
    lex['text'].append(row['target_text'])
  if split != 'test_all':
    return found
  # The hub's test split has the unseen categories and the inputs once more.
  unseen = [
    {**row, 'test_category': 'testdata_unseen_with_lex'} for row in found
  ]
  return unseen + found


ENTAILMENT = ('entailment', 'not_entailment')
PAIR = ('sentence1', 'sentence2')
NLI = ('premise', 'hypothesis')
GEM = {
  **{'gem_id': TEXT, 'gem_parent_id': TEXT, 'target': TEXT},
  'references': [TEXT],
}
SPANS_OF_WIC = dict.fromkeys(('start1', 'start2', 'end1', 'end2'), INT)
IDX = {'paragraph': INT, 'question': INT, 'answer': INT}
WSC = ('text', 'span1_text', 'span2_text')
QID = {'id': TEXT, 'title': TEXT, 'context': TEXT, 'question': TEXT}
# TFDS name -> repository, folder, {column: type}, TFDS row -> row of the hub.
# A tuple of texts is a label of these names, a list a list of what is in it.
HUB = {
  'glue/mnli:2.0.0': _glue(
    'mnli', NLI, 'entailment', 'neutral', 'contradiction'
  ),
  'glue/qnli:2.0.0': _glue('qnli', ('question', 'sentence'), *ENTAILMENT),
  'glue/qqp:2.0.0': _glue(
    'qqp', ('question1', 'question2'), 'not_duplicate', 'duplicate'
  ),
  'glue/sst2:2.0.0': _glue('sst2', ('sentence',), 'negative', 'positive'),
  'glue/stsb:2.0.0': _glue('stsb', PAIR),
  'glue/mrpc:2.0.0': _glue('mrpc', PAIR, 'not_equivalent', 'equivalent'),
  'glue/rte:2.0.0': _glue('rte', PAIR, *ENTAILMENT),
  'glue/cola:2.0.0': _glue('cola', ('sentence',), 'unacceptable', 'acceptable'),
  'super_glue/multirc:1.0.2': _super_glue(
    *('multirc', ('paragraph', 'question', 'answer'), 'False', 'True'), idx=IDX
  ),
  'super_glue/boolq:1.0.2': _super_glue(
    'boolq', ('question', 'passage'), 'False', 'True'
  ),
  'super_glue/wic:1.0.2': _super_glue(
    *('wic', ('word', *PAIR), 'False', 'True'), **SPANS_OF_WIC
  ),
  'super_glue/wsc.fixed:1.0.2': _super_glue(
    *('wsc.fixed', WSC, 'False', 'True'), span1_index=INT, span2_index=INT
  ),
  'super_glue/cb:1.0.2': _super_glue(
    'cb', NLI, 'entailment', 'contradiction', 'neutral'
  ),
  'super_glue/rte:1.0.2': _super_glue('rte', NLI, *ENTAILMENT),
  'super_glue/copa:1.0.2': _super_glue(
    *('copa', ('premise', 'choice1', 'choice2', 'question')),
    *('choice1', 'choice2'),
  ),
  'super_glue/record:1.0.2': _super_glue(
    *('record', ('passage', 'query')),
    entities=[TEXT],
    answers=[TEXT],
    idx={'passage': INT, 'query': INT},
  ),
  'squad/v1.1:3.0.0': (
    'rajpurkar/squad',
    'plain_text',
    {**QID, 'answers': {'text': [TEXT], 'answer_start': [INT]}},
    _row,
  ),
  **{
    f'mrqa/{name}:1.0.0': ('mrqa-workshop/mrqa', 'plain_text', MRQA, _mrqa)
    for name in ('natural_questions', 'hotpot_qa', 'news_qa', 'search_qa')
  },
  'winogrande:1.2.0': (
    'allenai/winogrande',
    'winogrande_xl',
    dict.fromkeys(('sentence', 'option1', 'option2', 'answer'), TEXT),
    _winogrande,
  ),
  'yelp_polarity_reviews:0.2.0': (
    'fancyzhx/yelp_polarity',
    'plain_text',
    {'text': TEXT, 'label': ('1', '2')},
    _row,
  ),
  'imdb_reviews/plain_text:1.0.0': (
    'stanfordnlp/imdb',
    'plain_text',
    {'text': TEXT, 'label': ('neg', 'pos')},
    _row,
  ),
  'snli:1.1.0': (
    'stanfordnlp/snli',
    'plain_text',
    {
      **dict.fromkeys(NLI, TEXT),
      'label': ('entailment', 'neutral', 'contradiction'),
    },
    _row,
  ),
  'sci_tail:1.0.0': (
    'allenai/scitail',
    'tsv_format',
    dict.fromkeys(('premise', 'hypothesis', 'label'), TEXT),
    _scitail,
  ),
  'paws_wiki/labeled_final_tokenized:1.1.0': (
    'google-research-datasets/paws',
    'labeled_final',
    {'id': INT, **dict.fromkeys(PAIR, TEXT), 'label': ('0', '1')},
    _row,
  ),
  'e2e_cleaned:0.1.0': (
    'tuetschek/e2e_nlg_cleaned',
    'default',
    {'meaning_representation': TEXT, 'human_reference': TEXT},
    _e2e,
  ),
  'gem/e2e_nlg:1.1.0': (
    *('GEM/gem', 'e2e_nlg', {**GEM, 'meaning_representation': TEXT}),
    _row,
  ),
  'gem/web_nlg_en:1.1.0': (
    *('GEM/gem', 'web_nlg_en'),
    {**GEM, 'input': [TEXT], 'category': TEXT, 'webnlg_id': TEXT},
    _row,
  ),
  'web_nlg:0.1.0': (
    *('webnlg-challenge/web_nlg', 'webnlg_challenge_2017', WEB),
    _web_nlg,
  ),
}
# TFDS split -> the hub's.
SPLITS = {
  'winogrande:1.2.0': {'train_xl': 'train'},
  'web_nlg:0.1.0': {'validation': 'dev', 'test_all': 'test'},
}
# These have no Parquet files but in a branch of the hub's making.
CONVERTED = ('GEM/gem', 'tuetschek/e2e_nlg_cleaned', 'webnlg-challenge/web_nlg')


def _type(kind):
  import pyarrow as pa

  if isinstance(kind, tuple):
    return pa.int64()
  if isinstance(kind, list):
    return pa.list_(_type(kind[0]))
  if isinstance(kind, dict):
    return pa.struct([(name, _type(inner)) for name, inner in kind.items()])
  return getattr(pa, kind)()


def table(tfds_name, rows, split, description='', change=lambda row: row):
  """The hub's table of rows in TFDS's schema, as `datasets` writes it."""
  import pyarrow as pa

  _, _, features, convert = HUB[tfds_name]
  if convert is _web_nlg:
    rows = _web_nlg(rows, split)
  else:
    rows = [convert(row) for row in rows]
  if tfds_name.startswith('paws'):
    rows = [{'id': number + 1, **row} for number, row in enumerate(rows)]
  names = {
    column: {'names': list(kind), '_type': 'ClassLabel'}
    for column, kind in features.items()
    if isinstance(kind, tuple)
  }
  label = features.get('label')
  if isinstance(label, tuple):
    ids = {name: number for number, name in enumerate(label)}
    rows = [{**r, 'label': ids.get(r['label'], r['label'])} for r in rows]
  info = {'info': {'features': names, 'description': description}}
  schema = pa.schema(
    [(name, _type(kind)) for name, kind in features.items()],
    {'huggingface': json.dumps(info)},
  )
  return pa.Table.from_pylist([change(row) for row in rows], schema)


def path_of(root, tfds_name, split, shard=0, shards=1):
  """Where a split's file lies, in the hub's own way."""
  repo, config, *_ = HUB[tfds_name]
  name = SPLITS.get(tfds_name, {}).get(split, split)
  if repo in CONVERTED:
    return os.path.join(root, repo, config, name, f'{shard:04d}.parquet')
  file = f'{name}-{shard:05d}-of-{shards:05d}.parquet'
  return os.path.join(root, repo, config, file)


def write(root, tfds_name, splits, description='', shards=1, **changes):
  """Writes splits of rows in TFDS's schema as the hub keeps them."""
  import pyarrow.parquet as pq

  for split, rows in splits.items():
    whole = table(tfds_name, rows, split, description, **changes)
    size = -(-len(whole) // shards)
    for shard in range(shards):
      path = path_of(root, tfds_name, split, shard, shards)
      os.makedirs(os.path.dirname(path), exist_ok=True)
      pq.write_table(whole.slice(shard * size, size), path)


@pytest.fixture
def write_hub(tmp_path):
  """`write` into a folder, which is then in use."""
  from mpt_jax import data

  def write_there(tfds_name, splits, *args, **more):
    write(str(tmp_path), tfds_name, splits, *args, **more)
    data.set_data_dir(f'hf:{tmp_path}')
    return tmp_path

  yield write_there
  data.set_data_dir(None)
