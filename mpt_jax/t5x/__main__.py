r"""T5X with a check before it starts, and errors in one line.

  python -m mpt_jax.t5x                       checks what is installed
  python -m mpt_jax.t5x train|eval|infer …    runs t5x.train|eval|infer

The second form takes T5X's own flags; with --gin_file=FILE --help it says what
can be set in a gin file. Wrong input ends with one line on
stderr and exit code 2 (`--debug` shows the traceback), a macro that no gin
file uses is refused. `python -m t5x.train` with the same flags does the same
work.
"""

from collections.abc import Sequence
import runpy
import sys

from mpt_jax import cli
from mpt_jax.t5x.requirements import require_t5x
from mpt_jax.types import InputError, nearest, prefer_own_packages, quiet_pipe

PROGRAMS = ('train', 'eval', 'infer')


def main(argv: Sequence[str]) -> None:
  """Runs the command line; ends the process with its exit code.

  Args:
    argv: the arguments after the program's name.
  """
  debug = '--debug' in argv
  argv = [a for a in argv if a != '--debug']
  try:
    if argv and argv[0] in ('-h', '--help'):
      with quiet_pipe():
        print(__doc__)
      return
    prefer_own_packages()
    if '--help' not in argv:
      require_t5x()
    if not argv:
      print('T5X is installed and fits')
      return
    program, *rest = argv
    if program not in PROGRAMS:
      raise InputError(
        f'unknown program {program!r}, expected one of'
        f' {", ".join(PROGRAMS)}{nearest(program, PROGRAMS)}'
      )
    given = (
      _values(rest, '--gin_file'),
      [a.removeprefix('--gin.') for a in rest if a.startswith('--gin.')],
      ','.join(_values(rest, '--gin_search_paths')),
    )
    if given[0] and '--help' in rest:
      with quiet_pipe():
        print('\n'.join(cli.tell_macros(*given)))
      return
    cli.check_macros(*given)
    sys.argv = [f't5x.{program}', *rest]
    runpy.run_module(f't5x.{program}', run_name='__main__', alter_sys=True)
  except InputError as e:
    if debug:
      raise
    # Gin appends the call it was in; the first line is ours.
    print(f'error: {str(e).splitlines()[0]}', file=sys.stderr)
    sys.exit(2)


def _values(argv: Sequence[str], flag: str) -> list[str]:
  """The values of a flag, given as '--flag=value' or '--flag value'."""
  found = []
  for i, argument in enumerate(argv):
    if argument.startswith(f'{flag}='):
      found.append(argument.partition('=')[2])
    elif argument == flag and i + 1 < len(argv):
      found.append(argv[i + 1])
  return found


if __name__ == '__main__':
  main(sys.argv[1:])
