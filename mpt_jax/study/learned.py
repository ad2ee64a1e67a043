"""What a study's runs have learned and what it took: sizes, time, likeness."""

from collections.abc import Mapping, Sequence
import math
import os
from typing import Any

import numpy as np

from mpt_jax import backbones, methods
from mpt_jax.checkpoints import bundle as bundle_lib
from mpt_jax.engine.outcome import BACKBONE, PROMPTS
from mpt_jax.engine.writers import METRICS, read_metrics
from mpt_jax.study import arms

Run = Mapping[str, Any]


def parameters(
  record: Mapping[str, Any], folder: str, runs: Sequence[Run]
) -> dict[str, Any]:
  """Trained numbers per target task, by the methods' closed formulas.

  Args:
    record: `pipeline.json`.
    folder: the study's.
    runs: its runs.

  Returns:
    `prompt_length`, `emb_dim`, `rank`, the number of `targets`, `methods` (arm
    -> its count), and `group`, the count a task if all targets share MPT's
    prompt.
  """
  plan, backbone = record['plan'], record['backbone']
  length, width = _prompt_size(record, folder, runs)
  rank, tasks = plan['prompt_rank'], len(plan['targets'])
  sizes: Any = methods.Width(width)
  if 'config' in backbone:
    sizes = backbones.config_of(backbone['config'])
  counts = {}
  for name in plan['methods']:
    if arms.TARGETS[name].product == BACKBONE:
      counts[name] = backbone['parameters']
    # The method with the settings that it had.
    elif own := [run for run in runs if _is_target(run, name)]:
      learned = _bundle(folder, own[0])
      # Of a group of tasks, its share.
      together = len(learned.task_names)
      counts[name] = learned.learner.num_parameters(sizes, together) // together
  ours = methods.prompt_method(arms.TARGETS[arms.OURS].method, length, rank)
  return {
    'prompt_length': length,
    'emb_dim': width,
    'rank': rank,
    'targets': tasks,
    'methods': counts,
    'group': ours.num_parameters(sizes, tasks) / tasks,
  }


def _prompt_size(
  record: Mapping[str, Any], folder: str, runs: Sequence[Run]
) -> tuple[int, int]:
  """P and D, as a teacher has them, or as they were planned."""
  for run in runs:
    if run['stage'] == 'teacher':
      prompts = _bundle(folder, run)
      return prompts.prompt_length, prompts.emb_dim
  width = record['backbone']['config']['emb_dim']
  return record['plan']['prompt_length'], width


def _bundle(folder: str, run: Run) -> bundle_lib.PromptBundle:
  """What a run has learned, but for a backbone."""
  return bundle_lib.load_prompts(os.path.join(folder, run['name'], PROMPTS))


def _is_target(run: Run, method: str) -> bool:
  return (run['stage'], run.get('method')) == ('target', method)


def costs(
  folder: str, runs: Sequence[Run], method: str
) -> dict[str, float | None]:
  """What training of a target method takes; None if nobody knows.

  Seconds a step are those of the fastest of its runs, also of the search: they
  shared the machine with others. Bytes are the compiler's.

  Args:
    folder: the study's.
    runs: its runs.
    method: name of a target arm.

  Returns:
    `step_seconds`, `step_bytes`; of the runs that are reported, and those
    that one was picked of, their number `runs`, and the `steps` and `seconds`
    of all together, evaluations included.
  """
  own = [
    run
    for run in runs
    if run['stage'] in ('target', 'candidate', 'tuning')
    and run.get('method') == method
  ]
  told = [run for run in own if run['stage'] == 'target']
  tried = [run for run in own if run['stage'] == 'candidate']
  seconds = [s for run in own if (s := _step_seconds(folder, run))]
  needs = max((run['step_bytes'] for run in own), default=0)
  return {
    'step_seconds': min(seconds, default=None),
    'step_bytes': needs or None,
    'runs': len(tried or told),
    'steps': sum(run['steps'] for run in told),
    'seconds': round(sum(run['seconds'] for run in told + tried), 1),
  }


def _step_seconds(folder: str, run: Run) -> float | None:
  """Of a run's steps, without compilation and evaluations."""
  path = os.path.join(folder, run['name'], METRICS)
  rates = [
    line['train/steps_per_second']
    for line in read_metrics(path)
    if 'train/steps_per_second' in line
  ]
  return 1 / rates[-1] if rates and rates[-1] else None


def similarity(
  folder: str, plan: Mapping[str, Any], runs: Sequence[Run]
) -> dict[str, Any]:
  """Cosine between the composed prompts of the first seed's MPT runs.

  Of the source run, and of the target runs with the most data.

  Args:
    folder: the study's.
    plan: its plan, in one level.
    runs: its runs.

  Returns:
    `tasks` by name, first as many source tasks as `sources` says, `cosine`
    [N, N] of them, and the `setting` of the targets.
  """
  shots = {s['name']: s['num_shots'] or math.inf for s in plan['settings']}
  most = max(shots, key=lambda name: shots[name], default=None)
  ours = [
    run
    for run in runs
    if run.get('method') == arms.OURS and run['seed'] == plan['seeds'][0]
  ]
  shown = [run for run in ours if run['stage'] == 'source']
  shown += [
    run for run in ours if run['stage'] == 'target' and run['setting'] == most
  ]
  names: list[str] = []
  rows: list[np.ndarray] = []
  sources = 0
  for run in shown:
    bundle = _bundle(folder, run)
    names += bundle.task_names
    sources += len(bundle.task_names) * (run['stage'] == 'source')
    rows += [bundle.compose(task).ravel() for task in bundle.task_names]
  return {
    'tasks': names,
    'sources': sources,
    'cosine': _cosine(rows),
    'setting': most,
  }


def _cosine(rows: Sequence[np.ndarray]) -> list[list[float]]:
  """As `analysis.similarity`, in float32: the digits of older reports."""
  if not rows:
    return []
  units = np.stack([row / max(np.linalg.norm(row), 1e-12) for row in rows])
  return np.round(units @ units.T, 4).tolist()
