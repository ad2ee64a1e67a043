"""Lines and rows, read with their numbers.

Plain text; JSON Lines, TSV and CSV, also gzipped; Parquet and Arrow. Tasks read
their data with this, and `infer` what it answers. It needs no TensorFlow.
"""

import collections
from collections.abc import Iterator, Mapping, Sequence
import csv
import gzip
import io
import itertools
import json
import logging
import math
import os
import select
from typing import IO, Any, cast
import zlib

from mpt_jax.data import arrow
from mpt_jax.types import InputError

log = logging.getLogger(__name__)

Row = Mapping[str, Any]

_TEXTS = ('.jsonl', '.tsv', '.csv')
_GZIP = '.gz'
SUFFIXES = (*_TEXTS, *(f'{end}{_GZIP}' for end in _TEXTS), *arrow.SUFFIXES)
# Characters of a line or a cell: a damaged file need not have a second one.
LONGEST = 1 << 20
_BOM = b'\xef\xbb\xbf'


def parse_json(text: str | bytes, where: str) -> Any:
  """Reads one JSON value, strictly: no key of an object may occur twice.

  Args:
    text: the line.
    where: 'file:line', for the message.

  Raises:
    InputError: if it is no JSON.
  """
  try:
    return json.loads(text, object_pairs_hook=_object)
  except (ValueError, RecursionError) as e:
    raise InputError(f'{where}: no JSON: {e}') from e


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    names = collections.Counter(name for name, _ in pairs)
    raise ValueError(f'{names.most_common(1)[0][0]!r} occurs twice')
  return found


def read_rows(path: str) -> Iterator[tuple[str, Row | None]]:
  """Reads a file of rows, line by line.

  Args:
    path: its end says what it is: .jsonl, .tsv or .csv (with a header), or
      one of them in .gz; .parquet or .arrow.

  Yields:
    ('file:line', row), with the row's number in place of the line's where
    there are no lines; None in place of the row for an empty line.

  Raises:
    InputError: if the file cannot be read; names the line that is broken.
  """
  if path.endswith(arrow.SUFFIXES):
    for number, row in arrow.rows(path):
      yield f'{path}:{number}', row
    return
  is_json = path.removesuffix(_GZIP).endswith('.jsonl')
  rows = _json_lines(path) if is_json else _table(path)
  try:
    for number, found in rows:
      yield f'{path}:{number}', found
  except (OSError, EOFError, zlib.error) as e:
    said = getattr(e, 'strerror', None) or e
    raise InputError(f'{path} cannot be read: {said}') from e


def is_tsv(path: str) -> bool:
  """Whether a file is one of tab-separated values, gzipped or not."""
  return path.removesuffix(_GZIP).endswith('.tsv')


def _open(path: str) -> IO[bytes]:
  if path.endswith(_GZIP):
    return cast(IO[bytes], gzip.open(path))
  return open(path, 'rb')


def _open_text(path: str) -> IO[str]:
  # A byte that is no UTF-8 becomes what no text holds, so its line is known.
  return io.TextIOWrapper(
    _open(path), 'utf-8-sig', errors='surrogateescape', newline=''
  )


def _json_lines(path: str) -> Iterator[tuple[int, Row | None]]:
  with _open(path) as file:
    for number, line in enumerate(file, start=1):
      if number == 1:
        line = line.removeprefix(_BOM)
      if not line.strip():
        yield number, None
        continue
      row = parse_json(line, f'{path}:{number}')
      if not isinstance(row, dict):
        raise InputError(
          f'{path}:{number}: expected a JSON object, got {type(row).__name__}'
        )
      yield number, row


def is_quoted(path: str) -> bool:
  """Whether a program wrote the quotation marks of a .tsv file.

  In a .tsv a quotation mark is text, as in GLUE's files. But pandas, Python's
  csv and spreadsheets quote a cell that holds one, a tab or a line's end. The
  file is theirs if it comes out the same, letter by letter, when it is read and
  written in their way: with the cells quoted that need it, or all.

  Args:
    path: the file.
  """
  with _open_text(path) as file:
    text = file.read()
  if '"' not in text:
    return False
  try:
    rows = list(csv.reader(io.StringIO(text), delimiter='\t', strict=True))
  except csv.Error:
    return False
  lines = text.replace('\r\n', '\n').removesuffix('\n')
  plain = lines.split('\n')
  if len(plain) > len(rows) and len({line.count('\t') for line in plain}) == 1:
    return False  # A cell would hold whole rows.
  for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
    out = io.StringIO()
    csv.writer(out, delimiter='\t', quoting=quoting).writerows(rows)
    if out.getvalue().replace('\r\n', '\n').removesuffix('\n') == lines:
      return True
  return False


