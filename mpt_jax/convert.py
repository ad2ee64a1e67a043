r"""Writes a backbone in another program's format.

  python -m mpt_jax.convert --gin_file=gin_configs/runs/convert.gin \
    --gin.INITIAL_CHECKPOINT_PATH="'demo'" \
    --gin.OUTPUT="'t5x/demo'" --gin.FORMAT="'t5x'"

Formats: `t5x` (a checkpoint that T5X restores) and `huggingface` (a folder
that transformers loads). Neither T5X, torch nor transformers is needed.
"""

if __name__ == '__main__':
  # Before the imports: neither --help nor a wrong macro waits for them.
  from mpt_jax import cli

  cli.main('mpt_jax.convert', 'convert')

import logging

import jax
import numpy as np

from mpt_jax.checkpoints import huggingface, t5x_format
from mpt_jax.checkpoints.vocabulary import require_ordinary
from mpt_jax.engine.predictor import load_backbone
from mpt_jax.engine.settings import BackboneSource
from mpt_jax.types import (
  InputError,
  Natural,
  nearest,
)

log = logging.getLogger(__name__)

FORMATS = ('huggingface', 't5x')


def convert(
  *,
  backbone: BackboneSource | str,
  output: str,
  format: str = 'huggingface',
  dtype: str = 'float32',
  step: Natural = 0,
) -> None:
  """Converts a backbone.

  Args:
    backbone: where it is read, or no more than its path; the vocabulary is
      put beside what is written.
    output: folder to write.
    format: 'huggingface' or 't5x'.
    dtype: of the stored weights, 'float32' or 'float16'; T5X's are float32.
    step: number of the T5X checkpoint.

  Raises:
    InputError: if the backbone can't be read or `output` not be written.
  """
  if format not in FORMATS:
    raise InputError(
      f'FORMAT = {format!r}, expected one of {", ".join(FORMATS)}'
      f'{nearest(format, FORMATS)}'
    )
  loaded = load_backbone(backbone)
  params = jax.tree.map(np.asarray, loaded.params)
  if format == 't5x':
    if dtype != 'float32':
      raise InputError(f'DTYPE = {dtype!r}: a T5X checkpoint is float32')
    require_ordinary(loaded.special_ids, loaded.path)
    output = t5x_format.save_t5x(output, loaded.config, params, step)
  else:
    huggingface.save_huggingface(
      output,
      loaded.config,
      params,
      vocabulary_file=loaded.vocabulary_file,
      dtype=dtype,
      name=loaded.name,
      special_ids=loaded.special_ids,
    )
  log.info('wrote %s to %s', loaded.name, output)
