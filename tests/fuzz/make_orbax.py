"""Writes tests/fuzz/corpus/orbax, whose file names are drawn anew each time.

python -m tests.fuzz.make_orbax
"""

import shutil

import tensorstore as ts

from tests.fuzz.readers import CORPUS, tiny_arrays, zarr_folder


def main() -> None:
  state = CORPUS / 'orbax' / 'state'
  shutil.rmtree(state, ignore_errors=True)
  state.mkdir(parents=True)
  base = {'driver': 'file', 'path': f'{state}/'}
  with ts.Transaction(atomic=True) as transaction:
    store = ts.KvStore.open({'driver': 'ocdbt', 'base': base}).result()
    store = store.with_transaction(transaction)
    for name, array in tiny_arrays().items():
      for file, content in zarr_folder(array).items():
        store[f'target.{name.replace("/", ".")}/{file}'] = content
  (state / '_METADATA').write_text('{}\n')


if __name__ == '__main__':
  main()
