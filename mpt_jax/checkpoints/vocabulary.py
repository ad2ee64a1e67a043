"""A checkpoint's own word about its vocabulary and its special ids.

What lies beside a backbone says which ids a text has: a SentencePiece file, or
`tokenizer.json`, or `vocab.json` and `merges.txt`, or the name of ByT5's
tokenizer; and beside them what was put on top (sentinels, added tokens), and
which ids pad, begin and end a sequence. All that is read here, by whoever
turns text into ids.

What an encoder's input begins with, what it fills in and what stands between
two texts are marks of a template (`texts.MARKS`), which become special ids. A
text that a user typed never does, whatever it says.

Inside, 0 is padding everywhere. A checkpoint whose padding is another id p has
rows 0 and p of its embedding swapped when it is read, and its ids likewise
(`SpecialIds.swap`); a user sees the checkpoint's own ids.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import hashlib
import importlib
import json
import logging
import os
import re
from typing import Any, TypeGuard

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from mpt_jax.checkpoints import files, stores
from mpt_jax.checkpoints.texts import BEGIN, MARKS, MASK, SEPARATOR
from mpt_jax.types import InputError, is_remote

log = logging.getLogger(__name__)

SPIECE = 'spiece.model'
VOCAB = 'vocab.json'
MERGES = 'merges.txt'
TOKENIZER = 'tokenizer.json'
TOKENIZER_CONFIG = 'tokenizer_config.json'
SPECIAL_TOKENS = 'special_tokens_map.json'
ADDED_TOKENS = 'added_tokens.json'
CONFIG = 'config.json'
GENERATION = 'generation_config.json'
# What belongs to a vocabulary beside the file that holds its pieces.
BESIDE = (TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS)
BYTE_CLASS = 'ByT5Tokenizer'
# Kinds of encoders that fill a mask, as `config.json` calls them.
ENCODERS = ('roberta', 'xlm-roberta')
_LLAMA = 'tokenizer.model'

# Where nothing is said.
_SENTINELS = 100
_BYTE_SENTINELS = 125
# No file of a stranger may fill the memory.
_MOST_SENTINELS = 1 << 16
# ByT5: padding, end mark and unknown, then the bytes.
_FIRST_BYTE = 3
# What no text holds: the pieces of an encoder's special tokens are called so.
_HIDDEN = '\ufdef'
# Parts of `tokenizer.json` that its ids do not depend on.
_UNUSED = ('trim_offsets',)
_BYTES = 256
_NAMES = {'pad_token': '<pad>', 'eos_token': '</s>', 'unk_token': '<unk>'}
_MASK = '<mask>'
_ID_KEYS = ('pad_token_id', 'decoder_start_token_id', 'eos_token_id')
_LISTS = ('additional_special_tokens', 'extra_special_tokens')
_SENTINEL = re.compile(r'\u2581?<extra_id_(\d+)>')
# A vocabulary of 250,000 pieces (mT5's) has 16 MB as JSON.
_MAX_BYTES = 1 << 26
# The class is made when the module is loaded; no type checker sees it.
_ModelProto = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]


@dataclasses.dataclass(frozen=True)
class SpecialIds:
  """The ids that a checkpoint pads, begins and ends a sequence with.

  Attributes:
    pad: padding.
    start: the first input of the decoder.
    end: the end mark.
    begin: what an encoder's inputs begin with; None of a text-to-text model.
    mask: what an encoder fills in; None of a text-to-text model, or if no
      tokenizer says it.
  """

  pad: int = 0
  start: int = 0
  end: int = 1
  begin: int | None = None
  mask: int | None = None

  def swap(self, ids: Iterable[int]) -> list[int]:
    """Swaps 0 and the padding: the checkpoint's ids <-> ours.

    Examples:
      >>> SpecialIds(pad=1, end=2).swap([0, 7, 1])
      [1, 7, 0]
    """
    other = {0: self.pad, self.pad: 0}
    return [other.get(i, i) for i in map(int, ids)]

  def facts(self) -> dict[str, int]:
    """What tells a backbone from one with other ids, by name.

    The mask is a matter of the vocabulary, whose digest covers it.
    """
    facts = {'pad': self.pad, 'start': self.start, 'end': self.end}
    return facts if self.begin is None else {**facts, 'begin': self.begin}

  def of_model(self) -> dict[str, Any]:
    """The settings of the prompted model, in our ids."""
    start, end = self.swap((self.start, self.end))
    if self.begin is None:
      return {'start_id': start, 'eos_id': end}
    mask = None if self.mask is None else self.swap([self.mask])[0]
    return {'mask_id': mask, 'eos_id': end}


ORDINARY = SpecialIds()


def require_ordinary(special: SpecialIds, backbone: str) -> None:
  """Refuses ids that a T5X checkpoint has no place for.

  Args:
    special: the ids.
    backbone: whose they are.

  Raises:
    InputError: if they are not T5's.
  """
  if special != ORDINARY:
    raise InputError(
      f'{backbone} has pad {special.pad}, start {special.start}, end'
      f' {special.end}, but a T5X checkpoint cannot say so: T5X knows pad 0,'
      ' start 0, end 1 alone; use mpt_jax.train and FORMAT huggingface'
    )


def read_special_ids(folder: str) -> SpecialIds:
  """Reads pad, start and end ids of a folder of transformers.

  Args:
    folder: holds `config.json`, and perhaps `generation_config.json`.

  Returns:
    The ids; what is not said is T5's (pad 0, end 1, start as pad), or of one
    of `ENCODERS` RoBERTa's (begin 0, pad 1, end 2).

  Raises:
    InputError: if they are no ids, there are several end marks, or the two
      files contradict each other.
  """
  said: dict[str, tuple[int, str]] = {}
  rows = None
  encoder = False
  for name in (CONFIG, GENERATION):
    content = _read_beside(folder, name)
    if name == CONFIG:
      rows = content.get('vocab_size')
      encoder = content.get('model_type') in ENCODERS
    if content.get('forced_bos_token_id') is not None:
      raise InputError(
        f'{os.path.join(folder, name)}: forced_bos_token_id is'
        f' {content["forced_bos_token_id"]!r}; a first answer that is not the'
        " model's own is not supported"
      )
    for key in _ID_KEYS + ('bos_token_id',) * encoder:
      value = content.get(key)
      if isinstance(value, list) and len(value) == 1:
        value = value[0]
      if value is None:
        continue
      file = os.path.join(folder, name)
      if isinstance(value, list):
        raise InputError(
          f'{file}: {key} is {value}; several are not supported, give one'
        )
      if not _is_id(value):
        raise InputError(f'{file}: {key} is {value!r}, expected an id')
      if isinstance(rows, int) and value >= rows:
        raise InputError(
          f'{file}: {key} is {value}, but the embedding has {rows} rows'
          f' (vocab_size in {CONFIG})'
        )
      if key in said and said[key][0] != value:
        raise InputError(
          f'{file}: {key} is {value}, but {said[key][1]} has {said[key][0]};'
          ' make them the same'
        )
      said.setdefault(key, (value, name))
  pad = said.get('pad_token_id', (int(encoder), ''))[0]
  start = said.get('decoder_start_token_id', (pad, ''))[0]
  end = said.get('eos_token_id', (1 + encoder, ''))[0]
  if pad == end:
    raise InputError(
      f'{os.path.join(folder, CONFIG)}: pad_token_id and eos_token_id are both'
      f' {pad}; a sequence that ends could not be told from padding'
    )
  if not encoder:
    return SpecialIds(pad, start, end)
  begin = said.get('bos_token_id', (0, ''))[0]
  if begin == pad:
    raise InputError(
      f'{os.path.join(folder, CONFIG)}: pad_token_id and bos_token_id are both'
      f' {pad}; an encoder would not see what its inputs begin with'
    )
  return SpecialIds(pad, start, end, begin, _mask_id(folder))


def _mask_id(folder: str) -> int | None:
  """What the files of a folder give the mask for an id, if they do."""
  name = _MASK
  for file in (TOKENIZER_CONFIG, SPECIAL_TOKENS):
    entry = _read_beside(folder, file).get('mask_token')
    if entry is not None:
      name = _text(entry, os.path.join(folder, file))
      break
  for file in (TOKENIZER, VOCAB, ADDED_TOKENS):
    path, content = os.path.join(folder, file), _read_beside(folder, file)
    if file != TOKENIZER:
      tables = [content]
    else:
      added = _list(content.get('added_tokens'), path)
      model = content.get('model')
      vocab = model.get('vocab') if isinstance(model, dict) else None
      if isinstance(vocab, list):  # Unigram: pairs of a piece and its score.
        pieces = [p[0] for p in vocab if isinstance(p, list) and p]
        vocab = {
          piece: i for i, piece in enumerate(pieces) if isinstance(piece, str)
        }
      tables = [
        {e['content']: e.get('id') for e in added if _is_token(e)},
        vocab if isinstance(vocab, dict) else {},
      ]
    for table in tables:
      if name in table:
        if not _is_id(table[name]):
          raise InputError(f'{path}: {name!r} has the id {table[name]!r}')
        return table[name]
  return None


def _with_mask(special: SpecialIds, folder: str, path: str) -> SpecialIds:
  """The special ids of an encoder with the mask of its own vocabulary."""
  mask = _mask_id(folder)
  if mask is None:
    raise InputError(
      f'{path}: no file beside it says which token is the mask (mask_token,'
      f' usually {_MASK}), so that nothing can be filled in; save the tokenizer'
      ' anew with transformers'
    )
  if special.mask not in (None, mask):
    raise InputError(
      f'{path}: the mask has the id {mask}, but that of the backbone is'
      f' {special.mask}; give the vocabulary of the backbone'
    )
  return dataclasses.replace(special, mask=mask)


def _is_token(entry: Any) -> bool:
  return isinstance(entry, dict) and isinstance(entry.get('content'), str)


def find_vocabulary(folder: str) -> str | None:
  """Returns the file that says what a folder's vocabulary is, or None.

  It is `spiece.model`, else `tokenizer.json`, else `vocab.json` with its
  `merges.txt`; of ByT5, whose vocabulary needs no file, the one that names
  its class.
  """
  for name in (TOKENIZER_CONFIG, CONFIG):
    if os.path.isfile(os.path.join(folder, name)) and (
      _read_beside(folder, name).get('tokenizer_class') == BYTE_CLASS
    ):
      return os.path.join(folder, name)
  for name in (SPIECE, TOKENIZER):
    if _exists(folder, name):
      return os.path.join(folder, name)
  if _exists(folder, VOCAB) and _exists(folder, MERGES):
    return os.path.join(folder, VOCAB)
  return None


def bring(path: str) -> str:
  """Returns where a vocabulary lies here, with what lies beside it.

  Args:
    path: its file or folder, here or in a bucket.

  Raises:
    InputError: if it is in a bucket and cannot be copied.
  """
  path = stores.place(path)
  if not is_remote(path):
    return path
  folder, name = os.path.split(path)
  wanted = {name, CONFIG, *BESIDE}
  if files.is_folder(path):
    folder, wanted = path, wanted - {name} | {SPIECE, VOCAB, MERGES}
  elif name == VOCAB:
    wanted.add(MERGES)
  for name in wanted.intersection(stores.names(folder)):
    stores.bring(f'{folder}/{name}')
  return stores.copy_of(path)


def files_of(path: str) -> dict[str, bytes]:
  """Reads a vocabulary and all that lies beside it, to be put elsewhere.

  Args:
    path: its file, as `find_vocabulary` finds it; a SentencePiece file may
      have any name.

  Returns:
    Contents by the names that `find_vocabulary` knows.

  Raises:
    InputError: if a file cannot be read.
  """
  path = _vocabulary_file(path)
  folder, name = os.path.split(os.path.abspath(path))
  paths = {n: os.path.join(folder, n) for n in BESIDE if _exists(folder, n)}
  if name == VOCAB:
    paths |= {n: os.path.join(folder, n) for n in (VOCAB, MERGES)}
  elif name not in (*BESIDE, CONFIG):
    paths[SPIECE] = path
  elif name != CONFIG:
    paths[name] = path
  contents = {}
  for name, file in paths.items():
    try:
      with open(file, 'rb') as f:
        contents[name] = f.read()
    except OSError as e:
      raise InputError(
        f'cannot read the vocabulary {file}: {e.strerror or e}'
      ) from e
  if os.path.basename(path) == CONFIG:
    # The product's own config.json is a new one.
    said = {**_read_beside(folder, TOKENIZER_CONFIG)}
    said['tokenizer_class'] = BYTE_CLASS
    contents[TOKENIZER_CONFIG] = files.json_bytes(said)
  return contents


@dataclasses.dataclass(frozen=True)
class _Token:
  """A token that tokenizer files name.

  Attributes:
    id: its id, or None if they don't say.
    file: the file that names it.
    lstrip, rstrip: whether it swallows white space on that side.
    single_word: whether it must stand between non-word characters.
    special: whether it is found before all others.
  """

  id: int | None
  file: str
  lstrip: bool = False
  rstrip: bool = False
  single_word: bool = False
  special: bool = True

  @classmethod
  def create(cls, value: Any, file: str, id: Any = None) -> '_Token':
    """Reads the flags of a token that is a text or a table."""
    if id is not None and not _is_id(id):
      raise InputError(f'{file}: a token has the id {id!r}')
    flags = value if isinstance(value, dict) else {}
    return cls(
      id,
      file,
      lstrip=bool(flags.get('lstrip')),
      rstrip=bool(flags.get('rstrip')),
      single_word=bool(flags.get('single_word')),
      special=not flags.get('normalized'),
    )


@dataclasses.dataclass
class _Said:
  """What the files beside a vocabulary say.

  Attributes:
    tokens: what they name, but for the three of `names`.
    names: 'pad_token' … -> (the token, the file that says so).
    extra_ids: the number of sentinels, if it is said.
    any: whether there is any such file.
    folder: where they lie; '' if nothing can lie there.
  """

  tokens: dict[str, _Token] = dataclasses.field(default_factory=dict)
  names: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
  extra_ids: int | None = None
  any: bool = False
  folder: str = ''

  @classmethod
  def read(cls, folder: str) -> '_Said':
    """Reads them.

    Raises:
      InputError: if they are damaged or contradict each other.
    """
    said = cls(folder=folder)
    for name in BESIDE if folder else ():
      if os.path.isfile(os.path.join(folder, name)):
        said.any = True
        said._take(os.path.join(folder, name), _read_beside(folder, name))
    return said

  def _take(self, file: str, content: Mapping[str, Any]) -> None:
    name = os.path.basename(file)
    if name == ADDED_TOKENS:
      for text, number in content.items():
        self._add(text, _Token.create(None, file, number))
      return
    if name == TOKENIZER:
      for entry in _list(content.get('added_tokens'), file):
        number = entry.get('id') if isinstance(entry, dict) else None
        self._add(_text(entry, file), _Token.create(entry, file, number))
      return
    table = content.get('added_tokens_decoder') or {}
    if not isinstance(table, dict):
      raise InputError(f'{file}: added_tokens_decoder is no table')
    for key, entry in table.items():
      if not key.isdecimal() or len(key) > 9:
        raise InputError(f'{file}: a token has the id {key!r}')
      self._add(_text(entry, file), _Token.create(entry, file, int(key)))
    for key in _LISTS:
      for entry in _list(content.get(key), file):
        self._add(_text(entry, file), _Token.create(entry, file))
    for key in _NAMES:
      if content.get(key) is not None:
        text = _text(content[key], file)
        other, origin = self.names.setdefault(key, (text, file))
        if other != text:
          raise InputError(
            f'{file}: {key} is {text!r}, but {origin} has {other!r}'
          )
        self._add(text, _Token.create(content[key], file))
    count = content.get('extra_ids')
    if _is_id(count) and count <= _MOST_SENTINELS:
      self.extra_ids = count
    elif count is not None:
      raise InputError(f'{file}: extra_ids is {count!r}, expected a number')

  def _add(self, text: str, token: _Token) -> None:
    known = self.tokens.get(text)
    if known is None:
      self.tokens[text] = token
    elif known.id is None and token.id is not None:
      keep = token if token != _Token(token.id, token.file) else known
      self.tokens[text] = dataclasses.replace(keep, id=token.id)
    elif token.id is not None and token.id != known.id:
      raise InputError(
        f'{token.file}: {text!r} has the id {token.id}, but {known.file} gives'
        f' it {known.id}'
      )

  def sentinels(self) -> dict[int, _Token]:
    """The sentinels named, by their number."""
    found = {}
    for text, token in self.tokens.items():
      match = _SENTINEL.fullmatch(text)
      if match:
        found[int(match[1])] = token
    return found

  def count(self) -> int | None:
    """The number of sentinels, None if nothing is said.

    Raises:
      InputError: if two files say different numbers.
    """
    listed = len(self.sentinels())
    if self.extra_ids and listed and self.extra_ids != listed:
      raise InputError(
        f'{os.path.join(self.folder, TOKENIZER_CONFIG)}: extra_ids is'
        f' {self.extra_ids}, but {listed} sentinels are named in'
        f' {next(iter(self.sentinels().values())).file}'
      )
    return listed or self.extra_ids

  def in_order(self) -> list[tuple[str, _Token]]:
    """What has to be in the vocabulary, in the order of new ids.

    A mark for padding or the unknown need not be there: neither is ever text.
    """
    free = {v[0] for k, v in self.names.items() if k != 'eos_token'}
    return sorted(
      (
        (text, token)
        for text, token in self.tokens.items()
        if token.id is not None or text not in free
      ),
      key=lambda item: (item[1].id is None, item[1].id or 0),
    )


class Vocabulary:
  """A backbone's vocabulary: text to its ids and back.

  Attributes:
    path: the file that it was read from.
    special: pad, start and end of the backbone.
    size: the number of ids, those on top included.
    num_sentinels: how many sentinels are on top of the file's pieces.
    added: tokens on top of pieces and sentinels, by their ids.
    file_digest: 'sha256:…' of the file alone.
    digest: 'sha256:…' of what the ids depend on: of a plain SentencePiece file
      its own, else of that and what is on top of it.
  """

  def __init__(
    self,
    path: str,
    rows: int | None = None,
    special: SpecialIds | None = None,
    *,
    owner: str = '',
    content: bytes | None = None,
  ):
    """Reads a vocabulary and what lies beside it.

    Args:
      path: a SentencePiece file, `tokenizer.json`, a file that names ByT5's
        tokenizer, or a folder that holds one of these.
      rows: rows of the embedding; None is what `config.json` beside it says.
      special: None is what lies beside it says, else T5's.
      owner: whose embedding that is, for messages.
      content: the SentencePiece file, if it was read from another place: then
        nothing lies beside it.

    Raises:
      InputError: if it is damaged, contradicts itself, or has more ids than
        the embedding has rows.
    """
    self.path = path = _vocabulary_file(path) if content is None else path
    folder = os.path.dirname(os.path.abspath(path)) if content is None else ''
    said = _Said.read(folder)
    if folder and rows is None:
      stated = _read_beside(folder, CONFIG).get('vocab_size')
      if isinstance(stated, int):
        rows, owner = stated, owner or os.path.join(folder, CONFIG)
    is_said = special is not None or _exists(folder, CONFIG)
    if special is None:
      special = read_special_ids(folder) if folder else ORDINARY
    if content is None:
      content = _read_bytes(path)
    self._core = _make_core(path, content, said, rows, special)
    if special.begin is not None:
      special = _with_mask(special, folder, path)
    self.special = special
    self.num_sentinels = self._core.num_sentinels
    self.added = self._place(said)
    self.size = max([self._core.size, *(i + 1 for i in self.added)])
    if rows is not None and self.size > rows:
      names = ', '.join(
        [os.path.basename(path)]
        + [n for n in BESIDE if folder and _exists(folder, n)]
      )
      raise InputError(
        f'the vocabulary has {self.size} ids ({names} in {folder or path}), but'
        f' the embedding of {owner or "the backbone"} has only {rows} rows'
      )
    self._check_names(said)
    if is_said and self.unk_id == special.pad and not self._core.writes_all:
      raise InputError(
        f'{path}: id {special.pad} is what a text has that it cannot write, but'
        f' the backbone pads with it (pad_token_id in {CONFIG})'
      )
    self._groups = _groups(self._matched(said))
    self.file_digest = f'sha256:{hashlib.sha256(content).hexdigest()}'
    self.digest = self.file_digest
    if isinstance(self._core, _Texts):
      self.digest = self._core.digest(special)
    elif not self._core.plain or self.added:
      facts = [self.file_digest, self.num_sentinels, sorted(self.added.items())]
      if self.is_bytes:
        facts[0] = BYTE_CLASS
      self.digest = (
        f'sha256:{hashlib.sha256(json.dumps(facts).encode()).hexdigest()}'
      )

  def __str__(self) -> str:
    facts = [f'{self.size} ids']
    if self.num_sentinels:
      facts.append(f'{self.num_sentinels} sentinels on top')
    if self.added:
      some = ', '.join(f'{t} {i}' for i, t in list(self.added.items())[:5])
      facts.append(f'{len(self.added)} added ({some})')
    ids = self.special
    facts.append(
      f'pad {ids.pad}, start {ids.start}, end {ids.end}'
      if ids.begin is None
      else f'begin {ids.begin}, pad {ids.pad}, end {ids.end}, mask {ids.mask}'
    )
    kind = 'the bytes of ByT5, ' if self.is_bytes else ''
    return f'{kind}{self.path} ({"; ".join(facts)})'

  @property
  def is_bytes(self) -> bool:
    """Whether it is ByT5's."""
    return isinstance(self._core, _Bytes)

  @property
  def sentencepiece(self) -> bytes | None:
    """The SentencePiece model, sentinels on top included; None without one."""
    core = self._core
    return core.proto if isinstance(core, _Pieces) else None

  @property
  def markers(self) -> list[str]:
    """Texts that are one token wherever they stand."""
    return [text for group in self._groups for text in group[1]]

  @property
  def unk_id(self) -> int | None:
    """The id of what it cannot write, if it has one."""
    return self._core.unk_id

  def encode(self, text: str) -> list[int]:
    """Returns the checkpoint's ids of a text, without an end mark."""
    if isinstance(self._core, _Texts):
      return self._encode_marked(text)
    ids: list[int] = []
    for part in self._cut(text, self._groups):
      if isinstance(part, int):
        ids.append(part)
      else:
        ids.extend(self._core.encode(part))
    return ids

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of the checkpoint's ids up to the end mark."""
    known: list[int] = []
    for i in map(int, ids):
      if i == self.special.end:
        break
      if i >= self.size and self.unk_id is not None:
        i = self.unk_id
      if i < self.size and i not in (self.special.pad, self.special.begin):
        known.append(i)
    return self._core.decode(known, self.added)

  def model_ids(self, text: str) -> list[int]:
    """Returns the ids of a text that go into our models: 0 is padding.

    Padding stands for nothing in a text: its mark there is unknown.
    """
    ids = self.encode(text)
    if self.special.pad in ids:
      unknown = [] if self.unk_id in (None, self.special.pad) else [self.unk_id]
      ids = [
        j for i in ids for j in (unknown if i == self.special.pad else [i])
      ]
    return self.special.swap(ids) if self.special.pad else ids

  def input_ids(self, text: str) -> list[int]:
    """Returns the ids of a text that the model reads, without an end mark.

    As `model_ids`, but an encoder's begin as its inputs do.
    """
    if self.special.begin is not None and not text.startswith(BEGIN):
      text = f'{BEGIN}{text}'
    return self.model_ids(text)

  def _encode_marked(self, text: str) -> list[int]:
    """The ids of an encoder's text, in which a template's marks are special."""
    special = self.special
    marks: dict[str, list[int | None]] = {
      BEGIN: [special.begin],
      MASK: [special.mask],
      SEPARATOR: [special.end, special.end],
    }
    ids: list[int] = []
    parts = re.split(f'([{"".join(MARKS)}])', text)
    for number, part in enumerate(parts):
      if part in marks:
        ids += [i for i in marks[part] if i is not None]
        continue
      # The mask swallows the blanks before it.
      if parts[number + 1 : number + 2] == [MASK]:
        part = part.rstrip()
      if part:
        ids += self._core.encode(part)
    return ids

  def decode_model(self, ids: Iterable[int]) -> str:
    """Returns the text of ids that came out of one of our models."""
    return self.decode(self.special.swap(ids) if self.special.pad else ids)

  def id_to_piece(self, token: int) -> str:
    """Returns how one of the checkpoint's ids is written."""
    return self.added.get(token) or self._core.piece(token)

  def id_of(self, piece: str) -> int | None:
    """Returns the checkpoint's id of what is written so, None without one."""
    for number, other in self.added.items():
      if other == piece:
        return number
    return self._core.id_of(piece)

  def _place(self, said: _Said) -> dict[int, str]:
    """Gives every token that is not the core's its id."""
    added = dict(self._core.added)
    last = max(
      [self._core.size - 1]
      + [t.id for t in said.tokens.values() if t.id is not None]
    )
    for text, token in said.in_order():
      known = self._core.id_of(text)
      if known is not None and token.id in (None, known):
        continue
      if known is not None and not _SENTINEL.fullmatch(text):
        raise InputError(
          f'{token.file}: {text!r} has the id {token.id}, but {self.path} gives'
          f' it {known}'
        )
      last += token.id is None
      number = last if token.id is None else token.id
      if number in added:
        raise InputError(
          f'{token.file}: {text!r} and {added[number]!r} have the same id'
          f' {number}'
        )
      added[number] = text
    return dict(sorted(added.items()))

  def _check_names(self, said: _Said) -> None:
    """Compares the tokenizer's pad and end marks with the model's."""
    for key, want in (
      ('pad_token', self.special.pad),
      ('eos_token', self.special.end),
    ):
      if key not in said.names:
        continue
      text, file = said.names[key]
      number = self.id_of(text)
      if number is None:
        continue  # `_place` has seen to the end mark.
      if number != want:
        raise InputError(
          f'{file}: {key} is {text!r}, whose id is {number}, but {key}_id of'
          f' the backbone ({CONFIG}) is {want}; make them agree'
        )

  def _matched(self, said: _Said) -> dict[str, tuple[int, _Token]]:
    """The tokens that are found in a text before it is cut into pieces."""
    if not self._core.cuts_markers:
      return {}
    tokens = dict(said.tokens)
    if said.any or self.is_bytes:
      for key, usual in _NAMES.items():
        text = said.names.get(key, (usual, ''))[0]
        token = tokens.setdefault(text, _Token(None, ''))
        if self.is_bytes and token.id is None:
          # ByT5's class gives its names these flags.
          tokens[text] = dataclasses.replace(token, lstrip=True, rstrip=True)
      for i in range(self.num_sentinels):
        tokens.setdefault(f'<extra_id_{i}>', _Token(None, ''))
    found = {text: (self.id_of(text), token) for text, token in tokens.items()}
    return {
      text: (number, token)
      for text, (number, token) in found.items()
      if number is not None and text
    }

  def _cut(self, text: str, groups: Sequence['_Group']) -> Iterator[str | int]:
    """Yields the ids of markers and the texts between them."""
    if not groups:
      yield text
      return
    (pattern, tokens), *others = groups
    start = 0
    for match in pattern.finditer(text):
      number, token = tokens[match[0]]
      begin, end = match.span()
      if token.single_word and (
        re.match(r'\w', text[begin - 1 : begin]) or re.match(r'\w', text[end:])
      ):
        continue
      before = text[start:begin]
      before = before.rstrip() if token.lstrip else before
      if before:
        yield from self._cut(before, others)
      yield number
      start = end
      if token.rstrip:
        start += len(text[end:]) - len(text[end:].lstrip())
    if text[start:]:
      yield from self._cut(text[start:], others)


