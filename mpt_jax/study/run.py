"""Runs a plan: what is not finished, each run in its own folder.

The same call goes on where it was stopped. Tasks and backbone are examined
before anything is trained.
"""

from collections.abc import Sequence
import dataclasses
import logging
import os
import sys
import time
from typing import Any

from mpt_jax import cli
from mpt_jax.checkpoints import files, lock
from mpt_jax.checkpoints.backbone import DEMOS
from mpt_jax.engine import preemption
from mpt_jax.engine.settings import Examples
from mpt_jax.study import rates, report, results, steps
from mpt_jax.study.plan import Plan
from mpt_jax.study.workers import STOPPING, Pool, standing
from mpt_jax.types import InputError, local_path, require_local

log = logging.getLogger(__name__)


def run(plan: Plan, workers: int | None = None) -> dict[str, Any]:
  """Runs every step that is not finished, and writes the report.

  Args:
    plan: what is run, and in which folder.
    workers: processes; None is one with an accelerator, else up to two.

  Returns:
    The report, as in `report.json`.

  Raises:
    InputError: if something given is wrong.
    workers.StepError: if a step failed by a bug.
  """
  plan = dataclasses.replace(
    plan,
    model_dir=require_local(plan.model_dir),
    backbone=_find_backbone(plan.backbone),
  )
  cli.at_interrupt(lambda: _standing(plan))
  with lock.hold(plan.model_dir), preemption.interrupting(STOPPING):
    cli.keep_log(plan.model_dir)
    changed = cli.changed_macros(plan.model_dir)
    if not os.path.exists(os.path.join(plan.model_dir, cli.CONFIG)):
      cli.write_config(plan.model_dir)
    try:
      written = _Study(plan).run(workers)
    except InputError as e:
      # A step names its own macros; the user set the study's.
      raise InputError(e.summary, [*changed, *e.details]) from e
    if changed:  # Others that every step took.
      cli.write_config(plan.model_dir)
  return written


def command() -> str:
  """The command that is running, to be typed again."""
  return cli.shell_command('pipeline', sys.argv[1:])


def _standing(plan: Plan) -> str:
  """What there is to resume, by the files in the study's folder."""
  planned = steps.search(plan) + steps.reported(plan, rates.given(plan))
  return standing(plan.model_dir, planned)


class _Study:
  """A plan while it runs.

  The rates may not be known at the start, but the number of steps is.
  """

  def __init__(self, plan: Plan):
    self._plan = plan
    self._begin = time.monotonic()
    self._searched = steps.search(plan)
    self._tuned: list[dict] = []
    self._choose(rates.given(plan))

  def _choose(self, chosen: rates.Chosen) -> None:
    self._chosen = chosen
    self._reported = steps.reported(self._plan, chosen)

  def _read_search(self) -> None:
    """Takes the rates that the finished search found."""
    chosen, self._tuned = rates.tuned(self._plan)
    self._choose(chosen)

  def run(self, workers: int | None) -> dict[str, Any]:
    """Runs what is not finished; returns the report."""
    plan = self._plan
    given = cli.data_dir() or os.environ.get('TFDS_DATA_DIR')
    data_dir = given or os.path.join(plan.model_dir, 'data')
    searched = self._searched
    total = len(searched) + len(self._reported)
    log.info('%d runs in %s', total, plan.model_dir)
    log.info('reading the tasks (TensorFlow takes a few seconds) …')
    with Pool(
      plan.model_dir, workers, plan.backbone, data_dir, plan.tasks.module
    ) as pool:
      if given is None:
        log.info('no --tfds_data_dir: SYNTHETIC DATA in %s', data_dir)
        pool.call(write_data, data_dir, plan.all_tasks)
      facts = pool.call(_examine_data, data_dir, plan)
      backbone = pool.call(_examine_backbone, plan.backbone)
      pool.shared = {
        'backbone': backbone['fingerprint'],
        'tfds_data_dir': _inside(data_dir, plan.model_dir),
      }
      if all(map(pool.is_done, searched)) and searched:
        self._read_search()
      path = os.path.join(plan.model_dir, results.RECORD)
      everything = searched + self._reported
      if os.path.exists(path) and all(map(pool.is_done, everything)):
        log.info('every run is finished; nothing to do')
        # An upgrade may have changed what is written of them.
        return report.write(plan.model_dir)
      pool.call(_examine_texts, plan)
      log.info(
        '%d worker%s on %s',
        pool.limit,
        '' if pool.limit == 1 else 's',
        pool.device,
      )
      if searched:
        pool.run(searched, others=self._reported)
        self._read_search()
      pool.run(self._reported, others=searched)
    self._write_record(facts, backbone, pool.device)
    return report.write(plan.model_dir)

  def _write_record(
    self, facts: dict[str, Any], backbone: dict[str, Any], device: str
  ) -> None:
    """Writes what ran, and with what."""
    record = {
      'command': command(),
      'plan': self._plan.record(),
      'rates': self._chosen,
      'tuning': self._tuned,
      'data': facts,
      'backbone': backbone,
      'device': device,
      'versions': report.versions(),
      'seconds': round(time.monotonic() - self._begin, 1),
      'steps': [
        {'name': step.name, **step.labels}
        for step in self._searched + self._reported
      ],
    }
    path = os.path.join(self._plan.model_dir, results.RECORD)
    files.write_file(path, files.json_bytes(record))


