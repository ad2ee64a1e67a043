"""Packaging: three top-level packages and the data files in them."""

import pathlib
import re

from setuptools import find_packages, setup

_HERE = pathlib.Path(__file__).parent
_VERSION = re.search(
  r"^__version__ = '(.+)'$",
  (_HERE / 'mpt_jax' / '__init__.py').read_text(),
  re.MULTILINE,
).group(1)

# Lower bounds only, so that mpt_jax can live beside other packages. They are
# the oldest versions that the tests have run with; constraints.txt holds the
# exact set.
_CORE = [
  'absl-py>=2.5',
  'flax>=0.12.8',
  'jax>=0.10.2',
  'numpy>=2.4',
  'optax>=0.2.8',
  'orbax-checkpoint>=0.12.8',
  # sentencepiece 0.2.3 brings a schema that needs it, and does not say so.
  'protobuf>=7.36.1',
  'safetensors>=0.8',
  'sentencepiece>=0.2.3',
  'tensorstore>=0.1.86',
]
_DATA = [
  # tensorflow-datasets 4.9.10 imports it and does not say so.
  'importlib_resources>=7.1',
  'pyarrow>=26',
  'rouge_score>=0.1.2',
  'sacrebleu>=2.6',
  'scikit-learn>=1.9',
  'scipy>=1.17',
  'seqio>=0.0.20',
  'tensorflow>=2.21',
  'tensorflow-datasets>=4.9.10',
  'tensorflow-text>=2.21',
  'tqdm>=4.70',
]
_RUNS = [
  'clu>=0.0.12',
  'gin-config>=0.5',
  'matplotlib>=3.11',
  'tensorboard>=2.20',
]

setup(
  name='mpt_jax',
  version=_VERSION,
  description='Multitask Prompt Tuning for T5 in JAX',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=find_packages(
    include=[
      f'{top}{rest}'
      for top in ('mpt_jax', 'tasks', 'gin_configs')
      for rest in ('', '.*')
    ]
  ),
  package_data={
    '': ['*.gin', '*.json'],
    'tasks.offline': [
      'demo_backbone/*',
      'demo_small_backbone/*',
      'demo_large_backbone/*',
      'demo_roberta_backbone/*',
    ],
  },
  install_requires=_CORE + _DATA + _RUNS,
  extras_require={
    # Reads vocabularies that are kept as tokenizer.json alone.
    'tokenizers': ['tokenizers>=0.22'],
    # Encoders, whose vocabularies are of that kind.
    'roberta': ['tokenizers>=0.22'],
    # Backbones and data by their names on the hub, uploads of what was learned.
    'hub': ['huggingface_hub>=2.4'],
    # Runs, prompts, backbones and files of data in buckets: gs://, s3://.
    'gcs': ['fsspec>=2026.9', 'gcsfs>=2026.10.1'],
    's3': ['fsspec>=2026.9', 's3fs>=2026.9'],
    # Studies on several GPUs or machines.
    'ray': ['ray>=2.60'],
    # Successive halving in their search for learning rates.
    'optuna': ['optuna>=5.0'],
    'test': [
      'huggingface_hub>=2.4',
      'hypothesis>=6.170',
      'mypy>=2.4',
      'optuna>=5.0',
      'pre-commit>=4.7',
      'pytest>=9.2',
      'pytest-xdist>=3.8',
      'ray>=2.60',
      'ruff>=0.17.5',
      'tokenizers>=0.22',
    ],
  },
)