_Group = tuple[re.Pattern[str], dict[str, tuple[int, _Token]]]


def _groups(tokens: Mapping[str, tuple[int, _Token]]) -> list[_Group]:
  """Special tokens are found first, then the others; the longest wins."""
  groups = []
  for special in (True, False):
    some = {k: v for k, v in tokens.items() if v[1].special == special}
    if some:
      texts = sorted(some, key=len, reverse=True)
      groups.append((re.compile('|'.join(map(re.escape, texts))), some))
  return groups


class _Pieces:
  """SentencePiece, with sentinels on top as SeqIO puts them there."""

  cuts_markers = True
  writes_all = False
  added: Mapping[int, str] = {}

  def __init__(self, path: str, content: bytes, said: _Said, rows: int | None):
    try:
      model = _ModelProto.FromString(content)
      size = len(model.pieces)
      in_file = any(_SENTINEL.fullmatch(p.piece) for p in model.pieces)
      self.num_sentinels = _count_sentinels(path, said, size, in_file, rows)
      count = said.count()
      # What v0.1 took every SentencePiece file for.
      self.plain = count is None or count == (0 if in_file else _SENTINELS)
      # <extra_id_0> is the highest id.
      for i in reversed(range(self.num_sentinels)):
        model.pieces.add(
          piece=f'\u2581<extra_id_{i}>',
          type=_ModelProto.SentencePiece.USER_DEFINED,
        )
      self.proto = model.SerializeToString()
      self._pieces = sentencepiece.SentencePieceProcessor(
        model_proto=self.proto
      )
    except InputError:
      raise
    except Exception as e:  # Each of the two parsers has types of its own.
      raise InputError(
        f'{path} is not a SentencePiece model: it cannot be parsed'
      ) from e
    self.size = self._pieces.get_piece_size()
    self.unk_id = self._pieces.unk_id()
    self.eos_id = self._pieces.eos_id()
    self._ids = {p.piece: i for i, p in enumerate(model.pieces)}

  def id_of(self, text: str) -> int | None:
    match = _SENTINEL.fullmatch(text)
    if text not in self._ids and match:
      return self._ids.get(f'\u2581{text}')
    return self._ids.get(text)

  def piece(self, token: int) -> str:
    return self._pieces.id_to_piece(token)

  def encode(self, text: str) -> list[int]:
    return self._pieces.encode(text)

  def decode(self, ids: Sequence[int], added: Mapping[int, str]) -> str:
    """Texts between added tokens keep the blank that they begin with."""
    texts: list[str] = []
    run: list[int] = []
    for i in [*ids, -1]:
      if i >= 0 and i not in added:
        run.append(i)
        continue
      if run:
        text = self._pieces.decode(run)
        blank = self.piece(run[0]).startswith('\u2581')
        texts.append(f' {text}' if texts and blank else text)
        run = []
      if i >= 0:
        texts.append(added[i])
    return ''.join(texts)


