"""Which prompts of a run are kept, when it stops, and who may run where."""

import json
import math
import os
import signal
import subprocess
import sys

import pytest

from mpt_jax.checkpoints import lock
from mpt_jax.engine import evaluator, metrics, preemption, selection, writers
from mpt_jax.engine import scores as scores_lib
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


@pytest.mark.parametrize(
  ('scores', 'told'),
  [
    ({'a': {'invalid': 5.0, 'f1': 60.0}}, 'f1 60.0'),
    (
      {'a': {'f1': 60.0}, 'b': {'invalid': 1.0, 'em': 70.0}},
      'mean 65.0 of 2 tasks',
    ),
    ({'a': {'f1': 60.0}, 'b': {'wer': 9.0}}, 'a f1 60.0, b wer 9.0'),
    ({'a': {'mine': 1.0}, 'b': {'mine': 2.0}}, 'a mine 1.0, b mine 2.0'),
    ({'a': {'own': 1.0}, 'b': {'own': 2.0}}, 'mean 1.5 of 2 tasks'),
    (
      {'a': {'f1': 60.0}, 'b': {'accuracy': 70.0}, 'c': {'f1': None}},
      'mean 65.0 of 2 tasks (1 more have none)',
    ),
    ({'a': {'f1': NAN}}, 'no score'),
  ],
)
def test_a_mean_is_of_like_scores(scores, told):
  own = {'own': metrics.Metric('less', 0.0, math.inf, '')}
  assert scores_lib.mean_score(scores, dict.fromkeys('ab', own)) == told


@pytest.mark.parametrize(
  ('name', 'values'),
  [
    ('error_rate', [20.0, 10.0, 10.0, 15.0, 10.0]),
    ('accuracy', [10.0, 1 / 3, 20.1, 20.1, NAN]),
    ('perplexity', [NAN, 1e300, 0.1 + 0.2, 0.3, 0.30000000000000004]),
  ],
)
@pytest.mark.parametrize('stop', [1, 3, 5])
def test_what_was_seen_before_a_stop_counts_the_same(
  tmp_path, name, values, stop
):
  path = str(tmp_path / 'metrics.jsonl')
  whole, resumed = selection.Selection(), selection.Selection()
  writer = writers.JsonlWriter(path, 0)
  for step, value in enumerate(values, start=1):
    # Version 0.1 called the share of the commonest answer so.
    scores = {'t': {'invalid': 0.0, 'majority': 99.0, name: value}}
    whole.update(step, scores)
    writer.write_scalars(step, scores_lib.flat_scores(scores))
    writer.write_scalars(step, {'train/loss': 1.0, 'floor/t/commonest': 5.0})
  writer.close()
  for step, scores in evaluator.past_scores(path, stop):
    resumed.update(step, scores)
  for step, value in enumerate(values[stop:], start=stop + 1):
    resumed.update(step, {'t': {'invalid': 0.0, 'majority': 9.0, name: value}})
  assert resumed.best['t'][:2] == whole.best['t'][:2]
  assert resumed.waited == whole.waited


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


@pytest.mark.parametrize(
  ('values', 'kept'),
  [
    ([('error_rate', v) for v in (20.0, 10.0, 0.0, 5.0)], 2),
    ([('perplexity', v) for v in (3.0, 2.5, 2.5, 7.0)], 1),
    # Undefined loses in either direction.
    ([('wer', v) for v in (NAN, 140.0, None, 90.0)], 3),
    ([('rmse', v) for v in (NAN, None)], 0),
    ([('exact_match', v) for v in (20.0, 10.0, 30.0)], 2),
    ([('mean_7class_f1', v) for v in (20.0, 10.0, 30.0)], 2),
    ([('matthews_corrcoef', v) for v in (-20.0, NAN, -10.0)], 2),
  ],
)
def test_each_metric_knows_its_direction(values, kept):
  chosen = selection.Selection()
  for step, (name, value) in enumerate(values):
    chosen.update(step, {'t': {'invalid': 0.0, name: value}})
  assert chosen.best['t'][0] == kept


def test_patience_waits_for_less_where_less_is_better():
  chosen = selection.Selection(patience=2)
  for step, value in enumerate((9.0, 8.0, 7.0, 7.0)):
    chosen.update(step, {'t': {'loss': value}})
    assert not chosen.finished
  chosen.update(4, {'t': {'loss': 7.5}})
  assert chosen.finished
  assert chosen.best['t'][0] == 2


def test_what_only_describes_outputs_is_no_main_metric():
  looks = {'invalid': 1.0, 'commonest': 2.0, 'majority': 3.0}
  assert selection.main_metric({**looks, 'my_score': 4.0}) == 'my_score'
  assert selection.main_metric({**looks, 'rougeL': 4.0}) == 'rougeL'
  assert selection.main_metric(looks) == 'invalid'
  # Asked for by name, fewer are better.
  chosen = selection.Selection('invalid')
  for step, value in enumerate((20.0, 10.0, 30.0)):
    chosen.update(step, {'t': {'accuracy': 50.0, 'invalid': value}})
  assert chosen.best['t'][0] == 1


def test_an_unknown_direction_is_refused_not_guessed():
  chosen = selection.Selection()
  with pytest.raises(InputError, match='kappa_score') as error:
    chosen.update(0, {'a': {'accuracy': 1.0}, 'b': {'kappa_score': 1.0}})
  assert str(error.value) == (
    "task 'b': KEEP_BEST, PATIENCE and tuning must know whether more or less of"
    " the metric 'kappa_score' is better: put @data.metric('kappa_score',"
    " better='less') (or 'more') above its function"
  )
  assert not chosen.best


