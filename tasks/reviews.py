r"""Prepares real text for a study of one's own: four source tasks and a target.

  python -m tasks.reviews --out=reviews

The sentences of VADER (Hutto & Gilbert, ICWSM 2014), each rated by people from
-4 to 4, come from the source archive of vaderSentiment 3.3.2 (MIT licence),
which pip downloads; --archive=FILE takes one that is there. pip checks its
checksum first. It then asks the archive's setup.py for its metadata, as for
any source archive; with --archive nothing of it is run. See docs/studies.md.
"""

import argparse
from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import html
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile

from mpt_jax.checkpoints import files
from mpt_jax.types import InputError, local_path, quiet_pipe

PACKAGE = 'vaderSentiment==3.3.2'
SHA256 = '5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9'
_ROOT = 'vaderSentiment-3.3.2'
_INNER = f'{_ROOT}/additional_resources/hutto_ICWSM_2014.tar.gz'
_LICENCE = f'{_ROOT}/LICENSE.txt'

# Source task -> its file in the archive.
SOURCES = {
  'movies': 'movieReviewSnippets',
  'products': 'amazonReviewSnippets',
  'editorials': 'nytEditorialSnippets',
  'tweets': 'tweets',
}
TARGET = 'mixed'
SPLITS = ('train', 'validation', 'test')
# Below it, in absolute value, a mean rating is neutral.
NEUTRAL = 0.5
# One text in so many is the target's; of the others' twentieths, so many are
# not trained on, for each of the two splits.
_TARGET_SHARE, _PARTS, _HELD_OUT = 4, 20, 3


@dataclasses.dataclass(frozen=True)
class Prepared:
  """What is made of the archive.

  Attributes:
    rows: (task, split) -> its rows.
    neutral: source task -> near-neutral sentences that it leaves out.
    repeated: source task -> sentences left out since they came before.
  """

  rows: Mapping[tuple[str, str], list[dict[str, str | float]]]
  neutral: Mapping[str, int]
  repeated: Mapping[str, int]


def download() -> bytes:
  """Returns the archive, which pip gets from where it is set up to.

  Raises:
    InputError: if pip cannot get it, or gets another.
  """
  with tempfile.TemporaryDirectory() as folder:
    wanted = os.path.join(folder, 'requirements.txt')
    with open(wanted, 'w') as f:
      f.write(f'{PACKAGE} --hash=sha256:{SHA256}\n')
    done = subprocess.run(
      [
        *(sys.executable, '-m', 'pip', 'download', '--quiet', '--no-input'),
        *('--no-deps', '--no-binary=:all:', '--retries=1'),
        *('--require-hashes', f'--requirement={wanted}', f'--dest={folder}'),
      ],
      capture_output=True,
      text=True,
      check=False,
    )
    if done.returncode:
      said = [x for x in done.stderr.splitlines() if x.startswith('ERROR: ')]
      why = (said or done.stderr.strip().splitlines() or ['no reason given'])[0]
      raise InputError(
        f'pip cannot download {PACKAGE}: {why.removeprefix("ERROR: ")}; without'
        ' a network, give its source archive as --archive=FILE'
      )
    path = os.path.join(folder, f'{_ROOT}.tar.gz')
    return read_archive(path)


def read_archive(path: str) -> bytes:
  """Returns the archive of a file.

  Raises:
    InputError: if it cannot be read, or is another.
  """
  try:
    with open(local_path(path), 'rb') as f:
      content = f.read()
  except OSError as e:
    raise InputError(f'{path} cannot be read: {e.strerror}') from e
  found = hashlib.sha256(content).hexdigest()
  if found != SHA256:
    raise InputError(
      f'{path} is not the source archive of {PACKAGE}: its sha256 is {found},'
      f' not {SHA256}'
    )
  return content


def _members(archive: bytes, names: Sequence[str]) -> list[bytes]:
  """Reads members of a .tar.gz; nothing is unpacked to disk."""
  with tarfile.open(fileobj=io.BytesIO(archive), mode='r:gz') as tar:
    opened = [tar.extractfile(name) for name in names]
    return [file.read() for file in opened if file is not None]


