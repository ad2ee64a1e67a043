"""Trains the same ten steps on many meshes; prints what each of them got.

  XLA_FLAGS=--xla_force_host_platform_device_count=8 \
    python -m tests.helpers.mesh_check FOLDER [CASE …]

Needs eight devices, so it runs in a process of its own: conftest.py fixes two
for the tests. The last line is JSON, {case: {'losses': [10], 'terms': {…},
'gradients': {…}, 'prompts': {…}}}. The state of case '2x2' after half of the
steps is saved in FOLDER.
"""

import dataclasses
import functools
import json
import sys

import jax
import numpy as np

from mpt_jax import models
from mpt_jax.checkpoints.run import RunCheckpointer
from mpt_jax.engine import batching, optimizers, partitioning, trainer
from mpt_jax.engine import params as params_lib
from tests.helpers import every_method, tiny

ROWS, STEPS = 32, 10
# Eight partitions divide every matrix and the heads.
CONFIG = tiny.CONFIG.replace(
  vocab_size=40,
  emb_dim=16,
  num_heads=8,
  head_dim=2,
  mlp_dim=24,
  num_encoder_layers=2,
  num_decoder_layers=1,
)


@dataclasses.dataclass(frozen=True)
class Case:
  """How the steps are run; all of it should change nothing."""

  data: int = 1
  model: int = 1
  microbatches: int = 1
  packed: bool = False
  remat: bool = False
  scan: bool = False
  shard_backbone: bool = False
  dtype: str = 'float32'
  # One of `every_method`; '' is the source stage.
  method: str = ''
  family: str = every_method.T5


CASES = {
  'plain': Case(),
  'plain_packed': Case(packed=True),
  **{
    f'{data}x{model}{"_packed" if packed else ""}': Case(
      data, model, packed=packed
    )
    for data, model in ((8, 1), (4, 2), (2, 4), (1, 8))
    # 4x2 and 8x1 are packed below.
    for packed in ((False, True) if model > 2 else (False,))
  },
  '2x2': Case(2, 2),
  'microbatches_4': Case(microbatches=4),
  '4x2_microbatches_4_packed': Case(4, 2, microbatches=4, packed=True),
  '8x1_microbatches_2_packed': Case(8, 1, microbatches=2, packed=True),
  'remat': Case(remat=True),
  'scan_packed': Case(scan=True, packed=True),
  '8x1_sharded': Case(8, 1, shard_backbone=True),
  '4x2_all': Case(
    4, 2, microbatches=2, remat=True, scan=True, shard_backbone=True
  ),
  # Each method that has parameters beside the backbone's.
  **{
    f'{name}{way}': dataclasses.replace(case, method=name)
    for name, method in every_method.METHODS.items()
    if method.branch
    for way, case in {
      '': Case(),
      '_4x2_all': Case(
        4,
        2,
        microbatches=2,
        remat=True,
        scan='scan' not in method.cannot,
        shard_backbone=True,
      ),
    }.items()
  },
  # The source stage of an encoder that fills in masks.
  **{
    f'{every_method.MASKED}{way}': dataclasses.replace(
      case, family=every_method.MASKED
    )
    for way, case in {
      '': Case(),
      '_packed': Case(packed=True),
      '_8x1_microbatches_2_packed': Case(8, 1, microbatches=2, packed=True),
      '_4x2_all': Case(
        4, 2, microbatches=2, remat=True, scan=True, shard_backbone=True
      ),
    }.items()
  },
  '4x2_all_bfloat16': Case(
    4,
    2,
    microbatches=2,
    remat=True,
    scan=True,
    shard_backbone=True,
    dtype='bfloat16',
  ),
}


def make_batch(step: int, packed: bool) -> dict[str, np.ndarray]:
  """Examples of uneven lengths, one or two to a row, mixed tasks."""
  rng = np.random.RandomState([7, step])
  prompt, source, target = tiny.P, 9, 4
  names = (
    'encoder_input_tokens',
    'encoder_prompt_slots',
    'encoder_task_ids',
    'encoder_segment_ids',
    'decoder_target_tokens',
    'decoder_input_tokens',
    'decoder_segment_ids',
  )
  rows = []
  for _ in range(ROWS):
    parts = []
    for segment in range(1, 3 if packed else 2):
      length, answer = rng.randint(2, source + 1), rng.randint(1, target + 1)
      pad = [0] * (source - length) if not packed else []
      tokens = [2] * prompt + list(rng.randint(3, 40, length)) + pad
      answers = list(rng.randint(3, 40, answer))
      rest = [0] * (target - answer) if not packed else []
      parts.append(
        (
          tokens,
          list(range(1, prompt + 1)) + [0] * (len(tokens) - prompt),
          [rng.randint(tiny.K)] * len(tokens),
          [segment] * len(tokens),
          answers + rest,
          [0, *(answers + rest)[:-1]],
          [segment] * len(answers + rest),
        )
      )
    joined = [sum(lists, []) for lists in zip(*parts, strict=True)]
    sizes = [2 * (prompt + source)] * 4 + [2 * target] * 3
    rows.append(
      [
        np.pad(v, (0, size - len(v)))
        for v, size in zip(joined, sizes, strict=True)
      ]
    )
  batch = {
    name: np.stack(column).astype(np.int32)
    for name, column in zip(names, zip(*rows, strict=True), strict=True)
  }
  if not packed:
    del batch['encoder_segment_ids'], batch['decoder_segment_ids']
  return batch


