"""Tasks of files that lie in the data folder, and what fills their mask."""

import json

import pytest

from mpt_jax import data
from mpt_jax.checkpoints import texts
from mpt_jax.types import InputError
from tasks import download, own, semeval
from tasks.offline import instrument
from tasks.table import TABLE

pytestmark = pytest.mark.data

XML = b"""<sentences>
  <sentence id="1"><text>Good &amp; cheap, bad screen.</text><aspectTerms>
    <aspectTerm term="screen" polarity="negative" from="0" to="1"/>
    <aspectTerm term="price" polarity="positive" from="0" to="1"/>
  </aspectTerms></sentence>
  <sentence id="2"><text>No aspect.</text></sentence>
</sentences>"""


@pytest.fixture
def folder(tmp_path):
  data.set_data_dir(tmp_path)
  yield tmp_path
  data.set_data_dir(None)


def _rows(task, count):
  fields = {n for n in texts.Template(task.inputs).fields}
  return [
    {**{name: f'{name} {i}' for name in fields}, 'label': i % len(task.labels)}
    for i in range(count)
  ]


def _write(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


@pytest.mark.parametrize('name', own.OWN)
def test_files_of_a_user(name, folder):
  task = own.OWN[name]
  for split in {part.partition('[')[0] for part in task.splits.values()}:
    _write(folder / name / f'{split}.jsonl', _rows(task, 1100))
  for split in ('train', 'validation', 'test'):
    assert data.check_data(name, split).num_input_examples(split)
  found = data.task_texts([name], 'train')[name]
  assert (found.inputs, found.masked) == (task.inputs, task.masked)
  assert set(found.fillers) == set(task.labels)


@pytest.mark.parametrize('cached', [False, True], ids=['', 'datasets'])
@pytest.mark.parametrize('name', [n for n, t in own.OWN.items() if t.repo])
def test_files_of_the_hub(name, cached, folder):
  pa = pytest.importorskip('pyarrow')
  import pyarrow.parquet

  task = own.OWN[name]
  table = pa.Table.from_pylist(_rows(task, 1100))
  for i, split in enumerate(('train', 'validation', 'test')):
    if cached:
      repo, config = task.repo.replace('/', '___'), task.config or 'default'
      form = f'{task.repo.rpartition("/")[2]}-{split}.arrow'
      path = folder / repo / config / '0.0.0' / 'bcdcba79' / form
    else:
      path = folder / task.repo / task.config / own._OF_HUB[i].format(split)
    path.parent.mkdir(parents=True, exist_ok=True)
    if cached:
      with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)
    else:
      pyarrow.parquet.write_table(table, path)
  data.set_data_dir(f'hf:{folder}')
  for split in ('train', 'validation', 'test'):
    assert data.check_data(name, split).num_input_examples(split)
  assert data.check_data(name, 'test').tasks[0].data_set == task.repo


@pytest.mark.parametrize(
  ('name', 'how'),
  [
    ('justice', 'python -m tasks.download justice'),
    ('laptop', 'python -m tasks.semeval'),
  ],
)
def test_files_that_are_missing(name, how, folder):
  with pytest.raises(InputError, match=f'train.jsonl is missing: .*{how}'):
    data.check_data(name, 'train')


def test_what_fetches_them(capsys):
  assert download.main(['tweet_sentiment', 'rotten_tomatoes']) == 0
  assert capsys.readouterr().out.splitlines() == [
    'tweet_sentiment',
    '  hub   hf download cardiffnlp/tweet_eval --repo-type dataset --include'
    ' "sentiment/*" --local-dir DIR/cardiffnlp/tweet_eval',
    'rotten_tomatoes',
    '  hub   hf download cornell-movie-review-data/rotten_tomatoes --repo-type'
    ' dataset --include "*.parquet" --local-dir'
    ' DIR/cornell-movie-review-data/rotten_tomatoes',
  ]
  assert download.main(['restaurant']) == 2
  assert 'given out on request' in capsys.readouterr().err


def test_rows_of_semeval(folder, capsys):
  (folder / 'reviews.xml').write_bytes(XML)
  out = folder / 'laptop' / 'test.jsonl'
  assert semeval.main([str(folder / 'reviews.xml'), f'--out={out}']) == 0
  assert capsys.readouterr().out == f'{out}: 2 rows\n'
  sentence = 'Good & cheap, bad screen.'
  assert [json.loads(line) for line in out.read_text().splitlines()] == [
    {'sentence': sentence, 'aspect': 'screen', 'label': 'negative'},
    {'sentence': sentence, 'aspect': 'price', 'label': 'positive'},
  ]
  assert data.check_data('laptop', 'test').num_input_examples('test') == 2


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'no xml', 'is no XML'),
    (b'<sentences/>', 'holds no aspectTerm'),
    (XML.replace(b'"positive"', b'"good"'), "polarity 'good', expected one"),
  ],
)
def test_other_files(content, message, folder, capsys):
  (folder / 'other.xml').write_bytes(content)
  wrong = [str(folder / 'other.xml'), f'--out={folder}/x.jsonl']
  assert semeval.main(wrong) == 2
  assert message in capsys.readouterr().err
  assert not (folder / 'x.jsonl').exists()


# One token each of the vocabulary of GPT-2 and RoBERTa, with the blank before.
KNOWN = (
  ' yes no maybe great terrible correct incorrect first second negative neutral'
  ' positive conflict right wrong'
).split(' ')[1:]


def _fillers():
  yield from ((n, row.labels, row.fillers) for n, row in TABLE.items())
  yield from ((n, task.labels, task.fillers) for n, task in own.OWN.items())


@pytest.mark.parametrize(
  ('name', 'labels', 'fillers'), [*_fillers()], ids=lambda x: str(x)[:20]
)
def test_every_class_has_its_filler(name, labels, fillers):
  # What is no class, an encoder cannot answer.
  assert (fillers is None) == (labels is None)
  if fillers is not None:
    assert set(fillers) == set(labels)
    assert {word[1:] for word in fillers.values()} <= set(KNOWN)
    assert all(word.startswith(' ') for word in fillers.values())


def test_the_worlds_fillers_are_words_of_the_world():
  sentencepiece = pytest.importorskip('sentencepiece')
  from tasks.offline import vocabulary

  words = sentencepiece.SentencePieceProcessor(
    model_proto=vocabulary.model_bytes()
  )
  for spec in (*instrument.SOURCES, *instrument.TARGETS):
    assert (spec.fillers is None) == (spec.labels is None)
    for word in (spec.fillers or {}).values():
      assert len(words.encode(word)) == 1
