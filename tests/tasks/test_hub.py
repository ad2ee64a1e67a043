"""The built-in tasks from the hub's Parquet files, as from TFDS's."""

import json
import os
import random

import pytest
import seqio
import tensorflow_datasets as tfds

from mpt_jax import data
from mpt_jax.checkpoints.hub import is_name
from mpt_jax.data import lookup
from mpt_jax.types import InputError
from tasks import hub, hub_source
from tasks.offline import datasets
from tasks.table import TABLE
from tests.helpers import hub_data

pytestmark = pytest.mark.data

SYNTHETIC = 'SYNTHETIC DATA of a test'


def drawn(name, split='train', count=14):
  """Rows of a synthetic data set, in TFDS's schema."""
  dataset = datasets.DATASETS[name]
  rng = random.Random(name)
  rows = []
  while len(rows) < count:
    for row in dataset.draw(rng, split):
      rows.append(dataset.identify(row, split, len(rows)))
  return rows


def plain(value):
  """An example as JSON."""

  def convert(value):
    if isinstance(value, bytes):
      return value.decode()
    if hasattr(value, 'tolist'):
      return convert(value.tolist())
    if isinstance(value, dict):
      return {k: convert(v) for k, v in value.items()}
    return [convert(v) for v in value] if isinstance(value, list) else value

  return json.dumps(convert(value), sort_keys=True)


def texts(ds, name):
  ds = seqio.TaskRegistry.get(name).preprocessors[0](ds)
  return [plain(example) for example in ds.as_numpy_iterator()], ds.element_spec


def test_every_data_set_is_known():
  assert set(hub.DATA) == {row.tfds_name for row in TABLE.values()}
  assert set(hub.DATA) == set(hub_data.HUB)


def test_a_card_calls_the_data_as_the_hub_does():
  for name, row in TABLE.items():
    [task] = lookup.get_provider(name).tasks
    assert task.data_set == hub.DATA[row.tfds_name].repo
    assert is_name(task.data_set)


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(datasets.DATASETS))
def test_texts_are_those_of_tfds(name, write_tfds, write_hub):
  tfds_name = datasets.DATASETS[name].tfds_name
  split = datasets.DATASETS[name].train
  rows = drawn(name, split)
  folder = write_tfds(tfds_name, {split: rows})
  expected = tfds.builder(tfds_name, data_dir=folder).as_dataset(split=split)
  root = write_hub(tfds_name, {split: rows}, shards=2)
  found = hub_source.HubSplits(str(root), tfds_name)
  assert found.count(split) == len(rows)
  ds = hub_source.dataset(found.read(split))
  for task, row in TABLE.items():
    # Tasks of digits differ from their namesakes in the template alone.
    if row.tfds_name != tfds_name or task.endswith('_digits'):
      continue
    (theirs, their_spec), (ours, spec) = texts(expected, task), texts(ds, task)
    assert sorted(ours) == sorted(theirs)
    assert {k: (s.dtype, s.shape.rank) for k, s in spec.items()} == {
      k: (s.dtype, s.shape.rank) for k, s in their_spec.items()
    }


def glue_rows(count, label=lambda i: i % 2):
  return [
    {'sentence1': f'a {i}', 'sentence2': f'b {i}', 'label': label(i), 'idx': i}
    for i in range(count)
  ]


