"""What XLA has compiled, kept for later processes."""

import os
from typing import Any

import jax


def use_cache() -> None:
  """Keeps what JAX compiles for later processes, in the user's cache folder.

  JAX's own environment variables decide otherwise: JAX_COMPILATION_CACHE_DIR
  is another folder, JAX_ENABLE_COMPILATION_CACHE=false is none.
  """
  config: Any = jax.config
  if config.jax_compilation_cache_dir:
    return
  folder = _folder()
  if folder is not None:
    config.update('jax_compilation_cache_dir', folder)


def _folder() -> str | None:
  """A folder in the user's cache, made; None if it isn't the user's alone."""
  root = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  folder = os.path.join(root, 'mpt_jax', 'xla')
  try:
    # What is in it is run: nobody else may write there.
    os.makedirs(folder, mode=0o700, exist_ok=True)
    found = os.stat(folder)
  except OSError:
    return None
  theirs = found.st_uid != os.getuid() or found.st_mode & 0o022
  return None if theirs or not os.access(folder, os.W_OK) else folder
