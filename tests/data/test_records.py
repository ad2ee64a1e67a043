"""Users' own data: what is read, and what a mistake in it says."""

import json
import re

import pytest
import seqio

from mpt_jax import data
from mpt_jax.data import records, sources
from mpt_jax.data.templates import Template
from mpt_jax.types import InputError

pytestmark = pytest.mark.data

NLI = 'nli premise: {premise} hypothesis: {hypothesis}'
ROWS = [
  {'premise': 'ann ran', 'hypothesis': 'ann  moved ', 'label': 'yes'},
  {'premise': 'bob sat', 'hypothesis': 'bob "ran"', 'label': 0},
  {'premise': 'é', 'hypothesis': '{x}', 'label': -1},
]
TEXTS = [
  ('nli premise: ann ran hypothesis: ann  moved ', 'yes'),
  ('nli premise: bob sat hypothesis: bob "ran"', 'no'),
  ('nli premise: é hypothesis: {x}', '<unk>'),
]


def _texts(task, split='train', **kwargs):
  ds = task.get_dataset(None, split, shuffle=False, **kwargs)
  return [
    (
      e['inputs_pretokenized'].decode(),
      e['targets_pretokenized'].decode(),
    )
    for e in ds.as_numpy_iterator()
  ]


def _write(path, rows):
  path.write_text(
    ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows),
    encoding='utf-8',
  )
  return path


def test_json_lines(register, tmp_path):
  _write(tmp_path / 'train.jsonl', ROWS)
  _write(tmp_path / 'test.jsonl', ROWS[:1])
  task = register(
    'own_json',
    tmp_path / '{split}.jsonl',
    inputs=NLI,
    labels=('no', 'yes'),
    splits=('train', 'test'),
  )
  assert task.splits == ('train', 'test')
  assert _texts(task) == TEXTS
  assert _texts(task, 'test') == TEXTS[:1]
  assert task.num_input_examples('train') == 3
  # The output is a class id, and -1 what is no label word.
  assert [task.postprocess_fn(t) for t in ('no', 'yes', 'Yes')] == [0, 1, -1]


def test_tables(register, tmp_path):
  (tmp_path / 'a.tsv').write_text(
    'id\tp\th\tgold\n7\tann ran\tann  moved \tyes\n8\tbob sat\tbob "ran"\t0\n'
  )
  (tmp_path / 'a.csv').write_text(
    '\ufeffp,h,gold,id\n"ann ran",ann  moved ,yes,7\r\n'
    'bob sat,"bob ""ran""",0,8\n'
  )
  columns = {'premise': 'p', 'hypothesis': 'h', 'label': 'gold'}
  for kind in ('tsv', 'csv'):
    task = register(
      f'own_{kind}',
      {'train': tmp_path / f'a.{kind}'},
      inputs=NLI,
      labels=('no', 'yes'),
      columns=columns,
    )
    assert _texts(task) == TEXTS[:2]


def test_parquet(register, tmp_path):
  pq = pytest.importorskip('pyarrow.parquet')
  import pyarrow as pa

  ids = {'yes': 1, 0: 0, -1: None}
  rows = [{**row, 'label': ids[row['label']]} for row in ROWS]
  pq.write_table(pa.Table.from_pylist(rows), tmp_path / 'a.parquet')
  task = register(
    'own_parquet',
    tmp_path / 'a.parquet',
    inputs=NLI,
    labels=('no', 'yes'),
  )
  assert _texts(task) == TEXTS


def test_a_split_may_be_cut(register, tmp_path):
  rows = [{'text': f't{i}', 'answer': str(i)} for i in range(10)]
  task = register(
    'own_cut',
    str(_write(tmp_path / 'all.jsonl', rows)),
    inputs='{text}',
    targets='{answer}',
    splits={'train': 'train[4:]', 'validation': 'train[:4]'},
  )
  assert [t for _, t in _texts(task)] == list('456789')
  assert [t for _, t in _texts(task, 'validation')] == list('0123')
  assert task.num_input_examples('validation') == 4
  halves = [
    _texts(task, shard_info=seqio.ShardInfo(i, 2), seed=0) for i in range(2)
  ]
  assert sorted(t for h in halves for _, t in h) == list('456789')


