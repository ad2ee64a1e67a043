"""Where a run's checkpoints lie: in its folder, or in a bucket.

Orbax writes and reads them on this machine. Of a MODEL_DIR in a bucket that is
a copy: a step is sent when it is finished, its mark last, and brought here
when it is restored.
"""

import os
import shutil

from mpt_jax.checkpoints import files, stores
from mpt_jax.types import is_remote

# What orbax writes last of all; in a bucket a step without it is none.
MARK = 'commit_success.txt'


def finished(folder: str) -> list[int]:
  """Returns the finished steps in a folder of checkpoints, in order."""
  try:
    names = files.names(folder)
  except OSError:
    return []
  # Here, one that is being written has a longer name.
  return sorted(
    int(name)
    for name in names
    if name.isdecimal()
    and (not is_remote(folder) or stores.kind(f'{folder}/{name}/{MARK}'))
  )


class Steps:
  """The checkpoints of a run, and where orbax finds them.

  Attributes:
    folder: where they lie.
    here: where orbax writes and reads them.
  """

  def __init__(self, folder: str, max_to_keep: int | None):
    """Makes the folder.

    Args:
      folder: the checkpoints' place, here or in a bucket.
      max_to_keep: how many stay in a bucket; None is all.
    """
    self.folder = folder if is_remote(folder) else os.path.abspath(folder)
    self.here = self.folder
    self._keep = max_to_keep
    if is_remote(folder):
      self.here = stores.room()
    os.makedirs(self.here, exist_ok=True)

  @property
  def are_sent(self) -> bool:
    """Whether they lie in a bucket."""
    return self.here != self.folder

  def newest(self) -> int | None:
    """The newest finished step, or None."""
    return max(finished(self.folder), default=None)

  def bring(self, step: int) -> bool:
    """Sees to it that orbax finds a step; returns whether it was brought."""
    if self.are_sent:
      copy = os.path.join(self.here, str(step))
      shutil.rmtree(copy, ignore_errors=True)
      os.rename(stores.bring(f'{self.folder}/{step}'), copy)
    return self.are_sent

  def send(self, step: int) -> None:
    """Sends a step that orbax has written, and removes the oldest ones."""
    if not self.are_sent:
      return
    source, target = os.path.join(self.here, str(step)), f'{self.folder}/{step}'
    stores.remove(target)  # What a killed run has left of it.
    stores.send(source, target, last=MARK)
    # Those that were being written when their run was killed go, too.
    kept = [str(n) for n in finished(self.folder)[-(self._keep or 0) :]]
    for name in stores.names(self.folder):
      if name not in kept:
        stores.remove(f'{self.folder}/{name}/{MARK}')
        stores.remove(f'{self.folder}/{name}')

  def put_aside(self, step: int, damaged: str) -> None:
    """Moves a step into another folder, beside what is there."""
    target = os.path.join(damaged, str(step))
    count = 1
    while files.exists(target):
      target = os.path.join(damaged, f'{step}.{count}')
      count += 1
    source = os.path.join(self.folder, str(step))
    if self.are_sent:
      shutil.rmtree(os.path.join(self.here, str(step)), ignore_errors=True)
      stores.move(source, target)
    else:
      os.makedirs(damaged, exist_ok=True)
      os.rename(source, target)
