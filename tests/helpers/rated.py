"""A small archive in the shape of the one that tasks.reviews reads."""

from collections.abc import Mapping
import io
import tarfile

from tasks import reviews


def _tar(contents: Mapping[str, bytes]) -> bytes:
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode='w:gz') as file:
    for name, content in contents.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      file.addfile(info, io.BytesIO(content))
  return out.getvalue()


def archive(lines: Mapping[str, str]) -> bytes:
  """Returns it; one of its members would escape from a folder.

  Args:
    lines: source task -> lines of name, rating and text.
  """
  inner = {
    f'hutto_ICWSM_2014/{reviews.SOURCES[name]}_GroundTruth.txt': (
      b'\xef\xbb\xbf' + text.encode()
    )
    for name, text in lines.items()
  }
  root = 'vaderSentiment-3.3.2'
  return _tar(
    {
      '../escaped': b'no',
      f'{root}/LICENSE.txt': b'MIT',
      f'{root}/additional_resources/hutto_ICWSM_2014.tar.gz': _tar(inner),
      f'{root}/setup.py': b'raise SystemExit',
    }
  )
