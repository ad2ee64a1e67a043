"""Being asked to stop: SIGTERM and Ctrl-C end a run at the next step, in order.

A second Ctrl-C ends it at once.
"""

from collections.abc import Callable, Iterator
import contextlib
from multiprocessing import resource_tracker
import os
import signal
import sys
import threading
from types import FrameType

# What Ctrl-C asks for, and what ends a process whose main thread is busy.
End = Callable[[str], None]
NOTE = 'stopping at the next step; press Ctrl-C again to end at once'


class Stopped(Exception):
  """The run was asked to stop, and its state is saved.

  Attributes:
    number: the signal that asked.
  """

  def __init__(self, message: str, number: int | None = None):
    super().__init__(message)
    self.number = number or signal.SIGTERM


class Interrupted(KeyboardInterrupt):
  """Someone asked to stop a command that waits for others.

  Attributes:
    number: the signal that asked.
  """

  def __init__(self, number: int):
    super().__init__()
    self.number = number


@contextlib.contextmanager
def interrupting(note: str) -> Iterator[None]:
  """Makes SIGTERM and the first Ctrl-C raise `Interrupted`.

  Only the main thread can; in another one nothing changes.

  Args:
    note: what is said at once; a second Ctrl-C is the usual KeyboardInterrupt.

  Yields:
    Nothing.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}

  def interrupt(number: int, frame: FrameType | None) -> None:
    del frame
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print(note, file=sys.stderr, flush=True)
    raise Interrupted(number)

  for number, handler in before.items():
    if handler != signal.SIG_IGN:
      signal.signal(number, interrupt)
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


@contextlib.contextmanager
def deaf_children() -> Iterator[None]:
  """Lets processes that are started meanwhile never hear Ctrl-C.

  A terminal sends it to all of them, but one decides.

  Yields:
    Nothing.
  """
  # It would unblock the signal for all.
  resource_tracker.ensure_running()
  before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def resumption(step: int | None) -> str:
  """What the same command will do after an end that saved nothing more.

  Args:
    step: of the last checkpoint; None if there is none.
  """
  if step is None:
    return 'nothing was saved: the same command starts from the start'
  return f'the same command resumes from step {step}'


class StopRequest:
  """Whether someone has asked this process to stop.

  Attributes:
    number: the signal that asked; None as long as none has.
  """

  def __init__(
    self, say: Callable[[], str] = lambda: '', end: End | None = None
  ):
    """Nobody has asked yet.

    Args:
      say: what an end at once has to say; called in another thread.
      end: ends the process at a second Ctrl-C, given the line to print; None
        raises KeyboardInterrupt instead, for whoever called us in a process
        of theirs.
    """
    self.say, self._end = say, end
    self.number: int | None = None

  def __bool__(self) -> bool:
    return self.number is not None

  def on_any_process(self) -> bool:
    """Whether any of several processes was asked; all must ask together."""
    # Here: it loads JAX, and `--help` does not wait for that.
    from mpt_jax.engine import multihost

    if not multihost.any_process(bool(self)):
      return False
    # All end with one exit code.
    killed = multihost.any_process(self.number == signal.SIGTERM)
    self.number = signal.SIGTERM if killed else signal.SIGINT
    return True

  def _handle(self, number: int, frame: FrameType | None) -> None:
    """In the main thread, as soon as it runs Python again."""
    del frame
    if number == signal.SIGINT and self.number == signal.SIGINT:
      raise KeyboardInterrupt(f'interrupted; {self.say()}')
    self.number = number

  def _watch(self, pipe: int) -> None:
    """In a thread of its own, since compiled code keeps the main one busy."""
    presses = 0
    while number := os.read(pipe, 1):
      if number[0] == signal.SIGINT:
        presses += 1
        if presses == 1:
          print(NOTE, file=sys.stderr, flush=True)
        elif self._end is not None:
          self._end(f'interrupted; {self.say()}')

  @contextlib.contextmanager
  def listening(self) -> Iterator['StopRequest']:
    """Takes SIGTERM and Ctrl-C for requests to stop.

    Only the main thread can; in another one nothing changes. Where Ctrl-C is
    ignored (`nohup`, a shell's background job), it stays ignored.

    Yields:
      Itself.
    """
    if threading.current_thread() is not threading.main_thread():
      yield self
      return
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
      numbers.append(signal.SIGINT)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    watcher = threading.Thread(target=self._watch, args=(reading,), daemon=True)
    before = {n: signal.signal(n, self._handle) for n in numbers}
    woken = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watcher.start()
    try:
      yield self
    finally:
      signal.set_wakeup_fd(woken)
      for number, handler in before.items():
        signal.signal(number, handler)
      os.close(writing)
      watcher.join()
      os.close(reading)