def _masked_batch(step: int, packed: bool) -> dict[str, np.ndarray]:
  """As `make_batch`, for the encoder."""
  each = 2 if packed else 1
  examples = every_method.examples(
    tiny.K, each * ROWS, seed=step, family=every_method.MASKED
  )
  rows = [examples[i : i + each] for i in range(0, len(examples), each)]
  shape = ROWS, each * (tiny.P + 11), each * 4
  return batching.lay_out(rows, shape, tiny.P, packed)


@functools.cache
def _model(name, family=every_method.T5):
  if family == every_method.MASKED:
    method, config = tiny.method('source'), every_method.ENCODER
    model = every_method.model(method, tiny.K, family, models.Distilled)
    params = dict(every_method.backbone(config))
    rng = np.random.default_rng(1)
    table = rng.normal(size=(tiny.K, tiny.P, config.emb_dim)).astype('f')
    params['teacher_prompts'] = {'prompt_table': table}
    params['prompts'] = every_method.learned(method, tiny.K, config)
    return dataclasses.replace(model, hidden_layers='all', z_loss=1e-3), params
  if name:
    method = every_method.METHODS[name]
    learned = every_method.learned(method, tiny.K, CONFIG)
    return models.PromptedT5(CONFIG, method, tiny.K), {
      **tiny.backbone(config=CONFIG),
      method.branch: params_lib.unflatten(learned),
    }
  model, params = tiny.stage_model('source', CONFIG)
  return dataclasses.replace(model, hidden_layers='all', z_loss=1e-3), params


def run(
  case: Case, save: str | None = None, restore: str | None = None
) -> dict:
  """Trains ten steps of the source stage, distillation included.

  Args:
    case: how.
    save: folder for a checkpoint after half of the steps.
    restore: folder of one to start from; the other half is trained.
  """
  model, params = _model(case.method, case.family)
  config = model.config.replace(remat_layers=case.remat, dtype=case.dtype)
  model = dataclasses.replace(model, config=config)
  masked = case.family == every_method.MASKED
  make = _masked_batch if masked else make_batch
  devices = jax.devices()[: case.data * case.model]
  mesh = partitioning.make_mesh(case.model, devices)
  partitioning.check_batch_size(ROWS, mesh, case.microbatches)
  # Ten steps of a large rate would make much of rounding errors.
  small = case.method or case.family != every_method.T5
  rates = (0.001, 0.001) if small else (0.03, 0.01)
  optimizer = optimizers.Optimizer(
    optimizers.method_groups(model.method, *rates),
    schedule='constant',
  )
  trained, frozen = params_lib.split(params, model.method.trainable)
  frozen = partitioning.place_backbone(
    frozen,
    mesh,
    dtype=case.dtype,
    scan_layers=case.scan,
    shard_backbone=case.shard_backbone,
  )
  state = trainer.make_state(model, optimizer, trained, 0, mesh)
  step = trainer.make_train_step(model, optimizer, case.microbatches)
  everywhere = partitioning.replicated(mesh)
  zeros = jax.device_get(trainer.zero_metrics(model))
  losses, terms, gradients = [], {}, {}
  if restore:
    state, _ = RunCheckpointer(restore).restore(state)
  for i in range(int(state.step), STEPS):
    if save and i == STEPS // 2:
      RunCheckpointer(save).save(state, None)
    batch = trainer.put_batch(make(i, case.packed), mesh)
    state, totals = step(
      state, frozen, batch, jax.device_put(zeros, everywhere)
    )
    totals = jax.device_get(totals)
    losses.append(float(totals['loss'][0][0]))
    if i == 0:
      terms = {n: (s / w).tolist() for n, (s, w) in totals.items()}
      # The first moment of the first step is a tenth of the gradient.
      for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
        keys = jax.tree_util.keystr(path, simple=True, separator='/')
        if '/mu/' in keys:
          name = keys.partition('/mu/')[2].partition('/')[2]
          gradients[name] = (np.asarray(leaf) * 10).tolist()
  [learned] = jax.device_get(state.params).values()
  return {
    'losses': losses,
    'terms': terms,
    'gradients': gradients,
    'prompts': {n: v.tolist() for n, v in params_lib.flatten(learned).items()},
  }


def main(folder: str, *names: str) -> None:
  jax.config.update('jax_numpy_rank_promotion', 'raise')
  results = {
    name: run(case, save=folder if name == '2x2' else None)
    for name, case in CASES.items()
    if name in names
  }
  print(json.dumps(results))


if __name__ == '__main__':
  main(*sys.argv[1:])
