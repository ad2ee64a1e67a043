"""The readers, what they are fed, and what a clean read of each must be."""

from collections.abc import Callable
import dataclasses
import functools
import io
import json
import os
import pathlib

from flax import serialization, traverse_util
import numpy as np

from mpt_jax import methods
from mpt_jax.checkpoints import files as files_lib
from mpt_jax.checkpoints import huggingface, peft
from mpt_jax.checkpoints.backbone import load_backbone
from mpt_jax.checkpoints.bundle import PromptBundle, load_prompts
from mpt_jax.checkpoints.texts import TaskText
from mpt_jax.pretrained import Tokenizer
from mpt_jax.t5 import param_shapes
from mpt_jax.transfer import library
from mpt_jax.types import InputError
from tests.helpers import encoder, found, tiny

ROOT = pathlib.Path(__file__).parents[2]
CORPUS = pathlib.Path(__file__).parent / 'corpus'
TESTDATA = ROOT / 'tests' / 'testdata'


class Unclean(AssertionError):
  """A read that should not have succeeded, or gave something else."""


@dataclasses.dataclass(frozen=True)
class Reader:
  """One reader.

  Attributes:
    name: for the table.
    seeds: makes the folders to damage: a list of {relative path: content}.
    read: reads a damaged folder; raises `Unclean` if what it got is wrong.
    targets: ends of the names of files to damage; () is every file.
    own_files_only: whether opening a file elsewhere is unclean.
    outside: what lies beside the folder, which nothing may read.
  """

  name: str
  seeds: Callable[[], list[dict[str, bytes]]]
  read: Callable[[str, int], None]
  targets: tuple[str, ...] = ()
  own_files_only: bool = True
  outside: Callable[[], dict[str, bytes]] = dict


def _check(condition: object, message: str) -> None:
  if not condition:
    raise Unclean(message)


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in sorted(folder.rglob('*'))
    if p.is_file()
  }


def _written(write: Callable[[str], object]) -> dict[str, bytes]:
  """What `write` puts into an empty folder."""
  import tempfile

  with tempfile.TemporaryDirectory() as folder:
    write(os.path.join(folder, 'x'))
    return files_of(pathlib.Path(folder, 'x'))


@functools.cache
def _random(*shape: int) -> np.ndarray:
  rng = np.random.RandomState(len(shape))
  return rng.normal(size=shape).astype(np.float32)


# --- Prompts ---


@functools.cache
def bundles() -> list[PromptBundle]:
  multitask = PromptBundle(
    method='multitask',
    stage='source',
    task_names=('rte', 'sst2', 'mnli'),
    arrays={
      'shared_prompt': _random(5, 7),
      'task_u': _random(3, 5, 2),
      'task_v': _random(3, 2, 7),
    },
    backbone_name='t5-tiny',
    backbone_fingerprint=f'sha256:{"0" * 64}',
    vocabulary_digest=f'sha256:{"1" * 64}',
    step=31,
    metrics={'rte': {'accuracy': 0.75, 'f1': 1e-7}, 'mean': 3},
    package_version='0.1',
    texts={
      'rte': TaskText(
        'rte premise: {premise} hypothesis: {hypothesis}',
        '{label}',
        ('no', 'yes'),
        {'premise': 'p'},
      ),
      'mnli': TaskText(None, None, ('a', 'é')),
    },
  )
  soft = PromptBundle(
    method='soft',
    stage='teacher',
    task_names=('cola',),
    arrays={'prompt': _random(5, 7)},
    package_version='0.1',
  )
  return [multitask, soft]


def _text(value: object) -> str:
  """Tells 1 from 1.0 and True, and not one order of keys from another."""
  return json.dumps(value, sort_keys=True, default=dataclasses.asdict)


def _read_bundle(folder: str, seed: int) -> None:
  got, want = load_prompts(folder), bundles()[seed]
  for field in dataclasses.fields(PromptBundle):
    if field.name != 'arrays':
      _check(
        _text(getattr(got, field.name)) == _text(getattr(want, field.name)),
        f'{field.name} is another one',
      )
  _check(set(got.arrays) == set(want.arrays), 'other arrays')
  for name, array in want.arrays.items():
    _check(
      array.tobytes() == got.arrays[name].tobytes(), f'{name} has other bits'
    )


