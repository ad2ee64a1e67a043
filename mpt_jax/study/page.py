"""A page of text, tables and pictures: Markdown, one HTML file, CSV files."""

import base64
from collections.abc import Iterator, Mapping, Sequence
import csv
import dataclasses
import html
import io
import os
import re
from typing import Any

from mpt_jax.types import InputError

_PNG = b'\x89PNG\r\n\x1a\n'
_SVG = b'<?xml'
# What Markdown reads as markup. Underscores within a word it leaves alone.
_MARKUP = re.compile(r'[\\`*<>|\[\]]')
_SPACE = re.compile(r'\s+')
_STYLE = """
:root { color-scheme: light dark; --text: #222; --back: #fff; --line: #ccc;
  --head: #f3f3f3; --row: #f8f8fb; --link: #0b57d0; }
@media (prefers-color-scheme: dark) { :root { --text: #ddd; --back: #16181c;
  --line: #444; --head: #262a31; --row: #1d2026; --link: #8ab4f8; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 80em; margin: 2em auto;
  padding: 0 1em; color: var(--text); background: var(--back); }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2em; }
p, li { max-width: 60em; } a { color: var(--link); }
nav ul { columns: 16em; padding-left: 1.2em; }
div { overflow-x: auto; }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px; }
td, th { border: 1px solid var(--line); padding: .25em .6em; text-align: right;
  white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
th { background: var(--head); white-space: normal; vertical-align: bottom; }
tbody tr { background: var(--back); }
tbody tr:nth-child(even) { background: var(--row); }
td:first-child { position: sticky; left: 0; background: inherit; }
th button { all: unset; cursor: pointer; font: inherit; text-align: inherit; }
th button:focus-visible { outline: 2px solid var(--link); }
th[aria-sort=ascending] button::after { content: " \\25b2"; }
th[aria-sort=descending] button::after { content: " \\25bc"; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
pre { overflow-x: auto; padding: .6em; background: var(--head); }
code { font-size: 13px; }
"""
# Numbers go down first, words up; cells without a value stay last.
_SCRIPT = r"""
const number = /^[+-]?(\d[\d,]*\.?\d*|\.\d+)/;
const read = cell => {
  const text = cell ? cell.textContent.trim() : "";
  return text === "" || text === "-" || text === "n/a" ? null : text;
};
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    if (!button.textContent) button.setAttribute("aria-label", "sort by this");
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const rows = [...body.rows].map(row => [read(row.cells[column]), row]);
      const known = rows.filter(([text]) => text !== null);
      const numeric = known.every(([text]) => number.test(text));
      const before = head.getAttribute("aria-sort");
      const up = before === "none" ? !numeric : before === "descending";
      const value = text => parseFloat(text.match(number)[0].replace(/,/g, ""));
      known.sort(([a], [b]) => (up ? 1 : -1) *
        (numeric ? value(a) - value(b) : a.localeCompare(b)));
      heads.forEach(other => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      body.append(...known.map(([, row]) => row),
        ...rows.filter(([text]) => text === null).map(([, row]) => row));
    });
  });
}
"""


class Strong(str):
  """Words that stand out."""


class Code(str):
  """What a machine reads."""


@dataclasses.dataclass(frozen=True)
class Heading:
  """A heading; level 1 is the page's."""

  text: str
  level: int = 2


@dataclasses.dataclass(frozen=True)
class Text:
  """A paragraph of plain words, or of pieces of which some stand out."""

  text: str | Sequence[str]


@dataclasses.dataclass(frozen=True)
class Bullets:
  """A list; an item is what `Text` takes."""

  items: Sequence[str | Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Listing:
  """Lines as a machine reads them."""

  lines: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Table:
  """A table; numbers stand to the right.

  Attributes:
    header: titles of the columns.
    rows: as many cells each.
    name: of its CSV file; '' has none.
    records: the same as plain values, by column; rows of the CSV file.
  """

  header: Sequence[str]
  rows: Sequence[Sequence[str]]
  name: str = ''
  records: Sequence[Mapping[str, Any]] = ()


@dataclasses.dataclass(frozen=True)
class Picture:
  """A PNG file; HTML takes the SVG file beside it, if there is one.

  Attributes:
    path: where it lies, relative to the page.
    title: what stands for it where it isn't seen.
  """

  path: str
  title: str


Block = Heading | Text | Bullets | Listing | Table | Picture


def markdown(blocks: Sequence[Block]) -> str:
  """Returns the page as Markdown; what is in it is text, not markup."""
  lines: list[str] = []
  for block in blocks:
    if isinstance(block, Heading):
      lines += [f'{"#" * block.level} {_marked(block.text)}', '']
    elif isinstance(block, Text):
      lines += [_marked(block.text), '']
    elif isinstance(block, Bullets):
      lines += [*(f'- {_marked(item)}' for item in block.items), '']
    elif isinstance(block, Listing):
      lines += ['```', *block.lines, '```', '']
    elif isinstance(block, Table):
      rule = ['---', *['---:'] * (len(block.header) - 1)]
      rows = [list(map(_marked, row)) for row in (block.header, *block.rows)]
      for row in (rows[0], rule, *rows[1:]):
        lines.append('| ' + ' | '.join(row) + ' |')
      lines.append('')
    else:
      lines += [f'![{_marked(block.title)}]({block.path})', '']
  return '\n'.join(lines).rstrip() + '\n'


def _pieces(text: str | Sequence[str]) -> Sequence[str]:
  return [text] if isinstance(text, str) else text


def _marked(text: str | Sequence[str]) -> str:
  made = []
  for piece in _pieces(text):
    plain = _SPACE.sub(' ', piece)
    if isinstance(piece, Code):
      made.append(f'`{plain}`')
      continue
    escaped = _MARKUP.sub(r'\\\g<0>', plain)
    made.append(f'**{escaped}**' if isinstance(piece, Strong) else escaped)
  return ''.join(made).strip()


def page(blocks: Sequence[Block], folder: str) -> str:
  """Returns the page as HTML that needs no other file.

  A heading of level 2 begins a `<section>` whose id is its text; tables are
  sorted by a click on a column's title.

  Args:
    blocks: the page.
    folder: where it stands; pictures are read from there.

  Raises:
    InputError: if a picture is missing, or is none.
  """
  names = _ids(blocks)
  body, open_section = [], False
  for i, block in enumerate(blocks):
    if isinstance(block, Heading):
      tag = f'h{block.level}'
      if block.level == 2:
        body += ['</section>'] * open_section + [f'<section id="{names[i]}">']
        open_section = True
      name = f' id="{names[i]}"' if block.level > 2 else ''
      body.append(f'<{tag}{name}>{_plain(block.text)}</{tag}>')
      if block.level == 1:
        body += _contents(blocks, names)
    else:
      body.append(_element(block, folder))
  body += ['</section>'] * open_section
  title = next((b.text for b in blocks if isinstance(b, Heading)), '')
  policy = "default-src 'none'; img-src data:; " + '; '.join(
    f"{kind}-src 'unsafe-inline'" for kind in ('style', 'script')
  )
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width">\n'
    f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    f'<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n'
    '<body>\n' + '\n'.join(body) + f'\n<script>{_SCRIPT}</script>\n'
    '</body>\n</html>\n'
  )


