"""Reviews of laptops and restaurants (SemEval 2014, task 4) as rows of files.

Who gives them out wants to be asked, and gives XML. A row is an aspect of a
sentence and what is said of it:

  python -m tasks.semeval Laptop_Train_v2.xml --out=DIR/laptop/train.jsonl
"""

import argparse
from collections.abc import Sequence
import json
import sys
from xml.etree import ElementTree

from mpt_jax.checkpoints import files
from mpt_jax.types import InputError, local_path, quiet_pipe
from tasks.fillers import ASPECT


def aspects(content: bytes, name: str) -> list[dict[str, str]]:
  """Returns the rows of a file of SemEval 2014, task 4.

  Args:
    content: the XML: sentences with their text and their aspect terms.
    name: the file, for messages.

  Returns:
    `sentence`, `aspect` and `label`, a row for each aspect.

  Raises:
    InputError: if it is another file.
  """
  try:
    root = ElementTree.fromstring(content)
  except ElementTree.ParseError as e:
    raise InputError(f'{name} is no XML: {e}') from e
  rows = []
  for sentence in root.iter('sentence'):
    text = sentence.findtext('text')
    for term in sentence.iter('aspectTerm'):
      aspect, label = term.get('term'), term.get('polarity', '')
      if text is None or aspect is None or label not in ASPECT:
        raise InputError(
          f'{name}: sentence {sentence.get("id")!r} has the aspect {aspect!r}'
          f' with the polarity {label!r}, expected one of {list(ASPECT)}'
        )
      rows.append({'sentence': text, 'aspect': aspect, 'label': label})
  if not rows:
    raise InputError(f'{name} holds no aspectTerm: is it of SemEval 2014?')
  return rows


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='python -m tasks.semeval',
    description='Writes the aspects of a file of SemEval 2014, task 4, as rows'
    ' for the tasks laptop and restaurant.',
  )
  parser.add_argument('xml', help='the file, such as Laptop_Train_v2.xml')
  parser.add_argument('--out', required=True, help='the .jsonl file to write')
  with quiet_pipe():
    args = parser.parse_args(argv)
  try:
    try:
      with open(local_path(args.xml), 'rb') as f:
        rows = aspects(f.read(), args.xml)
      out = local_path(args.out)
      lines = (json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
      files.write_file(out, ''.join(lines).encode())
    except OSError as e:
      raise InputError(f'{e.filename}: {e.strerror}') from e
    with quiet_pipe():
      print(f'{args.out}: {len(rows):,} rows')
  except InputError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
