"""A page of text, tables and pictures, as Markdown and as one HTML file."""

import base64
from collections.abc import Sequence
import dataclasses
import html
import os
import re

from mpt_jax.study import cells
from mpt_jax.types import InputError

_PNG = b'\x89PNG\r\n\x1a\n'
# What Markdown reads as markup. Underscores within a word it leaves alone.
_MARKUP = re.compile(r'[\\`*<>|\[\]]')
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75em; margin: 2em auto;
  padding: 0 1em; color: #222; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2em; }
div { overflow-x: auto; }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px; }
td, th { border: 1px solid #ccc; padding: .25em .6em; text-align: right;
  white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
th { background: #f3f3f3; white-space: normal; }
img { max-width: 100%; }
"""


class Strong(str):
  """A cell that stands out."""


@dataclasses.dataclass(frozen=True)
class Heading:
  """A heading; level 1 is the page's."""

  text: str
  level: int = 2


@dataclasses.dataclass(frozen=True)
class Text:
  """A paragraph of plain words."""

  text: str


@dataclasses.dataclass(frozen=True)
class Table:
  """A table; numbers stand to the right."""

  header: Sequence[str]
  rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Picture:
  """A PNG file.

  Attributes:
    path: where it lies, relative to the page.
    title: what stands for it where it isn't seen.
  """

  path: str
  title: str


Block = Heading | Text | Table | Picture


def markdown(blocks: Sequence[Block]) -> str:
  """Returns the page as Markdown; what is in it is text, not markup."""
  lines: list[str] = []
  for block in blocks:
    if isinstance(block, Heading):
      lines += [f'{"#" * block.level} {_marked(block.text)}', '']
    elif isinstance(block, Text):
      lines += [_marked(block.text), '']
    elif isinstance(block, Table):
      rows = [list(map(_marked, row)) for row in block.rows]
      lines += cells.table(list(map(_marked, block.header)), rows)
    else:
      lines += [f'![{_marked(block.title)}]({block.path})', '']
  return '\n'.join(lines).rstrip() + '\n'


def _marked(text: str) -> str:
  plain = ' '.join(text.split())
  escaped = _MARKUP.sub(r'\\\g<0>', plain)
  return f'**{escaped}**' if isinstance(text, Strong) else escaped


def page(blocks: Sequence[Block], folder: str) -> str:
  """Returns the page as HTML that needs no other file.

  Args:
    blocks: the page.
    folder: where it stands; pictures are read from there.

  Raises:
    InputError: if a picture is missing, or is none.
  """
  body = []
  for block in blocks:
    if isinstance(block, Heading):
      body.append(f'<h{block.level}>{_plain(block.text)}</h{block.level}>')
    elif isinstance(block, Text):
      body.append(f'<p>{_plain(block.text)}</p>')
    elif isinstance(block, Table):
      rows = [_row('th', block.header), *(_row('td', r) for r in block.rows)]
      body.append('<div><table>\n' + '\n'.join(rows) + '\n</table></div>')
    else:
      source = _embedded(os.path.join(folder, block.path))
      title = html.escape(block.title)
      body.append(f'<p><img alt="{title}" src="{source}"></p>')
  title = next((b.text for b in blocks if isinstance(b, Heading)), '')
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    f'<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n'
    '<body>\n' + '\n'.join(body) + '\n</body>\n</html>\n'
  )


def _row(tag: str, row: Sequence[str]) -> str:
  inner = ''.join(f'<{tag}>{_plain(cell)}</{tag}>' for cell in row)
  return f'<tr>{inner}</tr>'


def _plain(text: str) -> str:
  escaped = html.escape(text)
  return f'<strong>{escaped}</strong>' if isinstance(text, Strong) else escaped


def _embedded(path: str) -> str:
  """A picture as a data URI."""
  try:
    with open(path, 'rb') as f:
      content = f.read()
  except OSError as e:
    raise InputError(f'the picture {path} cannot be read: {e.strerror}') from e
  if not content.startswith(_PNG):
    raise InputError(f'the picture {path} is no PNG file')
  return f'data:image/png;base64,{base64.b64encode(content).decode()}'