class _Bytes:
  """ByT5's vocabulary: 3 special ids, 256 bytes, sentinels upwards."""

  cuts_markers = True
  writes_all = True
  added: Mapping[int, str] = {}
  unk_id = 2

  def __init__(self, said: _Said, rows: int | None):
    count = said.count()
    self.size = _FIRST_BYTE + _BYTES
    if count is None:
      fits = rows is None or self.size + _BYTE_SENTINELS <= rows
      count = _BYTE_SENTINELS if fits else 0
    placed = said.sentinels()
    # What the files place themselves is among the added tokens, if elsewhere.
    usual = all(t.id in (None, self.size + i) for i, t in placed.items())
    self.num_sentinels = count if usual else 0
    self.size += self.num_sentinels
    self.plain = False

  def id_of(self, text: str) -> int | None:
    named = list(_NAMES.values())
    if text in named:
      return named.index(text)
    match = _SENTINEL.fullmatch(text)
    if match and int(match[1]) < self.num_sentinels:
      return _FIRST_BYTE + _BYTES + int(match[1])
    return None

  def piece(self, token: int) -> str:
    if token < _FIRST_BYTE:
      return list(_NAMES.values())[token]
    if token < _FIRST_BYTE + _BYTES:
      return ascii(chr(token - _FIRST_BYTE))[1:-1]
    return f'<extra_id_{token - _FIRST_BYTE - _BYTES}>'

  def encode(self, text: str) -> list[int]:
    return [b + _FIRST_BYTE for b in text.encode('utf-8', 'replace')]

  def decode(self, ids: Sequence[int], added: Mapping[int, str]) -> str:
    raw = b''
    for i in ids:
      if i in added:
        raw += added[i].encode()
      elif i == self.unk_id or i >= _FIRST_BYTE + _BYTES:
        raw += self.piece(i).encode()
      elif i >= _FIRST_BYTE:
        raw += bytes([i - _FIRST_BYTE])
    return raw.decode('utf-8', 'ignore')


