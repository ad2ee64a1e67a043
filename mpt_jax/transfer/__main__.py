"""What is known about a prompt where it was not learned, a verb each.

  python -m mpt_jax.transfer VERB --gin.NAME=VALUE … [flags]

A verb has a gin file of its own, which is read where none is given;
`python -m mpt_jax.transfer VERB --help` says what it does and can be told.
"""

from collections.abc import Mapping, Sequence
import sys

from mpt_jax.cli.help import HELP
from mpt_jax.types import nearest

# Verb -> (module of the package, its function, what it does). In the order in
# which one goes on from one to the next.
VERBS: Mapping[str, tuple[str, str, str]] = {
  'add': ('library', 'add', 'prompts into a library, a folder by task'),
  'list': ('library', 'listing', 'what a library holds'),
  'check': ('library', 'check', 'verifies a library and its index'),
  'retrieve': ('retrieve', 'retrieve', 'which tasks are near, and starts'),
  'matrix': ('matrix', 'matrix', 'every prompt on every task, zero-shot'),
  'indicators': ('indicators', 'indicators', 'what predicts transfer'),
  'speedup': ('speedup', 'speedup', 'a prompt as the start of another'),
  'project': ('project', 'project', 'moves prompts to another backbone'),
  'report': ('report', 'report', 'one page about a folder of results'),
}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a verb; returns the exit status of what is none."""
  words = list(sys.argv[1:] if argv is None else argv)
  if not words or words[0] in HELP:
    print((__doc__ or '').strip() + '\n')
    for verb, (*_, does) in VERBS.items():
      print(f'  {verb:<11} {does}')
    return 0
  verb = words.pop(0)
  if verb not in VERBS:
    print(
      f'error: {verb!r} is no verb of mpt_jax.transfer; there are'
      f' {", ".join(VERBS)}{nearest(verb, VERBS)}',
      file=sys.stderr,
    )
    return 2
  module, function, _ = VERBS[verb]
  if not any(word.startswith('--gin_file') for word in words):
    if not HELP & set(words):
      words.insert(0, f'--gin_file=gin_configs/runs/transfer_{verb}.gin')
  # Imported here: a wrong verb waits for nothing.
  from mpt_jax import cli

  cli.main(
    f'mpt_jax.transfer.{module}', function, words, f'mpt_jax.transfer {verb}'
  )
  return 0


if __name__ == '__main__':
  sys.exit(main())
