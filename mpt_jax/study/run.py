"""Runs a plan: what is not finished, each run in its own folder.

The same call goes on where it was stopped. Tasks and backbone are examined
before anything is trained.
"""

import dataclasses
import json
import logging
import os
import sys
import time
from typing import Any

from mpt_jax import cli
from mpt_jax.checkpoints import files, hub, lock
from mpt_jax.checkpoints.backbone import DEMOS
from mpt_jax.engine import preemption
from mpt_jax.study import examine, rates, report, results, steps
from mpt_jax.study.plan import Plan
from mpt_jax.study.workers import STOPPING, Pool, standing
from mpt_jax.types import HUB, InputError, local_path, require_local

log = logging.getLogger(__name__)


def run(
  plan: Plan, workers: int | None = None, executor: str = 'local'
) -> dict[str, Any]:
  """Runs every step that is not finished, and writes the report.

  Args:
    plan: what is run, and in which folder.
    workers: processes; None is one with an accelerator, else up to two; with
      Ray one for each GPU, or for each core.
    executor: 'local', or 'ray' for several GPUs or machines.

  Returns:
    The report, as in `report.json`.

  Raises:
    InputError: if something given is wrong.
    workers.StepError: if a step failed by a bug.
  """
  plan = dataclasses.replace(
    plan,
    model_dir=require_local(plan.model_dir),
    backbone=find_backbone(plan.backbone),
  )
  cli.at_interrupt(lambda: _standing(plan))
  with lock.hold(plan.model_dir), preemption.interrupting(STOPPING):
    cli.keep_log(plan.model_dir)
    changed = cli.changed_macros(plan.model_dir)
    if not os.path.exists(os.path.join(plan.model_dir, cli.CONFIG)):
      cli.write_config(plan.model_dir)
    try:
      written = _Study(plan).run(workers, executor)
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

  def _take_lengths(self, pool: Pool) -> None:
    """Has lengths found in the data, where the plan has none."""
    tasks = self._plan.tasks
    if tasks.task_feature_lengths is not None:
      return
    found = pool.call(examine.lengths, self._plan)
    log.info('TASK_FEATURE_LENGTHS = %s, by the longest texts', found)
    tasks = dataclasses.replace(tasks, task_feature_lengths=found)
    self._plan = dataclasses.replace(self._plan, tasks=tasks)
    self._searched = steps.search(self._plan)
    self._choose(self._chosen)

  def _search(self, pool: Pool) -> None:
    """Runs the search, rung by rung; what is in one, the last ones decide."""
    rungs = 0
    while True:
      rungs += 1
      self._searched = steps.search(self._plan)
      now = steps.search(self._plan, rungs)
      names = {step.name for step in now}
      later = [s for s in self._searched if s.name not in names]
      pool.run(now, others=later + self._reported)
      if not later:
        break
    self._read_search()

  def run(self, workers: int | None, executor: str) -> dict[str, Any]:
    """Runs what is not finished; returns the report."""
    plan = self._plan
    given = cli.data_dir() or os.environ.get('TFDS_DATA_DIR')
    data_dir = given or os.path.join(plan.model_dir, 'data')
    searched = self._searched
    total = len(searched) + len(self._reported)
    log.info('%d runs in %s', total, plan.model_dir)
    log.info('reading the tasks (TensorFlow takes a few seconds) …')
    with Pool(
      plan.model_dir,
      workers,
      plan.backbone,
      data_dir,
      plan.tasks.module,
      executor,
    ) as pool:
      if given is None:
        made_up = pool.call(
          examine.write_data, data_dir, plan.all_tasks, plan.tasks.module
        )
        if made_up:
          log.info('no --tfds_data_dir: SYNTHETIC DATA in %s', data_dir)
      facts = pool.call(examine.tasks, data_dir, plan)
      backbone = pool.call(examine.backbone, plan.backbone)
      self._take_lengths(pool)
      searched, plan = self._searched, self._plan
      pool.shared = {
        'backbone': backbone['fingerprint'],
        'tfds_data_dir': _inside(data_dir.removeprefix(HUB), plan.model_dir),
      }
      if all(map(pool.is_done, searched)) and searched:
        self._read_search()
      path = os.path.join(plan.model_dir, results.RECORD)
      everything = searched + self._reported
      if os.path.exists(path) and all(map(pool.is_done, everything)):
        log.info('every run is finished; nothing to do')
        self._update_record(facts, backbone)
        # An upgrade may have changed what is written of them.
        return report.write(plan.model_dir)
      for note in pool.call(examine.texts, plan):
        log.warning(note)
      log.info(
        '%d worker%s on %s',
        pool.limit,
        '' if pool.limit == 1 else 's',
        pool.device,
      )
      if searched:
        self._search(pool)
      pool.run(self._reported, others=self._searched)
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

  def _update_record(
    self, facts: dict[str, Any], backbone: dict[str, Any]
  ) -> None:
    """Writes the record anew if the same runs are to be told of otherwise."""
    path = os.path.join(self._plan.model_dir, results.RECORD)
    record = files.read_json(path)
    now = json.loads(files.json_bytes(self._plan.record()))
    if {**record['plan'], 'folder': None} != {**now, 'folder': None}:
      self._write_record(facts, backbone, record['device'])


def _inside(path: str, folder: str) -> str:
  """A path that stays the same when the folder that holds it is moved."""
  absolute, root = os.path.realpath(path), os.path.realpath(folder)
  if absolute.startswith(root + os.sep):
    return os.path.relpath(absolute, root)
  return absolute


def find_backbone(path: str, fetch: bool = True) -> str:
  """Returns a backbone's path; what we ship is found from any working folder.

  Args:
    path: as given; the name of a model of the hub stays one.
    fetch: whether that model may be downloaded.

  Raises:
    InputError: if nothing is there.
  """
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
  if not hub.is_name(path):
    raise InputError(f'there is no backbone at {path!r}')
  if hub.find(path, fetch) is None:
    raise InputError(
      f'there is no backbone at {path!r}, nor in the cache of the hub: it must'
      ' be downloaded'
    )
  return path