class _Json:
  """`tokenizer.json`, through the library that it is the format of."""

  # The library finds them itself.
  cuts_markers = False
  num_sentinels = 0
  plain = False

  def __init__(self, path: str, content: bytes, said: _Said):
    try:
      library = importlib.import_module('tokenizers')
    except ImportError as e:
      raise InputError(
        f'{path} is read by the library tokenizers, which is not installed:'
        ' pip install tokenizers'
        + (
          f', or put {SPIECE} beside it'
          if type(self) is _Json and os.path.basename(path) == TOKENIZER
          else ''
        )
      ) from e
    try:
      self._tokenizer = library.Tokenizer.from_str(content.decode())
      model = json.loads(content)['model']
    except Exception as e:  # The library raises Exception itself.
      raise InputError(f'{path} cannot be read: {files.first_line(e)}') from e
    self._tokenizer.no_truncation()
    self._tokenizer.no_padding()
    self.added: dict[int, str] = {}
    for text, token in said.in_order():
      if self.id_of(text) is None:
        flags = ('lstrip', 'rstrip', 'single_word')
        self._tokenizer.add_tokens(
          [
            library.AddedToken(
              text,
              normalized=not token.special,
              **{name: getattr(token, name) for name in flags},
            )
          ]
        )
        self.added[self.id_of(text) or 0] = text
    ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
    self.size = max(ids, default=-1) + 1
    # What is no piece becomes bytes (LLaMA's, which Pile-T5 has).
    self.writes_all = bool(model.get('byte_fallback'))
    unknown = model.get('unk_id')
    if unknown is None and isinstance(model.get('unk_token'), str):
      unknown = self.id_of(model['unk_token'])
    self.unk_id = unknown if isinstance(unknown, int) else None

  def id_of(self, text: str) -> int | None:
    return self._tokenizer.token_to_id(text)

  def piece(self, token: int) -> str:
    return self._tokenizer.id_to_token(token) or ''

  def encode(self, text: str) -> list[int]:
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Sequence[int], added: Mapping[int, str]) -> str:
    del added
    return self._tokenizer.decode(list(ids), skip_special_tokens=False)