def _library_seeds() -> list[dict[str, bytes]]:
  return [
    _written(lambda path, b=bundle: library.add(library=path, prompts=b))
    for bundle in bundles()
  ]


def _read_library(folder: str, seed: int) -> None:
  want = bundles()[seed]
  for there in library.open_library(folder).prompts(on_damage=_ignore):
    _check(there.task in want.task_names, f'there is no {there.task}')
    _check(there.run == '0', f'there is no run {there.run}')
    same = np.array_equal(there.array, want.compose(there.task))
    _check(same, f'{there.name} is another prompt')


def _ignore(name: str, error: InputError) -> None:
  _check(name.count('/') == 2 and '..' not in name, f'what is {name}?')
  _check(str(error), f'{name} is left out without a word')


def _peft_seeds() -> list[dict[str, bytes]]:
  multitask, soft = bundles()
  folders = ('peft_mpt_tiny/rank1', 'peft_mpt_tiny/rank2')
  return [
    *(files_of(TESTDATA / folder) for folder in folders),
    files_of(TESTDATA / 'peft_pt_tiny' / 'adapter'),
    _written(multitask.to_peft),
    _written(soft.to_peft),
  ]


def _check_prompts(bundle: PromptBundle, length: object, width: object):
  table = bundle.table
  _check(table.dtype == np.float32, f'the table is {table.dtype}')
  _check(np.isfinite(table).all(), 'not finite')
  _check(
    table.shape == (len(bundle.task_names), length, width),
    f'shape {table.shape}, declared {length}, {width}',
  )


def _read_peft(folder: str, seed: int) -> None:
  bundle = load_prompts(folder)
  with open(os.path.join(folder, peft.CONFIG), 'rb') as f:
    config = json.loads(f.read())
  _check_prompts(bundle, config['num_virtual_tokens'], config['token_dim'])


def _delta_seeds() -> list[dict[str, bytes]]:
  folders = (
    *('baseline_lora_t5/v1_1', 'baseline_ia3_t5/v1_0'),
    'baseline_prefix_t5/v1_1',
  )
  return [files_of(TESTDATA / folder / 'adapter') for folder in folders]


def _read_delta(folder: str, seed: int) -> None:
  bundle = load_prompts(folder)
  learner = bundle.learner
  assert isinstance(learner, methods.Delta)
  for name, array in bundle.arrays.items():
    _check(array.dtype == np.float32 and len(array) == 1, f'{name} is no set')
    _check(np.isfinite(array).all(), 'not finite')
  # Whatever was read can be written, and is the same then.
  arrays = {name: array[0] for name, array in bundle.arrays.items()}
  again, _ = learner.from_peft(*learner.to_peft(arrays))
  _check(again.settings == learner.settings, 'other settings')


def _hub_seeds() -> list[dict[str, bytes]]:
  adapter = methods.Adapter(size=2, first_layer=1)
  shapes = adapter.shapes(
    tiny.CONFIG.replace(num_encoder_layers=2, num_decoder_layers=2), 1
  )
  bundle = PromptBundle(
    method=adapter.name,
    stage='target',
    task_names=('a',),
    arrays={name: _random(*shape) for name, shape in shapes.items()},
    settings=adapter.settings,
  )
  folder = TESTDATA / 'baseline_adapter_t5' / 'v1_1' / 'adapter'
  return [files_of(folder), _written(bundle.to_adapterhub)]


def _read_hub(folder: str, seed: int) -> None:
  bundle = load_prompts(folder)
  for name, array in bundle.arrays.items():
    _check(array.dtype == np.float32 and len(array) == 1, f'{name} is no set')
    _check(np.isfinite(array).all(), 'not finite')
  _check(bundle.method == 'adapter', f'method {bundle.method}')


def _npy_seeds() -> list[dict[str, bytes]]:
  seeds = []
  for dtype in (np.float32, np.float16, np.float64):
    for order in 'CF':
      buffer = io.BytesIO()
      np.save(buffer, np.asarray(_random(5, 7), dtype, order=order))
      seeds.append({'prompt.npy': buffer.getvalue()})
  return seeds


def _read_npy(folder: str, seed: int) -> None:
  bundle = load_prompts(os.path.join(folder, 'prompt.npy'))
  _check(bundle.table.ndim == 3, 'not a prompt')
  _check_prompts(bundle, *bundle.table.shape[1:])