def _table(path: str) -> Iterator[tuple[int, Row | None]]:
  """Rows of a TSV or CSV file with a header; see `is_quoted`."""
  # The module's own limit would refuse what JSON Lines may hold.
  csv.field_size_limit(max(csv.field_size_limit(), LONGEST))
  tabs = is_tsv(path)
  quoted = not tabs or is_quoted(path)
  if tabs and quoted:
    log.info('%s: read without the quotation marks that a program wrote', path)
  with _open_text(path) as file:
    reader = csv.reader(
      file,
      delimiter='\t' if tabs else ',',
      quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
      strict=True,
    )
    header: list[str] | None = None
    try:
      for cells in reader:
        check_utf8(''.join(cells), f'{path}:{reader.line_num}')
        if not cells:
          if header is not None:
            yield reader.line_num, None
          continue
        if header is None:
          header = cells
          counts = collections.Counter(cells)
          name, count = counts.most_common(1)[0]
          if count > 1:
            raise InputError(f'{path}:1: column {name!r} occurs twice')
          continue
        if len(cells) != len(header):
          raise InputError(
            f'{path}:{reader.line_num}: {len(cells)} cells, but the header'
            f' has {len(header)}'
          )
        yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as e:
      raise InputError(f'{path}:{reader.line_num}: {e}') from e


class Stream:
  """Lines of a file, pipe or terminal, which says if there is one by now.

  Only a line feed ends a line. A byte that is no UTF-8 becomes a surrogate,
  as with `surrogateescape`.
  """

  def __init__(self, descriptor: int):
    """Reads from an open file's descriptor, from where it is."""
    self._descriptor = descriptor
    self._lines: collections.deque[bytes] = collections.deque()
    self._rest = b''
    self._ended = False

  def ready(self) -> bool:
    """Whether `readline` would return at once."""
    while not self._whole():
      if not select.select([self._descriptor], [], [], 0)[0]:
        return False
      self._read()
    return True

  def readline(self, limit: int = LONGEST) -> str:
    """Returns a line with its end; '' after the last one.

    Args:
      limit: a line of more characters comes in parts, of which the first has
        at least so many.
    """
    while not self._whole(limit):
      self._read()
    if self._lines:
      line = self._lines.popleft() + b'\n'
    else:
      line, self._rest = self._rest, b''
    return line.decode('utf-8', 'surrogateescape')

  def _whole(self, limit: int = LONGEST) -> bool:
    # A character has up to four bytes.
    return bool(self._lines or self._ended or len(self._rest) > 4 * limit)

  def _read(self) -> None:
    chunk = os.read(self._descriptor, 1 << 16)
    self._ended = not chunk
    *whole, self._rest = (self._rest + chunk).split(b'\n')
    self._lines.extend(whole)


def read_lines(stream: Any, name: str) -> Iterator[tuple[str, str]]:
  """Reads lines of text without their ends (LF or CR LF).

  Args:
    stream: a `Stream`, or text.
    name: what to call it.

  Yields:
    ('name:line', text); an empty line too.

  Raises:
    InputError: if it cannot be read; names the line that is no UTF-8, or too
      long.
  """
  for number in itertools.count(1):
    where = f'{name}:{number}'
    try:
      line = stream.readline(LONGEST + 2)
    except OSError as e:
      raise InputError(f'{name} cannot be read: {e.strerror}') from e
    if not line:
      return
    if number == 1:
      line = line.removeprefix(_BOM.decode())
    text = line.removesuffix('\n').removesuffix('\r')
    if len(text) > LONGEST:
      raise InputError(f'{where}: the line has more than {LONGEST} characters')
    check_utf8(text, where)
    yield where, text


def check_utf8(text: str, where: str) -> None:
  """Checks what was decoded with `surrogateescape`.

  Raises:
    InputError: names the first byte that is no UTF-8.
  """
  try:
    text.encode()
  except UnicodeEncodeError as e:
    byte = ord(text[e.start]) & 0xFF
    raise InputError(f'{where}: not UTF-8 (the byte 0x{byte:02x})') from e


def cell_text(value: Any, name: str) -> str | list[str]:
  """Returns a cell as text; a list of cells as a list of texts.

  Args:
    value: text, a number, or a list of them.
    name: what and where it is, for the message.

  Raises:
    InputError: for anything else, and for a number that is not finite.
  """
  if isinstance(value, str):
    try:
      value.encode()
    except UnicodeEncodeError as e:
      # JSON can hold one half of a character.
      raise InputError(f'{name} is not valid text: {e.reason}') from e
    return value
  if isinstance(value, float) and not math.isfinite(value):
    raise InputError(f'{name} is {value}, not a number')
  if isinstance(value, bool | int | float):
    return str(value)
  if isinstance(value, list | tuple):
    return [str(cell_text(item, name)) for item in value]
  raise InputError(
    f'{name} holds {type(value).__name__}, expected text, a number, or a list'
    ' of them'
  )
