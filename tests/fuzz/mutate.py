"""Seeded damage: bytes that rot, and values that somebody put there to hurt.

`mutate(rng, name, data)` chooses between blind changes of bytes and changes of
what the file's name says it is: JSON, safetensors, .npy, msgpack, a
SentencePiece model, lines of text. Equal seeds give equal damage.
"""

import json
import random
import struct

import msgpack
import numpy as np
from sentencepiece import sentencepiece_model_pb2

# What hurts a reader that trusts: numbers, paths, depth, encodings.
TOKENS = (
  b'\0',
  b'\xff' * 8,
  b'\xff\xfe',
  b'\xef\xbb\xbf',
  b'\xed\xa0\x80',
  b'\xc0\xaf',
  b'\xe2\x80\xa8',
  b'../',
  b'../../../../etc/passwd',
  b'/etc/passwd',
  b'NaN',
  b'Infinity',
  b'-Infinity',
  b'1e999',
  b'-1',
  b'-0.0',
  b'0',
  b'null',
  b'true',
  b'9' * 5000,
  b'9' * 300,
  b'2147483648',
  b'9223372036854775808',
  b'18446744073709551616',
  b'[' * 3000,
  b'{"a":' * 3000,
  b'(' * 300,
  b'"\\ud800"',
  b'\\ud83d',
  b'\\u0000',
  b'"',
  b"'",
  b'\\',
  b'\n',
  b'\r',
  b'\r\n',
  b'\t',
  b',',
  b'%',
  b'@',
  b'=',
  b'{',
  b'}',
  b'\x1b[2J',
  struct.pack('<Q', 1 << 40),
  struct.pack('<Q', (1 << 64) - 1),
  struct.pack('<I', 0x7FC00000),
  struct.pack('<I', 0x7F800000),
  struct.pack('<I', 0x7F800001),
  struct.pack('>I', 0x7FFFFFFF),
  b'\xdd\xff\xff\xff\xff',
  b'\xc9\x7f\xff\xff\xff\x01',
)

# As JSON values, wherever one stands.
VALUES = (
  None,
  True,
  False,
  0,
  -1,
  1,
  2,
  3,
  1.5,
  1e308,
  float('inf'),
  float('nan'),
  10**9,
  2**31,
  2**63,
  10**400,
  '',
  'x',
  'F32',
  'F64',
  'BF16',
  'I64',
  'BOOL',
  '<f4',
  '<f8',
  '<i4',
  '|O',
  '|S1000000',
  'bfloat16',
  '../x',
  '/etc/passwd',
  'a\0b',
  'a\nb',
  '\x1b[2J',
  '\ud800',
  '\u2028',
  'é' * 3000,
  [],
  {},
  [[]],
  [0],
  [-1, 4],
  [1 << 20, 1 << 20],
  [1 << 40],
  [2**63, 2**63],
  {'a': {'b': {'c': {'d': 1}}}},
  ['a', 'a'],
  ['a', 1],
)


def mutate(rng: random.Random, name: str, data: bytes) -> bytes:
  """Returns `data`, damaged once or a few times."""
  for _ in range(rng.choice((1, 1, 1, 2, 3))):
    shaped = _SHAPED.get(name.rsplit('.', 1)[-1].rsplit('/', 1)[-1])
    if shaped and rng.random() < 0.6:
      try:
        data = shaped(rng, data)
        continue
      except Exception:  # Damaged beyond its format by the round before.
        pass
    data = rng.choice(_BLIND)(rng, data)
  return data


def _span(rng: random.Random, data: bytes) -> tuple[int, int]:
  start = rng.randrange(len(data) + 1)
  length = int(2 ** rng.uniform(0, 12))
  return start, min(len(data), start + length)


def _flip(rng: random.Random, data: bytes) -> bytes:
  if not data:
    return data
  out = bytearray(data)
  for _ in range(rng.choice((1, 1, 1, 2, 8))):
    out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
  return bytes(out)


def _set(rng: random.Random, data: bytes) -> bytes:
  if not data:
    return b'\0'
  out = bytearray(data)
  # The beginning is where formats have their lengths.
  end = rng.choice((len(out), min(16, len(out))))
  out[rng.randrange(end)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x5B))
  return bytes(out)


def _cut(rng: random.Random, data: bytes) -> bytes:
  return data[: rng.randrange(len(data) + 1)]


def _delete(rng: random.Random, data: bytes) -> bytes:
  start, stop = _span(rng, data)
  return data[:start] + data[stop:]


def _repeat(rng: random.Random, data: bytes) -> bytes:
  start, stop = _span(rng, data)
  return data[:stop] + data[start:stop] * rng.choice((1, 2, 10)) + data[stop:]


def _insert(rng: random.Random, data: bytes) -> bytes:
  start = rng.randrange(len(data) + 1)
  return data[:start] + rng.randbytes(rng.randrange(1, 40)) + data[start:]


