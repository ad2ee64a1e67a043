"""What a command adds to the engine: log file, macros, commands to paste."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
from typing import Any


class Face:
  """What whoever runs the engine has beside it; from Python that is nothing.

  A command has more (`cli`), and shows it while it runs (`showing`).

  Attributes:
    interactive: whether its caller goes on with what a run leaves.
  """

  interactive = True

  def keep_log(self, folder: str) -> None:
    """Keeps what is said from now on in a run's folder, too."""

  def write_config(self, folder: str) -> None:
    """Keeps the configuration that made a run in its folder."""

  def at_interrupt(self, resumes: Callable[[], str]) -> None:
    """Takes what an interrupted run says of its repetition."""

  def end_at_once(self) -> Callable[[str], None] | None:
    """What ends the process whatever it is doing; None if there is none."""
    return None

  def name_of(self, parameter: str) -> str:
    """What a user calls a parameter of the engine."""
    return parameter

  def again(self, changed: Mapping[str, Any]) -> str:
    """The command to run this once more with other parameters, or ''."""
    del changed
    return ''

  def following(self, command: str, macros: Mapping[str, Any]) -> str:
    """Another command to go on with, on the same data, or ''."""
    del command, macros
    return ''


_shown = [Face()]


def face() -> Face:
  """The face of whoever runs the engine."""
  return _shown[-1]


@contextlib.contextmanager
def showing(new: Face) -> Iterator[None]:
  """Shows a face while something runs.

  Args:
    new: the face.

  Yields:
    Nothing.
  """
  _shown.append(new)
  try:
    yield
  finally:
    _shown.remove(new)
