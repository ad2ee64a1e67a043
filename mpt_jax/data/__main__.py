"""`python -m mpt_jax.data …` is `python -m tasks.show …`.

A name that a module `tasks` in the working folder does not take.
"""

import importlib
import sys

if __name__ == '__main__':
  sys.exit(importlib.import_module('tasks.show').main())