# --- Backbones ---


_TIED = tiny.CONFIG.replace(
  mlp_activations=('relu',), logits_via_embedding=True
)


def _sharded(files: dict[str, bytes]) -> dict[str, bytes]:
  """The same weights as two shards with an index."""
  import safetensors.numpy

  tensors = safetensors.numpy.load(files.pop('model.safetensors'))
  weight_map = {}
  for i in (0, 1):
    name = f'model-0000{i + 1}-of-00002.safetensors'
    part = {k: v for n, (k, v) in enumerate(tensors.items()) if n % 2 == i}
    files[name] = safetensors.numpy.save(part, {'format': 'pt'})
    weight_map |= dict.fromkeys(part, name)
  index = {'metadata': {'total_size': 1}, 'weight_map': weight_map}
  files['model.safetensors.index.json'] = json.dumps(index).encode()
  return files


def _hf_seeds() -> list[dict[str, bytes]]:
  whole, tied = (
    _written(
      lambda path, c=config: huggingface.save_huggingface(
        path, c, tiny.backbone(config=c), name='tiny'
      )
    )
    for config in (tiny.CONFIG, _TIED)
  )
  return [whole, tied, _sharded(dict(tied))]


def _read_backbone(folder: str, seed: int) -> None:
  backbone = load_backbone(folder)
  _check(not backbone.report['new'], 'a random tensor')
  flat = traverse_util.flatten_dict(backbone.params, sep='/')
  shapes = {name: array.shape for name, array in flat.items()}
  _check(shapes == param_shapes(backbone.config), 'other shapes')
  for name, array in flat.items():
    _check(array.dtype == np.float32, f'{name} is {array.dtype}')
    _check(np.isfinite(array).all(), f'{name} is not finite')
    # The sibling checkpoint, which no path may lead to, is all of this.
    _check(not (array == OUTSIDE).all(), f'{name} was read from elsewhere')


# The value of every array outside the folder.
OUTSIDE = np.float32(123.0)


def tiny_arrays() -> dict[str, np.ndarray]:
  flat = traverse_util.flatten_dict(tiny.backbone(), sep='/')
  return {name: np.asarray(array, np.float32) for name, array in flat.items()}


def zarr_folder(array: np.ndarray) -> dict[str, bytes]:
  """A zarr array as T5X writes it, in one chunk."""
  import gzip

  meta = {
    'chunks': list(array.shape),
    'compressor': {'id': 'gzip', 'level': 1},
    'dimension_separator': '.',
    'dtype': '<f4',
    'fill_value': None,
    'filters': None,
    'order': 'C',
    'shape': list(array.shape),
    'zarr_format': 2,
  }
  chunk = '.'.join('0' * array.ndim)
  return {
    '.zarray': json.dumps(meta).encode(),
    chunk: gzip.compress(array.tobytes(), mtime=0),
  }


def _in_folder(name: str, files: dict[str, bytes]) -> dict[str, bytes]:
  return {f'{name}/{file}': data for file, data in files.items()}


def _folder_name(parameter: str) -> str:
  return f'target.{parameter.replace("/", ".")}'


def t5x_legacy() -> list[dict[str, bytes]]:
  """All arrays in folders; and every second one in the msgpack file."""
  seeds = []
  for inlined in (False, True):
    files: dict[str, bytes] = {}
    leaves = {}
    for i, (name, array) in enumerate(tiny_arrays().items()):
      if inlined and i % 2:
        leaves[name] = array
        continue
      folder = _folder_name(name)
      files |= _in_folder(folder, zarr_folder(array))
      leaves[name] = {
        'driver': 'zarr',
        'kvstore': {'driver': 'gfile', 'path': folder},
        'metadata': {'shape': list(array.shape)},
      }
    content = {
      'version': 3,
      'optimizer': {'target': traverse_util.unflatten_dict(leaves, sep='/')},
    }
    files['checkpoint'] = serialization.msgpack_serialize(content)
    seeds.append(files)
  return seeds


def t5x_orbax() -> list[dict[str, bytes]]:
  """The stored OCDBT database, and the older folder of zarr arrays."""
  zarr: dict[str, bytes] = {'state/_METADATA': b'{}'}
  for name, array in tiny_arrays().items():
    zarr |= _in_folder(f'state/{_folder_name(name)}', zarr_folder(array))
  return [files_of(CORPUS / 'orbax'), zarr]


