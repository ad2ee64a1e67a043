"""Models by their names on the Hugging Face hub, as its cache holds them.

'google-t5/t5-base' means the revision that the cache of this machine knows as
`main`. What is not there is downloaded by `huggingface_hub` (the extra `hub`),
once, and only the files that are read.
"""

import logging
import os
import re

from mpt_jax.checkpoints import files, huggingface, vocabulary
from mpt_jax.types import InputError

log = logging.getLogger(__name__)

# What is read of a model, as patterns of file names.
FILES = (
  *(huggingface.CONFIG, vocabulary.GENERATION, vocabulary.SPIECE),
  *(vocabulary.VOCAB, vocabulary.MERGES),
  *vocabulary.BESIDE,
  *(huggingface.WEIGHTS, huggingface.INDEX, 'model-*-of-*.safetensors'),
)
# Parts of paths that mean something else ('.', '..', '~') are no names.
_PART = r'[A-Za-z0-9](?:[\w.-]{0,94}\w)?'
_NAME = re.compile(f'({_PART})/({_PART})', re.ASCII)
_REVISION = re.compile(r'[\w.-]{1,100}', re.ASCII)
# Where the hub's own programs keep a revision of a model.
_SNAPSHOT = re.compile(
  f'models--({_PART})--({_PART})/snapshots/([0-9a-f]{{7,64}})', re.ASCII
)


def is_name(path: str) -> bool:
  """Returns whether a path could be a name of the hub.

  Examples:
    >>> [is_name(p) for p in ('google-t5/t5-base', 't5-base', './t5/base')]
    [True, False, False]
  """
  return bool(_NAME.fullmatch(path)) and '--' not in path and '..' not in path


def name_of(path: str) -> tuple[str, str] | None:
  """Returns the name and the revision of a folder of the hub's cache.

  Args:
    path: any path.

  Returns:
    ('google-t5/t5-base', the hash of the commit); None for other folders.
  """
  parts = os.path.normpath(path).split(os.sep)[-3:]
  match = _SNAPSHOT.fullmatch('/'.join(parts))
  return (f'{match[1]}/{match[2]}', match[3]) if match else None


def find(name: str, fetch: bool = True) -> str | None:
  """Finds a model in the hub's cache, or downloads it.

  Args:
    name: 'owner/name', see `is_name`.
    fetch: whether it may be downloaded, and must be found.

  Returns:
    The folder of its files; None if it is not there and was not to be fetched.

  Raises:
    InputError: if it is not there and cannot be downloaded; with the command
      that does so.
  """
  cached = _cached(name)
  if cached and _is_whole(cached):
    if fetch:
      log.info('%s is revision %s of the hub', name, os.path.basename(cached))
    return cached
  if not fetch:
    return None
  reason = _hindrance(name)
  if not reason:
    return _download(name)
  # Without a vocabulary it may do: another one can be given.
  if cached and huggingface.has_weights(cached):
    return cached
  raise _absent(name, reason)


def _absent(name: str, reason: str) -> InputError:
  included = (
    "'*.json'",
    "'model*.safetensors'",
    vocabulary.SPIECE,
    vocabulary.MERGES,
  )
  command = ' '.join(f'--include {pattern}' for pattern in included)
  return InputError(
    f'there is no folder {name!r}, and the cache of the hub does not hold the'
    f' model {name}: {reason}; where there is a network: hf download {name}'
    f' {command}'
  )


def _cached(name: str) -> str | None:
  """The folder of a model's `main` in the cache, complete or not."""
  try:
    import huggingface_hub
  except ImportError:
    return _cached_by_hand(name)
  try:
    return huggingface_hub.snapshot_download(
      name, local_files_only=True, allow_patterns=[huggingface.CONFIG]
    )
  except (OSError, ValueError):  # It is not there.
    return None


