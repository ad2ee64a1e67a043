"""Paths that T5X reads and the native engine does not: gs:// and the like.

A bundle that lies remotely is copied to a temporary folder first.
"""

import os
import tempfile

from mpt_jax.checkpoints import t5x_format
from mpt_jax.checkpoints.bundle import CONFIG, PromptBundle
from mpt_jax.data.libraries import tf
from mpt_jax.types import (
  InputError,
  is_remote,
  local_path,
)


def localize(path: str) -> str:
  """Returns a local path with the same content as a file or folder.

  Args:
    path: a file, or a folder of files; local ones are returned as they are.

  Raises:
    InputError: if it is remote and does not exist.
  """
  if not is_remote(path):
    return path
  gfile = tf.io.gfile
  path = path.rstrip('/')
  if not gfile.exists(path):
    raise InputError(f'{path} does not exist')
  folder = tempfile.mkdtemp(prefix='mpt_jax.')
  name = path.rsplit('/', 1)[-1]
  local = os.path.join(folder, name)
  if not gfile.isdir(path):
    gfile.copy(path, local)
    return local
  os.mkdir(local)
  for entry in gfile.listdir(path):
    if not entry.endswith('/'):
      gfile.copy(f'{path}/{entry}', os.path.join(local, entry))
  return local


def save_bundle(bundle: PromptBundle, path: str) -> None:
  """Writes a bundle, locally whole or not at all, remotely its config last.

  Args:
    bundle: what to write.
    path: the folder.
  """
  if not is_remote(path):
    bundle.save(path)
    return
  with tempfile.TemporaryDirectory() as folder:
    local = os.path.join(folder, 'bundle')
    bundle.save(local)
    tf.io.gfile.makedirs(path)
    for name in sorted(os.listdir(local), key=lambda n: n == CONFIG):
      tf.io.gfile.copy(
        os.path.join(local, name), f'{path}/{name}', overwrite=True
      )


def checkpoint_folder(path: str) -> str | None:
  """Returns the folder of one step of a T5X checkpoint.

  Args:
    path: such a folder or, locally, the one above, of which the last step is
      taken.

  Returns:
    The folder, or None if a local path holds no T5X checkpoint.

  Raises:
    InputError: if a remote path does not name a step, or a local one is not
      there.
  """
  path = local_path(path).rstrip('/')
  if is_remote(path):
    if not t5x_format.STEP_FOLDER.fullmatch(path.rsplit('/', 1)[-1]):
      raise InputError(
        f'{path} does not name a step: give the folder …/checkpoint_<step>'
      )
    return path
  path = os.path.abspath(path)
  if not os.path.isdir(path):
    raise InputError(f'there is no backbone at {path}: no such folder')
  return t5x_format.find_checkpoint(path)


def initial_step(path: str) -> int:
  """The step at which a run starts: that of its backbone, 0 if it has none.

  Args:
    path: INITIAL_CHECKPOINT_PATH.
  """
  folder = checkpoint_folder(path)
  name = (
    t5x_format.STEP_FOLDER.fullmatch(os.path.basename(folder))
    if folder
    else None
  )
  return int(name[1]) if name else 0
