"""Being asked to stop: SIGTERM ends a run at the next step, in order."""

from collections.abc import Iterator
import contextlib
import signal
import threading
from types import FrameType


class Stopped(Exception):
  """The run was asked to stop, and its state is saved."""


class StopRequest:
  """Whether someone has asked this process to stop."""

  def __init__(self):
    self._asked = threading.Event()

  def __bool__(self) -> bool:
    return self._asked.is_set()

  def _handle(self, number: int, frame: FrameType | None) -> None:
    del number, frame
    self._asked.set()

  @contextlib.contextmanager
  def listening(self) -> Iterator['StopRequest']:
    """Takes SIGTERM for a request to stop.

    Only the main thread can; in another one nothing changes.

    Yields:
      Itself.
    """
    if threading.current_thread() is not threading.main_thread():
      yield self
      return
    before = signal.signal(signal.SIGTERM, self._handle)
    try:
      yield self
    finally:
      signal.signal(signal.SIGTERM, before)
