"""Files of rows: gzipped, quoted by a program, Parquet and Arrow."""

import csv
import gzip
import io

import pytest

from mpt_jax.data import lines
from mpt_jax.types import InputError

HEADER = ['text', 'label']
ROWS = [
  ['he said "hi"', 'yes'],
  ['a\ttab', 'no'],
  ['two\nlines', 'yes'],
  ['plain', ''],
  ['"whole"', 'no'],
]


def _read(path):
  return [
    (where.rpartition(':')[2], row) for where, row in lines.read_rows(path)
  ]


def _as_dicts(rows):
  return [dict(zip(HEADER, row, strict=True)) for row in rows]


def _tsv(rows, **more):
  out = io.StringIO()
  csv.writer(out, delimiter='\t', **more).writerows(rows)
  return out.getvalue()


@pytest.mark.parametrize('ends', ['\n', '\r\n'])
@pytest.mark.parametrize('quoting', [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_a_tsv_that_a_program_quoted(tmp_path, caplog, ends, quoting):
  # pandas writes with this module too.
  path = tmp_path / 'a.tsv'
  text = _tsv([HEADER, *ROWS], quoting=quoting, lineterminator=ends)
  path.write_text(text, newline='')
  with caplog.at_level('INFO'):
    found = _read(str(path))
  assert [row for _, row in found] == _as_dicts(ROWS)
  assert 'without the quotation marks that a program wrote' in caplog.text


@pytest.mark.parametrize(
  'cells',
  [
    # As in GLUE's files, where nothing is quoted.
    ['he said "hi"'],
    ['"whole"'],
    ['"a', 'b"'],
    # Some cells look quoted, but no program leaves the other one as it is.
    ['"say ""yes"""', 'he said "hi"'],
    ['"say ""yes"""', '"whole"'],
  ],
)
def test_a_quotation_mark_that_is_text(tmp_path, cells):
  path = tmp_path / 'a.tsv'
  path.write_text('text\tlabel\n' + ''.join(f'{c}\tno\n' for c in cells))
  assert [row['text'] for _, row in _read(str(path))] == cells


@pytest.mark.parametrize(
  ('name', 'text'),
  [
    (
      'a.jsonl.gz',
      '{"text": "é", "label": "no"}\n\n{"text": "b", "label": 1}\n',
    ),
    ('a.tsv.gz', 'text\tlabel\né\tno\n\nb\t1\n'),
    ('a.csv.gz', '\ufefftext,label\né,no\n\nb,1\n'),
  ],
)
def test_gzip(tmp_path, name, text):
  (tmp_path / name).write_bytes(gzip.compress(text.encode()))
  (tmp_path / name[:-3]).write_text(text)
  found = _read(str(tmp_path / name))
  assert found == _read(str(tmp_path / name[:-3]))
  assert [row and row['text'] for _, row in found] == ['é', None, 'b']


@pytest.mark.parametrize('kind', ['parquet', 'file', 'stream'])
def test_parquet_and_arrow(tmp_path, kind):
  import pyarrow as pa
  import pyarrow.parquet as pq

  rows = [{'text': 'é', 'label': 1, 'all': ['a']}, {'text': 'b', 'label': None}]
  table = pa.Table.from_pylist(rows)
  path = str(tmp_path / ('a.parquet' if kind == 'parquet' else 'a.arrow'))
  if kind == 'parquet':
    pq.write_table(table, path)
  else:
    new = pa.ipc.new_file if kind == 'file' else pa.ipc.new_stream
    with new(path, table.schema) as writer:
      writer.write_table(table)
  assert _read(path) == [('1', rows[0]), ('2', {**rows[1], 'all': None})]


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('a.jsonl.gz', b'{}', r'a.jsonl.gz cannot be read: Not a gzipped file'),
    (
      'a.tsv.gz',
      gzip.compress(b'a\tb\nc\td', mtime=0)[:-9],
      'a.tsv.gz cannot be read: ',
    ),
    ('a.parquet', b'no', 'a.parquet cannot be read: '),
    ('a.arrow', b'no', 'a.arrow cannot be read: '),
    ('a.arrow', None, 'a.arrow cannot be read: No such file or directory'),
    (
      'a.parquet',
      b'version https://git-lfs.github.com/spec/v1',
      'git lfs pull',
    ),
  ],
)
def test_a_file_that_is_none(tmp_path, name, content, message):
  path = tmp_path / name
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(InputError, match=message) as e:
    _read(str(path))
  assert '\n' not in str(e.value)


def test_without_pyarrow(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'pyarrow', None)
  with pytest.raises(InputError, match='pyarrow, which is not installed: pip'):
    _read(str(tmp_path / 'a.parquet'))