def test_a_function(register):
  def rows(split):
    for i in range(3):
      yield {'x': f'{split} {i}', 'n': i, 'all': ['a', str(i)]}

  task = register(
    'own_function',
    rows,
    inputs='say {x}',
    targets='{n}',
    keep=('all',),
    splits=('train', 'test'),
  )
  assert _texts(task, 'test')[1] == ('say test 1', '1')
  example = next(
    task.get_dataset(None, 'test', shuffle=False).as_numpy_iterator()
  )
  assert example['all'].tolist() == [b'a', b'0']


def test_a_tfds_name(register, write_tfds):
  rows = [
    {'premise': 'p', 'hypothesis': 'h', 'label': i, 'idx': 5 + i}
    for i in range(2)
  ]
  write_tfds('super_glue/rte:1.0.2', {'train': rows, 'validation': rows})
  task = register(
    'own_tfds',
    'super_glue/rte:1.0.2',
    inputs=NLI,
    labels=('no', 'yes'),
    splits={'train': 'validation[:1]', 'test': 'train'},
  )
  assert _texts(task) == [('nli premise: p hypothesis: h', 'no')]
  assert len(_texts(task, 'test')) == 2


def test_an_edited_file_is_read_anew(register, tmp_path):
  path = _write(tmp_path / 'a.jsonl', ROWS)
  task = register('own_edited', path, inputs=NLI, labels=('no', 'yes'))
  assert len(_texts(task)) == 3
  _write(path, ROWS[:1])
  assert _texts(task) == TEXTS[:1]


def test_it_trains_with_other_tasks(register, tmp_path, make_task):
  make_task('toy_other')
  register(
    'own_mixed',
    _write(tmp_path / 'a.jsonl', ROWS[:2]),
    inputs=NLI,
    labels=('no', 'yes'),
  )
  seqio.MixtureRegistry.add('own_mix', ['toy_other', 'own_mixed'], 1.0)
  try:
    config = data.DatasetConfig(
      mixture_or_task_name='own_mix',
      task_feature_lengths={'inputs': 41, 'targets': 11},
      batch_size=8,
      pack=True,
    )
    batches = data.get_train_iterator(config, 3, ['toy_other', 'own_mixed'])
    rows = {
      int(r)
      for _ in range(3)
      for r in next(batches)['encoder_task_ids'].ravel()
    }
  finally:
    seqio.MixtureRegistry.remove('own_mix')
  assert rows == {0, 1}


def _check(register, path, **kwargs):
  kwargs = {'inputs': NLI, 'labels': ('no', 'yes')} | kwargs
  register('own_bad', path, **kwargs)
  data.check_data('own_bad', 'train')


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('{"premise": "x",', r'a.jsonl:3: no JSON'),
    ('[1, 2]', r'a.jsonl:3: expected a JSON object, got list'),
    ('{"premise": "x", "label": 1}', r"a.jsonl:3: no column 'hypothesis'"),
    (
      '{"premise": "x", "hypothesis": "y", "label": "yess"}',
      r"a.jsonl:3: label 'yess' is outside the label words .*'yes'\?",
    ),
    (
      '{"premise": "x", "hypothesis": "y", "label": 2}',
      r"a.jsonl:3: label 2 is outside the label words \['no', 'yes'\]",
    ),
    (
      '{"premise": null, "hypothesis": "y", "label": 1}',
      r"a.jsonl:3: column 'premise' holds NoneType",
    ),
    ('{"premise": ' + '[' * 100_000, r'a.jsonl:3: no JSON'),
    (b'{"premise": "\xff"}', r'a.jsonl:3: no JSON'),
  ],
)
def test_a_broken_line_is_named(register, tmp_path, line, message):
  good = json.dumps(ROWS[0]) + '\n\n'
  line = line if isinstance(line, bytes) else line.encode()
  path = tmp_path / 'a.jsonl'
  path.write_bytes(good.encode() + line)
  with pytest.raises(InputError, match=message):
    _check(register, path)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('premise,premise\n', "a.csv:1: column 'premise' occurs twice"),
    (
      'premise,hypothesis,label\na,b\n',
      'a.csv:2: 2 cells, but the header has 3',
    ),
    ('premise,hypothesis,label\na,"b\n', r'a.csv:2: unexpected end of data'),
    ('premise,hypothesis,lable\na,b,1\n', "no column 'label'.*'lable'"),
    ('premise,hypothesis,label\n', "split 'train' is empty: .*a.csv"),
    ('', "split 'train' is empty: .*a.csv"),
  ],
)
def test_a_broken_table_is_named(register, tmp_path, text, message):
  path = tmp_path / 'a.csv'
  path.write_text(text)
  with pytest.raises(InputError, match=message):
    _check(register, path)


