"""Which prompts of a run are kept, when it stops, and who may run where."""

import os
import signal
import subprocess
import sys

import pytest

from mpt_jax import preemption, selection
from mpt_jax.checkpoints import lock
from mpt_jax.types import InputError

NAN = float('nan')


def _follow(chosen, scores, task='rte'):
  return [
    bool(chosen.update(step, {task: {'accuracy': score}}))
    for step, score in enumerate(scores)
  ]


def test_the_first_of_equal_scores_stays():
  chosen = selection.Selection()
  better = _follow(chosen, [50.0, 60.0, 60.0, 55.0, 61.0])
  assert better == [True, True, False, False, True]
  assert chosen.best['rte'][:2] == (4, 61.0)
  assert not chosen.finished


def test_an_undefined_score_is_worse_than_any():
  chosen = selection.Selection(patience=2)
  assert _follow(chosen, [NAN, -3.0, NAN, NAN]) == [True, True, False, False]
  assert chosen.best['rte'][:2] == (1, -3.0)
  assert chosen.finished


def test_a_run_ends_when_every_task_has_waited():
  chosen = selection.Selection(patience=2)
  for step, (a, b) in enumerate([(5, 1), (4, 2), (3, 3), (2, 2)]):
    assert not chosen.finished
    chosen.update(step, {'a': {'f1': a}, 'b': {'f1': b}})
  chosen.update(4, {'a': {'f1': 1}, 'b': {'f1': 1}})
  assert chosen.finished
  assert {t: best[0] for t, best in chosen.best.items()} == {'a': 0, 'b': 2}


def test_the_metric_can_be_chosen():
  chosen = selection.Selection(metric='f1')
  chosen.update(0, {'mrpc': {'accuracy': 9.0, 'f1': 1.0}})
  assert chosen.update(1, {'mrpc': {'accuracy': 1.0, 'f1': 2.0}}) == ['mrpc']
  with pytest.raises(InputError, match="BEST_METRIC='f1' .* has exact_match"):
    chosen.update(2, {'multirc': {'exact_match': 1.0}})
  with pytest.raises(InputError, match='PATIENCE=0'):
    selection.Selection(patience=0)
  with pytest.raises(InputError, match='without metrics'):
    selection.Selection().update(0, {'rte': {}})


HOLDER = """
import sys
from mpt_jax.checkpoints import lock
with lock.hold(sys.argv[1]):
  print('held', flush=True)
  sys.stdin.read()
"""


def test_a_folder_has_one_run_at_a_time(tmp_path):
  folder = str(tmp_path / 'run')
  with subprocess.Popen(
    [sys.executable, '-c', HOLDER, folder],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as other:
    assert other.stdout.readline() == 'held\n'
    message = f'run is in use by process {other.pid} on '
    with pytest.raises(InputError, match=message), lock.hold(folder):
      pass
    # However it ends, the folder is free.
    other.kill()
    other.wait()
  for _ in range(2):
    with lock.hold(folder):
      pass


def test_a_request_to_stop():
  before = signal.getsignal(signal.SIGTERM)
  request = preemption.StopRequest()
  with request.listening():
    assert not request
    os.kill(os.getpid(), signal.SIGTERM)
    assert request
  assert signal.getsignal(signal.SIGTERM) == before
