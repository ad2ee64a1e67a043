"""What a verb keeps in its folder, so that the same command goes on there."""

from collections.abc import Mapping
import json
import os
from typing import Any

from mpt_jax.checkpoints import files
from mpt_jax.checkpoints import run as run_lib
from mpt_jax.types import InputError

# Of files that are our own, and of prompts by the dozen.
_MOST_BYTES = 1 << 28


def begin(
  folder: str, verb: str, settings: Mapping[str, Any]
) -> dict[str, Any] | None:
  """Compares settings with those that a verb's folder was begun with.

  Args:
    folder: the verb's MODEL_DIR.
    verb: its name.
    settings: what its numbers depend on, JSON-able: digests in place of paths.

  Returns:
    What the finished verb has written, or None if it is not finished.

  Raises:
    InputError: if the folder was begun with others; each is named.
  """
  path = os.path.join(folder, f'{verb}_settings.json')
  now = run_lib.record(settings)
  if os.path.exists(path):
    before = read(path)
    details = run_lib.differences(
      *({k: _text(v) for k, v in record.items()} for record in (before, now))
    )
    if details:
      raise InputError(
        f'MODEL_DIR {folder!r} holds {verb} with other settings; use another'
        ' MODEL_DIR, or what it was made with',
        details,
      )
  else:
    os.makedirs(folder, exist_ok=True)
    files.write_file(path, files.json_bytes(now))
  done = os.path.join(folder, f'{verb}.json')
  return read(done) if os.path.exists(done) else None


def _text(value: Any) -> str:
  """A setting in words, however a dictionary is ordered."""
  if isinstance(value, str):
    return value
  return json.dumps(value, sort_keys=True, ensure_ascii=False)


def write(folder: str, contents: Mapping[str, bytes]) -> None:
  """Writes a verb's files in their order; its JSON, the last, ends the verb.

  Args:
    folder: where to; made if it is not there.
    contents: name -> content.

  Raises:
    InputError: if one cannot be written.
  """
  for name, content in contents.items():
    files.write_file(os.path.join(folder, name), content)


def read(path: str) -> dict[str, Any]:
  """Reads what a verb has written."""
  return files.read_json(path, most_bytes=_MOST_BYTES)
