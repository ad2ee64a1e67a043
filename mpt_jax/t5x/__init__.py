"""The T5X engine: our models, data and bundles in `t5x.train|eval|infer`.

T5X is on no package index: `requirements/t5x.txt` installs it. Nothing outside
of this package imports it, and importing this package alone does not either.

  python -m mpt_jax.t5x                    is what is needed there?
  python -m mpt_jax.t5x train --gin_file=… t5x.train, with errors in one line
"""