def _element(block: Block, folder: str) -> str:
  if isinstance(block, Text):
    return f'<p>{_plain(block.text)}</p>'
  if isinstance(block, Bullets):
    items = ''.join(f'<li>{_plain(item)}</li>\n' for item in block.items)
    return f'<ul>\n{items}</ul>'
  if isinstance(block, Listing):
    lines = html.escape('\n'.join(block.lines))
    return f'<pre><code>{lines}</code></pre>'
  if isinstance(block, Table):
    rows = '\n'.join(_row('td', row) for row in block.rows)
    head = _row('th', block.header)
    return (
      f'<div><table>\n<thead>{head}</thead>\n<tbody>\n{rows}\n</tbody>\n'
      '</table></div>'
    )
  assert isinstance(block, Picture)
  source = _embedded(os.path.join(folder, block.path))
  return f'<p><img alt="{html.escape(block.title)}" src="{source}"></p>'


def _ids(blocks: Sequence[Block]) -> dict[int, str]:
  """Place of a heading -> its id, which no other one has."""
  names: dict[int, str] = {}
  for i, block in enumerate(blocks):
    if isinstance(block, Heading):
      name = re.sub(r'\W+', '-', block.text.lower()).strip('-') or 'part'
      names[i] = f'{name}-{i}' if name in names.values() else name
  return names


def _contents(blocks: Sequence[Block], names: Mapping[int, str]) -> list[str]:
  """Links to the parts of a page that has some."""
  parts = [
    f'<li><a href="#{name}">{_plain(heading.text)}</a></li>'
    for i, name in names.items()
    if isinstance(heading := blocks[i], Heading) and heading.level == 2
  ]
  if len(parts) < 3:
    return []
  return ['<nav aria-label="Contents"><ul>', *parts, '</ul></nav>']


def _row(tag: str, row: Sequence[str]) -> str:
  inner = ''.join(f'<{tag}>{_plain(cell)}</{tag}>' for cell in row)
  if tag == 'th':  # Long names may break.
    inner = inner.replace('_', '_<wbr>')
  return f'<tr>{inner}</tr>'


def _plain(text: str | Sequence[str]) -> str:
  made = []
  for piece in _pieces(text):
    escaped = html.escape(piece)
    for kind, tag in ((Strong, 'strong'), (Code, 'code')):
      if isinstance(piece, kind):
        escaped = f'<{tag}>{escaped}</{tag}>'
    made.append(escaped)
  return ''.join(made)


def _embedded(path: str) -> str:
  """A picture as a data URI."""
  drawn = os.path.splitext(path)[0] + '.svg'
  kind, start = 'png', _PNG
  if os.path.exists(drawn):
    path, kind, start = drawn, 'svg+xml', _SVG
  try:
    with open(path, 'rb') as f:
      content = f.read()
  except OSError as e:
    raise InputError(f'the picture {path} cannot be read: {e.strerror}') from e
  if not content.startswith(start):
    raise InputError(f'the picture {path} is no {kind[:3].upper()} file')
  return f'data:image/{kind};base64,{base64.b64encode(content).decode()}'


def csv_files(blocks: Sequence[Block]) -> Iterator[tuple[str, str]]:
  """Yields (name, text) of each table's CSV file."""
  for block in blocks:
    if isinstance(block, Table) and block.name:
      columns = list(dict.fromkeys(c for row in block.records for c in row))
      text = io.StringIO()
      writer = csv.DictWriter(text, columns, lineterminator='\n')
      writer.writeheader()
      writer.writerows(block.records)
      yield f'{block.name}.csv', text.getvalue()