def outside() -> dict[str, bytes]:
  """What lies beside the folder: arrays that nothing may read."""
  files: dict[str, bytes] = {}
  for name, array in tiny_arrays().items():
    other = np.full_like(array, OUTSIDE)
    files |= _in_folder(_folder_name(name), zarr_folder(other))
  return files


# --- Text ---

VOCABULARY = ROOT / 'tasks/offline/demo_backbone/spiece.model'
TEXTS = (
  'question: is the cat on the mat? answer: yes',
  '',
  ' \u2581 <extra_id_0> </s> \0 \ufb01 \u0301é 日本 😀',
  'ab' * 200,
)


def _read_vocabulary(folder: str, seed: int) -> None:
  tokenizer = Tokenizer(os.path.join(folder, 'spiece.model'))
  for text in TEXTS:
    ids = tokenizer.encode(text)
    _check(
      all(isinstance(i, int) and 0 <= i < tokenizer.size for i in ids),
      'ids outside the vocabulary',
    )
    _check(isinstance(tokenizer.decode(ids), str), 'no text')


def _encoder_seeds() -> list[dict[str, bytes]]:
  beside = ('config.json', 'tokenizer_config.json')
  return [
    {name: (encoder.FOLDER / name).read_bytes() for name in (*beside, *own)}
    for own in (('tokenizer.json',), ('vocab.json', 'merges.txt'))
  ]


def _read_encoder(folder: str, seed: int) -> None:
  tokenizer = Tokenizer(folder)
  for text in (*TEXTS, 'the <mask> \ufdd1 is\ufdd2<s> good'):
    ids = tokenizer.input_ids(text)
    _check(
      all(isinstance(i, int) and 0 <= i < tokenizer.size for i in ids),
      'ids outside the vocabulary',
    )
    _check(isinstance(tokenizer.decode_model(ids), str), 'no text')


def _record_seeds() -> list[dict[str, bytes]]:
  rows = [
    {
      'premise': f'premise {i}, "quoted" text',
      'hypothesis': ['one', 'two'][i % 2],
      'choices': ['a', 'b', f'c{i}'],
      'answers': {'text': f'answer é {i}'},
      'label': i % 2,
    }
    for i in range(6)
  ]
  jsonl = '\n'.join(
    json.dumps(r, ensure_ascii=i % 2 == 0) for i, r in enumerate(rows)
  )
  tsv = 'premise\thypothesis\tlabel\n' + ''.join(
    f'a "b" {i}\tc, d\t{i % 2}\n' for i in range(6)
  )
  csv = 'premise,hypothesis,label\n' + ''.join(
    f'"a, ""b"" {i}",\u00e9 d,{["no", "yes"][i % 2]}\n' for i in range(6)
  )
  return [
    {'rows.jsonl': jsonl.encode()},
    {'rows.tsv': tsv.encode()},
    {'rows.csv': csv.encode()},
  ]


_COLUMNS = ('premise', 'hypothesis', 'label')


def _read_records(folder: str, seed: int) -> None:
  from mpt_jax.data import sources

  name = ('rows.jsonl', 'rows.tsv', 'rows.csv')[seed]
  columns, renamed = _COLUMNS, {}
  if seed == 0:
    columns = (*_COLUMNS, 'choices', 'answer')
    renamed = {'answer': 'answers/text'}
  source = sources.make_source(
    os.path.join(folder, name), None, columns, renamed, ('no', 'yes')
  )
  source.check('train')
  count = source.num_input_examples('train')
  taken = 0
  for row in source.get_dataset('train', shuffle=False).take(3):
    taken += 1
    _check(set(row) == {'idx', *columns}, f'columns {sorted(row)}')
    _check(-1 <= int(row['label']) < 2, 'label')
    row['premise'].numpy()
  _check(taken == min(3, count), 'lost rows')


def _found_seeds() -> list[dict[str, bytes]]:
  files = {
    f'{part}/{part}.json': json.dumps(made()).encode()
    for part, made in found.PARTS.items()
  }
  return [files]


def _read_found(folder: str, seed: int) -> None:
  from mpt_jax.transfer import report

  text = report.rendered(folder)['html']
  _check(text.endswith('</html>\n'), 'no whole page')
  _check(text.count('<script') == 1, 'a name became markup')


