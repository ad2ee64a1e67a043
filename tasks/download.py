"""Says what fetches the data of a task, and fetches them from the hub.

python -m tasks.download mnli sst2                        # the commands
python -m tasks.download mnli sst2 --hf_data_dir=DIR      # fetches
"""

import argparse
from collections.abc import Iterator, Sequence
import importlib
import os
import sys

from mpt_jax.types import InputError, local_path, nearest, quiet_pipe
from tasks import hub
from tasks.offline import datasets


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='python -m tasks.download',
    description='Says what fetches the data of tasks, from the hub or with'
    ' TFDS; with --hf_data_dir it fetches them from the hub. The same command'
    ' goes on where it was stopped.',
  )
  parser.add_argument('names', nargs='+', metavar='NAME', help='a task, or all')
  parser.add_argument(
    '--hf_data_dir', metavar='FOLDER', help='fetch into FOLDER/OWNER/NAME'
  )
  with quiet_pipe():
    args = parser.parse_args(argv)
  try:
    with quiet_pipe():
      for line in _run(args):
        print(line, flush=True)
  except InputError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('stopped: the same command goes on from here', file=sys.stderr)
    return 130
  return 0


def _run(args: argparse.Namespace) -> Iterator[str]:
  known = {name: d.tfds_name for name, d in datasets.DATASETS.items()}
  own = importlib.import_module('tasks.own').OWN
  names = args.names
  if names == ['all']:
    names = [*known, *(name for name, task in own.items() if task.hub_data)]
  for name in names:
    if name in own and own[name].hub_data is None:
      raise InputError(
        f'the data of {name!r} are given out on request; python -m'
        ' tasks.semeval makes files of the XML (see docs/tasks.md)'
      )
    if name not in known and name not in own:
      both = [*known, *own]
      raise InputError(
        f'{name!r} is no task with data to fetch{nearest(name, both)}; there'
        f' is {", ".join(both)}'
      )
  for name in names:
    tfds_name = known.get(name)
    data = hub.DATA[tfds_name] if tfds_name else own[name].hub_data
    if args.hf_data_dir is None:
      yield f'{name}'
      yield f'  hub   {hub.command(data, "DIR")}'
      if tfds_name:
        where, _, _ = tfds_name.partition(':')
        build = where.replace('/', ' --config=', 1)
        yield f'  TFDS  tfds build {build} --data_dir=DIR'
      if data.note:
        yield f'  note  of the hub: {data.note}'
      continue
    root = local_path(args.hf_data_dir)
    yield f'{name}: {_fetch(data, root)}'


def _fetch(data: hub.HubData, root: str) -> str:
  """Fetches a data set and compares its files with the hub's checksums.

  Returns:
    What was done.

  Raises:
    InputError: if the library or the network is missing, or a file is not
      what the hub has.
  """
  command = hub.command(data, root)
  try:
    import huggingface_hub
  except ImportError as e:
    raise InputError(
      f'{data.repo} is fetched with huggingface_hub (the extra `hub`), which is'
      f' not installed: pip install huggingface_hub; then also {command}'
    ) from e
  folder = os.path.join(root, data.repo)
  revision = data.revision
  try:
    huggingface_hub.snapshot_download(
      data.repo,
      repo_type='dataset',
      revision=revision,
      allow_patterns=[data.pattern],
      local_dir=folder,
    )
    found = huggingface_hub.HfApi().verify_repo_checksums(
      data.repo, repo_type='dataset', revision=revision, local_dir=folder
    )
  except Exception as e:  # Of whichever library it connects with.
    raise InputError(
      f'{data.repo} cannot be fetched: {str(e).partition(chr(10))[0]}; where'
      f' there is a network: {command}'
    ) from e
  # Other folders of the repository are not wanted, and so not missed.
  lost = [
    path
    for path in found.missing_paths
    if path.startswith(data.folder) and ('/' in path or not data.folder)
  ]
  if wrong := [*(m['path'] for m in found.mismatches), *lost]:
    raise InputError(
      f'{os.path.join(folder, wrong[0])} is not what the hub has: remove it and'
      ' run the same command again'
    )
  return f'{os.path.join(folder, data.config)}, as the checksums of the hub say'


if __name__ == '__main__':
  sys.exit(main())