def test_a_function_says_what_its_metric_means():
  @metrics.metric('kappa', better='more', low=-1, high=1)
  @metrics.metric('misses', better='less')
  def count(targets, predictions):
    return {'misses': 3.0, 'kappa': 0.5}

  @metrics.metric('accuracy')
  def right(targets, predictions):
    return {'accuracy': 3.0}

  said, whole = metrics.collect([count, right])
  assert whole
  assert said == {
    'misses': metrics.Metric('less', 0.0, math.inf, ''),
    'kappa': metrics.Metric('more', -1, 1, ''),
    'accuracy': metrics.Metric('more', 0.0, 100.0, '%'),
  }
  assert (
    metrics.from_json(json.loads(json.dumps(metrics.as_json(said)))) == said
  )
  assert not metrics.collect([count, lambda targets, predictions: {}])[1]
  chosen = selection.Selection('misses', said={'t': said})
  for step, value in enumerate((3.0, 2.0, 4.0)):
    chosen.update(step, {'t': {'misses': value, 'kappa': value}})
  assert chosen.best['t'][0] == 1
  # What a function says comes before what its name promises.
  upside_down = {'t': {'loss': metrics.Metric('more')}}
  chosen = selection.Selection(said=upside_down)
  for step, value in enumerate((3.0, 4.0)):
    chosen.update(step, {'t': {'loss': value}})
  assert chosen.best['t'][0] == 1
  with pytest.raises(InputError, match="metric 'kappa': give better="):
    metrics.metric('kappa')(lambda targets, predictions: {})
  with pytest.raises(InputError, match="better='lower'.* must be 'more'"):
    metrics.metric('kappa', better='lower')(lambda targets, predictions: {})


def test_a_metric_that_some_tasks_lack_is_refused_at_start():
  known = {'accuracy': metrics.known('accuracy')}
  tasks = {
    'a': ({**known, 'f1': metrics.known('f1')}, True),
    'b': (known, True),
  }
  selection.check_declared(tasks, None)
  selection.check_declared(tasks, 'accuracy')
  with pytest.raises(InputError, match="BEST_METRIC='f1' .* task 'b'; it has"):
    selection.check_declared(tasks, 'f1')
  # Whose functions don't say what they give, is asked at the first evaluation.
  selection.check_declared({**tasks, 'b': (known, False)}, 'f1')
  with pytest.raises(InputError, match="task 'c' has no metrics"):
    selection.check_declared({'c': ({}, True)}, None)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_waits_is_interrupted(capsys, number):
  before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
  signal.signal(signal.SIGINT, signal.default_int_handler)
  with preemption.interrupting('stopping the workers'):
    with pytest.raises(preemption.Interrupted) as e:
      signal.raise_signal(number)
    assert e.value.number == number
    assert capsys.readouterr().err == 'stopping the workers\n'
    # A scheduler repeats itself; a user cannot wait.
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
  signal.signal(signal.SIGINT, before[1])
  assert before == [
    signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)
  ]


def test_ctrl_c_asks_and_a_second_one_interrupts(capsys):
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  request = preemption.StopRequest(lambda: preemption.resumption(8))
  with request.listening():
    os.kill(os.getpid(), signal.SIGINT)
    assert request.number == signal.SIGINT
    assert request.on_any_process()
    with pytest.raises(KeyboardInterrupt) as e:
      signal.raise_signal(signal.SIGINT)
    assert str(e.value) == ('interrupted; the same command resumes from step 8')
  assert preemption.NOTE in capsys.readouterr().err
  # Where it is ignored it stays so.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  with preemption.StopRequest().listening() as deaf:
    os.kill(os.getpid(), signal.SIGINT)
    assert not deaf
  signal.signal(signal.SIGINT, before)


class TestOneForAllTasks:
  """Where all tasks share what is trained, their mean has the best step."""

  def test_the_best_mean_decides(self):
    chosen = selection.Selection(patience=2, together=True)
    rows = [(50.0, 60.0), (90.0, 10.0), (60.0, 60.0), (61.0, 59.0)]
    better = [
      chosen.update(step, {'a': {'accuracy': a}, 'b': {'f1': b}})
      for step, (a, b) in enumerate(rows)
    ]
    # Neither a task's best alone, nor an equal mean, is better.
    assert better == [['a', 'b'], [], ['a', 'b'], []]
    assert chosen.best['a'] == (2, 60.0, {'accuracy': 60.0})
    assert chosen.best['b'] == (2, 60.0, {'f1': 60.0})
    assert not chosen.finished
    chosen.update(4, {'a': {'accuracy': 0.0}, 'b': {'f1': 0.0}})
    assert chosen.finished

  def test_an_undefined_score_counts_in_the_mean(self):
    chosen = selection.Selection(together=True)
    for step, (a, b) in enumerate([(50.0, None), (51.0, None), (20.0, 20.0)]):
      chosen.update(step, {'a': {'accuracy': a}, 'b': {'matthews_corrcoef': b}})
    assert chosen.best['b'][0] == 1

  def test_scores_without_a_mean_are_refused(self):
    tasks = {
      name: ({metric: metrics.known(metric)}, True)
      for name, metric in (('a', 'accuracy'), ('b', 'wer'))
    }
    selection.check_declared(tasks, None)
    words = 'have none .a: more is better .%., b: less is better .%..: give a'
    with pytest.raises(InputError, match=words):
      selection.check_declared(tasks, None, together=True)
    chosen = selection.Selection(together=True)
    with pytest.raises(InputError, match=words):
      chosen.update(0, {'a': {'accuracy': 1.0}, 'b': {'wer': 1.0}})
    # One task has no need of one.
    del tasks['a']
    selection.check_declared(tasks, None, together=True)