def prepare(texts: Mapping[str, str]) -> Prepared:
  """Makes the tasks: which sentence goes where is fixed by its text alone.

  A source task asks whether a sentence of its kind is negative or positive,
  the target of held out sentences of all kinds also whether it is neutral. No
  text is in two splits or two tasks, however it is punctuated.

  Args:
    texts: source task -> lines of name, mean rating and sentence, with tabs
      between them.
  """
  rows: dict[tuple[str, str], list[dict[str, str | float]]] = {
    (task, split): [] for task in (*texts, TARGET) for split in SPLITS
  }
  neutral, repeated = dict.fromkeys(texts, 0), dict.fromkeys(texts, 0)
  seen: set[str] = set()
  for source, text in texts.items():
    for line in filter(None, text.split('\n')):
      name, rating, raw = line.rstrip('\r').split('\t')
      sentence = ' '.join(html.unescape(raw).split())
      key = re.sub(r'\W+', ' ', sentence.casefold()).strip() or sentence
      if key in seen:
        repeated[source] += 1
        continue
      seen.add(key)
      task, split = _place(source, key)
      label = _label(float(rating))
      if task == source and label == 'neutral':
        neutral[source] += 1
        continue
      rows[task, split].append(
        {
          'id': f'{source}-{name}',
          'text': sentence,
          'label': label,
          'rating': round(float(rating), 3),
        }
      )
  return Prepared(rows, neutral, repeated)


def _place(source: str, key: str) -> tuple[str, str]:
  """The task and the split of a text."""
  number = int(hashlib.sha256(key.encode()).hexdigest(), 16)
  number, left = divmod(number, _TARGET_SHARE)
  part = number % _PARTS
  split = 'train'
  if part < 2 * _HELD_OUT:
    split = 'validation' if part < _HELD_OUT else 'test'
  return (source if left else TARGET), split


def _label(rating: float) -> str:
  if abs(rating) < NEUTRAL:
    return 'neutral'
  return 'positive' if rating > 0 else 'negative'


def _readme(made: Prepared) -> str:
  """What the folder holds, for a person."""
  lines = [
    '# Rated sentences: four source tasks and a target',
    '',
    'From the data of C.J. Hutto and E. Gilbert, "VADER: A Parsimonious',
    'Rule-based Model for Sentiment Analysis of Social Media Text", ICWSM',
    f'2014, as the source archive of {PACKAGE} holds them (MIT licence,',
    f'see LICENSE.txt; sha256 {SHA256}).',
    'The sentences are from film reviews, product reviews, editorials of a',
    'newspaper and tweets. Several people rated each from -4 (negative) to 4',
    '(positive).',
    '',
    'A line of a file is an example: `id`, `text`, `label`, and the mean',
    f'`rating`. One below {NEUTRAL} either way is neutral. HTML entities and',
    f'blanks are made plain. `{TARGET}` has one text in {_TARGET_SHARE} of all',
    'kinds, with three labels; the source tasks have the others, without',
    'neutral ones. A text that came before, case and punctuation aside, is',
    'left out. Made by `python -m tasks.reviews`; the same archive gives the',
    'same files.',
    '',
    '| task | train | validation | test | left out: neutral | repeated |',
    '| --- | ---: | ---: | ---: | ---: | ---: |',
  ]
  for task in (*made.neutral, TARGET):
    counts = [len(made.rows[task, split]) for split in SPLITS]
    out = [counted.get(task, '') for counted in (made.neutral, made.repeated)]
    lines.append('| ' + ' | '.join(map(str, (task, *counts, *out))) + ' |')
  return '\n'.join([*lines, ''])


def write(out: str, archive: str | None = None) -> str:
  """Writes the tasks into a folder, unless they are there.

  Args:
    out: the folder.
    archive: the source archive; None lets pip get it.

  Returns:
    What was done, for a person.

  Raises:
    InputError: if the archive cannot be had or is another, or the folder has
      other files in it.
  """
  names = [f'{t}_{s}.jsonl' for t in (*SOURCES, TARGET) for s in SPLITS]
  place = local_path(out)
  whole = ['README.md', 'LICENSE.txt', *names]
  if all(os.path.isfile(os.path.join(place, name)) for name in whole):
    return f'{out}: there already'
  content = download() if archive is None else read_archive(archive)
  inner, licence = _members(content, [_INNER, _LICENCE])
  tables = _members(
    inner,
    [f'hutto_ICWSM_2014/{name}_GroundTruth.txt' for name in SOURCES.values()],
  )
  made = prepare(
    {
      task: table.decode('utf-8-sig')
      for task, table in zip(SOURCES, tables, strict=True)
    }
  )
  readme = _readme(made)
  contents = {'README.md': readme.encode(), 'LICENSE.txt': licence}
  for (task, split), rows in made.rows.items():
    text = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
    contents[f'{task}_{split}.jsonl'] = text.encode()
  files.write_folder(place, contents)
  return readme[readme.index('| task') :] + f'written to {out}'


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='python -m tasks.reviews',
    description='Prepares four source tasks and a target from sentences that'
    ' people rated, from the source archive of vaderSentiment 3.3.2.',
  )
  parser.add_argument('--out', required=True, help='folder to write')
  parser.add_argument('--archive', help='the archive; unset: pip downloads it')
  with quiet_pipe():
    args = parser.parse_args(argv)
  try:
    with quiet_pipe():
      print(write(args.out, args.archive))
  except InputError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