class _Texts(_Json):
  """An encoder's `tokenizer.json`: no text becomes a special token.

  Attributes:
    writes_all: whether it has a piece for every byte.
  """

  def __init__(self, path: str, content: bytes, said: _Said):
    super().__init__(path, content, said)
    whole = json.loads(self._tokenizer.to_str())
    special = {
      entry['content']: entry['id']
      for entry in whole['added_tokens']
      if entry['special']
    }
    added = sorted(
      [entry['id'], entry['content'], entry['special'], entry['lstrip']]
      for entry in whole['added_tokens']
    )
    cut = [_plain(whole[key]) for key in ('normalizer', 'pre_tokenizer')]
    # What is left out and what is empty means the same.
    model = {k: v for k, v in whole['model'].items() if v not in (None, '')}
    if isinstance(model['vocab'], dict):
      # Some list special tokens among the pieces, too.
      pieces = model['vocab'].items()
      model['vocab'] = {t: i for t, i in pieces if t not in special}
    self._facts = json.dumps([model, *cut, added], sort_keys=True)
    self.writes_all |= '"ByteLevel"' in json.dumps(whole['pre_tokenizer'])
    # A tokenizer that knows none of them, neither as tokens nor as pieces.
    whole['added_tokens'] = [
      entry for entry in whole['added_tokens'] if not entry['special']
    ]
    whole['post_processor'] = None
    model = whole['model']
    hidden = {t: f'{_HIDDEN}{i}' for t, i in special.items()}
    vocab = model['vocab']
    if isinstance(vocab, dict):
      # All of them, so that a token added on top of them keeps its id.
      model['vocab'] = {t: i for t, i in vocab.items() if t not in hidden}
      model['vocab'] |= {hidden[t]: i for t, i in special.items()}
    else:
      model['vocab'] = [[hidden.get(t, t), score] for t, score in vocab]
    if model.get('unk_token') in hidden:
      model['unk_token'] = hidden[model['unk_token']]
    try:
      self._texts = type(self._tokenizer).from_str(json.dumps(whole))
    except Exception as e:  # As above.
      raise InputError(
        f'{path}: its pieces are made of special tokens: {files.first_line(e)}'
      ) from e
    for entry in whole['added_tokens']:
      if self._texts.token_to_id(entry['content']) != entry['id']:
        raise InputError(
          f'{path}: the added token {entry["content"]!r} has the id'
          f' {entry["id"]}, which is not the next one behind the pieces'
        )

  def digest(self, special: SpecialIds) -> str:
    """Of what the ids of a text depend on, however it is stored."""
    facts = f'{self._facts} {special.facts()} {special.mask}'
    return f'sha256:{hashlib.sha256(facts.encode()).hexdigest()}'

  def encode(self, text: str) -> list[int]:
    return self._texts.encode(text, add_special_tokens=False).ids