@pytest.mark.parametrize(
  ('name', 'text', 'said'),
  [
    # As pandas writes them.
    (
      'a.tsv',
      'q\tlabel\n"say ""yes"""\tyes\nplain\tno\n"a b"\tno\n',
      r'a.tsv: 2 cells begin and end with a quotation mark \(first at .*:2\)',
    ),
    (
      'a.csv',
      'q,label\n,yes\nplain,no\n"",yes\n',
      r"a.csv: column 'q' is empty in 2 of 3 rows; it is taken as text",
    ),
    (
      'a.jsonl',
      '{"q": "nan", "label": 1}\n{"q": "x", "label": 0}\n',
      r"a.jsonl: column 'q' is 'nan' in 1 of 2 rows; it is taken as text",
    ),
    ('a.csv', 'q,label\n"""yes""",no\n', None),
    ('a.tsv', '\ufeffq\tlabel\r\n5\'10"\tyes\r\n"a\tno\r\n', None),
    ('a.jsonl', '\ufeff{"q": "x", "label": 1}\r\n', None),
  ],
)
def test_what_a_reader_may_not_expect_is_said(
  register, tmp_path, caplog, name, text, said
):
  (tmp_path / name).write_text(text, encoding='utf-8', newline='')
  task = register(
    'own_odd', tmp_path / name, inputs='{q}', labels=('no', 'yes')
  )
  for _ in range(2):  # Once is enough.
    _texts(task)
  if said is None:
    assert not caplog.records
  else:
    [record] = caplog.records
    assert re.search(said, record.getMessage())


def test_other_mistakes(register, tmp_path):
  with pytest.raises(InputError, match='nowhere.jsonl .* No such file'):
    _check(register, tmp_path / 'nowhere.jsonl')
  for kwargs, message in (
    ({'inputs': 'a {premise'}, 'is broken'),
    ({'inputs': 'a {premise:.2f}'}, 'plain names in braces only'),
    ({'inputs': 'a {}'}, 'plain names in braces only'),
    ({'labels': None}, 'give targets or label words'),
    ({'inputs': None}, 'go with an inputs template'),
    ({'splits': {'train': 'train[:10%]'}}, 'is no split'),
    ({'splits': {'train': 'dev'}}, "no file; there is .*'train'"),
  ):
    options = {'inputs': NLI, 'labels': ('no', 'yes')} | kwargs
    with pytest.raises(InputError, match=message):
      register('own_wrong', tmp_path / 'a.jsonl', **options)
  for source in ('a.txt', 'glue/mnli', 'glue/mnli:2'):
    with pytest.raises(InputError, match='glue/mnli:2.0.0'):
      register('own_wrong', source, inputs=NLI, labels=('no', 'yes'))
  with pytest.raises(InputError, match="'own task' is no task name"):
    register('own task', 'a.jsonl', inputs=NLI, labels=('no', 'yes'))
  assert 'own_wrong' not in seqio.TaskRegistry.names()


def test_labels_of_tfds_outside_the_words(register, write_tfds):
  rows = [{'premise': 'p', 'hypothesis': 'h', 'label': 2, 'idx': 0}]
  write_tfds('super_glue/cb:1.0.2', {'train': rows})
  register('own_three', 'super_glue/cb:1.0.2', inputs=NLI, labels=('no', 'yes'))
  config = data.DatasetConfig(
    mixture_or_task_name='own_three',
    task_feature_lengths={'inputs': 41, 'targets': 11},
    batch_size=1,
  )
  with pytest.raises(InputError, match='outside the label words'):
    data.get_train_iterator(config, 3, ['own_three'])


