"""What a user sees of TensorFlow while it starts: one line, and no chatter."""

from collections.abc import Iterator
import contextlib
import logging
import os
import sys
import tempfile

log = logging.getLogger(__name__)


def has_seqio() -> bool:
  """Whether SeqIO is loaded; if not, none of its tasks is registered."""
  return sys.modules.get('seqio') is not None


def announce() -> None:
  """Says what takes so long, before it does."""
  if not has_seqio():
    log.info('reading the tasks (TensorFlow takes a few seconds) …')


@contextlib.contextmanager
def silence_native_logs() -> Iterator[None]:
  """Hides what C++ libraries write to stderr while they are imported.

  TensorFlow logs some lines before its log level can be set, so the file
  descriptor is the only handle. What was written is shown after all if the
  block fails.

  Yields:
    Nothing.
  """
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  with tempfile.TemporaryFile() as sink:
    sys.stderr.flush()
    keep = os.dup(2)
    os.dup2(sink.fileno(), 2)
    try:
      yield
    except BaseException:
      os.dup2(keep, 2)
      sink.seek(0)
      sys.stderr.write(sink.read().decode(errors='replace'))
      raise
    finally:
      os.dup2(keep, 2)
      os.close(keep)


@contextlib.contextmanager
def only_errors(logger: str = 'absl') -> Iterator[None]:
  """Hides a library's warnings about choices that are made on purpose.

  Args:
    logger: name of the logger.

  Yields:
    Nothing.
  """
  target = logging.getLogger(logger)
  level = target.level
  target.setLevel(logging.ERROR)
  try:
    yield
  finally:
    target.setLevel(level)