def _plain(part: Any) -> Any:
  """A part of `tokenizer.json` without what ids do not depend on."""
  if isinstance(part, dict):
    return {k: _plain(v) for k, v in part.items() if k not in _UNUSED}
  return [_plain(v) for v in part] if isinstance(part, list) else part


def _byte_level(path: str, folder: str) -> bytes:
  """Writes `vocab.json` and `merges.txt` as the `tokenizer.json` they are.

  Raises:
    InputError: if one is damaged.
  """
  vocab = _read_beside(folder, os.path.basename(path))
  for piece, number in vocab.items():
    if not _is_id(number):
      raise InputError(f'{path}: {piece!r} has the id {number!r}')
  merges = []
  file = os.path.join(folder, MERGES)
  try:
    with open(file, encoding='utf-8') as f:
      lines = f.read().split('\n')
  except (OSError, UnicodeDecodeError) as e:
    raise InputError(f'cannot read the vocabulary {file}: {e}') from e
  for number, line in enumerate(lines, start=1):
    if not line or (number == 1 and line.startswith('#version')):
      continue
    pair = line.rstrip('\r').split(' ')
    if len(pair) != 2 or any(p not in vocab for p in (*pair, ''.join(pair))):
      raise InputError(
        f'{file}:{number}: {line!r} is no pair of pieces of {VOCAB}'
      )
    merges.append(pair)
  config = _read_beside(folder, TOKENIZER_CONFIG)
  mapped = {**_read_beside(folder, SPECIAL_TOKENS), **config}
  names = {'bos_token': '<s>', **_NAMES, 'mask_token': _MASK}
  added = {}
  for key, usual in names.items():
    text = usual if mapped.get(key) is None else _text(mapped[key], path)
    if text in vocab:
      added[vocab[text]] = {
        'id': vocab[text],
        'content': text,
        'single_word': False,
        'lstrip': key == 'mask_token',
        'rstrip': False,
        'normalized': False,
        'special': True,
      }
  return json.dumps(
    {
      'version': '1.0',
      'added_tokens': [added[i] for i in sorted(added)],
      'pre_tokenizer': {
        'type': 'ByteLevel',
        'add_prefix_space': bool(config.get('add_prefix_space', False)),
        'trim_offsets': True,
        'use_regex': True,
      },
      'decoder': {
        'type': 'ByteLevel',
        'add_prefix_space': True,
        'trim_offsets': True,
        'use_regex': True,
      },
      'model': {'type': 'BPE', 'vocab': vocab, 'merges': merges},
    }
  ).encode()