def _infer_seeds() -> list[dict[str, bytes]]:
  lines = [
    'a plain line',
    '{"inputs": "a text", "task": "rte", "id": 7}',
    '',
    '{"inputs": "caf\\u00e9 \\ud83d\\ude00", "more": {"a": [1, 2.5]}}',
    'une ligne é',
  ]
  tables = _record_seeds()
  return [{'lines.txt': '\n'.join(lines).encode()}, *tables]


def _read_infer(folder: str, seed: int) -> None:
  from mpt_jax.engine import answers

  names = ('lines.txt', 'rows.jsonl', 'rows.tsv', 'rows.csv')
  path = os.path.join(folder, names[seed])
  told = answers._Told()
  asking = answers.Asking(bundles()[0], 'rte')
  with answers._open_input(path) as stream:
    rows = answers._rows(stream, path, told)
    for line in answers._questions(rows, asking, told):
      _check(isinstance(line['inputs'], str), 'inputs is no text')
      _check(isinstance(line['task'], str), 'task is no text')
      # As it will be answered and written.
      line['inputs'].encode()
      text = json.dumps(line, ensure_ascii=False, allow_nan=False).encode()
      _check(json.loads(text) == line, 'not what was read')


def _gin_seeds() -> list[dict[str, bytes]]:
  own = (ROOT / 'gin_configs/runs/answer.gin').read_bytes()
  return [
    {
      'run.gin': own,
      'part.gin': (ROOT / 'gin_configs/prompts/uniform.gin').read_bytes(),
      'bindings.json': json.dumps(
        [
          "INITIAL_CHECKPOINT_PATH='t5'",
          "PROMPTS='prompts'",
          "OUTPUT='-'",
          'BATCH_SIZE=3',
          'infer.Decoding.seed=4',
        ]
      ).encode(),
    },
    {
      'run.gin': b"include 'part.gin'\nBATCH_SIZE = %SIZE\nSIZE = 7\n",
      'part.gin': own,
      'bindings.json': json.dumps(
        ["INITIAL_CHECKPOINT_PATH='t5'", "OUTPUT='-'", "PROMPTS='p'"]
      ).encode(),
    },
  ]


def _read_gin(folder: str, seed: int) -> None:
  import gin

  from mpt_jax import (
    cli,
    infer,  # noqa: F401
  )

  try:
    # Stands for the command line; not a file that anybody reads.
    path = files_lib.require_file(os.path.join(folder, 'bindings.json'))
    with open(path, 'rb') as f:
      bindings = [str(b) for b in json.loads(f.read())]
  except (OSError, ValueError, TypeError, RecursionError) as e:
    raise InputError('no bindings to try') from e
  gin.clear_config()
  search_paths = list(gin.config._LOCATION_PREFIXES)
  try:
    cli.configure([os.path.join(folder, 'run.gin')], bindings, folder)
    cli.operative_config()
  finally:
    gin.config._LOCATION_PREFIXES[:] = search_paths
    gin.clear_config()


READERS = {
  reader.name: reader
  for reader in (
    Reader(
      'bundle', lambda: [_written(b.save) for b in bundles()], _read_bundle
    ),
    Reader('library', _library_seeds, _read_library, ('json', 'safetensors')),
    Reader('peft', _peft_seeds, _read_peft, ('json', 'safetensors')),
    Reader('delta', _delta_seeds, _read_delta, ('json', 'safetensors')),
    Reader('adapterhub', _hub_seeds, _read_hub, ('json', 'safetensors')),
    Reader('npy', _npy_seeds, _read_npy),
    Reader('huggingface', _hf_seeds, _read_backbone),
    Reader('t5x_legacy', t5x_legacy, _read_backbone, outside=outside),
    Reader('t5x_orbax', t5x_orbax, _read_backbone, outside=outside),
    Reader(
      'vocabulary',
      lambda: [{'spiece.model': VOCABULARY.read_bytes()}],
      _read_vocabulary,
    ),
    Reader('encoder_vocabulary', _encoder_seeds, _read_encoder),
    Reader('records', _record_seeds, _read_records),
    Reader('infer', _infer_seeds, _read_infer),
    Reader('found', _found_seeds, _read_found, ('json',)),
    Reader('gin', _gin_seeds, _read_gin, own_files_only=False),
  )
}