def test_rows_come_in_the_order_of_tfds(write_hub, tmp_path_factory):
  # What TFDS's own pipeline makes of the same keys is the reference.
  rows = glue_rows(40)
  folder = tmp_path_factory.mktemp('tfds')
  features = tfds.builder('glue/rte:2.0.0', data_dir=folder).info.features
  tfds.dataset_builders.store_as_tfds_dataset(
    name='glue',
    config='rte',
    version='2.0.0',
    features=features,
    split_datasets={
      split: [(row['idx'], row) for row in rows]
      for split in ('train', 'validation')
    },
    data_dir=folder,
  )
  builder = tfds.builder('glue/rte:2.0.0', data_dir=folder)
  root = write_hub(
    'glue/rte:2.0.0', {'train': rows, 'validation': rows}, SYNTHETIC, shards=3
  )
  orders = []
  for split in ('train', 'validation'):
    theirs = [e['idx'] for e in tfds.as_numpy(builder.as_dataset(split=split))]
    table = hub_source.HubSplits(str(root), 'glue/rte:2.0.0').read(split)
    assert table['idx'].to_pylist() == theirs != sorted(theirs)
    orders.append(theirs)
  assert orders[0] != orders[1]
  # The halves of the validation split are TFDS's too.
  data.check_data('rte', 'validation')
  source = seqio.TaskRegistry.get('rte').source
  for split, half in ('validation', orders[1][:20]), ('test', orders[1][20:]):
    assert source.num_input_examples(split) == 20
    ds = source.get_dataset(split, shuffle=False)
    assert [e['idx'] for e in ds.as_numpy_iterator()] == half
  assert data.is_synthetic('rte')
  shuffled = source.get_dataset('train', shuffle=True, seed=1)
  shuffled = [int(e['idx']) for e in shuffled.as_numpy_iterator()]
  assert sorted(shuffled) == sorted(orders[0]) != shuffled


def read_mrpc():
  data.check_data('mrpc', 'train')
  list(seqio.TaskRegistry.get('mrpc').source.get_dataset('train'))


MRPC = 'glue/mrpc:2.0.0'


@pytest.mark.parametrize(
  ('wrong', 'words'),
  [
    (
      {'gone': 'validation'},
      "split 'validation' of 'glue/mrpc:2.0.0' is missing",
    ),
    ({'gone': None}, "nyu-mll/glue has no folder 'mrpc'"),
    ({'shard': True}, 'is incomplete: .* has 1 of 2 files'),
    (
      {'real': True},
      "split 'train' .* has 20 examples, the official one has 3668",
    ),
    (
      {'lfs': True},
      'stands for a file that git-lfs has not fetched: git lfs pull',
    ),
    ({'garbage': True}, r'train-00000-of-00001.parquet cannot be read: '),
    (
      {'rename': 'sentence1'},
      r"no column 'sentence1' of nyu-mll/glue \(mrpc\); it",
    ),
    ({'text': 'label'}, r"column 'label' holds string, in .* it holds int$"),
    (
      {'names': ['equivalent', 'not_equivalent']},
      r"labels of 'label' are \['equ",
    ),
    (
      {'label': 2},
      r'label 2 is outside 0 to 1 \(not_equivalent, equivalent\)$',
    ),
    ({'none': True}, "column 'sentence2' is empty in 1 of 20 rows"),
  ],
  ids=lambda value: next(iter(value)) if isinstance(value, dict) else '',
)
def test_what_is_wrong_is_one_line(write_hub, tmp_path, wrong, words):
  import pyarrow as pa
  import pyarrow.parquet as pq

  rows = glue_rows(20)
  rows[3] |= {'label': wrong.get('label', 1)}
  if 'none' in wrong:
    rows[5]['sentence2'] = None
  write_hub(
    MRPC,
    {'train': rows, 'validation': glue_rows(6)},
    '' if 'real' in wrong else SYNTHETIC,
    shards=2 if 'shard' in wrong else 1,
  )
  path = hub_data.path_of(tmp_path, MRPC, 'train', shards=1)
  folder = os.path.dirname(path)
  if 'gone' in wrong:
    for name in os.listdir(folder):
      if name.startswith(wrong['gone'] or ''):
        os.remove(os.path.join(folder, name))
    if not os.listdir(folder):
      os.rmdir(folder)
  elif 'shard' in wrong:
    os.remove(path.replace('00000-of-00001', '00001-of-00002'))
  elif 'lfs' in wrong or 'garbage' in wrong:
    text = 'version https://git-lfs.github.com/spec/v1\n'
    with open(path, 'w') as file:
      file.write(text if 'lfs' in wrong else 'PAR1 it is not')
  elif 'rename' in wrong:
    table = pq.read_table(path)
    names = [n.replace(wrong['rename'], 'text_a') for n in table.column_names]
    pq.write_table(table.rename_columns(names), path)
  elif 'text' in wrong:
    table = pq.read_table(path)
    index = table.column_names.index(wrong['text'])
    column = table[wrong['text']].cast(pa.string())
    pq.write_table(table.set_column(index, wrong['text'], column), path)
  elif 'names' in wrong:
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[b'huggingface'])
    about['info']['features']['label']['names'] = wrong['names']
    metadata = {'huggingface': json.dumps(about)}
    pq.write_table(table.replace_schema_metadata(metadata), path)
  with pytest.raises(InputError, match=words) as e:
    read_mrpc()
  assert '\n' not in str(e.value)