def _make_core(
  path: str,
  content: bytes,
  said: _Said,
  rows: int | None,
  special: SpecialIds,
) -> '_Pieces | _Bytes | _Json':
  name = os.path.basename(path)
  if name == VOCAB:
    content = _byte_level(path, said.folder)
  if name in (TOKENIZER, VOCAB):
    kind = _Json if special.begin is None else _Texts
    return kind(path, content, said)
  if name in (TOKENIZER_CONFIG, CONFIG):
    if _read_beside(said.folder, name).get('tokenizer_class') != BYTE_CLASS:
      raise InputError(f'{path} does not name {BYTE_CLASS} as tokenizer_class')
    return _Bytes(said, rows)
  return _Pieces(path, content, said, rows)


def _count_sentinels(
  path: str, said: _Said, size: int, in_file: bool, rows: int | None
) -> int:
  """How many sentinels go on top of a SentencePiece file's pieces."""
  count = said.count()
  if count is not None:
    usual = all(
      token.id in (None, size + count - 1 - i)
      for i, token in said.sentinels().items()
    )
    # What the files place themselves is among the added tokens.
    return count if usual else 0
  if in_file:
    return 0
  if rows is None or size + _SENTINELS <= rows:
    return _SENTINELS
  if size <= rows:
    log.info(
      'vocabulary: beside the %d pieces of %s the %d rows of the embedding have'
      ' no room for T5\'s %d sentinels, so it has none ("extra_ids" in %s says'
      ' another number)',
      size,
      path,
      rows,
      _SENTINELS,
      TOKENIZER_CONFIG,
    )
  return 0