def test_a_feature_that_tfds_lacks(register, write_tfds):
  rows = [{'premise': 'p', 'hypothesis': 'h', 'label': 2, 'idx': 0}]
  write_tfds('super_glue/cb:1.0.2', {'train': rows})
  task = register(
    'own_lack', 'super_glue/cb:1.0.2', inputs='{premis}', targets='x'
  )
  with pytest.raises(InputError, match="no feature 'premis'.*'premise'"):
    _texts(task)


def test_a_mixture_of_an_unknown_task(tmp_path, monkeypatch):
  (tmp_path / 'my_mixtures.py').write_text(
    'import seqio\nimport tasks\n'
    "seqio.MixtureRegistry.add('mine', ['mnli', 'qnlli'], default_rate=1.0)\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(InputError, match="'my_mixtures' names 'qnlli'.*'qnli'"):
    data.check_data('mine', 'train', module='my_mixtures')


def test_braces_in_a_template():
  template = Template('a {{x}} {y}{z}!')
  assert template.fields == ('y', 'z')
  text = template.fill({'y': _tensor('{q}'), 'z': _tensor('\\1')})
  assert text.numpy() == rb'a {x} {q}\1!'


def _tensor(text):
  import tensorflow as tf

  return tf.constant(text)


@pytest.mark.parametrize(
  ('premise', 'message'),
  [
    ('"half \\ud800"', 'not valid text'),
    ('NaN', 'is nan, not a number'),
    ('1e999', 'is inf, not a number'),
    ('["a", -Infinity]', 'is -inf, not a number'),
    ('9' * 5000, 'no JSON'),
  ],
)
def test_values_that_are_no_text(tmp_path, premise, message):
  (tmp_path / 'a.jsonl').write_text(f'{{"premise": {premise}}}\n')
  source = sources.make_source(
    tmp_path / 'a.jsonl', None, ['premise'], {}, None
  )
  with pytest.raises(InputError, match=rf'a\.jsonl:1: .*{message}'):
    source.check('train')


def test_a_header_of_very_many_columns(tmp_path):
  names = [f'c{i}' for i in range(200_000)]
  (tmp_path / 'a.tsv').write_text('\t'.join([*names, 'c7']))
  source = sources.make_source(tmp_path / 'a.tsv', None, ['c1'], {}, None)
  with pytest.raises(InputError, match="column 'c7' occurs twice"):
    source.check('train')


def test_a_device_is_no_data_file(tmp_path):
  (tmp_path / 'a.jsonl').symlink_to('/dev/zero')
  source = sources.make_source(tmp_path / 'a.jsonl', None, ['a'], {}, None)
  with pytest.raises(InputError, match='not a regular file'):
    source.check('train')


def test_a_label_of_very_many_digits(tmp_path):
  # Found by the fuzzer: Python refuses to make a number of it.
  (tmp_path / 'a.tsv').write_text(f'label\n{"9" * 5000}\n')
  source = sources.make_source(
    tmp_path / 'a.tsv', None, ['label'], {}, ['no', 'yes']
  )
  with pytest.raises(InputError, match=r'a\.tsv:2: label .* is outside'):
    source.check('train')


def test_a_bound_of_very_many_digits():
  with pytest.raises(InputError, match='is no split'):
    records.Slice.parse(f'train[:{"9" * 5000}]')


@pytest.mark.parametrize(
  ('names', 'kept'),
  [
    (['a7', 'b', 'é'], [b'a7', b'b', 'é'.encode()]),
    ([12, 3, 12], [b'12', b'3', b'12']),
    # Not every row has one, or it is no name: the place in the file is left.
    (['a', None, 'c'], None),
    (['a', 'b', ['c']], None),
  ],
)
def test_rows_keep_their_own_names(register, tmp_path, names, kept):
  rows = [{**row, 'id': n} for row, n in zip(ROWS, names, strict=True)]
  path = _write(tmp_path / 'train.jsonl', rows)
  task = register('own_names', path, inputs=NLI, labels=('no', 'yes'))
  ds = task.get_dataset(None, 'train', shuffle=False)
  found = list(ds.as_numpy_iterator())
  assert [e.get('id') for e in found] == (kept or [None] * 3)
  assert [e['idx'] for e in found] == [0, 1, 2]
  assert _texts(task) == TEXTS