def test_only_the_hubs_own_data_are_read_from_it(write_hub):
  write_hub(MRPC, {'train': glue_rows(2)}, SYNTHETIC)
  with pytest.raises(InputError, match="'glue/mnli:2.0.0' is a TFDS data set"):
    data.TfdsSource('glue/mnli:2.0.0').check('train')
  with pytest.raises(InputError, match="no data for 'glue/rte:2.0.0': "):
    data.check_data('rte', 'train')


def test_the_hubs_own_cache(write_hub, tmp_path):
  write_hub(
    MRPC, {'train': glue_rows(9), 'validation': glue_rows(6)}, SYNTHETIC
  )
  cache = tmp_path / 'datasets--nyu-mll--glue' / 'snapshots'
  cache.mkdir(parents=True)
  os.rename(tmp_path / 'nyu-mll' / 'glue', cache / 'abc')
  data.check_data('mrpc', 'train')
  source = seqio.TaskRegistry.get('mrpc').source
  assert source.folder == str(cache / 'abc' / 'mrpc')
  os.makedirs(cache / 'def' / 'mrpc')
  with pytest.raises(InputError, match='nyu-mll/glue is 2 times in --hf_data'):
    data.check_data('mrpc', 'train')


def to_arrow(root, tfds_name, splits, shards=1):
  """Moves a data set to where `datasets` 5.2 was seen to cache it."""
  import pyarrow as pa
  import pyarrow.parquet as pq

  repo, config, *_ = hub_data.HUB[tfds_name]
  folder = root / repo.replace('/', '___') / config / '0.0.0' / 'bcdcba79'
  folder.mkdir(parents=True)
  for split in splits:
    for shard in range(shards):
      path = hub_data.path_of(root, tfds_name, split, shard, shards)
      table = pq.read_table(path)
      os.remove(path)
      end = f'-{shard:05d}-of-{shards:05d}' if shards > 1 else ''
      name = f'{repo.rpartition("/")[2]}-{split}{end}.arrow'
      with pa.ipc.new_stream(folder / name, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
  os.rmdir(os.path.dirname(path))
  # What it leaves there, too.
  (folder / 'cache-0123456789abcdef.arrow').write_bytes(b'a map of the rows')
  (folder.parent / 'bcdcba79_builder.lock').touch()
  (folder.parent / 'f00d.incomplete').mkdir()
  return folder


@pytest.mark.parametrize('shards', [1, 3])
def test_the_cache_of_datasets(write_hub, tmp_path, shards):
  splits = {'train': glue_rows(19), 'validation': glue_rows(6)}
  write_hub(MRPC, splits, SYNTHETIC, shards=shards)
  found = hub_source.HubSplits(str(tmp_path), MRPC)
  expected = {split: found.read(split) for split in splits}
  folder = to_arrow(tmp_path, MRPC, splits, shards)
  assert found.folder == str(folder)
  for split, rows in splits.items():
    assert found.count(split) == len(rows)
    assert found.read(split).equals(expected[split])
  data.check_data('mrpc', 'train')
  assert data.is_synthetic('mrpc')
  if shards > 1:
    os.remove(folder / f'glue-train-00001-of-0000{shards}.arrow')
    with pytest.raises(InputError, match='is incomplete: .* has 2 of 3 files'):
      data.check_data('mrpc', 'train')
  with pytest.raises(InputError, match=r"there is \[.*'train', 'validation'\]"):
    found.count('test')
  (folder.parent / 'cafe').mkdir()
  with pytest.raises(InputError, match='nyu-mll/glue is 2 times in --hf_data'):
    data.check_data('mrpc', 'train')


def test_rows_of_others_are_left_out(write_hub):
  # MRQA's sets lie in the same files.
  name = 'mrqa/hotpot_qa:1.0.0'
  ours = drawn('mrqa_hotpot_qa', count=5)
  others = drawn('mrqa_news_qa', count=4)
  root = write_hub(name, {'train': [*others[:2], *ours, *others[2:]]})
  found = hub_source.HubSplits(str(root), name)
  assert found.count('train') == 5
  questions = found.read('train')['question'].to_pylist()
  assert sorted(questions) == sorted(row['question'] for row in ours)


def test_webnlgs_test_split_counts_texts_once(write_hub):
  rows = drawn('web_nlg', 'test_all', 11)
  root = write_hub('web_nlg:0.1.0', {'test_all': rows})
  found = hub_source.HubSplits(str(root), 'web_nlg:0.1.0')
  assert found.count('test_all') == len(rows)
  targets = found.read('test_all')['target_text'].to_pylist()
  assert targets == [row['target_text'] for row in rows]


def _written(path, text):
  path.write_text(text)
  return str(path)


PARAGRAPH = {
  'idx': 3,
  'passage': {
    'text': 'p',
    'questions': [
      {'idx': 5, 'question': 'q', 'answers': [{'idx': 7, 'text': 'a'}]}
    ],
  },
}
QUERY = {
  'idx': 2,
  'passage': {'text': 'p', 'entities': []},
  'qas': [{'idx': 9, 'query': 'q', 'answers': []}],
}
SQUAD = {'id': 'abc', 'question': 'q', 'answers': []}
MRQA = {'qid': 'abc', 'question': 'q', 'question_tokens': [], 'answers': []}


@pytest.mark.parametrize(
  ('tfds_name', 'lines', 'row'),
  [
    (
      'super_glue/multirc:1.0.2',
      [PARAGRAPH],
      {'idx': {'paragraph': 3, 'question': 5, 'answer': 7}},
    ),
    (
      'super_glue/record:1.0.2',
      [QUERY],
      {'idx': {'passage': 2, 'query': 9}},
    ),
    (
      'squad/v1.1:3.0.0',
      [{'data': [{'paragraphs': [{'context': 'c', 'qas': [SQUAD]}]}]}],
      {'id': 'abc'},
    ),
    (
      'mrqa/search_qa:1.0.0',
      [
        {'header': {'dataset': 'SearchQA'}},
        {
          **{'context': 'c', 'context_tokens': []},
          'qas': [{**MRQA, 'detected_answers': []}],
        },
      ],
      {'qid': 'abc'},
    ),
  ],
)
def test_keys_are_those_of_tfds(tmp_path, tfds_name, lines, row):
  text = '\n'.join(map(json.dumps, lines))
  path = _written(tmp_path / 'raw', text)
  builder = tfds.builder(tfds_name, data_dir=tmp_path)
  split = () if tfds_name.startswith('squad') else ('train',)
  [(key, _)] = builder._generate_examples(path, *split)
  assert str(hub.DATA[tfds_name].key('train', row, 0)) == str(key)


def test_a_list_of_structs(write_hub, tmp_path):
  # As newer versions of `datasets` write SQuAD's answers.
  import pyarrow as pa
  import pyarrow.parquet as pq

  name = 'squad/v1.1:3.0.0'
  rows = drawn('squad', count=3)
  rows[1]['answers'] = {'text': ['a', 'b'], 'answer_start': [0, 1]}
  write_hub(name, {'train': rows})
  found = hub_source.HubSplits(str(tmp_path), name)
  expected = found.read('train')
  path = hub_data.path_of(tmp_path, name, 'train')
  table = pq.read_table(path)
  answers = [
    [
      {'text': text, 'answer_start': start}
      for text, start in zip(a['text'], a['answer_start'], strict=True)
    ]
    for a in table['answers'].to_pylist()
  ]
  index = table.column_names.index('answers')
  pq.write_table(table.set_column(index, 'answers', pa.array(answers)), path)
  assert found.read('train').equals(expected)