def _vocabulary_file(path: str) -> str:
  """Returns the file that a path, perhaps of a folder, stands for."""
  if not os.path.isdir(path):
    if os.path.exists(path):
      files.require_file(path, follow_links=True)
    return path
  found = find_vocabulary(path)
  if found is None:
    hint = ''
    if _exists(path, _LLAMA):
      hint = (
        f'; its {_LLAMA} is not read, as transformers reads it in a way of its'
        f' own: save the tokenizer with transformers, which writes {TOKENIZER}'
      )
    if _read_beside(path, CONFIG).get('model_type') in ENCODERS:
      raise InputError(
        f'{path} has no vocabulary: neither {TOKENIZER} nor {VOCAB} and'
        f' {MERGES}; save the tokenizer of the encoder with transformers'
        f' (save_pretrained), which writes {TOKENIZER}'
      )
    raise InputError(
      f'{path} has no vocabulary: neither {SPIECE} nor {TOKENIZER}{hint}'
    )
  return found


def _read_bytes(path: str) -> bytes:
  try:
    with open(path, 'rb') as f:
      return f.read()
  except OSError as e:
    raise InputError(
      f'{path} is not a SentencePiece model: {e.strerror}'
    ) from e


def _exists(folder: str, name: str) -> bool:
  return os.path.isfile(os.path.join(folder, name))


def _read_beside(folder: str, name: str) -> dict[str, Any]:
  """Returns a JSON file of a folder, {} if it is not there."""
  if not _exists(folder, name):
    return {}
  most = {'most_bytes': _MAX_BYTES} if name in (TOKENIZER, VOCAB) else {}
  return files.read_json(os.path.join(folder, name), follow_links=True, **most)


def _is_id(value: Any) -> TypeGuard[int]:
  return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _list(value: Any, file: str) -> list[Any]:
  if value is None:
    return []
  if isinstance(value, dict):
    return list(value.values())
  if not isinstance(value, list):
    raise InputError(f'{file}: expected a list of tokens, not {value!r}')
  return value


def _text(entry: Any, file: str) -> str:
  text = entry.get('content') if isinstance(entry, dict) else entry
  if not isinstance(text, str):
    raise InputError(f'{file}: {entry!r} is no token')
  return text