def _inside(path: str, folder: str) -> str:
  """A path that stays the same when the folder that holds it is moved."""
  absolute, root = os.path.realpath(path), os.path.realpath(folder)
  if absolute.startswith(root + os.sep):
    return os.path.relpath(absolute, root)
  return absolute


def _find_backbone(path: str) -> str:
  """The backbone's path; what we ship is found from any working folder."""
  if path in DEMOS:
    return path
  path = local_path(path)
  if path in DEMOS:  # ./demo, which must not become the name.
    path = os.path.join(os.curdir, path)
  if os.path.exists(path) or os.path.isabs(path):
    return path
  for folder in filter(None, cli.search_paths()):
    installed = os.path.join(folder, path)
    if os.path.exists(installed):
      return installed
  raise InputError(f'there is no backbone at {path!r}')


# ---------------------------------------------------------------------------
# In the first worker.


def write_data(data_dir: str, tasks: Sequence[str]) -> None:
  """Writes made up data of tasks, where there are none."""
  from tasks.offline import writer

  writer.write(data_dir, list(tasks))


def _examine_data(data_dir: str, plan: Plan) -> dict[str, dict[str, Any]]:
  """Checks every task before anything is trained.

  Returns:
    Task -> the sizes of its splits, and whether its data are synthetic.

  Raises:
    InputError: if data are missing, or the mixture has other tasks.
  """
  cli.use_data_dir(data_dir)
  from mpt_jax import data

  tasks = plan.tasks
  named = tasks.source_mixture or list(tasks.source_tasks)
  mixture = data.check_data(named, 'train', tasks.module)
  mixed = sorted(task.name for task in mixture.tasks)
  if mixed != sorted(tasks.source_tasks):
    raise InputError(
      f'mixture {tasks.source_mixture!r} has the tasks {", ".join(mixed)},'
      f' but SOURCE_TASKS are {", ".join(tasks.source_tasks)}'
    )
  facts: dict[str, dict[str, Any]] = {}
  for name in plan.all_tasks:
    facts[name] = {'synthetic': data.is_synthetic(name)}
    for split in ('train', 'validation', 'test'):
      task = data.check_data(name, split, tasks.module)
      facts[name][split] = task.num_input_examples(split)
  if plan.target_stage.tuning is not None:
    rates.check_metrics(
      {
        name: data.metrics_of(name, 'validation')[name]
        for name in tasks.targets
      }
    )
  return facts


def _examine_texts(plan: Plan) -> None:
  """Reads what will be trained on and scored, as the first runs do anyway.

  Raises:
    InputError: if a split has no labels, or if a target or a label word does
      not fit: in hours a test run would find it.
  """
  from mpt_jax import data

  tasks, targets = plan.tasks, plan.target_stage
  allowed = bool((plan.macros or {}).get(steps.ALLOWED))
  all_examples = any(setting.num_shots is None for setting in targets.settings)
  for name in plan.all_tasks:
    source = name in tasks.source_tasks
    scored: dict[str, int | None] = {'test': None}
    if source or targets.tuning is not None:
      scored['validation'] = tasks.eval_examples
    for split, number in scored.items():
      examples = Examples(
        name, split, tasks.lengths_of(name), number, None, allowed
      )
      data.examine(examples, plan.prompts.prompt_length, ())
    if source or all_examples:
      config = data.DatasetConfig(
        mixture_or_task_name=name,
        task_feature_lengths=tasks.lengths_of(name),
        batch_size=1,
        allow_cut_targets=allowed,
      )
      data.get_train_iterator(config, plan.prompts.prompt_length, ())


def _examine_backbone(path: str) -> dict[str, Any]:
  from mpt_jax.engine import params
  from mpt_jax.engine import predictor as runs

  loaded = runs.load_backbone(path)
  return {
    'name': loaded.name,
    'fingerprint': loaded.fingerprint,
    'parameters': params.count(loaded.params),
    'config': loaded.config.to_dict(),
  }
