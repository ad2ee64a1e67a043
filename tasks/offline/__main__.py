"""Writes the synthetic data of the embedded benchmark.

python -m tasks.offline --data_dir=DIR [--tasks=mnli,rte] [--seed=0]
    [--train_size=N] [--overwrite]
"""

import argparse
from collections.abc import Sequence
import os
import sys

from mpt_jax.types import InputError, quiet_pipe


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='python -m tasks.offline',
    description='Writes SYNTHETIC data in the schemas of the official TFDS'
    ' data sets, so that the ordinary tasks run on them.',
  )
  parser.add_argument('--data_dir', required=True, help='TFDS data folder')
  parser.add_argument(
    '--tasks', help='comma-separated task names; all if unset'
  )
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument(
    '--train_size',
    type=int,
    help='rows of every train split (of WinoGrande: train_xl)',
  )
  parser.add_argument(
    '--overwrite',
    action='store_true',
    help='write synthetic data anew; real data are never touched',
  )
  with quiet_pipe():
    args = parser.parse_args(argv)
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  from tasks.offline import writer

  try:
    with quiet_pipe():
      writer.write(
        args.data_dir,
        args.tasks.split(',') if args.tasks else None,
        args.seed,
        args.train_size,
        args.overwrite,
      )
  except InputError as error:
    print(error, file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