def _cached_by_hand(name: str) -> str | None:
  """The same without `huggingface_hub`, by the layout of its cache."""
  root = os.environ.get('HF_HUB_CACHE') or os.environ.get(
    'HUGGINGFACE_HUB_CACHE'
  )
  if not root:
    caches = os.environ.get('XDG_CACHE_HOME') or os.path.join('~', '.cache')
    home = os.environ.get('HF_HOME') or os.path.join(caches, 'huggingface')
    root = os.path.join(home, 'hub')
  root = os.path.expandvars(os.path.expanduser(root))
  folder = os.path.join(root, f'models--{name.replace("/", "--")}')
  try:
    with open(os.path.join(folder, 'refs', 'main'), encoding='utf-8') as f:
      revision = f.read(200).strip()
  except (OSError, ValueError):
    return None
  path = os.path.join(folder, 'snapshots', revision)
  safe = _REVISION.fullmatch(revision) and revision.strip('.')
  return path if safe and os.path.isdir(path) else None


def _is_whole(folder: str) -> bool:
  """Whether nothing is missing that a model has: a download may have ended."""
  return (
    os.path.isfile(os.path.join(folder, huggingface.CONFIG))
    and huggingface.has_weights(folder)
    and vocabulary.find_vocabulary(folder) is not None
  )


def _hindrance(name: str) -> str:
  """Why a model cannot be downloaded; '' if nothing is known."""
  owner = name.partition('/')[0]
  if os.path.isdir(owner):
    return f'{owner} is a folder here, so that this may be a mistyped path'
  try:
    from huggingface_hub import constants
  except ImportError:
    return 'huggingface_hub is not installed (pip install huggingface_hub)'
  if constants.is_offline_mode():
    return 'HF_HUB_OFFLINE is set'
  return ''


def _download(name: str) -> str:
  """Downloads what is read of a model, with the hub's own progress."""
  import huggingface_hub

  log.info('downloading %s from the hub …', name)
  try:
    folder = huggingface_hub.snapshot_download(name, allow_patterns=[*FILES])
  except Exception as e:  # The network's, the hub's and the disk's: many types.
    told = f'{type(e).__name__}: {files.first_line(e)[:200]}'
    reason = f'it cannot be downloaded ({told})'
    raise _absent(name, reason) from e
  if not huggingface.has_weights(folder):
    raise InputError(
      f'the hub has no weights of {name} as {huggingface.WEIGHTS}, and others'
      ' are not read because they can run code: save it as safetensors, or'
      ' convert a T5X checkpoint'
    )
  log.info('%s is revision %s of the hub', name, os.path.basename(folder))
  return folder


def push(folder: str, name: str, upload: bool) -> str:
  """Uploads a product to the hub, or tells what would be.

  Args:
    folder: the product, with its card.
    name: 'owner/name' of a model of the hub; made, and private, if it is new.
    upload: whether to do it; the hub's own program knows who asks.

  Returns:
    What was uploaded, or would be, as lines.

  Raises:
    InputError: if the hub or `huggingface_hub` does not do it.
  """
  names = sorted(os.listdir(folder))
  lines = [
    f'{os.path.getsize(os.path.join(folder, file)):>15,} bytes  {file}'
    for file in names
  ]
  if not upload:
    with open(os.path.join(folder, files.README), encoding='utf-8') as f:
      card = [f'  {line}'.rstrip() for line in f.read().splitlines()]
    return '\n'.join(
      [
        f'would upload {folder} to {name} on the hub, which is made private if'
        ' it is new:',
        *lines,
        f'its {files.README}:',
        *card,
        'nothing was uploaded: the same command with --upload does so',
      ]
    )
  try:
    import huggingface_hub
  except ImportError:
    raise InputError(
      '--upload needs huggingface_hub: pip install huggingface_hub'
    ) from None
  try:
    api = huggingface_hub.HfApi()
    api.create_repo(name, private=True, exist_ok=True)
    api.upload_folder(
      repo_id=name,
      folder_path=folder,
      allow_patterns=names,
      commit_message='Upload of mpt_jax.export',
    )
  except Exception as e:  # The network's and the hub's: many types.
    raise InputError(
      f'{name} was not uploaded ({type(e).__name__}:'
      f' {files.first_line(e)[:200]}); `hf auth login` tells the hub who asks'
    ) from e
  return '\n'.join([f'uploaded {folder} to {name} on the hub:', *lines])