def _overwrite(rng: random.Random, data: bytes) -> bytes:
  start, stop = _span(rng, data)
  fill = rng.choice((b'\0', b'\xff', rng.randbytes(1)))
  return data[:start] + fill * (stop - start) + data[stop:]


def _move(rng: random.Random, data: bytes) -> bytes:
  start, stop = _span(rng, data)
  to, _ = _span(rng, data)
  return data[:to] + data[start:stop] + data[to + stop - start :]


def _token(rng: random.Random, data: bytes) -> bytes:
  start = rng.randrange(len(data) + 1)
  token = rng.choice(TOKENS)
  keep = start + rng.choice((0, 0, len(token)))
  return data[:start] + token + data[keep:]


def _append(rng: random.Random, data: bytes) -> bytes:
  return data + rng.choice((b'\0', b'\n', b'x' * 9, data[:100], data))


_BLIND = (
  _flip,
  _flip,
  _flip,
  _set,
  _cut,
  _delete,
  _repeat,
  _insert,
  _overwrite,
  _move,
  _token,
  _token,
  _append,
)


def change_tree(rng: random.Random, tree: object, values=VALUES) -> object:
  """Changes one place of nested dicts and lists; the tree is changed too."""
  places: list[tuple] = []

  def walk(node):
    items = (
      list(node.items())
      if isinstance(node, dict)
      else list(enumerate(node))
      if isinstance(node, list)
      else []
    )
    for key, child in items:
      places.append((node, key))
      walk(child)

  walk(tree)
  if not places:
    return rng.choice(values)
  node, key = rng.choice(places)
  kind = rng.randrange(10)
  if kind < 6:
    node[key] = rng.choice(values)
  elif kind == 6:
    del node[key]
  elif kind == 7 and isinstance(node, dict):
    node[str(rng.choice(('', '..', 'x', f'{key}x', '\ud800', 'a' * 300)))] = (
      node.pop(key)
    )
  elif kind == 8:
    other, other_key = rng.choice(places)
    node[key] = other[other_key]
  elif isinstance(node[key], int | float) and not isinstance(node[key], bool):
    node[key] = rng.choice((node[key] + 1, -node[key], node[key] * 2, 10**7))
  else:
    node[key] = [node[key]]
  return tree


def _json(rng: random.Random, data: bytes) -> bytes:
  return json.dumps(change_tree(rng, json.loads(data))).encode()


def _json_line(rng: random.Random, data: bytes) -> bytes:
  lines = data.split(b'\n')
  i = rng.randrange(len(lines))
  lines[i] = _json(rng, lines[i])
  return b'\n'.join(lines)


def _lines(rng: random.Random, data: bytes) -> bytes:
  lines = data.splitlines(keepends=True)
  i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
  kind = rng.randrange(4)
  if kind == 0:
    del lines[i]
  elif kind == 1:
    lines.insert(i, lines[j])
  elif kind == 2:
    lines[i], lines[j] = lines[j], lines[i]
  else:
    lines[i] = rng.choice(_BLIND)(rng, lines[i])
  return b''.join(lines)


