"""Well-formed files with arbitrary content, drawn by hypothesis.

Byte flips rarely get past a parser. These files do, and say anything.
"""

import contextlib
import io
import json
import struct

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from mpt_jax.checkpoints import adapterhub, peft
from mpt_jax.checkpoints import bundle as bundle_lib
from mpt_jax.engine import answers
from mpt_jax.types import InputError
from tests.fuzz import cases, mutate, readers

# The same examples on every machine, and nothing left in the checkout.
_settings = hypothesis.settings(
  max_examples=60,
  deadline=None,
  derandomize=True,
  database=None,
  suppress_health_check=list(hypothesis.HealthCheck),
)

_scalars = (
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats()
  | st.text(max_size=20)
  | st.sampled_from([v for v in mutate.VALUES if not isinstance(v, dict)])
)
_values = st.recursive(
  _scalars,
  lambda inner: (
    st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=8), inner, max_size=4)
  ),
  max_leaves=8,
)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """An `Arena` of a reader by its name, made once."""
  made = {}

  def get(name):
    if name not in made:
      parent = tmp_path_factory.mktemp(name)
      made[name] = cases.Arena(readers.READERS[name], str(parent))
      made[name].check_intact()  # Loads what is loaded late.
    return made[name]

  return get


def _read(arena, seed, file, content):
  """Reads the folder with another content of a file; says what came out."""
  folder = arena._parent / f'seed{seed}'
  (folder / file).write_bytes(content)
  try:
    outcome, detail = arena._read(str(folder), seed)
  finally:
    (folder / file).write_bytes(arena._seeds[seed][file])
  assert outcome is not cases.UNCLEAN, detail
  return outcome


_CONFIGS = {
  'bundle': bundle_lib.CONFIG,
  'peft': peft.CONFIG,
  'delta': peft.CONFIG,
  'adapterhub': adapterhub.CONFIG,
  'huggingface': 'config.json',
}


@pytest.mark.parametrize('name', _CONFIGS)
def test_configs_with_any_value_at_any_key(folders, name):
  arena, file = folders(name), _CONFIGS[name]
  config = json.loads(arena._seeds[0][file])

  @_settings
  @hypothesis.given(st.sampled_from(sorted(config)), _values)
  def run(key, value):
    content = json.dumps({**config, key: value}).encode()
    outcome = _read(arena, 0, file, content)
    if name == 'bundle' and json.dumps(value) != json.dumps(config[key]):
      assert outcome is cases.REFUSED

  run()


@pytest.mark.parametrize('name', _CONFIGS)
def test_configs_of_anything(folders, name):
  arena, file = folders(name), _CONFIGS[name]
  known = sorted(json.loads(arena._seeds[0][file]))
  keys = st.sampled_from(known) | st.text(max_size=8)

  @_settings
  @hypothesis.given(_values | st.dictionaries(keys, _values, max_size=20))
  def run(value):
    content = json.dumps(value).encode()
    assert _read(arena, 0, file, content) is cases.REFUSED

  run()


_TENSORS = {
  'bundle': bundle_lib.TENSORS,
  'peft': peft.TENSORS,
  'delta': peft.TENSORS,
  'adapterhub': adapterhub.TENSORS,
  'huggingface': 'model.safetensors',
}


@pytest.mark.parametrize('name', _TENSORS)
def test_safetensors_headers(folders, name):
  arena, file = folders(name), _TENSORS[name]
  data = arena._seeds[0][file]
  (size,) = struct.unpack('<Q', data[:8])
  header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
  names = sorted(set(header) - {'__metadata__'})
  sizes = st.integers(-2, 9) | st.sampled_from([2**31, 2**62, 2**64, 10**30])
  offsets = st.integers(-1, len(body) + 9) | st.sampled_from([2**63, 2**64])
  tensor = st.fixed_dictionaries(
    {
      'dtype': st.sampled_from(['F32', 'F16', 'BF16', 'F64', 'I64', 'X', 7]),
      'shape': st.lists(sizes, max_size=4),
      'data_offsets': st.lists(offsets, min_size=1, max_size=3),
    }
  )

  @_settings
  @hypothesis.given(
    st.sampled_from(names), st.sampled_from(names) | st.text(), tensor | _values
  )
  def run(old, new, value):
    changed = {k: v for k, v in header.items() if k != old} | {new: value}
    text = json.dumps(changed).encode()
    text += b' ' * (-len(text) % 8)
    _read(arena, 0, file, struct.pack('<Q', len(text)) + text + body)

  run()


def test_npy_headers(folders):
  arena = folders('npy')
  body = arena._seeds[0]['prompt.npy'][128:]
  sizes = st.integers(-2, 40) | st.sampled_from([2**31, 2**62, 2**64, 10**30])

  @_settings
  @hypothesis.given(
    st.sampled_from(['<f4', '>f4', '<f2', '<f8', '<i4', '|O', '|V0', '<U9']),
    st.booleans() | st.none(),
    st.lists(sizes, max_size=4).map(tuple) | _values,
    st.sampled_from([(1, 0), (2, 0), (3, 0), (9, 9)]),
  )
  def run(dtype, fortran, shape, version):
    header = repr(
      {'descr': dtype, 'fortran_order': fortran, 'shape': shape}
    ).encode('utf-8', 'replace')
    length = struct.pack('<H' if version == (1, 0) else '<I', len(header))
    magic = b'\x93NUMPY' + bytes(version)
    _read(arena, 0, 'prompt.npy', magic + length + header + body)

  run()


@_settings
@hypothesis.given(
  st.lists(
    st.text().map(lambda t: t.encode('utf-8', 'replace'))
    | st.dictionaries(
      st.sampled_from(['inputs', 'task', 'index', 'x']), _values
    ).map(lambda row: json.dumps(row).encode()),
    max_size=5,
  )
)
def test_lines_of_infer(lines):
  stream = io.TextIOWrapper(io.BytesIO(b'\n'.join(lines)), encoding='utf-8')
  read = []
  with contextlib.suppress(InputError):
    read.extend(answers._read(stream, '-', None))
  for line in read:
    assert isinstance(line['inputs'], str)
    text = json.dumps(line, ensure_ascii=False, allow_nan=False)
    assert json.loads(text.encode()) == line


@pytest.mark.slow
@pytest.mark.data
def test_rows(folders):
  arena = folders('records')
  row = json.loads(arena._seeds[0]['rows.jsonl'].splitlines()[0])

  @_settings
  @hypothesis.given(
    st.lists(st.tuples(st.sampled_from(sorted(row)), _values), max_size=3)
  )
  def run(changes):
    rows = [{**row, key: value} for key, value in changes]
    lines = [json.dumps(r).encode() for r in [row, *rows]]
    _read(arena, 0, 'rows.jsonl', b'\n'.join(lines))

  run()


def test_values_of_a_bundle_s_arrays(folders):
  """Any float32 bits: finite ones are kept to the bit, others refused."""
  arena = folders('npy')

  @_settings
  @hypothesis.given(st.lists(st.integers(0, 2**32 - 1), min_size=6, max_size=6))
  def run(bits):
    array = np.array(bits, np.uint32).view(np.float32).reshape(2, 3)
    buffer = io.BytesIO()
    np.save(buffer, array)
    outcome = _read(arena, 0, 'prompt.npy', buffer.getvalue())
    finite = bool(np.isfinite(array).all())
    assert outcome is (cases.READ if finite else cases.REFUSED)

  run()
