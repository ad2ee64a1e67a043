"""What fetches the data; nothing is fetched here."""

import sys
import types

import pytest

from tasks import download, hub
from tasks.offline import datasets


def test_says_what_fetches(capsys):
  assert download.main(['mrpc', 'gem_e2e_nlg', 'winogrande']) == 0
  assert capsys.readouterr().out.splitlines() == [
    'mrpc',
    '  hub   hf download nyu-mll/glue --repo-type dataset --include "mrpc/*"'
    ' --local-dir DIR/nyu-mll/glue',
    '  TFDS  tfds build glue --config=mrpc --data_dir=DIR',
    'gem_e2e_nlg',
    '  hub   hf download GEM/gem --repo-type dataset --revision'
    ' refs/convert/parquet --include "e2e_nlg/*" --local-dir DIR/GEM/gem',
    '  TFDS  tfds build gem --config=e2e_nlg --data_dir=DIR',
    'winogrande',
    '  hub   hf download allenai/winogrande --repo-type dataset --include'
    ' "winogrande_xl/*" --local-dir DIR/allenai/winogrande',
    '  TFDS  tfds build winogrande --data_dir=DIR',
    '  note  of the hub: other rows are held out of train: TFDS orders them by'
    ' an id that the hub lacks',
  ]
  assert download.main(['all']) == 0
  out = capsys.readouterr().out
  assert all(f'\n{name}\n' in f'\n{out}' for name in datasets.DATASETS)
  assert {d.tfds_name for d in datasets.DATASETS.values()} == set(hub.DATA)


class _Hub:
  """A `huggingface_hub` that notes what it is asked."""

  def __init__(self, error=None, mismatches=(), missing=('wnli/x.parquet',)):
    self.error, self.asked = error, []
    self.found = types.SimpleNamespace(
      mismatches=[{'path': p} for p in mismatches],
      missing_paths=list(missing),
    )

  def HfApi(self):  # noqa: N802
    return self

  def snapshot_download(self, repo, **more):
    self.asked.append((repo, more))
    if self.error:
      raise self.error

  def verify_repo_checksums(self, repo, **more):
    self.asked.append((repo, more))
    return self.found


def test_fetches(monkeypatch, capsys, tmp_path):
  fake = _Hub()
  monkeypatch.setitem(sys.modules, 'huggingface_hub', fake)
  assert download.main(['mrpc', f'--hf_data_dir={tmp_path}']) == 0
  folder = str(tmp_path / 'nyu-mll' / 'glue')
  place = {'repo_type': 'dataset', 'revision': 'main', 'local_dir': folder}
  assert fake.asked == [
    ('nyu-mll/glue', {**place, 'allow_patterns': ['mrpc/*']}),
    ('nyu-mll/glue', place),
  ]
  said = f'mrpc: {folder}/mrpc, as the checksums of the hub say\n'
  assert capsys.readouterr().out == said


@pytest.mark.parametrize(
  ('names', 'fake', 'words'),
  [
    (
      ['mrcp'],
      None,
      "'mrcp' is no task with data to fetch; did you mean 'mrpc'",
    ),
    (
      ['mrpc'],
      None,
      'huggingface_hub (the extra `hub`), which is not installed',
    ),
    (
      ['mrpc'],
      _Hub(OSError('Name or service not known\nmore')),
      'nyu-mll/glue cannot be fetched: Name or service not known; where there'
      ' is a network: hf download nyu-mll/glue',
    ),
    (
      ['mrpc'],
      _Hub(mismatches=['mrpc/a.parquet']),
      'mrpc/a.parquet is not what',
    ),
    (['mrpc'], _Hub(missing=['mrpc/b.parquet']), 'mrpc/b.parquet is not what'),
  ],
)
def test_what_is_missing_is_one_line(
  monkeypatch, capsys, tmp_path, names, fake, words
):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', fake)
  assert download.main([*names, f'--hf_data_dir={tmp_path}']) == 2
  error = capsys.readouterr().err
  assert words in error
  assert error.count('\n') == 1