def _safetensors(rng: random.Random, data: bytes) -> bytes:
  (size,) = struct.unpack('<Q', data[:8])
  header, body = data[8 : 8 + size], data[8 + size :]
  kind = rng.randrange(5)
  if kind == 0:
    size = rng.choice(
      (0, size + 1, size - 1, 1 << 40, len(data), (1 << 64) - 1)
    )
  elif kind == 1:
    at = rng.randrange(max(1, len(body) // 4)) * 4
    bad = rng.choice((0x7FC00000, 0x7F800000, 0x7F800001, 0xFF7FFFFF))
    body = body[:at] + struct.pack('<I', bad) + body[at + 4 :]
  else:
    header = _json(rng, header)
    header += b' ' * (-len(header) % 8)
    size = len(header)
  return struct.pack('<Q', size) + header + body


def _npy(rng: random.Random, data: bytes) -> bytes:
  (size,) = struct.unpack('<H', data[8:10])
  header, body = data[10 : 10 + size].decode('latin1'), data[10 + size :]
  old = rng.choice(
    ("'<f4'", 'False', header[header.index('(') :].split('}')[0])
  )
  new = rng.choice(
    (
      "'<f8'",
      "'>f4'",
      "'<f2'",
      "'<g'",
      "'|O'",
      "'|V8'",
      "[('a','<f4')]",
      "'<M8[s]'",
      'True',
      'None',
      '(1099511627776, 4)',
      '(-1, 4)',
      '(0, 4)',
      '(3,)',
      '()',
      '(2**60,)',
      f'({"9" * 400}, 2)',
      '(' * 200 + ')' * 200,
      '__import__("os")',
    )
  )
  header = header.replace(old, new, 1)
  length = struct.pack('<H', min(len(header), 65535))
  return data[:8] + length + header.encode('latin1') + body


def _msgpack(rng: random.Random, data: bytes) -> bytes:
  tree = msgpack.unpackb(data, raw=False, strict_map_key=False)
  paths = (
    '..',
    '.',
    '',
    '/',
    '../outside',
    '/etc',
    'gs://bucket/x',
    'target.encoder.encoder_norm.scale',
    'a\0b',
    'x' * 5000,
    'é\n',
  )
  nasty = (
    *(v for v in VALUES if not isinstance(v, int) or abs(v) < 2**63),
    *paths,
    msgpack.ExtType(1, b'\x93\x91\xce\x7f\xff\xff\xff\xa7float32\xc4\x00'),
    msgpack.ExtType(1, b'junk'),
    msgpack.ExtType(2, b'\x92\xcb\0\0\0\0\0\0\0\0\xcb\0\0\0\0\0\0\0\0'),
    msgpack.ExtType(99, b''),
    b'\0' * 9,
    {'kvstore': {'path': 'x'}},
    {'__msgpack_chunked_array__': True, 'shape': {'0': 1 << 40}, 'chunks': {}},
  )
  tree = change_tree(rng, tree, nasty)
  return msgpack.packb(tree, unicode_errors='surrogatepass')


def _sentencepiece(rng: random.Random, data: bytes) -> bytes:
  model = sentencepiece_model_pb2.ModelProto.FromString(data)
  pieces = model.pieces
  i = rng.randrange(len(pieces))
  kind = rng.randrange(12)
  if kind == 0:
    nasty = (float('nan'), float('inf'), float('-inf'), 3e38, -3e38, 0.0)
    for _ in range(rng.choice((1, 1, 50))):
      pieces[rng.randrange(len(pieces))].score = rng.choice(nasty)
  elif kind == 1:
    text = ('', ' ', '\u2581', 'a', '\0', '\n', 'x' * 10000, pieces[0].piece)
    pieces[i].piece = rng.choice(text)
  elif kind == 2:
    pieces[i].type = rng.choice((1, 2, 3, 4, 5, 6))
  elif kind == 3:
    del pieces[i : i + rng.choice((1, 5, len(pieces)))]
  elif kind == 4:
    pieces.add().CopyFrom(pieces[i])
  elif kind in (5, 6):
    chars = model.normalizer_spec.precompiled_charsmap
    chars = chars or rng.randbytes(200)
    model.normalizer_spec.precompiled_charsmap = rng.choice(_BLIND)(rng, chars)
  elif kind == 7:
    charsmap = struct.pack('<I', rng.choice((4, 8, 64, 1024)))
    charsmap += rng.randbytes(rng.choice((4, 64, 1024, 2000)))
    model.normalizer_spec.precompiled_charsmap = charsmap
  elif kind == 8:
    spec = model.trainer_spec
    spec.model_type = rng.choice((1, 2, 3, 4))
    spec.byte_fallback = rng.random() < 0.5
    spec.treat_whitespace_as_suffix = rng.random() < 0.5
  elif kind == 9:
    spec = model.trainer_spec
    value = rng.choice((-1, 0, 1, 5, 1 << 30, -(1 << 31)))
    field = rng.choice(('unk_id', 'bos_id', 'eos_id', 'pad_id', 'vocab_size'))
    setattr(spec, field, value)
  elif kind == 10:
    spec = model.normalizer_spec
    spec.add_dummy_prefix = rng.random() < 0.5
    spec.remove_extra_whitespaces = rng.random() < 0.5
    spec.escape_whitespaces = rng.random() < 0.5
    spec.normalization_rule_tsv = 'x\ty\n' * rng.randrange(3)
  else:
    model.denormalizer_spec.precompiled_charsmap = rng.randbytes(100)
  return model.SerializeToString()


def npy_with_nan(rng: random.Random, data: bytes) -> bytes:
  """Puts a value that is not finite into an array of float32."""
  array = np.frombuffer(data, '<f4').copy()
  array[rng.randrange(len(array))] = rng.choice((np.nan, np.inf, -np.inf))
  return array.tobytes()


def _npy_or_values(rng: random.Random, data: bytes) -> bytes:
  if rng.random() < 0.2:
    return data[:128] + npy_with_nan(rng, data[128:])
  return _npy(rng, data)


# By the end of the name.
_SHAPED = {
  'json': _json,
  'zarray': _json,
  'jsonl': _json_line,
  'txt': _json_line,
  'tsv': _lines,
  'csv': _lines,
  'gin': _lines,
  'safetensors': _safetensors,
  'npy': _npy_or_values,
  'checkpoint': _msgpack,
  'model': _sentencepiece,
}
